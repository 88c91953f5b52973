// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "policy_internal.h"

#define MAX_DEBT 5 /* for writes of what had copies, in cost_burst_ns */

/* ---- budgets ---- */

static double capacity(const struct mb_policy_config *config, uint64_t bytes_per_s)
{
	double burst = (double)bytes_per_s * (double)config->burst_ns / 1e9;

	return bytes_per_s ? fmax(burst, (double)MB_HEAT_BLOCK_BYTES) : 0;
}

static double low_mark(const struct mb_policy_config *config, const struct mb_policy_node *node)
{
	return fmax(
		(double)config->low_free_bytes, config->low_free_share * (double)node->total_bytes);
}

static double high_mark(const struct mb_policy_config *config, const struct mb_policy_node *node)
{
	return fmax(1.5 * (double)config->low_free_bytes,
		config->high_free_share * (double)node->total_bytes);
}

/* Accesses a second that one plan takes away from a busy controller: half of the difference. */
static void allow_spread(struct work *w)
{
	const struct mb_policy_node *node = w->host->node;
	double least = 1;

	for (unsigned i = 0; i < w->n_nodes; i++)
		if (node[i].usable && node[i].has_cpus)
			least = fmin(least, node[i].busy);
	for (unsigned i = 0; i < w->n_units; i++) {
		const struct unit *u = &w->unit[i];

		if (u->node < 0 || !(node[u->node].busy > least))
			continue;
		w->spread[u->node] += mb_policy_all_accesses(w, u) * (node[u->node].busy - least) /
				      (2 * node[u->node].busy);
	}
}

static void fill_cost(struct mb_policy *policy, const struct work *w)
{
	const struct mb_policy_config *c = w->config;
	uint64_t guest_ns = w->input->guest_ns, n_writes = w->input->n_writes;
	double burst_ns = fmax((double)c->cost_burst_ns, 1); /* enough for a debt */

	if (!policy->started)
		policy->cost_ns = burst_ns;
	else if (guest_ns > policy->guest_ns)
		policy->cost_ns = fmin(burst_ns,
			policy->cost_ns + c->cost_share * (double)(guest_ns - policy->guest_ns));
	/* They have been paid already: no longer than for a while nothing else is. */
	if (guest_ns && n_writes > policy->n_writes && policy->cost_ns > -MAX_DEBT * burst_ns)
		policy->cost_ns = fmax(-MAX_DEBT * burst_ns,
			policy->cost_ns -
				(double)(n_writes - policy->n_writes) * c->copied_write_ns);
	if (!policy->started || guest_ns > policy->guest_ns)
		policy->guest_ns = guest_ns;
	policy->n_writes = n_writes;
}

void mb_policy_fill(struct mb_policy *policy, struct work *w)
{
	const struct mb_policy_config *c = w->config;
	double all = capacity(c, c->bytes_per_s), each = capacity(c, c->node_bytes_per_s), s = 0;
	uint64_t now_ns = w->input->now_ns;

	if (policy->started && now_ns > policy->filled_ns)
		s = (double)(now_ns - policy->filled_ns) / 1e9;
	/* Not what a clock that went backwards gives a second time. */
	if (!policy->started || now_ns > policy->filled_ns)
		policy->filled_ns = now_ns;
	policy->bytes =
		policy->started ? fmin(all, policy->bytes + s * (double)c->bytes_per_s) : all;
	for (unsigned i = 0; i < MB_MAX_NODES; i++)
		policy->node_bytes[i] =
			policy->started ? fmin(each, policy->node_bytes[i] +
							     s * (double)c->node_bytes_per_s)
					: each;
	fill_cost(policy, w);
	policy->started = true;

	for (unsigned i = 0; i < w->n_nodes; i++) {
		const struct mb_policy_node *node = &w->host->node[i];
		double low = low_mark(c, node), high = fmax(low, high_mark(c, node));

		if ((double)node->free_bytes < low)
			policy->short_nodes |= 1ull << i;
		else if ((double)node->free_bytes >= high)
			policy->short_nodes &= ~(1ull << i);
		w->room[i] = policy->short_nodes >> i & 1 ? 0 : (double)node->free_bytes - low;
	}
	allow_spread(w);
}

/* ---- spending them ---- */

