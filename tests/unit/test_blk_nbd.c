// SPDX-License-Identifier: Apache-2.0
#include "nbd_fixture.h"
#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* The block device over real NBD servers, also ones that are slow or wrong; those that go away:
 * test_blk_nbd_lost.c. */

static void refused(struct nbd *n, bool ro, int rc, const char *text)
{
	struct mb_error err = {""};
	struct bench *b = &n->s.b;

	ck_assert_int_eq(blk_try_create(b, ro, &err), rc);
	ck_assert_msg(strstr(err.text, text) != NULL, "'%s' is not in '%s'", text, err.text);
	ck_assert_int_eq(strncmp(err.text, "disk nbd", 8), 0);
	ck_assert_ptr_null(strchr(err.text, '\n'));
}

START_TEST(test_uris)
{
	static const char *const yes[] = {"nbd://host", "nbds://host:1/x", "nbd+unix:///?socket=s",
		"nbds+unix:///e?socket=/s", "nbd+vsock://2"};
	static const char *const no[] = {"nbd", "nbd:host", "nbd:/host", "a/nbd://x", "./nbd://x",
		"http://x", "nbd.img", "nbd x://", "", "NBD://x"};

	for (unsigned i = 0; i < sizeof(yes) / sizeof(yes[0]); i++)
		ck_assert_msg(mb_blk_is_uri(yes[i]), "%s", yes[i]);
	for (unsigned i = 0; i < sizeof(no) / sizeof(no[0]); i++)
		ck_assert_msg(!mb_blk_is_uri(no[i]), "%s", no[i]);
}
END_TEST

static void get_id(struct bench *b, char id[21])
{
	blk_fill(b, 0, 64);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_GET_ID, 0, 20), VIRTIO_BLK_S_OK);
	memcpy(id, drv_at(&b->m, GPA_DATA(b)), 20);
	id[20] = 0;
}

START_TEST(test_config)
{
	static const char *const commands[] = {
		MEMORY "memory 4M",
		MEMORY "--filter=multi-conn memory 4M multi-conn-mode=disable",
		MEMORY "--filter=nozero --filter=blocksize-policy memory 4M zeromode=none "
		       "blocksize-minimum=4096 blocksize-preferred=65536 blocksize-maximum=1M",
	};
	struct nbd *n = make(commands[_i]);
	struct virtio_blk_config cfg;
	uint64_t offered;
	char id[21];

	if (!n)
		return;
	/* The name of an export is what the disk is called. */
	snprintf(n->server.uri, sizeof(n->server.uri), "nbd+unix:///dir/export?socket=%s",
		n->server.socket);
	bench_init_path(&n->s.b, false);
	offered = drv_offered(&n->s.b.dev);
	ck_assert(!(offered & FEATURE(VIRTIO_BLK_F_RO)));
	ck_assert(offered & FEATURE(VIRTIO_BLK_F_FLUSH));
	ck_assert(offered & FEATURE(VIRTIO_BLK_F_DISCARD));
	ck_assert(offered & FEATURE(VIRTIO_BLK_F_WRITE_ZEROES));
	ck_assert_int_eq(!!(offered & FEATURE(VIRTIO_BLK_F_MQ)), _i != 1);
	drv_config_read(&n->s.b.dev, 0, &cfg, sizeof(cfg));
	ck_assert_uint_eq(cfg.capacity, DISK_BYTES / 512);
	ck_assert_uint_eq(cfg.num_queues, _i == 1 ? 1 : N_QUEUES);
	ck_assert_uint_eq(cfg.blk_size, _i == 2 ? 4096 : 512);
	ck_assert_uint_eq(cfg.wce, 1);
	if (_i == 2)
		ck_assert_uint_eq(cfg.physical_block_exp, 4);
	ck_assert_uint_eq(mb_blk_bytes(n->s.b.blk), DISK_BYTES);
	bench_start(&n->s.b, UINT64_MAX);
	get_id(&n->s.b, id);
	ck_assert_str_eq(id, "export");
	finish(n);
}
END_TEST

