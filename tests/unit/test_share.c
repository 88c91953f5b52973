// SPDX-License-Identifier: Apache-2.0
/*
 * Machines that have read the same: what they have in memory of it, with a real daemon (in a thread),
 * real views and a base on a real file system.
 */
#include "commons_fixture.h"

#include <mirrorball/footprint.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <mirrorball/share.h>

#define RAM_BYTES  (8ull << 20)
#define BASE_BYTES (20ull << 20)
#define BASE_PAGES (BASE_BYTES / PAGE)
#define MAX_VIEWS  2u
#define MACHINES   3u
#define SETTLE_NS  20000000ull

/* Its base has BASE_BYTES; in a directory that nobody but us needs. */
static void make_large_base(void)
{
	setup_dir();
	f.config.max_bytes = 1 << 30;
	write_base(f.base_fd, 1, BASE_BYTES);
	fsync(f.base_fd);
	/* Its times are those of before now for sure. */
	usleep(50000);
}

/* Of the base's page. */
static uint64_t word(uint64_t page, uint64_t at)
{
	return word_of(1, page, (unsigned)(at / 8));
}

/* ---- machines ---- */

struct machine {
	unsigned n_views, base;
	int fd;
	struct mb_ram_mapping view[MAX_VIEWS], own;
	struct mb_replicas *replicas;
	struct mb_share *share;
	uint64_t page[RAM_BYTES / PAGE];  /* + 1: of the base; 0: none */
	uint64_t wrote[RAM_BYTES / PAGE]; /* into the first word; 0: nothing */
};
static struct machine machines[MACHINES];

static void nodes(void *ctx, unsigned node[MB_HEAT_VIEWS])
{
	for (unsigned v = 0; v < MB_HEAT_VIEWS; v++)
		node[v] = 0;
}

static bool make_machine(struct machine *m, unsigned n_views)
{
	struct mb_replicas_config replicas = {
		.name = "share", .ram_bytes = RAM_BYTES, .n_views = n_views, .backoff_ns = 1000000};
	struct mb_share_config config = {
		.ram_bytes = RAM_BYTES,
		.n_views = n_views,
		.nodes = nodes,
		.socket = f.path,
		.settle_ns = SETTLE_NS};
	struct mb_error err;

	memset(m, 0, sizeof(*m));
	m->n_views = n_views;
	replicas.uffd = mb_replicas_open_uffd(true);
	if (replicas.uffd < 0) {
		skip("a userfaultfd that protects shared memory");
		return false;
	}
	m->fd = replicas.ram_fd = mb_ram_file_open(RAM_BYTES);
	ck_assert_int_ge(m->fd, 0);
	ck_assert_int_eq(mb_ram_file_map(m->fd, RAM_BYTES, &m->own), 0);
	replicas.own_base = m->own.base;
	for (unsigned v = 0; v < n_views; v++) {
		ck_assert_int_eq(mb_ram_file_map(m->fd, RAM_BYTES, &m->view[v]), 0);
		replicas.view_base[v] = m->view[v].base;
		replicas.view_node[v] = -1;
	}
	ck_assert_int_eq(mb_replicas_create(&replicas, &m->replicas, &err), 0);
	config.replicas = m->replicas;
	config.own_base = m->own.base;
	ck_assert_int_eq(mb_share_create(&config, &m->share, &err), 0);
	ck_assert_int_eq(mb_share_add_base(m->share, f.base_fd, &m->base, &err), 0);
	ck_assert_int_eq(mb_share_start(m->share, &err), 0);
	return true;
}

static void end_machine(struct machine *m)
{
	mb_share_stop(m->share);
	mb_replicas_destroy(m->replicas);
	mb_share_destroy(m->share);
	for (unsigned v = 0; v < m->n_views; v++)
		mb_ram_file_unmap(&m->view[v], RAM_BYTES);
	mb_ram_file_unmap(&m->own, RAM_BYTES);
	close(m->fd);
}

