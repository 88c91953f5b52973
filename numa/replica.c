// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <limits.h>
#include <mirrorball/clock.h>
#include <mirrorball/range.h>
#include <unistd.h>

#include "replica_internal.h"

#define LEVEL_MAX 12u /* it has doubled so often: more than an hour */
#define FORGIVE	  8u  /* a copy that was not written for so many waits has paid for itself */
/* So many single pages of a block are collapsed, and one more for each so many of its pages that
 * are left, then all of it: a write that waits costs as much as some six pages' copies. */
#define PAGE_FAULTS   3u
#define PAGES_A_FAULT 8u
#define SINGLE_SHARE  2u /* of the mappings that there may be */
#define MERGED_EIGHTHS 3u /* of them: less than that, for copies */
/* For a writer of a block that is being copied, until the worker has the block: some 40 ms. */
#define WRITERS_NS    50000l
#define WRITERS_TRIES 400u

/* ---- back-off ---- */

static uint64_t now_ms(const struct mb_replicas *r)
{
	return (mb_now_ns() - r->start_ns) / 1000000;
}

static uint64_t until_ms(const struct page *p)
{
	return (uint64_t)p->until_high << 32 | p->until_ms;
}

static bool waits(const struct page *p, uint64_t now)
{
	return p->level && now < until_ms(p);
}

bool mb_replica_waits(const struct mb_replicas *r, const struct page *p)
{
	return waits(p, now_ms(r));
}

static uint64_t wait_ms(const struct mb_replicas *r, unsigned level)
{
	return level ? r->config.backoff_ns / 1000000 << (level - 1) : 0;
}

static void back_off(const struct mb_replicas *r, struct page *p, uint64_t now)
{
	uint64_t until = until_ms(p);

	if (now > until && now - until > FORGIVE * wait_ms(r, p->level))
		p->level = 0;
	if (p->level < LEVEL_MAX)
		p->level++;
	until = now + wait_ms(r, p->level);
	p->until_high = (uint8_t)(until >> 32);
	p->until_ms = (uint32_t)until;
}

/* ---- collapse ---- */

/* What views have of pages; bit k: view k. */
struct found {
	unsigned copies, merged, away; /* a copy, or anything but HOME_OPEN, of any of them */
	uint64_t n_copies;	       /* pages */
};

static struct found look(const struct mb_replicas *r, uint64_t first, uint64_t n)
{
	struct found f = {0};

	for (uint64_t i = first; i < first + n; i++) {
		uint16_t map = r->page[i].map;

		for (unsigned v = 0; map && v < r->config.n_views; v++) {
			enum mapping mapping = mb_replica_mapping(map, v);

			f.copies |= (unsigned)(mapping == COPY_PROTECTED) << v;
			f.merged |= (unsigned)(mapping == MERGED_PROTECTED) << v;
			f.away |= (unsigned)(mapping != HOME_OPEN) << v;
			f.n_copies += mapping == COPY_PROTECTED;
		}
	}
	return f;
}

static int open_views(
	struct mb_replicas *r, uint64_t first, uint64_t n, unsigned views, enum patience patience)
{
	int rc = 0;

	for (unsigned v = 0; v < r->config.n_views && !rc; v++)
		if (views >> v & 1)
			rc = mb_replica_open(r, v, first, n, patience);
	return rc;
}

/*
 * Copies are withdrawn from one view after the other, so that home is still protected everywhere,
 * and the last view's make way for home that may be written: then there is one. Pages between that
 * are at home already get nothing else: so it is as many calls however many extents there are.
 * What is merged is as a copy, once home has it again.
 */
static int collapse_views(struct mb_replicas *r, uint64_t first, uint64_t n, const struct found *f,
	enum patience patience)
{
	unsigned copies = f->copies | f->merged, away = f->away;
	int rc;

	if (copies & (copies - 1) && patience == AT_ONCE)
		return -EAGAIN;
	rc = mb_replica_fill_home(r, first, n, patience);
	if (rc)
		return rc;
	if (MB_REPLICA_WRONG == WRONG_OPEN_FIRST) {
		rc = open_views(r, first, n, away & ~copies, patience);
		usleep(1000);
	}
	while (copies && !rc) {
		unsigned v = (unsigned)__builtin_ctz(copies);

		copies &= copies - 1;
		if (copies) {
			rc = mb_replica_withdraw(r, v, first, n, patience);
		} else {
			rc = mb_replica_open(r, v, first, n, patience);
			away &= ~(1u << v);
		}
	}
	return rc ? rc : open_views(r, first, n, away, patience);
}

