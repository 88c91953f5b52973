// SPDX-License-Identifier: Apache-2.0
#include "replica_internal.h"

/* What the kernel or a device writes or reads by home's address, behind page tables. */

static int release_part(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	__atomic_sub_fetch(&b->holds, 1, __ATOMIC_SEQ_CST);
	return 0;
}

static int hold_part(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	uint64_t *held = arg;
	int rc;

	__atomic_add_fetch(&b->holds, 1, __ATOMIC_SEQ_CST);
	rc = MB_REPLICA_WRONG == WRONG_HOLD ? 0 : mb_replica_collapse_part(r, b, first, n, NULL);
	if (rc)
		release_part(r, b, first, n, NULL);
	else
		*held = first + n;
	return rc;
}

void mb_replicas_release(struct mb_replicas *r, uint64_t offset, uint64_t len)
{
	if (r)
		mb_replica_each_block(r, offset, len, release_part, NULL);
}

int mb_replicas_hold(struct mb_replicas *r, uint64_t offset, uint64_t len)
{
	uint64_t held = 0;
	int rc = r ? mb_replica_each_block(r, offset, len, hold_part, &held) : 0;

	if (rc && held)
		mb_replicas_release(r, offset, held * PAGE - offset);
	return rc;
}

static int unpin_part(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	__atomic_sub_fetch(&b->pins, 1, __ATOMIC_SEQ_CST);
	return 0;
}

/* Who merges says so, and looks then: one of the two sees the other. */
static int pin_part(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	__atomic_add_fetch(&b->pins, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&b->merging, __ATOMIC_SEQ_CST)) {
		pthread_mutex_lock(&b->lock);
		pthread_mutex_unlock(&b->lock);
	}
	return 0;
}

void mb_replicas_pin(struct mb_replicas *r, uint64_t offset, uint64_t len)
{
	if (r)
		mb_replica_each_block(r, offset, len, pin_part, NULL);
}

void mb_replicas_unpin(struct mb_replicas *r, uint64_t offset, uint64_t len)
{
	if (r)
		mb_replica_each_block(r, offset, len, unpin_part, NULL);
}
