// SPDX-License-Identifier: Apache-2.0
#include "nbd_fixture.h"

/* The block device over real NBD servers that fail, hang, or go away with what was in flight. */

/* Everything that is in flight ends, whatever its status. */
static void end_all(struct nbd *n, bool *ok, bool *bad)
{
	struct storm *s = &n->s;

	for (unsigned q = 0; q < s->b.n_queues; q++)
		drv_kick(&s->b.dev.queue[q]);
	for (unsigned q = 0; q < s->b.n_queues; q++) {
		for (;;) {
			struct slot *slot;
			uint32_t written;
			void *cookie;
			bool mine = false;

			for (unsigned i = q; i < N_SLOTS; i += s->b.n_queues)
				mine |= s->slots[i].busy;
			if (!mine)
				break;
			ck_assert(drv_wait(&s->b.dev.queue[q], &cookie, &written, TIMEOUT_MS));
			slot = cookie;
			ck_assert(slot->busy);
			slot->busy = false;
			s->n_busy--;
			if (*(uint8_t *)drv_at(&s->b.m, slot->status) == VIRTIO_BLK_S_OK) {
				*ok = true;
			} else {
				ck_assert_uint_eq(*(uint8_t *)drv_at(&s->b.m, slot->status),
					VIRTIO_BLK_S_IOERR);
				*bad = true;
			}
		}
	}
	ck_assert_uint_eq(s->n_busy, 0);
}

static void start_all(struct nbd *n)
{
	for (unsigned i = 0; i < N_SLOTS; i++)
		storm_start(&n->s, i);
	for (unsigned q = 0; q < n->s.b.n_queues; q++)
		drv_kick(&n->s.b.dev.queue[q]);
}

static void wait_until_back(struct nbd *n)
{
	struct timespec begin, now;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	while (blk_request(&n->s.b, VIRTIO_BLK_T_IN, 0, 512) != VIRTIO_BLK_S_OK) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		ck_assert_int_lt(now.tv_sec - begin.tv_sec, 20);
		usleep(20000);
	}
}

/* An error of the server's is one of the guest's, and no more than that. */
START_TEST(test_errors)
{
	struct nbd *n = make_disk(_i ? MEMORY "--filter=error memory 4M error=ENOSPC error-rate=30%"
				     : MEMORY "--filter=error memory 4M error=EIO "
					      "error-rate=100% error-file=%d/bad",
		UINT64_MAX);
	bool ok = false, bad = false;
	char path[100];

	if (!n)
		return;
	if (_i) {
		for (unsigned round = 0; round < 20; round++) {
			start_all(n);
			end_all(n, &ok, &bad);
		}
		ck_assert(ok && bad);
	} else {
		snprintf(path, sizeof(path), "%s/bad", n->server.dir);
		blk_fill(&n->s.b, 0x33, 4096);
		ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_OK);
		close(open(path, O_CREAT | O_WRONLY, 0600));
		ck_assert_uint_eq(
			blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_IOERR);
		ck_assert_uint_eq(
			blk_request(&n->s.b, VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_IOERR);
		ck_assert_uint_eq(blk_range_request(&n->s.b, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0),
			VIRTIO_BLK_S_IOERR);
		unlink(path);
		ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_IN, 0, 4096), VIRTIO_BLK_S_OK);
		ck_assert(blk_all_are(&n->s.b, 0x33, 4096));
	}
	finish(n);
}
END_TEST

