// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include "virtio_driver.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <mirrorball/net.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * The network device on real taps in a network namespace of the test's own, with a packet socket at
 * the other end; and on a passt that is this program itself, sending back what it gets.
 */
#define FEATURE(bit) (1ull << (bit))
#define F_PACKED     FEATURE(VIRTIO_F_RING_PACKED)
#define F_EVENT	     FEATURE(VIRTIO_RING_F_EVENT_IDX)
#define F_INDIRECT   FEATURE(VIRTIO_RING_F_INDIRECT_DESC)
#define F_MRG	     FEATURE(VIRTIO_NET_F_MRG_RXBUF)
#define F_CTRL	     FEATURE(VIRTIO_NET_F_CTRL_VQ)
#define HDR	     12u
#define TIMEOUT_MS   10000
#define QUIET_MS     150
#define TAP	     "mbtest0"
#define BIG_MTU	     65521
#define MAX_FRAME    (BIG_MTU + 14u)
#define QUEUE_SIZE   128
#define PROTOCOL     0x88b5 /* IEEE 802: for experiments */

/* ---- the host's side ---- */

static bool own_namespace(void)
{
	int fd;

	if (unshare(geteuid() ? CLONE_NEWUSER | CLONE_NEWNET : CLONE_NEWNET)) {
		skip("no network namespace of its own");
		return false;
	}
	fd = open("/dev/net/tun", O_RDWR);
	if (fd < 0) {
		skip("no /dev/net/tun");
		return false;
	}
	close(fd);
	/* No packets but the test's own. */
	fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY);
	if (fd >= 0) {
		ck_assert_int_eq(write(fd, "1", 1), 1);
		close(fd);
	}
	return true;
}

static int open_tap(const char *name, short flags)
{
	struct ifreq ifr = {.ifr_flags = flags};
	int fd = open("/dev/net/tun", O_RDWR);

	strcpy(ifr.ifr_name, name);
	if (ioctl(fd, TUNSETIFF, &ifr)) {
		close(fd);
		return -1;
	}
	return fd;
}

static void set_up(const char *name, bool up)
{
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	struct ifreq ifr = {.ifr_flags = up ? IFF_UP : 0};

	strcpy(ifr.ifr_name, name);
	ck_assert_int_eq(ioctl(sock, SIOCSIFFLAGS, &ifr), 0);
	close(sock);
}

static void set_mtu(const char *name, int mtu)
{
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	struct ifreq ifr = {.ifr_mtu = mtu};

	strcpy(ifr.ifr_name, name);
	ck_assert_int_eq(ioctl(sock, SIOCSIFMTU, &ifr), 0);
	close(sock);
}

/* Frames to the interface that the kernel dropped before anybody could read them from the tap. */
static unsigned long n_dropped(const char *name)
{
	FILE *f = fopen("/proc/thread-self/net/dev", "r");
	char line[512], *at;
	unsigned long n = 0;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		at = strstr(line, name);
		/* Received: 8 columns; sent: bytes, packets, errs, drop. */
		if (at && at[strlen(name)] == ':')
			ck_assert_int_eq(
				sscanf(at + strlen(name) + 1,
					"%*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %lu", &n),
				1);
	}
	fclose(f);
	return n;
}

static void make_tap(const char *name, short flags, int mtu)
{
	int fd = open_tap(name, (short)(IFF_TAP | flags));

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ioctl(fd, TUNSETPERSIST, 1), 0);
	set_mtu(name, mtu);
	set_up(name, true);
	close(fd);
}

/*
 * A packet socket on the interface, which the device has been attached to; vnet: with a virtio-net
 * header of 10 bytes.
 *
 * Without a reader the tap had no carrier, so the kernel may have put a queue under it that drops
 * everything (noop), and it puts the real one back from a worker some time after the device came,
 * late on a busy machine. Setting the interface up does that at once.
 */
static int open_wire(const char *name, bool vnet)
{
	struct sockaddr_ll addr = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = (int)if_nametoindex(name),
	};
	int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)), on = 1, room = 8 << 20;

	ck_assert_int_ge(fd, 0);
	set_up(name, false);
	set_up(name, true);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
	setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
	if (vnet)
		ck_assert_int_eq(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)), 0);
	return fd;
}

/* A frame whose bytes follow from its number and length. */
static void make_frame(uint8_t *frame, uint32_t len, uint32_t number)
{
	memset(frame, 0xff, 6);
	memcpy(frame + 6, "\x02mbtes", 6);
	frame[12] = PROTOCOL >> 8;
	frame[13] = PROTOCOL & 0xff;
	for (uint32_t i = 14; i < len; i++)
		frame[i] = (uint8_t)(number * 31 + i * 7 + i / 256);
	if (len >= 18)
		memcpy(frame + 14, &number, 4);
}

static bool is_ours(const uint8_t *frame, uint32_t len)
{
	return len >= 18 && frame[12] == PROTOCOL >> 8 && frame[13] == (PROTOCOL & 0xff);
}

static void check_frame(const uint8_t *frame, uint32_t len, uint32_t number)
{
	uint8_t *want = malloc(len);

	make_frame(want, len, number);
	ck_assert_int_eq(memcmp(frame, want, len), 0);
	free(want);
}

/* The next of our frames from the wire, length or -1; others (IPv6 looks for routers) are skipped.
 */
static ssize_t wire_recv(int wire, uint8_t *buf, size_t len, int timeout_ms)
{
	struct timeval tv = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};

	setsockopt(wire, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	for (;;) {
		ssize_t n = recv(wire, buf, len, 0);

		if (n < 0 || is_ours(buf, (uint32_t)n))
			return n;
	}
}

/* ---- a machine with one network device ---- */

#define MAX_QUEUES 5
#define N_RX_BUFS  (QUEUE_SIZE * 2)

struct rx_buf {
	uint64_t gpa;
	uint32_t len;
	unsigned queue;
};

struct bench {
	struct drv_machine m;
	struct drv_device dev;
	struct mb_loop *loops[2];
	struct mb_loop *queue_loops[MAX_QUEUES];
	struct mb_net *net;
	unsigned n_pairs;
	uint64_t tx, ctrl, rx; /* guest memory */
	struct rx_buf rx_bufs[N_RX_BUFS];
	unsigned n_rx_bufs;
	uint8_t packet[HDR + MAX_FRAME];
};

static void machine_init(struct bench *b)
{
	struct mb_error err;

	memset(b, 0, sizeof(*b));
	drv_machine_init(&b->m, 40u << 20);
	for (unsigned i = 0; i < 2; i++) {
		ck_assert_int_eq(mb_loop_create(&b->loops[i], &err), 0);
		ck_assert_int_eq(mb_loop_start_thread(b->loops[i], "net", NULL, &err), 0);
	}
	/* Receiving and sending of the first pair share a loop, the second has one for itself. */
	for (unsigned i = 0; i < MAX_QUEUES; i++)
		b->queue_loops[i] = b->loops[i / 2 % 2];
	b->tx = drv_alloc(&b->m, 16 * (HDR + MAX_FRAME), 4096);
	b->ctrl = drv_alloc(&b->m, 4096, 4096);
	b->rx = drv_alloc(&b->m, 18u << 20, 4096);
}

static int create(struct bench *b, struct mb_net_config *config, struct mb_error *err)
{
	b->n_pairs = config->n_pairs;
	config->loops = b->queue_loops;
	if (!config->seed)
		config->seed = "test/0";
	return mb_net_create(b->m.pci, &b->m.ram.dma, config, &b->net, err);
}

