// SPDX-License-Identifier: Apache-2.0
#include "table.h"
#include <stdio.h>
#include <string.h>

static int width_of(const struct cli_column *columns, unsigned n_columns,
	char (*cell)[CLI_CELL_BYTES], unsigned n_rows, unsigned c)
{
	size_t width = strlen(columns[c].title);

	for (unsigned i = 0; i < n_rows; i++)
		if (strlen(cell[i * n_columns + c]) > width)
			width = strlen(cell[i * n_columns + c]);
	return (int)width;
}

void cli_table_show(const struct cli_column *columns, unsigned n_columns,
	char (*cell)[CLI_CELL_BYTES], unsigned n_rows)
{
	int width[32];

	for (unsigned c = 0; c < n_columns; c++)
		width[c] =
			width_of(columns, n_columns, cell, n_rows, c) * (columns[c].right ? 1 : -1);
	width[n_columns - 1] = 0;
	for (unsigned c = 0; c < n_columns; c++)
		printf("%*s%s", width[c], columns[c].title, c + 1 < n_columns ? "  " : "\n");
	for (unsigned i = 0; i < n_rows; i++)
		for (unsigned c = 0; c < n_columns; c++)
			printf("%*s%s", width[c], cell[i * n_columns + c],
				c + 1 < n_columns ? "  " : "\n");
}
