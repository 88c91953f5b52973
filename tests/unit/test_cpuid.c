// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <asm/kvm_para.h>
#include <mirrorball/cpuid.h>
#include <stdlib.h>
#include <string.h>

/* What a KVM might support: every bit of every leaf that the policy looks at. */
static struct kvm_cpuid2 *supported;

static void add(uint32_t function, uint32_t index, uint32_t eax)
{
	struct kvm_cpuid_entry2 *e = &supported->entries[supported->nent++];

	*e = (struct kvm_cpuid_entry2){.function = function, .index = index, .eax = eax,
		.ebx = 0xffffffff, .ecx = 0xffffffff, .edx = 0xffffffff};
}

static void setup(void)
{
	supported = calloc(1, sizeof(*supported) + 32 * sizeof(supported->entries[0]));
	add(1, 0, 0x000806f8);
	add(4, 0, 0x121);	 /* level 1 data */
	add(4, 3, 0x163);	 /* level 3 */
	add(4, 4, 0);		 /* the end of the list */
	add(6, 0, 0);
	add(7, 0, 2);
	add(0xb, 0, 0);
	add(0x12, 0, 0xffffffff);
	add(KVM_CPUID_SIGNATURE, 0, KVM_CPUID_FEATURES);
	add(KVM_CPUID_FEATURES, 0, 0xffffffff);
	add(0x80000001, 0, 0);
	add(0x80000008, 0, 0);
	add(0x8000000a, 0, 0xffffffff);
	add(0x8000001d, 3, 0x163);
	add(0x8000001e, 0, 0);
}

static void teardown(void)
{
	free(supported);
}

static const struct kvm_cpuid_entry2 *leaf(const struct kvm_cpuid2 *list, uint32_t f, uint32_t index)
{
	for (unsigned i = 0; i < list->nent; i++) {
		if (list->entries[i].function == f && list->entries[i].index == index)
			return &list->entries[i];
	}
	return NULL;
}

static struct kvm_cpuid2 *build(unsigned n_vcpus, unsigned apic_id)
{
	struct mb_cpuid_config config = {.n_vcpus = n_vcpus, .n_views = 2, .tsc_deadline = true,
		.msi_ext_dest_id = n_vcpus > 255};
	struct kvm_cpuid2 *list;

	ck_assert_int_eq(mb_cpuid_build(supported, &config, apic_id, &list), 0);
	return list;
}

START_TEST(test_takes_out_what_cannot_be_honoured)
{
	struct kvm_cpuid2 *list = build(4, 1);

	ck_assert_uint_eq(leaf(list, 1, 0)->ecx & 1u << 5, 0);		/* VMX */
	ck_assert_uint_ne(leaf(list, 1, 0)->ecx & 1u << 31, 0);		/* a hypervisor */
	ck_assert_uint_ne(leaf(list, 1, 0)->ecx & 1u << 21, 0);		/* x2APIC */
	ck_assert_uint_ne(leaf(list, 1, 0)->ecx & 1u << 24, 0);		/* TSC deadline */
	ck_assert_uint_eq(leaf(list, 7, 0)->ebx & 1u << 2, 0);		/* SGX */
	ck_assert_uint_eq(leaf(list, 0x12, 0)->eax, 0);
	ck_assert_uint_eq(leaf(list, 0x80000001, 0)->ecx & 1u << 2, 0); /* SVM */
	ck_assert_uint_eq(leaf(list, 0x8000000a, 0)->eax, 0);
	/* Hypercalls and MSRs that would need the monitor's help. */
	ck_assert_uint_eq(leaf(list, KVM_CPUID_FEATURES, 0)->eax & 1u << KVM_FEATURE_HC_MAP_GPA_RANGE, 0);
	ck_assert_uint_eq(leaf(list, KVM_CPUID_FEATURES, 0)->eax & 1u << KVM_FEATURE_MIGRATION_CONTROL, 0);
	ck_assert_uint_eq(leaf(list, KVM_CPUID_FEATURES, 0)->eax & 1u << KVM_FEATURE_MSI_EXT_DEST_ID, 0);
	ck_assert_uint_ne(leaf(list, KVM_CPUID_FEATURES, 0)->eax & 1u << KVM_FEATURE_CLOCKSOURCE2, 0);
	ck_assert_uint_ne(leaf(list, 6, 0)->eax & 1u << 2, 0); /* ARAT */
	free(list);
}
END_TEST

