// SPDX-License-Identifier: Apache-2.0
#include "content_impl.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/commons.h>
#include <mirrorball/replica.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

/*
 * Pages that did not change between two looks, and the commons of a group. 64 at a time are
 * offered; those that are wanted are given as they were read, those that are there are fetched, and
 * what then has a place is merged, which compares.
 */

#define PIECE	    ((uint64_t)MB_COMMONS_PIECE)
#define PATIENCE_NS 5000000000ull
#define JOIN_NS	    1000000000ull /* a pass waits for a daemon that has just been started */
#define MAX_PIECES  512u

/* A piece of the group that is kept for us. */
struct kept {
	uint64_t index, used_ns;
};

struct group {
	struct mb_content *content;
	struct mb_commons *commons;
	struct mb_commons_base *base;
	unsigned node[MB_HEAT_VIEWS];
	unsigned n_asked; /* answers to come */

	/* Of the offer that is under way. */
	uint64_t there, wanted;		/* bits of the chunk's pages */
	uint64_t place[CHUNK_PAGES];	/* in the group */
	uint64_t placed[MB_HEAT_VIEWS]; /* bits: known to be there on this view's node */

	struct kept kept[MAX_PIECES];
	unsigned n_kept, max_kept;
	uint64_t *merged; /* a bit a page of guest memory: was merged here, when it was looked at
			     last */
};

/* What an answer is of: a view and a page of the chunk, or all of the offer. */
#define OFFERED UINT32_MAX

static void *context(unsigned view, unsigned page)
{
	return (void *)((uintptr_t)view << 32 | page);
}

/* The first view on the same node. */
static unsigned first_on(const struct group *g, unsigned view)
{
	unsigned v = 0;

	while (g->node[v] != g->node[view])
		v++;
	return v;
}

static void release(struct group *g, uint64_t index)
{
	for (unsigned v = 0; v < g->content->config.n_views; v++)
		if (first_on(g, v) == v)
			mb_commons_release(g->base, g->node[v], index * PIECE);
}

/* What is mapped of a piece that is released is still right, but others will have another one. */
static void keep(struct group *g, uint64_t index)
{
	unsigned oldest = 0, i;

	for (i = 0; i < g->n_kept && g->kept[i].index != index; i++)
		if (g->kept[i].used_ns < g->kept[oldest].used_ns)
			oldest = i;
	if (i == g->n_kept && g->n_kept == g->max_kept) {
		i = oldest;
		release(g, g->kept[i].index);
	} else if (i == g->n_kept) {
		g->n_kept++;
	}
	g->kept[i] = (struct kept){.index = index, .used_ns = mb_now_ns()};
}

static void on_done(void *ctx, const struct mb_commons_done *done)
{
	struct group *g = ctx;
	const uintptr_t what = (uintptr_t)done->ctx;
	const unsigned view = (unsigned)(what >> 32), i = (unsigned)what;

	g->n_asked--;
	if (done->status)
		return;
	if (i == OFFERED) {
		g->there = done->there;
		g->wanted = done->wanted;
		return;
	}
	/* For the first view what is wanted is given, and the others fetch it. */
	if (!view && g->wanted >> i & 1)
		mb_content_count(&g->content->stats.given_bytes, PAGE);
	g->place[i] = done->offset;
	g->placed[view] |= 1ull << i;
	keep(g, done->offset / PIECE);
}

/* ---- waiting ---- */

static void wait_ms(struct group *g, int ms)
{
	struct pollfd fds[] = {{.fd = g->content->wake_fd, .events = POLLIN},
		{.fd = mb_commons_fd(g->commons), .events = POLLIN}};

	poll(fds, 2, ms);
	mb_commons_poll(g->commons);
}

/* Until no more than so many answers are to come. A daemon that does not answer is given up. */
static bool await_answers(struct group *g, unsigned left)
{
	uint64_t end_ns = mb_now_ns() + g->content->config.patience_ns;

	while (g->n_asked > left && !mb_content_is_over(g->content) && mb_now_ns() < end_ns)
		wait_ms(g, 100);
	return g->n_asked <= left;
}

