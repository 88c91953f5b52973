// SPDX-License-Identifier: Apache-2.0
/* Which nodes a machine is put on: fewest, with room, least loaded, near. */
#include "run.h"

#include <errno.h>
#include <mirrorball/placement.h>
#include <stdlib.h>
#include <string.h>

#define GIB (1ull << 30)

static struct mb_place_config config;
static struct mb_place_host host;
static struct mb_place_request request;
static struct mb_placement got;

/* n nodes of 8 CPUs and 16 GiB, all free, at distance 20; a machine of 4 vCPUs and 4 GiB. */
static void make(unsigned n)
{
	mb_place_defaults(&config);
	memset(&host, 0, sizeof(host));
	host.n_nodes = n;
	for (unsigned i = 0; i < n; i++) {
		host.node[i] = (struct mb_place_node){.id = i,
			.n_cpus = 8,
			.usable = true,
			.total_bytes = 16 * GIB,
			.available_bytes = 16 * GIB};
		for (unsigned k = 0; k < n; k++)
			host.node[i].distance[k] = i == k ? 10 : 20;
	}
	request = (struct mb_place_request){.n_vcpus = 4, .memory_bytes = 4 * GIB};
}

static void set_distance(unsigned a, unsigned b, uint16_t distance)
{
	host.node[a].distance[b] = host.node[b].distance[a] = distance;
}

static void place(void)
{
	struct mb_placement again;

	ck_assert_int_eq(mb_place(&config, &host, &request, &got, NULL), 0);
	ck_assert_int_eq(mb_place(&config, &host, &request, &again, NULL), 0);
	ck_assert_mem_eq(&got, &again, sizeof(got));
}

/* Nodes as bits; what is expected of all of them is the machine. */
static void expect(uint64_t nodes, enum mb_place_why why)
{
	uint64_t bytes = 0;
	unsigned vcpus = 0;

	place();
	ck_assert_uint_eq(got.nodes, nodes);
	ck_assert_int_eq(got.why, why);
	for (unsigned i = 0; i < MB_MAX_NODES; i++) {
		vcpus += got.vcpus[i];
		bytes += got.bytes[i];
		if (!(nodes >> i & 1))
			ck_assert(!got.vcpus[i] && !got.bytes[i]);
	}
	ck_assert_uint_eq(vcpus, request.n_vcpus);
	ck_assert_uint_eq(bytes, request.memory_bytes);
}

START_TEST(test_one_node)
{
	make(1);
	expect(1, MB_PLACE_WHY_ONE_NODE);
	/* However much it wants. */
	request.n_vcpus = 100;
	request.memory_bytes = 100 * GIB;
	expect(1, MB_PLACE_WHY_ONE_NODE);
	host.node[0].n_cpus = 0;
	ck_assert_int_eq(mb_place(&config, &host, &request, &got, NULL), -ENODEV);
}
END_TEST

START_TEST(test_fewest)
{
	make(4);
	expect(1, MB_PLACE_WHY_FEWEST);
	request.n_vcpus = 8;
	expect(1, MB_PLACE_WHY_FEWEST);
	request.n_vcpus = 9;
	expect(3, MB_PLACE_WHY_FEWEST);
	request.n_vcpus = 4;
	request.memory_bytes = 15 * GIB;
	expect(1, MB_PLACE_WHY_FEWEST);
	/* Four hundredths stay free. */
	request.memory_bytes = 16 * GIB - GIB / 2;
	expect(3, MB_PLACE_WHY_FEWEST);
	request.memory_bytes = 40 * GIB;
	expect(7, MB_PLACE_WHY_FEWEST);
	request.n_vcpus = 32;
	expect(15, MB_PLACE_WHY_VCPUS);
	request.n_vcpus = 33;
	expect(15, MB_PLACE_WHY_VCPUS);
	request.memory_bytes = 64 * GIB;
	expect(15, MB_PLACE_WHY_NO_ROOM);
}
END_TEST

