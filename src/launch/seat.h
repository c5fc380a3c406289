/* seat.h — where a rank sits: its place in the group and on its host, and the cores its workers get. */
#ifndef QSWEEP_LAUNCH_SEAT_H
#define QSWEEP_LAUNCH_SEAT_H

#include "base/cores.h"
#include "launch/fabric.h"

#include <stdbool.h>

struct seat {
    struct fabric_info me;
    struct cores       host;     /* cores that the ranks of this host may use together                         */
    struct cores       own;      /* what a worker of this rank runs on                                         */
    bool               disjoint; /* no other rank's worker runs on them at the same time                       */
    int                together; /* workers of this host that may run at the same time                         */
};

/* Collective. parallel: cells of one host run side by side on disjoint shares of its cores; otherwise one at a time,
 * each on all of them. */
status_t seat_find(const struct fabric_info *me, bool parallel, struct seat *out);

#endif
