/* ops.h — the operations of backend.h one by one, for the `ops` engine: plain kernels, FP32 activations, the same
 * roundings as the scalar twin. All enqueue on `stream` and return the launch error. `bf16` = ROUND_BF16. */
#ifndef QSWEEP_KERNELS_OPS_H
#define QSWEEP_KERNELS_OPS_H

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum ops_format { OPS_F32, OPS_BF16, OPS_I8 };

struct ops_matrix { /* row-major on the device */
    const void *d_w, *d_scales;
    const float *d_bias;
    enum ops_format format;
    bool scales_f32;
    int rows, cols;
};

struct ops_cache { /* struct kv_cache of backend.h */
    enum ops_format format;
    int   n_kv_heads, max_len, head_dim;
    void *d_k, *d_v;
    float *d_k_scale, *d_v_scale;
};

struct ops_rope {
    int n_head, n_kv_heads, head_dim;
    const float *d_q_norm, *d_k_norm, *d_cos_sin;
    float eps;
};

struct ops_embed {
    struct ops_matrix embeddings, codebook_embeddings;
    int num_codebooks, codebook_size, semantic_begin, semantic_end;
    bool scale;
};

cudaError_t ops_embed_launch(const struct ops_embed *e, const int32_t *d_cols, int n, float *d_x, bool bf16, cudaStream_t stream);
cudaError_t ops_gather_launch(const struct ops_matrix *table, const int32_t *d_ids, int n, float *d_x, bool bf16, cudaStream_t stream);
cudaError_t ops_rmsnorm_launch(float *d_y, const float *d_x, const float *d_w, int n, int dim, float eps, bool bf16, cudaStream_t stream);
/* One warp per output: any n, sums in one order. */
cudaError_t ops_matmul_launch(float *d_y, int ldy, const struct ops_matrix *w, int row0, int rows, const float *d_x, int n, bool bf16, cudaStream_t stream);
/* Round, scale and bias sums that another kernel left in y. */
cudaError_t ops_finish_launch(float *d_y, int ldy, const struct ops_matrix *w, int row0, int rows, int n, bool bf16, cudaStream_t stream);
cudaError_t ops_to_bf16_launch(uint16_t *d_y, const float *d_x, size_t n, cudaStream_t stream);
cudaError_t ops_widen_int8_launch(uint16_t *d_y, const int8_t *d_x, size_t n, cudaStream_t stream); /* exact */
cudaError_t ops_rope_append_launch(float *d_qkv, const struct ops_rope *r, const struct ops_cache *kv, const int *d_seq, const int *d_pos, int n, bool bf16, cudaStream_t stream);
cudaError_t ops_attention_launch(float *d_y, const float *d_qkv, int n_head, const struct ops_cache *kv, const int *d_seq, const int *d_pos, int n, bool fast, bool bf16, cudaStream_t stream);
cudaError_t ops_silu_mul_launch(float *d_y, const float *d_gate, const float *d_up, size_t n, bool bf16, cudaStream_t stream);
cudaError_t ops_add_launch(float *d_x, const float *d_y, size_t n, bool bf16, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
