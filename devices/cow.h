/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_COW_H
#define MIRRORBALL_COW_H

#include <mirrorball/error.h>
#include <mirrorball/state.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * A disk that leaves its base as it is: what the guest writes goes to a second file, the delta.
 * Private to devices/.
 *
 *   volatile    an unlinked file, in which everything is where it is on the disk; gone at the end
 *   overlay     a qcow2 file (qcow2.h), which stays
 *
 * A map has an entry for each cluster (volatile: 4 KiB) with where it is. A cluster gets its place
 * in the delta with the first write to it and keeps it; who writes to it first fills it up from the
 * base. In between it is *claimed*: others that want to write there wait, others that read get what
 * was.
 *
 *   claim -> (read what is around it from the base) -> write to the delta -> settle
 *
 * This decides where; its user does the I/O. Every function may be called by any thread: one lock
 * protects the map, and is held for no I/O but the first change's.
 *
 * Power failure: entries get into the overlay's file at a flush only, after what they name is
 * durable. What was not flushed may be lost, but nothing else is changed by that. A volatile disk
 * has nothing to flush.
 */
struct mb_cow;

struct mb_cow_config {
	int base_fd; /* open for reading, locked; stays the caller's, and open; -1: there is no file
			(no overlay) */
	const char *base_path;
	uint64_t base_bytes;
	bool base_is_device;	  /* then nobody can tell by its times whether it was changed */
	const char *overlay_path; /* NULL: volatile */
	const char *dir; /* of a volatile delta; "": in memory; NULL: $TMPDIR or /var/tmp */
	bool dry;	 /* only look: an overlay that is not there is not made */
};

/*
 * Opens the overlay and locks it, or makes it where it is missing. -EINVAL: damaged, for another
 * base, or the base was changed since; err says what to do.
 */
int mb_cow_create(struct mb_cow **out, const struct mb_cow_config *config, struct mb_error *err);
/* Nothing is in flight any more. Writes what has not been written, closes the overlay. Takes NULL.
 */
void mb_cow_destroy(struct mb_cow *cow);

bool mb_cow_is_volatile(const struct mb_cow *cow);

/*
 * Of a volatile delta, for a snapshot: its clusters go to fd, an empty file. load: into a new one, on the same base.
 * Nothing is in flight. -ESTALE: the base was changed; -EINVAL: not such a state; -errno of the copying.
 */
int mb_cow_save(struct mb_cow *cow, int fd, struct mb_state_out *out, struct mb_error *err);
int mb_cow_load(struct mb_cow *cow, int fd, struct mb_state_in *in, struct mb_error *err);

uint64_t mb_cow_bytes(const struct mb_cow *cow); /* of the disk; of the base, or more */
int mb_cow_fd(const struct mb_cow *cow);	 /* the delta */

/*
 * Whether the base is what it was when it was opened: as long as it is, what was read from it
 * before the call was right. Once false it stays so, and is said in the log.
 */
bool mb_cow_base_holds(struct mb_cow *cow);

/* ---- reading ---- */

enum mb_cow_where { MB_COW_BASE, MB_COW_DELTA, MB_COW_ZERO };

struct mb_cow_run {
	enum mb_cow_where where;
	uint64_t at; /* in that file */
	uint64_t bytes;
};

/* Where what is at `offset` of the disk is, and as much behind it as is there in one piece; at most
 * len. */
void mb_cow_find(struct mb_cow *cow, uint64_t offset, uint64_t len, struct mb_cow_run *run);

/* ---- writing ---- */

/* Threads that wait, by what wakes them: an eventfd each. Caller's memory. */
struct mb_cow_queue {
	int wake_fd;
	struct mb_cow_waiter *woken, **woken_last; /* under the lock */
};

struct mb_cow_waiter {
	struct mb_cow_queue *queue;
	struct mb_cow_waiter *next;
};

enum mb_cow_step {
	MB_COW_WRITE,	/* [at, at + bytes) of the delta is the place */
	MB_COW_FILL,	/* the same, but the whole cluster has to be written: with what it is in the
			   base around it */
	MB_COW_PUNCH,	/* it may be given back to the file system */
	MB_COW_NOTHING, /* there is nothing to do for these bytes */
	MB_COW_WAIT,	/* somebody has it: the waiter is woken, and tries again */
};

/* What a write may do now. Between claim and settle it is the caller's. */
struct mb_cow_claim {
	enum mb_cow_step step;
	uint64_t at;	/* in the delta */
	uint64_t bytes; /* of the request that this is for */
	/* FILL: the cluster starts at `cluster_at` of the disk; of the last one a part is behind
	 * its end. */
	uint64_t cluster_at, cluster_bytes; /* WRITE: cluster_at, of the first one */
	uint64_t base_bytes; /* of these, at its start, are to be read from the base; the others are
				zero */
	uint64_t first, n;   /* clusters that are claimed */
	uint64_t skip;	     /* WRITE: bytes from the run's first cluster's start */
};

/* Claims the next part of a write to [offset, offset + len). -ENOSPC or another -errno: there is no
 * room for it. */
int mb_cow_claim(struct mb_cow *cow, uint64_t offset, uint64_t len, struct mb_cow_waiter *waiter,
	struct mb_cow_claim *claim);
/*
 * The same, to make zeroes of it. WRITE and FILL: of a part of a cluster, zeroes are to be written,
 * or nothing if the guest only discards.
 */
int mb_cow_claim_zeroes(struct mb_cow *cow, uint64_t offset, uint64_t len, bool discard,
	struct mb_cow_waiter *waiter, struct mb_cow_claim *claim);
/*
 * The write is over: of the claim's bytes in the delta, from the beginning, `written` are there (of
 * a PUNCH: all or nothing). Returns for how many bytes of the request that counts: whole clusters
 * only. *claim is nobody's then.
 */
uint64_t mb_cow_settle(struct mb_cow *cow, struct mb_cow_claim *claim, uint64_t written);

/* The waiters of a queue that were woken, in order: on its thread, when its eventfd says so. */
struct mb_cow_waiter *mb_cow_take_woken(struct mb_cow *cow, struct mb_cow_queue *queue);
/* None of the queue's waiters waits any more, or is woken; returns those that did, or were. */
struct mb_cow_waiter *mb_cow_forget(struct mb_cow *cow, struct mb_cow_queue *queue);

/* ---- making it durable ---- */

/* A flush in progress; zeroed before the first step. */
struct mb_cow_flush {
	bool runs;
	bool last;
	uint64_t needs;	   /* waits for this one to be over */
	uint64_t n_chunks; /* that are left to write */
};

enum mb_cow_flush_step {
	MB_COW_FLUSH_SYNC, /* fdatasync of the delta, then the next step */
	MB_COW_FLUSH_WAIT, /* for the one that is in progress: the waiter is woken, and tries again
			    */
	MB_COW_FLUSH_DONE,
};

/*
 * The next step of a flush, which covers what was settled before the first one. One is in progress
 * at a time; all that come meanwhile share the next. A step or -errno: it has failed, and is over.
 */
int mb_cow_flush(struct mb_cow *cow, struct mb_cow_flush *flush, struct mb_cow_waiter *waiter);
/*
 * It is given up after MB_COW_FLUSH_SYNC: the device is reset, or that failed. Then what was to be
 * durable may be lost: every flush is -EIO from then on, and the overlay keeps what it had.
 */
void mb_cow_flush_cancel(struct mb_cow *cow, struct mb_cow_flush *flush, bool failed);

#endif
