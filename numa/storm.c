// SPDX-License-Identifier: Apache-2.0
#include "storm.h"

#include "heat_internal.h"

#define PAGE  MB_HEAT_PAGE_BYTES
#define BLOCK MB_HEAT_BLOCK_BYTES
/* Little at a time, and often: where processors are short, a small page may take milliseconds. */
#define MOST_PAGES  64u
#define MOST_BLOCKS 4u
#define PERIOD_NS   (1000000000ull / MB_STORM_TIMES)

uint64_t mb_storm_rest_ns(uint64_t copying_ns)
{
	return copying_ns > PERIOD_NS ? copying_ns : PERIOD_NS;
}

struct mb_move mb_storm_move(uint32_t seed, uint64_t ram_bytes, const struct mb_policy_host *host)
{
	uint32_t kind = mb_heat_mix(seed), place = mb_heat_mix(~kind), size = mb_heat_mix(~place);
	uint32_t node = mb_heat_mix(~size);
	/* Mostly true where blocks are huge. Page by page they move as well, but slowly. */
	struct mb_move move = {.huge = kind & 3};
	unsigned usable[MB_MAX_NODES], n = 0;

	for (unsigned i = 0; i < host->n_nodes; i++)
		if (host->node[i].usable)
			usable[n++] = (unsigned)host->node[i].id;
	if (!n)
		return move;
	move.node = usable[node % n];
	switch (kind >> 2 & 7) {
	case 0:
	case 1: /* pages, which may lie in two blocks; with the rest of a huge page, or without */
		move.split = kind >> 2 & 1;
		move.offset = place % (ram_bytes / PAGE) * PAGE;
		move.len_bytes = (1 + size % MOST_PAGES) * PAGE;
		break;
	case 2: /* several blocks */
		move.offset = place % (ram_bytes / BLOCK) * BLOCK;
		move.len_bytes = (1 + size % MOST_BLOCKS) * BLOCK;
		break;
	default:
		move.offset = place % (ram_bytes / BLOCK) * BLOCK;
		move.len_bytes = BLOCK;
	}
	if (move.len_bytes > ram_bytes - move.offset)
		move.len_bytes = ram_bytes - move.offset;
	return move;
}
