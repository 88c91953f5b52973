// SPDX-License-Identifier: Apache-2.0
/*
 * mirrorballd's engine and a monitor's side of it: contents, references, eviction, files that
 * change, the end of either. Who means harm: test_commons_hostile.c.
 *
 * Built with MB_COMMONS_WRONG a step is left out or too early, and that must be found.
 */
#include "commons_fixture.h"

#include <sys/resource.h>

/* ---- contents ---- */

/* Of the only base: how many have the piece that most have. */
static uint64_t most_sharers(void)
{
	json_t *all = NULL, *base;
	uint64_t sharers;

	mb_loop_call(f.server->loop, get_stat, &all);
	base = json_array_get(json_object_get(all, "bases"), 0);
	ck_assert(json_is_integer(json_object_get(base, "sharers")));
	sharers = (uint64_t)json_integer_value(json_object_get(base, "sharers"));
	json_decref(all);
	return sharers;
}

START_TEST(test_contents)
{
	static char buffer[BASE_SIZE + PAGE], tail[PAGE];
	struct mb_commons_piece piece, again;
	struct mb_commons *other;
	struct mb_commons_base *base;
	uint64_t page[PAGE / 8];

	begin();
	ck_assert_ptr_null(mb_commons_lookup(f.base, node_id(), 0, PAGE));
	ck_assert_int_eq(mb_commons_piece(f.base, node_id(), 0, &piece), -ENOENT);
	/* Two pages in the middle of a piece, and no other. */
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE + 7 * PAGE, 2 * PAGE), 0);
	ck_assert_ptr_null(mb_commons_lookup(f.base, node_id(), PIECE + 6 * PAGE, 1));
	ck_assert_ptr_null(mb_commons_lookup(f.base, node_id(), PIECE + 8 * PAGE, PAGE + 1));
	ck_assert_ptr_null(mb_commons_lookup(f.base, node_id(), 7 * PAGE, PAGE));
	ck_assert(is_page(
		mb_commons_lookup(f.base, node_id(), PIECE + 8 * PAGE, PAGE), 1, N_PAGES + 8));
	ck_assert_uint_eq(stat_of("read_pages"), 2);
	/* Of what is there nothing is read again. */
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE + 6 * PAGE, 4 * PAGE), 0);
	ck_assert_uint_eq(stat_of("read_pages"), 4);
	ck_assert_uint_eq(stat_of("hit_pages"), 2);
	/* All of it. */
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PIECE), 0);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE, PIECE), 0);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 2 * PIECE, 6 * PAGE), 0);
	ck_assert(mb_commons_read(f.base, node_id(), 0, 2 * PIECE + 6 * PAGE, buffer));
	for (uint64_t i = 0; i < 2 * N_PAGES + 5; i++)
		ck_assert(is_page(buffer + i * PAGE, 1, i));
	make_page(1, 2 * N_PAGES + 5, page);
	ck_assert_mem_eq(buffer + 2 * PIECE + 5 * PAGE, page, 100);
	ck_assert_mem_eq(buffer + BASE_SIZE, tail, PAGE - 100);
	ck_assert(!mb_commons_read(f.base, node_id(), 0, 2 * PIECE + 6 * PAGE + 1, buffer));
	ck_assert_int_eq(mb_commons_piece(f.base, node_id(), 2 * PIECE, &piece), 0);
	ck_assert_uint_eq(piece.len, 6 * PAGE);
	/* Another machine has the same file, and nothing is read. */
	other = new_client();
	ck_assert_int_eq(open_base(other, f.base_fd, &base), 0);
	ck_assert_int_eq(want(other, base, node_id(), 2 * PIECE, 6 * PAGE), 0);
	ck_assert_int_eq(mb_commons_piece(base, node_id(), 2 * PIECE, &again), 0);
	{
		struct stat one, two;

		ck_assert_int_eq(fstat(piece.fd, &one), 0);
		ck_assert_int_eq(fstat(again.fd, &two), 0);
		ck_assert_uint_eq(one.st_ino, two.st_ino);
	}
	ck_assert_uint_eq(stat_of("read_pages"), 2 * N_PAGES + 6);
	ck_assert_uint_eq(stat_of("saved_bytes"), 6 * PAGE);
	ck_assert_uint_eq(stat_of("references"), 4);
	ck_assert_uint_eq(most_sharers(), 2);
	/* What it asks for without reading. */
	ck_assert_int_eq(mb_commons_have(base, node_id(), 0, PAGE, NULL), 0);
	mb_commons_destroy(other);
	ck_assert(becomes("references", 3));
	ck_assert_uint_eq(most_sharers(), 1);
}
END_TEST

