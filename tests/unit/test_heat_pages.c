// SPDX-License-Identifier: Apache-2.0
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heat_guest.h"
#include "run.h"

/* What the heat map knows of the pages inside a block, most of it in huge pages. */

static uint64_t moved_at_ns;

static float less_hot;

/* Of a guest of one block; one view has a page that is less hot. */
static struct use halves_of_block_0(uint64_t page)
{
	struct use use = halves_of_a_block(page + 5 * MB_HEAT_BLOCK_PAGES);

	use.read[1] = page == 300 ? less_hot : 0;
	return use;
}

START_TEST(test_zoom)
{
	make(64, true, halves_of_a_block);
	run(40);
	ck_assert_uint_ge(n_zooms, 1);
	ck_assert_uint_le(n_zooms, 6);
	take_extents();
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[0].write > 50);
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[1].read < 1);
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 300)->view[1].read > 50);
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 300)->view[0].write < 1);
	finish();
}
END_TEST

static bool swapped;

static struct use halves_swapped(uint64_t page)
{
	return halves_of_a_block(swapped && page % MB_HEAT_BLOCK_PAGES < 400
					 ? page - page % MB_HEAT_BLOCK_PAGES +
						   (page % MB_HEAT_BLOCK_PAGES + 200) % 400
					 : page);
}

/* They change hands while they are looked into: what was seen before does not count. */
START_TEST(test_zoom_hands)
{
	unsigned before;

	swapped = false;
	make(64, true, halves_swapped);
	while (zoomed_block != 5 || !zoom_looks || zoom_looks > ZOOM_LOOKS / 2) {
		ck_assert_uint_lt(now, 60 * SECOND);
		run(0.02);
	}
	swapped = true;
	/* Three tell, and every second one is through the longest window. */
	for (before = zoom_looks; zoom_looks > before - 4;)
		run(0.02);
	take_extents();
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[1].read > 50);
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[0].write < 1);
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 300)->view[0].write > 50);
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 450)->view[1].read > 50);
	finish();
}
END_TEST

static uint64_t gone_ns;

/* The same, but they come and go by turns, until one of them comes no more. */
static struct use halves_by_turns(uint64_t page)
{
	struct use use = halves_of_a_block(page);

	if (now > gone_ns || now / (700 * MS) % 2)
		use.write[0] = 0;
	else
		use.read[1] = 0;
	return use;
}

/* What is known of its pages outlasts the turns, but not the user. */
START_TEST(test_turns)
{
	gone_ns = UINT64_MAX;
	make(64, true, halves_by_turns);
	run(60);
	ck_assert_uint_ge(n_zooms, 1);
	may_zoom = false;
	for (unsigned i = 0; i < 20; i++) {
		run(1);
		take_extents();
		ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[0].write > 0.2f);
		ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[1].read < 0.1f);
		ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 300)->view[1].read > 0.2f);
		ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 300)->view[0].write < 0.1f);
	}
	gone_ns = now;
	run(60);
	may_zoom = true;
	take_extents();
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[0].write < 0.1f);
	finish();
}
END_TEST

/*
 * As radix sort: passes in which the owner reads a page, and then somebody writes it: the other
 * view three times in four, or one in eight. Pages side by side have the same writer.
 */
#define PASS_MS 1250

static bool is_shared_page(unsigned page)
{
	return page / 16 % 2;
}

static struct use passes(uint64_t page)
{
	unsigned group = page % MB_HEAT_BLOCK_PAGES / 4, owner = page % MB_HEAT_BLOCK_PAGES >= 256;
	uint64_t pass = now / (PASS_MS * MS);
	uint32_t random = (uint32_t)(pass * 2654435761u + group * 40503u) * 2246822519u;
	struct use use = {.read = {0}};

	if (page / MB_HEAT_BLOCK_PAGES != 5)
		return use;
	if (now % (PASS_MS * MS) < PASS_MS * MS / 2)
		use.read[owner] = 900;
	else
		use.write[random >> 24 < (is_shared_page((unsigned)page) ? 192 : 32) ? !owner
										     : owner] = 900;
	return use;
}

