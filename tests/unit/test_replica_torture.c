// SPDX-License-Identifier: Apache-2.0
/*
 * The torture of numa/replica.c: threads that play vCPUs of one to three views, a device, the
 * replicator, the merger, a reclaimer, the tracker and the mover, on real mappings, all at once and at random.
 * What they write is as in tests/guest/splash/churn.c: a page that is torn, stale, or whose write
 * was lost is found.
 *
 * Built with MB_REPLICA_WRONG, the order of the steps is wrong, and that must be found.
 * MB_TORTURE_SECONDS: how long; MB_TORTURE_SEED: the seed, which is printed.
 */
#include "run.h"

#include "../../numa/replica_internal.h"

#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <numaif.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BYTES	   (8ull << 20)
#define N_PAGES	   (BYTES / PAGE)
#define MAX_VCPUS  6u
#define WORDS	   509u
#define WINDOW_NS  20000000ull
#define BOARD_PAGE 7u	 /* of each so many pages one is a board */
#define FLIP_PAGE  3u /* and this one of them is zero most of the time */
#define HOT_FIRST  1000u /* so many pages are for all, in two blocks */
#define N_HOT	   32u
#define SECONDS	   (MB_REPLICA_WRONG ? 30u : 3u)
/* Where an order of copies is wrong there are only these, so that it is found soon. */
#define MERGES                                                                                     \
	(!MB_REPLICA_WRONG ||                                                                      \
		(MB_REPLICA_WRONG > WRONG_HOLD && MB_REPLICA_WRONG < WRONG_PUNCH_FIRST))
#define PUNCHES (!MB_REPLICA_WRONG || MB_REPLICA_WRONG >= WRONG_PUNCH_FIRST)

/* A sequence lock, a stamp, and words that are a function of them. Or, of a board: a word that each
 * writer alone writes, always one more; the last ones are written by all, with locked additions. A page
 * that flips is a board whose words are zero again after a moment. */
struct shared {
	uint64_t seq, version, writer;
	uint64_t word[WORDS];
};

static int fd;
static struct mb_ram_mapping view[3], own;
static unsigned n_views, n_vcpus;
static struct mb_replicas *replicas;
static struct mb_pagemap *pm;
static bool stop;		       /* atomic */
static uint64_t n_wrong, n_adds;       /* atomic */
static uint64_t published[N_PAGES];    /* atomic: versions */
static uint64_t copied, zaps, devices; /* atomic */
static uint64_t merged, punched;       /* bytes */

struct vcpu {
	pthread_t thread;
	unsigned index, view;
	uint64_t seed, ops, slowest_ns;
	uint64_t mine[N_PAGES];
};
static struct vcpu vcpus[MAX_VCPUS + 1]; /* the last is the device */

static uint64_t rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static uint64_t content(uint64_t page, uint64_t version, uint64_t writer)
{
	return version ? (page << 40 ^ writer << 28 ^ version) * 0x9e3779b97f4a7c15ull : 0;
}

static void wrong(const char *what, uint64_t page)
{
	if (!__atomic_fetch_add(&n_wrong, 1, __ATOMIC_RELAXED))
		printf("%s: page %lu\n", what, page);
}

