/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_MOVER_H
#define MIRRORBALL_MOVER_H

#include <mirrorball/error.h>
#include <mirrorball/heat.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Moves guest memory between the host's nodes while the guest runs: actions in, system calls out
 * (design, section 4.3). What is in memory does not change, nor does what the guest sees: the
 * kernel takes a page out of every page table, copies it, and puts the copy there; a vCPU that
 * comes meanwhile waits for that page, at most for one batch.
 *
 * A page that is pinned (a disk read in flight) or whose new node has no memory stays where it is,
 * and is counted. One thread moves at a time; any thread stops it.
 */
struct mb_mover;

/*
 * Moved with one system call, fewer where that takes long. Each of them has every CPU put its lists
 * of pages in order: with 64 pages at a time the mover was a third as fast as with these.
 */
#define MB_MOVER_BATCH_PAGES 512u

struct mb_mover_config {
	int ram_fd;
	uint64_t ram_bytes;
	unsigned n_views;		/* 1..MB_HEAT_VIEWS */
	void *view_base[MB_HEAT_VIEWS]; /* where each view has all of the file */
	void *own_base;			/* a mapping of all of it that is no view */
	/*
	 * false: as without CAP_SYS_NICE, for tests. The kernel then moves only what a single
	 * mapping has. That suffices for memory that one view uses, at any rate; what several views
	 * touch all the time is taken back before it can be moved, and mostly counts as busy.
	 */
	bool may_move_mapped;
	/*
	 * No vCPU is in the guest until `resume`: true. Not within that time: false, and they go
	 * on. Called on the mover's thread. NULL: huge pages that vCPUs touch all the time cannot
	 * be taken apart.
	 */
	bool (*pause)(void *ctx, uint64_t timeout_ns);
	void (*resume)(void *ctx);
	/*
	 * For each block of 2 MiB whether huge pages are unwanted in it: whoever maps parts of views
	 * anew looks here. All false at first; only the mover writes it, atomically. keep_small is
	 * told of each change, under a lock: calls nothing here. NULL: nobody is.
	 */
	bool *small;
	void (*keep_small)(void *ctx, uint64_t offset, bool small);
	/* Whether any page that views show there is another file's, which stays where it is: then it
	 * counts as there. As of about now: one may be moved, which is not wrong. NULL: never. */
	bool (*elsewhere)(void *ctx, uint64_t offset, uint64_t len);
	void *ctx;
};

/* -ENOMEM; -ENOSYS where the kernel has no NUMA. The mappings must outlive it. */
int mb_mover_create(const struct mb_mover_config *config, struct mb_mover **out);
void mb_mover_destroy(struct mb_mover *mover); /* takes NULL */

/*
 * [offset, offset + len_bytes) of the file, multiples of 4 KiB, to a node of the host. A huge page
 * of which a part is in it moves as a whole, or is taken apart with `split`.
 */
struct mb_move {
	uint64_t offset, len_bytes;
	unsigned node;
	bool huge;  /* most of it is huge pages: faster, if it is so */
	bool split; /* nothing else moves; where that is not possible just then, it counts as busy */
	/*
	 * Bit k: its k-th page is to move; of a range within 2 MiB. What is left out counts for
	 * nothing below, but is part of huge pages. NULL: all.
	 */
	const uint64_t *pages;
};

/*
 * The next run of pages of it that are to move, from *offset on: there it begins then, and so many
 * bytes it has; 0: there is none.
 */
uint64_t mb_move_run(const struct mb_move *move, uint64_t *offset);

/* What became of each byte of it; they add up, unless it was stopped. */
struct mb_moved {
	uint64_t moved_bytes;
	uint64_t there_bytes;  /* were on that node already */
	uint64_t absent_bytes; /* no memory behind it */
	uint64_t busy_bytes;   /* pinned, or otherwise in use by the kernel just then */
	uint64_t full_bytes;   /* the node has no memory left */
	uint64_t split_bytes;  /* of huge pages that were taken apart for it; besides the others */
	uint64_t ns;	       /* how long it took */
	uint64_t longest_ns;   /* the batch that took longest: no vCPU has waited longer */
};

/*
 * Adds to *moved. 0; -ECANCELED when stopped: what was not reached is in none of the counts.
 * -EINVAL: such a range or node is not there; -EPERM: the cgroup's cpuset forbids the node.
 */
int mb_mover_move(struct mb_mover *mover, const struct mb_move *move, struct mb_moved *moved);

/*
 * From the return of hold to release no page is being moved, and moves end with -ECANCELED at once:
 * for when the machine is paused, its memory is emptied, or it ends. Counted. Any thread. Takes
 * NULL.
 */
void mb_mover_hold(struct mb_mover *mover);
void mb_mover_release(struct mb_mover *mover);

/* What it knows of memory is no longer true: it was emptied. While it is held. Takes NULL. */
void mb_mover_forget(struct mb_mover *mover);

#endif
