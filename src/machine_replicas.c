// SPDX-License-Identifier: Apache-2.0
#include <mirrorball/cgroup.h>
#include <mirrorball/clock.h>
#include <mirrorball/json.h>
#include <string.h>

#include "machine_internal.h"

/* One in so many bytes of a node is free, or it is short: as low_free_share in policy.h. */
#define SHORT_SHARE 25u
#define GIVE_BACK   (256ull << 20) /* a turn of the manager's; a millisecond for each 2 MiB */
#define AT_A_TIME   (64ull << 20)  /* and a new look whether a node is still short */
#define SHORT_NS    250000000ull   /* a turn, while it is */
#define IN_CGROUP   (64ull << 20)  /* less is left in it, and there are never as many copies again */
#define AUTO_SHARE  4u		   /* of guest memory, for copies, unless told otherwise */
#define OTHER_SHARE 16u /* of it, for what the process needs beside it, as page tables */
/* In a storm nothing backs off: what was written is copied again as soon as it blows there. */
#define STORM_BACKOFF_NS 1u

/* NULL: nothing is against it. */
static const char *why_not(const struct mb_machine *machine)
{
	if (!machine->config.replica_bytes)
		return machine->why_no_copies ? machine->why_no_copies : "off";
	if (machine->n_views < 2)
		return "off with one view";
	return machine->n_groups > machine->n_views ? "off with fewer views than nodes" : NULL;
}

/* A share of guest memory, of which all that nobody has touched yet must have room beside it. */
static uint64_t automatic_bytes(struct mb_machine *machine)
{
	const uint64_t memory = machine->config.memory_bytes, taken = memory + memory / OTHER_SHARE;
	const uint64_t in_cgroup = mb_cgroup_memory_left(NULL);
	const uint64_t on_host = mb_machine_room(machine);
	const uint64_t room = in_cgroup < on_host ? in_cgroup : on_host;
	const uint64_t left = room > taken ? room - taken : 0, most = memory / AUTO_SHARE;

	return left < most ? left : most;
}

void mb_machine_choose_replicas(struct mb_machine *machine)
{
	struct mb_machine_config *config = &machine->config;

	if (config->replica_bytes != MB_REPLICAS_AUTO)
		return;
	config->replica_bytes = 0;
	if (mb_machine_why_no_migration(machine) || config->migrate == MB_MIGRATE_STORM)
		return;
	/* Where a view has several nodes a copy is on one of them, or on the other. */
	if (machine->n_views < mb_machine_nodes_with_cpus(machine)) {
		machine->why_no_copies = "off with fewer views than nodes";
		return;
	}
	config->replica_bytes = automatic_bytes(machine) & ~(MB_HEAT_BLOCK_BYTES - 1);
	if (!config->replica_bytes)
		machine->why_no_copies = "off: no memory is left for them";
}

const char *mb_machine_replicas_state(struct mb_machine *machine)
{
	const char *why = why_not(machine);

	if (why || !machine->replicas)
		return why ? why : "not possible on this host";
	return machine->manager ? "on" : "off without migration";
}

static void watch(void *ctx, unsigned view, uint64_t offset, uint64_t len)
{
	struct mb_machine *machine = ctx;

	/* At the end there is none. */
	if (machine->tracker)
		mb_tracker_watch(machine->tracker, view, offset, len);
}

/* Those with memory that it may have among those where its vCPUs run; bits of the index. */
static uint64_t nodes_of_view(struct mb_machine *machine, unsigned view)
{
	const struct mb_topology *topo = mb_machine_topology(machine);
	uint64_t nodes = topo ? mb_machine_nodes_of_group(machine, view) &
					mb_numa_mems_allowed(topo)
			      : 0;

	for (unsigned i = 0; topo && i < topo->n_nodes; i++)
		if (!topo->node[i].has_memory)
			nodes &= ~(1ull << i);
	return nodes;
}

static int id_of_first(struct mb_machine *machine, uint64_t nodes)
{
	return nodes ? (int)mb_machine_topology(machine)->node[__builtin_ctzll(nodes)].id : -1;
}

static const char *what_is_missed(const struct mb_machine *machine)
{
	return !mb_machine_shares(machine) ? "gets a copy"
	       : why_not(machine)	   ? "is shared with other machines"
					   : "gets a copy or is shared with other machines";
}

