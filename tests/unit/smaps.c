// SPDX-License-Identifier: Apache-2.0
#include "smaps.h"
#include <stdio.h>

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
