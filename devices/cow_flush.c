// SPDX-License-Identifier: Apache-2.0
#include "cow_impl.h"
#include <errno.h>
#include <string.h>

/*
 * How entries of the map get into an overlay's file.
 *
 *   take entries as they are -> sync: what they name is durable -> write them -> ... -> sync
 *
 * A chunk that changes while its older form is written is dirty again, for the next flush: one that
 * is in progress writes no more than there was at its beginning.
 */

void mb_cow_mark_dirty(struct mb_cow *cow, uint64_t cluster)
{
	uint64_t chunk = cluster / MB_QCOW2_CHUNK_ENTRIES, bit = 1ull << chunk % 64;

	if (!cow->qcow2 || cow->dirty_bits[chunk / 64] & bit)
		return;
	cow->dirty_bits[chunk / 64] |= bit;
	cow->dirty[(cow->dirty_first + cow->n_dirty++) % cow->n_chunks] = (uint32_t)chunk;
}

/* The entries before a claim's are in the file's map; a claim changes none until it is settled. */
static void take_batch(struct mb_cow *cow, struct mb_cow_flush *flush)
{
	uint64_t n = flush->n_chunks < MB_COW_BATCH ? flush->n_chunks : MB_COW_BATCH;

	for (uint64_t i = 0; i < n; i++) {
		uint32_t chunk = cow->dirty[cow->dirty_first];
		uint64_t first = (uint64_t)chunk * MB_QCOW2_CHUNK_ENTRIES,
			 k = cow->n_clusters - first;

		cow->dirty_first = (cow->dirty_first + 1) % cow->n_chunks;
		cow->n_dirty--;
		cow->dirty_bits[chunk / 64] &= ~(1ull << chunk % 64);
		cow->batch_chunks[i] = chunk;
		memcpy(cow->batch + i * MB_QCOW2_CHUNK_ENTRIES, cow->map + first,
			(k < MB_QCOW2_CHUNK_ENTRIES ? k : MB_QCOW2_CHUNK_ENTRIES) * 8);
	}
	cow->n_batch = n;
	flush->n_chunks -= n;
	flush->last = !n;
}

static int write_batch(struct mb_cow *cow)
{
	for (uint64_t i = 0; i < cow->n_batch; i++) {
		int rc = mb_qcow2_write_chunk(
			cow->qcow2, cow->batch_chunks[i], cow->batch + i * MB_QCOW2_CHUNK_ENTRIES);

		if (rc)
			return rc;
	}
	cow->n_batch = 0;
	return 0;
}

/* Caller holds the lock. What was taken, but may not be in the file, is for the next one. */
static void give_up(struct mb_cow *cow, struct mb_cow_flush *flush)
{
	for (uint64_t i = 0; i < cow->n_batch; i++)
		mb_cow_mark_dirty(cow, (uint64_t)cow->batch_chunks[i] * MB_QCOW2_CHUNK_ENTRIES);
	cow->n_batch = 0;
	cow->flushing = false;
	flush->runs = false;
	mb_cow_wake(cow);
}

static int start(struct mb_cow *cow, struct mb_cow_flush *flush, struct mb_cow_waiter *waiter)
{
	/* Waited for one that began after it came, and that was good. */
	if (flush->needs && cow->n_flushes_good >= flush->needs)
		return MB_COW_FLUSH_DONE;
	if (cow->failed)
		return -EIO;
	if (cow->flushing) {
		if (!flush->needs)
			flush->needs = cow->n_flushes_begun + 1;
		mb_cow_wait(cow, waiter);
		return MB_COW_FLUSH_WAIT;
	}
	cow->flushing = true;
	flush->runs = true;
	flush->needs = ++cow->n_flushes_begun;
	flush->n_chunks = cow->n_dirty;
	take_batch(cow, flush);
	return MB_COW_FLUSH_SYNC;
}

int mb_cow_flush(struct mb_cow *cow, struct mb_cow_flush *flush, struct mb_cow_waiter *waiter)
{
	int rc = 0;

	if (!cow->qcow2)
		return MB_COW_FLUSH_DONE;
	pthread_mutex_lock(&cow->lock);
	if (!flush->runs) {
		rc = start(cow, flush, waiter);
		pthread_mutex_unlock(&cow->lock);
		return rc;
	}
	/* Another sync may have failed meanwhile, and ours knew nothing of it. */
	if (!cow->failed) {
		/* The batch is whose flush is in progress: no lock for the I/O. */
		pthread_mutex_unlock(&cow->lock);
		rc = write_batch(cow);
		pthread_mutex_lock(&cow->lock);
	}
	if (!rc && cow->failed)
		rc = -EIO;
	if (rc) {
		give_up(cow, flush);
	} else if (!flush->last) {
		take_batch(cow, flush);
		rc = MB_COW_FLUSH_SYNC;
	} else {
		cow->n_flushes_good = flush->needs;
		give_up(cow, flush);
		rc = MB_COW_FLUSH_DONE;
	}
	pthread_mutex_unlock(&cow->lock);
	return rc;
}

void mb_cow_flush_cancel(struct mb_cow *cow, struct mb_cow_flush *flush, bool failed)
{
	pthread_mutex_lock(&cow->lock);
	if (flush->runs) {
		cow->failed |= failed;
		give_up(cow, flush);
	}
	pthread_mutex_unlock(&cow->lock);
}
