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

uint64_t mb_cgroup_memory_left(const char *root)
{
	uint64_t left = UINT64_MAX;
	char group[LINE], *slash;

	if (!root)
		root = "";
	if (!find_group(root, group))
		return left;
	/* The root has no limit. */
	while ((slash = strrchr(group, '/')) != NULL && slash[1]) {
		uint64_t max, current = 0, here;

		if (read_bytes(root, group, "memory.max", &max)) {
			read_bytes(root, group, "memory.current", &current);
			here = current < max ? max - current : 0;
			left = here < left ? here : left;
		}
		*slash = '\0';
	}
	return left;
}
