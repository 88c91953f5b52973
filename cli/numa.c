// SPDX-License-Identifier: Apache-2.0
#include "ask.h"
#include "units.h"

#include <stdlib.h>
#include <string.h>

static int numa_main(const struct cli_command *command, int argc, char **argv);

enum { OPT_WHY, OPT_JSON, OPT_HELP, OPT_VERSION, N_OPTIONS };

static const struct cli_option options[] = {
	[OPT_WHY] = {"why", NULL, "also the newest moves, and why the rest stays where it is"},
	[OPT_JSON] = {"json", NULL, "print JSON, with everything"},
	[OPT_HELP] = {"help", NULL, "show this help"},
	[OPT_VERSION] = {"version", NULL, "show the version"},
	[N_OPTIONS] = {0},
};

const struct cli_command cli_numa = {
	.name = "numa",
	.summary = "Tell where a machine's memory is, and what was moved",
	.usage = "[OPTIONS] NAME|PID",
	.about =
		"Tells on which of the host's nodes a running machine's memory is and is used, how "
		"much of its use is local, and what was moved. 'mirrorball ps' lists names and "
		"PIDs.",
	.options = options,
	.epilogue = "Exit status: 0 told, 1 there is no such machine or it did not answer, 2 wrong "
		    "command line.\nMore: man mirrorball-numa.",
	.main = numa_main,
};

#define SHOWN_DECISIONS 20u
#define SHOWN_RANGES	20u
#define SHOWN_SAMPLES	16u

struct asked {
	struct cli_json_asked common;
	bool why;
};

static int set_option(void *ctx, int index, char *value, struct mb_error *err)
{
	struct asked *asked = ctx;

	switch (index) {
	case OPT_WHY:
		asked->why = true;
		break;
	case OPT_JSON:
		asked->common.json = true;
		break;
	case OPT_HELP:
		asked->common.help = true;
		break;
	case OPT_VERSION:
		asked->common.version = true;
		break;
	}
	return 0;
}

/* ---- the answer, which a machine of another version may have made: what is not there is 0 ---- */

static uint64_t number(const json_t *object, const char *key)
{
	json_int_t n = json_integer_value(json_object_get(object, key));

	return n > 0 ? (uint64_t)n : 0;
}

