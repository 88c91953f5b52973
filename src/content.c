// SPDX-License-Identifier: Apache-2.0
#include "content_impl.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/range.h>
#include <mirrorball/replica.h>
#include <mirrorball/thread.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLICE_PAGES 16384u /* 64 MiB, between two looks */
#define SETTLE_NS   2000000000ull
#define PASS_NS	    30000000000ull
#define EARLY	    6u /* passes, which come so many times as fast */
#define DEBT_NS	    2000000ull /* of CPU time, and then it rests: few long rests */
#define CREDIT_NS   50000000ull /* of CPU time at most that a rest earns */
#define PPM	    1000000ull
#define STACK_BYTES (256u << 10)
/* Of a block that is all there, and so may be a huge page, so much has to be zero to take it apart.
 */
#define MIN_ZERO  (BLOCK_PAGES / 8)
#define MAX_LEVEL 6u
#define ZERO	  1u /* in `seen` */

/* Of what is touched again and again though it stays zero, to punch it is for nothing. */
struct back_off {
	uint16_t punched;    /* pages, the last time */
	uint8_t skip, level; /* passes that it is left alone; twice as many each time */
};

bool mb_content_is_over(const struct mb_content *c)
{
	return __atomic_load_n(&c->stop, __ATOMIC_RELAXED);
}

void mb_content_count(uint64_t *what, uint64_t n)
{
	__atomic_add_fetch(what, n, __ATOMIC_RELAXED);
}

/* ---- the budget ---- */

static void rest_until(struct mb_content *c, uint64_t end_ns)
{
	struct pollfd fd = {.fd = c->wake_fd, .events = POLLIN};
	uint64_t now_ns;

	while (!mb_content_is_over(c) && (now_ns = mb_now_ns()) < end_ns) {
		uint64_t ms = (end_ns - now_ns) / 1000000 + 1;

		poll(&fd, 1, ms < 1000 ? (int)ms : 1000);
	}
}

uint64_t mb_content_rest_ns(struct mb_content_budget *b, uint64_t now_ns, uint64_t used_ns)
{
	const uint64_t ns = now_ns - b->clock_ns, spent_ns = used_ns - b->used_ns;
	/* Not ns * ppm, which has no room for some days. */
	const uint64_t earned_ns = ns / PPM * b->ppm + ns % PPM * b->ppm / PPM;

	if (earned_ns > spent_ns + CREDIT_NS) {
		b->clock_ns = now_ns - CREDIT_NS * PPM / b->ppm;
		b->used_ns = used_ns;
	}
	return spent_ns > earned_ns + DEBT_NS ? (spent_ns - earned_ns) * PPM / b->ppm : 0;
}

bool mb_content_pay(struct mb_content *c)
{
	const uint64_t used_ns = mb_clock_ns(CLOCK_THREAD_CPUTIME_ID), now_ns = mb_now_ns();
	const uint64_t ns = mb_content_rest_ns(&c->budget, now_ns, used_ns);

	__atomic_store_n(&c->stats.cpu_ns, used_ns, __ATOMIC_RELAXED);
	if (ns)
		rest_until(c, now_ns + ns);
	return !mb_content_is_over(c);
}

/* ---- looking ---- */

/* The next page from here on that has memory; `end`: none before that. */
static uint64_t next_data(const struct mb_content *c, uint64_t page, uint64_t end)
{
	off_t at = lseek(c->config.ram_fd, (off_t)(page * PAGE), SEEK_DATA);

	/* ENXIO: no memory from there on. Whatever else it is: as if it was there. */
	if (at < 0)
		return errno == ENXIO ? end : page;
	return (uint64_t)at / PAGE < end ? (uint64_t)at / PAGE : end;
}

/*
 * Which pages are in memory: to read a hole is for nothing, and what is swapped out is to stay
 * there. From the file itself: no page enters a page table.
 */
static void read_chunk(struct mb_content *c, struct chunk *chunk, uint64_t page, uint64_t end)
{
	unsigned char there[CHUNK_PAGES];
	const unsigned n = end - page < CHUNK_PAGES ? (unsigned)(end - page) : CHUNK_PAGES;

	chunk->page = page;
	chunk->present = 0;
	chunk->data = c->data;
	if (mincore((char *)c->config.own_base + page * PAGE, n * PAGE, there))
		return;
	/* What is merged is in the daemon's file, which own_base has mapped there: ours has a hole.
	 */
	for (unsigned i = 0; i < n; i++)
		if (mb_replicas_is_merged(c->config.replicas, (page + i) * PAGE, PAGE))
			there[i] = 0;
	for (unsigned i = 0, run; i < n; i += run) {
		for (run = 1; i + run < n && (there[i + run] & 1) == (there[i] & 1);)
			run++;
		if (!(there[i] & 1) || pread(c->config.ram_fd, c->data + i * PAGE, run * PAGE,
					       (off_t)((page + i) * PAGE)) != (ssize_t)(run * PAGE))
			continue;
		chunk->present |= (run < 64 ? (1ull << run) - 1 : ~0ull) << i;
		mb_content_count(&c->stats.scanned_pages, run);
	}
}

