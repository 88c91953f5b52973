// SPDX-License-Identifier: Apache-2.0
/*
 * Pages that are merged with those of a file. tests/unit/test_replica_torture.c does it while they are
 * written.
 */
#include "replica_case.h"
#include "replica_fails.h"

#include <limits.h>
#include <numaif.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define SKIP (3 * PAGE) /* in the file, before what guest memory begins with */

static int file = -1;
static struct mb_replicas_source source[3];

/* All of guest memory is in it. */
static void make_source(int seals)
{
	static char page[PAGE];

	file = memfd_create("source", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ck_assert_int_eq(ftruncate(file, (off_t)(SKIP + BYTES)), 0);
	for (uint64_t at = 0; at < BYTES; at += PAGE) {
		for (uint64_t i = 0; i < PAGE; i += 8)
			*(uint64_t *)(page + i) = word(at + i);
		ck_assert_int_eq(pwrite(file, page, PAGE, (off_t)(SKIP + at)), (ssize_t)PAGE);
	}
	ck_assert_int_eq(fcntl(file, F_ADD_SEALS, seals), 0);
}

static void check_source(void)
{
	uint64_t *words = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, file, (off_t)SKIP);
	unsigned wrong = 0;

	for (uint64_t i = 0; i < BYTES; i += 8)
		wrong += words[i / 8] != word(i);
	ck_assert_uint_eq(wrong, 0);
	munmap(words, BYTES);
}

static bool in_runs; /* of what is mapped once for all of them */

static int merge_in_runs(uint64_t offset, uint64_t len, struct mb_merged *d)
{
	const uint64_t half = len / PAGE / 2 * PAGE;
	struct mb_merging *merging;
	int rc = mb_replicas_merge_begin(replicas, source, len, &merging);

	if (rc == -ENOMEM)
		d->failed_bytes += len;
	if (rc)
		return rc == -ENOMEM ? 0 : rc;
	rc = half ? mb_replicas_merge_run(merging, offset, 0, half, d) : 0;
	if (!rc)
		rc = mb_replicas_merge_run(merging, offset + half, half, len - half, d);
	mb_replicas_merge_end(merging);
	return rc;
}

static struct mb_merged merge(uint64_t offset, uint64_t len)
{
	struct mb_merged d = {0};

	for (unsigned v = 0; v < 3; v++)
		source[v] = (struct mb_replicas_source){.fd = file, .offset = SKIP + offset};
	ck_assert_int_eq(in_runs ? merge_in_runs(offset, len, &d)
				 : mb_replicas_merge(replicas, offset, len, source, &d),
		0);
	ck_assert_uint_eq(d.merged_bytes + d.there_bytes + d.waiting_bytes + d.held_bytes +
				  d.differs_bytes + d.full_bytes + d.failed_bytes,
		len);
	return d;
}

/* That home has memory for. */
static uint64_t home_bytes(void)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static bool make_merged(unsigned n)
{
	if (!make(n))
		return false;
	make_source(F_SEAL_SHRINK | F_SEAL_WRITE);
	return true;
}

static void finish_merged(void)
{
	in_runs = false;
	check_source();
	finish();
	close(file);
}

