// SPDX-License-Identifier: Apache-2.0
#include <mirrorball/error.h>
#include <stdio.h>
#include <string.h>

int mb_error_set(struct mb_error *err, int errnum, const char *fmt, ...)
{
	if (err) {
		va_list ap;

		va_start(ap, fmt);
		vsnprintf(err->text, sizeof(err->text), fmt, ap);
		va_end(ap);
	}
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
