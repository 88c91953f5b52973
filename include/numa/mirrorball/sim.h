/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_SIM_H
#define MIRRORBALL_SIM_H

#include <mirrorball/error.h>
#include <mirrorball/policy.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * A model of hosts and guests, to see what the policy (policy.h) makes of them: which part of their
 * accesses is local and what all of them take, beside what other placements would. The policy is
 * the real one; hosts, guests, the tracker and the mover are arithmetic, and the time is modelled.
 * No system call, no clock: the same input gives the same result.
 *
 * The model: a guest's vCPUs access memory at rates that do not depend on where it is. An access
 * takes what the host's table says for the pair of nodes, times the queue at the node's controller,
 * if its bandwidth is given (M/D/1 of accesses of 64 bytes). A move takes its cost, which is added
 * to the guest's time as if all vCPUs waited one after the other. The tracker is modelled as it is:
 * it sees touches, in windows, with chance, of which half is believed, and it looks at some ranges
 * a second only.
 */
#define MB_SIM_LINE_BYTES 64u

struct mb_sim_host {
	unsigned n_nodes;
	unsigned cpus[MB_MAX_NODES];
	uint64_t memory_bytes[MB_MAX_NODES];
	double ns[MB_MAX_NODES][MB_MAX_NODES]; /* of an access; from the row's CPUs */
	uint16_t distance[MB_MAX_NODES][MB_MAX_NODES];
	double bytes_per_s[MB_MAX_NODES]; /* that its memory can deliver; 0: any */
	double move_page_ns, move_block_ns;
};

/* Fills in what a table of latencies does not say: distances, and what moves cost. */
void mb_sim_host_complete(struct mb_sim_host *host);

/* A range of a guest's memory that is used alike, for a step. */
struct mb_sim_use {
	uint64_t offset, len_bytes; /* multiples of 4 KiB */
	bool huge;
	float lines; /* accesses to a page that come together, and are one touch */
	/* Accesses a second to each 4 KiB page, by index of the node they come from. */
	float read[MB_MAX_NODES], write[MB_MAX_NODES];
	/* What a tracker has really seen; confidence and heat are taken from there. */
	bool is_seen;
	struct mb_extent seen;
};

struct mb_sim_uses {
	struct mb_sim_use *use; /* in order of offset, no overlap */
	unsigned n, room;
};
/* A zeroed use more at the end, or NULL. */
struct mb_sim_use *mb_sim_uses_add(struct mb_sim_uses *uses);

/* What runs in a machine. */
struct mb_sim_load {
	uint64_t memory_bytes;
	float vcpus[MB_MAX_NODES]; /* how many are on each node; the first one's is first_node */
	unsigned first_node;
	/* Puts what is done from at_ns on for a step into uses, which is empty. -ENOMEM. */
	int (*uses)(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *uses);
	const void *ctx;
};

enum mb_sim_start {
	MB_SIM_FIRST,	   /* where the first vCPU runs: it has touched all */
	MB_SIM_INTERLEAVE, /* on all nodes */
	MB_SIM_WORST,	   /* as far from its first users as can be */
	MB_SIM_BEST,	   /* with its first users */
	MB_SIM_SEEN,	   /* where a trace says */
};

struct mb_sim_config {
	struct mb_policy_config policy;
	unsigned n_views;		    /* that are told apart, 1..MB_HEAT_VIEWS */
	unsigned n_turns;		    /* that it takes (mb_heat_n_turns); 0: 1 */
	uint64_t view_nodes[MB_HEAT_VIEWS]; /* a bit for each node; all 0: groups of near ones */
	uint64_t length_ns;		    /* of guest time */
	uint64_t step_ns;		    /* between two plans */
	enum mb_sim_start start;
	float noise;	      /* of a look, relative; 0.1: a look at 2 MiB in small pages */
	unsigned looks_per_s; /* of a machine's tracker; 50: 200 calls a second, two looks and two
				 views each */
	uint32_t seed;
};
void mb_sim_defaults(struct mb_sim_config *config);

enum mb_sim_case {
	MB_SIM_POLICY,
	MB_SIM_NONE,	       /* all stays where it was at first */
	MB_SIM_INTERLEAVED,    /* all on all nodes */
	MB_SIM_STATIC_ORACLE,  /* each page where it is best over the whole time */
	MB_SIM_DYNAMIC_ORACLE, /* each page where it is best, in every step, and moved for nothing
				*/
	MB_SIM_WORST_STATIC,   /* each page where it is worst over the whole time */
	MB_SIM_CASES,
};

/* Oracles know everything, have room everywhere, but make no copies, and know nothing of queues. */
struct mb_sim_result {
	unsigned n_steps;
	uint64_t step_ns;
	double accesses;	     /* in all */
	double s[MB_SIM_CASES];	     /* time in memory of all vCPUs, without that of moves */
	double local[MB_SIM_CASES];  /* share of all accesses */
	float *series[MB_SIM_CASES]; /* the same of each step; NAN: there were none */
	double moving_s;
	uint64_t n_moves, moved_bytes;
	uint64_t *step_moved_bytes;
	double why_bytes[MB_WHY_COUNT];	   /* by verdict, mean over all plans */
	uint64_t used_bytes[MB_MAX_NODES]; /* at the end */
	double busy[MB_SIM_CASES];	   /* the busiest controller's most busy step */
	unsigned n_extents;		   /* at most, of one plan */
};

/*
 * Runs all cases. -EINVAL where the loads do not fit the host, -ENOMEM; the caller finishes result.
 * stop, if not NULL, is looked at in each step: -EINTR when it is true.
 */
int mb_sim_run(const struct mb_sim_config *config, const struct mb_sim_host *host,
	const struct mb_sim_load *load, unsigned n_loads, const volatile int *stop,
	struct mb_sim_result *result, struct mb_error *err);
void mb_sim_result_finish(struct mb_sim_result *result);

/* ---- built-in loads, after splash's programs ---- */

struct mb_sim_program {
	const char *name, *summary;
	int (*uses)(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *uses);
};
/* The last one has no name. */
extern const struct mb_sim_program mb_sim_programs[];

struct mb_sim_guest {
	const struct mb_sim_program *program;
	uint64_t memory_bytes; /* at least 2 MiB a vCPU */
	unsigned n_vcpus;
	unsigned span;	       /* nodes that its vCPUs are on, in equal blocks */
	unsigned first_node;   /* the first of them: counted among those with CPUs */
	double accesses_per_s; /* to memory, of a vCPU; each has its own between 3/4 and 5/4 */
	uint64_t period_ns;    /* of what changes */
	/* Set by mb_sim_guest_load. */
	unsigned n_cpu_nodes, cpu_node[MB_MAX_NODES];
	double node_rate[MB_MAX_NODES];
};

/* load points to guest, which must outlive it. -EINVAL with what is wrong. */
int mb_sim_guest_load(struct mb_sim_guest *guest, const struct mb_sim_host *host,
	struct mb_sim_load *load, struct mb_error *err);
/* NULL: there is none of that name. */
const struct mb_sim_program *mb_sim_program_find(const char *name);

#endif
