// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <linux/virtio_balloon.h>
#include <mirrorball/balloon.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

/*
 * Queues are numbered by 5.5.2: inflate, deflate, statistics, free page hints, reporting. Linux
 * leaves out those of features that it has not got: the third one that it sets up is for reporting
 * then, if there are no statistics and no hints, and that is what other monitors expect, too. As
 * this device has neither, both numbers can mean only one thing, and either one will do.
 */
#define QUEUE_INFLATE	     0u
#define QUEUE_DEFLATE	     1u
#define QUEUE_REPORTING_LEFT 2u /* others left out */
#define QUEUE_HINTS	     3u
#define QUEUE_REPORTING	     4u
#define N_QUEUES	     5u

/* Linux reports 32 blocks at a time, and does without where a queue has less room. */
#define QUEUE_SIZE   128

#define CLASS_CODE   0x00ff00 /* there is none for it */
#define TYPE_BALLOON 5

#define F_REPORTING  (1ull << VIRTIO_BALLOON_F_REPORTING)
#define F_POISON     (1ull << VIRTIO_BALLOON_F_PAGE_POISON)

/*
 * Bits of it come from the driver's vCPU, and are used on the loop: each is written before
 * DRIVER_OK by a driver that wants it to count.
 */
struct mb_balloon {
	struct mb_virtio *vdev;
	struct mb_dma *dma;
	_Atomic uint32_t actual, poison; /* as in the configuration space */

	_Atomic uint64_t reported_bytes, discarded_bytes, n_failures;
};

/* ---- configuration (5.5.4) ---- */

/* num_pages and the hints' command are 0 for ever: nothing is asked of the guest. */
static _Atomic uint32_t *field_at(struct mb_balloon *balloon, unsigned offset)
{
	switch (offset & ~3u) {
	case offsetof(struct virtio_balloon_config, actual):
		return &balloon->actual;
	case offsetof(struct virtio_balloon_config, poison_val):
		return &balloon->poison;
	default:
		return NULL;
	}
}

static void config_read(void *dev, unsigned offset, void *data, unsigned len)
{
	uint8_t *to = data;

	for (unsigned i = 0; i < len; i++) {
		_Atomic uint32_t *field = field_at(dev, offset + i);

		to[i] = field ? (uint8_t)(atomic_load(field) >> 8 * ((offset + i) % 4)) : 0;
	}
}

/* One at a time, so that nobody else changes a field in between. */
static void config_write(void *dev, unsigned offset, const void *data, unsigned len)
{
	const uint8_t *from = data;

	for (unsigned i = 0, run; i < len; i += run) {
		const unsigned at = (offset + i) % 4;
		_Atomic uint32_t *field = field_at(dev, offset + i);
		uint32_t value = field ? atomic_load(field) : 0;

		run = 4 - at < len - i ? 4 - at : len - i;
		for (unsigned k = 0; k < run; k++) {
			value &= ~(0xffu << 8 * (at + k));
			value |= (uint32_t)from[i + k] << 8 * (at + k);
		}
		if (field)
			atomic_store(field, value);
	}
}

/* ---- reporting ---- */

/*
 * 5.5.6.6: memory of a guest that relies on what freed pages have in them must be as it was, or
 * have that value; and what is discarded is 0.
 */
static bool may_discard(struct mb_balloon *balloon)
{
	const uint64_t features = mb_virtio_features(balloon->vdev);

	if (!(features & F_REPORTING))
		return false;
	return !(features & F_POISON) || !atomic_load(&balloon->poison);
}

/*
 * What the driver puts into a report for the device to read means nothing. A failure has been tried
 * for seconds (replica.h), which whoever resets the device waits for: so one is enough.
 */
static int discard(struct mb_balloon *balloon, const struct mb_chain *chain)
{
	int rc = may_discard(balloon) ? 0 : -EPERM;

	atomic_fetch_add_explicit(&balloon->reported_bytes, chain->in_bytes, memory_order_relaxed);
	for (unsigned i = chain->n_out; i < chain->n_out + chain->n_in && !rc; i++) {
		uint64_t done;

		rc = mb_dma_discard(balloon->dma, chain->gpa[i], chain->iov[i].iov_len, &done);
		atomic_fetch_add_explicit(&balloon->discarded_bytes, done, memory_order_relaxed);
		if (rc)
			atomic_fetch_add_explicit(&balloon->n_failures, 1, memory_order_relaxed);
	}
	return rc;
}

