// SPDX-License-Identifier: Apache-2.0
/*
 * The tracker on real mappings of a real file in memory. Threads of the test are the vCPUs: what
 * they do through a view's mapping is what a guest's vCPU does through its memslots.
 */
#include "mappings.h"
#include "run.h"

#include <dirent.h>
#include <errno.h>
#include <mirrorball/clock.h>
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

#define MIB   (1ull << 20)
#define BYTES (64 * MIB)
#define VIEWS 2u
#define WORD  8u /* of each page; the first are the test's */

/* The guest's memory. A case may choose another before make(). Used is the first part of each step:
 * the rest of the file is a hole. */
static struct {
	uint64_t bytes, step, part;
	unsigned n_views, n_groups; /* 0: as many as views */
} ram = {.bytes = BYTES, .step = BYTES, .part = BYTES, .n_views = VIEWS};

static int fd;
static struct mb_ram_mapping view[MB_HEAT_VIEWS];
static struct mb_tracker *tracker;
static bool refuse_remap;
static unsigned n_remaps, n_failed;		/* that succeeded and that did not; atomic */
static unsigned turn, next_turn, n_turns_taken; /* atomic */
static uint64_t turn_at_ns;			/* when vCPUs are in their new views; atomic */

/*
 * The guest's accesses are not ThreadSanitizer's business, here as in a machine: what the tracker
 * does with mappings looks like a write of all that is in them.
 */
#define IN_GUEST __attribute__((no_sanitize("thread")))

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true /* needs mappings of its own at any time */
#else
#define SANITIZED false
#endif

static void nap(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};

	nanosleep(&ts, NULL);
}

