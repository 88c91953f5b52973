// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/terminal.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* A front that takes as much as it has room for. */
struct front {
	pthread_mutex_t lock;
	char text[1 << 18];
	size_t n, room;
	unsigned n_writable;
};

static struct front front;
static struct mb_loop *loop;
static struct mb_terminal *term;
static struct mb_error err;
static int master, slave;
static char keys[64];
static unsigned n_keys, n_resized, columns, rows;
static bool running; /* the loop */

static size_t front_receive(void *dev, const void *buf, size_t n)
{
	size_t taken;

	pthread_mutex_lock(&front.lock);
	taken = n < front.room ? n : front.room;
	memcpy(front.text + front.n, buf, taken);
	front.n += taken;
	front.room -= taken;
	pthread_mutex_unlock(&front.lock);
	return taken;
}

static void front_writable(void *dev)
{
	__atomic_add_fetch(&front.n_writable, 1, __ATOMIC_SEQ_CST);
}

static const struct mb_chardev_front front_ops = {
	.receive = front_receive,
	.writable = front_writable,
};

static void on_command(void *ctx, char key)
{
	ck_assert_uint_lt(n_keys, sizeof(keys) - 1);
	keys[n_keys] = key;
	__atomic_add_fetch(&n_keys, 1, __ATOMIC_SEQ_CST);
}

static void on_resized(void *ctx, unsigned c, unsigned r)
{
	n_resized++;
	columns = c;
	rows = r;
}

static const struct mb_terminal_ops ops = {.command = on_command, .resized = on_resized};

static void pause_ms(long ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};

	nanosleep(&ts, NULL);
}

static void setup(void)
{
	signal(SIGPIPE, SIG_IGN);
	memset(&front, 0, sizeof(front));
	pthread_mutex_init(&front.lock, NULL);
	front.room = sizeof(front.text);
	memset(keys, 0, sizeof(keys));
	n_keys = n_resized = 0;
	running = false;
	master = posix_openpt(O_RDWR | O_NOCTTY);
	ck_assert_int_ge(master, 0);
	ck_assert_int_eq(grantpt(master), 0);
	ck_assert_int_eq(unlockpt(master), 0);
	slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	ck_assert_int_ge(slave, 0);
	ck_assert_int_eq(mb_loop_create(&loop, &err), 0);
	term = NULL;
}

static void teardown(void)
{
	mb_terminal_destroy(term);
	mb_loop_destroy(loop);
	close(master);
	close(slave);
}

static void create(int in_fd, int out_fd)
{
	ck_assert_int_eq(mb_terminal_create(loop, in_fd, out_fd, &ops, NULL, &term, &err), 0);
	mb_chardev_attach(mb_terminal_chardev(term), &front_ops, NULL);
	if (!running)
		ck_assert_int_eq(mb_loop_start_thread(loop, "loop", NULL, &err), 0);
	running = true;
}

static void destroy(void)
{
	mb_terminal_destroy(term);
	term = NULL;
}

static void nothing(void *arg)
{
}

static void settle(void)
{
	for (unsigned i = 0; i < 20; i++)
		mb_loop_call(loop, nothing, NULL);
}

static void put(int fd, const void *buf, size_t n)
{
	ck_assert_int_eq(write(fd, buf, n), (ssize_t)n);
}

/* Until the front has n bytes; fails after 10 s. */
static void wait_front(size_t n)
{
	for (unsigned i = 0; i < 10000; i++) {
		size_t have;

		pthread_mutex_lock(&front.lock);
		have = front.n;
		pthread_mutex_unlock(&front.lock);
		if (have >= n) {
			ck_assert_uint_eq(have, n);
			return;
		}
		pause_ms(1);
	}
	ck_abort_msg("the front has %zu bytes of %zu", front.n, n);
}

static void wait_keys(const char *expected)
{
	for (unsigned i = 0; i < 10000; i++) {
		if (__atomic_load_n(&n_keys, __ATOMIC_SEQ_CST) >= strlen(expected))
			break;
		pause_ms(1);
	}
	ck_assert_str_eq(keys, expected);
}

static void front_room(size_t n)
{
	pthread_mutex_lock(&front.lock);
	front.room = n;
	pthread_mutex_unlock(&front.lock);
	mb_terminal_chardev(term)->ops->readable(mb_terminal_chardev(term));
}

