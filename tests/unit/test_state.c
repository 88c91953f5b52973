// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <mirrorball/state.h>
#include <stdlib.h>
#include <string.h>

static struct mb_state_out out;

static void teardown(void)
{
	mb_state_out_finish(&out);
}

static void write_two(void)
{
	mb_state_begin(&out, "first", 3);
	mb_state_put_u8(&out, 1);
	mb_state_put_u16(&out, 0x1234);
	mb_state_put_u32(&out, 0x12345678);
	mb_state_put_u64(&out, 0x123456789abcdef0);
	mb_state_put_text(&out, "text");
	mb_state_put_text(&out, NULL);
	mb_state_put_text(&out, "");
	mb_state_end(&out);
	mb_state_begin(&out, "second", 1);
	mb_state_end(&out);
	ck_assert_int_eq(out.rc, 0);
}

/* 0, or what it is refused with. */
static int read_two(const void *data, size_t len)
{
	struct mb_state_in in = {.at = data, .left = len}, part;
	char *text, *none, *empty;
	struct mb_error err;
	int rc = mb_state_enter(&in, "first", 3, &part, &err);

	if (rc)
		return rc;
	mb_state_get_bool(&part);
	mb_state_get_u16(&part);
	mb_state_get_u32(&part);
	mb_state_get_u64(&part);
	text = mb_state_get_text(&part);
	none = mb_state_get_text(&part);
	empty = mb_state_get_text(&part);
	rc = mb_state_leave(&part, &err);
	if (!rc && text)
		ck_assert_uint_le(strlen(text), len);
	free(text);
	free(none);
	free(empty);
	if (!rc)
		rc = mb_state_enter(&in, "second", 1, &part, &err);
	return rc ? rc : mb_state_leave(&part, &err);
}

START_TEST(test_round_trip)
{
	struct mb_state_in in, part;
	struct mb_error err;
	char *text;

	write_two();
	in = (struct mb_state_in){.at = out.data, .left = out.len};
	ck_assert_int_eq(mb_state_enter(&in, "first", 3, &part, &err), 0);
	ck_assert(mb_state_get_bool(&part));
	ck_assert_uint_eq(mb_state_get_u16(&part), 0x1234);
	ck_assert_uint_eq(mb_state_get_u32(&part), 0x12345678);
	ck_assert_uint_eq(mb_state_get_u64(&part), 0x123456789abcdef0);
	text = mb_state_get_text(&part);
	ck_assert_str_eq(text, "text");
	free(text);
	ck_assert_ptr_null(mb_state_get_text(&part));
	text = mb_state_get_text(&part);
	ck_assert_str_eq(text, "");
	free(text);
	ck_assert_int_eq(mb_state_leave(&part, &err), 0);
	/* Behind its end there is nothing. */
	ck_assert_uint_eq(mb_state_get_u64(&part), 0);
	ck_assert_int_eq(mb_state_leave(&part, &err), -EINVAL);
	ck_assert_str_eq(err.text, "its part 'first' is too short");
	ck_assert_int_eq(mb_state_enter(&in, "second", 1, &part, &err), 0);
	ck_assert_int_eq(mb_state_leave(&part, &err), 0);
	ck_assert_uint_eq(in.left, 0);
}
END_TEST

START_TEST(test_wrong)
{
	struct mb_state_in in, part;
	struct mb_error err;

	write_two();
	in = (struct mb_state_in){.at = out.data, .left = out.len};
	ck_assert_int_eq(mb_state_enter(&in, "second", 1, &part, &err), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.text, "'first' where 'second' should be"));
	in = (struct mb_state_in){.at = out.data, .left = out.len};
	ck_assert_int_eq(mb_state_enter(&in, "first", 4, &part, &err), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.text, "version 3, and this Mirrorball reads 4"));
	in = (struct mb_state_in){.at = out.data, .left = out.len};
	ck_assert_int_eq(mb_state_enter(&in, "first", 3, &part, &err), 0);
	ck_assert_int_eq(mb_state_leave(&part, &err), -EINVAL);
	ck_assert_str_eq(err.text, "its part 'first' is too long");
}
END_TEST

/* Whatever is in it: an answer, and nothing that is read outside. Each in memory of its own size.
 */
START_TEST(test_damage)
{
	write_two();
	for (size_t len = 0; len < out.len; len++) {
		uint8_t *cut = malloc(len + !len);

		memcpy(cut, out.data, len);
		ck_assert_int_eq(read_two(cut, len), -EINVAL);
		free(cut);
	}
	for (size_t at = 0; at < out.len; at++) {
		for (unsigned byte = 0; byte < 256; byte++) {
			uint8_t *bad = malloc(out.len);

			memcpy(bad, out.data, out.len);
			bad[at] = (uint8_t)byte;
			read_two(bad, out.len);
			free(bad);
		}
	}
	ck_assert_int_eq(read_two(out.data, out.len), 0);
}
END_TEST

START_TEST(test_crc)
{
	uint8_t data[1000];
	uint32_t whole;

	/* RFC 3720, B.4. */
	memset(data, 0, 32);
	ck_assert_uint_eq(mb_crc32c(0, data, 32), 0x8a9136aa);
	memset(data, 0xff, 32);
	ck_assert_uint_eq(mb_crc32c(0, data, 32), 0x62a8ab43);
	for (unsigned i = 0; i < 32; i++)
		data[i] = (uint8_t)i;
	ck_assert_uint_eq(mb_crc32c(0, data, 32), 0x46dd794e);
	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 37 >> 3);
	whole = mb_crc32c(0, data, sizeof(data));
	for (unsigned i = 0; i <= sizeof(data); i++) {
		ck_assert_uint_eq(
			mb_crc32c(mb_crc32c(0, data, i), data + i, sizeof(data) - i), whole);
		ck_assert_uint_eq(mb_crc32c(0, data, i), mb_crc32c_by_table(0, data, i));
	}
}
END_TEST

/* More than anybody would read: refused before it is copied, and whatever follows. */
START_TEST(test_too_large)
{
	volatile size_t len = MB_STATE_MAX_BYTES;

	mb_state_begin(&out, "first", 3);
	mb_state_put(&out, "", len);
	ck_assert_int_eq(out.rc, -EFBIG);
	mb_state_put_u8(&out, 1);
	mb_state_end(&out);
	ck_assert_int_eq(out.rc, -EFBIG);
	ck_assert_uint_eq(out.len, MB_STATE_PART_BYTES);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("state");
	TCase *tcase = tcase_create("state");

	tcase_add_checked_fixture(tcase, NULL, teardown);
	tcase_add_test(tcase, test_round_trip);
	tcase_add_test(tcase, test_wrong);
	tcase_add_test(tcase, test_damage);
	tcase_add_test(tcase, test_crc);
	tcase_add_test(tcase, test_too_large);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
