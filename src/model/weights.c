#include "model/weights.h"

#include "base/log.h"
#include "model/bf16.h"
#include "model/floats.h"
#include "model/quantize.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    LARGE_PAGE   = 2 << 20,
    REGION_BYTES = 64 << 20, /* matrices stand one behind the other in regions of this size or their own, if larger */
    REGION_FROM  = 256 << 10 /* smaller ones are malloc'ed                                                         */
};

/* Everything weights_open allocated. */
struct weights_owned {
    void **blocks;
    size_t n, capacity;
    char  *region; /* the newest, also among the blocks */
    size_t region_used, region_size;
};

struct arranger {
    const struct checkpoint *c;
    struct weights          *w;
    enum recipe              recipe;
    int                      n_threads;
};

/* A new region whose first `used` bytes are taken, in large pages where the system has them: on two Zen 5 cores INT8
 * products read 74 GB/s from such pages and 62 from those of 4 KB. Single matrices in large pages would waste a third. */
static void *open_region(struct weights_owned *o, size_t used)
{
    size_t size = used > REGION_BYTES ? used : REGION_BYTES;
    size = (size + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    void *region = aligned_alloc(LARGE_PAGE, size);
    if (!region)
        return NULL;
    madvise(region, size, MADV_HUGEPAGE); /* a wish: refused where the kernel has none */
    o->region      = region;
    o->region_used = used;
    o->region_size = size;
    return region;
}

/* bytes at an address fit for every format, freed by weights_close(). */
static status_t own(struct weights *w, size_t bytes, void **out)
{
    struct weights_owned *o = w->owned;
    if (o->n == o->capacity) {
        size_t capacity = o->capacity ? 2 * o->capacity : 64;
        void **grown    = realloc(o->blocks, capacity * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no host memory for the list of weights");
        o->blocks   = grown;
        o->capacity = capacity;
    }
    const size_t aligned = (bytes + 63) / 64 * 64;
    if (bytes >= REGION_FROM && aligned <= o->region_size - o->region_used) {
        *out = o->region + o->region_used;
        o->region_used += aligned;
        return ST_OK;
    }
    void *block = bytes >= REGION_FROM ? open_region(o, aligned) : malloc(bytes ? bytes : 1);
    if (!block)
        return FAIL(ST_ENOMEM, "no host memory for %zu bytes of weights", bytes);
    o->blocks[o->n++] = block;
    *out              = block;
    return ST_OK;
}

/* ---- conversion, a range of rows at a time --------------------------------------------------------------------- */

struct conversion {
    const struct tensor *t;
    enum recipe          recipe;
    enum dtype           to;     /* DT_F32, DT_BF16, DT_I8 */
    void                *out, *scales;
    int64_t              row0, row1, cols;
    status_t             st;
};

/* Rows [row0, row1) of INT8. The original casts the model to BF16 before it quantizes, so other floats pass through BF16. */
static status_t quantize_range(const struct conversion *v)
{
    const size_t cols = (size_t)v->cols, scale_size = dtype_size(recipe_scale_dtype(v->recipe, DT_BF16));
    int8_t      *q      = (int8_t *)v->out + (size_t)v->row0 * cols;
    char        *scales = (char *)v->scales + (size_t)v->row0 * scale_size;
    if (v->t->dtype == DT_BF16)
        return quantize_rows(v->recipe, v->t->name, v->row0, (const char *)v->t->data + (size_t)v->row0 * cols * 2, DT_BF16,
                             v->row1 - v->row0, v->cols, q, scales);
    bf16_t *row = malloc(cols * sizeof *row);
    if (!row)
        return FAIL(ST_ENOMEM, "no host memory for a row of %zu weights", cols);
    status_t st = ST_OK;
    for (int64_t r = v->row0; r < v->row1 && st == ST_OK; r++, q += cols, scales += scale_size) {
        for (size_t j = 0; j < cols; j++)
            row[j] = bf16_from_f32(float_element(v->t, (size_t)r * cols + j));
        st = quantize_rows(v->recipe, v->t->name, r, row, DT_BF16, 1, v->cols, q, scales);
    }
    free(row);
    return st;
}

static void *convert_range(void *arg)
{
    struct conversion *v = arg;
    if (v->to == DT_I8) {
        v->st = quantize_range(v);
        return NULL;
    }
    const size_t end = (size_t)v->row1 * (size_t)v->cols;
    for (size_t i = (size_t)v->row0 * (size_t)v->cols; i < end; i++) {
        float f = float_element(v->t, i);
        if (v->to == DT_F32)
            ((float *)v->out)[i] = f;
        else
            ((bf16_t *)v->out)[i] = bf16_from_f32(f);
    }
    v->st = ST_OK;
    return NULL;
}

static int allowed_cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
}

enum { MAX_THREADS = 256, ROWS_PER_THREAD = 64 };

/* Convert all rows of v->t, split over threads in contiguous ranges (results do not depend on the split). */
static status_t convert(const struct conversion *v, int64_t rows, int n_threads)
{
    struct conversion parts[MAX_THREADS];
    pthread_t         ids[MAX_THREADS];
    bool              started[MAX_THREADS] = {false};
    int64_t           n = n_threads > 0 ? n_threads : allowed_cores(), most = rows / ROWS_PER_THREAD + 1;
    n = n > most ? most : n;
    n = n > MAX_THREADS ? MAX_THREADS : n;
    for (int64_t i = 0; i < n; i++) {
        parts[i]      = *v;
        parts[i].row0 = rows * i / n;
        parts[i].row1 = rows * (i + 1) / n;
        /* A system that has no thread left still converts, here. */
        started[i] = i + 1 < n && pthread_create(&ids[i], NULL, convert_range, &parts[i]) == 0;
        if (!started[i])
            convert_range(&parts[i]);
    }
    status_t st = ST_OK;
    for (int64_t i = 0; i < n; i++) {
        if (started[i])
            pthread_join(ids[i], NULL);
        st = st == ST_OK ? parts[i].st : st;
    }
    return st;
}

/* ---- arranging -------------------------------------------------------------------------------------------------- */

static const struct tensor *find(const struct arranger *a, const char *name)
{
    return tensor_set_find(&a->c->tensors, name);
}

static status_t need(const struct arranger *a, const char *name, int64_t rows, int64_t cols, const struct tensor **out)
{
    const struct tensor *t = find(a, name);
    if (!t)
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" is missing", a->c->weights_path, name);
    int rank = cols ? 2 : 1;
    if (t->rank != rank || t->shape[0] != rows || (cols && t->shape[1] != cols))
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" has a wrong shape, want [%lld%s%.0lld]", a->c->weights_path, name,
                    (long long)rows, cols ? ", " : "", (long long)cols);
    *out = t;
    return ST_OK;
}

