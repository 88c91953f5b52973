// SPDX-License-Identifier: Apache-2.0
/*
 * Copies of pages on real mappings of a real file in memory. Threads of the test are the vCPUs.
 * tests/unit/test_replica_torture.c has them all at once.
 */
#include "replica_case.h"

#include <limits.h>
#include <mirrorball/clock.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* A writer goes on before all is given back. */
static uint64_t bytes_soon(uint64_t bytes)
{
	for (unsigned i = 0; i < 10000 && ask().bytes != bytes; i++)
		usleep(1000);
	return ask().bytes;
}

/* And before it is counted. */
static uint64_t faults_soon(uint64_t n)
{
	for (unsigned i = 0; i < 10000 && ask().n_faults < n; i++)
		usleep(1000);
	return ask().n_faults;
}

/* ---- what it is for ---- */

/* Of any size, in any views; then a write through one or the other. */
START_TEST(test_copies)
{
	static const struct {
		uint64_t offset, len;
	} range[] = {
		{5 * PAGE, PAGE}, {BLOCK, BLOCK}, {BLOCK - 3 * PAGE, BLOCK + 9 * PAGE}, {0, BYTES}};
	const uint64_t offset = range[_i % 4].offset, len = range[_i % 4].len;
	unsigned n = _i < 4 ? 2 : 3;

	if (!make(n))
		return;
	for (unsigned views = 1; views < 1u << n; views++) {
		for (unsigned writer = 0; writer < n; writer++) {
			uint64_t at = offset + len - 8;
			struct mb_replicated d = replicate(offset, len, views);

			ck_assert_uint_eq(d.copied_bytes, len);
			ck_assert_uint_eq(ask().bytes, len * (unsigned)__builtin_popcount(views));
			ck_assert(geteuid() || !(views & 3) || !is_one(offset));
			check();
			for (unsigned v = 0; v < n; v++) {
				ck_assert(mb_replicas_share(replicas, offset, len, v) ==
					  (float)(views >> v & 1));
				ck_assert_uint_eq(ask().view_bytes[v], (views >> v & 1) * len);
			}
			ck_assert_uint_eq(ask().copied_bytes, ask().bytes);
			ck_assert_uint_eq(replicate(offset, len, views).there_bytes, len);
			*word_at(writer, at) = 4711;
			check_but(at, 4711);
			ck_assert(is_one(at));
			*word_at(writer, at) = word(at);
			ck_assert_int_eq(mb_replicas_collapse(replicas, offset, len), 0);
			ck_assert_uint_eq(ask().bytes, 0);
			ck_assert_uint_eq(ask().mappings, 0);
			check();
			config.backoff_ns = 1;
			mb_replicas_destroy(replicas);
			config.uffd = mb_replicas_open_uffd(true);
			ck_assert_int_eq(mb_replicas_create(&config, &replicas, NULL), 0);
		}
	}
	ck_assert_uint_eq(n_maps(), n);
	finish();
}
END_TEST

/* What the kernel says of the policy of the one mapping of copies. */
static void expect_policy(const char *policy)
{
	FILE *maps = fopen("/proc/self/numa_maps", "re");
	unsigned n = 0;
	char line[1024];

	ck_assert_ptr_nonnull(maps);
	while (fgets(line, sizeof(line), maps)) {
		if (!strstr(line, "mirrorball-copies"))
			continue;
		n++;
		ck_assert_msg(strstr(line, policy), "not %s: %s", policy, line);
	}
	fclose(maps);
	ck_assert_uint_eq(n, 1);
}

/* Copies are made where the view is from now on. */
START_TEST(test_set_node)
{
	if (!make(2))
		return;
	replicate(0, BLOCK, 2);
	expect_policy(" default ");
	ck_assert_int_eq(mb_replicas_set_node(replicas, 1, 0), 0);
	mb_replicas_reclaim(replicas, UINT64_MAX, ~0u);
	replicate(BLOCK, BLOCK, 2);
	expect_policy(" prefer:0 ");
	check();
	/* No such node, or view; nothing is old then. */
	while (mb_replicas_reclaim_old(replicas, 1))
		;
	replicate(0, BLOCK, 2);
	ck_assert_int_eq(mb_replicas_set_node(replicas, 1, 1023), -EINVAL);
	ck_assert_int_eq(mb_replicas_set_node(replicas, 2, 0), -EINVAL);
	ck_assert_int_eq(mb_replicas_set_node(replicas, MB_HEAT_VIEWS, 0), -EINVAL);
	ck_assert(!mb_replicas_reclaim_old(replicas, 1));
	ck_assert_uint_eq(ask().bytes, BLOCK);
	finish();
}
END_TEST

