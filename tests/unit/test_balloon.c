// SPDX-License-Identifier: Apache-2.0
/* The balloon device, through its real transport and rings, with memory that is an array. */
#include "run.h"
#include "virtio_driver.h"

#include <linux/virtio_balloon.h>
#include <mirrorball/balloon.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE	  4096u
#define RAM_BYTES (8ull << 20)
#define SIZE	  64
#define WAIT_MS	  10000

#define REPORTING (1ull << VIRTIO_BALLOON_F_REPORTING)
#define POISON	  (1ull << VIRTIO_BALLOON_F_PAGE_POISON)
#define INDIRECT  (1ull << VIRTIO_RING_F_INDIRECT_DESC)
#define PACKED	  (1ull << VIRTIO_F_RING_PACKED)

static struct drv_machine m;
static struct drv_device dev;
static struct mb_loop *loop;
static struct mb_balloon *balloon;

/* Of the array's discard. */
static struct {
	unsigned n; /* atomic */
	uint64_t gpa[64], len[64];
	int rc; /* atomic */
	/* As the driver sees it meanwhile. */
	struct drv_queue *queue;
	unsigned n_used; /* that it has had back */
	bool too_early;	 /* atomic: it had one back before it was discarded */
} seen;

static int discards(void *ctx, uint64_t gpa, uint64_t len)
{
	unsigned n = __atomic_load_n(&seen.n, __ATOMIC_RELAXED);

	if (n < 64) {
		seen.gpa[n] = gpa;
		seen.len[n] = len;
	}
	__atomic_store_n(&seen.n, n + 1, __ATOMIC_RELEASE);
	if (seen.queue) {
		struct timespec tick = {.tv_nsec = 1000000};

		nanosleep(&tick, NULL);
		if (__atomic_load_n(fake_split_used(&seen.queue->ring, 2), __ATOMIC_ACQUIRE) !=
			(uint16_t)seen.n_used)
			__atomic_store_n(&seen.too_early, true, __ATOMIC_RELAXED);
	}
	return __atomic_load_n(&seen.rc, __ATOMIC_RELAXED);
}

static void make(void)
{
	struct mb_error err;

	memset(&seen, 0, sizeof(seen));
	drv_machine_init(&m, RAM_BYTES);
	m.ram.discards = discards;
	ck_assert_int_eq(mb_loop_create(&loop, &err), 0);
	ck_assert_int_eq(mb_loop_start_thread(loop, "balloon", NULL, &err), 0);
	ck_assert_int_eq(mb_balloon_create(m.pci, &m.ram.dma, loop, &balloon, &err), 0);
	drv_open(&dev, &m, 1);
}

static void finish(void)
{
	drv_close(&dev);
	mb_balloon_destroy(balloon);
	mb_loop_destroy(loop);
	drv_machine_finish(&m);
}

static struct mb_balloon_stats ask(void)
{
	struct mb_balloon_stats s;

	mb_balloon_stats(balloon, &s);
	return s;
}

static uint64_t filled(uint64_t len)
{
	uint64_t gpa = drv_alloc(&m, len, PAGE);

	memset(drv_at(&m, gpa), 0x5a, len);
	return gpa;
}

static bool is_all(uint64_t gpa, uint64_t len, uint8_t value)
{
	const uint8_t *p = drv_at(&m, gpa);

	for (uint64_t i = 0; i < len; i++)
		if (p[i] != value)
			return false;
	return true;
}

/* Sends one chain to the queue and has it back, with nothing written by the device's own count. */
static void send(unsigned queue, const struct fake_seg *seg, unsigned n, bool indirect)
{
	struct drv_queue *q = &dev.queue[queue];
	uint32_t written = 1;
	void *cookie;

	ck_assert(drv_add(q, seg, n, indirect, &m));
	drv_kick(q);
	ck_assert(drv_wait(q, &cookie, &written, WAIT_MS));
	ck_assert_ptr_eq(cookie, &m);
	ck_assert_uint_eq(written, 0);
}

static void report(unsigned queue, uint64_t gpa, uint32_t len)
{
	struct fake_seg seg = {.gpa = gpa, .len = len, .in = true};

	send(queue, &seg, 1, false);
}

