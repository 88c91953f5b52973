// SPDX-License-Identifier: Apache-2.0
/* The manager with a fake tracker and a fake mover; time is what the test says. */
#include "run.h"

#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/manager.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECOND 1000000000ull
#define MIB    (1ull << 20)

static struct {
	struct mb_extent extent[3000];
	unsigned n;
	int rc, move_rc;
	unsigned n_moves;
	uint64_t busy_bytes, guest_ns, n_writes;
	struct mb_move last;
	struct mb_manager *hold; /* is held in the first move */
	uint64_t pages[MB_HEAT_BLOCK_PAGES / 64]; /* of the last one */
} fake;
static struct mb_manager *manager;

#define STORM_BYTES (7 * 2 * MIB)
static struct {
	uint64_t bytes;					     /* not 0: there is one */
	unsigned pages[2][STORM_BYTES / MB_HEAT_PAGE_BYTES]; /* how often it came to each node */
	unsigned move_us, copy_us;			     /* one takes so long */
	unsigned n_hasty; /* atomic: moves and copies that came earlier than that after a copy */
	unsigned n_slow;  /* atomic: copies */
	uint64_t ended_ns;
} storm;

static int extents(void *ctx, struct mb_extent **out, unsigned *n)
{
	if (fake.rc)
		return fake.rc;
	*out = calloc(fake.n, sizeof(**out));
	memcpy(*out, fake.extent, fake.n * sizeof(**out));
	*n = fake.n;
	return 0;
}

static uint64_t free_there; /* not 0: on node 1 */

static void look(void *ctx, struct mb_policy_host *host)
{
	for (unsigned i = 0; i < host->n_nodes; i++)
		host->node[i].usable = true;
	if (free_there)
		host->node[1].free_bytes = free_there;
}

static void take_time(bool copies)
{
	uint64_t begin_ns = mb_now_ns();

	if (storm.ended_ns && begin_ns - storm.ended_ns < storm.copy_us * 1000ull)
		__atomic_add_fetch(&storm.n_hasty, 1, __ATOMIC_RELAXED);
	usleep(copies ? storm.copy_us : storm.move_us);
	storm.ended_ns = copies ? mb_now_ns() : 0;
	__atomic_add_fetch(&storm.n_slow, copies, __ATOMIC_RELAXED);
}

static uint64_t fake_burst_ns; /* not 0: the policy's cost_burst_ns */

static uint64_t guest_ns(void *ctx)
{
	return fake.guest_ns;
}

static int move(void *ctx, const struct mb_move *what, struct mb_moved *moved)
{
	if (storm.move_us)
		take_time(false);
	fake.n_moves++;
	fake.last = *what;
	if (what->pages)
		memcpy(fake.pages, what->pages, sizeof(fake.pages));
	if (storm.bytes) {
		ck_assert_uint_gt(what->len_bytes, 0);
		ck_assert_uint_eq((what->offset | what->len_bytes) % MB_HEAT_PAGE_BYTES, 0);
		ck_assert_uint_le(what->offset + what->len_bytes, STORM_BYTES);
		for (uint64_t at = 0; at < what->len_bytes; at += MB_HEAT_PAGE_BYTES)
			storm.pages[what->node][(what->offset + at) / MB_HEAT_PAGE_BYTES]++;
	}
	if (fake.hold)
		mb_manager_hold(fake.hold);
	if (fake.move_rc)
		return fake.move_rc;
	moved->moved_bytes += what->len_bytes - fake.busy_bytes;
	moved->busy_bytes += fake.busy_bytes;
	for (unsigned i = 0; i < fake.n && !fake.busy_bytes; i++)
		if (fake.extent[i].offset == what->offset)
			fake.extent[i].node = (int)what->node;
	return 0;
}

static struct {
	bool possible;
	unsigned n, n_protected, n_finished, views;
	uint64_t bytes, view_bytes[2], protected_bytes;
} copies;

static uint64_t n_writes(void *ctx)
{
	return fake.n_writes;
}

static int protect(void *ctx, uint64_t offset, uint64_t len, struct mb_replicated *done)
{
	if (storm.copy_us)
		take_time(true);
	copies.n_protected++;
	copies.protected_bytes += len;
	return 0;
}

