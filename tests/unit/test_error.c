// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <errno.h>
#include <mirrorball/error.h>
#include <mirrorball/log.h>
#include <string.h>
#include <unistd.h>

/* What a person reads: one line, whatever the words in it are. */

START_TEST(test_set_and_prefix)
{
	struct mb_error err;
	char longer[1000];

	ck_assert_int_eq(mb_error_set(&err, ENOENT, "disk %s: no such file", "a"), -ENOENT);
	ck_assert_int_eq(mb_error_prefix(&err, -ENOENT, "--disk %s", "a"), -ENOENT);
	ck_assert_str_eq(err.text, "--disk a: disk a: no such file");
	mb_error_set(&err, EMFILE, "vCPU 3: cannot create: Too many open files");
	ck_assert_str_eq(err.text,
		"vCPU 3: cannot create: Too many open files; raise the limit of open files "
		"(ulimit -n)");
	mb_error_set(&err, EMFILE, "event loop: too many open files? (ulimit -n)");
	ck_assert_str_eq(err.text, "event loop: too many open files? (ulimit -n)");
	mb_error_set(&err, ENFILE, "disk a: cannot open");
	ck_assert_str_eq(
		err.text, "disk a: cannot open; raise the host's limit (sysctl fs.file-max)");
	ck_assert_int_eq(mb_error_set(NULL, EIO, "nobody reads this"), -EIO);
	ck_assert_int_eq(mb_error_prefix(NULL, -EIO, "nor this"), -EIO);
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	mb_error_set(&err, EIO, "%s", longer);
	ck_assert_uint_eq(strlen(err.text), sizeof(err.text) - 1);
	mb_error_prefix(&err, -EIO, "%s", longer);
	ck_assert_uint_eq(strlen(err.text), sizeof(err.text) - 1);
}
END_TEST

static const struct {
	const char *text, *printed;
} texts[] = {
	{"", ""},
	{"disk a b.img: no such file", "disk a b.img: no such file"},
	{"a\nb\rc\td", "a?b?c?d"},
	{"\033[31mred\033]0;title\a", "?[31mred?]0;title?"},
	{"\x7f\x01\x1f end", "??? end"},
	/* Letters of other scripts and symbols stay: 2, 3 and 4 bytes. */
	{"Gr\xc3\xbc\xc3\x9f"
	 "e \xe4\xbd\xa0 \xf0\x9f\xaa\xa9 \xc2\xa0.",
		"Gr\xc3\xbc\xc3\x9f"
		"e \xe4\xbd\xa0 \xf0\x9f\xaa\xa9 \xc2\xa0."},
	/* The other CSI, as UTF-8 and as a byte. */
	{"\xc2\x9b"
	 "31m\x9b"
	 "31m",
		"??31m?31m"},
	/* Latin-1, cut off, too long, out of range. */
	{"gr\xfc\xdf"
	 "e",
		"gr??e"},
	{"\xe4\xbd", "??"},
	{"\xf0\x9f\xaa", "???"},
	{"\xc3", "?"},
	{"\xc0\x8a \xe0\x80\x8a \xf0\x80\x80\x8a \xf8\x88\x80\x80\x80", "?? ??? ???? ?????"},
	{"\xff\xfe\xc3\n", "????"},
};
#define N_TEXTS ((int)(sizeof(texts) / sizeof(texts[0])))

START_TEST(test_printable)
{
	char text[100];

	strcpy(text, texts[_i].text);
	mb_error_make_printable(text);
	ck_assert_str_eq(text, texts[_i].printed);
	ck_assert_uint_eq(mb_error_printable_bytes(text), strlen(text));
}
END_TEST

/* What mb_log writes for a text. */
static void logged(const char *text, char *line, size_t len)
{
	int fds[2], old = dup(STDERR_FILENO);
	ssize_t n;

	ck_assert_int_eq(pipe(fds), 0);
	ck_assert_int_eq(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
	mb_log("%s", text);
	ck_assert_int_eq(dup2(old, STDERR_FILENO), STDERR_FILENO);
	close(old);
	close(fds[1]);
	n = read(fds[0], line, len - 1);
	ck_assert_int_gt(n, 0);
	line[n] = '\0';
	close(fds[0]);
}

START_TEST(test_log)
{
	char line[2000], longer[2000];

	logged("disk a\nmirrorball: all is well\033[2J: no such file", line, sizeof(line));
	ck_assert_str_eq(line, "mirrorball: disk a?mirrorball: all is well?[2J: no such file\n");
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	logged(longer, line, sizeof(line));
	ck_assert_uint_le(strlen(line), 1024);
	ck_assert_ptr_eq(strchr(line, '\n'), line + strlen(line) - 1);
	ck_assert_int_eq(strncmp(line, "mirrorball: xxx", 15), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("error");
	TCase *tc = tcase_create("error");

	tcase_add_test(tc, test_set_and_prefix);
	tcase_add_loop_test(tc, test_printable, 0, N_TEXTS);
	tcase_add_test(tc, test_log);
	suite_add_tcase(s, tc);
	return run_suite(s);
}
