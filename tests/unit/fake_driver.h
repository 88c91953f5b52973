/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TESTS_FAKE_DRIVER_H
#define MIRRORBALL_TESTS_FAKE_DRIVER_H

#include "fake_dma.h"

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>

/*
 * The driver's side of a virtqueue, split or packed (virtio 1.2, 2.7 and 2.8), written from the
 * specification and apart from devices/virtq*.c, for differential tests. One thread.
 */
#define FAKE_RING_MAX 1024

struct fake_seg {
	uint64_t gpa;
	uint32_t len;
	bool in; /* the device writes it */
};

struct fake_ring {
	struct fake_dma *ram;
	bool packed, event_idx;
	uint16_t size;
	uint64_t desc_gpa, driver_gpa, device_gpa, end_gpa;

	uint16_t avail, used; /* split: free-running; packed: positions */
	bool avail_wrap, used_wrap;
	unsigned n_free;  /* descriptors */
	unsigned n_added; /* entries (split) or descriptors (packed) since fake_ring_must_kick */
	uint16_t free[FAKE_RING_MAX]; /* split: stack of free descriptors; packed: of free ids */
	unsigned n_free_ids;
	struct {
		uint16_t n_desc;
		uint16_t first[FAKE_RING_MAX]; /* split: its descriptors */
		void *cookie;
		bool live;
	} * req; /* by head or id */
};

static inline void *fake_ring_at(struct fake_ring *r, uint64_t gpa)
{
	return fake_dma_at(r->ram, gpa);
}

/* Places an empty ring at gpa (page-aligned); end_gpa is what is behind it. */
static inline void fake_ring_init(
	struct fake_ring *r, struct fake_dma *ram, uint64_t gpa, uint16_t size, uint64_t features)
{
	memset(r, 0, sizeof(*r));
	r->ram = ram;
	r->size = size;
	r->packed = features & 1ull << VIRTIO_F_RING_PACKED;
	r->event_idx = features & 1ull << VIRTIO_RING_F_EVENT_IDX;
	r->desc_gpa = gpa;
	r->driver_gpa = gpa + 16u * size;
	r->device_gpa = mb_align_up(r->driver_gpa + 6 + 2u * size, 4);
	r->end_gpa = mb_align_up(r->device_gpa + 6 + 8u * size, 4096);
	memset(fake_ring_at(r, gpa), 0, r->end_gpa - gpa);
	r->avail_wrap = r->used_wrap = true;
	r->n_free = r->n_free_ids = size;
	for (unsigned i = 0; i < size; i++)
		r->free[i] = (uint16_t)(size - 1u - i);
	r->req = calloc(size, sizeof(*r->req));
	if (!r->req)
		abort();
}

static inline void fake_ring_finish(struct fake_ring *r)
{
	free(r->req);
}

static inline uint16_t *fake_split_avail(struct fake_ring *r, unsigned index)
{
	return (uint16_t *)fake_ring_at(r, r->driver_gpa) + index;
}

static inline uint16_t *fake_split_used(struct fake_ring *r, unsigned offset)
{
	return (uint16_t *)((char *)fake_ring_at(r, r->device_gpa) + offset);
}

/* Writes an indirect table for the segments at gpa. */
static inline void fake_ring_table(
	struct fake_ring *r, uint64_t gpa, const struct fake_seg *seg, unsigned n)
{
	struct vring_desc d;

	for (unsigned i = 0; i < n; i++) {
		uint16_t flags = seg[i].in ? VRING_DESC_F_WRITE : 0;

		d = (struct vring_desc){.addr = seg[i].gpa, .len = seg[i].len};
		if (r->packed) {
			d.next = flags;
			d.flags = (uint16_t)(0xbeef + i); /* an id, which means nothing here */
		} else {
			/* Backwards through the table, but for its first entry. */
			d.flags = (uint16_t)(flags | (i + 1 < n ? VRING_DESC_F_NEXT : 0));
			d.next = (uint16_t)(n - 1 - i);
		}
		memcpy((char *)fake_ring_at(r, gpa) + 16 * (r->packed || !i ? i : n - i), &d, 16);
	}
}

static inline int fake_split_add(
	struct fake_ring *r, const struct fake_seg *seg, unsigned n, int table_at, void *cookie)
{
	struct vring_desc *desc = fake_ring_at(r, r->desc_gpa);
	uint16_t head = r->free[r->n_free - 1];

	r->req[head].n_desc = (uint16_t)n;
	r->req[head].cookie = cookie;
	r->req[head].live = true;
	for (unsigned i = 0; i < n; i++) {
		uint16_t at = r->free[--r->n_free];

		r->req[head].first[i] = at;
		desc[at].addr = seg[i].gpa;
		desc[at].len = seg[i].len;
		desc[at].flags = seg[i].in ? VRING_DESC_F_WRITE : 0;
		if ((int)i == table_at)
			desc[at].flags |= VRING_DESC_F_INDIRECT;
		if (i + 1 < n) {
			desc[at].flags |= VRING_DESC_F_NEXT;
			desc[at].next = r->free[r->n_free - 1];
		}
	}
	__atomic_store_n(fake_split_avail(r, 2 + r->avail % r->size), head, __ATOMIC_RELAXED);
	r->avail++;
	r->n_added++;
	__atomic_store_n(fake_split_avail(r, 1), r->avail, __ATOMIC_RELEASE);
	return head;
}

static inline int fake_packed_add(
	struct fake_ring *r, const struct fake_seg *seg, unsigned n, int table_at, void *cookie)
{
	struct vring_packed_desc *desc = fake_ring_at(r, r->desc_gpa);
	uint16_t id = r->free[--r->n_free_ids], first = r->avail, first_flags = 0;

