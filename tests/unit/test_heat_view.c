// SPDX-License-Identifier: Apache-2.0
#include "heat_view.h"
#include "run.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MIB 1048576ull
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)

static struct mb_error err;

/* An answer of a machine with one node a view and no extents. */
static json_t *answer_of(unsigned n_views, uint64_t memory_bytes)
{
	json_t *views = json_array(), *nodes = json_array(), *answer;

	for (unsigned v = 0; v < n_views; v++) {
		json_array_append_new(views, json_pack("{s:[i]}", "nodes", 2 * v));
		json_array_append_new(nodes, json_integer(2 * v));
	}
	answer = json_pack("{s:b, s:s, s:i, s:i, s:I, s:o, s:o, s:[], s:{s:b, s:b, s:f, s:i}}",
		"ok", true, "name", "web1", "pid", 123, "time_ms", 5120, "memory_bytes",
		(json_int_t)memory_bytes, "views", views, "nodes", nodes, "extents", "tracker",
		"writes", true, "exact", true, "covered", 0.93, "cpu_ppm", 1200);
	ck_assert_ptr_nonnull(answer);
	return answer;
}

/* Touches are of one view, and none of the others. node < 0: not known; write < 0: null. */
static void add(json_t *answer, uint64_t gpa, uint64_t bytes, int node, unsigned view, double read,
	double write)
{
	json_t *reads = json_array(), *writes = write < 0 ? json_null() : json_array();

	for (size_t v = 0; v < json_array_size(json_object_get(answer, "views")); v++) {
		json_array_append_new(reads, json_real(v == view ? read : 0));
		if (json_is_array(writes))
			json_array_append_new(writes, json_real(v == view ? write : 0));
	}
	json_array_append_new(json_object_get(answer, "extents"),
		json_pack("{s:I, s:I, s:o, s:f, s:f, s:i, s:o, s:o}", "gpa", (json_int_t)gpa,
			"bytes", (json_int_t)bytes, "node",
			node < 0 ? json_null() : json_integer(node), "node_share", 1.0,
			"confidence", 0.9, "age_ms", 40, "read", reads, "write", writes));
}

static json_t *extent_of(json_t *answer, size_t i)
{
	return json_array_get(json_object_get(answer, "extents"), i);
}

/* Takes the answer. */
static struct heat read_all(json_t *answer)
{
	struct heat heat;
	int rc = heat_read(answer, &heat, &err);

	ck_assert_msg(!rc, "%s", err.text);
	json_decref(answer);
	return heat;
}

/* Both read the third gigabyte, both write the fourth; the fifth is remote. */
static json_t *two_views(void)
{
	json_t *answer = answer_of(2, 8 * GIB), *both;

	add(answer, 0, GIB, 0, 0, 100, 0);
	add(answer, GIB, GIB, 2, 1, 100, 10);
	add(answer, 2 * GIB, GIB, 0, 0, 50, 0);
	both = json_object_get(extent_of(answer, 2), "read");
	json_array_set_new(both, 1, json_real(40));
	add(answer, 3 * GIB, GIB, 0, 0, 0, 50);
	both = json_object_get(extent_of(answer, 3), "write");
	json_array_set_new(both, 1, json_real(40));
	add(answer, 4 * GIB, GIB, 2, 0, 5, 0);
	add(answer, 5 * GIB, GIB, 2, 0, 0, 0);
	return answer;
}

static void set_copied(json_t *answer, size_t i, double of_0, double of_1)
{
	json_object_set_new(extent_of(answer, i), "copied", json_pack("[f, f]", of_0, of_1));
}

/* What both read has a copy, mostly; so has what was remote. A little, a third and nothing of
 * others. */
static json_t *with_copies(void)
{
	json_t *answer = two_views();

	set_copied(answer, 0, 0, 0.125);
	set_copied(answer, 1, 0, 0);
	set_copied(answer, 2, 0, 1);
	json_object_set_new(extent_of(answer, 3), "copied", json_null());
	set_copied(answer, 4, 0.875, 0);
	set_copied(answer, 5, 0.375, 0.25);
	return answer;
}

