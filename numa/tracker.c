// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <mirrorball/clock.h>
#include <mirrorball/log.h>
#include <mirrorball/thread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "heat_internal.h"
#include "tracker_internal.h"

#define STACK_BYTES	    (256u << 10)
#define SECOND_NS	    1000000000ull
#define ADAPT_NS	    1300000000ull
#define MIN_SLEEP_NS	    2000000ull
#define MAX_SLEEP_NS	    200000000ull
#define INVALIDATIONS_PER_S 200u /* of all views together, whatever the size of the guest */
#define OUT_SHARE	    100u /* one in so many huge pages, for short windows and for long ones */
#define ZOOM_SHARE	    34u	 /* so many in small pages for a look ... */
#define ZOOMS		    2u	 /* ... or so many, if that is more */
#define FAULTS_WRONG	    4u
#define FAULTS_FEW	    2000u

#define CALL_NS		    1000000 /* what one of them is in its budget */
#define IDLE_SHARE	    8	    /* so much less is done for an idle guest */
#define BUSY_MIN	    0.05f   /* CPUs: an idle guest is looked at, too */
#define OWN_DECAY	    0.9f    /* a second: what the guest did by itself is of old */
#define MAX_DEBT_S	    60	    /* of the budget: then enough has been waited for */
#define FAULT_NS	    5000u   /* where it cannot be measured */

/* Of a turn; at most so much longer where a block is looked into; until the last windows have to
 * be closed; and until vCPUs are in their views. */
#define TURN_NS		4000000000ull
#define TURN_ZOOM_NS	20000000000ull
#define TURN_LATE_NS	2000000000ull
#define TURN_SETTLES_NS 20000000ull

/* ---- budgets ---- */

uint64_t mb_tracker_cost_ns(const struct mb_tracker *t, uint64_t small, uint64_t huge)
{
	return (uint64_t)(((float)small + (float)huge * t->per_huge) * (float)t->fault_ns);
}

void mb_tracker_pay(struct mb_tracker *t, uint64_t small, uint64_t huge, unsigned invalidations)
{
	uint64_t faults_ns = mb_tracker_cost_ns(t, small, huge);
	/* To drop translations interrupts every vCPU that runs, which is about half of what a fault
	 * is. */
	uint64_t cost = faults_ns + (uint64_t)((float)(invalidations * t->fault_ns) * t->busy / 2);

	t->guest.left_ns -= (int64_t)cost;
	t->calls.left_ns -= (int64_t)invalidations * CALL_NS;
	t->now.guest_ns += cost;
	t->now.faults += (uint32_t)(small + huge);
	t->now.huge_faults += (uint32_t)huge;
	t->now.paid_faults += faults_ns / t->fault_ns;
	t->now.invalidations += invalidations;
	t->may_fault += (float)huge * MB_HEAT_BLOCK_PAGES;
}

static void fill(struct budget *b, int64_t add_ns, int64_t most_ns)
{
	b->left_ns += add_ns;
	if (b->left_ns > most_ns)
		b->left_ns = most_ns;
}

