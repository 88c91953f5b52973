/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_HEAT_PEN_H
#define MIRRORBALL_CLI_HEAT_PEN_H

#include "heat_view.h"

/* Lines of styled text that are no wider than the screen; between the files that draw the map. */

#define HEAT_STYLE_BYTES 48

struct heat_pen {
	FILE *out;
	const struct heat_look *look;
	unsigned column;
	char style[HEAT_STYLE_BYTES]; /* what is set now */
};

/* style: what stands between "ESC [ 0 ;" and "m"; "" for none. */
void heat_pen_style(struct heat_pen *pen, const char *style);
/* Every character is one column wide; what is beyond the last column is left out. */
void heat_pen_put(struct heat_pen *pen, const char *text);
void heat_pen_putf(struct heat_pen *pen, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
void heat_pen_end_line(struct heat_pen *pen);
/* Makes room for the next of several things on a line: on a new one where too little is left. */
void heat_pen_next(struct heat_pen *pen, unsigned columns);
/* The next thing is this text. */
void heat_pen_item(struct heat_pen *pen, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Adds a foreground (3) or background (4) to a style, as the look's colours allow. */
void heat_pen_colour(const struct heat_pen *pen, char style[HEAT_STYLE_BYTES], unsigned ground,
	struct heat_rgb c);
/* Text that can be read on a ground of this colour; without colours as it is. */
void heat_pen_put_on(struct heat_pen *pen, struct heat_rgb c, const char *text);
/* Darker for a lower level (1 to HEAT_LEVELS). */
struct heat_rgb heat_dimmed(struct heat_rgb c, unsigned level);

/* heat_legend.c: what is above the map and below it. */
void heat_legend_head(struct heat_pen *pen, const struct heat *heat);
void heat_legend_foot(struct heat_pen *pen, const struct heat *heat);

#endif
