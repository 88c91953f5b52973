// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "heat_internal.h"

/* What is known of each page of a block. */

/* More than chance: so many times what it makes of the variance of pages, of that of groups side by
 * side, and of the number that were touched at each look (and some). */
#define CHANCE	     1.8f
#define PARTS	     4.0f
#define ALWAYS	     3.0f
#define ALWAYS_PAGES 8.0f
#define GROUP	     32u /* pages */
/* A page that is not like the others would be as it is by a chance of exp(-12), 6 in a million. */
#define ODD	  12.0f
#define ODD_PAGES 128u /* at most; else all are told one by one */
/* Before pages are said to be alike: in a zoom, and in small pages; and where others wait for the
 * place. */
#define EVEN_LOOKS_ZOOMED  3u
#define EVEN_LOOKS	   16u
#define EVEN_LOOKS_CROWDED 6u
/* Of so many looks the last one counts for its part. A zoom has twelve through each window, and the
 * ones before it count for so many: so that is three zooms. */
#define LOOKS	   8u
#define ZOOM_LOOKS 36u
#define LOOKS_KEPT 24u
/* A value of 255 says that the page was touched in each of so many looks: */
#define SATURATES 20u
/* Before it is said that pages have changed hands: looks at each, the sum of squares of what is
 * known (a page that one of two views has counts for a half), and how much the last looks
 * contradict: a single one does not, since it may be a turn. */
#define HANDS_LOOKS  3u
#define HANDS_LEAST  4.0f
#define AGREES_SHARE 0.5f
#define CONTRADICTS  (-0.3f)
/* Of 255, and of so many looks: */
#define NEVER_WRITTEN 32u
#define WRITE_LOOKS   8u
/* A view that was not seen for so long, and in looks in which it would have been there so often, is
 * gone. */
#define GONE_NS	   10000000000ull
#define GONE_LOOKS 8u
/* Of what the one that uses most of a block touches: less is no user that has its turns. */
#define MINOR	    0.25f
#define MINOR_LOOKS 3u /* in a row, in which there are only such */
/* Of so many looks at the whole of a block whose pages differ is how much a view uses it. */
#define WHOLE_LOOKS 20u

void mb_heat_drop_detail(struct mb_heat_map *map, struct region *r)
{
	if (r->detail)
		map->n_details--;
	free(r->detail);
	r->detail = NULL;
	r->to_slow = 0;
}

/*
 * A value of a page: chances of 0..1 as 0..255. Rounded by chance, or what is seen seldom would
 * never count.
 */
static uint8_t nearer(struct mb_heat_map *map, uint8_t value, bool bit, unsigned n)
{
	unsigned x = bit ? UINT8_MAX : 0;

	if (value == x)
		return value;
	return (uint8_t)((value * (n - 1) + x + mb_heat_mix(mb_heat_random(&map->seed)) % n) / n);
}

/* So many looks count, this one among them. */
static unsigned n_looks(unsigned looks, unsigned most_looks)
{
	return looks < most_looks ? looks + 1 : most_looks;
}

/* A page that is written now and hardly ever was is soon known to be: copies of it would not last.
 */
static unsigned n_looks_at_write(uint8_t value, bool bit, unsigned n)
{
	return bit && value < NEVER_WRITTEN && n > WRITE_LOOKS ? WRITE_LOOKS : n;
}

/* Pages of the block that was seen differ: some were used in another way than others. */
static bool pages_differ(const struct mb_heat_map *map, const struct mb_heat_seen *seen)
{
	for (unsigned v = 0; v < map->n_views; v++) {
		unsigned touched = mb_heat_count(seen->view[v].touched[0]);
		unsigned written = mb_heat_count(seen->view[v].written[0]);

		if ((touched && touched < seen->n_pages) ||
			(seen->knows_writes && written && written < touched))
			return true;
	}
	return false;
}

void mb_heat_detail_sum(const struct mb_heat_map *map, struct detail *d)
{
	for (unsigned v = 0; v < map->n_views; v++) {
		unsigned sum = 0;

		for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
			uint8_t quick = d->quick.touch[v][i], slow = d->slow.touch[v][i];

			sum += quick > slow ? quick : slow;
		}
		d->touch[v] = (float)sum / (UINT8_MAX * MB_HEAT_BLOCK_PAGES);
	}
}

