// SPDX-License-Identifier: Apache-2.0
#include "virtq.h"

/*
 * The packed ring (virtio 1.2, 2.8): one ring of descriptors that both sides write, each descriptor
 * marked available or used relative to the wrap counter of its lap, and two areas of 4 bytes,
 * {offset | wrap << 15, flags}, with which each side says when it wants to be notified.
 */
#define FLAG_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define FLAG_USED  (1u << VRING_PACKED_DESC_F_USED)

static struct vring_packed_desc *desc_at(const struct mb_virtq *vq, unsigned at)
{
	return (struct vring_packed_desc *)vq->desc.hva + at;
}

static void set_quiet(struct mb_virtq *vq, bool quiet)
{
	uint32_t off_wrap = vq->next_avail | (uint32_t)vq->avail_wrap << 15;
	uint32_t flags =
		vq->event_idx ? VRING_PACKED_EVENT_FLAG_DESC : VRING_PACKED_EVENT_FLAG_ENABLE;

	if (quiet) {
		if (vq->quiet)
			return;
		flags = VRING_PACKED_EVENT_FLAG_DISABLE;
	}
	vq->quiet = quiet;
	/* One store: the driver never sees new flags with an old offset. */
	__atomic_store_n((uint32_t *)vq->device.hva, off_wrap | flags << 16, __ATOMIC_RELAXED);
}

static bool is_available(const struct mb_virtq *vq)
{
	/*
	 * Pairs with the driver's barrier before the flags of a list's first descriptor
	 * (2.8.21.3.1).
	 */
	uint16_t flags = __atomic_load_n(&desc_at(vq, vq->next_avail)->flags, __ATOMIC_ACQUIRE);
	bool avail = flags & FLAG_AVAIL, used = flags & FLAG_USED;

	return avail == vq->avail_wrap && used != vq->avail_wrap;
}

static int gather(struct mb_virtq *vq, struct mb_gather *g)
{
	unsigned at = vq->next_avail;

	for (g->n_desc = 1; vq->n_desc_out + g->n_desc <= vq->p.size; g->n_desc++) {
		const struct vring_packed_desc *d = desc_at(vq, at);
		uint64_t gpa = mb_load64(&d->addr);
		uint64_t rest = mb_load64(&d->len);
		uint32_t len = (uint32_t)rest;
		uint16_t id = (uint16_t)(rest >> 32), flags = (uint16_t)(rest >> 48);
		int rc;

		if (flags & VRING_DESC_F_INDIRECT) {
			/* 2.8.19.1: unlike in a split ring, a list has descriptors of one kind. */
			if (flags & VRING_DESC_F_NEXT || g->n_desc > 1)
				return mb_virtq_fail(
					vq, "an indirect descriptor is chained to another");
			rc = mb_gather_indirect(vq, g, gpa, len);
		} else {
			rc = mb_gather_add(vq, g, gpa, len, flags);
		}
		if (rc)
			return rc;
		if (!(flags & VRING_DESC_F_NEXT)) {
			g->head = id; /* 2.8.6: of the last descriptor */
			return 1;
		}
		if (++at == vq->p.size)
			at = 0;
	}
	return mb_virtq_fail(vq, "a descriptor chain is longer than the queue has room for");
}

int mb_packed_next(struct mb_virtq *vq, struct mb_gather *g)
{
	if (!is_available(vq)) {
		set_quiet(vq, false);
		/* "Notify me" before the last look, as in mb_split_next. */
		atomic_thread_fence(memory_order_seq_cst);
		if (!is_available(vq))
			return 0;
	}
	set_quiet(vq, true);
	return gather(vq, g);
}

/* Moves a position by n, at most one lap, in the direction of `back`. */
static void move(const struct mb_virtq *vq, uint16_t *at, bool *wrap, unsigned n, bool back)
{
	unsigned to = back ? *at + vq->p.size - n : *at + n;

	if (back ? to < vq->p.size : to >= vq->p.size)
		*wrap = !*wrap;
	*at = (uint16_t)(to % vq->p.size);
}

void mb_packed_advance(struct mb_virtq *vq, unsigned n_desc, bool back)
{
	move(vq, &vq->next_avail, &vq->avail_wrap, n_desc, back);
	vq->n_desc_out += back ? -n_desc : n_desc;
}

void mb_packed_use(
	struct mb_virtq *vq, struct mb_chain *const *chains, const uint32_t *written, unsigned n)
{
	struct vring_packed_desc *first = desc_at(vq, vq->used_idx);
	uint16_t first_flags = 0;

	for (unsigned i = 0; i < n; i++) {
		struct vring_packed_desc *d = desc_at(vq, vq->used_idx);
		unsigned flags = vq->used_wrap ? FLAG_AVAIL | FLAG_USED : 0;

		if (written[i])
			flags |= VRING_DESC_F_WRITE; /* 2.8.4 */
		__atomic_store_n(&d->id, chains[i]->head, __ATOMIC_RELAXED);
		__atomic_store_n(&d->len, written[i], __ATOMIC_RELAXED);
		if (i)
			__atomic_store_n(&d->flags, (uint16_t)flags, __ATOMIC_RELEASE);
		else
			first_flags = (uint16_t)flags;
		move(vq, &vq->used_idx, &vq->used_wrap, chains[i]->n_desc, false);
		vq->n_desc_out -= chains[i]->n_desc;
		vq->n_unsignalled += chains[i]->n_desc;
	}
	/* The driver goes on from the first: it is the last to appear, after data and the rest. */
	__atomic_store_n(&first->flags, first_flags, __ATOMIC_RELEASE);
}

bool mb_packed_wants_signal(struct mb_virtq *vq, uint32_t n)
{
	uint32_t event = mb_load32(vq->driver.hva);
	unsigned flags = event >> 16 & 3, off = event & 0x7fff;
	bool wrap = event >> 15 & 1;

	if (flags == VRING_PACKED_EVENT_FLAG_DISABLE)
		return false;
	if (flags != VRING_PACKED_EVENT_FLAG_DESC || !vq->event_idx || n >= vq->p.size)
		return true;
	/* An offset of the other lap lies a ring's length behind our position. */
	if (wrap != vq->used_wrap)
		off -= vq->p.size;
	return vring_need_event((uint16_t)off, vq->used_idx, (uint16_t)(vq->used_idx - n));
}
