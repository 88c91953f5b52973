// SPDX-License-Identifier: Apache-2.0
#include "commons_protocol.h"
#include "commons_socket.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/commons.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* For a command that asks once and waits for the answer. */

#define MAX_TEXT (1u << 20)

static int send_request(int fd, enum mb_commons_type type)
{
	struct mb_commons_request msg = {
		.magic = MB_COMMONS_MAGIC, .version = MB_COMMONS_VERSION, .type = type};

	return send(fd, &msg, sizeof(msg), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* *given: the descriptor that comes along, or -1. */
static int receive(int fd, uint64_t end_ns, struct mb_commons_reply *msg, int *given)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	uint64_t now_ns = mb_now_ns();
	ssize_t n;

	*given = -1;
	if (now_ns >= end_ns || poll(&pfd, 1, (int)((end_ns - now_ns) / 1000000u) + 1) <= 0)
		return -ETIMEDOUT;
	n = mb_commons_packet_receive(fd, msg, sizeof(*msg), given);
	if (n < 0)
		return (int)n;
	if (n == sizeof(*msg) && msg->magic == MB_COMMONS_MAGIC &&
		msg->version == MB_COMMONS_VERSION)
		return msg->status > 0 ? -EBADMSG : msg->status;
	return n ? -EBADMSG : -EPIPE;
}

static int read_text(int fd, uint64_t len, char **text)
{
	char *all = len <= MAX_TEXT ? calloc(1, len + 1) : NULL;

	if (!all)
		return -ENOMEM;
	if (fd < 0 || pread(fd, all, len, 0) != (ssize_t)len) {
		free(all);
		return -EBADMSG;
	}
	*text = all;
	return 0;
}

int mb_commons_stat(const char *path, unsigned wait_ms, char **text, struct mb_error *err)
{
	uint64_t end_ns = mb_now_ns() + wait_ms * 1000000ull;
	int fd = mb_commons_connect(path), given = -1, rc = fd < 0 ? fd : 0;
	struct mb_commons_reply msg;

	if (rc == -ENOENT || rc == -ECONNREFUSED)
		return mb_error_set(err, -rc, "commons: no mirrorballd is running");
	if (!rc)
		rc = send_request(fd, MB_COMMONS_HELLO);
	if (!rc)
		rc = receive(fd, end_ns, &msg, &given);
	if (!rc)
		rc = send_request(fd, MB_COMMONS_STAT);
	if (!rc)
		rc = receive(fd, end_ns, &msg, &given);
	if (!rc)
		rc = read_text(given, msg.value, text);
	if (given >= 0)
		close(given);
	if (fd >= 0)
		close(fd);
	return rc ? mb_error_set(err, -rc, "commons: mirrorballd: %s", strerror(-rc)) : 0;
}
