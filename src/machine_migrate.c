// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/manager.h>
#include <string.h>

#include "machine_internal.h"

#define PAUSE_NS 500000.0 /* of each vCPU: to leave the guest, wait for the others, and enter it */

/* The manager's way to the machine; on its thread. */

static int extents(void *ctx, struct mb_extent **out, unsigned *n)
{
	struct mb_machine *machine = ctx;

	return mb_tracker_extents(machine->tracker, out, n);
}

static int move(void *ctx, const struct mb_move *what, struct mb_moved *moved)
{
	struct mb_machine *machine = ctx;
	uint64_t at = what->offset, len;
	int rc = 0;

	/* A view's address would be a copy's; and what moves is for one of them. */
	for (; !rc && (len = mb_move_run(what, &at)) != 0; at += len)
		rc = mb_replicas_collapse_copies(machine->replicas, at, len);
	return rc ? rc : mb_mover_move(machine->mover, what, moved);
}

/* Free memory changes all the time, and the cpuset may. */
static void look(void *ctx, struct mb_policy_host *host)
{
	struct mb_machine *machine = ctx;
	/* Nodes of the host have the topology's indices. */
	const uint64_t allowed = mb_numa_mems_allowed(mb_machine_topology(machine));

	for (unsigned i = 0; i < host->n_nodes; i++) {
		struct mb_policy_node *node = &host->node[i];
		const bool there = !mb_numa_available((unsigned)node->id, &node->free_bytes);

		node->usable = there && allowed >> i & 1;
	}
	mb_machine_reclaim(machine, host);
}

/* With the little that its devices and the tracker take. */
static uint64_t guest_ns(void *ctx)
{
	return mb_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

static bool pause_vcpus(void *ctx, uint64_t timeout_ns)
{
	struct mb_machine *machine = ctx;

	return mb_vcpus_pause_within(machine->vcpus, timeout_ns);
}

static void resume_vcpus(void *ctx)
{
	struct mb_machine *machine = ctx;

	mb_vcpus_resume(machine->vcpus);
}

static void keep_small(void *ctx, uint64_t offset, bool small)
{
	struct mb_machine *machine = ctx;

	mb_replicas_keep_small(machine->replicas, offset, small);
}

static bool is_merged(void *ctx, uint64_t offset, uint64_t len)
{
	const struct mb_machine *machine = ctx;

	return mb_replicas_is_merged(machine->replicas, offset, len);
}

static const struct mb_manager_ops ops = {.extents = extents,
	.look = look,
	.guest_ns = guest_ns,
	.move = move,
	.n_writes = mb_machine_copied_writes,
	.copied = mb_machine_copied,
	.protect = mb_machine_protect,
	.finish = mb_machine_finish_copies,
	.replicate = mb_machine_replicate};

/* A group's touches come from the CPUs that its vCPUs may run on. */
static void weigh_group(struct mb_machine *machine, unsigned g, struct mb_policy_view *view)
{
	const struct mb_topology *topo = mb_machine_topology(machine);

	memset(view, 0, sizeof(*view));
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		cpu_set_t cpus = topo->node[i].cpus;

		if (machine->bound)
			CPU_AND(&cpus, &topo->node[i].cpus, &machine->group_cpus[g]);
		view->weight[i] = (float)CPU_COUNT(&cpus);
	}
}

void mb_machine_weigh_group(struct mb_machine *machine, unsigned g)
{
	struct mb_policy_view view;

	if (!machine->manager)
		return;
	weigh_group(machine, g, &view);
	mb_manager_set_view(machine->manager, g, &view);
}

static uint64_t nodes_with_memory(struct mb_machine *machine)
{
	const struct mb_topology *topo = mb_machine_topology(machine);
	uint64_t nodes = 0;

	for (unsigned i = 0; topo && i < topo->n_nodes; i++)
		nodes |= (uint64_t)topo->node[i].has_memory << i;
	return nodes;
}

static bool is_several(uint64_t nodes)
{
	return nodes & (nodes - 1);
}

/* Whoever says where memory is to be, or how it is to be spread, is not to find it elsewhere. */
bool mb_machine_decides_on_migration(const struct mb_machine_config *config)
{
	return config->track == MB_TRACK_AUTO && config->migrate == MB_MIGRATE_AUTO &&
	       (config->placement == MB_PLACE_AUTO || config->placement == MB_PLACE_NODES) &&
	       config->n_views != 1;
}

static bool may_migrate_by_itself(struct mb_machine *machine)
{
	const struct mb_topology *topo = mb_machine_topology(machine);

	return mb_machine_decides_on_migration(&machine->config) && topo && is_several(nodes_with_memory(machine) & mb_numa_mems_allowed(topo));
}

bool mb_machine_migrates_by_itself(struct mb_machine *machine, unsigned n_nodes)
{
	return n_nodes > 1 && machine->host->n_views > 1 && may_migrate_by_itself(machine);
}

