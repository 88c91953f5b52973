// SPDX-License-Identifier: Apache-2.0
#include "parse.h"
#include "run.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct mb_error err;

static uint64_t size_of(const char *text)
{
	uint64_t bytes = 0;
	int rc = cli_parse_size(text, &bytes, &err);

	ck_assert_msg(!rc, "%s: %s", text, err.text);
	return bytes;
}

START_TEST(sizes)
{
	ck_assert_uint_eq(size_of("0"), 0);
	ck_assert_uint_eq(size_of("4096"), 4096);
	ck_assert_uint_eq(size_of("1K"), 1024);
	ck_assert_uint_eq(size_of("512M"), 512ull << 20);
	ck_assert_uint_eq(size_of("512m"), 512ull << 20);
	ck_assert_uint_eq(size_of("16G"), 16ull << 30);
	ck_assert_uint_eq(size_of("16GiB"), 16ull << 30);
	ck_assert_uint_eq(size_of("2T"), 2ull << 40);
	ck_assert_uint_eq(size_of("0512M"), 512ull << 20);
	ck_assert_uint_eq(size_of("18446744073709551615"), UINT64_MAX);
	ck_assert_uint_eq(size_of("16777215T"), 16777215ull << 40);
}
END_TEST

START_TEST(bad_sizes)
{
	static const struct {
		const char *text, *says;
		int rc;
	} bad[] = {
		{"", "not a number", -EINVAL},
		{"M", "not a number", -EINVAL},
		{" 1M", "not a number", -EINVAL},
		{"+1M", "not a number", -EINVAL},
		{"0x10", "'x10' is not a unit", -EINVAL},
		{"-1M", "negative", -EINVAL},
		{"1.5G", "not a whole number", -EINVAL},
		{"1Q", "'Q' is not a unit", -EINVAL},
		{"1MB", "'MB' is not a unit", -EINVAL},
		{"1M ", "is not a unit", -EINVAL},
		{"1 M", "is not a unit", -EINVAL},
		{"1iB", "is not a unit", -EINVAL},
		{"18446744073709551616", "too large", -ERANGE},
		{"16777216T", "too large", -ERANGE},
		{"99999999999999999999999999G", "too large", -ERANGE},
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint64_t bytes = 42;
		int rc = cli_parse_size(bad[i].text, &bytes, &err);

		ck_assert_msg(rc == bad[i].rc, "'%s': %d", bad[i].text, rc);
		ck_assert_msg(strstr(err.text, bad[i].says), "'%s': %s", bad[i].text, err.text);
		ck_assert_uint_eq(bytes, 42);
	}
}
END_TEST

/* What is printed is read as the same number. */
START_TEST(sizes_round_trip)
{
	unsigned seed = (unsigned)time(NULL);

	printf("seed %u\n", seed);
	srandom(seed);
	for (unsigned i = 0; i < 100000; i++) {
		uint64_t bytes = ((uint64_t)random() << 33 ^ (uint64_t)random() << 11 ^
					 (uint64_t)random()) >>
				 (random() % 64) << (random() % 48);
		char text[32];

		cli_format_size(bytes, text, sizeof(text));
		ck_assert_uint_eq(size_of(text), bytes);
	}
}
END_TEST

START_TEST(numbers)
{
	unsigned value = 0;

	ck_assert_int_eq(cli_parse_unsigned("1", 1, 1024, &value, &err), 0);
	ck_assert_uint_eq(value, 1);
	ck_assert_int_eq(cli_parse_unsigned("1024", 1, 1024, &value, &err), 0);
	ck_assert_uint_eq(value, 1024);
	ck_assert_int_eq(cli_parse_unsigned("0", 1, 1024, &value, &err), -ERANGE);
	ck_assert_int_eq(cli_parse_unsigned("1025", 1, 1024, &value, &err), -ERANGE);
	ck_assert_int_eq(cli_parse_unsigned("4294967297", 1, 1024, &value, &err), -ERANGE);
	ck_assert_int_eq(
		cli_parse_unsigned("18446744073709551617", 1, 1024, &value, &err), -ERANGE);
	ck_assert_int_eq(cli_parse_unsigned("", 0, 9, &value, &err), -EINVAL);
	ck_assert_int_eq(cli_parse_unsigned("1x", 0, 9, &value, &err), -EINVAL);
	ck_assert_int_eq(cli_parse_unsigned("-1", 0, 9, &value, &err), -EINVAL);
	ck_assert_int_eq(cli_parse_unsigned(" 1", 0, 9, &value, &err), -EINVAL);
	ck_assert_uint_eq(value, 1024);
}
END_TEST