/* Of any size, with any number of views; then a write through one or the other. */
START_TEST(test_merges)
{
	static const struct {
		uint64_t offset, len;
	} range[] = {
		{5 * PAGE, PAGE}, {BLOCK, BLOCK}, {BLOCK - 3 * PAGE, BLOCK + 9 * PAGE}, {0, BYTES}};
	const uint64_t offset = range[_i % 4].offset, len = range[_i % 4].len, at = offset + len - 8;
	const unsigned n = 1 + (unsigned)_i / 4 % 3;

	in_runs = _i >= 12;
	config.backoff_ns = 1000000;
	if (!make_merged(n))
		return;
	for (unsigned writer = 0; writer < n; writer++) {
		ck_assert_uint_eq(merge(offset, len).merged_bytes, len);
		ck_assert_uint_eq(ask().merged_bytes, len);
		ck_assert_uint_eq(ask().bytes, 0);
		ck_assert_uint_eq(home_bytes(), BYTES - len);
		check();
		for (uint64_t i = 0; i < BYTES; i += PAGE)
			ck_assert_int_eq(mb_replicas_is_merged(replicas, i, PAGE), i - offset < len);
		ck_assert(mb_replicas_share(replicas, offset, len, writer) == 1);
		/* Reads took none. */
		ck_assert_uint_eq(home_bytes(), BYTES - len);
		*word_at(writer, at) = 4711;
		check_but(at, 4711);
		ck_assert_uint_eq(ask().merged_bytes, len - PAGE);
		ck_assert_uint_eq(home_bytes(), BYTES - len + PAGE);
		ck_assert(!mb_replicas_is_merged(replicas, at / PAGE * PAGE, PAGE));
		check_source();
		*word_at(writer, at) = word(at);
		ck_assert_int_eq(mb_replicas_collapse(replicas, 0, BYTES), 0);
		ck_assert_uint_eq(ask().merged_bytes, 0);
		ck_assert_uint_eq(home_bytes(), BYTES);
		ck_assert_uint_eq(ask().mappings, 0);
		check();
		usleep(10000); /* it backs off */
	}
	finish_merged();
}
END_TEST

/* In any order, and the same pages of the file in several places. */
START_TEST(test_runs)
{
	static const struct {
		uint64_t to, at, n;
	} run[] = {{40, 8, 4}, {48, 16, 8}, {60, 24, 1}, {61, 25, 3}, {70, 12, 4}, {80, 8, 4}, {90, 30, 2}};
	struct mb_merging *merging;
	struct mb_merged d = {0};
	unsigned wrong = 0;

	if (!make_merged(1 + (unsigned)_i))
		return;
	for (unsigned i = 0; i < sizeof(run) / sizeof(run[0]); i++)
		for (uint64_t k = 0; k < run[i].n * PAGE; k += 8)
			*word_at(0, run[i].to * PAGE + k) = word(run[i].at * PAGE + k);
	for (unsigned v = 0; v < 3; v++)
		source[v] = (struct mb_replicas_source){.fd = file, .offset = SKIP + 8 * PAGE};
	ck_assert_int_eq(mb_replicas_merge_begin(replicas, source, 24 * PAGE, &merging), 0);
	for (unsigned i = 0; i < sizeof(run) / sizeof(run[0]); i++)
		ck_assert_int_eq(mb_replicas_merge_run(merging, run[i].to * PAGE, (run[i].at - 8) * PAGE,
					 run[i].n * PAGE, &d),
			0);
	ck_assert_uint_eq(d.merged_bytes, 26 * PAGE);
	ck_assert_int_eq(mb_replicas_merge_run(merging, 0, 23 * PAGE, 2 * PAGE, &d), -EINVAL);
	ck_assert_int_eq(mb_replicas_merge_run(merging, 8, 0, PAGE, &d), -EINVAL);
	ck_assert_int_eq(mb_replicas_merge_run(merging, BYTES, 0, PAGE, &d), -EINVAL);
	mb_replicas_merge_end(merging);
	mb_replicas_merge_end(NULL);
	ck_assert_uint_eq(ask().merged_bytes, 26 * PAGE);
	ck_assert_uint_eq(home_bytes(), BYTES - 26 * PAGE);
	for (unsigned i = 0; i < sizeof(run) / sizeof(run[0]); i++)
		for (unsigned v = 0; v < n_views; v++)
			for (uint64_t k = 0; k < run[i].n * PAGE; k += 8)
				wrong += *word_at(v, run[i].to * PAGE + k) != word(run[i].at * PAGE + k);
	ck_assert_uint_eq(wrong, 0);
	/* Each is its own: what is written is in one place, and all of it is trapped. */
	for (unsigned i = 0; i < sizeof(run) / sizeof(run[0]); i++)
		for (uint64_t k = 0; k < run[i].n * PAGE; k += 8)
			*word_at(n_views - 1, run[i].to * PAGE + k) = word(run[i].to * PAGE + k);
	ck_assert_uint_eq(ask().merged_bytes, 0);
	check();
	ck_assert_int_eq(mb_replicas_merge_begin(replicas, source, BYTES, &merging), -EPERM);
	ck_assert_int_eq(mb_replicas_merge_begin(replicas, source, 8, &merging), -EINVAL);
	finish_merged();
}
END_TEST

