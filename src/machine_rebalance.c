// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "machine_internal.h"

/*
 * Every 10 s: what the machine has of each node is told to the others, and a group of vCPUs whose
 * node is overloaded moves to another one. On the main loop; a look costs a read of /proc/stat and
 * one for each vCPU.
 */
#define LOOK_S 10
#define PPM    1000000.0

static double share(double part, double whole)
{
	return whole > 0 ? part / whole : 0;
}

/* ---- what is so ---- */

static void read_host(struct mb_machine *machine)
{
	struct mb_machine_place *p = machine->place;
	struct mb_topology *topo = machine->topology;
	uint64_t allowed;

	mb_topology_read_memory(topo, p->sysfs_fd);
	allowed = mb_numa_mems_allowed(topo);
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		p->host.node[i].available_bytes = topo->node[i].mem_available_bytes;
		p->host.node[i].usable = topo->node[i].has_memory && allowed >> i & 1;
	}
}

struct look {
	uint64_t now_ns;
	bool has_load; /* there was a look before */
	double busy_share[MB_MAX_NODES];
	unsigned n_groups;
	struct mb_rebalance_group group[MB_MAX_GROUPS];
	uint64_t resident_bytes[MB_MAX_NODES];
};

/* How much its vCPUs ran and waited since the last look. */
static void look_at_groups(struct mb_machine *machine, double interval_ns, struct look *look)
{
	struct mb_machine_place *p = machine->place;
	const struct mb_machine_config *config = &machine->config;

	look->n_groups = machine->n_groups;
	for (unsigned v = 0; v < machine->n_groups; v++) {
		struct mb_rebalance_group *g = &look->group[v];
		uint64_t nodes = p->group_nodes[v];
		struct mb_vcpu_usage now;

		*g = (struct mb_rebalance_group){
			.movable = machine->bound && nodes && !(nodes & (nodes - 1)),
			.node = nodes ? (unsigned)__builtin_ctzll(nodes) : 0,
		};
		if (mb_vcpus_usage(machine->vcpus, v, &now)) {
			g->movable = false;
			continue;
		}
		g->n_vcpus = now.n_vcpus;
		g->memory_bytes =
			(uint64_t)((double)config->memory_bytes * now.n_vcpus / config->n_vcpus);
		g->busy_cpus = (double)(now.run_ns - p->usage[v].run_ns) / interval_ns;
		g->waiting_cpus = (double)(now.wait_ns - p->usage[v].wait_ns) / interval_ns;
		p->usage[v] = now;
	}
}

/*
 * Where its memory is: how much the file knows, where from the manager, or else it is taken to be
 * where it was expected.
 */
static void look_at_memory(struct mb_machine *machine, struct look *look)
{
	const struct mb_machine_place *p = machine->place;
	struct mb_manager_stats stats = {0};
	double weight[MB_MAX_NODES] = {0}, sum = 0;
	struct stat st;

	if (fstat(mb_ram_fd(machine->ram), &st))
		return;
	if (machine->manager)
		mb_manager_stats(machine->manager, &stats);
	for (unsigned i = 0; i < stats.n_nodes; i++)
		sum += weight[i] = (double)stats.node[i].guest_bytes;
	if (!(sum > 0))
		for (unsigned i = 0; i < p->host.n_nodes; i++)
			sum += weight[i] = (double)p->placement.bytes[i];
	for (unsigned i = 0; i < p->host.n_nodes; i++)
		look->resident_bytes[i] =
			(uint64_t)((double)st.st_blocks * 512 * share(weight[i], sum));
}