static void bench_init(struct bench *b, struct mb_net_config config)
{
	struct mb_error err;

	machine_init(b);
	ck_assert_msg(!create(b, &config, &err), "%s", err.text);
	drv_open(&b->dev, &b->m, 1);
}

static struct mb_net_config tap_config(unsigned n_pairs)
{
	return (struct mb_net_config){.back = MB_NET_TAP, .ifname = TAP, .n_pairs = n_pairs};
}

static void bench_start(struct bench *b, uint64_t features)
{
	ck_assert(drv_start(
		&b->dev, features & drv_offered(&b->dev), 2 * b->n_pairs + 1, QUEUE_SIZE));
	b->n_rx_bufs = 0;
}

static void bench_finish(struct bench *b)
{
	mb_net_destroy(b->net);
	for (unsigned i = 0; i < 2; i++)
		mb_loop_destroy(b->loops[i]);
	drv_close(&b->dev);
	drv_machine_finish(&b->m);
}

/* Gives the device n receive buffers of len bytes in two pieces each. */
static void give_rx(struct bench *b, unsigned n, uint32_t len)
{
	for (unsigned i = 0; i < n; i++) {
		struct rx_buf *buf = &b->rx_bufs[b->n_rx_bufs % N_RX_BUFS];
		struct fake_seg segs[2];

		buf->gpa = b->rx +
			   (uint64_t)(b->n_rx_bufs % N_RX_BUFS) * (len > 65536 ? 69632 : 65536);
		buf->len = len;
		segs[0] = (struct fake_seg){.gpa = buf->gpa, .len = HDR, .in = true};
		segs[1] = (struct fake_seg){.gpa = buf->gpa + HDR, .len = len - HDR, .in = true};
		if (b->dev.features & F_INDIRECT || b->n_rx_bufs % 2)
			ck_assert(drv_add(&b->dev.queue[0], segs, len > HDR ? 2 : 1,
				b->dev.features & F_INDIRECT, buf));
		else {
			segs[0].len = len;
			ck_assert(drv_add(&b->dev.queue[0], segs, 1, false, buf));
		}
		b->n_rx_bufs++;
	}
	drv_kick(&b->dev.queue[0]);
}

/*
 * The next packet that the guest receives, its header included, in b->packet; 0 if none comes.
 * Checks that all its buffers are there when the first one is.
 */
static uint32_t guest_recv(struct bench *b, unsigned *n_bufs, int timeout_ms)
{
	struct virtio_net_hdr_v1 hdr;
	uint32_t total = 0, written;
	struct rx_buf *buf;
	void *cookie;

	if (!drv_wait(&b->dev.queue[0], &cookie, &written, timeout_ms))
		return 0;
	buf = cookie;
	memcpy(&hdr, drv_at(&b->m, buf->gpa), sizeof(hdr));
	ck_assert_uint_ge(hdr.num_buffers, 1);
	for (unsigned i = 0;; i++) {
		ck_assert_uint_le(written, buf->len);
		memcpy(b->packet + total, drv_at(&b->m, buf->gpa), written);
		total += written;
		if (i + 1 == hdr.num_buffers)
			break;
		ck_assert_uint_eq(written, buf->len); /* all but the last are full */
		ck_assert(fake_ring_get_used(&b->dev.queue[0].ring, &cookie, &written));
		buf = cookie;
	}
	if (n_bufs)
		*n_bufs = hdr.num_buffers;
	return total;
}

/* Like guest_recv, but only frames of ours; says who lost it if there is none. */
static uint32_t guest_recv_ours(struct bench *b, unsigned *n_bufs, int timeout_ms)
{
	for (;;) {
		uint32_t len = guest_recv(b, n_bufs, timeout_ms);

		ck_assert_msg(len || !n_dropped(TAP), "the kernel dropped %lu frames of the test",
			n_dropped(TAP));
		if (!len || (len > HDR && is_ours(b->packet + HDR, len - HDR)))
			return len;
		give_rx(b, 1, 2048);
	}
}

/* Makes b->packet available on a tx queue, from place `slot` of 16, in pieces. */
static void guest_send(
	struct bench *b, unsigned queue, unsigned slot, uint32_t frame_len, unsigned n_pieces)
{
	uint64_t gpa = b->tx + (uint64_t)slot * (HDR + MAX_FRAME);
	uint32_t len = HDR + frame_len;
	struct fake_seg segs[16];
	unsigned n = 0;

	memcpy(drv_at(&b->m, gpa), b->packet, len);
	for (uint32_t at = 0; at < len; n++) {
		uint32_t part = n + 1 == n_pieces ? len - at : 1 + (len - at) / (n_pieces + 1);

		segs[n] = (struct fake_seg){.gpa = gpa + at, .len = part};
		at += part;
	}
	ck_assert(drv_add(&b->dev.queue[queue], segs, n, b->dev.features & F_INDIRECT, b));
}

static void send_frame(
	struct bench *b, unsigned queue, uint32_t len, uint32_t number, unsigned n_pieces)
{
	uint32_t written;
	void *cookie;

	memset(b->packet, 0, HDR);
	make_frame(b->packet + HDR, len, number);
	guest_send(b, queue, 0, len, n_pieces);
	drv_kick(&b->dev.queue[queue]);
	ck_assert(drv_wait(&b->dev.queue[queue], &cookie, &written, TIMEOUT_MS));
	ck_assert_uint_eq(written, 0);
}

static uint8_t control(
	struct bench *b, unsigned queue, uint8_t class, uint8_t cmd, const void *data, unsigned len)
{
	struct fake_seg segs[2] = {
		{.gpa = b->ctrl, .len = 2 + len},
		{.gpa = b->ctrl + 256, .len = 1, .in = true},
	};
	uint8_t *p = drv_at(&b->m, b->ctrl);
	uint32_t written;
	void *cookie;

	p[0] = class;
	p[1] = cmd;
	memcpy(p + 2, data, len);
	p[256] = 0xee;
	ck_assert(drv_add(&b->dev.queue[queue], segs, 2, false, b));
	drv_kick(&b->dev.queue[queue]);
	ck_assert(drv_wait(&b->dev.queue[queue], &cookie, &written, TIMEOUT_MS));
	ck_assert_uint_eq(written, 1);
	return p[256];
}

static uint16_t link_status(struct bench *b)
{
	uint16_t status;

	drv_config_read(&b->dev, offsetof(struct virtio_net_config, status), &status, 2);
	return status;
}

/* ---- taps ---- */