/* What was copied before a view's node was set is given back bit by bit, what is copied meanwhile
 * no more than once. */
START_TEST(test_reclaim_old)
{
	const uint64_t n = BYTES / BLOCK;

	if (!make(2))
		return;
	mb_replicas_destroy(replicas);
	config.view_node[1] = 0;
	config.uffd = mb_replicas_open_uffd(true);
	ck_assert_int_eq(mb_replicas_create(&config, &replicas, NULL), 0);
	ck_assert(!mb_replicas_reclaim_old(NULL, 1));
	replicate(0, BYTES, 3);
	/* None is old yet. */
	ck_assert(!mb_replicas_reclaim_old(replicas, UINT_MAX));
	ck_assert_uint_eq(ask().bytes, 2 * BYTES);
	ck_assert_int_eq(mb_replicas_set_node(replicas, 1, 0), 0);
	ck_assert(mb_replicas_reclaim_old(replicas, 0));
	ck_assert_uint_eq(ask().bytes, 2 * BYTES);
	for (uint64_t left = n - 1; left; left--) {
		ck_assert(mb_replicas_reclaim_old(replicas, 1));
		ck_assert_uint_eq(ask().bytes, 2 * BYTES - 2 * BLOCK);
		/* As the manager does, the same again: the bytes there are do not get fewer. */
		replicate(0, BYTES, 3);
		ck_assert_uint_eq(ask().bytes, 2 * BYTES);
	}
	ck_assert(!mb_replicas_reclaim_old(replicas, 2));
	ck_assert_uint_eq(ask().bytes, 2 * BYTES - 2 * BLOCK);
	/* Of views that stayed, too, and of single pages. */
	mb_replicas_reclaim(replicas, UINT64_MAX, ~0u);
	for (uint64_t at = 0; at < BYTES; at += BLOCK)
		replicate(at + 7 * PAGE, PAGE, 1);
	ck_assert_int_eq(mb_replicas_set_node(replicas, 1, 0), 0);
	ck_assert(mb_replicas_reclaim_old(replicas, (unsigned)n - 1));
	ck_assert_uint_eq(ask().bytes, PAGE);
	/* Begun anew. */
	replicate(BYTES - BLOCK, BLOCK, 2);
	ck_assert_int_eq(mb_replicas_set_node(replicas, 0, 0), 0);
	ck_assert(!mb_replicas_reclaim_old(replicas, 3));
	ck_assert_uint_eq(ask().bytes, 0);
	check();
	finish();
}
END_TEST

/* Neighbours are one mapping, and what is said of them is so. */
/* Only of views whose node is short. */
START_TEST(test_reclaim_views)
{
	if (!make(2))
		return;
	ck_assert_uint_eq(replicate(0, BLOCK, 1).copied_bytes, BLOCK);
	ck_assert_uint_eq(replicate(BLOCK, BLOCK, 2).copied_bytes, BLOCK);
	ck_assert_uint_eq(mb_replicas_reclaim(replicas, BYTES, 0), 0);
	ck_assert_uint_eq(mb_replicas_reclaim(replicas, BYTES, 2), BLOCK);
	ck_assert_uint_eq(ask().view_bytes[0], BLOCK);
	ck_assert_uint_eq(ask().view_bytes[1], 0);
	ck_assert_uint_eq(mb_replicas_reclaim(replicas, BYTES, 2), 0);
	ck_assert_uint_eq(mb_replicas_reclaim(replicas, BYTES, ~0u), BLOCK);
	check();
	finish();
}
END_TEST

