/* turn.h — whose turn it is among the ranks of one host: cells that share a CPU's bandwidth run one at a time.
 *
 * The turn is an abstract Unix socket name: the kernel gives it to one process and takes it back when that process
 * dies, and nothing is left on any disk. Ranks in containers of their own (other network namespaces) do not see each
 * other. */
#ifndef QSWEEP_LAUNCH_TURN_H
#define QSWEEP_LAUNCH_TURN_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct turn {
    uint64_t job;    /* the same for all ranks of one run, different for every run */
    int      slot;   /* what is shared: 0 = the host's cores                       */
    int      socket; /* -1 = not ours                                              */
};

void turn_init(struct turn *t, uint64_t job, int slot);
/* True if the turn is ours now (also when it was before). *st is not ST_OK when the system refuses such names. */
bool turn_try(struct turn *t, status_t *st);
void turn_end(struct turn *t);

#endif
