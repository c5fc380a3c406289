/* plan_pool.h — what the cells of a plan share, and the index of their ids; inside the planner only. */
#ifndef QSWEEP_SWEEP_PLAN_POOL_H
#define QSWEEP_SWEEP_PLAN_POOL_H

#include "sweep/plan.h"
#include "sweep/sweep.h"

struct plan_pool {
    char           **models;               /* [n_models], with their fingerprints */
    char           (*fingerprints)[33];
    int              n_models;
    struct text_set *text_sets;            /* [n_text_sets]                       */
    int              n_text_sets;
    int             *model_of, *texts_of;  /* [plan.n]                            */
    size_t          *by_id;                /* [plan.n] indices sorted by id       */
};

/* An empty plan with room for n cells and a pool of that many models and sets; NULL without memory. */
struct plan *plan_new(size_t n, int n_models, int n_text_sets);

/* Point cell i into the pool, after model_of and texts_of are set. */
void plan_attach(struct plan *p, size_t i);

/* Sort the ids and say which cells cannot run; the last step of making a plan. */
status_t plan_finish(struct plan *p);

#endif
