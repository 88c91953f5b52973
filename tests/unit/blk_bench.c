// SPDX-License-Identifier: Apache-2.0
#include "blk_bench.h"
#include "run.h"
#include <errno.h>
#include <mirrorball/range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void blk_make_file(char *path, const char *dir, uint64_t bytes)
{
	int fd;

	strcpy(stpcpy(path, dir), "/mb-blk-XXXXXX");
	fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
}

int blk_try_create(struct bench *b, bool ro, struct mb_error *err)
{
	struct mb_blk_config config = {
		.path = b->uri ? b->uri : b->path,
		.readonly = ro,
		.direct = true,
		.cow = b->cow,
		.overlay = b->overlay,
		.n_queues = N_QUEUES,
		.loops = b->loops,
	};

	return mb_blk_create(b->m.pci, &b->m.ram.dma, &config, &b->blk, err);
}

void bench_init_path(struct bench *b, bool ro)
{
	struct mb_error err;

	drv_machine_init(&b->m, 24u << 20);
	for (unsigned i = 0; i < N_QUEUES; i++) {
		ck_assert_int_eq(mb_loop_create(&b->loops[i], &err), 0);
		ck_assert_int_eq(mb_loop_start_thread(b->loops[i], "blk", NULL, &err), 0);
	}
	ck_assert_msg(!blk_try_create(b, ro, &err), "%s", err.text);
	drv_open(&b->dev, &b->m, 1);
	b->n_queues = mb_blk_n_queues(b->blk);
}

void bench_init(struct bench *b, const char *dir, uint64_t bytes)
{
	memset(b, 0, sizeof(*b));
	blk_make_file(b->path, dir, bytes);
	bench_init_path(b, false);
}

void bench_start(struct bench *b, uint64_t features)
{
	ck_assert(drv_start(&b->dev, features & drv_offered(&b->dev), b->n_queues, 128));
	if (!b->arena) {
		b->arena_bytes = 8u << 20;
		b->arena = drv_alloc(&b->m, b->arena_bytes, 4096);
	}
}

void bench_finish(struct bench *b)
{
	mb_blk_destroy(b->blk);
	for (unsigned i = 0; i < N_QUEUES; i++)
		mb_loop_destroy(b->loops[i]);
	drv_close(&b->dev);
	drv_machine_finish(&b->m);
	unlink(b->path);
}

/* ---- one request at a time, in plain buffers ---- */

uint8_t blk_run(struct bench *b, const struct fake_seg *segs, unsigned n, uint64_t status_gpa,
	uint32_t *written)
{
	uint8_t *status = drv_at(&b->m, status_gpa);
	void *cookie;

	*status = 0xee;
	ck_assert(drv_add(&b->dev.queue[0], segs, n, false, b));
	drv_kick(&b->dev.queue[0]);
	ck_assert(drv_wait(&b->dev.queue[0], &cookie, written, TIMEOUT_MS));
	ck_assert_ptr_eq(cookie, b);
	return *status;
}

void blk_set_header(struct bench *b, uint32_t type, uint64_t sector)
{
	struct virtio_blk_outhdr *header = drv_at(&b->m, GPA_HEADER(b));

	*header = (struct virtio_blk_outhdr){.type = type, .sector = sector};
}

uint8_t blk_request(struct bench *b, uint32_t type, uint64_t sector, uint32_t len)
{
	bool in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
	struct fake_seg segs[3] = {
		{.gpa = GPA_HEADER(b), .len = 16},
		{.gpa = GPA_DATA(b), .len = len, .in = in},
		{.gpa = GPA_STATUS(b), .len = 1, .in = true},
	};
	uint32_t written;

	blk_set_header(b, type, sector);
	if (!len)
		segs[1] = segs[2];
	return blk_run(b, segs, len ? 3 : 2, GPA_STATUS(b), &written);
}

uint8_t blk_range_request(
	struct bench *b, uint32_t type, uint64_t sector, uint32_t n_sectors, uint32_t flags)
{
	struct virtio_blk_discard_write_zeroes *seg = drv_at(&b->m, GPA_DATA(b));

	*seg = (struct virtio_blk_discard_write_zeroes){
		.sector = sector, .num_sectors = n_sectors, .flags = flags};
	return blk_request(b, type, 0, sizeof(*seg));
}

void blk_fill(struct bench *b, uint8_t byte, uint32_t len)
{
	memset(drv_at(&b->m, GPA_DATA(b)), byte, len);
}

bool blk_all_are(struct bench *b, uint8_t byte, uint32_t len)
{
	const uint8_t *data = drv_at(&b->m, GPA_DATA(b));

	for (uint32_t i = 0; i < len; i++)
		if (data[i] != byte)
			return false;
	return true;
}

