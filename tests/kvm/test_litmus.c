// SPDX-License-Identifier: Apache-2.0
/*
 * The memory-ordering tests of splash (tests/guest/splash/litmus.c) at native speed, while
 * numa/replica.c copies and collapses their pages, on a KVM with one address space: each view is a
 * VM of its own, all of them on one file, and their vCPUs are one machine to the guest. KVM's
 * faults, MMU notifiers and userfaultfd are the real ones.
 *
 * Built with MB_REPLICA_WRONG, the order of the steps is wrong, and the guest must see something
 * forbidden. MB_LITMUS_SECONDS: how long; MB_LITMUS_SEED: the seed, which is printed.
 */
#include "run.h"

#include "../../numa/replica_internal.h"

#include <errno.h>
#include <mirrorball/boot.h>
#include <mirrorball/clock.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/splash.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RAM_BYTES (16ull << 20) /* the variables begin below 2 MiB and end above 4 MiB */
#define N_PAGES	  (RAM_BYTES / PAGE)
#define N_VIEWS	  2u
#define EACH	  2u /* vCPUs of a view */
#define SECONDS	  (MB_REPLICA_WRONG ? 240u : 5u) /* until it is found */
#define NO_STATUS 256u
/* Pages that a test's first store made one again: below that it tested nothing. */
#define LEAST_COLLAPSED 100u

static struct mb_host host;
static struct mb_vm *vm[N_VIEWS];
static struct mb_vcpus *vcpus[N_VIEWS];
static struct mb_ram *ram; /* the first VM's, whose file is home */
static struct mb_ram_mapping mapping;
static void *base[N_VIEWS];
static struct mb_replicas *replicas;
static struct mb_pagemap *pm;
static unsigned status; /* atomic: the guest's */

/* ---- the machine ---- */