int mb_replica_collapse_pages(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, enum patience patience)
{
	uint64_t from = first, to = first + n;
	struct found before, after;
	int rc;

	/* A block that is mapped anew as a whole may be huge again; otherwise nothing more than has
	 * to be. */
	while (from < to && !r->page[from].map && n < BLOCK_PAGES)
		from++;
	while (to > from && !r->page[to - 1].map && n < BLOCK_PAGES)
		to--;
	before = look(r, from, to - from);
	rc = collapse_views(r, from, to - from, &before, patience);
	/* Who was told of so late that nothing was left to do waits as well. */
	if (!rc)
		mb_replica_wake(r, first, n);
	b->woken_ns = mb_now_ns();
	/* If it failed, what was withdrawn is in no view any more. */
	after = look(r, from, to - from);
	mb_replica_free(r, from, to - from, before.copies & ~after.copies,
		before.n_copies - after.n_copies);
	for (unsigned v = 0; v < r->config.n_views && !rc; v++)
		if (before.away >> v & 1)
			mb_replica_settle(r, v, from, to - from);
	return rc;
}

/*
 * Lets go of a block. Only here, when all is done: a part that fails may leave a block empty for a
 * moment, of which the next part gets copies.
 */
void mb_replica_unlock(struct block *b)
{
	if (!b->n_away)
		__atomic_store_n(&b->active, false, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&b->lock);
}

static bool is_away(const struct mb_replicas *r, uint64_t first, uint64_t n)
{
	uint64_t i = 0;

	while (i < n && !r->page[first + i].map)
		i++;
	return i < n;
}

/*
 * Whether single pages of a block may be one again. Each leaves more mappings behind, and a whole
 * block between others that have copies some: so the former ends early, and the worker gives up
 * copies before the latter fails for want of them.
 */
static bool may_be_single(struct mb_replicas *r)
{
	uint64_t mappings = mb_replica_n_mappings(r);

	if (mappings > r->config.max_mappings)
		mb_replica_give_up_some(r);
	return mappings <= r->config.max_mappings / SINGLE_SHARE;
}

/* Whether the next write makes all of the block's pages one again, and not only what was written.
 */
static bool takes_all(struct mb_replicas *r, const struct block *b)
{
	/* What is merged takes no memory: it stays, as long as there are mappings for it. */
	const bool merged = __atomic_load_n(&r->block_merged[b - r->block], __ATOMIC_RELAXED);

	return (!merged && b->n_faults >= PAGE_FAULTS + b->n_away / PAGES_A_FAULT) ||
	       !may_be_single(r);
}

int mb_replica_written(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, enum patience patience)
{
	uint64_t block_first = (uint64_t)(b - r->block) * BLOCK_PAGES;
	unsigned before = b->n_away;
	uint64_t now = now_ms(r);
	int rc;

	/* Another writer was first. */
	if (!is_away(r, first, n))
		return mb_replica_collapse_pages(r, b, first, n, patience);
	if (takes_all(r, b)) {
		rc = mb_replica_collapse_pages(r, b, block_first, BLOCK_PAGES, patience);
		if (!rc)
			back_off(r, &b->whole, now);
	} else {
		rc = mb_replica_collapse_pages(r, b, first, n, patience);
		for (uint64_t i = first; i < first + n && !rc; i++)
			back_off(r, &r->page[i], now);
	}
	b->n_faults += !rc;
	if (before > b->n_away)
		__atomic_add_fetch(&r->stats.n_collapsed, before - b->n_away, __ATOMIC_RELAXED);
	return rc;
}

int mb_replica_each_block(struct mb_replicas *r, uint64_t offset, uint64_t len,
	int (*fn)(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg),
	void *arg)
{
	uint64_t first = offset / PAGE, end = (offset + len + PAGE - 1) / PAGE;
	int rc = 0;

	if (!mb_range_inside(offset, len, 0, r->config.ram_bytes))
		return -EINVAL;
	while (first < end && !rc) {
		uint64_t next = (first / BLOCK_PAGES + 1) * BLOCK_PAGES;

		if (next > end)
			next = end;
		rc = fn(r, &r->block[first / BLOCK_PAGES], first, next - first, arg);
		first = next;
	}
	return rc;
}

