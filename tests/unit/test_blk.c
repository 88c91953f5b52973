// SPDX-License-Identifier: Apache-2.0
#include "blk_bench.h"
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/loop.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * The block device against real files, driven as a guest would drive it. In /tmp (direct I/O where
 * the file system has it) and in /dev/shm (buffered).
 */

START_TEST(test_config)
{
	struct virtio_blk_config cfg;
	struct bench b;
	uint64_t offered;

	bench_init(&b, "/dev/shm", 1 << 20);
	offered = drv_offered(&b.dev);
	ck_assert(!(offered & FEATURE(VIRTIO_BLK_F_RO)));
	ck_assert(offered & FEATURE(VIRTIO_BLK_F_FLUSH));
	ck_assert(offered & FEATURE(VIRTIO_BLK_F_MQ));
	ck_assert(offered & FEATURE(VIRTIO_BLK_F_DISCARD));
	ck_assert(offered & FEATURE(VIRTIO_BLK_F_WRITE_ZEROES));
	drv_config_read(&b.dev, 0, &cfg, sizeof(cfg));
	ck_assert_uint_eq(cfg.capacity, 2048);
	ck_assert_uint_eq(cfg.num_queues, N_QUEUES);
	ck_assert_uint_eq(cfg.blk_size, 512);
	ck_assert_uint_eq(cfg.wce, 1);
	ck_assert_uint_ge(cfg.max_discard_sectors, 1);
	ck_assert_uint_eq(cfg.max_secure_erase_seg, 0);
	bench_finish(&b);
}
END_TEST

START_TEST(test_read_write)
{
	struct bench b;
	uint8_t byte = 0;
	int fd;

	bench_init(&b, _i ? "/tmp" : "/dev/shm", 1 << 20);
	bench_start(&b, UINT64_MAX);
	blk_fill(&b, 0x5a, 8192);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 2032, 8192), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	blk_fill(&b, 0, 8192);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 2032, 8192), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0x5a, 8192));
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 2031, 512), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0, 512));
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 5, 0), VIRTIO_BLK_S_OK);
	fd = open(b.path, O_RDONLY);
	ck_assert_int_eq(pread(fd, &byte, 1, (1 << 20) - 1), 1);
	ck_assert_uint_eq(byte, 0x5a);
	close(fd);
	bench_finish(&b);
}
END_TEST

START_TEST(test_refused_requests)
{
	struct bench b;

	bench_init(&b, "/dev/shm", 1 << 20);
	bench_start(&b, UINT64_MAX);
	/* Beyond the end, by one sector and by a lot; wrapping. */
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 2048, 512), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 2047, 1024), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, UINT64_MAX, 512), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 1ull << 55, 512), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(
		blk_request(&b, VIRTIO_BLK_T_OUT, (1ull << 55) - 1, 1024), VIRTIO_BLK_S_IOERR);
	/* Not whole sectors. */
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 0, 511), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 513), VIRTIO_BLK_S_IOERR);
	/* No such request. */
	ck_assert_uint_eq(blk_request(&b, 3, 0, 512), VIRTIO_BLK_S_UNSUPP);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_SECURE_ERASE, 0, 16), VIRTIO_BLK_S_UNSUPP);
	ck_assert_uint_eq(blk_request(&b, UINT32_MAX, 0, 512), VIRTIO_BLK_S_UNSUPP);
	/* The device is well. */
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	bench_finish(&b);
}
END_TEST

