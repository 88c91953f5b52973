// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include "cow_impl.h"
#include "sparse.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where what is: the map, and who may change it. */

uint64_t mb_cow_bytes(const struct mb_cow *cow)
{
	return cow->bytes;
}

bool mb_cow_is_volatile(const struct mb_cow *cow)
{
	return !cow->qcow2;
}

int mb_cow_fd(const struct mb_cow *cow)
{
	return cow->fd;
}

bool mb_cow_base_holds(struct mb_cow *cow)
{
	bool news, holds = mb_base_holds(&cow->base, &news);

	if (news)
		mb_log("disk %s: was changed by somebody while it is the base of a disk in use; "
		       "from now on what the guest reads from it is an I/O error",
			cow->base_path);
	return holds;
}

/* ---- reading ---- */

static enum mb_cow_where where_is(uint64_t entry)
{
	if (entry & MB_QCOW2_ZERO)
		return MB_COW_ZERO;
	return entry & MB_QCOW2_ALLOCATED ? MB_COW_DELTA : MB_COW_BASE;
}

void mb_cow_find(struct mb_cow *cow, uint64_t offset, uint64_t len, struct mb_cow_run *run)
{
	uint64_t cluster = 1ull << cow->bits, i = offset >> cow->bits, entry, next;

	if (len > cow->bytes - offset)
		len = cow->bytes - offset;
	pthread_mutex_lock(&cow->lock);
	entry = cow->map[i];
	run->where = where_is(entry);
	run->bytes = cluster - offset % cluster;
	next = (entry & MB_QCOW2_OFFSET) + cluster;
	for (i++; run->bytes < len; i++, run->bytes += cluster, next += cluster) {
		entry = cow->map[i];
		if (where_is(entry) != run->where ||
			(run->where == MB_COW_DELTA && (entry & MB_QCOW2_OFFSET) != next))
			break;
	}
	entry = cow->map[offset >> cow->bits];
	pthread_mutex_unlock(&cow->lock);
	if (run->bytes > len)
		run->bytes = len;
	run->at =
		run->where == MB_COW_DELTA ? (entry & MB_QCOW2_OFFSET) + offset % cluster : offset;
	if (run->where != MB_COW_BASE)
		return;
	/* A disk may be larger than its base; it is zero there. */
	if (offset >= cow->base.was.bytes)
		run->where = MB_COW_ZERO;
	else if (run->bytes > cow->base.was.bytes - offset)
		run->bytes = cow->base.was.bytes - offset;
}

/* ---- waiting; caller holds the lock ---- */

void mb_cow_wait(struct mb_cow *cow, struct mb_cow_waiter *waiter)
{
	waiter->next = NULL;
	*cow->waiting_last = waiter;
	cow->waiting_last = &waiter->next;
}

void mb_cow_wake(struct mb_cow *cow)
{
	struct mb_cow_waiter *waiter;

	while ((waiter = cow->waiting)) {
		struct mb_cow_queue *queue = waiter->queue;
		const uint64_t one = 1;

		cow->waiting = waiter->next;
		waiter->next = NULL;
		if (!queue->woken) {
			queue->woken_last = &queue->woken;
			/* Cannot fail: nobody counts up to 2^64. */
			(void)!write(queue->wake_fd, &one, sizeof(one));
		}
		*queue->woken_last = waiter;
		queue->woken_last = &waiter->next;
	}
	cow->waiting_last = &cow->waiting;
}

struct mb_cow_waiter *mb_cow_take_woken(struct mb_cow *cow, struct mb_cow_queue *queue)
{
	struct mb_cow_waiter *woken;

	pthread_mutex_lock(&cow->lock);
	woken = queue->woken;
	queue->woken = NULL;
	pthread_mutex_unlock(&cow->lock);
	return woken;
}

struct mb_cow_waiter *mb_cow_forget(struct mb_cow *cow, struct mb_cow_queue *queue)
{
	struct mb_cow_waiter **link = &cow->waiting, *gone;

	pthread_mutex_lock(&cow->lock);
	gone = queue->woken;
	queue->woken = NULL;
	while (*link) {
		struct mb_cow_waiter *waiter = *link;

		if (waiter->queue != queue) {
			link = &waiter->next;
			continue;
		}
		*link = waiter->next;
		waiter->next = gone;
		gone = waiter;
	}
	cow->waiting_last = link;
	pthread_mutex_unlock(&cow->lock);
	return gone;
}

/* ---- life ---- */

