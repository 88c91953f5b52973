// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "client.h"
#include "machines.h"
#include "parse.h"
#include "units.h"
#include <errno.h>
#include <mirrorball/log.h>
#include <stdlib.h>
#include <string.h>

static int ps_main(const struct cli_command *command, int argc, char **argv);

const struct cli_command cli_ps = {
	.name = "ps",
	.summary = "List the machines that are running",
	.usage = "[OPTIONS]",
	.about = "Lists the running machines of this user, with what they take of the host.",
	.options = cli_json_options,
	.epilogue =
		"Exit status: 0 listed, or none is running; 1 a machine did not answer; 2 wrong "
		"command line.\nMore: man mirrorball-ps.",
	.main = ps_main,
};

/* Columns of the table; all but the last are padded. */
enum { NAME, PID, STATE, CPUS, MEMORY, RESIDENT, CPU_TIME, UPTIME, GUEST, N_COLUMNS };

static const struct {
	const char *title;
	bool right;
} columns[N_COLUMNS] = {
	[NAME] = {"NAME", false},
	[PID] = {"PID", true},
	[STATE] = {"STATE", false},
	[CPUS] = {"CPUS", true},
	[MEMORY] = {"MEMORY", true},
	[RESIDENT] = {"RESIDENT", true},
	[CPU_TIME] = {"CPU-TIME", true},
	[UPTIME] = {"UPTIME", true},
	[GUEST] = {"GUEST", false},
};

#define CELL_BYTES 256

struct row {
	const struct cli_machine *machine;
	struct cli_client *client; /* NULL: there was none to be had */
	json_t *answer;		   /* NULL: error says why, or the machine has ended */
	struct mb_error error;
	bool ended;
	char cell[N_COLUMNS][CELL_BYTES];
};

/* Asks all before it listens to one: a machine that does not answer is waited for once. */
static void ask(struct row *rows, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct row *r = &rows[i];
		int rc = cli_client_connect(r->machine, &r->client, &r->error);

		r->ended = rc == -ENOENT;
		if (!rc && cli_client_send(r->client, "stat", &r->error)) {
			cli_client_close(r->client);
			r->client = NULL;
		}
	}
	for (unsigned i = 0; i < n; i++) {
		struct row *r = &rows[i];

		if (r->client)
			r->ended = cli_client_receive(r->client, &r->answer, &r->error) == -EPIPE;
		cli_client_close(r->client);
		r->client = NULL;
	}
}

static uint64_t number(const json_t *answer, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(answer, key));
}

static void text(char cell[CELL_BYTES], const json_t *answer, const char *key)
{
	const char *value = json_string_value(json_object_get(answer, key));

	snprintf(cell, CELL_BYTES, "%s", value ? value : "-");
	mb_error_make_printable(cell);
}

static void fill(struct row *r)
{
	for (unsigned c = 0; c < N_COLUMNS; c++)
		snprintf(r->cell[c], CELL_BYTES, "-");
	snprintf(r->cell[NAME], CELL_BYTES, "%s", r->machine->name);
	mb_error_make_printable(r->cell[NAME]);
	snprintf(r->cell[PID], CELL_BYTES, "%d", (int)r->machine->pid);
	if (!r->answer) {
		snprintf(r->cell[STATE], CELL_BYTES, "unknown");
		return;
	}
	text(r->cell[STATE], r->answer, "state");
	text(r->cell[GUEST], r->answer, "guest");
	snprintf(r->cell[CPUS], CELL_BYTES, "%u", (unsigned)number(r->answer, "cpus"));
	cli_format_size(number(r->answer, "memory_bytes"), r->cell[MEMORY], CELL_BYTES);
	cli_format_bytes(number(r->answer, "resident_bytes"), r->cell[RESIDENT], CELL_BYTES);
	cli_format_ms(number(r->answer, "cpu_ms"), r->cell[CPU_TIME], CELL_BYTES);
	cli_format_ms(number(r->answer, "uptime_ms"), r->cell[UPTIME], CELL_BYTES);
}

