// SPDX-License-Identifier: Apache-2.0
/*
 * Pages of zeroes that are given back. tests/unit/test_replica_torture.c does it while they are
 * written.
 */
#include "replica_case.h"
#include "replica_fails.h"

#include <limits.h>
#include <numaif.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

static uint64_t home_bytes(void)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static struct mb_punched punch(uint64_t offset, uint64_t len)
{
	struct mb_punched d = {0};

	ck_assert_int_eq(mb_replicas_punch(replicas, offset, len, &d), 0);
	ck_assert_uint_eq(d.punched_bytes + d.hole_bytes + d.away_bytes + d.waiting_bytes +
				  d.held_bytes + d.differs_bytes + d.failed_bytes,
		len);
	return d;
}

static void clear(uint64_t offset, uint64_t len)
{
	memset(view[0].base + offset, 0, len);
}

static void restore(uint64_t offset, uint64_t len)
{
	for (uint64_t at = offset; at < offset + len; at += 8)
		*word_at(n_views - 1, at) = word(at);
}

/* Of any size, with any number of views; then writes through one or the other. */
START_TEST(test_punches)
{
	static const struct {
		uint64_t offset, len;
	} range[] = {
		{5 * PAGE, PAGE}, {BLOCK, BLOCK}, {BLOCK - 3 * PAGE, BLOCK + 9 * PAGE}, {0, BYTES}};
	const uint64_t offset = range[_i % 4].offset, len = range[_i % 4].len;
	const unsigned n = 1 + (unsigned)_i / 4;

	if (!make(n))
		return;
	clear(offset, len);
	for (unsigned writer = 0; writer < n; writer++) {
		struct mb_punched d = punch(0, BYTES);

		ck_assert_uint_eq(d.punched_bytes, len);
		ck_assert_uint_eq(d.differs_bytes, BYTES - len);
		ck_assert_uint_eq(home_bytes(), BYTES - len);
		ck_assert_uint_eq(ask().mappings, 0);
		ck_assert_uint_eq(punch(offset, len).hole_bytes, len);
		*word_at(writer, offset + len - 8) = 4711;
		for (unsigned v = 0; v < n; v++) {
			ck_assert_uint_eq(*word_at(v, offset + len - 8), 4711);
			ck_assert_uint_eq(*word_at(v, offset + len - 16), 0);
		}
		ck_assert_uint_eq(*(uint64_t *)(own.base + offset + len - 8), 4711);
		/* A huge page, maybe. */
		ck_assert_uint_ge(home_bytes(), BYTES - len + PAGE);
		*word_at(n - 1 - writer, offset + len - 8) = 0;
		clear(offset, len);
	}
	restore(offset, len);
	check();
	finish();
}
END_TEST

/* Only what is all zero; what has copies or is held stays. */
START_TEST(test_others_stay)
{
	struct mb_punched d;

	config.backoff_ns = 1000000;
	if (!make(2))
		return;
	clear(0, 32 * PAGE);
	*word_at(0, 3 * PAGE - 8) = 1;
	*word_at(1, 5 * PAGE) = 2;
	ck_assert_uint_eq(replicate(8 * PAGE, 2 * PAGE, 2).copied_bytes, 2 * PAGE);
	d = punch(0, 16 * PAGE);
	ck_assert_uint_eq(d.differs_bytes, 2 * PAGE);
	ck_assert_uint_eq(d.away_bytes, 2 * PAGE);
	ck_assert_uint_eq(d.punched_bytes, 12 * PAGE);
	ck_assert_uint_eq(*word_at(1, 3 * PAGE - 8), 1);
	ck_assert_uint_eq(*word_at(0, 5 * PAGE), 2);
	ck_assert_uint_eq(ask().bytes, 2 * PAGE);
	ck_assert_int_eq(mb_replicas_hold(replicas, 20 * PAGE, PAGE), 0);
	ck_assert_uint_eq(punch(16 * PAGE, 8 * PAGE).held_bytes, 8 * PAGE);
	*(uint64_t *)(own.base + 20 * PAGE) = 3;
	mb_replicas_release(replicas, 20 * PAGE, PAGE);
	ck_assert_uint_eq(punch(16 * PAGE, 8 * PAGE).punched_bytes, 7 * PAGE);
	ck_assert_uint_eq(*word_at(1, 20 * PAGE), 3);
	ck_assert_int_eq(mb_replicas_punch(replicas, 8, PAGE, &d), -EINVAL);
	ck_assert_int_eq(mb_replicas_punch(replicas, BYTES, PAGE, &d), -EINVAL);
	restore(0, 32 * PAGE);
	check();
	finish();
}
END_TEST

