// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heat_internal.h"

#define MAX_REGIONS    4096u
#define MAX_DETAILS    256u
#define PROBE_WINDOW   1u /* of those whose own is PROBED_FROM or longer */
#define PROBED_FROM    2u
#define HITS	       2u  /* probes in a row that found it in use: it is */
#define PROBES	       3u  /* between two windows of its own */
#define FIRST_REGIONS  64u /* how many there are to begin with, at least */

#define NEW_SHARE_PART 0.3f   /* of one that saw a part of the half only */
#define NEW_SHARE_NEXT 0.75f  /* of one that saw another user */
#define FORGETS_WRITES 0.125f /* of the share */
#define SURE	       1.5f   /* samples: more than one */
#define UNEVEN	       0.05f  /* variance between blocks that is worth a closer look */
#define ALL	       0.99f  /* touched in every window: a much shorter one tells more */
#define USED	       0.3f   /* a view that uses a block, for a zoom */
#define HOTTER	       1.5f   /* times: such blocks are looked into before this one */

/* Periods between looks, in windows; and how long a try that found nothing is not repeated. */
#define PERIOD	      8u
#define PERIOD_SOON   2u
#define PERIOD_MIN_NS 100000000ull
#define SOON_MIN_NS   20000000ull
#define PART_NS	      1000000000ull /* a region of which a run is a part: as often as that, at least */
/* Looks at a block whose pages differ, of which one is through the longest window. */
#define SLOW_EVERY	  4u
#define SLOW_EVERY_ZOOMED 2u
#define DETAILED_NS	  1000000000ull /* of the whole of a huge page whose pages are known */
#define UNEVEN_NS	  60000000000ull
#define UNUSED_NS	  4000000000ull
#define FRESH_NS	  10000000000ull /* what was seen so long ago takes no turn of another's */
#define BACKOFF_MIN_NS	  10000000000ull

#define AGE_HALF_NS	  30e9f

const uint64_t mb_heat_window_ns[MB_HEAT_WINDOWS] = {
	MB_HEAT_WINDOW_MIN_NS, 30000000, 100000000, 300000000, MB_HEAT_WINDOW_MAX_NS};

/* ---- what is known of something: chances that a page is touched, written in a window ---- */

/* The same rate seen through another window. */
static float through_window(float p, unsigned from, unsigned to)
{
	float scale = (float)mb_heat_window_ns[to] / (float)mb_heat_window_ns[from];

	return from == to || p <= 0 ? p : 1 - powf(1 - fminf(p, 0.99f), scale);
}

void mb_heat_know_through(struct known *known, unsigned n_views, unsigned from, unsigned to)
{
	for (unsigned v = 0; v < n_views; v++) {
		known->touch[v] = through_window(known->touch[v], from, to);
		known->write[v] = through_window(known->write[v], from, to);
	}
}

float mb_heat_max_touch(const struct known *known, unsigned n_views)
{
	float most = 0;

	for (unsigned v = 0; v < n_views; v++)
		most = fmaxf(most, known->touch[v]);
	return most;
}

float mb_heat_difference(const struct known *a, const struct known *b, unsigned n_views)
{
	float most = 0;

	for (unsigned v = 0; v < n_views; v++) {
		most = fmaxf(most, fabsf(a->touch[v] - b->touch[v]));
		most = fmaxf(most, fabsf(a->write[v] - b->write[v]));
	}
	return most;
}

/* Of both halves of a region; a single block has one. */
struct known mb_heat_known(const struct mb_heat_map *map, const struct region *r)
{
	struct known both = r->half[0];

	if (r->n == 1 || !r->half[1].samples)
		return both;
	if (!r->half[0].samples)
		return r->half[1];
	for (unsigned v = 0; v < map->n_views; v++) {
		both.touch[v] = (r->half[0].touch[v] + r->half[1].touch[v]) / 2;
		both.write[v] = (r->half[0].write[v] + r->half[1].write[v]) / 2;
	}
	both.samples = fminf(r->half[0].samples, r->half[1].samples);
	return both;
}

float mb_heat_confidence(float samples, uint64_t age_ns)
{
	return samples / (samples + 1) * exp2f(-(float)age_ns / AGE_HALF_NS);
}

/* ---- the map ---- */

struct region *mb_heat_new_region(uint64_t first, uint64_t n)
{
	struct region *r = calloc(1, sizeof(*r));

