// SPDX-License-Identifier: Apache-2.0
#include "../../devices/virtq.h"
#include "fake_driver.h"
#include "run.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RAM_BASE   0x10000u
#define RAM_BYTES  (8u << 20)
#define RING_GPA   RAM_BASE
#define DATA_GPA   (RAM_BASE + 0x20000u)
#define REQ_BYTES  0x4000u /* one request's buffers, its indirect table in front */
#define MAX_SEGS   12u

#define F_PACKED   (1ull << VIRTIO_F_RING_PACKED)
#define F_EVENT	   (1ull << VIRTIO_RING_F_EVENT_IDX)
#define F_INDIRECT (1ull << VIRTIO_RING_F_INDIRECT_DESC)

/* The eight kinds of ring, by loop index. */
static uint64_t features_of(int i)
{
	return (i & 1 ? F_PACKED : 0) | (i & 2 ? F_EVENT : 0) | (i & 4 ? F_INDIRECT : 0);
}

/* Check's own assertions cost a system call each; this one only when it fails. */
#define FAST(cond)                                                                                 \
	do {                                                                                       \
		if (!(cond))                                                                       \
			ck_abort_msg("%s", #cond);                                                 \
	} while (0)

struct bench {
	struct fake_dma ram;
	struct fake_ring ring;
	struct mb_virtq vq;
	atomic_bool stopped;
	unsigned n_interrupts, n_kicks, n_broken;
	const char *why;
	int irq_fd, kick_fd; /* of the threaded test, otherwise -1 */
};

static void count(unsigned *n, int fd)
{
	uint64_t one = 1;

	++*n;
	if (fd >= 0)
		FAST(write(fd, &one, sizeof(one)) == sizeof(one));
}

static void on_interrupt(struct mb_virtq *vq)
{
	struct bench *b = vq->p.ctx;

	count(&b->n_interrupts, b->irq_fd);
}

static void on_kick(struct mb_virtq *vq)
{
	struct bench *b = vq->p.ctx;

	count(&b->n_kicks, b->kick_fd);
}

static void on_broken(struct mb_virtq *vq, const char *why)
{
	struct bench *b = vq->p.ctx;

	b->n_broken++;
	b->why = why;
}

static const struct mb_virtq_hooks hooks = {on_interrupt, on_kick, on_broken};

static struct mb_virtq_params params_of(struct bench *b, uint64_t features)
{
	return (struct mb_virtq_params){
		.dma = &b->ram.dma,
		.hooks = &hooks,
		.stopped = &b->stopped,
		.ctx = b,
		.features = features,
		.index = 3,
		.size = b->ring.size,
		.desc_gpa = b->ring.desc_gpa,
		.driver_gpa = b->ring.driver_gpa,
		.device_gpa = b->ring.device_gpa,
	};
}

static void bench_init_ram(struct bench *b, uint64_t features, uint16_t size, uint64_t ram_bytes)
{
	struct mb_virtq_params params;
	const char *why = "";
	int rc;

	memset(b, 0, sizeof(*b));
	b->irq_fd = b->kick_fd = -1;
	fake_dma_init(&b->ram, RAM_BASE, ram_bytes);
	fake_ring_init(&b->ring, &b->ram, RING_GPA, size, features);
	params = params_of(b, features);
	rc = mb_virtq_init(&b->vq, &params, &why);
	ck_assert_msg(!rc, "%s", why);
}

static void bench_init(struct bench *b, uint64_t features, uint16_t size)
{
	bench_init_ram(b, features, size, RAM_BYTES);
}

static void bench_finish(struct bench *b)
{
	mb_virtq_finish(&b->vq);
	ck_assert_int_eq(fake_dma_n_mapped(&b->ram), 0);
	fake_ring_finish(&b->ring);
	fake_dma_finish(&b->ram);
}

/* ---- differential ---- */

struct req {
	unsigned slot;
	bool busy;
	unsigned n_segs, n_out;
	struct fake_seg seg[MAX_SEGS];
	uint32_t out_bytes, in_bytes, written;
	struct mb_chain *chain; /* popped */
	unsigned pattern;
};

struct model {
	struct bench b;
	uint64_t features;
	unsigned seed;
	struct req *req;
	unsigned n_reqs;
	struct req **popped;
	unsigned n_popped, n_done;
	bool asleep;	/* the device saw an empty queue */
	bool wants_irq; /* the driver waits for an interrupt */
};

static unsigned rnd(struct model *m, unsigned below)
{
	/* xorshift; rand_r would repeat itself in its low bits. */
	m->seed ^= m->seed << 13;
	m->seed ^= m->seed >> 17;
	m->seed ^= m->seed << 5;
	return m->seed % below;
}

static uint64_t req_gpa(const struct req *q)
{
	return DATA_GPA + (uint64_t)q->slot * REQ_BYTES;
}

static uint8_t byte_of(unsigned pattern, unsigned i)
{
	return (uint8_t)(pattern * 31 + i * 7 + (i >> 8));
}

/* Random segments, some empty, never overlapping, out before in. */
static void make_segs(struct model *m, struct req *q, unsigned max)
{
	uint64_t at = req_gpa(q) + 16 * MAX_SEGS + rnd(m, 16);

	q->n_segs = 1 + rnd(m, max);
	q->n_out = rnd(m, q->n_segs + 1);
	q->out_bytes = q->in_bytes = 0;
	q->pattern = rnd(m, 1u << 30);
	for (unsigned i = 0; i < q->n_segs; i++) {
		struct fake_seg *s = &q->seg[i];
		uint8_t *mem = fake_dma_at(&m->b.ram, at);

		s->in = i >= q->n_out;
		s->gpa = at;
		s->len = rnd(m, 8) ? 1 + rnd(m, 700) : 0;
		at += s->len + rnd(m, 40);
		for (unsigned j = 0; j < s->len; j++)
			mem[j] = s->in ? 0xaa : byte_of(q->pattern, q->out_bytes + j);
		*(s->in ? &q->in_bytes : &q->out_bytes) += s->len;
	}
	FAST(at <= req_gpa(q) + REQ_BYTES);
}

/* Makes it available, one of the ways that there are; false if there is no room. */
static bool add(struct model *m, struct req *q)
{
	struct fake_seg seg[MAX_SEGS];
	unsigned direct = q->n_segs;
	int table_at = -1;

	if (m->features & F_INDIRECT && rnd(m, 2)) {
		/* In a split ring direct descriptors may come before the table. */
		direct = m->features & F_PACKED ? 0 : rnd(m, q->n_segs);
		fake_ring_table(&m->b.ring, req_gpa(q), q->seg + direct, q->n_segs - direct);
	}
	memcpy(seg, q->seg, direct * sizeof(*seg));
	if (direct < q->n_segs) {
		table_at = (int)direct;
		seg[direct++] = (struct fake_seg){
			.gpa = req_gpa(q),
			.len = 16 * (q->n_segs - (unsigned)table_at),
			.in = rnd(m, 2), /* 2.7.5.3.2: to be ignored */
		};
	}
	return fake_ring_add(&m->b.ring, seg, direct, table_at, q) >= 0;
}

static void driver_add(struct model *m)
{
	unsigned n = 1 + rnd(m, 4), max = m->b.ring.size < MAX_SEGS ? m->b.ring.size : MAX_SEGS;
	bool added = false, kick;

	for (unsigned i = 0; i < m->n_reqs && n; i++) {
		struct req *q = &m->req[i];

		if (q->busy)
			continue;
		make_segs(m, q, max);
		if (!add(m, q))
			break;
		q->busy = added = true;
		n--;
	}
	kick = fake_ring_must_kick(&m->b.ring);
	/* A device that found nothing is told of the next chain. */
	if (added && m->asleep)
		FAST(kick);
	if (added)
		m->asleep = m->asleep && !kick;
}

static void check_chain(struct model *m, struct req *q, const struct mb_chain *chain)
{
	uint8_t buf[MAX_SEGS * 700];
	unsigned n = 0, off;

	FAST(chain->out_bytes == q->out_bytes);
	FAST(chain->in_bytes == q->in_bytes);
	for (unsigned i = 0; i < q->n_segs; i++) {
		const struct fake_seg *s = &q->seg[i];

		if (!s->len)
			continue;
		FAST(n < chain->n_out + chain->n_in);
		FAST((n >= chain->n_out) == s->in);
		FAST(chain->gpa[n] == s->gpa);
		FAST(chain->iov[n].iov_len == s->len);
		FAST(chain->iov[n].iov_base == fake_dma_at(&m->b.ram, s->gpa));
		n++;
	}
	FAST(n == chain->n_out + chain->n_in);
	off = rnd(m, q->out_bytes + 2);
	n = (unsigned)mb_chain_read(chain, off, buf, sizeof(buf));
	FAST(n == (off < q->out_bytes ? q->out_bytes - off : 0));
	for (unsigned i = 0; i < n; i++)
		FAST(buf[i] == byte_of(q->pattern, off + i));
}

static void device_pop(struct model *m)
{
	for (unsigned n = 1 + rnd(m, 6); n; n--) {
		struct mb_chain *chain;
		struct req *q;
		int rc = mb_virtq_pop(&m->b.vq, &chain);

		FAST(rc >= 0);
		if (!rc) {
			m->asleep = true;
			return;
		}
		q = m->b.ring.req[chain->head].cookie;
		FAST(q->busy && !q->chain);
		check_chain(m, q, chain);
		if (!rnd(m, 8)) {
			mb_virtq_unpop(&m->b.vq, chain);
			continue;
		}
		q->chain = chain;
		chain->user = q;
		m->popped[m->n_popped++] = q;
	}
}

static void fill(struct model *m, struct req *q)
{
	uint8_t buf[MAX_SEGS * 700];
	unsigned cut;

	q->written = q->in_bytes ? rnd(m, q->in_bytes + 1) : 0;
	if (!q->written)
		return;
	for (unsigned j = 0; j < q->written; j++)
		buf[j] = byte_of(~q->pattern, j);
	/* In two pieces that meet anywhere. */
	cut = rnd(m, q->written);
	FAST(mb_chain_write(q->chain, cut, buf + cut, q->written - cut) == q->written - cut);
	FAST(mb_chain_write(q->chain, 0, buf, cut) == cut);
}

/* Some of the popped ones, in any order, one by one or all at once. */
static void device_push(struct model *m)
{
	unsigned n_interrupts = m->b.n_interrupts, n_pushed = 0;
	bool together = rnd(m, 2);
	struct mb_chain *chains[6];
	uint32_t written[6];

	for (unsigned n = rnd(m, 6); n && m->n_popped; n--) {
		unsigned i = rnd(m, m->n_popped);
		struct req *q = m->popped[i];

		FAST(q->chain->user == q);
		m->popped[i] = m->popped[--m->n_popped];
		fill(m, q);
		chains[n_pushed] = q->chain;
		written[n_pushed++] = q->written;
		q->chain = NULL;
	}
	if (together && n_pushed)
		mb_virtq_push_all(&m->b.vq, chains, written, n_pushed);
	for (unsigned i = 0; i < n_pushed && !together; i++)
		mb_virtq_push(&m->b.vq, chains[i], written[i]);
	mb_virtq_signal(&m->b.vq);
	if (m->wants_irq && n_pushed)
		FAST(m->b.n_interrupts == n_interrupts + 1);
	if (m->b.n_interrupts != n_interrupts)
		m->wants_irq = false;
}

static void driver_collect(struct model *m)
{
	unsigned n = rnd(m, 8);
	uint32_t len;
	void *cookie;

	while (n-- && fake_ring_get_used(&m->b.ring, &cookie, &len)) {
		struct req *q = cookie;
		unsigned at = 0;

		FAST(len == q->written);
		for (unsigned i = q->n_out; i < q->n_segs; i++) {
			const uint8_t *mem = fake_dma_at(&m->b.ram, q->seg[i].gpa);

			for (unsigned j = 0; j < q->seg[i].len; j++, at++)
				FAST(mem[j] == (at < q->written ? byte_of(~q->pattern, at) : 0xaa));
		}
		q->busy = false;
		m->n_done++;
	}
	/* An interrupt is promised only for what comes after everything was collected. */
	if (rnd(m, 2)) {
		while (fake_ring_get_used(&m->b.ring, &cookie, &len)) {
			((struct req *)cookie)->busy = false;
			m->n_done++;
		}
		fake_ring_want_irq(&m->b.ring, true);
		m->wants_irq = true;
	} else if (!m->wants_irq) {
		fake_ring_want_irq(&m->b.ring, false);
	}
}

static void run_model(uint64_t features, uint16_t size, unsigned seed, unsigned n_steps)
{
	struct model m = {.features = features, .seed = seed, .n_reqs = size};

	bench_init(&m.b, features, size);
	m.req = calloc(m.n_reqs, sizeof(*m.req));
	m.popped = calloc(m.n_reqs, sizeof(struct req *));
	for (unsigned i = 0; i < m.n_reqs; i++)
		m.req[i].slot = i;
	for (unsigned i = 0; i < n_steps; i++) {
		switch (rnd(&m, 4)) {
		case 0:
			driver_add(&m);
			break;
		case 1:
			device_pop(&m);
			break;
		case 2:
			device_push(&m);
			break;
		default:
			driver_collect(&m);
		}
	}
	FAST(m.b.n_broken == 0);
	FAST(m.n_done > n_steps / 20);
	free(m.req);
	free(m.popped);
	bench_finish(&m.b);
}

START_TEST(test_differential)
{
	static const uint16_t split_sizes[] = {1, 2, 4, 16, 256};
	static const uint16_t packed_sizes[] = {1, 3, 5, 16, 255};
	unsigned seed = (unsigned)time(NULL) * 2654435761u | 1;
	const char *given = getenv("MB_TEST_SEED");

	if (given)
		seed = (unsigned)strtoul(given, NULL, 0);
	printf("virtq: ring %d, MB_TEST_SEED=%u\n", _i, seed);
	for (unsigned i = 0; i < 5; i++)
		run_model(
			features_of(_i), (_i & 1 ? packed_sizes : split_sizes)[i], seed + i, 20000);
}
END_TEST

/* ---- two threads: no notification may be lost ---- */

#define N_THREADED 30000u

static void wait_fd(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	uint64_t n;

	/* Ten seconds without the notification: it was lost. */
	FAST(poll(&p, 1, 10000) == 1);
	FAST(read(fd, &n, sizeof(n)) == sizeof(n));
}

/* Ten seconds of nothing. Leaves the CPU to the device now and then: there may be only one. */
static bool spun_out(time_t *since, unsigned n_spins)
{
	if (n_spins % 256)
		return false;
	sched_yield();
	if (!*since)
		*since = time(NULL);
	return time(NULL) - *since > 10;
}

static void *device_thread(void *arg)
{
	struct bench *b = arg;
	unsigned n = 0;

	while (n < N_THREADED) {
		struct mb_chain *chain;
		uint32_t value = 0;
		int rc = mb_virtq_pop(&b->vq, &chain);

		FAST(rc >= 0);
		if (!rc) {
			mb_virtq_signal(&b->vq);
			wait_fd(b->kick_fd);
			continue;
		}
		FAST(mb_chain_read(chain, 0, &value, sizeof(value)) == sizeof(value));
		FAST(value == n);
		value = ~value;
		mb_chain_write(chain, 0, &value, sizeof(value));
		mb_virtq_push(&b->vq, chain, sizeof(value));
		n++;
		if (!(n % 5))
			mb_virtq_signal(&b->vq);
	}
	mb_virtq_signal(&b->vq);
	return NULL;
}

/*
 * Rings 0 to 3, then the same with one chain at a time and a driver that spins: it adds the next
 * one just when the device finds the ring empty.
 */
START_TEST(test_threads)
{
	struct bench b;
	struct fake_ring *r = &b.ring;
	unsigned n_added = 0, n_used = 0, window = _i & 4 ? 1 : 8;
	unsigned n_spins = 0;
	time_t idle_since = 0;
	pthread_t thread;

	bench_init(&b, features_of(_i & 3), 16);
	b.irq_fd = eventfd(0, EFD_CLOEXEC);
	b.kick_fd = eventfd(0, EFD_CLOEXEC);
	FAST(pthread_create(&thread, NULL, device_thread, &b) == 0);
	while (n_used < N_THREADED) {
		bool progress = false;
		uint32_t len;
		void *cookie;

		while (n_added < N_THREADED && n_added - n_used < window) {
			uint64_t gpa = DATA_GPA + 64 * (n_added % 8);
			struct fake_seg seg[] = {{gpa, 4, false}, {gpa + 32, 4, true}};

			memcpy(fake_dma_at(&b.ram, gpa), &n_added, 4);
			FAST(fake_ring_add(r, seg, 2, -1, &b) >= 0);
			n_added++;
			if (fake_ring_must_kick(r)) {
				uint64_t one = 1;

				FAST(write(b.kick_fd, &one, sizeof(one)) == sizeof(one));
			}
		}
		fake_ring_want_irq(r, false);
		for (int again = 0; again < 2; again++) {
			while (fake_ring_get_used(r, &cookie, &len)) {
				uint32_t value;

				memcpy(&value,
					fake_dma_at(&b.ram, DATA_GPA + 64 * (n_used % 8) + 32), 4);
				FAST(value == ~n_used);
				FAST(len == 4);
				n_used++;
				progress = true;
			}
			if (!progress && !again)
				fake_ring_want_irq(r, true);
		}
		if (progress)
			idle_since = 0;
		else if (window > 1)
			wait_fd(b.irq_fd);
		else
			FAST(!spun_out(&idle_since, ++n_spins));
	}
	pthread_join(thread, NULL);
	close(b.irq_fd);
	close(b.kick_fd);
	bench_finish(&b);
}
END_TEST

/*
 * The last look, without luck: the page with the device's wish for notifications is read-only, so
 * that the store faults, and the driver adds a chain at that very moment, sees the old wish and
 * stays silent.
 */
static struct {
	struct bench b;
	void *page;
	bool came, kick;
} last_look;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	static const struct fake_seg seg = {DATA_GPA, 1, false};

	/* Anything else is a fault like any other; ck_abort is not for signal handlers. */
	if (last_look.came || mprotect(last_look.page, 4096, PROT_READ | PROT_WRITE))
		_exit(1);
	fake_ring_add(&last_look.b.ring, &seg, 1, -1, NULL);
	last_look.kick = fake_ring_must_kick(&last_look.b.ring);
	last_look.came = true;
}

