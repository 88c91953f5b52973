// SPDX-License-Identifier: Apache-2.0
#include "mappings.h"
#include "run.h"
#include "tracker_budget.h"
#include "tracker_guest.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* What the tracker tells of memory, how it looks into huge pages, and that it lets go of all. */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true /* needs mappings of its own at any time */
#else
#define SANITIZED false
#endif

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

/* Nor does it make anything of what is given back while it is out: that stays a hole. */
START_TEST(test_given_back)
{
	const uint64_t kept = MB_HEAT_BLOCK_BYTES, given = BYTES - kept;
	uint64_t before;

	make(true, MB_PAGEMAP_ALL, 5000);
	before = pmd_mapped();
	start();
	for (unsigned i = 0; i < 8; i++) {
		for (unsigned n = 0; n < 3000 && pmd_mapped() == before; n++)
			nap(1);
		give_back(kept, given - i * MB_PAGE_BYTES);
		mb_tracker_hold(tracker);
		ck_assert_uint_eq(backed_bytes(), kept + i * MB_PAGE_BYTES);
		use(kept, given);
		mb_tracker_release(tracker);
	}
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
	tcase_add_test(heat, test_given_back);
	tcase_add_test(heat, test_hold);
	tcase_add_loop_test(zoom, test_zoom, 0, 2);
	tcase_add_loop_test(zoom, test_hold_in_zoom, 0, 3);
	if (!SANITIZED)
		tcase_add_loop_test(zoom, test_no_mappings_left, 0, 2);
	tcase_add_loop_test(zoom, test_on_and_off, 0, 2);
	add_budget_cases(budget);
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
