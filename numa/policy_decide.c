// SPDX-License-Identifier: Apache-2.0
#include <math.h>

#include "policy_internal.h"

#define SAME 1e-9 /* relative difference that is rounding */

/* Time a second in memory if all of the unit were there. */
static double time_at(
	const struct work *w, const struct unit *u, const double (*ns)[MB_MAX_NODES], int node)
{
	double sum = 0;

	for (unsigned v = 0; v < w->n_views; v++) {
		double accesses = mb_policy_accesses(u, v);

		if (accesses > 0 && ns[v][node] > 0)
			sum += accesses * ns[v][node];
	}
	return sum;
}

static double time_now(const struct work *w, const struct unit *u)
{
	return time_at(w, u, w->home_ns, u->node);
}

static double time_there(const struct work *w, const struct unit *u, unsigned node)
{
	return time_at(w, u, w->target_ns, (int)node);
}

/* ---- who uses it ---- */

struct users {
	double all;	 /* accesses a second that are known to come from somewhere */
	double top_node; /* share of the node, and of the view, that has most */
	double top_view;
	unsigned n_views; /* that count */
};

static struct users find_users(const struct work *w, const struct unit *u)
{
	struct users users = {0};
	double node[MB_MAX_NODES] = {0};
	bool known[MB_HEAT_VIEWS] = {false};

	for (unsigned v = 0; v < w->n_views; v++) {
		for (unsigned i = 0; i < w->n_nodes; i++) {
			node[i] += mb_policy_accesses(u, v) * w->weight[v][i];
			known[v] |= w->weight[v][i] > 0;
		}
		if (known[v])
			users.all += mb_policy_accesses(u, v);
	}
	if (!(users.all > 0))
		return users;
	for (unsigned i = 0; i < w->n_nodes; i++)
		users.top_node = fmax(users.top_node, node[i] / users.all);
	for (unsigned v = 0; v < w->n_views; v++) {
		double share = known[v] ? mb_policy_accesses(u, v) / users.all : 0;

		users.top_view = fmax(users.top_view, share);
		users.n_views += share > 0 && share >= w->config->user_share;
	}
	return users;
}

static enum class class_of(const struct work *w, const struct unit *u, const struct users *users) {
	double single = w->config->single_share;

	if (users->n_views < 2 || users->top_node >= single ||
		users->top_view >= single) return CLASS_SINGLE;
	return u->write_touches > w->config->max_write_share * u->all_touches ? CLASS_WRITE_SHARED
									      : CLASS_READ_SHARED;
}

enum class mb_policy_class(const struct work *w, const struct unit *u) {
	struct users users = find_users(w, u);

	return class_of(w, u, &users);
}

/* ---- where to ---- */

/* The nearest node for all users together, of those that pass; of equals the emptier one. */
static int nearest(const struct work *w, const struct unit *u, uint64_t without, bool with_cpus,
	bool usable, double *ns)
{
	int best = -1;

	for (unsigned i = 0; i < w->n_nodes; i++) {
		const struct mb_policy_node *node = &w->host->node[i];
		double there;

		if ((int)i == u->node || without >> i & 1 || node->has_cpus != with_cpus ||
			(usable ? !node->usable : !node->total_bytes))
			continue;
		there = time_there(w, u, i);
		if (!isfinite(there))
			continue;
		if (best < 0 || there < *ns * (1 - SAME) ||
			(there <= *ns * (1 + SAME) && w->room[i] > w->room[best])) {
			best = (int)i;
			*ns = there;
		}
	}
	return best;
}

int mb_policy_target(const struct work *w, const struct unit *u, uint64_t without, double *gain,
	enum mb_why *why)
{
	struct users users = find_users(w, u);
	bool single = class_of(w, u, &users) == CLASS_SINGLE;
	double now = time_now(w, u), there = 0;
	double least = now * (single ? w->config->min_gain : w->config->min_gain_shared);
	int best;

	/* Nodes without CPUs are for what finds no room elsewhere. */
	for (unsigned with_cpus = 2; with_cpus-- > 0;) {
		best = nearest(w, u, without, with_cpus, true, &there);
		if (best >= 0 && now - there > 0 && now - there >= least) {
			*gain = now - there;
			return best;
		}
	}
	best = nearest(w, u, 0, true, false, &there);
	if (best < 0 || now <= there * (1 + SAME))
		*why = MB_WHY_LOCAL;
	else if (now - there < least)
		*why = MB_WHY_NO_GAIN;
	else
		*why = without ? MB_WHY_NO_ROOM : MB_WHY_FORBIDDEN;
	return -1;
}

