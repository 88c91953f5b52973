/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_TARGET_H
#define MIRRORBALL_CLI_TARGET_H

#include <limits.h>
#include <mirrorball/error.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * Where a picture goes. A file is written beside its place and moved there when it is whole; what
 * is no file (a pipe, a device, standard output, which is "-") is written as it is.
 */
struct cli_target {
	int fd;
	char path[PATH_MAX], temporary[PATH_MAX + 8];
	const char *name; /* for messages */
};

/* path must outlive it. -errno */
int cli_target_open(struct cli_target *target, const char *path, struct mb_error *err);
int cli_target_write(struct cli_target *target, const char *text, size_t len); /* -errno */
/* keep: the picture is to be there. -errno; what was there before then stays. */
int cli_target_close(struct cli_target *target, bool keep);

#endif
