// SPDX-License-Identifier: Apache-2.0
/*
 * Guest memory that is looked through: what is found, what that costs, and that a guest that writes
 * all the time notices nothing.
 */
#include "run.h"

#include "../../src/content_impl.h"

#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/content.h>
#include <mirrorball/content_hash.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/range.h>
#include <mirrorball/replica.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK	  MB_HEAT_BLOCK_BYTES
#define RAM_BYTES (32ull << 20)
#define N_PAGES	  (RAM_BYTES / PAGE)
#define SETTLE_NS 30000000ull
#define SLACK_NS  30000000ull /* what is done at once, with a sanitizer */

/* ---- the hash ---- */

/* As `openssl mac -macopt size:16 -macopt hexkey:000102030405060708090a0b0c0d0e0f SIPHASH` says. */
START_TEST(test_hash)
{
	const struct mb_content_key key = {{0x0706050403020100ull, 0x0f0e0d0c0b0a0908ull}};
	static uint64_t page[PAGE / 8];
	struct mb_content_hash hash = mb_content_hash(&key, page);
	const struct mb_content_hash bytes = {{0x0706050403020100ull, 0x0f0e0d0c0b0a0908ull}};
	struct mb_content_key one, other;

	/* The same with size:8. */
	ck_assert_uint_eq(mb_content_mix(&key, &bytes), 0x3f2acc7f57c29bdbull);
	ck_assert(mb_is_zero(page, MB_CONTENT_PAGE));
	ck_assert_uint_eq(hash.word[0], 0x08b83775fcbc4126ull);
	ck_assert_uint_eq(hash.word[1], 0x62fb6231d9c346ecull);
	for (unsigned i = 0; i < PAGE / 8; i++)
		page[i] = i * 0x9e3779b97f4a7c15ull;
	hash = mb_content_hash(&key, page);
	ck_assert(!mb_is_zero(page, MB_CONTENT_PAGE));
	ck_assert_uint_eq(hash.word[0], 0x60903587b9818fcdull);
	ck_assert_uint_eq(hash.word[1], 0x07e86b236cbb5abdull);
	ck_assert_int_eq(mb_content_key_make(&one), 0);
	ck_assert_int_eq(mb_content_key_make(&other), 0);
	ck_assert_int_ne(memcmp(&one, &other, sizeof(one)), 0);
	/* The last bit counts. */
	memset(page, 0, PAGE);
	page[PAGE / 8 - 1] = 1ull << 63;
	ck_assert(!mb_is_zero(page, MB_CONTENT_PAGE));
}
END_TEST

/* ---- a machine ---- */

static int fd;
static unsigned n_views;
static struct mb_ram_mapping view[2], own;
static struct mb_replicas *replicas;
static struct mb_content *content;
static struct mb_content_config config;

static bool make(unsigned n)
{
	struct mb_replicas_config r = {
		.name = "content", .ram_bytes = RAM_BYTES, .n_views = n, .backoff_ns = 1000000};
	struct mb_error err;

	n_views = n;
	r.uffd = mb_replicas_open_uffd(true);
	if (r.uffd < 0) {
		skip("a userfaultfd that protects shared memory");
		return false;
	}
	fd = r.ram_fd = mb_ram_file_open(RAM_BYTES);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(mb_ram_file_map(fd, RAM_BYTES, &own), 0);
	r.own_base = own.base;
	for (unsigned v = 0; v < n; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, RAM_BYTES, &view[v]), 0);
		r.view_base[v] = view[v].base;
		r.view_node[v] = -1;
	}
	ck_assert_int_eq(mb_replicas_create(&r, &replicas, &err), 0);
	config = (struct mb_content_config){
		.replicas = replicas,
		.ram_fd = fd,
		.own_base = own.base,
		.ram_bytes = RAM_BYTES,
		.n_views = n,
		.budget_ppm = 1000000,
		.settle_ns = SETTLE_NS,
		.pass_ns = SETTLE_NS,
	};
	return true;
}

static void begin(void)
{
	struct mb_error err;

	ck_assert_int_eq(mb_content_create(&config, &content, &err), 0);
}

static void finish(void)
{
	mb_content_destroy(content);
	mb_replicas_destroy(replicas);
	for (unsigned v = 0; v < n_views; v++)
		mb_ram_file_unmap(&view[v], RAM_BYTES);
	mb_ram_file_unmap(&own, RAM_BYTES);
	close(fd);
}