START_TEST(test_mappings)
{
	const uint64_t from = BLOCK - 8 * PAGE, n = 16;
	unsigned before;

	if (!make(2))
		return;
	before = n_maps();
	for (uint64_t at = BLOCK - 8 * PAGE; at < BLOCK + 8 * PAGE; at += PAGE)
		replicate(at, PAGE, 2);
	ck_assert_uint_eq(ask().mappings, 4);
	ck_assert_uint_eq(n_maps(), before + 4);
	ck_assert(mb_replicas_share(replicas, 0, BLOCK, 1) == 8.0f * PAGE / BLOCK);
	ck_assert(mb_replicas_share(replicas, from, n * PAGE, 1) == 1);
	ck_assert(mb_replicas_share(replicas, from - PAGE, 2 * PAGE, 1) == 0.5f);
	*word_at(0, BLOCK) = word(BLOCK);
	ck_assert_uint_eq(ask().mappings, 8);
	ck_assert_uint_eq(n_maps(), before + 8);
	/* Also of ranges that begin or end in a block, or are none. */
	ck_assert(mb_replicas_share(replicas, from, n * PAGE, 1) == 15.0f / 16);
	ck_assert(mb_replicas_share(replicas, from, n * PAGE, 0) == 0);
	ck_assert(mb_replicas_share(replicas, BLOCK, PAGE, 1) == 0);
	ck_assert(mb_replicas_share(replicas, BLOCK, BLOCK, 1) == 7.0f * PAGE / BLOCK);
	ck_assert(mb_replicas_share(replicas, 0, BYTES, 1) == 15.0f / (BYTES / PAGE));
	ck_assert(mb_replicas_share(replicas, from, BYTES, 1) == 0);
	ck_assert(mb_replicas_share(replicas, from, n * PAGE, 2) == 0);
	ck_assert_uint_eq(ask().view_bytes[1], 15 * PAGE);
	mb_replicas_reclaim(replicas, BYTES, ~0u);
	ck_assert_uint_eq(ask().view_bytes[1], 0);
	ck_assert_uint_eq(ask().mappings, 0);
	ck_assert_uint_eq(n_maps(), before);
	check();
	finish();
}
END_TEST

/* A block that was taken apart stays one mapping when a part of it comes back. */
START_TEST(test_small)
{
	unsigned before;

	if (!make(2))
		return;
	for (unsigned v = 0; v < 2; v++)
		madvise(view[v].base + BLOCK, BLOCK, MADV_NOHUGEPAGE);
	mb_replicas_keep_small(replicas, BLOCK, true);
	before = n_maps();
	for (uint64_t at = BLOCK; at < BLOCK + 8 * PAGE; at += 2 * PAGE) {
		replicate(at, PAGE, 2);
		*word_at(1, at) = word(at);
	}
	ck_assert_uint_eq(ask().mappings, 0);
	/* A writer goes on before its page is mapped as the rest. */
	for (unsigned i = 0; i < 1000 && n_maps() != before; i++)
		usleep(1000);
	ck_assert_uint_eq(n_maps(), before);
	mb_replicas_keep_small(replicas, BLOCK, false);
	for (unsigned v = 0; v < 2; v++)
		madvise(view[v].base + BLOCK, BLOCK, MADV_HUGEPAGE);
	replicate(BLOCK + 64 * PAGE, PAGE, 2);
	mb_replicas_reclaim(replicas, BYTES, ~0u);
	ck_assert_uint_eq(n_maps(), before - 4);
	check();
	finish();
}
END_TEST

/* In view 1, what they have already. */
static void write_pages(unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		*word_at(1, i * PAGE) = word(i * PAGE);
}

/* After some pages of a block were written, all of it is one again; and waits. */
START_TEST(test_backs_off)
{
	struct mb_replicated d;

	config.backoff_ns = 200000000;
	if (!make(2))
		return;
	for (unsigned turn = 0; turn < 3; turn++) {
		uint64_t begin_ns = mb_now_ns();

		ck_assert_uint_eq(replicate(0, BLOCK, 2).copied_bytes, BLOCK);
		*word_at(1, 0) = word(0);
		ck_assert_uint_eq(bytes_soon(BLOCK - PAGE), BLOCK - PAGE);
		do {
			d = replicate(0, PAGE, 2);
			usleep(1000);
		} while (d.waiting_bytes);
		ck_assert_uint_eq(d.copied_bytes, PAGE);
		ck_assert_uint_ge(mb_now_ns() - begin_ns, 200000000ull << turn);
		mb_replicas_collapse(replicas, 0, BLOCK);
	}
	/* Page by page, until there were so many that all of it is one again, and waits. */
	replicate(0, BLOCK, 2);
	write_pages(10, 50);
	ck_assert_uint_eq(bytes_soon(BLOCK - 50 * PAGE), BLOCK - 50 * PAGE);
	check();
	write_pages(60, 30);
	ck_assert_uint_eq(bytes_soon(0), 0);
	ck_assert_uint_eq(replicate(0, BLOCK, 2).waiting_bytes, BLOCK);
	check();
	finish();
}
END_TEST