bool mb_policy_pays_back(const struct work *w, double gain, double cost_ns)
{
	return gain > 0 && cost_ns / gain * 1e9 <= (double)w->config->payback_ns;
}

double mb_policy_copy_cost(const struct work *w, uint64_t len)
{
	return w->config->copy_run_ns +
	       (double)len / (double)MB_HEAT_PAGE_BYTES * w->config->copy_page_ns;
}

static double move_cost(const struct work *w, const struct unit *u)
{
	double n = (double)u->len_bytes / (double)u->granule_bytes;

	if (u->huge)
		return n * w->config->move_block_ns;
	return n * w->config->move_page_ns;
}

/* Its node's controller has too much to do, and another one has time. */
static int spread_target(const struct work *w, const struct unit *u, double *gain)
{
	const struct mb_policy_node *node = w->host->node;
	double busy = node[u->node].busy, now = time_now(w, u);
	int best = -1;

	if (!(busy >= w->config->busy_share) || !(w->spread[u->node] > 0))
		return -1;
	for (unsigned i = 0; i < w->n_nodes; i++) {
		double there = time_there(w, u, i), better;

		if (!node[i].usable || !node[i].has_cpus || (int)i == u->node ||
			!(node[i].busy <= busy - w->config->busy_gap) || !isfinite(there))
			continue;
		/* A queue of M/D/1: what is waited for is half of what is busy by what is not. */
		better = now * busy / (2 * fmax(1 - busy, 0.05)) -
			 there * node[i].busy / (2 * fmax(1 - node[i].busy, 0.05)) + now - there;
		if (better > 0 && (best < 0 || better > *gain * (1 + SAME))) {
			best = (int)i;
			*gain = better;
		}
	}
	return best;
}

/* A part of it is there already, and the rest somewhere else. */
static bool gather(const struct work *w, struct unit *u)
{
	struct unit there = *u;
	double ns = 0;

	if (u->share >= 1 || u->has_record || !w->host->node[u->node].usable ||
		!w->host->node[u->node].has_cpus)
		return false;
	/* At least as far as the nearest other one. */
	if (nearest(w, &there, 0, true, true, &ns) < 0 || ns <= time_now(w, u))
		return false;
	u->target = u->node;
	u->node = -1;
	u->gain = (1 - u->share) * (ns - time_now(w, &there));
	u->cost_ns = (1 - u->share) * move_cost(w, u);
	return true;
}

/* Time a second that its accesses take longer when it is mapped in small pages. */
static double small_cost(const struct work *w, const struct unit *u)
{
	return mb_policy_all_accesses(w, u) / w->config->page_touch_accesses *
	       w->config->small_walk_ns;
}

int mb_policy_copy_target(const struct work *w, const struct unit *u, unsigned view, double *gain)
{
	struct unit one = *u;
	enum mb_why why;

	for (unsigned v = 0; v < w->n_views; v++)
		if (v != view)
			one.read[v] = one.write[v] = 0;
	return mb_policy_accesses(u, view) > 0 ? mb_policy_target(w, &one, 0, gain, &why) : -1;
}

/* Replicas for the views that are far from it, if that is worth it. */
static void decide_replicas(const struct work *w, struct unit *u)
{
	u->why = MB_WHY_LOCAL;
	u->gain = u->cost_ns = 0;
	for (unsigned v = 0; v < w->n_views; v++) {
		double gain;

		if (mb_policy_copy_target(w, u, v, &gain) < 0)
			continue;
		u->why = MB_WHY_REPLICATE;
		u->gain += gain;
		u->cost_ns += mb_policy_copy_cost(w, u->len_bytes);
	}
	if (u->huge && u->why == MB_WHY_REPLICATE) {
		u->small_ns = small_cost(w, u);
		u->gain -= u->small_ns;
	}
}

/*
 * Whether copies are worth a try, of huge pages in which somebody writes something. What it costs
 * in vain, a write that waits for each page of some, is taken to be as much as the copies.
 */
static bool is_worth_a_try(const struct work *w, struct unit *u)
{
	struct unit as_read = *u;

	if (!w->config->replicas || !(w->config->try_share > 0) || !u->huge || u->in_detail)
		return false;
	if (w->input->now_ns < u->next_try_ns)
		return false;
	decide_replicas(w, &as_read);
	as_read.gain *= w->config->try_share;
	if (as_read.why != MB_WHY_REPLICATE ||
		!mb_policy_pays_back(w, as_read.gain, 2 * as_read.cost_ns))
		return false;
	*u = as_read;
	u->is_try = true;
	return true;
}

static enum mb_why decide_move(const struct work *w, struct unit *u)
{
	enum mb_why why;

