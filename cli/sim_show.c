// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "parse.h"
#include "sim.h"
#include "units.h"
#include <errno.h>
#include <math.h>
#include <mirrorball/json.h>
#include <string.h>

#define SPARK_CELLS 24

const char *const sim_case_names[MB_SIM_CASES] = {
	[MB_SIM_POLICY] = "policy",
	[MB_SIM_NONE] = "no management",
	[MB_SIM_INTERLEAVED] = "interleave",
	[MB_SIM_STATIC_ORACLE] = "best that stays",
	[MB_SIM_DYNAMIC_ORACLE] = "best that follows",
	[MB_SIM_WORST_STATIC] = "worst that stays",
};

const char *const sim_case_keys[MB_SIM_CASES] = {
	[MB_SIM_POLICY] = "policy",
	[MB_SIM_NONE] = "none",
	[MB_SIM_INTERLEAVED] = "interleave",
	[MB_SIM_STATIC_ORACLE] = "oracle_static",
	[MB_SIM_DYNAMIC_ORACLE] = "oracle_dynamic",
	[MB_SIM_WORST_STATIC] = "worst",
};

/* ---- for people ---- */

/* With the time of its moves. */
static double seconds_of(const struct sim_run *run, enum mb_sim_case which)
{
	return run->result.s[which] + (which == MB_SIM_POLICY ? run->result.moving_s : 0);
}

static void show_ratio(const struct sim_run *run, enum mb_sim_case which)
{
	double best = run->result.s[MB_SIM_DYNAMIC_ORACLE];

	if (best > 0)
		printf("%7.3f", seconds_of(run, which) / best);
	else
		printf("%7s", "-");
}

/* Mean of the steps of a cell, in eighths. */
static void show_spark(const struct sim_run *run, bool utf8)
{
	static const char *const blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
	unsigned n = run->result.n_steps, cells = n < SPARK_CELLS ? n : SPARK_CELLS;

	for (unsigned c = 0; c < cells; c++) {
		double sum = 0, known = 0, mean;
		unsigned level;

		for (unsigned i = c * n / cells; i < (c + 1) * n / cells; i++) {
			float x = run->result.series[MB_SIM_POLICY][i];

			if (isfinite(x)) {
				sum += (double)x;
				known++;
			}
		}
		mean = known > 0 ? sum / known : 0;
		level = (unsigned)fmin(mean * (utf8 ? 8 : 10), utf8 ? 7 : 9);
		if (known < 1)
			putchar(' ');
		else if (utf8)
			fputs(blocks[level], stdout);
		else
			putchar('0' + (int)level);
	}
	printf("%*s", (int)(SPARK_CELLS - cells), "");
}

/* What became of most of memory. */
static void show_why(const struct sim_run *run)
{
	const double *bytes = run->result.why_bytes;
	double all = 0;
	bool told[MB_WHY_COUNT] = {false};
	const char *sep = "            ";

	for (unsigned w = 0; w < MB_WHY_COUNT; w++)
		all += bytes[w];
	for (unsigned k = 0; k < 5 && all > 0; k++) {
		unsigned most = MB_WHY_COUNT;

		for (unsigned w = 0; w < MB_WHY_COUNT; w++)
			if (!told[w] && (most == MB_WHY_COUNT || bytes[w] > bytes[most]))
				most = w;
		if (bytes[most] < all / 1000)
			break;
		told[most] = true;
		printf("%s%s %.1f %%", sep, mb_why_name((enum mb_why)most),
			100 * bytes[most] / all);
		sep = ", ";
	}
	if (all > 0)
		putchar('\n');
}

static void show_run(const struct sim_run *run, bool utf8)
{
	const struct mb_sim_result *r = &run->result;
	char name[sizeof(run->name)], moved[32];

	snprintf(name, sizeof(name), "%s", run->name);
	mb_error_make_printable(name);
	cli_format_bytes(r->moved_bytes, moved, sizeof(moved));
	printf("%-11s", name);
	show_ratio(run, MB_SIM_POLICY);
	show_ratio(run, MB_SIM_NONE);
	show_ratio(run, MB_SIM_INTERLEAVED);
	show_ratio(run, MB_SIM_STATIC_ORACLE);
	show_ratio(run, MB_SIM_WORST_STATIC);
	printf("  %4.0f %% %4.0f %%  ", 100 * r->local[MB_SIM_POLICY], 100 * r->local[MB_SIM_NONE]);
	show_spark(run, utf8);
	printf("  %7s %7llu %8.2f s\n", moved, (unsigned long long)r->n_moves, r->moving_s);
	show_why(run);
}

