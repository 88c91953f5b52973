// SPDX-License-Identifier: Apache-2.0
#include <stdlib.h>

#include "copied.h"
#include "heat_internal.h"

#define BLOCK	     MB_HEAT_BLOCK_BYTES
#define COPIED_SHARE 0.5 /* of a block, all views together */

double mb_copied(const struct mb_manager_config *config, const struct mb_extent *e, unsigned view)
{
	return config->policy.replicas
		       ? config->ops->copied(config->ctx, e->offset, e->len_bytes, view)
		       : 0;
}

/* How much of it has copies, all views together. */
static double copied_share(const struct mb_manager_config *config, const struct mb_extent *e)
{
	double share = 0;

	for (unsigned v = 0; v < config->n_views; v++)
		share += mb_copied(config, e, v);
	return share;
}

/* The first part of it, by blocks, of which all has copies or none, as *has_copies says. */
static struct mb_extent first_part(
	const struct mb_manager_config *config, const struct mb_extent *e, bool *has_copies)
{
	const uint64_t end = e->offset + e->len_bytes;
	struct mb_extent part = *e, next = *e;

	part.len_bytes = 0;
	while (next.offset < end) {
		uint64_t to = (next.offset / BLOCK + 1) * BLOCK;
		bool has;

		next.len_bytes = (to < end ? to : end) - next.offset;
		has = copied_share(config, &next) >= COPIED_SHARE;
		if (part.len_bytes && has != *has_copies)
			break;
		*has_copies = has;
		part.len_bytes += next.len_bytes;
		next.offset += next.len_bytes;
	}
	return part;
}

int mb_without_copied(
	const struct mb_manager_config *config, struct mb_extent **extent, unsigned *n)
{
	struct mb_heat_list kept = {0};
	int rc = 0;

	for (unsigned i = 0; i < *n && !rc; i++) {
		struct mb_extent rest = (*extent)[i];

		if (!(copied_share(config, &rest) > 0)) {
			rc = mb_heat_push(&kept, &rest);
			continue;
		}
		while (rest.len_bytes && !rc) {
			bool has_copies = false;
			struct mb_extent part = first_part(config, &rest, &has_copies);

			if (!has_copies)
				rc = mb_heat_push(&kept, &part);
			rest.offset += part.len_bytes;
			rest.len_bytes -= part.len_bytes;
		}
	}
	if (rc) {
		free(kept.extent);
		return rc;
	}
	free(*extent);
	*extent = kept.extent;
	*n = kept.n;
	return 0;
}
