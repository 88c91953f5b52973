// SPDX-License-Identifier: Apache-2.0
#include "net_impl.h"
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * virtio-net (virtio 1.2, 5.1): the device, its configuration and its control queue.
 *
 * No filtering: the guest gets every packet that the back end has, so the MAC address that the
 * driver sets is remembered and shown, no more.
 */
#define F(name) MB_NET_FEATURE(VIRTIO_NET_F_##name)

#define GUEST_OFFLOADS                                                                             \
	(F(GUEST_CSUM) | F(GUEST_TSO4) | F(GUEST_TSO6) | F(GUEST_ECN) | F(GUEST_UFO) |             \
		MB_NET_FEATURE(MB_NET_F_GUEST_USO4) | MB_NET_FEATURE(MB_NET_F_GUEST_USO6))

static uint64_t pack_mac(const uint8_t *mac)
{
	uint64_t packed = 0;

	memcpy(&packed, mac, 6);
	return packed;
}

void mb_net_gone(struct mb_net *net, const char *why)
{
	if (__atomic_exchange_n(&net->link_down, true, __ATOMIC_RELAXED))
		return;
	mb_log("%s: link down: %s; the machine goes on without it", net->name, why);
	if (net->vdev)
		mb_virtio_config_changed(net->vdev);
}

/* ---- the control queue (5.1.6.5) ---- */

static bool accepted(const struct mb_net_queue *q, uint64_t feature)
{
	return mb_virtio_features(q->net->vdev) & feature;
}

static bool ctrl_mac(struct mb_net_queue *q, struct mb_chain *chain, uint8_t cmd)
{
	uint8_t mac[6];

	if (cmd != VIRTIO_NET_CTRL_MAC_ADDR_SET || !accepted(q, F(CTRL_MAC_ADDR)))
		return false;
	if (mb_chain_read(chain, sizeof(struct virtio_net_ctrl_hdr), mac, sizeof(mac)) <
		sizeof(mac))
		return false;
	__atomic_store_n(&q->net->mac, pack_mac(mac), __ATOMIC_RELAXED);
	return true;
}

static bool ctrl_pairs(struct mb_net_queue *q, struct mb_chain *chain, uint8_t cmd)
{
	struct virtio_net_ctrl_mq mq;

	if (cmd != VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET || !accepted(q, F(MQ)))
		return false;
	if (mb_chain_read(chain, sizeof(struct virtio_net_ctrl_hdr), &mq, sizeof(mq)) < sizeof(mq))
		return false;
	mq.virtqueue_pairs = le16toh(mq.virtqueue_pairs);
	if (!mq.virtqueue_pairs || mq.virtqueue_pairs > q->net->n_pairs)
		return false;
	if (q->net->back->set_pairs(q->net, mq.virtqueue_pairs))
		return false;
	__atomic_store_n(&q->net->pairs, mq.virtqueue_pairs, __ATOMIC_RELAXED);
	return true;
}

static bool ctrl_offloads(struct mb_net_queue *q, struct mb_chain *chain, uint8_t cmd)
{
	uint64_t offloads;

	if (cmd != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET || !accepted(q, F(CTRL_GUEST_OFFLOADS)))
		return false;
	if (mb_chain_read(chain, sizeof(struct virtio_net_ctrl_hdr), &offloads, sizeof(offloads)) <
		sizeof(offloads))
		return false;
	offloads = le64toh(offloads);
	if (offloads & ~(mb_virtio_features(q->net->vdev) & GUEST_OFFLOADS))
		return false;
	if (q->net->back->set_offloads(q->net, offloads))
		return false;
	__atomic_store_n(&q->net->offloads, offloads, __ATOMIC_RELAXED);
	return true;
}

static void ctrl_request(struct mb_net_queue *q, struct mb_chain *chain)
{
	struct virtio_net_ctrl_hdr hdr;
	uint8_t ack;
	bool ok = false;

	if (!chain->in_bytes) {
		mb_virtq_push(q->vq, chain, 0);
		mb_virtio_broken(q->net->vdev, "a control command has no room for its answer");
		return;
	}
	if (mb_chain_read(chain, 0, &hdr, sizeof(hdr)) == sizeof(hdr)) {
		switch (hdr.class) {
		case VIRTIO_NET_CTRL_MAC:
			ok = ctrl_mac(q, chain, hdr.cmd);
			break;
		case VIRTIO_NET_CTRL_MQ:
			ok = ctrl_pairs(q, chain, hdr.cmd);
			break;
		case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
			ok = ctrl_offloads(q, chain, hdr.cmd);
			break;
		}
	}
	ack = ok ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
	mb_chain_write(chain, 0, &ack, 1);
	mb_virtq_push(q->vq, chain, 1);
}

