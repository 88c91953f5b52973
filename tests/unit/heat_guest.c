// SPDX-License-Identifier: Apache-2.0
#include "heat_guest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct mb_heat_map *map;
struct mb_heat_seen_view view[MB_HEAT_VIEWS];
bool in_huge_pages;
uint64_t zoomed_block;
unsigned zoom_looks;
uint64_t now, n_samples, n_zooms;
bool may_zoom = true;
uint64_t most_window_ns = UINT64_MAX;
bool one_at_a_time;
uint32_t seed;
struct mb_extent *extents;
unsigned n_extents;
static struct use (*use_of)(uint64_t page);

static float chance(void)
{
	seed = seed * 1664525 + 1013904223;
	return (float)(seed >> 8) / (float)(1u << 24);
}

void make(uint64_t n_blocks, bool huge, struct use (*use)(uint64_t page))
{
	struct mb_heat_config config = {.n_blocks = n_blocks, .n_views = VIEWS};

	ck_assert_int_eq(mb_heat_create(&config, &map), 0);
	use_of = use;
	in_huge_pages = huge;
	zoom_looks = 0;
	now = SECOND;
	n_samples = n_zooms = 0;
	seed = 1;
}

static void set(uint64_t *bits, unsigned page)
{
	bits[page / 64] |= 1ull << page % 64;
}

static uint64_t window_ns(const struct mb_heat_seen *seen)
{
	uint64_t ns = seen->pick.window_ns * (seen->zoomed ? MB_HEAT_ZOOM_WINDOWS : 1);

	return ns < MB_HEAT_WINDOW_MAX_NS ? ns : MB_HEAT_WINDOW_MAX_NS;
}

void see_block(struct mb_heat_seen *seen, unsigned b)
{
	float seconds = (float)window_ns(seen) / 1e9f;

	for (unsigned v = 0; v < VIEWS; v++) {
		bool huge = in_huge_pages && !(seen->zoomed >> b & 1), touched = false,
		     written = false;

		for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
			struct use use =
				use_of((seen->pick.first_block + b) * MB_HEAT_BLOCK_PAGES + i);
			bool t = chance() < 1 - expf(-(use.read[v] + use.write[v]) * seconds);
			bool w = chance() < 1 - expf(-use.write[v] * seconds);

			touched |= t || w;
			written |= w;
			if (!huge && t)
				set(view[v].touched[b], i);
			if (!huge && t && w)
				set(view[v].written[b], i);
		}
		if (huge && touched)
			memset(view[v].touched[b], 0xff, sizeof(view[v].touched[b]));
		if (huge && written)
			memset(view[v].written[b], 0xff, sizeof(view[v].written[b]));
	}
}

void run(double seconds)
{
	uint64_t end = now + (uint64_t)(seconds * 1e9), adapted = 0;

	while (now < end) {
		struct mb_heat_pick pick;
		uint64_t due;

		if (now - adapted >= SECOND || mb_heat_wants_adapt(map)) {
			mb_heat_adapt(map, now);
			adapted = now;
		}
		now += SECOND / 50;
		if (!mb_heat_pick(map, now, 0, most_window_ns, may_zoom, seed >> 8, &pick, &due))
			continue;
		if (one_at_a_time) {
			/* As the tracker divides what may not be out together. */
			for (; pick.n_blocks > 1; pick.n_blocks /= 2, pick.turn /= 2)
				pick.first_block += pick.turn % 2 * (pick.n_blocks / 2);
		}
		struct mb_heat_seen seen = {.pick = pick,
			.n_pages = MB_HEAT_BLOCK_PAGES,
			.knows_writes = true,
			.view = view};

		memset(view, 0, sizeof(view));
		if (pick.zoom && !zoom_looks) {
			zoomed_block = pick.first_block;
			zoom_looks = ZOOM_LOOKS;
			n_zooms++;
		}
		seen.zoomed = zoom_looks && pick.n_blocks == 1 && pick.first_block == zoomed_block;
		seen.huge = in_huge_pages && !seen.zoomed ? (1u << pick.n_blocks) - 1 : 0;
		for (unsigned b = 0; b < pick.n_blocks; b++)
			see_block(&seen, b);
		if (seen.zoomed)
			now += window_ns(&seen);
		mb_heat_learn(map, &seen, now);
		if (seen.zoomed && !--zoom_looks)
			mb_heat_zoomed(map, pick.first_block, now);
		n_samples++;
	}
}

void take_extents(void)
{
	uint64_t at = 0;

	free(extents);
	ck_assert_int_eq(mb_heat_extents(map, now, &extents, &n_extents), 0);
	for (unsigned i = 0; i < n_extents; i++) {
		ck_assert_uint_ge(extents[i].offset, at);
		ck_assert_uint_gt(extents[i].len_bytes, 0);
		ck_assert_uint_eq(
			(extents[i].offset | extents[i].len_bytes) % MB_HEAT_PAGE_BYTES, 0);
		ck_assert(extents[i].confidence >= 0 && extents[i].confidence <= 1);
		at = extents[i].offset + extents[i].len_bytes;
	}
}

const struct mb_extent *extent_of(uint64_t page)
{
	for (unsigned i = 0; i < n_extents; i++)
		if (page * MB_HEAT_PAGE_BYTES - extents[i].offset < extents[i].len_bytes)
			return &extents[i];
	ck_abort_msg("page %lu is in no extent", (unsigned long)page);
}

void finish(void)
{
	free(extents);
	extents = NULL;
	mb_heat_destroy(map);
}

struct use halves_of_a_block(uint64_t page)
{
	if (page / MB_HEAT_BLOCK_PAGES != 5)
		return (struct use){.read = {0}};
	return page % MB_HEAT_BLOCK_PAGES < 200 ? (struct use){.write = {900, 0}}
						: (struct use){.read = {0, 900}};
}
