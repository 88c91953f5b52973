// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "parse.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <mirrorball/image.h>
#include <mirrorball/json.h>
#include <mirrorball/log.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_WORDS 3

static int image_main(const struct cli_command *command, int argc, char **argv);

enum { OPT_BASE, OPT_SIZE, OPT_REPAIR, OPT_JSON, OPT_HELP, OPT_VERSION, N_OPTIONS };

static const struct cli_option options[] = {
	[OPT_BASE] = {"base", "DISK", "create: the overlay's base, a raw image or block device"},
	[OPT_SIZE] = {"size", "SIZE",
		"create: of the new disk, with M, G or T; default with --base: as large as that"},
	[OPT_REPAIR] = {"repair", NULL, "check: mend reference counts that are wrong"},
	[OPT_JSON] = {"json", NULL, "info, check: print JSON for programs"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

const struct cli_command cli_image = {
	.name = "image",
	.summary = "Create, inspect, check and commit disk images and overlays",
	.usage = "create|info|check|commit|rebase [OPTIONS] FILE [BASE]",
	.about = "create FILE: a new overlay of --base, in which a machine keeps what it changes "
		 "(mirrorball run --disk BASE,overlay=FILE), or without --base an empty raw disk "
		 "of --size. info FILE: what it is. check FILE: whether an overlay is in order. "
		 "commit FILE: write what an overlay holds into its base, and empty it. rebase "
		 "FILE BASE: BASE, as it is now, is the overlay's base; nothing is compared.",
	.options = options,
	.epilogue = "Exit status: 0 done, and in order; 1 it failed, or is not in order; 2 wrong "
		    "command line.\nMore: man mirrorball-image.",
	.main = image_main,
};

struct asked {
	bool seen[N_OPTIONS];
	const char *base;
	uint64_t bytes;
	const char *word[MAX_WORDS];
	unsigned n_words;
};

static int set_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct asked *asked = ctx;

	if (asked->seen[index])
		return mb_error_set(err, EINVAL, "is given twice");
	asked->seen[index] = true;
	if (index == OPT_SIZE)
		return cli_parse_size(value, &asked->bytes, err);
	if (index == OPT_BASE) {
		if (!*value)
			return mb_error_set(err, EINVAL, "the file has no name");
		asked->base = value;
	}
	return 0;
}

/* ---- verbs ---- */

static int failed(const struct mb_error *err)
{
	mb_log("%s", err->text);
	return CLI_FAILED;
}

static int create_raw(const char *path, uint64_t bytes)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	struct mb_error err;
	int rc = 0;

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		rc = mb_error_set(
			&err, errno, "disk %s: cannot be made: %s", path, strerror(errno));
	if (fd >= 0) {
		close(fd);
		if (rc)
			unlink(path);
	}
	return rc ? failed(&err) : CLI_OK;
}

static int create(const struct asked *asked)
{
	struct mb_error err;

	if (!asked->base)
		return create_raw(asked->word[1], asked->bytes);
	return mb_image_create(asked->word[1], asked->base, asked->bytes, &err) ? failed(&err)
										: CLI_OK;
}

static const char *const state_words[] = {
	[MB_IMAGE_NO_BASE] = "none",
	[MB_IMAGE_BASE_UNCHANGED] = "unchanged",
	[MB_IMAGE_BASE_CHANGED] = "changed",
	[MB_IMAGE_BASE_UNKNOWN] = "unknown",
	[MB_IMAGE_BASE_MISSING] = "missing",
	[MB_IMAGE_COMMITTING] = "committing",
};

static const char *const state_texts[] = {
	[MB_IMAGE_NO_BASE] = "",
	[MB_IMAGE_BASE_UNCHANGED] = ", as it was when this was made",
	[MB_IMAGE_BASE_CHANGED] = ", WAS CHANGED since this was made",
	[MB_IMAGE_BASE_UNKNOWN] = ", and it is not known whether that was changed",
	[MB_IMAGE_BASE_MISSING] = ", WHICH IS MISSING",
	[MB_IMAGE_COMMITTING] = ", INTO WHICH A COMMIT WAS INTERRUPTED: commit again",
};

static void print_row(const char *name, const char *text)
{
	printf("%-10s%s\n", name, text);
}

