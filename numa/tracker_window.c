// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/log.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "heat_internal.h"
#include "tracker_internal.h"

#define PART_PAGES    64u /* the least of a block that is worth a window */
#define ZOOM_LOOKS    24u /* at each page */
#define ZOOM_FAULTS   4u
#define ZOOM_RETRY_NS 1000000000ull
#define ZOOM_LASTS_NS 60000000000ull
/* What one window may cost, as a share of what may be spent in a second; and a zoom in seconds. */
#define WINDOW_SHARE 5
#define ZOOM_SECONDS 5

/* A call that drops translations is over: a vCPU that touched them meanwhile waited for that. */
static void dropped(struct mb_tracker *t, uint64_t begin_ns)
{
	t->now.calls_ns += mb_now_ns() - begin_ns;
}

static char *at(const struct mb_tracker *t, unsigned view, uint64_t offset)
{
	return (char *)t->config.view_base[view] + offset;
}

/* Whether there is memory behind [first, first + n) blocks: holes of a file in memory were never
 * touched. */
static bool has_memory(const struct mb_tracker *t, uint64_t first, uint64_t n)
{
	uint64_t start = first * MB_HEAT_BLOCK_BYTES;
	off_t data = lseek(t->config.ram_fd, (off_t)start, SEEK_DATA);

	if (data < 0)
		return errno != ENXIO;
	return (uint64_t)data < start + n * MB_HEAT_BLOCK_BYTES;
}

/* Of a block that the guest gives back meanwhile only a part may be, or none: to map all of it
 * would fill it again. */
static bool is_all_there(const struct mb_tracker *t, uint64_t block)
{
	const uint64_t start = block * MB_HEAT_BLOCK_BYTES;
	off_t hole = lseek(t->config.ram_fd, (off_t)start, SEEK_HOLE);

	return hole >= 0 && (uint64_t)hole >= start + MB_HEAT_BLOCK_BYTES;
}

/* ---- looking ---- */

/* Where a look leaves what it finds; any may be NULL. */
struct finder {
	uint64_t first_page; /* of what was looked at, counted from the first block */
	block_bits *mapped, *written;
	bool guess;	  /* a block that is there as a whole is in a huge page */
	uint32_t huge;	  /* bit a block */
	uint64_t entries; /* of page tables: a huge page is one */
};

static void set_bits(block_bits *blocks, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint64_t word = from / 64 % MB_HEAT_BLOCK_WORDS, first = from % 64;
		uint64_t n = 64 - first < to - from ? 64 - first : to - from;

		blocks[from / MB_HEAT_BLOCK_PAGES][word] |= (n == 64 ? ~0ull : (1ull << n) - 1)
							    << first;
		from += n;
	}
}

static int found(void *ctx, const struct mb_page_run *run)
{
	struct finder *f = ctx;
	uint64_t from = f->first_page + run->offset / MB_PAGE_BYTES,
		 to = from + run->len / MB_PAGE_BYTES;

	if (f->mapped)
		set_bits(f->mapped, from, to);
	if (f->written && run->written)
		set_bits(f->written, from, to);
	f->entries += to - from;
	if (!run->huge && !f->guess)
		return 0;
	for (uint64_t b = (from + MB_HEAT_BLOCK_PAGES - 1) / MB_HEAT_BLOCK_PAGES;
		b < to / MB_HEAT_BLOCK_PAGES; b++) {
		f->huge |= 1u << b;
		f->entries -= MB_HEAT_BLOCK_PAGES - 1;
	}
	return 0;
}

static int look(struct mb_tracker *t, const struct window *w, unsigned view, struct finder *f)
{
	f->first_page = w->offset / MB_PAGE_BYTES % MB_HEAT_BLOCK_PAGES;
	f->guess = t->guess_huge;
	return mb_pagemap_look(t->pm, at(t, view, w->offset), w->len, found, f);
}

