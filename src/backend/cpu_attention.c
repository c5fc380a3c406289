/* cpu_attention.c — what the CPU backend does around the key/value cache: rotate and append, score and weigh. */
#include "backend/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GROUP = 64 }; /* query heads that share a key/value head; more are taken in turns */

static const enum dtype kv_dtype[KV_COUNT] = {[KV_FP32] = DT_F32, [KV_BF16] = DT_BF16, [KV_INT8] = DT_I8};

/* Index of the row [head_dim] of a token's head in a cache. */
static size_t kv_row(const struct kv_cache *kv, int seq, int head, int pos)
{
    return ((size_t)seq * (size_t)kv->n_kv_heads + (size_t)head) * (size_t)kv->max_len + (size_t)pos;
}

static status_t check_tokens(const struct kv_cache *kv, const struct token_batch *tokens)
{
    for (int i = 0; i < tokens->n; i++)
        if (tokens->seq[i] < 0 || tokens->seq[i] >= kv->n_seq || tokens->pos[i] < 0 || tokens->pos[i] >= kv->max_len)
            return FAIL(ST_EINTERNAL, "token %d: position %d of sequence %d in a cache of %d × %d", i, tokens->pos[i],
                        tokens->seq[i], kv->n_seq, kv->max_len);
    return ST_OK;
}

struct append_job {
    const struct cpu         *cpu;
    float                    *qkv;
    const struct rope_args   *args;
    const struct kv_cache    *kv;
    const struct token_batch *tokens;
};

static void store_row(const struct cpu_kernels *k, const struct kv_cache *kv, void *cache, float *scales, size_t row,
                      const float *x)
{
    const size_t d = (size_t)kv->head_dim;
    if (kv->format == KV_FP32)
        memcpy((float *)cache + row * d, x, d * sizeof *x);
    else if (kv->format == KV_BF16)
        k->narrow_bf16((uint16_t *)cache + row * d, x, d);
    else
        scales[row] = k->narrow_i8((int8_t *)cache + row * d, x, d);
}

/* Fetch a position's lines for writing while its heads are still being rotated: without, the stores wait for memory. */
static void prefetch_row(const struct kv_cache *kv, size_t row)
{
    const size_t bytes = (size_t)kv->head_dim * dtype_size(kv_dtype[kv->format]);
    for (size_t b = 0; b < bytes; b += 64) {
        __builtin_prefetch((const char *)kv->d_k + row * bytes + b, 1);
        __builtin_prefetch((const char *)kv->d_v + row * bytes + b, 1);
    }
}

static void append_part(void *ctx, int thread, int n_threads)
{
    const struct append_job  *j = ctx;
    const struct rope_args   *a = j->args;
    const struct cpu_kernels *k = j->cpu->kernels;
    const bool                round = cpu_rounds(j->cpu);
    const size_t              d = (size_t)a->head_dim, width = (size_t)(a->n_head + 2 * a->n_kv_heads) * d;
    int                       from, to;
    cpu_team_part(j->tokens->n, 1, thread, n_threads, &from, &to);
    for (int t = from; t < to; t++) {
        float       *row = j->qkv + (size_t)t * width;
        const float *cos_sin = a->d_cos_sin + (size_t)j->tokens->pos[t] * d;
        for (int g = 0; g < a->n_kv_heads; g++)
            prefetch_row(j->kv, kv_row(j->kv, j->tokens->seq[t], g, j->tokens->pos[t]));
        for (int h = 0; h < a->n_head + a->n_kv_heads; h++) {
            float       *x = row + (size_t)h * d;
            const float *norm = h < a->n_head ? a->q_norm : a->k_norm;
            if (norm)
                k->rmsnorm(x, x, norm, a->head_dim, a->eps, round);
            k->rope(x, cos_sin, a->head_dim, round);
        }
        for (int g = 0; g < a->n_kv_heads; g++) {
            const size_t at = kv_row(j->kv, j->tokens->seq[t], g, j->tokens->pos[t]);
            const float *key = row + (size_t)(a->n_head + g) * d;
            store_row(k, j->kv, j->kv->d_k, j->kv->d_k_scale, at, key);
            store_row(k, j->kv, j->kv->d_v, j->kv->d_v_scale, at, key + (size_t)a->n_kv_heads * d);
        }
    }
}

status_t cpu_rope_append(struct backend *be, float *d_qkv, const struct rope_args *args, struct kv_cache *kv,
                         const struct token_batch *tokens)
{
    struct cpu *cpu = cpu_of(be);
    TRY(check_tokens(kv, tokens));
    struct append_job j = {cpu, d_qkv, args, kv, tokens};
    const size_t      width = (size_t)(args->n_head + 2 * args->n_kv_heads) * (size_t)args->head_dim;
    cpu_run(cpu, tokens->n > 1 ? (size_t)tokens->n * width : 0, append_part, &j);
    return ST_OK;
}

