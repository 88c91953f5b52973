/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_HEAT_FEED_H
#define MIRRORBALL_CLI_HEAT_FEED_H

#include <jansson.h>
#include <mirrorball/error.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * A machine's answers to "heat", one an interval, and whatever else happens meanwhile, one thing
 * after the other. A thread of its own asks, so that keys and signals are heard while a machine
 * does not answer.
 */
struct heat_feed;

enum heat_event {
	HEAT_ANSWER,  /* answer: the caller's */
	HEAT_ENDED,   /* the machine has ended; err says so. No answer comes any more. */
	HEAT_FAILED,  /* err says why. No answer comes any more. */
	HEAT_KEY,     /* key */
	HEAT_RESIZED, /* SIGWINCH, or going on after a stop */
	HEAT_SIGNAL,  /* signal: SIGINT, SIGTERM, SIGHUP or SIGQUIT */
	HEAT_TIME,    /* it is as late as was asked for */
};

struct heat_happening {
	json_t *answer;
	char key;
	int signal;
	struct mb_error err;
};

struct heat_feed_config {
	const char *who; /* name or PID */
	unsigned interval_ms;
	bool keys; /* standard input is a terminal to be read */
	/* Stops and goes on with the terminal as it was in between (SIGTSTP); NULL: as always. */
	void (*stop)(void *ctx);
	void *ctx;
};

/*
 * Connects; from then on HEAT_SIGNAL's signals are held back until the process ends. -errno and err
 * as cli_client_open.
 */
int heat_feed_open(
	const struct heat_feed_config *config, struct heat_feed **out, struct mb_error *err);
/* The next thing that happens, until_ms at the latest (heat_now_ms; UINT64_MAX: no limit). */
enum heat_event heat_feed_next(
	struct heat_feed *feed, uint64_t until_ms, struct heat_happening *what);
/* Takes NULL. A machine that is not answering is left waiting; the process ends soon. */
void heat_feed_close(struct heat_feed *feed);

uint64_t heat_now_ms(void); /* CLOCK_MONOTONIC */

#endif
