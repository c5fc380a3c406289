/* plan.h — the cells of a job, each once, in the order in which they should run.
 *
 * Interleaved order: cells that differ in precision alone form a group and stand together; groups are shuffled by the
 * seed; precisions run forwards in one group and backwards in the next (A B, B A, …), so that drift of a machine does
 * not favour one of them. Ids never depend on the order. */
#ifndef QSWEEP_SWEEP_PLAN_H
#define QSWEEP_SWEEP_PLAN_H

#include "sweep/job.h"

#include <stdio.h>

enum { PLAN_CELLS_MAX = 1000000 };

/* Cells of a plan borrow their model and texts from it: never cell_free() one; cell_copy() makes an independent one. */
struct plan {
    struct cell       *cells;   /* [n]                                                                      */
    size_t             n;
    uint32_t          *group;   /* [n] cells of one group differ in precision only and stand together       */
    const char       **invalid; /* [n] NULL, or why this cell cannot run anywhere (a row of status invalid) */
    struct job_options options;
    char              *job_text;
    struct plan_pool  *pool;    /* owns what the cells point to */
};

/* What a job does not know about its models, in the order of job_models(), and whether `device: auto` means cuda here. */
struct plan_input {
    const char (*fingerprints)[33];
    int         n_fingerprints;
    bool        have_cuda;
    const bool *synthetic; /* [n_fingerprints] weights are random, so `length: auto` means fixed; NULL: none is */
    const char (*gpus)[96]; /* [n_gpus] models of GPU in the run, for `gpu: {each_model: yes}` */
    int         n_gpus;
};

/* Every combination that passes its filters, duplicates collapsed. ST_EINPUT when nothing is left or it is more than
 * PLAN_CELLS_MAX. 100,000 cells take well under a second. */
status_t plan_build(const struct job *job, const struct plan_input *in, struct plan **out);
void     plan_close(struct plan *p); /* NULL is accepted */

/* Keep part `shard` (0 … n_shards − 1) of the plan: groups stay whole and are dealt out in the order of their smallest ids,
 * so the parts are disjoint, together the plan, equal to one group, and the same whatever the order or its seed. May
 * leave no cell. ST_EUSAGE for numbers out of range. */
status_t plan_shard(struct plan *p, int shard, int n_shards);

/* Index of the cell with this id, or -1. */
long plan_find(const struct plan *p, const char *id);

/* plan.json: constants once, varying values as columns, so that 100,000 cells are a few MB. malloc'ed. Reading checks
 * everything, recomputes every id and refuses a plan whose ids are not those of its cells. */
status_t plan_to_json(const struct plan *p, char **json);
status_t plan_from_json(const char *json, size_t size, const char *label, struct plan **out);

/* One process of a cell: workload.processes of them make a cell. */
struct run {
    size_t cell;    /* index into the plan */
    int    process; /* 0 … processes − 1   */
};

/* The order in which one worker slot runs the given cells [n] (ascending indices): cells of a group share their
 * processes out A B B A. Writes plan_run_count() entries to out. */
size_t plan_run_count(const struct plan *p, const size_t *cells, size_t n);
void   plan_runs(const struct plan *p, const size_t *cells, size_t n, struct run *out);

/* Fills what is known about a cell before it runs; NaN = unknown. */
typedef void (*plan_estimate)(void *ctx, const struct cell *c, double *memory_mb, double *seconds);

/* The table of --dry-run: constants on top, one line a cell with its id and what varies; estimate may be NULL. */
void plan_print(const struct plan *p, plan_estimate estimate, void *ctx, FILE *to);

#endif
