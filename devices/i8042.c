// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/legacy.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PORT_DATA	    0x60u
#define PORT_SYSTEM_B	    0x61u
#define PORT_COMMAND	    0x64u

#define STATUS_OUTPUT_FULL  0x01u
#define COMMAND_PULSE_RESET 0xfeu
#define NO_DATA		    0xffu

/*
 * How many bytes a driver must throw away before the output buffer looks empty. Drivers flush 16
 * bytes at most before they decide that there is no controller (then they need not wait half a
 * second for each answer that never comes); those that flush until it is empty get there too. The
 * input buffer is never full: drivers wait for that before they send the reset command.
 */
#define N_JUNK 32u

/* System control port B (ICH9 datasheet, 13.7.1): bits 3:0 are kept. */
#define SYSTEM_B_KEPT	 0x0fu
#define SYSTEM_B_REFRESH 0x10u
#define SYSTEM_B_TIMER_2 0x20u

struct mb_i8042 {
	struct mb_bus *bus;
	struct mb_region data, system_b, command;
	void (*reset)(void *ctx);
	void *ctx;
	pthread_mutex_t lock; /* protects what follows */
	unsigned n_junk;
	uint8_t system_b_value;
};

static void data_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_i8042 *i8042 = dev;

	pthread_mutex_lock(&i8042->lock);
	if (i8042->n_junk)
		i8042->n_junk--;
	pthread_mutex_unlock(&i8042->lock);
	mb_bus_set_value(data, len, NO_DATA);
}

/* To a keyboard that is not there. */
static void data_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
}

static void command_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_i8042 *i8042 = dev;
	uint8_t status;

	pthread_mutex_lock(&i8042->lock);
	status = i8042->n_junk ? STATUS_OUTPUT_FULL : 0;
	pthread_mutex_unlock(&i8042->lock);
	mb_bus_set_value(data, len, status);
}

static void command_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_i8042 *i8042 = dev;
	uint8_t command = (uint8_t)mb_bus_value(data, len);

	if (command == COMMAND_PULSE_RESET) {
		i8042->reset(i8042->ctx);
		return;
	}
	pthread_mutex_lock(&i8042->lock);
	i8042->n_junk = N_JUNK;
	pthread_mutex_unlock(&i8042->lock);
}

static void system_b_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	struct mb_i8042 *i8042 = dev;
	uint8_t value;

	pthread_mutex_lock(&i8042->lock);
	i8042->system_b_value ^= SYSTEM_B_REFRESH | SYSTEM_B_TIMER_2;
	value = i8042->system_b_value;
	pthread_mutex_unlock(&i8042->lock);
	mb_bus_set_value(data, len, value);
}

static void system_b_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_i8042 *i8042 = dev;
	uint8_t value = (uint8_t)mb_bus_value(data, len);

	pthread_mutex_lock(&i8042->lock);
	i8042->system_b_value = (i8042->system_b_value & ~SYSTEM_B_KEPT) | (value & SYSTEM_B_KEPT);
	pthread_mutex_unlock(&i8042->lock);
}

static const struct mb_region_ops data_ops = {.read = data_read, .write = data_write};
static const struct mb_region_ops command_ops = {.read = command_read, .write = command_write};
static const struct mb_region_ops system_b_ops = {.read = system_b_read, .write = system_b_write};

static int add_port(struct mb_i8042 *i8042, struct mb_region *region, uint16_t port,
	const struct mb_region_ops *ops, struct mb_error *err)
{
	int rc;

	*region = (struct mb_region){
		.space = MB_PIO,
		.base = port,
		.len = 1,
		.ops = ops,
		.dev = i8042,
	};
	rc = mb_bus_add(i8042->bus, region);
	if (rc)
		mb_error_set(err, -rc, "i8042: claim I/O port %#x: %s", port, strerror(-rc));
	return rc;
}

int mb_i8042_create(struct mb_bus *bus, void (*reset)(void *ctx), void *ctx, struct mb_i8042 **out,
	struct mb_error *err)
{
	struct mb_i8042 *i8042 = calloc(1, sizeof(*i8042));
	int rc;

	if (!i8042)
		return mb_error_set(err, ENOMEM, "i8042: out of memory");
	i8042->bus = bus;
	i8042->reset = reset;
	i8042->ctx = ctx;
	i8042->n_junk = N_JUNK;
	pthread_mutex_init(&i8042->lock, NULL);
	rc = add_port(i8042, &i8042->data, PORT_DATA, &data_ops, err);
	if (rc)
		goto err_lock;
	rc = add_port(i8042, &i8042->system_b, PORT_SYSTEM_B, &system_b_ops, err);
	if (rc)
		goto err_data;
	rc = add_port(i8042, &i8042->command, PORT_COMMAND, &command_ops, err);
	if (rc)
		goto err_system_b;
	*out = i8042;
	return 0;

err_system_b:
	mb_bus_remove(bus, &i8042->system_b);
err_data:
	mb_bus_remove(bus, &i8042->data);
err_lock:
	pthread_mutex_destroy(&i8042->lock);
	free(i8042);
	return rc;
}

void mb_i8042_destroy(struct mb_i8042 *i8042)
{
	if (!i8042)
		return;
	mb_bus_remove(i8042->bus, &i8042->command);
	mb_bus_remove(i8042->bus, &i8042->system_b);
	mb_bus_remove(i8042->bus, &i8042->data);
	pthread_mutex_destroy(&i8042->lock);
	free(i8042);
}

#define STATE_VERSION 1u

void mb_i8042_save(struct mb_i8042 *i8042, struct mb_state_out *out)
{
	mb_state_begin(out, "i8042", STATE_VERSION);
	pthread_mutex_lock(&i8042->lock);
	mb_state_put_u32(out, i8042->n_junk);
	mb_state_put_u8(out, i8042->system_b_value);
	pthread_mutex_unlock(&i8042->lock);
	mb_state_end(out);
}

int mb_i8042_load(struct mb_i8042 *i8042, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;
	int rc = mb_state_enter(in, "i8042", STATE_VERSION, &part, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&i8042->lock);
	i8042->n_junk = mb_state_get_u32(&part) % (N_JUNK + 1);
	i8042->system_b_value = mb_state_get_u8(&part);
	pthread_mutex_unlock(&i8042->lock);
	return mb_state_leave(&part, err);
}
