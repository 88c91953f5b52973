// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <linux/magic.h>
#include <mirrorball/clock.h>
#include <mirrorball/commons.h>
#include <mirrorball/replica.h>
#include <mirrorball/share.h>
#include <mirrorball/thread.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "share_runs.h"

#define MAX_TRIES   4u	   /* of what was held, or of a commons that is not there */
#define SETTLE_NS   500000000ull
#define PATIENCE_NS 5000000000ull
#define GAP_BYTES   (64ull << 10) /* is rather read, too, than asked for with another message */
#define NEAR_BYTES  (1ull << 20)  /* are mapped at once: what is mapped in vain is dear where time is */
#define NEAR_RUNS   256u
#define WORK_NS	    20000000ull	  /* and as long a rest */
#define MAX_PIECES  1024u
#define STACK_BYTES (256u << 10)

/* A piece of a base that the commons keep for us. */
struct held {
	uint64_t piece, used_ns;
	unsigned base;
};

struct mb_share {
	struct mb_share_config config;
	struct mb_commons *commons;
	struct mb_commons_base *base[MB_SHARE_MAX_BASES];
	uint64_t base_bytes[MB_SHARE_MAX_BASES];
	/* Where a file can be written without a change of its times what the commons have may be of before,
	 * and is good to compare with only. */
	bool only_compare[MB_SHARE_MAX_BASES];
	bool asked[MB_SHARE_MAX_BASES]; /* what it has, since the daemon is there */
	unsigned n_bases;
	pthread_t thread;
	bool runs;
	int wake_fd; /* eventfd */

	pthread_mutex_t lock; /* innermost; protects: */
	struct runs news;
	uint64_t first_ns; /* of the oldest news */

	/* Only the thread, and before it runs. */
	unsigned node[MB_HEAT_VIEWS];
	struct runs work, later, newest;
	uint64_t *marks, marks_bytes; /* a bit a page of guest memory; all 0 but within one function */
	unsigned n_wanted; /* answers to come */
	struct held held[MAX_PIECES];
	unsigned n_held, max_held;

	/* Atomic. */
	unsigned read_node[MB_HEAT_VIEWS]; /* `node` for those who read */
	bool stop;
	struct mb_share_stats stats; /* but merged_bytes */
};

static void count(uint64_t *what, uint64_t n)
{
	__atomic_add_fetch(what, n, __ATOMIC_RELAXED);
}

/* ---- news; any thread ---- */

void mb_share_saw(struct mb_share *s, unsigned base, uint64_t at, const struct iovec *iov,
	unsigned n_iov, uint64_t len)
{
	uint64_t seen = 0, dropped = 0;
	bool first;

	pthread_mutex_lock(&s->lock);
	first = !s->news.n;
	for (unsigned i = 0; i < n_iov && len; i++) {
		uint64_t n = iov[i].iov_len < len ? iov[i].iov_len : len;
		uint64_t ram = (uint64_t)((const char *)iov[i].iov_base - (const char *)s->config.own_base);
		struct run run = {.base = (uint8_t)base};

		if (ram < s->config.ram_bytes && mb_run_of_whole_pages(ram, at, n, &run)) {
			seen += run.n_pages * PAGE;
			dropped += mb_runs_add_by_piece(&s->news, run);
		}
		at += n;
		len -= n;
	}
	first = first && s->news.n;
	if (first)
		s->first_ns = mb_now_ns();
	pthread_mutex_unlock(&s->lock);
	count(&s->stats.seen_bytes, seen);
	count(&s->stats.dropped_bytes, dropped);
	if (first)
		eventfd_write(s->wake_fd, 1);
}

bool mb_share_read(struct mb_share *s, unsigned base, uint64_t at, void *buf, uint64_t len)
{
	for (unsigned v = 0; v < s->config.n_views && !s->only_compare[base]; v++) {
		unsigned node = __atomic_load_n(&s->read_node[v], __ATOMIC_RELAXED);

		if (mb_commons_read(s->base[base], node, at, len, buf)) {
			count(&s->stats.common_bytes, len);
			return true;
		}
	}
	return false;
}

/* ---- the thread ---- */

static bool is_over(const struct mb_share *s)
{
	return __atomic_load_n(&s->stop, __ATOMIC_RELAXED);
}

