/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_NUMA_POLICY_INTERNAL_H
#define MB_NUMA_POLICY_INTERNAL_H

#include <mirrorball/policy.h>

/* What has moved, or where copies were tried: [offset, end). In order, without overlap. */
struct record {
	uint64_t offset, end;
	uint64_t last_ns, tried_ns;
	int node; /* where to; -1: several */
	unsigned moves, tries; /* one of both is not 0 */
};

struct mb_policy {
	struct record *record;
	unsigned n_records;
	/* Budgets: bytes left, by index of a node. */
	bool started;
	uint64_t filled_ns;
	double bytes, node_bytes[MB_MAX_NODES];
	uint64_t guest_ns, n_writes; /* that they were filled for */
	double cost_ns;	   /* below 0: the last thing cost more than there was */
	uint64_t short_nodes; /* below the low mark, and not yet above the high one */
};

/* What is decided at once: of one extent, or a 2 MiB page of which several extents have parts. */
struct unit {
	uint64_t offset, len_bytes;
	uint64_t granule_bytes; /* what moves whole */
	bool huge, split;
	bool in_detail; /* huge, and its pages are known */
	bool is_try;
	bool odd, has_record;
	int node;     /* index; -1: unknown */
	double share; /* of it that is there */
	double confidence;
	double touches;					  /* a second, of the hottest page */
	double read[MB_HEAT_VIEWS], write[MB_HEAT_VIEWS]; /* accesses a second, of all of it */
	double write_touches, all_touches;
	/* From the history. */
	unsigned moves;
	uint64_t next_ns, next_try_ns;
	/* What was decided. */
	enum mb_why why;
	int target;
	double gain, cost_ns; /* of all of it */
	double small_ns; /* a second: what of small pages is taken off the gain */
	unsigned class;	      /* enum class */
	uint64_t done_bytes;  /* from its beginning */
	int first_target;     /* of what is done */
	enum mb_why rest;     /* of what is not */
};

/* A run of one extent, for its verdict. */
struct part {
	uint64_t offset, len_bytes;
	unsigned extent, unit;
};

enum class { CLASS_SINGLE, CLASS_READ_SHARED, CLASS_WRITE_SHARED };

/* The input, seen as the policy needs it. */
struct work {
	const struct mb_policy_input *input;
	const struct mb_policy_config *config;
	const struct mb_policy_host *host;
	unsigned n_views, n_nodes;
	/* ns of an access of the view to memory on the node; as a target, and as what is there now
	 * (an unreachable target is infinitely far). */
	double target_ns[MB_HEAT_VIEWS][MB_MAX_NODES], home_ns[MB_HEAT_VIEWS][MB_MAX_NODES];
	double weight[MB_HEAT_VIEWS][MB_MAX_NODES]; /* sums up to 1, or to 0 */
	double room[MB_MAX_NODES];		    /* bytes that may come */
	double spread[MB_MAX_NODES];		    /* accesses a second that may leave */
	struct unit *unit;
	unsigned n_units;
	struct part *part;
	unsigned n_parts, room_parts;
	struct mb_plan *plan;
	unsigned room_actions, n_tries;
};

static inline double mb_policy_accesses(const struct unit *u, unsigned view)
{
	return u->read[view] + u->write[view];
}

/* Of all views. */
static inline double mb_policy_all_accesses(const struct work *w, const struct unit *u)
{
	double sum = 0;

	for (unsigned v = 0; v < w->n_views; v++)
		sum += mb_policy_accesses(u, v);
	return sum;
}

/* policy_input.c: fills in units and parts. -ENOMEM. */
int mb_policy_read(const struct mb_policy *policy, struct work *w);
/* -1: not one of the host's. */
int mb_policy_find_node(const struct mb_policy_host *host, int id);

enum class mb_policy_class(const struct work *w, const struct unit *u);

/* policy_decide.c: what is to become of each unit, budgets aside. */
void mb_policy_decide(const struct work *w);
enum mb_why mb_policy_decide_unit(const struct work *w, struct unit *u);
bool mb_policy_is_move(enum mb_why why);
/* The best node but for those of `without`, and what it brings; -1, and why not. */
int mb_policy_target(const struct work *w, const struct unit *u, uint64_t without, double *gain,
	enum mb_why *why);
/* Where the view's copy is to be, and what it brings; -1: nowhere. */
int mb_policy_copy_target(const struct work *w, const struct unit *u, unsigned view, double *gain);
double mb_policy_copy_cost(const struct work *w, uint64_t len); /* for one view */
bool mb_policy_pays_back(const struct work *w, double gain, double cost_ns);

/* policy_spend.c: fills the buckets; actions of units within budgets, the best first. -ENOMEM. */
void mb_policy_fill(struct mb_policy *policy, struct work *w);
int mb_policy_spend(struct mb_policy *policy, struct work *w);

/* policy_history.c */
uint64_t mb_policy_wait_ns(const struct mb_policy_config *config, unsigned moves);
/* Moves that are not forgiven, and when the next may be. */
unsigned mb_policy_moves(const struct mb_policy_config *config, const struct record *r,
	uint64_t now_ns, uint64_t *next_ns);
/* When copies may be tried again: each try doubles the wait, and nothing is forgiven but all of it
 * after the longest wait, since where one was not in vain there is nothing to try. */
uint64_t mb_policy_next_try_ns(const struct mb_policy_config *config, const struct record *r);
/* The history with the plan's actions in it, at `out`. -ENOMEM. */
int mb_policy_remember(
	const struct mb_policy *policy, const struct work *w, struct record **out, unsigned *n_out);

#endif
