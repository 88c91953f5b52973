// SPDX-License-Identifier: Apache-2.0
#include "boot_internal.h"
#include <elf.h>
#include <errno.h>
#include <mirrorball/range.h>
#include <string.h>

/*
 * ELF images: a vmlinux that starts through PVH (the Xen project's "x86/HVM direct boot ABI": entry
 * in 32-bit protected mode with EBX at a start info), and our own thin guest. Segments go to their
 * physical addresses; what a segment has beyond its bytes in the file is guest RAM that nobody has
 * written yet, and so reads as 0.
 */
#define XEN_ELFNOTE_PHYS32_ENTRY 18u
#define START_MAGIC		 0x336ec578u
#define SEGMENTS_MAX		 128u
#define NOTES_MAX		 1024u
/* COMMAND_LINE_SIZE of Linux/x86 less the NUL: PVH cannot say it, and a longer line is cut
 * silently. */
#define CMDLINE_MAX 2047u

struct pvh_start_info {
	uint32_t magic;
	uint32_t version; /* 1: with the memory map */
	uint32_t flags;
	uint32_t n_modules;
	uint64_t modules_gpa;
	uint64_t cmdline_gpa;
	uint64_t rsdp_gpa;
	uint64_t memmap_gpa;
	uint32_t n_memmap;
	uint32_t reserved;
};

struct pvh_module {
	uint64_t gpa;
	uint64_t len;
	uint64_t cmdline_gpa;
	uint64_t reserved;
};

struct pvh_memmap {
	uint64_t gpa;
	uint64_t len;
	uint32_t type;
	uint32_t reserved;
};

/* All of it in the one page that the memory layout has for it. */
struct pvh_page {
	struct pvh_start_info info;
	struct pvh_module module;
	struct pvh_memmap memmap[MB_BOOT_MEM_MAX];
};

struct elf {
	Elf64_Ehdr ehdr;
	uint64_t end_gpa;   /* of the highest segment */
	uint64_t pvh_entry; /* 0: no note */
};

static const char *machine_name(unsigned machine)
{
	switch (machine) {
	case EM_386:
		return "32-bit x86";
	case EM_X86_64:
		return "x86-64";
	case EM_ARM:
		return "32-bit Arm";
	case EM_AARCH64:
		return "64-bit Arm";
	case EM_RISCV:
		return "RISC-V";
	case EM_PPC:
	case EM_PPC64:
		return "PowerPC";
	case EM_S390:
		return "S/390";
	case EM_MIPS:
		return "MIPS";
	case EM_SPARCV9:
		return "SPARC";
	case EM_IA_64:
		return "Itanium";
	case 258: /* EM_LOONGARCH, newer than some elf.h */
		return "LoongArch";
	default:
		return NULL;
	}
}

static int check_machine(
	const struct mb_boot_file *file, const Elf64_Ehdr *ehdr, struct mb_error *err)
{
	bool big = ehdr->e_ident[EI_DATA] == ELFDATA2MSB;
	unsigned machine = big ? __builtin_bswap16(ehdr->e_machine) : ehdr->e_machine;
	const char *name = machine_name(machine);

	if (machine == EM_386)
		return mb_boot_file_error(file, err, ENOTSUP,
			"is a 32-bit kernel, which cannot be started here: use a 64-bit one "
			"(amd64, x86_64)");
	if (machine != EM_X86_64 && name)
		return mb_boot_file_error(
			file, err, ENOEXEC, "is an ELF file for %s: use one for x86-64", name);
	if (machine != EM_X86_64)
		return mb_boot_file_error(file, err, ENOEXEC,
			"is an ELF file for machine type %u: use one for x86-64", machine);
	if (big || ehdr->e_ident[EI_CLASS] != ELFCLASS64)
		return mb_boot_file_error(
			file, err, ENOEXEC, "is not a 64-bit little-endian ELF file, as expected");
	return 0;
}

