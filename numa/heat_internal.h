/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_NUMA_HEAT_INTERNAL_H
#define MB_NUMA_HEAT_INTERNAL_H

#include <mirrorball/heat.h>

extern const uint64_t mb_heat_window_ns[MB_HEAT_WINDOWS];

/* Chances that a page is touched, and written, by each view within the region's window. */
struct known {
	float touch[MB_HEAT_VIEWS], write[MB_HEAT_VIEWS];
	float samples; /* how many are behind it; older ones count less */
};

/* The same for each page of a block, 255 for 1. */
struct detail {
	uint8_t touch[MB_HEAT_VIEWS][MB_HEAT_BLOCK_PAGES];
	uint8_t write[MB_HEAT_VIEWS][MB_HEAT_BLOCK_PAGES];
	uint8_t looks[MB_HEAT_BLOCK_PAGES]; /* at each page, at most 255 */
	uint64_t seen_ns;
	float samples;
};

struct region {
	uint64_t first, n; /* blocks; n is a power of two, first a multiple of it */
	unsigned window;   /* index into mb_heat_window_ns */
	unsigned turn;	   /* which half is next, if a run does not cover it */
	struct known half[2];
	struct detail *detail; /* of a single block, or NULL */
	bool picked, in_use, huge;
	uint64_t seen_ns, due_ns;
	uint64_t uneven_before_ns; /* blocks of a run differed, not long ago */
	uint64_t uneven_block;	   /* where that was */
	uint64_t no_split_before_ns, split_wait_ns;
	uint64_t no_zoom_before_ns, zoom_wait_ns;
	uint64_t no_detail_before_ns;
};

struct mb_heat_map {
	unsigned n_views, n_regions, max_regions, n_details, max_details;
	uint64_t max_blocks;	/* of a region */
	struct region **region; /* in order, without gaps; room for max_regions */
};

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

#endif
