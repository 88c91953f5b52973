// SPDX-License-Identifier: Apache-2.0
#include "map_count.h"

#include <stdio.h>

#define DEFAULT 65530ul /* include/linux/mm.h, DEFAULT_MAX_MAP_COUNT */

uint64_t mb_max_map_count(void)
{
	FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
	unsigned long n = DEFAULT;

	if (file && fscanf(file, "%lu", &n) != 1)
		n = DEFAULT;
	if (file)
		fclose(file);
	return n;
}
