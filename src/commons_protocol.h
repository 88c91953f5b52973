/* SPDX-License-Identifier: Apache-2.0 */
#ifndef COMMONS_PROTOCOL_H
#define COMMONS_PROTOCOL_H

#include <stdint.h>

/*
 * What monitors and mirrorballd say to each other over a Unix socket of packets. Both are on one
 * host: numbers are in its byte order. A request is one packet of one size, and so is a reply, so
 * that there is one length to check. A field that a type has no use for is zero.
 *
 *   monitor                               mirrorballd
 *   HELLO                          ->     HELLO: limits
 *   OPEN + descriptor of a base    ->     OPEN: a number for it, of this connection
 *   WANT base, node, range, flags  ->     WANT: status [+ descriptor of the piece]
 *   RELEASE base, node, offset     ->
 *   CLOSE base                     ->
 *   STAT                           ->     STAT + descriptor of a memfd with JSON
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
	uint64_t offset, len; /* bytes of the base */
	uint32_t flags;
	uint32_t zero;
};

struct mb_commons_reply {
	uint32_t magic;
	uint16_t version, type;
	uint64_t tag;
	int32_t status; /* 0 or -errno */
	uint32_t base, node, flags;
	uint64_t offset; /* WANT: of the piece; OPEN: a hash of the base's identity */
	uint64_t value;	 /* OPEN: bytes of the base; WANT: pages of the range that are there; STAT:
			    of the text */
};

#endif
