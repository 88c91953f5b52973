// SPDX-License-Identifier: Apache-2.0
#include "client.h"
#include "machines.h"
#include "run.h"
#include "units.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * What commands make of machines that answer well, badly or not at all: a thread plays the machine.
 * As root, each case is another user (see test_control.c).
 */
#define NOBODY	  65534
#define NO_PID	  4194305 /* above the greatest that Linux gives (PID_MAX_LIMIT) */
#define BIG_BYTES (5u << 20)

static char runtime[64], dir[128];
static struct mb_error err;

static void become(uid_t uid)
{
	if (!getuid()) {
		ck_assert_int_eq(seteuid(0), 0);
		ck_assert_int_eq(seteuid(uid), 0);
		ck_assert_int_eq(prctl(PR_SET_DUMPABLE, 1), 0);
	}
}

static void setup(void)
{
	become(NOBODY);
	snprintf(runtime, sizeof(runtime), "/tmp/mb-client-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(runtime));
	setenv("XDG_RUNTIME_DIR", runtime, 1);
	snprintf(dir, sizeof(dir), "%s/mirrorball", runtime);
	ck_assert_int_eq(mkdir(dir, 0700), 0);
}

static void teardown(void)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf '%s'", runtime);
	ck_assert_int_eq(system(command), 0);
	become(0); /* a leak checker looks at us */
}

/* A socket NAME.PID in the directory; not listening: as a killed machine leaves it. */
static int make_socket_in(const char *where, const char *name, int pid, bool listening)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	ck_assert_int_lt(
		snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s.%d", where, name, pid),
		(int)sizeof(addr.sun_path));
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	if (listening)
		ck_assert_int_eq(listen(fd, 64), 0);
	return fd;
}

static int make_socket(const char *name, int pid, bool listening)
{
	return make_socket_in(dir, name, pid, listening);
}

static bool is_there(const char *file)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	return !access(path, F_OK);
}

/* ---- a machine ---- */

struct machine {
	int fd; /* listens */
	pthread_t thread;
	const char *const *answers; /* one a request; NULL: ends */
};

/* Whole lines are requests, each the one that is expected. */
static void *machine_main(void *arg)
{
	static const char request[] = "{\"request\":\"stat\"}\n";
	struct machine *m = arg;
	int fd = accept(m->fd, NULL, NULL);
	char got[sizeof(request)] = "";

	for (unsigned i = 0; recv(fd, got, sizeof(request) - 1, MSG_WAITALL) > 0; i++) {
		if (strcmp(got, request) || !m->answers[i])
			break;
		/* In two pieces. */
		if (send(fd, m->answers[i], 1, MSG_NOSIGNAL) < 0)
			break;
		usleep(1000);
		if (send(fd, m->answers[i] + 1, strlen(m->answers[i]) - 1, MSG_NOSIGNAL) < 0)
			break;
	}
	close(fd);
	return NULL;
}

static struct cli_client *start(struct machine *m, const char *const *answers)
{
	struct cli_client *client;
	int rc;

	m->answers = answers;
	m->fd = make_socket("web1", (int)getpid(), true);
	ck_assert_int_eq(pthread_create(&m->thread, NULL, machine_main, m), 0);
	rc = cli_client_open("web1", &client, &err);
	ck_assert_msg(!rc, "%s", err.text);
	return client;
}

static void stop(struct machine *m, struct cli_client *client)
{
	char path[256];

	cli_client_close(client);
	pthread_join(m->thread, NULL);
	close(m->fd);
	snprintf(path, sizeof(path), "%s/web1.%d", dir, (int)getpid());
	ck_assert_int_eq(unlink(path), 0);
}

