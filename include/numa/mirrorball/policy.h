/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_POLICY_H
#define MIRRORBALL_POLICY_H

#include <mirrorball/heat.h>
#include <mirrorball/topology.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * What is to be done about memory that is used from afar: heat in, a list of actions and the reason
 * for each out. Pure functions: no system call, no clock, no global; the same input gives the same
 * plan, on a live host, in tests and in the simulator (sim.h). Time is what the caller says.
 *
 * Disco's rules (section 5.1 of the paper), weighed by what they cost and bring:
 *
 *   hot, used by one node          migrate
 *   hot, read by several views     replicate, where that is possible
 *   hot, written by several        leave; spread when its memory controller is overloaded
 *   cold                           leave
 *
 * Shared memory still moves where that makes it much nearer to its users on the whole: read-shared
 * memory that cannot be copied, and what was put where hardly anybody uses it.
 */
struct mb_policy;

/*
 * Every parameter. None is tuned to a program: each comes from a measurement, from what the tracker
 * can tell, or from what a user would put up with.
 */
struct mb_policy_config {
	/*
	 * What a touch is worth, in accesses to memory. The tracker tells that a page was touched
	 * in a window of 10 ms at least, not how often: that is one of its cache lines, or all of
	 * them, or all of them many times. Taken as the geometric mean of one and all lines, which
	 * is wrong by no more than a factor of 8 (a page) or 181 (2 MiB) for what goes through it
	 * once. For what is touched in every window (460 a second) it is a lower bound: what is
	 * hotter pays back sooner than is thought, never later.
	 */
	double page_touch_accesses;  /* of a 4 KiB page; 8: sqrt(64) */
	double block_touch_accesses; /* of a 2 MiB page; 181: sqrt(32768) */

	double local_ns; /* of an access at distance 10; 100: DDR4 and DDR5 servers have 80 to 130.
			    At distance d it is local_ns * d / 10 (ACPI 6.5, 5.2.17) */

	/* What a move costs, all vCPUs together. Measure and set them; the defaults are on the high
	 * side, so that what does not know moves less. */
	double move_page_ns;  /* 5000: unmap, copy, remap and a fault of each view */
	double move_block_ns; /* 300000: copying 2 MiB at 8 GB/s, and the same around it */
	/* 500000: to take a 2 MiB page apart, before parts of it move: 100 us for the call, and 512
	 * faults of each view after it. What moves pays for it together. Add what a pause of all
	 * vCPUs costs, if there is one. */
	double split_block_ns;
	double copy_page_ns; /* 8000: of a replica for one view: copy, and faults */
	/* 50000: of a range that gets one, however long: mappings are made and moved, with a word to
	 * another thread for each (bench/collapse: 30 us, and 250 where CPUs are short) */
	double copy_run_ns;
	double copied_write_ns; /* 50000: a write that ends copies, until it goes on (bench/collapse:
				   14 us, and 60 where CPUs are short) */
	/* 0.5: of a 2 MiB page that several use, and of which nobody knows more than that some of it
	 * is written, so much of the gain is expected of copies: it is protected for a while, in
	 * which the first write to each page tells that it is written. If there are many of them that
	 * was in vain, and is tried again after waits that double. 0: is not tried. */
	double try_share;
	/* 50: what a touch of a 4 KiB page takes longer from then on where 2 MiB were mapped at
	 * once, as where it has a replica or was taken apart: a walk of page tables after a miss of
	 * the TLB. bench/small-pages: 13 to 28 ns where page tables stay in a cache, 96 to 262
	 * where they do not */
	double small_walk_ns;

	/* Who counts as a user. */
	double cold_per_s; /* 0.1 touches: less is noise of the tracker's, and could not pay back */
	double min_confidence; /* 0.5: more than that takes two looks, of which the last was seconds
				  ago (heat.h) */
	double single_share;   /* 0.8 of all accesses: who has them is the one user */
	double user_share;     /* 0.05 of all accesses: less does not make a view a user */
	double max_write_share; /* 0.01 of all touches: above, it is written, and a replica would
				   soon be lost */

	/* Hysteresis: what a move must bring, as a part of the time that its accesses take now. */
	double min_gain; /* 0.05: nodes of one socket are 10 % apart, no estimate is better */
	/* 0.2: of memory without a single user, whose users change more often. */
	double min_gain_shared;
	uint64_t payback_ns; /* 20 s: a use that was seen for two looks may be expected to go on for
				some more, not for minutes */

