// SPDX-License-Identifier: Apache-2.0
#include "commons_server_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/clock.h>
#include <mirrorball/content_hash.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Groups: pages that their members have in common, found by hash.
 *
 *   offered by one      a note, of that client
 *   offered by another  the page is wanted
 *   given               a page in a piece, on the node where it was given; others get a copy of it
 *                       when somebody there wants it
 *
 * The pieces of a group are those of a base that is no file: references, room and the order of
 * eviction are theirs. A place is never used twice; when its piece is gone from all nodes, so is
 * what is known of it.
 */

#define BUCKETS	      (1u << 15)
#define CONTENT_SHARE 2u /* of all room, for all groups: the rest is for bases */

struct note {
	LIST_ENTRY(note) of_bucket;
	TAILQ_ENTRY(note) of_client;
	struct base *base;
	struct mb_content_hash hash;
	struct client *client; /* whose it is; NULL: there is a page */
	uint64_t ns;	       /* offered last */
	uint64_t place;	       /* of the page, in bytes */
};

/* One piece's places, on whatever nodes it is. */
struct shelf {
	LIST_ENTRY(shelf) all;
	uint64_t index;
	unsigned n;
	struct note *note[MB_COMMONS_PIECE_PAGES];
};

struct group {
	uid_t uid;
	char name[MB_COMMONS_NAME_BYTES];
	struct mb_content_key key;
	struct mb_content_key secret; /* no client knows which hashes are in one bucket */
	LIST_HEAD(bucket, note) bucket[BUCKETS];
	LIST_HEAD(, shelf) shelves; /* the first is filled, unless it is full */
	uint64_t next_index;
};

const char *mb_commons_group_name(const struct group *group)
{
	return group->name;
}

/* ---- notes ---- */

/* Hashes that are offered are what clients like them to be: all of them may have one word. */
static struct bucket *bucket_of(const struct base *base, const struct mb_content_hash *hash)
{
	return &base->group->bucket[mb_content_mix(&base->group->secret, hash) % BUCKETS];
}

static struct note *find(const struct base *base, const struct mb_content_hash *hash)
{
	struct note *note;

	LIST_FOREACH(note, bucket_of(base, hash), of_bucket)
	if (!memcmp(&note->hash, hash, sizeof(*hash)))
		return note;
	return NULL;
}

unsigned mb_commons_group_longest(const struct group *group)
{
	const struct note *note;
	unsigned longest = 0;

	for (unsigned i = 0; i < BUCKETS; i++) {
		unsigned n = 0;

		LIST_FOREACH(note, &group->bucket[i], of_bucket)
		n++;
		longest = n > longest ? n : longest;
	}
	return longest;
}

/* The client has nothing to do with it any more. */
static void disown(struct note *note)
{
	TAILQ_REMOVE(&note->client->notes, note, of_client);
	note->client->n_notes--;
	note->client->server->n_notes--;
	note->client = NULL;
}

static void forget(struct note *note)
{
	LIST_REMOVE(note, of_bucket);
	if (note->client)
		disown(note);
	free(note);
}

static struct client *who_has_most(const struct mb_commons_server *server)
{
	struct client *client, *most = LIST_FIRST(&server->clients);

	LIST_FOREACH(client, &server->clients, all)
	most = client->n_notes > most->n_notes ? client : most;
	return most;
}

static void add_note(struct client *client, struct base *base, const struct mb_content_hash *hash)
{
	struct mb_commons_server *server = client->server;
	struct note *note;

	/* Who offers much keeps nobody else from offering. */
	if (client->n_notes == MB_COMMONS_CLIENT_NOTES)
		forget(TAILQ_FIRST(&client->notes));
	else if (server->n_notes == MB_COMMONS_MAX_NOTES)
		forget(TAILQ_FIRST(&who_has_most(server)->notes));
	note = calloc(1, sizeof(*note));
	if (!note)
		return;
	*note = (struct note){.base = base, .hash = *hash, .client = client, .ns = mb_now_ns()};
	LIST_INSERT_HEAD(bucket_of(base, hash), note, of_bucket);
	TAILQ_INSERT_TAIL(&client->notes, note, of_client);
	client->n_notes++;
	server->n_notes++;
}

static void renew(struct note *note)
{
	note->ns = mb_now_ns();
	TAILQ_REMOVE(&note->client->notes, note, of_client);
	TAILQ_INSERT_TAIL(&note->client->notes, note, of_client);
}

