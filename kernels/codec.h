/* codec.h — the codec's operations on the GPU: convolutions as matrix products over time-major rows, and what stands
 * between them.
 *
 * Shapes   rows are [time][channels]; plain rows are FP32. Rows that a convolution reads have a form of their own:
 *            BF16   2 bytes a value
 *            SPLIT  4 bytes a value: of every 32 channels first the 32 values rounded to BF16, then their 32 remainders
 *                   rounded to BF16; channels is a multiple of 32. hi·hi + hi·lo + lo·hi is a product with 16 bits of
 *                   mantissa on BF16 tensor cores (three passes; TF32 has 11 bits and half the rate)
 *            PLAIN  FP32, for channels that are no multiple of 32
 * Contract device pointers d_*, 16-byte aligned; sizes checked by the caller; every output and input of a launch is
 *          apart unless said otherwise.
 * Numerics FP32 sums; a row's sum takes k in one order, whatever the number of rows of a launch.
 * Effects  *_launch enqueues on `stream` and never synchronizes.
 * Errors   the launch error; faults inside the kernel surface at the next synchronization. */
#ifndef QSWEEP_KERNELS_CODEC_H
#define QSWEEP_KERNELS_CODEC_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum codec_row_form { CODEC_FORM_PLAIN, CODEC_FORM_SPLIT, CODEC_FORM_BF16 };
enum codec_weight_format { CODEC_W_F32, CODEC_W_SPLIT, CODEC_W_BF16, CODEC_W_I8 };
enum codec_epilogue_act { CODEC_ACT_NONE, CODEC_ACT_GELU, CODEC_ACT_TANH };
enum codec_conv_path { CODEC_PATH_BEST, CODEC_PATH_WARP };

/* v = residual + gamma ⊙ act(scales ⊙ sum + bias); y = v; next = Snake(v). Outputs r of row t stand at t·rows + r; with
 * rows = s·channels that is row s·t + r/channels, so a transposed convolution needs no further step. */
struct codec_conv_args {
    int          path;   /* enum codec_conv_path; WARP: the plain kernel, for tests         */
    int          form;   /* of d_x                                                          */
    int          format; /* enum codec_weight_format; SPLIT with form SPLIT                 */
    int          n, rows, taps, cols, stride, dilation;
    const void  *d_x, *d_w;                   /* input rows t·stride + tap·dilation; w [rows][taps][cols]        */
    const float *d_scales, *d_bias, *d_gamma; /* [rows] or NULL; scales with CODEC_W_I8                          */
    const float *d_residual;                  /* [n][rows] or NULL; may be d_y                                   */
    int          act;                         /* enum codec_epilogue_act                                         */
    float       *d_y;                         /* plain, or NULL                                                  */
    void        *d_next;                      /* in next_form, or NULL                                           */
    int          next_form, channels;         /* channels of a row of d_next; divides rows                       */
    const float *d_alpha;                     /* Snake's [2][channels]: α, then 1/(α + 1e-9); NULL: next is v    */
};
cudaError_t codec_conv_launch(const struct codec_conv_args *a, cudaStream_t stream);

/* FP32 weights to the SPLIT form, in place; count is a multiple of 32. */
cudaError_t codec_split_launch(void *d_w, size_t count, cudaStream_t stream);
/* Plain rows to `form`; with d_alpha (as above) Snake on the way. */
cudaError_t codec_snake_launch(int form, void *d_y, const float *d_x, const float *d_alpha, int n, int channels,
                               cudaStream_t stream);
cudaError_t codec_depthwise_launch(float *d_y, const float *d_x, const float *d_w, const float *d_b, int n,
                                   int channels, int taps, cudaStream_t stream);
/* d_b NULL: RMSNorm; else LayerNorm. */
cudaError_t codec_norm_launch(int form, void *d_y, const float *d_x, const float *d_w, const float *d_b, int n,
                              int channels, float eps, cudaStream_t stream);
cudaError_t codec_silu_mul_launch(int form, void *d_y, const float *d_gate_up, int n, int width, cudaStream_t stream);

enum { CODEC_WINDOW_MAX = 11000 }; /* scores of a row fit 48 KB of shared memory */
/* Rotate q and k of qkv [n][3·dim] in place; d_new [window − 1][2·dim] gets the keys and values of the last window − 1
 * positions: of d_old, then of qkv. */
struct codec_rope_args {
    float       *d_qkv, *d_new;
    const float *d_old, *d_cos_sin;
    int          n, n_head, head_dim, window, pos0;
};
cudaError_t codec_rope_launch(const struct codec_rope_args *a, cudaStream_t stream);
/* y [n][dim] of the rotated qkv and the last `past` rows of d_old; window ≤ CODEC_WINDOW_MAX. */
struct codec_attention_args {
    int          form;
    void        *d_y;
    const float *d_qkv, *d_old;
    int          n, n_head, head_dim, window, past;
};
cudaError_t codec_attention_launch(const struct codec_attention_args *a, cudaStream_t stream);

/* The history of a causal layer: d_rows holds `past` free rows and then n new ones; the free ones get d_old [past], and
 * d_new [past] the last `past` rows of all. row_bytes is a multiple of 2. */
cudaError_t codec_join_launch(void *d_rows, void *d_new, const void *d_old, int past, int n, size_t row_bytes,
                              cudaStream_t stream);

/* y [n][latent] = z_0 + (((z_1 + z_2) + …)), z_k = W_k·table_k[code] + b_k, entries of 8 values; codes [books][n]
 * checked by the caller; table rows: first_rows of book 0, then other_rows of each other one. */
struct codec_dequantize_args {
    float         *d_y;
    const int32_t *d_codes;
    const float   *d_table, *d_w, *d_b; /* [...][8], [books][latent][8], [books][latent] */
    int            n, books, latent, first_rows, other_rows;
};
cudaError_t codec_dequantize_launch(const struct codec_dequantize_args *a, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