/* A server that is killed, and comes back. */
START_TEST(test_killed)
{
	bool flushed = _i & 1, single = _i & 2, ok = false, bad = false;
	bool tcp = _i >= 6;
	const char *on = tcp ? "nbdkit -f -i 127.0.0.1 -p %p" : "nbdkit -f -U %s";
	char command[200], shorter[200], readonly[200];
	struct nbd *n;
	struct bench *b;

	if (!nbd_server_have("nbdkit"))
		return;
	signal(SIGPIPE, SIG_IGN);
	n = calloc(1, sizeof(*n));
	set_seed(&n->s);
	nbd_server_init(&n->server);
	make_file(n, "disk", DISK_BYTES);
	make_file(n, "short", DISK_BYTES / 2);
	snprintf(command, sizeof(command), "%s %s", on,
		single ? "--filter=multi-conn file %d/disk multi-conn-mode=disable"
		       : "file %d/disk");
	snprintf(shorter, sizeof(shorter), "%s file %%d/short", on);
	snprintf(readonly, sizeof(readonly), "%s -r file %%d/disk", on);
	if (tcp)
		nbd_server_use_tcp(&n->server);
	nbd_server_start(&n->server, command);
	b = &n->s.b;
	b->uri = n->server.uri;
	bench_init_path(b, false);
	bench_start(b, UINT64_MAX);
	blk_fill(b, 0x66, 8192);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 16, 8192), VIRTIO_BLK_S_OK);
	if (flushed)
		ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	nbd_server_kill(&n->server);
	usleep(_i >= 4 ? 0 : 50000);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 16, 8192), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 16, 8192), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(
		blk_range_request(b, VIRTIO_BLK_T_WRITE_ZEROES, 16, 8, 0), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_IOERR);
	start_all(n);
	end_all(n, &ok, &bad);
	ck_assert(!ok && bad);

	/* Somebody else in its place is not let in. */
	nbd_server_start(&n->server, shorter);
	usleep(1500000);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 16, 8192), VIRTIO_BLK_S_IOERR);
	nbd_server_kill(&n->server);
	nbd_server_start(&n->server, readonly);
	usleep(1500000);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 16, 8192), VIRTIO_BLK_S_IOERR);
	nbd_server_kill(&n->server);

	nbd_server_start(&n->server, command);
	wait_until_back(n);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_IN, 16, 8192), VIRTIO_BLK_S_OK);
	ck_assert(blk_all_are(b, 0x66, 8192));
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_OUT, 32, 4096), VIRTIO_BLK_S_OK);
	/* What was acknowledged and not flushed may be gone. */
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0),
		flushed ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR);
	boot_again(b);
	wait_until_back(n);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	finish(n);
}
END_TEST

/* Nobody looks after a device without a driver: what has become of the server is seen before the
 * next one's first request. */
START_TEST(test_killed_while_reset)
{
	struct nbd *n = make_disk(MEMORY "memory 4M", UINT64_MAX);

	if (!n)
		return;
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_IN, 16, 8192), VIRTIO_BLK_S_OK);
	drv_reset(&n->s.b.dev);
	nbd_server_kill(&n->server);
	nbd_server_start(&n->server, MEMORY "memory 4M");
	usleep(1000000);
	bench_start(&n->s.b, UINT64_MAX);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_IN, 16, 8192), VIRTIO_BLK_S_OK);
	/* The one who now drives it has written nothing. */
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	finish(n);
}
END_TEST

/* Of several connections one is cut: what goes on with the others. */
START_TEST(test_one_connection)
{
	struct nbd *n = make_qemu();
	bool ok = false, bad = false;

	if (!n)
		return;
	nbd_proxy_start(&n->server);
	bench_init_path(&n->s.b, false);
	bench_start(&n->s.b, UINT64_MAX);
	ck_assert_uint_eq(n->s.b.n_queues, N_QUEUES);
	for (unsigned round = 0; round < 4; round++) {
		storm_round(&n->s, 200);
		ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
		nbd_proxy_cut(&n->server);
		usleep(1500000);
	}
	/* With some in flight: those end, with errors or without. */
	for (unsigned round = 0; round < 4; round++) {
		start_all(n);
		nbd_proxy_cut(&n->server);
		end_all(n, &ok, &bad);
		usleep(1500000);
	}
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	boot_again(&n->s.b);
	/* On either: written, not flushed, cut. */
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 0, 512), VIRTIO_BLK_S_OK);
	nbd_proxy_cut(&n->server);
	usleep(1500000);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_OK);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_IOERR);
	finish(n);
}
END_TEST

/* A write to a queue that is not the first; its status. */
static uint8_t write_on(struct bench *b, unsigned queue)
{
	const uint64_t header = b->arena + 2048, status = header + 64;
	struct fake_seg seg[] = {{.gpa = header, .len = 16}, {.gpa = GPA_DATA(b), .len = 4096},
		{.gpa = status, .len = 1, .in = true}};
	uint32_t written;
	void *cookie;

	*(struct virtio_blk_outhdr *)drv_at(&b->m, header) =
		(struct virtio_blk_outhdr){.type = VIRTIO_BLK_T_OUT, .sector = 64};
	ck_assert(drv_add(&b->dev.queue[queue], seg, 3, false, b));
	drv_kick(&b->dev.queue[queue]);
	ck_assert(drv_wait(&b->dev.queue[queue], &cookie, &written, TIMEOUT_MS));
	return *(uint8_t *)drv_at(&b->m, status);
}

