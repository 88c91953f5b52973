// SPDX-License-Identifier: Apache-2.0
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heat_guest.h"
#include "run.h"

/* ---- memory that is used in different ways ---- */

static struct use quarters(uint64_t page)
{
	switch (page / MB_HEAT_BLOCK_PAGES / 32) {
	case 0:
		return (struct use){.read = {1000, 0}};
	case 1:
		return (struct use){.write = {0, 1000}};
	case 2:
		return (struct use){.read = {300, 300}};
	default:
		return (struct use){.read = {0}};
	}
}

START_TEST(test_quarters)
{
	make(128, _i, quarters);
	run(30);
	take_extents();
	for (uint64_t b = 0; b < 128; b++) {
		const struct mb_extent *e = extent_of(b * MB_HEAT_BLOCK_PAGES + 7);
		const struct mb_heat *h = e->view;

		ck_assert_msg(
			e->confidence > 0.5f, "block %lu: confidence %f", b, (double)e->confidence);
		ck_assert_msg((h[0].read > 100) == (b < 32 || (b >= 64 && b < 96)), "block %lu", b);
		ck_assert_msg((h[1].write > 100) == (b >= 32 && b < 64), "block %lu", b);
		ck_assert_msg((h[1].read > 100) == (b >= 64 && b < 96), "block %lu", b);
		ck_assert_msg(h[0].write < 1, "block %lu", b);
	}
	/* What is alike is one. */
	ck_assert_uint_le(mb_heat_n_regions(map), 24);
	ck_assert_uint_le(n_extents, 8);
	ck_assert_uint_eq(mb_heat_n_covered(map), 128);
	finish();
}
END_TEST

static uint64_t moved_at_ns;

static struct use moves(uint64_t page)
{
	bool other = (page / MB_HEAT_BLOCK_PAGES < 16) == (now < moved_at_ns);

	return other ? (struct use){.read = {1000, 0}} : (struct use){.read = {0, 1000}};
}

/* Another view reads all of it from now on: the next look at it tells. */
START_TEST(test_phase)
{
	const struct mb_extent *e;
	struct mb_heat_pick pick;
	uint64_t due;

	moved_at_ns = UINT64_MAX;
	make(32, true, moves);
	run(10);
	moved_at_ns = now;
	for (bool looked = false; !looked;) {
		struct mb_heat_seen seen = {
			.n_pages = MB_HEAT_BLOCK_PAGES, .knows_writes = true, .view = view};

		now += 5000000;
		if (!mb_heat_pick(map, now, 0, UINT64_MAX, true, 0, &pick, &due))
			continue;
		seen.pick = pick;
		seen.huge = (1u << pick.n_blocks) - 1;
		memset(view, 0, sizeof(view));
		for (unsigned b = 0; b < pick.n_blocks; b++)
			see_block(&seen, b);
		mb_heat_learn(map, &seen, now);
		looked = pick.first_block <= 3 && 3 < pick.first_block + pick.n_blocks;
	}
	take_extents();
	e = extent_of(3 * MB_HEAT_BLOCK_PAGES);
	ck_assert(e->view[1].read > 2 * e->view[0].read);
	finish();
}
END_TEST

/* What a window of the first block sees; probes see nothing. */
static void learn_block(const bool touched[3])
{
	struct mb_heat_seen seen = {
		.n_pages = MB_HEAT_BLOCK_PAGES, .knows_writes = true, .huge = 1, .view = view};
	uint64_t due;

	do {
		memset(view, 0, sizeof(view));
		while (!mb_heat_pick(map, now, 0, UINT64_MAX, false, 0, &seen.pick, &due))
			now += 5000000;
		for (unsigned v = 0; v < 3 && !seen.pick.probe; v++)
			if (touched[v])
				memset(view[v].touched[0], 0xff, sizeof(view[v].touched[0]));
		mb_heat_learn(map, &seen, now);
	} while (seen.pick.probe);
}

/* Of two users one was not there in a window, and another view was: they have not changed, nor has
 * a user that was seen once. */
