/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_IMAGE_H
#define MIRRORBALL_IMAGE_H

#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Disk images that no machine uses at the moment: overlays (qcow2 files that hold what differs from
 * a raw base), and raw ones. Each call locks what it reads or writes against machines; -EBUSY: in
 * use.
 */
#define MB_IMAGE_NAME_MAX 4096u

enum mb_image_base_state {
	MB_IMAGE_NO_BASE,
	MB_IMAGE_BASE_UNCHANGED, /* since the overlay was made */
	MB_IMAGE_BASE_CHANGED,	 /* it does not fit any more */
	MB_IMAGE_BASE_UNKNOWN,	 /* the overlay does not say how it was: others made it */
	MB_IMAGE_BASE_MISSING,	 /* cannot be looked at */
	MB_IMAGE_COMMITTING,	 /* a commit into it was interrupted */
};

struct mb_image_info {
	bool is_overlay;	/* else it is raw, and what follows `taken_bytes` is 0 */
	uint64_t bytes;		/* of the disk */
	uint64_t taken_bytes;	/* of the host's disk */
	uint64_t changed_bytes; /* of the disk that are in the overlay, those made zero included */
	uint32_t cluster_bytes;
	bool dirty; /* was not closed; put in order at its next use */
	enum mb_image_base_state base_state;
	char base[MB_IMAGE_NAME_MAX]; /* as it can be opened from here; "": none */
};

/* A new overlay of `base`. bytes 0: as large as it is; else that large, and zero behind the base.
 * -EEXIST: path is there. */
int mb_image_create(const char *path, const char *base, uint64_t bytes, struct mb_error *err);

int mb_image_read(const char *path, struct mb_image_info *info, struct mb_error *err);

struct mb_image_check {
	bool dirty;
	uint64_t n_leaked;  /* clusters that nobody uses: lost room, no harm */
	uint64_t n_missing; /* clusters in use that are counted as free: others might write over
			       them */
};

/*
 * Looks at an overlay's tables and counts. -EINVAL: damaged. repair: counts are made anew; *check
 * says what was before.
 */
int mb_image_check(
	const char *path, bool repair, struct mb_image_check *check, struct mb_error *err);

/*
 * Writes what the overlay holds into its base, durably; it is empty then. Interrupted, it can only
 * be done again: the base is half changed. progress (may be NULL) is told now and then how many of
 * the bytes are done.
 */
int mb_image_commit(const char *path, void (*progress)(void *ctx, uint64_t done, uint64_t total),
	void *ctx, struct mb_error *err);

/* The overlay's base is this file, as it is now. What they hold is not compared. */
int mb_image_rebase(const char *path, const char *base, struct mb_error *err);

#endif
