// SPDX-License-Identifier: Apache-2.0
/*
 * Guest memory that is given back to the host: a machine's real RAM with its views, copies of it,
 * and a mover, without a guest. Built with MB_REPLICA_WRONG, copies are not given up before that,
 * and it must be found.
 */
#include "fake_kvm.h"
#include "run.h"

#include "../../numa/replica_internal.h"

#include <mirrorball/clock.h>
#include <mirrorball/mover.h>
#include <mirrorball/ram.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB	  (1ull << 20)
#define RAM_BYTES (16 * MIB)
#define N_VIEWS	  2u

static struct fake_kvm fake;
static struct mb_host host;
static struct mb_vm *vm;
static struct mb_ram *ram;
static struct mb_dma *dma;
static struct mb_replicas *replicas;

static void make_ram(uint64_t bytes)
{
	struct mb_vm_config config = {.n_views = N_VIEWS};
	struct mb_error err;

	fake_kvm_init(&fake);
	fake.cap[KVM_CAP_MULTI_ADDRESS_SPACE] = (int)N_VIEWS;
	fake_kvm_host(&fake, &host);
	ck_assert_msg(!mb_vm_create(&host, &config, &vm, &err), "%s", err.text);
	ck_assert_msg(!mb_ram_create(vm, bytes, &ram, &err), "%s", err.text);
	dma = mb_ram_dma(ram);
}

/* False: not on this host. */
static bool make(void)
{
	struct mb_replicas_config config = {
		.name = "test",
		.ram_bytes = RAM_BYTES,
		.n_views = N_VIEWS,
		.max_bytes = UINT64_MAX,
		.backoff_ns = 1000000,
	};
	struct mb_error err;

	config.uffd = mb_replicas_open_uffd(true);
	if (config.uffd < 0) {
		skip("a userfaultfd that protects shared memory");
		return false;
	}
	make_ram(RAM_BYTES);
	config.ram_fd = mb_ram_fd(ram);
	for (unsigned v = 0; v < N_VIEWS; v++) {
		config.view_base[v] = mb_ram_view_base(ram, v);
		config.view_node[v] = -1;
	}
	ck_assert_msg(!mb_replicas_create(&config, &replicas, &err), "%s", err.text);
	mb_ram_set_replicas(ram, replicas);
	return true;
}

static void finish(void)
{
	if (replicas)
		mb_ram_set_replicas(ram, NULL);
	mb_replicas_destroy(replicas);
	replicas = NULL;
	mb_ram_destroy(ram);
	mb_vm_destroy(vm);
	mb_host_finish(&host);
	fake_kvm_finish(&fake);
}

static uint8_t *at(unsigned view, uint64_t offset)
{
	return (uint8_t *)mb_ram_view_base(ram, view) + offset;
}

static void fill(uint64_t offset, uint64_t len, uint8_t value)
{
	memset(at(0, offset), value, len);
}

/* What every view shows, and the monitor itself. */
static bool is_all(uint64_t offset, uint64_t len, uint8_t value)
{
	for (unsigned v = 0; v <= N_VIEWS; v++) {
		const uint8_t *p =
			v < N_VIEWS ? at(v, offset) : (uint8_t *)mb_ram_own_base(ram) + offset;

		for (uint64_t i = 0; i < len; i++)
			if (p[i] != value)
				return false;
	}
	return true;
}

static uint64_t discard(uint64_t gpa, uint64_t len)
{
	uint64_t done = 77;

	ck_assert_int_eq(mb_dma_discard(dma, gpa, len, &done), 0);
	return done;
}

static struct mb_replicated replicate(uint64_t offset, uint64_t len, unsigned views)
{
	struct mb_replicated d = {0};

	ck_assert_int_eq(mb_replicas_replicate(replicas, offset, len, views, &d), 0);
	return d;
}

static uint64_t copies(void)
{
	struct mb_replicas_stats s;

	mb_replicas_stats(replicas, &s);
	return s.bytes;
}

