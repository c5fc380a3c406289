/* schedule.h — which rank runs which cell: fixed beforehand, or handed out by rank 0 as ranks become free. Pure: events
 * in, decisions out; the launcher carries the messages.
 *
 * Both keep the cells of a group (same work in several precisions) on one rank, so that they are compared on one card,
 * and break a group up only when a rank of the same kind would stand idle and `split` allows it. */
#ifndef QSWEEP_SWEEP_SCHEDULE_H
#define QSWEEP_SWEEP_SCHEDULE_H

#include "sweep/plan.h"

enum { KINDS_MAX = 64, RANKS_MAX = 1 << 20 };

struct schedule_input {
    const struct plan *plan;
    const bool        *skip;    /* [plan->n] cells that need no run (already done), or NULL; invalid ones never run  */
    int                n_ranks; /* 1 … RANKS_MAX                                                                     */
    const int         *kind;    /* [n_ranks] kind of device of each rank, 0 … n_kinds − 1; NULL: all of kind 0       */
    int                n_kinds; /* 1 … KINDS_MAX                                                                     */
    /* May ranks of this kind run this cell? (device class, GPU name, memory.) NULL: every kind may run every cell. */
    bool (*fits)(void *ctx, int kind, const struct cell *c);
    void         *ctx;
    const double *cost;         /* [plan->n] expected seconds, or NULL: a cell costs its frames                      */
    bool          split;        /* groups may be broken up among ranks of one kind                                   */
};

enum { RANK_SKIP = -1, RANK_NONE = -2 }; /* needs no run; no rank can run it */

/* Static: rank_of [plan->n]. Longest first to the least loaded rank; the same on every machine. A rank runs its cells in
 * the plan's order. */
status_t schedule_static(const struct schedule_input *in, int32_t *rank_of);

/* Dynamic: rank 0's state. Every cell ends exactly once, whatever the order of events. */
struct dispatcher;

status_t dispatcher_open(const struct schedule_input *in, struct dispatcher **out); /* the plan must outlive it */
void     dispatcher_close(struct dispatcher *d);                                    /* NULL is accepted         */

enum dispatch { DISPATCH_TASK, DISPATCH_WAIT, DISPATCH_END };

/* A rank asks for work. TASK: cells [*n], ascending plan indices, at most capacity (≥ 1) of them. WAIT: nothing now,
 * but a cell in flight may come back; ask again after the next event. END: nothing will ever come for this rank. */
enum dispatch dispatcher_next(struct dispatcher *d, int rank, size_t *cells, size_t capacity, size_t *n);
/* A rank reports a cell finished, whatever its status. False: it did not have that cell (a late or repeated report). */
bool dispatcher_done(struct dispatcher *d, int rank, size_t cell);
/* A rank is gone: its unfinished cells are handed out again, its later reports and requests are ignored. */
void dispatcher_lost(struct dispatcher *d, int rank);
/* Hand out nothing more (an early-warning signal). */
void dispatcher_drain(struct dispatcher *d);

/* Cells by state. Unrunnable: waiting for a kind of which no rank is left, or that never was. */
struct dispatch_count {
    size_t waiting, running, done, unrunnable;
};
struct dispatch_count dispatcher_count(const struct dispatcher *d);

#endif
