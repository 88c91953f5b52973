// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/acpi.h>
#include <mirrorball/boot.h>
#include <mirrorball/log.h>
#include <mirrorball/splash.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "machine_internal.h"

#define TERMINAL_WAIT_NS 2000000L

/* ---- exits of the vCPUs ---- */

static void on_pio(void *ctx, struct mb_vcpu *vcpu, uint16_t port, bool write, void *data,
	unsigned size, unsigned count)
{
	struct mb_machine *machine = ctx;

	if (write) {
		mb_bus_write_string(machine->bus, port, data, size, count);
		return;
	}
	for (unsigned i = 0; i < count; i++)
		mb_bus_read(machine->bus, MB_PIO, port, (char *)data + (size_t)i * size, size);
}

static void on_mmio(
	void *ctx, struct mb_vcpu *vcpu, uint64_t gpa, bool write, void *data, unsigned len)
{
	struct mb_machine *machine = ctx;

	if (write)
		mb_bus_write(machine->bus, MB_MMIO, gpa, data, len);
	else
		mb_bus_read(machine->bus, MB_MMIO, gpa, data, len);
}

static void on_ioapic_eoi(void *ctx, uint8_t vector)
{
	struct mb_machine *machine = ctx;

	mb_ioapic_eoi(machine->ioapic, vector);
}

void mb_machine_dump_vcpu(struct mb_vcpu *vcpu)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return;
	mb_vcpu_dump(vcpu, f);
	fclose(f);
	mb_log_text(text, len);
	free(text);
}

static void on_event(void *ctx, struct mb_vcpu *vcpu, enum mb_vcpu_event event, const char *text)
{
	struct mb_machine *machine = ctx;

	switch (event) {
	case MB_VCPU_FAILED:
		mb_pmem_map_check(machine->pmem_map);
		mb_log("%s: vCPU %u cannot go on: %s", machine->config.name, mb_vcpu_index(vcpu), text);
		mb_machine_dump_vcpu(vcpu);
		mb_machine_ask(machine, MB_ASK_KVM_ERROR);
		break;
	case MB_VCPU_TRIPLE_FAULT:
		mb_log("%s: vCPU %u: %s", machine->config.name, mb_vcpu_index(vcpu), text);
		mb_machine_dump_vcpu(vcpu);
		mb_machine_ask(machine, MB_ASK_CRASH);
		break;
	case MB_VCPU_SYSTEM_CRASH:
		mb_log("%s: %s", machine->config.name, text);
		mb_machine_ask(machine, MB_ASK_CRASH);
		break;
	case MB_VCPU_SYSTEM_RESET:
		mb_machine_ask(machine, MB_ASK_RESET);
		break;
	case MB_VCPU_SYSTEM_SHUTDOWN:
		mb_machine_ask(machine, MB_ASK_POWEROFF);
		break;
	}
}

const struct mb_vcpu_ops mb_machine_vcpu_ops = {
	.pio = on_pio,
	.mmio = on_mmio,
	.ioapic_eoi = on_ioapic_eoi,
	.event = on_event,
};

/* ---- the thin guest's ports ---- */

/* There is no flow control on the text port: the vCPU waits while the terminal is full. */
static void splash_text(void *dev, uint64_t offset, const void *data, unsigned len, unsigned count)
{
	struct mb_machine *machine = dev;
	struct mb_chardev *chr = machine->terminal ? mb_terminal_chardev(machine->terminal) : NULL;
	const char *at = data;
	size_t left = (size_t)len * count;

	while (chr && left && !__atomic_load_n(&machine->ending, __ATOMIC_ACQUIRE) &&
		!__atomic_load_n(&machine->restarting, __ATOMIC_ACQUIRE)) {
		struct timespec wait = {.tv_nsec = TERMINAL_WAIT_NS};
		size_t n = chr->ops->write(chr, at, left);

		at += n;
		left -= n;
		if (left && !n)
			nanosleep(&wait, NULL);
	}
}

static void splash_text_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	splash_text(dev, offset, data, len, 1);
}