static json_t *sparse_tib(void)
{
	json_t *answer = answer_of(2, TIB);

	for (unsigned i = 0; i < 20000; i++)
		add(answer, (i + (i / 100) * 2500ull) * 2 * MIB, 2 * MIB, 2 * (i / 100 % 2),
			i / 100 % 2, 100, 0);
	return answer;
}

START_TEST(reading)
{
	struct heat heat = read_all(two_views());

	ck_assert_str_eq(heat.name, "web1");
	ck_assert_uint_eq(heat.n_views, 2);
	ck_assert_uint_eq(heat.n_nodes, 2);
	ck_assert_uint_eq(heat.node[1], 2);
	ck_assert_uint_eq(heat.view_nodes[1], 2);
	ck_assert_uint_eq(heat.n_extents, 6);
	ck_assert_uint_eq(heat.extent[1].gpa, GIB);
	ck_assert_uint_eq(heat.extent[1].node, 1);
	ck_assert(heat.tracker.writes && heat.tracker.covered > 0.92);
	ck_assert(!heat.can_copy && heat_copied(&heat.extent[1]) == 0);
	ck_assert_uint_eq(heat_sum_copied(&heat), 0);
	heat_finish(&heat);
}
END_TEST

START_TEST(reading_copies)
{
	static const float want[] = {0.125f, 0, 1, 0, 0.875f, 0.375f};
	struct heat heat = read_all(with_copies());

	ck_assert(heat.can_copy);
	for (unsigned i = 0; i < 6; i++)
		ck_assert(heat_copied(&heat.extent[i]) == want[i]);
	ck_assert(heat.extent[5].copied[1] == 0.25f);
	ck_assert_uint_eq(heat_sum_copied(&heat), 19 * GIB / 8);
	/* Whoever has a copy reads what is near, wherever home is; a copy of another's is no help.
	 */
	ck_assert_int_eq(heat_classify(&heat, &heat.extent[4]), HEAT_OWN);
	heat.extent[4].copied[0] = 0.5f;
	heat.extent[4].copied[1] = 1;
	ck_assert_int_eq(heat_classify(&heat, &heat.extent[4]), HEAT_REMOTE);
	heat_finish(&heat);
}
END_TEST

START_TEST(classes)
{
	static const enum heat_class want[] = {
		HEAT_OWN, HEAT_OWN, HEAT_READ_SHARED, HEAT_WRITE_SHARED, HEAT_REMOTE, HEAT_IDLE};
	uint64_t bytes[HEAT_CLASSES];
	struct heat heat = read_all(two_views());

	for (unsigned i = 0; i < 6; i++)
		ck_assert_int_eq(heat_classify(&heat, &heat.extent[i]), want[i]);
	ck_assert_uint_eq(heat_sum(&heat, bytes), 6 * GIB);
	ck_assert_uint_eq(bytes[HEAT_OWN], 2 * GIB);
	/* Less than a twentieth of the touches is none. */
	heat.extent[0].read[1] = 4;
	ck_assert_int_eq(heat_classify(&heat, &heat.extent[0]), HEAT_OWN);
	heat.extent[0].read[1] = 6;
	ck_assert_int_eq(heat_classify(&heat, &heat.extent[0]), HEAT_READ_SHARED);
	heat.extent[0].written_bytes = 0;
	ck_assert_int_eq(heat_classify(&heat, &heat.extent[0]), HEAT_SHARED);
	heat.extent[1].has_node = false;
	ck_assert_int_eq(heat_classify(&heat, &heat.extent[1]), HEAT_UNKNOWN);
	heat.extent[4].looked_bytes = 0;
	ck_assert_int_eq(heat_classify(&heat, &heat.extent[4]), HEAT_UNKNOWN);
	heat_finish(&heat);
}
END_TEST

START_TEST(one_view)
{
	json_t *answer = answer_of(1, GIB);
	struct heat heat;

	json_array_append_new(json_object_get(answer, "nodes"), json_integer(7));
	json_array_append_new(
		json_object_get(json_array_get(json_object_get(answer, "views"), 0), "nodes"),
		json_integer(7));
	add(answer, 0, GIB, 7, 0, 10, -1);
	heat = read_all(answer);
	ck_assert_int_eq(heat_classify(&heat, &heat.extent[0]), HEAT_USED);
	ck_assert_uint_eq(heat.extent[0].written_bytes, 0);
	heat_finish(&heat);
}
END_TEST

