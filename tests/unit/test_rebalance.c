// SPDX-License-Identifier: Apache-2.0
/* When vCPUs move to another node, and how busy nodes are. */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <mirrorball/node_load.h>
#include <mirrorball/rebalance.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIB    (1ull << 30)
#define SECOND 1000000000ull

static struct mb_rebalance_config config;
static struct mb_place_config place;
static struct mb_place_host host;
static struct mb_rebalance state;
static struct mb_rebalance_group group[2];
static struct mb_rebalance_move moved;
static uint64_t targets, since_ns;

/* Four nodes of 8 CPUs, of which node 0 is full; a group of 4 vCPUs there has half of what it
 * wants. */
static void make(void)
{
	mb_rebalance_defaults(&config);
	mb_place_defaults(&place);
	memset(&state, 0, sizeof(state));
	memset(&host, 0, sizeof(host));
	host.n_nodes = 4;
	for (unsigned i = 0; i < 4; i++) {
		host.node[i] = (struct mb_place_node){.id = 2 * i,
			.n_cpus = 8,
			.usable = true,
			.total_bytes = 16 * GIB,
			.available_bytes = 16 * GIB,
			.busy_cpus = i ? 4 : 8,
			.distance = {20, 20, 20, 20}};
		host.node[i].distance[i] = 10;
	}
	group[0] = (struct mb_rebalance_group){.movable = true,
		.node = 0,
		.n_vcpus = 4,
		.busy_cpus = 1.5,
		.waiting_cpus = 1.5,
		.memory_bytes = 4 * GIB};
	group[1] = (struct mb_rebalance_group){0};
	targets = UINT64_MAX;
	since_ns = UINT64_MAX;
}

static bool check(void)
{
	mb_rebalance_note(&state, &config, &host, group, 2);
	return mb_rebalance_decide(
		&state, &config, &place, &host, group, 2, targets, since_ns, &moved);
}

static bool check_often(void)
{
	bool moves = false;

	for (unsigned i = 0; i < config.n_checks; i++) {
		ck_assert(!moves);
		moves = check();
	}
	return moves;
}

START_TEST(test_moves)
{
	make();
	host.node[2].busy_cpus = 1;
	ck_assert(check_often());
	ck_assert_uint_eq(moved.group, 0);
	ck_assert_uint_eq(moved.from, 0);
	ck_assert_uint_eq(moved.to, 2);
	ck_assert(check()); /* until it is done */
}
END_TEST

/* A burst does not move anything, and its end is the end of what was counted. */
START_TEST(test_in_a_row)
{
	make();
	ck_assert(!check() && !check());
	host.node[0].busy_cpus = 7;
	ck_assert(!check());
	host.node[0].busy_cpus = 8;
	ck_assert(!check() && !check());
	ck_assert(check());
	group[0].waiting_cpus = 0.1;
	ck_assert(!check());
}
END_TEST

/* A node that is full of the group alone has nobody who waits. */
START_TEST(test_alone)
{
	make();
	group[0].busy_cpus = 8;
	group[0].waiting_cpus = 0;
	host.node[2].busy_cpus = 0;
	ck_assert(!check_often());
	make();
	group[0].movable = false;
	ck_assert(!check_often());
	make();
	host.n_nodes = 1;
	ck_assert(!check_often());
}
END_TEST

START_TEST(test_target)
{
	make();
	/* 3 of 8 on top of 4: 7 are 88 %. */
	ck_assert(check_often());
	ck_assert_uint_eq(moved.to, 1);
	group[0].waiting_cpus = 1.8;
	ck_assert(!check());
	/* A quiet one may be filled, but not more. */
	host.node[3].busy_cpus = 0.7;
	group[0].n_vcpus = 8;
	group[0].busy_cpus = group[0].waiting_cpus = 4;
	ck_assert(check());
	ck_assert_uint_eq(moved.to, 3);
	host.node[3].busy_cpus = 0.9;
	ck_assert(!check());
	host.node[3].busy_cpus = 0;
	group[0].waiting_cpus = 4.1;
	group[0].n_vcpus = 9;
	ck_assert(!check());
	/* What was measured may be more than its vCPUs can want. */
	group[0].n_vcpus = 8;
	ck_assert(check());
	group[0].n_vcpus = 4;
	/* Its memory must have room, and promises count. */
	group[0].waiting_cpus = 4;
	ck_assert(check());
	host.node[3].promised_bytes = 12 * GIB;
	ck_assert(!check());
	host.node[3].promised_bytes = 0;
	host.node[3].usable = false;
	ck_assert(!check());
	host.node[3].usable = true;
	targets = 7;
	ck_assert(!check());
	targets = 8;
	ck_assert(check());
	/* vCPUs that idle now may run tomorrow. */
	host.node[3].n_cpus = 3;
	group[0].busy_cpus = group[0].waiting_cpus = 0.5;
	ck_assert(!check());
	host.node[3].n_cpus = 0;
	ck_assert(!check());
}
END_TEST

