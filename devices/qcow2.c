// SPDX-License-Identifier: Apache-2.0
#include "qcow2_impl.h"
#include "sparse.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <mirrorball/range.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * An overlay's file as its owner sees it: opening, the map, allocation. What it says of itself is
 * read and written by qcow2_header.c, its reference counts by qcow2_counts.c.
 */
#define L1_MAX_BYTES  (32u << 20) /* QEMU takes no larger one */
#define L1_GOOD_BYTES (1u << 20)

int mb_qcow2_damaged(const struct mb_qcow2 *qcow2, struct mb_error *err, const char *what)
{
	return mb_error_set(err, EINVAL,
		"overlay %s: is damaged: %s; look at it with: qemu-img check %s", qcow2->path, what,
		qcow2->path);
}

int mb_qcow2_failed(const struct mb_qcow2 *qcow2, struct mb_error *err, int rc, const char *what)
{
	return mb_error_set(
		err, -rc, "overlay %s: cannot %s: %s", qcow2->path, what, strerror(-rc));
}

int mb_qcow2_sync(struct mb_qcow2 *qcow2)
{
	if (!fdatasync(qcow2->fd))
		return 0;
	qcow2->info.sync_failed = true;
	return -errno;
}

/* ---- which clusters of the file are somebody's ---- */

bool mb_qcow2_is_used(const struct mb_qcow2 *qcow2, uint64_t cluster)
{
	return cluster < qcow2->max_clusters && qcow2->used[cluster / 64] >> cluster % 64 & 1;
}

void mb_qcow2_set_used(struct mb_qcow2 *qcow2, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		qcow2->used[i / 64] |= 1ull << i % 64;
	if (n && first + n > qcow2->end)
		qcow2->end = first + n;
}

/* Takes len bytes at `at` for one owner; false: not aligned, not in the file, or somebody else's.
 */
bool mb_qcow2_take(struct mb_qcow2 *qcow2, uint64_t at, uint64_t len)
{
	uint64_t cluster_bytes = 1ull << qcow2->bits, first = at >> qcow2->bits, n;
	/* Of the disk's last cluster, where it is the file's as well, there may be a part. */
	uint64_t end = mb_align_up(qcow2->info.file_bytes, cluster_bytes);

	if (at % cluster_bytes || !mb_range_inside(at, len, 0, end))
		return false;
	n = mb_align_up(len, cluster_bytes) >> qcow2->bits;
	for (uint64_t i = first; i < first + n; i++)
		if (mb_qcow2_is_used(qcow2, i))
			return false;
	mb_qcow2_set_used(qcow2, first, n);
	return true;
}

bool mb_qcow2_take_place(struct mb_qcow2 *qcow2, uint64_t at)
{
	uint64_t i = at >> qcow2->bits;

	if (at % (1ull << qcow2->bits) || i >= qcow2->max_clusters || mb_qcow2_is_used(qcow2, i))
		return false;
	mb_qcow2_set_used(qcow2, i, 1);
	return true;
}

uint64_t mb_qcow2_frontier(struct mb_qcow2 *qcow2)
{
	/* What is taken without asking may be there. */
	if (qcow2->frontier < qcow2->end)
		qcow2->frontier = qcow2->end;
	return qcow2->frontier << qcow2->bits;
}

bool mb_qcow2_reserve(struct mb_qcow2 *qcow2, uint64_t n, uint64_t *at)
{
	*at = mb_qcow2_frontier(qcow2);
	if (n > qcow2->max_clusters - qcow2->frontier) {
		/* What was promised and never taken, as by writes to a disk that was full, is free
		 * again. */
		while (qcow2->end && !mb_qcow2_is_used(qcow2, qcow2->end - 1))
			qcow2->end--;
		qcow2->frontier = qcow2->end;
		*at = mb_qcow2_frontier(qcow2);
	}
	if (n > qcow2->max_clusters - qcow2->frontier)
		return false;
	qcow2->frontier += n;
	return true;
}

