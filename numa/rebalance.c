// SPDX-License-Identifier: Apache-2.0
#include <mirrorball/rebalance.h>

void mb_rebalance_defaults(struct mb_rebalance_config *config)
{
	*config = (struct mb_rebalance_config){
		.overloaded_share = 0.9,
		.waiting_share = 0.1,
		.n_checks = 3,
		.target_share = 0.9,
		.quiet_share = 0.1,
		.cooldown_ns = 60ull * 1000000000,
	};
}

/* A vCPU wants no more than a CPU: what is measured beyond that is the clocks' inaccuracy. */
static double demand(const struct mb_rebalance_group *g)
{
	double cpus = g->busy_cpus + g->waiting_cpus;

	return cpus < g->n_vcpus ? cpus : g->n_vcpus;
}

static bool suffers(const struct mb_rebalance_config *config, const struct mb_place_host *host,
	const struct mb_rebalance_group *g)
{
	const struct mb_place_node *node;

	if (!g->movable || g->node >= host->n_nodes)
		return false;
	node = &host->node[g->node];
	return node->n_cpus && node->busy_cpus >= config->overloaded_share * node->n_cpus &&
	       g->waiting_cpus > 0 && g->waiting_cpus >= config->waiting_share * demand(g);
}

void mb_rebalance_note(struct mb_rebalance *state, const struct mb_rebalance_config *config,
	const struct mb_place_host *host, const struct mb_rebalance_group *group, unsigned n_groups)
{
	for (unsigned i = 0; i < n_groups && i < MB_HEAT_VIEWS; i++) {
		if (!suffers(config, host, &group[i]))
			state->n_overloaded[i] = 0;
		else if (state->n_overloaded[i] < config->n_checks)
			state->n_overloaded[i]++;
	}
}

static bool holds(const struct mb_rebalance_config *config, const struct mb_place_config *place,
	const struct mb_place_node *from, const struct mb_place_node *to,
	const struct mb_rebalance_group *g)
{
	double quiet = config->quiet_share * to->n_cpus;
	double share = to->busy_cpus <= quiet ? 1 : config->target_share;
	double others = to->busy_cpus <= quiet ? 0 : to->busy_cpus;

	/* vCPUs that idle now may run tomorrow: no fewer CPUs than they have. */
	if (!to->n_cpus || (to->n_cpus < g->n_vcpus && to->n_cpus < from->n_cpus))
		return false;
	return others + demand(g) <= share * to->n_cpus &&
	       mb_place_room(place, to) >= g->memory_bytes;
}

/* The index of the best target; MB_MAX_NODES: there is none. */
static unsigned find_target(const struct mb_rebalance_config *config,
	const struct mb_place_config *place, const struct mb_place_host *host,
	const struct mb_rebalance_group *g, uint64_t targets)
{
	const struct mb_place_node *from = &host->node[g->node];
	unsigned best = MB_MAX_NODES;
	double best_share = 0;

	for (unsigned i = 0; i < host->n_nodes; i++) {
		const struct mb_place_node *to = &host->node[i];
		double share;

		if (i == g->node || !(targets >> i & 1) || !holds(config, place, from, to, g))
			continue;
		share = (to->busy_cpus + demand(g)) / to->n_cpus;
		/* A load that differs by less than a step is the same. */
		if (best == MB_MAX_NODES || share < best_share - place->load_step ||
			(share < best_share + place->load_step &&
				from->distance[i] < from->distance[best])) {
			best = i;
			best_share = share;
		}
	}
	return best;
}

bool mb_rebalance_decide(const struct mb_rebalance *state, const struct mb_rebalance_config *config,
	const struct mb_place_config *place, const struct mb_place_host *host,
	const struct mb_rebalance_group *group, unsigned n_groups, uint64_t targets,
	uint64_t since_move_ns, struct mb_rebalance_move *move)
{
	double most = 0;

	if (since_move_ns < config->cooldown_ns)
		return false;
	for (unsigned i = 0; i < n_groups && i < MB_HEAT_VIEWS; i++) {
		const struct mb_rebalance_group *g = &group[i];
		unsigned to;

		if (state->n_overloaded[i] < config->n_checks || !suffers(config, host, g) ||
			g->waiting_cpus <= most)
			continue;
		to = find_target(config, place, host, g, targets);
		if (to == MB_MAX_NODES)
			continue;
		most = g->waiting_cpus;
		*move = (struct mb_rebalance_move){.group = i, .from = g->node, .to = to};
	}
	return most > 0;
}