static uint32_t rnd(struct storm *s, uint32_t below)
{
	s->rng ^= s->rng << 13;
	s->rng ^= s->rng >> 7;
	s->rng ^= s->rng << 17;
	return (uint32_t)(s->rng >> 32) % below;
}

static bool overlaps_busy(const struct storm *s, uint64_t offset, uint64_t len)
{
	for (unsigned i = 0; i < N_SLOTS; i++)
		if (s->slots[i].busy &&
			mb_range_overlap(offset, len, s->slots[i].offset, s->slots[i].len))
			return true;
	return false;
}

/* Cuts [gpa, gpa + len) into segments at random places. */
static unsigned cut(
	struct storm *s, struct fake_seg *segs, unsigned max, uint64_t gpa, uint64_t len, bool in)
{
	unsigned n = 0;

	while (len) {
		uint64_t part = len;

		if (n + 1 < max && rnd(s, 3))
			part = rnd(s, 2) ? 1 + rnd(s, (uint32_t)len) : 512ull * (1 + rnd(s, 8));
		if (part > len)
			part = len;
		segs[n++] = (struct fake_seg){.gpa = gpa, .len = (uint32_t)part, .in = in};
		gpa += part;
		len -= part;
	}
	return n;
}

/* Moves what lies in one piece apart, and back. */
static void make_gaps(struct storm *s, struct slot *slot, struct fake_seg *segs, unsigned n)
{
	uint64_t at = slot->data + slot->len;

	slot->n_pieces = n;
	for (unsigned i = n; i--;) {
		slot->piece[i] = segs[i].len;
		at -= segs[i].len;
		segs[i].gpa += i * GAP;
		memmove(drv_at(&s->b.m, segs[i].gpa), drv_at(&s->b.m, at), segs[i].len);
	}
}

static void close_gaps(struct storm *s, struct slot *slot)
{
	uint64_t at = slot->data;

	for (unsigned i = 0; i < slot->n_pieces; i++) {
		memmove(drv_at(&s->b.m, at), drv_at(&s->b.m, at + i * GAP), slot->piece[i]);
		at += slot->piece[i];
	}
	slot->n_pieces = 0;
}

void storm_start(struct storm *s, unsigned index)
{
	struct slot *slot = &s->slots[index];
	struct drv_machine *m = &s->b.m;
	uint64_t base = s->b.arena + (uint64_t)index * SLOT_BYTES;
	struct virtio_blk_outhdr header = {0};
	struct virtio_blk_discard_write_zeroes range = {0};
	struct fake_seg segs[40];
	unsigned n = 0, n_data;
	bool out, together = rnd(s, 2), aligned = rnd(s, 2);

	static const uint32_t types[] = {VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_IN,
		VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_WRITE_ZEROES};

	slot->type = types[rnd(s, 6)];
	if (slot->type == VIRTIO_BLK_T_FLUSH && rnd(s, 4))
		slot->type = VIRTIO_BLK_T_IN; /* a flush takes longer than all the rest */
	slot->len = 512ull * (1 + rnd(s, rnd(s, 4) ? 16 : 160));
	slot->offset = 512ull * rnd(s, (uint32_t)((DISK_BYTES - slot->len) / 512 + 1));
	if (slot->type == VIRTIO_BLK_T_FLUSH)
		slot->len = 0;
	slot->n_pieces = 0;
	if (overlaps_busy(s, slot->offset, slot->len))
		return;
	out = slot->type != VIRTIO_BLK_T_IN && slot->len;
	slot->fill = (uint8_t)rnd(s, 256);
	header.type = slot->type;
	header.sector = slot->type == VIRTIO_BLK_T_WRITE_ZEROES ? 0 : slot->offset / 512;
	slot->data = base + 4096 + (aligned ? 0 : rnd(s, 600));
	if (slot->type == VIRTIO_BLK_T_OUT)
		for (uint64_t i = 0; i < slot->len; i++)
			*(uint8_t *)drv_at(m, slot->data + i) =
				(uint8_t)(slot->fill + i / 512 * 7 + i);
	else if (slot->type == VIRTIO_BLK_T_IN)
		memset(drv_at(m, slot->data), ~slot->fill, slot->len);
	range.sector = slot->offset / 512;
	range.num_sectors = (uint32_t)(slot->len / 512);
	range.flags = rnd(s, 2);
	if (slot->type == VIRTIO_BLK_T_WRITE_ZEROES)
		memcpy(drv_at(m, slot->data), &range, sizeof(range));

	/* Header and out-data, and in-data and status, in one run of memory or apart. */
	slot->header = out && together ? slot->data - 16 : base;
	memcpy(drv_at(m, slot->header), &header, 16);
	slot->status =
		slot->type == VIRTIO_BLK_T_IN && together ? slot->data + slot->len : base + 64;
	*(uint8_t *)drv_at(m, slot->status) = 0xee;
	if (out) {
		uint64_t len = slot->type == VIRTIO_BLK_T_OUT ? slot->len : sizeof(range);

		if (together) {
			n += cut(s, segs + n, 12, slot->header, 16 + len, false);
		} else {
			n += cut(s, segs + n, 4, slot->header, 16, false);
			n_data = cut(s, segs + n, 8, slot->data, len, false);
			if (s->gaps && slot->type == VIRTIO_BLK_T_OUT)
				make_gaps(s, slot, segs + n, n_data);
			n += n_data;
		}
		segs[n++] = (struct fake_seg){.gpa = slot->status, .len = 1, .in = true};
	} else {
		n += cut(s, segs + n, 4, slot->header, 16, false);
		if (together && slot->len) {
			n += cut(s, segs + n, 8, slot->data, slot->len + 1, true);
		} else {
			n_data = slot->len ? cut(s, segs + n, 8, slot->data, slot->len, true) : 0;
			if (s->gaps)
				make_gaps(s, slot, segs + n, n_data);
			n += n_data;
			segs[n++] = (struct fake_seg){.gpa = slot->status, .len = 1, .in = true};
		}
	}
	if (slot->type == VIRTIO_BLK_T_FLUSH)
		slot->status = segs[n - 1].gpa;
	if (!drv_add(&s->b.dev.queue[index % s->b.n_queues], segs, n,
		    s->b.dev.features & F_INDIRECT && rnd(s, 2), slot))
		return;
	slot->busy = true;
	s->n_busy++;
	if (slot->type == VIRTIO_BLK_T_OUT)
		for (uint64_t i = 0; i < slot->len; i++)
			s->shadow[slot->offset + i] = (uint8_t)(slot->fill + i / 512 * 7 + i);
	else if (slot->type == VIRTIO_BLK_T_WRITE_ZEROES)
		memset(s->shadow + slot->offset, 0, slot->len);
}

