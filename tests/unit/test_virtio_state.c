// SPDX-License-Identifier: Apache-2.0
#include "blk_bench.h"
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/balloon.h>
#include <mirrorball/rng.h>
#include <mirrorball/virtio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Snapshots of virtio devices: pause, save, load into another one, with a driver that does not
 * notice. */
#define SECOND_NS 1000000000ull
#define QSIZE	  32u
#define HELD_MAX  QSIZE

/* Queue 0 gives back what it reads, inverted; queue 1 keeps its chains until it is told to, in
 * order. */
struct toy {
	struct mb_virtio *vdev;
	struct mb_virtq *vq[2];
	struct mb_chain *held[HELD_MAX];
	unsigned n_held;
	bool paused[2];
	bool by_itself; /* no queue_pause */
};

static struct drv_machine m;
static struct drv_device dev;
static struct mb_loop *loop;
static struct toy toy;
static struct mb_state_out out;

static int toy_start(void *ctx, struct mb_virtq *vq, uint64_t features)
{
	struct toy *t = ctx;

	t->vq[mb_virtq_index(vq)] = vq;
	return 0;
}

static void echo(struct mb_virtq *vq, struct mb_chain *chain)
{
	uint32_t value = 0;

	mb_chain_read(chain, 0, &value, sizeof(value));
	value = ~value;
	mb_virtq_push(vq, chain, (uint32_t)mb_chain_write(chain, 0, &value, sizeof(value)));
}

static void toy_kick(void *ctx, struct mb_virtq *vq)
{
	struct toy *t = ctx;
	unsigned i = mb_virtq_index(vq);
	struct mb_chain *chain;

	t->paused[i] = false;
	while (mb_virtq_pop(vq, &chain) > 0) {
		if (i)
			t->held[t->n_held++] = chain;
		else
			echo(vq, chain);
	}
	mb_virtq_signal(vq);
}

static void toy_pause(void *ctx, struct mb_virtq *vq)
{
	struct toy *t = ctx;

	t->paused[mb_virtq_index(vq)] = true;
	if (mb_virtq_index(vq))
		t->n_held = 0;
}

static void toy_stop(void *ctx, struct mb_virtq *vq)
{
	struct toy *t = ctx;

	if (mb_virtq_index(vq))
		t->n_held = 0;
}

static const struct mb_virtio_ops ops = {
	.queue_start = toy_start,
	.queue_kick = toy_kick,
	.queue_stop = toy_stop,
	.queue_pause = toy_pause,
};
/* One that completes by itself: nobody can say when. */
static const struct mb_virtio_ops slow_ops = {
	.queue_start = toy_start,
	.queue_kick = toy_kick,
	.queue_stop = toy_stop,
};

static void make_toy(uint64_t features, unsigned n_queues)
{
	struct mb_loop *loops[] = {loop, loop, loop};
	struct mb_virtio_config config = {
		.type = 42,
		.class_code = 0x0880ff,
		.features = features,
		.n_queues = n_queues,
		.queue_size = QSIZE,
		.loops = loops,
		.ops = toy.by_itself ? &slow_ops : &ops,
		.dev = &toy,
		.name = "toy",
	};
	struct mb_error err;

	ck_assert_msg(
		!mb_virtio_create(m.pci, &m.ram.dma, &config, &toy.vdev, &err), "%s", err.text);
}

static void setup(void)
{
	struct mb_error err;

	memset(&toy, 0, sizeof(toy));
	drv_machine_init(&m, 4u << 20);
	ck_assert_int_eq(mb_loop_create(&loop, &err), 0);
	ck_assert_int_eq(mb_loop_start_thread(loop, "toy", NULL, &err), 0);
}

static void teardown(void)
{
	mb_virtio_destroy(toy.vdev);
	toy.vdev = NULL;
	mb_loop_destroy(loop);
	drv_machine_finish(&m);
	mb_state_out_finish(&out);
}

static void release_on_loop(void *arg)
{
	for (unsigned i = 0; i < toy.n_held; i++)
		echo(toy.vq[1], toy.held[i]);
	toy.n_held = 0;
	mb_virtq_signal(toy.vq[1]);
}

/* Each in a place of its own, so that what comes later is not taken for it. */
static uint64_t buffers;

static void send(unsigned queue, uint32_t value)
{
	uint64_t gpa = buffers + value % 64 * 64 + queue * 4096;
	struct fake_seg seg[] = {{gpa, 4, false}, {gpa + 8, 4, true}};

	memcpy(drv_at(&m, gpa), &value, sizeof(value));
	memset(drv_at(&m, gpa + 8), 0, 4);
	ck_assert(drv_add(&dev.queue[queue], seg, 2, value % 3 == 0, (void *)(uintptr_t)value));
}

