// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/control.h>
#include <mirrorball/json.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "machine_internal.h"

/*
 * What a machine says of itself through its control socket. On the main loop, which may be waiting
 * for a vCPU: so is then the client.
 */

static uint64_t resident_bytes(void)
{
	unsigned long long resident = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (!f)
		return 0;
	if (fscanf(f, "%*u %llu", &resident) != 1)
		resident = 0;
	fclose(f);
	return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t cpu_ms(void)
{
	return mb_clock_ns(CLOCK_PROCESS_CPUTIME_ID) / 1000000;
}

/* "splash radix", or the kernel's path; a path need not be UTF-8, and JSON is. */
static void guest_text(const struct mb_machine *machine, char *text, size_t len)
{
	const char *splash = machine->config.splash;

	if (splash)
		snprintf(text, len, "splash %.*s", (int)strcspn(splash, " "), splash);
	else
		snprintf(text, len, "%s", machine->config.kernel_path);
	mb_error_make_printable(text);
}

void mb_machine_put_name(const struct mb_machine *machine, json_t *object, int *rc)
{
	char name[256];

	snprintf(name, sizeof(name), "%s", machine->config.name);
	mb_error_make_printable(name);
	mb_json_put(object, "name", json_string(name), rc);
	mb_json_put_number(object, "pid", (uint64_t)getpid(), rc);
}

uint64_t mb_machine_time_ms(const struct mb_machine *machine, uint64_t ns)
{
	uint64_t first_ns = mb_vcpus_first_run_ns(machine->vcpus);

	return first_ns && ns > first_ns ? (ns - first_ns) / 1000000 : 0;
}

static int answer_stat(void *ctx, uint64_t connection, json_t **answer, struct mb_error *err)
{
	struct mb_machine *machine = ctx;
	const struct mb_machine_config *config = &machine->config;
	uint64_t n_exits = 0;
	char guest[4096];
	json_t *stat = json_object();
	int rc = 0;

	guest_text(machine, guest, sizeof(guest));
	for (unsigned i = 0; i < config->n_vcpus; i++)
		n_exits += mb_vcpu_n_exits(mb_vcpus_at(machine->vcpus, i));
	mb_machine_put_name(machine, stat, &rc);
	mb_json_put(stat, "state", json_string(machine->paused ? "paused" : "running"), &rc);
	mb_json_put(stat, "guest", json_string(guest), &rc);
	mb_json_put_number(stat, "cpus", config->n_vcpus, &rc);
	mb_json_put_number(stat, "memory_bytes", config->memory_bytes, &rc);
	mb_json_put_number(stat, "views", machine->n_views, &rc);
	mb_json_put_number(stat, "uptime_ms", mb_machine_time_ms(machine, mb_now_ns()), &rc);
	mb_json_put_number(stat, "exits", n_exits, &rc);
	mb_json_put_number(stat, "resets", machine->outcome.n_resets, &rc);
	mb_json_put_number(stat, "resident_bytes", resident_bytes(), &rc);
	mb_json_put_number(stat, "cpu_ms", cpu_ms(), &rc);
	mb_json_put(stat, "tracker", mb_machine_tracker_json(machine), &rc);
	mb_json_put(stat, "migration", mb_machine_migration_json(machine), &rc);
	mb_json_put(stat, "replicas", mb_machine_replicas_json(machine, &rc), &rc);
	mb_json_put(stat, "sharing", mb_machine_share_json(machine, &rc), &rc);
	mb_json_put(stat, "free_page_reporting", mb_machine_reporting_json(machine, &rc), &rc);
	if (rc) {
		json_decref(stat);
		return mb_error_set(err, ENOMEM, "out of memory");
	}
	*answer = stat;
	return 0;
}

static const struct mb_control_request requests[] = {
	{.name = "stat", .answer = answer_stat},
	{.name = "heat", .answer = mb_machine_answer_heat},
	{.name = "numa", .answer = mb_machine_answer_numa},
	{.name = "snapshot", .answer_path = mb_machine_answer_snapshot},
	{0},
};

int mb_machine_add_control(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_control_config config = {
		.loop = machine->loop,
		.name = machine->config.name,
		.requests = requests,
		.closed = mb_machine_heat_closed,
		.ctx = machine,
	};
	struct mb_error why;

	/* It is for looking at the machine, which runs as well when nobody can. */
	if (!machine->config.no_control && mb_control_create(&config, &machine->control, &why))
		mb_log("%s: runs, but 'mirrorball ps' cannot see it: %s", machine->config.name,
			why.text);
	return 0;
}
