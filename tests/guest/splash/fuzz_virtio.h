/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPLASH_FUZZ_VIRTIO_H
#define SPLASH_FUZZ_VIRTIO_H

#include "fuzz.h"

/* What the wild driver (fuzz_virtio.c) and the tame one (fuzz_request.c) share. */
#define MAX_TRIED_QUEUES 4u
#define DESC_NEXT	 1u
#define DESC_WRITE	 2u
#define DESC_INDIRECT	 4u
#define PACKED_AVAIL	 0x80u /* 2.8.6 */
#define PACKED_USED	 0x8000u
#define TYPE_BLOCK	 0x1042u
#define TYPE_BALLOON	 0x1045u

/* 2.7.5; a packed one (2.8.6) has id and flags where this has flags and next. */
struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct session {
	struct cpu *self;
	const struct fuzz_dev *dev;
	uint64_t common;
	uint8_t *ring;
	bool tame;
	bool packed;
	bool wrap;   /* packed ring: the driver's wrap counter, 2.8.1 */
	unsigned at; /* next descriptor of a tame driver */
	unsigned n_queues;
	unsigned size[MAX_TRIED_QUEUES];
	unsigned queue[MAX_TRIED_QUEUES];
};

static inline bool chance(struct session *s, unsigned one_in)
{
	return !rnd_below(s->self, one_in);
}

/* Puts one request that the device can do into queue i. */
void fuzz_request(struct session *s, unsigned i);

#endif
