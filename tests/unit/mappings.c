// SPDX-License-Identifier: Apache-2.0
#include "mappings.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#define PAGE	      4096ull
#define MANY_MAPPINGS (1ul << 21) /* 0.5 GiB of the kernel's memory */

uint64_t pmd_mapped(void)
{
	FILE *smaps = fopen("/proc/self/smaps_rollup", "re");
	uint64_t bytes = 0;
	unsigned long kib;
	char line[512];

	while (fgets(line, sizeof(line), smaps))
		if (sscanf(line, "ShmemPmdMapped: %lu kB", &kib) == 1)
			bytes += kib << 10;
	fclose(smaps);
	return bytes;
}

char *use_up_mappings(uint64_t *len)
{
	FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
	unsigned long most = 0;
	char *base;

	ck_assert_int_eq(fscanf(file, "%lu", &most), 1);
	fclose(file);
	if (most > MANY_MAPPINGS)
		return NULL;
	*len = most * PAGE;
	base = mmap(NULL, *len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ck_assert_ptr_ne(base, MAP_FAILED);
	for (unsigned long i = 1; i < most; i += 2)
		if (mprotect(base + i * PAGE, PAGE, PROT_READ))
			break;
	ck_assert_int_eq(errno, ENOMEM);
	return base;
}
