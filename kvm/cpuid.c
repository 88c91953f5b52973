// SPDX-License-Identifier: Apache-2.0
#include <asm/kvm_para.h>
#include <errno.h>
#include <mirrorball/cpuid.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ENTRIES 1024u

/* CPUID.1:ECX */
#define CPUID_1_ECX_VMX		 (1u << 5)
#define CPUID_1_ECX_X2APIC	 (1u << 21)
#define CPUID_1_ECX_TSC_DEADLINE (1u << 24)
#define CPUID_1_ECX_OSXSAVE	 (1u << 27)
#define CPUID_1_ECX_HYPERVISOR	 (1u << 31)
/* CPUID.1:EDX */
#define CPUID_1_EDX_HTT (1u << 28)
/* CPUID.6:EAX */
#define CPUID_6_EAX_ARAT (1u << 2)
/* CPUID.7.0:EBX, ECX */
#define CPUID_7_EBX_SGX	   (1u << 2)
#define CPUID_7_ECX_SGX_LC (1u << 30)
/* CPUID.8000_0001:ECX */
#define CPUID_80000001_ECX_CMP_LEGACY (1u << 1)
#define CPUID_80000001_ECX_SVM	      (1u << 2)
#define CPUID_80000001_ECX_TOPOEXT    (1u << 22)

/*
 * Paravirtual features that need nothing of the monitor (cpuid.rst): the rest, which would have the
 * guest call on user space (mapping and migration hypercalls), is taken out.
 */
#define PV_FEATURES                                                                                \
	(1u << KVM_FEATURE_CLOCKSOURCE | 1u << KVM_FEATURE_NOP_IO_DELAY |                          \
		1u << KVM_FEATURE_CLOCKSOURCE2 | 1u << KVM_FEATURE_ASYNC_PF |                      \
		1u << KVM_FEATURE_STEAL_TIME | 1u << KVM_FEATURE_PV_EOI |                          \
		1u << KVM_FEATURE_PV_UNHALT | 1u << KVM_FEATURE_PV_TLB_FLUSH |                     \
		1u << KVM_FEATURE_ASYNC_PF_VMEXIT | 1u << KVM_FEATURE_PV_SEND_IPI |                \
		1u << KVM_FEATURE_POLL_CONTROL | 1u << KVM_FEATURE_PV_SCHED_YIELD |                \
		1u << KVM_FEATURE_ASYNC_PF_INT | 1u << KVM_FEATURE_CLOCKSOURCE_STABLE_BIT)

int mb_cpuid_supported(const struct mb_host *host, struct kvm_cpuid2 **out)
{
	for (unsigned n = 128; n <= MAX_ENTRIES; n *= 2) {
		struct kvm_cpuid2 *list = calloc(1, sizeof(*list) + n * sizeof(list->entries[0]));
		int rc;

		if (!list)
			return -ENOMEM;
		list->nent = n;
		rc = mb_host_ioctl(host, host->kvm_fd, KVM_GET_SUPPORTED_CPUID, list);
		if (!rc) {
			*out = list;
			return 0;
		}
		free(list);
		if (rc != -E2BIG)
			return rc;
	}
	return -E2BIG;
}

/* AMD's APM vol. 3, CPUID 8000_0008H EAX: 7:0 of addresses, 23:16 of those that nested tables map, or 0. */
unsigned mb_cpuid_address_bits(const struct kvm_cpuid2 *supported)
{
	unsigned bits = 36, nested; /* SDM vol. 3, 4.1.4: without that leaf */

	for (unsigned i = 0; i < supported->nent; i++) {
		if (supported->entries[i].function != 0x80000008)
			continue;
		bits = supported->entries[i].eax & 0xff;
		nested = supported->entries[i].eax >> 16 & 0xff;
		return nested && nested < bits ? nested : bits;
	}
	return bits;
}

/* Bits that hold the numbers 0..n-1. */
static unsigned bits_for(unsigned n)
{
	unsigned bits = 0;

	while (bits < 31 && 1u << bits < n)
		bits++;
	return bits;
}

static unsigned at_most(unsigned value, unsigned max)
{
	return value < max ? value : max;
}

/*
 * Extended topology (SDM vol. 2, CPUID leaf 0BH): each vCPU is a core of its own with one thread, all in
 * one package.
 */
static void extended_topology(struct kvm_cpuid_entry2 *e, unsigned n_vcpus, unsigned apic_id)
{
	e->eax = e->ebx = 0;
	e->ecx = e->index & 0xff;
	if (e->index == 0) {
		e->ebx = 1;
		e->ecx |= 1u << 8; /* level type: thread */
	} else if (e->index == 1) {
		e->eax = bits_for(n_vcpus);
		e->ebx = n_vcpus;
		e->ecx |= 2u << 8; /* level type: core */
	}
	e->edx = apic_id;
}

