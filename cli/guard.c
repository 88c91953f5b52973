// SPDX-License-Identifier: Apache-2.0
#include "guard.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <termios.h>
#include <unistd.h>

/* Written before any handler is installed, only read afterwards; but for the screen. */
static struct {
	struct termios modes;
	bool have_modes;
	bool stdin_was_closed;
	volatile sig_atomic_t screen; /* the descriptor + 1 whose screen is taken, or 0 */
} guard;

/* xterm's, which every terminal of today has: the alternate screen, the cursor. */
static const char take_screen[] = "\033[?1049h\033[?25l",
		  give_screen[] = "\033[0m\033[?25h\033[?1049l";

static void write_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno != EINTR)
			return; /* nobody looks any more */
		text += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
	}
}

static const int held[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

void cli_guard_restore(void)
{
	int screen = guard.screen;

	guard.screen = 0;
	if (screen)
		write_all(screen - 1, give_screen, sizeof(give_screen) - 1);
	/* In the background the terminal is somebody else's, and SIGTTOU would stop us. */
	if (guard.have_modes && tcgetpgrp(STDIN_FILENO) == getpgrp())
		tcsetattr(STDIN_FILENO, TCSANOW, &guard.modes);
}

void cli_guard_take_screen(int fd)
{
	struct termios modes = guard.modes;

	modes.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	modes.c_cc[VMIN] = 1;
	modes.c_cc[VTIME] = 0;
	/* First: in the background it stops us, before anything is seen. */
	if (guard.have_modes)
		tcsetattr(STDIN_FILENO, TCSANOW, &modes);
	guard.screen = fd + 1;
	write_all(fd, take_screen, sizeof(take_screen) - 1);
}

static void restore_terminal(int sig)
{
	/* SA_RESETHAND: raising it again ends the process the way that its parent expects to see.
	 */
	cli_guard_restore();
	raise(sig);
}

static int open_standard_descriptors(void)
{
	for (int fd = 0; fd <= 2; fd++) {
		int null;

		if (fcntl(fd, F_GETFD) >= 0)
			continue;
		if (fd == 0)
			guard.stdin_was_closed = true;
		null = open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
		if (null != fd)
			return null < 0 ? -errno : -EBADF;
	}
	return 0;
}

int cli_guard_start(void)
{
	static const int fatal[] = {SIGQUIT, SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS,
		SIGXCPU, SIGALRM, SIGVTALRM, SIGUSR1, SIGUSR2};
	struct sigaction restore = {
		.sa_handler = restore_terminal, .sa_flags = SA_RESETHAND | SA_NODEFER};
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	struct rlimit none = {0, 0}, old, files;
	int rc = open_standard_descriptors();

	if (rc) {
		fprintf(stderr,
			"mirrorball: /dev/null: %s; it stands in for a closed standard "
			"descriptor\n",
			strerror(-rc));
		return rc;
	}
	guard.have_modes = !tcgetattr(STDIN_FILENO, &guard.modes);
	sigaction(SIGPIPE, &ignore, NULL);
	sigaction(SIGXFSZ, &ignore, NULL);
	for (unsigned i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++) {
		struct sigaction now;

		/* A sanitizer's handlers stay, and so does what the parent had ignored. */
		if (!sigaction(fatal[i], NULL, &now) && now.sa_handler == SIG_DFL)
			sigaction(fatal[i], &restore, NULL);
	}
	/*
	 * The usual soft limit of 1024 is for programs that use select(2); it is too low for 1024
	 * vCPUs.
	 */
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (!getrlimit(RLIMIT_CORE, &old)) {
		none.rlim_max = old.rlim_max;
		setrlimit(RLIMIT_CORE, &none);
	}
	return 0;
}

bool cli_guard_stdin_was_closed(void)
{
	return guard.stdin_was_closed;
}

void cli_guard_hold_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	for (unsigned i = 0; i < sizeof(held) / sizeof(held[0]); i++)
		sigaddset(&set, held[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
}
