/* cores.h — which processor cores this host lets us use, and how ranks of one host divide them. */
#ifndef QSWEEP_BASE_CORES_H
#define QSWEEP_BASE_CORES_H

#include "base/status.h"

#include <stddef.h>
#include <sys/types.h>

enum { CORES_MAX = 4096 };

/* Core numbers of the operating system, ascending. */
struct cores {
    int n;
    int ids[CORES_MAX];
};

/* Affinity of a process (0 = this one). */
status_t cores_of_process(pid_t pid, struct cores *out);

/* Cores the job owns on this host: our affinity, but if an ancestor is Open MPI's daemon (orted, mpirun, prted) then
 * that daemon's, because mpirun binds each rank to a part and the daemon keeps the whole. */
status_t cores_of_job(struct cores *out);

/* Share `index` of `count` disjoint shares, sizes differing by at most one. With fewer cores than shares the shares
 * wrap around: every share has one core and some share it; the return value says whether the shares are disjoint (1 or
 * 0). */
int cores_share(const struct cores *all, int index, int count, struct cores *out);

/* "0-3,8" (as taskset -c reads it). Truncated to size. */
void cores_text(const struct cores *c, char *out, size_t size);

/* Bind the calling thread (and what it starts later). */
status_t cores_bind(const struct cores *c);

#endif
