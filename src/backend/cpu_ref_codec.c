/* cpu_ref_codec.c — the codec's operations as plain loops: the twin that the fast ones are compared with. */
#include "backend/backend.h"
#include "backend/codec_ops.h"
#include "backend/cpu_ref_codec.h"
#include "model/bf16.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static enum codec_form ref_input(enum codec_mode mode)
{
    (void)mode;
    return ROWS_PLAIN;
}

static size_t matrix_bytes(const struct codec_matrix *m)
{
    return (size_t)m->rows * (size_t)m->taps * (size_t)m->cols * dtype_size(m->format);
}

static status_t ref_adopt(struct backend *be, const struct codec_matrix *host, struct codec_matrix *out)
{
    const struct backend_ops *ops = backend_ops_of(be);
    struct codec_matrix       m = *host;
    void                     *parts[3] = {NULL, NULL, NULL};
    const void               *from[3] = {host->w, host->scales, host->bias};
    size_t bytes[3] = {matrix_bytes(host), (size_t)host->rows * sizeof(float), (size_t)host->rows * sizeof(float)};
    for (int i = 0; i < 3; i++) {
        if (!from[i])
            continue;
        status_t st = ops->alloc(be, MEM_CODEC, bytes[i], &parts[i]);
        if (st == ST_OK)
            st = ops->upload(be, parts[i], from[i], bytes[i]);
        if (st != ST_OK) {
            for (int k = 0; k < 3; k++)
                ops->free(be, parts[k]);
            return st;
        }
    }
    m.w = parts[0];
    m.scales = parts[1];
    m.bias = parts[2];
    *out = m;
    return ST_OK;
}

/* A codec_matrix points at memory it owns through const pointers; this is the one place that gives it back. */
static void give(struct backend *be, const void *p)
{
    void *mutable_p;
    memcpy(&mutable_p, &p, sizeof mutable_p);
    backend_ops_of(be)->free(be, mutable_p);
}

static void ref_release(struct backend *be, struct codec_matrix *m)
{
    give(be, m->w);
    give(be, m->scales);
    give(be, m->bias);
    *m = (struct codec_matrix){0};
}

static status_t ref_copy(struct backend *be, void *d_dst, const void *d_src, size_t bytes)
{
    (void)be;
    memcpy(d_dst, d_src, bytes);
    return ST_OK;
}

static status_t ref_zero(struct backend *be, void *d, size_t bytes)
{
    (void)be;
    memset(d, 0, bytes);
    return ST_OK;
}

static status_t ref_load(struct backend *be, enum codec_form form, void *d_x, const float *x, int n)
{
    (void)form;
    return ref_copy(be, d_x, x, (size_t)n * sizeof *x);
}

static status_t ref_dequantize(struct backend *be, float *d_y, const struct codec_books *b, const int32_t *codes, int n)
{
    (void)be;
    size_t latent = (size_t)b->latent;
    for (int t = 0; t < n; t++) {
        float *sum = d_y + (size_t)t * latent;
        memset(sum, 0, latent * sizeof *sum);
        for (int i = 1; i <= b->count; i++) {
            int    k = i % b->count; /* the first book last: z_0 + (the others) */
            size_t row = (size_t)(k ? b->first_rows + (k - 1) * b->other_rows : 0) +
                         (size_t)codes[(size_t)k * (size_t)n + (size_t)t];
            const float *v = b->d_table + row * 8, *w = b->d_w + (size_t)k * latent * 8,
                        *bias = b->d_b + (size_t)k * latent;
            for (size_t o = 0; o < latent; o++) {
                float z = 0;
                for (int e = 0; e < 8; e++)
                    z += w[o * 8 + (size_t)e] * v[e];
                sum[o] += z + bias[o];
            }
        }
    }
    return ST_OK;
}

static status_t ref_join(struct backend *be, void *d_rows, void *d_new, const void *d_old, int past, int n,
                         size_t row_bytes)
{
    (void)be;
    memcpy(d_rows, d_old, (size_t)past * row_bytes);
    memcpy(d_new, (const char *)d_rows + (size_t)n * row_bytes, (size_t)past * row_bytes);
    return ST_OK;
}

static float weight(const struct codec_matrix *m, size_t i)
{
    switch (m->format) {
    case DT_F32:
        return ((const float *)m->w)[i];
    case DT_BF16:
        return bf16_to_f32(((const bf16_t *)m->w)[i]);
    default:
        return ((const int8_t *)m->w)[i];
    }
}

