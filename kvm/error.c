// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/error.h>
#include <stdio.h>
#include <string.h>

/*
 * Any step may meet these limits, and what helps is the same for all. Not inlined: gcc 12 with
 * UBSan would then warn of a null format in the caller.
 */
static __attribute__((noinline)) void add_remedy(struct mb_error *err, int errnum)
{
	static const char own[] = "; raise the limit of open files (ulimit -n)";
	static const char host[] = "; raise the host's limit (sysctl fs.file-max)";
	size_t room = sizeof(err->text) - strlen(err->text) - 1;

	if (errnum == EMFILE && !strstr(err->text, "ulimit -n"))
		strncat(err->text, own, room);
	else if (errnum == ENFILE)
		strncat(err->text, host, room);
}

int mb_error_set(struct mb_error *err, int errnum, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return -errnum;
	va_start(ap, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	add_remedy(err, errnum);
	return -errnum;
}

int mb_error_prefix(struct mb_error *err, int rc, const char *fmt, ...)
{
	if (err) {
		char old[sizeof(err->text)];
		va_list ap;
		size_t n;

		memcpy(old, err->text, sizeof(old));
		va_start(ap, fmt);
		vsnprintf(err->text, sizeof(err->text), fmt, ap);
		va_end(ap);
		n = strlen(err->text);
		snprintf(err->text + n, sizeof(err->text) - n, ": %s", old);
	}
	return rc;
}

/* Bytes of the printable character that text starts with; 0 if there is none. */
static size_t character_bytes(const unsigned char *text)
{
	unsigned char first = text[0], least = 0x80;
	size_t n;

	if (first < 0x80)
		return first >= ' ' && first != 0x7f;
	/* UTF-8 (RFC 3629): no longer than need be, and not U+0080 to U+009F, which control, too.
	 */
	if (first >= 0xc2 && first <= 0xdf)
		n = 2;
	else if ((first & 0xf0) == 0xe0)
		n = 3;
	else if (first >= 0xf0 && first <= 0xf4)
		n = 4;
	else
		return 0;
	if (first == 0xc2 || first == 0xe0)
		least = 0xa0;
	else if (first == 0xf0)
		least = 0x90;
	if (text[1] < least)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((text[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

size_t mb_error_printable_bytes(const char *text)
{
	size_t n = 0, more;

	while ((more = character_bytes((const unsigned char *)text + n)))
		n += more;
	return n;
}

void mb_error_make_printable(char *text)
{
	for (text += mb_error_printable_bytes(text); *text; text += mb_error_printable_bytes(text))
		*text = '?';
}
