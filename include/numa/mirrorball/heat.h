/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_HEAT_H
#define MIRRORBALL_HEAT_H

#include <stdbool.h>
#include <stdint.h>

/*
 * How often each view touches and writes guest memory, learnt from samples: pure arithmetic, no
 * system call, no clock. The tracker (tracker.h) takes the samples, the policy reads the extents.
 *
 * Memory is a file in blocks of 2 MiB. A *region* is one block or a power of two of them: it is
 * divided where its parts differ and joined with its buddy where they do not, so their number
 * depends on the differences and not on the memory; memory that several views use and somebody
 * writes is divided to blocks, up to a quarter of max_regions. A block whose pages differ has a
 * *detail*: a value for each of its 4 KiB pages.
 *
 * One thread at a time.
 */
#define MB_HEAT_VIEWS	      8u
#define MB_HEAT_PAGE_BYTES    4096ull
#define MB_HEAT_BLOCK_PAGES   512u
#define MB_HEAT_BLOCK_BYTES   (MB_HEAT_PAGE_BYTES * MB_HEAT_BLOCK_PAGES)
#define MB_HEAT_BLOCK_WORDS   (MB_HEAT_BLOCK_PAGES / 64)
#define MB_HEAT_RUN_BLOCKS    16u /* of one sample, at most */
#define MB_HEAT_WINDOWS	      5u  /* lengths of a window, from MB_HEAT_WINDOW_MIN_NS on */
#define MB_HEAT_WINDOW_MIN_NS 10000000ull
#define MB_HEAT_WINDOW_MAX_NS 1000000000ull
#define MB_HEAT_ZOOM_WINDOWS  10u /* times as long is a window inside a block, up to the longest */

struct mb_heat_map;

struct mb_heat_config {
	uint64_t n_blocks;    /* of memory, at least 1 */
	unsigned n_views;     /* 1..MB_HEAT_VIEWS */
	unsigned max_regions; /* 0: 4096 */
	unsigned max_details; /* 0: 256 */
	unsigned n_turns;     /* it is looked at in one of so many (below); 0: always */
};

/* -EINVAL, -ENOMEM. There are always more regions than memory begins with, some 200. */
int mb_heat_create(const struct mb_heat_config *config, struct mb_heat_map **out);
void mb_heat_destroy(struct mb_heat_map *map); /* takes NULL */

/* ---- sampling ---- */

/* What is worth looking at next. */
struct mb_heat_pick {
	uint64_t first_block;
	unsigned n_blocks; /* 1..MB_HEAT_RUN_BLOCKS, all of one region */
	uint64_t region_first, region_blocks;
	unsigned turn; /* counts on: where less than all of it is looked at, which part, by turns */
	uint64_t window_ns;
	bool zoom; /* one block, in a huge page, that several views touch: in small pages, please */
	bool small; /* one block, in small pages when it was last looked at */
	bool slow; /* one block, for those of its pages that windows of its own tell nothing of */
	bool probe; /* shorter than its own: whether it is in use now */
};

/*
 * The region that has waited longest for its turn, of those that ask for windows of
 * [min_window_ns, max_window_ns] or are in small pages; false: none is due at now_ns. *due_ns is
 * then when one will be. A picked region is not picked again before it was learnt or skipped.
 * `may_begin_zoom`: one may be asked for. `seed` says where in a large region (any number; tests
 * repeat it).
 */
bool mb_heat_pick(struct mb_heat_map *map, uint64_t now_ns, uint64_t min_window_ns,
	uint64_t max_window_ns, bool may_begin_zoom, uint32_t seed, struct mb_heat_pick *pick,
	uint64_t *due_ns);
/* Nothing came of it; in_use false: there is no memory in the whole region, ask again later. */
void mb_heat_skip(
	struct mb_heat_map *map, const struct mb_heat_pick *pick, bool in_use, uint64_t now_ns);

/* What was seen of one view. A bit a page, block after block from the pick's first. */
struct mb_heat_seen_view {
	uint64_t touched[MB_HEAT_RUN_BLOCKS][MB_HEAT_BLOCK_WORDS];
	uint64_t written[MB_HEAT_RUN_BLOCKS][MB_HEAT_BLOCK_WORDS];
};

