// SPDX-License-Identifier: Apache-2.0
#include <check.h>
#include <math.h>
#include <mirrorball/policy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

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
static uint64_t now;

static void make_host(unsigned n_nodes, unsigned views)
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

static void setup(void)
{
	mb_policy_defaults(&config);
	make_host(2, 2);
	n_extents = 0;
	now = 100 * SECOND;
	memset(&plan, 0, sizeof(plan));
	ck_assert_int_eq(mb_policy_create(&policy), 0);
}

static void teardown(void)
{
	mb_plan_finish(&plan);
	mb_policy_destroy(policy);
}

/* Behind the last one; nobody uses it yet. */
static struct mb_extent *add(uint64_t len, int node, bool huge)
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

static struct mb_extent *add_read(uint64_t len, int node, bool huge, float view0, float view1)
{
	struct mb_extent *e = add(len, node, huge);

	e->view[0].read = view0;
	e->view[1].read = view1;
	return e;
}

static void make_plan(void)
{
	struct mb_policy_input in = {.now_ns = now,
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
static const struct mb_verdict *verdict_of(unsigned i)
{
	for (unsigned k = 0; k < plan.n_verdicts; k++)
		if (plan.verdict[k].extent == i)
			return &plan.verdict[k];
	ck_abort_msg("no verdict on extent %u", i);
}

#define expect(i, w)                                                                               \
	ck_assert_msg(verdict_of(i)->why == (w), "extent %u: %s, not %s", (unsigned)(i),           \
		mb_why_name(verdict_of(i)->why), mb_why_name(w))

/* ---- Disco's rules ---- */

START_TEST(test_migrate)
{
	add_read(8 * PAGE, 0, false, 0, 100);
	add_read(8 * PAGE, 1, false, 0, 100)->view[1].write = 100;
	add_read(BLOCK - 16 * PAGE, 0, false, 0, 0);
	add_read(4 * BLOCK, 1, true, 50, 0);
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 2);
	/* What pays back soonest is first: 8 touched pages do, after 0.06 s. */
	ck_assert_uint_eq(plan.action[0].offset, 0);
	ck_assert_uint_eq(plan.action[0].len_bytes, 8 * PAGE);
	ck_assert_int_eq(plan.action[0].from, 0);
	ck_assert_int_eq(plan.action[0].to, 1);
	ck_assert(!plan.action[0].huge && plan.action[0].view == -1);
	/* 8 pages, 100 touches, 8 accesses, 110 ns. */
	ck_assert_double_eq_tol(plan.action[0].gain_ns_per_s, 8 * 100 * 8 * 110.0, 1);
	ck_assert_double_eq_tol(plan.action[0].cost_ns, 8 * 5000.0, 1);
	ck_assert_uint_eq(plan.action[1].len_bytes, 4 * BLOCK);
	ck_assert_int_eq(plan.action[1].to, 0);
	ck_assert(plan.action[1].huge && !plan.action[1].split);
	ck_assert_double_eq_tol(plan.action[1].gain_ns_per_s, 4 * 50 * 181 * 110.0, 1);
	ck_assert_uint_eq(plan.bytes, 8 * PAGE + 4 * BLOCK);
	expect(0, MB_WHY_MIGRATE);
	expect(1, MB_WHY_LOCAL);
	expect(2, MB_WHY_COLD);
	expect(3, MB_WHY_MIGRATE);
	ck_assert_int_eq(verdict_of(3)->target, 0);
	ck_assert_int_eq(verdict_of(1)->target, -1);
}
END_TEST

START_TEST(test_shared)
{
	struct mb_extent *e;

	add_read(16 * PAGE, 0, false, 100, 100);
	e = add_read(16 * PAGE, 0, false, 100, 100);
	e->view[1].write = 5;
	/* One write in 200 touches is as good as none. */
	e = add_read(16 * PAGE, 0, false, 200, 200);
	e->view[1].write = 2;
	make_plan();
	expect(0, MB_WHY_READ_SHARED);
	expect(1, MB_WHY_WRITE_SHARED);
	expect(2, MB_WHY_READ_SHARED);
	ck_assert_uint_eq(plan.n_actions, 0);

	config.replicas = true;
	make_plan();
	expect(0, MB_WHY_REPLICATE);
	expect(1, MB_WHY_WRITE_SHARED);
	ck_assert_uint_eq(plan.n_actions, 2);
	ck_assert_int_eq(plan.action[0].kind, MB_ACTION_REPLICATE);
	ck_assert_int_eq(plan.action[0].view, 1);
	ck_assert_int_eq(plan.action[0].from, 0);
	ck_assert_int_eq(plan.action[0].to, 1);
	/* Once is enough. */
	now += SECOND;
	make_plan();
	expect(0, MB_WHY_BACKING_OFF);
	ck_assert_uint_eq(plan.n_actions, 0);
}
END_TEST

/* Shared by two, and at home with a third: nearer to both is better. */
START_TEST(test_shared_elsewhere)
{
	struct mb_extent *e;

	make_host(3, 3);
	for (unsigned i = 0; i < 2; i++) {
		e = add(16 * PAGE, 2, false);
		e->view[0].write = e->view[1].write = 60;
		e->view[1].read = 20;
	}
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	ck_assert_int_eq(verdict_of(0)->target, 1);
	/* Of what is nearly the same, nothing is gained: 55 % against 45 %. */
	extent[0].node = extent[1].node = 0;
	now += 1000 * SECOND;
	make_plan();
	expect(0, MB_WHY_WRITE_SHARED);
}
END_TEST

START_TEST(test_spread)
{
	make_host(4, 4);
	for (unsigned i = 0; i < 16; i++) {
		struct mb_extent *e = add(4 * BLOCK, 0, true);

		for (unsigned v = 0; v < 4; v++)
			e->view[v].write = 100;
	}
	host.node[0].busy = 0.6;
	host.node[3].busy = 0.1;
	make_plan();
	expect(0, MB_WHY_WRITE_SHARED);
	host.node[0].busy = 0.9;
	host.node[1].busy = 0.7;
	host.node[2].busy = 0.8;
	make_plan();
	expect(0, MB_WHY_SPREAD);
	ck_assert_int_eq(plan.action[0].to, 3);
	ck_assert_int_eq(plan.action[0].kind, MB_ACTION_MIGRATE);
	/* Half of the difference: (0.9 - 0.1) / 2 of 0.9, to the next 2 MiB. */
	ck_assert_uint_ge(plan.bytes, 64 * BLOCK * 40 / 90);
	ck_assert_uint_le(plan.bytes, 64 * BLOCK * 40 / 90 + BLOCK);
	expect(15, MB_WHY_WRITE_SHARED);
	config.busy_gap = 0.85;
	now += SECOND;
	make_plan();
	expect(15, MB_WHY_WRITE_SHARED);
}
END_TEST

/* ---- parameters ---- */

START_TEST(test_threshold)
{
	add_read(PAGE, 0, false, 0, 0.09f);
	add_read(PAGE, 0, false, 0, 2)->confidence = 0.5f;
	add_read(PAGE, 0, false, 0, 2)->confidence = 0.51f;
	make_plan();
	expect(0, MB_WHY_COLD);
	expect(1, MB_WHY_UNSURE);
	expect(2, MB_WHY_MIGRATE);
	config.cold_per_s = 0.05;
	config.min_confidence = 0.4;
	config.payback_ns = 100 * SECOND;
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	expect(1, MB_WHY_MIGRATE);
}
END_TEST

START_TEST(test_single_share)
{
	/* 82 % is a user; 78 % are a majority, of which the move is worth it, for 34 % of the time.
	 */
	add_read(PAGE, 0, false, 18, 82);
	add_read(PAGE, 0, false, 22, 78)->view[0].write = 5;
	add_read(PAGE, 0, false, 45, 55)->view[0].write = 5;
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	expect(1, MB_WHY_MIGRATE);
	expect(2, MB_WHY_WRITE_SHARED);
	now += 1000 * SECOND;
	config.min_gain_shared = 0.4;
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	expect(1, MB_WHY_WRITE_SHARED);
	now += 1000 * SECOND;
	config.single_share = 0.7;
	make_plan();
	expect(1, MB_WHY_MIGRATE);
	now += 1000 * SECOND;
	config.single_share = 0.9;
	make_plan();
	expect(0, MB_WHY_READ_SHARED);
	/* Who reads a twentieth is no reader. */
	config.user_share = 0.3;
	make_plan();
	expect(0, MB_WHY_MIGRATE);
}
END_TEST

START_TEST(test_max_write_share)
{
	add_read(PAGE, 0, false, 100, 100)->view[0].write = 5;
	make_plan();
	expect(0, MB_WHY_WRITE_SHARED);
	config.max_write_share = 0.1;
	make_plan();
	expect(0, MB_WHY_READ_SHARED);
}
END_TEST

START_TEST(test_min_gain)
{
	host.node[0].distance[1] = host.node[1].distance[0] = 11;
	add_read(PAGE, 0, false, 0, 100);
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	now += 1000 * SECOND;
	config.min_gain = 0.1;
	make_plan();
	expect(0, MB_WHY_NO_GAIN);
}
END_TEST

/* cost: 5 us a page, 300 us for 2 MiB. gain: touches * accesses * 110 ns */
START_TEST(test_payback)
{
	add_read(PAGE, 0, false, 0, 0.25f);
	add_read(PAGE, 0, false, 0, 0.3f);
	add(BLOCK - 2 * PAGE, 0, false);
	add_read(BLOCK, 0, true, 0, 0.7f);
	add_read(BLOCK, 0, true, 0, 0.8f);
	make_plan();
	expect(0, MB_WHY_NO_PAYBACK);
	expect(1, MB_WHY_MIGRATE);
	expect(3, MB_WHY_NO_PAYBACK);
	expect(4, MB_WHY_MIGRATE);
	ck_assert_double_eq_tol(verdict_of(0)->payback_ns / 1e9, 5000 / (0.25 * 8 * 110), 0.01);
	/* Each of what it is made of. */
	for (unsigned i = 0; i < 7; i++) {
		struct mb_policy_config other = config;

		now += 1000 * SECOND;
		if (i == 0)
			config.move_page_ns = 4000, config.move_block_ns = 250000;
		else if (i == 1)
			config.page_touch_accesses = 10, config.block_touch_accesses = 220;
		else if (i == 2)
			config.local_ns = 140;
		else if (i == 3)
			config.payback_ns = 24 * SECOND;
		else if (i == 4)
			host.node[1].distance[0] = 30;
		else
			config.move_page_ns = config.move_block_ns = 0;
		make_plan();
		expect(0, MB_WHY_MIGRATE);
		expect(3, MB_WHY_MIGRATE);
		config = other;
		host.node[1].distance[0] = 21;
	}
}
END_TEST

START_TEST(test_budget)
{
	uint64_t done = 0;

	add_read(64 * GIB, 0, true, 0, 100);
	host.node[1].free_bytes = 60 * GIB;
	config.node_bytes_per_s = 1ull << 40;
	config.bytes_per_s = 1 * GIB;
	/* A bucket that is full at first, and then a second's worth each. */
	for (unsigned i = 0; i < 5; i++) {
		make_plan();
		done += plan.bytes;
		ck_assert_uint_eq(plan.bytes, 1 * GIB);
		ck_assert_uint_eq(plan.verdict[plan.n_verdicts - 1].why, MB_WHY_BUDGET);
		now += SECOND;
	}
	ck_assert_uint_eq(done, 5 * GIB);
	/* What was not spent is there for burst_ns only. */
	now += 100 * SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 1 * GIB);
	make_plan();
	ck_assert_uint_eq(plan.bytes, 0);
	now += SECOND / 4;
	make_plan();
	ck_assert_uint_eq(plan.bytes, GIB / 4);
	config.burst_ns = 3 * SECOND;
	now += 100 * SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 3 * GIB);
	/* A clock that goes back and forth gives nothing twice. */
	now -= 50 * SECOND;
	make_plan();
	now += 50 * SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 0);
	/* Less than a huge page a second is still one now and then. */
	config.bytes_per_s = MIB;
	now += 2 * SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, BLOCK);
	config.bytes_per_s = 0;
	now += 100 * SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 0);
}
END_TEST

