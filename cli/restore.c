// SPDX-License-Identifier: Apache-2.0
#include "restore.h"
#include "guard.h"
#include "parse.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/log.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static int restore_main(const struct cli_command *command, int argc, char **argv);

enum { OPT_NAME, OPT_CHECK, OPT_QUIET, OPT_HELP, OPT_VERSION, N_OPTIONS };

static const struct cli_option options[] = {
	[OPT_NAME] = {"name", "NAME", "in messages (default: as it was called)"},
	[OPT_CHECK] = {"check", NULL,
		"read all of the snapshot first, and refuse it if its memory is damaged"},
	[OPT_QUIET] = {"quiet", NULL, "no hint about the escape key, no closing line"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

const struct cli_command cli_restore = {
	.name = "restore",
	.summary = "Go on with a machine from a snapshot",
	.usage = "[OPTIONS] DIR",
	.about = "Runs the machine that 'mirrorball snapshot' has written to DIR, on this "
		 "terminal, from where it was. "
		 "Memory is read when it is used, and what the machine writes is its own: DIR "
		 "stays as it is, "
		 "and must, as long as a machine from it runs.",
	.options = options,
	.epilogue = "Exit status: as of 'mirrorball run'.\nMore: man mirrorball-restore.",
	.main = restore_main,
};

struct asked {
	const char *name;
	bool check, quiet, help, version;
};

static int set_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct asked *asked = ctx;

	switch (index) {
	case OPT_NAME:
		asked->name = value;
		return cli_parse_name(value, err);
	case OPT_CHECK:
		asked->check = true;
		break;
	case OPT_QUIET:
		asked->quiet = true;
		break;
	case OPT_HELP:
		asked->help = true;
		break;
	case OPT_VERSION:
		asked->version = true;
		break;
	}
	return 0;
}

/* ---- running ---- */

static const char *restored_from; /* for a signal handler, which has nothing else */

static void say(const char *text)
{
	ssize_t n = write(STDERR_FILENO, text, strlen(text));

	(void)n;
}

/* What is mapped of a file that has become shorter, or that cannot be read. */
static void on_bus_error(int sig)
{
	cli_guard_restore();
	say("mirrorball: snapshot ");
	say(restored_from);
	say(": memory in file ram cannot be read any more: it was cut off, or its disk failed\n");
	raise(sig); /* SA_RESETHAND */
}

int cli_restore_run(struct cli_run *run, const char *dir)
{
	struct sigaction action = {
		.sa_handler = on_bus_error, .sa_flags = (int)SA_RESETHAND | SA_NODEFER};
	struct mb_host host;
	struct mb_error err;
	int rc = mb_host_open(&host, NULL, &err);

	restored_from = dir;
	sigaction(SIGBUS, &action, NULL);
	if (!rc) {
		rc = mb_host_check(&host, &err);
		if (!rc && run->config.n_views > host.n_views)
			rc = mb_error_set(&err, ENOTSUP,
				"%s: the machine has %u views of memory, and this host's KVM "
				"offers %u (mirrorball doctor says why)",
				dir, run->config.n_views, host.n_views);
		if (!rc)
			rc = cli_run_resolve(run, &host, &err);
		if (!rc)
			rc = cli_run_machine(run, &host, &err);
		mb_host_finish(&host);
	}
	if (rc < 0) {
		mb_log("%s", err.text);
		rc = CLI_FAILED;
	}
	return rc;
}

static int restore(const char *dir, const struct asked *asked, uint64_t start_ns)
{
	struct mb_snapshot *snapshot;
	struct cli_run run = {0};
	struct mb_error err;
	int rc = mb_snapshot_open(dir, &snapshot, &err);

	if (!rc && asked->check) {
		rc = mb_snapshot_check_ram(snapshot, &err);
		if (rc)
			mb_snapshot_close(snapshot);
	}
	if (rc) {
		mb_log("%s", err.text);
		return CLI_FAILED;
	}
	run.config = *mb_snapshot_config(snapshot);
	if (asked->name)
		run.config.name = asked->name;
	run.config.quiet = asked->quiet;
	run.config.in_fd = cli_guard_stdin_was_closed() ? -1 : STDIN_FILENO;
	run.config.out_fd = STDOUT_FILENO;
	run.config.start_ns = start_ns;
	run.overcommit = run.config.n_views == 1; /* it does not touch it all at once */
	rc = cli_restore_run(&run, dir);
	mb_snapshot_close(snapshot);
	return rc;
}

static int restore_main(const struct cli_command *command, int argc, char **argv)
{
	const uint64_t start_ns = mb_now_ns();
	struct asked asked = {0};
	struct cli_option_user user = {.set = set_option, .ctx = &asked};
	const char *dir = NULL;
	struct mb_error err;
	int rc;

	for (;;) {
		int first;

		rc = cli_options_walk(options, argc, argv, &user, &first, &err);
		if (rc || asked.help || asked.version || first == argc)
			break;
		argc -= first;
		argv += first;
		if (dir) {
			rc = mb_error_set(&err, EINVAL,
				"'%s' is too much; restore takes one directory", argv[0]);
			break;
		}
		dir = argv[0];
	}
	if (!rc && !dir && !asked.help && !asked.version)
		rc = mb_error_set(&err, EINVAL, "no directory is named");
	if (rc)
		return cli_usage_error(command, &err);
	if (asked.help)
		cli_command_help(command, stdout);
	else if (asked.version)
		cli_version(stdout);
	else
		return restore(dir, &asked, start_ns);
	return cli_flush();
}