unsigned mb_heat_detail_users(const struct mb_heat_map *map, const struct detail *d)
{
	unsigned n = 0;

	for (unsigned v = 0; v < map->n_views; v++)
		n += d->touch[v] > MB_HEAT_NEVER;
	return n;
}

/* Where somebody was, others were not. */
static void note_views(const struct mb_heat_map *map, struct detail *d,
	const struct mb_heat_seen *seen, uint64_t now_ns)
{
	bool was_there[MB_HEAT_VIEWS], any = false;

	for (unsigned v = 0; v < map->n_views; v++)
		any |= was_there[v] = mb_heat_count(seen->view[v].touched[0]);
	for (unsigned v = 0; v < map->n_views && any; v++) {
		if (was_there[v]) {
			d->view_ns[v] = now_ns;
			d->away[v] = 0;
		} else if (seen->n_pages == MB_HEAT_BLOCK_PAGES && d->away[v] < UINT8_MAX) {
			d->away[v]++;
		}
	}
}

bool mb_heat_detail_is_left(const struct mb_heat_map *map, const struct region *r, uint64_t now_ns)
{
	const struct detail *d = r->detail;

	for (unsigned v = 0; v < map->n_views; v++)
		if (now_ns - d->view_ns[v] > GONE_NS &&
			(float)d->away[v] * d->there[v] > GONE_LOOKS)
			return true;
	return false;
}

static bool is_known_to_write(const struct detail *d, unsigned view)
{
	return mb_heat_most(d->quick.write[view]) || mb_heat_most(d->slow.write[view]);
}

/* Views that hardly use it by the detail, and no others. */
static bool only_minors(
	const struct mb_heat_map *map, const struct detail *d, const struct mb_heat_seen *seen)
{
	float most = 0;
	bool anybody = false;

	for (unsigned v = 0; v < map->n_views; v++)
		most = fmaxf(most, d->touch[v]);
	for (unsigned v = 0; v < map->n_views; v++) {
		bool is_there = mb_heat_count(seen->view[v].touched[0]);

		anybody |= is_there;
		if (is_there && d->touch[v] >= MINOR * most)
			return false;
	}
	return anybody;
}

bool mb_heat_detail_knows(
	const struct mb_heat_map *map, const struct region *r, const struct mb_heat_seen *seen)
{
	const struct detail *d = r->detail;

	for (unsigned v = 0; v < map->n_views; v++)
		if ((mb_heat_count(seen->view[v].touched[0]) && d->touch[v] <= 0) ||
			(mb_heat_count(seen->view[v].written[0]) && !is_known_to_write(d, v)))
			return false;
	return !only_minors(map, d, seen);
}

/* The share of the next look at the whole in what is known of that: an average of all of them, and
 * in the end of the last ones. */
float mb_heat_detail_share(struct region *r)
{
	struct detail *d = r->detail;

	if (d->whole_looks < WHOLE_LOOKS)
		d->whole_looks++;
	return fminf(1 / (float)d->whole_looks, MB_HEAT_NEW_SHARE);
}

/*
 * A view that never did uses or writes the block now, or there are only such that hardly did. How
 * often they do cannot be compared, since that was seen through another window; nor does it say
 * anything that they come and go by turns.
 */
bool mb_heat_detail_is_wrong(const struct mb_heat_map *map, const struct region *r,
	const struct mb_heat_seen *seen, uint64_t now_ns)
{
	struct detail *d = r->detail;

	note_views(map, d, seen, now_ns);
	/* After this look, so never less than its share. */
	for (unsigned v = 0; v < map->n_views; v++)
		if (mb_heat_count(seen->view[v].touched[0]))
			d->there[v] = r->half[0].touch[v];
	for (unsigned v = 0; v < map->n_views; v++)
		if ((r->half[0].touch[v] > MB_HEAT_CHANGED && d->touch[v] <= 0) ||
			(r->half[0].write[v] > MB_HEAT_CHANGED && !is_known_to_write(d, v)))
			return true;
	d->minors = only_minors(map, d, seen) ? d->minors + 1 : 0;
	return d->minors >= MINOR_LOOKS;
}

