// SPDX-License-Identifier: Apache-2.0
/* What /proc tells of a machine's memory, in sums: of texts as Linux writes them and as it does
 * not, and of this process. */
#include "footprint.h"
#include "run.h"
#include <errno.h>
#include <mirrorball/footprint.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE   4096ull
#define MIB    (1ull << 20)
#define NOBODY 65534

/* One mapping of it; numbers in KiB. */
#define MAPPING(range, flags, path, rss, pss, shared, anonymous)                                   \
	range " " flags " 00000000 00:01 1042                       " path "\n"                    \
	      "Size:               9999 kB\nKernelPageSize:        4 kB\nMMUPageSize:           "  \
	      "4 kB\n"                                                                             \
	      "Rss:     " #rss " kB\nPss:     " #pss " kB\nPss_Dirty:   77777 kB\n"                \
	      "Shared_Clean:     0 kB\nShared_Dirty:     " #shared                                 \
	      " kB\nPrivate_Clean:     0 kB\n"                                                     \
	      "Private_Dirty:   5 kB\nReferenced:   5 kB\nAnonymous:   " #anonymous " kB\n"        \
	      "LazyFree:  0 kB\nTHPeligible:           0\nVmFlags: rd wr mr mw me\n"

static FILE *text_file(const char *text)
{
	FILE *f = fmemopen((void *)text, strlen(text), "r");

	ck_assert_ptr_nonnull(f);
	return f;
}

static int parse(const char *smaps, const char *rollup, unsigned n_views, struct mb_footprint *f)
{
	FILE *maps = text_file(smaps), *all = rollup ? text_file(rollup) : NULL;
	int rc = mb_footprint_parse(maps, all, n_views, f);

	fclose(maps);
	if (all)
		fclose(all);
	return rc;
}

static void adds_up(const struct mb_footprint *f)
{
	uint64_t shared = 0, merged = 0;

	for (unsigned i = 0; i < f->n_origins; i++) {
		shared += f->origin[i].pss_bytes;
		merged += f->origin[i].shared_bytes;
	}
	ck_assert_uint_eq(shared, f->shared_pss_bytes);
	ck_assert_uint_eq(merged, f->shared_bytes);
	ck_assert_uint_eq(f->pss_bytes,
		f->private_bytes + f->copies_bytes + f->monitor_bytes + f->shared_pss_bytes);
}

START_TEST(test_kinds)
{
	static const char smaps[] = MAPPING("00400000-00401000", "r-xp", "/usr/bin/mirrorball", 400,
		100, 400, 0) MAPPING("7f0000000000-7f0000400000", "rw-s",
		"/memfd:mirrorball-ram (deleted)", 200, 100, 200,
		0) MAPPING("7f0100000000-7f0100400000", "rw-s", "/mirrorball-ram (deleted)", 200,
		100, 200, 0) MAPPING("7f0200000000-7f0200001000", "rw-p",
		"/memfd:mirrorball-commons-fe01:1a (deleted)", 4, 1, 4,
		0) MAPPING("7f0300000000-7f0300001000", "rw-p",
		"/memfd:mirrorball-commons-fe01:1a (deleted)", 4, 1, 4, 0)
		MAPPING("7f0400000000-7f0400801000", "r--s",
			"/memfd:mirrorball-commons-fe01:1a (deleted)", 8, 2, 8, 0)
			MAPPING("7f0500000000-7f0500002000", "rw-p",
				"/memfd:mirrorball-commons-fe01:1a0 (deleted)", 8, 6, 4, 4)
				MAPPING("7f0510000000-7f0510002000", "rw-p",
					"/memfd:mirrorball-commons-fe01:1a0 (deleted)", 0, 0, 0, 0)
					MAPPING("7f0600000000-7f0600002000", "rw-s",
						"/memfd:mirrorball-copies (deleted)", 8, 8, 0, 0)
		/* Named alike, but not what they are taken for. */
		MAPPING("7f0700000000-7f0700002000", "rw-s", "/memfd:mirrorball-ramp (deleted)", 1,
			1, 0, 0) MAPPING("7f0800000000-7f0800002000", "rw-p",
			"/home/me/mirrorball-ram", 2, 2, 0, 0)
			MAPPING("7f0900000000-7f0900002000", "rw-p", "[heap]", 16, 16, 0, 16)
				MAPPING("7f0a00000000-7f0a00002000", "rw-p", "", 32, 32, 0, 32)
					MAPPING("ffffffffff600000-ffffffffff601000", "--xp",
						"[vsyscall]", 0, 0, 0, 0);
	struct mb_footprint f;

	ck_assert_int_eq(parse(smaps, NULL, 2, &f), 0);
	adds_up(&f);
	ck_assert_uint_eq(f.private_bytes, (100 + 100 + 4) * 1024);
	ck_assert_uint_eq(f.copies_bytes, 8 * 1024);
	ck_assert_uint_eq(f.monitor_bytes, (100 + 1 + 2 + 16 + 32) * 1024);
	ck_assert_uint_eq(f.n_origins, 2);
	ck_assert_str_eq(f.origin[0].tag, "fe01:1a");
	ck_assert_uint_eq(f.origin[0].shared_bytes, PAGE);
	ck_assert_uint_eq(f.origin[0].pss_bytes, 4 * 1024);
	ck_assert_str_eq(f.origin[1].tag, "fe01:1a0");
	ck_assert_uint_eq(f.origin[1].shared_bytes, 2 * PAGE);
	ck_assert_uint_eq(f.origin[1].pss_bytes, 2 * 1024);
}
END_TEST

