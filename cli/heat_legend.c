// SPDX-License-Identifier: Apache-2.0
#include "heat_pen.h"
#include <string.h>

static void draw_tracker(struct heat_pen *pen, const struct heat_tracker *t)
{
	char size[16];

	heat_pen_item(pen, "tracker: %.0f %% covered", t->covered * 100);
	if (t->windows)
		heat_pen_item(pen, "%llu windows", (unsigned long long)t->windows);
	heat_pen_item(pen, "%llu regions", (unsigned long long)t->regions);
	heat_pen_item(
		pen, "%.2g %% of a CPU (at most %.2g)", t->cpu_ppm / 1e4, t->cpu_budget_ppm / 1e4);
	heat_pen_item(pen, "%.2g %% of the guest's time (at most %.2g)", t->guest_ppm / 1e4,
		t->guest_budget_ppm / 1e4);
	heat_pen_item(pen, "%.0f zaps/s", t->zaps_per_s);
	heat_pen_item(pen, "%.0f faults/s", t->faults_per_s);
	heat_format_size(t->huge_bytes, size, sizeof(size));
	heat_pen_item(pen, "%s in huge pages", size);
	heat_pen_item(pen, "writes %s", t->writes ? "known" : "not known");
	if (!t->exact)
		heat_pen_item(pen, "estimated");
	heat_pen_end_line(pen);
}

static void swatch(struct heat_pen *pen, struct heat_rgb c, const char *text)
{
	char style[HEAT_STYLE_BYTES] = "";

	heat_pen_next(pen, 3 + (unsigned)strlen(text));
	heat_pen_colour(pen, style, 4, c);
	heat_pen_style(pen, style);
	heat_pen_put(pen, "  ");
	heat_pen_style(pen, "");
	heat_pen_putf(pen, " %s", text);
}

static void legend_of_use_mono(struct heat_pen *pen, const struct heat *heat)
{
	char nodes[64];

	for (unsigned v = 0; v < heat->n_views; v++) {
		heat_view_nodes(heat, v, nodes, sizeof(nodes));
		heat_pen_item(pen, "%c view %u (%s)", 'a' + v, v, nodes);
	}
	if (heat->n_views > 1)
		heat_pen_item(pen, "+ several views");
	heat_pen_item(pen, heat->n_views > 1 ? "capital, # written" : "capital: written");
	heat_pen_item(pen, ". idle");
	heat_pen_item(pen, "? not known yet");
	heat_pen_item(pen, ": untouched");
	heat_pen_end_line(pen);
	heat_pen_item(
		pen, "heat: 1 to %u, logarithm of 0.05 to 500 touches/s of a page", HEAT_LEVELS);
	heat_pen_item(pen, "- hardly looked at");
	heat_pen_end_line(pen);
}

static void legend_of_use(struct heat_pen *pen, const struct heat *heat)
{
	char text[96], nodes[64], style[HEAT_STYLE_BYTES];
	bool utf8 = pen->look->utf8;

	for (unsigned v = 0; v < heat->n_views; v++) {
		heat_view_nodes(heat, v, nodes, sizeof(nodes));
		snprintf(text, sizeof(text), "view %u (%s)", v, nodes);
		swatch(pen, heat_view_rgb(heat, v), text);
	}
	if (heat->n_views > 1)
		swatch(pen, heat_several_rgb, "several views");
	heat_pen_item(pen, "%s written", utf8 ? "╱" : "/");
	heat_pen_item(pen, "%s read and written", utf8 ? "╳" : "x");
	heat_pen_item(pen, "%s idle", utf8 ? "·" : ".");
	heat_pen_item(pen, "%s hardly looked at", utf8 ? "░" : "-");
	heat_pen_item(pen, "? not known yet");
	heat_pen_item(pen, "%s untouched", utf8 ? "┊" : ":");
	if (pen->look->colours != HEAT_COLOURS_8) {
		heat_pen_next(pen, HEAT_LEVELS + 27);
		for (unsigned level = 1; level <= HEAT_LEVELS; level++) {
			*style = '\0';
			heat_pen_colour(pen, style, 4, heat_dimmed(heat_view_rgb(heat, 0), level));
			heat_pen_style(pen, style);
			heat_pen_put(pen, " ");
		}
		heat_pen_style(pen, "");
		heat_pen_put(pen, " 0.05 to 500 touches/s of a page");
	}
	heat_pen_end_line(pen);
}

