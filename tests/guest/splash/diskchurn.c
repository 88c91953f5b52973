/* SPDX-License-Identifier: Apache-2.0 */
#include "diskchurn.h"
#include "disk.h"

/*
 * The torture test of what machines have in common: each has a disk on the same image, marks what
 * it writes with its id, and knows at any time what every page of memory and every block of its
 * disk has to be. All vCPUs do these at random for the whole time:
 *
 *   image -> disk -> pages     blocks and parts of them, into pages that are not side by side
 *   pages -> disk              the same the other way round
 *   vCPU  -> pages             wholly, a few words, zeroes, or what all machines write alike
 *
 * and look at pages anywhere, while their requests are on their way too. Nothing has a name but by
 * its content: a word tells who wrote it, for which page or block, when, and which word of it it
 * is. So what does not belong there tells where it came from: another machine, another page,
 * before.
 *
 * An I/O error is a failure where it is not expected. After a write that failed, each sector of a
 * block has what it had or what was written; what a read that failed leaves in memory is anything.
 *
 * A half of the pages is changed all over, so often that some of what was read into them is just
 * being shared when it is written. In the other half, as with churn, changes go to an eighth that
 * moves on, so that the rest is quiet for long enough to be found alike, and is written again.
 */
#define WINDOW_MS  2500u
#define WINDOWS	   8u
#define BATCH	   8u
#define LISTEN_MS  100u
#define MAX_BLOCKS (1u << 20)

/* ---- what is next ---- */

static uint64_t pick_written(struct cpu *self)
{
	uint64_t window = (rdtsc() - d.start) / (WINDOW_MS * guest.khz);
	uint64_t r = rnd(self), half = d.n_pages / 2;

	if (r & 1)
		return scale(r, half);
	/* One in 64 goes anywhere. */
	if (!(r & 126))
		return scale(r, d.n_pages);
	return half + (window % WINDOWS * half / WINDOWS + scale(r, half / WINDOWS)) % half;
}

/* Pages of a group, each once: side by side or not; blocks of a group, side by side. */
static void choose(struct cpu *self, struct transfer *t, uint64_t p, uint64_t b)
{
	uint64_t first = p / GROUP * GROUP;
	unsigned step = rnd(self) & 1 ? 1 : 1 + 2 * (unsigned)rnd_below(self, GROUP / 2);

	*t = (struct transfer){.block = b, .n = 1 + (unsigned)rnd_below(self, RUN)};
	t->n = (unsigned)MIN(t->n, (b / GROUP + 1) * GROUP - b);
	for (unsigned i = 0; i < t->n; i++) /* step is odd, GROUP a power of two */
		t->page[i] = first + (p - first + i * step) % GROUP;
	t->n_sectors = BLOCK_SECTORS;
	if (rnd_below(self, 4))
		return;
	t->n = 1;
	t->sector = (unsigned)rnd_below(self, BLOCK_SECTORS);
	t->n_sectors = 1 + (unsigned)rnd_below(self, BLOCK_SECTORS - t->sector);
}

static void use_disk(struct cpu *self, bool write)
{
	uint64_t p = pick_written(self), b = rnd_below(self, d.n_blocks);
	struct transfer t;

	/* Every second group stays as the image has it. */
	if (write && (b |= GROUP) >= d.n_blocks)
		return;
	if (!try_group(&d.block_lock[b / GROUP]))
		return;
	if (try_group(&d.page_lock[p / GROUP])) {
		choose(self, &t, p, b);
		if (t.n_sectors < BLOCK_SECTORS)
			(write ? write_sectors : read_sectors)(self, &t);
		else
			(write ? write_blocks : read_blocks)(self, &t);
		let_go(&d.page_lock[p / GROUP]);
	}
	let_go(&d.block_lock[b / GROUP]);
}

static void use_memory(struct cpu *self)
{
	uint64_t p = pick_written(self);

	if (!try_group(&d.page_lock[p / GROUP]))
		return;
	write_page(self, p);
	let_go(&d.page_lock[p / GROUP]);
}

static void flicker(struct cpu *self)
{
	uint64_t p = rnd(self) & 3 ? pick_written(self) : rnd_below(self, d.n_pages);
	uint64_t first = p / GROUP * GROUP;

	if (!try_group(&d.page_lock[first / GROUP]))
		return;
	flicker_pages(self, first);
	let_go(&d.page_lock[first / GROUP]);
}

/* ---- the program ---- */

static struct line *take_locks(uint64_t n)
{
	struct line *l = memory_take(n / GROUP * sizeof(*l), CACHE_LINE);

	memset(l, 0, n / GROUP * sizeof(*l));
	return l;
}

