// SPDX-License-Identifier: Apache-2.0
#include "boot_internal.h"
#include <elf.h>
#include <errno.h>
#include <mirrorball/pci.h>
#include <mirrorball/range.h>
#include <string.h>

#define PAGE_SIZE 0x1000ull
#define MIB	  0x100000ull

/* Page table entries (SDM vol. 3, 4.5.4). */
#define PTE_PRESENT  0x01ull
#define PTE_WRITABLE 0x02ull
#define PTE_USER     0x04ull
#define PTE_HUGE     0x80ull

/*
 * Where a processor starts after a reset, seen from real mode (f000:fff0). The ACPI tables below
 * are far too short to reach it.
 */
#define RESET_VECTOR 0xffff0ull

static int put(const struct mb_boot_job *job, uint64_t gpa, const void *data, uint64_t len,
	struct mb_error *err)
{
	int rc = mb_dma_write(mb_ram_dma(job->ram), gpa, data, len);

	if (rc)
		mb_error_set(err, -rc, "boot: guest memory at 0x%llx: %s", (unsigned long long)gpa,
			strerror(-rc));
	return rc;
}

/*
 * PML4 -> one page directory pointer table -> four page directories of 512 pages of 2 MiB each.
 */
int mb_boot_page_tables(struct mb_ram *ram, struct mb_error *err)
{
	const uint64_t flags = PTE_PRESENT | PTE_WRITABLE | PTE_USER;
	const uint64_t pdpt = MB_BOOT_PAGE_TABLES + PAGE_SIZE, pd = pdpt + PAGE_SIZE;
	const uint64_t len = 6 * PAGE_SIZE;
	uint64_t *pte;
	void *hva;
	int rc = mb_dma_map(mb_ram_dma(ram), MB_BOOT_PAGE_TABLES, len, MB_DMA_WRITE, &hva);

	if (rc)
		return mb_error_set(err, -rc, "boot: guest memory at 0x%llx for page tables: %s",
			(unsigned long long)MB_BOOT_PAGE_TABLES, strerror(-rc));
	memset(hva, 0, len);
	pte = hva;
	pte[0] = pdpt | flags;
	pte += PAGE_SIZE / sizeof(*pte);
	for (unsigned i = 0; i < 4; i++)
		pte[i] = (pd + i * PAGE_SIZE) | flags;
	pte += PAGE_SIZE / sizeof(*pte);
	for (uint64_t i = 0; i < 4 * 512; i++)
		pte[i] = i << 21 | PTE_HUGE | flags;
	mb_dma_unmap(mb_ram_dma(ram), MB_BOOT_PAGE_TABLES, len, MB_DMA_WRITE);
	return 0;
}

unsigned mb_boot_memory_map(const struct mb_boot_job *job, struct mb_boot_mem *map)
{
	uint64_t low_bytes = mb_ram_low_bytes(job->ram), high_bytes = mb_ram_high_bytes(job->ram);
	unsigned n = 0;

	map[n++] = (struct mb_boot_mem){0, MB_BOOT_LOW_END, MB_BOOT_MEM_RAM};
	map[n++] = (struct mb_boot_mem){MB_BOOT_ACPI, MB_BOOT_ACPI_LEN, MB_BOOT_MEM_ACPI};
	map[n++] = (struct mb_boot_mem){
		MB_BOOT_KERNEL_MIN, low_bytes - MB_BOOT_KERNEL_MIN, MB_BOOT_MEM_RAM};
	/* Linux uses ECAM only where the memory map or the DSDT reserves it (it looks here first).
	 */
	map[n++] = (struct mb_boot_mem){MB_PCI_ECAM_BASE, MB_PCI_ECAM_LEN, MB_BOOT_MEM_RESERVED};
	if (high_bytes)
		map[n++] = (struct mb_boot_mem){MB_RAM_HIGH_BASE, high_bytes, MB_BOOT_MEM_RAM};
	return n;
}

/* Memory that a machine must have so that low RAM reaches up to `end`, in MiB. */
static unsigned long long needed_mib(uint64_t end)
{
	return mb_align_up(end, MB_RAM_ALIGN) / MIB;
}

int mb_boot_check_kernel_place(
	const struct mb_boot_job *job, uint64_t gpa, uint64_t len, struct mb_error *err)
{
	if (gpa < MB_BOOT_KERNEL_MIN)
		return mb_boot_file_error(&job->kernel, err, EINVAL,
			"wants to be loaded at 0x%llx, below 1 MiB, which holds the boot data: "
			"damaged, or not a Linux kernel",
			(unsigned long long)gpa);
	if (!mb_range_inside(gpa, len, 0, MB_RAM_LOW_MAX))
		return mb_boot_file_error(&job->kernel, err, EINVAL,
			"wants 0x%llx bytes at 0x%llx, but RAM ends at 0x%llx below the PCI hole: "
			"damaged, or not for this machine",
			(unsigned long long)len, (unsigned long long)gpa,
			(unsigned long long)MB_RAM_LOW_MAX);
	return 0;
}

int mb_boot_check_kernel_fits(
	const struct mb_boot_job *job, uint64_t gpa, uint64_t len, struct mb_error *err)
{
	uint64_t low_bytes = mb_ram_low_bytes(job->ram), needed = gpa + len;
	bool initrd = job->initrd.fd >= 0 && job->initrd.len < MB_RAM_LOW_MAX;
	int rc = mb_boot_check_kernel_place(job, gpa, len, err);

	if (rc || gpa + len <= low_bytes)
		return rc;
	if (initrd)
		needed = mb_align_up(needed, PAGE_SIZE) + mb_align_up(job->initrd.len, PAGE_SIZE);
	return mb_boot_file_error(&job->kernel, err, ENOMEM,
		"needs at least %llu MiB of memory to start%s, the machine has %llu MiB: "
		"use --memory %lluM or more",
		needed_mib(needed), initrd ? " with its initrd" : "",
		(unsigned long long)(low_bytes / MIB), needed_mib(needed));
}

