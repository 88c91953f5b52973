/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_NODE_LOAD_H
#define MIRRORBALL_NODE_LOAD_H

#include <mirrorball/topology.h>
#include <stdint.h>

/* Time of each node's CPUs (those of topo) since the boot, by index, in the kernel's ticks. */
struct mb_node_load {
	uint64_t busy[MB_MAX_NODES], all[MB_MAX_NODES];
};

/*
 * From `stat` below the directory proc_fd (a descriptor of /proc, or of a test's copy). Time that a
 * hypervisor below has taken counts as busy: nobody here can use it. -errno.
 */
int mb_node_load_read(const struct mb_topology *topo, int proc_fd, struct mb_node_load *load);

/* The busy share, 0 to 1, of the time from `before` to `now`; 0 where none has passed. */
double mb_node_load_share(
	const struct mb_node_load *before, const struct mb_node_load *now, unsigned node);

#endif
