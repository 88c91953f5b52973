/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RUN_H
#define RUN_H

#include <check.h>

/*
 * What every program of the suite ends with: runs the cases, returns the exit status. 0: all
 * passed; 1: one failed; 77: none failed, and one called skip.
 */
int run_suite(Suite *suite);

/*
 * The same for a suite whose test cases wait most of the time: each of these (names of its TCases,
 * at most 8, then NULL) in a process of its own, at once. CK_RUN_CASE runs one of them.
 */
int run_side_by_side(Suite *(*make)(void), const char *const *cases);

/* For a case that lacks something on this host: says what, and is then left with success. */
void skip(const char *why);

#endif
