// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/control.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define DIGITS 5 /* of what is not whole: the rest is noise */
#define BACKLOG	      64
#define FIRST_BYTES   1024u
#define ACCEPT_WAIT_S 1
#define MAX_NESTED    16u

/*
 * A connection is in one of three states, and epoll is asked for what each waits for:
 *
 *   reading     no whole line yet                       EPOLLIN
 *   to answer   a whole line, and its turn not yet      EPOLLOUT (at once, mostly)
 *   answering   an answer not written to its end        EPOLLOUT
 *
 * One event reads once, answers one request or writes once: then it is somebody else's turn.
 */
struct connection {
	struct mb_control *control;
	uint64_t id;
	bool asked;   /* has made a request: its end is to be told */
	bool closing; /* after this answer */
	struct mb_watch watch;

	char *in; /* n_in bytes of requests, room for max_in */
	size_t n_in, max_in;
	size_t n_searched; /* so many of them are no newline */
	char *out;	   /* an answer, n_out bytes; NULL: none */
	size_t n_out, n_written;
};

/* Everything here belongs to the loop's thread. */
struct mb_control {
	struct mb_loop *loop;
	const struct mb_control_request *requests;
	void (*closed)(void *ctx, uint64_t connection);
	void *ctx;

	int dir_fd;
	char file[NAME_MAX + 1]; /* in it; "": not there (any more) */
	struct mb_watch listen, timer;
	bool listening, timed; /* watched by the loop */
	struct connection *connection[MB_CONTROL_MAX_CONNECTIONS];
	uint64_t next_id;
};

/* ---- connections ---- */

static void close_connection(struct connection *c)
{
	struct mb_control *control = c->control;

	mb_loop_remove(control->loop, &c->watch);
	close(c->watch.fd);
	for (unsigned i = 0; i < MB_CONTROL_MAX_CONNECTIONS; i++)
		if (control->connection[i] == c)
			control->connection[i] = NULL;
	if (c->asked && control->closed)
		control->closed(control->ctx, c->id);
	free(c->in);
	free(c->out);
	free(c);
}

/* The line that an answer is; NULL without memory. *n: its length. Steals answer. */
static char *line_of(json_t *answer, size_t *n)
{
	char *text = answer ? json_dumps(answer, JSON_COMPACT | JSON_REAL_PRECISION(DIGITS)) : NULL;

	json_decref(answer);
	if (!text)
		return NULL;
	*n = strlen(text);
	text[(*n)++] = '\n'; /* in the place of the NUL */
	return text;
}

static json_t *refusal(struct mb_error *err)
{
	/* It may quote the client, and JSON is UTF-8. */
	mb_error_make_printable(err->text);
	return json_pack("{s:b,s:s}", "ok", 0, "error", err->text);
}

static const struct mb_control_request *find_request(const struct mb_control *control, json_t *asked,
	const char **path, struct mb_error *err)
{
	const struct mb_control_request *r = control->requests;
	const char *name, *key;
	json_t *value;

	if (!json_is_object(asked)) {
		mb_error_set(err, EINVAL, "a request is a JSON object, as {\"request\":\"stat\"}");
		return NULL;
	}
	json_object_foreach(asked, key, value)
	{
		if (strcmp(key, "request") && strcmp(key, "path")) {
			mb_error_set(err, EINVAL, "a request has no member '%.100s'", key);
			return NULL;
		}
	}
	name = json_string_value(json_object_get(asked, "request"));
	if (!name) {
		mb_error_set(err, EINVAL, "a request has a member \"request\", a text");
		return NULL;
	}
	while (r->name && strcmp(r->name, name))
		r++;
	if (!r->name) {
		mb_error_set(err, EINVAL, "this machine knows no request '%.100s'", name);
		return NULL;
	}
	*path = json_string_value(json_object_get(asked, "path"));
	if (r->answer_path ? !*path || **path != '/' : json_object_get(asked, "path") != NULL) {
		mb_error_set(err, EINVAL,
			r->answer_path ? "request '%s' has a member \"path\", an absolute one"
				       : "request '%s' has no member \"path\"",
			name);
		return NULL;
	}
	return r;
}

