// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vcpu_internal.h"

#define CR0_PE	1ull
#define CR0_MP	(1ull << 1)
#define CR0_ET	(1ull << 4)
#define CR0_NE	(1ull << 5)
#define CR0_WP	(1ull << 16)
#define CR0_PG	(1ull << 31)
#define CR4_PAE (1ull << 5)

#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)

#define RFLAGS_RESERVED 2ull
#define LAPIC_ID	0x20 /* offset of the id register, SDM vol. 3 table 11-1 */
#define APIC_BASE_EXTD	(1ull << 10) /* x2APIC mode, 11.12.1 */

bool mb_vcpu_has_xsave2(const struct mb_vcpu *vcpu)
{
	return mb_vm_host(vcpu->set->vm)->cap[MB_CAP_XSAVE2] > (int)sizeof(struct kvm_xsave);
}

int mb_vcpu_start_in_x2apic(struct mb_vcpu *vcpu)
{
	struct kvm_sregs sregs;
	int rc = mb_vcpu_ioctl(vcpu, KVM_GET_SREGS, &sregs);

	sregs.apic_base |= APIC_BASE_EXTD;
	return rc ? rc : mb_vcpu_ioctl(vcpu, KVM_SET_SREGS, &sregs);
}

size_t mb_vcpu_xsave_bytes(const struct mb_vcpu *vcpu)
{
	if (mb_vcpu_has_xsave2(vcpu))
		return (size_t)mb_vm_host(vcpu->set->vm)->cap[MB_CAP_XSAVE2];
	return sizeof(struct kvm_xsave);
}

int mb_vcpu_read_state(struct mb_vcpu *vcpu, bool clock, struct vcpu_power_on *po)
{
	int rc;

	po->xsave = calloc(1, mb_vcpu_xsave_bytes(vcpu));
	if (!po->xsave)
		return -ENOMEM;
	/* First: it takes what INIT and SIPI are pending, which change the others. */
	rc = mb_vcpu_ioctl(vcpu, KVM_GET_MP_STATE, &po->mp_state);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_GET_REGS, &po->regs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_GET_SREGS, &po->sregs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_GET_XCRS, &po->xcrs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_GET_DEBUGREGS, &po->debugregs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_GET_LAPIC, &po->lapic);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_GET_VCPU_EVENTS, &po->events);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, mb_vcpu_has_xsave2(vcpu) ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, po->xsave);
	if (!rc)
		rc = mb_msrs_get(mb_vm_host(vcpu->set->vm), vcpu->fd, clock, &po->msrs);
	return rc;
}

void mb_vcpu_power_on_finish(struct vcpu_power_on *po)
{
	free(po->xsave);
	free(po->msrs.entry);
	po->xsave = NULL;
	po->msrs.entry = NULL;
}

int mb_vcpu_load_power_on(struct mb_vcpu *vcpu, const struct vcpu_power_on *po)
{
	struct kvm_lapic_state lapic = po->lapic;
	struct kvm_vcpu_events events = po->events;
	struct kvm_sregs sregs = po->sregs;
	struct kvm_xcrs xcrs = po->xcrs;
	struct kvm_debugregs debugregs = po->debugregs;
	struct kvm_regs regs = po->regs;
	struct kvm_mp_state mp_state = po->mp_state;
	/* In x2APIC mode the whole register (and KVM derives the logical id from it). */
	uint32_t id = po->sregs.apic_base & APIC_BASE_EXTD ? vcpu->index : vcpu->index << 24;
	int rc;

	memcpy(lapic.regs + LAPIC_ID, &id, sizeof(id));
	/*
	 * Out of the view first: it is a mode that hides INIT, everything else depends on it, and the
	 * guest may have got there by itself. This drops a latched INIT, too.
	 */
	if (mb_vm_host(vcpu->set->vm)->cap[MB_CAP_X86_SMM]) {
		events.flags |= KVM_VCPUEVENT_VALID_SMM;
		memset(&events.smi, 0, sizeof(events.smi));
	}
	rc = mb_vcpu_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &events);
	/* This takes what INIT and SIPI are pending, and all that they change is set below. */
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_GET_MP_STATE, &mp_state);
	mp_state = po->mp_state;
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_SREGS, &sregs);
	if (!rc)
		rc = mb_msrs_set(mb_vm_host(vcpu->set->vm), vcpu->fd, &po->msrs);
	/* None: a processor without XSAVE, on which KVM refuses even that. */
	if (!rc && xcrs.nr_xcrs)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_XCRS, &xcrs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_XSAVE, po->xsave);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_DEBUGREGS, &debugregs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_LAPIC, &lapic);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_REGS, &regs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_MP_STATE, &mp_state);
	if (!rc)
		mb_vcpu_view_reset(vcpu);
	return rc;
}

static void flat_segments(struct kvm_sregs *sregs, bool long_mode)
{
	struct kvm_segment code = {
		.limit = 0xffffffff,
		.selector = 0x10,
		.type = 0xb, /* execute, read, accessed */
		.present = 1,
		.s = 1,
		.g = 1,
		.l = long_mode,
		.db = !long_mode,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff,
		.selector = 0x18,
		.type = 3, /* read, write, accessed */
		.present = 1,
		.s = 1,
		.g = 1,
		.db = 1,
	};
	struct kvm_segment task = {
		.limit = 0x67,
		.selector = 0x20,
		.type = 0xb, /* busy TSS */
		.present = 1,
	};

	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
	sregs->tr = task;
}

int mb_vcpu_set_start(struct mb_vcpu *vcpu, const struct mb_vcpu_start *start)
{
	struct kvm_mp_state mp_state = {.mp_state = KVM_MP_STATE_RUNNABLE};
	struct kvm_regs regs = {
		.rip = start->rip,
		.rsp = start->rsp,
		.rsi = start->rsi,
		.rdi = start->rdi,
		.rbx = start->rbx,
		.rflags = RFLAGS_RESERVED,
	};
	struct kvm_sregs sregs;
	int rc;

	rc = mb_vcpu_ioctl(vcpu, KVM_GET_SREGS, &sregs);
	if (rc)
		return rc;
	flat_segments(&sregs, start->long_mode);
	sregs.gdt.base = start->gdt_gpa;
	sregs.gdt.limit = start->gdt_limit;
	sregs.idt.base = 0;
	sregs.idt.limit = 0;
	if (start->long_mode) {
		sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
		sregs.cr3 = start->cr3;
		sregs.cr4 = CR4_PAE;
		sregs.efer = EFER_LME | EFER_LMA;
	} else {
		sregs.cr0 = CR0_PE | CR0_ET;
		sregs.cr3 = 0;
		sregs.cr4 = 0;
		sregs.efer = 0;
	}
	rc = mb_vcpu_ioctl(vcpu, KVM_SET_SREGS, &sregs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_REGS, &regs);
	if (!rc)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_MP_STATE, &mp_state);
	if (!rc)
		rc = mb_vcpu_enter_view(vcpu);
	return rc;
}

uint32_t mb_vcpu_tsc_khz(struct mb_vcpu *vcpu)
{
	int rc = mb_vcpu_ioctl(vcpu, KVM_GET_TSC_KHZ, NULL);

	return rc > 0 ? (uint32_t)rc : 0;
}
