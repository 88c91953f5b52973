/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_SIM_H
#define MIRRORBALL_CLI_SIM_H

#include <mirrorball/sim.h>
#include <stdio.h>

/* What `mirrorball sim` was asked for, and what came of it. */

#define SIM_MAX_RUNS	 16u
#define SIM_MAX_MACHINES 10000u

struct sim_run {
	char name[64]; /* of the program, or of the traced machine */
	unsigned n_machines, n_vcpus;
	uint64_t memory_bytes; /* of each machine */
	unsigned step_ms;
	struct mb_sim_result result;
};

struct sim_report {
	char host_name[128], host_source[512];
	struct mb_sim_host host;
	unsigned n_views;  /* that the host gives */
	unsigned n_turns;  /* 0: each is always what it is */
	const char *start; /* where memory is at first */
	unsigned n_runs;
	struct sim_run run[SIM_MAX_RUNS];
};

/* ---- sim_machine.c: a host as JSON describes it ---- */

/*
 * "FILE", "FILE:NAME": an object with "ns", or an object of such objects, as in
 * bench/machines.json. Memory that the file does not tell is left 0 everywhere. -errno.
 */
int sim_machine_read(const char *where, struct sim_report *report, struct mb_error *err);
/* The built-in one, of as many nodes. */
void sim_machine_default(unsigned n_nodes, struct sim_report *report);

/* ---- sim_trace.c: heat that was recorded ---- */

struct sim_trace;
/* What `mirrorball heat --json --seconds` wrote; "-": standard input. -errno. */
int sim_trace_read(const char *path, struct sim_trace **out, struct mb_error *err);
void sim_trace_destroy(struct sim_trace *trace); /* takes NULL */
unsigned sim_trace_n_nodes(const struct sim_trace *trace);
/* Name, length and views as recorded; load->ctx is the trace. config has the policy's parameters.
 */
int sim_trace_load(struct sim_trace *trace, struct mb_sim_config *config,
	const struct mb_sim_host *host, struct sim_run *run, struct mb_sim_load *load,
	struct mb_error *err);

/* ---- sim_show.c, sim_svg.c ---- */

void sim_show(const struct sim_report *report, bool utf8);
int sim_show_json(const struct sim_report *report); /* 0 or -ENOMEM */
int sim_svg_draw(const struct sim_report *report, FILE *out);

extern const char *const sim_case_names[MB_SIM_CASES]; /* for people */
extern const char *const sim_case_keys[MB_SIM_CASES];  /* for programs */

#endif