START_TEST(test_node_budget)
{
	make_host(3, 3);
	config.node_bytes_per_s = 64 * MIB;
	add_read(1 * GIB, 0, true, 0, 100);
	add(1 * GIB, 0, true)->view[2].read = 90;
	add_read(1 * GIB, 2, true, 100, 0);
	make_plan();
	/* What leaves node 0 and what comes to it share a budget. */
	ck_assert_uint_eq(plan.bytes, 64 * MIB);
	for (unsigned i = 0; i < 3; i++)
		ck_assert_uint_eq(plan.verdict[plan.n_verdicts - 1 - i].why, MB_WHY_NODE_BUDGET);
	now += SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 64 * MIB);
}
END_TEST

START_TEST(test_watermarks)
{
	add_read(16 * GIB, 0, true, 0, 100);
	config.bytes_per_s = config.node_bytes_per_s = 1ull << 40;
	/* 4 % of 64 GiB stay free. */
	host.node[1].free_bytes = 4 * GIB;
	make_plan();
	ck_assert_uint_le(plan.bytes, 4 * GIB - 64 * GIB / 25);
	ck_assert_uint_ge(plan.bytes, 4 * GIB - 64 * GIB / 25 - BLOCK);
	expect(0, MB_WHY_MIGRATE);
	ck_assert_uint_eq(plan.verdict[1].why, MB_WHY_NO_ROOM);
	/* Short: until there is more than 6 %. */
	now += SECOND;
	host.node[1].free_bytes = 2 * GIB;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 0);
	ck_assert_uint_eq(plan.verdict[plan.n_verdicts - 1].why, MB_WHY_NO_ROOM);
	now += SECOND;
	host.node[1].free_bytes = 7 * GIB / 2;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 0);
	now += SECOND;
	host.node[1].free_bytes = 4 * GIB;
	make_plan();
	ck_assert_uint_gt(plan.bytes, 0);
	/* The larger one of share and bytes. */
	config.low_free_bytes = 5 * GIB;
	now += SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 0);
	/* More free than there is: nonsense, but no harm. */
	host.node[1].free_bytes = UINT64_MAX;
	now += SECOND;
	make_plan();
	ck_assert_uint_gt(plan.bytes, 0);
}
END_TEST