static int replicate(
	void *ctx, uint64_t offset, uint64_t len, unsigned views, struct mb_replicated *done)
{
	if (storm.copy_us)
		take_time(true);
	if (storm.bytes)
		ck_assert_uint_le(offset + len, STORM_BYTES);
	else
		ck_assert_uint_eq(offset, 64 * MIB + copies.bytes);
	copies.n++;
	copies.views |= views;
	copies.bytes += len;
	for (unsigned v = 0; v < 2; v++)
		copies.view_bytes[v] += (views >> v & 1) * len;
	done->copied_bytes = len;
	return 0;
}

static int finish(
	void *ctx, uint64_t offset, uint64_t len, unsigned views, struct mb_replicated *done)
{
	copies.n_finished++;
	return replicate(ctx, offset, len, views, done);
}

static float copied(void *ctx, uint64_t offset, uint64_t len, unsigned view)
{
	const uint64_t from = offset > 64 * MIB ? offset : 64 * MIB;
	const uint64_t end = 64 * MIB + copies.bytes, to = offset + len < end ? offset + len : end;

	return copies.views >> view & 1 && to > from ? (float)(to - from) / (float)len : 0;
}

static const struct mb_manager_ops ops = {
	.extents = extents,
	.look = look,
	.guest_ns = guest_ns,
	.move = move,
	.n_writes = n_writes,
	.copied = copied,
	.protect = protect,
	.finish = finish,
	.replicate = replicate,
};

static unsigned n_nodes = 2;

/* Nodes 0 and 1 have a view each; two extents of 64 MiB, both on node 0, the second one used by
 * view 1. */
static void make(void)
{
	struct mb_manager_config config = {
		.name = "test", .ops = &ops, .n_views = 2, .storm_bytes = storm.bytes};

	memset(&fake, 0, sizeof(fake));
	mb_policy_defaults(&config.policy);
	config.policy.replicas = copies.possible;
	if (fake_burst_ns)
		config.policy.cost_burst_ns = fake_burst_ns;
	config.host.n_nodes = n_nodes;
	for (unsigned i = 0; i < n_nodes; i++) {
		config.host.node[i] = (struct mb_policy_node){.id = (int)i,
			.usable = true,
			.has_cpus = true,
			.total_bytes = 4096 * MIB,
			.free_bytes = 2048 * MIB,
			.distance = {21, 21, 21}};
		config.host.node[i].distance[i] = 10;
	}
	for (unsigned i = 0; i < 2; i++) {
		config.view[i].weight[i] = 2;
		fake.extent[i] = (struct mb_extent){.offset = i * 64 * MIB,
			.len_bytes = 64 * MIB,
			.confidence = 1,
			.huge = true,
			.node_share = 1};
		fake.extent[i].view[i].write = 100;
	}
	fake.n = 2;
	ck_assert_int_eq(mb_manager_create(&config, &manager), 0);
}

START_TEST(test_moves_what_is_far)
{
	struct mb_manager_stats stats;
	struct mb_manager_sample sample[4];
	struct mb_verdict range[4];
	struct mb_decision d[4];

	make();
	mb_manager_step(manager, SECOND);
	ck_assert_uint_eq(fake.n_moves, 1);
	ck_assert_uint_eq(fake.last.offset, 64 * MIB);
	ck_assert_uint_eq(fake.last.node, 1);
	ck_assert(fake.last.huge);
	mb_manager_step(manager, 2 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 1);
	mb_manager_stats(manager, &stats);
	ck_assert_uint_eq(stats.n_steps, 2);
	ck_assert_uint_eq(stats.n_moves, 1);
	ck_assert_uint_eq(stats.moved_bytes, 64 * MIB);
	ck_assert_uint_eq(stats.why_bytes[MB_WHY_LOCAL], 128 * MIB);
	ck_assert_uint_eq(stats.node[1].in_bytes, 64 * MIB);
	ck_assert_uint_eq(stats.node[0].out_bytes, 64 * MIB);
	ck_assert_uint_eq(stats.node[0].guest_bytes, 64 * MIB);
	ck_assert(stats.knows_locality && stats.locality == 1);
	ck_assert_uint_eq(mb_manager_ranges(manager, range, 4), 2);
	ck_assert_uint_eq(range[0].len_bytes, 64 * MIB);
	ck_assert_int_eq(range[0].node, 0);
	ck_assert_int_eq(range[1].why, MB_WHY_LOCAL);
	ck_assert_int_eq(range[1].node, 1);
	ck_assert_uint_eq(mb_manager_decisions(manager, d, 4), 1);
	ck_assert_int_eq(d[0].why, MB_WHY_MIGRATE);
	ck_assert_uint_eq(d[0].time_ns, SECOND);
	ck_assert_uint_eq(mb_manager_samples(manager, sample, 4), 2);
	ck_assert_float_eq_tol(sample[0].locality, 0.5f, 0.001f);
	mb_manager_destroy(manager);
}
END_TEST

