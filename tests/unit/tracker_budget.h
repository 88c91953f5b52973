/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TRACKER_BUDGET_H
#define TRACKER_BUDGET_H

#include <check.h>

/* Of test_tracker, beside whose others they wait. */
void add_budget_cases(TCase *cases);

#endif
