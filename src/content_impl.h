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
	struct mb_content_hash hash[CHUNK_PAGES]; /* of those that were looked at, but for zeroes */
};

/* CPU time that may be used, and was. */
struct mb_content_budget {
	uint64_t ppm;
	uint64_t clock_ns, used_ns; /* since when, and what the thread had used by then */
};

struct mb_content {
	struct mb_content_config config;
	pthread_t thread;
	bool runs;
	int wake_fd; /* eventfd */
	bool stop;   /* atomic */

	/* Only the thread. */
	struct mb_content_key key;
	uint64_t *seen; /* of each page of the slice: a hash of what it had; 0: nothing that is
			   known */
	char *data;	/* of a chunk */
	struct back_off *back_off; /* of each block */
	struct mb_content_budget budget;
	struct group *group; /* NULL: none */

	bool ready; /* atomic: the group is there */

	struct mb_content_stats stats; /* each atomic */
};

bool mb_content_is_over(const struct mb_content *c);
/* How long to rest now; 0: not. */
uint64_t mb_content_rest_ns(struct mb_content_budget *budget, uint64_t now_ns, uint64_t used_ns);
/* Rests where more than the budget was used. False: it is over. */
bool mb_content_pay(struct mb_content *c);
void mb_content_count(uint64_t *what, uint64_t n);

/* ---- content_group.c; only the thread, but state ---- */
int mb_content_group_create(struct mb_content *c, struct mb_error *err);
void mb_content_group_destroy(struct group *group);		/* takes NULL */
const char *mb_content_group_state(const struct mb_content *c); /* any thread */
/* Before a slice: whether there is somebody to offer to; patient: who may have been started just
 * now. The key may be another one then. */
bool mb_content_group_begin(struct mb_content *c, bool patient);
/* These pages of the chunk are what they were at the first look. */
void mb_content_group_take(struct mb_content *c, const struct chunk *chunk, uint64_t same);
/* What of this is merged no more is not counted any more. */
void mb_content_group_recount(struct mb_content *c, uint64_t first, uint64_t end);

#endif
