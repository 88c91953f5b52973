// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <mirrorball/console.h>
#include <stdlib.h>
#include <string.h>

/*
 * The transport and the rings, linked instead of devices/virtio*.c: chains are added here by hand.
 */
#define MAX_CHAINS 1024

struct fake_chain {
	struct mb_chain chain;
	struct iovec iov[4];
	char mem[4][512];
	bool pushed;
	uint32_t written;
};

struct mb_virtq {
	unsigned index;
	struct fake_chain *ring[MAX_CHAINS];
	unsigned n_added, n_popped, n_pushed, n_signals;
	bool broken;
};

struct mb_virtio {
	struct mb_virtio_config config;
	struct mb_virtq vq[2];
	unsigned n_config_changed, n_reset;
	bool stopped, paused;
};

static struct mb_virtio *vdev;
static int create_rc;

int mb_virtio_create(struct mb_pci_bus *pci, struct mb_dma *dma,
	const struct mb_virtio_config *config, struct mb_virtio **out, struct mb_error *err)
{
	if (create_rc)
		return mb_error_set(err, -create_rc, "no more slots");
	vdev = calloc(1, sizeof(*vdev));
	vdev->config = *config;
	vdev->vq[1].index = 1;
	*out = vdev;
	return 0;
}

static void stop_on_loop(void *arg)
{
	struct mb_virtio *v = arg;

	for (unsigned q = 0; q < 2 && !v->stopped; q++)
		v->config.ops->queue_stop(v->config.dev, &v->vq[q]);
	v->stopped = true;
}

void mb_virtio_destroy(struct mb_virtio *v)
{
	mb_loop_call(v->config.loops[0], stop_on_loop, v);
	for (unsigned q = 0; q < 2; q++) {
		for (unsigned i = 0; i < v->vq[q].n_added; i++)
			free(v->vq[q].ring[i]);
	}
	free(v);
}

void mb_virtio_reset(struct mb_virtio *v)
{
	v->n_reset++;
	mb_loop_call(v->config.loops[0], stop_on_loop, v);
}

void mb_virtio_config_changed(struct mb_virtio *v)
{
	v->n_config_changed++;
}

static void pause_on_loop(void *arg)
{
	struct mb_virtio *v = arg;

	v->paused = true;
	for (unsigned q = 0; q < 2; q++) {
		v->config.ops->queue_pause(v->config.dev, &v->vq[q]);
		v->vq[q].n_popped = v->vq[q].n_pushed;
	}
}

int mb_virtio_pause(struct mb_virtio *v, uint64_t timeout_ns, struct mb_error *err)
{
	mb_loop_call(v->config.loops[0], pause_on_loop, v);
	return 0;
}

static void resume_on_loop(void *arg)
{
	struct mb_virtio *v = arg;

	v->paused = false;
	for (unsigned q = 0; q < 2; q++)
		v->config.ops->queue_kick(v->config.dev, &v->vq[q]);
}

void mb_virtio_resume(struct mb_virtio *v)
{
	mb_loop_call(v->config.loops[0], resume_on_loop, v);
}

void mb_virtio_save(struct mb_virtio *v, struct mb_state_out *out)
{
	mb_state_begin(out, "fake", 1);
	mb_state_end(out);
}

int mb_virtio_load(struct mb_virtio *v, struct mb_state_in *in, struct mb_error *err)
{
	struct mb_state_in part;

	return mb_state_enter(in, "fake", 1, &part, err);
}

int mb_virtq_pop(struct mb_virtq *vq, struct mb_chain **chain)
{
	ck_assert(!vdev->stopped);
	ck_assert(!vdev->paused);
	if (vq->broken)
		return -22;
	if (vq->n_popped == vq->n_added)
		return 0;
	*chain = &vq->ring[vq->n_popped++]->chain;
	return 1;
}

