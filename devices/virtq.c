// SPDX-License-Identifier: Apache-2.0
#include "virtq.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * What is common to both ring formats: chains, their memory, and the rules that every chain obeys.
 */

/* virtio 1.2, 2.7.5: a chain has at most 2^32 bytes. */
#define MAX_CHAIN_BYTES (1ull << 32)

/* Long chains that a queue may hold at once, in entries for each of its descriptors. */
#define IOV_BUDGET_PER_DESC 8u

#define COPY_ALIGN	    4096u

struct mb_iov_block {
	struct mb_iov_block *next;
	struct iovec iov[]; /* cap of them, then cap GPAs */
};

/* What a buffer has, where that cannot be mapped; the copy is in front of this. */
struct copy {
	struct copy *next;
	void *mem; /* to be freed */
	uint64_t len;
};

struct mb_chain_slot {
	struct mb_chain chain;
	struct mb_iov_block *block; /* NULL: the arrays below */
	struct copy *copies;
	struct iovec iov[MB_CHAIN_INLINE_IOV];
	uint64_t gpa[MB_CHAIN_INLINE_IOV];
	bool live;
};

static struct mb_chain_slot *slot_of(struct mb_chain *chain)
{
	return (struct mb_chain_slot *)chain; /* its first member */
}

int mb_virtq_fail(struct mb_virtq *vq, const char *why)
{
	if (!vq->broken) {
		vq->broken = true;
		vq->p.hooks->broken(vq, why);
	}
	return -EPROTO;
}

/* ---- set-up ---- */

static int map_part(struct mb_virtq *vq, struct mb_virtq_map *map, uint64_t gpa, uint64_t len,
	unsigned align, enum mb_dma_dir dir)
{
	int rc;

	if (gpa & (align - 1))
		return -EINVAL;
	rc = mb_dma_map(vq->p.dma, gpa, len, dir, &map->hva);
	if (rc)
		return rc;
	map->gpa = gpa;
	map->len = len;
	map->dir = dir;
	return 0;
}

static void unmap_part(struct mb_virtq *vq, struct mb_virtq_map *map)
{
	if (map->len)
		mb_dma_unmap(vq->p.dma, map->gpa, map->len, map->dir);
	map->len = 0;
}

static int map_rings(struct mb_virtq *vq, const char **why)
{
	const struct mb_virtq_params *p = &vq->p;
	uint64_t driver_len = vq->packed ? 4 : 6 + 2 * (uint64_t)p->size;
	uint64_t device_len = vq->packed ? 4 : 6 + 8 * (uint64_t)p->size;
	int rc;

	/*
	 * Alignments: virtio 1.2, 2.7 and 2.8.10.1. In the packed ring the device writes
	 * descriptors.
	 */
	*why = "descriptors of a queue are misaligned or not in RAM";
	rc = map_part(vq, &vq->desc, p->desc_gpa, 16 * (uint64_t)p->size, 16,
		vq->packed ? MB_DMA_WRITE : MB_DMA_READ);
	if (rc)
		return rc;
	*why = "driver area of a queue is misaligned or not in RAM";
	rc = map_part(vq, &vq->driver, p->driver_gpa, driver_len, vq->packed ? 4 : 2, MB_DMA_READ);
	if (rc)
		return rc;
	*why = "device area of a queue is misaligned or not in RAM";
	return map_part(vq, &vq->device, p->device_gpa, device_len, 4, MB_DMA_WRITE);
}

int mb_virtq_init(struct mb_virtq *vq, const struct mb_virtq_params *params, const char **why)
{
	int rc;

	memset(vq, 0, sizeof(*vq));
	vq->p = *params;
	vq->packed = params->features & 1ull << VIRTIO_F_RING_PACKED;
	vq->event_idx = params->features & 1ull << VIRTIO_RING_F_EVENT_IDX;
	vq->indirect = params->features & 1ull << VIRTIO_RING_F_INDIRECT_DESC;
	vq->avail_wrap = vq->used_wrap = true;

	*why = "a queue's size is not valid";
	if (!params->size || params->size > MB_VIRTQ_MAX_SIZE)
		return -EINVAL;
	if (!vq->packed && params->size & (params->size - 1u))
		return -EINVAL;
	rc = map_rings(vq, why);
	if (rc)
		goto err_rings;
	/* Not touched before a chain is used: a queue of 1,024 costs what it needs. */
	vq->slot = calloc(params->size, sizeof(*vq->slot));
	if (!vq->slot) {
		*why = "the monitor is out of memory";
		rc = -ENOMEM;
		goto err_rings;
	}
	vq->iov_budget = IOV_BUDGET_PER_DESC * params->size;
	if (vq->iov_budget < MB_CHAIN_MAX_IOV)
		vq->iov_budget = MB_CHAIN_MAX_IOV;
	return 0;

err_rings:
	unmap_part(vq, &vq->desc);
	unmap_part(vq, &vq->driver);
	unmap_part(vq, &vq->device);
	return rc;
}