/* -EAGAIN: enough is under way, and one is over. */
static bool may_again(struct group *g, int rc)
{
	if (rc != -EAGAIN)
		return false;
	if (g->n_asked)
		return await_answers(g, g->n_asked - 1);
	wait_ms(g, 10);
	return !mb_content_is_over(g->content);
}

/* The daemon is there, and has the key that hashes are made with. */
static bool is_current(const struct group *g)
{
	struct mb_content_key key = mb_commons_key(g->base);

	return !mb_commons_base_status(g->base) && !memcmp(&key, &g->content->key, sizeof(key));
}

bool mb_content_group_begin(struct mb_content *c, bool patient)
{
	struct group *g = c->group;
	const uint64_t end_ns = mb_now_ns() + JOIN_NS;

	if (!g)
		return false;
	mb_commons_poll(g->commons);
	while (patient && mb_commons_base_status(g->base) == -EINPROGRESS && mb_now_ns() < end_ns &&
		!mb_content_is_over(c))
		wait_ms(g, 20);
	/* Answers of before would be taken for those to come. */
	if (mb_commons_base_status(g->base) || !await_answers(g, 0))
		return false;
	c->key = mb_commons_key(g->base);
	c->config.nodes(c->config.ctx, g->node);
	return true;
}

/* ---- merging ---- */

static void note_merged(struct group *g, uint64_t page, uint64_t n)
{
	for (uint64_t i = page; i < page + n; i++) {
		uint64_t *word = &g->merged[i / 64], bit = 1ull << i % 64;

		if (*word & bit ||
			!mb_replicas_is_merged(g->content->config.replicas, i * PAGE, PAGE))
			continue;
		*word |= bit;
		mb_content_count(&g->content->stats.shared_bytes, PAGE);
	}
}

/* Pages i to i + n of the chunk, side by side in a piece. */
static void merge(struct group *g, const struct chunk *chunk, unsigned i, unsigned n)
{
	const struct mb_content_config *config = &g->content->config;
	const uint64_t at = g->place[i], len = n * PAGE;
	struct mb_replicas_source source[MB_HEAT_VIEWS];
	struct mb_merged done = {0};

	for (unsigned v = 0; v < config->n_views; v++)
		if (!mb_commons_find(
			    g->base, g->node[v], at, len, &source[v].fd, &source[v].offset))
			return;
	if (mb_replicas_merge(config->replicas, (chunk->page + i) * PAGE, len, source, &done))
		return;
	mb_content_count(&g->content->stats.were_shared_bytes, done.merged_bytes);
	if (done.merged_bytes)
		note_merged(g, chunk->page + i, n);
}

/* Those that have a place on every view's node. */
static void merge_all(struct group *g, const struct chunk *chunk)
{
	uint64_t placed = ~0ull;

	for (unsigned v = 0; v < g->content->config.n_views; v++)
		placed &= g->placed[first_on(g, v)];
	for (unsigned i = 0, n; i < CHUNK_PAGES && !mb_content_is_over(g->content); i += n) {
		n = 1;
		if (!(placed >> i & 1))
			continue;
		while (i + n < CHUNK_PAGES && placed >> (i + n) & 1 &&
			g->place[i + n] == g->place[i] + n * PAGE &&
			g->place[i + n] / PIECE == g->place[i] / PIECE)
			n++;
		merge(g, chunk, i, n);
	}
}

/* ---- asking ---- */

static bool offer(struct group *g, const struct chunk *chunk, uint64_t same)
{
	struct mb_content_hash hash[CHUNK_PAGES];
	uint64_t there = 0, wanted = 0;
	unsigned n = 0;
	int rc;

	for (uint64_t left = same; left; left &= left - 1)
		hash[n++] = chunk->hash[__builtin_ctzll(left)];
	g->there = g->wanted = 0;
	do
		rc = mb_commons_offer(g->base, hash, n, context(0, OFFERED));
	while (may_again(g, rc));
	g->n_asked += !rc;
	if (rc || !await_answers(g, 0))
		return false;
	/* Bits of those that were offered, to bits of the chunk. */
	n = 0;
	for (uint64_t left = same; left; left &= left - 1, n++) {
		there |= (g->there >> n & 1) << __builtin_ctzll(left);
		wanted |= (g->wanted >> n & 1) << __builtin_ctzll(left);
	}
	g->there = there;
	g->wanted = wanted;
	return there | wanted;
}

