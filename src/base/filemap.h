/* filemap.h — a regular file mapped read-only: the bytes of checkpoints, without copying them. */
#ifndef QSWEEP_BASE_FILEMAP_H
#define QSWEEP_BASE_FILEMAP_H

#include "base/status.h"

#include <stddef.h>

struct filemap {
    const unsigned char *data; /* NULL when nothing is mapped                              */
    size_t               size;
};

/* Map path. ST_EIO when the system refuses; ST_EINPUT when it is empty, larger than limit bytes (0 = no limit) or not a
 * regular file (a FIFO would block, a directory cannot be mapped). */
status_t filemap_open(const char *path, size_t limit, struct filemap *out);
void     filemap_close(struct filemap *map); /* an empty map is accepted */

/* Ask the kernel to read the whole map ahead. Does nothing when the map is more than half of this machine's memory:
 * reading ahead would then push out what it just read. */
void filemap_will_need(const struct filemap *map);

#endif
