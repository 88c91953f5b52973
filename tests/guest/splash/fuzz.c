/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz.h"

/* Ports, configuration space, BARs and the I/O APIC; see fuzz.h for what is spared. */
struct fuzz fuzz;

struct ports {
	uint16_t first, last;
	bool resets; /* spared unless reset=1; the others always */
};

static const struct ports spared[] = {
	{MB_SPLASH_TEXT_PORT, MB_SPLASH_TEXT_PORT, false},
	{MB_SPLASH_EXIT_PORT, MB_SPLASH_EXIT_PORT, false},
	{0xcf8, 0xcff, false}, /* fuzz_cf8 does these, with care */
	{0x64, 0x64, true},    /* i8042: pulse the reset line */
	{0x92, 0x92, true},    /* fast A20 and reset */
	{0x602, 0x602, true},  /* mirrorball/legacy.h: reset */
	/* These end the machine, and would come before the first reset. */
	{0x505, 0x505, false}, /* pvpanic */
	{0x600, 0x601, false}, /* sleep */
};

/* Where PCs and this machine have something. */
static const uint16_t known_ports[] = {0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x72,
	0x80, 0x92, 0xa0, 0xa1, 0xed, 0x2f8, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff,
	0x4d0, 0x505, 0x510, 0x600, 0x601, 0x602, 0x604, 0x605, 0xb000, 0xcd8};

#define SERIAL_DATA 0x3f8
#define STRING_MAX  64u

/* With reset=1 a vCPU resets the machine once in so many accesses; garbage alone hits it too rarely. */
#define ACCESSES_A_RESET 4096u

/* Bits 10:8 of a message's data: 0 is "fixed" (SDM vol. 3, 10.11.2). Also of an I/O APIC entry. */
#define DELIVERY_MODE  0x0000070000000700ull

#define CFG_BAR	       0x10u
#define CFG_COMMAND    0x04u
#define CFG_CAPS       0x34u
#define COMMAND_MEMORY 0x6u /* memory space, bus master */
#define CAP_VENDOR     0x09u
#define CAP_WINDOW     5u
/* Common configuration, virtio 1.2, 4.1.4.3: the addresses of a queue. */
#define QUEUE_ADDRESSES	    0x20u
#define QUEUE_ADDRESSES_END 0x38u

uint64_t fuzz_value(struct cpu *self)
{
	uint64_t r = rnd(self);

	switch (r & 7) {
	case 0:
		return 0;
	case 1:
		return UINT64_MAX;
	case 2:
		return 1ull << (r >> 8 & 63);
	case 3:
		return r >> 8 & 0xf;
	case 4:
		return ~(1ull << (r >> 8 & 63));
	default:
		return rnd(self);
	}
}

uint64_t fuzz_ring_gpa(struct cpu *self)
{
	return memory_gpa(fuzz.rings + self->index * RING_BYTES);
}

uint64_t fuzz_wild_gpa(struct cpu *self)
{
	uint64_t r = rnd(self), ram_end = MAX(guest.info.low_ram_bytes, PCI_WINDOW);

	switch (r & 7) {
	case 0:
		return ram_end +
		       (r >> 32) % (0x100000000ull - ram_end); /* the hole, devices included */
	case 1:
		return 0 - (r >> 48); /* wraps */
	case 2:
		return 0x100000000ull + guest.info.high_ram_bytes + (r >> 32 & 0xffff);
	case 3:
		return guest.info.low_ram_bytes +
		       (r >> 32) % (0x100000000ull - guest.info.low_ram_bytes);
	default:
		return rnd(self) | 1ull << 62;
	}
}

/* ---- ports ---- */

static bool port_is_spared(unsigned port, unsigned size)
{
	for (unsigned i = 0; i < sizeof(spared) / sizeof(spared[0]); i++) {
		const struct ports *p = &spared[i];

		if (port + size - 1 >= p->first && port <= p->last && !(p->resets && fuzz.reset))
			return true;
	}
	return false;
}

static void fuzz_port_string(struct cpu *self, uint16_t port, bool write)
{
	uint8_t buf[STRING_MAX];
	uint64_t n = 1 + rnd_below(self, STRING_MAX);
	void *p = buf;

	memset(buf, ' ', sizeof(buf));
	if (write)
		__asm__ volatile("rep outsb" : "+S"(p), "+c"(n) : "d"(port) : "memory");
	else
		__asm__ volatile("rep insb" : "+D"(p), "+c"(n) : "d"(port) : "memory");
}

