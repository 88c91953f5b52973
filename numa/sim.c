// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim_internal.h"

#define MAX_STEPS 10000000u

#define MOST_BUSY 0.95 /* queues are bounded by how many accesses CPUs have under way */

void mb_sim_defaults(struct mb_sim_config *config)
{
	*config = (struct mb_sim_config){
		.n_views = 2,
		.length_ns = 60000000000ull,
		.step_ns = 1000000000ull,
		.noise = 0.1f,
		.looks_per_s = 50,
		.seed = 1,
	};
	mb_policy_defaults(&config->policy);
}

void mb_sim_host_complete(struct mb_sim_host *host)
{
	struct mb_policy_config policy;

	mb_policy_defaults(&policy);
	for (unsigned i = 0; i < host->n_nodes; i++)
		for (unsigned k = 0; k < host->n_nodes; k++) {
			/* ACPI's measure: ten times as long as to its own. */
			double d = host->ns[i][i] > 0 ? 10 * host->ns[i][k] / host->ns[i][i] : 0;

			if (!host->distance[i][k])
				host->distance[i][k] =
					i == k ? 10 : (uint16_t)fmin(fmax(round(d), 11), 254);
		}
	if (!(host->move_page_ns > 0))
		host->move_page_ns = policy.move_page_ns;
	if (!(host->move_block_ns > 0))
		host->move_block_ns = policy.move_block_ns;
}

struct mb_sim_use *mb_sim_uses_add(struct mb_sim_uses *uses)
{
	if (uses->n == uses->room) {
		unsigned room = uses->room ? 2 * uses->room : 32;
		struct mb_sim_use *more = reallocarray(uses->use, room, sizeof(*more));

		if (!more)
			return NULL;
		uses->use = more;
		uses->room = room;
	}
	memset(&uses->use[uses->n], 0, sizeof(*uses->use));
	return &uses->use[uses->n++];
}

struct machine {
	const struct mb_sim_load *load;
	struct mb_policy *policy;
	struct mb_policy_view view[MB_HEAT_VIEWS];
	struct oracle oracle;
	struct place place, initial;
	struct looks looks;
	struct mb_sim_uses uses;
};

/* Accesses of a step from the row's CPUs to the column's memory. */
struct traffic {
	double to[MB_MAX_NODES][MB_MAX_NODES];
};

struct sim {
	const struct mb_sim_config *config;
	const struct mb_sim_host *host;
	struct mb_sim_result *result;
	struct machine *machine;
	unsigned n_machines;
	uint64_t view_nodes[MB_HEAT_VIEWS];
	uint64_t used[MB_MAX_NODES];
	double memory_nodes;
	struct traffic traffic[MB_SIM_CASES];
	double busy[MB_MAX_NODES]; /* with the policy, in this step */
	struct mb_policy_host policy_host;
	struct mb_policy_config policy;
	struct mb_extent *extent;
	unsigned n_extents, room_extents;
	double n_plans;
	uint32_t seed;
};

/* ---- at the beginning ---- */

/* Up to end on the node, and what has no room there on the nearest ones. */
static int put(struct sim *s, struct machine *m, uint64_t end, unsigned node)
{
	uint64_t at = m->place.n ? m->place.stretch[m->place.n - 1].end : 0, full = 0;
	int rc = 0;

	while (at < end && !rc) {
		uint64_t room, len = end - at;
		unsigned best = MB_MAX_NODES;

		for (unsigned i = 0; i < s->host->n_nodes; i++)
			if (!(full >> i & 1) &&
				(best == MB_MAX_NODES ||
					s->host->distance[node][i] < s->host->distance[node][best]))
				best = i;
		if (best == MB_MAX_NODES)
			return -ENOSPC;
		room = (s->host->memory_bytes[best] - s->used[best]) / MB_HEAT_BLOCK_BYTES *
		       MB_HEAT_BLOCK_BYTES;
		if (len > room) {
			full |= 1ull << best;
			len = room;
		}
		rc = mb_sim_place_add(&m->place, at + len, best);
		s->used[best] += len;
		at += len;
	}
	return rc;
}

static void all_accesses(const struct sim *s, const struct mb_sim_use *use, double *accesses)
{
	for (unsigned i = 0; i < s->host->n_nodes; i++)
		accesses[i] = (double)(use->read[i] + use->write[i]);
}

