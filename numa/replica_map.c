// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <mirrorball/log.h>
#include <numaif.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "replica_internal.h"

/*
 * What is put into a view is trapped from the first moment: it is mapped elsewhere (on a stage),
 * registered and protected there, and then moved to its place by mremap(2), which replaces what was
 * there in one step. With UFFD_FEATURE_EVENT_REMAP the kernel leaves a mapping that moves its
 * registration and its protection, and the call returns when the event was read.
 *
 * Copies are in files in memory, not in anonymous memory, although the latter would keep huge pages
 * under protection: the tracker takes pages out of page tables with MADV_DONTNEED, which loses what
 * is in anonymous memory, and of a shared page keeps contents and protection. And neighbours in a
 * file become one mapping.
 */
#define TRIES	    1000u /* 10 ms apart, of who is patient */
#define FEW_TRIES   3u
#define READ_BYTES  (128ull << 10) /* at a time, of who gives up for a writer */
#define MOST_LOOKS  16u		  /* at pages of a copy */
#define BRING_PAGES 128u	  /* at a time */
#define NAP_NS	    10000000l
#define STORE_PAGES 128u /* half of them are mappings in store */
#define OWN	    MB_HEAT_VIEWS /* our own mapping, in place of a view */

static char *view_at(const struct mb_replicas *r, unsigned view, uint64_t first)
{
	return (char *)r->config.view_base[view] + first * PAGE;
}

void mb_replica_nap(void)
{
	struct timespec wait = {.tv_nsec = NAP_NS};

	nanosleep(&wait, NULL);
}

static unsigned tries(enum patience patience)
{
	return patience == PATIENT ? TRIES : patience == SHORT_PATIENCE ? FEW_TRIES : 0;
}

static int failed(struct mb_replicas *r)
{
	int rc = -errno;

	__atomic_add_fetch(&r->stats.n_failures, 1, __ATOMIC_RELAXED);
	return rc;
}

/* A call may have unmapped what was there before it failed. */
static bool is_hole(char *at, uint64_t n)
{
	return msync(at, n * PAGE, MS_ASYNC) != 0;
}

/* What is mapped into such a hole next, by whomever, would be the guest's. */
_Noreturn static void end_with_hole(const struct mb_replicas *r, int rc)
{
	mb_log("%s: a hole in guest memory cannot be closed: %s", r->config.name, strerror(-rc));
	abort();
}

/* ---- what is mapped where ---- */

static enum mapping shows(const struct page *p, unsigned view)
{
	if (view == OWN)
		return p->merged ? MERGED_PROTECTED : HOME_OPEN;
	return mb_replica_mapping(p->map, view);
}

/* Places where one mapping of a view ends and another begins, at pages [first, last]. */
static uint64_t edges(const struct mb_replicas *r, unsigned view, uint64_t first, uint64_t last)
{
	uint64_t n = 0;

	if (!first)
		first = 1;
	if (last > r->n_blocks * BLOCK_PAGES - 1)
		last = r->n_blocks * BLOCK_PAGES - 1;
	for (uint64_t i = first; i <= last; i++)
		n += shows(&r->page[i - 1], view) != shows(&r->page[i], view) ||
		     (r->page[i].starts && shows(&r->page[i], view) == MERGED_PROTECTED);
	return n;
}

static void note(
	struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, enum mapping mapping)
{
	struct block *b = &r->block[first / BLOCK_PAGES];
	uint16_t *in_block = &r->block_pages[view][first / BLOCK_PAGES];
	uint64_t before = 0, after = mapping == COPY_PROTECTED ? n : 0; /* copies */

	pthread_mutex_lock(&r->count_lock);
	r->n_mappings -= edges(r, view, first, first + n);
	for (uint64_t i = first; i < first + n; i++) {
		struct page *p = &r->page[i];

		before += mb_replica_mapping(p->map, view) == COPY_PROTECTED;
		b->n_away -= p->map != 0;
		__atomic_store_n(&p->map,
			(uint16_t)((p->map & ~(3u << 2 * view)) | (unsigned)mapping << 2 * view),
			__ATOMIC_RELAXED); /* mb_replicas_share looks without a lock */
		b->n_away += p->map != 0;
	}
	r->n_mappings += edges(r, view, first, first + n);
	r->view_pages[view] += after - before;
	__atomic_store_n(in_block, (uint16_t)(*in_block + after - before), __ATOMIC_RELAXED);
	pthread_mutex_unlock(&r->count_lock);
}