/* What others were promised is not free, and what they have touched is not available any more. */
START_TEST(test_room)
{
	make(2);
	host.node[0].promised_bytes = 12 * GIB;
	expect(2, MB_PLACE_WHY_FEWEST);
	host.node[1].available_bytes = 3 * GIB;
	expect(3, MB_PLACE_WHY_FEWEST);
	host.node[0].promised_bytes = 11 * GIB;
	expect(1, MB_PLACE_WHY_FEWEST);
	/* Promises are broken before nodes are full. */
	host.node[0].promised_bytes = 100 * GIB;
	expect(1, MB_PLACE_WHY_PROMISED);
	host.node[1].promised_bytes = 100 * GIB;
	request.memory_bytes = 17 * GIB;
	expect(3, MB_PLACE_WHY_PROMISED);
	request.memory_bytes = 19 * GIB;
	expect(3, MB_PLACE_WHY_NO_ROOM);
	ck_assert_uint_eq(mb_place_room(&config, &host.node[0]), 0);
	/* The one with most room where all else is the same, if it is more by a sixteenth. */
	make(2);
	host.node[0].available_bytes = 12 * GIB;
	expect(2, MB_PLACE_WHY_FEWEST);
	/* A small node keeps 64 MiB. */
	host.node[0].total_bytes = host.node[0].available_bytes = GIB;
	ck_assert_uint_eq(mb_place_room(&config, &host.node[0]), GIB - (64 << 20));
}
END_TEST

/* The first two go apart, the third to where less runs. */
START_TEST(test_load)
{
	make(2);
	host.node[0].vcpus = 4;
	expect(2, MB_PLACE_WHY_FEWEST);
	host.node[1].vcpus = 4;
	expect(1, MB_PLACE_WHY_FEWEST);
	host.node[0].busy_cpus = 4;
	expect(2, MB_PLACE_WHY_FEWEST);
	host.node[1].busy_cpus = 6; /* somebody else's */
	expect(1, MB_PLACE_WHY_FEWEST);
	/* Of all CPUs: two on 8 are less than one on 2. */
	make(2);
	host.node[1].n_cpus = 2;
	request.n_vcpus = 1;
	host.node[0].busy_cpus = 2;
	host.node[1].busy_cpus = 1;
	expect(1, MB_PLACE_WHY_FEWEST);
	/* No load makes it take two where one has the room. */
	make(2);
	host.node[0].busy_cpus = host.node[1].busy_cpus = 8;
	host.node[0].vcpus = host.node[1].vcpus = 80;
	expect(1, MB_PLACE_WHY_FEWEST);
	/* Noise does not count. */
	make(2);
	host.node[0].busy_cpus = 0.1;
	expect(1, MB_PLACE_WHY_FEWEST);
}
END_TEST

/* Two sockets of four nodes, as they are counted: sets keep together, however large. */
START_TEST(test_eight_nodes)
{
	make(8);
	for (unsigned i = 0; i < 8; i++)
		for (unsigned k = i + 1; k < 8; k++)
			set_distance(i, k, i % 2 == k % 2 ? 12 : 32);
	request.n_vcpus = 16;
	expect(0x05, MB_PLACE_WHY_FEWEST);
	host.node[0].busy_cpus = host.node[2].busy_cpus = 8;
	expect(0x0a, MB_PLACE_WHY_FEWEST);
	request.n_vcpus = 32;
	expect(0xaa, MB_PLACE_WHY_FEWEST);
	host.node[1].promised_bytes = 16 * GIB;
	host.node[0].busy_cpus = host.node[2].busy_cpus = 0;
	expect(0x55, MB_PLACE_WHY_FEWEST);
	request.n_vcpus = 64;
	expect(0xff, MB_PLACE_WHY_VCPUS);
	/* Nodes without room add CPUs only: a machine that needs all memory has them, too. */
	request.n_vcpus = 8;
	request.memory_bytes = 100 * GIB;
	place();
	ck_assert_int_eq(__builtin_popcountll(got.nodes), 7);
	ck_assert(!(got.nodes & 2));
}
END_TEST

/* Nodes of different sizes: the large ones are found although others are nearer. */
START_TEST(test_sizes)
{
	make(6);
	for (unsigned i = 0; i < 6; i++) {
		host.node[i].n_cpus = i < 3 ? 2 : 16;
		for (unsigned k = i + 1; k < 6; k++)
			set_distance(i, k, k < 3 ? 11 : 30);
	}
	request.n_vcpus = 48;
	expect(0x38, MB_PLACE_WHY_FEWEST);
}
END_TEST

