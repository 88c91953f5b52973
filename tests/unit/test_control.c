// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/control.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * Real sockets, a loop on a thread of its own, and this thread as the client. Root's machines have
 * one directory, which may be in use: as root, each case is another user.
 */
#define NOBODY	  65534
#define BIG_BYTES (8u << 20)
#define WAIT_MS	  10000

static struct mb_loop *loop;
static struct mb_control *control;
static struct mb_error err;
static char runtime[PATH_MAX / 2], dir[PATH_MAX];
static unsigned n_big, n_closed, n_ids; /* atomic */
static uint64_t last_closed;		/* written before n_closed */

static int answer_id(void *ctx, uint64_t connection, json_t **answer, struct mb_error *e)
{
	*answer = json_pack("{s:I,s:i}", "id", (json_int_t)connection, "n",
		(int)__atomic_add_fetch(&n_ids, 1, __ATOMIC_SEQ_CST));
	return 0;
}

static int answer_big(void *ctx, uint64_t connection, json_t **answer, struct mb_error *e)
{
	char *text = malloc(BIG_BYTES);

	memset(text, 'x', BIG_BYTES);
	*answer = json_pack("{s:s#}", "text", text, (int)BIG_BYTES);
	free(text);
	__atomic_add_fetch(&n_big, 1, __ATOMIC_SEQ_CST);
	return 0;
}

static int answer_fail(void *ctx, uint64_t connection, json_t **answer, struct mb_error *e)
{
	return mb_error_set(e, EIO, "it is \xff broken");
}

static int answer_path(void *ctx, const char *path, json_t **answer, struct mb_error *e)
{
	*answer = json_pack("{s:s}", "asked", path);
	return 0;
}

static const struct mb_control_request requests[] = {
	{.name = "id", .answer = answer_id},
	{.name = "big", .answer = answer_big},
	{.name = "fail", .answer = answer_fail},
	{.name = "path", .answer_path = answer_path},
	{0},
};

static void on_closed(void *ctx, uint64_t connection)
{
	__atomic_store_n(&last_closed, connection, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&n_closed, 1, __ATOMIC_SEQ_CST);
}

static void become(uid_t uid)
{
	if (!getuid()) {
		ck_assert_int_eq(seteuid(0), 0);
		ck_assert_int_eq(seteuid(uid), 0);
		/* Or /proc/self/fd would be root's. */
		ck_assert_int_eq(prctl(PR_SET_DUMPABLE, 1), 0);
	}
}

static void setup(void)
{
	become(NOBODY);
	snprintf(runtime, sizeof(runtime), "/tmp/mb-control-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(runtime));
	snprintf(dir, sizeof(dir), "%s/mirrorball", runtime);
	setenv("XDG_RUNTIME_DIR", runtime, 1);
	ck_assert_int_eq(mb_loop_create(&loop, NULL), 0);
	ck_assert_int_eq(mb_loop_start_thread(loop, "test", NULL, NULL), 0);
}

struct making {
	const char *name;
	struct mb_control **out;
	int rc;
};

static void make_control(void *arg)
{
	struct making *m = arg;
	struct mb_control_config config = {
		.loop = loop, .name = m->name, .requests = requests, .closed = on_closed};

	m->rc = mb_control_create(&config, m->out, &err);
}

static int create(const char *name, struct mb_control **out)
{
	struct making m = {.name = name, .out = out};

	err.text[0] = '\0';
	mb_loop_call(loop, make_control, &m);
	return m.rc;
}

static void destroy_control(void *arg)
{
	mb_control_destroy(arg);
}

static void teardown(void)
{
	char command[PATH_MAX + 16];

	mb_loop_call(loop, destroy_control, control);
	mb_loop_destroy(loop);
	snprintf(command, sizeof(command), "rm -rf '%s'", runtime);
	ck_assert_int_eq(system(command), 0);
	become(0); /* a leak checker looks at us, and may not look at a user who was root */
}

static void start(const char *name)
{
	int rc = create(name, &control);

	ck_assert_msg(!rc, "%s", err.text);
}

static void file_of(const char *name, char *file, size_t len)
{
	snprintf(file, len, "%s.%d", name, (int)getpid());
}

static int open_client(const char *name)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), dir_fd;
	struct timeval limit = {.tv_sec = WAIT_MS / 1000};
	struct sockaddr_un addr;
	char file[NAME_MAX];

	file_of(name, file, sizeof(file));
	ck_assert_int_eq(mb_control_open_dir(dir, false, &dir_fd, &err), 0);
	ck_assert_int_eq(mb_control_address(dir_fd, file, &addr), 0);
	ck_assert_msg(!connect(fd, (struct sockaddr *)&addr, sizeof(addr)), "%s", strerror(errno));
	ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
	close(dir_fd);
	return fd;
}