START_TEST(test_wrong_wants)
{
	struct mb_commons_base *second;

	begin();
	ck_assert_int_eq(mb_commons_want(f.base, node_id(), 0, 0, NULL), -EINVAL);
	ck_assert_int_eq(mb_commons_want(f.base, node_id(), 1, PAGE, NULL), -EINVAL);
	ck_assert_int_eq(mb_commons_want(f.base, node_id(), 0, 100, NULL), -EINVAL);
	ck_assert_int_eq(mb_commons_want(f.base, node_id(), PAGE, PIECE, NULL), -EINVAL);
	ck_assert_int_eq(mb_commons_want(f.base, node_id(), 2 * PIECE, 7 * PAGE, NULL), -EINVAL);
	ck_assert_int_eq(
		mb_commons_want(f.base, node_id(), UINT64_MAX - PAGE + 1, PAGE, NULL), -EINVAL);
	ck_assert_int_eq(want(f.commons, f.base, 4711, 0, PAGE), -ENODEV);
	/* Only what can be read. */
	{
		static const struct {
			const char *path;
			int flags, rc;
		} bad[] = {{"/dev/null", O_RDONLY, -EINVAL}, {"/proc", O_RDONLY, -EINVAL},
			{NULL, O_WRONLY, -EBADF}, {NULL, O_PATH, -EBADF}};

		for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
			int fd = open(
				bad[i].path ? bad[i].path : f.base_path, bad[i].flags | O_CLOEXEC);

			ck_assert_int_ge(fd, 0);
			ck_assert_int_eq(open_base(f.commons, fd, &second), bad[i].rc);
			ck_assert_int_eq(
				mb_commons_want(second, node_id(), 0, PAGE, NULL), bad[i].rc);
			mb_commons_close_base(second);
			close(fd);
		}
	}
	/* Released and wanted again; closed while it is under way. */
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PAGE), 0);
	mb_commons_release(f.base, node_id(), 0);
	ck_assert_ptr_null(mb_commons_lookup(f.base, node_id(), 0, PAGE));
	ck_assert(becomes("references", 0));
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PAGE), 0);
	ck_assert_uint_eq(stat_of("read_pages"), 1);
	ck_assert_int_eq(mb_commons_want(f.base, node_id(), PIECE, PIECE, NULL), 0);
	mb_commons_close_base(f.base);
	ck_assert(becomes("references", 0));
	for (unsigned i = 0; i < 20; i++)
		poll_once(f.commons, 5);
	ck_assert_int_eq(open_base(f.commons, f.base_fd, &f.base), 0);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE, PIECE), 0);
}
END_TEST

/* As many as there may be under way, and more. */
START_TEST(test_many_wants)
{
	unsigned n = 0, n_over;
	int rc;

	begin();
	n_over = f.n_done;
	for (; n < 1000 &&
		!(rc = mb_commons_want(f.base, node_id(), (n % 2048) * PAGE, PAGE, NULL));
		n++)
		;
	ck_assert_int_eq(rc, -EAGAIN);
	ck_assert_uint_eq(n, 64);
	while (f.n_done < n_over + n)
		poll_once(f.commons, 50);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PIECE), 0);
	ck_assert(is_page(mb_commons_lookup(f.base, node_id(), 63 * PAGE, PAGE), 1, 63));
}
END_TEST

/* A page that is told is there: another thread looks as fast as it can, while it is read. */
static bool stop_looking, torn;

static void *look(void *arg)
{
	static char buffer[PAGE];

	while (!__atomic_load_n(&stop_looking, __ATOMIC_RELAXED))
		for (uint64_t i = 0; i < 2 * N_PAGES; i += 61)
			if (mb_commons_read(f.base, node_id(), i * PAGE, PAGE, buffer) &&
				!is_page(buffer, 1, i))
				__atomic_store_n(&torn, true, __ATOMIC_RELAXED);
	return NULL;
}