static struct mb_content_stats ask(void)
{
	struct mb_content_stats s;

	mb_content_stats(content, &s);
	return s;
}

static void await_passes(uint64_t n)
{
	for (unsigned i = 0; i < 3000 && ask().passes < n; i++)
		usleep(10000);
	ck_assert_uint_ge(ask().passes, n);
}

static uint64_t home_bytes(void)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static uint64_t word(uint64_t at)
{
	return (at + 1) * 0x9e3779b97f4a7c15ull;
}

static void fill(uint64_t offset, uint64_t len)
{
	for (uint64_t at = offset; at < offset + len; at += 8)
		*(uint64_t *)(view[0].base + at) = word(at);
}

/* What is zero goes, what is not stays, and what is a hole is not looked at. */
START_TEST(test_zeroes)
{
	struct mb_content_stats s;
	unsigned wrong = 0;

	if (!make(1 + (unsigned)_i))
		return;
	/* No huge pages: each page is there because it was written. */
	for (unsigned v = 0; v < n_views; v++)
		madvise(view[v].base, RAM_BYTES, MADV_NOHUGEPAGE);
	fill(0, 4 * BLOCK);
	memset(view[0].base + 2 * BLOCK, 0, BLOCK);
	memset(view[0].base + 100 * PAGE, 0, 200 * PAGE); /* much of a block */
	memset(view[0].base + BLOCK, 0, 9 * PAGE);	  /* little of one */
	memset(view[0].base + 8 * BLOCK, 0, 3 * PAGE);	  /* all that there is of one */
	begin();
	await_passes(2);
	s = ask();
	ck_assert_uint_eq(s.zero_bytes, BLOCK + 203 * PAGE);
	ck_assert_uint_eq(home_bytes(), 3 * BLOCK - 200 * PAGE);
	ck_assert_uint_ge(s.scanned_pages, 2 * (4 * BLOCK / PAGE + 3));
	ck_assert_uint_le(s.scanned_pages, (ask().passes + 1) * 2 * (4 * BLOCK / PAGE + 3));
	ck_assert_uint_gt(s.cpu_ns, 0);
	mb_content_destroy(content);
	content = NULL;
	for (uint64_t at = 0; at < 4 * BLOCK; at += 8) {
		bool zero = at - 2 * BLOCK < BLOCK || at - 100 * PAGE < 200 * PAGE ||
			    at - BLOCK < 9 * PAGE;

		wrong += *(uint64_t *)(view[n_views - 1].base + at) != (zero ? 0 : word(at));
	}
	ck_assert_uint_eq(wrong, 0);
	finish();
}
END_TEST

/* What somebody reads again and again, and is zero always, is left alone by and by. */
START_TEST(test_backs_off)
{
	uint64_t first, last;

	if (!make(1))
		return;
	madvise(view[0].base, RAM_BYTES, MADV_NOHUGEPAGE);
	begin();
	first = mb_now_ns();
	for (uint64_t passes = 0; passes < 40;) {
		for (uint64_t at = 0; at < BLOCK; at += PAGE)
			ck_assert_uint_eq(*(volatile uint64_t *)(view[0].base + at), 0);
		passes = ask().passes;
		usleep(1000);
		ck_assert_uint_lt(mb_now_ns() - first, 50000000000ull);
	}
	last = ask().zero_bytes;
	ck_assert_uint_ge(last, BLOCK / 2);
	ck_assert_uint_le(last, 12 * BLOCK);
	finish();
}
END_TEST

/*
 * The thread's own CPU time: what was asked for, and what the first rest may lag behind. However
 * busy the host is, it is never more.
 */
START_TEST(test_budget)
{
	static const uint32_t ppm[] = {10000, 50000};
	uint64_t begin_ns, used_ns, ns;

	if (!make(1))
		return;
	fill(0, RAM_BYTES);
	config.budget_ppm = ppm[_i];
	config.settle_ns = config.pass_ns = 1;
	begin_ns = mb_now_ns();
	begin();
	usleep(2000000);
	used_ns = ask().cpu_ns;
	ns = mb_now_ns() - begin_ns;
	printf("%lu us of CPU time in %lu us, %u ppm\n", used_ns / 1000, ns / 1000, ppm[_i]);
	ck_assert_uint_gt(used_ns, 0);
	ck_assert_uint_le(used_ns, ns / 1000000 * ppm[_i] + SLACK_NS);
	finish();
}
END_TEST