static void send_bytes(int fd, const char *bytes, size_t n)
{
	ck_assert_int_eq(send(fd, bytes, n, MSG_NOSIGNAL), (ssize_t)n);
}

static void send_text(int fd, const char *text)
{
	send_bytes(fd, text, strlen(text));
}

/* The next answer; NULL at the connection's end. Byte by byte, for nothing of the next one to be
 * lost. */
static json_t *receive(int fd)
{
	size_t n = 0, max = 1024;
	char *line = malloc(max);
	json_t *answer;

	for (;;) {
		/* What a big answer is made of is taken in one go. */
		ssize_t got = recv(fd, line + n, n < 512 ? 1 : max - n, n < 512 ? 0 : MSG_PEEK);
		char *end;

		if (got == 0 || (got < 0 && (errno == ECONNRESET || errno == EPIPE)))
			break;
		ck_assert_msg(got > 0, "no answer: %s", strerror(errno));
		end = memchr(line + n, '\n', (size_t)got);
		if (n >= 512) {
			got = end ? end - (line + n) + 1 : got;
			ck_assert_int_eq(recv(fd, line + n, (size_t)got, 0), got);
		}
		n += (size_t)got;
		if (end) {
			answer = json_loadb(line, n, 0, NULL);
			ck_assert_msg(answer != NULL, "no JSON: %.*s", (int)n, line);
			free(line);
			return answer;
		}
		if (n == max)
			line = realloc(line, max *= 2);
	}
	free(line);
	return NULL;
}

static json_int_t ask_id(int fd, const char *member)
{
	json_int_t value;
	json_t *answer;

	send_text(fd, "{\"request\":\"id\"}\n");
	answer = receive(fd);
	ck_assert_ptr_nonnull(answer);
	ck_assert(json_is_true(json_object_get(answer, "ok")));
	value = json_integer_value(json_object_get(answer, member));
	json_decref(answer);
	return value;
}

static void expect_refusal(int fd, const char *text)
{
	json_t *answer = receive(fd);
	const char *said;

	ck_assert_msg(answer != NULL, "no answer where '%s' was expected", text);
	ck_assert(json_is_false(json_object_get(answer, "ok")));
	said = json_string_value(json_object_get(answer, "error"));
	ck_assert_msg(said && strstr(said, text), "'%s' instead of '%s'", said, text);
	json_decref(answer);
}

static void expect_end(int fd)
{
	ck_assert_ptr_null(receive(fd));
}

/* Another thread gets there soon. */
static void await(const unsigned *value, unsigned want)
{
	for (unsigned ms = 0; ms < WAIT_MS && __atomic_load_n(value, __ATOMIC_SEQ_CST) != want;
		ms++)
		usleep(1000);
	ck_assert_uint_eq(__atomic_load_n(value, __ATOMIC_SEQ_CST), want);
}

START_TEST(test_asks_and_answers)
{
	int a, b;

	start("web.1");
	a = open_client("web.1");
	b = open_client("web.1");
	ck_assert_int_ne(ask_id(a, "id"), ask_id(b, "id"));
	ck_assert_int_eq(ask_id(a, "n"), 3);
	send_text(a, "{\"request\":\"fail\"}\r\n");
	expect_refusal(a, "it is ? broken");
	ck_assert_int_eq(ask_id(a, "n"), 4);
	close(a);
	close(b);
}
END_TEST

START_TEST(test_in_pieces)
{
	static const char text[] = "{\"request\":\"id\"}\n";
	json_t *answer;
	int fd;

	start("web1");
	fd = open_client("web1");
	for (unsigned i = 0; text[i]; i++) {
		send_bytes(fd, &text[i], 1);
		usleep(1000);
	}
	answer = receive(fd);
	ck_assert_ptr_nonnull(answer);
	json_decref(answer);
	close(fd);
}
END_TEST

