/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TERMINAL_H
#define MIRRORBALL_TERMINAL_H

#include <mirrorball/chardev.h>
#include <mirrorball/error.h>
#include <mirrorball/loop.h>

/*
 * Standard input and output as the back of the guest's console. A terminal is put into raw mode (output processing
 * stays on) and restored by mb_terminal_destroy; mb_terminal_restore is for ways out that skip it
 * (async-signal-safe). Input is read on `loop`; output is written by a thread of its own, so that a slow
 * terminal slows the guest's console and nothing else.
 *
 * Ctrl-] is the escape: then q ends the machine at once, s presses its power button, p pauses or resumes
 * it, r resets it, m or ? shows the menu, Ctrl-] sends itself. Only when standard input is a terminal.
 */
struct mb_terminal;

struct mb_terminal_ops {
	/* On the loop's thread. key: 'q', 's', 'p' or 'r'. */
	void (*command)(void *ctx, char key);
	void (*resized)(void *ctx, unsigned columns, unsigned rows); /* may be NULL */
};

/* in_fd, out_fd: usually 0 and 1. in_fd may be closed or at end of file: the guest then gets no input. */
int mb_terminal_create(struct mb_loop *loop, int in_fd, int out_fd, const struct mb_terminal_ops *ops,
	void *ctx, struct mb_terminal **out, struct mb_error *err);
/* Writes what is left (bounded: 1 s), restores the terminal. Takes NULL. */
void mb_terminal_destroy(struct mb_terminal *term);
/* Restores the modes only. */
void mb_terminal_restore(const struct mb_terminal *term);

struct mb_chardev *mb_terminal_chardev(struct mb_terminal *term);
/* The size changed (SIGWINCH): reads it and calls ops->resized. On the loop's thread. */
void mb_terminal_winch(struct mb_terminal *term);
bool mb_terminal_is_tty(const struct mb_terminal *term);
/* One line from the monitor, between the guest's output. Any thread. */
void mb_terminal_say(struct mb_terminal *term, const char *text);

#endif
