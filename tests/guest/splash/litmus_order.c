/* SPDX-License-Identifier: Apache-2.0 */
#include "litmus.h"

/*
 * x is on page a, y on page b. Store k of a round stores base + k; what was there before is less,
 * so in a comparison it is one of "not yet".
 */
#define LEAD	   24u	  /* of the two that store, none is further ahead of the other */
#define PATIENCE   20000u /* turns of a waiting loop in a round */
#define READS_EACH 64u	  /* between two looks whether it is time to give the host CPU away */

static void *x_of(const struct round *r)
{
	return r->a + AT_X;
}

static void *y_of(const struct round *r)
{
	return r->b + AT_Y;
}

/* Which store of this round it is; 0: none of them. */
static uint64_t nth(const struct round *r, uint64_t v)
{
	return v > r->base ? v - r->base : 0;
}

/*
 * Where both run at once there is something to see. They may not be able to, on a host with few
 * CPUs: then waiting for each other all the time would be all they do.
 */
static void keep_up(const struct round *r, uint64_t k, unsigned *patience)
{
	store(litmus_word(r, r->role), r->base + k);
	while (load_now(litmus_word(r, r->role ^ 1)) + LEAD < r->base + k && *patience) {
		__builtin_ia32_pause();
		--*patience;
	}
}

/* ---- MP: x = k; y = k  |  r1 = y; r2 = x: forbidden is r2 before r1 ---- */

static void send(const struct round *r)
{
	for (uint64_t k = 1; k <= STORES; k++) {
		store(x_of(r), r->base + k);
		store(y_of(r), r->base + k);
	}
	litmus_did(r, STORES);
}

static void receive(const struct round *r)
{
	uint64_t n = 0, last = 0, y, x;
	unsigned waits = 0;

	do {
		y = load_now(y_of(r));
		x = load_now(x_of(r));
		if (nth(r, x) < nth(r, y))
			litmus_forbidden(r, LITMUS_MP,
				"x is %lu (GPA 0x%lx) after y was %lu (GPA 0x%lx)", x,
				memory_gpa(x_of(r)), y, memory_gpa(y_of(r)));
		if (y < last)
			litmus_forbidden(r, LITMUS_CORR, "y goes back from %lu to %lu (GPA 0x%lx)",
				last, y, memory_gpa(y_of(r)));
		last = y;
		if (++n % READS_EACH == 0)
			spin(&waits);
	} while (y < r->base + STORES);
	litmus_did(r, n);
}

/*
 * The same with data on many pages, each written once, by several senders in one block of pages:
 * what one of them makes one page again, another writes at the same moment.
 */
#define PAGES_EACH 64u
#define PAUSES	   12u /* powers of two */

static bool is_sender(const struct round *r, unsigned role)
{
	return role < N_FLAGS && (!role || mix(r->random + role) & 1);
}

static uint64_t pages_each(const struct round *r)
{
	return MIN(PAGES_EACH, litmus_pages() / r->n);
}

static void *data_of(const struct round *r, unsigned role, uint64_t k)
{
	return litmus_page(r, k * r->n + role) + AT_X;
}

static void *flag_of(const struct round *r, unsigned role)
{
	return r->b + AT_FLAGS + role * CACHE_LINE;
}

void litmus_read_many(const struct round *r)
{
	for (uint64_t k = 1; k <= pages_each(r); k++)
		for (unsigned s = 0; s < r->n; s++)
			load_now(data_of(r, s, k));
}

static void send_many(const struct round *r)
{
	for (uint64_t k = 1; k <= pages_each(r); k++) {
		store(data_of(r, r->role, k), r->base + k);
		store(flag_of(r, r->role), r->base + k);
		for (uint64_t n = 1ull << rnd(r->self) % PAUSES; n; n--)
			__asm__ volatile("");
	}
	litmus_did(r, pages_each(r));
}

static void check_data(const struct round *r, unsigned role, uint64_t k)
{
	uint64_t x = load_now(data_of(r, role, k));

	if (x != r->base + k)
		litmus_forbidden(r, r->test,
			"sent were %lu (flag GPA 0x%lx), but %lu is %lu (GPA 0x%lx)", pages_each(r),
			memory_gpa(flag_of(r, role)), r->base + k, x,
			memory_gpa(data_of(r, role, k)));
}

