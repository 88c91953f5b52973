/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_THREAD_H
#define MIRRORBALL_THREAD_H

#include <pthread.h>
#include <sched.h>
#include <stddef.h>

/*
 * Starts a thread that takes no signal but those that its own faults raise: the others are the main
 * thread's. cpus: where it may run; NULL or none: where the caller may. -errno of
 * pthread_create(3).
 */
int mb_thread_start(pthread_t *thread, size_t stack_bytes, const cpu_set_t *cpus,
	void *(*fn)(void *arg), void *arg);

/* pthread_cond_timedwait(3) then takes times of CLOCK_MONOTONIC. */
void mb_cond_init(pthread_cond_t *cond);

#endif