/* No room on the best node: the next best one, if it is better than here; one without CPUs last. */
START_TEST(test_overflow)
{
	make_host(4, 4);
	host.node[3].has_cpus = false;
	memset(&view[3], 0, sizeof(view[3]));
	for (unsigned i = 0; i < 4; i++)
		host.node[i].distance[0] = 40;
	host.node[0].distance[0] = 10;
	for (unsigned i = 1; i < 4; i++)
		host.node[0].distance[i] = 40;
	host.node[1].distance[2] = host.node[2].distance[1] = 15;
	host.node[1].distance[3] = host.node[3].distance[1] = 12;
	add_read(256 * MIB, 0, true, 0, 100);
	make_plan();
	ck_assert_int_eq(verdict_of(0)->target, 1);
	ck_assert_uint_eq(plan.n_actions, 1);
	now += 1000 * SECOND;
	host.node[1].free_bytes = GIB;
	make_plan();
	ck_assert_int_eq(verdict_of(0)->target, 2);
	now += 1000 * SECOND;
	host.node[2].free_bytes = GIB;
	make_plan();
	ck_assert_int_eq(verdict_of(0)->target, 3);
	now += 1000 * SECOND;
	host.node[3].free_bytes = GIB;
	make_plan();
	expect(0, MB_WHY_NO_ROOM);
	/* Three targets for one extent. */
	for (unsigned i = 1; i < 4; i++)
		host.node[i].free_bytes = 64 * GIB / 25 + 50 * MIB;
	config.high_free_share = 0.04;
	now += 1000 * SECOND;
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 3);
	ck_assert_int_eq(plan.action[0].to, 1);
	ck_assert_int_eq(plan.action[1].to, 2);
	ck_assert_int_eq(plan.action[2].to, 3);
	ck_assert_uint_eq(plan.action[2].offset, plan.action[0].len_bytes * 2);
}
END_TEST

START_TEST(test_forbidden)
{
	host.node[1].usable = false;
	add_read(PAGE, 0, false, 0, 100);
	make_plan();
	expect(0, MB_WHY_FORBIDDEN);
	/* It has no memory: nothing to be said against it, this is as near as it gets. */
	host.node[1].total_bytes = 0;
	make_plan();
	expect(0, MB_WHY_LOCAL);
	ck_assert_uint_eq(plan.n_actions, 0);
}
END_TEST

