// SPDX-License-Identifier: Apache-2.0
#include "net_impl.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <mirrorball/clock.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * passt: a network for users without privilege. The program is our child and speaks over a stream
 * socket pair: each Ethernet frame with its length in front, 32 bits, big-endian (passt(1)); no
 * virtio-net header, so there are no offloads and the header is put on and taken off here.
 *
 * It runs in the foreground (-f) with the socket as descriptor 3 (-F), so that it is ours to reap
 * and ends when the socket closes (-1), whatever becomes of us. Started by root it changes to
 * nobody by itself.
 */
#define PREFIX_BYTES   4u
#define MIN_FRAME      14u
#define MAX_FRAME      65535u /* larger ones passt takes for a broken stream */
#define STAGE_BYTES    (128u << 10)
#define CHILD_FD       3
#define HANGUP_WAIT_MS 100
#define END_WAIT_MS    1000
#define READY_WAIT_MS  3000
#define NOBODYS_TYPE   0x88b5 /* IEEE 802: for experiments; passt ignores what it does not know */

struct mb_passt {
	struct mb_net *net;
	int fd;
	pid_t pid;	       /* 0: reaped */
	struct mb_watch child; /* pidfd */
	struct mb_watch stderr_pipe;
	bool watching;
	char said[160]; /* the last line of its standard error that is about something */
	char line[160]; /* the one that is not whole yet; what is too much is cut off */
	unsigned n_line;
	bool usage; /* nothing but its long list of options from here on */

	/* Received, not yet given to the guest: [start, end) of stage. The rx queue's thread. */
	uint8_t *stage;
	uint32_t start, end;
	/* The rest of a frame whose buffers went away half sent. The tx queue's thread. */
	uint8_t *rest;
	uint32_t rest_start, rest_end;
};

extern char **environ;

int mb_passt_fd(const struct mb_passt *passt)
{
	return passt->fd;
}

/* ---- receive ---- */

/* Whether a whole frame is in the stage, and its length. -EPROTO: no frame can be that long. */
static int staged_frame(const struct mb_passt *passt, uint32_t *len)
{
	uint32_t n = passt->end - passt->start, prefix;

	if (n < PREFIX_BYTES)
		return 0;
	memcpy(&prefix, passt->stage + passt->start, sizeof(prefix));
	*len = ntohl(prefix);
	if (*len < MIN_FRAME || *len > MB_NET_MAX_FRAME)
		return -EPROTO;
	return n - PREFIX_BYTES >= *len;
}

static bool passt_more(const struct mb_net_queue *q)
{
	uint32_t len;

	return staged_frame(q->net->passt, &len) != 0;
}

/*
 * The other end of the socket is closed. If that is because passt has ended, child_ready knows more
 * about it and is about to say it.
 */
static int hung_up(const struct mb_passt *passt)
{
	struct pollfd pfd = {.fd = passt->child.fd, .events = POLLIN};

	return pfd.fd >= 0 && poll(&pfd, 1, HANGUP_WAIT_MS) == 1 ? -ESHUTDOWN : -ECONNRESET;
}

/* Reads what is there: 0, -EAGAIN, or another -errno. The stage has room: it is larger than a
 * frame. */
static int fill_stage(struct mb_passt *passt, int fd)
{
	ssize_t got;

	memmove(passt->stage, passt->stage + passt->start, passt->end - passt->start);
	passt->end -= passt->start;
	passt->start = 0;
	do
		got = recv(fd, passt->stage + passt->end, STAGE_BYTES - passt->end, MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	if (got < 0 && errno != ECONNRESET)
		return -errno;
	if (got <= 0)
		return hung_up(passt);
	passt->end += (uint32_t)got;
	return 0;
}

static size_t scatter(
	const struct iovec *iov, unsigned n_iov, size_t offset, const void *from, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < n_iov && done < len; i++) {
		size_t n = iov[i].iov_len;

		if (offset >= n) {
			offset -= n;
			continue;
		}
		n -= offset;
		if (n > len - done)
			n = len - done;
		memcpy((uint8_t *)iov[i].iov_base + offset, (const uint8_t *)from + done, n);
		done += n;
		offset = 0;
	}
	return done;
}

