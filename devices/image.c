// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include "cow_impl.h"
#include "sparse.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <mirrorball/file_io.h>
#include <mirrorball/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_BYTES (1u << 20)

/* An overlay that is open, with all that it has. */
struct overlay {
	const char *path;
	int fd;
	struct mb_qcow2 *qcow2;
	const struct mb_qcow2_info *info;
	uint64_t *map;
	char base[MB_IMAGE_NAME_MAX];
};

static void close_overlay(struct overlay *o)
{
	if (o->map) /* qcow2 is there, then */
		mb_sparse_unmap(o->map, mb_qcow2_n_clusters(o->qcow2) * 8);
	mb_qcow2_destroy(o->qcow2);
	if (o->fd >= 0)
		close(o->fd);
}

static int open_overlay(struct overlay *o, const char *path, bool readonly, struct mb_error *err)
{
	int rc;

	*o = (struct overlay){.path = path, .fd = -1};
	rc = mb_overlay_open(path, readonly, &o->fd, err);
	if (!rc)
		rc = mb_qcow2_open(&o->qcow2, o->fd, path, err);
	if (!rc) {
		o->info = mb_qcow2_info(o->qcow2);
		o->map = mb_sparse_map(mb_qcow2_n_clusters(o->qcow2) * 8);
		if (!o->map)
			rc = mb_error_set(err, ENOMEM, "overlay %s: out of memory", path);
	}
	if (!rc)
		rc = mb_qcow2_load(o->qcow2, o->map, err);
	if (!rc)
		mb_overlay_find_base(path, o->info->base_name, o->base);
	if (rc)
		close_overlay(o);
	return rc;
}

int mb_image_create(const char *path, const char *base_path, uint64_t bytes, struct mb_error *err)
{
	struct mb_qcow2_base base;
	struct mb_blk_file file;
	int rc = mb_base_open(&file, base_path, true, &base, err), fd;

	if (rc)
		return rc;
	if (mb_overlay_check_raw(path, base_path, file.fd, err))
		rc = -EINVAL;
	else if (bytes && bytes < base.bytes)
		rc = mb_error_set(err, EINVAL,
			"overlay %s: %" PRIu64 " bytes are less than the %" PRIu64 " of its base",
			path, bytes, base.bytes);
	else if (bytes % MB_BLK_SECTOR)
		rc = mb_error_set(err, EINVAL,
			"overlay %s: %" PRIu64 " bytes are not a multiple of 512", path, bytes);
	else
		rc = mb_overlay_create(
			path, base_path, bytes ? bytes : base.bytes, &base, false, &fd, err);
	if (!rc)
		close(fd);
	mb_blk_file_close(&file);
	return rc;
}

/* ---- what one is ---- */

static enum mb_image_base_state state_of_base(const struct overlay *o)
{
	const struct mb_qcow2_base *then = &o->info->base;
	struct stat st;

	if (!*o->base)
		return MB_IMAGE_NO_BASE;
	if (then->committing)
		return MB_IMAGE_COMMITTING;
	if (stat(o->base, &st))
		return MB_IMAGE_BASE_MISSING;
	if (!then->known || S_ISBLK(st.st_mode))
		return MB_IMAGE_BASE_UNKNOWN;
	return mb_base_is(then, &st) ? MB_IMAGE_BASE_UNCHANGED : MB_IMAGE_BASE_CHANGED;
}

static void describe(const struct overlay *o, struct mb_image_info *info)
{
	info->is_overlay = true;
	info->bytes = o->info->bytes;
	info->cluster_bytes = o->info->cluster_bytes;
	info->changed_bytes = o->info->n_changed * o->info->cluster_bytes;
	info->dirty = o->info->dirty;
	info->base_state = state_of_base(o);
	memcpy(info->base, o->base, sizeof(info->base));
}

static bool is_qcow2(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	bool is = fd >= 0 && mb_qcow2_is(fd);

	if (fd >= 0)
		close(fd);
	return is;
}

