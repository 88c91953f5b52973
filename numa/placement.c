// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/placement.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_STEPS 16u /* differences of room that count, of all memory of a set */

void mb_place_defaults(struct mb_place_config *config)
{
	*config = (struct mb_place_config){
		.low_free_share = 0.04,
		.low_free_bytes = 64ull << 20,
		.idle_vcpu_load = 0.5,
		.load_step = 0.05,
	};
}

const char *mb_place_kind_name(enum mb_place_kind kind)
{
	static const char *const name[] = {
		[MB_PLACE_AUTO] = "auto",
		[MB_PLACE_NODES] = "nodes",
		[MB_PLACE_SPREAD] = "spread",
		[MB_PLACE_NONE] = "none",
	};

	return name[kind];
}

const char *mb_place_why_text(enum mb_place_why why)
{
	static const char *const text[] = {
		[MB_PLACE_WHY_ONE_NODE] = "the only node with CPUs",
		[MB_PLACE_WHY_FEWEST] = "the fewest nodes that hold it",
		[MB_PLACE_WHY_VCPUS] = "all nodes, for its vCPUs",
		[MB_PLACE_WHY_MEMORY] = "nodes without CPUs, too, for its memory",
		[MB_PLACE_WHY_PROMISED] =
			"the fewest nodes that hold it, of memory that others were promised",
		[MB_PLACE_WHY_NO_ROOM] = "all nodes: they have no room for its memory",
		[MB_PLACE_WHY_GIVEN] = "asked for",
		[MB_PLACE_WHY_SPREAD] = "spread over all nodes, as asked for",
		[MB_PLACE_WHY_NONE] = "not placed, as asked for",
	};

	return text[why];
}

int mb_node_ids_parse(const char *text, struct mb_node_ids *ids)
{
	const char *at = text;

	memset(ids, 0, sizeof(*ids));
	for (;;) {
		char *end;
		unsigned long first, last;

		if (*at < '0' || *at > '9')
			return -EINVAL;
		first = last = strtoul(at, &end, 10);
		if (*end == '-') {
			at = end + 1;
			if (*at < '0' || *at > '9')
				return -EINVAL;
			last = strtoul(at, &end, 10);
		}
		if (first > MB_MAX_NODE_ID || last > MB_MAX_NODE_ID)
			return -ERANGE;
		if (first > last)
			return -EINVAL;
		for (unsigned long id = first; id <= last; id++)
			ids->bits[id / 64] |= 1ull << id % 64;
		if (!*end)
			return 0;
		if (*end != ',')
			return -EINVAL;
		at = end + 1;
	}
}

void mb_node_ids_format(const struct mb_node_ids *ids, char *text, size_t size)
{
	size_t len = 0;

	text[0] = '\0';
	for (unsigned id = 0; id <= MB_MAX_NODE_ID && len < size; id++) {
		unsigned first = id;

		if (!mb_node_ids_has(ids, id))
			continue;
		while (mb_node_ids_has(ids, id + 1))
			id++;
		len += (size_t)snprintf(text + len, size - len, id > first ? "%s%u-%u" : "%s%u",
			len ? "," : "", first, id);
	}
}

void mb_place_host_init(
	struct mb_place_host *host, const struct mb_topology *topo, uint64_t mems_allowed)
{
	memset(host, 0, sizeof(*host));
	host->n_nodes = topo->n_nodes;
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		const struct mb_node *from = &topo->node[i];
		struct mb_place_node *node = &host->node[i];

		node->id = from->id;
		node->n_cpus = (unsigned)CPU_COUNT(&from->cpus);
		node->usable = from->has_memory && mems_allowed >> i & 1;
		node->total_bytes = from->mem_total_bytes;
		node->available_bytes = from->mem_available_bytes;
		memcpy(node->distance, from->distance, sizeof(node->distance));
	}
}

uint64_t mb_place_room(const struct mb_place_config *config, const struct mb_place_node *node)
{
	uint64_t taken = (uint64_t)(config->low_free_share * (double)node->total_bytes);

	if (taken < config->low_free_bytes)
		taken = config->low_free_bytes;
	taken += node->promised_bytes;
	return node->usable && node->available_bytes > taken ? node->available_bytes - taken : 0;
}