static ssize_t passt_recv(struct mb_net_queue *q, const struct iovec *iov, unsigned n_iov)
{
	static const struct virtio_net_hdr_v1 header; /* no checksum to finish, nothing to divide */
	struct mb_passt *passt = q->net->passt;
	uint32_t len = 0;
	int rc;

	while (!(rc = staged_frame(passt, &len))) {
		rc = fill_stage(passt, q->watch.fd);
		if (rc)
			break;
	}
	if (rc < 0)
		return rc;
	scatter(iov, n_iov, 0, &header, sizeof(header));
	scatter(iov, n_iov, sizeof(header), passt->stage + passt->start + PREFIX_BYTES, len);
	passt->start += PREFIX_BYTES + len;
	return (ssize_t)(sizeof(header) + len);
}

/* ---- send ---- */

/* The iov of `chain` from byte skip on, behind the prefix if that is not out yet. Returns the
 * entries. */
static unsigned frame_iov(struct mb_net_queue *q, const struct mb_chain *chain, uint32_t *prefix)
{
	uint64_t skip = MB_NET_HDR_BYTES;
	unsigned n = 0;

	if (q->n_sent < PREFIX_BYTES)
		q->iov[n++] = (struct iovec){
			.iov_base = (uint8_t *)prefix + q->n_sent,
			.iov_len = PREFIX_BYTES - q->n_sent,
		};
	else
		skip += q->n_sent - PREFIX_BYTES;
	for (unsigned i = 0; i < chain->n_out && n < MB_CHAIN_MAX_IOV; i++) {
		const struct iovec *iov = &chain->iov[i];

		if (skip >= iov->iov_len) {
			skip -= iov->iov_len;
			continue;
		}
		q->iov[n++] = (struct iovec){
			.iov_base = (uint8_t *)iov->iov_base + skip,
			.iov_len = iov->iov_len - skip,
		};
		skip = 0;
	}
	return n;
}

