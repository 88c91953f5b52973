// SPDX-License-Identifier: Apache-2.0
#include "commons_server_impl.h"
#include <errno.h>
#include <mirrorball/thread.h>
#include <stdlib.h>
#include <unistd.h>

/* What may wait for a file system, off the loop's thread. */

#define STACK_BYTES (128u << 10)

struct lane *mb_commons_lane_create(struct mb_commons_server *server)
{
	struct lane *lane = calloc(1, sizeof(*lane));

	if (!lane)
		return NULL;
	lane->server = server;
	lane->n_users = 1;
	STAILQ_INIT(&lane->queue);
	return lane;
}

void mb_commons_lane_put(struct lane *lane)
{
	/* Its thread does not look at it any more when the last of its jobs was handed over. */
	if (lane && !--lane->n_users)
		free(lane);
}

struct job *mb_commons_job_create(struct lane *lane, struct client *client)
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return NULL;
	job->lane = lane;
	lane->n_users++;
	job->fd = job->opened_fd = -1;
	job->client = client;
	if (client)
		LIST_INSERT_HEAD(&client->jobs, job, of_client);
	return job;
}

void mb_commons_job_disown(struct job *job)
{
	LIST_REMOVE(job, of_client);
	job->client = NULL;
	__atomic_store_n(&job->cancelled, true, __ATOMIC_RELAXED);
}

/* Caller holds the lock. */
static void hand_over(struct job *job)
{
	struct mb_commons_server *server = job->lane->server;
	uint64_t one = 1;
	ssize_t n;

	STAILQ_INSERT_TAIL(&server->done, job, next);
	n = write(server->done_watch.fd, &one, sizeof(one));
	(void)n;
}

static void *lane_main(void *arg)
{
	struct lane *lane = arg;
	struct mb_commons_server *server = lane->server;
	struct job *job;

	pthread_mutex_lock(&server->lock);
	while ((job = STAILQ_FIRST(&lane->queue))) {
		STAILQ_REMOVE_HEAD(&lane->queue, next);
		pthread_mutex_unlock(&server->lock);
		job->run(job);
		pthread_mutex_lock(&server->lock);
		hand_over(job);
	}
	/* The lock is held since the last job was handed over: the lane is still there. */
	lane->running = false;
	if (!--server->n_threads)
		pthread_cond_broadcast(&server->idle);
	pthread_mutex_unlock(&server->lock);
	return NULL;
}

void mb_commons_job_enqueue(struct job *job)
{
	struct lane *lane = job->lane;
	struct mb_commons_server *server = lane->server;
	bool start;
	pthread_t thread;
	int rc;

	pthread_mutex_lock(&server->lock);
	STAILQ_INSERT_TAIL(&lane->queue, job, next);
	start = !lane->running;
	if (start) {
		lane->running = true;
		server->n_threads++;
	}
	pthread_mutex_unlock(&server->lock);
	if (!start)
		return;
	rc = mb_thread_start(&thread, STACK_BYTES, NULL, lane_main, lane);
	if (!rc) {
		pthread_detach(thread);
		return;
	}
	/* No thread to be had. What has to be done to the end (closing) is done here. */
	pthread_mutex_lock(&server->lock);
	while ((job = STAILQ_FIRST(&lane->queue))) {
		STAILQ_REMOVE_HEAD(&lane->queue, next);
		job->status = rc;
		if (job->fd >= 0)
			close(job->fd);
		hand_over(job);
	}
	lane->running = false;
	server->n_threads--;
	pthread_mutex_unlock(&server->lock);
}

void mb_commons_jobs_reap(struct mb_commons_server *server)
{
	struct job *job;

	for (;;) {
		struct lane *lane;

		pthread_mutex_lock(&server->lock);
		job = STAILQ_FIRST(&server->done);
		if (job)
			STAILQ_REMOVE_HEAD(&server->done, next);
		pthread_mutex_unlock(&server->lock);
		if (!job)
			return;
		lane = job->lane;
		job->finish(job);
		if (job->client)
			LIST_REMOVE(job, of_client);
		free(job);
		mb_commons_lane_put(lane);
	}
}

static void close_run(struct job *job)
{
	close(job->fd);
	job->fd = -1;
}

static void close_finish(struct job *job)
{
}

void mb_commons_close_on(struct lane *lane, int fd)
{
	struct job *job;

	if (fd < 0)
		return;
	job = mb_commons_job_create(lane, NULL);
	if (!job) {
		close(fd);
		return;
	}
	job->fd = fd;
	job->run = close_run;
	job->finish = close_finish;
	mb_commons_job_enqueue(job);
}
