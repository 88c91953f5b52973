// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <mirrorball/heat.h>
#include <mirrorball/snapshot.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The directory of a snapshot: what is written is read, and nothing else. */
#define MEMORY (4u << 20)
#define PAGE   4096u

static char dir[64], path[96];
static uint8_t *ram;
static struct mb_error err;

static const char *const passt_args[] = {"-t", "8080", NULL};

static struct mb_machine_config config = {
	.name = "m",
	.n_vcpus = 3,
	.memory_bytes = MEMORY,
	.n_views = 1,
	.replica_bytes = MB_REPLICAS_AUTO,
	.kernel_path = "/nowhere/vmlinuz",
	.cmdline = "quiet",
	.console = MB_CONSOLE_VIRTIO,
	.disk = {{.path = "/nowhere/a", .readonly = true, .n_queues = 2},
		{.path = "/nowhere/b", .cow = true, .cow_dir = "", .serial = "S", .n_queues = 1}},
	.n_disks = 2,
	.nic = {{.passt = true,
			.tap_fd = -1,
			.passt_args = passt_args,
			.mac = {2, 3, 4, 5, 6, 7},
			.n_pairs = 1},
		{.tap_name = "tap0", .tap_fd = -1, .n_pairs = 4}},
	.n_nics = 2,
	.pmem = {"/nowhere/image"},
	.n_pmems = 1,
};

static void setup(void)
{
	strcpy(dir, "/var/tmp/mb-snapshot-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/snap", dir);
	ram = calloc(1, MEMORY);
	for (unsigned page = 0; page < MEMORY / PAGE; page += 1 + page / 3)
		memset(ram + page * PAGE, (int)page + 1, PAGE - page);
}

static void run(const char *what)
{
	char command[256];

	snprintf(command, sizeof(command), "cd %s && %s", dir, what);
	ck_assert_int_eq(system(command), 0);
}

static void teardown(void)
{
	run("rm -rf snap snap.* other");
	ck_assert_int_eq(rmdir(dir), 0);
	free(ram);
}

static int make(void)
{
	struct mb_snapshot_maker *maker;
	struct mb_state_out out = {0};
	int fd, rc = mb_snapshot_begin(path, &maker, &err);

	if (rc)
		return rc;
	mb_snapshot_put_config(&out, &config);
	mb_state_begin(&out, "rest", 1);
	mb_state_put_u64(&out, 42);
	mb_state_end(&out);
	ck_assert_int_eq(mb_snapshot_put_ram(maker, ram, MEMORY / 2, &err), 0);
	ck_assert_int_eq(mb_snapshot_put_ram(maker, NULL, PAGE, &err), 0);
	ck_assert_int_eq(
		mb_snapshot_put_ram(maker, ram + MEMORY / 2 + PAGE, MEMORY / 2 - PAGE, &err), 0);
	memset(ram + MEMORY / 2, 0, PAGE);
	fd = mb_snapshot_disk(maker, 1, &err);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, "delta", 5), 5);
	rc = mb_snapshot_finish(maker, &out, &err);
	mb_state_out_finish(&out);
	return rc;
}

/* Whoever opens it gets this, or a reason. */
static int open_it(void)
{
	struct mb_snapshot *s;
	int rc = mb_snapshot_open(path, &s, &err);

	if (!rc)
		mb_snapshot_close(s);
	return rc;
}

