// SPDX-License-Identifier: Apache-2.0
#include "units.h"
#include <stdio.h>
#include <string.h>

void cli_format_bytes(uint64_t bytes, char *text, size_t len)
{
	static const char units[] = "BKMGTPE";
	double value = (double)bytes;
	char number[32];
	unsigned u = 0;

	/* 1023.95 would be printed as 1024.0. */
	while (value >= 1023.95 && units[u + 1]) {
		value /= 1024;
		u++;
	}
	snprintf(number, sizeof(number), "%.1f", value);
	if (!strcmp(number + strlen(number) - 2, ".0"))
		number[strlen(number) - 2] = '\0';
	if (u)
		snprintf(text, len, "%s%c", number, units[u]);
	else
		snprintf(text, len, "%s", number);
}

void cli_format_ms(uint64_t ms, char *text, size_t len)
{
	uint64_t s = ms / 1000;

	if (s < 60)
		snprintf(text, len, "%u.%us", (unsigned)s, (unsigned)(ms % 1000 / 100));
	else if (s < 3600)
		snprintf(text, len, "%um%02us", (unsigned)(s / 60), (unsigned)(s % 60));
	else if (s < 86400)
		snprintf(text, len, "%uh%02um", (unsigned)(s / 3600), (unsigned)(s % 3600 / 60));
	else
		snprintf(text, len, "%llud%02uh", (unsigned long long)(s / 86400),
			(unsigned)(s % 86400 / 3600));
}