START_TEST(test_layouts)
{
	struct fake_seg segs[20];
	struct bench b;
	uint32_t written;
	uint8_t *data;

	bench_init(&b, _i ? "/tmp" : "/dev/shm", 1 << 20);
	bench_start(&b, UINT64_MAX);
	data = drv_at(&b.m, GPA_DATA(&b));

	/* Header byte by byte, data in the buffer of its last byte. */
	blk_fill(&b, 0x11, 1024);
	blk_set_header(&b, VIRTIO_BLK_T_OUT, 7);
	for (unsigned i = 0; i < 15; i++)
		segs[i] = (struct fake_seg){.gpa = GPA_HEADER(&b) + i, .len = 1};
	memcpy(data - 1, (uint8_t *)drv_at(&b.m, GPA_HEADER(&b)) + 15, 1);
	segs[15] = (struct fake_seg){.gpa = GPA_DATA(&b) - 1, .len = 1025};
	segs[16] = (struct fake_seg){.gpa = GPA_STATUS(&b), .len = 1, .in = true};
	ck_assert_uint_eq(blk_run(&b, segs, 17, GPA_STATUS(&b), &written), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(written, 1);

	/* Data and status in one buffer. */
	blk_fill(&b, 0, 4096);
	blk_set_header(&b, VIRTIO_BLK_T_IN, 7);
	segs[0] = (struct fake_seg){.gpa = GPA_HEADER(&b), .len = 16};
	segs[1] = (struct fake_seg){.gpa = GPA_DATA(&b), .len = 1025, .in = true};
	ck_assert_uint_eq(blk_run(&b, segs, 2, GPA_DATA(&b) + 1024, &written), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0x11, 1024));
	ck_assert_uint_eq(written, 1025);
	ck_assert_uint_eq(data[1025], 0);

	/* Header too short for a header; a status is still owed. */
	segs[0].len = 15;
	ck_assert_uint_eq(blk_run(&b, segs, 2, GPA_DATA(&b) + 1024, &written), VIRTIO_BLK_S_IOERR);
	/* Nothing to read at all. */
	segs[1].len = 1;
	ck_assert_uint_eq(blk_run(&b, segs + 1, 1, GPA_DATA(&b), &written), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(written, 1);
	/* Empty buffers here and there. */
	blk_set_header(&b, VIRTIO_BLK_T_IN, 7);
	segs[0] = (struct fake_seg){.gpa = GPA_HEADER(&b), .len = 16};
	segs[1] = (struct fake_seg){.gpa = GPA_DATA(&b), .len = 0};
	segs[2] = (struct fake_seg){.gpa = GPA_DATA(&b), .len = 512, .in = true};
	segs[3] = (struct fake_seg){.gpa = GPA_DATA(&b), .len = 0, .in = true};
	segs[4] = (struct fake_seg){.gpa = GPA_STATUS(&b), .len = 1, .in = true};
	segs[5] = (struct fake_seg){.gpa = GPA_STATUS(&b), .len = 0, .in = true};
	ck_assert_uint_eq(blk_run(&b, segs, 6, GPA_STATUS(&b), &written), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(written, 513);
	bench_finish(&b);
}
END_TEST

START_TEST(test_no_status)
{
	struct fake_seg seg;
	struct bench b;
	uint32_t written;
	void *cookie;

	bench_init(&b, "/dev/shm", 1 << 20);
	bench_start(&b, UINT64_MAX);
	blk_set_header(&b, VIRTIO_BLK_T_FLUSH, 0);
	seg = (struct fake_seg){.gpa = GPA_HEADER(&b), .len = 16};
	ck_assert(drv_add(&b.dev.queue[0], &seg, 1, false, &b));
	drv_kick(&b.dev.queue[0]);
	ck_assert(drv_wait(&b.dev.queue[0], &cookie, &written, TIMEOUT_MS));
	for (unsigned i = 0; !(drv_status(&b.dev) & VIRTIO_CONFIG_S_NEEDS_RESET) && i < 1000; i++)
		usleep(1000);
	ck_assert(drv_status(&b.dev) & VIRTIO_CONFIG_S_NEEDS_RESET);
	/* A reset brings it back. */
	bench_start(&b, UINT64_MAX);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	bench_finish(&b);
}
END_TEST

START_TEST(test_get_id)
{
	const char *name;
	struct bench b;
	uint8_t *data;

	bench_init(&b, "/dev/shm", 1 << 20);
	bench_start(&b, UINT64_MAX);
	name = strrchr(b.path, '/') + 1;
	data = drv_at(&b.m, GPA_DATA(&b));
	blk_fill(&b, 0xaa, 64);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
	ck_assert_int_eq(strncmp((char *)data, name, 20), 0);
	ck_assert_uint_eq(data[19], 0);
	ck_assert_uint_eq(data[20], 0xaa);
	blk_fill(&b, 0xaa, 64);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_GET_ID, 0, 4), VIRTIO_BLK_S_OK);
	ck_assert_int_eq(memcmp(data, name, 4), 0);
	ck_assert_uint_eq(data[4], 0xaa);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_GET_ID, 0, 64), VIRTIO_BLK_S_OK);
	bench_finish(&b);
}
END_TEST