START_TEST(test_no_phase)
{
	struct mb_heat_config config = {.n_blocks = 1, .n_views = 3};

	ck_assert_int_eq(mb_heat_create(&config, &map), 0);
	now = SECOND;
	for (unsigned i = 0; i < (_i ? 1 : 20); i++)
		learn_block((const bool[]){true, !_i, false});
	learn_block((const bool[]){false, !_i, true});
	take_extents();
	ck_assert(extents[0].view[2].read > 1);
	ck_assert(extents[0].view[0].read > 0.9f * extents[0].view[2].read);
	finish();
}
END_TEST

/* Both views read a block, and write it in one of ten of the shortest windows. */
static struct use churned(uint64_t page)
{
	return page / MB_HEAT_BLOCK_PAGES == 5
		       ? (struct use){.read = {0.1f, 0.1f}, .write = {0.02f, 0.02f}}
		       : (struct use){.read = {0}};
}

/* It is not said to be read only whenever a few looks in a row saw no write. */
START_TEST(test_churned)
{
	unsigned read_only = 0;

	may_zoom = false;
	make(64, true, churned);
	run(30);
	for (unsigned i = 0; i < 200; i++) {
		const struct mb_heat *h;

		run(0.5);
		take_extents();
		h = extent_of(5 * MB_HEAT_BLOCK_PAGES)->view;
		read_only += h[0].write + h[1].write <
			     0.02f * (h[0].read + h[0].write + h[1].read + h[1].write);
	}
	may_zoom = true;
	ck_assert_uint_le(read_only, 4);
	finish();
}
END_TEST

/* What is one view's but for a block that another one uses now and then. */
static struct use odd_one(uint64_t page)
{
	uint64_t block = page / MB_HEAT_BLOCK_PAGES;

	if (block / 8 != 2)
		return (struct use){.read = {0}};
	return (struct use){.read = {block == 16 && now > 10 * SECOND ? 0.3f : 0, 900}};
}

/* They were joined before it did, and a look sees one of them. */
START_TEST(test_odd_one)
{
	make(64, true, odd_one);
	one_at_a_time = true;
	run(60);
	one_at_a_time = false;
	take_extents();
	ck_assert(extent_of(16 * MB_HEAT_BLOCK_PAGES)->view[0].read > 0.05f);
	for (unsigned b = 17; b < 24; b++)
		ck_assert_msg(extent_of(b * MB_HEAT_BLOCK_PAGES)->view[0].read < 1, "block %u", b);
	finish();
}
END_TEST

static uint64_t handed_over_ns;

static struct use handed_over(uint64_t page)
{
	bool is_used = page / MB_HEAT_BLOCK_PAGES / 4 == 4, over = now >= handed_over_ns;

	return (struct use){.read = {is_used && !over ? 900 : 0, is_used && over ? 900 : 0}};
}

/* A region of which a look sees one block has another user: one look at each block is enough. */
START_TEST(test_hands_in_parts)
{
	uint64_t begin;

	handed_over_ns = UINT64_MAX;
	make(64, true, handed_over);
	one_at_a_time = true;
	run(60);
	begin = handed_over_ns = now;
	for (unsigned left = 4; left;) {
		ck_assert_uint_lt(now - begin, 20 * SECOND);
		run(0.02);
		take_extents();
		left = 0;
		for (unsigned b = 0; b < 4; b++) {
			const struct mb_heat *h = extent_of((16 + b) * MB_HEAT_BLOCK_PAGES)->view;

			left += h[1].read <= h[0].read;
		}
	}
	one_at_a_time = false;
	/* The first one's, which tells that something has changed, and one for each. */
	ck_assert_uint_le(now - begin, 350 * MS);
	finish();
}
END_TEST

static struct use seldom(uint64_t page)
{
	return (struct use){.read = {page / MB_HEAT_BLOCK_PAGES / 4 == 10 ? 0.001f : 0, 0}};
}