/* What was told of, and one that was told of before. */
static void receive_many(const struct round *r)
{
	unsigned waits = 0, over;
	uint64_t n = 0;

	do {
		over = 0;
		for (unsigned s = 0; s < r->n; s++) {
			uint64_t k = is_sender(r, s) ? nth(r, load_now(flag_of(r, s))) : 0;

			over += !is_sender(r, s) || k == pages_each(r);
			if (!k)
				continue;
			check_data(r, s, k);
			check_data(r, s, 1 + rnd_below(r->self, k));
			n++;
		}
		spin(&waits);
	} while (over < r->n);
	litmus_did(r, n);
}

static void check_many(const struct round *r)
{
	for (unsigned s = 0; s < r->n; s++)
		for (uint64_t k = 1; is_sender(r, s) && k <= pages_each(r); k++)
			check_data(r, s, k);
}

/* ---- CoRR: x = k  |  r1 = x; r2 = x: forbidden is r2 before r1 ---- */

static void count_up(const struct round *r)
{
	for (uint64_t k = 1; k <= STORES; k++) {
		store(x_of(r), r->base + k);
		if (load_now(x_of(r)) != r->base + k)
			litmus_forbidden(r, LITMUS_CORR,
				"x is not what was stored, %lu (GPA 0x%lx)", r->base + k,
				memory_gpa(x_of(r)));
	}
	litmus_did(r, STORES);
}

static void watch(const struct round *r)
{
	uint64_t n = 0, last = 0, x;
	unsigned waits = 0;

	do {
		x = load_now(x_of(r));
		if (x < last)
			litmus_forbidden(r, LITMUS_CORR, "x goes back from %lu to %lu (GPA 0x%lx)",
				last, x, memory_gpa(x_of(r)));
		last = x;
		if (++n % READS_EACH == 0)
			spin(&waits);
	} while (x < r->base + STORES);
	litmus_did(r, n);
}

/* ---- SB: x = k; r = y  |  y = m; r = x: forbidden with fences is that both are before ---- */

static void store_then_load(const struct round *r)
{
	void *mine = r->role ? y_of(r) : x_of(r), *other = r->role ? x_of(r) : y_of(r);
	struct seen *log = litmus_log(r, r->role);
	unsigned patience = PATIENCE;

	for (uint64_t k = 1; k <= STORES; k++) {
		store(mine, r->base + k);
		if (r->test == LITMUS_SB)
			__asm__ volatile("mfence" : : : "memory");
		log[k - 1].x = load_now(other);
		if (k % 8 == 0)
			keep_up(r, k, &patience);
	}
	litmus_did(r, STORES);
}

/* k loaded what was before store m, of which k + 1 is the first: then m has to find store k. */
static void check_sb(const struct round *r)
{
	const struct seen *log = litmus_log(r, 0), *other = litmus_log(r, 1);

	for (uint64_t k = 1; k <= STORES; k++) {
		uint64_t m = nth(r, log[k - 1].x) + 1;

		if (m > STORES || nth(r, other[m - 1].x) >= k)
			continue;
		if (r->test == LITMUS_SB)
			litmus_forbidden(r, LITMUS_SB,
				"y was before %lu (GPA 0x%lx) after x = %lu (GPA 0x%lx), and the "
				"other way round",
				r->base + m, memory_gpa(y_of(r)), r->base + k, memory_gpa(x_of(r)));
		else
			litmus_may(r, 1);
	}
}

/* ---- LB: r = y; x = k  |  r = x; y = m: forbidden is that both see the other's ---- */

static void load_then_store(const struct round *r)
{
	void *mine = r->role ? y_of(r) : x_of(r), *other = r->role ? x_of(r) : y_of(r);
	struct seen *log = litmus_log(r, r->role);
	unsigned patience = PATIENCE;

	for (uint64_t k = 1; k <= STORES; k++) {
		log[k - 1].x = load_now(other);
		store(mine, r->base + k);
		if (k % 8 == 0)
			keep_up(r, k, &patience);
	}
	litmus_did(r, STORES);
}

