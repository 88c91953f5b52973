// SPDX-License-Identifier: Apache-2.0
#include "qcow2_impl.h"
#include <endian.h>
#include <errno.h>
#include <mirrorball/range.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Reference counts: a table of blocks, of 16 bits a cluster of the file. Here a cluster is one's or
 * nobody's, so that they say what `used` says, and are written whole, at the end.
 */
#define TABLE_OFFSET 0xfffffffffffffe00ull
#define MAX_BYTES    (1u << MB_QCOW2_MAX_BITS)

/* Clusters that a block counts. */
static uint64_t per_block(const struct mb_qcow2 *qcow2)
{
	return 1ull << (qcow2->bits - 1);
}

int mb_qcow2_read_table(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	uint64_t len = (uint64_t)qcow2->n_table_clusters << qcow2->bits;
	int rc;

	if (!mb_qcow2_take(qcow2, qcow2->table_at, len))
		return mb_qcow2_damaged(qcow2, err, "its reference counts are not in the file");
	qcow2->n_blocks = len / 8;
	qcow2->block_at = malloc(len);
	if (!qcow2->block_at)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	rc = mb_file_read(qcow2->fd, qcow2->block_at, len, qcow2->table_at);
	if (rc)
		return mb_qcow2_failed(qcow2, err, rc, "read its reference counts");
	for (uint64_t i = 0; i < qcow2->n_blocks; i++) {
		uint64_t at = be64toh(qcow2->block_at[i]);

		/* What a crash left is no more than a hint where there is a block already. */
		if (at && (at & ~TABLE_OFFSET || !mb_qcow2_take(qcow2, at, 1ull << qcow2->bits))) {
			if (!qcow2->info.dirty)
				return mb_qcow2_damaged(qcow2, err,
					"a block of reference counts is not in the file, or used "
					"twice");
			at = 0;
		}
		qcow2->block_at[i] = at;
	}
	return 0;
}

static int out_of_room(const struct mb_qcow2 *qcow2, struct mb_error *err)
{
	return mb_error_set(
		err, ENOSPC, "overlay %s: no room for its reference counts", qcow2->path);
}

/* A larger table, at the end. The old one is still the header's. */
static int grow_table(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	/* For all that there is, for the blocks that this takes, and for the next few times. */
	uint64_t n_blocks = qcow2->end / per_block(qcow2) * 9 / 8 + 64;
	uint64_t len = mb_align_up(n_blocks * 8, 1ull << qcow2->bits), first = qcow2->end;
	uint64_t *block_at;

	if (first + (len >> qcow2->bits) > qcow2->max_clusters || len > MB_QCOW2_TABLE_MAX_BYTES)
		return out_of_room(qcow2, err);
	block_at = realloc(qcow2->block_at, len);
	if (!block_at)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	memset(block_at + qcow2->n_blocks, 0, len - qcow2->n_blocks * 8);
	qcow2->block_at = block_at;
	qcow2->n_blocks = len / 8;
	qcow2->table_at = first << qcow2->bits;
	qcow2->n_table_clusters = (uint32_t)(len >> qcow2->bits);
	mb_qcow2_set_used(qcow2, first, qcow2->n_table_clusters);
	return 0;
}

/* A block for each cluster that is used, those of the blocks included. */
static int add_blocks(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	for (uint64_t i = 0; i * per_block(qcow2) < qcow2->end; i++) {
		int rc = i < qcow2->n_blocks ? 0 : grow_table(qcow2, err);

		if (rc)
			return rc;
		if (!qcow2->block_at[i] && !mb_qcow2_allocate(qcow2, 1, &qcow2->block_at[i]))
			return out_of_room(qcow2, err);
	}
	return 0;
}

static int write_blocks(struct mb_qcow2 *qcow2)
{
	uint64_t *table = malloc(qcow2->n_blocks * 8);
	uint16_t *block = malloc(MAX_BYTES);
	int rc = table && block ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < qcow2->n_blocks && !rc; i++) {
		table[i] = htobe64(qcow2->block_at[i]);
		if (!table[i])
			continue;
		for (uint64_t j = 0; j < per_block(qcow2); j++)
			block[j] = htobe16(mb_qcow2_is_used(qcow2, i * per_block(qcow2) + j));
		rc = mb_file_write(qcow2->fd, block, 1ull << qcow2->bits, qcow2->block_at[i]);
	}
	/* All of it: where it is now there may have been anything, and in it what was not believed.
	 */
	if (!rc)
		rc = mb_file_write(qcow2->fd, table, qcow2->n_blocks * 8, qcow2->table_at);
	free(table);
	free(block);
	return rc;
}

/* Up to the last cluster that is used, and whole ones. */
static int fill_up_file(struct mb_qcow2 *qcow2)
{
	uint64_t bytes = qcow2->end << qcow2->bits;
	struct stat st;

	if (fstat(qcow2->fd, &st))
		return -errno;
	if ((uint64_t)st.st_size > bytes)
		bytes = mb_align_up((uint64_t)st.st_size, 1ull << qcow2->bits);
	if (bytes != (uint64_t)st.st_size && ftruncate(qcow2->fd, (off_t)bytes))
		return -errno;
	return 0;
}

int mb_qcow2_end(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	uint64_t old_at = qcow2->table_at, n_old = qcow2->n_table_clusters;
	int rc = add_blocks(qcow2, err);

	if (rc)
		return rc;
	/* Nobody's when the header names the new one; nothing is put there before. */
	if (old_at != qcow2->table_at)
		mb_qcow2_give_back(qcow2, old_at, n_old);
	rc = write_blocks(qcow2);
	if (!rc)
		rc = fill_up_file(qcow2);
	if (!rc)
		rc = mb_qcow2_sync(qcow2);
	if (rc)
		return mb_qcow2_failed(qcow2, err, rc, "write its reference counts");
	rc = mb_qcow2_set_table(qcow2, qcow2->table_at, qcow2->n_table_clusters, err);
	return rc ? rc : mb_qcow2_set_dirty(qcow2, false, err);
}

int mb_qcow2_compare_counts(
	struct mb_qcow2 *qcow2, uint64_t *n_leaked, uint64_t *n_missing, struct mb_error *err)
{
	uint64_t n = per_block(qcow2), from = UINT64_MAX, data_at = 0;
	uint16_t *block = calloc(1, MAX_BYTES);
	int rc = 0;

	*n_leaked = *n_missing = 0;
	if (!block)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	for (uint64_t i = 0; !rc && (i < qcow2->n_blocks || i * n < qcow2->end); i++) {
		uint64_t at = i < qcow2->n_blocks ? qcow2->block_at[i] : 0;

		if (at && !mb_qcow2_in_hole(qcow2, at, n * 2, &from, &data_at))
			rc = mb_file_read(qcow2->fd, block, n * 2, at);
		else if (i * n >= qcow2->end)
			continue;
		else
			memset(block, 0, n * 2);
		for (uint64_t j = 0; j < n && !rc; j++) {
			bool used = mb_qcow2_is_used(qcow2, i * n + j), counted = block[j];

			*n_missing += used && !counted;
			*n_leaked += !used && counted;
		}
	}
	free(block);
	return rc ? mb_qcow2_failed(qcow2, err, rc, "read its reference counts") : 0;
}
