// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/loop.h>
#include <mirrorball/thread.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BATCH	    64
#define STACK_BYTES (256u << 10)

struct call {
	void (*fn)(void *arg);
	void *arg;
	bool done;
	struct call *next;
};

struct mb_loop {
	int epoll_fd;
	int wake_fd; /* eventfd: calls are queued or stop is set */
	bool stop;   /* atomic */

	struct epoll_event batch[BATCH]; /* loop's thread only */
	int n_batch;

	/* Protects what follows; held while a call runs only when nobody runs the loop. */
	pthread_mutex_t lock;
	pthread_cond_t done; /* a call was carried out, or the loop ended */
	struct call *first, **last;
	bool running;
	bool has_runner; /* somebody runs the loop, or a call in its place: runner is valid */
	pthread_t runner;

	bool has_thread;
	pthread_t thread;
	char name[16];
};

int mb_loop_create(struct mb_loop **out, struct mb_error *err)
{
	struct epoll_event ev = {.events = EPOLLIN};
	struct mb_loop *loop = calloc(1, sizeof(*loop));
	int rc;

	if (!loop)
		return mb_error_set(err, ENOMEM, "event loop: out of memory");
	loop->last = &loop->first;
	pthread_mutex_init(&loop->lock, NULL);
	pthread_cond_init(&loop->done, NULL);
	loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (loop->wake_fd < 0 || loop->epoll_fd < 0 ||
		epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &ev)) {
		rc = mb_error_set(err, errno, "event loop: %s", strerror(errno));
		mb_loop_destroy(loop);
		return rc;
	}
	*out = loop;
	return 0;
}

void mb_loop_destroy(struct mb_loop *loop)
{
	if (!loop)
		return;
	if (loop->has_thread) {
		mb_loop_stop(loop);
		pthread_join(loop->thread, NULL);
	}
	if (loop->wake_fd >= 0)
		close(loop->wake_fd);
	if (loop->epoll_fd >= 0)
		close(loop->epoll_fd);
	pthread_cond_destroy(&loop->done);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}

static void wake(struct mb_loop *loop)
{
	uint64_t one = 1;
	ssize_t n = write(loop->wake_fd, &one, sizeof(one));

	(void)n; /* EAGAIN: it is awake already */
}

void mb_loop_stop(struct mb_loop *loop)
{
	__atomic_store_n(&loop->stop, true, __ATOMIC_RELEASE);
	wake(loop);
}

/* Carries out what mb_loop_call queued. Caller holds the lock, which is released around each call. */
static void run_calls(struct mb_loop *loop)
{
	while (loop->first) {
		struct call *call = loop->first;

		loop->first = call->next;
		if (!loop->first)
			loop->last = &loop->first;
		pthread_mutex_unlock(&loop->lock);
		call->fn(call->arg);
		pthread_mutex_lock(&loop->lock);
		call->done = true;
		pthread_cond_broadcast(&loop->done);
	}
}

static void woken(struct mb_loop *loop)
{
	uint64_t n;
	ssize_t got = read(loop->wake_fd, &n, sizeof(n));

	(void)got;
	pthread_mutex_lock(&loop->lock);
	run_calls(loop);
	pthread_mutex_unlock(&loop->lock);
}

int mb_loop_run(struct mb_loop *loop)
{
	int rc = 0;

	pthread_mutex_lock(&loop->lock);
	while (loop->has_runner)
		pthread_cond_wait(&loop->done, &loop->lock);
	loop->running = loop->has_runner = true;
	loop->runner = pthread_self();
	pthread_mutex_unlock(&loop->lock);

	while (!__atomic_load_n(&loop->stop, __ATOMIC_ACQUIRE)) {
		int n = epoll_wait(loop->epoll_fd, loop->batch, BATCH, -1);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			rc = -errno;
			break;
		}
		loop->n_batch = n;
		for (int i = 0; i < n; i++) {
			struct mb_watch *watch = loop->batch[i].data.ptr;

			if (watch)
				watch->ready(watch, loop->batch[i].events);
			else if (loop->batch[i].events)
				woken(loop);
		}
		loop->n_batch = 0;
	}

	/* Nobody may be left waiting for a call that will never run. */
	pthread_mutex_lock(&loop->lock);
	run_calls(loop);
	loop->running = loop->has_runner = false;
	pthread_cond_broadcast(&loop->done);
	pthread_mutex_unlock(&loop->lock);
	return rc;
}

