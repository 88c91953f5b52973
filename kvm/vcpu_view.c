// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <string.h>
#include <time.h>

#include "vcpu_internal.h"

/*
 * Which view a vCPU is in. A second view is System Management Mode (design, section 2), which hides
 * INIT and loses the SIPI after it. So a vCPU enters its view when its SIPI is there, and must be
 * out of it before its guest starts it anew: when it has been offline, or another kernel takes over
 * (kexec).
 *
 *            SIPI, or its clock is set              its clock is given up
 *   view 0  --------------------------->  its view  ---------------------->  view 0 ("away")
 *
 * A Linux guest gives up the clock that KVM keeps for a vCPU on that vCPU, before it goes offline
 * and before a kexec, and sets it early on its way up; the write is seen (kvm/vm.c). All views have
 * the same memory: to be in view 0 for longer than needed is never wrong. Nor is it to be in
 * another one than its own: which one that is may change while the guest runs.
 */

#define SIPI_WAIT_MIN_NS 10000
#define SIPI_WAIT_MAX_NS 1000000

#define CLOCK_SET	 1ull /* bit 0 of MSR_KVM_SYSTEM_TIME_NEW, msr.rst */
#define UD_VECTOR	 6
#define RSM_BYTES	 2u

static int set_smm(struct mb_vcpu *vcpu, bool smm)
{
	struct kvm_vcpu_events events;
	int rc = mb_vcpu_ioctl(vcpu, KVM_GET_VCPU_EVENTS, &events);

	if (rc)
		return rc;
	/*
	 * Only this is said to be valid: an NMI or a SIPI that has come since is not overwritten.
	 * An INIT would be. Linux sends one only to a vCPU that has given up its clock, and so is
	 * in view 0 and stays there; one that does not, and sends it in the microsecond between
	 * the two calls, has to send it again.
	 */
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = smm;
	return mb_vcpu_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &events);
}

static uint8_t own_view(const struct mb_vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->view, __ATOMIC_SEQ_CST);
}

int mb_vcpu_enter_view(struct mb_vcpu *vcpu)
{
	const uint8_t view = own_view(vcpu);
	int rc;

	if (!view)
		return 0;
	/*
	 * In that mode KVM lets RSM through from any ring, and restores every register from guest
	 * memory. No process of a guest shall choose what: there is nothing to restore
	 * (mb_vcpu_forgive_rsm).
	 */
	mb_msrs_hide_smram(mb_vm_host(vcpu->set->vm), vcpu->fd);
	rc = set_smm(vcpu, true);
	if (!rc)
		__atomic_store_n(&vcpu->current_view, view, __ATOMIC_RELAXED);
	return rc;
}

static int leave_view(struct mb_vcpu *vcpu)
{
	int rc = set_smm(vcpu, false);

	if (!rc)
		__atomic_store_n(&vcpu->current_view, 0, __ATOMIC_RELAXED);
	return rc;
}

void mb_vcpu_view_reset(struct mb_vcpu *vcpu)
{
	vcpu->away = false;
	__atomic_store_n(&vcpu->current_view, 0, __ATOMIC_RELAXED);
}

bool mb_vcpu_is_astray(const struct mb_vcpu *vcpu)
{
	return vcpu->current_view != (vcpu->away ? 0 : own_view(vcpu));
}

void mb_vcpu_clock_written(struct mb_vcpu *vcpu, uint64_t value)
{
	vcpu->away = !(value & CLOCK_SET);
}

/*
 * INIT ends KVM_RUN (EAGAIN), the SIPI after it does not: from INIT_RECEIVED a vCPU would go
 * straight into the guest, in view 0. So it waits out here for the SIPI, which KVM_GET_MP_STATE
 * takes when it is pending.
 */
static int enter_view_after_sipi(struct mb_vcpu *vcpu)
{
	struct timespec wait = {.tv_nsec = SIPI_WAIT_MIN_NS};
	struct kvm_mp_state mp;

	for (;;) {
		int rc = mb_vcpu_ioctl(vcpu, KVM_GET_MP_STATE, &mp);

		if (rc || mp.mp_state == KVM_MP_STATE_UNINITIALIZED)
			return rc;
		if (mp.mp_state != KVM_MP_STATE_INIT_RECEIVED)
			return mb_vcpu_enter_view(vcpu);
		if (__atomic_load_n(&vcpu->set->request, __ATOMIC_ACQUIRE))
			return -EINTR;
		nanosleep(&wait, NULL);
		if (wait.tv_nsec < SIPI_WAIT_MAX_NS)
			wait.tv_nsec *= 2;
	}
}

int mb_vcpu_find_view(struct mb_vcpu *vcpu)
{
	return vcpu->away || !own_view(vcpu) ? leave_view(vcpu) : enter_view_after_sipi(vcpu);
}

bool mb_vcpu_forgive_rsm(struct mb_vcpu *vcpu)
{
	struct kvm_vcpu_events events;
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	if (!vcpu->current_view || mb_vcpu_ioctl(vcpu, KVM_GET_REGS, &regs) ||
		mb_vcpu_ioctl(vcpu, KVM_GET_SREGS, &sregs) ||
		mb_vcpu_ioctl(vcpu, KVM_GET_VCPU_EVENTS, &events))
		return false;
	/*
	 * AMD's shutdown takes the vCPU through INIT and so out of the mode: that one was real.
	 * Intel's leaves everything as it was, and a process cannot be told from one that executed
	 * RSM: where its kernel has no handler for the exception either, the guest comes here again
	 * and again instead of crashing. What a kernel does to itself is its own affair.
	 */
	if (!events.smi.smm || !sregs.ss.dpl)
		return false;
	/* KVM has gone on behind the instruction. Which one it was cannot be read: it may be gone
	 * by now. */
	regs.rip -= RSM_BYTES;
	events.flags = 0;
	events.exception.injected = 1;
	events.exception.nr = UD_VECTOR;
	events.exception.has_error_code = 0;
	return !mb_vcpu_ioctl(vcpu, KVM_SET_REGS, &regs) &&
	       !mb_vcpu_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &events);
}