START_TEST(test_gives_back)
{
	int fd;

	make_ram(RAM_BYTES);
	fd = mb_ram_fd(ram);
	fill(0, RAM_BYTES, 0x5a);
	ck_assert_uint_eq(mb_ram_backed_bytes(ram), RAM_BYTES);
	ck_assert_uint_eq(discard(2 * BLOCK, 2 * BLOCK), 2 * BLOCK);
	ck_assert_uint_eq(mb_ram_backed_bytes(ram), RAM_BYTES - 2 * BLOCK);
	/* Only now does it take memory again. */
	ck_assert(is_all(2 * BLOCK, 2 * BLOCK, 0));
	ck_assert(is_all(0, 2 * BLOCK, 0x5a));
	ck_assert(is_all(4 * BLOCK, RAM_BYTES - 4 * BLOCK, 0x5a));
	fill(2 * BLOCK, 2 * BLOCK, 0x66);
	ck_assert(is_all(2 * BLOCK, 2 * BLOCK, 0x66));
	ck_assert_uint_eq(mb_ram_backed_bytes(ram), RAM_BYTES);
	ck_assert_uint_eq((uint64_t)lseek(fd, 0, SEEK_END), RAM_BYTES);
	/* All of it, and again. */
	ck_assert_uint_eq(discard(0, RAM_BYTES), RAM_BYTES);
	ck_assert_uint_eq(discard(0, RAM_BYTES), RAM_BYTES);
	ck_assert_uint_eq(mb_ram_backed_bytes(ram), 0);
	finish();
}
END_TEST

/* Whole pages only, in huge ones or not; what is around them stays. */
START_TEST(test_parts)
{
	uint64_t before;

	make_ram(RAM_BYTES);
	fill(0, RAM_BYTES, 0x5a);
	ck_assert_uint_eq(discard(1, PAGE), 0);
	ck_assert_uint_eq(discard(1, PAGE - 1), 0);
	ck_assert_uint_eq(discard(PAGE - 1, 2), 0);
	ck_assert_uint_eq(discard(5 * PAGE, 1), 0);
	ck_assert(is_all(0, RAM_BYTES, 0x5a));
	ck_assert_uint_eq(discard(7 * PAGE - 1, PAGE + 2), PAGE);
	ck_assert(is_all(0, 7 * PAGE, 0x5a));
	ck_assert(is_all(7 * PAGE, PAGE, 0));
	ck_assert(is_all(8 * PAGE, RAM_BYTES - 8 * PAGE, 0x5a));
	/* From within a huge page to within another one. */
	fill(7 * PAGE, PAGE, 0x5a);
	before = mb_ram_backed_bytes(ram);
	ck_assert_uint_eq(discard(BLOCK + 100 * PAGE + 9, 2 * BLOCK), 2 * BLOCK - PAGE);
	ck_assert_uint_le(mb_ram_backed_bytes(ram), before - BLOCK);
	ck_assert(is_all(0, BLOCK + 101 * PAGE, 0x5a));
	ck_assert(is_all(BLOCK + 101 * PAGE, 2 * BLOCK - PAGE, 0));
	ck_assert(is_all(3 * BLOCK + 100 * PAGE, RAM_BYTES - 3 * BLOCK - 100 * PAGE, 0x5a));
	finish();
}
END_TEST

/* Nothing that is not RAM, or not all of it; high memory is where it is. */
START_TEST(test_ranges)
{
	const uint64_t bytes = MB_RAM_LOW_MAX + 8 * MIB;
	static const struct {
		uint64_t gpa, len;
	} bad[] = {
		{0, 0},
		{0, UINT64_MAX},
		{UINT64_MAX, 1},
		{UINT64_MAX - PAGE + 1, PAGE},
		{MB_RAM_LOW_MAX, PAGE},
		{MB_RAM_LOW_MAX - PAGE, 2 * PAGE},
		{0xfee00000, PAGE},
		{MB_RAM_HIGH_BASE - PAGE, 2 * PAGE},
		{MB_RAM_HIGH_BASE + 8 * MIB, PAGE},
		{MB_RAM_HIGH_BASE, 8 * MIB + 1},
		{1ull << 63, 1ull << 63},
	};

	make_ram(bytes);
	fill(MB_RAM_LOW_MAX - BLOCK, 3 * BLOCK, 0x5a);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint64_t done = 77;

		ck_assert_int_eq(mb_dma_discard(dma, bad[i].gpa, bad[i].len, &done), -EFAULT);
		ck_assert_uint_eq(done, 0);
	}
	ck_assert(is_all(MB_RAM_LOW_MAX - BLOCK, 3 * BLOCK, 0x5a));
	ck_assert_uint_eq(discard(MB_RAM_HIGH_BASE, BLOCK), BLOCK);
	ck_assert(is_all(MB_RAM_LOW_MAX - BLOCK, BLOCK, 0x5a));
	ck_assert(is_all(MB_RAM_LOW_MAX, BLOCK, 0));
	ck_assert(is_all(MB_RAM_LOW_MAX + BLOCK, BLOCK, 0x5a));
	/* With nothing behind it there is nothing to do. */
	ck_assert_uint_eq(discard(0, MB_RAM_LOW_MAX), MB_RAM_LOW_MAX);
	finish();
}
END_TEST

