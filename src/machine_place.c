// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine_internal.h"

/* On which nodes of the host the machine is put, and its memory. */

#define LOCK_WAIT_MS 250 /* others hold it for less than a millisecond */
#define PPM	     1000000.0

static uint64_t nodes_of(const struct mb_place_host *host, bool with_cpus)
{
	uint64_t nodes = 0;

	for (unsigned i = 0; i < host->n_nodes; i++)
		if (with_cpus ? host->node[i].n_cpus > 0 : host->node[i].usable)
			nodes |= 1ull << i;
	return nodes;
}

bool mb_machine_is_confined(const struct mb_machine *machine)
{
	const struct mb_machine_place *p = machine->place;

	return p && nodes_of(&p->host, true) & ~p->placement.nodes;
}

void mb_machine_chosen_topology(struct mb_machine *machine, struct mb_topology *topo)
{
	const struct mb_topology *all = mb_machine_topology(machine);

	memset(topo, 0, sizeof(*topo));
	if (!all)
		return;
	*topo = *all;
	for (unsigned i = 0; machine->place && i < topo->n_nodes; i++)
		if (!(machine->place->placement.nodes >> i & 1))
			CPU_ZERO(&topo->node[i].cpus);
}

uint64_t mb_machine_room(const struct mb_machine *machine)
{
	const struct mb_machine_place *p = machine->place;
	uint64_t room = 0;

	for (unsigned i = 0; p && i < p->host.n_nodes; i++)
		if (p->placement.nodes >> i & 1)
			room += mb_place_room(&p->config, &p->host.node[i]);
	return p ? room : UINT64_MAX;
}

/* ---- other machines ---- */

void mb_machine_read_others(struct mb_machine *machine)
{
	struct mb_machine_place *p = machine->place;
	struct mb_registry_record sum;

	for (unsigned i = 0; i < p->host.n_nodes; i++) {
		struct mb_place_node *node = &p->host.node[i];

		node->vcpus = 0;
		node->promised_bytes = 0;
		node->busy_cpus = 0;
	}
	if (!p->registry)
		return;
	mb_registry_read(p->registry, mb_now_ns(), &sum);
	for (unsigned i = 0; i < p->host.n_nodes; i++) {
		struct mb_place_node *node = &p->host.node[i];

		for (unsigned k = 0; k < sum.n_nodes; k++) {
			const struct mb_registry_node *s = &sum.node[k];

			if (s->id != node->id)
				continue;
			node->vcpus = s->vcpus;
			node->promised_bytes = s->promised_bytes;
			node->busy_cpus = s->measured ? s->host_busy_ppm / PPM * node->n_cpus
						      : s->busy_ppm / PPM;
		}
	}
}

static void unregister(struct mb_machine *machine, const char *why)
{
	mb_log("%s: runs, but other machines do not know on which nodes: %s", machine->config.name,
		why);
	mb_registry_close(machine->place->registry);
	machine->place->registry = NULL;
}

void mb_machine_publish_place(struct mb_machine *machine, const struct mb_registry_record *record)
{
	struct mb_machine_place *p = machine->place;
	int rc = p->registry ? mb_registry_publish(p->registry, record) : 0;

	if (rc)
		unregister(machine, strerror(-rc));
}

/* Nothing is touched yet, and nothing has run. */
static void publish_first(struct mb_machine *machine)
{
	struct mb_machine_place *p = machine->place;
	struct mb_registry_record record = {.time_ns = mb_now_ns()};

	for (unsigned i = 0; i < p->host.n_nodes; i++)
		record.node[record.n_nodes++] = (struct mb_registry_node){
			.id = p->host.node[i].id,
			.vcpus = p->placement.vcpus[i],
			.promised_bytes = p->placement.bytes[i],
		};
	mb_machine_publish_place(machine, &record);
}

static void open_registry(struct mb_machine *machine)
{
	struct mb_machine_place *p = machine->place;
	struct mb_error err;

	if (machine->config.no_control)
		return;
	if (mb_registry_open(&p->registry, &err)) {
		unregister(machine, err.text);
		return;
	}
	if (mb_registry_lock(p->registry, LOCK_WAIT_MS))
		mb_log("%s: placement: another process does not let go of the registry's lock; went"
		       " on without",
			machine->config.name);
}

/* ---- the choice ---- */

/* "0, 2 and 3": those that may be named. */
static void list_nodes(const struct mb_place_host *host, char *text, size_t size)
{
	unsigned n = 0, left = 0;
	size_t len = 0;

	text[0] = '\0';
	for (unsigned i = 0; i < host->n_nodes; i++)
		left += host->node[i].n_cpus || host->node[i].usable;
	for (unsigned i = 0; i < host->n_nodes && len < size; i++) {
		if (!host->node[i].n_cpus && !host->node[i].usable)
			continue;
		left--;
		len += (size_t)snprintf(text + len, size - len, "%s%u",
			!n++   ? ""
			: left ? ", "
			       : " and ",
			host->node[i].id);
	}
}