const char *mb_machine_why_no_migration(struct mb_machine *machine)
{
	const struct mb_machine_config *config = &machine->config;

	if (config->migrate == MB_MIGRATE_OFF)
		return "switched off";
	if (!is_several(nodes_with_memory(machine)))
		return "off on a host with one node";
	if (config->track == MB_TRACK_ON)
		return NULL;
	if (config->track == MB_TRACK_OFF)
		return "off with --track off";
	if (machine->by_itself)
		return "not possible on this host";
	if (config->placement == MB_PLACE_NONE || config->placement == MB_PLACE_SPREAD)
		return "off with --placement none or spread, without --track on";
	if (config->n_views == 1 || machine->host->n_views == 1)
		return "off with one view";
	return "off with all vCPUs on one node";
}

const char *mb_machine_migrate_state(struct mb_machine *machine)
{
	const char *why = mb_machine_why_no_migration(machine);

	if (!machine->manager)
		return why ? why : "not possible on this host";
	return machine->config.migrate == MB_MIGRATE_STORM ? "storm" : "on";
}

static int make_manager(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_manager_config config = {.name = machine->config.name,
		.ops = &ops,
		.ctx = machine,
		.n_views = machine->n_groups};
	struct mb_mover_config mover = {
		.ram_fd = mb_ram_fd(machine->ram),
		.ram_bytes = machine->config.memory_bytes,
		.n_views = machine->n_views,
		.own_base = mb_ram_own_base(machine->ram),
		.may_move_mapped = true,
		.pause = pause_vcpus,
		.resume = resume_vcpus,
		.small = mb_ram_small(machine->ram),
		.keep_small = keep_small,
		.elsewhere = is_merged,
		.ctx = machine,
	};
	int rc;

	for (unsigned v = 0; v < machine->n_views; v++)
		mover.view_base[v] = mb_ram_view_base(machine->ram, v);
	rc = mb_mover_create(&mover, &machine->mover);
	if (rc) {
		mb_log("%s: runs, but its memory stays where it is: move_pages: %s",
			machine->config.name, strerror(-rc));
		return 0;
	}
	mb_policy_defaults(&config.policy);
	config.policy.split_block_ns += PAUSE_NS * machine->config.n_vcpus;
	config.policy.replicas = mb_machine_makes_copies(machine);
	if (machine->config.migrate == MB_MIGRATE_STORM)
		config.storm_bytes = machine->config.memory_bytes;
	mb_policy_host_init(&config.host, mb_machine_topology(machine), UINT64_MAX);
	for (unsigned g = 0; g < machine->n_groups; g++)
		weigh_group(machine, g, &config.view[g]);
	rc = mb_manager_create(&config, &machine->manager);
	if (rc)
		return mb_error_set(err, -rc, "migration: %s", strerror(-rc));
	return mb_manager_start(machine->manager, err);
}

/* Nobody has asked for it: it is worth less than the machine. */
static int do_without(struct mb_machine *machine)
{
	mb_machine_remove_manager(machine);
	mb_tracker_stop(machine->tracker);
	machine->config.track = MB_TRACK_AUTO;
	return 0;
}

int mb_machine_add_manager(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_error why;
	int rc;

	if (mb_machine_why_no_migration(machine))
		return 0;
	if (!machine->by_itself)
		return make_manager(machine, err);
	rc = make_manager(machine, &why);
	if (rc)
		mb_log("%s: runs, but its memory stays where it is: %s", machine->config.name,
			why.text);
	return !rc && machine->manager ? 0 : do_without(machine);
}

void mb_machine_let_follow(struct mb_machine *machine)
{
	struct mb_error why;

	if (machine->by_itself || machine->manager || !may_migrate_by_itself(machine))
		return;
	/* A manager that was not held is not to be released. */
	machine->follows_later = machine->paused;
	if (machine->paused)
		return;
	machine->by_itself = true;
	if (mb_tracker_start(machine->tracker, &why)) {
		mb_log("%s: its memory stays where it is: %s", machine->config.name, why.text);
		return;
	}
	machine->config.track = MB_TRACK_ON;
	mb_machine_add_manager(machine, &why);
}

void mb_machine_remove_manager(struct mb_machine *machine)
{
	mb_mover_hold(machine->mover);
	mb_manager_destroy(machine->manager);
	machine->manager = NULL;
	mb_mover_destroy(machine->mover);
	machine->mover = NULL;
}

/* The manager begins nothing, and what it has begun ends with the batch that is being moved. */
void mb_machine_hold_memory(struct mb_machine *machine)
{
	mb_manager_hold(machine->manager);
	mb_mover_hold(machine->mover);
	mb_tracker_hold(machine->tracker);
}

void mb_machine_release_memory(struct mb_machine *machine)
{
	mb_tracker_release(machine->tracker);
	mb_mover_release(machine->mover);
	mb_manager_release(machine->manager);
}
