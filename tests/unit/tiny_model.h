/* tiny_model.h — a random dual-AR model in memory, and a naive second implementation of it for tests: double precision, no
 * cache, the whole sequence anew for every frame, the history as the list decode.md §7 describes. It shares no code with
 * the engine. */
#ifndef TESTS_UNIT_TINY_MODEL_H
#define TESTS_UNIT_TINY_MODEL_H

#include "model/bf16.h"
#include "model/sampler.h"
#include "model/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TINY_BLOCKS_MAX = 512, TINY_VOCAB = 120, TINY_FRAMES_MAX = 64, TINY_BOOKS_MAX = 12 };

struct tiny {
    struct weights w;
    void          *memory[TINY_BLOCKS_MAX];
    int            n_memory;
    uint64_t       state;
    bool           int8; /* linear weights as INT8 with FP32 scales */
};

static void *tiny_alloc(struct tiny *t, size_t bytes)
{
    return t->memory[t->n_memory++] = calloc(1, bytes);
}

static double tiny_uniform(struct tiny *t)
{
    t->state = t->state * 6364136223846793005u + 1442695040888963407u;
    return (double)(t->state >> 33) / 2147483648.0 * 2 - 1;
}

static float *tiny_vector(struct tiny *t, int n, double middle, double spread)
{
    float *v = tiny_alloc(t, (size_t)n * sizeof *v);
    for (int i = 0; i < n; i++)
        v[i] = (float)(middle + spread * tiny_uniform(t));
    return v;
}

static struct matrix tiny_matrix(struct tiny *t, int rows, int cols, bool bias, bool linear, double gain)
{
    struct matrix m = {.format = DT_F32, .rows = rows, .cols = cols, .scale_dtype = DT_F32};
    double        spread = gain * sqrt(3.0 / cols);
    if (t->int8 && linear) {
        int8_t *q = tiny_alloc(t, (size_t)rows * (size_t)cols);
        for (int i = 0; i < rows * cols; i++)
            q[i] = (int8_t)lrint(127 * tiny_uniform(t));
        m.format = DT_I8;
        m.w      = q;
        m.scales = tiny_vector(t, rows, spread / 127, spread / 500);
    } else
        m.w = tiny_vector(t, rows * cols, 0, spread);
    if (bias)
        m.bias = tiny_vector(t, rows, 0, 0.3);
    return m;
}

static struct block *tiny_stack(struct tiny *t, const struct stack_config *s)
{
    struct block *blocks = tiny_alloc(t, (size_t)s->n_layer * sizeof *blocks);
    for (int l = 0; l < s->n_layer; l++) {
        struct block *b = &blocks[l];
        b->wqkv = tiny_matrix(t, (s->n_head + 2 * s->n_kv_heads) * s->head_dim, s->dim, s->qkv_bias, true, 1);
        b->wo   = tiny_matrix(t, s->dim, s->n_head * s->head_dim, s->o_bias, true, 1);
        b->w1   = tiny_matrix(t, s->intermediate_size, s->dim, false, true, 1);
        b->w3   = tiny_matrix(t, s->intermediate_size, s->dim, false, true, 1);
        b->w2   = tiny_matrix(t, s->dim, s->intermediate_size, false, true, 1);
        b->attention_norm = tiny_vector(t, s->dim, 1, 0.3);
        b->ffn_norm       = tiny_vector(t, s->dim, 1, 0.3);
        if (s->qk_norm) {
            b->q_norm = tiny_vector(t, s->head_dim, 1, 0.3);
            b->k_norm = tiny_vector(t, s->head_dim, 1, 0.3);
        }
    }
    return blocks;
}

static struct model_config tiny_config(void)
{
    return (struct model_config){
        .slow = {.n_layer = 2, .n_head = 4, .n_kv_heads = 2, .head_dim = 8, .dim = 24, .intermediate_size = 40, .qk_norm = true},
        .fast = {.n_layer = 2, .n_head = 3, .n_kv_heads = 1, .head_dim = 6, .dim = 24, .intermediate_size = 28},
        .vocab_size = TINY_VOCAB, .codebook_size = 40, .num_codebooks = 4, .max_seq_len = 100, .rope_base = 10000,
        .norm_eps = 1e-6f, .scale_codebook_embeddings = true, .semantic_begin_id = 60, .semantic_end_id = 99, .im_end_id = 50,
    };
}

