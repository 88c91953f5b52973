/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPLASH_GUEST_H
#define SPLASH_GUEST_H

#include "layout.h"
#include "mark.h"
#include <mirrorball/splash_abi.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The inside of the thin guest. All of it runs in ring 3; see README.md for the outside. */

#define PAGE_BYTES     4096ull
#define PAGE_WORDS     512u
#define MAX_VCPUS      MB_SPLASH_MAX_VCPUS
#define CACHE_LINE     64
#define MIN(a, b)      ((a) < (b) ? (a) : (b))
#define MAX(a, b)      ((a) > (b) ? (a) : (b))
#define ALIGN_UP(v, a) (((v) + (a)-1) & ~((a)-1))

/* A vCPU's own data; in its block (layout.h). */
struct cpu {
	uint32_t index;
	uint32_t sense; /* of the barrier it waits for next */
	uint64_t rng;
	uint64_t ops;	    /* result of the program */
	uint64_t cycles;    /* time it took this vCPU */
	uint64_t tally[4];  /* what a program adds up over the vCPUs for its check */
	uint32_t excepting; /* it is reporting an exception */
};

struct program {
	const char *name;
	uint32_t args;	  /* MB_SPLASH_TAKES(...) */
	const char *unit; /* of ops, with a space in front: " keys", " B" */
	/*
	 * vCPU 0 prepares memory (and says what is missing with usage_error), all run, vCPU 0
	 * checks what needs all results and leaves a note for the report. Barriers are in between.
	 * setup, check: may be NULL.
	 */
	void (*setup)(void);
	void (*run)(struct cpu *self);
	void (*check)(void);
};

/* What the command line said; `given` has a bit for each argument that was named. */
struct args {
	uint64_t value[MB_SPLASH_N_ARGS];
	uint32_t given;
};

/* One thing on a cache line of its own. */
struct line {
	uint64_t v;
} __attribute__((aligned(CACHE_LINE)));

struct guest {
	struct mb_splash_info info; /* copied once */
	uint64_t cr3;
	unsigned n;   /* vCPUs */
	uint64_t khz; /* TSC; a guess when has_khz is false */
	bool has_khz;
	const struct program *asked;   /* what the command line says */
	const struct program *program; /* what runs now; changes while demo is what was asked for */
	struct args args;
	const char *title; /* the name that ok and FAILED are said for */
	char note[120];	   /* what a program's check leaves for the report */
	uint32_t line_lock;
	uint32_t ended; /* somebody is ending the machine: nobody else speaks */
	uint32_t ready; /* vCPU 0 has set everything up */
	uint32_t barrier_count __attribute__((aligned(CACHE_LINE)));
	uint32_t barrier_sense __attribute__((aligned(CACHE_LINE)));
};
extern struct guest guest;

static inline struct cpu *cpu_at(unsigned index)
{
	extern char cpus[];

	return (struct cpu *)(cpus + ((uint64_t)index << CPU_SHIFT) + CPU_SELF);
}

/* ---- cpu.c ---- */
void spin(unsigned *n); /* one turn of a waiting loop; *n starts at 0 */
void lock(uint32_t *l);
void unlock(uint32_t *l);
/* All vCPUs meet; what any of them wrote before is seen by all of them after. */
void barrier(struct cpu *self);
void park(void) __attribute__((noreturn));

/* A deadline on this vCPU's own clock. */
struct timer {
	uint64_t start;
	uint64_t length;
	uint64_t every; /* between two lines of progress; 0: none */
	uint64_t next;	/* what timer_over waits for: a line, or the end */
};
struct timer timer_start(uint64_t ms);
/* ms= of the command line, or 300. On vCPU 0 timer_over then says each every_ms= how many ops all
 * have done. */
struct timer run_timer(const struct cpu *self);
bool timer_over(struct timer *t);
uint64_t timer_cycles(const struct timer *t);

/*
 * What a program measures, for the lab's instrument (tests/lab/truth): its section 1. All vCPUs
 * meet: none is counted before the last one has begun, and all are until the last one is done.
 */
void measure_begin(struct cpu *self);
void measure_end(struct cpu *self);

/* ---- memory.c ---- */
void memory_init(void);
uint64_t memory_free(void); /* what memory_take could give */
/*
 * Zero only if nobody used it before. align: a power of two up to 2 MiB. Ends the machine if there
 * is too little.
 */
void *memory_take(uint64_t bytes, uint64_t align);
void memory_reset(void); /* everything taken is free again */
uint64_t memory_gpa(const void *p);

