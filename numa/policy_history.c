// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>

#include "policy_internal.h"

#define MOST_TRIES 32u /* that a record can have had: each doubles the wait */

uint64_t mb_policy_wait_ns(const struct mb_policy_config *config, unsigned moves)
{
	uint64_t wait = config->backoff_ns;

	for (unsigned i = 1; i < moves && wait < config->backoff_max_ns; i++)
		wait = wait > UINT64_MAX / 2 ? UINT64_MAX : 2 * wait;
	return wait < config->backoff_max_ns ? wait : config->backoff_max_ns;
}

static uint64_t later(uint64_t at_ns, uint64_t ns)
{
	return at_ns > UINT64_MAX - ns ? UINT64_MAX : at_ns + ns;
}

static uint64_t forgiven_ns(const struct mb_policy_config *config, unsigned moves)
{
	uint64_t wait = mb_policy_wait_ns(config, moves), n = config->forgive ? config->forgive : 1;

	return wait > UINT64_MAX / n ? UINT64_MAX : wait * n;
}

unsigned mb_policy_moves(const struct mb_policy_config *config, const struct record *r,
	uint64_t now_ns, uint64_t *next_ns)
{
	uint64_t at = r->last_ns;
	unsigned moves = r->moves;

	*next_ns = 0;
	if (!moves)
		return 0;
	*next_ns = later(r->last_ns, mb_policy_wait_ns(config, r->moves));
	if (moves >= config->max_moves)
		*next_ns = later(r->last_ns, forgiven_ns(config, moves));
	while (moves) {
		at = later(at, forgiven_ns(config, moves));
		if (at > now_ns || at == UINT64_MAX)
			break;
		moves--;
	}
	return moves;
}

uint64_t mb_policy_next_try_ns(const struct mb_policy_config *config, const struct record *r)
{
	return r->tries ? later(r->tried_ns, mb_policy_wait_ns(config, r->tries)) : 0;
}

static bool is_tried(const struct mb_policy_config *config, const struct record *r, uint64_t now_ns)
{
	return r->tries &&
	       now_ns < later(later(r->tried_ns, config->backoff_max_ns), config->backoff_max_ns);
}

/* ---- keeping it ---- */

struct list {
	const struct mb_policy_config *config;
	uint64_t now_ns;
	struct record *record;
	unsigned n;
};

static void emit(struct list *list, struct record r)
{
	struct record *last = list->n ? &list->record[list->n - 1] : NULL;
	uint64_t next_ns;

	if (!mb_policy_moves(list->config, &r, list->now_ns, &next_ns)) {
		r.moves = 0;
		r.last_ns = 0;
		r.node = -1;
	}
	if (!is_tried(list->config, &r, list->now_ns))
		r.tries = 0;
	if (!r.tries)
		r.tried_ns = 0;
	if (r.offset >= r.end || (!r.moves && !r.tries))
		return;
	if (last && last->end == r.offset && last->moves == r.moves && last->node == r.node &&
		last->last_ns == r.last_ns && last->tries == r.tries &&
		last->tried_ns == r.tried_ns)
		last->end = r.end;
	else
		list->record[list->n++] = r;
}

/* Those that have only so many tries: another one each is the worst that comes of it. */
static void forget_tries(struct list *list, unsigned tries)
{
	unsigned n = 0;

	for (unsigned i = 0; i < list->n; i++)
		if (list->record[i].moves || list->record[i].tries > tries)
			list->record[n++] = list->record[i];
	list->n = n;
}

/* Joins records whose begins are in the same granule. */
static void join(struct list *list, uint64_t granule)
{
	unsigned n = 0;

	for (unsigned i = 0; i < list->n; i++) {
		struct record *to = n ? &list->record[n - 1] : NULL, r = list->record[i];

		if (!to || to->offset / granule != r.offset / granule) {
			list->record[n++] = r;
			continue;
		}
		to->end = r.end;
		to->moves = to->moves > r.moves ? to->moves : r.moves;
		to->last_ns = to->last_ns > r.last_ns ? to->last_ns : r.last_ns;
		to->tries = to->tries > r.tries ? to->tries : r.tries;
		to->tried_ns = to->tried_ns > r.tried_ns ? to->tried_ns : r.tried_ns;
		to->node = to->node == r.node ? r.node : -1;
	}
	list->n = n;
}

