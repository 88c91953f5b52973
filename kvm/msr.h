/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_KVM_MSR_H
#define MB_KVM_MSR_H

#include <linux/kvm.h>
#include <mirrorball/host.h>
#include <stdbool.h>

/* The MSRs of a vCPU that KVM keeps, with their values. */
struct mb_msrs {
	unsigned n;
	struct kvm_msr_entry *entry;
};

/* Where a guest says where its clock is, with bit 0 set, or that it gives it up (msr.rst). */
#define MB_MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01u

/* As the host may: also what a guest may not write. -EINVAL where KVM does not take it. */
int mb_msr_set(const struct mb_host *host, int vcpu_fd, uint32_t index, uint64_t value);

/* Values after power-on that firmware would have set: memory type write-back, fast strings. */
int mb_msrs_init_vcpu(const struct mb_host *host, int vcpu_fd);

/*
 * Where KVM would look for the state that RSM restores: from now on where no guest has memory. A KVM that
 * does not take it is left as it is.
 */
void mb_msrs_hide_smram(const struct mb_host *host, int vcpu_fd);

/*
 * Reads every MSR in KVM's list. clock: the TSC, too; it goes on over a reset, where writing it would take
 * vCPUs out of step. msrs->entry is the caller's to free.
 */
int mb_msrs_get(const struct mb_host *host, int vcpu_fd, bool clock, struct mb_msrs *msrs);

/* Writes them; one that KVM refuses is left as it is. */
int mb_msrs_set(const struct mb_host *host, int vcpu_fd, const struct mb_msrs *msrs);

/*
 * The same for a vCPU that is to be what another one was: -EINVAL for the first one that KVM refuses and that
 * does not have that value already. *refused: its index. Where KVM is to write the wall clock is left out.
 */
int mb_msrs_restore(
	const struct mb_host *host, int vcpu_fd, const struct mb_msrs *msrs, uint32_t *refused);

#endif