static bool is_over(void)
{
	return __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

/* ---- vCPUs, and the device ---- */

static bool is_right(const struct shared *s, uint64_t page, uint64_t version, uint64_t writer)
{
	uint64_t value = content(page, version, writer);
	bool right = true;

	for (unsigned i = 0; i < WORDS; i++)
		right &= __atomic_load_n(&s->word[i], __ATOMIC_RELAXED) == (value ? value + i : 0);
	return right;
}

static void write_page(struct vcpu *c, struct shared *s, uint64_t page)
{
	uint64_t seq = __atomic_load_n(&s->seq, __ATOMIC_RELAXED), version = seq / 2 + 1, value;
	uint64_t old = seq / 2;

	if (seq & 1 || !__atomic_compare_exchange_n(
			       &s->seq, &seq, seq + 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	if (s->version != seq / 2 || !is_right(s, page, s->version, s->writer))
		wrong("written by two at a time, or lost", page);
	value = content(page, version, c->index);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	s->version = version;
	s->writer = c->index;
	for (unsigned i = 0; i < WORDS; i++)
		((volatile uint64_t *)s->word)[i] = value + i;
	__atomic_store_n(&s->seq, seq + 2, __ATOMIC_RELEASE);
	while (old < version && !__atomic_compare_exchange_n(&published[page], &old, version, false,
					__ATOMIC_RELEASE, __ATOMIC_RELAXED))
		;
}

static void read_page(struct vcpu *c, const struct shared *s, uint64_t page)
{
	uint64_t before = __atomic_load_n(&published[page], __ATOMIC_ACQUIRE);
	uint64_t seq = __atomic_load_n(&s->seq, __ATOMIC_ACQUIRE), version, writer;
	bool right;

	if (seq & 1)
		return;
	version = __atomic_load_n(&s->version, __ATOMIC_RELAXED);
	writer = __atomic_load_n(&s->writer, __ATOMIC_RELAXED);
	right = is_right(s, page, version, writer);
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (__atomic_load_n(&s->seq, __ATOMIC_RELAXED) != seq)
		return;
	if (!right || version != seq / 2)
		wrong("torn", page);
	if (version < before || version < c->mine[page])
		wrong("stale", page);
	c->mine[page] = version;
}

static void use_board(struct vcpu *c, struct shared *s, uint64_t page, uint64_t r)
{
	volatile uint64_t *mine = &s->word[c->index];

	if (*mine != c->mine[page])
		wrong("a word is not what was written", page);
	if (r & 3)
		return;
	*mine = ++c->mine[page];
	__atomic_add_fetch(&s->word[WORDS - 1], 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&n_adds, 1, __ATOMIC_RELAXED);
}

/* What one adds he takes away again, mostly at once: so it is zero, and written all the time. */
static void use_flip(struct vcpu *c, struct shared *s, uint64_t page, uint64_t r)
{
	const bool is_device = c->index == n_vcpus; /* which comes again late: one of two times */

	volatile uint64_t *mine = &s->word[c->index];

	if (*mine != c->mine[page])
		wrong("a word that flips is not what was written", page);
	if (r & 3)
		return;
	if (!c->mine[page]) {
		*mine = c->mine[page] = r | 1;
		__atomic_add_fetch(&s->word[WORDS - 1], 1, __ATOMIC_RELAXED);
		__atomic_add_fetch(&n_adds, 1, __ATOMIC_RELAXED);
		if (*mine != c->mine[page])
			wrong("a word that flips was lost at once", page);
		if (is_device || !(r & 0x70))
			return;
	}
	*mine = c->mine[page] = 0;
	__atomic_sub_fetch(&s->word[WORDS - 1], 1, __ATOMIC_RELAXED);
	__atomic_sub_fetch(&n_adds, 1, __ATOMIC_RELAXED);
}

/* Most writes go to an eighth of the memory that moves on. */
static uint64_t pick_written(uint64_t r)
{
	uint64_t window = mb_now_ns() / WINDOW_NS % 8;

	return r & 63 ? window * N_PAGES / 8 + r / 64 % (N_PAGES / 8) : r / 64 % N_PAGES;
}

static void act(struct vcpu *c, char *base)
{
	uint64_t r = rnd(&c->seed), dice = r >> 56, page = r % N_PAGES;
	struct shared *s;

	if (r >> 50 & 1)
		page = HOT_FIRST + r % N_HOT;
	else if (dice < 64)
		page = pick_written(r % (1ull << 48));
	s = (struct shared *)(base + page * PAGE);
	if (page % BOARD_PAGE == 0)
		use_board(c, s, page, dice < 64 ? 0 : r >> 40);
	else if (page % BOARD_PAGE == FLIP_PAGE)
		use_flip(c, s, page, dice < 64 ? r >> 40 & ~3ull : r >> 40);
	else if (dice < 64)
		write_page(c, s, page);
	else
		read_page(c, s, page);
	c->ops++;
}

static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;

	while (!is_over()) {
		uint64_t begin_ns = mb_now_ns(), ns;

		act(c, view[c->view].base);
		ns = mb_now_ns() - begin_ns;
		c->slowest_ns = ns > c->slowest_ns ? ns : c->slowest_ns;
	}
	return NULL;
}

/* Through a mapping that nothing protects, as the kernel writes pinned pages. */
static void *device_main(void *arg)
{
	struct vcpu *c = arg;

	while (!is_over()) {
		uint64_t r = rnd(&c->seed), page = pick_written(r), n = 1 + (r >> 50) % 8;

		if (MB_REPLICA_WRONG == WRONG_PUNCH_HELD)
			page = HOT_FIRST + r % N_HOT;
		if (page + n > N_PAGES)
			n = N_PAGES - page;
		if (mb_replicas_hold(replicas, page * PAGE, n * PAGE))
			wrong("cannot be held", page);
		if (MB_REPLICA_WRONG == WRONG_PUNCH_HELD)
			usleep(300);
		for (uint64_t i = page; i < page + n; i++) {
			struct shared *s = (struct shared *)(own.base + i * PAGE);

			if (i % BOARD_PAGE == 0)
				use_board(c, s, i, 0);
			else if (i % BOARD_PAGE == FLIP_PAGE)
				use_flip(c, s, i, r >> 40 & ~3ull);
			else
				write_page(c, s, i);
		}
		mb_replicas_release(replicas, page * PAGE, n * PAGE);
		__atomic_add_fetch(&devices, 1, __ATOMIC_RELAXED);
		usleep((useconds_t)(r % 500));
	}
	return NULL;
}

/* ---- the memory manager ---- */

static uint64_t pick_range(uint64_t r, uint64_t *offset)
{
	uint64_t page = r % N_PAGES, n = r >> 20 & 1 ? 1 + (r >> 24) % 16 : BLOCK_PAGES;

	if (r >> 21 & 1) {
		page = HOT_FIRST;
		n = N_HOT;
	} else if (n == BLOCK_PAGES) {
		page -= page % BLOCK_PAGES;
	}
	*offset = page * PAGE;
	return (n < N_PAGES - page ? n : N_PAGES - page) * PAGE;
}

static void *replicator_main(void *arg)
{
	struct mb_replicated d = {0}, tried = {0};
	uint64_t seed = (uintptr_t)arg;

	while (!is_over()) {
		uint64_t r = rnd(&seed), offset, len = pick_range(r, &offset);

		const unsigned views = 1 + (unsigned)(r >> 40) % ((1u << n_views) - 1);

		/* With one view there is nothing to copy. A quarter is tried first, and some of that
		 * forgotten. */
		if (n_views == 1) {
			usleep(1000);
		} else if (r >> 58 & 3) {
			mb_replicas_replicate(replicas, offset, len, views, &d);
		} else {
			mb_replicas_protect(replicas, offset, len, &tried);
			usleep((useconds_t)(r >> 30) % 300);
			if (r >> 56 & 3)
				mb_replicas_finish(replicas, offset, len, views, &d);
		}
		if (r >> 60 == 0)
			mb_replicas_reclaim(replicas, len, ~0u);
	}
	__atomic_store_n(&copied, d.copied_bytes, __ATOMIC_RELAXED);
	printf("copied %lu MiB, waited %lu MiB, held or written meanwhile %lu MiB, failed %lu\n",
		d.copied_bytes >> 20, d.waiting_bytes >> 20, d.held_bytes >> 20, d.failed_bytes);
	return NULL;
}

/* Some of it, by runs; backwards each is mapped by itself. */
static int merge_runs(uint64_t seed, uint64_t offset, uint64_t len,
	const struct mb_replicas_source *source, struct mb_merged *d)
{
	const bool backwards = seed & 1;
	struct mb_merging *merging;
	int rc = mb_replicas_merge_begin(replicas, source, len, &merging);

	for (uint64_t at = 0, n; !rc && at < len; at += n) {
		uint64_t r = rnd(&seed), from;

		n = (1 + r % 8) * PAGE;
		n = n < len - at ? n : len - at;
		from = backwards ? len - at - n : at;
		if (r >> 60)
			rc = mb_replicas_merge_run(merging, offset + from, from, n, d);
	}
	if (!rc)
		mb_replicas_merge_end(merging);
	return rc;
}

/*
 * Merges pages with what they were a moment ago, in a file of its own each time. In the hot range
 * always some are written in between, most others are not.
 */
static void *merger_main(void *arg)
{
	uint64_t seed = (uintptr_t)arg;
	struct mb_merged d = {0};

	while (!is_over()) {
		uint64_t r = rnd(&seed), offset, len = pick_range(r, &offset);
		const uint64_t skip = (r >> 32) % 4 * PAGE;
		int file = memfd_create("merged", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		struct mb_replicas_source source[3];

		for (unsigned v = 0; v < 3; v++)
			source[v] = (struct mb_replicas_source){.fd = file, .offset = skip};
		ck_assert_int_eq(ftruncate(file, (off_t)(skip + len)), 0);
		for (uint64_t done = 0; done < len;) {
			ssize_t n = pwrite(file, own.base + offset + done, len - done,
				(off_t)(skip + done));

			ck_assert_int_gt(n, 0);
			done += (uint64_t)n;
		}
		ck_assert_int_eq(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE), 0);
		if (r >> 62 ? merge_runs(r, offset, len, source, &d)
			    : mb_replicas_merge(replicas, offset, len, source, &d))
			wrong("cannot be merged", offset / PAGE);
		close(file);
		usleep((useconds_t)(r >> 30) % 300);
	}
	merged = d.merged_bytes;
	printf("merged %lu MiB, held or written meanwhile %lu MiB, others %lu MiB, failed %lu\n",
		d.merged_bytes >> 20, d.held_bytes >> 20, d.differs_bytes >> 20, d.failed_bytes);
	return NULL;
}

/* Of pages that flip most are zero, and some are written just then. */
static void *puncher_main(void *arg)
{
	uint64_t seed = (uintptr_t)arg;
	struct mb_punched d = {0};

	while (!is_over()) {
		uint64_t r = rnd(&seed), offset, len = pick_range(r, &offset);

		if (mb_replicas_punch(replicas, offset, len, &d))
			wrong("cannot be punched", offset / PAGE);
		usleep((useconds_t)(r >> 30) % 300);
	}
	punched = d.punched_bytes;
	printf("punched %lu MiB, held or written meanwhile %lu MiB, others %lu MiB, failed %lu\n",
		d.punched_bytes >> 20, d.held_bytes >> 20, d.differs_bytes >> 20, d.failed_bytes);
	return NULL;
}

/* Zaps, protects what is not trapped, and maps anew; and moves home. */
static void *tracker_main(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	while (!is_over()) {
		uint64_t r = rnd(&seed), offset, len = pick_range(r, &offset);
		unsigned v = (unsigned)(r >> 40) % n_views;
		void *page = own.base + offset;
		int node = 0, status;

		if (pm && mb_pagemap_zap(pm, view[v].base + offset, len))
			wrong("cannot be zapped", offset / PAGE);
		if (pm && r >> 62)
			mb_pagemap_clean(pm, view[v].base + offset, len);
		if (r >> 58 == 1)
			mb_replicas_remap(replicas, v, offset, len);
		if (r >> 61 == 2)
			move_pages(0, 1, &page, &node, &status, MPOL_MF_MOVE_ALL);
		__atomic_add_fetch(&zaps, 1, __ATOMIC_RELAXED);
		usleep((useconds_t)(r >> 30) % 1000);
	}
	return NULL;
}

static void watch(void *ctx, unsigned v, uint64_t offset, uint64_t len)
{
	if (pm)
		mb_pagemap_watch(pm, view[v].base + offset, len);
}

/* ---- the run ---- */

static unsigned seconds(void)
{
	const char *s = getenv("MB_TORTURE_SECONDS");

	return s ? (unsigned)atoi(s) : SECONDS;
}

static bool make(unsigned n)
{
	struct mb_error err;
	struct mb_replicas_config config = {.name = "torture",
		.ram_bytes = BYTES,
		.n_views = n,
		.max_bytes = BYTES,
		.backoff_ns = 1000000, /* a thousandth of what is usual */
		.watch = watch};

	n_views = n;
	n_vcpus = n < 3 ? 4 : 6;
	config.uffd = mb_replicas_open_uffd(true);
	if (config.uffd < 0) {
		skip("a userfaultfd that protects shared memory");
		return false;
	}
	fd = config.ram_fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &own), 0);
	for (unsigned v = 0; v < n; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &view[v]), 0);
		config.own_base = own.base;
		config.view_base[v] = view[v].base;
		config.view_node[v] = -1;
	}
	ck_assert_int_eq(mb_pagemap_open(MB_PAGEMAP_ALL, &pm, &err), 0);
	for (unsigned v = 0; v < n; v++)
		ck_assert_int_eq(mb_pagemap_watch(pm, view[v].base, BYTES), 0);
	memset(own.base, 0, BYTES);
	ck_assert_int_eq(mb_replicas_create(&config, &replicas, &err), 0);
	return true;
}