void mb_virtq_push(struct mb_virtq *vq, struct mb_chain *chain, uint32_t written)
{
	struct fake_chain *fake = (struct fake_chain *)chain;

	ck_assert(!vdev->stopped);
	ck_assert(!fake->pushed);
	ck_assert_ptr_eq(fake, vq->ring[vq->n_pushed]); /* in order */
	fake->pushed = true;
	fake->written = written;
	vq->n_pushed++;
}

void mb_virtq_signal(struct mb_virtq *vq)
{
	vq->n_signals++;
}

unsigned mb_virtq_index(const struct mb_virtq *vq)
{
	return vq->index;
}

size_t mb_chain_write(const struct mb_chain *chain, size_t offset, const void *buf, size_t len)
{
	size_t done = 0;

	for (unsigned i = chain->n_out; i < chain->n_out + chain->n_in && done < len; i++) {
		const struct iovec *iov = &chain->iov[i];
		size_t n;

		if (offset >= iov->iov_len) {
			offset -= iov->iov_len;
			continue;
		}
		n = iov->iov_len - offset < len - done ? iov->iov_len - offset : len - done;
		memcpy((char *)iov->iov_base + offset, (const char *)buf + done, n);
		done += n;
		offset = 0;
	}
	return done;
}

/* ---- the back ---- */

static struct {
	struct mb_chardev chr;
	char text[1 << 20];
	size_t n, room;
	unsigned n_readable;
} back;

static size_t back_write(struct mb_chardev *chr, const void *buf, size_t n)
{
	size_t taken = n < back.room ? n : back.room;

	memcpy(back.text + back.n, buf, taken);
	back.n += taken;
	back.room -= taken;
	return taken;
}

static void back_readable(struct mb_chardev *chr)
{
	back.n_readable++;
}

static const struct mb_chardev_ops back_ops = {.write = back_write, .readable = back_readable};

/* ---- the test ---- */

static struct mb_loop *loop;
static struct mb_console *console;

static void setup(void)
{
	struct mb_error err;

	create_rc = 0;
	memset(&back, 0, sizeof(back));
	back.chr.ops = &back_ops;
	back.room = SIZE_MAX;
	ck_assert_int_eq(mb_loop_create(&loop, &err), 0);
	ck_assert_int_eq(mb_loop_start_thread(loop, "console", NULL, &err), 0);
	ck_assert_int_eq(mb_console_create(NULL, NULL, loop, &back.chr, &console, &err), 0);
}

static void teardown(void)
{
	mb_console_destroy(console);
	ck_assert_ptr_null(back.chr.front);
	mb_loop_destroy(loop);
}

/* The queues' functions run on the loop's thread. */
static void start_on_loop(void *arg)
{
	for (unsigned q = 0; q < 2; q++)
		ck_assert_int_eq(vdev->config.ops->queue_start(
					 vdev->config.dev, &vdev->vq[q], vdev->config.features),
			0);
}

static void kick_on_loop(void *arg)
{
	vdev->config.ops->queue_kick(vdev->config.dev, arg);
}

static void nothing(void *arg)
{
}

/* Until the loop has done what it was woken for, also by itself. */
static void settle(void)
{
	for (unsigned i = 0; i < 20; i++)
		mb_loop_call(loop, nothing, NULL);
}

static void start(void)
{
	mb_loop_call(loop, start_on_loop, NULL);
}

static void kick(unsigned q)
{
	mb_loop_call(loop, kick_on_loop, &vdev->vq[q]);
	settle();
}

static struct fake_chain *add(unsigned q, unsigned n_out, unsigned n_in, size_t len)
{
	struct mb_virtq *vq = &vdev->vq[q];
	struct fake_chain *fake = calloc(1, sizeof(*fake));

