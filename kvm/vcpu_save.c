// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/cpuid.h>
#include <stdlib.h>
#include <string.h>

#include "vcpu_internal.h"

/*
 * All vCPUs and the clock, for a snapshot. What KVM gives for a vCPU is written down as KVM's
 * structures have it, and read on a host whose KVM offers its guests the very same processor: CPUID
 * is compared, it is not made to fit.
 */
#define VCPU_VERSION  2u
#define CLOCK_VERSION 1u
#define CPUID_VERSION 1u
#define MAX_XSAVE     (1u << 20)
#define MAX_MSRS      4096u
#define MAX_CPUID     1024u
#define LAPIC_ISR     0x100u /* of 32 vectors each, every 16 bytes (SDM vol. 3, 11.4.1) */
#define LAPIC_IRR     0x200u

/* ---- the processor that guests see ---- */

/* Of vCPU 0; the others differ in their numbers only. */
static int build_cpuid(struct mb_vcpus *set, struct kvm_cpuid2 **out)
{
	const struct mb_host *host = mb_vm_host(set->vm);
	struct mb_cpuid_config config = {
		.n_vcpus = set->n,
		.n_views = mb_vm_n_views(set->vm),
		.tsc_deadline = host->cap[MB_CAP_TSC_DEADLINE_TIMER],
		.msi_ext_dest_id = mb_vm_x2apic_ids(set->vm),
	};

	return mb_cpuid_build(set->supported, &config, 0, out);
}

static void save_cpuid(struct mb_state_out *out, const struct kvm_cpuid2 *list)
{
	mb_state_begin(out, "cpuid", CPUID_VERSION);
	mb_state_put_u32(out, list->nent);
	for (unsigned i = 0; i < list->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &list->entries[i];
		const uint32_t word[] = {e->function, e->index, e->eax, e->ebx, e->ecx, e->edx};

		mb_state_put(out, word, sizeof(word));
	}
	mb_state_end(out);
}

static int compare_cpuid(
	struct mb_state_in *in, const struct kvm_cpuid2 *list, struct mb_error *err)
{
	struct mb_state_in part;
	uint32_t n;
	int rc = mb_state_enter(in, "cpuid", CPUID_VERSION, &part, err);

	if (rc)
		return rc;
	n = mb_state_get_u32(&part);
	if (n > MAX_CPUID)
		return mb_state_refuse(&part, err, "has too many leaves");
	for (unsigned i = 0; i < n || i < list->nent; i++) {
		const struct kvm_cpuid_entry2 none = {0};
		const struct kvm_cpuid_entry2 *e = i < list->nent ? &list->entries[i] : &none;
		const uint32_t here[] = {e->function, e->index, e->eax, e->ebx, e->ecx, e->edx};
		uint32_t there[6] = {0};

		if (i < n)
			mb_state_get(&part, there, sizeof(there));
		if (part.bad)
			break;
		if (memcmp(here, there, sizeof(here)) || i >= n || i >= list->nent)
			return mb_error_set(err, ENOTSUP,
				"is of a host whose processor, kernel or KVM offers guests "
				"something "
				"else than this one's: CPUID leaf %#x.%x is %x %x %x %x there, and "
				"%#x.%x is %x %x %x %x here",
				there[0], there[1], there[2], there[3], there[4], there[5], here[0],
				here[1], here[2], here[3], here[4], here[5]);
	}
	return mb_state_leave(&part, err);
}

/* ---- one vCPU ---- */

static int save_vcpu(struct mb_vcpu *vcpu, struct mb_state_out *out, struct mb_error *err)
{
	struct vcpu_power_on now = {0};
	uint32_t khz = mb_vcpu_tsc_khz(vcpu);
	int rc;

	if (vcpu->halted)
		return mb_error_set(err, EBUSY, "vCPU %u has stopped by itself", vcpu->index);
	rc = mb_vcpu_read_state(vcpu, true, &now);
	if (rc) {
		mb_error_set(err, -rc, "KVM: cannot read the state of vCPU %u: %s", vcpu->index,
			strerror(-rc));
	} else {
		mb_state_begin(out, "vcpu", VCPU_VERSION);
		mb_state_put_u32(out, vcpu->index);
		mb_state_put_u32(out, khz);
		mb_state_put_u8(out, vcpu->away);
		mb_state_put(out, &now.mp_state, sizeof(now.mp_state));
		mb_state_put(out, &now.regs, sizeof(now.regs));
		mb_state_put(out, &now.sregs, sizeof(now.sregs));
		mb_state_put(out, &now.xcrs, sizeof(now.xcrs));
		mb_state_put(out, &now.debugregs, sizeof(now.debugregs));
		mb_state_put(out, &now.lapic, sizeof(now.lapic));
		mb_state_put(out, &now.events, sizeof(now.events));
		mb_state_put_u32(out, (uint32_t)mb_vcpu_xsave_bytes(vcpu));
		mb_state_put(out, now.xsave, mb_vcpu_xsave_bytes(vcpu));
		mb_state_put_u32(out, now.msrs.n);
		for (unsigned i = 0; i < now.msrs.n; i++) {
			mb_state_put_u32(out, now.msrs.entry[i].index);
			mb_state_put_u64(out, now.msrs.entry[i].data);
		}
		mb_state_end(out);
	}
	mb_vcpu_power_on_finish(&now);
	return rc;
}