int mb_boot_put_cmdline(const struct mb_boot_job *job, uint64_t max_len, struct mb_error *err)
{
	size_t len = strlen(job->config->cmdline);

	/* Whatever a kernel claims to take: ours ends where low RAM does. */
	if (max_len > MB_BOOT_LOW_END - MB_BOOT_CMDLINE - 1)
		max_len = MB_BOOT_LOW_END - MB_BOOT_CMDLINE - 1;
	if (len > max_len)
		return mb_boot_file_error(&job->kernel, err, E2BIG,
			"takes a command line of up to %llu bytes, this one has %zu: shorten "
			"--append",
			(unsigned long long)max_len, len);
	return put(job, MB_BOOT_CMDLINE, job->config->cmdline, len + 1, err);
}

int mb_boot_put_initrd(const struct mb_boot_job *job, uint64_t kernel_end, uint64_t limit,
	uint64_t *gpa, struct mb_error *err)
{
	const struct mb_boot_file *initrd = &job->initrd;
	uint64_t top = mb_ram_low_bytes(job->ram), len = initrd->len;

	*gpa = 0;
	if (initrd->fd < 0)
		return 0;
	if (limit > MB_RAM_LOW_MAX)
		limit = MB_RAM_LOW_MAX;
	limit &= ~(PAGE_SIZE - 1);
	if (top > limit)
		top = limit;
	kernel_end = mb_align_up(kernel_end, PAGE_SIZE);
	/* A file may claim to be of any size: no sum with len before it is known to be small. */
	if (len > limit || kernel_end > limit || mb_align_up(len, PAGE_SIZE) > limit - kernel_end)
		return mb_boot_file_error(initrd, err, EFBIG,
			"has %llu MiB; this kernel has room for %llu MiB at most, with any amount "
			"of memory",
			(unsigned long long)(len / MIB),
			kernel_end > limit ? 0 : (unsigned long long)((limit - kernel_end) / MIB));
	len = mb_align_up(len, PAGE_SIZE);
	if (kernel_end > top || len > top - kernel_end)
		return mb_boot_file_error(initrd, err, ENOMEM,
			"its %llu MiB do not fit beside the kernel: at least %llu MiB of memory "
			"are "
			"needed, the machine has %llu MiB: use --memory %lluM or more",
			(unsigned long long)((len + MIB - 1) / MIB), needed_mib(kernel_end + len),
			(unsigned long long)(mb_ram_low_bytes(job->ram) / MIB),
			needed_mib(kernel_end + len));
	*gpa = top - len;
	return mb_boot_file_load(initrd, job->ram, *gpa, 0, initrd->len, err);
}

/*
 * Linux resets a machine with hardware-reduced ACPI by EFI or, without EFI, by a jump to the reset
 * vector in real mode, and never by FADT's reset register (arch/x86/kernel/reboot.c, reboot_init).
 * So there is code at the reset vector, as in a PC's firmware: it pulses the reset line.
 */
static int put_reset_vector(const struct mb_boot_job *job, struct mb_error *err)
{
	static const uint8_t code[] = {
		0xfa,	    /* cli */
		0xb0, 0xfe, /* mov $0xfe, %al */
		0xe6, 0x64, /* out %al, $0x64: the i8042's reset command */
		0xf4,	    /* hlt */
		0xeb, 0xfd, /* jmp to the hlt */
	};

	return put(job, RESET_VECTOR, code, sizeof(code), err);
}

static int load_kernel(
	const struct mb_boot_job *job, struct mb_vcpu_start *start, struct mb_error *err)
{
	uint8_t head[MB_BOOT_HEAD_LEN] = {0};
	size_t n = job->kernel.len < sizeof(head) ? job->kernel.len : sizeof(head);
	int rc = mb_boot_file_read(&job->kernel, 0, head, n, err);

	if (rc)
		return rc;
	if (n >= SELFMAG && !memcmp(head, ELFMAG, SELFMAG))
		return mb_boot_pvh(job, start, err);
	/* boot.rst, "The Real-Mode Kernel Header": both marks, whatever the file starts with. */
	if (n == sizeof(head) && head[0x1fe] == 0x55 && head[0x1ff] == 0xaa &&
		!memcmp(head + 0x202, "HdrS", 4))
		return mb_boot_bzimage(job, start, err);
	return mb_boot_not_a_kernel(&job->kernel, head, n, err);
}

int mb_boot_load(struct mb_ram *ram, const struct mb_boot_config *config,
	struct mb_vcpu_start *start, struct mb_error *err)
{
	struct mb_boot_job job = {.ram = ram, .config = config, .initrd = {.fd = -1}};
	int rc;

	rc = mb_boot_file_open(&job.kernel, "kernel", config->kernel_path, err);
	if (rc)
		return rc;
	if (config->initrd_path) {
		rc = mb_boot_file_open(&job.initrd, "initrd", config->initrd_path, err);
		if (rc)
			goto err_kernel;
	}
	rc = load_kernel(&job, start, err);
	if (!rc)
		rc = put_reset_vector(&job, err);
	mb_boot_file_close(&job.initrd);
err_kernel:
	mb_boot_file_close(&job.kernel);
	return rc;
}
