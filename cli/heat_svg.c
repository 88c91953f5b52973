// SPDX-License-Identifier: Apache-2.0
#include "heat_view.h"
#include "svg.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Where things are, in the picture's units. */
#define WIDTH	     1180
#define LEFT	     84
#define TOP	     104
#define PANEL_WIDTH  336
#define PANEL_SKIP   24 /* between panels */
#define PANEL_HEIGHT 384
#define BOTTOM	     (TOP + PANEL_HEIGHT)
#define LEGEND_SKIP  22
#define TICK_PIXELS  30 /* between the labels of an axis, at least */

enum panel { PANEL_READ, PANEL_WRITE, PANEL_HOME, N_PANELS };

/*
 * What a rectangle is: a class of the style sheet. 0 is nothing; the colours of views and nodes
 * come in HEAT_LEVELS steps of opacity, so they fit a light and a dark page.
 */
enum {
	INK_NONE,
	INK_UNKNOWN,
	INK_GUESS,
	INK_IDLE,
	INK_SEVERAL,
	INK_VIEW = INK_SEVERAL + HEAT_LEVELS,
	INK_NODE = INK_VIEW + HEAT_MAX_VIEWS * HEAT_LEVELS,
	INK_COPIED = INK_NODE + 2 * HEAT_MAX_NODES,
	INKS = INK_COPIED + 2
};
_Static_assert(INKS <= UINT8_MAX, "an ink is a byte");

/* One panel's rectangles, or the marks for "hardly looked at", on the grid of columns and rows. */
struct grid {
	unsigned n_columns, n_rows;
	uint8_t *ink; /* column by column */
};

static unsigned panel_x(enum panel panel)
{
	return LEFT + (unsigned)panel * (PANEL_WIDTH + PANEL_SKIP);
}

static uint8_t ink_of(const struct heat *heat, enum panel panel, const struct heat_extent *cell)
{
	struct heat_use use;

	if (!cell->used_bytes)
		return INK_NONE;
	if (panel == PANEL_HOME && heat_copied(cell) > (float)HEAT_COPIED)
		return INK_COPIED + (heat_copied(cell) < (float)HEAT_MOST);
	if (panel == PANEL_HOME)
		return cell->has_node ? (uint8_t)(INK_NODE + 2 * cell->node +
						  (cell->node_share < (float)HEAT_MOST))
				      : INK_UNKNOWN;
	if (!cell->looked_bytes || (panel == PANEL_WRITE && !cell->written_bytes))
		return INK_UNKNOWN;
	use = heat_use(heat, cell, panel == PANEL_READ ? HEAT_READ : HEAT_WRITE);
	if (!use.users)
		return INK_IDLE;
	if (use.users & (use.users - 1))
		return (uint8_t)(INK_SEVERAL + use.level - 1);
	return (uint8_t)(INK_VIEW + use.top * HEAT_LEVELS + use.level - 1);
}

static unsigned column_x(const struct heat_record *record, unsigned column)
{
	uint64_t at = column < record->n_columns ? record->column[column].at_ms : record->end_ms;
	uint64_t all = record->end_ms ? record->end_ms : 1;

	/* Tenths of a unit: 400 columns have no room for less. */
	return (unsigned)(at * PANEL_WIDTH * 10 / all);
}

static unsigned row_y(const struct heat_axis *axis, unsigned row)
{
	return axis->n ? (axis->n - row) * PANEL_HEIGHT * 10 / axis->n : PANEL_HEIGHT * 10;
}

static void put_tenths(FILE *out, char before, unsigned value)
{
	fprintf(out, value % 10 ? "%c%u.%u" : "%c%u", before, value / 10, value % 10);
}

/*
 * Each rectangle of equal cells once, as part of one path an ink: as wide as it goes, then as high
 * as that width goes. Takes the ink off the grid.
 */
static void draw_ink(FILE *out, const struct heat_record *record, const struct heat_axis *axis,
	struct grid *grid, uint8_t ink)
{
	unsigned n_rows = grid->n_rows, n = 0;