START_TEST(test_offers)
{
	uint8_t config[16];
	uint32_t actual = 7;

	make();
	ck_assert_uint_eq(drv_offered(&dev) & 0xffffff, REPORTING | POISON);
	drv_config_read(&dev, 0, config, sizeof(config));
	for (unsigned i = 0; i < sizeof(config); i++)
		ck_assert_uint_eq(config[i], 0);
	/* Nothing is ever asked of the guest, whatever it writes. */
	for (unsigned i = 0; i < sizeof(config); i += 4)
		drv_config_write(&dev, i, &actual, 4);
	drv_config_read(&dev, 0, config, sizeof(config));
	ck_assert_mem_eq(config, "\0\0\0\0\7\0\0\0\0\0\0\0\7\0\0\0", 16);
	/* In parts, and over the end of a field. */
	drv_config_write(&dev, 6, "\x11\x22\x33\x44", 4);
	drv_config_read(&dev, 4, config, 8);
	ck_assert_mem_eq(config, "\7\0\x11\x22\0\0\0\0", 8);
	ck_assert(!ask().reporting);
	ck_assert(drv_start(&dev, REPORTING, 3, SIZE));
	ck_assert(ask().reporting);
	drv_reset(&dev);
	ck_assert(!ask().reporting);
	drv_config_read(&dev, 0, config, sizeof(config));
	ck_assert(!config[4] && !config[12]);
	finish();
}
END_TEST

/* By the numbers of the specification, and as Linux counts them; split and packed rings. */
static const struct {
	unsigned queue;
	uint64_t features;
} ways[] = {{2, 0}, {4, 0}, {2, PACKED}, {4, INDIRECT}, {2, PACKED | INDIRECT}};

START_TEST(test_reports)
{
	const unsigned queue = ways[_i].queue;
	const uint64_t features = ways[_i].features;
	struct fake_seg seg[32];
	uint64_t at;

	make();
	at = filled(40 * PAGE);
	ck_assert(drv_start(&dev, REPORTING | features, 5, SIZE));
	report(queue, at, 2 * PAGE);
	ck_assert(is_all(at, 2 * PAGE, 0));
	ck_assert(is_all(at + 2 * PAGE, 38 * PAGE, 0x5a));
	/* As Linux does: 32 blocks at a time. */
	for (unsigned i = 0; i < 32; i++)
		seg[i] = (struct fake_seg){.gpa = at + (33 - i) * PAGE, .len = PAGE, .in = true};
	send(queue, seg, 32, features & INDIRECT);
	ck_assert(is_all(at, 34 * PAGE, 0));
	ck_assert(is_all(at + 34 * PAGE, 6 * PAGE, 0x5a));
	ck_assert_uint_eq(ask().reported_bytes, 34 * PAGE);
	ck_assert_uint_eq(ask().discarded_bytes, 34 * PAGE);
	ck_assert_uint_eq(ask().n_failures, 0);
	ck_assert_uint_eq(seen.n, 33);
	finish();
}
END_TEST

/* The guest has no page back before it is discarded. */
START_TEST(test_order)
{
	struct fake_seg seg[2];
	struct drv_queue *q;
	uint64_t at;

	make();
	at = filled(64 * PAGE);
	ck_assert(drv_start(&dev, REPORTING, 3, SIZE));
	seen.queue = q = &dev.queue[2];
	for (unsigned i = 0; i < 16; i++) {
		uint32_t written;
		void *cookie;

		for (unsigned k = 0; k < 2; k++)
			seg[k] = (struct fake_seg){
				.gpa = at + (2 * i + k) * PAGE, .len = PAGE, .in = true};
		ck_assert(drv_add(q, seg, 2, false, NULL));
		drv_kick(q);
		ck_assert(drv_wait(q, &cookie, &written, WAIT_MS));
		/* It is the guest's own again. */
		memset(drv_at(&m, seg[0].gpa), 0x77, 2 * PAGE);
		seen.n_used = i + 1;
	}
	drv_reset(&dev);
	ck_assert(!seen.too_early);
	ck_assert_uint_eq(seen.n, 32);
	ck_assert(is_all(at, 32 * PAGE, 0x77));
	finish();
}
END_TEST