/* A flush waits for its connection while another one's server dies with what it had acknowledged.
 */
START_TEST(test_held_flush)
{
	struct nbd *n = make(MEMORY "memory 4M");
	struct fake_seg seg[2];
	struct bench *b;
	uint32_t written;
	uint8_t *status;
	void *cookie;

	if (!n)
		return;
	b = &n->s.b;
	nbd_proxy_start(&n->server);
	bench_init_path(b, false);
	bench_start(b, UINT64_MAX);
	ck_assert_uint_eq(blk_request(b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	nbd_proxy_hold(&n->server);
	nbd_proxy_cut(&n->server);
	usleep(1500000);
	ck_assert_uint_eq(write_on(b, 1), VIRTIO_BLK_S_OK);
	blk_set_header(b, VIRTIO_BLK_T_FLUSH, 0);
	status = drv_at(&b->m, GPA_STATUS(b));
	*status = 0xee;
	seg[0] = (struct fake_seg){.gpa = GPA_HEADER(b), .len = 16};
	seg[1] = (struct fake_seg){.gpa = GPA_STATUS(b), .len = 1, .in = true};
	ck_assert(drv_add(&b->dev.queue[0], seg, 2, false, b));
	drv_kick(&b->dev.queue[0]);
	usleep(300000);
	ck_assert_uint_eq(*status, 0xee);
	nbd_server_kill(&n->server);
	usleep(300000);
	nbd_server_start(&n->server, MEMORY "memory 4M");
	nbd_proxy_hold(&n->server);
	ck_assert(drv_wait(&b->dev.queue[0], &cookie, &written, TIMEOUT_MS));
	ck_assert_uint_eq(*status, VIRTIO_BLK_S_IOERR);
	finish(n);
}
END_TEST

/* Write-back ends with something acknowledged that is lost then: who writes next is told, once. */
START_TEST(test_owed)
{
	struct nbd *n = make_disk(MEMORY "memory 4M", UINT64_MAX);
	uint8_t zero = 0;

	if (!n)
		return;
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 64, 4096), VIRTIO_BLK_S_OK);
	drv_config_write(&n->s.b.dev, offsetof(struct virtio_blk_config, wce), &zero, 1);
	nbd_server_kill(&n->server);
	usleep(200000);
	nbd_server_start(&n->server, MEMORY "memory 4M");
	usleep(2500000);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 128, 4096), VIRTIO_BLK_S_IOERR);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 128, 4096), VIRTIO_BLK_S_OK);
	finish(n);
}
END_TEST

/* What a machine had not flushed before it was reset is nobody's. */
START_TEST(test_reset_then_killed)
{
	struct nbd *n = make_disk(MEMORY "memory 4M", UINT64_MAX);

	if (!n)
		return;
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_OUT, 64, 4096), VIRTIO_BLK_S_OK);
	mb_blk_reset(n->s.b.blk);
	drv_close(&n->s.b.dev);
	nbd_server_kill(&n->server);
	nbd_server_start(&n->server, MEMORY "memory 4M");
	usleep(1200000);
	drv_open(&n->s.b.dev, &n->s.b.m, 1);
	bench_start(&n->s.b, UINT64_MAX);
	wait_until_back(n);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	finish(n);
}
END_TEST

/* Killed under load, again and again; in the end everything works. */
START_TEST(test_killed_in_flight)
{
	struct nbd *n;
	bool ok = false, bad = false;

	if (!nbd_server_have("nbdkit"))
		return;
	signal(SIGPIPE, SIG_IGN);
	n = calloc(1, sizeof(*n));
	set_seed(&n->s);
	nbd_server_init(&n->server);
	make_file(n, "disk", DISK_BYTES);
	nbd_server_start(&n->server, MEMORY "--filter=delay file %d/disk rdelay=20ms wdelay=20ms");
	n->s.b.uri = n->server.uri;
	bench_init_path(&n->s.b, false);
	bench_start(&n->s.b, UINT64_MAX);
	n->s.gaps = true;
	for (unsigned round = 0; round < 5; round++) {
		start_all(n);
		usleep(round * 4000);
		nbd_server_kill(&n->server);
		end_all(n, &ok, &bad);
		if (round == 3) /* and while nobody is there */
			drv_reset(&n->s.b.dev), bench_start(&n->s.b, UINT64_MAX);
		nbd_server_start(
			&n->server, MEMORY "--filter=delay file %d/disk rdelay=20ms wdelay=20ms");
		wait_until_back(n);
	}
	ck_assert(bad);
	boot_again(&n->s.b);
	wait_until_back(n);
	for (uint64_t at = 0; at < DISK_BYTES; at += 64 << 10) {
		ck_assert_uint_eq(
			blk_request(&n->s.b, VIRTIO_BLK_T_IN, at / 512, 64 << 10), VIRTIO_BLK_S_OK);
		memcpy(n->s.shadow + at, drv_at(&n->s.b.m, GPA_DATA(&n->s.b)), 64 << 10);
	}
	storm_round(&n->s, 300);
	storm_read_all(&n->s);
	finish(n);
}
END_TEST

