// SPDX-License-Identifier: Apache-2.0
#include "sim.h"
#include "cli.h"
#include "parse.h"
#include "target.h"
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <mirrorball/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_MS	   86400000u
#define MAX_VCPUS  4096u
#define MAX_MEMORY (1ull << 50)
#define MIXED	   "mixed"

static int sim_main(const struct cli_command *command, int argc, char **argv);

enum {
	HEAD_LOAD,
	OPT_PROGRAM,
	OPT_MACHINES,
	OPT_CPUS,
	OPT_MEMORY,
	OPT_RATE,
	OPT_PERIOD,
	OPT_TRACE,
	HEAD_HOST,
	OPT_MACHINE,
	OPT_NODES,
	OPT_SPAN,
	OPT_VIEWS,
	OPT_START,
	HEAD_RUN,
	OPT_SECONDS,
	OPT_INTERVAL,
	OPT_SEED,
	OPT_JSON,
	OPT_SVG,
	OPT_HELP,
	OPT_VERSION,
	N_OPTIONS
};

static const struct cli_option options[] = {
	[HEAD_LOAD] = {NULL, NULL, "What runs"},
	[OPT_PROGRAM] = {"program", "NAME",
		"private, readshare, writeshare, phase, radix or idle, after splash's programs; "
		"mixed: "
		"each machine another one; repeatable; default: each of the six"},
	[OPT_MACHINES] = {"machines", "N", "machines on the host, 1 to 10000; default 1"},
	[OPT_CPUS] = {"cpus", "N", "vCPUs of each; default 8"},
	[OPT_MEMORY] = {"memory", "SIZE", "guest RAM of each, with unit; default 4G"},
	[OPT_RATE] = {"rate", "N", "accesses of a vCPU to memory, a second; default 5000000"},
	[OPT_PERIOD] = {"period", "S", "seconds between two changes of phase; default 30"},
	[OPT_TRACE] = {"trace", "FILE",
		"in place of a program, what 'mirrorball heat NAME --json --seconds 60' wrote; - "
		"for standard input"},
	[HEAD_HOST] = {NULL, NULL, "Where"},
	[OPT_MACHINE] = {"machine", "FILE[:NAME]",
		"a host described in JSON, as in bench/machines.json; default: a built-in one"},
	[OPT_NODES] = {"nodes", "N", "nodes of the built-in host, 1 to 64; default 2"},
	[OPT_SPAN] = {"span", "N", "nodes that the vCPUs of a machine are on; default: all"},
	[OPT_VIEWS] = {"views", "N", "views that the host's KVM gives, 1 to 8; default 2"},
	[OPT_START] = {"start", "WHERE",
		"first (with the first vCPU; the default), interleave, worst or best: where memory "
		"is "
		"at first; a trace says it itself"},
	[HEAD_RUN] = {NULL, NULL, "How long, and what comes out"},
	[OPT_SECONDS] = {"seconds", "S",
		"how long the machines run, in their time; default 60, or as long as the trace"},
	[OPT_INTERVAL] = {"interval", "S", "seconds between two decisions, 0.1 or more; default 1"},
	[OPT_SEED] = {"seed", "N", "of what the tracker sees by chance; default 1"},
	[OPT_JSON] = {"json", NULL, "print JSON for programs"},
	[OPT_SVG] = {"svg", "FILE", "draw local accesses over time; - for standard output"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

const struct cli_command cli_sim = {
	.name = "sim",
	.summary = "Simulate where memory would move, on hosts that are not at hand",
	.usage = "[OPTIONS]",
	.about = "Runs the policy that moves memory between nodes on a model of a host, with "
		 "recorded "
		 "or made-up machines, and tells how much of their memory accesses would be local "
		 "and how long they would take, beside other placements. Needs no KVM and no NUMA.",
	.options = options,
	.epilogue = "Exit status: 0 simulated, 1 a file could not be read or written, 2 wrong "
		    "command line, 128 + n ended by signal n.\nMore: man mirrorball-sim.",
	.main = sim_main,
};

struct asked {
	const char *program[SIM_MAX_RUNS];
	unsigned n_programs, n_machines, n_vcpus, rate, period_ms, n_nodes, span, views, seed;
	unsigned length_ms, step_ms;
	uint64_t memory_bytes;
	const char *trace, *machine, *svg;
	enum mb_sim_start start;
	bool json, help, version, seen[N_OPTIONS];
};

static int set_program(struct asked *asked, const char *value, struct mb_error *err)
{
	const char *names[SIM_MAX_RUNS + 2] = {MIXED}, *near;
	unsigned n = 1;

	for (const struct mb_sim_program *p = mb_sim_programs; p->name; p++)
		names[n++] = p->name;
	names[n] = NULL;
	if (strcmp(value, MIXED) && !mb_sim_program_find(value)) {
		near = cli_nearest(value, names);
		if (near)
			return mb_error_set(
				err, EINVAL, "no program '%s'; did you mean '%s'?", value, near);
		return mb_error_set(err, EINVAL, "no program '%s'; --help lists them", value);
	}
	if (asked->n_programs == SIM_MAX_RUNS)
		return mb_error_set(err, EINVAL, "more than %u programs", SIM_MAX_RUNS);
	asked->program[asked->n_programs++] = value;
	return 0;
}

static int set_start(struct asked *asked, const char *value, struct mb_error *err)
{
	static const char *const names[] = {[MB_SIM_FIRST] = "first",
		[MB_SIM_INTERLEAVE] = "interleave",
		[MB_SIM_WORST] = "worst",
		[MB_SIM_BEST] = "best"};

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(value, names[i])) {
			asked->start = (enum mb_sim_start)i;
			return 0;
		}
	return mb_error_set(
		err, EINVAL, "'%s' is none of first, interleave, worst and best", value);
}

static int set_file(const char **file, const char *value, struct mb_error *err)
{
	if (!*value)
		return mb_error_set(err, EINVAL, "the file has no name");
	*file = value;
	return 0;
}

static int set_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct asked *a = ctx;
	int rc;

	a->seen[index] = true;
	switch (index) {
	case OPT_PROGRAM:
		return set_program(a, value, err);
	case OPT_MACHINES:
		return cli_parse_unsigned(value, 1, SIM_MAX_MACHINES, &a->n_machines, err);
	case OPT_CPUS:
		return cli_parse_unsigned(value, 1, MAX_VCPUS, &a->n_vcpus, err);
	case OPT_MEMORY:
		rc = cli_parse_size(value, &a->memory_bytes, err);
		if (!rc && (a->memory_bytes > MAX_MEMORY || !a->memory_bytes ||
				   a->memory_bytes % MB_HEAT_BLOCK_BYTES))
			rc = mb_error_set(err, ERANGE,
				"'%s': a multiple of 2M is needed, of 1024T at most", value);
		return rc;
	case OPT_RATE:
		return cli_parse_unsigned(value, 1, 1000000000, &a->rate, err);
	case OPT_PERIOD:
		return cli_parse_seconds(value, 100, MAX_MS, &a->period_ms, err);
	case OPT_TRACE:
		return set_file(&a->trace, value, err);
	case OPT_MACHINE:
		return set_file(&a->machine, value, err);
	case OPT_NODES:
		return cli_parse_unsigned(value, 1, MB_MAX_NODES, &a->n_nodes, err);
	case OPT_SPAN:
		return cli_parse_unsigned(value, 1, MB_MAX_NODES, &a->span, err);
	case OPT_VIEWS:
		return cli_parse_unsigned(value, 1, MB_HEAT_VIEWS, &a->views, err);
	case OPT_START:
		return set_start(a, value, err);
	case OPT_SECONDS:
		return cli_parse_seconds(value, 100, MAX_MS, &a->length_ms, err);
	case OPT_INTERVAL:
		return cli_parse_seconds(value, 100, MAX_MS, &a->step_ms, err);
	case OPT_SEED:
		return cli_parse_unsigned(value, 0, UINT32_MAX, &a->seed, err);
	case OPT_JSON:
		a->json = true;
		break;
	case OPT_SVG:
		return set_file(&a->svg, value, err);
	case OPT_HELP:
		a->help = true;
		break;
	default:
		a->version = true;
	}
	return 0;
}

