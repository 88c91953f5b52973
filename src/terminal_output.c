// SPDX-License-Identifier: Apache-2.0
#include "terminal_output.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/log.h>
#include <mirrorball/thread.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RING_BYTES    (66u << 10)
#define RESERVE_BYTES (2u << 10) /* of it, for the monitor's own lines */
#define CHUNK_BYTES   (16u << 10)
#define ROOM_BYTES    (32u << 10) /* so much must be free before a refused writer is told */
#define STACK_BYTES   (256u << 10)

/*
 * A serial port brings one byte at a time. After the first the thread waits a little for more: one
 * write and one wake-up of this thread for many bytes.
 */
#define BATCH_BYTES    4096u
#define BATCH_WAIT_NS  1000000l
#define FULL_POLL_MS   100
#define DESTROY_WAIT_S 1

struct mb_output {
	int fd; /* our own duplicate */
	void (*room)(void *ctx);
	void *ctx;
	bool has_thread;
	pthread_t thread;

	/*
	 * Protects what follows; the innermost lock of all. Not held while writing or calling room.
	 */
	pthread_mutex_t lock;
	pthread_cond_t wake;	/* for the thread: n >= wake_at, or stop */
	pthread_cond_t changed; /* by the thread: ended or in_room */
	unsigned wake_at;	/* 0: the thread is not waiting */
	bool refused;		/* somebody waits for room */
	bool in_room;
	bool line_start; /* the last byte taken was a newline */
	bool broken;	 /* writing failed for good */
	bool stop;	 /* write what is left and end */
	bool ended;
	bool orphan; /* nobody waits for the thread: it frees this */
	unsigned head, n;
	char ring[RING_BYTES];
};

static void free_output(struct mb_output *output)
{
	if (output->fd >= 0)
		close(output->fd);
	pthread_cond_destroy(&output->changed);
	pthread_cond_destroy(&output->wake);
	pthread_mutex_destroy(&output->lock);
	free(output);
}

/* Caller holds the lock. */
static void push(struct mb_output *output, const char *bytes, unsigned n)
{
	unsigned tail = (output->head + output->n) % RING_BYTES;
	unsigned first = n < RING_BYTES - tail ? n : RING_BYTES - tail;

	if (!n)
		return;
	memcpy(output->ring + tail, bytes, first);
	memcpy(output->ring, bytes + first, n - first);
	output->n += n;
	output->line_start = bytes[n - 1] == '\n';
	if (output->wake_at && output->n >= output->wake_at)
		pthread_cond_signal(&output->wake);
}

size_t mb_output_write(struct mb_output *output, const void *buf, size_t n)
{
	unsigned room, taken;

	pthread_mutex_lock(&output->lock);
	if (output->broken) {
		pthread_mutex_unlock(&output->lock);
		return n;
	}
	/* The monitor's lines may have used more than the reserve. */
	room = output->n < RING_BYTES - RESERVE_BYTES ? RING_BYTES - RESERVE_BYTES - output->n : 0;
	taken = n < room ? (unsigned)n : room;
	push(output, buf, taken);
	if (taken < n)
		output->refused = true;
	pthread_mutex_unlock(&output->lock);
	return taken;
}

int mb_output_say(struct mb_output *output, const char *text)
{
	size_t len = strlen(text);
	int rc = 0;

	pthread_mutex_lock(&output->lock);
	if (output->broken) {
		rc = -EPIPE;
	} else if (len + 2 > RING_BYTES - output->n) {
		rc = -ENOSPC;
	} else {
		if (!output->line_start)
			push(output, "\n", 1);
		push(output, text, (unsigned)len);
		push(output, "\n", 1);
	}
	pthread_mutex_unlock(&output->lock);
	return rc;
}

/*
 * Waits until the ring has n bytes, the machine ends or, with a limit, the limit is over. Caller
 * holds the lock.
 */
static void wait_for(struct mb_output *output, unsigned n, long limit_ns)
{
	struct timespec deadline;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_nsec += limit_ns;
	if (deadline.tv_nsec >= 1000000000l) {
		deadline.tv_nsec -= 1000000000l;
		deadline.tv_sec++;
	}
	output->wake_at = n;
	while (output->n < n && !output->stop && rc != ETIMEDOUT) {
		if (limit_ns)
			rc = pthread_cond_timedwait(&output->wake, &output->lock, &deadline);
		else
			pthread_cond_wait(&output->wake, &output->lock);
	}
	output->wake_at = 0;
}

/* One write; returns bytes written, 0 if there is no room for now, or -errno. */
static ssize_t write_some(struct mb_output *output, const char *bytes, size_t n)
{
	ssize_t written = write(output->fd, bytes, n);

	if (written >= 0)
		return written;
	if (errno == EAGAIN) { /* somebody made the descriptor non-blocking: it is theirs too */
		struct pollfd pfd = {.fd = output->fd, .events = POLLOUT};

		poll(&pfd, 1, FULL_POLL_MS);
		return 0;
	}
	return errno == EINTR ? 0 : -errno;
}

