// SPDX-License-Identifier: Apache-2.0
#include "base.h"
#include "blk_impl.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COARSE_NS 20000000ll /* two changes of a file closer than that may have the same time */

bool mb_base_is(const struct mb_qcow2_base *was, const struct stat *st)
{
	return (uint64_t)st->st_size == was->bytes && mb_timespec_ns(&st->st_mtim) == was->mtime_ns;
}

int mb_base_read(int fd, const char *path, uint64_t bytes, bool is_device,
	struct mb_qcow2_base *was, struct mb_error *err)
{
	struct timespec now, wait = {.tv_nsec = COARSE_NS};
	struct stat st;

	*was = (struct mb_qcow2_base){.bytes = bytes, .known = true};
	if (is_device)
		return 0;
	if (fstat(fd, &st))
		return mb_error_set(err, errno, "disk %s: %s", path, strerror(errno));
	/* Changed just now: what comes next could look as if it had been before. */
	clock_gettime(CLOCK_REALTIME, &now);
	if (llabs(mb_timespec_ns(&now) - mb_timespec_ns(&st.st_mtim)) < COARSE_NS) {
		nanosleep(&wait, NULL);
		if (fstat(fd, &st))
			return mb_error_set(err, errno, "disk %s: %s", path, strerror(errno));
	}
	was->mtime_ns = mb_timespec_ns(&st.st_mtim);
	return 0;
}

int mb_base_open(struct mb_blk_file *file, const char *path, bool readonly,
	struct mb_qcow2_base *was, struct mb_error *err)
{
	int rc = mb_blk_file_open(file, path, readonly, false, err);

	if (rc)
		return rc;
	rc = mb_base_read(
		file->fd, path, file->n_sectors * MB_BLK_SECTOR, file->block_device, was, err);
	if (rc)
		mb_blk_file_close(file);
	return rc;
}

bool mb_base_holds(struct mb_base *base, bool *news)
{
	struct stat st;

	*news = false;
	if (__atomic_load_n(&base->changed, __ATOMIC_RELAXED))
		return false;
	if (base->is_device || (!fstat(base->fd, &st) && mb_base_is(&base->was, &st)))
		return true;
	*news = !__atomic_exchange_n(&base->changed, true, __ATOMIC_RELAXED);
	return false;
}
