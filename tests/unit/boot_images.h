/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_BOOT_IMAGES_H
#define MIRRORBALL_BOOT_IMAGES_H

#include "fake_ram.h"
#include <asm/bootparam.h>
#include <check.h>
#include <elf.h>
#include <fcntl.h>
#include <mirrorball/boot.h>
#include <stdio.h>

/*
 * Small kernels, made here, in files of a directory that each test has for itself, and what loading
 * one of them came to. One test program may include it once.
 */
#define MIB	     0x100000ull
#define SETUP_LEN    1024u /* two sectors: the boot sector and one of set-up code */
#define KERNEL_LEN   0x3000u
#define BZ_LEN	     (SETUP_LEN + KERNEL_LEN)
#define INIT_SIZE    0x1000000u
#define PREF_ADDRESS 0x1000000u
#define ELF_BASE     0x1000000u
#define ELF_ENTRY    (ELF_BASE + 0x120)
#define ELF_NOTES_AT 0x200u
#define ELF_TEXT_AT  0x1000u
#define ELF_TEXT_LEN 0x800u
#define ELF_DATA_LEN 0x300u
#define ELF_SECTIONS (ELF_TEXT_AT + ELF_TEXT_LEN + ELF_DATA_LEN)
#define ELF_LEN	     (ELF_SECTIONS + 2 * sizeof(Elf64_Shdr))

/* ---- files ---- */

static char dir[32];
static char kernel_path[64], initrd_path[64];

static inline void make_dir(void)
{
	strcpy(dir, "/tmp/mb-boot-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(kernel_path, sizeof(kernel_path), "%s/vmlinuz", dir);
	snprintf(initrd_path, sizeof(initrd_path), "%s/initrd.img", dir);
}

static inline void remove_dir(void)
{
	unlink(kernel_path);
	rmdir(kernel_path);
	unlink(initrd_path);
	rmdir(dir);
}

static inline void write_file(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, data, len), (ssize_t)len);
	close(fd);
}

/* A sparse file of len bytes with one byte at its start. */
static inline void write_sparse(const char *path, uint64_t len)
{
	write_file(path, "I", 1);
	ck_assert_int_eq(truncate(path, (off_t)len), 0);
}

static inline void make_bzimage(uint8_t *image)
{
	struct setup_header hdr = {
		.setup_sects = SETUP_LEN / 512 - 1,
		.syssize = KERNEL_LEN / 16,
		.boot_flag = 0xaa55,
		.jump = 0x6aeb,
		.header = 0x53726448,
		.version = 0x020f,
		.loadflags = LOADED_HIGH,
		.code32_start = 0x100000,
		.initrd_addr_max = 0x7fffffff,
		.kernel_alignment = 0x200000,
		.relocatable_kernel = 1,
		.min_alignment = 21,
		.xloadflags = XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G,
		.cmdline_size = 2047,
		.setup_data = 0x666,
		.pref_address = PREF_ADDRESS,
		.init_size = INIT_SIZE,
		.kernel_info_offset = 0x1234,
	};

	memset(image, 0, SETUP_LEN);
	memcpy(image, "MZ", 2);
	memcpy(image + 0x1f1, &hdr, sizeof(hdr));
	for (unsigned i = 0; i < KERNEL_LEN; i++)
		image[SETUP_LEN + i] = (uint8_t)(i * 7 + (i >> 8));
}

static inline struct setup_header *header_of(uint8_t *image)
{
	return (struct setup_header *)(image + 0x1f1);
}

static inline Elf64_Phdr *phdr_of(uint8_t *image, unsigned i)
{
	return (Elf64_Phdr *)(image + sizeof(Elf64_Ehdr)) + i;
}

struct note {
	Elf64_Nhdr hdr;
	char name[4];
	uint32_t desc[2];
};

