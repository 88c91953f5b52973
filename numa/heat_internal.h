/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_NUMA_HEAT_INTERNAL_H
#define MB_NUMA_HEAT_INTERNAL_H

#include <mirrorball/heat.h>

/* What decides, and where. Chances are of a page in a window. */
#define MB_HEAT_CHANGED		0.5f /* so far from what was known is news */
#define MB_HEAT_NEW_SHARE	0.5f /* of a new sample in what is known */
#define MB_HEAT_HOT		0.8f /* above: a shorter window tells more */
#define MB_HEAT_NEVER		0.01f
#define MB_HEAT_COLD		0.2f	       /* below: a longer window tells more */
#define MB_HEAT_ALIKE		0.2f	       /* buddies that may be one */
#define MB_HEAT_DETAIL_AGAIN_NS 60000000000ull /* what was found may have changed */
#define MB_HEAT_BACKOFF_MAX_NS	600000000000ull
#define MB_HEAT_SAMPLES_DECAY	0.8f

extern const uint64_t mb_heat_window_ns[MB_HEAT_WINDOWS];

/* Chances that a page is touched, and written, by each view within the region's window. */
struct known {
	float touch[MB_HEAT_VIEWS], write[MB_HEAT_VIEWS];
	float samples; /* how many are behind it; older ones count less */
};

/* The same for each page of a block, 255 for 1. */
struct pages {
	uint8_t touch[MB_HEAT_VIEWS][MB_HEAT_BLOCK_PAGES];
	uint8_t write[MB_HEAT_VIEWS][MB_HEAT_BLOCK_PAGES];
	uint8_t looks[MB_HEAT_BLOCK_PAGES]; /* at each page, at most 255 */
	uint64_t odd[MB_HEAT_BLOCK_WORDS];  /* not like the others */
};

/*
 * Through the region's window, and through the longest one: pages that are hardly ever touched in
 * the former, because others of their block are so much hotter, would all be 0.
 */
struct detail {
	struct pages quick, slow;
	bool even;			   /* by what was seen so far its pages may be alike */
	uint64_t odd[MB_HEAT_BLOCK_WORDS]; /* but these */
	float touch[MB_HEAT_VIEWS];	   /* how much of them each view is known to touch: 0..1 */
	uint64_t seen_ns;
	float samples;
	float agrees; /* the last looks at pages with what is known of them: 1, to -1 */
	/* Of looks at the whole: since its window was changed; and the last ones, in which only
	 * views were there that hardly use it. */
	unsigned whole_looks, minors;
	/* When each view was last there, and looks since in which others were. */
	uint64_t view_ns[MB_HEAT_VIEWS];
	uint8_t away[MB_HEAT_VIEWS];
	float there[MB_HEAT_VIEWS]; /* how often it was until then, of looks at the whole: 0..1 */
};

struct region {
	uint64_t first, n; /* blocks; n is a power of two, first a multiple of it */
	unsigned window;   /* index into mb_heat_window_ns */
	unsigned turn[2];  /* of its picks, and of those for a probe */
	unsigned n_probes; /* in vain, since the last window of its own */
	unsigned n_hits;   /* not in vain, the last ones in a row */
	struct known half[2];
	struct detail *detail; /* of a single block, or NULL */
	unsigned to_slow; /* 1: the next look is through the longest window; 0: none is wanted */
	bool picked, in_use, huge;
	bool zoomed; /* in small pages for now; still called huge */
	uint64_t seen_ns, due_ns;
	uint64_t uneven_before_ns; /* blocks of a run differed, not long ago */
	uint64_t uneven_block;	   /* where that was */
	bool is_odd;		   /* that block, by itself, is not like the others */
	uint64_t no_split_before_ns, split_wait_ns;
	uint64_t no_zoom_before_ns, zoom_wait_ns;
	uint64_t no_detail_before_ns;
};

struct mb_heat_map {
	unsigned n_views, n_turns, n_regions, max_regions, n_details, max_details;
	uint32_t seed;
	bool has_odd;		/* a region whose odd block was seen since the last adaptation */
	uint64_t max_blocks;	/* of a region */
	struct region **region; /* in order, without gaps; room for max_regions */
};

/* The next one of a row of numbers; any will do (an LCG). */
static inline uint32_t mb_heat_random(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed;
}