void sim_show(const struct sim_report *report, bool utf8)
{
	const struct sim_run *first = &report->run[0];
	char memory[32];

	cli_format_bytes(first->memory_bytes, memory, sizeof(memory));
	printf("Modelled, not measured. Host: %s", report->host_name);
	if (*report->host_source)
		printf(" (%s)", report->host_source);
	printf("; %u view%s%s.\n%u machine%s", report->n_views, report->n_views == 1 ? "" : "s",
		report->n_turns > 1 ? ", by turns" : "", first->n_machines,
		first->n_machines == 1 ? "" : "s");
	if (first->n_vcpus)
		printf(" of %u vCPU%s and %s", first->n_vcpus, first->n_vcpus == 1 ? "" : "s",
			memory);
	else
		printf(" of %s", memory);
	printf("; %g s in steps of %g s; memory begins %s.\n\n",
		first->result.n_steps * first->step_ms / 1e3, first->step_ms / 1e3, report->start);
	puts("            time in memory; 1 is best: each page  local accesses                    "
	     "      moves of the policy\n"
	     "            with its users in every step          policy   none  policy over time   "
	     "        bytes   count      time\n"
	     "             policy   none  inter  stays  worst");
	for (unsigned i = 0; i < report->n_runs; i++)
		show_run(&report->run[i], utf8);
	puts("\ninter: interleaved over all nodes. stays: the best placement without moves. worst: "
	     "the "
	     "worst one.\nThe policy's time has that of its moves in it. Below each line: what the "
	     "policy said of how much memory.");
}

/* ---- for programs ---- */

static json_t *numbers(const double *x, unsigned n, int *rc)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < n; i++)
		mb_json_append(list, json_real(x[i]), rc);
	return list;
}

static json_t *host_json(const struct sim_report *report, int *rc)
{
	const struct mb_sim_host *host = &report->host;
	json_t *o = json_object(), *ns = json_array(), *cpus = json_array(), *memory = json_array();

	for (unsigned i = 0; i < host->n_nodes; i++) {
		mb_json_append(ns, numbers(host->ns[i], host->n_nodes, rc), rc);
		mb_json_append(cpus, json_integer(host->cpus[i]), rc);
		mb_json_append(memory, json_integer((json_int_t)host->memory_bytes[i]), rc);
	}
	mb_json_put(o, "name", json_string(report->host_name), rc);
	mb_json_put(o, "source", json_string(report->host_source), rc);
	mb_json_put(o, "ns", ns, rc);
	mb_json_put(o, "cpus", cpus, rc);
	mb_json_put(o, "memory_bytes", memory, rc);
	mb_json_put(o, "move_page_ns", json_real(host->move_page_ns), rc);
	mb_json_put(o, "move_block_ns", json_real(host->move_block_ns), rc);
	return o;
}

static json_t *case_json(const struct mb_sim_result *r, enum mb_sim_case which, int *rc)
{
	json_t *o = json_object(), *series = json_array();

	for (unsigned i = 0; i < r->n_steps; i++) {
		float x = r->series[which][i];

		mb_json_append(series, isfinite(x) ? json_real((double)x) : json_null(), rc);
	}
	mb_json_put(o, "memory_s", json_real(r->s[which]), rc);
	mb_json_put(o, "local", json_real(r->local[which]), rc);
	mb_json_put(o, "busy", json_real(r->busy[which]), rc);
	mb_json_put(o, "local_over_time", series, rc);
	return o;
}

static json_t *run_json(const struct sim_run *run, int *rc)
{
	const struct mb_sim_result *r = &run->result;
	json_t *o = json_object(), *cases = json_object(), *why = json_object(),
	       *moved = json_array();

	for (unsigned c = 0; c < MB_SIM_CASES; c++)
		mb_json_put(cases, sim_case_keys[c], case_json(r, (enum mb_sim_case)c, rc), rc);
	for (unsigned w = 0; w < MB_WHY_COUNT; w++)
		if (r->why_bytes[w] > 0)
			mb_json_put(
				why, mb_why_name((enum mb_why)w), json_real(r->why_bytes[w]), rc);
	for (unsigned i = 0; i < r->n_steps; i++)
		mb_json_append(moved, json_integer((json_int_t)r->step_moved_bytes[i]), rc);
	mb_json_put(o, "name", json_string(run->name), rc);
	mb_json_put(o, "machines", json_integer(run->n_machines), rc);
	mb_json_put(o, "cpus", json_integer(run->n_vcpus), rc);
	mb_json_put(o, "memory_bytes", json_integer((json_int_t)run->memory_bytes), rc);
	mb_json_put(o, "step_ms", json_integer(run->step_ms), rc);
	mb_json_put(o, "steps", json_integer(r->n_steps), rc);
	mb_json_put(o, "accesses", json_real(r->accesses), rc);
	mb_json_put(o, "cases", cases, rc);
	mb_json_put(o, "moves", json_integer((json_int_t)r->n_moves), rc);
	mb_json_put(o, "moved_bytes", json_integer((json_int_t)r->moved_bytes), rc);
	mb_json_put(o, "moved_bytes_over_time", moved, rc);
	mb_json_put(o, "moving_s", json_real(r->moving_s), rc);
	mb_json_put(o, "extents", json_integer(r->n_extents), rc);
	mb_json_put(o, "why_bytes", why, rc);
	return o;
}

int sim_show_json(const struct sim_report *report)
{
	json_t *o = json_object(), *runs = json_array();
	int rc = 0;

	for (unsigned i = 0; i < report->n_runs; i++)
		mb_json_append(runs, run_json(&report->run[i], &rc), &rc);
	mb_json_put(o, "host", host_json(report, &rc), &rc);
	mb_json_put(o, "views", json_integer(report->n_views), &rc);
	mb_json_put(o, "runs", runs, &rc);
	rc = rc ? rc : cli_print_json(o);
	json_decref(o);
	return rc;
}
