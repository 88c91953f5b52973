/* SPDX-License-Identifier: Apache-2.0 */
#include "layout.h"

/*
 * The other way in: any monitor that knows PVH (QEMU's -kernel) starts one processor here, in 32-bit
 * protected mode without paging, with EBX pointing at the start info. We make what Mirrorball gives a
 * guest (splash_abi.h): long mode, page tables, struct mb_splash_info, all processors at splash_entry.
 */
#define CR0_PE_PG  0x80000001
#define CR0_PE     0x00000001
#define CR4_PAE    0x20
#define EFER	   0xc0000080
#define EFER_LME   0x100
#define SEL_BOOT64 0x08
#define SEL_BOOT32 0x10
#define SEL_BOOTDS 0x18

	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 8, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.quad	pvh_entry

	.text
	.code32
	.globl	pvh_entry
pvh_entry:
	cli
	cld
	movl	$pvh_stack_top, %esp

	/* The first 4 GiB in pages of 2 MiB, for ring 3 as well. */
	movl	$(pvh_pdpt + 7), pvh_pml4
	movl	$pvh_pdpt, %edi
	movl	$(pvh_pd + 7), %eax
	movl	$4, %ecx
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x1000, %eax
	loop	1b
	movl	$pvh_pd, %edi
	movl	$0x87, %eax
	movl	$2048, %ecx
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	loop	1b

	movl	%ebx, %esi
	call	long_mode
	.code64
	movl	%esi, %edi
	call	pvh_main
	xorl	%esi, %esi
	movl	$SPLASH_INFO, %edi
	jmp	splash_entry

	/* Another processor, from the trampoline below. */
	.code32
ap_32:
	movl	$SEL_BOOTDS, %eax
	movl	%eax, %ds
	movl	%eax, %ss
	movl	$ap_stack_top, %esp
	call	long_mode
	.code64
	movl	pvh_next_index, %esi
	movl	$SPLASH_INFO, %edi
	movl	%esi, pvh_arrived		/* the stack is free for the next one */
	jmp	splash_entry

	/* From 32-bit to 64-bit mode; returns to the caller's 64-bit code, whose address has 32 bits. */
	.code32
long_mode:
	popl	%ebp
	lgdt	boot_gdtr
	movl	$SEL_BOOTDS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$pvh_pml4, %eax
	movl	%eax, %cr3
	movl	$EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$CR0_PE_PG, %eax
	movl	%eax, %cr0
	ljmp	$SEL_BOOT64, $1f
	.code64
1:	movl	%ebp, %ebp
	jmp	*%rbp

	/* Copied to TRAMPOLINE, where a processor starts in real mode after its SIPI. */
	.code16
	.globl	trampoline, trampoline_end
trampoline:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	lgdtl	TRAMPOLINE + trampoline_gdtr - trampoline
	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$SEL_BOOT32, $ap_32
	.balign	4
trampoline_gdtr:
	.word	boot_gdt_end - boot_gdt - 1
	.long	boot_gdt
trampoline_end:

	.section .rodata
	.balign	8
boot_gdt:
	.quad	0
	.quad	0x00af9b000000ffff		/* SEL_BOOT64 */
	.quad	0x00cf9b000000ffff		/* SEL_BOOT32 */
	.quad	0x00cf93000000ffff		/* SEL_BOOTDS */
boot_gdt_end:
boot_gdtr:
	.word	boot_gdt_end - boot_gdt - 1
	.long	boot_gdt

	.bss
	.balign	4096
pvh_pml4:	.skip	4096
pvh_pdpt:	.skip	4096
pvh_pd:		.skip	4 * 4096
		.skip	4096
pvh_stack_top:
		.skip	256
ap_stack_top:

	.section .note.GNU-stack, "", @progbits
