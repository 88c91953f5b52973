// SPDX-License-Identifier: Apache-2.0
#include "machines.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Whether nobody listens there, and nobody will. A PID alone may mislead: a container that has the
 * directory, too, has PIDs of its own.
 */
static bool is_stale(const struct cli_machine *m)
{
	struct sockaddr_un addr;
	int fd, rc;

	if (!kill(m->pid, 0) || errno != ESRCH || mb_control_address(m->dir_fd, m->file, &addr))
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	rc = connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ? errno : 0;
	close(fd);
	return rc == ECONNREFUSED;
}

static int add(struct cli_machines *machines, unsigned *max, const struct cli_machine *m)
{
	if (machines->n == *max) {
		unsigned more = *max ? 2 * *max : 16;
		struct cli_machine *list =
			reallocarray(machines->machine, more, sizeof(*machines->machine));

		if (!list)
			return -ENOMEM;
		machines->machine = list;
		*max = more;
	}
	machines->machine[machines->n++] = *m;
	return 0;
}

static int list_dir(struct cli_machines *machines, int dir_fd, unsigned *max)
{
	/* The stream's own descriptor: closing the stream closes it. */
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!dir) {
		rc = -errno;
		if (fd >= 0)
			close(fd);
		return rc;
	}
	while (!rc && (entry = readdir(dir))) {
		struct cli_machine m = {.dir_fd = dir_fd};
		struct stat st;

		/* To connect to a file of another kind is refused, too, and it may be wanted. */
		if (!mb_control_parse_file(entry->d_name, m.name, &m.pid) ||
			fstatat(dir_fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) ||
			!S_ISSOCK(st.st_mode))
			continue;
		memcpy(m.file, entry->d_name, strlen(entry->d_name) + 1);
		if (is_stale(&m))
			unlinkat(dir_fd, m.file, 0);
		else
			rc = add(machines, max, &m);
	}
	closedir(dir);
	return rc;
}

static int compare(const void *a, const void *b)
{
	const struct cli_machine *m = a, *n = b;
	int by_name = strcmp(m->name, n->name);

	return by_name ? by_name : (m->pid > n->pid) - (m->pid < n->pid);
}

int cli_machines_list(struct cli_machines *machines, struct mb_error *err)
{
	char path[MB_CONTROL_MAX_DIRS][PATH_MAX];
	unsigned n = mb_control_dirs(path), max = 0;
	int unsafe = 0, rc = 0;

	*machines = (struct cli_machines){0};
	for (unsigned i = 0; i < n && !rc; i++) {
		int fd, opened = mb_control_open_dir(path[i], false, &fd, unsafe ? NULL : err);

		if (opened == -EPERM)
			unsafe = opened;
		if (opened)
			continue;
		machines->dir_fd[machines->n_dirs++] = fd;
		rc = list_dir(machines, fd, &max);
		if (rc)
			mb_error_set(err, -rc, "%s: %s", path[i], strerror(-rc));
	}
	/* Where there is a good one as well, a bad one is no reason to see nothing. */
	if (!rc && !machines->n_dirs)
		rc = unsafe;
	if (rc)
		cli_machines_finish(machines);
	else if (machines->n)
		qsort(machines->machine, machines->n, sizeof(*machines->machine), compare);
	return rc;
}

void cli_machines_finish(struct cli_machines *machines)
{
	for (unsigned i = 0; i < machines->n_dirs; i++)
		close(machines->dir_fd[i]);
	free(machines->machine);
	*machines = (struct cli_machines){0};
}
