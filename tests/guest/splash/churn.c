/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * The torture test of the memory manager: whatever it moves, copies, shares or merges, the guest
 * must see one memory. All vCPUs do these at random for the whole time:
 *
 * - Pages: a sequence lock, a stamp, and words that are a function of page, version and writer. A
 *   writer locks a page, finds the last version in all of it, fills all of it, and publishes the
 *   new version in another page. A reader must find all words of one version (else torn or
 *   overwritten), not older than what was published before it looked (else stale), and not older
 *   than what this vCPU saw there before (else time runs backwards).
 *
 * - Counters: locked additions anywhere on shared pages; the totals must be the number made.
 *
 * - Boards: pages on which every vCPU owns one word, which it alone writes, plainly and without a
 *   lock, always one more. It must read back what it wrote (else a write to the page was lost,
 *   perhaps with another copy of it), and must never see another's word go backwards.
 *
 * - Mail: data on one page, then its number on another. Who reads the number and then the data must
 *   not find older data, nor an older number than before; the one sender finds what it sent.
 *
 * - Straddle: a word across two pages, under a lock on a third; both halves must arrive.
 *
 * Most writes go to an eighth of the pages that moves on as time goes by, so that the rest stays
 * quiet for long enough to be copied, and is written again.
 */
#define BATCH	      16u
#define WINDOW_MS     20u
#define HEAD_WORDS    3u /* sequence, version, writer */
#define N_BOARDS      4u
#define N_MAILS	      16u
#define N_STRADDLES   8u
#define COUNTER_PAGES 4u
/* With what is kept about it elsewhere. */
#define BYTES_A_PAGE(n) (PAGE_BYTES + 8 + 4 * (uint64_t)(n))

struct page {
	uint64_t seq; /* odd: being written */
	uint64_t version;
	uint64_t writer;
	uint64_t word[PAGE_WORDS - HEAD_WORDS];
};

/* Two pages, so that number and data are never on one. */
struct mail {
	uint64_t number;
	uint64_t pad[PAGE_WORDS - 1];
	uint64_t data;
	uint64_t pad2[PAGE_WORDS - 1];
};

struct straddle {
	uint8_t pages[2 * PAGE_BYTES];
	uint32_t lock __attribute__((aligned(4096)));
	uint64_t count;
	uint64_t pad[PAGE_WORDS - 2];
};

static struct {
	struct page *page;
	uint64_t n_pages;
	uint64_t *published; /* [page] */
	uint32_t *seen;	     /* [vCPU][page] */
	uint64_t *counter;
	uint64_t *board; /* [board][vCPU], whole pages a board */
	uint64_t board_words;
	uint64_t *board_mine; /* [vCPU][board]: what it wrote last */
	uint64_t *board_seen; /* [vCPU][board]: of the neighbour it watches */
	struct mail *mail;
	uint64_t *mail_seen; /* [vCPU][mail]: the last number */
	struct straddle *straddle;
	uint64_t start; /* TSC, for the moving window only */
} c;

/* What a vCPU counts in its tally. */
enum {
	DID_WRITES,
	DID_ADDS,
	DID_STRADDLES,
};

static void *take_zeroed(uint64_t bytes, uint64_t align)
{
	void *p = memory_take(bytes, align);

	memset(p, 0, bytes);
	return p;
}

