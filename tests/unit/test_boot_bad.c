// SPDX-License-Identifier: Apache-2.0
#include "boot_images.h"
#include "run.h"
#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>

#define N_MUTATIONS 2000u

/* Loads, expects a failure, and each of the strings (NULL-terminated) in its text. */
static void expect_error(const void *image, size_t len, int errnum, ...)
{
	struct outcome o;
	const char *part;
	va_list ap;

	write_file(kernel_path, image, len);
	load(&o, 128 * MIB, false, "");
	ck_assert_msg(o.rc == -errnum, "%d, not %d: %s", o.rc, -errnum, o.err.text);
	va_start(ap, errnum);
	while ((part = va_arg(ap, const char *)))
		ck_assert_msg(
			strstr(o.err.text, part) != NULL, "no \"%s\" in: %s", part, o.err.text);
	va_end(ap);
	fake_ram_finish(&o.ram);
}

/* The number after "at least" in a message, which the user is told will do. */
static uint64_t promised_mib(const char *text)
{
	const char *p = strstr(text, "at least ");

	ck_assert_msg(p != NULL, "%s", text);
	return strtoull(p + strlen("at least "), NULL, 10);
}

START_TEST(too_little_memory_says_how_much_is_enough)
{
	static uint8_t bz[BZ_LEN], elf[ELF_LEN];
	const uint64_t initrd_sizes[] = {0, 1, 4096, 4097, 30 * MIB + 1, 100 * MIB};

	make_bzimage(bz);
	make_elf(elf);
	for (unsigned i = 0; i < sizeof(initrd_sizes) / sizeof(initrd_sizes[0]) * 2; i++) {
		uint64_t initrd_bytes = initrd_sizes[i / 2], mib;
		struct outcome o;

		if (i & 1)
			write_file(kernel_path, elf, sizeof(elf));
		else
			write_file(kernel_path, bz, sizeof(bz));
		if (initrd_bytes)
			write_sparse(initrd_path, initrd_bytes);
		load(&o, 2 * MIB, initrd_bytes, "");
		ck_assert_int_eq(o.rc, -ENOMEM);
		mib = promised_mib(o.err.text);
		fake_ram_finish(&o.ram);
		load(&o, mib * MIB, initrd_bytes, "");
		ck_assert_msg(!o.rc, "%s", o.err.text);
		fake_ram_finish(&o.ram);
		/* And it did not ask for too much. */
		load(&o, (mib - 2) * MIB, initrd_bytes, "");
		ck_assert_int_eq(o.rc, -ENOMEM);
		ck_assert_uint_eq(promised_mib(o.err.text), mib);
		fake_ram_finish(&o.ram);
	}
}
END_TEST

START_TEST(broken_bzimages_are_refused)
{
	static uint8_t image[BZ_LEN];
	struct setup_header *hdr = header_of(image);

	make_bzimage(image);
	hdr->version = 0x020b;
	expect_error(image, sizeof(image), ENOTSUP, "too old", "2.11", "2.12", NULL);
	hdr->version = 0x0200;
	expect_error(image, sizeof(image), ENOTSUP, "too old", NULL);
	hdr->version = 0x0300;
	expect_error(image, sizeof(image), ENOTSUP, "too new", "3.00", NULL);
	hdr->version = 0xffff;
	expect_error(image, sizeof(image), ENOTSUP, "too new", NULL);
	make_bzimage(image);
	hdr->loadflags = 0;
	expect_error(image, sizeof(image), ENOTSUP, "zImage", NULL);
	make_bzimage(image);
	hdr->xloadflags = 0;
	expect_error(image, sizeof(image), ENOTSUP, "32-bit kernel", NULL);
	make_bzimage(image);
	hdr->jump = 0xffeb;
	expect_error(image, sizeof(image), ENOTSUP, "too new", NULL);
	make_bzimage(image);
	hdr->jump = 0x10eb;
	expect_error(image, sizeof(image), EINVAL, "damaged", NULL);
	make_bzimage(image);
	hdr->syssize = 0;
	expect_error(image, sizeof(image), EINVAL, "damaged", NULL);
	hdr->syssize = 0x20;
	expect_error(image, sizeof(image), EINVAL, "damaged", NULL);
	hdr->syssize = UINT32_MAX;
	expect_error(image, sizeof(image), EINVAL, "truncated", NULL);
	make_bzimage(image);
	hdr->setup_sects = 255;
	expect_error(image, sizeof(image), EINVAL, "truncated", NULL);
	hdr->setup_sects = 0; /* means 4 */
	expect_error(image, sizeof(image), EINVAL, "truncated", NULL);
	make_bzimage(image);
	hdr->kernel_alignment = 0;
	expect_error(image, sizeof(image), EINVAL, "alignment", NULL);
	hdr->kernel_alignment = 0x300000;
	expect_error(image, sizeof(image), EINVAL, "alignment", NULL);
	hdr->kernel_alignment = 0x80000000;
	expect_error(image, sizeof(image), ENOMEM, "at least", NULL);
	make_bzimage(image);
	hdr->pref_address = UINT64_MAX;
	expect_error(image, sizeof(image), EINVAL, "PCI hole", NULL);
	hdr->pref_address = 1ull << 32;
	expect_error(image, sizeof(image), EINVAL, "PCI hole", NULL);
	hdr->pref_address = 0x8000;
	hdr->relocatable_kernel = 0;
	expect_error(image, sizeof(image), EINVAL, "below 1 MiB", NULL);
	make_bzimage(image);
	hdr->init_size = UINT32_MAX;
	expect_error(image, sizeof(image), EINVAL, "PCI hole", NULL);
	hdr->init_size = 0x80000000;
	expect_error(image, sizeof(image), ENOMEM, "at least 2064 MiB", "128 MiB", NULL);
	make_bzimage(image);
	hdr->header = 0;
	expect_error(image, sizeof(image), ENOEXEC, "EFI", NULL);
}
END_TEST