/* The shared ones are told from the others, as well as some dozens of looks can. */
START_TEST(test_passes)
{
	unsigned right = 0, said = 0, shared = 0;

	make(64, true, passes);
	run(300);
	take_extents();
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		const struct mb_heat *h = extent_of(5 * MB_HEAT_BLOCK_PAGES + i)->view;
		float sum[VIEWS] = {h[0].read + h[0].write, h[1].read + h[1].write};
		bool says = fminf(sum[0], sum[1]) > 0.3f * fmaxf(sum[0], sum[1]);

		said += says;
		shared += is_shared_page(i);
		right += says && is_shared_page(i);
	}
	ck_assert_uint_ge(right, said * 95 / 100);
	ck_assert_uint_ge(right, shared * 70 / 100);
	finish();
}
END_TEST

/* Each has its half for 25 s of 40, and nobody is there in between. */
static struct use halves_with_pauses(uint64_t page)
{
	return now % (40 * SECOND) > 25 * SECOND ? (struct use){.read = {0}}
						 : halves_of_a_block(page);
}

/* Nobody has come instead: what is known of the pages stays. */
START_TEST(test_pauses)
{
	make(64, true, halves_with_pauses);
	for (unsigned i = 0; i < 6; i++) {
		run(40);
		take_extents();
		ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[1].read < 0.1f);
		ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 300)->view[0].write < 0.1f);
	}
	ck_assert_uint_le(n_zooms, 7);
	finish();
}
END_TEST

/* As halves that are swapped, of pages of which no window is sure. */
static struct use halves_of_rare(uint64_t page)
{
	struct use use = halves_swapped(page);

	use.write[0] = fminf(use.write[0], 3);
	use.read[1] = fminf(use.read[1], 3);
	return use;
}

/* The next zoom tells. */
START_TEST(test_rare_hands)
{
	unsigned n_wrong = 0;

	swapped = false;
	make(64, true, halves_of_rare);
	run(200);
	swapped = true;
	for (uint64_t before = n_zooms; n_zooms == before || zoom_looks;)
		run(0.1);
	take_extents();
	for (unsigned i = 0; i < 400; i++) {
		const struct mb_heat *h = extent_of(5 * MB_HEAT_BLOCK_PAGES + i)->view;

		n_wrong += (h[0].write > h[1].read) == (i < 200);
	}
	ck_assert_uint_le(n_wrong, 20);
	finish();
}
END_TEST

/* The second one is there for 3 s of 17. */
static struct use visits(uint64_t page)
{
	struct use use = halves_of_a_block(page);

	if (now % (17 * SECOND) > 3 * SECOND || now > gone_ns)
		use.read[1] = 0;
	if (now > gone_ns)
		use.write[0] = 0;
	return use;
}

/* It is not looked into again and again; when all are gone, nothing is left of it. */
START_TEST(test_visits)
{
	gone_ns = UINT64_MAX;
	make(64, true, visits);
	run(300);
	ck_assert_uint_ge(n_zooms, 1);
	ck_assert_uint_le(n_zooms, 7);
	gone_ns = now;
	run(120);
	take_extents();
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view[0].write < 0.1f);
	ck_assert_uint_ge(extent_of(5 * MB_HEAT_BLOCK_PAGES)->len_bytes, MB_HEAT_BLOCK_BYTES);
	finish();
}
END_TEST

/* Read by both in parts; then one of them writes what it reads. */
static struct use written_later(uint64_t page)
{
	bool first = page % MB_HEAT_BLOCK_PAGES < 300, second = page % MB_HEAT_BLOCK_PAGES >= 100;
	struct use use = {.read = {first ? 900 : 0, second ? 900 : 0}};

	if (page / MB_HEAT_BLOCK_PAGES != 5)
		return (struct use){.read = {0}};
	if (first && now > moved_at_ns)
		use.write[0] = 900;
	return use;
}

/* What was found when nobody wrote says nothing any more. */
START_TEST(test_written_later)
{
	moved_at_ns = UINT64_MAX;
	make(64, true, written_later);
	run(60);
	take_extents();
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 200)->view[0].read > 50);
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 200)->view[0].write < 0.1f);
	moved_at_ns = now;
	run(3);
	take_extents();
	ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 200)->view[0].write > 50);
	finish();
}
END_TEST

