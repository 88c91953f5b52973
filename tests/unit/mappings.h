/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MAPPINGS_H
#define MAPPINGS_H

#include <stdint.h>

/* How much of this process' mappings of files in memory is mapped as huge pages, in bytes. */
uint64_t pmd_mapped(void);

/*
 * Uses up vm.max_map_count: every second page of one mapping is another. To be unmapped by the caller;
 * NULL: the limit is too high to be reached.
 */
char *use_up_mappings(uint64_t *len);

#endif
