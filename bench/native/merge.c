// SPDX-License-Identifier: Apache-2.0
/*
 * What it costs to merge pages with those of a file that other machines have, too: CPU time of the process,
 * with the thread that the kernel's events wake, for runs of 1, 17 and 512 pages that are side by side in
 * both. And beside it what the kernel's KSM takes for as many pages that are there four times.
 * Lines "WHAT RUN_PAGES NS_A_PAGE". merge [MIB [TURNS [ksm]]]; KSM is of the whole host: with "ksm", as root, where
 * nobody else has memory for it.
 */
#include "merging.h"
#include <stdbool.h>
#include <sys/resource.h>

#define PIECE	   (1ull << 20) /* of the file, that is mapped at once */
#define KSM	   "/sys/kernel/mm/ksm/"
#define KSM_COPIES 4u
#define KSM_LOOKS  3000u /* 10 ms apart */

/* Where the file has the page that is at `page` in guest memory: runs in another order, backwards. */
static uint64_t in_file(uint64_t page, uint64_t run_pages)
{
	uint64_t runs = bytes / PAGE / run_pages, run = page / run_pages;

	return run < runs ? (runs - 1 - run) * run_pages + page % run_pages : page;
}

static void fill(char *at, uint64_t run_pages)
{
	for (uint64_t i = 0; i < bytes / PAGE; i++)
		for (uint64_t k = 0; k < PAGE; k += 8)
			*(uint64_t *)(at + i * PAGE + k) = (in_file(i, run_pages) * PAGE + k + 1) * 0x9e3779b97f4a7c15ull;
}

static void fill_common(char *at)
{
	fill(at, bytes / PAGE);
}

static double cpu_ns(void)
{
	struct rusage used;

	getrusage(RUSAGE_SELF, &used);
	return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e9 +
	       (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e3;
}

/* As the sharing thread does: piece by piece of the file, and run by run in it. */
static void merge_all(struct mb_replicas *replicas, unsigned n_views, uint64_t run_pages)
{
	struct mb_replicas_source source[MAX_VIEWS];
	struct mb_merged done = {0};
	struct mb_merging *merging;
	uint64_t n = bytes / PAGE / run_pages, in_piece = PIECE / PAGE > run_pages ? PIECE / PAGE / run_pages : 1;

	for (uint64_t i = 0; i < n; i += in_piece) {
		uint64_t part = n - i < in_piece ? n - i : in_piece;

		for (unsigned v = 0; v < n_views; v++)
			source[v] = (struct mb_replicas_source){.fd = common_fd, .offset = i * run_pages * PAGE};
		if (mb_replicas_merge_begin(replicas, source, part * run_pages * PAGE, &merging))
			fail("merge_begin");
		for (uint64_t k = 0; k < part; k++)
			mb_replicas_merge_run(merging, (n - 1 - i - k) * run_pages * PAGE, k * run_pages * PAGE,
				run_pages * PAGE, &done);
		mb_replicas_merge_end(merging);
	}
	check_merged(done.merged_bytes, n * run_pages * PAGE);
}

/* A view is read before, as vCPUs have: its page tables are there. */
static void ours(unsigned n_views, uint64_t run_pages)
{
	struct mb_replicas_config config = {.name = "bench", .n_views = n_views, .max_mappings = 60000};
	struct guest guest;
	struct mb_replicas *replicas;
	struct mb_error err;
	double before;

	map_guest(&guest, &config);
	fill(guest.own.base, run_pages);
	for (unsigned v = 0; v < n_views; v++)
		for (uint64_t i = 0; i < bytes; i += PAGE)
			*(volatile char *)(guest.view[v].base + i);
	if (mb_replicas_create(&config, &replicas, &err))
		fail(err.text);
	before = cpu_ns();
	merge_all(replicas, n_views, run_pages);
	printf("views-%u %llu %.0f\n", n_views, (unsigned long long)run_pages, (cpu_ns() - before) / (double)(bytes / PAGE / run_pages * run_pages));
	mb_replicas_discard(replicas, true);
	mb_replicas_destroy(replicas);
	unmap_guest(&guest, &config);
}

/* ---- KSM ---- */

static bool set(const char *name, unsigned long value)
{
	char path[64];
	FILE *file;
	bool ok;

	snprintf(path, sizeof(path), KSM "%s", name);
	file = fopen(path, "we");
	if (!file)
		return false;
	ok = fprintf(file, "%lu", value) > 0;
	return !fclose(file) && ok;
}

static unsigned long get(const char *name)
{
	char path[64];
	unsigned long value = 0;
	FILE *file;

	snprintf(path, sizeof(path), KSM "%s", name);
	file = fopen(path, "re");
	if (file && fscanf(file, "%lu", &value) != 1)
		value = 0;
	if (file)
		fclose(file);
	return value;
}

/* Ticks of the kernel's thread. */
static double ksmd_ns(void)
{
	static char path[64];
	unsigned long user, system;
	char name[32], text[512];
	FILE *file;
	double ns = 0;

	for (int pid = 2; !path[0] && pid < 4096; pid++) {
		snprintf(text, sizeof(text), "/proc/%d/comm", pid);
		file = fopen(text, "re");
		if (!file)
			continue;
		if (fscanf(file, "%31s", name) == 1 && !strcmp(name, "ksmd"))
			snprintf(path, sizeof(path), "/proc/%d/stat", pid);
		fclose(file);
	}
	file = fopen(path, "re");
	if (file && fscanf(file, "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) == 2)
		ns = (double)(user + system) * 1e9 / (double)sysconf(_SC_CLK_TCK);
	if (file)
		fclose(file);
	return ns;
}

/* Of pages that are there four times: a page that is not needed any more costs so much. */
static void ksm(void)
{
	const uint64_t want = bytes / PAGE * (KSM_COPIES - 1);
	char *map;
	double before;
	unsigned i;

	map = mmap(NULL, bytes * KSM_COPIES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		fail("mmap");
	madvise(map, bytes * KSM_COPIES, MADV_NOHUGEPAGE);
	for (i = 0; i < KSM_COPIES; i++)
		fill(map + i * bytes, 1);
	if (get("run") || !set("pages_to_scan", 20000) || !set("sleep_millisecs", 10)) {
		fprintf(stderr, "KSM is in use, or cannot be set\n");
		munmap(map, bytes * KSM_COPIES);
		return;
	}
	madvise(map, bytes * KSM_COPIES, MADV_MERGEABLE);
	before = ksmd_ns();
	set("run", 1);
	for (i = 0; i < KSM_LOOKS && get("pages_sharing") < want; i++)
		usleep(10000);
	if (i < KSM_LOOKS)
		printf("ksm 1 %.0f\n", (ksmd_ns() - before) / (double)want);
	set("run", 2);
	set("run", 0);
	set("pages_to_scan", 100);
	set("sleep_millisecs", 20);
	munmap(map, bytes * KSM_COPIES);
}

int main(int argc, char **argv)
{
	static const unsigned run_pages[] = {1, 17, 512};
	unsigned long turns = argc > 2 ? strtoul(argv[2], NULL, 0) : 3;

	bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 64) << 20;
	if (!bytes || bytes % BLOCK)
		return 1;
	make_common(fill_common);
	while (turns--) {
		for (unsigned i = 0; i < sizeof(run_pages) / sizeof(run_pages[0]); i++) {
			ours(1, run_pages[i]);
			ours(2, run_pages[i]);
		}
		if (argc > 3)
			ksm();
	}
	return 0;
}