/* Of looks at pages like these, how many count. */
static unsigned looks_that_count(const struct region *r)
{
	return r->huge ? ZOOM_LOOKS : LOOKS;
}

/*
 * A value is a plain average of the first most_looks looks; then the last one counts for its part,
 * and each one before it for less. Of a chance m it varies by m (1 - m) times the sum of their
 * squares.
 */
static float spread(unsigned looks, unsigned most_looks)
{
	if (!looks)
		return 0;
	return fmaxf(1 / (float)looks, 1 / (2 * (float)most_looks - 1));
}

/* What pages that are all alike would show by chance, and what is more than that. */
struct chance {
	float mean;
	float spread;  /* of a page, of mean * (1 - mean) */
	float varies;  /* what they do */
	float between; /* groups of neighbours */
	unsigned always;
	float expected_always;
};

static void compare(const uint8_t *value, const struct pages *p, const uint64_t *odd,
	unsigned most_looks, struct chance *c)
{
	float group[MB_HEAT_BLOCK_PAGES / GROUP] = {0}, squares = 0;
	float n_pages = (float)(MB_HEAT_BLOCK_PAGES - mb_heat_count(odd));

	*c = (struct chance){0};
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		float x = (float)value[i] * (1.0f / UINT8_MAX);

		if (mb_heat_bit(odd, i))
			continue;
		c->mean += x;
		group[i / GROUP] += x;
		squares += x * x;
		c->spread += spread(p->looks[i], most_looks);
	}
	c->mean /= n_pages;
	c->spread /= n_pages;
	c->varies = squares / n_pages - c->mean * c->mean;
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES / GROUP; i++) {
		/* A group is 32 pages: half a word. */
		float n = (float)__builtin_popcount(~(unsigned)(odd[i / 2] >> i % 2 * GROUP));
		float differs = n > 0 ? group[i] / n - c->mean : 0;

		c->between += differs * differs * n / n_pages;
	}
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++) {
		unsigned n = p->looks[i] < SATURATES ? p->looks[i] : SATURATES;

		if (mb_heat_bit(odd, i))
			continue;
		c->always += n && value[i] == UINT8_MAX;
		c->expected_always += n ? powf(c->mean, (float)n) : 0;
	}
}

/*
 * Whether values of pages differ by no more than chance makes of pages that are all alike: neither
 * in their variance, nor in how many were there at each look, as a few hot ones among others are,
 * nor more from page to page than from group to group, as memory that is used in parts does.
 */
static bool is_chance(
	const uint8_t *value, const struct pages *p, const uint64_t *odd, unsigned most_looks)
{
	struct chance c;
	float expected;

	compare(value, p, odd, most_looks, &c);
	expected = c.mean * (1 - c.mean) * c.spread;
	return (float)c.always <= ALWAYS * c.expected_always + ALWAYS_PAGES &&
	       c.varies <= CHANCE * expected + MB_HEAT_ALIKE * MB_HEAT_ALIKE / 4 &&
	       c.between <= PARTS * expected / GROUP + MB_HEAT_ALIKE * MB_HEAT_ALIKE / GROUP;
}

static float mean_looks(const struct pages *d)
{
	unsigned sum = 0;

	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		sum += d->looks[i];
	return (float)sum / MB_HEAT_BLOCK_PAGES;
}

/*
 * Whether a page's value is too far from the others' to be a sample of n looks of the same: n times
 * the relative entropy, of which exp(-that) is at least the chance of one as far (Chernoff's
 * bound). Most are so near that a bound of it says no (chi-squared).
 */
static bool is_far(float x, float mean, float n)
{
	float least = 1 / (float)(UINT8_MAX * MB_HEAT_BLOCK_PAGES);
	float m = fminf(fmaxf(mean, least), 1 - least);

	if (n * (x - m) * (x - m) <= ODD * m * (1 - m))
		return false;
	return n * ((x > 0 ? x * logf(x / m) : 0) +
			   (x < 1 ? (1 - x) * logf((1 - x) / (1 - m)) : 0)) >
	       ODD;
}

