// SPDX-License-Identifier: Apache-2.0
#include "fake_ram.h"
#include "run.h"
#include <elf.h>
#include <mirrorball/boot.h>
#include <mirrorball/splash.h>
#include <stdio.h>

#define MIB (1ull << 20)

/* The vCPUs, as far as splash.c knows them. */
#define N_VCPUS 5u

struct mb_vcpu {
	unsigned n_starts;
	struct mb_vcpu_start start;
};

struct mb_vcpus {
	struct mb_vcpu vcpu[N_VCPUS];
	unsigned n;
	int start_rc;
};

unsigned mb_vcpus_count(const struct mb_vcpus *vcpus)
{
	return vcpus->n;
}

struct mb_vcpu *mb_vcpus_at(struct mb_vcpus *vcpus, unsigned index)
{
	ck_assert_uint_lt(index, vcpus->n);
	return &vcpus->vcpu[index];
}

unsigned mb_vcpu_group(const struct mb_vcpu *vcpu)
{
	return 1;
}

uint32_t mb_vcpu_tsc_khz(struct mb_vcpu *vcpu)
{
	return 2500000;
}

int mb_vcpu_set_start(struct mb_vcpu *vcpu, const struct mb_vcpu_start *start)
{
	vcpu->n_starts++;
	vcpu->start = *start;
	return 0;
}

static struct mb_ram ram;
static struct mb_vcpus vcpus;
static struct mb_error err;

static void setup(void)
{
	fake_ram_init(&ram, 8 * MIB, 0);
	vcpus = (struct mb_vcpus){.n = N_VCPUS};
	err.text[0] = '\0';
}

static void teardown(void)
{
	fake_ram_finish(&ram);
}

