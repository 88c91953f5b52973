// SPDX-License-Identifier: Apache-2.0
/* Pages of mappings of a real file in memory, on the kernel that runs the test, with and without
 * each of its features. */
#include "run.h"

#include <errno.h>
#include <mirrorball/pagemap.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_PAGES 2048u
#define BYTES	(N_PAGES * MB_PAGE_BYTES)
#define N_VIEWS 2u

static struct mb_pagemap *pm;
static unsigned char *view[N_VIEWS];
static int fd;

/* The features to try: all, no scan, no writes, none. */
static const unsigned wants[] = {MB_PAGEMAP_ALL, MB_PAGEMAP_EXACT | MB_PAGEMAP_WRITES,
	MB_PAGEMAP_SCAN | MB_PAGEMAP_EXACT, MB_PAGEMAP_SCAN, 0};

static void make(unsigned want)
{
	struct mb_error err;

	fd = memfd_create("test", MFD_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, BYTES), 0);
	ck_assert_msg(!mb_pagemap_open(want, &pm, &err), "%s", err.text);
	ck_assert_uint_eq(mb_pagemap_features(pm) & ~want, 0);
	for (unsigned k = 0; k < N_VIEWS; k++) {
		view[k] = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ck_assert_ptr_ne(view[k], MAP_FAILED);
		/* 4 KiB pages, whatever the host's setting */
		madvise(view[k], BYTES, MADV_NOHUGEPAGE);
		ck_assert_int_eq(mb_pagemap_watch(pm, view[k], BYTES), 0);
	}
}

static void finish(void)
{
	for (unsigned k = 0; k < N_VIEWS; k++)
		munmap(view[k], BYTES);
	close(fd);
	mb_pagemap_close(pm);
}

struct seen {
	bool mapped[N_PAGES], written[N_PAGES];
	uint64_t end; /* of the run before */
	unsigned n_runs;
};

static int see(void *ctx, const struct mb_page_run *run)
{
	struct seen *seen = ctx;

	ck_assert_uint_gt(run->len, 0);
	ck_assert_uint_ge(run->offset, seen->end);
	ck_assert_uint_le(run->offset + run->len, BYTES);
	for (uint64_t i = run->offset / MB_PAGE_BYTES; i < (run->offset + run->len) / MB_PAGE_BYTES;
		i++) {
		seen->mapped[i] = true;
		seen->written[i] = run->written;
	}
	seen->end = run->offset + run->len;
	seen->n_runs++;
	return 0;
}

static void look(unsigned k, struct seen *seen)
{
	memset(seen, 0, sizeof(*seen));
	ck_assert_int_eq(mb_pagemap_look(pm, view[k], BYTES, see, seen), 0);
}

static void fill(void)
{
	for (unsigned i = 0; i < N_PAGES; i++)
		memset(view[i % N_VIEWS] + i * MB_PAGE_BYTES, (int)(i % 251 + 1), MB_PAGE_BYTES);
}

static void check_content(void)
{
	for (unsigned i = 0; i < N_PAGES; i++) {
		for (unsigned k = 0; k < N_VIEWS; k++) {
			ck_assert_uint_eq(view[k][i * MB_PAGE_BYTES], i % 251 + 1);
			ck_assert_uint_eq(view[k][(i + 1) * MB_PAGE_BYTES - 1], i % 251 + 1);
		}
	}
}

/* Whoever touches what through which mapping is seen there and nowhere else; nothing is lost. */
START_TEST(test_touched_pages)
{
	static struct seen seen;

	make(wants[_i]);
	fill();
	for (unsigned round = 0; round < 3; round++) {
		volatile unsigned char sink;

		for (unsigned k = 0; k < N_VIEWS; k++)
			ck_assert_int_eq(mb_pagemap_zap(pm, view[k], BYTES), 0);
		for (unsigned k = 0; k < N_VIEWS; k++) {
			look(k, &seen);
			ck_assert_uint_eq(seen.n_runs, 0);
		}
		for (unsigned i = 0; i < N_PAGES; i++) {
			if (i % 7 == round)
				sink = view[0][i * MB_PAGE_BYTES + 5];
			if (i % 5 == round)
				sink = view[1][i * MB_PAGE_BYTES + 9];
		}
		(void)sink;
		for (unsigned k = 0; k < N_VIEWS; k++) {
			look(k, &seen);
			for (unsigned i = 0; i < N_PAGES; i++) {
				bool touched = i % (k ? 5 : 7) == round;

				/* A fault maps the pages around it, too, unless that is off. */
				if (touched || mb_pagemap_features(pm) & MB_PAGEMAP_EXACT)
					ck_assert_msg(seen.mapped[i] == touched, "view %u, page %u",
						k, i);
			}
		}
	}
	check_content();
	finish();
}
END_TEST