/* ---- the end of a window ---- */

static void end(struct mb_tracker *t, struct window *w)
{
	w->phase = CLOSED;
	w->n_out = 0;
	t->guest.left_ns += w->reserved_ns;
	w->reserved_ns = 0;
}

static void learn(struct mb_tracker *t, struct window *w, uint64_t now_ns)
{
	mb_heat_learn(t->heat, &w->seen, now_ns);
	end(t, w);
	t->n_windows++;
	for (unsigned i = 0; i < MAX_ZOOM; i++) {
		struct zoom *z = &t->zoom[i];

		if (z->used && z->block == w->seen.pick.first_block)
			z->pages_left -=
				w->seen.n_pages < z->pages_left ? w->seen.n_pages : z->pages_left;
	}
}

static void give_up(
	struct mb_tracker *t, struct window *w, const char *what, int rc, uint64_t now_ns)
{
	/* A part is being mapped anew (replica.h): next time. */
	if (rc != -ENOENT)
		mb_tracker_complain(t, what, rc);
	mb_heat_skip(t->heat, &w->seen.pick, true, now_ns);
	end(t, w);
}

/*
 * What was mapped as a huge page and was not touched is mapped again by us, so that the guest's
 * next access finds it, and so that an idle guest keeps its huge pages. They are in memory: nothing
 * is read or made for that. One that is given back at this very moment is made again, and stays
 * empty.
 */
static void map_again(struct mb_tracker *t, const struct window *w, unsigned view, uint32_t touched)
{
	uint32_t lost = w->was_huge[view] & ~touched & ~w->seen.zoomed;

	for (unsigned b = 0; b < w->seen.pick.n_blocks; b++) {
		unsigned n = 0;

		while (b + n < w->seen.pick.n_blocks && lost >> (b + n) & 1 &&
			is_all_there(t, w->offset / MB_HEAT_BLOCK_BYTES + b + n))
			n++;
		/* Before 5.14, and if it fails: the guest's next access does it. */
		if (n)
			madvise(at(t, view, w->offset + b * MB_HEAT_BLOCK_BYTES),
				n * MB_HEAT_BLOCK_BYTES, MADV_POPULATE_READ);
		b += n;
	}
}

/*
 * The window of a block is for the block: one of its 512 pages has to be given more time. And a
 * guest that uses all of them has a fault for each, which takes its time, too.
 */
static uint64_t length_ns(const struct mb_tracker *t, const struct window *w)
{
	uint64_t least_ns = 0;

	if (w->seen.zoomed) {
		least_ns = ZOOM_FAULTS * w->seen.n_pages * t->fault_ns;
		if (least_ns < MB_HEAT_ZOOM_WINDOWS * w->seen.pick.window_ns)
			least_ns = MB_HEAT_ZOOM_WINDOWS * w->seen.pick.window_ns;
	}

	if (least_ns > MB_HEAT_WINDOW_MAX_NS)
		least_ns = MB_HEAT_WINDOW_MAX_NS;
	return w->seen.pick.window_ns > least_ns ? w->seen.pick.window_ns : least_ns;
}

