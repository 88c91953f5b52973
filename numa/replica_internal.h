/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_NUMA_REPLICA_INTERNAL_H
#define MB_NUMA_REPLICA_INTERNAL_H

#include <mirrorball/replica.h>
#include <pthread.h>

#define PAGE	    MB_HEAT_PAGE_BYTES
#define BLOCK	    MB_HEAT_BLOCK_BYTES
#define BLOCK_PAGES MB_HEAT_BLOCK_PAGES

/* For a test that shows that a wrong order of steps is caught; nothing else may set it. */
#ifndef MB_REPLICA_WRONG
#define MB_REPLICA_WRONG 0
#endif
enum {
	WRONG_COPY_FIRST = 1, /* before home is protected */
	WRONG_OPEN_FIRST,     /* home is writable while a view still has a copy */
	WRONG_HOLD,	      /* does not collapse */
	WRONG_MERGE_FIRST,    /* compares before home is protected, and not after */
	WRONG_UNFILLED,	      /* home is writable without what it was merged with */
	WRONG_PUNCH_FIRST,    /* looks for zeroes before home is protected, and not after */
	WRONG_PUNCH_HELD,     /* punches what is held */
};

/* What a view maps; zero is how it begins. Merged: a page of another file. */
enum mapping { HOME_OPEN, HOME_PROTECTED, COPY_PROTECTED, MERGED_PROTECTED };

/* Of every page of guest memory; untouched ones cost nothing. */
struct page {
	uint16_t map; /* two bits a view: enum mapping */
	uint8_t level : 4; /* writes that ended a copy, one after the other */
	/* Home is a hole: the monitor's own mapping shows what views have, too. */
	bool merged : 1;
	bool starts : 1; /* merged with another part of a file than the page before */
	uint8_t until_high;
	uint32_t until_ms; /* no copy before; since creation, 34 years at most */
};
_Static_assert(2 * MB_HEAT_VIEWS <= 16, "two bits a view");
_Static_assert(sizeof(struct page) == 8, "of every page");

/* Pages of a block that writers wait for; of more than there is room for, those from the first of
 * them to the last. */
#define WAITING_PAGES 6u
struct waiting {
	uint64_t since_ns;
	uint16_t n, page[WAITING_PAGES];
	uint16_t first, last;
	bool more;
};

struct block {
	/*
	 * Held for all steps on its pages. No two of them are held at once. Whoever has it may wait
	 * for the reader of the userfaultfd, which therefore never waits for it.
	 */
	pthread_mutex_t lock;
	/*
	 * Whether a page may be other than HOME_OPEN. The replicator sets it and then looks at
	 * holds; who holds counts itself and then looks at this: one of them sees the other.
	 */
	bool active;	/* atomic; set and cleared under the lock */
	unsigned holds; /* atomic */
	/*
	 * The same for those who only read home by its address, and merging, which takes the page away
	 * from them. Whoever pins while it goes on waits for its end. Both atomic.
	 */
	unsigned pins;
	bool merging;

	/* Under the lock. */
	bool small;	   /* mapped without huge pages */
	unsigned n_away;   /* pages that are not HOME_OPEN */
	unsigned n_faults; /* since it had no copies */
	uint64_t woken_ns; /* who waited last */
	struct page whole; /* its level and until, for when all of it was collapsed */

	/* Under mb_replicas.queue_lock: faults for the worker. */
	bool queued; /* atomic: the replicator looks without */
	struct waiting waiting;
	uint32_t next;
};

struct mb_replicas {
	struct mb_replicas_config config;
	const struct mb_replica_calls *calls;
	int copy_fd[MB_HEAT_VIEWS];
	int only_node[MB_HEAT_VIEWS]; /* mb_replica_node; atomic */
	uint64_t n_blocks, start_ns;
	struct page *page;
	struct block *block;

	/* Mappings kept in store for a collapse that cannot do without; NULL: used up. Atomic. */
	void *spare;

	/* Innermost. Protects the counts: who changes what pages are mapped to has it. */
	pthread_mutex_t count_lock;
	uint64_t n_mappings;
	uint64_t view_pages[MB_HEAT_VIEWS]; /* that the view has a copy of */
	/* The same for each block, side by side so that a terabyte is read in a moment. Atomic. */
	uint16_t *block_pages[MB_HEAT_VIEWS];
	uint16_t *block_merged; /* pages of it that are merged; atomic */
	bool discard;		/* atomic */

	uint64_t bytes;			/* atomic */
	uint64_t cursor;		/* atomic: the block where reclaim goes on */
	uint64_t given_up; /* only the worker: the block where it goes on to give up copies */
	uint64_t n_old; /* atomic: blocks from the first on that reclaim_old has left */
	struct mb_replicas_stats stats; /* its counters are atomic */

	pthread_mutex_t queue_lock;
	pthread_cond_t queue_wake;
	uint32_t queue_head, queue_tail; /* index + 1 */
	pthread_t reader, worker;
	bool reader_runs, worker_runs;
	bool stop, too_many; /* under queue_lock; too_many: mappings, for the worker */
	int stop_fd;
};

static inline enum mapping mb_replica_mapping(uint16_t map, unsigned view)
{
	return (enum mapping)(map >> 2 * view & 3);
}

/* What a step does that fails for want of memory or mappings: nothing; try for 30 ms; for 10 s. Only
 * who has at least some may wait for the reader of the userfaultfd. */
enum patience { AT_ONCE, SHORT_PATIENCE, PATIENT };

/* ---- numa/replica_map.c: the steps. The caller has the lock of the block. ---- */

/* All on pages [first, first + n), which are alike and in one block. -errno: nothing has changed.
 */
