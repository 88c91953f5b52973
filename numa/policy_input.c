// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "policy_internal.h"

#define LOCAL_DISTANCE	 10u
#define UNKNOWN_DISTANCE 20u
#define UNREACHABLE	 255u
#define MOST_TOUCHES	 1000.0 /* a second: more than the tracker can see is not a number to trust */
#define WHOLE		 0.999 /* a share that is all of it */

int mb_policy_find_node(const struct mb_policy_host *host, int id)
{
	for (unsigned i = 0; id >= 0 && i < host->n_nodes; i++)
		if (host->node[i].id == id)
			return (int)i;
	return -1;
}

static unsigned distance(const struct mb_policy_host *host, unsigned from, unsigned to)
{
	unsigned d = host->node[from].distance[to];

	if (from == to)
		return LOCAL_DISTANCE;
	return d < LOCAL_DISTANCE ? UNKNOWN_DISTANCE : d < UNREACHABLE ? d : UNREACHABLE;
}

static void read_view(struct work *w, unsigned v)
{
	const float *weight = w->input->view[v].weight;
	double sum = 0;

	for (unsigned i = 0; i < w->n_nodes; i++)
		if (isfinite(weight[i]) && weight[i] > 0)
			sum += (double)weight[i];
	for (unsigned i = 0; i < w->n_nodes && sum > 0; i++) {
		double part = isfinite(weight[i]) && weight[i] > 0 ? (double)weight[i] / sum : 0;

		w->weight[v][i] = part;
		for (unsigned to = 0; to < w->n_nodes && part > 0; to++) {
			unsigned d = distance(w->host, i, to);
			double ns = part * w->config->local_ns * d / LOCAL_DISTANCE;

			w->home_ns[v][to] += ns;
			w->target_ns[v][to] += d < UNREACHABLE ? ns : (double)INFINITY;
		}
	}
}

/* ---- units and parts ---- */

struct reader {
	const struct mb_policy *policy;
	struct work *w;
	unsigned room_units;
	int rc;
	/* Parts of one huge page that several extents have, until it is over. */
	uint64_t block, block_bytes;
	struct part pending[MB_HEAT_BLOCK_PAGES];
	unsigned n_pending;
};

static struct unit *new_unit(struct reader *r)
{
	struct work *w = r->w;

	if (w->n_units == r->room_units) {
		unsigned room = r->room_units ? 2 * r->room_units : 256;
		struct unit *more = reallocarray(w->unit, room, sizeof(*more));

		if (!more) {
			r->rc = -ENOMEM;
			return NULL;
		}
		w->unit = more;
		r->room_units = room;
	}
	w->unit[w->n_units] = (struct unit){.node = -1, .target = -1, .first_target = -1};
	return &w->unit[w->n_units++];
}

static void add_part(struct reader *r, struct part part)
{
	struct work *w = r->w;

	if (w->n_parts == w->room_parts) {
		unsigned room = w->room_parts ? 2 * w->room_parts : 256;
		struct part *more = reallocarray(w->part, room, sizeof(*more));

		if (!more) {
			r->rc = -ENOMEM;
			return;
		}
		w->part = more;
		w->room_parts = room;
	}
	w->part[w->n_parts++] = part;
}

static void add_odd(struct reader *r, uint64_t offset, uint64_t len, unsigned extent)
{
	struct unit *u = new_unit(r);

	if (!u)
		return;
	u->odd = true;
	u->offset = offset;
	u->len_bytes = len;
	add_part(r, (struct part){offset, len, extent, r->w->n_units - 1});
}

static double touches(float rate)
{
	return rate > 0 ? fmin((double)rate, MOST_TOUCHES) : 0; /* not a number: 0 */
}

/* Adds what is known of the extent to the unit, for so many bytes of it. */
static void add_heat(const struct work *w, struct unit *u, const struct mb_extent *e, uint64_t len,
	bool whole_block)
{
	double n = (double)len / (double)(whole_block ? MB_HEAT_BLOCK_BYTES : MB_HEAT_PAGE_BYTES);
	double worth =
		whole_block ? w->config->block_touch_accesses : w->config->page_touch_accesses;
	double all = 0;

	for (unsigned v = 0; v < w->n_views; v++) {
		double read = touches(e->view[v].read), write = touches(e->view[v].write);

		u->read[v] += n * worth * read;
		u->write[v] += n * worth * write;
		u->all_touches += n * (read + write);
		u->write_touches += n * write;
		all += read + write;
	}
	u->touches = fmax(u->touches, all);
	u->confidence = fmax(u->confidence, e->confidence > 0 ? (double)e->confidence : 0);
	u->node = mb_policy_find_node(w->host, e->node);
	u->share = e->node_share > 0 && e->node_share < 1 ? (double)e->node_share : 1;
}