START_TEST(test_last_look)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, old;
	struct fake_seg seg = {DATA_GPA, 1, false};
	struct bench *b = &last_look.b;
	struct mb_virtq_params params;
	struct mb_chain *chain;
	const char *why;

	/* Rings of 2 with the device's area on a page of its own. */
	bench_init(b, features_of(_i), 2);
	mb_virtq_finish(&b->vq);
	b->ring.device_gpa = DATA_GPA + 0x10000;
	last_look.page = fake_dma_at(&b->ram, b->ring.device_gpa);
	params = params_of(b, features_of(_i));
	ck_assert_int_eq(mb_virtq_init(&b->vq, &params, &why), 0);
	fake_ring_add(&b->ring, &seg, 1, -1, NULL);
	ck_assert(fake_ring_must_kick(&b->ring));
	ck_assert_int_eq(mb_virtq_pop(&b->vq, &chain), 1);

	ck_assert_int_eq(sigaction(SIGSEGV, &action, &old), 0);
	ck_assert_int_eq(mprotect(last_look.page, 4096, PROT_READ), 0);
	ck_assert_int_eq(mb_virtq_pop(&b->vq, &chain), 1);
	ck_assert_int_eq(mprotect(last_look.page, 4096, PROT_READ | PROT_WRITE), 0);
	sigaction(SIGSEGV, &old, NULL);
	ck_assert(last_look.came);
	ck_assert(!last_look.kick);
	bench_finish(b);
}
END_TEST

