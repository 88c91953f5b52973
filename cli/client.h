/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_CLIENT_H
#define MIRRORBALL_CLI_CLIENT_H

#include <jansson.h>
#include <mirrorball/error.h>
#include <stdbool.h>
#include <sys/types.h>

/* How a command talks to a running machine: its control socket (mirrorball/control.h). */
struct cli_client;

/*
 * Connects to the machine with this name or process ID, of this user (root: of root's machines).
 * -ENOENT where none runs, -ENOTUNIQ where several have that name; err says what to do.
 */
int cli_client_open(const char *who, struct cli_client **out, struct mb_error *err);
void cli_client_close(struct cli_client *client); /* takes NULL */

/*
 * Sends {"request": request} and waits for the answer, which the caller gives back with
 * json_decref. -EPIPE when the machine has ended, -EPROTO when it refuses or answers nonsense; err
 * has what it said.
 */
int cli_client_ask(
	struct cli_client *client, const char *request, json_t **answer, struct mb_error *err);

/*
 * Asks for something that is about a file, with an absolute path; that takes as long as it takes: a machine writes
 * its memory.
 */
int cli_client_ask_path(struct cli_client *client, const char *request, const char *path,
	json_t **answer, struct mb_error *err);

/*
 * The same in steps, for who asks several machines at once. A machine that says nothing for 10 s
 * after the last that it was sent or that it said is given up: -ETIMEDOUT. Who connects to a
 * machine that ended meanwhile gets -ENOENT.
 */
struct cli_machine; /* machines.h */
int cli_client_connect(
	const struct cli_machine *machine, struct cli_client **out, struct mb_error *err);
int cli_client_send(struct cli_client *client, const char *request, struct mb_error *err);
int cli_client_receive(struct cli_client *client, json_t **answer, struct mb_error *err);

const char *cli_client_name(const struct cli_client *client);
pid_t cli_client_pid(const struct cli_client *client);

#endif