static void expect(unsigned queue, uint32_t value)
{
	uint64_t gpa = buffers + value % 64 * 64 + queue * 4096;
	uint32_t written, got;
	void *cookie;

	ck_assert_msg(drv_wait(&dev.queue[queue], &cookie, &written, 5000),
		"queue %u: no answer to %u", queue, value);
	ck_assert_uint_eq((uintptr_t)cookie, value);
	memcpy(&got, drv_at(&m, gpa + 8), sizeof(got));
	ck_assert_uint_eq(got, ~value);
}

static void round_trips(uint32_t first, unsigned n)
{
	for (uint32_t i = first; i < first + n; i++) {
		send(0, i);
		drv_kick(&dev.queue[0]);
		expect(0, i);
	}
}

static void save(void)
{
	mb_state_out_finish(&out);
	mb_pci_bus_save(m.pci, &out);
	mb_virtio_save(toy.vdev, &out);
	ck_assert_int_eq(out.rc, 0);
}

static int load(const void *data, size_t len)
{
	struct mb_state_in in = {.at = data, .left = len};
	struct mb_error err = {""};
	int rc = mb_pci_bus_load(m.pci, &in, &err);

	if (!rc)
		rc = mb_virtio_load(toy.vdev, &in, &err);
	ck_assert_int_eq(!rc, !*err.text);
	return rc;
}

static const uint64_t kinds[] = {0, 1ull << VIRTIO_RING_F_EVENT_IDX, 1ull << VIRTIO_F_RING_PACKED,
	1ull << VIRTIO_F_RING_PACKED | 1ull << VIRTIO_RING_F_EVENT_IDX};
#define N_KINDS (sizeof(kinds) / sizeof(kinds[0]))

static void start(uint64_t features)
{
	make_toy(1ull << 3, 2);
	drv_open(&dev, &m, 1);
	ck_assert(drv_start(&dev, features | 1ull << VIRTIO_RING_F_INDIRECT_DESC, 2, QSIZE));
	buffers = drv_alloc(&m, 2 * 4096, 4096);
}

static void replace(void)
{
	mb_virtio_destroy(toy.vdev);
	memset(&toy, 0, sizeof(toy));
	make_toy(1ull << 3, 2);
}

START_TEST(test_goes_on)
{
	struct mb_error err;

	start(kinds[_i]);
	for (uint32_t n = 0; n < 40; n++) {
		const uint32_t base = n * 100;

		round_trips(base, n);
		for (uint32_t i = 0; i < n % 8; i++)
			send(1, base + i);
		drv_kick(&dev.queue[1]);
		/* One that comes when nobody looks any more. */
		ck_assert_int_eq(mb_virtio_pause(toy.vdev, SECOND_NS, &err), 0);
		ck_assert_uint_eq(toy.n_held, 0);
		send(0, base + 50);
		save();
		if (n % 2) {
			replace();
			ck_assert_int_eq(load(out.data, out.len), 0);
		} else {
			mb_virtio_resume(toy.vdev);
		}
		expect(0, base + 50);
		round_trips(base + 51, 40);
		for (unsigned i = 0; toy.n_held < n % 8; i++) {
			ck_assert_uint_lt(i, 5000);
			usleep(1000);
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
		}
		mb_loop_call(loop, release_on_loop, NULL);
		for (uint32_t i = 0; i < n % 8; i++)
			expect(1, base + i);
	}
	drv_close(&dev);
}
END_TEST

/* A state that is not what was saved: an answer, no crash, and nothing is left mapped. */
START_TEST(test_damage)
{
	uint8_t *bad;
	struct mb_error err;
	size_t len;

	start(kinds[_i]);
	round_trips(0, 10);
	ck_assert_int_eq(mb_virtio_pause(toy.vdev, SECOND_NS, &err), 0);
	save();
	len = out.len;
	for (size_t n = 0; n < len; n++) {
		replace();
		bad = malloc(n + !n);
		memcpy(bad, out.data, n);
		ck_assert_int_eq(load(bad, n), -EINVAL);
		free(bad);
	}
	bad = malloc(len);
	for (size_t at = 0; at < len; at++) {
		static const uint8_t change[] = {1, 0x80, 0xff};

		for (unsigned i = 0; i < sizeof(change); i++) {
			memcpy(bad, out.data, len);
			bad[at] ^= change[i];
			replace();
			load(bad, len);
		}
	}
	free(bad);
	replace();
	ck_assert_int_eq(load(out.data, out.len), 0);
	round_trips(10, 100);
	drv_close(&dev);
}
END_TEST

