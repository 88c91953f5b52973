// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/range.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "replica_internal.h"

/*
 * Pages that equal those of a file that other machines map as well: views map that, trapped as a copy
 * is, and home is a hole. In every view or in none, but for a moment under the block's lock.
 *
 *   protect home in every view, compare, map the file in every view, map it in our own, punch home
 *
 * Our own mapping shows it, too: devices read guest memory there without a hold. A collapse begins
 * with home having it again (mb_replica_fill_home).
 */

#define AT_ONCE_PAGES 64u /* under the lock of a block */

struct merge {
	const struct mb_replicas_source *source;
	uint64_t offset; /* in guest memory of what the sources begin with */
	struct mb_merged *done;
	/* Of the part of a block that is at hand, to compare with. */
	uint64_t first;
	const char *seen[MB_HEAT_VIEWS];
};

static uint64_t source_at(const struct merge *m, unsigned view, uint64_t first)
{
	return m->source[view].offset + first * PAGE - m->offset;
}

/* How many pages from here on are equal in all sources, or the other way round. */
static uint64_t alike(
	const struct mb_replicas *r, const struct merge *m, uint64_t first, uint64_t n, bool *equal)
{
	uint64_t i;

	for (i = 0; i < n; i++) {
		const char *own = (const char *)r->config.own_base + (first + i) * PAGE;
		bool same = true;

		for (unsigned v = 0; v < r->config.n_views && same; v++)
			same = !memcmp(own, m->seen[v] + (first + i - m->first) * PAGE, PAGE);
		if (!i)
			*equal = same;
		if (same != *equal)
			break;
	}
	return i;
}

static int stage_all(struct mb_replicas *r, const struct merge *m, uint64_t first, uint64_t n, void **stage)
{
	int rc = 0;

	for (unsigned v = 0; v < r->config.n_views && !rc; v++) {
		rc = mb_replica_stage_merged(r, m->source[v].fd, source_at(m, v, first), n, &stage[v]);
		if (rc)
			stage[v] = NULL;
	}
	return rc;
}

static int install_all(struct mb_replicas *r, uint64_t first, uint64_t n, void **stage)
{
	int rc = 0;

	for (unsigned v = 0; v < r->config.n_views && !rc; v++) {
		rc = mb_replica_install(r, v, first, n, MERGED_PROTECTED, stage[v]);
		stage[v] = NULL;
	}
	return rc;
}

/* Pages [first, first + n) are HOME_OPEN, and were equal a moment ago. -ESTALE: they are not. */
static int merge_pages(
	struct mb_replicas *r, struct block *b, const struct merge *m, uint64_t first, uint64_t n)
{
	void *stage[MB_HEAT_VIEWS] = {NULL};
	bool equal = true;
	int rc = mb_replica_protect_all(r, first, n, false);

	if (!rc && MB_REPLICA_WRONG != WRONG_MERGE_FIRST && (alike(r, m, first, n, &equal) < n || !equal))
		rc = -ESTALE;
	if (!rc)
		rc = stage_all(r, m, first, n, stage);
	if (!rc)
		rc = mb_replica_is_wanted(r, first, false);
	if (!rc)
		rc = install_all(r, first, n, stage);
	if (!rc)
		rc = mb_replica_merge_home(r, m->source[0].fd, source_at(m, 0, first), first, n);
	for (unsigned v = 0; v < r->config.n_views; v++)
		if (stage[v])
			mb_replica_drop(r, stage[v], n);
	/* What cannot be undone now is undone by the first write. */
	if (rc)
		mb_replica_collapse_pages(r, b, first, n, PATIENT);
	return rc;
}

static void merge_equal(
	struct mb_replicas *r, struct block *b, const struct merge *m, uint64_t first, uint64_t n)
{
	struct mb_merged *done = m->done;
	int rc;

	if (!mb_replica_may_merge(r)) {
		done->full_bytes += n * PAGE;
		return;
	}
	rc = merge_pages(r, b, m, first, n);
	if (!rc)
		done->merged_bytes += n * PAGE;
	else if (rc == -ECANCELED || rc == -ESTALE)
		done->held_bytes += n * PAGE;
	else
		done->failed_bytes += n * PAGE;
}

/* Pages [first, first + n) are HOME_OPEN. */
static void merge_home(
	struct mb_replicas *r, struct block *b, const struct merge *m, uint64_t first, uint64_t n)
{
	bool equal;

	for (uint64_t run; n; first += run, n -= run) {
		run = alike(r, m, first, n, &equal);
		if (!equal)
			m->done->differs_bytes += run * PAGE;
		else if (mb_replica_block_is_wanted(b))
			m->done->held_bytes += run * PAGE;
		else
			merge_equal(r, b, m, first, run);
	}
}

