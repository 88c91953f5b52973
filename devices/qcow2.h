/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_QCOW2_H
#define MIRRORBALL_QCOW2_H

#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * The file of an overlay: qcow2, version 3 (QEMU's docs/interop/qcow2), private to devices/. What
 * others may read and write; of what the format can hold, this is what is taken:
 *
 *   a raw base (backing file); clusters of 4 to 64 KiB; reference counts of 16 bits, none above 1
 * (no snapshots inside); nothing compressed, encrypted or outside the file.
 *
 * While it is open for writing the header's dirty bit is set and the reference counts on disk are
 * not kept: they follow from the tables, and are made anew when it is closed, or opened after a
 * crash; QEMU does the same with such a file. The tables themselves only grow: each L2 table is
 * there from the beginning (as a hole), and a cluster, once somebody's, stays where it is. So there
 * is one order to keep, by who writes chunks: first what a cluster holds, then who has it.
 *
 * Nothing here locks: its owner does. All of it blocks, on the file.
 */
#define MB_QCOW2_CHUNK_ENTRIES 512u /* what is written at a time of L2 tables: 4 KiB */
#define MB_QCOW2_NAME_MAX      1023u

/* An entry of the map, in the host's byte order: what the format has of a cluster. Never BUSY in
 * the file. */
#define MB_QCOW2_ALLOCATED (1ull << 63)
#define MB_QCOW2_OFFSET	   0x00fffffffffffe00ull
#define MB_QCOW2_BUSY                                                                              \
	(1ull << 1) /* somebody is about to change it; in memory only, as is a place that is not   \
		       ALLOCATED */
#define MB_QCOW2_ZERO (1ull << 0) /* reads as zeroes, whatever the base and the cluster hold */

/* The base as it was when the overlay was made; by that a changed one is told. */
struct mb_qcow2_base {
	uint64_t bytes;
	int64_t mtime_ns;
	bool known;	 /* false: made by others, who do not write it down */
	bool committing; /* the overlay is on its way into it: half of that may be there */
};

struct mb_qcow2;

/* What a file says of itself; strings are at most as long as their arrays. */
struct mb_qcow2_info {
	uint64_t bytes;	     /* of the disk */
	uint64_t file_bytes; /* of the file, holes included */
	uint32_t cluster_bytes;
	bool dirty;			       /* was not closed */
	char base_name[MB_QCOW2_NAME_MAX + 1]; /* "": none */
	char base_format[32];		       /* "": not said */
	struct mb_qcow2_base base;
	bool sync_failed; /* of the file, since it was opened: anything written to it may be lost */
	/* After mb_qcow2_load. */
	uint64_t n_changed; /* clusters of the disk that are not the base's */
};

/* Whether the file looks like one, of whatever version. */
bool mb_qcow2_is(int fd);

/*
 * Makes an empty overlay of `bytes` in the empty file fd, durably. path is for messages. -EINVAL:
 * too large, or the name too long.
 */
int mb_qcow2_create(int fd, const char *path, uint64_t bytes, const char *base_name,
	const struct mb_qcow2_base *base, struct mb_error *err);

/*
 * Opens the file fd, which stays the caller's. Believes nothing of it: -EINVAL if it is damaged or
 * something that is not taken (above). Nothing is written.
 */
int mb_qcow2_open(struct mb_qcow2 **out, int fd, const char *path, struct mb_error *err);
/* Frees; the file stays dirty if it was opened for writing. Takes NULL. */
void mb_qcow2_destroy(struct mb_qcow2 *qcow2);

const struct mb_qcow2_info *mb_qcow2_info(const struct mb_qcow2 *qcow2);
uint64_t mb_qcow2_n_clusters(const struct mb_qcow2 *qcow2); /* of the disk */

/*
 * Fills map, zeroed, of mb_qcow2_n_clusters entries; only where there is something. Each cluster is
 * one's only, and inside the file: -EINVAL otherwise. Once.
 */
int mb_qcow2_load(struct mb_qcow2 *qcow2, uint64_t *map, struct mb_error *err);

/* After load: the first cluster of the disk from `cluster` on that may not be the base's;
 * n_clusters: there is none. */
uint64_t mb_qcow2_next_changed(const struct mb_qcow2 *qcow2, uint64_t cluster);

/* After load: sets the dirty bit, and makes the L2 tables that are missing. */
int mb_qcow2_begin(struct mb_qcow2 *qcow2, struct mb_error *err);

/*
 * Clusters of the file for whoever asks. What they hold is anything.
 *
 * take_place: that one; false: it is somebody's. reserve: n in a row, which nobody else gets while
 * the file is open, unless by take_place; false: there is no more room in the tables. allocate: up
 * to n in a row, and takes them; 0: there are none. *at: their offset. give_back: those that nobody
 * has got yet.
 */
bool mb_qcow2_take_place(struct mb_qcow2 *qcow2, uint64_t at);
/* Where the next one that is reserved will be. */
uint64_t mb_qcow2_frontier(struct mb_qcow2 *qcow2);
bool mb_qcow2_reserve(struct mb_qcow2 *qcow2, uint64_t n, uint64_t *at);
uint64_t mb_qcow2_allocate(struct mb_qcow2 *qcow2, uint64_t n, uint64_t *at);
void mb_qcow2_give_back(struct mb_qcow2 *qcow2, uint64_t at, uint64_t n);

/*
 * Room in the file for entries [512 * chunk, ...), so that writing them cannot fail for want of it.
 * 0 (also where the file system cannot promise that) or -errno.
 */
int mb_qcow2_reserve_chunk(struct mb_qcow2 *qcow2, uint64_t chunk);
/* Writes entries [512 * chunk, ...) of the disk's map, as many as there are. 0 or -errno. */
int mb_qcow2_write_chunk(struct mb_qcow2 *qcow2, uint64_t chunk, const uint64_t *entries);

/* All chunks are written: makes the reference counts, durably, and clears the dirty bit. */
int mb_qcow2_end(struct mb_qcow2 *qcow2, struct mb_error *err);

/* Writes down another base, or state of it; base_name NULL: the same name. Durable. */
int mb_qcow2_set_base(struct mb_qcow2 *qcow2, const char *base_name,
	const struct mb_qcow2_base *base, struct mb_error *err);

/*
 * How far the reference counts on disk are from what the tables say, in clusters. *n_leaked: taken
 * by nobody; room is lost. *n_missing: somebody's, and counted as free.
 */
int mb_qcow2_compare_counts(
	struct mb_qcow2 *qcow2, uint64_t *n_leaked, uint64_t *n_missing, struct mb_error *err);

#endif
