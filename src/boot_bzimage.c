// SPDX-License-Identifier: Apache-2.0
#include "boot_internal.h"
#include <asm/bootparam.h>
#include <assert.h>
#include <errno.h>
#include <mirrorball/range.h>
#include <stddef.h>
#include <string.h>

/*
 * Linux/x86 boot protocol (Documentation/arch/x86/boot.rst), 64-bit entry. A bzImage is
 *
 *   0                        setup code, whose header at 0x1f1 is struct setup_header
 *   (setup_sects + 1) * 512  the protected-mode kernel, syssize * 16 bytes; loaded at L, its 64-bit
 *                            entry point is L + 0x200
 *
 * The kernel unpacks itself in place and needs init_size bytes from L on before it looks at the
 * memory map.
 */
#define HEADER_OFFSET	 0x1f1u
#define HEADER_JUMP	 0x202u	 /* where the jump over the header, at 0x200, starts from */
#define VERSION_MIN	 0x020cu /* 2.12, Linux 3.8: xloadflags */
#define VERSION_MAJOR	 2u
#define ENTRY_64	 0x200u
#define BOOT_SIGNATURE	 0x53726448u /* "HdrS" */
#define LOADER_UNDEFINED 0xffu

/* The boot parameters' page ends where room for the stack begins, below the page tables. */
static_assert(sizeof(struct boot_params) == 4096, "the zero page is a page");
static_assert(
	MB_BOOT_PARAMS + sizeof(struct boot_params) < MB_BOOT_PAGE_TABLES, "room for a stack");
/* What every kernel of VERSION_MIN and later has in its header. */
#define HEADER_MIN (offsetof(struct setup_header, kernel_info_offset))

struct bzimage {
	struct setup_header hdr;
	uint64_t kernel_offset; /* of the protected-mode kernel in the file */
	uint64_t kernel_len;
	uint64_t load_gpa;
	uint64_t end_gpa; /* of what must be left to the kernel */
};

/* Copies the header to where the zero page has it; its length is in the file. */
static int read_header(
	const struct mb_boot_job *job, struct setup_header *hdr, struct mb_error *err)
{
	const size_t room = offsetof(struct boot_params, edd_mbr_sig_buffer) - HEADER_OFFSET;
	uint8_t jump[2];
	size_t len;
	int rc;

	rc = mb_boot_file_read(&job->kernel, 0x206, jump, sizeof(jump), err);
	if (rc)
		return rc;
	/* The version comes first: a header of another major version may mean anything. */
	if (jump[1] > VERSION_MAJOR)
		return mb_boot_file_error(&job->kernel, err, ENOTSUP,
			"is too new: it speaks boot protocol %u.%02u, 2.12 to 2.255 are known: use "
			"the "
			"vmlinux of the same kernel, or a newer mirrorball",
			jump[1], jump[0]);
	if ((jump[1] << 8 | jump[0]) < (int)VERSION_MIN)
		return mb_boot_file_error(&job->kernel, err, ENOTSUP,
			"is too old: it speaks boot protocol %u.%02u, at least 2.12 (Linux 3.8) is "
			"needed",
			jump[1], jump[0]);
	rc = mb_boot_file_read(&job->kernel, 0x200, jump, sizeof(jump), err);
	if (rc)
		return rc;
	/* boot.rst, "64-bit boot protocol": the header ends at 0x202 + byte at 0x201. */
	len = HEADER_JUMP + jump[1] - HEADER_OFFSET;
	if (len < HEADER_MIN)
		return mb_boot_file_error(&job->kernel, err, EINVAL,
			"is damaged: its boot header has %zu bytes, its protocol version at least "
			"%zu",
			len, HEADER_MIN);
	if (len > room)
		return mb_boot_file_error(&job->kernel, err, ENOTSUP,
			"is too new: its boot header has %zu bytes, the boot parameters have room "
			"for %zu: "
			"use the vmlinux of the same kernel, or a newer mirrorball",
			len, room);
	/* Fields that this program does not know stay 0, which is what an old boot loader leaves.
	 */
	if (len > sizeof(*hdr))
		len = sizeof(*hdr);
	return mb_boot_file_read(&job->kernel, HEADER_OFFSET, hdr, len, err);
}

/* Where the kernel goes: boot.rst, field init_size, has this rule. */
static int place(const struct mb_boot_job *job, struct bzimage *bz, struct mb_error *err)
{
	const struct setup_header *hdr = &bz->hdr;
	uint64_t gpa = hdr->pref_address, align = hdr->kernel_alignment, len;

	if (hdr->relocatable_kernel) {
		if (!align || align & (align - 1))
			return mb_boot_file_error(&job->kernel, err, EINVAL,
				"is damaged: it asks for an alignment of 0x%llx bytes",
				(unsigned long long)align);
		if (gpa < MB_BOOT_KERNEL_MIN)
			gpa = MB_BOOT_KERNEL_MIN;
		/* An address near 2^64 must not wrap to a small one. */
		if (gpa < MB_RAM_LOW_MAX)
			gpa = mb_align_up(gpa, align);
	}
	len = hdr->init_size;
	if (len < bz->kernel_len)
		len = bz->kernel_len;
	bz->load_gpa = gpa;
	bz->end_gpa = gpa + len;
	return mb_boot_check_kernel_fits(job, gpa, len, err);
}

