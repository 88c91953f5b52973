// SPDX-License-Identifier: Apache-2.0
/*
 * Copies of pages where a system call fails, takes long, or does something else than was asked for.
 */
#include "replica_case.h"

#include <limits.h>
#include <numaif.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

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
	.read = bad_read,
	.write = pwrite};

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

static bool slow;		       /* atomic */
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
	.read = slow_read,
	.write = pwrite};

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
	/* What is held depends on when it came, and on how soon there was a processor for the
	 * worker. */
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
	Suite *suite = suite_create("replica calls");
	TCase *all = tcase_create("all");

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
