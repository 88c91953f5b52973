// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>

/*
 * A queue's io_uring. Everything here runs on the queue's thread: no lock. A request has at most
 * one operation in the ring, and the ring has room for all of a queue's requests, so no entry is
 * ever missing and no completion overflows.
 *
 *   issue -> (submission queue) -> submit -> kernel -> reap -> advance -> issue | mb_blk_done
 */
#define MAX_OP_BYTES (1u << 30) /* the kernel ends an operation at 2 GiB - 4 KiB (read(2)) */
#define MAX_AGAIN    16
#define PAUSE_NS     1000000

static int explain_ring(const struct mb_blk *blk, int errnum, struct mb_error *err)
{
	switch (errnum) {
	case EPERM:
		return mb_error_set(err, errnum,
			"%s: the kernel refuses io_uring; allow it with: sysctl "
			"kernel.io_uring_disabled=0 (in a container: permit the io_uring system "
			"calls in its seccomp profile)",
			blk->name);
	case ENOSYS:
		return mb_error_set(err, errnum,
			"%s: this kernel, or a seccomp profile, has no io_uring; Linux 5.6 or "
			"newer with CONFIG_IO_URING is needed",
			blk->name);
	case ENOMEM:
		return mb_error_set(err, errnum,
			"%s: no memory for io_uring; raise the locked-memory limit (ulimit -l) or "
			"give the disk fewer queues",
			blk->name);
	default:
		return mb_error_set(
			err, errnum, "%s: cannot set io_uring up: %s", blk->name, strerror(errnum));
	}
}

static int init_ring(struct mb_blk_queue *q, struct mb_error *err)
{
	/* COOP_TASKRUN (Linux 5.19) spares an interrupt a completion: our thread is about to wait
	 * anyway. */
	const unsigned flags[] = {IORING_SETUP_COOP_TASKRUN, 0};
	int rc = -EINVAL;

	for (unsigned i = 0; rc == -EINVAL && i < 2; i++)
		rc = io_uring_queue_init(2 * MB_BLK_QUEUE_SIZE, &q->ring, flags[i]);
	if (rc)
		return explain_ring(q->blk, -rc, err);
	q->has_ring = true;
	/*
	 * The file is not registered with the ring: that would spare a reference count a request,
	 * but the kernel tears rings down some time after their end, and the disk would stay locked
	 * until then.
	 */
	return 0;
}

/* What a server has does not go through it. */
static bool has_ring(const struct mb_blk *blk)
{
	return !blk->nbd || blk->cow;
}

