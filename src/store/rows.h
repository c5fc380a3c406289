/* rows.h — structs in memory, columns in the file: which member of a row is which dataset, in which unit. Private to
 * store/. */
#ifndef QSWEEP_STORE_ROWS_H
#define QSWEEP_STORE_ROWS_H

#include "bench/result.h"
#include "store/h5.h"

/* One column of one kind of row: where it lies in the struct, how in the file, in which unit. */
enum member {
    M_INT,
    M_I64,
    M_U64,
    M_SIZE,
    M_F64,
    M_BYTES /* uint64, UINT64_MAX = unknown; float64 with NaN in files */
};
struct column {
    const char *name, *units, *long_name;
    size_t      offset;
    enum member member;
    const char *meanings; /* of the codes 0, 1, … */
};
struct row_kind {
    const char          *group;
    size_t               row_size;
    const struct column *columns;
    size_t               n_columns;
    const char          *signal, *axes; /* NeXus: what a viewer plots over what; NULL for tables that are no plot */
};

#define COLUMN(type, field, name, member, units, long_name)                                                            \
    {                                                                                                                  \
        name, units, long_name, offsetof(struct type, field), member, NULL                                             \
    }
#define CODES(type, field, name, long_name, meanings)                                                                  \
    {                                                                                                                  \
        name, "1", long_name, offsetof(struct type, field), M_INT, meanings                                            \
    }

extern const struct row_kind sample_rows, trace_rows, quality_rows, quality_text_rows, quality_linear_rows;

/* Write rows [n] as the columns of a new group below cell; nothing for n = 0. */
status_t rows_write(hid_t cell, const struct row_kind *kind, const void *rows, size_t n);

/* Read a group back: *rows is malloc'ed with room for result_room(*n), untouched when the group is absent or empty.
 * Columns that the file does not have, or that `wanted` (may be NULL) declines, are unknown. */
status_t rows_read(hid_t cell, const struct row_kind *kind, bool (*wanted)(const char *), void **rows, size_t *n);

/* Members of one result as float64 attributes of a group. */
status_t scalars_write(hid_t group, const struct column *columns, size_t n, const struct result *r);
status_t scalars_read(hid_t group, const struct column *columns, size_t n, struct result *r);

#endif
