// SPDX-License-Identifier: Apache-2.0
#include <check.h>
#include <math.h>
#include <mirrorball/sim.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

#define GIB    (1ull << 30)
#define MIB    (1ull << 20)
#define SECOND 1000000000ull

/* 100 ns local, 200 ns remote. */
static struct mb_sim_host host;
static struct mb_sim_config config;
static struct mb_sim_result result;
static struct mb_sim_load load[8];
static struct mb_sim_guest guest[8];
static unsigned n_loads;

static void make_host(unsigned n_nodes)
{
	memset(&host, 0, sizeof(host));
	host.n_nodes = n_nodes;
	for (unsigned i = 0; i < n_nodes; i++) {
		host.cpus[i] = 16;
		host.memory_bytes[i] = 16 * GIB;
		for (unsigned k = 0; k < n_nodes; k++)
			host.ns[i][k] = i == k ? 100 : 200;
	}
	host.move_page_ns = 4000;
	host.move_block_ns = 200000;
	mb_sim_host_complete(&host);
}

static void setup(void)
{
	make_host(2);
	mb_sim_defaults(&config);
	config.noise = 0;
	n_loads = 0;
	memset(&result, 0, sizeof(result));
}

static void teardown(void)
{
	mb_sim_result_finish(&result);
}

static void run(void)
{
	struct mb_error err;

	mb_sim_result_finish(&result);
	ck_assert_msg(
		!mb_sim_run(&config, &host, load, n_loads, NULL, &result, &err), "%s", err.text);
}

static struct mb_sim_guest *add_guest(const char *program)
{
	struct mb_sim_guest *g = &guest[n_loads];
	struct mb_error err;

	*g = (struct mb_sim_guest){.program = mb_sim_program_find(program),
		.memory_bytes = 2 * GIB,
		.n_vcpus = 4,
		.span = host.n_nodes,
		.first_node = n_loads,
		.accesses_per_s = 1e6,
		.period_ns = 25 * SECOND};
	ck_assert_ptr_nonnull(g->program);
	ck_assert_int_eq(mb_sim_guest_load(g, &host, &load[n_loads++], &err), 0);
	return g;
}

/* 1 GiB that node 1 reads, a million times a second; it is 262,144 pages. */
static int one_use(const struct mb_sim_load *of, uint64_t at_ns, struct mb_sim_uses *uses)
{
	struct mb_sim_use *use = mb_sim_uses_add(uses);

	if (!use)
		return -12;
	use->len_bytes = GIB;
	use->huge = of->ctx;
	use->lines = 64;
	use->read[1] = 1e6f / 262144;
	return 0;
}

static void add_one_use(bool huge)
{
	static const int yes;

	load[n_loads++] = (struct mb_sim_load){
		.memory_bytes = GIB, .vcpus = {0, 1}, .uses = one_use, .ctx = huge ? &yes : NULL};
}

/* What can be worked out by hand: 10 s, of a million accesses each. */
START_TEST(test_known_times)
{
	config.length_ns = 10 * SECOND;
	add_one_use(true);
	run();
	ck_assert_uint_eq(result.n_steps, 10);
	ck_assert_double_eq_tol(result.accesses, 1e7, 10);
	ck_assert_double_eq_tol(result.s[MB_SIM_NONE], 2, 1e-5);
	ck_assert_double_eq_tol(result.s[MB_SIM_WORST_STATIC], 2, 1e-5);
	ck_assert_double_eq_tol(result.s[MB_SIM_STATIC_ORACLE], 1, 1e-5);
	ck_assert_double_eq_tol(result.s[MB_SIM_DYNAMIC_ORACLE], 1, 1e-5);
	ck_assert_double_eq_tol(result.s[MB_SIM_INTERLEAVED], 1.5, 1e-5);
	ck_assert_double_eq_tol(result.local[MB_SIM_INTERLEAVED], 0.5, 1e-6);
	ck_assert_double_eq_tol(result.local[MB_SIM_NONE], 0, 1e-6);
	/* It looks several times a second: the first plan moves all, for 512 times 200 us. */
	ck_assert_double_eq_tol(result.s[MB_SIM_POLICY], 1.1, 1e-5);
	ck_assert_double_eq_tol(result.moving_s, 512 * 200e-6, 1e-9);
	ck_assert_uint_eq(result.moved_bytes, GIB);
	ck_assert_uint_eq(result.step_moved_bytes[0], GIB);
	ck_assert_uint_eq(result.n_moves, 1);
	ck_assert(result.series[MB_SIM_POLICY][0] == 0 && result.series[MB_SIM_POLICY][1] == 1);
	ck_assert_uint_eq(result.used_bytes[0], 0);
	ck_assert_uint_eq(result.used_bytes[1], GIB);
}
END_TEST