static void note_merged(struct mb_replicas *r, uint64_t first, uint64_t n, bool merged)
{
	uint16_t *in_block = &r->block_merged[first / BLOCK_PAGES];

	pthread_mutex_lock(&r->count_lock);
	r->n_mappings -= edges(r, OWN, first, first + n);
	for (uint64_t i = first; i < first + n; i++)
		r->page[i].merged = merged;
	r->n_mappings += edges(r, OWN, first, first + n);
	__atomic_store_n(in_block, (uint16_t)(merged ? *in_block + n : *in_block - n), __ATOMIC_RELAXED);
	pthread_mutex_unlock(&r->count_lock);
	__atomic_add_fetch(
		&r->stats.merged_bytes, merged ? n * PAGE : -(n * PAGE), __ATOMIC_RELAXED);
}

/* In all mappings, at this page. */
static uint64_t edges_at(const struct mb_replicas *r, uint64_t page)
{
	uint64_t n = edges(r, OWN, page, page);

	for (unsigned v = 0; v < r->config.n_views; v++)
		n += edges(r, v, page, page);
	return n;
}

/* That pages which will be merged are not a part of the mapping before, nor those after them of theirs. */
static void note_start(struct mb_replicas *r, uint64_t first, uint64_t n)
{
	const uint64_t next = first + n;

	pthread_mutex_lock(&r->count_lock);
	for (uint64_t i = first; i < next; i++)
		r->page[i].starts = i == first;
	if (next < r->n_blocks * BLOCK_PAGES) {
		r->n_mappings -= edges_at(r, next);
		r->page[next].starts = true;
		r->n_mappings += edges_at(r, next);
	}
	pthread_mutex_unlock(&r->count_lock);
}

uint64_t mb_replica_n_mappings(struct mb_replicas *r)
{
	uint64_t n;

	pthread_mutex_lock(&r->count_lock);
	n = r->n_mappings;
	pthread_mutex_unlock(&r->count_lock);
	return n;
}

/* All of it was copied at once, and nothing was written since: no look at each page. */
static bool is_even(const struct mb_replicas *r, uint64_t block)
{
	bool even = r->block[block].n_away == BLOCK_PAGES && !r->block_merged[block];

	for (unsigned v = 0; v < r->config.n_views && even; v++)
		even = r->block_pages[v][block] == BLOCK_PAGES || !r->block_pages[v][block];
	return even;
}

int mb_replica_freed_mappings(struct mb_replicas *r, uint64_t block)
{
	const uint64_t first = block * BLOCK_PAGES, next = first + BLOCK_PAGES;
	int freed = 0;
	bool even;

	pthread_mutex_lock(&r->count_lock);
	even = is_even(r, block);
	for (unsigned v = 0; v < r->config.n_views; v++) {
		freed += even ? (int)(edges(r, v, first, first) + edges(r, v, next, next))
			      : (int)edges(r, v, first, next);
		freed -= first && mb_replica_mapping(r->page[first - 1].map, v) != HOME_OPEN;
		freed -= block + 1 < r->n_blocks &&
			 mb_replica_mapping(r->page[next].map, v) != HOME_OPEN;
	}
	if (r->block_merged[block]) {
		freed += (int)edges(r, OWN, first, next);
		freed -= first && r->page[first - 1].merged;
		freed -= block + 1 < r->n_blocks && r->page[next].merged;
	}
	pthread_mutex_unlock(&r->count_lock);
	return freed;
}

/* ---- the stage ---- */