/* Pages that a few looks in many see written are not said to be read only. */
static struct use written_seldom(uint64_t page)
{
	struct use use = halves_of_a_block(page);

	if (page / MB_HEAT_BLOCK_PAGES == 5 && page % 2 && now > moved_at_ns)
		use.write[1] = 0.3f;
	return use;
}

START_TEST(test_written_seldom)
{
	unsigned n = 0;

	moved_at_ns = UINT64_MAX;
	make(64, true, written_seldom);
	run(100);
	moved_at_ns = now;
	while (n_zooms < 3 || zoom_looks)
		run(1);
	take_extents();
	for (unsigned i = 201; i < MB_HEAT_BLOCK_PAGES; i += 2) {
		const struct mb_heat *h = &extent_of(5 * MB_HEAT_BLOCK_PAGES + i)->view[1];

		n += h->write > 0.02f * h->read;
	}
	/* In twelve windows of 100 ms and twelve of a second. */
	ck_assert_uint_ge(n, 156 / 8);
	finish();
}
END_TEST

/* One view has most of the pages and the other a few, until that has them all. */
static struct use minor_takes_over(uint64_t page)
{
	bool minors = page % MB_HEAT_BLOCK_PAGES >= 500;

	if (page / MB_HEAT_BLOCK_PAGES != 5)
		return (struct use){.read = {0}};
	if (now > moved_at_ns)
		return (struct use){.read = {0, 900}};
	return minors ? (struct use){.read = {0, 900}} : (struct use){.write = {900, 0}};
}

START_TEST(test_minor_takes_over)
{
	const struct mb_heat *h;

	moved_at_ns = UINT64_MAX;
	make(64, true, minor_takes_over);
	run(60);
	ck_assert_uint_ge(n_zooms, 1);
	moved_at_ns = now;
	run(5);
	take_extents();
	h = extent_of(5 * MB_HEAT_BLOCK_PAGES + 100)->view;
	ck_assert(h[1].read > 50 && h[0].write < 0.2f * h[1].read);
	finish();
}
END_TEST

/* A detail that was learnt in small pages, of one view: in a huge page there is nothing to find. */
static struct use one_half(uint64_t page)
{
	struct use use = halves_of_a_block(page);

	use.read[1] = 0;
	return use;
}

START_TEST(test_no_zoom)
{
	make(64, false, one_half);
	run(30);
	in_huge_pages = true;
	run(200);
	ck_assert_uint_eq(n_zooms, 0);
	finish();
}
END_TEST

/* Looks at the whole of a block whose pages are known, a second. Views that are nearly as hot are
 * taken to be; and no rate is above what windows tell apart. */
START_TEST(test_detailed)
{
	uint64_t before;
	float hot, other;

	less_hot = _i ? 250 : 8;
	make(1, true, halves_of_block_0);
	run(30);
	ck_assert_uint_ge(n_zooms, 1);
	may_zoom = false;
	before = n_samples;
	run(20);
	may_zoom = true;
	ck_assert_uint_ge(n_samples - before, 15);
	ck_assert_uint_le(n_samples - before, 21);
	take_extents();
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		for (unsigned v = 0; v < VIEWS; v++) {
			const struct mb_heat *h = &extent_of(i)->view[v];

			ck_assert(h->read >= 0 && h->write >= 0 && h->read + h->write < 461);
		}
	hot = extent_of(100)->view[0].write;
	other = extent_of(300)->view[1].read;
	ck_assert(hot > 300);
	ck_assert_msg(_i ? other > 0.8f * hot : other > 0 && other < 0.3f * hot, "%f %f",
		(double)hot, (double)other);
	finish();
}
END_TEST

/* One view reads a part of the block; the other one reads every second page of it, in one of eleven
 * windows of a zoom. */
static struct use rarely(uint64_t page)
{
	if (page / MB_HEAT_BLOCK_PAGES != 5)
		return (struct use){.read = {0}};
	return (struct use){
		.read = {page % MB_HEAT_BLOCK_PAGES < 400 ? 900 : 0, page % 2 ? 0.9f : 0}};
}