START_TEST(test_order)
{
	pthread_t thread;

	begin();
	stop_looking = false;
	for (unsigned round = 0; round < 30 && !torn; round++) {
		ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE - PAGE, PAGE), 0);
		__atomic_store_n(&stop_looking, false, __ATOMIC_RELAXED);
		ck_assert_int_eq(pthread_create(&thread, NULL, look, NULL), 0);
		ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PIECE), 0);
		__atomic_store_n(&stop_looking, true, __ATOMIC_RELAXED);
		pthread_join(thread, NULL);
		/* Anew: nobody has it, and it goes. */
		mb_commons_close_base(f.base);
		ck_assert(becomes("references", 0));
		futimens(f.base_fd, NULL);
		ck_assert_int_eq(open_base(f.commons, f.base_fd, &f.base), 0);
	}
	if (torn || MB_COMMONS_WRONG == WRONG_EARLY) {
		ck_assert(torn);
		found_wrong("a page was told before it was there");
	}
}
END_TEST

/* ---- a base that changes ---- */

static bool stop_changing;

#define TORN UINT32_MAX /* the version of the first page while others are written */

/*
 * A new version of the whole, now and then shorter for a moment. The first page says that it is
 * under way: whoever stops in the middle leaves a file that is of two versions and does not change.
 */
static void *change(void *arg)
{
	uint64_t page[PAGE / 8];
	unsigned seed = 7;

	for (uint64_t version = 2; !__atomic_load_n(&stop_changing, __ATOMIC_RELAXED); version++) {
		make_page(TORN, 0, page);
		if (pwrite(f.base_fd, page, PAGE, 0) != PAGE)
			abort();
		if (version % 4 == 0 && ftruncate(f.base_fd, (off_t)(PAGE + rand_r(&seed) % PIECE)))
			abort();
		for (uint64_t i = PIECE / PAGE; i--;) {
			make_page(version, i, page);
			if (pwrite(f.base_fd, page, PAGE, (off_t)(i * PAGE)) != PAGE)
				abort();
		}
		usleep((useconds_t)(rand_r(&seed) % 60000));
	}
	return NULL;
}

START_TEST(test_changes)
{
	uint64_t end_ns = mb_now_ns() + (MB_COMMONS_WRONG ? 20u : 3u) * 1000000000ull;
	unsigned n_good = 0, n_stale = 0;
	pthread_t thread;

	start_server();
	f.commons = new_client();
	ck_assert_int_eq(pthread_create(&thread, NULL, change, NULL), 0);
	while (mb_now_ns() < end_ns) {
		const char *data = NULL;
		uint64_t version = 0;
		int rc = open_base(f.commons, f.base_fd, &f.base);

		if (!rc)
			rc = want(f.commons, f.base, node_id(), 0, PIECE);
		if (!rc)
			data = mb_commons_lookup(f.base, node_id(), 0, PIECE);
		if (data)
			for (version = 1; version < 4000 && !is_page(data, version, 0); version++)
				;
		for (uint64_t i = 0; data && version < 4000 && i < N_PAGES; i++)
			if (!is_page(data + i * PAGE, version, i)) {
				__atomic_store_n(&stop_changing, true, __ATOMIC_RELAXED);
				pthread_join(thread, NULL);
				found_wrong("pages of two versions");
			}
		n_good += data && version < 4000;
		n_stale += rc == -ESTALE;
		mb_commons_close_base(f.base);
	}
	__atomic_store_n(&stop_changing, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	printf("%u whole, %u stale\n", n_good, n_stale);
	ck_assert(MB_COMMONS_WRONG != WRONG_UNCHECKED);
	ck_assert_uint_gt(n_good + n_stale, 10);
}
END_TEST

/* Everybody sees it: who has it mapped, who wants more, who comes anew. */
START_TEST(test_stale)
{
	struct mb_commons_piece piece;
	struct mb_commons_base *second;
	char *mapped;

	begin();
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, 4 * PAGE), 0);
	ck_assert_int_eq(mb_commons_piece(f.base, node_id(), 0, &piece), 0);
	mapped = mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE, piece.fd, 0);
	ck_assert(mapped != MAP_FAILED);
	write_base(f.base_fd, 2, PIECE);
	/* The daemon has not looked yet, and when it does nothing is read. */
	ck_assert_ptr_nonnull(mb_commons_lookup(f.base, node_id(), 0, PAGE));
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 8 * PAGE, PAGE), -ESTALE);
	ck_assert_ptr_null(mb_commons_lookup(f.base, node_id(), 0, PAGE));
	ck_assert_int_eq(mb_commons_want(f.base, node_id(), 0, PAGE, NULL), -ESTALE);
	ck_assert_int_eq(mb_commons_piece(f.base, node_id(), 0, &piece), 0);
	ck_assert(piece.stale);
	for (unsigned i = 0; i < 4; i++)
		ck_assert(is_page(mapped + i * PAGE, 1, i));
	ck_assert_int_eq(open_base(f.commons, f.base_fd, &second), 0);
	ck_assert_int_eq(want(f.commons, second, node_id(), 0, 4 * PAGE), 0);
	ck_assert(is_page(mb_commons_lookup(second, node_id(), 3 * PAGE, PAGE), 2, 3));
	ck_assert(is_page(mapped + 3 * PAGE, 1, 3));
	mb_commons_close_base(f.base);
	ck_assert(becomes("pieces", 1));
	/* Its end is cut off. */
	ck_assert_int_eq(ftruncate(f.base_fd, PIECE / 2), 0);
	ck_assert_int_eq(want(f.commons, second, node_id(), PIECE, PAGE), -ESTALE);
	munmap(mapped, 4 * PAGE);
}
END_TEST

