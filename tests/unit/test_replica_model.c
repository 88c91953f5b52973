// SPDX-License-Identifier: Apache-2.0
/*
 * The protocol of numa/replica.c as a state machine, and every state that it can be in (design,
 * section 3: the coherence invariant).
 *
 * One extent of as many words as there are writers: a vCPU in each view, and a device. A step is
 * one system call, one action of the kernel, or one access of a vCPU; any actor may take the next
 * one. The steps are called as in numa/replica.c:
 *
 *   protect   a view maps home, and writes of it are trapped (mremap(2) of a mapping that was
 *             registered and protected elsewhere: it waits until its event has been read)
 *   copy      home into a node's copy, a word at a time
 *   install   a view maps its copy, trapped from the first moment (mremap(2) as well)
 *   withdraw  protect, of a view that had a copy
 *   open      a view maps home, and may write (mmap(2); page tables are flushed when it returns)
 *   wake      who waits for a write runs again, and tries it again
 *   free      the copy's memory is given back
 *
 * After protect the replicator may as well leave it at that, and copy at another time what nobody wrote.
 *
 * Each order that is known to be wrong is explored, too, and must be found out.
 */
#include "run.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_VIEWS 3u
#define MAX_WORDS (MAX_VIEWS + 1)

enum mapping {
	HOME_OPEN,
	HOME_PROTECTED,
	COPY_PROTECTED,
	COPY_OPEN, /* never, but in wrong orders */
};

enum vcpu {
	RUNS,
	QUEUED, /* its fault is in the userfaultfd */
	TAKEN,	/* and was read */
};

enum actor {
	REPLICATOR,
	READER, /* of the userfaultfd: never waits for a lock, nor for an event */
	WORKER, /* what the reader cannot do at once */
	DEVICE,
	RECLAIMER,
	MIGRATOR,
	TRACKER,
	N_ACTORS,
};
static const char *const actor_name[] = {
	"replicator", "reader", "worker", "device", "reclaimer", "migrator", "tracker"};

/* Orders that are wrong. */
enum wrong {
	RIGHT,
	COPY_BEFORE_PROTECT,
	INSTALL_BEFORE_PROTECT, /* of the other views */
	OPEN_BEFORE_WITHDRAW,	/* home writable while a copy is still reachable */
	OPEN_SECOND_LAST,	/* the same, but only with two copies */
	WAKE_BEFORE_OPEN,	/* and not after */
	HOLD_WITHOUT_COLLAPSE,	/* by the device */
	HOLD_NOT_SEEN,		/* holds are looked at before the device can see the replicator */
	INSTALL_WRITABLE,	/* mmap(2), and then registered and protected */
	DROP_FAULT,		/* that comes while another thread has the lock */
	READER_WAITS,		/* for the lock, whose owner may wait for the reader */
	READER_WITHDRAWS,	/* which waits for the reader */
	REMAP_WITHOUT_COLLAPSE, /* by the tracker, to have huge pages back */
	ZAP_LOSES_COPY,		/* copies in anonymous memory */
	ZAP_LOSES_PROTECTION,	/* of a huge mapping */
	FREE_BEFORE_OPEN,	/* a copy that is still mapped */
	UNDO_WITHOUT_WAKE,	/* a replication that fails */
	N_WRONG,
};

/* Where an actor is. The collapse is the same for all. */
enum pc {
	START,
	CHECK_HOLDS,
	PROTECT,
	COPY,
	INSTALL,
	INSTALLED_WRITABLE, /* wrong */
	TRY_LOCK,
	WAIT_LOCK,
	COLLAPSE,
	RELEASE,
	AFTER_COLLAPSE,
	UNLOCK,
	IN_HAND, /* the device has the memory, or the kernel moves the page */
	END,
};

