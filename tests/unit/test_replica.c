// SPDX-License-Identifier: Apache-2.0
/*
 * Copies of pages on real mappings of a real file in memory. Threads of the test are the vCPUs.
 * tests/unit/test_replica_torture.c has them all at once.
 */
#include "mappings.h"
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mirrorball/clock.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <numaif.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB   (1ull << 20)
#define BYTES (8 * MIB)
#define PAGE  MB_HEAT_PAGE_BYTES
#define BLOCK MB_HEAT_BLOCK_BYTES

static int fd;
static unsigned n_views;
static struct mb_ram_mapping view[3];
static struct mb_replicas *replicas;
static struct mb_replicas_config config;
static struct mb_pagemap *pm;

static uint64_t word(uint64_t at)
{
	return (at + 1) * 0x9e3779b97f4a7c15ull;
}

static uint64_t *word_at(unsigned v, uint64_t at)
{
	return (uint64_t *)(view[v].base + at);
}

/* False: not on this host. */
static bool make(unsigned n)
{
	struct mb_error err;

	n_views = config.n_views = n;
	config.name = "test";
	config.ram_bytes = BYTES;
	if (!config.max_bytes)
		config.max_bytes = UINT64_MAX;
	config.uffd = mb_replicas_open_uffd(true);
	if (config.uffd < 0) {
		skip("a userfaultfd that protects shared memory");
		return false;
	}
	fd = config.ram_fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(fd, 0);
	for (unsigned v = 0; v < n; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &view[v]), 0);
		config.view_base[v] = view[v].base;
		config.view_node[v] = -1;
	}
	for (uint64_t at = 0; at < BYTES; at += 8)
		*word_at(0, at) = word(at);
	ck_assert_int_eq(mb_replicas_create(&config, &replicas, &err), 0);
	return true;
}

static void finish(void)
{
	mb_replicas_destroy(replicas);
	mb_pagemap_close(pm);
	for (unsigned v = 0; v < n_views; v++)
		mb_ram_file_unmap(&view[v], BYTES);
	close(fd);
}

static struct mb_replicas_stats ask(void)
{
	struct mb_replicas_stats s;

	mb_replicas_stats(replicas, &s);
	return s;
}

/* A writer goes on before all is given back. */
static uint64_t bytes_soon(uint64_t bytes)
{
	for (unsigned i = 0; i < 1000 && ask().bytes != bytes; i++)
		usleep(1000);
	return ask().bytes;
}

static struct mb_replicated replicate(uint64_t offset, uint64_t len, unsigned views)
{
	struct mb_replicated d = {0};

	ck_assert_int_eq(mb_replicas_replicate(replicas, offset, len, views, &d), 0);
	ck_assert_uint_eq(d.copied_bytes + d.there_bytes + d.waiting_bytes + d.held_bytes +
				  d.full_bytes + d.failed_bytes,
		len);
	return d;
}

/* Every view shows what was written, but in words that are not as at first. */
static void check_but(uint64_t at, uint64_t value)
{
	unsigned wrong = 0;

	for (unsigned v = 0; v < n_views; v++)
		for (uint64_t i = 0; i < BYTES; i += 8)
			wrong += *word_at(v, i) != (i == at ? value : word(i));
	ck_assert_uint_eq(wrong, 0);
}

static void check(void)
{
	check_but(UINT64_MAX, 0);
}

/* Whether two views show the same page of memory: what cannot be told without privilege, is. */
static bool is_one(uint64_t at)
{
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry[2];

	for (unsigned v = 0; v < 2; v++) {
		off_t index = (off_t)((uintptr_t)word_at(v, at) / PAGE * 8);

		/* The worker may map it anew in between. */
		do {
			*(volatile uint64_t *)word_at(v, at);
			ck_assert_int_eq(pread(map, &entry[v], 8, index), 8);
		} while (!(entry[v] >> 63));
	}
	close(map);
	return (entry[0] << 9) == (entry[1] << 9);
}

/* Lines of /proc/self/maps that are in a view. */
static unsigned n_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long long start;
	char line[512];
	unsigned n = 0;

	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%llx", &start) != 1)
			continue;
		for (unsigned v = 0; v < n_views; v++)
			n += start - (uintptr_t)view[v].base < BYTES;
	}
	fclose(maps);
	return n;
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

/* What is left of what was protected. */
static struct mb_replicated complete(uint64_t offset, uint64_t len)
{
	struct mb_replicated d = {0};