int mb_blk_queue_init(struct mb_blk_queue *q, struct mb_blk *blk, struct mb_error *err)
{
	int rc;

	q->blk = blk;
	q->waiting_last = &q->waiting;
	q->bounce_bytes = blk->nbd ? MB_NBD_BOUNCE_BYTES : MB_BLK_BOUNCE_BYTES;
	rc = has_ring(blk) ? init_ring(q, err) : 0;
	if (!rc && blk->cow)
		rc = mb_blk_cow_init(q, err);
	if (!rc && blk->nbd)
		rc = mb_nbd_queue_init(q, err);
	if (rc)
		return rc;
	q->reqs = calloc(MB_BLK_QUEUE_SIZE, sizeof(*q->reqs));
	/* Untouched until a guest's first misaligned request. */
	q->bounces = mmap(NULL, MB_BLK_N_BOUNCE * q->bounce_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (q->bounces == MAP_FAILED)
		q->bounces = NULL;
	if (!q->reqs || !q->bounces)
		return mb_error_set(err, ENOMEM, "%s: out of memory", blk->name);
	for (unsigned i = 0; i < MB_BLK_N_BOUNCE; i++)
		q->free_bounces[q->n_free_bounces++] = q->bounces + i * q->bounce_bytes;
	for (unsigned i = MB_BLK_QUEUE_SIZE; i--;) {
		q->reqs[i].q = q;
		q->reqs[i].next = q->free_reqs;
		q->free_reqs = &q->reqs[i];
	}
	return 0;
}

void mb_blk_queue_finish(struct mb_blk_queue *q)
{
	if (q->nbd)
		mb_nbd_queue_finish(q);
	if (q->has_ring)
		io_uring_queue_exit(&q->ring);
	if (q->bounces)
		munmap(q->bounces, MB_BLK_N_BOUNCE * q->bounce_bytes);
	mb_blk_cow_finish(q);
	free(q->reqs);
}

/* ---- a request's data in guest memory ---- */

void mb_blk_data(struct mb_blk_req *req, bool write, uint64_t skip)
{
	struct mb_chain *chain = req->chain;

	req->iov = write ? chain->iov : chain->iov + chain->n_out;
	req->n_iov = write ? chain->n_out : chain->n_in;
	req->cut_first = req->cut_last = req->cut_end = NULL;
	if (!write) { /* the status byte is the last of the in-part, in whatever buffer that is */
		while (req->n_iov && !req->iov[req->n_iov - 1].iov_len)
			req->n_iov--;
		if (req->n_iov) {
			req->cut_last = &req->iov[req->n_iov - 1];
			req->last = *req->cut_last;
			if (!--req->cut_last->iov_len)
				req->n_iov--;
		}
	}
	for (; req->n_iov && skip >= req->iov->iov_len; req->n_iov--)
		skip -= req->iov++->iov_len;
	if (skip && req->n_iov) {
		req->cut_first = req->iov;
		req->first = *req->iov;
		req->iov->iov_base = (uint8_t *)req->iov->iov_base + skip;
		req->iov->iov_len -= skip;
	}
}

static void uncut_end(struct mb_blk_req *req)
{
	if (req->cut_end)
		*req->cut_end = req->end;
	req->cut_end = NULL;
}

/* Undoes the cuts, in the other order: they may be in the same entry. */
void mb_blk_restore(struct mb_blk_req *req)
{
	uncut_end(req);
	if (req->cut_first)
		*req->cut_first = req->first;
	if (req->cut_last)
		*req->cut_last = req->last;
	req->cut_first = req->cut_last = NULL;
}

static void advance_data(struct mb_blk_req *req, uint64_t n)
{
	for (; req->n_iov && n >= req->iov->iov_len; req->n_iov--, req->iov++) {
		n -= req->iov->iov_len;
		if (req->iov == req->cut_first) {
			*req->cut_first = req->first;
			req->cut_first = NULL;
		}
	}
	if (!n || !req->n_iov)
		return;
	if (req->iov != req->cut_first) {
		req->cut_first = req->iov;
		req->first = *req->iov;
	}
	req->iov->iov_base = (uint8_t *)req->iov->iov_base + n;
	req->iov->iov_len -= n;
}

void mb_blk_advance(struct mb_blk_req *req, uint64_t n)
{
	advance_data(req, n);
	req->offset += n;
	req->done += n;
	req->left -= n;
}

/* How many of the buffers the operation is for; the last of them is cut until it has completed. */
static unsigned cut_end(struct mb_blk_req *req)
{
	uint64_t left = req->part;

	if (req->part == req->left)
		return req->n_iov;
	for (unsigned i = 0; i < req->n_iov; i++) {
		if (req->iov[i].iov_len >= left) {
			req->cut_end = &req->iov[i];
			req->end = req->iov[i];
			req->iov[i].iov_len = left;
			return i + 1;
		}
		left -= req->iov[i].iov_len;
	}
	return req->n_iov;
}

static bool data_aligned(const struct mb_blk_req *req)
{
	const struct mb_blk_file *file = &req->q->blk->file;

	for (unsigned i = 0; i < req->n_iov; i++)
		if ((uintptr_t)req->iov[i].iov_base % file->mem_align ||
			req->iov[i].iov_len % file->io_align)
			return false;
	return true;
}

/* ---- submission ---- */

static struct io_uring_sqe *get_sqe(struct mb_blk_queue *q, void *user)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);

	/* Never NULL: one operation a request, and twice as many entries. */
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data(sqe, user);
	q->n_inflight++;
	return sqe;
}