START_TEST(test_round_trip)
{
	const struct mb_machine_config *c;
	struct mb_snapshot *s;
	struct mb_state_in in, part;
	struct stat st;
	uint8_t *read = malloc(MEMORY);
	char text[5];

	ck_assert_msg(!make(), "%s", err.text);
	ck_assert_msg(!mb_snapshot_open(path, &s, &err), "%s", err.text);
	c = mb_snapshot_config(s);
	ck_assert_str_eq(c->name, "m");
	ck_assert_uint_eq(c->n_vcpus, 3);
	ck_assert_uint_eq(c->memory_bytes, MEMORY);
	ck_assert_str_eq(c->kernel_path, "/nowhere/vmlinuz");
	ck_assert_ptr_null(c->initrd_path);
	ck_assert_ptr_null(c->splash);
	ck_assert_str_eq(c->cmdline, "quiet");
	ck_assert_int_eq(c->console, MB_CONSOLE_VIRTIO);
	ck_assert_uint_eq(c->n_disks, 2);
	ck_assert(c->disk[0].readonly && !c->disk[0].cow && c->disk[1].cow);
	ck_assert_str_eq(c->disk[1].cow_dir, "");
	ck_assert_str_eq(c->disk[1].serial, "S");
	ck_assert_ptr_null(c->disk[0].cow_dir);
	ck_assert_uint_eq(c->n_nics, 2);
	ck_assert_str_eq(c->nic[0].passt_args[1], "8080");
	ck_assert_ptr_null(c->nic[0].passt_args[2]);
	ck_assert_int_eq(memcmp(c->nic[0].mac, config.nic[0].mac, 6), 0);
	ck_assert_str_eq(c->nic[1].tap_name, "tap0");
	ck_assert_uint_eq(c->n_pmems, 1);
	ck_assert_str_eq(c->pmem[0], "/nowhere/image");
	/* Its memory is a private mapping. */
	ck_assert_uint_eq(c->n_views, 1);
	ck_assert_int_eq(c->track, MB_TRACK_OFF);
	ck_assert_int_eq(c->migrate, MB_MIGRATE_OFF);
	ck_assert(c->no_share && !c->replica_bytes && c->snapshot == s);

	ck_assert_int_eq(pread(mb_snapshot_ram_fd(s), read, MEMORY, 0), MEMORY);
	ck_assert_int_eq(memcmp(read, ram, MEMORY), 0);
	ck_assert_int_eq(mb_snapshot_check_ram(s, &err), 0);
	ck_assert_int_eq(fstat(mb_snapshot_ram_fd(s), &st), 0);
	ck_assert_uint_lt((uint64_t)st.st_blocks * 512, MEMORY / 2);
	ck_assert_int_eq(st.st_mode & 0777, 0400);
	ck_assert_int_eq(mb_snapshot_disk_fd(s, 0), -1);
	ck_assert_int_eq(pread(mb_snapshot_disk_fd(s, 1), text, 5, 0), 5);
	ck_assert_int_eq(memcmp(text, "delta", 5), 0);
	in = mb_snapshot_state(s);
	ck_assert_int_eq(mb_state_enter(&in, "rest", 1, &part, &err), 0);
	ck_assert_uint_eq(mb_state_get_u64(&part), 42);
	ck_assert_uint_eq(in.left, 0);
	mb_snapshot_close(s);
	free(read);
	/* A copy is as good, a second one of that name there is not. */
	ck_assert_int_eq(make(), -EEXIST);
	run("cp -a snap other && rm -rf snap && mv other snap");
	ck_assert_int_eq(open_it(), 0);
	run("test $(ls | wc -l) = 1");
}
END_TEST

/* Every byte of `state`, and every length. */
START_TEST(test_state_damaged)
{
	char name[128];
	uint8_t *good;
	struct stat st;
	int fd;

	ck_assert_int_eq(make(), 0);
	snprintf(name, sizeof(name), "%s/state", path);
	ck_assert_int_eq(chmod(name, 0600), 0);
	fd = open(name, O_RDWR);
	ck_assert_int_eq(fstat(fd, &st), 0);
	good = malloc((size_t)st.st_size);
	ck_assert_int_eq(pread(fd, good, (size_t)st.st_size, 0), st.st_size);
	for (off_t at = 0; at < st.st_size; at++) {
		for (unsigned bit = 0; bit < 8; bit += 7) {
			uint8_t bad = good[at] ^ (uint8_t)(1u << bit);

			ck_assert_int_eq(pwrite(fd, &bad, 1, at), 1);
			ck_assert_msg(open_it() == -EINVAL, "byte %d", (int)at);
		}
		ck_assert_int_eq(pwrite(fd, good + at, 1, at), 1);
	}
	ck_assert_int_eq(open_it(), 0);
	ck_assert_int_eq(pwrite(fd, "x", 1, st.st_size), 1);
	ck_assert_int_eq(open_it(), -EINVAL);
	for (off_t len = st.st_size; len-- > 0;) {
		ck_assert_int_eq(ftruncate(fd, len), 0);
		ck_assert_int_eq(open_it(), -EINVAL);
		ck_assert_ptr_nonnull(strstr(err.text, "cut off"));
	}
	close(fd);
	free(good);
}
END_TEST

/* The same with a checksum that fits: what it says is judged. */
START_TEST(test_state_hostile)
{
	char name[128];
	uint8_t *good, *bad;
	struct stat st;
	uint32_t crc;
	int fd;

	ck_assert_int_eq(make(), 0);
	snprintf(name, sizeof(name), "%s/state", path);
	ck_assert_int_eq(chmod(name, 0600), 0);
	fd = open(name, O_RDWR);
	ck_assert_int_eq(fstat(fd, &st), 0);
	good = malloc((size_t)st.st_size);
	bad = malloc((size_t)st.st_size);
	ck_assert_int_eq(pread(fd, good, (size_t)st.st_size, 0), st.st_size);
	memset(good + 12, 0, 4);
	for (off_t at = MB_SNAPSHOT_HEADER; at < st.st_size; at++) {
		static const uint8_t change[] = {1, 2, 0x80, 0xff};

		for (unsigned i = 0; i < sizeof(change); i++) {
			memcpy(bad, good, (size_t)st.st_size);
			bad[at] ^= change[i];
			crc = mb_crc32c(0, bad, (size_t)st.st_size);
			memcpy(bad + 12, &crc, 4);
			ck_assert_int_eq(pwrite(fd, bad, (size_t)st.st_size, 0), st.st_size);
			open_it();
		}
	}
	close(fd);
	free(good);
	free(bad);
}
END_TEST