	if (r) {
		r->first = first;
		r->n = n;
		r->window = MB_HEAT_WINDOWS / 2;
		r->split_wait_ns = r->zoom_wait_ns = BACKOFF_MIN_NS;
	}
	return r;
}

void mb_heat_free_region(struct mb_heat_map *map, struct region *r)
{
	mb_heat_drop_detail(map, r);
	free(r);
}

int mb_heat_create(const struct mb_heat_config *config, struct mb_heat_map **out)
{
	struct mb_heat_map *map;
	uint64_t size = 1;

	if (!config->n_blocks || !config->n_views || config->n_views > MB_HEAT_VIEWS)
		return -EINVAL;
	map = calloc(1, sizeof(*map));
	if (!map)
		return -ENOMEM;
	map->n_views = config->n_views;
	map->n_turns = config->n_turns ? config->n_turns : 1;
	map->max_regions = config->max_regions ? config->max_regions : MAX_REGIONS;
	/* The first ones, and the last part of memory in halves, quarters, ... */
	if (map->max_regions < 2 * FIRST_REGIONS + 64)
		map->max_regions = 2 * FIRST_REGIONS + 64;
	map->max_details = config->max_details ? config->max_details : MAX_DETAILS;
	map->region = calloc(map->max_regions, sizeof(struct region *));
	if (!map->region)
		goto err;
	while (size * FIRST_REGIONS * 2 <= config->n_blocks)
		size *= 2;
	map->max_blocks = size > MB_HEAT_RUN_BLOCKS ? size : MB_HEAT_RUN_BLOCKS;
	/* The end of memory that is not a whole region: halves, quarters, ... */
	for (uint64_t at = 0; at < config->n_blocks;) {
		while (at + size > config->n_blocks)
			size /= 2;
		map->region[map->n_regions] = mb_heat_new_region(at, size);
		if (!map->region[map->n_regions])
			goto err;
		map->n_regions++;
		at += size;
	}
	*out = map;
	return 0;
err:
	mb_heat_destroy(map);
	return -ENOMEM;
}

void mb_heat_destroy(struct mb_heat_map *map)
{
	if (!map)
		return;
	for (unsigned i = 0; i < map->n_regions; i++)
		mb_heat_free_region(map, map->region[i]);
	free(map->region);
	free(map);
}

bool mb_heat_wants_adapt(const struct mb_heat_map *map)
{
	return map->has_odd;
}

unsigned mb_heat_n_regions(const struct mb_heat_map *map)
{
	return map->n_regions;
}

uint64_t mb_heat_n_covered(const struct mb_heat_map *map)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < map->n_regions; i++)
		if (map->region[i]->in_use && mb_heat_known(map, map->region[i]).samples > 0)
			n += map->region[i]->n;
	return n;
}

uint64_t mb_heat_n_huge(const struct mb_heat_map *map)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < map->n_regions; i++)
		if (map->region[i]->in_use && map->region[i]->huge)
			n += map->region[i]->n;
	return n;
}

/* The region that has this block: they are in order and leave no gap. */
struct region *mb_heat_find_region(const struct mb_heat_map *map, uint64_t block)
{
	unsigned low = 0, high = map->n_regions;

	while (high - low > 1) {
		unsigned middle = (low + high) / 2;

		if (map->region[middle]->first <= block)
			low = middle;
		else
			high = middle;
	}
	return map->region[low];
}

/* ---- sampling ---- */

/* Views that use it much, by one half of it. */
static unsigned n_users(const struct mb_heat_map *map, const struct known *half)
{
	unsigned n = 0;

	for (unsigned v = 0; v < map->n_views; v++)
		n += half->touch[v] > USED;
	return n;
}

static bool may_zoom(const struct mb_heat_map *map, const struct region *r, uint64_t now_ns)
{
	return r->in_use && r->huge && !r->zoomed && now_ns >= r->no_zoom_before_ns &&
	       (r->detail || map->n_details < map->max_details);
}

static bool wants_zoom(const struct mb_heat_map *map, const struct region *r, uint64_t now_ns)
{
	return r->n == 1 && may_zoom(map, r, now_ns) &&
	       (n_users(map, &r->half[0]) > 1 ||
		       (r->detail && mb_heat_max_touch(&r->half[0], map->n_views) > MB_HEAT_COLD &&
			       mb_heat_detail_users(map, r->detail) > 1));
}

