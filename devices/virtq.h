/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_DEVICES_VIRTQ_H
#define MIRRORBALL_DEVICES_VIRTQ_H

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <mirrorball/virtio.h>
#include <stdatomic.h>

/*
 * Inside of a virtqueue, for devices/virtq*.c and the transport. Everything but `broken` belongs to
 * the queue's loop between mb_virtq_init and mb_virtq_finish.
 *
 *   guest ring --next--> gather (checked copy, on the stack) --map--> mb_chain --push--> guest ring
 *
 * Two formats: split (virtio 1.2, 2.7; virtq_split.c) and packed (2.8; virtq_packed.c).
 */
#define MB_CHAIN_INLINE_IOV 4u /* entries that every chain has without a block of its own */
#define MB_IOV_CLASSES	    8u /* blocks of 8, 16, ... 1024 entries */

struct mb_virtq;

/* What a ring asks of its transport. On the queue's loop. */
struct mb_virtq_hooks {
	void (*interrupt)(struct mb_virtq *vq);
	void (*kick)(struct mb_virtq *vq); /* queue_kick shall come once more */
	void (*broken)(struct mb_virtq *vq, const char *why);
};

struct mb_virtq_params {
	struct mb_virtio *vdev;
	struct mb_dma *dma;
	const struct mb_virtq_hooks *hooks;
	const atomic_bool *stopped; /* the device is broken: give nothing more */
	void *ctx;		    /* the transport's own */
	uint64_t features;
	unsigned index;
	uint16_t size;
	/* As the driver wrote them: descriptor table or ring, driver area, device area. */
	uint64_t desc_gpa, driver_gpa, device_gpa;
};

/*
 * What a queue's chains may have at once of memory that is not mapped but copied (mb_dma_map,
 * -EXDEV): more than Linux puts into a request.
 */
#define MB_VIRTQ_COPY_BYTES (8u << 20)

struct mb_iov_block; /* iov and gpa arrays of a long chain */
struct mb_chain_slot;

struct mb_virtq_map {
	void *hva;
	uint64_t gpa, len; /* len 0: not mapped */
	enum mb_dma_dir dir;
};

struct mb_virtq {
	struct mb_virtq_params p;
	bool packed, event_idx, indirect;
	bool broken;
	bool quiet; /* the driver has been told not to notify */
	struct mb_virtq_map desc, driver, device;

	uint16_t next_avail;	    /* split: free-running; packed: position */
	uint16_t avail_seen;	    /* split: avail->idx when last read */
	uint16_t used_idx;	    /* split: free-running; packed: position */
	bool avail_wrap, used_wrap; /* packed: ring wrap counters (2.8.1) */
	unsigned n_desc_out;	    /* packed: descriptors popped and not yet used */
	uint32_t n_unsignalled;	    /* since the last signal; split: entries, packed: descriptors */

	/* Chains: slots below n_fresh have been used, those that are free now are on the list. */
	struct mb_chain_slot *slot;
	unsigned n_fresh;
	struct mb_chain *free;
	struct mb_iov_block *free_iov[MB_IOV_CLASSES];
	unsigned iov_total, iov_budget; /* entries in blocks, used or free; its limit */
	unsigned n_blocks_out;		/* blocks that chains use */
	uint64_t copy_bytes;		/* of what chains have as copies */
	bool starved; /* a pop was refused for lack of blocks, or of room for copies */

	/* Pops left in this queue_kick, so that one queue cannot keep the loop for itself. */
	unsigned share;
	bool in_kick;
};

/* One descriptor's buffer. */
struct mb_seg {
	uint64_t gpa;
	uint32_t len;
};

/* A descriptor chain, copied from guest memory and checked, not mapped yet. */
struct mb_gather {
	unsigned n_out, n_in; /* segments; empty buffers are left out */
	bool in_part;	      /* a device-writable descriptor has been seen */
	uint16_t head;	      /* split: head; packed: buffer id */
	unsigned n_desc;      /* ring descriptors */
	uint64_t out_bytes, in_bytes;
	struct mb_seg seg[MB_CHAIN_MAX_IOV];
};

/*
 * Maps the rings. -EINVAL or -EFAULT with *why if the driver's values are unusable, -ENOMEM. The
 * rings start from their initial state.
 */
int mb_virtq_init(struct mb_virtq *vq, const struct mb_virtq_params *params, const char **why);
/* Unmaps what is mapped, chains that were never pushed too. */
void mb_virtq_finish(struct mb_virtq *vq);

/*
 * For snapshots. How many chains were popped and not pushed; rewind: they will be popped again. The device
 * uses chains in order, or has none: nothing was pushed that had been popped after one of them.
 */
unsigned mb_virtq_n_out(const struct mb_virtq *vq);
void mb_virtq_rewind(struct mb_virtq *vq);
/* How far the device has got, with no chain out; set: right after init. -EINVAL: not a place in this ring. */
struct mb_virtq_place {
	uint16_t used_idx;
	bool used_wrap;
};
struct mb_virtq_place mb_virtq_get_place(const struct mb_virtq *vq);
int mb_virtq_set_place(struct mb_virtq *vq, struct mb_virtq_place place);

/* Around ops->queue_kick. */
void mb_virtq_kick_begin(struct mb_virtq *vq);
void mb_virtq_kick_end(struct mb_virtq *vq);

/* ---- between virtq.c and the two formats ---- */

/* Marks the ring broken; returns -EPROTO. */
int mb_virtq_fail(struct mb_virtq *vq, const char *why);
/* Adds one buffer, or the table of an indirect descriptor; 0 or mb_virtq_fail's value. */
int mb_gather_add(
	struct mb_virtq *vq, struct mb_gather *g, uint64_t gpa, uint32_t len, uint16_t flags);
int mb_gather_indirect(struct mb_virtq *vq, struct mb_gather *g, uint64_t gpa, uint32_t len);

/* 1 with the next chain in g, 0 (notifications are on), or a negative errno. Consumes nothing. */
int mb_split_next(struct mb_virtq *vq, struct mb_gather *g);
int mb_packed_next(struct mb_virtq *vq, struct mb_gather *g);
/* Moves past the chain that next returned, or back over the last one. */
void mb_split_advance(struct mb_virtq *vq, unsigned n_desc, bool back);
void mb_packed_advance(struct mb_virtq *vq, unsigned n_desc, bool back);
/* Gives n chains back, visible to the driver all at once. */
void mb_split_use(
	struct mb_virtq *vq, struct mb_chain *const *chains, const uint32_t *written, unsigned n);
void mb_packed_use(
	struct mb_virtq *vq, struct mb_chain *const *chains, const uint32_t *written, unsigned n);
/* Whether the driver wants an interrupt for the last n used; caller has put the barrier before. */
bool mb_split_wants_signal(struct mb_virtq *vq, uint32_t n);
bool mb_packed_wants_signal(struct mb_virtq *vq, uint32_t n);

/* Reads and writes of memory that the guest changes at any time: each exactly once. */
static inline uint16_t mb_load16(const void *p)
{
	return __atomic_load_n((const uint16_t *)p, __ATOMIC_RELAXED);
}

static inline uint32_t mb_load32(const void *p)
{
	return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED);
}

static inline uint64_t mb_load64(const void *p)
{
	return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED);
}

#endif