struct machine {
	uint8_t map[MAX_VIEWS];
	uint8_t home[MAX_WORDS], copy[MAX_VIEWS][MAX_WORDS];
	uint8_t wrote[MAX_WORDS]; /* what a reader must find */
	uint8_t vcpu[MAX_VIEWS];
	uint8_t pc[N_ACTORS], left[N_ACTORS]; /* turns */
	uint8_t step, copies;		      /* of the replicator: views that get one */
	uint8_t lock;			      /* its owner + 1 */
	uint8_t event;			      /* who waits for it to be read, + 1 */
	bool active;			      /* there may be something else than home */
	bool queued;			      /* for the worker */
	bool migrating, unwoken;
	uint8_t holds, failures;
};

struct setup {
	unsigned n_views, n_writes, turns[N_ACTORS], n_failures;
	enum wrong wrong;
};

/* ---- exploring ---- */

struct node {
	struct machine m;
	uint32_t parent;
	char step[40];
};

static struct {
	struct setup s;
	struct node *node;
	uint32_t n, size;
	uint32_t *table; /* index + 1 */
	uint32_t table_size;
	const char *violation;
	uint32_t where;
} x;

static uint64_t hash(const struct machine *m)
{
	const uint8_t *b = (const void *)m;
	uint64_t h = 0xcbf29ce484222325ull;

	for (size_t i = 0; i < sizeof(*m); i++)
		h = (h ^ b[i]) * 0x100000001b3ull;
	return h ^ h >> 29;
}

static void grow_table(void)
{
	x.table_size *= 2;
	free(x.table);
	x.table = calloc(x.table_size, sizeof(*x.table));
	for (uint32_t i = 0; i < x.n; i++) {
		uint32_t at = (uint32_t)hash(&x.node[i].m) & (x.table_size - 1);

		while (x.table[at])
			at = (at + 1) & (x.table_size - 1);
		x.table[at] = i + 1;
	}
}

/* The place of a state in the table; empty if it is new. */
static uint32_t *find(const struct machine *m)
{
	uint32_t at = (uint32_t)hash(m) & (x.table_size - 1);

	while (x.table[at] && memcmp(&x.node[x.table[at] - 1].m, m, sizeof(*m)) != 0)
		at = (at + 1) & (x.table_size - 1);
	return &x.table[at];
}

static uint32_t from;	/* whose successors are made */
static uint32_t *n_in;	/* [state]: steps that lead to it */
static uint32_t *ready; /* states without any */
static uint32_t n_ready;
static enum { EXPLORE, COUNT, REMOVE } pass;
static uint32_t n_steps;

static void reach(const struct machine *m, enum actor a, const char *what, int view)
{
	uint32_t *at = find(m);

	n_steps++;
	if (pass == COUNT)
		n_in[*at - 1]++;
	if (pass == REMOVE && !--n_in[*at - 1])
		ready[n_ready++] = *at - 1;
	if (pass != EXPLORE || *at)
		return;
	if (x.n == x.size) {
		x.size *= 2;
		x.node = realloc(x.node, x.size * sizeof(*x.node));
	}
	x.node[x.n].m = *m;
	x.node[x.n].parent = from;
	if (view >= 0)
		snprintf(x.node[x.n].step, sizeof(x.node[x.n].step), "%s: %s view %d",
			a == N_ACTORS ? "vCPU" : actor_name[a], what, view);
	else
		snprintf(x.node[x.n].step, sizeof(x.node[x.n].step), "%s: %s", actor_name[a], what);
	*at = ++x.n;
	if (2 * x.n > x.table_size)
		grow_table();
}

static void violate(const char *what, uint32_t where)
{
	if (x.violation)
		return;
	x.violation = what;
	x.where = where;
}

/* ---- what may happen ---- */

static bool has_copy(const struct machine *m, unsigned v)
{
	return m->map[v] == COPY_PROTECTED || m->map[v] == COPY_OPEN;
}

static unsigned n_copies(const struct machine *m)
{
	unsigned n = 0;

	for (unsigned v = 0; v < x.s.n_views; v++)
		n += has_copy(m, v);
	return n;
}

static void wake(struct machine *m)
{
	for (unsigned v = 0; v < x.s.n_views; v++)
		m->vcpu[v] = RUNS;
}

