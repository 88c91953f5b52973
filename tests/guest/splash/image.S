/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's ELF file, as a constant of the monitor (src/splash.c). SPLASH_FILE is its path. */
	.section .rodata
	.balign	16
	.globl	mb_splash_image_begin
	.globl	mb_splash_image_end
	.type	mb_splash_image_begin, @object
mb_splash_image_begin:
	.incbin	SPLASH_FILE
mb_splash_image_end:
	.size	mb_splash_image_begin, . - mb_splash_image_begin
	.section .note.GNU-stack, "", @progbits