/* Where a region is looked at in parts, its own windows come to all of them, probes in between. */
START_TEST(test_parts_by_turns)
{
	unsigned n[2][4] = {{0}};

	make(256, true, seldom);
	for (unsigned i = 0; i < 4000; i++) {
		struct mb_heat_seen seen = {
			.n_pages = MB_HEAT_BLOCK_PAGES, .knows_writes = true, .view = view};
		uint64_t due;

		now += 20 * MS;
		if (!mb_heat_pick(map, now, 0, UINT64_MAX, true, 0, &seen.pick, &due))
			continue;
		if (seen.pick.first_block == 40 && seen.pick.n_blocks == 4)
			n[seen.pick.probe][seen.pick.turn % 4]++;
		memset(view, 0, sizeof(view));
		seen.huge = (1u << seen.pick.n_blocks) - 1;
		for (unsigned b = 0; b < seen.pick.n_blocks; b++)
			see_block(&seen, b);
		mb_heat_learn(map, &seen, now);
	}
	for (unsigned i = 0; i < 4; i++)
		ck_assert_msg(n[0][i] && n[1][i], "part %u: %u and %u", i, n[0][i], n[1][i]);
	finish();
}
END_TEST

/* One block of many is hot. */
static struct use needle(uint64_t page)
{
	return page / MB_HEAT_BLOCK_PAGES == 1234 ? (struct use){.write = {500, 0}}
						  : (struct use){.read = {0}};
}

START_TEST(test_needle)
{
	make(1 << (12 + 3 * _i), true, needle);
	run(_i ? 400 : 60);
	take_extents();
	ck_assert(extent_of(1234ull * MB_HEAT_BLOCK_PAGES)->view[0].write > 50);
	ck_assert_uint_le(
		extent_of(1234ull * MB_HEAT_BLOCK_PAGES)->len_bytes, 4 * MB_HEAT_BLOCK_BYTES);
	/* 64 at least, and those that surround it. */
	ck_assert_uint_le(mb_heat_n_regions(map), 100);
	finish();
}
END_TEST

/* Blocks that both views use often, and one that they use all the time. */
static struct use one_is_hotter(uint64_t page)
{
	float rate = page / MB_HEAT_BLOCK_PAGES == 40 ? 900 : 0.1f;

	return page % 2 ? (struct use){.read = {rate, rate}} : (struct use){.write = {0, rate}};
}

/* All want to be looked into when the first one may be. */
START_TEST(test_hottest_first)
{
	make(64, true, one_is_hotter);
	may_zoom = false;
	run(30);
	ck_assert_uint_eq(n_zooms, 0);
	may_zoom = true;
	while (!n_zooms && now < 60 * SECOND)
		run(0.1);
	ck_assert_uint_eq(n_zooms, 1);
	ck_assert_uint_eq(zoomed_block, 40);
	finish();
}
END_TEST

/* The hottest is not there any more: others get their turn. */
START_TEST(test_hottest_gone)
{
	struct mb_heat_pick pick = {.first_block = 40, .n_blocks = 1};

	make(64, true, one_is_hotter);
	may_zoom = false;
	run(30);
	may_zoom = true;
	mb_heat_skip(map, &pick, false, now);
	for (uint64_t end = now + 3 * SECOND; !n_zooms && now < end;)
		run(0.1);
	ck_assert_uint_eq(n_zooms, 1);
	ck_assert_uint_ne(zoomed_block, 40);
	finish();
}
END_TEST

/* Blocks that look all alike, and are one region: each is written in one part and read in another.
 */
static struct use mixed_alike(uint64_t page)
{
	if (page / MB_HEAT_BLOCK_PAGES / 8 != 1)
		return (struct use){.read = {0}};
	return page % MB_HEAT_BLOCK_PAGES < 100 ? (struct use){.write = {900, 900}}
						: (struct use){.read = {900, 900}};
}

