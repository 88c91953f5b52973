// SPDX-License-Identifier: Apache-2.0
#include "snapshot_internal.h"

#include <errno.h>
#include <limits.h>
#include <mirrorball/blk.h>
#include <mirrorball/heat.h>
#include <mirrorball/ram.h>
#include <mirrorball/virtio.h>
#include <stdlib.h>
#include <string.h>

/* The machine's config in a snapshot: what it takes to build one that is the same. */
#define MAX_MEMORY (8ull << 40)

/* ---- writing ---- */

/* It may be restored from another directory. */
static void put_path(struct mb_state_out *out, const char *path)
{
	char real[PATH_MAX];

	mb_state_put_text(out, path && *path && realpath(path, real) ? real : path);
}

static void put_disk(struct mb_state_out *out, const struct mb_disk_config *disk)
{
	put_path(out, disk->path);
	mb_state_put_u8(out, disk->readonly);
	mb_state_put_u8(out, disk->buffered);
	mb_state_put_u8(out, disk->cow);
	put_path(out, disk->cow_dir);
	mb_state_put_text(out, disk->serial);
	mb_state_put_u32(out, disk->n_queues);
}

static void put_nic(struct mb_state_out *out, const struct mb_nic_config *nic)
{
	unsigned n = 0;

	mb_state_put_u8(out, nic->passt);
	mb_state_put_text(out, nic->tap_name);
	while (nic->passt && nic->passt_args && nic->passt_args[n])
		n++;
	mb_state_put_u32(out, n);
	for (unsigned i = 0; i < n; i++)
		mb_state_put_text(out, nic->passt_args[i]);
	mb_state_put(out, nic->mac, sizeof(nic->mac));
	mb_state_put_u32(out, nic->n_pairs);
}

/* What is done with its memory. On which nodes that is depends on the host; and a file does not put
 * a machine into a trust group. */
static void put_memory(struct mb_state_out *out, const struct mb_machine_config *config)
{
	mb_state_put_u64(out, config->memory_bytes);
	mb_state_put_u32(out, config->n_views);
	mb_state_put_u8(out, (uint8_t)config->track);
	mb_state_put_u8(out, (uint8_t)config->migrate);
	mb_state_put_u64(out, config->replica_bytes);
	mb_state_put_u8(out, config->no_share);
	mb_state_put_u8(out, config->no_reporting);
}

void mb_snapshot_put_config(struct mb_state_out *out, const struct mb_machine_config *config)
{
	mb_state_begin(out, "machine", MB_SNAPSHOT_CONFIG_VERSION);
	mb_state_put_text(out, config->name);
	mb_state_put_u32(out, config->n_vcpus);
	put_memory(out, config);
	mb_state_put_text(out, config->splash);
	put_path(out, config->kernel_path);
	put_path(out, config->initrd_path);
	mb_state_put_text(out, config->cmdline);
	mb_state_put_u8(out, (uint8_t)config->console);
	mb_state_put_u8(out, config->no_reboot);
	mb_state_put_u32(out, config->n_disks);
	for (unsigned i = 0; i < config->n_disks; i++)
		put_disk(out, &config->disk[i]);
	mb_state_put_u32(out, config->n_nics);
	for (unsigned i = 0; i < config->n_nics; i++)
		put_nic(out, &config->nic[i]);
	mb_state_put_u32(out, config->n_pmems);
	for (unsigned i = 0; i < config->n_pmems; i++)
		put_path(out, config->pmem[i]);
	mb_state_end(out);
}

/* ---- reading ---- */

static const char *get_text(struct mb_snapshot *snapshot, struct mb_state_in *part)
{
	char *text = mb_state_get_text(part);

	if (!text)
		return NULL;
	if (snapshot->n_texts == MB_SNAPSHOT_MAX_STRINGS) {
		part->bad = true;
		free(text);
		return NULL;
	}
	return snapshot->text[snapshot->n_texts++] = text;
}

static int get_disk(struct mb_snapshot *snapshot, struct mb_state_in *part,
	struct mb_disk_config *disk, struct mb_error *err)
{
	disk->path = get_text(snapshot, part);
	disk->readonly = mb_state_get_bool(part);
	disk->buffered = mb_state_get_bool(part);
	disk->cow = mb_state_get_bool(part);
	disk->cow_dir = get_text(snapshot, part);
	disk->serial = get_text(snapshot, part);
	disk->n_queues = mb_state_get_u32(part);
	if (part->bad)
		return 0; /* told at the end */
	/* Nothing that a snapshot says makes a machine write to a file that there was before. */
	if (!disk->path || disk->readonly == disk->cow || mb_blk_is_uri(disk->path))
		return mb_state_refuse(part, err, "has a disk that is neither ro nor cow");
	if (!disk->n_queues || disk->n_queues > MB_VIRTIO_MAX_QUEUES)
		return mb_state_refuse(part, err, "has a disk with too many queues");
	return 0;
}

static int get_nic(
	struct mb_snapshot *snapshot, struct mb_state_in *part, unsigned i, struct mb_error *err)
{
	struct mb_nic_config *nic = &snapshot->config.nic[i];
	unsigned n;

