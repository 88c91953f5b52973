/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_FOOTPRINT_H
#define MIRRORBALL_CLI_FOOTPRINT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* What machines take of the host (mirrorball/footprint.h), and with whom they share it. */

/* What the commons' daemon says of itself; NULL: there is none, or it does not answer. */
json_t *cli_footprint_commons(void);

/*
 * Looks at the machine whose answer to `stat` this is and puts "footprint" into it: an object, with
 * "error" only where that was not possible. commons: of cli_footprint_commons, or NULL. 0 or
 * -ENOMEM.
 */
int cli_footprint_add(json_t *answer, const json_t *commons);

/* What all of these machines' answers (a list) take: "machines", "taken_bytes" and others. NULL:
 * out of memory. */
json_t *cli_footprint_host(const json_t *answers, const json_t *commons);

/* A number of an object; 0 where there is none. */
uint64_t cli_footprint_number(const json_t *object, const char *key);

/* "7 others of debian.img": with whom an origin's pages are shared. */
void cli_footprint_format_others(const json_t *origin, char *text, size_t len);

/* For people, as lines of `stat`, labels at this width. */
void cli_footprint_show(const json_t *footprint, int width);

#endif
