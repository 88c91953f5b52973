// SPDX-License-Identifier: Apache-2.0
#include "heat_pen.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LABEL_COLUMNS 10
#define MIN_COLUMNS   (LABEL_COLUMNS + 10)
#define ONCE_LINES    12 /* of a map that is printed once */

static struct heat_rgb use_rgb(const struct heat *heat, const struct heat_use *use)
{
	return use->users & (use->users - 1) ? heat_several_rgb : heat_view_rgb(heat, use->top);
}

/* What a cell is before anybody asks who uses it: 0, or the character that stands for it. */
static char blank_cell(
	const struct heat_pen *pen, const struct heat_slot *slot, const struct heat_extent *cell)
{
	if (slot->gap)
		return ':';
	if (!cell->used_bytes)
		return ' ';
	if (!cell->looked_bytes || (pen->look->what == HEAT_WRITE && !cell->written_bytes))
		return '?';
	return 0;
}

static void put_blank(struct heat_pen *pen, char blank)
{
	char text[2] = {blank};

	heat_pen_style(pen, pen->look->colours && blank != ' ' ? "2" : "");
	heat_pen_put(pen, blank == ':' && pen->look->utf8 && pen->look->colours ? "┊" : text);
}

static void put_used_mono(struct heat_pen *pen, const struct heat_use *use)
{
	char letter = use->writes ? (char)('A' + use->top) : (char)('a' + use->top);
	char text[2] = {letter};

	if (!use->users)
		*text = '.';
	else if (use->users & (use->users - 1))
		*text = use->writes ? '#' : '+';
	heat_pen_put(pen, text);
}

/* A square of the view's colour, hatched where it is written; only half filled where it is a guess.
 */
static void put_used_colour(struct heat_pen *pen, const struct heat *heat,
	const struct heat_use *use, double confidence)
{
	bool utf8 = pen->look->utf8;
	struct heat_rgb c = heat_dimmed(use_rgb(heat, use), use->level);
	char style[HEAT_STYLE_BYTES] = "";
	const char *hatch = " ";

	if (!use->users) {
		heat_pen_style(pen, "2");
		heat_pen_put(pen, utf8 ? "·" : ".");
		return;
	}
	if (use->writes)
		hatch = use->reads ? (utf8 ? "╳" : "x") : (utf8 ? "╱" : "/");
	if (confidence < HEAT_LOW_CONFIDENCE ||
		(pen->look->colours == HEAT_COLOURS_8 && use->level <= HEAT_LEVELS / 2)) {
		heat_pen_colour(pen, style, 3, use_rgb(heat, use));
		heat_pen_style(pen, style);
		heat_pen_put(pen, *hatch != ' ' ? hatch : utf8 ? "░" : "-");
		return;
	}
	heat_pen_put_on(pen, c, hatch);
}

static void put_heat_mono(struct heat_pen *pen, const struct heat_use *use, double confidence)
{
	char text[2] = {(char)('0' + use->level)};

	if (!use->users)
		*text = '.';
	else if (confidence < HEAT_LOW_CONFIDENCE)
		*text = '-';
	heat_pen_put(pen, text);
}

/*
 * What has copies lives where all who read it are: it looks like what several views read, and other
 * than what has one home, without colours, too.
 */
static void put_copied(struct heat_pen *pen, float copied)
{
	bool most = copied >= (float)HEAT_MOST;

	heat_pen_put_on(
		pen, heat_dimmed(heat_several_rgb, most ? HEAT_LEVELS : HEAT_LEVELS / 2), "+");
}

static void put_home(struct heat_pen *pen, const struct heat *heat, const struct heat_extent *cell)
{
	char style[HEAT_STYLE_BYTES] = "", digit[2];
	struct heat_rgb c;

	if (heat_copied(cell) > (float)HEAT_COPIED) {
		put_copied(pen, heat_copied(cell));
		return;
	}
	if (!cell->has_node) {
		put_blank(pen, '?');
		return;
	}
	c = heat_node_rgb(heat, cell->node);
	/* One column: the last figure of the node's number. */
	snprintf(digit, sizeof(digit), "%u", heat->node[cell->node] % 10);
	if (!pen->look->colours) {
		heat_pen_put(pen, digit);
		return;
	}
	if (cell->node_share < (float)HEAT_MOST)
		c = heat_dimmed(c, HEAT_LEVELS / 2);
	heat_pen_colour(pen, style, pen->look->utf8 ? 3 : 4, c);
	if (!pen->look->utf8)
		snprintf(style + strlen(style), sizeof(style) - strlen(style), ";30");
	heat_pen_style(pen, style);
	heat_pen_put(pen, pen->look->utf8 ? "▀" : digit);
}

enum strip { STRIP_USED, STRIP_HEAT, STRIP_HOME };

