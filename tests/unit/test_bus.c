// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <mirrorball/bus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct device {
	uint64_t last_offset;
	uint64_t last_value;
	unsigned n_writes;
	unsigned n_strings;
};

static void dev_read(void *dev, uint64_t offset, void *data, unsigned len)
{
	mb_bus_set_value(data, len, 0x1122334455667788ull + offset);
}

static void dev_write(void *dev, uint64_t offset, const void *data, unsigned len)
{
	struct device *d = dev;

	d->last_offset = offset;
	d->last_value = mb_bus_value(data, len);
	d->n_writes++;
}

static void dev_string(void *dev, uint64_t offset, const void *data, unsigned len, unsigned count)
{
	struct device *d = dev;

	d->n_strings += count;
}

static const struct mb_region_ops plain = {.read = dev_read, .write = dev_write};
static const struct mb_region_ops with_string = {
	.read = dev_read, .write = dev_write, .write_string = dev_string};
static const struct mb_region_ops mute = {0};

static struct mb_bus *bus;

static void setup(void)
{
	ck_assert_int_eq(mb_bus_create(&bus), 0);
}

static void teardown(void)
{
	mb_bus_destroy(bus);
}

START_TEST(test_reaches_the_device)
{
	struct device d = {0};
	struct mb_region r = {MB_MMIO, 0x1000, 0x100, &plain, &d};
	uint32_t v = 0xabcd;

	ck_assert_int_eq(mb_bus_add(bus, &r), 0);
	ck_assert(mb_bus_write(bus, MB_MMIO, 0x10fc, &v, 4));
	ck_assert_uint_eq(d.last_offset, 0xfc);
	ck_assert_uint_eq(d.last_value, 0xabcd);
	ck_assert(mb_bus_read(bus, MB_MMIO, 0x1004, &v, 4));
	ck_assert_uint_eq(v, 0x5566778c);
	mb_bus_remove(bus, &r);
	ck_assert(!mb_bus_write(bus, MB_MMIO, 0x10fc, &v, 4));
	ck_assert_uint_eq(d.n_writes, 1);
}
END_TEST

START_TEST(test_nobody_there)
{
	struct device d = {0};
	struct mb_region r = {MB_MMIO, 0x1000, 0x100, &plain, &d}, m = {MB_PIO, 0x10, 4, &mute, &d};
	uint64_t v = 0;

	ck_assert_int_eq(mb_bus_add(bus, &r), 0);
	ck_assert_int_eq(mb_bus_add(bus, &m), 0);
	ck_assert(!mb_bus_read(bus, MB_MMIO, 0xfff, &v, 8)); /* hangs over the front */
	ck_assert_uint_eq(v, UINT64_MAX);
	v = 0;
	ck_assert(!mb_bus_read(bus, MB_MMIO, 0x10fd, &v, 4)); /* hangs over the end */
	ck_assert_uint_eq(v, 0xffffffff);
	ck_assert(!mb_bus_read(bus, MB_MMIO, UINT64_MAX, &v, 8)); /* wraps */
	ck_assert(!mb_bus_read(bus, MB_PIO, 0x1000, &v, 1));	  /* the other space */
	ck_assert(!mb_bus_read(bus, MB_PIO, 0x10, &v, 1));	  /* a device that answers nothing */
	ck_assert(!mb_bus_write_string(bus, 0x10, &v, 1, 8));
}
END_TEST

