/* SPDX-License-Identifier: Apache-2.0 */
#include "layout.h"

/*
 * Everything that runs in ring 0: a straight line from the entry point to ring 3, and the first
 * steps of an exception. No loops, and nothing that can be done in ring 3 instead, because a KVM
 * without hardware virtualisation emulates ring 0 instruction by instruction.
 *
 * pvh.S comes here in the same state where the monitor is another one.
 */
	.code64
	.section .entry, "ax"
	.globl	splash_entry
	.type	splash_entry, @function
splash_entry:
	cli
	cld
	movl	%esi, %ebx			/* index */
	movq	%rbx, %rbp
	shlq	$CPU_SHIFT, %rbp
	addq	$cpus, %rbp			/* this vCPU's block */
	leaq	CPU_BYTES(%rbp), %rax
	cmpq	%rax, INFO_LOW_RAM(%rdi)
	jb	no_room
	leaq	CPU_RING0_TOP(%rbp), %rsp

	/* GDT: SDM vol. 3, 3.4.5 and 8.2.3. The block is below 4 GiB, and so is the TSS. */
	movq	code0(%rip), %rax
	movq	%rax, CPU_GDT + 0x08(%rbp)
	movq	data3(%rip), %rax
	movq	%rax, CPU_GDT + 0x18(%rbp)
	movq	code3(%rip), %rax
	movq	%rax, CPU_GDT + 0x20(%rbp)
	movw	$(TSS_BYTES + IOMAP_BYTES), CPU_GDT + SEL_TSS(%rbp)
	movl	%ebp, %eax
	movw	%ax, CPU_GDT + SEL_TSS + 2(%rbp)
	shrl	$16, %eax
	movb	%al, CPU_GDT + SEL_TSS + 4(%rbp)
	movb	$0x89, CPU_GDT + SEL_TSS + 5(%rbp)
	movb	$0, CPU_GDT + SEL_TSS + 6(%rbp)
	movb	%ah, CPU_GDT + SEL_TSS + 7(%rbp)
	movq	$0, CPU_GDT + SEL_TSS + 8(%rbp)
	movw	$(SEL_TSS + 15), CPU_GDTR(%rbp)
	leaq	CPU_GDT(%rbp), %rax
	movq	%rax, CPU_GDTR + 2(%rbp)
	lgdt	CPU_GDTR(%rbp)
	lidt	idtr(%rip)			/* filled in by vCPU 0, in ring 3 */

	/*
	 * IOPL 3 alone would do for port I/O, but kvm_pvm forgets it; hence the bitmap, which is
	 * all zero because RAM is.
	 */
	movq	%rsp, TSS_RSP0(%rbp)
	movw	$TSS_BYTES, TSS_IOMAP(%rbp)
	movb	$0xff, TSS_BYTES + IOMAP_BYTES(%rbp)
	movl	$SEL_TSS, %eax
	ltr	%ax

	movl	$SEL_DATA3, %eax
	movl	%eax, %ds
	movl	%eax, %es

	/* splash_main(cpu, info, index, cr3) in ring 3. */
	movq	%rdi, %rsi
	leaq	CPU_SELF(%rbp), %rdi
	movl	%ebx, %edx
	movq	%cr3, %rcx
	pushq	$SEL_DATA3
	leaq	CPU_USER_TOP - 8(%rbp), %rax
	pushq	%rax
	pushq	$USER_FLAGS
	pushq	$SEL_CODE3
	pushq	$splash_main
	xorl	%ebp, %ebp
	iretq

	/* RAM ends before this vCPU's block: vCPU 0 says so, this one stays out of the way. */
no_room:
	hlt
	jmp	no_room
	.size	splash_entry, . - splash_entry

/*
 * Exceptions. A stub pushes the vector and, where the CPU pushes none, an error code; then the
 * report is written in ring 3. Frame at RSP: CR2, RAX, vector, error, RIP, CS, RFLAGS, RSP, SS.
 */
	.balign	STUB_BYTES
	.globl	stubs
stubs:
	.set	vector, 0
	.rept	N_VECTORS
	.balign	STUB_BYTES
	/* These push an error code: SDM vol. 3, table 6-1. */
	.if	(0x60227d00 >> vector) & 1
	.else
	pushq	$0
	.endif
	pushq	$vector
	jmp	exception
	.set	vector, vector + 1
	.endr

exception:
	pushq	%rax
	movq	%cr2, %rax
	pushq	%rax
	movq	%rsp, %rdi
	/* The block of this vCPU, from the ring 0 stack. */
	movq	%rsp, %rax
	andq	$-CPU_BYTES, %rax
	leaq	CPU_SELF(%rax), %rsi
	addq	$(CPU_REPORT_TOP - 8), %rax
	pushq	$SEL_DATA3
	pushq	%rax
	pushq	$USER_FLAGS
	pushq	$SEL_CODE3
	pushq	$splash_exception
	iretq

	.section .rodata
	.balign	8
code0:	.quad	0x00af9b000000ffff
data3:	.quad	0x00cff3000000ffff
code3:	.quad	0x00affb000000ffff
idtr:	.word	N_VECTORS * 16 - 1
	.quad	idt

	.section .note.GNU-stack, "", @progbits
