/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BOOT_INTERNAL_H
#define MIRRORBALL_BOOT_INTERNAL_H

#include <mirrorball/boot.h>
#include <stdbool.h>
#include <stddef.h>

/* What the parts of the boot loader share. Nothing here is for other modules. */

#define MB_BOOT_LOW_END	   0x9fc00ull  /* where a PC's extended BIOS data area begins */
#define MB_BOOT_KERNEL_MIN 0x100000ull /* below it is what the loader itself puts into RAM */

/*
 * A file being loaded, open, or an image in memory (fd -1). len is what it was when it was opened:
 * a file that shrinks later fails to read, it is never waited for.
 */
struct mb_boot_file {
	const char *what; /* "kernel", "initrd": for messages */
	const char *path;
	int fd;
	const uint8_t *image;
	uint64_t len;
};

int mb_boot_file_open(
	struct mb_boot_file *file, const char *what, const char *path, struct mb_error *err);
void mb_boot_file_close(struct mb_boot_file *file);

/* All of [offset, offset + len), or -EIO with "truncated" in err. */
int mb_boot_file_read(const struct mb_boot_file *file, uint64_t offset, void *buf, size_t len,
	struct mb_error *err);
/* The same, straight into guest RAM. */
int mb_boot_file_load(const struct mb_boot_file *file, struct mb_ram *ram, uint64_t gpa,
	uint64_t offset, uint64_t len, struct mb_error *err);
/* -EINVAL unless the file holds [offset, offset + len); `part` says what is there. */
int mb_boot_file_check(const struct mb_boot_file *file, uint64_t offset, uint64_t len,
	const char *part, struct mb_error *err);
/* "WHAT PATH: TEXT"; a long path is shortened so that the text is never lost. */
int mb_boot_file_error(const struct mb_boot_file *file, struct mb_error *err, int errnum,
	const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* One run of mb_boot_load. */
struct mb_boot_job {
	struct mb_ram *ram;
	const struct mb_boot_config *config;
	struct mb_boot_file kernel;
	struct mb_boot_file initrd; /* fd -1: none */
};

/* Memory types of e820 (ACPI 6.5, table 15.2), which PVH's memory map uses too. */
enum mb_boot_mem_type {
	MB_BOOT_MEM_RAM = 1,
	MB_BOOT_MEM_RESERVED = 2,
	MB_BOOT_MEM_ACPI = 3,
};

struct mb_boot_mem {
	uint64_t gpa;
	uint64_t len;
	enum mb_boot_mem_type type;
};

#define MB_BOOT_MEM_MAX 6u
/* Ascending, no overlaps. Returns how many. */
unsigned mb_boot_memory_map(const struct mb_boot_job *job, struct mb_boot_mem *map);

/* -EINVAL if no machine has RAM for a kernel there. */
int mb_boot_check_kernel_place(
	const struct mb_boot_job *job, uint64_t gpa, uint64_t len, struct mb_error *err);
/* The same, or -ENOMEM with the memory that is needed in err, unless low RAM holds the kernel. */
int mb_boot_check_kernel_fits(
	const struct mb_boot_job *job, uint64_t gpa, uint64_t len, struct mb_error *err);
/* Writes the command line, with its NUL, at MB_BOOT_CMDLINE. max_len: without the NUL. */
int mb_boot_put_cmdline(const struct mb_boot_job *job, uint64_t max_len, struct mb_error *err);
/*
 * Loads the initrd as high in low RAM as `limit` (exclusive) allows, not below kernel_end. *gpa:
 * where; 0 if there is none.
 */
int mb_boot_put_initrd(const struct mb_boot_job *job, uint64_t kernel_end, uint64_t limit,
	uint64_t *gpa, struct mb_error *err);

int mb_boot_bzimage(
	const struct mb_boot_job *job, struct mb_vcpu_start *start, struct mb_error *err);
int mb_boot_pvh(const struct mb_boot_job *job, struct mb_vcpu_start *start, struct mb_error *err);

/* What tells kinds of files apart: up to the "HdrS" of a bzImage. */
#define MB_BOOT_HEAD_LEN 0x206u
/*
 * Says why a file whose first n bytes (MB_BOOT_HEAD_LEN, or all of it) are head is no kernel that
 * can be started here. Returns -errno.
 */
int mb_boot_not_a_kernel(
	const struct mb_boot_file *file, const uint8_t *head, size_t n, struct mb_error *err);

#endif