static void show_line(char (*cell)[CELL_BYTES], const int *width)
{
	for (unsigned c = 0; c < N_COLUMNS - 1; c++)
		printf("%*s  ", columns[c].right ? width[c] : -width[c], cell[c]);
	puts(cell[N_COLUMNS - 1]);
}

static void show_table(struct row *rows, unsigned n)
{
	char titles[N_COLUMNS][CELL_BYTES];
	int width[N_COLUMNS];

	for (unsigned c = 0; c < N_COLUMNS; c++) {
		snprintf(titles[c], CELL_BYTES, "%s", columns[c].title);
		width[c] = (int)strlen(titles[c]);
	}
	for (unsigned i = 0; i < n; i++) {
		if (rows[i].ended)
			continue;
		fill(&rows[i]);
		for (unsigned c = 0; c < N_COLUMNS; c++)
			if ((int)strlen(rows[i].cell[c]) > width[c])
				width[c] = (int)strlen(rows[i].cell[c]);
	}
	show_line(titles, width);
	for (unsigned i = 0; i < n; i++)
		if (!rows[i].ended)
			show_line(rows[i].cell, width);
}

static int show_json(struct row *rows, unsigned n)
{
	json_t *list = json_array();
	int rc = 0;

	for (unsigned i = 0; i < n && !rc; i++) {
		struct row *r = &rows[i];
		char name[NAME_MAX + 1];

		if (r->ended)
			continue;
		memcpy(name, r->machine->name, sizeof(name));
		mb_error_make_printable(name);
		mb_error_make_printable(r->error.text);
		if (json_array_append_new(list,
			    r->answer ? json_incref(r->answer)
				      : json_pack("{s:b,s:s,s:i,s:s}", "ok", 0, "name", name, "pid",
						(int)r->machine->pid, "error", r->error.text)))
			rc = -ENOMEM;
	}
	if (!rc)
		rc = cli_print_json(list);
	json_decref(list);
	return rc;
}

/* Exit status. */
static int show(struct row *rows, unsigned n, bool json)
{
	unsigned n_running = 0;
	int status = CLI_OK;

	ask(rows, n);
	for (unsigned i = 0; i < n; i++)
		n_running += !rows[i].ended;
	if (json && show_json(rows, n)) {
		mb_log("ps: --json: %s", strerror(ENOMEM));
		status = CLI_FAILED;
	} else if (!json && n_running) {
		show_table(rows, n);
	}
	if (cli_flush())
		status = CLI_FAILED;
	else if (!n_running && !json)
		mb_log("no machine is running");
	for (unsigned i = 0; i < n; i++) {
		if (!rows[i].ended && !rows[i].answer) {
			status = CLI_FAILED;
			mb_log("%s", rows[i].error.text);
		}
		json_decref(rows[i].answer);
	}
	return status;
}

static int ps_main(const struct cli_command *command, int argc, char **argv)
{
	struct cli_json_asked asked = {0};
	struct cli_option_user user = {.set = cli_json_option, .ctx = &asked};
	struct cli_machines machines;
	struct row *rows;
	struct mb_error err;
	int first, rc;

	rc = cli_options_walk(cli_json_options, argc, argv, &user, &first, &err);
	if (!rc && first < argc)
		rc = mb_error_set(&err, EINVAL,
			"unexpected word '%s'; ps takes options only (stat takes a machine)",
			argv[first]);
	if (rc)
		return cli_usage_error(command, &err);
	if (asked.help || asked.version)
		return cli_json_answer(command, &asked);
	rc = cli_machines_list(&machines, &err);
	if (rc) {
		mb_log("ps: %s", err.text);
		return CLI_FAILED;
	}
	rows = calloc(machines.n + 1, sizeof(*rows));
	if (rows) {
		for (unsigned i = 0; i < machines.n; i++)
			rows[i].machine = &machines.machine[i];
		rc = show(rows, machines.n, asked.json);
	} else {
		mb_log("ps: out of memory");
		rc = CLI_FAILED;
	}
	free(rows);
	cli_machines_finish(&machines);
	return rc;
}
