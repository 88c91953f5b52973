// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heat_internal.h"

/* What is known of each page of a block. */

/* More than chance: so many times what it makes of the variance of pages, of that of groups side by
 * side, and of the number that were touched at each look (and some). */
#define CHANCE	     1.8f
#define PARTS	     4.0f
#define ALWAYS	     3.0f
#define ALWAYS_PAGES 8.0f
#define GROUP	     32u /* pages */
/* Before pages are said to be alike: in a zoom, and in small pages. */
#define EVEN_LOOKS_ZOOMED 3u
#define EVEN_LOOKS	  6u
/* Of so many looks the last one counts for its part. Through a long window few come; in a zoom they
 * come one after the other, and of the one before it so many count. */
#define LOOKS	   4u
#define SLOW_LOOKS 4u
#define ZOOM_LOOKS 8u
#define LOOKS_KEPT 2u
/* A value of 255 says that the page was touched in each of so many looks: */
#define SATURATES      4u  /* times as many as count, */
#define MOST_SATURATES 20u /* at most */
/* Of 255: a page that a view was seen to use, and one that it was not, by so many looks; more pages
 * than that which another view uses now are no chance. */
#define OFTEN	    230u
#define SELDOM	    26u
#define HANDS_LOOKS 3u
#define HANDS_PAGES 16u

void mb_heat_drop_detail(struct mb_heat_map *map, struct region *r)
{
	if (r->detail)
		map->n_details--;
	free(r->detail);
	r->detail = NULL;
	r->to_slow = 0;
}

/* A value of a page: chances of 0..1 as 0..255. */
static uint8_t nearer(uint8_t value, bool bit, unsigned looks, unsigned most_looks)
{
	unsigned n = looks < most_looks ? looks + 1 : most_looks, x = bit ? 255 : 0;

	/* Rounded towards the bit. */
	return (uint8_t)((value * (n - 1) + x + (bit ? n - 1 : 0)) / n);
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

/*
 * The detail is of old, and others use the block now. Only whether they do can be compared: how
 * often, was seen through another window.
 */
bool mb_heat_detail_is_wrong(const struct mb_heat_map *map, const struct region *r)
{
	for (unsigned v = 0; v < map->n_views; v++) {
		float touch = r->half[0].touch[v];
		uint8_t most = mb_heat_most(r->detail->quick.touch[v]);

		if ((!most && !mb_heat_most(r->detail->slow.touch[v]) && touch > MB_HEAT_CHANGED) ||
			(most > 127 && touch < MB_HEAT_NEVER &&
				mb_heat_max_touch(&r->half[0], map->n_views) > MB_HEAT_COLD))
			return true;
	}
	return false;
}

/* Of looks at pages like these, how many count. */
static unsigned looks_that_count(const struct region *r, bool slow)
{
	return slow ? SLOW_LOOKS : r->huge ? ZOOM_LOOKS : LOOKS;
}

/*
 * A value is a plain average of the first most_looks looks; then the last one counts for its part,
 * and each one before it for less. Of a chance m it varies by m (1 - m) times the sum of their
 * squares.
 */
static float spread(unsigned looks, unsigned most_looks)
{
	if (!looks)
		return 0;
	return fmaxf(1 / (float)looks, 1 / (2 * (float)most_looks - 1));
}

/* What pages that are all alike would show by chance, and what is more than that. */
struct chance {
	float mean;
	float spread;  /* of a page, of mean * (1 - mean) */
	float varies;  /* what they do */
	float between; /* groups of neighbours */
	unsigned always;
	float expected_always;
};

static void compare(
	const uint8_t *value, const uint8_t *looks, unsigned most_looks, struct chance *c)
{
	unsigned most =
		SATURATES * most_looks < MOST_SATURATES ? SATURATES * most_looks : MOST_SATURATES;
	float group[MB_HEAT_BLOCK_PAGES / GROUP] = {0}, squares = 0;

	*c = (struct chance){0};
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		float x = (float)value[i] / 255;

		c->mean += x / MB_HEAT_BLOCK_PAGES;
		group[i / GROUP] += x / GROUP;
		squares += x * x / MB_HEAT_BLOCK_PAGES;
		c->spread += spread(looks[i], most_looks) / MB_HEAT_BLOCK_PAGES;
	}
	c->varies = squares - c->mean * c->mean;
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES / GROUP; i++)
		c->between +=
			(group[i] - c->mean) * (group[i] - c->mean) * GROUP / MB_HEAT_BLOCK_PAGES;
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		unsigned n = looks[i] < most ? looks[i] : most;

		c->always += n && value[i] == UINT8_MAX;
		c->expected_always += n ? powf(c->mean, (float)n) : 0;
	}
}

/*
 * Whether values of pages differ by no more than chance makes of pages that are all alike: neither
 * in their variance, nor in how many were there at each look, as a few hot ones among others are,
 * nor more from page to page than from group to group, as memory that is used in parts does.
 */