/* ---- sets of nodes ---- */

struct set {
	uint64_t nodes;
	unsigned n, cpus;
	uint64_t room, total;
	double load;			 /* in CPUs */
	uint64_t distance;		 /* of each pair */
	uint32_t from_all[MB_MAX_NODES]; /* distance of a node from all of them */
};

struct search {
	const struct mb_place_config *config;
	const struct mb_place_host *host;
	const struct mb_place_request *request;
	unsigned need_cpus, need_nodes;
	uint64_t with_cpus; /* nodes */
	uint64_t room[MB_MAX_NODES];
};

static bool has(uint64_t nodes, unsigned i)
{
	return nodes >> i & 1;
}

static double load_of(const struct search *s, const struct mb_place_node *node)
{
	double idle = node->vcpus - node->busy_cpus;

	return node->busy_cpus + (idle > 0 ? idle * s->config->idle_vcpu_load : 0);
}

static void add(const struct search *s, struct set *set, unsigned i)
{
	const struct mb_place_node *node = &s->host->node[i];

	set->distance += set->from_all[i];
	for (unsigned k = 0; k < s->host->n_nodes; k++)
		set->from_all[k] += s->host->node[k].distance[i];
	set->nodes |= 1ull << i;
	set->n++;
	set->cpus += node->n_cpus;
	set->room += s->room[i];
	set->total += node->usable ? node->total_bytes : 0;
	set->load += load_of(s, node);
}

static bool holds(const struct search *s, const struct set *set)
{
	return set->n >= s->need_nodes && set->cpus >= s->need_cpus &&
	       set->room >= s->request->memory_bytes;
}

static uint64_t load_steps(const struct search *s, const struct set *set)
{
	double load = (set->load + s->request->n_vcpus) / (set->cpus ? set->cpus : 1);

	return (uint64_t)(load / s->config->load_step);
}

static unsigned room_steps(const struct set *set)
{
	return set->total ? (unsigned)((double)set->room / (double)set->total * ROOM_STEPS) : 0;
}

/* Of two sets of the same size; b may be empty: any is better than none. */
static bool is_better(const struct search *s, const struct set *a, const struct set *b)
{
	uint64_t differ = a->nodes ^ b->nodes, x, y;

	if (!b->nodes)
		return true;
	x = load_steps(s, a);
	y = load_steps(s, b);
	if (x != y)
		return x < y;
	if (a->distance != b->distance)
		return a->distance < b->distance;
	if (room_steps(a) != room_steps(b))
		return room_steps(a) > room_steps(b);
	return a->nodes & (differ & -differ);
}

static void consider(const struct search *s, const struct set *set, struct set *best)
{
	if (holds(s, set) && is_better(s, set, best))
		*best = *set;
}

/* What a node adds of what is missing: 0 to 2. */
static double help(const struct search *s, const struct set *set, unsigned i)
{
	const uint64_t memory = s->request->memory_bytes;
	double cpus = s->need_cpus > set->cpus ? s->need_cpus - set->cpus : 0;
	double room = memory > set->room ? (double)(memory - set->room) : 0, sum = 0;

	if (cpus > 0)
		sum += s->host->node[i].n_cpus < cpus ? s->host->node[i].n_cpus / cpus : 1;
	if (room > 0)
		sum += (double)s->room[i] < room ? (double)s->room[i] / room : 1;
	return sum;
}

/* The next node of a growing set; MB_MAX_NODES: there is none. */
static unsigned next_node(
	const struct search *s, const struct set *set, uint64_t from, bool by_distance)
{
	unsigned best = MB_MAX_NODES;
	uint64_t best_distance = 0;
	double best_help = 0;

	for (unsigned i = 0; i < s->host->n_nodes; i++) {
		uint64_t distance = set->from_all[i];
		double helps;
		bool nearer, larger;

		if (!has(from & ~set->nodes, i))
			continue;
		helps = help(s, set, i);
		nearer = best == MB_MAX_NODES || distance < best_distance;
		larger = best == MB_MAX_NODES || helps > best_help;
		if (by_distance ? nearer || (distance == best_distance && larger)
				: larger || (!(helps < best_help) && nearer)) {
			best = i;
			best_distance = distance;
			best_help = helps;
		}
	}
	return best;
}

