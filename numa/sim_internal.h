/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_NUMA_SIM_INTERNAL_H
#define MB_NUMA_SIM_INTERNAL_H

#include <mirrorball/sim.h>

/* ---- sim_place.c: where memory is ---- */

struct stretch {
	uint64_t end; /* begins where the one before ends */
	unsigned node;
};

/* All of a guest's memory; neighbours differ. */
struct place {
	struct stretch *stretch;
	unsigned n, room;
};

int mb_sim_place_add(struct place *place, uint64_t end, unsigned node);
/* The first stretch that ends behind offset. */
unsigned mb_sim_place_find(const struct place *place, uint64_t offset);
/* Applies what the plan moves. used: bytes of each node; adds to moved and cost_ns. -ENOMEM. */
int mb_sim_place_move(struct place *place, const struct mb_sim_host *host,
	const struct mb_plan *plan, uint64_t *used, uint64_t *moved, double *cost_ns);

/* ---- sim_look.c: what a tracker would see ---- */

struct look {
	float touch[MB_HEAT_VIEWS], write[MB_HEAT_VIEWS]; /* chances in the window */
	unsigned window;
	float samples;
	uint64_t seen_ns;
};

struct looks {
	struct look *look;
	unsigned n, next;
};

/* Looks at some of the uses. -ENOMEM. */
int mb_sim_look(struct looks *looks, const struct mb_sim_config *config,
	const uint64_t view_nodes[MB_HEAT_VIEWS], const struct mb_sim_uses *uses, uint64_t now_ns,
	uint32_t *seed);
/* Confidence, age and heat of a use. */
void mb_sim_look_tell(const struct looks *looks, unsigned i, unsigned n_views,
	const struct mb_sim_use *use, uint64_t now_ns, struct mb_extent *e);

/* ---- sim_oracle.c: what is best and worst over all time ---- */

struct oracle {
	uint64_t *end; /* of ranges: the borders of all uses at any time */
	unsigned n;
	double *accesses; /* of each range by node */
	uint8_t *best, *worst;
};

/* -EINTR when *stop is true. */
int mb_sim_oracle_make(struct oracle *oracle, const struct mb_sim_config *config,
	const struct mb_sim_host *host, const struct mb_sim_load *load, const volatile int *stop);
void mb_sim_oracle_finish(struct oracle *oracle);
/* The nearest or farthest node with memory, for accesses from each node. */
unsigned mb_sim_best(const struct mb_sim_host *host, const double *accesses);
unsigned mb_sim_worst(const struct mb_sim_host *host, const double *accesses);

#endif
