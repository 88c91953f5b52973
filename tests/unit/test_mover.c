// SPDX-License-Identifier: Apache-2.0
/*
 * The mover on real mappings of a real file in memory. What moves needs two nodes:
 * tests/lab/test-mover.sh runs this there. Threads of the test are the vCPUs.
 */
#include "../../numa/mover_internal.h"
#include "mappings.h"
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <mirrorball/mover.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/topology.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define BYTES (8ull << 20)
#define VIEWS 2u
#define NONE  (-1)

static int fd, nodes[2] = {NONE, NONE};
static struct mb_ram_mapping view[VIEWS], own;
static struct mb_mover *mover;

static bool two_nodes(void)
{
	long long free_bytes;
	unsigned n = 0;

	for (int i = 0; i <= numa_max_node() && n < 2; i++)
		if (numa_node_size64(i, &free_bytes) > 0 && free_bytes > (long long)(4 * BYTES))
			nodes[n++] = i;
	if (n == 2)
		return true;
	skip("two NUMA nodes");
	return false;
}

static bool pause_vcpus(void *ctx, uint64_t timeout_ns);
static void resume_vcpus(void *ctx);

static uint64_t word(uint64_t at, unsigned i)
{
	return (at + i) * 0x9e3779b97f4a7c15ull;
}

/* Memory in [0, in_use), on the first node. */
static void make(bool in_huge_pages, bool may_move_mapped, uint64_t in_use)
{
	static bool small[BYTES / MB_HEAT_BLOCK_BYTES];
	struct mb_mover_config config = {
		.ram_bytes = BYTES,
		.small = small,
		.n_views = VIEWS,
		.may_move_mapped = may_move_mapped,
		.pause = pause_vcpus,
		.resume = resume_vcpus};

	fd = config.ram_fd = mb_ram_file_open(BYTES);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &own), 0);
	config.own_base = own.base;
	for (unsigned v = 0; v < VIEWS; v++) {
		ck_assert_int_eq(mb_ram_file_map(fd, BYTES, &view[v]), 0);
		config.view_base[v] = view[v].base;
		if (!in_huge_pages)
			madvise(view[v].base, BYTES, MADV_NOHUGEPAGE);
	}
	if (nodes[0] != NONE)
		numa_run_on_node(nodes[0]);
	for (uint64_t at = 0; at < in_use; at += PAGE)
		for (unsigned i = 0; i < PAGE / 8; i++)
			((uint64_t *)(view[0].base + at))[i] = word(at, i);
	for (uint64_t at = 0; at < in_use; at += PAGE)
		*(volatile char *)(view[1].base + at);
	numa_run_on_node(-1);
	ck_assert_int_eq(mb_mover_create(&config, &mover), 0);
}

/* Asserted once: Check writes of each assertion into a file. */
static void check(uint64_t in_use, unsigned but)
{
	unsigned wrong = 0;

	for (uint64_t at = 0; at < in_use; at += PAGE) {
		const uint64_t *page = (const void *)(view[at / PAGE % VIEWS].base + at);

		for (unsigned i = but; i < PAGE / 8; i++)
			wrong += page[i] != word(at, i);
	}
	ck_assert_uint_eq(wrong, 0);
}

static void finish(void)
{
	mb_mover_destroy(mover);
	for (unsigned v = 0; v < VIEWS; v++)
		mb_ram_file_unmap(&view[v], BYTES);
	mb_ram_file_unmap(&own, BYTES);
	close(fd);
}

/* Pages of [from, to) that are in memory on this node. */
static unsigned on_node(uint64_t from, uint64_t to, int node)
{
	unsigned n = 0;

	for (uint64_t at = from; at < to; at += PAGE) {
		void *page = view[0].base + at;
		int status = -1;

		*(volatile char *)page;
		n += !move_pages(0, 1, &page, NULL, &status, 0) && status == node;
	}
	return n;
}