START_TEST(test_ranges)
{
	struct virtio_blk_discard_write_zeroes *seg;
	struct stat before, after;
	struct bench b;

	bench_init(&b, _i ? "/tmp" : "/dev/shm", 4 << 20);
	bench_start(&b, UINT64_MAX);
	blk_fill(&b, 0x77, 1 << 20);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 1 << 20), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	ck_assert_int_eq(stat(b.path, &before), 0);

	/* Zeroes that keep the blocks, odd edges. */
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 1, 5, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 1, 5 * 512), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0, 5 * 512));
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0x77, 512));
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 6, 512), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0x77, 512));
	/* The whole disk: more than one step of the fallback. */
	ck_assert_uint_eq(blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 2048, 3 * 2048, 0),
		VIRTIO_BLK_S_OK);

	/* Zeroes that give blocks back, and discard. */
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 8, 128, 1), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 8, 128 * 512), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0, 128 * 512));
	ck_assert_uint_eq(blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 0, 8192, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	ck_assert_int_eq(stat(b.path, &after), 0);
	ck_assert_int_eq(after.st_size, 4 << 20);
	ck_assert_int_lt(after.st_blocks, before.st_blocks);

	/* Several segments; the empty one is nothing. */
	blk_fill(&b, 0x33, 64 << 10);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 64 << 10), VIRTIO_BLK_S_OK);
	seg = drv_at(&b.m, GPA_DATA(&b));
	memset(seg, 0, 3 * sizeof(*seg));
	seg[0] = (struct virtio_blk_discard_write_zeroes){.sector = 0, .num_sectors = 1};
	seg[1] = (struct virtio_blk_discard_write_zeroes){.sector = 8192, .num_sectors = 0};
	seg[2] = (struct virtio_blk_discard_write_zeroes){.sector = 2, .num_sectors = 1};
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 0, 48), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 0, 4 * 512), VIRTIO_BLK_S_OK);
	for (unsigned i = 0; i < 4; i++)
		ck_assert_uint_eq(((uint8_t *)seg)[i * 512], i % 2 ? 0x33 : 0);

	/* Refused. */
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 0, 8, 1), VIRTIO_BLK_S_UNSUPP);
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2), VIRTIO_BLK_S_UNSUPP);
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 8192, 1, 0), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 8191, 2, 0), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, UINT64_MAX, 1, 0),
		VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 0, UINT32_MAX, 0),
		VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_DISCARD, 0, 0), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_DISCARD, 0, 15), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_DISCARD, 0, 33 * 16), VIRTIO_BLK_S_IOERR);

	/* Without the feature there is no such request. */
	bench_start(&b, FEATURE(VIRTIO_BLK_F_FLUSH));
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
	bench_finish(&b);
}
END_TEST

static uint8_t wce(struct bench *b)
{
	uint8_t value;

	drv_config_read(&b->dev, offsetof(struct virtio_blk_config, wce), &value, 1);
	return value;
}

START_TEST(test_write_cache)
{
	uint8_t off = 0, on = 1;
	unsigned at = offsetof(struct virtio_blk_config, wce);
	struct bench b;

	bench_init(&b, _i ? "/tmp" : "/dev/shm", 1 << 20);
	/* Without FLUSH each write is durable by itself, whatever the driver says. */
	bench_start(&b, FEATURE(VIRTIO_BLK_F_CONFIG_WCE) | FEATURE(VIRTIO_BLK_F_WRITE_ZEROES));
	ck_assert_uint_eq(wce(&b), 0);
	drv_config_write(&b.dev, at, &on, 1);
	ck_assert_uint_eq(wce(&b), 0);
	blk_fill(&b, 0x42, 4096);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 1, 1, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);

	bench_start(&b, FEATURE(VIRTIO_BLK_F_CONFIG_WCE) | FEATURE(VIRTIO_BLK_F_FLUSH));
	ck_assert_uint_eq(wce(&b), 1);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
	drv_config_write(&b.dev, at, &off, 1);
	ck_assert_uint_eq(wce(&b), 0);
	/* The first one pays for what was written before. */
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
	drv_config_write(&b.dev, at, &on, 1);
	ck_assert_uint_eq(wce(&b), 1);
	/* Capacity is not the driver's to change. */
	drv_config_write(&b.dev, 0, &on, 1);
	drv_config_read(&b.dev, 0, &off, 1);
	ck_assert_uint_eq(off, 0);

	/* FLUSH alone is write-back. */
	bench_start(&b, FEATURE(VIRTIO_BLK_F_FLUSH));
	ck_assert_uint_eq(wce(&b), 1);
	bench_finish(&b);
}
END_TEST