START_TEST(broken_elfs_are_refused)
{
	static uint8_t image[ELF_LEN];
	Elf64_Ehdr *ehdr = (Elf64_Ehdr *)image;
	struct note *notes = (struct note *)(image + ELF_NOTES_AT);

	make_elf(image);
	ehdr->e_machine = EM_AARCH64;
	expect_error(image, sizeof(image), ENOEXEC, "64-bit Arm", NULL);
	ehdr->e_machine = 999;
	expect_error(image, sizeof(image), ENOEXEC, "machine type 999", NULL);
	ehdr->e_machine = EM_386;
	expect_error(image, sizeof(image), ENOTSUP, "32-bit kernel", NULL);
	ehdr->e_machine = __builtin_bswap16(EM_PPC64);
	ehdr->e_ident[EI_DATA] = ELFDATA2MSB;
	expect_error(image, sizeof(image), ENOEXEC, "PowerPC", NULL);
	make_elf(image);
	ehdr->e_ident[EI_CLASS] = ELFCLASS32; /* x32 */
	expect_error(image, sizeof(image), ENOEXEC, "64-bit", NULL);
	make_elf(image);
	ehdr->e_type = ET_REL;
	expect_error(image, sizeof(image), ENOEXEC, "object", NULL);
	make_elf(image);
	ehdr->e_phnum = 0;
	expect_error(image, sizeof(image), EINVAL, "program headers", NULL);
	ehdr->e_phnum = 0xffff;
	expect_error(image, sizeof(image), EINVAL, "program headers", NULL);
	make_elf(image);
	ehdr->e_phentsize = 8;
	expect_error(image, sizeof(image), EINVAL, "program headers", NULL);
	make_elf(image);
	ehdr->e_phoff = UINT64_MAX - 8;
	expect_error(image, sizeof(image), EINVAL, "damaged", NULL);
	ehdr->e_phoff = ELF_LEN;
	expect_error(image, sizeof(image), EINVAL, "truncated", NULL);
	make_elf(image);
	notes[2].hdr.n_type = 17;
	expect_error(
		image, sizeof(image), ENOEXEC, "PVH", "use the bzImage of the same kernel", NULL);
	make_elf(image);
	memcpy(notes[2].name, "Zen", 4);
	expect_error(image, sizeof(image), ENOEXEC, "PVH", NULL);
	make_elf(image);
	notes[2].hdr.n_descsz = 8;
	expect_error(image, sizeof(image), EINVAL, "note", NULL);
	make_elf(image);
	notes[0].hdr.n_namesz = UINT32_MAX;
	notes[0].hdr.n_descsz = UINT32_MAX;
	expect_error(image, sizeof(image), EINVAL, "note", NULL);
	make_elf(image);
	notes[2].desc[0] = ELF_BASE - 1;
	expect_error(image, sizeof(image), EINVAL, "entry point", NULL);
	notes[2].desc[0] = ELF_BASE + ELF_TEXT_LEN;
	expect_error(image, sizeof(image), EINVAL, "entry point", NULL);
	make_elf(image);
	phdr_of(image, 0)->p_paddr = MB_BOOT_PARAMS;
	expect_error(image, sizeof(image), EINVAL, "below 1 MiB", NULL);
	phdr_of(image, 0)->p_paddr = UINT64_MAX - 16;
	expect_error(image, sizeof(image), EINVAL, "PCI hole", NULL);
	make_elf(image);
	phdr_of(image, 1)->p_memsz = UINT64_MAX;
	expect_error(image, sizeof(image), EINVAL, "PCI hole", NULL);
	phdr_of(image, 1)->p_memsz = ELF_DATA_LEN - 1;
	expect_error(image, sizeof(image), EINVAL, "segment 1", NULL);
	phdr_of(image, 1)->p_memsz = 256 * MIB;
	expect_error(image, sizeof(image), ENOMEM, "at least", NULL);
	make_elf(image);
	phdr_of(image, 1)->p_offset = UINT64_MAX - 2;
	expect_error(image, sizeof(image), EINVAL, "damaged", NULL);
	make_elf(image);
	phdr_of(image, 1)->p_paddr = ELF_BASE;
	expect_error(image, sizeof(image), EINVAL, "overlap", NULL);
	make_elf(image);
	phdr_of(image, 0)->p_type = PT_NULL;
	phdr_of(image, 1)->p_type = PT_NULL;
	expect_error(image, sizeof(image), ENOEXEC, "nothing to load", NULL);
}
END_TEST

