/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MIRRORBALL_CLI_TABLE_H
#define MIRRORBALL_CLI_TABLE_H

#include <stdbool.h>

#define CLI_CELL_BYTES 256

/* Texts in columns, two blanks apart; all but the last are padded. */
struct cli_column {
	const char *title;
	bool right;
};

/* n_rows times n_columns cells, row by row, below the titles, on standard output. */
void cli_table_show(const struct cli_column *columns, unsigned n_columns,
	char (*cell)[CLI_CELL_BYTES], unsigned n_rows);

#endif