static struct tiny *tiny_open(const struct model_config *c, bool int8, uint64_t seed)
{
    struct tiny    *t = calloc(1, sizeof *t);
    struct weights *w = &t->w;
    t->state     = seed;
    t->int8      = int8;
    w->config    = *c;
    w->precision = int8 ? PRECISION_INT8 : PRECISION_FP32;
    w->embeddings          = tiny_matrix(t, c->vocab_size, c->slow.dim, false, false, 4);
    w->codebook_embeddings = tiny_matrix(t, c->num_codebooks * c->codebook_size, c->slow.dim, false, false, 3);
    w->fast_embeddings     = tiny_matrix(t, c->codebook_size, c->fast.dim, false, false, 4);
    w->output = c->tie_word_embeddings ? w->embeddings : tiny_matrix(t, c->vocab_size, c->slow.dim, false, true, 2);
    if (c->fast.dim != c->slow.dim)
        w->fast_project_in = tiny_matrix(t, c->fast.dim, c->slow.dim, true, true, 1);
    w->fast_output = tiny_matrix(t, c->codebook_size, c->fast.dim, false, true, 2);
    w->layers      = tiny_stack(t, &c->slow);
    w->fast_layers = tiny_stack(t, &c->fast);
    w->norm        = tiny_vector(t, c->slow.dim, 1, 0.3);
    w->fast_norm   = tiny_vector(t, c->fast.dim, 1, 0.3);
    return t;
}

static void tiny_close(struct tiny *t)
{
    for (int i = 0; i < t->n_memory; i++)
        free(t->memory[i]);
    free(t);
}

/* ---- the naive model ---- */

static double naive_weight(const struct matrix *m, int row, int col)
{
    size_t i = (size_t)row * (size_t)m->cols + (size_t)col;
    return m->format == DT_F32 ? (double)((const float *)m->w)[i]
                               : (double)((const int8_t *)m->w)[i] * (double)((const float *)m->scales)[row];
}

static void naive_linear(const struct matrix *m, const double *x, double *y)
{
    for (int r = 0; r < m->rows; r++) {
        y[r] = m->bias ? (double)m->bias[r] : 0;
        for (int j = 0; j < m->cols; j++)
            y[r] += naive_weight(m, r, j) * x[j];
    }
}

static void naive_norm(const double *x, const float *w, int n, double eps, double *y)
{
    double mean = 0;
    for (int j = 0; j < n; j++)
        mean += x[j] * x[j] / n;
    for (int j = 0; j < n; j++)
        y[j] = x[j] / sqrt(mean + eps) * (double)w[j];
}

static void naive_rope(double *v, int head_dim, float base, int pos)
{
    for (int j = 0; j < head_dim / 2; j++) {
        float  frequency = 1.0f / powf(base, (float)(2 * j) / (float)head_dim), angle = (float)pos * frequency;
        double c = (double)bf16_round(cosf(angle)), s = (double)bf16_round(sinf(angle)), a = v[2 * j], b = v[2 * j + 1];
        v[2 * j]     = a * c - b * s;
        v[2 * j + 1] = b * c + a * s;
    }
}

