// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/control.h>
#include <mirrorball/json.h>
#include <mirrorball/manager.h>
#include <stdlib.h>
#include <string.h>

#include "machine_internal.h"

/* What was moved and why, as JSON for the control socket. */

/* MB_WHY_BACKING_OFF and the like are of the last plan. */
static json_t *migration_json(struct mb_machine *machine, const struct mb_manager_stats *s, int *rc)
{
	json_t *m = json_object(), *nodes = json_array();

	mb_json_put(m, "state", json_string(mb_machine_migrate_state(machine)), rc);
	if (!machine->manager) {
		json_decref(nodes);
		return m;
	}
	mb_json_put_number(m, "moves", s->n_moves, rc);
	mb_json_put_number(m, "moved_bytes", s->moved_bytes, rc);
	mb_json_put_number(m, "busy_bytes", s->busy_bytes, rc);
	mb_json_put_number(m, "full_bytes", s->full_bytes, rc);
	mb_json_put_number(m, "split_bytes", s->split_bytes, rc);
	mb_json_put_number(m, "backing_off_bytes", s->why_bytes[MB_WHY_BACKING_OFF], rc);
	mb_json_put_number(m, "plans", s->n_steps, rc);
	mb_json_put_number(m, "plan_ns", s->step_ns, rc);
	mb_json_put_number(m, "longest_ns", s->longest_ns, rc);
	mb_json_put(m, "locality", s->knows_locality ? json_real((double)s->locality) : json_null(),
		rc);
	for (unsigned i = 0; i < s->n_nodes; i++) {
		const struct mb_manager_node *n = &s->node[i];
		json_t *node = json_object();

		mb_json_put_number(node, "node", (uint64_t)n->id, rc);
		mb_json_put_number(node, "guest_bytes", n->guest_bytes, rc);
		mb_json_put_number(node, "free_bytes", n->free_bytes, rc);
		mb_json_put_number(node, "total_bytes", n->total_bytes, rc);
		mb_json_put(node, "accesses_per_s", json_real(n->accesses_per_s), rc);
		mb_json_put_number(node, "in_bytes", n->in_bytes, rc);
		mb_json_put_number(node, "out_bytes", n->out_bytes, rc);
		mb_json_append(nodes, node, rc);
	}
	mb_json_put(m, "nodes", nodes, rc);
	return m;
}

json_t *mb_machine_migration_json(struct mb_machine *machine)
{
	struct mb_manager_stats stats = {0};
	json_t *m;
	int rc = 0;

	if (machine->manager)
		mb_manager_stats(machine->manager, &stats);
	m = migration_json(machine, &stats, &rc);
	if (rc) {
		json_decref(m);
		return NULL;
	}
	return m;
}

static json_t *reasons_json(const struct mb_manager_stats *s, int *rc)
{
	json_t *reasons = json_object();

	for (unsigned i = 0; i < MB_WHY_COUNT; i++)
		if (s->why_bytes[i])
			mb_json_put_number(
				reasons, mb_why_name((enum mb_why)i), s->why_bytes[i], rc);
	return reasons;
}

static json_t *samples_json(struct mb_machine *machine, int *rc)
{
	struct mb_manager_sample sample[MB_MANAGER_SAMPLES];
	unsigned n = mb_manager_samples(machine->manager, sample, MB_MANAGER_SAMPLES);
	json_t *array = json_array();

	for (unsigned i = 0; i < n; i++) {
		json_t *one = json_object();

		mb_json_put_number(
			one, "time_ms", mb_machine_time_ms(machine, sample[i].time_ns), rc);
		mb_json_put(one, "locality", json_real((double)sample[i].locality), rc);
		mb_json_put_number(one, "moved_bytes", sample[i].moved_bytes, rc);
		mb_json_append(array, one, rc);
	}
	return array;
}

static json_t *node_or_null(int node)
{
	return node < 0 ? json_null() : json_integer(node);
}

