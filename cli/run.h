/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_RUN_H
#define MIRRORBALL_CLI_RUN_H

#include "cli.h"
#include "parse.h"
#include <mirrorball/host.h>
#include <mirrorball/machine.h>
#include <stdbool.h>

#define CLI_RUN_DEMO "demo" /* what runs when no guest is named */

/* What `mirrorball run` was asked to do. */
struct cli_run {
	struct mb_machine_config config;
	bool dry_run, json, overcommit;
	unsigned replica_percent; /* of memory, for copies; 0: config says how much */
	bool help, version, list; /* print that and end */
	const char *passt_args[MB_MAX_NETS][CLI_MAX_FIELDS + 1];
	char *copies[MB_MAX_DISKS + MB_MAX_NETS]; /* of values that are parsed in place */
	unsigned n_copies;
	char name[64];	   /* when --name is not given */
	struct mb_disk_facts disk[MB_MAX_DISKS]; /* of the machine that a dry run has built */
	struct mb_pmem_facts pmem[MB_MAX_PMEMS]; /* likewise */
	char splash[2048]; /* PROGRAM ARG ..., as the guest gets it */
	/* The machine is built, and runs next; NULL: nobody wants to know. */
	void (*started)(void *ctx);
	void *started_ctx;
};

/* Builds the machine of run->config and runs it to its end, which is told. Exit status or -errno. */
int cli_run_machine(struct cli_run *run, const struct mb_host *host, struct mb_error *err);

extern const struct cli_option cli_run_options[];

/*
 * Options and words into *run, with every rule that needs no look at the host. Errors are the
 * user's: exit status 2. run->config's strings point into argv and *run; cli_run_finish it in
 * either case.
 */
int cli_run_parse(struct cli_run *run, int argc, char **argv, struct mb_error *err);
/*
 * Whether the descriptors that were named are open: before this process opens any of its own, which
 * would be taken for them. -errno: they are not.
 */
int cli_run_check_descriptors(const struct cli_run *run, struct mb_error *err);
/* Defaults that depend on the host, and its limits. -errno: this host cannot run it. */
int cli_run_resolve(struct cli_run *run, const struct mb_host *host, struct mb_error *err);
void cli_run_finish(struct cli_run *run);

/* The resolved machine on standard output: a table, or JSON when run->json. */
int cli_run_show(const struct cli_run *run, const struct mb_host *host, struct mb_error *err);

#endif
