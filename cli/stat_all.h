/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_STAT_ALL_H
#define MIRRORBALL_CLI_STAT_ALL_H

#include "cli.h"

/* `stat` without a machine: what all of them take of the host, and what sharing saves. Exit status. */
int cli_stat_all(const struct cli_command *command, const struct cli_json_asked *asked);

#endif
