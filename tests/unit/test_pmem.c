// SPDX-License-Identifier: Apache-2.0
/*
 * The persistent memory device through its real transport and rings; and what other devices make of
 * buffers in such memory, which they can only read.
 */
#include "../../devices/virtq.h"
#include "run.h"
#include "virtio_driver.h"

#include <fcntl.h>
#include <mirrorball/blk.h>
#include <mirrorball/pmem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RAM_BYTES  (4ull << 20)
#define SIZE	   64
#define WAIT_MS	   10000
#define FILE_GPA   0x200000000ull
#define FILE_BYTES (16u << 20)
#define IMAGE_LEN  ((3u << 20) + 512)
#define PACKED	   (1ull << VIRTIO_F_RING_PACKED)
#define INDIRECT   (1ull << VIRTIO_RING_F_INDIRECT_DESC)

static struct drv_machine m;
static struct drv_device dev, disk_dev;
static struct mb_loop *loop;
static struct mb_pmem *pmem;
static struct mb_blk *blk;
static char image[] = "/tmp/test_pmem.image.XXXXXX", disk[] = "/tmp/test_pmem.disk.XXXXXX";
static uint8_t *file;

static void make_file(char *path, uint64_t bytes)
{
	int fd;

	memcpy(strrchr(path, '.'), ".XXXXXX", 7);
	fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	close(fd);
}

static void make(void)
{
	struct mb_pmem_config config = {.path = image, .gpa = 0x108000000};
	struct mb_blk_config blk_config = {.path = disk, .n_queues = 1, .loops = &loop};
	struct mb_error err;

	drv_machine_init(&m, RAM_BYTES);
	file = malloc(FILE_BYTES);
	for (unsigned i = 0; i < FILE_BYTES; i++)
		file[i] = (uint8_t)(i * 7 + (i >> 9));
	m.ram.file = file;
	m.ram.file_base = FILE_GPA;
	m.ram.file_len = FILE_BYTES;
	make_file(image, IMAGE_LEN);
	make_file(disk, FILE_BYTES);
	ck_assert_int_eq(mb_loop_create(&loop, &err), 0);
	ck_assert_int_eq(mb_loop_start_thread(loop, "io", NULL, &err), 0);
	ck_assert_msg(
		!mb_pmem_create(m.pci, &m.ram.dma, loop, &config, &pmem, &err), "%s", err.text);
	ck_assert_msg(!mb_blk_create(m.pci, &m.ram.dma, &blk_config, &blk, &err), "%s", err.text);
	drv_open(&dev, &m, 1);
	drv_open(&disk_dev, &m, 2);
}

static void finish(void)
{
	drv_close(&dev);
	drv_close(&disk_dev);
	mb_pmem_destroy(pmem);
	mb_blk_destroy(blk);
	mb_loop_destroy(loop);
	drv_machine_finish(&m);
	free(file);
	unlink(image);
	unlink(disk);
}

/* ---- the device ---- */

START_TEST(test_offers)
{
	uint64_t config[2], odd;

	make();
	ck_assert_uint_eq(drv_offered(&dev) & 0xffffff, 0);
	drv_config_read(&dev, 0, &config[0], 8);
	drv_config_read(&dev, 8, &config[1], 8);
	ck_assert_uint_eq(config[0], 0x108000000);
	ck_assert_uint_eq(config[1], 4u << 20);
	ck_assert_uint_eq(mb_pmem_bytes(pmem), 4u << 20);
	ck_assert_uint_eq(mb_pmem_file_bytes(pmem), IMAGE_LEN);
	odd = UINT64_MAX;
	drv_config_write(&dev, 0, &odd, 4);
	drv_config_read(&dev, 0, &config[0], 8);
	ck_assert_uint_eq(config[0], 0x108000000);
	finish();
}
END_TEST

/* One request; what the device says it wrote, and *ret. */
static uint32_t ask(uint32_t type, uint32_t out_len, uint32_t in_len, uint32_t *ret)
{
	uint64_t at = drv_alloc(&m, 64, 16);
	struct fake_seg seg[2] = {{at, out_len, false}, {at + 32, in_len, true}};
	unsigned first = !out_len, n = 2 - first - !in_len;
	uint32_t written = 99;
	void *cookie;

	memcpy(drv_at(&m, at), &type, 4);
	memset(drv_at(&m, at + 32), 0xaa, 8);
	ck_assert(drv_add(&dev.queue[0], seg + first, n, false, &m));
	drv_kick(&dev.queue[0]);
	ck_assert(drv_wait(&dev.queue[0], &cookie, &written, WAIT_MS));
	memcpy(ret, drv_at(&m, at + 32), 4);
	return written;
}

