/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TRACKER_GUEST_H
#define TRACKER_GUEST_H

#include <check.h>
#include <mirrorball/pagemap.h>
#include <mirrorball/ram_file.h>
#include <mirrorball/tracker.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * The tracker on real mappings of a real file in memory. Threads of the test are the vCPUs: what
 * they do through a view's mapping is what a guest's vCPU does through its memslots.
 */
#define MIB   (1ull << 20)
#define BYTES (64 * MIB)

/* The guest's memory. A case may choose another before make(). Used is the first part of each step:
 * the rest of the file is a hole. */
struct tracker_ram {
	uint64_t bytes, step, part;
	unsigned n_views, n_groups; /* 0: as many as views */
};
extern struct tracker_ram ram;

extern struct mb_ram_mapping view[MB_HEAT_VIEWS];
extern struct mb_tracker *tracker;
extern bool refuse_remap;
extern unsigned n_remaps, n_failed; /* that succeeded and that did not; atomic */
extern unsigned n_turns_taken;	    /* atomic */
extern unsigned copied_views;	    /* bit k: view k has a copy of all */
/* The tracker's configuration. */
extern int (*kvm_faults)(void *ctx, struct mb_vcpu_faults *n);
extern uint64_t fault_ns;

void nap(unsigned ms);

/* Waits for it; 30 s are enough on any machine. */
#define ck_assert_soon(what)                                                                       \
	do {                                                                                       \
		bool is_so = what;                                                                 \
                                                                                                   \
		for (unsigned n_naps = 0; n_naps < 1500 && !is_so; n_naps++) {                     \
			nap(20);                                                                   \
			is_so = what;                                                              \
		}                                                                                  \
		ck_assert_msg(is_so, "not so: %s", #what);                                         \
	} while (0)

unsigned get(const unsigned *n);
void make(bool in_huge_pages, unsigned features, uint32_t guest_ppm);
void start(void);
/* Ends it, and looks whether all memory is as it was made. */
void finish(void);

/* The guest gives a part back, or uses it, in every view; what there is of all of it. */
void give_back(uint64_t first, uint64_t len);
void use(uint64_t first, uint64_t len);
uint64_t backed_bytes(void);

/* ---- vCPUs ---- */

struct vcpu {
	pthread_t thread;
	unsigned group; /* in the view of its number, unless there are more of them */
	uint64_t first, len, stride;
	bool writes;
	bool stop;  /* atomic */
	uint64_t n; /* rounds */
};

/* Adds one to a word of each page a round: a lost write shows. */
void go(struct vcpu *c);
/* Another view sees all that it wrote. */
void halt(struct vcpu *c);

/* ---- what it finds ---- */

struct sums {
	double read[MB_HEAT_VIEWS], write[MB_HEAT_VIEWS]; /* mean of the pages */
	double confidence;
};

struct sums sum(uint64_t first, uint64_t len);
struct mb_tracker_stats ask(void);

/* Who reads and who writes a part: bit a group. */
struct use {
	unsigned readers, writers;
};

/* Runs them until the tracker tells it right; 30 s are enough on any machine. */
void learn(const struct use *use, unsigned n_parts, double least, uint64_t least_windows);

#endif
