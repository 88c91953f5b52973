/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPLASH_LITMUS_H
#define SPLASH_LITMUS_H

#include "guest.h"

/*
 * The inside of `litmus`: litmus.c has the rounds, litmus_order.c the tests of which stores and
 * loads may overtake others, litmus_atomic.c those of locked instructions and of code.
 *
 * Names are those of Alglave, Maranget, Tautschnig: Herding Cats (2014), and what is forbidden is
 * x86-TSO's (Sewell et al., CACM 2010): a store may be delayed past later loads of its CPU, and
 * nothing else. Each variable only ever grows, so that "0 or 1" is "before or after store k": a
 * round's roles run freely, and any two of their iterations can be held against each other.
 */
#define STORES	4096u /* of each variable in a round */
#define N_FLAGS 32u
#define FEW	64u /* where one takes long */

/* Where in a page the variables of the tests are, each on a line of its own. */
enum {
	AT_X = 0x040,
	AT_Y = 0x080,
	AT_COUNTER = 0x0c0,
	AT_LOCK = 0x100,
	AT_DATA = 0x140,
	AT_JUNK = 0x180,  /* written by anybody, looked at by nobody; a line */
	AT_WIDE = 0x1c0,  /* 16 bytes */
	AT_SPLIT = 0x23c, /* 8 bytes, half of them on the next line */
	AT_CODE = 0x303,  /* mov $imm32, %eax; ret. The immediate is aligned. */
	AT_EDGE = 0xffc,  /* 8 bytes, half of them on the next page */
	AT_STORE = 0x3fc, /* 8 bytes, half of them on the next line */
	AT_FLAGS = 0x800, /* N_FLAGS lines */
};

#define LITMUS_TESTS(X)                                                                            \
	X(MP, "message passing")                                                                   \
	X(MANY, "message passing, pages")                                                          \
	X(CORR, "coherence of one word")                                                           \
	X(SB, "store buffering, fences")                                                           \
	X(SB_BARE, "store buffering, none")                                                        \
	X(LB, "load buffering")                                                                    \
	X(IRIW, "independent reads")                                                               \
	X(XADD, "lock xadd")                                                                       \
	X(CMPXCHG, "lock cmpxchg")                                                                 \
	X(LOCK, "a lock and its data")                                                             \
	X(WIDE, "cmpxchg16b")                                                                      \
	X(SPLIT, "lock add across lines")                                                          \
	X(EDGE, "lock add across pages")                                                           \
	X(STORE, "store across lines")                                                             \
	X(CODE, "self-modifying code")                                                             \
	X(QUIET, "nobody writes")

enum litmus_test {
#define LITMUS_ENUM(name, text) LITMUS_##name,
	LITMUS_TESTS(LITMUS_ENUM)
#undef LITMUS_ENUM
		N_LITMUS,
};

/* What a vCPU knows of the round that it is in; every vCPU works out the same but for `self` etc.
 */
struct round {
	struct cpu *self;
	enum litmus_test test;
	uint64_t number;
	uint64_t base;		   /* store k of it stores base + k; greater than all before */
	unsigned first, n;	   /* vCPUs of this one's group */
	unsigned role;		   /* 0..n-1 */
	unsigned char *a, *b;	   /* the pages of its variables, which may be one */
	uint64_t random;	   /* the same for all in it */
	uint64_t before, before_b; /* what the counter was that the test adds to */
};

/* What a role saw, for another to hold it against its own. */
struct seen {
	uint64_t x, y;
};

/* By role of this vCPU's group: STORES of them at least, 2 * STORES + 1 for IRIW. */
struct seen *litmus_log(const struct round *r, unsigned role);
/* How many of them a role has written. */
uint64_t *litmus_logged(const struct round *r, unsigned role);
/* What a role tells others of its group about how far it is; on a page that is not in the test. */
uint64_t *litmus_word(const struct round *r, unsigned role);

/* The page so many behind page a, and how many there are. */
unsigned char *litmus_page(const struct round *r, uint64_t n);
uint64_t litmus_pages(void);

/* Counts what this vCPU did, and outcomes that are allowed and worth knowing. */
void litmus_did(const struct round *r, uint64_t iterations);
void litmus_may(const struct round *r, uint64_t n);
/* A forbidden outcome. The first few are said. */
void litmus_forbidden(const struct round *r, enum litmus_test test, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* litmus_order.c and litmus_atomic.c: what a role does, and what it then finds in what all did. */
void litmus_read_many(const struct round *r); /* the pages of LITMUS_MANY */
void litmus_order(struct round *r);
void litmus_order_check(struct round *r);
void litmus_atomic_before(struct round *r); /* when nobody writes */
void litmus_atomic(struct round *r);
void litmus_atomic_check(struct round *r);
void litmus_code_fill(unsigned char *page); /* puts the code there */
bool litmus_has_wide(void);

static inline uint64_t load(const void *p)
{
	return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED);
}

/* The compiler keeps these in order, the processor may do what it may do. */
static inline void store(void *p, uint64_t v)
{
	__asm__ volatile("movq %1, %0" : "=m"(*(uint64_t *)p) : "r"(v) : "memory");
}

static inline uint64_t load_now(const void *p)
{
	uint64_t v;

	__asm__ volatile("movq %1, %0" : "=r"(v) : "m"(*(const uint64_t *)p) : "memory");
	return v;
}

#endif