START_TEST(test_no_deadline_timer)
{
	struct mb_cpuid_config config = {.n_vcpus = 1, .n_views = 1};
	struct kvm_cpuid2 *list;

	ck_assert_int_eq(mb_cpuid_build(supported, &config, 0, &list), 0);
	ck_assert_uint_eq(leaf(list, 1, 0)->ecx & 1u << 24, 0);
	free(list);
}
END_TEST

/* Every number of vCPUs: the leaves that speak of topology agree with each other. */
START_TEST(test_topology)
{
	static const unsigned counts[] = {1, 2, 3, 4, 5, 8, 64, 200, 255, 256, 1000, 1024};
	unsigned n = counts[_i], bits = 0;

	while (1u << bits < n)
		bits++;
	for (unsigned id = 0; id < n; id += id < 3 || id + 2 >= n ? 1 : n / 3 + 1) {
		struct kvm_cpuid2 *list = build(n, id);
		const struct kvm_cpuid_entry2 *e = leaf(list, 1, 0);

		ck_assert_uint_eq(e->ebx >> 24, id & 0xff);
		ck_assert_uint_eq(e->ebx >> 16 & 0xff, n < 255 ? n : 255);
		ck_assert_uint_eq(!!(e->edx & 1u << 28), n > 1);
		e = leaf(list, 0xb, 0);
		ck_assert_uint_eq(e->eax, 0);
		ck_assert_uint_eq(e->ebx, 1);
		ck_assert_uint_eq(e->ecx, 1u << 8);
		ck_assert_uint_eq(e->edx, id);
		e = leaf(list, 0xb, 1);
		ck_assert_uint_eq(e->eax, bits);
		ck_assert_uint_eq(e->ebx, n);
		ck_assert_uint_eq(e->ecx, 2u << 8 | 1);
		ck_assert_uint_eq(e->edx, id);
		ck_assert_uint_eq(leaf(list, 0xb, 2)->ebx, 0);
		ck_assert_uint_eq(leaf(list, 0xb, 2)->ecx, 2);
		/* Level 1 is a core's own; level 3 is everybody's. */
		ck_assert_uint_eq(leaf(list, 4, 0)->eax >> 14 & 0xfff, 0);
		ck_assert_uint_ge(leaf(list, 4, 3)->eax >> 14 & 0xfff, n - 1);
		ck_assert_uint_eq(leaf(list, 4, 4)->eax, 0);
		ck_assert_uint_eq(leaf(list, 0x8000001d, 3)->eax >> 14 & 0xfff, n - 1);
		e = leaf(list, 0x80000008, 0);
		ck_assert_uint_eq(e->ecx & 0xff, n <= 256 ? n - 1 : 255);
		ck_assert_uint_eq(e->ecx >> 12 & 0xf, bits);
		ck_assert_uint_eq(leaf(list, 0x8000001e, 0)->eax, id);
		ck_assert_uint_eq(!!(leaf(list, KVM_CPUID_FEATURES, 0)->eax &
				1u << KVM_FEATURE_MSI_EXT_DEST_ID), n > 255);
		free(list);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cpuid");
	TCase *tc = tcase_create("cpuid");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_takes_out_what_cannot_be_honoured);
	tcase_add_test(tc, test_no_deadline_timer);
	tcase_add_loop_test(tc, test_topology, 0, 12);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