float codec_activate(enum codec_activation act, float x)
{
    switch (act) {
    case ACT_GELU: /* the exact form: x·Φ(x) */
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case ACT_TANH:
        return tanhf(x);
    default:
        return x;
    }
}

static float snake(float v, const float *alpha, size_t channel, size_t channels)
{
    float s = sinf(alpha[channel] * v);
    return v + s * s * alpha[channels + channel];
}

static status_t ref_conv(struct backend *be, enum codec_form form, const struct codec_matrix *w, const void *d_x, int n,
                         int stride, int dilation, const struct codec_epilogue *e)
{
    (void)be, (void)form;
    const float *x = d_x;
    float       *next = e->d_next;
    size_t cols = (size_t)w->cols, taps = (size_t)w->taps, channels = (size_t)(e->channels ? e->channels : w->rows);
    for (int t = 0; t < n; t++)
        for (int r = 0; r < w->rows; r++) {
            float sum = 0;
            for (size_t k = 0; k < taps; k++) {
                const float *row = x + ((size_t)t * (size_t)stride + k * (size_t)dilation) * cols;
                for (size_t i = 0; i < cols; i++) {
                    float v = w->format == DT_F32 ? row[i] : bf16_round(row[i]);
                    sum += weight(w, ((size_t)r * taps + k) * cols + i) * v;
                }
            }
            if (w->scales)
                sum *= w->scales[r];
            if (w->bias)
                sum += w->bias[r];
            sum = codec_activate(e->act, sum);
            if (e->d_gamma)
                sum *= e->d_gamma[r];
            size_t at = (size_t)t * (size_t)w->rows + (size_t)r;
            if (e->d_residual)
                sum = e->d_residual[at] + sum;
            if (e->d_y)
                e->d_y[at] = sum;
            if (next)
                next[at] = e->d_alpha ? snake(sum, e->d_alpha, (size_t)r % channels, channels) : sum;
        }
    return ST_OK;
}

static status_t ref_snake(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_alpha,
                          int n, int channels)
{
    (void)be, (void)form;
    float *y = d_y;
    for (size_t t = 0; t < (size_t)n; t++)
        for (size_t c = 0; c < (size_t)channels; c++)
            y[t * (size_t)channels + c] = snake(d_x[t * (size_t)channels + c], d_alpha, c, (size_t)channels);
    return ST_OK;
}

static status_t ref_depthwise(struct backend *be, float *y, const float *x, const float *d_w, const float *d_b, int n,
                              int channels, int taps)
{
    (void)be;
    size_t width = (size_t)channels;
    for (size_t t = 0; t < (size_t)n; t++)
        for (size_t c = 0; c < width; c++) {
            float sum = 0;
            for (size_t k = 0; k < (size_t)taps; k++)
                sum += d_w[c * (size_t)taps + k] * x[(t + k) * width + c];
            y[t * width + c] = sum + d_b[c];
        }
    return ST_OK;
}

static status_t ref_layernorm(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_w,
                              const float *d_b, int n, int channels, float eps)
{
    (void)be, (void)form;
    for (int t = 0; t < n; t++) {
        const float *x = d_x + (size_t)t * (size_t)channels;
        float       *y = (float *)d_y + (size_t)t * (size_t)channels;
        double       mean = 0, square = 0;
        for (int c = 0; c < channels; c++)
            mean += x[c];
        mean /= channels;
        for (int c = 0; c < channels; c++)
            square += (x[c] - mean) * (x[c] - mean);
        float factor = (float)(1.0 / sqrt(square / channels + (double)eps));
        for (int c = 0; c < channels; c++)
            y[c] = (x[c] - (float)mean) * factor * d_w[c] + d_b[c];
    }
    return ST_OK;
}

static status_t ref_rmsnorm(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_w,
                            int n, int channels, float eps)
{
    (void)be, (void)form;
    for (int t = 0; t < n; t++) {
        const float *x = d_x + (size_t)t * (size_t)channels;
        float       *y = (float *)d_y + (size_t)t * (size_t)channels;
        double       square = 0;
        for (int c = 0; c < channels; c++)
            square += (double)x[c] * x[c];
        float factor = (float)(1.0 / sqrt(square / channels + (double)eps));
        for (int c = 0; c < channels; c++)
            y[c] = x[c] * factor * d_w[c];
    }
    return ST_OK;
}

