// SPDX-License-Identifier: Apache-2.0
#include "policy_case.h"

/* Of the policy: huge pages that get copies as a whole, or that are tried. */

/* Of a huge page of which nothing is known but that some of it is written, writes tell what is. */
START_TEST(test_try)
{
	uint64_t last = 0;
	unsigned n = 0;

	config.replicas = true;
	add_read(BLOCK, 0, true, 60, 60);
	/* Not where pages are known, or where there is little to be had. */
	add_read(BLOCK, 0, false, 60, 60);
	add_read(BLOCK / 2, 0, true, 60, 60);
	add_read(BLOCK / 2, 0, true, 50, 50);
	add_read(BLOCK, 0, true, 1, 1);
	for (unsigned i = 0; i < n_extents; i++)
		extent[i].view[0].write = extent[i].view[1].write = extent[i].view[0].read;
	make_plan();
	expect(0, MB_WHY_REPLICATE);
	for (unsigned i = 1; i < 5; i++)
		expect(i, MB_WHY_WRITE_SHARED);
	ck_assert_uint_eq(plan.n_actions, 1);
	ck_assert(plan.action[0].is_try);
	ck_assert_int_eq(plan.action[0].view, 1);
	ck_assert_uint_eq(plan.action[0].len_bytes, BLOCK);
	/* In vain: after a while again, and each time after a longer one. */
	for (unsigned s = 1; s < 3600; s++) {
		now += SECOND;
		make_plan();
		if (!plan.n_actions) {
			expect(0, MB_WHY_WRITE_SHARED);
			continue;
		}
		ck_assert_uint_ge(s - last, 5ull << n);
		last = s;
		n++;
	}
	ck_assert_uint_ge(n, 7);
	ck_assert_uint_le(n, 9);
	/* What is certain does not wait for that. */
	extent[0].view[0] = (struct mb_heat){0};
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	ck_assert_uint_eq(verdict_of(0)->moves, 0);
	config.try_share = 0;
	extent[0].view[0] = extent[0].view[1];
	now += 10000 * SECOND;
	make_plan();
	expect(0, MB_WHY_WRITE_SHARED);
}
END_TEST

/* Few at a time, and each in its turn, however many there are. */
START_TEST(test_tries_are_few)
{
	unsigned tried[300] = {0}, most = 0;

	config.replicas = true;
	guest_ns = SECOND;
	add_read(200 * BLOCK, 0, true, 60, 60);
	for (unsigned i = 0; i < 100; i++)
		add_read(BLOCK, 0, true, 40 + i % 7, 40);
	for (unsigned i = 0; i < n_extents; i++)
		extent[i].view[0].write = extent[i].view[1].write = 60;
	for (unsigned s = 0; s < 3600; s++) {
		make_plan();
		ck_assert_uint_le(plan.bytes, 16 * BLOCK);
		for (unsigned k = 0; k < plan.n_actions; k++)
			for (uint64_t at = 0; at < plan.action[k].len_bytes; at += BLOCK)
				tried[(plan.action[k].offset + at) / BLOCK]++;
		now += SECOND;
		guest_ns += 4 * SECOND;
	}
	for (unsigned i = 0; i < 300; i++) {
		ck_assert_uint_ge(tried[i], 4);
		most = tried[i] > most ? tried[i] : most;
	}
	ck_assert_uint_le(most, 10);
}
END_TEST

/* Where most of it is shared and nobody writes it, all of it gets copies, in one piece. */
START_TEST(test_huge_replica)
{
	config.replicas = true;
	for (unsigned turn = 0; turn < 3; turn++) {
		n_extents = 0;
		now += 1000 * SECOND;
		for (unsigned i = 0; i < 100; i++) {
			add_read(2 * PAGE, 0, true, 10, 10);
			add_read(2 * PAGE, 0, true, i & 1 ? 12 : 0, i & 1 ? 0 : 12);
		}
		add_read(112 * PAGE, 0, true, 0, 0);
		/* What is written now and then is nothing against that, the more often it is. */
		extent[0].view[1].write = turn == 1 ? 3 : turn == 2 ? 90 : 0;
		make_plan();
		expect(1, turn < 2 ? MB_WHY_REPLICATE : MB_WHY_MIGRATE);
		if (turn == 2)
			continue;
		ck_assert_uint_eq(plan.n_actions, 1);
		ck_assert(!plan.action[0].is_try);
		ck_assert_uint_eq(plan.action[0].len_bytes, BLOCK);
		ck_assert_int_eq(plan.action[0].view, 1);
		expect(200, MB_WHY_REPLICATE);
	}
	/* Where they are not possible, or the whole is not known, parts go by themselves. */
	extent[0].view[1].write = 0;
	for (unsigned turn = 0; turn < 2; turn++) {
		config.replicas = turn;
		extent[200].confidence = turn ? 0.1f : 0.8f;
		now += 1000 * SECOND;
		make_plan();
		expect(1, MB_WHY_MIGRATE);
		expect(3, MB_WHY_LOCAL);
		expect(0, turn ? MB_WHY_REPLICATE : MB_WHY_READ_SHARED);
		ck_assert_uint_ge(plan.n_actions, 50);
	}
}
END_TEST

/* Not for a page or two, and not where each of many pages is written now and then. */
START_TEST(test_huge_replica_of_parts)
{
	config.replicas = true;
	add_read(PAGE, 0, true, 400, 400);
	add_read(511 * PAGE, 0, true, 0.3f, 0);
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 1);
	ck_assert_uint_eq(plan.action[0].len_bytes, PAGE);
	n_extents = 0;
	now += 1000 * SECOND;
	for (unsigned i = 0; i < 100; i++) {
		add_read(2 * PAGE, 0, true, 100, 100);
		add_read(2 * PAGE, 0, true, 20, 0)->view[0].write = 0.5f;
	}
	add_read(112 * PAGE, 0, true, 0, 0);
	make_plan();
	ck_assert_uint_ge(plan.n_actions, 100);
	expect(0, MB_WHY_REPLICATE);
	expect(1, MB_WHY_LOCAL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("policy_copies");
	TCase *cases = tcase_create("policy_copies");

	tcase_add_checked_fixture(cases, setup, teardown);
	tcase_add_test(cases, test_try);
	tcase_add_test(cases, test_tries_are_few);
	tcase_add_test(cases, test_huge_replica);
	tcase_add_test(cases, test_huge_replica_of_parts);
	tcase_set_timeout(cases, 60);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