/* What nobody writes after it was protected gets copies, what somebody writes waits. */
START_TEST(test_protect)
{
	struct mb_replicated d = {0};

	config.backoff_ns = 3600000000000;
	config.max_bytes = BLOCK;
	if (!make(2))
		return;
	ck_assert_int_eq(mb_replicas_protect(replicas, 0, BLOCK, &d), 0);
	ck_assert_uint_eq(d.copied_bytes, BLOCK);
	ck_assert_uint_eq(ask().bytes, 0);
	check();
	write_pages(3, 2);
	*word_at(0, 500 * PAGE) = word(500 * PAGE);
	ck_assert_uint_eq(faults_soon(3), 3);
	/* Again: there. */
	d = (struct mb_replicated){0};
	ck_assert_int_eq(mb_replicas_protect(replicas, 0, BLOCK, &d), 0);
	ck_assert_uint_eq(d.there_bytes, BLOCK - 3 * PAGE);
	ck_assert_uint_eq(d.waiting_bytes, 3 * PAGE);
	d = complete(0, BLOCK);
	ck_assert_uint_eq(d.copied_bytes, BLOCK - 3 * PAGE);
	ck_assert_uint_eq(d.waiting_bytes, 3 * PAGE);
	ck_assert_uint_eq(ask().bytes, BLOCK - 3 * PAGE);
	check();
	/* No room, not even for one view. */
	d = (struct mb_replicated){0};
	ck_assert_int_eq(mb_replicas_protect(replicas, BLOCK, BLOCK, &d), 0);
	ck_assert_uint_eq(d.full_bytes, BLOCK);
	mb_replicas_reclaim(replicas, BYTES, ~0u);
	/* Many writes: all of it waits. */
	ck_assert_int_eq(mb_replicas_protect(replicas, 2 * BLOCK, BLOCK, &d), 0);
	write_pages(2 * BLOCK / PAGE, 100);
	ck_assert_uint_lt(ask().n_faults, 3 + 80);
	ck_assert_uint_eq(complete(2 * BLOCK, BLOCK).waiting_bytes, BLOCK);
	ck_assert_int_eq(mb_replicas_protect(replicas, BYTES, PAGE, &d), -EINVAL);
	ck_assert_int_eq(mb_replicas_protect(replicas, 1, PAGE, &d), -EINVAL);
	ck_assert_int_eq(mb_replicas_finish(replicas, 0, PAGE, 0, &d), -EINVAL);
	check();
	finish();
}
END_TEST

/* However long the wait after a write is: what was written while it was protected gets no copy. */
START_TEST(test_protect_is_seen)
{
	struct mb_replicated d = {0};
	uint64_t faults;

	config.backoff_ns = 1000000;
	if (!make(2))
		return;
	ck_assert_int_eq(mb_replicas_protect(replicas, 0, BLOCK, &d), 0);
	write_pages(3, 10);
	usleep(20000);
	d = complete(0, BLOCK);
	ck_assert_uint_eq(d.copied_bytes, BLOCK - 10 * PAGE);
	ck_assert_uint_eq(d.waiting_bytes, 10 * PAGE);
	faults = ask().n_faults;
	write_pages(3, 10);
	ck_assert_uint_eq(ask().n_faults, faults);
	/* Held, or out of turn: nothing is left protected. */
	ck_assert_int_eq(mb_replicas_protect(replicas, BLOCK, BLOCK, &d), 0);
	ck_assert_int_eq(mb_replicas_hold(replicas, BLOCK, PAGE), 0);
	ck_assert_uint_eq(complete(BLOCK, BLOCK).held_bytes, BLOCK);
	mb_replicas_release(replicas, BLOCK, PAGE);
	write_pages(BLOCK / PAGE, 10);
	ck_assert_uint_eq(ask().n_faults, faults);
	ck_assert_uint_eq(complete(2 * BLOCK, BLOCK).waiting_bytes, BLOCK);
	check();
	finish();
}
END_TEST