static void setup(void)
{
	uint64_t board_bytes = ALIGN_UP(guest.n * 8ull, PAGE_BYTES);
	uint64_t fixed = N_BOARDS * board_bytes + guest.n * (N_BOARDS * 16ull + N_MAILS * 8) +
			 N_MAILS * sizeof(struct mail) + N_STRADDLES * sizeof(struct straddle) +
			 (COUNTER_PAGES + 8) * PAGE_BYTES;
	uint64_t each = BYTES_A_PAGE(guest.n);
	uint64_t room = memory_free() > fixed ? (memory_free() - fixed) / each * PAGE_BYTES : 0;
	uint64_t bytes;

	/* Without size=, as many pages as fit with their books. */
	bytes = MIN(MAX(room, 8 * PAGE_BYTES), 16ull << 20);
	bytes = arg_size(bytes, PAGE_BYTES, 8 * PAGE_BYTES, 0);
	c.n_pages = bytes / PAGE_BYTES;
	c.page = memory_take(bytes, PAGE_BYTES); /* zeroed by all, as seen is */
	c.counter = take_zeroed(COUNTER_PAGES * PAGE_BYTES, PAGE_BYTES);
	c.board_words = board_bytes / 8;
	c.board = take_zeroed(N_BOARDS * board_bytes, PAGE_BYTES);
	c.mail = take_zeroed(N_MAILS * sizeof(*c.mail), PAGE_BYTES);
	c.straddle = take_zeroed(N_STRADDLES * sizeof(*c.straddle), PAGE_BYTES);
	c.published = take_zeroed(c.n_pages * 8, PAGE_BYTES);
	c.seen = memory_take(guest.n * c.n_pages * 4, PAGE_BYTES);
	c.mail_seen = take_zeroed(guest.n * N_MAILS * 8ull, CACHE_LINE);
	c.board_mine = take_zeroed(guest.n * N_BOARDS * 8ull, CACHE_LINE);
	c.board_seen = take_zeroed(guest.n * N_BOARDS * 8ull, CACHE_LINE);
	c.start = rdtsc();
}

static uint64_t content(uint64_t p, uint64_t version, uint64_t writer)
{
	return version ? mix(p << 40 ^ writer << 28 ^ version) : 0;
}

/* Words differ, so that a page that was moved by a few words shows; the first version is all zero.
 */
static uint64_t content_word(uint64_t content_of_page, unsigned w)
{
	return content_of_page ? content_of_page + w : 0;
}

