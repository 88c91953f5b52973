/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SMAPS_H
#define SMAPS_H

#include <stdint.h>

/* How much of this process' mappings of files in memory is mapped as huge pages, in bytes. */
uint64_t pmd_mapped(void);

#endif
