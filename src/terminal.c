// SPDX-License-Identifier: Apache-2.0
#include "terminal_output.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/log.h>
#include <mirrorball/terminal.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <unistd.h>

#define ESCAPE		   0x1d /* Ctrl-] */
#define PENDING_BYTES	   (64u << 10)
#define READ_BYTES	   4096u
#define FOREGROUND_POLL_NS 500000000l

static const char menu[] = "mirrorball: Ctrl-] and then\n"
			   "  q       ends the machine at once\n"
			   "  s       presses its power button\n"
			   "  p       pauses it, or lets it go on\n"
			   "  r       resets it\n"
			   "  m or ?  shows this menu\n"
			   "  Ctrl-]  sends Ctrl-] to the guest";

/*
 * Threads: everything on the loop's but what is said to be otherwise. The output has a lock of its
 * own, and is the only thing that ops->write and mb_terminal_say touch.
 */
struct mb_terminal {
	struct mb_chardev chr; /* first: a chardev of ours is cast to this */
	struct mb_loop *loop;
	const struct mb_terminal_ops *ops;
	void *ctx;
	int in_fd, out_fd;
	bool is_tty;
	struct mb_output *output;

	/*
	 * Held while the front is called, so that detach is a barrier; protects chr.front. The
	 * outermost lock.
	 */
	pthread_mutex_t front_lock;

	/*
	 * Modes before ours; valid while raw (a release store after saved is written, for signal
	 * handlers).
	 */
	struct termios saved;
	bool raw;

	struct mb_watch input; /* fd: in_fd */
	bool watching;
	bool pollable; /* false: a file or /dev/null: nothing for epoll, and never blocks */
	bool ended;    /* no more input will come */
	/* eventfd: there is room in the front, or more to read from a file. */
	struct mb_watch wake;
	/* timerfd: look whether we are in the foreground. fd -1 if not a terminal. */
	struct mb_watch tick;

	bool escaped; /* the last byte was the escape */
	bool lost;    /* a line says so already */
	/* Read, and not yet taken by the front. */
	unsigned pending_head, n_pending;
	uint8_t pending[PENDING_BYTES];
};

/* ---- modes ---- */

/* Also true of a terminal that is not our controlling terminal: it has no job control for us. */
static bool in_foreground(int fd)
{
	pid_t group = tcgetpgrp(fd);

	return group < 0 || group == getpgrp();
}

