// SPDX-License-Identifier: Apache-2.0
#include "fake_ram.h"
#include "run.h"
#include <fcntl.h>
#include <mirrorball/acpi.h>
#include <mirrorball/boot.h>
#include <mirrorball/irq.h>
#include <mirrorball/legacy.h>
#include <mirrorball/machine.h>
#include <mirrorball/pci.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>

#define RAM_BYTES 0x400000u
#define N_TABLES  4u

extern char **environ;

static uint64_t get(const uint8_t *p, unsigned len)
{
	uint64_t v = 0;

	memcpy(&v, p, len);
	return v;
}

static uint8_t sum(const uint8_t *p, uint64_t len)
{
	uint8_t s = 0;

	while (len--)
		s = (uint8_t)(s + *p++);
	return s;
}

/* What a guest finds: every length and checksum is looked at on the way. */
struct tables {
	struct mb_ram ram;
	const uint8_t *rsdp, *xsdt, *fadt, *madt, *mcfg, *ssdt, *dsdt;
};

static const uint8_t *table_at(struct tables *t, uint64_t gpa, const char *signature)
{
	const uint8_t *p = t->ram.mem + gpa;
	uint64_t len;

	ck_assert_uint_eq(gpa % 16, 0);
	ck_assert(mb_range_inside(gpa, 36, MB_BOOT_ACPI, MB_BOOT_ACPI_LEN));
	len = get(p + 4, 4);
	ck_assert(mb_range_inside(gpa, len, MB_BOOT_ACPI, MB_BOOT_ACPI_LEN));
	ck_assert_mem_eq(p, signature, 4);
	ck_assert_uint_ge(len, 36);
	ck_assert_msg(!sum(p, len), "checksum of %s", signature);
	return p;
}

static void make(struct tables *t, unsigned n_vcpus, bool serial)
{
	const struct mb_acpi_config config = {.n_vcpus = n_vcpus, .serial = serial};
	struct mb_error err = {0};
	uint64_t rsdp_gpa = 0;

	fake_ram_init(&t->ram, RAM_BYTES, 0);
	ck_assert_msg(!mb_acpi_write(&t->ram, &config, &rsdp_gpa, &err), "%s", err.text);
	ck_assert_uint_eq(rsdp_gpa, MB_BOOT_ACPI);
	/* Firmware's place for it (5.2.5.1): on a 16-byte boundary between 0xe0000 and 0xfffff. */
	t->rsdp = t->ram.mem + rsdp_gpa;
	ck_assert_mem_eq(t->rsdp, "RSD PTR ", 8);
	ck_assert_uint_eq(t->rsdp[15], 2);
	ck_assert_uint_eq(get(t->rsdp + 20, 4), 36);
	ck_assert_uint_eq(sum(t->rsdp, 20), 0);
	ck_assert_uint_eq(sum(t->rsdp, 36), 0);
	t->xsdt = table_at(t, get(t->rsdp + 24, 8), "XSDT");
	ck_assert_uint_eq(get(t->xsdt + 4, 4), 36 + N_TABLES * 8);
	t->fadt = table_at(t, get(t->xsdt + 36, 8), "FACP");
	t->madt = table_at(t, get(t->xsdt + 44, 8), "APIC");
	t->mcfg = table_at(t, get(t->xsdt + 52, 8), "MCFG");
	t->ssdt = table_at(t, get(t->xsdt + 60, 8), "SSDT");
	t->dsdt = table_at(t, get(t->fadt + 140, 8), "DSDT");
	ck_assert_uint_eq(get(t->fadt + 40, 4), get(t->fadt + 140, 8));
}