START_TEST(test_mixed_alike)
{
	unsigned n = 0;

	make(64, true, mixed_alike);
	run(120);
	take_extents();
	for (unsigned b = 8; b < 16; b++)
		n += extent_of(b * MB_HEAT_BLOCK_PAGES + 50)->view[0].write > 50 &&
		     extent_of(b * MB_HEAT_BLOCK_PAGES + 300)->view[0].write < 1 &&
		     extent_of(b * MB_HEAT_BLOCK_PAGES + 300)->view[1].read > 50;
	ck_assert_uint_eq(n, 8);
	finish();
}
END_TEST

/* What was idle for minutes is seen to be in use long before its next long window. */
static float awakens; /* touches a second */
static struct use sleeper(uint64_t page)
{
	return page / MB_HEAT_BLOCK_PAGES == 12 ? (struct use){.read = {awakens, awakens}}
						: (struct use){.read = {0}};
}

START_TEST(test_awakens)
{
	unsigned seconds = 0;

	awakens = 0;
	make(16, true, sleeper);
	run(100);
	awakens = 900;
	most_window_ns = SECOND / 20; /* there is no room for long ones */
	do {
		run(1);
		take_extents();
	} while (seconds++ < 60 && extent_of(12 * MB_HEAT_BLOCK_PAGES)->view[1].read < 10);
	ck_assert_uint_le(seconds, 10);
	most_window_ns = UINT64_MAX;
	finish();
}
END_TEST

/* What is touched now and then is not hot because a short window caught that. */
static struct use now_and_then(uint64_t page)
{
	return page % MB_HEAT_BLOCK_PAGES ? (struct use){.read = {0}}
					  : (struct use){.read = {1, 0}};
}

START_TEST(test_now_and_then)
{
	float most = 0, sum = 0;

	make(16, true, now_and_then);
	run(60);
	for (unsigned i = 0; i < 200; i++) {
		float rate;

		run(1);
		take_extents();
		rate = extent_of(12 * MB_HEAT_BLOCK_PAGES)->view[0].read;
		most = fmaxf(most, rate);
		sum += rate / 200;
	}
	ck_assert_msg(sum > 0.3f && sum < 3, "%f on average", (double)sum);
	ck_assert_msg(most < 12, "%f at most", (double)most);
	finish();
}
END_TEST

/* Where no huge page more may be out, those in small pages have their turn all the same. */
START_TEST(test_no_room)
{
	struct mb_heat_pick pick;
	uint64_t due;

	make(64, true, halves_of_a_block);
	while ((!zoom_looks || zoom_looks == ZOOM_LOOKS) && now < 100 * SECOND)
		run(1);
	now += 10 * SECOND;
	ck_assert(mb_heat_pick(map, now, UINT64_MAX, 0, true, 1, &pick, &due));
	ck_assert_uint_eq(pick.first_block, 5);
	ck_assert(!mb_heat_pick(map, now, UINT64_MAX, 0, true, 1, &pick, &due));
	mb_heat_skip(map, &pick, true, now);
	mb_heat_zoomed(map, 5, now);
	now += 10 * SECOND;
	ck_assert(!mb_heat_pick(map, now, UINT64_MAX, 0, true, 1, &pick, &due));
	zoom_looks = 0;
	finish();
}
END_TEST

/* A few pages of the block are hot, and hide that all others are used, too: by both views, or by
 * one. */
static struct use hot_and_slow(uint64_t page)
{
	unsigned i = page % MB_HEAT_BLOCK_PAGES;

	if (page / MB_HEAT_BLOCK_PAGES != 2)
		return (struct use){.read = {0}};
	if (i < 40)
		return (struct use){.read = {900, 900}};
	if (i < 300)
		return (struct use){.read = {1.5f, 1.5f}, .write = {0.5f, 0.5f}};
	return i < 480 ? (struct use){.write = {0, 1.5f}} : (struct use){.read = {0}};
}

