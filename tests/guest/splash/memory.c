/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

/*
 * The memory of the programs: one run of virtual addresses over all RAM that is free.
 *
 * Without RAM above 4 GiB it is the identity-mapped heap itself. With it, low RAM from the next 2
 * MiB boundary and high RAM are mapped side by side at ARENA, in 2 MiB pages, as far as a program
 * takes it: the page tables come from the heap in front of that boundary, which is moved up to
 * leave room for them.
 */
#define ARENA 0x10000000000ull /* 1 TiB: a top-level entry that the monitor's tables leave empty   \
				*/
#define HUGE_BYTES  0x200000ull
#define HIGH_BASE   0x100000000ull
#define PTE_TABLE   0x7ull  /* present, writable, user */
#define PTE_HUGE    0x87ull /* the same, a page itself (SDM vol. 3, 4.5) */
#define PTE_ADDRESS 0x000ffffffffff000ull

struct arena {
	uint64_t base; /* virtual */
	uint64_t bytes;
	uint64_t taken;
	uint64_t mapped;    /* of it, in the page tables */
	uint64_t low_gpa;   /* where its first part is */
	uint64_t low_bytes; /* and how long; the rest is at 4 GiB */
	uint64_t table_gpa; /* next page for a page table */
	uint64_t table_end;
};

static struct arena arena;

static uint64_t gpa_at(uint64_t offset)
{
	return offset < arena.low_bytes ? arena.low_gpa + offset
					: HIGH_BASE + (offset - arena.low_bytes);
}

void memory_init(void)
{
	uint64_t low = guest.info.low_ram_bytes, high = guest.info.high_ram_bytes;
	uint64_t heap = ALIGN_UP((uint64_t)cpu_at(guest.n) - CPU_SELF, PAGE_BYTES);
	uint64_t tables;

	arena = (struct arena){.base = heap, .low_gpa = heap, .bytes = low - heap};
	arena.low_bytes = arena.mapped = arena.bytes;
	if (!high)
		return;
	/* A page directory for each GiB and a pointer table for each 512 GiB, and some for the
	 * ends. */
	tables = ((low + high) >> 30) + ((low + high) >> 39) + 8;
	arena.table_gpa = heap;
	arena.table_end = heap + tables * PAGE_BYTES;
	arena.base = ARENA;
	arena.low_gpa = ALIGN_UP(arena.table_end, HUGE_BYTES);
	if (arena.low_gpa > low)
		arena.low_gpa = low;
	arena.low_bytes = (low - arena.low_gpa) & ~(HUGE_BYTES - 1);
	arena.bytes = arena.low_bytes + (high & ~(HUGE_BYTES - 1));
	arena.mapped = 0;
}

/* The next level's table behind entry e, made if there is none. Page tables are identity-mapped. */
static uint64_t *table_behind(uint64_t *e)
{
	if (!*e) {
		if (arena.table_gpa == arena.table_end)
			fail("out of page tables");
		memset((void *)arena.table_gpa, 0, PAGE_BYTES);
		*e = arena.table_gpa | PTE_TABLE;
		arena.table_gpa += PAGE_BYTES;
	}
	return (uint64_t *)(*e & PTE_ADDRESS);
}

/* Not-present entries become present: no translation is cached that would have to go. */
static void map_up_to(uint64_t end_offset)
{
	while (arena.mapped < end_offset) {
		uint64_t va = arena.base + arena.mapped;
		uint64_t *table = (uint64_t *)(guest.cr3 & PTE_ADDRESS);

		table = table_behind(&table[va >> 39 & 511]);
		table = table_behind(&table[va >> 30 & 511]);
		table[va >> 21 & 511] = gpa_at(arena.mapped) | PTE_HUGE;
		arena.mapped += HUGE_BYTES;
	}
}

uint64_t memory_free(void)
{
	uint64_t start = ALIGN_UP(arena.base + arena.taken, PAGE_BYTES) - arena.base;

	return start < arena.bytes ? arena.bytes - start : 0;
}

void *memory_take(uint64_t bytes, uint64_t align)
{
	uint64_t start = ALIGN_UP(arena.base + arena.taken, align) - arena.base;
	char want[24], have[24];

	if (start > arena.bytes || bytes > arena.bytes - start) {
		format_bytes(want, sizeof(want), bytes);
		format_bytes(have, sizeof(have), memory_free());
		usage_error("needs %s of memory where %s are free; give the machine more, or fewer "
			    "vCPUs",
			want, have);
	}
	arena.taken = start + bytes;
	map_up_to(arena.taken);
	return (void *)(arena.base + start);
}

void memory_reset(void)
{
	arena.taken = 0;
}

uint64_t memory_gpa(const void *p)
{
	uint64_t va = (uint64_t)p;

	return va - arena.base < arena.bytes ? gpa_at(va - arena.base) : va;
}
