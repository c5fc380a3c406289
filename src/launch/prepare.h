/* prepare.h — everything that is settled before the first worker starts: the plan, the output folder, its lock, and
 * which cells need no run. Rank 0 reads and decides; the others are told, so that all see the same plan. */
#ifndef QSWEEP_LAUNCH_PREPARE_H
#define QSWEEP_LAUNCH_PREPARE_H

#include "launch/fabric.h"
#include "launch/lock.h"
#include "launch/placement.h"
#include "sweep/plan.h"

/* What the user asked `qsweep run` for. */
struct launch {
    const char        *job_path;
    const char *const *set; /* [n_set] "dotted.key=value"                                   */
    int                n_set;
    const char        *output; /* NULL: as the job says                                     */
    bool               resume, dry_run, quiet, take_lock;
    bool               dry_run_ids;     /* the plan as ids, one a line                          */
    int                shard, n_shards; /* run part `shard` of n_shards of the plan; n_shards 0: all of it */
    bool               forward;         /* copy workers' stderr to ours                          */
    unsigned           keep;            /* bit s: a resume spares cells of cell_status s as well */
    double             grace_s;         /* SIGUSR1: how long running workers may go on           */
    const char        *command;         /* as typed, for provenance                              */
};

struct prepared {
    struct plan *plan;
    bool        *done; /* [plan->n] needs no run      */
    size_t       n_done;
    char         output[JOB_PATH_MAX];
    uint64_t     run_id; /* of this launch: same on all ranks */
    bool         stop;   /* nothing to run: a dry run was printed */
    struct lock *lock;   /* rank 0 only                 */
    struct placement placement; /* of all ranks; the same everywhere          */
    struct nvml_gpu  gpu;       /* this rank's, uuid "" = none                */
};

/* Collective. On failure every rank gets the same status; only rank 0 has logged the cause. */
status_t prepare(const struct launch *launch, const struct fabric_info *me, struct prepared *out);
void     prepared_free(struct prepared *p);

#endif