static uint64_t look_at(const struct mb_content *c, struct chunk *chunk, unsigned i)
{
	const char *page = chunk->data + i * PAGE;

	if (mb_is_zero(page, PAGE))
		return ZERO;
	chunk->hash[i] = mb_content_hash(&c->key, page);
	return chunk->hash[i].word[0] > ZERO ? chunk->hash[i].word[0] : ZERO + 1;
}

/* The first look: what each page has. False: there is nothing to come back for. */
static bool look_first(struct mb_content *c, uint64_t first, uint64_t end)
{
	bool any = false;

	memset(c->seen, 0, SLICE_PAGES * sizeof(*c->seen));
	for (uint64_t page = first; page < end && mb_content_pay(c);) {
		struct chunk chunk;

		page = next_data(c, page, end) & ~(uint64_t)(CHUNK_PAGES - 1);
		if (page >= end)
			break;
		read_chunk(c, &chunk, page, end);
		for (uint64_t left = chunk.present; left; left &= left - 1) {
			unsigned i = (unsigned)__builtin_ctzll(left);

			c->seen[page - first + i] = look_at(c, &chunk, i);
			any = true;
		}
		page += CHUNK_PAGES;
	}
	return any;
}

/* ---- zeroes ---- */

/* What is known of a block after the second look. */
struct block_look {
	unsigned n_zero, n_present;
	bool zero[BLOCK_PAGES];
};

static bool is_worth_it(struct back_off *b, const struct block_look *look)
{
	if (look->n_present == BLOCK_PAGES && look->n_zero < MIN_ZERO)
		return false;
	if (b->skip) {
		b->skip--;
		return false;
	}
	/* Most of what was punched the last time is back. */
	if (b->punched && look->n_zero > b->punched / 2u) {
		if (b->level < MAX_LEVEL)
			b->level++;
		b->skip = (uint8_t)((1u << b->level) - 1);
		b->punched = 0;
		return false;
	}
	/* What was skipped is tried again, and remembers why. */
	if (!b->punched && b->level)
		return true;
	b->level = 0;
	return true;
}

static void punch_block(struct mb_content *c, uint64_t first, const struct block_look *look)
{
	struct back_off *b = &c->back_off[first / BLOCK_PAGES];
	struct mb_punched done = {0};

	if (!look->n_zero) {
		*b = (struct back_off){0};
		return;
	}
	if (!is_worth_it(b, look))
		return;
	for (unsigned i = 0, run; i < BLOCK_PAGES; i += run) {
		for (run = 1; i + run < BLOCK_PAGES && look->zero[i + run] == look->zero[i];)
			run++;
		if (look->zero[i])
			mb_replicas_punch(
				c->config.replicas, (first + i) * PAGE, run * PAGE, &done);
	}
	b->punched = (uint16_t)(done.punched_bytes / PAGE);
	mb_content_count(&c->stats.zero_bytes, done.punched_bytes);
}

/* ---- the second look ---- */

/* The rest is offered when what was read is still at hand. */
static void look_at_chunk(
	struct mb_content *c, struct block_look *look, uint64_t first, uint64_t page, uint64_t end)
{
	struct chunk chunk;
	uint64_t same = 0;

	read_chunk(c, &chunk, page, end);
	look->n_present += (unsigned)__builtin_popcountll(chunk.present);
	for (uint64_t left = chunk.present; left; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);
		uint64_t was = c->seen[page - first + i];

		if (!was || look_at(c, &chunk, i) != was)
			continue;
		if (was == ZERO) {
			look->zero[page % BLOCK_PAGES + i] = true;
			look->n_zero++;
		} else {
			same |= 1ull << i;
		}
	}
	mb_content_group_take(c, &chunk, same);
}

static void look_again(struct mb_content *c, uint64_t first, uint64_t end)
{
	for (uint64_t block = first; block < end; block += BLOCK_PAGES) {
		struct block_look look = {0};
		bool any = false;

		for (uint64_t i = block; i < block + BLOCK_PAGES && !any; i++)
			any = c->seen[i - first] != 0;
		for (uint64_t page = block; any && page < block + BLOCK_PAGES;
			page += CHUNK_PAGES) {
			if (!mb_content_pay(c))
				return;
			look_at_chunk(c, &look, first, page, block + BLOCK_PAGES);
		}
		punch_block(c, block, &look);
	}
}

