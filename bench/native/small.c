// SPDX-License-Identifier: Apache-2.0
/*
 * What it costs that memory is mapped in small pages: a chain of loads, one cache line of each
 * 4 KiB page in random order, in a file in memory that is mapped huge and one that is not, by
 * turns. Lines "MIB HUGE_NS SMALL_NS": a load.
 */
#include <mirrorball/clock.h>
#include <mirrorball/ram_file.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE  4096u
#define LINE  64u
#define LOADS 2000000u
#define TURNS 5u
#define FIRST 8u /* MiB */
#define LAST  512u

static uint32_t mix(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* A ring through all pages: each of them knows the next one. The same in both. */
static void chain(char *base, uint32_t n)
{
	uint32_t *order = malloc(n * sizeof(*order)), state = 2463534242u;

	if (!order)
		abort();
	for (uint32_t i = 0; i < n; i++)
		order[i] = i;
	for (uint32_t i = n - 1; i > 0; i--) {
		uint32_t j = mix(&state) % (i + 1), kept = order[i];

		order[i] = order[j];
		order[j] = kept;
	}
	for (uint32_t i = 0; i < n; i++) {
		char *from = base + (uint64_t)order[i] * PAGE + order[i] % (PAGE / LINE) * LINE;
		uint32_t to = order[(i + 1) % n];

		*(char **)from = base + (uint64_t)to * PAGE + to % (PAGE / LINE) * LINE;
	}
	free(order);
}

static double load_ns(char *base)
{
	char **at = (char **)base; /* page 0 is in the ring by its first line */
	uint64_t begin_ns;

	for (unsigned i = 0; i < LOADS / 4; i++)
		at = (char **)*at;
	begin_ns = mb_now_ns();
	for (unsigned i = 0; i < LOADS; i++)
		at = (char **)*at;
	begin_ns = mb_now_ns() - begin_ns;
	return at ? (double)begin_ns / LOADS : 0;
}

static char *map(uint64_t bytes, bool huge)
{
	struct mb_ram_mapping mapping;
	int fd = mb_ram_file_open(bytes);

	if (fd < 0 || mb_ram_file_map(fd, bytes, &mapping))
		return NULL;
	close(fd);
	madvise(mapping.base, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return mapping.base;
}

int main(void)
{
	for (uint64_t mib = FIRST; mib <= LAST; mib *= 2) {
		char *base[2];

		for (unsigned huge = 0; huge < 2; huge++) {
			base[huge] = map(mib << 20, huge);
			if (!base[huge])
				return 1;
			chain(base[huge], (uint32_t)((mib << 20) / PAGE));
		}
		for (unsigned i = 0; i < TURNS; i++) {
			double huge_ns = load_ns(base[1]), small_ns = load_ns(base[0]);

			printf("%llu %.2f %.2f\n", (unsigned long long)mib, huge_ns, small_ns);
		}
		for (unsigned huge = 0; huge < 2; huge++)
			munmap(base[huge], mib << 20);
	}
	return 0;
}
