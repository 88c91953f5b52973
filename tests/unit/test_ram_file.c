// SPDX-License-Identifier: Apache-2.0
/* The file behind guest RAM, with the host's own kernel: each case is a process of its own. */
#include "run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/ram.h>
#include <mirrorball/ram_file.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES  (4 * MB_RAM_ALIGN)
#define NOBODY 65534

static unsigned n_entries(const char *path)
{
	DIR *dir = opendir(path);
	unsigned n = 0;

	ck_assert_ptr_nonnull(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static uint64_t allocated(int fd)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* Two mappings of a new file show the same bytes, all of it, and it leaves nothing behind. */
static int check_file(void)
{
	unsigned n_fds = n_entries("/proc/self/fd"), n_threads = n_entries("/proc/self/task");
	struct mb_ram_mapping a, b;
	struct stat st;
	int fd = mb_ram_file_open(BYTES);

	ck_assert_int_ge(fd, 0);
	ck_assert_uint_eq(n_entries("/proc/self/fd"), n_fds + 1);
	ck_assert_uint_eq(n_entries("/proc/self/task"), n_threads);
	ck_assert_int_eq(waitpid(-1, NULL, WNOHANG | __WALL), -1);
	ck_assert_int_eq(errno, ECHILD);
	ck_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	ck_assert_int_eq(fstat(fd, &st), 0);
	ck_assert_uint_eq((uint64_t)st.st_size, BYTES);
	ck_assert_uint_eq(st.st_nlink, 0);
	ck_assert_uint_eq(allocated(fd), 0);
	ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &a), 0);
	ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &b), 0);
	ck_assert_uint_eq((uintptr_t)a.base % MB_RAM_ALIGN, 0);
	ck_assert_uint_eq((uintptr_t)b.base % MB_RAM_ALIGN, 0);
	a.base[1] = 1;
	a.base[BYTES - 1] = 2;
	ck_assert_int_eq(b.base[0], 0);
	ck_assert_int_eq(b.base[1], 1);
	ck_assert_int_eq(b.base[BYTES - 1], 2);
	mb_ram_file_unmap(&a, BYTES);
	mb_ram_file_unmap(&a, BYTES);
	mb_ram_file_unmap(&b, BYTES);
	return fd;
}

/* Whether this kernel can give shmem huge pages at all. */
static bool huge_pages_possible(void)
{
	char line[128] = "";
	int fd = open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	ck_assert_int_gt(read(fd, line, sizeof(line) - 1), 0);
	close(fd);
	return !strstr(line, "[deny]");
}

/* Two bytes were touched, at both ends: two huge pages. */
static void check_huge(int fd)
{
	ck_assert_uint_eq(allocated(fd), 2 * MB_RAM_ALIGN);
}