START_TEST(test_written_pages)
{
	static struct seen seen;
	volatile unsigned char sink;
	bool told;

	make(wants[_i]);
	told = mb_pagemap_features(pm) & MB_PAGEMAP_WRITES;
	fill();
	for (unsigned k = 0; k < N_VIEWS; k++) {
		for (unsigned i = 0; i < N_PAGES; i++)
			sink = view[k][i * MB_PAGE_BYTES];
		ck_assert_int_eq(mb_pagemap_clean(pm, view[k], BYTES), 0);
	}
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < N_PAGES; i++) {
			if (i % 3 == 0)
				view[1][i * MB_PAGE_BYTES] = (unsigned char)(i % 251 + 1);
			else
				sink = view[0][i * MB_PAGE_BYTES];
		}
		(void)sink;
		for (unsigned k = 0; k < N_VIEWS; k++) {
			look(k, &seen);
			for (unsigned i = 0; i < N_PAGES; i++) {
				ck_assert_msg(seen.mapped[i], "view %u, page %u", k, i);
				ck_assert_msg(seen.written[i] == (!told || (k && i % 3 == 0)),
					"view %u, page %u, round %u", k, i, round);
			}
			ck_assert_int_eq(mb_pagemap_clean(pm, view[k], BYTES), 0);
		}
	}
	check_content();
	finish();
}
END_TEST

/* What is zapped by turns with what is written by another thread's mapping loses nothing: checked
 * in the end. */
START_TEST(test_zap_while_written)
{
	pid_t child;
	int status;

	make(wants[_i]);
	memset(view[0], 0, BYTES);
	child = fork();
	ck_assert_int_ge(child, 0);
	if (!child) {
		/* The file is shared with the parent; each word counts up, and must be what was
		 * left there. */
		for (uint64_t n = 0; n < 200; n++) {
			for (unsigned i = 0; i < N_PAGES; i += 3) {
				uint64_t *word =
					(uint64_t *)(view[n % N_VIEWS] + i * MB_PAGE_BYTES);

				if (*word != n)
					_exit(1);
				*word = n + 1;
			}
			for (unsigned k = 0; k < N_VIEWS; k++)
				madvise(view[k], BYTES, MADV_DONTNEED);
		}
		_exit(0);
	}
	for (unsigned n = 0; n < 200; n++) {
		for (unsigned k = 0; k < N_VIEWS; k++) {
			for (unsigned i = 1; i < N_PAGES; i += 3)
				*(uint64_t *)(view[k] + i * MB_PAGE_BYTES) += 1;
			ck_assert_int_eq(mb_pagemap_clean(pm, view[k], BYTES), 0);
			ck_assert_int_eq(mb_pagemap_zap(pm, view[k], BYTES), 0);
		}
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	for (unsigned i = 0; i < N_PAGES; i++)
		ck_assert_uint_eq(*(uint64_t *)(view[0] + i * MB_PAGE_BYTES), i % 3 == 0   ? 200
									      : i % 3 == 1 ? 400
											   : 0);
	finish();
}
END_TEST

START_TEST(test_only_shared_mappings)
{
	unsigned char *own, *high;
	struct mb_error err;

	ck_assert_msg(!mb_pagemap_open(MB_PAGEMAP_ALL, &pm, &err), "%s", err.text);
	own = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(own, MAP_FAILED);
	memset(own, 42, BYTES);
	ck_assert_int_eq(mb_pagemap_watch(pm, own, BYTES), -EINVAL);
	ck_assert_int_eq(mb_pagemap_zap(pm, own, BYTES), -EINVAL);
	/* Shared but for one page of it, or with a hole */
	fd = memfd_create("test", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(fd, BYTES), 0);
	high = mmap(
		own, BYTES - MB_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	ck_assert_ptr_eq(high, own);
	ck_assert_int_eq(mb_pagemap_watch(pm, own, BYTES), -EINVAL);
	munmap(own + 8 * MB_PAGE_BYTES, MB_PAGE_BYTES);
	ck_assert_int_eq(mb_pagemap_watch(pm, own, 16 * MB_PAGE_BYTES), -EINVAL);
	ck_assert_int_eq(mb_pagemap_watch(pm, own, 8 * MB_PAGE_BYTES), 0);
	ck_assert_int_eq(mb_pagemap_zap(pm, own, 8 * MB_PAGE_BYTES), 0);
	ck_assert_int_eq(mb_pagemap_zap(pm, own, 9 * MB_PAGE_BYTES), -EINVAL);
	ck_assert_int_eq(mb_pagemap_zap(pm, own + BYTES - MB_PAGE_BYTES, MB_PAGE_BYTES), -EINVAL);
	ck_assert_int_eq(mb_pagemap_watch(pm, own + 1, MB_PAGE_BYTES), -EINVAL);
	ck_assert_int_eq(mb_pagemap_watch(pm, own, 0), -EINVAL);
	ck_assert_uint_eq(own[BYTES - 1], 42);
	munmap(own, BYTES);
	close(fd);
	mb_pagemap_close(pm);
}
END_TEST

static int stop_at(void *ctx, const struct mb_page_run *run)
{
	return ++*(int *)ctx == 2 ? 77 : 0;
}

START_TEST(test_stops_when_told)
{
	int n = 0;

	make(wants[_i]);
	for (unsigned i = 0; i < N_PAGES; i += 100)
		view[0][i * MB_PAGE_BYTES] = 1;
	/* With fault-around a file in memory has no neighbours to map: nobody made them. */
	ck_assert_int_eq(mb_pagemap_look(pm, view[0], BYTES, stop_at, &n), 77);
	ck_assert_int_eq(n, 2);
	finish();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pagemap");
	TCase *tc = tcase_create("pagemap");

	tcase_add_loop_test(tc, test_touched_pages, 0, 5);
	tcase_add_loop_test(tc, test_written_pages, 0, 5);
	tcase_add_loop_test(tc, test_zap_while_written, 0, 5);
	tcase_add_test(tc, test_only_shared_mappings);
	tcase_add_loop_test(tc, test_stops_when_told, 0, 5);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