static void wait_for_bounce(struct mb_blk_req *req)
{
	struct mb_blk_queue *q = req->q;

	req->next = NULL;
	*q->waiting_last = req;
	q->waiting_last = &req->next;
}

static void prep_bounce(struct mb_blk_req *req, struct io_uring_sqe *sqe, bool write)
{
	unsigned len = req->part < MB_BLK_BOUNCE_BYTES ? (unsigned)req->part : MB_BLK_BOUNCE_BYTES;

	if (write) {
		mb_chain_read(req->chain, MB_BLK_HEADER + req->done, req->bounce, len);
		io_uring_prep_write(sqe, req->fd, req->bounce, len, req->at);
	} else {
		io_uring_prep_read(sqe, req->fd, req->bounce, len, req->at);
	}
}

static void prep_guest(struct mb_blk_req *req, struct io_uring_sqe *sqe, bool write)
{
	unsigned n_iov = cut_end(req);
	unsigned len = req->part < MAX_OP_BYTES ? (unsigned)req->part : MAX_OP_BYTES;
	int fd = req->fd;

	if (n_iov == 1 && write)
		io_uring_prep_write(sqe, fd, req->iov->iov_base, len, req->at);
	else if (n_iov == 1)
		io_uring_prep_read(sqe, fd, req->iov->iov_base, len, req->at);
	else if (write)
		io_uring_prep_writev(sqe, fd, req->iov, n_iov, req->at);
	else
		io_uring_prep_readv(sqe, fd, req->iov, n_iov, req->at);
}

static void prep_data(struct mb_blk_req *req, struct io_uring_sqe *sqe)
{
	bool write = req->type == VIRTIO_BLK_T_OUT;

	if (req->op == MB_BLK_BOUNCE)
		prep_bounce(req, sqe, write);
	else
		prep_guest(req, sqe, write);
	if (write && req->dsync)
		sqe->rw_flags = RWF_DSYNC;
}

bool mb_blk_take_bounce(struct mb_blk_req *req)
{
	struct mb_blk_queue *q = req->q;

	if (req->bounce)
		return true;
	if (!q->n_free_bounces) {
		wait_for_bounce(req);
		return false;
	}
	req->bounce = q->free_bounces[--q->n_free_bounces];
	return true;
}

void mb_blk_drop_bounce(struct mb_blk_req *req)
{
	struct mb_blk_queue *q = req->q;

	if (req->bounce)
		q->free_bounces[q->n_free_bounces++] = req->bounce;
	req->bounce = NULL;
}

/* The operation as it is set, into the ring or to the server. */
static void put_op(struct mb_blk_req *req)
{
	struct mb_blk_queue *q = req->q;
	unsigned len = req->part < MB_BLK_ZERO_BYTES ? (unsigned)req->part : MB_BLK_ZERO_BYTES;
	struct io_uring_sqe *sqe;
	int fd = req->fd;

	if (fd < 0) {
		mb_nbd_put(req);
		return;
	}
	sqe = get_sqe(q, req);
	switch (req->op) {
	case MB_BLK_GUEST:
	case MB_BLK_BOUNCE:
		prep_data(req, sqe);
		break;
	case MB_BLK_FSYNC:
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
		break;
	case MB_BLK_FALLOCATE:
		io_uring_prep_fallocate(sqe, fd, req->mode, (off_t)req->at, (off_t)req->part);
		break;
	case MB_BLK_ZERO:
		io_uring_prep_write(sqe, fd, q->blk->zeroes, len, req->at);
		break;
	case MB_BLK_FILL_READ:
		io_uring_prep_read(sqe, fd, req->bounce, len, req->at);
		break;
	case MB_BLK_FILL_WRITE:
		io_uring_prep_write(sqe, fd, req->bounce, len, req->at);
		break;
	}
	/* The prep functions clear the entry, user data included. */
	io_uring_sqe_set_data(sqe, req);
}

