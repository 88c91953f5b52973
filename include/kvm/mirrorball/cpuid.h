/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CPUID_H
#define MIRRORBALL_CPUID_H

#include <linux/kvm.h>
#include <mirrorball/host.h>

/*
 * CPUID policy: what KVM offers, less what the monitor cannot honour, with topology leaves that match
 * the number of vCPUs. Pure but for KVM_GET_SUPPORTED_CPUID in mb_cpuid_supported.
 */
struct mb_cpuid_config {
	unsigned n_vcpus;
	unsigned n_views;	/* with 2 or more: no SMM, no nested virtualisation */
	bool tsc_deadline;	/* KVM_CAP_TSC_DEADLINE_TIMER */
	bool msi_ext_dest_id;	/* APIC ids above 254 */
	uint32_t tsc_khz;	/* 0: unknown */
};

/* KVM's own list; free(3) it. */
int mb_cpuid_supported(const struct mb_host *host, struct kvm_cpuid2 **out);

/* How many bits guest physical addresses have, by KVM's list: what is above cannot be mapped. */
unsigned mb_cpuid_address_bits(const struct kvm_cpuid2 *supported);

/* The list for one vCPU, from KVM's; free(3) it. -ENOMEM. */
int mb_cpuid_build(const struct kvm_cpuid2 *supported, const struct mb_cpuid_config *config,
	unsigned apic_id, struct kvm_cpuid2 **out);

#endif
