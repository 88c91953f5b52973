/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_RANGE_H
#define MIRRORBALL_RANGE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* True if [base, base + len) is not empty, does not wrap, and lies inside [start, start + size). */
static inline bool mb_range_inside(uint64_t base, uint64_t len, uint64_t start, uint64_t size)
{
	return len && base >= start && base - start < size && len <= size - (base - start);
}

/* True if [a, a + alen) and [b, b + blen) share a byte. Neither may wrap. */
static inline bool mb_range_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return alen && blen && a < b + blen && b < a + alen;
}

/* len: at least 1. */
static inline bool mb_is_zero(const void *data, uint64_t len)
{
	const char *at = data;

	return !*at && !memcmp(at, at + 1, len - 1);
}

static inline uint64_t mb_align_up(uint64_t v, uint64_t align)
{
	return (v + align - 1) & ~(align - 1);
}

#endif
