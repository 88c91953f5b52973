// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "heat.h"
#include "target.h"
#include <errno.h>
#include <mirrorball/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Drawn in memory first, which a picture's bounded size allows: so the first write that fails says
 * why.
 */
static int draw(struct cli_target *target, const struct heat_record *record)
{
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);
	int rc = out ? heat_svg_draw(record, out) : -ENOMEM;

	if (out && fclose(out))
		rc = -ENOMEM;
	rc = rc ? rc : cli_target_write(target, text, len);
	free(text);
	return rc;
}

static void say_progress(const struct heat_record *record, uint64_t ms, unsigned limit_ms)
{
	if (isatty(STDERR_FILENO))
		fprintf(stderr,
			"\r%s: %.1f of %g s, %u looks, %.0f %% covered; Ctrl-C ends it here\033[K",
			record->last.name, (double)ms / 1e3, limit_ms / 1e3, record->n_columns,
			record->last.tracker.covered * 100);
}

static int take(struct heat_record *record, json_t *answer, uint64_t at_ms, struct mb_error *err)
{
	struct heat heat;
	int rc = heat_read(answer, &heat, err);

	json_decref(answer);
	return rc ? rc : heat_record_add(record, &heat, at_ms, err);
}

/* An exit status; what was recorded until then is in record. */
static int record_heat(
	struct heat_feed *feed, unsigned limit_ms, struct heat_record *record, struct mb_error *err)
{
	uint64_t begin_ms = 0, until_ms = UINT64_MAX; /* the first answer is time 0 */
	int rc = 0;

	for (;;) {
		struct heat_happening what;
		enum heat_event event = heat_feed_next(feed, until_ms, &what);
		uint64_t now = heat_now_ms();

		if (event == HEAT_ANSWER) {
			if (!record->n_columns) {
				begin_ms = now;
				until_ms = now + limit_ms;
			}
			rc = take(record, what.answer, now - begin_ms, err);
			if (rc && rc != -ENOSPC)
				return CLI_FAILED;
			say_progress(record, now - begin_ms, limit_ms);
		}
		if ((event == HEAT_ANSWER && !rc) || event == HEAT_RESIZED)
			continue;
		if (record->n_columns &&
			now - begin_ms > record->column[record->n_columns - 1].at_ms)
			record->end_ms = now - begin_ms;
		*err = what.err;
		if (event == HEAT_SIGNAL)
			return what.signal == SIGINT && record->n_columns
				       ? CLI_OK
				       : CLI_SIGNAL_BASE + what.signal;
		if (event == HEAT_ENDED && record->n_columns) {
			mb_log("%s; the picture ends there", err->text);
			return CLI_OK;
		}
		return event == HEAT_ENDED || event == HEAT_FAILED ? CLI_FAILED : CLI_OK;
	}
}

int heat_record_svg(const struct heat_options *options)
{
	struct heat_feed_config config = {.who = options->who, .interval_ms = options->interval_ms};
	struct heat_record *record = calloc(1, sizeof(*record));
	struct heat_feed *feed = NULL;
	struct cli_target target;
	struct mb_error err;
	int rc, close_rc, status = CLI_FAILED;

	if (!record) {
		mb_log("--svg: out of memory");
		return CLI_FAILED;
	}
	rc = heat_feed_open(&config, &feed, &err);
	/* Before the recording: who finds out after it has lost it. */
	if (!rc)
		rc = cli_target_open(&target, options->svg_path, &err);
	if (!rc) {
		status = record_heat(feed, options->limit_ms, record, &err);
		if (isatty(STDERR_FILENO))
			fputs("\r\033[K", stderr);
		if (status == CLI_FAILED)
			mb_log("%s%s", err.text,
				record->n_columns ? "; the picture ends there" : "");
		if (record->n_columns)
			rc = draw(&target, record);
		close_rc = cli_target_close(&target, record->n_columns && !rc);
		rc = rc ? rc : close_rc;
		if (rc)
			mb_error_set(&err, -rc, "%s: %s; the picture was not written", target.name,
				strerror(-rc));
	}
	if (rc) {
		mb_log("%s", err.text);
		status = CLI_FAILED;
	}
	heat_feed_close(feed);
	heat_record_finish(record);
	free(record);
	return status;
}