/* What the guest's CPU time is good for: 2 MiB at once, and then one for each 30 ms. */
START_TEST(test_costs_are_the_guests)
{
	fake_burst_ns = 300000;
	make();
	fake.guest_ns = 1;
	fake.busy_bytes = MB_HEAT_PAGE_BYTES; /* so that the rest is where it was */
	mb_manager_step(manager, SECOND);
	ck_assert_uint_eq(fake.last.len_bytes, 2 * 2 * MIB); /* one more: a debt */
	mb_manager_step(manager, 2 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 1);
	fake.guest_ns += SECOND / 10;
	mb_manager_step(manager, 3 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 2);
	mb_manager_destroy(manager);
	fake_burst_ns = 0;
}
END_TEST

/* Views whose vCPUs have moved: their memory goes after them. */
START_TEST(test_set_view)
{
	struct mb_policy_view there = {.weight = {0, 2}};
	struct mb_manager_stats stats;

	make();
	fake.n = 1;
	mb_manager_step(manager, SECOND);
	ck_assert_uint_eq(fake.n_moves, 0);
	mb_manager_set_view(manager, 0, &there);
	mb_manager_set_view(manager, MB_HEAT_VIEWS, &there);
	mb_manager_step(manager, 2 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 1);
	ck_assert_uint_eq(fake.last.offset, 0);
	ck_assert_uint_eq(fake.last.node, 1);
	mb_manager_step(manager, 3 * SECOND);
	mb_manager_stats(manager, &stats);
	ck_assert(stats.locality == 1);
	mb_manager_destroy(manager);
	mb_manager_set_view(NULL, 0, &there);
}
END_TEST

/* What both views read is copied for the one that is far from it. */
START_TEST(test_copies)
{
	struct mb_manager_stats stats;
	struct mb_decision d[100];
	unsigned n;

	copies.possible = true;
	make();
	fake.extent[1].view[1].write = 0;
	for (unsigned v = 0; v < 2; v++)
		fake.extent[1].view[v].read = 100;
	mb_manager_step(manager, SECOND);
	ck_assert_uint_eq(fake.n_moves, 0);
	ck_assert_uint_eq(copies.views, 2);
	ck_assert_uint_eq(copies.bytes, 64 * MIB);
	n = mb_manager_decisions(manager, d, 100);
	ck_assert_uint_eq(n, copies.n);
	ck_assert_int_eq(d[0].why, MB_WHY_REPLICATE);
	ck_assert_uint_eq(d[0].moved.moved_bytes, d[0].len_bytes);
	mb_manager_stats(manager, &stats);
	ck_assert_uint_eq(stats.moved_bytes, 0);
	ck_assert(stats.locality < 0.8f);
	mb_manager_step(manager, 2 * SECOND);
	mb_manager_stats(manager, &stats);
	ck_assert(stats.locality > 0.99f);
	/* It is not planned for again. */
	ck_assert_uint_eq(copies.n, n);
	ck_assert_uint_eq(stats.why_bytes[MB_WHY_LOCAL], 64 * MIB);
	ck_assert_uint_eq(stats.why_bytes[MB_WHY_BACKING_OFF], 0);
	mb_manager_destroy(manager);
}
END_TEST