/* Writes one run of bytes. Caller holds the lock, which is released meanwhile. */
static void write_chunk(struct mb_output *output)
{
	const char *from = output->ring + output->head;
	unsigned span = RING_BYTES - output->head;
	ssize_t written;

	if (span > output->n)
		span = output->n;
	if (span > CHUNK_BYTES)
		span = CHUNK_BYTES;
	pthread_mutex_unlock(&output->lock);
	written = write_some(output, from, span);
	if (written < 0)
		mb_log("console output: %s; the guest runs on, its output is dropped",
			strerror((int)-written));
	pthread_mutex_lock(&output->lock);
	if (written < 0) {
		output->broken = true;
		output->head = output->n = 0;
	} else {
		output->head = (output->head + (unsigned)written) % RING_BYTES;
		output->n -= (unsigned)written;
	}
}

/* Tells a refused writer. Caller holds the lock, which is released meanwhile. */
static void tell_room(struct mb_output *output)
{
	if (!output->refused || output->stop)
		return;
	if (!output->broken && RING_BYTES - RESERVE_BYTES - output->n < ROOM_BYTES)
		return;
	output->refused = false;
	output->in_room = true;
	pthread_mutex_unlock(&output->lock);
	output->room(output->ctx);
	pthread_mutex_lock(&output->lock);
	output->in_room = false;
	pthread_cond_broadcast(&output->changed);
}

static void *thread_main(void *arg)
{
	struct mb_output *output = arg;
	bool orphan;

	pthread_mutex_lock(&output->lock);
	for (;;) {
		wait_for(output, 1, 0);
		if (!output->n || output->orphan)
			break;
		if (output->n < BATCH_BYTES)
			wait_for(output, BATCH_BYTES, BATCH_WAIT_NS);
		write_chunk(output);
		if (output->orphan)
			break;
		tell_room(output);
	}
	output->ended = true;
	orphan = output->orphan;
	pthread_cond_broadcast(&output->changed);
	pthread_mutex_unlock(&output->lock);
	if (orphan)
		free_output(output);
	return NULL;
}

/* It blocks SIGTTOU, too: so it may write to a terminal from the background. */
static int start_thread(struct mb_output *output, struct mb_error *err)
{
	int rc = mb_thread_start(&output->thread, STACK_BYTES, NULL, thread_main, output);

	if (rc)
		return mb_error_set(err, -rc,
			"console output: start a thread: %s; too many processes? (ulimit -u)",
			strerror(-rc));
	pthread_setname_np(output->thread, "console-out");
	output->has_thread = true;
	return 0;
}

int mb_output_create(
	int fd, void (*room)(void *ctx), void *ctx, struct mb_output **out, struct mb_error *err)
{
	struct mb_output *output = calloc(1, sizeof(*output));
	int rc = 0;

	if (!output)
		return mb_error_set(err, ENOMEM, "console output: out of memory");
	output->room = room;
	output->ctx = ctx;
	output->line_start = true;
	pthread_mutex_init(&output->lock, NULL);
	mb_cond_init(&output->wake);
	mb_cond_init(&output->changed);
	output->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (output->fd < 0 && errno != EBADF)
		rc = mb_error_set(err, errno, "console output: %s", strerror(errno));
	else if (output->fd < 0)
		output->broken = true;
	else
		rc = start_thread(output, err);
	if (rc) {
		free_output(output);
		return rc;
	}
	*out = output;
	return 0;
}

/* Whether the monitor's lines go to the same place as the guest's output. */
static bool shared_with_stderr(const struct mb_output *output)
{
	struct stat out, err;

	return !fstat(output->fd, &out) && !fstat(STDERR_FILENO, &err) &&
	       out.st_dev == err.st_dev && out.st_ino == err.st_ino;
}

void mb_output_destroy(struct mb_output *output)
{
	struct timespec deadline;
	bool shared;
	int rc = 0;

	if (!output)
		return;
	if (!output->has_thread) {
		free_output(output);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += DESTROY_WAIT_S;
	shared = shared_with_stderr(output);
	pthread_mutex_lock(&output->lock);
	if (shared && !output->line_start && !output->broken && output->n < RING_BYTES)
		push(output, "\n", 1);
	output->stop = true;
	pthread_cond_signal(&output->wake);
	while (output->in_room)
		pthread_cond_wait(&output->changed, &output->lock);
	while (!output->ended && rc != ETIMEDOUT)
		rc = pthread_cond_timedwait(&output->changed, &output->lock, &deadline);
	if (!output->ended) {
		output->orphan = true;
		pthread_detach(output->thread);
		pthread_mutex_unlock(&output->lock);
		return;
	}
	pthread_mutex_unlock(&output->lock);
	pthread_join(output->thread, NULL);
	free_output(output);
}