START_TEST(seconds)
{
	static const struct {
		const char *text;
		int rc;
		unsigned ms;
	} cases[] = {{"1", 0, 1000}, {"0.25", 0, 250}, {"0.1", 0, 100}, {"1.005", 0, 1005},
		{"86400", 0, 86400000}, {"007.50", 0, 7500}, {"0", -ERANGE, 0},
		{"0.099", -ERANGE, 0}, {"86400.001", -ERANGE, 0},
		{"99999999999999999999", -ERANGE, 0}, {"", -EINVAL, 0}, {".5", -EINVAL, 0},
		{"1.", -EINVAL, 0}, {"1.2345", -EINVAL, 0}, {"1,5", -EINVAL, 0}, {"-1", -EINVAL, 0},
		{"1s", -EINVAL, 0}, {"1e3", -EINVAL, 0}, {" 1", -EINVAL, 0}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		unsigned ms = 0;
		int rc = cli_parse_seconds(cases[i].text, 100, 86400000, &ms, &err);

		ck_assert_msg(rc == cases[i].rc, "'%s': %d", cases[i].text, rc);
		ck_assert_uint_eq(ms, cases[i].ms);
	}
}
END_TEST

START_TEST(mac_addresses)
{
	static const char *const bad[] = {"", "52", "52:54:00:12:34", "52:54:00:12:34:56:78",
		"52:54:00:12:34:5g", "52-54-00-12-34-56", "5:54:00:12:34:56", "01:00:00:00:00:00",
		"ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", " 52:54:00:12:34:56"};
	static const uint8_t want[6] = {0x52, 0x54, 0, 0x12, 0x34, 0xfe};
	uint8_t mac[6];

	ck_assert_int_eq(cli_parse_mac("52:54:00:12:34:fE", mac, &err), 0);
	ck_assert_mem_eq(mac, want, 6);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(cli_parse_mac(bad[i], mac, &err) == -EINVAL, "%s", bad[i]);
	ck_assert_mem_eq(mac, want, 6);
}
END_TEST