/* What the server was asked for is what the guest wanted, and no more than that. */
START_TEST(test_requests)
{
	struct nbd *n = make_disk(LOGGED, UINT64_MAX);
	struct fake_seg segs[70];
	uint32_t written;
	struct bench *b;
	char id[21];

	if (!n)
		return;
	b = &n->s.b;
	get_id(b, id);
	ck_assert_str_eq(id, "s");
	/* 1 MiB in one piece, and in pieces: one operation each. */
	blk_fill(b, 0x5a, 1 << 20);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 8, 1 << 20), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", "Write", "count=0x100000 "), 1);
	blk_set_header(b, VIRTIO_BLK_T_IN, 8);
	segs[0] = (struct fake_seg){.gpa = GPA_HEADER(b), .len = 16};
	for (unsigned i = 0; i < 32; i++)
		segs[1 + i] = (struct fake_seg){.gpa = GPA_DATA(b) + (2u << 20) + i * (64u << 10),
			.len = 32 << 10,
			.in = true};
	segs[33] = (struct fake_seg){.gpa = GPA_STATUS(b), .len = 1, .in = true};
	ck_assert_uint_eq(blk_run(b, segs, 34, GPA_STATUS(b), &written), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(written, (1 << 20) + 1);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", "Read", "count=0x100000 "), 1);
	for (unsigned i = 0; i < 32; i++)
		for (unsigned k = 0; k < 32 << 10; k += 511)
			ck_assert_uint_eq(((uint8_t *)drv_at(&b->m, segs[1 + i].gpa))[k], 0x5a);

	usleep(2500000); /* idle: the memory that was needed for that is given back */
	ck_assert_uint_eq(blk_run(b, segs, 34, GPA_STATUS(b), &written), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(*(uint8_t *)drv_at(&b->m, segs[32].gpa), 0x5a);

	ck_assert_uint_eq(nbd_server_count(&n->server, "log", " Flush id", ""), 0);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", " Flush id", ""), 1);
	ck_assert_uint_eq(blk_range_request(b, VIRTIO_BLK_T_DISCARD, 8, 16, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", "Trim id", "count=0x2000 "), 1);
	ck_assert_uint_eq(
		blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 24, 16, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", "Zero id", "trim=0"), 1);
	ck_assert_uint_eq(
		blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 40, 16, 1), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", "Zero id", "trim=1"), 1);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 24, 16 << 10), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 0, 16 << 10));
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 56, 16 << 10), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 0x5a, 16 << 10));

	/* Beyond the end, and half a sector: nobody asks the server. */
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 8192, 512), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 0, 100), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(
		blk_range_request(b, VIRTIO_BLK_T_DISCARD, 8192, 1, 0), VIRTIO_BLK_S_IOERR);

	/* Write-through. */
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", "Write", "fua=1"), 0);
	bench_start(b, UINT64_MAX & ~FEATURE(VIRTIO_BLK_F_FLUSH));
	blk_fill(b, 0x11, 4096);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 8, 4096), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", "Write", "fua=1"), 1);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", " Flush id", ""), 1);
	ck_assert_uint_eq(
		blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 24, 16, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", " Flush id", ""), 2);
	finish(n);
}
END_TEST

