/* cuda_codec.c — the codec's operations on a CUDA device: codec_ops.h over kernels/codec.h.
 *
 * FP32 mode keeps FP32 activations and multiplies in TF32; BF16 and INT8 modes keep BF16 activations. */
#include "backend/codec_ops.h"
#include "backend/cuda.h"
#include "backend/cuda_codec.h"
#include "kernels/codec.h"

#include <string.h>

static enum dtype cuda_activation(enum codec_mode mode)
{
    return mode == CODEC_FP32 ? DT_F32 : DT_BF16;
}

static void give(struct backend *be, const void *p)
{
    void *d;
    memcpy(&d, &p, sizeof d);
    backend_ops_of(be)->free(be, d);
}

static void cuda_release(struct backend *be, struct codec_matrix *m)
{
    give(be, m->w);
    give(be, m->scales);
    give(be, m->bias);
    *m = (struct codec_matrix){0};
}

static status_t put(struct backend *be, const void *host, size_t bytes, void **d_out)
{
    const struct backend_ops *ops = backend_ops_of(be);
    if (!host)
        return ST_OK;
    TRY(ops->alloc(be, MEM_CODEC, bytes, d_out));
    return ops->upload(be, *d_out, host, bytes);
}

static status_t cuda_adopt(struct backend *be, const struct codec_matrix *host, struct codec_matrix *out)
{
    size_t              bytes = (size_t)host->rows * (size_t)host->taps * (size_t)host->cols * dtype_size(host->format);
    size_t              row_bytes = (size_t)host->rows * sizeof(float);
    void               *parts[3]  = {NULL, NULL, NULL};
    status_t            st        = put(be, host->w, bytes, &parts[0]);
    struct codec_matrix m         = *host;
    if (st == ST_OK)
        st = put(be, host->scales, row_bytes, &parts[1]);
    if (st == ST_OK)
        st = put(be, host->bias, row_bytes, &parts[2]);
    m.w      = parts[0];
    m.scales = parts[1];
    m.bias   = parts[2];
    if (st == ST_OK)
        *out = m;
    else
        cuda_release(be, &m);
    return st;
}

static status_t cuda_copy(struct backend *be, void *d_dst, const void *d_src, size_t bytes)
{
    return CUDA_DO(cudaMemcpyAsync(d_dst, d_src, bytes, cudaMemcpyDeviceToDevice, cuda_of(be)->stream));
}

enum { SCRATCH_SLOT = 1 }; /* the BF16 activations' slot of the ops engine: never in use at the same time */

static status_t cuda_load(struct backend *be, enum dtype act, void *d_x, const float *x, size_t count)
{
    struct cuda *cu = cuda_of(be);
    if (act == DT_F32)
        return backend_ops_of(be)->upload(be, d_x, x, count * sizeof *x);
    void *d_wide;
    TRY(cuda_scratch(cu, SCRATCH_SLOT, count * sizeof *x, &d_wide));
    TRY(backend_ops_of(be)->upload(be, d_wide, x, count * sizeof *x));
    return CUDA_DO(codec_narrow_launch(d_x, d_wide, count, cu->stream));
}

static status_t cuda_store(struct backend *be, enum dtype act, float *x, const void *d_x, size_t count)
{
    struct cuda *cu = cuda_of(be);
    if (act == DT_F32)
        return backend_ops_of(be)->download(be, x, d_x, count * sizeof *x);
    void *d_wide;
    TRY(cuda_scratch(cu, SCRATCH_SLOT, count * sizeof *x, &d_wide));
    TRY(CUDA_DO(codec_widen_launch(d_wide, d_x, count, cu->stream)));
    return backend_ops_of(be)->download(be, x, d_wide, count * sizeof *x);
}

