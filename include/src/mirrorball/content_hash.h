/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CONTENT_HASH_H
#define MIRRORBALL_CONTENT_HASH_H

#include <stdint.h>

/*
 * What tells pages of memory apart: SipHash-2-4 with 128 bits of result (Aumasson and Bernstein,
 * "SipHash: a fast short-input PRF", 2012). Who does not know the key cannot make two pages that
 * have one hash, and what is equal by it is compared anyway before it is mapped.
 */
#define MB_CONTENT_PAGE 4096u

struct mb_content_key {
	uint64_t word[2];
};

struct mb_content_hash {
	uint64_t word[2];
};

/* Of random bytes. -errno. */
int mb_content_key_make(struct mb_content_key *key);
/* page: MB_CONTENT_PAGE bytes, aligned to 8. */
struct mb_content_hash mb_content_hash(const struct mb_content_key *key, const void *page);
/* SipHash-2-4 with 64 bits of result, of a hash that anybody may have made up. */
uint64_t mb_content_mix(const struct mb_content_key *key, const struct mb_content_hash *hash);

#endif