/* ---- what a driver must not do ---- */

enum crime {
	ORDER,
	TOO_MANY_BYTES,
	NOT_RAM,
	WRAPS,
	END_OF_RAM,
	LOOP,
	NEXT_OUTSIDE,
	HEAD_OUTSIDE,
	IDX_JUMP,
	INDIRECT_AND_NEXT,
	INDIRECT_NOT_AGREED,
	INDIRECT_ODD_LEN,
	INDIRECT_EMPTY,
	INDIRECT_TOO_LONG,
	CHAIN_TOO_LONG,
	INDIRECT_NOT_RAM,
	INDIRECT_NESTED,
	INDIRECT_LOOP,
	INDIRECT_NEXT_OUTSIDE,
	N_CRIMES,
};

static const char *const crime_text[N_CRIMES] = {
	[ORDER] = "to read comes after",
	[TOO_MANY_BYTES] = "2^32",
	[NOT_RAM] = "not in RAM",
	[WRAPS] = "not in RAM",
	[END_OF_RAM] = "not in RAM",
	[LOOP] = "longer than the queue",
	[NEXT_OUTSIDE] = "outside the table",
	[HEAD_OUTSIDE] = "outside the descriptor table",
	[IDX_JUMP] = "more than the queue's size",
	[INDIRECT_AND_NEXT] = "chained to another",
	[INDIRECT_NOT_AGREED] = "without the feature",
	[INDIRECT_ODD_LEN] = "multiple of 16",
	[INDIRECT_EMPTY] = "multiple of 16",
	[INDIRECT_TOO_LONG] = "table is too long",
	[CHAIN_TOO_LONG] = "chain is too long",
	[INDIRECT_NOT_RAM] = "not in RAM",
	[INDIRECT_NESTED] = "inside an indirect",
	[INDIRECT_LOOP] = "no end",
	[INDIRECT_NEXT_OUTSIDE] = "leaves its table",
};

