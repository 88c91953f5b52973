/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_ERROR_H
#define MIRRORBALL_ERROR_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What a person reads when something failed: what was tried, on what, why it failed and what to do,
 * on one line, without the leading "mirrorball: " and without a newline. Caller's memory; a function
 * that takes one fills it in exactly when it returns a negative errno. NULL: nobody will read it.
 */
struct mb_error {
	char text[512];
};

/*
 * Sets err's text and returns -errnum, so that a failing function can end with it. errnum > 0. What
 * helps against too many open files (EMFILE, ENFILE) is added here, unless the text says so.
 */
int mb_error_set(struct mb_error *err, int errnum, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts "prefix: " in front of err's text; returns rc unchanged. */
int mb_error_prefix(struct mb_error *err, int rc, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * Texts quote file names and other words that anybody may have chosen, and keep them as they are.
 * Who prints one on a line of its own makes it printable: a control character (a newline, a
 * terminal's escape) or a byte that is not UTF-8 becomes a question mark.
 */
void mb_error_make_printable(char *text);
/* Bytes at the start of text that are printable. */
size_t mb_error_printable_bytes(const char *text);

#endif