/* Into best: the smallest set of n >= 3 nodes that begins with a node and holds it. */
static void grow(const struct search *s, unsigned first, bool by_distance, struct set *best)
{
	struct set set = {0};

	for (unsigned i = first; i != MB_MAX_NODES;
		i = next_node(s, &set, s->with_cpus, by_distance)) {
		add(s, &set, i);
		if (set.n >= 3 && holds(s, &set)) {
			if (set.n < best->n)
				*best = set;
			else
				consider(s, &set, best);
			return;
		}
		/* It could only become larger than what there is. */
		if (best->nodes && set.n == best->n)
			return;
	}
}

static bool find_fewest(const struct search *s, struct set *found)
{
	struct set best_one = {0}, best_two = {0}, best_more = {0};
	const unsigned n = s->host->n_nodes;

	for (unsigned i = 0; i < n; i++) {
		struct set one = {0};

		if (!has(s->with_cpus, i))
			continue;
		add(s, &one, i);
		consider(s, &one, &best_one);
		for (unsigned k = i + 1; k < n && !best_one.nodes; k++) {
			struct set two = one;

			if (!has(s->with_cpus, k))
				continue;
			add(s, &two, k);
			consider(s, &two, &best_two);
		}
	}
	for (unsigned i = 0; i < n && !best_one.nodes && !best_two.nodes; i++) {
		if (!has(s->with_cpus, i))
			continue;
		grow(s, i, true, &best_more);
		grow(s, i, false, &best_more);
	}
	*found = best_one.nodes ? best_one : best_two.nodes ? best_two : best_more;
	return found->nodes;
}

/* All nodes with CPUs, and as many of the others as it takes, the nearest first. */
static bool find_with_cpuless(const struct search *s, struct set *found)
{
	struct set set = {0};
	uint64_t others = 0;

	for (unsigned i = 0; i < s->host->n_nodes; i++) {
		if (has(s->with_cpus, i))
			add(s, &set, i);
		else if (s->room[i])
			others |= 1ull << i;
	}
	while (!holds(s, &set)) {
		unsigned i = next_node(s, &set, others, true);

		if (i == MB_MAX_NODES)
			return false;
		add(s, &set, i);
	}
	*found = set;
	return true;
}

/* ---- the answer ---- */

static uint64_t may_be_used(const struct mb_place_host *host)
{
	uint64_t nodes = 0;

	for (unsigned i = 0; i < host->n_nodes; i++)
		if (host->node[i].n_cpus || host->node[i].usable)
			nodes |= 1ull << i;
	return nodes;
}

static int take_given(const struct search *s, struct mb_placement *out, unsigned *bad_id)
{
	uint64_t usable = may_be_used(s->host);

	for (unsigned id = 0; id <= MB_MAX_NODE_ID; id++) {
		unsigned i = 0;

		if (!mb_node_ids_has(&s->request->ids, id))
			continue;
		while (i < s->host->n_nodes && s->host->node[i].id != id)
			i++;
		if (i == s->host->n_nodes || !has(usable, i)) {
			if (bad_id)
				*bad_id = id;
			return -EINVAL;
		}
		out->nodes |= 1ull << i;
	}
	return out->nodes & s->with_cpus ? 0 : -ENOSPC;
}

/* Many a guest never touches all that it may: better near memory that is free now than far. */
static void forget_promises(struct search *s)
{
	for (unsigned i = 0; i < s->host->n_nodes; i++) {
		struct mb_place_node node = s->host->node[i];

		node.promised_bytes = 0;
		s->room[i] = mb_place_room(s->config, &node);
	}
}

