// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heat_internal.h"

#define DETAIL_LASTS                                                                               \
	8 /* times as long as what is known of a block; who uses which part changes less */
/* Of 255: what was touched in fewer looks than that is told better by the long window. */
#define SLOW_BELOW	     192u
#define SLOW_BELOW_ZOOMED    128u /* its windows are long already */
#define SLOW_BELOW_SATURATED 96u  /* it says of nearly all looks that it was touched */
#define SLOW_TELLS	     240u
#define FAR_APART	     16.0f /* times: a few short looks are off by less */
/* Of 255: as often the hottest page is touched if windows of a zoom tell how often, and if they do
 * not. */
#define TELLS	  96.0f
#define SATURATED 192.0f
#define BURSTS	  8.0f	/* looks */
#define MAX_PAGES 8192u /* extents, from which on a block is one */
#define MOST	  0.99f /* a chance that counts as certain: 460 a second in the shortest window */

/* Touches in a window that come of such a chance. */
static float touches_of(float p)
{
	return p <= 0 ? 0 : -log1pf(-fminf(p, MOST));
}

float mb_heat_rate(float p, unsigned window)
{
	return touches_of(p) / ((float)mb_heat_window_ns[window] / 1e9f);
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

int mb_heat_push(struct mb_heat_list *list, const struct mb_extent *e)
{
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

int mb_heat_append(struct mb_heat_list *list, const struct mb_extent *e)
{
	struct mb_extent *last = list->n ? &list->extent[list->n - 1] : NULL;

	if (!last || !are_alike(last, e, list->n_views))
		return mb_heat_push(list, e);
	last->len_bytes += e->len_bytes;
	last->confidence = fminf(last->confidence, e->confidence);
	last->age_ms = last->age_ms > e->age_ms ? last->age_ms : e->age_ms;
	return 0;
}

static uint32_t age_ms(uint64_t seen_ns, uint64_t now_ns)
{
	uint64_t ms = now_ns > seen_ns ? (now_ns - seen_ns) / 1000000 : 0;

	return ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

/* What pages of a detail have: chances, of which so many looks do not say that they are certain. */
static float chance_of(uint8_t value, uint8_t looks)
{
	return (float)value / UINT8_MAX * ((float)looks + 0.5f) / ((float)looks + 1);
}

/*
 * The same in a zoom, whose looks come one after the other, so that many see the same burst: of a
 * page that one view touched in all of them, and another one in most, it is not known that the
 * former touches it many times as often.
 */
static float zoomed_chance_of(uint8_t value, uint8_t looks)
{
	return (float)value / UINT8_MAX * (float)looks / ((float)looks + BURSTS);
}

/* How far windows of a zoom cannot tell how hot the hottest page of a view is: 0, to 1. */
static float saturation(uint8_t most)
{
	return fminf(fmaxf(((float)most - TELLS) / (SATURATED - TELLS), 0), 1);
}

/*
 * Touches a second that one in a window of a zoom stands for, of each view. A huge page was looked
 * into for a moment: that told its pages apart, and if it cannot tell how hot the hottest of them
 * is, that is seen of the whole since then. But the detail compares the views with each other, too,
 * in the same windows, and of the whole there are a few short looks: unless by these they are far
 * apart, what is so of the hottest view in the detail is so of those that are half as hot there,
 * and less and less of others.
 */
static void find_scales(
	const struct region *r, const struct known *known, unsigned n_views, float *scale)
{
	const struct pages *p = &r->detail->quick;
	const uint64_t zoom_ns = MB_HEAT_ZOOM_WINDOWS * mb_heat_window_ns[r->window];
	const float zoom_scale = 1e9f / fminf((float)zoom_ns, (float)MB_HEAT_WINDOW_MAX_NS);
	float rate[MB_HEAT_VIEWS], touches[MB_HEAT_VIEWS], saturated[MB_HEAT_VIEWS];
	unsigned top = 0;

	for (unsigned v = 0; v < n_views; v++) {
		uint8_t most = 0, looks = 0;

		for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
			if (p->looks[i] && p->touch[v][i] > most) {
				most = p->touch[v][i];
				looks = p->looks[i];
			}
		rate[v] = mb_heat_rate(known->touch[v], r->window);
		touches[v] = touches_of(zoomed_chance_of(most, looks));
		saturated[v] = saturation(most);
		if (touches[v] > touches[top] ||
			(touches[v] == touches[top] && rate[v] > rate[top]))
			top = v;
	}
	for (unsigned v = 0; v < n_views; v++) {
		bool far_apart = rate[v] * FAR_APART <= rate[top];
		unsigned from = far_apart ? v : top;
		float as_hot = fminf(2 * touches[v] / touches[top], 1);
		float power = saturated[from] * (far_apart ? 1 : as_hot * as_hot);

		scale[v] = zoom_scale;
		if (power > 0)
			scale[v] *= powf(fmaxf(rate[from] / touches[from] / zoom_scale, 1), power);
	}
}

static uint8_t most_of(const struct pages *p, unsigned page, unsigned n_views)
{
	uint8_t most = 0;

	for (unsigned v = 0; v < n_views; v++)
		most = p->touch[v][page] > most ? p->touch[v][page] : most;
	return most;
}

/* The long window tells more of it: in the short one it is hardly seen, nor always in the long one.
 */
static bool is_slow(const struct region *r, unsigned page, unsigned n_views)
{
	const struct detail *d = r->detail;
	uint8_t quick = most_of(&d->quick, page, n_views), slow = most_of(&d->slow, page, n_views);

	if (!d->slow.looks[page] || !d->quick.looks[page])
		return d->slow.looks[page];
	return quick < (r->huge			   ? SLOW_BELOW_ZOOMED
			       : slow > SLOW_TELLS ? SLOW_BELOW_SATURATED
						   : SLOW_BELOW);
}

/* What a detail says of a page and a view: through the window of the block, that of a zoom, or the
 * longest one. */
static struct mb_heat quick_heat(
	const struct region *r, const struct known *known, unsigned page, unsigned v)
{
	const struct pages *p = &r->detail->quick;
	uint8_t looks = p->looks[page];

	if (!looks)
		return mb_heat_of(known->touch[v], known->write[v], r->window);
	return mb_heat_of(chance_of(p->touch[v][page], looks), chance_of(p->write[v][page], looks),
		r->window);
}

static struct mb_heat zoomed_heat(
	const struct region *r, const struct known *known, unsigned page, unsigned v, float scale)
{
	const struct pages *p = &r->detail->quick;
	uint8_t looks = p->looks[page];
	float touches, writes;

	if (!looks)
		return mb_heat_of(known->touch[v], known->write[v], r->window);
	touches = scale * touches_of(zoomed_chance_of(p->touch[v][page], looks));
	writes = scale * touches_of(zoomed_chance_of(p->write[v][page], looks));
	touches = fminf(touches, mb_heat_rate(1, 0));
	writes = fminf(writes, touches);
	return (struct mb_heat){.read = touches - writes, .write = writes};
}

static struct mb_heat slow_heat(const struct region *r, unsigned page, unsigned v)
{
	const struct pages *p = &r->detail->slow;
	float (*chance)(uint8_t value, uint8_t looks) = r->huge ? zoomed_chance_of : chance_of;
	float touch = chance(p->touch[v][page], p->looks[page]);

	return mb_heat_of(touch, fminf(chance(p->write[v][page], p->looks[page]), touch),
		MB_HEAT_WINDOWS - 1);
}

/* What either says: the long window sees rare writes among many touches. */
static struct mb_heat more_of(struct mb_heat a, struct mb_heat b)
{
	float touches = fmaxf(a.read + a.write, b.read + b.write);
	float writes = fmaxf(a.write, b.write);

	return (struct mb_heat){.read = touches - writes, .write = writes};
}

/* Of one page, each view. */
static void heat_of_page(const struct region *r, const struct known *known, unsigned n_views,
	const float *scale, unsigned page, struct mb_heat *heat)
{
	const struct detail *d = r->detail;
	bool slow = is_slow(r, page, n_views);

	for (unsigned v = 0; v < n_views; v++) {
		if (slow)
			heat[v] = slow_heat(r, page, v);
		else if (r->huge)
			heat[v] = zoomed_heat(r, known, page, v, scale[v]);
		else
			heat[v] = quick_heat(r, known, page, v);
		if (!slow && !r->huge && d->slow.looks[page])
			heat[v] = more_of(heat[v], slow_heat(r, page, v));
	}
}

/* Of those that are alike, on average. */
static void heat_of_others(const struct region *r, const struct known *known, unsigned n_views,
	const float *scale, struct mb_heat *mean)
{
	const struct detail *d = r->detail;
	float n = (float)(MB_HEAT_BLOCK_PAGES - mb_heat_count(d->odd));

	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		struct mb_heat heat[MB_HEAT_VIEWS];

		if (mb_heat_bit(d->odd, i))
			continue;
		heat_of_page(r, known, n_views, scale, i, heat);
		for (unsigned v = 0; v < n_views; v++) {
			mean[v].read += heat[v].read / n;
			mean[v].write += heat[v].write / n;
		}
	}
}

static int append_pages(const struct mb_heat_map *map, struct mb_heat_list *list,
	const struct region *r, const struct known *known, uint64_t now_ns)
{
	const struct detail *d = r->detail;
	float confidence =
		mb_heat_confidence(d->samples, (now_ns - d->seen_ns) / DETAIL_LASTS / map->n_turns);
	struct mb_heat others[MB_HEAT_VIEWS] = {{0}};
	float scale[MB_HEAT_VIEWS];
	int rc = 0;

	find_scales(r, known, list->n_views, scale);
	if (d->even)
		heat_of_others(r, known, list->n_views, scale, others);
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES && !rc; i++) {
		struct mb_extent e = {
			.offset = r->first * MB_HEAT_BLOCK_BYTES + i * MB_HEAT_PAGE_BYTES,
			.len_bytes = MB_HEAT_PAGE_BYTES,
			.confidence = d->quick.looks[i] || d->slow.looks[i] ? confidence : 0,
			.age_ms = age_ms(d->seen_ns, now_ns),
			.huge = r->huge,
			.node = -1,
		};

		if (d->even && !mb_heat_bit(d->odd, i))
			memcpy(e.view, others, sizeof(others));
		else
			heat_of_page(r, known, list->n_views, scale, i, e.view);
		rc = mb_heat_append(list, &e);
	}
	return rc;
}

int mb_heat_extents(
	const struct mb_heat_map *map, uint64_t now_ns, struct mb_extent **out, unsigned *n)
{
	struct mb_heat_list list = {.n_views = map->n_views};
	int rc = 0;

	for (unsigned i = 0; i < map->n_regions && !rc; i++) {
		const struct region *r = map->region[i];
		struct known known = mb_heat_known(map, r);
		struct mb_extent e = {
			.offset = r->first * MB_HEAT_BLOCK_BYTES,
			.len_bytes = r->n * MB_HEAT_BLOCK_BYTES,
			.confidence = known.samples > 0
					      ? mb_heat_confidence(known.samples,
							(now_ns - r->seen_ns) / map->n_turns)
					      : 0,
			.age_ms = known.samples > 0 ? age_ms(r->seen_ns, now_ns) : UINT32_MAX,
			.huge = r->huge,
			.node = -1,
		};

		if (!r->in_use)
			continue;
		/* So many differences are noise, and more than anybody can look at; and pages of a
		 * huge one that is not used now are cold. */
		if (r->detail && !mb_heat_are_alike(r->detail) && list.n < MAX_PAGES &&
			!(r->huge && mb_heat_max_touch(&known, map->n_views) < MB_HEAT_NEVER)) {
			rc = append_pages(map, &list, r, &known, now_ns);
			continue;
		}
		for (unsigned v = 0; v < map->n_views; v++)
			e.view[v] = mb_heat_of(known.touch[v], known.write[v], r->window);
		rc = mb_heat_append(&list, &e);
	}
	if (rc) {
		free(list.extent);
		return rc;
	}
	*out = list.extent;
	*n = list.n;
	return 0;
}
