/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TERMINAL_OUTPUT_H
#define MIRRORBALL_TERMINAL_OUTPUT_H

#include <mirrorball/error.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * The terminal's output: a bounded ring that a thread of its own writes to a descriptor. Any
 * thread.
 */
struct mb_output;

/*
 * fd stays the caller's (it is duplicated); one that is not open drops everything. room is called
 * on the writing thread, with no lock held, after mb_output_write took less than it was given.
 */
int mb_output_create(
	int fd, void (*room)(void *ctx), void *ctx, struct mb_output **out, struct mb_error *err);
/*
 * Ends the guest's last line where standard error is the same file or terminal, for what is said
 * there next. Waits up to 1 s for what is left to be written. A descriptor that blocks for longer keeps its
 * thread, which then drops the rest and goes away by itself; room is not called any more either
 * way.
 */
void mb_output_destroy(struct mb_output *output);

/* Takes up to n bytes of the guest's, returns how many. */
size_t mb_output_write(struct mb_output *output, const void *buf, size_t n);
/*
 * Puts text between the guest's output, on a line of its own; a newline is added. -ENOSPC: left
 * out, the output is far behind. -EPIPE: output has failed for good.
 */
int mb_output_say(struct mb_output *output, const char *text);

#endif
