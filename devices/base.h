/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BASE_H
#define MIRRORBALL_BASE_H

#include "qcow2.h"
#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/*
 * A file that is only read, by several machines maybe, and that all of them rely on to stay as it
 * is: the base of a disk with a delta, or what is a guest's persistent memory. It is locked against
 * writers who look at locks; of the others its size and time of change tell. Private to devices/.
 */
struct mb_base {
	int fd;			  /* whoever opened it closes it */
	bool is_device;		  /* then nobody can tell by its times whether it was changed */
	struct mb_qcow2_base was; /* when it was opened */
	bool changed;		  /* atomic, relaxed */
};

struct mb_blk_file;

/*
 * Opens and locks such a file, or one that is to be written, and reads what is known of it. To be
 * closed with mb_blk_file_close.
 */
int mb_base_open(struct mb_blk_file *file, const char *path, bool readonly,
	struct mb_qcow2_base *was, struct mb_error *err);
/*
 * What is known of one now; waits 20 ms where it was changed so lately that another change might
 * not be seen.
 */
int mb_base_read(int fd, const char *path, uint64_t bytes, bool is_device,
	struct mb_qcow2_base *was, struct mb_error *err);
/* Whether one is now what was known of it. */
bool mb_base_is(const struct mb_qcow2_base *was, const struct stat *st);

/*
 * Whether it is what it was when it was opened: as long as it is, what was read from it before the
 * call was right. Once false it stays so. *news: this call was the first to see that. Any thread.
 */
bool mb_base_holds(struct mb_base *base, bool *news);

#endif
