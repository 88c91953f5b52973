/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CGROUP_H
#define MIRRORBALL_CGROUP_H

#include <stdint.h>

/*
 * Bytes of memory that the cgroup of this process, and those above it, may still take: the least of
 * what memory.max and memory.high leave beside memory.current (Documentation/admin-guide/cgroup-v2.rst). Of what
 * caches files half counts as taken. UINT64_MAX: there is no limit, or none that can be read, as with cgroup v1.
 *
 * root: in front of /proc and /sys, for tests; NULL: nothing.
 */
uint64_t mb_cgroup_memory_left(const char *root);

#endif