START_TEST(levels)
{
	struct heat heat = read_all(two_views());
	unsigned last = 0;

	for (double per_s = 0; per_s < 1e6; per_s = per_s * 1.1 + 0.01) {
		struct heat_use use;

		heat.extent[0].read[0] = (float)per_s;
		use = heat_use(&heat, &heat.extent[0], HEAT_READ);
		ck_assert_uint_ge(use.level, last);
		ck_assert_uint_le(use.level, HEAT_LEVELS);
		ck_assert(!use.users == !use.level);
		last = use.level;
		ck_assert_uint_eq(heat_use(&heat, &heat.extent[0], HEAT_WRITE).level, 0);
	}
	ck_assert_uint_eq(last, HEAT_LEVELS);
	heat_finish(&heat);
}
END_TEST

/* What the cells of an axis have in all is what the extents have. */
static void check_merge(const struct heat *heat, unsigned max_slots)
{
	struct heat_extent *cells;
	struct heat_axis axis;
	uint64_t used = 0, in_cells = 0;
	double touches = 0, touches_in_cells = 0, copied = 0, copied_in_cells = 0;

	ck_assert_int_eq(heat_axis_fit(&axis, heat->extent, heat->n_extents, max_slots), 0);
	ck_assert_uint_le(axis.n, max_slots);
	cells = calloc(axis.n + 1u, sizeof(*cells));
	heat_merge(&axis, heat->extent, heat->n_extents, cells);
	for (size_t i = 0; i < heat->n_extents; i++) {
		used += heat->extent[i].used_bytes;
		touches += (double)heat->extent[i].used_bytes * (double)heat->extent[i].read[0];
		copied += (double)heat->extent[i].used_bytes * (double)heat->extent[i].copied[1];
	}
	for (unsigned i = 0; i < axis.n; i++) {
		ck_assert_uint_le(cells[i].used_bytes, cells[i].bytes);
		ck_assert(!axis.slot[i].gap || !cells[i].used_bytes);
		ck_assert(!i || axis.slot[i].gpa > axis.slot[i - 1].gpa);
		in_cells += cells[i].used_bytes;
		touches_in_cells += (double)cells[i].used_bytes * (double)cells[i].read[0];
		copied_in_cells += (double)cells[i].used_bytes * (double)cells[i].copied[1];
		ck_assert(cells[i].copied[1] <= 1);
	}
	/* A byte a cell is rounding. */
	ck_assert_uint_ge(in_cells, used);
	ck_assert_uint_le(in_cells, used + axis.n);
	ck_assert(touches_in_cells >= touches * 0.999 && touches_in_cells <= touches * 1.001 + 1);
	ck_assert(copied_in_cells >= copied * 0.999 && copied_in_cells <= copied * 1.001 + axis.n);
	free(cells);
	free(axis.slot);
}

START_TEST(merging)
{
	static const unsigned slots[] = {1, 2, 3, 7, 60, 500, 5000};
	struct heat two = read_all(two_views()), tib = read_all(sparse_tib());
	struct heat empty = read_all(answer_of(2, GIB));

	for (unsigned i = 0; i < sizeof(slots) / sizeof(slots[0]); i++) {
		check_merge(&two, slots[i]);
		check_merge(&tib, slots[i]);
		check_merge(&empty, slots[i]);
	}
	heat_finish(&two);
	heat_finish(&tib);
	heat_finish(&empty);
}
END_TEST

START_TEST(random_extents)
{
	unsigned seed = (unsigned)time(NULL) ^ (unsigned)getpid();

	printf("seed %u\n", seed);
	srandom(seed);
	for (unsigned round = 0; round < 30; round++) {
		json_t *answer = answer_of(2, TIB);
		uint64_t gpa = 0;
		struct heat heat;

		for (unsigned i = 0; i < 200; i++) {
			uint64_t bytes = 4096ull * (1 + (uint64_t)random() % 2000);

			if (random() % 4 == 0)
				gpa += 4096ull << random() % 22;
			add(answer, gpa, bytes, random() % 2 * 2, (unsigned)random() % 2,
				random() % 500, random() % 3 ? 0 : 5);
			set_copied(answer, i, 0, (double)(random() % 101) / 100);
			gpa += bytes;
		}
		heat = read_all(answer);
		for (unsigned slots = 1; slots < 3000; slots = slots * 3 + 1)
			check_merge(&heat, slots);
		heat_finish(&heat);
	}
}
END_TEST

