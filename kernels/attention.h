/* attention.h — attention of the decode frame: per-head norm, RoPE, append to the cache, softmax(q·kᵀ/√d)·v.
 *
 * Shapes   qkv [tokens][stride] BF16, columns q | k | v; y [tokens][y_stride] BF16, n_head · head_dim wide.
 * Cache    k, v [sequence][kv_head][max_len][row] of BF16 or INT8, row = head_dim rounded up to a power of two ≥ 16;
 *          INT8 has one FP32 scale per (sequence, kv_head, position), absmax/127, round half to even.
 * Slow     The positions of a token are cut into chunks whose length depends on its own context alone; each chunk gives
 *          a partial softmax, and the block that arrives last adds them in order of position. Bit-repeatable, and
 *          independent of the batch.
 * Fast     At most 32 positions, the reference's explicit BF16 products (scores, probabilities rounded too). */
#ifndef QSWEEP_KERNELS_ATTENTION_H
#define QSWEEP_KERNELS_ATTENTION_H

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { ATTENTION_MAX_CHUNKS = 24, ATTENTION_MAX_FAST = 32 };

struct attention_layer {
    int             n_head, n_kv_heads, head_dim, row; /* row: attention_row(head_dim)             */
    int             max_len;
    int             int8;
    void           *d_k, *d_v;                         /* this layer's cache                        */
    float          *d_k_scale, *d_v_scale;             /* INT8 only                                 */
    const float    *d_q_norm, *d_k_norm;               /* [head_dim] or NULL                        */
    float           eps;
    const uint32_t *d_rope;                            /* [max_len][head_dim/2] cos | sin << 16 BF16 */
};

struct attention_call {
    uint16_t       *d_qkv;
    int             qkv_stride;
    uint16_t       *d_y;
    int             y_stride;
    const int      *d_seq, *d_pos; /* [tokens]; d_seq NULL: token i is sequence i                        */
    int             tokens;
    float          *d_partial;     /* attention_partial_floats() of this many tokens                     */
    unsigned       *d_arrived;     /* [tokens · n_head], zero before the first call, left zero           */
    bool            append;        /* false: q is rotated and k, v are in the cache already              */
    bool            pdl, late;     /* late: let the next kernel start after our wait */
};

int    attention_row(int head_dim);
size_t attention_partial_floats(const struct attention_layer *a, int tokens);
/* cudaErrorInvalidValue for a head size over 256. */
cudaError_t attention_launch(const struct attention_layer *a, const struct attention_call *call, cudaStream_t stream);
/* Norm and rotate q in place, norm, rotate and append k and v: prefill's separate step. */
cudaError_t attention_append_launch(const struct attention_layer *a, const struct attention_call *call,
                                    cudaStream_t stream);

/* Fast stack: sequence b's tokens are rows b·n_new … of qkv, at positions first … first + n_new − 1 (BF16 cache). */
cudaError_t attention_fast_launch(const struct attention_layer *a, const struct attention_call *call, int n_seq, int n_new,
                                  int first, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