static int send_rest(struct mb_passt *passt, int fd)
{
	while (passt->rest_start < passt->rest_end) {
		ssize_t n = send(fd, passt->rest + passt->rest_start,
			passt->rest_end - passt->rest_start, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return hung_up(passt);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			passt->rest_start += (uint32_t)n;
	}
	return 0;
}

static int passt_send(struct mb_net_queue *q, struct mb_chain *chain)
{
	uint32_t len, total, prefix;
	int rc = send_rest(q->net->passt, q->watch.fd);

	if (rc)
		return rc;
	if (chain->out_bytes < MB_NET_HDR_BYTES + MIN_FRAME ||
		chain->out_bytes > MB_NET_HDR_BYTES + MAX_FRAME)
		return 0;
	len = (uint32_t)chain->out_bytes - MB_NET_HDR_BYTES;
	prefix = htonl(len);
	total = PREFIX_BYTES + len;
	while (q->n_sent < total) {
		struct msghdr msg = {.msg_iov = q->iov};
		ssize_t n;

		msg.msg_iovlen = frame_iov(q, chain, &prefix);
		n = sendmsg(q->watch.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return hung_up(q->net->passt);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			q->n_sent += (uint32_t)n;
	}
	q->n_sent = 0;
	return 0;
}

/* Half a frame is out: the stream must have the other half, or all that follows is garbage to
 * passt. */
static void passt_abandon(struct mb_net_queue *q, struct mb_chain *chain)
{
	struct mb_passt *passt = q->net->passt;
	uint32_t len = (uint32_t)chain->out_bytes - MB_NET_HDR_BYTES, prefix = htonl(len);

	if (!q->n_sent)
		return;
	passt->rest_start = q->n_sent;
	passt->rest_end = PREFIX_BYTES + len;
	memcpy(passt->rest, &prefix, sizeof(prefix));
	mb_chain_read(chain, MB_NET_HDR_BYTES, passt->rest + PREFIX_BYTES, len);
}

static int passt_set_offloads(struct mb_net *net, uint64_t features)
{
	return 0; /* none were offered */
}

static int passt_set_pairs(struct mb_net *net, unsigned n_pairs)
{
	return n_pairs == 1 ? 0 : -EINVAL;
}

static const struct mb_net_back_ops passt_ops = {
	.recv = passt_recv,
	.more = passt_more,
	.send = passt_send,
	.abandon = passt_abandon,
	.set_offloads = passt_set_offloads,
	.set_pairs = passt_set_pairs,
};

/* ---- the child ---- */

/*
 * Keeps the last line that is about something. Without a syslog each line brings one about that;
 * run by root, it says what it does about it; a wrong option is followed by all the right ones.
 */
static void end_line(struct mb_passt *passt)
{
	const char *line = passt->line;

	passt->line[passt->n_line] = 0;
	passt->n_line = 0;
	if (!strncmp(line, "Usage:", 6))
		passt->usage = true;
	if (!passt->usage && line[strspn(line, " ")] && strncmp(line, "Failed to send", 14) &&
		strncmp(line, "Don't run as root", 17))
		memcpy(passt->said, line, sizeof(passt->said));
}

static void read_stderr(struct mb_passt *passt)
{
	char buf[512];
	ssize_t n;

	while ((n = read(passt->stderr_pipe.fd, buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < n; i++) {
			unsigned char c = (unsigned char)buf[i];

			if (c == '\n')
				end_line(passt);
			else if (passt->n_line < sizeof(passt->line) - 1)
				/* It goes to a terminal. */
				passt->line[passt->n_line++] = c < ' ' || c == 127 ? ' ' : buf[i];
		}
	}
}

/* What there is to say about its end: "(status 1): its last words". It is reaped. */
static void describe_end(struct mb_passt *passt, int status, char *text, size_t len)
{
	passt->pid = 0;
	read_stderr(passt);
	end_line(passt);
	snprintf(text, len, "(%s %d)%s%s", WIFSIGNALED(status) ? "signal" : "status",
		WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
		*passt->said ? ": " : "", passt->said);
}

static void stderr_ready(struct mb_watch *watch, uint32_t events)
{
	struct mb_passt *passt = watch->ctx;

	read_stderr(passt);
	if (events & EPOLLHUP)
		mb_loop_remove(passt->net->ctrl_loop, watch);
}

static void child_ready(struct mb_watch *watch, uint32_t events)
{
	struct mb_passt *passt = watch->ctx;
	char end[200], why[256];
	int status;

	mb_loop_remove(passt->net->ctrl_loop, watch);
	if (!passt->pid || waitpid(passt->pid, &status, WNOHANG) != passt->pid)
		return;
	describe_end(passt, status, end, sizeof(end));
	snprintf(why, sizeof(why), "the program passt ended %s", end);
	mb_net_gone(passt->net, why);
}

static int spawn(struct mb_passt *passt, char *const *argv, int socket_fd, int stderr_fd)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int rc;

	/* The machine's signals are blocked or handled here; the child starts with none of that. */
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	/* A process group of its own: ^C on the terminal is for the guest or for us. */
	posix_spawnattr_setpgroup(&attr, 0);
	posix_spawnattr_setflags(
		&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
	posix_spawn_file_actions_init(&actions);
	rc = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(&actions, 0, 1);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(&actions, stderr_fd, 2);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(&actions, socket_fd, CHILD_FD);
	if (!rc)
		rc = posix_spawn_file_actions_addclosefrom_np(&actions, CHILD_FD + 1);
	if (!rc)
		rc = posix_spawnp(&passt->pid, argv[0], &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	if (rc)
		passt->pid = 0;
	return -rc;
}

static char **make_argv(const char *const *extra)
{
	static const char *const first[] = {"passt", "-f", "-1", "-q", "-F", "3"};
	unsigned n_first = sizeof(first) / sizeof(first[0]), n_extra = 0;
	char **argv;

	while (extra && extra[n_extra])
		n_extra++;
	argv = calloc(n_first + n_extra + 1, sizeof(*argv));
	if (!argv)
		return NULL;
	/* posix_spawn does not write to them. */
	for (unsigned i = 0; i < n_first; i++)
		argv[i] = (char *)(uintptr_t)first[i];
	for (unsigned i = 0; i < n_extra; i++)
		argv[n_first + i] = (char *)(uintptr_t)extra[i];
	return argv;
}

/* A copy of *fd above those that the child's file actions overwrite one after the other. */
static void lift(int *fd)
{
	int high = fcntl(*fd, F_DUPFD_CLOEXEC, CHILD_FD + 1);

	if (high < 0)
		return;
	close(*fd);
	*fd = high;
}

static int start_child(
	struct mb_passt *passt, const struct mb_net_config *config, struct mb_error *err)
{
	const char *name = passt->net->name;
	int pair[2], pipe_fds[2], rc;
	char **argv = make_argv(config->passt_args);

	if (!argv)
		return mb_error_set(err, ENOMEM, "%s: out of memory", name);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
		rc = mb_error_set(
			err, errno, "%s: cannot make a socket pair: %s", name, strerror(errno));
		goto out_argv;
	}
	if (pipe2(pipe_fds, O_CLOEXEC)) {
		rc = mb_error_set(err, errno, "%s: cannot make a pipe: %s", name, strerror(errno));
		close(pair[0]);
		close(pair[1]);
		goto out_argv;
	}
	fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
	passt->fd = pair[0];
	passt->stderr_pipe.fd = pipe_fds[0];
	lift(&pair[1]);
	lift(&pipe_fds[1]);
	rc = spawn(passt, argv, pair[1], pipe_fds[1]);
	close(pair[1]);
	close(pipe_fds[1]);
	if (rc == -ENOENT)
		mb_error_set(err, ENOENT,
			"%s: the program passt is not installed; apt install passt, or use --net "
			"tap=NAME",
			name);
	else if (rc)
		mb_error_set(err, -rc,
			"%s: cannot start the program passt: %s; see that 'passt --version' works, "
			"or use --net tap=NAME",
			name, strerror(-rc));
out_argv:
	free(argv);
	return rc;
}

static int ended_at_once(struct mb_passt *passt, struct mb_error *err)
{
	struct pollfd pfd = {.fd = passt->child.fd, .events = POLLIN};
	char end[200] = "";
	int status;

	if (pfd.fd >= 0)
		poll(&pfd, 1, END_WAIT_MS);
	if (waitpid(passt->pid, &status, WNOHANG) == passt->pid)
		describe_end(passt, status, end, sizeof(end));
	return mb_error_set(err, ECONNRESET,
		"%s: the program passt %s%s; put that right, see passt(1), or use --net tap=NAME",
		passt->net->name, *end ? "ended at once " : "closed its socket at once", end);
}

/*
 * What is wrong with its arguments, its privileges or the host's network, passt finds out before it
 * looks at its socket for the first time. So it gets a frame that asks for nothing, from the
 * guest's address, as passt remembers who spoke last; and when that is gone from the socket, passt
 * is at work. Nothing tells us that, so we look; it takes some 20 ms.
 */
static int wait_ready(struct mb_passt *passt, struct mb_error *err)
{
	struct {
		uint32_t len;
		uint8_t to[6], from[6];
		uint16_t type;
	} frame = {.len = htonl(MIN_FRAME), .type = htons(NOBODYS_TYPE)};
	struct pollfd pfd = {.fd = passt->fd};
	uint64_t until_ns;

	memset(frame.to, 0xff, sizeof(frame.to));
	memcpy(frame.from, passt->net->first_mac, sizeof(frame.from));
	/* It fails if passt is gone already, and then poll says so. */
	send(passt->fd, &frame, PREFIX_BYTES + MIN_FRAME, MSG_DONTWAIT | MSG_NOSIGNAL);
	until_ns = mb_now_ns() + READY_WAIT_MS * 1000000ull;
	while (mb_now_ns() < until_ns) {
		int unread = 0;

		/* In this order: when passt ends, the frame is gone as well, but later. */
		ioctl(passt->fd, SIOCOUTQ, &unread);
		if (poll(&pfd, 1, unread ? 1 : 0) == 1)
			return ended_at_once(passt, err);
		if (!unread)
			return 0;
	}
	mb_log("%s: the program passt is not ready after %u s; the machine starts without waiting "
	       "for it",
		passt->net->name, READY_WAIT_MS / 1000);
	return 0;
}

static void add_watches(void *arg)
{
	struct mb_passt *passt = arg;

	if (passt->child.fd >= 0)
		mb_loop_add(passt->net->ctrl_loop, &passt->child);
	mb_loop_add(passt->net->ctrl_loop, &passt->stderr_pipe);
	passt->watching = true;
}

static void remove_watches(void *arg)
{
	struct mb_passt *passt = arg;

	if (passt->child.fd >= 0)
		mb_loop_remove(passt->net->ctrl_loop, &passt->child);
	mb_loop_remove(passt->net->ctrl_loop, &passt->stderr_pipe);
	passt->watching = false;
}

int mb_passt_start(struct mb_net *net, const struct mb_net_config *config, struct mb_error *err)
{
	struct mb_passt *passt = calloc(1, sizeof(*passt));
	int rc;

	if (!passt)
		return mb_error_set(err, ENOMEM, "%s: out of memory", net->name);
	net->passt = passt;
	net->back = &passt_ops;
	passt->net = net;
	passt->fd = passt->child.fd = passt->stderr_pipe.fd = -1;
	passt->stage = malloc(STAGE_BYTES);
	passt->rest = malloc(PREFIX_BYTES + MAX_FRAME);
	if (!passt->stage || !passt->rest)
		return mb_error_set(err, ENOMEM, "%s: out of memory", net->name);
	rc = start_child(passt, config, err);
	if (rc)
		return rc;
	passt->child.fd = pidfd_open(passt->pid, 0);
	passt->child.events = EPOLLIN;
	passt->child.ready = child_ready;
	passt->child.ctx = passt;
	passt->stderr_pipe.events = EPOLLIN;
	passt->stderr_pipe.ready = stderr_ready;
	passt->stderr_pipe.ctx = passt;
	return wait_ready(passt, err);
}

void mb_passt_watch(struct mb_passt *passt)
{
	mb_loop_call(passt->net->ctrl_loop, add_watches, passt);
}

/* Our end of the socket is closed, which ends it; a signal for one that does not notice. */
static void end_child(struct mb_passt *passt)
{
	struct pollfd pfd = {.fd = passt->child.fd, .events = POLLIN};

	kill(passt->pid, SIGTERM);
	if (pfd.fd < 0 || poll(&pfd, 1, END_WAIT_MS) <= 0)
		kill(passt->pid, SIGKILL);
	while (waitpid(passt->pid, NULL, 0) < 0 && errno == EINTR)
		;
}

void mb_passt_unwatch(struct mb_passt *passt)
{
	if (passt && passt->watching)
		mb_loop_call(passt->net->ctrl_loop, remove_watches, passt);
}

void mb_passt_stop(struct mb_passt *passt)
{
	if (!passt)
		return;
	mb_passt_unwatch(passt);
	if (passt->fd >= 0)
		close(passt->fd);
	if (passt->pid)
		end_child(passt);
	if (passt->child.fd >= 0)
		close(passt->child.fd);
	if (passt->stderr_pipe.fd >= 0)
		close(passt->stderr_pipe.fd);
	free(passt->stage);
	free(passt->rest);
	free(passt);
}