START_TEST(fadt_is_hardware_reduced)
{
	struct tables t;
	uint64_t flags;

	make(&t, 4, true);
	ck_assert_uint_eq(get(t.fadt + 4, 4), 276);
	ck_assert_uint_eq(t.fadt[8], 6);
	ck_assert_uint_eq(t.fadt[131], 5);
	flags = get(t.fadt + 112, 4);
	ck_assert(flags & 1u << 20); /* HW_REDUCED_ACPI */
	ck_assert(flags & 1u << 10); /* RESET_REG_SUP */
	ck_assert(flags & 1u << 4);  /* no fixed power button */
	ck_assert(flags & 1u << 5);  /* no fixed sleep button */
	/* No FACS, no fixed hardware. */
	ck_assert_uint_eq(get(t.fadt + 36, 4), 0);
	ck_assert_uint_eq(get(t.fadt + 132, 8), 0);
	for (unsigned i = 46; i < 96; i++)
		ck_assert_uint_eq(t.fadt[i], 0);
	for (unsigned i = 148; i < 244; i++)
		ck_assert_uint_eq(t.fadt[i], 0);
	/* VGA absent; 8042, MSI-not-supported and no-RTC clear. */
	ck_assert_uint_eq(get(t.fadt + 109, 2) & 0x2e, 0x04);
	/* System I/O, 8 bits, byte access, at the ports of mirrorball/legacy.h. */
	ck_assert_uint_eq(get(t.fadt + 116, 4), 0x01000801);
	ck_assert_uint_eq(get(t.fadt + 120, 8), MB_POWER_PORT + 2);
	ck_assert_uint_eq(t.fadt[128], 1);
	ck_assert_uint_eq(get(t.fadt + 244, 4), 0x01000801);
	ck_assert_uint_eq(get(t.fadt + 248, 8), MB_POWER_PORT);
	ck_assert_uint_eq(get(t.fadt + 256, 4), 0x01000801);
	ck_assert_uint_eq(get(t.fadt + 260, 8), MB_POWER_PORT + 1);
	fake_ram_finish(&t.ram);
}
END_TEST

START_TEST(mcfg_names_the_ecam)
{
	struct tables t;

	make(&t, 1, true);
	ck_assert_uint_eq(get(t.mcfg + 4, 4), 60);
	ck_assert_uint_eq(get(t.mcfg + 44, 8), MB_PCI_ECAM_BASE);
	ck_assert_uint_eq(get(t.mcfg + 52, 2), 0);
	ck_assert_uint_eq(t.mcfg[54], 0);
	ck_assert_uint_eq((t.mcfg[55] + 1ull) * 0x100000, MB_PCI_ECAM_LEN);
	fake_ram_finish(&t.ram);
}
END_TEST

static const unsigned vcpu_counts[] = {1, 2, 4, 64, 254, 255, 256, 257, 512, MB_MAX_VCPUS};
#define N_COUNTS (sizeof(vcpu_counts) / sizeof(vcpu_counts[0]))

START_TEST(madt_has_every_vcpu_once)
{
	unsigned n_vcpus = vcpu_counts[_i], next = 0, n_ioapics = 0, n_nmis = 0, n_x2nmis = 0;
	const uint8_t *p, *end;
	struct tables t;

	make(&t, n_vcpus, true);
	ck_assert_uint_eq(get(t.madt + 36, 4), 0xfee00000);
	ck_assert_uint_eq(get(t.madt + 40, 4), 0);
	end = t.madt + get(t.madt + 4, 4);
	for (p = t.madt + 44; p < end; p += p[1]) {
		ck_assert_uint_ge(p[1], 2);
		ck_assert_int_le(p[1], end - p);
		switch (p[0]) {
		case 0:
			ck_assert_uint_eq(p[1], 8);
			ck_assert_uint_eq(p[2], next);
			ck_assert_uint_eq(p[3], next);
			ck_assert_uint_lt(next, 255);
			ck_assert_uint_eq(get(p + 4, 4), 1);
			next++;
			break;
		case 9:
			ck_assert_uint_eq(p[1], 16);
			ck_assert_uint_ge(next, 255);
			ck_assert_uint_eq(get(p + 4, 4), next);
			ck_assert_uint_eq(get(p + 8, 4), 1);
			ck_assert_uint_eq(get(p + 12, 4), next);
			next++;
			break;
		case 1:
			ck_assert_uint_eq(p[1], 12);
			ck_assert_uint_eq(p[2], 0);
			ck_assert_uint_eq(get(p + 4, 4), MB_IOAPIC_BASE);
			ck_assert_uint_eq(get(p + 8, 4), 0);
			n_ioapics++;
			break;
		case 4:
			n_nmis++;
			break;
		case 10:
			n_x2nmis++;
			break;
		default:
			ck_abort_msg("entry of type %u", p[0]);
		}
	}
	ck_assert_uint_eq(next, n_vcpus);
	ck_assert_uint_eq(n_ioapics, 1);
	ck_assert_uint_eq(n_nmis, 1);
	ck_assert_uint_eq(n_x2nmis, n_vcpus > 255);
	fake_ram_finish(&t.ram);
}
END_TEST