/* Crimes that a packed ring has no way to commit. */
static bool split_only(enum crime crime)
{
	return crime == NEXT_OUTSIDE || crime == HEAD_OUTSIDE || crime == CHAIN_TOO_LONG ||
	       crime == IDX_JUMP || crime == INDIRECT_NESTED || crime == INDIRECT_LOOP ||
	       crime == INDIRECT_NEXT_OUTSIDE;
}

static void commit_crime(struct bench *b, enum crime crime)
{
	struct fake_ring *r = &b->ring;
	struct vring_desc *desc = fake_dma_at(&b->ram, r->desc_gpa);
	uint64_t gpa = DATA_GPA, table = DATA_GPA + 0x1000;
	struct fake_seg seg[4] = {{gpa, 16, false}, {gpa + 16, 16, true}, {gpa + 32, 16, true}};
	unsigned n = 2;
	int table_at = -1;

	switch (crime) {
	case ORDER:
		seg[0].in = true;
		seg[1].in = false;
		break;
	case TOO_MANY_BYTES:
		n = 3;
		seg[0].len = seg[1].len = UINT32_MAX;
		break;
	case NOT_RAM:
		seg[1].gpa = 0x1000;
		break;
	case WRAPS:
		seg[1].gpa = UINT64_MAX - 7;
		break;
	case END_OF_RAM:
		seg[1].gpa = RAM_BASE + RAM_BYTES - 15;
		break;
	case INDIRECT_AND_NEXT:
	case INDIRECT_NOT_AGREED:
	case INDIRECT_ODD_LEN:
	case INDIRECT_EMPTY:
	case INDIRECT_TOO_LONG:
	case INDIRECT_NOT_RAM:
	case INDIRECT_NESTED:
	case INDIRECT_LOOP:
	case INDIRECT_NEXT_OUTSIDE:
		fake_ring_table(r, table, seg, 3);
		seg[0] = (struct fake_seg){table, 48, false};
		n = 1;
		table_at = 0;
		break;
	default:
		break;
	}
	if (crime == LOOP)
		n = 1;
	if (crime == INDIRECT_AND_NEXT)
		n = 2;
	if (crime == INDIRECT_ODD_LEN)
		seg[0].len = 47;
	if (crime == INDIRECT_EMPTY)
		seg[0].len = 0;
	if (crime == INDIRECT_TOO_LONG)
		seg[0].len = 16 * (MB_CHAIN_MAX_IOV + 1);
	if (crime == CHAIN_TOO_LONG) {
		struct fake_seg many[MB_CHAIN_MAX_IOV];

		for (unsigned i = 0; i < MB_CHAIN_MAX_IOV; i++)
			many[i] = (struct fake_seg){gpa, 1, false};
		fake_ring_table(r, table, many, MB_CHAIN_MAX_IOV);
		seg[0] = (struct fake_seg){gpa, 1, false};
		seg[1] = (struct fake_seg){table, sizeof(many) / sizeof(many[0]) * 16, false};
		n = 2;
		table_at = 1;
	}
	if (crime == INDIRECT_NOT_RAM)
		seg[0].gpa = RAM_BASE + RAM_BYTES - 16;
	if (crime == INDIRECT_NESTED)
		((struct vring_desc *)fake_dma_at(&b->ram, table))->flags |= VRING_DESC_F_INDIRECT;
	if (crime == INDIRECT_LOOP) {
		/* Entry 1 is the last of the chain and goes back to the one before it. */
		((struct vring_desc *)fake_dma_at(&b->ram, table))[1].flags |= VRING_DESC_F_NEXT;
		((struct vring_desc *)fake_dma_at(&b->ram, table))[1].next = 2;
	}
	if (crime == INDIRECT_NEXT_OUTSIDE)
		((struct vring_desc *)fake_dma_at(&b->ram, table))[0].next = 3;
	ck_assert_int_ge(fake_ring_add(r, seg, n, table_at, b), 0);
	if (crime == LOOP) {
		for (unsigned i = 0; i < r->size; i++) {
			if (r->packed) {
				desc[i].next |= VRING_DESC_F_NEXT; /* its flags */
				continue;
			}
			desc[i] = (struct vring_desc){.addr = gpa,
				.len = 1,
				.flags = VRING_DESC_F_NEXT,
				.next = (uint16_t)((i + 1) % r->size)};
		}
	}
	if (crime == NEXT_OUTSIDE)
		desc[0].next = r->size;
	if (crime == HEAD_OUTSIDE)
		*fake_split_avail(r, 2) = r->size;
	if (crime == IDX_JUMP)
		*fake_split_avail(r, 1) = (uint16_t)(r->size + 1);
}