/* The first record that ends behind offset. */
static unsigned find_record(const struct mb_policy *policy, uint64_t offset)
{
	unsigned low = 0, high = policy->n_records;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (policy->record[middle].end <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* What the history has of the unit: the strictest of its records. */
static void add_history(struct reader *r, struct unit *u)
{
	const struct mb_policy *policy = r->policy;
	const struct work *w = r->w;
	int node = -1;

	for (unsigned i = find_record(policy, u->offset);
		i < policy->n_records && policy->record[i].offset < u->offset + u->len_bytes; i++) {
		const struct record *record = &policy->record[i];
		uint64_t next_ns = mb_policy_next_try_ns(w->config, record);
		unsigned moves;

		u->next_try_ns = next_ns > u->next_try_ns ? next_ns : u->next_try_ns;
		if (!record->moves)
			continue;
		moves = mb_policy_moves(w->config, record, w->input->now_ns, &next_ns);
		u->moves = moves > u->moves ? moves : u->moves;
		u->next_ns = next_ns > u->next_ns ? next_ns : u->next_ns;
		node = !u->has_record || node == record->node ? record->node : -1;
		u->has_record = true;
	}
	/* The extent is on several nodes, and this part of it was put somewhere. */
	node = mb_policy_find_node(w->host, node);
	if (u->share < WHOLE && u->has_record && node >= 0) {
		u->node = node;
		u->share = 1;
	}
}

static uint64_t round_down(uint64_t x, uint64_t granule)
{
	return x / granule * granule;
}

static uint64_t round_up(uint64_t x, uint64_t granule)
{
	return x > UINT64_MAX - granule ? UINT64_MAX : (x + granule - 1) / granule * granule;
}

/* One unit of [offset, end) for each record that is in it and for each gap. */
static void add_run(
	struct reader *r, uint64_t offset, uint64_t end, unsigned extent, bool whole, bool split)
{
	const struct mb_extent *e = &r->w->input->extent[extent];
	uint64_t granule = whole ? MB_HEAT_BLOCK_BYTES : MB_HEAT_PAGE_BYTES;

	while (offset < end && !r->rc) {
		unsigned i = find_record(r->policy, offset);
		const struct record *record = &r->policy->record[i];
		uint64_t cut = end;
		struct unit *u = new_unit(r);

		if (!u)
			return;
		if (i < r->policy->n_records) {
			uint64_t begin = round_down(record->offset, granule);

			cut = begin > offset ? begin : round_up(record->end, granule);
			cut = cut < end ? cut : end;
		}
		u->offset = offset;
		u->len_bytes = cut - offset;
		u->granule_bytes = granule;
		u->huge = whole;
		u->split = split;
		add_heat(r->w, u, e, u->len_bytes, whole);
		add_history(r, u);
		add_part(r, (struct part){offset, cut - offset, extent, r->w->n_units - 1});
		offset = cut;
	}
}

#define MOST	    0.5 /* of the accesses to a block */
#define MOST_WRITES 32u /* pages of it that may be written */

/* Of a huge page of which several extents have parts. */
struct block_parts {
	double single;	  /* accesses a second to parts that have one user */
	double copies_ns; /* what copies of the others would cost, each by itself */
	uint64_t written; /* bytes */
};

static void add_to(struct block_parts *parts, const struct work *w, const struct unit *part)
{
	const double cold = w->config->cold_per_s;

	if (part->touches < cold)
		return;
	if (mb_policy_class(w, part) == CLASS_SINGLE)
		parts->single += mb_policy_all_accesses(w, part);
	else
		parts->copies_ns += mb_policy_copy_cost(w, part->len_bytes);
	if (part->write_touches * (double)MB_HEAT_PAGE_BYTES >= cold * (double)part->len_bytes)
		parts->written += part->len_bytes;
}

/*
 * Whether a huge page is taken as a whole although it has parts with a user of their own: because
 * all of it is to get copies, in one piece. Most of its accesses are to what is shared, of which
 * many parts may look like a single view's by chance; it costs no more than copies of parts; and
 * few of its pages are written, each of which would lose its copy.
 */
static bool gets_copies_whole(
	const struct work *w, const struct unit *all, const struct block_parts *parts)
{
	struct unit u = *all;

	return parts->single < MOST * mb_policy_all_accesses(w, all) &&
	       parts->copies_ns >= mb_policy_copy_cost(w, all->len_bytes) &&
	       parts->written <= MOST_WRITES * MB_HEAT_PAGE_BYTES &&
	       mb_policy_decide_unit(w, &u) == MB_WHY_REPLICATE;
}

/*
 * A huge page of which several extents have parts: it moves whole for its one user. If it has none,
 * but parts of it have, then these may move without the rest.
 */
static void end_block(struct reader *r)
{
	struct unit all = {.node = -1, .target = -1, .first_target = -1}, *u;
	const struct mb_extent *extent = r->w->input->extent;
	bool whole = r->block_bytes == MB_HEAT_BLOCK_BYTES;
	struct block_parts parts = {0};
	double confidence = INFINITY;

	all.offset = r->block;
	all.len_bytes = all.granule_bytes = MB_HEAT_BLOCK_BYTES;
	all.huge = all.in_detail = true;
	for (unsigned i = 0; i < r->n_pending; i++) {
		const struct part *p = &r->pending[i];
		struct unit one = {.len_bytes = p->len_bytes};

		add_heat(r->w, &one, &extent[p->extent], p->len_bytes, false);
		add_to(&parts, r->w, &one);
		add_heat(r->w, &all, &extent[p->extent], p->len_bytes, false);
		confidence = fmin(confidence, one.confidence);
	}
	all.confidence = confidence;
	if (whole)
		add_history(r, &all);
	if (whole && (mb_policy_class(r->w, &all) == CLASS_SINGLE || !(parts.single > 0) ||
			     gets_copies_whole(r->w, &all, &parts))) {
		u = new_unit(r);
		if (!u)
			return;
		*u = all;
		for (unsigned i = 0; i < r->n_pending; i++) {
			r->pending[i].unit = r->w->n_units - 1;
			add_part(r, r->pending[i]);
		}
	} else {
		for (unsigned i = 0; i < r->n_pending; i++) {
			const struct part *p = &r->pending[i];

			add_run(r, p->offset, p->offset + p->len_bytes, p->extent, false, whole);
		}
	}
	r->n_pending = 0;
	r->block_bytes = 0;
}

static void add_piece(struct reader *r, uint64_t offset, uint64_t end, unsigned extent)
{
	uint64_t block = round_down(offset, MB_HEAT_BLOCK_BYTES);

	if (r->n_pending && r->block != block)
		end_block(r);
	r->block = block;
	r->block_bytes += end - offset;
	r->pending[r->n_pending++] = (struct part){offset, end - offset, extent, 0};
}

static void add_extent(struct reader *r, uint64_t offset, uint64_t end, unsigned extent)
{
	uint64_t first = round_up(offset, MB_HEAT_BLOCK_BYTES),
		 last = round_down(end, MB_HEAT_BLOCK_BYTES);

	if (!r->w->input->extent[extent].huge) {
		if (r->n_pending)
			end_block(r);
		add_run(r, offset, end, extent, false, false);
		return;
	}
	if (first > last) {
		add_piece(r, offset, end, extent);
		return;
	}
	if (offset < first)
		add_piece(r, offset, first, extent);
	if (first < last) {
		if (r->n_pending)
			end_block(r);
		add_run(r, first, last, extent, true, false);
	}
	if (last < end)
		add_piece(r, last, end, extent);
}

static int by_offset(const void *a, const void *b, void *ctx)
{
	const struct mb_extent *extent = ctx;
	unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;

	if (extent[x].offset != extent[y].offset)
		return extent[x].offset < extent[y].offset ? -1 : 1;
	return x < y ? -1 : x > y;
}

static void read_extents(struct reader *r, const unsigned *order)
{
	const struct mb_policy_input *in = r->w->input;
	uint64_t covered = 0;

	for (unsigned i = 0; i < in->n_extents && !r->rc; i++) {
		const struct mb_extent *e = &in->extent[order[i]];
		uint64_t offset = e->offset, end = e->offset + e->len_bytes;

		if (!e->len_bytes || end < offset || (offset | end) % MB_HEAT_PAGE_BYTES) {
			add_odd(r, offset, e->len_bytes, order[i]);
			continue;
		}
		if (offset < covered) {
			uint64_t twice = end < covered ? end : covered;

			add_odd(r, offset, twice - offset, order[i]);
			offset = twice;
		}
		if (offset < end) {
			add_extent(r, offset, end, order[i]);
			covered = end;
		}
	}
	if (r->n_pending && !r->rc)
		end_block(r);
}

int mb_policy_read(const struct mb_policy *policy, struct work *w)
{
	const struct mb_policy_input *in = w->input;
	unsigned *order = calloc(in->n_extents + 1u, sizeof(*order));
	struct reader *r = calloc(1, sizeof(*r));
	int rc = order && r ? 0 : -ENOMEM;

	for (unsigned v = 0; v < w->n_views; v++)
		read_view(w, v);
	if (!rc) {
		r->policy = policy;
		r->w = w;
		for (unsigned i = 0; i < in->n_extents; i++)
			order[i] = i;
		qsort_r(order, in->n_extents, sizeof(*order), by_offset, (void *)in->extent);
		read_extents(r, order);
		rc = r->rc;
	}
	free(order);
	free(r);
	return rc;
}
