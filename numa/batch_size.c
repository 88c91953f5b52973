// SPDX-License-Identifier: Apache-2.0
#include "batch_size.h"

#include <mirrorball/mover.h>

#define LEAST	   16u
#define LONG_NS	   50000000ull
#define LONGEST_NS 1000000000ull /* whatever a call costs */
#define CALLS	   4u		 /* as long as so many of hardly any page is long */

static uint64_t long_ns(const struct mb_batch_size *size)
{
	uint64_t calls_ns = CALLS * size->call_ns;

	if (calls_ns < LONG_NS)
		return LONG_NS;
	return calls_ns < LONGEST_NS ? calls_ns : LONGEST_NS;
}

void mb_batch_size_note(struct mb_batch_size *size, unsigned n_pages, uint64_t took_ns)
{
	if (n_pages <= LEAST)
		size->call_ns = took_ns;
	if (took_ns > long_ns(size) && size->pages > LEAST)
		size->pages /= 2;
	else if (took_ns < long_ns(size) / 2 && size->pages < MB_MOVER_BATCH_PAGES)
		size->pages *= 2;
}