static void run_crime(uint64_t features, enum crime crime)
{
	struct mb_chain *chain;
	struct bench b;

	if (crime != INDIRECT_NOT_AGREED)
		features |= F_INDIRECT;
	else
		features &= ~F_INDIRECT;
	bench_init(&b, features, 16);
	commit_crime(&b, crime);
	ck_assert_int_lt(mb_virtq_pop(&b.vq, &chain), 0);
	ck_assert_int_lt(mb_virtq_pop(&b.vq, &chain), 0);
	ck_assert_uint_eq(b.n_broken, 1);
	ck_assert_msg(strstr(b.why, crime_text[crime]), "crime %d: %s", crime, b.why);
	bench_finish(&b);
}

START_TEST(test_crimes)
{
	for (int kind = 0; kind < 4; kind++) {
		if (!(kind & 1) || !split_only(_i))
			run_crime(features_of(kind), _i);
	}
}
END_TEST

/* An indirect table may lie anywhere. */
START_TEST(test_odd_table_address)
{
	struct fake_seg seg[] = {{DATA_GPA, 10, false}, {DATA_GPA + 10, 20, true}};
	struct fake_seg table = {DATA_GPA + 0x1003, 32, false};
	struct mb_chain *chain;
	struct bench b;

	bench_init(&b, F_INDIRECT | (_i ? F_PACKED : 0), 4);
	fake_ring_table(&b.ring, table.gpa, seg, 2);
	fake_ring_add(&b.ring, &table, 1, 0, &b);
	ck_assert_int_eq(mb_virtq_pop(&b.vq, &chain), 1);
	ck_assert_uint_eq(chain->out_bytes, 10);
	ck_assert_uint_eq(chain->in_bytes, 20);
	bench_finish(&b); /* never pushed: unmapped all the same */
}
END_TEST