START_TEST(names)
{
	static const char *const bad[] = {"", ".", "..", "-x", "a/b", "a b", "a\n", "\xc3\xa9",
		"1234567890123456789012345678901234567890123456789012345678901234"};

	ck_assert_int_eq(cli_parse_name("web1", &err), 0);
	ck_assert_int_eq(cli_parse_name("A.b_c-9", &err), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(cli_parse_name(bad[i], &err) == -EINVAL, "%s", bad[i]);
}
END_TEST

static int disk(const char *text, char *copy, struct mb_disk_config *config)
{
	strcpy(copy, text);
	return cli_parse_disk(copy, config, &err);
}

START_TEST(disks)
{
	struct mb_disk_config d;
	char copy[128];

	ck_assert_int_eq(disk("a.img", copy, &d), 0);
	ck_assert_str_eq(d.path, "a.img");
	ck_assert(!d.readonly && !d.buffered && !d.serial && !d.n_queues);
	ck_assert_int_eq(disk("/x,,y,,,ro,direct=off,serial=S=1,queues=64", copy, &d), 0);
	ck_assert_str_eq(d.path, "/x,y,");
	ck_assert(d.readonly && d.buffered);
	ck_assert_str_eq(d.serial, "S=1");
	ck_assert_uint_eq(d.n_queues, 64);
	ck_assert_int_eq(disk("ro", copy, &d), 0);
	ck_assert_str_eq(d.path, "ro");
	ck_assert(!d.readonly);
	ck_assert_int_eq(disk("a,direct=on", copy, &d), 0);
	ck_assert(!d.buffered);
	ck_assert_int_eq(disk("a,serial=12345678901234567890", copy, &d), 0);
	ck_assert(!d.cow && !d.overlay);
	/* Their base is read through the page cache. */
	ck_assert_int_eq(disk("a,cow", copy, &d), 0);
	ck_assert(d.cow && !d.cow_dir && d.buffered && !d.readonly);
	ck_assert_int_eq(disk("a,cow=/scratch", copy, &d), 0);
	ck_assert_str_eq(d.cow_dir, "/scratch");
	ck_assert_int_eq(disk("a,cow=memory,direct=off", copy, &d), 0);
	ck_assert_str_eq(d.cow_dir, "");
	ck_assert_int_eq(disk("a,queues=2,overlay=b=c", copy, &d), 0);
	ck_assert_str_eq(d.overlay, "b=c");
	ck_assert(!d.cow && d.buffered);
	/* A URI ends at the first comma, as any path. */
	ck_assert_int_eq(disk("nbd+unix:///e?socket=/tmp/s,ro,queues=2", copy, &d), 0);
	ck_assert_str_eq(d.path, "nbd+unix:///e?socket=/tmp/s");
	ck_assert(d.readonly && d.buffered);
	ck_assert_uint_eq(d.n_queues, 2);
	ck_assert_int_eq(disk("nbd://h:1/a,,b?x=y&z,cow=memory", copy, &d), 0);
	ck_assert_str_eq(d.path, "nbd://h:1/a,b?x=y&z");
	ck_assert_str_eq(d.cow_dir, "");
}
END_TEST

START_TEST(bad_disks)
{
	static const char *const bad[] = {"", ",", "a,", "a,,", ",ro", "a,ro,", "a,ro,ro", "a,rw",
		"a,direct", "a,direct=", "a,direct=yes", "a,direct=on,direct=on",
		"a,serial=", "a,serial=123456789012345678901", "a,serial=a b",
		"a,serial=x,serial=y", "a,queues=0", "a,queues=65", "a,queues=2,queues=2",
		"a,queues=-1", "a,cache=none", "a,cow,cow",
		"a,cow=", "a,overlay=", "a,overlay=b,overlay=c", "a,ro,cow", "a,cow,overlay=b",
		"a,ro,overlay=b", "a,cow,direct=on", "a,direct=on,overlay=b", "a,overlay=a",
		"nbd://h,direct=off", "nbd://h,direct=on", "nbd://h,overlay=o"};
	struct mb_disk_config d;
	char copy[128];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int rc = disk(bad[i], copy, &d);

		/* Two commas at the end are a comma of the path. */
		if (!strcmp(bad[i], "a,,")) {
			ck_assert_int_eq(rc, 0);
			ck_assert_str_eq(d.path, "a,");
			continue;
		}
		ck_assert_msg(rc < 0 && *err.text, "%s", bad[i]);
	}
}
END_TEST

static int net(const char *text, char *copy, const char **args, struct mb_nic_config *config)
{
	strcpy(copy, text);
	return cli_parse_net(copy, args, config, &err);
}

