// SPDX-License-Identifier: Apache-2.0
/*
 * launch FD PRELOAD PROGRAM [ARG...]: say on FD when the program starts (CLOCK_MONOTONIC, ns), and
 * become it, with PRELOAD loaded into it. A process of its own, because the fork of a large parent
 * would be part of the measurement otherwise.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec now;

	if (argc < 4) {
		fprintf(stderr, "usage: launch FD PRELOAD PROGRAM [ARG...]\n");
		return 2;
	}
	if (setenv("LD_PRELOAD", argv[2], 1) || setenv("MB_BENCH_FD", argv[1], 1)) {
		perror("launch: setenv");
		return 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	dprintf(atoi(argv[1]), "start %lld\n", (long long)now.tv_sec * 1000000000 + now.tv_nsec);
	execvp(argv[3], argv + 3);
	fprintf(stderr, "launch: %s: %s\n", argv[3], strerror(errno));
	return 127;
}
