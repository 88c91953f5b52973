// SPDX-License-Identifier: Apache-2.0
#include "heat_pen.h"
#include <stdarg.h>
#include <string.h>

void heat_pen_style(struct heat_pen *pen, const char *style)
{
	if (!strcmp(pen->style, style))
		return;
	fprintf(pen->out, "\033[0%s%sm", *style ? ";" : "", style);
	snprintf(pen->style, sizeof(pen->style), "%s", style);
}

void heat_pen_put(struct heat_pen *pen, const char *text)
{
	while (*text && pen->column < pen->look->columns) {
		do
			fputc(*text++, pen->out);
		while ((*text & 0xc0) == 0x80);
		pen->column++;
	}
}

void heat_pen_putf(struct heat_pen *pen, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	heat_pen_put(pen, text);
}

void heat_pen_end_line(struct heat_pen *pen)
{
	heat_pen_style(pen, "");
	if (pen->look->rows)
		fputs("\033[K", pen->out);
	fputc('\n', pen->out);
	pen->column = 0;
}

void heat_pen_next(struct heat_pen *pen, unsigned columns)
{
	if (!pen->column)
		return;
	if (pen->column + 2 + columns > pen->look->columns)
		heat_pen_end_line(pen);
	/* Between two things, or the indent of what goes on. */
	heat_pen_put(pen, "  ");
}

void heat_pen_item(struct heat_pen *pen, const char *fmt, ...)
{
	char text[160];
	unsigned columns = 0;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	for (const char *c = text; *c; c++)
		columns += (*c & 0xc0) != 0x80;
	heat_pen_next(pen, columns);
	heat_pen_put(pen, text);
}

static unsigned to_cube(uint8_t level)
{
	return (level * 5u + 127) / 255;
}

/* The nearest of a terminal's eight colours: which of red, green, blue are strong. */
static unsigned to_ansi(struct heat_rgb c)
{
	unsigned max = c.r > c.g ? c.r : c.g, half;

	max = max > c.b ? max : c.b;
	half = max * 6 / 10;
	return (c.r >= half) | (unsigned)(c.g >= half) << 1 | (unsigned)(c.b >= half) << 2;
}

void heat_pen_colour(const struct heat_pen *pen, char style[HEAT_STYLE_BYTES], unsigned ground,
	struct heat_rgb c)
{
	size_t used = strlen(style);
	char *end = style + used;
	const char *sep = used ? ";" : "";
	size_t len = HEAT_STYLE_BYTES - used;

	switch (pen->look->colours) {
	case HEAT_MONO:
		break;
	case HEAT_COLOURS_8:
		snprintf(end, len, "%s%u%u", sep, ground, to_ansi(c));
		break;
	case HEAT_COLOURS_256:
		snprintf(end, len, "%s%u8;5;%u", sep, ground,
			16 + 36 * to_cube(c.r) + 6 * to_cube(c.g) + to_cube(c.b));
		break;
	case HEAT_COLOURS_RGB:
		snprintf(end, len, "%s%u8;2;%u;%u;%u", sep, ground, c.r, c.g, c.b);
		break;
	}
}

void heat_pen_put_on(struct heat_pen *pen, struct heat_rgb c, const char *text)
{
	char style[HEAT_STYLE_BYTES] = "";

	heat_pen_colour(pen, style, 4, c);
	if (*style)
		snprintf(style + strlen(style), sizeof(style) - strlen(style), ";%u",
			c.r * 3 + c.g * 6 + c.b > 1000 ? 30 : 37);
	heat_pen_style(pen, style);
	heat_pen_put(pen, text);
}

struct heat_rgb heat_dimmed(struct heat_rgb c, unsigned level)
{
	unsigned part = 28 + 72 * level / HEAT_LEVELS; /* percent */

	return (struct heat_rgb){(uint8_t)(c.r * part / 100), (uint8_t)(c.g * part / 100),
		(uint8_t)(c.b * part / 100)};
}
