// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine_internal.h"

#define MAX_DISK_QUEUES 8u

static void on_poweroff(void *ctx)
{
	mb_machine_ask(ctx, MB_ASK_POWEROFF);
}

static void on_reset(void *ctx)
{
	mb_machine_ask(ctx, MB_ASK_RESET);
}

static void on_panic(void *ctx)
{
	struct mb_machine *machine = ctx;

	mb_log_guest(&machine->guest_says, "%s: the guest's kernel panicked", machine->config.name);
	mb_machine_ask(machine, MB_ASK_CRASH);
}

static const struct mb_power_ops power_ops = {.poweroff = on_poweroff, .reset = on_reset};
static void on_crash_loaded(void *ctx)
{
	struct mb_machine *machine = ctx;

	mb_log_guest(&machine->guest_says,
		"%s: the guest's kernel panicked; its crash kernel takes over", machine->config.name);
}

static const struct mb_pvpanic_ops pvpanic_ops = {
	.panicked = on_panic,
	.crash_loaded = on_crash_loaded,
};

static struct mb_loop *loop_of_vcpu(const struct mb_machine *machine, unsigned vcpu)
{
	return machine->io_loop[mb_vcpu_group(mb_vcpus_at(machine->vcpus, vcpu))];
}

static int add_legacy(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_chardev *chr = NULL;
	int rc = mb_ioapic_create(machine->bus, machine->vm, &machine->ioapic, err);

	if (machine->terminal)
		chr = mb_terminal_chardev(machine->terminal);
	if (!rc && machine->config.console == MB_CONSOLE_SERIAL)
		rc = mb_serial_create(machine->bus, MB_COM1_PORT,
			mb_ioapic_line(machine->ioapic, MB_COM1_PIN), chr, &machine->serial, err);
	if (!rc)
		rc = mb_rtc_create(machine->bus, &machine->rtc, err);
	if (!rc)
		rc = mb_i8042_create(machine->bus, on_reset, machine, &machine->i8042, err);
	if (!rc)
		rc = mb_power_create(machine->bus, mb_ioapic_line(machine->ioapic, MB_POWER_PIN),
			&power_ops, machine, &machine->power, err);
	if (!rc)
		rc = mb_pvpanic_create(machine->bus, &pvpanic_ops, machine, &machine->pvpanic, err);
	if (!rc && machine->config.splash) {
		rc = mb_machine_add_splash_ports(machine);
		if (rc)
			mb_error_set(err, -rc, "ports of the embedded guest: %s", strerror(-rc));
	}
	return rc;
}

static int add_disk(struct mb_machine *machine, unsigned i, struct mb_error *err)
{
	const struct mb_disk_config *disk = &machine->config.disk[i];
	unsigned n = disk->n_queues, n_vcpus = machine->config.n_vcpus;
	struct mb_loop **loops;
	int rc;
	struct mb_blk_config config = {
		.path = disk->path,
		.readonly = disk->readonly,
		.direct = !disk->buffered,
		.serial = disk->serial,
		.cow = disk->cow,
		.cow_dir = disk->cow_dir,
		.overlay = disk->overlay,
		.dry = machine->config.dry,
	};

	if (!n)
		n = n_vcpus < MAX_DISK_QUEUES ? n_vcpus : MAX_DISK_QUEUES;
	if (n > MB_VIRTIO_MAX_QUEUES)
		return mb_error_set(err, EINVAL, "disk %s: %u queues, but at most %u are possible",
			disk->path, n, MB_VIRTIO_MAX_QUEUES);
	loops = calloc(n, sizeof(*loops));
	if (!loops)
		return mb_error_set(err, ENOMEM, "disk %s: out of memory", disk->path);
	machine->blk_loops[i] = loops;
	config.loops = loops;
	/* The guest gives each queue an equal share of its vCPUs, in order. */
	for (unsigned q = 0; q < n; q++)
		loops[q] = loop_of_vcpu(machine, q * n_vcpus / n);
	config.n_queues = n;
	mb_machine_share_disk(machine, i, &config);
	rc = mb_blk_create(machine->pci, mb_ram_dma(machine->ram), &config, &machine->blk[i], err);
	return rc ? rc : mb_machine_share_base(machine, i, err);
}