START_TEST(test_memoryless_and_cpuless)
{
	/* 0: CPUs only; 1 and 3: both; 2: memory only, nearest to 0. */
	make_host(4, 4);
	host.node[0].usable = false;
	host.node[0].total_bytes = host.node[0].free_bytes = 0;
	host.node[2].has_cpus = false;
	memset(&view[2], 0, sizeof(view[2]));
	for (unsigned i = 0; i < 4; i++)
		host.node[0].distance[i] = (uint16_t[]){10, 20, 15, 40}[i];
	add_read(PAGE, 3, false, 100, 0);
	add_read(PAGE, 2, false, 0, 100);
	make_plan();
	ck_assert_int_eq(verdict_of(0)->target, 1);
	/* What overflowed comes back. */
	ck_assert_int_eq(verdict_of(1)->target, 1);
}
END_TEST

START_TEST(test_backoff)
{
	uint64_t last = 0, waited = 0;
	unsigned moves = 0;

	add_read(PAGE, 0, false, 0, 100);
	/* The page's user is always where the page is not. */
	for (uint64_t t = 0; t < 4000; t++) {
		now = (100 + t) * SECOND;
		make_plan();
		if (!plan.n_actions) {
			expect(0, MB_WHY_BACKING_OFF);
			ck_assert_uint_gt(verdict_of(0)->next_ns, now);
			ck_assert_uint_eq(verdict_of(0)->moves, moves);
			continue;
		}
		if (moves > 1)
			ck_assert_uint_eq(now - last, 2 * waited);
		else if (moves == 1)
			ck_assert_uint_eq(now - last, 5 * SECOND);
		waited = now - last;
		last = now;
		moves++;
		extent[0].node = plan.action[0].to;
		extent[0].view[extent[0].node].read = 0;
		extent[0].view[!extent[0].node].read = 100;
	}
	ck_assert_uint_eq(moves, 10);
	ck_assert_uint_eq(mb_policy_n_records(policy), 1);
}
END_TEST

START_TEST(test_backoff_limits)
{
	unsigned moves = 0;

	config.backoff_ns = SECOND;
	config.backoff_max_ns = 4 * SECOND;
	config.max_moves = 5;
	config.forgive = 10;
	add_read(PAGE, 0, false, 0, 100);
	/* 0, 1, 3, 7, 11 s: then it has moved as often as it may, until 40 s have gone by. */
	for (uint64_t t = 0; t < 56; t++) {
		now = (100 + t) * SECOND;
		make_plan();
		if (!plan.n_actions)
			continue;
		ck_assert_uint_eq(t, ((uint64_t[]){0, 1, 3, 7, 11, 51, 91})[moves]);
		moves++;
		extent[0].node = plan.action[0].to;
		extent[0].view[extent[0].node].read = 0;
		extent[0].view[!extent[0].node].read = 100;
	}
	ck_assert_uint_eq(moves, 6);
	/* All is forgiven in the end, and forgotten when something else moves. */
	now += 1000 * SECOND;
	extent[0].view[0].read = extent[0].view[1].read = 0;
	add_read(PAGE, 0, false, 0, 100);
	make_plan();
	ck_assert_uint_eq(verdict_of(0)->moves, 0);
	ck_assert_uint_eq(mb_policy_n_records(policy), 1);
}
END_TEST

/*
 * A user that changes every period: the page settles. Where the period is longer than four waits of
 * the first move, each of them has paid for itself by far, and the page follows.
 */
START_TEST(test_no_ping_pong)
{
	uint64_t period = (uint64_t[]){1, 2, 7, 13, 19, 30, 100}[_i];
	unsigned moves = 0, late = 0;

	add_read(BLOCK, 0, true, 0, 0);
	for (uint64_t t = 0; t < 3600; t++) {
		unsigned user = t / period % 2;

		now = (100 + t) * SECOND;
		extent[0].view[user].read = 300;
		extent[0].view[!user].read = 0;
		make_plan();
		if (plan.n_actions) {
			moves++;
			late += t >= 1800;
			extent[0].node = plan.action[0].to;
		}
	}
	if (period > 20) {
		ck_assert_uint_le(moves, 3600 / period);
		return;
	}
	/* 5 s * 2^10 is more than an hour. */
	ck_assert_msg(moves >= 1 && moves <= 11 && late <= 1,
		"period %lu: %u moves, %u of them late", period, moves, late);
}
END_TEST

/* ---- huge pages, and the history's grain ---- */

/* 64 pages are view 1's, and 448 are view 0's or nobody's. */
static void add_block(float read0, float read1)
{
	add_read(64 * PAGE, 0, true, 0, read1);
	add_read(448 * PAGE, 0, true, read0, 0);
}

START_TEST(test_huge_whole)
{
	add_block(0, 100);
	add_read(BLOCK, 0, true, 0, 100);
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 2);
	ck_assert_uint_eq(plan.action[0].len_bytes, BLOCK);
	ck_assert_uint_eq(plan.action[0].offset, 0);
	ck_assert(plan.action[0].huge && !plan.action[0].split);
	/* Both of its parts are told that it moves. */
	expect(0, MB_WHY_MIGRATE);
	expect(1, MB_WHY_MIGRATE);
	ck_assert_uint_eq(plan.verdict[1].len_bytes, 448 * PAGE);
}
END_TEST