static void fuzz_port(struct cpu *self)
{
	uint64_t r = rnd(self), v = fuzz_value(self);
	unsigned size = 1u << (r & 3) % 3;
	uint16_t port = (uint16_t)(r >> 16);
	bool write = r & 0x10;

	if (r & 0x20)
		port = known_ports[port % (sizeof(known_ports) / sizeof(known_ports[0]))];
	/* Behind the last port is a general protection fault (SDM vol. 1, 19.5.2). */
	if (port_is_spared(port, size) || port + size > 0x10000)
		return;
	/* The console is somebody's terminal: now and then an empty line. */
	if (port <= SERIAL_DATA && port + size > SERIAL_DATA && write) {
		if (r & 0x700)
			return;
		v = 0x0a0a0a0a;
	}
	self->ops++;
	if (!(r & 0xf00) && port != SERIAL_DATA)
		fuzz_port_string(self, port, write);
	else if (size == 1 && write)
		out8(port, (uint8_t)v);
	else if (size == 2 && write)
		out16(port, (uint16_t)v);
	else if (write)
		out32(port, (uint32_t)v);
	else if (size == 1)
		in8(port);
	else if (size == 2)
		in16(port);
	else
		in32(port);
}

static void fuzz_reset(struct cpu *self)
{
	self->ops++;
	if (rnd(self) & 1)
		out8(0x64, 0xfe);
	else
		out8(0x602, 1);
}

/* ---- PCI configuration space ---- */

/* What may be written at offset of a device's configuration space; offset is a multiple of size. */
static uint32_t config_filter(
	const struct fuzz_dev *dev, unsigned offset, unsigned size, uint32_t v)
{
	unsigned window = dev ? dev->window_cap : 0;

	if (size < 4)
		v &= (1u << 8 * size) - 1;
	/* A BAR over ECAM or the interrupt controllers would send other garbage there. */
	if (offset == CFG_BAR && size == 4 && v != UINT32_MAX && v >> 29 == 7)
		v &= 0x7fffffff;
	if ((offset == CFG_BAR + 3 || offset == CFG_BAR + 2) && v >> (8 * size - 3) == 7)
		v >>= 1;
	/* The access window must not open on the MSI-X table or on queue addresses. */
	if (window && offset >= window + 8u && offset < window + 12u) {
		if (size == 1 && offset == window + 8u)
			v &= 0x1f;
		else if (size == 1 && offset == window + 9u)
			v &= 0x7f;
		else if (offset == window + 8u)
			v &= ~0x8020u;
	}
	return v;
}

static void fuzz_config(struct cpu *self)
{
	uint64_t r = rnd(self);
	const struct fuzz_dev *dev = fuzz.n_devs ? &fuzz.dev[(r >> 8) % fuzz.n_devs] : NULL;
	unsigned size = 1u << (r & 3) % 3;
	unsigned offset = (unsigned)(r >> 24 & ((r & 0x10) ? 0xff : 0xfff)) & ~(size - 1);
	uint64_t gpa;

	if (!(r & 0xf0000) || !dev) {
		/* Anywhere in the bus, most of it empty. */
		dev = NULL;
		gpa = PCI_ECAM + (r >> 40 & 0xfffff & ~7ull);
		for (unsigned i = 0; i < fuzz.n_devs; i++) {
			if ((gpa & ~0x7fffull) == config_gpa(&fuzz.dev[i]))
				return;
		}
	} else {
		gpa = config_gpa(dev) + offset;
	}
	self->ops++;
	if (r & 0x20)
		mmio_write(gpa, size, config_filter(dev, offset, size, (uint32_t)fuzz_value(self)));
	else
		mmio_read(gpa, size);
}

static void fuzz_cf8(struct cpu *self)
{
	uint64_t r = rnd(self);
	const struct fuzz_dev *dev = fuzz.n_devs ? &fuzz.dev[(r >> 8) % fuzz.n_devs] : NULL;
	unsigned size = 1u << (r & 3) % 3, offset = (unsigned)(r >> 24 & 0xff) & ~(size - 1);
	uint16_t port = (uint16_t)(0xcfc + (offset & 3));
	uint32_t v;

	if (!dev)
		return;
	v = config_filter(dev, offset, size, (uint32_t)fuzz_value(self));
	lock(&fuzz.cf8_lock);
	out32(0xcf8, 0x80000000u | dev->slot << 11 | (offset & 0xfc));
	if (!(r & 0x20))
		in32(0xcfc);
	else if (size == 1)
		out8(port, (uint8_t)v);
	else if (size == 2)
		out16(port, (uint16_t)v);
	else
		out32(port, v);
	/* Whatever is there next must not reach a device. */
	out32(0xcf8, (uint32_t)r & 0x7fffffff);
	unlock(&fuzz.cf8_lock);
	self->ops += 3;
}

