/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BALLOON_H
#define MIRRORBALL_BALLOON_H

#include <mirrorball/virtio.h>

/*
 * A virtio memory balloon (virtio 1.2, 5.5) for what its driver tells by itself: which memory the
 * guest has freed (free page reporting, 5.5.6.7). That is discarded (dma.h) before it is given
 * back. The balloon as such stays empty: nothing is ever asked of the guest.
 */
struct mb_balloon;

/* Discarding takes its time: a loop that nobody waits for. It must outlive the device. */
int mb_balloon_create(struct mb_pci_bus *pci, struct mb_dma *dma, struct mb_loop *loop,
	struct mb_balloon **out, struct mb_error *err);
void mb_balloon_destroy(struct mb_balloon *balloon); /* takes NULL */
void mb_balloon_reset(struct mb_balloon *balloon);
/* For a snapshot (virtio.h); vCPUs paused. load: into a new one, -EINVAL: it is no such state. */
int mb_balloon_pause(struct mb_balloon *balloon, uint64_t timeout_ns, struct mb_error *err);
void mb_balloon_resume(struct mb_balloon *balloon);
void mb_balloon_save(struct mb_balloon *balloon, struct mb_state_out *out);
int mb_balloon_load(struct mb_balloon *balloon, struct mb_state_in *in, struct mb_error *err);

struct mb_balloon_stats {
	bool reporting;		  /* the guest's driver does so now */
	uint64_t reported_bytes;  /* so far; memory that is freed again counts again */
	uint64_t discarded_bytes; /* of these: not parts of pages, nor what should keep a value */
	uint64_t n_failures;	  /* reports of which not all could be discarded */
};
/* Any thread. */
void mb_balloon_stats(const struct mb_balloon *balloon, struct mb_balloon_stats *stats);

#endif
