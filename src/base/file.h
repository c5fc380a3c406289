/* file.h — a whole small file as bytes: configurations, vocabularies, codes. Weights are mapped, never read this way. */
#ifndef QSWEEP_BASE_FILE_H
#define QSWEEP_BASE_FILE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

/* Read path to its end. *bytes [*size] is malloc'ed, has a NUL after its end (not counted) and is the caller's. More
 * than max_size bytes, or a directory, is ST_EINPUT; what the system refuses is ST_EIO. */
status_t file_read(const char *path, size_t max_size, char **bytes, size_t *size);

/* True if something of this name exists (a broken symbolic link counts). */
bool file_exists(const char *path);

#endif