/* _i: in huge pages; 2: as without privilege. */
START_TEST(test_moves)
{
	struct mb_move move = {.offset = 2 * PAGE, .len_bytes = BYTES - 4 * PAGE};
	struct mb_moved moved = {0};
	bool huge = _i & 1, privileged = !(_i & 2);
	uint64_t in_use = BYTES / 2, before;

	if (!two_nodes())
		return;
	make(huge, privileged, in_use);
	move.node = (unsigned)nodes[1];
	if (huge)
		move = (struct mb_move){
			.len_bytes = BYTES, .node = (unsigned)nodes[1], .huge = true};
	before = pmd_mapped();
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.there_bytes + moved.moved_bytes + moved.absent_bytes +
				  moved.busy_bytes + moved.full_bytes,
		move.len_bytes);
	ck_assert_uint_eq(moved.busy_bytes + moved.full_bytes + moved.there_bytes, 0);
	ck_assert_uint_eq(moved.moved_bytes, in_use - move.offset);
	ck_assert_uint_eq(on_node(move.offset, in_use, nodes[1]), (in_use - move.offset) / PAGE);
	ck_assert_uint_eq(on_node(0, move.offset, nodes[0]), move.offset / PAGE);
	printf("%s%s: %.1f us a page, longest batch %.1f ms\n", huge ? "huge" : "small",
		privileged ? "" : ", unprivileged",
		(double)moved.ns / 1000 / ((double)moved.moved_bytes / PAGE),
		(double)moved.longest_ns / 1e6);
	check(in_use, 0);
	if (huge && before)
		ck_assert_uint_ge(pmd_mapped(),
			before / 2); /* without privilege view 1 has to touch it first */
	/* Again: nothing to do. And nothing was made where there was nothing. */
	moved = (struct mb_moved){0};
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.there_bytes, in_use - move.offset);
	ck_assert_uint_eq(moved.moved_bytes, 0);
	finish();
}
END_TEST

/* ---- beside vCPUs ---- */

struct vcpu {
	pthread_t thread;
	unsigned view;
	uint64_t from, to;
	bool stop; /* atomic */
	uint64_t n;
	pthread_mutex_t inside; /* held in a pass */
};

static unsigned n_pauses; /* atomic */
static unsigned n_tries;
static bool lets_pause = true;
static struct vcpu *running;

static bool pause_vcpus(void *ctx, uint64_t timeout_ns)
{
	(void)ctx;
	ck_assert_uint_le(timeout_ns, 100000000);
	n_tries++;
	if (!lets_pause)
		return false;
	__atomic_add_fetch(&n_pauses, 1, __ATOMIC_SEQ_CST);
	for (unsigned v = 0; running && v < VIEWS; v++)
		pthread_mutex_lock(&running[v].inside);
	return true;
}

static void resume_vcpus(void *ctx)
{
	(void)ctx;
	__atomic_sub_fetch(&n_pauses, 1, __ATOMIC_SEQ_CST);
	for (unsigned v = 0; running && v < VIEWS; v++)
		pthread_mutex_unlock(&running[v].inside);
}

static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;

	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
		if (__atomic_load_n(&n_pauses, __ATOMIC_SEQ_CST))
			continue;
		pthread_mutex_lock(&c->inside);
		for (uint64_t at = c->from; at < c->to; at += PAGE)
			__atomic_add_fetch((uint64_t *)(view[c->view].base + at) + c->view, 1,
				__ATOMIC_RELAXED);
		c->n++;
		pthread_mutex_unlock(&c->inside);
	}
	return NULL;
}

static void start_vcpus(struct vcpu *c)
{
	running = c;
	for (unsigned v = 0; v < VIEWS; v++)
		pthread_mutex_init(&c[v].inside, NULL);
	for (unsigned v = 0; v < VIEWS; v++)
		ck_assert_int_eq(pthread_create(&c[v].thread, NULL, vcpu_main, &c[v]), 0);
}

/* No write is lost. */
static void stop_vcpus(struct vcpu *c)
{
	for (unsigned v = 0; v < VIEWS; v++) {
		__atomic_store_n(&c[v].stop, true, __ATOMIC_RELAXED);
		pthread_join(c[v].thread, NULL);
	}
	for (unsigned v = 0; v < VIEWS; v++) {
		unsigned lost = 0;

		for (uint64_t at = 0; at < BYTES; at += PAGE)
			lost += ((uint64_t *)(view[!v].base + at))[v] !=
				word(at, v) + (at >= c[v].from && at < c[v].to ? c[v].n : 0);
		ck_assert_uint_eq(lost, 0);
	}
	check(BYTES, VIEWS);
}