static const uint8_t *find(const uint8_t *table, const void *bytes, size_t n)
{
	return memmem(table + 36, get(table + 4, 4) - 36, bytes, n);
}

/* dsdt.asl repeats numbers that headers have: small resource descriptors of ACPI 6.5, 6.4. */
START_TEST(dsdt_agrees_with_the_headers)
{
	uint8_t window[] = {0x87, 0x17, 0, 0, 0x0c, 0x01}, ecam[12] = {0x86, 9, 0, 1};
	uint8_t irq[] = {0x89, 6, 0, 0x01, 1, MB_POWER_PIN, 0, 0, 0}, region[10] = "REGS";
	const uint32_t base = (uint32_t)MB_PCI_ECAM_BASE, len = (uint32_t)MB_PCI_ECAM_LEN;
	const uint8_t *p;
	struct tables t;

	make(&t, 1, true);
	p = find(t.dsdt, window, sizeof(window));
	ck_assert_ptr_nonnull(p);
	ck_assert_uint_eq(get(p + 10, 4), MB_PCI_MMIO_BASE);
	ck_assert_uint_eq(get(p + 14, 4), MB_PCI_MMIO_BASE + MB_PCI_MMIO_LEN - 1);
	ck_assert_uint_eq(get(p + 22, 4), MB_PCI_MMIO_LEN);
	memcpy(ecam + 4, &base, 4);
	memcpy(ecam + 8, &len, 4);
	ck_assert_ptr_nonnull(find(t.dsdt, ecam, sizeof(ecam)));
	/* Consumer, level-triggered, active high, exclusive. */
	ck_assert_ptr_nonnull(find(t.dsdt, irq, sizeof(irq)));
	/* OperationRegion (REGS, SystemIO, word, 4) */
	region[4] = 1;
	region[5] = 0x0b;
	region[6] = (MB_POWER_PORT + 4) & 0xff;
	region[7] = (MB_POWER_PORT + 4) >> 8;
	region[8] = 0x0a;
	region[9] = 4;
	ck_assert_ptr_nonnull(find(t.dsdt, region, sizeof(region)));
	fake_ram_finish(&t.ram);
}
END_TEST

START_TEST(com1_is_there_only_when_asked_for)
{
	for (unsigned serial = 0; serial < 2; serial++) {
		struct tables t;
		const uint8_t *p;

		make(&t, 3, serial);
		p = find(t.ssdt, "COMS\x0a", 5);
		ck_assert_ptr_nonnull(p);
		ck_assert_uint_eq(p[5], serial ? 0x0f : 0);
		ck_assert_uint_eq(t.fadt[109] & 1, serial);
		fake_ram_finish(&t.ram);
	}
}
END_TEST

START_TEST(impossible_counts_are_refused)
{
	static const unsigned bad[] = {0, MB_MAX_VCPUS + 1, 100000, UINT32_MAX};
	struct mb_ram ram;

	fake_ram_init(&ram, RAM_BYTES, 0);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		const struct mb_acpi_config config = {.n_vcpus = bad[i]};
		struct mb_error err = {0};
		uint64_t gpa = 42;

		ck_assert_int_eq(mb_acpi_write(&ram, &config, &gpa, &err), -EINVAL);
		ck_assert_ptr_nonnull(strstr(err.text, "vCPUs"));
		ck_assert_uint_eq(gpa, 42);
	}
	fake_ram_finish(&ram);
}
END_TEST

START_TEST(ram_that_cannot_hold_them_is_an_error)
{
	const struct mb_acpi_config config = {.n_vcpus = 1};
	struct mb_error err = {0};
	struct mb_ram ram;
	uint64_t gpa;

	fake_ram_init(&ram, MB_BOOT_ACPI, 0);
	ck_assert_int_eq(mb_acpi_write(&ram, &config, &gpa, &err), -EFAULT);
	ck_assert_str_ne(err.text, "");
	fake_ram_finish(&ram);
}
END_TEST