void mb_blk_issue(struct mb_blk_req *req)
{
	struct mb_blk *blk = req->q->blk;

	if (blk->cow) {
		if (mb_blk_aim(req))
			put_op(req);
		return;
	}
	if (req->op == MB_BLK_GUEST && blk->file.direct && !data_aligned(req)) {
		req->op = MB_BLK_BOUNCE;
		mb_blk_restore(req);
	}
	if (req->op == MB_BLK_BOUNCE && !mb_blk_take_bounce(req))
		return;
	req->fd = blk->file.fd;
	req->at = req->offset;
	req->part = req->left;
	put_op(req);
}

static void pause_a_moment(void)
{
	struct timespec ts = {.tv_nsec = PAUSE_NS};

	nanosleep(&ts, NULL);
}

/*
 * The kernel may take a part (it stops at an entry it dislikes, which then completes with its
 * error) or nothing (EAGAIN: no memory just now; EBUSY: completions first).
 */
void mb_blk_submit(struct mb_blk_queue *q)
{
	while (q->has_ring && io_uring_sq_ready(&q->ring)) {
		int rc = io_uring_submit(&q->ring);

		if (rc >= 0 || rc == -EINTR)
			continue;
		/* With anything in the kernel's hands, its completion brings us back here. */
		if (q->n_inflight > io_uring_sq_ready(&q->ring))
			return;
		mb_log_guest(&q->blk->rl, "%s: io_uring takes no requests: %s; trying again",
			q->blk->name, strerror(-rc));
		pause_a_moment();
	}
}

/* ---- completion ---- */

void mb_blk_req_put(struct mb_blk_req *req)
{
	struct mb_blk_queue *q = req->q;

	mb_blk_restore(req);
	mb_blk_drop_bounce(req);
	if (q->blk->cow)
		mb_blk_cow_drop(req);
	req->chain = NULL;
	req->next = q->free_reqs;
	q->free_reqs = req;
}

/* The request goes on, unless the queue is being stopped: then it is dropped here. */
static void go_on(struct mb_blk_req *req)
{
	if (req->q->stopping)
		mb_blk_req_put(req);
	else
		mb_blk_issue(req);
}

static void data_completed(struct mb_blk_req *req, int res)
{
	if (res == -EINVAL && req->op == MB_BLK_GUEST && req->q->blk->file.direct) {
		/* Direct I/O with a rule that it did not tell us: through a buffer, then. */
		req->op = MB_BLK_BOUNCE;
		mb_blk_restore(req);
		go_on(req);
		return;
	}
	if (res <= 0) { /* 0: the file has become shorter behind our back */
		mb_blk_done(req, res ? -res : EIO);
		return;
	}
	if ((uint64_t)res > req->left)
		res = (int)req->left;
	if (req->op == MB_BLK_BOUNCE && req->type == VIRTIO_BLK_T_IN)
		mb_chain_write(req->chain, req->done, req->bounce, (size_t)res);
	else if (req->op == MB_BLK_GUEST)
		advance_data(req, (uint64_t)res);
	req->offset += (unsigned)res;
	req->done += (unsigned)res;
	req->left -= (unsigned)res;
	if (req->left)
		go_on(req);
	else
		mb_blk_done(req, 0);
}

static bool not_supported(int errnum)
{
	return errnum == EOPNOTSUPP || errnum == ENOSYS || errnum == EINVAL || errnum == ENODEV;
}

/* What the file system has not got is not asked for again. */
static void remember(struct mb_blk *blk, int mode)
{
	if (mode & FALLOC_FL_ZERO_RANGE)
		__atomic_store_n(&blk->no_zero_range, true, __ATOMIC_RELAXED);
	else if (!__atomic_exchange_n(&blk->no_punch, true, __ATOMIC_RELAXED))
		mb_log("%s: blocks cannot be given back where it lies: what the guest discards "
		       "keeps its room",
			blk->name);
}

