// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/log.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/tracker.h>
#include <string.h>

#include "machine_internal.h"

static int remap(void *ctx, unsigned view, uint64_t offset, uint64_t len)
{
	struct mb_machine *machine = ctx;

	return mb_ram_remap(machine->ram, view, offset, len);
}

static int faults(void *ctx, struct mb_vcpu_faults *faults)
{
	struct mb_machine *machine = ctx;

	return mb_vcpus_faults(machine->vcpus, faults);
}

void mb_machine_views_of_turn(
	const struct mb_machine *machine, unsigned turn, uint8_t view[MB_MAX_GROUPS])
{
	for (unsigned g = 0; g < machine->n_groups; g++)
		view[g] = (uint8_t)mb_heat_view_of(g, turn, machine->n_views);
}

static void take_turn(void *ctx, unsigned turn)
{
	struct mb_machine *machine = ctx;
	uint8_t view[MB_MAX_GROUPS];

	mb_machine_views_of_turn(machine, turn, view);
	mb_vcpus_set_views(machine->vcpus, view);
}

int mb_machine_add_tracker(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_tracker_config config = {
		.name = machine->config.name,
		.host = machine->host,
		.ram_fd = mb_ram_fd(machine->ram),
		.ram_bytes = machine->config.memory_bytes,
		.n_views = machine->n_views,
		.n_groups = machine->n_groups,
		.take_turn = take_turn,
		.own_base = mb_ram_own_base(machine->ram),
		.n_vcpus = machine->config.n_vcpus,
		.guest_ppm = machine->config.track_guest_ppm,
		.cpu_ppm = machine->config.track_cpu_ppm,
		.features = MB_PAGEMAP_ALL,
		.remap = remap,
		.faults = faults,
		.copied = mb_machine_copied,
		.ctx = machine,
	};
	struct mb_error why;
	int rc;

	if (machine->config.track == MB_TRACK_OFF)
		return 0;
	/* Without them it counts by itself. */
	mb_vcpus_open_stats(machine->vcpus);
	for (unsigned v = 0; v < machine->n_views; v++)
		config.view_base[v] = mb_ram_view_base(machine->ram, v);
	rc = mb_tracker_create(&config, &machine->tracker, err);
	if (rc || machine->config.track != MB_TRACK_ON)
		return rc;
	rc = mb_tracker_start(machine->tracker, machine->by_itself ? &why : err);
	if (!rc || !machine->by_itself)
		return rc;
	/* Nobody has asked for it. */
	mb_log("%s: runs, but its memory stays where it is: %s", machine->config.name, why.text);
	machine->config.track = MB_TRACK_AUTO;
	return 0;
}

void mb_machine_remove_tracker(struct mb_machine *machine)
{
	mb_tracker_destroy(machine->tracker);
	machine->tracker = NULL;
	json_decref(machine->heat);
	machine->heat = NULL;
}