static void *thread_main(void *arg)
{
	struct mb_loop *loop = arg;

	pthread_setname_np(pthread_self(), loop->name);
	mb_loop_run(loop);
	return NULL;
}

int mb_loop_start_thread(
	struct mb_loop *loop, const char *name, const cpu_set_t *cpus, struct mb_error *err)
{
	int rc;

	snprintf(loop->name, sizeof(loop->name), "%s", name);
	rc = mb_thread_start(&loop->thread, STACK_BYTES, cpus, thread_main, loop);
	if (rc)
		return mb_error_set(err, -rc, "thread %s: %s; too many processes? (ulimit -u)", name,
			strerror(-rc));
	loop->has_thread = true;
	return 0;
}

int mb_loop_bind_thread(struct mb_loop *loop, const cpu_set_t *cpus)
{
	return loop->has_thread ? -pthread_setaffinity_np(loop->thread, sizeof(*cpus), cpus) : 0;
}

int mb_loop_add(struct mb_loop *loop, struct mb_watch *watch)
{
	struct epoll_event ev = {.events = watch->events, .data.ptr = watch};

	return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, watch->fd, &ev) ? -errno : 0;
}

int mb_loop_modify(struct mb_loop *loop, struct mb_watch *watch)
{
	struct epoll_event ev = {.events = watch->events, .data.ptr = watch};

	return epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &ev) ? -errno : 0;
}

void mb_loop_remove(struct mb_loop *loop, struct mb_watch *watch)
{
	epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	/* Events that epoll_wait has handed out already. */
	for (int i = 0; i < loop->n_batch; i++) {
		if (loop->batch[i].data.ptr == watch) {
			loop->batch[i].data.ptr = NULL;
			loop->batch[i].events = 0;
		}
	}
}

void mb_loop_call(struct mb_loop *loop, void (*fn)(void *arg), void *arg)
{
	struct call call = {.fn = fn, .arg = arg};

	pthread_mutex_lock(&loop->lock);
	if (loop->has_runner && pthread_equal(loop->runner, pthread_self())) {
		pthread_mutex_unlock(&loop->lock);
		fn(arg);
		return;
	}
	if (loop->running || loop->has_thread) {
		*loop->last = &call;
		loop->last = &call.next;
		wake(loop);
		while (!call.done && (loop->running || loop->has_thread) &&
			!(loop->has_thread && !loop->running && loop->stop))
			pthread_cond_wait(&loop->done, &loop->lock);
		if (call.done) {
			pthread_mutex_unlock(&loop->lock);
			return;
		}
		/* The loop ended first: take the call back and do it here. */
		for (struct call **at = &loop->first; *at; at = &(*at)->next) {
			if (*at == &call) {
				*at = call.next;
				break;
			}
		}
		loop->last = &loop->first;
		while (*loop->last)
			loop->last = &(*loop->last)->next;
	}
	/* Nobody runs the loop: the caller stands in for it, one at a time. */
	while (loop->has_runner)
		pthread_cond_wait(&loop->done, &loop->lock);
	loop->has_runner = true;
	loop->runner = pthread_self();
	pthread_mutex_unlock(&loop->lock);
	fn(arg);
	pthread_mutex_lock(&loop->lock);
	loop->has_runner = false;
	pthread_cond_broadcast(&loop->done);
	pthread_mutex_unlock(&loop->lock);
}
