// SPDX-License-Identifier: Apache-2.0
/*
 * What the first write to a page costs that is shared with other machines, as the writer sees it,
 * and beside it a kernel's copy-on-write fault: of a private mapping of a file that is in memory.
 * Lines "WHAT MICROSECONDS"; pages in random order, and what is measured in turns.
 */
#include "merging.h"

#define REST_NS 50000u

static uint32_t *order;

/* Page by page something else, and what it is in guest memory as well. */
static void fill(char *at)
{
	for (uint64_t i = 0; i < bytes; i += 8)
		*(uint64_t *)(at + i) = i * 0x9e3779b97f4a7c15ull;
}

static void shuffle(void)
{
	for (uint32_t i = 0; i < bytes / PAGE; i++) {
		uint32_t k = (uint32_t)(random() % (i + 1));

		order[i] = order[k];
		order[k] = i;
	}
}

/* What is done after a writer was woken is not the next one's. */
static void rest(void)
{
	uint64_t end_ns = mb_now_ns() + REST_NS;

	while (mb_now_ns() < end_ns)
		;
}

/* A vCPU's write, to pages that it has read before. */
static void write_all(const char *what, char *base)
{
	for (uint64_t i = 0; i < bytes; i += PAGE)
		*(volatile char *)(base + i);
	shuffle();
	for (uint64_t i = 0; i < bytes / PAGE; i++) {
		volatile char *at = base + order[i] * PAGE;
		uint64_t begin_ns;

		rest();
		begin_ns = mb_now_ns();
		*at += 1;
		printf("%s %.3f\n", what, (double)(mb_now_ns() - begin_ns) / 1e3);
	}
}

static void kernel(void)
{
	char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, common_fd, 0);

	if (map == MAP_FAILED)
		fail("mmap");
	write_all("kernel", map);
	munmap(map, bytes);
}

/* The library's whole way: merges, waits for writes, collapses. */
static void ours(unsigned n_views)
{
	struct mb_replicas_config config = {
		.name = "bench", .n_views = n_views, .backoff_ns = 1};
	struct mb_replicas_source source[MAX_VIEWS];
	struct guest guest;
	struct mb_merged done = {0};
	struct mb_replicas *replicas;
	struct mb_error err;
	char what[16];

	map_guest(&guest, &config);
	for (unsigned v = 0; v < n_views; v++)
		source[v] = (struct mb_replicas_source){.fd = common_fd};
	fill(guest.own.base);
	if (mb_replicas_create(&config, &replicas, &err))
		fail(err.text);
	if (mb_replicas_merge(replicas, 0, bytes, source, &done))
		fail("merge");
	check_merged(done.merged_bytes, bytes);
	snprintf(what, sizeof(what), "views-%u", n_views);
	write_all(what, guest.view[n_views - 1].base);
	mb_replicas_destroy(replicas);
	unmap_guest(&guest, &config);
}

int main(int argc, char **argv)
{
	unsigned long turns = argc > 2 ? strtoul(argv[2], NULL, 0) : 8;

	bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 8) << 20;
	order = calloc(bytes / PAGE, sizeof(*order));
	if (!bytes || bytes % BLOCK || !order)
		return 1;
	make_common(fill);
	while (turns--) {
		kernel();
		ours(1);
		ours(2);
	}
	return 0;
}