/* Whether an earlier view has the same node. */
static bool is_again(const struct mb_share *s, unsigned view)
{
	bool again = false;

	for (unsigned v = 0; v < view; v++)
		again |= s->node[v] == s->node[view];
	return again;
}

static void release(struct mb_share *s, const struct held *held)
{
	for (unsigned v = 0; v < s->config.n_views; v++)
		if (!is_again(s, v))
			mb_commons_release(s->base[held->base], s->node[v], held->piece * PIECE);
}

/*
 * What one machine keeps of bases is no more than its memory, whatever its guest reads. What is mapped of
 * a piece that is released is still right, but others will have another one.
 */
static void hold(struct mb_share *s, unsigned base, uint64_t piece)
{
	unsigned oldest = 0, i;

	for (i = 0; i < s->n_held; i++) {
		if (s->held[i].base == base && s->held[i].piece == piece)
			break;
		if (s->held[i].used_ns < s->held[oldest].used_ns)
			oldest = i;
	}
	if (i == s->n_held && s->n_held == s->max_held) {
		i = oldest;
		release(s, &s->held[i]);
	} else if (i == s->n_held) {
		s->n_held++;
	}
	s->held[i] = (struct held){.base = base, .piece = piece, .used_ns = mb_now_ns()};
}

static void on_done(void *ctx, const struct mb_commons_done *done)
{
	struct mb_share *s = ctx;

	s->n_wanted--;
	for (unsigned i = 0; i < s->n_bases && !done->status; i++)
		if (s->base[i] == done->base)
			hold(s, i, done->offset / PIECE);
}

/* Waits for whatever comes, at most so long; -1: until it comes. */
static void wait_ms(struct mb_share *s, int ms)
{
	struct pollfd fds[] = {{.fd = s->wake_fd, .events = POLLIN},
		{.fd = mb_commons_fd(s->commons), .events = POLLIN}};
	eventfd_t n;

	poll(fds, 2, ms);
	if (fds[0].revents)
		eventfd_read(s->wake_fd, &n);
	mb_commons_poll(s->commons);
}

static void rest(struct mb_share *s, uint64_t ns)
{
	uint64_t end_ns = mb_now_ns() + ns, now_ns;

	while (!is_over(s) && (now_ns = mb_now_ns()) < end_ns)
		wait_ms(s, (int)((end_ns - now_ns) / 1000000) + 1);
}

static void look_at_nodes(struct mb_share *s)
{
	s->config.nodes(s->config.ctx, s->node);
	for (unsigned v = 0; v < s->config.n_views; v++)
		__atomic_store_n(&s->read_node[v], s->node[v], __ATOMIC_RELAXED);
}

/* Until all answers are there, or no daemon is. False: there are too few. */
static bool await_answers(struct mb_share *s, unsigned left)
{
	uint64_t end_ns = mb_now_ns() + s->config.patience_ns;

	while (s->n_wanted > left && !is_over(s) && mb_now_ns() < end_ns)
		wait_ms(s, 100);
	return s->n_wanted <= left;
}

/* The part of [at, at + len) in one piece, on each node that a view is on. `read`: if it is not there. */
static void want(struct mb_share *s, unsigned base, uint64_t at, uint64_t len, bool read)
{
	for (unsigned v = 0; v < s->config.n_views; v++) {
		int rc;

		if (is_again(s, v) ||
			(read && mb_commons_lookup(s->base[base], s->node[v], at, len)))
			continue;
		do
			rc = read ? mb_commons_want(s->base[base], s->node[v], at, len, NULL)
				  : mb_commons_have(s->base[base], s->node[v], at, len, NULL);
		while (rc == -EAGAIN && s->n_wanted && await_answers(s, s->n_wanted - 1));
		s->n_wanted += !rc;
	}
}

