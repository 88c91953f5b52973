// SPDX-License-Identifier: Apache-2.0
#include "commons_socket.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/commons_server.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Where a daemon's socket comes from. */

#define FIRST_FD 3 /* SD_LISTEN_FDS_START */

static int option_of(int fd, int name)
{
	socklen_t len = sizeof(int);
	int value;

	return getsockopt(fd, SOL_SOCKET, name, &value, &len) ? -1 : value;
}

static bool is_listening(int fd)
{
	return option_of(fd, SO_DOMAIN) == AF_UNIX && option_of(fd, SO_TYPE) == SOCK_SEQPACKET &&
	       option_of(fd, SO_ACCEPTCONN) == 1;
}

static int take(struct mb_commons_listen *out, int lock_fd, struct mb_error *err)
{
	*out = (struct mb_commons_listen){.fd = FIRST_FD, .lock_fd = lock_fd, .passed = true};
	if (!is_listening(FIRST_FD))
		return mb_error_set(err, EINVAL,
			"commons: descriptor 3 is no listening Unix socket of packets "
			"(ListenSequentialPacket= in the socket unit)");
	if (fcntl(FIRST_FD, F_SETFD, FD_CLOEXEC) ||
		(lock_fd >= 0 && fcntl(lock_fd, F_SETFD, FD_CLOEXEC)))
		return mb_error_set(err, errno, "commons: passed descriptors: %s", strerror(errno));
	return 0;
}

/* 1: there is none. */
static int take_passed(struct mb_commons_listen *out, struct mb_error *err)
{
	const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
	char own[16];

	if (getenv(MB_COMMONS_ENV)) {
		unsetenv(MB_COMMONS_ENV);
		return take(out, FIRST_FD + 1, err);
	}
	snprintf(own, sizeof(own), "%d", (int)getpid());
	if (!pid || !n || strcmp(pid, own))
		return 1;
	if (strcmp(n, "1"))
		return mb_error_set(err, EINVAL, "commons: %s sockets were passed, and not one", n);
	return take(out, -1, err);
}

static int make(
	const char *path, bool any_user, struct mb_commons_listen *out, struct mb_error *err)
{
	struct mb_commons_place place;
	int rc = mb_commons_place_open(&place, path, true, err);

	if (rc)
		return mb_error_prefix(err, rc, "commons");
	out->lock_fd = mb_commons_place_lock(&place);
	out->fd = out->lock_fd < 0 ? out->lock_fd : mb_commons_place_listen(&place, any_user);
	rc = out->fd < 0 ? out->fd : 0;
	if (rc == -EWOULDBLOCK || rc == -EADDRINUSE)
		rc = mb_error_set(err, EADDRINUSE, "commons: %s/%s: there is a daemon already",
			place.dir, place.file);
	else if (rc)
		rc = mb_error_set(
			err, -rc, "commons: %s/%s: %s", place.dir, place.file, strerror(-rc));
	if (rc && out->lock_fd >= 0)
		close(out->lock_fd);
	mb_commons_place_close(&place);
	return rc;
}

int mb_commons_listen(
	const char *path, bool any_user, struct mb_commons_listen *out, struct mb_error *err)
{
	int rc = take_passed(out, err);

	if (rc <= 0)
		return rc;
	*out = (struct mb_commons_listen){.fd = -1, .lock_fd = -1};
	return make(path, any_user, out, err);
}
