/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_THREAD_H
#define MIRRORBALL_THREAD_H

#include <signal.h>

/*
 * What a thread of ours blocks: every signal, since they are the main thread's, but those that its own
 * faults raise. Were they blocked, the kernel would end the process without the handler that restores
 * the terminal (signal(7)).
 */
static inline void mb_signals_of_others(sigset_t *set)
{
	sigfillset(set);
	sigdelset(set, SIGSEGV);
	sigdelset(set, SIGBUS);
	sigdelset(set, SIGILL);
	sigdelset(set, SIGFPE);
	sigdelset(set, SIGABRT);
	sigdelset(set, SIGSYS);
}

#endif