START_TEST(test_tap_config)
{
	struct virtio_net_config cfg, again;
	struct bench b;
	uint64_t offered;

	if (!own_namespace())
		return;
	make_tap(TAP, 0, 1400);
	bench_init(&b, tap_config(1));
	offered = drv_offered(&b.dev);
	ck_assert(offered & FEATURE(VIRTIO_NET_F_MAC));
	ck_assert(offered & FEATURE(VIRTIO_NET_F_STATUS));
	ck_assert(offered & FEATURE(VIRTIO_NET_F_MTU));
	ck_assert(offered & FEATURE(VIRTIO_NET_F_GUEST_TSO4));
	ck_assert(offered & FEATURE(VIRTIO_NET_F_HOST_TSO6));
	ck_assert(!(offered & FEATURE(VIRTIO_NET_F_MQ)));
	drv_config_read(&b.dev, 0, &cfg, 12);
	ck_assert_uint_eq(cfg.mac[0] & 3, 2);
	ck_assert_uint_eq(cfg.status, VIRTIO_NET_S_LINK_UP);
	ck_assert_uint_eq(cfg.max_virtqueue_pairs, 1);
	ck_assert_uint_eq(cfg.mtu, 1400);
	bench_finish(&b);

	/* The same seed gives the same address, another seed another. */
	bench_init(&b, tap_config(1));
	drv_config_read(&b.dev, 0, &again, 12);
	ck_assert_int_eq(memcmp(cfg.mac, again.mac, 6), 0);
	bench_finish(&b);
	bench_init(&b, (struct mb_net_config){
			       .back = MB_NET_TAP, .ifname = TAP, .n_pairs = 1, .seed = "test/1"});
	drv_config_read(&b.dev, 0, &again, 12);
	ck_assert_int_ne(memcmp(cfg.mac, again.mac, 6), 0);
	bench_finish(&b);
}
END_TEST

static const uint64_t rings[] = {0, F_EVENT, F_EVENT | F_INDIRECT, F_PACKED | F_EVENT | F_INDIRECT};
#define N_RINGS 4

START_TEST(test_tap_both_ways)
{
	static const uint32_t sizes[] = {18, 60, 1500, 1524, 1525, 3000, 9000, 65000, MAX_FRAME};
	uint8_t *buf, *frame;
	struct bench b;
	int wire;

	if (!own_namespace())
		return;
	buf = malloc(MAX_FRAME + 1);
	frame = malloc(MAX_FRAME);
	make_tap(TAP, 0, BIG_MTU);
	bench_init(&b, tap_config(1));
	bench_start(&b, F_MRG | rings[_i]);
	wire = open_wire(TAP, false);
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint32_t len;
		unsigned n_bufs;

		send_frame(&b, 1, sizes[i], i, 1 + i);
		ck_assert_int_eq(wire_recv(wire, buf, MAX_FRAME + 1, TIMEOUT_MS), sizes[i]);
		check_frame(buf, sizes[i], i);

		give_rx(&b, 60, 1536);
		make_frame(frame, sizes[i], i + 100);
		ck_assert_int_eq(send(wire, frame, sizes[i], 0), sizes[i]);
		len = guest_recv_ours(&b, &n_bufs, TIMEOUT_MS);
		ck_assert_uint_eq(len, HDR + sizes[i]);
		ck_assert_uint_eq(n_bufs, (len + 1535) / 1536);
		check_frame(b.packet + HDR, sizes[i], i + 100);
		bench_start(&b, F_MRG | rings[_i]); /* new buffers: a reset in between */
	}
	close(wire);
	bench_finish(&b);
	free(buf);
	free(frame);
}
END_TEST

/* A packet for which the guest has too few buffers at first. */
START_TEST(test_tap_slow_guest)
{
	uint8_t *frame;
	struct bench b;
	int wire;

	if (!own_namespace())
		return;
	frame = malloc(MAX_FRAME);
	make_tap(TAP, 0, BIG_MTU);
	bench_init(&b, tap_config(1));
	bench_start(&b, F_MRG | rings[_i]);
	wire = open_wire(TAP, false);
	make_frame(frame, MAX_FRAME, 1);
	ck_assert_int_eq(send(wire, frame, MAX_FRAME, 0), MAX_FRAME);
	make_frame(frame, 1000, 2);
	ck_assert_int_eq(send(wire, frame, 1000, 0), 1000);
	for (unsigned given = 0; given < 32; given += 8) {
		give_rx(&b, 8, 1536);
		ck_assert_uint_eq(guest_recv(&b, NULL, 20), 0);
	}
	give_rx(&b, 30, 1536);
	ck_assert_uint_eq(guest_recv_ours(&b, NULL, TIMEOUT_MS), HDR + MAX_FRAME);
	check_frame(b.packet + HDR, MAX_FRAME, 1);
	ck_assert_uint_eq(guest_recv_ours(&b, NULL, TIMEOUT_MS), HDR + 1000);
	check_frame(b.packet + HDR, 1000, 2);
	/* A reset while one waits. */
	ck_assert_int_eq(send(wire, frame, 1000, 0), 1000);
	usleep(20000);
	bench_start(&b, F_MRG | rings[_i]);
	give_rx(&b, 2, 512);
	make_frame(frame, 4000, 3);
	ck_assert_int_eq(send(wire, frame, 4000, 0), 4000);
	usleep(20000);
	drv_reset(&b.dev);
	ck_assert_int_eq(fake_dma_n_mapped(&b.m.ram), 0);
	close(wire);
	bench_finish(&b);
	free(frame);
}
END_TEST

/* Without mergeable buffers each packet must fit into one; what does not is dropped, the next
 * arrives. */
START_TEST(test_tap_one_buffer)
{
	uint8_t *frame;
	struct bench b;
	int wire;

	if (!own_namespace())
		return;
	frame = malloc(MAX_FRAME);
	make_tap(TAP, 0, BIG_MTU);
	bench_init(&b, tap_config(1));
	bench_start(&b, rings[_i]);
	wire = open_wire(TAP, false);
	give_rx(&b, 8, HDR + 1514);
	make_frame(frame, 1515, 1);
	ck_assert_int_eq(send(wire, frame, 1515, 0), 1515);
	make_frame(frame, 1514, 2);
	ck_assert_int_eq(send(wire, frame, 1514, 0), 1514);
	ck_assert_uint_eq(guest_recv_ours(&b, NULL, TIMEOUT_MS), HDR + 1514);
	check_frame(b.packet + HDR, 1514, 2);
	bench_start(&b, rings[_i]);
	give_rx(&b, 4, HDR + MAX_FRAME);
	make_frame(frame, MAX_FRAME, 3);
	ck_assert_int_eq(send(wire, frame, MAX_FRAME, 0), MAX_FRAME);
	ck_assert_uint_eq(guest_recv_ours(&b, NULL, TIMEOUT_MS), HDR + MAX_FRAME);
	check_frame(b.packet + HDR, MAX_FRAME, 3);
	close(wire);
	bench_finish(&b);
	free(frame);
}
END_TEST