/*
 * jansson's parser calls itself for each level, 2048 times, and takes some 100 bytes for each list:
 * for what no request has, neither stack nor memory.
 */
static bool is_nested(const char *line, size_t n)
{
	unsigned n_open = 0;

	for (size_t i = 0; i < n; i++)
		n_open += line[i] == '[' || line[i] == '{';
	return n_open > MAX_NESTED;
}

/* The answer to a line; NULL without memory. */
static json_t *answer_line(struct connection *c, const char *line, size_t n)
{
	const struct mb_control_request *request;
	json_t *asked, *answer = NULL, *whole;
	const char *path = NULL;
	struct mb_error err;
	json_error_t where;
	int rc = 0;

	if (is_nested(line, n)) {
		mb_error_set(&err, EINVAL, "a request has no more than %u lists and objects",
			MAX_NESTED);
		return refusal(&err);
	}
	asked = json_loadb(line, n, JSON_REJECT_DUPLICATES, &where);
	if (!asked) {
		mb_error_set(
			&err, EINVAL, "a request is a JSON object on one line: %s", where.text);
		return refusal(&err);
	}
	request = find_request(c->control, asked, &path, &err);
	if (request) {
		c->asked = true;
		rc = request->answer_path
			     ? request->answer_path(c->control->ctx, path, &answer, &err)
			     : request->answer(c->control->ctx, c->id, &answer, &err);
	}
	json_decref(asked);
	if (!request || rc)
		return refusal(&err);
	whole = json_pack("{s:b}", "ok", 1);
	if (whole && json_object_update(whole, answer)) {
		json_decref(whole);
		whole = NULL;
	}
	json_decref(answer);
	return whole;
}

/* Answers the first line there is. 0, or -errno: the connection cannot go on. */
static int answer_next(struct connection *c)
{
	struct mb_error err;
	char *end = c->in ? memchr(c->in + c->n_searched, '\n', c->n_in - c->n_searched) : NULL;
	json_t *answer;
	size_t n;

	if (!end && c->n_in < MB_CONTROL_MAX_LINE_BYTES) {
		c->n_searched = c->n_in;
		return 0;
	}
	if (end) {
		n = (size_t)(end - c->in) + 1;
		answer = answer_line(c, c->in, n - 1);
		memmove(c->in, c->in + n, c->n_in - n);
		c->n_in -= n;
	} else {
		mb_error_set(&err, EMSGSIZE, "a request is at most %u bytes long",
			MB_CONTROL_MAX_LINE_BYTES);
		answer = refusal(&err);
		c->closing = true;
		c->n_in = 0;
	}
	c->n_searched = 0;
	if (!c->n_in) {
		free(c->in);
		c->in = NULL;
		c->max_in = 0;
	}
	c->n_written = 0;
	c->out = line_of(answer, &c->n_out);
	return c->out ? 0 : -ENOMEM;
}