	/*
	 * Against ping-pong: a move makes the next one of the same memory wait, and each doubles
	 * the wait. What has stayed for `forgive` times its wait has paid for its move many times
	 * over, and one move of it is forgiven: so memory whose user changes every 20 s or more
	 * slowly follows it, at 300 us each 20 s for 2 MiB, and memory whose user changes faster
	 * settles.
	 */
	uint64_t backoff_ns; /* 5 s after the first move: longer than two looks of a slow tracker,
				and 0.01 % of it for a page that moves each time */
	uint64_t backoff_max_ns; /* 1 h */
	unsigned max_moves;	 /* 12: then it stays until some of them are forgiven. 1 to 63 */
	unsigned forgive;	 /* 4 */

	/* Budgets, in bytes copied. A bucket holds what burst_ns brings, at least 2 MiB. */
	uint64_t bytes_per_s; /* 2 GiB: what one thread can do in huge pages */
	/* 1 GiB, into and out of a node together: 1 to 3 % of a server node's bandwidth. */
	uint64_t node_bytes_per_s;
	uint64_t burst_ns; /* 1 s: the time between two plans */

	/*
	 * And in time: all moves and copies together, with the writes that waited because of the
	 * latter, cost at most this share of the CPU time that the guest has had. The tracker sees
	 * touches, not misses, so that a guest with all it uses in its caches gains nothing by what
	 * it seems to need; this is what it may lose.
	 */
	double cost_share; /* 0.01: with the tracker's 0.005 less than the 0.02 that are noticed */
	uint64_t cost_burst_ns; /* 200 ms: what may be spent at once, and by a guest that has just
				   begun; 1.3 GiB in huge pages */

	/* Free memory that stays free on a target: the larger one of both. Below it a node is
	 * short, until it is above the high mark. */
	double low_free_share;	 /* 0.04 of the node: Linux begins to reclaim at 1 to 2 % */
	double high_free_share;	 /* 0.06 */
	uint64_t low_free_bytes; /* 64 MiB, and half as much again is the high mark */

	/* Spreading write-shared memory: when its node's controller is so busy ... */
	double busy_share; /* 0.7: queues double the latency there */
	double busy_gap;   /* 0.3: ... and another's so much less */

	bool replicas; /* whether they can be made; false */

	unsigned max_actions; /* 4096 of one plan */
	unsigned max_tries;   /* 16 of one plan: a vCPU waits a little in each block */
	unsigned max_records; /* 16384 of the history, 48 bytes each */
};
void mb_policy_defaults(struct mb_policy_config *config);

struct mb_policy_node {
	int id;	       /* the kernel's number: what extents and actions say */
	bool usable;   /* memory may be put there: it has some, and the cpuset allows it */
	bool has_cpus; /* without, it is a target only where those with CPUs have no room */
	uint64_t total_bytes, free_bytes; /* the latter with what is easily reclaimed, as file caches */
	double busy; /* of its controller's bandwidth, 0 to 1; 0 where nobody knows */
	/* To the node at that index. Below 10: unknown, taken as 20. 255: unreachable. */
	uint16_t distance[MB_MAX_NODES];
};

struct mb_policy_host {
	unsigned n_nodes; /* at most MB_MAX_NODES */
	struct mb_policy_node node[MB_MAX_NODES];
};

/* mems_allowed: a bit for each index of topo->node where memory may be put. */
void mb_policy_host_init(
	struct mb_policy_host *host, const struct mb_topology *topo, uint64_t mems_allowed);

/* Where a view's vCPUs run: a weight for each index of the host's nodes, of any scale. A view
 * without one is left out of account: from where it touches is not known. */
struct mb_policy_view {
	float weight[MB_MAX_NODES];
};

struct mb_policy_input {
	uint64_t now_ns;   /* monotonic; 0 is a time like others */
	uint64_t guest_ns; /* CPU time that the guest has had so far; 0: not known, costs are not
			      limited by it */
	uint64_t n_writes; /* that have waited so far because there were copies */
	const struct mb_policy_config *config;
	const struct mb_policy_host *host;
	unsigned n_views; /* at most MB_HEAT_VIEWS */
	const struct mb_policy_view *view;
	/* In any order. What makes no sense is left alone and called MB_WHY_ODD. */
	unsigned n_extents;
	const struct mb_extent *extent;
};