START_TEST(test_answers)
{
	char *big = malloc(BIG_BYTES + 64), *p = stpcpy(big, "{\"ok\":true,\"x\":\"");
	const char *answers[] = {"{\"ok\":true,\"n\":7}\n", big,
		"{\"ok\":false,\"error\":\"not now\"}\n", "{\"ok\":true}\n", NULL};
	struct cli_client *client;
	struct machine m;
	json_t *answer;

	memset(p, 'x', BIG_BYTES);
	strcpy(p + BIG_BYTES, "\"}\n");
	client = start(&m, answers);
	ck_assert_str_eq(cli_client_name(client), "web1");
	ck_assert_int_eq(cli_client_pid(client), getpid());
	ck_assert_int_eq(cli_client_ask(client, "stat", &answer, &err), 0);
	ck_assert_int_eq(json_integer_value(json_object_get(answer, "n")), 7);
	json_decref(answer);
	ck_assert_int_eq(cli_client_ask(client, "stat", &answer, &err), 0);
	ck_assert_uint_eq(json_string_length(json_object_get(answer, "x")), BIG_BYTES);
	json_decref(answer);
	/* A refusal is no reason to end. */
	ck_assert_int_eq(cli_client_ask(client, "stat", &answer, &err), -EPROTO);
	ck_assert_ptr_nonnull(strstr(err.text, "web1 (PID "));
	ck_assert_ptr_nonnull(strstr(err.text, "): not now"));
	ck_assert_int_eq(cli_client_ask(client, "stat", &answer, &err), 0);
	json_decref(answer);
	stop(&m, client);
	free(big);
}
END_TEST

START_TEST(test_nonsense)
{
	static const char *const lines[] = {" \n", "[]\n", "{}\n", "hello\n", "{\"ok\":1}\n",
		"{\"ok\":false}\n", "{\"ok\":false,\"error\":3}\n", "{\"ok\":true}}\n",
		"{\"ok\":true}\n{\"ok\":true}\n"};

	for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		const char *answers[] = {lines[i], NULL};
		struct machine m;
		struct cli_client *client = start(&m, answers);
		json_t *answer;

		ck_assert_int_eq(cli_client_ask(client, "stat", &answer, &err), -EPROTO);
		ck_assert_msg(strstr(err.text, "makes no sense") != NULL, "%s", err.text);
		/* Who knows what would come next. */
		ck_assert_int_eq(cli_client_ask(client, "stat", &answer, &err), -EPIPE);
		stop(&m, client);
	}
}
END_TEST

START_TEST(test_ends)
{
	static const char *const half[] = {"{\"ok\":true", NULL}, *const nothing[] = {NULL};
	struct cli_client *client;
	struct machine m;
	json_t *answer;
	int fd;

	client = start(&m, nothing);
	ck_assert_int_eq(cli_client_ask(client, "stat", &answer, &err), -EPIPE);
	ck_assert_ptr_nonnull(strstr(err.text, "the machine has ended"));
	stop(&m, client);

	/* In the middle of an answer: the second request is what it ends at. */
	client = start(&m, half);
	ck_assert_int_eq(cli_client_send(client, "stat", &err), 0);
	ck_assert_int_eq(cli_client_send(client, "stat", &err), 0);
	ck_assert_int_eq(cli_client_receive(client, &answer, &err), -EPIPE);
	stop(&m, client);

	/* Its process is still there, its socket is not. */
	fd = make_socket("web2", (int)getpid(), false);
	ck_assert_int_eq(cli_client_open("web2", &client, &err), -ENOENT);
	ck_assert_ptr_nonnull(strstr(err.text, "has ended"));
	close(fd);
}
END_TEST

START_TEST(test_which)
{
	struct cli_client *client;
	int fd[5];

	ck_assert_int_eq(cli_client_open("web1", &client, &err), -ENOENT);
	fd[0] = make_socket("web1", NO_PID, true);
	fd[1] = make_socket("web1", NO_PID + 1, true);
	fd[2] = make_socket("a.b", NO_PID + 2, true);
	fd[3] = make_socket("4194307", NO_PID + 5, true); /* called like a.b's PID */
	fd[4] = make_socket("4194390", NO_PID + 6, true);

	ck_assert_int_eq(cli_client_open("web1", &client, &err), -ENOTUNIQ);
	ck_assert_ptr_nonnull(strstr(err.text, "give a PID: 4194305, 4194306"));
	ck_assert_int_eq(cli_client_open("4194306", &client, &err), 0);
	ck_assert_str_eq(cli_client_name(client), "web1");
	cli_client_close(client);
	ck_assert_int_eq(cli_client_open("a.b", &client, &err), 0);
	ck_assert_int_eq(cli_client_pid(client), NO_PID + 2);
	cli_client_close(client);
	ck_assert_int_eq(cli_client_open("4194307", &client, &err), 0);
	ck_assert_str_eq(cli_client_name(client), "a.b");
	cli_client_close(client);
	ck_assert_int_eq(cli_client_open("4194390", &client, &err), 0);
	cli_client_close(client);

	ck_assert_int_eq(cli_client_open("web2", &client, &err), -ENOENT);
	ck_assert_ptr_nonnull(strstr(err.text, "did you mean 'web1'?"));
	ck_assert_int_eq(cli_client_open("04194306", &client, &err), -ENOENT);
	ck_assert_int_eq(cli_client_open("", &client, &err), -ENOENT);
	cli_client_close(NULL);
	for (unsigned i = 0; i < 5; i++)
		close(fd[i]);
}
END_TEST