static int set_stage_of(
	struct mb_replicas *r, int flags, int fd, uint64_t offset, uint64_t n, void **stage)
{
	*stage = r->calls->map(NULL, n * PAGE, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd,
		(off_t)offset);
	if (*stage == MAP_FAILED)
		return failed(r);
	madvise(*stage, n * PAGE, MADV_DONTDUMP);
	return 0;
}

static int set_stage(struct mb_replicas *r, int fd, uint64_t first, uint64_t n, void **stage)
{
	return set_stage_of(r, MAP_SHARED, fd, first * PAGE, n, stage);
}

/*
 * Private, for a userfaultfd takes no shared mapping that could not be written. A write that comes
 * makes a page of it anonymous before it is trapped: it is still equal, and to lose it is no loss.
 */
int mb_replica_stage_merged(
	struct mb_replicas *r, int fd, uint64_t offset, uint64_t n, void **stage)
{
	return set_stage_of(r, MAP_PRIVATE, fd, offset, n, stage);
}

int mb_replica_see_merged(struct mb_replicas *r, int fd, uint64_t offset, uint64_t n, char **seen)
{
	void *at = r->calls->map(
		NULL, n * PAGE, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);

	if (at == MAP_FAILED)
		return failed(r);
	madvise(at, n * PAGE, MADV_DONTDUMP);
	*seen = at;
	return 0;
}

void mb_replica_drop(struct mb_replicas *r, void *stage, uint64_t n)
{
	r->calls->unmap(stage, n * PAGE);
}

static int register_at(struct mb_replicas *r, void *at, uint64_t n)
{
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)at, .len = n * PAGE},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return r->calls->control(r->config.uffd, UFFDIO_REGISTER, &reg);
}

/* What is registered is trapped. */
static int trap(struct mb_replicas *r, void *at, uint64_t n)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = (uintptr_t)at, .len = n * PAGE},
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	/* EAGAIN: another thread moves something, and the reader has not read of it. */
	while (r->calls->control(r->config.uffd, UFFDIO_WRITEPROTECT, &wp)) {
		if (errno != EAGAIN)
			return failed(r);
		sched_yield();
	}
	return 0;
}

static int arm(struct mb_replicas *r, void *stage, uint64_t n)
{
	return register_at(r, stage, n) ? failed(r) : trap(r, stage, n);
}

int mb_replica_arm_merged(
	struct mb_replicas *r, int fd, uint64_t offset, uint64_t n, void **stage)
{
	int rc = mb_replica_stage_merged(r, fd, offset, n, stage);

	if (rc)
		return rc;
	rc = arm(r, *stage, n);
	if (rc)
		mb_replica_drop(r, *stage, n);
	return rc;
}

/*
 * Puts an armed stage, or the first part of one, into its place. It moves all that there is to it:
 * with MREMAP_DONTUNMAP it would be a second mapping, which limits may forbid when what was there is gone already.
 */
