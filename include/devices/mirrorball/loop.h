/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_LOOP_H
#define MIRRORBALL_LOOP_H

#include <mirrorball/error.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * An event loop (epoll) and, for I/O, a thread that runs it. Callbacks run on the loop's thread, one
 * at a time.
 */
struct mb_loop;

/* A descriptor that a loop watches. Caller's memory; must stay until mb_loop_remove. */
struct mb_watch {
	int fd;
	uint32_t events; /* EPOLLIN, EPOLLOUT, ... (level-triggered) */
	void (*ready)(struct mb_watch *watch, uint32_t events);
	void *ctx;
};

int mb_loop_create(struct mb_loop **out, struct mb_error *err);
void mb_loop_destroy(struct mb_loop *loop);

/* Starts a thread named `name` that runs the loop, on `cpus` if not NULL. Destroy stops and joins it. */
int mb_loop_start_thread(struct mb_loop *loop, const char *name, const cpu_set_t *cpus,
	struct mb_error *err);

/* Its thread runs on these CPUs from now on. -errno of sched_setaffinity(2). */
int mb_loop_bind_thread(struct mb_loop *loop, const cpu_set_t *cpus);

/* Runs on the calling thread until mb_loop_stop. */
int mb_loop_run(struct mb_loop *loop);
/* Any thread; async-signal-safe. */
void mb_loop_stop(struct mb_loop *loop);

/* On the loop's own thread, or before it runs, or through mb_loop_call. */
int mb_loop_add(struct mb_loop *loop, struct mb_watch *watch);
int mb_loop_modify(struct mb_loop *loop, struct mb_watch *watch); /* after watch->events changed */
/* After it returns, watch->ready is not called any more. Safe inside a callback. */
void mb_loop_remove(struct mb_loop *loop, struct mb_watch *watch);

/* Runs fn(arg) on the loop's thread and waits for it. On the loop's own thread: a plain call. */
void mb_loop_call(struct mb_loop *loop, void (*fn)(void *arg), void *arg);

#endif