static uint64_t home_bytes(const struct machine *m)
{
	struct stat st;

	ck_assert_int_eq(fstat(m->fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static struct mb_share_stats ask(const struct machine *m)
{
	struct mb_share_stats s;

	mb_share_stats(m->share, &s);
	return s;
}

/* As a disk does: into guest memory, by way of our own mapping; or from the commons. */
static bool read_base(struct machine *m, uint64_t ram_page, uint64_t base_page, unsigned n)
{
	struct iovec iov = {.iov_base = m->own.base + ram_page * PAGE, .iov_len = n * PAGE};
	bool common;

	ck_assert_int_eq(mb_replicas_hold(m->replicas, ram_page * PAGE, n * PAGE), 0);
	common = mb_share_read(m->share, m->base, base_page * PAGE, iov.iov_base, n * PAGE);
	if (!common)
		ck_assert_int_eq(pread(f.base_fd, iov.iov_base, n * PAGE, (off_t)(base_page * PAGE)),
			(ssize_t)(n * PAGE));
	mb_share_saw(m->share, m->base, base_page * PAGE, &iov, 1, n * PAGE);
	mb_replicas_release(m->replicas, ram_page * PAGE, n * PAGE);
	for (unsigned i = 0; i < n; i++) {
		m->page[ram_page + i] = base_page + i + 1;
		m->wrote[ram_page + i] = 0;
	}
	return common;
}

/* How many words are not what they should be, in any view. */
static unsigned n_wrong(const struct machine *m)
{
	unsigned wrong = 0;

	for (unsigned v = 0; v < m->n_views; v++) {
		const uint64_t *words = (const void *)m->view[v].base;

		for (uint64_t i = 0; i < RAM_BYTES / 8; i++) {
			uint64_t page = i * 8 / PAGE, at = i * 8 % PAGE;
			uint64_t want =
				m->page[page] ? word(m->page[page] - 1, at) : 0;

			if (!at && m->wrote[page])
				want = m->wrote[page];
			wrong += words[i] != want;
		}
	}
	return wrong;
}

static uint64_t merged_soon(const struct machine *m, uint64_t bytes)
{
	for (unsigned i = 0; i < 1000 && ask(m).merged_bytes < bytes; i++)
		usleep(10000);
	return ask(m).merged_bytes;
}

static void write_word(struct machine *m, unsigned view, uint64_t page, uint64_t value)
{
	*(volatile uint64_t *)(m->view[view].base + page * PAGE) = value;
	m->wrote[page] = value;
}

/* What Linux tells of this process, which is machines of so many views. */
static void is_told(uint64_t merged_bytes, unsigned n_views)
{
	struct mb_footprint all;
	struct mb_error err;
	struct stat st;
	char tag[64];

	ck_assert_int_eq(fstat(f.base_fd, &st), 0);
	snprintf(tag, sizeof(tag), "%d:%lx:%lx", getpid(), st.st_dev, st.st_ino);
	ck_assert_msg(!mb_footprint_read(getpid(), n_views, &all, &err), "%s", err.text);
	ck_assert_uint_eq(all.n_origins, 1);
	ck_assert_str_eq(all.origin[0].tag, tag);
	ck_assert_uint_eq(all.shared_bytes, merged_bytes);
	ck_assert_uint_gt(all.shared_pss_bytes, 0);
	ck_assert_uint_gt(all.private_bytes, 0);
}

/* ---- what it is for ---- */

START_TEST(test_shares)
{
	const unsigned n_views = 1 + (unsigned)_i, n = 600;

	start_server();
	for (unsigned k = 0; k < 2; k++)
		if (!make_machine(&machines[k], n_views))
			return;
	/* A run over two pieces of the base; each machine elsewhere in its memory. */
	ck_assert(!read_base(&machines[0], 100, 1900, n));
	ck_assert_uint_eq(merged_soon(&machines[0], n * PAGE), n * PAGE);
	ck_assert_uint_eq(n_wrong(&machines[0]), 0); /* which reads all of its memory */
	ck_assert_uint_eq(home_bytes(&machines[0]), RAM_BYTES - n * PAGE);
	/* The other one reads it from memory, once it has heard that it is there. */
	read_base(&machines[1], 50, 1900, n);
	ck_assert_uint_eq(merged_soon(&machines[1], n * PAGE), n * PAGE);
	ck_assert(read_base(&machines[1], 900, 1900, n));
	ck_assert_uint_ge(ask(&machines[1]).common_bytes, n * PAGE);
	ck_assert_uint_eq(merged_soon(&machines[1], 2 * n * PAGE), 2 * n * PAGE);
	/* What one writes is its own. */
	write_word(&machines[0], 0, 100 + 7, 4711);
	ck_assert_uint_eq(n_wrong(&machines[0]), 0);
	ck_assert_uint_eq(n_wrong(&machines[1]), 0);
	ck_assert_uint_eq(ask(&machines[0]).merged_bytes, (n - 1) * PAGE);
	ck_assert_uint_eq(home_bytes(&machines[0]), RAM_BYTES - (n - 1) * PAGE);
	is_told((n - 1 + 2 * n) * PAGE, n_views);
	/* A machine that begins now reads it from memory without having read it. */
	ck_assert(make_machine(&machines[2], n_views));
	for (unsigned i = 0; i < 1000 && !read_base(&machines[2], 1, 2000, 300); i++)
		usleep(10000);
	ck_assert_uint_ge(ask(&machines[2]).common_bytes, 300 * PAGE);
	for (unsigned k = 0; k < 3; k++)
		end_machine(&machines[k]);
	stop_server();
}
END_TEST

/* No daemon, then one, then none: nobody waits, and nothing is wrong. */
START_TEST(test_daemon_comes_and_goes)
{
	struct machine *m = &machines[0];

	if (!make_machine(m, 2))
		return;
	read_base(m, 0, 0, 64);
	usleep(4 * SETTLE_NS / 1000);
	ck_assert_uint_eq(ask(m).merged_bytes, 0);
	start_server();
	for (unsigned i = 0; i < 1000 && strcmp(ask(m).state, "on") != 0; i++)
		usleep(10000);
	read_base(m, 64, 64, 64);
	ck_assert_uint_ge(merged_soon(m, 64 * PAGE), 64 * PAGE);
	stop_server();
	ck_assert_uint_eq(n_wrong(m), 0);
	read_base(m, 128, 128, 64);
	write_word(m, 1, 70, 4711);
	ck_assert_uint_eq(n_wrong(m), 0);
	start_server();
	for (unsigned i = 0; i < 1000 && strcmp(ask(m).state, "on") != 0; i++)
		usleep(10000);
	read_base(m, 256, 256, 64);
	ck_assert_uint_ge(merged_soon(m, 127 * PAGE), 127 * PAGE);
	ck_assert_uint_eq(n_wrong(m), 0);
	end_machine(m);
	stop_server();
}
END_TEST

/* ---- at random ---- */

static uint64_t rng;

static uint64_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

static void act(struct machine *m)
{
	uint64_t r = rnd(), page = (r >> 8) % (RAM_BYTES / PAGE), n = 1 + (r >> 24) % 40;

	if (n > RAM_BYTES / PAGE - page)
		n = RAM_BYTES / PAGE - page;
	switch (r % 16) {
	case 0 ... 5: /* of a few parts of the base, which all of them read */
		read_base(m, page, (r >> 32) % 8 * 600 + (r >> 40) % 64, (unsigned)n);
		break;
	case 6 ... 12:
		write_word(m, (unsigned)(r >> 32) % m->n_views, page, r | 1);
		break;
	case 13: /* a device */
		ck_assert_int_eq(mb_replicas_hold(m->replicas, page * PAGE, PAGE), 0);
		*(uint64_t *)(m->own.base + page * PAGE) = m->wrote[page] = r | 1;
		mb_replicas_release(m->replicas, page * PAGE, PAGE);
		break;
	case 14:
		if (r >> 60 == 0)
			ck_assert_int_eq(mb_replicas_collapse(m->replicas, 0, RAM_BYTES), 0);
		break;
	default: {
		uint64_t want = m->wrote[page] ? m->wrote[page]
				: m->page[page] ? word(m->page[page] - 1, 0)
						: 0;

		ck_assert_uint_eq(*(uint64_t *)(m->view[(r >> 32) % m->n_views].base + page * PAGE),
			want);
		ck_assert_uint_eq(*(uint64_t *)(m->own.base + page * PAGE), want);
	}
	}
}

/* Each machine reads and writes for itself, a daemon comes and goes; each has what a model says. */
START_TEST(test_at_random)
{
	const char *given = getenv("MB_TEST_SEED");
	uint64_t end_ns, merged = 0, next_ns;
	bool serves = true;

	rng = (given ? strtoull(given, NULL, 0) : mb_now_ns()) | 1;
	printf("MB_TEST_SEED=%lu\n", rng);
	fflush(stdout);
	start_server();
	for (unsigned k = 0; k < MACHINES; k++)
		if (!make_machine(&machines[k], 1 + k % 2))
			return;
	end_ns = mb_now_ns() + 6000000000ull;
	next_ns = mb_now_ns() + 500000000ull;
	while (mb_now_ns() < end_ns) {
		for (unsigned i = 0; i < 100; i++)
			act(&machines[rnd() % MACHINES]);
		usleep(2000);
		for (unsigned k = 0; k < MACHINES; k++)
			if (ask(&machines[k]).merged_bytes > merged)
				merged = ask(&machines[k]).merged_bytes;
		if (mb_now_ns() < next_ns)
			continue;
		next_ns = mb_now_ns() + 500000000ull;
		for (unsigned k = 0; k < MACHINES; k++)
			ck_assert_uint_eq(n_wrong(&machines[k]), 0);
		if (rnd() % 3)
			continue;
		if (serves)
			stop_server();
		else
			start_server();
		serves = !serves;
	}
	for (unsigned k = 0; k < MACHINES; k++) {
		struct mb_share_stats s = ask(&machines[k]);

		ck_assert_uint_eq(n_wrong(&machines[k]), 0);
		printf("machine %u: read %lu MiB, of these %lu from memory; merged %lu, differed %lu, "
		       "dropped %lu\n",
			k, s.seen_bytes >> 20, s.common_bytes >> 20, s.were_merged_bytes >> 20,
			s.differed_bytes >> 20, s.dropped_bytes >> 20);
		end_machine(&machines[k]);
	}
	ck_assert_uint_gt(merged, 0);
	if (serves)
		stop_server();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("share");
	TCase *all = tcase_create("all");

	tcase_set_timeout(all, 60);
	tcase_add_checked_fixture(all, make_large_base, teardown_dir);
	tcase_add_loop_test(all, test_shares, 0, 2);
	tcase_add_test(all, test_daemon_comes_and_goes);
	tcase_add_test(all, test_at_random);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
