/* cuda_codec.c — the codec's operations on a CUDA device: codec_ops.h over kernels/codec.h.
 *
 * FP32 mode multiplies values split into two BF16 halves; BF16 and INT8 modes round what convolutions read to BF16. The
 * residual stream is FP32 in all of them. */
#include "backend/codec_ops.h"
#include "backend/cuda.h"
#include "backend/cuda_codec.h"
#include "kernels/codec.h"

#include <string.h>

static enum codec_form cuda_input(enum codec_mode mode)
{
    return mode == CODEC_FP32 ? ROWS_FP32 : ROWS_BF16;
}

/* How rows of so many channels stand on this device (kernels/codec.h). */
static int form_of(enum codec_form form, int channels)
{
    return form == ROWS_BF16                         ? CODEC_FORM_BF16
           : form == ROWS_FP32 && channels % 32 == 0 ? CODEC_FORM_SPLIT
                                                     : CODEC_FORM_PLAIN;
}

/* Whether an FP32 matrix is kept in halves for the tensor cores; narrow ones run in FP32. */
static bool is_split(const struct codec_matrix *m)
{
    return m->format == DT_F32 && m->cols % 32 == 0 && m->rows >= 16 && m->rows % 2 == 0;
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
    void               *parts[3] = {NULL, NULL, NULL};
    status_t            st = put(be, host->w, bytes, &parts[0]);
    struct codec_matrix m = *host;
    if (st == ST_OK)
        st = put(be, host->scales, row_bytes, &parts[1]);
    if (st == ST_OK)
        st = put(be, host->bias, row_bytes, &parts[2]);
    m.w = parts[0];
    m.scales = parts[1];
    m.bias = parts[2];
    if (st == ST_OK && is_split(&m))
        st = CUDA_DO(
            codec_split_launch(parts[0], (size_t)m.rows * (size_t)m.taps * (size_t)m.cols, cuda_of(be)->stream));
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

static status_t cuda_zero(struct backend *be, void *d, size_t bytes)
{
    return CUDA_DO(cudaMemsetAsync(d, 0, bytes, cuda_of(be)->stream));
}

enum { SCRATCH_SLOT = 1 }; /* the BF16 activations' slot of the ops engine: never in use at the same time */

static status_t cuda_load(struct backend *be, enum codec_form form, void *d_x, const float *x, int n)
{
    struct cuda *cu = cuda_of(be);
    void        *d_wide;
    TRY(cuda_scratch(cu, SCRATCH_SLOT, (size_t)n * sizeof *x, &d_wide));
    TRY(backend_ops_of(be)->upload(be, d_wide, x, (size_t)n * sizeof *x));
    return CUDA_DO(codec_snake_launch(form_of(form, 1), d_x, d_wide, NULL, n, 1, cu->stream));
}

static status_t cuda_dequantize(struct backend *be, float *d_y, const struct codec_books *b, const int32_t *codes,
                                int n)
{
    struct cuda *cu = cuda_of(be);
    void        *d_codes;
    TRY(cuda_scratch(cu, SCRATCH_SLOT, (size_t)b->count * (size_t)n * sizeof *codes, &d_codes));
    TRY(backend_ops_of(be)->upload(be, d_codes, codes, (size_t)b->count * (size_t)n * sizeof *codes));
    struct codec_dequantize_args a = {.d_y = d_y,
                                      .d_codes = d_codes,
                                      .d_table = b->d_table,
                                      .d_w = b->d_w,
                                      .d_b = b->d_b,
                                      .n = n,
                                      .books = b->count,
                                      .latent = b->latent,
                                      .first_rows = b->first_rows,
                                      .other_rows = b->other_rows};
    return CUDA_DO(codec_dequantize_launch(&a, cu->stream));
}

static status_t cuda_join(struct backend *be, void *d_rows, void *d_new, const void *d_old, int past, int n,
                          size_t row_bytes)
{
    return CUDA_DO(codec_join_launch(d_rows, d_new, d_old, past, n, row_bytes, cuda_of(be)->stream));
}

static status_t cuda_conv(struct backend *be, enum codec_form form, const struct codec_matrix *w, const void *d_x,
                          int n, int stride, int dilation, const struct codec_epilogue *e)
{
    int                    channels = e->channels ? e->channels : w->rows;
    struct codec_conv_args a = {
        .form = form_of(form, w->cols),
        .format = is_split(w)            ? CODEC_W_SPLIT
                  : w->format == DT_F32  ? CODEC_W_F32
                  : w->format == DT_BF16 ? CODEC_W_BF16
                                         : CODEC_W_I8,
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
        .act = e->act == ACT_GELU   ? CODEC_ACT_GELU
               : e->act == ACT_TANH ? CODEC_ACT_TANH
                                    : CODEC_ACT_NONE,
        .d_y = e->d_y,
        .d_next = e->d_next,
        .next_form = form_of(form, channels),
        .channels = channels,
        .d_alpha = e->d_alpha,
    };
    return CUDA_DO(codec_conv_launch(&a, cuda_of(be)->stream));
}

static status_t cuda_snake(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_alpha,
                           int n, int channels)
{
    return CUDA_DO(codec_snake_launch(form_of(form, channels), d_y, d_x, d_alpha, n, channels, cuda_of(be)->stream));
}

static status_t cuda_depthwise(struct backend *be, float *d_y, const float *d_x, const float *d_w, const float *d_b,
                               int n, int channels, int taps)
{
    return CUDA_DO(codec_depthwise_launch(d_y, d_x, d_w, d_b, n, channels, taps, cuda_of(be)->stream));
}

static status_t cuda_layernorm(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_w,
                               const float *d_b, int n, int channels, float eps)
{
    return CUDA_DO(
        codec_norm_launch(form_of(form, channels), d_y, d_x, d_w, d_b, n, channels, eps, cuda_of(be)->stream));
}

static status_t cuda_rmsnorm(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_w,
                             int n, int channels, float eps)
{
    return CUDA_DO(
        codec_norm_launch(form_of(form, channels), d_y, d_x, d_w, NULL, n, channels, eps, cuda_of(be)->stream));
}

static status_t cuda_silu_mul(struct backend *be, enum codec_form form, void *d_y, const float *d_gate_up, int n,
                              int width)
{
    return CUDA_DO(codec_silu_mul_launch(form_of(form, width), d_y, d_gate_up, n, width, cuda_of(be)->stream));
}

static status_t cuda_attention(struct backend *be, enum codec_form form, void *d_y, float *d_qkv, float *d_new,
                               const float *d_old, const struct codec_attention *a, int n, int pos0, int past)
{
    struct cuda *cu = cuda_of(be);
    if (a->window > CODEC_WINDOW_MAX)
        return FAIL(ST_EUNSUPPORTED, "codec on cuda: a window of %d does not fit shared memory", a->window);
    struct codec_rope_args      rope = {.d_qkv = d_qkv,
                                        .d_new = d_new,
                                        .d_old = d_old,
                                        .d_cos_sin = a->d_cos_sin,
                                        .n = n,
                                        .n_head = a->n_head,
                                        .head_dim = a->head_dim,
                                        .window = a->window,
                                        .pos0 = pos0};
    struct codec_attention_args attend = {.form = form_of(form, a->n_head * a->head_dim),
                                          .d_y = d_y,
                                          .d_qkv = d_qkv,
                                          .d_old = d_old,
                                          .n = n,
                                          .n_head = a->n_head,
                                          .head_dim = a->head_dim,
                                          .window = a->window,
                                          .past = past};
    TRY(CUDA_DO(codec_rope_launch(&rope, cu->stream)));
    return CUDA_DO(codec_attention_launch(&attend, cu->stream));
}

const struct codec_ops cuda_codec_ops = {
    .input = cuda_input,
    .adopt = cuda_adopt,
    .release = cuda_release,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .load = cuda_load,
    .dequantize = cuda_dequantize,
    .join = cuda_join,
    .conv = cuda_conv,
    .snake = cuda_snake,
    .depthwise = cuda_depthwise,
    .layernorm = cuda_layernorm,
    .rmsnorm = cuda_rmsnorm,
    .silu_mul = cuda_silu_mul,
    .attention = cuda_attention,
};