/* What is no part of KVM's state of a vCPU. */
struct beside {
	uint32_t tsc_khz;
	bool away; /* vcpu_view.c */
};

/* What KVM makes of the values is KVM's: it checks those of hostile programs all the time. */
static int read_vcpu(struct mb_vcpu *vcpu, struct mb_state_in *part, struct beside *beside,
	struct vcpu_power_on *to, struct mb_error *err)
{
	uint32_t n;

	if (mb_state_get_u32(part) != vcpu->index)
		return mb_state_refuse(part, err, "is of another vCPU");
	beside->tsc_khz = mb_state_get_u32(part);
	beside->away = mb_state_get_bool(part);
	mb_state_get(part, &to->mp_state, sizeof(to->mp_state));
	mb_state_get(part, &to->regs, sizeof(to->regs));
	mb_state_get(part, &to->sregs, sizeof(to->sregs));
	mb_state_get(part, &to->xcrs, sizeof(to->xcrs));
	mb_state_get(part, &to->debugregs, sizeof(to->debugregs));
	mb_state_get(part, &to->lapic, sizeof(to->lapic));
	mb_state_get(part, &to->events, sizeof(to->events));
	n = mb_state_get_u32(part);
	/* KVM reads as much as it says itself. */
	if (!part->bad && (n != mb_vcpu_xsave_bytes(vcpu) || n > MAX_XSAVE))
		return mb_error_set(err, ENOTSUP,
			"is of a host where the state of a vCPU's vector unit has another size: %u "
			"bytes, and %zu here",
			n, mb_vcpu_xsave_bytes(vcpu));
	to->xsave = calloc(1, mb_vcpu_xsave_bytes(vcpu));
	if (!to->xsave)
		return mb_error_set(err, ENOMEM, "out of memory");
	mb_state_get(part, to->xsave, part->bad ? 0 : n);
	n = mb_state_get_u32(part);
	if (n > MAX_MSRS)
		return mb_state_refuse(part, err, "has too many MSRs");
	to->msrs.entry = calloc(n + 1, sizeof(*to->msrs.entry));
	if (!to->msrs.entry)
		return mb_error_set(err, ENOMEM, "out of memory");
	to->msrs.n = n;
	for (unsigned i = 0; i < n; i++) {
		to->msrs.entry[i].index = mb_state_get_u32(part);
		to->msrs.entry[i].data = mb_state_get_u64(part);
	}
	if (to->xcrs.nr_xcrs > KVM_MAX_XCRS)
		return mb_state_refuse(part, err, "has too many XCRs");
	return mb_state_leave(part, err);
}

static int set_tsc_khz(struct mb_vcpu *vcpu, uint32_t khz, struct mb_error *err)
{
	uint32_t here = mb_vcpu_tsc_khz(vcpu);
	int rc;

	if (khz == here || !khz)
		return 0;
	/* KVM takes what differs by 250 ppm at most as it is, more only where the processor can
	 * scale. */
	rc = mb_vcpu_ioctl(vcpu, KVM_SET_TSC_KHZ, (void *)(unsigned long)khz);
	return rc ? mb_error_set(err, ENOTSUP,
			    "is of a host whose TSC runs at %u kHz, and this one's at %u, without "
			    "scaling",
			    khz, here)
		  : 0;
}

/*
 * In this order: the APIC has to be on before its registers (KVM_SET_SREGS has its base), and these
 * before the MSRs of what it delivers; a mode of the processor before what is kept for it.
 */
static int write_vcpu(struct mb_vcpu *vcpu, struct vcpu_power_on *from, struct mb_error *err)
{
	const struct mb_host *host = mb_vm_host(vcpu->set->vm);
	const char *what = "its registers";
	uint8_t latched_init;
	uint32_t msr = 0;
	int rc = mb_vcpu_ioctl(vcpu, KVM_SET_REGS, &from->regs);

	if (!rc) {
		what = "its control registers";
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_SREGS, &from->sregs);
	}
	if (!rc) {
		what = "its vector unit";
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_XSAVE, from->xsave);
	}
	if (!rc && from->xcrs.nr_xcrs)
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_XCRS, &from->xcrs);
	if (!rc) {
		what = "its debug registers";
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_DEBUGREGS, &from->debugregs);
	}
	if (!rc) {
		what = "its APIC";
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_LAPIC, &from->lapic);
	}
	if (!rc) {
		rc = mb_msrs_restore(host, vcpu->fd, &from->msrs, &msr);
		if (rc)
			return mb_error_set(err, ENOTSUP,
				"is of another host: KVM does not take MSR %#x of vCPU %u here: %s",
				msr, vcpu->index, strerror(-rc));
	}
	if (!rc) {
		what = "its events";
		/* A view is all that this mode is for (design, section 2); each vCPU finds its own
		 * again. An INIT that it hid is due. */
		latched_init = from->events.smi.latched_init;
		memset(&from->events.smi, 0, sizeof(from->events.smi));
		from->events.smi.latched_init = latched_init;
		if (!host->cap[MB_CAP_X86_SMM])
			from->events.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_SMM;
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &from->events);
	}
	if (!rc) {
		what = "whether it runs";
		rc = mb_vcpu_ioctl(vcpu, KVM_SET_MP_STATE, &from->mp_state);
	}
	if (rc)
		return mb_error_set(err, -rc, "KVM does not take the state of vCPU %u (%s): %s",
			vcpu->index, what, strerror(-rc));
	mb_vcpu_view_reset(vcpu);
	return 0;
}