START_TEST(test_requests)
{
	uint32_t ret;

	make();
	ck_assert(drv_start(&dev, _i ? PACKED : 0, 1, SIZE));
	for (unsigned i = 0; i < 200; i++) {
		ck_assert_uint_eq(ask(0, 4, 4, &ret), 4);
		ck_assert_uint_eq(ret, 0);
	}
	/* Longer than what is known of it. */
	ck_assert_uint_eq(ask(0, 16, 8, &ret), 4);
	ck_assert_uint_eq(ret, 0);
	/* Unknown, or cut. */
	ck_assert_uint_eq(ask(1, 4, 4, &ret), 4);
	ck_assert_uint_eq(ret, 1);
	ck_assert_uint_eq(ask(UINT32_MAX, 4, 4, &ret), 4);
	ck_assert_uint_eq(ret, 1);
	ck_assert_uint_eq(ask(0, 3, 4, &ret), 4);
	ck_assert_uint_eq(ret, 1);
	ck_assert_uint_eq(ask(0, 0, 4, &ret), 4);
	ck_assert_uint_eq(ret, 1);
	/* No room for an answer, or for half of one. */
	ck_assert_uint_eq(ask(0, 4, 0, &ret), 0);
	ck_assert_uint_eq(ret, 0xaaaaaaaa);
	ck_assert_uint_eq(ask(0, 4, 2, &ret), 2);
	ck_assert_uint_eq(ret, 0xaaaa0000);
	ck_assert_uint_eq(ask(0, 4, 4, &ret), 4);
	ck_assert_uint_eq(ret, 0);
	finish();
}
END_TEST

START_TEST(test_storm)
{
	const char *given = getenv("MB_TEST_SEED");
	unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)time(NULL);
	uint64_t at;

	printf("MB_TEST_SEED=%u\n", seed);
	make();
	at = drv_alloc(&m, 64 << 10, 16);
	for (unsigned round = 0; round < 20; round++) {
		ck_assert(drv_start(&dev, round % 2 ? PACKED : 0, 1, SIZE));
		for (unsigned i = 0; i < 100; i++) {
			struct fake_seg seg[6];
			unsigned n = 1 + (unsigned)rand_r(&seed) % 6;
			bool in = false;
			uint32_t written;
			void *cookie;

			for (unsigned k = 0; k < n; k++) {
				in |= rand_r(&seed) % 3 == 0;
				seg[k] = (struct fake_seg){
					.gpa = at + (unsigned)rand_r(&seed) % (32 << 10),
					.len = (unsigned)rand_r(&seed) % 9,
					.in = in};
				if (rand_r(&seed) % 300 == 0)
					seg[k].gpa = FILE_GPA;
				if (rand_r(&seed) % 300 == 0)
					seg[k].gpa = 1ull << (24 + (unsigned)rand_r(&seed) % 40);
			}
			if (drv_add(&dev.queue[0], seg, n, false, NULL))
				drv_kick(&dev.queue[0]);
			while (drv_wait(&dev.queue[0], &cookie, &written, 0))
				;
		}
	}
	finish();
}
END_TEST