static bool is_repeatable(int index)
{
	return index == OPT_PROGRAM;
}

static int check(struct asked *a, struct mb_error *err)
{
	static const int not_with_trace[] = {OPT_PROGRAM, OPT_MACHINES, OPT_CPUS, OPT_MEMORY,
		OPT_RATE, OPT_PERIOD, OPT_SPAN, OPT_VIEWS, OPT_START};

	if (a->machine && a->seen[OPT_NODES])
		return mb_error_set(err, EINVAL,
			"--nodes: it is for the built-in host; --machine describes another one");
	for (unsigned i = 0; a->trace && i < sizeof(not_with_trace) / sizeof(int); i++)
		if (a->seen[not_with_trace[i]])
			return mb_error_set(err, EINVAL, "--%s: --trace says that itself",
				options[not_with_trace[i]].name);
	if (a->svg && !strcmp(a->svg, "-") && a->json)
		return mb_error_set(err, EINVAL,
			"--json and --svg - exclude each other: both are standard output");
	/* What the built-in host gets for them must be a number, too. */
	if (!a->trace && a->memory_bytes > UINT64_MAX / 8 / a->n_machines)
		return mb_error_set(err, EINVAL,
			"--memory: more than can be counted for %u machines", a->n_machines);
	if (!a->trace && a->memory_bytes / MB_HEAT_BLOCK_BYTES < a->n_vcpus)
		return mb_error_set(
			err, EINVAL, "--memory: 2M for each of the %u vCPUs at least", a->n_vcpus);
	if (a->length_ms && a->length_ms < a->step_ms)
		return mb_error_set(err, EINVAL, "--seconds: shorter than --interval");
	if (a->n_programs)
		return 0;
	for (const struct mb_sim_program *p = mb_sim_programs; p->name; p++)
		a->program[a->n_programs++] = p->name;
	return 0;
}