/* Waits for it; 30 s are enough on any machine. */
#define ck_assert_soon(what)                                                                       \
	do {                                                                                       \
		bool is_so = what;                                                                 \
                                                                                                   \
		for (unsigned n_naps = 0; n_naps < 1500 && !is_so; n_naps++) {                     \
			nap(20);                                                                   \
			is_so = what;                                                              \
		}                                                                                  \
		ck_assert_msg(is_so, "not so: %s", #what);                                         \
	} while (0)

static int (*kvm_faults)(void *ctx, struct mb_vcpu_faults *n);
static uint64_t fault_ns = 1000;

static int remap(void *ctx, unsigned v, uint64_t offset, uint64_t len)
{
	int rc = refuse_remap ? -ENOMEM : mb_ram_file_remap(fd, &view[v], offset, len);
	__atomic_add_fetch(rc ? &n_failed : &n_remaps, 1, __ATOMIC_RELAXED);
	return rc;
}

static unsigned get(const unsigned *n)
{
	return __atomic_load_n(n, __ATOMIC_RELAXED);
}

/* The page after this one that is used. */
static uint64_t next_page(uint64_t at)
{
	at += MB_PAGE_BYTES;
	return at % ram.step < ram.part ? at : at / ram.step * ram.step + ram.step;
}

static unsigned n_groups(void)
{
	return ram.n_groups ? ram.n_groups : ram.n_views;
}

/* vCPUs are in their new views some milliseconds later. */
#define TURN_TAKES_NS 10000000u

static void take_turn(void *ctx, unsigned next)
{
	__atomic_store_n(&turn, __atomic_load_n(&next_turn, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
	__atomic_store_n(&turn_at_ns, mb_now_ns() + TURN_TAKES_NS, __ATOMIC_SEQ_CST);
	__atomic_store_n(&next_turn, next, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&n_turns_taken, 1, __ATOMIC_RELAXED);
}

static unsigned view_of(unsigned group)
{
	uint64_t at_ns = __atomic_load_n(&turn_at_ns, __ATOMIC_SEQ_CST);
	unsigned t = __atomic_load_n(mb_now_ns() < at_ns ? &turn : &next_turn, __ATOMIC_SEQ_CST);

	return mb_heat_view_of(group, t, ram.n_views);
}

static unsigned copied_views; /* bit k: view k has a copy of all */

static float copied(void *ctx, uint64_t offset, uint64_t len, unsigned v)
{
	return (float)(copied_views >> v & 1);
}

static void make(bool in_huge_pages, unsigned features, uint32_t guest_ppm)
{
	struct mb_tracker_config config = {.name = "test",
		.fault_ns = fault_ns,
		.ram_bytes = ram.bytes,
		.n_views = ram.n_views,
		.n_groups = ram.n_groups,
		.take_turn = take_turn,
		.n_vcpus = 2,
		.guest_ppm = guest_ppm,
		.cpu_ppm = 10 * guest_ppm,
		.features = features,
		.remap = remap,
		.faults = kvm_faults,
		.copied = copied};
	struct mb_error err;

	fd = config.ram_fd = mb_ram_file_open(ram.bytes);
	ck_assert_int_ge(fd, 0);
	for (unsigned v = 0; v < ram.n_views; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, ram.bytes, &view[v]), 0);
		if (!in_huge_pages)
			madvise(view[v].base, ram.bytes, MADV_NOHUGEPAGE);
		config.view_base[v] = view[v].base;
	}
	for (uint64_t at = 0; at < ram.bytes; at = next_page(at)) {
		*(uint64_t *)(view[0].base + at) = at;
		for (unsigned v = 1; v < ram.n_views; v++)
			*(volatile char *)(view[v].base + at);
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
	for (uint64_t at = 0; at < ram.bytes; at = next_page(at)) {
		const char *base = view[at / MB_PAGE_BYTES % ram.n_views].base;

		if (*(const uint64_t *)(base + at) != at)
			ck_abort_msg("%lx: %lx", at, *(const uint64_t *)(base + at));
	}
	for (unsigned v = 0; v < ram.n_views; v++)
		mb_ram_file_unmap(&view[v], ram.bytes);
	close(fd);
}

/* ---- vCPUs ---- */

struct vcpu {
	pthread_t thread;
	unsigned group; /* in the view of its number, unless there are more of them */
	uint64_t first, len, stride;
	bool writes;
	bool stop;  /* atomic */
	uint64_t n; /* rounds */
};

/* Adds one to a word of each page a round: a lost write shows. */
IN_GUEST static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;

	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
		const char *base = view[view_of(c->group)].base;

		for (uint64_t at = c->first; at < c->first + c->len; at += c->stride) {
			uint64_t *word = (uint64_t *)(base + at) + WORD + c->group;

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

/* Another view sees all that it wrote. */
IN_GUEST static void halt(struct vcpu *c)
{
	const char *base = view[(c->group + 1) % ram.n_views].base;

	__atomic_store_n(&c->stop, true, __ATOMIC_RELAXED);
	pthread_join(c->thread, NULL);
	for (uint64_t at = c->first; at < c->first + c->len && c->writes; at += c->stride) {
		uint64_t n = ((const uint64_t *)(base + at))[WORD + c->group];

		if (n != c->n)
			ck_abort_msg("%lx: %lu of %lu writes", at, n, c->n);
	}
}

/* ---- what it finds ---- */

struct sums {
	double read[MB_HEAT_VIEWS], write[MB_HEAT_VIEWS]; /* mean of the pages */
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
		for (unsigned v = 0; v < n_groups(); v++) {
			s.read[v] += (double)extent[i].view[v].read * share;
			s.write[v] += (double)extent[i].view[v].write * share;
		}
		s.confidence += (double)extent[i].confidence * share;
		ck_assert(extent[i].node == -1 || extent[i].node_share > 0);
	}
	free(extent);
	return s;
}

static struct mb_tracker_stats ask(void)
{
	struct mb_tracker_stats s;

	mb_tracker_stats(tracker, &s);
	return s;
}

/* Who reads and who writes a part: bit a group. */
struct use {
	unsigned readers, writers;
};

/* Adds a vCPU for each. */
static unsigned make_vcpus(const struct use *use, unsigned n_parts, struct vcpu *c)
{
	unsigned n = 0;

	for (unsigned i = 0; i < n_parts; i++)
		for (unsigned v = 0; v < n_groups(); v++)
			if ((use[i].readers | use[i].writers) >> v & 1)
				c[n++] = (struct vcpu){.group = v,
					.first = i * ram.step,
					.len = ram.part,
					.writes = use[i].writers >> v & 1};
	return n;
}

/* Touches a second by whom there are some, and hardly any by others. */
static bool is_right(const struct use *use, unsigned n_parts, double least, bool knows_writes)
{
	for (unsigned i = 0; i < n_parts; i++) {
		struct sums s = sum(i * ram.step, ram.part);

		if (s.confidence < 0.3)
			return false;
		for (unsigned v = 0; v < n_groups(); v++) {
			bool reads = use[i].readers >> v & 1, writes = use[i].writers >> v & 1;
			double written = knows_writes ? s.write[v] : s.read[v];

			if (writes ? written <= least : s.write[v] >= least / (reads ? 4 : 20))
				return false;
			if (!writes && (reads ? s.read[v] <= least : s.read[v] >= least / 20))
				return false;
		}
	}
	return true;
}

/* Runs them until the tracker tells it right; 30 s are enough on any machine, for each of three
 * turns. */
static void learn(const struct use *use, unsigned n_parts, double least, uint64_t least_windows)
{
	struct vcpu c[3 * MB_HEAT_VIEWS];
	bool knows_writes = ask().features & MB_PAGEMAP_WRITES, right = false;
	unsigned n = make_vcpus(use, n_parts, c);

	for (unsigned i = 0; i < n; i++)
		go(&c[i]);
	for (unsigned t = 0; t < 1500 && !right; t++) {
		nap(20);
		right = ask().n_windows >= least_windows &&
			is_right(use, n_parts, least, knows_writes);
	}
	for (unsigned i = 0; i < n_parts && !right; i++) {
		struct sums s = sum(i * ram.step, ram.part);

		fprintf(stderr, "%u: confidence %.2f:", i, s.confidence);
		for (unsigned v = 0; v < n_groups(); v++)
			fprintf(stderr, " %.1f/%.1f", s.read[v], s.write[v]);
		fprintf(stderr, "\n");
	}
	ck_assert(right);
	for (unsigned i = 0; i < n; i++)
		halt(&c[i]);
}

static const unsigned wants[] = {
	MB_PAGEMAP_ALL, MB_PAGEMAP_SCAN | MB_PAGEMAP_EXACT, MB_PAGEMAP_EXACT, 0};

/* View 0 reads the first quarter, view 1 writes the second, both read the third, nobody uses the
 * fourth. */
START_TEST(test_who_touches_what)
{
	const struct use use[] = {{.readers = 1}, {.writers = 2}, {.readers = 3}, {0}};
	unsigned want = wants[_i / 2];

	ram.bytes = 32 * MIB;
	ram.step = ram.part = ram.bytes / 4;
	make(_i % 2, want, 500000);
	start();
	ck_assert_uint_eq(ask().features & ~want, 0);
	learn(use, 4, 20, 11);
	ck_assert_uint_eq(ask().in_use_bytes, ram.bytes);
	finish();
}
END_TEST

static bool knows_nodes(void)
{
	struct mb_extent *extent;
	bool knows = false;
	unsigned n;

	ck_assert_int_eq(mb_tracker_extents(tracker, &extent, &n), 0);
	for (unsigned i = 0; i < n; i++)
		knows |= extent[i].node >= 0;
	free(extent);
	return knows;
}

/* Where memory lives, a view tells that has no copy of it. */
START_TEST(test_node_of_copied)
{
	const struct use use[] = {{.readers = 3}};

	ram.bytes = ram.step = ram.part = 8 * MIB;
	make(true, MB_PAGEMAP_ALL, 500000);
	start();
	learn(use, 1, 20, 1);
	mb_tracker_hold(tracker);
	for (uint64_t i = 0; i < ram.bytes; i += MB_PAGE_BYTES)
		for (unsigned v = 0; v < ram.n_views; v++)
			*(volatile char *)(view[v].base + i);
	if (knows_nodes())
		for (copied_views = 1; copied_views < 4; copied_views++)
			ck_assert(knows_nodes() == (copied_views != 3));
	else
		skip("a kernel without NUMA");
	copied_views = 0;
	mb_tracker_release(tracker);
	finish();
}
END_TEST

/* As many views as there can be, and much more memory than is used, some of it above 4 GiB: each
 * writes a part of its own, and all read the last one. */
START_TEST(test_many_views_much_memory)
{
	struct use use[MB_HEAT_VIEWS + 1];

	ram.n_views = MB_HEAT_VIEWS;
	ram.step = 576 * MIB;
	ram.bytes = (MB_HEAT_VIEWS + 1) * ram.step;
	ram.part = 8 * MIB;
	for (unsigned v = 0; v < MB_HEAT_VIEWS; v++)
		use[v] = (struct use){.writers = 1u << v};
	use[MB_HEAT_VIEWS] = (struct use){.readers = (1u << MB_HEAT_VIEWS) - 1};
	make(false, MB_PAGEMAP_ALL, 500000);
	start();
	/* A mean of regions with more holes than memory. */
	learn(use, MB_HEAT_VIEWS + 1, 0.1, 0);
	ck_assert_uint_eq(ask().in_use_bytes, (MB_HEAT_VIEWS + 1) * ram.part);
	finish();
}
END_TEST

/* More groups than views: who is alone is told, and of what several use that it is no one's. */
START_TEST(test_groups_by_turns)
{
	static const unsigned counts[] = {3, 4, 8};
	struct use use[MB_HEAT_VIEWS + 2];

	ram.n_groups = counts[_i];
	ram.part = ram.step = 4 * MIB;
	ram.bytes = (ram.n_groups + 2) * ram.step;
	for (unsigned g = 0; g < ram.n_groups; g++)
		use[g] = (struct use){
			.writers = g % 2 ? 1u << g : 0, .readers = g % 2 ? 0 : 1u << g};
	use[ram.n_groups] = (struct use){.readers = (1u << ram.n_groups) - 1};
	/* One reads what another one writes. */
	use[ram.n_groups + 1] = (struct use){.readers = 1, .writers = 2};
	make(_i % 2, MB_PAGEMAP_ALL, 500000);
	start();
	learn(use, ram.n_groups + 2, 1, 0);
	ck_assert_uint_ge(get(&n_turns_taken), _i == 2 ? 2 : 1);
	finish();
}
END_TEST

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

/* ---- huge pages that are looked into ---- */

/* Two views in one huge page. */
static struct vcpu zoomers[2];

static bool start_zoomers(uint64_t block_offset)
{
	bool huge;

	for (unsigned v = 0; v < 2; v++)
		zoomers[v] = (struct vcpu){.group = v,
			.first = block_offset + v * MB_HUGE_BYTES / 2,
			.len = MB_HUGE_BYTES / 2,
			.writes = !v};
	ram.bytes = ram.step = ram.part = 16 * MIB;
	make(true, MB_PAGEMAP_ALL, 500000);
	huge = pmd_mapped() == ram.n_views * ram.bytes;
	start();
	if (!huge || !(ask().features & MB_PAGEMAP_WRITES)) {
		finish();
		skip("no huge pages, or no asynchronous write protection");
		return false;
	}
	go(&zoomers[0]);
	go(&zoomers[1]);
	return true;
}

static bool zoom_is_right(void)
{
	struct sums a = sum(zoomers[0].first, MB_HUGE_BYTES / 2);
	struct sums b = sum(zoomers[1].first, MB_HUGE_BYTES / 2);

	return a.write[0] > 20 && a.read[1] < 1 && b.read[1] > 20 && b.write[0] < 1;
}

static void halt_zoomers(void)
{
	halt(&zoomers[0]);
	halt(&zoomers[1]);
}

/* It is huge again afterwards. */
START_TEST(test_zoom)
{
	uint64_t now, least = UINT64_MAX, all;
	bool right = false;

	refuse_remap = _i;
	if (!start_zoomers(0))
		return;
	all = ram.n_views * ram.bytes;
	for (unsigned n = 0; n < 1500 && !right; n++) {
		nap(20);
		now = pmd_mapped();
		least = now < least ? now : least;
		right = zoom_is_right();
	}
	ck_assert(right);
	halt_zoomers();
	mb_tracker_stop(tracker);
	ck_assert_uint_gt(refuse_remap ? n_failed : n_remaps, 0);
	if (!refuse_remap) {
		ck_assert_uint_eq(pmd_mapped(), all);
		ck_assert_uint_eq(n_maps(), ram.n_views);
		/* One block in each view is looked into, and two windows are open for a moment. */
		ck_assert_msg(
			least >= all - ram.n_views * 3 * MB_HUGE_BYTES, "%lu of %lu", least, all);
	}
	finish();
}
END_TEST

/* Held while it is looked into: nothing happens until the release, or the end. */
START_TEST(test_hold_in_zoom)
{
	enum { GO_ON, STOP, DESTROY } then = _i;
	uint64_t n_windows;

	if (!start_zoomers(0))
		return;
	ck_assert_soon(ask().n_zooms);
	mb_tracker_hold(tracker);
	n_windows = ask().n_windows;
	nap(200);
	/* In small pages it stays, and all else is there. */
	ck_assert_uint_eq(pmd_mapped(), ram.n_views * (ram.bytes - MB_HUGE_BYTES));
	ck_assert_uint_eq(ask().n_windows, n_windows);
	if (then == GO_ON) {
		mb_tracker_release(tracker);
		ck_assert_soon(zoom_is_right());
	} else if (then == STOP) {
		mb_tracker_stop(tracker);
		ck_assert_uint_eq(n_remaps, 0);
		mb_tracker_release(tracker);
		ck_assert_uint_eq(n_remaps, ram.n_views);
		ck_assert_uint_eq(pmd_mapped(), ram.n_views * ram.bytes);
	}
	halt_zoomers();
	finish();
	ck_assert_uint_eq(n_remaps, then == DESTROY ? 0 : ram.n_views);
}
END_TEST

/* ---- no mappings left ---- */

/* What is logged from now on. */
static int listen_to_log(void)
{
	int log = memfd_create("log", MFD_CLOEXEC);

	ck_assert_int_ge(log, 0);
	ck_assert_int_ge(dup2(log, STDERR_FILENO), 0);
	return log;
}

/* How many lines say so. */
static unsigned n_said(int log, const char *what)
{
	static char text[65536];
	ssize_t len = pread(log, text, sizeof(text) - 1, 0);
	unsigned n = 0;

	ck_assert_int_ge(len, 0);
	text[len] = 0;
	for (const char *at = text; (at = strstr(at, what)); at++)
		n++;
	return n;
}

/* vm.max_map_count is reached while a huge page is looked into: its pages stay small until there
 * are mappings again. */
START_TEST(test_no_mappings_left)
{
	const char *said = "tracker: cannot map huge pages again: Cannot allocate memory; too many"
			   " mappings";
	uint64_t n_windows, len;
	unsigned tried;
	char *taken;
	int log;

	ram.n_groups = _i ? 3 : 0;
	/* In the middle of a view, which is one mapping: a part that is mapped anew is three. */
	if (!start_zoomers(8 * MIB))
		return;
	ck_assert_soon(ask().n_zooms);
	log = listen_to_log();
	taken = use_up_mappings(&len);
	if (!taken) {
		finish();
		skip("vm.max_map_count is too high to be reached");
		return;
	}
	/* It goes on, and tells what it knows. */
	n_windows = ask().n_windows;
	ck_assert_soon(ask().n_windows > n_windows);
	ck_assert_soon(!_i || get(&n_turns_taken) >= 2);
	ck_assert_soon(sum(0, ram.bytes).confidence > 0);
	/* To stop, it ends what it looks into; and again when nobody holds it any more. */
	mb_tracker_stop(tracker);
	tried = get(&n_failed);
	ck_assert_uint_gt(tried, 0);
	mb_tracker_hold(tracker);
	mb_tracker_release(tracker);
	ck_assert_uint_gt(get(&n_failed), tried);
	ck_assert_uint_eq(get(&n_remaps), 0);
	halt_zoomers();
	/* With mappings again it needs a second. */
	munmap(taken, len);
	start();
	ck_assert_soon(get(&n_remaps) == ram.n_views);
	mb_tracker_stop(tracker);
	ck_assert_uint_eq(n_said(log, said), 1);
	ck_assert_uint_eq(pmd_mapped(), ram.n_views * ram.bytes);
	ck_assert_uint_eq(n_maps(), ram.n_views);
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
	for (unsigned n = 0; n < 1500 && ask().n_windows < 6; n++) {
		uint64_t now;

		nap(10);
		now = pmd_mapped();
		least = now < least ? now : least;
	}
	ck_assert_uint_ge(ask().n_windows, 6);
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
		mb_tracker_hold(tracker);
		sum(0, BYTES);
		mb_tracker_release(tracker);
		ask();
		nap(3);
	}
	return NULL;
}

START_TEST(test_on_and_off)
{
	struct vcpu c[] = {{.group = 0, .len = BYTES, .writes = true},
		{.group = 1, .len = BYTES, .writes = true}};
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
	for (unsigned i = 0; i < 500; i++) {
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
	uint64_t all, n_windows;

	make(true, MB_PAGEMAP_ALL, 500000);
	all = pmd_mapped();
	start();
	ck_assert_soon(ask().n_windows);
	mb_tracker_hold(tracker);
	mb_tracker_hold(tracker);
	n_windows = ask().n_windows;
	nap(300);
	mb_tracker_release(tracker);
	nap(300);
	ck_assert_uint_eq(ask().n_windows, n_windows);
	ck_assert_uint_eq(pmd_mapped(), all);
	mb_tracker_release(tracker);
	ck_assert_soon(ask().n_windows > n_windows);
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
	struct vcpu c[] = {{.group = 0, .len = BYTES, .writes = true}, {.group = 1, .len = BYTES}};
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

/* What KVM says of faults: nothing, or that vCPUs fault all the time. */
static bool says_faults;
static bool go_back; /* a fault that was under way has ended */
static uint64_t n_faults;

static int say_faults(void *ctx, struct mb_vcpu_faults *n)
{
	if (!__atomic_load_n(&says_faults, __ATOMIC_RELAXED))
		return -ENOTSUP;
	n->fixed = n->repeated = __atomic_add_fetch(&n_faults, 1000000, __ATOMIC_RELAXED);
	if (go_back)
		n->fixed = n->repeated = 7 + n_faults / 1000000 % 2;
	return 0;
}

static double guest_ppm(unsigned seconds)
{
	struct mb_tracker_stats s;
	double sum = 0;

	for (unsigned i = 0; i < seconds; i++) {
		nap(1000);
		mb_tracker_stats(tracker, &s);
		ck_assert_uint_le(s.kvm_faults.fixed, 1000000);
		ck_assert_uint_le(s.kvm_faults.repeated, 1000000);
		ck_assert(s.knows_kvm_faults || !s.kvm_faults.repeated);
		sum += s.guest_ppm;
	}
	ck_assert(s.knows_kvm_faults == says_faults);
	return sum / seconds;
}

/* What KVM counts is paid for as far as it can be because of us: vCPUs that fault again and again
 * while we take something out. A fault costs next to nothing here, so that is most of it. */
START_TEST(test_kvm_faults)
{
	struct vcpu c = {.len = BYTES};
	double before, after;

	kvm_faults = say_faults;
	go_back = _i;
	fault_ns = 1;
	make(false, MB_PAGEMAP_ALL, 100000);
	start();
	go(&c);
	nap(4500); /* until windows are as short as they get: then there are most looks */
	before = guest_ppm(2);
	__atomic_store_n(&says_faults, true, __ATOMIC_RELAXED);
	nap(2000);
	after = guest_ppm(2);
	halt(&c);
	ck_assert_msg(go_back ? after < 2 * before + 200 : after > 3 * before,
		"%f ppm of the guest, then %f", before, after);
	ck_assert_msg(after < 150000, "%f ppm of the guest", after);
	finish();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("tracker");
	TCase *heat = tcase_create("heat"), *zoom = tcase_create("zoom"),
	      *budget = tcase_create("budget");

	tcase_add_loop_test(heat, test_who_touches_what, 0, 8);
	tcase_add_test(heat, test_node_of_copied);
	tcase_add_test(heat, test_many_views_much_memory);
	tcase_add_loop_test(heat, test_groups_by_turns, 0, 3);
	tcase_add_test(heat, test_idle_stays_huge);
	tcase_add_test(heat, test_hold);
	tcase_add_loop_test(zoom, test_zoom, 0, 2);
	tcase_add_loop_test(zoom, test_hold_in_zoom, 0, 3);
	if (!SANITIZED)
		tcase_add_loop_test(zoom, test_no_mappings_left, 0, 2);
	tcase_add_loop_test(zoom, test_on_and_off, 0, 2);
	tcase_add_loop_test(budget, test_budget, 0, 2);
	tcase_add_loop_test(budget, test_kvm_faults, 0, 2);
	for (unsigned i = 0; i < 3; i++) {
		TCase *cases[] = {heat, zoom, budget};

		tcase_set_timeout(cases[i], 120);
		suite_add_tcase(suite, cases[i]);
	}
	return suite;
}

int main(void)
{
	static const char *const cases[] = {"heat", "zoom", "budget", NULL};

	/* They wait most of the time. */
	return run_side_by_side(make_suite, cases);
}
