// SPDX-License-Identifier: Apache-2.0
#include "sim.h"
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_NS	   1e6
#define MAX_NUMBER 1e15

/* bench/machines.json's xeon-2s, to one digit; more nodes are as far from each other. */
void sim_machine_default(unsigned n_nodes, struct sim_report *report)
{
	struct mb_sim_host *host = &report->host;

	*host = (struct mb_sim_host){.n_nodes = n_nodes};
	snprintf(report->host_name, sizeof(report->host_name), "built-in, %u node%s", n_nodes,
		n_nodes == 1 ? "" : "s");
	snprintf(report->host_source, sizeof(report->host_source),
		"latencies of a Cascade Lake Xeon with two sockets, from bench/machines.json");
	for (unsigned i = 0; i < n_nodes; i++) {
		host->cpus[i] = 32;
		for (unsigned k = 0; k < n_nodes; k++)
			host->ns[i][k] = i == k ? 81 : 141;
	}
	mb_sim_host_complete(host);
}

static double number(const json_t *value, double max, const char *what, struct mb_error *err)
{
	double x = json_number_value(value);

	if (json_is_number(value) && isfinite(x) && x >= 0 && x <= max)
		return x;
	mb_error_set(err, EINVAL, "%s must be a number between 0 and %g", what, max);
	return -1;
}

/* A number for all nodes, or a list of one a node; -1 is what was wrong. */
static int read_list(const json_t *object, const char *key, unsigned n, double max, double *out,
	struct mb_error *err)
{
	const json_t *value = json_object_get(object, key);

	if (json_is_array(value) && json_array_size(value) != n)
		return mb_error_set(err, EINVAL, "%s has %zu numbers for %u nodes", key,
			json_array_size(value), n);
	for (unsigned i = 0; i < n && value; i++) {
		out[i] = number(
			json_is_array(value) ? json_array_get(value, i) : value, max, key, err);
		if (out[i] < 0)
			return -EINVAL;
	}
	return 0;
}

static int read_matrix(const json_t *rows, const char *key, unsigned n, double min, double max,
	double (*out)[MB_MAX_NODES], struct mb_error *err)
{
	for (unsigned i = 0; i < n; i++) {
		const json_t *row = json_array_get(rows, i);

		if (json_array_size(rows) != n || json_array_size(row) != n)
			return mb_error_set(err, EINVAL,
				"%s must have a list of %u numbers for each of the %u nodes", key,
				n, n);
		for (unsigned k = 0; k < n; k++) {
			out[i][k] = number(json_array_get(row, k), max, key, err);
			if (out[i][k] < 0)
				return -EINVAL;
			if (out[i][k] < min)
				return mb_error_set(
					err, EINVAL, "%s: %g is less than %g", key, out[i][k], min);
		}
	}
	return 0;
}

static void copy_text(const json_t *object, const char *key, char *text, size_t len)
{
	const char *value = json_string_value(json_object_get(object, key));

	if (value)
		snprintf(text, len, "%s", value);
	mb_error_make_printable(text);
}

