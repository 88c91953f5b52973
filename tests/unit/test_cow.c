// SPDX-License-Identifier: Apache-2.0
#include "../../devices/cow.h"
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * Overlays and power failures. Several writes and flushes are in progress at once, in random order;
 * whatever is written to the overlay's file goes into a journal as well, up to the next sync. Now
 * and then the power fails: the file becomes what it was at the last sync, with a random part of
 * what came after. It has to open, and each sector has to hold what it held when the last flush
 * began that was over, or something later. In some runs the file
 * system fails at times, too: what it says once, in a sync, is true for ever: something is lost.
 */
#define SECTOR	  512u
#define N_SECTORS (5u * 2048 + 3)
#define DISK	  ((uint64_t)N_SECTORS * SECTOR)
#define BASE	  (DISK - 1000 * SECTOR) /* a disk may be larger than its base */
#define MAX_FILE  (16u << 20)
#define N_OPS	  8u
#define MAX_LEN	  96u /* sectors of an operation */

/* ---- the journal: of one file, what is not synced ---- */

static struct {
	int fd; /* -1: off */
	uint8_t *durable;
	uint64_t durable_len;
	struct record {
		uint64_t at, len; /* data NULL: zeroes */
		uint8_t *data;
	} * records;
	unsigned n, max;
	uint64_t len;	/* of the file now */
	unsigned fails; /* one in so many calls; 0: none */
	uint64_t seed;
} journal = {.fd = -1};

static void log_write(const void *data, uint64_t at, uint64_t len)
{
	struct record *r;

	if (journal.n == journal.max) {
		journal.max = journal.max * 2 + 64;
		journal.records = realloc(journal.records, journal.max * sizeof(*r));
	}
	r = &journal.records[journal.n++];
	*r = (struct record){at, len, data ? malloc(len) : NULL};
	if (data)
		memcpy(r->data, data, len);
	ck_assert_uint_le(at + len, MAX_FILE);
	if (at + len > journal.len)
		journal.len = at + len;
}

static void apply(uint8_t *file, uint64_t *file_len, const struct record *r)
{
	if (r->data)
		memcpy(file + r->at, r->data, r->len);
	else
		memset(file + r->at, 0, r->len);
	if (r->at + r->len > *file_len)
		*file_len = r->at + r->len;
}

static bool fails(int fd)
{
	if (fd != journal.fd || !journal.fails)
		return false;
	journal.seed = journal.seed * 6364136223846793005u + 1442695040888963407u;
	return (journal.seed >> 33) % journal.fails == 0;
}

static ssize_t write_data(int fd, const void *buf, size_t len, off_t at)
{
	ssize_t n = syscall(SYS_pwrite64, fd, buf, len, at);

	if (fd == journal.fd && n > 0)
		log_write(buf, (uint64_t)at, (uint64_t)n);
	return n;
}

/* These are what the monitor's code calls; the C library's are not linked then. */
ssize_t pwrite(int fd, const void *buf, size_t len, off_t at)
{
	if (fails(fd)) {
		errno = ENOSPC;
		return -1;
	}
	return write_data(fd, buf, len, at);
}

int fallocate(int fd, int mode, off_t at, off_t len)
{
	if (fails(fd)) {
		errno = ENOSPC;
		return -1;
	}
	return (int)syscall(SYS_fallocate, fd, mode, at, len);
}

int ftruncate(int fd, off_t len)
{
	if (fails(fd)) {
		errno = EFBIG;
		return -1;
	}
	if (fd == journal.fd) {
		ck_assert_uint_ge((uint64_t)len, journal.len); /* it only grows */
		if ((uint64_t)len > journal.len)
			log_write(NULL, journal.len, (uint64_t)len - journal.len);
	}
	return (int)syscall(SYS_ftruncate, fd, len);
}

/* One that fails has written a part, and forgets the rest: the next one knows nothing of it. */
int fdatasync(int fd)
{
	bool failed = fails(fd);

	if (fd == journal.fd) {
		for (unsigned i = 0; i < journal.n; i++) {
			if (!failed || i % 2)
				apply(journal.durable, &journal.durable_len, &journal.records[i]);
			free(journal.records[i].data);
		}
		journal.n = 0;
	}
	errno = EIO;
	return failed ? -1 : 0;
}

