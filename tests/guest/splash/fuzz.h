/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPLASH_FUZZ_H
#define SPLASH_FUZZ_H

#include "guest.h"

/*
 * Garbage for the devices: fuzz.c has ports and registers, fuzz_virtio.c a virtio driver that means
 * harm. The guest must survive what it does, or nothing was tested. So these are never written:
 *
 * - Ports that power off or say that the guest panicked, the two channel ports, and unless reset=1 those
 *   that reset.
 *
 * - An interrupt message (MSI-X table, I/O APIC) that is not of the kind "fixed": INIT, NMI or SMI
 *   would take a vCPU away from us.
 *
 * - An address by which a device would write to memory of ours. What a device may write is at the
 *   very end of RAM (`data`), so that whatever begins there and is too long leaves RAM; all else is
 *   outside of RAM.
 */
#define PCI_WINDOW     0xc0000000ull /* 32-bit BARs, mirrorball/pci.h */
#define PCI_WINDOW_END 0xe0000000ull
#define PCI_ECAM       0xe0000000ull
#define PCI_SLOTS      32u
#define IOAPIC_SELECT  0xfec00000ull
#define IOAPIC_DATA    0xfec00010ull
#define LAPIC	       0xfee00000ull /* in KVM, not in the monitor: left alone */
#define LAPIC_END      0xfef00000ull

#define RING_BYTES     0x10000ull
#define RING_DRIVER    0x4000u /* offsets in a ring area: descriptors are at 0 */
#define RING_DEVICE    0x6000u
#define RING_INDIRECT  0xa000u
#define MAX_RING_SIZE  1024u

struct fuzz_dev {
	unsigned slot;
	bool is_virtio;
	uint16_t device_id;
	uint32_t bar; /* where it was at first */
	uint16_t command;
	uint8_t window_cap; /* virtio's configuration access capability; 0: none */
	/* Offsets in the BAR; virtio 1.2, 4.1.4. */
	uint32_t common, isr, config, notify, notify_multiplier;
};

struct fuzz {
	struct fuzz_dev dev[PCI_SLOTS];
	unsigned n_devs;
	bool reset;	/* reset=1 */
	uint8_t *rings; /* RING_BYTES for each vCPU, below 4 GiB */
	uint8_t *data;
	uint64_t data_bytes;
	uint32_t cf8_lock;
};
extern struct fuzz fuzz;

/* Counted as one operation of self; writes are filtered. Not for configuration space. */
void fuzz_mmio_write(struct cpu *self, uint64_t gpa, unsigned size, uint64_t v);
uint64_t fuzz_mmio_read(struct cpu *self, uint64_t gpa, unsigned size);
/* A value of a kind that finds bugs: 0, ones, a single bit, small, or anything. */
uint64_t fuzz_value(struct cpu *self);
/* Where a device may be told that memory is: its ring area, data, or not RAM at all. */
uint64_t fuzz_ring_gpa(struct cpu *self);
uint64_t fuzz_wild_gpa(struct cpu *self);

/* Fills in fuzz.dev and fuzz.n_devs. */
void fuzz_find_devices(void);
/* Configuration space as it was found. */
void fuzz_restore(const struct fuzz_dev *dev);

/* fuzz_virtio.c: one run against a virtio device, some hundred accesses. */
void fuzz_virtio(struct cpu *self, const struct fuzz_dev *dev);
/* The device must come back from a reset and accept a driver; fails if not. */
void fuzz_virtio_check(const struct fuzz_dev *dev);

static inline uint32_t mmio_read(uint64_t gpa, unsigned size)
{
	if (size == 1)
		return *(volatile uint8_t *)gpa;
	if (size == 2)
		return *(volatile uint16_t *)gpa;
	return *(volatile uint32_t *)gpa;
}

static inline void mmio_write(uint64_t gpa, unsigned size, uint64_t v)
{
	if (size == 1)
		*(volatile uint8_t *)gpa = (uint8_t)v;
	else if (size == 2)
		*(volatile uint16_t *)gpa = (uint16_t)v;
	else if (size == 4)
		*(volatile uint32_t *)gpa = (uint32_t)v;
	else
		*(volatile uint64_t *)gpa = v;
}

static inline uint64_t config_gpa(const struct fuzz_dev *dev)
{
	return PCI_ECAM + dev->slot * 0x8000ull;
}

#endif
