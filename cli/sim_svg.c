// SPDX-License-Identifier: Apache-2.0
#include "parse.h"
#include "sim.h"
#include "svg.h"
#include <errno.h>
#include <math.h>
#include <string.h>

/* A panel for each run: the share of local accesses over time, with the policy and without. */
#define COLUMNS	     2u
#define PANEL_WIDTH  440u
#define PANEL_HEIGHT 150u
#define LEFT	     64u
#define TOP	     112u
#define SKIP_X	     84u /* between panels */
#define SKIP_Y	     92u
#define MOST_POINTS  600u /* of a line: what is longer is averaged */

static const enum mb_sim_case lines[] = {MB_SIM_INTERLEAVED, MB_SIM_STATIC_ORACLE,
	MB_SIM_DYNAMIC_ORACLE, MB_SIM_NONE, MB_SIM_POLICY};
#define N_LINES (sizeof(lines) / sizeof(lines[0]))

static void draw_style(FILE *out)
{
	fputs("<style>\n"
	      "svg{font:13px system-ui,sans-serif}\n"
	      ".t{font-size:18px;font-weight:600}.h{font-weight:600}"
	      ".r{text-anchor:end}.m{text-anchor:middle}\n"
	      "text{fill:#1c1c1e}.f{fill:#5c5c62}.page{fill:#fff}.panel{fill:#f6f6f8}"
	      ".frame{fill:none;stroke:#85858c}.grid{fill:none;stroke:#dcdce2}\n"
	      ".line{fill:none;stroke-width:1.5;stroke-linejoin:round}"
	      ".policy{stroke:#0a66d0;stroke-width:2.5}.none{stroke:#c2410c}"
	      ".interleave{stroke:#85858c}.oracle_static{stroke:#15803d;stroke-dasharray:5 4}"
	      ".oracle_dynamic{stroke:#15803d}\n"
	      "@media(prefers-color-scheme:dark){text{fill:#ececf0}.f{fill:#a2a2aa}"
	      ".page{fill:#141417}.panel{fill:#1e1e23}.grid{stroke:#33333a}"
	      ".policy{stroke:#5aa7ff}.none{stroke:#ff8a5c}"
	      ".oracle_static,.oracle_dynamic{stroke:#4ccb7f}}\n"
	      "</style>\n",
		out);
}

/* Of the steps that a point stands for; NAN where there were no accesses. */
static double mean(const float *series, unsigned from, unsigned to)
{
	double sum = 0, n = 0;

	for (unsigned i = from; i < to; i++)
		if (isfinite(series[i])) {
			sum += (double)series[i];
			n++;
		}
	return n > 0 ? sum / n : (double)NAN;
}

static void draw_line(FILE *out, const struct mb_sim_result *r, enum mb_sim_case which)
{
	unsigned n = r->n_steps < MOST_POINTS ? r->n_steps : MOST_POINTS;
	char pen = 'M';

	fprintf(out, "<path class=\"line %s\" d=\"", sim_case_keys[which]);
	for (unsigned i = 0; i < n; i++) {
		double y = mean(r->series[which], (unsigned)((uint64_t)i * r->n_steps / n),
			(unsigned)((uint64_t)(i + 1) * r->n_steps / n));

		if (!isfinite(y)) {
			pen = 'M';
			continue;
		}
		/* A step of time is a step of the line. */
		fprintf(out, "%c%.1f %.1fH%.1f", pen, (double)i * PANEL_WIDTH / n,
			(1 - y) * PANEL_HEIGHT, (double)(i + 1) * PANEL_WIDTH / n);
		pen = 'L';
	}
	fputs("\"/>\n", out);
}

static void draw_panel(FILE *out, const struct sim_run *run, unsigned index)
{
	const struct mb_sim_result *r = &run->result;
	unsigned x = LEFT + index % COLUMNS * (PANEL_WIDTH + SKIP_X);
	unsigned y = TOP + index / COLUMNS * (PANEL_HEIGHT + SKIP_Y);
	double best = r->s[MB_SIM_DYNAMIC_ORACLE], all_s = r->n_steps * run->step_ms / 1e3;
	char size[32];

	cli_format_size(r->moved_bytes >> 20 << 20, size, sizeof(size));
	fprintf(out, "<g transform=\"translate(%u %u)\">\n<text class=\"h\" x=\"0\" y=\"-26\">", x,
		y);
	cli_svg_text(out, run->name);
	fprintf(out, "</text>\n<text class=\"f\" x=\"0\" y=\"-9\">");
	if (best > 0)
		fprintf(out, "time in memory, best = 1: policy %.2f, none %.2f; ",
			(r->s[MB_SIM_POLICY] + r->moving_s) / best, r->s[MB_SIM_NONE] / best);
	fprintf(out, "moved %s</text>\n<path class=\"panel\" d=\"M0 0h%uv%uH0z\"/>\n", size,
		PANEL_WIDTH, PANEL_HEIGHT);
	for (unsigned k = 0; k <= 4; k++)
		fprintf(out,
			"<path class=\"grid\" d=\"M0 %.1fh%u\"/><text class=\"r\" x=\"-7\" "
			"y=\"%.1f\">%u %%</text>\n",
			(4 - k) * PANEL_HEIGHT / 4.0, PANEL_WIDTH, (4 - k) * PANEL_HEIGHT / 4.0 + 4,
			25 * k);
	for (unsigned k = 0; k < N_LINES; k++)
		draw_line(out, r, lines[k]);
	fprintf(out, "<path class=\"frame\" d=\"M0 0h%uv%uH0z\"/>\n", PANEL_WIDTH, PANEL_HEIGHT);
	for (unsigned k = 0; k <= 4; k++)
		fprintf(out, "<text class=\"m\" x=\"%u\" y=\"%u\">%.4g%s</text>\n",
			k * PANEL_WIDTH / 4, PANEL_HEIGHT + 18, all_s * k / 4, k == 4 ? " s" : "");
	fputs("</g>\n", out);
}

int sim_svg_draw(const struct sim_report *report, FILE *out)
{
	unsigned rows = (report->n_runs + COLUMNS - 1) / COLUMNS, x = LEFT;
	unsigned width = LEFT + COLUMNS * (PANEL_WIDTH + SKIP_X) - SKIP_X + 40,
		 height = TOP + rows * (PANEL_HEIGHT + SKIP_Y) - SKIP_Y + 44;

	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %u %u\" width=\"%u\" "
		"height=\"%u\" role=\"img\">\n<title>Local accesses over time, simulated</title>\n",
		width, height, width, height);
	draw_style(out);
	fprintf(out,
		"<path class=\"page\" d=\"M0 0h%uv%uH0z\"/>\n"
		"<text class=\"t\" x=\"%u\" y=\"32\">Share of accesses that are local, modelled: ",
		width, height, LEFT);
	cli_svg_text(out, report->host_name);
	fputs("</text>\n", out);
	for (unsigned k = N_LINES; k-- > 0;) {
		const char *name = sim_case_names[lines[k]];

		fprintf(out,
			"<path class=\"line %s\" d=\"M%u 54h26\"/><text x=\"%u\" "
			"y=\"58\">%s</text>\n",
			sim_case_keys[lines[k]], x, x + 32, name);
		x += 56 + 8 * (unsigned)strlen(name);
	}
	for (unsigned i = 0; i < report->n_runs; i++)
		draw_panel(out, &report->run[i], i);
	fputs("</svg>\n", out);
	return ferror(out) ? -EIO : 0;
}