START_TEST(test_other_device)
{
	struct mb_error err;

	start(1ull << 3);
	ck_assert_int_eq(mb_virtio_pause(toy.vdev, SECOND_NS, &err), 0);
	save();
	mb_virtio_destroy(toy.vdev);
	make_toy(0, 2);
	/* The driver has a feature that this one does not offer. */
	ck_assert_int_eq(load(out.data, out.len), -ENOTSUP);
	mb_virtio_destroy(toy.vdev);
	make_toy(1ull << 3, 3);
	ck_assert_int_eq(load(out.data, out.len), -EINVAL);
	drv_close(&dev);
}
END_TEST

START_TEST(test_waits)
{
	struct mb_error err;

	toy.by_itself = true;
	start(0);
	send(1, 1);
	drv_kick(&dev.queue[1]);
	for (unsigned i = 0; !__atomic_load_n(&toy.n_held, __ATOMIC_SEQ_CST); i++) {
		ck_assert_uint_lt(i, 5000);
		usleep(1000);
	}
	ck_assert_int_eq(mb_virtio_pause(toy.vdev, 10000000, &err), -ETIMEDOUT);
	ck_assert_ptr_nonnull(strstr(err.text, "toy: what is in flight has not ended"));
	/* As before. */
	round_trips(2, 10);
	mb_loop_call(loop, release_on_loop, NULL);
	expect(1, 1);
	ck_assert_int_eq(mb_virtio_pause(toy.vdev, SECOND_NS, &err), 0);
	mb_virtio_resume(toy.vdev);
	round_trips(20, 10);
	drv_close(&dev);
}
END_TEST

/* ---- a disk ---- */

static void make_base(struct storm *s)
{
	uint8_t *data = malloc(DISK_BYTES);
	int fd;

	blk_make_file(s->b.path, "/var/tmp", DISK_BYTES);
	for (uint32_t i = 0; i < DISK_BYTES; i++)
		data[i] = (uint8_t)(i >> 9 ^ i >> 17);
	fd = open(s->b.path, O_WRONLY);
	ck_assert_int_eq(pwrite(fd, data, DISK_BYTES, 0), DISK_BYTES);
	close(fd);
	memcpy(s->shadow, data, DISK_BYTES);
	free(data);
}

static int load_disk(
	struct bench *b, int delta, const struct mb_state_out *state, struct mb_error *err)
{
	struct mb_state_in in = {.at = state->data, .left = state->len};
	int rc = mb_pci_bus_load(b->m.pci, &in, err);

	return rc ? rc : mb_blk_load(b->blk, delta, &in, err);
}

/* Saved in the middle of a storm and replaced by what was saved: every request completes once, with
 * what it should. */
START_TEST(test_disk)
{
	struct storm *s = calloc(1, sizeof(*s));
	struct bench *b = &s->b;
	struct mb_error err;

	s->rng = 0x9e3779b97f4a7c15ull;
	b->cow = true;
	make_base(s);
	bench_init_path(b, false);
	bench_start(b, UINT64_MAX & ~(_i ? F_PACKED : 0));
	for (unsigned round = 0; round < 6; round++) {
		char path[] = "/var/tmp/mb-delta-XXXXXX";
		struct mb_state_out state = {0};
		int delta = mkstemp(path);

		unlink(path);
		storm_round(s, 200);
		for (unsigned i = 0; i < N_SLOTS; i++)
			storm_start(s, i);
		for (unsigned q = 0; q < N_QUEUES; q++)
			drv_kick(&b->dev.queue[q]);
		ck_assert_int_eq(mb_blk_can_save(b->blk, &err), 0);
		ck_assert_int_eq(mb_blk_pause(b->blk, 20 * SECOND_NS, &err), 0);
		mb_pci_bus_save(b->m.pci, &state);
		ck_assert_msg(!mb_blk_save(b->blk, delta, &state, &err), "%s", err.text);
		if (round % 2) {
			mb_blk_resume(b->blk);
		} else {
			mb_blk_destroy(b->blk);
			ck_assert_msg(!blk_try_create(b, false, &err), "%s", err.text);
			ck_assert_msg(!load_disk(b, delta, &state, &err), "%s", err.text);
		}
		storm_round(s, 200);
		storm_read_all(s);
		mb_state_out_finish(&state);
		close(delta);
	}
	bench_finish(b);
	free(s);
}
END_TEST