	ck_assert_uint_lt(vq->n_added, MAX_CHAINS);
	for (unsigned i = 0; i < n_out + n_in; i++)
		fake->iov[i] = (struct iovec){.iov_base = fake->mem[i], .iov_len = len};
	fake->chain.iov = fake->iov;
	fake->chain.n_out = n_out;
	fake->chain.n_in = n_in;
	fake->chain.out_bytes = n_out * len;
	fake->chain.in_bytes = n_in * len;
	vq->ring[vq->n_added++] = fake;
	return fake;
}

static size_t receive(const char *text)
{
	return back.chr.front->receive(back.chr.front_dev, text, strlen(text));
}

START_TEST(configuration)
{
	uint8_t config[12];
	uint16_t size[2];
	uint32_t word;

	ck_assert_uint_eq(vdev->config.type, 3);
	ck_assert_uint_eq(vdev->config.n_queues, 2);
	ck_assert_uint_eq(vdev->config.features, 5); /* SIZE, EMERG_WRITE */
	mb_console_resize(console, 132, 43);
	ck_assert_uint_eq(vdev->n_config_changed, 1);
	vdev->config.ops->config_read(console, 0, size, 4);
	ck_assert_uint_eq(size[0], 132);
	ck_assert_uint_eq(size[1], 43);
	vdev->config.ops->config_read(console, 4, &word, 4);
	ck_assert_uint_eq(word, 1);
	/* Any offset and length, also beyond the end. */
	for (unsigned offset = 0; offset < 40; offset++) {
		for (unsigned len = 1; len <= 8; len *= 2) {
			memset(config, 0xee, sizeof(config));
			vdev->config.ops->config_read(console, offset, config, len);
			ck_assert_uint_eq(config[len], 0xee);
			if (offset >= 12)
				ck_assert_uint_eq(config[0], 0);
		}
	}
	vdev->config.ops->config_read(console, UINT32_MAX, &word, 4);
	ck_assert_uint_eq(word, 0);
	mb_console_resize(console, 1u << 20, 1);
	vdev->config.ops->config_read(console, 0, size, 4);
	ck_assert_uint_eq(size[0], UINT16_MAX);
	/* Emergency write: before DRIVER_OK. */
	word = 0x41;
	vdev->config.ops->config_write(console, 8, &word, 4);
	vdev->config.ops->config_write(console, 4, &word, 4);
	ck_assert_uint_eq(back.n, 1);
	ck_assert_int_eq(back.text[0], 'A');
	back.room = 0;
	vdev->config.ops->config_write(console, 8, &word, 4);
	ck_assert_uint_eq(back.n, 1);
}
END_TEST

START_TEST(output)
{
	struct mb_virtq *tx = &vdev->vq[1];
	struct fake_chain *chain;

	start();
	chain = add(1, 2, 0, 3);
	memcpy(chain->mem[0], "abc", 3);
	memcpy(chain->mem[1], "def", 3);
	memcpy(add(1, 1, 0, 3)->mem[0], "ghi", 3);
	add(1, 0, 1, 3); /* nothing to write in it */
	add(1, 1, 0, 0);
	kick(1);
	ck_assert_uint_eq(tx->n_pushed, 4);
	ck_assert_uint_eq(tx->n_signals, 1);
	ck_assert_uint_eq(back.n, 9);
	ck_assert_int_eq(memcmp(back.text, "abcdefghi", 9), 0);
	/* A broken ring is left alone. */
	tx->broken = true;
	kick(1);
	ck_assert_uint_eq(tx->n_pushed, 4);
}
END_TEST