START_TEST(test_huge_split)
{
	add_block(100, 300);
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 1);
	ck_assert_uint_eq(plan.action[0].len_bytes, 64 * PAGE);
	ck_assert(plan.action[0].split && !plan.action[0].huge);
	ck_assert_double_eq_tol(plan.action[0].cost_ns, 64 * 5000 + 50000, 1);
	expect(1, MB_WHY_LOCAL);
	/* All parts used by both: one page, and left whole. */
	n_extents = 0;
	now += 1000 * SECOND;
	add_read(64 * PAGE, 0, true, 100, 100)->view[0].write = 9;
	add_read(448 * PAGE, 0, true, 80, 80)->view[0].write = 9;
	make_plan();
	expect(0, MB_WHY_WRITE_SHARED);
	/* A block with a hole in it is no huge page: what moves is what is known. */
	n_extents = 0;
	add_read(64 * PAGE, 0, true, 0, 100);
	make_plan();
	ck_assert_uint_eq(plan.action[0].len_bytes, 64 * PAGE);
	ck_assert(!plan.action[0].split);
}
END_TEST

/* A budget that is no multiple of 2 MiB, and extents that begin anywhere. */
START_TEST(test_huge_granule)
{
	uint64_t done = 0;

	config.bytes_per_s = 7 * MIB;
	add_read(100 * PAGE, 0, false, 0, 0);
	add_read(20 * BLOCK, 0, true, 0, 100);
	for (unsigned i = 0; i < 4; i++) {
		make_plan();
		ck_assert_uint_ge(plan.n_actions, 1);
		ck_assert_uint_le(plan.bytes, 7 * MIB);
		for (unsigned k = 0; k < plan.n_actions; k++)
			if (plan.action[k].huge)
				ck_assert_uint_eq(
					(plan.action[k].offset | plan.action[k].len_bytes) % BLOCK,
					0);
		done += plan.bytes;
		now += SECOND;
	}
	/* What has moved waits, what has not goes on; what surrounds whole huge pages is small. */
	ck_assert_uint_eq(verdict_of(1)->offset, 100 * PAGE);
	ck_assert_uint_gt(done, 20 * MIB);
}
END_TEST

/* An extent on two nodes: the history says where its parts are. */
START_TEST(test_partly_moved)
{
	config.bytes_per_s = 8 * MIB;
	add_read(64 * MIB, 0, true, 0, 100);
	for (unsigned i = 0; i < 8; i++) {
		make_plan();
		ck_assert_uint_eq(plan.n_actions, 1);
		ck_assert_uint_eq(plan.action[0].offset, i * 8 * MIB);
		ck_assert_int_eq(plan.action[0].from, i < 4 ? 0 : -1);
		extent[0].node_share = (float)fabs(0.5 - (i + 1) / 8.0) + 0.5f;
		extent[0].node = i >= 3;
		now += SECOND;
	}
	extent[0].node_share = 1;
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 0);
	expect(0, MB_WHY_LOCAL);
}
END_TEST

START_TEST(test_history_is_bounded)
{
	unsigned most = 0;

	config.max_records = 64;
	config.backoff_ns = 1000 * SECOND;
	for (unsigned round = 0; round < 40; round++) {
		n_extents = 0;
		for (unsigned i = 0; i < 200; i++) {
			add_read(PAGE, 0, false, 0, 100)->offset =
				(round * 200ull + i) * 16 * BLOCK;
		}
		now += SECOND;
		make_plan();
		/* Everything is new, so all of it moves, but for what shares a record with the old.
		 */
		ck_assert_uint_ge(plan.n_actions, 1);
		if (mb_policy_n_records(policy) > most)
			most = mb_policy_n_records(policy);
	}
	ck_assert_uint_le(most, 64);
	/* What moved still waits. */
	extent[0].offset = 0;
	n_extents = 1;
	make_plan();
	expect(0, MB_WHY_BACKING_OFF);

	/* One record for what moved as one. */
	config.max_records = 16384;
	config.bytes_per_s = config.node_bytes_per_s = 1ull << 40;
	teardown();
	ck_assert_int_eq(mb_policy_create(&policy), 0);
	n_extents = 0;
	add_read(16 * GIB, 0, true, 0, 100);
	make_plan();
	ck_assert_uint_eq(mb_policy_n_records(policy), 1);
	ck_assert_uint_eq(plan.bytes, 16 * GIB);
}
END_TEST

START_TEST(test_plan_full)
{
	config.max_actions = 3;
	for (unsigned i = 0; i < 5; i++) {
		add_read(PAGE, 0, false, 0, (float)(100 + i));
		add(PAGE, 0, false);
	}
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 3);
	expect(8, MB_WHY_MIGRATE);
	expect(4, MB_WHY_MIGRATE);
	expect(2, MB_WHY_PLAN_FULL);
}
END_TEST

/* ---- views and nodes ---- */

/* A view of two nodes: which of them uses a page is not known; that it is one of both is. */
START_TEST(test_wide_views)
{
	make_host(4, 2);
	for (unsigned i = 0; i < 2; i++)
		for (unsigned k = 0; k < 2; k++) {
			host.node[i].distance[k] = i == k ? 10 : 12;
			host.node[2 + i].distance[2 + k] = i == k ? 10 : 12;
		}
	add_read(PAGE, 0, false, 0, 100);
	add_read(PAGE, 2, false, 0, 100);
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	ck_assert_int_ge(verdict_of(0)->target, 2);
	expect(1, MB_WHY_LOCAL);
	/* The emptier one of both. */
	host.node[3].free_bytes += GIB;
	now += 1000 * SECOND;
	make_plan();
	ck_assert_int_eq(verdict_of(0)->target, 3);
	/* Nine of ten vCPUs on one of them. */
	view[1].weight[2] = 18;
	now += 1000 * SECOND;
	make_plan();
	ck_assert_int_eq(verdict_of(0)->target, 2);
	/* A view without vCPUs touches nothing from anywhere. */
	memset(&view[1], 0, sizeof(view[1]));
	make_plan();
	expect(0, MB_WHY_COLD);
}
END_TEST

