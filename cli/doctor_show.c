// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "doctor.h"
#include <mirrorball/json.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define VALUE_COLUMN 42

static const struct {
	const char *word, *colour;
} marks[] = {
	[DOCTOR_OK] = {"ok", "\033[32m"},
	[DOCTOR_INFO] = {"info", ""},
	[DOCTOR_WARN] = {"warn", "\033[33m"},
	[DOCTOR_MISSING] = {"missing", "\033[31m"},
};

static const struct {
	const char *group, *title;
} groups[] = {
	{"kvm", "KVM"},
	{"memory", "Memory"},
	{"numa", "NUMA"},
	{"io", "Disks and network"},
};

static void show_labelled(const char *label, const char *text)
{
	if (!text)
		return;
	printf("%12s%-6s", "", label);
	cli_wrap(stdout, text, 18, 18);
}

static void show_check(const struct doctor_check *check, bool colour)
{
	const char *on = colour ? marks[check->mark].colour : "";

	printf("  %s%-8s%s  %-*s", on, marks[check->mark].word, *on ? "\033[0m" : "",
		VALUE_COLUMN - 12, check->what);
	if (strlen(check->what) >= VALUE_COLUMN - 12)
		putchar(' ');
	cli_wrap(stdout, check->value, VALUE_COLUMN, VALUE_COLUMN);
	if (check->mark == DOCTOR_OK || check->mark == DOCTOR_INFO)
		return;
	show_labelled("for", check->use);
	show_labelled("cost", check->cost);
	show_labelled("fix", check->fix);
	if (check->since && check->mark != DOCTOR_OK)
		printf("%12ssince Linux %s\n", "", check->since);
}

/* "0-3,8" */
static void cpu_list(const cpu_set_t *set, char *text, size_t len)
{
	size_t used = 0;

	*text = '\0';
	for (int cpu = 0; cpu < CPU_SETSIZE && used < len; cpu++) {
		int first = cpu, n;

		if (!CPU_ISSET(cpu, set))
			continue;
		while (cpu + 1 < CPU_SETSIZE && CPU_ISSET(cpu + 1, set))
			cpu++;
		if (first == cpu)
			n = snprintf(text + used, len - used, "%s%d", used ? "," : "", first);
		else
			n = snprintf(
				text + used, len - used, "%s%d-%d", used ? "," : "", first, cpu);
		used += n < 0 ? 0 : (size_t)n;
	}
	if (!*text)
		snprintf(text, len, "none");
}

static void show_nodes(const struct mb_topology *topo)
{
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		const struct mb_node *node = &topo->node[i];
		char cpus[256];

		cpu_list(&node->cpus, cpus, sizeof(cpus));
		printf("            node %u: CPUs %s, %llu MiB, %llu MiB free", node->id, cpus,
			(unsigned long long)node->mem_total_bytes >> 20,
			(unsigned long long)node->mem_free_bytes >> 20);
		if (topo->n_nodes > 1) {
			printf(", distances");
			for (unsigned j = 0; j < topo->n_nodes; j++)
				printf(" %u", node->distance[j]);
		}
		putchar('\n');
	}
}

void doctor_show_table(const struct doctor_report *report, bool colour)
{
	unsigned n_warn = 0, n_missing = 0;

	for (unsigned g = 0; g < sizeof(groups) / sizeof(groups[0]); g++) {
		printf("%s%s\n", g ? "\n" : "", groups[g].title);
		for (unsigned i = 0; i < report->n_checks; i++) {
			const struct doctor_check *check = &report->check[i];

			if (strcmp(check->group, groups[g].group))
				continue;
			show_check(check, colour);
			n_warn += check->mark == DOCTOR_WARN;
			n_missing += check->mark == DOCTOR_MISSING;
			if (!strcmp(check->id, "numa.nodes"))
				show_nodes(&report->topo);
		}
	}
	if (n_missing)
		printf("\nThis host cannot run a machine: %u required thing%s missing, %u "
		       "warning%s.\n",
			n_missing, n_missing == 1 ? " is" : "s are", n_warn,
			n_warn == 1 ? "" : "s");
	else
		printf("\nThis host can run machines, with %u view%s of guest memory; %u "
		       "warning%s.\n",
			report->n_views, report->n_views == 1 ? "" : "s", n_warn,
			n_warn == 1 ? "" : "s");
}

/* Steals value. jansson's setters fail on NULL, so rc covers every allocation. */
static json_t *text_or_null(const char *text)
{
	json_t *value = text ? json_string(text) : json_null();

	return value ? value : json_null();
}

static json_t *check_json(const struct doctor_check *check, int *rc)
{
	json_t *object = json_object();

	mb_json_put(object, "id", json_string(check->id), rc);
	mb_json_put(object, "name", json_string(check->what), rc);
	mb_json_put(object, "status", json_string(marks[check->mark].word), rc);
	mb_json_put(object, "value", text_or_null(check->value), rc);
	mb_json_put(object, "since", text_or_null(check->since), rc);
	mb_json_put(object, "use", text_or_null(check->use), rc);
	mb_json_put(object, "cost", text_or_null(check->cost), rc);
	mb_json_put(object, "fix", text_or_null(check->fix), rc);
	return object;
}

static json_t *node_json(const struct mb_topology *topo, const struct mb_node *node, int *rc)
{
	json_t *object = json_object(), *distances = json_array(), *cpus = json_array();

	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &node->cpus) && json_array_append_new(cpus, json_integer(cpu)))
			*rc = -ENOMEM;
	for (unsigned i = 0; i < topo->n_nodes; i++)
		if (json_array_append_new(distances, json_integer(node->distance[i])))
			*rc = -ENOMEM;
	mb_json_put(object, "id", json_integer(node->id), rc);
	mb_json_put(object, "cpus", cpus, rc);
	mb_json_put(object, "mem_total_bytes", json_integer((json_int_t)node->mem_total_bytes), rc);
	mb_json_put(object, "mem_free_bytes", json_integer((json_int_t)node->mem_free_bytes), rc);
	mb_json_put(object, "distances", distances, rc);
	return object;
}

int doctor_show_json(const struct doctor_report *report)
{
	json_t *root = json_object(), *checks = json_array(), *nodes = json_array();
	int rc = 0;

	for (unsigned i = 0; i < report->n_checks; i++)
		if (json_array_append_new(checks, check_json(&report->check[i], &rc)))
			rc = -ENOMEM;
	for (unsigned i = 0; i < report->topo.n_nodes; i++)
		if (json_array_append_new(
			    nodes, node_json(&report->topo, &report->topo.node[i], &rc)))
			rc = -ENOMEM;
	mb_json_put(root, "format", json_integer(1), &rc);
	mb_json_put(root, "version", json_string(MB_VERSION), &rc);
	mb_json_put(root, "kernel", text_or_null(report->kernel), &rc);
	mb_json_put(root, "can_run", json_boolean(doctor_can_run(report)), &rc);
	mb_json_put(root, "views", json_integer(report->n_views), &rc);
	mb_json_put(root, "checks", checks, &rc);
	mb_json_put(root, "nodes", nodes, &rc);
	if (!rc)
		rc = cli_print_json(root);
	json_decref(root);
	return rc;
}