static void vcpu(const struct machine *m, unsigned v)
{
	struct machine next = *m;

	if (m->vcpu[v] != RUNS || m->wrote[v] == x.s.n_writes)
		return;
	switch (m->map[v]) {
	case HOME_OPEN:
		if (m->migrating)
			return; /* until it is there */
		next.home[v]++;
		next.wrote[v]++;
		break;
	case COPY_OPEN:
		next.copy[v][v]++;
		next.wrote[v]++;
		break;
	default:
		next.vcpu[v] = QUEUED;
	}
	reach(&next, N_ACTORS, next.vcpu[v] == QUEUED ? "faults in" : "writes in", (int)v);
}

/* mremap(2) has done its work, and returns when its event was read. */
static void wait_for_event(struct machine *m, enum actor a)
{
	m->event = (uint8_t)(a + 1);
}

static void collapse(const struct machine *m, enum actor a)
{
	struct machine next = *m;
	bool early = x.s.wrong == OPEN_BEFORE_WITHDRAW ||
		     (x.s.wrong == OPEN_SECOND_LAST && n_copies(m) == 2);

	if (x.s.wrong == WAKE_BEFORE_OPEN && m->unwoken) {
		wake(&next);
		next.unwoken = false;
		reach(&next, a, "wake", -1);
		return;
	}
	if (x.s.wrong == FREE_BEFORE_OPEN && n_copies(m)) {
		bool is_empty = true;

		for (unsigned v = 0; v < x.s.n_views; v++)
			for (unsigned w = 0; w <= x.s.n_views; w++)
				is_empty &= !m->copy[v][w];
		memset(next.copy, 0, sizeof(next.copy));
		if (!is_empty) {
			reach(&next, a, "free", -1);
			return;
		}
	}
	for (unsigned v = 0; v < x.s.n_views; v++) {
		if (x.s.wrong == OPEN_BEFORE_WITHDRAW && m->map[v] == HOME_PROTECTED) {
			next.map[v] = HOME_OPEN;
			reach(&next, a, "open", (int)v);
			return;
		}
	}
	for (unsigned v = 0; v < x.s.n_views; v++) {
		if (!has_copy(m, v))
			continue;
		if (n_copies(m) > 1 && !early) {
			next.map[v] = HOME_PROTECTED;
			wait_for_event(&next, a);
			reach(&next, a, "withdraw", (int)v);
		} else {
			next.map[v] = HOME_OPEN;
			reach(&next, a, "open", (int)v);
		}
		return;
	}
	for (unsigned v = 0; v < x.s.n_views; v++) {
		if (m->map[v] == HOME_OPEN)
			continue;
		next.map[v] = HOME_OPEN;
		reach(&next, a, "open", (int)v);
		return;
	}
	next.pc[a] = AFTER_COLLAPSE;
	if (a == READER || a == WORKER ? x.s.wrong != WAKE_BEFORE_OPEN
				       : a != REPLICATOR || x.s.wrong != UNDO_WITHOUT_WAKE)
		wake(&next);
	reach(&next, a, "wake", -1);
}

/* Who had the lock is done with it. */
static void end_turn(struct machine *m, enum actor a)
{
	m->pc[a] = m->left[a] && !--m->left[a] ? END : START;
}

/* The lock, the collapse, the wake: what is the same for all. False: it does something else. */
static bool common(const struct machine *m, enum actor a)
{
	struct machine next = *m;

	switch (m->pc[a]) {
	case WAIT_LOCK:
		if (m->lock)
			return true;
		next.lock = (uint8_t)(a + 1);
		if (a == WORKER)
			next.queued = false; /* claims */
		next.unwoken = x.s.wrong == WAKE_BEFORE_OPEN;
		next.pc[a] = COLLAPSE;
		reach(&next, a, "lock", -1);
		return true;
	case COLLAPSE:
		collapse(m, a);
		return true;
	case AFTER_COLLAPSE:
		next.active = false;
		memset(next.copy, 0, sizeof(next.copy));
		next.lock = 0;
		if (a == TRACKER)
			next.map[x.s.n_views - 1] = HOME_OPEN; /* anew */
		if (a == DEVICE)
			next.pc[a] = IN_HAND;
		else
			end_turn(&next, a);
		reach(&next, a, "free, unlock", -1);
		return true;
	}
	return false;
}