static void there_and_back(unsigned times, bool huge, struct mb_moved *moved)
{
	*moved = (struct mb_moved){0};
	for (unsigned i = 0; i < times; i++) {
		struct mb_move move = {
			.len_bytes = BYTES, .node = (unsigned)nodes[!(i & 1)], .huge = huge};

		ck_assert_int_eq(mb_mover_move(mover, &move, moved), 0);
	}
	printf("moved %llu MiB, busy %llu KiB, longest batch %.1f ms\n",
		(unsigned long long)moved->moved_bytes >> 20,
		(unsigned long long)moved->busy_bytes >> 10, (double)moved->longest_ns / 1e6);
	ck_assert_uint_eq(
		moved->moved_bytes + moved->busy_bytes + moved->there_bytes, times * BYTES);
}

/* There and back; how much was moved. _i as for test_moves. */
static uint64_t moved_beside(struct vcpu *c, int i)
{
	struct mb_moved moved;

	make(i & 1, !(i & 2), BYTES);
	start_vcpus(c);
	there_and_back(2, i & 1, &moved);
	stop_vcpus(c);
	finish();
	return moved.moved_bytes;
}

/* Each view has a half, and writes it all the time: with or without privilege it moves. */
START_TEST(test_beside_users)
{
	struct vcpu c[VIEWS] = {
		{.view = 0, .to = BYTES / 2}, {.view = 1, .from = BYTES / 2, .to = BYTES}};

	if (two_nodes())
		ck_assert_uint_ge(moved_beside(c, _i), 2 * BYTES / 20 * 19);
}
END_TEST

/* Both views write every page: without privilege hardly any moves. */
START_TEST(test_beside_writers)
{
	struct vcpu c[VIEWS] = {{.view = 0, .to = BYTES}, {.view = 1, .to = BYTES}};
	uint64_t moved;

	if (!two_nodes())
		return;
	moved = moved_beside(c, _i);
	if (!(_i & 2))
		ck_assert_uint_ge(moved, 2 * BYTES / 20 * 19);
}
END_TEST

/* What smaps says of the mapping of an address, "nh": no huge pages. */
static bool has_flag(const void *address, const char *flag)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	bool inside = false, has = false;
	unsigned long begin, end;
	char line[512];

	ck_assert_ptr_nonnull(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
			inside = (uintptr_t)address >= begin && (uintptr_t)address < end;
		else if (inside && !strncmp(line, "VmFlags:", 8))
			has = strstr(line, flag);
	}
	fclose(file);
	return has;
}

static void print_split(const struct mb_moved *moved)
{
	printf("split: moved %llu KiB, busy %llu KiB, split %llu KiB, longest batch %.1f ms\n",
		(unsigned long long)moved->moved_bytes >> 10,
		(unsigned long long)moved->busy_bytes >> 10,
		(unsigned long long)moved->split_bytes >> 10, (double)moved->longest_ns / 1e6);
}

/*
 * Views write parts of a huge page all the time, and one part moves alone. _i: 1: vCPUs cannot be
 * paused, and are faster: then nothing moves; 2: as without privilege.
 */
