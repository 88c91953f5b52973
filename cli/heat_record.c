// SPDX-License-Identifier: Apache-2.0
#include "heat_view.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool is_same_machine(const struct heat *a, const struct heat *b)
{
	return a->n_views == b->n_views && a->n_nodes == b->n_nodes &&
	       !memcmp(a->view_nodes, b->view_nodes, sizeof(a->view_nodes)) &&
	       !memcmp(a->node, b->node, sizeof(a->node));
}

int heat_record_add(
	struct heat_record *record, struct heat *heat, uint64_t at_ms, struct mb_error *err)
{
	struct heat_column *column = &record->column[record->n_columns];
	struct heat_axis axis = {0};
	uint64_t before_ms = record->n_columns ? column[-1].at_ms : 0;
	unsigned n = 0;
	int rc;

	if (record->n_columns && !is_same_machine(&record->last, heat)) {
		heat_finish(heat);
		return mb_error_set(
			err, EPROTO, "the machine's views or nodes changed while it was recorded");
	}
	heat_finish(&record->last);
	record->last = *heat;
	*heat = (struct heat){0};
	if (record->n_columns == HEAT_MAX_COLUMNS)
		return mb_error_set(err, ENOSPC, "%u snapshots are all that a picture has room for",
			HEAT_MAX_COLUMNS);
	rc = heat_axis_fit(&axis, record->last.extent, record->last.n_extents, HEAT_SVG_ROWS);
	*column = (struct heat_column){.at_ms = at_ms};
	column->cell = calloc(axis.n + 1u, sizeof(*column->cell));
	if (rc || !column->cell) {
		free(axis.slot);
		free(column->cell);
		return mb_error_set(err, ENOMEM, "out of memory");
	}
	heat_merge(&axis, record->last.extent, record->last.n_extents, column->cell);
	/* Only what is in use: the gaps of this axis need not be those of the picture's. */
	for (unsigned i = 0; i < axis.n; i++)
		if (column->cell[i].used_bytes)
			column->cell[n++] = column->cell[i];
	column->n_cells = n;
	free(axis.slot);
	record->n_columns++;
	/* As long as the one before, until somebody knows better. */
	record->end_ms = at_ms + (at_ms > before_ms ? at_ms - before_ms : 1);
	return 0;
}

void heat_record_finish(struct heat_record *record)
{
	heat_finish(&record->last);
	for (unsigned i = 0; i < record->n_columns; i++)
		free(record->column[i].cell);
	record->n_columns = 0;
}