/* The back takes a little at a time: nothing is lost, at most one chain is taken off the ring. */
START_TEST(output_back_pressure)
{
	struct mb_virtq *tx = &vdev->vq[1];

	start();
	back.room = 0;
	for (unsigned i = 0; i < 10; i++) {
		struct fake_chain *chain = add(1, 4, 0, 100);

		for (unsigned k = 0; k < 4; k++)
			memset(chain->mem[k], (int)('a' + i * 4 + k), 100);
	}
	kick(1);
	ck_assert_uint_eq(tx->n_pushed, 0);
	for (unsigned i = 0; back.n < 4000; i++) {
		ck_assert_uint_lt(i, 1000);
		ck_assert_uint_le(tx->n_popped - tx->n_pushed, 1);
		back.room = i % 37;
		back.chr.front->writable(back.chr.front_dev);
		settle();
	}
	ck_assert_uint_eq(tx->n_pushed, 10);
	for (unsigned i = 0; i < 4000; i++)
		ck_assert_int_eq(back.text[i], (char)('a' + i / 100));
	/* A reset forgets the chain that is half written. */
	back.room = 10;
	add(1, 1, 0, 100);
	kick(1);
	ck_assert_uint_eq(tx->n_popped - tx->n_pushed, 1);
	mb_console_reset(console);
	back.room = 1000;
	back.chr.front->writable(back.chr.front_dev);
	settle();
	ck_assert_uint_eq(tx->n_pushed, 10);
}
END_TEST

START_TEST(input)
{
	struct mb_virtq *rx = &vdev->vq[0];

	/* Before the driver is there, some is kept. */
	ck_assert_uint_eq(receive("hello "), 6);
	settle();
	start();
	kick(0);
	ck_assert_uint_eq(rx->n_pushed, 0);
	add(0, 1, 2, 4); /* its out-part is not for us */
	add(0, 0, 1, 0); /* no room at all */
	add(0, 0, 1, 4);
	kick(0);
	ck_assert_uint_eq(rx->n_pushed, 1);
	ck_assert_uint_eq(rx->ring[0]->written, 6);
	ck_assert_int_eq(memcmp(rx->ring[0]->mem[1], "hell", 4), 0);
	ck_assert_int_eq(memcmp(rx->ring[0]->mem[2], "o ", 2), 0);
	ck_assert_uint_eq(rx->n_signals, 1);
	receive("world");
	settle();
	ck_assert_uint_eq(rx->n_pushed, 3);
	ck_assert_uint_eq(rx->ring[1]->written, 0);
	ck_assert_uint_eq(rx->ring[2]->written, 4);
	add(0, 0, 1, 4);
	kick(0);
	ck_assert_uint_eq(rx->ring[3]->written, 1);
	ck_assert_int_eq(rx->ring[3]->mem[0][0], 'd');
}
END_TEST

/* A guest that never reads makes us keep 4 KiB and no more. */
START_TEST(input_back_pressure)
{
	static char text[10000];
	struct mb_virtq *rx = &vdev->vq[0];
	size_t n, taken, got = 0;

	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)(i * 7 % 251);
	start();
	taken = back.chr.front->receive(back.chr.front_dev, text, sizeof(text));
	ck_assert_uint_eq(taken, 4096);
	ck_assert_uint_eq(back.chr.front->receive(back.chr.front_dev, text, 1), 0);
	settle();
	ck_assert_uint_eq(back.n_readable, 0);
	for (unsigned i = 0; got < sizeof(text); i++) {
		unsigned readable = back.n_readable;
		struct fake_chain *chain = add(0, 0, 3, 100);

		kick(0);
		ck_assert(chain->pushed);
		ck_assert_uint_eq(
			chain->written, sizeof(text) - got < 300 ? sizeof(text) - got : 300);
		for (unsigned k = 0; k < chain->written; k++)
			ck_assert_int_eq(chain->mem[k / 100][k % 100], text[got + k]);
		got += chain->written;
		if (taken < sizeof(text)) {
			ck_assert_uint_eq(back.n_readable, readable + 1);
			n = back.chr.front->receive(
				back.chr.front_dev, text + taken, sizeof(text) - taken);
			taken += n;
		}
		settle();
	}
	ck_assert_uint_eq(rx->n_popped, rx->n_pushed);
	/* A reset drops what the old driver did not take. */
	receive("old");
	mb_console_reset(console);
	settle();
	ck_assert_uint_eq(rx->n_popped, rx->n_pushed);
}
END_TEST

