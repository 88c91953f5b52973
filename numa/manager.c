// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/log.h>
#include <mirrorball/manager.h>
#include <mirrorball/thread.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "copied.h"
#include "storm.h"

#define STACK_BYTES  (256u << 10) /* the policy's host is large */
#define SECOND_NS    1000000000ull
#define TRIES	     5u	 /* one in so many copies of a storm */
#define PAGE	     MB_HEAT_PAGE_BYTES
#define BLOCK	     MB_HEAT_BLOCK_BYTES

/* Half of a storm. */
struct gusts {
	uint64_t took_ns; /* all so far */
	uint32_t n;	  /* so far: the seed of the next one */
};

struct mb_manager {
	struct mb_manager_config config; /* host and view: only the thread that steps */
	struct mb_policy *policy;	 /* only the thread that steps */
	pthread_t thread;
	bool runs;
	bool said_error;    /* only the thread that steps */
	uint64_t rest_ns;   /* only the thread that steps: until the next one */
	/* Only the thread that steps, in a storm. */
	uint64_t looked_ns;
	struct gusts moves, copies;
	struct mb_plan tries; /* only the thread that steps: to be copied next time */

	/* Protects what follows; no other lock is taken under it, and nothing is called. */
	pthread_mutex_t lock;
	pthread_cond_t wake;
	bool stop;
	unsigned n_holds;
	struct mb_manager_stats stats;
	struct mb_decision decision[MB_MANAGER_DECISIONS]; /* a ring */
	uint64_t n_decisions;				   /* so far */
	struct mb_verdict range[MB_MANAGER_RANGES];
	unsigned n_ranges;
	struct mb_manager_sample sample[MB_MANAGER_SAMPLES];
	unsigned n_samples;
	unsigned sample_every, sample_skip;	   /* steps */
	struct mb_policy_view view[MB_HEAT_VIEWS]; /* config.view is its copy of the last turn */
};

int mb_manager_create(const struct mb_manager_config *config, struct mb_manager **out)
{
	struct mb_manager *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return -ENOMEM;
	m->config = *config;
	memcpy(m->view, config->view, sizeof(m->view));
	m->sample_every = 1;
	m->rest_ns = SECOND_NS;
	rc = mb_policy_create(&m->policy);
	if (rc) {
		free(m);
		return rc;
	}
	pthread_mutex_init(&m->lock, NULL);
	mb_cond_init(&m->wake);
	*out = m;
	return 0;
}

