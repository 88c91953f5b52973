/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_ACPI_H
#define MIRRORBALL_ACPI_H

#include <mirrorball/error.h>
#include <mirrorball/ram.h>

struct mb_acpi_config {
	unsigned n_vcpus;
	bool serial; /* COM1 exists */
};

/*
 * Writes RSDP, XSDT, FADT (hardware-reduced), MADT, MCFG, SSDT and DSDT at MB_BOOT_ACPI; *rsdp_gpa
 * is where the RSDP is. ACPI 6.5, chapter 5. vCPU i has APIC id and processor UID i: local APIC
 * entries up to 254, local x2APIC above. n_vcpus is 1..MB_MAX_VCPUS, others are -EINVAL.
 */
int mb_acpi_write(struct mb_ram *ram, const struct mb_acpi_config *config, uint64_t *rsdp_gpa,
	struct mb_error *err);

/*
 * A generation ID that no other machine has, and this one had not before, at MB_BOOT_GENERATION, where the DSDT says
 * that it is. A guest that runs is to be told (mb_power_new_generation).
 */
int mb_acpi_new_generation(struct mb_ram *ram, struct mb_error *err);

#endif