/* Several views use it, and some of it is written: it may be that others of its pages are not. */
bool mb_heat_may_be_mixed(const struct mb_heat_map *map, const struct region *r, uint64_t now_ns)
{
	for (unsigned h = 0; h < 2 && may_zoom(map, r, now_ns); h++) {
		float write = 0;

		for (unsigned v = 0; v < map->n_views; v++)
			write = fmaxf(write, r->half[h].write[v]);
		if (write > USED && n_users(map, &r->half[h]) > 1)
			return true;
	}
	return false;
}

/* Touches a second of the view that has second most: what is there to be had by looking closely. */
static float shared_rate(const struct mb_heat_map *map, const struct region *r)
{
	float most = 0, second = 0;

	for (unsigned v = 0; v < map->n_views; v++) {
		float rate = mb_heat_rate(r->half[0].touch[v], r->window);

		second = fmaxf(second, fminf(rate, most));
		most = fmaxf(most, rate);
	}
	return second;
}

/* Few are looked into at a time: the hottest first, others when they have had their turn. */
static bool is_first_to_zoom(const struct mb_heat_map *map, const struct region *r, uint64_t now_ns)
{
	float rate = shared_rate(map, r);

	for (unsigned i = 0; i < map->n_regions; i++) {
		const struct region *other = map->region[i];

		if (now_ns - other->seen_ns < FRESH_NS && wants_zoom(map, other, now_ns) &&
			shared_rate(map, other) > HOTTER * rate)
			return false;
	}
	return true;
}

/*
 * What was hardly used has long windows, of which few are open at a time: it may be long until the
 * next one. So there are short ones in between, which only tell whether it is in use now.
 */
static bool may_probe(const struct region *r)
{
	return r->n <= MB_HEAT_RUN_BLOCKS && r->huge && !r->zoomed && !r->detail &&
	       r->to_slow != 1 && r->window >= PROBED_FROM;
}

static uint64_t next_window_ns(
	const struct region *r, uint64_t min_ns, uint64_t max_ns, bool *probe)
{
	uint64_t own_ns = mb_heat_window_ns[r->window];

	*probe = may_probe(r) && (r->n_probes < PROBES || own_ns < min_ns || own_ns > max_ns);
	return r->to_slow == 1 ? MB_HEAT_WINDOW_MAX_NS
	       : *probe	       ? mb_heat_window_ns[PROBE_WINDOW]
			       : own_ns;
}

/* To look at it takes no huge page out of the page tables. */
static bool is_small(const struct region *r)
{
	return r->n == 1 && (r->zoomed || (!r->huge && r->half[0].samples > 0));
}

bool mb_heat_pick(struct mb_heat_map *map, uint64_t now_ns, uint64_t min_window_ns,
	uint64_t max_window_ns, bool may_begin_zoom, uint32_t seed, struct mb_heat_pick *pick,
	uint64_t *due_ns)
{
	struct region *r = NULL;
	bool zoom, probe;

	*due_ns = UINT64_MAX;
	for (unsigned i = 0; i < map->n_regions; i++) {
		struct region *other = map->region[i];

		uint64_t window_ns = next_window_ns(other, min_window_ns, max_window_ns, &probe);
		bool fits = window_ns >= min_window_ns && window_ns <= max_window_ns;

		if (!other->picked && (fits || is_small(other)) &&
			(!r || other->due_ns < r->due_ns))
			r = other;
	}
	if (!r)
		return false;
	*due_ns = r->due_ns;
	if (r->due_ns > now_ns)
		return false;
	zoom = may_begin_zoom && r->to_slow != 1 && wants_zoom(map, r, now_ns) &&
	       is_first_to_zoom(map, r, now_ns);
	*pick = (struct mb_heat_pick){
		.first_block = r->first,
		.n_blocks = (unsigned)r->n,
		.region_first = r->first,
		.region_blocks = r->n,
		.window_ns = next_window_ns(r, min_window_ns, max_window_ns, &probe),
		.zoom = zoom,
		.small = is_small(r),
		.slow = r->to_slow == 1,
	};
	pick->probe = probe && !zoom;
	/* Of each their own: probes come in between at a fixed number. */
	pick->turn = r->turn[pick->probe]++;
	if (zoom)
		pick->window_ns = mb_heat_window_ns[r->window];
	if (r->n > MB_HEAT_RUN_BLOCKS) {
		/* A run of one half, then of the other. Both are powers of two. */
		uint64_t half = r->n / 2, runs = half / MB_HEAT_RUN_BLOCKS;

		pick->n_blocks = half < MB_HEAT_RUN_BLOCKS ? (unsigned)half : MB_HEAT_RUN_BLOCKS;
		pick->first_block += (pick->turn & 1) * half;
		pick->turn /= 2;
		pick->first_block += runs ? mb_heat_mix(seed) % runs * MB_HEAT_RUN_BLOCKS : 0;
	}
	r->picked = true;
	return true;
}

