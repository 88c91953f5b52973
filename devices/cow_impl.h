/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_COW_IMPL_H
#define MIRRORBALL_COW_IMPL_H

#include "base.h"
#include "cow.h"
#include "qcow2.h"
#include <pthread.h>

/* Private to cow*.c. */
struct mb_cow {
	/* Set at the beginning. */
	char *base_path;
	struct mb_base base; /* fd is -1: it is not a file */
	int fd;		     /* the delta */
	char *path;	     /* of the overlay; NULL: volatile */
	uint64_t bytes;
	unsigned bits; /* a cluster is 1 << bits bytes */
	uint64_t n_clusters;

	pthread_mutex_t lock;	/* of all that follows; it is the last one to be taken */
	struct mb_qcow2 *qcow2; /* NULL: volatile */
	bool begun;
	bool failed;   /* a sync: what the overlay has is not all there was */
	uint64_t *map; /* of n_clusters, as in qcow2.h; mapped, so that what is not used takes no
			  memory */
	struct mb_cow_waiter *waiting, **waiting_last;

	/* Chunks of the map (512 entries) to be written at the next flush: each at most once, in a
	 * ring of all of them. */
	uint64_t n_chunks;
	uint32_t *dirty;
	uint64_t dirty_first, n_dirty;
	uint64_t *dirty_bits, *room_bits; /* room: the file has some for it */

	/* The flush that is in progress. */
	bool flushing;
	uint64_t n_flushes_begun, n_flushes_good; /* the number of the newest that succeeded */
	uint64_t *batch; /* entries as they were before the sync; whose chunks: */
	uint32_t *batch_chunks;
	uint64_t n_batch;
};

#define MB_COW_BATCH 256u /* chunks a sync: 1 MiB */

/* ---- cow_file.c ---- */

/*
 * How an overlay names its base; name has room for PATH_MAX. Relative where it is in the same
 * directory, so that both can be moved together; others resolve it from there, too.
 */
int mb_overlay_name_base(
	const char *overlay_path, const char *base_path, char *name, struct mb_error *err);
/*
 * *fd: a new overlay's file, locked. It has its name when it is whole, and durable; replace: that
 * may be another one's until then (-EEXIST otherwise).
 */
int mb_overlay_create(const char *path, const char *base_path, uint64_t bytes,
	const struct mb_qcow2_base *base, bool replace, int *fd, struct mb_error *err);
/* *fd: an overlay's file, locked, for one writer or several readers. */
int mb_overlay_open(const char *path, bool readonly, int *fd, struct mb_error *err);
/* Where the base is that an overlay names; base has room for PATH_MAX. */
void mb_overlay_find_base(const char *path, const char *name, char *base);
/* -EINVAL: the base looks like a qcow2 file. */
int mb_overlay_check_raw(
	const char *path, const char *base_path, int base_fd, struct mb_error *err);
/* -EINVAL: the overlay is one of no base, or of one that is not raw. */
int mb_overlay_check_kind(const char *path, const char *base_path, int base_fd,
	const struct mb_qcow2_info *info, struct mb_error *err);
/* Whether the overlay is one of that base, as it is: -ESTALE if it was changed, -EINVAL otherwise.
 */
int mb_overlay_check_base(const char *path, const char *base_path, int base_fd,
	const struct mb_qcow2_info *info, const struct mb_qcow2_base *base, struct mb_error *err);

int mb_cow_open_delta(struct mb_cow *cow, const struct mb_cow_config *config, struct mb_error *err);

/* ---- cow_flush.c; caller holds the lock ---- */

void mb_cow_mark_dirty(struct mb_cow *cow, uint64_t cluster);
/* Everybody who waits tries again. */
void mb_cow_wake(struct mb_cow *cow);
void mb_cow_wait(struct mb_cow *cow, struct mb_cow_waiter *waiter);

#endif
