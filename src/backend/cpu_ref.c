/* The scalar twin: every op of backend.h as plain loops on host memory, one thread. It defines what the other backends
 * must compute, so sums run in index order in FP64 and are rounded to FP32 once; speed is no concern here. */
#include "backend/backend.h"
#include "backend/cpu_ref_codec.h"
#include "model/bf16.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct cpu_ref {
    struct backend_base base;
    float              *scores; /* one query head's scores over the longest context seen */
    int                 scores_len;
};

/* Stands 64 bytes before every block that alloc returns. */
struct block_head {
    void             *raw;
    size_t            bytes;
    enum memory_class cls;
};

enum { BLOCK_ALIGN = 64 };

static struct cpu_ref *self(struct backend *be)
{
    return (struct cpu_ref *)(void *)be;
}

static bool rounds(struct backend *be)
{
    return self(be)->base.options.rounding == ROUND_BF16;
}

static float rnd(bool bf16, float v)
{
    return bf16 ? bf16_round(v) : v;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

extern const struct backend_ops cpu_ref_ops;

static status_t ref_open(const struct backend_options *options, struct backend **out)
{
    struct cpu_ref *be = calloc(1, sizeof *be);
    if (!be)
        return FAIL(ST_ENOMEM, "cpu_ref: no host memory for the backend");
    be->base.ops     = &cpu_ref_ops;
    be->base.options = *options;
    memory_ledger_init(&be->base.memory, options->memory_limit);
    *out = (struct backend *)(void *)be;
    return ST_OK;
}

static void ref_close(struct backend *be)
{
    if (be)
        free(self(be)->scores);
    free(be);
}

static status_t ref_alloc(struct backend *be, enum memory_class cls, size_t bytes, void **d_out)
{
    if (bytes > SIZE_MAX - 2 * BLOCK_ALIGN)
        return FAIL(ST_EOOM, "cpu_ref: %zu bytes of %s wanted", bytes, memory_class_name(cls));
    TRY(memory_take(backend_memory(be), cls, bytes));
    char *raw = calloc(1, bytes + 2 * BLOCK_ALIGN); /* calloc: pages of a long cache come when they are first written */
    if (!raw) {
        memory_give(backend_memory(be), cls, bytes);
        return FAIL(ST_EOOM, "cpu_ref: the system has no %zu bytes for %s", bytes, memory_class_name(cls));
    }
    char *aligned = raw + (2 * BLOCK_ALIGN - (uintptr_t)raw % BLOCK_ALIGN);
    struct block_head head = {raw, bytes, cls};
    memcpy(aligned - BLOCK_ALIGN, &head, sizeof head);
    *d_out = aligned;
    return ST_OK;
}

static void ref_free(struct backend *be, void *d_ptr)
{
    if (!d_ptr)
        return;
    struct block_head head;
    memcpy(&head, (char *)d_ptr - BLOCK_ALIGN, sizeof head);
    memory_give(backend_memory(be), head.cls, head.bytes);
    free(head.raw);
}

static status_t ref_upload(struct backend *be, void *d_dst, const void *src, size_t bytes)
{
    memcpy(d_dst, src, bytes);
    return ST_OK;
}

static status_t ref_download(struct backend *be, void *dst, const void *d_src, size_t bytes)
{
    memcpy(dst, d_src, bytes);
    return ST_OK;
}

static status_t ref_sync(struct backend *be)
{
    return ST_OK;
}

static size_t matrix_bytes(const struct matrix *m)
{
    return (size_t)m->rows * (size_t)m->cols * dtype_size(m->format) + (m->bias ? (size_t)m->rows * sizeof(float) : 0);
}

static size_t matrix_scale_bytes(const struct matrix *m)
{
    return m->scales ? (size_t)m->rows * dtype_size(m->scale_dtype) : 0;
}

/* Host memory is device memory here: the matrix stays where it is and is accounted in full. */
static status_t ref_adopt(struct backend *be, const struct matrix *host, struct matrix *out)
{
    TRY(memory_take(backend_memory(be), MEM_WEIGHTS, matrix_bytes(host)));
    status_t st = memory_take(backend_memory(be), MEM_SCALES, matrix_scale_bytes(host));
    if (st != ST_OK) {
        memory_give(backend_memory(be), MEM_WEIGHTS, matrix_bytes(host));
        return st;
    }
    *out = *host;
    return ST_OK;
}

static void ref_release(struct backend *be, struct matrix *m)
{
    if (!m->w)
        return;
    memory_give(backend_memory(be), MEM_WEIGHTS, matrix_bytes(m));
    memory_give(backend_memory(be), MEM_SCALES, matrix_scale_bytes(m));
    *m = (struct matrix){0};
}

/* ---- ops ------------------------------------------------------------------------------------------------------ */

static float element(const struct matrix *m, size_t i)
{
    switch (m->format) {
    case DT_F32: return ((const float *)m->w)[i];
    case DT_BF16: return bf16_to_f32(((const bf16_t *)m->w)[i]);
    default: return (float)((const int8_t *)m->w)[i];
    }
}

static float row_scale(const struct matrix *m, size_t row)
{
    return m->scale_dtype == DT_BF16 ? bf16_to_f32(((const bf16_t *)m->scales)[row]) : ((const float *)m->scales)[row];
}

static status_t ref_embed(struct backend *be, const struct embed_args *a, const int32_t *cols, int n, float *d_x)
{
    bool  bf16 = rounds(be);
    int   dim  = a->embeddings->cols;
    /* The original divides by a host scalar, which its GPU path carries out as a product with the FP32 reciprocal. */
    float factor = 1.0f / sqrtf((float)(a->num_codebooks + 1));
    for (int t = 0; t < n; t++) {
        const int32_t *col      = cols + (size_t)t * (size_t)(1 + a->num_codebooks);
        bool           semantic = col[0] >= a->semantic_begin && col[0] <= a->semantic_end;
        for (int j = 0; j < dim; j++) {
            double e = 0;
            for (int c = 0; semantic && c < a->num_codebooks; c++)
                e += (double)element(a->codebook_embeddings,
                                     ((size_t)c * (size_t)a->codebook_size + (size_t)col[1 + c]) * (size_t)dim + (size_t)j);
            float x = element(a->embeddings, (size_t)col[0] * (size_t)dim + (size_t)j);
            x       = rnd(bf16, x + rnd(bf16, (float)e));
            d_x[(size_t)t * (size_t)dim + (size_t)j] = semantic && a->scale ? rnd(bf16, x * factor) : x;
        }
    }
    return ST_OK;
}

static status_t ref_gather(struct backend *be, const struct matrix *table, const int32_t *ids, int n, float *d_x)
{
    bool   bf16 = rounds(be);
    size_t cols = (size_t)table->cols;
    for (int t = 0; t < n; t++)
        for (size_t j = 0; j < cols; j++)
            d_x[(size_t)t * cols + j] = rnd(bf16, element(table, (size_t)ids[t] * cols + j));
    return ST_OK;
}

static void normalize(bool bf16, float *y, const float *x, const float *w, int dim, float eps)
{
    double sum = 0;
    for (int j = 0; j < dim; j++)
        sum += (double)x[j] * (double)x[j];
    float r = 1.0f / sqrtf((float)(sum / dim) + eps);
    for (int j = 0; j < dim; j++)
        y[j] = rnd(bf16, rnd(bf16, x[j] * r) * w[j]);
}

static status_t ref_rmsnorm(struct backend *be, float *d_y, const float *d_x, const float *d_w, int n, int dim, float eps)
{
    for (int t = 0; t < n; t++)
        normalize(rounds(be), d_y + (size_t)t * (size_t)dim, d_x + (size_t)t * (size_t)dim, d_w, dim, eps);
    return ST_OK;
}

static float dot(const struct matrix *w, size_t row, const float *x)
{
    size_t cols = (size_t)w->cols;
    double sum  = 0;
    switch (w->format) {
    case DT_F32:
        for (size_t j = 0; j < cols; j++)
            sum += (double)((const float *)w->w)[row * cols + j] * (double)x[j];
        break;
    case DT_BF16:
        for (size_t j = 0; j < cols; j++)
            sum += (double)bf16_to_f32(((const bf16_t *)w->w)[row * cols + j]) * (double)x[j];
        break;
    default:
        for (size_t j = 0; j < cols; j++)
            sum += (double)((const int8_t *)w->w)[row * cols + j] * (double)x[j];
    }
    return (float)sum;
}

static status_t ref_matmul(struct backend *be, float *d_y, int ldy, const struct matrix *w, int row0, int row_count,
                           const float *d_x, int n)
{
    bool bf16 = rounds(be);
    for (int t = 0; t < n; t++)
        for (int i = 0; i < row_count; i++) {
            size_t row = (size_t)row0 + (size_t)i;
            float  y   = dot(w, row, d_x + (size_t)t * (size_t)w->cols);
            if (w->format == DT_I8)
                y = rnd(bf16, rnd(bf16, y) * row_scale(w, row));
            if (w->bias)
                y += w->bias[row];
            d_y[(size_t)t * (size_t)ldy + (size_t)i] = rnd(bf16, y);
        }
    return ST_OK;
}

/* Interleaved pairs: (a, b) → (a·cos − b·sin, b·cos + a·sin). */
static void rotate(bool bf16, float *v, const float *cos_sin, int head_dim)
{
    for (int j = 0; j < head_dim; j += 2) {
        float a = v[j], b = v[j + 1], c = cos_sin[j], s = cos_sin[j + 1];
        v[j]     = rnd(bf16, a * c - b * s);
        v[j + 1] = rnd(bf16, b * c + a * s);
    }
}

static size_t kv_row(const struct kv_cache *kv, int seq, int head, int pos)
{
    return ((size_t)seq * (size_t)kv->n_kv_heads + (size_t)head) * (size_t)kv->max_len + (size_t)pos;
}

static void kv_store(enum kv_format format, void *cache, float *scales, size_t row, const float *v, int head_dim)
{
    size_t at = row * (size_t)head_dim;
    if (format == KV_FP32) {
        memcpy((float *)cache + at, v, (size_t)head_dim * sizeof *v);
        return;
    }
    if (format == KV_BF16) {
        for (int j = 0; j < head_dim; j++)
            ((bf16_t *)cache)[at + (size_t)j] = bf16_from_f32(v[j]);
        return;
    }
    float most = 0.0f;
    for (int j = 0; j < head_dim; j++)
        most = fmaxf(most, fabsf(v[j]));
    float scale = most / 127.0f;
    scales[row] = scale;
    for (int j = 0; j < head_dim; j++)
        ((int8_t *)cache)[at + (size_t)j] = scale > 0 ? (int8_t)rintf(fmaxf(-127.0f, fminf(127.0f, v[j] / scale))) : 0;
}

static float kv_load(enum kv_format format, const void *cache, const float *scales, size_t row, int head_dim, int j)
{
    size_t at = row * (size_t)head_dim + (size_t)j;
    switch (format) {
    case KV_FP32: return ((const float *)cache)[at];
    case KV_BF16: return bf16_to_f32(((const bf16_t *)cache)[at]);
    default: return (float)((const int8_t *)cache)[at] * scales[row];
    }
}

static status_t ref_rope_append(struct backend *be, float *d_qkv, const struct rope_args *a, struct kv_cache *kv,
                                const struct token_batch *tokens)
{
    bool   bf16  = rounds(be);
    int    heads = a->n_head + a->n_kv_heads;
    size_t width = (size_t)(a->n_head + 2 * a->n_kv_heads) * (size_t)a->head_dim;
    for (int t = 0; t < tokens->n; t++) {
        float       *row     = d_qkv + (size_t)t * width;
        const float *cos_sin = a->d_cos_sin + (size_t)tokens->pos[t] * (size_t)a->head_dim;
        for (int h = 0; h < heads; h++) {
            float       *v = row + (size_t)h * (size_t)a->head_dim;
            const float *w = h < a->n_head ? a->q_norm : a->k_norm;
            if (w)
                normalize(bf16, v, v, w, a->head_dim, a->eps);
            rotate(bf16, v, cos_sin, a->head_dim);
        }
        for (int g = 0; g < a->n_kv_heads; g++) {
            size_t       at = kv_row(kv, tokens->seq[t], g, tokens->pos[t]);
            const float *k  = row + (size_t)(a->n_head + g) * (size_t)a->head_dim;
            kv_store(kv->format, kv->d_k, kv->d_k_scale, at, k, a->head_dim);
            kv_store(kv->format, kv->d_v, kv->d_v_scale, at, k + (size_t)a->n_kv_heads * (size_t)a->head_dim, a->head_dim);
        }
    }
    return ST_OK;
}

/* One query head over `len` positions whose rows start at `row0`. */
static void attend(bool bf16, bool fast, float *y, const float *q, const struct kv_cache *kv, size_t row0, int len,
                   float *scores)
{
    int    d     = kv->head_dim;
    float  scale = 1.0f / sqrtf((float)d), most = -INFINITY;
    double sum   = 0;
    for (int p = 0; p < len; p++) {
        double s = 0;
        for (int j = 0; j < d; j++)
            s += (double)q[j] * (double)kv_load(kv->format, kv->d_k, kv->d_k_scale, row0 + (size_t)p, d, j);
        scores[p] = fast ? rnd(bf16, rnd(bf16, (float)s) * scale) : (float)s * scale;
        most      = fmaxf(most, scores[p]);
    }
    for (int p = 0; p < len; p++)
        sum += (double)(scores[p] = expf(scores[p] - most));
    for (int p = 0; p < len; p++)
        scores[p] = (float)((double)scores[p] / sum);
    for (int p = 0; fast && p < len; p++)
        scores[p] = rnd(bf16, scores[p]);
    for (int j = 0; j < d; j++) {
        double o = 0;
        for (int p = 0; p < len; p++)
            o += (double)scores[p] * (double)kv_load(kv->format, kv->d_v, kv->d_v_scale, row0 + (size_t)p, d, j);
        y[j] = rnd(bf16, (float)o);
    }
}

static status_t ref_attention(struct backend *be, float *d_y, const float *d_qkv, int n_head, const struct kv_cache *kv,
                              const struct token_batch *tokens, bool fast)
{
    struct cpu_ref *ref = self(be);
    if (ref->scores_len < kv->max_len) {
        float *grown = realloc(ref->scores, (size_t)kv->max_len * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "cpu_ref: no host memory for %d attention scores", kv->max_len);
        ref->scores     = grown;
        ref->scores_len = kv->max_len;
    }
    size_t d = (size_t)kv->head_dim, width = (size_t)(n_head + 2 * kv->n_kv_heads) * d;
    for (int t = 0; t < tokens->n; t++)
        for (int h = 0; h < n_head; h++) {
            int group = (int)((int64_t)h * kv->n_kv_heads / n_head);
            attend(rounds(be), fast, d_y + ((size_t)t * (size_t)n_head + (size_t)h) * d,
                   d_qkv + (size_t)t * width + (size_t)h * d, kv, kv_row(kv, tokens->seq[t], group, 0),
                   tokens->pos[t] + 1, ref->scores);
        }
    return ST_OK;
}

static status_t ref_silu_mul(struct backend *be, float *d_y, const float *d_gate, const float *d_up, int n, int dim)
{
    bool bf16 = rounds(be);
    for (size_t i = 0; i < (size_t)n * (size_t)dim; i++) {
        float g = d_gate[i];
        d_y[i]  = rnd(bf16, rnd(bf16, g / (1.0f + expf(-g))) * d_up[i]);
    }
    return ST_OK;
}

static status_t ref_add(struct backend *be, float *d_x, const float *d_y, int n, int dim)
{
    bool bf16 = rounds(be);
    for (size_t i = 0; i < (size_t)n * (size_t)dim; i++)
        d_x[i] = rnd(bf16, d_x[i] + d_y[i]);
    return ST_OK;
}

const struct backend_ops cpu_ref_ops = {
    .name = "cpu_ref",
    .open = ref_open,
    .close = ref_close,
    .alloc = ref_alloc,
    .free = ref_free,
    .upload = ref_upload,
    .download = ref_download,
    .sync = ref_sync,
    .adopt = ref_adopt,
    .release = ref_release,
    .embed = ref_embed,
    .gather = ref_gather,
    .rmsnorm = ref_rmsnorm,
    .matmul = ref_matmul,
    .rope_append = ref_rope_append,
    .attention = ref_attention,
    .silu_mul = ref_silu_mul,
    .add = ref_add,
    .codec = &cpu_ref_codec_ops,
};
