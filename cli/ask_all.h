/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_ASK_ALL_H
#define MIRRORBALL_CLI_ASK_ALL_H

#include "cli.h"
#include "machines.h"
#include "table.h"
#include <jansson.h>

struct cli_client;

/* What one machine has said. */
struct cli_said {
	const struct cli_machine *machine;
	struct cli_client *client; /* NULL: there was none to be had */
	json_t *answer;		   /* NULL: error says why, or the machine has ended */
	struct mb_error error;
	bool ended;
};

/*
 * The rest of a command that asks all machines of this user for `stat`: show gets what all have
 * said, by name and PID, and prints it; -ENOMEM. It is not called where no machine runs, unless
 * JSON is wanted; what a machine did not answer is said afterwards. Returns the exit status.
 */
int cli_ask_all_main(const struct cli_command *command, const struct cli_json_asked *asked,
	int (*show)(void *ctx, struct cli_said *said, unsigned n), void *ctx);

/* As a member of a list, with one reference: its answer, or who did not answer and why. NULL: out
 * of memory. */
json_t *cli_said_json(const struct cli_said *said);

/* A table with a row for each that runs, whose cells fill writes. -ENOMEM. */
int cli_said_table(const struct cli_said *said, unsigned n, const struct cli_column *columns,
	unsigned n_columns, void (*fill)(const struct cli_said *said, char (*cell)[CLI_CELL_BYTES]));

#endif
