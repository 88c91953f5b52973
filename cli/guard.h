/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_GUARD_H
#define MIRRORBALL_CLI_GUARD_H

#include <stdbool.h>

/*
 * What the process owes its surroundings, whatever happens to it: standard descriptors that are
 * open, a terminal that is as it was, and no core file full of a guest's memory.
 *
 * Opens /dev/null for each standard descriptor that is closed (the next file opened would take its
 * number and get the guest's output), ignores SIGPIPE, sets the core file limit to 0, raises
 * the limit of open files as far as it may, and restores the terminal's modes when a fatal signal
 * ends the process. The one place with process-wide state:
 * signal handlers have no other. 0 or -errno after a message.
 */
int cli_guard_start(void);

/*
 * The terminal's modes as they were at the start, if it is ours now; its screen, too, where a
 * command has taken it. Async-signal-safe.
 */
void cli_guard_restore(void);

/*
 * Takes the terminal that fd is for a full-screen picture: the alternate screen, without a cursor,
 * and keys (if standard input is that terminal) are read at once and not shown. cli_guard_restore
 * gives it back, and a fatal signal does, too.
 */
void cli_guard_take_screen(int fd);

/* Whether standard input was closed when the process started. */
bool cli_guard_stdin_was_closed(void);

/*
 * Holds SIGINT, SIGTERM, SIGHUP and SIGQUIT back: a machine takes them as long as it is there, and
 * what is said about its end is not to be cut off.
 */
void cli_guard_hold_signals(void);

#endif
