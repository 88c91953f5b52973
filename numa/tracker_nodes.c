// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <numaif.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tracker_internal.h"

/*
 * Where memory lives. move_pages(2) without nodes tells it of pages that are in the page tables of
 * the mapping that is asked; a page need not be in those of any view just now. A view that has a
 * copy of a page would tell where that is.
 */
#define PROBES	4u  /* pages of an extent that are asked for */
#define EXTENTS 64u /* with one system call */
#define NO_VIEW MB_HEAT_VIEWS

static uint64_t probe_offset(const struct mb_extent *e, unsigned i)
{
	return e->offset + i % PROBES * (e->len_bytes / PROBES & ~(MB_HEAT_PAGE_BYTES - 1));
}

static bool has_copy(const struct mb_tracker *t, unsigned view, uint64_t offset)
{
	return view != NO_VIEW && t->config.copied &&
	       t->config.copied(t->config.ctx, offset, MB_HEAT_PAGE_BYTES, view) > 0;
}

/* Fills in what is not known yet, by a view or, NO_VIEW, the monitor's own mapping. */
static int ask(const struct mb_tracker *t, unsigned view, const struct mb_extent *extent,
	unsigned n, int *node)
{
	char *base = view == NO_VIEW ? t->config.own_base : t->config.view_base[view];
	void *page[EXTENTS * PROBES];
	int status[EXTENTS * PROBES];

	for (unsigned i = 0; i < n * PROBES; i++) {
		page[i] = base + probe_offset(&extent[i / PROBES], i);
		status[i] = -ENOENT;
	}
	if (move_pages(0, n * PROBES, page, NULL, status, 0))
		return -errno;
	for (unsigned i = 0; i < n * PROBES; i++)
		if (node[i] < 0 && status[i] >= 0 &&
			!has_copy(t, view, probe_offset(&extent[i / PROBES], i)))
			node[i] = status[i];
	return 0;
}

/* Maps in the monitor's own mapping what no view has mapped, if it is in memory: a hole stays one.
 */
static void map_unknown(
	const struct mb_tracker *t, const struct mb_extent *extent, unsigned n, const int *node)
{
	for (unsigned i = 0; i < n * PROBES; i++) {
		uint64_t offset = probe_offset(&extent[i / PROBES], i);

		if (i % PROBES && extent[i / PROBES].len_bytes < PROBES * MB_HEAT_PAGE_BYTES)
			continue; /* its first page is enough */
		if (node[i] < 0 &&
			lseek(t->config.ram_fd, (off_t)offset, SEEK_DATA) == (off_t)offset)
			madvise((char *)t->config.own_base + offset, MB_HEAT_PAGE_BYTES,
				MADV_POPULATE_READ);
	}
}

static void decide(struct mb_extent *e, const int *node)
{
	unsigned best = 0, known = 0;

	for (unsigned a = 0; a < PROBES; a++) {
		unsigned same = 0;

		known += node[a] >= 0;
		for (unsigned b = 0; b < PROBES && node[a] >= 0; b++)
			same += node[b] == node[a];
		if (same > best) {
			best = same;
			e->node = node[a];
		}
	}
	e->node_share = known ? (float)best / (float)known : 0;
}

void mb_tracker_find_nodes(const struct mb_tracker *t, struct mb_extent *extent, unsigned n)
{
	for (unsigned first = 0; first < n; first += EXTENTS) {
		unsigned some = n - first < EXTENTS ? n - first : EXTENTS;
		int node[EXTENTS * PROBES];

		memset(node, -1, sizeof(node));
		/* A kernel without NUMA says no. */
		for (unsigned v = 0; v < t->config.n_views; v++)
			if (ask(t, v, extent + first, some, node))
				return;
		if (t->config.own_base) {
			map_unknown(t, extent + first, some, node);
			ask(t, NO_VIEW, extent + first, some, node);
		}
		for (unsigned i = 0; i < some; i++)
			decide(&extent[first + i], node + i * PROBES);
	}
}
