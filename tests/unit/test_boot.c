// SPDX-License-Identifier: Apache-2.0
#include "boot_images.h"
#include "run.h"
#include <mirrorball/pci.h>

START_TEST(bzimage_is_loaded)
{
	static uint8_t image[BZ_LEN], initrd[5000];
	struct boot_params *params;
	struct outcome o;

	memset(initrd, 'i', sizeof(initrd));
	make_bzimage(image);
	write_file(kernel_path, image, sizeof(image));
	write_file(initrd_path, initrd, sizeof(initrd));
	load(&o, 128 * MIB, true, "console=ttyS0 quiet");
	ck_assert_msg(!o.rc, "%s", o.err.text);

	ck_assert(o.start.long_mode);
	ck_assert_uint_eq(o.start.rip, PREF_ADDRESS + 0x200);
	ck_assert_uint_eq(o.start.rsi, MB_BOOT_PARAMS);
	ck_assert_uint_eq(o.start.cr3, MB_BOOT_PAGE_TABLES);
	ck_assert_mem_eq(o.ram.mem + PREF_ADDRESS, image + SETUP_LEN, KERNEL_LEN);
	ck_assert_str_eq((char *)o.ram.mem + MB_BOOT_CMDLINE, "console=ttyS0 quiet");
	for (uint64_t gpa = 0; gpa < 1ull << 32; gpa += 0x1234567)
		check_identity(&o, o.start.cr3, gpa);

	params = params_of(&o);
	ck_assert_uint_eq(params->hdr.header, 0x53726448);
	ck_assert_uint_eq(params->hdr.version, 0x020f);
	ck_assert_uint_eq(params->hdr.kernel_info_offset, 0x1234);
	ck_assert_uint_eq(params->hdr.type_of_loader, 0xff);
	ck_assert_uint_eq(params->hdr.ext_loader_ver, 0);
	ck_assert_uint_eq(params->hdr.cmd_line_ptr, MB_BOOT_CMDLINE);
	ck_assert_uint_eq(params->hdr.setup_data, 0);
	ck_assert_uint_eq(params->sentinel, 0);
	ck_assert_uint_eq(params->acpi_rsdp_addr, MB_BOOT_ACPI);
	ck_assert_uint_eq(params->hdr.ramdisk_size, sizeof(initrd));
	ck_assert_uint_eq(params->hdr.ramdisk_image, 128 * MIB - 0x2000);
	ck_assert_mem_eq(o.ram.mem + params->hdr.ramdisk_image, initrd, sizeof(initrd));
	/* Straight from the files: nothing was copied through the monitor's memory. */
	ck_assert_uint_eq(o.ram.loaded_bytes, KERNEL_LEN + sizeof(initrd));
	fake_ram_finish(&o.ram);
}
END_TEST

START_TEST(e820_covers_ram_and_nothing_else)
{
	static uint8_t image[BZ_LEN];
	const uint64_t sizes[] = {64 * MIB, MB_RAM_LOW_MAX, MB_RAM_LOW_MAX + 16 * MIB};

	make_bzimage(image);
	write_file(kernel_path, image, sizeof(image));
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint64_t ram_bytes = 0, end = 0;
		struct boot_params *params;
		bool ecam = false;
		struct outcome o;

		load(&o, sizes[i], false, "");
		ck_assert_msg(!o.rc, "%s", o.err.text);
		params = params_of(&o);
		ck_assert_uint_eq(params->hdr.ramdisk_image, 0);
		ck_assert_uint_eq(params->hdr.ramdisk_size, 0);
		for (unsigned e = 0; e < params->e820_entries; e++) {
			const struct boot_e820_entry *entry = &params->e820_table[e];

			ck_assert_uint_ge(entry->addr, end);
			ck_assert_uint_gt(entry->size, 0);
			end = entry->addr + entry->size;
			if (entry->type == 1) {
				ram_bytes += entry->size;
				ck_assert(mb_range_inside(
						  entry->addr, entry->size, 0, o.ram.low_bytes) ||
					  (entry->addr == MB_RAM_HIGH_BASE &&
						  entry->size == o.ram.high_bytes));
				ck_assert(!mb_range_overlap(
					entry->addr, entry->size, MB_BOOT_ACPI, MB_BOOT_ACPI_LEN));
			}
			if (entry->addr == MB_PCI_ECAM_BASE) {
				ck_assert_uint_eq(entry->type, 2);
				ck_assert_uint_eq(entry->size, MB_PCI_ECAM_LEN);
				ecam = true;
			}
		}
		ck_assert(ecam);
		/* All of it but 0x9fc00 to 1 MiB. */
		ck_assert_uint_eq(ram_bytes, sizes[i] - (MIB - 0x9fc00));
		fake_ram_finish(&o.ram);
	}
}
END_TEST