	for (unsigned c = 0; c < grid->n_columns; c++) {
		for (unsigned r = 0; r < n_rows; r++) {
			unsigned right = c, top = r, x, y, width, height;

			if (grid->ink[c * n_rows + r] != ink)
				continue;
			while (top < n_rows && grid->ink[c * n_rows + top] == ink)
				top++;
			for (bool all = true; all && right < grid->n_columns; right += all)
				for (unsigned i = r; all && i < top; i++)
					all = grid->ink[right * n_rows + i] == ink;
			for (unsigned i = c; i < right; i++)
				memset(&grid->ink[i * n_rows + r], INK_NONE, top - r);
			x = column_x(record, c);
			width = column_x(record, right) - x;
			y = row_y(axis, top);
			height = row_y(axis, r) - y;
			if (!n++)
				fprintf(out, "<path class=\"i%u\" d=\"", ink);
			put_tenths(out, 'M', x);
			put_tenths(out, ' ', y);
			put_tenths(out, 'h', width);
			put_tenths(out, 'v', height);
			put_tenths(out, 'H', x);
			fputs("z", out);
			r = top - 1;
		}
	}
	if (n)
		fputs("\"/>\n", out);
}

static void draw_grid(FILE *out, const struct heat_record *record, const struct heat_axis *axis,
	struct grid *grid)
{
	bool has[INKS] = {0};

	for (size_t i = 0; i < (size_t)grid->n_columns * grid->n_rows; i++)
		has[grid->ink[i]] = true;
	for (unsigned ink = 1; ink < INKS; ink++)
		if (has[ink])
			draw_ink(out, record, axis, grid, (uint8_t)ink);
}

/* The panel's cells, and where they are guesses. */
static void fill(const struct heat_record *record, const struct heat_axis *axis, enum panel panel,
	struct heat_extent *cells, struct grid *inks, struct grid *guesses)
{
	for (unsigned c = 0; c < record->n_columns; c++) {
		const struct heat_column *column = &record->column[c];

		heat_merge(axis, column->cell, column->n_cells, cells);
		for (unsigned r = 0; r < axis->n; r++) {
			uint8_t ink = ink_of(&record->last, panel, &cells[r]);
			bool guess = ink > INK_IDLE && panel != PANEL_HOME &&
				     cells[r].confidence < (float)HEAT_LOW_CONFIDENCE;

			inks->ink[c * axis->n + r] = ink;
			guesses->ink[c * axis->n + r] = guess ? INK_GUESS : INK_NONE;
		}
	}
}

static int draw_panel(
	FILE *out, const struct heat_record *record, const struct heat_axis *axis, enum panel panel)
{
	static const char *const titles[] = {
		[PANEL_READ] = "Read by", [PANEL_WRITE] = "Written by", [PANEL_HOME] = "Lives on"};
	size_t n = (size_t)record->n_columns * axis->n + 1;
	struct grid inks = {record->n_columns, axis->n, calloc(n, 1)};
	struct grid guesses = {record->n_columns, axis->n, calloc(n, 1)};
	struct heat_extent *cells = calloc(axis->n + 1u, sizeof(*cells));
	bool told = panel != PANEL_WRITE || record->last.tracker.writes;
	int rc = inks.ink && guesses.ink && cells ? 0 : -ENOMEM;

	if (!rc) {
		fill(record, axis, panel, cells, &inks, &guesses);
		fprintf(out,
			"<text class=\"h\" x=\"%u\" y=\"%u\">%s</text>\n"
			"<g transform=\"translate(%u %u)\">\n"
			"<path class=\"panel\" d=\"M0 0h%uv%uH0z\"/>\n"
			"<g shape-rendering=\"crispEdges\">\n",
			panel_x(panel), TOP - 10, titles[panel], panel_x(panel), TOP, PANEL_WIDTH,
			PANEL_HEIGHT);
		if (told)
			draw_grid(out, record, axis, &inks);
		fputs("</g>\n", out);
		draw_grid(out, record, axis, &guesses);
		for (unsigned r = 0; r < axis->n; r++)
			if (axis->slot[r].gap)
				fprintf(out, "<path class=\"gap\" d=\"M0 %.1fh%u\"/>\n",
					(row_y(axis, r) + row_y(axis, r + 1)) / 20.0, PANEL_WIDTH);
		fprintf(out, "<path class=\"frame\" d=\"M0 0h%uv%uH0z\"/>\n</g>\n", PANEL_WIDTH,
			PANEL_HEIGHT);
		if (!told)
			fprintf(out,
				"<text class=\"m\" x=\"%u\" y=\"%u\">not told by this "
				"host</text>\n",
				panel_x(panel) + PANEL_WIDTH / 2, TOP + PANEL_HEIGHT / 2);
	}
	free(inks.ink);
	free(guesses.ink);
	free(cells);
	return rc;
}