/* SIGTTOU is blocked meanwhile: it would stop us if we went into the background at this moment. */
static void set_modes(int fd, const struct termios *modes)
{
	sigset_t ttou, old;

	sigemptyset(&ttou);
	sigaddset(&ttou, SIGTTOU);
	pthread_sigmask(SIG_BLOCK, &ttou, &old);
	/* Not TCSADRAIN: a terminal that takes no output must not keep us. */
	while (tcsetattr(fd, TCSANOW, modes) && errno == EINTR)
		;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Every key is a byte for the guest; its output is processed as before. In the foreground only. */
static void enter_raw(struct mb_terminal *term)
{
	struct termios modes;

	if (tcgetattr(term->in_fd, &modes))
		return;
	if (term->raw && !(modes.c_lflag & (ISIG | ICANON | ECHO)))
		return;
	if (!term->raw) {
		term->saved = modes;
		__atomic_store_n(&term->raw, true, __ATOMIC_RELEASE);
	}
	modes = term->saved;
	modes.c_iflag &=
		~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
	modes.c_lflag &= ~(tcflag_t)(ISIG | ICANON | ECHO | ECHONL | IEXTEN);
	modes.c_cflag = (modes.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
	/*
	 * A read never blocks, without O_NONBLOCK, which whoever shares the terminal would get too.
	 */
	modes.c_cc[VMIN] = 0;
	modes.c_cc[VTIME] = 0;
	set_modes(term->in_fd, &modes);
}

void mb_terminal_restore(const struct mb_terminal *term)
{
	int old_errno = errno;

	/*
	 * In the background the terminal belongs to somebody else, who has set it to their liking.
	 */
	if (term && __atomic_load_n(&term->raw, __ATOMIC_ACQUIRE) && in_foreground(term->in_fd))
		set_modes(term->in_fd, &term->saved);
	errno = old_errno;
}

/* ---- from the input to the front ---- */

static void wake(struct mb_terminal *term)
{
	uint64_t one = 1;
	ssize_t n = write(term->wake.fd, &one, sizeof(one));

	(void)n; /* EAGAIN: it is awake already */
}

static void set_watching(struct mb_terminal *term, bool on)
{
	if (!term->pollable || term->watching == on)
		return;
	term->watching = on;
	if (on)
		mb_loop_add(term->loop, &term->input);
	else
		mb_loop_remove(term->loop, &term->input);
}

static void set_tick(struct mb_terminal *term, bool on)
{
	struct itimerspec when = {0};

	if (on)
		when.it_value.tv_nsec = when.it_interval.tv_nsec = FOREGROUND_POLL_NS;
	timerfd_settime(term->tick.fd, 0, &when, NULL);
}

/* Gives the front what it takes of the pending input; says whether nothing is left. */
static bool flush_pending(struct mb_terminal *term)
{
	pthread_mutex_lock(&term->front_lock);
	while (term->n_pending && term->chr.front) {
		unsigned span = PENDING_BYTES - term->pending_head;
		unsigned taken;

		if (span > term->n_pending)
			span = term->n_pending;
		taken = (unsigned)term->chr.front->receive(
			term->chr.front_dev, term->pending + term->pending_head, span);
		if (!taken)
			break;
		term->pending_head = (term->pending_head + taken) % PENDING_BYTES;
		term->n_pending -= taken;
	}
	if (!term->chr.front && term->is_tty)
		term->n_pending = 0;
	pthread_mutex_unlock(&term->front_lock);
	if (!term->n_pending)
		term->lost = false;
	return !term->n_pending;
}

static void keep(struct mb_terminal *term, uint8_t byte)
{
	if (term->n_pending < PENDING_BYTES) {
		term->pending[(term->pending_head + term->n_pending++) % PENDING_BYTES] = byte;
	} else if (!term->lost) {
		term->lost = true;
		mb_terminal_say(term, "the guest does not read: typed characters are lost");
	}
}

static void command(struct mb_terminal *term, uint8_t key)
{
	char text[80];

	switch (key) {
	case 'q':
	case 's':
	case 'p':
	case 'r':
		if (term->ops->command)
			term->ops->command(term->ctx, (char)key);
		break;
	case 'm':
	case '?':
		mb_output_say(term->output, menu);
		break;
	case ESCAPE:
		keep(term, key);
		break;
	default:
		snprintf(text, sizeof(text), "Ctrl-] %c is no command; Ctrl-] m shows the menu",
			key > ' ' && key < 0x7f ? key : '.');
		mb_terminal_say(term, text);
	}
}

static void take_input(struct mb_terminal *term, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (term->escaped) {
			term->escaped = false;
			command(term, bytes[i]);
		} else if (term->is_tty && bytes[i] == ESCAPE) {
			term->escaped = true;
		} else {
			keep(term, bytes[i]);
		}
	}
}

static void end_input(struct mb_terminal *term)
{
	set_watching(term, false);
	term->ended = true;
}

/*
 * Reads with SIGTTIN blocked: a read from the background then fails with EIO instead of stopping
 * us.
 */
static ssize_t read_unstopped(int fd, void *buf, size_t n)
{
	sigset_t ttin, old;
	ssize_t got;

	sigemptyset(&ttin);
	sigaddset(&ttin, SIGTTIN);
	pthread_sigmask(SIG_BLOCK, &ttin, &old);
	got = read(fd, buf, n);
	if (got < 0)
		got = -errno;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return got;
}

static void read_tty(struct mb_terminal *term, uint32_t events)
{
	uint8_t buf[READ_BYTES];
	ssize_t n = -EIO;

	if (in_foreground(term->in_fd)) {
		/* Whoever stopped us and let us go on has set its own modes meanwhile. */
		enter_raw(term);
		n = read_unstopped(term->in_fd, buf, sizeof(buf));
	}
	if (n > 0) {
		take_input(term, buf, (size_t)n);
		flush_pending(term);
	} else if (n == -EIO && !in_foreground(term->in_fd)) {
		set_watching(term, false);
		set_tick(term, true);
	} else if ((n == 0 && (events & (EPOLLHUP | EPOLLERR))) ||
		   (n < 0 && n != -EAGAIN && n != -EINTR)) {
		end_input(term); /* hung up */
	}
}

/*
 * A pipe, socket or file: read only when the front has taken everything, so that the rest waits
 * there.
 */
static void read_stream(struct mb_terminal *term)
{
	uint8_t buf[READ_BYTES];
	ssize_t n = read_unstopped(term->in_fd, buf, sizeof(buf));

	if (n == -EAGAIN || n == -EINTR) {
		if (!term->pollable)
			wake(term);
		return;
	}
	if (n <= 0) {
		end_input(term);
		return;
	}
	take_input(term, buf, (size_t)n);
	if (!flush_pending(term))
		set_watching(term, false);
	else if (!term->pollable)
		wake(term); /* in turn with the loop's other work */
}

static void input_ready(struct mb_watch *watch, uint32_t events)
{
	struct mb_terminal *term = watch->ctx;

	if (term->is_tty)
		read_tty(term, events);
	else
		read_stream(term);
}

static void woken(struct mb_watch *watch, uint32_t events)
{
	struct mb_terminal *term = watch->ctx;
	uint64_t count;
	ssize_t n = read(watch->fd, &count, sizeof(count));

	(void)n;
	if (!flush_pending(term) || term->ended || term->is_tty)
		return;
	if (term->pollable)
		set_watching(term, true);
	else
		read_stream(term);
}

static void ticked(struct mb_watch *watch, uint32_t events)
{
	struct mb_terminal *term = watch->ctx;
	uint64_t count;
	ssize_t n = read(watch->fd, &count, sizeof(count));

	(void)n;
	if (!in_foreground(term->in_fd))
		return;
	set_tick(term, false);
	enter_raw(term);
	set_watching(term, true);
}

/* ---- the chardev's side ---- */

static size_t back_write(struct mb_chardev *chr, const void *buf, size_t n)
{
	return mb_output_write(((struct mb_terminal *)chr)->output, buf, n);
}

static void back_readable(struct mb_chardev *chr)
{
	wake((struct mb_terminal *)chr);
}

static void back_detach(struct mb_chardev *chr)
{
	struct mb_terminal *term = (struct mb_terminal *)chr;

	pthread_mutex_lock(&term->front_lock);
	chr->front = NULL;
	pthread_mutex_unlock(&term->front_lock);
}

static const struct mb_chardev_ops back_ops = {
	.write = back_write,
	.readable = back_readable,
	.detach = back_detach,
};

/* On the output's thread. */
static void output_room(void *ctx)
{
	struct mb_terminal *term = ctx;

	pthread_mutex_lock(&term->front_lock);
	if (term->chr.front)
		term->chr.front->writable(term->chr.front_dev);
	pthread_mutex_unlock(&term->front_lock);
}

/* ---- life ---- */

static int watch_events(struct mb_terminal *term, struct mb_watch *watch, int fd,
	void (*ready)(struct mb_watch *watch, uint32_t events), struct mb_error *err)
{
	int rc = fd < 0 ? -errno : 0;

	*watch = (struct mb_watch){.fd = fd, .events = EPOLLIN, .ready = ready, .ctx = term};
	if (!rc)
		rc = mb_loop_add(term->loop, watch);
	if (rc) {
		if (fd >= 0)
			close(fd);
		watch->fd = -1;
		mb_error_set(err, -rc, "console: watch its events: %s", strerror(-rc));
	}
	return rc;
}

/* Starts reading; what cannot be read is a console without input. */
static int start_input(struct mb_terminal *term, struct mb_error *err)
{
	int rc = 0;

	term->input = (struct mb_watch){
		.fd = term->in_fd,
		.events = EPOLLIN,
		.ready = input_ready,
		.ctx = term,
	};
	term->pollable = true;
	if (fcntl(term->in_fd, F_GETFD) < 0) {
		term->ended = true;
	} else if (term->is_tty && !in_foreground(term->in_fd)) {
		set_tick(term, true);
	} else {
		rc = mb_loop_add(term->loop, &term->input);
		term->watching = !rc;
		if (rc == -EPERM) {
			term->pollable = false;
			wake(term);
			rc = 0;
		}
		if (rc)
			return mb_error_set(
				err, -rc, "console: watch standard input: %s", strerror(-rc));
		if (term->is_tty)
			enter_raw(term);
	}
	return 0;
}

int mb_terminal_create(struct mb_loop *loop, int in_fd, int out_fd,
	const struct mb_terminal_ops *ops, void *ctx, struct mb_terminal **out,
	struct mb_error *err)
{
	struct mb_terminal *term = calloc(1, sizeof(*term));
	int rc;

	if (!term)
		return mb_error_set(err, ENOMEM, "console: out of memory");
	term->chr.ops = &back_ops;
	term->loop = loop;
	term->ops = ops;
	term->ctx = ctx;
	term->in_fd = in_fd;
	term->out_fd = out_fd;
	term->is_tty = isatty(in_fd);
	term->wake.fd = term->tick.fd = -1;
	pthread_mutex_init(&term->front_lock, NULL);
	rc = mb_output_create(out_fd, output_room, term, &term->output, err);
	if (rc)
		goto err_term;
	rc = watch_events(term, &term->wake, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), woken, err);
	if (rc)
		goto err_term;
	if (term->is_tty)
		rc = watch_events(term, &term->tick,
			timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), ticked, err);
	if (!rc)
		rc = start_input(term, err);
	if (rc)
		goto err_term;
	*out = term;
	return 0;

