/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPLASH_DISK_H
#define SPLASH_DISK_H

#include "guest.h"

/*
 * A driver for virtio disks: a queue for each vCPU, one request of it at a time, no interrupts.
 * Memory of requests is below 4 GiB or above, wherever memory_take gives it.
 */
#define SECTOR_BYTES   512u
#define DISK_MAX_PARTS 16u
#define MAX_DISKS      2u

enum disk_type { DISK_READ = 0, DISK_WRITE = 1, DISK_FLUSH = 4 }; /* virtio 1.2, 5.2.6 */

struct disk_part {
	void *at; /* within one page */
	uint32_t bytes;
};

/* vCPU 0, in a program's setup: finds all, and opens them. How many there are; at most MAX_DISKS.
 */
unsigned disks_open(void);
uint64_t disk_sectors(unsigned disk);
/* Each vCPU, when none of its requests to the disk is on its way. At most DISK_MAX_PARTS, none for
 * a flush. */
void disk_start(struct cpu *self, unsigned disk, enum disk_type type, uint64_t sector,
	const struct disk_part *part, unsigned n_parts);
/* Whether it is over, and whether with an I/O error. */
bool disk_done(struct cpu *self, unsigned disk, bool *failed);

#endif