static void show(void)
{
	uint64_t ops = 0, slowest = 0;
	struct mb_replicas_stats s;

	mb_replicas_stats(replicas, &s);
	for (unsigned i = 0; i <= n_vcpus; i++) {
		ops += vcpus[i].ops;
		slowest = vcpus[i].slowest_ns > slowest ? vcpus[i].slowest_ns : slowest;
	}
	printf("%lu accesses, the slowest %.1f ms; %lu device writes; %lu zaps\n", ops,
		(double)slowest / 1e6, devices, zaps);
	printf("%lu faults, %.1f us each, the longest %.1f ms; below", s.n_faults,
		s.n_faults ? (double)s.fault_ns / 1e3 / (double)s.n_faults : 0.0,
		(double)s.longest_ns / 1e6);
	for (unsigned i = 0; i < MB_REPLICA_BUCKETS; i++)
		if (s.faults_below_us[i])
			printf(" %u us: %lu", 1u << i, s.faults_below_us[i]);
	printf("; %lu pages collapsed, %lu calls failed\n", s.n_collapsed, s.n_failures);
	fflush(stdout);
	ck_assert_uint_le(s.bytes, BYTES);
}

/* In quiet: everything once more, in every view. */
static void check_all(void)
{
	uint64_t adds = 0;

	for (unsigned v = 0; v < n_views; v++) {
		adds = 0;
		for (uint64_t p = 0; p < N_PAGES; p++) {
			struct shared *s = (struct shared *)(view[v].base + p * PAGE);

			if (p % BOARD_PAGE == 0 || p % BOARD_PAGE == FLIP_PAGE) {
				adds += s->word[WORDS - 1];
				for (unsigned i = 0; i <= n_vcpus; i++)
					if (s->word[vcpus[i].index] != vcpus[i].mine[p])
						wrong("a word is not what was written last", p);
			} else {
				read_page(&vcpus[0], s, p);
				if (s->version != published[p])
					wrong("a version was lost", p);
			}
		}
		if (adds != n_adds)
			wrong("additions were lost", 0);
	}
}

