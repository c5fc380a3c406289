/* atomic_file.h — a file that appears whole or not at all: temporary name in the same folder, fsync, rename. */
#ifndef QSWEEP_STORE_ATOMIC_FILE_H
#define QSWEEP_STORE_ATOMIC_FILE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

enum { ATOMIC_PATH_MAX = 4400 };

/* Temporary name for path: hidden, in the same folder, unique to host, process and call. */
status_t atomic_name(const char *path, char temporary[ATOMIC_PATH_MAX]);

/* fsync `temporary`, rename it to path, fsync the folder. On failure the temporary file is removed; ST_EIO. */
status_t atomic_commit(const char *temporary, const char *path);

/* Write the pieces one after another as path, atomically. */
struct piece {
    const void *data;
    size_t      size;
};
status_t atomic_write(const char *path, const struct piece *pieces, int n);

/* Remove temporary files of path that processes of this host left behind when they died. Others are not touched. */
void atomic_sweep(const char *path);

/* Reserve disk space for `temporary`, which will be path, so that writing `bytes` in all cannot run out of it. ST_EIO
 * when the space is not there; ST_OK where the file system cannot reserve but has as much free. */
status_t atomic_reserve(const char *temporary, const char *path, uint64_t bytes);

/* Make the folder of path and what is missing above it. */
status_t atomic_make_folder(const char *path);

#endif