void mb_commons_group_leave(struct client *client, const struct base *base)
{
	struct note *note, *next;

	for (note = TAILQ_FIRST(&client->notes); note; note = next) {
		next = TAILQ_NEXT(note, of_client);
		if (!base || note->base == base)
			forget(note);
	}
}

void mb_commons_groups_expire(struct mb_commons_server *server, uint64_t before_ns)
{
	struct client *client;
	struct note *note;

	LIST_FOREACH(client, &server->clients, all)
	while ((note = TAILQ_FIRST(&client->notes)) && note->ns < before_ns)
		forget(note);
}

/* ---- groups ---- */

static struct base *find_group(const struct client *client, const char *name)
{
	struct base *base;

	TAILQ_FOREACH(base, &client->server->bases, all)
	if (base->group && !strcmp(base->group->name, name) &&
		(base->group->uid == client->uid || MB_COMMONS_WRONG == WRONG_ONE_GROUP))
		return base;
	return NULL;
}

static int create_group(struct client *client, const char *name, struct base **out)
{
	struct mb_commons_server *server = client->server;
	struct group *group;
	struct base *base;
	int rc;

	if (server->n_bases == MB_COMMONS_MAX_BASES)
		mb_commons_bases_expire(server, UINT64_MAX);
	if (server->n_bases == MB_COMMONS_MAX_BASES)
		return -ENOSPC;
	base = calloc(1, sizeof(*base));
	group = calloc(1, sizeof(*group));
	rc = base && group ? mb_content_key_make(&group->key) : -ENOMEM;
	if (!rc)
		rc = mb_content_key_make(&group->secret);
	if (rc) {
		free(group);
		free(base);
		return rc;
	}
	group->uid = client->uid;
	memcpy(group->name, name, sizeof(group->name));
	LIST_INIT(&group->shelves);
	base->server = server;
	base->group = group;
	base->fd = -1;
	TAILQ_INIT(&base->pieces);
	TAILQ_INSERT_TAIL(&server->bases, base, all);
	server->n_bases++;
	server->n_groups++;
	*out = base;
	return 0;
}

void mb_commons_group_free(struct mb_commons_server *server, struct group *group)
{
	struct shelf *shelf;

	if (!group)
		return;
	/* Those that are left are of places that were never filled. */
	while ((shelf = LIST_FIRST(&group->shelves))) {
		LIST_REMOVE(shelf, all);
		free(shelf);
	}
	server->n_groups--;
	free(group);
}

/* Printable, and zeroes after it. */
static bool is_name(const char *name)
{
	size_t len = strnlen(name, MB_COMMONS_NAME_BYTES);

	for (size_t i = 0; i < MB_COMMONS_NAME_BYTES; i++)
		if (i < len ? name[i] <= ' ' || name[i] > '~' : name[i])
			return false;
	return len && len < MB_COMMONS_NAME_BYTES;
}

int mb_commons_group_join(struct client *client, const struct mb_commons_packet *packet)
{
	struct mb_commons_reply more = {0};
	unsigned slot = 0;
	struct base *base;
	int rc = 0;

	if (!is_name(packet->name))
		return -EINVAL;
	while (slot < MB_COMMONS_CLIENT_BASES && client->slot[slot])
		slot++;
	base = find_group(client, packet->name);
	if (slot == MB_COMMONS_CLIENT_BASES)
		rc = -EMFILE;
	else if (!base)
		rc = create_group(client, packet->name, &base);
	if (!rc) {
		client->slot[slot] = base;
		base->n_clients++;
		more.base = slot;
		more.offset = base->group->key.word[0];
		more.value = base->group->key.word[1];
	}
	mb_commons_reply(client, &packet->asked, rc, &more, NULL, -1);
	return 0;
}

/* ---- pages ---- */

static struct shelf *find_shelf(const struct group *group, uint64_t index)
{
	struct shelf *shelf;

	LIST_FOREACH(shelf, &group->shelves, all)
	if (shelf->index == index)
		return shelf;
	return NULL;
}