int mb_replica_collapse_part(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	int rc = 0;

	if (!__atomic_load_n(&b->active, __ATOMIC_SEQ_CST))
		return 0;
	pthread_mutex_lock(&b->lock);
	if (is_away(r, first, n) && n < BLOCK_PAGES && !may_be_single(r)) {
		rc = mb_replica_collapse_pages(
			r, b, (uint64_t)(b - r->block) * BLOCK_PAGES, BLOCK_PAGES, PATIENT);
		if (!rc)
			back_off(r, &b->whole, now_ms(r));
	} else if (is_away(r, first, n)) {
		rc = mb_replica_collapse_pages(r, b, first, n, PATIENT);
	}
	mb_replica_unlock(b);
	return rc;
}

/* -EBUSY: somebody is at it, and may wait for us. */
static int try_collapse(struct mb_replicas *r, uint64_t k)
{
	struct block *b = &r->block[k];
	int rc = 0;

	if (pthread_mutex_trylock(&b->lock))
		return -EBUSY;
	if (b->n_away)
		rc = mb_replica_collapse_pages(r, b, k * BLOCK_PAGES, BLOCK_PAGES, SHORT_PATIENCE);
	mb_replica_unlock(b);
	return rc;
}

/* The one that frees most mappings, from `from` on; of none of them, the end of several side by
 * side, so that they free some in the end; n_blocks: there is none at all. */
static uint64_t dearest_block(struct mb_replicas *r, uint64_t from)
{
	const bool too_many = mb_replica_n_mappings(r) > r->config.max_mappings;
	uint64_t best = r->n_blocks;
	int most = INT_MIN;

	for (uint64_t i = 0; i < r->n_blocks && most <= 0; i++) {
		uint64_t k = (from + i) % r->n_blocks;
		int freed;

		if (!__atomic_load_n(&r->block[k].active, __ATOMIC_SEQ_CST))
			continue;
		/* What is merged takes memory when it ends: only for want of mappings. */
		if (!too_many && __atomic_load_n(&r->block_merged[k], __ATOMIC_RELAXED))
			continue;
		freed = mb_replica_freed_mappings(r, k);
		if (freed > most) {
			most = freed;
			best = k;
		}
	}
	return best;
}

int mb_replica_give_up_block(struct mb_replicas *r)
{
	for (uint64_t from = r->given_up, n = 0; n < r->n_blocks; n++) {
		uint64_t k = dearest_block(r, from);
		int rc;

		if (k == r->n_blocks)
			return -ENOENT;
		rc = try_collapse(r, k);
		from = r->given_up = k + 1;
		if (rc != -EBUSY)
			return rc;
	}
	return -EBUSY;
}

int mb_replicas_collapse(struct mb_replicas *r, uint64_t offset, uint64_t len)
{
	return r ? mb_replica_each_block(r, offset, len, mb_replica_collapse_part, NULL) : 0;
}

/* What is merged stays: it takes less memory than what is not. */
static int collapse_copies(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	int rc = 0;

	if (!__atomic_load_n(&r->block_merged[b - r->block], __ATOMIC_RELAXED))
		return mb_replica_collapse_part(r, b, first, n, NULL);
	pthread_mutex_lock(&b->lock);
	for (uint64_t i = first, end; i < first + n && !rc; i = end) {
		for (end = i + 1; end < first + n && r->page[end].merged == r->page[i].merged;)
			end++;
		if (!r->page[i].merged && is_away(r, i, end - i))
			rc = mb_replica_collapse_pages(r, b, i, end - i, PATIENT);
	}
	mb_replica_unlock(b);
	return rc;
}

int mb_replicas_collapse_copies(struct mb_replicas *r, uint64_t offset, uint64_t len)
{
	return r ? mb_replica_each_block(r, offset, len, collapse_copies, NULL) : 0;
}

static bool has_copies(const struct mb_replicas *r, uint64_t block, unsigned views)
{
	bool has = false;

	for (unsigned v = 0; v < r->config.n_views && !has; v++)
		has = views >> v & 1 &&
		      __atomic_load_n(&r->block_pages[v][block], __ATOMIC_RELAXED) > 0;
	return has;
}

uint64_t mb_replicas_reclaim(struct mb_replicas *r, uint64_t bytes, unsigned views)
{
	uint64_t before = r ? __atomic_load_n(&r->bytes, __ATOMIC_RELAXED) : 0, now = before;
	int rc = 0;

	/* A collapse that fails has tried for 10 s. */
	for (uint64_t i = 0; r && i < r->n_blocks && now && before - now < bytes && !rc; i++) {
		uint64_t k = __atomic_fetch_add(&r->cursor, 1, __ATOMIC_RELAXED) % r->n_blocks;

		if (!has_copies(r, k, views))
			continue;
		rc = mb_replicas_collapse_copies(r, k * BLOCK, BLOCK);
		now = __atomic_load_n(&r->bytes, __ATOMIC_RELAXED);
		if (now > before)
			before = now; /* others make some */
	}
	return before - now;
}