void mb_heat_skip(
	struct mb_heat_map *map, const struct mb_heat_pick *pick, bool in_use, uint64_t now_ns)
{
	struct region *r = mb_heat_find_region(map, pick->first_block);

	r->picked = false;
	r->in_use = in_use;
	if (!in_use)
		mb_heat_drop_detail(map, r);
	r->due_ns = now_ns + (in_use ? PERIOD_MIN_NS : UNUSED_NS);
}

/*
 * How much of a block was touched or written: what was mapped as one page counts as one. So does
 * a block that was zoomed into, or what is known would change with the size of its pages.
 */
static float share_of_block(const struct mb_heat_seen *seen, unsigned block, const uint64_t *bits)
{
	unsigned n = mb_heat_count(bits);

	if ((seen->huge | seen->zoomed) >> block & 1)
		return n > 0;
	return (float)n / (float)seen->n_pages;
}

/* A view that hardly ever was there is. */
static bool came(const struct known *known, const struct known *x, unsigned n_views)
{
	for (unsigned v = 0; v < n_views; v++)
		if (known->touch[v] < MB_HEAT_COLD && x->touch[v] > MB_HEAT_HOT)
			return true;
	return false;
}

/*
 * And the views that were there in each window are not: that is hardly chance, unless the host did
 * not run their vCPUs. Only through the shortest window is what is known so high.
 */
static bool changed_hands(const struct known *known, const struct known *x, unsigned n_views)
{
	bool stayed = false, left = false;

	for (unsigned v = 0; v < n_views; v++) {
		bool was_there = known->touch[v] > MB_HEAT_HOT;

		stayed |= was_there && x->touch[v] > MB_HEAT_HOT;
		left |= was_there && x->touch[v] < MB_HEAT_COLD;
	}
	return known->samples > SURE && left && !stayed && came(known, x, n_views);
}

static void know_more(
	struct known *known, float share, const struct known *x, bool writes, unsigned n_views)
{
	/* What is a guess gives way to what was seen. */
	if (known->samples < 1)
		share = fmaxf(share, 1 / (1 + known->samples));
	for (unsigned v = 0; v < n_views; v++) {
		known->touch[v] += share * (x->touch[v] - known->touch[v]);
		/* What cannot be told from a read is not said to be one. And of what is written
		 * now and then, many looks see reads only. */
		if (writes)
			known->write[v] += share * (x->write[v] - known->write[v]) *
					   (x->write[v] < known->write[v] ? FORGETS_WRITES : 1);
		known->write[v] = fminf(known->write[v], known->touch[v]);
	}
	known->samples = known->samples * MB_HEAT_SAMPLES_DECAY + 1;
}

void mb_heat_change_window(struct mb_heat_map *map, struct region *r, unsigned window)
{
	for (unsigned h = 0; h < 2; h++)
		mb_heat_know_through(&r->half[h], map->n_views, r->window, window);
	if (r->detail) {
		r->detail->whole_looks = 0;
		memset(r->detail->away, 0, sizeof(r->detail->away));
		memset(r->detail->there, 0, sizeof(r->detail->there));
	}
	/* A zoom's windows are its own. */
	if (r->detail && !r->huge) {
		for (unsigned v = 0; v < map->n_views; v++) {
			for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
				uint8_t *p[] = {&r->detail->quick.touch[v][i],
					&r->detail->quick.write[v][i]};

				/* What was seen at all stays so. */
				for (unsigned k = 0; k < 2; k++)
					*p[k] = (uint8_t)ceilf(
						255 * through_window((float)*p[k] / 255, r->window,
							      window));
			}
		}
		mb_heat_detail_sum(map, r->detail);
	}
	r->window = window;
}

