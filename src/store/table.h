/* table.h — an array of structs as one compound dataset: the tables /summary, /sources and /events. Private to store/.
 *
 * Rows go in and out in pieces, so that a table of 100,000 rows costs a buffer of a few hundred. h5py reads a table in
 * one call; units and definitions are attributes "units.<column>" and "definition.<column>". */
#ifndef QSWEEP_STORE_TABLE_H
#define QSWEEP_STORE_TABLE_H

#include "store/h5.h"

#include <stdbool.h>

enum table_kind { TABLE_TEXT, TABLE_INT, TABLE_UINT, TABLE_REAL }; /* char [size], int64_t, uint64_t, double */
struct table_column {
    const char     *name;
    enum table_kind kind;
    size_t          offset, size; /* in the row's struct */
    const char     *units, *definition;
};
struct table_schema {
    const char                *name, *long_name;
    const struct table_column *columns;
    size_t                     n_columns, row_size;
};

enum { TABLE_PIECE = 256 }; /* rows of a chunk; good pieces to read and write are multiples of it */

struct table {
    const struct table_schema *schema;
    hid_t                      dset, memory; /* memory: the type of a row in this process */
    size_t                     rows;
};

/* A new empty table; rows_hint sizes the chunks. */
status_t table_create(hid_t where, const struct table_schema *schema, size_t rows_hint, struct table *out);
status_t table_append(struct table *t, const void *rows, size_t n);

/* Open an existing one. Columns that the file does not have keep what the caller's rows hold; columns it has beyond the
 * schema are ignored; a column of another class is ST_EINPUT. */
status_t table_open(hid_t where, const struct table_schema *schema, size_t max_rows, struct table *out);
status_t table_read(const struct table *t, size_t first, size_t n, void *rows);

void table_close(struct table *t); /* after a failure too */

#endif