static bool is_chance(const uint8_t *value, const uint8_t *looks, unsigned most_looks)
{
	struct chance c;
	float expected;

	compare(value, looks, most_looks, &c);
	expected = c.mean * (1 - c.mean) * c.spread;
	return (float)c.always <= ALWAYS * c.expected_always + ALWAYS_PAGES &&
	       c.varies <= CHANCE * expected + MB_HEAT_ALIKE * MB_HEAT_ALIKE / 4 &&
	       c.between <= PARTS * expected / GROUP + MB_HEAT_ALIKE * MB_HEAT_ALIKE / GROUP;
}

static float mean_looks(const struct pages *d)
{
	unsigned sum = 0;

	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		sum += d->looks[i];
	return (float)sum / MB_HEAT_BLOCK_PAGES;
}

static bool pages_are_even(
	const struct mb_heat_map *map, const struct pages *p, unsigned most_looks)
{
	for (unsigned v = 0; v < map->n_views; v++)
		if (!is_chance(p->touch[v], p->looks, most_looks) ||
			!is_chance(p->write[v], p->looks, most_looks))
			return false;
	return true;
}

/* Most of the pages that a view was seen to use were touched by another one only. */
static bool pages_changed_hands(
	const struct mb_heat_map *map, const struct pages *p, const struct mb_heat_seen *seen)
{
	unsigned n = 0, n_changed = 0;

	for (unsigned i = seen->first_page; i < seen->first_page + seen->n_pages; i++) {
		bool stayed = false, left = false, came = false;

		for (unsigned v = 0; v < map->n_views && p->looks[i] >= HANDS_LOOKS; v++) {
			bool touched = get_bit(seen->view[v].touched[0], i);

			stayed |= touched && p->touch[v][i] > OFTEN;
			left |= !touched && p->touch[v][i] > OFTEN;
			came |= touched && p->touch[v][i] < SELDOM;
		}
		n += stayed || left;
		n_changed += !stayed && left && came;
	}
	return n_changed > HANDS_PAGES && 2 * n_changed > n;
}

/* What was seen of these pages. */
static void forget(struct detail *d, const struct mb_heat_seen *seen)
{
	memset(d->quick.looks + seen->first_page, 0, seen->n_pages);
	memset(d->slow.looks + seen->first_page, 0, seen->n_pages);
	if (seen->n_pages == MB_HEAT_BLOCK_PAGES)
		d->samples = 0;
}

void mb_heat_learn_pages(
	struct mb_heat_map *map, struct region *r, const struct mb_heat_seen *seen, uint64_t now_ns)
{
	struct detail *d = r->detail;
	struct pages *p;
	unsigned most_looks;
	bool slow = seen->pick.slow || mb_heat_is_slow(r, seen->zoomed);

	if (!d) {
		if (now_ns < r->no_detail_before_ns || !pages_differ(map, seen) ||
			map->n_details >= map->max_details)
			return;
		d = r->detail = calloc(1, sizeof(*d));
		if (!d)
			return;
		map->n_details++;
	}
	p = slow ? &d->slow : &d->quick;
	most_looks = looks_that_count(r, slow);
	if (pages_changed_hands(map, p, seen))
		forget(d, seen);
	for (unsigned i = seen->first_page; i < seen->first_page + seen->n_pages; i++) {
		for (unsigned v = 0; v < map->n_views; v++) {
			const struct mb_heat_seen_view *sv = &seen->view[v];

			p->touch[v][i] = nearer(p->touch[v][i], get_bit(sv->touched[0], i),
				p->looks[i], most_looks);
			if (seen->knows_writes)
				p->write[v][i] = nearer(p->write[v][i], get_bit(sv->written[0], i),
					p->looks[i], most_looks);
		}
		if (p->looks[i] < UINT8_MAX)
			p->looks[i]++;
	}
	d->even = pages_are_even(map, &d->quick, looks_that_count(r, false)) &&
		  pages_are_even(map, &d->slow, looks_that_count(r, true));
	d->seen_ns = now_ns;
	d->samples =
		d->samples * MB_HEAT_SAMPLES_DECAY + (float)seen->n_pages / MB_HEAT_BLOCK_PAGES;
}

/* All pages of the detail are alike after all: it is not worth its place, nor another look soon. */
bool mb_heat_detail_is_even(const struct region *r)
{
	const struct detail *d = r->detail;
	float least_looks = r->huge ? EVEN_LOOKS_ZOOMED : EVEN_LOOKS;

	return d->even && fmaxf(mean_looks(&d->quick), mean_looks(&d->slow)) >= least_looks;
}

/* What is seen from now on soon counts for more. */
static void keep_some(struct pages *p)
{
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		if (p->looks[i] > LOOKS_KEPT)
			p->looks[i] = LOOKS_KEPT;
}

void mb_heat_zoomed(struct mb_heat_map *map, uint64_t block, uint64_t now_ns)
{
	struct region *r = mb_heat_find_region(map, block);

	if (r->detail && r->detail->even)
		mb_heat_drop_detail(map, r);
	if (r->detail) {
		keep_some(&r->detail->quick);
		keep_some(&r->detail->slow);
	}
	r->to_slow = 0;
	r->zoomed = false;
	r->no_zoom_before_ns = now_ns + (r->detail ? MB_HEAT_DETAIL_AGAIN_NS : r->zoom_wait_ns);
	if (!r->detail && r->zoom_wait_ns < MB_HEAT_BACKOFF_MAX_NS)
		r->zoom_wait_ns *= 2;
}
