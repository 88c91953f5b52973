/* SPDX-License-Identifier: Apache-2.0 */
#ifndef REPLICA_CASE_H
#define REPLICA_CASE_H

#include "mappings.h"
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <stdio.h>
#include <unistd.h>

/* What cases of copies begin with: views of a file, each word of which is known, and copies of it.
 */

#define MIB   (1ull << 20)
#define BYTES (8 * MIB)
#define PAGE  MB_HEAT_PAGE_BYTES
#define BLOCK MB_HEAT_BLOCK_BYTES

static int fd;
static unsigned n_views;
static struct mb_ram_mapping view[3], own;
static struct mb_replicas *replicas;
static struct mb_replicas_config config;
static struct mb_pagemap *pm;

static inline uint64_t word(uint64_t at)
{
	return (at + 1) * 0x9e3779b97f4a7c15ull;
}

static inline uint64_t *word_at(unsigned v, uint64_t at)
{
	return (uint64_t *)(view[v].base + at);
}

/* False: not on this host. */
static inline bool make(unsigned n)
{
	struct mb_error err;

	n_views = config.n_views = n;
	config.name = "test";
	config.ram_bytes = BYTES;
	if (!config.max_bytes)
		config.max_bytes = UINT64_MAX;
	config.uffd = mb_replicas_open_uffd(true);
	if (config.uffd < 0) {
		skip("a userfaultfd that protects shared memory");
		return false;
	}
	fd = config.ram_fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &own), 0);
	config.own_base = own.base;
	for (unsigned v = 0; v < n; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &view[v]), 0);
		config.view_base[v] = view[v].base;
		config.view_node[v] = -1;
	}
	for (uint64_t at = 0; at < BYTES; at += 8)
		*word_at(0, at) = word(at);
	ck_assert_int_eq(mb_replicas_create(&config, &replicas, &err), 0);
	return true;
}

static inline void finish(void)
{
	mb_replicas_destroy(replicas);
	mb_pagemap_close(pm);
	for (unsigned v = 0; v < n_views; v++)
		mb_ram_file_unmap(&view[v], BYTES);
	mb_ram_file_unmap(&own, BYTES);
	close(fd);
}

static inline struct mb_replicas_stats ask(void)
{
	struct mb_replicas_stats s;

	mb_replicas_stats(replicas, &s);
	return s;
}

static inline struct mb_replicated replicate(uint64_t offset, uint64_t len, unsigned views)
{
	struct mb_replicated d = {0};

	ck_assert_int_eq(mb_replicas_replicate(replicas, offset, len, views, &d), 0);
	ck_assert_uint_eq(d.copied_bytes + d.there_bytes + d.waiting_bytes + d.held_bytes +
				  d.full_bytes + d.failed_bytes + d.hole_bytes,
		len);
	return d;
}

/* Every view, and who holds memory, shows what was written, but in words that are not as at first. */
static inline void check_but(uint64_t at, uint64_t value)
{
	unsigned wrong = 0;

	for (uint64_t i = 0; i < BYTES; i += 8)
		wrong += *(uint64_t *)(own.base + i) != (i == at ? value : word(i));
	for (unsigned v = 0; v < n_views; v++)
		for (uint64_t i = 0; i < BYTES; i += 8)
			wrong += *word_at(v, i) != (i == at ? value : word(i));
	ck_assert_uint_eq(wrong, 0);
}

static inline void check(void)
{
	check_but(UINT64_MAX, 0);
}

/* Whether two views show the same page of memory: what cannot be told without privilege, is. */
static inline bool is_one(uint64_t at)
{
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry[2];

	for (unsigned v = 0; v < 2; v++) {
		off_t index = (off_t)((uintptr_t)word_at(v, at) / PAGE * 8);

		/* The worker may map it anew in between. */
		do {
			*(volatile uint64_t *)word_at(v, at);
			ck_assert_int_eq(pread(map, &entry[v], 8, index), 8);
		} while (!(entry[v] >> 63));
	}
	close(map);
	return (entry[0] << 9) == (entry[1] << 9);
}

/* Lines of /proc/self/maps that are in all of guest memory that is mapped there. */
static inline unsigned n_maps_in(const void *base)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long long start;
	char line[512];
	unsigned n = 0;

	while (fgets(line, sizeof(line), maps))
		n += sscanf(line, "%llx", &start) == 1 && start - (uintptr_t)base < BYTES;
	fclose(maps);
	return n;
}

/* The same of all views. */
static inline unsigned n_maps(void)
{
	unsigned n = 0;

	for (unsigned v = 0; v < n_views; v++)
		n += n_maps_in(view[v].base);
	return n;
}

/* What is left of what was protected. */
static inline struct mb_replicated complete(uint64_t offset, uint64_t len)
{
	struct mb_replicated d = {0};

	ck_assert_int_eq(mb_replicas_finish(replicas, offset, len, 2, &d), 0);
	return d;
}

#endif
