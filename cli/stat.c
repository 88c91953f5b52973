// SPDX-License-Identifier: Apache-2.0
#include "ask.h"
#include "footprint.h"
#include "parse.h"
#include "stat_all.h"
#include "units.h"
#include <string.h>

static int stat_main(const struct cli_command *command, int argc, char **argv);

const struct cli_command cli_stat = {
	.name = "stat",
	.summary = "Tell everything about a running machine",
	.usage = "[OPTIONS] [NAME|PID]",
	.about = "Tells what a running machine of this user is, what it has done and what it takes "
		 "of the host; without a name, what all of them take of the host's memory, and what "
		 "sharing saves. 'mirrorball ps' lists names and PIDs.",
	.options = cli_json_options,
	.epilogue = "Exit status: 0 told, 1 there is no such machine or it did not answer, 2 wrong "
		    "command line.\nMore: man mirrorball-stat.",
	.main = stat_main,
};

#define LABEL_COLUMN 18

/* What comes first, and what it is called; the rest is printed as it comes, under its own key. */
static const struct {
	const char *key, *label;
} known[] = {
	{"name", "name"},
	{"pid", "PID"},
	{"state", "state"},
	{"guest", "guest"},
	{"cpus", "vCPUs"},
	{"memory_bytes", "memory"},
	{"resident_bytes", "resident"},
	{"views", "views"},
	{"uptime_ms", "uptime"},
	{"cpu_ms", "CPU time"},
	{"exits", "exits"},
	{"resets", "resets"},
};

static bool is_known(const char *key)
{
	for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(key, known[i].key))
			return true;
	return !strcmp(key, "ok") || !strcmp(key, "footprint");
}

/* How the unit at the end of a key is shown; the units are those of the code (mem_bytes, age_ms).
 */
enum unit { UNIT_NONE, UNIT_BYTES, UNIT_MS, UNIT_PPM, UNIT_PER_S };

static const struct {
	const char *suffix;
	enum unit unit;
} units[] = {
	{"_bytes", UNIT_BYTES},
	{"_ms", UNIT_MS},
	{"_ppm", UNIT_PPM},
	{"_per_s", UNIT_PER_S},
};

/* Splits a key: the label for people, and the unit of its number. */
static enum unit split_key(const char *key, char *label, size_t len)
{
	enum unit unit = UNIT_NONE;

	snprintf(label, len, "%s", key);
	for (unsigned i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		size_t n = strlen(label), m = strlen(units[i].suffix);

		if (n > m && !strcmp(label + n - m, units[i].suffix)) {
			label[n - m] = '\0';
			unit = units[i].unit;
			break;
		}
	}
	for (char *p = label; *p; p++)
		if (*p == '_')
			*p = ' ';
	mb_error_make_printable(label);
	return unit;
}

static void format_number(const json_t *value, enum unit unit, char *out, size_t len)
{
	double x = json_number_value(value);
	uint64_t n = x > 0 ? (uint64_t)x : 0;

	if (unit == UNIT_BYTES)
		cli_format_bytes(n, out, len);
	else if (unit == UNIT_MS)
		cli_format_ms(n, out, len);
	else if (unit == UNIT_PPM)
		snprintf(out, len, "%.4g %%", x / 10000);
	else if (json_is_integer(value))
		snprintf(out, len, "%lld%s", (long long)json_integer_value(value),
			unit == UNIT_PER_S ? "/s" : "");
	else
		snprintf(out, len, "%.4g%s", x, unit == UNIT_PER_S ? "/s" : "");
}

/* A text, a number, true, false or null. */
static void show_scalar(const json_t *value, enum unit unit)
{
	char out[4096];

	if (json_is_string(value))
		snprintf(out, sizeof(out), "%s", json_string_value(value));
	else if (json_is_number(value))
		format_number(value, unit, out, sizeof(out));
	else if (json_is_boolean(value))
		snprintf(out, sizeof(out), "%s", json_is_true(value) ? "yes" : "no");
	else
		snprintf(out, sizeof(out), "-");
	mb_error_make_printable(out);
	fputs(out, stdout);
}

static void show_member(const char *key, const char *label, const json_t *value, unsigned depth);

static void show_members(json_t *object, unsigned depth)
{
	const char *key;
	json_t *value;

	json_object_foreach(object, key, value) show_member(key, NULL, value, depth);
}

/* label: NULL: made from the key. */
static void show_member(const char *key, const char *label, const json_t *value, unsigned depth)
{
	int indent = 2 * (int)depth;
	char made[64];
	enum unit unit = split_key(key, made, sizeof(made));
	size_t i, n = json_array_size(value);

	printf("%*s%-*s", indent, "", LABEL_COLUMN - indent, label ? label : made);
	if (json_is_object(value)) {
		putchar('\n');
		show_members((json_t *)value, depth + 1);
		return;
	}
	if (!json_is_array(value)) {
		putchar(' ');
		show_scalar(value, unit);
	}
	for (i = 0; i < n; i++) {
		json_t *one = json_array_get(value, i);

		if (json_is_object(one)) {
			printf("\n%*s%zu", indent + 2, "", i);
			putchar('\n');
			show_members(one, depth + 2);
		} else {
			putchar(' ');
			show_scalar(one, unit);
		}
	}
	if (!n || !json_is_object(json_array_get(value, n - 1)))
		putchar('\n');
}

static void show(void *ctx, json_t *answer)
{
	const char *key;
	json_t *value;

	for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		value = json_object_get(answer, known[i].key);
		if (value)
			show_member(known[i].key, known[i].label, value, 0);
	}
	cli_footprint_show(json_object_get(answer, "footprint"), LABEL_COLUMN);
	json_object_foreach(answer, key, value) if (!is_known(key))
		show_member(key, NULL, value, 0);
}

/* The commons are asked only if the machine has to do with them. */
static int add_footprint(json_t *answer)
{
	bool shares = json_object_get(json_object_get(answer, "sharing"), "shared_bytes");
	json_t *commons = shares ? cli_footprint_commons() : NULL;
	int rc = cli_footprint_add(answer, commons);

	json_decref(commons);
	return rc;
}

static int stat_main(const struct cli_command *command, int argc, char **argv)
{
	struct cli_json_asked asked = {0};
	struct cli_option_user user = {.set = cli_json_option, .ctx = &asked};
	static const struct cli_ask_ops ops = {.add = add_footprint, .show = show};
	struct mb_error err;
	int first;

	if (!cli_options_walk(cli_json_options, argc, argv, &user, &first, &err) && first == argc &&
		!asked.help && !asked.version)
		return cli_stat_all(command, &asked);
	/* What is wrong with it, and who is meant, is seen there. */
	asked = (struct cli_json_asked){0};
	return cli_ask_main(command, &user, &asked, argc, argv, &ops);
}