/* The policy is of the range, and what is touched again obeys it. */
START_TEST(test_policy)
{
	unsigned long nodes = 0, got[16] = {0};
	int mode = -1, node;

	if (numa_available() < 0) {
		skip("a kernel with NUMA");
		return;
	}
	make_ram(RAM_BYTES);
	node = numa_max_node();
	nodes = 1ul << node;
	ck_assert_int_eq(mbind(mb_ram_own_base(ram), RAM_BYTES, MPOL_PREFERRED, &nodes, 64, 0), 0);
	fill(0, RAM_BYTES, 0x5a);
	discard(BLOCK, 4 * BLOCK);
	for (unsigned v = 0; v < N_VIEWS; v++) {
		ck_assert_int_eq(get_mempolicy(&mode, got, 1024, at(v, 2 * BLOCK), MPOL_F_ADDR), 0);
		ck_assert_int_eq(mode, MPOL_PREFERRED);
		ck_assert_uint_eq(got[0], nodes);
	}
	fill(BLOCK, 4 * BLOCK, 0x5a);
	ck_assert_int_eq(
		get_mempolicy(&mode, NULL, 0, at(1, 2 * BLOCK), MPOL_F_NODE | MPOL_F_ADDR), 0);
	ck_assert_int_eq(mode, node);
	finish();
}
END_TEST

/* Copies go first, of whichever views, and are not made of what is not there. */
START_TEST(test_copies)
{
	struct mb_replicated d;

	if (!make())
		return;
	fill(0, RAM_BYTES, 0x5a);
	ck_assert_uint_eq(replicate(0, 4 * BLOCK, (unsigned)_i).copied_bytes, 4 * BLOCK);
	ck_assert_uint_gt(copies(), 0);
	discard(BLOCK, 2 * BLOCK);
	ck_assert(is_all(BLOCK, 2 * BLOCK, 0));
	ck_assert(is_all(0, BLOCK, 0x5a));
	ck_assert(is_all(3 * BLOCK, BLOCK, 0x5a));
	ck_assert_uint_eq(copies(), 2 * BLOCK * (unsigned)__builtin_popcount((unsigned)_i));
	/* A part of what has copies. */
	discard(3 * PAGE, 5 * PAGE);
	ck_assert(is_all(0, 3 * PAGE, 0x5a));
	ck_assert(is_all(3 * PAGE, 5 * PAGE, 0));
	ck_assert(is_all(8 * PAGE, BLOCK - 8 * PAGE, 0x5a));
	mb_replicas_collapse(replicas, 0, RAM_BYTES);

	/* A hole stays one, whoever wants copies of it, or tries. */
	discard(4 * BLOCK, BLOCK);
	discard(5 * BLOCK + 10 * PAGE, 100 * PAGE);
	{
		const uint64_t backed = mb_ram_backed_bytes(ram);

		d = replicate(4 * BLOCK, 2 * BLOCK, (unsigned)_i);
		ck_assert_uint_eq(d.hole_bytes, BLOCK + 100 * PAGE);
		ck_assert_uint_eq(d.copied_bytes, BLOCK - 100 * PAGE);
		ck_assert_uint_eq(copies(),
			(BLOCK - 100 * PAGE) * (unsigned)__builtin_popcount((unsigned)_i));
		discard(6 * BLOCK, BLOCK / 2);
		memset(&d, 0, sizeof(d));
		ck_assert_int_eq(mb_replicas_protect(replicas, 6 * BLOCK, BLOCK, &d), 0);
		ck_assert_uint_eq(d.hole_bytes, BLOCK / 2);
		ck_assert_uint_eq(d.copied_bytes, BLOCK / 2);
		/* What is protected, too. */
		discard(6 * BLOCK, BLOCK / 4 * 3);
		memset(&d, 0, sizeof(d));
		ck_assert_int_eq(
			mb_replicas_finish(replicas, 6 * BLOCK, BLOCK, (unsigned)_i, &d), 0);
		ck_assert_uint_eq(d.hole_bytes, BLOCK / 4 * 3);
		ck_assert_uint_eq(d.copied_bytes, BLOCK / 4);
		ck_assert_uint_eq(mb_ram_backed_bytes(ram), backed - BLOCK / 4 * 3);
	}
	ck_assert(is_all(6 * BLOCK, BLOCK / 4 * 3, 0));
	ck_assert(is_all(6 * BLOCK + BLOCK / 4 * 3, BLOCK / 4, 0x5a));
	/* And what is written into it. */
	for (unsigned v = 0; v < N_VIEWS; v++)
		memset(at(v, 4 * BLOCK + v * PAGE), 0x66, PAGE);
	ck_assert(is_all(4 * BLOCK, 2 * PAGE, 0x66));
	finish();
}
END_TEST

