/* work.h — what one worker process is told to do: a cell, its part of the cell's samples, and where it may run.
 *
 * The launcher writes it as JSON; `qsweep cell WORK.json --output FILE` reads it, so a single measurement can be
 * repeated by hand. Samples are numbered repeat-major (every text of repeat 0, then of repeat 1, …): sample i is text i
 * % n_texts, repeat i / n_texts, whatever the number of processes. */
#ifndef QSWEEP_BENCH_WORK_H
#define QSWEEP_BENCH_WORK_H

#include "bench/result.h"
#include "sweep/cell.h"

struct work {
    struct cell  cell;
    int          part, n_parts; /* which of the cell's processes this is                                    */
    int          rank, attempt;
    int          n_threads; /* 0 = all cores the process may use                                        */
    bool         pin;       /* false where processes have to share cores                                */
    char         audio[MODEL_PATH_MAX];     /* the first sound of text t is kept as AUDIO-textT.wav; "" = none is   */
    char         reference[MODEL_PATH_MAX]; /* folder of the model before it was quantized; "" = the cell's own   */
    double       trace_period_ms; /* 0 = the default                                                          */
    struct fact *facts;           /* the launcher's own provenance, [n_facts], copied into the result         */
    size_t       n_facts;
};

void     work_free(struct work *w);
/* Append a fact (copied). */
status_t work_add_fact(struct work *w, const char *key, const char *value);
/* *json is malloc'ed and the caller's. */
status_t work_to_json(const struct work *w, char **json);
/* label names the source in messages. */
status_t work_from_json(const char *json, size_t size, const char *label, struct work *out);

/* Most samples a cell takes, and [*first, *end) of part `part` of n: contiguous, sizes differ by at most one. */
int  work_samples(const struct workload *w);
void work_share(const struct workload *w, int part, int n_parts, int *first, int *end);
/* Processes that get at least one sample: workload.processes, but no more than there are samples. */
int  work_parts(const struct workload *w);

#endif
