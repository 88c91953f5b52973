// SPDX-License-Identifier: Apache-2.0
#include <check.h>
#include <mirrorball/heat.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

/* What maps of several turns say together of groups of vCPUs. */

START_TEST(test_turns)
{
	static const unsigned expected[][3] = {{1, 1, 1}, {8, 1, 1}, {2, 2, 1}, {3, 2, 2},
		{4, 2, 2}, {5, 2, 3}, {8, 2, 3}, {8, 8, 1}, {5, 4, 2}};

	for (unsigned i = 0; i < sizeof(expected) / sizeof(expected[0]); i++)
		ck_assert_uint_eq(mb_heat_n_turns(expected[i][0], expected[i][1]), expected[i][2]);
	ck_assert_uint_eq(mb_heat_n_turns(MB_HEAT_VIEWS, 2), MB_HEAT_TURNS);
	for (unsigned n_views = 2; n_views <= MB_HEAT_VIEWS; n_views++) {
		unsigned n_turns = mb_heat_n_turns(MB_HEAT_VIEWS, n_views);

		for (unsigned a = 0; a < MB_HEAT_VIEWS; a++)
			for (unsigned b = 0; b < a; b++) {
				unsigned apart = 0;

				for (unsigned t = 0; t < n_turns; t++)
					apart += mb_heat_view_of(a, t, n_views) !=
						 mb_heat_view_of(b, t, n_views);
				ck_assert_uint_ge(apart, 1);
			}
	}
}
END_TEST

/* What a turn says of memory that these groups read and write. */
static struct mb_extent seen(unsigned t, unsigned n_groups, unsigned readers, unsigned writers)
{
	struct mb_extent e = {.len_bytes = MB_HEAT_BLOCK_BYTES, .confidence = 1, .node = -1};

	for (unsigned g = 0; g < n_groups; g++) {
		struct mb_heat *h = &e.view[mb_heat_view_of(g, t, 2)];

		h->read = readers >> g & 1 ? 8 : h->read;
		h->write = writers >> g & 1 ? 8 : h->write;
	}
	/* What is read and written in the same window is not told to be read. */
	for (unsigned v = 0; v < 2; v++)
		if (e.view[v].write > 0)
			e.view[v].read = 0;
	return e;
}

/* Of any set of users: each is told, and if it is one, no other is. */
START_TEST(test_who)
{
	const unsigned n_groups = 3 + (unsigned)_i, n_turns = mb_heat_n_turns(n_groups, 2);

	for (unsigned users = 0; users < 1u << n_groups; users++) {
		struct mb_heat_turn turn[MB_HEAT_TURNS];
		struct mb_extent e[MB_HEAT_TURNS], *got;
		unsigned n, told = 0;

		for (unsigned t = 0; t < n_turns; t++) {
			e[t] = seen(t, n_groups, users, users & 0x55);
			turn[t] = (struct mb_heat_turn){&e[t], 1};
		}
		ck_assert_int_eq(mb_heat_combine(turn, n_turns, n_groups, 2, &got, &n), 0);
		ck_assert_uint_eq(n, 1);
		ck_assert_uint_eq(got->len_bytes, MB_HEAT_BLOCK_BYTES);
		for (unsigned g = 0; g < n_groups; g++) {
			const struct mb_heat *h = &got->view[g];

			told |= (h->read + h->write > 0) << g;
			ck_assert(!(users >> g & 1) || h->read + h->write == 8.0f);
			ck_assert(!(users & 0x55 & 1u << g) || h->write == 8.0f);
			/* Who shares its view with a writer in each turn seems to write. */
			ck_assert(h->read >= 0 && (h->write == 0 || h->write == 8.0f));
			if (__builtin_popcount(users & 0x55) == 1 && !(users & 0x55 & 1u << g))
				ck_assert(h->write == 0);
		}
		ck_assert_uint_eq(told & users, users);
		if (__builtin_popcount(users) < 2)
			ck_assert_uint_eq(told, users);
		free(got);
	}
}
END_TEST

#define KIB 1024ull

static struct mb_extent extent(uint64_t at_kib, uint64_t kib, float read0, float confidence)
{
	return (struct mb_extent){.offset = at_kib * KIB,
		.len_bytes = kib * KIB,
		.confidence = confidence,
		.age_ms = (uint32_t)(confidence * 100),
		.huge = confidence > 0.5f,
		.view = {{.read = read0}, {.read = 1}}};
}

/* Turns that divide memory elsewhere, and have holes. */
START_TEST(test_parts)
{
	struct mb_extent a[] = {
		extent(0, 64, 5, 0.9f), extent(64, 64, 9, 0.9f), extent(256, 64, 7, 0.9f)};
	struct mb_extent b[] = {
		extent(16, 80, 5, 0.6f), extent(96, 32, 1, 0.2f), extent(288, 99, 7, 0)};
	struct mb_heat_turn turn[] = {{a, 3}, {b, 3}};
	static const struct {
		unsigned at, len;
		float least, confidence;
	} expected[] = {{16, 80, 5, 0.6f}, {96, 32, 1, 0.2f}, {288, 32, 7, 0}};
	struct mb_extent *got;
	unsigned n;

	ck_assert_int_eq(mb_heat_combine(turn, 2, 3, 2, &got, &n), 0);
	ck_assert_uint_eq(n, 3);
	for (unsigned i = 0; i < n; i++) {
		ck_assert_uint_eq(got[i].offset, expected[i].at * KIB);
		ck_assert_uint_eq(got[i].len_bytes, expected[i].len * KIB);
		ck_assert(got[i].view[0].read == expected[i].least);
		ck_assert(got[i].confidence == expected[i].confidence);
		ck_assert_uint_eq(got[i].age_ms, 90);
		ck_assert_uint_eq(got[i].huge, i == 0);
	}
	free(got);
	turn[1].n = 0;
	ck_assert_int_eq(mb_heat_combine(turn, 2, 3, 2, &got, &n), 0);
	ck_assert_uint_eq(n, 0);
	free(got);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("heat_groups");
	TCase *cases = tcase_create("heat_groups");

	tcase_add_test(cases, test_turns);
	tcase_add_loop_test(cases, test_who, 0, 6);
	tcase_add_test(cases, test_parts);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