static bool is_for_reporting(const struct mb_virtq *vq)
{
	const unsigned index = mb_virtq_index(vq);

	return index == QUEUE_REPORTING_LEFT || index == QUEUE_REPORTING;
}

/*
 * The guest may use a page as soon as it has it back, so all of a report is discarded before that.
 * What it inflates or deflates the balloon with without being asked to it has back as it was: it
 * may, and no page is less in use because of it.
 */
static void queue_kick(void *dev, struct mb_virtq *vq)
{
	struct mb_balloon *balloon = dev;
	struct mb_chain *chain;
	int rc = 0;

	while (mb_virtq_pop(vq, &chain) > 0) {
		if (is_for_reporting(vq) && !rc)
			rc = discard(balloon, chain);
		mb_virtq_push(vq, chain, 0);
		/* The next one may take as long, and the driver sends one after the other. */
		mb_virtq_signal(vq);
	}
}

/* The next driver says anew what it has. */
static void queue_stop(void *dev, struct mb_virtq *vq)
{
	struct mb_balloon *balloon = dev;

	atomic_store(&balloon->actual, 0);
	if (is_for_reporting(vq))
		atomic_store(&balloon->poison, 0);
}

static const struct mb_virtio_ops ops = {
	.config_read = config_read,
	.config_write = config_write,
	.queue_kick = queue_kick,
	.queue_stop = queue_stop,
};

/* ---- life ---- */

int mb_balloon_create(struct mb_pci_bus *pci, struct mb_dma *dma, struct mb_loop *loop,
	struct mb_balloon **out, struct mb_error *err)
{
	struct mb_loop *loops[N_QUEUES] = {loop, loop, loop, loop, loop};
	struct mb_balloon *balloon = calloc(1, sizeof(*balloon));
	struct mb_virtio_config config = {
		.type = TYPE_BALLOON,
		.class_code = CLASS_CODE,
		.features = F_REPORTING | F_POISON,
		.n_queues = N_QUEUES,
		.queue_size = QUEUE_SIZE,
		.config_bytes = sizeof(struct virtio_balloon_config),
		.loops = loops,
		.ops = &ops,
		.dev = balloon,
		.name = "balloon",
	};
	int rc;

	if (!balloon)
		return mb_error_set(err, ENOMEM, "balloon: out of memory");
	balloon->dma = dma;
	rc = mb_virtio_create(pci, dma, &config, &balloon->vdev, err);
	if (rc) {
		free(balloon);
		return rc;
	}
	*out = balloon;
	return 0;
}

void mb_balloon_destroy(struct mb_balloon *balloon)
{
	if (!balloon)
		return;
	mb_virtio_destroy(balloon->vdev);
	free(balloon);
}

void mb_balloon_reset(struct mb_balloon *balloon)
{
	mb_virtio_reset(balloon->vdev);
}

void mb_balloon_stats(const struct mb_balloon *balloon, struct mb_balloon_stats *stats)
{
	*stats = (struct mb_balloon_stats){
		.reporting = mb_virtio_features(balloon->vdev) & F_REPORTING,
		.reported_bytes =
			atomic_load_explicit(&balloon->reported_bytes, memory_order_relaxed),
		.discarded_bytes =
			atomic_load_explicit(&balloon->discarded_bytes, memory_order_relaxed),
		.n_failures = atomic_load_explicit(&balloon->n_failures, memory_order_relaxed),
	};
}

int mb_balloon_pause(struct mb_balloon *balloon, uint64_t timeout_ns, struct mb_error *err)
{
	return mb_virtio_pause(balloon->vdev, timeout_ns, err);
}

void mb_balloon_resume(struct mb_balloon *balloon)
{
	mb_virtio_resume(balloon->vdev);
}

#define STATE_VERSION 1u

void mb_balloon_save(struct mb_balloon *balloon, struct mb_state_out *out)
{
	mb_state_begin(out, "balloon", STATE_VERSION);
	mb_state_put_u32(out, atomic_load(&balloon->actual));
	mb_state_put_u32(out, atomic_load(&balloon->poison));
	mb_state_end(out);
	mb_virtio_save(balloon->vdev, out);
}

int mb_balloon_load(struct mb_balloon *balloon, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	int rc = mb_state_enter(in, "balloon", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	atomic_store(&balloon->actual, mb_state_get_u32(&part));
	atomic_store(&balloon->poison, mb_state_get_u32(&part));
	rc = mb_state_leave(&part, err);
	return rc ? rc : mb_virtio_load(balloon->vdev, in, err);
}