START_TEST(test_readonly)
{
	struct mb_error err;
	struct mb_blk *second;
	struct mb_blk *first;
	struct bench b = {0};

	blk_make_file(b.path, "/dev/shm", 1 << 20);
	bench_init_path(&b, true);
	ck_assert(drv_offered(&b.dev) & FEATURE(VIRTIO_BLK_F_RO));
	ck_assert(!(drv_offered(&b.dev) & FEATURE(VIRTIO_BLK_F_DISCARD)));
	ck_assert(!(drv_offered(&b.dev) & FEATURE(VIRTIO_BLK_F_WRITE_ZEROES)));
	bench_start(&b, UINT64_MAX);
	blk_fill(&b, 0x55, 512);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0, 512));

	/* Any number of readers, no writer beside them. */
	first = b.blk;
	ck_assert_int_eq(blk_try_create(&b, true, &err), 0);
	second = b.blk;
	b.blk = first;
	mb_blk_destroy(second);
	ck_assert_int_eq(blk_try_create(&b, false, &err), -EBUSY);
	b.blk = first;
	bench_finish(&b);
}
END_TEST

/* Opening and closing a disk leaves no trace on it, whatever it is opened for. */
START_TEST(test_untouched)
{
	/* A time of reading that the kernel would bring up to date. */
	const struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1000000000}};
	struct stat before, after;
	struct bench b = {0};

	blk_make_file(b.path, _i % 2 ? "/tmp" : "/dev/shm", 1 << 20);
	ck_assert_int_eq(utimensat(AT_FDCWD, b.path, old, 0), 0);
	ck_assert_int_eq(stat(b.path, &before), 0);
	bench_init_path(&b, _i >= 2);
	mb_blk_destroy(b.blk);
	b.blk = NULL;
	ck_assert_int_eq(stat(b.path, &after), 0);
	ck_assert_int_eq(after.st_size, before.st_size);
	ck_assert_int_eq(after.st_blocks, before.st_blocks);
	ck_assert_int_eq(memcmp(&after.st_mtim, &before.st_mtim, sizeof(after.st_mtim)), 0);
	ck_assert_int_eq(memcmp(&after.st_ctim, &before.st_ctim, sizeof(after.st_ctim)), 0);
	ck_assert_int_eq(memcmp(&after.st_atim, &before.st_atim, sizeof(after.st_atim)), 0);
	bench_finish(&b);
}
END_TEST

START_TEST(test_lock)
{
	struct mb_error err;
	struct mb_blk *first;
	char who[32];
	struct bench b;

	bench_init(&b, "/dev/shm", 1 << 20);
	first = b.blk;
	ck_assert_int_eq(blk_try_create(&b, false, &err), -EBUSY);
	ck_assert_ptr_nonnull(strstr(err.text, "in use by another machine"));
	ck_assert_int_eq(strncmp(err.text, "disk ", 5), 0);
	snprintf(who, sizeof(who), "process %d", getpid());
	ck_assert_ptr_nonnull(strstr(err.text, who));
	ck_assert_int_eq(blk_try_create(&b, true, &err), -EBUSY);
	mb_blk_destroy(first);
	/* The lock is gone with its disk. */
	ck_assert_int_eq(blk_try_create(&b, false, &err), 0);
	bench_finish(&b);
}
END_TEST

static void expect(struct bench *b, const char *path, int rc, const char *text)
{
	struct mb_error err = {""};

	if (path != b->path)
		snprintf(b->path, sizeof(b->path), "%s", path);
	ck_assert_int_eq(blk_try_create(b, false, &err), rc);
	ck_assert_msg(
		strstr(err.text, text) != NULL, "%s: '%s' is not in '%s'", path, text, err.text);
	ck_assert_int_eq(strncmp(err.text, "disk ", 5), 0);
	ck_assert_ptr_null(strchr(err.text, '\n'));
}

