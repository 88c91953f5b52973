// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/pvpanic.h>
#include <stdlib.h>
#include <string.h>

#define EVENT_PANICKED	   0x01u
#define EVENT_CRASH_LOADED 0x02u

/* Nothing in it changes after creation: no lock. */
struct mb_pvpanic {
	struct mb_bus *bus;
	struct mb_region region;
	const struct mb_pvpanic_ops *ops;
	void *ctx;
};

static void port_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	mb_bus_set_value(data, len, EVENT_PANICKED | EVENT_CRASH_LOADED);
}

static void port_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct mb_pvpanic *pvpanic = dev;
	uint64_t events = mb_bus_value(data, len);

	if (events & EVENT_PANICKED)
		pvpanic->ops->panicked(pvpanic->ctx);
	if (events & EVENT_CRASH_LOADED)
		pvpanic->ops->crash_loaded(pvpanic->ctx);
}

static const struct mb_region_ops region_ops = {
	.read = port_read,
	.write = port_write,
};

int mb_pvpanic_create(struct mb_bus *bus, const struct mb_pvpanic_ops *ops, void *ctx,
	struct mb_pvpanic **out, struct mb_error *err)
{
	struct mb_pvpanic *pvpanic = calloc(1, sizeof(*pvpanic));
	int rc;

	if (!pvpanic)
		return mb_error_set(err, ENOMEM, "panic port: out of memory");
	pvpanic->bus = bus;
	pvpanic->ops = ops;
	pvpanic->ctx = ctx;
	pvpanic->region = (struct mb_region){
		.space = MB_PIO,
		.base = MB_PVPANIC_PORT,
		.len = 1,
		.ops = &region_ops,
		.dev = pvpanic,
	};
	rc = mb_bus_add(bus, &pvpanic->region);
	if (rc) {
		mb_error_set(err, -rc, "panic port: claim I/O port %#x: %s", MB_PVPANIC_PORT,
			strerror(-rc));
		free(pvpanic);
		return rc;
	}
	*out = pvpanic;
	return 0;
}

void mb_pvpanic_destroy(struct mb_pvpanic *pvpanic)
{
	if (!pvpanic)
		return;
	mb_bus_remove(pvpanic->bus, &pvpanic->region);
	free(pvpanic);
}