/* What other machines have read of it: so that it is read from memory from the start. */
static void ask_what_is_there(struct mb_share *s)
{
	bool ready = mb_commons_status(s->commons) == MB_COMMONS_READY, refused = false;

	for (unsigned i = 0; i < s->n_bases && !is_over(s); i++) {
		uint64_t end = s->base_bytes[i] / PAGE * PAGE;
		int status = mb_commons_base_status(s->base[i]);

		refused |= status && status != -EINPROGRESS;
		if (!ready)
			s->asked[i] = false;
		if (s->asked[i] || s->only_compare[i] || !ready || status)
			continue;
		s->asked[i] = true;
		for (uint64_t k = 0; k < s->max_held / 2 && k * PIECE < end; k++)
			want(s, i, k * PIECE, mb_end_in_piece(k * PIECE, end) - k * PIECE, false);
	}
	__atomic_store_n(&s->stats.state,
		!ready	  ? "on, without the commons"
		: refused ? "on, but the commons refuse a base"
			  : "on",
		__ATOMIC_RELAXED);
}

/* Everything of [at, end), piece by piece. */
static void want_range(struct mb_share *s, unsigned base, uint64_t at, uint64_t end)
{
	for (uint64_t next; at < end && !is_over(s); at = next) {
		next = mb_end_in_piece(at, end);
		want(s, base, at, next - at, true);
	}
}

/* The runs are sorted: those that are near each other are one. */
static void want_all(struct mb_share *s)
{
	const struct runs *work = &s->work;

	for (unsigned i = 0, next; i < work->n && !is_over(s); i = next) {
		uint64_t end = mb_run_end(&work->run[i]);

		for (next = i + 1; next < work->n && work->run[next].base == work->run[i].base &&
				   work->run[next].at <= end + GAP_BYTES;
			next++)
			if (mb_run_end(&work->run[next]) > end)
				end = mb_run_end(&work->run[next]);
		want_range(s, work->run[i].base, work->run[i].at, end);
	}
	await_answers(s, 0);
}

/* Again, a while later; or not. */
static void put_off(struct mb_share *s, const struct run *run)
{
	struct run again = *run;

	again.tries++;
	if (again.tries > MAX_TRIES || !mb_runs_add(&s->later, &again))
		count(&s->stats.dropped_bytes, run->n_pages * PAGE);
}

/* Runs of one piece, near each other there: what they are merged with is mapped once. */
struct near {
	struct mb_replicas_source source[MB_HEAT_VIEWS];
	struct mb_merging *merging; /* NULL: the commons do not have all of it */
	unsigned base;
	uint64_t at, end; /* of the base, within a piece */
};

/* False: the commons do not have it. */
static bool find_all(struct mb_share *s, struct near *near)
{
	for (unsigned v = 0; v < s->config.n_views; v++)
		if (!mb_commons_find(s->base[near->base], s->node[v], near->at, near->end - near->at,
			    &near->source[v].fd, &near->source[v].offset))
			return false;
	return true;
}

static void merge(struct mb_share *s, const struct near *near, const struct run *run)
{
	uint64_t len = run->n_pages * PAGE;
	struct mb_merged done = {0};

	if (!near->merging) {
		put_off(s, run);
		return;
	}
	if (mb_replicas_merge_run(near->merging, run->ram, run->at - near->at, len, &done)) {
		count(&s->stats.dropped_bytes, len);
		return;
	}
	count(&s->stats.were_merged_bytes, done.merged_bytes);
	count(&s->stats.differed_bytes, done.differs_bytes);
	count(&s->stats.dropped_bytes, done.full_bytes + done.failed_bytes);
	if (done.held_bytes || done.waiting_bytes)
		put_off(s, run);
}

/* The first of so many runs, and those that follow it closely; how many. */
static unsigned begin_near(struct mb_share *s, const struct run *run, unsigned n, struct near *near)
{
	unsigned i;

	*near = (struct near){.base = run->base, .at = run->at, .end = mb_run_end(run)};
	for (i = 1; i < n && i < NEAR_RUNS && run[i].base == run->base && run[i].at <= near->end + GAP_BYTES &&
		    run[i].at / PIECE == run->at / PIECE && run[i].at < run->at + NEAR_BYTES;
		i++)
		if (mb_run_end(&run[i]) > near->end)
			near->end = mb_run_end(&run[i]);
	if (!find_all(s, near)) {
		i = 1;
		near->end = mb_run_end(run);
		if (!find_all(s, near))
			return i;
	}
	if (mb_replicas_merge_begin(s->config.replicas, near->source, near->end - near->at, &near->merging))
		near->merging = NULL;
	return i;
}