static void choose_window(struct mb_heat_map *map, struct region *r)
{
	struct known known = mb_heat_known(map, r);
	float most = mb_heat_max_touch(&known, map->n_views);

	if (known.samples < SURE)
		return;
	if (most > MB_HEAT_HOT && r->window > 0)
		mb_heat_change_window(
			map, r, most < ALL || r->window < 2 ? r->window - 1 : r->window - 2);
	/* The longest one is for what is touched now and then; it keeps pages out for long. */
	else if (most < MB_HEAT_COLD &&
		 r->window + (most > MB_HEAT_NEVER ? 1 : 2) < MB_HEAT_WINDOWS)
		mb_heat_change_window(map, r, r->window + 1);
}

/* What the blocks [from, to) of the run say together. *variance: how much they differ. */
static struct known average(const struct mb_heat_map *map, const struct mb_heat_seen *seen,
	unsigned from, unsigned to, float *variance)
{
	struct known x = {.samples = 1};
	float n = (float)(to - from);

	for (unsigned v = 0; v < map->n_views; v++) {
		float squares[2] = {0, 0};

		for (unsigned b = from; b < to; b++) {
			float touched = share_of_block(seen, b, seen->view[v].touched[b]);
			float written = share_of_block(seen, b, seen->view[v].written[b]);

			x.touch[v] += touched / n;
			squares[0] += touched * touched / n;
			if (seen->knows_writes) {
				x.write[v] += written / n;
				squares[1] += written * written / n;
			}
		}
		*variance = fmaxf(*variance, squares[0] - x.touch[v] * x.touch[v]);
		*variance = fmaxf(*variance, squares[1] - x.write[v] * x.write[v]);
	}
	return x;
}

static bool was_touched(const struct mb_heat_map *map, const struct mb_heat_seen *seen)
{
	for (unsigned v = 0; v < map->n_views; v++)
		for (unsigned b = 0; b < seen->pick.n_blocks; b++)
			if (mb_heat_count(seen->view[v].touched[b]))
				return true;
	return false;
}

bool mb_heat_is_slow(const struct region *r, bool zoomed)
{
	return mb_heat_window_ns[r->window] * (zoomed ? MB_HEAT_ZOOM_WINDOWS : 1) >=
	       MB_HEAT_WINDOW_MAX_NS;
}

/* When the pages of a block are to be looked at through the longest window. */
static void turn_slow(struct region *r, const struct mb_heat_seen *seen)
{
	bool zoomed = seen->zoomed;
	unsigned every = zoomed ? SLOW_EVERY_ZOOMED : SLOW_EVERY;

	if (!r->detail || (!zoomed && seen->huge & 1) || mb_heat_is_slow(r, zoomed))
		r->to_slow = 0;
	else if (seen->pick.slow || !r->to_slow || r->to_slow > every)
		r->to_slow = every;
	else if (r->to_slow > 1)
		r->to_slow--;
}

/*
 * What is learnt is only when to look again, and through which window: if a probe that found
 * something counted and others did not, what is touched now and then would seem hot. Nor does one
 * that did make the window short, through which such memory is hardly ever seen.
 */
static void learn_probe(struct mb_heat_map *map, struct region *r, bool touched, uint64_t now_ns)
{
	r->due_ns = now_ns + PERIOD * mb_heat_window_ns[r->window] / (PROBES + 1);
	if (!touched) {
		r->n_hits = 0;
		r->n_probes++;
		return;
	}
	r->due_ns = now_ns + SOON_MIN_NS;
	if (++r->n_hits < HITS)
		return;
	r->n_hits = r->n_probes = 0;
	mb_heat_change_window(map, r, PROBE_WINDOW);
}