START_TEST(test_slow)
{
	unsigned both = 0, one = 0, none = 0, hot = 0;

	make(4, _i, hot_and_slow);
	run(60);
	take_extents();
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		const struct mb_heat *h = extent_of(2 * MB_HEAT_BLOCK_PAGES + i)->view;
		float sum[VIEWS] = {h[0].read + h[0].write, h[1].read + h[1].write};

		/* A block in small pages has the window of most of them. */
		if (i < 40)
			ck_assert_msg(sum[0] > (_i ? 50 : 4) && sum[1] > (_i ? 50 : 4),
				"page %u: %f %f", i, (double)sum[0], (double)sum[1]);
		/* As hot as they are, and not as the block is: but for what is touched by chance.
		 */
		else
			hot += sum[0] > 12 || sum[1] > 12;
		both += i >= 40 && i < 300 && sum[0] > 0 && sum[1] > 0;
		one += i >= 300 && i < 480 && sum[0] == 0 && sum[1] > 0;
		none += i >= 480 && sum[0] == 0 && sum[1] == 0;
	}
	ck_assert_uint_le(hot, 440 * 5 / 100);
	ck_assert_uint_ge(both, 260 * 90 / 100);
	ck_assert_uint_ge(one, 180 * 90 / 100);
	ck_assert_uint_eq(none, 32);
	finish();
}
END_TEST

/* Pages that are rarely touched, but here by one view and there by the other. */
static struct use slow_halves(uint64_t page)
{
	if (page / MB_HEAT_BLOCK_PAGES != 2)
		return (struct use){.read = {0}};
	return page % MB_HEAT_BLOCK_PAGES < 200 ? (struct use){.read = {0.7f, 0}}
						: (struct use){.write = {0, 0.7f}};
}

START_TEST(test_slow_halves)
{
	unsigned right = 0, wrong = 0;

	make(4, true, slow_halves);
	run(60);
	take_extents();
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		const struct mb_heat *h = extent_of(2 * MB_HEAT_BLOCK_PAGES + i)->view;
		float sum[VIEWS] = {h[0].read + h[0].write, h[1].read + h[1].write};

		right += i < 200 ? sum[0] > sum[1] : sum[1] > sum[0];
		wrong += i < 200 ? sum[1] > sum[0] : sum[0] > sum[1];
	}
	ck_assert_uint_ge(right, MB_HEAT_BLOCK_PAGES * 65 / 100);
	ck_assert_uint_le(wrong, MB_HEAT_BLOCK_PAGES / 100);
	finish();
}
END_TEST

/* All pages alike: looking closely finds nothing, and is tried less and less. */
static struct use shared_by_both(uint64_t page)
{
	return (struct use){.read = {900, 900}};
}

START_TEST(test_zoom_in_vain)
{
	make(1, true, shared_by_both);
	run(300);
	ck_assert_uint_ge(n_zooms, 1);
	ck_assert_uint_le(n_zooms, 6);
	take_extents();
	ck_assert_uint_eq(n_extents, 1);
	finish();
}
END_TEST

/* Pages that both views touch at random, and rarely: what differs is chance, and is not told as a
 * difference. */
static struct use at_random(uint64_t page)
{
	return (struct use){.read = {8, 8}, .write = {2, 2}};
}

START_TEST(test_chance)
{
	make(16, false, at_random);
	run(60);
	take_extents();
	ck_assert_uint_le(n_extents, 16);
	for (unsigned i = 0; i < n_extents; i++) {
		const struct mb_heat *h = extents[i].view;

		for (unsigned v = 0; v < VIEWS; v++)
			ck_assert_msg(h[v].read > 4 && h[v].read < 14 && h[v].write > 0.7f &&
					      h[v].write < 4,
				"%f %f", (double)h[v].read, (double)h[v].write);
	}
	finish();
}
END_TEST

/* Rates are told apart, over the whole range of windows. */
static struct use staircase(uint64_t page)
{
	static const float rate[] = {0, 0.5f, 4, 30, 300};

	return (struct use){.read = {rate[page / MB_HEAT_BLOCK_PAGES / 8 % 5], 0}};
}

START_TEST(test_rates)
{
	float before = -1;

	make(40, false, staircase);
	run(120);
	take_extents();
	for (unsigned k = 0; k < 5; k++) {
		float sum = 0;

		for (unsigned b = 0; b < 8; b++)
			for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
				sum += extent_of((k * 8 + b) * MB_HEAT_BLOCK_PAGES + i)
					       ->view[0]
					       .read;
		ck_assert_msg(sum > 2 * before, "%u: %f after %f", k, (double)sum, (double)before);
		before = sum;
	}
	finish();
}
END_TEST