static size_t output(const char *text)
{
	struct mb_chardev *chr = mb_terminal_chardev(term);

	return chr->ops->write(chr, text, strlen(text));
}

/* Reads from fd until `text` is the end of what came; fails after 10 s. */
static void expect(int fd, const char *text)
{
	static char got[1 << 16];
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	size_t n = 0, len = strlen(text);

	while (n < len || memcmp(got + n - len, text, len)) {
		ssize_t more;

		got[n] = 0;
		if (poll(&pfd, 1, 10000) != 1)
			ck_abort_msg("waiting for \"%s\", got \"%s\"", text, got);
		more = read(fd, got + n, sizeof(got) - 1 - n);
		ck_assert_int_gt(more, 0);
		n += (size_t)more;
	}
	if (n != len)
		ck_abort_msg("before \"%s\" came \"%.*s\"", text, (int)(n - len), got);
}

static void get_modes(struct termios *modes)
{
	memset(modes, 0, sizeof(*modes));
	ck_assert_int_eq(tcgetattr(slave, modes), 0);
}

START_TEST(modes)
{
	struct termios before, during, after;

	get_modes(&before);
	before.c_iflag |= IUTF8; /* something of one's own */
	before.c_cc[VERASE] = 8;
	before.c_cc[VMIN] = 3;
	tcsetattr(slave, TCSANOW, &before);
	create(slave, slave);
	ck_assert(mb_terminal_is_tty(term));
	get_modes(&during);
	ck_assert_uint_eq(during.c_lflag & (ISIG | ICANON | ECHO | IEXTEN), 0);
	ck_assert_uint_eq(during.c_iflag & (ICRNL | IXON), 0);
	ck_assert_uint_ne(during.c_oflag & OPOST, 0);
	ck_assert_uint_eq(during.c_oflag, before.c_oflag);
	/* A way out that skips destroy; any number of times. */
	mb_terminal_restore(term);
	mb_terminal_restore(term);
	get_modes(&after);
	ck_assert_int_eq(memcmp(&before, &after, sizeof(before)), 0);
	mb_terminal_restore(NULL);
	/*
	 * Somebody stopped us, set the modes and let us go on: the first key, or SIGCONT, sets
	 * ours.
	 */
	put(master, "x\n", 2);
	wait_front(2);
	get_modes(&after);
	ck_assert_int_eq(memcmp(&during, &after, sizeof(before)), 0);
	tcsetattr(slave, TCSANOW, &before);
	mb_loop_call(loop, (void (*)(void *))mb_terminal_winch, term);
	get_modes(&after);
	ck_assert_int_eq(memcmp(&during, &after, sizeof(before)), 0);
	destroy();
	get_modes(&after);
	ck_assert_int_eq(memcmp(&before, &after, sizeof(before)), 0);
}
END_TEST

START_TEST(every_key)
{
	char all[256];
	unsigned n = 0;

	create(slave, slave);
	for (unsigned c = 0; c < 256; c++) {
		if (c != 0x1d)
			all[n++] = (char)c;
	}
	put(master, all, n);
	wait_front(n);
	ck_assert_int_eq(memcmp(front.text, all, n), 0);
	ck_assert_uint_eq(n_keys, 0);
}
END_TEST

START_TEST(escapes)
{
	create(slave, slave);
	put(master,
		"a\x1dsb\x1d\x1d"
		"c\x1dp\x1dp\x1drd\x1dq",
		16);
	wait_front(5);
	wait_keys("spprq");
	ck_assert_int_eq(memcmp(front.text,
				 "ab\x1d"
				 "cd",
				 5),
		0);
	/* Split between reads. */
	put(master, "e\x1d", 2);
	wait_front(6);
	settle();
	pause_ms(5);
	ck_assert_uint_eq(n_keys, 5);
	put(master, "q", 1);
	put(master, "f", 1);
	wait_front(7);
	wait_keys("spprqq");
	/* The menu lists the keys; what is no key says so and is not sent. */
	put(master, "\x1dx", 2);
	expect(master, "mirrorball: Ctrl-] x is no command; Ctrl-] m shows the menu\r\n");
	put(master, "\x1d\n", 2);
	expect(master, "mirrorball: Ctrl-] . is no command; Ctrl-] m shows the menu\r\n");
	put(master, "\x1dm", 2);
	expect(master, "mirrorball: Ctrl-] and then\r\n"
		       "  q       ends the machine at once\r\n"
		       "  s       presses its power button\r\n"
		       "  p       pauses it, or lets it go on\r\n"
		       "  r       resets it\r\n"
		       "  m or ?  shows this menu\r\n"
		       "  Ctrl-]  sends Ctrl-] to the guest\r\n");
	put(master, "\x1d?g", 3);
	wait_front(8);
	ck_assert_int_eq(front.text[7], 'g');
}
END_TEST