/* ---- memory of chains ---- */

static unsigned class_cap(unsigned class)
{
	return 8u << class;
}

static unsigned class_of(unsigned n)
{
	unsigned class = 0;

	while (class_cap(class) < n)
		class ++;
	return class;
}

/* Frees blocks that no chain uses until n more entries fit into the budget. */
static bool trim_blocks(struct mb_virtq *vq, unsigned n)
{
	for (unsigned class = MB_IOV_CLASSES; class -- > 0;) {
		while (vq->free_iov[class]) {
			struct mb_iov_block *block = vq->free_iov[class];

			if (vq->iov_total + n <= vq->iov_budget)
				return true;
			vq->free_iov[class] = block->next;
			vq->iov_total -= class_cap(class);
			free(block);
		}
	}
	return vq->iov_total + n <= vq->iov_budget;
}

static struct mb_iov_block *get_block(struct mb_virtq *vq, unsigned class)
{
	struct mb_iov_block *block = vq->free_iov[class];
	unsigned cap = class_cap(class);

	if (block) {
		vq->free_iov[class] = block->next;
		return block;
	}
	if (!trim_blocks(vq, cap))
		return NULL;
	block = malloc(sizeof(*block) + cap * (sizeof(struct iovec) + sizeof(uint64_t)));
	if (block)
		vq->iov_total += cap;
	return block;
}

/* A chain with room for n entries; NULL if the long chains in flight have used the budget up. */
static struct mb_chain *get_chain(struct mb_virtq *vq, unsigned n)
{
	struct mb_chain *chain = vq->free;
	struct mb_chain_slot *slot = chain ? slot_of(chain) : &vq->slot[vq->n_fresh];

	slot->block = NULL;
	slot->copies = NULL;
	slot->chain.iov = slot->iov;
	slot->chain.gpa = slot->gpa;
	slot->chain.iov_cap = MB_CHAIN_INLINE_IOV;
	if (n > MB_CHAIN_INLINE_IOV) {
		unsigned class = class_of(n);

		slot->block = get_block(vq, class);
		if (!slot->block)
			return NULL;
		vq->n_blocks_out++;
		slot->chain.iov_cap = class_cap(class);
		slot->chain.iov = slot->block->iov;
		slot->chain.gpa = (uint64_t *)(slot->block->iov + slot->chain.iov_cap);
	}
	if (chain)
		vq->free = chain->next_free;
	else
		vq->n_fresh++;
	slot->live = true;
	return &slot->chain;
}

/* Memory is free again that a pop has waited for. */
static void end_starving(struct mb_virtq *vq)
{
	if (!vq->starved)
		return;
	vq->starved = false;
	vq->p.hooks->kick(vq);
}

static void free_copies(struct mb_virtq *vq, struct mb_chain_slot *slot)
{
	while (slot->copies) {
		struct copy *copy = slot->copies;

		slot->copies = copy->next;
		vq->copy_bytes -= copy->len;
		free(copy->mem);
	}
	end_starving(vq);
}

/* Unmaps the first n entries, of which copies are no RAM, and takes the chain's memory back. */
static void put_chain(struct mb_virtq *vq, struct mb_chain *chain, unsigned n)
{
	struct mb_chain_slot *slot = slot_of(chain);

	assert(slot->live);
	for (unsigned i = 0; i < n; i++)
		mb_dma_unmap(vq->p.dma, chain->gpa[i], chain->iov[i].iov_len,
			i < chain->n_out ? MB_DMA_READ : MB_DMA_WRITE);
	if (slot->block) {
		unsigned class = class_of(chain->iov_cap);

		slot->block->next = vq->free_iov[class];
		vq->free_iov[class] = slot->block;
		vq->n_blocks_out--;
		end_starving(vq);
	}
	if (slot->copies)
		free_copies(vq, slot);
	slot->live = false;
	chain->next_free = vq->free;
	vq->free = chain;
}