/* Pages whose values are far from those of the others. */
static void add_odd(const uint8_t *value, const struct pages *p, unsigned most_looks, uint64_t *odd)
{
	unsigned sum = 0;
	float mean;

	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		sum += value[i];
	mean = (float)sum / (UINT8_MAX * MB_HEAT_BLOCK_PAGES);
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		if (p->looks[i] && is_far((float)value[i] * (1.0f / UINT8_MAX), mean,
					   1 / spread(p->looks[i], most_looks)))
			odd[i / 64] |= 1ull << i % 64;
}

/* Single pages that a view touches or writes more, or less, than it does the others. */
static void find_odd(const struct mb_heat_map *map, struct pages *p, unsigned most_looks)
{
	memset(p->odd, 0, sizeof(p->odd));
	for (unsigned v = 0; v < map->n_views; v++) {
		add_odd(p->touch[v], p, most_looks, p->odd);
		add_odd(p->write[v], p, most_looks, p->odd);
	}
}

static bool pages_are_even(const struct mb_heat_map *map, const struct pages *p,
	const uint64_t *odd, unsigned most_looks)
{
	for (unsigned v = 0; v < map->n_views; v++)
		if (!is_chance(p->touch[v], p, odd, most_looks) ||
			!is_chance(p->write[v], p, odd, most_looks))
			return false;
	return true;
}

/* Whether pages are alike, and which few are not like the others; after one table has changed. */
static void find_even(const struct mb_heat_map *map, struct region *r, struct pages *changed)
{
	const unsigned most_looks = looks_that_count(r);
	struct detail *d = r->detail;

	find_odd(map, changed, most_looks);
	for (unsigned i = 0; i < MB_HEAT_BLOCK_WORDS; i++)
		d->odd[i] = d->quick.odd[i] | d->slow.odd[i];
	if (mb_heat_count(d->odd) > ODD_PAGES)
		memset(d->odd, 0, sizeof(d->odd));
	d->even = pages_are_even(map, &d->quick, d->odd, most_looks) &&
		  pages_are_even(map, &d->slow, d->odd, most_looks);
}

/*
 * How well a look agrees with what is known of which page is whose: the sum over pages and views of
 * what each has above the average of the views, in the look times in what is known, to that of what
 * is known times itself. So it is 1 on average, whatever turns there are, 0 if it says nothing, and
 * -1 where pages have exchanged their users. NAN: too little is known.
 */
static float agreement(const struct mb_heat_map *map, const struct detail *d, const struct pages *p,
	const struct mb_heat_seen *seen)
{
	float n_views = (float)map->n_views, sum = 0, most = 0;

	for (unsigned i = seen->first_page; i < seen->first_page + seen->n_pages; i++) {
		float look[MB_HEAT_VIEWS], known[MB_HEAT_VIEWS], looks = 0, knowns = 0;

		if (!p->looks[i] || d->quick.looks[i] + d->slow.looks[i] < HANDS_LOOKS)
			continue;
		for (unsigned v = 0; v < map->n_views; v++) {
			looks += look[v] = mb_heat_bit(seen->view[v].touched[0], i);
			knowns += known[v] = (float)p->touch[v][i] / UINT8_MAX;
		}
		for (unsigned v = 0; v < map->n_views; v++) {
			sum += (look[v] - looks / n_views) * (known[v] - knowns / n_views);
			most += (known[v] - knowns / n_views) * (known[v] - knowns / n_views);
		}
	}
	return most < HANDS_LEAST ? NAN : sum / most;
}

/* By the last looks, pages have other users now. */
static bool pages_changed_hands(const struct mb_heat_map *map, struct detail *d,
	const struct pages *p, const struct mb_heat_seen *seen)
{
	float agrees = agreement(map, d, p, seen);

	if (isnan(agrees))
		return false;
	d->agrees += AGREES_SHARE * (fmaxf(fminf(agrees, 1), -1) - d->agrees);
	return d->agrees < CONTRADICTS;
}

