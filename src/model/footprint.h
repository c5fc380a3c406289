/* footprint.h — how much device memory a model will take, computed from its configuration before anything is loaded. */
#ifndef QSWEEP_MODEL_FOOTPRINT_H
#define QSWEEP_MODEL_FOOTPRINT_H

#include "checkpoint/config.h"
#include "model/precision.h"

#include <stddef.h>

/* Bytes. kv is for one sequence of max_seq_len positions (and the fast stack's num_codebooks); norms and biases count as
 * the engines hold them, in FP32. */
struct footprint {
    size_t weights, scales, kv;
};

/* recipe decides the scales of INT8 (RECIPE_NONE = torchao) and is ignored otherwise. */
struct footprint footprint_of(const struct model_config *config, enum precision precision, enum recipe recipe,
                              enum kv_format kv, int max_seq_len);

/* Parameters of codec.pth's decode path (codebooks, output projections, post-transformer, upsampling, decoder); 0 when
 * dir has no codec.pth. */
status_t footprint_codec_parameters(const char *dir, long long *out);

/* What a GPU loses to the driver's context before our first byte: 0.5 to 0.6 GB on current cards with CUDA 12. */
#define FOOTPRINT_CONTEXT_BYTES 600000000ull

struct card {
    const char *name;
    int         mib; /* as NVML reports the total */
};

/* NULL-name terminated, by memory. */
extern const struct card cards[];

/* Sequences of full length that fit beside weights and codec: 0 when not even one does. */
long footprint_batch(const struct footprint *f, size_t codec_bytes, const struct card *card);

#endif