/* More chains available than there are descriptors: the same head again and again. */
START_TEST(test_same_head_again)
{
	struct fake_seg seg = {DATA_GPA, 10, false};
	struct mb_chain *chain;
	struct bench b;
	int rc;

	bench_init(&b, 0, 4);
	for (unsigned i = 0; i < 4; i++)
		*fake_split_avail(&b.ring, 2 + i) = 3;
	fake_ring_add(&b.ring, &seg, 1, -1, &b);
	for (unsigned i = 0; i < 5; i++) {
		*fake_split_avail(&b.ring, 1) = (uint16_t)(i + 1);
		*fake_split_avail(&b.ring, 2 + i % 4) = 0;
		rc = mb_virtq_pop(&b.vq, &chain);
		ck_assert_int_eq(rc == 1, i < 4);
	}
	ck_assert_int_lt(rc, 0);
	ck_assert_ptr_nonnull(strstr(b.why, "more chains"));
	bench_finish(&b);
}
END_TEST

/*
 * A packed ring's driver marks descriptors available that the device has not used yet: a whole lap,
 * as chains of one descriptor (no chain is left for it) or of two (one is).
 */
START_TEST(test_packed_overtakes)
{
	struct fake_seg seg[] = {{DATA_GPA, 10, false}, {DATA_GPA + 10, 10, false}};
	struct vring_packed_desc *desc;
	struct mb_chain *chain;
	struct bench b;

	bench_init(&b, F_PACKED, (uint16_t)(2 * _i));
	desc = fake_dma_at(&b.ram, b.ring.desc_gpa);
	for (unsigned i = 0; i < 2; i++) {
		fake_ring_add(&b.ring, seg, (unsigned)_i, -1, &b);
		ck_assert_int_eq(mb_virtq_pop(&b.vq, &chain), 1);
	}
	ck_assert_int_eq(mb_virtq_pop(&b.vq, &chain), 0);
	desc[0].flags = 1u << 15;
	ck_assert_int_lt(mb_virtq_pop(&b.vq, &chain), 0);
	ck_assert_uint_eq(b.n_broken, 1);
	bench_finish(&b);
}
END_TEST

static int try_init(struct bench *b, struct mb_virtq_params params)
{
	struct mb_virtq vq;
	const char *why = NULL;
	int rc = mb_virtq_init(&vq, &params, &why);

	if (rc)
		ck_assert_ptr_nonnull(why);
	else
		mb_virtq_finish(&vq);
	return rc;
}