uint64_t mb_qcow2_allocate(struct mb_qcow2 *qcow2, uint64_t n, uint64_t *at)
{
	uint64_t first, got = 0;

	if (mb_qcow2_reserve(qcow2, n, at)) {
		mb_qcow2_set_used(qcow2, *at >> qcow2->bits, n);
		return n;
	}
	/* The file has gaps: what was reserved and not needed, and what crashes left. */
	first = qcow2->low;
	while (first < qcow2->max_clusters && mb_qcow2_is_used(qcow2, first)) {
		/* A full word at a time. */
		if (!(first % 64) && qcow2->used[first / 64] == UINT64_MAX)
			first += 64;
		else
			first++;
	}
	while (got < n && first + got < qcow2->max_clusters &&
		!mb_qcow2_is_used(qcow2, first + got))
		mb_qcow2_set_used(qcow2, first + got++, 1);
	qcow2->low = first + got;
	*at = first << qcow2->bits;
	return got;
}

void mb_qcow2_give_back(struct mb_qcow2 *qcow2, uint64_t at, uint64_t n)
{
	uint64_t first = at >> qcow2->bits;

	if (n && first < qcow2->low)
		qcow2->low = first;
	for (uint64_t i = first; i < first + n; i++)
		qcow2->used[i / 64] &= ~(1ull << i % 64);
}

/* ---- opening ---- */

static uint64_t loaded_bytes(const struct mb_qcow2 *qcow2)
{
	return (qcow2->n_clusters / MB_QCOW2_CHUNK_ENTRIES / 64 + 1) * 8;
}

static int map_bits(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	uint64_t file = (qcow2->info.file_bytes >> qcow2->bits) + 1;
	/* All of the disk, tables, counts, and a little. */
	uint64_t most = qcow2->n_clusters + qcow2->n_clusters / 64 + qcow2->n_l1 + 4096;
	uint64_t n = file + qcow2->n_l1 + 4096;

	/*
	 * What is lost in crashes may be a part of that, and twice as much is room for it; what is
	 * more is memory that somebody wants us to take.
	 */
	if (file > 3 * most)
		return mb_qcow2_damaged(qcow2, err, "the file is much larger than its disk");
	if (n < 2 * most)
		n = 2 * most;
	qcow2->max_clusters = n & ~63ull;
	qcow2->used = mb_sparse_map(qcow2->max_clusters / 8 + 8);
	qcow2->loaded = mb_sparse_map(loaded_bytes(qcow2));
	if (!qcow2->used || !qcow2->loaded)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	return 0;
}

static int read_l1(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	uint64_t len = qcow2->n_l1 * 8;
	int rc;

	if (!mb_qcow2_take(qcow2, qcow2->l1_at, len))
		return mb_qcow2_damaged(qcow2, err, "its first table is not in the file");
	qcow2->l2_at = malloc(len);
	if (!qcow2->l2_at)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	rc = mb_file_read(qcow2->fd, qcow2->l2_at, len, qcow2->l1_at);
	if (rc)
		return mb_qcow2_failed(qcow2, err, rc, "read its first table");
	for (uint64_t i = 0; i < qcow2->n_l1; i++) {
		uint64_t entry = be64toh(qcow2->l2_at[i]);

		qcow2->l2_at[i] = entry & MB_QCOW2_OFFSET;
		if (entry & ~(MB_QCOW2_OFFSET | MB_QCOW2_ALLOCATED))
			return mb_qcow2_damaged(qcow2, err, "reserved bits in its first table");
		if (qcow2->l2_at[i] && !mb_qcow2_take(qcow2, qcow2->l2_at[i], 1ull << qcow2->bits))
			return mb_qcow2_damaged(
				qcow2, err, "a table is not in the file, or used twice");
	}
	return 0;
}

int mb_qcow2_open(struct mb_qcow2 **out, int fd, const char *path, struct mb_error *err)
{
	struct mb_qcow2 *qcow2 = calloc(1, sizeof(*qcow2));
	struct stat st;
	int rc;

	if (!qcow2)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", path);
	qcow2->fd = fd;
	qcow2->path = path;
	if (fstat(fd, &st)) {
		rc = mb_qcow2_failed(qcow2, err, -errno, "read its size");
		goto err_destroy;
	}
	qcow2->info.file_bytes = (uint64_t)st.st_size;
	rc = mb_qcow2_read_header(qcow2, err);
	if (!rc && (qcow2->n_l1 * 8 > L1_MAX_BYTES || !qcow2->n_l1 ||
			   qcow2->n_l1 < mb_qcow2_n_l2(qcow2)))
		rc = mb_qcow2_damaged(
			qcow2, err, "the size of its first table does not fit the disk's");
	if (!rc && (!qcow2->n_table_clusters || (uint64_t)qcow2->n_table_clusters << qcow2->bits >
							MB_QCOW2_TABLE_MAX_BYTES))
		rc = mb_qcow2_damaged(qcow2, err, "the size of its table of reference counts");
	if (!rc)
		rc = map_bits(qcow2, err);
	if (!rc && !mb_qcow2_take(qcow2, 0, 1ull << qcow2->bits))
		rc = mb_qcow2_damaged(qcow2, err, "it ends in its header");
	if (!rc)
		rc = mb_qcow2_read_table(qcow2, err);
	if (!rc)
		rc = read_l1(qcow2, err);
	if (rc)
		goto err_destroy;
	*out = qcow2;
	return 0;

err_destroy:
	mb_qcow2_destroy(qcow2);
	return rc;
}