START_TEST(bzimage_goes_where_the_protocol_says)
{
	static const struct {
		uint64_t pref, gpa;
		uint32_t align;
		uint8_t relocatable;
	} cases[] = {
		{0x1000000, 0x1000000, 0x200000, 1},
		{0x1000000, 0x1000000, 0x1000000, 1},
		{0x1100000, 0x1200000, 0x200000, 1},
		{0, 0x200000, 0x200000, 1},
		{0x1000, 0x100000, 0x1000, 1},
		{0x400000, 0x400000, 0x200000, 0},
		{0x123000, 0x123000, 0, 0},
	};
	static uint8_t image[BZ_LEN];

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct outcome o;

		make_bzimage(image);
		header_of(image)->pref_address = cases[i].pref;
		header_of(image)->kernel_alignment = cases[i].align;
		header_of(image)->relocatable_kernel = cases[i].relocatable;
		write_file(kernel_path, image, sizeof(image));
		load(&o, 64 * MIB, false, "");
		ck_assert_msg(!o.rc, "%s", o.err.text);
		ck_assert_uint_eq(o.start.rip, cases[i].gpa + 0x200);
		ck_assert_mem_eq(o.ram.mem + cases[i].gpa, image + SETUP_LEN, KERNEL_LEN);
		fake_ram_finish(&o.ram);
	}
}
END_TEST

START_TEST(initrd_stays_below_its_limit_and_above_the_kernel)
{
	static uint8_t image[BZ_LEN];
	struct boot_params *params;
	struct outcome o;

	make_bzimage(image);
	write_sparse(initrd_path, 3 * MIB + 1);
	write_file(kernel_path, image, sizeof(image));
	load(&o, MB_RAM_LOW_MAX + 512 * MIB, true, "");
	ck_assert_msg(!o.rc, "%s", o.err.text);
	params = params_of(&o);
	ck_assert_uint_eq(params->hdr.ramdisk_image, 0x80000000 - 3 * MIB - 0x1000);
	fake_ram_finish(&o.ram);

	/* A limit in the middle of a page. */
	header_of(image)->initrd_addr_max = 0x37ffff0;
	write_file(kernel_path, image, sizeof(image));
	load(&o, 128 * MIB, true, "");
	ck_assert_msg(!o.rc, "%s", o.err.text);
	params = params_of(&o);
	ck_assert_uint_eq(params->hdr.ramdisk_image, 0x37ff000 - 3 * MIB - 0x1000);
	fake_ram_finish(&o.ram);

	/* The kernel ends at 32 MiB, the limit is there too: no amount of memory helps. */
	header_of(image)->initrd_addr_max = 0x2000000 + 0x100000;
	write_file(kernel_path, image, sizeof(image));
	load(&o, 128 * MIB, true, "");
	ck_assert_int_eq(o.rc, -EFBIG);
	ck_assert_ptr_nonnull(strstr(o.err.text, "any amount of memory"));
	fake_ram_finish(&o.ram);

	/* Larger than any RAM. */
	make_bzimage(image);
	write_file(kernel_path, image, sizeof(image));
	write_sparse(initrd_path, 1ull << 40);
	load(&o, 128 * MIB, true, "");
	ck_assert_int_eq(o.rc, -EFBIG);
	fake_ram_finish(&o.ram);
}
END_TEST

