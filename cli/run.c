// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include "guard.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/log.h>
#include <mirrorball/splash.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int run_main(const struct cli_command *command, int argc, char **argv);

const struct cli_command cli_run = {
	.name = "run",
	.summary = "Run a virtual machine",
	.usage = "[OPTIONS] [--kernel FILE | splash PROGRAM [ARG...]]",
	.about = "Runs a virtual machine on this terminal until it powers off. Without a guest it "
		 "is 'splash " CLI_RUN_DEMO "', as a demonstration. SIZE is a whole number and K, "
		 "M, G or T (powers of 1024).",
	.options = cli_run_options,
	.epilogue =
		"Ctrl-] is the escape key: then q ends the machine, s presses its power button, p "
		"pauses or resumes it, r resets it, m shows the menu.\n\n"
		"Exit status: 0 powered off, 1 not started or the monitor failed, 2 wrong command "
		"line, 3 KVM could not go on, 4 guest crashed, 5 reset with --no-reboot, 6 ended "
		"with the escape key, 64 + s splash's own status s, 128 + n ended by signal n.\n\n"
		"splash is the guest inside this program; 'mirrorball run splash --list' shows its "
		"programs. More: man mirrorball-run.",
	.main = run_main,
};

static int list_programs(void)
{
	for (const struct mb_splash_program *p = mb_splash_programs; p->name; p++) {
		printf("%-12s", p->name);
		cli_wrap(stdout, p->summary, 12, 12);
		if (p->usage && *p->usage) {
			printf("%12s", "");
			cli_wrap(stdout, p->usage, 12, 12);
		}
	}
	return cli_flush();
}

/* Exit status and, for the person who waits, one line about how it went. */
static int report(const struct cli_run *run, const struct mb_outcome *outcome)
{
	const char *name = run->config.name;
	double run_s = (double)outcome->run_ns / 1e9;
	char resets[48] = "";
	int status = CLI_OK;

	if (outcome->n_resets)
		snprintf(resets, sizeof(resets), ", %u reset%s", outcome->n_resets,
			outcome->n_resets == 1 ? "" : "s");
	switch (outcome->end) {
	case MB_END_POWEROFF:
		if (!run->config.quiet)
			mb_log("%s: powered off after %.2f s%s (started in %.1f ms, %llu exits)",
				name, run_s, resets, (double)outcome->start_to_first_run_ns / 1e6,
				(unsigned long long)outcome->n_exits);
		break;
	case MB_END_REBOOT:
		status = CLI_REBOOT;
		if (!run->config.quiet)
			mb_log("%s: the guest reset itself after %.2f s; --no-reboot ends it here",
				name, run_s);
		break;
	case MB_END_GUEST_STATUS:
		status = outcome->status < CLI_GUEST_MAX - CLI_GUEST_BASE
				 ? CLI_GUEST_BASE + outcome->status
				 : CLI_GUEST_MAX;
		if (!run->config.quiet)
			mb_log("%s: the guest's program ended with status %d after %.2f s", name,
				outcome->status, run_s);
		break;
	case MB_END_CRASH:
		status = CLI_CRASH;
		mb_log("%s: the guest crashed after %.2f s%s; its last output says why", name,
			run_s, resets);
		break;
	case MB_END_KVM_ERROR:
		status = CLI_KVM_ERROR;
		mb_log("%s: KVM could not go on after %.2f s%s; the vCPU's state is above, and "
		       "'mirrorball doctor' shows what this host lacks",
			name, run_s, resets);
		break;
	case MB_END_QUIT:
		status = outcome->signal ? CLI_SIGNAL_BASE + outcome->signal : CLI_QUIT;
		if (!run->config.quiet)
			mb_log("%s: ended by %s after %.2f s%s", name,
				outcome->signal ? strsignal(outcome->signal) : "the escape key",
				run_s, resets);
		break;
	}
	return status;
}

/* The last way out: something hangs that cannot be waited for. */
static void stuck(void *ctx, int signal, const char *doing)
{
	const struct cli_run *run = ctx;

	cli_guard_restore();
	if (doing)
		mb_log("%s: %s: ended while %s", run->config.name, strsignal(signal), doing);
	else
		mb_log("%s: %s: a disk or network does not answer; left it as it is",
			run->config.name, strsignal(signal));
	_exit(CLI_SIGNAL_BASE + signal);
}

/* 0, -errno, or the status for a signal that came meanwhile: the guest has not run, nothing is
 * lost. */
static int build_machine(struct cli_run *run, const struct mb_machine_config *config,
	const struct mb_host *host, struct mb_machine **out, struct mb_error *err)
{
	struct mb_machine_config c = *config;
	int sig = 0, rc;

	c.stuck = stuck;
	c.stuck_ctx = run;
	c.early_signal = &sig;
	rc = mb_machine_create(host, &c, out, err);
	return rc && sig ? CLI_SIGNAL_BASE + sig : rc;
}

int cli_run_machine(struct cli_run *run, const struct mb_host *host, struct mb_error *err)
{
	struct mb_outcome outcome = {0};
	struct mb_machine *machine;
	int rc;

	cli_guard_hold_signals();
	rc = build_machine(run, &run->config, host, &machine, err);
	if (rc)
		return rc;
	if (run->started)
		run->started(run->started_ctx);
	rc = mb_machine_run(machine, &outcome, err);
	/* First: it restores the terminal, and what is said next must not be staircase. */
	mb_machine_destroy(machine);
	return rc ? rc : report(run, &outcome);
}

/*
 * Builds the machine as a run would, on no terminal; its files, locks and taps are opened and let
 * go.
 */
static int dry_run(struct cli_run *run, const struct mb_host *host, struct mb_error *err)
{
	struct mb_machine_config config = run->config;
	struct mb_machine *machine;
	int rc;

	config.in_fd = config.out_fd = -1;
	config.no_control = config.dry = true;
	rc = build_machine(run, &config, host, &machine, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < run->config.n_disks; i++)
		mb_machine_disk(machine, i, &run->disk[i]);
	for (unsigned i = 0; i < run->config.n_pmems; i++)
		mb_machine_pmem(machine, i, &run->pmem[i]);
	mb_machine_destroy(machine);
	rc = cli_run_show(run, host, err);
	return rc ? rc : cli_flush();
}

static int run_main(const struct cli_command *command, int argc, char **argv)
{
	uint64_t start_ns = mb_now_ns();
	struct mb_host host;
	struct mb_error err;
	struct cli_run run;
	int rc;

	rc = cli_run_parse(&run, argc, argv, &err);
	run.config.start_ns = start_ns;
	if (rc) {
		cli_run_finish(&run);
		return cli_usage_error(command, &err);
	}
	if (run.help || run.version || run.list) {
		if (run.help)
			cli_command_help(command, stdout);
		else if (run.version)
			cli_version(stdout);
		cli_run_finish(&run);
		return run.list ? list_programs() : cli_flush();
	}
	rc = cli_run_check_descriptors(&run, &err);
	if (!rc)
		rc = mb_host_open(&host, NULL, &err);
	if (!rc) {
		rc = mb_host_check(&host, &err);
		if (!rc)
			rc = cli_run_resolve(&run, &host, &err);
		if (!rc)
			rc = run.dry_run ? dry_run(&run, &host, &err)
					 : cli_run_machine(&run, &host, &err);
		mb_host_finish(&host);
	}
	if (rc < 0) {
		mb_log("%s", err.text);
		rc = CLI_FAILED;
	}
	cli_run_finish(&run);
	return rc;
}
