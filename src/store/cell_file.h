/* cell_file.h — cell-<id>.h5: one cell's result, written under a temporary name, fsynced, renamed.
 *
 * The file is HDF5 behind a user block of 512 bytes, which HDF5 readers skip. The block is text: schema, id, status,
 * the size of the file and an XXH3-64 of everything else. A file that was cut short or altered is refused by it before
 * HDF5's parser sees a byte, and id and status of a cell are learned without HDF5. */
#ifndef QSWEEP_STORE_CELL_FILE_H
#define QSWEEP_STORE_CELL_FILE_H

#include "bench/result.h"

#define SCHEMA_NAME "qsweep-cell"
#define SCHEMA_VERSION "1.1.0"

/* <output>/cells/ab/cell-<id>.h5; the folder is made by cell_file_write. */
void cell_file_path(const char *output, const char *id, char *path, size_t size);

/* Atomic: either the whole file stands under path or nothing changed. ST_EIO names path and errno. */
status_t cell_file_write(const char *path, const struct result *r);
/* Everything back; ST_EINPUT for a truncated, altered or foreign file (the message says which), ST_EIO when it cannot
 * be opened. On failure *out is empty. */
status_t cell_file_read(const char *path, struct result *out);
/* Only status and id, from the first 512 bytes and the file's size. */
status_t cell_file_status(const char *path, enum cell_status *status, char id[33]);
/* The same after the whole file was compared with its checksum; used by resume. */
status_t cell_file_verify(const char *path, enum cell_status *status, char id[33]);

/* "1.10.8": the HDF5 library that writes and reads here. */
void cell_file_library(char *out, size_t size);

#endif