static uint64_t in_use_bytes(const struct mb_tracker *t)
{
	struct stat st;

	return fstat(t->config.ram_fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

/* At least 95 % of what is mapped as huge pages shall stay so at any time. */
static void look_around(struct mb_tracker *t)
{
	uint64_t blocks = in_use_bytes(t) / MB_HEAT_BLOCK_BYTES;
	struct rusage usage;
	uint64_t real;

	t->max_out = (unsigned)(blocks / OUT_SHARE);
	if (!t->max_out)
		t->max_out = 1;
	t->max_zooms = (unsigned)(blocks / ZOOM_SHARE);
	if (t->max_zooms < ZOOMS)
		t->max_zooms = ZOOMS;
	/*
	 * Without PAGEMAP_SCAN a block that is mapped as a whole is taken for a huge page, until
	 * there are so many more faults than were thought that it can only be small ones.
	 */
	if (getrusage(RUSAGE_SELF, &usage))
		return;
	real = (uint64_t)usage.ru_minflt - t->real_faults;
	t->real_faults = (uint64_t)usage.ru_minflt;
	if (t->features & MB_PAGEMAP_SCAN)
		t->guess_huge = false;
	else if (t->now.invalidations && real > FAULTS_WRONG * t->now.faults + FAULTS_FEW)
		t->guess_huge = false;
}

/*
 * Page tables do not show all faults: KVM may map a huge page in parts (without nested paging: as
 * the guest does), and a vCPU that touches what is being taken out leaves the guest again and again
 * until that is over, which is long where the thread that does it waits for a CPU. KVM counts them,
 * with those that the guest has by itself. So what KVM counted is paid for, as far as it can be
 * because of us.
 */
static uint64_t since(uint64_t *last, uint64_t now)
{
	uint64_t n = now > *last ? now - *last : 0;

	*last += n;
	return n;
}

/* Nothing that KVM counted in this second is because of us: nor were vCPUs new in their views. */
static bool is_quiet(const struct mb_tracker *t)
{
	return !t->now.invalidations && !t->n_zoomed &&
	       (t->n_turns == 1 || t->second_ns >= t->turn_ns + SECOND_NS);
}

static void correct(struct mb_tracker *t)
{
	struct mb_vcpu_faults now, *n = &t->now.kvm_faults;
	float most_repeats = (float)t->now.calls_ns * t->busy / (float)t->fault_ns;
	float small = (float)(t->now.faults - t->now.huge_faults), ours, per_huge;
	int64_t more_ns;
	bool knew = t->knows_kvm_faults;

	t->knows_kvm_faults = t->config.faults && !t->config.faults(t->config.ctx, &now);
	if (!t->knows_kvm_faults)
		return;
	n->fixed = since(&t->kvm_faults.fixed, now.fixed);
	n->repeated = since(&t->kvm_faults.repeated, now.repeated);
	if (!knew)
		return;
	/* Small pages are paid for when they are taken out, whenever they come back. */
	ours = fmaxf((float)n->fixed - t->own_faults, (float)t->now.faults);
	ours = fminf(ours, small + t->may_fault);
	if (is_quiet(t) || !t->knows_own)
		t->own_faults =
			t->knows_own ? (t->own_faults + (float)n->fixed) / 2 : (float)n->fixed;
	else
		t->own_faults *= OWN_DECAY;
	t->knows_own = true;
	/* What has not come within a second or two will not. */
	t->may_fault = (t->may_fault - fmaxf(ours - small, 0)) / 2;
	more_ns = (int64_t)((ours + fminf((float)n->repeated, most_repeats) -
				    (float)t->now.paid_faults) *
			    (float)t->fault_ns);
	if (more_ns < -(int64_t)t->now.guest_ns)
		more_ns = -(int64_t)t->now.guest_ns;
	t->guest.left_ns -= more_ns;
	t->now.guest_ns += (uint64_t)more_ns;
	if (!t->now.huge_faults)
		return;
	per_huge = fminf(fmaxf((ours - small) / (float)t->now.huge_faults, 1), MB_HEAT_BLOCK_PAGES);
	t->per_huge = t->knows_per_huge ? (t->per_huge + per_huge) / 2 : per_huge;
	t->knows_per_huge = true;
}

static void account_cpu(struct mb_tracker *t)
{
	uint64_t cpu_ns = mb_clock_ns(CLOCK_THREAD_CPUTIME_ID);

	t->cpu.left_ns -= (int64_t)(cpu_ns - t->thread_cpu_ns);
	t->now.cpu_ns += cpu_ns - t->thread_cpu_ns;
	t->thread_cpu_ns = cpu_ns;
}

static uint64_t per_second(uint64_t n, uint64_t passed_ns)
{
	return n * SECOND_NS / passed_ns;
}

/* It may have been longer: what is slept through counts. */
static void second_over(struct mb_tracker *t, uint64_t passed_ns)
{
	struct spending *last = &t->last;

	*last = t->now;
	t->now = (struct spending){0};
	last->busy_ns = (uint64_t)(t->busy * (float)passed_ns);
	last->cpu_ns = per_second(last->cpu_ns, passed_ns);
	last->invalidations = (uint32_t)per_second(last->invalidations, passed_ns);
	last->faults = (uint32_t)per_second(last->faults, passed_ns);
	last->kvm_faults.fixed = per_second(last->kvm_faults.fixed, passed_ns);
	last->kvm_faults.repeated = per_second(last->kvm_faults.repeated, passed_ns);
}

static void account(struct mb_tracker *t, uint64_t now_ns)
{
	float passed = (float)(now_ns - t->refilled_ns);
	int64_t least_ns;
	uint64_t all_ns;

	account_cpu(t);
	/* Little changes in a guest that does nothing, and a host that has many of those wants to
	 * sleep. */
	if (t->busy <= BUSY_MIN && t->guest.left_ns >= 0)
		passed /= IDLE_SHARE;
	fill(&t->guest, (int64_t)(passed * (float)t->config.guest_ppm / 1e6f * t->busy),
		(int64_t)((float)t->config.guest_ppm * 1000 * t->busy));
	/* However wrong it was: it has to find out some day. */
	least_ns = -(int64_t)t->config.guest_ppm * 1000 * MAX_DEBT_S * t->config.n_vcpus;
	if (t->guest.left_ns < least_ns)
		t->guest.left_ns = least_ns;
	fill(&t->cpu, (int64_t)(passed * (float)t->config.cpu_ppm / 1e6f),
		(int64_t)t->config.cpu_ppm * 200);
	fill(&t->calls, (int64_t)(passed * INVALIDATIONS_PER_S * CALL_NS / SECOND_NS),
		INVALIDATIONS_PER_S / 4 * (int64_t)CALL_NS);
	t->refilled_ns = now_ns;
	if (now_ns - t->second_ns < SECOND_NS)
		return;
	/* How much CPU the guest has: this process' but for us. */
	all_ns = mb_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	t->now.busy_ns = all_ns - t->process_cpu_ns > t->now.cpu_ns
				 ? all_ns - t->process_cpu_ns - t->now.cpu_ns
				 : 0;
	t->busy = (float)t->now.busy_ns / (float)(now_ns - t->second_ns);
	if (t->busy > (float)t->config.n_vcpus)
		t->busy = (float)t->config.n_vcpus;
	if (t->busy < BUSY_MIN)
		t->busy = BUSY_MIN;
	t->process_cpu_ns = all_ns;
	look_around(t);
	correct(t);
	second_over(t, now_ns - t->second_ns);
	t->second_ns = now_ns;
}

static bool may_spend(const struct mb_tracker *t)
{
	/* A second first, in which nothing is out: what KVM counts then is not because of us. */
	if (t->knows_kvm_faults && !t->knows_own)
		return false;
	return t->guest.left_ns > 0 && t->cpu.left_ns > 0 && t->calls.left_ns > 0;
}

void mb_tracker_complain(struct mb_tracker *t, const char *what, int rc)
{
	if (!t->said_error)
		mb_log("%s: tracker: cannot %s: %s%s", t->config.name, what, strerror(-rc),
			rc == -ENOMEM
				? "; too many mappings (vm.max_map_count), or too little memory"
				: "");
	t->said_error = true;
}

/* ---- turns ---- */

/* What is looked into then is looked into to the end, if that is not too far. */
static uint64_t turn_end_ns(const struct mb_tracker *t)
{
	return t->n_turns == 1 ? UINT64_MAX
			       : t->turn_ns + TURN_NS + (mb_zooms_run(t) ? TURN_ZOOM_NS : 0);
}

static bool may_begin_zoom(const struct mb_tracker *t, uint64_t now_ns)
{
	return mb_zoom_may_begin(t) && (t->n_turns == 1 || now_ns < t->turn_ns + TURN_NS);
}

/*
 * Windows that vCPUs of different turns would see are dropped. What a group has not touched in its
 * new view before is a fault there: KVM's count tells how many, and they are paid for.
 */
static void next_turn(struct mb_tracker *t, uint64_t now_ns)
{
	mb_windows_drop(t, now_ns);
	mb_zooms_end(t, true, now_ns);
	t->turn = (t->turn + 1) % t->n_turns;
	t->heat = t->heat_of_turn[t->turn];
	t->turn_ns = now_ns + TURN_SETTLES_NS;
	t->may_fault += (float)(in_use_bytes(t) / MB_HEAT_PAGE_BYTES);
	t->config.take_turn(t->config.ctx, t->turn);
}

static bool any_open(const struct mb_tracker *t)
{
	for (unsigned i = 0; i < MAX_OPEN; i++)
		if (t->window[i].phase != CLOSED)
			return true;
	return false;
}

/* The longest that may be opened now: touches, and then writes, are seen in one turn. */
static uint64_t longest_window(const struct mb_tracker *t, uint64_t now_ns, bool long_ones)
{
	uint64_t longest_ns = long_ones ? UINT64_MAX : LONG_WINDOW_NS - 1, end_ns = turn_end_ns(t);

	if (end_ns < UINT64_MAX && (end_ns - now_ns) / 2 < longest_ns)
		longest_ns = (end_ns - now_ns) / 2;
	return longest_ns;
}

/* ---- the thread ---- */

/* Budgets go on where they were left: to switch it on again and again buys nothing. */
static void begin(struct mb_tracker *t, uint64_t now_ns)
{
	t->thread_cpu_ns = mb_clock_ns(CLOCK_THREAD_CPUTIME_ID);
	t->process_cpu_ns = mb_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	t->second_ns = now_ns;
	t->now = t->last = (struct spending){0};
	t->busy = BUSY_MIN; /* until it is known */
	t->turn_ns = now_ns;
	look_around(t);
	t->knows_kvm_faults = false;
	correct(t);
	t->now = (struct spending){0}; /* what KVM had counted before */
	if (!t->knows_kvm_faults)
		t->per_huge = 1;
}

/* False: nothing is due of what may be out. */
static bool open_next(struct mb_tracker *t, struct window *w, uint64_t now_ns, uint64_t *next_ns)
{
	bool short_ones = mb_windows_room(t, false), long_ones = mb_windows_room(t, true);
	struct mb_heat_pick pick;
	uint64_t due_ns;

	if (!mb_heat_pick(t->heat, now_ns, short_ones ? 0 : LONG_WINDOW_NS,
		    longest_window(t, now_ns, long_ones), may_begin_zoom(t, now_ns),
		    mb_heat_random(&t->seed), &pick, &due_ns)) {
		if (due_ns < *next_ns)
			*next_ns = due_ns;
		return false;
	}
	mb_window_open(t, w, &pick, now_ns);
	account_cpu(t);
	return true;
}

/* Closes and opens windows; returns when the next one is due. */
static uint64_t work(struct mb_tracker *t, uint64_t now_ns)
{
	uint64_t next_ns = now_ns + MAX_SLEEP_NS;
	bool over;

	account(t, now_ns);
	if (now_ns < t->turn_ns)
		return t->turn_ns;
	for (unsigned i = 0; i < MAX_OPEN; i++) {
		struct window *w = &t->window[i];

		if (w->phase != CLOSED && w->due_ns <= now_ns)
			mb_window_close(t, w, now_ns);
	}
	mb_zooms_end(t, false, now_ns);
	over = now_ns >= turn_end_ns(t);
	if (over && (!any_open(t) || now_ns >= turn_end_ns(t) + TURN_LATE_NS)) {
		next_turn(t, now_ns);
		return t->turn_ns;
	}
	/* What a window is open on is neither divided nor joined: so after some were closed, and
	 * not in step with those that come once a second. */
	if (now_ns - t->adapted_ns >= ADAPT_NS || mb_heat_wants_adapt(t->heat)) {
		mb_heat_adapt(t->heat, now_ns);
		t->adapted_ns = now_ns;
	}
	for (unsigned i = 0; i < MAX_OPEN; i++) {
		struct window *w = &t->window[i];
		if (w->phase != CLOSED || !may_spend(t) || over)
			continue;
		if (!open_next(t, w, now_ns, &next_ns))
			break;
	}
	for (unsigned i = 0; i < MAX_OPEN; i++)
		if (t->window[i].phase != CLOSED && t->window[i].due_ns < next_ns)
			next_ns = t->window[i].due_ns;
	return next_ns > now_ns + MIN_SLEEP_NS ? next_ns : now_ns + MIN_SLEEP_NS;
}

static void *thread_main(void *arg)
{
	struct mb_tracker *t = arg;
	uint64_t fault_ns = t->fault_ns; /* only this thread writes it */

	pthread_setname_np(pthread_self(), "tracker");
	if (!fault_ns && (!t->config.host || mb_fault_cost_ns(t->config.host, &fault_ns)))
		fault_ns = FAULT_NS;
	pthread_mutex_lock(&t->lock);
	t->fault_ns = fault_ns;
	begin(t, mb_now_ns());
	while (t->running) {
		uint64_t until_ns;
		struct timespec ts;

		if (t->n_holds) {
			pthread_cond_wait(&t->wake, &t->lock);
			continue;
		}
		until_ns = work(t, mb_now_ns());
		ts = (struct timespec){.tv_sec = (time_t)(until_ns / SECOND_NS),
			.tv_nsec = (long)(until_ns % SECOND_NS)};
		pthread_cond_timedwait(&t->wake, &t->lock, &ts);
	}
	correct(t);
	mb_windows_drop(t, mb_now_ns());
	if (!t->n_holds)
		mb_zooms_end(t, true, mb_now_ns());
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

/* ---- the interface ---- */

int mb_tracker_create(
	const struct mb_tracker_config *config, struct mb_tracker **out, struct mb_error *err)
{
	struct mb_heat_config heat = {
		.n_blocks = config->ram_bytes / MB_HEAT_BLOCK_BYTES, .n_views = config->n_views};
	struct mb_tracker *t = calloc(1, sizeof(*t));
	int rc = 0;

	if (!t)
		return mb_error_set(err, ENOMEM, "tracker: out of memory");
	t->config = *config;
	if (!t->config.guest_ppm)
		t->config.guest_ppm = MB_TRACKER_GUEST_PPM;
	if (!t->config.cpu_ppm)
		t->config.cpu_ppm = MB_TRACKER_CPU_PPM;
	t->fault_ns = config->fault_ns;
	t->guess_huge = true;
	t->per_huge = MB_HEAT_BLOCK_PAGES; /* the worst, until KVM has said what it does */
	t->refilled_ns = mb_now_ns();
	pthread_mutex_init(&t->lock, NULL);
	mb_cond_init(&t->wake);
	if (!t->config.n_groups)
		t->config.n_groups = config->n_views;
	heat.n_turns = t->n_turns = mb_heat_n_turns(t->config.n_groups, config->n_views);
	for (unsigned i = 0; i < t->n_turns && !rc; i++)
		rc = mb_heat_create(&heat, &t->heat_of_turn[i]);
	t->heat = t->heat_of_turn[0];
	if (rc) {
		mb_tracker_destroy(t);
		return mb_error_set(err, -rc, "tracker: %s", strerror(-rc));
	}
	*out = t;
	return 0;
}

static void free_windows(struct mb_tracker *t)
{
	for (unsigned i = 0; i < MAX_OPEN; i++) {
		free(t->window[i].seen.view);
		t->window[i].seen.view = NULL;
	}
}

void mb_tracker_destroy(struct mb_tracker *t)
{
	if (!t)
		return;
	while (t->n_starts)
		mb_tracker_stop(t);
	mb_pagemap_close(t->pm);
	for (unsigned i = 0; i < MB_HEAT_TURNS; i++)
		mb_heat_destroy(t->heat_of_turn[i]);
	pthread_cond_destroy(&t->wake);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static int open_pagemap(struct mb_tracker *t, struct mb_error *err)
{
	struct mb_pagemap *pm = NULL;
	int rc = mb_pagemap_open(t->config.features, &pm, err);

	for (unsigned v = 0; v < t->config.n_views && !rc; v++) {
		rc = mb_pagemap_watch(pm, t->config.view_base[v], t->config.ram_bytes);
		if (rc)
			mb_error_set(err, -rc, "guest memory: %s", strerror(-rc));
	}
	if (rc) {
		mb_pagemap_close(pm);
		return rc;
	}
	pthread_mutex_lock(&t->lock);
	__atomic_store_n(&t->pm, pm, __ATOMIC_RELEASE); /* until the end */
	t->features = mb_pagemap_features(pm);
	pthread_mutex_unlock(&t->lock);
	if (!t->said_features && !(t->features & MB_PAGEMAP_WRITES))
		mb_log("%s: tracker: this host does not tell written pages from read ones "
		       "(mirrorball doctor says why)",
			t->config.name);
	if (!t->said_features && !(t->features & MB_PAGEMAP_EXACT))
		mb_log("%s: tracker: userfaultfd is refused: touched pages are seen 64 KiB at a "
		       "time",
			t->config.name);
	t->said_features = true;
	return 0;
}

/* Takes no lock: who calls may have one that the tracker's thread waits for. */
void mb_tracker_watch(struct mb_tracker *t, unsigned view, uint64_t offset, uint64_t len)
{
	const struct mb_pagemap *pm = t ? __atomic_load_n(&t->pm, __ATOMIC_ACQUIRE) : NULL;

	if (pm)
		mb_pagemap_watch_again(pm, (char *)t->config.view_base[view] + offset, len);
}

static void set_running(struct mb_tracker *t, bool running)
{
	pthread_mutex_lock(&t->lock);
	t->running = running;
	pthread_cond_signal(&t->wake);
	pthread_mutex_unlock(&t->lock);
}

/*
 * What the kernel knows of our mappings stays until the end: to forget it, it would drop all
 * translations of the guest.
 */
int mb_tracker_start(struct mb_tracker *t, struct mb_error *err)
{
	int rc = 0;

	if (t->n_starts) {
		t->n_starts++;
		return 0;
	}
	for (unsigned i = 0; i < MAX_OPEN; i++) {
		t->window[i].seen.view =
			calloc(t->config.n_views, sizeof(struct mb_heat_seen_view));
		if (!t->window[i].seen.view)
			rc = mb_error_set(err, ENOMEM, "out of memory");
	}
	if (!rc && !t->pm)
		rc = open_pagemap(t, err);
	if (!rc) {
		set_running(t, true);
		rc = mb_thread_start(&t->thread, STACK_BYTES, NULL, thread_main, t);
		if (rc) {
			set_running(t, false);
			mb_error_set(err, -rc, "its thread: %s; too many processes? (ulimit -u)",
				strerror(-rc));
		}
	}
	if (rc) {
		free_windows(t);
		return mb_error_prefix(err, rc, "tracker");
	}
	t->n_starts = 1;
	return 0;
}

void mb_tracker_stop(struct mb_tracker *t)
{
	if (!t->n_starts || --t->n_starts)
		return;
	set_running(t, false);
	pthread_join(t->thread, NULL);
	free_windows(t);
}

void mb_tracker_hold(struct mb_tracker *t)
{
	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	if (!t->n_holds++ && t->running)
		mb_windows_drop(t, mb_now_ns());
	pthread_mutex_unlock(&t->lock);
}

void mb_tracker_release(struct mb_tracker *t)
{
	if (!t)
		return;
	pthread_mutex_lock(&t->lock);
	if (!--t->n_holds) {
		pthread_cond_signal(&t->wake);
		/* It was stopped meanwhile. */
		if (!t->running)
			mb_zooms_end(t, true, mb_now_ns());
	}
	pthread_mutex_unlock(&t->lock);
}

static uint32_t ppm(uint64_t part_ns, uint64_t whole_ns)
{
	return whole_ns ? (uint32_t)(part_ns * 1000000 / whole_ns) : 0;
}

void mb_tracker_stats(struct mb_tracker *t, struct mb_tracker_stats *stats)
{
	pthread_mutex_lock(&t->lock);
	*stats = (struct mb_tracker_stats){
		.running = t->running,
		.features = t->features,
		.covered_bytes = UINT64_MAX,
		.n_windows = t->n_windows,
		.n_zooms = t->n_zooms,
		.fault_ns = t->fault_ns,
		.cpu_budget_ppm = t->config.cpu_ppm,
		.guest_budget_ppm = t->config.guest_ppm,
	};
	/* What not all turns have seen is not known. */
	for (unsigned i = 0; i < t->n_turns; i++) {
		const struct mb_heat_map *heat = t->heat_of_turn[i];
		uint64_t covered = mb_heat_n_covered(heat) * MB_HEAT_BLOCK_BYTES;
		uint64_t huge = mb_heat_n_huge(heat) * MB_HEAT_BLOCK_BYTES;

		stats->n_regions += mb_heat_n_regions(heat);
		if (covered < stats->covered_bytes)
			stats->covered_bytes = covered;
		if (huge > stats->huge_bytes)
			stats->huge_bytes = huge;
	}
	if (t->running) {
		stats->cpu_ppm = ppm(t->last.cpu_ns, SECOND_NS);
		stats->guest_ppm = ppm(t->last.guest_ns, t->last.busy_ns);
		stats->invalidations = t->last.invalidations;
		stats->faults = t->last.faults;
		stats->knows_kvm_faults = t->knows_kvm_faults;
		stats->kvm_faults = t->last.kvm_faults;
	}
	pthread_mutex_unlock(&t->lock);
	stats->in_use_bytes = in_use_bytes(t);
	if (stats->huge_bytes > stats->in_use_bytes)
		stats->huge_bytes = stats->in_use_bytes;
}

int mb_tracker_extents(struct mb_tracker *t, struct mb_extent **out, unsigned *n)
{
	struct mb_heat_turn turn[MB_HEAT_TURNS] = {{0}};
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < t->n_turns && !rc; i++)
		rc = mb_heat_extents(t->heat_of_turn[i], mb_now_ns(), &turn[i].extent, &turn[i].n);
	pthread_mutex_unlock(&t->lock);
	if (!rc && t->n_turns > 1)
		rc = mb_heat_combine(
			turn, t->n_turns, t->config.n_groups, t->config.n_views, out, n);
	if (!rc && t->n_turns == 1) {
		*out = turn[0].extent;
		*n = turn[0].n;
		turn[0].extent = NULL;
	}
	for (unsigned i = 0; i < t->n_turns; i++)
		free(turn[i].extent);
	if (!rc)
		mb_tracker_find_nodes(t, *out, *n);
	return rc;
}