/* 1 TiB, of which 2 MiB are in use: few regions, few samples. */
START_TEST(test_sparse)
{
	struct mb_heat_config config = {.n_blocks = 1 << 19, .n_views = VIEWS};
	struct mb_heat_pick pick;
	uint64_t due, n = 0;

	ck_assert_int_eq(mb_heat_create(&config, &map), 0);
	now = SECOND;
	while (mb_heat_pick(map, now, 0, UINT64_MAX, true, 0, &pick, &due)) {
		mb_heat_skip(map, &pick, false, now);
		n++;
	}
	ck_assert_uint_gt(due, now);
	ck_assert_uint_le(n, 128);
	mb_heat_adapt(map, now);
	take_extents();
	ck_assert_uint_eq(n_extents, 0);
	ck_assert_uint_eq(mb_heat_n_covered(map), 0);
	finish();
}
END_TEST

/* Noise on all pages: the number of regions and details stays within its limits. */
static struct use noise(uint64_t page)
{
	uint32_t x = (uint32_t)page * 2654435761u;

	return (struct use){.read = {x >> 20 & 511, x >> 11 & 511}, .write = {x >> 4 & 63, x & 15}};
}

START_TEST(test_limits)
{
	struct mb_heat_config config = {
		.n_blocks = 1000, .n_views = VIEWS, .max_regions = 128, .max_details = 10};

	make(1, true, noise);
	mb_heat_destroy(map);
	ck_assert_int_eq(mb_heat_create(&config, &map), 0);
	in_huge_pages = _i;
	run(200);
	ck_assert_uint_le(mb_heat_n_regions(map), 128);
	take_extents();
	ck_assert_uint_le(n_extents, 128 + 10 * 512);
	/* Not a power of two: nothing before or behind it. */
	ck_assert_uint_le(extents[n_extents - 1].offset + extents[n_extents - 1].len_bytes,
		1000 * MB_HEAT_BLOCK_BYTES);
	finish();
}
END_TEST

START_TEST(test_bad_config)
{
	struct mb_heat_config none = {.n_blocks = 0, .n_views = 1},
			      many = {.n_blocks = 1, .n_views = 9};

	ck_assert_int_eq(mb_heat_create(&none, &map), -22);
	ck_assert_int_eq(mb_heat_create(&many, &map), -22);
	none = (struct mb_heat_config){.n_blocks = 1};
	ck_assert_int_eq(mb_heat_create(&none, &map), -22);
	mb_heat_destroy(NULL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("heat");
	TCase *cases = tcase_create("heat");

	tcase_add_loop_test(cases, test_quarters, 0, 2);
	tcase_add_test(cases, test_phase);
	tcase_add_loop_test(cases, test_no_phase, 0, 2);
	tcase_add_test(cases, test_churned);
	tcase_add_test(cases, test_odd_one);
	tcase_add_test(cases, test_hands_in_parts);
	tcase_add_test(cases, test_parts_by_turns);
	tcase_add_loop_test(cases, test_needle, 0, 2);
	tcase_add_test(cases, test_zoom_in_vain);
	tcase_add_test(cases, test_hottest_first);
	tcase_add_test(cases, test_hottest_gone);
	tcase_add_test(cases, test_awakens);
	tcase_add_test(cases, test_now_and_then);
	tcase_add_test(cases, test_no_room);
	tcase_add_test(cases, test_mixed_alike);
	tcase_add_loop_test(cases, test_slow, 0, 2);
	tcase_add_test(cases, test_slow_halves);
	tcase_add_test(cases, test_chance);
	tcase_add_test(cases, test_rates);
	tcase_add_test(cases, test_sparse);
	tcase_add_loop_test(cases, test_limits, 0, 2);
	tcase_add_test(cases, test_bad_config);
	tcase_set_timeout(cases, 60);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
