/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/* Every vCPU is there, in ring 3, and can leave the guest and come back. */
#define EXITS 16

static uint32_t arrived;
static uint64_t began; /* TSC: one start for all, since each takes but a moment */

static void setup(void)
{
	arrived = 0;
	began = rdtsc();
}

static void run(struct cpu *self)
{
	struct timer t = timer_start(arg_or(MB_SPLASH_ARG_MS, 0));
	uint16_t cs;

	__asm__("movw %%cs, %0" : "=r"(cs));
	if ((cs & 3) != 3)
		fail("vCPU %u is in ring %u", self->index, cs & 3u);
	do {
		for (unsigned i = 0; i < EXITS; i++)
			in8(MB_SPLASH_YIELD_PORT);
		self->ops += EXITS;
	} while (!timer_over(&t));
	if (arg_or(MB_SPLASH_ARG_RSM, 0) && self->index == guest.n - 1)
		rsm(guest.args.value[MB_SPLASH_ARG_RSM] == 2);
	self->cycles = rdtsc() - began;
	__atomic_fetch_add(&arrived, 1, __ATOMIC_RELAXED);
}

static void check(void)
{
	char mhz[24] = "unknown";

	if (guest.has_khz)
		format(mhz, sizeof(mhz), "%lu MHz", guest.khz / 1000);
	if (arrived != guest.n)
		fail("%u vCPUs arrived of %u", arrived, guest.n);
	format(guest.note, sizeof(guest.note), "all in ring 3, %lu MiB of memory, TSC %s",
		(guest.info.low_ram_bytes + guest.info.high_ram_bytes) >> 20, mhz);
}

const struct program program_hello = {
	PROGRAM_HEAD(hello), .unit = " exits", .setup = setup, .run = run, .check = check};