void mb_virtq_finish(struct mb_virtq *vq)
{
	for (unsigned i = 0; i < vq->n_fresh; i++) {
		struct mb_chain_slot *slot = &vq->slot[i];

		vq->starved = false;
		if (slot->live)
			put_chain(vq, &slot->chain, slot->chain.n_out + slot->chain.n_in);
	}
	for (unsigned class = 0; class < MB_IOV_CLASSES; class ++) {
		while (vq->free_iov[class]) {
			struct mb_iov_block *block = vq->free_iov[class];

			vq->free_iov[class] = block->next;
			free(block);
		}
	}
	free(vq->slot);
	vq->slot = NULL;
	vq->n_fresh = 0;
	vq->free = NULL;
	unmap_part(vq, &vq->desc);
	unmap_part(vq, &vq->driver);
	unmap_part(vq, &vq->device);
}

/* ---- snapshots ---- */

unsigned mb_virtq_n_out(const struct mb_virtq *vq)
{
	unsigned n = 0;

	for (unsigned i = 0; i < vq->n_fresh; i++)
		n += vq->slot[i].live;
	return n;
}

void mb_virtq_rewind(struct mb_virtq *vq)
{
	vq->starved = false;
	for (unsigned i = 0; i < vq->n_fresh; i++) {
		struct mb_chain_slot *slot = &vq->slot[i];

		if (slot->live)
			put_chain(vq, &slot->chain, slot->chain.n_out + slot->chain.n_in);
	}
	vq->next_avail = vq->used_idx;
	vq->avail_wrap = vq->used_wrap;
	vq->n_desc_out = 0;
}

struct mb_virtq_place mb_virtq_get_place(const struct mb_virtq *vq)
{
	return (struct mb_virtq_place){.used_idx = vq->used_idx, .used_wrap = vq->used_wrap};
}

int mb_virtq_set_place(struct mb_virtq *vq, struct mb_virtq_place place)
{
	if (vq->packed && place.used_idx >= vq->p.size)
		return -EINVAL;
	vq->used_idx = vq->next_avail = vq->avail_seen = place.used_idx;
	vq->used_wrap = vq->avail_wrap = place.used_wrap;
	/* Whatever the driver was told last: it is told anew at the first look that finds nothing. */
	vq->quiet = true;
	return 0;
}

/* ---- gathering ---- */

int mb_gather_add(
	struct mb_virtq *vq, struct mb_gather *g, uint64_t gpa, uint32_t len, uint16_t flags)
{
	bool in = flags & VRING_DESC_F_WRITE;
	unsigned n = g->n_out + g->n_in;

	/* virtio 1.2, 2.7.4.2. */
	if (!in && g->in_part)
		return mb_virtq_fail(vq, "a descriptor to read comes after one to write");
	g->in_part = in;
	if (g->out_bytes + g->in_bytes + len > MAX_CHAIN_BYTES)
		return mb_virtq_fail(vq, "a descriptor chain has more than 2^32 bytes");
	/* The specification does not forbid empty buffers; they mean nothing. */
	if (!len)
		return 0;
	if (n == MB_CHAIN_MAX_IOV)
		return mb_virtq_fail(vq, "a descriptor chain is too long");
	g->seg[n] = (struct mb_seg){.gpa = gpa, .len = len};
	if (in) {
		g->n_in++;
		g->in_bytes += len;
	} else {
		g->n_out++;
		g->out_bytes += len;
	}
	return 0;
}

/*
 * The chain in an indirect table. In a split ring it is linked by `next` from entry 0 on (2.7.5.3),
 * in a packed one it is the whole table and WRITE is its only flag (2.8.7).
 *
 * The queue's size bounds it by the letter of the specification, but Linux asks only for its own
 * limits; so the limit is ours, and the table's own length for a chain that runs in circles.
 */