/* A system call of the replicator fails: it undoes. */
static void may_fail(const struct machine *m)
{
	struct machine next = *m;

	if (!m->failures)
		return;
	next.failures--;
	next.unwoken = x.s.wrong == WAKE_BEFORE_OPEN;
	next.pc[REPLICATOR] = COLLAPSE;
	reach(&next, REPLICATOR, "fails", -1);
}

/* Nobody wrote it since. */
static bool is_protected(const struct machine *m)
{
	bool all = true;

	for (unsigned v = 0; v < x.s.n_views; v++)
		all &= m->map[v] == HOME_PROTECTED;
	return all;
}

static void start_replication(const struct machine *m)
{
	const bool tried = is_protected(m), may_try = x.s.wrong == RIGHT && !tried;

	/* In any views, even all of them; or none, only to protect it. */
	for (unsigned copies = !may_try; copies < 1u << x.s.n_views; copies++) {
		struct machine next = *m;

		if (m->lock || (m->active && !tried))
			return;
		next.lock = REPLICATOR + 1;
		next.copies = (uint8_t)copies;
		next.step = 0;
		next.active = tried || x.s.wrong != HOLD_NOT_SEEN;
		next.pc[REPLICATOR] = CHECK_HOLDS;
		reach(&next, REPLICATOR, "lock", -1);
	}
}

/* The next view that is to have a copy. */
static unsigned next_copy(const struct machine *m, unsigned v)
{
	while (v < x.s.n_views && !(m->copies >> v & 1))
		v++;
	return v;
}

/* To the first step of what comes next. */
static void go_on(struct machine *m, enum pc pc)
{
	m->pc[REPLICATOR] = (uint8_t)pc;
	m->step = 0;
}

/* One half, and then the other: it is not atomic. */
static void copy(const struct machine *m)
{
	struct machine next = *m;
	unsigned v = next_copy(m, m->step / 2), w = m->step % 2;

	if (v > m->step / 2)
		w = 0;
	for (unsigned i = 0; i <= x.s.n_views; i++)
		if ((i & 1) == w)
			next.copy[v][i] = m->home[i];
	next.step = (uint8_t)(2 * v + w + 1);
	if (w && next_copy(m, v + 1) == x.s.n_views)
		go_on(&next, x.s.wrong == COPY_BEFORE_PROTECT ? PROTECT : INSTALL);
	reach(&next, REPLICATOR, "copy for", (int)v);
}

static void install(const struct machine *m)
{
	struct machine next = *m;
	unsigned v = next_copy(m, m->step);

	if (x.s.wrong == INSTALL_WRITABLE) {
		next.step = (uint8_t)v;
		next.map[v] = COPY_OPEN;
		next.pc[REPLICATOR] = INSTALLED_WRITABLE;
		reach(&next, REPLICATOR, "map", (int)v);
		return;
	}
	next.map[v] = COPY_PROTECTED;
	wait_for_event(&next, REPLICATOR);
	next.active = true;
	next.step = (uint8_t)(v + 1);
	if (next_copy(m, v + 1) == x.s.n_views)
		go_on(&next, x.s.wrong == INSTALL_BEFORE_PROTECT ? PROTECT : UNLOCK);
	reach(&next, REPLICATOR, "install", (int)v);
}

static void protect(const struct machine *m)
{
	struct machine next = *m;
	unsigned v = m->step;

	if (!has_copy(m, v)) {
		next.map[v] = HOME_PROTECTED;
		wait_for_event(&next, REPLICATOR);
	}
	next.step++;
	if (next.step == x.s.n_views)
		go_on(&next, x.s.wrong == COPY_BEFORE_PROTECT			 ? INSTALL
			     : x.s.wrong == INSTALL_BEFORE_PROTECT || !m->copies ? UNLOCK
										 : COPY);
	reach(&next, REPLICATOR, "protect", (int)v);
}

