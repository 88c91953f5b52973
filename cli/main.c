// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "guard.h"
#include "parse.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

const struct cli_command *const cli_commands[] = {
	&cli_run, &cli_ps, &cli_stat, &cli_heat, &cli_numa, &cli_sim, &cli_image, &cli_snapshot,
	&cli_restore, &cli_clone, &cli_doctor, NULL};

static void help(FILE *out)
{
	fputs("Usage: mirrorball COMMAND [OPTIONS]\n\n"
	      "A virtual machine monitor for Linux/KVM that makes a NUMA server look flat to its\n"
	      "guests.\n\n"
	      "Commands:\n",
		out);
	for (unsigned i = 0; cli_commands[i]; i++)
		fprintf(out, "  %-12s%s\n", cli_commands[i]->name, cli_commands[i]->summary);
	fputs("  help        Show help, also of a command: mirrorball help run\n"
	      "\n"
	      "Options:\n"
	      "  -h, --help  Show this help\n"
	      "  --version   Show the version\n\n"
	      "Start with 'mirrorball doctor', then 'mirrorball run'. Manual: man mirrorball.\n",
		out);
}

static const struct cli_command *find_command(const char *word, struct mb_error *err)
{
	static const char *const words[] = {
		"run", "ps", "stat", "heat", "numa", "sim", "image", "snapshot", "restore",
		"clone", "doctor", "help", "--help", "--version", NULL};
	const char *near;

	for (unsigned i = 0; cli_commands[i]; i++)
		if (!strcmp(word, cli_commands[i]->name))
			return cli_commands[i];
	near = cli_nearest(word, words);
	if (near)
		mb_error_set(err, EINVAL, "unknown command '%s'; did you mean '%s'?", word, near);
	else
		mb_error_set(err, EINVAL,
			"unknown command '%s'; there are run, ps, stat, heat, numa, sim, image, snapshot, restore, "
			"clone, doctor and help",
			word);
	return NULL;
}

static int help_main(int argc, char **argv)
{
	const struct cli_command *command;
	struct mb_error err;

	if (argc > 2) {
		mb_error_set(
			&err, EINVAL, "help: '%s' is too much; help takes one command", argv[2]);
		return cli_usage_error(NULL, &err);
	}
	if (argc < 2 || !strcmp(argv[1], "help")) {
		help(stdout);
		return cli_flush();
	}
	command = find_command(argv[1], &err);
	if (!command)
		return cli_usage_error(NULL, &err);
	cli_command_help(command, stdout);
	return cli_flush();
}

int main(int argc, char **argv)
{
	const struct cli_command *command;
	struct mb_error err;

	if (cli_guard_start())
		return CLI_FAILED;
	if (argc < 2) {
		help(stderr);
		return CLI_USAGE;
	}
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		if (argc > 2) {
			mb_error_set(&err, EINVAL, "%s: '%s' is too much", argv[1], argv[2]);
			return cli_usage_error(NULL, &err);
		}
		if (!strcmp(argv[1], "--version"))
			cli_version(stdout);
		else
			help(stdout);
		return cli_flush();
	}
	if (!strcmp(argv[1], "help"))
		return help_main(argc - 1, argv + 1);
	command = find_command(argv[1], &err);
	if (!command)
		return cli_usage_error(NULL, &err);
	return command->main(command, argc - 1, argv + 1);
}
