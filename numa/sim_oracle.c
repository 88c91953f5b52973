// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sim_internal.h"

static double time_at(const struct mb_sim_host *host, const double *accesses, unsigned node)
{
	double sum = 0;

	for (unsigned i = 0; i < host->n_nodes; i++)
		sum += accesses[i] * host->ns[i][node];
	return sum;
}

static unsigned extreme(const struct mb_sim_host *host, const double *accesses, bool least)
{
	unsigned best = MB_MAX_NODES;
	double best_ns = 0;

	for (unsigned i = 0; i < host->n_nodes; i++) {
		double ns = time_at(host, accesses, i);

		if (!host->memory_bytes[i])
			continue;
		if (best == MB_MAX_NODES || (least ? ns < best_ns : ns > best_ns)) {
			best = i;
			best_ns = ns;
		}
	}
	return best == MB_MAX_NODES ? 0 : best;
}

unsigned mb_sim_best(const struct mb_sim_host *host, const double *accesses)
{
	return extreme(host, accesses, true);
}

unsigned mb_sim_worst(const struct mb_sim_host *host, const double *accesses)
{
	return extreme(host, accesses, false);
}

/* ---- borders ---- */

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

struct borders {
	uint64_t *at;
	size_t n, room;
};

static void sort_out(struct borders *borders)
{
	size_t n = 0;

	qsort(borders->at, borders->n, sizeof(*borders->at), compare);
	for (size_t i = 0; i < borders->n; i++)
		if (!n || borders->at[n - 1] != borders->at[i])
			borders->at[n++] = borders->at[i];
	borders->n = n;
}

static int add_borders(struct borders *borders, const struct mb_sim_uses *uses)
{
	size_t most = borders->n + 2ull * uses->n + 1;

	if (most > borders->room) {
		uint64_t *more = reallocarray(borders->at, 2 * most, sizeof(*more));

		if (!more)
			return -ENOMEM;
		borders->at = more;
		borders->room = 2 * most;
	}
	for (unsigned i = 0; i < uses->n; i++) {
		borders->at[borders->n++] = uses->use[i].offset;
		borders->at[borders->n++] = uses->use[i].offset + uses->use[i].len_bytes;
	}
	sort_out(borders);
	return 0;
}

static void add_uses(struct oracle *oracle, const struct mb_sim_host *host,
	const struct mb_sim_uses *uses, double seconds)
{
	unsigned r = 0;

	for (unsigned i = 0; i < uses->n; i++) {
		const struct mb_sim_use *use = &uses->use[i];
		uint64_t at = use->offset, end = use->offset + use->len_bytes;

		while (r < oracle->n && oracle->end[r] <= at)
			r++;
		for (; at < end && r < oracle->n; r++) {
			double pages = (double)(oracle->end[r] - at) / (double)MB_HEAT_PAGE_BYTES;

			for (unsigned k = 0; k < host->n_nodes; k++)
				oracle->accesses[(size_t)r * host->n_nodes + k] +=
					pages * seconds * (double)(use->read[k] + use->write[k]);
			at = oracle->end[r];
		}
	}
}

int mb_sim_oracle_make(struct oracle *oracle, const struct mb_sim_config *config,
	const struct mb_sim_host *host, const struct mb_sim_load *load, const volatile int *stop)
{
	struct borders borders = {0};
	struct mb_sim_uses uses = {0};
	int rc = 0;

	*oracle = (struct oracle){0};
	for (uint64_t at = 0; at < config->length_ns && !rc; at += config->step_ns) {
		uses.n = 0;
		rc = stop && *stop ? -EINTR : load->uses(load, at, &uses);
		rc = rc ? rc : add_borders(&borders, &uses);
	}
	oracle->n = borders.n ? (unsigned)borders.n : 1;
	oracle->end = calloc(oracle->n, sizeof(*oracle->end));
	oracle->accesses = calloc((size_t)oracle->n * host->n_nodes, sizeof(double));
	oracle->best = calloc(oracle->n, 1);
	oracle->worst = calloc(oracle->n, 1);
	if (!oracle->end || !oracle->accesses || !oracle->best || !oracle->worst)
		rc = -ENOMEM;
	if (!rc && borders.n)
		memcpy(oracle->end, borders.at, borders.n * sizeof(*borders.at));
	for (uint64_t at = 0; at < config->length_ns && !rc; at += config->step_ns) {
		uses.n = 0;
		rc = stop && *stop ? -EINTR : load->uses(load, at, &uses);
		if (!rc)
			add_uses(oracle, host, &uses, (double)config->step_ns / 1e9);
	}
	for (unsigned r = 0; r < oracle->n && !rc; r++) {
		const double *accesses = &oracle->accesses[(size_t)r * host->n_nodes];

		oracle->best[r] = (uint8_t)mb_sim_best(host, accesses);
		oracle->worst[r] = (uint8_t)mb_sim_worst(host, accesses);
	}
	free(borders.at);
	free(uses.use);
	if (rc)
		mb_sim_oracle_finish(oracle);
	return rc;
}

void mb_sim_oracle_finish(struct oracle *oracle)
{
	free(oracle->end);
	free(oracle->accesses);
	free(oracle->best);
	free(oracle->worst);
	*oracle = (struct oracle){0};
}