START_TEST(no_escape_from_a_pipe)
{
	int in[2];

	ck_assert_int_eq(pipe(in), 0);
	create(in[0], slave);
	ck_assert(!mb_terminal_is_tty(term));
	put(in[1], "a\x1dq", 3);
	wait_front(3);
	ck_assert_int_eq(memcmp(front.text, "a\x1dq", 3), 0);
	ck_assert_uint_eq(n_keys, 0);
	close(in[1]); /* end of file: the guest gets no more, and nobody spins */
	settle();
	settle();
	output("still here\n");
	expect(master, "still here\r\n");
	destroy();
	close(in[0]);
}
END_TEST

static double cpu_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* No input: closed, -1, /dev/null, a directory, an end of file already there. */
START_TEST(no_input)
{
	int fd = -1, ends[2];
	double before;

	switch (_i) {
	case 0:
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		close(fd);
		break;
	case 1:
		break;
	case 2:
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		break;
	case 3:
		fd = open("/", O_RDONLY | O_CLOEXEC);
		break;
	case 4:
		ck_assert_int_eq(pipe(ends), 0);
		close(ends[1]);
		fd = ends[0];
		break;
	}
	create(fd, slave);
	ck_assert(!mb_terminal_is_tty(term));
	settle();
	ck_assert_uint_eq(front.n, 0);
	output("text\n");
	expect(master, "text\r\n");
	before = cpu_seconds();
	pause_ms(100);
	ck_assert_double_lt(cpu_seconds() - before, 0.05); /* at rest */
	destroy();
	if (_i >= 2)
		close(fd);
}
END_TEST

/* A file is read as the guest takes it. */
START_TEST(input_file)
{
	char path[] = "/tmp/mb-test-terminal-XXXXXX", text[100000];
	int fd = mkstemp(path);

	ck_assert_int_ge(fd, 0);
	unlink(path);
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)(i * 31 % 253);
	put(fd, text, sizeof(text));
	lseek(fd, 0, SEEK_SET);
	front.room = 10;
	create(fd, slave);
	wait_front(10);
	settle();
	ck_assert_int_le(lseek(fd, 0, SEEK_CUR), 8192);
	for (size_t n = 10; n < sizeof(text);) {
		size_t room = n < 1000 ? 7 : 3000;

		front_room(room);
		n += room;
		wait_front(n < sizeof(text) ? n : sizeof(text));
	}
	ck_assert_int_eq(memcmp(front.text, text, sizeof(text)), 0);
	destroy();
	close(fd);
}
END_TEST

/* A pipe waits when the guest does not read. */
START_TEST(pipe_back_pressure)
{
	static char text[30000];
	int in[2], left;

	ck_assert_int_eq(pipe(in), 0);
	front.room = 0;
	create(in[0], slave);
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)(i * 13 % 257);
	put(in[1], text, sizeof(text));
	settle();
	pause_ms(20);
	ck_assert_int_eq(ioctl(in[0], FIONREAD, &left), 0);
	ck_assert_int_ge(left, (int)sizeof(text) - 8192);
	for (size_t n = 0; n < sizeof(text);) {
		front_room(1234);
		n += 1234;
		wait_front(n < sizeof(text) ? n : sizeof(text));
	}
	ck_assert_int_eq(memcmp(front.text, text, sizeof(text)), 0);
	destroy();
	close(in[0]);
	close(in[1]);
}
END_TEST

/*
 * A guest that never reads: 64 KiB are kept, the rest is lost and said, and the escape works all
 * the time.
 */
