/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_FOOTPRINT_H
#define MIRRORBALL_FOOTPRINT_H

#include <mirrorball/error.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/*
 * What a machine takes of the host's memory, by kind, from what Linux tells of its mappings
 * (proc_pid_smaps(5)). A page that n page tables' entries have counts 1/n for each (PSS), so that
 * the kinds add up to the process' PSS, and processes to the host's memory.
 *
 * Linux walks the page tables for it: some 10 ms for each GiB that is mapped in 4 KiB pages.
 */
#define MB_FOOTPRINT_MAX_ORIGINS 32u
#define MB_FOOTPRINT_TAG_LEN	 64u
#define MB_FOOTPRINT_PATH_LEN	 256u

/* Pages of the commons that have one origin, or of an image that is guest memory (pmem_map.h). */
struct mb_footprint_origin {
	/* Of an image, or its end where it is longer; "": it is the commons'. */
	char path[MB_FOOTPRINT_PATH_LEN];
	uint64_t device, inode; /* of an image, as smaps tells */
	/* "PID:DEVICE:INODE": the daemon's, and of a base image, in hexadecimal digits; or another
	 * word; "": not known. */
	char tag[MB_FOOTPRINT_TAG_LEN];
	/* Of guest memory that is merged with it, touched or not, once; of an image: that is mapped. */
	uint64_t shared_bytes;
	uint64_t pss_bytes;    /* of all that is mapped of it */
};

struct mb_footprint {
	uint64_t pss_bytes;	   /* the sum of the next four */
	uint64_t private_bytes;	   /* guest memory that is nobody else's */
	uint64_t copies_bytes;	   /* of guest memory, for other views */
	uint64_t shared_pss_bytes; /* of all origins */
	uint64_t monitor_bytes;	   /* program, libraries, heap, stacks, whatever else */
	uint64_t shared_bytes;	   /* of all origins */
	/* Where there are more, the last one is all others. */
	struct mb_footprint_origin origin[MB_FOOTPRINT_MAX_ORIGINS];
	unsigned n_origins;
};

/*
 * Reads /proc/PID/smaps of a machine with n_views views. -EACCES: this user may not (another
 * user's, or a program with capabilities of its own); -ESRCH: there is no such process; -EBADMSG:
 * it is no smaps; err says so.
 */
int mb_footprint_read(
	pid_t pid, unsigned n_views, struct mb_footprint *footprint, struct mb_error *err);

/*
 * The same of texts. smaps has whole KiB for each mapping, cut off; rollup (smaps_rollup; may be
 * NULL) has the sum before that, and the difference goes to the kinds that have mappings which may
 * have lost a part. -EBADMSG: smaps has no mapping. n_views 0 counts as 1.
 */
int mb_footprint_parse(FILE *smaps, FILE *rollup, unsigned n_views, struct mb_footprint *footprint);

#endif