static void take_look(struct mb_machine *machine, struct look *look)
{
	struct mb_machine_place *p = machine->place;
	const struct mb_node_load before = p->load;
	double interval_ns;

	*look = (struct look){.now_ns = mb_now_ns()};
	interval_ns = (double)(look->now_ns - p->looked_ns);
	read_host(machine);
	look_at_groups(machine, interval_ns > 0 ? interval_ns : 1, look);
	look_at_memory(machine, look);
	if (mb_node_load_read(mb_machine_topology(machine), p->proc_fd, &p->load)) {
		p->has_load = false;
	} else {
		look->has_load = p->has_load;
		p->has_load = true;
		for (unsigned i = 0; i < p->host.n_nodes; i++)
			look->busy_share[i] = mb_node_load_share(&before, &p->load, i);
	}
	p->looked_ns = look->now_ns;
}

/* ---- what others know of it ---- */

static uint64_t promised(const struct mb_machine_place *p, const struct look *look, unsigned i)
{
	return p->placement.bytes[i] > look->resident_bytes[i]
		       ? p->placement.bytes[i] - look->resident_bytes[i]
		       : 0;
}

static void tell(struct mb_machine *machine, const struct look *look)
{
	const struct mb_machine_place *p = machine->place;
	struct mb_registry_record record = {.time_ns = look->now_ns};

	for (unsigned i = 0; i < p->host.n_nodes; i++) {
		double busy = 0;

		for (unsigned v = 0; v < look->n_groups; v++)
			if (p->group_nodes[v] >> i & 1)
				busy += look->group[v].busy_cpus /
					__builtin_popcountll(p->group_nodes[v]);
		/* Also what it does not use: others start from what it has measured. */
		record.node[record.n_nodes++] = (struct mb_registry_node){
			.id = p->host.node[i].id,
			.vcpus = p->placement.vcpus[i],
			.promised_bytes = promised(p, look, i),
			.resident_bytes = look->resident_bytes[i],
			.busy_ppm = (unsigned)(busy * PPM),
			.host_busy_ppm = (unsigned)(look->busy_share[i] * PPM),
			.measured = look->has_load && p->host.node[i].n_cpus,
		};
	}
	mb_machine_publish_place(machine, &record);
}

/* ---- what is done ---- */

static void note_rebalanced(
	struct mb_machine *machine, const struct look *look, const struct mb_rebalance_move *move)
{
	struct mb_machine_place *p = machine->place;
	const struct mb_rebalance_group *g = &look->group[move->group];
	struct mb_rebalanced *r = &p->rebalanced[p->n_rebalanced++ % MB_MAX_REBALANCES];
	const bool follows = machine->manager || machine->follows_later;

	*r = (struct mb_rebalanced){
		.time_ns = look->now_ns,
		.group = move->group,
		.from = p->host.node[move->from].id,
		.to = p->host.node[move->to].id,
		.busy_share = look->busy_share[move->from],
		.waiting_share = share(g->waiting_cpus, g->busy_cpus + g->waiting_cpus),
	};
	mb_log("%s: moved %u vCPUs (group %u) from node %u, whose CPUs are %.0f %% busy, to node "
	       "%u:"
	       " they waited %.0f %% of their time; their memory %s%s",
		machine->config.name, g->n_vcpus, r->group, r->from, r->busy_share * 100, r->to,
		r->waiting_share * 100,
		follows ? "follows" : "stays: migration is ",
		follows ? "" : mb_machine_migrate_state(machine));
}

/* What was expected of a node is now expected of another. */
static void move_shares(struct mb_placement *placement, const struct mb_rebalance_group *g,
	const struct mb_rebalance_move *move)
{
	unsigned vcpus = g->n_vcpus < placement->vcpus[move->from] ? g->n_vcpus
								   : placement->vcpus[move->from];
	uint64_t bytes = g->memory_bytes < placement->bytes[move->from]
				 ? g->memory_bytes
				 : placement->bytes[move->from];

	placement->vcpus[move->from] -= vcpus;
	placement->vcpus[move->to] += vcpus;
	placement->bytes[move->from] -= bytes;
	placement->bytes[move->to] += bytes;
}

