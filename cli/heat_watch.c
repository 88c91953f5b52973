// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "guard.h"
#include "heat.h"
#include <errno.h>
#include <mirrorball/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LATE_MS 2500 /* without an answer: say so */

struct watch {
	struct heat_feed *feed;
	struct heat heat;
	struct heat_look look;
	uint64_t answered_ms;
	bool drawn; /* heat is something */
	struct mb_error err;
	char note[64];
};

static void stop(void *ctx)
{
	sigset_t only, before;

	cli_guard_restore();
	sigemptyset(&only);
	sigaddset(&only, SIGTSTP);
	raise(SIGTSTP);
	sigprocmask(SIG_UNBLOCK, &only, &before); /* here we stop */
	sigprocmask(SIG_SETMASK, &before, NULL);
	cli_guard_take_screen(STDOUT_FILENO);
}

/* A whole screen in one write, so that nobody sees half of one. */
static int draw(struct watch *watch)
{
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);
	int rc = 0;

	if (!out)
		return mb_error_set(&watch->err, ENOMEM, "out of memory");
	fputs("\033[H", out);
	if (watch->drawn)
		rc = heat_map_draw(&watch->heat, &watch->look, out);
	else
		fprintf(out, "%s\033[K", watch->note);
	fputs("\033[J", out);
	if (fclose(out))
		rc = -ENOMEM;
	if (!rc) {
		fwrite(text, 1, len, stdout);
		if (fflush(stdout))
			rc = -errno;
	}
	free(text);
	return rc ? mb_error_set(&watch->err, -rc, "standard output: %s", strerror(-rc)) : 0;
}

static void take_window(struct watch *watch)
{
	heat_look_of_stdout(&watch->look);
	/* The last column of the last line would scroll some terminals. */
	if (watch->look.columns > 1)
		watch->look.columns--;
}

static int take_answer(struct watch *watch, json_t *answer)
{
	struct heat heat;
	int rc = heat_read(answer, &heat, &watch->err);

	json_decref(answer);
	if (rc)
		return rc;
	heat_finish(&watch->heat);
	watch->heat = heat;
	watch->drawn = true;
	watch->answered_ms = heat_now_ms();
	*watch->note = '\0';
	return draw(watch);
}

/* True: the key ends the map. */
static bool take_key(struct watch *watch, char key)
{
	switch (key) {
	case 'q':
	case 'Q':
		return true;
	case 'm':
		watch->look.what = watch->look.what == HEAT_WRITE ? HEAT_ALL : watch->look.what + 1;
		break;
	case 'n':
		watch->look.home = !watch->look.home;
		break;
	}
	return false;
}

/* Until it ends: -errno, or an exit status; ended: the machine did. */
static int loop(struct watch *watch, uint64_t until_ms, bool *ended)
{
	for (;;) {
		uint64_t late_ms = watch->answered_ms + LATE_MS;
		struct heat_happening what;
		int rc = 0;

		switch (heat_feed_next(
			watch->feed, late_ms < until_ms ? late_ms : until_ms, &what)) {
		case HEAT_ANSWER:
			rc = take_answer(watch, what.answer);
			break;
		case HEAT_ENDED:
			*ended = true;
			/* fall through */
		case HEAT_FAILED:
			watch->err = what.err;
			return *ended && watch->drawn ? CLI_OK : -EPIPE;
		case HEAT_KEY:
			if (take_key(watch, what.key))
				return CLI_OK;
			rc = draw(watch);
			break;
		case HEAT_RESIZED:
			take_window(watch);
			rc = draw(watch);
			break;
		case HEAT_SIGNAL:
			return what.signal == SIGINT ? CLI_OK : CLI_SIGNAL_BASE + what.signal;
		case HEAT_TIME:
			if (heat_now_ms() >= until_ms)
				return CLI_OK;
			snprintf(watch->note, sizeof(watch->note), "no answer for some time");
			watch->answered_ms = heat_now_ms();
			rc = draw(watch);
		}
		if (rc)
			return rc;
	}
}

int heat_watch(const struct heat_options *options)
{
	struct watch watch = {.look = {.home = true}};
	struct heat_feed_config config = {.who = options->who,
		.interval_ms = options->interval_ms,
		.keys = isatty(STDIN_FILENO),
		.stop = stop,
		.ctx = &watch};
	uint64_t now = heat_now_ms();
	bool ended = false;
	int rc = heat_feed_open(&config, &watch.feed, &watch.err);

	if (rc) {
		mb_log("%s", watch.err.text);
		return CLI_FAILED;
	}
	watch.look.note = watch.note;
	watch.answered_ms = now;
	snprintf(watch.note, sizeof(watch.note), "waiting for the first answer");
	take_window(&watch);
	cli_guard_take_screen(STDOUT_FILENO);
	rc = draw(&watch);
	if (!rc)
		rc = loop(&watch, options->limit_ms ? now + options->limit_ms : UINT64_MAX, &ended);
	cli_guard_restore();
	if (rc < 0 || ended)
		mb_log("%s", watch.err.text);
	heat_feed_close(watch.feed);
	heat_finish(&watch.heat);
	return rc < 0 ? CLI_FAILED : rc;
}
