// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/topology.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A host's /sys, made from a short description in a directory of its own. */
static char root[] = "/tmp/mirrorball-sysfs-XXXXXX";
static int root_fd;

static void put(const char *path, const char *text)
{
	char full[256];
	FILE *f;

	snprintf(full, sizeof(full), "%s/%s", root, path);
	for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')); at++) {
		*at = '\0';
		mkdir(full, 0700);
		*at = '/';
	}
	f = fopen(full, "w");
	ck_assert_ptr_nonnull(f);
	fputs(text, f);
	fclose(f);
}

static void put_node(unsigned id, const char *cpus, unsigned long total_kb, const char *distance)
{
	char path[96], text[256];

	snprintf(path, sizeof(path), "devices/system/node/node%u/cpulist", id);
	put(path, cpus);
	snprintf(path, sizeof(path), "devices/system/node/node%u/meminfo", id);
	snprintf(text, sizeof(text), "Node %u MemTotal:       %lu kB\nNode %u MemFree:  %lu kB\n", id,
		total_kb, id, total_kb / 2);
	put(path, text);
	snprintf(path, sizeof(path), "devices/system/node/node%u/distance", id);
	put(path, distance);
}

static void setup(void)
{
	strcpy(root + sizeof(root) - 7, "XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(root));
	root_fd = open(root, O_PATH | O_DIRECTORY);
}

static void teardown(void)
{
	char command[128];

	close(root_fd);
	snprintf(command, sizeof(command), "rm -rf '%s'", root);
	ck_assert_int_eq(system(command), 0);
}

static struct mb_topology topo;

START_TEST(test_no_numa)
{
	put("devices/system/cpu/online", "0-2,5\n");
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	ck_assert_uint_eq(topo.n_nodes, 1);
	ck_assert_int_eq(CPU_COUNT(&topo.node[0].cpus), 4);
	ck_assert(CPU_ISSET(5, &topo.node[0].cpus));
	ck_assert(topo.node[0].has_memory);
}
END_TEST

START_TEST(test_two_nodes)
{
	cpu_set_t group[2];

	put("devices/system/node/online", "0-1\n");
	put_node(0, "0-1\n", 2048, "10 21\n");
	put_node(1, "2-3\n", 4096, "21 10\n");
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	ck_assert_uint_eq(topo.n_nodes, 2);
	ck_assert_uint_eq(topo.node[1].mem_total_bytes, 4096 * 1024);
	ck_assert_uint_eq(topo.node[1].mem_free_bytes, 2048 * 1024);
	ck_assert_uint_eq(topo.node[0].distance[1], 21);
	mb_topology_group(&topo, 2, group);
	ck_assert(CPU_EQUAL(&group[0], &topo.node[0].cpus));
	ck_assert(CPU_EQUAL(&group[1], &topo.node[1].cpus));
	mb_topology_group(&topo, 1, group);
	ck_assert_int_eq(CPU_COUNT(&group[0]), 4);
}
END_TEST

START_TEST(test_sparse_cpuless_memoryless)
{
	cpu_set_t group[2];

	put("devices/system/node/online", "0,3,8\n");
	put_node(0, "0-3\n", 1024, "10 20 40\n");
	put_node(3, "4-7\n", 0, "20 10 40\n"); /* no memory */
	put_node(8, "\n", 8192, "40 40 10\n"); /* no CPU */
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	ck_assert_uint_eq(topo.n_nodes, 3);
	ck_assert_uint_eq(topo.node[1].id, 3);
	ck_assert(!topo.node[1].has_memory);
	ck_assert_int_eq(CPU_COUNT(&topo.node[2].cpus), 0);
	ck_assert_uint_eq(topo.node[2].distance[0], 40);
	mb_topology_group(&topo, 2, group);
	ck_assert_int_eq(CPU_COUNT(&group[0]), 4);
	ck_assert_int_eq(CPU_COUNT(&group[1]), 4);
	ck_assert(CPU_ISSET(4, &group[1]));
}
END_TEST

/* Two sockets of two nodes each, numbered alternately: a group is a socket. */
START_TEST(test_groups_near_nodes)
{
	cpu_set_t group[2];

	put("devices/system/node/online", "0-3\n");
	put_node(0, "0-1\n", 1024, "10 32 12 32\n");
	put_node(1, "2-3\n", 1024, "32 10 32 12\n");
	put_node(2, "4-5\n", 1024, "12 32 10 32\n");
	put_node(3, "6-7\n", 1024, "32 12 32 10\n");
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	mb_topology_group(&topo, 2, group);
	ck_assert_int_eq(CPU_COUNT(&group[0]), 4);
	ck_assert(CPU_ISSET(0, &group[0]) && CPU_ISSET(4, &group[0]));
	ck_assert(CPU_ISSET(2, &group[1]) && CPU_ISSET(6, &group[1]));
}
END_TEST

/* Halves are halves, also of nodes with one CPU, or another odd number. */
START_TEST(test_odd_cpus)
{
	static const char *const cpus[][4] = {
		{"0\n", "1\n", "2\n", "3\n"}, {"0-2\n", "3-5\n", "6-8\n", "9-11\n"}};
	cpu_set_t group[2];

	put("devices/system/node/online", "0-3\n");
	for (unsigned n = 0; n < 2; n++) {
		for (unsigned i = 0; i < 4; i++)
			put_node(i, cpus[n][i], 1024, "20 20 20 20\n");
		ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
		mb_topology_group(&topo, 2, group);
		ck_assert_int_eq(CPU_COUNT(&group[0]), CPU_COUNT(&group[1]));
	}
}
END_TEST

START_TEST(test_more_views_than_nodes)
{
	cpu_set_t group[8];

	put("devices/system/node/online", "0-1\n");
	put_node(0, "0\n", 1024, "10 20\n");
	put_node(1, "1-7\n", 1024, "20 10\n");
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	mb_topology_group(&topo, 8, group);
	ck_assert_int_eq(CPU_COUNT(&group[0]), 1);
	for (unsigned k = 1; k < 8; k++)
		ck_assert_int_eq(CPU_COUNT(&group[k]), 7);
}
END_TEST

/* Eight nodes in 1, 2, 4 and 8 groups: all CPUs, none twice, the same number in each. */
START_TEST(test_eight_nodes)
{
	put("devices/system/node/online", "0-7\n");
	for (unsigned i = 0; i < 8; i++) {
		char cpus[16], distance[64] = "";

		snprintf(cpus, sizeof(cpus), "%u-%u", 4 * i, 4 * i + 3);
		for (unsigned j = 0; j < 8; j++)
			sprintf(distance + strlen(distance), "%u ",
				i == j ? 10 : i / 2 == j / 2 ? 16 : i / 4 == j / 4 ? 22 : 28);
		put_node(i, cpus, 1024, distance);
	}
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	for (unsigned n = 1; n <= 8; n *= 2) {
		cpu_set_t group[8], all;

		mb_topology_group(&topo, n, group);
		CPU_ZERO(&all);
		for (unsigned k = 0; k < n; k++) {
			ck_assert_int_eq(CPU_COUNT(&group[k]), 32 / (int)n);
			CPU_OR(&all, &all, &group[k]);
		}
		ck_assert_int_eq(CPU_COUNT(&all), 32);
	}
}
END_TEST

/* Groups are of what a cpuset allows, also where it allows nothing of a node, or nothing at all. */
START_TEST(test_cpuset)
{
	cpu_set_t group[2], allowed;

	put("devices/system/node/online", "0-3\n");
	put_node(0, "0-3\n", 1024, "10 12 32 32\n");
	put_node(1, "4-7\n", 1024, "12 10 32 32\n");
	put_node(2, "8-11\n", 1024, "32 32 10 12\n");
	put_node(3, "12-15\n", 1024, "32 32 12 10\n");
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	CPU_ZERO(&allowed);
	for (unsigned cpu = 2; cpu < 8; cpu++)
		CPU_SET(cpu, &allowed);
	CPU_SET(99, &allowed); /* of no node */
	mb_topology_restrict(&topo, &allowed);
	ck_assert_uint_eq(topo.n_nodes, 4);
	mb_topology_group(&topo, 2, group);
	ck_assert(CPU_EQUAL(&group[0], &topo.node[0].cpus));
	ck_assert(CPU_EQUAL(&group[1], &topo.node[1].cpus));
	ck_assert_int_eq(CPU_COUNT(&group[0]), 2);
	ck_assert_int_eq(CPU_COUNT(&group[1]), 4);
	/* One node left: both groups are it. */
	CPU_CLR(2, &allowed);
	CPU_CLR(3, &allowed);
	mb_topology_restrict(&topo, &allowed);
	mb_topology_group(&topo, 2, group);
	ck_assert_int_eq(CPU_COUNT(&group[0]), 4);
	ck_assert(CPU_EQUAL(&group[0], &group[1]));
	CPU_ZERO(&allowed);
	mb_topology_restrict(&topo, &allowed);
	mb_topology_group(&topo, 2, group);
	ck_assert_int_eq(CPU_COUNT(&group[0]) + CPU_COUNT(&group[1]), 0);
}
END_TEST

/* What the kernel gives back easily counts half. */
START_TEST(test_available)
{
	put("devices/system/node/online", "0\n");
	put_node(0, "0-1\n", 4096, "10\n");
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	ck_assert_uint_eq(topo.node[0].mem_available_bytes, 2048 * 1024);
	put("devices/system/node/node0/meminfo",
		"Node 0 MemTotal:        8192 kB\nNode 0 MemFree:          100 kB\n"
		"Node 0 Active:          9999 kB\nNode 0 Inactive:        9999 kB\n"
		"Node 0 Active(anon):    9999 kB\nNode 0 Inactive(anon):  9999 kB\n"
		"Node 0 Active(file):     200 kB\nNode 0 Inactive(file):   400 kB\n"
		"Node 0 Shmem:           9999 kB\nNode 0 KReclaimable:    9999 kB\n"
		"Node 0 SReclaimable:      40 kB\nNode 0 SUnreclaim:      9999 kB\n");
	mb_topology_read_memory(&topo, root_fd);
	ck_assert_uint_eq(topo.node[0].mem_total_bytes, 8192 * 1024);
	ck_assert_uint_eq(topo.node[0].mem_available_bytes, (100 + 640 / 2) * 1024);
}
END_TEST

START_TEST(test_odd_files)
{
	put("devices/system/node/online", "0-1,garbage\n");
	put_node(0, "0-99999999\n", 1024, "what\n");
	ck_assert_int_eq(mb_topology_read(&topo, root_fd, NULL), 0);
	ck_assert_uint_eq(topo.n_nodes, 2); /* node 1 has no files at all */
	ck_assert_int_eq(CPU_COUNT(&topo.node[0].cpus), CPU_SETSIZE);
	ck_assert_uint_eq(topo.node[0].distance[0], 10);
	ck_assert_uint_eq(topo.node[0].distance[1], 20);
	ck_assert(!topo.node[1].has_memory);
}
END_TEST

START_TEST(test_unreadable)
{
	struct mb_error err;

	ck_assert_int_eq(mb_topology_read(&topo, -1, &err), -EBADF);
	ck_assert_ptr_nonnull(strstr(err.text, "/sys"));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("topology");
	TCase *tc = tcase_create("topology");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_no_numa);
	tcase_add_test(tc, test_two_nodes);
	tcase_add_test(tc, test_sparse_cpuless_memoryless);
	tcase_add_test(tc, test_groups_near_nodes);
	tcase_add_test(tc, test_odd_cpus);
	tcase_add_test(tc, test_more_views_than_nodes);
	tcase_add_test(tc, test_eight_nodes);
	tcase_add_test(tc, test_cpuset);
	tcase_add_test(tc, test_available);
	tcase_add_test(tc, test_odd_files);
	tcase_add_test(tc, test_unreadable);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