/* A gap costs one slot, and so 40 GiB in 200 places of 1 TiB are seen. */
START_TEST(sparse)
{
	struct heat heat = read_all(sparse_tib());
	struct heat_axis axis;
	unsigned n_gaps = 0;

	ck_assert_int_eq(heat_axis_fit(&axis, heat.extent, heat.n_extents, 2000), 0);
	for (unsigned i = 0; i < axis.n; i++)
		n_gaps += axis.slot[i].gap;
	ck_assert_uint_eq(n_gaps, 199);
	ck_assert_uint_le(axis.cell_bytes, 64 * MIB);
	ck_assert_uint_ge(axis.n, 1000);
	free(axis.slot);
	heat_finish(&heat);
}
END_TEST

static char *map_of(const struct heat *heat, const struct heat_look *look)
{
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);

	ck_assert_int_eq(heat_map_draw(heat, look, out), 0);
	fclose(out);
	return text;
}

/* Lines of a text without escapes, and the columns of the widest. */
static void measure(const char *text, unsigned *lines, unsigned *columns)
{
	unsigned column = 0;

	*lines = *text ? 1 : 0;
	*columns = 0;
	for (; *text; text++) {
		if (*text == '\033') {
			text += strcspn(text, "mKJH");
		} else if (*text == '\n') {
			column = 0;
			*lines += text[1] != '\0';
		} else if ((*text & 0xc0) != 0x80) {
			*columns = ++column > *columns ? column : *columns;
		}
	}
}

START_TEST(map_fits)
{
	struct heat heats[] = {read_all(two_views()), read_all(sparse_tib()),
		read_all(answer_of(8, GIB)), read_all(with_copies())};

	for (unsigned h = 0; h < 4; h++) {
		for (unsigned i = 0; i < 16 * 6 * 6; i++) {
			static const unsigned columns[] = {1, 10, 40, 80, 81, 300};
			static const unsigned rows[] = {1, 2, 10, 24, 60, 0};
			struct heat_look look = {.columns = columns[i / 16 % 6],
				.rows = rows[i / 96],
				.colours = (enum heat_colours)(i % 4),
				.utf8 = i & 4,
				.home = i & 8,
				.what = (enum heat_what)(i % 3)};
			char *text = map_of(&heats[h], &look);
			unsigned n_lines, n_columns;

			measure(text, &n_lines, &n_columns);
			ck_assert_uint_le(n_columns, look.columns);
			ck_assert(!look.rows || n_lines <= look.rows);
			ck_assert(look.rows || n_lines > 5);
			ck_assert(look.colours || look.rows || !strchr(text, '\033'));
			for (const char *c = text; !look.utf8 && *c; c++)
				ck_assert(!(*c & 0x80));
			free(text);
		}
		heat_finish(&heats[h]);
	}
}
END_TEST

START_TEST(map_says)
{
	/* On this screen there is one line for the map, with cells of 128 MiB. */
	static const char *const want[] = {"web1  PID 123", "8 GiB of memory, 6 GiB in use",
		"93 % covered", "writes known", "a view 0 (node 0)", "b view 1 (node 2)",
		"a cell is 128 MiB",
		"\n        0 aaaaaaaaBBBBBBBB++++++++########aaaaaaaa........\033",
		"\n     heat 7777777777777777777777777777777755555555........\033",
		"\n lives on 00000000222222220000000000000000222222222222",
		"\nown node 2 GiB (33 %)", "remote 1 GiB (17 %)", "q quit"};
	static const char *const want_once[] = {"\nown node            2 GiB   33 %",
		"\nwrite-shared        1 GiB   17 %  several "
		"views use it, and at least one writes\n"};
	struct heat_look look = {.columns = 70, .rows = 18, .home = true};
	struct heat heat = read_all(two_views());
	char *text = map_of(&heat, &look);

	for (unsigned i = 0; i < sizeof(want) / sizeof(want[0]); i++)
		ck_assert_msg(strstr(text, want[i]), "'%s' is not in:\n%s", want[i], text);
	free(text);
	look = (struct heat_look){.columns = 80};
	text = map_of(&heat, &look);
	for (unsigned i = 0; i < sizeof(want_once) / sizeof(want_once[0]); i++)
		ck_assert_msg(
			strstr(text, want_once[i]), "'%s' is not in:\n%s", want_once[i], text);
	ck_assert_ptr_null(strstr(text, "\n lives on"));
	free(text);
	heat_finish(&heat);
}
END_TEST

