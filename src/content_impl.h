/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CONTENT_IMPL_H
#define CONTENT_IMPL_H

#include <mirrorball/content.h>
#include <mirrorball/content_hash.h>
#include <pthread.h>

#define PAGE	    MB_HEAT_PAGE_BYTES
#define BLOCK_PAGES MB_HEAT_BLOCK_PAGES
#define CHUNK_PAGES 64u /* are read at once, and offered at once */

struct group;

/* Pages that are there, and which of them are to be looked at: bit i is the i-th. */
struct chunk {
	uint64_t page;	  /* of guest memory, the first */
	uint64_t present; /* have memory */
	char *data;	  /* CHUNK_PAGES pages: what was there when they were read */
};

struct mb_content {
	struct mb_content_config config;
	pthread_t thread;
	bool runs;
	int wake_fd; /* eventfd */
	bool stop;   /* atomic */

	/* Only the thread. */
	struct mb_content_key key;
	uint64_t *seen; /* of each page of the slice: a hash of what it had; 0: nothing that is known */
	char *data;	/* of a chunk */
	struct back_off *back_off; /* of each block */
	uint64_t clock_ns, used_ns; /* the budget's: since when, and what the thread had used by then */
	struct group *group;	    /* NULL: none */

	struct mb_content_stats stats; /* each atomic */
};

bool mb_content_is_over(const struct mb_content *c);
/* Rests where more than the budget was used. False: it is over. */
bool mb_content_pay(struct mb_content *c);
void mb_content_count(uint64_t *what, uint64_t n);

#endif