static void journal_start(int fd)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	ck_assert_int_le(st.st_size, MAX_FILE);
	if (!journal.durable)
		journal.durable = malloc(MAX_FILE);
	memset(journal.durable, 0, MAX_FILE);
	journal.len = journal.durable_len = (uint64_t)st.st_size;
	ck_assert_int_eq(pread(fd, journal.durable, (size_t)st.st_size, 0), st.st_size);
	journal.fd = fd;
}

/* ---- what the disk should hold ---- */

struct value {
	uint64_t version; /* of the data; the clock when it was written */
	bool zero;
	bool maybe_zero; /* discarded: either */
};

enum kind { IDLE, WRITE, ZEROES, DISCARD, FLUSH };
enum state { NEXT, WAITS, IO, SETTLE, SYNC };

struct op {
	struct mb_cow_waiter waiter;
	enum kind kind;
	enum state state;
	uint64_t at, left; /* bytes */
	uint64_t version;
	struct mb_cow_claim claim;
	struct mb_cow_flush flush;
	struct value *snapshot; /* of all sectors, when a flush began */
	uint64_t began;
};

struct world {
	uint64_t rng, clock;
	char base_path[40], path[60];
	int base_fd;
	uint8_t *base;
	struct mb_cow *cow;
	struct mb_cow_queue queue;
	struct op ops[N_OPS];
	struct value now[N_SECTORS], durable[N_SECTORS];
	uint64_t
		zeroed[N_SECTORS]; /* the clock when one last began to be made zero, or discarded */
	uint64_t flushed;	   /* the clock when the flush began that `durable` is of */
	unsigned n_flushes, n_waits;
	bool changed; /* since it was opened */
	bool sync_failed;
};

static uint32_t rnd(struct world *w, uint32_t below)
{
	w->rng ^= w->rng << 13;
	w->rng ^= w->rng >> 7;
	w->rng ^= w->rng << 17;
	return (uint32_t)(w->rng >> 32) % below;
}

static void content(uint8_t *to, uint64_t sector, uint64_t version)
{
	uint64_t word[SECTOR / 8] = {sector, version};

	for (unsigned i = 2; i < SECTOR / 8; i++)
		word[i] = (sector * 0x9e3779b97f4a7c15 ^ version * 0xc2b2ae3d27d4eb4f) + i;
	memcpy(to, word, SECTOR);
}

static bool is_zero(const uint8_t *data)
{
	return !*data && !memcmp(data, data + 1, SECTOR - 1);
}

/* What a sector holds: fails if that is nothing that was ever written to it. */
static struct value parse(const uint8_t *data, uint64_t sector)
{
	uint8_t wanted[SECTOR];
	uint64_t version;

	if (is_zero(data))
		return (struct value){.zero = true};
	memcpy(&version, data + 8, 8);
	content(wanted, sector, version);
	ck_assert_msg(!memcmp(data, wanted, SECTOR), "sector %llu: torn, or another's",
		(unsigned long long)sector);
	return (struct value){.version = version};
}

static void read_disk(struct world *w, uint8_t *to, uint64_t at, uint64_t len)
{
	while (len) {
		struct mb_cow_run run;

		mb_cow_find(w->cow, at, len, &run);
		ck_assert_uint_gt(run.bytes, 0);
		ck_assert_uint_le(run.bytes, len);
		if (run.where == MB_COW_ZERO)
			memset(to, 0, run.bytes);
		else if (run.where == MB_COW_BASE)
			memcpy(to, w->base + run.at, run.bytes);
		else
			ck_assert_int_eq(pread(mb_cow_fd(w->cow), to, run.bytes, (off_t)run.at),
				(ssize_t)run.bytes);
		to += run.bytes;
		at += run.bytes;
		len -= run.bytes;
	}
}

/* ---- operations ---- */

static bool overlaps(const struct world *w, uint64_t at, uint64_t len)
{
	for (unsigned i = 0; i < N_OPS; i++)
		if (w->ops[i].kind != IDLE && w->ops[i].kind != FLUSH &&
			mb_range_overlap(at, len, w->ops[i].at, w->ops[i].left))
			return true;
	return false;
}

