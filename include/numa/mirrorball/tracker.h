/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_TRACKER_H
#define MIRRORBALL_TRACKER_H

#include <mirrorball/error.h>
#include <mirrorball/heat.h>
#include <mirrorball/host.h>
#include <mirrorball/vcpu.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Who touches what: a thread that samples guest memory while the guest runs (design, section 4.1).
 * It takes pages out of the page tables of every view, waits for a window of 10 ms to 1 s, and
 * looks which view has them again; then it asks in the same way who writes (of small pages: at
 * once). What it costs the guest, the CPU that it uses, and how often it makes KVM drop
 * translations are bounded over ten seconds, and do not depend on the size of the guest.
 *
 * It never touches what is in memory: a page that is taken out of page tables stays where it is,
 * and comes back with the next access. Memory that was mapped in huge pages is left so.
 */
struct mb_tracker;

#define MB_TRACKER_GUEST_PPM 5000u  /* default budgets: 0.5 % of the guest's time ... */
#define MB_TRACKER_CPU_PPM   10000u /* ... and 1 % of one CPU */

struct mb_tracker_config {
	const char *name;	    /* in messages */
	const struct mb_host *host; /* to measure what a fault costs; NULL: fault_ns says it */
	uint64_t fault_ns;
	int ram_fd;
	uint64_t ram_bytes;		/* a multiple of MB_HEAT_BLOCK_BYTES */
	unsigned n_views;		/* 1..MB_HEAT_VIEWS */
	void *view_base[MB_HEAT_VIEWS]; /* where each view has all of the file */
	void *own_base; /* a mapping of it that is no view, to ask for the node of what no view has
			   mapped; or NULL */
	/*
	 * Groups of vCPUs that are told apart, 0 for as many as views: those in the view of their
	 * number. More of them change views by turns (mb_heat_view_of): from the return of
	 * `take_turn`, which must be there then, they are on their way. It is called with the
	 * tracker's lock, and may take only leaf locks.
	 */
	unsigned n_groups; /* at most MB_HEAT_VIEWS */
	void (*take_turn)(void *ctx, unsigned turn);
	unsigned n_vcpus;
	uint32_t guest_ppm, cpu_ppm; /* budgets; 0: the default */
	unsigned features;	     /* of enum mb_pagemap_feature; MB_PAGEMAP_ALL but in tests */
	/*
	 * Maps [offset, offset + len) of a view anew, as it was at first; to get huge pages back.
	 * 1: was left as it is, or is watched already. NULL: huge pages are never looked into.
	 */
	int (*remap)(void *ctx, unsigned view, uint64_t offset, uint64_t len);
	/* Faults on guest memory so far, by KVM's count. Negative errno: unknown. NULL: nobody
	 * counts. */
	int (*faults)(void *ctx, struct mb_vcpu_faults *faults);
	/* Which share of a range the view reads from a copy of its own (replica.h), 0 to 1. Any
	 * thread. NULL: nothing has copies. */
	float (*copied)(void *ctx, uint64_t offset, uint64_t len, unsigned view);
	void *ctx;
};

/* Not running yet. The mappings must outlive it. */
int mb_tracker_create(
	const struct mb_tracker_config *config, struct mb_tracker **out, struct mb_error *err);
void mb_tracker_destroy(struct mb_tracker *tracker); /* stops it; takes NULL */

/*
 * Starts and stops the thread; calls are counted, and what was learnt stays. What the host cannot
 * tell is logged once. One thread at a time.
 */
int mb_tracker_start(struct mb_tracker *tracker, struct mb_error *err);
void mb_tracker_stop(struct mb_tracker *tracker);

/*
 * From the return of hold to release no page table is touched and no window is open: for when
 * vCPUs stand still (a window would see nothing) or memory is thrown away. Counted. Any thread; a
 * tracker that does not run may be held. NULL is one that holds already.
 */
void mb_tracker_hold(struct mb_tracker *tracker);
void mb_tracker_release(struct mb_tracker *tracker);

/*
 * A part of a view shows the file again, in a mapping of its own (replica.h): it is watched again.
 * Any thread, with any locks. Takes NULL.
 */
void mb_tracker_watch(struct mb_tracker *tracker, unsigned view, uint64_t offset, uint64_t len);

struct mb_tracker_stats {
	bool running;
	unsigned features; /* what of enum mb_pagemap_feature the kernel gives */
	unsigned n_regions;
	uint64_t in_use_bytes; /* memory behind the guest */
	uint64_t
		covered_bytes; /* of regions that were looked at; may be more: regions have holes */
	uint64_t huge_bytes;   /* in use that is mapped as huge pages, when last looked at */
	uint64_t n_windows;    /* since the start */
	uint64_t n_zooms;
	uint64_t fault_ns; /* what a fault of the guest costs it here */
	/* Of the last second. */
	uint32_t cpu_ppm, guest_ppm; /* the latter is an estimate: faults times their cost */
	uint32_t cpu_budget_ppm, guest_budget_ppm;
	uint32_t invalidations;
	uint32_t faults; /* because of us, by the page tables */
	bool knows_kvm_faults;
	struct mb_vcpu_faults kvm_faults; /* by KVM's count; because of us or not */
};
void mb_tracker_stats(struct mb_tracker *tracker, struct mb_tracker_stats *stats);

/* What is known now, with the node where it lives; the caller frees the array. Any thread. */
int mb_tracker_extents(struct mb_tracker *tracker, struct mb_extent **out, unsigned *n);

/* numa/fault_cost.c: what a fault of a vCPU on a page that was taken out costs on this host:
 * measured with a machine of one page table and one vCPU, in about a millisecond. -errno where that
 * cannot be. */
int mb_fault_cost_ns(const struct mb_host *host, uint64_t *ns);

#endif