/* Round addresses, and where memory goes on after a gap; none too near to the one below. */
static void draw_memory_axis(FILE *out, const struct heat_axis *axis)
{
	unsigned last = PANEL_HEIGHT + TICK_PIXELS;
	uint64_t step = axis->cell_bytes;
	char size[16];

	while (axis->n && step / axis->cell_bytes * PANEL_HEIGHT / axis->n < TICK_PIXELS)
		step *= 2;
	for (unsigned r = 0; r < axis->n; r++) {
		const struct heat_slot *slot = &axis->slot[r];
		unsigned y = row_y(axis, r) / 10;

		if (slot->gap || y + TICK_PIXELS / 2 > last ||
			(slot->gpa % step && !(r && slot[-1].gap)))
			continue;
		last = y;
		heat_format_size(slot->gpa, size, sizeof(size));
		fprintf(out,
			"<path class=\"frame\" d=\"M%u %uh5\"/>"
			"<text class=\"r\" x=\"%u\" y=\"%u\">%s</text>\n",
			LEFT - 5, TOP + y, LEFT - 9, TOP + y + 4, size);
	}
	fprintf(out,
		"<text class=\"m\" transform=\"translate(16 %u) rotate(-90)\">guest-physical "
		"address (untouched memory left out)</text>\n",
		TOP + PANEL_HEIGHT / 2);
}

/* 1, 2 or 5 times a power of ten: at most eight of them. */
static double tick_step(double all_s)
{
	static const double steps[] = {1, 2, 5};
	double power = 1e-3;

	for (;; power *= 10)
		for (unsigned i = 0; i < 3; i++)
			if (all_s / (steps[i] * power) <= 8)
				return steps[i] * power;
}

static void draw_time_axis(FILE *out, const struct heat_record *record, enum panel panel)
{
	double all_s = (double)record->end_ms / 1e3, step = tick_step(all_s);

	for (double at = 0; at <= all_s * 1.0001; at += step) {
		double x = panel_x(panel) + (all_s > 0 ? at / all_s : 0) * PANEL_WIDTH;

		fprintf(out,
			"<path class=\"frame\" d=\"M%.1f %uv5\"/>"
			"<text class=\"m\" x=\"%.1f\" y=\"%u\">%.4g</text>\n",
			x, BOTTOM, x, BOTTOM + 19, at);
	}
	fprintf(out, "<text class=\"m\" x=\"%u\" y=\"%u\">seconds</text>\n",
		panel_x(panel) + PANEL_WIDTH / 2, BOTTOM + 36);
}

static void put_rgb(FILE *out, unsigned ink, struct heat_rgb c, unsigned percent)
{
	fprintf(out, ".i%u{fill:#%02x%02x%02x", ink, c.r, c.g, c.b);
	if (percent < 100)
		fprintf(out, ";fill-opacity:.%02u", percent);
	fputs("}\n", out);
}

static void draw_style(FILE *out, const struct heat *heat)
{
	/* No var(): of the programs that show SVG, browsers know it and few others do. */
	fputs("<style>\n"
	      "svg{font:13px system-ui,sans-serif}\n"
	      ".t{font-size:18px;font-weight:600}.h{font-weight:600}"
	      ".r{text-anchor:end}.m{text-anchor:middle}\n"
	      "text{fill:#1c1c1e}.f{fill:#5c5c62}.page{fill:#fff}.panel{fill:#f6f6f8}"
	      ".frame,.gap,.ln{fill:none;stroke:#85858c}.lg{stroke:#fff;stroke-width:2}"
	      ".pl{stroke:#fff}\n"
	      ".gap{stroke-dasharray:2 4}.i1{fill:url(#unknown)}.i2{fill:url(#guess)}"
	      ".i3{fill:#d8d8de}\n"
	      "@media(prefers-color-scheme:dark){text{fill:#ececf0}.f{fill:#a2a2aa}"
	      ".page{fill:#141417}.panel{fill:#1e1e23}.i3{fill:#3a3a42}.lg{stroke:#141417}}\n",
		out);
	for (unsigned level = 1; level <= HEAT_LEVELS; level++) {
		unsigned percent = 16 + 84 * level / HEAT_LEVELS;

		put_rgb(out, INK_SEVERAL + level - 1, heat_several_rgb, percent);
		for (unsigned v = 0; v < heat->n_views; v++)
			put_rgb(out, INK_VIEW + v * HEAT_LEVELS + level - 1, heat_view_rgb(heat, v),
				percent);
	}
	for (unsigned i = 0; i < heat->n_nodes; i++) {
		put_rgb(out, INK_NODE + 2 * i, heat_node_rgb(heat, i), 100);
		put_rgb(out, INK_NODE + 2 * i + 1, heat_node_rgb(heat, i), 55);
	}
	fprintf(out,
		".cp{fill:#%02x%02x%02x}.i%u{fill:url(#copies)}"
		".i%u{fill:url(#copies);fill-opacity:.55}\n",
		heat_several_rgb.r, heat_several_rgb.g, heat_several_rgb.b, INK_COPIED,
		INK_COPIED + 1);
	fputs("</style>\n<defs>\n"
	      "<pattern id=\"unknown\" width=\"6\" height=\"6\" "
	      "patternUnits=\"userSpaceOnUse\"><path class=\"ln\" d=\"M0 6L6 0\"/></pattern>\n"
	      "<pattern id=\"guess\" width=\"5\" height=\"5\" "
	      "patternUnits=\"userSpaceOnUse\"><path class=\"lg\" d=\"M0 0h5\"/></pattern>\n"
	      "<pattern id=\"copies\" width=\"7\" height=\"7\" "
	      "patternUnits=\"userSpaceOnUse\"><path class=\"cp\" d=\"M0 0h7v7H0z\"/>"
	      "<path class=\"pl\" d=\"M1 3.5h5M3.5 1v5\"/></pattern>\n"
	      "</defs>\n",
		out);
}

