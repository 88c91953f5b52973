/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_SPLASH_ABI_H
#define MIRRORBALL_SPLASH_ABI_H

#include <stdint.h>

/*
 * What the monitor and the thin guest agree on; both include this file and nothing else of each
 * other.
 *
 * The monitor loads the guest's ELF image, writes a struct mb_splash_info at MB_SPLASH_INFO and
 * starts every vCPU at the entry point: long mode, ring 0, interrupts off, identity page tables for
 * the first 4 GiB with the user bit set, RDI = MB_SPLASH_INFO, RSI = the vCPU's index. All other
 * registers and the segment selectors may be anything. RAM that nobody has written reads as zero.
 *
 *   port 0xe9, write   text, a byte at a time, whole lines (the debug console of Bochs and QEMU)
 *   port 0xf4, write   a byte that ends the machine with that status (as QEMU's isa-debug-exit)
 *   port 0xed, read    the vCPU can only wait for another one: the monitor gives the host CPU away
 *                      (sched_yield); the value means nothing
 */
#define MB_SPLASH_INFO	      0x5000ull
#define MB_SPLASH_MAGIC	      0x6873616c70736d6dull
#define MB_SPLASH_TEXT_PORT   0xe9u
#define MB_SPLASH_YIELD_PORT  0xedu
#define MB_SPLASH_EXIT_PORT   0xf4u

#define MB_SPLASH_MAX_VCPUS   1024u
#define MB_SPLASH_MAX_CMDLINE 2048u

/* The guest's status byte. */
#define MB_SPLASH_OK	    0u
#define MB_SPLASH_FAILED    1u /* a program's check failed */
#define MB_SPLASH_USAGE	    2u /* bad arguments, or a machine too small for them */
#define MB_SPLASH_EXCEPTION 3u /* the guest took an exception it does not know what to do with */

/* Only fixed-width types, little-endian, no pointers. */
struct mb_splash_info {
	uint64_t magic;
	uint32_t n_vcpus;
	uint32_t tsc_khz; /* 0: unknown */
	uint64_t low_ram_bytes;
	uint64_t high_ram_bytes;		/* at 4 GiB */
	uint8_t vcpu_view[MB_SPLASH_MAX_VCPUS]; /* view of vCPU i, for the report only */
	char cmdline[MB_SPLASH_MAX_CMDLINE];	/* "PROGRAM ARG...", NUL-terminated */
};

/* Arguments are KEY=VALUE; numbers take K, M, G (powers of 1024). X(name in C, key). */
#define MB_SPLASH_ARGS(X)                                                                          \
	X(MS, "ms")                                                                                \
	X(SEED, "seed")                                                                            \
	X(SIZE, "size")                                                                            \
	X(KEYS, "keys")                                                                            \
	X(ROUNDS, "rounds")                                                                        \
	X(PHASE_MS, "phase_ms")                                                                    \
	X(EVERY_MS, "every_ms")                                                                    \
	X(RESET, "reset")                                                                          \
	X(RAW, "raw")                                                                              \
	X(EACH, "each")                                                                            \
	X(RSM, "rsm")                                                                              \
	X(IMAGE, "image")                                                                          \
	X(ID, "id")                                                                                \
	X(KEPT, "kept")                                                                            \
	X(FULL, "full")

enum mb_splash_arg {
#define MB_SPLASH_ARG_ENUM(name, key) MB_SPLASH_ARG_##name,
	MB_SPLASH_ARGS(MB_SPLASH_ARG_ENUM)
#undef MB_SPLASH_ARG_ENUM
		MB_SPLASH_N_ARGS,
};

#define MB_SPLASH_TAKES(name) (1u << MB_SPLASH_ARG_##name)

/* What works for a while and says now and then how far it is. */
#define MB_SPLASH_TIMED	      (MB_SPLASH_TAKES(MS) | MB_SPLASH_TAKES(EVERY_MS))
#define MB_SPLASH_TIMED_USAGE "ms=TIME (300) every_ms=TIME between lines of progress (0: none)"

/* Every program takes these: raw=1 prints plain numbers, each=1 a line a vCPU however many. */
#define MB_SPLASH_COMMON_ARGS  (MB_SPLASH_TAKES(RAW) | MB_SPLASH_TAKES(EACH))
#define MB_SPLASH_COMMON_USAGE "raw=0|1 each=0|1"

