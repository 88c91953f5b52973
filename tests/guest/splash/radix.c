/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * Parallel radix sort, least significant digit first, of random 32-bit keys. A pass over one digit:
 *
 *   1. each vCPU counts the digits of its part of the keys                         barrier
 *   2. the digits are split: for its digits, a vCPU turns the counts of all vCPUs into
 *      offsets inside the digit, and leaves the digit's total                       barrier
 *   3. each vCPU adds up the totals of the smaller digits and moves its keys         barrier
 *
 * which keeps equal digits in order, vCPU after vCPU.
 */
#define DIGIT_BITS 8
#define N_DIGITS   256u
#define N_PASSES   4

static uint32_t *keys[2];
static uint64_t n_keys;
static uint64_t (*offsets)[N_DIGITS]; /* [vCPU][digit] */
static uint64_t totals[N_DIGITS];
static uint32_t rounds; /* written by vCPU 0 between barriers */
static uint32_t more;

static void setup(void)
{
	uint64_t tables = guest.n * sizeof(*offsets) + PAGE_BYTES;
	uint64_t room = memory_free() > tables ? memory_free() - tables : 0;
	uint64_t least = guest.n;

	n_keys = arg_or(MB_SPLASH_ARG_KEYS, MAX(MIN(1 << 20, room / 8), least));
	if (n_keys < least || n_keys > UINT64_MAX / 8)
		usage_error("keys= must be at least the number of vCPUs, %lu", least);
	offsets = memory_take(guest.n * sizeof(*offsets), CACHE_LINE);
	keys[0] = memory_take(n_keys * 4, CACHE_LINE);
	keys[1] = memory_take(n_keys * 4, CACHE_LINE);
	rounds = 0;
}

struct slice {
	uint64_t begin, end;
};

static void sort_pass(struct cpu *self, const struct slice *mine, unsigned pass)
{
	const uint32_t *from = keys[pass & 1];
	uint32_t *to = keys[~pass & 1];
	unsigned shift = pass * DIGIT_BITS;
	uint64_t *my = offsets[self->index];
	uint64_t base = 0;

	memset(my, 0, sizeof(*offsets));
	for (uint64_t i = mine->begin; i < mine->end; i++)
		my[from[i] >> shift & (N_DIGITS - 1)]++;
	barrier(self);
	for (uint64_t d = part(N_DIGITS, self->index, guest.n);
		d < part(N_DIGITS, self->index + 1, guest.n); d++) {
		uint64_t sum = 0;

		for (unsigned c = 0; c < guest.n; c++) {
			uint64_t count = offsets[c][d];

			offsets[c][d] = sum;
			sum += count;
		}
		totals[d] = sum;
	}
	barrier(self);
	for (unsigned d = 0; d < N_DIGITS; d++) {
		my[d] += base;
		base += totals[d];
	}
	for (uint64_t i = mine->begin; i < mine->end; i++) {
		uint64_t to_index = my[from[i] >> shift & (N_DIGITS - 1)]++;

		/* A count that memory lost would send the key anywhere. */
		if (to_index >= n_keys)
			fail("vCPU %u: pass %u sends key %lu to place %lu of %lu", self->index,
				pass, i, to_index, n_keys);
		to[to_index] = from[i];
	}
	barrier(self);
}

static void check_order(struct cpu *self, const struct slice *mine)
{
	const uint32_t *k = keys[0];

	for (uint64_t i = mine->begin; i < mine->end; i++) {
		self->tally[2] += k[i];
		self->tally[3] ^= mix(k[i]);
		if (i && k[i - 1] > k[i])
			fail("keys %lu and %lu are out of order: 0x%x, 0x%x", i - 1, i, k[i - 1],
				k[i]);
	}
}

static void check_sums(void)
{
	uint64_t sum[4] = {0};

	for (unsigned i = 0; i < guest.n; i++) {
		sum[0] += cpu_at(i)->tally[0];
		sum[1] ^= cpu_at(i)->tally[1];
		sum[2] += cpu_at(i)->tally[2];
		sum[3] ^= cpu_at(i)->tally[3];
	}
	if (sum[0] != sum[2] || sum[1] != sum[3])
		fail("round %u: the sorted keys are not those that went in (sums 0x%lx and 0x%lx)",
			rounds, sum[0], sum[2]);
}

static void run(struct cpu *self)
{
	struct timer whole, t;
	struct slice mine = {
		part(n_keys, self->index, guest.n), part(n_keys, self->index + 1, guest.n)};
	bool go_on = true;

	measure_begin(self);
	whole = run_timer(self);
	while (go_on) {
		memset(self->tally, 0, sizeof(self->tally));
		for (uint64_t i = mine.begin; i < mine.end; i++) {
			uint32_t key = (uint32_t)rnd(self);

			keys[0][i] = key;
			self->tally[0] += key;
			self->tally[1] ^= mix(key);
		}
		barrier(self);
		t = timer_start(0);
		for (unsigned pass = 0; pass < N_PASSES; pass++)
			sort_pass(self, &mine, pass);
		self->cycles += timer_cycles(&t);
		self->ops += mine.end - mine.begin;
		check_order(self, &mine);
		barrier(self);
		if (!self->index) {
			check_sums();
			rounds++;
			more = !timer_over(&whole);
		}
		barrier(self);
		go_on = more;
	}
	measure_end(self);
}

static void check(void)
{
	format(guest.note, sizeof(guest.note), "%u sorts of %lu keys, order and sums right", rounds,
		n_keys);
}

const struct program program_radix = {
	PROGRAM_HEAD(radix), .unit = " keys", .setup = setup, .run = run, .check = check};
