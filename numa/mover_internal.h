/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_MOVER_INTERNAL_H
#define MIRRORBALL_MOVER_INTERNAL_H

#include <mirrorball/mover.h>
#include <mirrorball/pagemap.h>
#include <pthread.h>

#define PAGE  MB_HEAT_PAGE_BYTES
#define BLOCK MB_HEAT_BLOCK_BYTES

struct mb_mover {
	struct mb_mover_config config;
	bool moves_mapped; /* with MPOL_MF_MOVE_ALL */
	unsigned most;	   /* pages of a batch */
	unsigned n_holds;  /* atomic */
	/* Held for each batch, so that who holds the mover waits for its end. */
	pthread_mutex_t lock;
	/* Blocks that were taken apart; the thread that moves. */
	struct mb_pagemap *pagemap; /* tells huge pages; NULL: nothing does */
	unsigned char *apart;	    /* bit for each block: khugepaged is told to leave it so */
	uint64_t n_apart, max_apart;
};

int mb_mover_split_begin(struct mb_mover *mover); /* 0 or -ENOMEM */
void mb_mover_split_finish(struct mb_mover *mover);

/*
 * A block, whose offset this is, is made of small pages from now on. 0, and *split: it was a huge
 * page. -EBUSY: vCPUs or the kernel were in the way; -ECANCELED: the mover is held.
 */
int mb_mover_split(struct mb_mover *mover, uint64_t offset, struct mb_moved *moved, bool *split);

/* It has one user again: khugepaged may put it together. */
void mb_mover_let_merge(struct mb_mover *mover, uint64_t offset);

#endif