/* Random sizes both ways at once; nothing lost, doubled or out of order. */
START_TEST(test_tap_storm)
{
	const char *env = getenv("MB_TEST_SEED");
	unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : (unsigned)time(NULL) + (unsigned)_i;
	uint8_t *buf, *frame;
	unsigned n_in = 0, n_in_sent = 0, n_out = 0, n_out_sent = 0, n_busy = 0, first_busy = 0;
	const unsigned n_frames = 600;
	uint32_t out_len[16], written, number;
	time_t last = time(NULL);
	struct bench b;
	void *cookie;
	int wire;

	printf("net storm %d: MB_TEST_SEED=%u\n", _i, seed);
	fflush(stdout);
	if (!own_namespace())
		return;
	buf = malloc(MAX_FRAME);
	frame = malloc(MAX_FRAME);
	make_tap(TAP, 0, BIG_MTU);
	bench_init(&b, tap_config(1));
	bench_start(&b, F_MRG | rings[_i]);
	wire = open_wire(TAP, false);
	give_rx(&b, 60, 2048);
	while (n_in < n_frames || n_out < n_frames) {
		uint32_t len = 18 + (uint32_t)rand_r(&seed) % (rand_r(&seed) % 8 ? 1500 : 60000);
		unsigned n_bufs;

		if (rand_r(&seed) % 2 && n_in_sent < n_frames && n_in_sent - n_in < 8) {
			make_frame(frame, len, n_in_sent);
			if (send(wire, frame, len, MSG_DONTWAIT) == (ssize_t)len)
				n_in_sent++;
		}
		if (rand_r(&seed) % 2 && n_out_sent < n_frames && n_out_sent - n_out < 16 &&
			n_busy < 16) {
			memset(b.packet, 0, HDR);
			make_frame(b.packet + HDR, len, n_out_sent);
			out_len[n_out_sent % 16] = len;
			guest_send(&b, 1, n_out_sent % 16, len, 1 + (unsigned)rand_r(&seed) % 4);
			if (rand_r(&seed) % 4 == 0 || n_busy == 15)
				drv_kick(&b.dev.queue[1]);
			n_out_sent++;
			n_busy++;
		} else if (n_busy) {
			drv_kick(&b.dev.queue[1]);
		}
		while (fake_ring_get_used(&b.dev.queue[1].ring, &cookie, &written)) {
			n_busy--;
			first_busy++;
		}
		len = guest_recv(&b, &n_bufs, 0);
		if (len) {
			if (is_ours(b.packet + HDR, len - HDR)) {
				memcpy(&number, b.packet + HDR + 14, sizeof(number));
				ck_assert_msg(number == n_in,
					"frame %u came instead of %u; the kernel dropped %lu",
					number, n_in, n_dropped(TAP));
				check_frame(b.packet + HDR, len - HDR, n_in++);
				last = time(NULL);
			}
			give_rx(&b, n_bufs, 2048);
		}
		if (n_out < first_busy) {
			ck_assert_int_eq(
				wire_recv(wire, buf, MAX_FRAME, TIMEOUT_MS), out_len[n_out % 16]);
			check_frame(buf, out_len[n_out % 16], n_out);
			n_out++;
			last = time(NULL);
		}
		ck_assert_msg(time(NULL) - last <= TIMEOUT_MS / 1000,
			"stuck: %u of %u came, %u of %u went, the kernel dropped %lu", n_in,
			n_in_sent, n_out, n_out_sent, n_dropped(TAP));
	}
	close(wire);
	bench_finish(&b);
	free(buf);
	free(frame);
}
END_TEST

