// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/control.h>
#include <mirrorball/json.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/tracker.h>
#include <stdlib.h>
#include <string.h>

#include "machine_internal.h"

/*
 * What the tracker knows, as JSON for the control socket. On the main loop, which has better things
 * to do: all who watch get the same answer for a while.
 */
#define SAME_NS 200000000ull

static json_t *tracker_json(const struct mb_machine *machine, const struct mb_tracker_stats *s)
{
	static const char *const state[] = {
		[MB_TRACK_AUTO] = "off until somebody watches", [MB_TRACK_ON] = "on"};
	json_t *t = json_object();
	int rc = 0;

	mb_json_put(t, "state", json_string(s->running ? "on" : state[machine->config.track]), &rc);
	mb_json_put(t, "writes", json_boolean(s->features & MB_PAGEMAP_WRITES), &rc);
	mb_json_put(t, "exact", json_boolean(s->features & MB_PAGEMAP_EXACT), &rc);
	mb_json_put_number(t, "regions", s->n_regions, &rc);
	mb_json_put(t, "covered",
		json_real(!s->in_use_bytes ? 0
			  : s->covered_bytes >= s->in_use_bytes
				  ? 1
				  : (double)s->covered_bytes / (double)s->in_use_bytes),
		&rc);
	mb_json_put_number(t, "in_use_bytes", s->in_use_bytes, &rc);
	mb_json_put_number(t, "huge_bytes", s->huge_bytes, &rc);
	mb_json_put_number(t, "windows", s->n_windows, &rc);
	mb_json_put_number(t, "zooms", s->n_zooms, &rc);
	mb_json_put_number(t, "fault_ns", s->fault_ns, &rc);
	mb_json_put_number(t, "cpu_ppm", s->cpu_ppm, &rc);
	mb_json_put_number(t, "cpu_budget_ppm", s->cpu_budget_ppm, &rc);
	mb_json_put_number(t, "guest_ppm", s->guest_ppm, &rc);
	mb_json_put_number(t, "guest_budget_ppm", s->guest_budget_ppm, &rc);
	mb_json_put_number(t, "zaps_per_s", s->invalidations, &rc);
	mb_json_put_number(t, "faults_per_s", s->faults, &rc);
	mb_json_put(t, "kvm_faults_per_s",
		s->knows_kvm_faults ? json_integer((json_int_t)s->kvm_faults.fixed) : json_null(),
		&rc);
	mb_json_put(t, "retries_per_s",
		s->knows_kvm_faults ? json_integer((json_int_t)s->kvm_faults.repeated)
				    : json_null(),
		&rc);
	if (rc) {
		json_decref(t);
		return NULL;
	}
	return t;
}

json_t *mb_machine_tracker_json(const struct mb_machine *machine)
{
	struct mb_tracker_stats stats;

	if (!machine->tracker)
		return json_pack("{s:s}", "state", "switched off");
	mb_tracker_stats(machine->tracker, &stats);
	return tracker_json(machine, &stats);
}

static json_t *extent_json(const struct mb_machine *machine, const struct mb_extent *e,
	uint64_t from, uint64_t len, bool writes, int *rc)
{
	json_t *x = json_object(), *read = json_array(),
	       *write = writes ? json_array() : json_null(),
	       *copied = mb_machine_makes_copies(machine) ? json_array() : json_null();

	for (unsigned v = 0; v < machine->n_groups; v++) {
		mb_json_append(read, json_real((double)e->view[v].read), rc);
		if (writes)
			mb_json_append(write, json_real((double)e->view[v].write), rc);
		if (mb_machine_makes_copies(machine))
			mb_json_append(copied,
				json_real(
					(double)mb_replicas_share(machine->replicas, from, len, v)),
				rc);
	}
	mb_json_put(x, "gpa", json_integer((json_int_t)mb_ram_gpa(machine->ram, from)), rc);
	mb_json_put(x, "bytes", json_integer((json_int_t)len), rc);
	mb_json_put(x, "node", e->node < 0 ? json_null() : json_integer(e->node), rc);
	mb_json_put(x, "node_share", json_real((double)e->node_share), rc);
	mb_json_put(x, "huge", json_boolean(e->huge), rc);
	mb_json_put(x, "confidence", json_real((double)e->confidence), rc);
	mb_json_put(x, "age_ms", json_integer(e->age_ms), rc);
	mb_json_put(x, "read", read, rc);
	mb_json_put(x, "write", write, rc);
	mb_json_put(x, "copied", copied, rc);
	return x;
}

