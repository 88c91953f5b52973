/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_SVG_H
#define MIRRORBALL_CLI_SVG_H

#include <stdio.h>

/* Text or the value of an attribute, with what XML has for its own written as entities. */
void cli_svg_text(FILE *out, const char *text);

#endif
