/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_SRC_SNAPSHOT_INTERNAL_H
#define MB_SRC_SNAPSHOT_INTERNAL_H

#include <mirrorball/snapshot.h>

#define MB_SNAPSHOT_MAX_STRINGS 1024u
#define MB_SNAPSHOT_MAX_ARGS	32u /* of passt */

/* Of the part with the config, which comes first. */
#define MB_SNAPSHOT_CONFIG_VERSION 2u

struct mb_snapshot {
	struct mb_machine_config config;
	char *text[MB_SNAPSHOT_MAX_STRINGS]; /* config's */
	unsigned n_texts;
	const char *passt_args[MB_MAX_NETS][MB_SNAPSHOT_MAX_ARGS + 1];

	char *dir;
	int ram_fd;
	int disk_fd[MB_MAX_DISKS];
	uint32_t ram_crc;
	uint8_t *bytes; /* of `state` */
	struct mb_state_in rest;
};

/* src/snapshot_config.c: the part with the config. -EINVAL: it is not one. */
int mb_snapshot_read_config(
	struct mb_snapshot *snapshot, struct mb_state_in *in, struct mb_error *err);

#endif