/* A vector widened to FP32: norms and biases. *out stays NULL when `wanted` is false. */
static status_t take_vector(struct arranger *a, bool wanted, const char *name, int n, const float **out)
{
    const struct tensor *t;
    void                *copy;
    if (!wanted)
        return ST_OK;
    TRY(need(a, name, n, 0, &t));
    if (!float_dtype(t->dtype))
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" is %s, want floating point", a->c->weights_path, name,
                    dtype_name(t->dtype));
    TRY(own(a->w, (size_t)n * sizeof(float), &copy));
    for (int i = 0; i < n; i++)
        ((float *)copy)[i] = float_element(t, (size_t)i);
    a->w->bytes += (size_t)n * (a->w->precision == PRECISION_FP32 ? sizeof(float) : sizeof(bf16_t));
    *out = copy;
    return ST_OK;
}

/* The tensor's own bytes where they can be used as they stand, else a copy at a proper address. */
static status_t take_bytes(struct arranger *a, const struct tensor *t, const void **out)
{
    if ((uintptr_t)t->data % dtype_size(t->dtype) == 0) {
        *out = t->data;
        return ST_OK;
    }
    void *copy;
    TRY(own(a->w, t->bytes, &copy));
    memcpy(copy, t->data, t->bytes);
    *out = copy;
    return ST_OK;
}

