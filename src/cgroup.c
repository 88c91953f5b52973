// SPDX-License-Identifier: Apache-2.0
#include <limits.h>
#include <mirrorball/cgroup.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define LINE (PATH_MAX + 64)

/* "max", and what cannot be read, is false. */
static bool read_bytes(const char *root, const char *group, const char *name, uint64_t *bytes)
{
	char path[LINE + 64];
	unsigned long long value;
	FILE *file;
	bool ok;

	snprintf(path, sizeof(path), "%s/sys/fs/cgroup%s/%s", root, group, name);
	file = fopen(path, "re");
	if (!file)
		return false;
	ok = fscanf(file, "%llu", &value) == 1;
	fclose(file);
	if (ok)
		*bytes = value;
	return ok;
}

/* Of files: half of them is given back easily, as for a node (numa/topology.c). */
static uint64_t cache_bytes(const char *root, const char *group)
{
	char path[LINE + 64], line[128];
	unsigned long long value;
	uint64_t sum = 0;
	FILE *file;

	snprintf(path, sizeof(path), "%s/sys/fs/cgroup%s/memory.stat", root, group);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "active_file %llu", &value) == 1 ||
			sscanf(line, "inactive_file %llu", &value) == 1)
			sum += value / 2;
	if (file)
		fclose(file);
	return sum;
}

/* Of the one hierarchy of version 2. False: there is none. */
static bool find_group(const char *root, char group[LINE])
{
	char path[PATH_MAX];
	bool found = false;
	FILE *file;

	snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
	file = fopen(path, "re");
	if (!file)
		return false;
	while (!found && fgets(group, LINE, file)) {
		group[strcspn(group, "\n")] = '\0';
		found = !strncmp(group, "0::/", 4);
	}
	fclose(file);
	if (found)
		memmove(group, group + 3, strlen(group + 3) + 1);
	return found;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t left_of_group(const char *root, const char *group)
{
	uint64_t max = UINT64_MAX, high = UINT64_MAX, current = 0, cached;

	read_bytes(root, group, "memory.max", &max);
	read_bytes(root, group, "memory.high", &high);
	max = least(max, high);
	if (max == UINT64_MAX)
		return max;
	read_bytes(root, group, "memory.current", &current);
	cached = cache_bytes(root, group);
	current -= least(cached, current);
	return current < max ? max - current : 0;
}

/* From the group up to the root, which has a limit where it is that of a container. */
uint64_t mb_cgroup_memory_left(const char *root)
{
	uint64_t left = UINT64_MAX;
	char group[LINE], *slash;

	if (!root)
		root = "";
	if (!find_group(root, group))
		return left;
	while ((slash = strrchr(group, '/')) != NULL) {
		left = least(left, left_of_group(root, group));
		*slash = '\0';
	}
	return least(left, left_of_group(root, ""));
}
