/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_NET_IMPL_H
#define MIRRORBALL_NET_IMPL_H

#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <mirrorball/log.h>
#include <mirrorball/net.h>
#include <sys/types.h>

/*
 * The network device's parts, private to devices/: net.c is the device and its control queue,
 * net_queue.c moves packets between a virtqueue and a back end, tap.c and passt.c are the back
 * ends.
 *
 * A packet in flight always has its virtio-net header of 12 bytes in front (virtio 1.2, 5.1.6).
 */
#define MB_NET_QUEUE_SIZE  256u
#define MB_NET_HDR_BYTES   ((unsigned)sizeof(struct virtio_net_hdr_v1))
#define MB_NET_MAX_FRAME   65553u /* 65535 of IP, an Ethernet header and a VLAN tag */
#define MB_NET_MAX_PACKET  (MB_NET_HDR_BYTES + MB_NET_MAX_FRAME)
#define MB_NET_SPILL_BYTES (68u << 10)
#define MB_NET_FEATURE(b)  (1ull << (b))

/* Linux 6.2 (virtio 1.3); not in every <linux/virtio_net.h>. */
#define MB_NET_F_GUEST_USO4 54
#define MB_NET_F_GUEST_USO6 55
#define MB_NET_F_HOST_USO   56

struct mb_net_queue;
struct mb_tap;
struct mb_passt;

struct mb_net_back_ops {
	/*
	 * The next packet into iov (header included; the last entry is there to catch what is too
	 * long). Its length, -EAGAIN if there is none, another -errno if the back end is gone:
	 * -ESHUTDOWN when it calls mb_net_gone itself.
	 */
	ssize_t (*recv)(struct mb_net_queue *q, const struct iovec *iov, unsigned n_iov);
	/* Whether recv has something even if the descriptor is not readable. */
	bool (*more)(const struct mb_net_queue *q);
	/*
	 * 0: sent, or dropped as a network may; -EAGAIN: the same chain again when the descriptor
	 * is writable; another -errno: the back end is gone.
	 */
	int (*send)(struct mb_net_queue *q, struct mb_chain *chain);
	/* The chain whose send said -EAGAIN will not come again. */
	void (*abandon)(struct mb_net_queue *q, struct mb_chain *chain);
	/* Features that the driver accepted: which kinds of packet recv may give. */
	int (*set_offloads)(struct mb_net *net, uint64_t features);
	int (*set_pairs)(struct mb_net *net, unsigned n_pairs);
};

enum mb_net_role {
	MB_NET_UNUSED,
	MB_NET_RX,
	MB_NET_TX,
	MB_NET_CTRL,
};

/* One virtqueue; everything on its loop's thread. */
struct mb_net_queue {
	struct mb_net *net;
	unsigned index;
	enum mb_net_role role; /* depends on what the driver accepted (5.1.2) */
	struct mb_virtq *vq;   /* NULL: not started */
	struct mb_loop *loop;
	struct mb_watch watch; /* of the back end's descriptor: one of its own for each queue */
	bool watching;
	struct iovec *iov; /* MB_CHAIN_MAX_IOV + 2 */

	/*
	 * Receiving. Chains that are popped and not filled yet, oldest first: always enough for the
	 * longest packet if the guest has given that much. What does not fit goes to `spill` and
	 * waits there for the rest of its buffers: no packet is lost because the guest was slow.
	 */
	bool mergeable;
	struct mb_chain *stash[MB_NET_QUEUE_SIZE];
	uint32_t written[MB_NET_QUEUE_SIZE];
	unsigned n_stash;
	uint64_t stash_bytes;
	uint8_t *spill;
	uint32_t pending_bytes; /* of the packet that waits; 0: none */
	unsigned n_pending;	/* first chains of the stash that it fills */
	uint32_t spill_bytes;	/* of it that are in spill */

	/* Sending. */
	struct mb_chain *sending; /* the back end was full */
	uint32_t n_sent;	  /* bytes of it that it took (passt) */
};

struct mb_net {
	struct mb_virtio *vdev;
	const struct mb_net_back_ops *back;
	struct mb_tap *tap;
	struct mb_passt *passt;
	char *name; /* "net tap=foo", "net passt" */
	unsigned n_pairs;
	uint8_t first_mac[6];
	uint16_t mtu; /* 0: not told */
	uint64_t offered;
	struct mb_net_queue *queues; /* 2 * n_pairs + 1 */
	struct mb_loop *ctrl_loop;
	struct mb_ratelimit rl;

	/* Atomic, relaxed: written on one queue's thread, read by vCPUs. */
	uint64_t mac;	/* the six bytes, the first one lowest */
	/* What the driver has set last; the first queue's start takes it over where they come from a snapshot. */
	uint64_t offloads;
	uint32_t pairs;
	bool resumes;
	bool link_down; /* the back end is gone; never comes back */
};

/* Said once: log, link down for the guest. Any of the device's threads. */
void mb_net_gone(struct mb_net *net, const char *why);

/* ---- net_queue.c ---- */

int mb_net_queue_init(struct mb_net_queue *q, int fd);
void mb_net_queue_finish(struct mb_net_queue *q);
void mb_net_rx_start(struct mb_net_queue *q, uint64_t features);
void mb_net_rx_kick(struct mb_net_queue *q);
void mb_net_tx_start(struct mb_net_queue *q);
void mb_net_tx_kick(struct mb_net_queue *q);
void mb_net_queue_stop(struct mb_net_queue *q);

/* ---- tap.c ---- */

/*
 * Opens the interface (or takes fd over) with n_pairs queues, of which the first is on. Names
 * itself in net->name, sets net->mtu and what net->offered depends on.
 */
int mb_tap_open(struct mb_net *net, const struct mb_net_config *config, struct mb_error *err);
void mb_tap_close(struct mb_tap *tap);
int mb_tap_fd(const struct mb_tap *tap, unsigned pair);

/* ---- passt.c ---- */

/*
 * Starts the program and waits until it is at work, some 20 ms. If it ends before that, the error
 * has its own last words.
 */
int mb_passt_start(struct mb_net *net, const struct mb_net_config *config, struct mb_error *err);
/* Calls mb_net_gone when the program ends, from now on; no more. */
void mb_passt_watch(struct mb_passt *passt);
void mb_passt_unwatch(struct mb_passt *passt);
/* Ends and reaps the program. This and unwatch take NULL. */
void mb_passt_stop(struct mb_passt *passt);
int mb_passt_fd(const struct mb_passt *passt);

#endif