static void close_touches(struct mb_tracker *t, struct window *w, uint64_t now_ns)
{
	unsigned n_touched = 0;
	uint32_t huge_now = 0;
	uint64_t begin_ns;
	int rc = 0;

	for (unsigned v = 0; v < t->config.n_views && !rc; v++) {
		struct mb_heat_seen_view *view = &w->seen.view[v];
		struct finder f = {
			.mapped = view->touched, .written = w->both ? view->written : NULL};
		uint32_t touched = 0;

		rc = look(t, w, v, &f);
		/* The first write to a page is a fault of its own. */
		if (w->both)
			mb_tracker_pay(t, mb_heat_count(view->written[0]), 0, 0);
		for (unsigned b = 0; b < w->seen.pick.n_blocks; b++) {
			unsigned n = mb_heat_count(view->touched[b]);

			n_touched += n > 0;
			if (n)
				touched |= 1u << b;
		}
		huge_now |= f.huge;
		w->seen.huge |= w->was_huge[v] | f.huge;
		if (!rc)
			map_again(t, w, v, touched);
		/* Small pages were paid for when they were taken out. */
		mb_tracker_pay(t, 0, (unsigned)__builtin_popcount(f.huge), 0);
	}
	if (rc) {
		give_up(t, w, "look at page tables", rc, now_ns);
		return;
	}
	/* Mapped anew meanwhile, by whomever: of its pages that tells nothing. */
	if (w->both && huge_now) {
		mb_heat_skip(t->heat, &w->seen.pick, true, now_ns);
		end(t, w);
		return;
	}
	w->seen.huge &= ~w->seen.zoomed;
	w->seen.knows_writes = t->features & MB_PAGEMAP_WRITES;
	if (w->both || !n_touched || !w->seen.knows_writes) {
		/* Where nobody was, nobody wrote. */
		learn(t, w, now_ns);
		return;
	}
	begin_ns = mb_now_ns();
	for (unsigned v = 0; v < t->config.n_views && !rc; v++) {
		rc = mb_pagemap_clean(t->pm, at(t, v, w->offset), w->len);
		mb_tracker_pay(t, 0, 0, 1);
	}
	dropped(t, begin_ns);
	if (rc) {
		give_up(t, w, "protect pages", rc, now_ns);
		return;
	}
	w->phase = WRITES;
	w->n_out = 0;
	w->due_ns = now_ns + length_ns(t, w);
}

static void close_writes(struct mb_tracker *t, struct window *w, uint64_t now_ns)
{
	for (unsigned v = 0; v < t->config.n_views; v++) {
		struct mb_heat_seen_view *view = &w->seen.view[v];
		struct finder f = {.written = view->written};
		uint64_t small = 0, huge_ones = 0;
		int rc = look(t, w, v, &f);

		if (rc) {
			give_up(t, w, "look at page tables", rc, now_ns);
			return;
		}
		for (unsigned b = 0; b < w->seen.pick.n_blocks; b++) {
			bool huge = w->seen.huge >> b & 1;
			bool was_huge = huge && w->was_huge[v] >> b & 1;
			bool touched = mb_heat_count(view->touched[b]);

			/* A page that came only now was not protected, so that it does not count;
			 * a huge one that was there before was, even if nobody touched it. */
			for (unsigned i = 0; i < MB_HEAT_BLOCK_WORDS && (!was_huge || touched); i++)
				view->written[b][i] &= view->touched[b][i];
			/* Translations went with the protection: the next access is a fault, and
			 * so is the first write. */
			if (huge)
				huge_ones += touched + (mb_heat_count(view->written[b]) > 0);
			else
				small += mb_heat_count(view->touched[b]) +
					 mb_heat_count(view->written[b]);
			/* Touched, then: it was in no window of its own. */
			if (was_huge && !touched)
				memcpy(view->touched[b], view->written[b], sizeof(block_bits));
		}
		mb_tracker_pay(t, small, huge_ones, 0);
	}
	learn(t, w, now_ns);
}

void mb_window_close(struct mb_tracker *t, struct window *w, uint64_t now_ns)
{
	if (w->phase == TOUCHES)
		close_touches(t, w, now_ns);
	else
		close_writes(t, w, now_ns);
}

void mb_windows_drop(struct mb_tracker *t, uint64_t now_ns)
{
	for (unsigned i = 0; i < MAX_OPEN; i++) {
		struct window *w = &t->window[i];

		if (w->phase == CLOSED)
			continue;
		mb_heat_skip(t->heat, &w->seen.pick, true, now_ns);
		for (unsigned v = 0; v < t->config.n_views && w->phase == TOUCHES; v++)
			map_again(t, w, v, 0);
		end(t, w);
	}
}