/* Of single pages that three have Linux tells 1 KiB each, and of all of them 1 1/3. */
START_TEST(test_cut_off)
{
	static const char head[] = "00400000-7fff00000000 ---p 00000000 00:00 0         [rollup]\n";
	char *smaps = NULL, rollup[256];
	struct mb_footprint f;
	size_t len;
	FILE *out = open_memstream(&smaps, &len);

	for (unsigned i = 0; i < 3000; i++)
		fprintf(out,
			"%x-%x rw-p 00000000 00:01 1 /memfd:mirrorball-commons-1:%u (deleted)\n"
			"Rss: 4 kB\nPss: 1 kB\nShared_Dirty: 4 kB\n",
			i * 8192, i * 8192 + 4096, i % 2);
	fputs(MAPPING("7f0000000000-7f0000400000", "rw-s", "/memfd:mirrorball-ram (deleted)", 200,
		      100, 200, 0),
		out);
	fclose(out);
	snprintf(rollup, sizeof(rollup), "%sRss: 1 kB\nPss:   4100 kB\nPss_Anon: 9 kB\n", head);
	ck_assert_int_eq(parse(smaps, rollup, 1, &f), 0);
	adds_up(&f);
	ck_assert_uint_eq(f.pss_bytes, 4100 * 1024);
	ck_assert_uint_eq(f.private_bytes, 100 * 1024);
	ck_assert_uint_eq(f.origin[0].pss_bytes, 2000 * 1024);
	ck_assert_uint_eq(f.origin[1].pss_bytes, 2000 * 1024);
	/* More than can have been cut off: the guest has touched memory meanwhile. Less, too. */
	snprintf(rollup, sizeof(rollup), "%sPss:   9000 kB\n", head);
	ck_assert_int_eq(parse(smaps, rollup, 1, &f), 0);
	adds_up(&f);
	ck_assert_uint_eq(f.pss_bytes, (3100 + 3000) * 1024);
	snprintf(rollup, sizeof(rollup), "%sPss:   7 kB\n", head);
	ck_assert_int_eq(parse(smaps, rollup, 1, &f), 0);
	adds_up(&f);
	ck_assert_uint_eq(f.pss_bytes, 3100 * 1024);
	free(smaps);
}
END_TEST