START_TEST(test_one_node)
{
	make_host(1, 1);
	host.node[0].total_bytes = host.node[0].free_bytes = 0;
	add_read(PAGE, 0, false, 100, 0);
	make_plan();
	expect(0, MB_WHY_LOCAL);
	host.n_nodes = 0;
	make_plan();
	expect(0, MB_WHY_NO_NODE);
}
END_TEST

START_TEST(test_64_nodes_8_views)
{
	make_host(64, 8);
	for (unsigned i = 0; i < 64; i++)
		host.node[i].id = (int)(3 * i + 1);
	for (unsigned v = 0; v < 8; v++)
		add(BLOCK, 1, true)->view[v].read = 100;
	/* One node of eight that is nearer is 6.5 %. */
	config.min_gain = 0.1;
	make_plan();
	expect(0, MB_WHY_LOCAL);
	for (unsigned v = 1; v < 8; v++) {
		expect(v, MB_WHY_NO_GAIN);
		ck_assert_uint_eq(verdict_of(v)->len_bytes, BLOCK);
	}
	/* A near group of them is more. */
	for (unsigned i = 0; i < 64; i++)
		for (unsigned k = 0; k < 64; k++)
			if (i != k && i / 8 == k / 8)
				host.node[i].distance[k] = 11;
	make_plan();
	for (unsigned v = 1; v < 8; v++) {
		expect(v, MB_WHY_MIGRATE);
		ck_assert_int_eq((verdict_of(v)->target - 1) / 3 / 8, (int)v);
	}
	host.n_nodes = 65;
	ck_assert_int_eq(
		mb_policy_plan(policy, &(struct mb_policy_input){.config = &config, .host = &host},
			&(struct mb_plan){0}),
		-22);
}
END_TEST

START_TEST(test_distances)
{
	/* Unknown counts as 20, unreachable is never a target, and left where it can be. */
	host.node[1].distance[0] = host.node[0].distance[1] = 0;
	add_read(PAGE, 0, false, 0, 100);
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	ck_assert_double_eq_tol(plan.action[0].gain_ns_per_s, 100 * 8 * 100.0, 1);
	make_host(3, 3);
	now += 1000 * SECOND;
	host.node[1].distance[0] = 255;
	host.node[1].distance[1] = 255; /* local all the same */
	make_plan();
	ck_assert_int_eq(verdict_of(0)->target, 1);
	host.node[1].usable = false;
	host.node[1].distance[2] = 255;
	now += 1000 * SECOND;
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 0);
}
END_TEST

/* ---- odd input ---- */

START_TEST(test_odd_extents)
{
	add_read(0, 0, false, 0, 100);
	add_read(PAGE, 0, false, 0, 100)->offset = 100;
	add_read(PAGE, 0, false, 0, 100)->offset = UINT64_MAX - PAGE + 1;
	add_read(UINT64_MAX - PAGE + 1, 0, false, 0, 100)->offset = 64 * BLOCK;
	add_read(PAGE, 0, false, NAN, 100)->offset = 5 * PAGE;
	add_read(PAGE, 0, false, 0, INFINITY)->offset = 4 * PAGE;
	add_read(PAGE, 0, false, -INFINITY, -1)->offset = 3 * PAGE;
	add_read(PAGE, 0, false, 0, 100)->offset = 5 * PAGE;
	add_read(4 * PAGE, 0, false, 0, 100)->offset = 5 * PAGE;
	add_read(PAGE, 0, false, 0, 100)->offset = 20 * PAGE;
	extent[9].confidence = NAN;
	add_read(PAGE, -1, false, 0, 100)->offset = 21 * PAGE;
	add_read(PAGE, 77, false, 0, 100)->offset = 22 * PAGE;
	add_read(PAGE, 0, false, 0, 100)->offset = 23 * PAGE;
	extent[12].node_share = NAN;
	make_plan();
	for (unsigned i = 0; i < 4; i++)
		expect(i, MB_WHY_ODD);
	expect(4, MB_WHY_MIGRATE);
	expect(5, MB_WHY_MIGRATE);
	expect(6, MB_WHY_COLD);
	expect(7, MB_WHY_ODD);
	/* The first page of it was told before. */
	expect(8, MB_WHY_ODD);
	ck_assert_uint_eq(verdict_of(8)->len_bytes, PAGE);
	ck_assert_uint_eq(verdict_of(8)[1].why, MB_WHY_MIGRATE);
	ck_assert_uint_eq(verdict_of(8)[1].len_bytes, 3 * PAGE);
	expect(9, MB_WHY_UNSURE);
	expect(10, MB_WHY_NO_NODE);
	expect(11, MB_WHY_NO_NODE);
	expect(12, MB_WHY_MIGRATE);
	for (unsigned i = 0; i < plan.n_actions; i++)
		ck_assert(isfinite(plan.action[i].gain_ns_per_s));
}
END_TEST

/* ---- random input ---- */

static uint32_t seed;

static uint32_t random_below(uint32_t n)
{
	seed = seed * 1664525 + 1013904223;
	return (uint32_t)((uint64_t)(seed >> 8) * n >> 24);
}

static float random_rate(void)
{
	switch (random_below(12)) {
	case 0:
		return NAN;
	case 1:
		return INFINITY;
	case 2:
		return -5;
	case 3:
	case 4:
		return 0;
	default:
		return powf(2, (float)random_below(20) - 8);
	}
}