/* The base is another one, the delta is cut off, a state is damaged. */
START_TEST(test_disk_refused)
{
	struct storm *s = calloc(1, sizeof(*s));
	struct bench *b = &s->b;
	struct mb_state_out state = {0};
	char path[] = "/var/tmp/mb-delta-XXXXXX";
	struct mb_error err;
	uint8_t *good;
	int delta = mkstemp(path), fd;

	unlink(path);
	s->rng = 12345;
	b->cow = true;
	make_base(s);
	bench_init_path(b, false);
	bench_start(b, UINT64_MAX);
	storm_round(s, 200);
	ck_assert_int_eq(mb_blk_pause(b->blk, 20 * SECOND_NS, &err), 0);
	mb_pci_bus_save(b->m.pci, &state);
	ck_assert_int_eq(mb_blk_save(b->blk, delta, &state, &err), 0);
	mb_blk_destroy(b->blk);

	good = malloc(state.len);
	memcpy(good, state.data, state.len);
	for (size_t at = 0; at < state.len; at += 1 + at / 64) {
		state.data[at] ^= 0x41;
		ck_assert_int_eq(blk_try_create(b, false, &err), 0);
		load_disk(b, delta, &state, &err);
		mb_blk_destroy(b->blk);
		state.data[at] = good[at];
	}
	free(good);

	ck_assert_int_eq(ftruncate(delta, 512), 0);
	ck_assert_int_eq(blk_try_create(b, false, &err), 0);
	ck_assert_int_eq(load_disk(b, delta, &state, &err), -ENODATA);
	ck_assert_ptr_nonnull(strstr(err.text, "is cut off"));
	mb_blk_destroy(b->blk);

	fd = open(b->path, O_WRONLY);
	ck_assert_int_eq(pwrite(fd, "x", 1, 0), 1);
	close(fd);
	ck_assert_int_eq(blk_try_create(b, false, &err), 0);
	ck_assert_int_eq(load_disk(b, delta, &state, &err), -ESTALE);
	ck_assert_ptr_nonnull(strstr(err.text, "was changed since the snapshot was made"));
	mb_state_out_finish(&state);
	close(delta);
	bench_finish(b);
	free(s);
}
END_TEST

/* A disk that is written would not stay as it is. */
START_TEST(test_disk_written)
{
	struct bench b;
	struct mb_error err;

	bench_init(&b, "/var/tmp", DISK_BYTES);
	ck_assert_int_eq(mb_blk_can_save(b.blk, &err), -ENOTSUP);
	ck_assert_ptr_nonnull(strstr(err.text, "is written"));
	bench_finish(&b);
}
END_TEST

/* ---- others ---- */

START_TEST(test_balloon)
{
	struct mb_state_out state = {0};
	struct mb_balloon *balloon;
	struct mb_state_in in;
	uint32_t actual = 77;
	struct mb_error err;

	make_toy(0, 1);
	ck_assert_int_eq(mb_balloon_create(m.pci, &m.ram.dma, loop, &balloon, &err), 0);
	drv_open(&dev, &m, 2);
	ck_assert(drv_start(&dev, drv_offered(&dev), 3, QSIZE));
	drv_config_write(&dev, 4, &actual, sizeof(actual));
	ck_assert_int_eq(mb_balloon_pause(balloon, SECOND_NS, &err), 0);
	mb_pci_bus_save(m.pci, &state);
	mb_balloon_save(balloon, &state);
	mb_balloon_destroy(balloon);
	ck_assert_int_eq(mb_balloon_create(m.pci, &m.ram.dma, loop, &balloon, &err), 0);
	in = (struct mb_state_in){.at = state.data, .left = state.len};
	ck_assert_int_eq(mb_pci_bus_load(m.pci, &in, &err), 0);
	ck_assert_msg(!mb_balloon_load(balloon, &in, &err), "%s", err.text);
	actual = 0;
	drv_config_read(&dev, 4, &actual, sizeof(actual));
	ck_assert_uint_eq(actual, 77);
	mb_balloon_destroy(balloon);
	drv_close(&dev);
	mb_state_out_finish(&state);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("virtio-state");
	TCase *toys = tcase_create("toy"), *disks = tcase_create("disk");

	tcase_add_checked_fixture(toys, setup, teardown);
	tcase_set_timeout(toys, 60);
	tcase_add_loop_test(toys, test_goes_on, 0, N_KINDS);
	tcase_add_loop_test(toys, test_damage, 0, N_KINDS);
	tcase_add_test(toys, test_other_device);
	tcase_add_test(toys, test_waits);
	tcase_add_test(toys, test_balloon);
	suite_add_tcase(suite, toys);
	tcase_set_timeout(disks, 60);
	tcase_add_loop_test(disks, test_disk, 0, 2);
	tcase_add_test(disks, test_disk_refused);
	tcase_add_test(disks, test_disk_written);
	suite_add_tcase(suite, disks);
	return run_suite(suite);
}
