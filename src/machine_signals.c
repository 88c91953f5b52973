// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/thread.h>
#include <string.h>
#include <time.h>

#include "machine_internal.h"

/*
 * Signals have a thread of their own, because the main loop may be waiting: for a vCPU, which waits for
 * a disk that does not answer. Nothing can be torn down while the kernel may still write to guest
 * memory, so when an ending takes too long the process has to go as it is.
 */
#define STUCK_S	    3
#define STACK_BYTES (64u << 10)

void mb_machine_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
	sigaddset(set, SIGQUIT);
	sigaddset(set, SIGWINCH);
	sigaddset(set, SIGCONT); /* back in the foreground: the terminal's modes may be others */
	sigaddset(set, SIGPIPE); /* nobody reads our output: the write's error says so */
}

/* The first one asks the guest to power off, the next one does not ask. */
static void end_signal(struct mb_machine *machine, int signal, unsigned *n)
{
	sigset_t set;
	struct timespec limit = {.tv_sec = STUCK_S};

	__atomic_store_n(&machine->signal, signal, __ATOMIC_RELEASE);
	if (!(*n)++ && !machine->config.splash && signal != SIGQUIT) {
		mb_machine_ask(machine, MB_ASK_BUTTON);
		return;
	}
	mb_machine_ask(machine, MB_ASK_QUIT);
	/* The stop at the machine's end comes as a SIGPIPE; whatever else comes changes nothing. */
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	while (!__atomic_load_n(&machine->signals_stop, __ATOMIC_ACQUIRE)) {
		if (sigtimedwait(&set, NULL, &limit) < 0 && errno == EAGAIN) {
			if (machine->config.stuck)
				machine->config.stuck(machine->config.stuck_ctx, signal);
			return;
		}
	}
}

static void *thread_main(void *arg)
{
	struct mb_machine *machine = arg;
	unsigned n_end_signals = 0;
	sigset_t set;

	pthread_setname_np(pthread_self(), "signals");
	mb_machine_signals(&set);
	while (!__atomic_load_n(&machine->signals_stop, __ATOMIC_ACQUIRE)) {
		int signal = sigwaitinfo(&set, NULL);

		if (signal == SIGWINCH || signal == SIGCONT)
			mb_machine_ask(machine, MB_ASK_WINCH);
		else if (signal > 0 && signal != SIGPIPE)
			end_signal(machine, signal, &n_end_signals);
	}
	return NULL;
}

int mb_machine_start_signals(struct mb_machine *machine, struct mb_error *err)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	mb_signals_of_others(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&machine->signals_thread, &attr, thread_main, machine);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (rc)
		return mb_error_set(err, rc, "thread for signals: %s; too many processes? (ulimit -u)",
			strerror(rc));
	machine->has_signals_thread = true;
	return 0;
}

void mb_machine_stop_signals(struct mb_machine *machine)
{
	if (!machine->has_signals_thread)
		return;
	__atomic_store_n(&machine->signals_stop, true, __ATOMIC_RELEASE);
	pthread_kill(machine->signals_thread, SIGPIPE);
	pthread_join(machine->signals_thread, NULL);
	machine->has_signals_thread = false;
}
