// SPDX-License-Identifier: Apache-2.0
/*
 * Groups of mirrorballd: pages that are found by hash, whoever has them, whoever lies.
 *
 * Built with MB_COMMONS_WRONG a check is left out, and that must be found.
 */
#include "commons_fixture.h"

#include <sys/un.h>

#include <sys/syscall.h>

#define N 8u

/* A host that has no memory for pages: the daemon runs in here, and this comes before the
 * library's. */
static bool no_memory; /* atomic */

int fallocate(int fd, int mode, off_t offset, off_t len)
{
	if (offset < (off_t)PIECE && __atomic_load_n(&no_memory, __ATOMIC_RELAXED)) {
		errno = ENOSPC;
		return -1;
	}
	return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

static struct mb_commons_base *join(struct mb_commons *commons, const char *name)
{
	uint64_t end_ns = mb_now_ns() + WAIT_MS * 1000000ull;
	struct mb_commons_base *group;

	ck_assert_int_eq(mb_commons_join(commons, name, &group), 0);
	while (mb_commons_base_status(group) == -EINPROGRESS && mb_now_ns() < end_ns)
		poll_once(commons, 50);
	ck_assert_int_eq(mb_commons_base_status(group), 0);
	return group;
}

static int wait_done(struct mb_commons *commons, unsigned n, int rc)
{
	uint64_t end_ns = mb_now_ns() + WAIT_MS * 1000000ull;

	if (rc)
		return rc;
	while (f.n_done == n && mb_now_ns() < end_ns)
		poll_once(commons, 50);
	ck_assert_uint_eq(f.n_done, n + 1);
	return f.done.status;
}

static struct mb_content_hash hash_of(const struct mb_commons_base *group, uint64_t page)
{
	const struct mb_content_key key = mb_commons_key(group);
	uint64_t data[PAGE / 8];

	make_page(9, page, data);
	return mb_content_hash(&key, data);
}

/* Pages [first, first + n); the answer is in f.done. */
static void offer(
	struct mb_commons *commons, struct mb_commons_base *group, uint64_t first, unsigned n)
{
	struct mb_content_hash hash[MB_COMMONS_OFFER_MAX];
	unsigned before = f.n_done;

	for (unsigned i = 0; i < n; i++)
		hash[i] = hash_of(group, first + i);
	ck_assert_int_eq(wait_done(commons, before, mb_commons_offer(group, hash, n, NULL)), 0);
}

static int give_on(
	struct mb_commons *commons, struct mb_commons_base *group, unsigned node, uint64_t page)
{
	struct mb_content_hash hash = hash_of(group, page);
	unsigned before = f.n_done;
	uint64_t data[PAGE / 8];

	make_page(9, page, data);
	return wait_done(commons, before, mb_commons_give(group, node, &hash, data, NULL));
}

static int give(struct mb_commons *commons, struct mb_commons_base *group, uint64_t page)
{
	return give_on(commons, group, node_id(), page);
}

static int fetch_on(
	struct mb_commons *commons, struct mb_commons_base *group, unsigned node, uint64_t page)
{
	struct mb_content_hash hash = hash_of(group, page);
	unsigned before = f.n_done;

	return wait_done(commons, before, mb_commons_fetch(group, node, &hash, NULL));
}

static int fetch(struct mb_commons *commons, struct mb_commons_base *group, uint64_t page)
{
	return fetch_on(commons, group, node_id(), page);
}

static bool has(struct mb_commons_base *group, uint64_t place, uint64_t page)
{
	const void *data = mb_commons_lookup(group, node_id(), place, PAGE);

	return data && is_page(data, 9, page);
}

/* Both have it offered, and b has given it. */
static void have_both(struct mb_commons *a, struct mb_commons_base *in_a, struct mb_commons *b,
	struct mb_commons_base *in_b, uint64_t page)
{
	offer(a, in_a, page, 1);
	offer(b, in_b, page, 1);
	ck_assert_uint_eq(f.done.wanted, 1);
	ck_assert_int_eq(give(b, in_b, page), 0);
}

START_TEST(test_shares)
{
	struct mb_commons *a, *b;
	struct mb_commons_base *in_a, *in_b, *other;
	uint64_t place[N];
	struct mb_commons_piece one, two;
	struct mb_content_key key, other_key;
	struct stat first, second;

	start_server();
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	other = join(b, "db");
	key = mb_commons_key(in_a);
	other_key = mb_commons_key(in_b);
	ck_assert_mem_eq(&key, &other_key, sizeof(key));
	other_key = mb_commons_key(other);
	ck_assert_int_ne(memcmp(&key, &other_key, sizeof(key)), 0);
	ck_assert_uint_eq(stat_of("groups"), 2);
	/* One that alone has it, however often it says so. */
	for (unsigned i = 0; i < 3; i++) {
		offer(a, in_a, 0, N);
		ck_assert_uint_eq(f.done.there | f.done.wanted, 0);
	}
	ck_assert_uint_eq(stat_of("noted_hashes"), N);
	ck_assert_int_eq(give(a, in_a, 0), -ENOENT);
	ck_assert_int_eq(fetch(b, in_b, 0), -ENOENT);
	ck_assert_uint_eq(stat_of("held_bytes"), 0);
	/* Another one has it, too; but in another group nobody has. */
	offer(b, other, 0, N);
	ck_assert_uint_eq(f.done.there | f.done.wanted, 0);
	offer(b, in_b, 2, N);
	ck_assert_uint_eq(f.done.wanted, (1u << (N - 2)) - 1);
	ck_assert_uint_eq(f.done.there, 0);
	for (unsigned i = 2; i < N; i++) {
		ck_assert_int_eq(give(b, in_b, i), 0);
		place[i] = f.done.offset;
		ck_assert(has(in_b, place[i], i));
		for (unsigned k = 2; k < i; k++)
			ck_assert_uint_ne(place[k], place[i]);
	}
	ck_assert_uint_eq(stat_of("content_pages"), N - 2);
	/* The first one hears of it when it offers again. */
	offer(a, in_a, 0, N);
	ck_assert_uint_eq(f.done.there, (1u << N) - 4);
	ck_assert_uint_eq(f.done.wanted, 0);
	for (unsigned i = 2; i < N; i++) {
		ck_assert_int_eq(fetch(a, in_a, i), 0);
		ck_assert_uint_eq(f.done.offset, place[i]);
		ck_assert(has(in_a, place[i], i));
		/* Who gives what is there gets it. */
		ck_assert_int_eq(give(a, in_a, i), 0);
		ck_assert_uint_eq(f.done.offset, place[i]);
	}
	ck_assert_uint_eq(stat_of("content_pages"), N - 2);
	ck_assert_int_eq(mb_commons_piece(in_a, node_id(), place[2], &one), 0);
	ck_assert_int_eq(mb_commons_piece(in_b, node_id(), place[2], &two), 0);
	ck_assert_int_eq(fstat(one.fd, &first), 0);
	ck_assert_int_eq(fstat(two.fd, &second), 0);
	ck_assert_uint_eq(first.st_ino, second.st_ino);
	ck_assert_int_eq(fcntl(one.fd, F_GET_SEALS) & MB_COMMONS_SEALS, MB_COMMONS_SEALS);
	ck_assert_uint_eq(stat_of("references"), 2);
	/* Released and fetched again; not at all a file. */
	mb_commons_release(in_a, node_id(), place[2]);
	ck_assert_ptr_null(mb_commons_lookup(in_a, node_id(), place[2], PAGE));
	ck_assert_int_eq(fetch(a, in_a, 2), 0);
	ck_assert(has(in_a, place[2], 2));
	ck_assert_int_eq(mb_commons_want(in_a, node_id(), 0, PAGE, NULL), -EINVAL);
	ck_assert_int_eq(fetch_on(a, in_a, 4711, 2), -ENODEV);
	/* What one offered goes with it; what is there stays, and is there for who comes. */
	mb_commons_destroy(a);
	ck_assert(becomes("references", 1));
	ck_assert(becomes("noted_hashes", 2 + N));
	a = new_client();
	in_a = join(a, "web");
	offer(a, in_a, 2, N - 2);
	ck_assert_uint_eq(f.done.there, (1u << (N - 2)) - 1);
	ck_assert_int_eq(fetch(a, in_a, 3), 0);
	ck_assert(has(in_a, place[3], 3));
	mb_commons_close_base(in_b);
	mb_commons_close_base(other);
	ck_assert(becomes("noted_hashes", 0));
	mb_commons_destroy(b);
	mb_commons_destroy(a);
	ck_assert(becomes("references", 0));
}
END_TEST

/* Each node has a copy of its own where somebody there asks. */
START_TEST(test_nodes)
{
	struct mb_commons *a, *b;
	struct mb_commons_base *in_a, *in_b;
	uint64_t place;
	unsigned n = 0;

	start_server();
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	have_both(a, in_a, b, in_b, 5);
	place = f.done.offset;
	for (unsigned i = 0; i < f.server->topology.n_nodes; i++) {
		unsigned id = f.server->topology.node[i].id;

		if (!f.server->topology.node[i].has_memory)
			continue;
		ck_assert_int_eq(fetch_on(a, in_a, id, 5), 0);
		ck_assert_uint_eq(f.done.offset, place);
		ck_assert(is_page(mb_commons_lookup(in_a, id, place, PAGE), 9, 5));
		n++;
	}
	ck_assert_uint_eq(stat_of("content_pages"), n);
	mb_commons_destroy(a);
	mb_commons_destroy(b);
}
END_TEST

static void get_longest(void *arg)
{
	const struct base *base;

	TAILQ_FOREACH(base, &f.server->bases, all)
	if (base->group)
		*(unsigned *)arg = mb_commons_group_longest(base->group);
}

/* One of a client's choice: they differ in one word, and not in the other. */
static struct mb_content_hash made_up(unsigned word, uint64_t i)
{
	struct mb_content_hash hash = {{1, 1}};

	hash.word[word] = i;
	return hash;
}

static void evict_one(void *arg)
{
	ck_assert_uint_gt(mb_commons_evict(f.server, -1, 1), 0);
}

/* A second node where there may be none; its memory comes from wherever it does. */
static unsigned other_node(void)
{
	struct mb_topology *topology = &f.server->topology;

	if (topology->n_nodes == 1) {
		topology->node[1] = topology->node[0];
		topology->node[1].id++;
		topology->n_nodes = 2;
	}
	topology->node[1].has_memory = true;
	return topology->node[1].id;
}

/* One node's piece goes, another node's of the same places stays: what only the first had can be
 * given again, and what the other has is there. */
START_TEST(test_node_goes)
{
	const unsigned other = other_node();
	struct mb_commons *a, *b;
	struct mb_commons_base *in_a, *in_b;
	uint64_t place;

	start_server();
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	have_both(a, in_a, b, in_b, 0);
	have_both(a, in_a, b, in_b, 1);
	ck_assert_int_eq(fetch_on(a, in_a, other, 1), 0);
	offer(a, in_a, 2, 1);
	offer(b, in_b, 2, 1);
	ck_assert_int_eq(give_on(b, in_b, other, 2), 0);
	place = f.done.offset;
	ck_assert_uint_lt(place, PIECE);
	ck_assert_uint_eq(stat_of("content_pages"), 4);
	mb_commons_release(in_b, node_id(), 0);
	ck_assert(becomes("references", 2));
	mb_loop_call(f.server->loop, evict_one, NULL);
	ck_assert_uint_eq(stat_of("content_pages"), 2);
	offer(a, in_a, 0, 3);
	ck_assert_uint_eq(f.done.there, 6);
	ck_assert_int_eq(fetch(a, in_a, 0), -ENOENT);
	ck_assert_int_eq(fetch(a, in_a, 1), 0);
	ck_assert(has(in_a, f.done.offset, 1));
	ck_assert_int_eq(fetch(a, in_a, 2), 0);
	ck_assert(has(in_a, place, 2));
	offer(b, in_b, 0, 1);
	ck_assert_uint_eq(f.done.wanted, 1);
	ck_assert_int_eq(give(b, in_b, 0), 0);
	ck_assert_uint_gt(f.done.offset, place);
	ck_assert(has(in_b, f.done.offset, 0));
	mb_commons_destroy(a);
	mb_commons_destroy(b);
	ck_assert(becomes("references", 0));
	mb_loop_call(f.server->loop, evict_one, NULL);
	mb_loop_call(f.server->loop, evict_one, NULL);
	ck_assert(becomes("groups", 0));
}
END_TEST

/* No client makes the daemon remember without end, and what it said long ago goes first. */
static void offer_many(
	struct mb_commons *commons, struct mb_commons_base *group, unsigned word, uint64_t n)
{
	struct mb_content_hash hash[MB_COMMONS_OFFER_MAX];

	for (uint64_t first = 0; first < n; first += MB_COMMONS_OFFER_MAX) {
		unsigned before = f.n_done;

		for (unsigned i = 0; i < MB_COMMONS_OFFER_MAX; i++)
			hash[i] = made_up(word, first + i);
		ck_assert_int_eq(wait_done(commons, before,
					 mb_commons_offer(group, hash, MB_COMMONS_OFFER_MAX, NULL)),
			0);
	}
}

START_TEST(test_notes)
{
	struct mb_commons *a, *b;
	struct mb_commons_base *in_a, *in_b;
	struct mb_content_hash hash[MB_COMMONS_OFFER_MAX];
	const uint64_t n = MB_COMMONS_CLIENT_NOTES + 10 * MB_COMMONS_OFFER_MAX;
	const unsigned word = (unsigned)_i;
	unsigned longest = 0;

	start_server();
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	offer_many(a, in_a, word, n);
	ck_assert_uint_eq(stat_of("noted_hashes"), MB_COMMONS_CLIENT_NOTES);
	/* Two in each of 32768 buckets, on average; 32 in one is not chance. */
	mb_loop_call(f.server->loop, get_longest, &longest);
	ck_assert_uint_ge(longest, 2);
	ck_assert_uint_lt(longest, 32);
	for (unsigned i = 0; i < 2; i++) {
		unsigned before = f.n_done;

		hash[0] = made_up(word, i ? n - 1 : 0);
		ck_assert_int_eq(wait_done(b, before, mb_commons_offer(in_b, hash, 1, NULL)), 0);
		ck_assert_uint_eq(f.done.wanted, i);
	}
	mb_commons_destroy(a);
	ck_assert(becomes("noted_hashes", 1));
	mb_commons_destroy(b);
}
END_TEST

/* Nor do many of them together keep another one from being heard: who has most forgets. */
START_TEST(test_all_notes)
{
	enum { MANY = MB_COMMONS_MAX_NOTES / MB_COMMONS_CLIENT_NOTES };
	struct mb_commons *many[MANY], *a, *b;
	struct mb_commons_base *in_a, *in_b;

	start_server();
	for (unsigned i = 0; i < MANY; i++) {
		char name[] = "many0";

		name[4] = (char)('0' + i);
		many[i] = new_client();
		offer_many(many[i], join(many[i], name), 0, MB_COMMONS_CLIENT_NOTES);
	}
	ck_assert_uint_eq(stat_of("noted_hashes"), MB_COMMONS_MAX_NOTES);
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	offer(a, in_a, 0, N);
	offer(b, in_b, 0, N);
	ck_assert_uint_eq(f.done.wanted, (1u << N) - 1);
	offer(a, in_a, N, N);
	offer(b, in_b, N, N);
	ck_assert_uint_eq(f.done.wanted, (1u << N) - 1);
	ck_assert_uint_eq(stat_of("noted_hashes"), MB_COMMONS_MAX_NOTES);
	for (unsigned i = 0; i < MANY; i++)
		mb_commons_destroy(many[i]);
	ck_assert(becomes("noted_hashes", 2 * N));
	mb_commons_destroy(a);
	mb_commons_destroy(b);
}
END_TEST

/* Groups that nobody is in make way for one that somebody joins. */
START_TEST(test_unused_groups)
{
	struct mb_commons *a, *b;

	start_server();
	a = new_client();
	b = new_client();
	for (unsigned i = 0; i < MB_COMMONS_MAX_BASES; i++) {
		struct mb_commons_base *in_a, *in_b;
		char name[16];

		snprintf(name, sizeof(name), "g%u", i);
		in_a = join(a, name);
		in_b = join(b, name);
		have_both(a, in_a, b, in_b, i);
		mb_commons_close_base(in_a);
		mb_commons_close_base(in_b);
	}
	ck_assert(becomes("references", 0));
	ck_assert_uint_eq(stat_of("groups"), MB_COMMONS_MAX_BASES);
	join(a, "web");
	ck_assert_uint_eq(stat_of("groups"), 1);
	mb_commons_destroy(a);
	mb_commons_destroy(b);
}
END_TEST

static void age_notes(void *arg)
{
	f.server->config.note_ns = 1;
	f.server->unwatched_bytes = 1ull << 40; /* so that memory is looked at for the next page */
}

static void keep_notes(void *arg)
{
	f.server->config.note_ns = 0;
}

/* The note that a page is given for is forgotten while room is made for the page. */
START_TEST(test_old_note)
{
	struct mb_commons *a, *b;
	struct mb_commons_base *in_a, *in_b;
	int rc;

	start_server();
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	have_both(a, in_a, b, in_b, 0);
	for (unsigned i = 1; i < 4; i++) {
		offer(a, in_a, i, 1);
		offer(b, in_b, i, 1);
		ck_assert_uint_eq(f.done.wanted, 1);
		mb_loop_call(f.server->loop, age_notes, NULL);
		rc = give(b, in_b, i);
		mb_loop_call(f.server->loop, keep_notes, NULL);
		/* ENOENT: it was the second's look at memory that forgot it. */
		ck_assert(rc == -EAGAIN || rc == -ENOENT);
		ck_assert_uint_eq(stat_of("noted_hashes"), 0);
		/* Another try has another place. */
		have_both(a, in_a, b, in_b, i);
		ck_assert_uint_ge(f.done.offset, i * PAGE);
		ck_assert(has(in_b, f.done.offset, i));
	}
	ck_assert_int_eq(fetch(a, in_a, 0), 0);
	ck_assert(has(in_a, f.done.offset, 0));
	mb_commons_destroy(a);
	mb_commons_destroy(b);
}
END_TEST

/* Where there is no memory for a page it is told, and the next time all is as before. */
START_TEST(test_no_memory)
{
	struct mb_commons *a, *b;
	struct mb_commons_base *in_a, *in_b;

	start_server();
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	offer(a, in_a, 0, 1);
	offer(b, in_b, 0, 1);
	__atomic_store_n(&no_memory, true, __ATOMIC_RELAXED);
	ck_assert_int_eq(give(b, in_b, 0), -ENOSPC);
	ck_assert_uint_eq(stat_of("content_pages"), 0);
	ck_assert_uint_eq(stat_of("noted_hashes"), 1);
	__atomic_store_n(&no_memory, false, __ATOMIC_RELAXED);
	ck_assert_int_eq(give(b, in_b, 0), 0);
	ck_assert(has(in_b, f.done.offset, 0));
	mb_commons_destroy(a);
	mb_commons_destroy(b);
}
END_TEST

/* All groups have half of the room; what nobody has any more makes way. */
START_TEST(test_room)
{
	const uint64_t most = 5 * PIECE / 2 / PAGE;
	struct mb_commons *a, *b;
	struct mb_commons_base *in_a, *in_b;
	uint64_t page = 0;
	int rc = 0;

	f.server->config.max_bytes = 5 * PIECE;
	start_server();
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	while (!rc && page < 2 * most) {
		offer(a, in_a, page, 1);
		offer(b, in_b, page, 1);
		ck_assert_uint_eq(f.done.wanted, 1);
		rc = give(b, in_b, page);
		page += !rc;
	}
	if (rc == -ENOMEM) {
		skip("needs more memory");
		mb_commons_destroy(a);
		mb_commons_destroy(b);
		return;
	}
	ck_assert_int_eq(rc, -ENOSPC);
	ck_assert_uint_eq(page, most);
	/* The first piece is nobody's: its pages are gone, and those of the others are not. */
	mb_commons_release(in_b, node_id(), 0);
	ck_assert(becomes("references", 2));
	ck_assert_int_eq(give(b, in_b, page), 0);
	ck_assert_uint_eq(stat_of("content_pages"), most - N_PAGES + 1);
	ck_assert_int_eq(fetch(a, in_a, 0), -ENOENT);
	ck_assert_int_eq(fetch(a, in_a, page - 1), 0);
	ck_assert(has(in_a, f.done.offset, page - 1));
	have_both(a, in_a, b, in_b, 0);
	ck_assert(has(in_b, f.done.offset, 0));
	mb_commons_destroy(a);
	mb_commons_destroy(b);
}
END_TEST

/* A new one has another key, and other places: nothing of before is taken for what is there now. */
START_TEST(test_new_daemon)
{
	struct mb_commons *a, *b;
	struct mb_commons_base *in_a, *in_b;
	struct mb_content_key before, after;

	start_server();
	a = new_client();
	b = new_client();
	in_a = join(a, "web");
	in_b = join(b, "web");
	have_both(a, in_a, b, in_b, 1);
	before = mb_commons_key(in_b);
	stop_server();
	while (mb_commons_base_status(in_a) == 0 || mb_commons_base_status(in_b) == 0) {
		poll_once(a, 10);
		poll_once(b, 10);
	}
	start_server();
	for (unsigned i = 0;
		i < 2000 && (mb_commons_base_status(in_a) || mb_commons_base_status(in_b)); i++) {
		poll_once(a, 10);
		poll_once(b, 10);
	}
	after = mb_commons_key(in_b);
	ck_assert_int_ne(memcmp(&before, &after, sizeof(before)), 0);
	ck_assert_int_eq(fetch(b, in_b, 1), -ENOENT);
	have_both(a, in_a, b, in_b, 2);
	ck_assert_uint_eq(f.done.offset, 0); /* where the other page was */
	ck_assert(has(in_b, 0, 2));
	mb_commons_destroy(a);
	mb_commons_destroy(b);
}
END_TEST

/* ---- who lies ---- */

static struct mb_commons_packet raw_packet(unsigned type)
{
	struct mb_commons_packet packet;

	memset(&packet, 0, sizeof(packet));
	packet.asked = raw_request(type);
	return packet;
}

static void raw_ask(int fd, const struct mb_commons_packet *packet, struct mb_commons_reply *reply)
{
	int given;

	ck_assert_int_eq(raw_send(fd, packet, mb_commons_packet_bytes(&packet->asked), NULL, 0), 0);
	ck_assert_int_eq(raw_receive(fd, reply, &given), 0);
	if (given >= 0)
		close(given);
}

/* What it says has a hash does not. */
START_TEST(test_wrong_content)
{
	struct mb_commons_packet packet = raw_packet(MB_COMMONS_JOIN);
	struct mb_commons_reply reply;
	struct mb_commons_base *group;
	struct mb_content_hash hash;
	int fd, given;

	start_server();
	f.commons = new_client();
	group = join(f.commons, "web");
	hash = hash_of(group, 7);
	offer(f.commons, group, 7, 1);
	fd = raw_client();
	strcpy(packet.name, "web");
	raw_ask(fd, &packet, &reply);
	ck_assert_int_eq(reply.status, 0);
	packet = raw_packet(MB_COMMONS_OFFER);
	packet.asked.base = reply.base;
	packet.asked.len = 1;
	packet.hash[0] = hash;
	raw_ask(fd, &packet, &reply);
	ck_assert_uint_eq(reply.offset, 1);
	packet = raw_packet(MB_COMMONS_GIVE);
	packet.asked.node = node_id();
	packet.asked.offset = hash.word[0];
	packet.asked.len = hash.word[1];
	make_page(9, 7, (uint64_t *)packet.page);
	packet.page[PAGE - 1] ^= 1;
	ck_assert_int_eq(raw_send(fd, &packet, sizeof(packet), NULL, 0), 0);
	if (raw_receive(fd, &reply, &given) != -EPIPE)
		found_wrong("a page that has another hash is taken");
	ck_assert_int_ne(MB_COMMONS_WRONG, WRONG_UNHASHED);
	ck_assert_int_eq(fetch(f.commons, group, 7), -ENOENT);
	ck_assert_uint_eq(stat_of("content_pages"), 0);
	close(fd);
}
END_TEST

/* Joins and offers one hash as somebody else: 10 + wanted + 2 * there; 2: is not let in. */
static int offer_as(uid_t uid, const struct mb_content_hash *hash)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		struct mb_commons_packet packet = raw_packet(MB_COMMONS_JOIN);
		struct sockaddr_un addr = {.sun_family = AF_UNIX};
		struct mb_commons_request hello = raw_request(MB_COMMONS_HELLO);
		struct mb_commons_reply reply;
		int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0), given;

		memcpy(addr.sun_path, f.path, strlen(f.path) + 1);
		if (setuid(uid) || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
			raw_send(fd, &hello, sizeof(hello), NULL, 0) ||
			raw_receive(fd, &reply, &given))
			_exit(2);
		strcpy(packet.name, "web");
		raw_ask(fd, &packet, &reply);
		packet = raw_packet(MB_COMMONS_OFFER);
		packet.asked.base = reply.base;
		packet.asked.len = 1;
		packet.hash[0] = *hash;
		raw_ask(fd, &packet, &reply);
		_exit(10 + (int)reply.offset + 2 * (int)reply.value);
	}
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status);
}