static uint16_t ip_sum(const uint8_t *p, unsigned len)
{
	uint32_t sum = 0;

	for (unsigned i = 0; i < len; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* A TCP segment of 20,000 bytes to be divided into 1,000s, with its 10-byte header in front. */
static uint32_t make_tso(uint8_t *p)
{
	struct virtio_net_hdr hdr = {
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		.gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
		.hdr_len = 54,
		.gso_size = 1000,
		.csum_start = 34,
		.csum_offset = 16,
	};
	uint8_t *frame = p + sizeof(hdr), *ip = frame + 14, *tcp = ip + 20;
	uint16_t sum;

	memcpy(p, &hdr, sizeof(hdr));
	memset(frame, 0, 54);
	memset(frame, 0xff, 6);
	memcpy(frame + 6, "\x02mbtes", 6);
	frame[12] = 8;
	memcpy(ip,
		"\x45\x00\x4e\x48\x00\x01\x40\x00\x40\x06\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02",
		20);
	sum = ip_sum(ip, 20);
	ip[10] = (uint8_t)(sum >> 8);
	ip[11] = (uint8_t)sum;
	memcpy(tcp,
		"\x04\xd2\x16\x2e\x00\x00\x00\x01\x00\x00\x00\x01\x50\x10\xff\xff\x00\x00\x00\x00",
		20);
	for (unsigned i = 0; i < 20000; i++)
		frame[54 + i] = (uint8_t)i;
	return (uint32_t)sizeof(hdr) + 54 + 20000;
}

static bool is_tcp(const uint8_t *frame)
{
	return frame[12] == 8 && frame[13] == 0 && frame[14 + 9] == 6;
}

/* Big segments arrive whole if the guest takes them, in pieces if not. */
START_TEST(test_tap_offloads)
{
	uint64_t tso = FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_TSO4),
		 none = 0;
	uint64_t ctrl = F_CTRL | FEATURE(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
	struct virtio_net_hdr_v1 hdr;
	uint8_t *p;
	uint32_t p_len;
	struct bench b;
	int wire;

	if (!own_namespace())
		return;
	p = malloc(65536);
	p_len = make_tso(p);
	make_tap(TAP, 0, 1500);
	bench_init(&b, tap_config(1));
	wire = open_wire(TAP, true);
	for (unsigned round = 0; round < 3; round++) {
		uint32_t len, sum = 0;
		unsigned n = 0;

		bench_start(&b, F_MRG | ctrl | (round ? tso : 0));
		give_rx(&b, 60, 2048);
		if (round == 2)
			ck_assert_uint_eq(control(&b, 2, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
						  VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, &none, 8),
				VIRTIO_NET_OK);
		ck_assert_int_eq(send(wire, p, p_len, 0), p_len);
		while (sum < 20000) {
			len = guest_recv(&b, NULL, TIMEOUT_MS);
			ck_assert_uint_gt(len, HDR);
			if (!is_tcp(b.packet + HDR))
				continue;
			memcpy(&hdr, b.packet, sizeof(hdr));
			ck_assert_uint_eq(hdr.gso_type,
				round == 1 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_NONE);
			ck_assert_uint_eq(hdr.flags, round == 1 ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0);
			ck_assert_uint_eq(b.packet[HDR + 54], (uint8_t)sum);
			sum += len - HDR - 54;
			n++;
		}
		ck_assert_uint_eq(sum, 20000);
		ck_assert_uint_eq(n, round == 1 ? 1 : 20);
	}

	/* What was not negotiated cannot be switched on. */
	bench_start(&b, F_MRG | ctrl | FEATURE(VIRTIO_NET_F_GUEST_CSUM));
	ck_assert_uint_eq(control(&b, 2, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
				  VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, &tso, 8),
		VIRTIO_NET_ERR);
	/* The guest's own big segment reaches the host as one. */
	memset(b.packet, 0, HDR);
	memcpy(b.packet, p, 10);
	memcpy(b.packet + HDR, p + 10, p_len - 10);
	guest_send(&b, 1, 0, p_len - 10, 5);
	drv_kick(&b.dev.queue[1]);
	for (;;) {
		ssize_t n = recv(wire, p, 65536, 0);

		ck_assert_int_gt(n, 0);
		if (!is_tcp(p + 10))
			continue;
		ck_assert_int_eq(n, p_len);
		break;
	}
	close(wire);
	bench_finish(&b);
	free(p);
}
END_TEST

START_TEST(test_tap_queues)
{
	uint16_t two = 2, three = 3, zero = 0;
	uint8_t buf[2048], mac[6] = {2, 1, 2, 3, 4, 5}, read_mac[6], first_mac[6];
	uint32_t written;
	struct bench b;
	void *cookie;
	int wire;

	if (!own_namespace())
		return;
	make_tap(TAP, IFF_MULTI_QUEUE, 1500);
	bench_init(&b, tap_config(2));
	wire = open_wire(TAP, false);
	ck_assert(drv_offered(&b.dev) & FEATURE(VIRTIO_NET_F_MQ));
	drv_config_read(&b.dev, 0, first_mac, 6);
	bench_start(&b, UINT64_MAX & ~F_INDIRECT & ~F_PACKED);
	send_frame(&b, 1, 100, 1, 1);
	ck_assert_int_eq(wire_recv(wire, buf, sizeof(buf), TIMEOUT_MS), 100);
	ck_assert_uint_eq(
		control(&b, 4, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &three, 2),
		VIRTIO_NET_ERR);
	ck_assert_uint_eq(
		control(&b, 4, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &zero, 2),
		VIRTIO_NET_ERR);
	ck_assert_uint_eq(
		control(&b, 4, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &two, 1),
		VIRTIO_NET_ERR);
	ck_assert_uint_eq(
		control(&b, 4, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &two, 2),
		VIRTIO_NET_OK);
	send_frame(&b, 3, 100, 2, 2);
	ck_assert_int_eq(wire_recv(wire, buf, sizeof(buf), TIMEOUT_MS), 100);
	check_frame(buf, 100, 2);

	ck_assert_uint_eq(control(&b, 4, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, mac, 6),
		VIRTIO_NET_OK);
	drv_config_read(&b.dev, 0, read_mac, 6);
	ck_assert_int_eq(memcmp(mac, read_mac, 6), 0);
	ck_assert_uint_eq(control(&b, 4, VIRTIO_NET_CTRL_MAC, 7, mac, 6), VIRTIO_NET_ERR);
	ck_assert_uint_eq(control(&b, 4, VIRTIO_NET_CTRL_RX, 0, mac, 1), VIRTIO_NET_ERR);
	ck_assert_uint_eq(control(&b, 4, 99, 0, mac, 0), VIRTIO_NET_ERR);

	/* One pair again, and the control queue right behind it, for a driver without MQ. */
	bench_start(&b, F_MRG | F_CTRL);
	drv_config_read(&b.dev, 0, read_mac, 6);
	ck_assert_int_eq(memcmp(first_mac, read_mac, 6), 0);
	ck_assert_uint_eq(
		control(&b, 2, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &two, 2),
		VIRTIO_NET_ERR);
	send_frame(&b, 1, 100, 3, 1);
	ck_assert_int_eq(wire_recv(wire, buf, sizeof(buf), TIMEOUT_MS), 100);

	/* A command without room for an answer. */
	ck_assert(drv_add(
		&b.dev.queue[2], &(struct fake_seg){.gpa = b.ctrl, .len = 2}, 1, false, &b));
	drv_kick(&b.dev.queue[2]);
	ck_assert(drv_wait(&b.dev.queue[2], &cookie, &written, TIMEOUT_MS));
	for (unsigned i = 0; !(drv_status(&b.dev) & VIRTIO_CONFIG_S_NEEDS_RESET) && i < 1000; i++)
		usleep(1000);
	ck_assert(drv_status(&b.dev) & VIRTIO_CONFIG_S_NEEDS_RESET);
	close(wire);
	bench_finish(&b);
}
END_TEST

/* What no driver should do. */
START_TEST(test_tap_hostile)
{
	uint8_t buf[4096];
	uint32_t written;
	struct bench b;
	void *cookie;
	int wire;

	if (!own_namespace())
		return;
	make_tap(TAP, 0, 1500);
	bench_init(&b, tap_config(1));
	wire = open_wire(TAP, false);
	bench_start(&b, F_MRG);
	/* Packets without a header, without a frame, too long, with nonsense in the header: all
	 * dropped. */
	for (unsigned i = 0; i < 5; i++) {
		static const uint32_t lens[] = {1, 11, 12, 25, HDR + MAX_FRAME + 1000};
		struct fake_seg seg = {.gpa = b.tx, .len = lens[i]};

		memset(drv_at(&b.m, b.tx), i == 4 ? 0xff : 0, HDR + 2000);
		ck_assert(drv_add(&b.dev.queue[1], &seg, 1, false, &b));
		drv_kick(&b.dev.queue[1]);
		ck_assert(drv_wait(&b.dev.queue[1], &cookie, &written, TIMEOUT_MS));
	}
	memset(b.packet, 0xff, HDR);
	make_frame(b.packet + HDR, 1000, 1);
	guest_send(&b, 1, 0, 1000, 1);
	drv_kick(&b.dev.queue[1]);
	ck_assert(drv_wait(&b.dev.queue[1], &cookie, &written, TIMEOUT_MS));
	ck_assert_int_lt(wire_recv(wire, buf, sizeof(buf), QUIET_MS), 0);
	send_frame(&b, 1, 1000, 2, 3);
	ck_assert_int_eq(wire_recv(wire, buf, sizeof(buf), TIMEOUT_MS), 1000);

	/* A receive buffer that cannot even hold the header. */
	give_rx(&b, 1, 11 + 1);
	ck_assert(drv_add(&b.dev.queue[0], &(struct fake_seg){.gpa = b.rx, .len = 11, .in = true},
		1, false, &b));
	drv_kick(&b.dev.queue[0]);
	make_frame(buf, 100, 3);
	ck_assert_int_eq(send(wire, buf, 100, 0), 100);
	for (unsigned i = 0; !(drv_status(&b.dev) & VIRTIO_CONFIG_S_NEEDS_RESET) && i < 1000; i++)
		usleep(1000);
	ck_assert(drv_status(&b.dev) & VIRTIO_CONFIG_S_NEEDS_RESET);
	bench_start(&b, F_MRG);
	give_rx(&b, 8, 2048);
	make_frame(buf, 100, 4);
	ck_assert_int_eq(send(wire, buf, 100, 0), 100);
	ck_assert_uint_eq(guest_recv_ours(&b, NULL, TIMEOUT_MS), HDR + 100);
	close(wire);
	bench_finish(&b);
}
END_TEST

static double cpu_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Deletes the tap; false without the command for it. */
static bool delete_tap(pid_t *pid)
{
	if (system("command -v ip >/dev/null")) {
		skip("no ip command");
		return false;
	}
	/* By name through netlink would take a library. */
	*pid = fork();
	ck_assert_int_ge(*pid, 0);
	if (!*pid) {
		execlp("ip", "ip", "link", "del", TAP, NULL);
		_exit(127);
	}
	return true;
}

/*
 * Both pairs wait for packets and the first one sends (_i): whichever queue finds out first, none
 * goes on looking at what is always ready.
 */
START_TEST(test_tap_deleted)
{
	uint16_t pairs = 2;
	struct bench b;
	double before;
	pid_t pid;

	if (!own_namespace())
		return;
	make_tap(TAP, IFF_MULTI_QUEUE, 1500);
	bench_init(&b, tap_config(2));
	bench_start(&b, F_MRG | F_CTRL | FEATURE(VIRTIO_NET_F_MQ) | FEATURE(VIRTIO_NET_F_STATUS));
	ck_assert_uint_eq(control(&b, 4, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
				  &pairs, sizeof(pairs)),
		VIRTIO_NET_OK);
	give_rx(&b, 8, 2048);
	for (unsigned i = 0; i < 8; i++)
		ck_assert(drv_add(&b.dev.queue[2],
			&(struct fake_seg){
				.gpa = b.rx + (100 + i) * 65536, .len = 2048, .in = true},
			1, false, &b));
	drv_kick(&b.dev.queue[2]);
	ck_assert_uint_eq(link_status(&b), VIRTIO_NET_S_LINK_UP);
	usleep(20000); /* all of them wait */
	if (!delete_tap(&pid)) {
		bench_finish(&b);
		return;
	}
	for (unsigned i = 0; link_status(&b) && i < 200000; i++) {
		if (_i)
			send_frame(&b, 1, 1000, i, 1);
		else
			usleep(100);
	}
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	ck_assert_uint_eq(link_status(&b), 0);
	usleep(50000);
	before = cpu_s();
	sleep(1);
	/* Of a second: a thread that spins takes nearly all, or its share of a busy machine. */
	ck_assert_msg(cpu_s() - before < 0.05, "a loop spins: %.3f s", cpu_s() - before);
	/* The guest's packets are taken and go nowhere. */
	send_frame(&b, 1, 1000, 2, 3);
	send_frame(&b, 1, 1000, 3, 3);
	bench_start(&b, F_MRG);
	send_frame(&b, 1, 1000, 2, 3);
	bench_finish(&b);
}
END_TEST

static void expect(struct bench *b, struct mb_net_config config, int rc, const char *text)
{
	struct mb_error err = {""};

	ck_assert_int_eq(create(b, &config, &err), rc);
	ck_assert_msg(strstr(err.text, text) != NULL, "'%s' is not in '%s'", text, err.text);
	ck_assert_int_eq(strncmp(err.text, "net ", 4), 0);
	ck_assert_ptr_null(strchr(err.text, '\n'));
}

START_TEST(test_tap_errors)
{
	struct mb_net_config config = tap_config(1);
	struct bench b;
	int fds[2], fd;

	if (!own_namespace())
		return;
	machine_init(&b);
	expect(&b, config, -ENODEV, "no such interface; create it with: ip tuntap add dev mbtest0");
	config.ifname = "a-name-that-is-too-long";
	expect(&b, config, -EINVAL, "not an interface name");
	config.ifname = "";
	expect(&b, config, -EINVAL, "not an interface name");
	config.ifname = "tap%d";
	expect(&b, config, -EINVAL, "not an interface name");
	config.ifname = "lo";
	expect(&b, config, -EINVAL, "not a tap");
	fd = open_tap("mbtun0", IFF_TUN);
	config.ifname = "mbtun0";
	expect(&b, config, -EINVAL, "not a tap");
	close(fd);

	make_tap(TAP, 0, 1500);
	config = tap_config(2);
	expect(&b, config, -EINVAL, "without multi_queue");
	config = tap_config(1);
	fd = open_tap(TAP, IFF_TAP);
	expect(&b, config, -EBUSY, "in use by another machine");
	close(fd);
	config.mac[0] = 1;
	expect(&b, config, -EINVAL, "group address");
	config = tap_config(0);
	expect(&b, config, -EINVAL, "0 queue pairs");
	make_tap("mbmulti0", IFF_MULTI_QUEUE, 1500);
	config = tap_config(1);
	config.ifname = "mbmulti0";
	expect(&b, config, -EINVAL, "with multi_queue");

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	config = (struct mb_net_config){.back = MB_NET_TAP_FD, .fd = fds[0], .n_pairs = 1};
	expect(&b, config, -EINVAL, "is not a tap");
	ck_assert_int_lt(fcntl(fds[0], F_GETFD), 0); /* it was ours to close */
	expect(&b, config, -EBADF, "not an open descriptor");
	config.n_pairs = 2;
	config.fd = fds[1];
	expect(&b, config, -EINVAL, "one queue pair only");
	ck_assert_int_lt(fcntl(fds[1], F_GETFD), 0);
	config.n_pairs = 1;
	config.fd = open_tap(TAP, IFF_TAP | IFF_NO_PI);
	expect(&b, config, -EINVAL, "without IFF_VNET_HDR");

	if (!geteuid()) {
		ck_assert_int_eq(seteuid(65534), 0);
		expect(&b, tap_config(1), eaccess("/dev/net/tun", W_OK) ? -EACCES : -EPERM,
			"no permission");
		ck_assert_int_eq(seteuid(0), 0);
	}
	b.net = NULL;
	bench_finish(&b);
}
END_TEST

START_TEST(test_tap_fd)
{
	uint8_t buf[2048];
	struct bench b;
	int wire;

	if (!own_namespace())
		return;
	make_tap(TAP, 0, 1500);
	bench_init(&b, (struct mb_net_config){
			       .back = MB_NET_TAP_FD,
			       .fd = open_tap(TAP, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR),
			       .n_pairs = 1,
			       .mac = {0x52, 0x54, 0, 1, 2, 3},
		       });
	wire = open_wire(TAP, false);
	bench_start(&b, UINT64_MAX & ~F_PACKED);
	drv_config_read(&b.dev, 0, buf, 6);
	ck_assert_int_eq(memcmp(buf, "\x52\x54\x00\x01\x02\x03", 6), 0);
	send_frame(&b, 1, 1000, 2, 3);
	ck_assert_int_eq(wire_recv(wire, buf, sizeof(buf), TIMEOUT_MS), 1000);
	mb_net_reset(b.net);
	close(wire);
	bench_finish(&b);
}
END_TEST

/* ---- passt: this program, under that name ---- */

static bool read_all(int fd, void *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = read(fd, (char *)buf + done, len - done);

		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

/* Ways to be wrong from the start, as arg= asks for. -1: none of them. */
static int passt_fails(int fd, const char *how)
{
	if (!strcmp(how, "--usage")) { /* as without a syslog: more than one read */
		fprintf(stderr,
			"passt: unrecognized \033option\n\nFailed to send 31 bytes to syslog\n"
			"Usage: passt [OPTION]...\nFailed to send 7 bytes to syslog\n");
		for (unsigned i = 0; i < 200; i++)
			fprintf(stderr, "  -%c\tDoes something\nFailed to send 9 bytes\n",
				'a' + i % 26);
		return 1;
	}
	if (!strcmp(how, "--long")) {
		for (unsigned i = 0; i < 5000; i++)
			fprintf(stderr, "words ");
		return 2;
	}
	if (!strcmp(how, "--late")) {
		usleep(200000);
		fprintf(stderr, "the first\nthe last\n   \n");
		return 3;
	}
	if (!strcmp(how, "--killed"))
		raise(SIGKILL);
	if (!strcmp(how, "--silent"))
		return 0;
	if (!strcmp(how, "--closes")) {
		close(fd);
		pause();
	}
	if (!strcmp(how, "--hangs"))
		pause();
	if (!strcmp(how, "--slow"))
		usleep(300000);
	return -1;
}

/*
 * Sends each frame back in three pieces, but for the one of 14 bytes that only finds out whether it
 * is there. A frame whose number is 0xdead makes it exit with 3 and a word, 0xbad a stream that is
 * not frames, 0x5109 reading nothing for a while.
 */
static int passt_main(int argc, char **argv)
{
	static uint8_t frame[4 + 70000];
	int fd = -1;

	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "-F"))
			fd = atoi(argv[i + 1]);
	if (fd != 3 || strcmp(argv[1], "-f"))
		return 2;
	if (argc > 6) {
		int status = passt_fails(fd, argv[6]);

		if (status >= 0)
			return status;
	}
	while (read_all(fd, frame, 4)) {
		uint32_t len = (uint32_t)frame[0] << 24 | (uint32_t)frame[1] << 16 |
			       (uint32_t)frame[2] << 8 | frame[3];
		uint32_t number = 0;

		if (len > 65535 || !read_all(fd, frame + 4, len))
			return 4;
		if (len == 14)
			continue;
		if (len >= 18)
			memcpy(&number, frame + 18, 4);
		if (number == 0xdead) {
			fprintf(stderr, "no more of this\n");
			return 3;
		}
		if (number == 0xbad)
			memset(frame, 0xff, 4);
		if (number == 0x5109)
			usleep(300000);
		for (uint32_t at = 0; at < 4 + len;) {
			uint32_t n = (4 + len) / 3 + 1;
			ssize_t put = write(fd, frame + at, n < 4 + len - at ? n : 4 + len - at);

			if (put < 0)
				return 5;
			at += (uint32_t)put;
		}
	}
	return 0;
}

static void fake_passt_path(char *dir)
{
	char link[300], self[200] = "";

	ck_assert_int_gt(readlink("/proc/self/exe", self, sizeof(self) - 1), 0);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(link, sizeof(link), "%s/passt", dir);
	ck_assert_int_eq(symlink(self, link), 0);
	setenv("PATH", dir, 1);
}

static void remove_path(const char *dir)
{
	char link[300];

	snprintf(link, sizeof(link), "%s/passt", dir);
	unlink(link);
	rmdir(dir);
}

static const struct mb_net_config passt_config = {.back = MB_NET_PASST, .n_pairs = 1};

START_TEST(test_passt_echo)
{
	static const uint32_t sizes[] = {18, 60, 1514, 4000, 65535};
	char dir[] = "/tmp/mb-net-XXXXXX";
	struct bench b;

	fake_passt_path(dir);
	bench_init(&b, passt_config);
	ck_assert(!(drv_offered(&b.dev) & FEATURE(VIRTIO_NET_F_GUEST_TSO4)));
	ck_assert(!(drv_offered(&b.dev) & FEATURE(VIRTIO_NET_F_CSUM)));
	bench_start(&b, F_MRG | rings[_i]);
	give_rx(&b, 60, 2048);
	for (unsigned i = 0; i < 100; i++) {
		uint32_t len = sizes[i % 5];
		unsigned n_bufs;

		send_frame(&b, 1, len, i, 1 + i % 7);
		ck_assert_uint_eq(guest_recv(&b, &n_bufs, TIMEOUT_MS), HDR + len);
		for (unsigned j = 0; j < 10; j++)
			ck_assert_uint_eq(b.packet[j], 0);
		check_frame(b.packet + HDR, len, i);
		give_rx(&b, n_bufs, 2048);
	}
	ck_assert_uint_eq(link_status(&b), VIRTIO_NET_S_LINK_UP);
	bench_finish(&b);
	ck_assert_int_eq(waitpid(-1, NULL, WNOHANG), -1); /* reaped */
	remove_path(dir);
}
END_TEST

/* More than the socket holds, while passt sleeps, and a reset in the middle of a frame. */
START_TEST(test_passt_full)
{
	char dir[] = "/tmp/mb-net-XXXXXX";
	unsigned n_done = 0, n_bufs, n_got = 0;
	uint32_t written, last = 0;
	struct bench b;
	void *cookie;

	fake_passt_path(dir);
	bench_init(&b, passt_config);
	bench_start(&b, F_MRG);
	give_rx(&b, 60, 2048);
	send_frame(&b, 1, 1000, 0x5109, 1);
	memset(b.packet, 0, HDR);
	for (unsigned i = 0; i < 16; i++) {
		make_frame(b.packet + HDR, 60000, i);
		guest_send(&b, 1, i, 60000, 3);
	}
	drv_kick(&b.dev.queue[1]);
	if (_i) {
		usleep(100000);
		drv_reset(&b.dev);
		ck_assert_int_eq(fake_dma_n_mapped(&b.m.ram), 0);
		bench_start(&b, F_MRG);
		give_rx(&b, 60, 2048);
		/* Its turn may come only after passt has got rid of earlier ones: receive first. */
		make_frame(b.packet + HDR, 500, 77);
		guest_send(&b, 1, 0, 500, 2);
		drv_kick(&b.dev.queue[1]);
		/* Whole frames only, the last of them the new one; earlier ones may be gone. */
		while (last != 77) {
			uint32_t len = guest_recv(&b, &n_bufs, TIMEOUT_MS);

			ck_assert_uint_gt(len, HDR);
			memcpy(&last, b.packet + HDR + 14, 4);
			ck_assert_uint_eq(len, HDR + (last == 77	      ? 500
							     : last == 0x5109 ? 1000
									      : 60000));
			check_frame(b.packet + HDR, len - HDR, last);
			give_rx(&b, n_bufs, 2048);
		}
		ck_assert(drv_wait(&b.dev.queue[1], &cookie, &written, TIMEOUT_MS));
		ck_assert_uint_eq(written, 0);
	} else {
		while (n_got < 17) {
			uint32_t len = guest_recv(&b, &n_bufs, TIMEOUT_MS);

			ck_assert_uint_eq(len, HDR + (n_got ? 60000 : 1000));
			check_frame(b.packet + HDR, len - HDR, n_got ? n_got - 1 : 0x5109);
			give_rx(&b, n_bufs, 2048);
			n_got++;
		}
		while (drv_wait(&b.dev.queue[1], &cookie, &written, 0))
			n_done++;
		ck_assert_uint_eq(n_done, 16);
	}
	bench_finish(&b);
	remove_path(dir);
}
END_TEST

/* Where standard error goes: to a file, for a while. */
struct ear {
	int fd, old;
};

static struct ear listen_to_stderr(void)
{
	struct ear ear = {
		.fd = memfd_create("stderr", MFD_CLOEXEC),
		.old = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3),
	};

	ck_assert_int_ge(ear.fd, 0);
	ck_assert_int_ge(ear.old, 0);
	ck_assert_int_ge(dup2(ear.fd, STDERR_FILENO), 0);
	return ear;
}

