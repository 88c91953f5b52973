/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_HEAT_H
#define MIRRORBALL_CLI_HEAT_H

#include "heat_feed.h"
#include "heat_view.h"

/* What `mirrorball heat` was asked for. */
struct heat_options {
	const char *who; /* name or PID; NULL: none given */
	bool once, json, help, version;
	const char *svg_path;
	unsigned interval_ms, limit_ms; /* 0: not given */
};

/* Each returns an exit status, and has said what went wrong. */
int heat_watch(const struct heat_options *options); /* the live map */
int heat_once(const struct heat_options *options);  /* the map as text, or one JSON object */
int heat_json_lines(const struct heat_options *options);
int heat_record_svg(const struct heat_options *options); /* a picture over time */

/* How standard output wants a map: its size, colours and characters. */
void heat_look_of_stdout(struct heat_look *look);

#endif