static uint64_t dirty_words(const struct mb_cow *cow)
{
	return cow->n_chunks / 64 + 1;
}

static int make_tables(struct mb_cow *cow, struct mb_error *err)
{
	uint64_t cluster = 1ull << cow->bits;

	cow->n_clusters = mb_align_up(cow->bytes, cluster) >> cow->bits;
	cow->n_chunks = (cow->n_clusters + MB_QCOW2_CHUNK_ENTRIES - 1) / MB_QCOW2_CHUNK_ENTRIES;
	cow->map = mb_sparse_map(cow->n_clusters * 8);
	if (cow->qcow2) {
		cow->dirty = mb_sparse_map(cow->n_chunks * 4);
		cow->dirty_bits = mb_sparse_map(dirty_words(cow) * 8);
		cow->room_bits = mb_sparse_map(dirty_words(cow) * 8);
		cow->batch = mb_sparse_map(MB_COW_BATCH * MB_QCOW2_CHUNK_ENTRIES * 8);
		cow->batch_chunks = calloc(MB_COW_BATCH, sizeof(*cow->batch_chunks));
	}
	if (!cow->map || (cow->qcow2 && (!cow->dirty || !cow->dirty_bits || !cow->room_bits ||
						!cow->batch || !cow->batch_chunks)))
		return mb_error_set(err, ENOMEM, "disk %s: out of memory", cow->base_path);
	return cow->qcow2 ? mb_qcow2_load(cow->qcow2, cow->map, err) : 0;
}

int mb_cow_create(struct mb_cow **out, const struct mb_cow_config *config, struct mb_error *err)
{
	struct mb_cow *cow = calloc(1, sizeof(*cow));
	int rc;

	if (!cow)
		return mb_error_set(err, ENOMEM, "disk %s: out of memory", config->base_path);
	pthread_mutex_init(&cow->lock, NULL);
	cow->waiting_last = &cow->waiting;
	cow->fd = -1;
	cow->base.fd = config->base_fd;
	cow->bytes = config->base_bytes;
	cow->base.is_device = config->base_is_device;
	cow->bits = 12;
	cow->base_path = strdup(config->base_path);
	if (!cow->base_path)
		rc = mb_error_set(err, ENOMEM, "disk %s: out of memory", config->base_path);
	else
		rc = mb_cow_open_delta(cow, config, err);
	if (!rc)
		rc = make_tables(cow, err);
	if (rc) {
		mb_cow_destroy(cow);
		return rc;
	}
	*out = cow;
	return 0;
}

/* What a guest does at its power-off, for one that did not; and the reference counts. */
static void finish_overlay(struct mb_cow *cow)
{
	struct mb_cow_flush flush = {0};
	struct mb_cow_waiter nobody = {0};
	struct mb_error err;
	int rc = 0;

	/* Not what came after a sync that failed: entries could name what never got there. */
	while (!cow->failed && (rc = mb_cow_flush(cow, &flush, &nobody)) == MB_COW_FLUSH_SYNC) {
		if (fdatasync(cow->fd)) {
			rc = -errno;
			mb_cow_flush_cancel(cow, &flush, true);
			break;
		}
	}
	if (rc < 0 || cow->failed) {
		mb_log("overlay %s: not all that the guest wrote could be written%s%s; it is left "
		       "as after a power failure",
			cow->path, rc < 0 ? ": " : "", rc < 0 ? strerror(-rc) : "");
		return;
	}
	if (mb_qcow2_end(cow->qcow2, &err))
		mb_log("%s; it is put in order at its next use", err.text);
}

void mb_cow_destroy(struct mb_cow *cow)
{
	if (!cow)
		return;
	if (cow->begun)
		finish_overlay(cow);
	mb_qcow2_destroy(cow->qcow2);
	if (cow->fd >= 0)
		mb_blk_unlock_and_close(cow->fd);
	mb_sparse_unmap(cow->map, cow->n_clusters * 8);
	mb_sparse_unmap(cow->dirty, cow->n_chunks * 4);
	mb_sparse_unmap(cow->dirty_bits, dirty_words(cow) * 8);
	mb_sparse_unmap(cow->room_bits, dirty_words(cow) * 8);
	mb_sparse_unmap(cow->batch, MB_COW_BATCH * MB_QCOW2_CHUNK_ENTRIES * 8);
	free(cow->batch_chunks);
	free(cow->base_path);
	free(cow->path);
	pthread_mutex_destroy(&cow->lock);
	free(cow);
}