/* What has copies is seen without colours, and with any; less than a quarter of a cell is not. */
START_TEST(map_of_copies)
{
	static const char *const plain[] = {"\n        0 aaaaaaaaBBBBBBBB++++++++####",
		"\n lives on 0000000022222222++++++++00000000++++++++++++",
		"\nlives on  node 0: 3 GiB  node 2: 3 GiB  + has copies: 2.38 GiB"};
	static const char *const several[] = {
		[HEAT_COLOURS_8] = "\033[0;45;30m++++++++++++++++\033",
		[HEAT_COLOURS_256] = "\033[0;48;5;176;30m++++++++++++++++\033",
		[HEAT_COLOURS_RGB] = "\033[0;48;2;217;79;213;30m++++++++++++++++\033",
	};
	struct heat_look look = {.columns = 70, .rows = 18, .home = true};
	struct heat heat = read_all(with_copies());
	char *text = map_of(&heat, &look);

	for (unsigned i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
		ck_assert_msg(strstr(text, plain[i]), "'%s' is not in:\n%s", plain[i], text);
	free(text);
	for (unsigned i = HEAT_COLOURS_8; i <= HEAT_COLOURS_RGB; i++) {
		look.colours = (enum heat_colours)i;
		look.utf8 = i != HEAT_COLOURS_8;
		text = map_of(&heat, &look);
		ck_assert_msg(strstr(text, several[i]), "%s", text);
		/* Where it is a third, it is darker. */
		ck_assert(i != HEAT_COLOURS_RGB ||
			  strstr(text, ";48;2;138;50;136;37m++++++++++++++++\033"));
		free(text);
	}
	look.home = false;
	text = map_of(&heat, &look);
	ck_assert_ptr_null(strstr(text, "++++"));
	ck_assert_ptr_null(strstr(text, "copies"));
	free(text);
	heat_finish(&heat);
	/* A machine without copies has no word of them. */
	look = (struct heat_look){.columns = 70, .rows = 18, .home = true};
	heat = read_all(two_views());
	text = map_of(&heat, &look);
	ck_assert_ptr_null(strstr(text, "copies"));
	free(text);
	heat_finish(&heat);
}
END_TEST

/* Well-formed XML with one root; returns how many elements it has. For what we write: no CDATA. */
static unsigned check_xml(const char *text)
{
	char open[64][16];
	unsigned depth = 0, n = 0;

	for (const char *p = text; *p; p++) {
		ck_assert_msg((unsigned char)*p >= ' ' || *p == '\n', "control character");
		if (*p == '&') {
			ck_assert_msg(!strncmp(p, "&amp;", 5) || !strncmp(p, "&lt;", 4) ||
					      !strncmp(p, "&gt;", 4) || !strncmp(p, "&quot;", 6),
				"%.20s", p);
		} else if (*p == '<') {
			size_t len = strcspn(p, ">");
			size_t name = strcspn(p + 1, " >/\n");
			unsigned quotes = 0;

			ck_assert(p[len] == '>');
			if (p[1] == '/') {
				ck_assert_uint_gt(depth, 0);
				depth--;
				ck_assert_msg(!strncmp(open[depth], p + 2, strlen(open[depth])),
					"</%s>: %.20s", open[depth], p);
			} else {
				ck_assert(depth || !n);
				for (size_t i = 0; i < len; i++)
					quotes += p[i] == '"';
				ck_assert_uint_eq(quotes % 2, 0);
				n++;
				if (p[len - 1] != '/') {
					ck_assert_uint_lt(depth, 64);
					snprintf(open[depth++], 16, "%.*s", (int)name, p + 1);
				}
			}
			p += len;
		} else {
			ck_assert(*p != '>' || depth); /* "a>b" is text */
		}
	}
	ck_assert_uint_eq(depth, 0);
	return n;
}

static char *svg_of(struct heat_record *record)
{
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);

	ck_assert_int_eq(heat_svg_draw(record, out), 0);
	fclose(out);
	check_xml(text);
	return text;
}