static int add_nic(struct mb_machine *machine, unsigned i, struct mb_error *err)
{
	const struct mb_nic_config *nic = &machine->config.nic[i];
	unsigned n_vcpus = machine->config.n_vcpus, n = nic->n_pairs ? nic->n_pairs : 1;
	struct mb_loop **loops;
	char seed[300];
	struct mb_net_config config = {
		.back = nic->passt ? MB_NET_PASST : nic->tap_fd >= 0 ? MB_NET_TAP_FD : MB_NET_TAP,
		.ifname = nic->tap_name,
		.fd = nic->tap_fd,
		.passt_args = nic->passt_args,
		.seed = seed,
		.n_pairs = n,
	};

	if (2 * n + 1 > MB_VIRTIO_MAX_QUEUES)
		return mb_error_set(err, EINVAL, "net: %u queue pairs, but at most %u are possible", n,
			(MB_VIRTIO_MAX_QUEUES - 1) / 2);
	loops = calloc(2 * n + 1, sizeof(*loops));
	if (!loops)
		return mb_error_set(err, ENOMEM, "net: out of memory");
	machine->net_loops[i] = loops;
	config.loops = loops;
	memcpy(config.mac, nic->mac, sizeof(config.mac));
	snprintf(seed, sizeof(seed), "%s/%u", machine->config.name, i);
	for (unsigned q = 0; q < 2 * n; q++)
		loops[q] = loop_of_vcpu(machine, q / 2 * n_vcpus / n % n_vcpus);
	loops[2 * n] = loops[0];
	return mb_net_create(machine->pci, mb_ram_dma(machine->ram), &config, &machine->net[i], err);
}

/* The guest must not go on with what it could not have. */
static void on_pmem_lost(void *ctx)
{
	mb_machine_ask(ctx, MB_ASK_KVM_ERROR);
}

static int add_pmems(struct mb_machine *machine, struct mb_error *err)
{
	const uint64_t ram_end = MB_RAM_HIGH_BASE + mb_ram_high_bytes(machine->ram);
	int rc = mb_pmem_map_create(machine->vm, machine->bus, ram_end, on_pmem_lost, machine,
		&machine->pmem_map, err);

	if (rc)
		return rc;
	for (unsigned i = 0; i < machine->config.n_pmems && !rc && !mb_machine_signalled(machine); i++) {
		struct mb_pmem_config config = {
			.path = machine->config.pmem[i],
			.gpa = mb_pmem_map_next(machine->pmem_map),
		};

		rc = mb_pmem_create(machine->pci, mb_ram_dma(machine->ram), machine->io_loop[0],
			&config, &machine->pmem[i], err);
		if (!rc)
			rc = mb_pmem_map_add(machine->pmem_map, machine->pmem[i], err);
	}
	/* No queue runs yet: vCPUs do not. */
	mb_ram_set_pmem(machine->ram, machine->pmem_map);
	return rc;
}

static int add_balloon(struct mb_machine *machine, struct mb_error *err)
{
	int rc = mb_loop_create(&machine->balloon_loop, err);

	if (!rc)
		rc = mb_loop_start_thread(machine->balloon_loop, "balloon", NULL, err);
	if (!rc)
		rc = mb_balloon_create(machine->pci, mb_ram_dma(machine->ram),
			machine->balloon_loop, &machine->balloon, err);
	return rc;
}

int mb_machine_add_devices(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_dma *dma = mb_ram_dma(machine->ram);
	int rc = add_legacy(machine, err);

	if (!rc)
		rc = mb_pci_bus_create(machine->bus, machine->vm, &machine->pci, err);
	if (!rc)
		rc = mb_rng_create(machine->pci, dma, machine->io_loop[0], &machine->rng, err);
	if (!rc && machine->config.console == MB_CONSOLE_VIRTIO)
		rc = mb_console_create(machine->pci, dma, machine->io_loop[0],
			mb_terminal_chardev(machine->terminal), &machine->console, err);
	/* Each may have to wait for somebody else; the caller says what a signal means. */
	for (unsigned i = 0; i < machine->config.n_disks && !rc && !mb_machine_signalled(machine); i++)
		rc = add_disk(machine, i, err);
	for (unsigned i = 0; i < machine->config.n_nics && !rc && !mb_machine_signalled(machine); i++)
		rc = add_nic(machine, i, err);
	if (!rc && machine->config.n_pmems && !mb_machine_signalled(machine))
		rc = add_pmems(machine, err);
	/* Last: the others are where they were before there was one. */
	if (!rc && !machine->config.no_reporting && !mb_machine_signalled(machine))
		rc = add_balloon(machine, err);
	return rc;
}