static int read_some(struct connection *c)
{
	ssize_t n;

	if (c->n_in == c->max_in) {
		size_t max = c->max_in ? 2 * c->max_in : FIRST_BYTES;
		char *in = realloc(c->in, max);

		if (!in)
			return -ENOMEM;
		c->in = in;
		c->max_in = max;
	}
	n = recv(c->watch.fd, c->in + c->n_in, c->max_in - c->n_in, MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (!n)
		return -EPIPE;
	c->n_in += (size_t)n;
	return 0;
}

static int write_some(struct connection *c)
{
	ssize_t n = send(c->watch.fd, c->out + c->n_written, c->n_out - c->n_written,
		MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	c->n_written += (size_t)n;
	if (c->n_written < c->n_out)
		return 0;
	free(c->out);
	c->out = NULL;
	return c->closing ? -EPIPE : 0;
}

static void on_connection(struct mb_watch *watch, uint32_t events)
{
	struct connection *c = watch->ctx;
	uint32_t want;
	int rc = 0;

	if (!c->out && watch->events == EPOLLIN)
		rc = read_some(c);
	if (!rc && !c->out)
		rc = answer_next(c);
	if (!rc && c->out)
		rc = write_some(c);
	if (!rc) {
		/* After an answer, what is left may hold a whole line, and epoll would not say so.
		 */
		want = c->out || c->n_in > c->n_searched ? EPOLLOUT : EPOLLIN;
		if (want != watch->events) {
			watch->events = want;
			rc = mb_loop_modify(c->control->loop, watch);
		}
	}
	if (rc)
		close_connection(c);
}

/* ---- new connections ---- */

/* One that does not become a connection: told why, as far as it can be told at once. */
static void turn_away(int fd, struct mb_error *err)
{
	ssize_t sent = 0;
	size_t n = 0;
	char *text = line_of(refusal(err), &n);

	if (text)
		sent = send(fd, text, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	(void)sent;
	free(text);
	close(fd);
}

static int check_peer(int fd, struct mb_error *err)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		return mb_error_set(err, errno, "SO_PEERCRED: %s", strerror(errno));
	if (peer.uid && peer.uid != geteuid())
		return mb_error_set(err, EPERM, "this machine belongs to user %u, and you are %u",
			(unsigned)geteuid(), (unsigned)peer.uid);
	return 0;
}

static void welcome(struct mb_control *control, int fd)
{
	struct connection *c, **place = NULL;
	struct mb_error err;
	int rc = check_peer(fd, &err);

	for (unsigned i = 0; i < MB_CONTROL_MAX_CONNECTIONS && !place; i++)
		if (!control->connection[i])
			place = &control->connection[i];
	if (!rc && !place)
		rc = mb_error_set(&err, EBUSY,
			"this machine has %u connections already; end one of them",
			MB_CONTROL_MAX_CONNECTIONS);
	c = rc ? NULL : calloc(1, sizeof(*c));
	if (!rc && !c)
		rc = mb_error_set(&err, ENOMEM, "the machine's process is out of memory");
	if (!rc) {
		c->control = control;
		c->watch = (struct mb_watch){
			.fd = fd, .events = EPOLLIN, .ready = on_connection, .ctx = c};
		rc = mb_loop_add(control->loop, &c->watch);
		if (rc)
			mb_error_set(&err, -rc, "event loop: %s", strerror(-rc));
	}
	if (rc) {
		free(c);
		turn_away(fd, &err);
		return;
	}
	c->id = control->next_id++;
	*place = c;
}

static void set_listening(struct mb_control *control, bool on)
{
	control->listen.events = on ? EPOLLIN : 0;
	mb_loop_modify(control->loop, &control->listen);
}

static void on_listen(struct mb_watch *watch, uint32_t events)
{
	struct mb_control *control = watch->ctx;
	struct itimerspec wait = {.it_value.tv_sec = ACCEPT_WAIT_S};
	int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd >= 0) {
		welcome(control, fd);
	} else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
		/* Too many open files, no memory: the client waits, and the loop must not spin. */
		set_listening(control, false);
		timerfd_settime(control->timer.fd, 0, &wait, NULL);
	}
}

static void on_timer(struct mb_watch *watch, uint32_t events)
{
	struct mb_control *control = watch->ctx;
	uint64_t n;
	ssize_t got = read(watch->fd, &n, sizeof(n));

	(void)got;
	set_listening(control, true);
}

/* ---- the socket ---- */

static int open_dir(struct mb_control *control, struct mb_error *err)
{
	char path[MB_CONTROL_MAX_DIRS][PATH_MAX];
	unsigned n = mb_control_dirs(path);
	int rc = -ENOENT;

	/* The next one is for a place that is not there, not for one that somebody tampered with.
	 */
	for (unsigned i = 0; i < n && rc && rc != -EPERM; i++)
		rc = mb_control_open_dir(path[i], true, &control->dir_fd, err);
	return rc;
}

