/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLOCK_H
#define MIRRORBALL_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Of a time of day, also one before 1970. */
static inline int64_t mb_timespec_ns(const struct timespec *ts)
{
	return ts->tv_sec * 1000000000ll + ts->tv_nsec;
}

static inline uint64_t mb_clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t mb_now_ns(void)
{
	return mb_clock_ns(CLOCK_MONOTONIC);
}

#endif
