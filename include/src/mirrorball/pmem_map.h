/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_PMEM_MAP_H
#define MIRRORBALL_PMEM_MAP_H

#include <mirrorball/bus.h>
#include <mirrorball/error.h>
#include <mirrorball/machine.h>
#include <mirrorball/pmem.h>
#include <mirrorball/vm.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Files as guest memory (pmem.h), above all RAM, in every view at the same place:
 *
 *   file, page cache  <--mmap, read-only, shared--  one mapping  <--memslot, read-only--  each view
 *   zeroes behind it, up to MB_PMEM_ALIGN
 *
 * Machines that have the same file have the same pages. Nobody takes them out of page tables,
 * moves, copies or merges them, and they are no RAM to anybody: not in the guest's memory map, nor
 * for the tracker, the mover, replicas or the balloon.
 *
 * A write leaves the guest, is dropped, and said. A device reads it through the file and not
 * through the mapping (mb_dma_map, -EXDEV): whoever cuts off the file takes pages out of that, and
 * it is the guest's vCPU that fails then, and not the monitor.
 */
struct mb_pmem_map;

/* Where one begins: Linux keeps a section of 128 MiB for one kind of memory. */
#define MB_PMEM_SECTION 0x8000000ull

/*
 * ram_end: GPA behind RAM. lost is called when something that the guest has asked for could not be
 * read, so that it must not go on; on the thread of a vCPU or a device. Both must outlive the map.
 */
int mb_pmem_map_create(struct mb_vm *vm, struct mb_bus *bus, uint64_t ram_end,
	void (*lost)(void *ctx), void *ctx, struct mb_pmem_map **out, struct mb_error *err);
/* Devices and vCPUs must not run any more. Takes NULL. */
void mb_pmem_map_destroy(struct mb_pmem_map *map);

/* GPA of the next one. */
uint64_t mb_pmem_map_next(const struct mb_pmem_map *map);
/*
 * The guest has it from now on; it has to be at mb_pmem_map_next, and outlive the map. Before vCPUs
 * and queues run. -ENOTSUP: KVM cannot do it. -ERANGE: it is above what addresses reach. -ENOSPC:
 * there are MB_MAX_PMEMS.
 */
int mb_pmem_map_add(struct mb_pmem_map *map, struct mb_pmem *pmem, struct mb_error *err);

/* Any thread, any range; map may be NULL. Whether all of it is in one of them. */
bool mb_pmem_map_has(const struct mb_pmem_map *map, uint64_t gpa, uint64_t len);
/* Reads from the file. -EFAULT: not all of it is in one, or it is there no more. */
int mb_pmem_map_read(struct mb_pmem_map *map, uint64_t gpa, void *buf, uint64_t len);
/* Has a file that was changed said, when something went wrong. Any thread; map may be NULL. */
void mb_pmem_map_check(struct mb_pmem_map *map);

#endif
