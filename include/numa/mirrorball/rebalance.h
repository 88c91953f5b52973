/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_REBALANCE_H
#define MIRRORBALL_REBALANCE_H

#include <mirrorball/heat.h>
#include <mirrorball/placement.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Whether vCPUs move off an overloaded node. Pure functions, as in placement.h. What moves is a
 * *group*: the vCPUs of one view, all on the CPUs of one node, which go to those of another; their
 * memory follows by the migration policy. A group that runs on several nodes stays.
 */
struct mb_rebalance_config {
	/* A node is overloaded for a group when both hold ... */
	double overloaded_share; /* 0.9 of its CPUs are busy: with less, some CPU is free for who
				    waits */
	/* 0.1 of the time that the group wants to run it waits: what its neighbours take of it. A
	 * node that is full of the group alone has nobody who waits. */
	double waiting_share;
	/* ... at so many checks in a row: 3, which is 30 s. A burst (a boot, a compile) is over by
	 * then, and a move, with its memory after it, costs seconds. */
	unsigned n_checks;

	/*
	 * A target holds the group when no more than this share of it is busy with it: 0.9, below
	 * what is overloaded. A node where others use no more than quiet_share, 0.1, may be filled:
	 * so a group as large as a node finds a place on a free one.
	 */
	double target_share;
	double quiet_share;

	/* 60 s from one move to the next of any machine of this host: what the first one changed
	 * must show in three checks of everybody before the second one is decided. */
	uint64_t cooldown_ns;
};
void mb_rebalance_defaults(struct mb_rebalance_config *config);

struct mb_rebalance_group {
	bool movable;  /* runs on one node ... */
	unsigned node; /* ... with this index */
	unsigned n_vcpus;
	double busy_cpus;      /* its vCPUs on CPUs, on the average since the last check */
	double waiting_cpus;   /* and waiting for one; 0 where nobody knows: then it stays */
	uint64_t memory_bytes; /* that goes with it */
};

/* What is remembered from check to check; zero at the start. */
struct mb_rebalance {
	unsigned n_overloaded[MB_HEAT_VIEWS]; /* checks in a row, of each group */
};

/* Once for each check, in equal intervals. host has what is busy now, the groups included. */
void mb_rebalance_note(struct mb_rebalance *state, const struct mb_rebalance_config *config,
	const struct mb_place_host *host, const struct mb_rebalance_group *group,
	unsigned n_groups);

struct mb_rebalance_move {
	unsigned group, from, to; /* nodes by index */
};

/*
 * Whether a group is to move: the one that waits most, to the node among `targets` (bits) that
 * would be the least busy, then the nearest, then the one with the lowest id. since_move_ns: since
 * the last move of any machine.
 */
bool mb_rebalance_decide(const struct mb_rebalance *state, const struct mb_rebalance_config *config,
	const struct mb_place_config *place, const struct mb_place_host *host,
	const struct mb_rebalance_group *group, unsigned n_groups, uint64_t targets,
	uint64_t since_move_ns, struct mb_rebalance_move *move);

#endif