static void begin(struct world *w, struct op *op)
{
	static const enum kind kinds[] = {
		WRITE, WRITE, WRITE, WRITE, WRITE, ZEROES, DISCARD, FLUSH};
	enum kind kind = kinds[rnd(w, 8)];
	uint64_t n = 1 + rnd(w, rnd(w, 3) ? 12 : MAX_LEN);
	/* Mostly where others are, and the end. */
	uint64_t first = rnd(w, 4) ? rnd(w, 256) + 4096u * rnd(w, 3) : rnd(w, N_SECTORS);

	if (first + n > N_SECTORS || !rnd(w, 20))
		first = N_SECTORS - n;
	if (kind == FLUSH && rnd(w, 4))
		kind = WRITE;
	if (kind != FLUSH && overlaps(w, first * SECTOR, n * SECTOR))
		return;
	free(op->snapshot);
	*op = (struct op){.waiter = {.queue = &w->queue}, .kind = kind, .began = ++w->clock};
	if (kind == FLUSH) {
		op->snapshot = malloc(sizeof(w->now));
		memcpy(op->snapshot, w->now, sizeof(w->now));
		return;
	}
	op->at = first * SECTOR;
	op->left = n * SECTOR;
	op->version = w->clock;
	if (kind != WRITE)
		for (uint64_t i = first; i < first + n; i++)
			w->zeroed[i] = w->clock;
}

/* Bytes [at, at + len) of what a write has for the disk. */
static void data_of(const struct op *op, uint8_t *to, uint64_t at, uint64_t len)
{
	for (uint64_t i = 0; i < len; i += SECTOR) {
		if (op->kind == WRITE)
			content(to + i, (at + i) / SECTOR, op->version);
		else
			memset(to + i, 0, SECTOR);
	}
}

static uint64_t write_claim(struct world *w, struct op *op)
{
	uint8_t buf[64 << 10];
	struct mb_cow_claim *claim = &op->claim;
	uint64_t len = claim->step == MB_COW_FILL ? claim->cluster_bytes : claim->bytes;

	if (claim->step == MB_COW_PUNCH) {
		if (rnd(w, 4)) /* else it cannot */
			log_write(NULL, claim->at, claim->bytes);
		return len;
	}
	if (claim->step == MB_COW_FILL) {
		memset(buf, 0, len);
		memcpy(buf, w->base + claim->cluster_at, claim->base_bytes);
		data_of(op, buf + (op->at - claim->cluster_at), op->at, claim->bytes);
	} else {
		data_of(op, buf, op->at, len);
	}
	/* Not all of it, at times. */
	if (!rnd(w, 16))
		len = rnd(w, (uint32_t)len / SECTOR + 1) * SECTOR;
	if (len)
		ck_assert_int_eq(
			write_data(mb_cow_fd(w->cow), buf, len, (off_t)claim->at), (ssize_t)len);
	return len;
}

/* The first n bytes of what is left are done. */
static void done(struct world *w, struct op *op, uint64_t n)
{
	for (uint64_t i = op->at / SECTOR; i < (op->at + n) / SECTOR; i++) {
		if (op->kind == DISCARD)
			w->now[i].maybe_zero = true;
		else
			w->now[i] =
				(struct value){.version = op->version, .zero = op->kind == ZEROES};
	}
	op->at += n;
	op->left -= n;
}

static void flushed(struct world *w, struct op *op)
{
	/* An older one than that of which we know says nothing new. */
	if (op->began > w->flushed) {
		memcpy(w->durable, op->snapshot, sizeof(w->durable));
		w->flushed = op->began;
	}
	w->n_flushes++;
	op->kind = IDLE;
}