int mb_image_read(const char *path, struct mb_image_info *info, struct mb_error *err)
{
	struct mb_blk_file file;
	struct overlay o;
	struct stat st = {0};
	int rc;

	memset(info, 0, sizeof(*info));
	if (is_qcow2(path)) {
		rc = open_overlay(&o, path, true, err);
		if (rc)
			return rc;
		describe(&o, info);
		(void)!fstat(o.fd, &st);
		close_overlay(&o);
	} else {
		rc = mb_blk_file_open(&file, path, true, false, err);
		if (rc)
			return rc;
		info->bytes = file.n_sectors * MB_BLK_SECTOR;
		(void)!fstat(file.fd, &st);
		mb_blk_file_close(&file);
	}
	info->taken_bytes = (uint64_t)st.st_blocks * 512;
	return 0;
}

int mb_image_check(
	const char *path, bool repair, struct mb_image_check *check, struct mb_error *err)
{
	struct overlay o;
	int rc = open_overlay(&o, path, !repair, err);

	if (rc)
		return rc;
	check->dirty = o.info->dirty;
	rc = mb_qcow2_compare_counts(o.qcow2, &check->n_leaked, &check->n_missing, err);
	if (!rc && repair && (check->dirty || check->n_leaked || check->n_missing)) {
		rc = mb_qcow2_begin(o.qcow2, err);
		if (!rc)
			rc = mb_qcow2_end(o.qcow2, err);
	}
	close_overlay(&o);
	return rc;
}

/* ---- into the base ---- */

struct commit {
	struct overlay *overlay;
	struct mb_blk_file base;
	uint8_t *buf; /* COPY_BYTES */
	uint64_t done, total;
	void (*progress)(void *ctx, uint64_t done, uint64_t total);
	void *ctx;
};

/* [to, to + len) of the base gets what is at `from` in the overlay, or zeroes. */
static int copy(struct commit *c, bool zero, uint64_t from, uint64_t to, uint64_t len)
{
	int rc = 0;

	if (zero && !fallocate(c->base.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)to,
			    (off_t)len)) {
		c->done += len;
		len = 0;
	}
	while (len && !rc) {
		uint64_t n = len < COPY_BYTES ? len : COPY_BYTES;

		if (zero)
			memset(c->buf, 0, n);
		else
			rc = mb_file_read(c->overlay->fd, c->buf, n, from);
		if (!rc)
			rc = mb_file_write(c->base.fd, c->buf, n, to);
		from += n;
		to += n;
		len -= n;
		c->done += n;
		if (c->progress)
			c->progress(c->ctx, c->done, c->total);
	}
	return rc;
}

static int copy_all(struct commit *c)
{
	const struct overlay *o = c->overlay;
	uint64_t cluster = o->info->cluster_bytes, n = mb_qcow2_n_clusters(o->qcow2);
	int rc = 0;

	for (uint64_t i = 0, k; i < n && !rc; i += k) {
		bool zero = o->map[i] & MB_QCOW2_ZERO;
		uint64_t at = o->map[i] & MB_QCOW2_OFFSET, len;

		k = 1;
		if (!o->map[i]) {
			k = mb_qcow2_next_changed(o->qcow2, i + 1) - i;
			continue;
		}
		while (i + k < n && o->map[i + k] && (o->map[i + k] & MB_QCOW2_ZERO) == zero &&
			(zero || (o->map[i + k] & MB_QCOW2_OFFSET) == at + k * cluster))
			k++;
		len = i + k == n ? o->info->bytes - i * cluster : k * cluster;
		rc = copy(c, zero, at, i * cluster, len);
	}
	/* Its time of change as well: by that the overlay knows it. */
	if (!rc && fsync(c->base.fd))
		rc = -errno;
	return rc;
}

/* An empty overlay takes the place of the one that is in the base now; of the file, not of a link
 * to it. */
static int replace(const struct overlay *o, const struct mb_qcow2_base *base, struct mb_error *err)
{
	char path[PATH_MAX];
	struct stat st;
	int fd, rc;

	if (!realpath(o->path, path))
		return mb_error_set(err, errno, "overlay %s: %s", o->path, strerror(errno));
	rc = mb_overlay_create(path, o->base, o->info->bytes, base, true, &fd, err);
	if (rc)
		return rc;
	/* Whose it was, as far as we may. */
	if (!fstat(o->fd, &st)) {
		(void)!fchown(fd, st.st_uid, st.st_gid);
		(void)!fchmod(fd, st.st_mode & 07777);
	}
	close(fd);
	return 0;
}