struct attention_job {
    const struct cpu         *cpu;
    float                    *y;
    const float              *qkv;
    int                       n_head;
    const struct kv_cache    *kv;
    const struct token_batch *tokens;
    bool                      fast;
};

/* n query heads, neighbours that share key/value head g, of token t. Keys, values and the next head's keys are prefetched
 * as one stream. */
static void attend(const struct attention_job *j, int t, int g, int head, int n, float *scores, const void *next)
{
    const struct kv_cache    *kv = j->kv;
    const struct cpu_kernels *k = j->cpu->kernels;
    const bool                round = cpu_rounds(j->cpu);
    const int                 len = j->tokens->pos[t] + 1;
    const enum dtype          format = kv_dtype[kv->format];
    const size_t              d = (size_t)kv->head_dim, width = (size_t)(j->n_head + 2 * kv->n_kv_heads) * d;
    const size_t              row = kv_row(kv, j->tokens->seq[t], g, 0), offset = row * d * dtype_size(format);
    const bool                scaled = kv->format == KV_INT8;
    const struct softmax_args softmax = {.k_scale = scaled ? kv->d_k_scale + row : NULL,
                                         .v_scale = scaled ? kv->d_v_scale + row : NULL,
                                         .scale = 1.0f / sqrtf((float)d), .fast_round = j->fast && round};
    float                     total[MAX_GROUP];
    k->dot(format, scores, (size_t)len, (const char *)kv->d_k + offset, len, kv->head_dim,
           j->qkv + (size_t)t * width + (size_t)head * d, d, n, (const char *)kv->d_v + offset);
    for (int h = 0; h < n; h++)
        total[h] = k->softmax(scores + (size_t)h * (size_t)len, len, &softmax);
    k->weigh(format, j->y + ((size_t)t * (size_t)j->n_head + (size_t)head) * d, d, scores, (size_t)len, total, n,
             (const char *)kv->d_v + offset, len, kv->head_dim, round, next);
}

/* Query head h uses key/value head ⌊h·groups / n_head⌋; this is the first h of a group. */
static int first_head(int group, int n_head, int groups)
{
    return (int)(((int64_t)group * n_head + groups - 1) / groups);
}

/* The keys that item i begins with. */
static const void *keys(const struct attention_job *j, int64_t i)
{
    const struct kv_cache *kv = j->kv;
    const size_t           row = kv_row(kv, j->tokens->seq[i / kv->n_kv_heads], (int)(i % kv->n_kv_heads), 0);
    return (const char *)kv->d_k + row * (size_t)kv->head_dim * dtype_size(kv_dtype[kv->format]);
}

/* Items (token, key/value head) are dealt out in turns: later tokens of a prompt see more positions. */
static void attention_part(void *ctx, int thread, int n_threads)
{
    const struct attention_job *j = ctx;
    const int                   groups = j->kv->n_kv_heads;
    const int64_t               items = (int64_t)j->tokens->n * groups;
    float                      *scores = j->cpu->scores + (size_t)thread * j->cpu->scores_len;
    for (int64_t i = thread; i < items; i += n_threads) {
        const int   t = (int)(i / groups), g = (int)(i % groups);
        const void *next = i + n_threads < items ? keys(j, i + n_threads) : NULL;
        const int first = first_head(g, j->n_head, groups), end = first_head(g + 1, j->n_head, groups);
        for (int head = first; head < end; head += MAX_GROUP)
            attend(j, t, g, head, end - head < MAX_GROUP ? end - head : MAX_GROUP, scores, next);
    }
}

status_t cpu_attention(struct backend *be, float *d_y, const float *d_qkv, int n_head, const struct kv_cache *kv,
                       const struct token_batch *tokens, bool fast)
{
    struct cpu *cpu = cpu_of(be);
    TRY(check_tokens(kv, tokens));
    const int group = (n_head + kv->n_kv_heads - 1) / kv->n_kv_heads;
    size_t    longest = 0, work = 0;
    for (int i = 0; i < tokens->n; i++) {
        const size_t len = (size_t)tokens->pos[i] + 1;
        longest = len > longest ? len : longest;
        work += len * (size_t)n_head * (size_t)kv->head_dim;
    }
    const size_t wanted = ((size_t)(group < MAX_GROUP ? group : MAX_GROUP) * longest + 15) / 16 * 16;
    if (cpu->scores_len < wanted) {
        free(cpu->scores);
        cpu->scores_len = 0;
        cpu->scores = malloc((size_t)cpu_team_size(cpu->team) * 2 * wanted * sizeof *cpu->scores);
        if (!cpu->scores)
            return FAIL(ST_ENOMEM, "cpu: no host memory for attention over %zu positions", longest);
        cpu->scores_len = 2 * wanted; /* contexts grow by one; the buffer by doubling */
    }
    struct attention_job j = {cpu, d_y, d_qkv, n_head, kv, tokens, fast};
    cpu_run(cpu, work, attention_part, &j);
    return ST_OK;
}