static uint64_t page_lock(struct page *page)
{
	unsigned n = 0;

	for (;;) {
		uint64_t seq = __atomic_load_n(&page->seq, __ATOMIC_RELAXED);

		if (!(seq & 1) && __atomic_compare_exchange_n(&page->seq, &seq, seq + 1, false,
					  __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return seq;
		spin(&n);
	}
}

/* What a page said; whether that may be is only known if its sequence is still the same. */
struct look {
	uint64_t version;
	uint64_t writer;
	uint64_t found; /* the first wrong word's content */
	unsigned bad;	/* its number; PAGE_WORDS: none */
};

static void look_at(const struct page *page, uint64_t p, struct look *look)
{
	uint64_t value;

	look->version = __atomic_load_n(&page->version, __ATOMIC_RELAXED);
	look->writer = __atomic_load_n(&page->writer, __ATOMIC_RELAXED);
	look->bad = PAGE_WORDS;
	value = content(p, look->version, look->writer);
	for (unsigned w = 0; w < PAGE_WORDS - HEAD_WORDS; w++) {
		uint64_t word = __atomic_load_n(&page->word[w], __ATOMIC_RELAXED);

		if (word != content_word(value, w) && look->bad == PAGE_WORDS) {
			look->bad = w + HEAD_WORDS;
			look->found = word;
		}
	}
}

static void check_look(
	struct cpu *self, const struct page *page, uint64_t seq, const struct look *look)
{
	if (look->version != seq / 2)
		fail("vCPU %u: page at GPA 0x%lx has sequence %lu and version %lu", self->index,
			memory_gpa(page), seq, look->version);
	if (look->bad != PAGE_WORDS)
		fail("vCPU %u: page at GPA 0x%lx is torn: version %lu of vCPU %lu, but word %u is "
		     "0x%lx",
			self->index, memory_gpa(page), look->version, look->writer, look->bad,
			look->found);
}

static void write_page(struct cpu *self, uint64_t p)
{
	struct page *page = &c.page[p];
	uint64_t seq = page_lock(page);
	uint64_t version = seq / 2 + 1, value;
	struct look look;

	/* Under the lock nobody else writes: what is there must be the last version, all of it. */
	look_at(page, p, &look);
	check_look(self, page, seq, &look);
	value = content(p, version, self->index);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	page->version = version;
	page->writer = self->index;
	for (unsigned w = 0; w < PAGE_WORDS - HEAD_WORDS; w++)
		((volatile uint64_t *)page->word)[w] = content_word(value, w);
	__atomic_store_n(&page->seq, seq + 2, __ATOMIC_RELEASE);
	c.seen[self->index * c.n_pages + p] = (uint32_t)version;
	self->tally[DID_WRITES]++;
	/* Another writer may be ahead of us: never take its number back. */
	for (uint64_t old = __atomic_load_n(&c.published[p], __ATOMIC_RELAXED); old < version;) {
		if (__atomic_compare_exchange_n(&c.published[p], &old, version, false,
			    __ATOMIC_RELEASE, __ATOMIC_RELAXED))
			break;
	}
}

static void read_page(struct cpu *self, uint64_t p)
{
	struct page *page = &c.page[p];
	uint32_t *seen = &c.seen[self->index * c.n_pages + p];
	uint64_t published = __atomic_load_n(&c.published[p], __ATOMIC_ACQUIRE);
	struct look look;
	uint64_t seq;
	unsigned n = 0;

	for (;;) {
		seq = __atomic_load_n(&page->seq, __ATOMIC_ACQUIRE);
		if (!(seq & 1)) {
			look_at(page, p, &look);
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			if (__atomic_load_n(&page->seq, __ATOMIC_RELAXED) == seq)
				break;
		}
		spin(&n);
	}
	check_look(self, page, seq, &look);
	if (look.version < published)
		fail("vCPU %u: page at GPA 0x%lx is stale: version %lu, but %lu was published "
		     "before",
			self->index, memory_gpa(page), look.version, published);
	if ((uint32_t)look.version < *seen)
		fail("vCPU %u: page at GPA 0x%lx went back from version %u to %lu", self->index,
			memory_gpa(page), *seen, look.version);
	*seen = (uint32_t)look.version;
}

static void use_board(struct cpu *self, unsigned b)
{
	volatile uint64_t *board = c.board + b * c.board_words;
	unsigned other = (self->index + 1) % guest.n;
	uint64_t *mine = &c.board_mine[self->index * N_BOARDS + b];
	uint64_t *seen = &c.board_seen[self->index * N_BOARDS + b];
	uint64_t v = board[self->index];

	if (v != *mine)
		fail("vCPU %u: its word at GPA 0x%lx says %lu, it wrote %lu", self->index,
			memory_gpa(c.board + b * c.board_words + self->index), v, *mine);
	*mine = v + 1;
	board[self->index] = v + 1;
	if (other == self->index)
		return;
	v = board[other];
	if (v < *seen)
		fail("vCPU %u: vCPU %u's word at GPA 0x%lx went back from %lu to %lu", self->index,
			other, memory_gpa(c.board + b * c.board_words + other), *seen, v);
	*seen = v;
}

/* One sender for each mail, the others read. */
static void use_mail(struct cpu *self, unsigned m)
{
	struct mail *mail = &c.mail[m];
	uint64_t *seen = &c.mail_seen[self->index * N_MAILS + m];
	uint64_t number = __atomic_load_n(&mail->number, __ATOMIC_ACQUIRE);
	uint64_t data = __atomic_load_n(&mail->data, __ATOMIC_RELAXED);
	bool sender = m % guest.n == self->index;

	if (data < number || (sender && data != number))
		fail("vCPU %u: mail %lu (GPA 0x%lx) with data %lu (GPA 0x%lx)%s", self->index,
			number, memory_gpa(&mail->number), data, memory_gpa(&mail->data),
			sender ? " is not what it sent" : " arrived before its data");
	if (number < *seen || (sender && number != *seen))
		fail("vCPU %u: mail at GPA 0x%lx says %lu, %s %lu", self->index,
			memory_gpa(&mail->number), number, sender ? "it wrote" : "before it was",
			*seen);
	if (sender) {
		number++;
		__atomic_store_n(&mail->data, number, __ATOMIC_RELAXED);
		__atomic_store_n(&mail->number, number, __ATOMIC_RELEASE);
	}
	*seen = number;
}

static void use_straddle(struct cpu *self, struct straddle *s)
{
	/* 3 bytes on the first page, 5 on the second. */
	void *at = s->pages + PAGE_BYTES - 3;
	uint64_t v;

	lock(&s->lock);
	__asm__ volatile("movq %1, %0" : "=r"(v) : "m"(*(uint64_t *)at));
	if (v != s->count * 0x0101010101010101ull)
		fail("vCPU %u: the word across GPA 0x%lx is 0x%lx after %lu additions", self->index,
			memory_gpa(s->pages + PAGE_BYTES), v, s->count);
	s->count++;
	v += 0x0101010101010101ull;
	__asm__ volatile("movq %1, %0" : "=m"(*(uint64_t *)at) : "r"(v));
	unlock(&s->lock);
	self->tally[DID_STRADDLES]++;
}

static uint64_t pick_written(struct cpu *self)
{
	uint64_t window = (rdtsc() - c.start) / (WINDOW_MS * guest.khz);
	uint64_t r = rnd(self);

	/* One in 64 goes anywhere. */
	if (!(r & 63))
		return scale(r, c.n_pages);
	return (window % 8 * c.n_pages / 8 + scale(r, c.n_pages / 8)) % c.n_pages;
}

static void run(struct cpu *self)
{
	uint64_t first = part(c.n_pages, self->index, guest.n);
	uint64_t end_page = part(c.n_pages, self->index + 1, guest.n);
	struct timer t;

	memset(&c.page[first], 0, (end_page - first) * PAGE_BYTES);
	memset(&c.seen[self->index * c.n_pages], 0, c.n_pages * 4);
	measure_begin(self);
	t = run_timer(self);
	do {
		for (unsigned i = 0; i < BATCH; i++) {
			uint64_t r = rnd(self);
			unsigned dice = (unsigned)(r >> 56);

			if (dice < 160) {
				read_page(self, scale(r << 8, c.n_pages));
			} else if (dice < 192) {
				write_page(self, pick_written(self));
			} else if (dice < 216) {
				__atomic_fetch_add(
					&c.counter[scale(r << 8, COUNTER_PAGES * PAGE_WORDS)], 1,
					__ATOMIC_RELAXED);
				self->tally[DID_ADDS]++;
			} else if (dice < 236) {
				use_board(self, (unsigned)(r & 0xffff) % N_BOARDS);
			} else if (dice < 252) {
				use_mail(self, (unsigned)(r & 0xffff) % N_MAILS);
			} else {
				use_straddle(self, &c.straddle[(r & 0xffff) % N_STRADDLES]);
			}
		}
		self->ops += BATCH;
	} while (!timer_over(&t));
	self->cycles = timer_cycles(&t);
	measure_end(self);
	/* Everything once more, in quiet, each page by another vCPU than its last writer if there
	 * are two. */
	for (uint64_t p = first; p < end_page; p++)
		read_page(self, p);
	for (unsigned b = 0; b < N_BOARDS; b++)
		use_board(self, b);
}

static void check(void)
{
	uint64_t done[3] = {0}, versions = 0, adds = 0, straddles = 0;
	char size[24];

	for (unsigned i = 0; i < guest.n; i++) {
		for (unsigned k = 0; k < 3; k++)
			done[k] += cpu_at(i)->tally[k];
	}
	for (uint64_t p = 0; p < c.n_pages; p++) {
		read_page(cpu_at(0), p);
		versions += c.page[p].version;
		if (c.published[p] != c.page[p].version)
			fail("page at GPA 0x%lx: version %lu, published %lu",
				memory_gpa(&c.page[p]), c.page[p].version, c.published[p]);
	}
	for (unsigned i = 0; i < COUNTER_PAGES * PAGE_WORDS; i++)
		adds += c.counter[i];
	for (unsigned i = 0; i < N_STRADDLES; i++)
		straddles += c.straddle[i].count;
	if (versions != done[DID_WRITES])
		fail("%lu pages were written, their versions add up to %lu", done[DID_WRITES],
			versions);
	if (adds != done[DID_ADDS])
		fail("%lu additions were made, the counters say %lu", done[DID_ADDS], adds);
	if (straddles != done[DID_STRADDLES])
		fail("%lu additions across pages were made, their counts say %lu",
			done[DID_STRADDLES], straddles);
	format_bytes(size, sizeof(size), c.n_pages * PAGE_BYTES);
	format(guest.note, sizeof(guest.note),
		"%s, %lu page writes and %lu adds: none stale, torn or lost", size, versions, adds);
}

const struct program program_churn = {
	PROGRAM_HEAD(churn), .unit = " ops", .setup = setup, .run = run, .check = check};
