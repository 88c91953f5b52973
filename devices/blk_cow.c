// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/*
 * Requests of a disk with a delta (cow.h): one goes on from part to part, each of which is one
 * operation on one file.
 *
 *   read:   find  -> read from base or delta, or zeroes
 *   write:  claim -> [read from the base what is around it] -> write to the delta -> settle
 *   flush:  sync  -> write entries -> ... -> sync
 *
 * On the queue's thread; what waits for another thread's request is woken through the queue's
 * eventfd.
 */

#define MAX_IN_VAIN 4 /* tries to write a cluster of which no more than a part gets written */

static struct mb_blk_req *req_of(struct mb_cow_waiter *waiter)
{
	return (struct mb_blk_req *)((uint8_t *)waiter - offsetof(struct mb_blk_req, waiter));
}

static void wake_ready(struct mb_watch *watch, uint32_t events)
{
	struct mb_blk_queue *q = watch->ctx;
	struct mb_cow_waiter *waiter, *next;
	uint64_t count;

	if (read(watch->fd, &count, sizeof(count)) < 0)
		return;
	for (waiter = mb_cow_take_woken(q->blk->cow, &q->cow_queue); waiter; waiter = next) {
		next = waiter->next;
		mb_blk_issue(req_of(waiter));
	}
	mb_blk_submit(q);
	mb_blk_reap(q);
	mb_virtq_signal(q->vq);
}

int mb_blk_cow_init(struct mb_blk_queue *q, struct mb_error *err)
{
	q->cow_queue.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->cow_queue.wake_fd < 0)
		return mb_error_set(err, errno, "%s: eventfd: %s", q->blk->name, strerror(errno));
	q->wake_watch = (struct mb_watch){
		.fd = q->cow_queue.wake_fd, .events = EPOLLIN, .ready = wake_ready, .ctx = q};
	return 0;
}

void mb_blk_cow_finish(struct mb_blk_queue *q)
{
	if (q->wake_watch.ctx)
		close(q->cow_queue.wake_fd);
}

/* ---- what is next ---- */

/* Zeroes in the guest's buffers, which are cut to what is left. */
static void zero_data(struct mb_blk_req *req, uint64_t bytes)
{
	const struct iovec *iov = req->iov;

	for (unsigned i = 0; bytes && i < req->n_iov; i++) {
		uint64_t n = iov[i].iov_len < bytes ? iov[i].iov_len : bytes;

		memset(iov[i].iov_base, 0, n);
		bytes -= n;
	}
}

/* What the guest writes, over what the bounce buffer has of the cluster. */
static void overlay_data(struct mb_blk_req *req)
{
	uint8_t *to = req->bounce + (req->offset - req->claim.cluster_at);
	uint64_t left = req->claim.bytes;

	if (req->type != VIRTIO_BLK_T_OUT) {
		memset(to, 0, left);
		return;
	}
	for (unsigned i = 0; left && i < req->n_iov; i++) {
		uint64_t n = req->iov[i].iov_len < left ? req->iov[i].iov_len : left;

		memcpy(to, req->iov[i].iov_base, n);
		to += n;
		left -= n;
	}
}

/* n bytes of what is left are in guest memory, and are what the base has at `at`. */
static void saw_base(struct mb_blk_req *req, uint64_t at, uint64_t n)
{
	const struct mb_blk *blk = req->q->blk;

	if (blk->base_ops)
		blk->base_ops->saw(blk->base_ctx, at, req->iov, req->n_iov, n);
}

/* What others have read before us is in memory: from its beginning on, so many bytes of it. */
static uint64_t read_shared(struct mb_blk_req *req, const struct mb_cow_run *run)
{
	const struct mb_blk *blk = req->q->blk;
	uint64_t done = 0;

	if (!blk->base_ops)
		return 0;
	for (unsigned i = 0; i < req->n_iov && done < run->bytes; i++) {
		uint64_t n = run->bytes - done;

		if (req->iov[i].iov_len < n)
			n = req->iov[i].iov_len;
		if (!blk->base_ops->read(
			    blk->base_ctx, run->at + done, req->iov[i].iov_base, n))
			break;
		done += n;
	}
	return done && mb_cow_base_holds(blk->cow) ? done : 0;
}

