/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_HEAT_VIEW_H
#define MIRRORBALL_CLI_HEAT_VIEW_H

#include "heat_model.h"
#include <stdio.h>

/* The pictures of a machine's heat. No system call but writes to out, no clock. */

struct heat_rgb {
	uint8_t r, g, b;
};
/*
 * One colour a view; nodes have the colour of the view whose vCPUs are on them (shades of it where
 * a view has several), so that "used by" and "lives on" of local memory look alike. With a single
 * view for several nodes nothing is local or remote: it is grey, and each node has a colour.
 */
struct heat_rgb heat_view_rgb(const struct heat *heat, unsigned view);
struct heat_rgb heat_node_rgb(const struct heat *heat, unsigned index);
extern const struct heat_rgb heat_several_rgb;
/* "node 0", "nodes 0,2": the nodes of a view. */
void heat_view_nodes(const struct heat *heat, unsigned view, char *text, size_t len);

enum heat_colours { HEAT_MONO, HEAT_COLOURS_8, HEAT_COLOURS_256, HEAT_COLOURS_RGB };

struct heat_look {
	unsigned columns; /* 40 or more is readable; fewer are cut */
	unsigned rows;	  /* of a live map: nothing is written below; 0: as many as are good */
	enum heat_colours colours;
	bool utf8;
	bool home; /* the strip that shows where memory lives */
	enum heat_what what;
	const char *note; /* live: at the end of the last line; may be NULL */
};

/*
 * The map as text: a header, the map, a summary. With rows it is a screen: lines end with "erase to
 * the end", the last without a newline. 0 or -ENOMEM; out's own errors are its owner's to find.
 */
int heat_map_draw(const struct heat *heat, const struct heat_look *look, FILE *out);

/*
 * A recording: snapshots, each merged into at most HEAT_SVG_ROWS cells, so that its size does
 * not depend on the guest's.
 */
#define HEAT_SVG_ROWS	 96
#define HEAT_MAX_COLUMNS 400

struct heat_column {
	uint64_t at_ms; /* since the recording began */
	unsigned n_cells;
	struct heat_extent *cell; /* on the axis of its own snapshot */
};
struct heat_record {
	struct heat last; /* the last snapshot */
	unsigned n_columns;
	uint64_t end_ms; /* the last column lasts until then */
	struct heat_column column[HEAT_MAX_COLUMNS];
};
/*
 * Adds a snapshot, which is the record's from then on, also on error. -ENOSPC when the record is
 * full, -EPROTO when it is of another machine (other views or nodes), -ENOMEM.
 */
int heat_record_add(
	struct heat_record *record, struct heat *heat, uint64_t at_ms, struct mb_error *err);
void heat_record_finish(struct heat_record *record);

/* The recording as SVG: at most HEAT_SVG_ROWS * n_columns rectangles in each of three panels. */
int heat_svg_draw(const struct heat_record *record, FILE *out);

#endif