START_TEST(command_line_has_a_limit)
{
	static uint8_t bz[BZ_LEN], elf[ELF_LEN];
	char line[5001];

	make_bzimage(bz);
	make_elf(elf);
	for (unsigned is_elf = 0; is_elf < 2; is_elf++) {
		struct outcome o;

		if (is_elf)
			write_file(kernel_path, elf, sizeof(elf));
		else
			write_file(kernel_path, bz, sizeof(bz));
		memset(line, 'a', sizeof(line));
		line[2047] = 0;
		load(&o, 128 * MIB, false, line);
		ck_assert_msg(!o.rc, "%s", o.err.text);
		ck_assert_str_eq((char *)o.ram.mem + MB_BOOT_CMDLINE, line);
		fake_ram_finish(&o.ram);

		line[2047] = 'a';
		line[5000] = 0;
		load(&o, 128 * MIB, false, line);
		ck_assert_int_eq(o.rc, -E2BIG);
		ck_assert_ptr_nonnull(strstr(o.err.text, "2047"));
		ck_assert_ptr_nonnull(strstr(o.err.text, "5000"));
		fake_ram_finish(&o.ram);
	}
}
END_TEST

/* A kernel that claims to take 4 GiB of command line does not make us write over our own tables. */
START_TEST(command_line_ends_in_low_ram)
{
	static uint8_t image[BZ_LEN];
	size_t room = 0x9fc00 - MB_BOOT_CMDLINE;
	char *line = malloc(room + 1);
	struct outcome o;

	make_bzimage(image);
	header_of(image)->cmdline_size = UINT32_MAX;
	write_file(kernel_path, image, sizeof(image));
	memset(line, 'a', room);
	line[room] = 0;
	load(&o, 128 * MIB, false, line);
	ck_assert_int_eq(o.rc, -E2BIG);
	fake_ram_finish(&o.ram);
	line[room - 1] = 0;
	load(&o, 128 * MIB, false, line);
	ck_assert_msg(!o.rc, "%s", o.err.text);
	fake_ram_finish(&o.ram);
	free(line);
}
END_TEST

START_TEST(elf_is_loaded_through_pvh)
{
	static uint8_t image[ELF_LEN], initrd[100] = "initrd";
	uint64_t info[7], module[4], entry[3], ram_bytes = 0;
	uint32_t word[4];
	struct outcome o;

	make_elf(image);
	write_file(kernel_path, image, sizeof(image));
	write_file(initrd_path, initrd, sizeof(initrd));
	load(&o, MB_RAM_LOW_MAX + 32 * MIB, true, "root=/dev/vda");
	ck_assert_msg(!o.rc, "%s", o.err.text);
	ck_assert(!o.start.long_mode);
	ck_assert_uint_eq(o.start.rip, ELF_ENTRY);
	ck_assert_uint_eq(o.start.rbx, MB_BOOT_PVH_INFO);
	ck_assert_mem_eq(o.ram.mem + ELF_BASE, image + ELF_TEXT_AT, ELF_TEXT_LEN);
	ck_assert_mem_eq(
		o.ram.mem + ELF_BASE + 0x200000, image + ELF_TEXT_AT + ELF_TEXT_LEN, ELF_DATA_LEN);
	ck_assert_uint_eq(o.ram.mem[ELF_BASE + 0x200000 + ELF_DATA_LEN], 0);
	ck_assert_uint_eq(o.ram.loaded_bytes, ELF_TEXT_LEN + ELF_DATA_LEN + sizeof(initrd));

	memcpy(word, o.ram.mem + MB_BOOT_PVH_INFO, sizeof(word));
	memcpy(info, o.ram.mem + MB_BOOT_PVH_INFO, sizeof(info));
	ck_assert_uint_eq(word[0], 0x336ec578);
	ck_assert_uint_eq(word[1], 1);
	ck_assert_uint_eq(word[2], 0);
	ck_assert_uint_eq(word[3], 1);
	ck_assert_uint_eq(info[3], MB_BOOT_CMDLINE);
	ck_assert_uint_eq(info[4], MB_BOOT_ACPI);
	ck_assert_str_eq((char *)o.ram.mem + info[3], "root=/dev/vda");
	memcpy(module, o.ram.mem + info[2], sizeof(module));
	ck_assert_uint_eq(module[0], MB_RAM_LOW_MAX - 0x1000);
	ck_assert_uint_eq(module[1], sizeof(initrd));
	ck_assert_mem_eq(o.ram.mem + module[0], initrd, sizeof(initrd));
	for (uint64_t i = 0; i < (uint32_t)info[6]; i++) {
		memcpy(entry, o.ram.mem + info[5] + i * sizeof(entry), sizeof(entry));
		if (entry[2] == 1)
			ram_bytes += entry[1];
	}
	ck_assert_uint_eq(ram_bytes, MB_RAM_LOW_MAX + 32 * MIB - (MIB - 0x9fc00));
	fake_ram_finish(&o.ram);

	/* The form of the note that older kernels have: 8 bytes. */
	((struct note *)(image + ELF_NOTES_AT))[2].hdr.n_descsz = 8;
	phdr_of(image, 2)->p_filesz += 4;
	write_file(kernel_path, image, sizeof(image));
	load(&o, 64 * MIB, false, "");
	ck_assert_msg(!o.rc, "%s", o.err.text);
	ck_assert_uint_eq(o.start.rip, ELF_ENTRY);
	memcpy(word, o.ram.mem + MB_BOOT_PVH_INFO, sizeof(word));
	ck_assert_uint_eq(word[3], 0);
	fake_ram_finish(&o.ram);
}
END_TEST

