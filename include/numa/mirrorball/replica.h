/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_REPLICA_H
#define MIRRORBALL_REPLICA_H

#include <mirrorball/error.h>
#include <mirrorball/heat.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * One page, a copy on several nodes (design, section 3): what vCPUs of several views read and
 * nobody writes is copied, and a view maps its copy instead of home. The first write from anywhere
 * makes it one page again before it is done; the guest cannot tell.
 *
 * At any moment a page is either writable and exactly one copy of it is reachable from every view,
 * or nobody can write it and every reachable copy is equal. tests/unit/test_replica_model.c
 * explores the steps and says what each of them is.
 *
 * Writes are trapped with a userfaultfd of its own, which writers wait on: vCPUs of KVM are in the
 * kernel then. The kernel and devices write pages behind page tables, untrapped; so whatever does
 * that holds the page meanwhile (mb_replicas_hold). All functions but create and destroy may be
 * called from any thread, with none of the caller's locks that a writer of guest memory through a
 * view might need.
 */
struct mb_replicas;

/* A fault took so long from when it was read to when its vCPU was woken: below 1 << i us. */
#define MB_REPLICA_BUCKETS 20u

/* System calls, for tests that have them fail. */
struct mb_replica_calls {
	void *(*map)(void *at, size_t len, int prot, int flags, int fd, off_t offset);
	int (*unmap)(void *at, size_t len);
	void *(*remap)(void *at, size_t old_len, size_t len, int flags, void *to);
	int (*control)(int fd, unsigned long request, void *arg);
	ssize_t (*read)(int fd, void *buf, size_t len, off_t offset);
	ssize_t (*write)(int fd, const void *buf, size_t len, off_t offset);
	long (*move_pages)(int pid, unsigned long n, void **page, const int *node, int *status,
		int flags);
};

struct mb_replicas_config {
	const char *name; /* in messages; outlives it */
	int uffd;   /* of mb_replicas_open_uffd; closed by destroy, or by a create that fails */
	int ram_fd; /* home */
	uint64_t ram_bytes;		/* a multiple of MB_HEAT_BLOCK_BYTES */
	unsigned n_views;		/* 1..MB_HEAT_VIEWS; with one, pages are merged only */
	void *view_base[MB_HEAT_VIEWS]; /* where each view has all of the file, mapped shared */
	/* The same for who reads and holds memory himself; NULL: nobody, and nothing is merged. */
	void *own_base;
	int view_node[MB_HEAT_VIEWS];	/* of the host, where its copies should be; -1: anywhere */
	bool view_has_more_nodes[MB_HEAT_VIEWS]; /* a copy on another one may be as good */
	uint64_t max_bytes;		/* of all copies */
	/* Mappings that replicas may add to the process'; 0: half of vm.max_map_count. */
	uint64_t max_mappings;
	uint64_t backoff_ns; /* after the first collapse by a write; 0: 1 s */
	/*
	 * A part of a view shows home again, in a mapping of its own that nobody watches: the
	 * tracker watches it (again). Under a lock: takes none, and calls nothing here. NULL:
	 * nobody does.
	 */
	void (*watch)(void *ctx, unsigned view, uint64_t offset, uint64_t len);
	void *ctx;
	const struct mb_replica_calls *calls; /* NULL: the kernel's */
};

/*
 * A userfaultfd for writes from within KVM. Before privileges are dropped: it needs
 * /dev/userfaultfd, CAP_SYS_PTRACE or vm.unprivileged_userfaultfd. user_mode_only: no vCPU of
 * KVM's, but no privilege, for tests. A descriptor, or -errno; -ENOTSUP where the kernel cannot
 * protect shared memory (before 5.19).
 */
int mb_replicas_open_uffd(bool user_mode_only);

int mb_replicas_create(
	const struct mb_replicas_config *config, struct mb_replicas **out, struct mb_error *err);
/* All of it is at home again, and vCPUs may go on. Takes NULL. */
void mb_replicas_destroy(struct mb_replicas *replicas);

/* What became of each byte; they add up to the length. */
struct mb_replicated {
	uint64_t copied_bytes;	/* every view that was asked for has its copy, or is protected */
	uint64_t there_bytes;	/* had copies already, of any view: that stays as it is */
	uint64_t waiting_bytes; /* written not long ago: backs off */
	uint64_t held_bytes;	/* held, or written meanwhile */
	uint64_t full_bytes;	/* no room: the bound of bytes, or of mappings */
	uint64_t failed_bytes;	/* a system call failed; it is at home */
	uint64_t hole_bytes;	/* no memory is behind it: there is nothing to copy */
};