/* What was seen of these pages. */
static void forget(struct detail *d, const struct mb_heat_seen *seen)
{
	memset(d->quick.looks + seen->first_page, 0, seen->n_pages);
	memset(d->slow.looks + seen->first_page, 0, seen->n_pages);
	d->agrees = 1;
	if (seen->n_pages == MB_HEAT_BLOCK_PAGES)
		d->samples = 0;
}

void mb_heat_learn_pages(
	struct mb_heat_map *map, struct region *r, const struct mb_heat_seen *seen, uint64_t now_ns)
{
	struct detail *d = r->detail;
	struct pages *p;
	unsigned most_looks;
	bool slow = seen->pick.slow || mb_heat_is_slow(r, seen->zoomed);

	if (!d) {
		if (now_ns < r->no_detail_before_ns || !pages_differ(map, seen) ||
			map->n_details >= map->max_details)
			return;
		d = r->detail = calloc(1, sizeof(*d));
		if (!d)
			return;
		map->n_details++;
		d->agrees = 1;
		for (unsigned v = 0; v < map->n_views; v++)
			d->view_ns[v] = now_ns;
	}
	note_views(map, d, seen, now_ns);
	d->minors = 0;
	p = slow ? &d->slow : &d->quick;
	most_looks = looks_that_count(r);
	if (pages_changed_hands(map, d, p, seen))
		forget(d, seen);
	for (unsigned i = seen->first_page; i < seen->first_page + seen->n_pages; i++) {
		unsigned n = n_looks(p->looks[i], most_looks);

		for (unsigned v = 0; v < map->n_views; v++) {
			bool touched = mb_heat_bit(seen->view[v].touched[0], i);
			bool written = mb_heat_bit(seen->view[v].written[0], i);
			uint8_t *touch = &p->touch[v][i], *write = &p->write[v][i];

			*touch = nearer(map, *touch, touched, n);
			if (seen->knows_writes)
				*write = nearer(
					map, *write, written, n_looks_at_write(*write, written, n));
		}
		if (p->looks[i] < UINT8_MAX)
			p->looks[i]++;
	}
	find_even(map, r, p);
	mb_heat_detail_sum(map, d);
	d->seen_ns = now_ns;
	d->samples =
		d->samples * MB_HEAT_SAMPLES_DECAY + (float)seen->n_pages / MB_HEAT_BLOCK_PAGES;
}

/* All pages of the detail are alike after all: it is not worth its place, nor another look soon. */
bool mb_heat_detail_is_even(const struct mb_heat_map *map, const struct region *r)
{
	const struct detail *d = r->detail;
	bool crowded = map->n_details > map->max_details / 4 * 3;
	float least_looks = r->huge ? EVEN_LOOKS_ZOOMED : crowded ? EVEN_LOOKS_CROWDED : EVEN_LOOKS;

	return mb_heat_are_alike(d) &&
	       fmaxf(mean_looks(&d->quick), mean_looks(&d->slow)) >= least_looks;
}

/* Of what was seen in zooms before, what is seen from now on takes the place. */
static void keep_some(struct pages *p)
{
	for (unsigned i = 0; i < MB_HEAT_BLOCK_PAGES; i++)
		if (p->looks[i] > LOOKS_KEPT)
			p->looks[i] = LOOKS_KEPT;
}

void mb_heat_zoomed(struct mb_heat_map *map, uint64_t block, uint64_t now_ns)
{
	struct region *r = mb_heat_find_region(map, block);

	if (r->detail && mb_heat_are_alike(r->detail))
		mb_heat_drop_detail(map, r);
	if (r->detail) {
		keep_some(&r->detail->quick);
		keep_some(&r->detail->slow);
	}
	r->to_slow = 0;
	r->zoomed = false;
	r->no_zoom_before_ns = now_ns + (r->detail ? MB_HEAT_DETAIL_AGAIN_NS : r->zoom_wait_ns);
	if (!r->detail && r->zoom_wait_ns < MB_HEAT_BACKOFF_MAX_NS)
		r->zoom_wait_ns *= 2;
}
