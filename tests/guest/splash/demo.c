/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/* What a newcomer sees: a few programs, one after the other, and a table. */
struct stop {
	const struct program *program;
	const char *what;
};

static const struct stop tour[] = {
	{&program_hello, "leave the guest and come back"},
	{&program_radix, "sort numbers together"},
	{&program_readshare, "read one table"},
	{&program_writeshare, "add to shared counters"},
	{&program_private, "stream own memory"},
	{&program_churn, "torture shared pages"},
};

static void head(void)
{
	say("splash: this is the guest that Mirrorball carries along: %u vCPU%s, %lu MiB of memory",
		guest.n, guest.n == 1 ? "" : "s",
		(guest.info.low_ram_bytes + guest.info.high_ram_bytes) >> 20);
	say("  %-10s  %-30s  %14s  %14s  %s", "program", "what the vCPUs do", "each vCPU",
		"together", "result");
}

static void run(struct cpu *self)
{
	if (!(guest.args.given >> MB_SPLASH_ARG_MS & 1)) {
		guest.args.value[MB_SPLASH_ARG_MS] = 100;
		__atomic_fetch_or(&guest.args.given, 1u << MB_SPLASH_ARG_MS, __ATOMIC_RELAXED);
	}
	if (!self->index)
		head();
	for (unsigned i = 0; i < sizeof(tour) / sizeof(tour[0]); i++) {
		char all[64], one[64];

		run_program(self, tour[i].program);
		if (!self->index) {
			format_rate(one, sizeof(one), 0, guest.n, guest.n);
			format_rate(all, sizeof(all), 0, guest.n, 1);
			say("  %-10s  %-30s  %14s  %14s  ok", tour[i].program->name, tour[i].what,
				one, all);
		}
	}
}

const struct program program_demo = {PROGRAM_HEAD(demo), .unit = "", .run = run};