START_TEST(test_bad_files)
{
	struct mb_blk_config config = {.serial = "123456789012345678901", .n_queues = 1};
	char path[64], dir[] = "/dev/shm/mb-blk-dir-XXXXXX";
	struct mb_error err;
	struct mb_blk *blk;
	struct bench b;
	int fd;

	bench_init(&b, "/dev/shm", 1 << 20);
	mb_blk_destroy(b.blk);
	unlink(b.path);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/file", dir);

	expect(&b, path, -ENOENT, "no such file");
	expect(&b, dir, -EISDIR, "is a directory");
	expect(&b, "/dev/null", -EINVAL, "character device");
	ck_assert_int_eq(mkfifo(path, 0600), 0);
	expect(&b, path, -EINVAL, "pipe");
	unlink(path);
	fd = open(path, O_CREAT | O_RDWR, 0600);
	expect(&b, path, -EINVAL, "empty");
	ck_assert_int_eq(ftruncate(fd, 1000), 0);
	expect(&b, path, -EINVAL, "size 1000 is not a multiple of 512 bytes");
	ck_assert_int_eq(ftruncate(fd, 1024), 0);
	close(fd);
	ck_assert_int_eq(chmod(path, 0400), 0);
	if (geteuid() == 0) {
		ck_assert_int_eq(chmod(dir, 0755), 0);
		ck_assert_int_eq(seteuid(65534), 0);
		expect(&b, path, -EACCES, "no permission");
		ck_assert_int_eq(seteuid(0), 0);
	} else {
		expect(&b, path, -EACCES, "no permission");
	}
	config.path = path;
	config.loops = b.loops;
	ck_assert_int_eq(mb_blk_create(b.m.pci, &b.m.ram.dma, &config, &blk, &err), -EINVAL);
	config.serial = NULL;
	config.n_queues = 0;
	ck_assert_int_eq(mb_blk_create(b.m.pci, &b.m.ram.dma, &config, &blk, &err), -EINVAL);
	unlink(path);
	rmdir(dir);
	b.blk = NULL;
	bench_finish(&b);
}
END_TEST

/* Every byte of a disk on a file system that has less room than the disk. */
START_TEST(test_no_space)
{
	char dir[] = "/tmp/mb-blk-tmpfs-XXXXXX";
	unsigned n_ok = 0, n_bad = 0;
	struct bench b = {0};
	bool ok[64];

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
		skip("mounting needs root");
		return;
	}
	ck_assert_ptr_nonnull(mkdtemp(dir));
	ck_assert_int_eq(mount("none", dir, "tmpfs", 0, "size=1m"), 0);
	blk_make_file(b.path, dir, 4 << 20);
	bench_init_path(&b, false);
	bench_start(&b, UINT64_MAX);
	for (unsigned i = 0; i < 64; i++) {
		blk_fill(&b, (uint8_t)(i + 1), 64 << 10);
		ok[i] = blk_request(&b, VIRTIO_BLK_T_OUT, i * 128, 64 << 10) == VIRTIO_BLK_S_OK;
		n_ok += ok[i];
		n_bad += !ok[i];
	}
	ck_assert_uint_ge(n_ok, 10);
	ck_assert_uint_ge(n_bad, 10);
	/* What was acknowledged is there. */
	for (unsigned i = 0; i < 64; i++) {
		ck_assert_uint_eq(
			blk_request(&b, VIRTIO_BLK_T_IN, i * 128, 64 << 10), VIRTIO_BLK_S_OK);
		if (ok[i])
			ck_assert(blk_all_are(&b, (uint8_t)(i + 1), 64 << 10));
	}
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	/* With room again, so does writing. */
	ck_assert_uint_eq(blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 0, 8192, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 63 * 128, 64 << 10), VIRTIO_BLK_S_OK);
	bench_finish(&b);
	umount(dir);
	rmdir(dir);
}
END_TEST