static bool aim_read(struct mb_blk_req *req)
{
	struct mb_blk *blk = req->q->blk;
	struct mb_cow_run run;
	uint64_t shared;

	while (req->left) {
		mb_cow_find(blk->cow, req->offset, req->left, &run);
		shared = run.where == MB_COW_BASE ? read_shared(req, &run) : 0;
		if (shared) {
			saw_base(req, run.at, shared);
			mb_blk_advance(req, shared);
			continue;
		}
		req->part = run.bytes;
		if (run.where == MB_COW_ZERO) {
			zero_data(req, run.bytes);
			mb_blk_advance(req, run.bytes);
			continue;
		}
		req->op = MB_BLK_GUEST;
		req->from_base = run.where == MB_COW_BASE;
		req->fd = req->from_base ? blk->file.fd : mb_cow_fd(blk->cow);
		req->at = run.at;
		return true;
	}
	mb_blk_done(req, 0);
	return false;
}

/* The cluster around a part of it goes through a buffer: a second step, once that has been read. */
static bool aim_fill(struct mb_blk_req *req)
{
	struct mb_cow_claim *claim = &req->claim;

	if (!mb_blk_take_bounce(req))
		return false;
	if (claim->base_bytes && !req->filled) {
		req->op = MB_BLK_FILL_READ;
		req->fd = req->q->blk->file.fd;
		req->at = claim->cluster_at;
		req->part = claim->base_bytes;
		return true;
	}
	memset(req->bounce + claim->base_bytes, 0, claim->cluster_bytes - claim->base_bytes);
	overlay_data(req);
	req->op = MB_BLK_FILL_WRITE;
	req->fd = mb_cow_fd(req->q->blk->cow);
	req->at = claim->at;
	req->part = claim->cluster_bytes;
	return true;
}

static int claim_part(struct mb_blk_req *req)
{
	struct mb_cow *cow = req->q->blk->cow;

	req->waiter.queue = &req->q->cow_queue;
	req->filled = false;
	if (req->type == VIRTIO_BLK_T_OUT)
		return mb_cow_claim(cow, req->offset, req->left, &req->waiter, &req->claim);
	return mb_cow_claim_zeroes(cow, req->offset, req->left, req->type == VIRTIO_BLK_T_DISCARD,
		&req->waiter, &req->claim);
}

static bool aim_write(struct mb_blk_req *req)
{
	while (req->left) {
		int rc = req->claim.bytes ? 0 : claim_part(req);

		if (rc) {
			mb_blk_done(req, -rc);
			return false;
		}
		switch (req->claim.step) {
		case MB_COW_WAIT:
			return false;
		case MB_COW_NOTHING:
			req->offset += req->claim.bytes;
			req->left -= req->claim.bytes;
			req->claim.bytes = 0;
			continue;
		case MB_COW_FILL:
			return aim_fill(req);
		case MB_COW_PUNCH:
			req->op = MB_BLK_FALLOCATE;
			req->mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
			break;
		case MB_COW_WRITE:
			req->op = req->type == VIRTIO_BLK_T_OUT ? MB_BLK_GUEST : MB_BLK_ZERO;
			break;
		}
		req->fd = mb_cow_fd(req->q->blk->cow);
		req->at = req->claim.at;
		req->part = req->claim.bytes;
		return true;
	}
	mb_blk_done(req, 0);
	return false;
}

