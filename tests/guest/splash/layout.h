/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPLASH_LAYOUT_H
#define SPLASH_LAYOUT_H

/*
 * Where things are, for C and for assembly. Guest-physical memory:
 *
 *   0x5000     struct mb_splash_info (the monitor writes it)
 *   0x8000     where other processors start (pvh.S), if the monitor is not Mirrorball
 *   0x9000     page tables of the monitor, 4 GiB
 *   0x100000   the image: code, constants, data, bss
 *   cpus       a block of 32 KiB for each vCPU, aligned to its size
 *   heap       page tables of ours, then what the programs use, up to the end of low RAM;
 *              RAM above 4 GiB is mapped right behind it (memory.c)
 *
 * A vCPU's block:
 *   0x0000     task state segment, 104 bytes, then the I/O permission bitmap: all ports
 *   0x2080     GDT
 *   0x20c0     GDT register
 *   0x2100     struct cpu
 *   0x3000     top of the ring 0 stack (exceptions only; stacks grow down)
 *   0x4000     top of the ring 3 stack on which an exception is reported
 *   0x8000     top of the ring 3 stack of the program
 */
#define SPLASH_INFO    0x5000 /* MB_SPLASH_INFO */
#define TRAMPOLINE     0x8000

#define CPU_SHIFT      15
#define CPU_BYTES      0x8000
#define CPU_GDT	       0x2080
#define CPU_GDTR       0x20c0
#define CPU_SELF       0x2100
#define CPU_RING0_TOP  0x3000
#define CPU_REPORT_TOP 0x4000
#define CPU_USER_TOP   0x8000

/* SDM vol. 3, 8.7 and vol. 1, 19.5.2: a bit for each port, and a byte of ones behind. */
#define TSS_RSP0    4
#define TSS_IOMAP   102
#define TSS_BYTES   104
#define IOMAP_BYTES 8192

#define SEL_CODE0   0x08
#define SEL_DATA3   0x1b /* ring 3: RPL 3 */
#define SEL_CODE3   0x23
#define SEL_TSS	    0x28
#define N_VECTORS   32
#define STUB_BYTES  16
#define USER_FLAGS  0x3002 /* IOPL 3, interrupts off */

/* Offset of low_ram_bytes in struct mb_splash_info. */
#define INFO_LOW_RAM 16

#endif