static void make_random_host(void)
{
	make_host(1 + random_below(10), 1 + random_below(8));
	for (unsigned i = 0; i < host.n_nodes; i++) {
		struct mb_policy_node *node = &host.node[i];

		node->id = (int)(2 * i + random_below(2));
		node->usable = random_below(5) > 0;
		node->has_cpus = random_below(6) > 0;
		node->total_bytes = random_below(64) * GIB;
		node->free_bytes = random_below(32) * 128 * MIB;
		node->busy = random_below(12) / 10.0;
		for (unsigned k = 0; k < host.n_nodes; k++)
			node->distance[k] =
				(uint16_t[]){0, 10, 11, 16, 21, 32, 255}[random_below(7)];
	}
	for (unsigned v = 0; v < n_views; v++)
		for (unsigned i = 0; i < host.n_nodes; i++)
			view[v].weight[i] = random_below(3) ? 0 : random_rate();
}

static void make_random_extents(void)
{
	uint64_t at = 0;

	n_extents = random_below(300);
	for (unsigned i = 0; i < n_extents; i++) {
		struct mb_extent *e = &extent[i];

		memset(e, 0, sizeof(*e));
		e->huge = random_below(2);
		e->len_bytes = e->huge && random_below(3) ? BLOCK * (1 + random_below(1000))
							  : PAGE * random_below(1000);
		if (e->huge && random_below(2))
			at = (at + BLOCK - 1) / BLOCK * BLOCK;
		e->offset = random_below(20) ? at : random_below(100) * 100000ull * PAGE;
		at = e->offset + e->len_bytes;
		e->node = (int)random_below(24) - 2;
		e->node_share = random_below(4) ? 1 : (float)random_below(5) / 4;
		e->confidence = random_below(4) ? 0.8f : random_rate();
		for (unsigned v = 0; v < n_views; v++)
			if (!random_below(2))
				e->view[v] = (struct mb_heat){random_rate(), random_rate()};
	}
}

/* Bytes of each node since the beginning, for the budgets. */
struct spent {
	uint64_t all, node[MB_MAX_NODES], began_ns;
};

static unsigned index_of(int id)
{
	for (unsigned i = 0; i < host.n_nodes; i++)
		if (host.node[i].id == id)
			return i;
	ck_abort_msg("seed %u: node %d is none", seed, id);
}

static void check_action(const struct mb_action *a, struct spent *spent, uint64_t *come)
{
	unsigned to = index_of(a->to);

	ck_assert_uint_gt(a->len_bytes, 0);
	ck_assert_uint_eq((a->offset | a->len_bytes) % (a->huge ? BLOCK : PAGE), 0);
	ck_assert(a->from != a->to);
	ck_assert(host.node[to].usable);
	ck_assert(isfinite(a->gain_ns_per_s) && a->gain_ns_per_s > 0 && a->cost_ns >= 0);
	come[to] += a->len_bytes;
	spent->all += a->len_bytes;
	spent->node[to] += a->len_bytes;
	if (a->from >= 0 && a->kind == MB_ACTION_MIGRATE)
		spent->node[index_of(a->from)] += a->len_bytes;
}

static bool overlap(const struct mb_action *a, const struct mb_action *b)
{
	return a->offset < b->offset + b->len_bytes && b->offset < a->offset + a->len_bytes;
}

static void check_plan(struct spent *spent)
{
	uint64_t come[MB_MAX_NODES] = {0};
	double s = (double)(now - spent->began_ns) / 1e9 + 1;
	bool told[4096] = {false};

	for (unsigned i = 0; i < plan.n_actions; i++) {
		check_action(&plan.action[i], spent, come);
		for (unsigned k = 0; k < i; k++)
			ck_assert(!overlap(&plan.action[i], &plan.action[k]) ||
				  plan.action[i].view != plan.action[k].view);
	}
	ck_assert((double)spent->all <= s * (double)config.bytes_per_s + 1);
	for (unsigned i = 0; i < host.n_nodes; i++) {
		const struct mb_policy_node *node = &host.node[i];
		double low = fmax((double)config.low_free_bytes,
			config.low_free_share * (double)node->total_bytes);

		ck_assert((double)spent->node[i] <= s * (double)config.node_bytes_per_s + 1);
		ck_assert(!come[i] || (double)node->free_bytes - (double)come[i] >= low - 1);
	}
	for (unsigned i = 0; i < plan.n_verdicts; i++) {
		const struct mb_verdict *v = &plan.verdict[i];

		ck_assert_uint_lt(v->extent, n_extents);
		ck_assert_uint_lt(v->why, MB_WHY_COUNT);
		ck_assert_uint_ge(v->offset, extent[v->extent].offset);
		ck_assert_uint_le(v->len_bytes, extent[v->extent].len_bytes);
		ck_assert(!(v->why == MB_WHY_BACKING_OFF) || v->next_ns > now);
		told[v->extent] = true;
	}
	for (unsigned i = 0; i < n_extents; i++)
		ck_assert(told[i]);
	ck_assert_uint_le(mb_policy_n_records(policy), config.max_records);
}

/* Field by field: what is between them may be anything. */
static void check_same(const struct mb_plan *other)
{
	for (unsigned i = 0; i < plan.n_actions; i++) {
		const struct mb_action *a = &plan.action[i], *b = &other->action[i];

		ck_assert(a->kind == b->kind && a->why == b->why && a->huge == b->huge &&
			  a->split == b->split && a->view == b->view);
		ck_assert(a->offset == b->offset && a->len_bytes == b->len_bytes &&
			  a->from == b->from && a->to == b->to);
		ck_assert(!memcmp(&a->gain_ns_per_s, &b->gain_ns_per_s, sizeof(double)) &&
			  !memcmp(&a->cost_ns, &b->cost_ns, sizeof(double)));
	}
	for (unsigned i = 0; i < plan.n_verdicts; i++) {
		const struct mb_verdict *a = &plan.verdict[i], *b = &other->verdict[i];

		ck_assert(a->offset == b->offset && a->len_bytes == b->len_bytes &&
			  a->extent == b->extent && a->why == b->why && a->node == b->node &&
			  a->target == b->target && a->moves == b->moves &&
			  a->next_ns == b->next_ns);
	}
}