START_TEST(test_refuses_bad_regions)
{
	struct device d = {0};
	struct mb_region r = {MB_PIO, 0x100, 0x10, &plain, &d};
	struct mb_region bad[] = {
		{MB_PIO, 0x10f, 1, &plain, &d},
		{MB_PIO, 0xf1, 0x10, &plain, &d},
		{MB_PIO, 0x0, 0x10000, &plain, &d},
		{MB_PIO, 0x104, 2, &plain, &d},
	};
	struct mb_region empty = {MB_PIO, 0x200, 0, &plain, &d};
	struct mb_region beyond = {MB_PIO, 0xffff, 2, &plain, &d};
	struct mb_region wraps = {MB_MMIO, UINT64_MAX - 4, 16, &plain, &d};

	ck_assert_int_eq(mb_bus_add(bus, &r), 0);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_int_eq(mb_bus_add(bus, &bad[i]), -EEXIST);
	ck_assert_int_eq(mb_bus_add(bus, &empty), -EINVAL);
	ck_assert_int_eq(mb_bus_add(bus, &beyond), -EINVAL);
	ck_assert_int_eq(mb_bus_add(bus, &wraps), -EINVAL);
}
END_TEST

START_TEST(test_strings)
{
	struct device d = {0}, e = {0};
	struct mb_region r = {MB_PIO, 0x100, 8, &plain, &d};
	struct mb_region s = {MB_PIO, 0x108, 8, &with_string, &e};

	ck_assert_int_eq(mb_bus_add(bus, &r), 0);
	ck_assert_int_eq(mb_bus_add(bus, &s), 0);
	ck_assert(mb_bus_write_string(bus, 0x102, "abcd", 2, 2));
	ck_assert_uint_eq(d.n_writes, 2);
	ck_assert_uint_eq(d.last_value, 'c' | 'd' << 8);
	ck_assert_uint_eq(d.last_offset, 2);
	ck_assert(mb_bus_write_string(bus, 0x108, "abcd", 1, 4));
	ck_assert_uint_eq(e.n_strings, 4);
	ck_assert_uint_eq(e.n_writes, 0);
}
END_TEST

/* Against an array that says for every address which region holds it. */
START_TEST(test_random_against_a_table)
{
	enum { N = 64, SPAN = 4096 };
	static struct mb_region r[N];
	static int owner[SPAN];
	struct device d[N];
	unsigned seed = 20261122;
	bool in[N] = {false};

	printf("seed %u\n", seed);
	srandom(seed);
	memset(owner, -1, sizeof(owner));
	for (unsigned step = 0; step < 20000; step++) {
		unsigned i = (unsigned)random() % N;

		if (in[i]) {
			mb_bus_remove(bus, &r[i]);
			for (uint64_t a = r[i].base; a < r[i].base + r[i].len; a++)
				owner[a] = -1;
			in[i] = false;
		} else {
			bool is_free = true;
			int rc;

			r[i] = (struct mb_region){MB_MMIO, (uint64_t)random() % (SPAN - 64),
				1 + (uint64_t)random() % 64, &plain, &d[i]};
			for (uint64_t a = r[i].base; a < r[i].base + r[i].len; a++)
				is_free = is_free && owner[a] < 0;
			rc = mb_bus_add(bus, &r[i]);
			ck_assert_int_eq(rc, is_free ? 0 : -EEXIST);
			in[i] = is_free;
			if (is_free)
				for (uint64_t a = r[i].base; a < r[i].base + r[i].len; a++)
					owner[a] = (int)i;
		}
		for (unsigned k = 0; k < 8; k++) {
			uint64_t a = (uint64_t)random() % (SPAN - 8), v = 7;
			unsigned len = 1u << random() % 4;
			bool one = true;

			for (unsigned j = 0; j < len; j++)
				one = one && owner[a + j] >= 0 && owner[a + j] == owner[a];
			ck_assert_int_eq(mb_bus_write(bus, MB_MMIO, a, &v, len), one);
			if (one)
				ck_assert_uint_eq(d[owner[a]].last_offset, a - r[owner[a]].base);
		}
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("bus");
	TCase *tc = tcase_create("bus");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_reaches_the_device);
	tcase_add_test(tc, test_nobody_there);
	tcase_add_test(tc, test_refuses_bad_regions);
	tcase_add_test(tc, test_strings);
	tcase_add_test(tc, test_random_against_a_table);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
