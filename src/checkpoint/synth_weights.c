#include "checkpoint/synth_weights.h"

#include "checkpoint/rope_table.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { ONE = 1 << 16 /* 1.0 in the unit of noise bases and edges */ };

/* ---- scales ---- */

/* Columns that carry the constant, its value in the embeddings, and what the last norm makes of it (times 100). */
static int64_t edge_cols(const struct shape *shape)
{
    int64_t dim = shape->config.slow.dim, cols = dim / 8 < 16 ? 16 : dim / 8;
    return cols < dim ? cols : dim;
}

enum { EDGE_VALUE = 2 * ONE, EDGE_NORMED = 130 };

/* Edge value of a head row that moves its logit by hundredths/100. */
static int32_t edge_for_logit(const struct shape *shape, int hundredths)
{
    return (int32_t)((int64_t)hundredths * ONE / (edge_cols(shape) * EDGE_NORMED));
}

/* Ids that the S1 tokenizer of n ranks gives (15 control tokens, then the semantic ones); S2 has them in its config. */
static void token_ids(const struct shape *shape, int64_t *im_end, int64_t *begin, int64_t *end)
{
    const struct model_config *c  = &shape->config;
    bool                       s1 = c->family == FAMILY_S1;
    *im_end                       = s1 ? shape->n_ranks + 4 : c->im_end_id;
    *begin                        = s1 ? shape->n_ranks + 15 : c->semantic_begin_id;
    *end                          = s1 ? *begin + 4096 : c->semantic_end_id + 1;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The slow head's σ, and with an untied head the edges that favour semantic tokens. Text rows go down by 12; im_end goes
 * to 6 below the logarithm of the semantic mass, ln 4096 + s²/2 (measured with 6 seeds each: s1-nano then ends after 20 to
 * 600 frames, s1-micro after 4 to 180; 5 below gives tens of frames only). */
static void fill_head(const struct shape *shape, struct noise *n, bool tied)
{
    int64_t im_end, begin, end;
    token_ids(shape, &im_end, &begin, &end);
    n->scale      = noise_scale_make((uint32_t)shape->head_sigma, 100, (uint64_t)shape->config.slow.dim);
    n->cols       = shape->config.slow.dim;
    n->scaled_row = im_end;
    if (tied) {
        n->scaled_by = 6; /* half again as wide: now and then the highest logit */
        return;
    }
    int mass     = 832 + shape->head_sigma * shape->head_sigma / 200;
    n->scaled_by = 1;
    n->edge_cols = edge_cols(shape);
    n->n_edges   = 3;
    n->edges[0]  = (struct noise_edge){im_end, im_end + 1, edge_for_logit(shape, mass - 600)};
    n->edges[1]  = (struct noise_edge){0, begin, -edge_for_logit(shape, 1200)};
    n->edges[2]  = (struct noise_edge){end, shape->config.vocab_size, -edge_for_logit(shape, 1200)};
}

/* A table of σ 1 whose first columns hold `value` in all rows. */
static void fill_table(const struct shape *shape, struct noise *n, const struct layout_entry *e, int32_t value)
{
    n->scale = noise_scale_make(1, 1, 1);
    if (shape->config.tie_word_embeddings)
        return;
    n->cols      = e->shape[1];
    n->edge_cols = edge_cols(shape);
    n->n_edges   = 1;
    n->edges[0]  = (struct noise_edge){0, e->shape[0], value};
}

struct filling filling_for_weight(const struct shape *shape, uint64_t seed, const struct layout_entry *e)
{
    struct filling f    = {.kind = FILL_NOISE, .noise = {.key = noise_key(seed, e->name)}};
    struct noise  *n    = &f.noise;
    bool           tied = shape->config.tie_word_embeddings, fast = strncmp(e->name, "fast_", 5) == 0;
    uint64_t       in   = e->rank == 2 ? (uint64_t)e->shape[1] : 1;
    uint64_t       residual = in * 2 * (uint64_t)(fast ? shape->config.fast.n_layer : shape->config.slow.n_layer);

    if (e->kind == LAYOUT_NORM) {
        n->scale = noise_scale_make(1, 50, 1);
        n->base  = ONE;
    } else if (e->kind == LAYOUT_BIAS) {
        n->scale = noise_scale_make(1, 50, 1);
    } else if (strcmp(e->name, "output.weight") == 0 || (tied && strcmp(e->name, "embeddings.weight") == 0)) {
        fill_head(shape, n, tied);
    } else if (strcmp(e->name, "embeddings.weight") == 0) {
        fill_table(shape, n, e, EDGE_VALUE);
    } else if (strcmp(e->name, "codebook_embeddings.weight") == 0) {
        /* Eleven rows are added and divided by √11: with 15/64 of the constant each, the sum keeps it. */
        fill_table(shape, n, e, EDGE_VALUE * 15 / 64);
    } else if (strcmp(e->name, "fast_output.weight") == 0) {
        n->scale = noise_scale_make((uint32_t)shape->fast_sigma, 100, in);
    } else if (strcmp(e->name, "fast_embeddings.weight") == 0) {
        n->scale = noise_scale_make(1, 1, 1);
    } else if (ends_with(e->name, ".wo.weight")) {
        n->scale = noise_scale_make(1, 1, residual);
    } else if (ends_with(e->name, ".w2.weight")) {
        n->scale = noise_scale_make(5, 3, residual);
    } else {
        n->scale = noise_scale_make(1, 1, in);
    }
    return f;
}

struct filling filling_for_codec(uint64_t seed, const struct codec_entry *e)
{
    struct filling f = {.kind = FILL_NOISE, .noise = {.key = noise_key(seed, e->name)}};
    struct noise  *n = &f.noise;
    switch (e->kind) {
    case CODEC_DIRECTION:
    case CODEC_LINEAR:
        n->scale = noise_scale_make(1, 1, (uint64_t)e->fan);
        break;
    case CODEC_MAGNITUDE:
        n->scale = noise_scale_make(1, 50, 1);
        n->base  = e->gain;
        break;
    case CODEC_BIAS:
        n->scale = noise_scale_make(1, 100, 1);
        break;
    case CODEC_ALPHA:
        n->scale = noise_scale_make(1, 10, 1);
        n->base  = ONE;
        break;
    case CODEC_NORM:
        n->scale = noise_scale_make(1, 50, 1);
        n->base  = ONE;
        break;
    case CODEC_GAMMA:
        n->scale = noise_scale_make(1, 20, 1);
        n->base  = ONE / 2;
        break;
    case CODEC_CODEBOOK:
        n->scale = noise_scale_make(1, 1, 1);
        break;
    case CODEC_ROPE:
        f.kind      = FILL_ROPE;
        f.positions = e->shape[0];
        f.pairs     = (int)e->shape[1];
        break;
    case CODEC_MASK:
        f.kind = FILL_MASK;
        f.side = e->shape[0];
        break;
    }
    return f;
}

double head_sigma(const struct shape *shape, bool fast)
{
    uint64_t in = (uint64_t)(fast ? shape->config.fast.dim : shape->config.slow.dim);
    return noise_scale_sigma(noise_scale_make((uint32_t)(fast ? shape->fast_sigma : shape->head_sigma), 100, in)) *
           sqrt((double)in);
}

/* ---- production ---- */

/* Elements are made in slices, one a thread, of a buffer that is then written whole. On two cores S1-mini's 860 M elements
 * take 3 s of which CRC32 and the page cache are the larger half; a pipeline would gain nothing that a disk can take. */
enum { SLICE_ELEMENTS = 2 << 20, MAX_THREADS = 16 };

struct slice {
    const struct filling *filling;
    enum dtype            dtype;
    int64_t               begin, n;
    unsigned char        *out;
};

static void fill_mask(unsigned char *out, int64_t side, int64_t begin, int64_t n)
{
    for (int64_t i = 0; i < n;) {
        int64_t row = (begin + i) / side, col = (begin + i) % side, stop = side - col < n - i ? side - col : n - i;
        for (int64_t k = 0; k < stop; k++)
            out[i + k] = col + k <= row;
        i += stop;
    }
}

static void *fill_slice(void *argument)
{
    struct slice *s = argument;
    if (s->filling->kind == FILL_MASK)
        fill_mask(s->out, s->filling->side, s->begin, s->n);
    else
        noise_fill(&s->filling->noise, s->dtype, s->begin, s->n, s->out);
    return NULL;
}

static int allowed_cores(void)
{
    cpu_set_t set;
    int       n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

/* Fill n elements from begin on with all cores. A thread that cannot start has its slice done here. */
static void fill_batch(const struct filling *filling, enum dtype dtype, int64_t begin, int64_t n, unsigned char *out,
                       int n_threads)
{
    pthread_t    threads[MAX_THREADS];
    struct slice slices[MAX_THREADS];
    bool         started[MAX_THREADS] = {false};
    int64_t      share                = (n + n_threads - 1) / n_threads;
    for (int i = 0; i < n_threads; i++) {
        int64_t from = i * share < n ? i * share : n, left = n - from;
        slices[i] = (struct slice){filling, dtype, begin + from, left < share ? left : share,
                                   out + (size_t)from * dtype_size(dtype)};
        if (i > 0 && slices[i].n > 0)
            started[i] = pthread_create(&threads[i], NULL, fill_slice, &slices[i]) == 0;
    }
    for (int i = 0; i < n_threads; i++) {
        if (started[i])
            pthread_join(threads[i], NULL);
        else
            fill_slice(&slices[i]);
    }
}

status_t filling_write(const struct filling *filling, const struct tensor *t,
                       status_t (*write)(void *context, const void *data, size_t bytes), void *context)
{
    int64_t n = tensor_elements(t), batch = (int64_t)SLICE_ELEMENTS * allowed_cores();
    size_t  element = dtype_size(t->dtype);
    if (filling->kind == FILL_ROPE || batch > n)
        batch = n;
    unsigned char *buffer = malloc((size_t)batch * element + 1);
    if (!buffer)
        return FAIL(ST_ENOMEM, "no memory for %lld elements of \"%s\"", (long long)batch, t->name);
    status_t st = ST_OK;
    for (int64_t at = 0; at < n && st == ST_OK; at += batch) {
        int64_t now = n - at < batch ? n - at : batch;
        if (filling->kind == FILL_ROPE)
            rope_table_fill(filling->positions, filling->pairs, buffer);
        else
            fill_batch(filling, t->dtype, at, now, buffer, now < 65536 ? 1 : allowed_cores());
        st = write(context, buffer, (size_t)now * element);
    }
    free(buffer);
    return st;
}