static void merge_all(struct mb_share *s)
{
	uint64_t begin_ns = mb_now_ns();

	for (unsigned i = 0; i < s->work.n && !is_over(s);) {
		struct near near;
		unsigned end = i + begin_near(s, &s->work.run[i], s->work.n - i, &near);

		while (i < end && !is_over(s))
			merge(s, &near, &s->work.run[i++]);
		/* Before a rest, in which the commons may take a piece away. */
		mb_replicas_merge_end(near.merging);
		if (mb_now_ns() - begin_ns > WORK_NS) {
			rest(s, mb_now_ns() - begin_ns);
			begin_ns = mb_now_ns();
		}
	}
	s->work.n = 0;
}

/* What is new, and what was put off. When that is due; 0: there is none. */
static uint64_t due_ns(struct mb_share *s, uint64_t later_ns)
{
	uint64_t ns = 0;

	pthread_mutex_lock(&s->lock);
	if (s->news.n)
		ns = s->first_ns + s->config.settle_ns;
	pthread_mutex_unlock(&s->lock);
	if (s->later.n && (!ns || later_ns < ns))
		ns = later_ns;
	return ns;
}

static bool mark(struct mb_share *s, uint64_t page)
{
	uint64_t *word = &s->marks[page / 64], bit = 1ull << page % 64;
	bool was = *word & bit;

	*word |= bit;
	return was;
}

/* The pages of a run that no later one has. */
static void keep_newest(struct mb_share *s, const struct run *run)
{
	struct run part = *run;

	part.n_pages = 0;
	for (uint32_t i = 0; i <= run->n_pages; i++) {
		if (i < run->n_pages && !mark(s, run->ram / PAGE + i)) {
			part.n_pages++;
			continue;
		}
		if (part.n_pages && !mb_runs_add(&s->newest, &part))
			count(&s->stats.dropped_bytes, part.n_pages * PAGE);
		part.ram = run->ram + (i + 1) * PAGE;
		part.at = run->at + (i + 1) * PAGE;
		part.n_pages = 0;
	}
}

/* A buffer that is read into again and again has what was read last. */
static void drop_stale(struct mb_share *s)
{
	struct runs old = s->work;

	s->newest.n = 0;
	for (unsigned i = old.n; i--;)
		keep_newest(s, &old.run[i]);
	for (unsigned i = 0; i < old.n; i++)
		for (uint32_t k = 0; k < old.run[i].n_pages; k++)
			s->marks[(old.run[i].ram / PAGE + k) / 64] = 0;
	s->work = s->newest;
	s->newest = old;
}

static void take_work(struct mb_share *s, bool news)
{
	struct runs *from = news ? &s->news : &s->later, empty = s->work;

	pthread_mutex_lock(&s->lock);
	s->work = *from;
	empty.n = 0;
	*from = empty;
	pthread_mutex_unlock(&s->lock);
	drop_stale(s);
	mb_runs_sort(&s->work);
}

static void *share_main(void *arg)
{
	struct mb_share *s = arg;
	uint64_t later_ns = 0;

	pthread_setname_np(pthread_self(), "share");
	mb_commons_poll(s->commons);
	while (!is_over(s)) {
		uint64_t due = due_ns(s, later_ns), now_ns = mb_now_ns();
		bool news;

		look_at_nodes(s);
		ask_what_is_there(s);
		if (!due || due > now_ns) {
			wait_ms(s, due ? (int)((due - now_ns) / 1000000) + 1 : -1);
			continue;
		}
		news = due != later_ns || !s->later.n;
		if (!news || !s->later.n)
			later_ns = now_ns + 2 * s->config.settle_ns;
		take_work(s, news);
		want_all(s);
		merge_all(s);
	}
	return NULL;
}

/* ---- its life ---- */

/* Untouched but where pages are marked. */
static int make_marks(struct mb_share *s)
{
	s->marks_bytes = (s->config.ram_bytes / PAGE + 63) / 64 * 8;
	s->marks = mmap(NULL, s->marks_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->marks != MAP_FAILED)
		return 0;
	s->marks = NULL;
	return -ENOMEM;
}