void mb_commons_group_dropped(const struct piece *piece)
{
	const struct base *base = piece->base;
	uint64_t left[MB_COMMONS_PIECE_PAGES / 64] = {0}; /* that other nodes have */
	const struct piece *other;
	struct shelf *shelf;
	bool any = false;

	if (!base->group)
		return;
	base->server->content_pages -= piece->n_present;
	shelf = find_shelf(base->group, piece->index);
	if (!shelf)
		return;
	TAILQ_FOREACH(other, &base->pieces, of_base)
	{
		if (other == piece || other->index != piece->index)
			continue;
		any = true;
		for (unsigned i = 0; i < MB_COMMONS_PIECE_PAGES / 64; i++)
			left[i] |= other->state->present[i];
	}
	/* What nobody has is to be given again, at another place. */
	for (unsigned i = 0; i < shelf->n; i++) {
		if (!shelf->note[i] || left[i / 64] >> i % 64 & 1)
			continue;
		forget(shelf->note[i]);
		shelf->note[i] = NULL;
	}
	if (any)
		return;
	LIST_REMOVE(shelf, all);
	free(shelf);
}

/* Room of groups for one more page, if need be instead of a piece that nobody uses. */
static bool groups_have_room(struct mb_commons_server *server)
{
	struct piece *piece, *next;
	struct base *base;

	for (piece = TAILQ_FIRST(&server->unused); piece; piece = next) {
		next = TAILQ_NEXT(piece, unused);
		if ((server->content_pages + 1) * MB_COMMONS_PAGE_BYTES <=
			server->config.max_bytes / CONTENT_SHARE)
			break;
		if (!piece->base->group)
			continue;
		base = piece->base;
		mb_commons_piece_drop(piece);
		mb_commons_base_check(base);
	}
	return (server->content_pages + 1) * MB_COMMONS_PAGE_BYTES <=
	       server->config.max_bytes / CONTENT_SHARE;
}

/* A page at its place on a node. *out is pinned. */
static int put_page(
	struct base *base, unsigned node, uint64_t place, const void *page, struct piece **out)
{
	struct mb_commons_server *server = base->server;
	uint64_t index = place / MB_COMMONS_PIECE_BYTES;
	unsigned at = (unsigned)(place % MB_COMMONS_PIECE_BYTES / MB_COMMONS_PAGE_BYTES);
	struct piece *piece = mb_commons_piece_find(base, index, node);
	int rc = piece ? 0 : mb_commons_piece_create(base, index, node, &piece);

	if (rc)
		return rc;
	mb_commons_piece_pin(piece);
	if (!groups_have_room(server))
		rc = -ENOSPC;
	if (!rc)
		rc = mb_commons_make_room(server, node, MB_COMMONS_PAGE_BYTES);
	/* As in commons_fill.c: in the copy lack of memory would be a signal. */
	if (!rc &&
		fallocate(piece->fd, 0, (off_t)at * MB_COMMONS_PAGE_BYTES, MB_COMMONS_PAGE_BYTES))
		rc = errno == EINTR ? -EAGAIN : -errno;
	if (rc) {
		mb_commons_piece_unpin(piece);
		return rc;
	}
	memcpy(piece->map + (size_t)at * MB_COMMONS_PAGE_BYTES, page, MB_COMMONS_PAGE_BYTES);
	/* Release: who sees the bit sees the page. */
	__atomic_fetch_or(&piece->state->present[at / 64], 1ull << at % 64, __ATOMIC_RELEASE);
	piece->n_present++;
	server->content_pages++;
	mb_commons_piece_measure(piece);
	*out = piece;
	return 0;
}

/* The piece that has the page on this node, pinned; copied from another node if need be. */
static int show_page(const struct note *note, unsigned node, struct piece **out)
{
	struct base *base = note->base;
	uint64_t index = note->place / MB_COMMONS_PIECE_BYTES;
	unsigned at = (unsigned)(note->place % MB_COMMONS_PIECE_BYTES / MB_COMMONS_PAGE_BYTES);
	struct piece *piece = mb_commons_piece_find(base, index, node), *donor;
	int rc = -ENOENT;

	if (piece && mb_commons_has(piece->state, at)) {
		mb_commons_piece_pin(piece);
		*out = piece;
		return 0;
	}
	TAILQ_FOREACH(donor, &base->pieces, of_base)
	if (donor->index == index && mb_commons_has(donor->state, at))
		break;
	if (!donor)
		return rc;
	mb_commons_piece_pin(donor);
	rc = put_page(
		base, node, note->place, donor->map + (size_t)at * MB_COMMONS_PAGE_BYTES, out);
	mb_commons_piece_unpin(donor);
	return rc;
}

