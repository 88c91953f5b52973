/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_PCI_H
#define MIRRORBALL_PCI_H

#include <mirrorball/bus.h>
#include <mirrorball/error.h>
#include <mirrorball/state.h>
#include <mirrorball/vm.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * A PCI Express host bridge with one bus: configuration space through ECAM (PCIe 5.0, 7.2.2) and,
 * for early boot code, ports 0xcf8/0xcfc. Functions sit at 00:NN.0, NN = 1..31; 00:00.0 is the
 * bridge.
 *
 *   GPA  0xc000_0000 .. 0xdfff_ffff   32-bit BARs, placed here by us before the guest starts
 *        0xe000_0000 .. 0xe00f_ffff   ECAM of bus 0
 */
#define MB_PCI_MMIO_BASE 0xc0000000ull
#define MB_PCI_MMIO_LEN	 0x20000000ull
#define MB_PCI_ECAM_BASE 0xe0000000ull
#define MB_PCI_ECAM_LEN	 0x00100000ull

struct mb_pci_bus;

int mb_pci_bus_create(
	struct mb_bus *bus, struct mb_vm *vm, struct mb_pci_bus **out, struct mb_error *err);
void mb_pci_bus_destroy(struct mb_pci_bus *pci);
struct mb_vm *mb_pci_bus_vm(struct mb_pci_bus *pci);
/*
 * Of the bus and all its functions, for a snapshot; vCPUs paused. load: into new ones, the same in the same slots, or
 * -EINVAL.
 */
void mb_pci_bus_save(struct mb_pci_bus *pci, struct mb_state_out *out);
int mb_pci_bus_load(struct mb_pci_bus *pci, struct mb_state_in *in, struct mb_error *err);

/*
 * One function with one memory BAR (BAR 0, 32-bit, non-prefetchable, power of two) and, when
 * n_msix > 0, an MSI-X capability whose table and pending bits are in that BAR.
 *
 * Lock order: the bus's configuration lock, then a function's MSI-X lock, then the VM's routing. A
 * loop takes at most the last two, so that a vCPU may wait for a loop while it holds neither.
 */
struct mb_pci_dev;

struct mb_pci_dev_ops {
	struct mb_region_ops bar; /* accesses to BAR 0 outside the MSI-X table; no lock held */
	/*
	 * BAR 0 answers at gpa from now on (enabled), or no more: for ioeventfds. Configuration
	 * lock held: do not wait for a loop. May be NULL.
	 */
	void (*bar_moved)(void *dev, uint64_t gpa, bool enabled);
	/*
	 * The guest took away the right to reach memory (Bus Master Enable): before it returns the
	 * device stops. vCPU thread, no lock held. May be NULL.
	 */
	void (*bus_master_lost)(void *dev);
};

struct mb_pci_config {
	uint16_t vendor_id, device_id, subsystem_vendor_id, subsystem_id;
	uint32_t class_code; /* 24 bits: class, subclass, interface */
	uint8_t revision;
	uint32_t bar_bytes;
	unsigned n_msix;	    /* vectors, 0..2048 */
	uint32_t msix_table_offset; /* in BAR 0, 4 KiB-aligned */
	uint32_t msix_pba_offset;
	const struct mb_pci_dev_ops *ops;
	void *dev;
};

/* Takes the next free slot and the place in the MMIO window that goes with it. */
int mb_pci_dev_create(struct mb_pci_bus *pci, const struct mb_pci_config *config,
	struct mb_pci_dev **out, struct mb_error *err);
void mb_pci_dev_destroy(struct mb_pci_dev *pdev);

/*
 * Adds a vendor-specific capability (id 0x09) of len bytes (with its 2-byte header, which is filled
 * in here). Before the guest runs. Returns its offset in configuration space through *offset.
 */
int mb_pci_add_capability(
	struct mb_pci_dev *pdev, const void *body, unsigned len, unsigned *offset);
/*
 * Called on guest accesses to a capability added above, on vCPU threads and with no lock held
 * (virtio's PCI configuration access window). read may leave out the 2-byte header. Before the
 * guest runs.
 */
void mb_pci_set_capability_hook(struct mb_pci_dev *pdev, unsigned offset,
	void (*read)(void *dev, unsigned offset_in_cap, void *data, unsigned len),
	void (*write)(void *dev, unsigned offset_in_cap, const void *data, unsigned len));

/* Accesses BAR 0 as the guest would at bar + offset; an access outside reads 0. No lock held. */
void mb_pci_bar_read(struct mb_pci_dev *pdev, uint64_t offset, void *data, unsigned len);
void mb_pci_bar_write(struct mb_pci_dev *pdev, uint64_t offset, const void *data, unsigned len);

unsigned mb_pci_dev_slot(const struct mb_pci_dev *pdev);
/*
 * Where the guest has put BAR 0; it answers there if memory decoding is on and nothing else does.
 */
uint64_t mb_pci_dev_bar(const struct mb_pci_dev *pdev);
/* Whether the guest lets it reach memory (Bus Master Enable). Takes the configuration lock. */
bool mb_pci_dev_is_master(const struct mb_pci_dev *pdev);

/*
 * Raises MSI-X vector; remembered as pending while masked. Any thread. One write to an eventfd on
 * the hot path.
 */
void mb_pci_msix_raise(struct mb_pci_dev *pdev, unsigned vector);

/* Power-on state, BAR back at its first place. vCPUs paused. */
void mb_pci_dev_reset(struct mb_pci_dev *pdev);

#endif
