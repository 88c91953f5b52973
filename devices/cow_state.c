// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include "cow_impl.h"
#include <errno.h>
#include <inttypes.h>
#include <mirrorball/file_io.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * A volatile delta in a snapshot: its clusters, each where it is on the disk, in a file of their
 * own, and which ones they are. Nothing is in flight.
 */
#define STATE_VERSION 1u
#define COPY_BYTES    (1u << 20)

enum kind { KIND_BASE, KIND_DELTA, KIND_ZERO };

static enum kind kind_of(uint64_t entry)
{
	if (entry & MB_QCOW2_ZERO)
		return KIND_ZERO;
	return entry & MB_QCOW2_ALLOCATED ? KIND_DELTA : KIND_BASE;
}

/* Where there are no means to do it in the kernel, or not between these two files. */
static int copy_by_hand(int from, int to, uint64_t at, uint64_t len)
{
	char *buf = malloc(COPY_BYTES);
	int rc = buf ? 0 : -ENOMEM;

	while (len && !rc) {
		size_t n = len < COPY_BYTES ? (size_t)len : COPY_BYTES;

		rc = mb_file_read(from, buf, n, at);
		if (!rc)
			rc = mb_file_write(to, buf, n, at);
		at += n;
		len -= n;
	}
	free(buf);
	return rc;
}

/* -ENODATA: `from` ends before. */
static int copy(int from, int to, uint64_t at, uint64_t len)
{
	while (len) {
		off_t in = (off_t)at, out = (off_t)at;
		ssize_t n =
			copy_file_range(from, &in, to, &out, len < 1u << 30 ? len : 1u << 30, 0);

		if (n < 0 && errno == EINTR)
			continue;
		/* Some kernels say 0 where they cannot. */
		if (n <= 0)
			return n < 0 && (errno == ENOSPC || errno == EIO || errno == EDQUOT)
				       ? -errno
				       : copy_by_hand(from, to, at, len);
		at += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

/* [i, end) of one kind, cut at the disk's end. */
static int copy_clusters(struct mb_cow *cow, int from, int to, uint64_t i, uint64_t end)
{
	uint64_t at = i << cow->bits, until = end << cow->bits;

	return copy(from, to, at, (until < cow->bytes ? until : cow->bytes) - at);
}

int mb_cow_save(struct mb_cow *cow, int fd, struct mb_state_out *out, struct mb_error *err)
{
	int rc = 0;

	if (cow->qcow2)
		return mb_error_set(err, ENOTSUP, "disk %s: has an overlay", cow->base_path);
	if (!mb_cow_base_holds(cow))
		return mb_error_set(
			err, ESTALE, "disk %s: was changed while it is in use", cow->base_path);
	mb_state_begin(out, "cow", STATE_VERSION);
	mb_state_put_u64(out, cow->bytes);
	mb_state_put_u64(out, cow->base.was.bytes);
	mb_state_put_u64(out, (uint64_t)cow->base.was.mtime_ns);
	pthread_mutex_lock(&cow->lock);
	for (uint64_t i = 0, end; i < cow->n_clusters && !rc; i = end) {
		enum kind kind = kind_of(cow->map[i]);

		for (end = i + 1; end < cow->n_clusters && kind_of(cow->map[end]) == kind;)
			end++;
		if (kind == KIND_BASE)
			continue;
		mb_state_put_u8(out, (uint8_t)kind);
		mb_state_put_u64(out, i);
		mb_state_put_u64(out, end - i);
		if (kind == KIND_DELTA)
			rc = copy_clusters(cow, cow->fd, fd, i, end);
	}
	pthread_mutex_unlock(&cow->lock);
	mb_state_put_u8(out, KIND_BASE); /* the end */
	mb_state_end(out);
	if (!rc && ftruncate(fd, (off_t)cow->bytes))
		rc = -errno;
	return rc ? mb_error_set(err, -rc, "disk %s: its changes cannot be copied: %s",
			    cow->base_path, strerror(-rc))
		  : 0;
}

static int load_runs(struct mb_cow *cow, int fd, struct mb_state_in *part, struct mb_error *err)
{
	uint64_t next = 0;
	uint8_t kind;

	while ((kind = mb_state_get_u8(part)) != KIND_BASE) {
		uint64_t first = mb_state_get_u64(part), n = mb_state_get_u64(part);
		int rc;

		if (part->bad || kind > KIND_ZERO || first < next || first >= cow->n_clusters ||
			!n || n > cow->n_clusters - first)
			return mb_state_refuse(part, err, "has clusters that the disk has not");
		next = first + n;
		for (uint64_t i = first; i < next; i++)
			cow->map[i] = kind == KIND_ZERO ? MB_QCOW2_ZERO
							: MB_QCOW2_ALLOCATED | i << cow->bits;
		rc = kind == KIND_DELTA ? copy_clusters(cow, fd, cow->fd, first, next) : 0;
		if (rc)
			return mb_error_set(err, -rc, "disk %s: its changes cannot be copied: %s",
				cow->base_path,
				rc == -ENODATA ? "the snapshot's file is cut off" : strerror(-rc));
	}
	return mb_state_leave(part, err);
}

int mb_cow_load(struct mb_cow *cow, int fd, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	uint64_t bytes, base_bytes;
	int64_t mtime_ns;
	int rc = mb_state_enter(in, "cow", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	bytes = mb_state_get_u64(&part);
	base_bytes = mb_state_get_u64(&part);
	mtime_ns = (int64_t)mb_state_get_u64(&part);
	if (cow->qcow2 || bytes != cow->bytes || base_bytes != cow->base.was.bytes ||
		(!cow->base.is_device && mtime_ns != cow->base.was.mtime_ns))
		return mb_error_set(err, ESTALE,
			"disk %s: was changed since the snapshot was made, which does not fit it "
			"any more",
			cow->base_path);
	pthread_mutex_lock(&cow->lock);
	rc = load_runs(cow, fd, &part, err);
	pthread_mutex_unlock(&cow->lock);
	return rc;
}