static void choose(struct search *s, struct mb_placement *out)
{
	struct set set = {0};

	if (__builtin_popcountll(may_be_used(s->host)) == 1) {
		out->nodes = s->with_cpus;
		out->why = MB_PLACE_WHY_ONE_NODE;
	} else if (find_fewest(s, &set)) {
		out->nodes = set.nodes;
		out->why = set.nodes == s->with_cpus && s->request->n_vcpus >= set.cpus
				   ? MB_PLACE_WHY_VCPUS
				   : MB_PLACE_WHY_FEWEST;
	} else if (find_with_cpuless(s, &set)) {
		out->nodes = set.nodes;
		out->why = MB_PLACE_WHY_MEMORY;
	} else if (forget_promises(s), find_fewest(s, &set)) {
		out->nodes = set.nodes;
		out->why = MB_PLACE_WHY_PROMISED;
	} else {
		out->nodes = may_be_used(s->host);
		out->why = MB_PLACE_WHY_NO_ROOM;
	}
}

/* Shares of vCPUs as there are CPUs, of memory as there is room; the remainders are the first's. */
static void guess_shares(const struct search *s, struct mb_placement *out)
{
	const struct mb_place_request *request = s->request;
	const bool by_turns = request->kind == MB_PLACE_SPREAD;
	unsigned left = request->n_vcpus, cpus = 0;
	uint64_t bytes_left = request->memory_bytes;
	double weight[MB_MAX_NODES] = {0}, sum = 0;

	for (unsigned i = 0; i < s->host->n_nodes; i++) {
		const struct mb_place_node *node = &s->host->node[i];

		if (!has(out->nodes, i))
			continue;
		cpus += node->n_cpus;
		if (node->usable)
			weight[i] = by_turns ? 1 : 1 + (double)s->room[i];
		sum += weight[i];
	}
	for (unsigned i = 0; i < s->host->n_nodes; i++) {
		if (!has(out->nodes, i))
			continue;
		if (cpus)
			out->vcpus[i] = (unsigned)((uint64_t)request->n_vcpus *
						   s->host->node[i].n_cpus / cpus);
		if (sum > 0)
			out->bytes[i] =
				(uint64_t)((double)request->memory_bytes * (weight[i] / sum));
		if (out->bytes[i] > bytes_left)
			out->bytes[i] = bytes_left;
		left -= out->vcpus[i];
		bytes_left -= out->bytes[i];
	}
	for (unsigned i = 0; i < s->host->n_nodes; i++) {
		if (has(out->nodes, i) && s->host->node[i].n_cpus && left) {
			out->vcpus[i]++;
			left--;
		}
		if (weight[i] > 0) {
			out->bytes[i] += bytes_left;
			bytes_left = 0;
		}
	}
}

int mb_place(const struct mb_place_config *config, const struct mb_place_host *host,
	const struct mb_place_request *request, struct mb_placement *out, unsigned *bad_id)
{
	struct search s = {.config = config, .host = host, .request = request};
	unsigned cpus = 0, n_with_cpus;
	int rc = 0;

	memset(out, 0, sizeof(*out));
	for (unsigned i = 0; i < host->n_nodes; i++) {
		s.room[i] = mb_place_room(config, &host->node[i]);
		cpus += host->node[i].n_cpus;
		if (host->node[i].n_cpus)
			s.with_cpus |= 1ull << i;
	}
	if (!s.with_cpus)
		return -ENODEV;
	n_with_cpus = (unsigned)__builtin_popcountll(s.with_cpus);
	s.need_cpus = request->n_vcpus < cpus ? request->n_vcpus : cpus;
	s.need_nodes = request->min_nodes < n_with_cpus ? request->min_nodes : n_with_cpus;
	switch (request->kind) {
	case MB_PLACE_AUTO:
		choose(&s, out);
		break;
	case MB_PLACE_NODES:
		out->why = MB_PLACE_WHY_GIVEN;
		rc = take_given(&s, out, bad_id);
		break;
	case MB_PLACE_SPREAD:
		out->why = MB_PLACE_WHY_SPREAD;
		out->nodes = may_be_used(host);
		break;
	case MB_PLACE_NONE:
		out->why = MB_PLACE_WHY_NONE;
		out->nodes = may_be_used(host);
		break;
	}
	if (!rc)
		guess_shares(&s, out);
	return rc;
}