/* In as many parts as there are nodes; with few nodes that says as much as pages in turn. */
static int put_interleaved(struct sim *s, struct machine *m, uint64_t from, uint64_t end)
{
	uint64_t granule = MB_HEAT_BLOCK_BYTES, n = (uint64_t)s->memory_nodes, k = 0;
	int rc = 0;

	if (end - from < n * granule)
		granule = MB_HEAT_PAGE_BYTES;
	for (unsigned i = 0; i < s->host->n_nodes && !rc; i++) {
		if (!s->host->memory_bytes[i])
			continue;
		k++;
		rc = put(s, m, k == n ? end : from + (end - from) / granule * k / n * granule, i);
	}
	return rc;
}

static int put_use(struct sim *s, struct machine *m, const struct mb_sim_use *use)
{
	uint64_t end = use->offset + use->len_bytes;
	double accesses[MB_MAX_NODES] = {0};

	all_accesses(s, use, accesses);
	switch (s->config->start) {
	case MB_SIM_INTERLEAVE:
		return put_interleaved(s, m, use->offset, end);
	case MB_SIM_WORST:
		return put(s, m, end, mb_sim_worst(s->host, accesses));
	case MB_SIM_BEST:
		return put(s, m, end, mb_sim_best(s->host, accesses));
	case MB_SIM_SEEN:
		if (use->is_seen && use->seen.node >= 0)
			return put(s, m, end, (unsigned)use->seen.node);
		break;
	default:
		break;
	}
	return put(s, m, end, m->load->first_node);
}

static int start(struct sim *s, struct machine *m)
{
	int rc = m->load->uses(m->load, 0, &m->uses);

	for (unsigned i = 0; i < m->uses.n && !rc; i++) {
		rc = put(s, m, m->uses.use[i].offset, m->load->first_node);
		rc = rc ? rc : put_use(s, m, &m->uses.use[i]);
	}
	rc = rc ? rc : put(s, m, m->load->memory_bytes, m->load->first_node);
	for (unsigned i = 0; i < m->place.n && !rc; i++)
		rc = mb_sim_place_add(
			&m->initial, m->place.stretch[i].end, m->place.stretch[i].node);
	return rc;
}

static int group_views(struct sim *s)
{
	struct mb_topology *topo = calloc(1, sizeof(*topo));
	cpu_set_t cpus[MB_HEAT_VIEWS];

	if (!topo)
		return -ENOMEM;
	/* A CPU for each node stands for all of them. */
	topo->n_nodes = s->host->n_nodes;
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		if (s->host->cpus[i])
			CPU_SET(i, &topo->node[i].cpus);
		memcpy(topo->node[i].distance, s->host->distance[i],
			sizeof(topo->node[i].distance));
	}
	mb_topology_group(topo, s->config->n_views, cpus);
	for (unsigned v = 0; v < s->config->n_views; v++)
		for (unsigned i = 0; i < topo->n_nodes; i++)
			if (CPU_ISSET(i, &cpus[v]))
				s->view_nodes[v] |= 1ull << i;
	if (s->config->view_nodes[0])
		memcpy(s->view_nodes, s->config->view_nodes, sizeof(s->view_nodes));
	free(topo);
	return 0;
}

static void make_policy_host(struct sim *s)
{
	const struct mb_sim_host *host = s->host;
	double ns = 0, n = 0;

	s->policy_host.n_nodes = host->n_nodes;
	for (unsigned i = 0; i < host->n_nodes; i++) {
		s->policy_host.node[i] = (struct mb_policy_node){
			.id = (int)i,
			.usable = host->memory_bytes[i] > 0,
			.has_cpus = host->cpus[i] > 0,
			.total_bytes = host->memory_bytes[i],
		};
		memcpy(s->policy_host.node[i].distance, host->distance[i],
			sizeof(host->distance[i]));
		if (host->cpus[i] && host->ns[i][i] > 0) {
			ns += host->ns[i][i];
			n++;
		}
	}
	s->policy = s->config->policy;
	s->policy.local_ns = n > 0 ? ns / n : s->policy.local_ns;
	s->policy.move_page_ns = host->move_page_ns;
	s->policy.move_block_ns = host->move_block_ns;
	s->policy.replicas = false;
}

/* ---- one step ---- */

static void add_traffic(
	struct sim *s, enum mb_sim_case which, const double *accesses, double bytes, unsigned node)
{
	for (unsigned i = 0; i < s->host->n_nodes; i++)
		s->traffic[which].to[i][node] += accesses[i] * bytes / (double)MB_HEAT_PAGE_BYTES;
}