static void print_path(const char *name, const char *path, const char *after)
{
	char text[MB_IMAGE_NAME_MAX];

	snprintf(text, sizeof(text), "%s", path);
	mb_error_make_printable(text);
	printf("%-10s%s%s\n", name, text, after);
}

static void print_size(const char *name, uint64_t bytes)
{
	char text[32];

	cli_format_size(bytes, text, sizeof(text));
	printf("%-10s%s (%" PRIu64 " bytes)\n", name, text, bytes);
}

static json_t *string_or_null(const char *text)
{
	json_t *value = *text ? json_string(text) : json_null();

	return value ? value : json_null();
}

/* Drops root; rc: whether it is all there. */
static int print_json(json_t *root, int rc)
{
	if (!rc)
		rc = cli_print_json(root);
	json_decref(root);
	if (!rc)
		return cli_flush();
	mb_log("image: out of memory");
	return CLI_FAILED;
}

static int info_json(const char *path, const struct mb_image_info *info)
{
	json_t *root = json_object();
	int rc = 0;

	mb_json_put(root, "format", json_integer(1), &rc);
	mb_json_put(root, "path", string_or_null(path), &rc);
	mb_json_put(root, "kind", json_string(info->is_overlay ? "overlay" : "raw"), &rc);
	mb_json_put(root, "size_bytes", json_integer((json_int_t)info->bytes), &rc);
	mb_json_put(root, "taken_bytes", json_integer((json_int_t)info->taken_bytes), &rc);
	mb_json_put(root, "changed_bytes", json_integer((json_int_t)info->changed_bytes), &rc);
	mb_json_put(root, "cluster_bytes", json_integer(info->cluster_bytes), &rc);
	mb_json_put(root, "dirty", json_boolean(info->dirty), &rc);
	mb_json_put(root, "base", string_or_null(info->base), &rc);
	mb_json_put(root, "base_state", json_string(state_words[info->base_state]), &rc);
	return print_json(root, rc);
}

static int info(const struct asked *asked)
{
	struct mb_image_info *info = malloc(sizeof(*info));
	const char *path = asked->word[1];
	struct mb_error err;
	int rc;

	if (!info)
		return CLI_FAILED;
	rc = mb_image_read(path, info, &err);
	if (rc) {
		rc = failed(&err);
	} else if (asked->seen[OPT_JSON]) {
		rc = info_json(path, info);
	} else {
		print_path("file", path, "");
		print_row("kind", info->is_overlay ? "overlay (qcow2)" : "raw");
		print_size("disk", info->bytes);
		print_size("takes", info->taken_bytes);
		if (info->is_overlay) {
			print_size("changed", info->changed_bytes);
			print_path("base", *info->base ? info->base : "none",
				state_texts[info->base_state]);
			if (info->dirty)
				print_row("state", "was not closed; put in order at its next use");
		}
		rc = cli_flush();
	}
	free(info);
	return rc;
}

static int check(const struct asked *asked)
{
	bool repair = asked->seen[OPT_REPAIR], wrong;
	struct mb_image_check found;
	struct mb_error err;
	int rc = mb_image_check(asked->word[1], repair, &found, &err);

	if (rc)
		return failed(&err);
	/* What was not closed is put in order by itself. */
	wrong = !found.dirty && (found.n_leaked || found.n_missing);
	if (asked->seen[OPT_JSON]) {
		json_t *root = json_object();

		rc = 0;
		mb_json_put(root, "format", json_integer(1), &rc);
		mb_json_put(root, "dirty", json_boolean(found.dirty), &rc);
		mb_json_put(root, "leaked_clusters", json_integer((json_int_t)found.n_leaked), &rc);
		mb_json_put(
			root, "missing_clusters", json_integer((json_int_t)found.n_missing), &rc);
		mb_json_put(root, "repaired", json_boolean(repair), &rc);
		rc = print_json(root, rc);
	} else {
		if (found.dirty)
			puts(repair ? "was not closed: its reference counts are made anew"
				    : "was not closed; put in order at its next use, or with "
				      "--repair");
		else if (wrong)
			printf("reference counts are wrong: %" PRIu64
			       " clusters in use are counted as free, %" PRIu64
			       " that nobody uses are not: %s\n",
				found.n_missing, found.n_leaked,
				repair ? "mended" : "mend them with --repair");
		else
			puts("in order");
		rc = cli_flush();
	}
	return rc ? rc : wrong && !repair ? CLI_FAILED : CLI_OK;
}