START_TEST(test_bad_rings)
{
	uint64_t features = _i ? F_PACKED : 0;
	struct mb_virtq_params p;
	struct bench b;
	long before;

	bench_init(&b, features, 16);
	before = fake_dma_n_mapped(&b.ram);
	p = params_of(&b, features);
	ck_assert_int_eq(try_init(&b, p), 0);
	p.size = 0;
	ck_assert_int_eq(try_init(&b, p), -EINVAL);
	p.size = MB_VIRTQ_MAX_SIZE + 1;
	ck_assert_int_eq(try_init(&b, p), -EINVAL);
	p.size = 0xffff;
	ck_assert_int_eq(try_init(&b, p), -EINVAL);
	p.size = 12;
	ck_assert_int_eq(try_init(&b, p), _i ? 0 : -EINVAL);
	p.size = 16;
	p.desc_gpa += 8;
	ck_assert_int_eq(try_init(&b, p), -EINVAL);
	p.desc_gpa = RAM_BASE + RAM_BYTES - 16 * 16;
	ck_assert_int_eq(try_init(&b, p), 0);
	p.desc_gpa += 16;
	ck_assert_int_eq(try_init(&b, p), -EFAULT);
	p.desc_gpa = UINT64_MAX - 15;
	ck_assert_int_eq(try_init(&b, p), -EFAULT);
	p = params_of(&b, features);
	p.driver_gpa += 1;
	ck_assert_int_eq(try_init(&b, p), -EINVAL);
	p.driver_gpa = 0;
	ck_assert_int_eq(try_init(&b, p), -EFAULT);
	p = params_of(&b, features);
	p.device_gpa += 2;
	ck_assert_int_eq(try_init(&b, p), -EINVAL);
	p.device_gpa = RAM_BASE + RAM_BYTES;
	ck_assert_int_eq(try_init(&b, p), -EFAULT);
	ck_assert_int_eq(b.ram.n_mapped, before);
	bench_finish(&b);
}
END_TEST

/* ---- limits of our own ---- */

/* Long chains in flight are bounded; the queue waits and goes on by itself. */
START_TEST(test_iov_budget)
{
	struct fake_seg seg[900], table = {DATA_GPA, sizeof(seg) / sizeof(seg[0]) * 16, false};
	struct mb_chain *chain[32];
	unsigned n = 0;
	struct bench b;

	bench_init(&b, F_INDIRECT, 32);
	for (unsigned i = 0; i < 900; i++)
		seg[i] = (struct fake_seg){DATA_GPA + 0x10000 + i, 1, false};
	fake_ring_table(&b.ring, DATA_GPA, seg, 900);
	for (unsigned i = 0; i < 32; i++)
		fake_ring_add(&b.ring, &table, 1, 0, &b);
	while (mb_virtq_pop(&b.vq, &chain[n]) == 1)
		n++;
	ck_assert_uint_ge(n, 1);
	ck_assert_uint_lt(n, 32);
	ck_assert_uint_eq(b.n_broken, 0);
	ck_assert_uint_eq(b.n_kicks, 0);
	mb_virtq_push(&b.vq, chain[0], 0);
	ck_assert_uint_eq(b.n_kicks, 1);
	ck_assert_int_eq(mb_virtq_pop(&b.vq, &chain[0]), 1);
	bench_finish(&b);
}
END_TEST

/* Long chains of every length, one after the other: what is kept for the next one is bounded too.
 */
/* A chain that has to wait for the copies of another one does so without asking for kicks. */
START_TEST(test_copies_wait)
{
	const uint64_t mib = 1 << 20, file_at = 1ull << 33;
	const struct fake_seg first = {file_at, 6 * mib, false};
	const struct fake_seg second[] = {{file_at, mib, false}, {file_at, 2 * mib, false}};
	struct mb_chain *a, *b;
	struct bench bench;

	bench_init(&bench, 0, 16);
	bench.ram.file = calloc(1, 8 * mib);
	bench.ram.file_base = file_at;
	bench.ram.file_len = 8 * mib;
	fake_split_add(&bench.ring, &first, 1, -1, (void *)1);
	fake_split_add(&bench.ring, second, 2, -1, (void *)2);
	ck_assert_int_eq(mb_virtq_pop(&bench.vq, &a), 1);
	for (unsigned i = 0; i < 3; i++)
		ck_assert_int_eq(mb_virtq_pop(&bench.vq, &b), 0);
	ck_assert_uint_eq(bench.n_kicks, 0);
	mb_virtq_push(&bench.vq, a, 0);
	ck_assert_uint_eq(bench.n_kicks, 1);
	ck_assert_int_eq(mb_virtq_pop(&bench.vq, &b), 1);
	mb_virtq_push(&bench.vq, b, 0);
	free(bench.ram.file);
	bench_finish(&bench);
}
END_TEST

