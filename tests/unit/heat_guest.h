/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HEAT_GUEST_H
#define HEAT_GUEST_H

#include <check.h>
#include <mirrorball/heat.h>

/*
 * A guest that is arithmetic: each page has a rate of reads and of writes from each view, and
 * samples are drawn from them, in simulated time. Seeds are fixed: a failure repeats itself.
 */
#define MS	   1000000ull
#define SECOND	   1000000000ull
#define VIEWS	   2u
#define ZOOM_LOOKS 24u /* as the tracker does it */

struct use {
	float read[VIEWS], write[VIEWS]; /* a second, of each page */
};

extern struct mb_heat_map *map;
extern struct mb_heat_seen_view view[MB_HEAT_VIEWS]; /* what the last look saw */
extern bool in_huge_pages;
extern uint64_t zoomed_block;
extern unsigned zoom_looks; /* that are left in it */
extern uint64_t now, n_samples, n_zooms;
extern bool may_zoom;
extern uint64_t most_window_ns; /* that is opened */
extern bool one_at_a_time;	/* a look sees one block, since no more may be out */
extern uint32_t seed;
extern struct mb_extent *extents;
extern unsigned n_extents;

void make(uint64_t n_blocks, bool huge, struct use (*use)(uint64_t page));
/* What the b-th block of the pick shows in its window, into view. */
void see_block(struct mb_heat_seen *seen, unsigned b);
/* One sample at a time, at most 50 a second; and looks into a block one after the other. */
void run(double seconds);
void take_extents(void);
const struct mb_extent *extent_of(uint64_t page);
void finish(void);

/* Pages of a huge page (block 5) that are used by different views: only a zoom tells. */
struct use halves_of_a_block(uint64_t page);

#endif