/*
 * Gives each view of `views` (bit k: view k) its own copy of [offset, offset + len), multiples of
 * 4 KiB. A view that gets none reads home. Adds to *done. -EINVAL: no such range or views.
 */
int mb_replicas_replicate(struct mb_replicas *replicas, uint64_t offset, uint64_t len,
	unsigned views, struct mb_replicated *done);

/*
 * That in two halves, for memory of which it is not known what is written: all of it is protected,
 * and what is written from now on shows itself, page by page, as if it had a copy. What is left
 * after a while gets its copies, for which writers wait then, and what is not left counts as
 * waiting. Neither: it is as if it had no copies, but in small pages, until somebody writes it.
 */
int mb_replicas_protect(
	struct mb_replicas *replicas, uint64_t offset, uint64_t len, struct mb_replicated *done);
int mb_replicas_finish(struct mb_replicas *replicas, uint64_t offset, uint64_t len, unsigned views,
	struct mb_replicated *done);

/*
 * Pages of a file in memory that other machines map, too: what equals guest memory takes its place,
 * and home's own memory goes back to the host. The first write makes it the guest's alone, by way of
 * a copy. fd: sealed, so that nobody can change it (F_SEAL_SHRINK, and F_SEAL_FUTURE_WRITE or
 * F_SEAL_WRITE; whoever can write it by a mapping that is older has promised not to). It may be
 * closed when the call returns. Offset: of the first byte.
 */
struct mb_replicas_source {
	int fd;
	uint64_t offset;
};

/* What became of each byte; they add up to the length. */
struct mb_merged {
	uint64_t merged_bytes;
	uint64_t there_bytes;	 /* were merged, had copies or were protected already: stay as they are */
	uint64_t waiting_bytes;	 /* written not long ago: back off */
	uint64_t held_bytes;	 /* held, or somebody writes there; it may be tried again */
	uint64_t differs_bytes;	 /* are something else */
	uint64_t full_bytes;	 /* no room for mappings */
	uint64_t failed_bytes;	 /* a system call failed; home has them */
};

/*
 * Merges what is equal in [offset, offset + len), multiples of 4 KiB, page by page; one source for
 * each view, best on its node. Adds to *done. -EINVAL: no such range; -EPERM: a source is not sealed,
 * or shorter.
 */
int mb_replicas_merge(struct mb_replicas *replicas, uint64_t offset, uint64_t len,
	const struct mb_replicas_source *source, struct mb_merged *done);
/*
 * The same with many runs of guest memory that are near each other in the files, for fewer system calls:
 * begin with all of the files that is needed (meanwhile it takes page tables, a 256th for each view);
 * then each run, `at` bytes from what the sources begin with, best in ascending order of that; then
 * end. One thread. begin: -EPERM, -EINVAL as above; -ENOMEM. run: -EINVAL. end takes NULL.
 */
struct mb_merging;
int mb_replicas_merge_begin(struct mb_replicas *replicas, const struct mb_replicas_source *source,
	uint64_t len, struct mb_merging **out);
int mb_replicas_merge_run(struct mb_merging *merging, uint64_t offset, uint64_t at, uint64_t len,
	struct mb_merged *done);
void mb_replicas_merge_end(struct mb_merging *merging);
/* Whether any page there is merged, all in 2 MiB; as of about now. Takes NULL. */
bool mb_replicas_is_merged(const struct mb_replicas *replicas, uint64_t offset, uint64_t len);

/* What became of each byte; they add up to the length. */
struct mb_punched {
	uint64_t punched_bytes;
	uint64_t hole_bytes;	/* had no memory before */
	uint64_t away_bytes;	/* have copies, are protected or merged: stay as they are */
	uint64_t waiting_bytes; /* written not long ago: back off */
	uint64_t held_bytes;	/* held, pinned, or somebody writes there */
	uint64_t differs_bytes; /* are not zero */
	uint64_t failed_bytes;	/* a system call failed, or there are too many mappings; home has them */
};

/*
 * Pages of zeroes in [offset, offset + len), multiples of 4 KiB, give their memory back to the host,
 * until somebody touches them. Writers of them wait meanwhile, some 0.5 ms for 2 MiB; so it is for
 * what nobody has written for a while. Adds to *done. -EINVAL: no such range, or no own_base.
 */
