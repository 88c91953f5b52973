// SPDX-License-Identifier: Apache-2.0
/* The policy on hosts of all sorts, and on input that nobody would think of. */
#include "policy_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

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
	Suite *suite = suite_create("policy_input");
	TCase *cases = tcase_create("policy_input");

	tcase_add_checked_fixture(cases, setup, teardown);
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