static void add_placed(struct sim *s, enum mb_sim_case which, const struct place *place,
	const struct mb_sim_use *use, const double *accesses)
{
	uint64_t at = use->offset, end = use->offset + use->len_bytes;

	for (unsigned i = mb_sim_place_find(place, at); at < end && i < place->n; i++) {
		uint64_t to = place->stretch[i].end < end ? place->stretch[i].end : end;

		add_traffic(s, which, accesses, (double)(to - at), place->stretch[i].node);
		at = to;
	}
}

/* Returns where the next use may begin. */
static unsigned add_oracle(struct sim *s, const struct oracle *oracle, unsigned r,
	const struct mb_sim_use *use, const double *accesses)
{
	uint64_t at = use->offset, end = use->offset + use->len_bytes;

	while (r < oracle->n && oracle->end[r] <= at)
		r++;
	for (unsigned i = r; at < end && i < oracle->n; i++) {
		double bytes = (double)(oracle->end[i] - at);

		add_traffic(s, MB_SIM_STATIC_ORACLE, accesses, bytes, oracle->best[i]);
		add_traffic(s, MB_SIM_WORST_STATIC, accesses, bytes, oracle->worst[i]);
		at = oracle->end[i];
	}
	return r;
}

static void run_machine(struct sim *s, struct machine *m)
{
	unsigned range = 0;

	for (unsigned k = 0; k < m->uses.n; k++) {
		const struct mb_sim_use *use = &m->uses.use[k];
		double accesses[MB_MAX_NODES] = {0};

		all_accesses(s, use, accesses);
		add_placed(s, MB_SIM_POLICY, &m->place, use, accesses);
		add_placed(s, MB_SIM_NONE, &m->initial, use, accesses);
		range = add_oracle(s, &m->oracle, range, use, accesses);
		add_traffic(s, MB_SIM_DYNAMIC_ORACLE, accesses, (double)use->len_bytes,
			mb_sim_best(s->host, accesses));
		for (unsigned i = 0; i < s->host->n_nodes; i++)
			if (s->host->memory_bytes[i])
				add_traffic(s, MB_SIM_INTERLEAVED, accesses,
					(double)use->len_bytes / s->memory_nodes, i);
	}
}

/* Adds up what the step's accesses take. */
static void finish_case(struct sim *s, enum mb_sim_case which, unsigned step)
{
	const struct mb_sim_host *host = s->host;
	struct mb_sim_result *result = s->result;
	double step_s = (double)s->config->step_ns / 1e9, all = 0, local = 0;

	for (unsigned to = 0; to < host->n_nodes; to++) {
		double sum = 0, ns = 0, busy = 0;

		for (unsigned from = 0; from < host->n_nodes; from++) {
			double n = s->traffic[which].to[from][to];

			sum += n;
			ns += n * host->ns[from][to];
			local += from == to ? n : 0;
		}
		if (host->bytes_per_s[to] > 0)
			busy = fmin(sum * MB_SIM_LINE_BYTES / host->bytes_per_s[to], MOST_BUSY);
		result->s[which] += ns * (1 + busy / (2 * (1 - busy))) * step_s / 1e9;
		result->busy[which] = fmax(result->busy[which], busy);
		all += sum;
		if (which == MB_SIM_POLICY)
			s->busy[to] = busy;
	}
	result->series[which][step] = all > 0 ? (float)(local / all) : NAN;
	result->local[which] += local * step_s;
	if (which == MB_SIM_POLICY)
		result->accesses += all * step_s;
}

