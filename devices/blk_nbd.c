// SPDX-License-Identifier: Apache-2.0
#include "blk_nbd.h"
#include "blk_impl.h"
#include "nbd.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

/*
 * A queue's connection to an NBD server. Everything but the counters of struct mb_nbd runs on the
 * queue's thread.
 *
 *   put -> libnbd -> socket -> (loop) notify -> landed: in the list `done` -> reap ->
 * mb_blk_completed
 *
 * libnbd calls `landed` from within almost any of its functions, so that does nothing but put the
 * request into the list. Until then the request is `sent`, and its buffer the library's.
 *
 * When the connection is lost, everything sent ends as ENOTCONN, which is an I/O error for the
 * guest, and so does all that comes until it is there again; but what comes during an attempt to
 * connect waits for its outcome. Whether the server has kept what it
 * had acknowledged nobody knows then: it may have crashed. If some of that was never flushed, every
 * flush fails from then on (flush_failed), until the machine is reset.
 *
 * Connections of a disk can end one after the other, and one may be new when another has not yet
 * seen that its server is gone. A flush on the new one says nothing about writes on that. So losses
 * are counted, in the *epoch*. Who completes a write counts it first and looks at the epoch then,
 * who loses a connection changes the epoch first and looks at the count then: one of them sees the
 * other (both are sequentially consistent). A connection of an epoch that is over gives errors for
 * what it has in flight, and is made anew.
 */
#define DRAIN_NS 10000000000ull
#define DRAIN_MORE_NS 1000000000ull /* where another connection was lost */
#define RETRY_NS 1000000000ull /* between two attempts to connect */
#define TRY_NS	 10000000000ull
#define IDLE_NS	 1000000000ull /* bounce buffers are given back after it, or twice that */
#define MAX_TURN 64	       /* answers handled before others have their turn */
#define GAP_SIZE (1u << 30) /* largest operation without data; the protocol's field has 32 bits */

struct mb_nbd {
	struct mb_blk *blk;
	struct mb_nbd_server server;
	struct nbd_handle *first; /* for the first queue that asks */
	struct mb_ratelimit rl;

	/* Protects that a loss is counted and what follows from it: who sees the new epoch sees
	 * flush_failed, too. */
	pthread_mutex_t lock;
	/* Atomic. */
	unsigned epoch;
	unsigned back_epoch;	       /* it was said that the server is back from this loss */
	uint64_t n_written, n_flushed; /* operations; as many of them as a flush has covered */
};

struct mb_nbd_conn {
	struct mb_nbd *nbd;
	struct mb_blk_queue *q;
	struct nbd_handle *h; /* NULL: there is none */
	bool up;	      /* and it has connected */
	unsigned epoch;
	unsigned n_sent;
	struct mb_blk_req *done, **done_last;
	struct mb_blk_req *held; /* they came while it connects */
	uint64_t tried_ns;	 /* when it last began to connect */
	uint64_t bounces_ns;	 /* when to give bounce buffers back; 0: none was used */
	bool bounced;		 /* one was used since that was set */

	struct mb_loop *loop; /* NULL: not started */
	struct mb_watch watch;
	bool watching;
	struct mb_watch timer; /* fd is a timerfd */
};

/* ---- what the loop waits for ---- */

static void unwatch(struct mb_nbd_conn *conn)
{
	if (conn->watching)
		mb_loop_remove(conn->loop, &conn->watch);
	conn->watching = false;
}

/*
 * The library says after each call what it waits for, and while it connects it may even have
 * another socket, with the same number: then the loop does not know it.
 */
