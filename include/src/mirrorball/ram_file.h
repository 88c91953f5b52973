/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_RAM_FILE_H
#define MIRRORBALL_RAM_FILE_H

#include <stdint.h>

/*
 * The file that is a machine's RAM. It has no name and lives in memory (shmem). Whether shmem gets
 * huge pages is a setting of its mount: the kernel's own mount, where memfds live, follows
 * transparent_hugepage/shmem_enabled, "never" on most hosts; a tmpfs may be mounted with
 * huge=advise by who may mount, or in a user namespace made for it (tmpfs(5), namespaces(7)). So
 * the file is in a tmpfs of its own, that no directory shows, and in a memfd where that is not
 * allowed. shmem_enabled=deny forbids huge pages in both.
 */

/* All zero, close-on-exec; the caller closes it. The file, or -errno. Forks a short-lived child. */
int mb_ram_file_open(uint64_t bytes);

/* A mapping of such a file, whole and aligned to a huge page: a reservation is around it. */
struct mb_ram_mapping {
	void *reserved;
	char *base;
};

/* Maps all `bytes` of the file, for reads and writes. 0 or -errno; m is filled in either case. */
int mb_ram_file_map(int fd, uint64_t bytes, struct mb_ram_mapping *m);
/*
 * Maps a part anew, as it was at first: small page tables in there become huge ones again with the next
 * touch. Whoever touches it meanwhile waits. -errno: it is as it was.
 */
int mb_ram_file_remap(int fd, const struct mb_ram_mapping *m, uint64_t offset, uint64_t len);
/* `bytes` as when it was mapped. Takes a mapping that failed, and one that is all zero. */
void mb_ram_file_unmap(struct mb_ram_mapping *m, uint64_t bytes);

/*
 * A snapshot's file, which has so many bytes: what is written to the mapping is its own. To be unmapped with
 * mb_ram_file_unmap. -errno.
 */
int mb_ram_file_map_private(int fd, uint64_t bytes, struct mb_ram_mapping *m);
/* A part of it is zeroes from now on. -ENOMEM: it is as it was. */
int mb_ram_file_map_zeroes(const struct mb_ram_mapping *m, uint64_t offset, uint64_t len);
/* How much of it is not the file's; bytes: a multiple of 2 MiB. */
uint64_t mb_ram_file_private_bytes(const struct mb_ram_mapping *m, uint64_t bytes);

/*
 * file_bytes of an image that is only read, whole pages, and zeroes behind that, up to `bytes`. To be
 * unmapped with mb_ram_file_unmap. -errno; m is filled in either case.
 */
int mb_ram_file_map_image(int fd, uint64_t file_bytes, uint64_t bytes, struct mb_ram_mapping *m);

#endif
