// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/thread.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "replica_internal.h"
#include "uffd.h"

/*
 * Two threads. The reader never waits for anything but messages: whoever moves a mapping into a
 * view waits until it has read of that, with a block locked. What it cannot do at once, it leaves
 * to the worker.
 */
#define STACK_BYTES (256u << 10)
#define N_MESSAGES  16u
#define NICE	    (-15)
#define KEPT	    0.75 /* of the mappings that there may be, when there were more */
#define OVER	    1.25 /* of them, and writers wait for the worker */
#define FEATURES    (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMAP | FEATURE_WP_SHMEM)

static int new_uffd(bool user_mode_only)
{
	int flags = O_CLOEXEC | O_NONBLOCK, fd, dev, rc;

	if (user_mode_only)
		flags |= UFFD_USER_MODE_ONLY;
	fd = (int)syscall(SYS_userfaultfd, flags);
	if (fd >= 0 || user_mode_only)
		return fd < 0 ? -errno : fd;
	rc = -errno;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return rc;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, flags);
	rc = -errno;
	close(dev);
	return fd < 0 ? rc : fd;
}

int mb_replicas_open_uffd(bool user_mode_only)
{
	struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
	int fd = new_uffd(user_mode_only);

	if (fd < 0 || !ioctl(fd, UFFDIO_API, &api))
		return fd;
	close(fd);
	return -ENOTSUP;
}

/* ---- figures ---- */

