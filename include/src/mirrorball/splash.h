/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_SPLASH_H
#define MIRRORBALL_SPLASH_H

#include <mirrorball/error.h>
#include <mirrorball/ram.h>
#include <mirrorball/vcpu.h>

/*
 * The thin guest (design, section 8; tests/guest/splash). The monitor loads its ELF image, writes a
 * struct mb_splash_info at MB_SPLASH_INFO and starts every vCPU at the entry point in long mode, ring 0, on the identity page
 * tables of mirrorball/boot.h, with RDI = MB_SPLASH_INFO and RSI = the vCPU's index.
 *
 * What the guest says goes to port 0xe9 ("rep outsb", the debug console of Bochs and QEMU); a byte s to port 0xf4
 * ends the machine with status s (QEMU's isa-debug-exit has the same port).
 */
#define MB_SPLASH_INFO	     0x5000ull
#define MB_SPLASH_MAGIC	     0x6873616c70736d6dull
#define MB_SPLASH_TEXT_PORT  0xe9u
#define MB_SPLASH_EXIT_PORT  0xf4u

/* Shared with the guest: only fixed-width types, little-endian, no pointers. */
struct mb_splash_info {
	uint64_t magic;
	uint32_t n_vcpus;
	uint32_t tsc_khz; /* 0: unknown */
	uint64_t low_ram_bytes;
	uint64_t high_ram_bytes; /* at 4 GiB */
	uint8_t vcpu_view[1024]; /* view of vCPU i, for the report only */
	char cmdline[2048];	 /* "PROGRAM ARG...", NUL-terminated */
};

/* Names of the programs, NULL-terminated; with a one-line description each. */
struct mb_splash_program {
	const char *name;
	const char *summary;
	const char *usage; /* its arguments, with units and defaults */
};
extern const struct mb_splash_program mb_splash_programs[];

/* The image in the binary. */
const void *mb_splash_image(uint64_t *len);

/* Loads it and sets every vCPU's start. vCPUs paused. -EINVAL for an unknown program. */
int mb_splash_load(struct mb_ram *ram, struct mb_vcpus *vcpus, const char *cmdline,
	struct mb_error *err);

#endif
