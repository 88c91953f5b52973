// SPDX-License-Identifier: Apache-2.0
#include "policy_case.h"

#include <math.h>

/* Of the policy: how much of what is to move may, and what becomes of the rest. */

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

/* The guest's CPU time pays: 1 % of it, and a bucket that is full at first. */
START_TEST(test_cost_budget)
{
	config.bytes_per_s = config.node_bytes_per_s = 1ull << 40;
	add_read(16 * GIB, 0, true, 0, 100);
	guest_ns = SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes / BLOCK, config.cost_burst_ns / 300000 + 1);
	ck_assert_uint_eq(plan.verdict[plan.n_verdicts - 1].why, MB_WHY_COST_BUDGET);
	/* Time alone brings nothing: an idle guest. */
	now += 100 * SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 0);
	guest_ns += 3 * SECOND;
	now += SECOND;
	make_plan();
	ck_assert_uint_le(plan.bytes, 100 * BLOCK);
	ck_assert_uint_ge(plan.bytes, 99 * BLOCK);
	/* Counted once, whatever the clock does. */
	guest_ns -= 2 * SECOND;
	now += SECOND;
	make_plan();
	ck_assert_uint_eq(plan.bytes, 0);
	guest_ns += 2 * SECOND;
	now += SECOND;
	make_plan();
	ck_assert_uint_le(plan.bytes, BLOCK);
	/* What is not known is no limit. */
	guest_ns = 0;
	now += SECOND;
	make_plan();
	ck_assert_uint_gt(plan.bytes, 1 * GIB);
}
END_TEST

/* In the long run no more than the share, with moves, copies and huge pages in parts. */
START_TEST(test_cost_is_bounded)
{
	double spent = 0, dearest = 0;
	unsigned n_split = 0;
	uint64_t begin;

	config.replicas = true;
	config.bytes_per_s = config.node_bytes_per_s = 1ull << 40;
	config.cost_burst_ns = 1000000;
	add_read(1 * GIB, 0, true, 0, 100);
	add_read(1 * GIB, 0, false, 100, 100);
	/* A huge page in parts costs as much as there ever is at once, and still goes. */
	add_read(BLOCK / 2, 0, true, 0, 1000)->view[1].write = 1000;
	add_read(BLOCK / 2, 0, true, 1000, 0)->view[0].write = 1000;
	config.split_block_ns = 10e6;
	guest_ns = begin = SECOND;
	for (unsigned i = 0; i < 2000; i++) {
		make_plan();
		for (unsigned k = 0; k < plan.n_actions; k++) {
			spent += plan.action[k].cost_ns;
			dearest = fmax(dearest, plan.action[k].cost_ns);
			n_split += plan.action[k].split;
		}
		guest_ns += SECOND / 10;
		now += SECOND;
	}
	ck_assert_double_le(spent, config.cost_share * (double)(guest_ns - begin) +
					   (double)config.cost_burst_ns + dearest);
	ck_assert_double_ge(spent, 0.9 * config.cost_share * (double)(guest_ns - begin));
	ck_assert_uint_ge(n_split, 1);
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

int main(void)
{
	Suite *suite = suite_create("policy_budget");
	TCase *cases = tcase_create("policy_budget");

	tcase_add_checked_fixture(cases, setup, teardown);
	tcase_add_test(cases, test_budget);
	tcase_add_test(cases, test_node_budget);
	tcase_add_test(cases, test_cost_budget);
	tcase_add_test(cases, test_cost_is_bounded);
	tcase_add_test(cases, test_watermarks);
	tcase_add_test(cases, test_overflow);
	tcase_add_test(cases, test_huge_granule);
	tcase_set_timeout(cases, 60);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
