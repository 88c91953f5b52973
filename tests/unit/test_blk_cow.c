// SPDX-License-Identifier: Apache-2.0
#include "blk_bench.h"
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A disk whose changes go elsewhere: that they are there, that its base stays as it was, and what
 * others make of the overlay. */
#define SECTORS_64K 128u

/* ---- a base with something in it, and an overlay or none ---- */

struct cow {
	struct storm s;
	uint8_t base[DISK_BYTES];
	char overlay[80];
	uint64_t base_bytes;
};

static void write_base(struct cow *c)
{
	int fd = open(c->s.b.path, O_WRONLY);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(pwrite(fd, c->base, c->base_bytes, 0), (ssize_t)c->base_bytes);
	close(fd);
}

static struct cow *make(const char *dir, bool overlay, uint64_t base_bytes)
{
	struct cow *c = calloc(1, sizeof(*c));
	const char *env = getenv("MB_TEST_SEED");

	c->s.rng = (env ? strtoull(env, NULL, 0) : (uint64_t)time(NULL) * 2654435761u) | 1;
	printf("MB_TEST_SEED=%llu\n", (unsigned long long)c->s.rng);
	fflush(stdout);
	c->base_bytes = base_bytes;
	blk_make_file(c->s.b.path, dir, base_bytes);
	for (uint64_t i = 0; i < base_bytes; i++)
		c->base[i] = (uint8_t)(i / 512 * 11 + i % 251);
	write_base(c);
	memcpy(c->s.shadow, c->base, base_bytes);
	c->s.b.cow = !overlay;
	if (overlay) {
		sprintf(c->overlay, "%s.qcow2", c->s.b.path);
		c->s.b.overlay = c->overlay;
	}
	return c;
}

static void close_disk(struct cow *c)
{
	struct bench *b = &c->s.b;

	mb_blk_destroy(b->blk);
	b->blk = NULL;
	for (unsigned i = 0; i < N_QUEUES; i++)
		mb_loop_destroy(b->loops[i]);
	drv_close(&b->dev);
	drv_machine_finish(&b->m);
	b->arena = 0;
}

static void open_disk(struct cow *c)
{
	bench_init_path(&c->s.b, false);
	bench_start(&c->s.b, UINT64_MAX);
}

static void finish(struct cow *c)
{
	uint8_t *now = malloc(c->base_bytes);
	int fd = open(c->s.b.path, O_RDONLY);

	/* Whatever happened, nobody wrote to the base. */
	ck_assert_int_eq(read(fd, now, c->base_bytes), (ssize_t)c->base_bytes);
	ck_assert_int_eq(memcmp(now, c->base, c->base_bytes), 0);
	close(fd);
	free(now);
	unlink(c->s.b.path);
	if (*c->overlay)
		unlink(c->overlay);
	free(c);
}

static bool have_qemu_img(void)
{
	return !system("command -v qemu-img >/dev/null");
}

/* The overlay, in place of the one that is there; its base is ours with `suffix` behind its name.
 */
static void qemu_makes(struct cow *c, const char *suffix, const char *options, const char *size)
{
	char cmd[400];

	unlink(c->overlay);
	sprintf(cmd, "qemu-img create -q -f qcow2 -b %s%s %s %s %s", c->s.b.path, suffix, options,
		c->overlay, size);
	ck_assert_int_eq(system(cmd), 0);
}