/* A file system on which fallocate can do nothing. */
START_TEST(test_no_fallocate)
{
	char dir[] = "/tmp/mb-blk-ramfs-XXXXXX";
	struct bench b = {0};

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
		skip("mounting needs root");
		return;
	}
	ck_assert_ptr_nonnull(mkdtemp(dir));
	ck_assert_int_eq(mount("none", dir, "ramfs", 0, NULL), 0);
	blk_make_file(b.path, dir, 4 << 20);
	bench_init_path(&b, false);
	bench_start(&b, UINT64_MAX);
	/* Each twice: the first one finds out. A discard may leave everything as it is. */
	for (unsigned i = 0; i < 2; i++) {
		blk_fill(&b, 0x5a, 64 << 10);
		ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 0, 64 << 10), VIRTIO_BLK_S_OK);
		ck_assert_uint_eq(
			blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 0, 16, 0), VIRTIO_BLK_S_OK);
		for (unsigned unmap = 0; unmap < 2; unmap++)
			ck_assert_uint_eq(blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES,
						  16 + 16 * unmap, 16, unmap),
				VIRTIO_BLK_S_OK);
		ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 16, 16 << 10), VIRTIO_BLK_S_OK);
		ck_assert(blk_all_are(&b, 0, 16 << 10));
		ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 48, 40 << 10), VIRTIO_BLK_S_OK);
		ck_assert(blk_all_are(&b, 0x5a, 40 << 10));
	}
	/* Nonsense is refused all the same. */
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 8192, 1, 0), VIRTIO_BLK_S_IOERR);
	bench_finish(&b);
	umount(dir);
	rmdir(dir);
}
END_TEST

START_TEST(test_truncated)
{
	struct bench b;

	bench_init(&b, "/dev/shm", 1 << 20);
	bench_start(&b, UINT64_MAX);
	ck_assert_int_eq(truncate(b.path, 4096), 0);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 4, 4096), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 1024, 4096), VIRTIO_BLK_S_IOERR);
	bench_finish(&b);
}
END_TEST

START_TEST(test_no_io_uring)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)(_i ? ENOSYS : EPERM)),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = 4, .filter = code};
	struct bench b;

	bench_init(&b, "/dev/shm", 1 << 20);
	mb_blk_destroy(b.blk);
	ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	ck_assert_int_eq(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog), 0);
	expect(&b, b.path, _i ? -ENOSYS : -EPERM, "io_uring");
	b.blk = NULL;
	bench_finish(&b);
}
END_TEST

START_TEST(test_block_device)
{
	int ctl = open("/dev/loop-control", O_RDWR), n, loop_fd, file_fd;
	struct loop_config config = {0};
	char image[64], device[64];
	struct mb_error err;
	struct mb_blk *first;
	struct bench b = {0};

	n = ctl < 0 ? -1 : ioctl(ctl, LOOP_CTL_GET_FREE);
	sprintf(device, "/dev/loop%d", n);
	loop_fd = n < 0 ? -1 : open(device, O_RDWR);
	if (loop_fd < 0) {
		skip("no loop devices");
		return;
	}
	blk_make_file(image, "/tmp", 8 << 20);
	file_fd = open(image, O_RDWR);
	config.fd = (uint32_t)file_fd;
	config.block_size = _i ? 4096 : 512;
	config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
	ck_assert_int_eq(ioctl(loop_fd, LOOP_CONFIGURE, &config), 0);
	strcpy(b.path, device);
	bench_init_path(&b, false);
	bench_start(&b, UINT64_MAX);
	blk_fill(&b, 0x21, 64 << 10);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_OUT, 8, 64 << 10), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	blk_fill(&b, 0, 64 << 10);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 8, 64 << 10), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0x21, 64 << 10));
	ck_assert_uint_eq(
		blk_range_request(&b, VIRTIO_BLK_T_WRITE_ZEROES, 8, 64, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_range_request(&b, VIRTIO_BLK_T_DISCARD, 72, 64, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 8, 32 << 10), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&b, 0, 32 << 10));
	/* Less than a block of the device: direct I/O refuses, the guest hears of it. */
	ck_assert_uint_eq(blk_request(&b, VIRTIO_BLK_T_IN, 1, 512),
		_i ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
	first = b.blk;
	ck_assert_int_eq(blk_try_create(&b, false, &err), -EBUSY);
	ck_assert_ptr_nonnull(strstr(err.text, "in use by another machine"));
	b.blk = first;
	b.path[0] = 0; /* bench_finish must not unlink it */
	bench_finish(&b);
	unlink(image);
	close(loop_fd);
	close(file_fd);
	close(ctl);
}
END_TEST

/* ---- many at a time ---- */

