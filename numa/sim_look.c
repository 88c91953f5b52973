// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "heat_internal.h"
#include "sim_internal.h"

static float uniform(uint32_t *seed)
{
	return (float)(mb_heat_random(seed) >> 8) / (float)(1u << 24);
}

/* About normal: the sum of some that are not. */
static float normal(uint32_t *seed)
{
	float sum = 0;

	for (unsigned i = 0; i < 6; i++)
		sum += uniform(seed);
	return (sum - 3) * 1.414f;
}

/* Touches a second, of what the tracker takes as one page. */
static float touches(const struct mb_sim_use *use, const float *accesses, uint64_t nodes)
{
	float sum = 0;

	for (unsigned i = 0; i < MB_MAX_NODES; i++)
		if (nodes >> i & 1)
			sum += accesses[i];
	return sum / fmaxf(use->lines, 1) * (use->huge ? (float)MB_HEAT_BLOCK_PAGES : 1);
}

static float chance(float per_s, unsigned window)
{
	return 1 - expf(-per_s * (float)mb_heat_window_ns[window] / 1e9f);
}

/* By chance: what is always or never touched is seen so. */
static float blurred(float p, float noise, uint32_t *seed)
{
	return fminf(fmaxf(p + noise * 2 * sqrtf(p * (1 - p)) * normal(seed), 0), 1);
}

static void look_at(struct look *look, const struct mb_sim_config *config,
	const uint64_t *view_nodes, const struct mb_sim_use *use, uint32_t *seed)
{
	float share = look->samples > 0 ? MB_HEAT_NEW_SHARE : 1, most = 0;
	unsigned window = look->window;

	for (unsigned v = 0; v < config->n_views; v++) {
		float read = touches(use, use->read, view_nodes[v]),
		      write = touches(use, use->write, view_nodes[v]);
		float touched = blurred(chance(read + write, window), config->noise, seed),
		      written = fminf(touched, blurred(chance(write, window), config->noise, seed));

		look->touch[v] += share * (touched - look->touch[v]);
		look->write[v] += share * (written - look->write[v]);
		most = fmaxf(most, look->touch[v]);
	}
	look->samples = look->samples * MB_HEAT_SAMPLES_DECAY + 1;
	if (most > MB_HEAT_HOT && window > 0)
		look->window--;
	else if (most < MB_HEAT_COLD && window + 1 < MB_HEAT_WINDOWS)
		look->window++;
	else
		return;
	/* The same rates through the other window. */
	for (unsigned v = 0; v < config->n_views; v++) {
		look->touch[v] = chance(mb_heat_rate(look->touch[v], window), look->window);
		look->write[v] = chance(mb_heat_rate(look->write[v], window), look->window);
	}
}

int mb_sim_look(struct looks *looks, const struct mb_sim_config *config,
	const uint64_t view_nodes[MB_HEAT_VIEWS], const struct mb_sim_uses *uses, uint64_t now_ns,
	uint32_t *seed)
{
	/* Each turn has looks of its own. */
	uint64_t n = config->looks_per_s * config->step_ns / 1000000000ull /
		     (config->n_turns ? config->n_turns : 1);

	if (looks->n != uses->n) {
		free(looks->look);
		*looks = (struct looks){.look = calloc(uses->n + 1u, sizeof(struct look))};
		if (!looks->look)
			return -ENOMEM;
		looks->n = uses->n;
		for (unsigned i = 0; i < looks->n; i++)
			looks->look[i].window = MB_HEAT_WINDOWS / 2;
	}
	n = n ? n : 1;
	for (uint64_t k = 0; k < n && looks->n; k++) {
		/* What is left over is looked at once more. */
		struct look *look = &looks->look[looks->next];

		look_at(look, config, view_nodes, &uses->use[looks->next], seed);
		look->seen_ns = now_ns;
		looks->next = (looks->next + 1) % looks->n;
		if (k + 1 >= 4ull * looks->n)
			break;
	}
	return 0;
}

void mb_sim_look_tell(const struct looks *looks, unsigned i, unsigned n_views,
	const struct mb_sim_use *use, uint64_t now_ns, struct mb_extent *e)
{
	const struct look *look = &looks->look[i];
	uint64_t age_ns = now_ns - look->seen_ns;

	if (use->is_seen) {
		e->confidence = use->seen.confidence;
		e->age_ms = use->seen.age_ms;
		for (unsigned v = 0; v < n_views; v++)
			e->view[v] = use->seen.view[v];
		return;
	}
	e->confidence = look->samples > 0 ? mb_heat_confidence(look->samples, age_ns) : 0;
	e->age_ms = look->samples > 0 ? (uint32_t)(age_ns / 1000000) : UINT32_MAX;
	for (unsigned v = 0; v < n_views; v++)
		e->view[v] = mb_heat_of(look->touch[v], look->write[v], look->window);
}
