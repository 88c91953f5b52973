// SPDX-License-Identifier: Apache-2.0
#include <assert.h>
#include <errno.h>
#include <mirrorball/state.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_BYTES 4096u
#define NO_TEXT	    UINT32_MAX

/* ---- writing ---- */

void mb_state_put(struct mb_state_out *out, const void *data, size_t len)
{
	if (out->rc || !len)
		return;
	if (len > MB_STATE_MAX_BYTES - out->len) {
		out->rc = -EFBIG;
		return;
	}
	if (len > out->max - out->len) {
		size_t max = out->max ? out->max : FIRST_BYTES;
		uint8_t *grown;

		while (max - out->len < len)
			max *= 2;
		grown = realloc(out->data, max);
		if (!grown) {
			out->rc = -ENOMEM;
			return;
		}
		out->data = grown;
		out->max = max;
	}
	memcpy(out->data + out->len, data, len);
	out->len += len;
}

void mb_state_begin(struct mb_state_out *out, const char *name, uint32_t version)
{
	char padded[MB_STATE_NAME_BYTES] = "";

	assert(strlen(name) <= sizeof(padded));
	memcpy(padded, name, strlen(name));
	out->part = out->len;
	mb_state_put(out, padded, sizeof(padded));
	mb_state_put_u32(out, version);
	mb_state_put_u32(out, 0);
}

void mb_state_end(struct mb_state_out *out)
{
	uint32_t len = (uint32_t)(out->len - out->part - MB_STATE_PART_BYTES);

	if (!out->rc)
		memcpy(out->data + out->part + MB_STATE_NAME_BYTES + 4, &len, sizeof(len));
}

void mb_state_put_u8(struct mb_state_out *out, uint8_t value)
{
	mb_state_put(out, &value, sizeof(value));
}

void mb_state_put_u16(struct mb_state_out *out, uint16_t value)
{
	mb_state_put(out, &value, sizeof(value));
}

void mb_state_put_u32(struct mb_state_out *out, uint32_t value)
{
	mb_state_put(out, &value, sizeof(value));
}

void mb_state_put_u64(struct mb_state_out *out, uint64_t value)
{
	mb_state_put(out, &value, sizeof(value));
}

void mb_state_put_text(struct mb_state_out *out, const char *text)
{
	mb_state_put_u32(out, text ? (uint32_t)strlen(text) : NO_TEXT);
	if (text)
		mb_state_put(out, text, strlen(text));
}

void mb_state_out_finish(struct mb_state_out *out)
{
	free(out->data);
	*out = (struct mb_state_out){0};
}

/* ---- reading ---- */

int mb_state_enter(struct mb_state_in *in, const char *name, uint32_t version,
	struct mb_state_in *part, struct mb_error *err)
{
	struct mb_state_in next = {0};
	uint32_t found, len;

	mb_state_get(in, next.name, MB_STATE_NAME_BYTES);
	found = mb_state_get_u32(in);
	len = mb_state_get_u32(in);
	if (in->bad)
		return mb_error_set(err, EINVAL, "ends before its part '%s'", name);
	if (strcmp(next.name, name)) {
		mb_error_make_printable(next.name);
		return mb_error_set(err, EINVAL,
			"has a part '%s' where '%s' should be: it is of another kind of machine",
			next.name, name);
	}
	if (found != version)
		return mb_error_set(err, EINVAL,
			"its part '%s' has version %u, and this Mirrorball reads %u: it was made "
			"by another one",
			name, found, version);
	if (len > in->left)
		return mb_error_set(err, EINVAL, "its part '%s' is cut off", name);
	next.at = in->at;
	next.left = len;
	in->at += len;
	in->left -= len;
	*part = next;
	return 0;
}

int mb_state_leave(const struct mb_state_in *part, struct mb_error *err)
{
	if (part->bad)
		return mb_state_refuse(part, err, "is too short");
	return part->left ? mb_state_refuse(part, err, "is too long") : 0;
}

int mb_state_refuse(const struct mb_state_in *part, struct mb_error *err, const char *what)
{
	return mb_error_set(err, EINVAL, "its part '%s' %s", part->name, what);
}

void mb_state_get(struct mb_state_in *part, void *data, size_t len)
{
	if (part->bad || len > part->left) {
		part->bad = true;
		memset(data, 0, len);
		return;
	}
	if (len)
		memcpy(data, part->at, len);
	part->at += len;
	part->left -= len;
}

uint8_t mb_state_get_u8(struct mb_state_in *part)
{
	uint8_t value;

	mb_state_get(part, &value, sizeof(value));
	return value;
}

uint16_t mb_state_get_u16(struct mb_state_in *part)
{
	uint16_t value;

	mb_state_get(part, &value, sizeof(value));
	return value;
}

uint32_t mb_state_get_u32(struct mb_state_in *part)
{
	uint32_t value;

	mb_state_get(part, &value, sizeof(value));
	return value;
}

uint64_t mb_state_get_u64(struct mb_state_in *part)
{
	uint64_t value;

	mb_state_get(part, &value, sizeof(value));
	return value;
}

bool mb_state_get_bool(struct mb_state_in *part)
{
	uint8_t value = mb_state_get_u8(part);

	part->bad |= value > 1;
	return value == 1;
}

char *mb_state_get_text(struct mb_state_in *part)
{
	uint32_t len = mb_state_get_u32(part);
	char *text;

	if (part->bad || len == NO_TEXT)
		return NULL;
	/* A text that ends in the middle would be another one to each who reads it. */
	if (len > part->left || len > MB_STATE_MAX_TEXT || memchr(part->at, 0, len)) {
		part->bad = true;
		return NULL;
	}
	text = malloc(len + 1);
	if (!text) {
		part->bad = true;
		return NULL;
	}
	mb_state_get(part, text, len);
	text[len] = 0;
	return text;
}

/* ---- checksum ---- */

/* The processor's own instruction for it (SDM vol. 2, CRC32). */
__attribute__((target("sse4.2"))) static uint32_t crc_by_instruction(
	uint32_t crc, const uint8_t *byte, size_t len)
{
	uint64_t value = ~crc;

	for (; len >= 8; len -= 8, byte += 8) {
		uint64_t word;

		memcpy(&word, byte, sizeof(word));
		value = __builtin_ia32_crc32di(value, word);
	}
	while (len--)
		value = __builtin_ia32_crc32qi((uint32_t)value, *byte++);
	return ~(uint32_t)value;
}

uint32_t mb_crc32c(uint32_t crc, const void *data, size_t len)
{
	if (__builtin_cpu_supports("sse4.2"))
		return crc_by_instruction(crc, data, len);
	return mb_crc32c_by_table(crc, data, len);
}

uint32_t mb_crc32c_by_table(uint32_t crc, const void *data, size_t len)
{
	const uint8_t *byte = data;
	uint32_t table[256];

	for (uint32_t i = 0; i < 256; i++) {
		uint32_t value = i;

		for (unsigned bit = 0; bit < 8; bit++)
			value = value >> 1 ^ (value & 1 ? 0x82f63b78u : 0);
		table[i] = value;
	}
	crc = ~crc;
	while (len--)
		crc = crc >> 8 ^ table[(crc ^ *byte++) & 0xff];
	return ~crc;
}
