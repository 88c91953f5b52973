// SPDX-License-Identifier: Apache-2.0
#include "heat_model.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NUMBER 1e15 /* no figure of a machine is larger; doubles are exact up to here */

/*
 * What is read may come from anybody who has made a socket: every member is checked, and the first
 * that is wrong ends it.
 */
struct reader {
	struct mb_error *err;
	int rc;
	const char *where; /* "" or "tracker." */
	size_t index;	   /* of the extent; NO_INDEX outside */
};
#define NO_INDEX SIZE_MAX

static void bad(struct reader *r, const char *key, const char *why)
{
	char at[48] = "";

	if (r->rc)
		return;
	if (r->index != NO_INDEX)
		snprintf(at, sizeof(at), "extents[%zu].", r->index);
	r->rc = mb_error_set(r->err, EPROTO, "the machine's answer makes no sense: %s%s%s %s", at,
		r->where, key, why);
}

static double number(struct reader *r, const json_t *value, const char *key, double max)
{
	double d = json_number_value(value);

	if (!json_is_number(value))
		bad(r, key, "is not a number");
	else if (!isfinite(d) || d < 0 || d > max)
		bad(r, key, "is out of range");
	else
		return d;
	return 0;
}

static uint64_t whole(struct reader *r, const json_t *object, const char *key, uint64_t max)
{
	const json_t *value = json_object_get(object, key);
	json_int_t i = json_integer_value(value);

	if (!json_is_integer(value))
		bad(r, key, "is not a whole number");
	else if (i < 0 || (uint64_t)i > max)
		bad(r, key, "is out of range");
	else
		return (uint64_t)i;
	return 0;
}

/* Rounding may have made a little more than all of it. */
static double share(struct reader *r, const json_t *object, const char *key)
{
	return fmin(number(r, json_object_get(object, key), key, 1.001), 1);
}

/* A figure that a machine may leave out: 0. */
static double figure(struct reader *r, const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	return value ? number(r, value, key, MAX_NUMBER) : 0;
}

static bool truth(struct reader *r, const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	if (!json_is_boolean(value))
		bad(r, key, "is neither true nor false");
	return json_is_true(value);
}

static void read_tracker(struct reader *r, const json_t *tracker, struct heat_tracker *out)
{
	r->where = "tracker.";
	out->writes = truth(r, tracker, "writes");
	out->exact = json_object_get(tracker, "exact") ? truth(r, tracker, "exact") : true;
	out->windows = (uint64_t)figure(r, tracker, "windows");
	out->regions = (uint64_t)figure(r, tracker, "regions");
	out->huge_bytes = (uint64_t)figure(r, tracker, "huge_bytes");
	out->covered = share(r, tracker, "covered");
	out->cpu_ppm = figure(r, tracker, "cpu_ppm");
	out->cpu_budget_ppm = figure(r, tracker, "cpu_budget_ppm");
	out->guest_ppm = figure(r, tracker, "guest_ppm");
	out->guest_budget_ppm = figure(r, tracker, "guest_budget_ppm");
	out->zaps_per_s = figure(r, tracker, "zaps_per_s");
	out->faults_per_s = figure(r, tracker, "faults_per_s");
	r->where = "";
}

/* The index of a host's node, or -1. */
static int find_node(const struct heat *heat, const json_t *value)
{
	for (unsigned i = 0; json_is_integer(value) && i < heat->n_nodes; i++)
		if (json_integer_value(value) == (json_int_t)heat->node[i])
			return (int)i;
	return -1;
}

static void read_nodes(struct reader *r, const json_t *nodes, struct heat *out)
{
	size_t n = json_array_size(nodes);

	if (!json_is_array(nodes) || !n)
		return bad(r, "nodes", "is not a list of nodes");
	if (n > HEAT_MAX_NODES) {
		r->rc = mb_error_set(
			r->err, E2BIG, "%zu nodes; at most %u can be shown", n, HEAT_MAX_NODES);
		return;
	}
	for (size_t i = 0; i < n && !r->rc; i++) {
		const json_t *node = json_array_get(nodes, i);

		if (find_node(out, node) >= 0)
			bad(r, "nodes", "has a node twice");
		out->node[out->n_nodes++] = (unsigned)number(r, node, "nodes", 1 << 20);
		if (!json_is_integer(node))
			bad(r, "nodes", "has something that is no node");
	}
}

static void read_views(struct reader *r, const json_t *views, struct heat *out)
{
	size_t n = json_array_size(views);

	if (!json_is_array(views) || !n)
		return bad(r, "views", "is not a list of views");
	if (n > HEAT_MAX_VIEWS) {
		r->rc = mb_error_set(
			r->err, E2BIG, "%zu views; at most %u can be shown", n, HEAT_MAX_VIEWS);
		return;
	}
	out->n_views = (unsigned)n;
	for (size_t v = 0; v < n; v++) {
		const json_t *nodes = json_object_get(json_array_get(views, v), "nodes"), *node;
		size_t i;

		if (!json_is_array(nodes))
			return bad(r, "views", "has a view without a list of nodes");
		json_array_foreach(nodes, i, node)
		{
			int index = find_node(out, node);

			if (index < 0)
				return bad(r, "views", "has a node that is not one of the host's");
			out->view_nodes[v] |= 1ull << index;
		}
	}
}