static bool aim_flush(struct mb_blk_req *req)
{
	struct mb_blk *blk = req->q->blk;
	int rc;

	req->waiter.queue = &req->q->cow_queue;
	rc = mb_cow_flush(blk->cow, &req->flush, &req->waiter);
	if (rc == MB_COW_FLUSH_SYNC) {
		req->fd = mb_cow_fd(blk->cow);
		return true;
	}
	if (rc < 0)
		mb_blk_done(req, -rc);
	/* One that failed in between took with it what this one waited for. */
	else if (rc == MB_COW_FLUSH_DONE)
		mb_blk_done(req, __atomic_load_n(&blk->flush_failed, __ATOMIC_RELAXED) ? EIO : 0);
	return false;
}

bool mb_blk_aim(struct mb_blk_req *req)
{
	if (req->op == MB_BLK_FSYNC)
		return aim_flush(req);
	return req->type == VIRTIO_BLK_T_IN ? aim_read(req) : aim_write(req);
}

/* ---- what came of it ---- */

/* False: nothing came of it, as on a disk that is full. */
static bool settle(struct mb_blk_req *req, uint64_t written)
{
	uint64_t n = mb_cow_settle(req->q->blk->cow, &req->claim, written);

	/* Who has a buffer must not wait for a claim: others wait for a buffer while they have one.
	 */
	mb_blk_drop_bounce(req);
	if (req->type == VIRTIO_BLK_T_OUT) {
		mb_blk_advance(req, n);
	} else {
		req->offset += n;
		req->left -= n;
	}
	return n || req->n_again++ < MAX_IN_VAIN;
}

void mb_blk_cow_drain(struct mb_blk_queue *q)
{
	struct mb_cow_waiter *waiter, *next;

	for (waiter = mb_cow_forget(q->blk->cow, &q->cow_queue); waiter; waiter = next) {
		next = waiter->next;
		mb_blk_req_put(req_of(waiter));
	}
}

void mb_blk_cow_drop(struct mb_blk_req *req)
{
	if (req->claim.n)
		mb_cow_settle(req->q->blk->cow, &req->claim, 0);
	if (req->flush.runs)
		mb_cow_flush_cancel(req->q->blk->cow, &req->flush, false);
}

static void failed(struct mb_blk_req *req, int err)
{
	if (req->claim.n)
		mb_cow_settle(req->q->blk->cow, &req->claim, 0);
	mb_blk_done(req, err);
}

static void landed(struct mb_blk_req *req, uint64_t n)
{
	switch (req->op) {
	case MB_BLK_FILL_READ:
		/* A base does not end in the middle, unless somebody cut it; some file systems read
		 * less. */
		if (n < req->claim.base_bytes && req->n_again++ < MAX_IN_VAIN)
			break;
		if (n < req->claim.base_bytes || !mb_cow_base_holds(req->q->blk->cow)) {
			failed(req, EIO);
			return;
		}
		req->filled = true;
		break;
	case MB_BLK_GUEST:
		if (req->type == VIRTIO_BLK_T_OUT) {
			if (!settle(req, n)) {
				failed(req, ENOSPC);
				return;
			}
		} else if (req->from_base && !mb_cow_base_holds(req->q->blk->cow)) {
			failed(req, EIO);
			return;
		} else {
			if (req->from_base)
				saw_base(req, req->at, n);
			mb_blk_advance(req, n);
		}
		break;
	default:
		if (!settle(req, n)) {
			failed(req, ENOSPC);
			return;
		}
	}
	mb_blk_issue(req);
}

void mb_blk_cow_completed(struct mb_blk_req *req, int res)
{
	if (req->op == MB_BLK_FSYNC) {
		if (res < 0)
			failed(req, -res);
		else
			mb_blk_issue(req);
		return;
	}
	if (req->op == MB_BLK_FALLOCATE) {
		/* Where it cannot be given back, the entry says that it is zero. */
		landed(req, req->part);
		return;
	}
	if (res <= 0) {
		failed(req, res ? -res : EIO);
		return;
	}
	landed(req, (uint64_t)res);
}