static int read_ehdr(const struct mb_boot_file *file, Elf64_Ehdr *ehdr, struct mb_error *err)
{
	int rc = mb_boot_file_check(file, 0, sizeof(*ehdr), "ELF header", err);

	if (!rc)
		rc = mb_boot_file_read(file, 0, ehdr, sizeof(*ehdr), err);
	if (rc)
		return rc;
	if (memcmp(ehdr->e_ident, ELFMAG, SELFMAG))
		return mb_boot_file_error(file, err, ENOEXEC, "is not an ELF file");
	rc = check_machine(file, ehdr, err);
	if (rc)
		return rc;
	if (ehdr->e_type != ET_EXEC && ehdr->e_type != ET_DYN)
		return mb_boot_file_error(file, err, ENOEXEC,
			"is an ELF object or core file (type %u), not a kernel", ehdr->e_type);
	if (ehdr->e_phentsize != sizeof(Elf64_Phdr) || !ehdr->e_phnum ||
		ehdr->e_phnum > SEGMENTS_MAX)
		return mb_boot_file_error(file, err, EINVAL,
			"is damaged: %u program headers of %u bytes (1 to %u of %zu are expected)",
			ehdr->e_phnum, ehdr->e_phentsize, SEGMENTS_MAX, sizeof(Elf64_Phdr));
	rc = mb_boot_file_check(file, ehdr->e_phoff, (uint64_t)ehdr->e_phnum * ehdr->e_phentsize,
		"program header table", err);
	/*
	 * Nothing in it is used here, but it is the last thing in a vmlinux: without it the end of
	 * the file is missing.
	 */
	if (!rc && ehdr->e_shoff && ehdr->e_shnum)
		rc = mb_boot_file_check(file, ehdr->e_shoff,
			(uint64_t)ehdr->e_shnum * ehdr->e_shentsize, "section header table", err);
	return rc;
}

static int read_phdr(const struct mb_boot_file *file, const Elf64_Ehdr *ehdr, unsigned index,
	Elf64_Phdr *phdr, struct mb_error *err)
{
	return mb_boot_file_read(
		file, ehdr->e_phoff + index * sizeof(*phdr), phdr, sizeof(*phdr), err);
}

/* Looks for the PVH entry in one PT_NOTE segment, which is known to be inside the file. */
static int read_notes(const struct mb_boot_file *file, const Elf64_Phdr *phdr, uint64_t *entry,
	struct mb_error *err)
{
	const uint64_t align = phdr->p_align == 8 ? 8 : 4;
	uint64_t pos = 0, len = phdr->p_filesz;
	Elf64_Nhdr nhdr;

	for (unsigned i = 0; i < NOTES_MAX && pos < len && len - pos >= sizeof(nhdr); i++) {
		uint64_t name, desc, value = 0;
		char owner[4];
		int rc = mb_boot_file_read(file, phdr->p_offset + pos, &nhdr, sizeof(nhdr), err);

		if (rc)
			return rc;
		name = pos + sizeof(nhdr);
		desc = mb_align_up(name + nhdr.n_namesz, align);
		pos = mb_align_up(desc + nhdr.n_descsz, align);
		if (desc + nhdr.n_descsz > len)
			return mb_boot_file_error(file, err, EINVAL,
				"is damaged: an ELF note is longer than its segment");
		if (nhdr.n_type != XEN_ELFNOTE_PHYS32_ENTRY || nhdr.n_namesz != sizeof(owner))
			continue;
		rc = mb_boot_file_read(file, phdr->p_offset + name, owner, sizeof(owner), err);
		if (rc)
			return rc;
		/* Older kernels wrote 8 bytes. */
		if (memcmp(owner, "Xen", sizeof(owner)) ||
			(nhdr.n_descsz != 4 && nhdr.n_descsz != 8))
			continue;
		rc = mb_boot_file_read(file, phdr->p_offset + desc, &value, nhdr.n_descsz, err);
		if (rc)
			return rc;
		*entry = value;
	}
	return 0;
}

