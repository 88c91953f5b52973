// SPDX-License-Identifier: Apache-2.0
#include "client.h"
#include "machines.h"
#include "parse.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TIMEOUT_S	 10
#define FIRST_BYTES	 (16u << 10)
#define MAX_ANSWER_BYTES (1u << 30) /* for a peer that is no machine */

struct cli_client {
	int fd; /* -1: given up */
	char name[NAME_MAX + 1];
	pid_t pid;
	uint64_t last_ms; /* when something was sent or received */
	bool patient;	  /* waits as long as it takes */
};

static uint64_t now_ms(void)
{
	return mb_now_ns() / 1000000;
}

/* ---- which machine ---- */

static int several(const struct cli_machines *list, const char *who, struct mb_error *err)
{
	char pids[128] = "";
	size_t n = 0;

	for (unsigned i = 0; i < list->n; i++)
		if (!strcmp(list->machine[i].name, who) && n < sizeof(pids))
			n += (size_t)snprintf(pids + n, sizeof(pids) - n, "%s%d", n ? ", " : "",
				(int)list->machine[i].pid);
	return mb_error_set(err, ENOTUNIQ, "several machines are called '%s'; give a PID: %s%s",
		who, pids, n < sizeof(pids) ? "" : " ...");
}

static int none(const struct cli_machines *list, const char *who, struct mb_error *err)
{
	const char **names = calloc(list->n + 1, sizeof(*names)), *near = NULL;

	for (unsigned i = 0; names && i < list->n; i++)
		names[i] = list->machine[i].name;
	if (names)
		near = cli_nearest(who, names);
	if (near)
		mb_error_set(
			err, ENOENT, "no machine '%s' is running; did you mean '%s'?", who, near);
	else
		mb_error_set(err, ENOENT,
			"no machine '%s' is running; 'mirrorball ps' shows those of this user",
			who);
	free(names);
	return -ENOENT;
}

/* A PID goes before a name of digits: it is what is left to who has two machines of one name. */
static int find(const struct cli_machines *list, const char *who, const struct cli_machine **found,
	struct mb_error *err)
{
	unsigned n_found = 0;

	for (unsigned i = 0; i < list->n; i++) {
		char pid[16];

		snprintf(pid, sizeof(pid), "%d", (int)list->machine[i].pid);
		if (!strcmp(pid, who)) {
			*found = &list->machine[i];
			return 0;
		}
	}
	for (unsigned i = 0; i < list->n; i++) {
		if (!strcmp(list->machine[i].name, who)) {
			*found = &list->machine[i];
			n_found++;
		}
	}
	if (n_found > 1)
		return several(list, who, err);
	return n_found ? 0 : none(list, who, err);
}

int cli_client_open(const char *who, struct cli_client **out, struct mb_error *err)
{
	const struct cli_machine *machine = NULL;
	struct cli_machines list;
	int rc = cli_machines_list(&list, err);

	if (rc)
		return rc;
	rc = find(&list, who, &machine, err);
	if (!rc)
		rc = cli_client_connect(machine, out, err);
	cli_machines_finish(&list);
	return rc;
}

/* ---- connections ---- */

static int timed_out(const struct cli_client *client, struct mb_error *err)
{
	return mb_error_set(err, ETIMEDOUT,
		"%s (PID %d): no answer for %d s; it may be stopped, or wait for a disk or network",
		client->name, (int)client->pid, TIMEOUT_S);
}

static int ended(const struct cli_client *client, int errnum, struct mb_error *err)
{
	return mb_error_set(
		err, errnum, "%s (PID %d): the machine has ended", client->name, (int)client->pid);
}

static int connect_to(
	struct cli_client *client, const struct cli_machine *machine, struct mb_error *err)
{
	struct timeval limit = {.tv_sec = TIMEOUT_S};
	struct sockaddr_un addr;
	int rc;

	client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (client->fd < 0)
		return mb_error_set(err, errno, "socket: %s", strerror(errno));
	rc = -mb_control_address(machine->dir_fd, machine->file, &addr);
	if (!rc) {
		/* To connect waits as long as too many others do. */
		setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
		do
			rc = connect(client->fd, (struct sockaddr *)&addr, sizeof(addr)) ? errno
											 : 0;
		while (rc == EINTR);
	}
	if (!rc)
		return 0;
	if (rc == EAGAIN)
		return timed_out(client, err);
	if (rc == ECONNREFUSED || rc == ENOENT)
		return ended(client, ENOENT, err);
	return mb_error_set(err, rc, "%s (PID %d): control socket: %s", client->name,
		(int)client->pid, strerror(rc));
}

int cli_client_connect(
	const struct cli_machine *machine, struct cli_client **out, struct mb_error *err)
{
	struct cli_client *client = calloc(1, sizeof(*client));
	int rc;

	if (!client)
		return mb_error_set(err, ENOMEM, "%s: out of memory", machine->name);
	memcpy(client->name, machine->name, sizeof(client->name));
	client->pid = machine->pid;
	rc = connect_to(client, machine, err);
	if (rc) {
		cli_client_close(client);
		return rc;
	}
	*out = client;
	return 0;
}

static void give_up(struct cli_client *client)
{
	if (client->fd >= 0)
		close(client->fd);
	client->fd = -1;
}