static unsigned count(const char *text, const char *word)
{
	unsigned n = 0;

	while ((text = strstr(text, word))) {
		text += strlen(word);
		n++;
	}
	return n;
}

START_TEST(pictures)
{
	struct heat_record record = {0};
	char *text;

	for (unsigned i = 0; i < 10; i++) {
		struct heat heat = read_all(two_views());

		ck_assert_int_eq(heat_record_add(&record, &heat, i * 250, &err), 0);
	}
	ck_assert_uint_eq(record.end_ms, 2500);
	text = svg_of(&record);
	/* Nothing changed: each of the six areas is one rectangle, whatever the time. */
	ck_assert_uint_lt(strlen(text), 12000);
	ck_assert_ptr_nonnull(strstr(text, "Read by"));
	ck_assert_ptr_nonnull(strstr(text, "Written by"));
	ck_assert_ptr_nonnull(strstr(text, "Lives on"));
	ck_assert_ptr_nonnull(strstr(text, "seconds"));
	ck_assert_ptr_nonnull(strstr(text, "view 1 (node 2)"));
	ck_assert_ptr_nonnull(strstr(text, "prefers-color-scheme:dark"));
	ck_assert_ptr_nonnull(strstr(text, "4 GiB</text>"));
	ck_assert_ptr_nonnull(strstr(text, "1 GiB (17 %)"));
	free(text);
	heat_record_finish(&record);
}
END_TEST

START_TEST(picture_of_copies)
{
	struct heat_record record = {0};

	for (unsigned i = 0; i < 2; i++) {
		struct heat heat = read_all(i ? with_copies() : two_views());
		char *text;

		ck_assert_int_eq(heat_record_add(&record, &heat, i * 250, &err), 0);
		text = svg_of(&record);
		/* Much of the third and fifth gigabyte in the second look, and a key; some of the
		 * sixth. */
		ck_assert_uint_eq(count(text, "<path class=\"i204\""), i ? 2 : 0);
		ck_assert_uint_eq(count(text, "<path class=\"i205\""), i);
		ck_assert_uint_eq(count(text, "has copies: 2.38 GiB at the end"), i);
		ck_assert_uint_ge(count(text, "url(#copies)"), 1);
		ck_assert_uint_eq(count(text, "id=\"copies\""), 1);
		free(text);
	}
	heat_record_finish(&record);
}
END_TEST

/* The picture has a largest size: as many rectangles as its grid has cells, when no two are equal.
 */
START_TEST(picture_is_bounded)
{
	struct heat_record *record = calloc(1, sizeof(*record));
	struct heat heat;
	char *text;
	int rc = 0;

	for (unsigned i = 0; i <= HEAT_MAX_COLUMNS; i++) {
		json_t *answer = answer_of(8, TIB);

		for (unsigned e = 0; e < 300; e++)
			add(answer, e * GIB * 3, GIB, (int)((e + i) % 8) * 2, (e * 5 + i) % 8,
				1 << (e + i) % 9, 1 << (e * i) % 9);
		heat = read_all(answer);
		rc = heat_record_add(record, &heat, i * 1000, &err);
		ck_assert_ptr_null(heat.extent);
	}
	ck_assert_int_eq(rc, -ENOSPC);
	text = svg_of(record);
	printf("%zu bytes\n", strlen(text));
	ck_assert_uint_le(count(text, "z"), 3 * HEAT_SVG_ROWS * HEAT_MAX_COLUMNS + 200);
	ck_assert_uint_lt(strlen(text), 6000000);
	free(text);
	heat_record_finish(record);
	free(record);
}
END_TEST