static void update_watch(struct mb_nbd_conn *conn)
{
	const struct mb_nbd_server *server = &conn->nbd->server;
	uint32_t events;
	int fd;

	if (!conn->loop)
		return;
	fd = conn->h ? server->lib.aio_get_fd(conn->h) : -1;
	if (fd < 0 || (conn->watching && conn->watch.fd != fd))
		unwatch(conn);
	if (fd < 0)
		return;
	events = mb_nbd_events(server, conn->h);
	if (conn->watching && conn->watch.events == events && conn->up)
		return;
	conn->watch.fd = fd;
	conn->watch.events = events;
	if (conn->watching && !mb_loop_modify(conn->loop, &conn->watch))
		return;
	conn->watching = !mb_loop_add(conn->loop, &conn->watch);
}

static void arm_timer(struct mb_nbd_conn *conn)
{
	struct itimerspec at = {0};
	uint64_t ns = conn->bounces_ns;

	if (!conn->up) {
		uint64_t next = conn->tried_ns + (conn->h ? TRY_NS : RETRY_NS);

		if (!ns || next < ns)
			ns = next;
	}
	at.it_value.tv_sec = (time_t)(ns / 1000000000);
	at.it_value.tv_nsec = (long)(ns % 1000000000);
	timerfd_settime(conn->timer.fd, TFD_TIMER_ABSTIME, &at, NULL);
}

/* ---- connecting and losing ---- */

static void close_handle(struct mb_nbd_conn *conn)
{
	unwatch(conn);
	if (conn->h)
		conn->nbd->server.lib.close(conn->h);
	conn->h = NULL;
	conn->up = false;
}

static void is_done(struct mb_nbd_conn *conn, struct mb_blk_req *req, int res)
{
	req->sent = false;
	req->res = res;
	req->next = NULL;
	*conn->done_last = req;
	conn->done_last = &req->next;
}

