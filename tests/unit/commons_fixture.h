/* SPDX-License-Identifier: Apache-2.0 */
#ifndef COMMONS_FIXTURE_H
#define COMMONS_FIXTURE_H

/* A daemon in this process or one of its own, clients of it, and bases whose every page tells what
 * it is. */

#include "run.h"

#include "../../src/commons_server_impl.h"
#include "../../src/commons_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/commons.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE	  MB_COMMONS_PAGE
#define PIECE	  MB_COMMONS_PIECE
#define N_PAGES	  (PIECE / PAGE)
#define WAIT_MS	  20000u
#define BASE_SIZE (2 * PIECE + 5 * PAGE + 100) /* three pieces, the last page is cut */

struct fixture {
	char dir[64], path[96], base_path[96];
	int base_fd, lock_fd;
	struct mb_commons_server *server;
	struct mb_commons_server_config config;
	pthread_t thread;
	struct mb_commons *commons;
	struct mb_commons_base *base;
	/* The last want that is over. */
	struct mb_commons_done done;
	unsigned n_done;
};

static struct fixture f;

/* In a build that is wrong: finding it is success. */
static inline void found_wrong(const char *what)
{
	char command[128];

	if (!MB_COMMONS_WRONG)
		ck_abort_msg("%s", what);
	printf("found: %s\n", what);
	fflush(stdout);
	/* Not by the fixture's end: what is wrong may keep that from coming. */
	snprintf(command, sizeof(command), "rm -rf %s", f.dir);
	_exit(system(command) ? 1 : 0);
}

/* ---- bases ---- */

/* Word i of page p in version v. */
static inline uint64_t word_of(uint64_t version, uint64_t page, unsigned i)
{
	return (version << 40 ^ page << 12 ^ i) * 0x9e3779b97f4a7c15ull + 1;
}

static inline void make_page(uint64_t version, uint64_t page, uint64_t *to)
{
	for (unsigned i = 0; i < PAGE / 8; i++)
		to[i] = word_of(version, page, i);
}

static inline void write_base(int fd, uint64_t version, uint64_t bytes)
{
	uint64_t page[PAGE / 8];

	for (uint64_t at = 0; at < bytes; at += PAGE) {
		size_t n = bytes - at < PAGE ? bytes - at : PAGE;

		make_page(version, at / PAGE, page);
		if (pwrite(fd, page, n, (off_t)at) != (ssize_t)n)
			abort();
	}
}

static inline bool is_page(const void *data, uint64_t version, uint64_t page)
{
	uint64_t want[PAGE / 8];

	make_page(version, page, want);
	return !memcmp(data, want, PAGE);
}

static inline int make_base(const char *path, uint64_t version, uint64_t bytes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ck_assert_int_ge(fd, 0);
	write_base(fd, version, bytes);
	return fd;
}

/* ---- daemons ---- */

static inline int listen_at(const char *path)
{
	struct mb_commons_listen listening;
	struct mb_error err;

	ck_assert_msg(
		!mb_commons_listen(path, f.config.any_user, &listening, &err), "%s", err.text);
	f.lock_fd = listening.lock_fd;
	return listening.fd;
}

static inline void *server_main(void *arg)
{
	mb_commons_server_run(f.server);
	return NULL;
}

static inline void create_server(void)
{
	struct mb_error err;

	f.config.listen_fd = listen_at(f.path);
	ck_assert_msg(!mb_commons_server_create(&f.config, &f.server, &err), "%s", err.text);
}

static inline void start_server(void)
{
	if (!f.server)
		create_server();
	ck_assert_int_eq(pthread_create(&f.thread, NULL, server_main, NULL), 0);
}

static inline void stop_server(void)
{
	if (!f.server)
		return;
	mb_commons_server_stop(f.server);
	pthread_join(f.thread, NULL);
	ck_assert(mb_commons_server_destroy(f.server) || MB_COMMONS_WRONG);
	f.server = NULL;
	close(f.lock_fd);
}

static inline void get_stat(void *arg)
{
	*(json_t **)arg = mb_commons_server_stat(f.server, true);
}

/* One of the daemon's numbers. */
static inline uint64_t stat_of(const char *key)
{
	json_t *all = NULL;
	uint64_t value;

	mb_loop_call(f.server->loop, get_stat, &all);
	ck_assert_ptr_nonnull(json_object_get(all, key));
	value = (uint64_t)json_integer_value(json_object_get(all, key));
	json_decref(all);
	return value;
}

/* Some of them follow what a client did with a delay. */
static inline bool becomes(const char *key, uint64_t value)
{
	for (unsigned i = 0; i < 500; i++) {
		if (stat_of(key) == value)
			return true;
		usleep(10000);
	}
	return false;
}

/* ---- clients ---- */

static inline void on_done(void *ctx, const struct mb_commons_done *done)
{
	struct fixture *at = ctx;

	at->done = *done;
	at->n_done++;
}

static inline struct mb_commons *new_client(void)
{
	struct mb_commons_config config = {.path = f.path, .done = on_done, .ctx = &f};
	struct mb_commons *commons;
	struct mb_error err;

	ck_assert_int_eq(mb_commons_create(&config, &commons, &err), 0);
	return commons;
}