static int add_extent(struct sim *s, const struct mb_extent *e)
{
	if (s->n_extents == s->room_extents) {
		unsigned room = s->room_extents ? 2 * s->room_extents : 256;
		struct mb_extent *more = reallocarray(s->extent, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		s->extent = more;
		s->room_extents = room;
	}
	s->extent[s->n_extents++] = *e;
	return 0;
}

/* What the tracker would tell, with the node where each part lives. */
static int find_extents(struct sim *s, const struct machine *m, uint64_t now_ns)
{
	int rc = 0;

	s->n_extents = 0;
	for (unsigned k = 0; k < m->uses.n && !rc; k++) {
		const struct mb_sim_use *use = &m->uses.use[k];
		struct mb_extent e = {.offset = use->offset, .huge = use->huge, .node_share = 1};
		uint64_t end = use->offset + use->len_bytes;

		mb_sim_look_tell(&m->looks, k, s->config->n_views, use, now_ns, &e);
		for (unsigned i = mb_sim_place_find(&m->place, e.offset);
			e.offset < end && i < m->place.n && !rc; i++) {
			const struct stretch *stretch = &m->place.stretch[i];

			e.len_bytes = (stretch->end < end ? stretch->end : end) - e.offset;
			e.node = (int)stretch->node;
			rc = add_extent(s, &e);
			e.offset += e.len_bytes;
		}
	}
	return rc;
}

/* Its vCPUs are always busy. */
static uint64_t guest_ns(const struct mb_sim_load *load, uint64_t now_ns)
{
	double vcpus = 0;

	for (unsigned i = 0; i < MB_MAX_NODES; i++)
		vcpus += (double)load->vcpus[i];
	return (uint64_t)(vcpus * (double)now_ns);
}

static int decide(struct sim *s, struct machine *m, uint64_t now_ns, unsigned step)
{
	struct mb_policy_input in = {.now_ns = now_ns,
		.guest_ns = guest_ns(m->load, now_ns),
		.config = &s->policy,
		.host = &s->policy_host,
		.n_views = s->config->n_views,
		.view = m->view};
	struct mb_sim_result *result = s->result;
	struct mb_plan plan = {0};
	uint64_t moved = 0;
	double cost_ns = 0;
	int rc;

	rc = mb_sim_look(&m->looks, s->config, s->view_nodes, &m->uses, now_ns, &s->seed);
	rc = rc ? rc : find_extents(s, m, now_ns);
	if (rc)
		return rc;
	for (unsigned i = 0; i < s->host->n_nodes; i++) {
		s->policy_host.node[i].free_bytes = s->host->memory_bytes[i] - s->used[i];
		s->policy_host.node[i].busy = s->busy[i];
	}
	in.extent = s->extent;
	in.n_extents = s->n_extents;
	rc = mb_policy_plan(m->policy, &in, &plan);
	if (!rc && plan.n_actions)
		rc = mb_sim_place_move(&m->place, s->host, &plan, s->used, &moved, &cost_ns);
	result->n_moves += plan.n_actions;
	result->moved_bytes += moved;
	result->step_moved_bytes[step] += moved;
	result->moving_s += cost_ns / 1e9;
	result->n_extents = s->n_extents > result->n_extents ? s->n_extents : result->n_extents;
	for (unsigned i = 0; i < plan.n_verdicts; i++)
		result->why_bytes[plan.verdict[i].why] += (double)plan.verdict[i].len_bytes;
	s->n_plans++;
	mb_plan_finish(&plan);
	return rc;
}

static int run_step(struct sim *s, unsigned step)
{
	uint64_t at = step * s->config->step_ns, after = at + s->config->step_ns;
	int rc = 0;

	memset(s->traffic, 0, sizeof(s->traffic));
	for (unsigned k = 0; k < s->n_machines && !rc; k++) {
		struct machine *m = &s->machine[k];

		m->uses.n = 0;
		rc = m->load->uses(m->load, at, &m->uses);
		if (!rc)
			run_machine(s, m);
	}
	if (rc)
		return rc;
	for (unsigned c = 0; c < MB_SIM_CASES; c++)
		finish_case(s, (enum mb_sim_case)c, step);
	for (unsigned k = 0; k < s->n_machines && !rc; k++)
		rc = decide(s, &s->machine[k], after, step);
	return rc;
}

/* ---- all of it ---- */

static int make_machine(
	struct sim *s, struct machine *m, const struct mb_sim_load *load, const volatile int *stop)
{
	int rc;

	m->load = load;
	for (unsigned v = 0; v < s->config->n_views; v++)
		for (unsigned i = 0; i < s->host->n_nodes; i++)
			if (s->view_nodes[v] >> i & 1)
				m->view[v].weight[i] = load->vcpus[i];
	rc = mb_policy_create(&m->policy);
	rc = rc ? rc : mb_sim_oracle_make(&m->oracle, s->config, s->host, load, stop);
	return rc ? rc : start(s, m);
}

static int check(const struct mb_sim_config *config, const struct mb_sim_host *host,
	const struct mb_sim_load *load, unsigned n_loads, struct mb_error *err)
{
	uint64_t need = 0, have = 0;

	if (!host->n_nodes || host->n_nodes > MB_MAX_NODES || !config->n_views ||
		config->n_views > MB_HEAT_VIEWS || !config->step_ns)
		return mb_error_set(err, EINVAL, "a simulation without nodes, views or steps");
	if (config->length_ns / config->step_ns > MAX_STEPS)
		return mb_error_set(err, EINVAL, "%llu s in steps of %.4g s: more than %u steps",
			(unsigned long long)(config->length_ns / 1000000000),
			(double)config->step_ns / 1e9, MAX_STEPS);
	for (unsigned i = 0; i < host->n_nodes; i++)
		have += host->memory_bytes[i] / MB_HEAT_BLOCK_BYTES * MB_HEAT_BLOCK_BYTES;
	for (unsigned i = 0; i < n_loads; i++)
		need += load[i].memory_bytes;
	if (need > have)
		return mb_error_set(err, EINVAL,
			"the machines need %.4g GiB of memory, and the host has %.4g GiB",
			(double)need / (1 << 30), (double)have / (1 << 30));
	return 0;
}

static int make_result(struct mb_sim_result *result, const struct mb_sim_config *config)
{
	result->step_ns = config->step_ns;
	result->n_steps = (unsigned)(config->length_ns / config->step_ns);
	result->step_moved_bytes = calloc(result->n_steps + 1u, sizeof(uint64_t));
	for (unsigned c = 0; c < MB_SIM_CASES; c++) {
		result->series[c] = calloc(result->n_steps + 1u, sizeof(float));
		if (!result->series[c])
			return -ENOMEM;
	}
	return result->step_moved_bytes ? 0 : -ENOMEM;
}

static void finish_result(struct sim *s)
{
	struct mb_sim_result *result = s->result;

	for (unsigned c = 0; c < MB_SIM_CASES; c++)
		result->local[c] = result->accesses > 0 ? result->local[c] / result->accesses : 0;
	for (unsigned w = 0; w < MB_WHY_COUNT; w++)
		result->why_bytes[w] /= s->n_plans > 0 ? s->n_plans / s->n_machines : 1;
	memcpy(result->used_bytes, s->used, sizeof(s->used));
}

static void finish(struct sim *s)
{
	for (unsigned k = 0; s->machine && k < s->n_machines; k++) {
		struct machine *m = &s->machine[k];

		mb_policy_destroy(m->policy);
		mb_sim_oracle_finish(&m->oracle);
		free(m->place.stretch);
		free(m->initial.stretch);
		free(m->looks.look);
		free(m->uses.use);
	}
	free(s->machine);
	free(s->extent);
	free(s);
}

int mb_sim_run(const struct mb_sim_config *config, const struct mb_sim_host *host,
	const struct mb_sim_load *load, unsigned n_loads, const volatile int *stop,
	struct mb_sim_result *result, struct mb_error *err)
{
	struct sim *s;
	int rc;

	*result = (struct mb_sim_result){0};
	rc = check(config, host, load, n_loads, err);
	if (rc)
		return rc;
	s = calloc(1, sizeof(*s));
	if (!s)
		return mb_error_set(err, ENOMEM, "out of memory");
	s->config = config;
	s->host = host;
	s->result = result;
	s->seed = config->seed;
	s->machine = calloc(n_loads + 1u, sizeof(*s->machine));
	s->n_machines = n_loads;
	for (unsigned i = 0; i < host->n_nodes; i++)
		s->memory_nodes += host->memory_bytes[i] > 0;
	make_policy_host(s);
	rc = s->machine ? group_views(s) : -ENOMEM;
	rc = rc ? rc : make_result(result, config);
	for (unsigned k = 0; k < n_loads && !rc; k++)
		rc = make_machine(s, &s->machine[k], &load[k], stop);
	for (unsigned step = 0; step < result->n_steps && !rc; step++)
		rc = stop && *stop ? -EINTR : run_step(s, step);
	if (!rc)
		finish_result(s);
	else
		mb_sim_result_finish(result);
	finish(s);
	if (rc == -ENOSPC)
		return mb_error_set(err, ENOSPC,
			"the machines nearly fill the host, and it has no room for them in pieces "
			"of 2 MiB;"
			" a host with more memory?");
	return rc ? mb_error_set(err, -rc, "%s", strerror(-rc)) : 0;
}

void mb_sim_result_finish(struct mb_sim_result *result)
{
	for (unsigned c = 0; c < MB_SIM_CASES; c++)
		free(result->series[c]);
	free(result->step_moved_bytes);
	*result = (struct mb_sim_result){0};
}