/* What QEMU thinks of the overlay: nothing to complain of, and the guest's data. */
static void ask_qemu(struct cow *c)
{
	char cmd[400], raw[80];
	int fd;

	if (!have_qemu_img()) {
		skip("no qemu-img");
		return;
	}
	sprintf(raw, "%s.raw", c->s.b.path);
	fd = open(raw, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ck_assert_int_eq(write(fd, c->s.shadow, DISK_BYTES), DISK_BYTES);
	close(fd);
	sprintf(cmd, "qemu-img check -q -f qcow2 %s", c->overlay);
	ck_assert_int_eq(system(cmd), 0);
	sprintf(cmd, "qemu-img compare -q -f qcow2 -F raw %s %s", c->overlay, raw);
	ck_assert_int_eq(system(cmd), 0);
	unlink(raw);
}

/* A write of one byte's value, here and in the shadow. */
static void put(struct cow *c, uint8_t byte, uint64_t sector, uint32_t n_sectors)
{
	blk_fill(&c->s.b, byte, n_sectors * 512);
	ck_assert_uint_eq(
		blk_request(&c->s.b, VIRTIO_BLK_T_OUT, sector, n_sectors * 512), VIRTIO_BLK_S_OK);
	memset(c->s.shadow + sector * 512, byte, n_sectors * 512);
}

/* ---- tests ---- */

START_TEST(test_write_read)
{
	struct cow *c = make(_i / 2 ? "/tmp" : "/dev/shm", _i % 2, DISK_BYTES);
	struct bench *b = &c->s.b;

	open_disk(c);
	ck_assert(!(drv_offered(&b->dev) & FEATURE(VIRTIO_BLK_F_RO)));
	ck_assert(drv_offered(&b->dev) & FEATURE(VIRTIO_BLK_F_DISCARD));
	storm_read_all(&c->s);
	put(c, 1, 0, 1);		    /* a part of a cluster: its beginning */
	put(c, 2, 8 * 3 + 3, 2);	    /* its middle */
	put(c, 3, 8 * 5 + 7, 1);	    /* its end */
	put(c, 4, 8 * 7 + 5, 8 * 4);	    /* parts at both ends */
	put(c, 5, 8 * 20, 8);		    /* all of one */
	put(c, 6, DISK_BYTES / 512 - 1, 1); /* the last */
	put(c, 7, 8 * 5 + 7, 1);	    /* in place */
	put(c, 8, 8 * 5 + 6, 8 * 3);	    /* in place, and on */
	storm_read_all(&c->s);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	/* Zeroes: whole clusters that have a place, and that have none; with parts at the ends. */
	ck_assert_uint_eq(
		blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 8 * 8, 8 * 2, 1), VIRTIO_BLK_S_OK);
	memset(c->s.shadow + 8 * 8 * 512, 0, 8 * 2 * 512);
	ck_assert_uint_eq(blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 8 * 30 + 3, 8 * 9, 0),
		VIRTIO_BLK_S_OK);
	memset(c->s.shadow + (8 * 30 + 3) * 512, 0, 8 * 9 * 512);
	storm_read_all(&c->s);
	/* And something on them. */
	put(c, 9, 8 * 9 + 2, 1);
	put(c, 10, 8 * 32 + 2, 1);
	storm_read_all(&c->s);
	close_disk(c);
	if (_i % 2)
		ask_qemu(c);
	else
		memcpy(c->s.shadow, c->base, DISK_BYTES);
	open_disk(c);
	storm_read_all(&c->s);
	close_disk(c);
	finish(c);
}
END_TEST

/* Everything at once, against the shadow; what is kept is kept. */
START_TEST(test_storm)
{
	static const uint64_t rings[] = {0, F_EVENT | F_INDIRECT, F_PACKED | F_EVENT | F_INDIRECT};
	uint64_t features = ~(F_PACKED | F_EVENT | F_INDIRECT) | rings[_i / 2 % 3];
	/* The base may be smaller than the disk, and end in the middle of a cluster. */
	struct cow *c = make(_i % 3 ? "/tmp" : "/dev/shm", _i % 2, DISK_BYTES);

	c->s.rng += (unsigned)_i * 2;
	if (_i >= 6)
		features &= ~FEATURE(VIRTIO_BLK_F_FLUSH);
	for (unsigned round = 0; round < 3; round++) {
		bench_init_path(&c->s.b, false);
		bench_start(&c->s.b, features);
		storm_round(&c->s, _i >= 6 ? 300 : 2000);
		close_disk(c);
		if (_i % 2)
			ask_qemu(c);
		else
			memcpy(c->s.shadow, c->base, DISK_BYTES);
	}
	finish(c);
}
END_TEST

/* Resets with requests in flight; what they had claimed is free again, and nobody waits for ever.
 */