/* ---- zooms ---- */

static struct zoom *find_zoom(struct mb_tracker *t, uint64_t block)
{
	for (unsigned i = 0; i < MAX_ZOOM; i++)
		if (t->zoom[i].used && t->zoom[i].block == block)
			return &t->zoom[i];
	return NULL;
}

static int map_anew(struct mb_tracker *t, unsigned view, uint64_t offset)
{
	unsigned before = t->features;
	uint64_t begin_ns = mb_now_ns();
	int rc = t->config.remap(t->config.ctx, view, offset, MB_HEAT_BLOCK_BYTES);

	dropped(t, begin_ns);
	if (rc > 0)
		return 0;
	if (!rc)
		rc = mb_pagemap_watch(t->pm, at(t, view, offset), MB_HEAT_BLOCK_BYTES);
	t->features = mb_pagemap_features(t->pm);
	if (t->features != before) {
		mb_log("%s: tracker: the kernel does not watch a part of guest memory any more:"
		       " too many mappings (vm.max_map_count), or too little memory;"
		       " written pages are not told from read ones from now on",
			t->config.name);
		mb_windows_drop(t, 0);
	}
	return rc;
}

/* What fails is tried again later: until then its pages are small. */
static void end_zoom(struct mb_tracker *t, struct zoom *z, uint64_t now_ns)
{
	uint64_t offset = z->block * MB_HEAT_BLOCK_BYTES;
	int failed = 0;

	for (unsigned v = 0; v < t->config.n_views; v++) {
		int rc = map_anew(t, v, offset);

		if (rc)
			failed = rc;
		else if (is_all_there(t, z->block))
			madvise(at(t, v, offset), MB_HEAT_BLOCK_BYTES, MADV_POPULATE_READ);
	}
	mb_tracker_pay(t, 0, t->config.n_views, t->config.n_views);
	if (failed) {
		mb_tracker_complain(t, "map huge pages again", failed);
		z->again = true;
		z->end_ns = now_ns + ZOOM_RETRY_NS;
		return;
	}
	mb_heat_zoomed(z->heat, z->block, now_ns);
	z->used = false;
	t->n_zoomed--;
}

bool mb_zooms_run(const struct mb_tracker *t)
{
	for (unsigned i = 0; i < MAX_ZOOM; i++)
		if (t->zoom[i].used && !t->zoom[i].again)
			return true;
	return false;
}

void mb_zooms_end(struct mb_tracker *t, bool all, uint64_t now_ns)
{
	for (unsigned i = 0; i < MAX_ZOOM; i++) {
		struct zoom *z = &t->zoom[i];
		bool open = false;

		if (!z->used || (now_ns < z->end_ns && !all && (z->pages_left || z->again)))
			continue;
		for (unsigned k = 0; k < MAX_OPEN; k++)
			open |= t->window[k].phase != CLOSED &&
				t->window[k].seen.pick.first_block == z->block;
		if (!open)
			end_zoom(t, z, now_ns);
	}
}

static int64_t second_ns(const struct mb_tracker *t)
{
	return (int64_t)((float)t->config.guest_ppm * 1000 * t->busy);
}

/* All views' translations of a huge page go; each small page that is touched is a fault from then
 * on. */
bool mb_zoom_may_begin(const struct mb_tracker *t)
{
	int64_t cost = (int64_t)(MB_HEAT_BLOCK_PAGES * t->config.n_views * t->fault_ns);

	return t->config.remap && t->features & MB_PAGEMAP_WRITES && t->n_zoomed < MAX_ZOOM &&
	       t->n_zoomed < t->max_zooms && t->guest.left_ns > 0 &&
	       cost < ZOOM_SECONDS * second_ns(t);
}