/* More in pieces at once than there are buffers for, and one that is larger than a buffer. */
START_TEST(test_bounces)
{
	struct nbd *n =
		make_disk(MEMORY "--filter=delay memory 4M rdelay=30ms wdelay=30ms", UINT64_MAX);
	const uint32_t half = 768u << 10;
	struct virtio_blk_outhdr *header;
	struct fake_seg segs[4];
	struct bench *b;
	uint32_t written;
	void *cookie;

	if (!n)
		return;
	b = &n->s.b;
	blk_fill(b, 0xee, 4u << 20);
	for (unsigned i = 0; i < 30; i++) {
		uint64_t base = b->arena + i * 16384ull;

		header = drv_at(&b->m, base);
		*header = (struct virtio_blk_outhdr){.type = VIRTIO_BLK_T_OUT, .sector = i * 2};
		memset(drv_at(&b->m, base + 4096), (int)i, 512);
		memset(drv_at(&b->m, base + 8192), (int)i + 100, 512);
		segs[0] = (struct fake_seg){.gpa = base, .len = 16};
		segs[1] = (struct fake_seg){.gpa = base + 4096, .len = 512};
		segs[2] = (struct fake_seg){.gpa = base + 8192, .len = 512};
		segs[3] = (struct fake_seg){.gpa = base + 64, .len = 1, .in = true};
		ck_assert(drv_add(&b->dev.queue[0], segs, 4, false, drv_at(&b->m, base + 64)));
	}
	drv_kick(&b->dev.queue[0]);
	for (unsigned i = 0; i < 30; i++) {
		ck_assert(drv_wait(&b->dev.queue[0], &cookie, &written, TIMEOUT_MS));
		ck_assert_uint_eq(*(uint8_t *)cookie, VIRTIO_BLK_S_OK);
	}
	blk_fill(b, 0xee, 4u << 20);
	blk_set_header(b, VIRTIO_BLK_T_IN, 0);
	segs[0] = (struct fake_seg){.gpa = GPA_HEADER(b), .len = 16};
	segs[1] = (struct fake_seg){.gpa = GPA_DATA(b), .len = half, .in = true};
	segs[2] = (struct fake_seg){.gpa = GPA_DATA(b) + 2 * half, .len = half, .in = true};
	segs[3] = (struct fake_seg){.gpa = GPA_STATUS(b), .len = 1, .in = true};
	ck_assert_uint_eq(blk_run(b, segs, 4, GPA_STATUS(b), &written), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(written, 2 * half + 1);
	for (unsigned i = 0; i < 30; i++) {
		const uint8_t *at = drv_at(&b->m, GPA_DATA(b) + i * 1024);

		ck_assert_uint_eq(at[0], i);
		ck_assert_uint_eq(at[511], i);
		ck_assert_uint_eq(at[512], i + 100);
		ck_assert_uint_eq(at[1023], i + 100);
	}
	ck_assert_uint_eq(*(uint8_t *)drv_at(&b->m, GPA_DATA(b) + half), 0xee);
	ck_assert_uint_eq(*(uint8_t *)drv_at(&b->m, GPA_DATA(b) + 3 * half - 1), 0);
	finish(n);
}
END_TEST

/* Write-through with a server that only knows flushes. */
START_TEST(test_no_fua)
{
	struct nbd *n = make_disk(MEMORY "--filter=log --filter=fua memory 4M logfile=%d/log",
		UINT64_MAX & ~FEATURE(VIRTIO_BLK_F_FLUSH));

	if (!n)
		return;
	for (unsigned i = 1; i < 4; i++) {
		ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 8, 4096), VIRTIO_BLK_S_OK);
		ck_assert_uint_eq(nbd_server_count(&n->server, "log", " Flush id", ""), i);
	}
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", "Write", "fua=1"), 0);
	finish(n);
}
END_TEST

/* A server that can neither trim nor zero. */
START_TEST(test_no_zero)
{
	struct nbd *n = make_disk(MEMORY "--filter=nozero --filter=log memory 4M zeromode=none "
					 "logfile=%d/log",
		UINT64_MAX);
	struct bench *b;

	if (!n)
		return;
	b = &n->s.b;
	blk_fill(b, 0x77, 1 << 20);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 0, 1 << 20), VIRTIO_BLK_S_OK);
	for (unsigned unmap = 0; unmap < 2; unmap++) {
		ck_assert_uint_eq(
			blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 8 + 16 * unmap, 16, unmap),
			VIRTIO_BLK_S_OK);
		ck_assert_uint_eq(
			blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 2048, 6144, unmap),
			VIRTIO_BLK_S_OK);
	}
	ck_assert_uint_eq(nbd_server_count(&n->server, "log", " Zero id", ""), 0);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 8, 16 << 10), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 0, 16 << 10));
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 40, 16 << 10), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 0x77, 16 << 10));
	finish(n);
}
END_TEST

