// SPDX-License-Identifier: Apache-2.0
/*
 * Copies of much memory, scattered writes, and a kernel that has few mappings to give: no writer
 * waits for one, and copies are given up instead.
 */
#include "run.h"

#include <errno.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE	 MB_HEAT_PAGE_BYTES
#define BLOCK	 MB_HEAT_BLOCK_BYTES
#define N_BLOCKS 96u
#define BYTES	 (N_BLOCKS * BLOCK)
#define MAX	 100u /* so many may be added; the kernel gives twice as many */

static struct mb_replicas *replicas;
static unsigned n_refused; /* atomic */

static struct mb_replicas_stats ask(void)
{
	struct mb_replicas_stats s;

	mb_replicas_stats(replicas, &s);
	return s;
}

static void *map(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
	if (replicas && ask().mappings > 2 * MAX) {
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

/* Of every second block so many pages are written, apart from each other. */
static const unsigned n_pages[] = {1, 2, 4, 60};

START_TEST(test_scattered_writes)
{
	static const struct mb_replica_calls calls = {
		.map = map, .unmap = munmap, .remap = remap, .control = control, .read = pread};
	struct mb_replicas_config config = {.name = "test",
		.ram_bytes = BYTES,
		.n_views = 2,
		.max_bytes = UINT64_MAX,
		.max_mappings = MAX,
		.calls = &calls};
	struct mb_ram_mapping view[2];
	struct mb_replicated done = {0};
	uint64_t most = 0;
	struct mb_error err;

	config.uffd = mb_replicas_open_uffd(true);
	if (config.uffd < 0) {
		skip("a userfaultfd that protects shared memory");
		return;
	}
	config.ram_fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(config.ram_fd, 0);
	for (unsigned v = 0; v < 2; v++) {
		ck_assert_int_eq(mb_ram_file_map(config.ram_fd, BYTES, &view[v]), 0);
		config.view_base[v] = view[v].base;
		config.view_node[v] = -1;
	}
	ck_assert_int_eq(mb_replicas_create(&config, &replicas, &err), 0);
	ck_assert_int_eq(mb_replicas_replicate(replicas, 0, BYTES, 2, &done), 0);
	ck_assert_uint_eq(done.copied_bytes, BYTES);
	for (uint64_t b = 0; b < N_BLOCKS; b += 2) {
		for (unsigned i = 0; i < n_pages[_i]; i++) {
			uint64_t at = b * BLOCK + (3 + 5 * i) * PAGE;

			*(volatile uint64_t *)(view[1].base + at) = at;
			most = ask().mappings > most ? ask().mappings : most;
			ck_assert_uint_eq(*(volatile uint64_t *)(view[0].base + at), at);
		}
	}
	printf("%u pages of a block: %lu mappings at most\n", n_pages[_i], most);
	ck_assert_uint_eq(__atomic_load_n(&n_refused, __ATOMIC_RELAXED), 0);
	ck_assert_uint_ge(most, MAX / 2);
	ck_assert_uint_le(most, MAX * 3 / 2);
	/* Not all were given up for it. */
	ck_assert_uint_ge(ask().bytes, BYTES / 8);
	mb_replicas_destroy(replicas);
	for (unsigned v = 0; v < 2; v++)
		mb_ram_file_unmap(&view[v], BYTES);
	close(config.ram_fd);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("replica_mappings");
	TCase *cases = tcase_create("replica_mappings");

	tcase_add_loop_test(cases, test_scattered_writes, 0, 4);
	tcase_set_timeout(cases, 60);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
