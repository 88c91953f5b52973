/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_IRQ_H
#define MIRRORBALL_IRQ_H

#include <mirrorball/bus.h>
#include <mirrorball/error.h>
#include <mirrorball/state.h>
#include <mirrorball/vm.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * The I/O APIC (Intel 82093AA datasheet), in user space beside KVM's local APICs. Pins are raised
 * by the legacy devices; PCI devices use MSI-X and never come here.
 */
struct mb_ioapic;

#define MB_IOAPIC_BASE 0xfec00000ull

int mb_ioapic_create(
	struct mb_bus *bus, struct mb_vm *vm, struct mb_ioapic **out, struct mb_error *err);
void mb_ioapic_destroy(struct mb_ioapic *ioapic);
/* Sets the level of a pin (0..MB_IOAPIC_PINS-1). Any thread. */
void mb_ioapic_set(struct mb_ioapic *ioapic, unsigned pin, bool level);
/* A vCPU ended a level-triggered interrupt with this vector. */
void mb_ioapic_eoi(struct mb_ioapic *ioapic, uint8_t vector);
/* All pins masked and low: power-on state. vCPUs paused. */
void mb_ioapic_reset(struct mb_ioapic *ioapic);
/* For a snapshot; vCPUs paused. load: into a new one, -EINVAL: it is no such state. */
void mb_ioapic_save(struct mb_ioapic *ioapic, struct mb_state_out *out);
int mb_ioapic_load(struct mb_ioapic *ioapic, struct mb_state_in *in, struct mb_error *err);

/* One interrupt line of a device: a pin, or a test's function. */
struct mb_irq_line {
	void (*set)(void *ctx, unsigned pin, bool level);
	void *ctx;
	unsigned pin;
};

static inline void mb_irq_line_set(const struct mb_irq_line *line, bool level)
{
	line->set(line->ctx, line->pin, level);
}

/* The line of an I/O APIC pin. */
struct mb_irq_line mb_ioapic_line(struct mb_ioapic *ioapic, unsigned pin);

#endif
