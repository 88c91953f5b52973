// SPDX-License-Identifier: Apache-2.0
#include "virtq.h"

/*
 * The split ring (virtio 1.2, 2.7).
 *
 *   driver area (avail): flags, idx, ring[size], used_event
 *   device area (used):  flags, idx, {id, len}[size], avail_event
 */
static const uint16_t *avail_field(const struct mb_virtq *vq, unsigned index)
{
	return (const uint16_t *)vq->driver.hva + index;
}

static void *used_field(const struct mb_virtq *vq, unsigned offset)
{
	return (char *)vq->device.hva + offset;
}

static void set_quiet(struct mb_virtq *vq, bool quiet)
{
	/* With the event index flags stay 0 (2.7.10.2) and avail_event says how far we have got. */
	if (vq->event_idx) {
		if (!quiet)
			__atomic_store_n((uint16_t *)used_field(vq, 4 + 8u * vq->p.size),
				vq->next_avail, __ATOMIC_RELAXED);
		return;
	}
	if (vq->quiet != quiet)
		__atomic_store_n((uint16_t *)used_field(vq, 0), quiet ? VRING_USED_F_NO_NOTIFY : 0,
			__ATOMIC_RELAXED);
	vq->quiet = quiet;
}

/* Reads avail->idx: 1 if there is something new, 0, or mb_virtq_fail's value. */
static int look(struct mb_virtq *vq)
{
	/* Pairs with the driver's barrier between the entry and idx (2.7.13.3.1). */
	vq->avail_seen = __atomic_load_n(avail_field(vq, 1), __ATOMIC_ACQUIRE);
	if ((uint16_t)(vq->avail_seen - vq->next_avail) > vq->p.size)
		return mb_virtq_fail(
			vq, "the available index has moved by more than the queue's size");
	return vq->avail_seen != vq->next_avail;
}

static int gather(struct mb_virtq *vq, struct mb_gather *g)
{
	const struct vring_desc *desc = vq->desc.hva;
	unsigned at = g->head;

	for (g->n_desc = 1; g->n_desc <= vq->p.size; g->n_desc++) {
		uint64_t gpa = mb_load64(&desc[at].addr);
		uint64_t rest = mb_load64(&desc[at].len);
		uint32_t len = (uint32_t)rest;
		uint16_t flags = (uint16_t)(rest >> 32), next = (uint16_t)(rest >> 48);
		int rc;

		if (flags & VRING_DESC_F_INDIRECT) {
			if (flags & VRING_DESC_F_NEXT)
				return mb_virtq_fail(
					vq, "an indirect descriptor is chained to another");
			rc = mb_gather_indirect(vq, g, gpa, len);
		} else {
			rc = mb_gather_add(vq, g, gpa, len, flags);
		}
		if (rc)
			return rc;
		if (!(flags & VRING_DESC_F_NEXT))
			return 1;
		if (next >= vq->p.size)
			return mb_virtq_fail(vq, "a descriptor's next is outside the table");
		at = next;
	}
	return mb_virtq_fail(vq, "a descriptor chain is longer than the queue");
}

int mb_split_next(struct mb_virtq *vq, struct mb_gather *g)
{
	if (vq->next_avail == vq->avail_seen) {
		int rc = look(vq);

		if (!rc) {
			set_quiet(vq, false);
			/*
			 * "Notify me" before the last look: pairs with the driver's barrier between
			 * its idx and its look at our wish (2.7.13.4.1).
			 */
			atomic_thread_fence(memory_order_seq_cst);
			rc = look(vq);
		}
		if (rc <= 0)
			return rc;
		set_quiet(vq, true);
	}
	g->head = mb_load16(avail_field(vq, 2 + (vq->next_avail & (vq->p.size - 1u))));
	if (g->head >= vq->p.size)
		return mb_virtq_fail(vq, "an available entry is outside the descriptor table");
	return gather(vq, g);
}

void mb_split_advance(struct mb_virtq *vq, unsigned n_desc, bool back)
{
	(void)n_desc;
	vq->next_avail += back ? -1 : 1;
}

void mb_split_use(
	struct mb_virtq *vq, struct mb_chain *const *chains, const uint32_t *written, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct vring_used_elem *elem =
			used_field(vq, 4 + 8 * (vq->used_idx & (vq->p.size - 1u)));

		__atomic_store_n(&elem->id, (uint32_t)chains[i]->head, __ATOMIC_RELAXED);
		__atomic_store_n(&elem->len, written[i], __ATOMIC_RELAXED);
		vq->used_idx++;
	}
	vq->n_unsignalled += n;
	/* 2.7.8.2: the entries and the data before idx. */
	__atomic_store_n((uint16_t *)used_field(vq, 2), vq->used_idx, __ATOMIC_RELEASE);
}

bool mb_split_wants_signal(struct mb_virtq *vq, uint32_t n)
{
	if (!vq->event_idx)
		return !(mb_load16(avail_field(vq, 0)) & VRING_AVAIL_F_NO_INTERRUPT);
	if (n > UINT16_MAX)
		return true;
	return vring_need_event(mb_load16(avail_field(vq, 2u + vq->p.size)), vq->used_idx,
		(uint16_t)(vq->used_idx - n));
}
