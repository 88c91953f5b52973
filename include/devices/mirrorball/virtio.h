/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_VIRTIO_H
#define MIRRORBALL_VIRTIO_H

#include <mirrorball/dma.h>
#include <mirrorball/error.h>
#include <mirrorball/loop.h>
#include <mirrorball/pci.h>
#include <mirrorball/state.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * virtio 1.2 devices over PCI (virtio 1.2 section 4.1, modern only). This header is what a device
 * type (blk, net, console, rng, balloon, pmem) is written against; the transport is
 * devices/virtio_pci.c, the rings are devices/virtq.c.
 *
 * BAR 0 (64 KiB):  0x0000 common configuration   0x1000 ISR   0x2000 device configuration
 *                  0x3000 notifications, 4 bytes a queue   0x8000 MSI-X table   0xf000 its PBA
 *
 * Threads: configuration accesses come on vCPU threads, serialised by the transport. Each queue
 * belongs to one loop; ops->queue_* run on that loop's thread.
 */
#define MB_VIRTIO_MAX_QUEUES 256u
#define MB_VIRTQ_MAX_SIZE    1024u /* descriptors a ring */
#define MB_CHAIN_MAX_IOV     1024u

/* Feature bits common to all devices that the transport offers by itself: VERSION_1, EVENT_IDX,
 * INDIRECT_DESC, RING_PACKED. A device adds its own. */

struct mb_virtio;
struct mb_virtq;

/*
 * A descriptor chain, copied and checked once: n_out buffers that the device reads, then n_in that
 * it writes; each iov is guest RAM, mapped through mb_dma until mb_virtq_push, or a copy of what
 * cannot be mapped. Lives in the queue's
 * own memory: valid until pushed, and as many may be outstanding as the ring has descriptors.
 */
struct mb_chain {
	struct iovec *iov; /* n_out + n_in entries */
	unsigned n_out;
	unsigned n_in;
	uint64_t out_bytes;
	uint64_t in_bytes;
	uint64_t *gpa; /* of each iov entry */
	/* private to the ring */
	uint16_t head;
	uint16_t n_desc;
	unsigned iov_cap;
	struct mb_chain *next_free;
	void *user; /* for the device: its request */
};

/*
 * Next available chain: 1 and *chain, 0 if there is none (guest notifications are then on again),
 * or -errno: the ring is broken, the device has been marked NEEDS_RESET and the queue gives nothing
 * more. Also 0 when this queue_kick has had its share of the loop, or when long chains or copies in
 * flight use up the queue's memory: queue_kick then comes again without the guest's doing. Costs up
 * to 40 KiB of stack.
 */
int mb_virtq_pop(struct mb_virtq *vq, struct mb_chain **chain);
/* Gives a popped chain back unused: it will be popped again next. Only the last one popped. */
void mb_virtq_unpop(struct mb_virtq *vq, struct mb_chain *chain);
/* The device is done with the chain and has written `written` (at most in_bytes) to its in-part. */
void mb_virtq_push(struct mb_virtq *vq, struct mb_chain *chain, uint32_t written);
/*
 * The same for n chains, 1 or more, which the driver sees all at once: the buffers of one packet.
 */
void mb_virtq_push_all(
	struct mb_virtq *vq, struct mb_chain *const *chains, const uint32_t *written, unsigned n);
/* Interrupts the guest if it wants that for what was pushed since. Call once per batch. */
void mb_virtq_signal(struct mb_virtq *vq);

unsigned mb_virtq_index(const struct mb_virtq *vq);
unsigned mb_virtq_size(const struct mb_virtq *vq);
struct mb_virtio *mb_virtq_device(const struct mb_virtq *vq);

/*
 * Copies from the out-part at offset / to the in-part at offset; returns bytes copied (short at the
 * end).
 */
size_t mb_chain_read(const struct mb_chain *chain, size_t offset, void *buf, size_t len);
size_t mb_chain_write(const struct mb_chain *chain, size_t offset, const void *buf, size_t len);