static inline void poll_once(struct mb_commons *commons, int ms)
{
	struct pollfd pfd = {.fd = mb_commons_fd(commons), .events = POLLIN};

	poll(&pfd, 1, ms);
	mb_commons_poll(commons);
}

static inline int open_base(struct mb_commons *commons, int fd, struct mb_commons_base **base)
{
	uint64_t end_ns = mb_now_ns() + WAIT_MS * 1000000ull;

	ck_assert_int_eq(mb_commons_open_base(commons, fd, base), 0);
	while (mb_commons_base_status(*base) == -EINPROGRESS && mb_now_ns() < end_ns)
		poll_once(commons, 50);
	return mb_commons_base_status(*base);
}

/* Wants it and waits: its status. */
static inline int want(struct mb_commons *commons, struct mb_commons_base *base, unsigned node,
	uint64_t offset, uint64_t len)
{
	uint64_t end_ns = mb_now_ns() + WAIT_MS * 1000000ull;
	unsigned n = f.n_done;
	int rc = mb_commons_want(base, node, offset, len, &f);

	if (rc)
		return rc;
	while (f.n_done == n && mb_now_ns() < end_ns)
		poll_once(commons, 50);
	ck_assert_uint_eq(f.n_done, n + 1);
	ck_assert_uint_eq(f.done.offset, offset);
	return f.done.status;
}

static inline unsigned node_id(void)
{
	return f.server->topology.node[0].id;
}

static inline void setup_dir(void)
{
	memset(&f, 0, sizeof(f));
	/* A disk: of a file in memory nothing can be dropped from the page cache. */
	strcpy(f.dir, "/var/tmp/mb-commons-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(f.dir));
	snprintf(f.path, sizeof(f.path), "%s/commons.sock", f.dir);
	snprintf(f.base_path, sizeof(f.base_path), "%s/base", f.dir);
	f.base_fd = make_base(f.base_path, 1, BASE_SIZE);
	/* A file that changed just now is waited for. */
	usleep(25000);
}

static inline void teardown_dir(void)
{
	char command[128];

	close(f.base_fd);
	snprintf(command, sizeof(command), "rm -rf %s", f.dir);
	ck_assert_int_eq(system(command), 0);
}

static inline void setup(void)
{
	setup_dir();
	create_server();
}

static inline void teardown(void)
{
	mb_commons_destroy(f.commons);
	stop_server();
	teardown_dir();
}

/* Starts all that most cases need. */
static inline void begin(void)
{
	start_server();
	f.commons = new_client();
	ck_assert_int_eq(open_base(f.commons, f.base_fd, &f.base), 0);
}

/* ---- without the library ---- */

static inline int raw_connect(void)
{
	int fd = mb_commons_connect(f.path);

	if (fd >= 0)
		fcntl(fd, F_SETFL, 0);
	return fd;
}

static inline struct mb_commons_request raw_request(unsigned type)
{
	return (struct mb_commons_request){
		.magic = MB_COMMONS_MAGIC, .version = MB_COMMONS_VERSION, .type = (uint16_t)type};
}

static inline int raw_send(int fd, const void *data, size_t len, const int *fds, unsigned n_fds)
{
	char room[CMSG_SPACE(8 * sizeof(int))] __attribute__((aligned(8))) = {0};
	struct iovec iov = {.iov_base = (void *)data, .iov_len = len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n_fds) {
		struct cmsghdr *c = (void *)room;

		m.msg_control = room;
		m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	return sendmsg(fd, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* A reply and the descriptor with it (or -1). 0: got one; -EPIPE: the daemon hung up. */
static inline int raw_receive(int fd, struct mb_commons_reply *msg, int *given)
{
	char room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
	struct iovec iov = {.iov_base = msg, .iov_len = sizeof(*msg)};
	struct msghdr m = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = room,
		.msg_controllen = sizeof(room)};
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	ssize_t n;

	*given = -1;
	if (poll(&pfd, 1, (int)WAIT_MS) <= 0)
		return -ETIMEDOUT;
	n = recvmsg(fd, &m, 0);
	if (n <= 0)
		return -EPIPE;
	if (CMSG_FIRSTHDR(&m))
		memcpy(given, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return n == sizeof(*msg) ? 0 : -EBADMSG;
}

/* Connected and greeted. */
static inline int raw_client(void)
{
	struct mb_commons_request hello = raw_request(MB_COMMONS_HELLO);
	struct mb_commons_reply reply;
	int fd = raw_connect(), given;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(raw_send(fd, &hello, sizeof(hello), NULL, 0), 0);
	ck_assert_int_eq(raw_receive(fd, &reply, &given), 0);
	ck_assert_int_eq(reply.status, 0);
	return fd;
}

/* The status of an OPEN; the number in *number. */
static inline int raw_open(int fd, int base_fd, uint32_t *number)
{
	struct mb_commons_request msg = raw_request(MB_COMMONS_OPEN);
	struct mb_commons_reply reply;
	int given;

	ck_assert_int_eq(raw_send(fd, &msg, sizeof(msg), &base_fd, 1), 0);
	ck_assert_int_eq(raw_receive(fd, &reply, &given), 0);
	*number = reply.base;
	return reply.status;
}

#endif
