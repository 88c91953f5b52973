// SPDX-License-Identifier: Apache-2.0
#include "../../devices/qcow2.h"
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/*
 * The overlay's file by itself: what is written is read back, and garbage is refused. Whatever is
 * in the file, opening it ends with an error or with a map whose clusters are in the file, each
 * once.
 */
#define DISK	 (40u << 20)
#define MAX_FILE (4u << 20)

static int make_file(uint64_t bytes)
{
	struct mb_qcow2_base base = {.bytes = bytes, .mtime_ns = 12345, .known = true};
	int fd = memfd_create("qcow2", MFD_CLOEXEC);
	struct mb_error err;

	ck_assert_msg(!mb_qcow2_create(fd, "test", bytes, "base.img", &base, &err), "%s", err.text);
	return fd;
}

static struct mb_qcow2 *open_file(int fd, uint64_t **map)
{
	struct mb_qcow2 *qcow2;
	struct mb_error err;

	ck_assert_msg(!mb_qcow2_open(&qcow2, fd, "test", &err), "%s", err.text);
	*map = mmap(NULL, mb_qcow2_n_clusters(qcow2) * 8, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ck_assert_msg(!mb_qcow2_load(qcow2, *map, &err), "%s", err.text);
	return qcow2;
}

static void close_file(struct mb_qcow2 *qcow2, uint64_t *map)
{
	munmap(map, mb_qcow2_n_clusters(qcow2) * 8);
	mb_qcow2_destroy(qcow2);
}

/* Entries of all kinds at both ends of the disk, and in between. */
static void fill(int fd)
{
	struct mb_qcow2 *qcow2;
	struct mb_error err;
	uint64_t *map, at, n;

	qcow2 = open_file(fd, &map);
	n = mb_qcow2_n_clusters(qcow2);
	ck_assert_int_eq(mb_qcow2_begin(qcow2, &err), 0);
	for (uint64_t i = 0; i < n; i += 511) {
		ck_assert_uint_eq(mb_qcow2_allocate(qcow2, 1, &at), 1);
		map[i] = MB_QCOW2_ALLOCATED | at;
		if (i % 2)
			map[i] |= MB_QCOW2_ZERO;
		if (i + 1 < n)
			map[i + 1] = MB_QCOW2_ZERO;
	}
	for (uint64_t i = 0; i * MB_QCOW2_CHUNK_ENTRIES < n; i++)
		ck_assert_int_eq(
			mb_qcow2_write_chunk(qcow2, i, map + i * MB_QCOW2_CHUNK_ENTRIES), 0);
	ck_assert_int_eq(mb_qcow2_end(qcow2, &err), 0);
	close_file(qcow2, map);
}

START_TEST(test_sizes)
{
	static const uint64_t sizes[] = {512, 4096, 4608, 2 << 20, (2 << 20) + 512, DISK,
		1ull << 38, (1ull << 38) + 512, 1ull << 41, 1ull << 46, 1ull << 50};
	uint64_t bytes = sizes[_i], *map, leaked, missing;
	int fd = make_file(bytes);
	const struct mb_qcow2_info *info;
	struct mb_qcow2 *qcow2;
	struct mb_error err;
	struct stat st;

	/* It costs what its first table takes, not what the disk does. */
	ck_assert_int_eq(fstat(fd, &st), 0);
	ck_assert_int_le(st.st_blocks * 512, 40 << 20);
	qcow2 = open_file(fd, &map);
	info = mb_qcow2_info(qcow2);
	ck_assert_uint_eq(info->bytes, bytes);
	ck_assert_str_eq(info->base_name, "base.img");
	ck_assert_str_eq(info->base_format, "raw");
	ck_assert(info->base.known && info->base.mtime_ns == 12345 && info->base.bytes == bytes);
	ck_assert(!info->dirty && !info->n_changed);
	ck_assert_uint_eq(mb_qcow2_next_changed(qcow2, 0), mb_qcow2_n_clusters(qcow2));
	ck_assert_int_eq(mb_qcow2_compare_counts(qcow2, &leaked, &missing, &err), 0);
	ck_assert_uint_eq(leaked + missing, 0);
	close_file(qcow2, map);
	close(fd);
}
END_TEST

START_TEST(test_read_back)
{
	int fd = make_file(DISK);
	uint64_t *map, leaked, missing, n, i = 0, last = 0;
	struct mb_qcow2 *qcow2;
	struct mb_error err;

	fill(fd);
	qcow2 = open_file(fd, &map);
	n = mb_qcow2_n_clusters(qcow2);
	ck_assert(!mb_qcow2_info(qcow2)->dirty);
	for (uint64_t k = 0; k < n; k++) {
		bool first = k % 511 == 0, second = k % 511 == 1;

		ck_assert_int_eq(!!(map[k] & MB_QCOW2_ALLOCATED), first);
		ck_assert_int_eq(!!(map[k] & MB_QCOW2_ZERO), second || (first && k % 2));
		if (!first)
			continue;
		ck_assert_uint_gt(map[k] & MB_QCOW2_OFFSET, last);
		last = map[k] & MB_QCOW2_OFFSET;
	}
	while ((i = mb_qcow2_next_changed(qcow2, i)) < n)
		i++;
	ck_assert_int_eq(mb_qcow2_compare_counts(qcow2, &leaked, &missing, &err), 0);
	ck_assert_uint_eq(leaked + missing, 0);
	close_file(qcow2, map);
	close(fd);
}
END_TEST

/* Another base, of a longer and of a shorter name; the longest fits, and one more does not. */
START_TEST(test_set_base)
{
	struct mb_qcow2_base base = {.bytes = 7, .mtime_ns = -1, .known = true, .committing = true};
	char name[MB_QCOW2_NAME_MAX + 2];
	int fd = make_file(DISK);
	struct mb_qcow2 *qcow2;
	struct mb_error err;
	uint64_t *map;

	memset(name, 'x', sizeof(name));
	name[MB_QCOW2_NAME_MAX + 1] = 0;
	fill(fd);
	for (unsigned round = 0; round < 3; round++) {
		qcow2 = open_file(fd, &map);
		ck_assert_int_eq(mb_qcow2_set_base(qcow2, name, &base, &err), -ENAMETOOLONG);
		ck_assert_int_eq(
			mb_qcow2_set_base(qcow2, round == 1 ? "b" : name + 1, &base, &err), 0);
		ck_assert_int_eq(mb_qcow2_set_base(qcow2, NULL, &base, &err), 0);
		close_file(qcow2, map);
		qcow2 = open_file(fd, &map);
		ck_assert_str_eq(mb_qcow2_info(qcow2)->base_name, round == 1 ? "b" : name + 1);
		ck_assert(mb_qcow2_info(qcow2)->base.committing);
		ck_assert_int_eq(mb_qcow2_info(qcow2)->base.mtime_ns, -1);
		close_file(qcow2, map);
	}
	close(fd);
}
END_TEST

/*
 * A table of reference counts that gets too small (others make it no larger than they need), and goes to where a crash left a
 * guest's data.
 */
START_TEST(test_table_grows)
{
	uint64_t *map, at, got, n = 0, leaked, missing;
	const uint32_t one = __builtin_bswap32(1);
	uint8_t junk[64 << 10];
	int fd = make_file(8ull << 30);
	struct mb_qcow2 *qcow2;
	struct mb_error err;

	memset(junk, 0xff, sizeof(junk));
	ck_assert_int_eq(pwrite(fd, &one, sizeof(one), 56), sizeof(one));
	ck_assert_int_eq(pwrite(fd, "\1", 1, 79), 1);
	qcow2 = open_file(fd, &map);
	ck_assert_int_eq(mb_qcow2_begin(qcow2, &err), 0);
	while (n < 1100000) {
		got = mb_qcow2_allocate(qcow2, 1100000 - n, &at);
		ck_assert_uint_gt(got, 0);
		for (uint64_t i = 0; i < got; i++)
			map[n + i] = MB_QCOW2_ALLOCATED | (at + i * 4096);
		n += got;
	}
	for (uint64_t i = 0; i * MB_QCOW2_CHUNK_ENTRIES < n; i++)
		ck_assert_int_eq(
			mb_qcow2_write_chunk(qcow2, i, map + i * MB_QCOW2_CHUNK_ENTRIES), 0);
	ck_assert_uint_eq(mb_qcow2_allocate(qcow2, 16, &at), 16);
	ck_assert_int_eq(pwrite(fd, junk, sizeof(junk), (off_t)at), sizeof(junk));
	close_file(qcow2, map);
	for (unsigned round = 0; round < 2; round++) {
		qcow2 = open_file(fd, &map);
		ck_assert_uint_eq(mb_qcow2_info(qcow2)->n_changed, n);
		ck_assert_int_eq(mb_qcow2_begin(qcow2, &err), 0);
		ck_assert_msg(!mb_qcow2_end(qcow2, &err), "%s", err.text);
		close_file(qcow2, map);
		qcow2 = open_file(fd, &map);
		ck_assert(!mb_qcow2_info(qcow2)->dirty);
		ck_assert_int_eq(mb_qcow2_compare_counts(qcow2, &leaked, &missing, &err), 0);
		ck_assert_uint_eq(leaked + missing, 0);
		close_file(qcow2, map);
	}
	close(fd);
}
END_TEST

/* ---- garbage ---- */

static uint64_t rng;

static uint32_t rnd(uint32_t below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 32) % below;
}