static status_t take_stored_int8(struct arranger *a, const struct tensor *t, const char *stem, struct matrix *m)
{
    char name[192];
    snprintf(name, sizeof name, "%s.scales", stem);
    const struct tensor *scales = find(a, name);
    if (!scales || tensor_elements(scales) != m->rows || (scales->dtype != DT_BF16 && scales->dtype != DT_F32))
        return FAIL(ST_EINPUT, "%s: INT8 tensor \"%s.weight\" needs \"%s\", BF16 or F32, %d values", a->c->weights_path,
                    stem, name, m->rows);
    m->format      = DT_I8;
    m->scale_dtype = scales->dtype;
    TRY(take_bytes(a, t, &m->w));
    return take_bytes(a, scales, &m->scales);
}

static status_t take_converted(struct arranger *a, const struct tensor *t, struct matrix *m)
{
    void             *out;
    const size_t      elements = (size_t)m->rows * (size_t)m->cols;
    struct conversion v = {.t = t, .recipe = a->recipe, .to = m->format, .cols = m->cols};
    TRY(own(a->w, elements * dtype_size(m->format), &out));
    m->w = v.out = out;
    if (m->format == DT_I8) {
        m->scale_dtype = recipe_scale_dtype(a->recipe, DT_BF16);
        TRY(own(a->w, (size_t)m->rows * dtype_size(m->scale_dtype), &v.scales));
        m->scales = v.scales;
    }
    return convert(&v, m->rows, a->n_threads);
}

/* STEM.weight [rows, cols] in this precision, and STEM.bias when `bias`. */
static status_t take_matrix(struct arranger *a, const char *stem, int64_t rows, int64_t cols, bool bias, struct matrix *m)
{
    char                 name[192];
    const struct tensor *t;
    struct weights      *w = a->w;
    snprintf(name, sizeof name, "%s.weight", stem);
    TRY(need(a, name, rows, cols, &t));
    if (rows > INT32_MAX || cols > INT32_MAX)
        return FAIL(ST_EUNSUPPORTED, "%s: tensor \"%s\" is too large", a->c->weights_path, name);
    m->rows   = (int)rows;
    m->cols   = (int)cols;
    bool int8 = w->precision == PRECISION_INT8 && quantize_applies(&w->config, name);
    m->format = w->precision == PRECISION_FP32 ? DT_F32 : int8 ? DT_I8 : DT_BF16;
    if (t->dtype == DT_I8) {
        if (!int8)
            return FAIL(ST_EUNSUPPORTED, "%s: tensor \"%s\" is stored as INT8 and cannot be decoded as %s; use --precision int8 "
                        "or the checkpoint it was made from", a->c->weights_path, name, precision_name(w->precision));
        TRY(take_stored_int8(a, t, stem, m));
    } else if (!float_dtype(t->dtype))
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" is %s, want floating point or INT8", a->c->weights_path, name,
                    dtype_name(t->dtype));
    else if (t->dtype == m->format)
        TRY(take_bytes(a, t, &m->w));
    else
        TRY(take_converted(a, t, m));
    w->bytes += (size_t)rows * (size_t)cols * dtype_size(m->format);
    if (m->scales) {
        w->scale_bytes += (size_t)rows * dtype_size(m->scale_dtype);
        w->bytes += (size_t)rows * dtype_size(m->scale_dtype);
    }
    snprintf(name, sizeof name, "%s.bias", stem);
    return take_vector(a, bias, name, m->rows, &m->bias);
}

