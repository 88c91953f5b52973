// SPDX-License-Identifier: Apache-2.0
#include "heat_model.h"
#include "sim.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define HOLE_BEGIN (3ull << 30) /* where PCI devices are, and no memory (ARCHITECTURE.md) */
#define HOLE_END   (4ull << 30)

struct sim_trace {
	struct heat *heat; /* in order of time */
	unsigned n, room;
	bool hole; /* nothing in it: what is above moves down */
	uint64_t memory_bytes;
	double page_accesses, block_accesses; /* what a touch is taken to be worth */
	unsigned view_nodes[HEAT_MAX_VIEWS];  /* how many each view has */
};

/* ---- reading ---- */

static int check_same(const struct sim_trace *trace, const struct heat *heat, struct mb_error *err)
{
	const struct heat *first = &trace->heat[0];

	if (first->n_views != heat->n_views || first->n_nodes != heat->n_nodes ||
		memcmp(first->view_nodes, heat->view_nodes, sizeof(heat->view_nodes)) ||
		memcmp(first->node, heat->node, sizeof(heat->node)))
		return mb_error_set(
			err, EINVAL, "its views or nodes are not those of the first line");
	if (heat->time_ms < trace->heat[trace->n - 1].time_ms)
		return mb_error_set(err, EINVAL, "time_ms is less than in the line before");
	return 0;
}

static int add_line(struct sim_trace *trace, const char *text, struct mb_error *err)
{
	json_error_t why;
	json_t *answer = json_loads(text, JSON_REJECT_DUPLICATES, &why);
	struct heat heat;
	int rc;

	if (!answer)
		return mb_error_set(err, EINVAL, "column %d: %s", why.column, why.text);
	rc = heat_read(answer, &heat, err);
	json_decref(answer);
	if (rc)
		return rc;
	if (trace->n)
		rc = check_same(trace, &heat, err);
	if (!rc && trace->n == trace->room) {
		unsigned room = trace->room ? 2 * trace->room : 16;
		struct heat *more = reallocarray(trace->heat, room, sizeof(*more));

		if (more) {
			trace->heat = more;
			trace->room = room;
		} else {
			rc = mb_error_set(err, ENOMEM, "out of memory");
		}
	}
	if (rc)
		heat_finish(&heat);
	else
		trace->heat[trace->n++] = heat;
	return rc;
}

static uint64_t offset_of(const struct sim_trace *trace, uint64_t gpa)
{
	return trace->hole && gpa >= HOLE_END ? gpa - (HOLE_END - HOLE_BEGIN) : gpa;
}

/* Guest memory without the hole below 4 GiB; some other monitor's may have none. */
static void find_memory(struct sim_trace *trace)
{
	trace->hole = true;
	for (unsigned i = 0; i < trace->n; i++)
		for (size_t k = 0; k < trace->heat[i].n_extents; k++) {
			const struct heat_extent *e = &trace->heat[i].extent[k];

			if (e->gpa < HOLE_END && e->gpa + e->bytes > HOLE_BEGIN)
				trace->hole = false;
		}
	for (unsigned i = 0; i < trace->n; i++)
		for (size_t k = 0; k < trace->heat[i].n_extents; k++) {
			const struct heat_extent *e = &trace->heat[i].extent[k];
			uint64_t end = offset_of(trace, e->gpa + e->bytes);

			if (end > trace->memory_bytes)
				trace->memory_bytes = end;
		}
	if (!trace->memory_bytes)
		trace->memory_bytes = MB_HEAT_BLOCK_BYTES;
}

static int read_lines(struct sim_trace *trace, FILE *in, const char *name, struct mb_error *err)
{
	char *line = NULL;
	size_t room = 0;
	unsigned n = 0;
	ssize_t len;
	int rc = 0;

	while (!rc && (len = getline(&line, &room, in)) >= 0) {
		n++;
		if (!line[strspn(line, " \t\r\n")])
			continue;
		rc = strlen(line) == (size_t)len
			     ? add_line(trace, line, err)
			     : mb_error_set(err, EINVAL, "a zero byte: this is no JSON");
		if (rc)
			mb_error_prefix(err, rc, "%s: line %u", name, n);
	}
	if (!rc && ferror(in))
		rc = mb_error_set(err, errno, "%s: %s", name, strerror(errno));
	if (!rc && !trace->n)
		rc = mb_error_set(err, EINVAL,
			"%s: it is empty; 'mirrorball heat NAME --json --seconds 60' makes a trace",
			name);
	free(line);
	return rc;
}

