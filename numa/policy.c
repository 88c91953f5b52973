// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policy_internal.h"

void mb_policy_defaults(struct mb_policy_config *config)
{
	*config = (struct mb_policy_config){
		.page_touch_accesses = 8,
		.block_touch_accesses = 181,
		.local_ns = 100,
		.move_page_ns = 5000,
		.move_block_ns = 300000,
		.split_block_ns = 500000,
		.copy_page_ns = 8000,
		.copy_run_ns = 50000,
		.copied_write_ns = 50000,
		.try_share = 0.5,
		.small_walk_ns = 50,
		.cold_per_s = 0.1,
		.min_confidence = 0.5,
		.single_share = 0.8,
		.user_share = 0.05,
		.max_write_share = 0.01,
		.min_gain = 0.05,
		.min_gain_shared = 0.2,
		.payback_ns = 20000000000ull,
		.backoff_ns = 5000000000ull,
		.backoff_max_ns = 3600000000000ull,
		.max_moves = 12,
		.forgive = 4,
		.bytes_per_s = 2ull << 30,
		.node_bytes_per_s = 1ull << 30,
		.burst_ns = 1000000000ull,
		.cost_share = 0.01,
		.cost_burst_ns = 200000000ull,
		.low_free_share = 0.04,
		.high_free_share = 0.06,
		.low_free_bytes = 64ull << 20,
		.busy_share = 0.7,
		.busy_gap = 0.3,
		.max_actions = 4096,
		.max_tries = 16,
		.max_records = 16384,
	};
}

void mb_policy_host_init(
	struct mb_policy_host *host, const struct mb_topology *topo, uint64_t mems_allowed)
{
	*host = (struct mb_policy_host){.n_nodes = topo->n_nodes};
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		const struct mb_node *node = &topo->node[i];

		host->node[i] = (struct mb_policy_node){
			.id = (int)node->id,
			.usable = node->has_memory && mems_allowed >> i & 1,
			.has_cpus = CPU_COUNT(&node->cpus) > 0,
			.total_bytes = node->mem_total_bytes,
			.free_bytes = node->mem_available_bytes,
		};
		memcpy(host->node[i].distance, node->distance, sizeof(node->distance));
	}
}

const char *mb_why_name(enum mb_why why)
{
	static const char *const names[MB_WHY_COUNT] = {
		[MB_WHY_MIGRATE] = "migrate",
		[MB_WHY_REPLICATE] = "replicate",
		[MB_WHY_SPREAD] = "spread",
		[MB_WHY_COLD] = "cold",
		[MB_WHY_UNSURE] = "unsure",
		[MB_WHY_LOCAL] = "local",
		[MB_WHY_NO_GAIN] = "no gain",
		[MB_WHY_READ_SHARED] = "read-shared",
		[MB_WHY_WRITE_SHARED] = "write-shared",
		[MB_WHY_NO_PAYBACK] = "does not pay back",
		[MB_WHY_BACKING_OFF] = "backing off",
		[MB_WHY_BUDGET] = "budget spent",
		[MB_WHY_NODE_BUDGET] = "node's budget spent",
		[MB_WHY_COST_BUDGET] = "CPU budget spent",
		[MB_WHY_NO_ROOM] = "no room",
		[MB_WHY_FORBIDDEN] = "node not allowed",
		[MB_WHY_PLAN_FULL] = "plan full",
		[MB_WHY_NO_NODE] = "node unknown",
		[MB_WHY_ODD] = "odd",
	};

	return (unsigned)why < MB_WHY_COUNT ? names[why] : "?";
}

int mb_policy_create(struct mb_policy **out)
{
	*out = calloc(1, sizeof(**out));
	return *out ? 0 : -ENOMEM;
}

void mb_policy_destroy(struct mb_policy *policy)
{
	if (policy)
		free(policy->record);
	free(policy);
}

unsigned mb_policy_n_records(const struct mb_policy *policy)
{
	return policy->n_records;
}