START_TEST(test_all_at_once)
{
	pthread_t replicator, merger, puncher, tracker;
	const char *given = getenv("MB_TORTURE_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : mb_now_ns() | 1, other = seed;

	if (!make((unsigned)_i))
		return;
	printf("%u views, seed %#lx\n", n_views, seed);
	for (unsigned i = 0; i <= n_vcpus; i++) {
		struct vcpu *c = &vcpus[i];

		*c = (struct vcpu){.index = i, .view = i % n_views, .seed = rnd(&other)};
		ck_assert_int_eq(
			pthread_create(&c->thread, NULL, i < n_vcpus ? vcpu_main : device_main, c),
			0);
	}
	pthread_create(&replicator, NULL, replicator_main, (void *)(uintptr_t)rnd(&other));
	if (MERGES)
		pthread_create(&merger, NULL, merger_main, (void *)(uintptr_t)rnd(&other));
	if (PUNCHES)
		pthread_create(&puncher, NULL, puncher_main, (void *)(uintptr_t)rnd(&other));
	pthread_create(&tracker, NULL, tracker_main, (void *)(uintptr_t)rnd(&other));
	for (unsigned i = 0; i < 10 * seconds() && !(MB_REPLICA_WRONG && n_wrong); i++)
		usleep(100000);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i <= n_vcpus; i++)
		pthread_join(vcpus[i].thread, NULL);
	pthread_join(replicator, NULL);
	if (MERGES)
		pthread_join(merger, NULL);
	if (PUNCHES)
		pthread_join(puncher, NULL);
	pthread_join(tracker, NULL);
	check_all();
	mb_replicas_collapse(replicas, 0, BYTES);
	check_all();
	show();
	ck_assert_uint_gt(copied + (n_views == 1), 0);
	ck_assert_uint_gt(merged + !MERGES, 0);
	ck_assert_uint_gt(punched + !PUNCHES, 0);
	if (MB_REPLICA_WRONG)
		ck_assert_uint_gt(n_wrong, 0);
	else
		ck_assert_uint_eq(n_wrong, 0);
	mb_replicas_destroy(replicas);
	mb_pagemap_close(pm);
	for (unsigned v = 0; v < n_views; v++)
		mb_ram_file_unmap(&view[v], BYTES);
	mb_ram_file_unmap(&own, BYTES);
	close(fd);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("replica_torture");
	TCase *all = tcase_create("all");

	/* Some orders are wrong with one view, too, but it takes two to tell. */
	tcase_add_loop_test(
		all, test_all_at_once, MB_REPLICA_WRONG ? 2 : 1, MB_REPLICA_WRONG ? 3 : 4);
	tcase_set_timeout(all, 60 + (double)seconds());
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
