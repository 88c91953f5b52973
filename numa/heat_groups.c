// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <stdlib.h>

#include "heat_internal.h"

/* More groups of vCPUs than views: what maps of several turns say together. */

unsigned mb_heat_n_turns(unsigned n_groups, unsigned n_views)
{
	unsigned n = 1;

	for (unsigned told = n_views; n_views > 1 && told < n_groups; told *= n_views)
		n++;
	return n;
}

unsigned mb_heat_view_of(unsigned group, unsigned turn, unsigned n_views)
{
	while (turn--)
		group /= n_views;
	return group % n_views;
}

static uint64_t end_of(const struct mb_extent *e)
{
	return e->offset + e->len_bytes;
}

/* The part of it that all turns have, from *at on, and what they say; false: there is no more. */
static bool next_part(const struct mb_heat_turn *turn, unsigned n_turns, unsigned *next,
	uint64_t *at, const struct mb_extent **e, uint64_t *end)
{
	for (bool moved = true; moved;) {
		moved = false;
		*end = UINT64_MAX;
		for (unsigned t = 0; t < n_turns; t++) {
			while (next[t] < turn[t].n && end_of(&turn[t].extent[next[t]]) <= *at)
				next[t]++;
			if (next[t] == turn[t].n)
				return false;
			e[t] = &turn[t].extent[next[t]];
			if (e[t]->offset > *at) {
				*at = e[t]->offset;
				moved = true;
			}
			if (end_of(e[t]) < *end)
				*end = end_of(e[t]);
		}
	}
	return true;
}

/* Of its touches and of its writes: where somebody else of its view writes, its reads seem writes.
 */
static struct mb_heat least_of(
	const struct mb_extent *const *e, unsigned n_turns, unsigned group, unsigned n_views)
{
	float touches = INFINITY, writes = INFINITY;

	for (unsigned t = 0; t < n_turns; t++) {
		const struct mb_heat *h = &e[t]->view[mb_heat_view_of(group, t, n_views)];

		touches = fminf(touches, h->read + h->write);
		writes = fminf(writes, h->write);
	}
	return (struct mb_heat){.read = touches - writes, .write = writes};
}

int mb_heat_combine(const struct mb_heat_turn *turn, unsigned n_turns, unsigned n_groups,
	unsigned n_views, struct mb_extent **out, unsigned *n)
{
	struct mb_heat_list list = {.n_views = n_groups};
	const struct mb_extent *e[MB_HEAT_TURNS];
	unsigned next[MB_HEAT_TURNS] = {0};
	uint64_t at = 0, end;

	while (next_part(turn, n_turns, next, &at, e, &end)) {
		struct mb_extent part = *e[0];
		int rc;

		part.offset = at;
		part.len_bytes = end - at;
		for (unsigned t = 1; t < n_turns; t++) {
			part.confidence = fminf(part.confidence, e[t]->confidence);
			part.age_ms = part.age_ms > e[t]->age_ms ? part.age_ms : e[t]->age_ms;
			part.huge &= e[t]->huge;
		}
		for (unsigned g = 0; g < n_groups; g++)
			part.view[g] = least_of(e, n_turns, g, n_views);
		rc = mb_heat_append(&list, &part);
		if (rc) {
			free(list.extent);
			return rc;
		}
		at = end;
	}
	*out = list.extent;
	*n = list.n;
	return 0;
}