/* Memory that the tracker had only thought to be in use gets no room once it is known not to be. */
START_TEST(picture_of_a_guess)
{
	struct heat_record record = {0};
	char *text;

	for (unsigned i = 0; i < 3; i++) {
		json_t *answer = answer_of(2, 64 * GIB);
		struct heat heat;

		add(answer, 0, GIB, 0, 0, 100, 0);
		if (!i) {
			add(answer, 10 * GIB, 50 * GIB, 0, 0, 0, 0);
			json_object_set_new(extent_of(answer, 1), "confidence", json_real(0));
		}
		heat = read_all(answer);
		ck_assert_int_eq(heat_record_add(&record, &heat, i * 250, &err), 0);
	}
	text = svg_of(&record);
	ck_assert_ptr_nonnull(strstr(text, "512 MiB</text>"));
	ck_assert_ptr_null(strstr(text, "GiB</text>"));
	free(text);
	heat_record_finish(&record);
}
END_TEST

START_TEST(odd_pictures)
{
	struct heat_record record = {0};
	json_t *answer = answer_of(2, GIB);
	struct heat heat;
	char *text;

	/* Nothing in use; a name that nobody should have. */
	json_object_set_new(answer, "name", json_string("<a&\"b\">\n\033"));
	heat = read_all(answer);
	ck_assert_int_eq(heat_record_add(&record, &heat, 0, &err), 0);
	text = svg_of(&record);
	ck_assert_ptr_nonnull(strstr(text, "&lt;a&amp;&quot;b&quot;&gt;??"));
	free(text);
	/* Memory appears while it is recorded; then it is another machine. */
	heat = read_all(sparse_tib());
	ck_assert_int_eq(heat_record_add(&record, &heat, 10, &err), 0);
	text = svg_of(&record);
	free(text);
	heat = read_all(answer_of(3, GIB));
	ck_assert_int_eq(heat_record_add(&record, &heat, 20, &err), -EPROTO);
	ck_assert_uint_eq(record.n_columns, 2);
	text = svg_of(&record);
	free(text);
	heat_record_finish(&record);
	/* Writes are not told. */
	answer = answer_of(1, GIB);
	json_object_set_new(json_object_get(answer, "tracker"), "writes", json_false());
	add(answer, 0, GIB, -1, 0, 5, -1);
	heat = read_all(answer);
	ck_assert_int_eq(heat_record_add(&record, &heat, 0, &err), 0);
	text = svg_of(&record);
	ck_assert_ptr_nonnull(strstr(text, "not told by this host"));
	free(text);
	heat_record_finish(&record);
}
END_TEST

