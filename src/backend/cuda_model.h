/* cuda_model.h — a model's weights on the device as the fused engines read them: every matrix packed as tensor-core
 * fragments in one arena, scales in another, embedding tables row-major. */
#ifndef QSWEEP_BACKEND_CUDA_MODEL_H
#define QSWEEP_BACKEND_CUDA_MODEL_H

#include "backend/cuda.h"
#include "kernels/linear.h"

/* One transformer block. Norms are padded with zeros to linear_padded_cols(dim). */
struct cuda_layer {
    struct linear wqkv, wo, w13, w2;
    float        *d_attention_norm, *d_ffn_norm, *d_q_norm, *d_k_norm; /* the last two NULL without QK norm */
};

struct cuda_model {
    struct backend     *be;
    struct model_config config;
    struct cuda_layer  *slow, *fast;
    struct linear       head;            /* the rows of the head mode, in its order      */
    struct linear       residual_head;   /* 1024 rows (S1) or codebook_size (S2)         */
    struct linear       project_in;      /* d_w NULL when it is the identity             */
    float              *d_norm, *d_fast_norm;
    uint16_t           *d_embeddings, *d_codebook_embeddings, *d_fast_embeddings; /* BF16 [rows][dim] */
    uint32_t           *d_slow_rope, *d_fast_rope; /* [positions][head_dim/2] BF16 cosine | sine << 16 */
    int                 head_rows, residual_rows;
    void               *d_arena, *d_scale_arena, *d_stage;
    size_t              step_weight_bytes; /* read once a frame: slow stack, head, every fast pass */
};

/* Upload and pack w for decoding with these options. ST_EUNSUPPORTED for what the fused engines do not decode (FP32). */
status_t cuda_model_open(struct backend *be, const struct weights *w, const struct decode_options *options,
                         struct cuda_model **out);
void     cuda_model_close(struct cuda_model *m); /* NULL is accepted */

#endif