static json_t *extents_json(const struct mb_machine *machine, bool writes, int *rc)
{
	json_t *array = json_array();
	struct mb_extent *extent = NULL;
	unsigned n = 0;

	*rc = mb_tracker_extents(machine->tracker, &extent, &n);
	for (unsigned i = 0; i < n && !*rc; i++) {
		const struct mb_extent *e = &extent[i];
		uint64_t end = e->offset + e->len_bytes;

		for (uint64_t at = e->offset, next; at < end; at = next) {
			next = mb_ram_run_end(machine->ram, at, end);
			mb_json_append(
				array, extent_json(machine, e, at, next - at, writes, rc), rc);
		}
	}
	free(extent);
	return array;
}

/* A group that is not bound to CPUs has every node. */
static json_t *nodes_json(struct mb_machine *machine, unsigned group, bool all, int *rc)
{
	const struct mb_topology *topo = mb_machine_topology(machine);
	const uint64_t of_group = mb_machine_nodes_of_group(machine, group);
	json_t *nodes = json_array();

	for (unsigned i = 0; topo && i < topo->n_nodes; i++)
		if (all || !machine->bound || of_group >> i & 1)
			mb_json_append(nodes, json_integer(topo->node[i].id), rc);
	return nodes;
}

json_t *mb_machine_views_json(struct mb_machine *machine, int *rc)
{
	json_t *views = json_array();

	for (unsigned v = 0; v < machine->n_groups; v++) {
		json_t *view = json_object();

		mb_json_put(view, "nodes", nodes_json(machine, v, false, rc), rc);
		mb_json_append(views, view, rc);
	}
	return views;
}

static struct mb_watcher *find_watcher(struct mb_machine *machine, uint64_t connection, bool used)
{
	for (unsigned i = 0; i < MB_CONTROL_MAX_CONNECTIONS; i++) {
		struct mb_watcher *w = &machine->watcher[i];

		if (w->used == used && (!used || w->connection == connection))
			return w;
	}
	return NULL;
}

int mb_machine_answer_heat(void *ctx, uint64_t connection, json_t **answer, struct mb_error *err)
{
	struct mb_machine *machine = ctx;
	struct mb_tracker_stats stats;
	json_t *heat;
	int rc = 0;

	if (!machine->tracker)
		return mb_error_set(err, EOPNOTSUPP,
			"its memory is not tracked: it was started with --track off");
	if (!find_watcher(machine, connection, true)) {
		struct mb_watcher *w = find_watcher(machine, 0, false);

		rc = mb_tracker_start(machine->tracker, err);
		if (rc)
			return rc;
		*w = (struct mb_watcher){.used = true, .connection = connection};
	}
	if (machine->heat && mb_now_ns() - machine->heat_ns < SAME_NS) {
		*answer = json_incref(machine->heat);
		return 0;
	}
	mb_tracker_stats(machine->tracker, &stats);
	heat = json_object();
	mb_machine_put_name(machine, heat, &rc);
	mb_json_put_number(heat, "time_ms", mb_machine_time_ms(machine, mb_now_ns()), &rc);
	mb_json_put_number(heat, "memory_bytes", machine->config.memory_bytes, &rc);
	mb_json_put(heat, "views", mb_machine_views_json(machine, &rc), &rc);
	mb_json_put(heat, "nodes", nodes_json(machine, 0, true, &rc), &rc);
	mb_json_put(heat, "tracker", tracker_json(machine, &stats), &rc);
	if (!rc)
		mb_json_put(heat, "extents",
			extents_json(machine, stats.features & MB_PAGEMAP_WRITES, &rc), &rc);
	if (rc) {
		json_decref(heat);
		return mb_error_set(err, -rc, "%s", strerror(-rc));
	}
	json_decref(machine->heat);
	machine->heat = json_incref(heat);
	machine->heat_ns = mb_now_ns();
	*answer = heat;
	return 0;
}

void mb_machine_heat_closed(void *ctx, uint64_t connection)
{
	struct mb_machine *machine = ctx;
	struct mb_watcher *w = find_watcher(machine, connection, true);

	if (!w)
		return;
	w->used = false;
	mb_tracker_stop(machine->tracker);
}
