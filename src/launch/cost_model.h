/* cost_model.h — how long cells take, for sweeps on paper: from a small JSON file, or from the cells of a merged sweep.
 *
 *   { "seconds": {"bf16": 40, "int8": 25},     mean life of a cell's worker at speed 1, by precision       (required)
 *     "spread": 0.3,                           sigma of a log-normal factor of mean 1                      (0)
 *     "straggler": {"share": 0.01, "factor": 5},  some cells take this much longer                         (none)
 *     "kinds": [{"share": 0.5, "speed": 1}, {"share": 0.5, "speed": 0.6}],  of ranks; shares are relative  (all speed 1)
 *     "launch_s": 0.02,                        end of a worker to the exec of the next                     (0.02)
 *     "message_us": 20 }                       way of a message between two ranks                          (20)
 *
 * A merged sweep (*.h5) gives every cell the life of one of its ok cells of that precision, drawn at random. */
#ifndef QSWEEP_LAUNCH_COST_MODEL_H
#define QSWEEP_LAUNCH_COST_MODEL_H

#include "sweep/cell.h"

#include <stddef.h>

enum { COST_KINDS_MAX = 16 };

struct cost_kind {
    double share, speed;
};

struct cost_model {
    double           mean_s[PRECISION_COUNT]; /* 0: the model does not know this precision      */
    double          *lives[PRECISION_COUNT];  /* [n_lives[p]] measured ones, or NULL            */
    size_t           n_lives[PRECISION_COUNT];
    double           spread, straggler_share, straggler_factor, launch_s, message_us;
    struct cost_kind kinds[COST_KINDS_MAX];   /* shares add up to 1 */
    int              n_kinds;
};

/* ST_EINPUT names the key that is wrong. */
status_t cost_model_parse(const char *json, size_t size, const char *label, struct cost_model *out);
status_t cost_model_load(const char *path, struct cost_model *out);
void     cost_model_free(struct cost_model *m);

/* Seconds at speed 1 of the i-th cell; the same for the same seed. */
double cost_model_seconds(const struct cost_model *m, enum precision p, uint64_t seed, size_t i);
/* Speed of one of n ranks: the first ranks are of the first kind, as many as its share says, and so on. */
double cost_model_speed(const struct cost_model *m, int rank, int n_ranks);

#endif