int mb_share_create(const struct mb_share_config *config, struct mb_share **out, struct mb_error *err)
{
	struct mb_share *s = calloc(1, sizeof(*s));
	struct mb_commons_config commons = {
		.path = config->socket, .start = config->start, .done = on_done, .ctx = s};
	int rc;

	if (!s)
		return mb_error_set(err, ENOMEM, "sharing: out of memory");
	s->config = *config;
	s->max_held = mb_commons_most_pieces(config->ram_bytes, config->n_views, MAX_PIECES);
	if (!s->config.settle_ns)
		s->config.settle_ns = SETTLE_NS;
	if (!s->config.patience_ns)
		s->config.patience_ns = PATIENCE_NS;
	pthread_mutex_init(&s->lock, NULL);
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->wake_fd < 0)
		rc = mb_error_set(err, errno, "sharing: eventfd: %s", strerror(errno));
	else if (mb_runs_create(&s->news) || mb_runs_create(&s->work) || mb_runs_create(&s->later) ||
		 mb_runs_create(&s->newest) || make_marks(s))
		rc = mb_error_set(err, ENOMEM, "sharing: out of memory");
	else
		rc = mb_commons_create(&commons, &s->commons, err);
	if (rc) {
		mb_share_destroy(s);
		return rc;
	}
	*out = s;
	return 0;
}

/*
 * A block device has no times; memory mapped from tmpfs is written without a fault, and times of others
 * may be coarse. These have fine ones, and take note of a page that is written by way of a mapping.
 */
static bool has_good_times(int fd)
{
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || fstatfs(fd, &fs))
		return false;
	return fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == XFS_SUPER_MAGIC ||
	       fs.f_type == BTRFS_SUPER_MAGIC;
}

int mb_share_add_base(struct mb_share *s, int fd, unsigned *base, struct mb_error *err)
{
	int rc = s->n_bases < MB_SHARE_MAX_BASES
			 ? mb_commons_open_base(s->commons, fd, &s->base[s->n_bases])
			 : -EMFILE;
	off_t end = lseek(fd, 0, SEEK_END); /* a block device's, too; nobody reads by the offset */

	if (rc)
		return mb_error_set(err, -rc, "sharing: %s", strerror(-rc));
	s->base_bytes[s->n_bases] = end > 0 ? (uint64_t)end : 0;
	s->only_compare[s->n_bases] = !has_good_times(fd);
	*base = s->n_bases++;
	return 0;
}

int mb_share_start(struct mb_share *s, struct mb_error *err)
{
	int rc;

	look_at_nodes(s);
	s->stats.state = "on, without the commons";
	rc = mb_thread_start(&s->thread, STACK_BYTES, NULL, share_main, s);
	s->runs = !rc;
	return rc ? mb_error_set(err, -rc, "sharing: %s", strerror(-rc)) : 0;
}

void mb_share_stop(struct mb_share *s)
{
	if (!s || !s->runs)
		return;
	__atomic_store_n(&s->stop, true, __ATOMIC_RELAXED);
	eventfd_write(s->wake_fd, 1);
	pthread_join(s->thread, NULL);
	s->runs = false;
}

void mb_share_destroy(struct mb_share *s)
{
	if (!s)
		return;
	mb_share_stop(s);
	mb_commons_destroy(s->commons);
	if (s->wake_fd >= 0)
		close(s->wake_fd);
	pthread_mutex_destroy(&s->lock);
	free(s->news.run);
	free(s->work.run);
	free(s->later.run);
	free(s->newest.run);
	if (s->marks)
		munmap(s->marks, s->marks_bytes);
	free(s);
}

void mb_share_stats(struct mb_share *s, struct mb_share_stats *stats)
{
	struct mb_replicas_stats replicas;

	mb_replicas_stats(s->config.replicas, &replicas);
	*stats = (struct mb_share_stats){
		.state = __atomic_load_n(&s->stats.state, __ATOMIC_RELAXED),
		.merged_bytes = replicas.merged_bytes,
		.seen_bytes = __atomic_load_n(&s->stats.seen_bytes, __ATOMIC_RELAXED),
		.common_bytes = __atomic_load_n(&s->stats.common_bytes, __ATOMIC_RELAXED),
		.were_merged_bytes = __atomic_load_n(&s->stats.were_merged_bytes, __ATOMIC_RELAXED),
		.differed_bytes = __atomic_load_n(&s->stats.differed_bytes, __ATOMIC_RELAXED),
		.dropped_bytes = __atomic_load_n(&s->stats.dropped_bytes, __ATOMIC_RELAXED),
	};
}