/* A part of a block that finds no room must not hide from devices that others have copies. */
START_TEST(test_hold_after_full)
{
	struct mb_replicated d = {0};
	uint64_t at = 110 * PAGE;

	config.max_bytes = 150 * PAGE;
	if (!make(3))
		return;
	ck_assert_int_eq(mb_replicas_protect(replicas, 0, 100 * PAGE, &d), 0);
	d = replicate(0, 120 * PAGE, 6);
	ck_assert_uint_eq(d.full_bytes, 100 * PAGE);
	ck_assert_uint_eq(d.copied_bytes, 20 * PAGE);
	ck_assert_int_eq(mb_replicas_hold(replicas, at, PAGE), 0);
	ck_assert(mb_replicas_share(replicas, at, PAGE, 1) == 0);
	ck_assert_int_eq(pwrite(fd, &(uint64_t){4711}, 8, (off_t)at), 8);
	mb_replicas_release(replicas, at, PAGE);
	check_but(at, 4711);
	ck_assert_int_eq(mb_replicas_collapse(replicas, 0, BLOCK), 0);
	ck_assert_uint_eq(ask().bytes, 0);
	finish();
}
END_TEST

/* Where there are many mappings already, a write leaves no more of them. */
START_TEST(test_writes_end_mappings)
{
	uint64_t most = 0;

	config.max_mappings = 48;
	if (!make(2))
		return;
	replicate(0, BLOCK, 2);
	for (unsigned i = 0; i < 40; i++) {
		write_pages(10 + 2 * i, 1);
		most = ask().mappings > most ? ask().mappings : most;
	}
	ck_assert_uint_eq(bytes_soon(0), 0);
	ck_assert_uint_ge(most, 16);
	ck_assert_uint_le(most, 24 + 4);
	check();
	finish();
}
END_TEST

/* What was huge is so again when all of its block is collapsed, however few pages had copies then.
 */
START_TEST(test_huge_again)
{
	uint64_t before;

	if (!make(2))
		return;
	check();
	before = pmd_mapped();
	replicate(0, BLOCK, 2);
	*word_at(0, 0) = word(0);
	*word_at(1, BLOCK - PAGE) = word(BLOCK - PAGE);
	check();
	ck_assert_uint_le(pmd_mapped(), before);
	if (_i)
		mb_replicas_reclaim(replicas, BYTES, ~0u);
	else
		write_pages(10, 70);
	ck_assert_uint_eq(bytes_soon(0), 0);
	ck_assert_int_eq(mb_replicas_remap(replicas, 0, 0, PAGE), 0); /* after what follows */
	check();
	ck_assert_uint_eq(pmd_mapped(), before);
	finish();
}
END_TEST

START_TEST(test_hold)
{
	if (!make(2))
		return;
	replicate(0, 2 * BLOCK, 2);
	ck_assert_int_eq(mb_replicas_hold(replicas, 3 * PAGE + 5, 10), 0);
	ck_assert(is_one(3 * PAGE));
	ck_assert(geteuid() || !is_one(4 * PAGE));
	ck_assert_uint_eq(replicate(0, 2 * BLOCK, 2).held_bytes, BLOCK);
	ck_assert_int_eq(mb_replicas_hold(replicas, 3 * PAGE, BLOCK), 0);
	mb_replicas_release(replicas, 3 * PAGE, BLOCK);
	ck_assert_uint_eq(replicate(0, 2 * BLOCK, 2).held_bytes, BLOCK);
	mb_replicas_release(replicas, 3 * PAGE + 5, 10);
	ck_assert_uint_eq(replicate(0, 2 * BLOCK, 2).held_bytes, 0);
	ck_assert_int_eq(mb_replicas_hold(replicas, 0, BYTES + 1), -EINVAL);
	ck_assert_int_eq(mb_replicas_hold(NULL, 0, BYTES), 0);
	mb_replicas_release(NULL, 0, BYTES);
	check();
	finish();
}
END_TEST

START_TEST(test_bounds)
{
	struct mb_replicated d;

	config.max_bytes = 3 * PAGE;
	config.max_mappings = 11;
	if (!make(2))
		return;
	d = replicate(0, 2 * PAGE, 3);
	ck_assert_uint_eq(d.full_bytes, 2 * PAGE);
	for (unsigned i = 0; i < 4; i++) {
		d = replicate((2 * i + 1) * PAGE, PAGE, 2);
		ck_assert_uint_eq(d.full_bytes, i < 2 ? 0 : PAGE);
	}
	ck_assert_uint_eq(ask().mappings, 8);
	ck_assert_uint_eq(ask().bytes, 2 * PAGE);
	ck_assert_uint_eq(mb_replicas_reclaim(replicas, PAGE, ~0u), 2 * PAGE);
	check();
	finish();
}
END_TEST

/* ---- the tracker ---- */

static void watch(void *ctx, unsigned v, uint64_t offset, uint64_t len)
{
	ck_assert_int_eq(mb_pagemap_watch(pm, view[v].base + offset, len), 0);
}

