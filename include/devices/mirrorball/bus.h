/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BUS_H
#define MIRRORBALL_BUS_H

#include <stdbool.h>
#include <stdint.h>

enum mb_space {
	MB_PIO,	 /* ports 0..0xffff */
	MB_MMIO, /* guest physical addresses */
};

/*
 * Called on vCPU threads, several at once: a device takes its own lock. [offset, offset + len) is
 * inside the region; len is 1, 2, 4 or 8, any alignment: the guest chooses.
 */
struct mb_region_ops {
	void (*read)(void *dev, uint64_t offset, void *data, unsigned len);
	void (*write)(void *dev, uint64_t offset, const void *data, unsigned len);
	/*
	 * Optional: count writes of len bytes to the same offset, packed at data ("rep outs" in one exit). Without it,
	 * write is called count times.
	 */
	void (*write_string)(void *dev, uint64_t offset, const void *data, unsigned len, unsigned count);
};

/* Owned by the device; stays valid while any vCPU runs, also after mb_bus_remove. */
struct mb_region {
	enum mb_space space;
	uint64_t base;
	uint64_t len;
	const struct mb_region_ops *ops;
	void *dev;
};

/* Address decoding: which device answers where. Lock: the bus's own, never held during a call. */
struct mb_bus;

int mb_bus_create(struct mb_bus **out);
void mb_bus_destroy(struct mb_bus *bus);

/* -EEXIST on overlap, -EINVAL if empty, wrapping or beyond the space. */
int mb_bus_add(struct mb_bus *bus, struct mb_region *region);
void mb_bus_remove(struct mb_bus *bus, struct mb_region *region);

/*
 * False if no region holds the whole access; a read then gives all ones, a write is dropped, as on a
 * real bus.
 */
bool mb_bus_read(struct mb_bus *bus, enum mb_space space, uint64_t addr, void *data, unsigned len);
bool mb_bus_write(
	struct mb_bus *bus, enum mb_space space, uint64_t addr, const void *data, unsigned len);
bool mb_bus_write_string(struct mb_bus *bus, uint16_t port, const void *data, unsigned len,
	unsigned count);

/* Little-endian value of 1, 2, 4 or 8 bytes (other lengths: the bytes there are). */
uint64_t mb_bus_value(const void *data, unsigned len);
void mb_bus_set_value(void *data, unsigned len, uint64_t value);

#endif
