/* outfile.h — a file that appears under its name only when it is complete: written under a temporary name beside it,
 * then fsynced and renamed. An existing file is never replaced. */
#ifndef QSWEEP_BASE_OUTFILE_H
#define QSWEEP_BASE_OUTFILE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

struct outfile;

/* Create the temporary file. ST_EUSAGE when path exists already. */
status_t outfile_open(const char *path, struct outfile **out);
/* Append; small pieces are gathered. The error names the file and the system's reason (no space left, …). */
status_t outfile_write(struct outfile *f, const void *data, size_t bytes);
uint64_t outfile_size(const struct outfile *f); /* bytes written so far */
/* Flush, fsync, rename to the final name. Frees f in every case; on failure nothing is left behind. */
status_t outfile_commit(struct outfile *f);
void     outfile_abort(struct outfile *f); /* removes the temporary file; NULL is accepted */

/* Rename from to to, failing with ST_EUSAGE when to exists (files and folders). */
status_t outfile_rename_new(const char *from, const char *to);

#endif
