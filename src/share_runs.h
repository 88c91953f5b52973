/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_SHARE_RUNS_H
#define MB_SHARE_RUNS_H

#include <mirrorball/commons.h>
#include <mirrorball/heat.h>
#include <stdbool.h>
#include <stdint.h>

#define PAGE  MB_HEAT_PAGE_BYTES
#define PIECE ((uint64_t)MB_COMMONS_PIECE)

/* Pages of guest memory that came from one piece of a base, side by side in both. */
struct run {
	uint64_t ram, at; /* bytes */
	uint32_t n_pages;
	uint8_t base, tries;
};

struct runs {
	struct run *run;
	unsigned n, max;
};

/* Of the part of [at, end) that is in one piece. */
static inline uint64_t mb_end_in_piece(uint64_t at, uint64_t end)
{
	uint64_t next = (at / PIECE + 1) * PIECE;

	return next < end ? next : end;
}

static inline uint64_t mb_run_end(const struct run *run)
{
	return run->at + run->n_pages * PAGE;
}

/* -ENOMEM. `run` is for free(3). */
int mb_runs_create(struct runs *runs);
/* A run of one piece, which may become one with the last. False: no room. */
bool mb_runs_add(struct runs *runs, const struct run *run);
/* A run of any length. Bytes of what there was no room for. */
uint64_t mb_runs_add_by_piece(struct runs *runs, struct run run);
/* By their place in a base, then in memory. */
void mb_runs_sort(struct runs *runs);
/* The whole pages of `len` bytes; false: none, or not as far from a page's beginning in both. */
bool mb_run_of_whole_pages(uint64_t ram, uint64_t at, uint64_t len, struct run *run);

#endif