static void step_flush(struct world *w, struct op *op)
{
	int rc;

	if (op->state == SYNC) {
		if (rnd(w, 8)) /* it takes a while, and much happens */
			return;
		if (!rnd(w, 20)) { /* given up, as by a reset */
			mb_cow_flush_cancel(w->cow, &op->flush, false);
			op->kind = IDLE;
			return;
		}
		if (fdatasync(mb_cow_fd(w->cow))) {
			mb_cow_flush_cancel(w->cow, &op->flush, true);
			w->sync_failed = true;
			op->kind = IDLE;
			return;
		}
	}
	rc = mb_cow_flush(w->cow, &op->flush, &op->waiter);
	ck_assert(rc >= 0 || journal.fails);
	ck_assert(!w->sync_failed || rc != MB_COW_FLUSH_SYNC);
	if (rc < 0) {
		op->kind = IDLE;
		return;
	}
	op->state = rc == MB_COW_FLUSH_SYNC ? SYNC : WAITS;
	w->n_waits += op->state == WAITS;
	if (rc == MB_COW_FLUSH_DONE)
		flushed(w, op);
}

static void step_write(struct world *w, struct op *op)
{
	uint64_t n;
	int rc;

	switch (op->state) {
	case NEXT:
		if (!op->left) {
			op->kind = IDLE;
			return;
		}
		rc = op->kind == WRITE
			     ? mb_cow_claim(w->cow, op->at, op->left, &op->waiter, &op->claim)
			     : mb_cow_claim_zeroes(w->cow, op->at, op->left, op->kind == DISCARD,
				       &op->waiter, &op->claim);
		ck_assert(!rc || journal.fails);
		if (rc)
			return;
		ck_assert(op->claim.step == MB_COW_WAIT || op->claim.bytes);
		ck_assert_uint_le(op->claim.bytes, op->left);
		if (op->claim.step == MB_COW_NOTHING)
			done(w, op, op->claim.bytes);
		else
			op->state = op->claim.step == MB_COW_WAIT ? WAITS : IO;
		w->n_waits += op->state == WAITS;
		break;
	case IO:
		/* What is there is mixed from now on: the model has no value for that. */
		op->began = write_claim(w, op);
		op->state = SETTLE;
		break;
	default:
		w->changed |= op->claim.n;
		n = mb_cow_settle(w->cow, &op->claim, op->began);
		done(w, op, n);
		op->state = NEXT;
	}
}

static void step(struct world *w)
{
	struct op *op = &w->ops[rnd(w, N_OPS)];
	struct mb_cow_waiter *waiter, *next;

	for (waiter = mb_cow_take_woken(w->cow, &w->queue); waiter; waiter = next) {
		next = waiter->next;
		((struct op *)waiter)->state = NEXT;
	}
	if (op->kind == IDLE)
		begin(w, op);
	else if (op->state == WAITS)
		return;
	else if (op->kind == FLUSH)
		step_flush(w, op);
	else
		step_write(w, op);
}

/* Sectors that nobody writes hold what they should. */
static void look(struct world *w)
{
	uint8_t data[MAX_LEN * SECTOR];
	uint64_t n = 1 + rnd(w, MAX_LEN), first = rnd(w, (uint32_t)(N_SECTORS - n));

	if (overlaps(w, first * SECTOR, n * SECTOR))
		return;
	read_disk(w, data, first * SECTOR, n * SECTOR);
	for (uint64_t i = 0; i < n; i++) {
		struct value v = parse(data + i * SECTOR, first + i), *wanted = &w->now[first + i];

		if (v.zero)
			ck_assert(wanted->zero || wanted->maybe_zero);
		else
			ck_assert(!wanted->zero && wanted->version == v.version);
	}
}

/* ---- the power ---- */

static void open_overlay(struct world *w)
{
	struct mb_cow_config config = {
		.base_fd = w->base_fd,
		.base_path = w->base_path,
		.base_bytes = BASE,
		.overlay_path = w->path,
	};
	struct mb_error err;

	ck_assert_msg(!mb_cow_create(&w->cow, &config, &err), "%s", err.text);
}

static void open_journaled(struct world *w)
{
	open_overlay(w);
	ck_assert_uint_eq(mb_cow_bytes(w->cow), DISK);
	journal_start(mb_cow_fd(w->cow));
}

/* What is on the disk after the power failed: each sector that was not synced may have been
 * written, or not. */