static int parse(struct asked *asked, int argc, char **argv, struct mb_error *err)
{
	struct cli_option_user user = {
		.set = set_option, .repeatable = is_repeatable, .ctx = asked};
	int first, rc = cli_options_walk(options, argc, argv, &user, &first, err);

	if (!rc && first < argc)
		rc = mb_error_set(
			err, EINVAL, "unexpected word '%s'; sim takes options only", argv[first]);
	return rc || asked->help || asked->version ? rc : check(asked, err);
}

/* ---- running ---- */

static volatile sig_atomic_t got_signal;

static void note_signal(int sig)
{
	got_signal = sig;
}

struct work {
	const struct asked *asked;
	struct mb_sim_config config;
	struct mb_sim_load *load;
	struct mb_sim_guest *guest;
	struct sim_trace *trace;
};

/* Where the description does not tell how much memory there is: enough. */
static void give_memory(struct mb_sim_host *host, uint64_t each, unsigned n_machines)
{
	uint64_t all = 0, need = each * n_machines, node;

	for (unsigned i = 0; i < host->n_nodes; i++)
		all += host->memory_bytes[i];
	if (all)
		return;
	/* Half as much again, and room on one node for all of one machine. */
	node = need / host->n_nodes + need / host->n_nodes / 2;
	node = node > each ? node : each;
	node += node / 4 + (1ull << 30);
	for (unsigned i = 0; i < host->n_nodes; i++)
		host->memory_bytes[i] = node / MB_HEAT_BLOCK_BYTES * MB_HEAT_BLOCK_BYTES;
}

