/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CONTENT_H
#define MIRRORBALL_CONTENT_H

#include <mirrorball/error.h>
#include <mirrorball/heat.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Sharing by content (design, section 5): guest memory of which nobody knows where it came from. A
 * thread goes over it, a slice at a time, and what is the same when it comes again has not been
 * written for a while. What is zero gives its memory back to the host. The rest is offered by its
 * hash to the commons, in the name of a trust group, if the machine has one: what another machine
 * of the group has, too, is in memory once from then on (replica.h).
 *
 * What it costs is a share of one CPU, by the thread's own clock: the larger the guest, the longer
 * it takes.
 */
struct mb_content;
struct mb_replicas;

#define MB_CONTENT_BUDGET_PPM 20000u
#define MB_CONTENT_OFF	      UINT32_MAX
#define MB_CONTENT_GROUP_MAX  63u /* characters of a group's name */

struct mb_content_config {
	struct mb_replicas *replicas;
	int ram_fd;
	void *own_base; /* of the mapping that is no view, ram_bytes long */
	uint64_t ram_bytes;
	unsigned n_views;    /* 1..MB_HEAT_VIEWS */
	uint32_t budget_ppm; /* of one CPU; 0: MB_CONTENT_BUDGET_PPM */
	const char *group;   /* NULL: only zeroes. Must stay. */
	/* As in share.h. Only with a group. */
	void (*nodes)(void *ctx, unsigned node[MB_HEAT_VIEWS]);
	void *ctx;
	const char *socket;
	bool start;
	uint64_t settle_ns; /* between the two looks at a page, at least; 0: 2 s */
	uint64_t pass_ns; /* from the beginning of a pass to that of the next, at least, but for the
			     first ones; 0: 30 s */
	uint64_t patience_ns; /* with a daemon that does not answer; 0: 5 s */
};

/* The thread runs when this returns. -ENOMEM, or -errno of pthread_create(3). */
int mb_content_create(
	const struct mb_content_config *config, struct mb_content **out, struct mb_error *err);
/* Nothing is punched or merged any more; what is merged stays. Takes NULL. */
void mb_content_destroy(struct mb_content *content);

struct mb_content_stats {
	const char *state;	/* for people */
	uint64_t passes;	/* over all memory, so far */
	uint64_t scanned_pages; /* so far; twice for each page that is not written */
	uint64_t zero_bytes;	/* given back, so far */
	uint64_t shared_bytes;	/* of guest memory that takes none of its own now; as of the last
				   pass */
	uint64_t were_shared_bytes; /* so far; with what was written since */
	uint64_t given_bytes;	    /* of content that the commons have from here, so far */
	uint64_t cpu_ns;	    /* of the thread, so far */
};
/* Any thread. */
void mb_content_stats(struct mb_content *content, struct mb_content_stats *stats);

#endif
