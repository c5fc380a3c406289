/* weights.h — the checkpoint's tensors arranged as the decode graph uses them, in one precision.
 *
 * Matrices are [rows, cols] row-major, y = W·x. Host weights point into the checkpoint's map where the stored format is
 * the wanted one (no copy); widened or freshly quantized matrices are owned here. */
#ifndef QSWEEP_MODEL_WEIGHTS_H
#define QSWEEP_MODEL_WEIGHTS_H

#include "checkpoint/checkpoint.h"
#include "model/precision.h"

#include <stdint.h>

struct matrix {
    enum dtype   format;      /* DT_F32, DT_BF16 or DT_I8                                          */
    int          rows, cols;
    const void  *w;           /* [rows, cols]; alignment of one element only                       */
    const void  *scales;      /* DT_I8: [rows] of scale_dtype, y = bf16(bf16(q·x)·scale)           */
    enum dtype   scale_dtype; /* DT_BF16 or DT_F32                                                 */
    const float *bias;        /* [rows] widened exactly, or NULL. F32, BF16: y = bf16(sum + bias), one rounding;
                                 DT_I8: y = bf16(bf16(bf16(sum)·scale) + bias)                      */
};

struct block {
    struct matrix wqkv, wo, w1, w3, w2;            /* w1 gate, w3 up, w2 down */
    const float  *attention_norm, *ffn_norm;       /* [dim]                   */
    const float  *q_norm, *k_norm;                 /* [head_dim] or NULL      */
};

struct weights {
    struct model_config config;
    enum precision      precision;
    struct matrix       embeddings;          /* [vocab, dim]  BF16 or F32, never INT8                         */
    struct matrix       codebook_embeddings; /* [codebooks·codebook_size, dim]                                */
    struct matrix       fast_embeddings;     /* [codebook_size, fast_dim]                                     */
    struct matrix       output;              /* [vocab, dim]; with tied embeddings the embedding table itself */
    struct matrix       fast_project_in;     /* [fast_dim, dim] with bias; w NULL when it is the identity     */
    struct matrix       fast_output;         /* [codebook_size, fast_dim]                                     */
    struct block       *layers, *fast_layers;
    const float        *norm, *fast_norm;    /* [dim], [fast_dim]                                             */
    size_t              bytes, scale_bytes;  /* of everything above, as this precision stores it              */
    struct weights_owned *owned;             /* opaque                                                        */
};

/* Arrange c in `precision`: fp32 widens, bf16 takes (or rounds) BF16, int8 takes stored INT8 or quantizes with `recipe`
 * (RECIPE_NONE = torchao) using n_threads. The checkpoint must outlive *out. */
status_t weights_open(const struct checkpoint *c, enum precision precision, enum recipe recipe, int n_threads,
                      struct weights **out);
void weights_close(struct weights *w); /* NULL is accepted */

#endif