START_TEST(test_odd)
{
	static const char *const nothing[] = {"\n", "Rss: 4 kB\nPss: 4 kB\n", "no smaps at all",
		"7f00-7f10\n", "7f10-7f00 rw-p 0 00:01 1 /memfd:mirrorball-ram\nPss: 4 kB\n",
		"7f00-7f10 rw-pp 0 00:01 1 x\nPss: 4 kB\n", "abba: 12 kB\n"};
	static const char cut_short[] =
		"Pss: 100 kB\n"
		"1000-2000 rw-s 0 00:01 1   /memfd:mirrorball-ram\nRss:\nPss: x kB\nPss: 4";
	static const char no_commons_tag[] =
		"1000-3000 rw-p 0 00:01 1 /memfd:mirrorball-commons (deleted)\nPss: 4 kB\n"
		"3000-4000 rw-p 0 00:01 1 /memfd:mirrorball-commons\nPss: 4 kB";
	struct mb_footprint f;

	for (unsigned i = 0; i < sizeof(nothing) / sizeof(nothing[0]); i++)
		ck_assert_int_eq(parse(nothing[i], NULL, 1, &f), -EBADMSG);
	/* What stands before all mappings is of none. */
	ck_assert_int_eq(parse(cut_short, "\n", 0, &f), 0);
	adds_up(&f);
	ck_assert_uint_eq(f.pss_bytes, 4 * 1024);
	ck_assert_uint_eq(f.private_bytes, 4 * 1024);
	ck_assert_int_eq(parse(no_commons_tag, "Pss:", 0, &f), 0);
	ck_assert_uint_eq(f.n_origins, 1);
	ck_assert_str_eq(f.origin[0].tag, "");
	ck_assert_uint_eq(f.shared_bytes, 3 * PAGE);
}
END_TEST

/* More origins than there is room for, of names that are too long: nothing is lost of the sums. */
START_TEST(test_many_origins)
{
	char *smaps = NULL;
	struct mb_footprint f;
	size_t len;
	FILE *out = open_memstream(&smaps, &len);

	for (unsigned i = 0; i < 100; i++)
		fprintf(out,
			"%x-%x rw-p 0 00:01 1 /memfd:mirrorball-commons-%u%0200u (deleted)\nPss: 4 "
			"kB\n",
			(i + 1) * 4096, (i + 2) * 4096, i, 7);
	fclose(out);
	ck_assert_int_eq(parse(smaps, NULL, 1, &f), 0);
	adds_up(&f);
	ck_assert_uint_eq(f.n_origins, MB_FOOTPRINT_MAX_ORIGINS);
	ck_assert_uint_eq(f.shared_bytes, 100 * PAGE);
	ck_assert_uint_eq(f.pss_bytes, 400 * 1024);
	ck_assert_str_eq(f.origin[MB_FOOTPRINT_MAX_ORIGINS - 1].tag, "");
	free(smaps);
}
END_TEST

/* An image that is guest memory: what is touched of it counts, once for both views; what else is
 * mapped for reading is the monitor's. */
START_TEST(test_image)
{
	static const char smaps[] =
		"7f0000000000-7f0004000000 r--s 00000000 fd:02 77   /srv/root of it.img\nRss: 6000 "
		"kB\nPss: 2000 kB\nShared_Clean: 6000 kB\n"
		"7f0100000000-7f0100200000 r--s 00000000 fd:02 77   /srv/root of it.img\nRss: 40 "
		"kB\nPss: 20 kB\nShared_Clean: 40 kB\n"
		"7f0200001000-7f0200002000 r--s 00000000 fd:02 78   /usr/lib/cache\nRss: 4 "
		"kB\nPss: "
		"1 kB\nShared_Clean: 4 kB\n"
		"7f0300000000-7f0300200000 r--s 00000000 00:01 9   /memfd:mirrorball-commons-zero "
		"(deleted)\nRss: 8 kB\nPss: 2 kB\nShared_Clean: 8 kB\n"
		"7f0400000000-7f0400200000 rw-s 00000000 00:01 1   /memfd:mirrorball-ram "
		"(deleted)\nRss: 400 kB\nPss: 200 kB\nShared_Dirty: 400 kB\n";
	char path[600], *text;
	struct mb_footprint f;

	ck_assert_int_eq(parse(smaps, NULL, 2, &f), 0);
	adds_up(&f);
	ck_assert_uint_eq(f.n_origins, 2);
	ck_assert_str_eq(f.origin[0].path, "/srv/root of it.img");
	ck_assert_str_eq(f.origin[0].tag, "");
	ck_assert_uint_eq(f.origin[0].inode, 77);
	ck_assert_uint_eq(f.origin[0].shared_bytes, 6040 * 1024);
	ck_assert_uint_eq(f.origin[0].pss_bytes, 2020 * 1024);
	ck_assert_str_eq(f.origin[1].path, "");
	ck_assert_str_eq(f.origin[1].tag, "zero");
	ck_assert_uint_eq(f.monitor_bytes, 1024);
	ck_assert_uint_eq(f.private_bytes, 200 * 1024);
	/* Of a long name the end is told. */
	memset(path, 'd', sizeof(path));
	strcpy(path + sizeof(path) - 10, "/root.img");
	ck_assert_int_ge(asprintf(&text, "200000-400000 r--s 0 fd:02 77 %s\nPss: 4 kB\n", path), 0);
	ck_assert_int_eq(parse(text, NULL, 1, &f), 0);
	ck_assert_uint_eq(strlen(f.origin[0].path), MB_FOOTPRINT_PATH_LEN - 1);
	ck_assert_str_eq(f.origin[0].path + MB_FOOTPRINT_PATH_LEN - 10, "/root.img");
	free(text);
}
END_TEST

