// SPDX-License-Identifier: Apache-2.0
#include "net_impl.h"
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/*
 * Packets between a virtqueue and the back end, without a copy where the back end has system calls
 * that scatter and gather (tap).
 *
 *   receive: pop buffers for the longest packet -> recv into them -> push those it filled
 *   send:    pop -> send from guest memory -> push
 *
 * A queue works off a bounded number of packets at a time and then lets its loop's other
 * descriptors come; epoll is level-triggered, so it is called again.
 */
#define BUDGET	 256 /* packets */
#define RX_BATCH 64  /* packets between two interrupts */

int mb_net_queue_init(struct mb_net_queue *q, int fd)
{
	/* One file may be in one epoll twice only through two descriptors: rx and tx can share a
	 * loop. */
	q->watch.fd = dup(fd);
	if (q->watch.fd < 0)
		return -errno;
	q->iov = malloc((MB_CHAIN_MAX_IOV + 2) * sizeof(*q->iov));
	q->spill = malloc(MB_NET_SPILL_BYTES);
	return q->iov && q->spill ? 0 : -ENOMEM;
}

void mb_net_queue_finish(struct mb_net_queue *q)
{
	if (q->watch.fd >= 0)
		close(q->watch.fd);
	free(q->iov);
	free(q->spill);
}

static void watch(struct mb_net_queue *q, bool on)
{
	if (on == q->watching)
		return;
	if (!on)
		mb_loop_remove(q->loop, &q->watch);
	else if (mb_loop_add(q->loop, &q->watch))
		return;
	q->watching = on;
}

static const char *reason(int err)
{
	switch (err) {
	case EBADFD:
	case ENODEV:
		return "the interface was deleted";
	case EPROTO:
		return "what it sent is not a packet";
	case ECONNRESET:
	case EPIPE:
		return "it closed the connection";
	default:
		return strerror(err);
	}
}

static void gone(struct mb_net_queue *q, int err)
{
	watch(q, false);
	/* ESHUTDOWN: the back end says why by itself. */
	if (err != ESHUTDOWN)
		mb_net_gone(q->net, reason(err));
}

static bool is_gone(const struct mb_net_queue *q)
{
	return __atomic_load_n(&q->net->link_down, __ATOMIC_RELAXED);
}

/* ---- receive ---- */

/* One more chain into the stash; false if the guest has none to give. */
static bool stash_one(struct mb_net_queue *q)
{
	struct mb_chain *chain;

	if (q->n_stash == MB_NET_QUEUE_SIZE || mb_virtq_pop(q->vq, &chain) <= 0)
		return false;
	/* Each buffer must at least hold the header (5.1.6.3.1). */
	if (chain->in_bytes < MB_NET_HDR_BYTES) {
		mb_virtq_push(q->vq, chain, 0);
		mb_virtio_broken(q->net->vdev, "a receive buffer is smaller than a header");
		return false;
	}
	q->stash[q->n_stash++] = chain;
	q->stash_bytes += chain->in_bytes;
	return true;
}

/* Removes the first n chains of the stash, which have been pushed. */
static void unstash(struct mb_net_queue *q, unsigned n)
{
	q->n_stash -= n;
	memmove(q->stash, q->stash + n, q->n_stash * sizeof(q->stash[0]));
}

/* Gives the guest a packet of `bytes` that lies in the first n chains. */
static void deliver(struct mb_net_queue *q, uint32_t bytes, unsigned n)
{
	/* The back ends leave this field to us; 1 without VIRTIO_NET_F_MRG_RXBUF (5.1.6.4). */
	uint16_t num_buffers = (uint16_t)n;

	mb_chain_write(q->stash[0], offsetof(struct virtio_net_hdr_v1, num_buffers), &num_buffers,
		sizeof(num_buffers));
	for (unsigned i = 0; i < n; i++) {
		uint64_t room = q->stash[i]->in_bytes;

		q->written[i] = room < bytes ? (uint32_t)room : bytes;
		bytes -= q->written[i];
		q->stash_bytes -= room;
	}
	/* All at once: a driver that sees the first looks for the others right away. */
	mb_virtq_push_all(q->vq, q->stash, q->written, n);
	unstash(q, n);
}

/* The packet that waits, into buffers that have come since. False: still too few. */
static bool place_pending(struct mb_net_queue *q)
{
	uint32_t at = 0;
	unsigned n = q->n_pending;

	for (uint64_t room = 0; room < q->spill_bytes; n++) {
		if (n == q->n_stash && !stash_one(q)) {
			/* The guest has no more buffers than these: too long a packet for it. */
			if (q->n_stash >= mb_virtq_size(q->vq))
				q->pending_bytes = 0;
			return !q->pending_bytes;
		}
		room += q->stash[n]->in_bytes;
	}
	for (unsigned i = q->n_pending; i < n; i++)
		at += (uint32_t)mb_chain_write(q->stash[i], 0, q->spill + at, q->spill_bytes - at);
	deliver(q, q->pending_bytes, n);
	q->pending_bytes = 0;
	return true;
}

/* Buffers for one packet into iov; the number of chains, 0 if there are none. */
static unsigned gather(struct mb_net_queue *q, unsigned *n_iov)
{
	uint64_t want = q->mergeable ? MB_NET_MAX_PACKET : 1, room = 0;
	unsigned n = 0;

	while (q->stash_bytes < want && stash_one(q))
		;
	*n_iov = 0;
	for (; n < q->n_stash && room < want; n++) {
		const struct mb_chain *chain = q->stash[n];

		/* The first chain always fits; the last entry is for the spill. */
		if (n && *n_iov + chain->n_in >= MB_CHAIN_MAX_IOV)
			break;
		memcpy(q->iov + *n_iov, chain->iov + chain->n_out, chain->n_in * sizeof(*q->iov));
		*n_iov += chain->n_in;
		room += chain->in_bytes;
	}
	/* readv takes 1024 entries: a single chain with that many does without its last one. */
	if (*n_iov == MB_CHAIN_MAX_IOV)
		--*n_iov;
	q->iov[(*n_iov)++] = (struct iovec){.iov_base = q->spill, .iov_len = MB_NET_SPILL_BYTES};
	return n;
}

