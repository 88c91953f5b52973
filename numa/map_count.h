/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_MAP_COUNT_H
#define MIRRORBALL_MAP_COUNT_H

#include <stdint.h>

/* How many mappings a process may have: vm.max_map_count, or the kernel's default. */
uint64_t mb_max_map_count(void);

#endif
