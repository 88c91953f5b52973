/* SPDX-License-Identifier: Apache-2.0 */
#include "litmus.h"

/*
 * Memory ordering while the memory manager copies, moves and collapses pages: what x86 forbids must
 * not be seen, on whichever page a variable is and whichever copy of it a vCPU reads.
 *
 * Rounds: a test, and pages for each group of vCPUs, all from the seed, so that every vCPU knows of
 * them. All have read the pages before, from a copy where there is one. Somebody's first store
 * makes each of them one again, while the others go on.
 *
 *   read the pages | meet | now and then a store beside | the test | meet | check
 *
 * Variables are on one page, on neighbours, or on pages far away. Between two phases of rounds is a
 * quiet one, in which all read all of it, and the sum must be the same for all: the memory manager
 * then copies what it finds worth it.
 */
#define BASE_SHIFT   13u /* STORES is less */
#define SAID_AT_MOST 8u
#define LOG_ENTRIES  (2 * STORES + 1)
#define DELAY_SHIFTS 21u /* longer than a collapse, now and then */
#define HUGE_PAGES   512u
#define PHASE_MS     20u

enum mode { ROUND, QUIET, OVER };

/* On lines, or pages, of its own: nobody else writes there. */
struct own {
	struct line word, logged;
	uint64_t sum;
	uint64_t did[N_LITMUS], may[N_LITMUS], forbidden[N_LITMUS];
	struct seen log[LOG_ENTRIES];
} __attribute__((aligned(CACHE_LINE)));

static struct {
	unsigned char *page;
	uint64_t n_pages;
	struct own *own; /* [vCPU] */
	enum mode mode;	 /* vCPU 0 writes it before all meet */
	uint32_t n_said;
	uint64_t n_rounds, n_quiet;
	bool has_wide;
} c;

#define TEXT_OF(name, text) text,
static const char *const texts[N_LITMUS] = {LITMUS_TESTS(TEXT_OF)};

struct seen *litmus_log(const struct round *r, unsigned role)
{
	return c.own[r->first + role].log;
}

uint64_t *litmus_logged(const struct round *r, unsigned role)
{
	return &c.own[r->first + role].logged.v;
}

uint64_t *litmus_word(const struct round *r, unsigned role)
{
	return &c.own[r->first + role].word.v;
}

unsigned char *litmus_page(const struct round *r, uint64_t n)
{
	uint64_t a = (uint64_t)(r->a - c.page) / PAGE_BYTES;

	return c.page + (a + n) % litmus_pages() * PAGE_BYTES;
}

/* The last one is only there for what is across its edge. */
uint64_t litmus_pages(void)
{
	return c.n_pages - 1;
}

void litmus_did(const struct round *r, uint64_t iterations)
{
	c.own[r->self->index].did[r->test] += iterations;
	r->self->ops += iterations;
}

void litmus_may(const struct round *r, uint64_t n)
{
	c.own[r->self->index].may[r->test] += n;
}

void litmus_forbidden(const struct round *r, enum litmus_test test, const char *fmt, ...)
{
	char what[160];
	va_list ap;

	c.own[r->self->index].forbidden[test]++;
	if (__atomic_fetch_add(&c.n_said, 1, __ATOMIC_RELAXED) >= SAID_AT_MOST)
		return;
	va_start(ap, fmt);
	vformat(what, sizeof(what), fmt, ap);
	va_end(ap);
	say("splash: litmus: forbidden: %s: vCPU %u (view %u), role %u of %u, round %lu: %s",
		texts[test], r->self->index, guest.info.vcpu_view[r->self->index], r->role, r->n,
		r->number, what);
}

static void setup(void)
{
	uint64_t own_bytes = guest.n * sizeof(struct own) + PAGE_BYTES;
	uint64_t bytes = arg_size(8 << 20, PAGE_BYTES, 4 * PAGE_BYTES, own_bytes + (2 << 20));

	c.page = memory_take(bytes, PAGE_BYTES);
	c.n_pages = bytes / PAGE_BYTES;
	c.own = memory_take(guest.n * sizeof(struct own), PAGE_BYTES);
	memset(c.own, 0, guest.n * sizeof(struct own));
	c.n_said = 0;
	c.n_rounds = c.n_quiet = 0;
	c.has_wide = litmus_has_wide();
	c.mode = ROUND; /* a quiet phase is first */
}

