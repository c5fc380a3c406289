/* lock.h — one launcher per output folder: <output>/lock names its host, process and start time.
 *
 * On one host the kernel's flock decides, so a dead owner never blocks. Between hosts flock may or may not reach (NFS,
 * Lustre), so a lock of another host is respected: it is only taken over when told to, or when Slurm says that this job
 * is the restart of the one that wrote it. */
#ifndef QSWEEP_LAUNCH_LOCK_H
#define QSWEEP_LAUNCH_LOCK_H

#include "base/status.h"

#include <stdbool.h>

struct lock;

/* dir must exist. ST_EIO says who holds it and what to do; force takes another host's lock (never a living one of
 * this host). */
status_t lock_take(const char *dir, bool force, struct lock **out);
/* Remove the file and let go; NULL is accepted. */
void     lock_release(struct lock *l);

#endif