/* Two segments and three notes, with the one that counts last. */
static inline void make_elf(uint8_t *image)
{
	const Elf64_Ehdr ehdr = {
		.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_entry = ELF_BASE,
		.e_phoff = sizeof(Elf64_Ehdr),
		.e_shoff = ELF_SECTIONS,
		.e_ehsize = sizeof(Elf64_Ehdr),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 3,
		.e_shentsize = sizeof(Elf64_Shdr),
		.e_shnum = 2,
	};
	const struct note notes[] = {
		{{4, 8, NT_GNU_BUILD_ID}, "GNU", {1, 2}},
		{{4, 8, 6}, "Xen", {3, 4}},
		{{4, 4, 18}, "Xen", {ELF_ENTRY, 0}},
	};

	memset(image, 0, ELF_LEN);
	memcpy(image, &ehdr, sizeof(ehdr));
	*phdr_of(image, 0) = (Elf64_Phdr){
		.p_type = PT_LOAD,
		.p_offset = ELF_TEXT_AT,
		.p_vaddr = 0xffffffff81000000,
		.p_paddr = ELF_BASE,
		.p_filesz = ELF_TEXT_LEN,
		.p_memsz = ELF_TEXT_LEN,
	};
	*phdr_of(image, 1) = (Elf64_Phdr){
		.p_type = PT_LOAD,
		.p_offset = ELF_TEXT_AT + ELF_TEXT_LEN,
		.p_paddr = ELF_BASE + 0x200000,
		.p_filesz = ELF_DATA_LEN,
		.p_memsz = 0x400000,
	};
	*phdr_of(image, 2) = (Elf64_Phdr){
		.p_type = PT_NOTE,
		.p_offset = ELF_NOTES_AT,
		.p_filesz = sizeof(notes) - 4,
		.p_memsz = sizeof(notes) - 4,
		.p_align = 4,
	};
	memcpy(image + ELF_NOTES_AT, notes, sizeof(notes));
	for (unsigned i = 0; i < ELF_TEXT_LEN + ELF_DATA_LEN; i++)
		image[ELF_TEXT_AT + i] = (uint8_t)(i * 5 + 1);
}

/* ---- loading ---- */

struct outcome {
	struct mb_ram ram;
	struct mb_vcpu_start start;
	struct mb_error err;
	int rc;
};

static inline void load(struct outcome *o, uint64_t ram_bytes, bool initrd, const char *cmdline)
{
	const struct mb_boot_config config = {
		.kernel_path = kernel_path,
		.initrd_path = initrd ? initrd_path : NULL,
		.cmdline = cmdline,
		.rsdp_gpa = MB_BOOT_ACPI,
	};
	uint64_t low = ram_bytes < MB_RAM_LOW_MAX ? ram_bytes : MB_RAM_LOW_MAX;

	*o = (struct outcome){0};
	fake_ram_init(&o->ram, low, ram_bytes - low);
	o->rc = mb_boot_load(&o->ram, &config, &o->start, &o->err);
	/* The contract of mb_error: a text exactly when it failed, one line, the file named. */
	if (o->rc) {
		ck_assert_int_lt(o->rc, 0);
		ck_assert_ptr_nonnull(strchr(o->err.text, ':'));
		ck_assert_ptr_null(strchr(o->err.text, '\n'));
		ck_assert(strstr(o->err.text, kernel_path) || strstr(o->err.text, initrd_path));
	} else {
		ck_assert_str_eq(o->err.text, "");
	}
}

static inline struct boot_params *params_of(const struct outcome *o)
{
	return (struct boot_params *)(o->ram.mem + MB_BOOT_PARAMS);
}

static inline uint64_t entry_of(const struct outcome *o, uint64_t table, unsigned index)
{
	uint64_t v;

	memcpy(&v, o->ram.mem + table + index * 8ull, sizeof(v));
	return v;
}

/* Walks the page tables as the CPU does, from cr3. */
static inline void check_identity(const struct outcome *o, uint64_t cr3, uint64_t gpa)
{
	uint64_t pml4e = entry_of(o, cr3, gpa >> 39 & 511), pdpte, pde;

	ck_assert_uint_eq(pml4e & 7, 7);
	pdpte = entry_of(o, pml4e & ~0xfffull, gpa >> 30 & 511);
	ck_assert_uint_eq(pdpte & 7, 7);
	pde = entry_of(o, pdpte & ~0xfffull, gpa >> 21 & 511);
	ck_assert_uint_eq(pde & 0xfff, 0x87);
	ck_assert_uint_eq(pde & ~0xfffull, gpa & ~0x1fffffull);
}

#endif