static int place(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, void *stage)
{
	char *at = view_at(r, view, first);

	for (unsigned i = 0; r->calls->remap(stage, n * PAGE, n * PAGE,
				     MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED;
		i++) {
		int rc = failed(r);

		if (!is_hole(at, n))
			return rc;
		if (i == TRIES)
			end_with_hole(r, rc);
		mb_replica_nap();
	}
	return 0;
}

static int arm_and_place(
	struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, void *stage)
{
	int rc = arm(r, stage, n);

	if (!rc)
		rc = place(r, view, first, n, stage);
	if (rc)
		mb_replica_drop(r, stage, n);
	return rc;
}

/* ---- the steps ---- */

int mb_replica_protect(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n)
{
	void *stage;
	int rc = set_stage(r, r->config.ram_fd, first, n, &stage);

	if (!rc)
		rc = arm_and_place(r, view, first, n, stage);
	if (!rc)
		note(r, view, first, n, HOME_PROTECTED);
	return rc;
}

int mb_replica_protect_here(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n)
{
	char *at = view_at(r, view, first);
	int rc = register_at(r, at, n) ? -errno : 0;

	if (!rc)
		rc = trap(r, at, n);
	/* The tracker watches it; or it is several mappings, which Linux before 6.3 does not protect at once. */
	if (rc == -EBUSY || rc == -ENOENT)
		return mb_replica_protect(r, view, first, n);
	if (rc)
		__atomic_add_fetch(&r->stats.n_failures, 1, __ATOMIC_RELAXED);
	/* Where it failed a part may be trapped: it has to be opened. */
	note(r, view, first, n, HOME_PROTECTED);
	return rc;
}

int mb_replica_withdraw(
	struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, enum patience patience)
{
	int rc;

	for (unsigned i = 0; (rc = mb_replica_protect(r, view, first, n)) != 0; i++) {
		mb_replica_give_up_some(r);
		if (mb_replica_use_store(r))
			continue;
		if (i >= tries(patience))
			return rc;
		mb_replica_nap();
	}
	return 0;
}

int mb_replica_is_wanted(const struct mb_replicas *r, uint64_t first, bool insist)
{
	bool waits_for_it =
		__atomic_load_n(&r->block[first / BLOCK_PAGES].queued, __ATOMIC_RELAXED);

	return waits_for_it && !insist ? -ECANCELED : 0;
}

/* By some of its pages, among them the first and the last; also if nobody can tell. */
static bool is_on(const struct mb_replicas *r, int node, char *stage, uint64_t n)
{
	const unsigned n_looks = n < MOST_LOOKS ? (unsigned)n : MOST_LOOKS;
	void *page[MOST_LOOKS] = {stage};
	int status[MOST_LOOKS];

	for (unsigned i = 1; i < n_looks; i++)
		page[i] = stage + (n - 1) * i / (n_looks - 1) * PAGE;
	if (r->calls->move_pages(0, n_looks, page, NULL, status, 0))
		return true;
	for (unsigned i = 0; i < n_looks; i++)
		if (status[i] >= 0 && status[i] != node)
			return false;
	return true;
}

/*
 * Where a node has no memory free, but caches of files, Linux takes memory of another one sooner than
 * that; to move pages it makes room. A copy that is elsewhere is of no use.
 */
static int bring(
	struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, bool insist, char *stage)
{
	const int node = mb_replica_node(r, view);
	void *page[BRING_PAGES];
	int to[BRING_PAGES], status[BRING_PAGES], rc = 0;

	if (node < 0 || is_on(r, node, stage, n))
		return 0;
	for (uint64_t i = 0; i < n && !rc; i += BRING_PAGES) {
		unsigned here = 0;

		for (; here < BRING_PAGES && i + here < n; here++) {
			page[here] = stage + (i + here) * PAGE;
			to[here] = node;
		}
		/* It may be that pages cannot move there at all: then they are where they are. */
		if (r->calls->move_pages(0, here, page, to, status, MPOL_MF_MOVE) < 0)
			return errno == ENOMEM ? failed(r) : 0;
		rc = mb_replica_is_wanted(r, first, insist);
	}
	if (rc || is_on(r, node, stage, n))
		return rc;
	errno = ENOSPC;
	return failed(r);
}

/*
 * By the page cache, for where it is asked for hole by hole: SEEK_HOLE goes on to the next hole, wherever
 * that is. What is swapped out is told as a hole, and is left alone.
 */
static bool look(const struct mb_replicas *r, uint64_t first, uint64_t n, bool *hole, uint64_t *alike)
{
	unsigned char there[BLOCK_PAGES];
	uint64_t i = 1;

	if (!r->config.own_base || n > BLOCK_PAGES ||
		mincore((char *)r->config.own_base + first * PAGE, n * PAGE, there))
		return false;
	while (i < n && (there[i] & 1) == (there[0] & 1))
		i++;
	*hole = !(there[0] & 1);
	*alike = i;
	return true;
}

static uint64_t seek(const struct mb_replicas *r, uint64_t first, uint64_t n, bool *hole)
{
	const off_t start = (off_t)(first * PAGE), end = (off_t)((first + n) * PAGE);
	off_t at = lseek(r->config.ram_fd, start, SEEK_HOLE);

	/* What cannot be told is as if it was there. */
	*hole = at == start;
	if (*hole)
		at = lseek(r->config.ram_fd, start, SEEK_DATA);
	/* Taken away, or made, in between: the first page is what it was. */
	return at <= start || at >= end ? (at == start ? 1 : n) : (uint64_t)(at - start) / PAGE;
}

uint64_t mb_replica_alike(const struct mb_replicas *r, uint64_t first, uint64_t n, bool *hole)
{
	uint64_t alike;

	return look(r, first, n, hole, &alike) ? alike : seek(r, first, n, hole);
}

/* From the file itself: no page of home enters a page table, and a hole stays one. */
int mb_replica_copy(
	struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, bool insist, void **stage)
{
	uint64_t done = 0;
	int rc = set_stage(r, r->copy_fd[view], first, n, stage);

	while (!rc && done < n * PAGE) {
		uint64_t left = n * PAGE - done;
		ssize_t got = r->calls->read(r->config.ram_fd, (char *)*stage + done,
			left < READ_BYTES ? left : READ_BYTES, (off_t)(first * PAGE + done));

		if (got > 0)
			done += (uint64_t)got;
		else if (!got)
			rc = -EIO;
		else if (errno != EINTR)
			rc = failed(r);
		if (!rc && done < n * PAGE)
			rc = mb_replica_is_wanted(r, first, insist);
		else if (!rc)
			rc = bring(r, view, first, n, insist, *stage);
		if (rc)
			mb_replica_drop(r, *stage, n);
	}
	return rc;
}

int mb_replica_install(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n,
	enum mapping mapping, void *stage)
{
	int rc;

	if (mapping == MERGED_PROTECTED)
		note_start(r, first, n);
	rc = arm_and_place(r, view, first, n, stage);
	if (!rc)
		note(r, view, first, n, mapping);
	return rc;
}

int mb_replica_install_armed(
	struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, void *stage)
{
	int rc;

	note_start(r, first, n);
	rc = place(r, view, first, n, stage);
	if (rc)
		mb_replica_drop(r, stage, n);
	else
		note(r, view, first, n, MERGED_PROTECTED);
	return rc;
}

/* In place of what is there. */
static int map_over(struct mb_replicas *r, char *at, uint64_t n, int prot, int fd, uint64_t offset,
	enum patience patience)
{
	for (unsigned i = 0; r->calls->map(at, n * PAGE, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
				     fd, (off_t)offset) == MAP_FAILED;
		i++) {
		int rc = failed(r);
		bool hole = is_hole(at, n);

		mb_replica_give_up_some(r);
		if (mb_replica_use_store(r))
			continue;
		if (!hole && i >= tries(patience))
			return rc;
		if (i >= TRIES)
			end_with_hole(r, rc);
		mb_replica_nap();
	}
	return 0;
}

int mb_replica_open(
	struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, enum patience patience)
{
	int rc = map_over(r, view_at(r, view, first), n, PROT_READ | PROT_WRITE, r->config.ram_fd,
		first * PAGE, patience);

	if (!rc)
		note(r, view, first, n, HOME_OPEN);
	return rc;
}

static char *own_at(const struct mb_replicas *r, uint64_t first)
{
	return (char *)r->config.own_base + first * PAGE;
}

int mb_replica_merge_home(struct mb_replicas *r, const char *seen, int fd, uint64_t offset,
	uint64_t first, uint64_t n)
{
	char *own = own_at(r, first);

	/* With its page table entries: they are there, from when it was compared. */
	if (r->calls->remap((void *)seen, n * PAGE, n * PAGE,
		    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, own) == MAP_FAILED) {
		int rc = map_over(r, own, n, PROT_READ, fd, offset, SHORT_PATIENCE);

		if (rc)
			return rc;
		madvise(own, n * PAGE, MADV_DONTDUMP);
	}
	note_merged(r, first, n, true);
	/* Where that fails memory is not given back, which is all. */
	fallocate(r->config.ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(first * PAGE),
		(off_t)(n * PAGE));
	return 0;
}

/* As src/ram_file.c maps it: both are wishes, and neighbours are one mapping again. */
static void settle(char *at, uint64_t n, bool small)
{
	madvise(at, n * PAGE, small ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	madvise(at, n * PAGE, MADV_DONTDUMP);
}

/* The pages are merged. */
static int fill(struct mb_replicas *r, uint64_t first, uint64_t n, enum patience patience)
{
	uint64_t done = 0;

	for (unsigned i = 0; done < n * PAGE;) {
		ssize_t got = r->calls->write(r->config.ram_fd, own_at(r, first) + done,
			n * PAGE - done, (off_t)(first * PAGE + done));
		int rc;

		if (got > 0) {
			done += (uint64_t)got;
			continue;
		}
		rc = got ? failed(r) : -EIO;
		if (rc != -EINTR && i++ >= tries(patience))
			return rc;
		mb_replica_nap();
	}
	return 0;
}

int mb_replica_fill_home(
	struct mb_replicas *r, uint64_t first, uint64_t n, enum patience patience)
{
	int rc = 0;

	for (uint64_t i = first, end; i < first + n && !rc; i = end) {
		bool merged = r->page[i].merged;

		for (end = i + 1; end < first + n && r->page[end].merged == merged;)
			end++;
		if (!merged)
			continue;
		/* At once: one page, for which the reader need not wait. */
		if (patience == AT_ONCE && end - i > 1)
			return -EAGAIN;
		if (MB_REPLICA_WRONG != WRONG_UNFILLED &&
			!__atomic_load_n(&r->discard, __ATOMIC_SEQ_CST))
			rc = fill(r, i, end - i, patience);
		if (!rc)
			rc = map_over(r, own_at(r, i), end - i, PROT_READ | PROT_WRITE,
				r->config.ram_fd, i * PAGE, patience);
		if (rc)
			return rc;
		settle(own_at(r, i), end - i, r->block[i / BLOCK_PAGES].small);
		note_merged(r, i, end - i, false);
	}
	return rc;
}

void mb_replica_wake(struct mb_replicas *r, uint64_t first, uint64_t n)
{
	for (unsigned v = 0; v < r->config.n_views; v++) {
		struct uffdio_range range = {
			.start = (uintptr_t)view_at(r, v, first), .len = n * PAGE};

		ioctl(r->config.uffd, UFFDIO_WAKE, &range);
	}
}

void mb_replica_free(
	struct mb_replicas *r, uint64_t first, uint64_t n, unsigned views, uint64_t n_copies)
{
	for (unsigned v = 0; v < r->config.n_views; v++)
		if (views >> v & 1)
			fallocate(r->copy_fd[v], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)(first * PAGE), (off_t)(n * PAGE));
	__atomic_sub_fetch(&r->bytes, n_copies * PAGE, __ATOMIC_RELAXED);
}

void mb_replica_settle(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n)
{
	settle(view_at(r, view, first), n, r->block[first / BLOCK_PAGES].small);
	if (r->config.watch)
		r->config.watch(r->config.ctx, view, first * PAGE, n * PAGE);
}

bool mb_replica_use_store(struct mb_replicas *r)
{
	void *spare = __atomic_exchange_n(&r->spare, NULL, __ATOMIC_RELAXED);

	if (spare)
		munmap(spare, STORE_PAGES * PAGE);
	return spare;
}

/* Every second page of one mapping is another one, so that to unmap it all makes room for many. */
void mb_replica_store_mappings(struct mb_replicas *r)
{
	char *store;

	if (__atomic_load_n(&r->spare, __ATOMIC_RELAXED))
		return;
	store = mmap(NULL, STORE_PAGES * PAGE, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (store == MAP_FAILED)
		return;
	for (unsigned i = 0; i < STORE_PAGES; i += 2) {
		if (mprotect(store + i * PAGE, PAGE, PROT_READ)) {
			munmap(store, STORE_PAGES * PAGE);
			return;
		}
	}
	__atomic_store_n(&r->spare, store, __ATOMIC_RELAXED);
}