/* A part at a time, as the guest's CPU time pays for it, and all of it in the end. _i: for both. */
START_TEST(test_copies_in_parts)
{
	copies.possible = true;
	fake_burst_ns = 20000000;
	n_nodes = 3;
	make();
	fake.n = 1;
	fake.extent[0].offset = 64 * MIB;
	fake.extent[0].node = _i ? 2 : 0;
	for (unsigned v = 0; v < 2; v++)
		fake.extent[0].view[v] = (struct mb_heat){.read = 100};
	fake.guest_ns = 1;
	mb_manager_step(manager, SECOND);
	ck_assert_uint_gt(copies.bytes, 0);
	ck_assert_uint_lt(copies.bytes, 32 * MIB);
	for (unsigned s = 2; s < 60; s++) {
		fake.guest_ns += SECOND;
		mb_manager_step(manager, s * SECOND);
	}
	ck_assert_uint_eq(copies.bytes, 64 * MIB);
	ck_assert_uint_eq(copies.view_bytes[0], _i ? 64 * MIB : 0);
	ck_assert_uint_eq(copies.view_bytes[1], 64 * MIB);
	mb_manager_destroy(manager);
	fake_burst_ns = 0;
}
END_TEST

/* Where some of it is written it is protected first, and copied in the next turn. */
START_TEST(test_tries)
{
	struct mb_decision d[64];
	unsigned n;

	copies.possible = true;
	make();
	fake.extent[1].len_bytes = 16 * MIB;
	for (unsigned v = 0; v < 2; v++)
		fake.extent[1].view[v] = (struct mb_heat){.read = 50, .write = 50};
	mb_manager_step(manager, SECOND);
	ck_assert_uint_eq(copies.protected_bytes, 16 * MIB);
	ck_assert_uint_eq(copies.bytes, 0);
	ck_assert_uint_eq(mb_manager_decisions(manager, d, 64), 0);
	mb_manager_hold(manager);
	mb_manager_step(manager, 2 * SECOND);
	ck_assert_uint_eq(copies.bytes, 0);
	mb_manager_release(manager);
	mb_manager_step(manager, 3 * SECOND);
	ck_assert_uint_eq(copies.bytes, 16 * MIB);
	ck_assert_uint_eq(copies.n_finished, copies.n);
	n = mb_manager_decisions(manager, d, 64);
	ck_assert_uint_ge(n, 1);
	ck_assert_int_eq(d[0].why, MB_WHY_REPLICATE);
	ck_assert_uint_eq(d[0].moved.moved_bytes, d[0].len_bytes);
	mb_manager_step(manager, 4 * SECOND);
	ck_assert_uint_eq(copies.bytes, 16 * MIB);
	ck_assert_uint_eq(copies.protected_bytes, 16 * MIB);
	/* One that is never ended is forgotten. */
	copies.bytes = 0;
	mb_manager_step(manager, 1000 * SECOND);
	ck_assert_uint_eq(copies.protected_bytes, 32 * MIB);
	mb_manager_destroy(manager);
}
END_TEST

/* Writes that waited because of copies are paid, too. */
START_TEST(test_copied_writes_cost)
{
	copies.possible = true;
	make();
	fake.guest_ns = 1;
	fake.n_writes = 5;
	fake.n = 0;
	mb_manager_step(manager, SECOND);
	fake.n = 2;
	fake.n_writes += 10000;
	mb_manager_step(manager, 2 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 0);
	fake.guest_ns += 60 * SECOND;
	mb_manager_step(manager, 3 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 1);
	mb_manager_destroy(manager);
}
END_TEST

/*
 * Both are far from it: each gets its copy, in one call, whatever else is worth more than one of
 * the copies. _i: the second one's node has no room for all of it.
 */
