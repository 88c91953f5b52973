// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/topology.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef MPOL_LOCAL
#define MPOL_LOCAL 4
#endif
#ifndef MPOL_PREFERRED_MANY
#define MPOL_PREFERRED_MANY 5
#endif

#define LOCAL_DISTANCE	 10
#define UNKNOWN_DISTANCE 20 /* what ACPI says of a neighbour when it says nothing */

/* Reads a small file below dir into buf, NUL-terminated. */
static int read_file(int dir, const char *path, char *buf, size_t size)
{
	int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
	ssize_t n;
	int rc = 0;

	if (fd < 0)
		return -errno;
	n = read(fd, buf, size - 1);
	if (n < 0)
		rc = -errno;
	buf[n < 0 ? 0 : n] = '\0';
	close(fd);
	return rc;
}

/*
 * Calls fn for each number of a list such as "0-3,8" (Documentation/ABI/stable/sysfs-devices-node).
 * What follows a syntax error is left out.
 */
static void for_each_in_list(
	const char *list, unsigned limit, void (*fn)(void *ctx, unsigned i), void *ctx)
{
	const char *at = list;

	while (*at >= '0' && *at <= '9') {
		char *end;
		unsigned long first = strtoul(at, &end, 10), last = first;

		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		for (unsigned long i = first; i <= last && i < limit; i++)
			fn(ctx, (unsigned)i);
		if (*end != ',')
			break;
		at = end + 1;
	}
}

static void add_cpu(void *ctx, unsigned i)
{
	CPU_SET(i, (cpu_set_t *)ctx);
}

static void add_node(void *ctx, unsigned id)
{
	struct mb_topology *topo = ctx;

	if (topo->n_nodes < MB_MAX_NODES)
		topo->node[topo->n_nodes++].id = id;
}

/* "Node 0 MemTotal:  2048 kB" */
static uint64_t meminfo_bytes(const char *text, const char *key)
{
	const char *at = strstr(text, key);

	return at ? strtoull(at + strlen(key), NULL, 10) * 1024 : 0;
}

/*
 * As MemAvailable of /proc/meminfo, which the kernel tells for all nodes together: half of the page
 * cache and of what slabs give back stays with those who use it.
 */
static uint64_t available_bytes(const char *text)
{
	return meminfo_bytes(text, "MemFree:") +
	       (meminfo_bytes(text, "Active(file):") + meminfo_bytes(text, "Inactive(file):") +
		       meminfo_bytes(text, "SReclaimable:")) /
		       2;
}

static void read_memory(struct mb_node *node, int sysfs_fd)
{
	char path[96], text[4096];

	snprintf(path, sizeof(path), "devices/system/node/node%u/meminfo", node->id);
	if (read_file(sysfs_fd, path, text, sizeof(text)))
		return;
	node->mem_total_bytes = meminfo_bytes(text, "MemTotal:");
	node->mem_free_bytes = meminfo_bytes(text, "MemFree:");
	node->mem_available_bytes = available_bytes(text);
	node->has_memory = node->mem_total_bytes > 0;
}

static void read_node(struct mb_topology *topo, unsigned index, int sysfs_fd)
{
	struct mb_node *node = &topo->node[index];
	char path[96], text[4096], *at;

	snprintf(path, sizeof(path), "devices/system/node/node%u/cpulist", node->id);
	if (!read_file(sysfs_fd, path, text, sizeof(text)))
		for_each_in_list(text, CPU_SETSIZE, add_cpu, &node->cpus);

	read_memory(node, sysfs_fd);

	/* One number for each online node, in the order of their ids. */
	snprintf(path, sizeof(path), "devices/system/node/node%u/distance", node->id);
	if (read_file(sysfs_fd, path, text, sizeof(text)))
		text[0] = '\0';
	at = text;
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		char *end;
		unsigned long distance = strtoul(at, &end, 10);

		if (end == at || distance < LOCAL_DISTANCE || distance > UINT16_MAX)
			distance = i == index ? LOCAL_DISTANCE : UNKNOWN_DISTANCE;
		node->distance[i] = (uint16_t)distance;
		at = end;
	}
}

static void one_node(struct mb_topology *topo, int sysfs_fd)
{
	struct mb_node *node = &topo->node[0];
	char text[4096];

	topo->n_nodes = 1;
	node->distance[0] = LOCAL_DISTANCE;
	node->has_memory = true;
	if (!read_file(sysfs_fd, "devices/system/cpu/online", text, sizeof(text)))
		for_each_in_list(text, CPU_SETSIZE, add_cpu, &node->cpus);
}

int mb_topology_read(struct mb_topology *topo, int sysfs_fd, struct mb_error *err)
{
	char text[4096];
	int rc;

	memset(topo, 0, sizeof(*topo));
	rc = read_file(sysfs_fd, "devices/system/node/online", text, sizeof(text));
	if (rc == -ENOENT)
		text[0] = '\0';
	else if (rc)
		return mb_error_set(err, -rc, "/sys/devices/system/node/online: %s", strerror(-rc));
	for_each_in_list(text, 1u << 16, add_node, topo);
	if (!topo->n_nodes) {
		one_node(topo, sysfs_fd);
		return 0;
	}
	for (unsigned i = 0; i < topo->n_nodes; i++)
		read_node(topo, i, sysfs_fd);
	return 0;
}

void mb_topology_read_memory(struct mb_topology *topo, int sysfs_fd)
{
	for (unsigned i = 0; i < topo->n_nodes; i++)
		read_memory(&topo->node[i], sysfs_fd);
}