START_TEST(test_files)
{
	struct mb_pmem_config config = {.path = "/tmp/test_pmem.not.there", .gpa = 1 << 20};
	struct mb_blk_config writer = {.path = image, .n_queues = 1, .loops = &loop};
	struct mb_pmem *other;
	struct mb_blk *none;
	struct mb_error err;

	make();
	ck_assert_int_eq(mb_pmem_create(m.pci, &m.ram.dma, loop, &config, &other, &err), -ENOENT);
	ck_assert_msg(
		strstr(err.text, "pmem: ") && strstr(err.text, "no such file"), "%s", err.text);
	config.path = "/tmp";
	ck_assert_int_eq(mb_pmem_create(m.pci, &m.ram.dma, loop, &config, &other, &err), -EISDIR);
	/* Several may have it, and nobody writes it then. */
	config.path = image;
	ck_assert_int_eq(mb_pmem_create(m.pci, &m.ram.dma, loop, &config, &other, &err), 0);
	ck_assert_int_eq(mb_blk_create(m.pci, &m.ram.dma, &writer, &none, &err), -EBUSY);
	mb_pmem_destroy(other);
	ck_assert_int_eq(mb_blk_create(m.pci, &m.ram.dma, &writer, &none, &err), -EBUSY);
	/* Nor can it be had while somebody does. */
	config.path = disk;
	ck_assert_int_eq(mb_pmem_create(m.pci, &m.ram.dma, loop, &config, &other, &err), -EBUSY);
	ck_assert_msg(strstr(err.text, disk), "%s", err.text);
	/* Who does not look at locks is seen by the time. */
	ck_assert(mb_pmem_holds(pmem));
	usleep(30000);
	ck_assert_int_eq(truncate(image, 4096), 0);
	ck_assert(!mb_pmem_holds(pmem));
	ck_assert_int_eq(truncate(image, IMAGE_LEN), 0);
	ck_assert(!mb_pmem_holds(pmem));
	finish();
}
END_TEST

static struct mb_state_out saved(void)
{
	struct mb_state_out out = {0};
	struct mb_error err;

	ck_assert_int_eq(mb_pmem_pause(pmem, 1000000000, &err), 0);
	ck_assert_msg(!mb_pmem_save(pmem, &out, &err), "%s", err.text);
	mb_pmem_resume(pmem);
	return out;
}

static int load(const struct mb_state_out *out, uint64_t gpa, struct mb_error *err)
{
	struct mb_pmem_config config = {.path = image, .gpa = gpa};
	struct mb_state_in in = {.at = out->data, .left = out->len};
	struct mb_pmem *other;
	int rc;

	ck_assert_int_eq(mb_pmem_create(m.pci, &m.ram.dma, loop, &config, &other, err), 0);
	rc = mb_pmem_load(other, &in, err);
	mb_pmem_destroy(other);
	return rc;
}

START_TEST(test_snapshot)
{
	struct mb_state_out out, none = {0};
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1000}};
	struct mb_error err;

	make();
	out = saved();
	ck_assert_msg(!load(&out, 0x108000000, &err), "%s", err.text);
	/* Another one before it is larger now. */
	ck_assert_int_eq(load(&out, 0x110000000, &err), -ESTALE);
	ck_assert_int_eq(utimensat(AT_FDCWD, image, times, 0), 0);
	ck_assert_int_eq(load(&out, 0x108000000, &err), -ESTALE);
	ck_assert_msg(strstr(err.text, "was changed since"), "%s", err.text);
	ck_assert_int_eq(mb_pmem_save(pmem, &none, &err), -ESTALE);
	mb_state_out_finish(&none);
	mb_state_out_finish(&out);
	finish();
}
END_TEST

/* ---- other devices ---- */

/* Asks the disk to write `len` bytes of the file at offset `from` to its byte `to`. */
static bool add_write(uint64_t head, uint64_t from, uint32_t len, uint64_t to, bool indirect)
{
	struct {
		uint32_t type, ioprio;
		uint64_t sector;
	} request = {.type = 1, .sector = to / 512};
	struct fake_seg seg[3] = {{head, sizeof(request), false}, {FILE_GPA + from, len, false},
		{head + sizeof(request), 1, true}};

	memcpy(drv_at(&m, head), &request, sizeof(request));
	*(uint8_t *)drv_at(&m, head + sizeof(request)) = 0xff;
	return drv_add(&disk_dev.queue[0], seg, 3, indirect, (void *)(uintptr_t)head);
}