START_TEST(test_copies_of_both)
{
	uint64_t decided[2] = {0}, moved[2] = {0};
	struct mb_decision d[16];
	unsigned n;

	copies.possible = true;
	n_nodes = 3;
	free_there = _i ? 200 * MIB : 0;
	make();
	fake.n = _i ? 1 : 2;
	for (unsigned i = 0; i < fake.n; i++) {
		fake.extent[i].offset = (i + 1) * 64 * MIB;
		fake.extent[i].node = 2;
		fake.extent[i].view[i].write = 0;
		fake.extent[i].view[0].read = i ? 80 : 100;
		fake.extent[i].view[1].read = i ? 40 : 50;
	}
	mb_manager_step(manager, SECOND);
	n = mb_manager_decisions(manager, d, 16);
	for (unsigned i = 0; i < n; i++) {
		ck_assert_int_eq(d[i].why, MB_WHY_REPLICATE);
		ck_assert_int_eq(d[i].from, 2);
		ck_assert_int_eq(d[i].rc, 0);
		decided[d[i].to] += d[i].len_bytes;
		moved[d[i].to] += d[i].moved.moved_bytes;
	}
	ck_assert_uint_eq(n, 2 * fake.n);
	ck_assert_uint_eq(copies.n, 2);
	ck_assert_uint_eq(copies.bytes, fake.n * 64 * MIB);
	ck_assert_uint_eq(copies.view_bytes[0], copies.bytes);
	if (_i)
		ck_assert(copies.view_bytes[1] > 0 && copies.view_bytes[1] < 64 * MIB);
	else
		ck_assert_uint_eq(copies.view_bytes[1], copies.bytes);
	for (unsigned v = 0; v < 2; v++) {
		ck_assert_uint_eq(decided[v], copies.view_bytes[v]);
		ck_assert_uint_eq(moved[v], copies.view_bytes[v]);
	}
	mb_manager_destroy(manager);
}
END_TEST

/* What could not move waits, as what moved does. */
START_TEST(test_busy)
{
	struct mb_manager_stats stats;

	make();
	fake.busy_bytes = MIB;
	mb_manager_step(manager, SECOND);
	mb_manager_step(manager, 2 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 1);
	mb_manager_stats(manager, &stats);
	ck_assert_uint_eq(stats.busy_bytes, MIB);
	ck_assert_uint_eq(stats.why_bytes[MB_WHY_BACKING_OFF], 64 * MIB);
	mb_manager_step(manager, 60 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 2);
	mb_manager_destroy(manager);
}
END_TEST

START_TEST(test_held)
{
	struct mb_manager_stats stats;
	struct mb_decision d;

	make();
	mb_manager_hold(manager);
	mb_manager_step(manager, SECOND);
	ck_assert_uint_eq(fake.n_moves, 0);
	mb_manager_release(manager);
	/* Stopped in the middle: nothing more of that plan. */
	fake.extent[0].node = 1;
	fake.hold = manager;
	fake.move_rc = -ECANCELED;
	mb_manager_step(manager, 2 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 1);
	mb_manager_stats(manager, &stats);
	ck_assert_uint_eq(stats.moved_bytes, 0);
	ck_assert_uint_eq(mb_manager_decisions(manager, &d, 1), 1);
	ck_assert_int_eq(d.rc, -ECANCELED);
	mb_manager_hold(NULL);
	mb_manager_release(NULL);
	mb_manager_stop(NULL);
	mb_manager_destroy(NULL);
	mb_manager_destroy(manager);
}
END_TEST

/* A tracker without an answer is no reason to stop; nor is a node that refuses. */
START_TEST(test_errors)
{
	struct mb_manager_stats stats;

	make();
	fake.rc = -ENOMEM;
	mb_manager_step(manager, SECOND);
	fake.rc = 0;
	fake.move_rc = -EPERM;
	mb_manager_step(manager, 2 * SECOND);
	fake.move_rc = 0;
	mb_manager_step(manager, 60 * SECOND);
	mb_manager_stats(manager, &stats);
	ck_assert_uint_eq(stats.n_moves, 2);
	ck_assert_uint_eq(stats.moved_bytes, 64 * MIB);
	mb_manager_destroy(manager);
}
END_TEST