START_TEST(test_sparse_ids)
{
	unsigned bad = 0;

	make(3);
	host.node[0].id = 0;
	host.node[1].id = 5;
	host.node[2].id = 900;
	request.kind = MB_PLACE_NODES;
	ck_assert_int_eq(mb_node_ids_parse("5,900", &request.ids), 0);
	expect(6, MB_PLACE_WHY_GIVEN);
	ck_assert_int_eq(mb_node_ids_parse("0,1", &request.ids), 0);
	ck_assert_int_eq(mb_place(&config, &host, &request, &got, &bad), -EINVAL);
	ck_assert_uint_eq(bad, 1);
	host.node[2].usable = false;
	host.node[2].n_cpus = 0;
	mb_node_ids_parse("5,900", &request.ids);
	ck_assert_int_eq(mb_place(&config, &host, &request, &got, &bad), -EINVAL);
	ck_assert_uint_eq(bad, 900);
	/* Memory alone runs nothing. */
	host.node[2].usable = true;
	mb_node_ids_parse("900", &request.ids);
	ck_assert_int_eq(mb_place(&config, &host, &request, &got, &bad), -ENOSPC);
	mb_node_ids_parse("0,900", &request.ids);
	expect(5, MB_PLACE_WHY_GIVEN);
	ck_assert_uint_eq(got.vcpus[2], 0);
	ck_assert_uint_gt(got.bytes[2], 0);
}
END_TEST

START_TEST(test_cpuless)
{
	make(3);
	host.node[2].n_cpus = 0; /* of the farthest, most memory */
	host.node[2].total_bytes = host.node[2].available_bytes = 256 * GIB;
	expect(1, MB_PLACE_WHY_FEWEST);
	request.memory_bytes = 20 * GIB;
	expect(3, MB_PLACE_WHY_FEWEST);
	request.memory_bytes = 200 * GIB;
	expect(7, MB_PLACE_WHY_MEMORY);
	ck_assert_uint_eq(got.vcpus[2], 0);
	request.memory_bytes = 400 * GIB;
	expect(7, MB_PLACE_WHY_NO_ROOM);
}
END_TEST

START_TEST(test_memoryless)
{
	make(3);
	host.node[0].usable = false;
	host.node[0].total_bytes = host.node[0].available_bytes = 0;
	expect(2, MB_PLACE_WHY_FEWEST);
	/* Its CPUs are as good as others when nobody else has them. */
	request.n_vcpus = 24;
	expect(7, MB_PLACE_WHY_VCPUS);
	ck_assert_uint_eq(got.bytes[0], 0);
	ck_assert_uint_eq(got.vcpus[0], 8);
}
END_TEST

/* A cpuset's CPUs and memory need not be of the same nodes. */
START_TEST(test_cpuset)
{
	make(4);
	for (unsigned i = 0; i < 4; i++)
		host.node[i].n_cpus = i == 2 ? 3 : 0;
	expect(4, MB_PLACE_WHY_VCPUS);
	for (unsigned i = 0; i < 4; i++)
		host.node[i].usable = i == 2;
	expect(4, MB_PLACE_WHY_ONE_NODE);
	/* CPUs of two, memory of one of them. */
	make(2);
	host.node[0].usable = false;
	expect(2, MB_PLACE_WHY_FEWEST);
	request.n_vcpus = 16;
	expect(3, MB_PLACE_WHY_VCPUS);
	/* CPUs of one, memory of the other. */
	make(2);
	host.node[0].usable = false;
	host.node[1].n_cpus = 0;
	expect(3, MB_PLACE_WHY_MEMORY);
}
END_TEST

START_TEST(test_views)
{
	make(4);
	request.min_nodes = 2;
	expect(3, MB_PLACE_WHY_FEWEST);
	request.min_nodes = 9;
	expect(15, MB_PLACE_WHY_FEWEST);
}
END_TEST