/* The disk against a shadow of it, all kinds of rings, buffers cut anywhere, many in flight. */
START_TEST(test_storm)
{
	static const uint64_t rings[] = {0, F_EVENT | F_INDIRECT, F_PACKED | F_EVENT | F_INDIRECT};
	uint64_t blk = ~(F_PACKED | F_EVENT | F_INDIRECT);
	struct storm *s = calloc(1, sizeof(*s));
	const char *env = getenv("MB_TEST_SEED");
	uint8_t *file = malloc(DISK_BYTES);
	int fd;

	s->rng = env ? strtoull(env, NULL, 0) : (uint64_t)time(NULL) * 2654435761u + (unsigned)_i;
	s->rng |= 1;
	printf("storm %d: MB_TEST_SEED=%llu\n", _i, (unsigned long long)s->rng);
	fflush(stdout);
	bench_init(&s->b, _i % 2 ? "/tmp" : "/dev/shm", DISK_BYTES);
	/* One run of each with write-through. */
	if (_i >= 6)
		blk &= ~FEATURE(VIRTIO_BLK_F_FLUSH);
	bench_start(&s->b, rings[_i / 2 % 3] | blk);
	storm_round(s, _i >= 6 ? 200 : 2000);
	mb_blk_destroy(s->b.blk);
	s->b.blk = NULL;
	fd = open(s->b.path, O_RDONLY);
	ck_assert_int_eq(read(fd, file, DISK_BYTES), DISK_BYTES);
	ck_assert_int_eq(memcmp(file, s->shadow, DISK_BYTES), 0);
	close(fd);
	bench_finish(&s->b);
	free(file);
	free(s);
}
END_TEST

/* Reset and destruction with requests in flight: everything is unmapped, nothing is used
 * afterwards. */
START_TEST(test_reset_in_flight)
{
	struct storm *s = calloc(1, sizeof(*s));

	s->rng = (uint64_t)time(NULL) | 1;
	printf("reset %d: seed %llu\n", _i, (unsigned long long)s->rng);
	fflush(stdout);
	bench_init(&s->b, _i ? "/tmp" : "/dev/shm", DISK_BYTES);
	for (unsigned round = 0; round < 24; round++) {
		bench_start(&s->b, UINT64_MAX & ~(round % 2 ? F_PACKED : 0));
		for (unsigned i = 0; i < N_SLOTS; i++)
			storm_start(s, i);
		for (unsigned q = 0; q < N_QUEUES; q++)
			drv_kick(&s->b.dev.queue[q]);
		if (round % 4 == 3)
			mb_blk_reset(s->b.blk);
		else
			drv_reset(&s->b.dev);
		if (round % 4 == 3) {
			drv_close(&s->b.dev);
			drv_open(&s->b.dev, &s->b.m, 1);
		}
		ck_assert_int_eq(fake_dma_n_mapped(&s->b.m.ram), 0);
		memset(s->slots, 0, sizeof(s->slots));
		s->n_busy = 0;
	}
	bench_start(&s->b, UINT64_MAX);
	ck_assert_uint_eq(blk_request(&s->b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	for (unsigned i = 0; i < N_SLOTS; i++)
		storm_start(s, i);
	for (unsigned q = 0; q < N_QUEUES; q++)
		drv_kick(&s->b.dev.queue[q]);
	bench_finish(&s->b);
	free(s);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("blk");
	TCase *tc = tcase_create("blk");

	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, test_config);
	tcase_add_loop_test(tc, test_read_write, 0, 2);
	tcase_add_test(tc, test_refused_requests);
	tcase_add_loop_test(tc, test_layouts, 0, 2);
	tcase_add_test(tc, test_no_status);
	tcase_add_test(tc, test_get_id);
	tcase_add_loop_test(tc, test_ranges, 0, 2);
	tcase_add_loop_test(tc, test_write_cache, 0, 2);
	tcase_add_test(tc, test_readonly);
	tcase_add_loop_test(tc, test_untouched, 0, 4);
	tcase_add_test(tc, test_lock);
	tcase_add_test(tc, test_bad_files);
	tcase_add_test(tc, test_no_space);
	tcase_add_test(tc, test_no_fallocate);
	tcase_add_test(tc, test_truncated);
	tcase_add_loop_test(tc, test_no_io_uring, 0, 2);
	tcase_add_loop_test(tc, test_block_device, 0, 2);
	tcase_add_loop_test(tc, test_storm, 0, 8);
	tcase_add_loop_test(tc, test_reset_in_flight, 0, 2);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
