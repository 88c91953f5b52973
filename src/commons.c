// SPDX-License-Identifier: Apache-2.0
#include "commons_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/log.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

/* The connection of a monitor to mirrorballd: made, lost, made again. */

#define FIRST_RETRY_MS 100u
#define LAST_RETRY_MS  30000u
#define NO_START_NS    60000000000ull
#define BATCH	       64u

/* ---- sending ---- */

static int send_one(struct mb_commons *commons, const struct mb_commons_request *msg,
	const struct mb_commons_base *base)
{
	struct mb_commons_packet join;

	if (!base || !base->group)
		return mb_commons_packet_send(
			commons->socket_fd, msg, sizeof(*msg), base ? base->fd : -1);
	join.asked = *msg;
	memset(join.name, 0, sizeof(join.name));
	memcpy(join.name, base->group, strlen(base->group));
	return mb_commons_packet_send(
		commons->socket_fd, &join, mb_commons_packet_bytes(&join.asked), -1);
}

int mb_commons_send_packet(struct mb_commons *commons, const struct mb_commons_packet *packet)
{
	int rc;

	if (commons->socket_fd < 0)
		return -ENOTCONN;
	if (!STAILQ_EMPTY(&commons->unsent))
		return -EAGAIN;
	rc = mb_commons_packet_send(
		commons->socket_fd, packet, mb_commons_packet_bytes(&packet->asked), -1);
	return rc == -EAGAIN ? rc : 0; /* else the connection is over, which poll will see */
}

static void set_writing(struct mb_commons *commons, bool on)
{
	struct epoll_event ev = {.events = EPOLLIN | (on ? EPOLLOUT : 0)};

	if (on != commons->writing)
		epoll_ctl(commons->epoll_fd, EPOLL_CTL_MOD, commons->socket_fd, &ev);
	commons->writing = on;
}

/* An error of the socket is told by reading it as well. */
static void send_unsent(struct mb_commons *commons)
{
	struct unsent *u;

	while ((u = STAILQ_FIRST(&commons->unsent)) && !send_one(commons, &u->msg, u->base)) {
		STAILQ_REMOVE_HEAD(&commons->unsent, next);
		free(u);
	}
	set_writing(commons, u != NULL);
}

int mb_commons_send(struct mb_commons *commons, const struct mb_commons_request *msg,
	struct mb_commons_base *base)
{
	struct unsent *u;
	int rc = -EAGAIN;

	if (commons->socket_fd < 0)
		return -ENOTCONN;
	if (STAILQ_EMPTY(&commons->unsent))
		rc = send_one(commons, msg, base);
	if (rc != -EAGAIN)
		return 0; /* sent, or the connection is over, which poll will see */
	/* There is no bound but what is open: a release must not be lost. Wants do not come here
	 * when something waits. */
	u = calloc(1, sizeof(*u));
	if (!u)
		return -ENOMEM;
	u->msg = *msg;
	u->base = base;
	STAILQ_INSERT_TAIL(&commons->unsent, u, next);
	set_writing(commons, true);
	return 0;
}

uint64_t mb_commons_new_tag(struct mb_commons *commons)
{
	return ++commons->last_tag;
}

/* ---- connecting ---- */

static void retry_in(struct mb_commons *commons, unsigned ms)
{
	struct itimerspec in = {
		.it_value = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l + 1}};

	commons->retry_ns = mb_now_ns() + ms * 1000000ull;
	timerfd_settime(commons->timer_fd, 0, &in, NULL);
}

static void disconnect(struct mb_commons *commons)
{
	struct unsent *u;

	while ((u = STAILQ_FIRST(&commons->unsent))) {
		STAILQ_REMOVE_HEAD(&commons->unsent, next);
		free(u);
	}
	close(commons->socket_fd);
	commons->socket_fd = -1;
	commons->writing = false;
	commons->status = MB_COMMONS_ABSENT;
	retry_in(commons, commons->retry_ms);
	commons->retry_ms =
		commons->retry_ms * 2 < LAST_RETRY_MS ? commons->retry_ms * 2 : LAST_RETRY_MS;
	mb_commons_forget(commons);
}

/* No daemon: starts one. A connection, or -errno. */
static int start(struct mb_commons *commons)
{
	struct mb_commons_place place;
	int rc = mb_commons_place_open(&place, commons->config.path, true, NULL);
	int lock_fd = -1, listen_fd = -1, pid;

	if (rc)
		goto out;
	/* Who has it is starting one, or is one and about to end. */
	lock_fd = rc = mb_commons_place_lock(&place);
	if (rc < 0)
		goto out;
	listen_fd = rc = mb_commons_place_listen(&place, false);
	if (rc < 0) {
		rc = rc == -EADDRINUSE ? -EWOULDBLOCK : rc;
		goto out;
	}
	rc = mb_commons_spawn(&place, commons->config.program, listen_fd, lock_fd, &pid);
	if (rc) {
		unlinkat(place.dir_fd, place.file, 0);
		mb_log("commons: mirrorballd cannot be started: %s; pages are shared with no other "
		       "machine",
			strerror(-rc));
		goto out;
	}
	commons->daemon = pid;
	/* At once: who connects waits in the socket until the daemon is there. */
	rc = mb_commons_place_connect(&place);
out:
	/* The daemon has its own of both. */
	if (listen_fd >= 0)
		close(listen_fd);
	if (lock_fd >= 0)
		close(lock_fd);
	mb_commons_place_close(&place);
	return rc;
}