static int bind_group(struct mb_machine *machine, unsigned group, const cpu_set_t *cpus)
{
	int rc = mb_vcpus_bind(machine->vcpus, group, cpus);

	return rc ? rc : mb_loop_bind_thread(machine->io_loop[group], cpus);
}

static int move_group(
	struct mb_machine *machine, const struct look *look, const struct mb_rebalance_move *move)
{
	struct mb_machine_place *p = machine->place;
	const unsigned group = move->group;
	const cpu_set_t cpus = mb_machine_topology(machine)->node[move->to].cpus;
	int rc = bind_group(machine, group, &cpus);

	if (rc) {
		bind_group(machine, group, &machine->group_cpus[group]);
		return rc;
	}
	machine->group_cpus[group] = cpus;
	p->group_nodes[group] = 1ull << move->to;
	p->placement.nodes = 0;
	for (unsigned v = 0; v < machine->n_groups; v++)
		p->placement.nodes |= p->group_nodes[v];
	move_shares(&p->placement, &look->group[group], move);
	mb_machine_place_memory(machine);
	mb_machine_let_follow(machine);
	mb_machine_weigh_group(machine, group);
	mb_machine_move_copies(machine, group);
	return 0;
}

/* Where vCPUs may be moved to. */
static uint64_t targets(const struct mb_machine *machine)
{
	const struct mb_machine_place *p = machine->place;
	uint64_t nodes = 0;

	for (unsigned i = 0; i < p->host.n_nodes; i++) {
		const struct mb_place_node *node = &p->host.node[i];
		bool wanted = machine->config.placement == MB_PLACE_AUTO ||
			      (machine->config.placement == MB_PLACE_NODES &&
				      mb_node_ids_has(&machine->config.placement_nodes, node->id));

		if (wanted && node->n_cpus && node->usable)
			nodes |= 1ull << i;
	}
	return nodes;
}

/* Caller holds the registry's lock. */
static void move_if_still_needed(struct mb_machine *machine, const struct look *look)
{
	struct mb_machine_place *p = machine->place;
	uint64_t last_ns, since_ns = UINT64_MAX;
	struct mb_rebalance_move move;
	int rc;

	if (mb_registry_last_move(p->registry, look->now_ns, &last_ns))
		since_ns = look->now_ns - last_ns;
	if (!mb_rebalance_decide(&p->rebalance, &p->rebalance_config, &p->config, &p->host,
		    look->group, look->n_groups, targets(machine), since_ns, &move))
		return;
	/* First: a move that nobody knows of might be followed by another at once. */
	rc = mb_registry_note_move(p->registry, look->now_ns);
	if (!rc)
		rc = move_group(machine, look, &move);
	if (!rc)
		note_rebalanced(machine, look, &move);
	else if (!p->said_error)
		mb_log("%s: cannot move to a node that is less busy: %s", machine->config.name,
			strerror(-rc));
	p->said_error = rc;
	memset(&p->rebalance, 0, sizeof(p->rebalance));
}

static void rebalance(struct mb_machine *machine, const struct look *look)
{
	struct mb_machine_place *p = machine->place;
	struct mb_rebalance_move move;

	mb_rebalance_note(
		&p->rebalance, &p->rebalance_config, &p->host, look->group, look->n_groups);
	/* What nobody would know of is not done: two machines might move to the same node. */
	if (!p->registry ||
		!mb_rebalance_decide(&p->rebalance, &p->rebalance_config, &p->config, &p->host,
			look->group, look->n_groups, targets(machine), UINT64_MAX, &move))
		return;
	if (mb_registry_lock(p->registry, 0))
		return; /* the next look is soon enough */
	move_if_still_needed(machine, look);
	mb_registry_unlock(p->registry);
}