static bool is_broken(struct drv_device *of)
{
	for (unsigned k = 0; k < WAIT_MS && !(drv_status(of) & VIRTIO_CONFIG_S_NEEDS_RESET); k++)
		usleep(1000);
	return drv_status(of) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

static void expect_disk(uint64_t to, uint64_t from, uint64_t len)
{
	int fd = open(disk, O_RDONLY);
	uint8_t *have = malloc(len);

	ck_assert_int_eq(pread(fd, have, len, (off_t)to), (ssize_t)len);
	ck_assert(!memcmp(have, file + from, len));
	free(have);
	close(fd);
}

/* More at a time than a queue may have as copies, in pieces that are not aligned, too. */
START_TEST(test_write_from_file)
{
	const uint64_t features = _i & 1 ? PACKED : 0;
	const uint32_t step = 1u << 20;
	uint64_t heads;
	unsigned n_done = 0;

	make();
	ck_assert(drv_start(&disk_dev, features | (_i & 2 ? INDIRECT : 0), 1, SIZE));
	heads = drv_alloc(&m, 32 * 64, 16);
	for (unsigned i = 0; i < FILE_BYTES / step; i++)
		ck_assert(add_write(
			heads + 64 * i, (uint64_t)i * step, step, (uint64_t)i * step, _i & 2));
	drv_kick(&disk_dev.queue[0]);
	while (n_done < FILE_BYTES / step) {
		uint32_t written;
		void *cookie;

		ck_assert(drv_wait(&disk_dev.queue[0], &cookie, &written, WAIT_MS));
		ck_assert_uint_eq(*(uint8_t *)drv_at(&m, (uintptr_t)cookie + 16), 0);
		n_done++;
	}
	expect_disk(0, 0, FILE_BYTES);
	for (unsigned i = 0; i < 20; i++) {
		const uint64_t from = 512 + 777 * i;
		uint32_t written;
		void *cookie;

		ck_assert(add_write(heads, from, 512 * (i + 1), 4096, _i & 2));
		drv_kick(&disk_dev.queue[0]);
		ck_assert(drv_wait(&disk_dev.queue[0], &cookie, &written, WAIT_MS));
		expect_disk(4096, from, 512 * (i + 1));
	}
	finish();
}
END_TEST

/* What is no use breaks the device, which a reset mends. */
START_TEST(test_not_from_file)
{
	struct fake_seg seg[2];
	uint64_t head;

	make();
	head = drv_alloc(&m, 64, 16);
	for (unsigned i = 0; i < 5; i++) {
		ck_assert(drv_start(&disk_dev, 0, 1, SIZE));
		switch (i) {
		case 0: /* too much at a time */
			ck_assert(add_write(head, 0, MB_VIRTQ_COPY_BYTES + 512, 0, false));
			break;
		case 1: /* to be written */
			seg[0] = (struct fake_seg){head, 16, false};
			seg[1] = (struct fake_seg){FILE_GPA, 513, true};
			ck_assert(drv_add(&disk_dev.queue[0], seg, 2, false, NULL));
			break;
		case 2: /* over its end */
			ck_assert(add_write(head, FILE_BYTES - 512, 1024, 0, false));
			break;
		case 3: /* in two, the second of which is too much */
			seg[0] = (struct fake_seg){FILE_GPA, MB_VIRTQ_COPY_BYTES / 2, false};
			seg[1] = (struct fake_seg){FILE_GPA, MB_VIRTQ_COPY_BYTES / 2 + 1, false};
			ck_assert(drv_add(&disk_dev.queue[0], seg, 2, false, NULL));
			break;
		default: /* cut off */
			__atomic_store_n(&m.ram.file_gone, true, __ATOMIC_RELAXED);
			ck_assert(add_write(head, 0, 512, 0, false));
		}
		drv_kick(&disk_dev.queue[0]);
		ck_assert_msg(is_broken(&disk_dev), "case %u", i);
	}
	__atomic_store_n(&m.ram.file_gone, false, __ATOMIC_RELAXED);
	ck_assert(drv_start(&disk_dev, 0, 1, SIZE));
	ck_assert(add_write(head, 512, 512, 0, false));
	drv_kick(&disk_dev.queue[0]);
	{
		uint32_t written;
		void *cookie;

		ck_assert(drv_wait(&disk_dev.queue[0], &cookie, &written, WAIT_MS));
	}
	expect_disk(0, 512, 512);
	finish();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("pmem");
	TCase *all = tcase_create("all");

	tcase_add_test(all, test_offers);
	tcase_add_loop_test(all, test_requests, 0, 2);
	tcase_add_test(all, test_storm);
	tcase_add_test(all, test_files);
	tcase_add_test(all, test_snapshot);
	tcase_add_loop_test(all, test_write_from_file, 0, 4);
	tcase_add_test(all, test_not_from_file);
	tcase_set_timeout(all, 60);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
