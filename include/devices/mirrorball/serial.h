/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_SERIAL_H
#define MIRRORBALL_SERIAL_H

#include <mirrorball/bus.h>
#include <mirrorball/chardev.h>
#include <mirrorball/error.h>
#include <mirrorball/irq.h>
#include <mirrorball/state.h>

#define MB_COM1_PORT 0x3f8u
#define MB_COM1_PIN  4u

/* A 16550A UART (National Semiconductor PC16550D datasheet) at 8 ports from `port`. */
struct mb_serial;

/* chr may be NULL: what the guest writes is dropped. */
int mb_serial_create(struct mb_bus *bus, uint16_t port, struct mb_irq_line irq,
	struct mb_chardev *chr, struct mb_serial **out, struct mb_error *err);
void mb_serial_destroy(struct mb_serial *serial);
void mb_serial_reset(struct mb_serial *serial);
/* For a snapshot; vCPUs paused. load: into a new one, -EINVAL: it is no such state. */
void mb_serial_save(struct mb_serial *serial, struct mb_state_out *out);
int mb_serial_load(struct mb_serial *serial, struct mb_state_in *in, struct mb_error *err);

#endif
