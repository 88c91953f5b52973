/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_PVPANIC_H
#define MIRRORBALL_PVPANIC_H

#include <mirrorball/bus.h>
#include <mirrorball/error.h>

/*
 * How a guest's kernel says that it panicked, as Linux knows it (drivers/misc/pvpanic): one
 * byte-wide port, which ACPI device QEMU0001 names in its _CRS. A read gives the events that are
 * understood; a write says that they happened: bit 0 the kernel panicked, bit 1 it panicked and its
 * crash kernel takes over.
 */
struct mb_pvpanic;
#define MB_PVPANIC_PORT 0x505u

/*
 * On a vCPU thread, no lock held; as often as the guest writes, so calls after the first mean
 * nothing new.
 */
struct mb_pvpanic_ops {
	void (*panicked)(void *ctx);
	void (*crash_loaded)(void *ctx); /* the guest goes on */
};

int mb_pvpanic_create(struct mb_bus *bus, const struct mb_pvpanic_ops *ops, void *ctx,
	struct mb_pvpanic **out, struct mb_error *err);
void mb_pvpanic_destroy(struct mb_pvpanic *pvpanic);

#endif