/* A process had our name and our PID and did not end well. */
static bool is_stale(int dir_fd, const char *file, const struct sockaddr_un *addr)
{
	struct stat st;
	int fd, rc;

	/* To connect to a file of another kind is refused as well. */
	if (fstatat(dir_fd, file, &st, AT_SYMLINK_NOFOLLOW) || !S_ISSOCK(st.st_mode))
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return false;
	rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? errno : 0;
	close(fd);
	return rc == ECONNREFUSED;
}

static int bind_socket(struct mb_control *control, const char *name, struct mb_error *err)
{
	int fd = control->listen.fd, rc;
	struct sockaddr_un addr;
	char file[NAME_MAX + 1];

	if (!*name || strchr(name, '/') ||
		snprintf(file, sizeof(file), "%s.%d", name, (int)getpid()) >= (int)sizeof(file) ||
		mb_control_address(control->dir_fd, file, &addr))
		return mb_error_set(err, EINVAL,
			"the machine's name makes no file name, or one that is too long");
	/* A socket's mode is the file's, less the umask (net/unix/af_unix.c, unix_bind_bsd). */
	fchmod(fd, 0600);
	rc = bind(fd, (const struct sockaddr *)&addr, sizeof(addr));
	if (rc && errno == EADDRINUSE && is_stale(control->dir_fd, file, &addr)) {
		unlinkat(control->dir_fd, file, 0);
		rc = bind(fd, (const struct sockaddr *)&addr, sizeof(addr));
	}
	if (rc)
		return mb_error_set(err, errno, "socket %s: %s", file, strerror(errno));
	memcpy(control->file, file, sizeof(file));
	if (fchmodat(control->dir_fd, file, 0600, 0) || listen(fd, BACKLOG))
		return mb_error_set(err, errno, "socket %s: %s", file, strerror(errno));
	return 0;
}

static int watch_socket(struct mb_control *control, struct mb_error *err)
{
	int rc = mb_loop_add(control->loop, &control->listen);

	if (!rc) {
		control->listening = true;
		rc = mb_loop_add(control->loop, &control->timer);
	}
	if (rc)
		return mb_error_set(err, -rc, "event loop: %s", strerror(-rc));
	control->timed = true;
	return 0;
}

int mb_control_create(
	const struct mb_control_config *config, struct mb_control **out, struct mb_error *err)
{
	struct mb_control *control = calloc(1, sizeof(*control));
	int rc;

	if (!control)
		return mb_error_set(err, ENOMEM, "out of memory");
	control->loop = config->loop;
	control->requests = config->requests;
	control->closed = config->closed;
	control->ctx = config->ctx;
	control->dir_fd = -1;
	control->listen = (struct mb_watch){
		.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
		.events = EPOLLIN,
		.ready = on_listen,
		.ctx = control,
	};
	control->timer = (struct mb_watch){
		.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC),
		.events = EPOLLIN,
		.ready = on_timer,
		.ctx = control,
	};
	if (control->listen.fd < 0 || control->timer.fd < 0)
		rc = mb_error_set(err, errno, "socket: %s", strerror(errno));
	else
		rc = open_dir(control, err);
	if (!rc)
		rc = bind_socket(control, config->name, err);
	if (!rc)
		rc = watch_socket(control, err);
	if (rc) {
		mb_control_destroy(control);
		return rc;
	}
	*out = control;
	return 0;
}

void mb_control_destroy(struct mb_control *control)
{
	if (!control)
		return;
	/* The file first: nobody comes any more. */
	if (*control->file)
		unlinkat(control->dir_fd, control->file, 0);
	if (control->listening)
		mb_loop_remove(control->loop, &control->listen);
	if (control->timed)
		mb_loop_remove(control->loop, &control->timer);
	for (unsigned i = 0; i < MB_CONTROL_MAX_CONNECTIONS; i++)
		if (control->connection[i])
			close_connection(control->connection[i]);
	if (control->listen.fd >= 0)
		close(control->listen.fd);
	if (control->timer.fd >= 0)
		close(control->timer.fd);
	if (control->dir_fd >= 0)
		close(control->dir_fd);
	free(control);
}