START_TEST(other_files_are_named)
{
	static const struct {
		const char *bytes;
		unsigned offset, len;
		const char *say;
	} cases[] = {
		{"\x1f\x8b\x08", 0, 3, "gzip"},
		{"\xfd"
		 "7zXZ",
			0, 6, "xz"},
		{"\x28\xb5\x2f\xfd", 0, 4, "zstd"},
		{"BZh9", 0, 4, "bzip2"},
		{"\x02\x21\x4c\x18", 0, 4, "lz4"},
		{"ARM\x64", 0x38, 4, "64-bit Arm"},
		{"RSC\x05", 0x38, 4, "RISC-V"},
		{"\x18\x28\x6f\x01", 0x24, 4, "32-bit Arm"},
		{"MZ\0\0zimg", 0, 8, "zboot"},
		{"MZ", 0, 2, "EFI"},
		{"QFI\xfb", 0, 4, "disk image"},
		{"\x55\xaa", 0x1fe, 2, "disk image"},
		{"070701", 0, 6, "cpio"},
		{"\0\0\0", 0, 3, "neither a bzImage nor an ELF"},
	};
	static uint8_t image[8192];
	const char *text = "#!/bin/sh\n# Some words that are no kernel.\n";

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memset(image, 0, sizeof(image));
		image[1024] = 1;
		memcpy(image + cases[i].offset, cases[i].bytes, cases[i].len);
		expect_error(image, sizeof(image), ENOEXEC, cases[i].say, NULL);
	}
	expect_error(text, strlen(text), ENOEXEC, "text file", NULL);
	/* An Arm kernel with an EFI stub says Arm, not EFI. */
	memset(image, 0, sizeof(image));
	memcpy(image, "MZ", 2);
	memcpy(image + 0x38, "ARM\x64", 4);
	expect_error(image, sizeof(image), ENOEXEC, "64-bit Arm", NULL);
}
END_TEST

START_TEST(files_that_cannot_be_read_are_named)
{
	static uint8_t image[BZ_LEN];
	struct outcome o;

	make_bzimage(image);
	load(&o, 128 * MIB, false, "");
	ck_assert_int_eq(o.rc, -ENOENT);
	ck_assert_ptr_nonnull(strstr(o.err.text, "no such file"));
	fake_ram_finish(&o.ram);

	ck_assert_int_eq(mkdir(kernel_path, 0700), 0);
	load(&o, 128 * MIB, false, "");
	ck_assert_int_eq(o.rc, -EISDIR);
	ck_assert_ptr_nonnull(strstr(o.err.text, "is a directory"));
	fake_ram_finish(&o.ram);
	rmdir(kernel_path);

	/* Nobody writes to it: it must not be waited for. */
	ck_assert_int_eq(mkfifo(kernel_path, 0600), 0);
	load(&o, 128 * MIB, false, "");
	ck_assert_int_eq(o.rc, -EINVAL);
	ck_assert_ptr_nonnull(strstr(o.err.text, "regular file"));
	fake_ram_finish(&o.ram);
	unlink(kernel_path);

	write_file(kernel_path, "", 0);
	load(&o, 128 * MIB, false, "");
	ck_assert_int_eq(o.rc, -EINVAL);
	ck_assert_ptr_nonnull(strstr(o.err.text, "empty"));
	fake_ram_finish(&o.ram);

	write_file(kernel_path, image, sizeof(image));
	load(&o, 128 * MIB, true, "");
	ck_assert_int_eq(o.rc, -ENOENT);
	ck_assert_ptr_nonnull(strstr(o.err.text, "initrd"));
	fake_ram_finish(&o.ram);
	write_file(initrd_path, "", 0);
	load(&o, 128 * MIB, true, "");
	ck_assert_int_eq(o.rc, -EINVAL);
	ck_assert_ptr_nonnull(strstr(o.err.text, "initrd"));
	ck_assert_ptr_nonnull(strstr(o.err.text, "empty"));
	fake_ram_finish(&o.ram);
}
END_TEST

