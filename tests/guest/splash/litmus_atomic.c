/* SPDX-License-Identifier: Apache-2.0 */
#include "litmus.h"

/*
 * Locked instructions on pages that change under them: all vCPUs of a round do a known number of
 * them, and then every vCPU must find that number. And code: who is told of new code executes it.
 */
#define LOCKED	   STORES
#define UNDER_LOCK 256u
#define CODES	   16u
#define EDGE_ONE   0x100000001ull /* one for each half */

struct wide {
	uint64_t low, high;
};

static void *counter_of(const struct round *r)
{
	switch (r->test) {
	case LITMUS_LOCK:
		return r->a + AT_DATA;
	case LITMUS_WIDE:
		return r->a + AT_WIDE;
	case LITMUS_SPLIT:
		return r->a + AT_SPLIT;
	case LITMUS_EDGE:
		return r->a + AT_EDGE;
	default:
		return r->a + AT_COUNTER;
	}
}

static void *data_b(const struct round *r)
{
	return r->b + AT_DATA + 8;
}

void litmus_atomic_before(struct round *r)
{
	r->before = load_now(counter_of(r));
	r->before_b = load_now(data_b(r));
}

/* ---- counters ---- */

static void add(const struct round *r)
{
	uint64_t last = 0, v = 1;

	for (unsigned k = 0; k < LOCKED; k++, v = 1) {
		__asm__ volatile("lock xaddq %0, %1"
				 : "+r"(v), "+m"(*(uint64_t *)counter_of(r))
				 :
				 : "memory", "cc");
		if (k && v <= last)
			litmus_forbidden(r, r->test, "%lu, and before that %lu (GPA 0x%lx)", v,
				last, memory_gpa(counter_of(r)));
		last = v;
	}
	litmus_did(r, LOCKED);
}

static void exchange(const struct round *r)
{
	uint64_t *p = counter_of(r), old = load_now(p);

	for (unsigned k = 0; k < LOCKED; k++, old++)
		while (!__atomic_compare_exchange_n(
			p, &old, old + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			;
	litmus_did(r, LOCKED);
}

/* The lock and one of its data on one page, the other on another. */
static void with_lock(const struct round *r)
{
	uint32_t *l = (uint32_t *)(r->a + AT_LOCK);

	for (unsigned k = 0; k < UNDER_LOCK; k++) {
		uint64_t v, w;

		lock(l);
		v = load_now(counter_of(r));
		w = load_now(data_b(r));
		if (v - r->before != w - r->before_b)
			litmus_forbidden(r, r->test,
				"%lu on page a (GPA 0x%lx), %lu on page b (GPA 0x%lx)",
				v - r->before, memory_gpa(counter_of(r)), w - r->before_b,
				memory_gpa(data_b(r)));
		store(counter_of(r), v + 1);
		store(data_b(r), w + 1);
		unlock(l);
	}
	litmus_did(r, UNDER_LOCK);
}

bool litmus_has_wide(void)
{
	uint32_t eax = 1, ebx, ecx = 0, edx;

	__asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	return ecx >> 13 & 1;
}

/* Its answer, if it was not the expected value, was read at once, too. */
static void exchange_wide(const struct round *r)
{
	struct wide *p = counter_of(r), old = {0, 0};

	for (unsigned k = 0; k < LOCKED;) {
		uint64_t next = old.low + 1;
		bool done;

		__asm__ volatile("lock cmpxchg16b %1"
				 : "=@ccz"(done), "+m"(*p), "+a"(old.low), "+d"(old.high)
				 : "b"(next), "c"(mix(next))
				 : "memory");
		if (old.high != mix(old.low))
			litmus_forbidden(r, r->test, "torn: 0x%lx of 0x%lx (GPA 0x%lx)", old.high,
				old.low, memory_gpa(p));
		if (done) {
			k++;
			old = (struct wide){next, mix(next)};
		}
	}
	litmus_did(r, LOCKED);
}

static void add_split(const struct round *r)
{
	uint64_t one = r->test == LITMUS_EDGE ? EDGE_ONE : 1;

	for (unsigned k = 0; k < FEW; k++)
		__asm__ volatile("lock addq %1, %0"
				 : "+m"(*(uint64_t *)counter_of(r))
				 : "r"(one)
				 : "memory", "cc");
	litmus_did(r, FEW);
}

static void check_counter(const struct round *r)
{
	uint64_t each = LOCKED, found = load_now(counter_of(r)) - r->before, one = 1;

	if (r->test == LITMUS_LOCK)
		each = UNDER_LOCK;
	else if (r->test == LITMUS_SPLIT || r->test == LITMUS_EDGE)
		each = FEW;
	if (r->test == LITMUS_EDGE)
		one = EDGE_ONE;
	if (found != each * r->n * one)
		litmus_forbidden(r, r->test, "0x%lx were added, 0x%lx arrived (GPA 0x%lx)",
			each * r->n * one, found, memory_gpa(counter_of(r)));
	if (r->test == LITMUS_LOCK && load_now(data_b(r)) - r->before_b != each * r->n)
		litmus_forbidden(r, r->test, "%lu were added, %lu arrived (GPA 0x%lx)", each * r->n,
			load_now(data_b(r)) - r->before_b, memory_gpa(data_b(r)));
}

/* ---- plain stores across two lines: nobody promises that they are one ---- */

static uint64_t twice(uint64_t v)
{
	return v << 32 | (uint32_t)v;
}

static void store_split(const struct round *r)
{
	uint64_t n = 0, halves = 0, v;
	unsigned waits = 0;

	if (!r->role) {
		for (uint64_t k = 1; k <= STORES; k++)
			store(r->a + AT_STORE, twice(r->base + k));
		litmus_did(r, STORES);
		return;
	}
	do {
		v = load_now(r->a + AT_STORE);
		halves += v != twice(v);
		if (++n % STORES == 0)
			spin(&waits);
	} while (v != twice(r->base + STORES));
	litmus_did(r, n);
	litmus_may(r, halves);
}

static void check_store(const struct round *r)
{
	if (load_now(r->a + AT_STORE) != twice(r->base + STORES))
		litmus_forbidden(r, r->test, "not what was stored last (GPA 0x%lx)",
			memory_gpa(r->a + AT_STORE));
}

/* ---- code: rewritten, told of by a flag on another page, executed after a serializing instruction
 * (SDM vol. 3, 8.1.3) ---- */

void litmus_code_fill(unsigned char *page)
{
	page[AT_CODE] = 0xb8;
	page[AT_CODE + 5] = 0xc3;
}

/*
 * IRET serializes, needs no privilege and is not intercepted. The selectors are what they are,
 * which kvm_pvm does not leave to the guest.
 */
static void serialize(void)
{
	uint64_t rsp, selector;

	__asm__ volatile("movq %%rsp, %0\n\t"
			 "movl %%ss, %k1\n\t"
			 "pushq %1\n\t"
			 "pushq %0\n\t"
			 "pushfq\n\t"
			 "movl %%cs, %k1\n\t"
			 "pushq %1\n\t"
			 "pushq $1f\n\t"
			 "iretq\n"
			 "1:"
			 : "=&r"(rsp), "=&r"(selector)
			 :
			 : "memory", "cc");
}

static uint32_t call(const unsigned char *code)
{
	uint32_t v;

	__asm__ volatile("call *%1" : "=&a"(v) : "r"(code) : "memory", "cc");
	return v;
}

static void wait_until(const uint64_t *word, uint64_t v)
{
	unsigned n = 0;

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) < v)
		spin(&n);
}