static int by_offset(const void *a, const void *b)
{
	const struct record *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* What the plan moves, in order; a range that gets several replicas once. */
static unsigned collect(const struct work *w, struct record *moved)
{
	unsigned n = 0;

	for (unsigned i = 0; i < w->plan->n_actions; i++) {
		const struct mb_action *a = &w->plan->action[i];

		moved[i] = (struct record){
			.offset = a->offset,
			.end = a->offset + a->len_bytes,
			.last_ns = w->input->now_ns,
			.node = a->kind == MB_ACTION_MIGRATE ? a->to : a->from,
			.moves = !a->is_try,
			.tries = a->is_try,
			.tried_ns = w->input->now_ns,
		};
	}
	qsort(moved, w->plan->n_actions, sizeof(*moved), by_offset);
	for (unsigned i = 0; i < w->plan->n_actions; i++) {
		if (n && moved[i].offset < moved[n - 1].end) {
			/* A replica more: as far as the widest. */
			if (moved[i].end > moved[n - 1].end)
				moved[n - 1].end = moved[i].end;
			continue;
		}
		moved[n++] = moved[i];
	}
	return n;
}

static struct record both(struct list *list, const struct record *old, const struct record *new)
{
	struct record r = *new;
	uint64_t next_ns;

	r.end = old->end < new->end ? old->end : new->end;
	if (new->moves) {
		r.moves = 1 + mb_policy_moves(list->config, old, list->now_ns, &next_ns);
		r.tries = old->tries;
		r.tried_ns = old->tried_ns;
	} else {
		r.moves = old->moves;
		r.node = old->node;
		r.last_ns = old->last_ns;
		r.tries = 1 + old->tries;
	}
	return r;
}

/* Sweeps over both lists: what is in one of them only stays as it is. */
static void merge(struct list *list, const struct mb_policy *policy, const struct record *moved,
	unsigned n_moved)
{
	unsigned i = 0, j = 0;
	struct record a = {0}, b = {0};

	while (i < policy->n_records || j < n_moved) {
		struct record cut;

		if (a.offset >= a.end && i < policy->n_records)
			a = policy->record[i];
		if (b.offset >= b.end && j < n_moved)
			b = moved[j];
		if (j == n_moved || (i < policy->n_records && a.end <= b.offset)) {
			emit(list, a);
			a.offset = a.end;
		} else if (i == policy->n_records || b.end <= a.offset) {
			emit(list, b);
			b.offset = b.end;
		} else if (a.offset < b.offset) {
			cut = a;
			cut.end = a.offset = b.offset;
			emit(list, cut);
		} else if (b.offset < a.offset) {
			cut = b;
			cut.end = b.offset = a.offset;
			emit(list, cut);
		} else {
			cut = both(list, &a, &b);
			emit(list, cut);
			a.offset = b.offset = cut.end;
		}
		i += i < policy->n_records && a.offset >= a.end;
		j += j < n_moved && b.offset >= b.end;
	}
}

int mb_policy_remember(
	const struct mb_policy *policy, const struct work *w, struct record **out, unsigned *n_out)
{
	unsigned n_moved = w->plan->n_actions, max = w->config->max_records;
	struct list list = {.config = w->config, .now_ns = w->input->now_ns};
	struct record *moved = calloc(n_moved + 1u, sizeof(*moved));

	/* Each begin and end makes one at most. */
	list.record = calloc(2u * (policy->n_records + n_moved) + 1u, sizeof(*list.record));
	if (!moved || !list.record) {
		free(moved);
		free(list.record);
		return -ENOMEM;
	}
	n_moved = collect(w, moved);
	merge(&list, policy, moved, n_moved);
	free(moved);
	for (unsigned tries = 1; list.n > max && tries < MOST_TRIES; tries++)
		forget_tries(&list, tries);
	for (uint64_t granule = MB_HEAT_BLOCK_BYTES; list.n > (max ? max : 1) && granule;
		granule *= 2)
		join(&list, granule);
	if (max ? list.n > max : list.n > 1)
		list.n = max ? max : 1;
	*out = list.record;
	*n_out = list.n;
	return 0;
}