static int load_vcpu(struct mb_vcpu *vcpu, struct mb_state_in *in, struct mb_error *err)
{
	struct vcpu_power_on state = {0};
	struct beside beside = {0};
	struct mb_state_in part;
	int rc = mb_state_enter(in, "vcpu", VCPU_VERSION, &part, err);

	if (!rc)
		rc = read_vcpu(vcpu, &part, &beside, &state, err);
	if (!rc)
		rc = set_tsc_khz(vcpu, beside.tsc_khz, err);
	if (!rc)
		rc = write_vcpu(vcpu, &state, err);
	if (!rc)
		vcpu->away = beside.away;
	mb_vcpu_power_on_finish(&state);
	return rc;
}

/* ---- all ---- */

int mb_vcpus_save(struct mb_vcpus *set, struct mb_state_out *out, struct mb_error *err)
{
	struct kvm_clock_data clock = {0};
	struct kvm_cpuid2 *cpuid;
	int rc = build_cpuid(set, &cpuid);

	if (rc)
		return mb_error_set(
			err, -rc, "KVM: cannot read the CPUID it supports: %s", strerror(-rc));
	save_cpuid(out, cpuid);
	free(cpuid);
	/* First the clock, then TSCs: the guest's time never goes backwards by it. */
	rc = mb_host_ioctl(mb_vm_host(set->vm), mb_vm_fd(set->vm), KVM_GET_CLOCK, &clock);
	if (rc)
		return mb_error_set(err, -rc, "KVM: cannot read the clock: %s", strerror(-rc));
	for (unsigned i = 0; i < set->n; i++) {
		rc = save_vcpu(&set->vcpu[i], out, err);
		if (rc)
			return rc;
	}
	mb_state_begin(out, "clock", CLOCK_VERSION);
	mb_state_put_u64(out, clock.clock);
	mb_state_end(out);
	return 0;
}

int mb_vcpus_load(struct mb_vcpus *set, struct mb_state_in *in, struct mb_error *err)
{
	struct kvm_clock_data clock = {0};
	struct mb_state_in part;
	struct kvm_cpuid2 *cpuid;
	int rc = build_cpuid(set, &cpuid);

	if (rc)
		return mb_error_set(
			err, -rc, "KVM: cannot read the CPUID it supports: %s", strerror(-rc));
	rc = compare_cpuid(in, cpuid, err);
	free(cpuid);
	for (unsigned i = 0; i < set->n && !rc; i++)
		rc = load_vcpu(&set->vcpu[i], in, err);
	if (!rc)
		rc = mb_state_enter(in, "clock", CLOCK_VERSION, &part, err);
	if (rc)
		return rc;
	clock.clock = mb_state_get_u64(&part);
	rc = mb_state_leave(&part, err);
	if (rc)
		return rc;
	rc = mb_host_ioctl(mb_vm_host(set->vm), mb_vm_fd(set->vm), KVM_SET_CLOCK, &clock);
	return rc ? mb_error_set(err, -rc, "KVM does not take the clock: %s", strerror(-rc)) : 0;
}

int mb_vcpus_get_vectors(
	struct mb_vcpus *set, uint64_t vectors[MB_VECTOR_WORDS], struct mb_error *err)
{
	memset(vectors, 0, MB_VECTOR_WORDS * sizeof(vectors[0]));
	for (unsigned i = 0; i < set->n; i++) {
		struct kvm_lapic_state lapic;
		int rc = mb_vcpu_ioctl(&set->vcpu[i], KVM_GET_LAPIC, &lapic);

		if (rc)
			return mb_error_set(err, -rc, "KVM: cannot read the APIC of vCPU %u: %s", i,
				strerror(-rc));
		for (unsigned k = 0; k < 2 * MB_VECTOR_WORDS; k++) {
			uint32_t isr, irr;

			memcpy(&isr, lapic.regs + LAPIC_ISR + 16 * k, sizeof(isr));
			memcpy(&irr, lapic.regs + LAPIC_IRR + 16 * k, sizeof(irr));
			vectors[k / 2] |= (uint64_t)(isr | irr) << 32 * (k % 2);
		}
	}
	return 0;
}
