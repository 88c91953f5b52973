// SPDX-License-Identifier: Apache-2.0
#include "footprint.h"
#include "units.h"
#include <inttypes.h>
#include <mirrorball/commons.h>
#include <mirrorball/footprint.h>
#include <mirrorball/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DAEMON_WAIT_MS 2000u

uint64_t cli_footprint_number(const json_t *object, const char *key)
{
	json_int_t value = json_integer_value(json_object_get(object, key));

	return value > 0 ? (uint64_t)value : 0;
}

json_t *cli_footprint_commons(void)
{
	struct mb_error err;
	char *text;
	json_t *commons;

	if (mb_commons_stat(NULL, DAEMON_WAIT_MS, &text, &err))
		return NULL;
	commons = json_loads(text, 0, NULL);
	free(text);
	return commons;
}

/* ---- as JSON ---- */

struct tag {
	uint64_t pid, device, inode;
	bool is_base; /* or it is a word */
};

static struct tag read_tag(const char *text)
{
	struct tag tag = {0};
	char end;

	tag.is_base = sscanf(text, "%" SCNu64 ":%" SCNx64 ":%" SCNx64 "%c", &tag.pid, &tag.device,
			      &tag.inode, &end) == 3;
	return tag;
}

/*
 * Of the same file there may be another state, which has changed since: the one that more machines
 * have is the one that is meant. NULL: the daemon knows of none, as one that began after this
 * machine.
 */
static const json_t *find_base(const json_t *commons, const struct tag *tag)
{
	const json_t *bases = json_object_get(commons, "bases"), *best = NULL;
	bool knows = tag->is_base && cli_footprint_number(commons, "pid") == tag->pid;
	uint64_t most = 0;

	for (size_t i = 0; i < json_array_size(bases) && knows; i++) {
		const json_t *base = json_array_get(bases, i);
		uint64_t sharers = cli_footprint_number(base, "sharers");

		if (cli_footprint_number(base, "device") != tag->device ||
			cli_footprint_number(base, "inode") != tag->inode || sharers <= most)
			continue;
		most = sharers;
		best = base;
	}
	return best;
}

static json_t *origin_json(const struct mb_footprint_origin *origin, const json_t *commons, int *rc)
{
	json_t *object = json_object();
	struct tag tag = read_tag(origin->tag);
	const json_t *base = find_base(commons, &tag);
	const char *path = json_string_value(json_object_get(base, "path"));
	const bool is_image = origin->path[0];
	json_t *text;

	if (is_image) {
		tag = (struct tag){
			.device = origin->device, .inode = origin->inode, .is_base = true};
		path = origin->path;
		base = NULL;
	}
	mb_json_put(object, "kind", json_string(is_image ? "pmem" : "commons"), rc);
	/* One that is not UTF-8 cannot be a JSON string. */
	text = path ? json_string(path) : NULL;
	mb_json_put(object, "path", text ? text : json_null(), rc);
	mb_json_put(object, "device",
		tag.is_base ? json_integer((json_int_t)tag.device) : json_null(), rc);
	mb_json_put(object, "inode",
		tag.is_base ? json_integer((json_int_t)tag.inode) : json_null(), rc);
	mb_json_put(object, "others",
		base ? json_integer((json_int_t)cli_footprint_number(base, "sharers") - 1)
		     : json_null(),
		rc);
	mb_json_put_number(object, "shared_bytes", origin->shared_bytes, rc);
	mb_json_put_number(object, "shared_proportional_bytes", origin->pss_bytes, rc);
	return object;
}

static json_t *footprint_json(const struct mb_footprint *f, const json_t *commons, int *rc)
{
	json_t *object = json_object(), *origins = json_array();

	for (unsigned i = 0; i < f->n_origins; i++)
		mb_json_append(origins, origin_json(&f->origin[i], commons, rc), rc);
	mb_json_put_number(object, "proportional_bytes", f->pss_bytes, rc);
	mb_json_put_number(object, "private_bytes", f->private_bytes, rc);
	mb_json_put_number(object, "copies_bytes", f->copies_bytes, rc);
	mb_json_put_number(object, "monitor_bytes", f->monitor_bytes, rc);
	mb_json_put_number(object, "shared_proportional_bytes", f->shared_pss_bytes, rc);
	mb_json_put_number(object, "shared_bytes", f->shared_bytes, rc);
	mb_json_put_number(object, "saved_bytes",
		f->shared_bytes > f->shared_pss_bytes ? f->shared_bytes - f->shared_pss_bytes : 0,
		rc);
	mb_json_put(object, "origins", origins, rc);
	return object;
}

int cli_footprint_add(json_t *answer, const json_t *commons)
{
	struct mb_footprint footprint;
	struct mb_error err;
	json_t *object;
	int rc = 0;

	if (mb_footprint_read((pid_t)cli_footprint_number(answer, "pid"),
		    (unsigned)cli_footprint_number(answer, "views"), &footprint, &err)) {
		object = json_object();
		mb_json_put(object, "error", json_string(err.text), &rc);
	} else {
		object = footprint_json(&footprint, commons, &rc);
	}
	mb_json_put(answer, "footprint", object, &rc);
	return rc;
}

