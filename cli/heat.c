// SPDX-License-Identifier: Apache-2.0
#include "heat.h"
#include "cli.h"
#include "parse.h"
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MIN_INTERVAL_MS 100
#define MAX_MS		86400000u /* a day */
#define INTERVAL_MS	1000
#define SVG_MS		10000
#define SVG_COLUMNS	40 /* of a picture whose interval was not given */
#define SVG_INTERVAL_MS 250
#define TEXT_COLUMNS	100 /* where nobody knows */

static int heat_main(const struct cli_command *command, int argc, char **argv);

enum { OPT_ONCE, OPT_JSON, OPT_SVG, OPT_INTERVAL, OPT_SECONDS, OPT_HELP, OPT_VERSION, N_OPTIONS };

static const struct cli_option options[] = {
	[OPT_ONCE] = {"once", NULL,
		"print the map once as text, as it is done where standard output is no terminal"},
	[OPT_JSON] = {"json", NULL,
		"print JSON for programs: one object, or with --seconds one a line"},
	[OPT_SVG] = {"svg", "FILE", "record, and draw a picture over time; - for standard output"},
	[OPT_INTERVAL] = {"interval", "S",
		"seconds between two looks, 0.1 or more; default 1, with --svg a fortieth of "
		"--seconds, but 0.25 at least"},
	[OPT_SECONDS] = {"seconds", "S",
		"how long to look; default: as long as it runs, with --svg 10; where something is "
		"printed once, at most 10, and less when most memory has been looked at"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

const struct cli_command cli_heat = {
	.name = "heat",
	.summary = "Show which node touches which memory of a machine, and where it lives",
	.usage = "[OPTIONS] NAME|PID",
	.about = "Shows the guest memory of a running machine: who reads and writes it, and on "
		 "which node it lives. On a terminal it is a live map: q ends it, m changes "
		 "between touched, read and written, n shows or hides where memory lives.",
	.options = options,
	.epilogue = "Exit status: 0 shown, 1 no such machine or it failed, 2 wrong command line, "
		    "128 + n ended by signal n.\n"
		    "More: man mirrorball-heat.",
	.main = heat_main,
};

struct asked {
	struct heat_options heat;
	bool seen[N_OPTIONS]; /* options may stand before and after the name */
};

static int set_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct asked *asked = ctx;
	struct heat_options *o = &asked->heat;

	if (asked->seen[index])
		return mb_error_set(err, EINVAL, "is given twice");
	asked->seen[index] = true;
	switch (index) {
	case OPT_ONCE:
		o->once = true;
		break;
	case OPT_JSON:
		o->json = true;
		break;
	case OPT_SVG:
		if (!*value)
			return mb_error_set(err, EINVAL, "the file has no name");
		o->svg_path = value;
		break;
	case OPT_INTERVAL:
		return cli_parse_seconds(value, MIN_INTERVAL_MS, MAX_MS, &o->interval_ms, err);
	case OPT_SECONDS:
		return cli_parse_seconds(value, MIN_INTERVAL_MS, MAX_MS, &o->limit_ms, err);
	case OPT_HELP:
		o->help = true;
		break;
	default:
		o->version = true;
	}
	return 0;
}

static int check_svg(struct heat_options *o, struct mb_error *err)
{
	if (!o->limit_ms)
		o->limit_ms = SVG_MS;
	if (!o->interval_ms)
		o->interval_ms = o->limit_ms / SVG_COLUMNS > SVG_INTERVAL_MS
					 ? o->limit_ms / SVG_COLUMNS
					 : SVG_INTERVAL_MS;
	if (o->limit_ms / o->interval_ms > HEAT_MAX_COLUMNS)
		return mb_error_set(err, ERANGE,
			"--interval: a picture has room for %u looks; for %g s that is one every "
			"%g s",
			HEAT_MAX_COLUMNS, o->limit_ms / 1e3,
			(o->limit_ms + HEAT_MAX_COLUMNS - 1) / HEAT_MAX_COLUMNS / 1e3);
	return 0;
}

static bool can_move_cursor(void)
{
	const char *term = getenv("TERM");

	return isatty(STDOUT_FILENO) && term && *term && strcmp(term, "dumb");
}

static int check(struct heat_options *o, struct mb_error *err)
{
	bool live = can_move_cursor() && !o->once;

	if (!o->who)
		return mb_error_set(err, EINVAL,
			"heat: which machine? Give its name or PID, as 'mirrorball ps' shows them");
	if (o->once + o->json + !!o->svg_path > 1)
		return mb_error_set(err, EINVAL, "%s and %s exclude each other",
			o->once ? "--once" : "--json", o->svg_path ? "--svg" : "--json");
	if (o->svg_path)
		return check_svg(o, err);
	if (o->interval_ms && o->json && !o->limit_ms)
		return mb_error_set(err, EINVAL, "--interval: --json needs --seconds for several");
	if (o->interval_ms && !o->json && !live)
		return mb_error_set(err, EINVAL, "--interval: %s is printed once",
			o->once ? "with --once the map"
				: "on this standard output, which is no terminal, the map");
	if (!o->json && !live)
		o->once = true;
	if (!o->interval_ms)
		o->interval_ms = INTERVAL_MS;
	return 0;
}

static int parse(struct asked *asked, int argc, char **argv, struct mb_error *err)
{
	struct cli_option_user user = {.set = set_option, .ctx = asked};
	int first, rc;

	rc = cli_options_walk(options, argc, argv, &user, &first, err);
	if (!rc && first < argc) {
		asked->heat.who = argv[first];
		argc -= first;
		argv += first;
		rc = cli_options_walk(options, argc, argv, &user, &first, err);
		if (!rc && first < argc)
			rc = mb_error_set(err, EINVAL,
				"unexpected word '%s'; heat takes one machine", argv[first]);
	}
	if (rc || asked->heat.help || asked->heat.version)
		return rc;
	return check(&asked->heat, err);
}

static unsigned number_of(const char *text, unsigned otherwise)
{
	unsigned value;

	return text && !cli_parse_unsigned(text, 1, 10000, &value, NULL) ? value : otherwise;
}

static enum heat_colours colours_of_stdout(void)
{
	const char *no_colour = getenv("NO_COLOR"), *depth = getenv("COLORTERM");

	if (!can_move_cursor() || (no_colour && *no_colour))
		return HEAT_MONO;
	if (depth && (!strcmp(depth, "truecolor") || !strcmp(depth, "24bit")))
		return HEAT_COLOURS_RGB;
	return strstr(getenv("TERM"), "256color") ? HEAT_COLOURS_256 : HEAT_COLOURS_8;
}

void heat_look_of_stdout(struct heat_look *look)
{
	struct winsize size = {0};

	if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col) {
		look->columns = size.ws_col;
		look->rows = size.ws_row ? size.ws_row : 24;
	} else {
		bool is_tty = isatty(STDOUT_FILENO);

		look->columns = number_of(getenv("COLUMNS"), is_tty ? 80 : TEXT_COLUMNS);
		look->rows = number_of(getenv("LINES"), 24);
	}
	look->colours = colours_of_stdout();
	setlocale(LC_CTYPE, "");
	look->utf8 = !strcmp(nl_langinfo(CODESET), "UTF-8");
}

static int heat_main(const struct cli_command *command, int argc, char **argv)
{
	struct asked asked = {0};
	struct heat_options *o = &asked.heat;
	struct mb_error err;

	if (parse(&asked, argc, argv, &err))
		return cli_usage_error(command, &err);
	if (o->help || o->version) {
		if (o->help)
			cli_command_help(command, stdout);
		else
			cli_version(stdout);
		return cli_flush();
	}
	if (o->svg_path)
		return heat_record_svg(o);
	if (o->json && o->limit_ms && asked.seen[OPT_SECONDS])
		return heat_json_lines(o);
	return o->once || o->json ? heat_once(o) : heat_watch(o);
}