int mb_replicas_punch(
	struct mb_replicas *replicas, uint64_t offset, uint64_t len, struct mb_punched *done);

/* No page of it has a copy then, nor is merged. -EINVAL; -ENOMEM when that failed for 10 s. Takes NULL. */
int mb_replicas_collapse(struct mb_replicas *replicas, uint64_t offset, uint64_t len);

/* The same but of what is merged, which stays so: it takes no memory. Takes NULL. */
int mb_replicas_collapse_copies(struct mb_replicas *replicas, uint64_t offset, uint64_t len);

/*
 * Collapses copies in blocks of which one of these views (bits) has some until so many bytes are given back,
 * or one collapse fails; returns how many were. Takes NULL.
 */
uint64_t mb_replicas_reclaim(struct mb_replicas *replicas, uint64_t bytes, unsigned views);

/* No more copies than there are now, ever again. Takes NULL. */
void mb_replicas_no_more(struct mb_replicas *replicas);

/*
 * Where copies of this view should be that are made from now on; those there are become old.
 * -EINVAL: no such view; -errno of mmap(2), mbind(2).
 */
int mb_replicas_set_node(struct mb_replicas *replicas, unsigned view, unsigned node);

/*
 * Collapses up to n blocks of 2 MiB that had copies when a view's node was last set, of whatever
 * views: which nodes need copies, and where home should be, is to be decided anew. False when none
 * is left, which comes however many copies others make: it goes over all blocks once, and what
 * could not be collapsed stays. One thread at a time. Takes NULL.
 */
bool mb_replicas_reclaim_old(struct mb_replicas *replicas, unsigned n);

/*
 * From the return of hold to release with the same range no page in it has a copy, nor any in the
 * same 2 MiB gets one: for who writes home itself. Counted. Cheap where there is no copy. -ENOMEM
 * when a collapse failed for 10 s, and then it is not held. Take NULL.
 */
int mb_replicas_hold(struct mb_replicas *replicas, uint64_t offset, uint64_t len);
void mb_replicas_release(struct mb_replicas *replicas, uint64_t offset, uint64_t len);

/*
 * The same for who reads home, as a device that has been told where it is: what is there may have
 * copies, but does not become merged. Never fails, and waits only while somebody merges there.
 */
void mb_replicas_pin(struct mb_replicas *replicas, uint64_t offset, uint64_t len);
void mb_replicas_unpin(struct mb_replicas *replicas, uint64_t offset, uint64_t len);

/*
 * From now on, until false: what is merged is not filled when that ends, but is zeroes. For when the
 * contents of all guest memory do not matter any more, and nobody is left who reads it. Takes NULL.
 */
void mb_replicas_discard(struct mb_replicas *replicas, bool discard);

/*
 * Whether huge pages are unwanted in the block at this offset, in what is mapped anew from now on:
 * its neighbours are mapped so, and would be other mappings. Takes NULL.
 */
void mb_replicas_keep_small(struct mb_replicas *replicas, uint64_t offset, bool small);

/* Maps home anew in this view, for huge pages; not in a block where pages have copies. -ENOMEM. */
int mb_replicas_remap(struct mb_replicas *replicas, unsigned view, uint64_t offset, uint64_t len);

/*
 * Which share of it, 0 to 1, the view reads from a copy of its own; as of about now. 0 of what is no
 * range or view. Costs a load for each 2 MiB, and for each page of parts of them. Takes NULL.
 */
float mb_replicas_share(
	const struct mb_replicas *replicas, uint64_t offset, uint64_t len, unsigned view);

struct mb_replicas_stats {
	uint64_t bytes, max_bytes;	 /* of copies, now */
	uint64_t view_bytes[MB_HEAT_VIEWS]; /* that each view reads from a copy, now */
	uint64_t mappings, max_mappings; /* that they add */
	uint64_t copied_bytes;		 /* of copies, so far */
	uint64_t merged_bytes;		 /* now: that take no memory of the guest's own */
	uint64_t n_faults;		 /* writes that were waited for */
	uint64_t n_collapsed;		 /* pages that were one again because of them */
	uint64_t n_failures;		 /* system calls */
	uint64_t fault_ns;		 /* all of them, and the longest */
	uint64_t longest_ns;
	uint64_t faults_below_us[MB_REPLICA_BUCKETS]; /* the last: all others, too */
};
void mb_replicas_stats(struct mb_replicas *replicas, struct mb_replicas_stats *stats);

#endif
