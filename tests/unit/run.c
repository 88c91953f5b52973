// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Shared memory: each case is a process of its own. */
static unsigned *n_skipped;

void skip(const char *why)
{
	printf("skipped: %s\n", why);
	__atomic_add_fetch(n_skipped, 1, __ATOMIC_RELAXED);
}

int run_suite(Suite *suite)
{
	SRunner *runner = srunner_create(suite);
	int n_failed;

	n_skipped = mmap(NULL, sizeof(*n_skipped), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (n_skipped == MAP_FAILED) {
		perror("mmap");
		return EXIT_FAILURE;
	}
	srunner_run_all(runner, CK_ENV);
	n_failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return n_failed ? EXIT_FAILURE : *n_skipped ? 77 : EXIT_SUCCESS;
}