/* A month, by a clock that is told. */
START_TEST(test_long_budget)
{
	static const uint64_t ppm[] = {100, 20000, 1000000};
	const uint64_t month_ns = 30ull * 86400 * 1000000000, look_ns = 3000000;
	struct mb_content_budget b = {.ppm = ppm[_i], .clock_ns = 4711};
	uint64_t now_ns = b.clock_ns, used_ns = 0;

	/* What is earned and what is spent are the same all the time: nothing makes it begin anew.
	 */
	while (now_ns < month_ns) {
		now_ns += look_ns * 1000000 / ppm[_i] * 1000;
		used_ns += look_ns * 1000;
		ck_assert_uint_eq(mb_content_rest_ns(&b, now_ns, used_ns), 0);
	}
	/* Now it owes. */
	used_ns += look_ns;
	ck_assert_uint_eq(mb_content_rest_ns(&b, now_ns, used_ns), look_ns * 1000000 / ppm[_i]);
	/* A rest of a month earns no more than a little. */
	now_ns += month_ns;
	ck_assert_uint_eq(mb_content_rest_ns(&b, now_ns, used_ns), 0);
	ck_assert_uint_eq(mb_content_rest_ns(&b, now_ns, used_ns + 50000000 + look_ns),
		look_ns * 1000000 / ppm[_i]);
}
END_TEST

/* ---- a guest that writes ---- */

static bool stop; /* atomic */
static unsigned n_wrong;

struct vcpu {
	pthread_t thread;
	unsigned index;
	uint64_t seed;
	uint64_t value[N_PAGES]; /* of its word in each page */
};
static struct vcpu vcpus[4];

/* Its word of a page is what it wrote last: mostly zero, so that pages are. */
static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		for (unsigned i = 0; i < 64; i++) {
			uint64_t r, page;
			volatile uint64_t *at;

			c->seed ^= c->seed << 13;
			c->seed ^= c->seed >> 7;
			c->seed ^= c->seed << 17;
			r = c->seed;
			page = r % N_PAGES;
			at = (uint64_t *)(view[c->index % n_views].base + page * PAGE) +
			     c->index * 8;
			if (*at != c->value[page])
				__atomic_add_fetch(&n_wrong, 1, __ATOMIC_RELAXED);
			*at = c->value[page] = r >> 40 & 7 ? 0 : r;
		}
		usleep(2000);
	}
	return NULL;
}

START_TEST(test_written_meanwhile)
{
	const char *given = getenv("MB_TEST_SEED");
	uint64_t seed = (given ? strtoull(given, NULL, 0) : mb_now_ns()) | 1;

	printf("MB_TEST_SEED=%lu\n", seed);
	fflush(stdout);
	if (!make(2))
		return;
	config.settle_ns = 1000000;
	config.pass_ns = 1;
	begin();
	for (unsigned i = 0; i < 4; i++) {
		vcpus[i].index = i;
		vcpus[i].seed = seed * (i + 1);
		pthread_create(&vcpus[i].thread, NULL, vcpu_main, &vcpus[i]);
	}
	for (unsigned i = 0; i < 400 || (i < 3000 && !ask().zero_bytes); i++)
		usleep(10000);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(vcpus[i].thread, NULL);
	printf("%lu passes, %lu KiB given back\n", ask().passes, ask().zero_bytes >> 10);
	ck_assert_uint_gt(ask().zero_bytes, 0);
	for (unsigned i = 0; i < 4; i++)
		for (uint64_t page = 0; page < N_PAGES; page++)
			for (unsigned v = 0; v < n_views; v++)
				n_wrong += ((uint64_t *)(view[v].base + page * PAGE))[i * 8] !=
					   vcpus[i].value[page];
	ck_assert_uint_eq(n_wrong, 0);
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("content");
	TCase *all = tcase_create("all");

	tcase_set_timeout(all, 60);
	tcase_add_test(all, test_hash);
	tcase_add_loop_test(all, test_zeroes, 0, 2);
	tcase_add_test(all, test_backs_off);
	tcase_add_loop_test(all, test_budget, 0, 2);
	tcase_add_loop_test(all, test_long_budget, 0, 3);
	tcase_add_test(all, test_written_meanwhile);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
