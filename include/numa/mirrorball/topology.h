/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TOPOLOGY_H
#define MIRRORBALL_TOPOLOGY_H

#include <mirrorball/error.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#define MB_MAX_NODES 64
#define MB_MAX_NODE_ID 1023u /* of Linux (CONFIG_NODES_SHIFT is at most 10) */

/* One NUMA node of the host. */
struct mb_node {
	unsigned id;	     /* the kernel's number; ids may be sparse */
	cpu_set_t cpus;	     /* online CPUs; empty for a memory-only node */
	bool has_memory;
	uint64_t mem_total_bytes;
	uint64_t mem_free_bytes;
	uint64_t mem_available_bytes;	 /* free, or easily reclaimed: an estimate */
	uint16_t distance[MB_MAX_NODES]; /* to node at that index of topology.node; 10 is local */
};

struct mb_topology {
	unsigned n_nodes;
	struct mb_node node[MB_MAX_NODES]; /* ordered by id */
};

/*
 * Reads /sys/devices/system/node below the directory `sysfs_fd` (a descriptor of /sys, or of a test's
 * copy). A kernel without NUMA counts as one node with all CPUs. Values that cannot be read leave the
 * node out or the value 0; only an unreadable directory is an error.
 */
int mb_topology_read(struct mb_topology *topo, int sysfs_fd, struct mb_error *err);

/* Reads the memory of its nodes anew. */
void mb_topology_read_memory(struct mb_topology *topo, int sysfs_fd);

/*
 * Bytes of the node that are free, or easily reclaimed, now (an estimate); 0 where there are none any
 * more. -errno: no such node, or no memory in it.
 */
int mb_numa_available(unsigned id, uint64_t *bytes);

/* Takes away the CPUs that are not in `allowed` (a cpuset's, sched_getaffinity(2)); every node stays. */
void mb_topology_restrict(struct mb_topology *topo, const cpu_set_t *allowed);

/*
 * Divides the nodes that have CPUs into n_views groups of nearby nodes with about as many CPUs each;
 * view_cpus[k] receives the CPUs of group k. With fewer such nodes than views, the last group is
 * repeated.
 */
void mb_topology_group(const struct mb_topology *topo, unsigned n_views, cpu_set_t *view_cpus);

/*
 * Gives [addr, addr + len) of a shared mapping the explicit policy "first touch" (MPOL_LOCAL), which the
 * file keeps for every mapping of it, and which keeps automatic NUMA balancing away. -errno of mbind(2).
 */
int mb_numa_first_touch(void *addr, uint64_t len);

/*
 * The same with another policy; `nodes` has a bit for each index of topo->node. prefer: on the node
 * that touches it if it is one of these, else on one of them; on another where they are full. No
 * node: first touch; so are several before Linux 5.15. interleave: by turns, huge page by huge
 * page. What is there already stays.
 */
int mb_numa_prefer(void *addr, uint64_t len, const struct mb_topology *topo, uint64_t nodes);
int mb_numa_interleave(void *addr, uint64_t len, const struct mb_topology *topo, uint64_t nodes);

/* One node, by its id. */
int mb_numa_prefer_node(void *addr, uint64_t len, unsigned id);

/* Nodes whose memory this thread may have (a cpuset's mems), as bits of the index. */
uint64_t mb_numa_mems_allowed(const struct mb_topology *topo);

#endif