START_TEST(test_reset_in_flight)
{
	struct cow *c = make("/tmp", _i, DISK_BYTES);
	struct storm *s = &c->s;

	bench_init_path(&s->b, false);
	for (unsigned round = 0; round < 40; round++) {
		bench_start(&s->b, UINT64_MAX & ~(round % 2 ? F_PACKED : 0));
		for (unsigned i = 0; i < N_SLOTS; i++)
			storm_start(s, i);
		for (unsigned q = 0; q < N_QUEUES; q++)
			drv_kick(&s->b.dev.queue[q]);
		if (round % 3 == 2)
			usleep(round * 30);
		drv_reset(&s->b.dev);
		ck_assert_int_eq(fake_dma_n_mapped(&s->b.m.ram), 0);
		memset(s->slots, 0, sizeof(s->slots));
		s->n_busy = 0;
	}
	bench_start(&s->b, UINT64_MAX);
	/* Every cluster can be written, in parts. */
	for (uint64_t at = 0; at < DISK_BYTES / 512; at += 64) {
		put(c, (uint8_t)at, at + 3, 61);
		put(c, (uint8_t)at + 1, at, 3);
	}
	storm_read_all(&c->s);
	close_disk(c);
	if (_i)
		ask_qemu(c);
	finish(c);
}
END_TEST

/*
 * More parts of clusters at once than there are buffers to fill them up. The first writes have all
 * buffers, and go on to clusters that the others have claimed, which wait for a buffer.
 */
START_TEST(test_buffers)
{
	struct cow *c = make("/dev/shm", _i, DISK_BYTES);
	struct bench *b = &c->s.b;
	uint32_t written;
	void *cookie;

	open_disk(c);
	for (unsigned i = 0; i < 32; i++) {
		uint64_t gpa = b->arena + i * 4096, cluster = i % 16 * 2 + i / 16;
		uint64_t sector = cluster * 8 + (i < 16 ? 6 : 5);
		uint32_t len = (i < 16 ? 4 : 2) * 512;
		struct virtio_blk_outhdr header = {.type = VIRTIO_BLK_T_OUT, .sector = sector};
		struct fake_seg segs[3] = {
			{.gpa = gpa, .len = 16},
			{.gpa = gpa + 64, .len = len},
			{.gpa = gpa + 32, .len = 1, .in = true},
		};

		memcpy(drv_at(&b->m, gpa), &header, sizeof(header));
		memset(drv_at(&b->m, gpa + 64), (int)(i + 1), len);
		memset(c->s.shadow + sector * 512, (int)(i + 1), len);
		*(uint8_t *)drv_at(&b->m, gpa + 32) = 0xee;
		ck_assert(drv_add(&b->dev.queue[0], segs, 3, false, b));
	}
	drv_kick(&b->dev.queue[0]);
	for (unsigned i = 0; i < 32; i++)
		ck_assert(drv_wait(&b->dev.queue[0], &cookie, &written, TIMEOUT_MS));
	for (unsigned i = 0; i < 32; i++)
		ck_assert_uint_eq(
			*(uint8_t *)drv_at(&b->m, b->arena + i * 4096 + 32), VIRTIO_BLK_S_OK);
	storm_read_all(&c->s);
	close_disk(c);
	finish(c);
}
END_TEST

static void expect(struct cow *c, int rc, const char *text)
{
	struct mb_error err = {""};

	drv_machine_init(&c->s.b.m, 1u << 20);
	for (unsigned i = 0; i < N_QUEUES; i++)
		ck_assert_int_eq(mb_loop_create(&c->s.b.loops[i], &err), 0);
	ck_assert_int_eq(blk_try_create(&c->s.b, false, &err), rc);
	ck_assert_msg(strstr(err.text, text) != NULL, "'%s' is not in '%s'", text, err.text);
	ck_assert_ptr_null(strchr(err.text, '\n'));
	for (unsigned i = 0; i < N_QUEUES; i++)
		mb_loop_destroy(c->s.b.loops[i]);
	drv_machine_finish(&c->s.b.m);
}

