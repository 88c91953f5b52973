// SPDX-License-Identifier: Apache-2.0
#include "commons_socket.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/control.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SOCKET	    "commons.sock"
#define LOCK	    "commons.lock"
#define ROOT_SOCKET "/run/mirrorball/" SOCKET
#define BACKLOG	    128
#define LOCK_TRIES  10u

static int open_path(
	struct mb_commons_place *place, const char *path, bool create, struct mb_error *err)
{
	const char *slash = strrchr(path, '/');
	char dir[PATH_MAX];

	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path + (slash == path)) : 1,
		slash ? path : ".");
	snprintf(place->file, sizeof(place->file), "%s", slash ? slash + 1 : path);
	if (!*place->file || strlen(path) >= PATH_MAX ||
		strlen(slash ? slash + 1 : path) > NAME_MAX)
		return mb_error_set(err, EINVAL, "%s: is no name of a socket", path);
	/* The last part of it may be there yet to be made. */
	if (!realpath(dir, place->dir))
		snprintf(place->dir, sizeof(place->dir), "%s", dir);
	if (*place->dir != '/' || !place->dir[1])
		return mb_error_set(
			err, EINVAL, "%s: choose a directory that is there for it", path);
	return mb_control_open_dir(place->dir, create, &place->dir_fd, err);
}

int mb_commons_place_open(
	struct mb_commons_place *place, const char *path, bool create, struct mb_error *err)
{
	char dir[MB_CONTROL_MAX_DIRS][PATH_MAX];
	int rc = -ENOENT;
	unsigned n;

	*place = (struct mb_commons_place){.dir_fd = -1};
	if (path)
		return open_path(place, path, create, err);
	snprintf(place->file, sizeof(place->file), SOCKET);
	n = mb_control_dirs(dir);
	/* As for control sockets: the next one is for a place that is not there, not for one that
	 * somebody tampered with. */
	for (unsigned i = 0; i < n && rc && rc != -EPERM; i++) {
		snprintf(place->dir, sizeof(place->dir), "%s", dir[i]);
		rc = mb_control_open_dir(dir[i], create, &place->dir_fd, err);
	}
	return rc;
}

void mb_commons_place_close(struct mb_commons_place *place)
{
	if (place->dir_fd >= 0)
		close(place->dir_fd);
	place->dir_fd = -1;
}

/* ---- connecting ---- */

/* Who may be asked: root, or we ourselves. The socket's owner is who listened (unix(7)). */
static int check_peer(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		return -errno;
	return peer.uid && peer.uid != geteuid() ? -EPERM : 0;
}

static int connect_to(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), rc;

	if (fd < 0)
		return -errno;
	rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? -errno : check_peer(fd);
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}

int mb_commons_place_connect(const struct mb_commons_place *place)
{
	struct sockaddr_un addr;
	int rc = mb_control_address(place->dir_fd, place->file, &addr);

	return rc ? rc : connect_to(&addr);
}

/* No daemon: the next place may have one. Anything else is to be told. */
static bool is_nobody(int rc)
{
	return rc == -ENOENT || rc == -ECONNREFUSED || rc == -EACCES || rc == -ENOTDIR;
}

static int connect_in(const char *path, const char *dir)
{
	struct mb_commons_place place;
	char name[PATH_MAX + sizeof(SOCKET)];
	int rc;

	if (!path && snprintf(name, sizeof(name), "%s/" SOCKET, dir) >= (int)sizeof(name))
		return -ENOENT;
	rc = mb_commons_place_open(&place, path ? path : name, false, NULL);
	if (!rc)
		rc = mb_commons_place_connect(&place);
	mb_commons_place_close(&place);
	return rc;
}

int mb_commons_connect(const char *path)
{
	struct sockaddr_un root = {.sun_family = AF_UNIX, .sun_path = ROOT_SOCKET};
	char dir[MB_CONTROL_MAX_DIRS][PATH_MAX];
	int rc = -ENOENT;
	unsigned n;

	if (path)
		return connect_in(path, NULL);
	n = mb_control_dirs(dir);
	for (unsigned i = 0; i < n && is_nobody(rc); i++)
		rc = connect_in(NULL, dir[i]);
	/* Root's, for everybody: only root can have listened there, check_peer sees to that. */
	if (is_nobody(rc) && geteuid()) {
		int fd = connect_to(&root);

		return fd >= 0 || !is_nobody(fd) ? fd : -ENOENT;
	}
	return rc;
}

/* ---- making one ---- */

int mb_commons_place_lock(const struct mb_commons_place *place)
{
	for (unsigned i = 0; i < LOCK_TRIES; i++) {
		int fd = openat(
			place->dir_fd, LOCK, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
		struct stat st, named;
		int rc = 0;

		if (fd < 0)
			return -errno;
		if (flock(fd, LOCK_EX | LOCK_NB) || fstat(fd, &st))
			rc = -errno;
		/* Somebody may tidy up between the two: a lock on a file without a name is none. */
		if (!rc && !fstatat(place->dir_fd, LOCK, &named, AT_SYMLINK_NOFOLLOW) &&
			named.st_dev == st.st_dev && named.st_ino == st.st_ino)
			return fd;
		close(fd);
		if (rc)
			return rc;
	}
	return -EWOULDBLOCK;
}

int mb_commons_place_listen(const struct mb_commons_place *place, bool any_user)
{
	struct sockaddr_un addr;
	int rc = mb_control_address(place->dir_fd, place->file, &addr), fd;
	struct stat st;

	if (rc)
		return rc;
	fd = mb_commons_place_connect(place);
	if (fd >= 0) {
		close(fd);
		return -EADDRINUSE;
	}
	if (fd == -ECONNREFUSED && !fstatat(place->dir_fd, place->file, &st, AT_SYMLINK_NOFOLLOW) &&
		S_ISSOCK(st.st_mode))
		unlinkat(place->dir_fd, place->file, 0);
	else if (fd != -ENOENT)
		return fd == -ECONNREFUSED ? -EADDRINUSE : fd;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* As in control.c: the file's mode is this, less the umask. */
	if (fchmod(fd, 0600) || bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) ||
		fchmodat(place->dir_fd, place->file, any_user ? 0666 : 0600, 0) ||
		listen(fd, BACKLOG)) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}
