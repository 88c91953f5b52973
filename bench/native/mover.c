// SPDX-License-Identifier: Apache-2.0
/*
 * How fast the mover moves memory beside a bare loop of move_pages(2) on the same memory, which two
 * mappings have: there and back, in turns. "small mover 123.4" is MiB a second.
 */
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/mover.h>
#include <mirrorball/ram_file.h>
#include <numa.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE	4096ull
#define BLOCK	(2ull << 20)
#define VIEWS	2u
#define AT_ONCE 512u

static struct mb_ram_mapping view[VIEWS], own;
static struct mb_mover *mover;
static uint64_t bytes;

static void touch(void)
{
	for (unsigned v = 0; v < VIEWS; v++)
		for (uint64_t at = 0; at < bytes; at += PAGE)
			*(volatile char *)(view[v].base + at) += 1;
}

static void bare(int node, bool huge)
{
	uint64_t step = huge ? BLOCK : PAGE;
	int to[AT_ONCE], status[AT_ONCE];
	void *page[AT_ONCE];
	unsigned n = 0;

	for (uint64_t at = 0; at < bytes; at += step) {
		page[n] = view[0].base + at;
		to[n++] = node;
		/* As much copied with a call, whatever its pages. */
		if (n < (huge ? 1 : AT_ONCE) && at + step < bytes)
			continue;
		if (move_pages(0, n, page, to, status, MPOL_MF_MOVE_ALL))
			fprintf(stderr, "move_pages: not all moved\n");
		n = 0;
	}
}

static void ours(int node, bool huge)
{
	struct mb_move move = {.len_bytes = bytes, .node = (unsigned)node, .huge = huge};
	struct mb_moved moved = {0};
	int rc = mb_mover_move(mover, &move, &moved);

	if (rc || moved.moved_bytes != bytes)
		fprintf(stderr, "mover: %s, moved %llu of %llu bytes\n", strerror(-rc),
			(unsigned long long)moved.moved_bytes, (unsigned long long)bytes);
}

int main(int argc, char **argv)
{
	struct mb_mover_config config = {.n_views = VIEWS, .may_move_mapped = true};
	unsigned turns = argc > 2 ? (unsigned)atoi(argv[2]) : 5;

	bytes = (argc > 1 ? strtoull(argv[1], NULL, 10) : 64) << 20;
	config.ram_bytes = bytes;
	for (int huge = 0; huge < 2; huge++) {
		config.ram_fd = mb_ram_file_open(bytes);
		if (config.ram_fd < 0 || mb_ram_file_map(config.ram_fd, bytes, &own))
			return 1;
		config.own_base = own.base;
		for (unsigned v = 0; v < VIEWS; v++) {
			if (mb_ram_file_map(config.ram_fd, bytes, &view[v]))
				return 1;
			config.view_base[v] = view[v].base;
			if (!huge)
				madvise(view[v].base, bytes, MADV_NOHUGEPAGE);
		}
		numa_run_on_node(0);
		touch();
		config.small = calloc(bytes / MB_HEAT_BLOCK_BYTES + 1, sizeof(*config.small));
		if (!config.small || mb_mover_create(&config, &mover))
			return 1;
		for (unsigned i = 0; i < turns * 4; i++) {
			uint64_t begin_ns;
			bool is_ours = i / 2 % 2;

			touch();
			begin_ns = mb_now_ns();
			if (is_ours)
				ours(!(i & 1), huge);
			else
				bare(!(i & 1), huge);
			printf("%s %s %.1f\n", huge ? "huge" : "small", is_ours ? "mover" : "bare",
				(double)(bytes >> 20) * 1e9 / (double)(mb_now_ns() - begin_ns));
		}
		mb_mover_destroy(mover);
		free(config.small);
		for (unsigned v = 0; v < VIEWS; v++)
			mb_ram_file_unmap(&view[v], bytes);
		mb_ram_file_unmap(&own, bytes);
	}
	return 0;
}