START_TEST(test_readonly)
{
	struct nbd *n = make(MEMORY "-r memory 4M");
	struct bench *b;

	if (!n)
		return;
	b = &n->s.b;
	bench_init_path(b, true);
	ck_assert(drv_offered(&b->dev) & FEATURE(VIRTIO_BLK_F_RO));
	bench_start(b, UINT64_MAX);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 0, 512));
	mb_blk_destroy(b->blk);
	b->blk = NULL;
	refused(n, false, -EROFS, "read-only; open it with ,ro");
	b->blk = NULL;
	b->overlay = "/tmp/none.qcow2";
	refused(n, false, -EINVAL, "overlay= needs a file");
	b->overlay = NULL;
	b->blk = NULL;
	finish(n);
}
END_TEST

START_TEST(test_block_size)
{
	struct nbd *n = make_disk(MEMORY "--filter=blocksize-policy memory 4M "
					 "blocksize-minimum=4096 blocksize-maximum=64K "
					 "blocksize-error-policy=error",
		UINT64_MAX);
	struct bench *b;

	if (!n)
		return;
	b = &n->s.b;
	/* More than it takes at once. */
	blk_fill(b, 0x31, 1 << 20);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 8, 1 << 20), VIRTIO_BLK_S_OK);
	blk_fill(b, 0, 1 << 20);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 8, 1 << 20), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 0x31, 1 << 20));
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 1, 4096), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 8, 512), VIRTIO_BLK_S_IOERR);
	/* A discard is a hint, zeroes are not. */
	ck_assert_uint_eq(blk_range_request(b, VIRTIO_BLK_T_DISCARD, 1, 8, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(
		blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 1, 8, 0), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(
		blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 8, 2040, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 8, 4096), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 0, 4096));
	finish(n);
}
END_TEST

START_TEST(test_bad_servers)
{
	static const struct {
		const char *command, *text;
		int rc;
	} bad[] = {
		{MEMORY "memory 1000", "size 1000 is not a multiple of 512", -EINVAL},
		{MEMORY "memory 0", "empty", -EINVAL},
		{MEMORY "--filter=blocksize-policy memory 4M blocksize-minimum=8192 "
			"blocksize-preferred=8192",
			"blocks of 8192 bytes only", -EINVAL},
		{MEMORY "--filter=exportname memory 4M exportname=x exportname-strict=true",
			"has it this export", -ENOTCONN},
	};
	struct nbd *n = make(bad[_i].command);

	if (!n)
		return;
	bench_init(&n->s.b, "/dev/shm", 1 << 20); /* for a machine */
	mb_blk_destroy(n->s.b.blk);
	unlink(n->s.b.path);
	n->s.b.uri = n->server.uri;
	refused(n, false, bad[_i].rc, bad[_i].text);
	n->s.b.blk = NULL;
	finish(n);
}
END_TEST