START_TEST(unreadable_file_is_named)
{
	static uint8_t image[BZ_LEN];
	struct outcome o;

	make_bzimage(image);
	write_file(kernel_path, image, sizeof(image));
	ck_assert_int_eq(chmod(dir, 0755), 0);
	ck_assert_int_eq(chmod(kernel_path, 0), 0);
	/* Root reads everything; Check runs each test in a process of its own. */
	if (!geteuid())
		ck_assert_int_eq(seteuid(65534), 0);
	load(&o, 128 * MIB, false, "");
	ck_assert_int_eq(o.rc, -EACCES);
	ck_assert_ptr_nonnull(strstr(o.err.text, "no permission"));
	fake_ram_finish(&o.ram);
	if (!getuid())
		ck_assert_int_eq(seteuid(0), 0);
}
END_TEST

/* A path that is longer than a message must not push the reason out of it. */
START_TEST(long_paths_leave_room_for_the_reason)
{
	struct mb_boot_config config = {.cmdline = ""};
	struct mb_vcpu_start start;
	struct mb_error err;
	char path[4000];
	struct mb_ram ram;

	memset(path, 'd', sizeof(path));
	for (unsigned i = 0; i < sizeof(path); i += 100)
		path[i] = '/';
	strcpy(path + sizeof(path) - 9, "/vmlinuz");
	config.kernel_path = path;
	fake_ram_init(&ram, 64 * MIB, 0);
	ck_assert_int_eq(mb_boot_load(&ram, &config, &start, &err), -ENOENT);
	ck_assert_ptr_nonnull(strstr(err.text, "/vmlinuz: no such file"));
	fake_ram_finish(&ram);
}
END_TEST

static void truncate_everywhere(const uint8_t *image, size_t len)
{
	write_file(kernel_path, image, len);
	for (size_t cut = len; cut--; cut -= cut > 1024 ? 97 : 0) {
		struct outcome o;

		ck_assert_int_eq(truncate(kernel_path, (off_t)cut), 0);
		load(&o, 64 * MIB, false, "");
		ck_assert_msg(o.rc < 0, "loaded with %zu of %zu bytes", cut, len);
		ck_assert_msg(
			strstr(o.err.text, "truncated") || (!cut && strstr(o.err.text, "empty")),
			"%zu bytes: %s", cut, o.err.text);
		fake_ram_finish(&o.ram);
	}
}

START_TEST(truncated_files_are_refused)
{
	static uint8_t bz[BZ_LEN], elf[ELF_LEN];

	make_bzimage(bz);
	truncate_everywhere(bz, sizeof(bz));
	make_elf(elf);
	truncate_everywhere(elf, sizeof(elf));
}
END_TEST

/* The file shrinks between our look at its size and the read. */
START_TEST(file_that_shrinks_is_an_error)
{
	static uint8_t image[BZ_LEN];
	struct mb_boot_config config = {.kernel_path = kernel_path, .cmdline = ""};
	struct mb_vcpu_start start;
	struct mb_error err;
	struct mb_ram ram;

	make_bzimage(image);
	write_file(kernel_path, image, sizeof(image));
	fake_ram_init(&ram, 128 * MIB, 0);
	ram.load_rc = -EIO;
	ck_assert_int_eq(mb_boot_load(&ram, &config, &start, &err), -EIO);
	ck_assert_ptr_nonnull(strstr(err.text, "shorter"));
	fake_ram_finish(&ram);
}
END_TEST