/* A device may have it mapped, for reads or writes: its addresses stay good. */
START_TEST(test_mapped)
{
	void *hva, *other;

	if (!make())
		return;
	fill(0, RAM_BYTES, 0x5a);
	ck_assert_int_eq(mb_dma_map(dma, BLOCK, 2 * PAGE, MB_DMA_WRITE, &hva), 0);
	ck_assert_int_eq(mb_dma_map(dma, BLOCK, 2 * PAGE, MB_DMA_READ, &other), 0);
	ck_assert_uint_eq(discard(BLOCK, BLOCK), BLOCK);
	ck_assert_uint_eq(*(uint8_t *)other, 0);
	memset(hva, 0x66, 2 * PAGE);
	/* Still held, by the device. */
	ck_assert_uint_eq(replicate(BLOCK, BLOCK, 2).held_bytes, BLOCK);
	mb_dma_unmap(dma, BLOCK, 2 * PAGE, MB_DMA_READ);
	mb_dma_unmap(dma, BLOCK, 2 * PAGE, MB_DMA_WRITE);
	ck_assert(is_all(BLOCK, 2 * PAGE, 0x66));
	ck_assert(is_all(BLOCK + 2 * PAGE, BLOCK - 2 * PAGE, 0));
	ck_assert_uint_eq(replicate(BLOCK, BLOCK, 2).held_bytes, 0);
	finish();
}
END_TEST

/* Nor does the mover make anything of it. */
START_TEST(test_moved)
{
	struct mb_mover_config config = {
		.ram_bytes = RAM_BYTES, .n_views = N_VIEWS, .may_move_mapped = true};
	struct mb_move move = {.len_bytes = RAM_BYTES, .node = 0};
	struct mb_moved moved = {0};
	struct mb_mover *mover;

	if (numa_available() < 0) {
		skip("a kernel with NUMA");
		return;
	}
	make_ram(RAM_BYTES);
	config.ram_fd = mb_ram_fd(ram);
	config.own_base = mb_ram_own_base(ram);
	config.small = mb_ram_small(ram);
	for (unsigned v = 0; v < N_VIEWS; v++)
		config.view_base[v] = at(v, 0);
	ck_assert_int_eq(mb_mover_create(&config, &mover), 0);
	fill(0, RAM_BYTES, 0x5a);
	discard(BLOCK, 3 * BLOCK);
	ck_assert_int_eq(mb_mover_move(mover, &move, &moved), 0);
	ck_assert_uint_eq(moved.absent_bytes, 3 * BLOCK);
	ck_assert_uint_eq(moved.there_bytes + moved.moved_bytes, RAM_BYTES - 3 * BLOCK);
	ck_assert_uint_eq(mb_ram_backed_bytes(ram), RAM_BYTES - 3 * BLOCK);
	mb_mover_destroy(mover);
	finish();
}
END_TEST

/* ---- all at once ---- */

/*
 * Threads that play vCPUs, each of the view of its number. Each has pages of every block for
 * itself, so that what others do with the rest of a block is there, too: writes them, reads them
 * through all views, frees them, and uses them again as soon as they are discarded. Meanwhile
 * others make copies, zap, and move.
 */
#define N_VCPUS 4u
#define OF_VCPU (BLOCK / N_VCPUS)
#define SECONDS (MB_REPLICA_WRONG ? 30u : 3u)

static bool stop;		   /* atomic */
static uint64_t n_wrong, n_rounds; /* atomic */
static uint64_t n_copied;	   /* atomic */