/* Nobody there; somebody who says nothing; somebody who says something else. */
START_TEST(test_no_server)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct nbd *n = calloc(1, sizeof(*n));
	int fd = socket(AF_UNIX, SOCK_STREAM, 0), peer;
	struct timespec begin, end;

	signal(SIGPIPE, SIG_IGN);
	nbd_server_init(&n->server);
	bench_init(&n->s.b, "/dev/shm", 1 << 20);
	mb_blk_destroy(n->s.b.blk);
	unlink(n->s.b.path);
	n->s.b.uri = n->server.uri;
	refused(n, false, -ENOTCONN, "does the server run");
	n->s.b.uri = "nbd+unix:///";
	refused(n, false, -ENOTCONN, "cannot connect");
	n->s.b.uri = "nbd://[::1";
	refused(n, false, -ENOTCONN, "cannot connect");
	n->s.b.uri = "nbd+none://x";
	refused(n, false, -ENOTCONN, "cannot connect");

	n->s.b.uri = n->server.uri;
	strcpy(sa.sun_path, n->server.socket);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	ck_assert_int_eq(listen(fd, 8), 0);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	refused(n, false, -ETIMEDOUT, "no answer");
	clock_gettime(CLOCK_MONOTONIC, &end);
	ck_assert_int_lt(end.tv_sec - begin.tv_sec, 20);

	peer = accept(fd, NULL, NULL);
	close(peer);
	if (!fork()) {
		static const char hello[] = "220 this is not what you look for, is it\r\n";

		peer = accept(fd, NULL, NULL);
		for (unsigned i = 0; i < 1000; i++)
			if (write(peer, hello, sizeof(hello)) < 0)
				break;
		usleep(100000);
		_exit(0);
	}
	refused(n, false, -ENOTCONN, "cannot connect");
	close(fd);
	n->s.b.blk = NULL;
	finish(n);
}
END_TEST

/* ---- many at a time ---- */

static void make_key(struct nbd *n)
{
	char path[100];
	FILE *f;

	snprintf(path, sizeof(path), "%s/psk", n->server.dir);
	f = fopen(path, "w");
	fputs("alice:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n", f);
	fclose(f);
	snprintf(n->server.uri, sizeof(n->server.uri),
		"nbds+unix://alice@/?socket=%s&tls-psk-file=%s", n->server.socket, path);
}

START_TEST(test_storm)
{
	static const uint64_t rings[] = {0, F_EVENT | F_INDIRECT, F_PACKED | F_EVENT | F_INDIRECT};
	static const char *const commands[] = {
		MEMORY "memory 4M",
		MEMORY "--filter=multi-conn memory 4M multi-conn-mode=disable",
		"qemu-nbd -t -f raw -e 8 -k %s %d/disk",
		MEMORY "--tls=require --tls-psk=%d/psk memory 4M",
		MEMORY "--filter=delay memory 4M rdelay=1ms wdelay=2ms",
		MEMORY "--filter=noparallel --filter=nozero memory 4M zeromode=none",
		MEMORY "file %d/disk",
		MEMORY "--filter=blocksize-policy memory 4M blocksize-minimum=512 "
		       "blocksize-maximum=16K blocksize-error-policy=error",
	};
	uint64_t features = ~(F_PACKED | F_EVENT | F_INDIRECT) | rings[_i % 3];
	const char *command = commands[_i % 8];
	char program[16];
	struct nbd *n;

	snprintf(program, sizeof(program), "%.*s", (int)strcspn(command, " "), command);
	if (!nbd_server_have(program))
		return;
	signal(SIGPIPE, SIG_IGN);
	n = calloc(1, sizeof(*n));
	set_seed(&n->s);
	nbd_server_init(&n->server);
	make_file(n, "disk", DISK_BYTES);
	if (strstr(command, "tls"))
		make_key(n);
	nbd_server_start(&n->server, command);
	n->s.b.uri = n->server.uri;
	bench_init_path(&n->s.b, false);
	if (_i >= 8) /* write-through */
		features &= ~FEATURE(VIRTIO_BLK_F_FLUSH);
	bench_start(&n->s.b, features);
	n->s.gaps = true;
	storm_round(&n->s, _i >= 8 ? 400 : 2000);
	storm_read_all(&n->s);
	if (strstr(command, "disk")) {
		uint8_t *file = malloc(DISK_BYTES);
		char path[100];
		int fd;

		ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
		snprintf(path, sizeof(path), "%s/disk", n->server.dir);
		fd = open(path, O_RDONLY);
		ck_assert_int_eq(read(fd, file, DISK_BYTES), DISK_BYTES);
		ck_assert_int_eq(memcmp(file, n->s.shadow, DISK_BYTES), 0);
		close(fd);
		free(file);
	}
	finish(n);
}
END_TEST