static int run_loads(struct work *w, struct sim_report *report, struct sim_run *run,
	unsigned n_machines, struct mb_error *err)
{
	/* A description without memory gets what this run needs. */
	struct mb_sim_host *host = &report->host;

	give_memory(host, run->memory_bytes, n_machines);
	run->step_ms = w->asked->step_ms;
	return mb_sim_run(&w->config, host, w->load, n_machines, (volatile int *)&got_signal,
		&run->result, err);
}

static int run_trace(struct work *w, struct sim_report *report, struct mb_error *err)
{
	struct sim_run *run = &report->run[0];
	int rc = sim_trace_load(w->trace, &w->config, &report->host, run, &w->load[0], err);

	if (rc)
		return rc;
	w->config.start = MB_SIM_SEEN;
	report->n_views = w->config.n_views;
	report->n_runs = 1;
	return run_loads(w, report, run, 1, err);
}

static int run_program(
	struct work *w, struct sim_report *report, const char *name, struct mb_error *err)
{
	const struct asked *a = w->asked;
	struct sim_run *run = &report->run[report->n_runs];
	unsigned n_programs = 0;
	int rc;

	while (mb_sim_programs[n_programs].name)
		n_programs++;
	snprintf(run->name, sizeof(run->name), "%s", name);
	run->n_machines = a->n_machines;
	run->n_vcpus = a->n_vcpus;
	run->memory_bytes = a->memory_bytes;
	for (unsigned i = 0; i < a->n_machines; i++) {
		w->guest[i] = (struct mb_sim_guest){
			.program = strcmp(name, MIXED) ? mb_sim_program_find(name)
						       : &mb_sim_programs[i % n_programs],
			.memory_bytes = a->memory_bytes,
			.n_vcpus = a->n_vcpus,
			.span = a->span ? a->span : report->host.n_nodes,
			.first_node = i,
			.accesses_per_s = a->rate,
			.period_ns = a->period_ms * 1000000ull,
		};
		rc = mb_sim_guest_load(&w->guest[i], &report->host, &w->load[i], err);
		if (rc)
			return rc;
	}
	rc = run_loads(w, report, run, a->n_machines, err);
	report->n_runs += !rc;
	return rc;
}

/* As a machine does that nobody tells how many views to use. */
static void tell_nodes_apart(struct mb_sim_config *config, const struct mb_sim_host *host)
{
	unsigned n_views = config->n_views, n = 0;

	for (unsigned i = 0; i < host->n_nodes; i++)
		n += host->cpus[i] > 0;
	if (n > MB_HEAT_VIEWS)
		n = MB_HEAT_VIEWS;
	if (n_views < 2 || n <= n_views)
		return;
	config->n_views = n;
	config->n_turns = mb_heat_n_turns(n, n_views);
}

static int simulate(struct work *w, struct sim_report *report, struct mb_error *err)
{
	static const char *const starts[] = {
		[MB_SIM_FIRST] = "on the node of the first vCPU",
		[MB_SIM_INTERLEAVE] = "interleaved over all nodes",
		[MB_SIM_WORST] = "as far from its users as can be",
		[MB_SIM_BEST] = "with its users",
		[MB_SIM_SEEN] = "where it was recorded",
	};
	const struct asked *a = w->asked;
	int rc = 0;

	mb_sim_defaults(&w->config);
	w->config.n_views = report->n_views = a->views;
	w->config.length_ns = a->length_ms * 1000000ull;
	w->config.step_ns = a->step_ms * 1000000ull;
	w->config.start = a->start;
	w->config.seed = a->seed;
	if (a->trace)
		rc = sim_trace_read(a->trace, &w->trace, err);
	if (!rc && a->machine)
		rc = sim_machine_read(a->machine, report, err);
	else if (!rc)
		sim_machine_default(
			a->trace && !a->seen[OPT_NODES] ? sim_trace_n_nodes(w->trace) : a->n_nodes,
			report);
	if (rc)
		return rc;
	report->start = starts[a->trace ? MB_SIM_SEEN : a->start];
	if (a->trace)
		return run_trace(w, report, err);
	tell_nodes_apart(&w->config, &report->host);
	report->n_turns = w->config.n_turns;
	if (!w->config.length_ns)
		w->config.length_ns = 60000000000ull;
	for (unsigned i = 0; i < a->n_programs && !rc; i++)
		rc = run_program(w, report, a->program[i], err);
	return rc;
}

