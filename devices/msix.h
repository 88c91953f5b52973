/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_DEVICES_MSIX_H
#define MIRRORBALL_DEVICES_MSIX_H

#include <mirrorball/state.h>
#include <mirrorball/vm.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * MSI-X (PCI Local Bus 3.0, 6.8.2) of one function: table, pending bits, and a GSI with an eventfd
 * for each vector that was ever raised.
 *
 * Lock: its own, under which nothing but the VM's routing is locked; so a device's loop may wait
 * for it.
 */
struct mb_msix;

#define MB_MSIX_ENTRY_BYTES 16u

int mb_msix_create(struct mb_vm *vm, unsigned n_vectors, struct mb_msix **out);
/* Takes NULL. */
void mb_msix_destroy(struct mb_msix *msix);

/* The capability's Enable and Function Mask bits. */
void mb_msix_control(struct mb_msix *msix, bool enabled, bool masked);
/*
 * Offsets are inside the table or the pending bits; [offset, offset + len) may reach past the end.
 */
void mb_msix_table_read(struct mb_msix *msix, uint64_t offset, void *data, unsigned len);
void mb_msix_table_write(struct mb_msix *msix, uint64_t offset, const void *data, unsigned len);
void mb_msix_pba_read(struct mb_msix *msix, uint64_t offset, void *data, unsigned len);
/* Any thread. Vectors that do not exist: nothing. */
void mb_msix_raise(struct mb_msix *msix, unsigned vector);
/* Power-on state. */
void mb_msix_reset(struct mb_msix *msix);
/* For a snapshot, into an open part. load: into a new one; what was pending is sent when it opens. */
void mb_msix_save(struct mb_msix *msix, struct mb_state_out *out);
void mb_msix_load(struct mb_msix *msix, struct mb_state_in *part);

#endif