/* Many requests at once, and the end of them: all are answered, in order. */
START_TEST(test_pipelined)
{
	static const char one[] = "{\"request\":\"id\"}\n";
	const unsigned n = 3000;
	char *all = malloc(n * strlen(one) + 1), *p = all;
	int fd;

	start("web1");
	fd = open_client("web1");
	for (unsigned i = 0; i < n; i++)
		p = stpcpy(p, one);
	send_text(fd, all);
	free(all);
	ck_assert_int_eq(shutdown(fd, SHUT_WR), 0);
	for (unsigned i = 1; i <= n; i++) {
		json_t *answer = receive(fd);

		ck_assert_ptr_nonnull(answer);
		ck_assert_int_eq(json_integer_value(json_object_get(answer, "n")), i);
		json_decref(answer);
	}
	expect_end(fd);
	close(fd);
}
END_TEST

START_TEST(test_garbage)
{
	static const struct {
		const char *line, *error;
	} lines[] = {
		{"", "a request is a JSON object on one line"},
		{"hello", "a request is a JSON object on one line"},
		{"\x01\xff\xfe{", "a request is a JSON object on one line"},
		{"{\"request\":\"id\"", "a request is a JSON object on one line"},
		{"{\"request\":\"id\"}}", "a request is a JSON object on one line"},
		{"{\"request\":\"id\",\"request\":\"id\"}", "duplicate"},
		{"[]", "a request is a JSON object, as"},
		{"{}", "has a member \"request\""},
		{"{\"request\":7}", "has a member \"request\""},
		{"{\"request\":\"\"}", "knows no request ''"},
		{"{\"request\":\"shoot\"}", "knows no request 'shoot'"},
		{"{\"request\":\"a\\u001b[1m\"}", "knows no request 'a?[1m'"},
		{"{\"request\":\"id\\u0000\"}", "a request is a JSON object on one line"},
		{"{\"request\":\"id\",\"colour\":1}", "no member 'colour'"},
	};
	char *deep = malloc(60001);
	int fd;

	start("web1");
	fd = open_client("web1");
	for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		send_text(fd, lines[i].line);
		send_text(fd, "\n");
		expect_refusal(fd, lines[i].error);
	}
	send_bytes(fd, "{\"request\":\0\"id\"}\n", 18);
	expect_refusal(fd, "a request is a JSON object on one line");
	memset(deep, '[', 60000);
	deep[60000] = '\n';
	send_bytes(fd, deep, 60001);
	expect_refusal(fd, "no more than 16 lists and objects");
	free(deep);
	ck_assert_int_eq(ask_id(fd, "n"), 1);
	close(fd);
}
END_TEST

START_TEST(test_longest_line)
{
	const unsigned max = MB_CONTROL_MAX_LINE_BYTES;
	char *line = malloc(max + 1);
	json_t *answer;
	int fd;

	start("web1");
	memset(line, ' ', max + 1);
	memcpy(line, "{\"request\":\"id\"}", 16);
	line[max - 1] = '\n';
	fd = open_client("web1");
	send_bytes(fd, line, max);
	answer = receive(fd);
	ck_assert_ptr_nonnull(answer);
	json_decref(answer);
	line[max - 1] = ' ';
	line[max] = '\n';
	send_bytes(fd, line, max + 1);
	expect_refusal(fd, "at most 65536 bytes");
	expect_end(fd);
	close(fd);
	free(line);
}
END_TEST

/* Somebody who asks and does not read: others are answered, and he gets no second answer. */
START_TEST(test_slow_reader)
{
	int slow, other;

	start("web1");
	slow = open_client("web1");
	other = open_client("web1");
	for (unsigned i = 0; i < 3; i++)
		send_text(slow, "{\"request\":\"big\"}\n");
	await(&n_big, 1);
	for (int i = 1; i <= 100; i++)
		ck_assert_int_eq(ask_id(other, "n"), i);
	ck_assert_uint_eq(__atomic_load_n(&n_big, __ATOMIC_SEQ_CST), 1);
	for (unsigned i = 1; i <= 3; i++) {
		json_t *answer = receive(slow);

		ck_assert_ptr_nonnull(answer);
		ck_assert_uint_eq(json_string_length(json_object_get(answer, "text")), BIG_BYTES);
		json_decref(answer);
	}
	ck_assert_uint_eq(__atomic_load_n(&n_big, __ATOMIC_SEQ_CST), 3);
	close(slow);
	close(other);
}
END_TEST