void cli_client_close(struct cli_client *client)
{
	if (!client)
		return;
	give_up(client);
	free(client);
}

/* Steals object. */
static int send_object(struct cli_client *client, json_t *object, struct mb_error *err)
{
	char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
	size_t n, n_sent = 0;
	int rc = 0;

	json_decref(object);
	if (!text)
		return mb_error_set(err, ENOMEM, "%s: out of memory", client->name);
	n = strlen(text);
	text[n++] = '\n'; /* in the place of the NUL */
	client->last_ms = now_ms();
	while (!rc && n_sent < n) {
		ssize_t got = send(client->fd, text + n_sent, n - n_sent, MSG_NOSIGNAL);

		if (got >= 0)
			n_sent += (size_t)got;
		else if (errno == EAGAIN)
			rc = timed_out(client, err);
		else if (errno == EPIPE || errno == ECONNRESET)
			break; /* it may have said why */
		else if (errno == EBADF)
			rc = ended(client, EPIPE, err);
		else if (errno != EINTR)
			rc = mb_error_set(err, errno, "%s (PID %d): control socket: %s",
				client->name, (int)client->pid, strerror(errno));
	}
	free(text);
	return rc;
}

int cli_client_send(struct cli_client *client, const char *request, struct mb_error *err)
{
	return send_object(client, json_pack("{s:s}", "request", request), err);
}

/* Waits for something to read, and reads: bytes, 0 at the end, or -errno. */
static ssize_t receive_some(struct cli_client *client, char *text, size_t max, struct mb_error *err)
{
	for (;;) {
		struct pollfd pfd = {.fd = client->fd, .events = POLLIN};
		uint64_t limit_ms = client->last_ms + TIMEOUT_S * 1000, now = now_ms();
		ssize_t n;

		/* Looks once in any case: others may have taken the time. */
		if (!poll(&pfd, 1, client->patient ? -1 : now < limit_ms ? (int)(limit_ms - now) : 0))
			return timed_out(client, err);
		n = recv(client->fd, text, max, MSG_DONTWAIT);
		if (n >= 0) {
			client->last_ms = now_ms();
			return n;
		}
		if (errno == ECONNRESET || errno == EBADF)
			return 0;
		if (errno != EAGAIN && errno != EINTR)
			return mb_error_set(err, errno, "%s (PID %d): control socket: %s",
				client->name, (int)client->pid, strerror(errno));
	}
}

/* One line into *line, to be freed. Returns its length or -errno. */
static ssize_t receive_line(struct cli_client *client, char **line, struct mb_error *err)
{
	size_t n = 0, max = 0;
	ssize_t got;

	*line = NULL;
	for (;;) {
		if (n == max) {
			size_t more = max ? 2 * max : FIRST_BYTES;
			char *text = more > MAX_ANSWER_BYTES ? NULL : realloc(*line, more);

			if (!text)
				return mb_error_set(err, more > MAX_ANSWER_BYTES ? EPROTO : ENOMEM,
					"%s (PID %d): its answer is too long", client->name,
					(int)client->pid);
			*line = text;
			max = more;
		}
		got = receive_some(client, *line + n, max - n, err);
		if (got < 0)
			return got;
		if (!got)
			return ended(client, EPIPE, err);
		n += (size_t)got;
		/* One request, one answer: nothing comes after it. */
		if ((*line)[n - 1] == '\n')
			return (ssize_t)n;
	}
}

int cli_client_receive(struct cli_client *client, json_t **answer, struct mb_error *err)
{
	json_t *object = NULL, *ok = NULL;
	const char *said;
	char *line;
	ssize_t n = receive_line(client, &line, err);
	int rc = n < 0 ? (int)n : 0;

	if (!rc) {
		object = json_loadb(line, (size_t)n, 0, NULL);
		ok = json_object_get(object, "ok");
		said = json_string_value(json_object_get(object, "error"));
		if (!json_is_boolean(ok) || (json_is_false(ok) && !said))
			rc = mb_error_set(err, EPROTO,
				"%s (PID %d): its answer makes no sense; is it another Mirrorball?",
				client->name, (int)client->pid);
	}
	free(line);
	/* What comes next would be taken for the answer to the next request. */
	if (rc)
		give_up(client);
	else if (json_is_false(ok))
		rc = mb_error_set(
			err, EPROTO, "%s (PID %d): %s", client->name, (int)client->pid, said);
	if (rc)
		json_decref(object);
	else
		*answer = object;
	return rc;
}

int cli_client_ask(
	struct cli_client *client, const char *request, json_t **answer, struct mb_error *err)
{
	int rc = cli_client_send(client, request, err);

	return rc ? rc : cli_client_receive(client, answer, err);
}

int cli_client_ask_path(struct cli_client *client, const char *request, const char *path,
	json_t **answer, struct mb_error *err)
{
	json_t *object = json_pack("{s:s,s:s}", "request", request, "path", path);
	int rc;

	if (!object)
		return mb_error_set(err, EINVAL, "'%s' is no UTF-8", path);
	client->patient = true;
	rc = send_object(client, object, err);
	if (!rc)
		rc = cli_client_receive(client, answer, err);
	client->patient = false;
	return rc;
}

const char *cli_client_name(const struct cli_client *client)
{
	return client->name;
}

pid_t cli_client_pid(const struct cli_client *client)
{
	return client->pid;
}