static void adjust(struct kvm_cpuid_entry2 *e, const struct mb_cpuid_config *config,
	unsigned apic_id)
{
	unsigned n = config->n_vcpus;

	switch (e->function) {
	case 1:
		e->ecx &= ~(CPUID_1_ECX_VMX | CPUID_1_ECX_OSXSAVE | CPUID_1_ECX_TSC_DEADLINE);
		e->ecx |= CPUID_1_ECX_HYPERVISOR | CPUID_1_ECX_X2APIC;
		if (config->tsc_deadline)
			e->ecx |= CPUID_1_ECX_TSC_DEADLINE;
		e->ebx = (e->ebx & 0xffff) | at_most(n, 255) << 16 | (apic_id & 0xff) << 24;
		if (n > 1)
			e->edx |= CPUID_1_EDX_HTT;
		else
			e->edx &= ~CPUID_1_EDX_HTT;
		break;
	case 4: /* Intel: caches. Level 3 is shared by all, the others belong to one core. */
		if (!(e->eax & 0x1f))
			break;
		e->eax &= 0x3fff;
		e->eax |= at_most((1u << bits_for(n)) - 1, 63) << 26;
		if ((e->eax >> 5 & 7) >= 3)
			e->eax |= at_most((1u << bits_for(n)) - 1, 4095) << 14;
		break;
	case 6:
		e->eax |= CPUID_6_EAX_ARAT; /* KVM's timer never stops */
		break;
	case 7:
		if (e->index == 0) {
			e->ebx &= ~CPUID_7_EBX_SGX;
			e->ecx &= ~CPUID_7_ECX_SGX_LC;
		}
		break;
	case 0xb:
	case 0x1f:
		extended_topology(e, n, apic_id);
		break;
	case 0x12: /* SGX */
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case KVM_CPUID_FEATURES:
		e->eax &= PV_FEATURES;
		if (config->msi_ext_dest_id)
			e->eax |= 1u << KVM_FEATURE_MSI_EXT_DEST_ID;
		break;
	case 0x80000001:
		e->ecx &= ~(CPUID_80000001_ECX_SVM | CPUID_80000001_ECX_CMP_LEGACY);
		if (n > 1 && e->ecx & CPUID_80000001_ECX_TOPOEXT)
			e->ecx |= CPUID_80000001_ECX_CMP_LEGACY;
		break;
	case 0x80000008: /* AMD: number of cores and the size of an APIC id */
		e->ecx = (e->ecx & ~0xf0ffu) | at_most(n - 1, 255) |
			at_most(bits_for(n), 15) << 12;
		break;
	case 0x8000000a: /* SVM */
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case 0x8000001d: /* AMD: caches, as leaf 4 */
		if (!(e->eax & 0x1f))
			break;
		e->eax &= 0x3fff;
		if ((e->eax >> 5 & 7) >= 3)
			e->eax |= at_most(n - 1, 4095) << 14;
		break;
	case 0x8000001e:
		e->eax = apic_id;
		e->ebx = at_most(apic_id, 255); /* core id; one thread a core */
		e->ecx = 0;			/* node 0, one node a package */
		break;
	}
}

int mb_cpuid_build(const struct kvm_cpuid2 *supported, const struct mb_cpuid_config *config,
	unsigned apic_id, struct kvm_cpuid2 **out)
{
	/* Both levels of the extended topology are given, whatever KVM lists. */
	struct kvm_cpuid2 *list = calloc(
		1, sizeof(*list) + (supported->nent + 3) * sizeof(list->entries[0]));
	bool intel_topology = false;

	if (!list)
		return -ENOMEM;
	for (unsigned i = 0; i < supported->nent; i++) {
		const struct kvm_cpuid_entry2 *from = &supported->entries[i];

		if (from->function == 0xb || from->function == 0x1f) {
			intel_topology |= from->function == 0xb;
			continue;
		}
		list->entries[list->nent] = *from;
		adjust(&list->entries[list->nent++], config, apic_id);
	}
	if (intel_topology) {
		for (unsigned level = 0; level < 3; level++) {
			struct kvm_cpuid_entry2 *e = &list->entries[list->nent++];

			e->function = 0xb;
			e->index = level;
			e->flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
			adjust(e, config, apic_id);
		}
	}
	*out = list;
	return 0;
}
