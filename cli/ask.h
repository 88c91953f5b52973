/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_ASK_H
#define MIRRORBALL_CLI_ASK_H

#include "cli.h"
#include <jansson.h>

/*
 * The main function of a command that asks one machine for what has the command's name: `stat
 * NAME|PID`. Options may also stand behind the machine; user's set puts the common ones into asked.
 * add (may be NULL) puts more into the answer before it is shown or printed: 0 or -ENOMEM. show gets
 * user's ctx. Returns the exit status.
 */
struct cli_ask_ops {
	int (*add)(json_t *answer);
	void (*show)(void *ctx, json_t *answer);
};
int cli_ask_main(const struct cli_command *command, const struct cli_option_user *user,
	const struct cli_json_asked *asked, int argc, char **argv, const struct cli_ask_ops *ops);

#endif