START_TEST(test_iov_trim)
{
	struct fake_seg seg[MB_CHAIN_MAX_IOV], table = {DATA_GPA, 0, false};
	struct mb_chain *chain;
	struct bench b;
	uint32_t len;
	void *cookie;

	bench_init(&b, F_INDIRECT, 8);
	for (unsigned i = 0; i < MB_CHAIN_MAX_IOV; i++)
		seg[i] = (struct fake_seg){DATA_GPA + 0x10000 + i, 1, false};
	for (unsigned n = 3; n <= MB_CHAIN_MAX_IOV; n = n * 3 / 2) {
		fake_ring_table(&b.ring, DATA_GPA, seg, n);
		table.len = 16 * n;
		for (unsigned i = 0; i < 6; i++)
			fake_ring_add(&b.ring, &table, 1, 0, &b);
		for (unsigned i = 0; i < 6; i++) {
			ck_assert_int_eq(mb_virtq_pop(&b.vq, &chain), 1);
			ck_assert_uint_eq(chain->n_out, n);
			ck_assert_uint_le(b.vq.iov_total, b.vq.iov_budget);
			mb_virtq_push(&b.vq, chain, 0);
			ck_assert(fake_ring_get_used(&b.ring, &cookie, &len));
		}
	}
	bench_finish(&b);
}
END_TEST

/* One queue_kick is not endless. */
START_TEST(test_share)
{
	struct fake_seg seg = {DATA_GPA, 1, false};
	struct mb_chain *chain;
	unsigned n = 0;
	struct bench b;
	uint32_t len;
	void *cookie;

	bench_init(&b, F_EVENT, 16);
	mb_virtq_kick_begin(&b.vq);
	do {
		fake_ring_add(&b.ring, &seg, 1, -1, &b);
		if (mb_virtq_pop(&b.vq, &chain) != 1)
			break;
		mb_virtq_push(&b.vq, chain, 0);
		ck_assert(fake_ring_get_used(&b.ring, &cookie, &len));
	} while (++n < 100000);
	mb_virtq_kick_end(&b.vq);
	ck_assert_uint_lt(n, 1000);
	ck_assert_uint_eq(b.n_kicks, 1);
	ck_assert_int_eq(mb_virtq_pop(&b.vq, &chain), 1);
	bench_finish(&b);
}
END_TEST

/* Nothing more after the device was found broken elsewhere. */
START_TEST(test_stopped)
{
	struct fake_seg seg = {DATA_GPA, 1, false};
	struct mb_chain *chain;
	struct bench b;

	bench_init(&b, 0, 16);
	fake_ring_add(&b.ring, &seg, 1, -1, &b);
	atomic_store(&b.stopped, true);
	ck_assert_int_lt(mb_virtq_pop(&b.vq, &chain), 0);
	ck_assert_uint_eq(mb_virtq_index(&b.vq), 3);
	ck_assert_uint_eq(mb_virtq_size(&b.vq), 16);
	bench_finish(&b);
}
END_TEST

/* ---- garbage: anything in the ring at any time ---- */

START_TEST(test_garbage)
{
	unsigned seed = (unsigned)time(NULL) * 2654435761u | 1;
	const char *given = getenv("MB_TEST_SEED");
	struct model m = {0};

	if (given)
		seed = (unsigned)strtoul(given, NULL, 0);
	printf("virtq garbage: ring %d, MB_TEST_SEED=%u\n", _i, seed);
	m.seed = seed;
	for (unsigned round = 0; round < 300; round++) {
		uint32_t *words;

		bench_init_ram(&m.b, features_of(_i), 8, 0x20000);
		words = fake_dma_at(&m.b.ram, RING_GPA);
		for (unsigned step = 0; step < 200; step++) {
			struct mb_chain *chain;
			unsigned at = rnd(&m, (unsigned)(m.b.ring.end_gpa - RING_GPA) / 4 / 8);

			/* Small numbers and addresses in RAM now and then, to get further in. */
			words[at] = rnd(&m, 3) ? rnd(&m, 16) << 16 * rnd(&m, 2)
					       : RAM_BASE + rnd(&m, 0x20000);
			if (!rnd(&m, 4))
				words[at] |= rnd(&m, 2) ? 1u << 23 : 1u << 31;
			if (mb_virtq_pop(&m.b.vq, &chain) == 1 && rnd(&m, 2)) {
				mb_virtq_push(&m.b.vq, chain, 0);
				mb_virtq_signal(&m.b.vq);
			}
		}
		FAST(m.b.n_broken <= 1);
		bench_finish(&m.b);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("virtq");
	TCase *tc = tcase_create("virtq");

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, test_differential, 0, 8);
	tcase_add_loop_test(tc, test_threads, 0, 8);
	tcase_add_loop_test(tc, test_last_look, 0, 4);
	tcase_add_loop_test(tc, test_crimes, 0, N_CRIMES);
	tcase_add_loop_test(tc, test_odd_table_address, 0, 2);
	tcase_add_test(tc, test_same_head_again);
	tcase_add_loop_test(tc, test_packed_overtakes, 1, 3);
	tcase_add_loop_test(tc, test_bad_rings, 0, 2);
	tcase_add_test(tc, test_iov_budget);
	tcase_add_test(tc, test_copies_wait);
	tcase_add_test(tc, test_iov_trim);
	tcase_add_test(tc, test_share);
	tcase_add_test(tc, test_stopped);
	tcase_add_loop_test(tc, test_garbage, 0, 8);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
