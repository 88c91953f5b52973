/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_VM_H
#define MIRRORBALL_VM_H

#include <mirrorball/error.h>
#include <mirrorball/host.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * A KVM virtual machine: memslots per view, interrupt routing, ioeventfds. The interrupt controller
 * is split (api.rst 7.5): local APICs in the kernel, the I/O APIC in devices/.
 */
struct mb_vm;

#define MB_IOAPIC_PINS 24u /* GSIs 0..23 are the I/O APIC's pins; MSIs come after */

struct mb_vm_config {
	unsigned n_views; /* 1..host->n_views */
	/* APIC ids above 254 are in use: 32-bit ids in MSI routes, APICs start in x2APIC mode. */
	bool x2apic_ids;
};

/* host must outlive the VM. */
int mb_vm_create(const struct mb_host *host, const struct mb_vm_config *config, struct mb_vm **out,
	struct mb_error *err);
/* Takes NULL. All vCPUs must be gone. */
void mb_vm_destroy(struct mb_vm *vm);

int mb_vm_fd(const struct mb_vm *vm);
bool mb_vm_x2apic_ids(const struct mb_vm *vm);
const struct mb_host *mb_vm_host(const struct mb_vm *vm);
unsigned mb_vm_n_views(const struct mb_vm *vm);

/* A memslot: [gpa, gpa + len) of a view is the monitor's memory at hva. Page-aligned. */
struct mb_memslot {
	uint64_t gpa;
	uint64_t len_bytes; /* 0 removes the slot */
	void *hva;
	bool readonly;
};

/* slot: 0..host->max_memslots-1, counted for each view by itself. */
int mb_vm_set_memslot(struct mb_vm *vm, unsigned view, unsigned slot, const struct mb_memslot *ms);

/*
 * Where view `view` has guest memory [gpa, gpa + len), or NULL if it is not inside one memslot.
 * For diagnostics only (the register dump); devices use mb_dma. What is a file's may be cut off:
 * to be read as another process' memory.
 */
void *mb_vm_translate(const struct mb_vm *vm, unsigned view, uint64_t gpa, uint64_t len);

/*
 * An ioeventfd: a guest write of len bytes (0 = any length, MMIO only) to addr signals fd and does not
 * leave the kernel. assign false takes it away again (same values).
 */
struct mb_ioeventfd {
	uint64_t addr;
	unsigned len;
	bool pio;
	int fd;
};
int mb_vm_set_ioeventfd(struct mb_vm *vm, const struct mb_ioeventfd *ioe, bool assign);

/* ---- interrupts: routes are kept here and given to KVM as one table. Any thread. ---- */

/* A GSI of its own for an MSI vector: MB_IOAPIC_PINS or above. -ENOSPC when all are taken. */
int mb_vm_gsi_alloc(struct mb_vm *vm, unsigned *gsi);
void mb_vm_gsi_free(struct mb_vm *vm, unsigned gsi);
/*
 * Routes gsi to the MSI (addr, data) as the guest wrote it; addr 0 removes the route. With x2apic_ids,
 * bits 11:5 of addr are destination bits 14:8 (KVM_FEATURE_MSI_EXT_DEST_ID) and are translated here.
 * A system management interrupt goes nowhere, here and in mb_vm_msi_send.
 */
int mb_vm_gsi_route(struct mb_vm *vm, unsigned gsi, uint64_t msi_addr, uint32_t msi_data);
/* A write to eventfd `fd` raises gsi, in the kernel. bind false takes it away. */
int mb_vm_gsi_irqfd(struct mb_vm *vm, unsigned gsi, int fd, bool bind);
/* Sends one MSI now, without a route. */
int mb_vm_msi_send(struct mb_vm *vm, uint64_t msi_addr, uint32_t msi_data);

#endif
