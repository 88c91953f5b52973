/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_NUMA_TRACKER_INTERNAL_H
#define MB_NUMA_TRACKER_INTERNAL_H

#include <mirrorball/pagemap.h>
#include <mirrorball/tracker.h>
#include <pthread.h>
#include <sys/mman.h>

#define MAX_OPEN 32u /* windows at a time */
#define MAX_ZOOM 64u /* blocks at a time */

typedef uint64_t block_bits[MB_HEAT_BLOCK_WORDS];

enum phase {
	CLOSED,
	TOUCHES, /* taken out of the page tables: what is mapped again was touched */
	WRITES,	 /* protected: what is not any more was written */
};

struct window {
	enum phase phase;
	uint64_t due_ns;
	uint64_t offset, len;		  /* in the file */
	unsigned n_out;			  /* huge pages that it keeps out of page tables */
	bool both;			  /* one phase tells touches and writes */
	int64_t reserved_ns;		  /* of the budget, for what it may still cost */
	uint32_t was_huge[MB_HEAT_VIEWS]; /* bit a block: mapped as a huge page before */
	struct mb_heat_seen seen;
};

/* A block whose huge page is mapped in small ones for a while. */
struct zoom {
	bool used;
	uint64_t block;
	unsigned pages_left;	  /* to be looked at, each several times */
	bool again;		  /* to end it failed: not before end_ns */
	struct mb_heat_map *heat; /* of the turn that began it */
	uint64_t end_ns;	  /* enough then, in any case */
};

/* What may be spent: it fills with time, up to a second's worth, and may be overdrawn by what was
 * dearer than thought; nothing new is begun then. */
struct budget {
	int64_t left_ns;
};

/* Of a second, or of the one under way. */
struct spending {
	uint64_t cpu_ns, guest_ns, busy_ns;
	uint64_t calls_ns; /* in calls that drop translations */
	uint32_t invalidations;
	uint32_t faults, huge_faults; /* by the page tables; the latter on huge pages, and among the
					 former */
	uint64_t paid_faults;	      /* what they were taken for */
	struct mb_vcpu_faults kvm_faults; /* by KVM's count, whosever they are */
};

struct mb_tracker {
	struct mb_tracker_config config;

	/* Protects all that follows; held while page tables are touched, so that who holds the
	 * tracker waits for that. */
	pthread_mutex_t lock;
	pthread_cond_t wake; /* of the thread: stop, or not held any more */
	unsigned n_starts, n_holds;
	bool running;
	pthread_t thread;

	struct mb_heat_map *heat; /* of this turn */
	struct mb_heat_map *heat_of_turn[MB_HEAT_TURNS];
	unsigned turn, n_turns;
	uint64_t turn_ns;      /* when it begins: vCPUs need some time to change views */
	struct mb_pagemap *pm; /* NULL: never started */
	unsigned features;     /* the last ones */
	bool said_features, said_error;
	uint32_t seed;
	uint64_t fault_ns;
	struct window window[MAX_OPEN];
	struct zoom zoom[MAX_ZOOM];
	unsigned n_zoomed;

	struct budget guest, cpu,
		calls; /* calls: left_ns is a count of invalidations, times 10^6 */
	struct spending now, last;
	uint64_t second_ns, refilled_ns; /* since when `now` is; when budgets were filled */
	uint64_t adapted_ns;		 /* when regions were divided and joined */
	uint64_t thread_cpu_ns, process_cpu_ns;
	float busy;	  /* CPUs' worth of time that the guest used of late */
	bool guess_huge;  /* the kernel does not tell huge pages, but memory comes in them */
	unsigned max_out; /* huge pages out at a time, in short windows, and in long ones */
	unsigned max_zooms;
	uint64_t real_faults; /* of the process, by the kernel's count */
	bool knows_kvm_faults;
	struct mb_vcpu_faults kvm_faults; /* a second ago */
	float may_fault; /* most faults on huge pages that were caused and have not been seen yet */
	bool knows_own;
	float own_faults; /* of the guest, a second: seen while nothing was out */
	bool knows_per_huge;
	float per_huge; /* faults that come of a huge page: more than one where KVM maps it in parts
			 */
	uint64_t n_windows, n_zooms;
};

#define LONG_WINDOW_NS 100000000ull /* from here on */

/* numa/tracker_window.c; the caller holds the lock. Opened and closed on the tracker's thread. */

/* Opens a window on what was picked, or learns at once where there is nothing to wait for. */
void mb_window_open(
	struct mb_tracker *t, struct window *w, const struct mb_heat_pick *pick, uint64_t now_ns);
/* Whether a huge page may be mapped in small ones for a look. */
bool mb_zoom_may_begin(const struct mb_tracker *t);
/* How many huge pages more may be out, in long or in short windows. */
unsigned mb_windows_room(const struct mb_tracker *t, bool is_long);
/* Its time is over: looks, and goes on to the next phase or learns. */
void mb_window_close(struct mb_tracker *t, struct window *w, uint64_t now_ns);
/* Forgets all open windows: nothing can be learnt from them. */
void mb_windows_drop(struct mb_tracker *t, uint64_t now_ns);
/* Whether any block is looked into. What only waits for its huge page is none. */
bool mb_zooms_run(const struct mb_tracker *t);
/* Gives huge pages back where looking closely is over, or everywhere. */
void mb_zooms_end(struct mb_tracker *t, bool all, uint64_t now_ns);

/* numa/tracker_nodes.c; any thread, without the lock. */
void mb_tracker_find_nodes(const struct mb_tracker *t, struct mb_extent *extent, unsigned n);

/*
 * numa/tracker.c. What the guest pays: faults of one vCPU each, on small pages and on huge ones,
 * and invalidations that all of them notice.
 */
void mb_tracker_pay(struct mb_tracker *t, uint64_t small, uint64_t huge, unsigned invalidations);
/* What faults on so many pages will cost, as far as is known. */
uint64_t mb_tracker_cost_ns(const struct mb_tracker *t, uint64_t small, uint64_t huge);
/* Something failed that should not; said once. */
void mb_tracker_complain(struct mb_tracker *t, const char *what, int rc);

#endif