/* Memory is held once: what was read is not in the page cache as well. */
START_TEST(test_page_cache)
{
	unsigned char in_core[N_PAGES];
	unsigned n_before = 0, n_after = 0;
	void *map = mmap(NULL, PIECE, PROT_READ, MAP_SHARED, f.base_fd, 0);

	begin();
	ck_assert_int_eq(fsync(f.base_fd), 0);
	ck_assert(map != MAP_FAILED);
	ck_assert_int_eq(mincore(map, PIECE, in_core), 0);
	for (unsigned i = 0; i < N_PAGES; i++)
		n_before += in_core[i] & 1;
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PIECE), 0);
	ck_assert_int_eq(mincore(map, PIECE, in_core), 0);
	for (unsigned i = 0; i < N_PAGES; i++)
		n_after += in_core[i] & 1;
	munmap(map, PIECE);
	printf("pages of the image in the page cache: %u before, %u after\n", n_before, n_after);
	ck_assert_uint_gt(n_before, N_PAGES / 2);
	/* What is read ahead beyond the range may stay. */
	ck_assert_uint_lt(n_after, N_PAGES / 8);
}
END_TEST

/* A second node: what the first has is copied, and not read. */
START_TEST(test_nodes)
{
	struct mb_topology *topo = &f.server->topology;
	unsigned other = topo->node[topo->n_nodes - 1].id + 1;
	struct mb_commons_piece one, two;

	/* One that there is not: the kernel refuses to prefer it, and that is no reason to fail. */
	topo->node[topo->n_nodes] = topo->node[0];
	topo->node[topo->n_nodes++].id = other;
	begin();
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, 100 * PAGE), 0);
	ck_assert_int_eq(want(f.commons, f.base, other, 50 * PAGE, 100 * PAGE), 0);
	ck_assert_uint_eq(stat_of("read_pages"), 150);
	ck_assert_uint_eq(stat_of("copied_pages"), 50);
	for (unsigned i = 50; i < 150; i++)
		ck_assert(is_page(mb_commons_lookup(f.base, other, i * PAGE, PAGE), 1, i));
	ck_assert_int_eq(mb_commons_piece(f.base, node_id(), 0, &one), 0);
	ck_assert_int_eq(mb_commons_piece(f.base, other, 0, &two), 0);
	ck_assert_uint_ne(one.generation, two.generation);
	ck_assert_ptr_null(mb_commons_lookup(f.base, other, 0, PAGE));
}
END_TEST

/* ---- room ---- */

