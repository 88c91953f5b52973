// SPDX-License-Identifier: Apache-2.0
#include "client.h"
#include "guard.h"
#include "machines.h"
#include "parse.h"
#include "restore.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mirrorball/clock.h>
#include <mirrorball/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int clone_main(const struct cli_command *command, int argc, char **argv);

#define MAX_CLONES 1000u

enum { OPT_NUMBER, OPT_NAME, OPT_OUTPUT, OPT_HELP, OPT_VERSION, N_OPTIONS };

static const struct cli_option options[] = {
	[OPT_NUMBER] = {"number", "N", "how many, 1 to 1000; also -n N (default: 1)"},
	[OPT_NAME] = {"name", "NAME", "they are called NAME-1 and so on (default: as the machine)"},
	[OPT_OUTPUT] = {"output", "DIR",
		"what each prints on its console goes to DIR/NAME-1.log and so on (default: "
		"nowhere)"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

const struct cli_command cli_clone = {
	.name = "clone",
	.summary = "Start copies of a running machine, or of a snapshot",
	.usage = "[OPTIONS] NAME|PID|DIR",
	.about = "Starts machines in the background that go on from where a running machine is, or "
		 "a snapshot "
		 "was made. They have the memory in common that none of them writes, and each has "
		 "a name, "
		 "MAC addresses and a generation ID of its own. Prints names and PIDs.",
	.options = options,
	.epilogue =
		"A directory is told from a name by a slash in it. 'mirrorball ps' shows them; "
		"SIGTERM presses "
		"a power button.\n\nExit status: 0 all run; 1 one could not be started, those that "
		"were go on; 2 wrong command line.\nMore: man mirrorball-clone.",
	.main = clone_main,
};

struct asked {
	unsigned number;
	const char *name, *output, *from;
	bool help, version;
	const sigset_t *mask; /* signals as they were before some were held; NULL: none is */
};

static int set_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct asked *asked = ctx;

	switch (index) {
	case OPT_NUMBER:
		return cli_parse_unsigned(value, 1, MAX_CLONES, &asked->number, err);
	case OPT_NAME:
		asked->name = value;
		return cli_parse_name(value, err);
	case OPT_OUTPUT:
		asked->output = value;
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

/* ---- one of them ---- */

struct child {
	pid_t pid;
	int fd; /* says that it runs; at its end it has failed */
	char name[NAME_MAX + 1];
};

struct ready {
	int fd, out_fd;
};

/* From now on nobody is there who reads what it says. */
static void started(void *ctx)
{
	struct ready *ready = ctx;
	ssize_t n = write(ready->fd, "r", 1);

	(void)n;
	close(ready->fd);
	dup2(ready->out_fd, STDERR_FILENO);
}

static int open_output(const char *dir, const char *name, struct mb_error *err)
{
	char path[PATH_MAX];
	int fd;

	if (!dir)
		snprintf(path, sizeof(path), "/dev/null");
	else if (snprintf(path, sizeof(path), "%s/%s.log", dir, name) >= (int)sizeof(path))
		return mb_error_set(err, ENAMETOOLONG, "--output %s: is too long", dir);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0600);
	return fd < 0 ? mb_error_set(err, errno, "--output: %s: %s", path, strerror(errno)) : fd;
}

/* In the child: the status of its end. */
static int be(const struct child *child, const struct mb_snapshot *snapshot, const char *dir,
	struct ready *ready, uint64_t start_ns)
{
	struct cli_run run = {
		.config = *mb_snapshot_config(snapshot), .started = started, .started_ctx = ready};
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	dup2(null, STDIN_FILENO);
	dup2(ready->out_fd, STDOUT_FILENO);
	run.config.name = child->name;
	run.config.out_fd = STDOUT_FILENO;
	run.config.start_ns = start_ns;
	run.overcommit = run.config.n_views == 1;
	/* Derived from the name. */
	for (unsigned i = 0; i < run.config.n_nics; i++)
		memset(run.config.nic[i].mac, 0, sizeof(run.config.nic[i].mac));
	return cli_restore_run(&run, dir);
}

static int start(struct child *child, const struct mb_snapshot *snapshot, const char *dir,
	const struct asked *asked, struct mb_error *err)
{
	const uint64_t start_ns = mb_now_ns();
	struct ready ready;
	int pipe_fd[2];

	ready.out_fd = open_output(asked->output, child->name, err);
	if (ready.out_fd < 0)
		return ready.out_fd;
	if (pipe2(pipe_fd, O_CLOEXEC)) {
		close(ready.out_fd);
		return mb_error_set(err, errno, "%s: pipe: %s", child->name, strerror(errno));
	}
	ready.fd = pipe_fd[1];
	child->pid = fork();
	if (!child->pid) {
		close(pipe_fd[0]);
		setsid();
		if (asked->mask)
			sigprocmask(SIG_SETMASK, asked->mask, NULL);
		_exit(be(child, snapshot, dir, &ready, start_ns));
	}
	close(pipe_fd[1]);
	close(ready.out_fd);
	child->fd = pipe_fd[0];
	if (child->pid > 0)
		return 0;
	close(child->fd);
	child->fd = -1;
	return mb_error_set(err, errno, "%s: fork: %s", child->name, strerror(errno));
}

/* It has said why, if it does not. */
static bool runs(struct child *child)
{
	char byte;
	ssize_t n;

	do
		n = read(child->fd, &byte, 1);
	while (n < 0 && errno == EINTR);
	close(child->fd);
	if (n == 1)
		return true;
	waitpid(child->pid, NULL, 0);
	return false;
}

/* ---- signals, as long as there is something to remove ---- */

/* Not SIGQUIT: it is the way out of a machine that does not answer. */
static const int held[] = {SIGINT, SIGTERM, SIGHUP};

static void hold_signals(sigset_t *before)
{
	struct sigaction action;
	sigset_t set;

	sigemptyset(&set);
	/* One that is ignored would be kept nevertheless if it were blocked (nohup). */
	for (unsigned i = 0; i < sizeof(held) / sizeof(held[0]); i++)
		if (!sigaction(held[i], NULL, &action) && action.sa_handler != SIG_IGN)
			sigaddset(&set, held[i]);
	sigprocmask(SIG_BLOCK, &set, before);
}

static bool end_is_asked(void)
{
	sigset_t set;

	sigpending(&set);
	for (unsigned i = 0; i < sizeof(held) / sizeof(held[0]); i++)
		if (sigismember(&set, held[i]))
			return true;
	return false;
}

/* ---- all ---- */

/* NAME-k with the next k, from *k + 1 on, that no machine has which runs. */
static void next_name(
	struct child *child, const char *name, const struct cli_machines *running, unsigned *k)
{
	bool taken;

	do {
		snprintf(child->name, sizeof(child->name), "%.*s-%u", NAME_MAX - 32, name, ++*k);
		taken = false;
		for (unsigned i = 0; i < running->n; i++)
			taken |= !strcmp(running->machine[i].name, child->name);
	} while (taken);
}

/* Its files, which those that run from it have open. */
static void remove_snapshot(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char name[16];

	for (unsigned i = 0; i < MB_MAX_DISKS && fd >= 0; i++) {
		snprintf(name, sizeof(name), "disk-%u", i);
		unlinkat(fd, name, 0);
	}
	if (fd >= 0) {
		unlinkat(fd, "ram", 0);
		unlinkat(fd, "state", 0);
		close(fd);
	}
	rmdir(path);
}

/* removes: what is in dir, before anything runs from it: the commons know a file by its time of change, which that
 * changes. */
static int clone_all(const char *dir, bool removes, const struct asked *asked)
{
	struct child *child = calloc(asked->number, sizeof(*child));
	struct mb_snapshot *snapshot = NULL;
	struct cli_machines running;
	const char *name;
	struct mb_error err, ignored;
	unsigned n = 0, n_failed = 0, k = 0;
	int rc;

	rc = child ? mb_snapshot_open(dir, &snapshot, &err)
		   : mb_error_set(&err, ENOMEM, "clone: out of memory");
	if (removes)
		remove_snapshot(dir);
	name = rc ? "" : asked->name ? asked->name : mb_snapshot_config(snapshot)->name;
	/* Two of one name would be no more than hard to tell apart. */
	if (cli_machines_list(&running, &ignored))
		running = (struct cli_machines){0};
	while (!rc && n < asked->number && !end_is_asked()) {
		next_name(&child[n], name, &running, &k);
		rc = start(&child[n], snapshot, dir, asked, &err);
		n += !rc;
	}
	if (rc)
		mb_log("%s", err.text);
	for (unsigned i = 0; i < n; i++) {
		if (runs(&child[i]))
			printf("%s %d\n", child[i].name, (int)child[i].pid);
		else
			n_failed++;
	}
	cli_machines_finish(&running);
	mb_snapshot_close(snapshot);
	free(child);
	return rc || n_failed || cli_flush() ? CLI_FAILED : CLI_OK;
}

/* A signal that comes meanwhile ends us when the snapshot is removed. */
static int clone_running(struct asked *asked)
{
	const char *tmp = getenv("TMPDIR");
	char parent[PATH_MAX / 2], path[PATH_MAX];
	json_t *answer = NULL;
	struct mb_error err;
	sigset_t before;
	int rc;

	snprintf(parent, sizeof(parent), "%s/mirrorball-clone-XXXXXX",
		tmp && *tmp == '/' ? tmp : "/var/tmp");
	hold_signals(&before);
	asked->mask = &before;
	if (!mkdtemp(parent)) {
		mb_log("clone: %s: %s; TMPDIR names another directory", parent, strerror(errno));
		sigprocmask(SIG_SETMASK, &before, NULL);
		return CLI_FAILED;
	}
	snprintf(path, sizeof(path), "%s/snapshot", parent);
	rc = cli_snapshot_make(asked->from, path, &answer, &err);
	json_decref(answer);
	if (rc) {
		mb_log("clone: %s", err.text);
		rc = CLI_FAILED;
	} else {
		rc = clone_all(path, true, asked);
	}
	rmdir(parent);
	asked->mask = NULL;
	sigprocmask(SIG_SETMASK, &before, NULL);
	return rc;
}

static int parse(struct asked *asked, int argc, char **argv, struct mb_error *err)
{
	struct cli_option_user user = {.set = set_option, .ctx = asked};

	for (;;) {
		int first, rc = cli_options_walk(options, argc, argv, &user, &first, err);

		if (rc || asked->help || asked->version)
			return rc;
		argc -= first;
		argv += first;
		if (!argc)
			break;
		if (asked->from)
			return mb_error_set(err, EINVAL,
				"'%s' is too much; clone takes one machine or directory", argv[0]);
		asked->from = argv[0];
	}
	return asked->from ? 0 : mb_error_set(err, EINVAL, "no machine or directory is named");
}

static int clone_main(const struct cli_command *command, int argc, char **argv)
{
	struct asked asked = {.number = 1};
	char number[] = "--number";
	struct mb_error err;

	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "-n"))
			argv[i] = number;
	if (parse(&asked, argc, argv, &err))
		return cli_usage_error(command, &err);
	if (asked.help)
		cli_command_help(command, stdout);
	else if (asked.version)
		cli_version(stdout);
	else
		return strchr(asked.from, '/') ? clone_all(asked.from, false, &asked)
					       : clone_running(&asked);
	return cli_flush();
}
