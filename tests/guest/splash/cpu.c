/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * Waiting. The vCPUs may be many more than the host's CPUs, so a waiting one spins for about as
 * long as an exit to the monitor takes, and then makes one: the monitor gives the host CPU to
 * another vCPU.
 */
#define SPINS_BEFORE_YIELD   1000u
#define SPINS_BETWEEN_YIELDS 100u

void spin(unsigned *n)
{
	__builtin_ia32_pause();
	if (++*n >= SPINS_BEFORE_YIELD) {
		in8(MB_SPLASH_YIELD_PORT);
		*n = SPINS_BEFORE_YIELD - SPINS_BETWEEN_YIELDS;
	}
}

void lock(uint32_t *l)
{
	unsigned n = 0;

	while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE)) {
		while (__atomic_load_n(l, __ATOMIC_RELAXED))
			spin(&n);
	}
}

void unlock(uint32_t *l)
{
	__atomic_store_n(l, 0, __ATOMIC_RELEASE);
}

/* Sense-reversing: the last one to arrive flips the sense that the others wait for. */
void barrier(struct cpu *self)
{
	uint32_t sense = self->sense ^ 1;
	unsigned n = 0;

	self->sense = sense;
	if (__atomic_add_fetch(&guest.barrier_count, 1, __ATOMIC_ACQ_REL) == guest.n) {
		__atomic_store_n(&guest.barrier_count, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&guest.barrier_sense, sense, __ATOMIC_RELEASE);
		return;
	}
	while (__atomic_load_n(&guest.barrier_sense, __ATOMIC_ACQUIRE) != sense)
		spin(&n);
}

void measure_begin(struct cpu *self)
{
	barrier(self);
	if (!self->index)
		TRUTH_MARK(1);
	barrier(self);
}

void measure_end(struct cpu *self)
{
	barrier(self);
	if (!self->index)
		TRUTH_MARK(0);
	barrier(self);
}

/* The machine is about to end. */
void park(void)
{
	for (;;)
		in8(MB_SPLASH_YIELD_PORT);
}

struct timer timer_start(uint64_t ms)
{
	struct timer t = {.start = rdtsc(), .length = ms * guest.khz};

	t.next = t.length;
	return t;
}

struct timer run_timer(const struct cpu *self)
{
	struct timer t = timer_start(arg_or(MB_SPLASH_ARG_MS, 300));

	if (!self->index)
		t.every = guest.args.value[MB_SPLASH_ARG_EVERY_MS] * guest.khz;
	if (t.every)
		t.next = MIN(t.every, t.length);
	return t;
}

bool timer_over(struct timer *t)
{
	uint64_t passed = rdtsc() - t->start;

	if (passed < t->next)
		return false;
	if (passed >= t->length)
		return true;
	progress(passed);
	/* A line that is late does not make the next one late, too. */
	t->next = MIN((passed / t->every + 1) * t->every, t->length);
	return false;
}

uint64_t timer_cycles(const struct timer *t)
{
	return rdtsc() - t->start;
}

void *memset(void *dst, int c, size_t n)
{
	void *d = dst;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return dst;
}

void *memcpy(void *dst, const void *src, size_t n)
{
	void *d = dst;

	__asm__ volatile("rep movsb" : "+D"(d), "+S"(src), "+c"(n) : : "memory");
	return dst;
}

int strcmp(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return (unsigned char)*a - (unsigned char)*b;
}
