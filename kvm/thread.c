// SPDX-License-Identifier: Apache-2.0
#include <mirrorball/thread.h>
#include <signal.h>

/*
 * What a thread of ours blocks: every signal, since they are the main thread's, but those that its
 * own faults raise. Were they blocked, the kernel would end the process without the handler that
 * restores the terminal (signal(7)).
 */
static void signals_of_others(sigset_t *set)
{
	sigfillset(set);
	sigdelset(set, SIGSEGV);
	sigdelset(set, SIGBUS);
	sigdelset(set, SIGILL);
	sigdelset(set, SIGFPE);
	sigdelset(set, SIGABRT);
	sigdelset(set, SIGSYS);
}

int mb_thread_start(pthread_t *thread, size_t stack_bytes, const cpu_set_t *cpus,
	void *(*fn)(void *arg), void *arg)
{
	pthread_attr_t attr;
	sigset_t set, old;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, stack_bytes);
	if (cpus && CPU_COUNT(cpus))
		pthread_attr_setaffinity_np(&attr, sizeof(*cpus), cpus);
	signals_of_others(&set);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	rc = pthread_create(thread, &attr, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return -rc;
}

void mb_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}