START_TEST(test_split)
{
	const uint64_t border = 200 * PAGE, block = MB_HEAT_BLOCK_BYTES;
	struct vcpu c[VIEWS] = {
		{.view = 0, .to = border}, {.view = 1, .from = border, .to = block}};
	struct mb_move move = {.offset = border, .len_bytes = block - border, .split = true};
	struct mb_moved moved = {0};
	bool splits = !(_i & 1);

	if (!two_nodes())
		return;
	lets_pause = splits;
	n_tries = 0;
	make(true, !(_i & 2), BYTES);
	if (!pmd_mapped()) {
		skip("huge pages of files in memory");
		finish();
		return;
	}
	move.node = (unsigned)nodes[1];
	start_vcpus(c);
	for (unsigned i = 0; i < 20 && moved.moved_bytes < move.len_bytes * 95 / 100; i++)
		ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	stop_vcpus(c);
	lets_pause = true;
	print_split(&moved);
	ck_assert_uint_eq(on_node(0, border, nodes[0]), border / PAGE);
	ck_assert_uint_eq(on_node(block, BYTES, nodes[0]), (BYTES - block) / PAGE);
	ck_assert(!has_flag(view[1].base + block, " nh"));
	/* Once is enough, and they were not asked again and again. */
	ck_assert_uint_eq(moved.split_bytes, splits ? block : 0);
	ck_assert_uint_le(n_tries, splits ? 4 : 1 + (unsigned)(moved.ns / 2000000000));
	ck_assert_uint_ge(n_tries, 1);
	ck_assert(has_flag(view[1].base, " nh") == splits);
	ck_assert(has_flag(own.base, " nh") == splits);
	if (!splits) {
		ck_assert_uint_eq(moved.moved_bytes, 0);
		finish();
		return;
	}
	ck_assert_uint_ge(on_node(border, block, nodes[1]), (block - border) / PAGE * 95 / 100);

	/* For one user again. */
	move = (struct mb_move){.len_bytes = block, .node = (unsigned)nodes[1]};
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(on_node(0, block, nodes[1]), block / PAGE);
	ck_assert(!has_flag(view[1].base, " nh"));
	finish();
}
END_TEST

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* What was put together again is taken apart again, whatever was noted of it. */
START_TEST(test_split_again)
{
	struct mb_move move = {.len_bytes = 64 * PAGE, .split = true};
	struct mb_moved moved = {0};
	int rc;

	if (!two_nodes())
		return;
	make(true, true, BYTES);
	if (!pmd_mapped()) {
		skip("huge pages of files in memory");
		finish();
		return;
	}
	move.node = (unsigned)nodes[1];
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.split_bytes, MB_HEAT_BLOCK_BYTES);
	ck_assert(has_flag(view[0].base, " nh"));
	/* As when its view was mapped anew, and khugepaged came by. */
	madvise(view[0].base, MB_HEAT_BLOCK_BYTES, MADV_HUGEPAGE);
	/* Linux 6.1 does so and says that it failed. */
	if (madvise(view[0].base, MB_HEAT_BLOCK_BYTES, MADV_COLLAPSE))
		printf("split again: collapse: %s\n", strerror(errno));
	ck_assert_uint_eq(on_node(0, MB_HEAT_BLOCK_BYTES, nodes[0]), MB_HEAT_BLOCK_PAGES);
	/* Where nothing tells a huge page that takes a pause, some time after the last. */
	for (unsigned i = 0; i < 1000 && moved.split_bytes < 2 * MB_HEAT_BLOCK_BYTES; i++) {
		ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
		usleep(10000);
	}
	ck_assert_uint_eq(moved.split_bytes, 2 * MB_HEAT_BLOCK_BYTES);
	ck_assert_uint_eq(on_node(0, move.len_bytes, nodes[1]), 64);
	ck_assert_uint_eq(
		on_node(move.len_bytes, MB_HEAT_BLOCK_BYTES, nodes[0]), MB_HEAT_BLOCK_PAGES - 64);
	ck_assert(has_flag(view[0].base, " nh"));
	/* An emptied machine's memory may be anything. */
	mb_mover_hold(mover);
	move.node = (unsigned)nodes[0];
	rc = mb_mover_move(mover, &move, &moved);
	ck_assert_msg(rc == -ECANCELED, "%d, %llu KiB there, full %llu KiB", rc,
		(unsigned long long)moved.there_bytes >> 10,
		(unsigned long long)moved.full_bytes >> 10);
	mb_mover_forget(mover);
	ck_assert(!has_flag(view[0].base, " nh"));
	ck_assert(!has_flag(own.base, " nh"));
	mb_mover_release(mover);
	check(BYTES, 0);
	finish();
}
END_TEST

/* In place of libc's, for numa/mover_split.c too: mappings of this file at a given place fail,
 * after so many that do not. */
static int fail_fd = -1;
static unsigned fail_after, n_failed;

void *mmap(void *at, size_t len, int prot, int flags, int file, off_t offset)
{
	if (file >= 0 && file == fail_fd && flags & MAP_FIXED) {
		if (!fail_after) {
			n_failed++;
			errno = ENOMEM;
			return MAP_FAILED;
		}
		fail_after--;
	}
	return (void *)syscall(SYS_mmap, at, len, prot, flags, file, offset);
}

