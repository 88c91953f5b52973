// SPDX-License-Identifier: Apache-2.0
/*
 * The tracker on real mappings of a real file in memory. Threads of the test are the vCPUs: what
 * they do through a view's mapping is what a guest's vCPU does through its memslots.
 */
#include "run.h"

#include <dirent.h>
#include <errno.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/tracker.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define BYTES	(64ull << 20)
#define QUARTER (BYTES / 4)
#define VIEWS	2u
#define WORD	8u /* of each page; the first are the test's */

static int fd;
static struct mb_ram_mapping view[VIEWS];
static struct mb_tracker *tracker;
static bool refuse_remap;
static unsigned n_remaps;

static void nap(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};

	nanosleep(&ts, NULL);
}

static int remap(void *ctx, unsigned v, uint64_t offset, uint64_t len)
{
	n_remaps++;
	return refuse_remap ? -ENOMEM : mb_ram_file_remap(fd, &view[v], offset, len);
}

static void make(bool in_huge_pages, unsigned features, uint32_t guest_ppm)
{
	struct mb_tracker_config config = {.name = "test",
		.fault_ns = 1000,
		.ram_bytes = BYTES,
		.n_views = VIEWS,
		.n_vcpus = 2,
		.guest_ppm = guest_ppm,
		.cpu_ppm = 10 * guest_ppm,
		.features = features,
		.remap = remap};
	struct mb_error err;

	fd = config.ram_fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(fd, 0);
	for (unsigned v = 0; v < VIEWS; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &view[v]), 0);
		if (!in_huge_pages)
			madvise(view[v].base, BYTES, MADV_NOHUGEPAGE);
		config.view_base[v] = view[v].base;
	}
	for (uint64_t at = 0; at < BYTES; at += 4096) {
		*(uint64_t *)(view[0].base + at) = at;
		*(volatile char *)(view[1].base + at);
	}
	ck_assert_msg(!mb_tracker_create(&config, &tracker, &err), "%s", err.text);
}

static void start(void)
{
	struct mb_error err;

	ck_assert_msg(!mb_tracker_start(tracker, &err), "%s", err.text);
}

static void finish(void)
{
	mb_tracker_destroy(tracker);
	for (uint64_t at = 0; at < BYTES; at += 4096)
		ck_assert_uint_eq(*(uint64_t *)(view[at / 4096 % VIEWS].base + at), at);
	for (unsigned v = 0; v < VIEWS; v++)
		mb_ram_file_unmap(&view[v], BYTES);
	close(fd);
}

/* ---- vCPUs ---- */

struct vcpu {
	pthread_t thread;
	unsigned view;
	uint64_t first, len, stride;
	bool writes;
	bool stop;  /* atomic */
	uint64_t n; /* rounds */
};

/* Adds one to a word of each page a round: a lost write shows. */
static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;

	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
		for (uint64_t at = c->first; at < c->first + c->len; at += c->stride) {
			uint64_t *word = (uint64_t *)(view[c->view].base + at) + WORD + c->view;

			if (c->writes)
				__atomic_add_fetch(word, 1, __ATOMIC_RELAXED);
			else
				__atomic_load_n(word, __ATOMIC_RELAXED);
		}
		c->n++;
		nap(1);
	}
	return NULL;
}

static void go(struct vcpu *c)
{
	if (!c->stride)
		c->stride = 4096;
	ck_assert_int_eq(pthread_create(&c->thread, NULL, vcpu_main, c), 0);
}

static void halt(struct vcpu *c)
{
	__atomic_store_n(&c->stop, true, __ATOMIC_RELAXED);
	pthread_join(c->thread, NULL);
	for (uint64_t at = c->first; at < c->first + c->len && c->writes; at += c->stride)
		ck_assert_uint_eq(((uint64_t *)(view[!c->view].base + at))[WORD + c->view], c->n);
}

/* ---- what it finds ---- */

struct sums {
	double read[VIEWS], write[VIEWS]; /* mean of the pages */
	double confidence;
};

static struct sums sum(uint64_t first, uint64_t len)
{
	struct mb_extent *extent;
	struct sums s = {.confidence = 0};
	unsigned n;