static int commit(struct commit *c, struct mb_qcow2_base *base, struct mb_error *err)
{
	struct overlay *o = c->overlay;
	int rc;

	if (o->info->bytes > base->bytes &&
		(c->base.block_device || ftruncate(c->base.fd, (off_t)o->info->bytes)))
		return mb_error_set(err, c->base.block_device ? ENOSPC : errno,
			"disk %s: cannot be made as large as the overlay's disk, %" PRIu64 " bytes",
			o->base, o->info->bytes);
	rc = copy_all(c);
	if (rc)
		return mb_error_set(err, -rc,
			"overlay %s: cannot be written into %s: %s; %s is half changed: do it "
			"again when the cause is mended",
			o->path, o->base, strerror(-rc), o->base);
	rc = mb_base_read(c->base.fd, o->base,
		o->info->bytes > base->bytes ? o->info->bytes : base->bytes, c->base.block_device,
		base, err);
	return rc ? rc : replace(o, base, err);
}

static int start_commit(struct commit *c, const struct mb_qcow2_base *base, struct mb_error *err)
{
	struct overlay *o = c->overlay;
	struct mb_qcow2_base marked = *base;
	int rc;

	rc = mb_overlay_check_kind(o->path, o->base, c->base.fd, o->info, err);
	/* Interrupted, the base is neither what it was nor what it will be; but its size is one of
	 * both. */
	if (!rc && o->info->base.committing) {
		if (base->bytes != o->info->base.bytes && base->bytes != o->info->bytes)
			rc = mb_error_set(err, EINVAL,
				"overlay %s: a commit into its base was interrupted, and %s is "
				"another file now: put the right one there",
				o->path, o->base);
	} else if (!rc) {
		rc = mb_overlay_check_base(o->path, o->base, c->base.fd, o->info, base, err);
		marked.committing = true;
		if (!rc)
			rc = mb_qcow2_set_base(o->qcow2, NULL, &marked, err);
	}
	if (rc)
		return rc;
	c->total = o->info->n_changed * o->info->cluster_bytes;
	c->buf = malloc(COPY_BYTES);
	return c->buf ? 0 : mb_error_set(err, ENOMEM, "overlay %s: out of memory", o->path);
}

int mb_image_commit(const char *path, void (*progress)(void *ctx, uint64_t done, uint64_t total),
	void *ctx, struct mb_error *err)
{
	struct overlay o;
	struct commit c = {.overlay = &o, .progress = progress, .ctx = ctx};
	struct mb_qcow2_base base;
	int rc = open_overlay(&o, path, false, err);

	if (rc)
		return rc;
	if (!*o.base) {
		close_overlay(&o);
		return mb_error_set(
			err, EINVAL, "overlay %s: is a disk of its own, without a base", path);
	}
	rc = mb_base_open(&c.base, o.base, false, &base, err);
	if (!rc) {
		rc = start_commit(&c, &base, err);
		if (!rc)
			rc = commit(&c, &base, err);
		mb_blk_file_close(&c.base);
	}
	free(c.buf);
	close_overlay(&o);
	return rc;
}

int mb_image_rebase(const char *path, const char *base_path, struct mb_error *err)
{
	struct mb_qcow2_base base;
	struct mb_blk_file file;
	char name[PATH_MAX];
	struct overlay o;
	int rc = open_overlay(&o, path, false, err);

	if (rc)
		return rc;
	rc = mb_base_open(&file, base_path, true, &base, err);
	if (!rc) {
		rc = mb_overlay_name_base(path, base_path, name, err);
		if (!rc)
			rc = mb_overlay_check_kind(path, base_path, file.fd, o.info, err);
		if (!rc && o.info->base.committing)
			rc = mb_overlay_check_base(path, base_path, file.fd, o.info, &base, err);
		if (!rc && o.info->bytes < base.bytes)
			rc = mb_error_set(err, EINVAL,
				"overlay %s: its disk has %" PRIu64 " bytes, and %s %" PRIu64
				": another one's",
				path, o.info->bytes, base_path, base.bytes);
		if (!rc)
			rc = mb_qcow2_set_base(o.qcow2, name, &base, err);
		mb_blk_file_close(&file);
	}
	close_overlay(&o);
	return rc;
}
