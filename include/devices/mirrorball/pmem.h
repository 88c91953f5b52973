/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_PMEM_H
#define MIRRORBALL_PMEM_H

#include <mirrorball/virtio.h>

/*
 * A virtio persistent memory device (virtio 1.2, 5.19) of a file that is only read, by several
 * machines maybe. It tells where in guest memory the file is, and answers flushes, of which there
 * is nothing to do; src/pmem_map.c puts it there. The guest is not told that it cannot write: the
 * device has no way to.
 */
struct mb_pmem;

/* What the guest gets is so aligned, and so large that it is a multiple: Linux maps no less as DAX.
 */
#define MB_PMEM_ALIGN 0x200000ull

struct mb_pmem_config {
	const char *path; /* of a regular file or block device; outlives the device */
	uint64_t gpa;	  /* where the guest finds it */
};

/*
 * Opens path as the base of a disk is opened: locked against writers, shared with other readers.
 * Errors name the file and say what to do.
 */
int mb_pmem_create(struct mb_pci_bus *pci, struct mb_dma *dma, struct mb_loop *loop,
	const struct mb_pmem_config *config, struct mb_pmem **out, struct mb_error *err);
/* Takes NULL. */
void mb_pmem_destroy(struct mb_pmem *pmem);
void mb_pmem_reset(struct mb_pmem *pmem);

const char *mb_pmem_path(const struct mb_pmem *pmem);
int mb_pmem_fd(const struct mb_pmem *pmem); /* for reading; the device's */
uint64_t mb_pmem_gpa(const struct mb_pmem *pmem);
uint64_t mb_pmem_bytes(const struct mb_pmem *pmem);	 /* as the guest sees it */
uint64_t mb_pmem_file_bytes(const struct mb_pmem *pmem); /* of the file: as many, or less */

/*
 * Whether the file is what it was when it was opened. Once false it stays so, and is said in the
 * log. Any thread.
 */
bool mb_pmem_holds(struct mb_pmem *pmem);

/* For a snapshot (virtio.h); vCPUs paused. -ESTALE: the file was changed. */
int mb_pmem_pause(struct mb_pmem *pmem, uint64_t timeout_ns, struct mb_error *err);
void mb_pmem_resume(struct mb_pmem *pmem);
int mb_pmem_save(struct mb_pmem *pmem, struct mb_state_out *out, struct mb_error *err);
int mb_pmem_load(struct mb_pmem *pmem, struct mb_state_in *in, struct mb_error *err);

#endif
