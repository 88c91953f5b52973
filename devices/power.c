// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/legacy.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define REG_SLEEP_CONTROL 0u
#define REG_SLEEP_STATUS  1u
#define REG_RESET	  2u
#define REG_EVENTS	  4u
#define REGION_LEN	  8u

/* Sleep control register (ACPI 6.5, 4.8.3.7). */
#define SLP_TYP_SHIFT	   2
#define SLP_TYP_MASK	   7u
#define SLP_EN		   0x20u
#define SLP_TYP_OFF	   5u

#define RESET_VALUE	   1u

#define EVENT_POWER_BUTTON 1u
#define EVENT_GENERATION   2u

#define STATE_VERSION	   1u

struct mb_power {
	struct mb_bus *bus;
	struct mb_region region;
	struct mb_irq_line irq;
	const struct mb_power_ops *ops;
	void *ctx;
	pthread_mutex_t
		lock; /* protects events; held while the line changes: before the I/O APIC's */
	uint32_t events;
};

/* Everything but the events reads as 0: nothing sleeps here but to be switched off. */
static void port_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_power *power = dev;
	uint32_t value = 0;

	if (offset == REG_EVENTS) {
		pthread_mutex_lock(&power->lock);
		value = power->events;
		power->events = 0;
		mb_irq_line_set(&power->irq, false);
		pthread_mutex_unlock(&power->lock);
	}
	mb_bus_set_value(data, len, value);
}

static void port_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_power *power = dev;
	uint8_t value = (uint8_t)mb_bus_value(data, len);

	switch (offset) {
	case REG_SLEEP_CONTROL:
		if ((value & SLP_EN) && (value >> SLP_TYP_SHIFT & SLP_TYP_MASK) == SLP_TYP_OFF)
			power->ops->poweroff(power->ctx);
		break;
	case REG_RESET:
		if (value == RESET_VALUE)
			power->ops->reset(power->ctx);
		break;
	}
}

static const struct mb_region_ops region_ops = {
	.read = port_read,
	.write = port_write,
};

int mb_power_create(struct mb_bus *bus, struct mb_irq_line irq, const struct mb_power_ops *ops,
	void *ctx, struct mb_power **out, struct mb_error *err)
{
	struct mb_power *power = calloc(1, sizeof(*power));
	int rc;

	if (!power)
		return mb_error_set(err, ENOMEM, "power registers: out of memory");
	power->bus = bus;
	power->irq = irq;
	power->ops = ops;
	power->ctx = ctx;
	power->region = (struct mb_region){
		.space = MB_PIO,
		.base = MB_POWER_PORT,
		.len = REGION_LEN,
		.ops = &region_ops,
		.dev = power,
	};
	pthread_mutex_init(&power->lock, NULL);
	rc = mb_bus_add(bus, &power->region);
	if (rc) {
		mb_error_set(err, -rc, "power registers: claim I/O port %#x: %s", MB_POWER_PORT,
			strerror(-rc));
		goto err_lock;
	}
	*out = power;
	return 0;

err_lock:
	pthread_mutex_destroy(&power->lock);
	free(power);
	return rc;
}

void mb_power_destroy(struct mb_power *power)
{
	if (!power)
		return;
	mb_bus_remove(power->bus, &power->region);
	pthread_mutex_destroy(&power->lock);
	free(power);
}

void mb_power_reset(struct mb_power *power)
{
	pthread_mutex_lock(&power->lock);
	power->events = 0;
	mb_irq_line_set(&power->irq, false);
	pthread_mutex_unlock(&power->lock);
}

static void raise_event(struct mb_power *power, uint32_t event)
{
	pthread_mutex_lock(&power->lock);
	power->events |= event;
	mb_irq_line_set(&power->irq, true);
	pthread_mutex_unlock(&power->lock);
}

void mb_power_button(struct mb_power *power)
{
	raise_event(power, EVENT_POWER_BUTTON);
}

void mb_power_new_generation(struct mb_power *power)
{
	raise_event(power, EVENT_GENERATION);
}

void mb_power_save(struct mb_power *power, struct mb_state_out *out)
{
	mb_state_begin(out, "power", STATE_VERSION);
	pthread_mutex_lock(&power->lock);
	mb_state_put_u32(out, power->events);
	pthread_mutex_unlock(&power->lock);
	mb_state_end(out);
}

/* The line is as the interrupt controller has it. */
int mb_power_load(struct mb_power *power, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	int rc = mb_state_enter(in, "power", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&power->lock);
	power->events = mb_state_get_u32(&part) & (EVENT_POWER_BUTTON | EVENT_GENERATION);
	pthread_mutex_unlock(&power->lock);
	return mb_state_leave(&part, err);
}
