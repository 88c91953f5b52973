// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <stdlib.h>

#include "heat_internal.h"

/* What is known of each page of a block. */

#define CHANCE	     1.8f /* times what chance does is more than chance */
#define CHANCE_LOOKS 3u

void mb_heat_drop_detail(struct mb_heat_map *map, struct region *r)
{
	if (r->detail)
		map->n_details--;
	free(r->detail);
	r->detail = NULL;
}

/* A value of a page: chances of 0..1 as 0..255. */
static uint8_t nearer(uint8_t value, bool bit, bool first)
{
	unsigned x = bit ? 255 : 0;

	return first ? (uint8_t)x : (uint8_t)((value + x + (bit ? 1 : 0)) / 2);
}

static bool get_bit(const uint64_t *bits, unsigned i)
{
	return bits[i / 64] >> i % 64 & 1;
}

/* Pages of the block that was seen differ: some were used in another way than others. */
static bool pages_differ(const struct mb_heat_map *map, const struct mb_heat_seen *seen)
{
	for (unsigned v = 0; v < map->n_views; v++) {
		unsigned touched = mb_heat_count(seen->view[v].touched[0]);
		unsigned written = mb_heat_count(seen->view[v].written[0]);

		if ((touched && touched < seen->n_pages) ||
			(seen->knows_writes && written && written < touched))
			return true;
	}
	return false;
}

void mb_heat_learn_pages(
	struct mb_heat_map *map, struct region *r, const struct mb_heat_seen *seen, uint64_t now_ns)
{
	struct detail *d = r->detail;

	if (!d) {
		if (now_ns < r->no_detail_before_ns || !pages_differ(map, seen) ||
			map->n_details >= map->max_details)
			return;
		d = r->detail = calloc(1, sizeof(*d));
		if (!d)
			return;
		map->n_details++;
	}
	for (unsigned i = seen->first_page; i < seen->first_page + seen->n_pages; i++) {
		bool first = !d->looks[i];

		for (unsigned v = 0; v < map->n_views; v++) {
			const struct mb_heat_seen_view *sv = &seen->view[v];

			d->touch[v][i] = nearer(d->touch[v][i], get_bit(sv->touched[0], i), first);
			if (seen->knows_writes)
				d->write[v][i] =
					nearer(d->write[v][i], get_bit(sv->written[0], i), first);
		}
		if (d->looks[i] < UINT8_MAX)
			d->looks[i]++;
	}
	d->seen_ns = now_ns;
	d->samples =
		d->samples * MB_HEAT_SAMPLES_DECAY + (float)seen->n_pages / MB_HEAT_BLOCK_PAGES;
}

/*
 * The detail is of old, and others use the block now. Only whether they do can be compared: how
 * often, was seen through another window.
 */
bool mb_heat_detail_is_wrong(const struct mb_heat_map *map, const struct region *r)
{
	for (unsigned v = 0; v < map->n_views; v++) {
		float touch = r->half[0].touch[v];
		uint8_t most = mb_heat_most(r->detail->touch[v]);

		if ((!most && touch > MB_HEAT_CHANGED) ||
			(most > 127 && touch < MB_HEAT_NEVER &&
				mb_heat_max_touch(&r->half[0], map->n_views) > MB_HEAT_COLD))
			return true;
	}
	return false;
}

/*
 * Whether values of pages differ by no more than chance makes of pages that are all alike. After n
 * looks a value is an average in which the last look counts for a half, the one before it for a
 * quarter, ...: of a chance m it varies by m (1 - m) times the sum of their squares.
 */
static bool is_chance(const uint8_t *value, const struct detail *d)
{
	float mean = 0, squares = 0, expected = 0;

	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		float x = (float)value[i] / 255;

		mean += x / MB_HEAT_BLOCK_PAGES;
		squares += x * x / MB_HEAT_BLOCK_PAGES;
		expected +=
			(1 + 2 * exp2f(-2 * (float)(d->looks[i] - 1))) / 3 / MB_HEAT_BLOCK_PAGES;
	}
	return squares - mean * mean <=
	       CHANCE * mean * (1 - mean) * expected + MB_HEAT_ALIKE * MB_HEAT_ALIKE / 4;
}

static float mean_looks(const struct detail *d)
{
	unsigned sum = 0;

	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		sum += d->looks[i];
	return (float)sum / MB_HEAT_BLOCK_PAGES;
}

/* Whether pages are more like their neighbours than like others: so is memory that is used in
 * parts. */
static bool has_parts(const uint8_t *value)
{
	const unsigned away = 211;
	unsigned near = 0, far = 0;

	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		near += (unsigned)abs(value[i] - value[(i + 1) % MB_HEAT_BLOCK_PAGES]);
		far += (unsigned)abs(value[i] - value[(i + away) % MB_HEAT_BLOCK_PAGES]);
	}
	return 2 * near < far;
}

/* All pages of the detail are alike after all: it is not worth its place, nor another look soon. */
bool mb_heat_detail_is_even(const struct mb_heat_map *map, const struct detail *d)
{
	if (mean_looks(d) < CHANCE_LOOKS)
		return false;
	for (unsigned v = 0; v < map->n_views; v++)
		if (!is_chance(d->touch[v], d) || !is_chance(d->write[v], d))
			return false;
	return true;
}

/* Few looks, and nothing but a scatter in them. */
static bool detail_is_scatter(const struct mb_heat_map *map, const struct detail *d)
{
	if (mean_looks(d) >= CHANCE_LOOKS)
		return false;
	for (unsigned v = 0; v < map->n_views; v++)
		if (has_parts(d->touch[v]) || has_parts(d->write[v]))
			return false;
	return true;
}

void mb_heat_zoomed(struct mb_heat_map *map, uint64_t block, uint64_t now_ns)
{
	struct region *r = mb_heat_find_region(map, block);

	if (r->detail &&
		(mb_heat_detail_is_even(map, r->detail) || detail_is_scatter(map, r->detail)))
		mb_heat_drop_detail(map, r);
	r->no_zoom_before_ns = now_ns + (r->detail ? MB_HEAT_DETAIL_AGAIN_NS : r->zoom_wait_ns);
	if (!r->detail && r->zoom_wait_ns < MB_HEAT_BACKOFF_MAX_NS)
		r->zoom_wait_ns *= 2;
}