	ck_assert_int_eq(mb_tracker_extents(tracker, &extent, &n), 0);
	for (unsigned i = 0; i < n; i++) {
		uint64_t a = extent[i].offset, b = a + extent[i].len_bytes;
		double share;

		a = a > first ? a : first;
		b = b < first + len ? b : first + len;
		if (a >= b)
			continue;
		share = (double)(b - a) / (double)len;
		for (unsigned v = 0; v < VIEWS; v++) {
			s.read[v] += (double)extent[i].view[v].read * share;
			s.write[v] += (double)extent[i].view[v].write * share;
		}
		s.confidence += (double)extent[i].confidence * share;
		ck_assert(extent[i].node == -1 || extent[i].node_share > 0);
	}
	free(extent);
	return s;
}

static const unsigned wants[] = {
	MB_PAGEMAP_ALL, MB_PAGEMAP_SCAN | MB_PAGEMAP_EXACT, MB_PAGEMAP_EXACT, 0};

/* View 0 reads the first quarter, view 1 writes the second, both read the third, nobody uses the
 * fourth. */
static bool is_right(bool knows_writes)
{
	struct sums q[4];

	for (unsigned i = 0; i < 4; i++) {
		q[i] = sum(i * QUARTER, QUARTER);
		if (q[i].confidence < 0.3)
			return false;
	}
	if (!knows_writes)
		q[1].write[1] = q[1].read[1];
	return q[0].read[0] > 20 && q[0].read[1] < 1 && q[0].write[0] < 5 && q[1].write[1] > 20 &&
	       q[1].read[0] < 1 && q[1].write[0] < 1 && q[2].read[0] > 20 && q[2].read[1] > 20 &&
	       q[2].write[0] < 5 && q[3].read[0] < 1 && q[3].write[1] < 1;
}

START_TEST(test_who_touches_what)
{
	bool in_huge_pages = _i % 2;
	unsigned want = wants[_i / 2], got;
	struct vcpu c[] = {{.view = 0, .len = QUARTER},
		{.view = 1, .first = QUARTER, .len = QUARTER, .writes = true},
		{.view = 0, .first = 2 * QUARTER, .len = QUARTER},
		{.view = 1, .first = 2 * QUARTER, .len = QUARTER}};
	struct mb_tracker_stats stats;
	bool right = false;

	make(in_huge_pages, want, 500000);
	start();
	mb_tracker_stats(tracker, &stats);
	got = stats.features;
	ck_assert_uint_eq(got & ~want, 0);
	for (unsigned i = 0; i < 4; i++)
		go(&c[i]);
	/* Once is not luck: what is right stays so. */
	for (unsigned n = 0; n < 200 && !right; n++) {
		nap(100);
		right = is_right(got & MB_PAGEMAP_WRITES);
	}
	for (unsigned i = 0; i < 4; i++) {
		struct sums q = sum(i * QUARTER, QUARTER);

		if (!right)
			printf("%u: read %.1f %.1f write %.1f %.1f confidence %.2f\n", i, q.read[0],
				q.read[1], q.write[0], q.write[1], q.confidence);
	}
	ck_assert(right);
	mb_tracker_stats(tracker, &stats);
	ck_assert_uint_gt(stats.n_windows, 10);
	ck_assert_uint_eq(stats.in_use_bytes, BYTES);
	for (unsigned i = 0; i < 4; i++)
		halt(&c[i]);
	finish();
}
END_TEST

static uint64_t pmd_mapped(void)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	uint64_t bytes = 0;
	unsigned long kib;
	char line[512];

	while (fgets(line, sizeof(line), smaps))
		if (sscanf(line, "ShmemPmdMapped: %lu kB", &kib) == 1)
			bytes += kib << 10;
	fclose(smaps);
	return bytes;
}

static unsigned n_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned n = 0;
	char line[512];

	while (fgets(line, sizeof(line), maps))
		n += strstr(line, "mirrorball-ram") != NULL;
	fclose(maps);
	return n;
}