void mb_replicas_no_more(struct mb_replicas *r)
{
	if (r)
		__atomic_store_n(&r->config.max_bytes,
			__atomic_load_n(&r->bytes, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
}

bool mb_replicas_reclaim_old(struct mb_replicas *r, unsigned n)
{
	uint64_t left;

	while (r && n && (left = __atomic_load_n(&r->n_old, __ATOMIC_ACQUIRE)) != 0) {
		struct block *b = &r->block[left - 1];

		if (__atomic_load_n(&b->active, __ATOMIC_SEQ_CST))
			n = mb_replicas_collapse_copies(r, (left - 1) * BLOCK, BLOCK) ? 0 : n - 1;
		/* Unless it was begun anew meanwhile. */
		__atomic_compare_exchange_n(
			&r->n_old, &left, left - 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	}
	return r && __atomic_load_n(&r->n_old, __ATOMIC_RELAXED);
}

float mb_replicas_share(const struct mb_replicas *r, uint64_t offset, uint64_t len, unsigned view)
{
	uint64_t first = offset / PAGE, end = (offset + len) / PAGE, n = 0;

	if (!r || view >= r->config.n_views ||
		!mb_range_inside(offset, len, 0, r->config.ram_bytes))
		return 0;
	for (uint64_t i = first, next; i < end; i = next) {
		unsigned in_block =
			__atomic_load_n(&r->block_pages[view][i / BLOCK_PAGES], __ATOMIC_RELAXED) +
			__atomic_load_n(&r->block_merged[i / BLOCK_PAGES], __ATOMIC_RELAXED);

		next = (i / BLOCK_PAGES + 1) * BLOCK_PAGES;
		if (next > end)
			next = end;
		if (next - i == BLOCK_PAGES || !in_block) {
			n += in_block;
			continue;
		}
		for (uint64_t k = i; k < next; k++)
			n += mb_replica_mapping(__atomic_load_n(&r->page[k].map, __ATOMIC_RELAXED),
				     view) >= COPY_PROTECTED;
	}
	return (float)n * (float)PAGE / (float)len;
}

struct remap {
	unsigned view;
};

static int remap_part(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	const struct remap *remap = arg;
	int rc = 0;

	pthread_mutex_lock(&b->lock);
	if (!b->n_away) {
		rc = mb_replica_open(r, remap->view, first, n, AT_ONCE);
		if (!rc)
			mb_replica_settle(r, remap->view, first, n);
	}
	pthread_mutex_unlock(&b->lock);
	return rc;
}

void mb_replicas_keep_small(struct mb_replicas *r, uint64_t offset, bool small)
{
	struct block *b;

	if (!r || !mb_range_inside(offset, BLOCK, 0, r->config.ram_bytes))
		return;
	b = &r->block[offset / BLOCK];
	pthread_mutex_lock(&b->lock);
	b->small = small;
	pthread_mutex_unlock(&b->lock);
}

int mb_replicas_remap(struct mb_replicas *r, unsigned view, uint64_t offset, uint64_t len)
{
	struct remap remap = {.view = view};

	if (view >= r->config.n_views)
		return -EINVAL;
	return mb_replica_each_block(r, offset, len, remap_part, &remap);
}

void mb_replicas_discard(struct mb_replicas *r, bool discard)
{
	if (r)
		__atomic_store_n(&r->discard, discard, __ATOMIC_SEQ_CST);
}

/* ---- replicate ---- */

struct job {
	unsigned views; /* 0: protect only */
	bool finish;	/* only what is protected */
	struct mb_replicated *done;
};

bool mb_replica_has_mappings(struct mb_replicas *r)
{
	mb_replica_store_mappings(r);
	return mb_replica_n_mappings(r) + 2 * (r->config.n_views + 1) <= r->config.max_mappings &&
	       __atomic_load_n(&r->spare, __ATOMIC_RELAXED);
}

bool mb_replica_may_merge(struct mb_replicas *r)
{
	return mb_replica_has_mappings(r) &&
	       mb_replica_n_mappings(r) < r->config.max_mappings / 8 * MERGED_EIGHTHS;
}

/* Takes its memory and its mappings from what is left. */
static bool has_room(struct mb_replicas *r, uint64_t n, unsigned views)
{
	const uint64_t max_bytes = __atomic_load_n(&r->config.max_bytes, __ATOMIC_RELAXED);
	uint64_t bytes = n * PAGE * (unsigned)__builtin_popcount(views);

	if (!mb_replica_has_mappings(r))
		return false;
	/* What is protected only has room if one view's copies would have. */
	if (!views)
		return __atomic_load_n(&r->bytes, __ATOMIC_RELAXED) + n * PAGE <= max_bytes;
	if (__atomic_add_fetch(&r->bytes, bytes, __ATOMIC_RELAXED) <= max_bytes)
		return true;
	__atomic_sub_fetch(&r->bytes, bytes, __ATOMIC_RELAXED);
	return false;
}

int mb_replica_protect_all(
	struct mb_replicas *r, uint64_t first, uint64_t n, bool insist, bool brief)
{
	int rc = 0;

	for (unsigned v = 0; v < r->config.n_views && !rc; v++) {
		rc = mb_replica_is_wanted(r, first, insist);
		if (rc)
			break;
		if (mb_replica_mapping(r->page[first].map, v) == HOME_OPEN)
			rc = brief ? mb_replica_protect_here(r, v, first, n)
				   : mb_replica_protect(r, v, first, n);
	}
	return rc;
}

static int copy_all(struct mb_replicas *r, uint64_t first, uint64_t n, unsigned views, bool insist,
	void **stage)
{
	int rc = 0;

	for (unsigned v = 0; v < r->config.n_views && !rc; v++) {
		if (!(views >> v & 1))
			continue;
		rc = mb_replica_is_wanted(r, first, insist);
		if (rc)
			break;
		rc = mb_replica_copy(r, v, first, n, insist, &stage[v]);
		if (rc)
			stage[v] = NULL;
	}
	return rc;
}

static int install_all(
	struct mb_replicas *r, uint64_t first, uint64_t n, unsigned views, void **stage)
{
	int rc = 0;

	for (unsigned v = 0; v < r->config.n_views; v++) {
		if (!(views >> v & 1) || !stage[v])
			continue;
		if (rc)
			mb_replica_drop(r, stage[v], n);
		else
			rc = mb_replica_install(r, v, first, n, COPY_PROTECTED, stage[v]);
		stage[v] = NULL;
	}
	return rc;
}

/*
 * Protect, copy, install; or, with no views, protect. Pages [first, first + n) are alike, and have
 * no copy: HOME_OPEN, or protected before. Caller has the lock.
 */
static int replicate_pages(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, unsigned views)
{
	const bool insist = !views || r->page[first].map;
	void *stage[MB_HEAT_VIEWS] = {NULL};
	struct found f;
	int rc = 0;

	if (MB_REPLICA_WRONG == WRONG_COPY_FIRST)
		rc = copy_all(r, first, n, views, insist, stage);
	if (!rc)
		rc = mb_replica_protect_all(r, first, n, insist, false);
	if (!rc && MB_REPLICA_WRONG != WRONG_COPY_FIRST)
		rc = copy_all(r, first, n, views, insist, stage);
	if (!rc)
		rc = mb_replica_is_wanted(r, first, insist);
	if (!rc)
		rc = install_all(r, first, n, views, stage);
	if (!rc)
		return 0;
	for (unsigned v = 0; v < r->config.n_views; v++)
		if (stage[v])
			mb_replica_drop(r, stage[v], n);
	/* Those that are in no view; those that are go with the collapse. */
	f = look(r, first, n);
	mb_replica_free(r, first, n, views & ~f.copies,
		n * (unsigned)__builtin_popcount(views & ~f.copies));
	/* What cannot be undone now is undone by the first write. */
	mb_replica_collapse_pages(r, b, first, n, PATIENT);
	return rc;
}

static void replicate_run(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, struct job *job)
{
	int rc;

	if (!has_room(r, n, job->views)) {
		job->done->full_bytes += n * PAGE;
		if (r->page[first].map)
			mb_replica_collapse_pages(r, b, first, n, PATIENT);
		return;
	}
	rc = replicate_pages(r, b, first, n, job->views);
	if (!rc) {
		job->done->copied_bytes += n * PAGE;
		__atomic_add_fetch(&r->stats.copied_bytes,
			n * PAGE * (unsigned)__builtin_popcount(job->views), __ATOMIC_RELAXED);
	} else if (rc == -ECANCELED) {
		job->done->held_bytes += n * PAGE;
	} else {
		job->done->failed_bytes += n * PAGE;
	}
}

bool mb_replica_block_is_wanted(const struct block *b)
{
	return __atomic_load_n(&b->queued, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&b->holds, __ATOMIC_SEQ_CST);
}

/* One run after the other, until somebody waits for the block; how many pages that were. */
static uint64_t replicate_runs(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, struct job *job)
{
	const uint64_t now = now_ms(r);
	uint64_t i, run, alike = 0;
	bool hole = false;

	for (i = 0; i < n && !(i && mb_replica_block_is_wanted(b)); i += run, alike -= run) {
		const struct page *p = &r->page[first + i];
		struct found f = look(r, first + i, 1);
		bool there = job->views ? f.copies | f.merged : p->map != 0;
		bool wait = waits(p, now);

		if (!alike)
			alike = mb_replica_alike(r, first + i, n - i, &hole);
		for (run = 1; run < alike && p[run].map == p->map && waits(&p[run], now) == wait;)
			run++;
		if (hole && !p->map)
			job->done->hole_bytes += run * PAGE;
		else if (there)
			job->done->there_bytes += run * PAGE;
		else if (job->finish ? !p->map : wait)
			job->done->waiting_bytes += run * PAGE;
		else
			replicate_run(r, b, first + i, run, job);
	}
	return i;
}

/* What was protected for copies that cannot be made now. */
static void give_up_protected(struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0, run; i < n; i += run) {
		const struct page *p = &r->page[first + i];
		struct found f = look(r, first + i, 1);

		for (run = 1; i + run < n && p[run].map == p->map;)
			run++;
		if (p->map && !f.copies && !f.merged)
			mb_replica_collapse_pages(r, b, first + i, run, PATIENT);
	}
}

/*
 * A lock is not handed over: whoever asks for it again at once would have it again. False: it took
 * too long, as where memory is short.
 */
static bool let_writers(const struct block *b)
{
	const struct timespec wait = {.tv_nsec = WRITERS_NS};
	unsigned i = 0;

	while (__atomic_load_n(&b->queued, __ATOMIC_RELAXED) && i++ < WRITERS_TRIES)
		nanosleep(&wait, NULL);
	return i < WRITERS_TRIES;
}

/* Writers of the block wait for one run of pages, not for all of them; nor does who holds it. */
static int replicate_part(
	struct mb_replicas *r, struct block *b, uint64_t first, uint64_t n, void *arg)
{
	struct job *job = arg;
	bool begun = false, held = false;

	for (uint64_t done; n; first += done, n -= done) {
		pthread_mutex_lock(&b->lock);
		__atomic_store_n(&b->active, true, __ATOMIC_SEQ_CST);
		held = held || __atomic_load_n(&b->holds, __ATOMIC_SEQ_CST);
		if (held || waits(&b->whole, now_ms(r))) {
			*(held ? &job->done->held_bytes : &job->done->waiting_bytes) += n * PAGE;
			if (job->finish)
				give_up_protected(r, b, first, n);
			done = n;
		} else {
			if (!b->n_away && !begun)
				b->n_faults = 0;
			begun = true;
			done = replicate_runs(r, b, first, n, job);
		}
		mb_replica_unlock(b);
		if (done < n)
			held = !let_writers(b);
	}
	return 0;
}

static int replicate(struct mb_replicas *r, uint64_t offset, uint64_t len, struct job *job)
{
	if ((offset | len) % PAGE || !job->views || job->views >> r->config.n_views)
		return -EINVAL;
	return mb_replica_each_block(r, offset, len, replicate_part, job);
}

int mb_replicas_replicate(struct mb_replicas *r, uint64_t offset, uint64_t len, unsigned views,
	struct mb_replicated *done)
{
	struct job job = {.views = views, .done = done};

	return replicate(r, offset, len, &job);
}

int mb_replicas_finish(struct mb_replicas *r, uint64_t offset, uint64_t len, unsigned views,
	struct mb_replicated *done)
{
	struct job job = {.views = views, .finish = true, .done = done};

	return replicate(r, offset, len, &job);
}

int mb_replicas_protect(
	struct mb_replicas *r, uint64_t offset, uint64_t len, struct mb_replicated *done)
{
	struct job job = {.done = done};

	if ((offset | len) % PAGE)
		return -EINVAL;
	return mb_replica_each_block(r, offset, len, replicate_part, &job);
}