static void expect_said(struct ear *ear, const char *want)
{
	char text[2000] = "";

	ck_assert_int_ge(dup2(ear->old, STDERR_FILENO), 0);
	ck_assert_int_ge(pread(ear->fd, text, sizeof(text) - 1, 0), 0);
	ck_assert_str_eq(text, want);
	close(ear->fd);
	close(ear->old);
}

START_TEST(test_passt_dies)
{
	static const uint32_t numbers[] = {0xdead, 0xbad};
	static const char *const lines[] = {
		"mirrorball: net passt: link down: the program passt ended (status 3): no more of "
		"this; the machine goes on without it\n",
		"mirrorball: net passt: link down: what it sent is not a packet; the machine goes "
		"on without it\n",
	};
	struct ear ear = listen_to_stderr();
	char dir[] = "/tmp/mb-net-XXXXXX";
	struct bench b;

	fake_passt_path(dir);
	bench_init(&b, passt_config);
	bench_start(&b, F_MRG | FEATURE(VIRTIO_NET_F_STATUS));
	give_rx(&b, 60, 2048);
	send_frame(&b, 1, 1000, numbers[_i], 1);
	for (unsigned i = 0; link_status(&b) && i < 5000; i++)
		usleep(1000);
	ck_assert_uint_eq(link_status(&b), 0);
	send_frame(&b, 1, 1000, 1, 1);
	bench_finish(&b);
	ck_assert_int_eq(waitpid(-1, NULL, WNOHANG), -1);
	expect_said(&ear, lines[_i]);
	remove_path(dir);
}
END_TEST