/* A base that changes under a running disk is an I/O error, not something else. */
START_TEST(test_base_changes)
{
	struct cow *c = make("/tmp", _i % 2, DISK_BYTES);
	struct bench *b = &c->s.b;

	open_disk(c);
	put(c, 1, 0, 8);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 64, 4096), VIRTIO_BLK_S_OK);
	if (_i / 2)
		ck_assert_int_eq(truncate(b->path, 32 << 10), 0);
	else
		write_base(c);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 8, 4096), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 1024, 4096), VIRTIO_BLK_S_IOERR);
	/* To write a part of a cluster the rest of it is needed. */
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 1025, 512), VIRTIO_BLK_S_IOERR);
	/* What is not the base's is as good as it was. */
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 1, 4096));
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 2048, 4096), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	close_disk(c);
	if (_i / 2)
		write_base(c);
	if (_i % 2)
		expect(c, -ESTALE, "was changed since it was made");
	finish(c);
}
END_TEST

START_TEST(test_refused)
{
	struct cow *c = make("/tmp", true, DISK_BYTES);
	char cmd[300];
	int fd;

	/* Not the file of an overlay. */
	fd = open(c->overlay, O_WRONLY | O_CREAT, 0600);
	ck_assert_int_eq(write(fd, "hello", 5), 5);
	close(fd);
	expect(c, -EINVAL, "is no qcow2 file");
	unlink(c->overlay);
	ck_assert_int_eq(mkdir(c->overlay, 0700), 0);
	expect(c, -EISDIR, "Is a directory");
	rmdir(c->overlay);
	/* A base that is no raw disk: nothing is made. */
	fd = open(c->s.b.path, O_WRONLY);
	ck_assert_int_eq(pwrite(fd, "QFI\xfb", 4, 0), 4);
	close(fd);
	expect(c, -EINVAL, "is a qcow2 file");
	ck_assert_int_eq(access(c->overlay, F_OK), -1);
	write_base(c);
	/* In use: the base by who writes it, the overlay by another machine. */
	fd = open(c->s.b.path, O_RDWR);
	ck_assert_int_eq(fcntl(fd, F_OFD_SETLK, &(struct flock){.l_type = F_WRLCK}), 0);
	expect(c, -EBUSY, "in use by another machine");
	close(fd);
	open_disk(c);
	put(c, 1, 1, 1);
	{
		struct bench other = {.overlay = c->overlay};
		struct mb_error err;

		strcpy(other.path, c->s.b.path);
		drv_machine_init(&other.m, 1u << 20);
		ck_assert_int_eq(blk_try_create(&other, false, &err), -EBUSY);
		ck_assert_ptr_nonnull(strstr(err.text, ".qcow2: in use by another machine"));
		drv_machine_finish(&other.m);
	}
	close_disk(c);
	if (have_qemu_img()) {
		qemu_makes(c, "", "-F raw -o cluster_size=2M", "4M");
		expect(c, -EINVAL, "clusters of less than 4 or more than 64 KiB");
		qemu_makes(c, "", "-F raw -o compat=0.10", "4M");
		expect(c, -EINVAL, "version 2");
		qemu_makes(c, "", "-F qcow2 -u", "4M");
		expect(c, -EINVAL, "its base is of the format qcow2");
		qemu_makes(c, ".other", "-F raw -u", "4M");
		expect(c, -EINVAL, "as its base, and not");
		qemu_makes(c, "", "-F raw -u", "2M");
		expect(c, -EINVAL, "is for a base of 2097152 bytes");
		sprintf(cmd, "qemu-img create -q -f qcow2 %s 4M", c->overlay);
		ck_assert_int_eq(system(cmd), 0);
		expect(c, -EINVAL, "without a base");
	}
	finish(c);
}
END_TEST

/* Overlays that QEMU made, with data in them, its own size of clusters, and a disk that is larger
 * than its base. */
