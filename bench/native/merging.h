// SPDX-License-Identifier: Apache-2.0
/* Guest memory as a machine has it, and a file of the commons' kind, for what is measured of merging them. */
#ifndef BENCH_MERGING_H
#define BENCH_MERGING_H

#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE	  4096ull
#define BLOCK	  (2ull << 20)
#define MAX_VIEWS 2u

static uint64_t bytes;
static int common_fd; /* sealed, as the commons' */

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* fill: all of it. */
static void make_common(void (*fill)(char *at))
{
	char *map;

	common_fd = memfd_create("common", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (common_fd < 0 || ftruncate(common_fd, (off_t)bytes))
		fail("memfd");
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, common_fd, 0);
	if (map == MAP_FAILED)
		fail("mmap");
	fill(map);
	if (fcntl(common_fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK))
		fail("seals");
}

struct guest {
	struct mb_ram_mapping own, view[MAX_VIEWS];
};

/* What of config is about memory; n_views is set. */
static void map_guest(struct guest *guest, struct mb_replicas_config *config)
{
	config->ram_bytes = bytes;
	config->ram_fd = mb_ram_file_open(bytes);
	config->uffd = mb_replicas_open_uffd(false);
	if (config->ram_fd < 0 || config->uffd < 0) {
		fprintf(stderr, "needs /dev/userfaultfd\n");
		exit(1);
	}
	if (mb_ram_file_map(config->ram_fd, bytes, &guest->own))
		fail("mmap");
	config->own_base = guest->own.base;
	for (unsigned v = 0; v < config->n_views; v++) {
		if (mb_ram_file_map(config->ram_fd, bytes, &guest->view[v]))
			fail("mmap");
		config->view_base[v] = guest->view[v].base;
		config->view_node[v] = -1;
	}
}

/* When there are no replicas of it any more. */
static void unmap_guest(struct guest *guest, const struct mb_replicas_config *config)
{
	for (unsigned v = 0; v < config->n_views; v++)
		mb_ram_file_unmap(&guest->view[v], bytes);
	mb_ram_file_unmap(&guest->own, bytes);
	close(config->ram_fd);
}

static void check_merged(uint64_t merged, uint64_t wanted)
{
	if (merged == wanted)
		return;
	fprintf(stderr, "merged %llu of %llu bytes\n", (unsigned long long)merged, (unsigned long long)wanted);
	exit(1);
}

#endif