void mb_qcow2_destroy(struct mb_qcow2 *qcow2)
{
	if (!qcow2)
		return;
	mb_sparse_unmap(qcow2->used, qcow2->max_clusters / 8 + 8);
	mb_sparse_unmap(qcow2->loaded, loaded_bytes(qcow2));
	free(qcow2->header);
	free(qcow2->l2_at);
	free(qcow2->block_at);
	free(qcow2);
}

const struct mb_qcow2_info *mb_qcow2_info(const struct mb_qcow2 *qcow2)
{
	return &qcow2->info;
}

uint64_t mb_qcow2_n_clusters(const struct mb_qcow2 *qcow2)
{
	return qcow2->n_clusters;
}

/* How many L2 tables the disk needs. */
uint64_t mb_qcow2_n_l2(const struct mb_qcow2 *qcow2)
{
	uint64_t entries = 1ull << (qcow2->bits - 3);

	return (qcow2->n_clusters + entries - 1) / entries;
}

/* ---- the map ---- */

/* One entry of a table, as the map has it; *entry is 0 for what is not there. */
static int take_entry(struct mb_qcow2 *qcow2, uint64_t *entry, struct mb_error *err)
{
	uint64_t offset = *entry & MB_QCOW2_OFFSET;

	if (*entry >> 62 & 1)
		return mb_error_set(err, EINVAL,
			"overlay %s: is compressed; make one that is not with: qemu-img convert -O "
			"qcow2 -B BASE -F raw %s NEW",
			qcow2->path, qcow2->path);
	if (*entry & ~(MB_QCOW2_OFFSET | MB_QCOW2_ALLOCATED | MB_QCOW2_ZERO))
		return mb_qcow2_damaged(qcow2, err, "reserved bits in a table");
	if (!offset) {
		if (*entry & MB_QCOW2_ALLOCATED)
			return mb_qcow2_damaged(qcow2, err, "a cluster is where the header is");
		return 0;
	}
	if (!(*entry & MB_QCOW2_ALLOCATED))
		return mb_error_set(err, EINVAL,
			"overlay %s: shares clusters with a snapshot inside it; make one without "
			"with: qemu-img convert -O qcow2 -B BASE -F raw %s NEW",
			qcow2->path, qcow2->path);
	if (!mb_qcow2_take(qcow2, offset, 1ull << qcow2->bits))
		return mb_qcow2_damaged(qcow2, err, "a cluster is not in the file, or used twice");
	return 0;
}

bool mb_qcow2_in_hole(
	const struct mb_qcow2 *qcow2, uint64_t at, uint64_t len, uint64_t *from, uint64_t *data_at)
{
	off_t data;

	if (at >= *from && at + len <= *data_at)
		return true;
	data = lseek(qcow2->fd, (off_t)at, SEEK_DATA);
	if (data < 0)
		data = errno == ENXIO ? INT64_MAX
				      : (off_t)at; /* nothing up to the end; or nobody knows */
	*from = at;
	*data_at = (uint64_t)data;
	return at + len <= *data_at;
}

/* The entries of a table, which is at `at` in the file; its first one is for cluster `first` of the
 * disk. */
static int load_table(
	struct mb_qcow2 *qcow2, uint64_t *map, uint64_t first, uint64_t at, struct mb_error *err)
{
	/* By the host's page, so that what is a hole in the file costs no memory. */
	uint64_t part[MB_QCOW2_CHUNK_ENTRIES], n = 1ull << (qcow2->bits - 3);
	uint64_t from = UINT64_MAX, data_at = 0;