struct mb_virtio_ops {
	/*
	 * Driver reads/writes device configuration: [offset, offset + len) is inside config_bytes,
	 * any alignment. vCPU thread, one at a time. May be NULL.
	 */
	void (*config_read)(void *dev, unsigned offset, void *data, unsigned len);
	void (*config_write)(void *dev, unsigned offset, const void *data, unsigned len);
	/*
	 * DRIVER_OK was set with these features: called once on every enabled queue's loop, before
	 * the first queue_kick of it. A queue_kick follows by itself. An error breaks the device.
	 */
	int (*queue_start)(void *dev, struct mb_virtq *vq, uint64_t features); /* may be NULL */
	/* The guest added chains (or the loop thinks so): pop until 0. */
	void (*queue_kick)(void *dev, struct mb_virtq *vq);
	/*
	 * Device reset (or the machine's end): wait for everything in flight on the queue, push
	 * nothing more. After it, no chain of the queue is used. May be NULL. A vCPU waits for this
	 * to return, so it must not wait for a vCPU; no queue's loop may pause the vCPUs for the
	 * same reason.
	 */
	void (*queue_stop)(void *dev, struct mb_virtq *vq);
	/*
	 * For a snapshot: the device forgets what it has popped and not pushed, which will be popped again, in the same
	 * order; it has used chains in order. Until the next queue_kick it pops and pushes nothing. NULL:
	 * it completes everything by itself, which is waited for; then it may use chains in any order.
	 */
	void (*queue_pause)(void *dev, struct mb_virtq *vq);
};

struct mb_virtio_config {
	uint16_t type; /* virtio device id: 1 net, 2 block, 3 console, 4 rng, 5 balloon, 27 pmem */
	uint32_t class_code;
	uint64_t features;     /* of the device type */
	unsigned n_queues;     /* 1..MB_VIRTIO_MAX_QUEUES */
	uint16_t queue_size;   /* power of two, up to MB_VIRTQ_MAX_SIZE */
	unsigned config_bytes; /* size of device configuration */
	/* Loop of each queue: array of n_queues, copied. The loops must outlive the device. */
	struct mb_loop *const *loops;
	const struct mb_virtio_ops *ops;
	void *dev;
	const char *name; /* for messages: "disk debian.img" */
};

int mb_virtio_create(struct mb_pci_bus *pci, struct mb_dma *dma,
	const struct mb_virtio_config *config, struct mb_virtio **out, struct mb_error *err);
/* Stops the queues first. Loops still running. Takes NULL. */
void mb_virtio_destroy(struct mb_virtio *vdev);
/* Machine reset: queues stopped, power-on state, BAR at its first place. vCPUs paused. */
void mb_virtio_reset(struct mb_virtio *vdev);

/*
 * For snapshots; vCPUs paused, not on a queue's loop. pause: nothing is in flight any more, and nothing comes;
 * queues stay set up. -ETIMEDOUT: something did not end within timeout_ns, and nothing is paused. resume: they
 * go on. save: while paused. load: into a new device, whose queues start and look at their rings at once; the
 * guest gets an interrupt from each, for one that was under way is not saved. -EINVAL: not its state,
 * or it offers less than what the guest was given.
 */
int mb_virtio_pause(struct mb_virtio *vdev, uint64_t timeout_ns, struct mb_error *err);
void mb_virtio_resume(struct mb_virtio *vdev);
void mb_virtio_save(struct mb_virtio *vdev, struct mb_state_out *out);
int mb_virtio_load(struct mb_virtio *vdev, struct mb_state_in *in, struct mb_error *err);

/* The device configuration changed: configuration interrupt. Any thread. */
void mb_virtio_config_changed(struct mb_virtio *vdev);
/* Features that the driver accepted (0 before). */
uint64_t mb_virtio_features(const struct mb_virtio *vdev);
/* The driver did something no driver may do: DEVICE_NEEDS_RESET, said once. Any thread. */
void mb_virtio_broken(struct mb_virtio *vdev, const char *why);

#endif
