/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_LEGACY_H
#define MIRRORBALL_LEGACY_H

#include <mirrorball/bus.h>
#include <mirrorball/error.h>
#include <mirrorball/irq.h>
#include <mirrorball/state.h>
#include <stdint.h>

/*
 * CMOS clock (Motorola MC146818A) at ports 0x70-0x71: the time of the host in UTC until the guest
 * sets another one, the century at 0x32, 114 bytes of RAM; periodic, alarm and update interrupts
 * are not offered (the guest has better timers), their flags read as 0. A battery keeps it: no
 * reset.
 */
struct mb_rtc;
int mb_rtc_create(struct mb_bus *bus, struct mb_rtc **out, struct mb_error *err);
/* The same on another clock: ns since 1970-01-01 UTC. Called with the device's lock held. */
int mb_rtc_create_with_clock(struct mb_bus *bus, int64_t (*now_ns)(void *ctx), void *ctx,
	struct mb_rtc **out, struct mb_error *err);
void mb_rtc_destroy(struct mb_rtc *rtc);
/*
 * For a snapshot; vCPUs paused. load: into a new one, -EINVAL: it is no such state. The time that it tells goes
 * on meanwhile. So are those below.
 */
void mb_rtc_save(struct mb_rtc *rtc, struct mb_state_out *out);
int mb_rtc_load(struct mb_rtc *rtc, struct mb_state_in *in, struct mb_error *err);

/*
 * What is left of an i8042 at ports 0x60 and 0x64: command 0xfe pulses the reset line (reset, on a
 * vCPU thread, every time), everything else reads as "no keyboard". Also port 0x61 (NMI status,
 * timer 2 gate), whose bits 4 and 5 change with every read, as loops that wait for a timer expect.
 */
struct mb_i8042;
int mb_i8042_create(struct mb_bus *bus, void (*reset)(void *ctx), void *ctx, struct mb_i8042 **out,
	struct mb_error *err);
void mb_i8042_destroy(struct mb_i8042 *i8042);
void mb_i8042_save(struct mb_i8042 *i8042, struct mb_state_out *out);
int mb_i8042_load(struct mb_i8042 *i8042, struct mb_state_in *in, struct mb_error *err);

/*
 * The machine's own ACPI device: hardware-reduced ACPI (ACPI 6.5, 4.1) has no fixed hardware, so
 * the power button is an event of a Generic Event Device, and sleep and reset are registers of
 * ours.
 *
 *   port 0x600 (byte)  SLEEP_CONTROL_REG: SLP_TYP << 2 | SLP_EN << 5 (SLP_TYP 5: soft off)
 *   port 0x601 (byte)  SLEEP_STATUS_REG
 *   port 0x602 (byte)  RESET_REG: any write of 1 resets
 *   port 0x604 (dword) events of the GED, read clears: bit 0 power button,
 *                      bit 1 the generation ID is another one
 *
 * The pin is level-triggered, active high: asserted while an event waits to be read.
 */
struct mb_power;
#define MB_POWER_PORT 0x600u
#define MB_POWER_PIN  9u
/*
 * On a vCPU thread, no lock held; as often as the guest writes, so calls after the first mean
 * nothing new.
 */
struct mb_power_ops {
	void (*poweroff)(void *ctx);
	void (*reset)(void *ctx);
};
int mb_power_create(struct mb_bus *bus, struct mb_irq_line irq, const struct mb_power_ops *ops,
	void *ctx, struct mb_power **out, struct mb_error *err);
void mb_power_destroy(struct mb_power *power);
void mb_power_reset(struct mb_power *power);
/* Presses the power button. Any thread. */
void mb_power_button(struct mb_power *power);
/* Tells the guest that its generation ID is another one (mirrorball/acpi.h). Any thread. */
void mb_power_new_generation(struct mb_power *power);
void mb_power_save(struct mb_power *power, struct mb_state_out *out);
int mb_power_load(struct mb_power *power, struct mb_state_in *in, struct mb_error *err);

#endif