void mb_manager_destroy(struct mb_manager *m)
{
	if (!m)
		return;
	mb_manager_stop(m);
	mb_policy_destroy(m->policy);
	mb_plan_finish(&m->tries);
	pthread_cond_destroy(&m->wake);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

void mb_manager_hold(struct mb_manager *m)
{
	if (!m)
		return;
	pthread_mutex_lock(&m->lock);
	m->n_holds++;
	pthread_mutex_unlock(&m->lock);
}

void mb_manager_release(struct mb_manager *m)
{
	if (!m)
		return;
	pthread_mutex_lock(&m->lock);
	m->n_holds--;
	pthread_mutex_unlock(&m->lock);
}

void mb_manager_set_view(struct mb_manager *m, unsigned view, const struct mb_policy_view *where)
{
	if (!m || view >= m->config.n_views)
		return;
	pthread_mutex_lock(&m->lock);
	m->view[view] = *where;
	pthread_mutex_unlock(&m->lock);
}

static bool may_go_on(struct mb_manager *m)
{
	bool may;

	pthread_mutex_lock(&m->lock);
	may = !m->n_holds && !m->stop;
	pthread_mutex_unlock(&m->lock);
	return may;
}

/* ---- what is known ---- */

/* A second, by the policy's estimate; *local: those by views that have this node, or a copy. */
static double accesses(
	const struct mb_manager *m, const struct mb_extent *e, int node, double *local)
{
	const struct mb_policy_host *host = &m->config.host;
	const struct mb_policy_config *policy = &m->config.policy;
	double per_touch = e->huge ? policy->block_touch_accesses / MB_HEAT_BLOCK_PAGES
				   : policy->page_touch_accesses;
	double pages = (double)e->len_bytes / (double)PAGE, sum = 0;

	for (unsigned v = 0; v < m->config.n_views; v++) {
		double of_view = pages * per_touch * (double)(e->view[v].read + e->view[v].write);
		double of_copies = of_view * mb_copied(&m->config, e, v);

		sum += of_view;
		*local += of_copies;
		for (unsigned i = 0; i < host->n_nodes; i++)
			if (host->node[i].id == node && m->config.view[v].weight[i] > 0)
				*local += of_view - of_copies;
	}
	return sum;
}

/* Of what is left over of an extent nobody knows where it is; with two nodes it is on the other. */
static int other_node(const struct mb_policy_host *host, int node)
{
	if (host->n_nodes != 2)
		return -1;
	return host->node[host->node[0].id == node].id;
}

struct found {
	double all, local;
	double bytes[MB_MAX_NODES], accesses[MB_MAX_NODES];
};

static void add_found(const struct mb_manager *m, const struct mb_extent *e, int node, double share,
	struct found *found)
{
	const struct mb_policy_host *host = &m->config.host;
	double local = 0, all = accesses(m, e, node, &local);

	found->all += all * share;
	found->local += local * share;
	for (unsigned i = 0; i < host->n_nodes; i++) {
		if (host->node[i].id != node)
			continue;
		found->bytes[i] += (double)e->len_bytes * share;
		found->accesses[i] += all * share;
	}
}

static void note_sample(struct mb_manager *m, uint64_t now_ns)
{
	if (m->sample_skip++ % m->sample_every)
		return;
	if (m->n_samples == MB_MANAGER_SAMPLES) {
		for (unsigned i = 0; i < MB_MANAGER_SAMPLES / 2; i++)
			m->sample[i] = m->sample[2 * i];
		m->n_samples /= 2;
		m->sample_every *= 2;
	}
	m->sample[m->n_samples++] = (struct mb_manager_sample){.time_ns = now_ns,
		.locality = m->stats.locality,
		.moved_bytes = m->stats.moved_bytes};
}

static void note_extents(
	struct mb_manager *m, const struct mb_extent *extent, unsigned n, uint64_t now_ns)
{
	const struct mb_policy_host *host = &m->config.host;
	struct found found = {0};

	for (unsigned i = 0; i < n; i++) {
		const struct mb_extent *e = &extent[i];

		if (e->node < 0)
			continue;
		add_found(m, e, e->node, (double)e->node_share, &found);
		add_found(m, e, other_node(host, e->node), 1 - (double)e->node_share, &found);
	}
	pthread_mutex_lock(&m->lock);
	m->stats.n_nodes = host->n_nodes;
	for (unsigned i = 0; i < host->n_nodes; i++) {
		struct mb_manager_node *node = &m->stats.node[i];

		node->id = host->node[i].id;
		node->total_bytes = host->node[i].total_bytes;
		node->free_bytes = host->node[i].free_bytes;
		node->guest_bytes = (uint64_t)found.bytes[i];
		node->accesses_per_s = found.accesses[i];
	}
	m->stats.knows_locality = found.all > 0;
	m->stats.locality = found.all > 0 ? (float)(found.local / found.all) : 0;
	if (found.all > 0)
		note_sample(m, now_ns);
	pthread_mutex_unlock(&m->lock);
}

/* ---- what is done ---- */

/* Caller holds the lock. */
static void note_moved(struct mb_manager *m, const struct mb_moved *moved, int from, int to)
{
	struct mb_manager_stats *s = &m->stats;

	s->n_moves++;
	s->moved_bytes += moved->moved_bytes;
	s->busy_bytes += moved->busy_bytes;
	s->full_bytes += moved->full_bytes;
	s->split_bytes += moved->split_bytes;
	s->move_ns += moved->ns;
	if (moved->longest_ns > s->longest_ns)
		s->longest_ns = moved->longest_ns;
	for (unsigned i = 0; i < s->n_nodes; i++) {
		if (s->node[i].id == to)
			s->node[i].in_bytes += moved->moved_bytes;
		if (s->node[i].id == from)
			s->node[i].out_bytes += moved->moved_bytes;
	}
}

static void note_decision(struct mb_manager *m, const struct mb_decision *d)
{
	pthread_mutex_lock(&m->lock);
	m->decision[m->n_decisions++ % MB_MANAGER_DECISIONS] = *d;
	note_moved(m, &d->moved, d->from, d->to);
	pthread_mutex_unlock(&m->lock);
}

static void complain(struct mb_manager *m, const char *what, int rc)
{
	if (!m->said_error)
		mb_log("%s: migration: cannot %s: %s", m->config.name, what, strerror(-rc));
	m->said_error = true;
}

static struct mb_decision decide(const struct mb_action *a, uint64_t now_ns)
{
	return (struct mb_decision){.time_ns = now_ns,
		.offset = a->offset,
		.len_bytes = a->len_bytes,
		.n_pieces = 1,
		.why = a->why,
		.from = a->from,
		.to = a->to,
		.gain_ns_per_s = a->gain_ns_per_s};
}

typedef int replicate_fn(
	void *ctx, uint64_t offset, uint64_t len, unsigned views, struct mb_replicated *done);

/* Adds what became of it to that of each view. */
static int copy_part(struct mb_manager *m, replicate_fn *replicate, uint64_t offset, uint64_t len,
	unsigned views, struct mb_moved *moved)
{
	struct mb_replicated done = {0};
	int rc = replicate(m->config.ctx, offset, len, views, &done);

	for (unsigned v = 0; v < m->config.n_views; v++) {
		if (!(views >> v & 1))
			continue;
		moved[v].moved_bytes += done.copied_bytes;
		moved[v].there_bytes += done.there_bytes;
		moved[v].busy_bytes += done.held_bytes + done.waiting_bytes + done.failed_bytes;
		moved[v].full_bytes += done.full_bytes;
		moved[v].absent_bytes += done.hole_bytes;
	}
	return rc;
}

static bool copies_along(const struct mb_action *a, const struct mb_action *b)
{
	return b->kind == MB_ACTION_REPLICATE && b->len_bytes && a->offset == b->offset;
}

/* Who wants a copy of what is `from` bytes into the range; up to *to all of them do. */
static unsigned views_at(const struct mb_plan *plan, unsigned i, uint64_t from, uint64_t *to)
{
	unsigned views = 0;

	*to = UINT64_MAX;
	for (unsigned k = i; k < plan->n_actions; k++) {
		const struct mb_action *a = &plan->action[k];

		if (!copies_along(&plan->action[i], a) || a->len_bytes <= from)
			continue;
		views |= 1u << a->view;
		*to = a->len_bytes < *to ? a->len_bytes : *to;
	}
	return views;
}

/*
 * All views that are to have a copy of a range get theirs in one call: a page of which one view has
 * a copy counts as done. A budget may have ended within it for one of them. Looks at all actions
 * that are left: there are max_actions. A decision for each view, as a move is, but nothing has
 * moved.
 */
static void copy(struct mb_manager *m, replicate_fn *replicate, struct mb_plan *plan, unsigned i,
	uint64_t now_ns)
{
	const struct mb_action first = plan->action[i];
	struct mb_moved moved[MB_HEAT_VIEWS] = {{0}};
	unsigned views;
	int rc = 0;

	for (uint64_t from = 0, to; !rc && (views = views_at(plan, i, from, &to)) != 0; from = to)
		rc = copy_part(m, replicate, first.offset + from, to - from, views, moved);
	pthread_mutex_lock(&m->lock);
	for (unsigned k = i; k < plan->n_actions; k++) {
		struct mb_action *a = &plan->action[k];
		struct mb_decision d;

		if (!copies_along(&first, a))
			continue;
		d = decide(a, now_ns);
		d.moved = moved[a->view];
		d.rc = rc;
		m->decision[m->n_decisions++ % MB_MANAGER_DECISIONS] = d;
		a->len_bytes = 0; /* done */
	}
	pthread_mutex_unlock(&m->lock);
}

/*
 * Memory of which it is not known what is written is protected, and gets its copies in the next
 * turn, but for what was written until then. What is not noted for want of memory stays protected
 * until it is written. Looks at all actions that are left: there are max_actions.
 */
static void begin_try(struct mb_manager *m, struct mb_plan *plan, unsigned i)
{
	const struct mb_action first = plan->action[i];
	struct mb_replicated done = {0};
	uint64_t len = 0;

	for (unsigned k = i; k < plan->n_actions; k++) {
		struct mb_action *a = &plan->action[k], *more;

		if (!copies_along(&first, a))
			continue;
		more = reallocarray(
			m->tries.action, m->tries.n_actions + 1u, sizeof(*m->tries.action));
		if (more) {
			m->tries.action = more;
			more[m->tries.n_actions] = *a;
			more[m->tries.n_actions++].is_try = false;
		}
		len = a->len_bytes > len ? a->len_bytes : len;
		a->len_bytes = 0; /* done */
	}
	m->config.ops->protect(m->config.ctx, first.offset, len, &done);
}

static void end_tries(struct mb_manager *m, uint64_t now_ns)
{
	for (unsigned i = 0; i < m->tries.n_actions; i++)
		if (m->tries.action[i].len_bytes)
			copy(m, m->config.ops->finish, &m->tries, i, now_ns);
	mb_plan_finish(&m->tries);
}

/* Small pages of one block. */
static bool is_piece(const struct mb_action *a)
{
	return a->kind == MB_ACTION_MIGRATE && !a->huge && a->len_bytes &&
	       a->offset / BLOCK == (a->offset + a->len_bytes - 1) / BLOCK;
}

static bool goes_along(const struct mb_action *a, const struct mb_action *b)
{
	return is_piece(b) && a->offset / BLOCK == b->offset / BLOCK && a->from == b->from &&
	       a->to == b->to && a->why == b->why && a->split == b->split;
}

static void add_piece(struct mb_action *a, uint64_t *pages, struct mb_decision *d)
{
	const uint64_t first = (a->offset - d->offset) / PAGE;

	for (uint64_t i = first; i < first + a->len_bytes / PAGE; i++)
		pages[i / 64] |= 1ull << i % 64;
	d->n_pieces++;
	d->len_bytes += a->len_bytes;
	d->gain_ns_per_s += a->gain_ns_per_s;
	a->len_bytes = 0; /* done */
}

/*
 * With the first piece of a block go all others of it that have the same way, in one call of the
 * kernel's, which interrupts every CPU. Looks at all actions that are left: there are max_actions.
 */
static int move_pieces(struct mb_manager *m, struct mb_plan *plan, unsigned i, struct mb_decision *d)
{
	const struct mb_action first = plan->action[i];
	uint64_t pages[MB_HEAT_BLOCK_PAGES / 64] = {0}, end = 0;
	struct mb_move move = {.node = (unsigned)first.to, .split = first.split, .pages = pages};

	for (unsigned k = i; k < plan->n_actions; k++) {
		const struct mb_action *a = &plan->action[k];

		if (!goes_along(&first, a))
			continue;
		d->offset = a->offset < d->offset ? a->offset : d->offset;
		end = a->offset + a->len_bytes > end ? a->offset + a->len_bytes : end;
	}
	d->n_pieces = 0;
	d->len_bytes = 0;
	d->gain_ns_per_s = 0;
	for (unsigned k = i; k < plan->n_actions; k++)
		if (goes_along(&first, &plan->action[k]))
			add_piece(&plan->action[k], pages, d);
	move.offset = d->offset;
	move.len_bytes = end - d->offset;
	if (d->n_pieces == 1)
		move.pages = NULL;
	return m->config.ops->move(m->config.ctx, &move, &d->moved);
}

static int move_range(struct mb_manager *m, const struct mb_action *a, struct mb_decision *d)
{
	const struct mb_move move = {.offset = a->offset,
		.len_bytes = a->len_bytes,
		.node = (unsigned)a->to,
		.huge = a->huge,
		.split = a->split};

	return m->config.ops->move(m->config.ctx, &move, &d->moved);
}

/* False: no more of this plan. */
static bool act(struct mb_manager *m, struct mb_plan *plan, unsigned i, uint64_t now_ns)
{
	const struct mb_action *a = &plan->action[i];
	struct mb_decision d = decide(a, now_ns);

	if (!a->len_bytes)
		return true;
	if (a->kind == MB_ACTION_REPLICATE) {
		if (a->is_try)
			begin_try(m, plan, i);
		else
			copy(m, m->config.ops->replicate, plan, i, now_ns);
		return true;
	}
	d.rc = is_piece(a) ? move_pieces(m, plan, i, &d) : move_range(m, a, &d);
	note_decision(m, &d);
	if (d.rc && d.rc != -ECANCELED)
		complain(m, "move memory", d.rc);
	return d.rc != -ECANCELED;
}

static bool says_the_same(const struct mb_verdict *a, const struct mb_verdict *b)
{
	return a->offset + a->len_bytes == b->offset && a->why == b->why && a->node == b->node &&
	       a->target == b->target && a->moves == b->moves;
}

/* The next range that begins at verdict i, which becomes the one after it. */
static struct mb_verdict join(const struct mb_plan *plan, unsigned *i)
{
	struct mb_verdict range = plan->verdict[(*i)++];

	for (; *i < plan->n_verdicts && says_the_same(&range, &plan->verdict[*i]); (*i)++) {
		const struct mb_verdict *v = &plan->verdict[*i];

		range.len_bytes += v->len_bytes;
		range.gain_ns_per_s += v->gain_ns_per_s;
		if (v->next_ns > range.next_ns)
			range.next_ns = v->next_ns;
		if (v->payback_ns > range.payback_ns)
			range.payback_ns = v->payback_ns;
	}
	return range;
}

/* Caller holds the lock. False: there are more of that size than there is room. */
static bool note_ranges(struct mb_manager *m, const struct mb_plan *plan, uint64_t least_bytes)
{
	m->n_ranges = 0;
	for (unsigned i = 0; i < plan->n_verdicts;) {
		struct mb_verdict range = join(plan, &i);

		if (range.len_bytes < least_bytes)
			continue;
		if (m->n_ranges == MB_MANAGER_RANGES)
			return false;
		m->range[m->n_ranges++] = range;
	}
	return true;
}

static void note_plan(struct mb_manager *m, const struct mb_plan *plan)
{
	pthread_mutex_lock(&m->lock);
	for (uint64_t least = 0; !note_ranges(m, plan, least);)
		least = least ? 2 * least : 2 * PAGE;
	memset(m->stats.why_bytes, 0, sizeof(m->stats.why_bytes));
	for (unsigned i = 0; i < plan->n_verdicts; i++)
		m->stats.why_bytes[plan->verdict[i].why] += plan->verdict[i].len_bytes;
	pthread_mutex_unlock(&m->lock);
}

/* For any of the views or all of them; or what comes before that. */
static void blow_copies(struct mb_manager *m, uint32_t seed)
{
	const struct mb_move what = mb_storm_move(seed, m->config.storm_bytes, &m->config.host);
	struct mb_replicated done = {0};

	if (!what.len_bytes)
		return;
	if (seed % TRIES == 0)
		m->config.ops->protect(m->config.ctx, what.offset, what.len_bytes, &done);
	else
		m->config.ops->replicate(m->config.ctx, what.offset, what.len_bytes,
			1 + seed % ((1u << m->config.n_views) - 1), &done);
}

/* Not a decision: nobody wanted it. */
static void blow_moves(struct mb_manager *m, uint32_t seed)
{
	const struct mb_move move = mb_storm_move(seed, m->config.storm_bytes, &m->config.host);
	struct mb_moved moved = {0};
	int rc;

	rc = move.len_bytes ? m->config.ops->move(m->config.ctx, &move, &moved) : 0;
	if (rc && rc != -ECANCELED)
		complain(m, "move memory", rc);
	pthread_mutex_lock(&m->lock);
	note_moved(m, &moved, -1, (int)move.node);
	pthread_mutex_unlock(&m->lock);
}

/*
 * Moves and copies have the same share of time, not of steps: how long a step of either takes is up
 * to the host, and to what the guest does.
 */
static void blow(struct mb_manager *m)
{
	const bool copies = m->config.policy.replicas && m->copies.took_ns < m->moves.took_ns;
	struct gusts *gusts = copies ? &m->copies : &m->moves;
	uint64_t begin_ns = mb_now_ns(), took_ns;

	(copies ? blow_copies : blow_moves)(m, gusts->n++);
	took_ns = mb_now_ns() - begin_ns;
	gusts->took_ns += took_ns;
	m->rest_ns = mb_storm_rest_ns(copies ? took_ns : 0);
}

/* Looks, and does what the policy says. */
static void step(struct mb_manager *m, uint64_t now_ns)
{
	struct mb_policy_input input = {.now_ns = now_ns,
		.config = &m->config.policy,
		.host = &m->config.host,
		.n_views = m->config.n_views,
		.view = m->config.view};
	struct mb_extent *extent = NULL;
	struct mb_plan plan = {0};
	int rc;

	pthread_mutex_lock(&m->lock);
	memcpy(m->config.view, m->view, sizeof(m->view));
	pthread_mutex_unlock(&m->lock);
	m->config.ops->look(m->config.ctx, &m->config.host);
	input.guest_ns = m->config.ops->guest_ns(m->config.ctx);
	if (m->config.policy.replicas)
		input.n_writes = m->config.ops->n_writes(m->config.ctx);
	rc = m->config.ops->extents(m->config.ctx, &extent, &input.n_extents);
	if (rc) {
		complain(m, "ask the tracker", rc);
		return;
	}
	note_extents(m, extent, input.n_extents, now_ns);
	/* What is planned counts as done: not while it cannot be. */
	if (!may_go_on(m) || m->config.storm_bytes)
		rc = -ECANCELED;
	if (!rc)
		end_tries(m, now_ns);
	if (!rc && m->config.policy.replicas)
		rc = mb_without_copied(&m->config, &extent, &input.n_extents);
	input.extent = extent;
	rc = rc ? rc : mb_policy_plan(m->policy, &input, &plan);
	if (!rc) {
		note_plan(m, &plan);
		for (unsigned i = 0; i < plan.n_actions && act(m, &plan, i, now_ns); i++)
			;
	} else if (rc != -ECANCELED) {
		complain(m, "make a plan", rc);
	}
	mb_plan_finish(&plan);
	free(extent);
}

void mb_manager_step(struct mb_manager *m, uint64_t now_ns)
{
	uint64_t begin_ns = mb_now_ns(), n = m->stats.n_steps;

	if (!may_go_on(m))
		return;
	/* Once a second also in a storm whose steps are slow: memory that is short comes back here.
	 */
	if (!m->config.storm_bytes || !n || now_ns - m->looked_ns >= SECOND_NS) {
		m->looked_ns = now_ns;
		step(m, now_ns);
	}
	if (m->config.storm_bytes)
		blow(m);
	pthread_mutex_lock(&m->lock);
	m->stats.n_steps++;
	m->stats.step_ns = mb_now_ns() - begin_ns;
	pthread_mutex_unlock(&m->lock);
}

/* ---- the thread ---- */

static void *thread_main(void *arg)
{
	struct mb_manager *m = arg;

	pthread_setname_np(pthread_self(), "manager");
	pthread_mutex_lock(&m->lock);
	while (!m->stop) {
		uint64_t until_ns = mb_now_ns() + m->rest_ns;
		struct timespec ts = {.tv_sec = (time_t)(until_ns / SECOND_NS),
			.tv_nsec = (long)(until_ns % SECOND_NS)};

		if (pthread_cond_timedwait(&m->wake, &m->lock, &ts) != ETIMEDOUT)
			continue;
		pthread_mutex_unlock(&m->lock);
		mb_manager_step(m, mb_now_ns());
		pthread_mutex_lock(&m->lock);
	}
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

int mb_manager_start(struct mb_manager *m, struct mb_error *err)
{
	int rc = mb_thread_start(&m->thread, STACK_BYTES, NULL, thread_main, m);

	if (rc)
		return mb_error_set(err, -rc, "migration: its thread: %s", strerror(-rc));
	m->runs = true;
	return 0;
}

void mb_manager_stop(struct mb_manager *m)
{
	if (!m || !m->runs)
		return;
	pthread_mutex_lock(&m->lock);
	m->stop = true;
	pthread_cond_signal(&m->wake);
	pthread_mutex_unlock(&m->lock);
	pthread_join(m->thread, NULL);
	m->runs = false;
}

/* ---- what others ask ---- */

void mb_manager_stats(struct mb_manager *m, struct mb_manager_stats *stats)
{
	pthread_mutex_lock(&m->lock);
	*stats = m->stats;
	pthread_mutex_unlock(&m->lock);
}

unsigned mb_manager_decisions(struct mb_manager *m, struct mb_decision *out, unsigned max)
{
	uint64_t n;

	pthread_mutex_lock(&m->lock);
	n = m->n_decisions < MB_MANAGER_DECISIONS ? m->n_decisions : MB_MANAGER_DECISIONS;
	if (n > max)
		n = max;
	for (uint64_t i = 0; i < n; i++)
		out[i] = m->decision[(m->n_decisions - n + i) % MB_MANAGER_DECISIONS];
	pthread_mutex_unlock(&m->lock);
	return (unsigned)n;
}

unsigned mb_manager_ranges(struct mb_manager *m, struct mb_verdict *out, unsigned max)
{
	unsigned n;

	pthread_mutex_lock(&m->lock);
	n = m->n_ranges < max ? m->n_ranges : max;
	memcpy(out, m->range, n * sizeof(*out));
	pthread_mutex_unlock(&m->lock);
	return n;
}

unsigned mb_manager_samples(struct mb_manager *m, struct mb_manager_sample *out, unsigned max)
{
	unsigned n;

	pthread_mutex_lock(&m->lock);
	n = m->n_samples < max ? m->n_samples : max;
	memcpy(out, m->sample + m->n_samples - n, n * sizeof(*out));
	pthread_mutex_unlock(&m->lock);
	return n;
}
