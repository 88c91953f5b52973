/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TERMINAL_H
#define MIRRORBALL_TERMINAL_H

#include <mirrorball/chardev.h>
#include <mirrorball/error.h>
#include <mirrorball/loop.h>

/*
 * Standard input and output as the back of the guest's console. A terminal is put into raw mode
 * (output processing stays on) while our process group is in its foreground, and restored by
 * mb_terminal_destroy; mb_terminal_restore is for ways out that skip it. Input is read on `loop`;
 * output is written by a thread of its own, so that a slow terminal slows the guest's console and
 * nothing else.
 *
 * Ctrl-] is the escape: then q ends the machine at once, s presses its power button, p pauses or
 * resumes it, r resets it, m or ? shows the menu, Ctrl-] sends itself. Only when standard input is
 * a terminal.
 *
 * In the background a terminal is neither read nor changed (both would stop us): we look twice a
 * second whether we are in the foreground again. Output never stops us, also with "stty tostop".
 *
 * When output fails for good (a pipe whose reader has gone, a terminal that has hung up, a full
 * disk), one line on standard error says so, and from then on output is dropped while the guest
 * runs on. The caller ignores SIGPIPE. What the guest does not read: 64 KiB from a terminal are
 * kept (the escape works meanwhile), then typed characters are lost and a line says so; anything
 * else waits in the pipe or file.
 */
struct mb_terminal;

struct mb_terminal_ops {
	/*
	 * On the loop's thread; may stop the loop, not destroy the terminal. key: 'q', 's', 'p' or
	 * 'r'.
	 */
	void (*command)(void *ctx, char key);
	void (*resized)(void *ctx, unsigned columns, unsigned rows); /* may be NULL */
};

/*
 * in_fd, out_fd: usually 0 and 1, or -1; they stay the caller's. in_fd may be closed or at end of
 * file: the guest then gets no input. out_fd may be closed: output is dropped. (Who starts with 0
 * to 2 closed opens /dev/null there first, or the next descriptor opened is taken for the console.)
 * On the loop's thread or before it runs.
 */
int mb_terminal_create(struct mb_loop *loop, int in_fd, int out_fd,
	const struct mb_terminal_ops *ops, void *ctx, struct mb_terminal **out,
	struct mb_error *err);
/*
 * Writes what is left (bounded: 1 s), and a newline when the guest's last line lacks one and
 * standard error goes to the same place; restores the terminal. Takes NULL. The front (serial port,
 * console) is gone by now. Any thread.
 */
void mb_terminal_destroy(struct mb_terminal *term);
/* Restores the modes only. Async-signal-safe, any thread, any number of times; takes NULL. */
void mb_terminal_restore(const struct mb_terminal *term);

struct mb_chardev *mb_terminal_chardev(struct mb_terminal *term);
/*
 * The size may have changed (SIGWINCH), or we are going on after a stop (SIGCONT): sets the modes
 * again if need be, reads the size and calls ops->resized. Call it once at the start. On the loop's
 * thread.
 */
void mb_terminal_winch(struct mb_terminal *term);
/* Standard input is a terminal: the escape works. */
bool mb_terminal_is_tty(const struct mb_terminal *term);
/*
 * One line from the monitor, "mirrorball: text", on a line of its own between the guest's output.
 * Any thread. Left out while the output is so far behind that there is no room.
 */
void mb_terminal_say(struct mb_terminal *term, const char *text);

#endif
