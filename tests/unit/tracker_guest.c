// SPDX-License-Identifier: Apache-2.0
#include "tracker_guest.h"
#include "mappings.h"

#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WORD 8u /* of each page; the first are the test's */

struct tracker_ram ram = {.bytes = BYTES, .step = BYTES, .part = BYTES, .n_views = 2};
struct mb_ram_mapping view[MB_HEAT_VIEWS];
struct mb_tracker *tracker;
bool refuse_remap;
unsigned n_remaps, n_failed, n_turns_taken, copied_views;
int (*kvm_faults)(void *ctx, struct mb_vcpu_faults *n);
uint64_t fault_ns = 1000;
static int fd;
static unsigned turn, next_turn; /* atomic */
static uint64_t turn_at_ns;	 /* when vCPUs are in their new views; atomic */

/*
 * The guest's accesses are not ThreadSanitizer's business, here as in a machine: what the tracker
 * does with mappings looks like a write of all that is in them.
 */
#define IN_GUEST __attribute__((no_sanitize("thread")))

void nap(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};

	nanosleep(&ts, NULL);
}

static int remap(void *ctx, unsigned v, uint64_t offset, uint64_t len)
{
	int rc = refuse_remap ? -ENOMEM : mb_ram_file_remap(fd, &view[v], offset, len);
	__atomic_add_fetch(rc ? &n_failed : &n_remaps, 1, __ATOMIC_RELAXED);
	return rc;
}

unsigned get(const unsigned *n)
{
	return __atomic_load_n(n, __ATOMIC_RELAXED);
}

/* The page after this one that is used. */
static uint64_t next_page(uint64_t at)
{
	at += MB_PAGE_BYTES;
	return at % ram.step < ram.part ? at : at / ram.step * ram.step + ram.step;
}

static unsigned n_groups(void)
{
	return ram.n_groups ? ram.n_groups : ram.n_views;
}

/* vCPUs are in their new views some milliseconds later. */
#define TURN_TAKES_NS 10000000u

static void take_turn(void *ctx, unsigned next)
{
	__atomic_store_n(&turn, __atomic_load_n(&next_turn, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
	__atomic_store_n(&turn_at_ns, mb_now_ns() + TURN_TAKES_NS, __ATOMIC_SEQ_CST);
	__atomic_store_n(&next_turn, next, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&n_turns_taken, 1, __ATOMIC_RELAXED);
}

static unsigned view_of(unsigned group)
{
	uint64_t at_ns = __atomic_load_n(&turn_at_ns, __ATOMIC_SEQ_CST);
	unsigned t = __atomic_load_n(mb_now_ns() < at_ns ? &turn : &next_turn, __ATOMIC_SEQ_CST);

	return mb_heat_view_of(group, t, ram.n_views);
}

static float copied(void *ctx, uint64_t offset, uint64_t len, unsigned v)
{
	return (float)(copied_views >> v & 1);
}

void make(bool in_huge_pages, unsigned features, uint32_t guest_ppm)
{
	struct mb_tracker_config config = {.name = "test",
		.fault_ns = fault_ns,
		.ram_bytes = ram.bytes,
		.n_views = ram.n_views,
		.n_groups = ram.n_groups,
		.take_turn = take_turn,
		.n_vcpus = 2,
		.guest_ppm = guest_ppm,
		.cpu_ppm = 10 * guest_ppm,
		.features = features,
		.remap = remap,
		.faults = kvm_faults,
		.copied = copied};
	struct mb_error err;

	fd = config.ram_fd = mb_ram_file_open(ram.bytes);
	ck_assert_int_ge(fd, 0);
	for (unsigned v = 0; v < ram.n_views; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, ram.bytes, &view[v]), 0);
		if (!in_huge_pages)
			madvise(view[v].base, ram.bytes, MADV_NOHUGEPAGE);
		config.view_base[v] = view[v].base;
	}
	for (uint64_t at = 0; at < ram.bytes; at = next_page(at)) {
		*(uint64_t *)(view[0].base + at) = at;
		for (unsigned v = 1; v < ram.n_views; v++)
			*(volatile char *)(view[v].base + at);
	}
	ck_assert_msg(!mb_tracker_create(&config, &tracker, &err), "%s", err.text);
}

void start(void)
{
	struct mb_error err;

	ck_assert_msg(!mb_tracker_start(tracker, &err), "%s", err.text);
}

void finish(void)
{
	mb_tracker_destroy(tracker);
	for (uint64_t at = 0; at < ram.bytes; at = next_page(at)) {
		const char *base = view[at / MB_PAGE_BYTES % ram.n_views].base;

		if (*(const uint64_t *)(base + at) != at)
			ck_abort_msg("%lx: %lx", at, *(const uint64_t *)(base + at));
	}
	for (unsigned v = 0; v < ram.n_views; v++)
		mb_ram_file_unmap(&view[v], ram.bytes);
	close(fd);
}

void give_back(uint64_t first, uint64_t len)
{
	ck_assert_int_eq(
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first, (off_t)len),
		0);
}