static int begin_zoom(struct mb_tracker *t, uint64_t block, uint64_t now_ns)
{
	struct zoom *z = NULL;

	for (unsigned i = 0; i < MAX_ZOOM && !z; i++)
		if (!t->zoom[i].used)
			z = &t->zoom[i];
	*z = (struct zoom){.used = true,
		.block = block,
		.heat = t->heat,
		.pages_left = ZOOM_LOOKS * MB_HEAT_BLOCK_PAGES,
		.end_ns = now_ns + ZOOM_LASTS_NS};
	t->n_zoomed++;
	t->n_zooms++;
	for (unsigned v = 0; v < t->config.n_views; v++) {
		uint64_t begin_ns = mb_now_ns();
		int rc = mb_pagemap_split(
			t->pm, at(t, v, block * MB_HEAT_BLOCK_BYTES), MB_HEAT_BLOCK_BYTES);

		dropped(t, begin_ns);
		if (rc) {
			z->pages_left = 0; /* mb_zooms_end mends what was split */
			return rc;
		}
	}
	/* Each is zapped and marked. */
	mb_tracker_pay(t, MB_HEAT_BLOCK_PAGES, 0, 2 * t->config.n_views);
	return 0;
}

/* ---- the beginning of a window ---- */

unsigned mb_windows_room(const struct mb_tracker *t, bool is_long)
{
	unsigned n = 0;

	for (unsigned i = 0; i < MAX_OPEN; i++)
		if (is_long == (t->window[i].seen.pick.window_ns >= LONG_WINDOW_NS))
			n += t->window[i].n_out;
	return n < t->max_out ? t->max_out - n : 0;
}

/* How much would be taken out, in all views. */
static int count_mapped(struct mb_tracker *t, struct window *w, uint64_t *entries)
{
	uint32_t huge = 0;

	*entries = 0;
	for (unsigned v = 0; v < t->config.n_views; v++) {
		struct finder f = {0};
		int rc = look(t, w, v, &f);

		if (rc)
			return rc;
		w->was_huge[v] = f.huge;
		huge |= f.huge;
		*entries += f.entries;
	}
	w->n_out = (unsigned)__builtin_popcount(huge);
	return 0;
}

static void set_range(struct window *w, unsigned n_blocks, unsigned first_page, unsigned n_pages)
{
	w->seen.pick.n_blocks = n_blocks;
	w->seen.first_page = first_page;
	w->seen.n_pages = n_pages;
	w->offset =
		w->seen.pick.first_block * MB_HEAT_BLOCK_BYTES + first_page * MB_HEAT_PAGE_BYTES;
	w->len = n_blocks == 1 ? n_pages * MB_HEAT_PAGE_BYTES : n_blocks * MB_HEAT_BLOCK_BYTES;
}

static unsigned n_huge(const struct mb_tracker *t, const struct window *w)
{
	unsigned n = 0;

	for (unsigned v = 0; v < t->config.n_views; v++)
		n += (unsigned)__builtin_popcount(w->was_huge[v]);
	return n;
}

/* Takes less where the whole would cost too much: fewer blocks, then a part of one in small pages.
 */
static int fit(struct mb_tracker *t, struct window *w, unsigned room, uint64_t *entries)
{
	uint64_t limit_ns = (uint64_t)(second_ns(t) / WINDOW_SHARE);
	unsigned n = MB_HEAT_BLOCK_PAGES, turn = w->seen.pick.turn;
	int rc = count_mapped(t, w, entries);

	if (limit_ns < PART_PAGES * t->fault_ns)
		limit_ns = PART_PAGES * t->fault_ns;
	while (!rc && w->seen.pick.n_blocks > 1 &&
		(w->n_out > room ||
			mb_tracker_cost_ns(t, *entries - n_huge(t, w), n_huge(t, w)) > limit_ns)) {
		/* One half, then the other. */
		w->seen.pick.first_block += turn % 2 * (w->seen.pick.n_blocks / 2);
		turn /= 2;
		set_range(w, w->seen.pick.n_blocks / 2, 0, MB_HEAT_BLOCK_PAGES);
		rc = count_mapped(t, w, entries);
	}
	while (!rc && *entries * t->fault_ns > limit_ns && n > PART_PAGES) {
		n /= 2;
		set_range(w, 1, mb_heat_mix(t->seed + n) % (MB_HEAT_BLOCK_PAGES / n) * n, n);
		rc = count_mapped(t, w, entries);
	}
	return rc;
}

