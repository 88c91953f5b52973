// SPDX-License-Identifier: Apache-2.0
#include "qcow2_impl.h"
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <mirrorball/range.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * The first cluster of an overlay: the header, its extensions, the base's name, in this order.
 */
#define MAGIC		     0x514649fbu
#define V3_BYTES	     104u
#define EXT_END		     0u
#define EXT_FORMAT	     0xe2792acau
#define EXT_BASE	     0x4d427362u /* ours, "MBsb": struct base_extension */
#define EXT_DATA_FILE	     0x44415441u

#define INCOMPATIBLE_DIRTY   (1ull << 0)
#define INCOMPATIBLE_CORRUPT (1ull << 1)
#define COMPATIBLE_LAZY	     (1ull << 0) /* reference counts may be made later: what we do */

#define BASE_COMMITTING	     1u

struct header {
	uint32_t magic, version;
	uint64_t base_name_at;
	uint32_t base_name_bytes, cluster_bits;
	uint64_t bytes;
	uint32_t crypt_method, l1_entries;
	uint64_t l1_at, table_at;
	uint32_t table_clusters, n_snapshots;
	uint64_t snapshots_at;
	uint64_t incompatible, compatible, autoclear;
	uint32_t count_order, header_bytes;
};
_Static_assert(sizeof(struct header) == V3_BYTES, "as the format says");

struct extension {
	uint32_t type, len; /* of what follows, which is filled up to 8 */
};

struct base_extension {
	uint64_t bytes, mtime_ns;
	uint32_t flags, unused;
};

/* ---- reading ---- */

bool mb_qcow2_is(int fd)
{
	uint32_t magic;

	return !mb_file_read(fd, &magic, sizeof(magic), 0) && be32toh(magic) == MAGIC;
}

static int refuse(const struct mb_qcow2 *qcow2, struct mb_error *err, const char *what)
{
	return mb_error_set(err, EINVAL,
		"overlay %s: %s, which is not possible here; make one without with: qemu-img "
		"convert -O qcow2 -B BASE -F raw %s NEW",
		qcow2->path, what, qcow2->path);
}

static int check_version(const struct mb_qcow2 *qcow2, const struct header *h, struct mb_error *err)
{
	if (be32toh(h->magic) != MAGIC)
		return mb_error_set(err, EINVAL,
			"overlay %s: is no qcow2 file; make an overlay with: mirrorball image "
			"create --base BASE NEW",
			qcow2->path);
	if (be32toh(h->version) == 2)
		return mb_error_set(err, EINVAL,
			"overlay %s: is of qcow2's version 2; make it version 3 with: qemu-img "
			"amend -f qcow2 -o compat=1.1 %s",
			qcow2->path, qcow2->path);
	if (be32toh(h->version) != 3)
		return mb_error_set(err, EINVAL,
			"overlay %s: is of an unknown version of qcow2, %" PRIu32, qcow2->path,
			be32toh(h->version));
	return 0;
}

static int check_features(
	const struct mb_qcow2 *qcow2, const struct header *h, struct mb_error *err)
{
	uint64_t bits = be64toh(h->incompatible);

	if (bits & INCOMPATIBLE_CORRUPT)
		return mb_qcow2_damaged(qcow2, err, "it is marked so");
	if (bits & ~INCOMPATIBLE_DIRTY)
		return refuse(qcow2, err,
			"has a data file of its own, extended tables, or another compression");
	if (be32toh(h->crypt_method))
		return refuse(qcow2, err, "is encrypted");
	if (be32toh(h->n_snapshots))
		return refuse(qcow2, err, "has snapshots inside");
	if (be32toh(h->count_order) != 4)
		return refuse(qcow2, err, "has reference counts of other than 16 bits");
	return 0;
}

static int take_extension(struct mb_qcow2 *qcow2, uint32_t type, const uint8_t *data, uint32_t len,
	struct mb_error *err)
{
	struct mb_qcow2_info *info = &qcow2->info;
	struct base_extension base;

	if (type == EXT_DATA_FILE)
		return refuse(qcow2, err, "has a data file of its own");
	if (type == EXT_FORMAT) {
		if (len >= sizeof(info->base_format) || memchr(data, 0, len))
			return mb_qcow2_damaged(qcow2, err, "the format of its base");
		memcpy(info->base_format, data, len);
		info->base_format[len] = 0;
	}
	if (type == EXT_BASE && len == sizeof(base)) {
		memcpy(&base, data, sizeof(base));
		info->base = (struct mb_qcow2_base){
			.bytes = be64toh(base.bytes),
			.mtime_ns = (int64_t)be64toh(base.mtime_ns),
			.known = true,
			.committing = be32toh(base.flags) & BASE_COMMITTING,
		};
	}
	return 0;
}

/* Where the extensions may end: at the base's name, which is behind them, or with the cluster. */
static uint64_t extensions_end(const struct mb_qcow2 *qcow2)
{
	const struct header *h = (const struct header *)qcow2->header;
	uint64_t end = be64toh(h->base_name_at);

	return end ? end : 1ull << qcow2->bits;
}

