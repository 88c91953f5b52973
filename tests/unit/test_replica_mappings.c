// SPDX-License-Identifier: Apache-2.0
/*
 * Copies of much memory, scattered writes, and a kernel that has few mappings to give: no writer
 * waits for one, and copies are given up instead, of what is written.
 */
#include "run.h"

#include <errno.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <numaif.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE	  MB_HEAT_PAGE_BYTES
#define BLOCK	  MB_HEAT_BLOCK_BYTES
#define N_BLOCKS  144u
#define N_READ	  48u /* the first ones; of the others some are written */
#define BYTES	  (N_BLOCKS * BLOCK)
#define MAX	  100u /* so many may be added; the kernel gives four times as many */
#define MOST	  (MAX * 2)
#define MAX_VIEWS 4u
#define N_WRITERS 16u

static struct mb_replicas *replicas;
static struct mb_ram_mapping view[MAX_VIEWS];
static struct mb_replicas_config config;
static unsigned n_refused; /* atomic */
static unsigned n_pages, step;

static struct mb_replicas_stats ask(void)
{
	struct mb_replicas_stats s;

	mb_replicas_stats(replicas, &s);
	return s;
}

static void *map(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
	if (replicas && ask().mappings > 4 * MAX) {
		__atomic_add_fetch(&n_refused, 1, __ATOMIC_RELAXED);
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return mmap(at, len, prot, flags, fd, offset);
}

static void *remap(void *at, size_t old_len, size_t len, int flags, void *to)
{
	return mremap(at, old_len, len, flags, to);
}

static int control(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg);
}

static const struct mb_replica_calls calls = {
	.move_pages = move_pages,
	.map = map, .unmap = munmap, .remap = remap, .control = control, .read = pread};

/* All of it has copies for all views but the first. False: not on this host. */
static bool make(unsigned n_views)
{
	struct mb_replicated done = {0};
	struct mb_error err;

	config = (struct mb_replicas_config){.name = "test",
		.ram_bytes = BYTES,
		.n_views = n_views,
		.max_bytes = UINT64_MAX,
		.max_mappings = MAX,
		.calls = &calls};
	config.uffd = mb_replicas_open_uffd(true);
	if (config.uffd < 0) {
		skip("a userfaultfd that protects shared memory");
		return false;
	}
	config.ram_fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(config.ram_fd, 0);
	for (unsigned v = 0; v < n_views; v++) {
		ck_assert_int_eq(mb_ram_file_map(config.ram_fd, BYTES, &view[v]), 0);
		config.view_base[v] = view[v].base;
		config.view_node[v] = -1;
	}
	/* A hole gets no copies. */
	for (uint64_t at = 0; at < BYTES; at += PAGE)
		*(volatile uint64_t *)(view[0].base + at) = 0;
	ck_assert_int_eq(mb_replicas_create(&config, &replicas, &err), 0);
	ck_assert_int_eq(mb_replicas_replicate(replicas, 0, BYTES, (1u << n_views) - 2, &done), 0);
	ck_assert_uint_eq(done.copied_bytes, BYTES);
	return true;
}

static void finish(void)
{
	ck_assert_uint_eq(__atomic_load_n(&n_refused, __ATOMIC_RELAXED), 0);
	mb_replicas_destroy(replicas);
	for (unsigned v = 0; v < config.n_views; v++)
		mb_ram_file_unmap(&view[v], BYTES);
	close(config.ram_fd);
}

/* What nobody writes near it was not given up. */
static void expect_read_ones(void)
{
	for (unsigned v = 1; v < config.n_views; v++)
		ck_assert(mb_replicas_share(replicas, 0, N_READ * BLOCK, v) > 0.9f);
}

/* Some of a block, apart from each other. */
static uint64_t write_block(unsigned v, uint64_t b)
{
	uint64_t most = 0;

	for (unsigned i = 0; i < n_pages; i++) {
		uint64_t at = b * BLOCK + (3 + 5 * i) * PAGE, mappings;

		*(volatile uint64_t *)(view[v].base + at) = at;
		mappings = ask().mappings;
		most = mappings > most ? mappings : most;
		for (unsigned o = 0; o < config.n_views; o++)
			if (*(volatile uint64_t *)(view[o].base + at) != at)
				abort();
	}
	return most;
}

/* Pages of a block that are written, and of how many blocks one is. */
static const struct {
	unsigned n_pages, step;
} cases[] = {{1, 2}, {2, 2}, {4, 2}, {60, 2}, {1, 3}, {1, 5}, {30, 4}};
#define N_CASES (int)(sizeof(cases) / sizeof(cases[0]))

START_TEST(test_scattered_writes)
{
	uint64_t most = 0;

	n_pages = cases[_i].n_pages;
	step = cases[_i].step;
	if (!make(2))
		return;
	for (uint64_t b = N_READ; b < N_BLOCKS; b += step) {
		uint64_t n = write_block(1, b);

		most = n > most ? n : most;
	}
	printf("%u pages of a block: %lu mappings at most\n", n_pages, most);
	ck_assert_uint_ge(most, step == 2 ? MAX / 2 : 1);
	ck_assert_uint_le(most, MOST);
	expect_read_ones();
	finish();
}
END_TEST

static void *writer(void *arg)
{
	const uint64_t k = (uintptr_t)arg;
	uint64_t most = 0;

	for (uint64_t b = N_READ + step * k; b < N_BLOCKS; b += step * N_WRITERS) {
		uint64_t n = write_block((unsigned)k % config.n_views, b);

		most = n > most ? n : most;
	}
	return (void *)most;
}

/* More than the worker can help at once, and with more views all need it. */
START_TEST(test_many_writers)
{
	pthread_t thread[N_WRITERS];
	uint64_t most = 0;

	n_pages = cases[_i].n_pages;
	step = cases[_i].step;
	if (!make(4))
		return;
	for (uintptr_t i = 0; i < N_WRITERS; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, writer, (void *)i), 0);
	for (unsigned i = 0; i < N_WRITERS; i++) {
		void *n;

		pthread_join(thread[i], &n);
		most = (uintptr_t)n > most ? (uintptr_t)n : most;
	}
	printf("%u pages of a block, 16 writers: %lu mappings at most\n", n_pages, most);
	ck_assert_uint_le(most, MOST);
	expect_read_ones();
	finish();
}
END_TEST

/* A device that writes single pages leaves no more of them behind than vCPUs. */
START_TEST(test_holds)
{
	if (!make(2))
		return;
	for (uint64_t at = N_READ * BLOCK; at < BYTES; at += 16 * PAGE) {
		ck_assert_int_eq(mb_replicas_hold(replicas, at, PAGE), 0);
		mb_replicas_release(replicas, at, PAGE);
		ck_assert_uint_le(ask().mappings, MOST);
	}
	expect_read_ones();
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("replica_mappings");
	TCase *all = tcase_create("replica_mappings");

	tcase_add_loop_test(all, test_scattered_writes, 0, N_CASES);
	tcase_add_loop_test(all, test_many_writers, 0, N_CASES);
	tcase_add_test(all, test_holds);
	tcase_set_timeout(all, 60);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
