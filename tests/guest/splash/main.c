/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/* From the first instruction in ring 3 to the end of the machine. */
struct guest guest = {.title = "start"};

/* SDM vol. 3, 7.14.1. Filled in by vCPU 0; entry.S loads it before. */
struct gate {
	uint16_t offset_0;
	uint16_t selector;
	uint8_t ist;
	uint8_t type;
	uint16_t offset_16;
	uint32_t offset_32;
	uint32_t zero;
};

extern struct gate idt[N_VECTORS];
struct gate idt[N_VECTORS] __attribute__((aligned(16)));

_Static_assert(sizeof(struct cpu) <= 0x700, "no room for the ring 0 stack");
_Static_assert(TSS_BYTES + IOMAP_BYTES < CPU_GDT, "the I/O bitmap ends before the GDT");
_Static_assert(offsetof(struct mb_splash_info, low_ram_bytes) == INFO_LOW_RAM, "entry.S reads it");
_Static_assert(SPLASH_INFO == MB_SPLASH_INFO, "pvh.S has it");

#define GATE_INTERRUPT 0x8e
#define GUESSED_KHZ    2000000u

static void fill_idt(void)
{
	extern const char stubs[];

	for (unsigned i = 0; i < N_VECTORS; i++) {
		uint64_t stub = (uint64_t)stubs + i * STUB_BYTES;

		idt[i] = (struct gate){.offset_0 = (uint16_t)stub,
			.selector = SEL_CODE0,
			.type = GATE_INTERRUPT,
			.offset_16 = (uint16_t)(stub >> 16),
			.offset_32 = (uint32_t)(stub >> 32)};
	}
}

struct frame {
	uint64_t cr2, rax, vector, error, rip, cs, rflags, rsp, ss;
};

/* Ring 3, on a stack of its own: the one that was in use may be what is wrong. */
void splash_exception(const struct frame *f, struct cpu *self);
void splash_exception(const struct frame *f, struct cpu *self)
{
	if (self->excepting++)
		end(MB_SPLASH_EXCEPTION);
	if (__atomic_exchange_n(&guest.ended, 1, __ATOMIC_ACQ_REL))
		park();
	/* The vCPU that took it may hold the line. */
	__atomic_store_n(&guest.line_lock, 0, __ATOMIC_RELEASE);
	say("splash: %s: FAILED: vCPU %u: exception %lu, error 0x%lx, RIP 0x%lx, CR2 0x%lx, RSP "
	    "0x%lx, ring %lu",
		guest.title, self->index, f->vector, f->error, f->rip, f->cr2, f->rsp, f->cs & 3);
	end(MB_SPLASH_EXCEPTION);
}

static void set_up(const struct mb_splash_info *info, uint64_t cr3)
{
	uint64_t fit;
	char needs[24];

	fill_idt();
	guest.n = 1;
	guest.cr3 = cr3;
	guest.info = *info;
	guest.info.cmdline[sizeof(guest.info.cmdline) - 1] = '\0';
	guest.has_khz = guest.info.tsc_khz;
	guest.khz = guest.has_khz ? guest.info.tsc_khz : GUESSED_KHZ;
	if (guest.info.magic != MB_SPLASH_MAGIC)
		usage_error("no struct mb_splash_info at 0x%llx", MB_SPLASH_INFO);
	if (!guest.info.n_vcpus || guest.info.n_vcpus > MAX_VCPUS)
		usage_error("%u vCPUs; it can be 1 to %u", guest.info.n_vcpus, MAX_VCPUS);
	fit = (guest.info.low_ram_bytes - ((uint64_t)cpu_at(0) - CPU_SELF)) >> CPU_SHIFT;
	if (fit < guest.info.n_vcpus) {
		format_bytes(needs, sizeof(needs),
			ALIGN_UP((uint64_t)cpu_at(guest.info.n_vcpus), 0x200000ull));
		usage_error("%u vCPUs need at least %s of memory", guest.info.n_vcpus, needs);
	}
	guest.n = guest.info.n_vcpus;
	memory_init();
	guest.asked = args_parse(guest.info.cmdline);
}