static void ctrl_kick(struct mb_net_queue *q)
{
	struct mb_chain *chain;

	while (mb_virtq_pop(q->vq, &chain) > 0)
		ctrl_request(q, chain);
	mb_virtq_signal(q->vq);
}

/* ---- queues; on their loops' threads ---- */

/* Without VIRTIO_NET_F_MQ there is one pair, and the control queue is right behind it (5.1.2). */
static enum mb_net_role role_of(const struct mb_net *net, unsigned index, uint64_t features)
{
	unsigned n_pairs = features & F(MQ) ? net->n_pairs : 1;

	if (index < 2 * n_pairs)
		return index % 2 ? MB_NET_TX : MB_NET_RX;
	if (index == 2 * n_pairs && features & F(CTRL_VQ))
		return MB_NET_CTRL;
	return MB_NET_UNUSED;
}

static int queue_start(void *dev, struct mb_virtq *vq, uint64_t features)
{
	struct mb_net *net = dev;
	struct mb_net_queue *q = &net->queues[mb_virtq_index(vq)];

	q->vq = vq;
	q->role = role_of(net, q->index, features);
	if (q->index == 0) {
		uint64_t offloads = features & GUEST_OFFLOADS;
		int rc;

		if (__atomic_load_n(&net->resumes, __ATOMIC_RELAXED)) {
			offloads &= __atomic_load_n(&net->offloads, __ATOMIC_RELAXED);
			rc = net->back->set_pairs(
				net, __atomic_load_n(&net->pairs, __ATOMIC_RELAXED));
			if (rc)
				return rc;
		}
		__atomic_store_n(&net->offloads, offloads, __ATOMIC_RELAXED);
		rc = net->back->set_offloads(net, offloads);
		/* Whole packets with whole checksums, then: any guest can take those. */
		if (rc && !__atomic_load_n(&net->link_down, __ATOMIC_RELAXED))
			mb_log_guest(&net->rl, "%s: receive offloads stay off: %s", net->name,
				strerror(-rc));
	}
	if (q->role == MB_NET_RX)
		mb_net_rx_start(q, features);
	else if (q->role == MB_NET_TX)
		mb_net_tx_start(q);
	return 0;
}

static void queue_kick(void *dev, struct mb_virtq *vq)
{
	struct mb_net *net = dev;
	struct mb_net_queue *q = &net->queues[mb_virtq_index(vq)];

	switch (q->role) {
	case MB_NET_RX:
		mb_net_rx_kick(q);
		break;
	case MB_NET_TX:
		mb_net_tx_kick(q);
		break;
	case MB_NET_CTRL:
		ctrl_kick(q);
		break;
	case MB_NET_UNUSED:
		break;
	}
}

static void queue_stop(void *dev, struct mb_virtq *vq)
{
	struct mb_net *net = dev;
	struct mb_net_queue *q = &net->queues[mb_virtq_index(vq)];

	if (q->vq != vq)
		return;
	if (q->role == MB_NET_RX || q->role == MB_NET_TX)
		mb_net_queue_stop(q);
	/* The next driver begins with one pair, no offloads and the first address. */
	if (q->role == MB_NET_CTRL) {
		net->back->set_pairs(net, 1);
		__atomic_store_n(&net->pairs, 1, __ATOMIC_RELAXED);
		__atomic_store_n(&net->mac, pack_mac(net->first_mac), __ATOMIC_RELAXED);
	}
	if (q->index == 0)
		net->back->set_offloads(net, 0);
	q->vq = NULL;
}

/* What was received for buffers that have not come yet is lost, as a network may. */
static void queue_pause(void *dev, struct mb_virtq *vq)
{
	struct mb_net *net = dev;
	struct mb_net_queue *q = &net->queues[mb_virtq_index(vq)];

	if (q->role == MB_NET_RX || q->role == MB_NET_TX)
		mb_net_queue_stop(q);
}

static void config_read(void *dev, unsigned offset, void *data, unsigned len)
{
	const struct mb_net *net = dev;
	uint64_t mac = __atomic_load_n(&net->mac, __ATOMIC_RELAXED);
	bool down = __atomic_load_n(&net->link_down, __ATOMIC_RELAXED);
	struct virtio_net_config cfg = {
		.status = htole16(down ? 0 : VIRTIO_NET_S_LINK_UP),
		.max_virtqueue_pairs = htole16((uint16_t)net->n_pairs),
		.mtu = htole16(net->mtu),
	};

	memcpy(cfg.mac, &mac, sizeof(cfg.mac));
	memset(data, 0, len);
	if (offset < sizeof(cfg))
		memcpy(data, (const uint8_t *)&cfg + offset,
			len < sizeof(cfg) - offset ? len : sizeof(cfg) - offset);
}