static bool reap_slot(struct storm *s, unsigned queue, int timeout_ms)
{
	struct slot *slot;
	uint32_t written;
	void *cookie;

	if (!drv_wait(&s->b.dev.queue[queue], &cookie, &written, timeout_ms))
		return false;
	slot = cookie;
	ck_assert(slot->busy);
	ck_assert_uint_eq(*(uint8_t *)drv_at(&s->b.m, slot->status), VIRTIO_BLK_S_OK);
	if (slot->type == VIRTIO_BLK_T_IN) {
		ck_assert_uint_eq(written, slot->len + 1);
		close_gaps(s, slot);
		ck_assert_int_eq(
			memcmp(drv_at(&s->b.m, slot->data), s->shadow + slot->offset, slot->len),
			0);
	} else {
		ck_assert_uint_eq(written, 1);
	}
	slot->busy = false;
	s->n_busy--;
	return true;
}

void storm_round(struct storm *s, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		unsigned index = rnd(s, N_SLOTS);

		if (!s->slots[index].busy)
			storm_start(s, index);
		if (!rnd(s, 8))
			for (unsigned q = 0; q < s->b.n_queues; q++)
				drv_kick(&s->b.dev.queue[q]);
		reap_slot(s, rnd(s, s->b.n_queues), 0);
	}
	for (unsigned q = 0; q < s->b.n_queues; q++)
		drv_kick(&s->b.dev.queue[q]);
	while (s->n_busy) {
		uint64_t n_before = s->n_busy;

		for (unsigned q = 0; q < s->b.n_queues; q++)
			while (reap_slot(s, q, 1))
				;
		if (n_before == s->n_busy)
			for (unsigned q = 0; q < s->b.n_queues; q++) {
				bool mine = false;

				for (unsigned i = q; i < N_SLOTS; i += s->b.n_queues)
					mine |= s->slots[i].busy;
				if (mine)
					ck_assert(reap_slot(s, q, TIMEOUT_MS));
			}
	}
}

void storm_read_all(struct storm *s)
{
	struct bench *b = &s->b;

	for (uint64_t at = 0; at < DISK_BYTES; at += 64 << 10) {
		blk_fill(b, 0xee, 64 << 10);
		ck_assert_uint_eq(
			blk_request(b, VIRTIO_BLK_T_IN, at / 512, 64 << 10), VIRTIO_BLK_S_OK);
		ck_assert_int_eq(memcmp(drv_at(&b->m, GPA_DATA(b)), s->shadow + at, 64 << 10), 0);
	}
}