/* On a terminal, and not more often than somebody reads. */
static void show_progress(void *ctx, uint64_t done, uint64_t total)
{
	int *percent = ctx, now = (int)(total ? done * 100 / total : 100);

	if (now == *percent)
		return;
	*percent = now;
	fprintf(stderr, "\rcommit: %d %%", now);
}

static int commit(const struct asked *asked)
{
	bool show = isatty(STDERR_FILENO);
	int percent = -1, rc;
	struct mb_error err;

	rc = mb_image_commit(asked->word[1], show ? show_progress : NULL, &percent, &err);
	if (percent >= 0)
		fputs("\r\x1b[K", stderr);
	return rc ? failed(&err) : CLI_OK;
}

static int rebase(const struct asked *asked)
{
	struct mb_error err;

	return mb_image_rebase(asked->word[1], asked->word[2], &err) ? failed(&err) : CLI_OK;
}

/* ---- the command line ---- */

static const struct verb {
	const char *name;
	int (*run)(const struct asked *asked);
	unsigned n_words; /* files */
	bool takes[N_OPTIONS];
} verbs[] = {
	{"create", create, 1, {[OPT_BASE] = true, [OPT_SIZE] = true}},
	{"info", info, 1, {[OPT_JSON] = true}},
	{"check", check, 1, {[OPT_REPAIR] = true, [OPT_JSON] = true}},
	{"commit", commit, 1, {false}},
	{"rebase", rebase, 2, {false}},
};

static const struct verb *find_verb(const char *word, struct mb_error *err)
{
	static const char *const words[] = {"create", "info", "check", "commit", "rebase", NULL};
	const char *near;

	for (unsigned i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (word && !strcmp(word, verbs[i].name))
			return &verbs[i];
	near = word ? cli_nearest(word, words) : NULL;
	if (near)
		mb_error_set(
			err, EINVAL, "image: unknown word '%s'; did you mean '%s'?", word, near);
	else
		mb_error_set(err, EINVAL,
			"image: what? There are create, info, check, commit and rebase");
	return NULL;
}

static int check_words(const struct verb *verb, const struct asked *asked, struct mb_error *err)
{
	if (asked->n_words <= verb->n_words)
		return mb_error_set(err, EINVAL, "image %s: %s", verb->name,
			asked->n_words == 2 ? "which base?" : "which file?");
	if (asked->n_words > verb->n_words + 1)
		return mb_error_set(err, EINVAL, "image %s: '%s' is too much", verb->name,
			asked->word[verb->n_words + 1]);
	for (int i = 0; i < OPT_HELP; i++)
		if (asked->seen[i] && !verb->takes[i])
			return mb_error_set(err, EINVAL, "image %s: --%s is not for this",
				verb->name, options[i].name);
	if (asked->bytes % 512)
		return mb_error_set(
			err, EINVAL, "image create: --size: not a multiple of 512 bytes");
	if (verb->run == create && !asked->base && !asked->bytes)
		return mb_error_set(err, EINVAL, "image create: either --base DISK or --size SIZE");
	return 0;
}

static int parse(struct asked *asked, int argc, char **argv, struct mb_error *err)
{
	struct cli_option_user user = {.set = set_option, .ctx = asked};

	/* Options and words may stand in any order. */
	for (;;) {
		int first, rc = cli_options_walk(options, argc, argv, &user, &first, err);

		if (rc || first >= argc)
			return rc;
		if (asked->n_words == MAX_WORDS)
			return mb_error_set(err, EINVAL, "image: '%s' is too much", argv[first]);
		asked->word[asked->n_words++] = argv[first];
		argc -= first;
		argv += first;
	}
}

static int image_main(const struct cli_command *command, int argc, char **argv)
{
	struct asked asked = {0};
	const struct verb *verb;
	struct mb_error err;

	if (parse(&asked, argc, argv, &err))
		return cli_usage_error(command, &err);
	if (asked.seen[OPT_HELP] || asked.seen[OPT_VERSION]) {
		if (asked.seen[OPT_HELP])
			cli_command_help(command, stdout);
		else
			cli_version(stdout);
		return cli_flush();
	}
	verb = find_verb(asked.word[0], &err);
	if (!verb || check_words(verb, &asked, &err))
		return cli_usage_error(command, &err);
	return verb->run(&asked);
}