static void merge_runs(
	struct mb_replicas *r, struct block *b, const struct merge *m, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0, run; i < n; i += run) {
		const struct page *p = &r->page[first + i];
		bool wait = mb_replica_waits(r, p), hole = false;
		uint64_t alike = mb_replica_alike(r, first + i, n - i, &hole);

		for (run = 1; run < alike && !p[run].map == !p->map && mb_replica_waits(r, &p[run]) == wait;)
			run++;
		/* To compare a hole would fill it. */
		if (hole && !p->map)
			m->done->differs_bytes += run * PAGE;
		else if (p->map)
			m->done->there_bytes += run * PAGE;
		else if (wait)
			m->done->waiting_bytes += run * PAGE;
		else
			merge_home(r, b, m, first + i, run);
	}
}

/* To compare with, while the lock of the block is not needed. */
static int see(struct mb_replicas *r, struct merge *m, uint64_t first, uint64_t n)
{
	m->first = first;
	for (unsigned v = 0; v < r->config.n_views; v++) {
		void *seen = r->calls->map(NULL, n * PAGE, PROT_READ, MAP_SHARED | MAP_NORESERVE,
			m->source[v].fd, (off_t)source_at(m, v, first));

		if (seen == MAP_FAILED)
			return -errno;
		m->seen[v] = seen;
	}
	return 0;
}

static void merge_some(
	struct mb_replicas *r, struct block *b, const struct merge *m, uint64_t first, uint64_t n)
{
	pthread_mutex_lock(&b->lock);
	__atomic_store_n(&b->active, true, __ATOMIC_SEQ_CST);
	__atomic_store_n(&b->merging, true, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&b->holds, __ATOMIC_SEQ_CST) || __atomic_load_n(&b->pins, __ATOMIC_SEQ_CST))
		m->done->held_bytes += n * PAGE;
	else if (mb_replica_waits(r, &b->whole))
		m->done->waiting_bytes += n * PAGE;
	else
		merge_runs(r, b, m, first, n);
	__atomic_store_n(&b->merging, false, __ATOMIC_SEQ_CST);
	mb_replica_unlock(b);
}

/* Writers of the block, and who pins it, wait for a few pages and not for all of it. */
static int merge_part(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	struct merge *m = arg;
	int rc = see(r, m, first, n);

	if (rc)
		m->done->failed_bytes += n * PAGE;
	for (uint64_t i = 0, some; i < n && !rc; i += some) {
		some = n - i < AT_ONCE_PAGES ? n - i : AT_ONCE_PAGES;
		merge_some(r, b, m, first + i, some);
	}
	for (unsigned v = 0; v < r->config.n_views; v++) {
		if (m->seen[v])
			r->calls->unmap((void *)m->seen[v], n * PAGE);
		m->seen[v] = NULL;
	}
	return 0;
}

/* Neither may it change under those that map it, nor may a page of it go away. */
static bool is_sealed(const struct mb_replicas_source *source, uint64_t len)
{
	int seals = fcntl(source->fd, F_GET_SEALS);
	struct stat st;

	return seals >= 0 && seals & F_SEAL_SHRINK && seals & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE) &&
	       !fstat(source->fd, &st) &&
	       mb_range_inside(source->offset, len, 0, (uint64_t)st.st_size);
}

int mb_replicas_merge(struct mb_replicas *r, uint64_t offset, uint64_t len,
	const struct mb_replicas_source *source, struct mb_merged *done)
{
	struct merge merge = {.source = source, .offset = offset, .done = done};

	if ((offset | len) % PAGE || !r->config.own_base)
		return -EINVAL;
	for (unsigned v = 0; v < r->config.n_views; v++)
		if (source[v].offset % PAGE || !is_sealed(&source[v], len))
			return -EPERM;
	return mb_replica_each_block(r, offset, len, merge_part, &merge);
}

bool mb_replicas_is_merged(const struct mb_replicas *r, uint64_t offset, uint64_t len)
{
	bool merged = false;

	if (!r || !mb_range_inside(offset, len, 0, r->config.ram_bytes) ||
		!__atomic_load_n(&r->block_merged[offset / BLOCK], __ATOMIC_RELAXED))
		return false;
	/* In every view, or in none. */
	for (uint64_t i = offset / PAGE; i < (offset + len) / PAGE && !merged; i++)
		merged = mb_replica_mapping(__atomic_load_n(&r->page[i].map, __ATOMIC_RELAXED), 0) ==
			 MERGED_PROTECTED;
	return merged;
}