/* More than can be kept: large ones are, in order. */
START_TEST(test_ranges)
{
	struct mb_verdict *range = calloc(MB_MANAGER_RANGES, sizeof(*range));
	unsigned n, large = 0;

	make();
	fake.n = 3000;
	for (unsigned i = 0; i < fake.n; i++)
		fake.extent[i] = (struct mb_extent){.offset = i * 64 * MIB,
			.len_bytes = (i % 10 ? 2 : 64) * MIB,
			.confidence = 1,
			.huge = true,
			.node_share = 1};
	mb_manager_step(manager, SECOND);
	n = mb_manager_ranges(manager, range, MB_MANAGER_RANGES);
	for (unsigned i = 0; i < n; i++) {
		large += range[i].len_bytes >= 64 * MIB;
		ck_assert_int_eq(range[i].why, MB_WHY_COLD);
		ck_assert(!i || range[i].offset > range[i - 1].offset);
	}
	ck_assert_uint_eq(large, 300);
	fake.n = 1;
	mb_manager_step(manager, 2 * SECOND);
	ck_assert_uint_eq(mb_manager_ranges(manager, range, MB_MANAGER_RANGES), 1);
	mb_manager_destroy(manager);
	free(range);
}
END_TEST

/* A huge page of which every third page has another user than the rest: one call, and one decision. */
START_TEST(test_pieces)
{
	const uint64_t page = MB_HEAT_PAGE_BYTES;
	struct mb_decision d[2];

	make();
	fake.n = MB_HEAT_BLOCK_PAGES + 1;
	for (unsigned i = 0; i < fake.n; i++) {
		fake.extent[i] = (struct mb_extent){.offset = 64 * MIB + i * page,
			.len_bytes = page,
			.confidence = 1,
			.huge = true,
			.node_share = 1};
		fake.extent[i].view[i % 3 == 1].write = 100;
	}
	/* In small pages, alone in its block. */
	fake.extent[fake.n - 1].huge = false;
	fake.extent[fake.n - 1].view[0].write = 0;
	fake.extent[fake.n - 1].view[1].write = 1000;
	mb_manager_step(manager, SECOND);
	ck_assert_uint_eq(fake.n_moves, 2);
	ck_assert_uint_eq(mb_manager_decisions(manager, d, 2), 2);
	ck_assert_uint_eq(d[0].offset, 66 * MIB);
	ck_assert_uint_eq(d[0].n_pieces, 1);
	ck_assert_uint_eq(d[1].offset, 64 * MIB + page);
	ck_assert_uint_eq(d[1].n_pieces, 171);
	ck_assert_uint_eq(d[1].len_bytes, 171 * page);
	ck_assert_int_eq(d[1].from, 0);
	ck_assert_int_eq(d[1].to, 1);
	ck_assert(fake.last.split && !fake.last.huge);
	ck_assert_uint_eq(fake.last.offset, 64 * MIB + page);
	ck_assert_uint_eq(fake.last.len_bytes, 511 * page);
	for (unsigned i = 0; i < 511; i++)
		ck_assert_uint_eq(fake.pages[i / 64] >> i % 64 & 1, i % 3 == 0);
	mb_manager_destroy(manager);
}
END_TEST

/* However long it runs, what it keeps is bounded, and reaches back to the start. */
START_TEST(test_keeps)
{
	struct mb_manager_sample sample[MB_MANAGER_SAMPLES];
	struct mb_decision d[MB_MANAGER_DECISIONS];
	struct mb_error err;
	unsigned n;

	make();
	for (unsigned i = 1; i <= 1000; i++) {
		fake.extent[1].node = 0;
		mb_manager_step(manager, i * 1000 * SECOND);
	}
	n = mb_manager_samples(manager, sample, MB_MANAGER_SAMPLES);
	ck_assert_uint_ge(n, MB_MANAGER_SAMPLES / 2);
	ck_assert_uint_eq(sample[0].time_ns, 1000 * SECOND);
	ck_assert_uint_ge(sample[n - 1].time_ns, 980 * 1000 * SECOND);
	for (unsigned i = 1; i < n; i++)
		ck_assert_uint_gt(sample[i].time_ns, sample[i - 1].time_ns);
	n = mb_manager_decisions(manager, d, MB_MANAGER_DECISIONS);
	ck_assert_uint_gt(n, 10);
	for (unsigned i = 1; i < n; i++)
		ck_assert_uint_gt(d[i].time_ns, d[i - 1].time_ns);
	ck_assert_uint_eq(mb_manager_decisions(manager, d, 2), 2);
	ck_assert_int_eq(mb_manager_start(manager, &err), 0);
	mb_manager_destroy(manager);
}
END_TEST