START_TEST(test_asked)
{
	make(3);
	host.node[1].n_cpus = 0;
	host.node[2].usable = false;
	request.kind = MB_PLACE_SPREAD;
	expect(7, MB_PLACE_WHY_SPREAD);
	ck_assert_uint_eq(got.bytes[0], 2 * GIB);
	ck_assert_uint_eq(got.bytes[1], 2 * GIB);
	ck_assert_uint_eq(got.vcpus[0], 2);
	request.kind = MB_PLACE_NONE;
	expect(7, MB_PLACE_WHY_NONE);
}
END_TEST

/* 64 nodes of any size: an answer, always the same, that holds the machine or says that none does.
 */
START_TEST(test_many)
{
	unsigned seed = 1234, n_more = 0;

	make(64);
	for (unsigned round = 0; round < 100; round++) {
		uint64_t room = 0;
		unsigned cpus = 0;

		for (unsigned i = 0; i < 64; i++) {
			struct mb_place_node *node = &host.node[i];

			node->n_cpus = (unsigned)rand_r(&seed) % 9;
			node->usable = rand_r(&seed) % 8;
			node->available_bytes = (unsigned)rand_r(&seed) % 17 * GIB;
			node->promised_bytes = (unsigned)rand_r(&seed) % 4 * GIB;
			node->vcpus = (unsigned)rand_r(&seed) % 20;
			node->busy_cpus = rand_r(&seed) % (node->n_cpus + 1);
			for (unsigned k = 0; k < i; k++)
				set_distance(i, k, (uint16_t)(11 + rand_r(&seed) % 40));
		}
		request.n_vcpus = 1u + (unsigned)rand_r(&seed) % 300;
		request.memory_bytes = (unsigned)rand_r(&seed) % 600 * GIB;
		place();
		for (unsigned i = 0; i < 64; i++) {
			if (!(got.nodes >> i & 1))
				continue;
			cpus += host.node[i].n_cpus;
			room += mb_place_room(&config, &host.node[i]);
		}
		n_more += __builtin_popcountll(got.nodes) > 2;
		if (got.why == MB_PLACE_WHY_FEWEST) {
			ck_assert_uint_ge(cpus, request.n_vcpus);
			ck_assert_uint_ge(room, request.memory_bytes);
		}
		if (got.why != MB_PLACE_WHY_NO_ROOM && got.why != MB_PLACE_WHY_PROMISED)
			ck_assert_uint_ge(room, request.memory_bytes);
	}
	ck_assert_uint_gt(n_more, 50);
}
END_TEST

START_TEST(test_ids)
{
	static const char *const bad[] = {
		"", ",", "1,", "-1", "1-", "3-2", "a", "1 2", "0x1", "1,,2"};
	struct mb_node_ids ids;
	char text[64];

	ck_assert_int_eq(mb_node_ids_parse("7,0,2-3,1023", &ids), 0);
	mb_node_ids_format(&ids, text, sizeof(text));
	ck_assert_str_eq(text, "0,2-3,7,1023");
	ck_assert(mb_node_ids_has(&ids, 1023) && !mb_node_ids_has(&ids, 1024));
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_int_eq(mb_node_ids_parse(bad[i], &ids), -EINVAL);
	ck_assert_int_eq(mb_node_ids_parse("1024", &ids), -ERANGE);
	ck_assert_int_eq(mb_node_ids_parse("0-99999999999999999999", &ids), -ERANGE);
	memset(&ids, 0x55, sizeof(ids));
	mb_node_ids_format(&ids, text, 16);
	ck_assert_uint_lt(strlen(text), 16);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("placement");
	TCase *tc = tcase_create("placement");

	tcase_add_test(tc, test_one_node);
	tcase_add_test(tc, test_fewest);
	tcase_add_test(tc, test_room);
	tcase_add_test(tc, test_load);
	tcase_add_test(tc, test_eight_nodes);
	tcase_add_test(tc, test_sizes);
	tcase_add_test(tc, test_sparse_ids);
	tcase_add_test(tc, test_cpuless);
	tcase_add_test(tc, test_memoryless);
	tcase_add_test(tc, test_cpuset);
	tcase_add_test(tc, test_views);
	tcase_add_test(tc, test_asked);
	tcase_add_test(tc, test_many);
	tcase_add_test(tc, test_ids);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