static int check(const struct mb_boot_job *job, struct bzimage *bz, struct mb_error *err)
{
	const struct setup_header *hdr = &bz->hdr;
	/* boot.rst, setup_sects: "if it contains 0, the real value is 4". */
	unsigned n_sects = hdr->setup_sects ? hdr->setup_sects : 4;

	if (!(hdr->loadflags & LOADED_HIGH))
		return mb_boot_file_error(&job->kernel, err, ENOTSUP,
			"is a zImage, for the first MiB of memory: build a bzImage");
	if (!(hdr->xloadflags & XLF_KERNEL_64))
		return mb_boot_file_error(&job->kernel, err, ENOTSUP,
			"is a 32-bit kernel, which cannot be started here: use a 64-bit one "
			"(amd64, x86_64)");
	bz->kernel_offset = (n_sects + 1) * 512u;
	bz->kernel_len = hdr->syssize * 16ull;
	if (bz->kernel_len <= ENTRY_64)
		return mb_boot_file_error(&job->kernel, err, EINVAL,
			"is damaged: its header says that the kernel has %llu bytes",
			(unsigned long long)bz->kernel_len);
	return mb_boot_file_check(&job->kernel, bz->kernel_offset, bz->kernel_len, "kernel", err);
}

static void fill_params(const struct mb_boot_job *job, const struct bzimage *bz,
	uint64_t initrd_gpa, struct boot_params *params)
{
	struct mb_boot_mem map[MB_BOOT_MEM_MAX];
	unsigned n = mb_boot_memory_map(job, map);

	memset(params, 0, sizeof(*params));
	params->hdr = bz->hdr;
	params->hdr.header = BOOT_SIGNATURE;
	params->hdr.type_of_loader = LOADER_UNDEFINED;
	params->hdr.ext_loader_ver = 0;
	params->hdr.ext_loader_type = 0;
	params->hdr.loadflags &= (uint8_t) ~(CAN_USE_HEAP | KASLR_FLAG);
	params->hdr.code32_start = (uint32_t)bz->load_gpa;
	params->hdr.cmd_line_ptr = (uint32_t)MB_BOOT_CMDLINE;
	params->hdr.ramdisk_image = (uint32_t)initrd_gpa;
	params->hdr.ramdisk_size = initrd_gpa ? (uint32_t)job->initrd.len : 0;
	params->hdr.setup_data = 0;
	params->acpi_rsdp_addr = job->config->rsdp_gpa;
	for (unsigned i = 0; i < n; i++) {
		params->e820_table[i].addr = map[i].gpa;
		params->e820_table[i].size = map[i].len;
		params->e820_table[i].type = map[i].type;
	}
	params->e820_entries = (uint8_t)n;
}

int mb_boot_bzimage(
	const struct mb_boot_job *job, struct mb_vcpu_start *start, struct mb_error *err)
{
	struct bzimage bz = {0};
	struct boot_params params;
	uint64_t initrd_gpa;
	int rc;

	rc = read_header(job, &bz.hdr, err);
	if (!rc)
		rc = check(job, &bz, err);
	if (!rc)
		rc = place(job, &bz, err);
	if (!rc)
		rc = mb_boot_put_cmdline(job, bz.hdr.cmdline_size, err);
	if (!rc)
		rc = mb_boot_put_initrd(
			job, bz.end_gpa, bz.hdr.initrd_addr_max + 1ull, &initrd_gpa, err);
	if (!rc)
		rc = mb_boot_file_load(
			&job->kernel, job->ram, bz.load_gpa, bz.kernel_offset, bz.kernel_len, err);
	if (!rc)
		rc = mb_boot_page_tables(job->ram, err);
	if (rc)
		return rc;
	fill_params(job, &bz, initrd_gpa, &params);
	rc = mb_dma_write(mb_ram_dma(job->ram), MB_BOOT_PARAMS, &params, sizeof(params));
	if (rc)
		return mb_error_set(err, -rc, "boot: guest memory at 0x%llx: %s",
			(unsigned long long)MB_BOOT_PARAMS, strerror(-rc));
	*start = (struct mb_vcpu_start){
		.rip = bz.load_gpa + ENTRY_64,
		.rsp = MB_BOOT_PAGE_TABLES,
		.rsi = MB_BOOT_PARAMS,
		.cr3 = MB_BOOT_PAGE_TABLES,
		.long_mode = true,
	};
	return 0;
}