static void serve_all(void *arg)
{
	f.server->config.any_user = true;
}

/* A name is each user's own, and what one has is nobody else's business. */
START_TEST(test_users)
{
	struct mb_commons_base *group;
	struct mb_content_hash hash;
	int rc;

	if (getuid()) {
		skip("needs root");
		if (MB_COMMONS_WRONG)
			found_wrong("nothing: needs root");
		return;
	}
	start_server();
	mb_loop_call(f.server->loop, serve_all, NULL);
	ck_assert_int_eq(chmod(f.dir, 0755) || chmod(f.path, 0666), 0);
	f.commons = new_client();
	group = join(f.commons, "web");
	hash = hash_of(group, 3);
	offer(f.commons, group, 3, 1);
	ck_assert_int_eq(offer_as(0, &hash), 11);
	rc = offer_as(65534, &hash);
	ck_assert_int_ge(rc, 10);
	if (rc != 10)
		found_wrong("another user is told what is in a group");
	ck_assert_int_ne(MB_COMMONS_WRONG, WRONG_ONE_GROUP);
}
END_TEST

static bool hung_up(int fd)
{
	struct mb_commons_reply reply;
	int given;

	for (unsigned i = 0; i < 3; i++)
		if (raw_receive(fd, &reply, &given))
			return true;
	return false;
}