static void refused(const char *what, const char *says)
{
	ck_assert_int_eq(make(), 0);
	run(what);
	ck_assert_int_lt(open_it(), 0);
	ck_assert_msg(strstr(err.text, says) != NULL, "after %s: %s", what, err.text);
	run("rm -rf snap");
}

START_TEST(test_files)
{
	refused("rm snap/state", "file state: No such file");
	refused("rm snap/ram", "file ram: No such file");
	refused("rm snap/disk-1", "file disk-1: No such file");
	refused("truncate -s -4096 snap/ram", "file ram: has 4190208 bytes instead of 4194304");
	refused("truncate -s +1 snap/disk-1", "file disk-1: has 6 bytes instead of 5");
	refused("touch snap/ram", "file ram: was changed since");
	refused("rm snap/ram && mkfifo snap/ram", "file ram: Invalid argument");
	refused("cp -a snap/ram other && rm snap/ram && ln -s ../other snap/ram",
		"file ram: Too many levels");
	refused("rm -f other && chmod u+w snap/state && head -c 9000 /dev/urandom >snap/state",
		"file state: is not one of a snapshot");
	refused("chmod u+w snap/state && printf '\\002' | dd of=snap/state bs=1 seek=8 "
		"conv=notrunc status=none",
		"has version 2, and this Mirrorball reads 1");
	strcpy(path, "/nowhere/snap");
	ck_assert_int_eq(open_it(), -ENOENT);
	ck_assert_int_eq(make(), -ENOENT);
	strcpy(path, "snap");
	ck_assert_int_eq(make(), -EINVAL);
}
END_TEST

START_TEST(test_ram_damaged)
{
	struct mb_snapshot *s;

	ck_assert_int_eq(make(), 0);
	run("touch -r snap/ram other && chmod u+w snap/ram && "
	    "printf x | dd of=snap/ram bs=1 seek=12345 conv=notrunc status=none && touch -r other "
	    "snap/ram");
	ck_assert_msg(!mb_snapshot_open(path, &s, &err), "%s", err.text);
	ck_assert_int_eq(mb_snapshot_check_ram(s, &err), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.text, "file ram: is damaged"));
	mb_snapshot_close(s);
}
END_TEST

/* Given up or failed: as if it had not been begun. */
START_TEST(test_given_up)
{
	struct mb_snapshot_maker *maker;
	struct mb_state_out bad = {.rc = -ENOMEM};

	for (unsigned i = 0; i < 2; i++) {
		ck_assert_int_eq(mb_snapshot_begin(path, &maker, &err), 0);
		ck_assert_int_eq(mb_snapshot_put_ram(maker, ram, MEMORY, &err), 0);
		ck_assert_int_ge(mb_snapshot_disk(maker, 0, &err), 0);
		ck_assert_int_eq(mb_snapshot_finish(maker, i ? &bad : NULL, &err), i ? -ENOMEM : 0);
		run("test $(ls | wc -l) = 0");
	}
}
END_TEST

/* What several views are for is as it was asked for. A file does not put a machine into a group. */
START_TEST(test_views)
{
	const struct mb_machine_config *c;
	const struct mb_machine_config one = config;
	struct mb_snapshot *s;

	config.n_views = 2;
	config.migrate = MB_MIGRATE_OFF;
	config.trust_group = "all";
	ck_assert_int_eq(make(), 0);
	ck_assert_msg(!mb_snapshot_open(path, &s, &err), "%s", err.text);
	c = mb_snapshot_config(s);
	ck_assert_uint_eq(c->n_views, 2);
	ck_assert_int_eq(c->track, MB_TRACK_AUTO);
	ck_assert_int_eq(c->migrate, MB_MIGRATE_OFF);
	ck_assert(c->replica_bytes == MB_REPLICAS_AUTO && !c->no_share && !c->trust_group);
	mb_snapshot_close(s);
	config = one;
}
END_TEST

