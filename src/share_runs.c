// SPDX-License-Identifier: Apache-2.0
#include "share_runs.h"
#include <errno.h>
#include <stdlib.h>

#define MAX_NEWS    32768u /* runs of pages that nobody has looked at yet: 512 MiB at least, of 16 KiB each */

int mb_runs_create(struct runs *runs)
{
	runs->max = MAX_NEWS;
	runs->run = malloc(runs->max * sizeof(*runs->run));
	return runs->run ? 0 : -ENOMEM;
}

bool mb_runs_add(struct runs *runs, const struct run *run)
{
	struct run *last = runs->n ? &runs->run[runs->n - 1] : NULL;
	uint64_t bytes = last ? last->n_pages * PAGE : 0;

	if (last && last->base == run->base && last->tries == run->tries &&
		last->ram + bytes == run->ram && last->at + bytes == run->at && run->at % PIECE) {
		last->n_pages += run->n_pages;
		return true;
	}
	if (runs->n == runs->max)
		return false;
	runs->run[runs->n++] = *run;
	return true;
}

uint64_t mb_runs_add_by_piece(struct runs *runs, struct run run)
{
	uint64_t end = mb_run_end(&run), next, dropped = 0;

	for (; run.at < end; run.ram += next - run.at, run.at = next) {
		next = mb_end_in_piece(run.at, end);
		run.n_pages = (uint32_t)((next - run.at) / PAGE);
		if (!mb_runs_add(runs, &run))
			dropped += next - run.at;
	}
	return dropped;
}

static int by_base(const void *a, const void *b)
{
	const struct run *one = a, *other = b;

	if (one->base != other->base)
		return one->base < other->base ? -1 : 1;
	if (one->at != other->at)
		return one->at < other->at ? -1 : 1;
	return one->ram < other->ram ? -1 : one->ram > other->ram;
}

void mb_runs_sort(struct runs *runs)
{
	qsort(runs->run, runs->n, sizeof(*runs->run), by_base);
}

bool mb_run_of_whole_pages(uint64_t ram, uint64_t at, uint64_t len, struct run *run)
{
	uint64_t skip = -ram % PAGE;

	if ((ram - at) % PAGE || len < skip + PAGE)
		return false;
	run->ram = ram + skip;
	run->at = at + skip;
	run->n_pages = (uint32_t)((len - skip) / PAGE);
	return true;
}