struct mb_heat_seen {
	struct mb_heat_pick pick;
	/* The pages looked at, of the first block if the pick has one block: 0 and
	 * MB_HEAT_BLOCK_PAGES unless only a part was worth its cost. */
	unsigned first_page, n_pages;
	bool knows_writes; /* written is valid */
	bool hole;	   /* there is no memory: it cost nothing, and says nothing of huge pages */
	uint32_t huge;	   /* bit a block: mapped as one page, all its bits are the same */
	uint32_t zoomed;   /* bit a block: in small pages because of a zoom */
	struct mb_heat_seen_view *view; /* n_views of them */
};
void mb_heat_learn(struct mb_heat_map *map, const struct mb_heat_seen *seen, uint64_t now_ns);

/* A zoom into this block ends: another one has to wait, longer each time that it finds nothing. */
void mb_heat_zoomed(struct mb_heat_map *map, uint64_t block, uint64_t now_ns);

/* Divides and joins regions where what was learnt asks for it; once a second is enough, and at
 * once when mb_heat_wants_adapt says so: a block of a region has another user. */
void mb_heat_adapt(struct mb_heat_map *map, uint64_t now_ns);
bool mb_heat_wants_adapt(const struct mb_heat_map *map);

unsigned mb_heat_n_regions(const struct mb_heat_map *map);
/* Blocks of regions that were looked at. */
uint64_t mb_heat_n_covered(const struct mb_heat_map *map);
/* Blocks of regions that were in huge pages then. */
uint64_t mb_heat_n_huge(const struct mb_heat_map *map);

/* ---- what is known ---- */

/*
 * Touches a second that a page has, as far as windows tell them apart: between 0 and 460 (touched
 * in every window of 10 ms). A page that is read and written in the same window counts as written.
 */
struct mb_heat {
	float read, write;
};

/* Memory side by side that is used alike. */
struct mb_extent {
	uint64_t offset, len_bytes; /* in the file; multiples of 4 KiB */
	float confidence; /* 0: nothing is known yet, towards 1: looked at often and of late */
	uint32_t age_ms;  /* since it was last looked at */
	bool huge;	  /* mapped as huge pages */
	int node;	  /* where most of it lives; -1: unknown. Not from here: tracker.h */
	float node_share; /* how much of it, 0..1 */
	struct mb_heat view[MB_HEAT_VIEWS]; /* or of each group of vCPUs (mb_heat_combine) */
};

/*
 * Extents in order; the caller frees the array. Regions without memory are left out. -ENOMEM.
 */
int mb_heat_extents(
	const struct mb_heat_map *map, uint64_t now_ns, struct mb_extent **out, unsigned *n);

/* ---- more groups of vCPUs than views ---- */

/*
 * Groups that share views by turns, each with a map of its own, are told apart: in turn t the view
 * of a group is digit t of its number, to the base of n_views. With two views and four groups that
 * is {0, 2} {1, 3}, then {0, 1} {2, 3}. Of memory that one group uses the other groups of its view
 * are not seen in some other turn.
 */
#define MB_HEAT_TURNS 3u /* of two views and MB_HEAT_VIEWS groups */

/* How many turns it takes, 1 where there is a view for each group, or one for all. */
unsigned mb_heat_n_turns(unsigned n_groups, unsigned n_views);
unsigned mb_heat_view_of(unsigned group, unsigned turn, unsigned n_views);

/* What maps of turns say. */
struct mb_heat_turn {
	struct mb_extent *extent;
	unsigned n;
};

/*
 * The heat of each group, in place of that of each view: the least that a turn says of its view.
 * What not all turns know of has confidence 0, and what only some have is left out. As
 * mb_heat_extents.
 */
int mb_heat_combine(const struct mb_heat_turn *turn, unsigned n_turns, unsigned n_groups,
	unsigned n_views, struct mb_extent **out, unsigned *n);

#endif
