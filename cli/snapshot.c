// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "client.h"
#include "restore.h"
#include <errno.h>
#include <mirrorball/log.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int snapshot_main(const struct cli_command *command, int argc, char **argv);

const struct cli_command cli_snapshot = {
	.name = "snapshot",
	.summary = "Write a running machine down, to go on from later",
	.usage = "[OPTIONS] NAME|PID DIR",
	.about = "Writes all of a running machine to a new directory: memory, vCPUs, devices and "
		 "what it has "
		 "changed on cow disks. The machine stands still meanwhile, and goes on.",
	.options = cli_json_options,
	.epilogue = "Exit status: 0 written; 1 not, and there is no such directory then; 2 wrong "
		    "command "
		    "line.\nMore: man mirrorball-snapshot.",
	.main = snapshot_main,
};

char *cli_absolute_path(const char *path)
{
	char *cwd = *path == '/' ? strdup("") : getcwd(NULL, 0), *all = NULL;
	size_t len;

	if (cwd && asprintf(&all, "%s%s%s", cwd, *cwd ? "/" : "", path) < 0)
		all = NULL;
	free(cwd);
	for (len = all ? strlen(all) : 0; len > 1 && all[len - 1] == '/'; len--)
		all[len - 1] = 0;
	return all;
}

int cli_snapshot_make(const char *who, const char *path, json_t **answer, struct mb_error *err)
{
	struct cli_client *client = NULL;
	int rc = cli_client_open(who, &client, err);

	if (!rc)
		rc = cli_client_ask_path(client, "snapshot", path, answer, err);
	cli_client_close(client);
	return rc;
}

/* Options may stand anywhere. */
static int parse(const struct cli_command *command, struct cli_json_asked *asked, int argc,
	char **argv, const char *word[2], struct mb_error *err)
{
	struct cli_option_user user = {.set = cli_json_option, .ctx = asked};
	unsigned n = 0;

	for (;;) {
		int first, rc = cli_options_walk(command->options, argc, argv, &user, &first, err);

		if (rc || asked->help || asked->version)
			return rc;
		argc -= first;
		argv += first;
		if (!argc)
			break;
		if (n == 2)
			return mb_error_set(err, EINVAL,
				"'%s' is too much; snapshot takes a machine and a directory",
				argv[0]);
		word[n++] = argv[0];
	}
	if (n < 2)
		return mb_error_set(err, EINVAL,
			"%s is missing; snapshot takes a machine and a new directory",
			n ? "the directory" : "the machine");
	return 0;
}

static int snapshot_main(const struct cli_command *command, int argc, char **argv)
{
	struct cli_json_asked asked = {0};
	json_t *answer = NULL;
	const char *word[2] = {0};
	struct mb_error err;
	char *path;
	int rc = parse(command, &asked, argc, argv, word, &err);

	if (rc)
		return cli_usage_error(command, &err);
	if (asked.help || asked.version)
		return cli_json_answer(command, &asked);
	path = cli_absolute_path(word[1]);
	rc = path ? cli_snapshot_make(word[0], path, &answer, &err)
		  : mb_error_set(&err, ENOMEM, "%s: %s", word[1], strerror(errno));
	if (!rc && asked.json && cli_print_json(answer))
		rc = mb_error_set(&err, ENOMEM, "--json: %s", strerror(ENOMEM));
	if (rc)
		mb_log("snapshot: %s", err.text);
	json_decref(answer);
	free(path);
	return rc || cli_flush() ? CLI_FAILED : CLI_OK;
}