/* A loss that nobody has counted yet. */
static void count_loss(struct mb_nbd_conn *conn, const char *why)
{
	struct mb_nbd *nbd = conn->nbd;
	bool first, unflushed = false;

	pthread_mutex_lock(&nbd->lock);
	first = nbd->epoch == conn->epoch;
	if (first) {
		__atomic_store_n(&nbd->epoch, nbd->epoch + 1, __ATOMIC_SEQ_CST);
		unflushed = __atomic_load_n(&nbd->n_written, __ATOMIC_SEQ_CST) >
			    __atomic_load_n(&nbd->n_flushed, __ATOMIC_SEQ_CST);
		if (unflushed)
			__atomic_store_n(&nbd->blk->flush_failed, true, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&nbd->lock);
	if (!first)
		return;
	mb_log_guest(&nbd->rl,
		"%s: lost the connection: %s; the guest gets I/O errors until the server is back, "
		"which is tried every second%s",
		nbd->blk->name, why,
		unflushed ? "; what it wrote last may be lost: its flushes fail until the machine "
			    "is reset"
			  : "");
}

static void release_held(struct mb_nbd_conn *conn)
{
	struct mb_blk_req *req = conn->held, *next;

	conn->held = NULL;
	for (; req; req = next) {
		next = req->next;
		mb_blk_issue(req);
	}
}

/* The callbacks need not have come: the library gives up silently what is in flight when it is
 * closed. */
static void lose(struct mb_nbd_conn *conn, const char *why)
{
	struct mb_blk_queue *q = conn->q;

	if (conn->up)
		count_loss(conn, why ? why : "no reason given");
	close_handle(conn);
	for (unsigned i = 0; conn->n_sent && i < MB_BLK_QUEUE_SIZE; i++) {
		if (q->reqs[i].sent) {
			is_done(conn, &q->reqs[i], -ENOTCONN);
			conn->n_sent--;
		}
	}
	arm_timer(conn);
	release_held(conn);
}

static void is_up(struct mb_nbd_conn *conn)
{
	struct mb_nbd *nbd = conn->nbd;

	conn->up = true;
	arm_timer(conn);
	if (conn->epoch &&
		__atomic_exchange_n(&nbd->back_epoch, conn->epoch, __ATOMIC_RELAXED) != conn->epoch)
		mb_log_guest(&nbd->rl, "%s: connected again", nbd->blk->name);
	release_held(conn);
}

static unsigned read_epoch(struct mb_nbd *nbd)
{
	unsigned epoch;

	pthread_mutex_lock(&nbd->lock);
	epoch = nbd->epoch;
	pthread_mutex_unlock(&nbd->lock);
	return epoch;
}

static void begin_connect(struct mb_nbd_conn *conn)
{
	struct mb_error err;

	conn->epoch = read_epoch(conn->nbd);
	/* That it fails while the server is away is no news. */
	conn->h = mb_nbd_connect_begin(&conn->nbd->server, &err);
	conn->tried_ns = mb_now_ns(); /* to find the name may have taken its time, with TLS */
	arm_timer(conn);
}

/* Looks what has become of the connection. */
static void check(struct mb_nbd_conn *conn)
{
	struct mb_nbd *nbd = conn->nbd;
	const struct mb_nbd_lib *lib = &nbd->server.lib;
	struct mb_error err;

	if (!conn->h)
		return;
	if (mb_nbd_is_dead(&nbd->server, conn->h)) {
		lose(conn, lib->aio_is_closed(conn->h) > 0 ? "the server has closed it"
							   : lib->get_error());
	} else if (!conn->up && lib->aio_is_connecting(conn->h) <= 0) {
		if (mb_nbd_connected(&nbd->server, conn->h, &err)) {
			mb_log_guest(&nbd->rl, "%s; not used", err.text);
			lose(conn, NULL);
		} else {
			is_up(conn);
		}
	}
}

/* Whether something can be sent. */
static bool usable(struct mb_nbd_conn *conn)
{
	unsigned epoch;

	if (!conn->h || !conn->up)
		return false;
	if (__atomic_load_n(&conn->nbd->epoch, __ATOMIC_SEQ_CST) == conn->epoch)
		return true;
	/*
	 * Another one was lost. What is in flight here gives errors when it lands, and not before: a
	 * server that is still there would carry it out after what the guest does then. With
	 * nothing in flight, all that was written here was counted before that; and if this one's
	 * server is gone, too, it shows with the next request.
	 */
	epoch = read_epoch(conn->nbd);
	if (conn->n_sent || conn->done)
		return false;
	conn->epoch = epoch;
	return true;
}

/* ---- operations ---- */

static int landed(void *user, int *error)
{
	struct mb_blk_req *req = user;
	struct mb_nbd_conn *conn = req->q->nbd;

	if (req->sent) {
		conn->n_sent--;
		is_done(conn, req, *error ? -*error : (int)req->sent_bytes);
	}
	return 1; /* nobody asks the library for it again */
}

/* The data of `bytes` bytes, if it is in one piece; also one that has borders in it. */
static void *in_one_piece(const struct mb_blk_req *req, uint64_t bytes)
{
	const uint8_t *end = req->iov->iov_base;

	for (unsigned i = 0; i < req->n_iov && bytes; i++) {
		uint64_t n = req->iov[i].iov_len < bytes ? req->iov[i].iov_len : bytes;

		if (req->iov[i].iov_base != end)
			return NULL;
		end += n;
		bytes -= n;
	}
	return req->iov->iov_base;
}

/* Between the bounce buffer and the guest's. */
static void copy_data(struct mb_blk_req *req, uint64_t bytes, bool write)
{
	uint8_t *at = req->bounce;

	for (unsigned i = 0; i < req->n_iov && bytes; i++) {
		uint64_t n = req->iov[i].iov_len < bytes ? req->iov[i].iov_len : bytes;

		if (write)
			memcpy(at, req->iov[i].iov_base, n);
		else
			memcpy(req->iov[i].iov_base, at, n);
		at += n;
		bytes -= n;
	}
}

static void note_bounce(struct mb_nbd_conn *conn)
{
	conn->bounced = true;
	if (conn->bounces_ns)
		return;
	conn->bounces_ns = mb_now_ns() + IDLE_NS;
	arm_timer(conn);
}

/* Where the data is to be; NULL: the request waits for a bounce buffer. */
static void *guest_data(struct mb_blk_req *req, uint64_t *bytes, bool write)
{
	void *data = in_one_piece(req, *bytes);

	if (data)
		return data;
	if (!mb_blk_take_bounce(req))
		return NULL;
	note_bounce(req->q->nbd);
	if (*bytes > MB_NBD_BOUNCE_BYTES)
		*bytes = MB_NBD_BOUNCE_BYTES;
	if (write)
		copy_data(req, *bytes, true);
	return req->bounce;
}

static uint64_t at_most(uint64_t bytes, uint64_t most)
{
	return bytes < most ? bytes : most;
}

static int64_t send_data(
	struct mb_nbd_conn *conn, struct mb_blk_req *req, void *data, uint64_t bytes, bool write)
{
	const struct mb_nbd_server *server = &conn->nbd->server;
	nbd_completion_callback callback = {.callback = landed, .user_data = req};

	req->sent_bytes = (uint32_t)bytes;
	if (!write)
		return server->lib.aio_pread(conn->h, data, bytes, req->at, callback, 0);
	return server->lib.aio_pwrite(conn->h, data, bytes, req->at, callback,
		req->dsync && server->traits.can_fua ? LIBNBD_CMD_FLAG_FUA : 0);
}

static int64_t send_range(struct mb_nbd_conn *conn, struct mb_blk_req *req)
{
	const struct mb_nbd_lib *lib = &conn->nbd->server.lib;
	nbd_completion_callback callback = {.callback = landed, .user_data = req};

	req->part = at_most(req->part, GAP_SIZE);
	if (req->type == VIRTIO_BLK_T_DISCARD)
		return lib->aio_trim(conn->h, req->part, req->at, callback, 0);
	return lib->aio_zero(conn->h, req->part, req->at, callback,
		req->mode & FALLOC_FL_PUNCH_HOLE ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
}

static int64_t send_flush(struct mb_nbd_conn *conn, struct mb_blk_req *req)
{
	struct mb_nbd *nbd = conn->nbd;
	nbd_completion_callback callback = {.callback = landed, .user_data = req};

	req->n_covered = __atomic_load_n(&nbd->n_written, __ATOMIC_SEQ_CST);
	if (nbd->server.traits.can_flush)
		return nbd->server.lib.aio_flush(conn->h, callback, 0);
	conn->n_sent--;
	is_done(conn, req, 0);
	return 0;
}

void mb_nbd_put(struct mb_blk_req *req)
{
	struct mb_blk_queue *q = req->q;
	struct mb_nbd_conn *conn = q->nbd;
	bool write = req->type == VIRTIO_BLK_T_OUT;
	uint64_t bytes = at_most(req->part, conn->nbd->server.traits.max_block);
	void *data = NULL;
	int64_t rc = 0;

	if (conn->h && !conn->up) {
		req->next = conn->held;
		conn->held = req;
		return;
	}
	if (req->op == MB_BLK_GUEST) {
		data = guest_data(req, &bytes, write);
		if (!data)
			return;
	}
	if (!usable(conn)) {
		is_done(conn, req, -ENOTCONN);
		return;
	}
	/* It may have been held since before that was so; the epoch that is `usable` has it. */
	if (req->op == MB_BLK_FSYNC && req->type == VIRTIO_BLK_T_FLUSH &&
		__atomic_load_n(&q->blk->flush_failed, __ATOMIC_RELAXED)) {
		is_done(conn, req, -EIO);
		return;
	}
	/* Before: it may land within the call. */
	req->sent = true;
	req->sent_bytes = 0;
	conn->n_sent++;
	switch (req->op) {
	case MB_BLK_GUEST:
		rc = send_data(conn, req, data, bytes, write);
		break;
	case MB_BLK_FILL_READ:
		rc = send_data(conn, req, req->bounce, bytes, false);
		break;
	case MB_BLK_ZERO:
		rc = send_data(conn, req, q->blk->zeroes, at_most(bytes, MB_BLK_ZERO_BYTES), true);
		break;
	case MB_BLK_FALLOCATE:
		rc = send_range(conn, req);
		break;
	case MB_BLK_FSYNC:
		rc = send_flush(conn, req);
		break;
	case MB_BLK_BOUNCE: /* of direct I/O */
	case MB_BLK_FILL_WRITE:
		rc = -1;
		break;
	}
	if (rc < 0 && req->sent) {
		conn->n_sent--;
		is_done(conn, req,
			mb_nbd_is_dead(&conn->nbd->server, conn->h) ? -ENOTCONN : -EINVAL);
	}
}

/* ---- completion ---- */

static bool must_be_flushed(const struct mb_nbd_conn *conn, const struct mb_blk_req *req)
{
	if (req->op == MB_BLK_FSYNC || req->type == VIRTIO_BLK_T_IN ||
		req->type == VIRTIO_BLK_T_DISCARD || req->op == MB_BLK_FILL_READ)
		return false;
	return !req->dsync || !conn->nbd->server.traits.can_fua || req->op == MB_BLK_FALLOCATE;
}

static void cover(struct mb_nbd *nbd, uint64_t n)
{
	uint64_t old = __atomic_load_n(&nbd->n_flushed, __ATOMIC_RELAXED);

	while (old < n && !__atomic_compare_exchange_n(&nbd->n_flushed, &old, n, false,
				  __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
}

static int settle(struct mb_nbd_conn *conn, struct mb_blk_req *req, int res)
{
	struct mb_nbd *nbd = conn->nbd;

	/* A server's word for anything that it has no number for; not for our retries. */
	if (res == -EINTR || res == -EAGAIN)
		res = -EIO;
	if (res >= 0 && must_be_flushed(conn, req))
		__atomic_fetch_add(&nbd->n_written, 1, __ATOMIC_SEQ_CST);
	if (res >= 0 && __atomic_load_n(&nbd->epoch, __ATOMIC_SEQ_CST) != conn->epoch)
		res = -ENOTCONN;
	if (res >= 0 && req->op == MB_BLK_FSYNC)
		cover(nbd, req->n_covered);
	if (req->op == MB_BLK_GUEST && req->bounce) {
		if (res > 0 && req->type == VIRTIO_BLK_T_IN && !conn->q->stopping)
			copy_data(req, (uint64_t)res, false);
		mb_blk_drop_bounce(req);
	}
	return res;
}

bool mb_nbd_reap(struct mb_blk_queue *q)
{
	struct mb_nbd_conn *conn = q->nbd;
	bool any = false;

	for (;;) {
		struct mb_blk_req *req;

		check(conn);
		req = conn->done;
		if (!req)
			break;
		any = true;
		conn->done = req->next;
		if (!conn->done)
			conn->done_last = &conn->done;
		mb_blk_completed(req, settle(conn, req, req->res));
	}
	update_watch(conn);
	return any;
}

/* ---- the loop's callbacks ---- */

static void conn_ready(struct mb_watch *watch, uint32_t events)
{
	struct mb_nbd_conn *conn = watch->ctx;
	const struct mb_nbd_server *server = &conn->nbd->server;

	/* The library handles one answer at a time. */
	for (unsigned i = 0; i < MAX_TURN && conn->h; i++) {
		struct pollfd p;

		if (!mb_nbd_notify(server, conn->h, events)) {
			lose(conn, server->lib.get_error());
			break;
		}
		if (!conn->up || mb_nbd_is_dead(server, conn->h))
			break;
		p = (struct pollfd){
			.fd = server->lib.aio_get_fd(conn->h),
			.events = (short)mb_nbd_events(server, conn->h),
		};
		if (poll(&p, 1, 0) <= 0)
			break;
		events = (uint16_t)p.revents;
	}
	mb_blk_reap(conn->q);
	mb_virtq_signal(conn->q->vq);
}

static void give_bounces_back(struct mb_blk_queue *q)
{
	if (q->n_free_bounces < MB_BLK_N_BOUNCE)
		return;
	madvise(q->bounces, MB_BLK_N_BOUNCE * (size_t)MB_NBD_BOUNCE_BYTES, MADV_DONTNEED);
	q->nbd->bounces_ns = 0;
}

static void tick(struct mb_watch *watch, uint32_t events)
{
	struct mb_nbd_conn *conn = watch->ctx;
	uint64_t now_ns = mb_now_ns(), n;

	if (read(watch->fd, &n, sizeof(n)) < 0)
		return;
	if (conn->bounces_ns && now_ns >= conn->bounces_ns) {
		conn->bounces_ns = now_ns + IDLE_NS;
		if (!conn->bounced)
			give_bounces_back(conn->q);
		conn->bounced = false;
	}
	if (!conn->h && now_ns >= conn->tried_ns + RETRY_NS)
		begin_connect(conn);
	else if (conn->h && !conn->up && now_ns >= conn->tried_ns + TRY_NS)
		lose(conn, NULL);
	arm_timer(conn);
	mb_blk_reap(conn->q);
	mb_virtq_signal(conn->q->vq);
}

/* The server may have gone while nobody looked; better known before the first request. */
static void look(struct mb_nbd_conn *conn)
{
	const struct mb_nbd_server *server = &conn->nbd->server;
	struct pollfd p = {.events = POLLIN};

	if (conn->h && conn->up) {
		p.fd = server->lib.aio_get_fd(conn->h);
		if (poll(&p, 1, 0) > 0 && !mb_nbd_notify(server, conn->h, (uint16_t)p.revents))
			lose(conn, server->lib.get_error());
	}
	check(conn);
	if (!conn->h && mb_now_ns() >= conn->tried_ns + RETRY_NS)
		begin_connect(conn);
}

int mb_nbd_queue_start(struct mb_blk_queue *q, struct mb_loop *loop)
{
	struct mb_nbd_conn *conn = q->nbd;
	int rc = mb_loop_add(loop, &conn->timer);

	if (rc)
		return rc;
	conn->loop = loop;
	look(conn);
	update_watch(conn);
	return 0;
}

void mb_nbd_queue_stop(struct mb_blk_queue *q)
{
	struct mb_nbd_conn *conn = q->nbd;

	if (!conn->loop)
		return;
	unwatch(conn);
	mb_loop_remove(conn->loop, &conn->timer);
	conn->loop = NULL;
}

void mb_nbd_drain(struct mb_blk_queue *q)
{
	struct mb_nbd_conn *conn = q->nbd;
	const struct mb_nbd_server *server = &conn->nbd->server;
	uint64_t end_ns = mb_now_ns() + DRAIN_NS;

	while (conn->held) {
		struct mb_blk_req *req = conn->held;

		conn->held = req->next;
		mb_blk_req_put(req);
	}
	mb_nbd_reap(q);
	/* Several queues of a server that hangs do not wait as long one after the other. */
	if (__atomic_load_n(&conn->nbd->epoch, __ATOMIC_SEQ_CST) != conn->epoch)
		end_ns = mb_now_ns() + DRAIN_MORE_NS;
	while (conn->n_sent) {
		uint64_t now_ns = mb_now_ns();
		struct pollfd p = {
			.fd = server->lib.aio_get_fd(conn->h),
			.events = (short)mb_nbd_events(server, conn->h),
		};
		int n = 0;

		if (now_ns < end_ns)
			n = poll(&p, 1, (int)((end_ns - now_ns) / 1000000 + 1));
		else
			lose(conn, "the server does not answer");
		if (n > 0 && !mb_nbd_notify(server, conn->h, (uint16_t)p.revents))
			lose(conn, server->lib.get_error());
		mb_nbd_reap(q);
	}
	if (conn->bounces_ns)
		give_bounces_back(q);
}

/* ---- life ---- */

int mb_nbd_open(struct mb_nbd **out, struct mb_blk *blk, const char *uri, bool readonly,
	struct mb_error *err)
{
	struct mb_nbd *nbd = calloc(1, sizeof(*nbd));
	int rc;

	if (!nbd)
		return mb_error_set(err, ENOMEM, "disk %s: out of memory", uri);
	rc = mb_nbd_server_open(&nbd->server, uri, !readonly, &nbd->first, err);
	if (rc) {
		free(nbd);
		return rc;
	}
	nbd->blk = blk;
	pthread_mutex_init(&nbd->lock, NULL);
	if (!readonly && !nbd->server.traits.can_flush)
		mb_log("disk %s: the server has no flush: when its host fails, what the guest has "
		       "flushed may be lost all the same",
			uri);
	*out = nbd;
	return 0;
}

void mb_nbd_forget_written(struct mb_nbd *nbd)
{
	cover(nbd, __atomic_load_n(&nbd->n_written, __ATOMIC_SEQ_CST));
}

void mb_nbd_close(struct mb_nbd *nbd)
{
	if (!nbd)
		return;
	if (nbd->first)
		nbd->server.lib.close(nbd->first);
	mb_nbd_server_close(&nbd->server);
	pthread_mutex_destroy(&nbd->lock);
	free(nbd);
}

void mb_nbd_describe(const struct mb_nbd *nbd, struct mb_blk_file *file, struct mb_nbd_can *can)
{
	const struct mb_nbd_traits *traits = &nbd->server.traits;
	uint32_t block = traits->min_block < MB_BLK_SECTOR ? MB_BLK_SECTOR : traits->min_block;

	*file = (struct mb_blk_file){
		.fd = -1,
		.readonly = traits->readonly,
		.can_punch = traits->can_trim,
		.n_sectors = traits->bytes / MB_BLK_SECTOR,
		.mem_align = 1,
		.io_align = block > MB_BLK_SECTOR ? block : 1,
		.block_bytes = block,
		.phys_bytes = traits->preferred_block,
		.min_io_bytes = traits->preferred_block,
	};
	*can = (struct mb_nbd_can){
		.fua = traits->can_fua,
		.zero = traits->can_zero,
		.multi_conn = traits->multi_conn,
	};
}

int mb_nbd_queue_init(struct mb_blk_queue *q, struct mb_error *err)
{
	struct mb_nbd *nbd = q->blk->nbd;
	struct mb_nbd_conn *conn = calloc(1, sizeof(*conn));
	int rc = 0;

	if (!conn)
		return mb_error_set(err, ENOMEM, "%s: out of memory", q->blk->name);
	*conn = (struct mb_nbd_conn){
		.nbd = nbd,
		.q = q,
		.watch = {.ready = conn_ready, .ctx = conn},
		.timer = {.events = EPOLLIN, .ready = tick, .ctx = conn},
		.tried_ns = mb_now_ns(),
	};
	conn->done_last = &conn->done;
	q->nbd = conn;
	conn->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (conn->timer.fd < 0)
		return mb_error_set(err, errno, "%s: timerfd: %s", q->blk->name, strerror(errno));
	if (nbd->first)
		conn->h = nbd->first;
	else
		rc = mb_nbd_connect(&nbd->server, &conn->h, err);
	nbd->first = NULL;
	conn->up = !rc;
	return rc;
}

void mb_nbd_queue_finish(struct mb_blk_queue *q)
{
	struct mb_nbd_conn *conn = q->nbd;

	if (!conn)
		return;
	/* So that the server need not take it for a failure; nobody waits for it. */
	if (conn->h && conn->up)
		conn->nbd->server.lib.aio_disconnect(conn->h, 0);
	close_handle(conn);
	if (conn->timer.fd >= 0)
		close(conn->timer.fd);
	free(conn);
	q->nbd = NULL;
}