/* Only what is equal, page by page. */
START_TEST(test_differs)
{
	struct mb_merged d;

	if (!make_merged(2))
		return;
	*word_at(0, 7 * PAGE + 8) = 1;
	*word_at(1, 9 * PAGE - 8) = 2;
	d = merge(0, 16 * PAGE);
	ck_assert_uint_eq(d.differs_bytes, 2 * PAGE);
	ck_assert_uint_eq(d.merged_bytes, 14 * PAGE);
	ck_assert_uint_eq(*word_at(1, 7 * PAGE + 8), 1);
	ck_assert_uint_eq(*word_at(0, 9 * PAGE - 8), 2);
	*word_at(0, 7 * PAGE + 8) = word(7 * PAGE + 8);
	*word_at(0, 9 * PAGE - 8) = word(9 * PAGE - 8);
	check();
	d = merge(0, 16 * PAGE);
	ck_assert_uint_eq(d.there_bytes, 14 * PAGE);
	ck_assert_uint_eq(d.merged_bytes, 2 * PAGE);
	check();
	/* One view's source is not what the other's is. */
	source[0].offset = source[1].offset = SKIP + 20 * PAGE;
	source[1].offset += PAGE;
	d = (struct mb_merged){0};
	ck_assert_int_eq(mb_replicas_merge(replicas, 20 * PAGE, 4 * PAGE, source, &d), 0);
	ck_assert_uint_eq(d.differs_bytes, 4 * PAGE);
	check();
	finish_merged();
}
END_TEST

/* Who writes home himself has it, and nothing is merged meanwhile. */
START_TEST(test_hold)
{
	const uint64_t at = 6 * PAGE + 16;

	if (!make_merged(1 + (unsigned)_i))
		return;
	ck_assert_uint_eq(merge(0, BLOCK).merged_bytes, BLOCK);
	ck_assert_int_eq(mb_replicas_hold(replicas, 5 * PAGE, 2 * PAGE), 0);
	ck_assert_uint_eq(ask().merged_bytes, BLOCK - 2 * PAGE);
	*(uint64_t *)(own.base + at) = 4711;
	check_but(at, 4711);
	ck_assert_uint_eq(merge(0, BLOCK).held_bytes, BLOCK);
	*(uint64_t *)(own.base + at) = word(at);
	mb_replicas_release(replicas, 5 * PAGE, 2 * PAGE);
	ck_assert_uint_eq(merge(0, BLOCK).merged_bytes, 2 * PAGE);
	check();
	finish_merged();
}
END_TEST

/* A file that somebody could change or cut, or that is shorter, is none. */
START_TEST(test_unsealed)
{
	static const int seals[] = {0, F_SEAL_SHRINK, F_SEAL_WRITE, F_SEAL_GROW};
	struct mb_merged d = {0};

	if (!make(1))
		return;
	for (unsigned i = 0; i < sizeof(seals) / sizeof(seals[0]); i++) {
		make_source(seals[i]);
		source[0] = (struct mb_replicas_source){.fd = file, .offset = SKIP};
		ck_assert_int_eq(mb_replicas_merge(replicas, 0, PAGE, source, &d), -EPERM);
		close(file);
	}
	make_source(F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE);
	source[0] = (struct mb_replicas_source){.fd = file, .offset = SKIP};
	ck_assert_int_eq(mb_replicas_merge(replicas, 0, BYTES, source, &d), 0);
	ck_assert_uint_eq(d.merged_bytes, BYTES);
	source[0].offset = SKIP + PAGE;
	ck_assert_int_eq(mb_replicas_merge(replicas, 0, BYTES, source, &d), -EPERM);
	source[0].offset = SKIP + 8;
	ck_assert_int_eq(mb_replicas_merge(replicas, 0, PAGE, source, &d), -EPERM);
	source[0].offset = SKIP;
	ck_assert_int_eq(mb_replicas_merge(replicas, 8, PAGE, source, &d), -EINVAL);
	ck_assert_int_eq(mb_replicas_merge(replicas, BYTES, PAGE, source, &d), -EINVAL);
	source[0].fd = fd; /* no memfd of that kind */
	ck_assert_int_eq(mb_replicas_merge(replicas, 0, PAGE, source, &d), -EPERM);
	make_source(F_SEAL_SHRINK | F_SEAL_WRITE);
	check();
	finish_merged();
}
END_TEST