/* A driver that resets the device while the server takes its time. */
START_TEST(test_reset_in_flight)
{
	struct nbd *n = make_disk(_i ? MEMORY "--filter=delay memory 4M rdelay=300ms wdelay=300ms"
				     : MEMORY "memory 4M",
		UINT64_MAX);

	if (!n)
		return;
	n->s.gaps = true;
	for (unsigned round = 0; round < (_i ? 4 : 24); round++) {
		bench_start(&n->s.b, UINT64_MAX & ~(round % 2 ? F_PACKED : 0));
		start_all(n);
		if (round % 4 == 3) {
			mb_blk_reset(n->s.b.blk);
			drv_close(&n->s.b.dev);
			drv_open(&n->s.b.dev, &n->s.b.m, 1);
		} else {
			drv_reset(&n->s.b.dev);
		}
		ck_assert_int_eq(fake_dma_n_mapped(&n->s.b.m.ram), 0);
		memset(n->s.slots, 0, sizeof(n->s.slots));
		n->s.n_busy = 0;
	}
	bench_start(&n->s.b, UINT64_MAX);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
	start_all(n);
	finish(n);
}
END_TEST

/* A server that hangs does not hold up a reset for ever, and is asked anew. */
START_TEST(test_hangs)
{
	struct nbd *n = make_qemu();
	struct timespec begin, end;

	if (!n)
		return;
	bench_init_path(&n->s.b, false);
	bench_start(&n->s.b, UINT64_MAX);
	kill(n->server.pid, SIGSTOP);
	start_all(n);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	drv_reset(&n->s.b.dev);
	clock_gettime(CLOCK_MONOTONIC, &end);
	ck_assert_int_lt(end.tv_sec - begin.tv_sec, 16);
	ck_assert_int_eq(fake_dma_n_mapped(&n->s.b.m.ram), 0);
	memset(n->s.slots, 0, sizeof(n->s.slots));
	n->s.n_busy = 0;
	/* Once more while it waits for an answer to its attempt to connect. */
	bench_start(&n->s.b, UINT64_MAX);
	start_all(n);
	usleep(100000);
	drv_reset(&n->s.b.dev);
	ck_assert_int_eq(fake_dma_n_mapped(&n->s.b.m.ram), 0);
	memset(n->s.slots, 0, sizeof(n->s.slots));
	n->s.n_busy = 0;
	bench_start(&n->s.b, UINT64_MAX);
	ck_assert_uint_eq(blk_request(&n->s.b, VIRTIO_BLK_T_IN, 0, 512), VIRTIO_BLK_S_IOERR);
	kill(n->server.pid, SIGCONT);
	wait_until_back(n);
	finish(n);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("blk_nbd_lost");
	TCase *fail = tcase_create("fail"), *killed = tcase_create("killed");

	tcase_set_timeout(fail, 120);
	tcase_add_loop_test(fail, test_errors, 0, 2);
	tcase_add_test(fail, test_killed_while_reset);
	tcase_add_test(fail, test_one_connection);
	tcase_add_test(fail, test_held_flush);
	tcase_add_test(fail, test_owed);
	tcase_add_test(fail, test_reset_then_killed);
	tcase_add_test(fail, test_killed_in_flight);
	tcase_add_loop_test(fail, test_reset_in_flight, 0, 2);
	tcase_add_test(fail, test_hangs);
	suite_add_tcase(s, fail);
	tcase_set_timeout(killed, 120);
	tcase_add_loop_test(killed, test_killed, 0, 8);
	suite_add_tcase(s, killed);
	return s;
}

int main(void)
{
	static const char *const cases[] = {"fail", "killed", NULL};

	return run_side_by_side(suite, cases);
}