/* The base is what a server has, changes are in a file. */
START_TEST(test_cow)
{
	static const char *const commands[] = {
		MEMORY "-r file %d/disk",
		MEMORY "-r --filter=multi-conn --filter=delay file %d/disk rdelay=1ms "
		       "multi-conn-mode=disable",
	};
	struct nbd *n;
	char path[100];
	uint8_t *file;
	int fd;

	if (!nbd_server_have("nbdkit"))
		return;
	signal(SIGPIPE, SIG_IGN);
	n = calloc(1, sizeof(*n));
	set_seed(&n->s);
	nbd_server_init(&n->server);
	for (uint64_t i = 0; i < DISK_BYTES; i++)
		n->s.shadow[i] = (uint8_t)(i / 512 * 11 + i % 251);
	snprintf(path, sizeof(path), "%s/disk", n->server.dir);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	ck_assert_int_eq(write(fd, n->s.shadow, DISK_BYTES), DISK_BYTES);
	file = malloc(DISK_BYTES);
	memcpy(file, n->s.shadow, DISK_BYTES);
	nbd_server_start(&n->server, commands[_i]);
	n->s.b.uri = n->server.uri;
	n->s.b.cow = true;
	bench_init_path(&n->s.b, false);
	bench_start(&n->s.b, UINT64_MAX);
	storm_read_all(&n->s);
	n->s.gaps = true;
	storm_round(&n->s, 1500);
	storm_read_all(&n->s);
	/* Nothing of it is the server's. */
	ck_assert_int_eq(pread(fd, n->s.shadow, DISK_BYTES, 0), DISK_BYTES);
	ck_assert_int_eq(memcmp(file, n->s.shadow, DISK_BYTES), 0);

	/* Without the server its part is gone, and flushes are none of its business. */
	blk_fill(&n->s.b, 0x42, 4096);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 8, 4096), VIRTIO_BLK_S_OK);
	nbd_server_kill(&n->server);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_IN, 8, 4096), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(&n->s.b, 0x42, 4096));
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	for (unsigned i = 0; i < N_SLOTS; i++)
		storm_start(&n->s, i);
	for (unsigned q = 0; q < n->s.b.n_queues; q++)
		drv_kick(&n->s.b.dev.queue[q]);
	drv_reset(&n->s.b.dev);
	ck_assert_int_eq(fake_dma_n_mapped(&n->s.b.m.ram), 0);
	free(file);
	close(fd);
	finish(n);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("blk_nbd");
	TCase *plain = tcase_create("plain"), *many = tcase_create("many");

	tcase_set_timeout(plain, 60);
	tcase_add_test(plain, test_uris);
	tcase_add_loop_test(plain, test_config, 0, 3);
	tcase_add_test(plain, test_requests);
	tcase_add_test(plain, test_bounces);
	tcase_add_test(plain, test_no_fua);
	tcase_add_test(plain, test_no_zero);
	tcase_add_test(plain, test_readonly);
	tcase_add_test(plain, test_block_size);
	tcase_add_loop_test(plain, test_bad_servers, 0, 4);
	tcase_add_test(plain, test_no_server);
	suite_add_tcase(s, plain);
	tcase_set_timeout(many, 120);
	tcase_add_loop_test(many, test_storm, 0, 16);
	tcase_add_loop_test(many, test_cow, 0, 2);
	suite_add_tcase(s, many);
	return s;
}

int main(void)
{
	static const char *const cases[] = {"plain", "many", NULL};

	return run_side_by_side(suite, cases);
}