START_TEST(nets)
{
	static const uint8_t mac[6] = {0x52, 0x54, 0, 0, 0, 1}, zero[6];
	const char *args[CLI_MAX_FIELDS + 1];
	struct mb_nic_config n;
	char copy[256];

	ck_assert_int_eq(net("tap=tap0", copy, args, &n), 0);
	ck_assert_str_eq(n.tap_name, "tap0");
	ck_assert(!n.passt && n.tap_fd == -1 && !n.n_pairs && !n.passt_args);
	ck_assert_mem_eq(n.mac, zero, 6);
	ck_assert_int_eq(net("tap=tap0,queues=4,mac=52:54:00:00:00:01", copy, args, &n), 0);
	ck_assert_uint_eq(n.n_pairs, 4);
	ck_assert_mem_eq(n.mac, mac, 6);
	ck_assert_int_eq(net("tap-fd=7", copy, args, &n), 0);
	ck_assert_int_eq(n.tap_fd, 7);
	ck_assert(!n.tap_name && !n.passt);
	ck_assert_int_eq(net("passt", copy, args, &n), 0);
	ck_assert(n.passt && n.tap_fd == -1 && !n.passt_args);
	ck_assert_int_eq(net("passt,arg=-t,arg=22,,80,mac=52:54:00:00:00:01", copy, args, &n), 0);
	ck_assert_ptr_eq(n.passt_args, args);
	ck_assert_str_eq(args[0], "-t");
	ck_assert_str_eq(args[1], "22,80");
	ck_assert_ptr_null(args[2]);
}
END_TEST

START_TEST(bad_nets)
{
	static const char *const bad[] = {"", "tap", "tap=", "tap=a/b", "tap=a b", "tap=tap%d",
		"tap=interfacenamexxx", "tap-fd=", "tap-fd=0", "tap-fd=2", "tap-fd=-1", "tap-fd=x",
		"passt=1", "user", "passt,queues=2", "tap-fd=3,queues=2", "tap=t,queues=0",
		"tap=t,queues=65", "tap=t,arg=x",
		"tap=t,mac=", "tap=t,mac=52:54:00:00:00:01,mac=52:54:00:00:00:01",
		"tap=t,vhost=on"};
	const char *args[CLI_MAX_FIELDS + 1];
	struct mb_nic_config n;
	char copy[256];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(net(bad[i], copy, args, &n) < 0 && *err.text, "%s", bad[i]);
}
END_TEST

START_TEST(tracks)
{
	static const struct {
		const char *text;
		int rc;
		enum mb_track track;
		uint32_t guest_ppm, cpu_ppm;
	} cases[] = {{"auto", 0, MB_TRACK_AUTO, 0, 0}, {"on", 0, MB_TRACK_ON, 0, 0},
		{"off", 0, MB_TRACK_OFF, 0, 0}, {"on,budget=0.1", 0, MB_TRACK_ON, 1000, 2000},
		{"auto,budget=50", 0, MB_TRACK_AUTO, 500000, 1000000},
		{"on,budget=1.25", 0, MB_TRACK_ON, 12500, 25000}, {"", -EINVAL, 0, 0, 0},
		{"On", -EINVAL, 0, 0, 0}, {"on,", -EINVAL, 0, 0, 0},
		{"on,budget=", -EINVAL, 0, 0, 0}, {"on,budget=nan", -EINVAL, 0, 0, 0},
		{"on,budget=inf", -EINVAL, 0, 0, 0}, {"on,budget=0x1", -EINVAL, 0, 0, 0},
		{"on,budget=-1", -EINVAL, 0, 0, 0}, {"on,budget=1%", -EINVAL, 0, 0, 0},
		{"on,budget=0.09", -ERANGE, 0, 0, 0}, {"on,budget=50.1", -ERANGE, 0, 0, 0},
		{"on,budget=1,budget=1", -EINVAL, 0, 0, 0}, {"off,budget=1", -EINVAL, 0, 0, 0},
		{"on,off", -EINVAL, 0, 0, 0}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct mb_machine_config config = {0};
		char copy[64];
		int rc;

		strcpy(copy, cases[i].text);
		rc = cli_parse_track(copy, &config, &err);
		ck_assert_msg(rc == cases[i].rc, "'%s': %d", cases[i].text, rc);
		if (rc)
			continue;
		ck_assert_int_eq(config.track, cases[i].track);
		ck_assert_uint_eq(config.track_guest_ppm, cases[i].guest_ppm);
		ck_assert_uint_eq(config.track_cpu_ppm, cases[i].cpu_ppm);
	}
}
END_TEST