START_TEST(test_list)
{
	struct cli_machines list;
	char tmp[64], path[256];
	int b, a, other, stale, alive, rc;

	b = make_socket("b", NO_PID, true);
	a = make_socket("a", NO_PID + 1, true);
	stale = make_socket("gone", NO_PID, false);
	close(stale);
	alive = make_socket("just.made", (int)getpid(), false); /* between bind and listen */
	snprintf(path, sizeof(path), "%s/file.%d", dir, NO_PID);
	close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	snprintf(path, sizeof(path), "%s/link.%d", dir, NO_PID);
	ck_assert_int_eq(symlink("gone.4194305", path), 0);
	/* A machine that was started without $XDG_RUNTIME_DIR. */
	snprintf(tmp, sizeof(tmp), "/tmp/mirrorball-%u", (unsigned)geteuid());
	ck_assert(!mkdir(tmp, 0700) || errno == EEXIST);
	other = make_socket_in(tmp, "a", NO_PID, true);

	ck_assert_int_eq(cli_machines_list(&list, &err), 0);
	ck_assert_uint_eq(list.n_dirs, 2);
	ck_assert_uint_eq(list.n, 4);
	for (unsigned i = 0; i < 4; i++) {
		static const char *const names[] = {"a", "a", "b", "just.made"};

		ck_assert_str_eq(list.machine[i].name, names[i]);
	}
	ck_assert_int_eq(list.machine[0].pid, NO_PID);
	ck_assert_int_eq(list.machine[1].pid, NO_PID + 1);
	cli_machines_finish(&list);
	ck_assert(!is_there("gone.4194305"));
	ck_assert(is_there("file.4194305"));

	close(other);
	snprintf(path, sizeof(path), "%s/a.%d", tmp, NO_PID);
	unlink(path);
	rmdir(tmp); /* or somebody else uses it */
	close(a);
	close(b);
	close(alive);

	/* One that cannot be trusted is an error when there is no other. */
	ck_assert_int_eq(chmod(dir, 0770), 0);
	rc = cli_machines_list(&list, &err);
	if (rc)
		ck_assert_int_eq(rc, -EPERM);
	else
		cli_machines_finish(&list); /* there is another */
}
END_TEST

START_TEST(test_units)
{
	static const struct {
		uint64_t n;
		const char *bytes, *ms;
	} numbers[] = {
		{0, "0", "0.0s"},
		{999, "999", "0.9s"},
		{1023, "1023", "1.0s"},
		{1024, "1K", "1.0s"},
		{1536, "1.5K", "1.5s"},
		{59999, "58.6K", "59.9s"},
		{60000, "58.6K", "1m00s"},
		{3599999, "3.4M", "59m59s"},
		{3600000, "3.4M", "1h00m"},
		{86400000, "82.4M", "1d00h"},
		{512u << 20, "512M", "6d05h"},
		{(1024u << 20) - 1, "1G", "12d10h"},
		{UINT64_MAX, "16E", "213503982334d14h"},
	};
	char text[64];

	for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		cli_format_bytes(numbers[i].n, text, sizeof(text));
		ck_assert_str_eq(text, numbers[i].bytes);
		cli_format_ms(numbers[i].n, text, sizeof(text));
		ck_assert_str_eq(text, numbers[i].ms);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("client");
	TCase *tc = tcase_create("client");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_answers);
	tcase_add_test(tc, test_nonsense);
	tcase_add_test(tc, test_ends);
	tcase_add_test(tc, test_which);
	tcase_add_test(tc, test_list);
	tcase_add_test(tc, test_units);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
