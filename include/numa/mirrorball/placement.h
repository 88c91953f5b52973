/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_PLACEMENT_H
#define MIRRORBALL_PLACEMENT_H

#include <mirrorball/topology.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * On which of the host's nodes a new machine is put: on the fewest that hold its vCPUs and its
 * memory, so that all it uses is near. Pure functions, as in policy.h: what the host is and what
 * other machines have been promised is the caller's to find out.
 */
struct mb_place_config {
	/*
	 * Memory that stays free on a node: the larger of both. The migration policy's low marks
	 * (policy.h), so that a node is not short from the start on.
	 */
	double low_free_share;	 /* 0.04 of the node */
	uint64_t low_free_bytes; /* 64 MiB */

	/*
	 * What a vCPU that does not run counts for, in CPUs. 0 would put all machines on the node
	 * where the first ones happen to idle, 1 would take no notice of who really runs.
	 */
	double idle_vcpu_load; /* 0.5 */

	/* Loads per CPU that differ by less than a step are the same: so much is noise of a
	 * measurement over 10 s. */
	double load_step; /* 0.05 */
};
void mb_place_defaults(struct mb_place_config *config);

struct mb_place_node {
	unsigned id;	 /* the kernel's number */
	unsigned n_cpus; /* that the machine may use */
	bool usable;	 /* its memory: there is some, and the cpuset allows it */
	uint64_t total_bytes;
	uint64_t available_bytes;	 /* free, or easily reclaimed */
	uint16_t distance[MB_MAX_NODES]; /* to the node at that index; 10 is local */

	/* What others have of it. */
	unsigned vcpus;		 /* of other machines */
	uint64_t promised_bytes; /* of their memory, not touched yet: it is still available */
	double busy_cpus;	 /* by everybody; 0 where nobody knows */
};

struct mb_place_host {
	unsigned n_nodes; /* at most MB_MAX_NODES */
	struct mb_place_node node[MB_MAX_NODES];
};
/* mems_allowed: a bit for each index of topo->node where memory may be put. Others have nothing. */
void mb_place_host_init(
	struct mb_place_host *host, const struct mb_topology *topo, uint64_t mems_allowed);

/* Memory that a node has for one more machine. */
uint64_t mb_place_room(const struct mb_place_config *config, const struct mb_place_node *node);

enum mb_place_kind {
	MB_PLACE_AUTO,	 /* the fewest nodes */
	MB_PLACE_NODES,	 /* those that are given */
	MB_PLACE_SPREAD, /* all, memory by turns */
	MB_PLACE_NONE,	 /* wherever the kernel puts it */
};
/* "auto", "nodes", "spread", "none". */
const char *mb_place_kind_name(enum mb_place_kind kind);

struct mb_node_ids {
	uint64_t bits[(MB_MAX_NODE_ID + 1) / 64];
};
/* "0,2-3", all of it; -EINVAL: no such list, or an empty one; -ERANGE: a number above the limit. */
int mb_node_ids_parse(const char *text, struct mb_node_ids *ids);
/* The same list again, as short as it can be; what does not fit is left out. */
void mb_node_ids_format(const struct mb_node_ids *ids, char *text, size_t size);
static inline bool mb_node_ids_has(const struct mb_node_ids *ids, unsigned id)
{
	return id <= MB_MAX_NODE_ID && ids->bits[id / 64] >> id % 64 & 1;
}

struct mb_place_request {
	enum mb_place_kind kind;
	struct mb_node_ids ids; /* of MB_PLACE_NODES */
	unsigned n_vcpus;
	uint64_t memory_bytes;
	/* Nodes with CPUs that it wants at least, where there are so many; 0 is 1. */
	unsigned min_nodes;
};

/* Why these nodes. */
enum mb_place_why {
	MB_PLACE_WHY_ONE_NODE, /* there is one with CPUs, and no other memory */
	MB_PLACE_WHY_FEWEST,   /* the fewest that hold it */
	MB_PLACE_WHY_VCPUS,    /* it has as many vCPUs as all CPUs, or more: all nodes */
	MB_PLACE_WHY_MEMORY,   /* its memory needs nodes without CPUs, too */
	MB_PLACE_WHY_PROMISED, /* the fewest, if others do not touch what they were promised */
	MB_PLACE_WHY_NO_ROOM,  /* they do not hold its memory together: all nodes */
	MB_PLACE_WHY_GIVEN,    /* asked for */
	MB_PLACE_WHY_SPREAD,   /* asked for all */
	MB_PLACE_WHY_NONE,     /* asked for none */
};
/* A few words for people. */
const char *mb_place_why_text(enum mb_place_why why);

/* Nodes are bits: of the index in the host. What is expected of each is a guess, for the registry.
 */
struct mb_placement {
	uint64_t nodes;
	enum mb_place_why why;
	unsigned vcpus[MB_MAX_NODES];
	uint64_t bytes[MB_MAX_NODES];
};

/*
 * Of the sets of nodes with CPUs that hold it, the smallest; of these the one that has the least
 * load per CPU with it, then the nearest nodes, then most room, then the lowest ids. Exact for sets
 * of one and two; larger ones are grown from each node, by distance and by size: some 64 * 64 * 64
 * steps at most, so that a smaller set may be missed where nodes differ. Its vCPUs take part as
 * busy.
 *
 * 0, -ENODEV: there is no node with CPUs that may be used; -EINVAL: MB_PLACE_NODES names a node
 * that is not there or has neither CPUs nor memory for it (*bad_id, which may be NULL); -ENOSPC:
 * none of those named has CPUs.
 */
int mb_place(const struct mb_place_config *config, const struct mb_place_host *host,
	const struct mb_place_request *request, struct mb_placement *out, unsigned *bad_id);

#endif