/* Each page counts for little; on average they are as they are. */
START_TEST(test_rounding)
{
	float sum = 0;

	make(64, true, rarely);
	run(400);
	take_extents();
	for (unsigned i = 1; i < 400; i += 2)
		sum += extent_of(5 * MB_HEAT_BLOCK_PAGES + i)->view[1].read / 0.9f;
	ck_assert_msg(sum / 200 > 0.7f && sum / 200 < 1.3f, "%f", (double)sum / 200);
	finish();
}
END_TEST

/* Both views write all pages of it now and then, but for some, which have one of them. */
static float mean_writes;

static struct use some_odd(uint64_t page)
{
	unsigned i = page % MB_HEAT_BLOCK_PAGES;

	if (page / MB_HEAT_BLOCK_PAGES != 5)
		return (struct use){.read = {0}};
	return i % 64 == 7 ? (struct use){.write = {90, 0}}
			   : (struct use){.write = {mean_writes, mean_writes}};
}

/* They are told, and the others are one. */
START_TEST(test_odd_pages)
{
	mean_writes = _i ? 6 : 70;
	make(64, _i, some_odd);
	run(100);
	take_extents();
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		const struct mb_heat *h = extent_of(5 * MB_HEAT_BLOCK_PAGES + i)->view;

		ck_assert_msg(
			i % 64 == 7 ? h[0].write > 5 && h[1].write < 1
				    : h[0].write > mean_writes / 4 && h[1].write > mean_writes / 4,
			"page %u: %f %f", i, (double)h[0].write, (double)h[1].write);
	}
	ck_assert_uint_le(n_extents, 2 + 9 + 8);
	finish();
}
END_TEST

/* Both read half of its pages, and one writes a few of them. */
static float reads;

static struct use rarely_written(uint64_t page)
{
	unsigned i = page % MB_HEAT_BLOCK_PAGES;

	if (page / MB_HEAT_BLOCK_PAGES != 5 || i >= 256)
		return (struct use){.read = {0}};
	return (struct use){.read = {reads, reads}, .write = {0, i % 2 ? 0.5f : 0}};
}

/* Short windows tell how often it is read, long ones that it is written. */
START_TEST(test_rare_writes)
{
	unsigned missed = 0;
	double sum = 0;

	reads = (float[]){20, 60, 130}[_i];
	make(64, false, rarely_written);
	run(200);
	take_extents();
	for (unsigned i = 0; i < 256; i++) {
		const struct mb_heat *h = extent_of(5 * MB_HEAT_BLOCK_PAGES + i)->view;

		missed += i % 2 && h[1].write < 0.02f;
		sum += (double)(h[0].read + h[1].read) / 512;
	}
	ck_assert_msg(missed <= 6, "%u of 128 written pages are said not to be", missed);
	ck_assert_msg(sum > reads / 4 && sum < 2 * reads, "%f", sum);
	finish();
}
END_TEST

static struct use some_written(uint64_t page)
{
	unsigned i = page % MB_HEAT_BLOCK_PAGES;

	if (page / MB_HEAT_BLOCK_PAGES != 5)
		return (struct use){.read = {0}};
	return (struct use){.read = {20, 20}, .write = {0, i % 64 == 7 ? 5 : 0}};
}

/* All are read alike, and a few are written. */
START_TEST(test_odd_writers)
{
	make(64, false, some_written);
	run(200);
	take_extents();
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		const struct mb_heat *h = extent_of(5 * MB_HEAT_BLOCK_PAGES + i)->view;

		ck_assert_msg(i % 64 == 7 ? h[1].write > 0.3f : h[1].write < 0.1f, "page %u: %f", i,
			(double)h[1].write);
	}
	finish();
}
END_TEST

/* All that the first view does there it does at one moment of twelve, for 20 ms. */
static struct use halves_in_bursts(uint64_t page)
{
	struct use use = halves_of_a_block(page);
	uint32_t x = (uint32_t)(now / (20 * MS)) * 2654435761u;