/* A byte that says "this is a debug console" to who reads the port (Bochs' convention). */
static void splash_text_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	mb_bus_set_value(data, len, MB_SPLASH_TEXT_PORT);
}

static void splash_exit_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_machine *machine = dev;

	__atomic_store_n(
		&machine->splash_status, (int)(mb_bus_value(data, len) & 0xff), __ATOMIC_RELEASE);
	mb_machine_ask(machine, MB_ASK_GUEST_STATUS);
}

/* More vCPUs than host CPUs: the one that waits gives way to those it waits for. */
static void splash_yield_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	sched_yield();
	mb_bus_set_value(data, len, 0);
}

static const struct mb_region_ops splash_text_ops = {
	.read = splash_text_read,
	.write = splash_text_write,
	.write_string = splash_text,
};

static const struct mb_region_ops splash_exit_ops = {.write = splash_exit_write};
static const struct mb_region_ops splash_yield_ops = {.read = splash_yield_read};

int mb_machine_add_splash_ports(struct mb_machine *machine)
{
	int rc;

	machine->splash_text = (struct mb_region){.space = MB_PIO, .base = MB_SPLASH_TEXT_PORT,
		.len = 1, .ops = &splash_text_ops, .dev = machine};
	machine->splash_exit = (struct mb_region){.space = MB_PIO, .base = MB_SPLASH_EXIT_PORT,
		.len = 1, .ops = &splash_exit_ops, .dev = machine};
	machine->splash_yield = (struct mb_region){.space = MB_PIO, .base = MB_SPLASH_YIELD_PORT,
		.len = 1, .ops = &splash_yield_ops, .dev = machine};
	rc = mb_bus_add(machine->bus, &machine->splash_text);
	if (!rc)
		rc = mb_bus_add(machine->bus, &machine->splash_exit);
	if (!rc)
		rc = mb_bus_add(machine->bus, &machine->splash_yield);
	return rc;
}

/* ---- loading ---- */

static int command_line(const struct mb_machine *machine, char **out)
{
	const char *user = machine->config.cmdline ? machine->config.cmdline : "";
	const char *console = "";

	/* The user's own choice of console stands. */
	if (!strncmp(user, "console=", 8) || strstr(user, " console="))
		console = "";
	else if (machine->config.console == MB_CONSOLE_SERIAL)
		console = *user ? "console=ttyS0 " : "console=ttyS0";
	else if (machine->config.console == MB_CONSOLE_VIRTIO)
		console = *user ? "console=hvc0 " : "console=hvc0";
	return asprintf(out, "%s%s", console, user) < 0 ? -ENOMEM : 0;
}

static int load_kernel(struct mb_machine *machine, struct mb_error *err)
{
	struct mb_acpi_config acpi = {
		.n_vcpus = machine->config.n_vcpus,
		.serial = machine->serial != NULL,
	};
	struct mb_boot_config boot = {
		.kernel_path = machine->config.kernel_path,
		.initrd_path = machine->config.initrd_path,
	};
	struct mb_vcpu_start start = {0};
	char *cmdline;
	int rc = command_line(machine, &cmdline);

	if (rc)
		return mb_error_set(err, -rc, "kernel command line: out of memory");
	boot.cmdline = cmdline;
	rc = mb_acpi_write(machine->ram, &acpi, &boot.rsdp_gpa, err);
	if (!rc)
		rc = mb_acpi_new_generation(machine->ram, err);
	if (!rc)
		rc = mb_boot_load(machine->ram, &boot, &start, err);
	free(cmdline);
	if (rc)
		return rc;
	rc = mb_vcpu_set_start(mb_vcpus_at(machine->vcpus, 0), &start);
	if (rc)
		return mb_error_set(err, -rc, "KVM: cannot set where the first vCPU starts: %s",
			strerror(-rc));
	return 0;
}

int mb_machine_load_guest(struct mb_machine *machine, struct mb_error *err)
{
	if (machine->config.splash)
		return mb_splash_load(machine->ram, machine->vcpus, machine->config.splash, err);
	return load_kernel(machine, err);
}
