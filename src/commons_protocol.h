/* SPDX-License-Identifier: Apache-2.0 */
#ifndef COMMONS_PROTOCOL_H
#define COMMONS_PROTOCOL_H

#include <mirrorball/content_hash.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What monitors and mirrorballd say to each other over a Unix socket of packets. Both are on one
 * host: numbers are in its byte order. A request is one packet of one size, and so is a reply, so
 * that there is one length to check; of JOIN, OFFER and GIVE the type (and the number of hashes) says what follows it. A field that a type has no use for is zero.
 *
 *   monitor                               mirrorballd
 *   HELLO                          ->     HELLO: limits
 *   OPEN + descriptor of a base    ->     OPEN: a number for it, of this connection
 *   WANT base, node, range, flags  ->     WANT: status [+ descriptor of the piece]
 *   RELEASE base, node, offset     ->
 *   CLOSE base                     ->
 *   STAT                           ->     STAT + descriptor of a memfd with JSON
 *   JOIN a group's name            ->     JOIN: a number as of OPEN, and the key of its hashes
 *   OFFER group, up to 64 hashes   ->     OFFER: which are there, and of which the page is wanted
 *   FETCH group, node, hash        ->     FETCH: status, place [+ descriptor of the piece]
 *   GIVE group, node, hash, page   ->     GIVE: the same
 *
 * A request that no honest client sends (a wrong size, an unknown type, a descriptor too many, a
 * range that is not aligned) ends the connection. What an honest one may meet (no memory, a base
 * that has changed) is a status.
 *
 * A base is cut into pieces of MB_COMMONS_PIECE_BYTES. Each has one memfd for each node that
 * somebody asked for it:
 *
 *   0                                        MB_COMMONS_PIECE_BYTES      + 4096
 *   | page p of the piece, or a hole        | struct mb_commons_state    |
 *
 * mirrorballd alone can write there: it mapped the file before it put F_SEAL_FUTURE_WRITE on it. So
 * which pages are there is no matter of messages: clients look.
 *
 * A group (content.h) is a base that is no file: what its pieces have is what its members gave. Of a hash that
 * one of them offers nothing but that is known, until another one offers the same; that one is asked for the
 * page, which has one place from then on, on whatever node. mirrorballd makes the hash of it again: what is
 * there is what the hash says, and nobody needs to believe it, for a client compares. A member of one user is
 * never in a group with one of another.
 */
#define MB_COMMONS_MAGIC       0x636d626du /* "mbmc" */
#define MB_COMMONS_VERSION     1u
#define MB_COMMONS_PAGE_BYTES  4096u
#define MB_COMMONS_PIECE_BYTES (8u << 20)
#define MB_COMMONS_PIECE_PAGES (MB_COMMONS_PIECE_BYTES / MB_COMMONS_PAGE_BYTES)
#define MB_COMMONS_FILE_BYTES  (MB_COMMONS_PIECE_BYTES + MB_COMMONS_PAGE_BYTES)
/* With these nobody, mirrorballd included, can change or cut the file but through its old mapping.
 */
#define MB_COMMONS_SEALS	 (F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)

#define MB_COMMONS_MAX_CLIENTS	 512u
#define MB_COMMONS_MAX_BASES	 256u	/* of all clients */
#define MB_COMMONS_MAX_PIECES	 32768u /* each is a mapping, and there are 65530 */
#define MB_COMMONS_CLIENT_BASES	 64u
#define MB_COMMONS_CLIENT_PIECES 16384u
/* Requests that a client has an answer to come for. What it sends beyond that is not read until
 * one is answered, and read by the client. */
#define MB_COMMONS_CLIENT_PENDING 64u
/* Hashes of which no page is there: more make a client's oldest be forgotten, as an hour does. */
#define MB_COMMONS_MAX_NOTES	(1u << 19)
#define MB_COMMONS_CLIENT_NOTES (1u << 16)
#define MB_COMMONS_NAME_BYTES	64u
#define MB_COMMONS_OFFERS	64u /* in one request */
#define MB_COMMONS_MAX_BASE_BYTES (1ull << 60)

/* The end of each piece's file. Bits are set after what they stand for is there (release; readers:
 * acquire), and never cleared; the bytes of such a page never change. */
struct mb_commons_state {
	uint64_t present[MB_COMMONS_PIECE_PAGES / 64];
	uint32_t
		stale; /* the base is not what it was: what is here is of before, and still whole */
};

enum mb_commons_type {
	MB_COMMONS_HELLO = 1,
	MB_COMMONS_OPEN,
	MB_COMMONS_CLOSE,
	MB_COMMONS_WANT,
	MB_COMMONS_RELEASE,
	MB_COMMONS_STAT,
	MB_COMMONS_JOIN,
	MB_COMMONS_OFFER,
	MB_COMMONS_FETCH,
	MB_COMMONS_GIVE,
};

enum {
	MB_COMMONS_NEED_FD = 1,	  /* WANT: the client has no descriptor of this piece */
	MB_COMMONS_ONLY_HAVE = 2, /* WANT: read nothing; -ENOENT where there is no such piece */
	MB_COMMONS_HAS_FD = 1,	  /* reply */
};

struct mb_commons_request {
	uint32_t magic;
	uint16_t version, type;
	uint64_t tag;	      /* comes back with the reply */
	uint32_t base;	      /* number of the client's open bases */
	uint32_t node;	      /* the kernel's number */
	/* Bytes of the base. OFFER: len is how many hashes. FETCH, GIVE: both are the hash. */
	uint64_t offset, len;
	uint32_t flags;
	uint32_t zero;
};

struct mb_commons_reply {
	uint32_t magic;
	uint16_t version, type;
	uint64_t tag;
	int32_t status; /* 0 or -errno */
	uint32_t base, node, flags;
	/* WANT: of the piece; OPEN: a hash of the base's identity; JOIN: half of the key; OFFER: bits of those
	 * whose page is wanted; FETCH, GIVE: of the page. */
	uint64_t offset;
	/* OPEN: bytes of the base; WANT: pages of the range that are there; STAT: of the text; JOIN: the other
	 * half; OFFER: bits of those that are there. */
	uint64_t value;
};

/* A request with what follows it. */
struct mb_commons_packet {
	struct mb_commons_request asked;
	union {
		char name[MB_COMMONS_NAME_BYTES]; /* JOIN: zeroes after it, at least one */
		struct mb_content_hash hash[MB_COMMONS_OFFERS];
		char page[MB_COMMONS_PAGE_BYTES];
	};
};
_Static_assert(offsetof(struct mb_commons_packet, page) == sizeof(struct mb_commons_request), "no gap");

/* How long it is to be. */
static inline size_t mb_commons_packet_bytes(const struct mb_commons_request *asked)
{
	size_t n = sizeof(*asked);

	if (asked->type == MB_COMMONS_JOIN)
		n += MB_COMMONS_NAME_BYTES;
	else if (asked->type == MB_COMMONS_OFFER && asked->len <= MB_COMMONS_OFFERS)
		n += asked->len * sizeof(struct mb_content_hash);
	else if (asked->type == MB_COMMONS_GIVE)
		n += MB_COMMONS_PAGE_BYTES;
	return n;
}

#endif