static void fallocate_completed(struct mb_blk_req *req, int res)
{
	/* A server said beforehand what it can do; this is about one range. */
	if (res == -EOPNOTSUPP && !req->q->blk->nbd)
		remember(req->q->blk, req->mode);
	if (!res) {
		req->offset += req->part;
		req->left -= req->part;
		if (req->left)
			go_on(req);
		else
			mb_blk_done(req, 0);
	} else if (req->type == VIRTIO_BLK_T_DISCARD) {
		/* A hint: nothing is lost when it cannot be taken (virtio 1.2, 5.2.6.2). */
		mb_blk_done(req, not_supported(-res) ? 0 : -res);
	} else if (not_supported(-res)) {
		req->op = MB_BLK_ZERO;
		go_on(req);
	} else {
		mb_blk_done(req, -res);
	}
}

static void completed(struct mb_blk_req *req, int res)
{
	if (req->q->stopping) {
		/* The kernel says it only once. */
		if (req->op == MB_BLK_FSYNC && res < 0)
			mb_blk_sync_failed(req, -res);
		mb_blk_req_put(req);
		return;
	}
	uncut_end(req);
	if ((res == -EINTR || res == -EAGAIN) && req->n_again++ < MAX_AGAIN) {
		put_op(req);
		return;
	}
	if (req->q->blk->cow) {
		mb_blk_cow_completed(req, res);
		return;
	}
	switch (req->op) {
	case MB_BLK_GUEST:
	case MB_BLK_BOUNCE:
		data_completed(req, res);
		break;
	case MB_BLK_FSYNC:
		mb_blk_done(req, res < 0 ? -res : 0);
		break;
	case MB_BLK_FALLOCATE:
		fallocate_completed(req, res);
		break;
	case MB_BLK_ZERO:
		if (res <= 0) {
			mb_blk_done(req, res ? -res : EIO);
			break;
		}
		req->offset += (unsigned)res;
		req->left -= (unsigned)res < req->left ? (unsigned)res : req->left;
		if (req->left)
			go_on(req);
		else
			mb_blk_done(req, 0);
		break;
	case MB_BLK_FILL_READ:
	case MB_BLK_FILL_WRITE:
		break; /* with a delta only */
	}
}

void mb_blk_completed(struct mb_blk_req *req, int res)
{
	struct mb_blk_queue *q = req->q;

	completed(req, res);
	while (q->waiting && q->n_free_bounces && !q->stopping) {
		struct mb_blk_req *waiter = q->waiting;

		q->waiting = waiter->next;
		if (!q->waiting)
			q->waiting_last = &q->waiting;
		mb_blk_issue(waiter);
	}
}

static void reap_ring(struct mb_blk_queue *q)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&q->ring, &cqe)) {
		struct mb_blk_req *req = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&q->ring, cqe);
		q->n_inflight--;
		mb_blk_completed(req, res);
	}
}

void mb_blk_reap(struct mb_blk_queue *q)
{
	/* What one has completed goes on with the other, and there it may fail at once. */
	do {
		if (q->has_ring)
			reap_ring(q);
	} while (q->nbd && mb_nbd_reap(q));
	mb_blk_submit(q);
}

void mb_blk_drain(struct mb_blk_queue *q)
{
	struct io_uring_cqe *cqe;

	q->stopping = true;
	while (q->waiting) {
		struct mb_blk_req *req = q->waiting;

		q->waiting = req->next;
		mb_blk_req_put(req);
	}
	q->waiting_last = &q->waiting;
	if (q->blk->cow)
		mb_blk_cow_drain(q);
	if (q->nbd)
		mb_nbd_drain(q);
	while (q->n_inflight) {
		mb_blk_submit(q);
		if (io_uring_wait_cqe(&q->ring, &cqe) < 0 && io_uring_sq_ready(&q->ring))
			pause_a_moment();
		mb_blk_reap(q);
	}
}
