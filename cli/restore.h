/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_RESTORE_H
#define MIRRORBALL_CLI_RESTORE_H

#include "run.h"
#include <jansson.h>
#include <mirrorball/snapshot.h>

/*
 * Runs what run->config, which comes from a snapshot, says to its end; what goes wrong is told.
 * Exit status. Messages of memory that cannot be read any more name dir, which must outlive the
 * process.
 */
int cli_restore_run(struct cli_run *run, const char *dir);

/* An absolute path without slashes at its end; to be freed. NULL: out of memory, or there is no
 * directory to begin at. */
char *cli_absolute_path(const char *path);

/* Asks a machine for a snapshot at path, absolute. */
int cli_snapshot_make(const char *who, const char *path, json_t **answer, struct mb_error *err);

#endif