void mb_heat_learn(struct mb_heat_map *map, const struct mb_heat_seen *seen, uint64_t now_ns)
{
	const struct mb_heat_pick *pick = &seen->pick;
	struct region *r = mb_heat_find_region(map, pick->first_block);
	uint64_t from = pick->first_block - r->first, half = r->n / 2, period;
	bool whole = pick->n_blocks == r->n, part = seen->n_pages < MB_HEAT_BLOCK_PAGES;
	/* Of several users each may be alone there for a moment. */
	bool by_turns = r->detail && seen->huge & 1 && mb_heat_detail_knows(map, r, seen);
	bool hands = false, odd = false;
	float variance = 0;
	struct known old = mb_heat_known(map, r), now;

	r->picked = false;
	r->in_use = true;
	/* What nobody has mapped may be either. */
	if (seen->huge || seen->zoomed)
		r->huge = true;
	else if (was_touched(map, seen))
		r->huge = false;
	r->zoomed = seen->zoomed;
	if (pick->probe) {
		learn_probe(map, r, was_touched(map, seen), now_ns);
		return;
	}
	r->n_probes = 0;
	/* A part of a zoomed block says nothing of the whole, nor does another window. */
	if ((part && seen->zoomed) || pick->slow) {
		if (seen->zoomed || !(seen->huge & 1))
			mb_heat_learn_pages(map, r, seen, now_ns);
		turn_slow(r, seen);
		r->due_ns = now_ns + (seen->zoomed ? SOON_MIN_NS : PERIOD_SOON * pick->window_ns);
		return;
	}
	/* Windows inside a block are longer than its own: they tell its pages apart. */
	for (unsigned h = 0; h < 2 && !(seen->zoomed && old.samples > SURE); h++) {
		/* The part of the run in this half. */
		uint64_t begin = h ? (from > half ? from : half) : from;
		uint64_t end = from + pick->n_blocks;
		struct known *known = &r->half[h], x;
		bool all_of_it, other;

		if (r->n > 1 && !h && end > half)
			end = half;
		if (begin >= end || (r->n == 1 && h))
			continue;
		x = average(map, seen, (unsigned)(begin - from), (unsigned)(end - from), &variance);
		all_of_it = end - begin == (r->n > 1 ? half : 1);
		other = all_of_it && !part && !by_turns && changed_hands(known, &x, map->n_views);
		/* One block of several is seen, since no more may be out: so it is told by itself.
		 */
		odd |= pick->n_blocks == 1 && r->n > 1 && known->samples > SURE &&
		       came(known, &x, map->n_views);
		know_more(known,
			other	    ? NEW_SHARE_NEXT
			: by_turns  ? mb_heat_detail_share(r)
			: all_of_it ? MB_HEAT_NEW_SHARE
				    : NEW_SHARE_PART,
			&x, seen->knows_writes, map->n_views);
		/* Of the new user it is the first. */
		if (other)
			known->samples = 1;
		hands |= other;
	}
	if (variance > UNEVEN || odd) {
		r->uneven_before_ns = now_ns + UNEVEN_NS;
		r->uneven_block = pick->first_block;
		r->is_odd = odd;
		map->has_odd |= odd && map->n_regions < map->max_regions;
	}
	r->seen_ns = now_ns;
	if (r->n == 1 && !(seen->huge & 1))
		mb_heat_learn_pages(map, r, seen, now_ns);
	else if (r->detail && (hands || mb_heat_detail_is_wrong(map, r, seen, now_ns))) {
		mb_heat_drop_detail(map, r);
		r->no_zoom_before_ns = 0;
	} else if (r->detail && mb_heat_detail_is_left(map, r, now_ns)) {
		/* It may come again. */
		mb_heat_drop_detail(map, r);
		r->no_zoom_before_ns = now_ns + MB_HEAT_DETAIL_AGAIN_NS;
	}
	turn_slow(r, seen);
	now = mb_heat_known(map, r);
	period = (r->detail && is_small(r) ? PERIOD_SOON : PERIOD) * pick->window_ns;
	if (!whole && period > PART_NS)
		period = PART_NS;
	if (seen->hole)
		period = 0; /* at least, as below */
	if (may_probe(r))
		period /= PROBES + 1;
	if (period < PERIOD_MIN_NS)
		period = PERIOD_MIN_NS;
	if (seen->zoomed || (old.samples > 0 && mb_heat_difference(&old, &now, map->n_views) >
							MB_HEAT_CHANGED * MB_HEAT_NEW_SHARE))
		period = PERIOD_SOON * pick->window_ns > SOON_MIN_NS ? PERIOD_SOON * pick->window_ns
								     : SOON_MIN_NS;
	/* It tells only whether its pages are used as they were. */
	if (r->detail && r->huge && !seen->zoomed)
		period = DETAILED_NS;
	r->due_ns = now_ns + period;
	choose_window(map, r);
}
