/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_MOVER_INTERNAL_H
#define MIRRORBALL_MOVER_INTERNAL_H

#include <mirrorball/mover.h>
#include <mirrorball/pagemap.h>
#include <pthread.h>

#include "batch_size.h"

#define PAGE  MB_HEAT_PAGE_BYTES
#define BLOCK MB_HEAT_BLOCK_BYTES

struct mb_mover {
	struct mb_mover_config config;
	bool moves_mapped; /* with MPOL_MF_MOVE_ALL */
	struct mb_batch_size batch;
	unsigned n_holds;  /* atomic */
	/* Held for each batch, so that who holds the mover waits for its end. */
	pthread_mutex_t lock;
	/* Under the lock, too. */
	struct mb_pagemap *pagemap; /* tells huge pages; NULL: nothing does */
	char *reserved, *alone;	    /* in it: where a block is mapped to be taken apart */
	uint64_t pause_ns;	    /* not before that time again */
	uint64_t n_apart, max_apart; /* blocks that are `small`, so that khugepaged leaves them so */
};

int mb_mover_split_begin(struct mb_mover *mover); /* 0 or -ENOMEM */
void mb_mover_split_finish(struct mb_mover *mover);

/*
 * A block, whose offset this is, is made of small pages from now on, and may be in no view's page
 * tables. -EBUSY: vCPUs or the kernel were in the way; -ECANCELED: the mover is held.
 */
int mb_mover_split(struct mb_mover *mover, uint64_t offset, struct mb_moved *moved);

/* It has one user again: khugepaged may put it together. */
void mb_mover_let_merge(struct mb_mover *mover, uint64_t offset);

/* Whether any page there is another file's (config.elsewhere). */
static inline bool mb_mover_is_elsewhere(const struct mb_mover *m, uint64_t offset, uint64_t len)
{
	return m->config.elsewhere && m->config.elsewhere(m->config.ctx, offset, len);
}

#endif