	nic->tap_fd = -1;
	nic->passt = mb_state_get_bool(part);
	nic->tap_name = get_text(snapshot, part);
	n = mb_state_get_u32(part);
	if (n > MB_SNAPSHOT_MAX_ARGS)
		return mb_state_refuse(part, err, "has too many arguments for passt");
	for (unsigned k = 0; k < n; k++) {
		snapshot->passt_args[i][k] = get_text(snapshot, part);
		part->bad |= !snapshot->passt_args[i][k];
	}
	nic->passt_args = snapshot->passt_args[i];
	mb_state_get(part, nic->mac, sizeof(nic->mac));
	nic->n_pairs = mb_state_get_u32(part);
	if (part->bad)
		return 0;
	if (nic->passt == (nic->tap_name != NULL) || !nic->n_pairs ||
		nic->n_pairs > (MB_VIRTIO_MAX_QUEUES - 1) / 2)
		return mb_state_refuse(part, err, "has a network that cannot be");
	return mb_snapshot_check_passt(nic->passt_args, err);
}

static int get_devices(struct mb_snapshot *snapshot, struct mb_state_in *part, struct mb_error *err)
{
	struct mb_machine_config *config = &snapshot->config;
	int rc = 0;

	config->n_disks = mb_state_get_u32(part);
	if (config->n_disks > MB_MAX_DISKS)
		return mb_state_refuse(part, err, "has too many disks");
	for (unsigned i = 0; i < config->n_disks && !rc; i++)
		rc = get_disk(snapshot, part, &config->disk[i], err);
	if (rc)
		return rc;
	config->n_nics = mb_state_get_u32(part);
	if (config->n_nics > MB_MAX_NETS)
		return mb_state_refuse(part, err, "has too many networks");
	for (unsigned i = 0; i < config->n_nics && !rc; i++)
		rc = get_nic(snapshot, part, i, err);
	if (rc)
		return rc;
	config->n_pmems = mb_state_get_u32(part);
	if (config->n_pmems > MB_MAX_PMEMS)
		return mb_state_refuse(part, err, "has too many pmem devices");
	for (unsigned i = 0; i < config->n_pmems; i++) {
		config->pmem[i] = get_text(snapshot, part);
		part->bad |= !config->pmem[i];
	}
	return 0;
}

static void get_memory(struct mb_snapshot *snapshot, struct mb_state_in *part)
{
	struct mb_machine_config *config = &snapshot->config;

	config->memory_bytes = mb_state_get_u64(part);
	config->n_views = mb_state_get_u32(part);
	config->track = mb_state_get_u8(part);
	config->migrate = mb_state_get_u8(part);
	config->replica_bytes = mb_state_get_u64(part);
	config->no_share = mb_state_get_bool(part);
	config->no_reporting = mb_state_get_bool(part);
	if (config->n_views != 1)
		return;
	/* It will be a private mapping: nothing may take it out of page tables to look who puts
	 * it back. */
	config->track = MB_TRACK_OFF;
	config->migrate = MB_MIGRATE_OFF;
	config->replica_bytes = 0;
	config->no_share = true;
}

static int check_memory(
	const struct mb_machine_config *config, struct mb_state_in *part, struct mb_error *err)
{
	bool must_track;

	if (!config->memory_bytes || config->memory_bytes % MB_RAM_ALIGN ||
		config->memory_bytes > MAX_MEMORY)
		return mb_state_refuse(part, err, "has an impossible size of memory");
	if (!config->n_views || config->n_views > MB_HEAT_VIEWS)
		return mb_state_refuse(part, err, "has an impossible number of views");
	must_track = config->migrate == MB_MIGRATE_ON || config->migrate == MB_MIGRATE_STORM ||
		     (config->replica_bytes && config->replica_bytes != MB_REPLICAS_AUTO);
	if (config->track > MB_TRACK_OFF || config->migrate > MB_MIGRATE_STORM ||
		(must_track && config->track != MB_TRACK_ON))
		return mb_state_refuse(part, err, "manages its memory in no way there is");
	return 0;
}

static int check(
	const struct mb_machine_config *config, struct mb_state_in *part, struct mb_error *err)
{
	if (!config->name || !*config->name || strchr(config->name, '/'))
		return mb_state_refuse(part, err, "has no name that is one");
	if (!config->n_vcpus || config->n_vcpus > MB_MAX_VCPUS)
		return mb_state_refuse(part, err, "has an impossible number of vCPUs");
	if (!config->splash == !config->kernel_path || !config->cmdline)
		return mb_state_refuse(part, err, "has no guest");
	if (config->console > MB_CONSOLE_OFF)
		return mb_state_refuse(part, err, "has an unknown console");
	return check_memory(config, part, err);
}

int mb_snapshot_read_config(
	struct mb_snapshot *snapshot, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_machine_config *config = &snapshot->config;
	struct mb_state_in part;
	int rc = mb_state_enter(in, "machine", MB_SNAPSHOT_CONFIG_VERSION, &part, err);

	if (rc)
		return rc;
	config->name = get_text(snapshot, &part);
	config->n_vcpus = mb_state_get_u32(&part);
	get_memory(snapshot, &part);
	config->splash = get_text(snapshot, &part);
	config->kernel_path = get_text(snapshot, &part);
	config->initrd_path = get_text(snapshot, &part);
	config->cmdline = get_text(snapshot, &part);
	config->console = mb_state_get_u8(&part);
	config->no_reboot = mb_state_get_bool(&part);
	rc = get_devices(snapshot, &part, err);
	if (!rc)
		rc = mb_state_leave(&part, err);
	if (!rc)
		rc = check(config, &part, err);
	if (rc)
		return rc;
	config->in_fd = config->out_fd = -1;
	config->snapshot = snapshot;
	return 0;
}