/* Keys of the legend go from left to right, and on in the next line. */
struct legend {
	FILE *out;
	unsigned x, y;
};

static void next_line(struct legend *legend)
{
	if (legend->x > LEFT)
		legend->y += LEGEND_SKIP;
	legend->x = LEFT;
}

static void key(struct legend *legend, unsigned ink, bool guess, const char *text)
{
	unsigned width = 36 + (unsigned)strlen(text) * 7; /* about */

	if (legend->x + width > WIDTH - 10)
		next_line(legend);
	fprintf(legend->out, "<path class=\"i%u\" d=\"M%u %uh14v12h-14z\"/>", ink, legend->x,
		legend->y - 11);
	if (guess)
		fprintf(legend->out, "<path class=\"i%u\" d=\"M%u %uh14v12h-14z\"/>", INK_GUESS,
			legend->x, legend->y - 11);
	fprintf(legend->out, "<text x=\"%u\" y=\"%u\">%s</text>\n", legend->x + 20, legend->y,
		text);
	legend->x += width;
}

static void draw_scale(struct legend *legend)
{
	for (unsigned level = 1; level <= HEAT_LEVELS; level++)
		fprintf(legend->out, "<path class=\"i%u\" d=\"M%u %uh14v12h-14z\"/>",
			INK_VIEW + level - 1, legend->x + (level - 1) * 14, legend->y - 11);
	fprintf(legend->out,
		"<text x=\"%u\" y=\"%u\">0.05 to 500 touches a second of a page</text>\n",
		legend->x + HEAT_LEVELS * 14 + 6, legend->y);
	legend->x += HEAT_LEVELS * 14 + 274;
}

/* Returns where it ends. */
static unsigned draw_legend(FILE *out, const struct heat *heat)
{
	struct legend legend = {out, LEFT, BOTTOM + 64};
	char text[96], nodes[64], size[16];

	for (unsigned v = 0; v < heat->n_views; v++) {
		heat_view_nodes(heat, v, nodes, sizeof(nodes));
		snprintf(text, sizeof(text), "view %u (%s)", v, nodes);
		key(&legend, INK_VIEW + (v + 1) * HEAT_LEVELS - 1, false, text);
	}
	if (heat->n_views > 1)
		key(&legend, INK_SEVERAL + HEAT_LEVELS - 1, false, "several views");
	next_line(&legend);
	for (unsigned i = 0; i < heat->n_nodes; i++) {
		snprintf(text, sizeof(text), i ? "node %u" : "lives on node %u", heat->node[i]);
		key(&legend, INK_NODE + 2 * i, false, text);
	}
	if (heat->n_nodes > 1)
		key(&legend, INK_NODE + 1, false, "less than three quarters of it");
	if (heat->can_copy) {
		heat_format_size(heat_sum_copied(heat), size, sizeof(size));
		snprintf(text, sizeof(text), "has copies: %s at the end", size);
		key(&legend, INK_COPIED, false, text);
	}
	next_line(&legend);
	draw_scale(&legend);
	key(&legend, INK_IDLE, false, "idle");
	key(&legend, INK_UNKNOWN, false, "not known yet");
	key(&legend, INK_VIEW + HEAT_LEVELS - 1, true, "hardly looked at");
	return legend.y + 20;
}