START_TEST(typed_too_much)
{
	static char text[1000];

	front.room = 0;
	create(slave, slave);
	memset(text, 'x', sizeof(text));
	for (unsigned i = 0; i < 70; i++)
		put(master, text, sizeof(text));
	put(master, "\x1dq", 2);
	wait_keys("q");
	expect(master, "mirrorball: the guest does not read: typed characters are lost\r\n");
	front_room(sizeof(front.text));
	wait_front(65536);
	put(master, "y", 1);
	wait_front(65537);
	ck_assert_int_eq(front.text[65536], 'y');
}
END_TEST

START_TEST(hang_up)
{
	double before;

	create(slave, slave);
	put(master, "abc", 3);
	wait_front(3);
	close(master);
	settle();
	/* Output fails with EIO, and is dropped from then on. */
	for (unsigned i = 0; i < 100; i++) {
		ck_assert_uint_eq(output("0123456789"), 10);
		pause_ms(1);
	}
	before = cpu_seconds();
	pause_ms(100);
	ck_assert_double_lt(cpu_seconds() - before, 0.05);
	destroy();
	master = open("/dev/null", O_RDWR);
}
END_TEST

START_TEST(broken_pipe)
{
	static char text[100000];
	int out[2];
	struct mb_chardev *chr;

	ck_assert_int_eq(pipe(out), 0);
	create(-1, out[1]);
	chr = mb_terminal_chardev(term);
	/* Refused first: it must be told when the output is given up. */
	ck_assert_uint_eq(chr->ops->write(chr, text, sizeof(text)), 65536);
	for (unsigned i = 0; i < 1000 && chr->ops->write(chr, text, sizeof(text)); i++)
		pause_ms(1);
	__atomic_store_n(&front.n_writable, 0, __ATOMIC_SEQ_CST);
	close(out[0]);
	for (unsigned i = 0; i < 10000 && !__atomic_load_n(&front.n_writable, __ATOMIC_SEQ_CST);
		i++)
		pause_ms(1);
	ck_assert_uint_ge(front.n_writable, 1);
	for (unsigned i = 0; i < 100; i++)
		ck_assert_uint_eq(chr->ops->write(chr, text, sizeof(text)), sizeof(text));
	mb_terminal_say(term, "this goes to standard error");
	close(out[1]);
}
END_TEST

/*
 * A reader that takes its time: everything comes, in order, and the ring is never more than 64 KiB.
 */
static void *slow_reader(void *arg)
{
	static char got[300000];
	size_t n = 0;
	int fd = *(int *)arg;

	while (n < sizeof(got)) {
		ssize_t more = read(fd, got + n, sizeof(got) - n < 3000 ? sizeof(got) - n : 3000);

		ck_assert_int_gt(more, 0);
		n += (size_t)more;
		if (n % 7 == 0)
			pause_ms(1);
	}
	return got;
}

START_TEST(slow_output)
{
	static char text[300000];
	struct mb_chardev *chr;
	pthread_t thread;
	unsigned seed = (unsigned)time(NULL), n_short = 0;
	size_t n = 0;
	int out[2];
	void *got;

	printf("terminal: seed %u\n", seed);
	srand(seed);
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)rand();
	ck_assert_int_eq(pipe(out), 0);
	if (_i)
		ck_assert_int_eq(fcntl(out[1], F_SETFL, O_NONBLOCK), 0);
	create(-1, out[1]);
	chr = mb_terminal_chardev(term);
	/* Nobody reads: the pipe's 64 KiB and ours. */
	while (n < sizeof(text)) {
		size_t taken = chr->ops->write(chr, text + n, sizeof(text) - n);

		n += taken;
		if (!taken)
			pause_ms(20);
		if (!taken && n_short++ == 5)
			break;
	}
	ck_assert_uint_le(n, 65536 + 65536);
	ck_assert_int_eq(pthread_create(&thread, NULL, slow_reader, &out[0]), 0);
	while (n < sizeof(text)) {
		unsigned told = __atomic_load_n(&front.n_writable, __ATOMIC_SEQ_CST);
		size_t want = sizeof(text) - n, taken;

		want = want < 5000 ? want : 1 + (size_t)rand() % 5000;
		taken = chr->ops->write(chr, text + n, want);
		n += taken;
		for (unsigned i = 0; taken < want;
			i++) { /* a short write is always followed by writable */
			ck_assert_uint_lt(i, 10000);
			if (__atomic_load_n(&front.n_writable, __ATOMIC_SEQ_CST) != told)
				break;
			pause_ms(1);
		}
	}
	pthread_join(thread, &got);
	ck_assert_int_eq(memcmp(got, text, sizeof(text)), 0);
	destroy();
	close(out[0]);
	close(out[1]);
}
END_TEST

