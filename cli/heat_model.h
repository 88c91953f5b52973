/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_HEAT_MODEL_H
#define MIRRORBALL_CLI_HEAT_MODEL_H

#include <mirrorball/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What a machine answers to "heat" (mirrorball/control.h), and how it becomes something that fits a
 * screen or a picture. No system call, no clock.
 */

#define HEAT_MAX_VIEWS	    8
#define HEAT_MAX_NODES	    64
#define HEAT_MAX_NAME	    64
#define HEAT_MAX_GPA	    (1ull << 52) /* x86's physical addresses have no more bits */
#define HEAT_MIN_PER_S	    0.05	 /* touches a second: less is noise */
#define HEAT_MIN_SHARE	    0.05 /* of all touches: a view with less does not count as a user */
#define HEAT_LEVELS	    8
#define HEAT_MOST	    0.75 /* of an extent: less on its node is shown as partly there */
#define HEAT_COPIED	    0.25 /* of an extent: more is shown as having copies */
#define HEAT_LOW_CONFIDENCE 0.25 /* below, an extent is shown as little looked at */

/*
 * A range of guest memory and what is known of it: as the machine told it, or several of these
 * merged into one. Touches are a second, of a page: means over the looked bytes.
 */
struct heat_extent {
	uint64_t gpa, bytes;
	uint64_t used_bytes;	/* of bytes: have been touched at some time */
	uint64_t looked_bytes;	/* of used_bytes: have been looked at */
	uint64_t written_bytes; /* of looked_bytes: writes are told as well */
	float read[HEAT_MAX_VIEWS], write[HEAT_MAX_VIEWS];
	float confidence; /* 0 to 1: mean over used_bytes */
	float node_share; /* 0 to 1: how much of used_bytes lives on node */
	/* 0 to 1: how much of used_bytes each view reads from a copy of its own */
	float copied[HEAT_MAX_VIEWS];
	uint8_t node; /* where most of it lives: index into heat's nodes, if has_node */
	bool has_node;
	bool huge; /* mapped as huge pages; of what was merged: no meaning */
};

struct heat_tracker {
	bool writes, exact;
	uint64_t windows, regions, huge_bytes; /* windows: looks since it began */
	double covered;			       /* 0 to 1 */
	double cpu_ppm, cpu_budget_ppm, guest_ppm, guest_budget_ppm;
	double zaps_per_s, faults_per_s;
};

struct heat {
	char name[HEAT_MAX_NAME];
	uint64_t pid, time_ms, memory_bytes;
	unsigned n_views, n_nodes;
	bool can_copy;			     /* the machine can have copies of its memory */
	uint64_t view_nodes[HEAT_MAX_VIEWS]; /* a bit for each index into node */
	unsigned node[HEAT_MAX_NODES];	     /* the host's numbers */
	struct heat_tracker tracker;
	size_t n_extents;
	struct heat_extent *extent; /* in order of gpa, no overlap */
};

struct json_t;
/*
 * Reads an answer; out is the caller's to heat_finish. -EPROTO where it is not what the protocol
 * says, -E2BIG where it has more views or nodes than can be shown, -ENOMEM; err names the member.
 */
int heat_read(const struct json_t *answer, struct heat *out, struct mb_error *err);
void heat_finish(struct heat *heat); /* takes a zeroed one */

enum heat_what { HEAT_ALL, HEAT_READ, HEAT_WRITE };

/* Who touches an extent. */
struct heat_use {
	uint32_t users; /* a bit for each view that counts */
	unsigned top;	/* the view with most touches, if there are users */
	bool reads, writes;
	double per_s;	/* of all views */
	unsigned level; /* 0: none, 1 to HEAT_LEVELS: logarithm of per_s */
};
struct heat_use heat_use(
	const struct heat *heat, const struct heat_extent *extent, enum heat_what what);

enum heat_class {
	HEAT_OWN,	   /* one view uses it, and it or a copy lives on a node of that view */
	HEAT_REMOTE,	   /* one view uses it, and it lives elsewhere */
	HEAT_READ_SHARED,  /* several views read it, none writes */
	HEAT_WRITE_SHARED, /* several views use it, and one writes at least */
	HEAT_SHARED,	   /* several views use it; whether they write is not known */
	HEAT_USED,	   /* in use, and the only view spans several nodes */
	HEAT_IDLE,	   /* looked at, and nobody touched it */
	HEAT_UNKNOWN,	   /* not looked at yet, or where it lives is not known */
	HEAT_CLASSES,
};
enum heat_class heat_classify(const struct heat *heat, const struct heat_extent *extent);
/* 0 to 1: how much of it has a copy beside home, for the view that has most. */
float heat_copied(const struct heat_extent *extent);
/* Bytes in use by class; returns their sum. */
uint64_t heat_sum(const struct heat *heat, uint64_t bytes[HEAT_CLASSES]);
/* Bytes in use that have a copy. */
uint64_t heat_sum_copied(const struct heat *heat);
const char *heat_class_name(enum heat_class class);

/*
 * Guest memory in use, cut into equal cells and in order of address; a longer stretch that nobody
 * has ever touched takes one slot, the gap. So 10 GiB scattered over 1 TiB get the room that 10 GiB
 * need.
 */
struct heat_slot {
	uint64_t gpa;
	bool gap;
};
struct heat_axis {
	uint64_t cell_bytes; /* a power of two, 4096 at least */
	unsigned n;
	struct heat_slot *slot;
};
/*
 * The finest cells of which no more than max_slots (1 at least) are needed. extents are in order of
 * gpa, and may overlap. 0 or -ENOMEM; the caller frees axis->slot.
 */
int heat_axis_fit(
	struct heat_axis *axis, const struct heat_extent *extents, size_t n, unsigned max_slots);
/*
 * Merges extents (in order, no overlap) into the axis' slots, and leaves out what is on none of
 * them; cells has room for axis->n. Costs n + axis->n steps.
 */
void heat_merge(const struct heat_axis *axis, const struct heat_extent *extents, size_t n,
	struct heat_extent *cells);

/* "512 MiB", "1.25 GiB": at most two decimals; len 16 is enough. */
void heat_format_size(uint64_t bytes, char *text, size_t len);

#endif