static void draw_strip(struct heat_pen *pen, const struct heat *heat, enum strip strip,
	const struct heat_slot *slot, const struct heat_extent *cell, unsigned n)
{
	char size[16];

	heat_format_size(slot->gap && n > 1 ? slot[1].gpa : slot->gpa, size, sizeof(size));
	heat_pen_style(pen, pen->look->colours ? "2" : "");
	heat_pen_putf(pen, "%*s ", LABEL_COLUMNS - 1,
		strip == STRIP_USED   ? size
		: strip == STRIP_HEAT ? "heat"
				      : "lives on");
	heat_pen_style(pen, "");
	for (unsigned i = 0; i < n; i++) {
		struct heat_use use = heat_use(heat, &cell[i], pen->look->what);
		char blank = blank_cell(pen, &slot[i], &cell[i]);

		if (strip == STRIP_HOME && blank == '?')
			blank = 0; /* where it lives may be known all the same */
		if (blank)
			put_blank(pen, blank);
		else if (strip == STRIP_HOME)
			put_home(pen, heat, &cell[i]);
		else if (strip == STRIP_HEAT)
			put_heat_mono(pen, &use, (double)cell[i].confidence);
		else if (pen->look->colours)
			put_used_colour(pen, heat, &use, (double)cell[i].confidence);
		else
			put_used_mono(pen, &use);
	}
	heat_pen_end_line(pen);
}

static void draw_cells(struct heat_pen *pen, const struct heat *heat, const struct heat_axis *axis,
	const struct heat_extent *cells, unsigned per_line)
{
	for (unsigned first = 0; first < axis->n; first += per_line) {
		unsigned n = axis->n - first < per_line ? axis->n - first : per_line;

		draw_strip(pen, heat, STRIP_USED, &axis->slot[first], &cells[first], n);
		if (!pen->look->colours)
			draw_strip(pen, heat, STRIP_HEAT, &axis->slot[first], &cells[first], n);
		if (pen->look->home)
			draw_strip(pen, heat, STRIP_HOME, &axis->slot[first], &cells[first], n);
	}
	if (!axis->n) {
		heat_pen_put(
			pen, "  The guest has touched no memory yet, as far as the tracker knows.");
		heat_pen_end_line(pen);
	}
}

static int draw_map(struct heat_pen *pen, const struct heat *heat, unsigned rows)
{
	unsigned columns = pen->look->columns < MIN_COLUMNS ? MIN_COLUMNS : pen->look->columns;
	unsigned per_line = columns - LABEL_COLUMNS - 1, strips, lines;
	struct heat_extent *cells;
	struct heat_axis axis;
	int rc;

	strips = (pen->look->colours ? 1u : 2u) + pen->look->home;
	lines = pen->look->rows ? rows / strips : ONCE_LINES;
	rc = heat_axis_fit(&axis, heat->extent, heat->n_extents, per_line * (lines ? lines : 1));
	if (rc)
		return rc;
	cells = calloc(axis.n + 1u, sizeof(*cells));
	if (cells) {
		char size[16];

		heat_merge(&axis, heat->extent, heat->n_extents, cells);
		heat_format_size(axis.cell_bytes, size, sizeof(size));
		if (axis.n)
			heat_pen_item(pen, "a cell is %s", size);
		heat_pen_end_line(pen);
		draw_cells(pen, heat, &axis, cells, per_line);
	}
	free(cells);
	free(axis.slot);
	return cells ? 0 : -ENOMEM;
}

static unsigned count_lines(const char *text)
{
	unsigned n = 0;

	while ((text = strchr(text, '\n'))) {
		text++;
		n++;
	}
	return n;
}

/* Writes lines of text, no more than *rows, which is 0 for no bound; takes them off. */
static void write_lines(const char *text, unsigned *rows, bool bounded, FILE *out)
{
	while (*text && (!bounded || *rows)) {
		size_t n = strcspn(text, "\n");
		bool last = bounded && *rows == 1;

		fwrite(text, 1, n + (text[n] && !last), out);
		text += n + !!text[n];
		*rows -= bounded;
	}
}

int heat_map_draw(const struct heat *heat, const struct heat_look *look, FILE *out)
{
	char *part[3] = {0};
	unsigned used = 0, rows = look->rows;
	int rc = 0;

	/* Head and foot first: the map gets the rows that they leave. */
	for (unsigned i = 0; i < 3 && !rc; i++) {
		static const unsigned order[] = {0, 2, 1};
		size_t len;
		struct heat_pen pen = {.out = open_memstream(&part[order[i]], &len), .look = look};

		if (!pen.out) {
			rc = -ENOMEM;
			break;
		}
		if (order[i] == 0)
			heat_legend_head(&pen, heat);
		else if (order[i] == 2)
			heat_legend_foot(&pen, heat);
		else
			rc = draw_map(&pen, heat, rows > used + 1 ? rows - used - 1 : 0);
		if (fclose(pen.out))
			rc = -ENOMEM;
		else
			used += count_lines(part[order[i]]);
	}
	for (unsigned i = 0; i < 3 && !rc; i++)
		write_lines(part[i], &rows, look->rows, out);
	for (unsigned i = 0; i < 3; i++)
		free(part[i]);
	return rc;
}