	ck_assert_int_eq(mb_replicas_finish(replicas, offset, len, 2, &d), 0);
	return d;
}

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
	ck_assert_uint_eq(ask().n_faults, 3);
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

/* ---- system calls that fail ---- */

static int fail_after = -1; /* calls; atomic */
static int fail_times;
static unsigned fail_how;

static bool fails(void)
{
	static const int why[] = {ENOMEM, ENOSPC, EFAULT, EBUSY};
	int n = __atomic_sub_fetch(&fail_after, 1, __ATOMIC_RELAXED);

	if (n >= 0 || n < -fail_times)
		return false;
	errno = why[fail_how % (sizeof(why) / sizeof(why[0]))];
	return true;
}

static void *bad_map(void *at, size_t len, int prot, int flags, int file, off_t offset)
{
	return fails() ? MAP_FAILED : mmap(at, len, prot, flags, file, offset);
}

static void *bad_remap(void *at, size_t old_len, size_t len, int flags, void *to)
{
	return fails() ? MAP_FAILED : mremap(at, old_len, len, flags, to);
}

static int bad_control(int file, unsigned long request, void *arg)
{
	return fails() ? -1 : ioctl(file, request, arg);
}

static ssize_t bad_read(int file, void *buf, size_t len, off_t offset)
{
	/* Less than was asked for, as where memory ran out in between. */
	return fails() ? -1 : pread(file, buf, len > PAGE ? len / 2 : len, offset);
}

static const struct mb_replica_calls bad_calls = {.map = bad_map,
	.move_pages = move_pages,
	.unmap = munmap,
	.remap = bad_remap,
	.control = bad_control,
	.read = bad_read};

static void *end_failures(void *arg)
{
	while (ask().n_failures < 3)
		usleep(1000);
	usleep(300000);
	__atomic_store_n(&fail_after, INT_MAX, __ATOMIC_RELAXED);
	return NULL;
}

/* Each call of a replication fails, once or thrice, for whatever reason; then each of a collapse.
 * Then all is well. */
START_TEST(test_failures)
{
	unsigned n = _i % 2 ? 3 : 2, failed = 0;
	bool done = false;

	config.calls = &bad_calls;
	config.backoff_ns = 1000000;
	fail_times = 0;
	if (!make(n))
		return;
	for (int after = 0; !done; after++) {
		uint64_t at = (uint64_t)(after % 64) * 4 * PAGE;
		struct mb_replicated d;

		fail_times = _i < 2 ? 1 : 3;
		fail_how = (unsigned)(after + _i);
		__atomic_store_n(&fail_after, after, __ATOMIC_RELAXED);
		d = replicate(at, 4 * PAGE, n == 2 ? 2 : 6);
		done = fail_after > 0;
		fail_times = 0;
		failed += d.failed_bytes == 4 * PAGE;
		ck_assert_uint_eq(d.failed_bytes + d.copied_bytes, 4 * PAGE);
		ck_assert_uint_eq(ask().bytes, d.copied_bytes * (n - 1));
		check();
		*word_at(0, at) = word(at);
		check();
		mb_replicas_reclaim(replicas, BYTES, ~0u);
	}
	ck_assert_uint_gt(failed, 8);
	failed = 0;
	done = false;
	for (int after = 0; !done; after++) {
		uint64_t at = BLOCK + (uint64_t)(after % 64) * 4 * PAGE;

		ck_assert_uint_eq(replicate(at, 4 * PAGE, n == 2 ? 2 : 6).copied_bytes, 4 * PAGE);
		fail_times = _i < 2 ? 1 : 3;
		fail_how = (unsigned)(after + _i);
		__atomic_store_n(&fail_after, after, __ATOMIC_RELAXED);
		*word_at((unsigned)after % n, at) = 4711 + (uint64_t)after;
		done = fail_after > 0;
		fail_times = 0;
		check_but(at, 4711 + (uint64_t)after);
		*word_at(0, at) = word(at);
		mb_replicas_reclaim(replicas, BYTES, ~0u);
		ck_assert_uint_eq(ask().bytes, 0);
	}
	ck_assert_uint_eq(ask().mappings, 0);
	check();
	finish();
}
END_TEST

/* ---- a writer comes while others are copied ---- */

static bool slow;		   /* atomic */
static unsigned n_reads, reads_before; /* atomic; the latter when the writer was done */