static const struct mb_virtio_ops net_ops = {
	.config_read = config_read,
	.queue_start = queue_start,
	.queue_kick = queue_kick,
	.queue_stop = queue_stop,
	.queue_pause = queue_pause,
};

/* ---- life ---- */

/* A stable address from the seed: FNV-1a, locally administered, unicast. */
static void derive_mac(uint8_t *mac, const char *seed)
{
	uint64_t hash = 0xcbf29ce484222325ull;

	for (const char *c = seed ? seed : ""; *c; c++)
		hash = (hash ^ (uint8_t)*c) * 0x100000001b3ull;
	/* The low bits of the hash of two seeds that differ in the end differ most. */
	for (unsigned i = 0; i < 6; i++)
		mac[i] = (uint8_t)(hash >> (8 * i));
	mac[0] = (uint8_t)((mac[0] & 0xfc) | 2);
}

static int set_mac(struct mb_net *net, const struct mb_net_config *config, struct mb_error *err)
{
	static const uint8_t none[6];

	if (!memcmp(config->mac, none, 6))
		derive_mac(net->first_mac, config->seed);
	else if (config->mac[0] & 1)
		return mb_error_set(err, EINVAL,
			"%s: MAC address %02x:%02x:%02x:%02x:%02x:%02x is a group address; the "
			"first byte must be even",
			net->name, config->mac[0], config->mac[1], config->mac[2], config->mac[3],
			config->mac[4], config->mac[5]);
	else
		memcpy(net->first_mac, config->mac, 6);
	net->mac = pack_mac(net->first_mac);
	return 0;
}

static int check_config(
	const struct mb_net *net, const struct mb_net_config *config, struct mb_error *err)
{
	unsigned max = (MB_VIRTIO_MAX_QUEUES - 1) / 2;

	if (!config->n_pairs || config->n_pairs > max)
		return mb_error_set(err, EINVAL, "%s: %u queue pairs; 1 to %u are possible",
			net->name, config->n_pairs, max);
	if (config->n_pairs > 1 && config->back != MB_NET_TAP)
		return mb_error_set(err, EINVAL,
			"%s: can have one queue pair only; more need a tap that is given by name",
			net->name);
	return 0;
}

static char *make_name(const struct mb_net_config *config)
{
	char *name = NULL;
	int rc;

	switch (config->back) {
	case MB_NET_TAP:
		rc = asprintf(&name, "net tap=%s", config->ifname);
		break;
	case MB_NET_TAP_FD:
		rc = asprintf(&name, "net tap descriptor %d", config->fd);
		break;
	default:
		rc = asprintf(&name, "net passt");
	}
	return rc < 0 ? NULL : name;
}

static int init_queues(struct mb_net *net, struct mb_loop *const *loops, struct mb_error *err)
{
	unsigned n = 2 * net->n_pairs + 1;

	net->queues = calloc(n, sizeof(*net->queues));
	if (!net->queues)
		return mb_error_set(err, ENOMEM, "%s: out of memory", net->name);
	for (unsigned i = 0; i < n; i++)
		net->queues[i].watch.fd = -1;
	for (unsigned i = 0; i < n; i++) {
		struct mb_net_queue *q = &net->queues[i];
		int rc;

		q->net = net;
		q->index = i;
		q->loop = loops[i];
		if (i == n - 1)
			break; /* never carries packets */
		rc = mb_net_queue_init(
			q, net->tap ? mb_tap_fd(net->tap, i / 2) : mb_passt_fd(net->passt));
		if (rc)
			return mb_error_set(err, -rc, "%s: %s", net->name, strerror(-rc));
	}
	return 0;
}

static uint64_t common_features(const struct mb_net *net)
{
	uint64_t features = F(MAC) | F(STATUS) | F(MRG_RXBUF) | F(CTRL_VQ) | F(CTRL_MAC_ADDR);

	if (net->n_pairs > 1)
		features |= F(MQ);
	if (net->mtu)
		features |= F(MTU);
	return features;
}

int mb_net_create(struct mb_pci_bus *pci, struct mb_dma *dma, const struct mb_net_config *config,
	struct mb_net **out, struct mb_error *err)
{
	struct mb_virtio_config vcfg;
	struct mb_net *net = calloc(1, sizeof(*net));
	int rc;