START_TEST(test_eviction)
{
	int rc;

	f.server->config.max_bytes = 2 * PIECE + 256 * PAGE;
	begin();
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PIECE), 0);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE, PIECE), 0);
	/* What is referenced stays. */
	f.server->config.max_bytes = 2 * PIECE + 2 * PAGE;
	rc = want(f.commons, f.base, node_id(), 2 * PIECE, 6 * PAGE);
	ck_assert_int_eq(rc, -ENOSPC);
	ck_assert_uint_eq(stat_of("evicted_bytes"), 0);
	/* What is not goes. */
	mb_commons_release(f.base, node_id(), PIECE);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 2 * PIECE, 6 * PAGE), 0);
	ck_assert_uint_ge(stat_of("evicted_bytes"), PIECE);
	ck_assert(is_page(mb_commons_lookup(f.base, node_id(), 5, 1)
				  ? mb_commons_lookup(f.base, node_id(), 0, PAGE)
				  : NULL,
		1, 0));
	ck_assert(is_page(mb_commons_lookup(f.base, node_id(), 2 * PIECE, PAGE), 1, 2 * N_PAGES));
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE, PIECE), -ENOSPC);
}
END_TEST

static void put(const char *dir, const char *name, const char *text)
{
	char path[160];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "w");
	ck_assert_ptr_nonnull(file);
	fputs(text, file);
	fclose(file);
}

/* A host that runs short. */
START_TEST(test_pressure)
{
	char proc[96], pressure[112];

	snprintf(proc, sizeof(proc), "%s/proc", f.dir);
	snprintf(pressure, sizeof(pressure), "%s/pressure", proc);
	ck_assert_int_eq(mkdir(proc, 0700) || mkdir(pressure, 0700), 0);
	put(proc, "meminfo", "MemTotal: 1600000 kB\nMemFree: 1 kB\nMemAvailable: 900000 kB\n");
	put(pressure, "memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
	ck_assert_uint_eq(mb_commons_total_memory(f.dir), 1600000ull << 10);
	ck_assert_uint_eq(mb_commons_shortage(f.dir, 80 << 20), 0);
	put(pressure, "memory", "some avg10=12.50 avg60=0.00 avg300=0.00 total=0\n");
	ck_assert_uint_eq(mb_commons_shortage(f.dir, 80 << 20), 10 << 20);
	put(pressure, "memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
	f.server->config.root = f.dir;
	begin();
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PIECE), 0);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE, 10 * PAGE), 0);
	mb_commons_release(f.base, node_id(), 0);
	ck_assert(becomes("references", 1));
	put(proc, "meminfo", "MemTotal: 1600000 kB\nMemFree: 1 kB\nMemAvailable: 90000 kB\n");
	ck_assert_uint_eq(mb_commons_shortage(f.dir, 0), 10000 << 10);
	ck_assert(becomes("pieces", 1));
	ck_assert_uint_ge(stat_of("evicted_bytes"), PIECE);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE + 20 * PAGE, PAGE), -ENOMEM);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE, PAGE), 0);
	put(proc, "meminfo", "MemTotal: 1600000 kB\nMemFree: 1 kB\nMemAvailable: 900000 kB\n");
	for (unsigned i = 0; i < 40 && want(f.commons, f.base, node_id(), PIECE + 20 * PAGE, PAGE);
		i++)
		usleep(100000);
	ck_assert_int_eq(f.done.status, 0);
}
END_TEST

/* No descriptors: it says so, goes on, and what nobody uses gives way. */
START_TEST(test_descriptors)
{
	struct rlimit limit;
	int fill[256], n = 0, used, raw;

	begin();
	raw = raw_client();
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PAGE), 0);
	used = dup(0);
	close(used);
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = (rlim_t)used + 8;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	while (n < 256 && (fill[n] = dup(0)) >= 0)
		n++;
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE, PAGE), -EMFILE);
	/* What is there without another descriptor is given. */
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PAGE, PAGE), 0);
	ck_assert_int_lt(raw_connect(), 0);
	{
		struct mb_commons_request msg = raw_request(MB_COMMONS_OPEN);
		struct mb_commons_reply reply;
		int given;

		ck_assert_int_eq(raw_send(raw, &msg, sizeof(msg), &f.base_fd, 1), 0);
		ck_assert_int_eq(raw_receive(raw, &reply, &given), 0);
		ck_assert_int_eq(reply.status, -EMFILE);
	}
	while (n)
		close(fill[--n]);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), PIECE, PAGE), 0);
	ck_assert(is_page(mb_commons_lookup(f.base, node_id(), PIECE, PAGE), 1, N_PAGES));
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}
END_TEST