START_TEST(test_random)
{
	const char *given = getenv("MB_SEED");
	uint32_t first = given ? (uint32_t)strtoul(given, NULL, 0) : 20261126u + (uint32_t)_i;
	struct mb_policy *other;

	printf("policy: random input, seed %u (MB_SEED)\n", first);
	seed = first;
	for (unsigned round = 0; round < 25; round++) {
		struct spent spent = {.began_ns = now};

		make_random_host();
		mb_policy_defaults(&config);
		config.replicas = random_below(2);
		config.bytes_per_s = (1 + random_below(100)) * 64 * MIB;
		config.node_bytes_per_s = (1 + random_below(100)) * 32 * MIB;
		config.max_records = 16 + random_below(2000);
		mb_policy_destroy(policy);
		ck_assert_int_eq(mb_policy_create(&policy), 0);
		ck_assert_int_eq(mb_policy_create(&other), 0);
		for (unsigned k = 0; k < 12; k++) {
			struct mb_plan again;
			struct mb_policy_input in = {.config = &config,
				.host = &host,
				.n_views = n_views,
				.view = view,
				.extent = extent};

			if (k % 4 == 0)
				make_random_extents();
			now += random_below(4) * SECOND;
			in.now_ns = now;
			in.n_extents = n_extents;
			make_plan();
			check_plan(&spent);
			/* The same input, the same plan. */
			ck_assert_int_eq(mb_policy_plan(other, &in, &again), 0);
			ck_assert_uint_eq(again.n_actions, plan.n_actions);
			ck_assert_uint_eq(again.n_verdicts, plan.n_verdicts);
			check_same(&again);
			mb_plan_finish(&again);
		}
		mb_policy_destroy(other);
	}
}
END_TEST

/* Memory does not cost anything, extents do. */
START_TEST(test_size_does_not_matter)
{
	for (unsigned i = 0; i < 512; i++)
		add_read(512 * GIB, (int)(i % 2), true, 0, (float)(i % 7));
	host.node[0].total_bytes = host.node[1].total_bytes = 1ull << 50;
	host.node[0].free_bytes = host.node[1].free_bytes = 1ull << 50;
	for (unsigned i = 0; i < 100; i++) {
		now += SECOND;
		make_plan();
		ck_assert_uint_le(plan.n_verdicts, 2048);
	}
	ck_assert_uint_le(mb_policy_n_records(policy), 512);
}
END_TEST

START_TEST(test_names)
{
	struct mb_topology topo = {.n_nodes = 2};

	for (unsigned why = 0; why < MB_WHY_COUNT; why++)
		ck_assert_str_ne(mb_why_name((enum mb_why)why), "?");
	ck_assert_str_eq(mb_why_name(MB_WHY_COUNT), "?");
	mb_policy_destroy(NULL);

	topo.node[0] = (struct mb_node){.id = 4, .has_memory = true, .mem_total_bytes = 7};
	topo.node[1] = (struct mb_node){.id = 6, .has_memory = true, .distance = {21, 10}};
	CPU_SET(3, &topo.node[1].cpus);
	mb_policy_host_init(&host, &topo, 2);
	ck_assert_int_eq(host.node[0].id, 4);
	ck_assert(!host.node[0].usable && host.node[1].usable);
	ck_assert(!host.node[0].has_cpus && host.node[1].has_cpus);
	ck_assert_uint_eq(host.node[0].total_bytes, 7);
	ck_assert_uint_eq(host.node[1].distance[0], 21);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("policy");
	TCase *cases = tcase_create("policy");

	tcase_add_checked_fixture(cases, setup, teardown);
	tcase_add_test(cases, test_migrate);
	tcase_add_test(cases, test_shared);
	tcase_add_test(cases, test_shared_elsewhere);
	tcase_add_test(cases, test_spread);
	tcase_add_test(cases, test_threshold);
	tcase_add_test(cases, test_single_share);
	tcase_add_test(cases, test_max_write_share);
	tcase_add_test(cases, test_min_gain);
	tcase_add_test(cases, test_payback);
	tcase_add_test(cases, test_budget);
	tcase_add_test(cases, test_node_budget);
	tcase_add_test(cases, test_watermarks);
	tcase_add_test(cases, test_overflow);
	tcase_add_test(cases, test_forbidden);
	tcase_add_test(cases, test_memoryless_and_cpuless);
	tcase_add_test(cases, test_backoff);
	tcase_add_test(cases, test_backoff_limits);
	tcase_add_loop_test(cases, test_no_ping_pong, 0, 7);
	tcase_add_test(cases, test_huge_whole);
	tcase_add_test(cases, test_huge_split);
	tcase_add_test(cases, test_huge_granule);
	tcase_add_test(cases, test_partly_moved);
	tcase_add_test(cases, test_history_is_bounded);
	tcase_add_test(cases, test_plan_full);
	tcase_add_test(cases, test_wide_views);
	tcase_add_test(cases, test_one_node);
	tcase_add_test(cases, test_64_nodes_8_views);
	tcase_add_test(cases, test_distances);
	tcase_add_test(cases, test_odd_extents);
	tcase_add_loop_test(cases, test_random, 0, 8);
	tcase_add_test(cases, test_size_does_not_matter);
	tcase_add_test(cases, test_names);
	tcase_set_timeout(cases, 60);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