/* x [n][dim] through all layers, positions 0 … n−1, causal. */
static void naive_stack(const struct stack_config *s, const struct block *blocks, float base, double eps, double *x, int n)
{
    const int d = s->head_dim, qkv = (s->n_head + 2 * s->n_kv_heads) * d, shared = s->n_head / s->n_kv_heads;
    double   *all = malloc((size_t)n * (size_t)qkv * sizeof *all), *norm = malloc((size_t)s->dim * sizeof *norm);
    double   *mixed = malloc((size_t)s->n_head * (size_t)d * sizeof *mixed), *out = malloc((size_t)s->dim * sizeof *out);
    double   *gate = malloc((size_t)s->intermediate_size * sizeof *gate), *up = malloc((size_t)s->intermediate_size * sizeof *up);
    double   *p = malloc((size_t)n * sizeof *p);
    for (int l = 0; l < s->n_layer; l++) {
        const struct block *b = &blocks[l];
        for (int t = 0; t < n; t++) {
            double *row = all + (size_t)t * (size_t)qkv;
            naive_norm(x + t * s->dim, b->attention_norm, s->dim, eps, norm);
            naive_linear(&b->wqkv, norm, row);
            for (int h = 0; h < s->n_head + s->n_kv_heads; h++) {
                if (s->qk_norm)
                    naive_norm(row + h * d, h < s->n_head ? b->q_norm : b->k_norm, d, eps, row + h * d);
                naive_rope(row + h * d, d, base, t);
            }
        }
        for (int t = 0; t < n; t++) {
            for (int h = 0; h < s->n_head; h++) {
                const int     k_at = (s->n_head + h / shared) * d, v_at = k_at + s->n_kv_heads * d;
                const double *q    = all + t * qkv + h * d;
                double        most = -INFINITY, sum = 0;
                for (int u = 0; u <= t; u++) {
                    p[u] = 0;
                    for (int j = 0; j < d; j++)
                        p[u] += q[j] * all[u * qkv + k_at + j] / sqrt(d);
                    most = fmax(most, p[u]);
                }
                for (int u = 0; u <= t; u++)
                    sum += p[u] = exp(p[u] - most);
                for (int j = 0; j < d; j++) {
                    mixed[h * d + j] = 0;
                    for (int u = 0; u <= t; u++)
                        mixed[h * d + j] += p[u] / sum * all[u * qkv + v_at + j];
                }
            }
            naive_linear(&b->wo, mixed, out);
            for (int j = 0; j < s->dim; j++)
                x[t * s->dim + j] += out[j];
            naive_norm(x + t * s->dim, b->ffn_norm, s->dim, eps, norm);
            naive_linear(&b->w1, norm, gate);
            naive_linear(&b->w3, norm, up);
            for (int j = 0; j < s->intermediate_size; j++)
                gate[j] = gate[j] / (1 + exp(-gate[j])) * up[j];
            naive_linear(&b->w2, gate, out);
            for (int j = 0; j < s->dim; j++)
                x[t * s->dim + j] += out[j];
        }
    }
    void *memory[] = {all, norm, mixed, out, gate, up, p};
    for (int i = 0; i < 7; i++)
        free(memory[i]);
}

static void naive_embed(const struct weights *w, const int32_t *column, double *x)
{
    const struct model_config *c        = &w->config;
    const bool                 semantic = column[0] >= c->semantic_begin_id && column[0] <= c->semantic_end_id;
    for (int j = 0; j < c->slow.dim; j++) {
        x[j] = naive_weight(&w->embeddings, column[0], j);
        for (int i = 0; semantic && i < c->num_codebooks; i++)
            x[j] += naive_weight(&w->codebook_embeddings, i * c->codebook_size + column[1 + i], j);
        if (semantic && c->scale_codebook_embeddings)
            x[j] /= sqrt(c->num_codebooks + 1);
    }
}

/* Greedy choice after the penalty of every distinct id in history. */
static int naive_best(const double *logits, int n, const int *history, int n_history, double penalty)
{
    int    best  = -1;
    double value = -INFINITY;
    for (int i = 0; i < n; i++) {
        double z = logits[i];
        for (int h = 0; h < n_history; h++)
            if (history[h] == i) {
                z = z < 0 ? z * penalty : z / penalty;
                break;
            }
        if (z > value) {
            value = z;
            best  = i;
        }
    }
    return best;
}

/* What the naive model made. Slow logits over the whole vocabulary; masked ids are −∞. */
struct naive_run {
    int     n;
    int32_t frames[TINY_FRAMES_MAX][1 + TINY_BOOKS_MAX];
    double  slow[TINY_FRAMES_MAX][TINY_VOCAB];
    double *fast; /* [TINY_FRAMES_MAX][TINY_BOOKS_MAX][codebook_size] */
    double  hidden[TINY_FRAMES_MAX][64];
};

struct naive_rules {
    bool   s2, semantic_only;
    double penalty;
    int    residual_rows;
};

