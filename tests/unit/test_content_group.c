// SPDX-License-Identifier: Apache-2.0
/*
 * Machines of a trust group that have the same pages, wherever these came from: a real daemon (in a
 * thread) and real views.
 */
#include "run.h"

#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/commons_server.h>
#include <mirrorball/content.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/replica.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE	  MB_HEAT_PAGE_BYTES
#define RAM_BYTES (8ull << 20)
#define N_PAGES	  (RAM_BYTES / PAGE)
#define MACHINES  3u

/* ---- the daemon ---- */

static char dir[] = "/var/tmp/mb-content-XXXXXX", path[64];
static struct mb_commons_server *server;
static pthread_t server_thread;

static void *server_main(void *arg)
{
	mb_commons_server_run(server);
	return NULL;
}

static void start_server_of(uint64_t max_bytes)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct mb_commons_server_config config = {.max_bytes = max_bytes};
	struct mb_error err;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	unlink(path);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	ck_assert_int_eq(listen(fd, 16), 0);
	config.listen_fd = fd;
	ck_assert_int_eq(mb_commons_server_create(&config, &server, &err), 0);
	ck_assert_int_eq(pthread_create(&server_thread, NULL, server_main, NULL), 0);
}

static void start_server(void)
{
	start_server_of(1 << 30);
}

static void stop_server(void)
{
	mb_commons_server_stop(server);
	pthread_join(server_thread, NULL);
	ck_assert(mb_commons_server_destroy(server));
	unlink(path);
}

static void make_dir(void)
{
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/commons.sock", dir);
}

static void remove_dir(void)
{
	unlink(path);
	rmdir(dir);
}

/* ---- machines ---- */

struct machine {
	unsigned n_views;
	int fd;
	struct mb_ram_mapping view[2], own;
	struct mb_replicas *replicas;
	struct mb_content *content;
	uint64_t what[N_PAGES];	 /* it has; 0: zeroes */
	uint64_t wrote[N_PAGES]; /* into the first word; 0: nothing */
};
static struct machine machines[MACHINES];

static uint64_t word(uint64_t what, uint64_t at)
{
	return what ? (what * PAGE + at + 1) * 0x9e3779b97f4a7c15ull : 0;
}

static void nodes(void *ctx, unsigned node[MB_HEAT_VIEWS])
{
	for (unsigned v = 0; v < MB_HEAT_VIEWS; v++)
		node[v] = 0;
}

static bool make_machine(struct machine *m, unsigned n_views, const char *group)
{
	struct mb_replicas_config replicas = {.name = "content",
		.ram_bytes = RAM_BYTES,
		.n_views = n_views,
		.backoff_ns = 1000000};
	struct mb_content_config config = {.ram_bytes = RAM_BYTES,
		.n_views = n_views,
		.budget_ppm = 1000000,
		.group = group,
		.nodes = nodes,
		.socket = path,
		.settle_ns = 5000000,
		.pass_ns = 1};
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
	madvise(m->own.base, RAM_BYTES, MADV_NOHUGEPAGE);
	replicas.own_base = m->own.base;
	for (unsigned v = 0; v < n_views; v++) {
		ck_assert_int_eq(mb_ram_file_map(m->fd, RAM_BYTES, &m->view[v]), 0);
		madvise(m->view[v].base, RAM_BYTES, MADV_NOHUGEPAGE);
		replicas.view_base[v] = m->view[v].base;
		replicas.view_node[v] = -1;
	}
	ck_assert_int_eq(mb_replicas_create(&replicas, &m->replicas, &err), 0);
	config.replicas = m->replicas;
	config.ram_fd = m->fd;
	config.own_base = m->own.base;
	ck_assert_int_eq(mb_content_create(&config, &m->content, &err), 0);
	return true;
}

static void end_machine(struct machine *m)
{
	mb_content_destroy(m->content);
	mb_replicas_destroy(m->replicas);
	for (unsigned v = 0; v < m->n_views; v++)
		mb_ram_file_unmap(&m->view[v], RAM_BYTES);
	mb_ram_file_unmap(&m->own, RAM_BYTES);
	close(m->fd);
}

static struct mb_content_stats ask(const struct machine *m)
{
	struct mb_content_stats s;

	mb_content_stats(m->content, &s);
	return s;
}

static uint64_t merged(const struct machine *m)
{
	struct mb_replicas_stats s;

	mb_replicas_stats(m->replicas, &s);
	return s.merged_bytes;
}

