// SPDX-License-Identifier: Apache-2.0
#include <check.h>
#include <errno.h>
#include <mirrorball/cgroup.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "run.h"

/* A tree of files as the kernel shows them. */
static char root[64];

static void put(const char *path, const char *text)
{
	char full[512];
	FILE *file;

	snprintf(full, sizeof(full), "%s%s", root, path);
	for (char *slash = strchr(full + strlen(root) + 1, '/'); slash;
		slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		ck_assert(!mkdir(full, 0700) || errno == EEXIST);
		*slash = '/';
	}
	file = fopen(full, "we");
	ck_assert_ptr_nonnull(file);
	fputs(text, file);
	fclose(file);
}

static void make_root(void)
{
	snprintf(root, sizeof(root), "/tmp/mb-cgroup-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(root));
}

static void remove_root(void)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf %s", root);
	ck_assert_int_eq(system(command), 0);
}

START_TEST(test_least)
{
	put("/proc/self/cgroup", "0::/machines.slice/one.service\n");
	put("/sys/fs/cgroup/machines.slice/one.service/memory.max", "max\n");
	put("/sys/fs/cgroup/machines.slice/one.service/memory.current", "5000\n");
	put("/sys/fs/cgroup/machines.slice/memory.max", "1000000\n");
	put("/sys/fs/cgroup/machines.slice/memory.current", "400000\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), 600000);
	put("/sys/fs/cgroup/machines.slice/one.service/memory.max", "8192\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), 3192);
	put("/sys/fs/cgroup/machines.slice/one.service/memory.stat",
		"anon 1\ninactive_file 1000\nactive_file 96\nunevictable 7\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), 3192 + 548);
	put("/sys/fs/cgroup/machines.slice/one.service/memory.current", "9000\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), 0);
}
END_TEST

START_TEST(test_version_1)
{
	put("/proc/self/cgroup", "4:memory:/some/where\n1:name=systemd:/\n0::/\n");
	put("/sys/fs/cgroup/memory/some/where/memory.limit_in_bytes", "4096\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), UINT64_MAX);
}
END_TEST

/* What it is in is the root of what it sees. */
START_TEST(test_container)
{
	put("/proc/self/cgroup", "0::/\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), UINT64_MAX);
	put("/sys/fs/cgroup/memory.max", "4096\n");
	put("/sys/fs/cgroup/memory.current", "96\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), 4000);
	put("/sys/fs/cgroup/memory.high", "2096\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), 2000);
	put("/proc/self/cgroup", "0::/init.scope\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), 2000);
}
END_TEST

START_TEST(test_nonsense)
{
	ck_assert_uint_eq(mb_cgroup_memory_left(root), UINT64_MAX);
	put("/proc/self/cgroup", "");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), UINT64_MAX);
	put("/proc/self/cgroup", "0::/a/b (deleted)\n");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), UINT64_MAX);
	put("/sys/fs/cgroup/a/memory.max", "");
	put("/sys/fs/cgroup/a/memory.high", "-");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), UINT64_MAX);
	put("/sys/fs/cgroup/a/memory.max", "4096");
	ck_assert_uint_eq(mb_cgroup_memory_left(root), 4096);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cgroup");
	TCase *c = tcase_create("cgroup");

	tcase_add_checked_fixture(c, make_root, remove_root);
	tcase_add_test(c, test_least);
	tcase_add_test(c, test_version_1);
	tcase_add_test(c, test_container);
	tcase_add_test(c, test_nonsense);
	suite_add_tcase(suite, c);
	return run_suite(suite);
}
