/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/* readshare, writeshare and private: the three simple ways in which vCPUs use memory. */
#define BATCH 64u /* operations between two looks at the clock */

static uint64_t *area;
static uint64_t n_words;

static void take_area(uint64_t otherwise, uint64_t least)
{
	uint64_t bytes = arg_size(otherwise, PAGE_BYTES, least, 0);

	area = memory_take(bytes, PAGE_BYTES);
	n_words = bytes / 8;
}

static void note_area(const char *what)
{
	char size[24];

	format_bytes(size, sizeof(size), n_words * 8);
	format(guest.note, sizeof(guest.note), "%s %s", size, what);
}

/* A table that everybody reads. Each read's place depends on the one before, as in a pointer chase.
 */

static void readshare_setup(void)
{
	take_area(16 << 20, PAGE_BYTES);
}

static void readshare_run(struct cpu *self)
{
	uint64_t seed = guest.args.value[MB_SPLASH_ARG_SEED];
	uint64_t at = rnd(self), bad = 0;
	struct timer t;

	for (uint64_t i = part(n_words, self->index, guest.n);
		i < part(n_words, self->index + 1, guest.n); i++)
		area[i] = mix(i ^ seed);
	measure_begin(self);
	t = run_timer(self);
	do {
		for (unsigned i = 0; i < BATCH; i++) {
			uint64_t index = scale(at, n_words);
			uint64_t value = __atomic_load_n(&area[index], __ATOMIC_RELAXED);

			bad |= value ^ mix(index ^ seed);
			at = value + at * 0x2545f4914f6cdd1dull;
		}
		self->ops += BATCH;
		if (bad)
			fail("vCPU %u read a wrong value from the table", self->index);
	} while (!timer_over(&t));
	self->cycles = timer_cycles(&t);
	measure_end(self);
}

static void readshare_check(void)
{
	note_area("of table, every read right");
}

const struct program program_readshare = {PROGRAM_HEAD(readshare), .unit = " reads",
	.setup = readshare_setup, .run = readshare_run, .check = readshare_check};

/* Counters that everybody adds to. */

static void writeshare_setup(void)
{
	take_area(64 << 10, PAGE_BYTES);
	for (uint64_t i = 0; i < n_words; i++)
		area[i] = 0;
}

static void writeshare_run(struct cpu *self)
{
	struct timer t;

	measure_begin(self);
	t = run_timer(self);
	do {
		for (unsigned i = 0; i < BATCH; i++)
			__atomic_fetch_add(&area[rnd_below(self, n_words)], 1, __ATOMIC_RELAXED);
		self->ops += BATCH;
	} while (!timer_over(&t));
	self->cycles = timer_cycles(&t);
	measure_end(self);
}

static void writeshare_check(void)
{
	uint64_t total = 0, done = 0;

	for (uint64_t i = 0; i < n_words; i++)
		total += area[i];
	for (unsigned i = 0; i < guest.n; i++)
		done += cpu_at(i)->ops;
	if (total != done)
		fail("%lu additions were made, the counters say %lu", done, total);
	note_area("of counters, none lost");
}

const struct program program_writeshare = {PROGRAM_HEAD(writeshare), .unit = " adds",
	.setup = writeshare_setup, .run = writeshare_run, .check = writeshare_check};

/* Memory of one's own, word after word: read, compare, write. */

static void private_setup(void)
{
	take_area(64 << 20, guest.n * PAGE_BYTES);
}

static void private_run(struct cpu *self)
{
	uint64_t n_pages = n_words / PAGE_WORDS;
	uint64_t *begin = area + part(n_pages, self->index, guest.n) * PAGE_WORDS;
	uint64_t *stop = area + part(n_pages, self->index + 1, guest.n) * PAGE_WORDS;
	uint64_t tag = mix(self->index + 1), pass = 0;
	struct timer t;
	bool over = false;

	for (uint64_t *p = begin; p < stop; p++)
		*p = tag;
	measure_begin(self);
	t = run_timer(self);
	while (!over) {
		uint64_t *p = begin;

		while (p < stop && !over) {
			uint64_t *page_end = p + PAGE_WORDS;
			uint64_t bad = 0;

			for (; p < page_end; p++) {
				bad |= *p ^ (tag + pass);
				*p = tag + pass + 1;
			}
			if (bad)
				fail("vCPU %u: its page at GPA 0x%lx is not as it left it in pass "
				     "%lu",
					self->index, memory_gpa(page_end - PAGE_WORDS), pass);
			self->ops += PAGE_BYTES;
			over = timer_over(&t);
		}
		pass++;
	}
	self->cycles = timer_cycles(&t);
	measure_end(self);
}

static void private_check(void)
{
	note_area("read and written, every word right");
}

const struct program program_private = {PROGRAM_HEAD(private), .unit = " B", .setup = private_setup,
	.run = private_run, .check = private_check};