static void legend_of_copies(struct heat_pen *pen, const struct heat *heat)
{
	char size[16], text[64];

	heat_format_size(heat_sum_copied(heat), size, sizeof(size));
	snprintf(text, sizeof(text), " has copies: %s", size);
	heat_pen_next(pen, 1 + (unsigned)strlen(text));
	heat_pen_put_on(pen, heat_several_rgb, "+");
	heat_pen_style(pen, "");
	heat_pen_put(pen, text);
}

static void legend_of_home(struct heat_pen *pen, const struct heat *heat, const uint64_t *home)
{
	heat_pen_put(pen, "lives on");
	for (unsigned i = 0; i < heat->n_nodes; i++) {
		char text[64], size[16];

		heat_format_size(home[i], size, sizeof(size));
		snprintf(text, sizeof(text), "node %u: %s", heat->node[i], size);
		if (pen->look->colours)
			swatch(pen, heat_node_rgb(heat, i), text);
		else
			heat_pen_item(pen, "%s", text);
	}
	if (heat->can_copy)
		legend_of_copies(pen, heat);
	heat_pen_end_line(pen);
}

void heat_legend_head(struct heat_pen *pen, const struct heat *heat)
{
	static const char *const what[] = {
		[HEAT_ALL] = "touched", [HEAT_READ] = "read", [HEAT_WRITE] = "written"};
	uint64_t home[HEAT_MAX_NODES] = {0}, used = 0;
	char size[16], in_use[16];

	for (size_t i = 0; i < heat->n_extents; i++) {
		used += heat->extent[i].used_bytes;
		if (heat->extent[i].has_node)
			home[heat->extent[i].node] += heat->extent[i].used_bytes;
	}
	heat_format_size(heat->memory_bytes, size, sizeof(size));
	heat_format_size(used, in_use, sizeof(in_use));
	heat_pen_style(pen, pen->look->colours ? "1" : "");
	heat_pen_put(pen, heat->name);
	heat_pen_style(pen, "");
	heat_pen_item(pen, "PID %llu", (unsigned long long)heat->pid);
	heat_pen_item(pen, "%s of memory, %s in use", size, in_use);
	heat_pen_item(pen, "%u view%s", heat->n_views, heat->n_views == 1 ? "" : "s");
	heat_pen_item(pen, "running for %.1f s", (double)heat->time_ms / 1e3);
	heat_pen_end_line(pen);
	draw_tracker(pen, &heat->tracker);
	heat_pen_putf(pen, "%s by", what[pen->look->what]);
	if (pen->look->colours)
		legend_of_use(pen, heat);
	else
		legend_of_use_mono(pen, heat);
	if (pen->look->home)
		legend_of_home(pen, heat, home);
}

static void draw_sums(struct heat_pen *pen, const struct heat *heat)
{
	static const char *const about[HEAT_CLASSES] = {
		[HEAT_OWN] = "used by one view, lives on a node of that view",
		[HEAT_REMOTE] = "used by one view, lives elsewhere",
		[HEAT_READ_SHARED] = "several views read it, none writes",
		[HEAT_WRITE_SHARED] = "several views use it, and at least one writes",
		[HEAT_SHARED] = "several views use it; writes are not known",
		[HEAT_USED] = "by which node is not known: one view has all",
		[HEAT_IDLE] = "nobody touched it when the tracker looked",
		[HEAT_UNKNOWN] = "not looked at yet, or its node is not known",
	};
	uint64_t bytes[HEAT_CLASSES], sum = heat_sum(heat, bytes);

	for (unsigned c = 0; c < HEAT_CLASSES; c++) {
		double percent = sum ? 100 * (double)bytes[c] / (double)sum : 0;
		char size[16];

		/* Those that say how memory is placed are there also when they are nothing. */
		if (!bytes[c] && (heat->n_views == 1 || c > HEAT_WRITE_SHARED))
			continue;
		heat_format_size(bytes[c], size, sizeof(size));
		if (pen->look->rows) {
			heat_pen_item(pen, "%s %s (%.0f %%)", heat_class_name(c), size, percent);
			continue;
		}
		heat_pen_putf(pen, "%-14s %10s %4.0f %%  %s", heat_class_name(c), size, percent,
			about[c]);
		heat_pen_end_line(pen);
	}
	if (pen->look->rows)
		heat_pen_end_line(pen);
}

void heat_legend_foot(struct heat_pen *pen, const struct heat *heat)
{
	draw_sums(pen, heat);
	if (!pen->look->rows)
		return;
	heat_pen_put(pen, "q quit  m touched, read or written  n where it lives");
	if (pen->look->note && *pen->look->note)
		heat_pen_item(pen, "%s", pen->look->note);
	heat_pen_end_line(pen);
}
