/* cell_file.h — cell-<id>.h5: one cell's result, written under a temporary name, fsynced, renamed. */
#ifndef QSWEEP_STORE_CELL_FILE_H
#define QSWEEP_STORE_CELL_FILE_H

#include "bench/result.h"

#define SCHEMA_NAME    "qsweep-cell"
#define SCHEMA_VERSION "1.0.0"

/* <output>/cells/ab/cell-<id>.h5; the folder is made by cell_file_write. */
void cell_file_path(const char *output, const char *id, char *path, size_t size);

/* Atomic: either the whole file stands under path or nothing changed. ST_EIO names path and errno. */
status_t cell_file_write(const char *path, const struct result *r);
/* Everything back; ST_EINPUT for a truncated file or another schema (the message says which). */
status_t cell_file_read(const char *path, struct result *out);
/* Only status and id, quickly; used by resume. */
status_t cell_file_status(const char *path, enum cell_status *status, char id[33]);

#endif