/* A place for one more page. */
static struct shelf *open_shelf(struct group *group)
{
	struct shelf *shelf = LIST_FIRST(&group->shelves);

	if (shelf && shelf->n < MB_COMMONS_PIECE_PAGES)
		return shelf;
	shelf = calloc(1, sizeof(*shelf));
	if (!shelf)
		return NULL;
	shelf->index = group->next_index++;
	LIST_INSERT_HEAD(&group->shelves, shelf, all);
	return shelf;
}

/* *out is pinned. If not 0, the note may be gone. */
static int take_page(struct note *note, unsigned node, const void *page, struct piece **out)
{
	struct base *base = note->base;
	const struct mb_content_hash hash = note->hash;
	struct shelf *shelf = open_shelf(base->group);
	uint64_t index, place;
	int rc;

	if (!shelf)
		return -ENOMEM;
	index = shelf->index;
	place = index * MB_COMMONS_PIECE_BYTES + shelf->n * MB_COMMONS_PAGE_BYTES;
	rc = put_page(base, node, place, page, out);
	if (rc)
		return rc;
	/* Where room was made all that there was of it may be gone, and it as well; and notes that
	 * are old are. The page stays then, nobody's, as no place is used twice. */
	shelf = find_shelf(base->group, index);
	note = find(base, &hash);
	if (shelf)
		shelf->note[shelf->n++] = note;
	if (!shelf || !note) {
		mb_commons_piece_unpin(*out);
		return -EAGAIN;
	}
	disown(note);
	note->place = place;
	return 0;
}

/* ---- requests ---- */

int mb_commons_group_offer(struct client *client, const struct mb_commons_packet *packet)
{
	struct base *base = client->slot[packet->asked.base];
	struct mb_commons_reply more = {.base = packet->asked.base};

	for (unsigned i = 0; i < packet->asked.len; i++) {
		struct note *note = find(base, &packet->hash[i]);

		if (!note)
			add_note(client, base, &packet->hash[i]);
		else if (!note->client)
			more.value |= 1ull << i;
		else if (note->client == client)
			renew(note);
		else
			more.offset |= 1ull << i;
	}
	mb_commons_reply(client, &packet->asked, 0, &more, NULL, -1);
	return 0;
}

/* Takes the pin. A descriptor goes along if the client has none. */
static void answer(struct client *client, const struct mb_commons_request *asked, uint64_t place,
	struct piece *piece)
{
	struct mb_commons_reply more = {.base = asked->base, .offset = place};
	bool has = mb_commons_ref_find(client, piece) != NULL;
	int rc = mb_commons_ref_get(client, piece);

	mb_commons_reply(client, asked, rc, &more, rc || has ? NULL : piece, -1);
	mb_commons_piece_unpin(piece);
}

/* Page NULL: only if it is there. */
static int get(struct client *client, const struct mb_commons_request *asked, const void *page)
{
	const struct mb_content_hash hash = {{asked->offset, asked->len}};
	struct base *base = client->slot[asked->base];
	int node = mb_commons_node_index(client->server, asked->node), rc = 0;
	struct note *note = find(base, &hash);
	struct piece *piece = NULL;

	if (node < 0)
		rc = -ENODEV;
	else if (!note || (note->client && (!page || note->client == client)))
		rc = -ENOENT; /* forgotten meanwhile; or nobody else has it */
	else if (note->client)
		rc = take_page(note, (unsigned)node, page, &piece);
	else
		rc = show_page(note, (unsigned)node, &piece);
	if (rc)
		mb_commons_reply(client, asked, rc, NULL, NULL, -1);
	else
		answer(client, asked, note->place, piece);
	return 0;
}

int mb_commons_group_fetch(struct client *client, const struct mb_commons_request *asked)
{
	return get(client, asked, NULL);
}

int mb_commons_group_give(struct client *client, const struct mb_commons_packet *packet)
{
	const struct mb_commons_request *asked = &packet->asked;
	struct mb_content_hash hash;

	/* Who gives what he hashed gives what has this hash. */
	hash = mb_content_hash(&client->slot[asked->base]->group->key, packet->page);
	if (MB_COMMONS_WRONG != WRONG_UNHASHED &&
		(hash.word[0] != asked->offset || hash.word[1] != asked->len))
		return -EINVAL;
	return get(client, asked, packet->page);
}