/* ---- what a round is ---- */

/* vCPUs of a group; 0: all of them. */
static unsigned group_of(enum litmus_test test)
{
	switch (test) {
	case LITMUS_SB:
	case LITMUS_SB_BARE:
	case LITMUS_LB:
	case LITMUS_CODE:
		return 2;
	case LITMUS_IRIW:
		return 4;
	default:
		return 0;
	}
}

static bool is_order(enum litmus_test test)
{
	return test <= LITMUS_IRIW;
}

/* Groups have every n_groups'th page each. */
static void place(struct round *r, unsigned group, unsigned n_groups)
{
	uint64_t random = mix(r->random + group), n = litmus_pages() / n_groups;
	uint64_t a = scale(mix(random), n), b = a;

	switch (random >> 8 & 3) {
	case 0:
		break;
	case 1:
		b = (a + 1) % n;
		break;
	case 2: /* in another block, if there are some */
		b = (a + HUGE_PAGES + scale(mix(~random), n > HUGE_PAGES ? n - HUGE_PAGES : 1)) % n;
		break;
	default:
		b = scale(mix(~random), n);
	}
	r->a = c.page + (a * n_groups + group) * PAGE_BYTES;
	r->b = c.page + (b * n_groups + group) * PAGE_BYTES;
}

/* By turns; one in four is the one that collapses most. */
static enum litmus_test test_of(uint64_t number)
{
	if (number % 4 == 3)
		return LITMUS_MANY;
	return (enum litmus_test)((number - number / 4) % LITMUS_QUIET);
}

/* False: this vCPU has nothing to do in it. */
static bool make_round(struct cpu *self, uint64_t number, struct round *r)
{
	uint64_t random =
		mix(number * 0x9e3779b97f4a7c15ull + guest.args.value[MB_SPLASH_ARG_SEED]);
	unsigned n, n_groups, shifted;

	*r = (struct round){.self = self,
		.test = test_of(number),
		.number = number,
		.base = (number + 1) << BASE_SHIFT};
	if (r->test == LITMUS_WIDE && !c.has_wide)
		return false;
	n = group_of(r->test);
	r->random = random;
	r->n = n ? n : guest.n;
	if (r->n > guest.n || (is_order(r->test) && r->n < 2))
		return false;
	/* vCPU i's place changes with each round, and so does which view has which role. */
	shifted = (unsigned)((self->index + (random >> 32)) % guest.n);
	n_groups = (unsigned)MIN(guest.n / r->n, litmus_pages());
	if (shifted / r->n >= n_groups)
		return false;
	r->first = shifted / r->n * r->n;
	r->role = shifted - r->first;
	place(r, shifted / r->n, n_groups);
	return true;
}

/* From whichever copy there is: it is then in page tables, and in the processor. */
static void read_ahead(struct round *r)
{
	if (r->test == LITMUS_MANY)
		litmus_read_many(r);
	for (unsigned at = 0; at < PAGE_BYTES; at += CACHE_LINE) {
		load_now(r->a + at);
		load_now(r->b + at);
	}
	if (!is_order(r->test))
		litmus_atomic_before(r);
}

/* A store that is not part of the test may be the first one, and the test begins some time after.
 */
static void stir(struct round *r)
{
	uint64_t random = rnd(r->self);

	if (!(random & 3))
		store((random & 4 ? r->a : r->b) + AT_JUNK + r->role % 8 * 8, r->base);
	for (uint64_t n = 1ull << (random >> 8) % DELAY_SHIFTS; n; n--)
		__asm__ volatile("");
}

static void do_round(struct round *r)
{
	stir(r);
	if (is_order(r->test))
		litmus_order(r);
	else
		litmus_atomic(r);
}

static void check_round(struct round *r)
{
	if (is_order(r->test))
		litmus_order_check(r);
	else
		litmus_atomic_check(r);
}

