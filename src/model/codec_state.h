/* codec_state.h — an open codec: what codec.c opens and codec_path.c runs. */
#ifndef QSWEEP_MODEL_CODEC_STATE_H
#define QSWEEP_MODEL_CODEC_STATE_H

#include "backend/codec_ops.h"
#include "model/codec.h"
#include "model/codec_weights.h"

enum { UNIT_TAPS = 7, DEPTHWISE_TAPS = 7 };
static const int codec_dilations[CODEC_UNITS] = {1, 3, 9};

/* The inputs a causal layer still needs: the last `rows` rows of `width`, zero at the start of an utterance. There are
 * two places for them, so that a chunk reads the old ones while it writes the new. */
struct past {
    int    rows, width;
    size_t row_bytes;
    void  *d[2];
    int    now;
};

struct unit_state {
    struct past conv1;
};

struct block_state {
    struct past       resample;
    struct unit_state units[CODEC_UNITS];
};

struct path_state {
    struct past       *kv;     /* [layers] of the transformer at 21.5 Hz          */
    struct past       *top_kv; /* encoder: [layers] of the transformer at its end */
    struct past        resample[CODEC_DOWNSAMPLES], next[CODEC_DOWNSAMPLES];
    struct past        in, out;
    struct block_state blocks[CODEC_RATES];
    int                position; /* frames so far */
};

struct codec {
    struct backend           *be;
    const struct backend_ops *ops;
    const struct codec_ops   *codec;
    struct codec_weights     *w;
    struct codec_options      options;
    enum codec_form           form; /* of the rows that convolutions read */
    int                       hop;
    struct path_state         decode, encode;
    void                     *in, *next; /* rows that a convolution reads, history in front, and those it makes */
    float                    *x;         /* plain rows: the residual stream */
    struct codec_books        books;
    float                    *d_cos_sin;
    int                       cos_sin_rows;
    void                    **owned; /* device allocations to free */
    size_t                    n_owned, owned_capacity;
    float                    *d_latent; /* plain [4·chunk][latent] of the last push */
    int                       latent_rows;
};

#endif