void mb_machine_disk(const struct mb_machine *machine, unsigned i, struct mb_disk_facts *facts)
{
	*facts = (struct mb_disk_facts){
		.bytes = mb_blk_bytes(machine->blk[i]),
		.n_queues = mb_blk_n_queues(machine->blk[i]),
	};
}

void mb_machine_pmem(const struct mb_machine *machine, unsigned i, struct mb_pmem_facts *facts)
{
	*facts = (struct mb_pmem_facts){
		.gpa = mb_pmem_gpa(machine->pmem[i]),
		.bytes = mb_pmem_bytes(machine->pmem[i]),
	};
}

void mb_machine_reset_devices(struct mb_machine *machine)
{
	if (machine->balloon)
		mb_balloon_reset(machine->balloon);
	for (unsigned i = 0; i < machine->config.n_pmems; i++)
		mb_pmem_reset(machine->pmem[i]);
	for (unsigned i = 0; i < machine->config.n_nics; i++)
		mb_net_reset(machine->net[i]);
	for (unsigned i = 0; i < machine->config.n_disks; i++)
		mb_blk_reset(machine->blk[i]);
	if (machine->console)
		mb_console_reset(machine->console);
	mb_rng_reset(machine->rng);
	mb_power_reset(machine->power);
	if (machine->serial)
		mb_serial_reset(machine->serial);
	mb_ioapic_reset(machine->ioapic);
}

void mb_machine_remove_devices(struct mb_machine *machine)
{
	mb_balloon_destroy(machine->balloon);
	mb_loop_destroy(machine->balloon_loop);
	for (unsigned i = 0; i < machine->config.n_nics; i++) {
		mb_net_destroy(machine->net[i]);
		free(machine->net_loops[i]);
	}
	for (unsigned i = 0; i < machine->config.n_disks; i++) {
		mb_blk_destroy(machine->blk[i]);
		free(machine->blk_loops[i]);
	}
	mb_console_destroy(machine->console);
	mb_rng_destroy(machine->rng);
	/* The last that may have something of it. */
	for (unsigned i = 0; i < machine->config.n_pmems; i++)
		if (machine->pmem[i])
			mb_pmem_reset(machine->pmem[i]);
	if (machine->ram)
		mb_ram_set_pmem(machine->ram, NULL);
	mb_pmem_map_destroy(machine->pmem_map);
	for (unsigned i = 0; i < machine->config.n_pmems; i++)
		mb_pmem_destroy(machine->pmem[i]);
	mb_pci_bus_destroy(machine->pci);
	mb_pvpanic_destroy(machine->pvpanic);
	mb_power_destroy(machine->power);
	mb_i8042_destroy(machine->i8042);
	mb_rtc_destroy(machine->rtc);
	mb_serial_destroy(machine->serial);
	mb_ioapic_destroy(machine->ioapic);
}

json_t *mb_machine_reporting_json(const struct mb_machine *machine, int *rc)
{
	json_t *r = json_object();
	struct mb_balloon_stats s = {0};

	if (machine->balloon)
		mb_balloon_stats(machine->balloon, &s);
	mb_json_put(r, "state",
		json_string(!machine->balloon ? "switched off"
			    : s.reporting     ? "on"
					      : "the guest does not report"),
		rc);
	mb_json_put_number(r, "backed_bytes", mb_ram_backed_bytes(machine->ram), rc);
	if (!machine->balloon)
		return r;
	mb_json_put_number(r, "reported_bytes", s.reported_bytes, rc);
	mb_json_put_number(r, "discarded_bytes", s.discarded_bytes, rc);
	mb_json_put_number(r, "failures", s.n_failures, rc);
	return r;
}