static double real(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static void show_bytes(const json_t *object, const char *key, int width)
{
	char text[32];

	cli_format_bytes(number(object, key), text, sizeof(text));
	printf("  %*s", width, text);
}

static void show_text(const json_t *value)
{
	char text[128];

	snprintf(text, sizeof(text), "%s", json_is_string(value) ? json_string_value(value) : "-");
	mb_error_make_printable(text);
	fputs(text, stdout);
}

static void show_row(const char *label)
{
	printf("%-18s ", label);
}

static void show_nodes(const json_t *nodes)
{
	json_t *node;
	size_t i;

	if (!json_array_size(nodes))
		return;
	printf("\n%4s  %8s  %8s  %12s  %8s  %8s\n", "NODE", "MEMORY", "FREE", "ACCESSES/s",
		"MOVED IN", "OUT");
	json_array_foreach(nodes, i, node)
	{
		printf("%4llu", (unsigned long long)number(node, "node"));
		show_bytes(node, "guest_bytes", 8);
		show_bytes(node, "free_bytes", 8);
		printf("  %12.0f", real(node, "accesses_per_s"));
		show_bytes(node, "in_bytes", 8);
		show_bytes(node, "out_bytes", 8);
		putchar('\n');
	}
}

/* Oldest first, as many as fit a screen, from all of the time. */
static void show_samples(const json_t *samples)
{
	size_t n = json_array_size(samples), step = (n + SHOWN_SAMPLES - 1) / SHOWN_SAMPLES;
	char text[32];

	if (!n)
		return;
	printf("\n%8s  %6s  %8s\n", "TIME", "LOCAL", "MOVED");
	for (size_t i = (n - 1) % step; i < n; i += step) {
		const json_t *one = json_array_get(samples, i);

		cli_format_ms(number(one, "time_ms"), text, sizeof(text));
		printf("%8s  %4.0f %%", text, real(one, "locality") * 100);
		show_bytes(one, "moved_bytes", 8);
		putchar('\n');
	}
}

static void show_reasons(json_t *reasons)
{
	const char *why;
	json_t *value;

	printf("\n%8s  %s\n", "MEMORY", "WHAT THE LAST PLAN SAYS OF IT");
	json_object_foreach(reasons, why, value)
	{
		char text[32], name[64];
		json_int_t n = json_integer_value(value);

		cli_format_bytes(n > 0 ? (uint64_t)n : 0, text, sizeof(text));
		snprintf(name, sizeof(name), "%s", why);
		mb_error_make_printable(name);
		printf("%8s  %s\n", text, name);
	}
}

static uint64_t range_bytes(const json_t *range)
{
	return number(range, "bytes");
}

/* What is where it is used, or hardly used, needs no explanation. */
static bool is_of_interest(const json_t *range)
{
	const char *why = json_string_value(json_object_get(range, "why"));

	return why && strcmp(why, "local") && strcmp(why, "cold");
}

static int larger(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? 1 : x > y ? -1 : 0;
}

/* Of what so many at most are as large or larger. */
static uint64_t least_shown(const json_t *ranges, size_t most)
{
	size_t n = json_array_size(ranges), k = 0;
	uint64_t *bytes = calloc(n + 1, sizeof(*bytes)), least = UINT64_MAX;

	for (size_t i = 0; bytes && i < n; i++)
		if (is_of_interest(json_array_get(ranges, i)))
			bytes[k++] = range_bytes(json_array_get(ranges, i));
	if (bytes) {
		qsort(bytes, k, sizeof(*bytes), larger);
		least = k > most ? bytes[most - 1] : 0;
	}
	free(bytes);
	return least;
}

static void show_node(const json_t *object, const char *key, int width)
{
	const json_t *node = json_object_get(object, key);

	if (json_is_integer(node))
		printf("  %*lld", width, (long long)json_integer_value(node));
	else
		printf("  %*s", width, "-");
}

/* The largest ones, in order of address. */
static void show_ranges(const json_t *ranges)
{
	uint64_t least = least_shown(ranges, SHOWN_RANGES);
	size_t shown = 0, left = 0, i;
	json_t *range;

	json_array_foreach(ranges, i, range)
	{
		char text[32];

		if (!is_of_interest(range))
			continue;
		if (range_bytes(range) < least || shown == SHOWN_RANGES) {
			left++;
			continue;
		}
		if (!shown++)
			printf("\n%-18s  %8s  %4s  %2s  %8s  %s\n", "ADDRESS", "SIZE", "ON", "TO",
				"WAITS", "WHY (NEITHER LOCAL NOR COLD)");
		printf("%#-18llx", (unsigned long long)number(range, "gpa"));
		show_bytes(range, "bytes", 8);
		show_node(range, "node", 4);
		show_node(range, "target", 2);
		cli_format_ms(number(range, "wait_ms"), text, sizeof(text));
		printf("  %8s  ", number(range, "wait_ms") ? text : "-");
		show_text(json_object_get(range, "why"));
		putchar('\n');
	}
	if (left)
		printf("and %zu smaller ones (--json has them)\n", left);
}

static void show_decisions(const json_t *decisions)
{
	size_t n = json_array_size(decisions);

	if (!n)
		return;
	printf("\n%8s  %-18s  %8s  %4s  %2s  %8s  %8s  %8s  %s\n", "TIME", "ADDRESS", "SIZE",
		"FROM", "TO", "MOVED", "BUSY", "NO ROOM", "WHY");
	for (size_t i = n > SHOWN_DECISIONS ? n - SHOWN_DECISIONS : 0; i < n; i++) {
		const json_t *d = json_array_get(decisions, i),
			     *error = json_object_get(d, "error");
		char text[32];

		cli_format_ms(number(d, "time_ms"), text, sizeof(text));
		printf("%8s  %#-18llx", text, (unsigned long long)number(d, "gpa"));
		show_bytes(d, "bytes", 8);
		show_node(d, "from", 4);
		show_node(d, "to", 2);
		show_bytes(d, "moved_bytes", 8);
		show_bytes(d, "busy_bytes", 8);
		show_bytes(d, "full_bytes", 8);
		fputs("  ", stdout);
		show_text(json_object_get(d, "why"));
		if (number(d, "pieces") > 1)
			printf(", in %llu pieces", (unsigned long long)number(d, "pieces"));
		if (number(d, "split_bytes"))
			fputs(", taken apart", stdout);
		if (json_is_string(error)) {
			fputs("; ", stdout);
			show_text(error);
		}
		putchar('\n');
	}
}

/* "0, 2" */
static void show_list(const json_t *nodes)
{
	json_t *node;
	size_t i;

	json_array_foreach(nodes, i, node)
	{
		printf("%s%lld", i ? ", " : "", (long long)json_integer_value(node));
	}
}

static void show_placement(const json_t *p)
{
	json_t *one;
	size_t i;

	if (!p)
		return;
	show_row("placement");
	show_text(json_object_get(p, "kind"));
	printf(": node%s ", json_array_size(json_object_get(p, "nodes")) == 1 ? "" : "s");
	show_list(json_object_get(p, "nodes"));
	fputs(", ", stdout);
	show_text(json_object_get(p, "reason"));
	putchar('\n');
	json_array_foreach(json_object_get(p, "rebalances"), i, one)
	{
		char text[32];

		cli_format_ms(number(one, "time_ms"), text, sizeof(text));
		show_row("rebalanced");
		printf("after %s, view %llu from node %llu (%.0f %% busy) to %llu: waited %.0f "
		       "%%\n",
			text, (unsigned long long)number(one, "view"),
			(unsigned long long)number(one, "from"), real(one, "busy") * 100,
			(unsigned long long)number(one, "to"), real(one, "waiting") * 100);
	}
}

/* Copies, and what those cost who writes the memory. */
static void show_replicas(const json_t *r)
{
	const json_t *of_views = json_object_get(r, "view_bytes"), *bytes;
	char text[32], most[32];
	size_t v;

	if (!r)
		return;
	show_row("copies");
	if (!json_object_get(r, "bytes")) {
		show_text(json_object_get(r, "state"));
		putchar('\n');
		return;
	}
	cli_format_bytes(number(r, "bytes"), text, sizeof(text));
	cli_format_bytes(number(r, "max_bytes"), most, sizeof(most));
	printf("%s, at most %s", text, most);
	json_array_foreach(of_views, v, bytes)
	{
		json_int_t n = json_integer_value(bytes);

		cli_format_bytes(n > 0 ? (uint64_t)n : 0, text, sizeof(text));
		printf("%s %s of view %zu", v ? "," : ":", text, v);
	}
	cli_format_bytes(number(r, "copied_bytes"), text, sizeof(text));
	printf("; %s were made\n", text);
	show_row("writes to them");
	printf("%llu waited, %.0f us on average, at most %.0f us\n",
		(unsigned long long)number(r, "faults"), (double)number(r, "fault_ns") / 1e3,
		(double)number(r, "longest_ns") / 1e3);
}

static void show(void *ctx, json_t *answer)
{
	const struct asked *asked = ctx;
	const json_t *m = json_object_get(answer, "migration"),
		     *locality = json_object_get(m, "locality");
	char text[32];

	show_row("name");
	show_text(json_object_get(answer, "name"));
	putchar('\n');
	show_placement(json_object_get(answer, "placement"));
	show_row("migration");
	show_text(json_object_get(m, "state"));
	putchar('\n');
	if (!json_object_get(m, "nodes"))
		return;
	show_row("local");
	if (json_is_number(locality))
		printf("%.1f %% of accesses\n", json_number_value(locality) * 100);
	else
		printf("not known yet\n");
	cli_format_bytes(number(m, "moved_bytes"), text, sizeof(text));
	show_row("moved");
	printf("%s, in %llu moves\n", text, (unsigned long long)number(m, "moves"));
	show_replicas(json_object_get(answer, "replicas"));
	show_nodes(json_object_get(m, "nodes"));
	show_samples(json_object_get(answer, "samples"));
	if (!asked->why)
		return;
	show_reasons(json_object_get(answer, "reasons"));
	show_ranges(json_object_get(answer, "ranges"));
	show_decisions(json_object_get(answer, "decisions"));
}

static int numa_main(const struct cli_command *command, int argc, char **argv)
{
	struct asked asked = {0};
	struct cli_option_user user = {.set = set_option, .ctx = &asked};
	static const struct cli_ask_ops ops = {.show = show};

	return cli_ask_main(command, &user, &asked.common, argc, argv, &ops);
}
