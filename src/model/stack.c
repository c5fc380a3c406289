#include "model/stack.h"

#include "model/bf16.h"

#include <math.h>
#include <stdlib.h>

/* One block's device side. Norm vectors are uploads; matrices are what adopt returned. */
struct device_block {
    struct matrix   wqkv, wo, w1, w3, w2;
    float          *d_attention_norm, *d_ffn_norm, *d_q_norm, *d_k_norm;
    struct kv_cache kv;
};

struct stack {
    struct backend          *be;
    const struct backend_ops *ops;
    struct stack_config      config;
    struct device_block     *blocks;
    float                    eps;
    bool                     fast;
    float                   *d_cos_sin; /* [max_len][head_dim/2][2] */
    float                   *d_norm, *d_qkv, *d_attention, *d_out, *d_gate, *d_up; /* [max_tokens][…] */
};

static const size_t kv_element_bytes[KV_COUNT] = {[KV_FP32] = 4, [KV_BF16] = 2, [KV_INT8] = 1};

size_t matrix_row_bytes(const struct matrix *m, int rows)
{
    size_t per_row = (size_t)m->cols * dtype_size(m->format) + (m->scales ? dtype_size(m->scale_dtype) : 0) +
                     (m->bias ? sizeof(float) : 0);
    return m->w ? (size_t)rows * per_row : 0;
}

static status_t upload_vector(struct stack *s, const float *v, int n, float **d_out)
{
    if (!v)
        return ST_OK;
    size_t bytes = (size_t)n * sizeof *v;
    TRY(s->ops->alloc(s->be, MEM_WEIGHTS, bytes, (void **)d_out));
    return s->ops->upload(s->be, *d_out, v, bytes);
}

static status_t open_cache(struct stack *s, const struct stack_args *a, struct kv_cache *kv)
{
    *kv = (struct kv_cache){.format = a->kv, .n_seq = a->n_seq, .n_kv_heads = s->config.n_kv_heads, .max_len = a->max_len,
                            .head_dim = s->config.head_dim};
    size_t rows, bytes;
    if (__builtin_mul_overflow((size_t)a->n_seq * (size_t)a->max_len, (size_t)kv->n_kv_heads, &rows) ||
        __builtin_mul_overflow(rows, (size_t)kv->head_dim * kv_element_bytes[a->kv], &bytes))
        return FAIL(ST_EOOM, "the cache of %d sequences × %d positions is too large for this machine", a->n_seq, a->max_len);
    TRY(s->ops->alloc(s->be, MEM_KV, bytes, &kv->d_k));
    TRY(s->ops->alloc(s->be, MEM_KV, bytes, &kv->d_v));
    if (a->kv == KV_INT8) {
        TRY(s->ops->alloc(s->be, MEM_KV, rows * sizeof(float), (void **)&kv->d_k_scale));
        TRY(s->ops->alloc(s->be, MEM_KV, rows * sizeof(float), (void **)&kv->d_v_scale));
    }
    return ST_OK;
}

static status_t open_block(struct stack *s, const struct stack_args *a, const struct block *host, struct device_block *b)
{
    TRY(s->ops->adopt(s->be, &host->wqkv, &b->wqkv));
    TRY(s->ops->adopt(s->be, &host->wo, &b->wo));
    TRY(s->ops->adopt(s->be, &host->w1, &b->w1));
    TRY(s->ops->adopt(s->be, &host->w3, &b->w3));
    TRY(s->ops->adopt(s->be, &host->w2, &b->w2));
    TRY(upload_vector(s, host->attention_norm, s->config.dim, &b->d_attention_norm));
    TRY(upload_vector(s, host->ffn_norm, s->config.dim, &b->d_ffn_norm));
    TRY(upload_vector(s, host->q_norm, s->config.head_dim, &b->d_q_norm));
    TRY(upload_vector(s, host->k_norm, s->config.head_dim, &b->d_k_norm));
    return open_cache(s, a, &b->kv);
}

/* The original's table: frequency, angle, cosine and sine in FP32, then stored as BF16, also when the model runs in FP32.
 * Double-precision functions rounded to FP32 make it the same on every C library. */
static status_t open_rope(struct stack *s, float base, int max_len)
{
    int    half   = s->config.head_dim / 2;
    size_t floats = (size_t)max_len * (size_t)half * 2;
    float *table  = malloc(floats * sizeof *table);
    if (!table)
        return FAIL(ST_ENOMEM, "no host memory for a RoPE table of %d positions", max_len);
    for (int j = 0; j < half; j++) {
        float exponent  = (float)(2 * j) / (float)s->config.head_dim;
        float frequency = 1.0f / (float)pow((double)base, (double)exponent);
        for (int pos = 0; pos < max_len; pos++) {
            float  angle      = (float)pos * frequency;
            float *pair       = table + ((size_t)pos * (size_t)half + (size_t)j) * 2;
            pair[0]           = bf16_round((float)cos((double)angle));
            pair[1]           = bf16_round((float)sin((double)angle));
        }
    }
    status_t st = s->ops->alloc(s->be, MEM_WORKSPACE, floats * sizeof *table, (void **)&s->d_cos_sin);
    if (st == ST_OK)
        st = s->ops->upload(s->be, s->d_cos_sin, table, floats * sizeof *table);
    free(table);
    return st;
}

