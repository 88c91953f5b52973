// SPDX-License-Identifier: Apache-2.0
/* truth-mark SECTION: what follows, on the whole machine, counts into this section; 0 ends it. */
#include "mark.h"
#include <stdio.h>
#include <stdlib.h>

#define CASE(n)                \
	case n:                \
		TRUTH_MARK(n); \
		break

int main(int argc, char **argv)
{
	char *end = NULL;
	unsigned long section = argc == 2 ? strtoul(argv[1], &end, 10) : TRUTH_N_SECTIONS;

	if (!end || end == argv[1] || *end || section >= TRUTH_N_SECTIONS) {
		fprintf(stderr, "usage: truth-mark SECTION (1 to %u; 0 ends a section)\n",
			TRUTH_N_SECTIONS - 1);
		return 2;
	}
	switch (section) {
		CASE(0);
		CASE(1);
		CASE(2);
		CASE(3);
		CASE(4);
		CASE(5);
		CASE(6);
		CASE(7);
		CASE(8);
		CASE(9);
		CASE(10);
		CASE(11);
		CASE(12);
		CASE(13);
		CASE(14);
		CASE(15);
	}
	return 0;
}