int mb_gather_indirect(struct mb_virtq *vq, struct mb_gather *g, uint64_t gpa, uint32_t len)
{
	struct vring_desc table[MB_CHAIN_MAX_IOV];
	unsigned n = len / sizeof(table[0]);
	unsigned at = 0;

	if (!vq->indirect)
		return mb_virtq_fail(vq, "an indirect descriptor without the feature");
	if (!len || len % sizeof(table[0]))
		return mb_virtq_fail(vq, "an indirect table's length is not a multiple of 16");
	if (n > MB_CHAIN_MAX_IOV)
		return mb_virtq_fail(vq, "an indirect table is too long");
	if (mb_dma_read(vq->p.dma, gpa, table, len))
		return mb_virtq_fail(vq, "an indirect table is not in RAM");

	for (unsigned i = 0; i < n; i++) {
		const struct vring_desc *d = &table[at];
		/* A packed descriptor has its flags where a split one has `next`. */
		uint16_t flags = vq->packed ? d->next : d->flags;
		int rc;

		if (!vq->packed && flags & VRING_DESC_F_INDIRECT)
			return mb_virtq_fail(vq, "an indirect table inside an indirect table");
		rc = mb_gather_add(vq, g, d->addr, d->len, flags);
		if (rc)
			return rc;
		if (vq->packed) {
			at++;
			continue;
		}
		if (!(flags & VRING_DESC_F_NEXT))
			return 0;
		at = d->next;
		if (at >= n)
			return mb_virtq_fail(vq, "an indirect chain leaves its table");
	}
	if (!vq->packed)
		return mb_virtq_fail(vq, "an indirect chain has no end");
	return 0;
}

/* ---- the queue as a device sees it ---- */

/*
 * What the device reads, read once and for all; placed in its page as it is in the guest's, for I/O
 * that has to be aligned. -EAGAIN: there is no room now.
 */
static int copy_seg(
	struct mb_virtq *vq, struct mb_chain *chain, const struct mb_seg *seg, void **to)
{
	struct mb_chain_slot *slot = slot_of(chain);
	uint64_t skew = seg->gpa % COPY_ALIGN, end = (skew + seg->len + 15) / 16 * 16, own = 0;
	struct copy *copy;
	uint8_t *mem;

	for (copy = slot->copies; copy; copy = copy->next)
		own += copy->len;
	if (own + seg->len > MB_VIRTQ_COPY_BYTES)
		return -EFAULT;
	if (vq->copy_bytes + seg->len > MB_VIRTQ_COPY_BYTES ||
		posix_memalign((void **)&mem, COPY_ALIGN, end + sizeof(*copy)))
		return -EAGAIN;
	copy = (struct copy *)(mem + end);
	*copy = (struct copy){.next = slot->copies, .mem = mem, .len = seg->len};
	slot->copies = copy;
	vq->copy_bytes += seg->len;
	*to = mem + skew;
	return mb_dma_read(vq->p.dma, seg->gpa, *to, seg->len);
}

/* Maps what g found: 0, -EAGAIN if there is no memory for it now, or mb_virtq_fail's value. */
static int map_chain(struct mb_virtq *vq, const struct mb_gather *g, struct mb_chain **out)
{
	unsigned n = g->n_out + g->n_in;
	struct mb_chain *chain;

	/* What a chain gives back that did not fit is no reason to try it again. */
	vq->starved = false;
	if (!vq->free && vq->n_fresh == vq->p.size)
		return mb_virtq_fail(vq, "more chains are available than there are descriptors");
	chain = get_chain(vq, n);
	if (!chain)
		return -EAGAIN;
	chain->n_out = g->n_out;
	chain->n_in = g->n_in;
	chain->out_bytes = g->out_bytes;
	chain->in_bytes = g->in_bytes;
	chain->head = g->head;
	chain->n_desc = (uint16_t)g->n_desc;
	chain->user = NULL;
	for (unsigned i = 0; i < n; i++) {
		const struct mb_seg *seg = &g->seg[i];
		int rc = mb_dma_map(vq->p.dma, seg->gpa, seg->len,
			i < g->n_out ? MB_DMA_READ : MB_DMA_WRITE, &chain->iov[i].iov_base);

		if (rc == -EXDEV)
			rc = copy_seg(vq, chain, seg, &chain->iov[i].iov_base);
		if (rc) {
			put_chain(vq, chain, i);
			return rc == -EAGAIN ? rc : mb_virtq_fail(vq, "a buffer is not in RAM");
		}
		chain->iov[i].iov_len = seg->len;
		chain->gpa[i] = seg->gpa;
	}
	*out = chain;
	return 0;
}