static void draw_title(FILE *out, const struct heat *heat)
{
	uint64_t bytes[HEAT_CLASSES], sum = heat_sum(heat, bytes);
	char size[16], used[16];
	const char *sep = "At the end: ";

	heat_format_size(heat->memory_bytes, size, sizeof(size));
	heat_format_size(sum, used, sizeof(used));
	fprintf(out, "<text class=\"t\" x=\"%u\" y=\"32\">Who touches the memory of ", LEFT);
	cli_svg_text(out, heat->name);
	fprintf(out,
		"</text>\n<text class=\"f\" x=\"%u\" y=\"54\">%s of memory, %s in use, %u view%s; "
		"tracker: %.0f %% covered, %.2g %% of a CPU, %.2g %% of the guest's time</text>\n"
		"<text class=\"f\" x=\"%u\" y=\"72\">",
		LEFT, size, used, heat->n_views, heat->n_views == 1 ? "" : "s",
		heat->tracker.covered * 100, heat->tracker.cpu_ppm / 1e4,
		heat->tracker.guest_ppm / 1e4, LEFT);
	for (unsigned c = 0; c < HEAT_CLASSES; c++) {
		if (!bytes[c])
			continue;
		heat_format_size(bytes[c], size, sizeof(size));
		fprintf(out, "%s%s %s (%.0f %%)", sep, heat_class_name(c), size,
			100 * (double)bytes[c] / (double)sum);
		sep = ", ";
	}
	fputs("</text>\n", out);
}

static int compare_gpa(const void *a, const void *b)
{
	const struct heat_extent *x = a, *y = b;

	return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

/*
 * One axis for everything that was in use at any time. What was only thought to be in use, until
 * somebody looked, gets no room.
 */
static int fit_all(const struct heat_record *record, struct heat_axis *axis)
{
	struct heat_extent *all;
	size_t n = 0;
	int rc;

	for (unsigned c = 0; c < record->n_columns; c++)
		n += record->column[c].n_cells;
	all = calloc(n + 1, sizeof(*all));
	if (!all)
		return -ENOMEM;
	n = 0;
	for (unsigned c = 0; c < record->n_columns; c++) {
		const struct heat_column *column = &record->column[c];
		bool last = c + 1 == record->n_columns;

		for (unsigned i = 0; i < column->n_cells; i++)
			if (last || column->cell[i].looked_bytes)
				all[n++] = column->cell[i];
	}
	qsort(all, n, sizeof(*all), compare_gpa);
	rc = heat_axis_fit(axis, all, n, HEAT_SVG_ROWS);
	free(all);
	return rc;
}

static int draw(const struct heat_record *record, const struct heat_axis *axis, FILE *out)
{
	const struct heat *heat = &record->last;
	unsigned height;
	size_t len;
	char *legend = NULL;
	FILE *buffer = open_memstream(&legend, &len);
	int rc = 0;

	/* First: it says how high the picture is. */
	if (!buffer)
		return -ENOMEM;
	height = draw_legend(buffer, heat);
	if (fclose(buffer)) {
		free(legend);
		return -ENOMEM;
	}
	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %u %u\" width=\"%u\" "
		"height=\"%u\" role=\"img\">\n<title>Who touches the memory of ",
		WIDTH, height, WIDTH, height);
	cli_svg_text(out, heat->name);
	fputs("</title>\n", out);
	draw_style(out, heat);
	fprintf(out, "<path class=\"page\" d=\"M0 0h%uv%uH0z\"/>\n", WIDTH, height);
	draw_title(out, heat);
	for (enum panel panel = 0; panel < N_PANELS && !rc; panel++) {
		rc = draw_panel(out, record, axis, panel);
		draw_time_axis(out, record, panel);
	}
	draw_memory_axis(out, axis);
	fprintf(out, "%s</svg>\n", legend);
	free(legend);
	return rc;
}

int heat_svg_draw(const struct heat_record *record, FILE *out)
{
	struct heat_axis axis;
	int rc = fit_all(record, &axis);

	if (rc)
		return rc;
	rc = draw(record, &axis, out);
	free(axis.slot);
	return rc;
}