	x = (x ^ x >> 15) * 2246822519u;
	if ((x >> 16) % (zoom_looks ? 3 : 12))
		use.write[0] = 0;
	return use;
}

/* It is not taken for gone because a short window hardly ever sees it. */
START_TEST(test_bursts)
{
	make(64, true, halves_in_bursts);
	run(60);
	ck_assert_uint_ge(n_zooms, 1);
	may_zoom = false;
	for (unsigned i = 0; i < 100; i++) {
		run(1);
		take_extents();
		ck_assert(extent_of(5 * MB_HEAT_BLOCK_PAGES + 300)->view[0].write < 0.1f);
	}
	may_zoom = true;
	finish();
}
END_TEST

/* Each view is there in every second look, by chance. */
static struct use halves_by_chance(uint64_t page)
{
	struct use use = halves_of_a_block(page + 5 * MB_HEAT_BLOCK_PAGES);
	uint32_t x = (uint32_t)(now / MS) * 2654435761u;

	x = (x ^ x >> 15) * 2246822519u;
	use.write[0] *= (float)(x >> 30 & 1);
	use.read[1] *= (float)(x >> 31);
	return use;
}

/* Looks at the whole of a block whose pages are known are averaged: a few say little. */
START_TEST(test_whole_by_chance)
{
	unsigned apart = 0;

	make(1, true, halves_by_chance);
	run(60);
	may_zoom = false;
	for (unsigned i = 0; i < 400; i++) {
		float a, b;

		run(1);
		take_extents();
		a = extent_of(100)->view[0].write;
		b = extent_of(300)->view[1].read;
		apart += fmaxf(a, b) > 2 * fminf(a, b);
	}
	may_zoom = true;
	ck_assert_msg(apart < 60, "%u", apart);
	finish();
}
END_TEST

/* A look at a block in small pages: one half of it is touched, by one view. */
static void learn_half(unsigned by)
{
	struct mb_heat_seen seen = {
		.n_pages = MB_HEAT_BLOCK_PAGES, .knows_writes = true, .view = view};
	uint64_t due;

	memset(view, 0, sizeof(view));
	while (!mb_heat_pick(map, now, 0, UINT64_MAX, false, 0, &seen.pick, &due))
		now += 5 * MS;
	memset(view[by].touched[0], 0xff, sizeof(view[by].touched[0]) / 2);
	mb_heat_learn(map, &seen, now);
}

/* Who is seen there once has a turn of it; who is twice, and alone, has taken over. */
START_TEST(test_page_turns)
{
	make(1, false, NULL);
	for (unsigned i = 0; i < 20; i++)
		learn_half(0);
	learn_half(1);
	take_extents();
	ck_assert(extent_of(100)->view[0].read > extent_of(100)->view[1].read);
	learn_half(0);
	learn_half(1);
	learn_half(1);
	take_extents();
	ck_assert(extent_of(100)->view[0].read == 0 && extent_of(100)->view[1].read > 0);
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("heat_pages");
	TCase *cases = tcase_create("heat_pages");

	tcase_add_test(cases, test_zoom);
	tcase_add_test(cases, test_zoom_hands);
	tcase_add_test(cases, test_turns);
	tcase_add_test(cases, test_passes);
	tcase_add_test(cases, test_pauses);
	tcase_add_test(cases, test_rare_hands);
	tcase_add_test(cases, test_visits);
	tcase_add_test(cases, test_written_later);
	tcase_add_test(cases, test_written_seldom);
	tcase_add_test(cases, test_minor_takes_over);
	tcase_add_test(cases, test_no_zoom);
	tcase_add_loop_test(cases, test_detailed, 0, 2);
	tcase_add_test(cases, test_rounding);
	tcase_add_loop_test(cases, test_odd_pages, 0, 2);
	tcase_add_loop_test(cases, test_rare_writes, 0, 3);
	tcase_add_test(cases, test_odd_writers);
	tcase_add_test(cases, test_whole_by_chance);
	tcase_add_test(cases, test_bursts);
	tcase_add_test(cases, test_page_turns);
	tcase_set_timeout(cases, 60);
	suite_add_tcase(suite, cases);
	return run_suite(suite);
}