bool mb_machine_makes_copies(const struct mb_machine *machine)
{
	return machine->replicas && !why_not(machine);
}

void mb_machine_share_nodes(struct mb_machine *machine, unsigned node[MB_MAX_GROUPS])
{
	/* It was read before the thread that asks here was started, or cannot be. */
	for (unsigned v = 0; v < machine->n_views; v++) {
		int id = machine->topology ? id_of_first(machine, nodes_of_view(machine, v)) : -1;

		node[v] = id < 0 ? 0 : (unsigned)id;
	}
}

int mb_machine_add_replicas(struct mb_machine *machine, struct mb_error *err)
{
	const bool copies = !why_not(machine);
	struct mb_replicas_config config = {
		.name = machine->config.name,
		.ram_fd = mb_ram_fd(machine->ram),
		.ram_bytes = machine->config.memory_bytes,
		.own_base = mb_ram_own_base(machine->ram),
		.n_views = machine->n_views,
		.max_bytes = copies ? machine->config.replica_bytes : 0,
		.backoff_ns = machine->config.migrate == MB_MIGRATE_STORM ? STORM_BACKOFF_NS : 0,
		.watch = watch,
		.ctx = machine,
	};
	struct mb_error why;
	uint64_t nodes;

	if (!copies && !mb_machine_shares(machine))
		return 0;
	/* A vCPU's write faults within KVM. */
	config.uffd = mb_replicas_open_uffd(false);
	if (config.uffd < 0) {
		mb_log("%s: runs, but no page of its memory %s: userfaultfd: %s (mirrorball doctor "
		       "says more)",
			machine->config.name, what_is_missed(machine), strerror(-config.uffd));
		return 0;
	}
	for (unsigned v = 0; v < machine->n_views; v++) {
		config.view_base[v] = mb_ram_view_base(machine->ram, v);
		nodes = nodes_of_view(machine, v);
		config.view_node[v] = id_of_first(machine, nodes);
		config.view_has_more_nodes[v] = nodes & (nodes - 1);
		machine->copies_on[v] = nodes;
	}
	/* It is worth less than the machine. */
	if (mb_replicas_create(&config, &machine->replicas, &why)) {
		mb_log("%s: runs, but no page of its memory %s: %s", machine->config.name,
			what_is_missed(machine), why.text);
		return 0;
	}
	mb_ram_set_replicas(machine->ram, machine->replicas);
	return 0;
}

void mb_machine_give_up_replicas(struct mb_machine *machine)
{
	mb_replicas_collapse_copies(machine->replicas, 0, machine->config.memory_bytes);
}

void mb_machine_move_copies(struct mb_machine *machine, unsigned view)
{
	uint64_t nodes;
	int node, rc;

	if (!machine->replicas)
		return;
	nodes = nodes_of_view(machine, view);
	node = id_of_first(machine, nodes);
	if (node < 0)
		return;
	rc = mb_replicas_set_node(machine->replicas, view, (unsigned)node);
	if (!rc)
		__atomic_store_n(&machine->copies_on[view], nodes, __ATOMIC_RELAXED);
	if (!rc || machine->said_copies_stay)
		return;
	mb_log("%s: copies of its memory cannot be made on node %d, where view %u runs now: %s",
		machine->config.name, node, view, strerror(-rc));
	machine->said_copies_stay = true;
}

void mb_machine_remove_replicas(struct mb_machine *machine)
{
	if (!machine->replicas)
		return;
	mb_ram_set_replicas(machine->ram, NULL);
	/* Nobody reads it any more. Where many machines end at once, there would be no memory for what they
	 * had in common. */
	mb_replicas_discard(machine->replicas, true);
	mb_replicas_destroy(machine->replicas);
	machine->replicas = NULL;
}

int mb_machine_protect(void *ctx, uint64_t offset, uint64_t len, struct mb_replicated *done)
{
	struct mb_machine *machine = ctx;

	return mb_replicas_protect(machine->replicas, offset, len, done);
}

int mb_machine_finish_copies(
	void *ctx, uint64_t offset, uint64_t len, unsigned views, struct mb_replicated *done)
{
	struct mb_machine *machine = ctx;

	return mb_replicas_finish(machine->replicas, offset, len, views, done);
}