/* X(name, arguments besides the common ones, summary, usage). The first runs when none is named. */
#define MB_SPLASH_PROGRAMS(X)                                                                      \
	X(demo, MB_SPLASH_TAKES(MS) | MB_SPLASH_TAKES(SEED),                                       \
		"a short tour: runs most of the others in turn and prints one table",              \
		"ms=TIME of each program (100) seed=N (random)")                                   \
	X(hello, MB_SPLASH_TAKES(MS) | MB_SPLASH_TAKES(RSM),                                       \
		"every vCPU says that it reached ring 3, and counts its exits",                    \
		"ms=TIME (0: 16 exits) rsm=0|1|2 the last vCPU executes RSM (2: prefixed), which " \
		"crashes the guest (0)")                                                           \
	X(touch, MB_SPLASH_TAKES(SIZE), "first touch of memory by all vCPUs, a part each",         \
		"size=BYTES (all memory, at most 64M)")                                            \
	X(radix, MB_SPLASH_TIMED | MB_SPLASH_TAKES(SEED) | MB_SPLASH_TAKES(KEYS),                  \
		"parallel radix sort of 32-bit keys, again and again",                             \
		"keys=N (1M) " MB_SPLASH_TIMED_USAGE " seed=N (random)")                           \
	X(readshare, MB_SPLASH_TIMED | MB_SPLASH_TAKES(SEED) | MB_SPLASH_TAKES(SIZE),              \
		"all vCPUs read one shared table at random, nobody writes it",                     \
		"size=BYTES (16M) " MB_SPLASH_TIMED_USAGE " seed=N (random)")                      \
	X(writeshare, MB_SPLASH_TIMED | MB_SPLASH_TAKES(SEED) | MB_SPLASH_TAKES(SIZE),             \
		"all vCPUs add to counters on shared pages",                                       \
		"size=BYTES (64K) " MB_SPLASH_TIMED_USAGE " seed=N (random)")                      \
	X(private, MB_SPLASH_TIMED | MB_SPLASH_TAKES(SIZE),                                        \
		"each vCPU reads and writes memory of its own, in order",                          \
		"size=BYTES of all vCPUs (64M) " MB_SPLASH_TIMED_USAGE)                            \
	X(phase,                                                                                   \
		MB_SPLASH_TIMED | MB_SPLASH_TAKES(SEED) | MB_SPLASH_TAKES(SIZE) |                  \
			MB_SPLASH_TAKES(PHASE_MS),                                                 \
		"who uses which part of memory changes with each phase",                           \
		"size=BYTES of all vCPUs (16M) phase_ms=TIME (50) " MB_SPLASH_TIMED_USAGE          \
		" seed=N (random)")                                                                \
	X(walk, MB_SPLASH_TAKES(SIZE) | MB_SPLASH_TAKES(ROUNDS),                                   \
		"each vCPU loads and stores every line of its part: a known number of accesses",   \
		"size=BYTES of all vCPUs (8M) rounds=N (4)")                                       \
	X(churn, MB_SPLASH_TIMED | MB_SPLASH_TAKES(SEED) | MB_SPLASH_TAKES(SIZE),                  \
		"torture test: shared pages read and written at random, every stale, torn or "     \
		"lost one found",                                                                  \
		"size=BYTES (16M) " MB_SPLASH_TIMED_USAGE " seed=N (random)")                      \
	X(litmus,                                                                                  \
		MB_SPLASH_TIMED | MB_SPLASH_TAKES(SEED) | MB_SPLASH_TAKES(SIZE) |                  \
			MB_SPLASH_TAKES(PHASE_MS),                                                 \
		"memory-ordering tests: what x86 forbids must not be seen, whatever page it is on", \
		"size=BYTES (8M) phase_ms=TIME of rounds, then of all reading (20) "               \
		MB_SPLASH_TIMED_USAGE " seed=N (random)")                                          \
	X(diskchurn,                                                                               \
		MB_SPLASH_TIMED | MB_SPLASH_TAKES(SEED) | MB_SPLASH_TAKES(SIZE) |                  \
			MB_SPLASH_TAKES(IMAGE) | MB_SPLASH_TAKES(ID) | MB_SPLASH_TAKES(KEPT) |     \
			MB_SPLASH_TAKES(FULL),                                                     \
		"torture test: blocks of the first disk and pages of memory written and copied "   \
		"into each other at random, everything that is not as it was left found",          \
		"size=BYTES of memory (8M) image=N of tests/kvm/differential.sh (0: zeroes) id=N " \
		"that marks what is written (1) kept=0|1 the disk has what the same id "           \
		"wrote before (0) full=0|1 writes may fail (0) " MB_SPLASH_TIMED_USAGE             \
		" seed=N (random)")                                                                \
	X(fuzz, MB_SPLASH_TAKES(MS) | MB_SPLASH_TAKES(SEED) | MB_SPLASH_TAKES(RESET),              \
		"garbage to every device register and virtio queue; scratches attached disks",     \
		"ms=TIME (300) seed=N (random, printed) reset=0|1 resets the machine now "         \
		"and then, and ms counts anew (0)")

#endif