/* One byte at a time, as a serial port does: few writes. A packet-mode socket counts them. */
START_TEST(batches)
{
	static const char line[] = "The quick brown fox jumps over the lazy dog.\n";
	static char got[8192];
	int out[2];
	unsigned n_writes = 0;
	size_t n = 0;

	ck_assert_int_eq(pipe2(out, O_DIRECT), 0); /* each write is a packet */
	create(-1, out[1]);
	for (unsigned i = 0; i < 4096; i++) {
		char byte[2] = {line[i % (sizeof(line) - 1)], 0};

		ck_assert_uint_eq(output(byte), 1);
	}
	while (n < 4096) {
		ssize_t more = read(out[0], got + n, sizeof(got) - n);

		ck_assert_int_gt(more, 0);
		n += (size_t)more;
		n_writes++;
	}
	for (unsigned i = 0; i < 4096; i++)
		ck_assert_int_eq(got[i], line[i % (sizeof(line) - 1)]);
	ck_assert_uint_lt(n_writes, 400);
	close(out[0]);
	close(out[1]);
}
END_TEST

START_TEST(say)
{
	create(slave, slave);
	mb_terminal_say(term, "first");
	expect(master, "mirrorball: first\r\n");
	output("login: ");
	mb_terminal_say(term, "second");
	output("root\n");
	mb_terminal_say(term, "third");
	expect(master, "login: \r\nmirrorball: second\r\nroot\r\nmirrorball: third\r\n");
}
END_TEST

/* The guest's last line is ended for what we say next, where that goes to the same place. */
START_TEST(destroy_ends_the_line)
{
	static const char *const seen[] = {"AAAA|", "AAAA\r\n|", "AAAA\r\n|"};
	int old = dup(STDERR_FILENO);

	ck_assert_int_ge(old, 0);
	if (_i)
		ck_assert_int_eq(dup2(slave, STDERR_FILENO), STDERR_FILENO);
	create(slave, slave);
	output(_i == 2 ? "AAAA\n" : "AAAA");
	destroy();
	ck_assert_int_eq(dup2(old, STDERR_FILENO), STDERR_FILENO);
	close(old);
	put(slave, "|", 1);
	expect(master, seen[_i]);
}
END_TEST

/*
 * The end: what is left comes out, and a terminal that takes nothing keeps us for a second and no
 * more.
 */
START_TEST(destroy_writes_the_rest)
{
	static char text[60000];
	int out[2];
	size_t n = 0;

	ck_assert_int_eq(pipe(out), 0);
	ck_assert_int_eq(fcntl(out[1], F_SETPIPE_SZ, 1 << 17), 1 << 17);
	create(-1, out[1]);
	memset(text, 'x', sizeof(text) - 1);
	ck_assert_uint_eq(output(text), sizeof(text) - 1);
	destroy();
	close(out[1]);
	while (n < sizeof(text) - 1)
		n += (size_t)read(out[0], text, sizeof(text));
	ck_assert_int_eq(read(out[0], text, 1), 0); /* our duplicate is gone as well */
	close(out[0]);
}
END_TEST

START_TEST(destroy_while_stuck)
{
	struct timespec start, end;
	struct termios before, after;
	double seconds;

	get_modes(&before);
	create(slave, slave);
	ck_assert_int_eq(tcflow(slave, TCOOFF), 0); /* as Ctrl-S does */
	output("never seen\n");
	pause_ms(10);
	clock_gettime(CLOCK_MONOTONIC, &start);
	destroy();
	clock_gettime(CLOCK_MONOTONIC, &end);
	seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
	ck_assert_double_gt(seconds, 0.9);
	ck_assert_double_lt(seconds, 5);
	get_modes(&after);
	ck_assert_int_eq(memcmp(&before, &after, sizeof(before)), 0);
	/* The thread that was left behind comes to its end. */
	ck_assert_int_eq(tcflow(slave, TCOON), 0);
	pause_ms(50);
}
END_TEST