/* ---- ends ---- */

/* kill -9 of a machine frees what it had. */
START_TEST(test_client_dies)
{
	char byte;
	int go[2];
	pid_t pid;

	begin();
	ck_assert_int_eq(pipe(go), 0);
	pid = fork();
	if (!pid) {
		struct mb_commons *own = new_client();
		struct mb_commons_base *base;

		if (open_base(own, f.base_fd, &base) || want(own, base, node_id(), 0, PIECE) ||
			want(own, base, node_id(), PIECE, PAGE) ||
			mb_commons_want(base, node_id(), PIECE, PIECE, NULL))
			_exit(1);
		if (write(go[1], "x", 1) != 1)
			_exit(1);
		pause();
	}
	close(go[1]);
	ck_assert_int_eq(read(go[0], &byte, 1), 1);
	ck_assert(becomes("references", 2));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	if (!becomes("references", 0) || !becomes("clients", 1))
		found_wrong("a client that is gone still has pieces");
	ck_assert(MB_COMMONS_WRONG != WRONG_KEEP_REFS);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PIECE), 0);
}
END_TEST

/* A daemon of its own process, at the fixture's path. */
static pid_t fork_server(void)
{
	struct mb_commons_listen listening;
	struct mb_error err;
	pid_t pid;

	if (mb_commons_listen(f.path, false, &listening, &err))
		return 0;
	pid = fork();
	if (!pid) {
		f.config.listen_fd = listening.fd;
		if (mb_commons_server_create(&f.config, &f.server, NULL))
			_exit(1);
		mb_commons_server_run(f.server);
		_exit(0);
	}
	close(listening.fd);
	close(listening.lock_fd);
	return pid;
}

/* What is mapped stays what it was, and a new daemon takes over. */
START_TEST(test_daemon_dies)
{
	unsigned seed = (unsigned)mb_now_ns(), n_wants = 0, n_generations = 0, node = node_id();
	uint64_t end_ns = mb_now_ns() + 4000000000ull, kill_ns = 0, generation = 0;
	char *mapped[2] = {NULL, NULL};
	pid_t pid;

	printf("seed %u\n", seed);
	/* The fixture's, which has the place, goes. */
	ck_assert(mb_commons_server_destroy(f.server));
	f.server = NULL;
	close(f.lock_fd);
	pid = fork_server();
	ck_assert_int_gt(pid, 0);
	f.commons = new_client();
	ck_assert_int_eq(open_base(f.commons, f.base_fd, &f.base), 0);
	while (mb_now_ns() < end_ns) {
		uint64_t i = (uint64_t)rand_r(&seed) % 2, at;
		struct mb_commons_piece piece;
		const void *data;

		if (mb_now_ns() > kill_ns) {
			if (kill_ns) {
				kill(pid, SIGKILL);
				waitpid(pid, NULL, 0);
				pid = fork_server();
				ck_assert_int_gt(pid, 0);
			}
			kill_ns = mb_now_ns() + (uint64_t)(rand_r(&seed) % 400) * 1000000;
		}
		at = i * PIECE + (uint64_t)rand_r(&seed) % (N_PAGES - 64) * PAGE;
		n_wants += !mb_commons_want(f.base, node, at, 64 * PAGE, NULL);
		poll_once(f.commons, 1);
		data = mb_commons_lookup(f.base, node, at, PAGE);
		ck_assert(!data || is_page(data, 1, at / PAGE));
		if (mb_commons_piece(f.base, node, at, &piece))
			continue;
		if (!mapped[i]) {
			mapped[i] = mmap(NULL, PIECE, PROT_READ, MAP_PRIVATE, piece.fd,
				(off_t)piece.fd_offset);
			ck_assert(mapped[i] != MAP_FAILED);
		}
		n_generations += piece.generation > generation;
		generation = piece.generation > generation ? piece.generation : generation;
		/* Of whatever daemon: the page, or a hole of it. */
		ck_assert(is_page(mapped[i] + at % PIECE, 1, at / PAGE) ||
			  !*(uint64_t *)(mapped[i] + at % PIECE));
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	printf("%u wants, %u done, %u files\n", n_wants, f.n_done, n_generations);
	for (unsigned i = 0; i < 100 && mb_commons_status(f.commons) != MB_COMMONS_ABSENT; i++)
		poll_once(f.commons, 20);
	ck_assert_uint_eq(f.n_done, n_wants);
	ck_assert_int_eq(mb_commons_status(f.commons), MB_COMMONS_ABSENT);
	ck_assert_int_eq(mb_commons_want(f.base, node, 0, PAGE, NULL), -ENOTCONN);
	ck_assert_uint_gt(n_generations, 4);
	/* With nobody there, what was there before is. */
	ck_assert(mapped[0] && mapped[1]);
	create_server();
	start_server();
	for (unsigned i = 0; i < 400 && mb_commons_base_status(f.base); i++)
		poll_once(f.commons, 50);
	ck_assert_int_eq(want(f.commons, f.base, node, 0, PIECE), 0);
	ck_assert(is_page(mb_commons_lookup(f.base, node, 0, PAGE), 1, 0));
}
END_TEST

/* The base changes while there is no daemon: a new one must not mend what is of before. */
START_TEST(test_changed_meanwhile)
{
	begin();
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PAGE), 0);
	stop_server();
	write_base(f.base_fd, 2, PAGE);
	usleep(25000);
	create_server();
	start_server();
	for (unsigned i = 0; i < 400 && mb_commons_base_status(f.base) != -ESTALE; i++)
		poll_once(f.commons, 50);
	ck_assert_int_eq(mb_commons_base_status(f.base), -ESTALE);
	ck_assert_ptr_null(mb_commons_lookup(f.base, node_id(), 0, PAGE));
}
END_TEST

