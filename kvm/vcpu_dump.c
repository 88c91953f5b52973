// SPDX-License-Identifier: Apache-2.0
#include <inttypes.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vcpu_internal.h"

#define N_CODE_BYTES 16u
#define CODE_BEFORE  4u

static void print_segment(FILE *out, const char *name, const struct kvm_segment *s)
{
	fprintf(out, "  %s %04x base %016llx limit %08x type %x dpl %u%s%s%s\n", name, s->selector,
		(unsigned long long)s->base, s->limit, s->type, s->dpl, s->present ? "" : " absent",
		s->l ? " 64-bit" : "", s->db ? " 32-bit" : "");
}

/* That it is not there may be why the vCPU is looked at: a file that was cut off, for one. */
static bool peek(const void *at, uint8_t *byte)
{
	struct iovec local = {.iov_base = byte, .iov_len = 1};
	struct iovec remote = {.iov_base = (void *)at, .iov_len = 1};

	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

static void print_code(struct mb_vcpu *vcpu, FILE *out, uint64_t linear)
{
	fprintf(out, "  code at %016" PRIx64 ":", linear);
	for (unsigned i = 0; i < CODE_BEFORE + N_CODE_BYTES; i++) {
		struct kvm_translation tr = {.linear_address = linear - CODE_BEFORE + i};
		const void *at = NULL;
		uint8_t byte;

		if (!mb_vcpu_ioctl(vcpu, KVM_TRANSLATE, &tr) && tr.valid)
			at = mb_vm_translate(vcpu->set->vm, vcpu->current_view,
				tr.physical_address, 1);
		if (at && peek(at, &byte))
			fprintf(out, i == CODE_BEFORE ? " <%02x>" : " %02x", byte);
		else
			fprintf(out, i == CODE_BEFORE ? " <\?\?>" : " \?\?");
	}
	fprintf(out, "\n");
}

void mb_vcpu_dump(struct mb_vcpu *vcpu, FILE *out)
{
	struct kvm_regs r;
	struct kvm_sregs s;

	fprintf(out, "vCPU %u in view %u: %s\n", vcpu->index, vcpu->current_view,
		vcpu->said[0] ? vcpu->said : "running");
	if (mb_vcpu_ioctl(vcpu, KVM_GET_REGS, &r) || mb_vcpu_ioctl(vcpu, KVM_GET_SREGS, &s)) {
		fprintf(out, "  registers cannot be read\n");
		return;
	}
	fprintf(out, "  rip %016llx rflags %016llx\n", r.rip, r.rflags);
	fprintf(out, "  rax %016llx rbx %016llx rcx %016llx rdx %016llx\n", r.rax, r.rbx, r.rcx, r.rdx);
	fprintf(out, "  rsi %016llx rdi %016llx rbp %016llx rsp %016llx\n", r.rsi, r.rdi, r.rbp, r.rsp);
	fprintf(out, "  r8  %016llx r9  %016llx r10 %016llx r11 %016llx\n", r.r8, r.r9, r.r10, r.r11);
	fprintf(out, "  r12 %016llx r13 %016llx r14 %016llx r15 %016llx\n", r.r12, r.r13, r.r14, r.r15);
	fprintf(out, "  cr0 %016llx cr2 %016llx cr3 %016llx cr4 %016llx\n", s.cr0, s.cr2, s.cr3, s.cr4);
	fprintf(out, "  efer %016llx apic base %016llx\n", s.efer, s.apic_base);
	print_segment(out, "cs", &s.cs);
	print_segment(out, "ss", &s.ss);
	print_segment(out, "ds", &s.ds);
	print_segment(out, "tr", &s.tr);
	fprintf(out, "  gdt %016llx/%04x idt %016llx/%04x\n", s.gdt.base, s.gdt.limit, s.idt.base,
		s.idt.limit);
	print_code(vcpu, out, s.cs.base + r.rip);
}