static void replicator(const struct machine *m)
{
	const bool copies_first =
		x.s.wrong == COPY_BEFORE_PROTECT || x.s.wrong == INSTALL_BEFORE_PROTECT;
	struct machine next = *m;

	if (common(m, REPLICATOR))
		return;
	switch (m->pc[REPLICATOR]) {
	case START:
		if (m->left[REPLICATOR])
			start_replication(m);
		return;
	case CHECK_HOLDS:
		next.active = is_protected(m) || (!m->holds && x.s.wrong != HOLD_NOT_SEEN);
		next.pc[REPLICATOR] = m->holds ? UNLOCK : copies_first ? COPY : PROTECT;
		reach(&next, REPLICATOR, "looks for holds", -1);
		return;
	case PROTECT:
		protect(m);
		may_fail(m);
		return;
	case COPY:
		copy(m);
		may_fail(m);
		return;
	case INSTALL:
		install(m);
		may_fail(m);
		return;
	case INSTALLED_WRITABLE:
		next.map[m->step] = COPY_PROTECTED;
		next.step++;
		next.pc[REPLICATOR] = INSTALL;
		if (next_copy(m, next.step) == x.s.n_views)
			go_on(&next, UNLOCK);
		reach(&next, REPLICATOR, "protect", m->step);
		return;
	case UNLOCK:
		next.lock = 0;
		end_turn(&next, REPLICATOR);
		reach(&next, REPLICATOR, "unlock", -1);
	}
}

/* The kernel gives faults first, then events. */
static void read_message(const struct machine *m)
{
	struct machine next = *m;
	bool any = false;

	for (unsigned v = 0; v < x.s.n_views; v++) {
		if (m->vcpu[v] != QUEUED)
			continue;
		any = true;
		next = *m;
		next.vcpu[v] = TAKEN;
		next.pc[READER] = TRY_LOCK;
		reach(&next, READER, "reads the fault of", (int)v);
	}
	if (any || !m->event)
		return;
	next.event = 0;
	reach(&next, READER, "reads the event", -1);
}

static void reader(const struct machine *m)
{
	/* It wakes whoever faulted, even if there is nothing left to do: this alone would mend what
	 * these two do wrong. */
	const bool ignores = x.s.wrong == WAKE_BEFORE_OPEN || x.s.wrong == UNDO_WITHOUT_WAKE;
	struct machine next = *m;

	switch (m->pc[READER]) {
	case START:
		read_message(m);
		return;
	case TRY_LOCK:
		if (ignores && !m->active) {
			next.pc[READER] = START;
			reach(&next, READER, "has nothing to do", -1);
		} else if (m->lock && x.s.wrong == READER_WAITS) {
			return;
		} else if (m->lock || (n_copies(m) > 1 && x.s.wrong != READER_WITHDRAWS)) {
			next.queued = x.s.wrong != DROP_FAULT;
			next.pc[READER] = START;
			reach(&next, READER, "queues", -1);
		} else {
			next.lock = READER + 1;
			next.unwoken = x.s.wrong == WAKE_BEFORE_OPEN;
			next.pc[READER] = COLLAPSE;
			reach(&next, READER, "lock", -1);
		}
		return;
	}
	common(m, READER);
}

static void worker(const struct machine *m)
{
	struct machine next = *m;

	if (common(m, WORKER) || !m->queued)
		return;
	next.pc[WORKER] = WAIT_LOCK;
	reach(&next, WORKER, "takes from the queue", -1);
}

