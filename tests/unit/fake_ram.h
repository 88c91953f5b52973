/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_FAKE_RAM_H
#define MIRRORBALL_FAKE_RAM_H

#include <errno.h>
#include <mirrorball/ram.h>
#include <mirrorball/range.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * Guest RAM without a VM, for what writes a guest before it runs: low RAM is a sparse mapping with
 * a hole behind it, high RAM is a number. The functions of ram.c that are not here are not linked
 * in. One test program may include it once.
 */
#define FAKE_RAM_GUARD 0x10000u

struct mb_ram {
	struct mb_dma dma;
	uint64_t low_bytes;
	uint64_t high_bytes;
	uint8_t *mem;
	int load_rc;	       /* what mb_ram_load answers, when not 0 */
	uint64_t loaded_bytes; /* by mb_ram_load */
	uint64_t lowest_write; /* of what went to 1 MiB and above: by mb_ram_load or mb_dma_map */
	uint64_t highest_write;
};

static void fake_ram_note(struct mb_ram *ram, uint64_t gpa, uint64_t len)
{
	if (gpa < 0x100000)
		return;
	if (gpa < ram->lowest_write)
		ram->lowest_write = gpa;
	if (gpa + len > ram->highest_write)
		ram->highest_write = gpa + len;
}

static int fake_ram_map(
	struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir, void **hva)
{
	struct mb_ram *ram = (struct mb_ram *)dma;

	if (!mb_range_inside(gpa, len, 0, ram->low_bytes))
		return -EFAULT;
	if (dir == MB_DMA_WRITE)
		fake_ram_note(ram, gpa, len);
	*hva = ram->mem + gpa;
	return 0;
}

static void fake_ram_unmap(struct mb_dma *dma, uint64_t gpa, uint64_t len, enum mb_dma_dir dir)
{
}

static const struct mb_dma_ops fake_ram_ops = {.map = fake_ram_map, .unmap = fake_ram_unmap};

static inline void fake_ram_init(struct mb_ram *ram, uint64_t low_bytes, uint64_t high_bytes)
{
	*ram = (struct mb_ram){
		.dma = {.ops = &fake_ram_ops},
		.low_bytes = low_bytes,
		.high_bytes = high_bytes,
		.lowest_write = UINT64_MAX,
	};
	ram->mem = mmap(NULL, low_bytes + FAKE_RAM_GUARD, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram->mem == MAP_FAILED || mprotect(ram->mem, low_bytes, PROT_READ | PROT_WRITE))
		abort();
}

static inline void fake_ram_finish(struct mb_ram *ram)
{
	munmap(ram->mem, ram->low_bytes + FAKE_RAM_GUARD);
}

uint64_t mb_ram_low_bytes(const struct mb_ram *ram)
{
	return ram->low_bytes;
}

uint64_t mb_ram_high_bytes(const struct mb_ram *ram)
{
	return ram->high_bytes;
}

struct mb_dma *mb_ram_dma(struct mb_ram *ram)
{
	return &ram->dma;
}

int mb_ram_load(struct mb_ram *ram, uint64_t gpa, int fd, uint64_t offset, uint64_t len)
{
	if (ram->load_rc)
		return ram->load_rc;
	if (!mb_range_inside(gpa, len, 0, ram->low_bytes))
		return -EFAULT;
	fake_ram_note(ram, gpa, len);
	ram->loaded_bytes += len;
	while (len) {
		ssize_t n = pread(fd, ram->mem + gpa, len, (off_t)offset);

		if (n < 0)
			return -errno;
		if (!n)
			return -EIO;
		gpa += (uint64_t)n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

#endif