static int find_pvh_entry(const struct mb_boot_job *job, struct elf *elf, struct mb_error *err)
{
	Elf64_Phdr phdr;

	for (unsigned i = 0; i < elf->ehdr.e_phnum; i++) {
		int rc = read_phdr(&job->kernel, &elf->ehdr, i, &phdr, err);

		if (rc)
			return rc;
		if (phdr.p_type != PT_NOTE || !phdr.p_filesz)
			continue;
		rc = mb_boot_file_check(
			&job->kernel, phdr.p_offset, phdr.p_filesz, "note segment", err);
		if (!rc)
			rc = read_notes(&job->kernel, &phdr, &elf->pvh_entry, err);
		if (rc)
			return rc;
	}
	if (!elf->pvh_entry)
		return mb_boot_file_error(&job->kernel, err, ENOEXEC,
			"is an ELF file without a PVH entry point: if it is a kernel (built "
			"without "
			"CONFIG_PVH), use the bzImage of the same kernel");
	return 0;
}

/* Looks at every segment before anything is written. */
static int scan(const struct mb_boot_job *job, struct elf *elf, struct mb_error *err)
{
	const struct mb_boot_file *file = &job->kernel;
	uint64_t first_gpa = UINT64_MAX, n_bytes = 0;
	Elf64_Phdr phdr;
	int rc;

	for (unsigned i = 0; i < elf->ehdr.e_phnum; i++) {
		rc = read_phdr(file, &elf->ehdr, i, &phdr, err);
		if (rc)
			return rc;
		if (phdr.p_type != PT_LOAD || (!phdr.p_filesz && !phdr.p_memsz))
			continue;
		if (phdr.p_filesz > phdr.p_memsz)
			return mb_boot_file_error(file, err, EINVAL,
				"is damaged: segment %u has more bytes in the file than in memory",
				i);
		if (phdr.p_filesz)
			rc = mb_boot_file_check(file, phdr.p_offset, phdr.p_filesz, "segment", err);
		if (!rc)
			rc = mb_boot_check_kernel_place(job, phdr.p_paddr, phdr.p_memsz, err);
		if (rc)
			return rc;
		if (first_gpa > phdr.p_paddr)
			first_gpa = phdr.p_paddr;
		if (elf->end_gpa < phdr.p_paddr + phdr.p_memsz)
			elf->end_gpa = phdr.p_paddr + phdr.p_memsz;
		n_bytes += phdr.p_memsz;
	}
	if (!n_bytes)
		return mb_boot_file_error(file, err, ENOEXEC, "has nothing to load: not a kernel");
	/* Also bounds what is read: a small file could name the same bytes in every segment. */
	if (n_bytes > elf->end_gpa - first_gpa)
		return mb_boot_file_error(file, err, EINVAL, "is damaged: its segments overlap");
	return mb_boot_check_kernel_fits(job, first_gpa, elf->end_gpa - first_gpa, err);
}

/* An entry point must be in a byte that comes from the file: anything else is not code. */
static int check_entry(
	const struct mb_boot_job *job, const struct elf *elf, uint64_t entry, struct mb_error *err)
{
	Elf64_Phdr phdr;

	for (unsigned i = 0; i < elf->ehdr.e_phnum; i++) {
		int rc = read_phdr(&job->kernel, &elf->ehdr, i, &phdr, err);

		if (rc)
			return rc;
		if (phdr.p_type == PT_LOAD &&
			mb_range_inside(entry, 1, phdr.p_paddr, phdr.p_filesz))
			return 0;
	}
	return mb_boot_file_error(&job->kernel, err, EINVAL,
		"is damaged: its entry point 0x%llx is in no segment", (unsigned long long)entry);
}

