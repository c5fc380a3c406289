/* h5.h — the adapter between HDF5 and status_t, and the few shapes of data our files are made of. Private to store/.
 *
 * Everything is written so that equal content gives equal bytes: no object times, no native types, no wall clock.
 * Everything read is checked first: class, rank, length and size are looked at before memory is taken for them. */
#ifndef QSWEEP_STORE_H5_H
#define QSWEEP_STORE_H5_H

#include "base/status.h"

#include <hdf5.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Limits of what a reader believes. 2²⁴ steps are nine days of speech; a trace at 10 ms reaches 2²⁴ rows in 46 hours.
 */
enum { H5_ROWS_MAX = 1 << 24, H5_TEXT_MAX = 16 << 20 };

/* Every public function of store/ calls this first: HDF5 stays silent on this thread, and failures from here on name
 * `label` (kept, not copied) and carry `code` (ST_EINPUT while reading, ST_EIO while writing). */
void        h5_begin(const char *label, status_t code);
const char *h5_label(void);

/* The adapter: any HDF5 result, negative is a failure; one line with the label, the call and HDF5's innermost cause. */
status_t h5_check(int64_t result, const char *call, const char *file, int line);
#define H5_DO(call) h5_check((int64_t)(call), #call, __FILE__, __LINE__)

/* Open for reading without locks: our files are complete when they have their name, and locks fail on NFS and Lustre.
 */
status_t h5_open_read(const char *path, hid_t *out);
/* Close any kind of handle; invalid handles are fine. */
void     h5_close(hid_t handle);

/* A child group whose object carries no times. */
status_t h5_make_group(hid_t where, const char *name, hid_t *out);
/* Open a child group if it is there: *out < 0 and ST_OK when it is not. */
status_t h5_find_group(hid_t where, const char *name, hid_t *out);

/* Attributes: scalar UTF-8 texts of variable length, int64, uint64, float64. */
status_t h5_put_text(hid_t where, const char *name, const char *value);
status_t h5_put_fixed_text(hid_t where, const char *name,
                           const char *value); /* ASCII of fixed length, for HDF5's own */
status_t h5_put_int(hid_t where, const char *name, int64_t value);
status_t h5_put_uint(hid_t where, const char *name, uint64_t value);
status_t h5_put_real(hid_t where, const char *name, double value);

/* Read an attribute; *found says whether it is there (found may be NULL: then it must be). *out is untouched when it is
 * not. Texts are malloc'ed, at most H5_TEXT_MAX bytes, valid up to their first NUL. */
status_t h5_get_text(hid_t where, const char *name, char **out, bool *found);
status_t h5_get_int(hid_t where, const char *name, int64_t *out, bool *found);
status_t h5_get_uint(hid_t where, const char *name, uint64_t *out, bool *found);
status_t h5_get_real(hid_t where, const char *name, double *out, bool *found);
/* The same into a fixed buffer; longer texts are an error. */
status_t h5_get_chars(hid_t where, const char *name, char *out, size_t size, bool *found);

/* How numbers lie in files; all little-endian. */
enum h5_kind { H5_I32, H5_I64, H5_U64, H5_F64, H5_KIND_COUNT };
size_t h5_kind_size(enum h5_kind kind);

/* Open dataset `name` of `group` with its type and its rows (rank 0: 1), at most H5_ROWS_MAX; *dset < 0 and ST_OK when
 * there is none. Links to other places are refused. The caller closes both, after a failure too. */
status_t h5_open_dataset(hid_t group, const char *name, int rank, hid_t *dset, hid_t *type, size_t *rows);

/* A one-dimensional dataset [n] with its units and long_name. Below 8 KiB contiguous, else chunked (≤ 1 MiB) with
 * shuffle, deflate 1 and Fletcher32. meanings: CF flag_meanings for codes 0, 1, …, or NULL. */
status_t h5_put_column(hid_t group, const char *name, enum h5_kind kind, const void *data, size_t n, const char *units,
                       const char *long_name, const char *meanings);
/* Rows of a column; ST_OK and *found = false when there is none. */
status_t h5_column_rows(hid_t group, const char *name, size_t *rows, bool *found);
/* Read exactly n rows into data of `kind`; a column of another length is an error. found may be NULL: it must be there.
 */
status_t h5_get_column(hid_t group, const char *name, enum h5_kind kind, void *data, size_t n, bool *found);

/* A text as a scalar dataset of fixed length (any size, unlike a fixed attribute). */
status_t h5_put_document(hid_t group, const char *name, const char *text, const char *long_name);
status_t h5_get_document(hid_t group, const char *name, char **out, bool *found);

/* Names as a column of fixed-length UTF-8 texts. */
status_t h5_put_names(hid_t group, const char *name, const char *const *names, size_t n, const char *long_name);
/* Read them back as one block of *n names of *width bytes each (NUL-terminated), at most max_rows; the caller frees it.
 */
status_t h5_get_names(hid_t group, const char *name, size_t max_rows, char **block, size_t *n, size_t *width);

/* A copy of text in which bytes that are not UTF-8 became '?' and control characters but tab and newline became ' ';
 * malloc'ed, NULL without memory. HDF5 marks texts as UTF-8, and readers refuse what is not. */
char *utf8_clean(const char *text);
void  utf8_clean_in_place(char *text);

#endif
