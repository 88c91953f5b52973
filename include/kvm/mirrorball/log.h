/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_LOG_H
#define MIRRORBALL_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * One line to standard error, made printable, with "mirrorball: " in front. Any thread. A line is
 * written with one write(2), so lines of several threads do not mix. Where nobody reads standard
 * error for 200 ms the line is lost.
 */
void mb_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The same for a text of whole lines, as it is; up to PIPE_BUF bytes arrive in one piece. */
void mb_log_text(const char *text, size_t len);

/*
 * Bounds what a guest can make the monitor say: at most `burst` lines in each period of 10 s for each
 * struct, then one line that says how many were dropped. Zero-initialise; shared between threads.
 */
struct mb_ratelimit {
	uint64_t period_start_ns;
	uint32_t n_said;
	uint32_t n_dropped;
};

/* As mb_log, within the limit of rl (burst: 5 lines). */
void mb_log_guest(struct mb_ratelimit *rl, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
