// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "guard.h"
#include "parse.h"
#include <errno.h>
#include <mirrorball/commons.h>
#include <mirrorball/commons_server.h>
#include <mirrorball/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* The commons as a program. It stays in the foreground: who starts it takes care of the rest. */

#define PASSED_IDLE_MS 60000u
#define MAX_IDLE_MS    86400000u
#define STAT_WAIT_MS   10000u
#define HELP_COLUMN    24

enum { OPT_SOCKET, OPT_MEMORY, OPT_IDLE, OPT_ANY_USER, OPT_STAT, OPT_HELP, OPT_VERSION, N_OPTIONS };

static const struct cli_option options[] = {
	[OPT_SOCKET] = {"socket", "PATH",
		"where to listen, or to ask; default: commons.sock in /run/mirrorball for root, in "
		"$XDG_RUNTIME_DIR/mirrorball for others"},
	[OPT_MEMORY] = {"memory", "SIZE",
		"that pages may take, with M or G; default: an eighth of the host's"},
	[OPT_IDLE] = {"idle", "SECONDS",
		"end after so long without a machine; 0: never; default: 60 where systemd or a "
		"machine started it, else 0"},
	[OPT_ANY_USER] = {"any-user", NULL,
		"serve every user who can connect; default: its own user and root"},
	[OPT_STAT] = {"stat", NULL, "ask the one that runs what it holds, as JSON"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

struct asked {
	const char *socket;
	uint64_t memory_bytes;
	unsigned idle_ms;
	bool seen[N_OPTIONS];
};

static int set_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct asked *asked = ctx;
	int rc = 0;

	asked->seen[index] = true;
	if (index == OPT_SOCKET)
		asked->socket = value;
	else if (index == OPT_IDLE)
		rc = cli_parse_seconds(value, 0, MAX_IDLE_MS, &asked->idle_ms, err);
	else if (index == OPT_MEMORY) {
		rc = cli_parse_size(value, &asked->memory_bytes, err);
		if (!rc && asked->memory_bytes < MB_COMMONS_PIECE)
			rc = mb_error_set(err, ERANGE, "%s is too little; 8M is the least", value);
	}
	return rc;
}

static void help(void)
{
	puts("Usage: mirrorballd [OPTIONS]\n");
	cli_wrap(stdout,
		"Holds one copy per NUMA node of what the disk images of several machines have in "
		"common, which mirrorball run maps instead of copies of its own. Machines start "
		"it, "
		"or systemd does. It stays in the foreground.",
		0, 0);
	putchar('\n');
	for (unsigned i = 0; i < N_OPTIONS; i++) {
		char left[64];

		snprintf(left, sizeof(left), "%s--%s %s", i == OPT_HELP ? "-h, " : "",
			options[i].name, options[i].arg ? options[i].arg : "");
		printf("  %-*s", HELP_COLUMN - 2, left);
		cli_wrap(stdout, options[i].help, HELP_COLUMN, HELP_COLUMN);
	}
	putchar('\n');
	cli_wrap(stdout,
		"Exit status: 0 ended by SIGTERM or SIGINT, or told, or nothing left to do; 1 it "
		"failed, or "
		"one runs already; 2 wrong command line.\nMore: man mirrorballd.",
		0, 0);
}

static int wrong(const struct mb_error *err)
{
	struct mb_error said = *err;

	mb_error_make_printable(said.text);
	fprintf(stderr, "mirrorballd: %s\nTry 'mirrorballd --help'.\n", said.text);
	return CLI_USAGE;
}

static int failed(const struct mb_error *err)
{
	mb_log("%s", err->text);
	return CLI_FAILED;
}

static int show_stat(const struct asked *asked)
{
	struct mb_error err;
	char *text;

	if (mb_commons_stat(asked->socket, STAT_WAIT_MS, &text, &err))
		return failed(&err);
	puts(text);
	free(text);
	return cli_flush();
}

/* For the signal handler, which has no other way to it. */
static struct mb_commons_server *running;

static void on_signal(int number)
{
	mb_commons_server_stop(running);
}

static void watch_signals(void)
{
	struct sigaction action = {.sa_handler = on_signal};

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	/* The terminal of whoever started it is not ours, nor are his limits: an error will do. */
	signal(SIGHUP, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
}

static int serve(const struct asked *asked)
{
	struct mb_commons_server_config config = {.max_bytes = asked->memory_bytes,
		.idle_ms = asked->idle_ms,
		.any_user = asked->seen[OPT_ANY_USER]};
	struct mb_commons_listen listen;
	struct mb_error err;
	int rc;

	/*
	 * What is sealed against writing we can write. So no process of the same user gets at our
	 * memory: neither ptrace(2) nor /proc/PID/mem (proc(5)), without CAP_SYS_PTRACE.
	 */
	prctl(PR_SET_DUMPABLE, 0);
	rc = mb_commons_listen(asked->socket, config.any_user, &listen, &err);
	if (rc)
		return failed(&err);
	config.listen_fd = listen.fd;
	if (!asked->seen[OPT_IDLE] && listen.passed)
		config.idle_ms = PASSED_IDLE_MS;
	if (mb_commons_server_create(&config, &running, &err))
		return failed(&err);
	watch_signals();
	rc = mb_commons_server_run(running);
	if (rc)
		mb_log("commons: event loop: %s", strerror(-rc));
	/* A disk that does not answer keeps nobody: what it holds goes with the process. */
	if (!mb_commons_server_destroy(running))
		_exit(rc ? CLI_FAILED : CLI_OK);
	return rc ? CLI_FAILED : CLI_OK;
}

int main(int argc, char **argv)
{
	struct asked asked = {0};
	struct cli_option_user user = {.set = set_option, .ctx = &asked};
	struct mb_error err;
	int first;

	/* Raises the limit of open files as well: each piece is one. */
	if (cli_guard_start())
		return CLI_FAILED;
	if (cli_options_walk(options, argc, argv, &user, &first, &err))
		return wrong(&err);
	if (first < argc) {
		mb_error_set(&err, EINVAL, "'%s' is too much; there are options only", argv[first]);
		return wrong(&err);
	}
	if (asked.seen[OPT_HELP]) {
		help();
		return cli_flush();
	}
	if (asked.seen[OPT_VERSION]) {
		cli_version(stdout);
		return cli_flush();
	}
	return asked.seen[OPT_STAT] ? show_stat(&asked) : serve(&asked);
}