static void save(const char *dir, const char *name, const uint8_t *table)
{
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "w");
	ck_assert_ptr_nonnull(f);
	ck_assert_uint_eq(fwrite(table, get(table + 4, 4), 1, f), 1);
	fclose(f);
}

/* Runs argv in dir; its output (both streams) to out, without what does not fit. */
static int run(const char *dir, char *const argv[], char *out, size_t size)
{
	posix_spawn_file_actions_t actions;
	size_t n = 0;
	int fds[2], status;
	ssize_t got;
	pid_t pid;

	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addchdir_np(&actions, dir);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
	posix_spawn_file_actions_adddup2(&actions, fds[1], 2);
	status = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	if (status) {
		close(fds[0]);
		return -1;
	}
	for (;;) {
		char dropped[4096];
		bool room = n + 1 < size;

		got = read(fds[0], room ? out + n : dropped, room ? size - 1 - n : sizeof(dropped));
		if (got <= 0)
			break;
		if (room)
			n += (size_t)got;
	}
	out[n] = 0;
	close(fds[0]);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -2;
}

/* iasl comes with the build; another implementation of the specification reads our tables. */
START_TEST(iasl_reads_every_table)
{
	static const char *const names[] = {"facp", "apic", "mcfg", "ssdt", "dsdt", "xsdt"};
	static const unsigned counts[] = {1, 255, MB_MAX_VCPUS};
	unsigned n_vcpus = counts[_i];
	char dir[] = "/tmp/mb-acpi-XXXXXX", name[300];
	static char out[1 << 16];
	struct tables t;

	make(&t, n_vcpus, true);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	save(dir, "facp", t.fadt);
	save(dir, "apic", t.madt);
	save(dir, "mcfg", t.mcfg);
	save(dir, "ssdt", t.ssdt);
	save(dir, "dsdt", t.dsdt);
	save(dir, "xsdt", t.xsdt);
	for (unsigned i = 0; i < 6; i++) {
		char *with_ssdt[] = {"iasl", "-e", "ssdt", "-d", "dsdt", NULL};
		char *plain[] = {"iasl", "-d", (char *)names[i], NULL};
		char *compile[] = {"iasl", "-we", "-p", "again", name, NULL};
		int rc = run(dir, i == 4 ? with_ssdt : plain, out, sizeof(out));

		if (rc == -1) {
			printf("test_acpi: iasl is not there, tables were not disassembled\n");
			break;
		}
		ck_assert_msg(!rc, "iasl -d %s: status %d\n%s", names[i], rc, out);
		ck_assert_msg(!strcasestr(out, "error") && !strcasestr(out, "warning") &&
				      !strcasestr(out, "invalid"),
			"iasl -d %s:\n%s", names[i], out);
		snprintf(name, sizeof(name), "%s/%s.dsl", dir, names[i]);
		if (i != 3 && i != 4) {
			unlink(name);
			continue;
		}
		/* What it understood is again without a fault in its own eyes. */
		rc = run(dir, compile, out, sizeof(out));
		ck_assert_msg(!rc, "iasl %s: status %d\n%s", name, rc, out);
		unlink(name);
	}
	for (unsigned i = 0; i < 6; i++) {
		snprintf(name, sizeof(name), "%s/%s", dir, names[i]);
		unlink(name);
	}
	snprintf(name, sizeof(name), "%s/again.aml", dir);
	unlink(name);
	ck_assert_int_eq(rmdir(dir), 0);
	fake_ram_finish(&t.ram);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("acpi");
	TCase *tc = tcase_create("tables");

	tcase_set_timeout(tc, 30);
	tcase_add_test(tc, fadt_is_hardware_reduced);
	tcase_add_test(tc, mcfg_names_the_ecam);
	tcase_add_loop_test(tc, madt_has_every_vcpu_once, 0, (int)N_COUNTS);
	tcase_add_test(tc, dsdt_agrees_with_the_headers);
	tcase_add_test(tc, com1_is_there_only_when_asked_for);
	tcase_add_test(tc, impossible_counts_are_refused);
	tcase_add_test(tc, ram_that_cannot_hold_them_is_an_error);
	tcase_add_loop_test(tc, iasl_reads_every_table, 0, 3);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
