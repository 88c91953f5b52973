/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BOOT_H
#define MIRRORBALL_BOOT_H

#include <mirrorball/error.h>
#include <mirrorball/ram.h>
#include <mirrorball/vcpu.h>
#include <stdint.h>

/*
 * Puts a guest into RAM and says where its first vCPU starts. Low memory while booting:
 *
 *   0x0000_7000   boot_params ("zero page")        0x0000_9000   identity page tables (24 KiB)
 *   0x0002_0000   command line                     0x0000_6000   PVH start info and memory map
 *   0x0009_fc00   end of low RAM in e820           0x000e_0000   ACPI tables (RSDP first)
 *   0x000f_f000   generation ID
 *   0x000f_fff0   reset vector: code that resets the machine, for guests that jump there
 *   0x0010_0000   kernel (or where it asks to be)  end of low RAM, downwards: initrd
 */
#define MB_BOOT_PVH_INFO    0x6000ull
#define MB_BOOT_PARAMS	    0x7000ull
#define MB_BOOT_PAGE_TABLES 0x9000ull
#define MB_BOOT_CMDLINE	    0x20000ull
#define MB_BOOT_ACPI	    0xe0000ull
#define MB_BOOT_ACPI_LEN    0x20000ull
#define MB_BOOT_GENERATION  0xff000ull /* 16 bytes: mb_acpi_new_generation */

struct mb_boot_config {
	const char *kernel_path; /* bzImage or ELF vmlinux with a PVH note */
	const char *initrd_path; /* NULL: none */
	const char *cmdline;	 /* never NULL */
	uint64_t rsdp_gpa;	 /* 0: no ACPI */
};

/*
 * Puts the kernel, its initrd and what they need into RAM, straight from the files; RAM must be as
 * created or cleared: what a kernel expects to be zero is not written. start is for the first vCPU.
 * Nothing of a file is believed before it is checked. Every error names the file, says what is
 * wrong with it and what is expected; where memory is short, how much is enough:
 *
 *   -ENOENT, -EACCES, -EISDIR ...  it cannot be opened       -ENOMEM  it needs more RAM
 *   -ENOEXEC                       it is not a kernel        -EFBIG   no amount of RAM is enough
 *   -ENOTSUP                       too old, too new, 32-bit  -E2BIG   the command line is too long
 *   -EINVAL                        damaged or truncated      -EIO     it shrank while it was read
 */
int mb_boot_load(struct mb_ram *ram, const struct mb_boot_config *config,
	struct mb_vcpu_start *start, struct mb_error *err);

/*
 * Loads the PT_LOAD segments of a 64-bit ELF image in memory to their physical addresses, 1 MiB
 * and above; *entry is its entry point. Used for splash: `name` is for messages. RAM must be zero.
 */
int mb_boot_load_elf_image(struct mb_ram *ram, const void *image, uint64_t len, const char *name,
	uint64_t *entry, struct mb_error *err);

/*
 * Identity-maps the first 4 GiB with 2 MiB pages, supervisor and user; the tables are at
 * MB_BOOT_PAGE_TABLES, which is the value for CR3.
 */
int mb_boot_page_tables(struct mb_ram *ram, struct mb_error *err);

#endif