/* What gives copies back for want of memory leaves what is merged, which takes none. */
START_TEST(test_with_copies)
{
	if (!make_merged(2))
		return;
	ck_assert_uint_eq(replicate(0, 8 * PAGE, 2).copied_bytes, 8 * PAGE);
	ck_assert_uint_eq(merge(0, 16 * PAGE).there_bytes, 8 * PAGE);
	ck_assert_uint_eq(replicate(0, 32 * PAGE, 2).there_bytes, 16 * PAGE);
	ck_assert(mb_replicas_share(replicas, 0, 64 * PAGE, 1) == 0.5f);
	ck_assert(mb_replicas_share(replicas, 0, 64 * PAGE, 0) == 0.125f);
	check();
	ck_assert_uint_eq(mb_replicas_reclaim(replicas, BYTES, ~0u), 24 * PAGE);
	ck_assert_uint_eq(ask().merged_bytes, 8 * PAGE);
	check();
	/* All of it at once, as a write that is not the first does. */
	ck_assert_uint_eq(replicate(BLOCK, 8 * PAGE, 3).copied_bytes, 8 * PAGE);
	ck_assert_uint_eq(merge(BLOCK, BLOCK).merged_bytes, BLOCK - 8 * PAGE);
	ck_assert_int_eq(mb_replicas_collapse(replicas, 0, BYTES), 0);
	ck_assert_uint_eq(ask().bytes + ask().merged_bytes + ask().mappings, 0);
	check();
	finish_merged();
}
END_TEST

/*
 * The kernel has the page, and reads it as a device does: what it reads is what was there, though home
 * gives its memory back meanwhile. Of a huge page a part is given back by zeroing it in place.
 */
START_TEST(test_pinned)
{
	struct iovec iov = {.iov_len = 8 * PAGE};
	int pipe_fd[2];
	uint64_t got[PAGE / 8];
	unsigned wrong = 0;

	if (!make_merged(1 + (unsigned)_i))
		return;
	madvise(own.base, BLOCK, 25); /* MADV_COLLAPSE, Linux 6.1: a wish */
	iov.iov_base = own.base + 4 * PAGE;
	ck_assert_int_eq(pipe(pipe_fd), 0);
	mb_replicas_pin(replicas, 4 * PAGE, 8 * PAGE);
	ck_assert_int_eq(vmsplice(pipe_fd[1], &iov, 1, 0), (int)(8 * PAGE));
	ck_assert_uint_eq(merge(0, BLOCK).held_bytes, BLOCK);
	for (unsigned i = 0; i < 8; i++) {
		ck_assert_int_eq(read(pipe_fd[0], got, PAGE), (int)PAGE);
		for (unsigned k = 0; k < PAGE / 8; k++)
			wrong += got[k] != word((4 + i) * PAGE + k * 8);
	}
	ck_assert_uint_eq(wrong, 0);
	mb_replicas_unpin(replicas, 4 * PAGE, 8 * PAGE);
	ck_assert_uint_eq(merge(0, BLOCK).merged_bytes, BLOCK);
	/* What is merged may be read that way, and become the guest's alone meanwhile. */
	mb_replicas_pin(replicas, 4 * PAGE, 8 * PAGE);
	ck_assert_int_eq(vmsplice(pipe_fd[1], &iov, 1, 0), (int)(8 * PAGE));
	for (unsigned i = 0; i < 8; i++)
		*word_at(0, (4 + i) * PAGE) = word((4 + i) * PAGE);
	for (unsigned i = 0; i < 8; i++) {
		ck_assert_int_eq(read(pipe_fd[0], got, PAGE), (int)PAGE);
		for (unsigned k = 0; k < PAGE / 8; k++)
			wrong += got[k] != word((4 + i) * PAGE + k * 8);
	}
	ck_assert_uint_eq(wrong, 0);
	mb_replicas_unpin(replicas, 4 * PAGE, 8 * PAGE);
	check();
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	finish_merged();
}
END_TEST

