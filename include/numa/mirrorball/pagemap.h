/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_PAGEMAP_H
#define MIRRORBALL_PAGEMAP_H

#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* 5.14 */
#endif

/*
 * What Linux knows of the pages of a mapping of guest RAM: which are in its page tables, in huge
 * pages or not, and which were written. A page that is taken out of the page tables of a view and
 * is in them again was touched by a vCPU of that view (design, section 4.1). KVM's own tables
 * follow through its MMU notifier.
 *
 * One thread at a time. Addresses and lengths are multiples of MB_PAGE_BYTES.
 */
#define MB_PAGE_BYTES 4096ull
#define MB_HUGE_BYTES 0x200000ull

struct mb_pagemap;

enum mb_pagemap_feature {
	MB_PAGEMAP_SCAN = 1 << 0, /* PAGEMAP_SCAN (Linux 6.7): fast, and tells huge pages */
	MB_PAGEMAP_WRITES =
		1 << 1, /* tells written pages (userfaultfd's asynchronous write protection, 6.7) */
	MB_PAGEMAP_EXACT =
		1 << 2, /* a fault maps its own page only: fault-around is off in what is watched */
	MB_PAGEMAP_ALL = (1 << 3) - 1,
};

/*
 * want: the features to use if the kernel has them, MB_PAGEMAP_ALL but in tests. Without any it
 * still tells mapped pages, by reading /proc/self/pagemap. Needs no privilege. -errno where that
 * cannot be opened.
 */
int mb_pagemap_open(unsigned want, struct mb_pagemap **out, struct mb_error *err);
void mb_pagemap_close(struct mb_pagemap *pm);		   /* takes NULL */
unsigned mb_pagemap_features(const struct mb_pagemap *pm); /* of enum mb_pagemap_feature */

/*
 * Watches [base, base + len) (again, where a watched part was mapped anew) until the pagemap is closed, which must come before it is unmapped.
 * -EINVAL unless all of it is mapped shared: taking pages out of a private mapping would lose what
 * is in them. A userfaultfd that the kernel does not give for it takes MB_PAGEMAP_WRITES and
 * MB_PAGEMAP_EXACT from the features; that is no error.
 */
int mb_pagemap_watch(struct mb_pagemap *pm, void *base, uint64_t len);

/*
 * The same for a part of what is watched that was mapped anew, where the kernel need not be asked
 * what it is. From any thread. If it fails, what is written there is not seen: a page counts as
 * written.
 */
void mb_pagemap_watch_again(const struct mb_pagemap *pm, void *at, uint64_t len);

/*
 * Takes the pages out of the page tables of this mapping, and so of the KVM address space that
 * shows it. They stay in memory. [at, at + len) must be watched: -EINVAL. A zapped huge page counts
 * as written when it is mapped again.
 */
int mb_pagemap_zap(struct mb_pagemap *pm, void *at, uint64_t len);

/*
 * As mb_pagemap_zap for a huge page, or for small ones; they are then mapped one by one as they are
 * touched, as not written until they are, until the 2 MiB are mapped anew (mmap(2)) and watched
 * again. -ENOTSUP without MB_PAGEMAP_WRITES; -ENOENT: a part of it is mapped anew and not watched
 * again yet.
 */
int mb_pagemap_split(struct mb_pagemap *pm, void *at, uint64_t len);

/* Pages that are mapped now count as not written until a write. Does nothing without
 * MB_PAGEMAP_WRITES. -ENOENT as above. */
int mb_pagemap_clean(struct mb_pagemap *pm, void *at, uint64_t len);

/* Pages side by side that are alike. */
struct mb_page_run {
	uint64_t offset; /* from `at` */
	uint64_t len;
	bool huge;    /* mapped as huge pages; only with MB_PAGEMAP_SCAN */
	bool written; /* since mb_pagemap_clean; only with MB_PAGEMAP_WRITES, otherwise true: it may
			 have been */
};

/* Calls fn for each run of mapped pages, in order. 0 or -errno, or what fn returned if that is not
 * 0. */
int mb_pagemap_look(struct mb_pagemap *pm, const void *at, uint64_t len,
	int (*fn)(void *ctx, const struct mb_page_run *run), void *ctx);

#endif