static void read_touches(struct reader *r, const struct heat *heat, const json_t *list,
	const char *key, float touches[HEAT_MAX_VIEWS])
{
	if (!json_is_array(list) || json_array_size(list) != heat->n_views)
		return bad(r, key, "is not a list with a number for each view");
	for (unsigned v = 0; v < heat->n_views; v++)
		touches[v] = (float)number(r, json_array_get(list, v), key, MAX_NUMBER);
}

/* Null, or missing, where the machine can have none. */
static void read_copied(struct reader *r, struct heat *heat, const json_t *list, float *copied)
{
	if (!list || json_is_null(list))
		return;
	if (!json_is_array(list) || json_array_size(list) != heat->n_views)
		return bad(r, "copied", "is not a list with a number for each view");
	heat->can_copy = true;
	for (unsigned v = 0; v < heat->n_views; v++)
		copied[v] = (float)fmin(number(r, json_array_get(list, v), "copied", 1.001), 1);
}

static void read_extent(struct reader *r, struct heat *heat, const json_t *object, uint64_t end,
	struct heat_extent *out)
{
	const json_t *node = json_object_get(object, "node");
	const json_t *write = json_object_get(object, "write");

	out->gpa = whole(r, object, "gpa", HEAT_MAX_GPA - 1);
	out->bytes = whole(r, object, "bytes", HEAT_MAX_GPA - out->gpa);
	if (!r->rc && !out->bytes)
		bad(r, "bytes", "is 0");
	if (out->gpa < end)
		bad(r, "gpa", "is before the end of the extent before it");
	out->used_bytes = out->bytes;
	out->huge = json_is_true(json_object_get(object, "huge"));
	out->confidence = (float)share(r, object, "confidence");
	if (out->confidence > 0)
		out->looked_bytes = out->bytes;
	if (node && !json_is_null(node)) {
		int index = find_node(heat, node);

		if (index < 0)
			return bad(r, "node", "is not one of the host's");
		out->has_node = true;
		out->node = (uint8_t)index;
		out->node_share = (float)share(r, object, "node_share");
	}
	read_touches(r, heat, json_object_get(object, "read"), "read", out->read);
	if (write && !json_is_null(write)) {
		read_touches(r, heat, write, "write", out->write);
		out->written_bytes = out->looked_bytes;
	}
	read_copied(r, heat, json_object_get(object, "copied"), out->copied);
}

static void read_extents(struct reader *r, const json_t *extents, struct heat *out)
{
	size_t n = json_array_size(extents);
	uint64_t end = 0;

	if (!json_is_array(extents))
		return bad(r, "extents", "is not a list");
	out->extent = calloc(n + 1, sizeof(*out->extent));
	if (!out->extent) {
		r->rc = mb_error_set(r->err, ENOMEM, "%zu extents: out of memory", n);
		return;
	}
	for (size_t i = 0; i < n && !r->rc; i++) {
		struct heat_extent *extent = &out->extent[i];

		r->index = i;
		read_extent(r, out, json_array_get(extents, i), end, extent);
		end = extent->gpa + extent->bytes;
	}
	r->index = NO_INDEX;
	out->n_extents = n;
}

int heat_read(const struct json_t *answer, struct heat *out, struct mb_error *err)
{
	struct reader r = {.err = err, .where = "", .index = NO_INDEX};
	const char *name = json_string_value(json_object_get(answer, "name"));

	*out = (struct heat){0};
	if (!name || !*name)
		bad(&r, "name", "is not a name");
	else
		snprintf(out->name, sizeof(out->name), "%s", name);
	mb_error_make_printable(out->name);
	out->pid = whole(&r, answer, "pid", INT32_MAX);
	out->time_ms = whole(&r, answer, "time_ms", (uint64_t)MAX_NUMBER);
	out->memory_bytes = whole(&r, answer, "memory_bytes", HEAT_MAX_GPA);
	if (!json_is_object(json_object_get(answer, "tracker")))
		bad(&r, "tracker", "is missing");
	if (!r.rc)
		read_tracker(&r, json_object_get(answer, "tracker"), &out->tracker);
	if (!r.rc)
		read_nodes(&r, json_object_get(answer, "nodes"), out);
	if (!r.rc)
		read_views(&r, json_object_get(answer, "views"), out);
	if (!r.rc)
		read_extents(&r, json_object_get(answer, "extents"), out);
	if (r.rc)
		heat_finish(out);
	return r.rc;
}

void heat_finish(struct heat *heat)
{
	free(heat->extent);
	*heat = (struct heat){0};
}
