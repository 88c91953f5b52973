/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_RAM_H
#define MIRRORBALL_RAM_H

#include <mirrorball/dma.h>
#include <mirrorball/error.h>
#include <mirrorball/replica.h>
#include <mirrorball/vm.h>
#include <stdint.h>

/*
 * Guest RAM: one file in memory (ram_file.h), the home of every guest page (design, section 3),
 * mapped once for each view and once more for the monitor's own accesses.
 *
 *   GPA 0 .. low_bytes                     low RAM, at most MB_RAM_LOW_MAX (below the PCI hole)
 *   GPA 4 GiB .. 4 GiB + high_bytes        the rest
 */
#define MB_RAM_LOW_MAX	 0xc0000000ull
#define MB_RAM_HIGH_BASE 0x100000000ull
#define MB_RAM_ALIGN	 0x200000ull /* sizes are multiples of 2 MiB */

struct mb_ram;
struct mb_pmem_map; /* pmem_map.h */

/* bytes: a multiple of MB_RAM_ALIGN, at least one. */
int mb_ram_create(struct mb_vm *vm, uint64_t bytes, struct mb_ram **out, struct mb_error *err);
/*
 * What a snapshot's file has, which is read page by page when it is used, and written never: what the guest
 * writes is its own. The file has as many bytes, stays as it is, and may be closed. The VM has one view, which is
 * also the mapping for the monitor's own accesses; nothing is to zap, replicate, merge or track it.
 */
int mb_ram_create_private(
	struct mb_vm *vm, uint64_t bytes, int fd, struct mb_ram **out, struct mb_error *err);
bool mb_ram_is_private(const struct mb_ram *ram);
/* The VM must have no running vCPU. Takes NULL. */
void mb_ram_destroy(struct mb_ram *ram);

uint64_t mb_ram_low_bytes(const struct mb_ram *ram);
uint64_t mb_ram_high_bytes(const struct mb_ram *ram);
struct mb_dma *mb_ram_dma(struct mb_ram *ram);

/*
 * Its pages may have copies: who writes it through mb_ram_dma holds them. Before anything does; NULL
 * when nothing does any more. They outlive that.
 */
void mb_ram_set_replicas(struct mb_ram *ram, struct mb_replicas *replicas);

/*
 * Devices may read what is in these files, too, through mb_ram_dma. Before anything does, or NULL
 * when nothing does any more; they outlive that.
 */
void mb_ram_set_pmem(struct mb_ram *ram, struct mb_pmem_map *pmem);

/* For the tracker: the file, and where a view has all of it. */
int mb_ram_fd(const struct mb_ram *ram);
void *mb_ram_view_base(const struct mb_ram *ram, unsigned view);
void *mb_ram_own_base(const struct mb_ram *ram); /* of the mapping that is no view */
/* How much memory the host has behind it, whoever has it mapped; copies of it not counted. Of a private one
 * what is its own. */
uint64_t mb_ram_backed_bytes(const struct mb_ram *ram);
/* Where the guest has what is at `offset` of the file. */
uint64_t mb_ram_gpa(const struct mb_ram *ram, uint64_t offset);
/* Where in [offset, end) of the file ends what the guest has side by side: `end`, or the PCI hole. */
uint64_t mb_ram_run_end(const struct mb_ram *ram, uint64_t offset, uint64_t end);
/*
 * Maps a part of a view anew (mb_ram_file_remap). 1: with replicas, which see to it that it is watched,
 * and leave it alone where there are copies.
 */
int mb_ram_remap(struct mb_ram *ram, unsigned view, uint64_t offset, uint64_t len);
/* For each 2 MiB of the file whether mb_ram_remap is to want no huge pages there. Atomic; for the mover. */
bool *mb_ram_small(struct mb_ram *ram);

/* Reads from fd at offset into guest memory. -EFAULT outside RAM, -EIO on a short file, -errno. */
int mb_ram_load(struct mb_ram *ram, uint64_t gpa, int fd, uint64_t offset, uint64_t len);

/* Drops the contents of all of RAM (reads as zero), as a power cycle does. vCPUs paused. */
int mb_ram_clear(struct mb_ram *ram);

#endif