/* More chains than one turn of the loop takes. */
START_TEST(budget)
{
	struct mb_virtq *tx = &vdev->vq[1];

	start();
	for (unsigned i = 0; i < 1000; i++)
		add(1, 1, 0, 1);
	kick(1);
	ck_assert_uint_eq(tx->n_pushed, 1000);
	ck_assert_uint_ge(tx->n_signals, 4);
	ck_assert_uint_eq(back.n, 1000);
}
END_TEST

START_TEST(failures)
{
	struct mb_console *second = NULL;
	struct mb_virtio *first = vdev;
	struct mb_error err;

	create_rc = -28;
	ck_assert_int_eq(mb_console_create(NULL, NULL, loop, NULL, &second, &err), -28);
	ck_assert_str_eq(err.text, "no more slots");
	create_rc = 0;
	ck_assert_int_eq(mb_console_create(NULL, NULL, loop, NULL, &second, &err), 0);
	start();
	add(1, 1, 0, 100);
	kick(1);
	ck_assert_uint_eq(vdev->vq[1].n_pushed, 1);
	ck_assert_uint_eq(back.n, 0);
	mb_console_destroy(second);
	mb_console_destroy(NULL);
	vdev = first;
}
END_TEST

/* A pause in the middle of a chain: neither lost nor twice, here or where the state goes. */
START_TEST(pause)
{
	struct mb_virtq *tx = &vdev->vq[1];
	struct mb_state_out out = {0};
	struct mb_state_in in;
	struct fake_chain *chain;
	struct mb_error err;
	bool other = _i;

	start();
	chain = add(1, 3, 0, 100);
	for (unsigned k = 0; k < 3; k++)
		memset(chain->mem[k], (int)('a' + k), 100);
	back.room = 150;
	kick(1);
	ck_assert_int_eq(receive("typed"), 5); /* no buffer for it yet */
	settle();
	ck_assert_int_eq(mb_console_pause(console, 1, &err), 0);
	back.room = SIZE_MAX;
	back.chr.front->writable(back.chr.front_dev);
	settle();
	ck_assert_uint_eq(back.n, 150);
	mb_console_save(console, &out);
	ck_assert_int_eq(out.rc, 0);
	in = (struct mb_state_in){.at = out.data, .left = out.len};
	if (other) {
		struct mb_virtio *first = vdev;
		struct mb_console *second;

		/* All that is of the first one is a moment old. */
		ck_assert_int_eq(mb_console_create(NULL, NULL, loop, NULL, &second, &err), 0);
		for (size_t n = 0; n < out.len; n++) {
			struct mb_state_in cut = {.at = out.data, .left = n};

			ck_assert_int_eq(mb_console_load(second, &cut, &err), -EINVAL);
		}
		ck_assert_int_eq(mb_console_load(second, &in, &err), 0);
		mb_console_destroy(second);
		vdev = first;
	}
	mb_console_resume(console);
	settle();
	ck_assert_uint_eq(tx->n_pushed, 1);
	ck_assert_uint_eq(back.n, 300);
	for (unsigned i = 0; i < 300; i++)
		ck_assert_int_eq(back.text[i], (char)('a' + i / 100));
	chain = add(0, 0, 1, 100);
	kick(0);
	ck_assert(chain->pushed && chain->written == 5 && !memcmp(chain->mem[0], "typed", 5));
	mb_state_out_finish(&out);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("console");
	TCase *tcase = tcase_create("console");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, configuration);
	tcase_add_test(tcase, output);
	tcase_add_test(tcase, output_back_pressure);
	tcase_add_test(tcase, input);
	tcase_add_test(tcase, input_back_pressure);
	tcase_add_test(tcase, budget);
	tcase_add_test(tcase, failures);
	tcase_add_loop_test(tcase, pause, 0, 2);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