static int refuse(const struct mb_place_host *host, int rc, unsigned bad_id, struct mb_error *err)
{
	char list[256];

	list_nodes(host, list, sizeof(list));
	if (rc == -EINVAL)
		return mb_error_set(err, EINVAL,
			"--placement nodes: the machine may not use a node %u of this host; it may"
			" use %s",
			bad_id, list);
	if (rc == -ENOSPC)
		return mb_error_set(err, EINVAL,
			"--placement nodes: none of them has a CPU that the machine may use; it may"
			" use %s",
			list);
	return mb_error_set(err, -rc, "placement: no node has a CPU that the machine may use");
}

static int choose(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_machine_place *p = machine->place;
	const struct mb_machine_config *config = &machine->config;
	struct mb_place_request request = {
		.kind = config->placement,
		.ids = config->placement_nodes,
		.n_vcpus = config->n_vcpus,
		.memory_bytes = config->memory_bytes,
		/* Who asks for views asks for the nodes that they are for. */
		.min_nodes = config->n_views < config->n_vcpus ? config->n_views : config->n_vcpus,
	};
	unsigned bad_id = 0;
	int rc;

	mb_machine_read_others(machine);
	rc = mb_place(&p->config, &p->host, &request, &p->placement, &bad_id);
	if (rc)
		return refuse(&p->host, rc, bad_id, err);
	if (p->placement.why == MB_PLACE_WHY_NO_ROOM)
		mb_log("%s: placement: no nodes of this host have room for its memory; it runs on "
		       "all of them",
			config->name);
	return 0;
}

static struct mb_machine_place *new_place(const struct mb_topology *topo)
{
	struct mb_machine_place *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->timer.fd = -1;
	p->sysfs_fd = open("/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
	p->proc_fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	mb_place_defaults(&p->config);
	mb_rebalance_defaults(&p->rebalance_config);
	mb_place_host_init(&p->host, topo, mb_numa_mems_allowed(topo));
	return p;
}

/* The usual host, told by one file: what follows costs some 100 us. */
static bool has_one_node(void)
{
	int fd = open("/sys/devices/system/node/online", O_RDONLY | O_CLOEXEC);
	char text[32];
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return false;
	text[n] = '\0';
	return !strpbrk(text, ",-");
}

int mb_machine_choose_nodes(struct mb_machine *machine, struct mb_error *err)
{
	const bool given = machine->config.placement == MB_PLACE_NODES;
	const struct mb_topology *topo;
	struct mb_machine_place *p;
	int rc;

	if (!given && has_one_node())
		return 0;
	topo = mb_machine_topology(machine);
	if (!topo && given)
		return mb_error_set(err, ENOTSUP,
			"--placement nodes: the host's nodes cannot be read"
			" from /sys/devices/system/node");
	if (!topo || (topo->n_nodes == 1 && !given))
		return 0;
	p = machine->place = new_place(topo);
	if (!p)
		return mb_error_set(err, ENOMEM, "placement: out of memory");
	/* With one node that it may use there is nothing to tell others. */
	if (__builtin_popcountll(nodes_of(&p->host, true) | nodes_of(&p->host, false)) > 1)
		open_registry(machine);
	rc = choose(machine, err);
	if (p->registry && !rc)
		publish_first(machine);
	if (p->registry)
		mb_registry_unlock(p->registry);
	return rc;
}

/* ---- its memory ---- */

void mb_machine_place_memory(struct mb_machine *machine)
{
	const struct mb_machine_place *p = machine->place;
	void *base;
	uint64_t bytes = machine->config.memory_bytes, usable, nodes;
	int rc = 0;

	if (!p || machine->config.placement == MB_PLACE_NONE)
		return;
	/* The file keeps the policy. Through a mapping of nothing but this file: what is merged in others
	 * is of a file that other machines have, too. */
	base = mb_ram_is_private(machine->ram)
		       ? mb_ram_own_base(machine->ram)
		       : mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, mb_ram_fd(machine->ram), 0);
	if (base == MAP_FAILED) {
		mb_log("%s: placement: its memory goes where the kernel puts it: mmap: %s",
			machine->config.name, strerror(errno));
		return;
	}
	usable = nodes_of(&p->host, false);
	nodes = p->placement.nodes & usable;
	if (machine->config.placement == MB_PLACE_SPREAD) {
		if (nodes & (nodes - 1))
			rc = mb_numa_interleave(base, bytes, mb_machine_topology(machine), nodes);
	} else {
		/* All: first touch, by threads that run on all. */
		rc = mb_numa_prefer(
			base, bytes, mb_machine_topology(machine), nodes == usable ? 0 : nodes);
	}
	if (rc)
		mb_log("%s: placement: its memory goes where the kernel puts it: mbind: %s",
			machine->config.name, strerror(-rc));
	if (!mb_ram_is_private(machine->ram))
		munmap(base, bytes);
}

void mb_machine_remove_place(struct mb_machine *machine)
{
	struct mb_machine_place *p = machine->place;

	if (!p)
		return;
	if (p->timed)
		mb_loop_remove(machine->loop, &p->timer);
	if (p->timer.fd >= 0)
		close(p->timer.fd);
	mb_registry_close(p->registry);
	if (p->sysfs_fd >= 0)
		close(p->sysfs_fd);
	if (p->proc_fd >= 0)
		close(p->proc_fd);
	free(p);
	machine->place = NULL;
}
