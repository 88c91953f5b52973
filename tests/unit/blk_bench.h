/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BLK_BENCH_H
#define BLK_BENCH_H

#include "virtio_driver.h"
#include <linux/virtio_blk.h>
#include <mirrorball/blk.h>

/* A machine with one disk, driven as a guest would drive it. Its tests' common part. */
#define FEATURE(bit) (1ull << (bit))
#define F_PACKED     FEATURE(VIRTIO_F_RING_PACKED)
#define F_EVENT	     FEATURE(VIRTIO_RING_F_EVENT_IDX)
#define F_INDIRECT   FEATURE(VIRTIO_RING_F_INDIRECT_DESC)
#define TIMEOUT_MS   20000
#define N_QUEUES     2

/* ---- a machine with one disk ---- */

struct bench {
	struct drv_machine m;
	struct drv_device dev;
	struct mb_loop *loops[N_QUEUES];
	struct mb_blk *blk;
	char path[64];
	const char *uri;	     /* NULL: it is the file `path` */
	unsigned n_queues;	     /* that it turned out to have, at most N_QUEUES */
	bool cow;		     /* of its mb_blk_config */
	const char *overlay;	     /* the same */
	uint64_t arena, arena_bytes; /* guest memory for buffers */
};

#define GPA_HEADER(b) ((b)->arena)
#define GPA_STATUS(b) ((b)->arena + 64)
#define GPA_DATA(b)   ((b)->arena + 4096)

void blk_make_file(char *path, const char *dir, uint64_t bytes);
int blk_try_create(struct bench *b, bool ro, struct mb_error *err);
void bench_init_path(struct bench *b, bool ro);
void bench_init(struct bench *b, const char *dir, uint64_t bytes);
void bench_start(struct bench *b, uint64_t features);
void bench_finish(struct bench *b);
uint8_t blk_run(struct bench *b, const struct fake_seg *segs, unsigned n, uint64_t status_gpa,
	uint32_t *written);
void blk_set_header(struct bench *b, uint32_t type, uint64_t sector);
uint8_t blk_request(struct bench *b, uint32_t type, uint64_t sector, uint32_t len);
uint8_t blk_range_request(
	struct bench *b, uint32_t type, uint64_t sector, uint32_t n_sectors, uint32_t flags);
void blk_fill(struct bench *b, uint8_t byte, uint32_t len);
bool blk_all_are(struct bench *b, uint8_t byte, uint32_t len);

/* ---- many at a time, against a shadow of the disk ---- */

#define N_SLOTS	   64
#define SLOT_BYTES (96u << 10)
#define GAP	   16u
#define DISK_BYTES (4u << 20)

struct slot {
	bool busy;
	uint32_t type;
	uint64_t offset, len;
	uint64_t header, data, status; /* GPAs */
	uint8_t fill;
	unsigned n_pieces; /* of data with GAP bytes between them; 0: there are none */
	uint32_t piece[8];
};

struct storm {
	struct bench b;
	uint64_t rng;
	uint8_t shadow[DISK_BYTES];
	struct slot slots[N_SLOTS];
	unsigned n_busy;
	bool gaps; /* buffers of some requests are not beside each other */
};

void storm_start(struct storm *s, unsigned index);
void storm_round(struct storm *s, unsigned n);

/* All of the disk is as the shadow has it. */
void storm_read_all(struct storm *s);

#endif
