// SPDX-License-Identifier: Apache-2.0
#include "commons_server_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Pieces: their files, who has them, and which go first. */

#define NAME "mirrorball-commons" /* seen in /proc/PID/maps, of machines as well (footprint.c) */

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

/* ---- the file ---- */

static int create_file(const struct mb_commons_identity *identity)
{
	char name[64];
	int fd, rc;

	/* So that a mapping tells of which base it is, and whether this daemon knows of it. */
	snprintf(name, sizeof(name), NAME "-%d:%" PRIx64 ":%" PRIx64, (int)getpid(), identity->dev,
		identity->ino);
	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	/* Before Linux 6.3. */
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	/* Of another user's: who opens it again gets no more than he has. */
	if (ftruncate(fd, MB_COMMONS_FILE_BYTES) || fchmod(fd, 0444)) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

/*
 * Mapped first, sealed afterwards: from then on this mapping is the only way to write to it, for
 * everybody and for good.
 */
static int map_and_seal(struct piece *piece, unsigned node_id)
{
	void *map =
		mmap(NULL, MB_COMMONS_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, piece->fd, 0);

	if (map == MAP_FAILED)
		return -errno;
	piece->map = map;
	piece->state = (void *)(piece->map + MB_COMMONS_PIECE_BYTES);
	/* Preferred, not bound: to be killed because a node is full would be worse than a page
	 * elsewhere. A kernel without NUMA says no. */
	mb_numa_prefer_node(map, MB_COMMONS_FILE_BYTES, node_id);
	/* Base images may hold what is nobody's business, and a core file of it all is large. */
	madvise(map, MB_COMMONS_FILE_BYTES, MADV_DONTDUMP);
	if (MB_COMMONS_WRONG != WRONG_UNSEALED && fcntl(piece->fd, F_ADD_SEALS, MB_COMMONS_SEALS))
		return -errno;
	/* Where memory is short that is to be told now, and not by a signal. */
	return fallocate(piece->fd, 0, MB_COMMONS_PIECE_BYTES, MB_COMMONS_PAGE_BYTES) ? -errno : 0;
}

int mb_commons_piece_open(const struct piece *piece)
{
	char path[64];
	int fd;

	/* Not ours: it may write, and its offset and flags would be everybody's. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", piece->fd);
	fd = open(path, (MB_COMMONS_WRONG == WRONG_WRITABLE ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

void mb_commons_piece_measure(struct piece *piece)
{
	struct mb_commons_server *server = piece->base->server;
	struct stat st;

	/* More than what is present: clients that touch holes take memory, too. */
	if (fstat(piece->fd, &st))
		return;
	server->held_bytes += (uint64_t)st.st_blocks * 512 - piece->bytes;
	piece->bytes = (uint64_t)st.st_blocks * 512;
}

unsigned mb_commons_count(const struct mb_commons_state *state, unsigned first, unsigned n)
{
	unsigned count = 0;

	for (unsigned i = first; i < first + n; i++)
		count += mb_commons_has(state, i);
	return count;
}

bool mb_commons_has(const struct mb_commons_state *state, unsigned page)
{
	return __atomic_load_n(&state->present[page / 64], __ATOMIC_ACQUIRE) >> page % 64 & 1;
}

/* ---- finding them ---- */

static struct piece **bucket(const struct base *base, uint64_t index, unsigned node)
{
	uint64_t key = (uintptr_t)base / 64 * 31 + index * MB_MAX_NODES + node;

	return &base->server->hash[(key * 0x9e3779b97f4a7c15ull >> 32) % HASH_SIZE];
}

struct piece *mb_commons_piece_find(const struct base *base, uint64_t index, unsigned node)
{
	struct piece *piece = *bucket(base, index, node);

	while (piece && (piece->base != base || piece->index != index || piece->node != node))
		piece = piece->next_hash;
	return piece;
}

static void free_piece(struct piece *piece)
{
	if (piece->map)
		munmap(piece->map, MB_COMMONS_FILE_BYTES);
	if (piece->fd >= 0)
		close(piece->fd);
	free(piece);
}

static int try_create(struct base *base, uint64_t index, unsigned node, struct piece **out)
{
	struct mb_commons_server *server = base->server;
	struct piece *piece = calloc(1, sizeof(*piece)), **at;
	int rc;

	if (!piece)
		return -ENOMEM;
	piece->base = base;
	piece->index = index;
	piece->node = node;
	LIST_INIT(&piece->refs);
	piece->fd = create_file(&base->identity);
	rc = piece->fd < 0 ? piece->fd : map_and_seal(piece, server->topology.node[node].id);
	if (rc) {
		free_piece(piece);
		return rc;
	}
	at = bucket(base, index, node);
	piece->next_hash = *at;
	*at = piece;
	TAILQ_INSERT_TAIL(&base->pieces, piece, of_base);
	TAILQ_INSERT_TAIL(&server->unused, piece, unused);
	base->n_pieces++;
	server->n_pieces++;
	mb_commons_piece_measure(piece);
	*out = piece;
	return 0;
}

int mb_commons_piece_create(struct base *base, uint64_t index, unsigned node, struct piece **out)
{
	struct mb_commons_server *server = base->server;
	int rc = server->n_pieces < MB_COMMONS_MAX_PIECES ? try_create(base, index, node, out)
							  : -ENOSPC;

	/* Out of descriptors, mappings or memory: what nobody uses gives one back. */
	for (unsigned i = 0; i < 2 && rc && mb_commons_evict(server, -1, 1); i++)
		rc = try_create(base, index, node, out);
	return rc;
}

/* Not used by anybody. Its base is to be checked. */
void mb_commons_piece_drop(struct piece *piece)
{
	struct base *base = piece->base;
	struct mb_commons_server *server = base->server;
	struct piece **at = bucket(base, piece->index, piece->node);

	while (*at != piece)
		at = &(*at)->next_hash;
	*at = piece->next_hash;
	mb_commons_group_dropped(piece);
	TAILQ_REMOVE(&base->pieces, piece, of_base);
	TAILQ_REMOVE(&server->unused, piece, unused);
	base->n_pieces--;
	server->n_pieces--;
	server->held_bytes -= piece->bytes;
	free_piece(piece);
}

/* ---- who has them ---- */

static void use(struct piece *piece)
{
	if (!piece->n_refs && !piece->n_pins)
		TAILQ_REMOVE(&piece->base->server->unused, piece, unused);
}

/* The piece and its base may be gone afterwards. */
static void unuse(struct piece *piece)
{
	struct base *base = piece->base;

	if (piece->n_refs || piece->n_pins)
		return;
	TAILQ_INSERT_TAIL(&base->server->unused, piece, unused);
	if (base->stale) {
		mb_commons_piece_drop(piece);
		mb_commons_base_check(base);
	}
}

void mb_commons_piece_pin(struct piece *piece)
{
	use(piece);
	piece->n_pins++;
}

void mb_commons_piece_unpin(struct piece *piece)
{
	piece->n_pins--;
	unuse(piece);
}

struct ref *mb_commons_ref_find(struct client *client, struct piece *piece)
{
	struct ref *ref;

	LIST_FOREACH(ref, &piece->refs, of_piece)
	if (ref->client == client)
		return ref;
	return NULL;
}

int mb_commons_ref_get(struct client *client, struct piece *piece)
{
	struct ref *ref = mb_commons_ref_find(client, piece);

	if (ref)
		return 0;
	if (client->n_refs == MB_COMMONS_CLIENT_PIECES)
		return -EMFILE;
	ref = calloc(1, sizeof(*ref));
	if (!ref)
		return -ENOMEM;
	use(piece);
	ref->client = client;
	ref->piece = piece;
	LIST_INSERT_HEAD(&client->refs, ref, of_client);
	LIST_INSERT_HEAD(&piece->refs, ref, of_piece);
	client->n_refs++;
	piece->n_refs++;
	client->server->n_refs++;
	return 0;
}

void mb_commons_ref_drop(struct ref *ref)
{
	struct piece *piece = ref->piece;

	LIST_REMOVE(ref, of_client);
	LIST_REMOVE(ref, of_piece);
	ref->client->n_refs--;
	ref->client->server->n_refs--;
	piece->n_refs--;
	free(ref);
	unuse(piece);
}

/* ---- which go first ---- */

uint64_t mb_commons_evict(struct mb_commons_server *server, int node, uint64_t bytes)
{
	struct piece *piece, *next;
	uint64_t freed = 0;

	for (piece = TAILQ_FIRST(&server->unused); piece && freed < bytes; piece = next) {
		struct base *base = piece->base;

		next = TAILQ_NEXT(piece, unused);
		if (node >= 0 && piece->node != (unsigned)node)
			continue;
		mb_commons_piece_measure(piece);
		freed += piece->bytes;
		mb_commons_piece_drop(piece);
		mb_commons_base_check(base);
	}
	server->evicted_bytes += freed;
	return freed;
}
