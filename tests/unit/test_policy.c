// SPDX-License-Identifier: Apache-2.0
/* The rules, each parameter, and what is remembered of moves. */
#include "policy_case.h"

#include <math.h>

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
	ck_assert_double_eq_tol(plan.action[0].cost_ns, 64 * 5000 + 500000, 1);
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

/* So many single pages of view 1 between those of view 0, and the rest is cold. */
static void add_strewn(unsigned n_pages)
{
	n_extents = 0;
	now += 1000 * SECOND;
	for (unsigned i = 0; i < n_pages; i++) {
		add_read(PAGE, 0, true, 0, 10);
		add_read(PAGE, 0, true, 10, 0);
	}
	add_read((512 - 2 * n_pages) * PAGE, 0, true, 0, 0);
}

/* They pay together for what they need together. */
START_TEST(test_huge_split_shared)
{
	double cost_ns = 0;

	add_strewn(2);
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 0);
	expect(0, MB_WHY_NO_PAYBACK);
	add_strewn(16);
	make_plan();
	ck_assert_uint_eq(plan.n_actions, 16);
	for (unsigned i = 0; i < plan.n_actions; i++)
		cost_ns += plan.action[i].cost_ns;
	ck_assert_double_eq_tol(cost_ns, 16 * 5000 + 500000, 1);
	expect(1, MB_WHY_LOCAL);
}
END_TEST

/* What is mapped in small pages is found more slowly: not worth it for a node that is as near. */
START_TEST(test_small_walk)
{
	host.node[0].distance[1] = host.node[1].distance[0] = 11;
	for (unsigned turn = 0; turn < 2; turn++) {
		config.small_walk_ns = turn ? 25 : 0;
		n_extents = 0;
		now += 1000 * SECOND;
		add_block(100, 300);
		make_plan();
		expect(0, turn ? MB_WHY_NO_PAYBACK : MB_WHY_MIGRATE);
		expect(1, MB_WHY_LOCAL);
	}
	/* So are replicas; what is small already loses nothing. */
	config.replicas = true;
	make_host(2, 2);
	for (unsigned turn = 0; turn < 3; turn++) {
		config.small_walk_ns = turn ? 1000 : 25;
		n_extents = 0;
		now += 1000 * SECOND;
		add_read(BLOCK, 0, turn < 2, 100, 100);
		make_plan();
		expect(0, turn == 1 ? MB_WHY_NO_PAYBACK : MB_WHY_REPLICATE);
	}
}
END_TEST

static double sum_of_gains(void)
{
	double sum = 0;

	for (unsigned i = 0; i < plan.n_actions; i++)
		sum += plan.action[i].gain_ns_per_s;
	return sum;
}

/* For whom its part is too much leaves all of it to the others, for whom it may be too much then.
 */
START_TEST(test_huge_split_dropped)
{
	const float touches[] = {10, 0.3f, 0.368f};
	double all = 464 * (double)0.4f;

	config.small_walk_ns = 25;
	for (unsigned i = 0; i < 3; i++) {
		add_read(16 * PAGE, 0, true, 0, touches[i]);
		all += 16 * (double)touches[i];
	}
	add_read(464 * PAGE, 0, true, 0.4f, 0);
	make_plan();
	expect(0, MB_WHY_MIGRATE);
	expect(1, MB_WHY_NO_PAYBACK);
	expect(2, MB_WHY_NO_PAYBACK);
	ck_assert_uint_eq(plan.n_actions, 1);
	ck_assert_double_eq_tol(plan.action[0].cost_ns, 16 * 5000 + 500000, 1);
	ck_assert_double_eq_tol(sum_of_gains(), 160 * 8 * 110 - 25 * all, 1);
}
END_TEST

/* Replicas of a part need no split, but they are in small pages as well. */
START_TEST(test_huge_split_replica)
{
	config.small_walk_ns = 25;
	config.replicas = true;
	add_read(256 * PAGE, 0, true, 100, 100);
	add_read(128 * PAGE, 0, true, 300, 0);
	add_read(128 * PAGE, 0, true, 0, 300);
	make_plan();
	expect(0, MB_WHY_REPLICATE);
	expect(1, MB_WHY_LOCAL);
	expect(2, MB_WHY_MIGRATE);
	ck_assert_uint_eq(plan.n_actions, 2);
	for (unsigned i = 0; i < 2; i++)
		ck_assert_double_eq_tol(plan.action[i].cost_ns,
			plan.action[i].kind == MB_ACTION_REPLICATE ? 256 * 8000 + 50000
								   : 128 * 5000 + 500000,
			1);
	ck_assert_double_eq_tol(sum_of_gains(),
		(256 * 100 + 128 * 300) * 8 * 110 - 25 * (256 * 200 + 128 * 600), 1);
	ck_assert_double_eq_tol(
		sum_of_gains(), verdict_of(0)->gain_ns_per_s + verdict_of(2)->gain_ns_per_s, 1);
}
END_TEST

/* What would lose never pays back, and the second best node is no better for small pages. */
START_TEST(test_huge_split_elsewhere)
{
	config.small_walk_ns = 25;
	make_host(3, 3);
	host.node[0].distance[1] = host.node[1].distance[0] = 11;
	host.node[2].distance[1] = host.node[1].distance[2] = 12;
	host.node[0].distance[2] = host.node[2].distance[0] = 13;
	for (unsigned turn = 0; turn < 2; turn++) {
		n_extents = 0;
		now += 1000 * SECOND;
		/* Node 2's user; node 1 is nearer than home, but not by enough. */
		add(64 * PAGE, 0, true)->view[2].read = 300;
		add_read(448 * PAGE, 0, true, 100, 0);
		host.node[2].free_bytes = turn ? 0 : 32 * GIB;
		make_plan();
		expect(0, turn ? MB_WHY_NO_ROOM : MB_WHY_MIGRATE);
		ck_assert_uint_eq(plan.n_actions, !turn);
	}
	config.small_walk_ns = 1000;
	now += 1000 * SECOND;
	make_plan();
	expect(0, MB_WHY_NO_PAYBACK);
	ck_assert(verdict_of(0)->gain_ns_per_s < 0);
	ck_assert(isinf(verdict_of(0)->payback_ns));
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
	tcase_add_test(cases, test_forbidden);
	tcase_add_test(cases, test_memoryless_and_cpuless);
	tcase_add_test(cases, test_backoff);
	tcase_add_test(cases, test_backoff_limits);
	tcase_add_loop_test(cases, test_no_ping_pong, 0, 7);
	tcase_add_test(cases, test_huge_whole);
	tcase_add_test(cases, test_huge_split);
	tcase_add_test(cases, test_huge_split_shared);
	tcase_add_test(cases, test_small_walk);
	tcase_add_test(cases, test_huge_split_dropped);
	tcase_add_test(cases, test_huge_split_replica);
	tcase_add_test(cases, test_huge_split_elsewhere);
	tcase_add_test(cases, test_partly_moved);
	tcase_add_test(cases, test_history_is_bounded);
	tcase_add_test(cases, test_plan_full);
	tcase_set_timeout(cases, 60);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