/* Values that mean something, or nearly. */
static uint64_t odd_value(void)
{
	static const uint64_t values[] = {0, 1, 2, 511, 512, 4096, 4097, 8192, 65536, 1u << 31,
		0xffffffff, 1ull << 32, 1ull << 40, 1ull << 55, 1ull << 56, 1ull << 61, 1ull << 62,
		1ull << 63, INT64_MAX, UINT64_MAX};
	uint64_t v = values[rnd(sizeof(values) / sizeof(values[0]))];

	return rnd(3) ? v : v ^ rng;
}

static void spoil(uint8_t *file, uint64_t *len)
{
	/* The header, the tables, or anywhere. */
	static const uint32_t places[] = {112, 1024, 16 << 10, 128 << 10};

	for (unsigned n = 1 + rnd(4); n; n--) {
		uint32_t place = places[rnd(4)], at = rnd(place < *len ? place : (uint32_t)*len);
		uint64_t v = odd_value();
		unsigned bytes = 1u << rnd(4);

		if (!rnd(20)) {
			*len = rnd(MAX_FILE / 2) + 1;
			continue;
		}
		at &= ~(bytes - 1);
		for (unsigned i = 0; i < bytes && at + i < *len; i++)
			file[at + i] = (uint8_t)(v >> 8 * (bytes - 1 - i));
	}
}