START_TEST(test_made_by_qemu)
{
	struct cow *c = make("/tmp", true, (2 << 20) + 512 * 3);
	char cmd[400];

	if (!have_qemu_img()) {
		skip("no qemu-img");
		finish(c);
		return;
	}
	memset(c->s.shadow + c->base_bytes, 0, DISK_BYTES - c->base_bytes);
	qemu_makes(c, "", _i ? "-F raw -o cluster_size=64k" : "-F raw -o cluster_size=8k", "4M");
	sprintf(cmd,
		"qemu-io -f qcow2 -c 'write -P 0x31 0 8k' -c 'write -P 0x32 1M 200k' -c 'write -z "
		"128k 64k' "
		"-c 'write -P 0x33 3M 512' %s >/dev/null",
		c->overlay);
	ck_assert_int_eq(system(cmd), 0);
	memset(c->s.shadow, 0x31, 8 << 10);
	memset(c->s.shadow + (1 << 20), 0x32, 200 << 10);
	memset(c->s.shadow + (128 << 10), 0, 64 << 10);
	memset(c->s.shadow + (3 << 20), 0x33, 512);
	ask_qemu(c);
	open_disk(c);
	storm_read_all(&c->s);
	storm_round(&c->s, 1500);
	close_disk(c);
	ask_qemu(c);
	open_disk(c);
	storm_read_all(&c->s);
	storm_round(&c->s, 1500);
	close_disk(c);
	ask_qemu(c);
	/* Since the first use it is known how the base was. */
	write_base(c);
	expect(c, -ESTALE, "was changed since it was made");
	finish(c);
}
END_TEST

/* A full file system: errors for the guest, and what was there stays good. */
START_TEST(test_no_space)
{
	struct cow *c = make("/tmp", true, DISK_BYTES);
	struct bench *b = &c->s.b;
	char dir[] = "/tmp/mb-cow-XXXXXX";
	bool failed[DISK_BYTES / 512 / SECTORS_64K] = {false};
	unsigned n_failed = 0;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	if (mount("none", dir, "tmpfs", 0, "size=1M")) {
		skip("no mounts");
		rmdir(dir);
		finish(c);
		return;
	}
	sprintf(c->overlay, "%s/o.qcow2", dir);
	open_disk(c);
	for (uint64_t at = 0; at < DISK_BYTES / 512; at += SECTORS_64K) {
		blk_fill(b, 0x55, 64 << 10);
		if (blk_request(b, VIRTIO_BLK_T_OUT, at, 64 << 10) == VIRTIO_BLK_S_OK)
			continue;
		failed[at / SECTORS_64K] = true;
		n_failed++;
	}
	ck_assert_uint_gt(n_failed, 40);
	ck_assert_uint_lt(n_failed, 56);
	/* What succeeded can be made durable, and is there when there is room again. */
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	close_disk(c);
	ck_assert_int_eq(mount("none", dir, NULL, MS_REMOUNT, "size=16M"), 0);
	open_disk(c);
	for (uint64_t at = 0; at < DISK_BYTES / 512; at += SECTORS_64K) {
		if (!failed[at / SECTORS_64K]) {
			ck_assert_uint_eq(
				blk_request(b, VIRTIO_BLK_T_IN, at, 64 << 10), VIRTIO_BLK_S_OK);
			ck_assert(blk_all_are(b, 0x55, 64 << 10));
		}
		put(c, 0x56, at, SECTORS_64K);
	}
	storm_read_all(&c->s);
	close_disk(c);
	ask_qemu(c);
	ck_assert_int_eq(umount2(dir, MNT_DETACH), 0);
	*c->overlay = 0;
	rmdir(dir);
	finish(c);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("blk_cow");
	TCase *tc = tcase_create("blk_cow");

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, test_write_read, 0, 4);
	tcase_add_loop_test(tc, test_storm, 0, 8);
	tcase_add_loop_test(tc, test_reset_in_flight, 0, 2);
	tcase_add_loop_test(tc, test_buffers, 0, 2);
	tcase_add_loop_test(tc, test_base_changes, 0, 4);
	tcase_add_test(tc, test_refused);
	tcase_add_loop_test(tc, test_made_by_qemu, 0, 2);
	tcase_add_test(tc, test_no_space);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