static status_t open_workspace(struct stack *s, int max_tokens)
{
    const struct stack_config *c    = &s->config;
    const size_t               q    = (size_t)c->n_head * (size_t)c->head_dim;
    const size_t               kv   = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    float                    **to[] = {&s->d_norm, &s->d_qkv, &s->d_attention, &s->d_out, &s->d_gate, &s->d_up};
    const size_t               width[] = {(size_t)c->dim, q + 2 * kv, q, (size_t)c->dim, (size_t)c->intermediate_size,
                                          (size_t)c->intermediate_size};
    for (size_t i = 0; i < sizeof to / sizeof *to; i++)
        TRY(s->ops->alloc(s->be, MEM_WORKSPACE, (size_t)max_tokens * width[i] * sizeof(float), (void **)to[i]));
    return ST_OK;
}

status_t stack_open(struct backend *be, const struct stack_args *args, struct stack **out)
{
    status_t      st = ST_OK;
    struct stack *s  = calloc(1, sizeof *s);
    if (!s)
        return FAIL(ST_ENOMEM, "no host memory for a transformer stack");
    s->be     = be;
    s->ops    = backend_ops_of(be);
    s->config = *args->config;
    s->eps    = args->norm_eps;
    s->fast   = args->fast;
    s->blocks = calloc((size_t)s->config.n_layer, sizeof *s->blocks);
    if (!s->blocks) {
        st = FAIL(ST_ENOMEM, "no host memory for %d blocks", s->config.n_layer);
        goto out;
    }
    for (int l = 0; l < s->config.n_layer; l++)
        TRY_OUT(open_block(s, args, &args->blocks[l], &s->blocks[l]));
    TRY_OUT(open_rope(s, args->rope_base, args->max_len));
    TRY_OUT(open_workspace(s, args->max_tokens));
    *out = s;
    s    = NULL;
out:
    stack_close(s);
    return st;
}

void stack_close(struct stack *s)
{
    if (!s)
        return;
    for (int l = 0; s->blocks && l < s->config.n_layer; l++) {
        struct device_block *b          = &s->blocks[l];
        struct matrix       *matrices[] = {&b->wqkv, &b->wo, &b->w1, &b->w3, &b->w2};
        void *memory[] = {b->d_attention_norm, b->d_ffn_norm, b->d_q_norm, b->d_k_norm, b->kv.d_k, b->kv.d_v, b->kv.d_k_scale,
                          b->kv.d_v_scale};
        for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
            s->ops->release(s->be, matrices[i]);
        for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
            s->ops->free(s->be, memory[i]);
    }
    void *memory[] = {s->d_cos_sin, s->d_norm, s->d_qkv, s->d_attention, s->d_out, s->d_gate, s->d_up};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        s->ops->free(s->be, memory[i]);
    free(s->blocks);
    free(s);
}

status_t stack_run(struct stack *s, float *d_x, const struct token_batch *tokens)
{
    const struct backend_ops  *ops = s->ops;
    const struct stack_config *c   = &s->config;
    const int                  n = tokens->n, dim = c->dim, ffn = c->intermediate_size;
    const int                  q = c->n_head * c->head_dim, qkv = q + 2 * c->n_kv_heads * c->head_dim;
    for (int l = 0; l < c->n_layer; l++) {
        struct device_block   *b    = &s->blocks[l];
        const struct rope_args rope = {.n_head = c->n_head, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                                       .q_norm = b->d_q_norm, .k_norm = b->d_k_norm, .eps = s->eps, .d_cos_sin = s->d_cos_sin};
        TRY(ops->rmsnorm(s->be, s->d_norm, d_x, b->d_attention_norm, n, dim, s->eps));
        TRY(ops->matmul(s->be, s->d_qkv, qkv, &b->wqkv, 0, qkv, s->d_norm, n));
        TRY(ops->rope_append(s->be, s->d_qkv, &rope, &b->kv, tokens));
        TRY(ops->attention(s->be, s->d_attention, s->d_qkv, c->n_head, &b->kv, tokens, s->fast));
        TRY(ops->matmul(s->be, s->d_out, dim, &b->wo, 0, dim, s->d_attention, n));
        TRY(ops->add(s->be, d_x, s->d_out, n, dim));
        TRY(ops->rmsnorm(s->be, s->d_norm, d_x, b->d_ffn_norm, n, dim, s->eps));
        TRY(ops->matmul(s->be, s->d_gate, ffn, &b->w1, 0, ffn, s->d_norm, n));
        TRY(ops->matmul(s->be, s->d_up, ffn, &b->w3, 0, ffn, s->d_norm, n));
        TRY(ops->silu_mul(s->be, s->d_gate, s->d_gate, s->d_up, n, ffn));
        TRY(ops->matmul(s->be, s->d_out, dim, &b->w2, 0, dim, s->d_gate, n));
        TRY(ops->add(s->be, d_x, s->d_out, n, dim));
    }
    return ST_OK;
}

size_t stack_weight_bytes(const struct stack_config *c, const struct block *blocks)
{
    size_t bytes = 0;
    for (int l = 0; l < c->n_layer; l++) {
        const struct block *b = &blocks[l];
        bytes += matrix_row_bytes(&b->wqkv, b->wqkv.rows) + matrix_row_bytes(&b->wo, b->wo.rows) +
                 matrix_row_bytes(&b->w1, b->w1.rows) + matrix_row_bytes(&b->w3, b->w3.rows) +
                 matrix_row_bytes(&b->w2, b->w2.rows);
        bytes += sizeof(float) * (2 * (size_t)c->dim + (b->q_norm ? 2 * (size_t)c->head_dim : 0));
    }
    return bytes;
}

size_t stack_kv_bytes(const struct stack_config *c, enum kv_format format)
{
    size_t row = (size_t)c->head_dim * kv_element_bytes[format] + (format == KV_INT8 ? sizeof(float) : 0);
    return 2 * (size_t)c->n_layer * (size_t)c->n_kv_heads * row;
}