/* What must hold of whatever was accepted: nothing overlaps, everything is in RAM. */
static void check_accepted(const struct outcome *o, uint64_t initrd_bytes)
{
	uint64_t initrd_gpa;

	ck_assert_uint_lt(o->start.rip, o->ram.low_bytes);
	ck_assert_uint_ge(o->start.rip, MIB);
	ck_assert_uint_le(o->ram.highest_write, o->ram.low_bytes);
	if (o->start.long_mode) {
		initrd_gpa = params_of(o)->hdr.ramdisk_image;
		ck_assert_uint_eq(params_of(o)->sentinel, 0);
		ck_assert_uint_eq(params_of(o)->hdr.setup_data, 0);
		check_identity(o, o->start.cr3, o->start.rip);
	} else {
		memcpy(&initrd_gpa, o->ram.mem + MB_BOOT_PVH_INFO + 56, sizeof(initrd_gpa));
	}
	/* The initrd is the last thing in RAM and nothing was loaded over it. */
	ck_assert_uint_eq(initrd_gpa % 4096, 0);
	ck_assert(mb_range_inside(initrd_gpa, initrd_bytes, MIB, o->ram.low_bytes - MIB));
	ck_assert_uint_gt(initrd_gpa, o->start.rip);
	ck_assert_uint_eq(o->ram.mem[initrd_gpa], 'I');
	ck_assert_uint_eq(o->ram.mem[initrd_gpa + initrd_bytes - 1], 0);
}

static uint64_t next_random(uint64_t *state)
{
	/* xorshift64 (Marsaglia 2003) */
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Values that break arithmetic more often than random ones. */
static uint64_t nasty(uint64_t *state)
{
	static const uint64_t values[] = {0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x10000, 0x7fffffff,
		0x80000000, 0xffffffff, 0x100000000, INT64_MAX, 1ull << 63, UINT64_MAX,
		UINT64_MAX - 0xfff, 0x100000, 0xbffff000, 0xc0000000, 64 * MIB - 1};

	return values[next_random(state) % (sizeof(values) / sizeof(values[0]))];
}

START_TEST(mutated_files_do_no_harm)
{
	static uint8_t image[BZ_LEN > ELF_LEN ? BZ_LEN : ELF_LEN];
	const char *env = getenv("MB_TEST_SEED");
	uint64_t seed =
		env ? strtoull(env, NULL, 0) : (uint64_t)time(NULL) * 1000003 + (unsigned)_i;
	uint64_t state = seed | 1;
	unsigned n_accepted = 0;

	write_sparse(initrd_path, 5001);
	for (unsigned round = 0; round < N_MUTATIONS; round++) {
		size_t len = _i ? ELF_LEN : BZ_LEN, interesting = _i ? 0x260 : 0x270;
		unsigned n = 1 + next_random(&state) % 4;
		struct outcome o;

		if (_i)
			make_elf(image);
		else
			make_bzimage(image);
		while (n--) {
			/* Half of the time where the headers are. */
			size_t low = _i || next_random(&state) % 4 == 0 ? 0 : 0x1f0;
			size_t at = low + next_random(&state) % (interesting - low);
			size_t width = 1u << next_random(&state) % 4;
			uint64_t v = next_random(&state) % 3 ? nasty(&state) : next_random(&state);

			memcpy(image + at, &v, width);
		}
		if (next_random(&state) % 16 == 0)
			len = next_random(&state) % len + 1;
		write_file(kernel_path, image, len);
		load(&o, 64 * MIB, true, "quiet");
		if (!o.rc) {
			n_accepted++;
			check_accepted(&o, 5001);
		}
		fake_ram_finish(&o.ram);
	}
	printf("test_boot: %s: %u of %u mutations accepted (MB_TEST_SEED=%llu)\n",
		_i ? "ELF" : "bzImage", n_accepted, N_MUTATIONS, (unsigned long long)seed);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("boot_bad");
	TCase *tc = tcase_create("boot_bad");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, make_dir, remove_dir);
	tcase_add_test(tc, too_little_memory_says_how_much_is_enough);
	tcase_add_test(tc, broken_bzimages_are_refused);
	tcase_add_test(tc, broken_elfs_are_refused);
	tcase_add_test(tc, other_files_are_named);
	tcase_add_test(tc, files_that_cannot_be_read_are_named);
	tcase_add_test(tc, unreadable_file_is_named);
	tcase_add_test(tc, long_paths_leave_room_for_the_reason);
	tcase_add_test(tc, truncated_files_are_refused);
	tcase_add_test(tc, file_that_shrinks_is_an_error);
	tcase_add_loop_test(tc, mutated_files_do_no_harm, 0, 2);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
