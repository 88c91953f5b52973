/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * RSM from ring 3, with a state to return to. On a processor it is an invalid opcode. A vCPU of the
 * second view is in System Management Mode for KVM (mb_vcpu_enter_view), and if the monitor does not
 * see to it, KVM takes the state that a guest's process has written there.
 */
#define SMBASE	     0x30000ull /* after power-on, SDM vol. 3, 32.4 */
#define STATE_BYTES  512u
#define STATUS_TAKEN 5u /* the guest's status when the state was taken */

/* Offsets from SMBASE + 0xfe00; AMD64 Architecture Programmer's Manual, vol. 2, table 10-1. */
#define STATE_SEGMENT(n) (0x10u * (n))
#define STATE_EFER	 0x0d0u
#define STATE_REVISION	 0x0fcu
#define STATE_SMBASE	 0x100u
#define STATE_CR4	 0x148u
#define STATE_CR3	 0x150u
#define STATE_CR0	 0x158u
#define STATE_DR7	 0x160u
#define STATE_DR6	 0x168u
#define STATE_RFLAGS	 0x170u
#define STATE_RIP	 0x178u

#define CODE_64	      0xa0fbull /* attributes: ring 3 */
#define DATA_32	      0xc0f3ull
#define TASK_BUSY     0x008bull
#define LIMIT	      (0xffffffffull << 32)
#define EFER_LME_LMA  0x500u
#define CR0_PAGED     0x80010033u
#define CR4_PAE	      0x20u

static void __attribute__((naked, noreturn)) taken(void)
{
	__asm__ volatile("movl %0, %%eax\n\toutb %%al, %1\n1:\tjmp 1b"
			 :
			 : "i"(STATUS_TAKEN), "N"(MB_SPLASH_EXIT_PORT));
}

static void put(unsigned offset, uint64_t v)
{
	*(volatile uint64_t *)(SMBASE + 0xfe00 + offset) = v;
}

void rsm(bool prefixed)
{
	memset((void *)(SMBASE + 0xfe00), 0, STATE_BYTES);
	for (unsigned i = 0; i < 6; i++)
		put(STATE_SEGMENT(i), i == 1 ? SEL_CODE3 | CODE_64 << 16 | LIMIT
					     : SEL_DATA3 | DATA_32 << 16 | LIMIT);
	put(STATE_SEGMENT(9), SEL_TSS | TASK_BUSY << 16 | 0x67ull << 32);
	put(STATE_EFER, EFER_LME_LMA);
	put(STATE_REVISION - 4, 0x20064ull << 32);
	put(STATE_SMBASE, SMBASE);
	put(STATE_CR4, CR4_PAE);
	put(STATE_CR3, guest.cr3);
	put(STATE_CR0, CR0_PAGED);
	put(STATE_DR7, 0x400);
	put(STATE_DR6, 0xffff0ff0);
	put(STATE_RFLAGS, USER_FLAGS);
	put(STATE_RIP, (uint64_t)taken);
	if (prefixed)
		__asm__ volatile(".byte 0x66\n\trsm");
	else
		__asm__ volatile("rsm");
	fail("RSM did nothing");
}