static uint64_t home_bytes(const struct machine *m)
{
	struct stat st;

	ck_assert_int_eq(fstat(m->fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* A guest that makes a page, by way of a view. */
static void make_page(struct machine *m, unsigned view, uint64_t page, uint64_t what)
{
	volatile uint64_t *to = (uint64_t *)(m->view[view].base + page * PAGE);

	for (uint64_t at = 0; at < PAGE; at += 8)
		to[at / 8] = word(what, at);
	m->what[page] = what;
	m->wrote[page] = 0;
}

static void write_word(struct machine *m, unsigned view, uint64_t page, uint64_t value)
{
	*(volatile uint64_t *)(m->view[view].base + page * PAGE) = value;
	m->wrote[page] = value;
}

static unsigned n_wrong(const struct machine *m)
{
	unsigned wrong = 0;

	for (unsigned v = 0; v < m->n_views; v++) {
		const uint64_t *words = (const void *)m->view[v].base;

		for (uint64_t i = 0; i < RAM_BYTES / 8; i++) {
			uint64_t page = i * 8 / PAGE, at = i * 8 % PAGE;
			uint64_t want =
				!at && m->wrote[page] ? m->wrote[page] : word(m->what[page], at);

			wrong += words[i] != want;
		}
	}
	return wrong;
}

static bool merges(const struct machine *m, uint64_t bytes)
{
	for (unsigned i = 0; i < 2000 && merged(m) < bytes; i++)
		usleep(10000);
	return merged(m) == bytes;
}

static void await_passes(const struct machine *m, uint64_t n)
{
	uint64_t end = ask(m).passes + n;

	for (unsigned i = 0; i < 2000 && ask(m).passes < end; i++)
		usleep(10000);
	ck_assert_uint_ge(ask(m).passes, end);
}

/* Two that have the same, at different places; a third one, of another group, that has it, too. */
START_TEST(test_shares)
{
	const unsigned n_views = 1 + (unsigned)_i, n = 500;

	make_dir();
	start_server();
	for (unsigned k = 0; k < MACHINES; k++)
		if (!make_machine(&machines[k], n_views, k < 2 ? "web" : "db"))
			return;
	for (unsigned i = 0; i < n; i++) {
		make_page(&machines[0], 0, 100 + i, 1000 + i);
		make_page(&machines[1], n_views - 1, 900 + i, 1000 + i);
		make_page(&machines[2], 0, 100 + i, 1000 + i);
	}
	for (unsigned i = 0; i < 50; i++) /* what nobody else has */
		make_page(&machines[0], 0, 1000 + i, 2000 + i);
	for (unsigned k = 0; k < 2; k++)
		ck_assert(merges(&machines[k], n * PAGE));
	ck_assert_uint_eq(home_bytes(&machines[0]), 50 * PAGE);
	ck_assert_uint_eq(home_bytes(&machines[1]), 0);
	await_passes(&machines[2], 3);
	ck_assert_uint_eq(merged(&machines[2]), 0);
	for (unsigned k = 0; k < MACHINES; k++) {
		mb_content_destroy(machines[k].content);
		machines[k].content = NULL;
		ck_assert_uint_eq(n_wrong(&machines[k]), 0);
	}
	/* A write in one is its own. */
	write_word(&machines[0], n_views - 1, 107, 4711);
	ck_assert_uint_eq(n_wrong(&machines[0]), 0);
	ck_assert_uint_eq(n_wrong(&machines[1]), 0);
	ck_assert_uint_eq(merged(&machines[0]), (n - 1) * PAGE);
	ck_assert_uint_eq(merged(&machines[1]), n * PAGE);
	for (unsigned k = 0; k < MACHINES; k++)
		end_machine(&machines[k]);
	stop_server();
}
END_TEST

/* What is written since is not counted as shared any more. */
START_TEST(test_figures)
{
	struct mb_content_stats s, now;

	make_dir();
	start_server();
	for (unsigned k = 0; k < 2; k++)
		if (!make_machine(&machines[k], 1, "web"))
			return;
	for (unsigned i = 0; i < 64; i++) {
		make_page(&machines[0], 0, 10 + i, 1 + i);
		make_page(&machines[1], 0, 10 + i, 1 + i);
	}
	make_page(&machines[0], 0, 5, 1000); /* that nobody else has, among these */
	for (unsigned k = 0; k < 2; k++)
		ck_assert(merges(&machines[k], 64 * PAGE));
	await_passes(&machines[0], 2);
	s = ask(&machines[0]);
	ck_assert_uint_eq(s.shared_bytes, 64 * PAGE);
	ck_assert_uint_eq(s.were_shared_bytes, 64 * PAGE);
	ck_assert_str_eq(s.state, "zeroes and a trust group");
	ck_assert_uint_eq(s.given_bytes + ask(&machines[1]).given_bytes, 64 * PAGE);
	/* The others are not read again, nor taken for zeroes, which home has there. Two looks a
	 * pass, and one that is under way. */
	await_passes(&machines[0], 5);
	now = ask(&machines[0]);
	ck_assert_uint_le(now.scanned_pages - s.scanned_pages, 2 * (now.passes - s.passes + 2));
	ck_assert_uint_eq(now.zero_bytes, s.zero_bytes);
	for (unsigned i = 0; i < 4; i++)
		write_word(&machines[0], 0, 10 + i, 4711 + i);
	await_passes(&machines[0], 2);
	ck_assert_uint_eq(ask(&machines[0]).shared_bytes, 60 * PAGE);
	stop_server();
	await_passes(&machines[0], 2);
	ck_assert_str_eq(ask(&machines[0]).state, "zeroes, and no commons for the trust group");
	for (unsigned k = 0; k < 2; k++) {
		ck_assert_uint_eq(n_wrong(&machines[k]), 0);
		end_machine(&machines[k]);
	}
}
END_TEST

/* What a daemon without room does not take was not given. */
START_TEST(test_refused)
{
	make_dir();
	start_server_of(PAGE);
	for (unsigned k = 0; k < 2; k++)
		if (!make_machine(&machines[k], 1, "web"))
			return;
	for (unsigned i = 0; i < 64; i++) {
		make_page(&machines[0], 0, i, 1 + i);
		make_page(&machines[1], 0, i, 1 + i);
	}
	for (unsigned k = 0; k < 2; k++)
		await_passes(&machines[k], 5);
	for (unsigned k = 0; k < 2; k++) {
		ck_assert_str_eq(ask(&machines[k]).state, "zeroes and a trust group");
		ck_assert_uint_eq(ask(&machines[k]).given_bytes, 0);
		ck_assert_uint_eq(merged(&machines[k]), 0);
		end_machine(&machines[k]);
	}
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
	uint64_t r = rnd(), page = (r >> 8) % N_PAGES, want;
	unsigned view = (unsigned)(r >> 32) % m->n_views;

	switch (r % 16) {
	case 0 ... 5: /* one of a few, or zeroes */
		make_page(m, view, page, (r >> 40) % 40);
		break;
	case 6 ... 10:
		write_word(m, view, page, r | 1);
		break;
	case 11: /* a device */
		ck_assert_int_eq(mb_replicas_hold(m->replicas, page * PAGE, PAGE), 0);
		*(uint64_t *)(m->own.base + page * PAGE) = m->wrote[page] = r | 1;
		mb_replicas_release(m->replicas, page * PAGE, PAGE);
		break;
	case 12:
		if (r >> 60 == 0)
			ck_assert_int_eq(mb_replicas_collapse(m->replicas, 0, RAM_BYTES), 0);
		break;
	default:
		want = m->wrote[page] ? m->wrote[page] : word(m->what[page], 0);
		ck_assert_uint_eq(*(volatile uint64_t *)(m->view[view].base + page * PAGE), want);
		mb_replicas_pin(m->replicas, page * PAGE, PAGE);
		ck_assert_uint_eq(*(volatile uint64_t *)(m->own.base + page * PAGE), want);
		mb_replicas_unpin(m->replicas, page * PAGE, PAGE);
	}
}

/* Each machine writes for itself, a daemon comes and goes; each has what a model says. */
START_TEST(test_at_random)
{
	const char *given = getenv("MB_TEST_SEED");
	uint64_t end_ns, next_ns, zeroes = 0, shared = 0;
	bool serves = true;

	rng = (given ? strtoull(given, NULL, 0) : mb_now_ns()) | 1;
	printf("MB_TEST_SEED=%lu\n", rng);
	fflush(stdout);
	make_dir();
	start_server();
	for (unsigned k = 0; k < MACHINES; k++)
		if (!make_machine(&machines[k], 1 + k % 2, "web"))
			return;
	end_ns = mb_now_ns() + 8000000000ull;
	next_ns = mb_now_ns() + 500000000ull;
	while (mb_now_ns() < end_ns) {
		for (unsigned i = 0; i < 40; i++)
			act(&machines[rnd() % MACHINES]);
		usleep(4000);
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
		struct mb_content_stats s = ask(&machines[k]);

		ck_assert_uint_eq(n_wrong(&machines[k]), 0);
		printf("machine %u: %lu passes, %lu KiB of zeroes, %lu KiB shared, %lu KiB given\n",
			k, s.passes, s.zero_bytes >> 10, s.were_shared_bytes >> 10,
			s.given_bytes >> 10);
		zeroes += s.zero_bytes;
		shared += s.were_shared_bytes;
		end_machine(&machines[k]);
	}
	ck_assert_uint_gt(zeroes, 0);
	ck_assert_uint_gt(shared, 0);
	if (serves)
		stop_server();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("content_group");
	TCase *all = tcase_create("all");

	tcase_set_timeout(all, 60);
	tcase_add_checked_fixture(all, NULL, remove_dir);
	tcase_add_loop_test(all, test_shares, 0, 2);
	tcase_add_test(all, test_figures);
	tcase_add_test(all, test_refused);
	tcase_add_test(all, test_at_random);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
