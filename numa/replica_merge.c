// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/range.h>
#include <stdlib.h>
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

/*
 * Parts of the files that are mapped once for all that is merged with them: read to compare, and armed to be
 * moved into the views, from the first page on.
 */
struct mb_merging {
	struct mb_replicas *r;
	struct mb_replicas_source source[MB_HEAT_VIEWS];
	uint64_t n; /* pages */
	char *seen[MB_HEAT_VIEWS];
	void *armed[MB_HEAT_VIEWS]; /* NULL: it is not worth it */
	/* Pages: from here on `armed` is mapped; before, whatever others have there. The first view is never behind. */
	uint64_t armed_from[MB_HEAT_VIEWS];
};

struct merge {
	struct mb_merging *of;
	uint64_t first, at; /* pages: that of guest memory which has page `at` of the files */
	struct mb_merged *done;
};

/* In the files, pages. */
static uint64_t place(const struct merge *m, uint64_t first)
{
	return m->at + first - m->first;
}

static uint64_t source_at(const struct merge *m, unsigned view, uint64_t first)
{
	return m->of->source[view].offset + place(m, first) * PAGE;
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
			same = !memcmp(own, m->of->seen[v] + place(m, first + i) * PAGE, PAGE);
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
		rc = mb_replica_stage_merged(
			r, m->of->source[v].fd, source_at(m, v, first), n, &stage[v]);
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

/* What is before that page: nobody will want it any more. */
static void drop_armed(struct mb_merging *m, unsigned view, uint64_t end)
{
	const uint64_t from = m->armed_from[view];

	if (from < end)
		mb_replica_drop(m->r, (char *)m->armed[view] + from * PAGE, end - from);
	m->armed_from[view] = end;
}

/* The same of pages that nothing was moved of yet. */
static int install_armed(
	struct mb_replicas *r, const struct merge *m, uint64_t first, uint64_t n)
{
	const uint64_t at = place(m, first);
	int rc = 0;

	for (unsigned v = 0; v < r->config.n_views && !rc; v++) {
		drop_armed(m->of, v, at);
		rc = mb_replica_install_armed(r, v, first, n, (char *)m->of->armed[v] + at * PAGE);
		m->of->armed_from[v] = at + n;
	}
	return rc;
}

/* Pages [first, first + n) are HOME_OPEN, and were equal a moment ago. -ESTALE: they are not. */
static int merge_pages(
	struct mb_replicas *r, struct block *b, const struct merge *m, uint64_t first, uint64_t n)
{
	const bool armed = m->of->armed[0] && place(m, first) >= m->of->armed_from[0];
	void *stage[MB_HEAT_VIEWS] = {NULL};
	bool equal = true;
	int rc = mb_replica_protect_all(r, first, n, false, true);

	if (!rc && MB_REPLICA_WRONG != WRONG_MERGE_FIRST && (alike(r, m, first, n, &equal) < n || !equal))
		rc = -ESTALE;
	if (!rc && !armed)
		rc = stage_all(r, m, first, n, stage);
	if (!rc)
		rc = mb_replica_is_wanted(r, first, false);
	if (!rc)
		rc = armed ? install_armed(r, m, first, n) : install_all(r, first, n, stage);
	if (!rc)
		rc = mb_replica_merge_home(r, m->of->seen[0] + place(m, first) * PAGE,
			m->of->source[0].fd, source_at(m, 0, first), first, n);
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
	for (uint64_t i = 0, some; i < n; i += some) {
		some = n - i < AT_ONCE_PAGES ? n - i : AT_ONCE_PAGES;
		merge_some(r, b, arg, first + i, some);
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

/* While no lock is needed. */
static int map_files(struct mb_merging *m, bool arm)
{
	struct mb_replicas *r = m->r;
	int rc = 0;

	for (unsigned v = 0; v < r->config.n_views && !rc; v++) {
		const struct mb_replicas_source *from = &m->source[v];

		rc = mb_replica_see_merged(r, from->fd, from->offset, m->n, &m->seen[v]);
		if (!rc && arm)
			rc = mb_replica_arm_merged(r, from->fd, from->offset, m->n, &m->armed[v]);
		if (rc)
			m->armed[v] = NULL;
	}
	return rc;
}

static void unmap_files(struct mb_merging *m)
{
	for (unsigned v = 0; v < m->r->config.n_views; v++) {
		if (m->seen[v])
			mb_replica_drop(m->r, m->seen[v], m->n);
		if (m->armed[v])
			drop_armed(m, v, m->n);
	}
}

static int begin(struct mb_merging *m, struct mb_replicas *r, const struct mb_replicas_source *source,
	uint64_t len, bool arm)
{
	int rc;

	*m = (struct mb_merging){.r = r, .n = len / PAGE};
	if (!len || len % PAGE || !r->config.own_base)
		return -EINVAL;
	for (unsigned v = 0; v < r->config.n_views; v++) {
		m->source[v] = source[v];
		if (source[v].offset % PAGE || !is_sealed(&source[v], len))
			return -EPERM;
	}
	rc = map_files(m, arm);
	if (rc)
		unmap_files(m);
	return rc;
}

int mb_replicas_merge_begin(struct mb_replicas *r, const struct mb_replicas_source *source, uint64_t len,
	struct mb_merging **out)
{
	struct mb_merging *m = malloc(sizeof(*m));
	int rc = m ? begin(m, r, source, len, true) : -ENOMEM;

	if (rc)
		free(m);
	else
		*out = m;
	return rc;
}

int mb_replicas_merge_run(
	struct mb_merging *m, uint64_t offset, uint64_t at, uint64_t len, struct mb_merged *done)
{
	struct merge merge = {.of = m, .first = offset / PAGE, .at = at / PAGE, .done = done};

	if ((offset | at | len) % PAGE || !mb_range_inside(at, len, 0, m->n * PAGE))
		return -EINVAL;
	return mb_replica_each_block(m->r, offset, len, merge_part, &merge);
}

void mb_replicas_merge_end(struct mb_merging *m)
{
	if (!m)
		return;
	unmap_files(m);
	free(m);
}

int mb_replicas_merge(struct mb_replicas *r, uint64_t offset, uint64_t len,
	const struct mb_replicas_source *source, struct mb_merged *done)
{
	struct mb_merging m;
	int rc;

	if (!mb_range_inside(offset, len, 0, r->config.ram_bytes) || offset % PAGE)
		return -EINVAL;
	rc = begin(&m, r, source, len, false);
	if (rc == -EINVAL || rc == -EPERM)
		return rc;
	if (rc) {
		done->failed_bytes += len;
		return 0;
	}
	rc = mb_replicas_merge_run(&m, offset, 0, len, done);
	unmap_files(&m);
	return rc;
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