/* The least busy, the nearest of those, the first of those. */
START_TEST(test_which)
{
	make();
	host.node[0].distance[3] = 12;
	ck_assert(check_often());
	ck_assert_uint_eq(moved.to, 3);
	host.node[1].busy_cpus = 3;
	ck_assert(check());
	ck_assert_uint_eq(moved.to, 1);
	/* Who waits more goes first. */
	group[1] = group[0];
	group[1].waiting_cpus = 1.7;
	ck_assert(check() && check() && check());
	ck_assert_uint_eq(moved.group, 1);
}
END_TEST

START_TEST(test_cooldown)
{
	make();
	since_ns = 59 * SECOND;
	ck_assert(!check_often());
	since_ns = 60 * SECOND;
	ck_assert(check());
}
END_TEST

/* ---- how busy nodes are ---- */

static void put_stat(const char *dir, const char *text)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "%s/stat", dir);
	f = fopen(path, "w");
	ck_assert_ptr_nonnull(f);
	fputs(text, f);
	fclose(f);
}

START_TEST(test_load)
{
	char dir[] = "/tmp/mirrorball-load-XXXXXX", path[64];
	struct mb_topology topo = {.n_nodes = 2};
	struct mb_node_load before, now;
	int fd;

	CPU_SET(0, &topo.node[0].cpus);
	CPU_SET(2, &topo.node[0].cpus);
	CPU_SET(1, &topo.node[1].cpus);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	fd = open(dir, O_PATH | O_DIRECTORY);
	ck_assert_int_eq(mb_node_load_read(&topo, fd, &before), -ENOENT);
	put_stat(dir, "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 10 0 0 90 0 0 0 0 0 0\n"
		      "cpu1 0 0 0 0 0 0 0 0 0 0\ncpu2 0 0 0 100 0 0 0 0 0 0\nintr 1\n");
	ck_assert_int_eq(mb_node_load_read(&topo, fd, &before), 0);
	/* User, system, interrupts and what was stolen; not idle, not waiting for a disk. */
	put_stat(dir,
		"cpu  1\ncpu0 30 10 10 90 0 5 5 40 0 0\ncpu1 0 0 0 70 30 0 0 0 0 0\n"
		"cpu2 0 0 0 200 0 0 0 0 0 0\ncpu7777777 1 1 1 1 1\ncpuX\nintr 1\ncpu1 9 9 9 9\n");
	ck_assert_int_eq(mb_node_load_read(&topo, fd, &now), 0);
	ck_assert_double_eq_tol(mb_node_load_share(&before, &now, 0), 90.0 / 190, 1e-9);
	ck_assert_double_eq_tol(mb_node_load_share(&before, &now, 1), 0, 1e-9);
	ck_assert_double_eq_tol(mb_node_load_share(&now, &now, 0), 0, 1e-9);
	ck_assert_double_eq_tol(mb_node_load_share(&now, &before, 0), 0, 1e-9);
	close(fd);
	snprintf(path, sizeof(path), "%s/stat", dir);
	unlink(path);
	rmdir(dir);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("rebalance");
	TCase *tc = tcase_create("rebalance");

	tcase_add_test(tc, test_moves);
	tcase_add_test(tc, test_in_a_row);
	tcase_add_test(tc, test_alone);
	tcase_add_test(tc, test_target);
	tcase_add_test(tc, test_which);
	tcase_add_test(tc, test_cooldown);
	tcase_add_test(tc, test_load);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
