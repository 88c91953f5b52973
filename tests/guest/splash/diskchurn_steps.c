/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"
#include "diskchurn.h"

/* The steps of diskchurn, each of which knows what it leaves behind. */
#define PATTERNS    64u /* that all machines write alike */
#define FLICKER_MS  15u
#define PATIENCE_MS 60000u

struct churned d;

/* ---- contents ---- */

static uint64_t new_head(uint64_t p)
{
	uint32_t version =
		__atomic_add_fetch(&d.version, 1, __ATOMIC_RELAXED) & CONTENT_MAX_VERSION;

	return content_head(OWNER_SELF, d.id, p, version);
}

/* ---- what is found ---- */

static void wrong(struct cpu *self, const char *what, uint64_t place, uint64_t p, unsigned w,
	uint64_t wanted, uint64_t found)
{
	fail("vCPU %u after %lu ms: %s %lu in GPA 0x%lx, word %u: 0x%lx instead of 0x%lx",
		self->index, (rdtsc() - d.start) / guest.khz, what, place, memory_gpa(words(p)), w,
		found, wanted);
}

static void check_words(
	struct cpu *self, uint64_t p, const struct content *c, const char *what, uint64_t place)
{
	const volatile uint64_t *page = words(p);

	for (unsigned w = 0; w < PAGE_WORDS; w++) {
		uint64_t found = page[w], wanted = content_word(c, w);

		if (found != wanted)
			wrong(self, what, place, p, w, wanted, found);
	}
	self->tally[DID_CHECKS]++;
}

void check_page(struct cpu *self, uint64_t p)
{
	check_words(self, p, &d.page[p], "page", p);
}

/* ---- groups: who has one is alone with its pages or blocks ---- */

bool try_group(struct line *l)
{
	return !__atomic_exchange_n(&l->v, 1, __ATOMIC_ACQUIRE);
}

void lock_group(struct line *l)
{
	unsigned n = 0;

	while (!try_group(l))
		spin(&n);
}

void let_go(struct line *l)
{
	__atomic_store_n(&l->v, 0, __ATOMIC_RELEASE);
}

void look_around(struct cpu *self)
{
	uint64_t p = rnd_below(self, d.n_pages);
	struct line *l = &d.page_lock[p / GROUP];

	if (!try_group(l))
		return;
	check_page(self, p);
	let_go(l);
}

/* ---- the vCPU writes; has the page ---- */

static void fill(uint64_t p, uint64_t head, unsigned first, unsigned n)
{
	volatile uint64_t *page = words(p);

	if (!content_overlay(&d.page[p], head, first, n)) {
		first = 0;
		n = PAGE_WORDS;
		content_overlay(&d.page[p], head, first, n);
	}
	for (unsigned w = first; w < first + n; w++)
		page[w] = head ? head | w : 0;
}

void write_page(struct cpu *self, uint64_t p)
{
	unsigned dice = (unsigned)rnd_below(self, 16);
	unsigned first = (unsigned)rnd_below(self, PAGE_WORDS);

	check_page(self, p);
	if (dice < 3)
		fill(p, 0, 0, PAGE_WORDS);
	else if (dice < 6)
		fill(p, content_head(OWNER_ALL, 0, rnd_below(self, PATTERNS), 0), 0, PAGE_WORDS);
	else if (dice < 9)
		fill(p, new_head(p), 0, PAGE_WORDS);
	else if (d.page[p].n && dice < 14)
		fill(p, new_head(p), d.page[p].first, d.page[p].n);
	else
		fill(p, new_head(p), first,
			1 + (unsigned)rnd_below(self, MIN(16, PAGE_WORDS - first)));
	check_page(self, p);
}

/* A write that went elsewhere, or was undone since, is found here. */
static void change_word(struct cpu *self, uint64_t p, unsigned w, uint64_t from, uint64_t to)
{
	volatile uint64_t *word = words(p) + w;
	uint64_t found = *word;

	if (found != from)
		wrong(self, "written a moment ago: page", p, p, w, from, found);
	*word = to;
}

void flicker_pages(struct cpu *self, uint64_t first)
{
	unsigned w = (unsigned)rnd_below(self, PAGE_WORDS);
	uint64_t other = new_head(first) | w;
	struct timer t = timer_start(FLICKER_MS);

	do {
		for (uint64_t p = first; p < first + GROUP; p++)
			change_word(self, p, w, content_word(&d.page[p], w), other);
		for (uint64_t p = first; p < first + GROUP; p++)
			change_word(self, p, w, other, content_word(&d.page[p], w));
	} while (!timer_over(&t));
	for (uint64_t p = first; p < first + GROUP; p++)
		check_page(self, p);
}

/* ---- the disk; has the pages and the blocks ---- */

static bool is_gone(void)
{
	return __atomic_load_n(&d.phase, __ATOMIC_RELAXED) >= GONE;
}

/* Looks at pages meanwhile. False: an I/O error. */
static bool transfer(struct cpu *self, enum disk_type type, const struct transfer *t)
{
	struct disk_part part[RUN];
	struct timer timer = timer_start(PATIENCE_MS);
	bool failed;

	for (unsigned i = 0; i < t->n; i++)
		part[i] = (struct disk_part){
			d.memory + t->page[i] * PAGE_BYTES + t->sector * SECTOR_BYTES,
			t->n_sectors * SECTOR_BYTES};
	disk_start(self, 0, type, t->block * BLOCK_SECTORS + t->sector, part, t->n);
	while (!disk_done(self, 0, &failed)) {
		look_around(self);
		in8(MB_SPLASH_YIELD_PORT);
		if (timer_over(&timer))
			fail("vCPU %u: the disk does not answer", self->index);
	}
	return !failed;
}