static status_t ref_silu_mul(struct backend *be, enum codec_form form, void *d_y, const float *d_gate_up, int n,
                             int width)
{
    (void)be, (void)form;
    for (int t = 0; t < n; t++) {
        const float *gate = d_gate_up + (size_t)t * 2 * (size_t)width, *up = gate + width;
        float       *y = (float *)d_y + (size_t)t * (size_t)width;
        for (int i = 0; i < width; i++)
            y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
    return ST_OK;
}

static void rotate(float *x, const float *cos_sin, int head_dim)
{
    for (int j = 0; j < head_dim / 2; j++) {
        float a = x[2 * j], b = x[2 * j + 1], c = cos_sin[2 * j], s = cos_sin[2 * j + 1];
        x[2 * j] = a * c - b * s;
        x[2 * j + 1] = b * c + a * s;
    }
}

/* Key (part 1) or value (part 2) of the i-th position the queries can see: old rows, then qkv's own. */
static const float *seen(const float *old, const float *qkv, size_t dim, int window, int past, int i, size_t part)
{
    return i < past ? old + ((size_t)(window - 1 - past + i) * 2 + part - 1) * dim
                    : qkv + ((size_t)(i - past) * 3 + part) * dim;
}

static status_t ref_attention(struct backend *be, enum codec_form form, void *d_y, float *qkv, float *d_new,
                              const float *old, const struct codec_attention *a, int n, int pos0, int past)
{
    (void)be, (void)form;
    size_t hd = (size_t)a->head_dim, dim = (size_t)a->n_head * hd;
    int    keep = a->window - 1;
    float *y = d_y;
    for (int t = 0; t < n; t++)
        for (int h = 0; h < 2 * a->n_head; h++) /* q heads, then k heads */
            rotate(qkv + (size_t)t * 3 * dim + (size_t)h * hd, a->d_cos_sin + (size_t)(pos0 + t) * hd, a->head_dim);
    for (int i = keep - 1, at = past + n - 1; i >= 0 && at >= 0; i--, at--)
        for (size_t part = 1; part <= 2; part++)
            memcpy(d_new + ((size_t)i * 2 + part - 1) * dim, seen(old, qkv, dim, a->window, past, at, part),
                   dim * sizeof *old);
    float *score = malloc((size_t)a->window * sizeof *score);
    if (!score)
        return FAIL(ST_ENOMEM, "codec: no memory for %d scores", a->window);
    float scale = 1.0f / sqrtf((float)a->head_dim);
    for (int t = 0; t < n; t++)
        for (int h = 0; h < a->n_head; h++) {
            const float *q = qkv + (size_t)t * 3 * dim + (size_t)h * hd;
            int          last = past + t, first = last - a->window + 1 < 0 ? 0 : last - a->window + 1;
            float        most = -INFINITY, total = 0;
            for (int i = first; i <= last; i++) {
                const float *k = seen(old, qkv, dim, a->window, past, i, 1) + (size_t)h * hd;
                float        s = 0;
                for (size_t d = 0; d < hd; d++)
                    s += q[d] * k[d];
                score[i - first] = s * scale;
                most = fmaxf(most, score[i - first]);
            }
            for (int i = first; i <= last; i++)
                total += score[i - first] = expf(score[i - first] - most);
            float *out = y + (size_t)t * dim + (size_t)h * hd;
            memset(out, 0, hd * sizeof *out);
            for (int i = first; i <= last; i++) {
                const float *v = seen(old, qkv, dim, a->window, past, i, 2) + (size_t)h * hd;
                for (size_t d = 0; d < hd; d++)
                    out[d] += score[i - first] / total * v[d];
            }
        }
    free(score);
    return ST_OK;
}

const struct codec_ops cpu_ref_codec_ops = {
    .input = ref_input,
    .adopt = ref_adopt,
    .release = ref_release,
    .copy = ref_copy,
    .zero = ref_zero,
    .load = ref_load,
    .dequantize = ref_dequantize,
    .join = ref_join,
    .conv = ref_conv,
    .snake = ref_snake,
    .depthwise = ref_depthwise,
    .layernorm = ref_layernorm,
    .rmsnorm = ref_rmsnorm,
    .silu_mul = ref_silu_mul,
    .attention = ref_attention,
};
