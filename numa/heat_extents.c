// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heat_internal.h"

#define DETAIL_LASTS                                                                               \
	8 /* times as long as what is known of a block; who uses which part changes less */
/* Of 255: what was touched in fewer looks than that is told better by the long window. */
#define SLOW_BELOW 192u
#define MAX_PAGES  8192u /* extents, from which on a block is one */
#define MOST	   0.99f /* a chance that counts as certain: 460 a second in the shortest window */

/* A growing array of extents; the last one grows while what comes is like it. */
struct list {
	struct mb_extent *extent;
	unsigned n, room;
	unsigned n_views;
};

float mb_heat_rate(float p, unsigned window)
{
	return p <= 0 ? 0 : -log1pf(-fminf(p, MOST)) / ((float)mb_heat_window_ns[window] / 1e9f);
}

struct mb_heat mb_heat_of(float touch, float write, unsigned window)
{
	/* Chances, and not rates: what is written in every window is not read in any. */
	return (struct mb_heat){
		.read = mb_heat_rate(touch - write, window),
		.write = mb_heat_rate(write, window),
	};
}

static bool alike(float a, float b)
{
	float least = fminf(a, b), most = fmaxf(a, b);

	return most - least <= 0.25f * most;
}

static bool are_alike(const struct mb_extent *a, const struct mb_extent *b, unsigned n_views)
{
	if (a->huge != b->huge || a->offset + a->len_bytes != b->offset)
		return false;
	for (unsigned v = 0; v < n_views; v++)
		if (!alike(a->view[v].read, b->view[v].read) ||
			!alike(a->view[v].write, b->view[v].write))
			return false;
	return true;
}

static int append(struct list *list, const struct mb_extent *e)
{
	struct mb_extent *last = list->n ? &list->extent[list->n - 1] : NULL;

	if (last && are_alike(last, e, list->n_views)) {
		last->len_bytes += e->len_bytes;
		last->confidence = fminf(last->confidence, e->confidence);
		last->age_ms = last->age_ms > e->age_ms ? last->age_ms : e->age_ms;
		return 0;
	}
	if (list->n == list->room) {
		unsigned room = list->room ? 2 * list->room : 256;
		struct mb_extent *more = reallocarray(list->extent, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		list->extent = more;
		list->room = room;
	}
	list->extent[list->n++] = *e;
	return 0;
}

static uint32_t age_ms(uint64_t seen_ns, uint64_t now_ns)
{
	uint64_t ms = now_ns > seen_ns ? (now_ns - seen_ns) / 1000000 : 0;

	return ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

/* Of a page that was not looked at yet, what its block does is known. */
static float page_chance(float seen, float block, uint8_t looks)
{
	return looks ? seen : block;
}

/*
 * What 1 in a detail stands for. A huge page was looked into for a moment: that told its pages
 * apart, and how hot the hottest of them is, is seen of the whole since then.
 */
static float whole(const uint8_t *value, float known, bool huge)
{
	uint8_t most = huge ? mb_heat_most(value) : 0;

	return most ? known * 255 / (float)most : 1;
}

/* The long window tells more of it. */
static bool is_slow(const struct detail *d, unsigned page, unsigned n_views)
{
	uint8_t most = 0;

	for (unsigned v = 0; v < n_views; v++)
		most = d->quick.touch[v][page] > most ? d->quick.touch[v][page] : most;
	return d->slow.looks[page] && (!d->quick.looks[page] || most < SLOW_BELOW);
}

/* What a detail says of a page and a view: through the window of the block, or the longest one. */
static struct mb_heat quick_heat(const struct region *r, const struct known *known, unsigned page,
	unsigned v, float touch, float write)
{
	const struct pages *p = &r->detail->quick;

	return mb_heat_of(
		page_chance((float)p->touch[v][page] * touch, known->touch[v], p->looks[page]),
		page_chance((float)p->write[v][page] * write, known->write[v], p->looks[page]),
		r->window);
}

static struct mb_heat slow_heat(const struct pages *p, unsigned page, unsigned v)
{
	return mb_heat_of((float)p->touch[v][page] / 255, (float)p->write[v][page] / 255,
		MB_HEAT_WINDOWS - 1);
}

static int append_pages(
	struct list *list, const struct region *r, const struct known *known, uint64_t now_ns)
{
	const struct detail *d = r->detail;
	float confidence = mb_heat_confidence(d->samples, (now_ns - d->seen_ns) / DETAIL_LASTS);
	float touch[MB_HEAT_VIEWS], write[MB_HEAT_VIEWS];
	int rc = 0;

	for (unsigned v = 0; v < list->n_views; v++) {
		touch[v] = whole(d->quick.touch[v], known->touch[v], r->huge) / 255;
		write[v] = whole(d->quick.write[v], known->write[v], r->huge) / 255;
	}
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES && !rc; i++) {
		struct mb_extent e = {
			.offset = r->first * MB_HEAT_BLOCK_BYTES + i * MB_HEAT_PAGE_BYTES,
			.len_bytes = MB_HEAT_PAGE_BYTES,
			.confidence = d->quick.looks[i] || d->slow.looks[i] ? confidence : 0,
			.age_ms = age_ms(d->seen_ns, now_ns),
			.huge = r->huge,
			.node = -1,
		};

		for (unsigned v = 0; v < list->n_views; v++)
			e.view[v] = is_slow(d, i, list->n_views)
					    ? slow_heat(&d->slow, i, v)
					    : quick_heat(r, known, i, v, touch[v], write[v]);
		rc = append(list, &e);
	}
	return rc;
}

int mb_heat_extents(
	const struct mb_heat_map *map, uint64_t now_ns, struct mb_extent **out, unsigned *n)
{
	struct list list = {.n_views = map->n_views};
	int rc = 0;

	for (unsigned i = 0; i < map->n_regions && !rc; i++) {
		const struct region *r = map->region[i];
		struct known known = mb_heat_known(map, r);
		struct mb_extent e = {
			.offset = r->first * MB_HEAT_BLOCK_BYTES,
			.len_bytes = r->n * MB_HEAT_BLOCK_BYTES,
			.confidence = known.samples > 0 ? mb_heat_confidence(known.samples,
								  now_ns - r->seen_ns)
							: 0,
			.age_ms = known.samples > 0 ? age_ms(r->seen_ns, now_ns) : UINT32_MAX,
			.huge = r->huge,
			.node = -1,
		};

		if (!r->in_use)
			continue;
		/* So many differences are noise, and more than anybody can look at. */
		if (r->detail && !r->detail->even && list.n < MAX_PAGES) {
			rc = append_pages(&list, r, &known, now_ns);
			continue;
		}
		for (unsigned v = 0; v < map->n_views; v++)
			e.view[v] = mb_heat_of(known.touch[v], known.write[v], r->window);
		rc = append(&list, &e);
	}
	if (rc) {
		free(list.extent);
		return rc;
	}
	*out = list.extent;
	*n = list.n;
	return 0;
}