/* In small pages a touch is one of 16 a second in all, and they do not pay back within 20 s. */
START_TEST(test_small_pages)
{
	config.length_ns = 30 * SECOND;
	add_one_use(false);
	run();
	ck_assert_uint_eq(result.moved_bytes, 0);
	ck_assert_double_gt(result.why_bytes[MB_WHY_COLD] + result.why_bytes[MB_WHY_NO_PAYBACK] +
				    result.why_bytes[MB_WHY_UNSURE],
		(double)GIB - 1);
}
END_TEST

START_TEST(test_queue)
{
	config.length_ns = 10 * SECOND;
	config.policy.bytes_per_s = 0;
	/* 64 MB/s of 128: half busy, and an access waits for half of its own time again. */
	host.bytes_per_s[0] = 128e6;
	add_one_use(true);
	run();
	ck_assert_double_eq_tol(result.busy[MB_SIM_NONE], 0.5, 1e-5);
	ck_assert_double_eq_tol(result.s[MB_SIM_NONE], 2 * 1.5, 1e-4);
	ck_assert_double_eq_tol(result.s[MB_SIM_DYNAMIC_ORACLE], 1, 1e-5);
	/* More than it can do: it is bounded. */
	host.bytes_per_s[0] = 1e6;
	run();
	ck_assert_double_eq_tol(result.s[MB_SIM_NONE], 2 * 10.5, 1e-4);
}
END_TEST

static const char *const programs[] = {
	"private", "readshare", "writeshare", "phase", "radix", "idle"};

/* Whatever it runs and wherever it begins: between what is best and what is worst. */
START_TEST(test_order)
{
	enum mb_sim_start starts[] = {MB_SIM_FIRST, MB_SIM_INTERLEAVE, MB_SIM_WORST, MB_SIM_BEST};

	for (unsigned nodes = 1; nodes <= 8; nodes *= 2) {
		for (unsigned s = 0; s < 4; s++) {
			const double *t = result.s;
			double most;

			make_host(nodes);
			n_loads = 0;
			config.start = starts[s];
			config.noise = 0.3f;
			config.n_views = nodes < 2 ? 1 : nodes / 2;
			add_guest(programs[_i]);
			run();
			ck_assert(t[MB_SIM_DYNAMIC_ORACLE] <= t[MB_SIM_STATIC_ORACLE] * 1.00001);
			ck_assert(t[MB_SIM_DYNAMIC_ORACLE] <= t[MB_SIM_POLICY] * 1.00001);
			ck_assert(t[MB_SIM_STATIC_ORACLE] <= t[MB_SIM_NONE] * 1.00001);
			ck_assert(t[MB_SIM_STATIC_ORACLE] <= t[MB_SIM_INTERLEAVED] * 1.00001);
			ck_assert(t[MB_SIM_NONE] <= t[MB_SIM_WORST_STATIC] * 1.00001);
			ck_assert(t[MB_SIM_POLICY] <= t[MB_SIM_WORST_STATIC] * 1.00001);
			/* The goal: with its moves at most 2 % worse than doing nothing. */
			most = 1.02 * t[MB_SIM_NONE];
			ck_assert_msg(t[MB_SIM_POLICY] + result.moving_s <= most,
				"%s, %u nodes: %f + %f, without %f", programs[_i], nodes,
				t[MB_SIM_POLICY], result.moving_s, t[MB_SIM_NONE]);
			for (unsigned c = 0; c < MB_SIM_CASES; c++)
				ck_assert(result.local[c] >= 0 && result.local[c] <= 1.000001);
		}
	}
}
END_TEST

/* No byte appears or vanishes, and what is told of the moves adds up. */
START_TEST(test_conservation)
{
	uint64_t sum = 0, moved = 0;

	make_host(4);
	config.length_ns = 120 * SECOND;
	for (unsigned i = 0; i < 6; i++)
		add_guest(programs[i]);
	run();
	for (unsigned i = 0; i < 4; i++) {
		ck_assert_uint_le(result.used_bytes[i], host.memory_bytes[i]);
		sum += result.used_bytes[i];
	}
	ck_assert_uint_eq(sum, 6 * 2 * GIB);
	for (unsigned i = 0; i < result.n_steps; i++)
		moved += result.step_moved_bytes[i];
	ck_assert_uint_eq(moved, result.moved_bytes);
	ck_assert_uint_gt(moved, 0);
	ck_assert_double_eq_tol(
		result.moving_s, (double)moved / (double)MB_HEAT_BLOCK_BYTES * 200e-6, 1e-6);
}
END_TEST