static int load_segments(const struct mb_boot_job *job, const struct elf *elf, struct mb_error *err)
{
	Elf64_Phdr phdr;

	for (unsigned i = 0; i < elf->ehdr.e_phnum; i++) {
		int rc = read_phdr(&job->kernel, &elf->ehdr, i, &phdr, err);

		if (rc)
			return rc;
		if (phdr.p_type != PT_LOAD || !phdr.p_filesz)
			continue;
		/*
		 * Read again, so checked again: the file may have been changed. The ranges of file
		 * and RAM are checked where they are used, what the loader itself keeps in low
		 * memory is not.
		 */
		rc = mb_boot_check_kernel_fits(job, phdr.p_paddr, phdr.p_filesz, err);
		if (!rc)
			rc = mb_boot_file_load(&job->kernel, job->ram, phdr.p_paddr, phdr.p_offset,
				phdr.p_filesz, err);
		if (rc)
			return rc;
	}
	return 0;
}

static void fill_start_info(
	const struct mb_boot_job *job, uint64_t initrd_gpa, struct pvh_page *page)
{
	struct mb_boot_mem map[MB_BOOT_MEM_MAX];
	unsigned n = mb_boot_memory_map(job, map);

	memset(page, 0, sizeof(*page));
	page->info.magic = START_MAGIC;
	page->info.version = 1;
	page->info.cmdline_gpa = MB_BOOT_CMDLINE;
	page->info.rsdp_gpa = job->config->rsdp_gpa;
	if (initrd_gpa) {
		page->info.n_modules = 1;
		page->info.modules_gpa = MB_BOOT_PVH_INFO + offsetof(struct pvh_page, module);
		page->module.gpa = initrd_gpa;
		page->module.len = job->initrd.len;
	}
	page->info.memmap_gpa = MB_BOOT_PVH_INFO + offsetof(struct pvh_page, memmap);
	page->info.n_memmap = n;
	for (unsigned i = 0; i < n; i++) {
		page->memmap[i].gpa = map[i].gpa;
		page->memmap[i].len = map[i].len;
		page->memmap[i].type = map[i].type;
	}
}

int mb_boot_pvh(const struct mb_boot_job *job, struct mb_vcpu_start *start, struct mb_error *err)
{
	struct elf elf = {0};
	struct pvh_page page;
	uint64_t initrd_gpa;
	int rc;

	rc = read_ehdr(&job->kernel, &elf.ehdr, err);
	if (!rc)
		rc = find_pvh_entry(job, &elf, err);
	if (!rc)
		rc = scan(job, &elf, err);
	if (!rc)
		rc = check_entry(job, &elf, elf.pvh_entry, err);
	if (!rc)
		rc = mb_boot_put_cmdline(job, CMDLINE_MAX, err);
	if (!rc)
		rc = mb_boot_put_initrd(job, elf.end_gpa, MB_RAM_LOW_MAX, &initrd_gpa, err);
	if (!rc)
		rc = load_segments(job, &elf, err);
	if (rc)
		return rc;
	fill_start_info(job, initrd_gpa, &page);
	rc = mb_dma_write(mb_ram_dma(job->ram), MB_BOOT_PVH_INFO, &page, sizeof(page));
	if (rc)
		return mb_error_set(err, -rc, "boot: guest memory at 0x%llx: %s",
			(unsigned long long)MB_BOOT_PVH_INFO, strerror(-rc));
	*start = (struct mb_vcpu_start){
		.rip = elf.pvh_entry,
		.rbx = MB_BOOT_PVH_INFO,
		.long_mode = false,
	};
	return 0;
}

int mb_boot_load_elf_image(struct mb_ram *ram, const void *image, uint64_t len, const char *name,
	uint64_t *entry, struct mb_error *err)
{
	const struct mb_boot_job job = {
		.ram = ram,
		.kernel = {.what = "guest", .path = name, .fd = -1, .image = image, .len = len},
		.initrd = {.fd = -1},
	};
	struct elf elf = {0};
	int rc;

	rc = read_ehdr(&job.kernel, &elf.ehdr, err);
	if (!rc)
		rc = scan(&job, &elf, err);
	if (!rc)
		rc = check_entry(&job, &elf, elf.ehdr.e_entry, err);
	if (!rc)
		rc = load_segments(&job, &elf, err);
	if (!rc)
		*entry = elf.ehdr.e_entry;
	return rc;
}