/* _i: where one of the mappings fails that it takes, nothing was taken apart; with more than it
 * takes all is well. */
START_TEST(test_split_without_mappings)
{
	struct mb_moved moved = {0};
	int rc;

	make(true, true, BYTES);
	/* Also where huge pages are not made by themselves. */
	if (!pmd_mapped() && madvise(view[0].base, MB_HEAT_BLOCK_BYTES, MADV_COLLAPSE)) {
		skip("huge pages of files in memory");
		finish();
		return;
	}
	fail_after = (unsigned)_i;
	fail_fd = fd;
	rc = mb_mover_split(mover, 0, &moved);
	fail_fd = -1;
	printf("split: %u mappings, then %u failed\n", (unsigned)_i - fail_after, n_failed);
	ck_assert(_i || n_failed);
	ck_assert(_i < 4 || !n_failed);
	ck_assert_int_eq(rc, n_failed ? -EBUSY : 0);
	ck_assert_uint_eq(moved.split_bytes, n_failed ? 0 : MB_HEAT_BLOCK_BYTES);
	check(BYTES, 0);
	finish();
}
END_TEST

/* Every third page of a part of a block. _i: 1: which is a huge page, taken apart for it. */
START_TEST(test_pieces)
{
	const unsigned first = 5, n = 400;
	uint64_t pages[MB_HEAT_BLOCK_PAGES / 64] = {0}, at, len;
	struct mb_move move = {
		.offset = first * PAGE, .len_bytes = n * PAGE, .split = _i, .pages = pages};
	struct mb_moved moved = {0};
	unsigned n_pieces = 0, wrong = 0;

	for (unsigned i = 0; i < n; i += 3)
		pages[i / 64] |= 1ull << i % 64;
	for (at = move.offset; (len = mb_move_run(&move, &at)) != 0; at += len) {
		ck_assert_uint_eq(at, (first + n_pieces++ * 3) * PAGE);
		ck_assert_uint_eq(len, PAGE);
	}
	ck_assert_uint_eq(n_pieces, (n + 2) / 3);
	if (!two_nodes())
		return;
	make(_i, true, BYTES);
	if (_i && !pmd_mapped()) {
		skip("huge pages of files in memory");
		finish();
		return;
	}
	move.node = (unsigned)nodes[1];
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.moved_bytes, n_pieces * PAGE);
	ck_assert_uint_eq(moved.split_bytes, _i ? MB_HEAT_BLOCK_BYTES : 0);
	ck_assert_uint_eq(moved.busy_bytes + moved.full_bytes + moved.absent_bytes, 0);
	for (unsigned i = 0; i < BYTES / PAGE; i++) {
		bool moves = i >= first && i < first + n && (i - first) % 3 == 0;

		wrong += on_node(i * PAGE, (i + 1) * PAGE, nodes[moves]) != 1;
	}
	ck_assert_uint_eq(wrong, 0);
	check(BYTES, 0);
	moved = (struct mb_moved){0};
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.there_bytes, n_pieces * PAGE);
	move.len_bytes = MB_HEAT_BLOCK_BYTES;
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), -EINVAL);
	finish();
}
END_TEST

/* ---- what cannot move ---- */

/* A pipe that refers to pages, as an I/O in flight does: they stay, all others move. */
START_TEST(test_pinned)
{
	enum { PINNED = 16 };
	struct mb_move move = {.len_bytes = BYTES};
	struct mb_moved moved = {0};
	struct iovec some = {.iov_len = PINNED * PAGE};
	int ends[2];

	if (!two_nodes())
		return;
	make(false, !_i, BYTES);
	move.node = (unsigned)nodes[1];
	some.iov_base = view[0].base + 100 * PAGE;
	ck_assert_int_eq(pipe(ends), 0);
	ck_assert_int_eq(vmsplice(ends[1], &some, 1, 0), PINNED * PAGE);
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.busy_bytes, PINNED * PAGE);
	ck_assert_uint_eq(moved.moved_bytes, BYTES - PINNED * PAGE);
	ck_assert_uint_eq(on_node(100 * PAGE, (100 + PINNED) * PAGE, nodes[0]), PINNED);
	check(BYTES, 0);
	close(ends[0]);
	close(ends[1]);
	moved = (struct mb_moved){0};
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.moved_bytes, PINNED * PAGE);
	check(BYTES, 0);
	finish();
}
END_TEST

