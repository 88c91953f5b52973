/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * What another monitor's PVH start (pvh.S) leaves to do: memory and processors are found, the latter
 * started one by one, and what Mirrorball tells a guest is written. In ring 0, on the first
 * processor, before anything else.
 */
#define START_MAGIC  0x336ec578u
#define MEMMAP_RAM   1u
#define LOW_BASE     0x100000ull
#define HIGH_BASE    0x100000000ull
#define LAPIC_ID     0xfee00020ull
#define LAPIC_ICR_LO 0xfee00300ull /* SDM vol. 3, 11.6.1 */
#define LAPIC_ICR_HI 0xfee00310ull
#define ICR_INIT     0x4500u
#define ICR_SIPI     (0x4600u | TRAMPOLINE >> 12)
#define MAX_XAPIC    255u
#define INIT_CYCLES  20000000ull  /* about 10 ms */
#define SIPI_CYCLES  200000000ull /* about 100 ms: it has come, or is sent again */

struct start_info { /* Xen, public/arch-x86/hvm/start_info.h */
	uint32_t magic, version, flags, n_modules;
	uint64_t modules, cmdline, rsdp;
	uint64_t memmap; /* from version 1 */
	uint32_t n_memmap, reserved;
};

struct memmap_entry {
	uint64_t gpa, bytes;
	uint32_t type, reserved;
};

struct rsdp { /* ACPI 6.5, 5.2.5.3 */
	char signature[8];
	uint8_t checksum;
	char oem[6];
	uint8_t revision;
	uint32_t rsdt;
	uint32_t length;
	uint64_t xsdt;
} __attribute__((packed));

struct table { /* 5.2.6 */
	uint32_t signature;
	uint32_t length;
	char rest[28];
} __attribute__((packed));

#define MADT	     0x43495041u /* "APIC" */
#define MADT_HEADER  44u
#define MADT_LAPIC   0u
#define MADT_ENABLED 1u

extern const char trampoline[], trampoline_end[];
extern volatile uint32_t pvh_next_index, pvh_arrived;
volatile uint32_t pvh_next_index, pvh_arrived;
bool pvh_started;

void pvh_main(const struct start_info *start);

static void find_memory(const struct start_info *start, struct mb_splash_info *info)
{
	const struct memmap_entry *entry = (const struct memmap_entry *)start->memmap;

	for (uint32_t i = 0; i < start->n_memmap; i++) {
		uint64_t end = entry[i].gpa + entry[i].bytes;

		if (entry[i].type != MEMMAP_RAM)
			continue;
		if (entry[i].gpa <= LOW_BASE && end > LOW_BASE)
			info->low_ram_bytes = end & ~(PAGE_BYTES - 1);
		else if (entry[i].gpa == HIGH_BASE)
			info->high_ram_bytes = entry[i].bytes;
	}
}

static const struct table *find_madt(uint64_t at)
{
	const struct rsdp *rsdp = (const struct rsdp *)at;
	const struct table *root;
	unsigned size;

	if (!rsdp)
		return NULL;
	size = rsdp->revision >= 2 && rsdp->xsdt ? 8 : 4;
	root = (const struct table *)(size == 8 ? rsdp->xsdt : rsdp->rsdt);
	for (uint32_t o = 36; o + size <= root->length; o += size) {
		const struct table *table;
		uint64_t gpa = 0;

		memcpy(&gpa, (const char *)root + o, size);
		table = (const struct table *)gpa;
		if (table->signature == MADT)
			return table;
	}
	return NULL;
}

static void write32(uint64_t gpa, uint32_t value)
{
	*(volatile uint32_t *)gpa = value;
}

static bool wait_for(uint32_t index, uint64_t cycles)
{
	uint64_t begin = rdtsc();

	while (pvh_arrived != index && rdtsc() - begin < cycles)
		__asm__ volatile("pause");
	return pvh_arrived == index;
}

/* SDM vol. 3, 9.4.4.1: INIT, 10 ms, SIPI, and a second one if need be. */
static void start_processor(uint32_t apic_id, uint32_t index)
{
	pvh_next_index = index;
	write32(LAPIC_ICR_HI, apic_id << 24);
	write32(LAPIC_ICR_LO, ICR_INIT);
	wait_for(index, INIT_CYCLES);
	do {
		write32(LAPIC_ICR_HI, apic_id << 24);
		write32(LAPIC_ICR_LO, ICR_SIPI);
	} while (!wait_for(index, SIPI_CYCLES));
}

/* The ids of all processors but this one. */
static unsigned find_processors(const struct table *madt, uint8_t *id)
{
	uint32_t own = *(volatile uint32_t *)LAPIC_ID >> 24;
	const uint8_t *p = (const uint8_t *)madt;
	unsigned n = 0;

	for (uint32_t o = MADT_HEADER; madt && o + 8 <= madt->length && p[o + 1]; o += p[o + 1])
		if (p[o] == MADT_LAPIC && p[o + 4] & MADT_ENABLED && p[o + 3] != own && n < MAX_XAPIC)
			id[n++] = p[o + 3];
	return n;
}

void pvh_main(const struct start_info *start)
{
	struct mb_splash_info *info = (struct mb_splash_info *)MB_SPLASH_INFO;
	const char *cmdline = (const char *)start->cmdline;
	uint8_t id[MAX_XAPIC];
	unsigned n;

	pvh_started = true;
	memset(info, 0, sizeof(*info));
	if (start->magic != START_MAGIC || !start->version)
		return; /* splash_main says that there is no struct mb_splash_info */
	find_memory(start, info);
	for (unsigned i = 0; cmdline && cmdline[i] && i < sizeof(info->cmdline) - 1; i++)
		info->cmdline[i] = cmdline[i];
	n = find_processors(find_madt(start->rsdp), id);
	info->n_vcpus = n + 1;
	info->magic = MB_SPLASH_MAGIC;
	memcpy((void *)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
	for (unsigned i = 0; i < n; i++)
		start_processor(id[i], i + 1);
}
