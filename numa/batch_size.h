/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BATCH_SIZE_H
#define BATCH_SIZE_H

#include <stdint.h>

/*
 * How many pages the mover moves with one call. Beside vCPUs that use those pages the kernel may
 * try each of them again and again, so a call that took long makes the next ones smaller; but where
 * it is the call that takes long, with few pages as well (it has every CPU do something, and those
 * may be busy), more calls would take all the longer.
 */
struct mb_batch_size {
	unsigned pages;	  /* at most, of the next one; MB_MOVER_BATCH_PAGES at first */
	uint64_t call_ns; /* of the last one of hardly any page; 0: there was none */
};

/* A call moved so many pages. */
void mb_batch_size_note(struct mb_batch_size *size, unsigned n_pages, uint64_t took_ns);

#endif