/* What a file that opens promises. */
static void check_map(const struct mb_qcow2 *qcow2, const uint64_t *map)
{
	const struct mb_qcow2_info *info = mb_qcow2_info(qcow2);
	uint64_t n = mb_qcow2_n_clusters(qcow2);

	for (uint64_t i = mb_qcow2_next_changed(qcow2, 0); i < n;
		i = mb_qcow2_next_changed(qcow2, i + 1)) {
		uint64_t at = map[i] & MB_QCOW2_OFFSET;

		ck_assert_uint_eq(
			map[i] & ~(MB_QCOW2_OFFSET | MB_QCOW2_ALLOCATED | MB_QCOW2_ZERO), 0);
		ck_assert_int_eq(!!at, !!(map[i] & MB_QCOW2_ALLOCATED));
		ck_assert_uint_eq(at % info->cluster_bytes, 0);
		ck_assert_uint_lt(at, info->file_bytes);
	}
}

START_TEST(test_garbage)
{
	const char *env = getenv("MB_TEST_SEED");
	uint8_t *good = calloc(1, MAX_FILE), *file = calloc(1, MAX_FILE);
	unsigned n_opened = 0, n_ended = 0, round = 0;
	uint64_t good_len, end_s = (uint64_t)time(NULL) + 6;
	int fd = make_file(DISK);
	struct stat st;

	rng = (env ? strtoull(env, NULL, 0) : (uint64_t)time(NULL) * 2654435761u + (unsigned)_i) |
	      1;
	printf("MB_TEST_SEED=%llu\n", (unsigned long long)rng);
	fflush(stdout);
	fill(fd);
	ck_assert_int_eq(fstat(fd, &st), 0);
	good_len = (uint64_t)st.st_size;
	ck_assert_uint_lt(good_len, MAX_FILE);
	ck_assert_int_eq(pread(fd, good, good_len, 0), (ssize_t)good_len);
	close(fd);
	/* For a while, and on a loaded machine until it has seen enough of both. */
	for (; round < 6000 && ((uint64_t)time(NULL) < end_s || n_opened <= 20); round++) {
		uint64_t len = good_len, *map, leaked, missing;
		struct mb_qcow2 *qcow2;
		struct mb_error err;

		memcpy(file, good, MAX_FILE);
		spoil(file, &len);
		fd = memfd_create("qcow2", MFD_CLOEXEC);
		ck_assert_int_eq(write(fd, file, len), (ssize_t)len);
		if (!mb_qcow2_open(&qcow2, fd, "test", &err)) {
			map = mmap(NULL, mb_qcow2_n_clusters(qcow2) * 8, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			if (map != MAP_FAILED && !mb_qcow2_load(qcow2, map, &err)) {
				n_opened++;
				check_map(qcow2, map);
				mb_qcow2_compare_counts(qcow2, &leaked, &missing, &err);
				if (!mb_qcow2_begin(qcow2, &err) && !mb_qcow2_end(qcow2, &err)) {
					n_ended++;
					ck_assert_int_eq(mb_qcow2_compare_counts(
								 qcow2, &leaked, &missing, &err),
						0);
					ck_assert_uint_eq(leaked + missing, 0);
				}
			}
			if (map != MAP_FAILED)
				munmap(map, mb_qcow2_n_clusters(qcow2) * 8);
			mb_qcow2_destroy(qcow2);
		}
		close(fd);
	}
	printf("%u of %u opened, %u were put in order\n", n_opened, round, n_ended);
	ck_assert_uint_gt(n_opened, 20);
	free(good);
	free(file);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("qcow2");
	TCase *tc = tcase_create("qcow2");

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, test_sizes, 0, 11);
	tcase_add_test(tc, test_read_back);
	tcase_add_test(tc, test_set_base);
	tcase_add_test(tc, test_table_grows);
	tcase_add_loop_test(tc, test_garbage, 0, 2);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