/* give: it is not there yet. */
static void ask_for(
	struct group *g, const struct chunk *chunk, unsigned view, unsigned i, bool give)
{
	const struct mb_content_hash *hash = &chunk->hash[i];
	int rc;

	do
		rc = give ? mb_commons_give(g->base, g->node[view], hash, chunk->data + i * PAGE,
				    context(view, i))
			  : mb_commons_fetch(g->base, g->node[view], hash, context(view, i));
	while (may_again(g, rc));
	g->n_asked += !rc;
}

void mb_content_group_take(struct mb_content *c, const struct chunk *chunk, uint64_t same)
{
	struct group *g = c->group;

	/* It may have gone since, or be another one. */
	if (!same || !g || g->n_asked || !is_current(g))
		return;
	memset(g->placed, 0, sizeof(g->placed));
	if (!offer(g, chunk, same) || !is_current(g))
		return;
	for (uint64_t left = g->there | g->wanted; left; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);

		ask_for(g, chunk, 0, i, g->wanted >> i & 1);
	}
	/* What was given has a place now, and the other nodes get it from there. */
	for (unsigned v = 1; v < c->config.n_views && await_answers(g, 0); v++)
		for (uint64_t left = first_on(g, v) == v ? g->placed[0] : 0; left; left &= left - 1)
			ask_for(g, chunk, v, (unsigned)__builtin_ctzll(left), false);
	if (await_answers(g, 0))
		merge_all(g, chunk);
}

void mb_content_group_recount(struct mb_content *c, uint64_t first, uint64_t end)
{
	struct group *g = c->group;

	for (uint64_t word = first / 64; g && word < (end + 63) / 64; word++)
		for (uint64_t left = g->merged[word]; left; left &= left - 1) {
			unsigned i = (unsigned)__builtin_ctzll(left);

			if (mb_replicas_is_merged(c->config.replicas, (word * 64 + i) * PAGE, PAGE))
				continue;
			g->merged[word] &= ~(1ull << i);
			mb_content_count(&c->stats.shared_bytes, -PAGE);
		}
}

const char *mb_content_group_state(const struct mb_content *c)
{
	return __atomic_load_n(&c->ready, __ATOMIC_RELAXED)
		       ? "zeroes and a trust group"
		       : "zeroes, and no commons for the trust group";
}

/* ---- its life ---- */

int mb_content_group_create(struct mb_content *c, struct mb_error *err)
{
	struct mb_commons_config commons = {
		.path = c->config.socket, .start = c->config.start, .done = on_done};
	struct group *g = calloc(1, sizeof(*g));
	int rc;

	if (!g)
		return mb_error_set(err, ENOMEM, "sharing by content: out of memory");
	c->group = g;
	g->content = c;
	g->max_kept = mb_commons_most_pieces(c->config.ram_bytes, c->config.n_views, MAX_PIECES);
	if (!c->config.patience_ns)
		c->config.patience_ns = PATIENCE_NS;
	g->merged = calloc((c->config.ram_bytes / PAGE + 63) / 64, sizeof(*g->merged));
	if (!g->merged)
		return mb_error_set(err, ENOMEM, "sharing by content: out of memory");
	commons.ctx = g;
	rc = mb_commons_create(&commons, &g->commons, err);
	if (rc)
		return rc;
	rc = mb_commons_join(g->commons, c->config.group, &g->base);
	return rc ? mb_error_set(err, -rc, "sharing by content: trust group '%s': %s",
			    c->config.group, strerror(-rc))
		  : 0;
}

void mb_content_group_destroy(struct group *g)
{
	if (!g)
		return;
	mb_commons_destroy(g->commons);
	free(g->merged);
	free(g);
}