static status_t take_block(struct arranger *a, const char *prefix, int layer, const struct stack_config *s, struct block *b)
{
    char          name[128];
    const int64_t q = (int64_t)s->n_head * s->head_dim, kv = (int64_t)s->n_kv_heads * s->head_dim;
#define NAMED(what) (snprintf(name, sizeof name, "%s.%d.%s", prefix, layer, what), name)
    TRY(take_matrix(a, NAMED("attention.wqkv"), q + 2 * kv, s->dim, s->qkv_bias, &b->wqkv));
    TRY(take_matrix(a, NAMED("attention.wo"), s->dim, q, s->o_bias, &b->wo));
    TRY(take_matrix(a, NAMED("feed_forward.w1"), s->intermediate_size, s->dim, false, &b->w1));
    TRY(take_matrix(a, NAMED("feed_forward.w3"), s->intermediate_size, s->dim, false, &b->w3));
    TRY(take_matrix(a, NAMED("feed_forward.w2"), s->dim, s->intermediate_size, false, &b->w2));
    TRY(take_vector(a, true, NAMED("attention_norm.weight"), s->dim, &b->attention_norm));
    TRY(take_vector(a, true, NAMED("ffn_norm.weight"), s->dim, &b->ffn_norm));
    TRY(take_vector(a, s->qk_norm, NAMED("attention.q_norm.weight"), s->head_dim, &b->q_norm));
    return take_vector(a, s->qk_norm, NAMED("attention.k_norm.weight"), s->head_dim, &b->k_norm);
#undef NAMED
}

static status_t take_stack(struct arranger *a, const char *prefix, const struct stack_config *s, struct block **out)
{
    void *blocks;
    TRY(own(a->w, (size_t)s->n_layer * sizeof **out, &blocks));
    memset(blocks, 0, (size_t)s->n_layer * sizeof **out);
    *out = blocks;
    for (int l = 0; l < s->n_layer; l++)
        TRY(take_block(a, prefix, l, s, *out + l));
    return ST_OK;
}

static status_t arrange(struct arranger *a)
{
    struct weights            *w = a->w;
    const struct model_config *c = &w->config;
    TRY(take_matrix(a, "embeddings", c->vocab_size, c->slow.dim, false, &w->embeddings));
    TRY(take_matrix(a, "codebook_embeddings", (int64_t)c->num_codebooks * c->codebook_size, c->slow.dim, false,
                    &w->codebook_embeddings));
    TRY(take_stack(a, "layers", &c->slow, &w->layers));
    TRY(take_vector(a, true, "norm.weight", c->slow.dim, &w->norm));
    if (c->tie_word_embeddings)
        w->output = w->embeddings;
    else
        TRY(take_matrix(a, "output", c->vocab_size, c->slow.dim, false, &w->output));
    TRY(take_matrix(a, "fast_embeddings", c->codebook_size, c->fast.dim, false, &w->fast_embeddings));
    if (c->fast.dim != c->slow.dim)
        TRY(take_matrix(a, "fast_project_in", c->fast.dim, c->slow.dim, true, &w->fast_project_in));
    TRY(take_stack(a, "fast_layers", &c->fast, &w->fast_layers));
    TRY(take_vector(a, true, "fast_norm.weight", c->fast.dim, &w->fast_norm));
    return take_matrix(a, "fast_output", c->codebook_size, c->fast.dim, false, &w->fast_output);
}

status_t weights_open(const struct checkpoint *c, enum precision precision, enum recipe recipe, int n_threads,
                      struct weights **out)
{
    const enum recipe stored = c->config.quantization.recipe;
    struct weights   *w      = calloc(1, sizeof *w);
    if (w)
        w->owned = calloc(1, sizeof *w->owned);
    if (!w || !w->owned) {
        weights_close(w);
        return FAIL(ST_ENOMEM, "no host memory for the weights");
    }
    if (precision == PRECISION_INT8 && stored != RECIPE_NONE && recipe != RECIPE_NONE && recipe != stored)
        log_warn("%s: its INT8 weights were made with recipe %s; recipe %s is not applied", c->dir, recipe_name(stored),
                 recipe_name(recipe));
    w->config         = c->config;
    w->precision      = precision;
    struct arranger a = {.c = c, .w = w, .recipe = recipe == RECIPE_NONE ? RECIPE_TORCHAO : recipe, .n_threads = n_threads};
    status_t        st = arrange(&a);
    if (st != ST_OK) {
        weights_close(w);
        return st;
    }
    *out = w;
    return ST_OK;
}

void weights_close(struct weights *w)
{
    if (!w)
        return;
    for (size_t i = 0; w->owned && i < w->owned->n; i++)
        free(w->owned->blocks[i]);
    if (w->owned)
        free(w->owned->blocks);
    free(w->owned);
    free(w);
}