START_TEST(test_vanishes_mid_answer)
{
	char some[1000];
	json_int_t id;
	int fd, quiet;

	start("web1");
	quiet = open_client("web1"); /* asks nothing: nobody is told of its end */
	fd = open_client("web1");
	id = ask_id(fd, "id");
	send_text(fd, "{\"request\":\"big\"}\n{\"request\":\"big\"}\n");
	ck_assert_int_eq(recv(fd, some, sizeof(some), MSG_WAITALL), sizeof(some));
	ck_assert_uint_eq(__atomic_load_n(&n_closed, __ATOMIC_SEQ_CST), 0);
	close(quiet);
	close(fd);
	await(&n_closed, 1);
	ck_assert_int_eq((json_int_t)__atomic_load_n(&last_closed, __ATOMIC_SEQ_CST), id);
	ck_assert_uint_eq(__atomic_load_n(&n_big, __ATOMIC_SEQ_CST), 1);

	/* The machine's end is an end, too. */
	fd = open_client("web1");
	ask_id(fd, "id");
	mb_loop_call(loop, destroy_control, control);
	control = NULL;
	ck_assert_uint_eq(__atomic_load_n(&n_closed, __ATOMIC_SEQ_CST), 2);
	expect_end(fd);
	close(fd);
}
END_TEST

START_TEST(test_too_many_connections)
{
	int fd[MB_CONTROL_MAX_CONNECTIONS], more;

	start("web1");
	for (unsigned i = 0; i < MB_CONTROL_MAX_CONNECTIONS; i++) {
		fd[i] = open_client("web1");
		ask_id(fd[i], "id");
	}
	for (unsigned i = 0; i < 3; i++) {
		more = open_client("web1");
		expect_refusal(more, "16 connections already");
		expect_end(more);
		close(more);
	}
	ask_id(fd[15], "id");
	close(fd[3]);
	await(&n_closed, 1);
	fd[3] = open_client("web1");
	ask_id(fd[3], "id");
	for (unsigned i = 0; i < MB_CONTROL_MAX_CONNECTIONS; i++)
		close(fd[i]);
	await(&n_closed, MB_CONTROL_MAX_CONNECTIONS + 1);
}
END_TEST