	if (u->class == CLASS_READ_SHARED && w->config->replicas) {
		decide_replicas(w, u);
		return u->why;
	}
	u->cost_ns = move_cost(w, u);
	u->target = mb_policy_target(w, u, 0, &u->gain, &why);
	if (u->target >= 0) {
		u->gain *= u->share;
		u->cost_ns *= u->share;
		return MB_WHY_MIGRATE;
	}
	if (u->class == CLASS_SINGLE)
		return why == MB_WHY_LOCAL && gather(w, u) ? MB_WHY_MIGRATE : why;
	if (u->class == CLASS_READ_SHARED)
		return MB_WHY_READ_SHARED;
	u->target = spread_target(w, u, &u->gain);
	if (u->target >= 0)
		return MB_WHY_SPREAD;
	return is_worth_a_try(w, u) ? MB_WHY_REPLICATE : MB_WHY_WRITE_SHARED;
}

enum mb_why mb_policy_decide_unit(const struct work *w, struct unit *u)
{
	struct users users = find_users(w, u);
	enum mb_why why;

	u->class = class_of(w, u, &users);
	if (u->odd)
		return MB_WHY_ODD;
	if (u->node < 0)
		return MB_WHY_NO_NODE;
	if (!(u->confidence > w->config->min_confidence))
		return MB_WHY_UNSURE;
	if (!(users.all > 0) || !(u->touches >= w->config->cold_per_s))
		return MB_WHY_COLD;
	why = decide_move(w, u);
	if (!mb_policy_is_move(why))
		return why;
	if (!mb_policy_pays_back(w, u->gain, u->cost_ns))
		return MB_WHY_NO_PAYBACK;
	if (u->has_record && w->input->now_ns < u->next_ns)
		return MB_WHY_BACKING_OFF;
	return why;
}

bool mb_policy_is_move(enum mb_why why)
{
	return why == MB_WHY_MIGRATE || why == MB_WHY_REPLICATE || why == MB_WHY_SPREAD;
}

/* What parts of a huge page bear together when some of them move or get replicas. */
struct together {
	double small_ns;     /* a second: all of it takes longer in small pages */
	double gains, moves; /* of those that do; without replicas */
};

static struct together add_up(const struct work *w, unsigned first, unsigned end)
{
	struct together t = {0};

	for (unsigned i = first; i < end; i++) {
		const struct unit *u = &w->unit[i];

		t.small_ns += small_cost(w, u);
		if (!mb_policy_is_move(u->why))
			continue;
		t.gains += u->gain;
		if (u->why != MB_WHY_REPLICATE)
			t.moves += u->gain;
	}
	return t;
}

/* Each as much as it gains. */
static void bear(const struct work *w, struct unit *u, const struct together *t)
{
	if (u->why != MB_WHY_REPLICATE)
		u->cost_ns += w->config->split_block_ns * u->gain / t->moves;
	u->small_ns = t->small_ns * u->gain / t->gains;
	u->gain -= u->small_ns;
}

/* Those for whom that is too much leave it to the others. False: there are none. */
static bool drop_losers(
	const struct work *w, unsigned first, unsigned end, const struct together *t)
{
	bool dropped = false;

	for (unsigned i = first; i < end; i++) {
		struct unit borne = w->unit[i];

		if (!mb_policy_is_move(borne.why))
			continue;
		bear(w, &borne, t);
		if (mb_policy_pays_back(w, borne.gain, borne.cost_ns))
			continue;
		borne.why = MB_WHY_NO_PAYBACK;
		w->unit[i] = borne;
		dropped = true;
	}
	return dropped;
}

static void share_split(const struct work *w, unsigned first, unsigned end)
{
	struct together t;

	do
		t = add_up(w, first, end);
	while (drop_losers(w, first, end, &t));
	for (unsigned i = first; i < end; i++)
		if (mb_policy_is_move(w->unit[i].why))
			bear(w, &w->unit[i], &t);
}

void mb_policy_decide(const struct work *w)
{
	for (unsigned i = 0; i < w->n_units; i++)
		w->unit[i].why = mb_policy_decide_unit(w, &w->unit[i]);
	for (unsigned i = 0, end; i < w->n_units; i = end) {
		const uint64_t block = w->unit[i].offset / MB_HEAT_BLOCK_BYTES;

		for (end = i + 1; end < w->n_units && w->unit[i].split && w->unit[end].split &&
				  w->unit[end].offset / MB_HEAT_BLOCK_BYTES == block;)
			end++;
		if (w->unit[i].split)
			share_split(w, i, end);
	}
}