int mb_replica_protect(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n);
/*
 * The same of what is home now, where it is, with fewer calls: other mappings than those that protect
 * makes, and so for what is soon something else. Nothing is lost meanwhile: what is written before the
 * return is home's.
 */
int mb_replica_protect_here(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n);
/* The same as protect in place of a copy, for a collapse: uses what is in store. */
int mb_replica_withdraw(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n,
	enum patience patience);
/*
 * -ECANCELED, which no system call says: a writer waits already, and it is not worth it. Unless that
 * is expected (insist): then it waits for the other steps of this run, and gets the page that it wants.
 */
int mb_replica_is_wanted(const struct mb_replicas *r, uint64_t first, bool insist);
/* How many of n pages from `first` on are alike in that: memory is behind them, or (*hole) none. */
uint64_t mb_replica_alike(const struct mb_replicas *r, uint64_t first, uint64_t n, bool *hole);
/* The only node where copies of the view are of use; -1: others are as good. */
int mb_replica_node(const struct mb_replicas *r, unsigned view);
/* *stage: for install, or for drop. */
int mb_replica_copy(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, bool insist,
	void **stage);
/* Takes the stage, even if it fails. COPY_PROTECTED or MERGED_PROTECTED. */
int mb_replica_install(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n,
	enum mapping mapping, void *stage);
/* Pages of a file that others may have, too; for install, or for drop. */
int mb_replica_stage_merged(
	struct mb_replicas *r, int fd, uint64_t offset, uint64_t n, void **stage);
/* A large stage that is armed already; install_armed moves its first n pages out of it, or drops them. For
 * drop. */
int mb_replica_arm_merged(
	struct mb_replicas *r, int fd, uint64_t offset, uint64_t n, void **stage);
int mb_replica_install_armed(
	struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n, void *stage);
/* To compare with, and for merge_home; for drop. */
int mb_replica_see_merged(struct mb_replicas *r, int fd, uint64_t offset, uint64_t n, char **seen);
/* When all views have them: our own mapping, from `seen`, and home gives its memory back. */
int mb_replica_merge_home(struct mb_replicas *r, const char *seen, int fd, uint64_t offset,
	uint64_t first, uint64_t n);
/* Those that are merged are filled with what they were merged with, and so is our own mapping, before
 * any view can write them. */
int mb_replica_fill_home(
	struct mb_replicas *r, uint64_t first, uint64_t n, enum patience patience);
void mb_replica_drop(struct mb_replicas *r, void *stage, uint64_t n);
/* Uses what is in store. */
int mb_replica_open(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n,
	enum patience patience);
/* 10 ms, before what has failed is tried again. */
void mb_replica_nap(void);
/* That copies add. */
uint64_t mb_replica_n_mappings(struct mb_replicas *r);
/* How many fewer there would be if all of this block were at home; below 0: more. */
int mb_replica_freed_mappings(struct mb_replicas *r, uint64_t block);
/* In every view. */
void mb_replica_wake(struct mb_replicas *r, uint64_t first, uint64_t n);
/* The memory of these views' copies, which no view maps: n_copies pages, all views together. */
void mb_replica_free(
	struct mb_replicas *r, uint64_t first, uint64_t n, unsigned views, uint64_t n_copies);
/* After open: for huge pages, and for the tracker. */
void mb_replica_settle(struct mb_replicas *r, unsigned view, uint64_t first, uint64_t n);

/* Puts some into store, if there are none; gives them back, and says whether there were any. */
void mb_replica_store_mappings(struct mb_replicas *r);
bool mb_replica_use_store(struct mb_replicas *r);

/* ---- numa/replica.c ---- */

/*
 * Makes pages [first, first + n) of a block one again, and wakes who waits for them. -EAGAIN, at
 * once: that would have needed to wait. Caller has the lock.
 */
int mb_replica_collapse_pages(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, enum patience patience);
/* The same because of a write of these pages, or more. Caller has the lock. */
int mb_replica_written(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, enum patience patience);

/* Who has the lock of a block, and did something with it. */
void mb_replica_unlock(struct block *b);

/* Calls fn for the part of a range in each block, until it fails. */
int mb_replica_each_block(struct mb_replicas *r, uint64_t offset, uint64_t len,
	int (*fn)(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg),
	void *arg);
/* Whether the page gets nothing now because it was written lately. Caller has the lock. */
bool mb_replica_waits(const struct mb_replicas *r, const struct page *page);
/* Whether somebody waits for the block, or holds it. */
bool mb_replica_block_is_wanted(const struct block *b);
/* Whether there are mappings for what needs some for a moment; puts some into store. */
bool mb_replica_has_mappings(struct mb_replicas *r);
/* Whether there are mappings to merge some more: fewer than for copies, so that these have some, and single
 * pages may collapse. */
bool mb_replica_may_merge(struct mb_replicas *r);
/* What there is in a part of a block is collapsed. Takes its lock. */
int mb_replica_collapse_part(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg);
/* Home is protected in every view; brief: for something that is done before the lock is given back.
 * Caller has the lock. */
int mb_replica_protect_all(
	struct mb_replicas *r, uint64_t first, uint64_t n, bool insist, bool brief);

/*
 * Collapses a block, for the worker: the next of those of which that frees mappings, or any.
 * -ENOENT: there is none. -EBUSY: others have the locks of all of them.
 */
int mb_replica_give_up_block(struct mb_replicas *r);

/* ---- numa/replica_fault.c ---- */

int mb_replica_start_threads(struct mb_replicas *r);
void mb_replica_stop_threads(struct mb_replicas *r);
/* Has the worker give up copies until there are few enough mappings. Does not wait. */
void mb_replica_give_up_some(struct mb_replicas *r);

#endif