int mb_virtq_pop(struct mb_virtq *vq, struct mb_chain **chain)
{
	struct mb_gather g;
	int rc;

	if (vq->broken || atomic_load_explicit(vq->p.stopped, memory_order_relaxed))
		return -EPROTO;
	if (vq->in_kick && !vq->share) {
		vq->p.hooks->kick(vq);
		return 0;
	}
	g.n_out = g.n_in = g.n_desc = 0;
	g.out_bytes = g.in_bytes = 0;
	g.in_part = false;
	rc = vq->packed ? mb_packed_next(vq, &g) : mb_split_next(vq, &g);
	if (rc <= 0)
		return rc;
	rc = map_chain(vq, &g, chain);
	if (rc == -EAGAIN) {
		/*
		 * The push that frees a block or a copy asks for another kick; nothing in flight:
		 * no memory at all.
		 */
		if (!vq->n_blocks_out && !vq->copy_bytes)
			return mb_virtq_fail(vq, "the monitor is out of memory");
		vq->starved = true;
		return 0;
	}
	if (rc)
		return rc;
	if (vq->packed)
		mb_packed_advance(vq, g.n_desc, false);
	else
		mb_split_advance(vq, g.n_desc, false);
	if (vq->in_kick)
		vq->share--;
	return 1;
}

void mb_virtq_unpop(struct mb_virtq *vq, struct mb_chain *chain)
{
	if (vq->packed)
		mb_packed_advance(vq, chain->n_desc, true);
	else
		mb_split_advance(vq, chain->n_desc, true);
	put_chain(vq, chain, chain->n_out + chain->n_in);
}

void mb_virtq_push_all(
	struct mb_virtq *vq, struct mb_chain *const *chains, const uint32_t *written, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		assert(written[i] <= chains[i]->in_bytes);
		/* The hold ends before the guest may take the memory for something else. */
		put_chain(vq, chains[i], chains[i]->n_out + chains[i]->n_in);
	}
	if (vq->packed)
		mb_packed_use(vq, chains, written, n);
	else
		mb_split_use(vq, chains, written, n);
}

void mb_virtq_push(struct mb_virtq *vq, struct mb_chain *chain, uint32_t written)
{
	mb_virtq_push_all(vq, &chain, &written, 1);
}

void mb_virtq_signal(struct mb_virtq *vq)
{
	uint32_t n = vq->n_unsignalled;

	if (!n)
		return;
	vq->n_unsignalled = 0;
	/*
	 * Used entries before the driver's wish (2.7.10, 2.8.21): pairs with the barrier between
	 * the driver's "tell me" and its last look at the ring.
	 */
	atomic_thread_fence(memory_order_seq_cst);
	if (vq->packed ? mb_packed_wants_signal(vq, n) : mb_split_wants_signal(vq, n))
		vq->p.hooks->interrupt(vq);
}

void mb_virtq_kick_begin(struct mb_virtq *vq)
{
	vq->in_kick = true;
	vq->share = 2u * vq->p.size;
	if (vq->share < 64)
		vq->share = 64;
}

void mb_virtq_kick_end(struct mb_virtq *vq)
{
	vq->in_kick = false;
}

unsigned mb_virtq_index(const struct mb_virtq *vq)
{
	return vq->p.index;
}

unsigned mb_virtq_size(const struct mb_virtq *vq)
{
	return vq->p.size;
}

struct mb_virtio *mb_virtq_device(const struct mb_virtq *vq)
{
	return vq->p.vdev;
}

/* ---- copies ---- */

static size_t copy(
	const struct iovec *iov, unsigned n, size_t offset, void *to, const void *from, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		size_t here = iov[i].iov_len, want = len - done;

		if (offset >= here) {
			offset -= here;
			continue;
		}
		here -= offset;
		if (here > want)
			here = want;
		if (to)
			memcpy((char *)to + done, (const char *)iov[i].iov_base + offset, here);
		else
			memcpy((char *)iov[i].iov_base + offset, (const char *)from + done, here);
		done += here;
		offset = 0;
	}
	return done;
}

size_t mb_chain_read(const struct mb_chain *chain, size_t offset, void *buf, size_t len)
{
	return copy(chain->iov, chain->n_out, offset, buf, NULL, len);
}

size_t mb_chain_write(const struct mb_chain *chain, size_t offset, const void *buf, size_t len)
{
	return copy(chain->iov + chain->n_out, chain->n_in, offset, NULL, buf, len);
}
