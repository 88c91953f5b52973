/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_MACHINES_H
#define MIRRORBALL_CLI_MACHINES_H

#include <mirrorball/control.h>
#include <mirrorball/error.h>
#include <sys/types.h>

/* The control sockets of this user: one a machine that runs, and some that have just ended. */
struct cli_machine {
	char file[NAME_MAX + 1]; /* in its directory */
	char name[NAME_MAX + 1];
	pid_t pid;
	int dir_fd; /* one of cli_machines' */
};

struct cli_machines {
	struct cli_machine *machine; /* by name, then by PID */
	unsigned n;
	int dir_fd[MB_CONTROL_MAX_DIRS];
	unsigned n_dirs;
};

/*
 * Lists them, and removes the sockets of processes that are gone. That there is none is no error;
 * that the only directory there is must not be trusted is one. Finish it unless it failed.
 */
int cli_machines_list(struct cli_machines *machines, struct mb_error *err);
void cli_machines_finish(struct cli_machines *machines);

#endif