START_TEST(test_idle)
{
	uint64_t begin_ns = mb_now_ns();

	ck_assert(mb_commons_server_destroy(f.server));
	close(f.lock_fd);
	f.config.idle_ms = 300;
	create_server();
	start_server();
	f.commons = new_client();
	/* One that has nothing open, longer than that. */
	for (unsigned i = 0; i < 20; i++)
		poll_once(f.commons, 5);
	usleep(700000);
	if (_i)
		goto leave;
	ck_assert_int_eq(open_base(f.commons, f.base_fd, &f.base), 0);
	usleep(700000);
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, PAGE), 0);
leave:
	mb_commons_destroy(f.commons);
	f.commons = NULL;
	pthread_join(f.thread, NULL);
	ck_assert_uint_lt(mb_now_ns() - begin_ns, 8000000000ull);
	ck_assert(mb_commons_server_destroy(f.server));
	f.server = NULL;
}
END_TEST

/* ---- started by machines ---- */

#ifdef MIRRORBALLD
static struct mb_commons *starter(const char *path)
{
	struct mb_commons_config config = {
		.path = path, .start = true, .program = MIRRORBALLD, .done = on_done, .ctx = &f};
	struct mb_commons *commons;

	ck_assert_int_eq(mb_commons_create(&config, &commons, NULL), 0);
	return commons;
}

static long pid_at(const char *path)
{
	struct mb_error err;
	json_error_t where;
	json_t *all;
	char *text;
	long pid;

	if (mb_commons_stat(path, 10000, &text, &err))
		return -1;
	all = json_loads(text, 0, &where);
	pid = (long)json_integer_value(json_object_get(all, "pid"));
	json_decref(all);
	free(text);
	return pid;
}

static void wait_ready(struct mb_commons *commons)
{
	for (unsigned i = 0; i < 400 && mb_commons_status(commons) != MB_COMMONS_READY; i++)
		poll_once(commons, 50);
	ck_assert_int_eq(mb_commons_status(commons), MB_COMMONS_READY);
}

/* Several at once, on top of a socket that nobody answers: one daemon. It does not end with whoever
 * started it, nor with his Ctrl-C. */