/* All bits of a seed count (the finalizer of MurmurHash3, as a formula). */
static inline uint32_t mb_heat_mix(uint32_t x)
{
	x = (x ^ x >> 16) * 0x85ebca6bu;
	x = (x ^ x >> 13) * 0xc2b2ae35u;
	return x ^ x >> 16;
}

static inline unsigned mb_heat_count(const uint64_t bits[MB_HEAT_BLOCK_WORDS])
{
	unsigned n = 0;

	for (unsigned i = 0; i < MB_HEAT_BLOCK_WORDS; i++)
		n += (unsigned)__builtin_popcountll(bits[i]);
	return n;
}

static inline bool mb_heat_bit(const uint64_t *bits, unsigned i)
{
	return bits[i / 64] >> i % 64 & 1;
}

/* By what was seen so far all pages may be used in the same way. */
static inline bool mb_heat_are_alike(const struct detail *d)
{
	return d->even && !mb_heat_count(d->odd);
}

/* The highest of the values of a block's pages. */
static inline uint8_t mb_heat_most(const uint8_t value[MB_HEAT_BLOCK_PAGES])
{
	uint8_t most = 0;

	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		most = value[i] > most ? value[i] : most;
	return most;
}

struct known mb_heat_known(const struct mb_heat_map *map, const struct region *r);
float mb_heat_confidence(float samples, uint64_t age_ns);
/* numa/heat_extents.c: touches a second that come of such chances in a window. */
float mb_heat_rate(float p, unsigned window);
/* A growing array of extents; the last one grows while what comes is like it. -ENOMEM. */
struct mb_heat_list {
	struct mb_extent *extent;
	unsigned n, room;
	unsigned n_views;
};
int mb_heat_append(struct mb_heat_list *list, const struct mb_extent *e);
/* The same for one that is to stay by itself. */
int mb_heat_push(struct mb_heat_list *list, const struct mb_extent *e);
struct mb_heat mb_heat_of(float touch, float write, unsigned window);
/* The same rates seen through another window. */
void mb_heat_know_through(struct known *known, unsigned n_views, unsigned from, unsigned to);
float mb_heat_max_touch(const struct known *known, unsigned n_views);
float mb_heat_difference(const struct known *a, const struct known *b, unsigned n_views);

struct region *mb_heat_new_region(uint64_t first, uint64_t n); /* NULL: out of memory */
void mb_heat_free_region(struct mb_heat_map *map, struct region *r);
/* The region that has this block: they are in order and leave no gap. */
struct region *mb_heat_find_region(const struct mb_heat_map *map, uint64_t block);
/* Whether its pages are looked at through the longest window anyway. */
bool mb_heat_is_slow(const struct region *r, bool zoomed);
/* A part of it is worth a look at its pages, for which it has to be a single block. */
bool mb_heat_may_be_mixed(const struct mb_heat_map *map, const struct region *r, uint64_t now_ns);
void mb_heat_change_window(struct mb_heat_map *map, struct region *r, unsigned window);

/* numa/heat_detail.c */
void mb_heat_drop_detail(struct mb_heat_map *map, struct region *r);
void mb_heat_learn_pages(struct mb_heat_map *map, struct region *r, const struct mb_heat_seen *seen,
	uint64_t now_ns);
/* After values of its pages have changed. */
void mb_heat_detail_sum(const struct mb_heat_map *map, struct detail *d);
/* Views that use some of its pages. */
unsigned mb_heat_detail_users(const struct mb_heat_map *map, const struct detail *d);
/* By the detail, all who were there do use it, and who wrote does write it. */
bool mb_heat_detail_knows(
	const struct mb_heat_map *map, const struct region *r, const struct mb_heat_seen *seen);
/* Of what is seen of the whole next, in what is known of it. */
float mb_heat_detail_share(struct region *r);
/* The detail is of old, and others use the block now. Takes note of who was there. */
bool mb_heat_detail_is_wrong(const struct mb_heat_map *map, const struct region *r,
	const struct mb_heat_seen *seen, uint64_t now_ns);
/* One of its users has not been there for long, while others were. */
bool mb_heat_detail_is_left(const struct mb_heat_map *map, const struct region *r, uint64_t now_ns);
/* All pages are alike after all: it is not worth its place. */
bool mb_heat_detail_is_even(const struct mb_heat_map *map, const struct region *r);

#endif
