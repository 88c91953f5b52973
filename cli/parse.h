/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_PARSE_H
#define MIRRORBALL_CLI_PARSE_H

#include <mirrorball/error.h>
#include <mirrorball/machine.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What people type, turned into values. Nothing here has a side effect; every error quotes the text
 * and says what would be right. -EINVAL for text that means nothing, -ERANGE for a value out of
 * range.
 */

/*
 * "512M", "16G": a whole number and one of K M G T (powers of 1024; small letters and "MiB" too).
 * Without a unit: bytes.
 */
int cli_parse_size(const char *text, uint64_t *bytes, struct mb_error *err);

/* The same sizes for people: the largest unit that divides it ("512M", "1025K"). */
void cli_format_size(uint64_t bytes, char *text, size_t len);

/* A decimal number in [min, max]. */
int cli_parse_unsigned(
	const char *text, unsigned min, unsigned max, unsigned *value, struct mb_error *err);

/* "0.25", "10": seconds with at most three decimals, in [min_ms, max_ms] milliseconds. */
int cli_parse_seconds(
	const char *text, unsigned min_ms, unsigned max_ms, unsigned *ms, struct mb_error *err);

/* "52:54:00:12:34:56"; refuses all zero (reserved for "derive one") and group addresses. */
int cli_parse_mac(const char *text, uint8_t mac[6], struct mb_error *err);

/* 1 to 63 of A-Z a-z 0-9 . _ - and no leading dot or dash. */
int cli_parse_name(const char *text, struct mb_error *err);

#define CLI_MAX_FIELDS 32

/*
 * Splits at commas, in place; two commas stand for one. field[] points into text. Empty fields are
 * errors.
 */
int cli_split_fields(char *text, char *field[CLI_MAX_FIELDS], unsigned *n, struct mb_error *err);

/*
 * PATH may be an NBD URI; it ends at the first comma, too.
 * "PATH[,ro|cow[=DIR|memory]|overlay=FILE][,direct=on|off][,serial=S][,queues=N]", changed in place; disk's strings point into
 * it.
 */
int cli_parse_disk(char *text, struct mb_disk_config *disk, struct mb_error *err);

/*
 * "tap=NAME[,mac=M][,queues=N]", "tap-fd=N[,mac=M]" or "passt[,mac=M][,arg=A]...", changed in
 * place; nic's strings point into it. passt_args (room for CLI_MAX_FIELDS) receives passt's
 * arguments and a NULL.
 */
int cli_parse_net(
	char *text, const char **passt_args, struct mb_nic_config *nic, struct mb_error *err);

/*
 * "auto", "on" or "off", with ",budget=PERCENT" (0.1 to 50, of the guest's time) behind the first two,
 * changed in place. The CPU that it may use follows: twice as many percent of one CPU.
 */
int cli_parse_track(char *text, struct mb_machine_config *config, struct mb_error *err);

/*
 * The candidate that a mistyped word most likely meant, or NULL: at most a third of its letters
 * differ. candidates ends with NULL.
 */
const char *cli_nearest(const char *word, const char *const *candidates);

#endif
