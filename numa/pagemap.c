// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/pagemap.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uffd.h"

/* Debian 12's headers are Linux 6.1's; this is ABI (uapi/linux/fs.h, uapi/linux/userfaultfd.h). */
struct scan_arg { /* struct pm_scan_arg */
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct scan_region { /* struct page_region */
	uint64_t start, end, categories;
};
#define SCAN_IOCTL   _IOWR('f', 16, struct scan_arg)
#define PAGE_WRITTEN (1u << 1)
#define PAGE_PRESENT (1u << 3)
#define PAGE_HUGE    (1u << 6)
#define SCAN_PROTECT (1u << 0) /* PM_SCAN_WP_MATCHING */
#define FEATURE_WP_UNPOPULATED                                                                     \
	(1u << 13)		    /* 6.4: a page that is not there yet can be protected, too */
#define FEATURE_WP_ASYNC (1u << 15) /* 6.7 */

#define ENTRY_PRESENT                                                                              \
	(1ull << 63) /* of /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst */
#define N_REGIONS   256u
#define N_ENTRIES   512u
#define MAX_WATCHED 8u

struct mb_pagemap {
	int fd;
	int uffd; /* -1: none */
	unsigned features;
	unsigned n_watched;
	struct {
		uint64_t start, end;
	} watched[MAX_WATCHED];
};

static int scan(const struct mb_pagemap *pm, struct scan_arg *arg)
{
	int n;

	do {
		n = ioctl(pm->fd, SCAN_IOCTL, arg);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* Whether the kernel knows the ioctl: one page of our own, the stack's. */
static bool has_scan(const struct mb_pagemap *pm)
{
	struct scan_region region;
	struct scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)&region & ~(MB_PAGE_BYTES - 1),
		.end = ((uintptr_t)&region & ~(MB_PAGE_BYTES - 1)) + MB_PAGE_BYTES,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_PRESENT,
		.return_mask = PAGE_PRESENT,
	};

	return scan(pm, &arg) == 1;
}

/*
 * A userfaultfd that is never armed but for asynchronous protection: no fault of anybody waits for
 * us. So it is enough that it is for user mode, which needs no privilege.
 */
static int open_uffd(unsigned *features)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	bool async;

	*features = 0;
	if (fd < 0)
		return -1;
	if (ioctl(fd, UFFDIO_API, &api))
		goto err;
	async = (api.features & FEATURE_WP_ASYNC) && (api.features & FEATURE_WP_UNPOPULATED);
	if (!(api.features & FEATURE_WP_SHMEM))
		goto err;
	/* Features are asked for once, on a descriptor that has not been asked. */
	close(fd);
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		return -1;
	api = (struct uffdio_api){.api = UFFD_API,
		.features =
			FEATURE_WP_SHMEM | (async ? FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED : 0)};
	if (ioctl(fd, UFFDIO_API, &api))
		goto err;
	*features = MB_PAGEMAP_EXACT | (async ? MB_PAGEMAP_WRITES : 0);
	return fd;
err:
	close(fd);
	return -1;
}

int mb_pagemap_open(unsigned want, struct mb_pagemap **out, struct mb_error *err)
{
	struct mb_pagemap *pm = calloc(1, sizeof(*pm));
	unsigned offered = 0;
	int rc;

	if (!pm)
		return mb_error_set(err, ENOMEM, "page tables: out of memory");
	pm->uffd = -1;
	pm->fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pm->fd < 0) {
		rc = errno;
		free(pm);
		return mb_error_set(err, rc,
			"/proc/self/pagemap: %s; is /proc mounted, and the kernel built"
			" with CONFIG_PROC_PAGE_MONITOR=y?",
			strerror(rc));
	}
	if (want & MB_PAGEMAP_SCAN && has_scan(pm))
		pm->features |= MB_PAGEMAP_SCAN;
	if (want & (MB_PAGEMAP_EXACT | MB_PAGEMAP_WRITES))
		pm->uffd = open_uffd(&offered);
	/* Which pages were written is asked with a scan. */
	if (!(pm->features & MB_PAGEMAP_SCAN))
		offered &= ~(unsigned)MB_PAGEMAP_WRITES;
	pm->features |= offered & want;
	*out = pm;
	return 0;
}