static void device(const struct machine *m)
{
	const unsigned w = x.s.n_views;
	struct machine next = *m;

	if (common(m, DEVICE))
		return;
	switch (m->pc[DEVICE]) {
	case START:
		if (!m->left[DEVICE])
			return;
		next.holds++;
		next.pc[DEVICE] = TRY_LOCK;
		reach(&next, DEVICE, "hold", -1);
		return;
	case TRY_LOCK:
		next.pc[DEVICE] =
			m->active && x.s.wrong != HOLD_WITHOUT_COLLAPSE ? WAIT_LOCK : IN_HAND;
		reach(&next, DEVICE, "looks for copies", -1);
		return;
	case IN_HAND:
		/* By the page itself: no page table matters. */
		if (m->migrating)
			return;
		next.home[w]++;
		next.wrote[w]++;
		next.pc[DEVICE] = RELEASE;
		reach(&next, DEVICE, "writes", -1);
		return;
	case RELEASE:
		next.holds--;
		end_turn(&next, DEVICE);
		reach(&next, DEVICE, "release", -1);
	}
}

static void reclaimer(const struct machine *m)
{
	struct machine next = *m;

	if (common(m, RECLAIMER) || !m->left[RECLAIMER] || m->lock)
		return;
	next.pc[RECLAIMER] = COLLAPSE;
	next.lock = RECLAIMER + 1;
	reach(&next, RECLAIMER, "lock", -1);
}

/* The kernel takes a page out of all page tables, moves it, and puts it back as protected as it
 * was; not while it is pinned. */
static void migrator(const struct machine *m)
{
	struct machine next = *m;

	if (m->pc[MIGRATOR] == START && m->left[MIGRATOR] && m->pc[DEVICE] != IN_HAND) {
		next.migrating = true;
		next.pc[MIGRATOR] = IN_HAND;
		reach(&next, MIGRATOR, "takes home out", -1);
	} else if (m->pc[MIGRATOR] == IN_HAND) {
		next.migrating = false;
		end_turn(&next, MIGRATOR);
		reach(&next, MIGRATOR, "puts home back", -1);
	}
}

static void zap(const struct machine *m)
{
	for (unsigned v = 0; v < x.s.n_views; v++) {
		struct machine next = *m;

		end_turn(&next, TRACKER);
		if (x.s.wrong == ZAP_LOSES_COPY && has_copy(m, v))
			memset(next.copy[v], 0, sizeof(next.copy[v]));
		if (x.s.wrong == ZAP_LOSES_PROTECTION && m->map[v] == HOME_PROTECTED)
			next.map[v] = HOME_OPEN;
		reach(&next, TRACKER, "zaps", (int)v);
	}
}

static void tracker(const struct machine *m)
{
	struct machine next = *m;

	if (common(m, TRACKER))
		return;
	if (!m->left[TRACKER])
		return;
	zap(m);
	if (x.s.wrong == REMAP_WITHOUT_COLLAPSE) {
		next.map[x.s.n_views - 1] = HOME_OPEN;
		end_turn(&next, TRACKER);
	} else if (m->lock) {
		return;
	} else {
		next.lock = TRACKER + 1;
		next.pc[TRACKER] = COLLAPSE;
	}
	reach(&next, TRACKER, "remaps", -1);
}

/* ---- what must hold ---- */

static const char *check(const struct machine *m)
{
	bool is_open = false;

	for (unsigned v = 0; v < x.s.n_views; v++) {
		const uint8_t *seen = has_copy(m, v) ? m->copy[v] : m->home;

		is_open |= m->map[v] == HOME_OPEN || m->map[v] == COPY_OPEN;
		/* Whoever reads now, anywhere, finds what was written last. */
		if (memcmp(seen, m->wrote, x.s.n_views + 1) != 0)
			return "a view shows other words than were written";
	}
	if (is_open && n_copies(m))
		return "a page is writable, and more than one copy of it is reachable";
	return NULL;
}

static bool is_over(const struct machine *m)
{
	for (unsigned v = 0; v < x.s.n_views; v++)
		if (m->wrote[v] != x.s.n_writes || m->vcpu[v] != RUNS)
			return false;
	for (unsigned a = 0; a < N_ACTORS; a++)
		if (m->pc[a] != START && m->pc[a] != END)
			return false;
	return !m->lock && !m->event && !m->queued && !m->holds;
}

