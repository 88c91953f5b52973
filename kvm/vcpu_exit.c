// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <string.h>

#include "vcpu_internal.h"

/* Remembers and passes on why the vCPU stopped by itself. */
__attribute__((format(printf, 3, 4))) static bool stop_with(
	struct mb_vcpu *vcpu, enum mb_vcpu_event event, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(vcpu->said, sizeof(vcpu->said), fmt, ap);
	va_end(ap);
	vcpu->set->ops->event(vcpu->set->ops_ctx, vcpu, event, vcpu->said);
	return false;
}

static bool on_io(struct mb_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	vcpu->set->ops->pio(vcpu->set->ops_ctx, vcpu, run->io.port,
		run->io.direction == KVM_EXIT_IO_OUT, (char *)run + run->io.data_offset, run->io.size,
		run->io.count);
	return true;
}

static bool on_mmio(struct mb_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	vcpu->set->ops->mmio(vcpu->set->ops_ctx, vcpu, run->mmio.phys_addr, run->mmio.is_write,
		run->mmio.data, run->mmio.len);
	return true;
}

static bool on_ioapic_eoi(struct mb_vcpu *vcpu)
{
	vcpu->set->ops->ioapic_eoi(vcpu->set->ops_ctx, vcpu->run->eoi.vector);
	return true;
}

static bool on_nothing(struct mb_vcpu *vcpu)
{
	return true;
}

static bool on_wrmsr(struct mb_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (run->msr.index != MB_MSR_KVM_SYSTEM_TIME_NEW)
		return stop_with(vcpu, MB_VCPU_FAILED, "a write to MSR %#x, which was not asked for",
			run->msr.index);
	run->msr.error =
		mb_msr_set(mb_vm_host(vcpu->set->vm), vcpu->fd, run->msr.index, run->msr.data) != 0;
	if (!run->msr.error)
		mb_vcpu_clock_written(vcpu, run->msr.data);
	return true;
}

static bool on_shutdown(struct mb_vcpu *vcpu)
{
	if (mb_vcpu_forgive_rsm(vcpu))
		return true;
	return stop_with(vcpu, MB_VCPU_TRIPLE_FAULT, "triple fault");
}

static bool on_system_event(struct mb_vcpu *vcpu)
{
	switch (vcpu->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		return stop_with(vcpu, MB_VCPU_SYSTEM_SHUTDOWN, "system event: shutdown");
	case KVM_SYSTEM_EVENT_RESET:
		return stop_with(vcpu, MB_VCPU_SYSTEM_RESET, "system event: reset");
	case KVM_SYSTEM_EVENT_CRASH:
		return stop_with(vcpu, MB_VCPU_SYSTEM_CRASH, "system event: crash");
	}
	return stop_with(vcpu, MB_VCPU_FAILED, "unknown system event %u",
		vcpu->run->system_event.type);
}

static bool on_internal_error(struct mb_vcpu *vcpu)
{
	static const char *const names[] = {
		[KVM_INTERNAL_ERROR_EMULATION] = "an instruction that KVM cannot emulate",
		[KVM_INTERNAL_ERROR_SIMUL_EX] = "simultaneous exceptions",
		[KVM_INTERNAL_ERROR_DELIVERY_EV] = "an exit while delivering an event",
		[KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON] = "an unexpected hardware exit",
	};
	const struct kvm_run *run = vcpu->run;
	uint32_t suberror = run->internal.suberror;
	unsigned n = suberror < sizeof(names) / sizeof(names[0]) && names[suberror] ? suberror : 0;
	char text[200];
	int len = snprintf(text, sizeof(text), "KVM internal error %u (%s)", suberror,
		n ? names[n] : "unknown");

	for (unsigned i = 0; i < run->internal.ndata && i < 4; i++)
		len += snprintf(text + len, sizeof(text) - (size_t)len, " %#llx",
			(unsigned long long)run->internal.data[i]);
	return stop_with(vcpu, MB_VCPU_FAILED, "%s", text);
}

static bool on_fail_entry(struct mb_vcpu *vcpu)
{
	return stop_with(vcpu, MB_VCPU_FAILED, "the processor refused to enter the guest, reason %#llx",
		(unsigned long long)vcpu->run->fail_entry.hardware_entry_failure_reason);
}