static void *content_main(void *arg)
{
	struct mb_content *c = arg;
	const uint64_t n_pages = c->config.ram_bytes / PAGE;

	pthread_setname_np(pthread_self(), "content");
	c->budget.ppm = c->config.budget_ppm;
	c->budget.clock_ns = mb_now_ns();
	while (!mb_content_is_over(c)) {
		const uint64_t begin_ns = mb_now_ns();

		for (uint64_t first = 0; first < n_pages && mb_content_pay(c);
			first += SLICE_PAGES) {
			uint64_t end =
				n_pages - first < SLICE_PAGES ? n_pages : first + SLICE_PAGES;

			__atomic_store_n(
				&c->ready, mb_content_group_begin(c, !first), __ATOMIC_RELAXED);
			mb_content_group_recount(c, first, end);
			if (!look_first(c, first, end))
				continue;
			rest_until(c, mb_now_ns() + c->config.settle_ns);
			look_again(c, first, end);
		}
		mb_content_count(&c->stats.passes, 1);
		/* Of what has just begun there is most to find. */
		rest_until(c, begin_ns + (c->stats.passes < EARLY ? c->config.pass_ns / EARLY
								  : c->config.pass_ns));
	}
	return NULL;
}

/* ---- its life ---- */

static int start(struct mb_content *c, struct mb_error *err)
{
	int rc = mb_content_key_make(&c->key);

	if (rc)
		return mb_error_set(err, -rc, "sharing by content: %s", strerror(-rc));
	c->seen = malloc(SLICE_PAGES * sizeof(*c->seen));
	c->data = aligned_alloc(PAGE, CHUNK_PAGES * PAGE);
	c->back_off = calloc(c->config.ram_bytes / MB_HEAT_BLOCK_BYTES, sizeof(*c->back_off));
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!c->seen || !c->data || !c->back_off || c->wake_fd < 0)
		return mb_error_set(err, ENOMEM, "sharing by content: out of memory");
	if (c->config.group)
		rc = mb_content_group_create(c, err);
	if (rc)
		return rc;
	rc = mb_thread_start(&c->thread, STACK_BYTES, NULL, content_main, c);
	c->runs = !rc;
	return rc ? mb_error_set(err, -rc, "sharing by content: %s", strerror(-rc)) : 0;
}

int mb_content_create(
	const struct mb_content_config *config, struct mb_content **out, struct mb_error *err)
{
	struct mb_content *c = calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return mb_error_set(err, ENOMEM, "sharing by content: out of memory");
	c->config = *config;
	c->wake_fd = -1;
	if (!c->config.budget_ppm)
		c->config.budget_ppm = MB_CONTENT_BUDGET_PPM;
	if (!c->config.settle_ns)
		c->config.settle_ns = SETTLE_NS;
	if (!c->config.pass_ns)
		c->config.pass_ns = PASS_NS;
	rc = start(c, err);
	if (rc) {
		mb_content_destroy(c);
		return rc;
	}
	*out = c;
	return 0;
}

void mb_content_destroy(struct mb_content *c)
{
	if (!c)
		return;
	__atomic_store_n(&c->stop, true, __ATOMIC_RELAXED);
	if (c->wake_fd >= 0)
		eventfd_write(c->wake_fd, 1);
	if (c->runs)
		pthread_join(c->thread, NULL);
	if (c->wake_fd >= 0)
		close(c->wake_fd);
	mb_content_group_destroy(c->group);
	free(c->seen);
	free(c->data);
	free(c->back_off);
	free(c);
}

void mb_content_stats(struct mb_content *c, struct mb_content_stats *stats)
{
	const struct mb_content_stats *s = &c->stats;

	*stats = (struct mb_content_stats){
		.state = c->config.group ? mb_content_group_state(c) : "zeroes",
		.passes = __atomic_load_n(&s->passes, __ATOMIC_RELAXED),
		.scanned_pages = __atomic_load_n(&s->scanned_pages, __ATOMIC_RELAXED),
		.zero_bytes = __atomic_load_n(&s->zero_bytes, __ATOMIC_RELAXED),
		.shared_bytes = __atomic_load_n(&s->shared_bytes, __ATOMIC_RELAXED),
		.were_shared_bytes = __atomic_load_n(&s->were_shared_bytes, __ATOMIC_RELAXED),
		.given_bytes = __atomic_load_n(&s->given_bytes, __ATOMIC_RELAXED),
		.cpu_ns = __atomic_load_n(&s->cpu_ns, __ATOMIC_RELAXED),
	};
}
