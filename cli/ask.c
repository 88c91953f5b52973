// SPDX-License-Identifier: Apache-2.0
#include "ask.h"
#include "client.h"
#include <errno.h>
#include <mirrorball/log.h>
#include <string.h>

static int parse(const struct cli_command *command, const struct cli_option_user *user,
	const struct cli_json_asked *asked, int argc, char **argv, const char **who,
	struct mb_error *err)
{
	int first, rc = cli_options_walk(command->options, argc, argv, user, &first, err);

	if (rc || asked->help || asked->version)
		return rc;
	if (first == argc)
		return mb_error_set(err, EINVAL,
			"no machine is named; 'mirrorball ps' lists those that are running");
	*who = argv[first];
	argc -= first;
	argv += first;
	rc = cli_options_walk(command->options, argc, argv, user, &first, err);
	if (!rc && first < argc)
		rc = mb_error_set(err, EINVAL, "'%s' is too much; %s takes one machine",
			argv[first], command->name);
	return rc;
}

int cli_ask_main(const struct cli_command *command, const struct cli_option_user *user,
	const struct cli_json_asked *asked, int argc, char **argv, const struct cli_ask_ops *ops)
{
	struct cli_client *client = NULL;
	json_t *answer = NULL;
	const char *who = NULL;
	struct mb_error err;
	int rc = parse(command, user, asked, argc, argv, &who, &err);

	if (rc)
		return cli_usage_error(command, &err);
	if (asked->help || asked->version)
		return cli_json_answer(command, asked);
	rc = cli_client_open(who, &client, &err);
	if (!rc)
		rc = cli_client_ask(client, command->name, &answer, &err);
	if (!rc && ops->add && ops->add(answer))
		rc = mb_error_set(&err, ENOMEM, "%s", strerror(ENOMEM));
	if (!rc && !asked->json)
		ops->show(user->ctx, answer);
	else if (!rc && cli_print_json(answer))
		rc = mb_error_set(&err, ENOMEM, "--json: %s", strerror(ENOMEM));
	if (rc)
		mb_log("%s: %s", command->name, err.text);
	cli_client_close(client);
	json_decref(answer);
	return rc || cli_flush() ? CLI_FAILED : CLI_OK;
}
