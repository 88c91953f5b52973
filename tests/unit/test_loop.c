// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <mirrorball/loop.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct mb_loop *loop;

static void setup(void)
{
	ck_assert_int_eq(mb_loop_create(&loop, NULL), 0);
}

static void teardown(void)
{
	mb_loop_destroy(loop);
}

static void stop_on_event(struct mb_watch *watch, uint32_t events)
{
	unsigned *n = watch->ctx;
	uint64_t v;

	ck_assert_int_eq(read(watch->fd, &v, sizeof(v)), sizeof(v));
	if (++*n == 3)
		mb_loop_stop(loop);
}

START_TEST(test_watch_and_stop)
{
	unsigned n = 0;
	struct mb_watch w = {.fd = eventfd(3, EFD_SEMAPHORE), .events = EPOLLIN,
		.ready = stop_on_event, .ctx = &n};

	ck_assert_int_eq(mb_loop_add(loop, &w), 0);
	ck_assert_int_eq(mb_loop_run(loop), 0);
	ck_assert_uint_eq(n, 3);
	mb_loop_remove(loop, &w);
	close(w.fd);
}
END_TEST

struct pair {
	struct mb_watch w[2];
	unsigned n[2];
};

/* Whoever comes first takes the other away: it must not be called, though its event is in the batch. */
static void remove_other(struct mb_watch *watch, uint32_t events)
{
	struct pair *p = watch->ctx;
	unsigned me = watch == &p->w[1];

	p->n[me]++;
	mb_loop_remove(loop, &p->w[!me]);
	mb_loop_stop(loop);
}

START_TEST(test_remove_in_a_callback)
{
	struct pair p = {0};

	for (unsigned i = 0; i < 2; i++) {
		p.w[i] = (struct mb_watch){.fd = eventfd(1, 0), .events = EPOLLIN,
			.ready = remove_other, .ctx = &p};
		ck_assert_int_eq(mb_loop_add(loop, &p.w[i]), 0);
	}
	ck_assert_int_eq(mb_loop_run(loop), 0);
	ck_assert_uint_eq(p.n[0] + p.n[1], 1);
	close(p.w[0].fd);
	close(p.w[1].fd);
}
END_TEST

static void add_one(void *arg)
{
	++*(unsigned long *)arg; /* no lock: calls come one at a time */
}

static void *many_calls(void *arg)
{
	for (unsigned i = 0; i < 10000; i++)
		mb_loop_call(loop, add_one, arg);
	return NULL;
}

START_TEST(test_calls_from_threads)
{
	unsigned long n = 0;
	pthread_t t[4];

	ck_assert_int_eq(mb_loop_start_thread(loop, "test", NULL, NULL), 0);
	for (unsigned i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, many_calls, &n);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	ck_assert_uint_eq(n, 40000);
}
END_TEST

/* The loop stops in the middle: the calls that it never saw are carried out all the same. */
START_TEST(test_calls_while_stopping)
{
	for (unsigned round = 0; round < 50; round++) {
		unsigned long n = 0;
		pthread_t t[4];

		if (round)
			setup();
		ck_assert_int_eq(mb_loop_start_thread(loop, "test", NULL, NULL), 0);
		for (unsigned i = 0; i < 4; i++)
			pthread_create(&t[i], NULL, many_calls, &n);
		usleep((useconds_t)(round * 40));
		mb_loop_stop(loop);
		for (unsigned i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		ck_assert_uint_eq(n, 40000);
		if (round < 49)
			teardown();
	}
}
END_TEST

static void nested(void *arg)
{
	mb_loop_call(loop, add_one, arg);
}

START_TEST(test_call_without_a_runner)
{
	unsigned long n = 0;

	mb_loop_call(loop, nested, &n);
	ck_assert_uint_eq(n, 1);
	mb_loop_stop(loop);
	mb_loop_run(loop);
	mb_loop_call(loop, nested, &n);
	ck_assert_uint_eq(n, 2);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("loop");
	TCase *tc = tcase_create("loop");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_watch_and_stop);
	tcase_add_test(tc, test_remove_in_a_callback);
	tcase_add_test(tc, test_calls_from_threads);
	tcase_add_test(tc, test_calls_while_stopping);
	tcase_add_test(tc, test_call_without_a_runner);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