/* Decode n frames greedily after prompt columns [t][1 + codebooks] (row by row: columns[t·(1+N) + r]). */
static void naive_decode(const struct weights *w, const int32_t *prompt, int t, int n, const struct naive_rules *rules,
                         struct naive_run *r)
{
    const struct model_config *c = &w->config;
    const int N = c->num_codebooks, D = c->slow.dim, Df = c->fast.dim;
    int32_t  *columns = calloc((size_t)(t + n) * (size_t)(1 + N), sizeof *columns);
    double   *x = malloc((size_t)(t + n) * (size_t)D * sizeof *x), *norm = malloc((size_t)(D > Df ? D : Df) * sizeof *norm);
    double   *fast = malloc((size_t)N * (size_t)Df * sizeof *fast), *run = malloc((size_t)N * (size_t)Df * sizeof *run);
    static int matrix[1 + TINY_BOOKS_MAX][8192]; /* the reference's list of loop frames */
    memset(matrix, 0, sizeof matrix);
    memcpy(columns, prompt, (size_t)t * (size_t)(1 + N) * sizeof *columns);
    for (r->n = 0; r->n < n;) {
        const int k = r->n, loop = k - 1, start = loop < 16 ? 0 : loop - 16;
        int       history[64], n_history = 0;
        for (int i = 0; i < t + k; i++)
            naive_embed(w, columns + i * (1 + N), x + i * D);
        naive_stack(&c->slow, w->layers, c->rope_base, (double)c->norm_eps, x, t + k);
        double *last = x + (t + k - 1) * D;
        naive_norm(last, w->norm, D, (double)c->norm_eps, norm);
        naive_linear(&w->output, norm, r->slow[k]);
        if (rules->s2 || rules->semantic_only)
            for (int i = 0; i < c->vocab_size; i++)
                if ((i < c->semantic_begin_id || i > c->semantic_end_id) && i != c->im_end_id)
                    r->slow[k][i] = -INFINITY;
        if (k > 0 && !rules->s2)
            for (int row = 0; row <= N; row++)
                history[n_history++] = matrix[row][start]; /* the reference's slip: the first column */
        int32_t *frame = r->frames[k];
        frame[0]       = naive_best(r->slow[k], c->vocab_size, history, n_history, rules->penalty);
        frame[1]       = frame[0] - c->semantic_begin_id;
        frame[1]       = frame[1] < 0 ? 0 : frame[1] >= c->codebook_size ? c->codebook_size - 1 : frame[1];
        const double *given = c->norm_fastlayer_input ? norm : last;
        if (w->fast_project_in.w)
            naive_linear(&w->fast_project_in, given, fast);
        else
            memcpy(fast, given, (size_t)Df * sizeof *fast);
        memcpy(r->hidden[k], fast, (size_t)Df * sizeof *fast);
        for (int i = 1; i < N; i++) {
            for (int j = 0; j < Df; j++)
                fast[i * Df + j] = naive_weight(&w->fast_embeddings, frame[i], j);
            memcpy(run, fast, (size_t)(i + 1) * (size_t)Df * sizeof *run);
            naive_stack(&c->fast, w->fast_layers, c->rope_base, (double)c->norm_eps, run, i + 1);
            naive_norm(run + i * Df, w->fast_norm, Df, (double)c->norm_eps, norm);
            double *logits = r->fast + ((size_t)k * TINY_BOOKS_MAX + (size_t)i) * (size_t)c->codebook_size;
            naive_linear(&w->fast_output, norm, logits);
            n_history = 0;
            for (int column = start; k > 0 && !rules->s2 && column < start + 16; column++)
                history[n_history++] = matrix[1 + i][column];
            frame[1 + i] = naive_best(logits, rules->residual_rows, history, n_history, rules->penalty);
        }
        for (int row = 0; row <= N; row++) {
            columns[(t + k) * (1 + N) + row] = frame[row];
            if (k > 0)
                matrix[row][loop] = frame[row];
        }
        r->n++;
        if (k > 0 && frame[0] == c->im_end_id)
            break;
    }
    void *memory[] = {columns, x, norm, fast, run};
    for (int i = 0; i < 5; i++)
        free(memory[i]);
}

#endif