/* Of all images that are memory of a guest. */
static uint64_t image_bytes(const json_t *footprint, const char *key)
{
	uint64_t bytes = 0;
	json_t *origin;
	size_t i;

	json_array_foreach(json_object_get(footprint, "origins"), i, origin)
	{
		const char *kind = json_string_value(json_object_get(origin, "kind"));

		if (kind && !strcmp(kind, "pmem"))
			bytes += cli_footprint_number(origin, key);
	}
	return bytes;
}

/*
 * The commons take what they hold, whoever maps it: of that, machines' proportional parts are some.
 * Without a daemon those who map it are all there are, and their parts are all of it.
 */
json_t *cli_footprint_host(const json_t *answers, const json_t *commons)
{
	uint64_t own = 0, counted = 0, shared = 0, images = 0, images_shared = 0, held, n = 0;
	json_t *host = json_object(), *answer;
	size_t i;
	int rc = 0;

	json_array_foreach(answers, i, answer)
	{
		const json_t *f = json_object_get(answer, "footprint");

		if (!json_object_get(f, "proportional_bytes"))
			continue;
		n++;
		images += image_bytes(f, "shared_proportional_bytes");
		images_shared += image_bytes(f, "shared_bytes");
		counted += cli_footprint_number(f, "shared_proportional_bytes");
		own += cli_footprint_number(f, "proportional_bytes") -
		       cli_footprint_number(f, "shared_proportional_bytes");
		shared += cli_footprint_number(f, "shared_bytes");
	}
	/* The page cache has images, and not the commons: those who map them have it all. */
	counted -= images;
	shared -= images_shared;
	held = commons ? cli_footprint_number(commons, "held_bytes") : counted;
	/* What was mapped of an earlier daemon's is held by nobody but machines. */
	held = held > counted ? held : counted;
	mb_json_put_number(host, "machines", n, &rc);
	mb_json_put_number(host, "taken_bytes", own + images + held, &rc);
	mb_json_put_number(host, "commons_bytes", held, &rc);
	mb_json_put_number(host, "pmem_bytes", images, &rc);
	mb_json_put_number(host, "shared_bytes", shared + images_shared, &rc);
	mb_json_put_number(host, "saved_bytes",
		(shared > held ? shared - held : 0) +
			(images_shared > images ? images_shared - images : 0),
		&rc);
	if (rc) {
		json_decref(host);
		return NULL;
	}
	return host;
}

/* ---- for people ---- */

static void format_what(const json_t *origin, char *text, size_t len)
{
	const char *path = json_string_value(json_object_get(origin, "path"));
	const char *slash = path ? strrchr(path, '/') : NULL;

	if (path)
		snprintf(text, len, "%s", slash && slash[1] ? slash + 1 : path);
	else if (json_is_integer(json_object_get(origin, "inode")))
		snprintf(text, len, "inode %" PRIu64, cli_footprint_number(origin, "inode"));
	else
		snprintf(text, len, "?");
	mb_error_make_printable(text);
}

void cli_footprint_format_others(const json_t *origin, char *text, size_t len)
{
	const json_t *others = json_object_get(origin, "others");
	uint64_t n = cli_footprint_number(origin, "others");
	char what[128];

	format_what(origin, what, sizeof(what));
	if (!json_is_integer(others))
		snprintf(text, len, "others, nobody tells how many, of %s", what);
	else
		snprintf(text, len, "%" PRIu64 " %s of %s", n, n == 1 ? "other" : "others", what);
}

static void show_bytes(const json_t *f, const char *key, const char *label, int width)
{
	char text[32];

	cli_format_bytes(cli_footprint_number(f, key), text, sizeof(text));
	printf("  %-*s %s\n", width - 2, label, text);
}

void cli_footprint_show(const json_t *footprint, int width)
{
	const char *error = json_string_value(json_object_get(footprint, "error"));
	const json_t *origin;
	char total[32];
	size_t i;

	if (error) {
		printf("%-*s not known: %s\n", width, "footprint", error);
		return;
	}
	cli_format_bytes(
		cli_footprint_number(footprint, "proportional_bytes"), total, sizeof(total));
	printf("%-*s %s\n", width, "footprint", total);
	show_bytes(footprint, "private_bytes", "private", width);
	json_array_foreach(json_object_get(footprint, "origins"), i, origin)
	{
		char shared[32], counted[32], with[256];

		cli_format_bytes(
			cli_footprint_number(origin, "shared_bytes"), shared, sizeof(shared));
		cli_format_bytes(cli_footprint_number(origin, "shared_proportional_bytes"), counted,
			sizeof(counted));
		cli_footprint_format_others(origin, with, sizeof(with));
		printf("  %-*s %s with %s; %s of it count here\n", width - 2, "shared", shared,
			with, counted);
	}
	show_bytes(footprint, "copies_bytes", "copies", width);
	show_bytes(footprint, "monitor_bytes", "monitor", width);
	show_bytes(footprint, "saved_bytes", "saved by sharing", width);
}
