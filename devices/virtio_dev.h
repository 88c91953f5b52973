/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_DEVICES_VIRTIO_DEV_H
#define MIRRORBALL_DEVICES_VIRTIO_DEV_H

#include "virtq.h"

#include <mirrorball/log.h>
#include <pthread.h>
#include <stdatomic.h>

/*
 * Inside of a virtio device: its state (virtio.c) and its PCI face (virtio_pci.c).
 *
 * Lock order: `lock`, then a loop's queue of calls, then `notify_lock`. A vCPU waits for loops
 * while it holds `lock`, so nothing that runs on a loop takes it; what loops touch is atomic.
 */
#define MB_VIRTIO_NOTIFY_OFFSET 0x3000u
#define MB_VIRTIO_NOTIFY_STRIDE 4u

struct mb_virtio_queue {
	struct mb_virtio *vdev;
	unsigned index;
	struct mb_loop *loop;

	/* As the driver set it up. Protected by the device's lock. */
	uint16_t size;
	bool enabled;
	uint64_t desc_gpa, driver_gpa, device_gpa;
	_Atomic uint16_t vector;

	/* Device's lock, and the loop's thread inside mb_loop_call. */
	bool ready;   /* vq is initialised */
	bool started; /* the loop watches it */
	bool paused;  /* but not now */
	/* Of one that is being restored: where its ring starts. */
	bool resumes;
	struct mb_virtq_place place;
	struct mb_watch watch;
	struct mb_virtq vq;

	/* An eventfd, made at the queue's first start, kept until the device's end; -1 before. */
	atomic_int kick_fd;

	/* Protected by the device's notify_lock. */
	bool wants_ioeventfd, has_ioeventfd;
	struct mb_ioeventfd ioeventfd;
};

struct mb_virtio {
	struct mb_virtio_config config;
	char *name;
	struct mb_pci_dev *pdev;
	struct mb_vm *vm;
	struct mb_dma *dma;
	uint64_t offered; /* feature bits */

	_Atomic uint8_t status;
	_Atomic uint8_t isr;
	_Atomic uint8_t generation;
	_Atomic uint16_t config_vector;
	_Atomic uint64_t accepted; /* feature bits, once FEATURES_OK is set */
	atomic_bool stopped;	   /* NEEDS_RESET: queues give nothing */
	struct mb_ratelimit limit;

	/* Configuration accesses: protects what follows. */
	pthread_mutex_t lock;
	uint32_t device_feature_select, driver_feature_select;
	uint64_t driver_features;
	bool unknown_features; /* the driver wants bits above 63 */
	uint16_t queue_select;

	/* ioeventfds. */
	pthread_mutex_t notify_lock;
	uint64_t bar_gpa;
	bool bar_enabled;

	/* The PCI configuration access capability (4.1.4.9). */
	pthread_mutex_t window_lock;
	struct {
		uint8_t bar;
		uint32_t offset, length;
	} window;

	struct mb_virtio_queue queue[];
};

/* ---- virtio.c ---- */

/* Driver writes device_status. Caller holds the lock; waits for loops. */
void mb_virtio_write_status(struct mb_virtio *vdev, uint8_t value);
/* Stops every queue; the status keeps its other bits. Caller holds the lock; waits for loops. */
void mb_virtio_stop(struct mb_virtio *vdev);
/* As after power-on. Caller holds the lock; waits for loops. */
void mb_virtio_clear(struct mb_virtio *vdev);
/* The guest gets an interrupt from all that runs, whatever it has had. */
void mb_virtio_interrupt_all(struct mb_virtio *vdev);
/* Makes queue_kick of a running queue come soon. Any thread. */
void mb_virtio_kick(struct mb_virtio_queue *q);

/* ---- virtio_pci.c ---- */

/* Has KVM turn notifications of the queue into its eventfd from now on, or no more. */
void mb_virtio_want_ioeventfd(struct mb_virtio_queue *q, bool want);

#endif