START_TEST(test_start)
{
	enum { N = 6 };
	char path[96];
	long pid;
	int go[2], status;
	pid_t child[N];
	char byte;

	snprintf(path, sizeof(path), "%s/on/commons.sock", f.dir);
	for (unsigned round = 0; round < 5; round++) {
		ck_assert_int_eq(pipe(go), 0);
		for (unsigned i = 0; i < N; i++) {
			child[i] = fork();
			if (child[i])
				continue;
			setpgid(0, 0);
			signal(SIGINT, SIG_DFL);
			close(go[1]);
			if (read(go[0], &byte, 1) < 0)
				_exit(9);
			f.commons = starter(path);
			wait_ready(f.commons);
			if (open_base(f.commons, f.base_fd, &f.base) ||
				want(f.commons, f.base, 0, 0, PIECE) ||
				!is_page(mb_commons_lookup(f.base, 0, 0, PAGE), 1, 0))
				_exit(8);
			kill(0, SIGINT);
			_exit(0);
		}
		close(go[0]);
		close(go[1]);
		for (unsigned i = 0; i < N; i++) {
			ck_assert_int_eq(waitpid(child[i], &status, 0), child[i]);
			ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT,
				"client: status %#x", status);
		}
		pid = pid_at(path);
		ck_assert_int_gt(pid, 1);
		ck_assert_int_eq(getsid((pid_t)pid), pid);
		ck_assert_int_eq(pid_at(path), pid);
		/* And no other that nobody sees. */
		ck_assert_int_eq(kill((pid_t)pid, SIGKILL), 0);
		for (unsigned i = 0; i < 100 && pid_at(path) > 0; i++)
			usleep(20000);
		ck_assert_int_eq(pid_at(path), -1);
		ck_assert_int_eq(access(path, F_OK), 0);
	}
}
END_TEST

/* Without waiting, and without a program to start: it is just not there. */
START_TEST(test_no_program)
{
	char path[96];
	struct mb_commons_config config = {.path = path,
		.start = true,
		.program = "/nowhere/mirrorballd",
		.done = on_done,
		.ctx = &f};
	uint64_t begin_ns = mb_now_ns();

	snprintf(path, sizeof(path), "%s/off/commons.sock", f.dir);
	ck_assert_int_eq(mb_commons_create(&config, &f.commons, NULL), 0);
	for (unsigned i = 0; i < 10; i++)
		poll_once(f.commons, 20);
	ck_assert_uint_lt(mb_now_ns() - begin_ns, 3000000000ull);
	ck_assert_int_eq(mb_commons_status(f.commons), MB_COMMONS_ABSENT);
	ck_assert_int_eq(mb_commons_open_base(f.commons, f.base_fd, &f.base), 0);
	ck_assert_int_eq(mb_commons_want(f.base, 0, 0, PAGE, NULL), -ENOTCONN);
	ck_assert_int_ne(access(path, F_OK), 0);
}
END_TEST
#endif

int main(void)
{
	Suite *s = suite_create("commons");
	TCase *all = tcase_create("all");

	tcase_add_checked_fixture(all, setup, teardown);
	tcase_set_timeout(all, 100);
	if (MB_COMMONS_WRONG == WRONG_EARLY) {
		tcase_add_test(all, test_order);
	} else if (MB_COMMONS_WRONG == WRONG_UNCHECKED) {
		tcase_add_test(all, test_changes);
	} else if (MB_COMMONS_WRONG == WRONG_KEEP_REFS) {
		tcase_add_test(all, test_client_dies);
	} else {
		tcase_add_test(all, test_contents);
		tcase_add_test(all, test_wrong_wants);
		tcase_add_test(all, test_many_wants);
		tcase_add_test(all, test_order);
		tcase_add_test(all, test_changes);
		tcase_add_test(all, test_stale);
		tcase_add_test(all, test_page_cache);
		tcase_add_test(all, test_nodes);
		tcase_add_test(all, test_eviction);
		tcase_add_test(all, test_pressure);
		tcase_add_test(all, test_descriptors);
		tcase_add_test(all, test_client_dies);
		tcase_add_test(all, test_daemon_dies);
		tcase_add_test(all, test_changed_meanwhile);
		tcase_add_loop_test(all, test_idle, 0, 2);
#ifdef MIRRORBALLD
		tcase_add_test(all, test_start);
		tcase_add_test(all, test_no_program);
#endif
	}
	suite_add_tcase(s, all);
	return run_suite(s);
}