START_TEST(many_fields)
{
	char text[4 * CLI_MAX_FIELDS + 8] = "a", *field[CLI_MAX_FIELDS];
	unsigned n;

	for (unsigned i = 1; i < CLI_MAX_FIELDS; i++)
		strcat(text, ",b");
	ck_assert_int_eq(cli_split_fields(text, field, &n, &err), 0);
	ck_assert_uint_eq(n, CLI_MAX_FIELDS);
	strcpy(text, "a");
	for (unsigned i = 0; i < CLI_MAX_FIELDS; i++)
		strcat(text, ",b");
	ck_assert_int_lt(cli_split_fields(text, field, &n, &err), 0);
}
END_TEST

START_TEST(nearest)
{
	static const char *const words[] = {
		"kernel", "cpus", "memory", "memory-overcommit", "disk", "net", NULL};
	static const struct {
		const char *word, *want;
	} cases[] = {{"kernal", "kernel"}, {"kernle", "kernel"}, {"cpu", "cpus"}, {"cpsu", "cpus"},
		{"memroy", "memory"}, {"mem", "memory"}, {"disc", "disk"}, {"nets", "net"},
		{"memory-overcomit", "memory-overcommit"}, {"", NULL}, {"zzz", NULL}, {"x", NULL},
		{"frobnicate-the-whole-machine-and-then-some-more-of-it-until-it-is-long", NULL}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const char *got = cli_nearest(cases[i].word, words);

		if (cases[i].want)
			ck_assert_pstr_eq(got, cases[i].want);
		else
			ck_assert_msg(!got, "%s: %s", cases[i].word, got);
	}
}
END_TEST

/* Any bytes: no crash, no write beyond the text (ASan sees both), and an error has a text. */
START_TEST(random_text)
{
	static const char letters[] =
		",,,,==::roserialqueuesdirectonofftapfdpasstmacarg0123456789abcdef -\xff";
	unsigned seed = (unsigned)time(NULL);

	printf("seed %u\n", seed);
	srandom(seed);
	for (unsigned i = 0; i < 200000; i++) {
		const char *args[CLI_MAX_FIELDS + 1];
		size_t len = (size_t)random() % 40;
		struct mb_disk_config d;
		struct mb_nic_config n;
		uint64_t bytes;
		char *text = malloc(len + 1), *copy;

		ck_assert_ptr_nonnull(text);
		for (size_t j = 0; j < len; j++)
			text[j] = letters[(size_t)random() % (sizeof(letters) - 1)];
		text[len] = '\0';
		if (!strncmp(text, "ro", 2) && len > 8)
			memcpy(text, "tap=t,", 6);
		copy = strdup(text);
		ck_assert_ptr_nonnull(copy);
		err.text[0] = '\0';
		ck_assert(!cli_parse_disk(copy, &d, &err) || *err.text);
		strcpy(copy, text);
		err.text[0] = '\0';
		ck_assert(!cli_parse_net(copy, args, &n, &err) || *err.text);
		err.text[0] = '\0';
		ck_assert(!cli_parse_size(text, &bytes, &err) || *err.text);
		free(copy);
		free(text);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("parse");
	TCase *tc = tcase_create("parse");

	tcase_add_test(tc, sizes);
	tcase_add_test(tc, bad_sizes);
	tcase_add_test(tc, sizes_round_trip);
	tcase_add_test(tc, numbers);
	tcase_add_test(tc, seconds);
	tcase_add_test(tc, mac_addresses);
	tcase_add_test(tc, names);
	tcase_add_test(tc, disks);
	tcase_add_test(tc, bad_disks);
	tcase_add_test(tc, nets);
	tcase_add_test(tc, bad_nets);
	tcase_add_test(tc, tracks);
	tcase_add_test(tc, many_fields);
	tcase_add_test(tc, nearest);
	tcase_add_test(tc, random_text);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