static void fail_power(struct world *w)
{
	uint8_t *file = malloc(MAX_FILE);
	uint64_t len = journal.durable_len;
	unsigned luck = rnd(w, 4);
	int fd;

	memcpy(file, journal.durable, MAX_FILE);
	for (unsigned i = 0; i < journal.n; i++) {
		struct record *r = &journal.records[i];

		/* From time to time all, or none. */
		for (uint64_t k = 0; k < r->len; k += SECTOR) {
			struct record part = {r->at + k, r->len - k < SECTOR ? r->len - k : SECTOR,
				r->data ? r->data + k : NULL};

			if (luck == 0 || (luck != 1 && rnd(w, 2)))
				apply(file, &len, &part);
		}
		free(r->data);
	}
	journal.n = 0;
	journal.fd = -1;
	mb_cow_forget(w->cow, &w->queue);
	for (unsigned i = 0; i < N_OPS; i++) {
		if (w->ops[i].flush.runs)
			mb_cow_flush_cancel(w->cow, &w->ops[i].flush, false);
		w->ops[i].kind = IDLE;
	}
	mb_cow_destroy(w->cow);
	/* Its reference counts are not to be believed, and it says so. */
	ck_assert(!w->changed || file[79] & 1);
	w->changed = w->sync_failed = false;
	fd = open(w->path, O_WRONLY | O_TRUNC);
	ck_assert_int_eq(pwrite(fd, file, len, 0), (ssize_t)len);
	close(fd);
	free(file);
}

static void check_all(struct world *w)
{
	uint8_t *disk = malloc(DISK);

	read_disk(w, disk, 0, DISK);
	for (uint64_t i = 0; i < N_SECTORS; i++) {
		struct value v = parse(disk + i * SECTOR, i), *d = &w->durable[i];

		if (v.zero)
			ck_assert_msg(d->zero || d->maybe_zero || w->zeroed[i] > d->version,
				"sector %llu is zero and had version %llu at a flush",
				(unsigned long long)i, (unsigned long long)d->version);
		else
			ck_assert_msg(
				(!d->zero && v.version == d->version) || v.version > d->version,
				"sector %llu has version %llu, and had %llu at a flush",
				(unsigned long long)i, (unsigned long long)v.version,
				(unsigned long long)d->version);
		if (v.zero)
			v.version = w->clock;
		w->now[i] = w->durable[i] = v;
	}
	w->flushed = w->clock;
	free(disk);
}

/* What others see if they make the disk larger: zeroes, not what somebody left there. */
static void check_behind_end(struct world *w, unsigned cluster_bytes)
{
	uint8_t rest[64 << 10];
	struct mb_cow_run run;
	ssize_t n;

	mb_cow_find(w->cow, DISK - SECTOR, SECTOR, &run);
	if (run.where != MB_COW_DELTA)
		return;
	n = pread(mb_cow_fd(w->cow), rest, cluster_bytes - DISK % cluster_bytes,
		(off_t)(run.at + SECTOR));
	for (ssize_t i = 0; i < n; i++)
		ck_assert_uint_eq(rest[i], 0);
}

static void make_world(struct world *w)
{
	const char *env = getenv("MB_TEST_SEED");
	int fd;

	w->rng = (env ? strtoull(env, NULL, 0)
		      : (uint64_t)time(NULL) * 2654435761u + (unsigned)getpid()) |
		 1;
	printf("MB_TEST_SEED=%llu\n", (unsigned long long)w->rng);
	fflush(stdout);
	sprintf(w->base_path, "/dev/shm/mb-cow-XXXXXX");
	fd = mkstemp(w->base_path);
	w->base = calloc(1, DISK);
	for (uint64_t i = 0; i < BASE / SECTOR; i++)
		content(w->base + i * SECTOR, i, 0);
	for (uint64_t i = BASE / SECTOR; i < N_SECTORS; i++)
		w->now[i].zero = w->durable[i].zero = true;
	ck_assert_int_eq(syscall(SYS_pwrite64, fd, w->base, BASE, 0), BASE);
	close(fd);
	w->base_fd = open(w->base_path, O_RDONLY);
	sprintf(w->path, "%s.qcow2", w->base_path);
	w->queue.wake_fd = eventfd(0, EFD_NONBLOCK);
}

