/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_SHARE_H
#define MIRRORBALL_SHARE_H

#include <mirrorball/error.h>
#include <mirrorball/heat.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * Sharing by provenance (design, section 5): what a guest has read of a disk's base is in memory once
 * for all machines of that base. Reading takes note of which page went where; a moment later a thread
 * asks the commons for these pages, and merges those that are still the same (replica.h). The guest's
 * own memory for them goes back to the host, until it writes there. And what the commons have is read
 * from memory.
 *
 * Where there is no daemon nothing is merged, and nobody waits.
 */
struct mb_share;
struct mb_replicas;

#define MB_SHARE_MAX_BASES 17u /* of disks, and a snapshot's memory */

struct mb_share_config {
	struct mb_replicas *replicas;
	const void *own_base; /* the mapping that devices read into, ram_bytes long */
	uint64_t ram_bytes;
	unsigned n_views; /* 1..MB_HEAT_VIEWS */
	/* Where each view's copies are best, by the kernel's numbers; on the thread, now and then. */
	void (*nodes)(void *ctx, unsigned node[MB_HEAT_VIEWS]);
	void *ctx;
	const char *socket;  /* of the commons; NULL: the usual places */
	bool start;	     /* a daemon may be started */
	uint64_t settle_ns;  /* after a page was read; 0: half a second */
	uint64_t patience_ns; /* with a daemon that does not answer; 0: 5 s */
};

int mb_share_create(const struct mb_share_config *config, struct mb_share **out, struct mb_error *err);
/* A base by a descriptor of it, which is copied; *base is its number. Before start. */
int mb_share_add_base(struct mb_share *share, int fd, unsigned *base, struct mb_error *err);
int mb_share_start(struct mb_share *share, struct mb_error *err);
/* Nothing is merged any more. What is merged stays. Takes NULL. */
void mb_share_stop(struct mb_share *share);
/* After all who read. Takes NULL. */
void mb_share_destroy(struct mb_share *share);

/*
 * Any thread: the first len bytes of these buffers, guest memory by way of own_base, were read from
 * `at` of the base. Costs a lock and a few stores; when nobody keeps up, the news is dropped.
 */
void mb_share_saw(struct mb_share *share, unsigned base, uint64_t at, const struct iovec *iov,
	unsigned n_iov, uint64_t len);
/* Any thread: whether the commons have all of it, and buf has it now. Only of files whose
 * times tell when they were written: on ext4, XFS and Btrfs. */
bool mb_share_read(struct mb_share *share, unsigned base, uint64_t at, void *buf, uint64_t len);

struct mb_share_stats {
	const char *state; /* for people */
	uint64_t merged_bytes;	/* now */
	uint64_t seen_bytes;	/* read from bases, so far: as whole pages */
	uint64_t common_bytes;	/* of that, from the commons' memory */
	uint64_t were_merged_bytes; /* so far; what was written since counts, too */
	uint64_t differed_bytes;    /* were written, or are used for something else, before that */
	uint64_t dropped_bytes;	    /* no room, no daemon, or nobody kept up */
};
void mb_share_stats(struct mb_share *share, struct mb_share_stats *stats);

#endif