static bool may_mount(void)
{
	int fd = fsopen("tmpfs", FSOPEN_CLOEXEC);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

START_TEST(of_root)
{
	int fd;

	if (!may_mount() || !huge_pages_possible()) {
		skip("may not mount, or no huge pages for shared memory");
		return;
	}
	fd = check_file();
	check_huge(fd);
	close(fd);
}
END_TEST

static bool may_make_user_namespace(void)
{
	pid_t child = fork();
	int status;

	if (!child)
		_exit(unshare(CLONE_NEWUSER) != 0);
	ck_assert_int_gt(child, 0);
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

/*
 * Without a privilege: the file is made in a user namespace. Also by a program that may not be
 * dumped, as one with capabilities of its file.
 */
START_TEST(of_user)
{
	int fd;

	if (!geteuid()) {
		ck_assert_int_eq(setresgid(NOBODY, NOBODY, NOBODY), 0);
		ck_assert_int_eq(setresuid(NOBODY, NOBODY, NOBODY), 0);
	}
	ck_assert_int_eq(prctl(PR_SET_DUMPABLE, _i), 0);
	if (!may_make_user_namespace() || !huge_pages_possible()) {
		skip("no user namespaces, or no huge pages for shared memory");
		return;
	}
	fd = check_file();
	check_huge(fd);
	/* The process itself is where it was: it has no privilege over its own namespaces. */
	ck_assert_int_eq(sethostname("x", 1), -1);
	close(fd);
}
END_TEST

/* From here on system call `nr` fails with EPERM, as in many a container, or ends the process. */
static void forbid(unsigned nr, unsigned action)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = sizeof(code) / sizeof(code[0]), .filter = code};

	ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	ck_assert_int_eq(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

static const unsigned steps[] = {SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_unlinkat, SYS_dup3};

/* Where a tmpfs cannot be had, whatever step fails, a memfd does as well but for its pages' size.
 */
START_TEST(of_container)
{
	forbid(steps[_i], SECCOMP_RET_ERRNO | EPERM);
	close(check_file());
}
END_TEST

/* A sandbox that kills costs the huge pages, not the monitor. */
START_TEST(of_sandbox)
{
	forbid(SYS_fsopen, SECCOMP_RET_KILL_PROCESS);
	close(check_file());
}
END_TEST

/* ---- what the tracker does to it: huge pages stay huge ---- */

struct huge_seen {
	uint64_t mapped, huge, written;
};

static int see_huge(void *ctx, const struct mb_page_run *run)
{
	struct huge_seen *seen = ctx;

	seen->mapped += run->len;
	seen->huge += run->huge ? run->len : 0;
	seen->written += run->written ? run->len : 0;
	return 0;
}

static struct huge_seen look(struct mb_pagemap *pm, const struct mb_ram_mapping *map)
{
	struct huge_seen seen = {0};

	ck_assert_int_eq(mb_pagemap_look(pm, map->base, BYTES, see_huge, &seen), 0);
	return seen;
}

/*
 * Design, section 3: zap and touch keep a 2 MiB mapping, and so do cleaning and the write that
 * follows, which counts for all of it; a zapped one counts as written when it is back.
 */
START_TEST(huge_pages_stay_huge)
{
	struct mb_ram_mapping view[2];
	struct mb_pagemap *pm;
	volatile char sink;
	int fd;

	if (!may_mount() || !huge_pages_possible()) {
		skip("may not mount, or no huge pages for shared memory");
		return;
	}
	fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(mb_pagemap_open(MB_PAGEMAP_ALL, &pm, NULL), 0);
	for (unsigned k = 0; k < 2; k++) {
		ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &view[k]), 0);
		ck_assert_int_eq(mb_pagemap_watch(pm, view[k].base, BYTES), 0);
	}
	if ((mb_pagemap_features(pm) & (MB_PAGEMAP_SCAN | MB_PAGEMAP_WRITES)) !=
		(MB_PAGEMAP_SCAN | MB_PAGEMAP_WRITES)) {
		skip("huge and written pages: needs PAGEMAP_SCAN and asynchronous write "
		     "protection");
		return;
	}
	memset(view[0].base, 1, BYTES);
	ck_assert_uint_eq(look(pm, &view[0]).huge, BYTES);
	ck_assert_uint_eq(look(pm, &view[1]).mapped, 0);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned k = 0; k < 2; k++)
			ck_assert_int_eq(mb_pagemap_zap(pm, view[k].base, BYTES), 0);
		ck_assert_uint_eq(look(pm, &view[0]).mapped, 0);
		sink = view[1].base[MB_RAM_ALIGN + 5];
		ck_assert_uint_eq(look(pm, &view[0]).mapped, 0);
		ck_assert_uint_eq(look(pm, &view[1]).mapped, MB_RAM_ALIGN);
		ck_assert_uint_eq(look(pm, &view[1]).huge, MB_RAM_ALIGN);
		ck_assert_uint_eq(look(pm, &view[1]).written, MB_RAM_ALIGN);
		ck_assert_int_eq(mb_pagemap_clean(pm, view[1].base, BYTES), 0);
		sink = view[1].base[MB_RAM_ALIGN + 6];
		ck_assert_uint_eq(look(pm, &view[1]).written, 0);
		ck_assert_uint_eq(look(pm, &view[1]).huge, MB_RAM_ALIGN);
		view[1].base[MB_RAM_ALIGN + 7] = 1;
		ck_assert_uint_eq(look(pm, &view[1]).written, MB_RAM_ALIGN);
		ck_assert_uint_eq(look(pm, &view[1]).huge, MB_RAM_ALIGN);
	}
	(void)sink;
	for (uint64_t i = 0; i < BYTES; i += 4096)
		ck_assert_int_eq(view[0].base[i], 1);
	mb_pagemap_close(pm);
	for (unsigned k = 0; k < 2; k++)
		mb_ram_file_unmap(&view[k], BYTES);
	close(fd);
}
END_TEST