/* By another one than who makes it, who gets an error then; not when it has its name. */
START_TEST(test_removed)
{
	struct mb_snapshot_maker *maker;
	struct mb_state_out out = {0};
	char temporary[128];

	ck_assert_int_eq(mb_snapshot_begin(path, &maker, &err), 0);
	snprintf(temporary, sizeof(temporary), "%s", mb_snapshot_temporary(maker));
	mb_snapshot_put_config(&out, &config);
	ck_assert_int_eq(mb_snapshot_put_ram(maker, ram, MEMORY, &err), 0);
	ck_assert_int_ge(mb_snapshot_disk(maker, 0, &err), 0);
	mb_snapshot_remove_temporary(temporary);
	run("test $(ls | wc -l) = 0");
	ck_assert_int_eq(mb_snapshot_finish(maker, &out, &err), -ENOENT);
	run("test $(ls | wc -l) = 0");
	mb_state_out_finish(&out);
	ck_assert_int_eq(make(), 0);
	mb_snapshot_remove_temporary(temporary);
	ck_assert_int_eq(open_it(), 0);
}
END_TEST

/* What may not be in one. */
START_TEST(test_config_refused)
{
	struct mb_machine_config good = config;
	struct mb_machine_config bad[] = {config, config, config, config, config, config, config,
		config, config, config, config, config};

	bad[0].n_vcpus = 0;
	bad[1].memory_bytes = MEMORY + 4096;
	bad[2].disk[0].readonly = false; /* would be written */
	bad[3].splash = "hello";	 /* and a kernel */
	bad[4].disk[1].path = "nbd://host/export";
	bad[5].nic[1].tap_name = NULL;
	bad[6].name = "a/b";
	bad[7].n_views = 0;
	bad[8].n_views = MB_HEAT_VIEWS + 1;
	bad[9].n_views = 2;
	bad[9].migrate = MB_MIGRATE_STORM; /* and nobody who looks */
	bad[10].n_views = 2;
	bad[10].replica_bytes = MEMORY;
	bad[11].pmem[0] = NULL;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		config = bad[i];
		ck_assert_int_eq(make(), 0);
		ck_assert_msg(open_it() == -EINVAL, "%u", i);
		run("rm -rf snap");
	}
	config = good;
}
END_TEST

/* What passt does for a snapshot's sake is not to write files. */
START_TEST(test_passt)
{
	static const char *const good[][4] = {{NULL}, {"-t", "8080,22:2222", NULL},
		{"-t8080", "--udp-ports=53", NULL}, {"--tcp-ports", "all", "-4", NULL},
		{"-D", "", "--no-map-gw", NULL}, {"--dns=1.1.1.1", "--ipv6-only", "--no-dhcp", NULL}};
	static const char *const bad[][4] = {{"-p", "/x", NULL}, {"--pcap", "/x", NULL},
		{"--pcap=/x", NULL}, {"--pc=/x", NULL}, {"-p/x", NULL}, {"-P", "/x", NULL},
		{"-l", "/x", NULL}, {"--log-file=/x", NULL}, {"-4P", "/x", NULL}, {"-4P/x", NULL},
		{"-t", "--pcap=/x", NULL}, {"-t", "80", "x", NULL}, {"x", NULL}, {"", NULL},
		{"--", NULL}, {"-", NULL}, {"--tcp", "80", NULL}, {"--tcp-portsx", NULL},
		{"--ipv4-only=x", NULL}, {"--no-tcp=x", NULL}, {"--runas=0", NULL},
		{"-s", "/x", NULL}};
	struct mb_machine_config before = config;

	ck_assert_int_eq(mb_snapshot_check_passt(NULL, &err), 0);
	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		ck_assert_msg(!mb_snapshot_check_passt(good[i], &err), "%u: %s", i, err.text);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ck_assert_msg(mb_snapshot_check_passt(bad[i], &err) == -ENOTSUP, "%u", i);
		config.nic[0].passt_args = bad[i];
		ck_assert_int_eq(make(), 0);
		ck_assert_msg(open_it() == -ENOTSUP, "%u", i);
		ck_assert_ptr_nonnull(strstr(err.text, "for passt"));
		run("rm -rf snap");
	}
	config = before;
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("snapshot");
	TCase *tcase = tcase_create("snapshot");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_set_timeout(tcase, 60);
	tcase_add_test(tcase, test_round_trip);
	tcase_add_test(tcase, test_state_damaged);
	tcase_add_test(tcase, test_state_hostile);
	tcase_add_test(tcase, test_files);
	tcase_add_test(tcase, test_ram_damaged);
	tcase_add_test(tcase, test_given_up);
	tcase_add_test(tcase, test_views);
	tcase_add_test(tcase, test_config_refused);
	tcase_add_test(tcase, test_removed);
	tcase_add_test(tcase, test_passt);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
