// SPDX-License-Identifier: Apache-2.0
#include "stat_all.h"
#include "ask_all.h"
#include "footprint.h"
#include "units.h"
#include <errno.h>
#include <mirrorball/json.h>
#include <mirrorball/log.h>
#include <stdlib.h>
#include <string.h>

enum { NAME, PID, TOTAL, PRIVATE, COUNTED, COPIES, MONITOR, SHARED, WITH, N_COLUMNS };

static const struct cli_column columns[N_COLUMNS] = {
	[NAME] = {"NAME", false},
	[PID] = {"PID", true},
	[TOTAL] = {"FOOTPRINT", true},
	[PRIVATE] = {"PRIVATE", true},
	[COUNTED] = {"OF-SHARED", true},
	[COPIES] = {"COPIES", true},
	[MONITOR] = {"MONITOR", true},
	[SHARED] = {"SHARED", true},
	[WITH] = {"WITH", false},
};

struct all {
	const struct cli_command *command;
	const struct cli_json_asked *asked;
	unsigned n_unknown; /* machines whose footprint is not known */
};

static void fill_with(const json_t *origins, char cell[CLI_CELL_BYTES])
{
	const json_t *origin;
	size_t i, at = 0;

	json_array_foreach(origins, i, origin)
	{
		char with[CLI_CELL_BYTES];

		cli_footprint_format_others(origin, with, sizeof(with));
		at += (size_t)snprintf(cell + at, CLI_CELL_BYTES - at, "%s%s", i ? "; " : "", with);
		if (at >= CLI_CELL_BYTES)
			break;
	}
}

static void fill(const struct cli_said *said, char (*cell)[CLI_CELL_BYTES])
{
	static const char *const keys[N_COLUMNS] = {
		[TOTAL] = "proportional_bytes",
		[PRIVATE] = "private_bytes",
		[COUNTED] = "shared_proportional_bytes",
		[COPIES] = "copies_bytes",
		[MONITOR] = "monitor_bytes",
		[SHARED] = "shared_bytes",
	};
	const json_t *f = json_object_get(said->answer, "footprint");

	for (unsigned c = 0; c < N_COLUMNS; c++)
		snprintf(cell[c], CLI_CELL_BYTES, "-");
	snprintf(cell[NAME], CLI_CELL_BYTES, "%s", said->machine->name);
	mb_error_make_printable(cell[NAME]);
	snprintf(cell[PID], CLI_CELL_BYTES, "%d", (int)said->machine->pid);
	for (unsigned c = 0; c < N_COLUMNS; c++)
		if (keys[c] && json_object_get(f, keys[c]))
			cli_format_bytes(cli_footprint_number(f, keys[c]), cell[c], CLI_CELL_BYTES);
	fill_with(json_object_get(f, "origins"), cell[WITH]);
}

static int show_table(const struct cli_said *said, unsigned n, const json_t *host)
{
	uint64_t machines = cli_footprint_number(host, "machines");
	char taken[32], commons[32], saved[32];
	int rc = cli_said_table(said, n, columns, N_COLUMNS, fill);

	if (rc)
		return rc;
	cli_format_bytes(cli_footprint_number(host, "taken_bytes"), taken, sizeof(taken));
	cli_format_bytes(cli_footprint_number(host, "commons_bytes") +
				 cli_footprint_number(host, "pmem_bytes"),
		commons, sizeof(commons));
	cli_format_bytes(cli_footprint_number(host, "saved_bytes"), saved, sizeof(saved));
	printf("%llu %s %s, of it %s in common; sharing saves %s\n", (unsigned long long)machines,
		machines == 1 ? "machine takes" : "machines take", taken, commons, saved);
	return 0;
}

static void say_what_is_unknown(struct all *all, const struct cli_said *said, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		const json_t *why =
			json_object_get(json_object_get(said[i].answer, "footprint"), "error");

		if (!why)
			continue;
		all->n_unknown++;
		mb_log("%s: %s (PID %d): %s", all->command->name, said[i].machine->name,
			(int)said[i].machine->pid, json_string_value(why));
	}
}

static int show(void *ctx, struct cli_said *said, unsigned n)
{
	struct all *all = ctx;
	json_t *commons = cli_footprint_commons(), *list = json_array(), *host, *both = NULL;
	int rc = 0;

	for (unsigned i = 0; i < n; i++) {
		if (said[i].ended)
			continue;
		if (said[i].answer && cli_footprint_add(said[i].answer, commons))
			rc = -ENOMEM;
		mb_json_append(list, cli_said_json(&said[i]), &rc);
	}
	host = cli_footprint_host(list, commons);
	if (!host)
		rc = -ENOMEM;
	if (!rc && all->asked->json) {
		both = json_pack("{s:O,s:O}", "machines", list, "host", host);
		rc = both ? cli_print_json(both) : -ENOMEM;
	} else if (!rc) {
		rc = show_table(said, n, host);
	}
	say_what_is_unknown(all, said, n);
	json_decref(both);
	json_decref(host);
	json_decref(list);
	json_decref(commons);
	return rc;
}

int cli_stat_all(const struct cli_command *command, const struct cli_json_asked *asked)
{
	struct all all = {.command = command, .asked = asked};
	int status = cli_ask_all_main(command, asked, show, &all);

	return status == CLI_OK && all.n_unknown ? CLI_FAILED : status;
}
