// SPDX-License-Identifier: Apache-2.0
#include "commons_server_impl.h"
#include <mirrorball/cgroup.h>
#include <mirrorball/clock.h>
#include <stdio.h>
#include <string.h>

/* When memory is short, and what goes then. */

#define HOST_SHARE    16u /* of memory is to be available */
#define NODE_SHARE    32u
#define CGROUP_BYTES  (64ull << 20)
#define STALLED	      10.0 /* percent of the last 10 s in which somebody waited for memory */
#define STALLED_SHARE 8u   /* of what is held goes each second then */
#define UNUSED_NS     60000000000ull
#define NOTE_NS	      3600000000000ull

static uint64_t read_meminfo(const char *root, const char *key)
{
	char path[PATH_MAX], line[128], format[64];
	unsigned long long kib = 0;
	FILE *file;

	snprintf(path, sizeof(path), "%s/proc/meminfo", root ? root : "");
	snprintf(format, sizeof(format), "%s: %%llu kB", key);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, format, &kib) == 1)
			break;
	if (file)
		fclose(file);
	return kib << 10;
}

uint64_t mb_commons_total_memory(const char *root)
{
	return read_meminfo(root, "MemTotal");
}

/* Documentation/accounting/psi.rst. No trigger: what is looked at each second needs none, and who
 * may have one depends on the kernel. */
static double stalled(const char *root)
{
	char path[PATH_MAX];
	double percent = 0;
	FILE *file;

	snprintf(path, sizeof(path), "%s/proc/pressure/memory", root ? root : "");
	file = fopen(path, "re");
	if (file && fscanf(file, "some avg10=%lf", &percent) != 1)
		percent = 0;
	if (file)
		fclose(file);
	return percent;
}

uint64_t mb_commons_shortage(const char *root, uint64_t held_bytes)
{
	uint64_t total = mb_commons_total_memory(root),
		 available = read_meminfo(root, "MemAvailable"), left = mb_cgroup_memory_left(root),
		 shortage = 0;

	if (total && available < total / HOST_SHARE)
		shortage = total / HOST_SHARE - available;
	if (left < CGROUP_BYTES && CGROUP_BYTES - left > shortage)
		shortage = CGROUP_BYTES - left;
	if (stalled(root) >= STALLED && held_bytes / STALLED_SHARE > shortage)
		shortage = held_bytes / STALLED_SHARE;
	return shortage;
}

static void relieve_nodes(struct mb_commons_server *server)
{
	server->node_short = 0;
	for (unsigned i = 0; i < server->topology.n_nodes && !server->config.root; i++) {
		const struct mb_node *node = &server->topology.node[i];
		uint64_t wanted = node->mem_total_bytes / NODE_SHARE, available;

		if (mb_numa_available(node->id, &available) || available >= wanted)
			continue;
		server->node_short |= 1ull << i;
		mb_commons_evict(server, (int)i, wanted - available);
	}
}

void mb_commons_relieve(struct mb_commons_server *server)
{
	uint64_t shortage, now_ns = mb_now_ns(),
			   note_ns = server->config.note_ns ? server->config.note_ns : NOTE_NS;
	struct piece *piece;
	struct base *base;

	server->unwatched_bytes = 0;
	/* A base without a client keeps a file system from being unmounted, and a removed file's
	 * room. */
	if (now_ns > UNUSED_NS)
		mb_commons_bases_expire(server, now_ns - UNUSED_NS);
	if (now_ns > note_ns)
		mb_commons_groups_expire(server, now_ns - note_ns);
	TAILQ_FOREACH(base, &server->bases, all)
	TAILQ_FOREACH(piece, &base->pieces, of_base) mb_commons_piece_measure(piece);
	if (server->held_bytes > server->config.max_bytes)
		mb_commons_evict(server, -1, server->held_bytes - server->config.max_bytes);
	shortage = mb_commons_shortage(server->config.root, server->held_bytes);
	server->short_of_memory = shortage > 0;
	if (shortage)
		mb_commons_evict(server, -1, shortage);
	relieve_nodes(server);
}