void fuzz_restore(const struct fuzz_dev *dev)
{
	uint64_t cfg = config_gpa(dev);

	mmio_write(cfg + CFG_COMMAND, 2, 0);
	mmio_write(cfg + CFG_BAR, 4, dev->bar);
	mmio_write(cfg + CFG_COMMAND, 2, dev->command | COMMAND_MEMORY);
}

/* ---- memory-mapped registers ---- */

void fuzz_mmio_write(struct cpu *self, uint64_t gpa, unsigned size, uint64_t v)
{
	unsigned offset = gpa & 0xffff;

	self->ops++;
	if (gpa < PCI_ECAM) {
		/* BARs are aligned to their 64 KiB, wherever they are. */
		if (offset >= 0x7ff8) {
			/* MSI-X table and behind: whole words, so that the bits are where they seem
			 * to be. */
			size = MAX(size, 4);
			gpa &= ~(uint64_t)(size - 1);
			v &= ~DELIVERY_MODE;
		} else if (offset + size > QUEUE_ADDRESSES && offset < QUEUE_ADDRESSES_END) {
			gpa &= ~3ull;
			size = 4;
			if (gpa & 4)
				v = (v & 1) ? v | 0x40000000 : 0;
			else
				v = (v & 1) ? v | 0xc0000000 : fuzz_ring_gpa(self) + (v & 0xff0);
		}
	}
	if (gpa >= IOAPIC_SELECT && gpa < IOAPIC_SELECT + 0x1000) {
		gpa &= ~3ull;
		size = 4;
		v &= ~DELIVERY_MODE;
	}
	if (gpa + size > LAPIC && gpa < LAPIC_END)
		return;
	mmio_write(gpa, size, v);
}

uint64_t fuzz_mmio_read(struct cpu *self, uint64_t gpa, unsigned size)
{
	self->ops++;
	if (gpa + size > LAPIC && gpa < LAPIC_END)
		return 0;
	return size == 8 ? *(volatile uint64_t *)gpa : mmio_read(gpa, size);
}

static void fuzz_bar(struct cpu *self)
{
	uint64_t r = rnd(self), bar;
	const struct fuzz_dev *dev = fuzz.n_devs ? &fuzz.dev[(r >> 8) % fuzz.n_devs] : NULL;
	unsigned size = 1u << (r & 3);
	unsigned offset = (unsigned)(r >> 24 & 0xffff);

	if (!dev)
		return;
	/* Where it was, or where it is now. */
	bar = r & 0x10 ? dev->bar : mmio_read(config_gpa(dev) + CFG_BAR, 4) & ~0xffffull;
	if (bar < MAX(guest.info.low_ram_bytes, PCI_WINDOW) || bar >= PCI_WINDOW_END)
		return;
	if (r & 0x40)
		offset = (offset & 0xf000) | (offset & 0x7f); /* where registers are */
	if (r & 0x80)
		offset &= ~(size - 1);
	offset = MIN(offset, 0x10000u - size);
	if (r & 0x20)
		fuzz_mmio_write(self, bar + offset, size, fuzz_value(self));
	else
		fuzz_mmio_read(self, bar + offset, size);
}

static void fuzz_ioapic(struct cpu *self)
{
	uint64_t r = rnd(self);

	if (r & 1) {
		fuzz_mmio_write(self, IOAPIC_SELECT, 4, r & 2 ? r >> 8 & 0x3f : r >> 8 & 0xff);
		fuzz_mmio_write(self, IOAPIC_DATA, 4, fuzz_value(self));
	} else if (r & 2) {
		fuzz_mmio_write(self, IOAPIC_SELECT + (r >> 8 & 0xffc), 4, fuzz_value(self));
	} else {
		fuzz_mmio_read(self, IOAPIC_SELECT + (r >> 8 & 0xff8), 1u << (r & 3));
	}
}

/* The hole between low RAM and 4 GiB: devices, and mostly nothing. */
static void fuzz_hole(struct cpu *self)
{
	uint64_t r = rnd(self), begin = guest.info.low_ram_bytes;
	unsigned size = 1u << (r & 3);
	uint64_t gpa =
		(begin + scale(rnd(self), 0x100000000ull - begin - 16)) & ~(uint64_t)(size - 1);

	if ((r & 0x20) && (gpa < PCI_ECAM || gpa >= PCI_ECAM + 0x100000))
		fuzz_mmio_write(self, gpa, size, fuzz_value(self));
	else
		fuzz_mmio_read(self, gpa, size);
}