	r->req[id].n_desc = (uint16_t)n;
	r->req[id].cookie = cookie;
	r->req[id].live = true;
	for (unsigned i = 0; i < n; i++) {
		uint16_t flags = seg[i].in ? VRING_DESC_F_WRITE : 0;

		flags |= (uint16_t)(r->avail_wrap ? 1u << 7 : 1u << 15);
		if ((int)i == table_at)
			flags |= VRING_DESC_F_INDIRECT;
		if (i + 1 < n)
			flags |= VRING_DESC_F_NEXT;
		desc[r->avail].addr = seg[i].gpa;
		desc[r->avail].len = seg[i].len;
		desc[r->avail].id = id; /* of the last counts */
		if (i)
			__atomic_store_n(&desc[r->avail].flags, flags, __ATOMIC_RELAXED);
		else
			first_flags = flags;
		if (++r->avail == r->size) {
			r->avail = 0;
			r->avail_wrap = !r->avail_wrap;
		}
	}
	r->n_free -= n;
	r->n_added += n;
	__atomic_store_n(&desc[first].flags, first_flags, __ATOMIC_RELEASE);
	return id;
}

/*
 * Makes a chain of n segments available; segment table_at (-1: none) is an indirect table. Returns
 * its head or id, -1 if there is no room.
 */
static inline int fake_ring_add(
	struct fake_ring *r, const struct fake_seg *seg, unsigned n, int table_at, void *cookie)
{
	if (n > r->n_free)
		return -1;
	return r->packed ? fake_packed_add(r, seg, n, table_at, cookie)
			 : fake_split_add(r, seg, n, table_at, cookie);
}

/* Whether the driver must notify the device of what it added since the last call. */
static inline bool fake_ring_must_kick(struct fake_ring *r)
{
	unsigned n = r->n_added;
	uint32_t event;
	unsigned flags, off;

	r->n_added = 0;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!n)
		return false;
	if (!r->packed) {
		uint16_t at;

		if (!r->event_idx)
			return !(__atomic_load_n(fake_split_used(r, 0), __ATOMIC_RELAXED) & 1);
		at = __atomic_load_n(fake_split_used(r, 4 + 8u * r->size), __ATOMIC_RELAXED);
		/* Passed `at` on the way: at in [avail - n, avail). */
		return (uint16_t)(r->avail - 1 - at) < n;
	}
	event = __atomic_load_n((uint32_t *)fake_ring_at(r, r->device_gpa), __ATOMIC_RELAXED);
	flags = event >> 16;
	off = event & 0x7fff;
	if (flags == 0 || flags == 1)
		return flags == 0;
	/* How far behind us the wanted descriptor is, in one lap of 2 * size positions. */
	off += (event >> 15 & 1) == r->avail_wrap ? 0 : r->size;
	return (r->avail + 2u * r->size - 1 - off) % (2u * r->size) < n;
}

/* The next used chain's cookie and length; false if there is none. */
static inline bool fake_ring_get_used(struct fake_ring *r, void **cookie, uint32_t *len)
{
	uint32_t id;

	if (r->packed) {
		struct vring_packed_desc *d =
			(struct vring_packed_desc *)fake_ring_at(r, r->desc_gpa) + r->used;
		uint16_t flags = __atomic_load_n(&d->flags, __ATOMIC_ACQUIRE);
		bool a = flags & 1u << 7, u = flags & 1u << 15;

		if (a != r->used_wrap || u != r->used_wrap)
			return false;
		id = d->id;
		*len = flags & VRING_DESC_F_WRITE ? d->len : 0;
	} else {
		const struct vring_used_elem *e;

		if (__atomic_load_n(fake_split_used(r, 2), __ATOMIC_ACQUIRE) == r->used)
			return false;
		e = (const void *)fake_split_used(r, 4 + 8u * (r->used % r->size));
		id = e->id;
		*len = e->len;
	}
	if (id >= r->size || !r->req[id].live)
		abort(); /* the device gave back what it never had */
	r->req[id].live = false;
	*cookie = r->req[id].cookie;
	if (r->packed) {
		r->free[r->n_free_ids++] = (uint16_t)id;
		r->n_free += r->req[id].n_desc;
		r->used = (uint16_t)(r->used + r->req[id].n_desc);
		if (r->used >= r->size) {
			r->used = (uint16_t)(r->used - r->size);
			r->used_wrap = !r->used_wrap;
		}
	} else {
		for (unsigned i = r->req[id].n_desc; i-- > 0;)
			r->free[r->n_free++] = r->req[id].first[i];
		r->used++;
	}
	return true;
}

/*
 * Asks for an interrupt with the next used chain, or for none; then look once more for used ones.
 */
static inline void fake_ring_want_irq(struct fake_ring *r, bool want)
{
	if (r->packed) {
		uint32_t flags = !want ? 1 : r->event_idx ? 2 : 0;

		__atomic_store_n((uint32_t *)fake_ring_at(r, r->driver_gpa),
			flags << 16 | (uint32_t)r->used_wrap << 15 | r->used, __ATOMIC_RELAXED);
	} else if (r->event_idx) {
		/* No way to ask for none: an index that is far away. */
		__atomic_store_n(fake_split_avail(r, 2u + r->size),
			(uint16_t)(want ? r->used : r->used - 1), __ATOMIC_RELAXED);
	} else {
		__atomic_store_n(fake_split_avail(r, 0), (uint16_t)!want, __ATOMIC_RELAXED);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#endif