void mb_pagemap_close(struct mb_pagemap *pm)
{
	if (!pm)
		return;
	if (pm->uffd >= 0)
		close(pm->uffd);
	close(pm->fd);
	free(pm);
}

unsigned mb_pagemap_features(const struct mb_pagemap *pm)
{
	return pm->features;
}

/* ---- watching ---- */

/* Whether shared mappings cover [start, end): lines of /proc/self/maps, in order, "START-END rwxs
 * ...". */
static int is_shared(uint64_t start, uint64_t end)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long long first, last;
	char line[512], mode[5];
	uint64_t at = start;

	if (!maps)
		return -errno;
	while (at < end && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%llx-%llx %4s", &first, &last, mode) != 3 || last <= at)
			continue;
		if (first > at || mode[3] != 's')
			break;
		at = last;
	}
	fclose(maps);
	return at >= end ? 0 : -EINVAL;
}

static bool is_watched(const struct mb_pagemap *pm, uint64_t at, uint64_t len)
{
	for (unsigned i = 0; i < pm->n_watched; i++) {
		if (at >= pm->watched[i].start && len <= pm->watched[i].end - at &&
			at <= pm->watched[i].end)
			return true;
	}
	return false;
}

int mb_pagemap_watch(struct mb_pagemap *pm, void *base, uint64_t len)
{
	uint64_t start = (uintptr_t)base;
	struct uffdio_register reg = {
		.range = {.start = start, .len = len}, .mode = UFFDIO_REGISTER_MODE_WP};
	bool again;
	int rc;

	if (!len || (start | len) % MB_PAGE_BYTES || start + len < start)
		return -EINVAL;
	again = is_watched(pm, start, len);
	if (!again && pm->n_watched == MAX_WATCHED)
		return -ENOSPC;
	rc = is_shared(start, start + len);
	if (rc)
		return rc;
	if (pm->uffd >= 0 && ioctl(pm->uffd, UFFDIO_REGISTER, &reg))
		pm->features &= ~(unsigned)(MB_PAGEMAP_WRITES | MB_PAGEMAP_EXACT);
	if (again)
		return 0;
	pm->watched[pm->n_watched].start = start;
	pm->watched[pm->n_watched++].end = start + len;
	return 0;
}

void mb_pagemap_watch_again(const struct mb_pagemap *pm, void *at, uint64_t len)
{
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)at, .len = len}, .mode = UFFDIO_REGISTER_MODE_WP};

	if (pm->uffd >= 0)
		ioctl(pm->uffd, UFFDIO_REGISTER, &reg);
}

int mb_pagemap_zap(struct mb_pagemap *pm, void *at, uint64_t len)
{
	if (!is_watched(pm, (uintptr_t)at, len))
		return -EINVAL;
	return madvise(at, len, MADV_DONTNEED) ? -errno : 0;
}

/*
 * Small pages, with marks in the page table where there is none; a huge page that is mapped gives
 * way (mm/mprotect.c). Not by the scan: where a fault came first it keeps a huge page, and of a
 * part of one it runs into a NULL pointer of the kernel's (6.7 to 6.17). It is asynchronous: nobody
 * waits for it. Where writes are trapped (replica.h) all is protected anyway.
 */