	for (uint64_t i = 0; i < n; i += MB_QCOW2_CHUNK_ENTRIES) {
		uint64_t chunk = (first + i) / MB_QCOW2_CHUNK_ENTRIES;
		int rc;

		if (mb_qcow2_in_hole(qcow2, at + i * 8, sizeof(part), &from, &data_at))
			continue;
		rc = mb_file_read(qcow2->fd, part, sizeof(part), at + i * 8);
		if (rc)
			return mb_qcow2_failed(qcow2, err, rc, "read a table");
		for (uint64_t j = 0; j < MB_QCOW2_CHUNK_ENTRIES; j++) {
			uint64_t entry = be64toh(part[j]);

			if (!entry)
				continue;
			rc = take_entry(qcow2, &entry, err);
			if (rc)
				return rc;
			/* Behind the end of the disk they are somebody's all the same. */
			if (first + i + j >= qcow2->n_clusters)
				continue;
			qcow2->info.n_changed++;
			map[first + i + j] = entry;
			qcow2->loaded[chunk / 64] |= 1ull << chunk % 64;
		}
	}
	return 0;
}

uint64_t mb_qcow2_next_changed(const struct mb_qcow2 *qcow2, uint64_t cluster)
{
	uint64_t chunk = cluster / MB_QCOW2_CHUNK_ENTRIES, at;

	for (; chunk * MB_QCOW2_CHUNK_ENTRIES < qcow2->n_clusters; chunk++) {
		if (!(qcow2->loaded[chunk / 64] >> chunk % 64)) {
			chunk |= 63;
			continue;
		}
		if (!(qcow2->loaded[chunk / 64] >> chunk % 64 & 1))
			continue;
		at = chunk * MB_QCOW2_CHUNK_ENTRIES;
		return at > cluster ? at : cluster;
	}
	return qcow2->n_clusters;
}

int mb_qcow2_load(struct mb_qcow2 *qcow2, uint64_t *map, struct mb_error *err)
{
	uint64_t n = 1ull << (qcow2->bits - 3), from = UINT64_MAX, data_at = 0;

	for (uint64_t i = 0; i < qcow2->n_l1; i++) {
		int rc;

		if (!qcow2->l2_at[i] ||
			mb_qcow2_in_hole(qcow2, qcow2->l2_at[i], n * 8, &from, &data_at))
			continue;
		rc = load_table(qcow2, map, i * n, qcow2->l2_at[i], err);
		if (rc)
			return rc;
	}
	return 0;
}

/* Where the file has a chunk, and of how many entries. */
static uint64_t chunk_at(const struct mb_qcow2 *qcow2, uint64_t chunk, uint64_t *n)
{
	uint64_t first = chunk * MB_QCOW2_CHUNK_ENTRIES, per_table = 1ull << (qcow2->bits - 3);

	*n = qcow2->n_clusters - first;
	if (*n > MB_QCOW2_CHUNK_ENTRIES)
		*n = MB_QCOW2_CHUNK_ENTRIES;
	return qcow2->l2_at[first / per_table] + first % per_table * 8;
}

int mb_qcow2_reserve_chunk(struct mb_qcow2 *qcow2, uint64_t chunk)
{
	uint64_t n, at = chunk_at(qcow2, chunk, &n);
	int rc;

	do
		rc = fallocate(qcow2->fd, 0, (off_t)at, (off_t)(n * 8));
	while (rc && errno == EINTR);
	if (!rc)
		return 0;
	return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -errno;
}

int mb_qcow2_write_chunk(struct mb_qcow2 *qcow2, uint64_t chunk, const uint64_t *entries)
{
	uint64_t n, at = chunk_at(qcow2, chunk, &n), part[MB_QCOW2_CHUNK_ENTRIES];

	for (uint64_t i = 0; i < n; i++)
		part[i] = htobe64(entries[i] & MB_QCOW2_ALLOCATED ? entries[i] & ~MB_QCOW2_BUSY
								  : entries[i] & MB_QCOW2_ZERO);
	return mb_file_write(qcow2->fd, part, n * 8, at);
}

/* ---- writing ---- */

/*
 * The L2 tables that are missing, at the end of the file, where nothing has been: they read as
 * zeroes. Durable before the first table names them.
 */