START_TEST(test_passt_start)
{
	struct mb_net_config config = passt_config;
	char dir[] = "/tmp/mb-net-XXXXXX", path[64];
	struct bench b;
	int fd;

	machine_init(&b);
	setenv("PATH", "/nonexistent", 1);
	expect(&b, config, -ENOENT,
		"net passt: the program passt is not installed; apt install passt");
	config.n_pairs = 2;
	expect(&b, config, -EINVAL, "one queue pair only");
	config.n_pairs = 1;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	setenv("PATH", dir, 1);
	snprintf(path, sizeof(path), "%s/passt", dir);
	fd = creat(path, 0644);
	ck_assert_int_eq(write(fd, "nonsense", 8), 8);
	close(fd);
	expect(&b, config, -EACCES,
		"net passt: cannot start the program passt: Permission denied; see that 'passt "
		"--version' works");
	ck_assert_int_eq(chmod(path, 0755), 0);
	expect(&b, config, -ENOEXEC, "cannot start the program passt: Exec format error; see");
	b.net = NULL;
	bench_finish(&b);
	remove_path(dir);
}
END_TEST

/* It can be started and does not get as far as its work. */
START_TEST(test_passt_ends_at_once)
{
	static const struct {
		const char *arg, *text;
	} ways[] = {
		{"--usage", "net passt: the program passt ended at once (status 1): passt: "
			    "unrecognized  option; put that right, see passt(1), or use"},
		{"--long", "ended at once (status 2): words words words"},
		{"--late", "ended at once (status 3): the last; put that right"},
		{"--killed", "ended at once (signal 9); put that right"},
		{"--silent", "ended at once (status 0); put that right"},
		{"--closes", "closed its socket at once; put that right"},
	};
	char dir[] = "/tmp/mb-net-XXXXXX";

	fake_passt_path(dir);
	for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		struct mb_net_config config = passt_config;
		const char *const args[] = {ways[i].arg, NULL};
		struct mb_error err;
		struct bench b;
		size_t len;

		config.passt_args = args;
		machine_init(&b);
		expect(&b, config, -ECONNRESET, ways[i].text);
		ck_assert_int_eq(create(&b, &config, &err), -ECONNRESET);
		/* Whatever passt said: short, and what to do is not cut off. */
		len = strlen(err.text);
		ck_assert_uint_lt(len, 300);
		ck_assert_str_eq(err.text + len - 8, "tap=NAME");
		b.net = NULL;
		bench_finish(&b);
		ck_assert_int_eq(waitpid(-1, NULL, WNOHANG), -1);
	}
	remove_path(dir);
}
END_TEST

