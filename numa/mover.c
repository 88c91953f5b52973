// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mover_internal.h"

#define TRIES 3u /* at a page that a vCPU took back meanwhile, or the kernel had in hand */
#define FEW   8u /* pages, the last time */
#define FULL  (4ull << 20) /* a node with less free memory than that gives none */

int mb_mover_create(const struct mb_mover_config *config, struct mb_mover **out)
{
	struct mb_mover *m;
	int rc;

	if (move_pages(0, 0, NULL, NULL, NULL, 0))
		return -errno;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->config = *config;
	m->moves_mapped = config->may_move_mapped;
	m->batch.pages = MB_MOVER_BATCH_PAGES;
	pthread_mutex_init(&m->lock, NULL);
	rc = mb_mover_split_begin(m);
	if (rc) {
		mb_mover_destroy(m);
		return rc;
	}
	*out = m;
	return 0;
}

void mb_mover_destroy(struct mb_mover *m)
{
	if (!m)
		return;
	pthread_mutex_destroy(&m->lock);
	mb_mover_split_finish(m);
	free(m);
}

void mb_mover_hold(struct mb_mover *m)
{
	if (!m)
		return;
	__atomic_add_fetch(&m->n_holds, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_lock(&m->lock);
	pthread_mutex_unlock(&m->lock);
}

void mb_mover_release(struct mb_mover *m)
{
	if (m)
		__atomic_sub_fetch(&m->n_holds, 1, __ATOMIC_SEQ_CST);
}

/* ---- a part of a block ---- */

struct part {
	uint64_t offset;
	unsigned n; /* pages */
	unsigned node;
	const uint64_t *wanted;		 /* bits; NULL: all */
	unsigned n_wanted;
	void *page[MB_HEAT_BLOCK_PAGES]; /* the address that it is known by */
	int where[MB_HEAT_BLOCK_PAGES];	 /* node, or -errno */
};

static bool is_in(const uint64_t *pages, uint64_t i)
{
	return !pages || pages[i / 64] >> i % 64 & 1;
}

static bool is_wanted(const struct part *p, unsigned i)
{
	return is_in(p->wanted, i);
}

uint64_t mb_move_run(const struct mb_move *move, uint64_t *offset)
{
	const uint64_t end = move->offset + move->len_bytes;
	uint64_t at;

	if (!move->pages)
		return end - *offset;
	while (*offset < end && !is_in(move->pages, (*offset - move->offset) / PAGE))
		*offset += PAGE;
	for (at = *offset; at < end && is_in(move->pages, (at - move->offset) / PAGE);)
		at += PAGE;
	return at - *offset;
}

static char *own_at(const struct mb_mover *m, const struct part *p)
{
	return (char *)m->config.own_base + p->offset;
}

static char *view_at(const struct mb_mover *m, const struct part *p, unsigned view)
{
	return (char *)m->config.view_base[view] + p->offset;
}

/* Asks one mapping for the pages that are not known yet. Returns how many are left, or -errno. */
static int ask_mapping(struct part *p, char *at)
{
	unsigned index[MB_HEAT_BLOCK_PAGES], n = 0, left = 0;
	int status[MB_HEAT_BLOCK_PAGES];
	void *page[MB_HEAT_BLOCK_PAGES];

	for (unsigned i = 0; i < p->n; i++) {
		if (p->where[i] >= 0)
			continue;
		index[n] = i;
		status[n] = -ENOENT;
		page[n++] = at + i * PAGE;
	}
	if (n && move_pages(0, n, page, NULL, status, 0) < 0)
		return -errno;
	for (unsigned i = 0; i < n; i++) {
		p->where[index[i]] = status[i];
		p->page[index[i]] = page[i];
		left += status[i] < 0;
	}
	return (int)left;
}

/*
 * What is in no view's page tables now is put into our own. Only where there is memory: a hole
 * would be filled. A page that is thrown away at this moment is made again, and stays empty.
 */
static void map_own(const struct mb_mover *m, const struct part *p)
{
	for (unsigned i = 0, end; i < p->n; i = end) {
		off_t at = (off_t)(p->offset + i * PAGE), data;

		end = i + 1;
		if (p->where[i] >= 0)
			continue;
		data = lseek(m->config.ram_fd, at, SEEK_DATA);
		if (data < 0 || data >= (off_t)(p->offset + p->n * PAGE))
			return;
		if (data > at) {
			end = (unsigned)((uint64_t)data - p->offset) / PAGE;
			continue;
		}
		while (end < p->n && p->where[end] < 0 &&
			lseek(m->config.ram_fd, (off_t)(p->offset + end * PAGE), SEEK_DATA) ==
				(off_t)(p->offset + end * PAGE))
			end++;
		madvise(own_at(m, p) + i * PAGE, (end - i) * PAGE, MADV_POPULATE_READ);
	}
}

/* Where each page is now. */
static int ask(const struct mb_mover *m, struct part *p)
{
	int left = (int)p->n;

	/* What nobody wants is as good as there. */
	for (unsigned i = 0; i < p->n; i++) {
		bool asked = is_wanted(p, i) &&
			     !mb_mover_is_elsewhere(m, p->offset + i * PAGE, PAGE);

		p->where[i] = asked ? -ENOENT : (int)p->node;
	}
	for (unsigned v = 0; v < m->config.n_views && left > 0; v++)
		left = ask_mapping(p, view_at(m, p, v));
	if (left > 0) {
		map_own(m, p);
		left = ask_mapping(p, own_at(m, p));
	}
	return left < 0 ? left : 0;
}

static unsigned count(const struct part *p, bool there)
{
	unsigned n = 0;

	for (unsigned i = 0; i < p->n; i++)
		n += is_wanted(p, i) && p->where[i] >= 0 &&
		     (p->where[i] == (int)p->node) == there;
	return n;
}

/* ---- a batch: one system call ---- */

struct batch {
	unsigned n, span;		      /* entries, and pages that each stands for */
	unsigned turn;			      /* how often it was tried */
	unsigned index[MB_MOVER_BATCH_PAGES]; /* in the part */
	void *page[MB_MOVER_BATCH_PAGES];     /* by which address it is moved */
};

/* The pages of [first, ...) that are elsewhere, at most `most`. Returns from where to go on. */
static unsigned fill(const struct part *p, unsigned first, unsigned most, struct batch *b)
{
	unsigned i;

	b->n = 0;
	for (i = first; i < p->n && b->n < most; i++) {
		if (p->where[i] < 0 || p->where[i] == (int)p->node)
			continue;
		b->index[b->n] = i;
		b->page[b->n++] = p->page[i];
	}
	return i;
}

/* Takes entries out of the page tables of one mapping. */
static void take_out(char *at, const struct batch *b, const bool *out)
{
	for (unsigned i = 0, end; i < b->n; i = end) {
		end = i + 1;
		if (!out[i])
			continue;
		while (end < b->n && out[end] && b->index[end] == b->index[i] + (end - i) * b->span)
			end++;
		madvise(at + b->index[i] * PAGE, (end - i) * b->span * PAGE, MADV_DONTNEED);
	}
}

/*
 * Without privilege the kernel moves what one mapping alone has, by an address of that one. So what
 * one view uses stays in its page tables, and its vCPUs go on until it is moved. What several have
 * is taken out of all but one of them, another one each turn: if that is who uses it, nobody takes
 * it back before it is moved.
 */
static void leave_one_mapping(const struct mb_mover *m, const struct part *p, struct batch *b)
{
	bool out[MB_MOVER_BATCH_PAGES], named[MB_MOVER_BATCH_PAGES] = {false};

	for (unsigned k = 0; k < m->config.n_views; k++) {
		unsigned v = (k + b->turn) % m->config.n_views;
		void *page[MB_MOVER_BATCH_PAGES];
		int status[MB_MOVER_BATCH_PAGES];

		for (unsigned i = 0; i < b->n; i++) {
			page[i] = view_at(m, p, v) + b->index[i] * PAGE;
			status[i] = -ENOENT;
		}
		if (move_pages(0, b->n, page, NULL, status, 0) < 0)
			return;
		for (unsigned i = 0; i < b->n; i++) {
			out[i] = status[i] >= 0 && named[i];
			if (status[i] < 0 || named[i])
				continue;
			named[i] = true;
			b->page[i] = page[i];
		}
		take_out(view_at(m, p, v), b, out);
	}
	take_out(own_at(m, p), b, named);
}

/* Takes note of what was moved. Caller holds the lock. */
static int send(struct mb_mover *m, struct part *p, struct batch *b)
{
	int node[MB_MOVER_BATCH_PAGES], status[MB_MOVER_BATCH_PAGES], rc = -1;

	/* The kernel leaves the status of some that failed as it was. */
	for (unsigned i = 0; i < b->n; i++) {
		node[i] = (int)p->node;
		status[i] = -EBUSY;
	}
	if (m->moves_mapped) {
		rc = (int)move_pages(0, b->n, b->page, node, status, MPOL_MF_MOVE_ALL);
		m->moves_mapped = rc >= 0 || errno != EPERM;
	}
	if (!m->moves_mapped) {
		leave_one_mapping(m, p, b);
		rc = (int)move_pages(0, b->n, b->page, node, status, MPOL_MF_MOVE);
	}
	if (rc < 0)
		return -errno;
	for (unsigned i = 0; i < b->n; i++)
		if (status[i] == (int)p->node)
			p->where[b->index[i]] = status[i];
	return 0;
}

static int guarded_send(struct mb_mover *m, struct part *p, struct batch *b, struct mb_moved *moved)
{
	uint64_t begin_ns, took_ns;
	int rc = -ECANCELED;

	pthread_mutex_lock(&m->lock);
	begin_ns = mb_now_ns();
	if (!__atomic_load_n(&m->n_holds, __ATOMIC_SEQ_CST))
		rc = send(m, p, b);
	took_ns = mb_now_ns() - begin_ns;
	pthread_mutex_unlock(&m->lock);
	if (took_ns > moved->longest_ns)
		moved->longest_ns = took_ns;
	if (!rc)
		mb_batch_size_note(&m->batch, b->n * b->span, took_ns);
	return rc;
}

/* Everything of a part once. */
static int try(struct mb_mover *m, struct part *p, unsigned turn, struct mb_moved *moved)
{
	/* Of fewer pages fewer are taken back meanwhile. */
	unsigned most = turn < 2 ? m->batch.pages : FEW;
	struct batch b = {.span = 1, .turn = turn};
	unsigned at = 0;
	int rc = 0;

	while (at < p->n && !rc) {
		at = fill(p, at, most, &b);
		if (b.n)
			rc = guarded_send(m, p, &b, moved);
	}
	return rc;
}

/*
 * A huge page moves as a whole by its first address; the kernel calls the others of the same call
 * busy, or there already, so it is asked again. -ENOMEM: the new node has none.
 */
static int try_all(struct mb_mover *m, struct part *p, struct mb_moved *moved)
{
	int rc = 0;

	for (unsigned i = 0; i < TRIES && !rc && count(p, false); i++) {
		rc = try(m, p, i, moved);
		if (!rc && count(p, false))
			rc = ask(m, p);
	}
	return rc;
}

/*
 * What is said to be a huge page is moved by its first address, and its last page tells whether it
 * was one. 1: it was, and has moved; 0: look at its pages.
 */
static int try_whole(struct mb_mover *m, struct part *p, struct mb_moved *moved)
{
	struct batch b = {.n = 1, .span = MB_HEAT_BLOCK_PAGES};
	const uint64_t last = (MB_HEAT_BLOCK_PAGES - 1) * PAGE;

	if (mb_mover_is_elsewhere(m, p->offset, MB_HEAT_BLOCK_BYTES))
		return 0;
	p->where[0] = -ENOENT;
	for (unsigned v = 0; v < m->config.n_views; v++) {
		char *at = view_at(m, p, v);
		void *page[2] = {at, at + last};
		int status[2] = {-ENOENT, -ENOENT}, rc;

		if (move_pages(0, 2, page, NULL, status, 0) < 0)
			return 0;
		if (status[0] < 0 || status[1] < 0)
			continue;
		if (status[0] == (int)p->node || status[1] == (int)p->node)
			return 0;
		b.page[0] = at;
		rc = guarded_send(m, p, &b, moved);
		if (rc)
			return rc;
		page[0] = (char *)b.page[0] + last; /* by that one it has moved */
		return !move_pages(0, 1, page, NULL, status, 0) && status[0] == (int)p->node;
	}
	return 0;
}

static bool is_full(unsigned node)
{
	long long free_bytes = 0;

	numa_node_size64((int)node, &free_bytes);
	return free_bytes < (long long)FULL;
}

static int move_part(struct mb_mover *m, struct part *p, const struct mb_move *move,
	struct mb_moved *moved, bool *full)
{
	const bool huge = move->huge && !move->split && !move->pages;
	const bool alone = move->split && p->n_wanted < MB_HEAT_BLOCK_PAGES;
	unsigned there, left, now, first = 0;
	int rc;

	if (p->n_wanted == MB_HEAT_BLOCK_PAGES) {
		pthread_mutex_lock(&m->lock);
		mb_mover_let_merge(m, p->offset);
		pthread_mutex_unlock(&m->lock);
	}
	if (huge && p->n == MB_HEAT_BLOCK_PAGES && !*full) {
		rc = try_whole(m, p, moved);
		if (rc > 0)
			moved->moved_bytes += BLOCK;
		if (rc > 0 || (rc < 0 && rc != -ENOMEM))
			return rc < 0 ? rc : 0;
		*full = rc == -ENOMEM;
		first = p->where[0] == (int)p->node; /* it was small, and has moved alone */
	}
	rc = ask(m, p);
	*full |= !rc && alone && is_full(p->node);
	if (!rc && alone && !*full && count(p, false)) {
		rc = mb_mover_split(m, p->offset / BLOCK * BLOCK, moved);
		if (rc == -EBUSY) {
			moved->busy_bytes += p->n_wanted * PAGE;
			return 0;
		}
		if (!rc)
			rc = ask(m, p);
	}
	if (rc)
		return rc;
	there = count(p, true);
	if (first > there)
		first = there; /* and was thrown away meanwhile */
	there -= first;
	left = count(p, false) + first;
	moved->there_bytes += there * PAGE;
	moved->absent_bytes += (p->n_wanted - there - left) * PAGE;
	rc = left > first && !*full ? try_all(m, p, moved) : 0;
	if (rc == -ENOMEM || rc == -ECANCELED) {
		int again = ask(m, p);

		if (again)
			return again;
		*full |= rc == -ENOMEM;
	} else if (rc) {
		return rc;
	}
	now = count(p, true);
	moved->moved_bytes += now > there ? (now - there) * PAGE : 0;
	if (rc == -ECANCELED)
		return rc;
	left = left > now - there ? left - (now - there) : 0;
	if (left && !*full)
		*full = is_full(p->node);
	if (*full)
		moved->full_bytes += left * PAGE;
	else
		moved->busy_bytes += left * PAGE;
	return 0;
}

static unsigned count_wanted(const struct part *p)
{
	unsigned n = 0;

	for (unsigned i = 0; i < p->n; i++)
		n += is_wanted(p, i);
	return n;
}

int mb_mover_move(struct mb_mover *m, const struct mb_move *move, struct mb_moved *moved)
{
	uint64_t at = move->offset, end = move->offset + move->len_bytes, begin_ns = mb_now_ns();
	bool full = false;
	int rc = 0;

	if ((at | end) % PAGE || end < at || end > m->config.ram_bytes)
		return -EINVAL;
	if (move->pages && move->len_bytes && at / BLOCK != (end - 1) / BLOCK)
		return -EINVAL;
	while (at < end && !rc) {
		uint64_t next = (at / BLOCK + 1) * BLOCK;
		struct part p = {.offset = at, .node = move->node, .wanted = move->pages};

		if (next > end)
			next = end;
		p.n = (unsigned)((next - at) / PAGE);
		p.n_wanted = count_wanted(&p);
		rc = move_part(m, &p, move, moved, &full);
		/* Our own mapping is for that moment. */
		madvise(own_at(m, &p), next - at, MADV_DONTNEED);
		at = next;
	}
	moved->ns += mb_now_ns() - begin_ns;
	return rc == -ENODEV ? -EINVAL : rc == -EACCES ? -EPERM : rc;
}