static json_t *decisions_json(struct mb_machine *machine, int *rc)
{
	struct mb_decision *decision = calloc(MB_MANAGER_DECISIONS, sizeof(*decision));
	json_t *array = json_array();
	unsigned n = 0;

	if (decision)
		n = mb_manager_decisions(machine->manager, decision, MB_MANAGER_DECISIONS);
	else
		*rc = -ENOMEM;
	for (unsigned i = 0; i < n; i++) {
		const struct mb_decision *d = &decision[i];
		json_t *one = json_object();

		mb_json_put_number(one, "time_ms", mb_machine_time_ms(machine, d->time_ns), rc);
		mb_json_put_number(one, "gpa", mb_ram_gpa(machine->ram, d->offset), rc);
		mb_json_put_number(one, "bytes", d->len_bytes, rc);
		mb_json_put_number(one, "pieces", d->n_pieces, rc);
		mb_json_put(one, "why", json_string(mb_why_name(d->why)), rc);
		mb_json_put(one, "from", node_or_null(d->from), rc);
		mb_json_put(one, "to", json_integer(d->to), rc);
		mb_json_put(one, "gain_ns_per_s", json_real(d->gain_ns_per_s), rc);
		mb_json_put_number(one, "moved_bytes", d->moved.moved_bytes, rc);
		mb_json_put_number(one, "busy_bytes", d->moved.busy_bytes, rc);
		mb_json_put_number(one, "full_bytes", d->moved.full_bytes, rc);
		mb_json_put_number(one, "split_bytes", d->moved.split_bytes, rc);
		mb_json_put(one, "error",
			!d->rc		      ? json_null()
			: d->rc == -ECANCELED ? json_string("stopped")
					      : json_string(strerror(-d->rc)),
			rc);
		mb_json_append(array, one, rc);
	}
	free(decision);
	return array;
}

static json_t *range_json(
	const struct mb_verdict *v, uint64_t gpa, uint64_t bytes, uint64_t now_ns, int *rc)
{
	json_t *one = json_object();

	mb_json_put_number(one, "gpa", gpa, rc);
	mb_json_put_number(one, "bytes", bytes, rc);
	mb_json_put(one, "why", json_string(mb_why_name(v->why)), rc);
	mb_json_put(one, "node", node_or_null(v->node), rc);
	mb_json_put(one, "target", node_or_null(v->target), rc);
	mb_json_put_number(one, "moves", v->moves, rc);
	mb_json_put_number(
		one, "wait_ms", v->next_ns > now_ns ? (v->next_ns - now_ns) / 1000000 : 0, rc);
	mb_json_put(one, "gain_ns_per_s",
		json_real(v->gain_ns_per_s * (double)bytes / (double)v->len_bytes), rc);
	mb_json_put_number(one, "payback_ms",
		v->payback_ns < 1e15 ? (uint64_t)(v->payback_ns / 1e6) : 1000000000, rc);
	return one;
}

static json_t *ranges_json(struct mb_machine *machine, int *rc)
{
	struct mb_verdict *verdict = calloc(MB_MANAGER_RANGES, sizeof(*verdict));
	const uint64_t now_ns = mb_now_ns();
	json_t *array = json_array();
	unsigned n = 0;

	if (verdict)
		n = mb_manager_ranges(machine->manager, verdict, MB_MANAGER_RANGES);
	else
		*rc = -ENOMEM;
	for (unsigned i = 0; i < n; i++) {
		const struct mb_verdict *v = &verdict[i];
		uint64_t at = v->offset, end = v->offset + v->len_bytes;

		for (uint64_t next; at < end; at = next) {
			next = mb_ram_run_end(machine->ram, at, end);
			mb_json_append(array,
				range_json(v, mb_ram_gpa(machine->ram, at), next - at, now_ns, rc),
				rc);
		}
	}
	free(verdict);
	return array;
}

int mb_machine_answer_numa(void *ctx, uint64_t connection, json_t **answer, struct mb_error *err)
{
	struct mb_machine *machine = ctx;
	struct mb_manager_stats stats = {0};
	json_t *numa = json_object();
	int rc = 0;

	if (machine->manager)
		mb_manager_stats(machine->manager, &stats);
	mb_machine_put_name(machine, numa, &rc);
	mb_json_put_number(numa, "time_ms", mb_machine_time_ms(machine, mb_now_ns()), &rc);
	mb_json_put(numa, "views", mb_machine_views_json(machine, &rc), &rc);
	mb_json_put(numa, "placement", mb_machine_placement_json(machine, &rc), &rc);
	mb_json_put(numa, "migration", migration_json(machine, &stats, &rc), &rc);
	mb_json_put(numa, "replicas", mb_machine_replicas_json(machine, &rc), &rc);
	if (machine->manager) {
		mb_json_put(numa, "reasons", reasons_json(&stats, &rc), &rc);
		mb_json_put(numa, "ranges", ranges_json(machine, &rc), &rc);
		mb_json_put(numa, "samples", samples_json(machine, &rc), &rc);
		mb_json_put(numa, "decisions", decisions_json(machine, &rc), &rc);
	}
	if (rc) {
		json_decref(numa);
		return mb_error_set(err, -rc, "%s", strerror(-rc));
	}
	*answer = numa;
	return 0;
}