/* All of memory, to every node, and nothing that would look like a decision. */
START_TEST(test_storm)
{
	struct mb_manager_stats stats;
	struct mb_decision d;

	storm.bytes = STORM_BYTES;
	make();
	for (unsigned i = 0; i < 5000; i++)
		mb_manager_step(manager, i * SECOND / 100);
	ck_assert_uint_eq(fake.n_moves, 5000);
	mb_manager_stats(manager, &stats);
	for (unsigned node = 0; node < 2; node++) {
		uint64_t bytes = 0;

		for (unsigned i = 0; i < STORM_BYTES / MB_HEAT_PAGE_BYTES; i++) {
			ck_assert_uint_gt(storm.pages[node][i], 0);
			bytes += storm.pages[node][i] * MB_HEAT_PAGE_BYTES;
		}
		ck_assert_uint_eq(stats.node[node].in_bytes, bytes);
	}
	ck_assert_uint_eq(stats.n_moves, 5000);
	ck_assert_uint_eq(stats.moved_bytes, stats.node[0].in_bytes + stats.node[1].in_bytes);
	ck_assert(stats.knows_locality);
	ck_assert_uint_eq(mb_manager_decisions(manager, &d, 1), 0);
	mb_manager_hold(manager);
	mb_manager_step(manager, 60 * SECOND);
	ck_assert_uint_eq(fake.n_moves, 5000);
	mb_manager_destroy(manager);
	storm.bytes = 0;
}
END_TEST

/*
 * Memory is copied, too, for one view, the other and both: in as much time as it is moved, so that
 * what is quick comes often.
 */
START_TEST(test_storm_of_copies)
{
	copies.possible = true;
	storm.bytes = STORM_BYTES;
	storm.move_us = _i ? 5000 : 20;
	storm.copy_us = _i ? 20 : 5000;
	make();
	for (unsigned i = 0; i < 300; i++)
		mb_manager_step(manager, i * SECOND / 100);
	ck_assert_uint_eq(fake.n_moves + copies.n + copies.n_protected, 300);
	ck_assert_uint_gt(_i ? copies.n : fake.n_moves, 150);
	ck_assert(!_i || copies.n_protected > 20);
	ck_assert_uint_gt(_i ? fake.n_moves : copies.n, 1);
	ck_assert_uint_eq(copies.views, 3);
	mb_manager_destroy(manager);
}
END_TEST

/* A guest has as much time for itself as copies take, however slow the host is. */
START_TEST(test_storm_rests)
{
	struct mb_error err;

	copies.possible = true;
	storm.bytes = STORM_BYTES;
	storm.move_us = storm.copy_us = 40000;
	make();
	ck_assert_int_eq(mb_manager_start(manager, &err), 0);
	while (__atomic_load_n(&storm.n_slow, __ATOMIC_RELAXED) < 5)
		usleep(1000);
	mb_manager_destroy(manager);
	ck_assert_uint_eq(storm.n_hasty, 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("manager");
	TCase *cases = tcase_create("manager");

	tcase_add_test(cases, test_moves_what_is_far);
	tcase_add_test(cases, test_costs_are_the_guests);
	tcase_add_test(cases, test_set_view);
	tcase_add_test(cases, test_copies);
	tcase_add_loop_test(cases, test_copies_in_parts, 0, 2);
	tcase_add_test(cases, test_tries);
	tcase_add_test(cases, test_copied_writes_cost);
	tcase_add_loop_test(cases, test_copies_of_both, 0, 2);
	tcase_add_test(cases, test_busy);
	tcase_add_test(cases, test_held);
	tcase_add_test(cases, test_errors);
	tcase_add_test(cases, test_ranges);
	tcase_add_test(cases, test_pieces);
	tcase_add_test(cases, test_keeps);
	tcase_add_test(cases, test_storm);
	tcase_add_loop_test(cases, test_storm_of_copies, 0, 2);
	tcase_add_test(cases, test_storm_rests);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