/* Two views in one huge page: it is looked into, and is huge again afterwards. */
START_TEST(test_zoom)
{
	struct vcpu c[] = {{.view = 0, .len = MB_HUGE_BYTES / 2, .writes = true},
		{.view = 1, .first = MB_HUGE_BYTES / 2, .len = MB_HUGE_BYTES / 2}};
	struct mb_tracker_stats stats;
	uint64_t before, least = UINT64_MAX;
	unsigned maps;
	struct sums a, b;

	refuse_remap = _i;
	make(true, MB_PAGEMAP_ALL, 500000);
	before = pmd_mapped();
	maps = n_maps();
	start();
	mb_tracker_stats(tracker, &stats);
	if (before < 2 * BYTES || !(stats.features & MB_PAGEMAP_WRITES)) {
		finish();
		skip("no huge pages, or no asynchronous write protection");
		return;
	}
	go(&c[0]);
	go(&c[1]);
	for (unsigned n = 0; n < 300; n++) {
		uint64_t now;

		nap(100);
		now = pmd_mapped();
		least = now < least ? now : least;
		a = sum(0, MB_HUGE_BYTES / 2);
		b = sum(MB_HUGE_BYTES / 2, MB_HUGE_BYTES / 2);
		if (a.write[0] > 20 && a.read[1] < 1 && b.read[1] > 20 && b.write[0] < 1 && n > 40)
			break;
	}
	ck_assert_msg(a.write[0] > 20 && a.read[1] < 1 && b.read[1] > 20 && b.write[0] < 1,
		"%f %f %f %f", a.write[0], a.read[1], b.read[1], b.write[0]);
	halt(&c[0]);
	halt(&c[1]);
	mb_tracker_stop(tracker);
	ck_assert_uint_gt(n_remaps, 0);
	if (!refuse_remap) {
		ck_assert_uint_eq(pmd_mapped(), before);
		ck_assert_uint_eq(n_maps(), maps);
		/* One block in each view is looked into, and windows are open for a moment. */
		ck_assert_msg(least >= before / 100 * 90, "%lu of %lu", least, before);
	}
	finish();
}
END_TEST

/* Memory that nobody uses just now stays mapped as it was. */
START_TEST(test_idle_stays_huge)
{
	uint64_t before, least = UINT64_MAX;

	make(true, MB_PAGEMAP_ALL, 5000);
	before = pmd_mapped();
	start();
	for (unsigned n = 0; n < 40; n++) {
		uint64_t now;

		nap(50);
		now = pmd_mapped();
		least = now < least ? now : least;
	}
	mb_tracker_stop(tracker);
	/* Two of 32 huge pages, and both views of them, while their windows are open. */
	ck_assert_msg(least >= before / 32 * 30, "%lu of %lu", least, before);
	/* What the guest does not touch is mapped again by the tracker. */
	ck_assert_uint_eq(pmd_mapped(), before);
	finish();
}
END_TEST

static unsigned n_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void *asks_and_holds(void *arg)
{
	while (!__atomic_load_n((bool *)arg, __ATOMIC_RELAXED)) {
		struct mb_tracker_stats stats;

		mb_tracker_hold(tracker);
		sum(0, BYTES);
		mb_tracker_release(tracker);
		mb_tracker_stats(tracker, &stats);
		nap(3);
	}
	return NULL;
}

START_TEST(test_on_and_off)
{
	struct vcpu c[] = {{.view = 0, .len = BYTES, .writes = true},
		{.view = 1, .len = BYTES, .writes = true}};
	unsigned files, maps;
	bool ended = false;
	pthread_t other;

	make(_i, MB_PAGEMAP_ALL, 500000);
	/* What it knows of the kernel's features it keeps. */
	start();
	mb_tracker_stop(tracker);
	files = n_files();
	maps = n_maps();
	ck_assert_int_eq(pthread_create(&other, NULL, asks_and_holds, &ended), 0);
	go(&c[0]);
	go(&c[1]);
	for (unsigned i = 0; i < 1000; i++) {
		start();
		if (i % 2)
			nap(i % 8);
		if (i % 3 == 0)
			mb_tracker_hold(tracker);
		mb_tracker_stop(tracker);
		if (i % 3 == 0)
			mb_tracker_release(tracker);
	}
	__atomic_store_n(&ended, true, __ATOMIC_RELAXED);
	pthread_join(other, NULL);
	halt(&c[0]);
	halt(&c[1]);
	ck_assert_uint_eq(n_files(), files);
	ck_assert_uint_eq(n_maps(), maps);
	finish();
}
END_TEST