/* A packet of `bytes` has been read into the iov that gather made from the first n chains. */
static void received(struct mb_net_queue *q, uint32_t bytes, unsigned n, unsigned n_iov)
{
	uint64_t room = 0, chain_bytes = 0;
	unsigned used = 0;

	for (unsigned i = 0; i < n_iov - 1; i++)
		room += q->iov[i].iov_len;
	for (unsigned i = 0; i < n; i++)
		chain_bytes += q->stash[i]->in_bytes;
	if (bytes < MB_NET_HDR_BYTES || bytes > MB_NET_MAX_PACKET)
		return;
	if (bytes > room) {
		if (!q->mergeable || room < chain_bytes)
			return; /* the driver's buffers are too small (5.1.6.3.1): dropped */
		q->pending_bytes = bytes;
		q->n_pending = n;
		q->spill_bytes = (uint32_t)(bytes - room);
		return;
	}
	for (uint64_t at = 0; at < bytes; used++)
		at += q->stash[used]->in_bytes;
	deliver(q, bytes, used);
}

static void rx_work(struct mb_net_queue *q)
{
	unsigned n_done = 0;

	while (!is_gone(q)) {
		unsigned n, n_iov;
		ssize_t got;

		if (q->pending_bytes && !place_pending(q)) {
			watch(q, false); /* until the guest kicks: pop has said 0 */
			break;
		}
		n = gather(q, &n_iov);
		if (!n) {
			watch(q, false);
			break;
		}
		got = q->net->back->recv(q, q->iov, n_iov);
		if (got == -EAGAIN) {
			watch(q, true);
			break;
		}
		if (got < 0) {
			gone(q, (int)-got);
			break;
		}
		received(q, (uint32_t)got, n, n_iov);
		if (++n_done % RX_BATCH == 0)
			mb_virtq_signal(q->vq);
		if (n_done >= BUDGET && !q->net->back->more(q)) {
			watch(q, true);
			break;
		}
	}
	/*
	 * Another queue may have found it out first; a deleted tap is ready for ever (EPOLLERR
	 * comes unasked for).
	 */
	if (is_gone(q))
		watch(q, false);
	mb_virtq_signal(q->vq);
}

static void rx_ready(struct mb_watch *w, uint32_t events)
{
	rx_work(w->ctx);
}

void mb_net_rx_start(struct mb_net_queue *q, uint64_t features)
{
	q->mergeable = features & MB_NET_FEATURE(VIRTIO_NET_F_MRG_RXBUF);
	q->n_stash = 0;
	q->stash_bytes = 0;
	q->pending_bytes = 0;
	q->watch.events = EPOLLIN;
	q->watch.ready = rx_ready;
	q->watch.ctx = q;
	rx_work(q);
}

void mb_net_rx_kick(struct mb_net_queue *q)
{
	/* While the descriptor is watched, the new buffers are found when there is something for
	 * them. */
	if (!q->watching)
		rx_work(q);
}

/* ---- send ---- */

static void tx_work(struct mb_net_queue *q)
{
	unsigned n_done = 0;
	bool full = false;

	while (!is_gone(q)) {
		int rc;

		if (n_done == BUDGET) {
			full = true; /* or nearly: come back by way of EPOLLOUT */
			break;
		}
		if (!q->sending && mb_virtq_pop(q->vq, &q->sending) <= 0) {
			q->sending = NULL;
			break;
		}
		rc = q->net->back->send(q, q->sending);
		if (rc == -EAGAIN) {
			full = true;
			break;
		}
		if (rc) {
			gone(q, -rc);
			break;
		}
		mb_virtq_push(q->vq, q->sending, 0);
		q->sending = NULL;
		n_done++;
	}
	watch(q, full && !is_gone(q));
	mb_virtq_signal(q->vq);
}

/*
 * With the link down packets go nowhere, as with the cable pulled, and the guest keeps its memory.
 * Only in a kick, where pop gives a bounded number.
 */
static void drop_all(struct mb_net_queue *q)
{
	while (q->sending || mb_virtq_pop(q->vq, &q->sending) > 0) {
		mb_virtq_push(q->vq, q->sending, 0);
		q->sending = NULL;
	}
	q->sending = NULL;
	mb_virtq_signal(q->vq);
}

static void tx_ready(struct mb_watch *w, uint32_t events)
{
	tx_work(w->ctx);
}

void mb_net_tx_start(struct mb_net_queue *q)
{
	q->sending = NULL;
	q->n_sent = 0;
	q->watch.events = EPOLLOUT;
	q->watch.ready = tx_ready;
	q->watch.ctx = q;
}

void mb_net_tx_kick(struct mb_net_queue *q)
{
	/* Full: the notification says nothing that EPOLLOUT does not. */
	if (!q->watching)
		tx_work(q);
	if (is_gone(q))
		drop_all(q);
}

void mb_net_queue_stop(struct mb_net_queue *q)
{
	watch(q, false);
	if (q->sending && q->net->back->abandon)
		q->net->back->abandon(q, q->sending);
	q->sending = NULL;
	q->n_sent = 0;
	q->n_stash = 0;
	q->stash_bytes = 0;
	q->pending_bytes = 0;
}