/* ---- quiet ---- */

static uint64_t sum(void)
{
	uint64_t s = 0;

	for (uint64_t i = 0; i < c.n_pages * PAGE_WORDS; i++)
		s = (s << 1 | s >> 63) + load(c.page + 8 * i);
	return s;
}

static void be_quiet(struct cpu *self, struct round *r)
{
	struct timer t = timer_start(arg_or(MB_SPLASH_ARG_PHASE_MS, PHASE_MS));
	uint64_t first = sum(), now;

	r->test = LITMUS_QUIET;
	do {
		now = sum();
		litmus_did(r, 1);
		if (now != first)
			litmus_forbidden(r, LITMUS_QUIET, "memory changes");
	} while (!timer_over(&t));
	c.own[self->index].sum = first;
	barrier(self);
	if (first != c.own[(self->index + 1) % guest.n].sum)
		litmus_forbidden(r, LITMUS_QUIET, "vCPU %u sees another memory",
			(self->index + 1) % guest.n);
	c.n_quiet += !self->index;
}

/* ---- the run ---- */

/* vCPU 0, for all. What is forbidden ends the run. */
static void choose_mode(struct timer *t, struct timer *phase)
{
	if (timer_over(t) || __atomic_load_n(&c.n_said, __ATOMIC_RELAXED)) {
		c.mode = OVER;
	} else if (timer_over(phase)) {
		c.mode = c.mode == QUIET ? ROUND : QUIET;
		*phase = timer_start(arg_or(MB_SPLASH_ARG_PHASE_MS, PHASE_MS));
	}
}

static void run(struct cpu *self)
{
	struct timer t, phase = {0};
	uint64_t number = 0;
	struct round r;

	for (uint64_t p = part(c.n_pages, self->index, guest.n);
		p < part(c.n_pages, self->index + 1, guest.n); p++) {
		memset(c.page + p * PAGE_BYTES, 0, PAGE_BYTES);
		litmus_code_fill(c.page + p * PAGE_BYTES);
	}
	measure_begin(self);
	t = run_timer(self);
	for (;;) {
		bool has_part = make_round(self, number, &r);

		if (has_part)
			read_ahead(&r);
		if (!self->index)
			choose_mode(&t, &phase);
		barrier(self);
		if (c.mode == OVER)
			break;
		if (c.mode == QUIET) {
			be_quiet(self, &r);
			continue;
		}
		if (has_part)
			do_round(&r);
		barrier(self);
		if (has_part)
			check_round(&r);
		c.n_rounds += !self->index;
		number++;
	}
	self->cycles = timer_cycles(&t);
	measure_end(self);
}

static uint64_t total(size_t offset, unsigned test)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < guest.n; i++)
		n += ((const uint64_t *)((const char *)&c.own[i] + offset))[test];
	return n;
}

static void check(void)
{
	uint64_t forbidden = 0;
	char count[24], note[64];

	for (unsigned t = 0; t < N_LITMUS; t++) {
		uint64_t may = total(offsetof(struct own, may), t);
		uint64_t bad = total(offsetof(struct own, forbidden), t);

		format_count(count, sizeof(count), total(offsetof(struct own, did), t));
		note[0] = '\0';
		if (may || t == LITMUS_SB_BARE || t == LITMUS_STORE)
			format(note, sizeof(note), "; %lu %s, which is allowed", may,
				t == LITMUS_STORE ? "in halves" : "with both before");
		if (t == LITMUS_WIDE && !c.has_wide)
			format(note, sizeof(note), "; this processor has none");
		say("splash: litmus: %-24s %8s iterations, %lu forbidden%s", texts[t], count, bad,
			note);
		forbidden += bad;
	}
	if (forbidden)
		fail("%lu forbidden outcomes in %lu rounds", forbidden, c.n_rounds);
	format(guest.note, sizeof(guest.note),
		"%lu rounds, %lu quiet phases: nothing forbidden was seen", c.n_rounds, c.n_quiet);
}

const struct program program_litmus = {
	PROGRAM_HEAD(litmus), .unit = " iterations", .setup = setup, .run = run, .check = check};