/* The extension at *at, and *at behind it; false at the end, or where it would be past it. */
static bool next_extension(
	const struct mb_qcow2 *qcow2, uint64_t *at, struct extension *ext, const uint8_t **data)
{
	uint64_t end = extensions_end(qcow2);

	if (end - *at < sizeof(*ext))
		return false;
	memcpy(ext, qcow2->header + *at, sizeof(*ext));
	*ext = (struct extension){be32toh(ext->type), be32toh(ext->len)};
	*at += sizeof(*ext);
	if (ext->type == EXT_END || ext->len > end - *at)
		return false;
	*data = qcow2->header + *at;
	*at += mb_align_up(ext->len, 8);
	if (*at > end)
		*at = end;
	return true;
}

static int read_name(struct mb_qcow2 *qcow2, const struct header *h, struct mb_error *err)
{
	uint64_t at = be64toh(h->base_name_at);
	uint32_t len = be32toh(h->base_name_bytes), head = be32toh(h->header_bytes);

	if (!at)
		return 0;
	if (at < head || len > MB_QCOW2_NAME_MAX ||
		!mb_range_inside(at, len, 0, 1ull << qcow2->bits) ||
		memchr(qcow2->header + at, 0, len))
		return mb_qcow2_damaged(qcow2, err, "the name of its base");
	memcpy(qcow2->info.base_name, qcow2->header + at, len);
	return 0;
}

static int read_fields(struct mb_qcow2 *qcow2, const struct header *h, struct mb_error *err)
{
	unsigned bits = be32toh(h->cluster_bits);

	if (bits < 9 || bits > 21)
		return mb_qcow2_damaged(qcow2, err, "the size of its clusters");
	if (bits < MB_QCOW2_MIN_BITS || bits > MB_QCOW2_MAX_BITS)
		return refuse(qcow2, err, "has clusters of less than 4 or more than 64 KiB");
	qcow2->bits = bits;
	qcow2->info.cluster_bytes = 1u << bits;
	qcow2->info.bytes = be64toh(h->bytes);
	if (!qcow2->info.bytes || qcow2->info.bytes % 512 || qcow2->info.bytes > INT64_MAX / 4)
		return mb_qcow2_damaged(qcow2, err, "the size of its disk");
	qcow2->n_clusters = mb_align_up(qcow2->info.bytes, 1ull << bits) >> bits;
	qcow2->l1_at = be64toh(h->l1_at);
	qcow2->n_l1 = be32toh(h->l1_entries);
	qcow2->table_at = be64toh(h->table_at);
	qcow2->n_table_clusters = be32toh(h->table_clusters);
	qcow2->info.dirty = be64toh(h->incompatible) & INCOMPATIBLE_DIRTY;
	return 0;
}

int mb_qcow2_read_header(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	struct header h;
	struct extension ext;
	const uint8_t *data;
	uint64_t at;
	int rc = mb_file_read(qcow2->fd, &h, sizeof(h), 0);

	if (rc == -ENODATA)
		h.magic = 0;
	else if (rc)
		return mb_qcow2_failed(qcow2, err, rc, "read it");
	rc = check_version(qcow2, &h, err);
	if (!rc)
		rc = check_features(qcow2, &h, err);
	if (!rc)
		rc = read_fields(qcow2, &h, err);
	if (rc)
		return rc;
	qcow2->header = malloc(1ull << qcow2->bits);
	if (!qcow2->header)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	rc = mb_file_read(qcow2->fd, qcow2->header, 1ull << qcow2->bits, 0);
	if (rc)
		return mb_qcow2_failed(qcow2, err, rc, "read its header");
	/* What was checked is what is used. */
	memcpy(qcow2->header, &h, sizeof(h));
	at = be32toh(h.header_bytes);
	if (at < V3_BYTES || at % 8 || at > 512)
		return mb_qcow2_damaged(qcow2, err, "the size of its header");
	rc = read_name(qcow2, &h, err);
	while (!rc && next_extension(qcow2, &at, &ext, &data))
		rc = take_extension(qcow2, ext.type, data, ext.len, err);
	return rc;
}

/* ---- writing ---- */

struct builder {
	uint8_t *data;
	uint64_t len, room;
	bool full;
};

static void put(struct builder *b, const void *data, uint64_t len, uint64_t align)
{
	uint64_t end = mb_align_up(b->len + len, align);

	if (b->full || end > b->room) {
		b->full = true;
		return;
	}
	memcpy(b->data + b->len, data, len);
	b->len = end;
}

static void put_extension(struct builder *b, uint32_t type, const void *data, uint32_t len)
{
	struct extension ext = {htobe32(type), htobe32(len)};

	put(b, &ext, sizeof(ext), 1);
	put(b, data, len, 8);
}

