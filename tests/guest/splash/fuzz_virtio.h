/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPLASH_FUZZ_VIRTIO_H
#define SPLASH_FUZZ_VIRTIO_H

#include "fuzz.h"

/* What the wild driver (fuzz_virtio.c), the tame one (fuzz_request.c) and a real one (disk.c) share. */
#define MAX_TRIED_QUEUES 4u
#define DESC_NEXT	 1u
#define DESC_WRITE	 2u
#define DESC_INDIRECT	 4u
#define PACKED_AVAIL	 0x80u /* 2.8.6 */
#define PACKED_USED	 0x8000u
#define TYPE_BLOCK	 0x1042u
#define TYPE_BALLOON	 0x1045u

/* Common configuration, 4.1.4.3. */
enum {
	DEVICE_FEATURE_SELECT = 0x00,
	DEVICE_FEATURE = 0x04,
	DRIVER_FEATURE_SELECT = 0x08,
	DRIVER_FEATURE = 0x0c,
	CONFIG_VECTOR = 0x10,
	NUM_QUEUES = 0x12,
	STATUS = 0x14,
	QUEUE_SELECT = 0x16,
	QUEUE_SIZE = 0x18,
	QUEUE_VECTOR = 0x1a,
	QUEUE_ENABLE = 0x1c,
	QUEUE_NOTIFY_OFF = 0x1e,
	QUEUE_DESC = 0x20,
	QUEUE_DRIVER = 0x28,
	QUEUE_DEVICE = 0x30,
};

/* 2.1 */
#define ACKNOWLEDGE	 1u
#define DRIVER		 2u
#define DRIVER_OK	 4u
#define FEATURES_OK	 8u

#define F_VERSION_1 (1ull << 32)

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