/* ---- the program ---- */

static void find_caps(struct fuzz_dev *dev)
{
	uint64_t cfg = config_gpa(dev);
	unsigned cap = mmio_read(cfg + CFG_CAPS, 1) & 0xfc;

	for (unsigned n = 0; cap >= 0x40 && n < 48; n++, cap = mmio_read(cfg + cap + 1, 1) & 0xfc) {
		unsigned type = mmio_read(cfg + cap + 3, 1);
		uint32_t offset = mmio_read(cfg + cap + 8, 4) & 0xffff;

		if (mmio_read(cfg + cap, 1) != CAP_VENDOR)
			continue;
		if (type == 1)
			dev->common = offset;
		if (type == 2) {
			dev->notify = offset;
			dev->notify_multiplier = mmio_read(cfg + cap + 16, 4) & 0xffff;
		}
		if (type == 3)
			dev->isr = offset;
		if (type == 4)
			dev->config = offset;
		if (type == CAP_WINDOW)
			dev->window_cap = (uint8_t)cap;
	}
}

void fuzz_find_devices(void)
{
	fuzz.n_devs = 0;
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		struct fuzz_dev *dev = &fuzz.dev[fuzz.n_devs];
		uint32_t id;

		*dev = (struct fuzz_dev){.slot = slot};
		id = mmio_read(config_gpa(dev), 4);
		if ((id & 0xffff) == 0xffff)
			continue;
		dev->is_virtio = (id & 0xffff) == 0x1af4;
		dev->device_id = (uint16_t)(id >> 16);
		dev->bar = mmio_read(config_gpa(dev) + CFG_BAR, 4);
		dev->command = (uint16_t)mmio_read(config_gpa(dev) + CFG_COMMAND, 2);
		if (dev->is_virtio)
			find_caps(dev);
		fuzz.n_devs++;
	}
}

static void setup(void)
{
	uint64_t rings = guest.n * RING_BYTES, room = memory_free();

	fuzz.reset = arg_or(MB_SPLASH_ARG_RESET, 0);
	fuzz.rings = memory_take(rings, RING_BYTES);
	room = memory_free();
	fuzz.data_bytes = MIN(room / 2, 4ull << 20) & ~(PAGE_BYTES - 1);
	if (fuzz.data_bytes < 16 * PAGE_BYTES)
		usage_error("needs more memory for %u vCPUs", guest.n);
	memory_take(room - fuzz.data_bytes, 1);
	fuzz.data = memory_take(fuzz.data_bytes, 1);
	fuzz_find_devices();
	say("splash: fuzz: seed=%lu, %u vCPUs, %u PCI functions",
		guest.args.value[MB_SPLASH_ARG_SEED], guest.n, fuzz.n_devs);
}

static void run(struct cpu *self)
{
	struct timer t = timer_start(arg_or(MB_SPLASH_ARG_MS, 300));

	do {
		uint64_t r = rnd(self);
		unsigned dice = (unsigned)(r >> 56);

		if (fuzz.reset && !rnd_below(self, ACCESSES_A_RESET))
			fuzz_reset(self);
		if (dice < 80)
			fuzz_port(self);
		else if (dice < 112)
			fuzz_config(self);
		else if (dice < 136)
			fuzz_cf8(self);
		else if (dice < 200)
			fuzz_bar(self);
		else if (dice < 216)
			fuzz_ioapic(self);
		else if (dice < 232)
			fuzz_hole(self);
		else if (dice < 236 && fuzz.n_devs)
			fuzz_restore(&fuzz.dev[(r & 0xffff) % fuzz.n_devs]);
		else if (dice < 240 && fuzz.n_devs &&
			 fuzz.dev[(r & 0xffff) % fuzz.n_devs].is_virtio)
			fuzz_virtio(self, &fuzz.dev[(r & 0xffff) % fuzz.n_devs]);
	} while (!timer_over(&t));
	self->cycles = timer_cycles(&t);
}

static void check(void)
{
	unsigned n_virtio = 0;

	for (unsigned i = 0; i < fuzz.n_devs; i++) {
		if (!fuzz.dev[i].bar)
			continue;
		fuzz_restore(&fuzz.dev[i]);
		if (!fuzz.dev[i].is_virtio)
			continue;
		n_virtio++;
		fuzz_virtio_check(&fuzz.dev[i]);
	}
	format(guest.note, sizeof(guest.note), "%u virtio devices still answer", n_virtio);
}

const struct program program_fuzz = {
	PROGRAM_HEAD(fuzz), .unit = " accesses", .setup = setup, .run = run, .check = check};