/*
 * Small pages are protected when they are taken out, so that one window tells touches and writes.
 * Not where nothing is mapped: the marks would keep a huge page out.
 */
static bool tells_both(const struct mb_tracker *t, const struct window *w, uint64_t entries)
{
	return t->features & MB_PAGEMAP_WRITES &&
	       (w->seen.zoomed || (w->seen.pick.small && !w->n_out && entries));
}

void mb_window_open(
	struct mb_tracker *t, struct window *w, const struct mb_heat_pick *pick, uint64_t now_ns)
{
	struct mb_heat_seen_view *views = w->seen.view;
	unsigned room = mb_windows_room(t, pick->window_ns >= LONG_WINDOW_NS);
	uint64_t entries = 0;
	bool zoom;
	int rc;

	memset(views, 0, t->config.n_views * sizeof(*views));
	memset(w->was_huge, 0, sizeof(w->was_huge));
	w->n_out = 0;
	w->seen = (struct mb_heat_seen){.pick = *pick, .view = views};
	set_range(w, pick->n_blocks, 0, MB_HEAT_BLOCK_PAGES);
	if (!has_memory(t, pick->first_block, pick->n_blocks)) {
		if (has_memory(t, pick->region_first, pick->region_blocks)) {
			w->seen.knows_writes = w->seen.hole = true;
			mb_heat_learn(t->heat, &w->seen, now_ns);
		} else {
			mb_heat_skip(t->heat, pick, false, now_ns);
		}
		return;
	}
	w->seen.zoomed = pick->n_blocks == 1 && find_zoom(t, pick->first_block);
	zoom = pick->zoom && !w->seen.zoomed;
	rc = zoom ? 0 : fit(t, w, room, &entries);
	if (rc) {
		give_up(t, w, "look at page tables", rc, now_ns);
		return;
	}
	/* Picked as one in small pages, and huge since. */
	if (w->n_out > room) {
		mb_heat_skip(t->heat, pick, true, now_ns);
		w->n_out = 0;
		return;
	}
	if (zoom) {
		w->seen.zoomed = w->both = true;
		rc = begin_zoom(t, pick->first_block, now_ns);
	} else {
		unsigned n_calls = 0, huge_ones = n_huge(t, w);
		uint64_t begin_ns = mb_now_ns();

		w->both = tells_both(t, w, entries);
		for (unsigned v = 0; v < t->config.n_views && !rc && (entries || w->both); v++) {
			if (w->both) {
				rc = mb_pagemap_split(t->pm, at(t, v, w->offset), w->len);
				n_calls++;
			} else {
				rc = mb_pagemap_zap(t->pm, at(t, v, w->offset), w->len);
			}
			n_calls++;
		}
		dropped(t, begin_ns);
		/* Each small page is there because of a fault since it was last taken out. Huge
		 * ones may have been mapped by us. */
		mb_tracker_pay(t, entries - huge_ones, 0, n_calls);
		/* The same again when it is protected, and when it is written. */
		w->reserved_ns = (int64_t)((w->both ? 1 : 2) *
					   mb_tracker_cost_ns(t, entries - huge_ones, huge_ones));
		t->guest.left_ns -= w->reserved_ns;
	}
	if (rc) {
		give_up(t, w, "take pages out of page tables", rc, now_ns);
		return;
	}
	w->phase = TOUCHES;
	w->due_ns = now_ns + length_ns(t, w);
}