static ssize_t slow_read(int file, void *buf, size_t len, off_t offset)
{
	if (__atomic_load_n(&slow, __ATOMIC_RELAXED)) {
		usleep(20000);
		__atomic_add_fetch(&n_reads, 1, __ATOMIC_RELAXED);
	}
	return pread(file, buf, len, offset);
}

static const struct mb_replica_calls slow_calls = {.map = mmap,
	.move_pages = move_pages,
	.unmap = munmap,
	.remap = bad_remap,
	.control = bad_control,
	.read = slow_read};

static void *write_first(void *arg)
{
	/* The copy that was made first. */
	while (mb_replicas_share(replicas, 0, PAGE, 1) == 0)
		usleep(100);
	if (arg) {
		ck_assert_int_eq(mb_replicas_hold(replicas, 0, PAGE), 0);
		*word_at(0, 0) = 4711;
		mb_replicas_release(replicas, 0, PAGE);
	} else {
		*word_at(0, 0) = 4711;
	}
	__atomic_store_n(
		&reads_before, __atomic_load_n(&n_reads, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
	return NULL;
}

/* It waits for one step, not for all of them. In the second case each step of copying is one that a
 * writer does not stop; in the third a device writes. */
START_TEST(test_writer_comes_first)
{
	const unsigned n = 200;
	struct mb_replicated d = {0};
	pthread_t writer;

	config.calls = &slow_calls;
	config.backoff_ns = 3600000000000;
	if (!make(2))
		return;
	/* Every other page waits, so that each of the others is a step of its own. */
	for (unsigned i = 1; i < n; i += 2) {
		ck_assert_uint_eq(replicate(i * PAGE, PAGE, 2).copied_bytes, PAGE);
		*word_at(0, i * PAGE) = word(i * PAGE);
	}
	if (_i)
		ck_assert_int_eq(mb_replicas_protect(replicas, 0, n * PAGE, &d), 0);
	__atomic_store_n(&slow, true, __ATOMIC_RELAXED);
	ck_assert_int_eq(pthread_create(&writer, NULL, write_first, _i > 1 ? &d : NULL), 0);
	d = _i ? complete(0, n * PAGE) : replicate(0, n * PAGE, 2);
	pthread_join(writer, NULL);
	if (_i < 2)
		ck_assert_uint_eq(d.waiting_bytes, n / 2 * PAGE);
	/* What is held depends on when it came, and on how soon there was a processor for the worker. */
	ck_assert_uint_eq(d.copied_bytes + d.held_bytes + d.waiting_bytes, n * PAGE);
	ck_assert_uint_lt(reads_before, n / 4);
	check_but(0, 4711);
	finish();
}
END_TEST

/* ---- Linux puts a copy on another node ---- */

static int move_error, is_node, n_moved;

static long elsewhere(
	int pid, unsigned long n, void **page, const int *node, int *status, int flags)
{
	if (node && move_error) {
		errno = move_error;
		return -1;
	}
	if (node) {
		n_moved += (int)n;
		is_node = node[0];
	}
	for (unsigned long i = 0; i < n; i++)
		status[i] = is_node;
	return 0;
}

/* It is moved where it is of use, or not made; kept where pages cannot move at all. */
START_TEST(test_elsewhere)
{
	static const int error[] = {0, ENOMEM, EPERM};
	const struct mb_replica_calls calls = {.map = mmap,
		.unmap = munmap,
		.remap = bad_remap,
		.control = bad_control,
		.read = pread,
		.move_pages = elsewhere};
	struct mb_replicated d;

	config.calls = &calls;
	is_node = 1;
	move_error = error[_i];
	if (!make(2))
		return;
	/* Without a node that it should be on it stays where it is. */
	ck_assert_uint_eq(replicate(BLOCK, BLOCK, 2).copied_bytes, BLOCK);
	ck_assert_int_eq(n_moved, 0);
	ck_assert_int_eq(mb_replicas_set_node(replicas, 1, 0), 0);
	d = replicate(0, BLOCK, 2);
	ck_assert_uint_eq(d.copied_bytes, error[_i] == ENOMEM ? 0 : BLOCK);
	ck_assert_uint_eq(d.failed_bytes, error[_i] == ENOMEM ? BLOCK : 0);
	ck_assert_int_eq(n_moved, error[_i] ? 0 : BLOCK / PAGE);
	ck_assert_uint_eq(ask().bytes, d.copied_bytes + BLOCK);
	check();
	finish();
}
END_TEST

/* No more than there are. */
START_TEST(test_no_more)
{
	if (!make(2))
		return;
	ck_assert_uint_eq(replicate(0, BLOCK, 2).copied_bytes, BLOCK);
	mb_replicas_no_more(replicas);
	ck_assert_uint_eq(ask().max_bytes, BLOCK);
	ck_assert_uint_eq(replicate(BLOCK, BLOCK, 2).full_bytes, BLOCK);
	mb_replicas_reclaim(replicas, BYTES, ~0u);
	ck_assert_uint_eq(replicate(BLOCK, BLOCK, 2).copied_bytes, BLOCK);
	check();
	finish();
}
END_TEST

/* These views have copies of a block, and then nobody gets a mapping. NULL: not on this host. */
static char *make_without_mappings(unsigned views, uint64_t *len)
{
	char *taken;

	if (!make(2))
		return NULL;
	replicate(0, BLOCK, views);
	taken = use_up_mappings(len);
	if (!taken) {
		finish();
		skip("vm.max_map_count is too high to be reached");
	}
	return taken;
}

/* Others have taken all: those in store do for a collapse, and nothing more is copied. */
START_TEST(test_no_mappings_left)
{
	uint64_t len;
	char *taken = make_without_mappings(2, &len);

	if (!taken)
		return;
	*word_at(0, 100 * PAGE) = word(100 * PAGE);
	*word_at(1, 200 * PAGE) = word(200 * PAGE);
	ck_assert_uint_gt(ask().n_failures, 0);
	check();
	/* It may have room in the store again, or not. */
	replicate(BLOCK, BLOCK, 2);
	check();
	munmap(taken, len);
	mb_replicas_reclaim(replicas, BYTES, ~0u);
	ck_assert_uint_eq(replicate(BLOCK, BLOCK, 2).copied_bytes, BLOCK);
	check();
	finish();
}
END_TEST

/* The same where both views have a copy, of which one is withdrawn first. _i: by a write, by who
 * holds it, by who wants memory. */
START_TEST(test_no_mappings_left_of_two)
{
	uint64_t len;
	char *taken = make_without_mappings(3, &len);

	if (!taken)
		return;
	if (_i == 0) {
		*word_at(0, 100 * PAGE) = word(100 * PAGE);
	} else if (_i == 1) {
		ck_assert_int_eq(mb_replicas_hold(replicas, 100 * PAGE, PAGE), 0);
		mb_replicas_release(replicas, 100 * PAGE, PAGE);
	} else {
		mb_replicas_reclaim(replicas, BYTES, ~0u);
	}
	ck_assert_uint_gt(ask().n_failures, 0);
	ck_assert(is_one(100 * PAGE));
	check();
	munmap(taken, len);
	finish();
}
END_TEST

/* Nothing can be mapped for a while. _i: who holds a page waits, or who writes it; nobody spins. */
START_TEST(test_no_memory_for_a_while)
{
	const uint64_t at = 100 * PAGE;
	pthread_t ends;

	config.calls = &bad_calls;
	if (!make(2))
		return;
	ck_assert_uint_eq(replicate(0, BLOCK, 3).copied_bytes, BLOCK);
	fail_how = 0;
	fail_times = INT_MAX / 2;
	__atomic_store_n(&fail_after, 0, __ATOMIC_RELAXED);
	ck_assert_int_eq(pthread_create(&ends, NULL, end_failures, NULL), 0);
	if (_i) {
		*word_at(0, at) = word(at);
	} else {
		ck_assert_int_eq(mb_replicas_hold(replicas, at, PAGE), 0);
		mb_replicas_release(replicas, at, PAGE);
	}
	pthread_join(ends, NULL);
	ck_assert_uint_le(ask().n_failures, 1000);
	ck_assert(is_one(at));
	check();
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
	tcase_add_loop_test(all, test_failures, 0, 4);
	tcase_add_loop_test(all, test_writer_comes_first, 0, 3);
	tcase_add_loop_test(all, test_elsewhere, 0, 3);
	tcase_add_test(all, test_no_more);
	tcase_add_test(all, test_no_mappings_left);
	tcase_add_loop_test(all, test_no_mappings_left_of_two, 0, 3);
	tcase_add_loop_test(all, test_no_memory_for_a_while, 0, 2);
	tcase_set_timeout(all, 60);
	suite_add_tcase(suite, all);
	return suite;
}

int main(void)
{
	return run_suite(make_suite());
}