/* A huge page that is split is mapped page by page, keeps what is in it, and is huge again when
 * mapped anew. */
START_TEST(split_and_remap)
{
	struct mb_pagemap *pm;
	struct mb_ram_mapping map;
	struct huge_seen seen;
	int fd = mb_ram_file_open(BYTES);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &map), 0);
	memset(map.base, 7, BYTES);
	ck_assert_int_eq(mb_pagemap_open(MB_PAGEMAP_ALL, &pm, NULL), 0);
	ck_assert_int_eq(mb_pagemap_watch(pm, map.base, BYTES), 0);
	if (look(pm, &map).huge != BYTES || !(mb_pagemap_features(pm) & MB_PAGEMAP_WRITES)) {
		ck_assert_int_eq(mb_pagemap_split(pm, map.base, MB_HUGE_BYTES),
			mb_pagemap_features(pm) & MB_PAGEMAP_WRITES ? 0 : -ENOTSUP);
		skip("no huge pages, or no asynchronous write protection");
		goto out;
	}
	ck_assert_int_eq(mb_pagemap_split(pm, map.base, MB_HUGE_BYTES), 0);
	ck_assert_int_eq(mb_pagemap_split(pm, map.base + 1, MB_HUGE_BYTES), -EINVAL);
	ck_assert_int_eq(mb_pagemap_split(pm, map.base + BYTES, MB_HUGE_BYTES), -EINVAL);
	ck_assert_int_eq(map.base[5 * 4096], 7);
	map.base[9 * 4096] = 8;
	seen = look(pm, &map);
	ck_assert_uint_eq(seen.huge, BYTES - MB_HUGE_BYTES);
	ck_assert_uint_eq(seen.mapped, BYTES - MB_HUGE_BYTES + 2 * MB_PAGE_BYTES);
	/* What is not split was written to begin with. */
	ck_assert_uint_eq(seen.written, BYTES - MB_HUGE_BYTES + MB_PAGE_BYTES);
	map.base[5 * 4096 + 1] = 7;
	ck_assert_uint_eq(look(pm, &map).written, BYTES - MB_HUGE_BYTES + 2 * MB_PAGE_BYTES);
	/* A part of it once more. */
	ck_assert_int_eq(mb_pagemap_split(pm, map.base + 4 * MB_PAGE_BYTES, 4 * MB_PAGE_BYTES), 0);
	seen = look(pm, &map);
	ck_assert_uint_eq(seen.mapped, BYTES - MB_HUGE_BYTES + MB_PAGE_BYTES);
	ck_assert_int_eq(map.base[5 * 4096], 7);
	map.base[6 * 4096] = 7;
	seen = look(pm, &map);
	ck_assert_uint_eq(seen.mapped, BYTES - MB_HUGE_BYTES + 3 * MB_PAGE_BYTES);
	ck_assert_uint_eq(seen.written, BYTES - MB_HUGE_BYTES + 2 * MB_PAGE_BYTES);
	ck_assert_int_eq(mb_ram_file_remap(fd, &map, 0, MB_HUGE_BYTES), 0);
	ck_assert_int_eq(mb_pagemap_watch(pm, map.base, MB_HUGE_BYTES), 0);
	ck_assert_int_eq(map.base[9 * 4096], 8);
	ck_assert_int_eq(map.base[10 * 4096], 7);
	ck_assert_uint_eq(look(pm, &map).huge, BYTES);
out:
	mb_pagemap_close(pm);
	mb_ram_file_unmap(&map, BYTES);
	close(fd);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ram_file");
	TCase *tc = tcase_create("ram_file");

	tcase_add_test(tc, of_root);
	tcase_add_test(tc, huge_pages_stay_huge);
	tcase_add_loop_test(tc, of_user, 0, 2);
	tcase_add_loop_test(tc, of_container, 0, sizeof(steps) / sizeof(steps[0]));
	tcase_add_test(tc, of_sandbox);
	tcase_add_test(tc, split_and_remap);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
