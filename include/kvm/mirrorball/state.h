/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_STATE_H
#define MIRRORBALL_STATE_H

#include <mirrorball/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * How the state of vCPUs and devices is written down, for snapshots: parts, one behind the other,
 * each with a name, a version and its length.
 *
 *   name (12 bytes, zero-padded) | version (4) | length (4) | that many bytes
 *
 * Numbers are little-endian, as the hosts are that we run on. Who reads does not trust: each value
 * is bounded by its part, a part is read to its end or refused, and what the values mean is for
 * whoever takes them to check.
 */
#define MB_STATE_NAME_BYTES 12u
#define MB_STATE_PART_BYTES (MB_STATE_NAME_BYTES + 8u) /* in front of each part */
#define MB_STATE_MAX_TEXT   8192u
#define MB_STATE_MAX_BYTES  (1u << 30) /* all parts: none is longer than its length can say */

/* Being written; zero to begin with. */
struct mb_state_out {
	uint8_t *data;
	size_t len, max;
	size_t part; /* where the open one begins */
	int rc;	     /* 0, -ENOMEM, or -EFBIG: then what is there is of no use */
};

void mb_state_begin(struct mb_state_out *out, const char *name, uint32_t version);
void mb_state_end(struct mb_state_out *out);
void mb_state_put(struct mb_state_out *out, const void *data, size_t len);
void mb_state_put_u8(struct mb_state_out *out, uint8_t value);
void mb_state_put_u16(struct mb_state_out *out, uint16_t value);
void mb_state_put_u32(struct mb_state_out *out, uint32_t value);
void mb_state_put_u64(struct mb_state_out *out, uint64_t value);
void mb_state_put_text(struct mb_state_out *out, const char *text); /* NULL is not "" */
/* Frees what was written. */
void mb_state_out_finish(struct mb_state_out *out);

/* What is read: all parts, or what is left of one. */
struct mb_state_in {
	const uint8_t *at;
	size_t left;
	char name[MB_STATE_NAME_BYTES + 1]; /* of the part */
	bool bad;			    /* more was asked for than there is */
};

/*
 * The next part, which has to have this name and version: *part. -EINVAL: it is another one, or cut
 * off.
 */
int mb_state_enter(struct mb_state_in *in, const char *name, uint32_t version,
	struct mb_state_in *part, struct mb_error *err);
/* All of it was read, and not more. -EINVAL */
int mb_state_leave(const struct mb_state_in *part, struct mb_error *err);
/* What is read is not possible. Returns -EINVAL. */
int mb_state_refuse(const struct mb_state_in *part, struct mb_error *err, const char *what);

/* Zeroes behind the end, and the part is bad then. */
void mb_state_get(struct mb_state_in *part, void *data, size_t len);
uint8_t mb_state_get_u8(struct mb_state_in *part);
uint16_t mb_state_get_u16(struct mb_state_in *part);
uint32_t mb_state_get_u32(struct mb_state_in *part);
uint64_t mb_state_get_u64(struct mb_state_in *part);
/* Only 0 and 1 are possible. */
bool mb_state_get_bool(struct mb_state_in *part);
/* The caller's to free; NULL where NULL was put, or the part is bad. At most MB_STATE_MAX_TEXT
 * bytes. */
char *mb_state_get_text(struct mb_state_in *part);

/* CRC-32C (Castagnoli; RFC 3720, 12.1) of more bytes; crc: of those before, 0 to begin with. */
uint32_t mb_crc32c(uint32_t crc, const void *data, size_t len);
/* The same on any processor; for its test. */
uint32_t mb_crc32c_by_table(uint32_t crc, const void *data, size_t len);

#endif
