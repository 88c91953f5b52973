// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <string.h>

#include "heat_internal.h"

#define DIFFERENT      0.35f	       /* halves that are to be apart */
#define ALIKE_CROWDED  0.4f	       /* when regions run short */
#define GUESS	       0.5f	       /* worth so much of a sample */
#define DETAIL_IDLE_NS 600000000000ull /* nobody asked for another look at its pages */

static bool split(struct mb_heat_map *map, unsigned at)
{
	struct region *r = map->region[at], *other;

	if (map->n_regions >= map->max_regions)
		return false;
	other = mb_heat_new_region(r->first + r->n / 2, r->n / 2);
	if (!other)
		return false;
	r->n /= 2;
	other->window = r->window;
	other->huge = r->huge;
	other->in_use = r->in_use;
	other->seen_ns = r->seen_ns;
	other->due_ns = r->due_ns;
	other->split_wait_ns = r->split_wait_ns;
	other->no_split_before_ns = r->no_split_before_ns;
	other->zoom_wait_ns = r->zoom_wait_ns;
	other->no_zoom_before_ns = r->no_zoom_before_ns;
	other->half[0] = other->half[1] = r->half[1];
	r->half[1] = r->half[0];
	/* Of a run only all of it was seen to be so: which of its halves is, has to be seen. */
	if (r->n < MB_HEAT_RUN_BLOCKS && !r->is_odd) {
		r->uneven_before_ns = 0;
	} else if (r->uneven_block >= other->first) {
		other->uneven_before_ns = r->uneven_before_ns;
		other->uneven_block = r->uneven_block;
		other->is_odd = r->is_odd;
		r->uneven_before_ns = 0;
	}
	/* What is known is of the halves; of their halves it is a guess, until each was looked at
	 * twice. */
	for (unsigned h = 0; h < 2; h++) {
		r->half[h].samples = fminf(r->half[h].samples, GUESS);
		other->half[h].samples = fminf(other->half[h].samples, GUESS);
	}
	memmove(map->region + at + 2, map->region + at + 1,
		(map->n_regions - at - 1) * sizeof(struct region *));
	map->region[at + 1] = other;
	map->n_regions++;
	return true;
}

/* Regions run short: they are for what is known, not for what might be found. */
static bool is_crowded(const struct mb_heat_map *map)
{
	return map->n_regions > map->max_regions / 4;
}

static bool may_join(const struct mb_heat_map *map, const struct region *a, const struct region *b,
	uint64_t now_ns)
{
	float limit = map->n_regions > map->max_regions / 4 * 3 ? ALIKE_CROWDED : MB_HEAT_ALIKE;
	unsigned window = a->window > b->window ? a->window : b->window;
	struct known ka, kb;

	if (a->n != b->n || a->first % (2 * a->n) || 2 * a->n > map->max_blocks || a->picked ||
		b->picked || a->detail || b->detail || a->zoomed || b->zoomed)
		return false;
	if (!a->in_use && !b->in_use)
		return true;
	if (a->in_use != b->in_use || a->huge != b->huge || now_ns < a->uneven_before_ns ||
		now_ns < b->uneven_before_ns)
		return false;
	if (!is_crowded(map) &&
		(mb_heat_may_be_mixed(map, a, now_ns) || mb_heat_may_be_mixed(map, b, now_ns)))
		return false;
	ka = mb_heat_known(map, a);
	kb = mb_heat_known(map, b);
	if (ka.samples < 2 || kb.samples < 2)
		return false;
	mb_heat_know_through(&ka, map->n_views, a->window, window);
	mb_heat_know_through(&kb, map->n_views, b->window, window);
	return mb_heat_difference(&ka, &kb, map->n_views) < limit;
}

static void join(struct mb_heat_map *map, unsigned at, uint64_t now_ns)
{
	struct region *a = map->region[at], *b = map->region[at + 1];
	unsigned window = a->window > b->window ? a->window : b->window;

	mb_heat_change_window(map, a, window);
	mb_heat_change_window(map, b, window);
	a->half[0] = mb_heat_known(map, a);
	a->half[1] = mb_heat_known(map, b);
	a->n *= 2;
	a->seen_ns = a->seen_ns < b->seen_ns ? a->seen_ns : b->seen_ns;
	a->due_ns = a->due_ns < b->due_ns ? a->due_ns : b->due_ns;
	if (a->split_wait_ns < b->split_wait_ns)
		a->split_wait_ns = b->split_wait_ns;
	if (a->zoom_wait_ns < b->zoom_wait_ns)
		a->zoom_wait_ns = b->zoom_wait_ns;
	if (a->no_zoom_before_ns < b->no_zoom_before_ns)
		a->no_zoom_before_ns = b->no_zoom_before_ns;
	/* A closer look showed no difference: not again at once. */
	a->no_split_before_ns = now_ns + a->split_wait_ns;
	if (a->split_wait_ns < MB_HEAT_BACKOFF_MAX_NS)
		a->split_wait_ns *= 2;
	mb_heat_free_region(map, b);
	memmove(map->region + at + 1, map->region + at + 2,
		(map->n_regions - at - 2) * sizeof(struct region *));
	map->n_regions--;
}

static bool wants_split(const struct mb_heat_map *map, const struct region *r, uint64_t now_ns)
{
	bool both_known = r->half[0].samples > 1.5f && r->half[1].samples > 1.5f;

	if (r->n == 1 || r->picked || !r->in_use)
		return false;
	if (both_known && mb_heat_difference(&r->half[0], &r->half[1], map->n_views) > DIFFERENT)
		return true;
	/* A small one at once, down to its blocks: a look at it is a look at one of them. */
	if ((both_known || r->n < MB_HEAT_RUN_BLOCKS) && !is_crowded(map) &&
		mb_heat_may_be_mixed(map, r, now_ns))
		return true;
	if (now_ns >= r->uneven_before_ns)
		return false;
	/* What tried in vain were guesses; an odd block was seen. */
	return r->n > MB_HEAT_RUN_BLOCKS || r->is_odd || now_ns >= r->no_split_before_ns;
}

void mb_heat_adapt(struct mb_heat_map *map, uint64_t now_ns)
{
	map->has_odd = false;
	for (unsigned i = 0; i < map->n_regions; i++) {
		struct region *r = map->region[i];

		if (r->detail && !r->picked && mb_heat_detail_is_even(map, r)) {
			mb_heat_drop_detail(map, r);
			r->no_detail_before_ns = now_ns + MB_HEAT_DETAIL_AGAIN_NS;
		}
		/* Others want the place. */
		if (r->detail && !r->picked && r->huge &&
			now_ns - r->detail->seen_ns > DETAIL_IDLE_NS)
			mb_heat_drop_detail(map, r);
		/* Down to the run that was uneven: it would be found again by chance only. */
		while (wants_split(map, r, now_ns) && split(map, i))
			if (now_ns < map->region[i + 1]->uneven_before_ns)
				r = map->region[++i];
	}
	for (unsigned i = 0; i + 1 < map->n_regions; i++)
		if (may_join(map, map->region[i], map->region[i + 1], now_ns))
			join(map, i, now_ns);
}