	if (net)
		net->name = make_name(config);
	if (!net || !net->name) {
		rc = mb_error_set(err, ENOMEM, "net: out of memory");
		goto err_destroy;
	}
	rc = check_config(net, config, err);
	if (!rc)
		rc = set_mac(net, config, err);
	if (rc)
		goto err_destroy;
	net->n_pairs = config->n_pairs;
	net->pairs = 1;
	net->ctrl_loop = config->loops[2 * net->n_pairs];
	if (config->back == MB_NET_PASST)
		rc = mb_passt_start(net, config, err);
	else
		rc = mb_tap_open(net, config, err);
	if (!rc)
		rc = init_queues(net, config->loops, err);
	if (rc)
		goto err_destroy;
	net->offered |= common_features(net);
	vcfg = (struct mb_virtio_config){
		.type = VIRTIO_ID_NET,
		.class_code = 0x020000, /* Ethernet controller */
		.features = net->offered,
		.n_queues = 2 * net->n_pairs + 1,
		.queue_size = MB_NET_QUEUE_SIZE,
		.config_bytes = offsetof(struct virtio_net_config, speed),
		.loops = config->loops,
		.ops = &net_ops,
		.dev = net,
		.name = net->name,
	};
	rc = mb_virtio_create(pci, dma, &vcfg, &net->vdev, err);
	if (rc)
		goto err_destroy;
	if (net->passt)
		mb_passt_watch(net->passt);
	*out = net;
	return 0;

err_destroy:
	/* The descriptor was given to us, whatever came of it; mb_tap_open takes it over first
	 * thing. */
	if (config->back == MB_NET_TAP_FD && !(net && net->tap))
		close(config->fd);
	mb_net_destroy(net);
	return rc;
}

void mb_net_destroy(struct mb_net *net)
{
	if (!net)
		return;
	mb_passt_unwatch(net->passt);
	if (net->vdev)
		mb_virtio_destroy(net->vdev);
	if (net->queues)
		for (unsigned i = 0; i < 2 * net->n_pairs + 1; i++)
			mb_net_queue_finish(&net->queues[i]);
	mb_tap_close(net->tap);
	mb_passt_stop(net->passt);
	free(net->queues);
	free(net->name);
	free(net);
}

void mb_net_reset(struct mb_net *net)
{
	mb_virtio_reset(net->vdev);
	__atomic_store_n(&net->mac, pack_mac(net->first_mac), __ATOMIC_RELAXED);
}

/* ---- snapshots ---- */

#define STATE_VERSION 1u

void mb_net_mac(const struct mb_net *net, uint8_t mac[6])
{
	memcpy(mac, net->first_mac, 6);
}

int mb_net_pause(struct mb_net *net, uint64_t timeout_ns, struct mb_error *err)
{
	return mb_virtio_pause(net->vdev, timeout_ns, err);
}

void mb_net_resume(struct mb_net *net)
{
	mb_virtio_resume(net->vdev);
}

void mb_net_save(struct mb_net *net, struct mb_state_out *out)
{
	mb_state_begin(out, "net", STATE_VERSION);
	mb_state_put(out, net->first_mac, sizeof(net->first_mac));
	mb_state_put_u64(out, __atomic_load_n(&net->mac, __ATOMIC_RELAXED));
	mb_state_put_u64(out, __atomic_load_n(&net->offloads, __ATOMIC_RELAXED));
	mb_state_put_u32(out, __atomic_load_n(&net->pairs, __ATOMIC_RELAXED));
	mb_state_end(out);
	mb_virtio_save(net->vdev, out);
}

int mb_net_load(struct mb_net *net, struct mb_state_in *in, struct mb_error *err)
{
	uint8_t first_mac[6];
	struct mb_state_in part;
	uint64_t mac;
	uint32_t pairs;
	int rc = mb_state_enter(in, "net", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	mb_state_get(&part, first_mac, sizeof(first_mac));
	mac = mb_state_get_u64(&part);
	/* Another one of its own: then what the driver had set is another one's, too. */
	if (!memcmp(first_mac, net->first_mac, sizeof(first_mac)))
		__atomic_store_n(&net->mac, mac & ((1ull << 48) - 1), __ATOMIC_RELAXED);
	__atomic_store_n(&net->offloads, mb_state_get_u64(&part), __ATOMIC_RELAXED);
	pairs = mb_state_get_u32(&part);
	if (!pairs || pairs > net->n_pairs)
		return mb_state_refuse(&part, err, "has queues that are not there here");
	__atomic_store_n(&net->pairs, pairs, __ATOMIC_RELAXED);
	__atomic_store_n(&net->resumes, true, __ATOMIC_RELAXED);
	rc = mb_state_leave(&part, err);
	if (!rc)
		rc = mb_virtio_load(net->vdev, in, err);
	/* The next start is another driver's. */
	__atomic_store_n(&net->resumes, false, __ATOMIC_RELAXED);
	return rc;
}
