// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <sys/mman.h>
#include <unistd.h>

#include "map_count.h"
#include "mover_internal.h"

/*
 * Linux has no call that takes a huge page of a file apart. But where a part of one is said to be
 * cold, and a single mapping has it, the kernel takes it apart first, in place (mm/madvise.c, since
 * 5.4). So it is taken out of the views and of our own mapping, and is in one that is made for it
 * alone for a moment.
 */

#define PAUSE_NS 10000000ull /* for vCPUs to leave the guest; one may wait for a terminal */
/* After pauses, so that vCPUs run 95 % of the time at least; and after one that came to nothing. */
#define RUN_TIMES   20u
#define LONG_RUN_NS 2000000000ull
/* Of the mappings that a process may have: replicas take more, see replica.h. */
#define SHARE_OF_MAX 16u

enum form { SMALL, HUGE_PAGE, UNKNOWN, FAILED };

int mb_mover_split_begin(struct mb_mover *m)
{
	char *at;

	/* Three mappings where there was one, of each view and of our own. */
	m->max_apart = mb_max_map_count() / SHARE_OF_MAX / (2 * (m->config.n_views + 1));
	at = mmap(NULL, 2 * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return -ENOMEM;
	m->reserved = at;
	m->alone = at + (BLOCK - (uintptr_t)at % BLOCK) % BLOCK;
	mb_pagemap_open(MB_PAGEMAP_SCAN, &m->pagemap, NULL);
	return 0;
}

void mb_mover_split_finish(struct mb_mover *m)
{
	mb_pagemap_close(m->pagemap);
	if (m->reserved)
		munmap(m->reserved, 2 * BLOCK);
}

static char *own_at(const struct mb_mover *m, uint64_t offset)
{
	return (char *)m->config.own_base + offset;
}

static void advise_all(const struct mb_mover *m, uint64_t offset, int advice)
{
	for (unsigned v = 0; v < m->config.n_views; v++)
		madvise((char *)m->config.view_base[v] + offset, BLOCK, advice);
	madvise(own_at(m, offset), BLOCK, advice);
}

/* ---- khugepaged would put it together again within minutes, all of it on one node ---- */

static bool is_apart(const struct mb_mover *m, uint64_t offset)
{
	return m->config.small[offset / BLOCK];
}

static void set_apart(struct mb_mover *m, uint64_t offset, bool apart)
{
	m->n_apart += (uint64_t)apart - (uint64_t)is_apart(m, offset);
	__atomic_store_n(&m->config.small[offset / BLOCK], apart, __ATOMIC_SEQ_CST);
	if (m->config.keep_small)
		m->config.keep_small(m->config.ctx, offset, apart);
	advise_all(m, offset, apart ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
}

void mb_mover_let_merge(struct mb_mover *m, uint64_t offset)
{
	if (is_apart(m, offset))
		set_apart(m, offset, false);
}

static void let_all_merge(struct mb_mover *m)
{
	for (uint64_t at = 0; at < m->config.ram_bytes && m->n_apart; at += BLOCK)
		mb_mover_let_merge(m, at);
}

void mb_mover_forget(struct mb_mover *m)
{
	if (!m)
		return;
	pthread_mutex_lock(&m->lock);
	let_all_merge(m);
	pthread_mutex_unlock(&m->lock);
}

/* When there are too many, it begins anew: what is still worth it is taken apart again. */
static void keep_apart(struct mb_mover *m, uint64_t offset)
{
	if (!m->max_apart)
		return;
	if (!is_apart(m, offset) && m->n_apart >= m->max_apart)
		let_all_merge(m);
	set_apart(m, offset, true);
}

/* ---- taking it apart ---- */

/* All of it is in memory: a huge page has no holes, and nothing of it is swapped out. */
static bool is_all_there(const struct mb_mover *m, uint64_t offset)
{
	unsigned char in[MB_HEAT_BLOCK_PAGES];

	/* What is elsewhere is a hole here, which to map would fill. */
	if (offset + BLOCK > m->config.ram_bytes || mb_mover_is_elsewhere(m, offset, BLOCK) ||
		mincore(own_at(m, offset), BLOCK, in))
		return false;
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		if (!(in[i] & 1))
			return false;
	return true;
}

static int note_huge(void *ctx, const struct mb_page_run *run)
{
	bool *huge = ctx;

	*huge |= run->huge;
	return 0;
}

/*
 * What the file has there: a huge page is mapped as one where no page table is yet. Nobody tells
 * before Linux 6.7 (UNKNOWN). FAILED: it could not be mapped.
 */
static enum form map_alone(const struct mb_mover *m, uint64_t offset)
{
	bool huge = false;

	if (mmap(m->alone, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
		    m->config.ram_fd, (off_t)offset) == MAP_FAILED)
		return FAILED;
	madvise(m->alone, BLOCK, MADV_HUGEPAGE);
	madvise(m->alone, BLOCK, MADV_POPULATE_READ);
	if (!m->pagemap || !(mb_pagemap_features(m->pagemap) & MB_PAGEMAP_SCAN) ||
		mb_pagemap_look(m->pagemap, m->alone, BLOCK, note_huge, &huge))
		return UNKNOWN;
	return huge ? HUGE_PAGE : SMALL;
}

static void unmap_alone(const struct mb_mover *m)
{
	/* In place, so that nobody else gets the addresses. It cannot fail: one mapping for one. */
	mmap(m->alone, BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
		0);
}

/* Out of all page tables but those. `surely`: no vCPU runs. 0, and *split; -EBUSY. */
static int try(const struct mb_mover *m, uint64_t offset, bool surely, bool *split)
{
	enum form form;

	advise_all(m, offset, MADV_DONTNEED);
	form = map_alone(m, offset);
	if (form == SMALL)
		return 0;
	if (form == FAILED || (form == UNKNOWN && !surely))
		return -EBUSY;
	/* Of one page: what is cold is swapped out first. */
	madvise(m->alone, PAGE, MADV_COLD);
	/* An attempt that failed leaves a page table, in which no huge page would be mapped. */
	unmap_alone(m);
	form = map_alone(m, offset);
	if (form == FAILED || form == HUGE_PAGE)
		return -EBUSY;
	*split = true;
	return 0;
}

/* A vCPU that uses it maps it again before we are done: then none runs. Caller holds the lock. */
static int try_paused(struct mb_mover *m, uint64_t offset, bool *split)
{
	const uint64_t begin_ns = mb_now_ns();
	uint64_t end_ns;
	int rc = -EBUSY;

	if (!m->config.pause || begin_ns < m->pause_ns)
		return -EBUSY;
	if (m->config.pause(m->config.ctx, PAUSE_NS)) {
		rc = try(m, offset, true, split);
		m->config.resume(m->config.ctx);
	}
	end_ns = mb_now_ns();
	m->pause_ns = end_ns + (rc ? LONG_RUN_NS : RUN_TIMES * (end_ns - begin_ns));
	return rc;
}

int mb_mover_split(struct mb_mover *m, uint64_t offset, struct mb_moved *moved)
{
	uint64_t begin_ns, took_ns;
	bool split = false;
	int rc = -ECANCELED;

	if (!is_all_there(m, offset))
		return 0;
	pthread_mutex_lock(&m->lock);
	begin_ns = mb_now_ns();
	if (!__atomic_load_n(&m->n_holds, __ATOMIC_SEQ_CST)) {
		rc = try(m, offset, false, &split);
		if (rc)
			rc = try_paused(m, offset, &split);
		unmap_alone(m);
		if (split) {
			moved->split_bytes += BLOCK;
			keep_apart(m, offset);
		}
	}
	took_ns = mb_now_ns() - begin_ns;
	pthread_mutex_unlock(&m->lock);
	if (took_ns > moved->longest_ns)
		moved->longest_ns = took_ns;
	return rc;
}