/* ---- of this process ---- */

/* 3 MiB of which `name` is a file in memory. */
static char *map_file(const char *name, int flags)
{
	int fd = memfd_create(name, MFD_CLOEXEC);
	char *map;

	ck_assert_int_eq(ftruncate(fd, 3 * MIB), 0);
	/* Written by way of the file: a private mapping has the file's own pages. */
	for (uint64_t at = 0; at < 3 * MIB; at += PAGE)
		ck_assert_int_eq(pwrite(fd, name, 1, (off_t)at), 1);
	map = mmap(NULL, 3 * MIB, PROT_READ | PROT_WRITE, flags, fd, 0);
	ck_assert_ptr_ne(map, MAP_FAILED);
	close(fd);
	for (uint64_t at = 0; at < 3 * MIB; at += PAGE)
		*(volatile char *)(map + at);
	return map;
}

static json_t *answer_of(pid_t pid)
{
	json_t *answer = json_pack("{s:i,s:i}", "pid", (int)pid, "views", 1);

	ck_assert_ptr_nonnull(answer);
	return answer;
}

static uint64_t number(const json_t *answer, const char *key)
{
	const json_t *f = json_object_get(answer, "footprint");

	ck_assert_msg(json_is_integer(json_object_get(f, key)), "%s", key);
	return cli_footprint_number(f, key);
}

