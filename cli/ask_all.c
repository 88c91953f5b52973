// SPDX-License-Identifier: Apache-2.0
#include "ask_all.h"
#include "client.h"
#include <errno.h>
#include <mirrorball/log.h>
#include <stdlib.h>
#include <string.h>

/* Asks all before it listens to one: a machine that does not answer is waited for once. */
static void ask(struct cli_said *said, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct cli_said *s = &said[i];
		int rc = cli_client_connect(s->machine, &s->client, &s->error);

		s->ended = rc == -ENOENT;
		if (!rc && cli_client_send(s->client, "stat", &s->error)) {
			cli_client_close(s->client);
			s->client = NULL;
		}
	}
	for (unsigned i = 0; i < n; i++) {
		struct cli_said *s = &said[i];

		if (s->client)
			s->ended = cli_client_receive(s->client, &s->answer, &s->error) == -EPIPE;
		cli_client_close(s->client);
		s->client = NULL;
	}
}

json_t *cli_said_json(const struct cli_said *said)
{
	char name[NAME_MAX + 1];
	struct mb_error error = said->error;

	if (said->answer)
		return json_incref(said->answer);
	memcpy(name, said->machine->name, sizeof(name));
	mb_error_make_printable(name);
	mb_error_make_printable(error.text);
	return json_pack("{s:b,s:s,s:i,s:s}", "ok", 0, "name", name, "pid", (int)said->machine->pid,
		"error", error.text);
}

int cli_said_table(const struct cli_said *said, unsigned n, const struct cli_column *columns,
	unsigned n_columns, void (*fill)(const struct cli_said *said, char (*cell)[CLI_CELL_BYTES]))
{
	char(*cell)[CLI_CELL_BYTES] = calloc((n + 1) * n_columns, sizeof(*cell));
	unsigned n_rows = 0;

	if (!cell)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++)
		if (!said[i].ended)
			fill(&said[i], &cell[n_rows++ * n_columns]);
	cli_table_show(columns, n_columns, cell, n_rows);
	free(cell);
	return 0;
}

static int ask_and_show(const struct cli_command *command, const struct cli_json_asked *asked,
	struct cli_said *said, unsigned n,
	int (*show)(void *ctx, struct cli_said *said, unsigned n), void *ctx)
{
	unsigned n_running = 0;
	int status = CLI_OK;

	ask(said, n);
	for (unsigned i = 0; i < n; i++)
		n_running += !said[i].ended;
	if ((asked->json || n_running) && show(ctx, said, n)) {
		mb_log("%s: %s", command->name, strerror(ENOMEM));
		status = CLI_FAILED;
	}
	if (cli_flush())
		status = CLI_FAILED;
	else if (!n_running && !asked->json)
		mb_log("no machine is running");
	for (unsigned i = 0; i < n; i++) {
		if (!said[i].ended && !said[i].answer) {
			status = CLI_FAILED;
			mb_log("%s", said[i].error.text);
		}
		json_decref(said[i].answer);
	}
	return status;
}

int cli_ask_all_main(const struct cli_command *command, const struct cli_json_asked *asked,
	int (*show)(void *ctx, struct cli_said *said, unsigned n), void *ctx)
{
	struct cli_machines machines;
	struct cli_said *said;
	struct mb_error err;
	int rc = cli_machines_list(&machines, &err);

	if (rc) {
		mb_log("%s: %s", command->name, err.text);
		return CLI_FAILED;
	}
	said = calloc(machines.n + 1, sizeof(*said));
	if (said) {
		for (unsigned i = 0; i < machines.n; i++)
			said[i].machine = &machines.machine[i];
		rc = ask_and_show(command, asked, said, machines.n, show, ctx);
	} else {
		mb_log("%s: out of memory", command->name);
		rc = CLI_FAILED;
	}
	free(said);
	cli_machines_finish(&machines);
	return rc;
}