/* What has to keep a value, or was not agreed on, is not touched, and given back all the same. */
START_TEST(test_leaves_alone)
{
	const uint32_t poison = 0xaaaaaaaa, zero = 0;
	struct fake_seg seg[2];
	uint64_t at;

	make();
	at = filled(8 * PAGE);
	ck_assert(drv_start(&dev, POISON, 5, SIZE)); /* no reporting */
	report(2, at, PAGE);
	report(4, at, PAGE);
	ck_assert(drv_start(&dev, REPORTING | POISON, 5, SIZE));
	drv_config_write(&dev, offsetof(struct virtio_balloon_config, poison_val), &poison, 4);
	report(2, at, PAGE);
	ck_assert(is_all(at, 8 * PAGE, 0x5a));
	ck_assert_uint_eq(ask().discarded_bytes, 0);
	/* init_on_free: the value is 0, and that is what it gets. */
	drv_config_write(&dev, offsetof(struct virtio_balloon_config, poison_val), &zero, 4);
	report(2, at, PAGE);
	ck_assert(is_all(at, PAGE, 0));
	/* Without the feature the value means nothing; and a reset forgets it. */
	ck_assert(drv_start(&dev, REPORTING, 5, SIZE));
	drv_config_write(&dev, offsetof(struct virtio_balloon_config, poison_val), &poison, 4);
	report(2, at + PAGE, PAGE);
	ck_assert(is_all(at, 2 * PAGE, 0));
	ck_assert(drv_start(&dev, REPORTING | POISON, 5, SIZE));
	report(2, at + 2 * PAGE, PAGE);
	ck_assert(is_all(at, 3 * PAGE, 0));
	/* What is for the device to read is no report. */
	seg[0] = (struct fake_seg){.gpa = at + 4 * PAGE, .len = PAGE};
	seg[1] = (struct fake_seg){.gpa = at + 6 * PAGE, .len = PAGE, .in = true};
	send(2, seg, 2, false);
	ck_assert(is_all(at + 3 * PAGE, 3 * PAGE, 0x5a));
	ck_assert(is_all(at + 6 * PAGE, PAGE, 0));
	/* Nor is what goes to the other queues. */
	seg[0] = (struct fake_seg){.gpa = at + 4 * PAGE, .len = PAGE};
	for (unsigned queue = 0; queue < 4; queue += queue ? 2 : 1)
		if (queue != 2)
			send(queue, seg, 1, false);
	report(0, at + 4 * PAGE, PAGE);
	report(1, at + 4 * PAGE, PAGE);
	report(3, at + 4 * PAGE, PAGE);
	ck_assert(is_all(at + 3 * PAGE, 3 * PAGE, 0x5a));
	finish();
}
END_TEST

/* What a hostile driver may report. */
START_TEST(test_hostile)
{
	struct fake_seg seg[SIZE];
	uint64_t at, ring, end = DRV_RAM_BASE + RAM_BYTES;
	const struct fake_seg outside[] = {
		{.gpa = 0, .len = PAGE, .in = true},
		{.gpa = DRV_RAM_BASE - PAGE, .len = 2 * PAGE, .in = true},
		{.gpa = end - PAGE, .len = 2 * PAGE, .in = true},
		{.gpa = 0xfec00000, .len = PAGE, .in = true},
		{.gpa = UINT64_MAX - 100, .len = 200, .in = true},
		{.gpa = DRV_RAM_BASE, .len = UINT32_MAX, .in = true},
	};

	make();
	at = filled(16 * PAGE);
	/* Less than a page, on both sides of one, and all of one from within another. */
	ck_assert(drv_start(&dev, REPORTING, 5, SIZE));
	report(2, at + 1, PAGE - 1);
	report(2, at + PAGE / 2, PAGE);
	report(2, at + 5, 1);
	report(2, at + 3 * PAGE + 1, 3 * PAGE - 2);
	ck_assert(is_all(at, 4 * PAGE, 0x5a));
	ck_assert(is_all(at + 4 * PAGE, PAGE, 0));
	ck_assert(is_all(at + 5 * PAGE, PAGE, 0x5a));
	ck_assert_uint_eq(ask().discarded_bytes, PAGE);
	/* The same again and again, over each other. */
	for (unsigned i = 0; i < SIZE; i++)
		seg[i] = (struct fake_seg){.gpa = at + i % 3 * PAGE, .len = 2 * PAGE, .in = true};
	send(2, seg, SIZE, false);
	ck_assert(is_all(at, 5 * PAGE, 0));
	/* The ring itself: whatever becomes of it, a reset brings it back. */
	for (unsigned i = 0; i < 3; i++) {
		ck_assert(drv_start(&dev, REPORTING | (i == 1 ? PACKED : 0), 5, SIZE));
		__atomic_store_n(&seen.n, 0, __ATOMIC_RELAXED);
		ring = i == 2 ? DRV_RAM_BASE : dev.queue[2].gpa;
		seg[0] = (struct fake_seg){
			.gpa = ring, .len = i == 2 ? (uint32_t)RAM_BYTES : 4 * PAGE, .in = true};
		ck_assert(drv_add(&dev.queue[2], seg, 1, false, NULL));
		drv_kick(&dev.queue[2]);
		for (unsigned k = 0; k < 5000 && !__atomic_load_n(&seen.n, __ATOMIC_ACQUIRE); k++)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		drv_reset(&dev);
	}
	/* Outside of RAM: as for any device. */
	for (unsigned i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
		unsigned before = seen.n;

		ck_assert(drv_start(&dev, REPORTING, 5, SIZE));
		ck_assert(drv_add(&dev.queue[4], &outside[i], 1, false, NULL));
		drv_kick(&dev.queue[4]);
		for (unsigned k = 0; k < 10000 && !(drv_status(&dev) & VIRTIO_CONFIG_S_NEEDS_RESET);
			k++)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		ck_assert(drv_status(&dev) & VIRTIO_CONFIG_S_NEEDS_RESET);
		ck_assert_uint_eq(seen.n, before);
	}
	ck_assert(drv_start(&dev, REPORTING, 5, SIZE));
	report(4, at, PAGE);
	finish();
}
END_TEST