static void setup(void)
{
	uint64_t unit = GROUP * PAGE_BYTES, books;
	unsigned n_disks = disks_open();

	if (!n_disks || disk_sectors(0) < GROUP * BLOCK_SECTORS)
		usage_error("needs a disk");
	d.image = arg_or(MB_SPLASH_ARG_IMAGE, 0) & 0xff;
	d.id = arg_or(MB_SPLASH_ARG_ID, 1) & 0xff;
	d.full = arg_or(MB_SPLASH_ARG_FULL, 0);
	d.n_blocks = MIN(disk_sectors(0) / BLOCK_SECTORS, MAX_BLOCKS) / GROUP * GROUP;
	books = d.n_blocks * (sizeof(*d.block) + sizeof(*d.block_lock) / GROUP) + 2 * unit;
	/* And 1 in 128 for what is known of the pages. */
	d.n_pages = arg_size(8 << 20, unit, 2 * WINDOWS * unit, books + memory_free() / 128) /
		    PAGE_BYTES;
	d.word = memory_take(PAGE_BYTES, PAGE_BYTES);
	d.memory = memory_take(d.n_pages * PAGE_BYTES, PAGE_BYTES);
	d.page = memory_take(d.n_pages * sizeof(*d.page), CACHE_LINE);
	d.block = memory_take(d.n_blocks * sizeof(*d.block), CACHE_LINE);
	d.page_lock = take_locks(d.n_pages);
	d.block_lock = take_locks(d.n_blocks);
	d.version = 0;
	d.phase = CHURN;
	d.told_full = d.told_gone = false;
	d.n_full = d.n_since_full = d.n_gone = 0;
	memset(d.memory, 0, d.n_pages * PAGE_BYTES);
	memset(d.page, 0, d.n_pages * sizeof(*d.page));
	for (uint64_t b = 0; b < d.n_blocks; b++)
		d.block[b] = (struct block){.now = content_of_image(d.image, b),
			.sure = arg_or(MB_SPLASH_ARG_KEPT, 0) ? ANYTHING : SURE};
	say("splash: diskchurn: seed=%lu, id %lu, %lu blocks of image %lu, %lu pages",
		guest.args.value[MB_SPLASH_ARG_SEED], d.id, d.n_blocks, d.image, d.n_pages);
	d.start = rdtsc();
	d.next = n_disks > 1 ? d.start : 0;
}

/* Blocks into as many pages, one after the other; both begin a run in their group. */
static void read_run(struct cpu *self, uint64_t p, uint64_t b)
{
	struct transfer t = {.block = b, .n = RUN, .n_sectors = BLOCK_SECTORS};

	for (unsigned i = 0; i < RUN; i++)
		t.page[i] = p + i;
	/* Whoever has pages only tries to get blocks: nobody waits for each other. */
	lock_group(&d.block_lock[b / GROUP]);
	lock_group(&d.page_lock[p / GROUP]);
	read_blocks(self, &t);
	let_go(&d.page_lock[p / GROUP]);
	let_go(&d.block_lock[b / GROUP]);
}

/* All of this vCPU's pages, with blocks as they come: what other machines begin with as well. */
static void begin(struct cpu *self)
{
	uint64_t n_runs = d.n_pages / RUN;

	for (uint64_t i = part(n_runs, self->index, guest.n);
		i < part(n_runs, self->index + 1, guest.n); i++)
		read_run(self, i * RUN, i * RUN % d.n_blocks);
}

/* Everything on the disk, into pages that other vCPUs do not use for that if there are enough. */
static void read_all(struct cpu *self)
{
	uint64_t n_runs = d.n_blocks / RUN, p = part(d.n_pages / RUN, self->index, guest.n) * RUN;

	for (uint64_t i = part(n_runs, self->index, guest.n);
		i < part(n_runs, self->index + 1, guest.n); i++)
		read_run(self, p, i * RUN);
}

static void tell_first(const uint64_t *n, bool *told, const char *what)
{
	if (*told || !__atomic_load_n(n, __ATOMIC_RELAXED))
		return;
	*told = true;
	say("splash: diskchurn: has %s", what);
}

/* vCPU 0: what the host has written into the second disk. It waits for what is said here. */
static void listen(struct cpu *self)
{
	struct disk_part part = {d.word, SECTOR_BYTES};
	bool failed;

	if (!d.next || rdtsc() < d.next)
		return;
	disk_start(self, 1, DISK_READ, 0, &part, 1);
	while (!disk_done(self, 1, &failed))
		look_around(self);
	if (failed)
		fail("an I/O error where the host says what is next");
	if (*(volatile uint64_t *)d.word != d.phase) {
		__atomic_store_n(&d.phase, (uint32_t)*d.word, __ATOMIC_RELAXED);
		say("splash: diskchurn: phase %u", d.phase);
	}
	tell_first(&d.n_full, &d.told_full, "no room for what it writes");
	tell_first(&d.n_gone, &d.told_gone, "no image");
	d.next = rdtsc() + LISTEN_MS * guest.khz;
}

static void run(struct cpu *self)
{
	uint64_t first, end_page;
	struct timer t;

	begin(self);
	measure_begin(self);
	t = run_timer(self);
	do {
		for (unsigned i = 0; i < BATCH; i++) {
			unsigned dice = (unsigned)rnd_below(self, 256);

			if (dice < 120)
				look_around(self);
			else if (dice < 192)
				use_memory(self);
			else if (dice < 254)
				use_disk(self, dice >= 232);
			else if (dice < 255)
				flicker(self);
			else
				flush_disk(self);
		}
		self->ops += BATCH;
		if (!self->index)
			listen(self);
	} while (!timer_over(&t) && __atomic_load_n(&d.phase, __ATOMIC_RELAXED) < END);
	self->cycles = timer_cycles(&t);
	measure_end(self);
	/* Everything once more, in quiet, each part by another vCPU if there are two. */
	first = part(d.n_pages, (self->index + 1) % guest.n, guest.n);
	end_page = part(d.n_pages, (self->index + 1) % guest.n + 1, guest.n);
	for (uint64_t p = first; p < end_page; p++)
		check_page(self, p);
	barrier(self);
	read_all(self);
}

static void check(void)
{
	uint64_t did[3] = {0};

	for (unsigned i = 0; i < guest.n; i++)
		for (unsigned k = 0; k < 3; k++)
			did[k] += cpu_at(i)->tally[k];
	format(guest.note, sizeof(guest.note),
		"%lu reads %lu writes %lu pages right, %lu without room then %lu good, %lu gone",
		did[DID_READS], did[DID_WRITES], did[DID_CHECKS], d.n_full, d.n_since_full,
		d.n_gone);
}

const struct program program_diskchurn = {
	PROGRAM_HEAD(diskchurn), .unit = " ops", .setup = setup, .run = run, .check = check};