err_term:
	mb_terminal_destroy(term);
	return rc;
}

/* On the loop's thread, or in its place. */
static void stop_watching(void *arg)
{
	struct mb_terminal *term = arg;
	struct mb_watch *own[] = {&term->tick, &term->wake};

	set_watching(term, false);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
		if (own[i]->fd < 0)
			continue;
		mb_loop_remove(term->loop, own[i]);
		close(own[i]->fd);
	}
}

/* Also of what mb_terminal_create has built in part. */
void mb_terminal_destroy(struct mb_terminal *term)
{
	if (!term)
		return;
	mb_loop_call(term->loop, stop_watching, term);
	mb_output_destroy(term->output);
	mb_terminal_restore(term);
	pthread_mutex_destroy(&term->front_lock);
	free(term);
}

struct mb_chardev *mb_terminal_chardev(struct mb_terminal *term)
{
	return &term->chr;
}

void mb_terminal_winch(struct mb_terminal *term)
{
	struct winsize size;

	if (term->is_tty && !term->ended && in_foreground(term->in_fd)) {
		set_tick(term, false);
		enter_raw(term);
		set_watching(term, true);
	}
	if (ioctl(term->out_fd, TIOCGWINSZ, &size) && ioctl(term->in_fd, TIOCGWINSZ, &size))
		return;
	if (term->ops->resized && size.ws_col && size.ws_row)
		term->ops->resized(term->ctx, size.ws_col, size.ws_row);
}

bool mb_terminal_is_tty(const struct mb_terminal *term)
{
	return term->is_tty;
}

void mb_terminal_say(struct mb_terminal *term, const char *text)
{
	char line[512];

	snprintf(line, sizeof(line), "mirrorball: %s", text);
	if (mb_output_say(term->output, line) == -EPIPE)
		mb_log("%s", text);
}