/* What could not be discarded is given back as it is, and so is what comes after it. */
START_TEST(test_failures)
{
	struct fake_seg seg[3];
	uint64_t at;

	make();
	at = filled(3 * PAGE);
	__atomic_store_n(&seen.rc, -ENOMEM, __ATOMIC_RELAXED);
	ck_assert(drv_start(&dev, REPORTING, 5, SIZE));
	for (unsigned i = 0; i < 3; i++)
		seg[i] = (struct fake_seg){.gpa = at + i * PAGE, .len = PAGE, .in = true};
	send(2, seg, 3, false);
	ck_assert(is_all(at, 3 * PAGE, 0x5a));
	ck_assert_uint_eq(ask().n_failures, 1);
	ck_assert_uint_eq(ask().reported_bytes, 3 * PAGE);
	ck_assert_uint_eq(ask().discarded_bytes, 0);
	mb_balloon_reset(balloon);
	ck_assert_uint_eq(ask().n_failures, 1);
	finish();
}
END_TEST

/* Random chains to all queues, wild and fine, with resets: nothing is left mapped. */
START_TEST(test_storm)
{
	const char *given = getenv("MB_TEST_SEED");
	unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)time(NULL);
	uint64_t at;

	printf("MB_TEST_SEED=%u\n", seed);
	make();
	at = filled(256 * PAGE);
	for (unsigned round = 0; round < 50; round++) {
		ck_assert(drv_start(&dev,
			(unsigned)rand_r(&seed) & (REPORTING | POISON) ? REPORTING : 0, 5, SIZE));
		for (unsigned i = 0; i < 200; i++) {
			struct fake_seg seg[8];
			unsigned n = 1 + (unsigned)rand_r(&seed) % 8,
				 q = (unsigned)rand_r(&seed) % 5;
			bool in = false, wild = rand_r(&seed) % 100 == 0;
			uint32_t written;
			void *cookie;

			for (unsigned k = 0; k < n; k++) {
				in |= rand_r(&seed) % 2;
				seg[k] = (struct fake_seg){
					.gpa = at + (unsigned)rand_r(&seed) % (128 * PAGE),
					.len = (unsigned)rand_r(&seed) % (128 * PAGE),
					.in = in};
				/* Not the rings: what is discarded there the driver misses. */
				if (wild && k == n - 1)
					seg[k].gpa |= 1ull << (33 + (unsigned)rand_r(&seed) % 31);
			}
			if (drv_add(&dev.queue[q], seg, n, false, NULL))
				drv_kick(&dev.queue[q]);
			while (drv_wait(&dev.queue[q], &cookie, &written, 0))
				;
		}
	}
	ck_assert_uint_gt(ask().discarded_bytes, 0);
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("balloon");
	TCase *all = tcase_create("all");

	tcase_add_test(all, test_offers);
	tcase_add_loop_test(all, test_reports, 0, sizeof(ways) / sizeof(ways[0]));
	tcase_add_test(all, test_order);
	tcase_add_test(all, test_leaves_alone);
	tcase_add_test(all, test_hostile);
	tcase_add_test(all, test_failures);
	tcase_add_test(all, test_storm);
	tcase_set_timeout(all, 60);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