int mb_numa_available(unsigned id, uint64_t *bytes)
{
	struct mb_node node = {.id = id};
	int sysfs_fd = open("/sys", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	*bytes = 0;
	if (sysfs_fd < 0)
		return -errno;
	read_memory(&node, sysfs_fd);
	close(sysfs_fd);
	*bytes = node.mem_available_bytes;
	return node.has_memory ? 0 : -ENODEV;
}

void mb_topology_restrict(struct mb_topology *topo, const cpu_set_t *allowed)
{
	for (unsigned i = 0; i < topo->n_nodes; i++)
		CPU_AND(&topo->node[i].cpus, &topo->node[i].cpus, allowed);
}

void mb_topology_group(const struct mb_topology *topo, unsigned n_views, cpu_set_t *view_cpus)
{
	unsigned order[MB_MAX_NODES], n = 0, cpus = 0, view = 0, taken = 0;
	bool used[MB_MAX_NODES] = {false};

	for (unsigned k = 0; k < n_views; k++)
		CPU_ZERO(&view_cpus[k]);
	/* A walk from the first node to its nearest unvisited neighbour keeps near nodes together.
	 */
	for (unsigned from = 0;;) {
		unsigned next = MB_MAX_NODES;

		for (unsigned i = 0; i < topo->n_nodes; i++) {
			if (used[i] || !CPU_COUNT(&topo->node[i].cpus))
				continue;
			if (next == MB_MAX_NODES ||
				topo->node[from].distance[i] < topo->node[from].distance[next])
				next = i;
		}
		if (next == MB_MAX_NODES)
			break;
		used[next] = true;
		order[n++] = from = next;
		cpus += (unsigned)CPU_COUNT(&topo->node[next].cpus);
	}
	/* Cut the walk where each view has its share of the CPUs and leaves a node for each to
	 * come. */
	for (unsigned i = 0; i < n; i++) {
		unsigned mine = (unsigned)CPU_COUNT(&topo->node[order[i]].cpus);
		bool full = (2 * taken + mine) * n_views > 2 * (view + 1) * cpus;
		bool must = n - i <= n_views - 1 - view;

		if (view + 1 < n_views && CPU_COUNT(&view_cpus[view]) && (full || must))
			view++;
		CPU_OR(&view_cpus[view], &view_cpus[view], &topo->node[order[i]].cpus);
		taken += mine;
	}
	for (unsigned k = view + 1; k < n_views; k++)
		view_cpus[k] = view_cpus[view];
}

int mb_numa_first_touch(void *addr, uint64_t len)
{
	/* An explicit policy without MPOL_F_NUMA_BALANCING: the host leaves these pages alone. */
	return mbind(addr, len, MPOL_LOCAL, NULL, 0, 0) ? -errno : 0;
}

#define MASK_BITS (MB_MAX_NODE_ID + 1)
#define WORD_BITS (8 * sizeof(unsigned long))

/* The kernel's numbers; one above its limit is in no mask. */
struct node_mask {
	unsigned long word[MASK_BITS / WORD_BITS];
};

static void mask_set(struct node_mask *mask, unsigned id)
{
	if (id <= MB_MAX_NODE_ID)
		mask->word[id / WORD_BITS] |= 1ul << id % WORD_BITS;
}

static bool mask_has(const struct node_mask *mask, unsigned id)
{
	return id <= MB_MAX_NODE_ID && mask->word[id / WORD_BITS] >> id % WORD_BITS & 1;
}

static int bind_mask(void *addr, uint64_t len, int mode, const struct node_mask *mask)
{
	/* The kernel takes one bit less than it is told (mbind(2), BUGS). */
	return mbind(addr, len, mode, mask->word, MASK_BITS + 1, 0) ? -errno : 0;
}

static int bind_nodes(
	void *addr, uint64_t len, int mode, const struct mb_topology *topo, uint64_t nodes)
{
	struct node_mask mask = {0};

	for (unsigned i = 0; i < topo->n_nodes; i++)
		if (nodes >> i & 1)
			mask_set(&mask, topo->node[i].id);
	return bind_mask(addr, len, mode, &mask);
}

int mb_numa_prefer_node(void *addr, uint64_t len, unsigned id)
{
	struct node_mask mask = {0};

	mask_set(&mask, id);
	return bind_mask(addr, len, MPOL_PREFERRED, &mask);
}

int mb_numa_prefer(void *addr, uint64_t len, const struct mb_topology *topo, uint64_t nodes)
{
	int rc;

	if (!nodes)
		return mb_numa_first_touch(addr, len);
	if (!(nodes & (nodes - 1)))
		return bind_nodes(addr, len, MPOL_PREFERRED, topo, nodes);
	rc = bind_nodes(addr, len, MPOL_PREFERRED_MANY, topo, nodes);
	/* Before Linux 5.15: those who touch it run there, and that is nearly as good. */
	return rc == -EINVAL ? mb_numa_first_touch(addr, len) : rc;
}

int mb_numa_interleave(void *addr, uint64_t len, const struct mb_topology *topo, uint64_t nodes)
{
	return bind_nodes(addr, len, MPOL_INTERLEAVE, topo, nodes);
}

uint64_t mb_numa_mems_allowed(const struct mb_topology *topo)
{
	struct node_mask mask = {0};
	uint64_t allowed = 0;

	/* A kernel without NUMA, or with more nodes than Linux can have: all. */
	if (get_mempolicy(NULL, mask.word, MASK_BITS, NULL, MPOL_F_MEMS_ALLOWED))
		return UINT64_MAX;
	for (unsigned i = 0; i < topo->n_nodes; i++)
		if (mask_has(&mask, topo->node[i].id))
			allowed |= 1ull << i;
	return allowed;
}