/* What the guest has given back stays so. */
START_TEST(test_hole)
{
	if (!make_merged(2))
		return;
	ck_assert_int_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BLOCK, BLOCK), 0);
	ck_assert_uint_eq(home_bytes(), BYTES - BLOCK);
	ck_assert_uint_eq(merge(BLOCK, BLOCK).differs_bytes, BLOCK);
	ck_assert_uint_eq(merge(BLOCK - 8 * PAGE, 16 * PAGE).merged_bytes, 8 * PAGE);
	ck_assert_uint_eq(home_bytes(), BYTES - BLOCK - 8 * PAGE);
	finish_merged();
}
END_TEST

/* However many pages of a block are written, the others stay merged. */
START_TEST(test_one_by_one)
{
	if (!make_merged(1 + (unsigned)_i))
		return;
	ck_assert_uint_eq(merge(0, BLOCK).merged_bytes, BLOCK);
	for (unsigned i = 0; i < 150; i++) {
		*word_at(0, i * 3 * PAGE) = word(i * 3 * PAGE);
		ck_assert_uint_eq(ask().merged_bytes, BLOCK - (i + 1) * PAGE);
	}
	check();
	finish_merged();
}
END_TEST

/* Nobody needs what is there any more: it ends without taking memory. */
START_TEST(test_discard)
{
	if (!make_merged(2))
		return;
	ck_assert_uint_eq(merge(0, BYTES).merged_bytes, BYTES);
	mb_replicas_discard(replicas, true);
	ck_assert_int_eq(mb_replicas_collapse(replicas, 0, BYTES), 0);
	ck_assert_uint_eq(home_bytes(), 0);
	ck_assert_uint_eq(ask().merged_bytes + ask().mappings, 0);
	mb_replicas_discard(replicas, false);
	for (unsigned v = 0; v < 2; v++)
		ck_assert_uint_eq(*word_at(v, 4711 * 8), 0);
	finish_merged();
}
END_TEST

/* Of the views, and of our own. */
static unsigned n_all_maps(void)
{
	return n_maps() + n_maps_in(own.base);
}

/* As many as are counted; not more than may be. */
START_TEST(test_mappings)
{
	unsigned before, n;
	struct mb_merged d;

	config.max_mappings = 300;
	config.backoff_ns = 1000000;
	if (!make_merged(2))
		return;
	before = n_all_maps();
	merge(8 * PAGE, 8 * PAGE);
	ck_assert_uint_eq(ask().mappings, 6);
	ck_assert_uint_eq(n_all_maps(), before + 6);
	/* Side by side in guest memory, and not in the file. */
	*word_at(0, 16 * PAGE) = word(0);
	for (uint64_t i = 8; i < PAGE; i += 8)
		*word_at(0, 16 * PAGE + i) = word(i);
	source[0].offset = source[1].offset = SKIP;
	d = (struct mb_merged){0};
	ck_assert_int_eq(mb_replicas_merge(replicas, 16 * PAGE, PAGE, source, &d), 0);
	ck_assert_uint_eq(d.merged_bytes, PAGE);
	ck_assert_uint_eq(ask().mappings, 9);
	ck_assert_uint_eq(n_all_maps(), before + 9);
	for (uint64_t i = 0; i < PAGE; i += 8)
		*word_at(1, 16 * PAGE + i) = word(16 * PAGE + i);
	check();
	/* In the middle of others, from elsewhere in the file. */
	*word_at(0, 11 * PAGE) = word(0);
	for (uint64_t i = 8; i < PAGE; i += 8)
		*word_at(0, 11 * PAGE + i) = word(i);
	usleep(10000);
	d = (struct mb_merged){0};
	ck_assert_int_eq(mb_replicas_merge(replicas, 11 * PAGE, PAGE, source, &d), 0);
	ck_assert_uint_eq(d.merged_bytes, PAGE);
	ck_assert_uint_eq(ask().mappings, n_all_maps() - before);
	for (uint64_t i = 0; i < PAGE; i += 8)
		*word_at(1, 11 * PAGE + i) = word(11 * PAGE + i);
	check();
	for (n = 0; n < 200; n++) {
		d = merge(BLOCK + 2 * n * PAGE, PAGE);
		if (d.full_bytes)
			break;
	}
	ck_assert_uint_gt(n, 10);
	ck_assert_uint_lt(n, 20);
	ck_assert_uint_eq(ask().mappings, n_all_maps() - before);
	ck_assert_int_eq(mb_replicas_collapse(replicas, 0, BYTES), 0);
	ck_assert_uint_eq(n_all_maps(), before);
	check();
	finish_merged();
}
END_TEST

