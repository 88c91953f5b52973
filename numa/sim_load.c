// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <string.h>

#include "heat_internal.h"
#include "sim_internal.h"

/*
 * Loads after splash's programs. Each vCPU has a part of memory, and a rate of its own, so that
 * parts are as different as those of a real guest.
 */
static unsigned node_of(const struct mb_sim_guest *g, unsigned vcpu)
{
	unsigned span = g->span < g->n_cpu_nodes ? g->span : g->n_cpu_nodes;
	unsigned i = g->first_node + (unsigned)((uint64_t)vcpu * span / g->n_vcpus);

	return g->cpu_node[i % g->n_cpu_nodes];
}

static double rate_of(const struct mb_sim_guest *g, unsigned vcpu)
{
	return g->accesses_per_s * (0.75 + (double)(mb_heat_mix(vcpu + 1) & 1023) / 2046);
}

/* Parts are whole huge pages. */
static uint64_t part_begin(const struct mb_sim_guest *g, uint64_t from, unsigned part)
{
	uint64_t blocks = (g->memory_bytes - from) / MB_HEAT_BLOCK_BYTES;

	return part == g->n_vcpus ? g->memory_bytes
				  : from + blocks * part / g->n_vcpus * MB_HEAT_BLOCK_BYTES;
}

static struct mb_sim_use *add(struct mb_sim_uses *uses, uint64_t begin, uint64_t end, float lines)
{
	struct mb_sim_use *use = mb_sim_uses_add(uses);

	if (use) {
		use->offset = begin;
		use->len_bytes = end - begin;
		use->huge = true;
		use->lines = lines;
	}
	return use;
}

/* Accesses a second to each page, of all that go to the range. */
static float per_page(const struct mb_sim_use *use, double accesses)
{
	return (float)(accesses * (double)MB_HEAT_PAGE_BYTES / (double)use->len_bytes);
}

static void by_all(
	const struct mb_sim_guest *g, const struct mb_sim_use *use, float *accesses, double share)
{
	for (unsigned i = 0; i < MB_MAX_NODES; i++)
		accesses[i] += per_page(use, share * g->node_rate[i]);
}

/* Of memory from `from` on, each vCPU reads and writes the part that is its turn's. */
static int streams(const struct mb_sim_guest *g, uint64_t from, unsigned turn, double share,
	float lines, struct mb_sim_uses *uses)
{
	for (unsigned i = 0; i < g->n_vcpus; i++) {
		struct mb_sim_use *use =
			add(uses, part_begin(g, from, i), part_begin(g, from, i + 1), lines);
		unsigned vcpu = (i + turn) % g->n_vcpus, node = node_of(g, vcpu);

		if (!use)
			return -ENOMEM;
		use->read[node] = per_page(use, share * rate_of(g, vcpu) * 2 / 3);
		use->write[node] = per_page(use, share * rate_of(g, vcpu) / 3);
	}
	return 0;
}

static int private(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *uses)
{
	return streams(load->ctx, 0, 0, 1, 64, uses);
}

static int readshare(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *uses)
{
	const struct mb_sim_guest *g = load->ctx;
	struct mb_sim_use *use = add(uses, 0, g->memory_bytes, 1);

	if (!use)
		return -ENOMEM;
	by_all(g, use, use->read, 1);
	return 0;
}

static int writeshare(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *uses)
{
	const struct mb_sim_guest *g = load->ctx;
	uint64_t shared = g->memory_bytes / 16 / MB_HEAT_BLOCK_BYTES * MB_HEAT_BLOCK_BYTES;
	struct mb_sim_use *use = add(uses, 0, shared ? shared : MB_HEAT_BLOCK_BYTES, 1);

	if (!use)
		return -ENOMEM;
	by_all(g, use, use->read, 0.5);
	by_all(g, use, use->write, 0.5);
	return use->len_bytes == g->memory_bytes || add(uses, use->len_bytes, g->memory_bytes, 1)
		       ? 0
		       : -ENOMEM;
}

static int phase(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *uses)
{
	const struct mb_sim_guest *g = load->ctx;
	uint64_t turn = g->period_ns ? at_ns / g->period_ns : 0;

	/* A quarter of all vCPUs further: another node, soon. */
	turn *= g->n_vcpus > 4 ? g->n_vcpus / 4 : 1;
	return streams(g, 0, (unsigned)(turn % g->n_vcpus), 1, 64, uses);
}

/* Each vCPU reads its part from one end to the other, and puts what it finds anywhere. */
static int radix(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *uses)
{
	const struct mb_sim_guest *g = load->ctx;
	int rc = 0;

	for (unsigned i = 0; i < g->n_vcpus && !rc; i++) {
		struct mb_sim_use *use = add(uses, part_begin(g, 0, i), part_begin(g, 0, i + 1), 8);

		if (!use)
			return -ENOMEM;
		use->read[node_of(g, i)] = per_page(use, rate_of(g, i) / 2);
		by_all(g, use, use->write, 0.5 / g->n_vcpus);
	}
	return rc;
}

static int idle(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *uses)
{
	const struct mb_sim_guest *g = load->ctx;
	unsigned first = uses->n;
	int rc = streams(g, 0, 0, 1, 1, uses);

	/* A touch of a huge page in a hundred seconds, whatever the rate of a guest at work. */
	for (unsigned i = first; i < uses->n && !rc; i++)
		for (unsigned k = 0; k < MB_MAX_NODES; k++) {
			uses->use[i].write[k] = 0;
			if (uses->use[i].read[k] > 0)
				uses->use[i].read[k] = 0.01f / MB_HEAT_BLOCK_PAGES;
		}
	return rc;
}

const struct mb_sim_program mb_sim_programs[] = {
	{"private", "each vCPU streams through memory of its own", private},
	{"readshare", "all read one table at random", readshare},
	{"writeshare", "all add to shared counters", writeshare},
	{"phase", "parts of memory change hands each period", phase},
	{"radix", "each reads its part, and writes anywhere", radix},
	{"idle", "next to nothing", idle},
	{0},
};

const struct mb_sim_program *mb_sim_program_find(const char *name)
{
	for (const struct mb_sim_program *p = mb_sim_programs; p->name; p++)
		if (!strcmp(p->name, name))
			return p;
	return NULL;
}

int mb_sim_guest_load(struct mb_sim_guest *g, const struct mb_sim_host *host,
	struct mb_sim_load *load, struct mb_error *err)
{
	g->n_cpu_nodes = 0;
	memset(g->node_rate, 0, sizeof(g->node_rate));
	for (unsigned i = 0; i < host->n_nodes; i++)
		if (host->cpus[i])
			g->cpu_node[g->n_cpu_nodes++] = i;
	if (!g->n_cpu_nodes || !g->n_vcpus || !g->span)
		return mb_error_set(err, EINVAL, "a machine without vCPUs, or a host without CPUs");
	if (g->memory_bytes / MB_HEAT_BLOCK_BYTES < g->n_vcpus ||
		g->memory_bytes % MB_HEAT_BLOCK_BYTES)
		return mb_error_set(err, EINVAL,
			"memory must be a multiple of 2 MiB, with 2 MiB for each of the %u vCPUs",
			g->n_vcpus);
	*load = (struct mb_sim_load){.memory_bytes = g->memory_bytes,
		.first_node = node_of(g, 0),
		.uses = g->program->uses,
		.ctx = g};
	for (unsigned i = 0; i < g->n_vcpus; i++) {
		load->vcpus[node_of(g, i)]++;
		g->node_rate[node_of(g, i)] += rate_of(g, i);
	}
	return 0;
}