void use(uint64_t first, uint64_t len)
{
	for (uint64_t at = first; at < first + len; at += MB_PAGE_BYTES)
		for (unsigned v = 0; v < ram.n_views; v++)
			*(volatile uint64_t *)(view[v].base + at) = at;
}

uint64_t backed_bytes(void)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* ---- vCPUs ---- */

/* Adds one to a word of each page a round: a lost write shows. */
IN_GUEST static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;

	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
		const char *base = view[view_of(c->group)].base;

		for (uint64_t at = c->first; at < c->first + c->len; at += c->stride) {
			uint64_t *word = (uint64_t *)(base + at) + WORD + c->group;

			if (c->writes)
				__atomic_add_fetch(word, 1, __ATOMIC_RELAXED);
			else
				__atomic_load_n(word, __ATOMIC_RELAXED);
		}
		c->n++;
		nap(1);
	}
	return NULL;
}

void go(struct vcpu *c)
{
	if (!c->stride)
		c->stride = 4096;
	ck_assert_int_eq(pthread_create(&c->thread, NULL, vcpu_main, c), 0);
}

IN_GUEST void halt(struct vcpu *c)
{
	const char *base = view[(c->group + 1) % ram.n_views].base;

	__atomic_store_n(&c->stop, true, __ATOMIC_RELAXED);
	pthread_join(c->thread, NULL);
	for (uint64_t at = c->first; at < c->first + c->len && c->writes; at += c->stride) {
		uint64_t n = ((const uint64_t *)(base + at))[WORD + c->group];

		if (n != c->n)
			ck_abort_msg("%lx: %lu of %lu writes", at, n, c->n);
	}
}

/* ---- what it finds ---- */

struct sums sum(uint64_t first, uint64_t len)
{
	struct mb_extent *extent;
	struct sums s = {.confidence = 0};
	unsigned n;

	ck_assert_int_eq(mb_tracker_extents(tracker, &extent, &n), 0);
	for (unsigned i = 0; i < n; i++) {
		uint64_t a = extent[i].offset, b = a + extent[i].len_bytes;
		double share;

		a = a > first ? a : first;
		b = b < first + len ? b : first + len;
		if (a >= b)
			continue;
		share = (double)(b - a) / (double)len;
		for (unsigned v = 0; v < n_groups(); v++) {
			s.read[v] += (double)extent[i].view[v].read * share;
			s.write[v] += (double)extent[i].view[v].write * share;
		}
		s.confidence += (double)extent[i].confidence * share;
		ck_assert(extent[i].node == -1 || extent[i].node_share > 0);
	}
	free(extent);
	return s;
}

struct mb_tracker_stats ask(void)
{
	struct mb_tracker_stats s;

	mb_tracker_stats(tracker, &s);
	return s;
}

/* Adds a vCPU for each. */
static unsigned make_vcpus(const struct use *use, unsigned n_parts, struct vcpu *c)
{
	unsigned n = 0;

	for (unsigned i = 0; i < n_parts; i++)
		for (unsigned v = 0; v < n_groups(); v++)
			if ((use[i].readers | use[i].writers) >> v & 1)
				c[n++] = (struct vcpu){.group = v,
					.first = i * ram.step,
					.len = ram.part,
					.writes = use[i].writers >> v & 1};
	return n;
}

/* Touches a second by whom there are some, and hardly any by others. */
static bool is_right(const struct use *use, unsigned n_parts, double least, bool knows_writes)
{
	for (unsigned i = 0; i < n_parts; i++) {
		struct sums s = sum(i * ram.step, ram.part);

		if (s.confidence < 0.3)
			return false;
		for (unsigned v = 0; v < n_groups(); v++) {
			bool reads = use[i].readers >> v & 1, writes = use[i].writers >> v & 1;
			double written = knows_writes ? s.write[v] : s.read[v];

			if (writes ? written <= least : s.write[v] >= least / (reads ? 4 : 20))
				return false;
			if (!writes && (reads ? s.read[v] <= least : s.read[v] >= least / 20))
				return false;
		}
	}
	return true;
}

void learn(const struct use *use, unsigned n_parts, double least, uint64_t least_windows)
{
	struct vcpu c[3 * MB_HEAT_VIEWS];
	bool knows_writes = ask().features & MB_PAGEMAP_WRITES, right = false;
	unsigned n = make_vcpus(use, n_parts, c);

	for (unsigned i = 0; i < n; i++)
		go(&c[i]);
	for (unsigned t = 0; t < 1500 && !right; t++) {
		nap(20);
		right = ask().n_windows >= least_windows &&
			is_right(use, n_parts, least, knows_writes);
	}
	for (unsigned i = 0; i < n_parts && !right; i++) {
		struct sums s = sum(i * ram.step, ram.part);

		fprintf(stderr, "%u: confidence %.2f:", i, s.confidence);
		for (unsigned v = 0; v < n_groups(); v++)
			fprintf(stderr, " %.1f/%.1f", s.read[v], s.write[v]);
		fprintf(stderr, "\n");
	}
	ck_assert(right);
	for (unsigned i = 0; i < n; i++)
		halt(&c[i]);
}