static status_t cuda_conv(struct backend *be, enum dtype act, void *d_y, const struct codec_matrix *w, const void *d_x, int n,
                          int stride, int dilation, const struct codec_epilogue *e)
{
    struct codec_conv_args a = {
        .bf16 = act == DT_BF16,
        .format = w->format == DT_F32 ? CODEC_W_F32 : w->format == DT_BF16 ? CODEC_W_BF16 : CODEC_W_I8,
        .n = n,
        .rows = w->rows,
        .taps = w->taps,
        .cols = w->cols,
        .stride = stride,
        .dilation = dilation,
        .d_x = d_x,
        .d_w = w->w,
        .d_scales = w->scales,
        .d_bias = w->bias,
        .d_gamma = e->d_gamma,
        .d_residual = e->d_residual,
        .act = e->act == ACT_GELU ? CODEC_ACT_GELU : e->act == ACT_TANH ? CODEC_ACT_TANH : CODEC_ACT_NONE,
        .d_y = d_y,
    };
    return CUDA_DO(codec_conv_launch(&a, cuda_of(be)->stream));
}

static status_t cuda_snake(struct backend *be, enum dtype act, void *d_y, const void *d_x, const float *d_alpha, int n,
                           int channels)
{
    return CUDA_DO(codec_snake_launch(act == DT_BF16, d_y, d_x, d_alpha, n, channels, cuda_of(be)->stream));
}

static status_t cuda_depthwise(struct backend *be, enum dtype act, void *d_y, const void *d_x, const float *d_w,
                               const float *d_b, int n, int channels, int taps)
{
    return CUDA_DO(codec_depthwise_launch(act == DT_BF16, d_y, d_x, d_w, d_b, n, channels, taps, cuda_of(be)->stream));
}

static status_t cuda_layernorm(struct backend *be, enum dtype act, void *d_y, const void *d_x, const float *d_w,
                               const float *d_b, int n, int channels, float eps)
{
    return CUDA_DO(codec_norm_launch(act == DT_BF16, d_y, d_x, d_w, d_b, n, channels, eps, cuda_of(be)->stream));
}

static status_t cuda_rmsnorm(struct backend *be, enum dtype act, void *d_y, const void *d_x, const float *d_w, int n,
                             int channels, float eps)
{
    return CUDA_DO(codec_norm_launch(act == DT_BF16, d_y, d_x, d_w, NULL, n, channels, eps, cuda_of(be)->stream));
}

static status_t cuda_silu_mul(struct backend *be, enum dtype act, void *d_y, const void *d_gate_up, int n, int width)
{
    return CUDA_DO(codec_silu_mul_launch(act == DT_BF16, d_y, d_gate_up, n, width, cuda_of(be)->stream));
}

static status_t cuda_attention(struct backend *be, enum dtype act, void *d_y, void *d_qkv, void *d_kv,
                               const struct codec_attention *a, int n, int pos0, int past)
{
    struct cuda *cu   = cuda_of(be);
    int          bf16 = act == DT_BF16;
    if ((size_t)(a->head_dim + a->window) * sizeof(float) > 48 * 1024)
        return FAIL(ST_EUNSUPPORTED, "codec on cuda: a window of %d does not fit shared memory", a->window);
    TRY(CUDA_DO(codec_rope_launch(bf16, d_qkv, d_kv, a->d_cos_sin, n, a->n_head, a->head_dim, pos0, past, cu->stream)));
    return CUDA_DO(codec_attention_launch(bf16, d_y, d_qkv, d_kv, n, a->n_head, a->head_dim, a->window, past, cu->stream));
}

const struct codec_ops cuda_codec_ops = {
    .activation = cuda_activation,
    .adopt = cuda_adopt,
    .release = cuda_release,
    .copy = cuda_copy,
    .load = cuda_load,
    .store = cuda_store,
    .conv = cuda_conv,
    .snake = cuda_snake,
    .depthwise = cuda_depthwise,
    .layernorm = cuda_layernorm,
    .rmsnorm = cuda_rmsnorm,
    .silu_mul = cuda_silu_mul,
    .attention = cuda_attention,
};