/* It finds out by itself that it has no privilege. */
START_TEST(test_without_cap_sys_nice)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0};
	struct mb_move move = {.len_bytes = BYTES};
	struct mb_moved moved = {0};

	if (!two_nodes())
		return;
	make(_i, true, BYTES);
	move.node = (unsigned)nodes[1];
	ck_assert_int_eq(syscall(SYS_capset, &header, none), 0);
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.moved_bytes, BYTES);
	ck_assert_uint_eq(on_node(0, BYTES, nodes[1]), BYTES / PAGE);
	check(BYTES, 0);
	finish();
}
END_TEST

/* Memory on this node until it gives no more to moves, either. */
static void fill_node(int node)
{
	enum { PAGES = 512, BATCHES = 64 };
	int to[PAGES], status[PAGES];
	long long free_bytes;
	void *page[PAGES];
	size_t bytes;
	char *at;

	numa_node_size64(node, &free_bytes);
	bytes = (size_t)free_bytes + BATCHES * PAGES * PAGE;
	at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		-1, 0);
	ck_assert_ptr_ne(at, MAP_FAILED);
	madvise(at, bytes, MADV_NOHUGEPAGE);
	/* Preferred, not bound: what does not fit goes elsewhere, and nobody is killed. */
	numa_set_preferred(node);
	for (size_t i = 0; i < bytes; i += PAGE)
		at[i] = 1;
	numa_set_preferred(-1);
	/* An allocation leaves more than a move does. */
	for (unsigned b = 0; b < BATCHES; b++) {
		for (unsigned i = 0; i < PAGES; i++) {
			page[i] = at + bytes - (b * PAGES + i + 1) * PAGE;
			to[i] = node;
		}
		if (move_pages(0, PAGES, page, to, status, MPOL_MF_MOVE) < 0)
			break;
	}
}

/* A node without memory for it: what fits is moved, the rest is told. */
START_TEST(test_full)
{
	struct mb_move move = {.len_bytes = BYTES};
	struct mb_moved moved = {0};

	if (!two_nodes())
		return;
	make(false, true, BYTES);
	move.node = (unsigned)nodes[1];
	fill_node(nodes[1]);
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	printf("full: moved %llu KiB, full %llu KiB\n", (unsigned long long)moved.moved_bytes >> 10,
		(unsigned long long)moved.full_bytes >> 10);
	ck_assert_uint_eq(moved.moved_bytes + moved.full_bytes, BYTES);
	ck_assert_uint_gt(moved.full_bytes, 0);
	check(BYTES, 0);
	finish();
}
END_TEST

/* ---- without a second node ---- */

START_TEST(test_nothing_to_do)
{
	struct mb_move move = {.len_bytes = BYTES};
	struct mb_moved moved = {0};
	void *page;
	int node = 0;

	make(true, true, BYTES / 4);
	page = view[0].base;
	ck_assert_int_eq(move_pages(0, 1, &page, NULL, &node, 0), 0);
	move.node = (unsigned)node;
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.there_bytes + moved.moved_bytes, BYTES / 4);
	ck_assert_uint_eq(moved.absent_bytes, BYTES / 4 * 3);
	ck_assert_int_eq(lseek(fd, BYTES / 4, SEEK_DATA), -1); /* holes stay */
	check(BYTES / 4, 0);
	finish();
}
END_TEST

START_TEST(test_bad_moves)
{
	static const struct mb_move bad[] = {{.offset = 1, .len_bytes = PAGE},
		{.len_bytes = PAGE + 1}, {.len_bytes = BYTES + PAGE},
		{.offset = BYTES, .len_bytes = PAGE}, {.offset = PAGE, .len_bytes = -PAGE},
		{.len_bytes = PAGE, .node = 63}, {.len_bytes = PAGE, .node = 5000}};
	struct mb_move none = {0};
	struct mb_moved moved = {0};

	make(false, true, BYTES);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_int_eq(mb_mover_move(mover, &bad[i], &moved), -EINVAL);
	ck_assert_int_eq(mb_mover_move(mover, &none, &moved), 0);
	ck_assert_uint_eq(moved.moved_bytes + moved.there_bytes, 0);
	check(BYTES, 0);
	finish();
}
END_TEST

