// SPDX-License-Identifier: Apache-2.0
#include "run.h"
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_CASES 8u

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

/* Check's report of a child, which has a file of its own. */
static void add_tap(const char *tap, const char *part)
{
	FILE *all = fopen(tap, "ae"), *one = fopen(part, "re");
	char line[512];

	while (all && one && fgets(line, sizeof(line), one))
		fputs(line, all);
	if (all)
		fclose(all);
	if (one)
		fclose(one);
	unlink(part);
}

int run_side_by_side(Suite *(*make)(void), const char *const *cases)
{
	const char *tap = getenv("CK_TAP_LOG_FILE_NAME");
	char part[MAX_CASES][PATH_MAX];
	bool failed = false, skipped = false;
	unsigned n = 0;
	int status;

	if (getenv("CK_RUN_CASE"))
		return run_suite(make());
	for (; n < MAX_CASES && cases[n]; n++) {
		snprintf(part[n], sizeof(part[n]), "%s.%s", tap ? tap : "", cases[n]);
		if (fork())
			continue;
		setenv("CK_RUN_CASE", cases[n], 1);
		if (tap)
			setenv("CK_TAP_LOG_FILE_NAME", part[n], 1);
		return run_suite(make());
	}
	while (wait(&status) > 0) {
		bool skips = WIFEXITED(status) && WEXITSTATUS(status) == 77;

		skipped |= skips;
		failed |= status && !skips;
	}
	for (unsigned i = 0; i < n && tap; i++)
		add_tap(tap, part[i]);
	return failed ? EXIT_FAILURE : skipped ? 77 : EXIT_SUCCESS;
}
