// SPDX-License-Identifier: Apache-2.0
#include "blk_impl.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <sys/stat.h>

/* Snapshots of a disk: of what the guest has chosen, and of what it has changed. */
#define STATE_VERSION 1u

bool mb_blk_has_delta(const struct mb_blk *blk)
{
	return blk->cow != NULL;
}

/*
 * The guest's memory knows what is on its disks. One that somebody writes after the snapshot is not
 * the disk of that moment any more.
 */
int mb_blk_can_save(const struct mb_blk *blk, struct mb_error *err)
{
	if (blk->nbd)
		return mb_error_set(err, ENOTSUP,
			"%s: is on the network, where nobody knows whether it stays as it is; a "
			"snapshot takes files and block devices, ro or cow",
			blk->name);
	if (!blk->readonly && (!blk->cow || !mb_cow_is_volatile(blk->cow)))
		return mb_error_set(err, ENOTSUP,
			"%s: is written, and would not stay as it is at the snapshot; a snapshot "
			"takes disks that are ro or cow",
			blk->name);
	return 0;
}

static int64_t mtime_ns(const struct mb_blk *blk)
{
	struct stat st;

	if (blk->file.block_device || fstat(blk->file.fd, &st))
		return 0;
	return mb_timespec_ns(&st.st_mtim);
}

int mb_blk_save(struct mb_blk *blk, int delta_fd, struct mb_state_out *out, struct mb_error *err)
{
	mb_state_begin(out, "disk", STATE_VERSION);
	mb_state_put_u64(out, blk->n_sectors);
	mb_state_put_u64(out, (uint64_t)mtime_ns(blk));
	mb_state_put_u8(out, blk->readonly);
	mb_state_put_u8(out, blk->cow != NULL);
	mb_state_put_u8(out, __atomic_load_n(&blk->wce, __ATOMIC_RELAXED));
	mb_state_put_u8(out, __atomic_load_n(&blk->sync_owed, __ATOMIC_RELAXED));
	mb_state_put_u8(out, __atomic_load_n(&blk->flush_failed, __ATOMIC_RELAXED));
	mb_state_end(out);
	if (blk->cow) {
		int rc = mb_cow_save(blk->cow, delta_fd, out, err);

		if (rc)
			return rc;
	}
	mb_virtio_save(blk->vdev, out);
	return 0;
}

int mb_blk_load(struct mb_blk *blk, int delta_fd, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	uint64_t n_sectors;
	int64_t mtime;
	int rc = mb_state_enter(in, "disk", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	n_sectors = mb_state_get_u64(&part);
	mtime = (int64_t)mb_state_get_u64(&part);
	if (mb_state_get_bool(&part) != blk->readonly ||
		mb_state_get_bool(&part) != (blk->cow != NULL))
		return mb_state_refuse(&part, err, "is of a disk of another kind");
	__atomic_store_n(&blk->wce, mb_state_get_bool(&part), __ATOMIC_RELAXED);
	__atomic_store_n(&blk->sync_owed, mb_state_get_bool(&part), __ATOMIC_RELAXED);
	__atomic_store_n(&blk->flush_failed, mb_state_get_bool(&part), __ATOMIC_RELAXED);
	rc = mb_state_leave(&part, err);
	if (rc)
		return rc;
	if (n_sectors != blk->n_sectors || mtime != mtime_ns(blk))
		return mb_error_set(err, ESTALE,
			"%s: was changed since the snapshot was made, which does not fit it any more",
			blk->name);
	rc = blk->cow ? mb_cow_load(blk->cow, delta_fd, in, err) : 0;
	return rc ? rc : mb_virtio_load(blk->vdev, in, err);
}

int mb_blk_pause(struct mb_blk *blk, uint64_t timeout_ns, struct mb_error *err)
{
	return mb_virtio_pause(blk->vdev, timeout_ns, err);
}

void mb_blk_resume(struct mb_blk *blk)
{
	mb_virtio_resume(blk->vdev);
}
