/* SPDX-License-Identifier: Apache-2.0 */
#ifndef REPLICA_FAILS_H
#define REPLICA_FAILS_H

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/types.h>

/* System calls of the replicas that fail: after so many that do not, so many times. */
static int fail_after = INT_MAX, fail_times; /* calls; atomic */

static inline bool fails(void)
{
	int n = __atomic_sub_fetch(&fail_after, 1, __ATOMIC_RELAXED);

	errno = ENOMEM;
	return n < 0 && n >= -fail_times;
}

static inline void *bad_map(void *at, size_t len, int prot, int flags, int to, off_t offset)
{
	return fails() ? MAP_FAILED : mmap(at, len, prot, flags, to, offset);
}

static inline void *bad_remap(void *at, size_t old_len, size_t len, int flags, void *to)
{
	return fails() ? MAP_FAILED : mremap(at, old_len, len, flags, to);
}

static inline int bad_control(int to, unsigned long request, void *arg)
{
	return fails() ? -1 : ioctl(to, request, arg);
}

#endif