static int add_tables(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	uint64_t n = mb_qcow2_n_l2(qcow2), cluster = 1ull << qcow2->bits, n_missing = 0, first, end;
	uint64_t *l1;
	int rc = 0;

	for (uint64_t i = 0; i < n; i++)
		n_missing += !qcow2->l2_at[i];
	if (!n_missing)
		return 0;
	l1 = malloc(n * 8);
	if (!l1)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	first = end = mb_align_up(qcow2->info.file_bytes, cluster);
	for (uint64_t i = 0; i < n; i++) {
		l1[i] = htobe64((qcow2->l2_at[i] ? qcow2->l2_at[i] : end) | MB_QCOW2_ALLOCATED);
		end += qcow2->l2_at[i] ? 0 : cluster;
	}
	if (ftruncate(qcow2->fd, (off_t)end))
		rc = -errno;
	if (!rc)
		rc = mb_qcow2_sync(qcow2);
	if (!rc)
		rc = mb_file_write(qcow2->fd, l1, n * 8, qcow2->l1_at);
	if (!rc)
		rc = mb_qcow2_sync(qcow2);
	/* Until all of it is there nothing is known of it, so that it can be tried again. */
	if (!rc) {
		for (uint64_t i = 0; i < n; i++)
			qcow2->l2_at[i] = be64toh(l1[i]) & MB_QCOW2_OFFSET;
		mb_qcow2_set_used(qcow2, first >> qcow2->bits, n_missing);
		qcow2->info.file_bytes = end;
	}
	free(l1);
	return rc ? mb_qcow2_failed(qcow2, err, rc, "write its first table") : 0;
}

int mb_qcow2_begin(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	int rc = mb_qcow2_set_dirty(qcow2, true, err);

	if (!rc)
		rc = add_tables(qcow2, err);
	return rc;
}

/* ---- making one ---- */

/* The smallest clusters whose first table is small: what is written is seldom larger than a page.
 */
static unsigned choose_bits(uint64_t bytes)
{
	unsigned bits = MB_QCOW2_MIN_BITS;

	/* A byte of the first table is for 2^(2 * bits - 6) bytes of the disk. */
	while (bits < MB_QCOW2_MAX_BITS && bytes >> (2 * bits - 6) > L1_GOOD_BYTES)
		bits++;
	return bits;
}

int mb_qcow2_create(int fd, const char *path, uint64_t bytes, const char *base_name,
	const struct mb_qcow2_base *base, struct mb_error *err)
{
	struct mb_qcow2 qcow2 = {.fd = fd, .path = path, .bits = choose_bits(bytes)}, *opened;
	uint64_t cluster = 1ull << qcow2.bits, n_all;
	int rc;

	qcow2.info.bytes = bytes;
	qcow2.info.base = *base;
	qcow2.n_clusters = mb_align_up(bytes, cluster) >> qcow2.bits;
	qcow2.n_l1 = mb_qcow2_n_l2(&qcow2);
	if (!bytes || bytes > INT64_MAX / 4 || qcow2.n_l1 * 8 > L1_MAX_BYTES)
		return mb_error_set(err, EINVAL,
			"overlay %s: a disk of %" PRIu64 " bytes is too large for qcow2", path,
			bytes);
	/* Counts of all that the file may ever have: data, tables, counts. */
	n_all = qcow2.n_clusters + qcow2.n_clusters / 64 + qcow2.n_l1 + 4096;
	qcow2.n_table_clusters =
		(uint32_t)(mb_align_up(n_all / (cluster / 2) * 8 + 8, cluster) >> qcow2.bits);
	qcow2.table_at = cluster;
	qcow2.l1_at = cluster * (1 + (uint64_t)qcow2.n_table_clusters);
	qcow2.info.dirty = true;
	rc = mb_qcow2_new_header(&qcow2, base_name, err);
	if (rc)
		return rc;
	if (ftruncate(fd, (off_t)(qcow2.l1_at + mb_align_up(qcow2.n_l1 * 8, cluster))))
		return mb_qcow2_failed(&qcow2, err, -errno, "give it its size");
	/* The rest is what happens after a crash. */
	rc = mb_qcow2_open(&opened, fd, path, err);
	if (rc)
		return rc;
	rc = mb_qcow2_begin(opened, err);
	if (!rc)
		rc = mb_qcow2_end(opened, err);
	mb_qcow2_destroy(opened);
	return rc;
}