static void on_pio(void *ctx, struct mb_vcpu *vcpu, uint16_t port, bool write, void *data,
	unsigned size, unsigned count)
{
	unsigned none = NO_STATUS;

	if (port == MB_SPLASH_TEXT_PORT && write)
		fwrite(data, 1, (size_t)size * count, stdout);
	else if (port == MB_SPLASH_YIELD_PORT)
		sched_yield();
	else if (port == MB_SPLASH_EXIT_PORT && write)
		__atomic_compare_exchange_n(&status, &none, *(uint8_t *)data, false,
			__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void on_mmio(
	void *ctx, struct mb_vcpu *vcpu, uint64_t gpa, bool write, void *data, unsigned len)
{
}

static void on_eoi(void *ctx, uint8_t vector)
{
}

static void on_event(void *ctx, struct mb_vcpu *vcpu, enum mb_vcpu_event event, const char *text)
{
	printf("vCPU %u: %s\n", mb_vcpu_index(vcpu), text);
	__atomic_store_n(&status, NO_STATUS + 1, __ATOMIC_SEQ_CST);
}

static const struct mb_vcpu_ops ops = {
	.pio = on_pio, .mmio = on_mmio, .ioapic_eoi = on_eoi, .event = on_event};

static void make_vm(unsigned v)
{
	struct mb_vcpus_config vc = {.n_vcpus = EACH, .ops = &ops};
	struct mb_memslot slot = {.len_bytes = RAM_BYTES};
	struct mb_vm_config config = {.n_views = 1};
	struct mb_error err;

	ck_assert_msg(!mb_vm_create(&host, &config, &vm[v], &err), "%s", err.text);
	if (v) {
		ck_assert_int_eq(mb_ram_file_map(mb_ram_fd(ram), RAM_BYTES, &mapping), 0);
		base[v] = slot.hva = mapping.base;
		ck_assert_int_eq(mb_vm_set_memslot(vm[v], 0, 0, &slot), 0);
	} else {
		ck_assert_msg(!mb_ram_create(vm[v], RAM_BYTES, &ram, &err), "%s", err.text);
		base[v] = mb_ram_view_base(ram, 0);
	}
	ck_assert_msg(!mb_vcpus_create(vm[v], &vc, &vcpus[v], &err), "%s", err.text);
}

/* vCPU i of the guest is in view i % N_VIEWS. */
static void load_guest(const char *cmdline)
{
	static struct mb_splash_info info;
	struct mb_vcpu_start start = {
		.rdi = MB_SPLASH_INFO, .cr3 = MB_BOOT_PAGE_TABLES, .long_mode = true};
	struct mb_error err;
	const void *image;
	uint64_t len;

	image = mb_splash_image(&len);
	ck_assert_int_eq(mb_boot_load_elf_image(ram, image, len, "splash", &start.rip, &err), 0);
	ck_assert_int_eq(mb_boot_page_tables(ram, &err), 0);
	info = (struct mb_splash_info){.magic = MB_SPLASH_MAGIC,
		.n_vcpus = N_VIEWS * EACH,
		.tsc_khz = mb_vcpu_tsc_khz(mb_vcpus_at(vcpus[0], 0)),
		.low_ram_bytes = RAM_BYTES};
	snprintf(info.cmdline, sizeof(info.cmdline), "%s", cmdline);
	for (unsigned i = 0; i < N_VIEWS * EACH; i++) {
		info.vcpu_view[i] = (uint8_t)(i % N_VIEWS);
		start.rsi = i;
		ck_assert_int_eq(
			mb_vcpu_set_start(mb_vcpus_at(vcpus[i % N_VIEWS], i / N_VIEWS), &start), 0);
	}
	ck_assert_int_eq(mb_dma_write(mb_ram_dma(ram), MB_SPLASH_INFO, &info, sizeof(info)), 0);
}

/* ---- the memory manager ---- */

static void watch(void *ctx, unsigned view, uint64_t offset, uint64_t len)
{
	mb_pagemap_watch_again(pm, (char *)base[view] + offset, len);
}

static bool make_replicas(void)
{
	struct mb_replicas_config config = {.name = "litmus",
		.ram_fd = mb_ram_fd(ram),
		.ram_bytes = RAM_BYTES,
		.n_views = N_VIEWS,
		.max_bytes = N_VIEWS * RAM_BYTES,
		.backoff_ns = 1, /* none: as often as can be */
		.watch = watch};
	struct mb_error err;

	config.uffd = mb_replicas_open_uffd(false);
	if (config.uffd < 0) {
		skip("a userfaultfd for faults within KVM");
		return false;
	}
	ck_assert_int_eq(mb_pagemap_open(MB_PAGEMAP_ALL, &pm, &err), 0);
	for (unsigned v = 0; v < N_VIEWS; v++) {
		config.view_base[v] = base[v];
		config.view_node[v] = -1;
		ck_assert_int_eq(mb_pagemap_watch(pm, base[v], RAM_BYTES), 0);
	}
	ck_assert_msg(!mb_replicas_create(&config, &replicas, &err), "%s", err.text);
	mb_ram_set_replicas(ram, replicas);
	return true;
}

static uint64_t rnd(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/*
 * Some pages, or a block; mostly where the tests' variables are, now and then anywhere: the guest's
 * code and page tables, too. What is wrong would have the guest lose its stacks: there only within
 * the variables, so that it can tell.
 */
static uint64_t pick_range(uint64_t r, uint64_t *offset)
{
	uint64_t n = r >> 20 & 1 ? 1 + (r >> 24) % 64 : BLOCK_PAGES;
	uint64_t page = BLOCK_PAGES + r % (MB_REPLICA_WRONG ? BLOCK_PAGES : 2 * BLOCK_PAGES);
	uint64_t end = MB_REPLICA_WRONG ? 2 * BLOCK_PAGES : N_PAGES;

	if (!MB_REPLICA_WRONG && !(r >> 31 & 7))
		page = r % N_PAGES;
	if (n == BLOCK_PAGES)
		page -= page % BLOCK_PAGES;
	*offset = page * PAGE;
	return (n < end - page ? n : end - page) * PAGE;
}

/* Copies, takes out of page tables, gives back. False: the guest has not ended in time. */
static bool torment(uint64_t seed, unsigned seconds)
{
	uint64_t end_ns = mb_now_ns() + seconds * 1000000000ull;
	struct mb_replicated d = {0};

	while (__atomic_load_n(&status, __ATOMIC_SEQ_CST) == NO_STATUS) {
		uint64_t r = rnd(&seed), offset, len = pick_range(r, &offset);
		unsigned v = (unsigned)(r >> 40) % N_VIEWS;

		if (mb_now_ns() > end_ns)
			return false;
		mb_replicas_replicate(
			replicas, offset, len, 1 + (unsigned)(r >> 41) % ((1u << N_VIEWS) - 1), &d);
		if (r >> 61 == 0)
			mb_pagemap_zap(pm, (char *)base[v] + offset, len);
		/* Also for the wrong builds: a copy that is stale for ever is waited on for ever.
		 */
		if (r >> 57 == 127)
			mb_replicas_collapse(replicas, 0, RAM_BYTES);
		usleep((useconds_t)(r >> 34) % 1000);
	}
	return true;
}

static void show(void)
{
	struct mb_replicas_stats s;

	mb_replicas_stats(replicas, &s);
	printf("copied %lu MiB; %lu writes waited, %.1f us each, the longest %.1f ms; %lu pages "
	       "were "
	       "one again by them\n",
		s.copied_bytes >> 20, s.n_faults,
		s.n_faults ? (double)s.fault_ns / 1e3 / (double)s.n_faults : 0.0,
		(double)s.longest_ns / 1e6, s.n_collapsed);
	fflush(stdout);
	if (!MB_REPLICA_WRONG)
		ck_assert_uint_ge(s.n_collapsed, LEAST_COLLAPSED);
}

static void teardown(void)
{
	if (replicas)
		mb_ram_set_replicas(ram, NULL);
	mb_replicas_destroy(replicas);
	mb_pagemap_close(pm);
	for (unsigned v = 0; v < N_VIEWS; v++)
		mb_vcpus_destroy(vcpus[v]);
	mb_ram_destroy(ram);
	for (unsigned v = 0; v < N_VIEWS; v++)
		mb_vm_destroy(vm[v]);
	mb_ram_file_unmap(&mapping, RAM_BYTES);
	mb_host_finish(&host);
}

static unsigned seconds(void)
{
	const char *s = getenv("MB_LITMUS_SECONDS");

	return s ? (unsigned)atoi(s) : SECONDS;
}

START_TEST(test_litmus)
{
	const char *given = getenv("MB_LITMUS_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : mb_now_ns() | 1;
	char cmdline[128];
	struct mb_error err;
	bool ended;

	printf("seed %#lx\n", seed);
	ck_assert_msg(!mb_host_open(&host, NULL, &err), "%s", err.text);
	ck_assert_msg(!mb_host_check(&host, &err), "%s", err.text);
	for (unsigned v = 0; v < N_VIEWS; v++)
		make_vm(v);
	status = NO_STATUS;
	snprintf(cmdline, sizeof(cmdline), "litmus size=4M phase_ms=10 ms=%u seed=%lu",
		seconds() * 1000, seed >> 1);
	load_guest(cmdline);
	if (!make_replicas()) {
		teardown();
		return;
	}
	for (unsigned v = 0; v < N_VIEWS; v++)
		mb_vcpus_resume(vcpus[v]);
	ended = torment(seed, seconds() + 60);
	for (unsigned v = 0; v < N_VIEWS; v++)
		mb_vcpus_pause(vcpus[v]);
	show();
	ck_assert(ended);
	ck_assert_uint_eq(status, MB_REPLICA_WRONG ? MB_SPLASH_FAILED : MB_SPLASH_OK);
	teardown();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("litmus");
	TCase *all = tcase_create("litmus");

	if (access("/dev/kvm", R_OK | W_OK)) {
		fprintf(stderr, "skipped: /dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	tcase_add_test(all, test_litmus);
	tcase_set_timeout(all, 90 + (double)seconds());
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