/* ---- system calls that fail ---- */

static ssize_t bad_write(int to, const void *buf, size_t len, off_t offset)
{
	return fails() ? -1 : pwrite(to, buf, len > PAGE ? len / 2 : len, offset);
}

static const struct mb_replica_calls bad_calls = {.map = bad_map,
	.move_pages = move_pages,
	.unmap = munmap,
	.remap = bad_remap,
	.control = bad_control,
	.read = pread,
	.write = bad_write};

/* Each call of a merge fails, once or thrice, and each of what undoes it: nothing is lost. */
START_TEST(test_failures)
{
	const uint64_t at = 4 * PAGE, len = 4 * PAGE;
	bool done = false;
	unsigned failed = 0;

	in_runs = _i >= 6;
	config.calls = &bad_calls;
	config.backoff_ns = 1;
	if (!make_merged(1 + (unsigned)_i % 3))
		return;
	for (int after = 0; !done; after++) {
		struct mb_merged d;

		__atomic_store_n(&fail_times, _i % 6 < 3 ? 1 : 3, __ATOMIC_RELAXED);
		__atomic_store_n(&fail_after, after, __ATOMIC_RELAXED);
		d = merge(at, len);
		done = fail_after > 0;
		__atomic_store_n(&fail_after, INT_MAX, __ATOMIC_RELAXED);
		failed += d.failed_bytes > 0;
		check();
		*word_at(0, at) = 4711;
		check_but(at, 4711);
		*word_at(0, at) = word(at);
		ck_assert_int_eq(mb_replicas_collapse(replicas, 0, BYTES), 0);
		ck_assert_uint_eq(home_bytes(), BYTES);
		usleep(2000);
	}
	ck_assert_uint_gt(failed, 5);
	done = false;
	for (int after = 0; !done; after++) {
		ck_assert_uint_eq(merge(at, len).merged_bytes, len);
		__atomic_store_n(&fail_after, after, __ATOMIC_RELAXED);
		*word_at(0, at + PAGE) = 4711;
		done = fail_after > 0;
		__atomic_store_n(&fail_after, INT_MAX, __ATOMIC_RELAXED);
		check_but(at + PAGE, 4711);
		*word_at(0, at + PAGE) = word(at + PAGE);
		check();
		ck_assert_int_eq(mb_replicas_collapse(replicas, 0, BYTES), 0);
		ck_assert_uint_eq(ask().merged_bytes + ask().mappings, 0);
		usleep(2000);
	}
	finish_merged();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("replica_merge");
	TCase *all = tcase_create("all");

	tcase_set_timeout(all, 60);
	tcase_add_loop_test(all, test_merges, 0, 24);
	tcase_add_loop_test(all, test_runs, 0, 3);
	tcase_add_test(all, test_differs);
	tcase_add_loop_test(all, test_hold, 0, 3);
	tcase_add_test(all, test_unsealed);
	tcase_add_test(all, test_with_copies);
	tcase_add_loop_test(all, test_pinned, 0, 2);
	tcase_add_loop_test(all, test_one_by_one, 0, 2);
	tcase_add_test(all, test_hole);
	tcase_add_test(all, test_discard);
	tcase_add_test(all, test_mappings);
	tcase_add_loop_test(all, test_failures, 0, 12);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