START_TEST(programs_are_what_the_guest_has)
{
	static const uint32_t takes[] = {
#define TAKES(name, args, summary, usage) (args) | MB_SPLASH_COMMON_ARGS,
		MB_SPLASH_PROGRAMS(TAKES)};
	static const char *const keys[] = {
#define KEY(name, key) key,
		MB_SPLASH_ARGS(KEY)};
	static const char *const wanted[] = {"hello", "touch", "radix", "readshare", "writeshare",
		"private", "phase", "walk", "churn", "litmus", "diskchurn", "fuzz", "demo"};
	unsigned n = 0;

	for (const struct mb_splash_program *p = mb_splash_programs; p->name; p++, n++) {
		ck_assert_uint_gt(strlen(p->summary), 10);
		/* What is said about arguments and what the guest takes agree. */
		for (unsigned k = 0; k < MB_SPLASH_N_ARGS; k++) {
			char word[32];
			const char *at;

			snprintf(word, sizeof(word), "%s=", keys[k]);
			at = strstr(p->usage, word);
			while (at && at != p->usage && at[-1] != ' ')
				at = strstr(at + 1, word);
			ck_assert_msg(!at == !(takes[n] >> k & 1), "%s: %s", p->name, word);
		}
	}
	ck_assert_uint_eq(n, sizeof(takes) / sizeof(takes[0]));
	for (unsigned i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		ck_assert_int_eq(mb_splash_check(wanted[i], &err), 0);
}
END_TEST

START_TEST(image_is_a_small_static_elf)
{
	uint64_t len;
	const Elf64_Ehdr *e = mb_splash_image(&len);

	ck_assert_uint_gt(len, sizeof(*e));
	ck_assert_uint_lt(len, 128 * 1024);
	ck_assert_mem_eq(e->e_ident, ELFMAG, SELFMAG);
	ck_assert_uint_eq(e->e_type, ET_EXEC);
	ck_assert_uint_eq(e->e_machine, EM_X86_64);
	ck_assert_uint_ge(e->e_entry, MIB);
	for (unsigned i = 0; i < e->e_phnum; i++) {
		Elf64_Phdr p;

		memcpy(&p, (const char *)e + e->e_phoff + i * sizeof(p), sizeof(p));
		ck_assert_uint_ne(p.p_type, PT_INTERP);
		ck_assert_uint_ne(p.p_type, PT_DYNAMIC);
		if (p.p_type == PT_LOAD) {
			ck_assert_uint_eq(p.p_paddr, p.p_vaddr);
			ck_assert_uint_ge(p.p_paddr, MIB);
			ck_assert_uint_lt(p.p_paddr + p.p_memsz, MIB + 256 * 1024);
		}
	}
}
END_TEST

START_TEST(load_fills_in_what_the_guest_reads)
{
	struct mb_splash_info info;
	uint64_t len;
	const Elf64_Ehdr *e = mb_splash_image(&len);

	ck_assert_int_eq(mb_splash_load(&ram, &vcpus, "  churn ms=5 seed=1", &err), 0);
	ck_assert_int_eq(mb_dma_read(mb_ram_dma(&ram), MB_SPLASH_INFO, &info, sizeof(info)), 0);
	ck_assert_uint_eq(info.magic, MB_SPLASH_MAGIC);
	ck_assert_uint_eq(info.n_vcpus, N_VCPUS);
	ck_assert_uint_eq(info.tsc_khz, 2500000);
	ck_assert_uint_eq(info.low_ram_bytes, 8 * MIB);
	ck_assert_uint_eq(info.high_ram_bytes, 0);
	ck_assert_str_eq(info.cmdline, "churn ms=5 seed=1");
	for (unsigned i = 0; i < N_VCPUS; i++) {
		ck_assert_uint_eq(info.vcpu_view[i], 1);
		ck_assert_uint_eq(vcpus.vcpu[i].n_starts, 1);
		ck_assert(vcpus.vcpu[i].start.long_mode);
		ck_assert_uint_eq(vcpus.vcpu[i].start.rip, e->e_entry);
		ck_assert_uint_eq(vcpus.vcpu[i].start.rdi, MB_SPLASH_INFO);
		ck_assert_uint_eq(vcpus.vcpu[i].start.rsi, i);
		ck_assert_uint_eq(vcpus.vcpu[i].start.cr3, MB_BOOT_PAGE_TABLES);
	}
	ck_assert_uint_eq(info.vcpu_view[N_VCPUS], 0);
	/* The information page ends before the boot protocol's next one. */
	ck_assert_uint_le(MB_SPLASH_INFO + sizeof(info), MB_BOOT_PVH_INFO);
}
END_TEST

START_TEST(no_program_is_the_demonstration)
{
	struct mb_splash_info info;

	ck_assert_int_eq(mb_splash_load(&ram, &vcpus, NULL, &err), 0);
	ck_assert_int_eq(mb_splash_load(&ram, &vcpus, "  ", &err), 0);
	ck_assert_int_eq(mb_dma_read(mb_ram_dma(&ram), MB_SPLASH_INFO, &info, sizeof(info)), 0);
	ck_assert_str_eq(info.cmdline, "");
	ck_assert_str_eq(mb_splash_programs[0].name, "demo");
}
END_TEST

START_TEST(unknown_program_is_refused_with_the_list)
{
	static const char *const bad[] = {"helo", "hello2", "hell", "--help", "=", "Hello ms=1"};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ck_assert_int_eq(mb_splash_load(&ram, &vcpus, bad[i], &err), -EINVAL);
		for (const struct mb_splash_program *p = mb_splash_programs; p->name; p++)
			ck_assert_ptr_nonnull(strstr(err.text, p->name));
	}
	ck_assert_uint_eq(vcpus.vcpu[0].n_starts, 0);
	ck_assert_int_eq(mb_splash_check("nope", NULL), -EINVAL);
}
END_TEST

START_TEST(long_command_line_is_refused)
{
	char line[MB_SPLASH_MAX_CMDLINE + 1];

	memset(line, 'x', sizeof(line));
	memcpy(line, "hello ", 6);
	line[MB_SPLASH_MAX_CMDLINE] = '\0';
	ck_assert_int_eq(mb_splash_load(&ram, &vcpus, line, &err), -E2BIG);
	line[MB_SPLASH_MAX_CMDLINE - 1] = '\0';
	ck_assert_int_eq(mb_splash_load(&ram, &vcpus, line, &err), 0);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("splash");
	TCase *t = tcase_create("splash");

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, programs_are_what_the_guest_has);
	tcase_add_test(t, image_is_a_small_static_elf);
	tcase_add_test(t, load_fills_in_what_the_guest_reads);
	tcase_add_test(t, no_program_is_the_demonstration);
	tcase_add_test(t, unknown_program_is_refused_with_the_list);
	tcase_add_test(t, long_command_line_is_refused);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