/* One that is slow is waited for, one that hangs is not for ever. */
START_TEST(test_passt_slow)
{
	const char *const args[] = {_i ? "--hangs" : "--slow", NULL};
	struct mb_net_config config = passt_config;
	char dir[] = "/tmp/mb-net-XXXXXX";
	struct ear ear = listen_to_stderr();
	struct bench b;

	fake_passt_path(dir);
	config.passt_args = args;
	bench_init(&b, config);
	ck_assert_uint_eq(link_status(&b), VIRTIO_NET_S_LINK_UP);
	if (!_i) {
		bench_start(&b, F_MRG);
		give_rx(&b, 60, 2048);
		send_frame(&b, 1, 1000, 5, 1);
		ck_assert_uint_eq(guest_recv(&b, NULL, TIMEOUT_MS), HDR + 1000);
		check_frame(b.packet + HDR, 1000, 5);
	}
	bench_finish(&b);
	ck_assert_int_eq(waitpid(-1, NULL, WNOHANG), -1);
	expect_said(&ear,
		_i ? "mirrorball: net passt: the program passt is not ready after 3 s; the "
		     "machine starts without waiting for it\n"
		   : "");
	remove_path(dir);
}
END_TEST

/* The real program: who has its gateway's address? */
START_TEST(test_passt_real)
{
	struct bench b;

	if (system("command -v passt >/dev/null && ip route | grep -q ^default")) {
		skip("no passt, or no default route");
		return;
	}
	bench_init(&b, passt_config);
	bench_start(&b, F_MRG);
	give_rx(&b, 60, 2048);
	memset(b.packet, 0, HDR);
	/* A DHCP request for an address: passt answers by itself. */
	memset(b.packet + HDR, 0, 400);
	memcpy(b.packet + HDR, "\xff\xff\xff\xff\xff\xff\x52\x54\x00\x01\x02\x03\x08\x00", 14);
	memcpy(b.packet + HDR + 14,
		"\x45\x00\x01\x18\x00\x00\x00\x00\x40\x11\x79\xd6\x00\x00\x00\x00\xff\xff\xff\xff",
		20);
	memcpy(b.packet + HDR + 34, "\x00\x44\x00\x43\x01\x04\x00\x00", 8);
	memcpy(b.packet + HDR + 42, "\x01\x01\x06\x00mbxx", 8);
	memcpy(b.packet + HDR + 42 + 28, "\x52\x54\x00\x01\x02\x03", 6);
	memcpy(b.packet + HDR + 42 + 236, "\x63\x82\x53\x63\x35\x01\x01\xff", 8);
	guest_send(&b, 1, 0, 14 + 280, 2);
	drv_kick(&b.dev.queue[1]);
	for (;;) {
		uint32_t len = guest_recv(&b, NULL, TIMEOUT_MS);

		ck_assert_msg(len > HDR, "no answer from passt");
		/* BOOTP reply with our transaction's number. */
		if (len > HDR + 50 && b.packet[HDR + 42] == 2 &&
			!memcmp(b.packet + HDR + 46, "mbxx", 4))
			break;
		give_rx(&b, 1, 2048);
	}
	bench_finish(&b);
	ck_assert_int_eq(waitpid(-1, NULL, WNOHANG), -1);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("net");
	TCase *tc = tcase_create("net");

	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, test_tap_config);
	tcase_add_loop_test(tc, test_tap_both_ways, 0, N_RINGS);
	tcase_add_loop_test(tc, test_tap_slow_guest, 0, N_RINGS);
	tcase_add_loop_test(tc, test_tap_one_buffer, 0, N_RINGS);
	tcase_add_loop_test(tc, test_tap_storm, 0, N_RINGS);
	tcase_add_test(tc, test_tap_offloads);
	tcase_add_test(tc, test_tap_queues);
	tcase_add_test(tc, test_tap_hostile);
	tcase_add_loop_test(tc, test_tap_deleted, 0, 2);
	tcase_add_test(tc, test_tap_errors);
	tcase_add_test(tc, test_tap_fd);
	tcase_add_loop_test(tc, test_passt_echo, 0, N_RINGS);
	tcase_add_loop_test(tc, test_passt_full, 0, 2);
	tcase_add_loop_test(tc, test_passt_dies, 0, 2);
	tcase_add_test(tc, test_passt_start);
	tcase_add_test(tc, test_passt_ends_at_once);
	tcase_add_loop_test(tc, test_passt_slow, 0, 2);
	tcase_add_test(tc, test_passt_real);
	suite_add_tcase(s, tc);
	return s;
}

int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/');

	if (!strcmp(slash ? slash + 1 : argv[0], "passt"))
		return passt_main(argc, argv);
	return run_suite(suite());
}