static void on_timer(struct mb_watch *watch, uint32_t events)
{
	struct mb_machine *machine = watch->ctx;
	struct mb_machine_place *p = machine->place;
	struct look look;
	uint64_t n;
	ssize_t got = read(watch->fd, &n, sizeof(n));

	(void)got;
	take_look(machine, &look);
	if (look.has_load) {
		mb_machine_read_others(machine);
		for (unsigned i = 0; i < p->host.n_nodes; i++) {
			p->host.node[i].busy_cpus = look.busy_share[i] * p->host.node[i].n_cpus;
			p->host.node[i].promised_bytes += promised(p, &look, i);
		}
		rebalance(machine, &look);
	}
	tell(machine, &look);
}

int mb_machine_add_rebalance(struct mb_machine *machine, struct mb_error *err)
{
	struct itimerspec every = {.it_value.tv_sec = LOOK_S, .it_interval.tv_sec = LOOK_S};
	struct mb_machine_place *p = machine->place;
	int rc = 0;

	if (!p)
		return 0;
	for (unsigned v = 0; v < machine->n_groups; v++)
		p->group_nodes[v] = mb_machine_nodes_of_group(machine, v);
	/* Nothing to tell, and with one node nowhere to go. */
	if (!p->registry)
		return 0;
	p->timer = (struct mb_watch){
		.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC),
		.events = EPOLLIN,
		.ready = on_timer,
		.ctx = machine,
	};
	p->looked_ns = mb_now_ns();
	if (p->timer.fd < 0 || timerfd_settime(p->timer.fd, 0, &every, NULL))
		rc = -errno;
	if (!rc)
		rc = mb_loop_add(machine->loop, &p->timer);
	p->timed = !rc;
	return rc ? mb_error_set(err, -rc, "timer: %s", strerror(-rc)) : 0;
}

/* ---- what is told ---- */

static json_t *rebalances_json(struct mb_machine *machine, int *rc)
{
	const struct mb_machine_place *p = machine->place;
	uint64_t n = p->n_rebalanced < MB_MAX_REBALANCES ? p->n_rebalanced : MB_MAX_REBALANCES;
	json_t *array = json_array();

	for (uint64_t i = 0; i < n; i++) {
		const struct mb_rebalanced *r =
			&p->rebalanced[(p->n_rebalanced - n + i) % MB_MAX_REBALANCES];
		json_t *one = json_object();

		mb_json_put_number(one, "time_ms", mb_machine_time_ms(machine, r->time_ns), rc);
		mb_json_put_number(one, "view", r->group, rc);
		mb_json_put_number(one, "from", r->from, rc);
		mb_json_put_number(one, "to", r->to, rc);
		mb_json_put(one, "busy", json_real(r->busy_share), rc);
		mb_json_put(one, "waiting", json_real(r->waiting_share), rc);
		mb_json_append(array, one, rc);
	}
	return array;
}

json_t *mb_machine_placement_json(struct mb_machine *machine, int *rc)
{
	const struct mb_machine_place *p = machine->place;
	const struct mb_topology *topo = mb_machine_topology(machine);
	json_t *placement = json_object(), *nodes = json_array();
	enum mb_place_why why = p ? p->placement.why : MB_PLACE_WHY_ONE_NODE;

	for (unsigned i = 0; topo && i < topo->n_nodes; i++)
		if (!p || p->placement.nodes >> i & 1)
			mb_json_append(nodes, json_integer(topo->node[i].id), rc);
	if (!p && machine->config.placement == MB_PLACE_NONE)
		why = MB_PLACE_WHY_NONE;
	mb_json_put(
		placement, "kind", json_string(mb_place_kind_name(machine->config.placement)), rc);
	mb_json_put(placement, "nodes", nodes, rc);
	mb_json_put(placement, "reason", json_string(mb_place_why_text(why)), rc);
	mb_json_put(placement, "registered",
		json_boolean(p && p->registry && mb_registry_is_published(p->registry)), rc);
	mb_json_put_number(placement, "moves", p ? p->n_rebalanced : 0, rc);
	mb_json_put(placement, "rebalances", p ? rebalances_json(machine, rc) : json_array(), rc);
	return placement;
}
