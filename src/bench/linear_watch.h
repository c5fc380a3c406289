/* linear_watch.h — what quantization does to each linear layer, seen while a reference decodes: the same inputs through
 * both weights, outputs compared.
 *
 * It stands between a decoder and its backend: the backend's table of functions is replaced by one that passes every call
 * on, notes matrices as they are adopted and, while switched on, repeats each product of the reference with the mode's
 * matrix. Costs time and is meant for quality, never for a measured run. */
#ifndef QSWEEP_BENCH_LINEAR_WATCH_H
#define QSWEEP_BENCH_LINEAR_WATCH_H

#include "backend/backend.h"
#include "bench/result.h"

struct linear_watch;

/* Watch two open backends (not the same one) before their decoders are opened on these weights of one model. Both
 * backends and weights must outlive the watch, and both decoders must be closed before it. */
status_t linear_watch_open(struct backend *reference, const struct weights *reference_weights, struct backend *mode,
                           const struct weights *mode_weights, struct linear_watch **out);
/* Gives the backends their own tables back; NULL is accepted. */
void linear_watch_close(struct linear_watch *w);

/* Compare products from now on, or no longer. */
void linear_watch_switch(struct linear_watch *w, bool on);

/* A row for every linear layer whose weights or outputs differ, in the order of the model; malloc'ed, [*n]. Weights are
 * compared here, which reads them all once. */
status_t linear_watch_rows(struct linear_watch *w, struct quality_linear **rows, size_t *n);

#endif
