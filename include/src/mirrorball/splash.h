/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_SPLASH_H
#define MIRRORBALL_SPLASH_H

#include <mirrorball/error.h>
#include <mirrorball/ram.h>
#include <mirrorball/splash_abi.h>
#include <mirrorball/vcpu.h>

/*
 * The thin guest (design, section 8; tests/guest/splash), which is in the binary. What it expects
 * of the monitor, ports included, is in mirrorball/splash_abi.h.
 */

/* The programs, ended by a NULL name; the list is the guest's own (MB_SPLASH_PROGRAMS). */
struct mb_splash_program {
	const char *name;
	const char *summary;
	const char *usage; /* its arguments, with units and defaults */
};
extern const struct mb_splash_program mb_splash_programs[];

/* The image in the binary: a static ELF64 file. */
const void *mb_splash_image(uint64_t *len);

/*
 * Whether cmdline ("PROGRAM ARG...", NULL or empty: the demonstration) names a program and is short
 * enough for the guest; its arguments are checked by the guest, which ends with MB_SPLASH_USAGE.
 * For the command line and --dry-run. -EINVAL with the list of programs, -E2BIG.
 */
int mb_splash_check(const char *cmdline, struct mb_error *err);

/*
 * Loads it and sets every vCPU's start. vCPUs paused. As mb_splash_check, or -EFAULT: RAM too
 * small.
 */
int mb_splash_load(
	struct mb_ram *ram, struct mb_vcpus *vcpus, const char *cmdline, struct mb_error *err);

#endif