/* What no honest client sends ends its connection. */
START_TEST(test_bad_packets)
{
	static const struct {
		const char *what, *name;
		unsigned type, base;
		uint64_t len;
		int more; /* bytes */
		bool other_field;
	} cases[] = {
		{"no name", "", MB_COMMONS_JOIN, 0, 0, 0, false},
		{"a blank", "a b", MB_COMMONS_JOIN, 0, 0, 0, false},
		{"cut", "web", MB_COMMONS_JOIN, 0, 0, -1, false},
		{"long", "web", MB_COMMONS_JOIN, 0, 0, 1, false},
		{"no end", "0123456789012345678901234567890123456789012345678901234567890123",
			MB_COMMONS_JOIN, 0, 0, 0, false},
		{"a length", "web", MB_COMMONS_JOIN, 0, 8, 0, false},
		{"a group for a name", "web", MB_COMMONS_JOIN, 1, 0, 0, false},
		{"none", "", MB_COMMONS_OFFER, 0, 0, 0, false},
		{"65", "", MB_COMMONS_OFFER, 0, 65, 0, false},
		{"2^60", "", MB_COMMONS_OFFER, 0, 1ull << 60, 0, false},
		{"one is missing", "", MB_COMMONS_OFFER, 0, 3, -16, false},
		{"one too many", "", MB_COMMONS_OFFER, 0, 3, 16, false},
		{"to a file", "", MB_COMMONS_OFFER, 1, 3, 0, false},
		{"to nothing", "", MB_COMMONS_OFFER, 2, 3, 0, false},
		{"with flags", "", MB_COMMONS_OFFER, 0, 3, 0, true},
		{"of a file", "", MB_COMMONS_FETCH, 1, 3, 0, false},
		{"with flags", "", MB_COMMONS_FETCH, 0, 3, 0, true},
		{"with a page", "", MB_COMMONS_FETCH, 0, 3, PAGE, false},
		{"without", "", MB_COMMONS_GIVE, 0, 3, -(int)PAGE, false},
		{"less than one", "", MB_COMMONS_GIVE, 0, 3, -1, false},
		{"to a file", "", MB_COMMONS_GIVE, 1, 3, 0, false},
		{"of a group", "", MB_COMMONS_WANT, 0, PAGE, 0, false},
		{"type 11", "", MB_COMMONS_GIVE + 1, 0, 0, 0, false},
	};

	begin();
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct mb_commons_packet packet = raw_packet(MB_COMMONS_JOIN);
		struct mb_commons_reply reply;
		int fd = raw_client();
		uint32_t number;

		strcpy(packet.name, "web");
		raw_ask(fd, &packet, &reply);
		ck_assert_uint_eq(reply.base, 0);
		ck_assert_int_eq(raw_open(fd, f.base_fd, &number), 0);
		ck_assert_uint_eq(number, 1);
		packet = raw_packet(cases[i].type);
		packet.asked.base = cases[i].base;
		packet.asked.len = cases[i].len;
		packet.asked.flags = cases[i].other_field;
		memcpy(packet.name, cases[i].name, strlen(cases[i].name));
		raw_send(fd, &packet,
			(size_t)((int)mb_commons_packet_bytes(&packet.asked) + cases[i].more), NULL,
			0);
		ck_assert_msg(hung_up(fd), "goes on after: %u %s", cases[i].type, cases[i].what);
		close(fd);
	}
	ck_assert(becomes("groups", 0));
	ck_assert_int_eq(want(f.commons, f.base, node_id(), 0, 4 * PAGE), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("commons_groups");
	TCase *all = tcase_create("all");

	tcase_add_checked_fixture(all, setup, teardown);
	tcase_set_timeout(all, 100);
	if (MB_COMMONS_WRONG == WRONG_ONE_GROUP) {
		tcase_add_test(all, test_users);
	} else if (MB_COMMONS_WRONG == WRONG_UNHASHED) {
		tcase_add_test(all, test_wrong_content);
	} else {
		tcase_add_test(all, test_shares);
		tcase_add_test(all, test_nodes);
		tcase_add_test(all, test_node_goes);
		tcase_add_loop_test(all, test_notes, 0, 2);
		tcase_add_test(all, test_all_notes);
		tcase_add_test(all, test_unused_groups);
		tcase_add_test(all, test_old_note);
		tcase_add_test(all, test_no_memory);
		tcase_add_test(all, test_room);
		tcase_add_test(all, test_new_daemon);
		tcase_add_test(all, test_wrong_content);
		tcase_add_test(all, test_users);
		tcase_add_test(all, test_bad_packets);
	}
	suite_add_tcase(s, all);
	return run_suite(s);
}
