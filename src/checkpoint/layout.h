/* layout.h — which tensors a model of a given configuration has: names, shapes, order.
 *
 * Source: fishaudio/fish-speech, llama.py (d3df505), DualARTransformer; the order is that of its state_dict(). */
#ifndef QSWEEP_CHECKPOINT_LAYOUT_H
#define QSWEEP_CHECKPOINT_LAYOUT_H

#include "checkpoint/config.h"
#include "checkpoint/tensor.h"

enum layout_kind {
    LAYOUT_EMBEDDING, /* a table that is gathered from; never quantized          */
    LAYOUT_LINEAR,    /* weight of a Linear [out, in]: what INT8 replaces        */
    LAYOUT_BIAS,
    LAYOUT_NORM,      /* RMSNorm weight                                          */
};

struct layout_entry {
    char             name[64];
    enum layout_kind kind;
    int              rank; /* 1 or 2 */
    int64_t          shape[2];
};

struct layout {
    struct layout_entry *entries;
    size_t               count;
};

status_t layout_build(const struct model_config *config, struct layout *out);
void     layout_free(struct layout *layout);

/* Elements of one entry. */
int64_t layout_elements(const struct layout_entry *entry);

#endif
