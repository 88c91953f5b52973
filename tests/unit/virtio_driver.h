/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TESTS_VIRTIO_DRIVER_H
#define MIRRORBALL_TESTS_VIRTIO_DRIVER_H

#include "fake_driver.h"
#include "fake_kvm.h"
#include <mirrorball/pci.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * The guest's side of a virtio device over PCI, written from the specification and apart from
 * devices/: finds the device through ECAM, negotiates, drives its queues (rings: fake_driver.h). On
 * a fake KVM and RAM in an array; one thread.
 */
#define DRV_RAM_BASE   0x100000ull
#define DRV_MAX_QUEUES 16u
#define DRV_MAX_SIZE   256u
#define DRV_TABLE      64u /* entries of an indirect table */

struct drv_machine {
	struct fake_kvm kvm;
	struct mb_host host;
	struct mb_vm *vm;
	struct mb_bus *bus;
	struct mb_pci_bus *pci;
	struct fake_dma ram;
	uint64_t brk; /* RAM below is in use */
};

struct drv_queue {
	struct drv_device *dev;
	unsigned index;
	struct fake_ring ring;
	uint64_t gpa;	 /* of the ring */
	uint64_t tables; /* of indirect tables, one after the other */
	unsigned next_table;
	unsigned n_kicks; /* notifications that reached the device */
};

struct drv_device {
	struct drv_machine *m;
	uint64_t bar;
	uint64_t features; /* accepted */
	struct drv_queue queue[DRV_MAX_QUEUES];
};

void drv_machine_init(struct drv_machine *m, uint64_t ram_bytes);
/* Devices must be gone. Asserts that nothing is mapped any more. */
void drv_machine_finish(struct drv_machine *m);
uint64_t drv_alloc(struct drv_machine *m, uint64_t len, uint64_t align);
void *drv_at(struct drv_machine *m, uint64_t gpa);

/* The device in `slot`; switches its memory BAR on. */
void drv_open(struct drv_device *dev, struct drv_machine *m, unsigned slot);
void drv_close(struct drv_device *dev);
uint64_t drv_offered(struct drv_device *dev);
/* Reset, features, n_queues queues of `size` entries, DRIVER_OK. False: features were refused. */
bool drv_start(struct drv_device *dev, uint64_t features, unsigned n_queues, uint16_t size);
void drv_reset(struct drv_device *dev);
uint8_t drv_status(struct drv_device *dev);
void drv_config_read(struct drv_device *dev, unsigned offset, void *data, unsigned len);
void drv_config_write(struct drv_device *dev, unsigned offset, const void *data, unsigned len);

/* Makes a chain available; false: no room. Does not notify. */
bool drv_add(
	struct drv_queue *q, const struct fake_seg *segs, unsigned n, bool indirect, void *cookie);
/* Notifies, if the device wants that. */
void drv_kick(struct drv_queue *q);
/* The next used chain; false if none comes within timeout_ms. */
bool drv_wait(struct drv_queue *q, void **cookie, uint32_t *written, int timeout_ms);

#endif