int mb_machine_replicate(
	void *ctx, uint64_t offset, uint64_t len, unsigned views, struct mb_replicated *done)
{
	struct mb_machine *machine = ctx;

	return mb_replicas_replicate(machine->replicas, offset, len, views, done);
}

float mb_machine_copied(void *ctx, uint64_t offset, uint64_t len, unsigned view)
{
	const struct mb_machine *machine = ctx;

	return mb_replicas_share(machine->replicas, offset, len, view);
}

uint64_t mb_machine_copied_writes(void *ctx)
{
	const struct mb_machine *machine = ctx;
	struct mb_replicas_stats stats = {0};

	if (machine->replicas)
		mb_replicas_stats(machine->replicas, &stats);
	return stats.n_faults;
}

static bool is_short(const struct mb_policy_node *node)
{
	uint64_t free_bytes;

	return !mb_numa_available((unsigned)node->id, &free_bytes) &&
	       free_bytes < node->total_bytes / SHORT_SHARE;
}

/* Those whose copies may be on the node: those with no node, too, and all while some are where a view was. */
static unsigned views_on(struct mb_machine *machine, unsigned node, bool all)
{
	unsigned views = 0;

	for (unsigned v = 0; v < machine->n_views; v++) {
		uint64_t nodes = __atomic_load_n(&machine->copies_on[v], __ATOMIC_RELAXED);

		if (all || !nodes || nodes >> node & 1)
			views |= 1u << v;
	}
	return views;
}

void mb_machine_reclaim(struct mb_machine *machine, const struct mb_policy_host *host)
{
	const uint64_t until_ns = mb_now_ns() + SHORT_NS;
	bool old;

	if (machine->replicas && mb_cgroup_memory_left(NULL) < IN_CGROUP) {
		mb_replicas_reclaim(machine->replicas, GIVE_BACK, ~0u);
		mb_replicas_no_more(machine->replicas);
	}
	old = mb_replicas_reclaim_old(machine->replicas, GIVE_BACK / MB_HEAT_BLOCK_BYTES);
	/* As long as it is: whoever needs memory now may take it faster than a turn comes. */
	for (unsigned i = 0; machine->replicas && i < host->n_nodes; i++) {
		const struct mb_policy_node *node = &host->node[i];
		const unsigned views = views_on(machine, i, old);
		bool is = node->usable && node->free_bytes < node->total_bytes / SHORT_SHARE;

		while (is && mb_replicas_reclaim(machine->replicas, AT_A_TIME, views) &&
			mb_now_ns() < until_ns)
			is = is_short(node);
	}
}

json_t *mb_machine_replicas_json(struct mb_machine *machine, int *rc)
{
	json_t *r = json_object(), *below, *views;
	struct mb_replicas_stats s;

	mb_json_put(r, "state", json_string(mb_machine_replicas_state(machine)), rc);
	if (!mb_machine_makes_copies(machine))
		return r;
	mb_replicas_stats(machine->replicas, &s);
	mb_json_put_number(r, "bytes", s.bytes, rc);
	views = json_array();
	for (unsigned v = 0; v < machine->n_views; v++)
		mb_json_append(views, json_integer((json_int_t)s.view_bytes[v]), rc);
	mb_json_put(r, "view_bytes", views, rc);
	mb_json_put_number(r, "max_bytes", s.max_bytes, rc);
	mb_json_put_number(r, "copied_bytes", s.copied_bytes, rc);
	mb_json_put_number(r, "mappings", s.mappings, rc);
	mb_json_put_number(r, "max_mappings", s.max_mappings, rc);
	mb_json_put_number(r, "faults", s.n_faults, rc);
	mb_json_put_number(r, "collapsed_pages", s.n_collapsed, rc);
	mb_json_put_number(r, "failures", s.n_failures, rc);
	mb_json_put_number(r, "fault_ns", s.n_faults ? s.fault_ns / s.n_faults : 0, rc);
	mb_json_put_number(r, "longest_ns", s.longest_ns, rc);
	below = json_array();
	for (unsigned i = 0; i < MB_REPLICA_BUCKETS; i++)
		mb_json_append(below, json_integer((json_int_t)s.faults_below_us[i]), rc);
	mb_json_put(r, "faults_below_us", below, rc);
	return r;
}
