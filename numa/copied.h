/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_NUMA_COPIED_H
#define MB_NUMA_COPIED_H

#include <mirrorball/manager.h>

/* What the manager knows of memory that has copies. */

/* The share of the extent that the view has copies of; 0 where there are none. */
double mb_copied(const struct mb_manager_config *config, const struct mb_extent *e, unsigned view);

/*
 * What has copies already is decided, until a write or a lack of memory ends that. Where its home
 * is would not be known, either: a view's page tables tell of the copy. -ENOMEM.
 */
int mb_without_copied(
	const struct mb_manager_config *config, struct mb_extent **extent, unsigned *n);

#endif