static int add_action(struct work *w, const struct mb_action *action)
{
	struct mb_plan *plan = w->plan;

	if (plan->n_actions == w->room_actions) {
		unsigned room = w->room_actions ? 2 * w->room_actions : 64;
		struct mb_action *more = reallocarray(plan->action, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		plan->action = more;
		w->room_actions = room;
	}
	plan->action[plan->n_actions++] = *action;
	plan->bytes += action->len_bytes;
	return 0;
}

static uint64_t least(double a, double b, uint64_t granule)
{
	double x = fmin(a, b);

	return x > 0 ? (uint64_t)x / granule * granule : 0;
}

static double of_nodes(const struct mb_policy *policy, const struct unit *u, int to)
{
	if (u->node < 0 || u->why == MB_WHY_REPLICATE)
		return policy->node_bytes[to];
	return fmin(policy->node_bytes[to], policy->node_bytes[u->node]);
}

/* Of a copy for one view, or of a move. */
static double cost_of(const struct work *w, const struct unit *u, uint64_t len)
{
	if (u->why == MB_WHY_REPLICATE)
		return mb_policy_copy_cost(w, len);
	return u->cost_ns * (double)len / (double)u->len_bytes;
}

/* What costs more than there ever is at once leaves a debt. n: so many of them. */
static uint64_t may_cost(const struct mb_policy *policy, const struct work *w, const struct unit *u,
	uint64_t left, unsigned n)
{
	const double of_all = n * cost_of(w, u, left);

	if (!w->input->guest_ns || of_all <= policy->cost_ns)
		return left;
	if (!(policy->cost_ns > 0))
		return 0;
	return least((double)left,
		(double)left * policy->cost_ns / of_all + (double)u->granule_bytes,
		u->granule_bytes);
}

/* How much has room there, of bytes that are left, if so many times as much goes there. */
static uint64_t has_room(
	const struct work *w, const struct unit *u, int to, uint64_t left, unsigned n_there)
{
	return least((double)left, w->room[to] / n_there, u->granule_bytes);
}

/* How much budgets allow; and which does not allow more. n: so many times as much goes in all. */
static uint64_t may_spend(const struct mb_policy *policy, const struct work *w,
	const struct unit *u, int to, uint64_t left, unsigned n, unsigned n_there,
	enum mb_why *limit)
{
	const uint64_t granule = u->granule_bytes;
	const struct {
		enum mb_why why;
		uint64_t bytes;
	} limits[] = {
		{MB_WHY_NODE_BUDGET,
			least((double)left, of_nodes(policy, u, to) / n_there, granule)},
		{MB_WHY_BUDGET, least((double)left, policy->bytes / n, granule)},
		{MB_WHY_COST_BUDGET, may_cost(policy, w, u, left, n)},
	};
	unsigned lowest = 0;

	if (w->plan->n_actions + n > w->config->max_actions) {
		*limit = MB_WHY_PLAN_FULL;
		return 0;
	}
	for (unsigned i = 1; i < sizeof(limits) / sizeof(limits[0]); i++)
		if (limits[i].bytes < limits[lowest].bytes)
			lowest = i;
	*limit = limits[lowest].why;
	return limits[lowest].bytes;
}

/* How much may go there, of bytes that are left; and what the limit is if that is not all. */
static uint64_t may_go(const struct mb_policy *policy, const struct work *w, const struct unit *u,
	int to, uint64_t left, enum mb_why *limit)
{
	uint64_t may = may_spend(policy, w, u, to, left, 1, 1, limit),
		 room = has_room(w, u, to, left, 1);

	if (*limit == MB_WHY_PLAN_FULL || room > may)
		return may;
	*limit = MB_WHY_NO_ROOM;
	return room;
}

static int go(struct mb_policy *policy, struct work *w, struct unit *u, uint64_t at, uint64_t len,
	int to, int view, double gain)
{
	double share = (double)len / (double)u->len_bytes;
	struct mb_action action = {
		.kind = u->why == MB_WHY_REPLICATE ? MB_ACTION_REPLICATE : MB_ACTION_MIGRATE,
		.why = u->why,
		.offset = u->offset + at,
		.len_bytes = len,
		.huge = u->huge,
		.split = u->split,
		.is_try = u->is_try,
		.from = u->node < 0 ? -1 : w->host->node[u->node].id,
		.to = w->host->node[to].id,
		.view = view,
		.gain_ns_per_s = gain * share,
		.cost_ns = cost_of(w, u, len),
	};

	if (w->input->guest_ns)
		policy->cost_ns -= action.cost_ns;
	policy->bytes -= (double)len;
	policy->node_bytes[to] -= (double)len;
	if (u->node >= 0 && view < 0)
		policy->node_bytes[u->node] -= (double)len;
	w->room[to] -= (double)len;
	return add_action(w, &action);
}

/* As much as may, to the best node; what finds no room there to the next best one. */
static int migrate(struct mb_policy *policy, struct work *w, struct unit *u)
{
	uint64_t without = 0;
	int to = u->target, rc = 0;
	double gain = u->gain;

	u->first_target = to;
	while (u->done_bytes < u->len_bytes && !rc) {
		enum mb_why why;
		uint64_t left = u->len_bytes - u->done_bytes,
			 len = may_go(policy, w, u, to, left, &u->rest);

		if (len)
			rc = go(policy, w, u, u->done_bytes, len, to, -1, gain);
		u->done_bytes += len;
		if (len == left || u->rest != MB_WHY_NO_ROOM || u->node < 0)
			break;
		without |= 1ull << to;
		to = mb_policy_target(w, u, without, &gain, &why);
		gain = gain * u->share - u->small_ns;
		if (to < 0 || !mb_policy_pays_back(w, gain, u->cost_ns))
			break;
		if (!u->done_bytes)
			u->first_target = to;
	}
	return rc;
}

static int spread(struct mb_policy *policy, struct work *w, struct unit *u)
{
	const double accesses = mb_policy_all_accesses(w, u);
	uint64_t len;
	int rc = 0;

	len = may_go(policy, w, u, u->target, u->len_bytes, &u->rest);
	/* No more than makes both equally busy; one granule at least. */
	if ((double)len * accesses / (double)u->len_bytes > w->spread[u->node]) {
		len = least((double)len,
			w->spread[u->node] / accesses * (double)u->len_bytes +
				(double)u->granule_bytes,
			u->granule_bytes);
		u->rest = MB_WHY_WRITE_SHARED;
	}
	if (!(w->spread[u->node] > 0))
		len = 0;
	w->spread[u->node] -= (double)len / (double)u->len_bytes * accesses;
	u->first_target = u->target;
	u->done_bytes = len;
	if (len)
		rc = go(policy, w, u, 0, len, u->target, -1, u->gain);
	return rc;
}

/* In blocks. */
static uint64_t may_try(const struct work *w)
{
	return w->config->max_tries > w->n_tries ? w->config->max_tries - w->n_tries : 0;
}

/*
 * For each view that is far from it, where there is room. Of what budgets allow as much for each,
 * since what one of them has a copy of counts as copied.
 */
static int replicate(struct mb_policy *policy, struct work *w, struct unit *u)
{
	const double net = u->gain / (u->gain + u->small_ns); /* of what each view gains */
	unsigned n = 0, n_there[MB_MAX_NODES] = {0};
	uint64_t len = u->len_bytes, room[MB_HEAT_VIEWS];
	double gain[MB_HEAT_VIEWS];
	int to[MB_HEAT_VIEWS], rc = 0;

	for (unsigned v = 0; v < w->n_views; v++) {
		to[v] = mb_policy_copy_target(w, u, v, &gain[v]);
		if (to[v] >= 0)
			n_there[to[v]]++;
	}
	u->rest = MB_WHY_NO_ROOM;
	if (u->is_try && len > may_try(w) * u->granule_bytes) {
		len = may_try(w) * u->granule_bytes;
		u->rest = MB_WHY_WRITE_SHARED;
	}
	for (unsigned v = 0; v < w->n_views; v++) {
		room[v] = to[v] < 0 ? 0 : has_room(w, u, to[v], u->len_bytes, n_there[to[v]]);
		n += room[v] > 0;
	}
	for (unsigned v = 0; v < w->n_views; v++) {
		enum mb_why why;
		uint64_t may;

		if (!room[v])
			continue;
		may = may_spend(policy, w, u, to[v], len, n, n_there[to[v]], &why);
		if (may < len)
			u->rest = why;
		len = may;
	}
	for (unsigned v = 0; v < w->n_views && !rc; v++) {
		uint64_t of_view = room[v] < len ? room[v] : len;

		if (!of_view)
			continue;
		if (u->first_target < 0)
			u->first_target = to[v];
		u->done_bytes = of_view > u->done_bytes ? of_view : u->done_bytes;
		rc = go(policy, w, u, 0, of_view, to[v], (int)v, gain[v] * net);
	}
	if (u->is_try)
		w->n_tries += (unsigned)(u->done_bytes / u->granule_bytes);
	return rc;
}

/* What pays back soonest first. */
static int by_payback(const void *a, const void *b)
{
	const struct unit *x = *(struct unit *const *)a, *y = *(struct unit *const *)b;
	double left = x->gain * y->cost_ns, right = y->gain * x->cost_ns;

	if (left != right)
		return left > right ? -1 : 1;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int mb_policy_spend(struct mb_policy *policy, struct work *w)
{
	struct unit **order = calloc(w->n_units + 1u, sizeof(*order));
	unsigned n = 0;
	int rc = 0;

	if (!order)
		return -ENOMEM;
	for (unsigned i = 0; i < w->n_units; i++) {
		enum mb_why why = w->unit[i].why;

		if (why == MB_WHY_MIGRATE || why == MB_WHY_SPREAD || why == MB_WHY_REPLICATE)
			order[n++] = &w->unit[i];
	}
	qsort(order, n, sizeof(struct unit *), by_payback);
	for (unsigned i = 0; i < n && !rc; i++) {
		if (order[i]->why == MB_WHY_MIGRATE)
			rc = migrate(policy, w, order[i]);
		else if (order[i]->why == MB_WHY_SPREAD)
			rc = spread(policy, w, order[i]);
		else
			rc = replicate(policy, w, order[i]);
	}
	free(order);
	return rc;
}
