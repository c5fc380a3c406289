/* task.h — what a scheduler hands out: cells of one group that some kind of rank can run; inside the scheduler only. */
#ifndef QSWEEP_SWEEP_TASK_H
#define QSWEEP_SWEEP_TASK_H

#include "sweep/schedule.h"

struct task {
    size_t   first, count; /* cells task_list.cells[first …]        */
    uint64_t kinds;        /* bit k: ranks of kind k can run all    */
    double   cost;         /* of all its cells                      */
};

struct task_list {
    size_t      *cells; /* [n_cells] plan indices, ascending; those that need a run */
    double      *cost;  /* [n_cells]                                                */
    uint64_t    *kinds; /* [n_cells] bit k: there are ranks of kind k, and they can run the cell */
    size_t       n_cells;
    struct task *tasks; /* [n] in the order of the plan                             */
    size_t       n;
};

/* Groups of cells that need a run; a group that no kind can run whole falls apart into single cells. */
status_t tasks_build(const struct schedule_input *in, struct task_list *out);
void     tasks_free(struct task_list *t);

/* Stable: dearest first. */
void tasks_sort_by_cost(struct task_list *t);

#endif