START_TEST(test_process)
{
	json_t *commons = json_loads(
		"{\"pid\": 42, \"held_bytes\": 3145728, \"bases\": ["
		"{\"path\": \"/old.img\", \"device\": 65025, \"inode\": 26, \"sharers\": 0},"
		"{\"path\": \"/x/root.img\", \"device\": 65025, \"inode\": 26, \"sharers\": 8},"
		"{\"path\": \"/y.img\", \"device\": 65025, \"inode\": 27, \"sharers\": 9}]}",
		0, NULL);
	char *ram = map_file("mirrorball-ram", MAP_SHARED), text[128];
	char *shared = map_file("mirrorball-commons-42:fe01:1a", MAP_PRIVATE);
	json_t *answer = answer_of(getpid()), *both, *host, *origin;

	ck_assert_ptr_nonnull(commons);
	shared[0] = 1; /* its own now */
	ck_assert_int_eq(cli_footprint_add(answer, commons), 0);
	ck_assert_uint_eq(number(answer, "private_bytes"), 3 * MIB + PAGE);
	ck_assert_uint_eq(number(answer, "shared_bytes"), 3 * MIB);
	ck_assert_uint_eq(number(answer, "shared_proportional_bytes"), 3 * MIB - PAGE);
	ck_assert_uint_eq(number(answer, "copies_bytes"), 0);
	ck_assert_uint_gt(number(answer, "monitor_bytes"), 0);
	ck_assert_uint_eq(number(answer, "saved_bytes"), PAGE);
	origin =
		json_array_get(json_object_get(json_object_get(answer, "footprint"), "origins"), 0);
	ck_assert_str_eq(json_string_value(json_object_get(origin, "path")), "/x/root.img");
	ck_assert_uint_eq(cli_footprint_number(origin, "others"), 7);
	cli_footprint_format_others(origin, text, sizeof(text));
	ck_assert_str_eq(text, "7 others of root.img");

	/* As if there were two of it: what they have in common is there once. */
	both = json_pack("[O,O,{s:{s:s}}]", answer, answer, "footprint", "error", "why");
	host = cli_footprint_host(both, commons);
	ck_assert_uint_eq(cli_footprint_number(host, "machines"), 2);
	ck_assert_uint_eq(cli_footprint_number(host, "shared_bytes"), 6 * MIB);
	ck_assert_uint_eq(cli_footprint_number(host, "commons_bytes"), 6 * MIB - 2 * PAGE);
	ck_assert_uint_eq(cli_footprint_number(host, "saved_bytes"), 2 * PAGE);
	ck_assert_uint_eq(cli_footprint_number(host, "taken_bytes"),
		2 * number(answer, "proportional_bytes"));
	json_decref(host);
	json_decref(both);

	/* A daemon that began later knows nothing of it, and has another number. */
	json_object_set_new(commons, "pid", json_integer(43));
	ck_assert_int_eq(cli_footprint_add(answer, commons), 0);
	origin = json_array_get(
		json_object_get(json_object_get(answer, "footprint"), "origins"), 0);
	ck_assert(json_is_null(json_object_get(origin, "others")));
	json_decref(commons);
	ck_assert_int_eq(cli_footprint_add(answer, NULL), 0);
	origin =
		json_array_get(json_object_get(json_object_get(answer, "footprint"), "origins"), 0);
	ck_assert(json_is_null(json_object_get(origin, "path")) &&
		  json_is_null(json_object_get(origin, "others")));
	cli_footprint_format_others(origin, text, sizeof(text));
	ck_assert_str_eq(text, "others, nobody tells how many, of inode 26");
	json_decref(answer);
	munmap(ram, 3 * MIB);
	munmap(shared, 3 * MIB);
}
END_TEST

static void expect_error(pid_t pid, const char *what)
{
	json_t *answer = answer_of(pid), *f;

	ck_assert_int_eq(cli_footprint_add(answer, NULL), 0);
	f = json_object_get(answer, "footprint");
	ck_assert_msg(strstr(json_string_value(json_object_get(f, "error")), what) != NULL, "%s",
		json_string_value(json_object_get(f, "error")));
	json_decref(answer);
}

START_TEST(test_unreadable)
{
	int ready[2], status;
	char c;
	pid_t child;

	ck_assert_int_eq(pipe(ready), 0);
	child = fork();
	if (!child) {
		/* As a program with capabilities of its file. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_DUMPABLE, 0);
		if (write(ready[1], "", 1) == 1)
			pause();
		_exit(1);
	}
	ck_assert_int_eq(read(ready[0], &c, 1), 1);
	/* Root may; for somebody else it is another user's. */
	if (!getuid())
		ck_assert_int_eq(seteuid(NOBODY), 0);
	expect_error(child, "has capabilities that this one has not");
	if (!getuid())
		ck_assert_int_eq(seteuid(0), 0);
	kill(child, SIGKILL);
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	expect_error(child, "No such process");
	close(ready[0]);
	close(ready[1]);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("footprint");
	TCase *texts = tcase_create("texts"), *process = tcase_create("process");

	tcase_add_test(texts, test_kinds);
	tcase_add_test(texts, test_cut_off);
	tcase_add_test(texts, test_odd);
	tcase_add_test(texts, test_many_origins);
	tcase_add_test(texts, test_image);
	suite_add_tcase(suite, texts);
	tcase_add_test(process, test_process);
	tcase_add_test(process, test_unreadable);
	suite_add_tcase(suite, process);
	return run_suite(suite);
}