START_TEST(elf_image_in_memory_is_loaded)
{
	static uint8_t image[ELF_LEN];
	struct mb_error err = {0};
	uint64_t entry = 0;
	struct mb_ram ram;

	make_elf(image);
	fake_ram_init(&ram, 64 * MIB, 0);
	ck_assert_msg(!mb_boot_load_elf_image(&ram, image, sizeof(image), "splash", &entry, &err),
		"%s", err.text);
	ck_assert_uint_eq(entry, ELF_BASE);
	ck_assert_mem_eq(ram.mem + ELF_BASE, image + ELF_TEXT_AT, ELF_TEXT_LEN);
	for (size_t len = 0; len < sizeof(image); len += len < 1024 ? 1 : 97) {
		uint8_t *copy = malloc(len + !len);

		/* On the heap and of exactly this size: ASan sees a read beyond it. */
		memcpy(copy, image, len);
		ck_assert_int_lt(
			mb_boot_load_elf_image(&ram, copy, len, "splash", &entry, &err), 0);
		ck_assert_ptr_nonnull(strstr(err.text, "splash"));
		free(copy);
	}
	fake_ram_finish(&ram);
}
END_TEST

START_TEST(page_tables_need_ram)
{
	struct mb_error err = {0};
	struct mb_ram ram;

	fake_ram_init(&ram, 0xe000, 0);
	ck_assert_int_eq(mb_boot_page_tables(&ram, &err), -EFAULT);
	ck_assert_str_ne(err.text, "");
	fake_ram_finish(&ram);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("boot");
	TCase *tc = tcase_create("boot");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, make_dir, remove_dir);
	tcase_add_test(tc, bzimage_is_loaded);
	tcase_add_test(tc, e820_covers_ram_and_nothing_else);
	tcase_add_test(tc, bzimage_goes_where_the_protocol_says);
	tcase_add_test(tc, initrd_stays_below_its_limit_and_above_the_kernel);
	tcase_add_test(tc, command_line_has_a_limit);
	tcase_add_test(tc, command_line_ends_in_low_ram);
	tcase_add_test(tc, elf_is_loaded_through_pvh);
	tcase_add_test(tc, elf_image_in_memory_is_loaded);
	tcase_add_test(tc, page_tables_need_ram);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