static void try_to_connect(struct mb_commons *commons)
{
	struct mb_commons_request hello = {
		.magic = MB_COMMONS_MAGIC, .version = MB_COMMONS_VERSION, .type = MB_COMMONS_HELLO};
	struct epoll_event ev = {.events = EPOLLIN};
	int fd = mb_commons_connect(commons->config.path);
	unsigned wait_ms = commons->retry_ms;

	if ((fd == -ENOENT || fd == -ECONNREFUSED) && commons->config.start && !commons->daemon &&
		mb_now_ns() >= commons->no_start_ns) {
		fd = start(commons);
		if (fd == -EWOULDBLOCK)
			wait_ms = FIRST_RETRY_MS;
		else if (fd < 0)
			commons->no_start_ns = mb_now_ns() + NO_START_NS;
	}
	if (fd >= 0 && epoll_ctl(commons->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
		close(fd);
		fd = -ENOMEM;
	}
	if (fd < 0) {
		retry_in(commons, wait_ms);
		commons->retry_ms = commons->retry_ms * 2 < LAST_RETRY_MS ? commons->retry_ms * 2
									  : LAST_RETRY_MS;
		return;
	}
	commons->socket_fd = fd;
	commons->status = MB_COMMONS_CONNECTING;
	if (mb_commons_send(commons, &hello, NULL))
		disconnect(commons);
}

/* ---- receiving ---- */

static int welcome(struct mb_commons *commons, const struct mb_commons_reply *msg)
{
	if (commons->status != MB_COMMONS_CONNECTING || msg->status ||
		msg->value != MB_COMMONS_PIECE_BYTES)
		return -EBADMSG;
	commons->status = MB_COMMONS_READY;
	commons->retry_ms = FIRST_RETRY_MS;
	for (unsigned i = 0; i < MB_COMMONS_MAX_OPEN; i++)
		if (commons->base[i])
			mb_commons_announce(commons->base[i]);
	return 0;
}

/* 1: took one; 0: there is none; -errno: the connection is over. */
static int receive(struct mb_commons *commons)
{
	struct mb_commons_reply msg = {0};
	int fd, rc;
	ssize_t n = mb_commons_packet_receive(commons->socket_fd, &msg, sizeof(msg), &fd);

	if (n == -EAGAIN)
		return 0;
	if (n == -EMFILE) {
		msg.status = -EMFILE;
		n = sizeof(msg);
	}
	rc = n < 0 ? (int)n : !n ? -EPIPE : n != sizeof(msg) ? -EBADMSG : 0;
	if (!rc && (msg.magic != MB_COMMONS_MAGIC || msg.version != MB_COMMONS_VERSION))
		rc = -EBADMSG;
	if (!rc && msg.type == MB_COMMONS_HELLO)
		rc = welcome(commons, &msg);
	else if (!rc) {
		rc = mb_commons_take(commons, &msg, fd);
		fd = -1;
	}
	if (fd >= 0)
		close(fd);
	return rc ? rc : 1;
}

void mb_commons_poll(struct mb_commons *commons)
{
	uint64_t n;
	int rc = 1;

	if (commons->daemon && waitpid(commons->daemon, NULL, WNOHANG))
		commons->daemon = 0;
	if (commons->socket_fd < 0) {
		if (mb_now_ns() < commons->retry_ns)
			return;
		/* What it says does not matter: the clock was asked. */
		while (read(commons->timer_fd, &n, sizeof(n)) > 0)
			;
		try_to_connect(commons);
	}
	for (unsigned i = 0; commons->socket_fd >= 0 && rc > 0 && i < BATCH; i++)
		rc = receive(commons);
	if (rc < 0 && commons->socket_fd >= 0) {
		if (rc == -EBADMSG)
			mb_log("commons: what mirrorballd says makes no sense; another version?");
		disconnect(commons);
	}
	if (commons->socket_fd >= 0)
		send_unsent(commons);
}

/* ---- the whole ---- */

int mb_commons_create(
	const struct mb_commons_config *config, struct mb_commons **out, struct mb_error *err)
{
	struct mb_commons *commons = calloc(1, sizeof(*commons));
	struct epoll_event ev = {.events = EPOLLIN};
	int rc;

	if (!commons)
		return mb_error_set(err, ENOMEM, "commons: out of memory");
	commons->config = *config;
	commons->socket_fd = -1;
	commons->retry_ms = FIRST_RETRY_MS;
	STAILQ_INIT(&commons->unsent);
	pthread_rwlock_init(&commons->lock, NULL);
	commons->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	commons->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (commons->epoll_fd < 0 || commons->timer_fd < 0 ||
		epoll_ctl(commons->epoll_fd, EPOLL_CTL_ADD, commons->timer_fd, &ev)) {
		rc = mb_error_set(err, errno, "commons: %s", strerror(errno));
		mb_commons_destroy(commons);
		return rc;
	}
	/* With the first poll, on the thread that it is for: nothing is looked for or started here.
	 */
	retry_in(commons, 0);
	*out = commons;
	return 0;
}

void mb_commons_destroy(struct mb_commons *commons)
{
	struct unsent *u;

	if (!commons)
		return;
	for (unsigned i = 0; i < MB_COMMONS_MAX_OPEN; i++)
		mb_commons_close_base(commons->base[i]);
	while ((u = STAILQ_FIRST(&commons->unsent))) {
		STAILQ_REMOVE_HEAD(&commons->unsent, next);
		free(u);
	}
	if (commons->socket_fd >= 0)
		close(commons->socket_fd);
	if (commons->timer_fd >= 0)
		close(commons->timer_fd);
	if (commons->epoll_fd >= 0)
		close(commons->epoll_fd);
	pthread_rwlock_destroy(&commons->lock);
	free(commons);
}

int mb_commons_fd(const struct mb_commons *commons)
{
	return commons->epoll_fd;
}

enum mb_commons_status mb_commons_status(const struct mb_commons *commons)
{
	return commons->status;
}
