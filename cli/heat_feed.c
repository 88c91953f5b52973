// SPDX-License-Identifier: Apache-2.0
#include "heat_feed.h"
#include "client.h"
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/thread.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define STACK_BYTES (8u << 20) /* a parser of JSON recurses */

struct heat_feed {
	struct heat_feed_config config;
	struct cli_client *client; /* the thread's, from the start to its end */
	pthread_t thread;
	int signal_fd;
	int ask_fd, done_fd; /* eventfds: to the thread, and back */
	/*
	 * Of the side whose turn it is: the thread's after a write to ask_fd, the main thread's
	 * again after a read of done_fd.
	 */
	json_t *answer;
	struct mb_error err;
	int rc;
	bool stop;
	/* The main thread's. */
	bool asking, over;
	uint64_t next_ms; /* when to ask */
};

uint64_t heat_now_ms(void)
{
	return mb_now_ns() / 1000000;
}

static void hand_over(int fd)
{
	uint64_t one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void take_over(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

static void *ask(void *arg)
{
	struct heat_feed *feed = arg;

	for (;;) {
		take_over(feed->ask_fd);
		if (feed->stop)
			return NULL;
		feed->answer = NULL;
		feed->rc = cli_client_ask(feed->client, "heat", &feed->answer, &feed->err);
		hand_over(feed->done_fd);
	}
}

static void release(struct heat_feed *feed)
{
	cli_client_close(feed->client);
	if (feed->signal_fd >= 0)
		close(feed->signal_fd);
	if (feed->ask_fd >= 0)
		close(feed->ask_fd);
	if (feed->done_fd >= 0)
		close(feed->done_fd);
	free(feed);
}

int heat_feed_open(
	const struct heat_feed_config *config, struct heat_feed **out, struct mb_error *err)
{
	struct heat_feed *feed = calloc(1, sizeof(*feed));
	sigset_t signals;
	int rc;

	if (!feed)
		return mb_error_set(err, ENOMEM, "out of memory");
	feed->config = *config;
	feed->signal_fd = feed->ask_fd = feed->done_fd = -1;
	/* Before anything is held back: whoever waits for a connection can still end it. */
	rc = cli_client_open(config->who, &feed->client, err);
	if (rc) {
		feed->client = NULL;
		release(feed);
		return rc;
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	sigaddset(&signals, SIGQUIT);
	sigaddset(&signals, SIGWINCH);
	if (config->stop)
		sigaddset(&signals, SIGTSTP);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	feed->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
	feed->ask_fd = eventfd(0, EFD_CLOEXEC);
	feed->done_fd = eventfd(0, EFD_CLOEXEC);
	rc = feed->signal_fd < 0 || feed->ask_fd < 0 || feed->done_fd < 0 ? -errno : 0;
	if (!rc)
		rc = mb_thread_start(&feed->thread, STACK_BYTES, NULL, ask, feed);
	if (rc) {
		release(feed);
		return mb_error_set(err, -rc, "a thread to ask the machine: %s", strerror(-rc));
	}
	feed->next_ms = heat_now_ms();
	*out = feed;
	return 0;
}

void heat_feed_close(struct heat_feed *feed)
{
	if (!feed)
		return;
	if (feed->asking) {
		pthread_detach(feed->thread);
		return;
	}
	feed->stop = true;
	hand_over(feed->ask_fd);
	pthread_join(feed->thread, NULL);
	release(feed);
}

static enum heat_event take_answer(struct heat_feed *feed, struct heat_happening *what)
{
	take_over(feed->done_fd);
	feed->asking = false;
	if (!feed->rc) {
		what->answer = feed->answer;
		return HEAT_ANSWER;
	}
	feed->over = true;
	what->err = feed->err;
	return feed->rc == -EPIPE ? HEAT_ENDED : HEAT_FAILED;
}

/* True: something that the caller wants to know. */
static bool take_signal(struct heat_feed *feed, struct heat_happening *what, enum heat_event *event)
{
	struct signalfd_siginfo info;

	if (read(feed->signal_fd, &info, sizeof(info)) != sizeof(info))
		return false;
	if (info.ssi_signo == SIGTSTP)
		feed->config.stop(feed->config.ctx);
	*event = info.ssi_signo == SIGTSTP || info.ssi_signo == SIGWINCH ? HEAT_RESIZED
									 : HEAT_SIGNAL;
	what->signal = (int)info.ssi_signo;
	return true;
}

static bool take_key(struct heat_feed *feed, struct heat_happening *what)
{
	ssize_t n = read(STDIN_FILENO, &what->key, 1);

	/* The terminal has gone, or is somebody else's: signals tell what to do. */
	if (!n || (n < 0 && errno != EINTR && errno != EAGAIN))
		feed->config.keys = false;
	return n == 1;
}

static int wait_ms(const struct heat_feed *feed, uint64_t now_ms, uint64_t until_ms)
{
	if (!feed->asking && !feed->over && feed->next_ms < until_ms)
		until_ms = feed->next_ms;
	if (until_ms <= now_ms)
		return 0;
	return until_ms - now_ms > 60000 ? 60000 : (int)(until_ms - now_ms);
}

enum heat_event heat_feed_next(
	struct heat_feed *feed, uint64_t until_ms, struct heat_happening *what)
{
	enum heat_event event;

	for (;;) {
		struct pollfd fds[] = {{.fd = feed->signal_fd, .events = POLLIN},
			{.fd = feed->done_fd, .events = POLLIN},
			{.fd = feed->config.keys ? STDIN_FILENO : -1, .events = POLLIN}};
		uint64_t now = heat_now_ms();

		if (!feed->asking && !feed->over && now >= feed->next_ms) {
			/* At the same times, also if an answer was late. */
			feed->next_ms += feed->config.interval_ms;
			if (feed->next_ms < now)
				feed->next_ms = now;
			feed->asking = true;
			hand_over(feed->ask_fd);
		}
		poll(fds, 3, wait_ms(feed, now, until_ms));
		if (fds[0].revents && take_signal(feed, what, &event))
			return event;
		if (fds[2].revents && take_key(feed, what))
			return HEAT_KEY;
		if (fds[1].revents & POLLIN)
			return take_answer(feed, what);
		if (heat_now_ms() >= until_ms)
			return HEAT_TIME;
	}
}
