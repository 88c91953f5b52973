/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TESTS_FAKE_DMA_H
#define MIRRORBALL_TESTS_FAKE_DMA_H

#include <errno.h>
#include <mirrorball/dma.h>
#include <mirrorball/range.h>
#include <stdlib.h>
#include <string.h>

/*
 * Guest memory as an array: [base, base + len) is RAM, nothing else is. The array is exactly as
 * large, so that a sanitizer sees an access beyond it. Counts what is mapped; a test asserts at its
 * end that fake_dma_n_mapped is 0.
 */
struct fake_dma {
	struct mb_dma dma;
	uint8_t *mem;
	uint64_t base, len;
	long n_mapped; /* atomic: maps less unmaps */
	/*
	 * Atomic sum over maps less unmaps of a value of gpa, len and dir: 0 if they came in equal
	 * pairs.
	 */
	uint64_t balance;

	/* [file_base, file_base + file_len) is no RAM, but can be read; file_gone: not any more. */
	uint8_t *file;
	uint64_t file_base, file_len;
	bool file_gone; /* atomic */

	/* Called before a range is discarded, if not NULL, on that thread; its value is the answer.
	 */
	int (*discards)(void *ctx, uint64_t gpa, uint64_t len);
	void *ctx;
};

static inline uint64_t fake_dma_mix(uint64_t gpa, uint64_t len, enum mb_dma_dir dir)
{
	uint64_t x = gpa * 0x9e3779b97f4a7c15ull + len * 0xc2b2ae3d27d4eb4full +
		     (dir ? 0x165667b1ull : 1);

	return x ^ x >> 29;
}

static inline int fake_dma_map(
	struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir, void **hva)
{
	struct fake_dma *fake = (struct fake_dma *)dma;

	if (dir == MB_DMA_READ && mb_range_inside(gpa, len, fake->file_base, fake->file_len))
		return -EXDEV;
	if (!mb_range_inside(gpa, len, fake->base, fake->len))
		return -EFAULT;
	*hva = fake->mem + (gpa - fake->base);
	__atomic_add_fetch(&fake->n_mapped, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&fake->balance, fake_dma_mix(gpa, len, dir), __ATOMIC_RELAXED);
	return 0;
}

static inline void fake_dma_unmap(
	struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir)
{
	struct fake_dma *fake = (struct fake_dma *)dma;

	if (mb_range_inside(gpa, len, fake->file_base, fake->file_len))
		return;
	__atomic_sub_fetch(&fake->n_mapped, 1, __ATOMIC_RELAXED);
	__atomic_sub_fetch(&fake->balance, fake_dma_mix(gpa, len, dir), __ATOMIC_RELAXED);
}

static inline int fake_dma_read(struct mb_dma *dma, uint64_t gpa, void *buf, uint64_t len)
{
	struct fake_dma *fake = (struct fake_dma *)dma;

	if (!mb_range_inside(gpa, len, fake->file_base, fake->file_len) ||
		__atomic_load_n(&fake->file_gone, __ATOMIC_RELAXED))
		return -EFAULT;
	memcpy(buf, fake->file + (gpa - fake->file_base), len);
	return 0;
}

static inline int fake_dma_discard(
	struct mb_dma *dma, uint64_t gpa, uint64_t len, uint64_t *done_bytes)
{
	struct fake_dma *fake = (struct fake_dma *)dma;
	uint64_t first = mb_align_up(gpa, 4096), end = (gpa + len) & ~4095ull;
	int rc = 0;

	if (!mb_range_inside(gpa, len, fake->base, fake->len))
		return -EFAULT;
	if (fake->discards)
		rc = fake->discards(fake->ctx, gpa, len);
	if (rc || first >= end)
		return rc;
	memset(fake->mem + (first - fake->base), 0, end - first);
	*done_bytes = end - first;
	return 0;
}

static const struct mb_dma_ops fake_dma_ops = {
	.map = fake_dma_map,
	.unmap = fake_dma_unmap,
	.read = fake_dma_read,
	.discard = fake_dma_discard,
};

static inline void fake_dma_init(struct fake_dma *fake, uint64_t base, uint64_t len)
{
	*fake = (struct fake_dma){.dma.ops = &fake_dma_ops, .base = base, .len = len};
	if (posix_memalign((void **)&fake->mem, 4096, len))
		abort();
	memset(fake->mem, 0, len);
}

static inline void fake_dma_finish(struct fake_dma *fake)
{
	free(fake->mem);
	fake->mem = NULL;
}

/* The guest's own pointer to its memory; not counted. */
static inline void *fake_dma_at(struct fake_dma *fake, uint64_t gpa)
{
	return fake->mem + (gpa - fake->base);
}

/* 0 when every map has met an unmap with the same values; otherwise how many are left (or -1). */
static inline long fake_dma_n_mapped(struct fake_dma *fake)
{
	long n = __atomic_load_n(&fake->n_mapped, __ATOMIC_RELAXED);

	return n || !__atomic_load_n(&fake->balance, __ATOMIC_RELAXED) ? n : -1;
}

#endif
