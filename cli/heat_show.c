// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "heat.h"
#include <errno.h>
#include <mirrorball/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ONCE_MS		 10000
#define ONCE_INTERVAL_MS 250
#define ONCE_COVERED	 0.9

/* One line on standard error that the next one replaces; nothing where no terminal is. */
static void progress(const char *text)
{
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\r%s\033[K", text);
}

/* How a run of looks came to its end: an exit status, said on standard error. */
static int end_of(enum heat_event event, const struct heat_happening *what, bool has_something)
{
	progress("");
	switch (event) {
	case HEAT_ENDED:
		mb_log("%s", what->err.text);
		return has_something ? CLI_OK : CLI_FAILED;
	case HEAT_FAILED:
		mb_log("%s", what->err.text);
		return CLI_FAILED;
	case HEAT_SIGNAL:
		return what->signal == SIGINT && has_something ? CLI_OK
							       : CLI_SIGNAL_BASE + what->signal;
	default:
		return CLI_OK;
	}
}

static int open_feed(
	const struct heat_options *options, unsigned interval_ms, struct heat_feed **out)
{
	struct heat_feed_config config = {.who = options->who, .interval_ms = interval_ms};
	struct mb_error err;
	int rc = heat_feed_open(&config, out, &err);

	if (rc)
		mb_log("%s", err.text);
	return rc;
}

/* Nine digits are what a measurement has at most, and "0.93" stays as it is. */
static int print_json(const json_t *answer, size_t flags)
{
	char *text = json_dumps(answer, flags | JSON_REAL_PRECISION(9));

	if (!text) {
		mb_log("--json: out of memory");
		return CLI_FAILED;
	}
	puts(text);
	free(text);
	return cli_flush();
}

static int show_once(
	const struct heat_options *options, const json_t *answer, const struct heat *heat)
{
	struct heat_look look = {.home = true};
	int rc;

	if (options->json)
		return print_json(answer, JSON_INDENT(2));
	heat_look_of_stdout(&look);
	look.rows = 0;
	rc = heat_map_draw(heat, &look, stdout);
	if (rc) {
		mb_log("%s: %s", heat->name, strerror(-rc));
		return CLI_FAILED;
	}
	return cli_flush();
}

/* The newest answer, and what it means. */
struct newest {
	json_t *answer;
	struct heat heat;
};

static void forget(struct newest *newest)
{
	json_decref(newest->answer);
	newest->answer = NULL;
	heat_finish(&newest->heat);
}

/* -errno and err: the answer is nonsense, and the one before is forgotten as well. */
static int keep(struct newest *newest, json_t *answer, struct mb_error *err)
{
	int rc;

	forget(newest);
	rc = heat_read(answer, &newest->heat, err);
	if (rc)
		json_decref(answer);
	else
		newest->answer = answer;
	return rc;
}

int heat_once(const struct heat_options *options)
{
	unsigned limit_ms = options->limit_ms ? options->limit_ms : ONCE_MS;
	uint64_t until_ms = UINT64_MAX; /* until there is an answer */
	struct newest newest = {0};
	struct heat_happening what;
	struct heat_feed *feed;
	enum heat_event event;
	int status, shown = CLI_OK;

	if (open_feed(options, ONCE_INTERVAL_MS, &feed))
		return CLI_FAILED;
	do {
		char text[128];

		event = heat_feed_next(feed, until_ms, &what);
		if (event == HEAT_RESIZED)
			event = HEAT_ANSWER;
		else if (event == HEAT_ANSWER && keep(&newest, what.answer, &what.err))
			event = HEAT_FAILED;
		if (event != HEAT_ANSWER || !newest.answer)
			continue;
		if (until_ms == UINT64_MAX)
			until_ms = heat_now_ms() + limit_ms;
		snprintf(text, sizeof(text), "%s: %.0f %% looked at", newest.heat.name,
			newest.heat.tracker.covered * 100);
		progress(text);
	} while (event == HEAT_ANSWER &&
		 (!newest.answer || newest.heat.tracker.covered < ONCE_COVERED));
	status = end_of(event, &what, newest.answer);
	if (newest.answer && event != HEAT_FAILED)
		shown = show_once(options, newest.answer, &newest.heat);
	forget(&newest);
	heat_feed_close(feed);
	return shown ? shown : status;
}

int heat_json_lines(const struct heat_options *options)
{
	uint64_t until_ms = heat_now_ms() + options->limit_ms;
	struct newest newest = {0};
	struct heat_happening what;
	struct heat_feed *feed;
	enum heat_event event;
	bool any = false;
	int status, shown = CLI_OK;

	if (open_feed(options, options->interval_ms, &feed))
		return CLI_FAILED;
	do {
		event = heat_feed_next(feed, until_ms, &what);
		if (event == HEAT_ANSWER && keep(&newest, what.answer, &what.err))
			event = HEAT_FAILED;
		if (event == HEAT_ANSWER) {
			any = true;
			shown = print_json(newest.answer, JSON_COMPACT);
		}
	} while ((event == HEAT_ANSWER || event == HEAT_RESIZED) && !shown);
	status = end_of(event, &what, any);
	forget(&newest);
	heat_feed_close(feed);
	return shown ? shown : status;
}