static void *move_all(void *arg)
{
	struct mb_move move = {
		.len_bytes = BYTES, .node = nodes[1] != NONE ? (unsigned)nodes[1] : 0};
	struct mb_moved moved = {0};
	int *rc = arg;

	do
		*rc = mb_mover_move(mover, &move, &moved);
	while (!*rc);
	return NULL;
}

/* Once hold returns nothing moves, and who was moving gives up. */
START_TEST(test_hold)
{
	pthread_t thread;
	int rc = 0;

	if (!two_nodes())
		return;
	make(false, true, BYTES);
	ck_assert_int_eq(pthread_create(&thread, NULL, move_all, &rc), 0);
	usleep(2000);
	mb_mover_hold(mover);
	memset(view[0].base, 1, BYTES);
	pthread_join(thread, NULL);
	ck_assert_int_eq(rc, -ECANCELED);
	mb_mover_release(mover);
	mb_mover_hold(NULL);
	mb_mover_release(NULL);
	finish();
}
END_TEST

/* So many calls of as many pages as may be, each of which takes that long. */
static unsigned batch_after(
	struct mb_batch_size *size, unsigned calls, uint64_t call_ns, uint64_t page_ns)
{
	while (calls--)
		mb_batch_size_note(size, size->pages, call_ns + page_ns * size->pages);
	return size->pages;
}

START_TEST(test_batch_size)
{
	struct mb_batch_size size = {.pages = MB_MOVER_BATCH_PAGES};

	ck_assert_uint_eq(batch_after(&size, 20, 1000, 20000), MB_MOVER_BATCH_PAGES);
	/* Pages take long, then they do not. */
	ck_assert_uint_le(batch_after(&size, 20, 1000, 8000000), 64);
	ck_assert_uint_eq(batch_after(&size, 20, 1000, 80000000), 16);
	ck_assert_uint_eq(batch_after(&size, 20, 1000, 20000), MB_MOVER_BATCH_PAGES);
	/* It is the call: after a few small ones they are large again, if it is within a second. */
	batch_after(&size, 20, 150000000, 20000);
	ck_assert_uint_eq(batch_after(&size, 20, 150000000, 20000), MB_MOVER_BATCH_PAGES);
	ck_assert_uint_eq(batch_after(&size, 20, 2000000000, 20000), 16);
	/* A large one says nothing about the cost of a call. */
	size = (struct mb_batch_size){.pages = MB_MOVER_BATCH_PAGES};
	mb_batch_size_note(&size, MB_MOVER_BATCH_PAGES, 15000000000);
	ck_assert_uint_eq(size.pages, MB_MOVER_BATCH_PAGES / 2);
	ck_assert_uint_eq(size.call_ns, 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("mover");
	TCase *moves = tcase_create("moves"), *beside = tcase_create("beside"),
	      *left = tcase_create("left");

	tcase_set_timeout(moves, 60);
	tcase_add_test(moves, test_nothing_to_do);
	tcase_add_test(moves, test_bad_moves);
	tcase_add_test(moves, test_hold);
	tcase_add_test(moves, test_batch_size);
	tcase_add_loop_test(moves, test_moves, 0, 4);
	suite_add_tcase(suite, moves);
	tcase_set_timeout(beside, 240);
	tcase_add_loop_test(beside, test_beside_users, 0, 4);
	tcase_add_loop_test(beside, test_beside_writers, 0, 4);
	tcase_add_loop_test(beside, test_split, 0, 4);
	tcase_add_test(beside, test_split_again);
	tcase_add_loop_test(beside, test_split_without_mappings, 0, 5);
	tcase_add_loop_test(beside, test_pieces, 0, 2);
	suite_add_tcase(suite, beside);
	tcase_set_timeout(left, 60);
	tcase_add_loop_test(left, test_pinned, 0, 2);
	tcase_add_loop_test(left, test_without_cap_sys_nice, 0, 2);
	tcase_add_test(left, test_full);
	suite_add_tcase(suite, left);
	return run_suite(suite);
}