/* Turns share the looks: as many as with so many a second fewer. */
START_TEST(test_turns)
{
	double s[2];

	config.start = MB_SIM_WORST;
	config.noise = 0;
	for (unsigned turns = 1; turns <= 2; turns++) {
		n_loads = 0;
		config.n_turns = turns;
		config.looks_per_s = 4 * turns;
		add_guest("private");
		run();
		s[turns - 1] = result.s[MB_SIM_POLICY];
	}
	ck_assert(s[0] == s[1]);
	n_loads = 0;
	config.looks_per_s = 4;
	add_guest("private");
	run();
	ck_assert(result.s[MB_SIM_POLICY] > s[0]);
}
END_TEST

/* What is right in the end, from the worst place: 90 % local after five seconds at the latest. */
START_TEST(test_right_answers)
{
	unsigned at = 5;

	config.start = MB_SIM_WORST;
	/* No host's budget: what the policy finds, not how fast it may act. */
	config.policy.bytes_per_s = config.policy.node_bytes_per_s = 64 * GIB;
	config.policy.cost_burst_ns = 100 * SECOND;
	add_guest(_i ? "phase" : "private");
	run();
	ck_assert(result.series[MB_SIM_POLICY][0] < 0.1f);
	for (unsigned i = at; i < 25; i++)
		ck_assert(result.series[MB_SIM_POLICY][i] > 0.9f);
	ck_assert_double_le(
		result.s[MB_SIM_POLICY] + result.moving_s, 1.1 * result.s[MB_SIM_DYNAMIC_ORACLE]);
	/* It is where it should be: nothing more to do. */
	config.start = MB_SIM_BEST;
	n_loads = 0;
	add_guest("private");
	run();
	ck_assert_uint_eq(result.n_moves, 0);
}
END_TEST

START_TEST(test_repeats)
{
	struct mb_sim_result first;

	config.noise = 0.3f;
	make_host(4);
	add_guest("phase");
	add_guest("radix");
	run();
	first = result;
	memset(&result, 0, sizeof(result));
	run();
	ck_assert(first.s[0] == result.s[0] && first.moving_s == result.moving_s);
	ck_assert_uint_eq(first.moved_bytes, result.moved_bytes);
	mb_sim_result_finish(&first);
}
END_TEST

/* More memory than there is where it should begin: on the nearest nodes. */
START_TEST(test_spills)
{
	make_host(4);
	host.memory_bytes[0] = GIB + 12345;
	host.memory_bytes[2] = 0;
	add_guest("idle");
	run();
	ck_assert_uint_eq(result.used_bytes[0], GIB);
	ck_assert_uint_eq(result.used_bytes[1], GIB);
	ck_assert_uint_eq(result.used_bytes[2], 0);
}
END_TEST

START_TEST(test_bad)
{
	struct mb_error err;
	struct mb_sim_guest g = {
		.program = mb_sim_programs, .memory_bytes = 2 * MIB, .n_vcpus = 2, .span = 1};
	int stop = 1;

	ck_assert_int_eq(mb_sim_guest_load(&g, &host, &load[0], &err), -22);
	g.memory_bytes = 7 * MIB;
	ck_assert_int_eq(mb_sim_guest_load(&g, &host, &load[0], &err), -22);
	g.n_vcpus = 0;
	ck_assert_int_eq(mb_sim_guest_load(&g, &host, &load[0], &err), -22);
	ck_assert_ptr_null(mb_sim_program_find("nothing"));
	add_guest("private");
	config.n_views = 9;
	ck_assert_int_eq(mb_sim_run(&config, &host, load, 1, NULL, &result, &err), -22);
	config.n_views = 2;
	ck_assert_int_eq(mb_sim_run(&config, &host, load, 1, &stop, &result, &err), -4);
	host.memory_bytes[0] = host.memory_bytes[1] = GIB - 1;
	ck_assert_int_eq(mb_sim_run(&config, &host, load, 1, NULL, &result, &err), -22);
	ck_assert_ptr_nonnull(strstr(err.text, "need 2 GiB"));
	host.memory_bytes[0] = 4 * GIB;
	host.n_nodes = 0;
	ck_assert_int_eq(mb_sim_run(&config, &host, load, 1, NULL, &result, &err), -22);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sim");
	TCase *cases = tcase_create("sim");

	tcase_add_checked_fixture(cases, setup, teardown);
	tcase_add_test(cases, test_known_times);
	tcase_add_test(cases, test_small_pages);
	tcase_add_test(cases, test_queue);
	tcase_add_loop_test(cases, test_order, 0, 6);
	tcase_add_test(cases, test_conservation);
	tcase_add_test(cases, test_turns);
	tcase_add_loop_test(cases, test_right_answers, 0, 2);
	tcase_add_test(cases, test_repeats);
	tcase_add_test(cases, test_spills);
	tcase_add_test(cases, test_bad);
	tcase_set_timeout(cases, 60);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