struct seen {
	uint64_t mapped, written;
};

static int found(void *ctx, const struct mb_page_run *run)
{
	struct seen *s = ctx;

	s->mapped += run->len;
	s->written += run->written ? run->len : 0;
	return 0;
}

static struct seen look(unsigned v, uint64_t len)
{
	struct seen s = {0};

	ck_assert_int_eq(mb_pagemap_look(pm, view[v].base, len, found, &s), 0);
	return s;
}

/* It takes pages out, protected ones and copies, sees who reads them, and nothing is lost. */
START_TEST(test_tracked)
{
	struct mb_error err;

	config.watch = watch;
	if (!make(2))
		return;
	ck_assert_int_eq(mb_pagemap_open(MB_PAGEMAP_ALL, &pm, &err), 0);
	for (unsigned v = 0; v < 2; v++)
		ck_assert_int_eq(mb_pagemap_watch(pm, view[v].base, BYTES), 0);
	if (mb_pagemap_features(pm) != MB_PAGEMAP_ALL) {
		skip("asynchronous write protection");
		finish();
		return;
	}
	ck_assert_uint_eq(replicate(PAGE, BLOCK, 2).copied_bytes, BLOCK);
	for (unsigned v = 0; v < 2; v++) {
		ck_assert_int_eq(mb_pagemap_zap(pm, view[v].base, 2 * BLOCK), 0);
		ck_assert_uint_eq(look(v, 2 * BLOCK).mapped, 0);
		for (uint64_t at = 0; at < BLOCK; at += 2 * PAGE)
			ck_assert_uint_eq(*word_at(v, at + PAGE), word(at + PAGE));
		ck_assert_uint_eq(look(v, BLOCK).mapped, BLOCK / 2);
		ck_assert_int_eq(mb_pagemap_clean(pm, view[v].base, 2 * BLOCK), 0);
		ck_assert_uint_eq(look(v, BLOCK).written, 0);
		/* Still trapped. */
		*word_at(v, (3 + 2 * v) * PAGE) = word((3 + 2 * v) * PAGE);
		/* It is counted, and watched, after its writer was woken, under the lock. */
		ck_assert_uint_eq(bytes_soon(BLOCK - (v + 1) * PAGE), BLOCK - (v + 1) * PAGE);
		ck_assert_int_eq(mb_replicas_remap(replicas, v, 0, PAGE), 0);
		ck_assert_uint_eq(ask().n_faults, v + 1);
		ck_assert_uint_eq(look(v, BLOCK).written, PAGE);
	}
	ck_assert_int_eq(mb_replicas_remap(replicas, 0, 0, BLOCK), 0);
	ck_assert_uint_eq(ask().bytes, BLOCK - 2 * PAGE);
	mb_replicas_reclaim(replicas, BYTES, ~0u);
	/* All of it is watched again. */
	for (unsigned v = 0; v < 2; v++) {
		check();
		ck_assert_int_eq(mb_pagemap_clean(pm, view[v].base, BYTES), 0);
		*word_at(v, 77 * PAGE) = word(77 * PAGE);
		/* In huge pages, again. */
		ck_assert_uint_ge(look(v, BYTES).written, PAGE);
		ck_assert_uint_le(look(v, BYTES).written, BLOCK);
	}
	ck_assert_uint_eq(n_maps(), 2);
	finish();
}
END_TEST
static Suite *make_suite(void)
{
	Suite *suite = suite_create("replica");
	TCase *all = tcase_create("all");

	tcase_add_loop_test(all, test_copies, 0, 8);
	tcase_add_test(all, test_set_node);
	tcase_add_test(all, test_reclaim_old);
	tcase_add_test(all, test_reclaim_views);
	tcase_add_test(all, test_mappings);
	tcase_add_test(all, test_small);
	tcase_add_test(all, test_backs_off);
	tcase_add_test(all, test_writes_end_mappings);
	tcase_add_test(all, test_protect);
	tcase_add_test(all, test_protect_is_seen);
	tcase_add_test(all, test_hold_after_full);
	tcase_add_loop_test(all, test_huge_again, 0, 2);
	tcase_add_test(all, test_hold);
	tcase_add_test(all, test_bounds);
	tcase_add_test(all, test_tracked);
	tcase_set_timeout(all, 60);
	suite_add_tcase(suite, all);
	return suite;
}

int main(void)
{
	return run_suite(make_suite());
}