static void check_lb(const struct round *r)
{
	const struct seen *log = litmus_log(r, 0), *other = litmus_log(r, 1);

	for (uint64_t k = 1; k <= STORES; k++) {
		uint64_t m = nth(r, log[k - 1].x);

		if (m && nth(r, other[m - 1].x) >= k)
			litmus_forbidden(r, LITMUS_LB,
				"y = %lu (GPA 0x%lx) was seen before x = %lu (GPA 0x%lx) was "
				"stored, "
				"and the other way round",
				r->base + m, memory_gpa(y_of(r)), r->base + k, memory_gpa(x_of(r)));
	}
}

/* ---- IRIW: x = k | y = m | r1 = x; r2 = y | r3 = y; r4 = x: all see the stores in one order ----
 */

static void store_one(const struct round *r)
{
	unsigned patience = PATIENCE;

	for (uint64_t k = 1; k <= STORES; k++) {
		store(r->role ? y_of(r) : x_of(r), r->base + k);
		if (k % 8 == 0)
			keep_up(r, k, &patience);
	}
	litmus_did(r, STORES);
}

static void load_both(const struct round *r)
{
	struct seen *log = litmus_log(r, r->role), now, last = {0};
	uint64_t n = 0, *logged = litmus_logged(r, r->role);
	unsigned waits = 0;

	*logged = 0;
	do {
		if (r->role == 2) {
			now.x = load_now(x_of(r));
			now.y = load_now(y_of(r));
		} else {
			now.y = load_now(y_of(r));
			now.x = load_now(x_of(r));
		}
		if (now.x < last.x || now.y < last.y) {
			litmus_forbidden(r, LITMUS_CORR, "x or y goes back (GPA 0x%lx, 0x%lx)",
				memory_gpa(x_of(r)), memory_gpa(y_of(r)));
			continue;
		}
		/* Both only grow: so often it can be another one. */
		if (now.x != last.x || now.y != last.y)
			log[(*logged)++] = now;
		last = now;
		if (++n % READS_EACH == 0)
			spin(&waits);
	} while (last.x < r->base + STORES || last.y < r->base + STORES);
	litmus_did(r, n);
}

/* One saw x's store and then not y's: who saw y's and then looked for x's must find it. */
static void check_iriw(const struct round *r)
{
	const struct seen *one = litmus_log(r, 2), *two = litmus_log(r, 3);
	uint64_t n_one = *litmus_logged(r, 2), n_two = *litmus_logged(r, 3), l = 0;

	for (uint64_t j = 0; j < n_one; j++) {
		while (l < n_two && two[l].y <= one[j].y)
			l++;
		if (l < n_two && two[l].x < one[j].x)
			litmus_forbidden(r, LITMUS_IRIW,
				"x = %lu (GPA 0x%lx) came before y = %lu (GPA 0x%lx) for one, "
				"after it "
				"for another",
				one[j].x, memory_gpa(x_of(r)), two[l].y, memory_gpa(y_of(r)));
	}
}

void litmus_order(struct round *r)
{
	switch (r->test) {
	case LITMUS_MP:
		if (r->role)
			receive(r);
		else
			send(r);
		break;
	case LITMUS_MANY:
		if (is_sender(r, r->role))
			send_many(r);
		else
			receive_many(r);
		break;
	case LITMUS_CORR:
		if (r->role)
			watch(r);
		else
			count_up(r);
		break;
	case LITMUS_SB:
	case LITMUS_SB_BARE:
		store_then_load(r);
		break;
	case LITMUS_LB:
		load_then_store(r);
		break;
	default:
		if (r->role < 2)
			store_one(r);
		else
			load_both(r);
	}
}

/* All have met since: whoever still finds something else reads what is not memory any more. */
static void check_last(const struct round *r)
{
	bool has_y = r->test != LITMUS_CORR;

	if (load_now(x_of(r)) != r->base + STORES ||
		(has_y && load_now(y_of(r)) != r->base + STORES))
		litmus_forbidden(r, r->test,
			"x (GPA 0x%lx) or y (GPA 0x%lx) is not what was stored last",
			memory_gpa(x_of(r)), memory_gpa(y_of(r)));
}

void litmus_order_check(struct round *r)
{
	if (r->test == LITMUS_MANY)
		check_many(r);
	else
		check_last(r);
	if (r->role)
		return;
	if (r->test == LITMUS_SB || r->test == LITMUS_SB_BARE)
		check_sb(r);
	else if (r->test == LITMUS_LB)
		check_lb(r);
	else if (r->test == LITMUS_IRIW)
		check_iriw(r);
}
