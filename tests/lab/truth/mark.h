/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TRUTH_MARK_H
#define MIRRORBALL_TRUTH_MARK_H

/*
 * A mark tells the lab's instrument (truth.c) that what follows counts into section 1 to 15, or, with
 * 0, that it does not count any more. It is a no-operation with an operand that it does not access
 * (SDM vol. 2, "NOP", 0F 1F /0): any program may execute it, in a guest or in the host, on any
 * processor, and nothing happens there. section: a constant.
 */
#define TRUTH_MARK_OPCODE 0x0f, 0x1f, 0x80 /* nopl disp32(%rax) */
#define TRUTH_MARK_MAGIC  0x4d420000u	   /* the displacement, and the section in its low bits */
#define TRUTH_N_SECTIONS  16u

#define TRUTH_MARK(section)                                                                        \
	__asm__ volatile(".byte 0x0f, 0x1f, 0x80\n\t.long %c0" ::"i"(TRUTH_MARK_MAGIC | (section)) \
			 : "memory")

#endif