/* Why a range is moved, or not. */
enum mb_why {
	MB_WHY_MIGRATE,	     /* moves to the node that uses it */
	MB_WHY_REPLICATE,    /* is copied to nodes that read it */
	MB_WHY_SPREAD,	     /* moves to a controller that is less busy */
	MB_WHY_COLD,	     /* hardly used */
	MB_WHY_UNSURE,	     /* too little is known */
	MB_WHY_LOCAL,	     /* it is where its users are */
	MB_WHY_NO_GAIN,	     /* it would hardly be nearer to its users */
	MB_WHY_READ_SHARED,  /* read by several; replicas are not possible */
	MB_WHY_WRITE_SHARED, /* written by several */
	MB_WHY_NO_PAYBACK,   /* takes too long to pay for itself */
	MB_WHY_BACKING_OFF,  /* moved before, and waits: next_ns */
	MB_WHY_BUDGET,	     /* bytes a second are spent */
	MB_WHY_NODE_BUDGET,  /* those of a node are */
	MB_WHY_COST_BUDGET,  /* a guest that has used so little CPU time may cost no more */
	MB_WHY_NO_ROOM,	     /* nodes nearer to its users are short of memory */
	MB_WHY_FORBIDDEN,    /* nodes nearer to its users must not be used */
	MB_WHY_PLAN_FULL,    /* max_actions */
	MB_WHY_NO_NODE,	     /* where it lives is not known, or it has no memory */
	MB_WHY_ODD,	     /* makes no sense: no length, beside pages, or told twice */
	MB_WHY_COUNT,
};
/* "cold", "backing off". */
const char *mb_why_name(enum mb_why why);

enum mb_action_kind { MB_ACTION_MIGRATE, MB_ACTION_REPLICATE };

/*
 * One thing to do, the best first. Of a 2 MiB page always the whole, unless `split`: then it has to
 * be taken apart first, for its parts have different users.
 */
struct mb_action {
	enum mb_action_kind kind;
	enum mb_why why; /* MB_WHY_MIGRATE, _REPLICATE or _SPREAD */
	uint64_t offset, len_bytes;
	bool huge, split;
	bool is_try; /* a replica of what may be written, to be seen before it is made */
	int from; /* -1: from wherever it is; a part of it is on `to` already */
	int to;
	int view;	      /* that gets the replica; -1 for a move */
	double gain_ns_per_s; /* memory time that it saves */
	double cost_ns;
};

struct mb_verdict {
	uint64_t offset, len_bytes;
	unsigned extent; /* index of the input */
	enum mb_why why;
	int node, target; /* ids; -1: none */
	unsigned moves;	  /* of it that are not forgiven, before this plan */
	uint64_t next_ns; /* MB_WHY_BACKING_OFF: not before */
	/* Of a move; 0 where none was considered. One that would lose has a gain below 0, and
	 * INFINITY. */
	double gain_ns_per_s, payback_ns;
};

struct mb_plan {
	struct mb_action *action;
	unsigned n_actions;
	/* In order of offset; every extent has one at least, one more where its parts fare
	 * differently. */
	struct mb_verdict *verdict;
	unsigned n_verdicts;
	uint64_t bytes; /* of all actions */
};

/*
 * What the policy remembers: its budgets, which nodes are short, and what has moved. The latter is
 * a list of ranges, as coarse as the moves were: 16 GiB that moved at once are one record, a page
 * that moved alone is one. What is forgiven is dropped. Above max_records, records of the same 2
 * MiB are joined, then of the same 4 MiB, and so on; a joined one has the most moves and the latest
 * of its parts, so what is lost can only make moves rarer. Its memory is bounded whatever the
 * guest's.
 */
int mb_policy_create(struct mb_policy **out);	  /* -ENOMEM */
void mb_policy_destroy(struct mb_policy *policy); /* takes NULL */
unsigned mb_policy_n_records(const struct mb_policy *policy);

/*
 * Makes a plan and takes note of it as done: what fails is tried again when its wait is over, as
 * what moved would be, so that pages that cannot move do not cost more than those that do. The
 * caller finishes plan. Costs (extents + records) * nodes, and a sort; nothing depends on bytes.
 * -ENOMEM, -EINVAL (too many nodes or views): then nothing has changed and plan is empty.
 */
int mb_policy_plan(
	struct mb_policy *policy, const struct mb_policy_input *input, struct mb_plan *plan);
void mb_plan_finish(struct mb_plan *plan);

#endif