static int read_host(const json_t *object, struct sim_report *report, struct mb_error *err)
{
	struct mb_sim_host *host = &report->host;
	const json_t *ns = json_object_get(object, "ns"), *distance = NULL;
	size_t n = json_array_size(ns);
	double list[MB_MAX_NODES], matrix[MB_MAX_NODES][MB_MAX_NODES], cost[2] = {0, 0};
	int rc;

	if (!n || n > MB_MAX_NODES)
		return mb_error_set(err, EINVAL,
			"\"ns\" must be the latencies: a list of lists, for 1 to %u nodes",
			MB_MAX_NODES);
	*host = (struct mb_sim_host){.n_nodes = (unsigned)n};
	rc = read_matrix(ns, "ns", host->n_nodes, 0.1, MAX_NS, host->ns, err);
	distance = json_object_get(object, "distance");
	if (!rc && distance)
		rc = read_matrix(distance, "distance", host->n_nodes, 10, 254, matrix, err);
	for (unsigned i = 0; i < n && !rc && distance; i++)
		for (unsigned k = 0; k < n; k++)
			host->distance[i][k] = (uint16_t)matrix[i][k];
	for (unsigned i = 0; i < n; i++)
		list[i] = 32;
	rc = rc ? rc : read_list(object, "cpus", host->n_nodes, 4096, list, err);
	for (unsigned i = 0; i < n && !rc; i++) {
		host->cpus[i] = (unsigned)list[i];
		list[i] = 0;
	}
	rc = rc ? rc : read_list(object, "memory_gib", host->n_nodes, 1 << 20, list, err);
	for (unsigned i = 0; i < n && !rc; i++)
		host->memory_bytes[i] = (uint64_t)(list[i] * (1 << 30));
	rc = rc ? rc
		: read_list(
			  object, "bandwidth_gb_per_s", host->n_nodes, 1e6, host->bytes_per_s, err);
	for (unsigned i = 0; i < n; i++)
		host->bytes_per_s[i] *= 1e9;
	rc = rc ? rc : read_list(object, "move_page_ns", 1, 1e9, &cost[0], err);
	rc = rc ? rc : read_list(object, "move_block_ns", 1, 1e9, &cost[1], err);
	host->move_page_ns = cost[0];
	host->move_block_ns = cost[1];
	copy_text(object, "name", report->host_name, sizeof(report->host_name));
	copy_text(object, "source", report->host_source, sizeof(report->host_source));
	if (!rc)
		mb_sim_host_complete(host);
	return rc;
}

static int no_machine(const json_t *file, const char *path, const char *name, struct mb_error *err)
{
	char names[256] = "";
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)file, key, value)
	{
		size_t used = strlen(names);

		if (json_is_object(value))
			snprintf(names + used, sizeof(names) - used, "%s%s", used ? ", " : "", key);
	}
	if (!*names)
		return mb_error_set(
			err, EINVAL, "%s: it describes no machine (\"ns\" is missing)", path);
	return name ? mb_error_set(
			      err, EINVAL, "%s: no machine '%s'; there are %s", path, name, names)
		    : mb_error_set(err, EINVAL, "%s: which machine? Write %s:NAME, of %s", path,
			      path, names);
}

int sim_machine_read(const char *where, struct sim_report *report, struct mb_error *err)
{
	char *path = strdup(where), *colon = path ? strrchr(path, ':') : NULL;
	const char *name = NULL;
	const json_t *object;
	json_error_t why;
	json_t *file;
	FILE *in;
	int rc;

	if (!path)
		return mb_error_set(err, ENOMEM, "out of memory");
	/* A file may have a colon in its name. */
	if (colon && access(path, F_OK)) {
		*colon = '\0';
		name = colon + 1;
	}
	in = fopen(path, "re");
	if (!in) {
		rc = mb_error_set(err, errno, "%s: %s", path, strerror(errno));
		free(path);
		return rc;
	}
	errno = 0;
	file = json_loadf(in, JSON_REJECT_DUPLICATES, &why);
	if (!file) {
		rc = ferror(in) && errno ? mb_error_set(err, errno, "%s: %s", path, strerror(errno))
					 : mb_error_set(err, EINVAL, "%s: line %d: %s", path,
						   why.line, why.text);
		fclose(in);
		free(path);
		return rc;
	}
	fclose(in);
	object = name ? json_object_get(file, name) : file;
	snprintf(report->host_name, sizeof(report->host_name), "%s", name ? name : path);
	if (json_is_object(object) && json_object_get(object, "ns")) {
		rc = read_host(object, report, err);
		if (rc)
			mb_error_prefix(err, rc, "%s", where);
	} else {
		rc = no_machine(file, path, name, err);
	}
	json_decref(file);
	free(path);
	return rc;
}