int sim_trace_read(const char *path, struct sim_trace **out, struct mb_error *err)
{
	bool is_stdin = !strcmp(path, "-");
	const char *name = is_stdin ? "standard input" : path;
	struct sim_trace *trace = calloc(1, sizeof(*trace));
	FILE *in = is_stdin ? stdin : fopen(path, "re");
	int rc;

	if (!trace)
		rc = mb_error_set(err, ENOMEM, "out of memory");
	else if (!in)
		rc = mb_error_set(err, errno, "%s: %s", name, strerror(errno));
	else
		rc = read_lines(trace, in, name, err);
	if (in && !is_stdin)
		fclose(in);
	if (rc) {
		sim_trace_destroy(trace);
		return rc;
	}
	find_memory(trace);
	*out = trace;
	return 0;
}

void sim_trace_destroy(struct sim_trace *trace)
{
	for (unsigned i = 0; trace && i < trace->n; i++)
		heat_finish(&trace->heat[i]);
	if (trace)
		free(trace->heat);
	free(trace);
}

unsigned sim_trace_n_nodes(const struct sim_trace *trace)
{
	return trace->heat[0].n_nodes;
}

/* ---- replaying ---- */

static const struct heat *heat_at(const struct sim_trace *trace, uint64_t at_ms)
{
	unsigned low = 0, high = trace->n;

	/* The last one that is not later. */
	while (high - low > 1) {
		unsigned middle = (low + high) / 2;

		if (trace->heat[middle].time_ms - trace->heat[0].time_ms <= at_ms)
			low = middle;
		else
			high = middle;
	}
	return &trace->heat[low];
}

static int uses(const struct mb_sim_load *load, uint64_t at_ns, struct mb_sim_uses *out)
{
	const struct sim_trace *trace = load->ctx;
	const struct heat *heat = heat_at(trace, at_ns / 1000000);

	for (size_t i = 0; i < heat->n_extents; i++) {
		const struct heat_extent *e = &heat->extent[i];
		struct mb_sim_use *use = mb_sim_uses_add(out);
		double worth = e->huge ? trace->block_accesses / MB_HEAT_BLOCK_PAGES
				       : trace->page_accesses;

		if (!use)
			return -ENOMEM;
		use->offset = offset_of(trace, e->gpa);
		use->len_bytes = e->bytes;
		use->huge = e->huge;
		use->lines = (float)trace->page_accesses;
		use->is_seen = true;
		use->seen = (struct mb_extent){.confidence = e->confidence,
			.huge = e->huge,
			.node = e->has_node ? e->node : -1};
		for (unsigned v = 0; v < heat->n_views; v++) {
			use->seen.view[v] = (struct mb_heat){e->read[v], e->write[v]};
			/* Which of a view's nodes it was is not known: all of them alike. */
			for (unsigned k = 0; k < heat->n_nodes; k++) {
				double part = worth / trace->view_nodes[v];

				if (!(heat->view_nodes[v] >> k & 1))
					continue;
				use->read[k] += (float)((double)e->read[v] * part);
				use->write[k] += (float)((double)e->write[v] * part);
			}
		}
	}
	return 0;
}

int sim_trace_load(struct sim_trace *trace, struct mb_sim_config *config,
	const struct mb_sim_host *host, struct sim_run *run, struct mb_sim_load *load,
	struct mb_error *err)
{
	const struct heat *first = &trace->heat[0], *last = &trace->heat[trace->n - 1];
	uint64_t ms = last->time_ms - first->time_ms;

	if (first->n_nodes > host->n_nodes)
		return mb_error_set(err, EINVAL, "the trace is of %u nodes, and the host has %u",
			first->n_nodes, host->n_nodes);
	trace->page_accesses = config->policy.page_touch_accesses;
	trace->block_accesses = config->policy.block_touch_accesses;
	*load = (struct mb_sim_load){
		.memory_bytes = trace->memory_bytes, .uses = uses, .ctx = trace};
	memset(config->view_nodes, 0, sizeof(config->view_nodes));
	config->n_views = first->n_views;
	for (unsigned v = 0; v < first->n_views; v++) {
		config->view_nodes[v] = first->view_nodes[v];
		trace->view_nodes[v] = (unsigned)__builtin_popcountll(first->view_nodes[v]);
		for (unsigned k = 0; k < first->n_nodes; k++)
			if (first->view_nodes[v] >> k & 1)
				load->vcpus[k] = 1;
	}
	if (first->view_nodes[0])
		load->first_node = (unsigned)__builtin_ctzll(first->view_nodes[0]);
	/* As long as it was recorded, and the last line for as long as the ones before it. */
	if (!config->length_ns)
		config->length_ns =
			ms > UINT64_MAX / 4000000
				? UINT64_MAX
				: (ms + (trace->n > 1 ? ms / (trace->n - 1) : 10000)) * 1000000;
	if (config->length_ns < config->step_ns)
		config->length_ns = config->step_ns;
	snprintf(run->name, sizeof(run->name), "%s", first->name);
	run->n_machines = 1;
	run->memory_bytes = trace->memory_bytes;
	return 0;
}
