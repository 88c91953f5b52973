// SPDX-License-Identifier: Apache-2.0
#include <mirrorball/clock.h>
#include <mirrorball/error.h>
#include <mirrorball/log.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PERIOD_NS 10000000000ull
#define BURST	  5
#define WAIT_MS	  200

static void write_line(const char *fmt, va_list ap)
{
	char line[1024] = "mirrorball: ";
	size_t n = strlen(line);
	int len = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);

	if (len < 0)
		return;
	mb_error_make_printable(line + n);
	n += strlen(line + n);
	line[n++] = '\n';
	mb_log_text(line, n);
}

void mb_log_text(const char *text, size_t len)
{
	struct pollfd pfd = {.fd = STDERR_FILENO, .events = POLLOUT};
	ssize_t n;

	/* A reader that does not read must not keep the machine: then this is lost. */
	if (poll(&pfd, 1, WAIT_MS) <= 0)
		return;
	n = write(STDERR_FILENO, text, len);
	(void)n; /* nobody is left to tell */
}

void mb_log(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	write_line(fmt, ap);
	va_end(ap);
}

void mb_log_guest(struct mb_ratelimit *rl, const char *fmt, ...)
{
	uint64_t now_ns = mb_now_ns(),
		 start_ns = __atomic_load_n(&rl->period_start_ns, __ATOMIC_RELAXED);
	va_list ap;

	if ((!start_ns || now_ns - start_ns > PERIOD_NS) &&
		__atomic_compare_exchange_n(&rl->period_start_ns, &start_ns, now_ns, false,
			__ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
		uint32_t n_dropped = __atomic_exchange_n(&rl->n_dropped, 0, __ATOMIC_RELAXED);

		__atomic_store_n(&rl->n_said, 0, __ATOMIC_RELAXED);
		if (n_dropped)
			mb_log("%u more such messages about the guest were not shown", n_dropped);
	}
	if (__atomic_fetch_add(&rl->n_said, 1, __ATOMIC_RELAXED) >= BURST) {
		__atomic_add_fetch(&rl->n_dropped, 1, __ATOMIC_RELAXED);
		return;
	}
	va_start(ap, fmt);
	write_line(fmt, ap);
	va_end(ap);
}