/*
 * The kernel has the pages, and reads them when it likes to: what the guest writes there meanwhile
 * is what it reads, for it is the same page still.
 */
START_TEST(test_pinned)
{
	struct iovec iov = {.iov_len = 8 * PAGE};
	uint64_t got[PAGE / 8];
	int pipe_fd[2];

	if (!make(1 + (unsigned)_i))
		return;
	clear(0, BLOCK);
	iov.iov_base = own.base + 4 * PAGE;
	ck_assert_int_eq(pipe(pipe_fd), 0);
	mb_replicas_pin(replicas, 4 * PAGE, 8 * PAGE);
	ck_assert_int_eq(vmsplice(pipe_fd[1], &iov, 1, 0), (int)(8 * PAGE));
	ck_assert_uint_eq(punch(0, BLOCK).held_bytes, BLOCK);
	for (unsigned i = 0; i < 8; i++)
		*word_at(0, (4 + i) * PAGE) = 4711 + i;
	for (unsigned i = 0; i < 8; i++) {
		ck_assert_int_eq(read(pipe_fd[0], got, PAGE), (int)PAGE);
		ck_assert_uint_eq(got[0], 4711 + i);
	}
	mb_replicas_unpin(replicas, 4 * PAGE, 8 * PAGE);
	ck_assert_uint_eq(punch(0, BLOCK).punched_bytes, BLOCK - 8 * PAGE);
	restore(0, BLOCK);
	check();
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	finish();
}
END_TEST

/* ---- system calls that fail ---- */

static const struct mb_replica_calls bad_calls = {.map = bad_map,
	.move_pages = move_pages,
	.unmap = munmap,
	.remap = bad_remap,
	.control = bad_control,
	.read = pread,
	.write = pwrite};

/* Each call fails, once or thrice: it is punched or not, and every view shows what is written. */
START_TEST(test_failures)
{
	const uint64_t at = 4 * PAGE, len = 4 * PAGE;
	unsigned failed = 0;
	bool done = false;

	config.calls = &bad_calls;
	config.backoff_ns = 1;
	if (!make(1 + (unsigned)_i % 3))
		return;
	for (int after = 0; !done; after++) {
		struct mb_punched d;

		clear(at, len);
		__atomic_store_n(&fail_times, _i < 3 ? 1 : 3, __ATOMIC_RELAXED);
		__atomic_store_n(&fail_after, after, __ATOMIC_RELAXED);
		d = punch(at, len);
		done = fail_after > 0;
		__atomic_store_n(&fail_after, INT_MAX, __ATOMIC_RELAXED);
		failed += d.failed_bytes > 0;
		ck_assert_uint_eq(d.failed_bytes + d.punched_bytes, len);
		restore(at, len);
		check();
		ck_assert_int_eq(mb_replicas_collapse(replicas, 0, BYTES), 0);
		ck_assert_uint_eq(ask().mappings, 0);
		check();
	}
	ck_assert_uint_gt(failed, 1);
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("replica_punch");
	TCase *all = tcase_create("all");

	tcase_set_timeout(all, 60);
	tcase_add_loop_test(all, test_punches, 0, 12);
	tcase_add_test(all, test_others_stay);
	tcase_add_loop_test(all, test_pinned, 0, 2);
	tcase_add_loop_test(all, test_failures, 0, 6);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