static void finish_world(struct world *w)
{
	unlink(w->path);
	unlink(w->base_path);
	close(w->base_fd);
	close(w->queue.wake_fd);
	for (unsigned i = 0; i < N_OPS; i++)
		free(w->ops[i].snapshot);
	free(w->base);
	free(w);
}

static int qemu_img(const char *what, const char *path)
{
	char cmd[300];

	sprintf(cmd, "qemu-img %s %s >/dev/null 2>&1", what, path);
	return system(cmd);
}

START_TEST(test_power)
{
	struct world *w = calloc(1, sizeof(*w));
	bool qemu = !system("command -v qemu-img >/dev/null");
	char cmd[200];

	make_world(w);
	w->rng += (unsigned)_i * 2;
	if (!qemu) {
		skip("no qemu-img");
		finish_world(w);
		return;
	}
	sprintf(cmd, "create -q -f qcow2 -b %s -F raw -o cluster_size=%s", w->base_path,
		_i % 2 ? "64k" : "4k");
	sprintf(cmd + strlen(cmd), " -u %s %llu #", w->path, (unsigned long long)DISK);
	ck_assert_int_eq(qemu_img(cmd, ""), 0);
	for (unsigned round = 0; round < 20; round++) {
		unsigned n = rnd(w, 6000);

		open_journaled(w);
		check_all(w);
		check_behind_end(w, _i % 2 ? 64 << 10 : 4096);
		if (_i >= 4) {
			journal.fails = 4u << rnd(w, 8);
			journal.seed = w->rng;
		}
		for (unsigned i = 0; i < n; i++) {
			step(w);
			if (!rnd(w, 16))
				look(w);
		}
		journal.fails = 0;
		fail_power(w);
		/* QEMU puts it in order just as we do. */
		if (!rnd(w, 4))
			ck_assert_int_eq(qemu_img("check -r all", w->path), 0);
	}
	open_journaled(w);
	check_all(w);
	journal.fd = -1;
	mb_cow_destroy(w->cow);
	ck_assert_uint_gt(w->n_flushes, 50);
	ck_assert_uint_gt(w->n_waits, 100);
	finish_world(w);
}
END_TEST

/* Writes that fail take nothing with them: when there is room again, all of the disk can be
 * written, and it is in order. */
START_TEST(test_failed_writes)
{
	struct world *w = calloc(1, sizeof(*w));
	struct mb_cow_waiter waiter = {.queue = &w->queue};
	uint8_t *data = malloc(DISK);
	struct mb_cow_claim claim;

	make_world(w);
	open_overlay(w);
	for (unsigned i = 0; i < 50000; i++) {
		uint64_t at = rnd(w, N_SECTORS) * (uint64_t)SECTOR,
			 len = SECTOR * (1 + rnd(w, 300));

		len = len < BASE - at || at >= BASE ? len : BASE - at;
		if (at + len > BASE)
			continue;
		ck_assert_int_eq(mb_cow_claim(w->cow, at, len, &waiter, &claim), 0);
		mb_cow_settle(w->cow, &claim, 0);
	}
	memset(data, 0x5a, DISK);
	for (uint64_t at = 0; at < BASE; at += claim.bytes) {
		uint64_t bytes;

		ck_assert_int_eq(mb_cow_claim(w->cow, at, BASE - at, &waiter, &claim), 0);
		ck_assert_int_ne(claim.step, MB_COW_WAIT);
		bytes = claim.step == MB_COW_FILL ? claim.cluster_bytes : claim.bytes;
		ck_assert_int_eq(write_data(mb_cow_fd(w->cow), data, bytes, (off_t)claim.at),
			(ssize_t)bytes);
		claim.bytes = mb_cow_settle(w->cow, &claim, bytes);
	}
	mb_cow_destroy(w->cow);
	ck_assert_int_eq(qemu_img("check", w->path), 0);
	open_overlay(w);
	read_disk(w, data, 0, BASE);
	for (uint64_t i = 0; i < BASE; i++)
		ck_assert_uint_eq(data[i], 0x5a);
	mb_cow_destroy(w->cow);
	free(data);
	finish_world(w);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("cow");
	TCase *tc = tcase_create("cow");

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, test_power, 0, 8);
	tcase_add_test(tc, test_failed_writes);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
