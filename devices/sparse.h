/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_SPARSE_H
#define MIRRORBALL_SPARSE_H

#include <stdint.h>
#include <sys/mman.h>

/* `bytes` of zeroes that take memory where they are written only, page by page; NULL: there is no
 * room for them. */
static inline void *mb_sparse_map(uint64_t bytes)
{
	void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		return NULL;
	madvise(map, bytes, MADV_NOHUGEPAGE);
	return map;
}

/* Takes NULL. */
static inline void mb_sparse_unmap(void *map, uint64_t bytes)
{
	if (map)
		munmap(map, bytes);
}

#endif
