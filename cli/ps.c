// SPDX-License-Identifier: Apache-2.0
#include "ask_all.h"
#include "parse.h"
#include "units.h"
#include <mirrorball/json.h>
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

enum { NAME, PID, STATE, CPUS, MEMORY, RESIDENT, CPU_TIME, UPTIME, GUEST, N_COLUMNS };

static const struct cli_column columns[N_COLUMNS] = {
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

static uint64_t number(const json_t *answer, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(answer, key));
}

static void text(char cell[CLI_CELL_BYTES], const json_t *answer, const char *key)
{
	const char *value = json_string_value(json_object_get(answer, key));

	snprintf(cell, CLI_CELL_BYTES, "%s", value ? value : "-");
	mb_error_make_printable(cell);
}

static void fill(const struct cli_said *said, char (*cell)[CLI_CELL_BYTES])
{
	for (unsigned c = 0; c < N_COLUMNS; c++)
		snprintf(cell[c], CLI_CELL_BYTES, "-");
	snprintf(cell[NAME], CLI_CELL_BYTES, "%s", said->machine->name);
	mb_error_make_printable(cell[NAME]);
	snprintf(cell[PID], CLI_CELL_BYTES, "%d", (int)said->machine->pid);
	if (!said->answer) {
		snprintf(cell[STATE], CLI_CELL_BYTES, "unknown");
		return;
	}
	text(cell[STATE], said->answer, "state");
	text(cell[GUEST], said->answer, "guest");
	snprintf(cell[CPUS], CLI_CELL_BYTES, "%u", (unsigned)number(said->answer, "cpus"));
	cli_format_size(number(said->answer, "memory_bytes"), cell[MEMORY], CLI_CELL_BYTES);
	cli_format_bytes(number(said->answer, "resident_bytes"), cell[RESIDENT], CLI_CELL_BYTES);
	cli_format_ms(number(said->answer, "cpu_ms"), cell[CPU_TIME], CLI_CELL_BYTES);
	cli_format_ms(number(said->answer, "uptime_ms"), cell[UPTIME], CLI_CELL_BYTES);
}

static int show_json(const struct cli_said *said, unsigned n)
{
	json_t *list = json_array();
	int rc = 0;

	for (unsigned i = 0; i < n; i++)
		if (!said[i].ended)
			mb_json_append(list, cli_said_json(&said[i]), &rc);
	if (!rc)
		rc = cli_print_json(list);
	json_decref(list);
	return rc;
}

static int show(void *ctx, struct cli_said *said, unsigned n)
{
	const struct cli_json_asked *asked = ctx;

	return asked->json ? show_json(said, n)
			   : cli_said_table(said, n, columns, N_COLUMNS, fill);
}

static int ps_main(const struct cli_command *command, int argc, char **argv)
{
	struct cli_json_asked asked = {0};
	struct cli_option_user user = {.set = cli_json_option, .ctx = &asked};
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
	return cli_ask_all_main(command, &asked, show, &asked);
}
