/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * A known number of accesses: in each round a vCPU loads from every line of its part of memory and
 * then stores to every line of it, in order, once. What else it accesses meanwhile is a few lines
 * of the barrier.
 */
#define LINE_WORDS (CACHE_LINE / 8)

static volatile uint64_t *area;
static uint64_t n_lines, n_rounds;

static void setup(void)
{
	uint64_t bytes = arg_size(8 << 20, PAGE_BYTES, guest.n * PAGE_BYTES, 0);

	area = memory_take(bytes, PAGE_BYTES);
	n_lines = bytes / CACHE_LINE;
	n_rounds = arg_or(MB_SPLASH_ARG_ROUNDS, 4);
}

static void run(struct cpu *self)
{
	uint64_t first = part(n_lines, self->index, guest.n);
	uint64_t stop = part(n_lines, self->index + 1, guest.n);
	struct timer t;

	for (uint64_t i = first; i < stop; i++)
		area[i * LINE_WORDS] = mix(i);
	measure_begin(self);
	t = timer_start(0);
	for (uint64_t round = 0; round < n_rounds; round++) {
		uint64_t bad = 0;

		for (uint64_t i = first; i < stop; i++)
			bad |= area[i * LINE_WORDS] - mix(i) - round;
		for (uint64_t i = first; i < stop; i++)
			area[i * LINE_WORDS] = mix(i) + round + 1;
		if (bad)
			fail("vCPU %u: a line is not as it left it in round %lu", self->index, round);
	}
	self->cycles = timer_cycles(&t);
	self->ops = 2 * n_rounds * (stop - first);
	measure_end(self);
}

static void check(void)
{
	format(guest.note, sizeof(guest.note), "%lu loads and as many stores, every line right",
		n_rounds * n_lines);
}

const struct program program_walk = {
	PROGRAM_HEAD(walk), .unit = " accesses", .setup = setup, .run = run, .check = check};
