/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPLASH_DISKCHURN_H
#define SPLASH_DISKCHURN_H

#include "guest.h"

#define GROUP 32u /* pages or blocks that one vCPU has at a time */
#define RUN   8u  /* pages a request, at most */
/* diskchurn_content.c: what is in a page or a block, told by a few numbers. */
#define BLOCK_SECTORS 8u
#define SECTOR_WORDS  64u

/* Who wrote a word: bits 63 to 56. Then 8 bits id or image, 20 of place, 19 of version, 9 of word.
 */
#define OWNER_IMAGE	    0xbaull
#define OWNER_ALL	    0xc0ull
#define OWNER_SELF	    0x5eull
#define CONTENT_MAX_VERSION 0x7ffffu

/* Words [first, first + n) are of `mark`, the others of `head`; 0: they are zero. */
struct content {
	uint64_t head, mark;
	uint16_t first, n;
};

uint64_t content_head(uint64_t owner, uint64_t id, uint64_t place, uint64_t version);
/* Of a block of the image, as tests/kvm/differential.sh makes it; image 0: zeroes. */
struct content content_of_image(uint64_t image, uint64_t block);
uint64_t content_word(const struct content *c, unsigned w);
/* Words [first, first + n) become those of head. False, and nothing: that would take another mark.
 */
bool content_overlay(struct content *c, uint64_t head, unsigned first, unsigned n);
/* Whether words [first, first + n) are all of one head. */
bool content_pure(const struct content *c, unsigned first, unsigned n, uint64_t *head);
bool content_is_sector(const uint64_t *page, unsigned sector, const struct content *c);
/* Whether a machine with that id may have written that word w, at any time, or the image has it. */
bool content_may_be(uint64_t word, unsigned w, uint64_t image, uint64_t id);

/* ---- diskchurn_steps.c: what is done to pages and blocks, and found there ---- */

/* What the host says: as usual; nothing that is not in the disk's own file need be there; it is
 * over. */
enum phase { CHURN, GONE, END };

enum sureness {
	SURE,
	EITHER,	  /* of now and before, each sector */
	ANYTHING, /* that this machine wrote, or of the image */
};

struct block {
	struct content now, before;
	uint8_t sure;
	bool own; /* was written with success: does not come from the image any more */
};

struct churned {
	uint8_t *memory;
	struct content *page;
	struct block *block;
	struct line *page_lock, *block_lock; /* one a group */
	uint64_t n_pages, n_blocks;
	uint64_t image, id;
	uint32_t version;
	bool full;
	uint64_t start; /* TSC */
	uint64_t *word; /* a page, for what the host says */
	uint64_t next;	/* TSC: when that is looked at; 0: it says nothing */
	uint32_t phase; /* atomic */
	/* What failed as it was expected to; atomic. */
	uint64_t n_full, n_since_full, n_gone;
	bool told_full, told_gone; /* vCPU 0 */
};
extern struct churned d;

/* What a vCPU counts in its tally. */
enum { DID_READS, DID_WRITES, DID_CHECKS };

static inline uint64_t *words(uint64_t p)
{
	return (uint64_t *)(d.memory + p * PAGE_BYTES);
}

/* Who has a group is alone with its pages or blocks. */
bool try_group(struct line *l);
void lock_group(struct line *l);
void let_go(struct line *l);

/* A page anywhere, if nobody else has it. */
void look_around(struct cpu *self);
/* All else: the caller has the pages and the blocks. */
void check_page(struct cpu *self, uint64_t p);
/* In one of several ways. */
void write_page(struct cpu *self, uint64_t p);

/*
 * Writes a word of each page of the group that begins there, and what was there before, again and
 * again: whoever compares a page before it is protected finds it equal, and then it is not.
 */
void flicker_pages(struct cpu *self, uint64_t first);

/* One request: pages in any order, blocks side by side; or a part of one, the same in both. */
struct transfer {
	uint64_t page[RUN], block;
	unsigned n;
	unsigned sector, n_sectors; /* of one */
};
void read_blocks(struct cpu *self, const struct transfer *t);
void write_blocks(struct cpu *self, const struct transfer *t);
/* The same with n_sectors < BLOCK_SECTORS; nothing where that cannot be told by a struct content.
 */
void read_sectors(struct cpu *self, const struct transfer *t);
void write_sectors(struct cpu *self, const struct transfer *t);
void flush_disk(struct cpu *self);

#endif