static int write_svg(
	struct cli_target *target, const struct sim_report *report, struct mb_error *err)
{
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);
	int rc = out ? sim_svg_draw(report, out) : -ENOMEM;

	if (out && fclose(out))
		rc = -ENOMEM;
	rc = rc ? rc : cli_target_write(target, text, len);
	free(text);
	return rc ? mb_error_set(err, -rc, "%s: %s; the picture was not written", target->name,
			    strerror(-rc))
		  : 0;
}

static int show(const struct asked *asked, const struct sim_report *report, struct mb_error *err)
{
	if (asked->svg && !strcmp(asked->svg, "-"))
		return 0;
	if (asked->json)
		return sim_show_json(report) ? mb_error_set(err, ENOMEM, "--json: out of memory")
					     : 0;
	setlocale(LC_CTYPE, "");
	sim_show(report, !strcmp(nl_langinfo(CODESET), "UTF-8"));
	return 0;
}

static int run_all(const struct asked *asked, struct sim_report *report, struct mb_error *err)
{
	struct work work = {.asked = asked,
		.load = calloc(asked->n_machines, sizeof(*work.load)),
		.guest = calloc(asked->n_machines, sizeof(*work.guest))};
	struct cli_target target;
	int rc = 0, close_rc;

	/* Before the work: who finds out after has lost it. */
	if (!work.load || !work.guest)
		rc = mb_error_set(err, ENOMEM, "out of memory");
	if (!rc && asked->svg)
		rc = cli_target_open(&target, asked->svg, err);
	if (!rc) {
		rc = simulate(&work, report, err);
		if (!rc && asked->svg)
			rc = write_svg(&target, report, err);
		if (asked->svg) {
			close_rc = cli_target_close(&target, !rc);
			if (!rc && close_rc)
				rc = mb_error_set(err, -close_rc,
					"%s: %s; the picture was not written", target.name,
					strerror(-close_rc));
		}
	}
	rc = rc ? rc : show(asked, report, err);
	sim_trace_destroy(work.trace);
	free(work.load);
	free(work.guest);
	return rc;
}

static int sim_main(const struct cli_command *command, int argc, char **argv)
{
	struct asked asked = {.n_machines = 1,
		.n_vcpus = 8,
		.rate = 5000000,
		.period_ms = 30000,
		.n_nodes = 2,
		.views = 2,
		.seed = 1,
		.step_ms = 1000,
		.memory_bytes = 4ull << 30};
	struct sigaction note = {.sa_handler = note_signal};
	struct sim_report *report;
	struct mb_error err;
	int rc, status = CLI_OK;

	if (parse(&asked, argc, argv, &err))
		return cli_usage_error(command, &err);
	if (asked.help || asked.version) {
		if (asked.help)
			cli_command_help(command, stdout);
		else
			cli_version(stdout);
		return cli_flush();
	}
	report = calloc(1, sizeof(*report));
	if (!report) {
		mb_log("sim: out of memory");
		return CLI_FAILED;
	}
	/* A picture that is begun is taken away first. A trace from a terminal ends at once. */
	if (asked.svg) {
		sigaction(SIGINT, &note, NULL);
		sigaction(SIGTERM, &note, NULL);
		sigaction(SIGHUP, &note, NULL);
	}
	rc = run_all(&asked, report, &err);
	if (got_signal)
		status = CLI_SIGNAL_BASE + got_signal;
	else if (rc)
		status = CLI_FAILED;
	if (status == CLI_FAILED)
		mb_log("sim: %s", err.text);
	if (status == CLI_OK)
		status = cli_flush();
	for (unsigned i = 0; i < report->n_runs; i++)
		mb_sim_result_finish(&report->run[i].result);
	free(report);
	return status;
}
