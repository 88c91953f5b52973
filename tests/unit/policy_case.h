/* SPDX-License-Identifier: Apache-2.0 */
#ifndef POLICY_CASE_H
#define POLICY_CASE_H

#include <check.h>
#include <mirrorball/policy.h>
#include <string.h>

#include "run.h"

/* What cases of the policy begin with: a host, extents, and a plan for them. */

#define MIB    (1ull << 20)
#define GIB    (1ull << 30)
#define BLOCK  MB_HEAT_BLOCK_BYTES
#define PAGE   MB_HEAT_PAGE_BYTES
#define SECOND 1000000000ull

/* Two nodes with a view each, nothing in the way: each case changes what it is about. */
static struct mb_policy_config config;
static struct mb_policy_host host;
static struct mb_policy_view view[MB_HEAT_VIEWS];
static struct mb_extent extent[4096];
static unsigned n_views, n_extents;
static struct mb_policy *policy;
static struct mb_plan plan;
static uint64_t now, guest_ns;

static inline void make_host(unsigned n_nodes, unsigned views)
{
	memset(view, 0, sizeof(view));
	memset(&host, 0, sizeof(host));
	host.n_nodes = n_nodes;
	n_views = views;
	for (unsigned i = 0; i < n_nodes; i++) {
		struct mb_policy_node *node = &host.node[i];

		*node = (struct mb_policy_node){.id = (int)i,
			.usable = true,
			.has_cpus = true,
			.total_bytes = 64 * GIB,
			.free_bytes = 32 * GIB};
		for (unsigned k = 0; k < n_nodes; k++)
			node->distance[k] = k == i ? 10 : 21;
		view[i * views / n_nodes].weight[i] = 2;
	}
}

static inline void setup(void)
{
	mb_policy_defaults(&config);
	make_host(2, 2);
	n_extents = 0;
	now = 100 * SECOND;
	guest_ns = 0;
	memset(&plan, 0, sizeof(plan));
	ck_assert_int_eq(mb_policy_create(&policy), 0);
}

static inline void teardown(void)
{
	mb_plan_finish(&plan);
	mb_policy_destroy(policy);
}

/* Behind the last one; nobody uses it yet. */
static inline struct mb_extent *add(uint64_t len, int node, bool huge)
{
	struct mb_extent *e = &extent[n_extents], *last = n_extents ? e - 1 : NULL;

	*e = (struct mb_extent){.offset = last ? last->offset + last->len_bytes : 0,
		.len_bytes = len,
		.node = node,
		.node_share = 1,
		.huge = huge,
		.confidence = 0.8f};
	n_extents++;
	return e;
}

static inline struct mb_extent *add_read(
	uint64_t len, int node, bool huge, float view0, float view1)
{
	struct mb_extent *e = add(len, node, huge);

	e->view[0].read = view0;
	e->view[1].read = view1;
	return e;
}

static inline void make_plan(void)
{
	struct mb_policy_input in = {.now_ns = now,
		.guest_ns = guest_ns,
		.config = &config,
		.host = &host,
		.n_views = n_views,
		.view = view,
		.n_extents = n_extents,
		.extent = extent};

	mb_plan_finish(&plan);
	ck_assert_int_eq(mb_policy_plan(policy, &in, &plan), 0);
}

/* The verdict on the extent's first byte. */
static inline const struct mb_verdict *verdict_of(unsigned i)
{
	for (unsigned k = 0; k < plan.n_verdicts; k++)
		if (plan.verdict[k].extent == i)
			return &plan.verdict[k];
	ck_abort_msg("no verdict on extent %u", i);
}

#define expect(i, w)                                                                               \
	ck_assert_msg(verdict_of(i)->why == (w), "extent %u: %s, not %s", (unsigned)(i),           \
		mb_why_name(verdict_of(i)->why), mb_why_name(w))

#endif