void run_program(struct cpu *self, const struct program *program)
{
	if (!self->index) {
		memory_reset();
		guest.note[0] = '\0';
		guest.program = program;
		if (program->setup)
			program->setup();
	}
	/* Until here vCPU 0 may be looking at the results of the program before. */
	barrier(self);
	self->ops = self->cycles = 0;
	memset(self->tally, 0, sizeof(self->tally));
	self->rng =
		mix(guest.args.value[MB_SPLASH_ARG_SEED] + self->index * 0x9e3779b97f4a7c15ull) | 1;
	program->run(self);
	barrier(self);
	if (!self->index && program->check)
		program->check();
}

/* "12 G" and "B" are "12 GB", all else is apart: "12 G keys", "12 B". */
static const char *unit_after(const char *count)
{
	const char *unit = guest.program->unit;

	while (count[1])
		count++;
	return unit[1] == 'B' && (*count < '0' || *count > '9') ? unit + 1 : unit;
}

/*
 * What n vCPUs did, over the time of the slowest: the sum of their own rates would count a host CPU
 * that several of them take turns on as if each had it.
 */
void format_rate(char *buf, size_t size, unsigned first, unsigned n, unsigned share)
{
	uint64_t ops = 0, cycles = 0;
	char count[24];

	for (unsigned i = first; i < first + n; i++) {
		ops += cpu_at(i)->ops;
		cycles = MAX(cycles, cpu_at(i)->cycles);
	}
	ops /= share;
	if (guest.has_khz) {
		format_count(count, sizeof(count), muldiv(ops, guest.khz * 1000, cycles));
		format(buf, size, "%s%s/s", count, unit_after(count));
	} else {
		format_count(count, sizeof(count), ops ? cycles / ops : 0);
		format(buf, size, "%s cycles each, %lu%s", count, ops, guest.program->unit);
	}
}

#define MAX_LINES 16u

void report(void)
{
	bool each = guest.n <= MAX_LINES || guest.args.value[MB_SPLASH_ARG_EACH];
	uint64_t least = UINT64_MAX, most = 0;
	char rate[64], low[24], high[24];

	for (unsigned i = 0; i < guest.n; i++) {
		uint64_t r = muldiv(cpu_at(i)->ops, guest.khz * 1000, cpu_at(i)->cycles);

		least = MIN(least, r);
		most = MAX(most, r);
		if (!each)
			continue;
		format_rate(rate, sizeof(rate), i, 1, 1);
		say("splash: %s: vCPU %u (view %u): %s", guest.title, i, guest.info.vcpu_view[i],
			rate);
	}
	if (!each && guest.has_khz) {
		format_count(low, sizeof(low), least);
		format_count(high, sizeof(high), most);
		say("splash: %s: one vCPU: %s%s/s to %s%s/s", guest.title, low, unit_after(low),
			high, unit_after(high));
	}
	format_rate(rate, sizeof(rate), 0, guest.n, 1);
	say("splash: %s: all %u vCPU%s: %s%s%s", guest.title, guest.n, guest.n == 1 ? "" : "s",
		rate, guest.note[0] ? "; " : "", guest.note);
}

void progress(uint64_t passed)
{
	uint64_t ops = 0;
	char count[24];

	/* The host's scheduler now knows exactly how much CPU time this vCPU has had. */
	in8(MB_SPLASH_YIELD_PORT);
	for (unsigned i = 0; i < guest.n; i++)
		ops += __atomic_load_n(&cpu_at(i)->ops, __ATOMIC_RELAXED);
	format_count(count, sizeof(count), ops);
	say("splash: %s: after %lu ms: %s%s", guest.title, passed / guest.khz, count,
		unit_after(count));
}

void splash_main(struct cpu *self, const struct mb_splash_info *info, unsigned index, uint64_t cr3)
{
	unsigned n = 0;

	self->index = index;
	if (!index) {
		set_up(info, cr3);
		__atomic_store_n(&guest.ready, 1, __ATOMIC_RELEASE);
	} else {
		while (!__atomic_load_n(&guest.ready, __ATOMIC_ACQUIRE))
			spin(&n);
	}
	if (guest.asked == &program_demo) {
		program_demo.run(self);
	} else {
		run_program(self, guest.asked);
		if (!index)
			report();
	}
	if (index)
		park();
	say("splash: %s: ok", guest.title);
	end(MB_SPLASH_OK);
}
