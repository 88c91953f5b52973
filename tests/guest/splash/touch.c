/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * First touch: each vCPU writes one word of every page of its part, and then looks at its
 * neighbour's part. Memory that nobody wrote must read as zero, where no firmware ran before us.
 */
#define STAMP_WORD 1u
#define ZERO_WORD  511u

static uint64_t *area;
static uint64_t n_pages;

static void setup(void)
{
	uint64_t bytes = arg_size(64 << 20, PAGE_BYTES, guest.n * PAGE_BYTES, 0);

	area = memory_take(bytes, PAGE_BYTES);
	n_pages = bytes / PAGE_BYTES;
}

static void run(struct cpu *self)
{
	uint64_t first = part(n_pages, self->index, guest.n);
	uint64_t end_page = part(n_pages, self->index + 1, guest.n);
	struct timer t;

	measure_begin(self);
	t = timer_start(0);
	for (uint64_t p = first; p < end_page; p++)
		area[p * PAGE_WORDS + STAMP_WORD] = mix(p + 1);
	self->ops = end_page - first;
	self->cycles = timer_cycles(&t);
	measure_end(self);
	first = part(n_pages, (self->index + 1) % guest.n, guest.n);
	end_page = part(n_pages, (self->index + 1) % guest.n + 1, guest.n);
	for (uint64_t p = first; p < end_page; p++) {
		uint64_t *page = area + p * PAGE_WORDS;

		if (page[STAMP_WORD] != mix(p + 1))
			fail("page at GPA 0x%lx: read 0x%lx where 0x%lx was written",
				memory_gpa(page), page[STAMP_WORD], mix(p + 1));
		if (!pvh_started && (page[0] || page[ZERO_WORD]))
			fail("page at GPA 0x%lx is not zero where nobody wrote", memory_gpa(page));
	}
}

static void check(void)
{
	char size[24];

	format_bytes(size, sizeof(size), n_pages * PAGE_BYTES);
	format(guest.note, sizeof(guest.note), "%s touched and found right afterwards", size);
}

const struct program program_touch = {
	PROGRAM_HEAD(touch), .unit = " pages", .setup = setup, .run = run, .check = check};