static void count_fault(struct mb_replicas *r, uint64_t ns)
{
	struct mb_replicas_stats *s = &r->stats;
	uint64_t longest = __atomic_load_n(&s->longest_ns, __ATOMIC_RELAXED);
	unsigned bucket = 0;

	while (bucket + 1 < MB_REPLICA_BUCKETS && ns / 1000 >> bucket)
		bucket++;
	__atomic_add_fetch(&s->n_faults, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&s->fault_ns, ns, __ATOMIC_RELAXED);
	__atomic_add_fetch(&s->faults_below_us[bucket], 1, __ATOMIC_RELAXED);
	while (ns > longest && !__atomic_compare_exchange_n(&s->longest_ns, &longest, ns, false,
				       __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

/* ---- the queue ---- */

static void add_page(struct waiting *w, unsigned page)
{
	w->first = page < w->first ? (uint16_t)page : w->first;
	w->last = page > w->last ? (uint16_t)page : w->last;
	for (unsigned i = 0; i < w->n; i++)
		if (w->page[i] == page)
			return;
	if (w->n < WAITING_PAGES)
		w->page[w->n++] = (uint16_t)page;
	else
		w->more = true;
}

static void add_waiting(struct waiting *w, const struct waiting *more)
{
	for (unsigned i = 0; i < more->n; i++)
		add_page(w, more->page[i]);
	w->first = more->first < w->first ? more->first : w->first;
	w->last = more->last > w->last ? more->last : w->last;
	w->more |= more->more;
}

/* A block is in it once, with all of its pages that somebody waits for. */
static void queue(struct mb_replicas *r, struct block *b, const struct waiting *waiting)
{
	uint32_t index = (uint32_t)(b - r->block);

	pthread_mutex_lock(&r->queue_lock);
	if (!b->queued) {
		b->waiting = *waiting;
		b->next = 0;
		__atomic_store_n(&b->queued, true, __ATOMIC_RELAXED);
		if (r->queue_tail)
			r->block[r->queue_tail - 1].next = index + 1;
		else
			r->queue_head = index + 1;
		r->queue_tail = index + 1;
		pthread_cond_signal(&r->queue_wake);
	} else {
		add_waiting(&b->waiting, waiting);
	}
	pthread_mutex_unlock(&r->queue_lock);
}

static void queue_page(struct mb_replicas *r, struct block *b, unsigned page, uint64_t ns)
{
	const struct waiting w = {
		.since_ns = ns,
		.n = 1,
		.page = {(uint16_t)page},
		.first = (uint16_t)page,
		.last = (uint16_t)page,
	};

	queue(r, b, &w);
}

/* Waits for one. It counts as queued until it is claimed. NULL: the end, or too many mappings. */
static struct block *take(struct mb_replicas *r)
{
	struct block *b = NULL;

	pthread_mutex_lock(&r->queue_lock);
	while (!r->queue_head && !r->stop && !r->too_many)
		pthread_cond_wait(&r->queue_wake, &r->queue_lock);
	if (r->queue_head) {
		b = &r->block[r->queue_head - 1];
		r->queue_head = b->next;
		if (!r->queue_head)
			r->queue_tail = 0;
	}
	pthread_mutex_unlock(&r->queue_lock);
	return b;
}

/*
 * What is to be done to a block that was taken; what comes from now on queues it again. With its
 * lock: whoever replicates it, and so makes us wait, sees until then that a writer does.
 */
static struct waiting claim(struct mb_replicas *r, struct block *b)
{
	struct waiting w;

	pthread_mutex_lock(&r->queue_lock);
	w = b->waiting;
	__atomic_store_n(&b->queued, false, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&r->queue_lock);
	return w;
}

/* A flag that the queue's lock protects. */
static bool is_set(struct mb_replicas *r, const bool *flag)
{
	bool set;

	pthread_mutex_lock(&r->queue_lock);
	set = *flag;
	pthread_mutex_unlock(&r->queue_lock);
	return set;
}

/* vCPUs wait for these threads, for a moment at a time; where CPUs are short they come first. It
 * needs CAP_SYS_NICE, and is no more than a wish. */
static void begin(const char *name)
{
	pthread_setname_np(pthread_self(), name);
	setpriority(PRIO_PROCESS, 0, NICE);
}

/* Pages [first, first + n) of the block; caller has the lock. False: there is no memory for it. */
static bool collapse_some(
	struct mb_replicas *r, struct block *b, unsigned first, unsigned n, uint64_t since_ns)
{
	int rc = mb_replica_written(
		r, b, (uint64_t)(b - r->block) * BLOCK_PAGES + first, n, SHORT_PATIENCE);

	if (!rc)
		count_fault(r, b->woken_ns - since_ns);
	return !rc;
}

static bool collapse_waiting(struct mb_replicas *r, struct block *b, const struct waiting *w)
{
	bool done = true;

	if (w->more)
		return collapse_some(r, b, w->first, w->last + 1u - w->first, w->since_ns);
	for (unsigned i = 0; i < w->n && done; i++)
		done = collapse_some(r, b, w->page[i], 1, w->since_ns);
	return done;
}

static void collapse(struct mb_replicas *r, struct block *b)
{
	struct waiting w;
	bool done;

	pthread_mutex_lock(&b->lock);
	w = claim(r, b);
	done = collapse_waiting(r, b, &w);
	mb_replica_unlock(b);
	/* Its writers wait until there is memory. At this priority nobody must spin. */
	if (!done && !is_set(r, &r->stop)) {
		mb_replica_give_up_some(r);
		queue(r, b, &w);
		mb_replica_nap();
	}
}

void mb_replica_give_up_some(struct mb_replicas *r)
{
	pthread_mutex_lock(&r->queue_lock);
	r->too_many = true;
	pthread_cond_signal(&r->queue_wake);
	pthread_mutex_unlock(&r->queue_lock);
}

/* The worker gives up copies then until there are fewer, before it helps a writer. */
static bool is_over_limit(struct mb_replicas *r)
{
	return (double)mb_replica_n_mappings(r) > OVER * (double)r->config.max_mappings;
}

/* A block, or as many as it takes. */
static void give_up(struct mb_replicas *r)
{
	const double kept = KEPT * (double)r->config.max_mappings;
	int rc;

	do
		rc = mb_replica_give_up_block(r);
	while (!rc && is_over_limit(r));
	if (rc != -ENOENT && (double)mb_replica_n_mappings(r) > kept)
		return;
	pthread_mutex_lock(&r->queue_lock);
	r->too_many = false;
	pthread_mutex_unlock(&r->queue_lock);
}

/* Writers and what is given up take turns: without the latter the former may be helped no more. */
static void *worker_main(void *arg)
{
	struct mb_replicas *r = arg;
	struct block *b;

	begin("collapse");
	while ((b = take(r)) || !is_set(r, &r->stop)) {
		if (is_set(r, &r->too_many))
			give_up(r);
		if (b)
			collapse(r, b);
	}
	return NULL;
}

/* ---- the reader ---- */

static void on_fault(struct mb_replicas *r, uint64_t hva, uint64_t ns)
{
	for (unsigned v = 0; v < r->config.n_views; v++) {
		uint64_t offset = hva - (uintptr_t)r->config.view_base[v];
		uint64_t page = offset / PAGE;
		struct block *b = &r->block[page / BLOCK_PAGES];
		unsigned at = (unsigned)(page % BLOCK_PAGES);
		int rc;

		if (offset >= r->config.ram_bytes)
			continue;
		if (is_over_limit(r) || pthread_mutex_trylock(&b->lock)) {
			queue_page(r, b, at, ns);
			return;
		}
		rc = mb_replica_written(r, b, page, 1, AT_ONCE);
		if (!rc)
			count_fault(r, b->woken_ns - ns);
		mb_replica_unlock(b);
		if (rc)
			queue_page(r, b, at, ns);
		return;
	}
}

/* The kernel has remaps read after all faults; to read one lets its thread go on. */
static void read_messages(struct mb_replicas *r)
{
	struct uffd_msg msg[N_MESSAGES];
	ssize_t n = read(r->config.uffd, msg, sizeof(msg));
	uint64_t now_ns = mb_now_ns();

	for (ssize_t i = 0; i < n / (ssize_t)sizeof(msg[0]); i++)
		if (msg[i].event == UFFD_EVENT_PAGEFAULT)
			on_fault(r, msg[i].arg.pagefault.address, now_ns);
}

static void *reader_main(void *arg)
{
	struct mb_replicas *r = arg;
	struct pollfd fds[] = {
		{.fd = r->config.uffd, .events = POLLIN}, {.fd = r->stop_fd, .events = POLLIN}};

	begin("writes");
	while (poll(fds, 2, -1) < 0 || !fds[1].revents)
		read_messages(r);
	return NULL;
}

/* ---- the interface ---- */

int mb_replica_start_threads(struct mb_replicas *r)
{
	int rc;

	r->stop_fd = eventfd(0, EFD_CLOEXEC);
	if (r->stop_fd < 0)
		return -errno;
	rc = mb_thread_start(&r->reader, STACK_BYTES, NULL, reader_main, r);
	r->reader_runs = !rc;
	if (!rc)
		rc = mb_thread_start(&r->worker, STACK_BYTES, NULL, worker_main, r);
	r->worker_runs = !rc;
	return rc;
}

void mb_replica_stop_threads(struct mb_replicas *r)
{
	pthread_mutex_lock(&r->queue_lock);
	r->stop = true;
	pthread_cond_signal(&r->queue_wake);
	pthread_mutex_unlock(&r->queue_lock);
	if (r->worker_runs)
		pthread_join(r->worker, NULL);
	if (r->stop_fd >= 0)
		eventfd_write(r->stop_fd, 1);
	if (r->reader_runs)
		pthread_join(r->reader, NULL);
	if (r->stop_fd >= 0)
		close(r->stop_fd);
}