static int protect_small(const struct mb_pagemap *pm, void *at, uint64_t len)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = (uintptr_t)at, .len = len},
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	return ioctl(pm->uffd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

/* A fault does not replace a table by a huge page, and maps what is marked protected. */
int mb_pagemap_split(struct mb_pagemap *pm, void *at, uint64_t len)
{
	int rc;

	if (!(pm->features & MB_PAGEMAP_WRITES))
		return -ENOTSUP;
	rc = mb_pagemap_zap(pm, at, len);
	return rc ? rc : protect_small(pm, at, len);
}

int mb_pagemap_clean(struct mb_pagemap *pm, void *at, uint64_t len)
{
	struct scan_arg arg = {
		.size = sizeof(arg),
		/* It passes over where writes are trapped (replica.h): there are none. */
		.flags = SCAN_PROTECT,
		.start = (uintptr_t)at,
		.end = (uintptr_t)at + len,
		.category_mask = PAGE_WRITTEN | PAGE_PRESENT,
	};
	int rc;

	if (!(pm->features & MB_PAGEMAP_WRITES))
		return 0;
	if (!is_watched(pm, arg.start, len))
		return -EINVAL;
	if ((arg.start | len) % MB_HUGE_BYTES)
		return protect_small(pm, at, len);
	rc = scan(pm, &arg);
	return rc < 0 ? rc : 0;
}

/* ---- looking ---- */

static int look_by_scan(const struct mb_pagemap *pm, uint64_t start, uint64_t end,
	int (*fn)(void *ctx, const struct mb_page_run *run), void *ctx)
{
	struct scan_region region[N_REGIONS];
	uint64_t at = start;

	while (at < end) {
		struct scan_arg arg = {
			.size = sizeof(arg),
			.start = at,
			.end = end,
			.vec = (uintptr_t)region,
			.vec_len = N_REGIONS,
			.category_mask = PAGE_PRESENT,
			.return_mask = PAGE_PRESENT | PAGE_HUGE | PAGE_WRITTEN,
		};
		int n = scan(pm, &arg), rc;

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			struct mb_page_run run = {
				.offset = region[i].start - start,
				.len = region[i].end - region[i].start,
				.huge = region[i].categories & PAGE_HUGE,
				.written = !(pm->features & MB_PAGEMAP_WRITES) ||
					   region[i].categories & PAGE_WRITTEN,
			};

			rc = fn(ctx, &run);
			if (rc)
				return rc;
		}
		/* No way forward would be a kernel's fault. */
		if (arg.walk_end <= at)
			return -EIO;
		at = arg.walk_end;
	}
	return 0;
}

static int look_by_read(const struct mb_pagemap *pm, uint64_t start, uint64_t end,
	int (*fn)(void *ctx, const struct mb_page_run *run), void *ctx)
{
	struct mb_page_run run = {.len = 0, .written = true};
	uint64_t entry[N_ENTRIES];

	for (uint64_t at = start; at < end;) {
		uint64_t n = (end - at) / MB_PAGE_BYTES;
		ssize_t got;

		if (n > N_ENTRIES)
			n = N_ENTRIES;
		do {
			got = pread(pm->fd, entry, n * sizeof(entry[0]),
				(off_t)(at / MB_PAGE_BYTES * sizeof(entry[0])));
		} while (got < 0 && errno == EINTR);
		if (got < (ssize_t)sizeof(entry[0]))
			return got < 0 ? -errno : -EIO;
		n = (uint64_t)got / sizeof(entry[0]);
		for (uint64_t i = 0; i < n; i++, at += MB_PAGE_BYTES) {
			int rc;

			if (entry[i] & ENTRY_PRESENT) {
				if (!run.len)
					run.offset = at - start;
				run.len += MB_PAGE_BYTES;
				continue;
			}
			rc = run.len ? fn(ctx, &run) : 0;
			if (rc)
				return rc;
			run.len = 0;
		}
	}
	return run.len ? fn(ctx, &run) : 0;
}

int mb_pagemap_look(struct mb_pagemap *pm, const void *at, uint64_t len,
	int (*fn)(void *ctx, const struct mb_page_run *run), void *ctx)
{
	uint64_t start = (uintptr_t)at;

	if ((start | len) % MB_PAGE_BYTES || start + len < start)
		return -EINVAL;
	return pm->features & MB_PAGEMAP_SCAN ? look_by_scan(pm, start, start + len, fn, ctx)
					      : look_by_read(pm, start, start + len, fn, ctx);
}
