/* codec.h — the codec's operations on the GPU: convolutions as matrix products over time-major rows, and what stands
 * between them.
 *
 * Shapes   activations [rows in time][channels] of FP32 or BF16 (`bf16`); weights [rows][taps][cols]; see codec_ops.h.
 * Contract device pointers d_*, 16-byte aligned; sizes checked by the caller.
 * Numerics FP32 activations: TF32 products of inputs rounded to nearest, FP32 sums. BF16 activations: BF16 products, FP32
 *          sums, one rounding of the result. A row's sum takes k in one order, whatever the number of rows.
 * Effects  *_launch enqueues on `stream` and never synchronizes.
 * Errors   the launch error; faults inside the kernel surface at the next synchronization. */
#ifndef QSWEEP_KERNELS_CODEC_H
#define QSWEEP_KERNELS_CODEC_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum codec_weight_format { CODEC_W_F32, CODEC_W_BF16, CODEC_W_I8 };
enum codec_epilogue_act { CODEC_ACT_NONE, CODEC_ACT_GELU, CODEC_ACT_TANH };

struct codec_conv_args {
    int          bf16;                  /* activations are BF16, else FP32                               */
    int          format;                /* enum codec_weight_format                                      */
    int          n, rows, taps, cols, stride, dilation;
    const void  *d_x, *d_w;
    const float *d_scales, *d_bias, *d_gamma; /* [rows] or NULL; scales with CODEC_W_I8                  */
    const void  *d_residual;            /* [n][rows] of the activation type, or NULL; may be d_y         */
    int          act;                   /* enum codec_epilogue_act                                       */
    void        *d_y;                   /* [n][rows]; FP32 when rows is 1                                */
};
cudaError_t codec_conv_launch(const struct codec_conv_args *a, cudaStream_t stream);

cudaError_t codec_snake_launch(int bf16, void *d_y, const void *d_x, const float *d_alpha, int n, int channels,
                               cudaStream_t stream);
cudaError_t codec_depthwise_launch(int bf16, void *d_y, const void *d_x, const float *d_w, const float *d_b, int n,
                                   int channels, int taps, cudaStream_t stream);
/* d_b NULL: RMSNorm; else LayerNorm. */
cudaError_t codec_norm_launch(int bf16, void *d_y, const void *d_x, const float *d_w, const float *d_b, int n, int channels,
                              float eps, cudaStream_t stream);
cudaError_t codec_silu_mul_launch(int bf16, void *d_y, const void *d_gate_up, int n, int width, cudaStream_t stream);
/* Rotate q and k in place and append k|v to kv; see codec_ops.h. */
cudaError_t codec_rope_launch(int bf16, void *d_qkv, void *d_kv, const float *d_cos_sin, int n, int n_head, int head_dim,
                              int pos0, int past, cudaStream_t stream);
/* (head_dim + window) · 4 bytes of shared memory must fit 48 KB. */
cudaError_t codec_attention_launch(int bf16, void *d_y, const void *d_qkv, const void *d_kv, int n, int n_head, int head_dim,
                                   int window, int past, cudaStream_t stream);
/* Convert count values between FP32 and BF16 on the device. */
cudaError_t codec_narrow_launch(void *d_bf16, const float *d_x, size_t count, cudaStream_t stream);
cudaError_t codec_widen_launch(float *d_y, const void *d_bf16, size_t count, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
