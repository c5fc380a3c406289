/* synth_weights.h — the random contents of every tensor of a synthetic checkpoint, produced in parallel, written in order. */
#ifndef QSWEEP_CHECKPOINT_SYNTH_WEIGHTS_H
#define QSWEEP_CHECKPOINT_SYNTH_WEIGHTS_H

#include "checkpoint/layout.h"
#include "checkpoint/noise.h"
#include "checkpoint/shapes.h"

/* What fills one tensor. */
struct filling {
    enum { FILL_NOISE, FILL_ROPE, FILL_MASK } kind;
    struct noise noise;        /* FILL_NOISE                                  */
    int64_t      side;         /* FILL_MASK: rows = columns                   */
    int64_t      positions;    /* FILL_ROPE                                   */
    int          pairs;
};

struct filling filling_for_weight(const struct shape *shape, uint64_t seed, const struct layout_entry *entry);
struct filling filling_for_codec(uint64_t seed, const struct codec_entry *entry);

/* Standard deviation of the logits that a head ("output.weight", tied "embeddings.weight", "fast_output.weight") gets. */
double head_sigma(const struct shape *shape, bool fast);

/* Hand all bytes of t to write(context, …) in order, in pieces. Stops at the first failure of write. */
status_t filling_write(const struct filling *filling, const struct tensor *t,
                       status_t (*write)(void *context, const void *data, size_t bytes), void *context);

#endif