void mb_plan_finish(struct mb_plan *plan)
{
	free(plan->action);
	free(plan->verdict);
	*plan = (struct mb_plan){0};
}

/* ---- verdicts ---- */

static int id_of(const struct work *w, int index)
{
	return index < 0 ? -1 : w->host->node[index].id;
}

static void add_verdict(struct work *w, const struct mb_verdict *v)
{
	struct mb_plan *plan = w->plan;
	struct mb_verdict *last = plan->n_verdicts ? &plan->verdict[plan->n_verdicts - 1] : NULL;

	if (last && last->extent == v->extent && last->why == v->why &&
		last->offset + last->len_bytes == v->offset && last->node == v->node &&
		last->target == v->target && last->moves == v->moves &&
		last->next_ns == v->next_ns && last->payback_ns == v->payback_ns) {
		last->len_bytes += v->len_bytes;
		last->gain_ns_per_s += v->gain_ns_per_s;
		return;
	}
	plan->verdict[plan->n_verdicts++] = *v;
}

/* Of what was done, and of the rest. */
static void judge(struct work *w, const struct part *p)
{
	const struct unit *u = &w->unit[p->unit];
	bool considered = mb_policy_is_move(u->why) || u->why == MB_WHY_NO_PAYBACK ||
			  u->why == MB_WHY_BACKING_OFF;
	uint64_t done = !mb_policy_is_move(u->why) || u->done_bytes > p->len_bytes ? p->len_bytes
										   : u->done_bytes;
	struct mb_verdict v = {
		.offset = p->offset,
		.len_bytes = done,
		.extent = p->extent,
		.why = u->why,
		.node = id_of(w, u->node),
		.target = id_of(w, mb_policy_is_move(u->why) ? u->first_target
				   : considered		     ? u->target
							     : -1),
		.moves = u->moves,
		.next_ns = u->why == MB_WHY_BACKING_OFF ? u->next_ns : 0,
	};
	double per_byte = considered && u->len_bytes ? u->gain / (double)u->len_bytes : 0;

	if (considered)
		v.payback_ns = u->gain > 0 ? u->cost_ns / u->gain * 1e9 : (double)INFINITY;
	v.gain_ns_per_s = per_byte * (double)v.len_bytes;
	if (done || !p->len_bytes)
		add_verdict(w, &v);
	if (done == p->len_bytes)
		return;
	v.offset += done;
	v.len_bytes = p->len_bytes - done;
	v.why = u->rest;
	v.gain_ns_per_s = per_byte * (double)v.len_bytes;
	add_verdict(w, &v);
}

int mb_policy_plan(
	struct mb_policy *policy, const struct mb_policy_input *input, struct mb_plan *plan)
{
	struct mb_policy after = *policy;
	struct work *w;
	int rc;

	*plan = (struct mb_plan){0};
	if (input->host->n_nodes > MB_MAX_NODES || input->n_views > MB_HEAT_VIEWS)
		return -EINVAL;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->input = input;
	w->config = input->config;
	w->host = input->host;
	w->n_views = input->n_views;
	w->n_nodes = input->host->n_nodes;
	w->plan = plan;
	rc = mb_policy_read(policy, w);
	if (!rc) {
		plan->verdict = calloc(2u * w->n_parts + 1u, sizeof(*plan->verdict));
		mb_policy_fill(&after, w);
		mb_policy_decide(w);
		rc = plan->verdict ? mb_policy_spend(&after, w) : -ENOMEM;
	}
	if (!rc)
		rc = mb_policy_remember(policy, w, &after.record, &after.n_records);
	if (!rc) {
		for (unsigned i = 0; i < w->n_parts; i++)
			judge(w, &w->part[i]);
		free(policy->record);
		*policy = after;
	} else {
		mb_plan_finish(plan);
	}
	free(w->unit);
	free(w->part);
	free(w);
	return rc;
}
