/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_MANAGER_H
#define MIRRORBALL_MANAGER_H

#include <mirrorball/error.h>
#include <mirrorball/mover.h>
#include <mirrorball/policy.h>
#include <mirrorball/replica.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Closes the loop (design, section 4): once a second it asks what is known of guest memory, lets
 * the policy decide, has it moved, and keeps what was done and why. What it knows of the machine
 * comes through ops, on its own thread, without a lock of its.
 */
struct mb_manager;

#define MB_MANAGER_DECISIONS 256u /* the newest that are kept */
#define MB_MANAGER_RANGES    1024u
#define MB_MANAGER_SAMPLES   128u /* of locality; when they are full, every second one goes */

struct mb_manager_ops {
	/* The caller frees the array; -errno: nothing is known now. */
	int (*extents)(void *ctx, struct mb_extent **out, unsigned *n);
	/* Fills in free_bytes and usable of each node. */
	void (*look)(void *ctx, struct mb_policy_host *host);
	uint64_t (*guest_ns)(void *ctx); /* as mb_policy_input's */
	/* mb_mover_move */
	int (*move)(void *ctx, const struct mb_move *move, struct mb_moved *moved);
	/* Of mb_replicas_stats, _share, _protect, _finish and _replicate; only with
	 * policy.replicas. */
	uint64_t (*n_writes)(void *ctx);
	float (*copied)(void *ctx, uint64_t offset, uint64_t len, unsigned view);
	int (*protect)(void *ctx, uint64_t offset, uint64_t len, struct mb_replicated *done);
	int (*finish)(void *ctx, uint64_t offset, uint64_t len, unsigned views,
		struct mb_replicated *done);
	int (*replicate)(void *ctx, uint64_t offset, uint64_t len, unsigned views,
		struct mb_replicated *done);
};

struct mb_manager_config {
	const char *name; /* in messages; outlives it */
	const struct mb_manager_ops *ops;
	void *ctx;
	struct mb_policy_config policy;
	struct mb_policy_host host;
	unsigned n_views;
	struct mb_policy_view view[MB_HEAT_VIEWS];
	/* Not 0: memory of so many bytes is moved about at random, all the time. For torture. */
	uint64_t storm_bytes;
};

int mb_manager_create(
	const struct mb_manager_config *config, struct mb_manager **out); /* -ENOMEM */
void mb_manager_destroy(struct mb_manager *manager);			  /* stopped; takes NULL */

/* Its thread. stop waits for the end of a move: hold the mover first. */
int mb_manager_start(struct mb_manager *manager, struct mb_error *err);
void mb_manager_stop(struct mb_manager *manager); /* takes NULL */

/* Nothing new is begun from the return of hold to release. Counted; any thread; take NULL. */
void mb_manager_hold(struct mb_manager *manager);
void mb_manager_release(struct mb_manager *manager);

/* Where the vCPUs of a view run has changed. Any thread; holds from the next turn on. Takes NULL.
 */
void mb_manager_set_view(
	struct mb_manager *manager, unsigned view, const struct mb_policy_view *where);

/* One turn; its thread calls it, tests do with a time of theirs. */
void mb_manager_step(struct mb_manager *manager, uint64_t now_ns);

/* One move that was begun, and what became of it. */
struct mb_decision {
	uint64_t time_ns, offset, len_bytes;
	unsigned n_pieces; /* within 2 MiB from offset on; len_bytes is what they have together */
	enum mb_why why;
	int from, to; /* from -1: several nodes */
	double gain_ns_per_s;
	struct mb_moved moved;
	int rc; /* of the move */
};

struct mb_manager_sample {
	uint64_t time_ns;
	float locality;	      /* share of accesses (policy.h) to a node of their view, 0..1 */
	uint64_t moved_bytes; /* since the start */
};

struct mb_manager_node {
	int id;
	uint64_t total_bytes, free_bytes;
	uint64_t guest_bytes;	      /* an estimate: extents with what share of them is there */
	double accesses_per_s;	      /* to memory there, by the policy's estimate */
	uint64_t in_bytes, out_bytes; /* moved to it, and from it, so far */
};

struct mb_manager_stats {
	uint64_t n_steps, n_moves; /* so far; a move is a range of memory */
	uint64_t moved_bytes, busy_bytes, full_bytes, split_bytes;
	uint64_t move_ns, longest_ns;	  /* all moves; the longest that a vCPU may have waited */
	uint64_t step_ns;		  /* the last turn */
	uint64_t why_bytes[MB_WHY_COUNT]; /* what the last plan said of how much memory */
	bool knows_locality;
	float locality;
	unsigned n_nodes;
	struct mb_manager_node node[MB_MAX_NODES];
};
/* Any thread, these too. */
void mb_manager_stats(struct mb_manager *manager, struct mb_manager_stats *stats);
/* The newest at most, oldest first; how many. */
unsigned mb_manager_decisions(struct mb_manager *manager, struct mb_decision *out, unsigned max);
/*
 * What the last plan said of which memory, in order of offset. Neighbours of which it said the same
 * are one range: it has the sum of what they would gain, and the longest wait and payback. Where that
 * is more than MB_MANAGER_RANGES, small ones are left out.
 */
unsigned mb_manager_ranges(struct mb_manager *manager, struct mb_verdict *out, unsigned max);
unsigned mb_manager_samples(
	struct mb_manager *manager, struct mb_manager_sample *out, unsigned max);

#endif