static uint64_t rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static bool is_over(void)
{
	return __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

static void wrong(const char *what, uint64_t offset)
{
	if (!__atomic_fetch_add(&n_wrong, 1, __ATOMIC_RELAXED))
		printf("%s: at %#lx\n", what, offset);
}

static bool has(uint64_t offset, uint64_t len, uint64_t value)
{
	bool same = true;

	for (unsigned v = 0; v < N_VIEWS; v++)
		for (uint64_t i = 0; i < len; i += 64)
			same &= *(volatile uint64_t *)at(v, offset + i) == (value ? value + i : 0);
	return same;
}

static void *vcpu_main(void *arg)
{
	const unsigned index = (unsigned)(uintptr_t)arg;
	uint64_t seed = (index + 1) * 0x9e3779b97f4a7c15ull ^ mb_now_ns();

	while (!is_over()) {
		const uint64_t r = rnd(&seed), block = r % (RAM_BYTES / BLOCK);
		const uint64_t n = r >> 20 & 1 ? OF_VCPU / PAGE : 1 + (r >> 24) % 16;
		const uint64_t first = (r >> 32) % (OF_VCPU / PAGE - n + 1);
		const uint64_t offset = block * BLOCK + index * OF_VCPU + first * PAGE;
		uint64_t done;

		for (uint64_t i = 0; i < n * PAGE; i += 64)
			*(volatile uint64_t *)at(index % N_VIEWS, offset + i) = r + i;
		if (!has(offset, n * PAGE, r))
			wrong("not as written", offset);
		usleep((useconds_t)(r >> 40) % 300);
		if (!has(offset, n * PAGE, r))
			wrong("not as it was", offset);
		if (mb_dma_discard(dma, offset, n * PAGE, &done) || done != n * PAGE)
			wrong("cannot be discarded", offset);
		if (!has(offset, n * PAGE, 0))
			wrong("not empty", offset);
		__atomic_add_fetch(&n_rounds, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *manager_main(void *arg)
{
	uint64_t seed = mb_now_ns() | 1;
	struct mb_replicated d = {0};

	while (!is_over()) {
		const uint64_t r = rnd(&seed), block = r % (RAM_BYTES / BLOCK) * BLOCK;
		const unsigned views = 1 + (unsigned)(r >> 40) % 3,
			       v = (unsigned)(r >> 50) % N_VIEWS;
		void *page = at(v, block + (r >> 20) % BLOCK_PAGES * PAGE);
		int node = 0, status;

		if (r >> 60 == 0)
			mb_replicas_protect(replicas, block, BLOCK, &d);
		else
			mb_replicas_replicate(replicas, block, BLOCK, views, &d);
		if (r >> 58 & 1)
			madvise(at(v, block), BLOCK, MADV_DONTNEED);
		if (r >> 57 & 1)
			move_pages(0, 1, &page, &node, &status, MPOL_MF_MOVE_ALL);
		usleep((useconds_t)(r >> 30) % 200);
	}
	__atomic_store_n(&n_copied, d.copied_bytes, __ATOMIC_RELAXED);
	return NULL;
}

START_TEST(test_all_at_once)
{
	pthread_t vcpu[N_VCPUS], manager;

	if (!make())
		return;
	for (unsigned i = 0; i < N_VCPUS; i++)
		pthread_create(&vcpu[i], NULL, vcpu_main, (void *)(uintptr_t)i);
	pthread_create(&manager, NULL, manager_main, NULL);
	for (unsigned i = 0; i < 10 * SECONDS && !(MB_REPLICA_WRONG && n_wrong); i++)
		usleep(100000);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < N_VCPUS; i++)
		pthread_join(vcpu[i], NULL);
	pthread_join(manager, NULL);
	printf("%lu rounds, %lu MiB copied, %lu wrong\n", n_rounds, n_copied >> 20, n_wrong);
	ck_assert_uint_gt(n_rounds, 0);
	ck_assert_uint_gt(n_copied, 0);
	if (MB_REPLICA_WRONG) {
		ck_assert_uint_gt(n_wrong, 0);
	} else {
		ck_assert_uint_eq(n_wrong, 0);
		/* All that is left is in pieces of what was freed. */
		discard(0, RAM_BYTES);
		ck_assert_uint_eq(mb_ram_backed_bytes(ram), 0);
		ck_assert_uint_eq(copies(), 0);
	}
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("discard");
	TCase *all = tcase_create("all");

	if (!MB_REPLICA_WRONG) {
		tcase_add_test(all, test_gives_back);
		tcase_add_test(all, test_parts);
		tcase_add_test(all, test_ranges);
		tcase_add_test(all, test_policy);
		tcase_add_loop_test(all, test_copies, 1, 4);
		tcase_add_test(all, test_mapped);
		tcase_add_test(all, test_moved);
	}
	tcase_add_test(all, test_all_at_once);
	tcase_set_timeout(all, 60 + SECONDS);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
