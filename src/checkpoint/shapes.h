/* shapes.h — the named models that `qsweep synth` can make. */
#ifndef QSWEEP_CHECKPOINT_SHAPES_H
#define QSWEEP_CHECKPOINT_SHAPES_H

#include "checkpoint/codec_layout.h"
#include "checkpoint/config.h"

struct shape {
    const char               *name;
    const char               *summary;
    struct model_config       config;
    const char               *initializer_range; /* as config.json spells it; training only, informative      */
    int                       n_ranks;           /* of tokenizer.tiktoken; 0 = no tokenizer files (S2)         */
    const struct codec_dims  *codec;
    /* Standard deviation of the logits that the heads are scaled to, in hundredths: what makes the nucleus at
     * temperature 0.7, top-p 0.8 tens of entries wide (synth.h says how it follows). */
    int                       head_sigma, fast_sigma;
};

/* NULL-terminated, smallest first. */
extern const struct shape *const shapes[];

/* NULL when there is none of this name. */
const struct shape *shape_find(const char *name);

#endif
