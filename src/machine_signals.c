// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/thread.h>
#include <string.h>
#include <time.h>

#include "machine_internal.h"

/*
 * Signals have a thread of their own, because the main loop may be waiting: for a vCPU, which waits for
 * a disk that does not answer. Nothing can be torn down while the kernel may still write to guest
 * memory, so when an ending takes too long the process has to go as it is. The same goes for what a
 * machine is made of: a file on a server that is away, a program that does not start.
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

int mb_machine_signalled(const struct mb_machine *machine)
{
	return __atomic_load_n(&machine->signal, __ATOMIC_ACQUIRE);
}

/* The end is under way: waits until it is there, and calls `stuck` if it does not come. */
static void watch_end(struct mb_machine *machine, int signal, const char *early)
{
	struct timespec limit = {.tv_sec = STUCK_S};
	const char *doing;
	sigset_t set;

	/*
	 * The stop at the machine's end comes as a SIGPIPE; whatever else comes changes nothing. But where
	 * the guest has not run there is nothing to lose, and a second signal need not wait.
	 */
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	if (early) {
		sigaddset(&set, SIGINT);
		sigaddset(&set, SIGTERM);
		sigaddset(&set, SIGHUP);
		sigaddset(&set, SIGQUIT);
	}
	while (!__atomic_load_n(&machine->signals_stop, __ATOMIC_ACQUIRE)) {
		int more = sigtimedwait(&set, NULL, &limit);

		if (more == SIGPIPE || (more < 0 && errno != EAGAIN))
			continue;
		doing = __atomic_load_n(&machine->doing, __ATOMIC_ACQUIRE);
		if (machine->config.stuck)
			mb_machine_drop_snapshot(machine);
		if (machine->config.stuck)
			machine->config.stuck(
				machine->config.stuck_ctx, more > 0 ? more : signal, doing ? doing : early);
		return;
	}
}

/* The first one asks the guest to power off, the next one does not ask. */
static void end_signal(struct mb_machine *machine, int signal, unsigned *n)
{
	const char *early;

	/* With the pair in mb_machine_run: either it sees the signal, or we see that it runs. */
	__atomic_store_n(&machine->signal, signal, __ATOMIC_SEQ_CST);
	early = __atomic_load_n(&machine->doing, __ATOMIC_SEQ_CST);
	if (!(*n)++ && !early && !machine->config.splash && signal != SIGQUIT) {
		mb_machine_ask(machine, MB_ASK_BUTTON);
		return;
	}
	if (!early)
		mb_machine_ask(machine, MB_ASK_QUIT);
	watch_end(machine, signal, early);
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
	int rc = mb_thread_start(&machine->signals_thread, STACK_BYTES, NULL, thread_main, machine);

	if (rc)
		return mb_error_set(err, -rc, "thread for signals: %s; too many processes? (ulimit -u)",
			strerror(-rc));
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