/* What a block has that was read into a page; has to be one of what it may have. */
static void take_unsure(struct cpu *self, struct block *b, uint64_t place, uint64_t p)
{
	const uint64_t *page = words(p);
	unsigned n_now = 0, n_before = 0;

	for (unsigned s = 0; s < BLOCK_SECTORS && b->sure == EITHER; s++) {
		bool now = content_is_sector(page, s, &b->now),
		     before = content_is_sector(page, s, &b->before);

		n_now += now;
		n_before += before;
		if (!now && !before)
			wrong(self, "neither the old nor the new block", place, p, s * SECTOR_WORDS,
				content_word(&b->now, s * SECTOR_WORDS), page[s * SECTOR_WORDS]);
	}
	for (unsigned w = 0; w < PAGE_WORDS && b->sure == ANYTHING; w++)
		if (!content_may_be(page[w], w, d.image, d.id))
			wrong(self, "block of nobody knows when", place, p, w, 0, page[w]);
	if (n_before == BLOCK_SECTORS)
		b->now = b->before;
	if (n_now == BLOCK_SECTORS || n_before == BLOCK_SECTORS)
		b->sure = SURE;
	/* Of what is not known no page is made. */
	fill(p, new_head(p), 0, PAGE_WORDS);
}

static void read_failed(struct cpu *self, const struct transfer *t)
{
	if (!is_gone())
		fail("vCPU %u after %lu ms: an I/O error at block %lu, %u to be read", self->index,
			(rdtsc() - d.start) / guest.khz, t->block, t->n);
	if (t->n == 1 && d.block[t->block].own)
		fail("vCPU %u: an I/O error at block %lu, which does not come from the image",
			self->index, t->block);
	__atomic_add_fetch(&d.n_gone, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < t->n; i++)
		fill(t->page[i], new_head(t->page[i]), 0, PAGE_WORDS);
}

void read_blocks(struct cpu *self, const struct transfer *t)
{
	self->tally[DID_READS]++;
	if (!transfer(self, DISK_READ, t)) {
		read_failed(self, t);
		return;
	}
	for (unsigned i = 0; i < t->n; i++) {
		struct block *b = &d.block[t->block + i];

		if (b->sure != SURE) {
			take_unsure(self, b, t->block + i, t->page[i]);
			continue;
		}
		d.page[t->page[i]] = b->now;
		check_words(self, t->page[i], &b->now, "block", t->block + i);
	}
}

/* A part of a block into the same part of a page. */
void read_sectors(struct cpu *self, const struct transfer *t)
{
	unsigned first = t->sector * SECTOR_WORDS, n = t->n_sectors * SECTOR_WORDS;
	const struct block *b = &d.block[t->block];
	struct content after = d.page[t->page[0]];
	uint64_t head;

	if (b->sure != SURE || !content_pure(&b->now, first, n, &head) ||
		!content_overlay(&after, head, first, n))
		return;
	self->tally[DID_READS]++;
	if (!transfer(self, DISK_READ, t)) {
		read_failed(self, t);
		return;
	}
	d.page[t->page[0]] = after;
	check_words(self, t->page[0], &after, "sectors of block", t->block);
}

static void write_failed(struct cpu *self, const struct transfer *t)
{
	bool gone = is_gone();

	if (!d.full && (!gone || (t->n == 1 && d.block[t->block].own)))
		fail("vCPU %u after %lu ms: an I/O error at block %lu, %u to be written",
			self->index, (rdtsc() - d.start) / guest.khz, t->block, t->n);
	__atomic_add_fetch(gone ? &d.n_gone : &d.n_full, 1, __ATOMIC_RELAXED);
	if (!gone)
		__atomic_store_n(&d.n_since_full, 0, __ATOMIC_RELAXED);
}

void write_blocks(struct cpu *self, const struct transfer *t)
{
	bool done = transfer(self, DISK_WRITE, t);

	self->tally[DID_WRITES]++;
	if (!done)
		write_failed(self, t);
	else
		__atomic_add_fetch(&d.n_since_full, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < t->n; i++) {
		struct block *b = &d.block[t->block + i];

		b->before = b->now;
		b->now = d.page[t->page[i]];
		b->own |= done;
		b->sure = done ? SURE : b->sure == SURE ? EITHER : ANYTHING;
	}
}

void write_sectors(struct cpu *self, const struct transfer *t)
{
	unsigned first = t->sector * SECTOR_WORDS, n = t->n_sectors * SECTOR_WORDS;
	struct block *b = &d.block[t->block];
	struct content after = b->now;
	uint64_t head;
	bool done;

	if (b->sure != SURE || !content_pure(&d.page[t->page[0]], first, n, &head) ||
		!content_overlay(&after, head, first, n))
		return;
	self->tally[DID_WRITES]++;
	done = transfer(self, DISK_WRITE, t);
	if (!done)
		write_failed(self, t);
	b->before = b->now;
	b->now = after;
	b->own |= done;
	b->sure = done ? SURE : EITHER;
}

void flush_disk(struct cpu *self)
{
	bool failed;

	disk_start(self, 0, DISK_FLUSH, 0, NULL, 0);
	while (!disk_done(self, 0, &failed)) {
		look_around(self);
		in8(MB_SPLASH_YIELD_PORT);
	}
	if (failed && !d.full)
		fail("vCPU %u: an I/O error of a flush", self->index);
}
