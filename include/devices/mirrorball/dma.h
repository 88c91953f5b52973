/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_DMA_H
#define MIRRORBALL_DMA_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * How devices reach guest memory: the one accessor for the monitor's own reads and writes (design,
 * section 3). The machine implements it over guest RAM; unit tests over an array. Any thread.
 *
 * A guest may change memory at any moment: copy each field once into a local and check the local.
 */
enum mb_dma_dir {
	MB_DMA_READ,  /* the device reads guest memory */
	MB_DMA_WRITE, /* the device may write it: a hold (design, section 3) until unmap */
};

struct mb_dma;

struct mb_dma_ops {
	int (*map)(struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir, void **hva);
	void (*unmap)(struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir);
	/* Of what map says -EXDEV of. NULL: there is no such memory. */
	int (*read)(struct mb_dma *dma, uint64_t gpa, void *buf, uint64_t len);
	/* NULL: all memory stays. */
	int (*discard)(struct mb_dma *dma, uint64_t gpa, uint64_t len, uint64_t *done_bytes);
};

struct mb_dma {
	const struct mb_dma_ops *ops;
};

/*
 * *hva: [gpa, gpa + len) of guest RAM, contiguous, until mb_dma_unmap with the same values. -EFAULT
 * if any byte of it is not guest RAM, if it is empty, or if it wraps. -EXDEV: all of it is memory
 * that only mb_dma_read reaches, and only for reading: a file's, which somebody may cut off at any
 * time.
 */
static inline int mb_dma_map(
	struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir, void **hva)
{
	return dma->ops->map(dma, gpa, len, dir, hva);
}

/* Of what is no RAM: nothing happens. */
static inline void mb_dma_unmap(struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir)
{
	dma->ops->unmap(dma, gpa, len, dir);
}

/*
 * The guest does not need what is in [gpa, gpa + len) any more: on return its whole pages read as
 * zero everywhere, and take no memory of the host until they are touched again. What is less than a
 * page at either end stays as it is, so that it may be that nothing is done. Also of what is mapped
 * for a device: addresses stay valid, and what an I/O in flight puts there may be lost. -EFAULT: not
 * all of it is guest RAM. -ENOTSUP, -errno: some of it, or all, is as it was. *done_bytes, in any
 * case: how much was discarded. Takes some 100 us for each 2 MiB.
 */
static inline int mb_dma_discard(
	struct mb_dma *dma, uint64_t gpa, uint64_t len, uint64_t *done_bytes)
{
	*done_bytes = 0;
	return dma->ops->discard ? dma->ops->discard(dma, gpa, len, done_bytes) : -ENOTSUP;
}

/* Copies; 0 or -EFAULT: buf may have been changed then, and guest memory has not. */
int mb_dma_read(struct mb_dma *dma, uint64_t gpa, void *buf, uint64_t len);
int mb_dma_write(struct mb_dma *dma, uint64_t gpa, const void *buf, uint64_t len);

#endif
