// SPDX-License-Identifier: Apache-2.0
#include <mirrorball/json.h>
#include <mirrorball/snapshot.h>
#include <stdlib.h>

#include "machine_internal.h"

/* What disks with a base, and memory from a snapshot, have in common with other machines' (share.h). It
 * is worth less than the machine: what fails is said, and the machine runs. */

struct mb_machine_base {
	struct mb_machine *machine;
	unsigned base; /* its number */
	bool known;    /* atomic */
};

static bool has_base(const struct mb_disk_config *disk)
{
	return disk->cow || disk->overlay;
}

bool mb_machine_has_base(const struct mb_machine *machine)
{
	bool has = machine->config.snapshot && machine->n_views > 1;

	for (unsigned i = 0; i < machine->config.n_disks; i++)
		has |= has_base(&machine->config.disk[i]);
	return has;
}

static bool shares_bases(const struct mb_machine *machine)
{
	return mb_machine_has_base(machine) && !machine->config.no_share && !machine->config.dry;
}

bool mb_machine_shares(const struct mb_machine *machine)
{
	return shares_bases(machine) || mb_machine_shares_content(machine);
}

static void say(const struct mb_machine *machine, const struct mb_error *why)
{
	mb_log("%s: runs, but what it has in common with other machines is not shared: %s",
		machine->config.name, why->text);
}

static void nodes(void *ctx, unsigned node[MB_HEAT_VIEWS])
{
	mb_machine_share_nodes(ctx, node);
}

/* The last of the bases is a snapshot's memory. */
static struct mb_machine_base *of_snapshot(struct mb_machine *machine)
{
	return &machine->bases[machine->config.n_disks];
}

static void add_base(struct mb_machine *machine, struct mb_machine_base *base, int fd)
{
	struct mb_error why;

	if (mb_share_add_base(machine->share, fd, &base->base, &why))
		say(machine, &why);
	else
		__atomic_store_n(&base->known, true, __ATOMIC_RELEASE);
}

int mb_machine_add_share(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_share_config config = {
		.replicas = machine->replicas,
		.own_base = mb_ram_own_base(machine->ram),
		.ram_bytes = machine->config.memory_bytes,
		.n_views = machine->n_views,
		.nodes = nodes,
		.ctx = machine,
		.start = true,
	};
	struct mb_error why;

	if (!shares_bases(machine) || !machine->replicas)
		return 0;
	machine->bases = calloc(machine->config.n_disks + 1, sizeof(*machine->bases));
	if (!machine->bases)
		return mb_error_set(err, ENOMEM, "sharing: out of memory");
	if (mb_share_create(&config, &machine->share, &why))
		say(machine, &why);
	else if (machine->config.snapshot)
		add_base(machine, of_snapshot(machine), mb_snapshot_ram_fd(machine->config.snapshot));
	return 0;
}

static bool read_base(void *ctx, uint64_t at, void *buf, uint64_t len)
{
	struct mb_machine_base *base = ctx;

	return __atomic_load_n(&base->known, __ATOMIC_ACQUIRE) &&
	       mb_share_read(base->machine->share, base->base, at, buf, len);
}

static void saw_base(
	void *ctx, uint64_t at, const struct iovec *iov, unsigned n_iov, uint64_t len)
{
	struct mb_machine_base *base = ctx;

	if (__atomic_load_n(&base->known, __ATOMIC_ACQUIRE))
		mb_share_saw(base->machine->share, base->base, at, iov, n_iov, len);
}

static const struct mb_blk_base_ops base_ops = {.read = read_base, .saw = saw_base};

void mb_machine_share_disk(
	struct mb_machine *machine, unsigned disk, struct mb_blk_config *config)
{
	if (!machine->share || !has_base(&machine->config.disk[disk]))
		return;
	machine->bases[disk].machine = machine;
	config->base_ops = &base_ops;
	config->base_ctx = &machine->bases[disk];
}

int mb_machine_share_base(struct mb_machine *machine, unsigned disk, struct mb_error *err)
{
	int fd = mb_blk_base_fd(machine->blk[disk]);

	if (machine->share && fd >= 0)
		add_base(machine, &machine->bases[disk], fd);
	return 0;
}

void mb_machine_saw_snapshot(struct mb_machine *machine, uint64_t offset, uint64_t len)
{
	struct iovec iov = {
		.iov_base = (char *)mb_ram_own_base(machine->ram) + offset, .iov_len = len};

	if (machine->share && of_snapshot(machine)->known)
		mb_share_saw(machine->share, of_snapshot(machine)->base, offset, &iov, 1, len);
}

int mb_machine_start_share(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_error why;

	mb_machine_topology(machine);
	if (machine->share && mb_share_start(machine->share, &why))
		say(machine, &why);
	return 0;
}

void mb_machine_stop_share(struct mb_machine *machine)
{
	mb_share_stop(machine->share);
}

void mb_machine_remove_share(struct mb_machine *machine)
{
	mb_share_destroy(machine->share);
	machine->share = NULL;
	free(machine->bases);
	machine->bases = NULL;
}

json_t *mb_machine_share_json(struct mb_machine *machine, int *rc)
{
	json_t *o = json_object();
	struct mb_share_stats s;

	mb_json_put(o, "content", mb_machine_content_json(machine, rc), rc);
	if (!machine->share) {
		mb_json_put(o, "state",
			json_string(shares_bases(machine) ? "not possible on this host"
				    : machine->config.no_share ? "off"
							       : "off without a disk that has a base"),
			rc);
		return o;
	}
	mb_share_stats(machine->share, &s);
	mb_json_put(o, "state", json_string(s.state), rc);
	mb_json_put_number(o, "shared_bytes", s.merged_bytes, rc);
	mb_json_put_number(o, "seen_bytes", s.seen_bytes, rc);
	mb_json_put_number(o, "common_bytes", s.common_bytes, rc);
	mb_json_put_number(o, "were_shared_bytes", s.were_merged_bytes, rc);
	mb_json_put_number(o, "differed_bytes", s.differed_bytes, rc);
	mb_json_put_number(o, "dropped_bytes", s.dropped_bytes, rc);
	return o;
}
