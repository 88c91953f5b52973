/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * Memory is split in a part for each vCPU; in phase p, vCPU i uses part (i + p) mod n, alone. A
 * page starts with a stamp of the phase and of who used it, and with the number of additions made
 * to the rest of it, so that the next user can tell whether what it got is what the one before
 * left.
 */
#define BATCH	   64u
#define STAMP_WORD 0u
#define COUNT_WORD 1u
#define FIRST_WORD 2u
#define SAMPLE_PAGES                                                                               \
	32u /* whose additions are counted when a part changes hands; all are at the end */

static uint64_t *area;
static uint64_t n_pages;
static uint64_t phase_ms;
static uint32_t n_phases;
static uint32_t more;

static void setup(void)
{
	uint64_t bytes = arg_size(16 << 20, PAGE_BYTES, guest.n * PAGE_BYTES, 0);

	area = memory_take(bytes, PAGE_BYTES);
	n_pages = bytes / PAGE_BYTES;
	phase_ms = MAX(arg_or(MB_SPLASH_ARG_PHASE_MS, 50), 1);
	n_phases = 0;
}

static uint64_t stamp(uint64_t page, uint64_t phase, uint64_t owner)
{
	return mix(page << 32 ^ phase << 12 ^ owner);
}

static void check_count(const uint64_t *page)
{
	uint64_t sum = 0;

	for (unsigned w = FIRST_WORD; w < PAGE_WORDS; w++)
		sum += page[w];
	if (sum != page[COUNT_WORD])
		fail("page at GPA 0x%lx: %lu additions were made, it says %lu", memory_gpa(page),
			page[COUNT_WORD], sum);
}

struct slice {
	uint64_t begin, end;
};

static void take_over(struct cpu *self, const struct slice *mine, uint64_t phase)
{
	uint64_t before = (self->index + 1) % guest.n;

	for (uint64_t p = mine->begin; p < mine->end; p++) {
		uint64_t *page = area + p * PAGE_WORDS;

		if (phase && page[STAMP_WORD] != stamp(p, phase - 1, before))
			fail("phase %lu: page at GPA 0x%lx is not as vCPU %lu left it", phase,
				memory_gpa(page), before);
		if (!phase)
			memset(page, 0, PAGE_BYTES);
		page[STAMP_WORD] = stamp(p, phase, self->index);
	}
	for (unsigned i = 0; phase && i < SAMPLE_PAGES; i++)
		check_count(area +
			    (mine->begin + rnd_below(self, mine->end - mine->begin)) * PAGE_WORDS);
}

static void use(struct cpu *self, const struct slice *mine)
{
	struct timer t = timer_start(phase_ms);

	do {
		for (unsigned i = 0; i < BATCH; i++) {
			uint64_t r = rnd(self);
			uint64_t p = mine->begin + scale(r, mine->end - mine->begin);
			unsigned w =
				FIRST_WORD + (unsigned)(r & 0xffffff) % (PAGE_WORDS - FIRST_WORD);
			uint64_t *page = area + p * PAGE_WORDS;

			page[w]++;
			page[COUNT_WORD]++;
		}
		self->ops += BATCH;
	} while (!timer_over(&t));
	self->cycles += timer_cycles(&t);
}

static void run(struct cpu *self)
{
	struct timer whole;
	struct slice mine;
	bool go_on = true;

	measure_begin(self);
	whole = run_timer(self);
	for (uint64_t phase = 0; go_on; phase++) {
		unsigned which = (unsigned)((self->index + phase) % guest.n);

		mine.begin = part(n_pages, which, guest.n);
		mine.end = part(n_pages, which + 1, guest.n);
		take_over(self, &mine, phase);
		use(self, &mine);
		if (!self->index) {
			n_phases = (uint32_t)phase + 1;
			__atomic_store_n(&more, !timer_over(&whole), __ATOMIC_RELAXED);
		}
		barrier(self);
		go_on = more;
		/* Nobody may go round and set it again before everybody has seen it. */
		barrier(self);
	}
	measure_end(self);
	for (uint64_t p = mine.begin; p < mine.end; p++)
		check_count(area + p * PAGE_WORDS);
}

static void check(void)
{
	char size[24];

	format_bytes(size, sizeof(size), n_pages * PAGE_BYTES);
	format(guest.note, sizeof(guest.note), "%u phases over %s, every change of hands right",
		n_phases, size);
}

const struct program program_phase = {
	PROGRAM_HEAD(phase), .unit = " adds", .setup = setup, .run = run, .check = check};
