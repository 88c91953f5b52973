// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "parse.h"
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 48
#define HELP_COLUMN 26
#define WIDTH	    80

static unsigned table_len(const struct cli_option *table)
{
	unsigned n = 0;

	while (table[n].name || table[n].help)
		n++;
	return n;
}

static int bad_option(const struct cli_option *table, const char *word, struct mb_error *err)
{
	const char *names[MAX_OPTIONS + 1];
	char name[64];
	const char *near;
	unsigned n = 0, n_begin = 0;

	snprintf(name, sizeof(name), "%.*s", (int)strcspn(word, "="), word);
	for (unsigned i = 0, len = table_len(table); i < len; i++) {
		if (!table[i].name)
			continue;
		names[n++] = table[i].name;
		/* The one reason why getopt_long refuses a known name without an argument. */
		if (!strcmp(name + strspn(name, "-"), table[i].name))
			return mb_error_set(
				err, EINVAL, "option --%s takes no value", table[i].name);
		if (!strncmp(name, "--", 2) && name[2] &&
			!strncmp(name + 2, table[i].name, strlen(name + 2)))
			n_begin++;
	}
	names[n] = NULL;
	if (n_begin > 1)
		return mb_error_set(
			err, EINVAL, "option %s: several begin like this; write it out", name);
	near = cli_nearest(name + strspn(name, "-"), names);
	if (near)
		return mb_error_set(
			err, EINVAL, "unknown option %s; did you mean --%s?", name, near);
	return mb_error_set(err, EINVAL, "unknown option %s", name);
}

int cli_options_walk(const struct cli_option *table, int argc, char **argv,
	const struct cli_option_user *user, int *first, struct mb_error *err)
{
	struct option options[MAX_OPTIONS + 1] = {0};
	bool seen[MAX_OPTIONS] = {0};
	unsigned len = table_len(table), n = 0;
	int c, rc, index;

	if (len > MAX_OPTIONS)
		return mb_error_set(err, E2BIG, "too many options in the table");
	for (unsigned i = 0; i < len; i++)
		if (table[i].name)
			options[n++] = (struct option){.name = table[i].name,
				.has_arg = table[i].arg ? required_argument : no_argument,
				.val = 256 + (int)i};

	/*
	 * 0 starts a new scan (glibc); '+' stops at the guest's own words; ':' tells a missing
	 * value apart.
	 */
	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
		if (c == ':')
			return mb_error_set(
				err, EINVAL, "option %s needs a value", argv[optind - 1]);
		if (c == '?')
			return bad_option(table, argv[optind - 1], err);
		index = c - 256;
		if (c == 'h')
			for (index = 0; !table[index].name || strcmp(table[index].name, "help");)
				index++;
		if (seen[index] && (!user->repeatable || !user->repeatable(index)))
			return mb_error_set(
				err, EINVAL, "option --%s is given twice", table[index].name);
		seen[index] = true;
		rc = user->set(user->ctx, index, optarg, err);
		if (rc)
			return mb_error_prefix(err, rc, "--%s", table[index].name);
	}
	*first = optind;
	return 0;
}

void cli_wrap(FILE *out, const char *text, unsigned column, unsigned indent)
{
	const char *p = text;

	while (*p) {
		unsigned n = (unsigned)strcspn(p, " \n");

		if (column > indent && column + 1 + n > WIDTH) {
			fprintf(out, "\n%*s", (int)indent, "");
			column = indent;
		} else if (column > indent) {
			fputc(' ', out);
			column++;
		}
		fprintf(out, "%.*s", (int)n, p);
		column += n;
		p += n;
		while (*p == ' ')
			p++;
		if (*p == '\n') {
			fprintf(out, "\n%*s", (int)indent, "");
			column = indent;
			p++;
		}
	}
	fputc('\n', out);
}

/* ---- --json, --help, --version ---- */

enum { OPT_JSON, OPT_HELP, OPT_VERSION, N_OPTIONS };

const struct cli_option cli_json_options[] = {
	[OPT_JSON] = {"json", NULL, "print JSON for programs"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

int cli_json_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct cli_json_asked *asked = ctx;
	bool *flag = index == OPT_JSON	 ? &asked->json
		     : index == OPT_HELP ? &asked->help
					 : &asked->version;

	/* A walk sees that by itself; two do not. */
	if (*flag)
		return mb_error_set(err, EINVAL, "is given twice");
	*flag = true;
	return 0;
}

int cli_json_answer(const struct cli_command *command, const struct cli_json_asked *asked)
{
	if (asked->help)
		cli_command_help(command, stdout);
	else
		cli_version(stdout);
	return cli_flush();
}

void cli_command_help(const struct cli_command *command, FILE *out)
{
	fprintf(out, "Usage: mirrorball %s %s\n\n", command->name, command->usage);
	cli_wrap(out, command->about, 0, 0);
	for (const struct cli_option *o = command->options; o->name || o->help; o++) {
		char left[64];

		if (!o->name) {
			fprintf(out, "\n%s:\n", o->help);
			continue;
		}
		snprintf(left, sizeof(left), "%s--%s%s%s", strcmp(o->name, "help") ? "" : "-h, ",
			o->name, o->arg ? " " : "", o->arg ? o->arg : "");
		if (strlen(left) + 4 > HELP_COLUMN)
			fprintf(out, "  %s\n%*s", left, HELP_COLUMN, "");
		else
			fprintf(out, "  %-*s", HELP_COLUMN - 2, left);
		cli_wrap(out, o->help, HELP_COLUMN, HELP_COLUMN);
	}
	if (command->epilogue) {
		fputc('\n', out);
		cli_wrap(out, command->epilogue, 0, 0);
	}
}

int cli_usage_error(const struct cli_command *command, const struct mb_error *err)
{
	struct mb_error said = *err;

	mb_error_make_printable(said.text);
	if (command)
		fprintf(stderr, "mirrorball: %s\nTry 'mirrorball %s --help'.\n", said.text,
			command->name);
	else
		fprintf(stderr, "mirrorball: %s\nTry 'mirrorball help'.\n", said.text);
	return CLI_USAGE;
}

void cli_version(FILE *out)
{
	fprintf(out, "mirrorball %s\n", MB_VERSION);
}

int cli_print_json(const struct json_t *root)
{
	/* Not json_dumpf, which does not tell a full disk from a lack of memory. */
	char *text = json_dumps(root, JSON_INDENT(2));

	if (!text)
		return -ENOMEM;
	puts(text);
	free(text);
	return 0;
}

int cli_flush(void)
{
	if (!fflush(stdout) && !ferror(stdout))
		return CLI_OK;
	fprintf(stderr, "mirrorball: standard output: %s; not everything was written\n",
		strerror(errno));
	return CLI_FAILED;
}