/* ---- say.c ---- */
/* %s %c %u %lu %x %lx with width, '-' and '0'. Returns the length; always NUL-terminated. */
unsigned format(char *buf, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
unsigned vformat(char *buf, size_t size, const char *fmt, va_list ap);
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* one line */
/* "12.3 M", or all digits with raw=1. No space behind. */
void format_count(char *buf, size_t size, uint64_t v);
/* "16 MiB". */
void format_bytes(char *buf, size_t size, uint64_t bytes);
/* "splash: PROGRAM: FAILED: ..." and the end, with this status; or with MB_SPLASH_USAGE. */
void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void end(unsigned status) __attribute__((noreturn));

/* ---- pvh.c ---- */
extern bool pvh_started; /* by another monitor, whose firmware may have used memory */

/* ---- rsm.c ---- */
void rsm(bool prefixed) __attribute__((noreturn)); /* with one more byte in front */

/* ---- args.c ---- */
const struct program *args_parse(const char *cmdline);
uint64_t arg_or(enum mb_splash_arg arg, uint64_t otherwise);
/* size=, or `otherwise` made to fit: a multiple of unit, at least `least`. */
uint64_t arg_size(uint64_t otherwise, uint64_t unit, uint64_t least, uint64_t overhead);

/* ---- main.c ---- */
void splash_main(struct cpu *self, const struct mb_splash_info *info, unsigned index, uint64_t cr3);
void run_program(struct cpu *self, const struct program *program);
/*
 * What vCPUs first..first+n-1 did in the last program, divided by share, as "12.3 M keys/s" or in
 * cycles an operation.
 */
void format_rate(char *buf, size_t size, unsigned first, unsigned n, unsigned share);
void report(void);
void progress(uint64_t passed); /* cycles since the start */

/* ---- the programs ---- */
#define DECLARE_PROGRAM(name, args, summary, usage) extern const struct program program_##name;
MB_SPLASH_PROGRAMS(DECLARE_PROGRAM)
#undef DECLARE_PROGRAM

#define PROGRAM_HEAD(prog) .name = #prog, .args = PROGRAM_ARGS_##prog
#define PROGRAM_ARGS(prog, takes, summary, usage)                                                  \
	PROGRAM_ARGS_##prog = (takes) | MB_SPLASH_COMMON_ARGS,
enum { MB_SPLASH_PROGRAMS(PROGRAM_ARGS) };
#undef PROGRAM_ARGS

/* Where part i of n of `total` begins: parts differ by at most one. */
static inline uint64_t part(uint64_t total, unsigned i, unsigned n)
{
	return total / n * i + total % n * i / n;
}

/* ---- small things ---- */
static inline uint64_t rdtsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (uint64_t)hi << 32 | lo;
}

static inline void out8(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static inline void out16(uint16_t port, uint16_t v)
{
	__asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
	uint8_t v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static inline uint16_t in16(uint16_t port)
{
	uint16_t v;

	__asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

static inline uint32_t in32(uint16_t port)
{
	uint32_t v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory");
	return v;
}

/* a * b / c without overflow in between; the result must fit (0 for c == 0). */
static inline uint64_t muldiv(uint64_t a, uint64_t b, uint64_t c)
{
	uint64_t hi, lo;

	__asm__("mulq %3" : "=a"(lo), "=d"(hi) : "a"(a), "rm"(b) : "cc");
	if (hi >= c)
		return c ? UINT64_MAX : 0;
	__asm__("divq %2" : "+a"(lo), "+d"(hi) : "rm"(c) : "cc");
	return lo;
}

/* A bijection that scatters its argument over all 64 bits (the finaliser of MurmurHash3). */
static inline uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 33) * 0xff51afd7ed558ccdull;
	x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ull;
	return x ^ x >> 33;
}

/* xorshift64* (Marsaglia 2003, Vigna 2016); the state is never 0. */
static inline uint64_t rnd(struct cpu *self)
{
	uint64_t x = self->rng;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	self->rng = x;
	return x * 0x2545f4914f6cdd1dull;
}

/* x, which is spread over all 64 bits, to 0..n-1. */
static inline uint64_t scale(uint64_t x, uint64_t n)
{
	return (uint64_t)((unsigned __int128)x * n >> 64);
}

static inline uint64_t rnd_below(struct cpu *self, uint64_t n)
{
	return scale(rnd(self), n);
}

void *memset(void *dst, int c, size_t n);
void *memcpy(void *dst, const void *src, size_t n);
int strcmp(const char *a, const char *b);

#endif
