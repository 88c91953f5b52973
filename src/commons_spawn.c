// SPDX-License-Identifier: Apache-2.0
#include "commons_socket.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME	  "mirrorballd"
#define LOG	  "commons.log"
#define LISTEN_AT 3
#define LOCK_AT	  4
#define MAX_ENV	  4096u

/* Where the daemon's own words go; a log of before goes. */
static int open_log(const struct mb_commons_place *place)
{
	return openat(place->dir_fd, LOG,
		O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
}

/* Beside the program that runs, then where the shell would find it. */
static void find_program(const char *asked, char path[PATH_MAX])
{
	ssize_t n;
	char *slash;

	/* The child is in another directory. */
	if (asked) {
		if (!strchr(asked, '/') || !realpath(asked, path))
			snprintf(path, PATH_MAX, "%s", asked);
		return;
	}
	n = readlink("/proc/self/exe", path, PATH_MAX - sizeof(NAME) - 1);
	path[n > 0 ? n : 0] = '\0';
	slash = strrchr(path, '/');
	if (slash) {
		strcpy(slash + 1, NAME);
		if (!access(path, X_OK))
			return;
	}
	/* A program with rights that its user does not have runs nothing that he names. */
	snprintf(path, PATH_MAX, getauxval(AT_SECURE) ? "/usr/bin/" NAME : NAME);
}

/* Ours, but for what would be taken for systemd's, and a word that it was started so. */
static char **make_environment(void)
{
	static char word[] = MB_COMMONS_ENV "=1";
	char **env = calloc(MAX_ENV + 2, sizeof(*env));
	unsigned n = 0;

	if (!env)
		return NULL;
	for (char **at = environ; at && *at && n < MAX_ENV; at++)
		if (strncmp(*at, "LISTEN_", 7) && strncmp(*at, "NOTIFY_SOCKET=", 14) &&
			strncmp(*at, "WATCHDOG_", 9) &&
			strncmp(*at, MB_COMMONS_ENV "=", sizeof(MB_COMMONS_ENV)))
			env[n++] = *at;
	env[n] = word;
	return env;
}

static int set_files(posix_spawn_file_actions_t *files, int listen_fd, int lock_fd, int log_fd)
{
	int rc = posix_spawn_file_actions_addopen(files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);

	if (!rc)
		rc = posix_spawn_file_actions_addopen(
			files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	if (!rc && log_fd >= 0)
		rc = posix_spawn_file_actions_adddup2(files, log_fd, STDERR_FILENO);
	else if (!rc)
		rc = posix_spawn_file_actions_addopen(
			files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(files, listen_fd, LISTEN_AT);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(files, lock_fd, LOCK_AT);
	if (!rc)
		rc = posix_spawn_file_actions_addclosefrom_np(files, LOCK_AT + 1);
	/* The directory that we are in may be one that somebody wants to unmount. */
	if (!rc)
		rc = posix_spawn_file_actions_addchdir_np(files, "/");
	return rc;
}

/*
 * A session of its own: the terminal's Ctrl-C and hang-up are the monitor's. No signal is blocked,
 * and none ignored, whatever the monitor does with its own.
 */
static int set_attributes(posix_spawnattr_t *attr)
{
	sigset_t none, all;
	int rc;

	sigemptyset(&none);
	sigfillset(&all);
	rc = posix_spawnattr_setsigmask(attr, &none);
	if (!rc)
		rc = posix_spawnattr_setsigdefault(attr, &all);
	if (!rc)
		rc = posix_spawnattr_setflags(
			attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
	return rc;
}

/* A copy out of the way of the numbers that the child's have. */
static int copy_high(int fd)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, LOCK_AT + 1);
}

int mb_commons_spawn(const struct mb_commons_place *place, const char *program, int listen_fd,
	int lock_fd, int *pid)
{
	int log_fd = open_log(place), log_high = log_fd < 0 ? -1 : copy_high(log_fd);
	int listen_high = copy_high(listen_fd), lock_high = copy_high(lock_fd), rc = 0;
	char path[PATH_MAX], *argv[] = {path, NULL}, **env = make_environment();
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	pid_t child;

	if (listen_high < 0 || lock_high < 0)
		rc = EMFILE;
	if (!env)
		rc = ENOMEM;
	find_program(program, path);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attr);
	if (!rc)
		rc = set_files(&files, listen_high, lock_high, log_high);
	if (!rc)
		rc = set_attributes(&attr);
	/* Not fork: that would copy the page tables of a monitor with all of its guest's memory. */
	if (!rc)
		rc = posix_spawnp(&child, path, &files, &attr, argv, env);
	if (!rc)
		*pid = child;
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attr);
	free(env);
	for (unsigned i = 0; i < 4; i++) {
		int fd = (const int[]){log_fd, log_high, listen_high, lock_high}[i];

		if (fd >= 0)
			close(fd);
	}
	return -rc;
}