/* The header that is, with the extensions of others, and with what info says of the base. */
static int write_header(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	struct mb_qcow2_info *info = &qcow2->info;
	struct base_extension base = {
		.bytes = htobe64(info->base.bytes),
		.mtime_ns = htobe64((uint64_t)info->base.mtime_ns),
		.flags = htobe32(info->base.committing ? BASE_COMMITTING : 0),
	};
	struct builder b = {.room = 1ull << qcow2->bits};
	struct header *h = (struct header *)qcow2->header;
	uint64_t at = be32toh(h->header_bytes);
	uint32_t name_bytes = (uint32_t)strlen(info->base_name);
	struct extension ext;
	const uint8_t *data;
	int rc = 0;

	b.data = calloc(1, b.room);
	if (!b.data)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	put(&b, h, at, 1);
	while (next_extension(qcow2, &at, &ext, &data))
		if (ext.type != EXT_BASE && ext.type != EXT_FORMAT)
			put_extension(&b, ext.type, data, ext.len);
	if (name_bytes)
		put_extension(&b, EXT_FORMAT, "raw", 3);
	if (info->base.known)
		put_extension(&b, EXT_BASE, &base, sizeof(base));
	put_extension(&b, EXT_END, "", 0);
	h = (struct header *)b.data;
	h->base_name_at = name_bytes ? htobe64(b.len) : 0;
	h->base_name_bytes = htobe32(name_bytes);
	put(&b, info->base_name, name_bytes, 1);
	if (b.full) {
		rc = mb_error_set(err, ENOSPC,
			"overlay %s: its header has no room for the base's name", qcow2->path);
	} else {
		/* One write, and as a rule one sector. */
		rc = mb_file_write(qcow2->fd, b.data, b.len, 0);
		if (!rc)
			rc = mb_qcow2_sync(qcow2);
		if (rc)
			rc = mb_qcow2_failed(qcow2, err, rc, "write its header");
		else
			memcpy(qcow2->header, b.data, b.room);
	}
	free(b.data);
	return rc;
}

static int set_name(struct mb_qcow2 *qcow2, const char *name, struct mb_error *err)
{
	if (strlen(name) > MB_QCOW2_NAME_MAX)
		return mb_error_set(err, ENAMETOOLONG,
			"overlay %s: the base's name is longer than %u bytes", qcow2->path,
			MB_QCOW2_NAME_MAX);
	strcpy(qcow2->info.base_name, name);
	return 0;
}

int mb_qcow2_new_header(struct mb_qcow2 *qcow2, const char *base_name, struct mb_error *err)
{
	uint64_t cluster = 1ull << qcow2->bits;
	struct header *h = calloc(1, cluster);
	int rc;

	if (!h)
		return mb_error_set(err, ENOMEM, "overlay %s: out of memory", qcow2->path);
	*h = (struct header){
		.magic = htobe32(MAGIC),
		.version = htobe32(3),
		.cluster_bits = htobe32(qcow2->bits),
		.bytes = htobe64(qcow2->info.bytes),
		.l1_entries = htobe32((uint32_t)qcow2->n_l1),
		.l1_at = htobe64(qcow2->l1_at),
		.table_at = htobe64(qcow2->table_at),
		.table_clusters = htobe32(qcow2->n_table_clusters),
		.incompatible = htobe64(INCOMPATIBLE_DIRTY),
		.compatible = htobe64(COMPATIBLE_LAZY),
		.count_order = htobe32(4),
		.header_bytes = htobe32(V3_BYTES),
	};
	qcow2->header = (uint8_t *)h;
	rc = set_name(qcow2, base_name, err);
	if (!rc)
		rc = write_header(qcow2, err);
	free(qcow2->header);
	qcow2->header = NULL;
	return rc;
}

/* Of the header only. */
static int write_fields(struct mb_qcow2 *qcow2, struct mb_error *err)
{
	int rc = mb_file_write(qcow2->fd, qcow2->header, V3_BYTES, 0);

	if (!rc)
		rc = mb_qcow2_sync(qcow2);
	return rc ? mb_qcow2_failed(qcow2, err, rc, "write its header") : 0;
}

int mb_qcow2_set_dirty(struct mb_qcow2 *qcow2, bool dirty, struct mb_error *err)
{
	struct header *h = (struct header *)qcow2->header;

	h->incompatible = htobe64(dirty ? INCOMPATIBLE_DIRTY : 0);
	/* What others keep beside the tables, and we do not know of, is not true any more. */
	h->autoclear = 0;
	qcow2->info.dirty = dirty;
	return write_fields(qcow2, err);
}

int mb_qcow2_set_table(
	struct mb_qcow2 *qcow2, uint64_t at, uint32_t n_clusters, struct mb_error *err)
{
	struct header *h = (struct header *)qcow2->header;

	h->table_at = htobe64(at);
	h->table_clusters = htobe32(n_clusters);
	return write_fields(qcow2, err);
}

int mb_qcow2_set_base(struct mb_qcow2 *qcow2, const char *base_name,
	const struct mb_qcow2_base *base, struct mb_error *err)
{
	int rc = base_name ? set_name(qcow2, base_name, err) : 0;

	if (rc)
		return rc;
	qcow2->info.base = *base;
	return write_header(qcow2, err);
}