/* Too many open files: the client waits, the loop does not spin, and it goes on by itself. */
START_TEST(test_no_descriptor_left)
{
	struct timespec before, after;
	struct rlimit old, none;
	int a, b;

	start("web1");
	a = open_client("web1");
	ask_id(a, "id");
	getrlimit(RLIMIT_NOFILE, &old);
	b = open_client("web1"); /* its end here exists, the other needs a descriptor */
	ask_id(b, "id");
	close(b);
	b = socket(AF_UNIX, SOCK_STREAM, 0);
	none = (struct rlimit){.rlim_cur = (rlim_t)b + 1, .rlim_max = old.rlim_max};
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
	{
		struct timeval limit = {.tv_sec = WAIT_MS / 1000};
		char path[PATH_MAX + 64];
		struct sockaddr_un addr = {.sun_family = AF_UNIX};

		snprintf(path, sizeof(path), "%s/web1.%d", dir, (int)getpid());
		ck_assert_uint_lt(strlen(path), sizeof(addr.sun_path));
		memcpy(addr.sun_path, path, strlen(path));
		ck_assert_int_eq(connect(b, (struct sockaddr *)&addr, sizeof(addr)), 0);
		setsockopt(b, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
	usleep(300000);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
	ck_assert_int_lt(
		(after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000,
		150);
	ask_id(a, "id");
	setrlimit(RLIMIT_NOFILE, &old);
	ask_id(b, "id");
	close(a);
	close(b);
}
END_TEST

START_TEST(test_another_user)
{
	char path[PATH_MAX + 64];
	int status;
	pid_t pid;

	if (getuid()) {
		skip("needs root");
		return;
	}
	start("web1");
	snprintf(path, sizeof(path), "%s/web1.%d", dir, (int)getpid());
	/* Even where the file would let him. */
	ck_assert(!chmod(runtime, 0711) && !chmod(dir, 0711) && !chmod(path, 0666));
	fflush(stdout);
	pid = fork();
	if (!pid) {
		struct sockaddr_un addr = {.sun_family = AF_UNIX};
		char said[200] = "";
		int fd;

		memcpy(addr.sun_path, path, strlen(path));
		become(1);
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
			recv(fd, said, sizeof(said) - 1, 0) <= 0)
			_exit(1);
		_exit(strstr(said, "belongs to user 65534, and you are 1") ? 0 : 2);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
}
END_TEST

START_TEST(test_modes)
{
	static const mode_t masks[] = {0, 022, 0777};
	char path[PATH_MAX + 64];
	struct stat st;

	for (unsigned i = 0; i < 3; i++) {
		umask(i == 2 ? 0 : masks[i]);
		ck_assert(!mkdir(dir, 0700) || errno == EEXIST);
		umask(masks[i]);
		start("web1");
		snprintf(path, sizeof(path), "%s/web1.%d", dir, (int)getpid());
		ck_assert_int_eq(stat(path, &st), 0);
		ck_assert_uint_eq(st.st_mode, S_IFSOCK | 0600);
		mb_loop_call(loop, destroy_control, control);
		control = NULL;
		ck_assert_int_eq(access(path, F_OK), -1);
		ck_assert_int_eq(rmdir(dir), 0);
	}
	umask(0);
	start("web1");
	ck_assert_int_eq(stat(dir, &st), 0);
	ck_assert_uint_eq(st.st_mode, S_IFDIR | 0700);
}
END_TEST

static void expect_no_socket(const char *text)
{
	ck_assert_int_lt(create("web1", &control), 0);
	ck_assert_msg(strstr(err.text, text) != NULL, "'%s' instead of '%s'", err.text, text);
}

START_TEST(test_bad_directory)
{
	char other[PATH_MAX + 8];
	int fd;

	snprintf(other, sizeof(other), "%s/other", runtime);
	ck_assert_int_eq(mkdir(other, 0700), 0);
	ck_assert_int_eq(symlink(other, dir), 0);
	expect_no_socket("symbolic link");
	ck_assert_int_eq(unlink(dir), 0);

	close(open(dir, O_CREAT | O_WRONLY, 0600));
	expect_no_socket("no directory");
	ck_assert_int_eq(unlink(dir), 0);

	ck_assert_int_eq(mkdir(dir, 0700), 0);
	ck_assert_int_eq(chmod(dir, 0720), 0);
	expect_no_socket("others may write to it (mode 720); use chmod 700");
	ck_assert_int_eq(chmod(dir, 0702), 0);
	expect_no_socket("others may write to it");
	ck_assert_int_eq(chmod(dir, 0500), 0);
	expect_no_socket("Permission denied");
	ck_assert_int_eq(chmod(dir, 0755), 0);
	start("web1");

	/* Somebody else's. */
	ck_assert_int_eq(mb_control_open_dir("/usr", true, &fd, &err), -EPERM);
	ck_assert_ptr_nonnull(strstr(err.text, "belongs to user 0"));
}
END_TEST

/* $XDG_RUNTIME_DIR is not there, or of the user that somebody was before su(1): /tmp serves. */
START_TEST(test_no_runtime_directory)
{
	static const char *const values[] = {
		NULL, "", "relative", "/nonexistent", "/proc", "/etc/passwd"};
	char path[MB_CONTROL_MAX_DIRS][PATH_MAX], tmp[64];
	struct stat st;

	snprintf(tmp, sizeof(tmp), "/tmp/mirrorball-%u", (unsigned)geteuid());
	for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		unsigned n;

		if (values[i])
			setenv("XDG_RUNTIME_DIR", values[i], 1);
		else
			unsetenv("XDG_RUNTIME_DIR");
		n = mb_control_dirs(path);
		ck_assert_uint_eq(n, values[i] && *values[i] == '/' ? 2 : 1);
		ck_assert_str_eq(path[n - 1], tmp);
		start("web1");
		snprintf(path[0], PATH_MAX, "%s/web1.%d", tmp, (int)getpid());
		ck_assert_int_eq(stat(path[0], &st), 0);
		mb_loop_call(loop, destroy_control, control);
		control = NULL;
	}
	rmdir(tmp); /* or somebody else uses it */
}
END_TEST

/* A directory whose path is longer than an address of a socket may be. */
START_TEST(test_long_path)
{
	char part[101];
	int fd;

	memset(part, 'd', 100);
	part[100] = '\0';
	for (unsigned i = 0; i < 3; i++) {
		strcat(strcat(runtime, "/"), part);
		ck_assert_int_eq(mkdir(runtime, 0700), 0);
	}
	setenv("XDG_RUNTIME_DIR", runtime, 1);
	snprintf(dir, sizeof(dir), "%s/mirrorball", runtime);
	start("a-name-of-the-greatest-length-that-the-command-line-lets-through");
	fd = open_client("a-name-of-the-greatest-length-that-the-command-line-lets-through");
	ask_id(fd, "id");
	close(fd);
	strchr(runtime + 5, '/')[0] = '\0'; /* all of it is to be removed */
}
END_TEST

START_TEST(test_names)
{
	static const struct {
		const char *file, *name;
		int pid;
	} files[] = {
		{"web1.12", "web1", 12},
		{"a.b.c.4194304", "a.b.c", 4194304},
		{"web1", NULL, 0},
		{"web1.", NULL, 0},
		{".12", NULL, 0},
		{"web1.0", NULL, 0},
		{"web1.012", NULL, 0},
		{"web1.-1", NULL, 0},
		{"web1.1x", NULL, 0},
		{"web1. 1", NULL, 0},
		{"web1.4294967297", NULL, 0},
		{"web1.99999999999999999999", NULL, 0},
	};
	char name[NAME_MAX + 1], too_long[200];
	pid_t pid;

	for (unsigned i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		ck_assert_msg(mb_control_parse_file(files[i].file, name, &pid) == !!files[i].name,
			"%s", files[i].file);
		if (!files[i].name)
			continue;
		ck_assert_str_eq(name, files[i].name);
		ck_assert_int_eq(pid, files[i].pid);
	}
	memset(too_long, 'x', sizeof(too_long) - 1);
	too_long[sizeof(too_long) - 1] = '\0';
	ck_assert_int_eq(create("", &control), -EINVAL);
	ck_assert_int_eq(create("../x", &control), -EINVAL);
	ck_assert_int_eq(create(too_long, &control), -EINVAL);
}
END_TEST

START_TEST(test_stale_and_taken)
{
	struct sockaddr_un addr;
	struct mb_control *second = NULL;
	char file[NAME_MAX];
	int fd, dir_fd;

	/* What a process with our PID left behind when it was killed. */
	ck_assert_int_eq(mb_control_open_dir(dir, true, &dir_fd, &err), 0);
	file_of("web1", file, sizeof(file));
	ck_assert_int_eq(mb_control_address(dir_fd, file, &addr), 0);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	start("web1");

	/* Two machines of one process with one name: the first keeps it. */
	ck_assert_int_eq(create("web1", &second), -EADDRINUSE);
	fd = open_client("web1");
	ask_id(fd, "id");
	close(fd);
	ck_assert_int_eq(create("web2", &second), 0);
	mb_loop_call(loop, destroy_control, second);
	ck_assert_int_eq(faccessat(dir_fd, file, F_OK, 0), 0);

	/* A file of somebody's, who may need it. */
	mb_loop_call(loop, destroy_control, control);
	control = NULL;
	close(openat(dir_fd, file, O_CREAT | O_WRONLY, 0600));
	ck_assert_int_lt(create("web1", &control), 0);
	ck_assert_int_eq(faccessat(dir_fd, file, F_OK, 0), 0);
	close(dir_fd);
}
END_TEST

START_TEST(test_descriptors_are_not_inherited)
{
	bool before[64];
	int fd;

	for (int i = 0; i < 64; i++)
		before[i] = fcntl(i, F_GETFD) >= 0;
	start("web1");
	fd = open_client("web1");
	ask_id(fd, "id");
	for (int i = 0; i < 64; i++) {
		int flags = fcntl(i, F_GETFD);

		ck_assert_msg(before[i] || flags < 0 || flags & FD_CLOEXEC, "descriptor %d", i);
	}
	close(fd);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("control");
	TCase *tc = tcase_create("control");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_asks_and_answers);
	tcase_add_test(tc, test_in_pieces);
	tcase_add_test(tc, test_pipelined);
	tcase_add_test(tc, test_garbage);
	tcase_add_test(tc, test_longest_line);
	tcase_add_test(tc, test_slow_reader);
	tcase_add_test(tc, test_vanishes_mid_answer);
	tcase_add_test(tc, test_too_many_connections);
	tcase_add_test(tc, test_no_descriptor_left);
	tcase_add_test(tc, test_another_user);
	tcase_add_test(tc, test_modes);
	tcase_add_test(tc, test_bad_directory);
	tcase_add_test(tc, test_no_runtime_directory);
	tcase_add_test(tc, test_long_path);
	tcase_add_test(tc, test_names);
	tcase_add_test(tc, test_stale_and_taken);
	tcase_add_test(tc, test_descriptors_are_not_inherited);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