/* While it is held nothing is taken out, and nothing is learnt. */
START_TEST(test_hold)
{
	struct mb_tracker_stats a, b;
	uint64_t before;

	make(true, MB_PAGEMAP_ALL, 500000);
	start();
	nap(300);
	mb_tracker_hold(tracker);
	mb_tracker_hold(tracker);
	before = pmd_mapped();
	mb_tracker_stats(tracker, &a);
	nap(700);
	mb_tracker_release(tracker);
	nap(300);
	mb_tracker_stats(tracker, &b);
	ck_assert_uint_eq(a.n_windows, b.n_windows);
	ck_assert_uint_eq(pmd_mapped(), before);
	mb_tracker_release(tracker);
	for (unsigned n = 0; n < 200 && b.n_windows <= a.n_windows; n++) {
		nap(100);
		mb_tracker_stats(tracker, &b);
	}
	ck_assert_uint_gt(b.n_windows, a.n_windows);
	mb_tracker_hold(NULL);
	mb_tracker_release(NULL);
	finish();
}
END_TEST

/*
 * What faults cost stays within the budget, however much there would be to see; and they are those
 * that the kernel counts, whatever it tells of huge pages.
 */
START_TEST(test_budget)
{
	struct vcpu c[] = {{.view = 0, .len = BYTES, .writes = true}, {.view = 1, .len = BYTES}};
	double guest = 0, cpu = 0, invalidations = 0, counted = 0;
	struct rusage before, after;
	unsigned seconds = 5;

	make(false, _i ? MB_PAGEMAP_EXACT : MB_PAGEMAP_ALL, 0);
	start();
	go(&c[0]);
	go(&c[1]);
	nap(3000); /* of a wrong guess it has to find out first */
	getrusage(RUSAGE_SELF, &before);
	for (unsigned i = 0; i < seconds; i++) {
		struct mb_tracker_stats s;

		nap(1000);
		mb_tracker_stats(tracker, &s);
		ck_assert_uint_eq(s.guest_budget_ppm, MB_TRACKER_GUEST_PPM);
		ck_assert_uint_eq(s.cpu_budget_ppm, MB_TRACKER_CPU_PPM);
		guest += s.guest_ppm;
		cpu += s.cpu_ppm;
		invalidations += s.invalidations;
		counted += s.faults;
	}
	getrusage(RUSAGE_SELF, &after);
	halt(&c[0]);
	halt(&c[1]);
	ck_assert_msg(guest / seconds < 1.5 * MB_TRACKER_GUEST_PPM, "%f ppm of the guest",
		guest / seconds);
	ck_assert_msg(cpu / seconds < 2.0 * MB_TRACKER_CPU_PPM, "%f ppm of a CPU", cpu / seconds);
	ck_assert_msg(invalidations / seconds < 250, "%f invalidations a second",
		invalidations / seconds);
	ck_assert_msg(guest > 0 && invalidations > 0, "it does nothing");
	ck_assert_msg((double)(after.ru_minflt - before.ru_minflt) < 2 * counted + 2000,
		"%ld faults, %f counted", after.ru_minflt - before.ru_minflt, counted);
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tracker");
	TCase *cases = tcase_create("tracker");

	tcase_set_timeout(cases, 120);
	tcase_add_loop_test(cases, test_who_touches_what, 0, 8);
	tcase_add_loop_test(cases, test_zoom, 0, 2);
	tcase_add_test(cases, test_idle_stays_huge);
	tcase_add_loop_test(cases, test_on_and_off, 0, 2);
	tcase_add_test(cases, test_hold);
	tcase_add_loop_test(cases, test_budget, 0, 2);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