static bool on_unknown(struct mb_vcpu *vcpu)
{
	return stop_with(vcpu, MB_VCPU_FAILED, "an exit that KVM does not know, hardware reason %#llx",
		(unsigned long long)vcpu->run->hw.hardware_exit_reason);
}

static const struct {
	const char *name;
	bool (*handle)(struct mb_vcpu *vcpu);
} exits[] = {
	[KVM_EXIT_UNKNOWN] = {"KVM_EXIT_UNKNOWN", on_unknown},
	[KVM_EXIT_EXCEPTION] = {"KVM_EXIT_EXCEPTION", NULL},
	[KVM_EXIT_IO] = {"KVM_EXIT_IO", on_io},
	[KVM_EXIT_HYPERCALL] = {"KVM_EXIT_HYPERCALL", NULL},
	[KVM_EXIT_DEBUG] = {"KVM_EXIT_DEBUG", NULL},
	[KVM_EXIT_HLT] = {"KVM_EXIT_HLT", NULL}, /* the local APIC is in the kernel: never */
	[KVM_EXIT_MMIO] = {"KVM_EXIT_MMIO", on_mmio},
	[KVM_EXIT_IRQ_WINDOW_OPEN] = {"KVM_EXIT_IRQ_WINDOW_OPEN", on_nothing},
	[KVM_EXIT_SHUTDOWN] = {"KVM_EXIT_SHUTDOWN", on_shutdown},
	[KVM_EXIT_FAIL_ENTRY] = {"KVM_EXIT_FAIL_ENTRY", on_fail_entry},
	[KVM_EXIT_INTR] = {"KVM_EXIT_INTR", on_nothing},
	[KVM_EXIT_SET_TPR] = {"KVM_EXIT_SET_TPR", on_nothing},
	[KVM_EXIT_TPR_ACCESS] = {"KVM_EXIT_TPR_ACCESS", NULL},
	[KVM_EXIT_NMI] = {"KVM_EXIT_NMI", NULL},
	[KVM_EXIT_INTERNAL_ERROR] = {"KVM_EXIT_INTERNAL_ERROR", on_internal_error},
	[KVM_EXIT_SYSTEM_EVENT] = {"KVM_EXIT_SYSTEM_EVENT", on_system_event},
	[KVM_EXIT_IOAPIC_EOI] = {"KVM_EXIT_IOAPIC_EOI", on_ioapic_eoi},
	[KVM_EXIT_HYPERV] = {"KVM_EXIT_HYPERV", NULL},
	[KVM_EXIT_X86_RDMSR] = {"KVM_EXIT_X86_RDMSR", NULL},
	[KVM_EXIT_X86_WRMSR] = {"KVM_EXIT_X86_WRMSR", on_wrmsr},
	[KVM_EXIT_DIRTY_RING_FULL] = {"KVM_EXIT_DIRTY_RING_FULL", NULL},
	[KVM_EXIT_X86_BUS_LOCK] = {"KVM_EXIT_X86_BUS_LOCK", on_nothing},
	[KVM_EXIT_XEN] = {"KVM_EXIT_XEN", NULL},
	[KVM_EXIT_NOTIFY] = {"KVM_EXIT_NOTIFY", on_nothing},
};

bool mb_vcpu_handle_exit(struct mb_vcpu *vcpu)
{
	uint32_t reason = vcpu->run->exit_reason;

	if (reason < sizeof(exits) / sizeof(exits[0]) && exits[reason].handle)
		return exits[reason].handle(vcpu);
	if (reason < sizeof(exits) / sizeof(exits[0]) && exits[reason].name)
		return stop_with(vcpu, MB_VCPU_FAILED, "%s, which was not asked for", exits[reason].name);
	return stop_with(vcpu, MB_VCPU_FAILED, "unknown exit reason %u", reason);
}

void mb_vcpu_run_failed(struct mb_vcpu *vcpu, int rc)
{
	/* api.rst, KVM_RUN: EFAULT when guest memory could not be had, as when the host is out of it. */
	stop_with(vcpu, MB_VCPU_FAILED, "KVM_RUN failed: %s%s", strerror(-rc),
		rc == -EFAULT ? " (guest memory that the host could not provide?)" : "");
}