START_TEST(window_size)
{
	struct winsize size = {.ws_col = 132, .ws_row = 43};
	int in[2];

	ck_assert_int_eq(ioctl(slave, TIOCSWINSZ, &size), 0);
	create(slave, slave);
	mb_loop_call(loop, (void (*)(void *))mb_terminal_winch, term);
	ck_assert_uint_eq(n_resized, 1);
	ck_assert_uint_eq(columns, 132);
	ck_assert_uint_eq(rows, 43);
	mb_terminal_destroy(term);
	ck_assert_int_eq(pipe(in), 0);
	create(in[0], in[1]);
	mb_loop_call(loop, (void (*)(void *))mb_terminal_winch, term);
	ck_assert_uint_eq(n_resized, 1);
	destroy();
	close(in[0]);
	close(in[1]);
}
END_TEST

/*
 * Job control. A child becomes the leader of a session on the pty; its own child, in another
 * process group, is in the background: it must neither stop nor touch the terminal, until it gets
 * the foreground.
 */
static int background_job(int ready_fd)
{
	struct termios now;

	signal(SIGTTOU, SIG_DFL);
	signal(SIGTTIN, SIG_DFL);
	create(slave, slave);
	put(master, "for the shell", 13); /* readable, and not for us */
	pause_ms(50);
	settle();
	wait_front(0);
	if (tcgetattr(slave, &now) || !(now.c_lflag & ICANON))
		return 2;
	/*
	 * Output does not stop it either, also with TOSTOP. Then the parent gives it the
	 * foreground.
	 */
	output("from the background\n");
	pause_ms(50);
	mb_terminal_restore(term);
	put(ready_fd, "", 1);
	for (unsigned i = 0; i < 10000 && (now.c_lflag & ICANON); i++) {
		pause_ms(1);
		tcgetattr(slave, &now);
	}
	if (now.c_lflag & ICANON)
		return 4;
	put(master, "!", 1);
	wait_front(14);
	if (memcmp(front.text, "for the shell!", 14))
		return 5;
	mb_terminal_destroy(term);
	tcgetattr(slave, &now);
	return now.c_lflag & ICANON ? 0 : 6;
}

static int session(void)
{
	struct termios tostop;
	struct pollfd pfd = {.events = POLLIN};
	pid_t job;
	int status, ready[2];

	if (pipe(ready) || setsid() < 0 || ioctl(slave, TIOCSCTTY, 0))
		return 20;
	tcgetattr(slave, &tostop);
	tostop.c_lflag |= TOSTOP;
	tostop.c_lflag &= ~(tcflag_t)ECHO;
	tcsetattr(slave, TCSANOW, &tostop);
	job = fork();
	if (!job) {
		setpgid(0, 0);
		_exit(background_job(ready[1]));
	}
	setpgid(job, job);
	pfd.fd = ready[0];
	poll(&pfd, 1, 10000);
	if (waitpid(job, &status, WNOHANG | WUNTRACED))
		return WIFSTOPPED(status) ? 21 : WIFEXITED(status) ? WEXITSTATUS(status) : 22;
	signal(SIGTTOU, SIG_IGN);
	if (tcsetpgrp(slave, job))
		return 23;
	if (waitpid(job, &status, WUNTRACED) != job)
		return 24;
	return WIFSTOPPED(status) ? 25 : WIFEXITED(status) ? WEXITSTATUS(status) : 26;
}

START_TEST(background)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(session());
	expect(master, "from the background\r\n");
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("terminal");
	TCase *tcase = tcase_create("terminal");

	tcase_set_timeout(tcase, 30);
	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, modes);
	tcase_add_test(tcase, every_key);
	tcase_add_test(tcase, escapes);
	tcase_add_test(tcase, no_escape_from_a_pipe);
	tcase_add_loop_test(tcase, no_input, 0, 5);
	tcase_add_test(tcase, input_file);
	tcase_add_test(tcase, pipe_back_pressure);
	tcase_add_test(tcase, typed_too_much);
	tcase_add_test(tcase, hang_up);
	tcase_add_test(tcase, broken_pipe);
	tcase_add_loop_test(tcase, slow_output, 0, 2);
	tcase_add_test(tcase, batches);
	tcase_add_test(tcase, say);
	tcase_add_loop_test(tcase, destroy_ends_the_line, 0, 3);
	tcase_add_test(tcase, destroy_writes_the_rest);
	tcase_add_test(tcase, destroy_while_stuck);
	tcase_add_test(tcase, window_size);
	tcase_add_test(tcase, background);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
