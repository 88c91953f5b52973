// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>

#include "sim_internal.h"

int mb_sim_place_add(struct place *place, uint64_t end, unsigned node)
{
	struct stretch *last = place->n ? &place->stretch[place->n - 1] : NULL;

	if (end <= (last ? last->end : 0))
		return 0;
	if (last && last->node == node) {
		last->end = end;
		return 0;
	}
	if (place->n == place->room) {
		unsigned room = place->room ? 2 * place->room : 16;
		struct stretch *more = reallocarray(place->stretch, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		place->stretch = more;
		place->room = room;
	}
	place->stretch[place->n++] = (struct stretch){end, node};
	return 0;
}

unsigned mb_sim_place_find(const struct place *place, uint64_t offset)
{
	unsigned low = 0, high = place->n;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (place->stretch[middle].end <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static int by_offset(const void *a, const void *b)
{
	const struct mb_action *x = *(const struct mb_action *const *)a,
			       *y = *(const struct mb_action *const *)b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

struct mover {
	const struct mb_sim_host *host;
	uint64_t *used, *moved;
	double *cost_ns;
};

/* [from, to) of a stretch goes to another node. */
static void move(
	struct mover *m, const struct mb_action *a, uint64_t from, uint64_t to, unsigned old)
{
	uint64_t len = to - from;

	if (old == (unsigned)a->to)
		return;
	m->used[old] -= len;
	m->used[a->to] += len;
	*m->moved += len;
	*m->cost_ns += a->huge ? (double)len / (double)MB_HEAT_BLOCK_BYTES * m->host->move_block_ns
			       : (double)len / (double)MB_HEAT_PAGE_BYTES * m->host->move_page_ns;
}

int mb_sim_place_move(struct place *place, const struct mb_sim_host *host,
	const struct mb_plan *plan, uint64_t *used, uint64_t *moved, double *cost_ns)
{
	struct mover m = {host, used, moved, cost_ns};
	const struct mb_action **action = calloc(plan->n_actions + 1u, sizeof(*action));
	struct place after = {0};
	uint64_t at = 0;
	unsigned i = 0, n = 0;
	int rc = action ? 0 : -ENOMEM;

	for (unsigned k = 0; action && k < plan->n_actions; k++)
		if (plan->action[k].kind == MB_ACTION_MIGRATE)
			action[n++] = &plan->action[k];
	if (action)
		qsort(action, n, sizeof(*action), by_offset);
	/* Both lists are in order: each step is as long as neither changes. */
	for (unsigned k = 0; !rc && k < place->n;) {
		uint64_t end = place->stretch[k].end;
		unsigned node = place->stretch[k].node;

		if (i < n && action[i]->offset <= at) {
			uint64_t action_end = action[i]->offset + action[i]->len_bytes;

			end = end < action_end ? end : action_end;
			move(&m, action[i], at, end, node);
			node = (unsigned)action[i]->to;
			i += end == action_end;
		} else if (i < n && action[i]->offset < end) {
			end = action[i]->offset;
		}
		rc = mb_sim_place_add(&after, end, node);
		k += end == place->stretch[k].end;
		at = end;
	}
	free(action);
	free(rc ? after.stretch : place->stretch);
	if (!rc)
		*place = after;
	return rc;
}
