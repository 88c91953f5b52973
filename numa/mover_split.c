// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "map_count.h"
#include "mover_internal.h"

/*
 * Linux has no call that takes a huge page of a file apart. But where a part of one is said to be
 * cold, and a single mapping has it, the kernel takes it apart first, in place (mm/madvise.c, since
 * 5.4). So it is taken out of the views, and is in our own mapping alone for a moment.
 */

#define TRIES	 4u
#define PAUSE_NS 10000000ull /* for vCPUs to leave the guest; one may wait for a terminal */
/* Of the mappings that a process may have: replicas take more, see replica.h. */
#define SHARE_OF_MAX 16u

int mb_mover_split_begin(struct mb_mover *m)
{
	const uint64_t n_blocks = (m->config.ram_bytes + BLOCK - 1) / BLOCK;

	/* Three mappings where there was one, of each view and of our own. */
	m->max_apart = mb_max_map_count() / SHARE_OF_MAX / (2 * (m->config.n_views + 1));
	m->apart = calloc((n_blocks + 7) / 8, 1);
	if (!m->apart)
		return -ENOMEM;
	mb_pagemap_open(MB_PAGEMAP_SCAN, &m->pagemap, NULL);
	return 0;
}

void mb_mover_split_finish(struct mb_mover *m)
{
	mb_pagemap_close(m->pagemap);
	free(m->apart);
}

static char *own_at(const struct mb_mover *m, uint64_t offset)
{
	return (char *)m->config.own_base + offset;
}

static char *view_at(const struct mb_mover *m, unsigned view, uint64_t offset)
{
	return (char *)m->config.view_base[view] + offset;
}

static void advise_all(const struct mb_mover *m, uint64_t offset, int advice)
{
	for (unsigned v = 0; v < m->config.n_views; v++)
		madvise(view_at(m, v, offset), BLOCK, advice);
	madvise(own_at(m, offset), BLOCK, advice);
}

static bool is_apart(const struct mb_mover *m, uint64_t offset)
{
	return m->apart[offset / BLOCK / 8] >> offset / BLOCK % 8 & 1;
}

/*
 * khugepaged would put it together again within minutes, all of it on one node. Where that would
 * take too many mappings, it may.
 */
static void keep_apart(struct mb_mover *m, uint64_t offset)
{
	if (m->n_apart >= m->max_apart)
		return;
	if (m->config.keep_small)
		m->config.keep_small(m->config.ctx, offset, true);
	advise_all(m, offset, MADV_NOHUGEPAGE);
	m->apart[offset / BLOCK / 8] |= (unsigned char)(1u << offset / BLOCK % 8);
	m->n_apart++;
}

void mb_mover_let_merge(struct mb_mover *m, uint64_t offset)
{
	if (!is_apart(m, offset))
		return;
	if (m->config.keep_small)
		m->config.keep_small(m->config.ctx, offset, false);
	advise_all(m, offset, MADV_HUGEPAGE);
	m->apart[offset / BLOCK / 8] &= (unsigned char)~(1u << offset / BLOCK % 8);
	m->n_apart--;
}

static int note_huge(void *ctx, const struct mb_page_run *run)
{
	bool *huge = ctx;

	*huge |= run->huge;
	return 0;
}

/* In our own page tables; `unknown` before Linux 6.7. */
static bool is_huge(const struct mb_mover *m, uint64_t offset, bool unknown)
{
	bool huge = false;

	if (!m->pagemap || !(mb_pagemap_features(m->pagemap) & MB_PAGEMAP_SCAN) ||
		mb_pagemap_look(m->pagemap, own_at(m, offset), BLOCK, note_huge, &huge))
		return unknown;
	return huge;
}

/* A huge page has no holes, and what has none can be mapped by us without filling them. */
static bool may_be_huge(const struct mb_mover *m, uint64_t offset)
{
	const off_t at = (off_t)offset, end = (off_t)(offset + BLOCK);

	return offset + BLOCK <= m->config.ram_bytes && !is_apart(m, offset) &&
	       lseek(m->config.ram_fd, at, SEEK_DATA) == at &&
	       lseek(m->config.ram_fd, at, SEEK_HOLE) >= end;
}

/*
 * Whether the file has a huge page there: then we get it as one. What was one in our page tables
 * a moment ago says nothing: an attempt that fails leaves its pieces there.
 */
static bool map_own(const struct mb_mover *m, uint64_t offset, bool unknown)
{
	madvise(own_at(m, offset), BLOCK, MADV_DONTNEED);
	madvise(own_at(m, offset), BLOCK, MADV_POPULATE_READ);
	return is_huge(m, offset, unknown);
}

/* Caller holds the lock. */
static int try(const struct mb_mover *m, uint64_t offset, bool *split)
{
	for (unsigned v = 0; v < m->config.n_views; v++)
		madvise(view_at(m, v, offset), BLOCK, MADV_DONTNEED);
	if (!map_own(m, offset, true))
		return 0;
	/* Of one page: what is cold is swapped out first. */
	madvise(own_at(m, offset), PAGE, MADV_COLD);
	if (map_own(m, offset, false))
		return -EBUSY;
	*split = true;
	return 0;
}

/* A vCPU that uses it maps it again before we are done: from the second time on none runs. */
static int guarded_try(struct mb_mover *m, uint64_t offset, unsigned turn, bool *split)
{
	const bool pause = turn && m->config.pause;
	int rc;

	if (__atomic_load_n(&m->n_holds, __ATOMIC_SEQ_CST))
		return -ECANCELED;
	if (pause && !m->config.pause(m->config.ctx, PAUSE_NS))
		return -EBUSY;
	rc = try(m, offset, split);
	if (pause)
		m->config.resume(m->config.ctx);
	return rc;
}

int mb_mover_split(struct mb_mover *m, uint64_t offset, struct mb_moved *moved, bool *split)
{
	int rc = -EBUSY;

	*split = false;
	if (!may_be_huge(m, offset))
		return 0;
	for (unsigned i = 0; i < TRIES && rc == -EBUSY; i++) {
		uint64_t begin_ns, took_ns;

		pthread_mutex_lock(&m->lock);
		begin_ns = mb_now_ns();
		rc = guarded_try(m, offset, i, split);
		took_ns = mb_now_ns() - begin_ns;
		pthread_mutex_unlock(&m->lock);
		if (took_ns > moved->longest_ns)
			moved->longest_ns = took_ns;
	}
	madvise(own_at(m, offset), BLOCK, MADV_DONTNEED);
	if (*split) {
		moved->split_bytes += BLOCK;
		keep_apart(m, offset);
	}
	return rc;
}
