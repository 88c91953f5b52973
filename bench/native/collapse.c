// SPDX-License-Identifier: Apache-2.0
/*
 * What a write costs that ends a copy, as the writer sees it; what it costs to make copies, and to
 * give them back. Lines "WHAT NUMBER...": microseconds.
 */
#include <mirrorball/clock.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE  4096ull
#define BLOCK (2ull << 20)
#define APART 32u /* pages from one that gets a copy to the next, where not all do */

static struct mb_ram_mapping view[2];
static struct mb_replicas *replicas;
static uint64_t bytes;

static double write_us(unsigned v, uint64_t at)
{
	uint64_t begin_ns = mb_now_ns();

	*(volatile char *)(view[v].base + at) += 1;
	return (double)(mb_now_ns() - begin_ns) / 1e3;
}

/* In pages that are not neighbours, or all of it. */
static void copy(bool scattered)
{
	struct mb_replicated done = {0};
	uint64_t begin_ns = mb_now_ns();

	for (uint64_t at = 0; at < bytes; at += scattered ? APART * PAGE : BLOCK)
		mb_replicas_replicate(replicas, at, scattered ? PAGE : BLOCK, 2, &done);
	printf("copy-%s %.2f\n", scattered ? "scattered" : "block",
		(double)(mb_now_ns() - begin_ns) / 1e3 / ((double)done.copied_bytes / PAGE));
}

/* One page after the other, until a write takes all copies of the block. */
static void write_block(bool scattered, unsigned v, uint64_t at)
{
	const unsigned step = scattered ? APART : 4;
	bool left = true;

	for (unsigned i = 0; i < BLOCK / PAGE && left; i += step) {
		double us = write_us(v, at + i * PAGE);

		left = mb_replicas_share(replicas, at, BLOCK, 1) > 0;
		printf("%s-%s %.1f\n", left ? "page" : "block", scattered ? "scattered" : "whole",
			us);
	}
}

static void turn(bool scattered, unsigned v)
{
	uint64_t begin_ns, given;

	copy(scattered);
	for (uint64_t at = 0; at < bytes; at += BLOCK)
		write_block(scattered, v, at);
	usleep(10000); /* what is done after a writer was woken */
	copy(scattered);
	begin_ns = mb_now_ns();
	given = mb_replicas_reclaim(replicas, UINT64_MAX, ~0u);
	if (!scattered)
		printf("reclaim %.2f\n",
			(double)(mb_now_ns() - begin_ns) / 1e3 / ((double)given / BLOCK));
}

int main(int argc, char **argv)
{
	struct mb_replicas_config config = {
		.name = "bench", .n_views = 2, .max_bytes = UINT64_MAX, .backoff_ns = 1};
	struct mb_error err;

	bytes = config.ram_bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 64) << 20;
	config.ram_fd = mb_ram_file_open(bytes);
	config.uffd = mb_replicas_open_uffd(false);
	if (config.ram_fd < 0 || config.uffd < 0) {
		fprintf(stderr, "needs /dev/userfaultfd\n");
		return 1;
	}
	for (unsigned v = 0; v < 2; v++) {
		if (mb_ram_file_map(config.ram_fd, bytes, &view[v]))
			return 1;
		config.view_base[v] = view[v].base;
		config.view_node[v] = -1;
	}
	memset(view[0].base, 1, bytes);
	if (mb_replicas_create(&config, &replicas, &err))
		return 1;
	for (unsigned i = 0; i < (argc > 2 ? strtoul(argv[2], NULL, 0) : 8); i++)
		turn(i & 1, i >> 1 & 1);
	mb_replicas_destroy(replicas);
	return 0;
}