static void take_steps(uint32_t i)
{
	static void (*const act[])(const struct machine *) = {
		replicator, reader, worker, device, reclaimer, migrator, tracker};
	const struct machine m = x.node[i].m;

	from = i;
	n_steps = 0;
	for (unsigned v = 0; v < x.s.n_views; v++)
		vcpu(&m, v);
	for (unsigned a = 0; a < N_ACTORS; a++)
		if (m.event != a + 1)
			act[a](&m);
}

static void explore_all(void)
{
	pass = EXPLORE;
	for (uint32_t i = 0; i < x.n && !x.violation; i++) {
		const char *bad = check(&x.node[i].m);

		if (bad) {
			violate(bad, i);
			return;
		}
		take_steps(i);
		if (!n_steps && !is_over(&x.node[i].m))
			violate("nobody can go on", i);
	}
}

/* States that cannot be removed one after the other go round and round. */
static void find_circles(void)
{
	n_in = calloc(x.n, sizeof(*n_in));
	ready = malloc(x.n * sizeof(*ready));
	pass = COUNT;
	for (uint32_t i = 0; i < x.n; i++)
		take_steps(i);
	n_ready = 0;
	if (!n_in[0])
		ready[n_ready++] = 0;
	pass = REMOVE;
	for (uint32_t i = 0; i < n_ready; i++)
		take_steps(ready[i]);
	if (n_ready != x.n)
		violate("it may go on for ever", 0);
	free(n_in);
	free(ready);
}

static void show(void)
{
	uint32_t path[256], n = 0;

	printf("%s:\n", x.violation);
	for (uint32_t i = x.where; i && n < 256; i = x.node[i].parent)
		path[n++] = i;
	while (n)
		printf("  %s\n", x.node[path[--n]].step);
}

/* What is violated, or NULL. */
static const char *explore(const struct setup *s)
{
	x.s = *s;
	x.violation = NULL;
	x.size = 1 << 16;
	x.node = malloc(x.size * sizeof(*x.node));
	x.table_size = 1 << 17;
	x.table = calloc(x.table_size, sizeof(*x.table));
	memset(&x.node[0], 0, sizeof(x.node[0]));
	for (unsigned a = 0; a < N_ACTORS; a++)
		x.node[0].m.left[a] = (uint8_t)s->turns[a];
	x.node[0].m.failures = (uint8_t)s->n_failures;
	x.table[(uint32_t)hash(&x.node[0].m) & (x.table_size - 1)] = 1;
	x.n = 1;
	explore_all();
	if (!x.violation)
		find_circles();
	printf("%u views: %u states\n", s->n_views, x.n);
	if (x.violation)
		show();
	free(x.node);
	free(x.table);
	return x.violation;
}

/* ---- the cases ---- */

START_TEST(test_right)
{
	static const struct setup setups[] = {
		{.n_views = 2, .n_writes = 2, .n_failures = 1, .turns = {2, 0, 0, 1, 1, 0, 0}},
		{.n_views = 2, .n_writes = 1, .turns = {2, 0, 0, 1, 1, 1, 1}},
		{.n_views = 3, .n_writes = 1, .n_failures = 1, .turns = {1, 0, 0, 1, 0, 0, 1}},
		{.n_views = 3, .n_writes = 1, .turns = {2, 0, 0, 0, 1, 1, 0}},
	};

	ck_assert_ptr_null(explore(&setups[_i]));
}
END_TEST

START_TEST(test_wrong)
{
	struct setup s = {.n_views = 2,
		.n_writes = 1,
		.n_failures = 1,
		.turns = {1, 0, 0, 1, 1, 0, 1},
		.wrong = (enum wrong)_i};

	if (_i == OPEN_SECOND_LAST || _i == READER_WITHDRAWS)
		s.n_views = 3;
	ck_assert_ptr_nonnull(explore(&s));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("replica_model");
	TCase *all = tcase_create("all");

	tcase_add_loop_test(all, test_right, 0, 4);
	tcase_add_loop_test(all, test_wrong, RIGHT + 1, N_WRONG);
	tcase_set_timeout(all, 120);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
