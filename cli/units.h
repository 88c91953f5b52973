/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_UNITS_H
#define MIRRORBALL_CLI_UNITS_H

#include <stddef.h>
#include <stdint.h>

/* Numbers for people, at a glance: short, and no more exact than that. */

/* "35.2M", "512M", "1.5T": powers of 1024, one digit after the point where there is something. */
void cli_format_bytes(uint64_t bytes, char *text, size_t len);

/* "0.2s", "59.9s", "3m04s", "2h05m", "5d03h". */
void cli_format_ms(uint64_t ms, char *text, size_t len);

#endif