static void run_code(const struct round *r)
{
	const unsigned char *code = r->a + AT_CODE;
	uint64_t *flag = (uint64_t *)(r->b + AT_Y);

	for (uint64_t k = 1; k <= CODES; k++) {
		uint32_t want = (uint32_t)(r->base + k), got;

		if (!r->role) {
			for (unsigned i = 1; k > 1 && i < r->n; i++)
				wait_until(litmus_word(r, i), r->base + k - 1);
			__atomic_store_n((uint32_t *)(code + 1), want, __ATOMIC_RELAXED);
			__atomic_store_n(flag, r->base + k, __ATOMIC_RELEASE);
		} else {
			wait_until(flag, r->base + k);
		}
		serialize();
		got = call(code);
		if (got != want)
			litmus_forbidden(r, r->test,
				"0x%x was executed after 0x%x was written (GPA 0x%lx)", got, want,
				memory_gpa(code));
		if (r->role)
			__atomic_store_n(litmus_word(r, r->role), r->base + k, __ATOMIC_RELEASE);
	}
	litmus_did(r, CODES);
}

static void check_code(const struct round *r)
{
	uint32_t want = (uint32_t)(r->base + CODES), got;

	serialize();
	got = call(r->a + AT_CODE);
	if (got != want)
		litmus_forbidden(r, r->test, "0x%x was executed, the last is 0x%x (GPA 0x%lx)", got,
			want, memory_gpa(r->a + AT_CODE));
}

void litmus_atomic(struct round *r)
{
	switch (r->test) {
	case LITMUS_XADD:
		add(r);
		break;
	case LITMUS_CMPXCHG:
		exchange(r);
		break;
	case LITMUS_LOCK:
		with_lock(r);
		break;
	case LITMUS_WIDE:
		exchange_wide(r);
		break;
	case LITMUS_STORE:
		store_split(r);
		break;
	case LITMUS_CODE:
		run_code(r);
		break;
	default:
		add_split(r);
	}
}

void litmus_atomic_check(struct round *r)
{
	if (r->test == LITMUS_STORE)
		check_store(r);
	else if (r->test == LITMUS_CODE)
		check_code(r);
	else
		check_counter(r);
}
