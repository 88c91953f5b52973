/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_QCOW2_IMPL_H
#define MIRRORBALL_QCOW2_IMPL_H

#include <mirrorball/file_io.h>
#include "qcow2.h"
#include <stddef.h>

/* Private to qcow2*.c. */
#define MB_QCOW2_MIN_BITS	 12u
#define MB_QCOW2_MAX_BITS	 16u
#define MB_QCOW2_TABLE_MAX_BYTES (8u << 20) /* of reference counts; QEMU takes no larger one */

struct mb_qcow2 {
	int fd;
	const char *path;
	struct mb_qcow2_info info;
	uint8_t *header;     /* the first cluster, as it is in the file */
	unsigned bits;	     /* a cluster is 1 << bits bytes */
	uint64_t n_clusters; /* of the disk */
	uint64_t l1_at, n_l1;
	uint64_t *l2_at; /* of n_l1: 0 where there is no table */

	uint64_t *loaded;	    /* a bit for each chunk of the map: there are entries */
	uint64_t *used;		    /* a bit for each cluster of the file: somebody's */
	uint64_t max_clusters, end; /* that there may be; behind the last one that is used */
	uint64_t frontier;	    /* nothing from here on is somebody's, or promised */
	uint64_t low;		    /* few below it are free */

	uint64_t table_at; /* of reference counts: it names blocks of them */
	uint32_t n_table_clusters;
	uint64_t *block_at; /* 0: no such block */
	uint64_t n_blocks;  /* of block_at: those that the table has room for */
};

/* -EINVAL: "is damaged: what". */
int mb_qcow2_damaged(const struct mb_qcow2 *qcow2, struct mb_error *err, const char *what);
/* rc, -errno: "cannot what: why". */
int mb_qcow2_failed(const struct mb_qcow2 *qcow2, struct mb_error *err, int rc, const char *what);

/* fdatasync, of which a failure is remembered. */
int mb_qcow2_sync(struct mb_qcow2 *qcow2);
void mb_qcow2_set_used(struct mb_qcow2 *qcow2, uint64_t first, uint64_t n);
bool mb_qcow2_is_used(const struct mb_qcow2 *qcow2, uint64_t cluster);
bool mb_qcow2_take(struct mb_qcow2 *qcow2, uint64_t at, uint64_t len);
/*
 * Whether [at, at + len) of the file is a hole. [*from, *data_at), what is known to be one, is kept
 * from call to call, and at first UINT64_MAX and 0.
 */
bool mb_qcow2_in_hole(
	const struct mb_qcow2 *qcow2, uint64_t at, uint64_t len, uint64_t *from, uint64_t *data_at);
uint64_t mb_qcow2_n_l2(const struct mb_qcow2 *qcow2);

/* ---- qcow2_header.c ---- */

int mb_qcow2_read_header(struct mb_qcow2 *qcow2, struct mb_error *err);
/* Writes the header of a file that is being made, from what *qcow2 says. */
int mb_qcow2_new_header(struct mb_qcow2 *qcow2, const char *base_name, struct mb_error *err);
/* Durable. */
int mb_qcow2_set_dirty(struct mb_qcow2 *qcow2, bool dirty, struct mb_error *err);
/* Where the table of reference counts is; durable. */
int mb_qcow2_set_table(
	struct mb_qcow2 *qcow2, uint64_t at, uint32_t n_clusters, struct mb_error *err);

/* ---- qcow2_counts.c ---- */

int mb_qcow2_read_table(struct mb_qcow2 *qcow2, struct mb_error *err);

#endif