/* One member made wrong: an error that names it, and nothing else. */
START_TEST(hostile)
{
	static const struct {
		const char *path, *value, *says;
	} bad[] = {
		{"name", "7", "name"},
		{"name", "\"\"", "name"},
		{"memory_bytes", "-1", "memory_bytes"},
		{"memory_bytes", "9223372036854775807", "memory_bytes"},
		{"memory_bytes", "1.5", "memory_bytes"},
		{"time_ms", "\"x\"", "time_ms"},
		{"pid", "null", "pid"},
		{"tracker", "[]", "tracker"},
		{"tracker", "{}", "tracker.writes"},
		{"tracker", "{\"writes\":1}", "tracker.writes"},
		{"tracker", "{\"writes\":true,\"covered\":2}", "tracker.covered"},
		{"tracker", "{\"writes\":true,\"covered\":0.5,\"zaps_per_s\":1e300}", "zaps_per_s"},
		{"tracker", "{\"writes\":true,\"covered\":0.5,\"regions\":-1}", "regions"},
		{"nodes", "[]", "nodes"},
		{"nodes", "{}", "nodes"},
		{"nodes", "[0,0]", "twice"},
		{"nodes", "[0,1.5]", "nodes"},
		{"nodes", "[0,-1]", "nodes"},
		{"views", "[]", "views"},
		{"views", "[0]", "views"},
		{"views", "[{\"nodes\":[5]}]", "views"},
		{"views", "[{\"nodes\":[0]},{\"nodes\":[\"x\"]}]", "views"},
		{"views", "[0,0,0,0,0,0,0,0,0]", "9 views"},
		{"extents", "{}", "extents"},
		{"extents", "[1]", "extents[0].gpa"},
		{"gpa", "-4096", "extents[1].gpa"},
		{"gpa", "1", "extents[1].gpa"},
		{"gpa", "9223372036854775807", "extents[1].gpa"},
		{"bytes", "0", "extents[1].bytes"},
		{"bytes", "4503599627370496", "extents[1].bytes"},
		{"bytes", "\"2M\"", "extents[1].bytes"},
		{"node", "1", "extents[1].node"},
		{"node", "\"0\"", "extents[1].node"},
		{"node_share", "-0.1", "extents[1].node_share"},
		{"confidence", "1.5", "extents[1].confidence"},
		{"confidence", "null", "extents[1].confidence"},
		{"read", "null", "extents[1].read"},
		{"read", "[1]", "extents[1].read"},
		{"read", "[1,2,3]", "extents[1].read"},
		{"read", "[1,-2]", "extents[1].read"},
		{"read", "[1,1e300]", "extents[1].read"},
		{"write", "7", "extents[1].write"},
		{"write", "[[],[]]", "extents[1].write"},
		{"copied", "7", "extents[1].copied"},
		{"copied", "[1]", "extents[1].copied"},
		{"copied", "[0,1.5]", "extents[1].copied"},
		{"copied", "[-1,0]", "extents[1].copied"},
		{"copied", "[0,null]", "extents[1].copied"},
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		json_t *answer = two_views();
		json_t *value = json_loads(bad[i].value, JSON_DECODE_ANY, NULL);
		json_t *where =
			json_object_get(answer, bad[i].path) ? answer : extent_of(answer, 1);
		struct heat heat;
		int rc;

		ck_assert_ptr_nonnull(value);
		json_object_set_new(where, bad[i].path, value);
		rc = heat_read(answer, &heat, &err);
		ck_assert_msg(
			rc == -EPROTO || rc == -E2BIG, "%s %s: %d", bad[i].path, bad[i].value, rc);
		ck_assert_msg(strstr(err.text, bad[i].says), "%s %s: %s", bad[i].path, bad[i].value,
			err.text);
		ck_assert_ptr_null(heat.extent);
		json_object_del(where, bad[i].path);
		/* Without the member: an error or a default, no crash. */
		if (!heat_read(answer, &heat, &err))
			heat_finish(&heat);
		json_decref(answer);
	}
}
END_TEST

START_TEST(no_object)
{
	static const char *const texts[] = {"[]", "7", "null", "\"x\"", "{}"};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		json_t *answer = json_loads(texts[i], JSON_DECODE_ANY, NULL);
		struct heat heat;

		ck_assert_int_eq(heat_read(answer, &heat, &err), -EPROTO);
		json_decref(answer);
	}
}
END_TEST

START_TEST(sizes)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {{0, "0"}, {1, "1 B"}, {999, "999 B"}, {1000, "0.98 KiB"}, {4096, "4 KiB"},
		{2 * MIB, "2 MiB"}, {1000 * MIB, "0.98 GiB"}, {TIB, "1 TiB"},
		{GIB + GIB / 4, "1.25 GiB"}, {100 * MIB, "100 MiB"}, {UINT64_MAX, "16 EiB"}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[16];

		heat_format_size(cases[i].bytes, text, sizeof(text));
		ck_assert_str_eq(text, cases[i].text);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("heat_view");
	TCase *tc = tcase_create("heat_view");

	tcase_set_timeout(tc, 30);
	tcase_add_test(tc, reading);
	tcase_add_test(tc, reading_copies);
	tcase_add_test(tc, classes);
	tcase_add_test(tc, one_view);
	tcase_add_test(tc, levels);
	tcase_add_test(tc, merging);
	tcase_add_test(tc, random_extents);
	tcase_add_test(tc, sparse);
	tcase_add_test(tc, map_fits);
	tcase_add_test(tc, map_says);
	tcase_add_test(tc, map_of_copies);
	tcase_add_test(tc, pictures);
	tcase_add_test(tc, picture_of_copies);
	tcase_add_test(tc, picture_is_bounded);
	tcase_add_test(tc, picture_of_a_guess);
	tcase_add_test(tc, odd_pictures);
	tcase_add_test(tc, hostile);
	tcase_add_test(tc, no_object);
	tcase_add_test(tc, sizes);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
