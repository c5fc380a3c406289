/* Every op of every backend on this machine against a twin in double precision that rounds where decode.md says.
 *
 * Inputs are small dyadic numbers wherever a sum is involved, so that FP32 sums are exact in any order and a result that
 * differs by one BF16 step is a misplaced rounding, not an order of addition. Each rounding test also computes the op
 * without its inner rounding and demands that the two differ, so that it cannot pass on a plain path. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "model/bf16.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const backends[] = {"cpu_ref", "cpu", "cuda"};

/* Share of results that may differ from the twin by one BF16 step where exp, rsqrt or a division stand before a
 * rounding: their last bit differs between libraries and decides a rounding once in about 2^15 cases. */
static const double BOUND_FLIPPED = 2e-3;
/* Least share by which the plain path must differ, else the test would see nothing. */
static const double BOUND_SEEN = 0.02;
/* ROUND_NONE: largest |error| relative to the largest result. */
static const double BOUND_PLAIN = 2e-6;

static struct backend           *be;
static const struct backend_ops *ops;

static uint64_t state;

static uint32_t random_word(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

/* A multiple of 1/8 in [-2, 2]: BF16-exact, products have 6 fraction bits. */
static float dyadic(void)
{
    return (float)((int)(random_word() % 33) - 16) / 8;
}

/* Any BF16 value of ordinary size. */
static float any_bf16(void)
{
    return bf16_round((float)((double)random_word() / 4294967296.0 * 4 - 2));
}

static float *fill(size_t n, float (*value)(void))
{
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = value();
    return v;
}

static float *device(const float *v, size_t n)
{
    void *d;
    assert_int_equal(ops->alloc(be, MEM_WORKSPACE, n * sizeof(float), &d), ST_OK);
    if (v)
        assert_int_equal(ops->upload(be, d, v, n * sizeof(float)), ST_OK);
    return d;
}

static float *host(const float *d, size_t n)
{
    float *v = malloc(n * sizeof *v);
    assert_int_equal(ops->download(be, v, d, n * sizeof *v), ST_OK);
    return v;
}

static double rd(bool on, double v)
{
    return on ? (double)bf16_round((float)v) : v;
}

/* Distance in BF16 steps. */
static int steps(float a, float b)
{
    int32_t x = (int16_t)bf16_from_f32(a), y = (int16_t)bf16_from_f32(b);
    x = x < 0 ? -(x & 0x7fff) : x;
    y = y < 0 ? -(y & 0x7fff) : y;
    return abs(x - y);
}

static void compare(bool bf16, const float *got, const double *want, size_t n, double flipped, const char *what)
{
    size_t wrong = 0;
    double most = 0, error = 0;
    for (size_t i = 0; i < n; i++) {
        if (bf16 && bf16_round(got[i]) != got[i])
            fail_msg("%s %s: result %zu = %.9g is not a BF16 value", ops->name, what, i, (double)got[i]);
        if (bf16 && got[i] != (float)want[i]) {
            wrong++;
            if (steps(got[i], (float)want[i]) > 1 && fabs((double)got[i] - want[i]) > 1e-3)
                fail_msg("%s %s: result %zu = %.9g, want %.9g", ops->name, what, i, (double)got[i], want[i]);
        }
        most  = fmax(most, fabs(want[i]));
        error = fmax(error, fabs((double)got[i] - want[i]));
    }
    if (bf16 && (double)wrong > flipped * (double)n)
        fail_msg("%s %s: %zu of %zu results are off by a BF16 step", ops->name, what, wrong, n);
    if (!bf16 && error > BOUND_PLAIN * most)
        fail_msg("%s %s: error %g, largest result %g", ops->name, what, error, most);
}

static void assert_seen(const double *faithful, const double *plain, size_t n, const char *what)
{
    size_t differ = 0;
    for (size_t i = 0; i < n; i++)
        differ += faithful[i] != plain[i];
    if ((double)differ < BOUND_SEEN * (double)n)
        fail_msg("%s: only %zu of %zu results show the inner rounding", what, differ, n);
}

/* Run `test` on every backend of this machine, with both roundings; skip what is not here. */
static void each_backend(void (*test)(bool bf16))
{
    int ran = 0;
    for (int b = 0; b < 3; b++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            const struct backend_options o = {.rounding = bf16 ? ROUND_BF16 : ROUND_NONE, .n_threads = 2};
            if (backend_open(backends[b], &o, &be) != ST_OK)
                continue;
            ops   = backend_ops_of(be);
            state = 42;
            test(bf16);
            backend_close(be);
            ran++;
        }
    assert_true(ran >= 4);
}

/* ---- matrices ---- */

/* A matrix of `format` with random dyadic weights; *values gets them as floats (INT8: without the scale). */
static struct matrix make_matrix(enum dtype format, enum dtype scale_dtype, int rows, int cols, bool bias, float **values)
{
    const size_t  n = (size_t)rows * (size_t)cols;
    struct matrix m = {.format = format, .rows = rows, .cols = cols};
    float        *v = fill(n, dyadic);
    void         *w = malloc(n * dtype_size(format));
    for (size_t i = 0; i < n; i++)
        if (format == DT_F32)
            ((float *)w)[i] = v[i];
        else if (format == DT_BF16)
            ((bf16_t *)w)[i] = bf16_from_f32(v[i]);
        else
            ((int8_t *)w)[i] = (int8_t)(v[i] = (float)(int)(random_word() % 256) - 128);
    m.w = w;
    if (format == DT_I8) {
        void *s = malloc((size_t)rows * dtype_size(scale_dtype));
        for (int r = 0; r < rows; r++) {
            float scale = (float)(1 + random_word() % 200) / 16384;
            if (scale_dtype == DT_BF16)
                ((bf16_t *)s)[r] = bf16_from_f32(scale);
            else
                ((float *)s)[r] = scale;
        }
        m.scales      = s;
        m.scale_dtype = scale_dtype;
    }
    if (bias)
        m.bias = fill((size_t)rows, any_bf16);
    *values = v;
    return m;
}

static void free_matrix(struct matrix *m, float *values)
{
    free((void *)m->w);
    free((void *)m->scales);
    free((void *)m->bias);
    free(values);
}

static double scale_of(const struct matrix *m, int row)
{
    return m->scale_dtype == DT_BF16 ? (double)bf16_to_f32(((const bf16_t *)m->scales)[row])
                                     : (double)((const float *)m->scales)[row];
}

static double twin_row(bool bf16, bool inner, const struct matrix *m, const float *values, int row, const float *x)
{
    double sum = 0;
    for (int j = 0; j < m->cols; j++)
        sum += (double)values[(size_t)row * (size_t)m->cols + (size_t)j] * (double)x[j];
    if (m->format == DT_I8) {
        sum = rd(bf16 && inner, sum) * scale_of(m, row);
        if (m->bias)
            sum = rd(bf16 && inner, sum);
    }
    return rd(bf16, sum + (m->bias ? (double)m->bias[row] : 0));
}

static void matmul_one(bool bf16, enum dtype format, enum dtype scale_dtype, int rows, int cols, bool bias, int n)
{
    float        *values, *x = fill((size_t)n * (size_t)cols, dyadic);
    struct matrix m = make_matrix(format, scale_dtype, rows, cols, bias, &values), adopted;
    const int     row0 = rows > 4 ? 3 : 0, count = rows - row0, ldy = count + 2;
    assert_int_equal(ops->adopt(be, &m, &adopted), ST_OK);
    float  *d_x = device(x, (size_t)n * (size_t)cols), *d_y = device(NULL, (size_t)n * (size_t)ldy);
    assert_int_equal(ops->matmul(be, d_y, ldy, &adopted, row0, count, d_x, n), ST_OK);
    float  *y    = host(d_y, (size_t)n * (size_t)ldy);
    double *want = malloc((size_t)n * (size_t)ldy * sizeof *want), *plain = malloc((size_t)n * (size_t)ldy * sizeof *plain);
    for (int t = 0; t < n; t++)
        for (int i = 0; i < ldy; i++) {
            size_t at = (size_t)t * (size_t)ldy + (size_t)i;
            /* columns beyond row_count are not the op's to touch */
            want[at]  = i < count ? twin_row(bf16, true, &m, values, row0 + i, x + (size_t)t * (size_t)cols) : 0;
            plain[at] = i < count ? twin_row(bf16, false, &m, values, row0 + i, x + (size_t)t * (size_t)cols) : 0;
        }
    char what[96];
    snprintf(what, sizeof what, "matmul %s %dx%d n %d%s", dtype_name(format), rows, cols, n, bias ? " with bias" : "");
    compare(bf16, y, want, (size_t)n * (size_t)ldy, scale_dtype == DT_F32 && format == DT_I8 ? BOUND_FLIPPED : 0, what);
    if (bf16 && format == DT_I8 && rows * n >= 200)
        assert_seen(want, plain, (size_t)n * (size_t)ldy, what);

    /* One token alone gives the same bits as in company. */
    float *d_one = device(NULL, (size_t)ldy);
    assert_int_equal(ops->matmul(be, d_one, ldy, &adopted, row0, count, d_x + (size_t)(n - 1) * (size_t)cols, 1), ST_OK);
    float *one = host(d_one, (size_t)count);
    assert_memory_equal(one, y + (size_t)(n - 1) * (size_t)ldy, (size_t)count * sizeof *one);

    ops->release(be, &adopted);
    ops->free(be, d_x);
    ops->free(be, d_y);
    ops->free(be, d_one);
    free(y);
    free(one);
    free(want);
    free(plain);
    free(x);
    free_matrix(&m, values);
}

static void matmul_all(bool bf16)
{
    static const int shapes[][3] = {{1, 1, 1}, {5, 7, 2}, {64, 64, 1}, {33, 100, 3}, {96, 129, 9}, {130, 512, 17}, {257, 1000, 1}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int bias = 0; bias < 2; bias++) {
            matmul_one(bf16, DT_F32, DT_F32, shapes[s][0], shapes[s][1], bias, shapes[s][2]);
            matmul_one(bf16, DT_BF16, DT_F32, shapes[s][0], shapes[s][1], bias, shapes[s][2]);
            matmul_one(bf16, DT_I8, DT_BF16, shapes[s][0], shapes[s][1], bias, shapes[s][2]);
            matmul_one(bf16, DT_I8, DT_F32, shapes[s][0], shapes[s][1], bias, shapes[s][2]);
        }
}

static void matmul_rounds_the_product_then_the_scaled_product_then_the_bias(void **unused)
{
    each_backend(matmul_all);
}

/* ---- embed, gather ---- */

static void embed_one(bool bf16, enum dtype format, bool scale)
{
    enum { DIM = 72, VOCAB = 50, CODES = 20, BOOKS = 10, COLUMNS = 6, FIRST = 25, LAST = 44 };
    float        *text, *codes;
    struct matrix te = make_matrix(format, DT_F32, VOCAB, DIM, false, &text), ce = make_matrix(format, DT_F32, BOOKS * CODES, DIM, false, &codes);
    /* Values with more significant bits than BF16 sums keep, still exact in FP32 sums. */
    for (size_t i = 0; i < (size_t)BOOKS * CODES * DIM; i++) {
        codes[i] = bf16_round(codes[i] + dyadic() / 128);
        if (format == DT_F32)
            ((float *)ce.w)[i] = codes[i];
        else
            ((bf16_t *)ce.w)[i] = bf16_from_f32(codes[i]);
    }
    struct matrix a_te, a_ce;
    assert_int_equal(ops->adopt(be, &te, &a_te), ST_OK);
    assert_int_equal(ops->adopt(be, &ce, &a_ce), ST_OK);
    const struct embed_args args = {.embeddings = &a_te, .codebook_embeddings = &a_ce, .num_codebooks = BOOKS,
                                    .codebook_size = CODES, .semantic_begin = FIRST, .semantic_end = LAST, .scale = scale};
    int32_t cols[COLUMNS][1 + BOOKS];
    static const int tokens[COLUMNS] = {0, FIRST, LAST, FIRST - 1, LAST + 1, 30};
    for (int t = 0; t < COLUMNS; t++) {
        cols[t][0] = tokens[t];
        for (int c = 0; c < BOOKS; c++)
            cols[t][1 + c] = (int32_t)(random_word() % CODES); /* also on text columns, where they count for nothing */
    }
    float  *d_x = device(NULL, COLUMNS * DIM);
    assert_int_equal(ops->embed(be, &args, &cols[0][0], COLUMNS, d_x), ST_OK);
    float  *x = host(d_x, COLUMNS * DIM);
    double *want = malloc(COLUMNS * DIM * sizeof *want), *plain = malloc(COLUMNS * DIM * sizeof *plain);
    float   factor = 1.0f / sqrtf(BOOKS + 1);
    for (int t = 0; t < COLUMNS; t++)
        for (int j = 0; j < DIM; j++) {
            bool   semantic = cols[t][0] >= FIRST && cols[t][0] <= LAST;
            double e = 0;
            for (int c = 0; semantic && c < BOOKS; c++)
                e += (double)codes[(c * CODES + cols[t][1 + c]) * DIM + j];
            double base = (double)text[cols[t][0] * DIM + j], v = rd(bf16, base + rd(bf16, e)), p = rd(bf16, base + e);
            if (semantic && scale) {
                v = rd(bf16, (double)(float)(v * (double)factor));
                p = rd(bf16, (base + e) * (double)factor);
            }
            want[t * DIM + j]  = v;
            plain[t * DIM + j] = p;
        }
    compare(bf16, x, want, COLUMNS * DIM, 0, "embed");
    if (bf16)
        assert_seen(want, plain, COLUMNS * DIM, "embed");

    const int32_t ids[] = {7, 0, 19};
    assert_int_equal(ops->gather(be, &a_ce, ids, 3, d_x), ST_OK);
    float *rows = host(d_x, 3 * DIM);
    for (int t = 0; t < 3; t++)
        assert_memory_equal(rows + t * DIM, codes + ids[t] * DIM, DIM * sizeof *rows);
    free(rows);
    free(x);
    free(want);
    free(plain);
    ops->free(be, d_x);
    ops->release(be, &a_te);
    ops->release(be, &a_ce);
    free_matrix(&te, text);
    free_matrix(&ce, codes);
}

static void embed_all(bool bf16)
{
    embed_one(bf16, DT_BF16, true);
    embed_one(bf16, DT_BF16, false);
    if (!bf16)
        embed_one(bf16, DT_F32, true);
}

static void embed_sums_codebooks_then_rounds_then_adds_the_text_row(void **unused)
{
    each_backend(embed_all);
}

/* ---- pointwise ---- */

static void twin_norm(bool bf16, bool inner, const float *x, const float *w, int dim, double eps, double *y)
{
    double sum = 0;
    for (int j = 0; j < dim; j++)
        sum += (double)x[j] * (double)x[j];
    double r = 1 / sqrt(sum / dim + eps);
    for (int j = 0; j < dim; j++)
        y[j] = rd(bf16, rd(bf16 && inner, (double)x[j] * r) * (double)w[j]);
}

static void rmsnorm_all(bool bf16)
{
    static const int dims[] = {1, 6, 64, 100, 1024, 2560};
    for (size_t k = 0; k < sizeof dims / sizeof *dims; k++) {
        const int    dim = dims[k], n = 3;
        const size_t all = (size_t)n * (size_t)dim;
        float   *x = fill(all, any_bf16), *w = fill((size_t)dim, any_bf16), *d_x = device(x, all), *d_w = device(w, (size_t)dim);
        float   *d_y = device(NULL, all);
        double  *want = malloc(all * sizeof *want), *plain = malloc(all * sizeof *plain);
        assert_int_equal(ops->rmsnorm(be, d_y, d_x, d_w, n, dim, 1e-6f), ST_OK);
        float *y = host(d_y, all);
        for (int t = 0; t < n; t++) {
            twin_norm(bf16, true, x + t * dim, w, dim, (double)1e-6f, want + t * dim);
            twin_norm(bf16, false, x + t * dim, w, dim, (double)1e-6f, plain + t * dim);
        }
        compare(bf16, y, want, all, BOUND_FLIPPED, "rmsnorm");
        if (bf16 && dim >= 64)
            assert_seen(want, plain, all, "rmsnorm");
        float *d[] = {d_x, d_w, d_y};
        for (int i = 0; i < 3; i++)
            ops->free(be, d[i]);
        void *h[] = {x, w, want, plain, y};
        for (int i = 0; i < 5; i++)
            free(h[i]);
    }
}

static void rmsnorm_rounds_before_and_after_the_weight(void **unused)
{
    each_backend(rmsnorm_all);
}

static void pointwise_all(bool bf16)
{
    enum { N = 3, DIM = 1001, ALL = N * DIM };
    float *g = fill(ALL, any_bf16), *u = fill(ALL, any_bf16);
    for (int i = 0; i < 20; i++)
        g[i] = (float[]){0, -0.0f, 100, -100, 1e30f, -1e30f}[i % 6];
    float  *d_g = device(g, ALL), *d_u = device(u, ALL), *d_y = device(NULL, ALL);
    double *want = malloc(ALL * sizeof *want), *plain = malloc(ALL * sizeof *plain);
    for (int i = 0; i < ALL; i++) {
        double s = (double)g[i] / (1 + exp(-(double)g[i]));
        want[i]  = rd(bf16, rd(bf16, s) * (double)u[i]);
        plain[i] = rd(bf16, s * (double)u[i]);
    }
    assert_int_equal(ops->silu_mul(be, d_y, d_g, d_u, N, DIM), ST_OK);
    float *y = host(d_y, ALL);
    assert_int_equal(ops->silu_mul(be, d_g, d_g, d_u, N, DIM), ST_OK); /* in place */
    float *in_place = host(d_g, ALL);
    assert_memory_equal(y, in_place, ALL * sizeof *y);
    for (int i = 0; i < 20; i++) { /* the extremes are checked apart: their size would hide the others' error */
        assert_true(fabs((double)y[i] - want[i]) <= 0.01 * fabs(want[i]) + 1e-30);
        y[i] = 0, want[i] = 0;
    }
    compare(bf16, y, want, ALL, BOUND_FLIPPED, "silu_mul");
    if (bf16)
        assert_seen(want, plain, ALL, "silu_mul");

    float *x = fill(ALL, any_bf16), *d_x = device(x, ALL);
    assert_int_equal(ops->add(be, d_x, d_u, N, DIM), ST_OK);
    float *sum = host(d_x, ALL);
    for (int i = 0; i < ALL; i++)
        want[i] = rd(bf16, (double)x[i] + (double)u[i]);
    compare(bf16, sum, want, ALL, 0, "add");
    float *d[] = {d_g, d_u, d_y, d_x};
    for (int i = 0; i < 4; i++)
        ops->free(be, d[i]);
    void *h[] = {g, u, want, plain, y, in_place, x, sum};
    for (int i = 0; i < 8; i++)
        free(h[i]);
}

static void silu_rounds_before_the_product_and_add_after_the_sum(void **unused)
{
    each_backend(pointwise_all);
}

/* ---- RoPE, cache, attention ---- */

struct shape { int n_head, n_kv, d; };

static struct kv_cache make_cache(enum kv_format format, int n_seq, int n_kv, int max_len, int d)
{
    static const size_t element[] = {4, 2, 1};
    struct kv_cache kv = {.format = format, .n_seq = n_seq, .n_kv_heads = n_kv, .max_len = max_len, .head_dim = d};
    size_t          rows = (size_t)n_seq * (size_t)n_kv * (size_t)max_len;
    assert_int_equal(ops->alloc(be, MEM_KV, rows * (size_t)d * element[format], &kv.d_k), ST_OK);
    assert_int_equal(ops->alloc(be, MEM_KV, rows * (size_t)d * element[format], &kv.d_v), ST_OK);
    if (format == KV_INT8) {
        kv.d_k_scale = device(NULL, rows);
        kv.d_v_scale = device(NULL, rows);
    }
    return kv;
}

static void free_cache(struct kv_cache *kv)
{
    ops->free(be, kv->d_k);
    ops->free(be, kv->d_v);
    ops->free(be, kv->d_k_scale);
    ops->free(be, kv->d_v_scale);
}

/* Row (seq, head, pos) of a cache as doubles. */
static void cache_row(const struct kv_cache *kv, bool v, int seq, int head, int pos, double *out)
{
    size_t rows = (size_t)kv->n_seq * (size_t)kv->n_kv_heads * (size_t)kv->max_len, d = (size_t)kv->head_dim;
    size_t row  = ((size_t)seq * (size_t)kv->n_kv_heads + (size_t)head) * (size_t)kv->max_len + (size_t)pos;
    size_t size = kv->format == KV_FP32 ? 4 : kv->format == KV_BF16 ? 2 : 1;
    void  *all  = malloc(rows * d * size);
    float *scale = kv->format == KV_INT8 ? host(v ? kv->d_v_scale : kv->d_k_scale, rows) : NULL;
    assert_int_equal(ops->download(be, all, v ? kv->d_v : kv->d_k, rows * d * size), ST_OK);
    for (size_t j = 0; j < d; j++)
        out[j] = size == 4   ? (double)((float *)all)[row * d + j]
                 : size == 2 ? (double)bf16_to_f32(((bf16_t *)all)[row * d + j])
                             : (double)((int8_t *)all)[row * d + j] * (double)scale[row];
    free(all);
    free(scale);
}

static void twin_store(enum kv_format format, double *v, int d)
{
    double most = 0;
    for (int j = 0; j < d; j++)
        most = fmax(most, fabs(v[j]));
    float scale = (float)most / 127.0f;
    for (int j = 0; j < d; j++)
        v[j] = format == KV_FP32   ? v[j]
               : format == KV_BF16 ? (double)bf16_round((float)v[j])
               : scale > 0         ? rint((double)((float)v[j] / scale)) * (double)scale
                                   : 0;
}

static float *make_table(int max_len, int d)
{
    float *t = malloc((size_t)max_len * (size_t)d * sizeof *t);
    for (int p = 0; p < max_len; p++)
        for (int j = 0; j < d / 2; j++) {
            double angle = p * pow(10000, -2.0 * j / d);
            t[(p * (d / 2) + j) * 2]     = bf16_round((float)cos(angle));
            t[(p * (d / 2) + j) * 2 + 1] = bf16_round((float)sin(angle));
        }
    return t;
}

static void attention_one(bool bf16, struct shape s, enum kv_format format, bool fast, bool norm, int len)
{
    enum { SEQUENCES = 3 };
    const int    width = (s.n_head + 2 * s.n_kv) * s.d, out_width = s.n_head * s.d;
    const int    last[SEQUENCES] = {len - 1, 0, len / 2}; /* last position of each sequence */
    int          seq[512], pos[512], n = 0;
    /* Tokens of different sequences interleaved; sequence 2's come in two calls. */
    for (int p = 0; p < len; p++)
        for (int q = 0; q < SEQUENCES; q++)
            if (p <= last[q] && n < 512)
                seq[n] = q, pos[n++] = p;
    float *qkv = fill((size_t)n * (size_t)width, any_bf16), *t = make_table(len, s.d);
    float *qw = fill((size_t)s.d, any_bf16), *kw = fill((size_t)s.d, any_bf16);
    float *d_qkv = device(qkv, (size_t)n * (size_t)width), *d_t = device(t, (size_t)len * (size_t)s.d);
    float *d_qw = device(qw, (size_t)s.d), *d_kw = device(kw, (size_t)s.d), *d_y = device(NULL, (size_t)n * (size_t)out_width);
    struct kv_cache  kv = make_cache(format, SEQUENCES, s.n_kv, len, s.d);
    struct rope_args args = {.n_head = s.n_head, .n_kv_heads = s.n_kv, .head_dim = s.d, .q_norm = norm ? d_qw : NULL,
                             .k_norm = norm ? d_kw : NULL, .eps = 1e-6f, .d_cos_sin = d_t};
    const int half = n / 2;
    const struct token_batch first = {half, seq, pos}, second = {n - half, seq + half, pos + half}, both = {n, seq, pos};
    if (half)
        assert_int_equal(ops->rope_append(be, d_qkv, &args, &kv, &first), ST_OK);
    assert_int_equal(ops->rope_append(be, d_qkv + (size_t)half * (size_t)width, &args, &kv, &second), ST_OK);
    float *after = host(d_qkv, (size_t)n * (size_t)width);

    char what[128];
    snprintf(what, sizeof what, "heads %d/%d x %d kv %s%s%s len %d", s.n_head, s.n_kv, s.d, kv_format_name(format),
             fast ? " fast" : "", norm ? " qk-norm" : "", len);
    double *want = malloc((size_t)n * (size_t)width * sizeof *want), *plain = malloc((size_t)n * (size_t)width * sizeof *plain);
    double *stored = malloc((size_t)s.d * sizeof *stored), *expected = malloc((size_t)s.d * sizeof *expected);
    for (int i = 0; i < n; i++)
        for (int h = 0; h < s.n_head + 2 * s.n_kv; h++) {
            const size_t at = (size_t)i * (size_t)width + (size_t)h * (size_t)s.d;
            for (int mode = 0; mode < 2; mode++) { /* 0: faithful, 1: no rounding between norm and rotation */
                double *v = (mode ? plain : want) + at;
                for (int j = 0; j < s.d; j++)
                    v[j] = (double)qkv[at + (size_t)j];
                if (h >= s.n_head + s.n_kv)
                    continue;
                if (norm)
                    twin_norm(bf16 && !mode, true, qkv + at, h < s.n_head ? qw : kw, s.d, (double)1e-6f, v);
                for (int j = 0; j < s.d; j += 2) {
                    double c = (double)t[pos[i] * s.d + j], z = (double)t[pos[i] * s.d + j + 1], a = v[j], b = v[j + 1];
                    v[j]     = rd(bf16, a * c - b * z);
                    v[j + 1] = rd(bf16, b * c + a * z);
                }
            }
        }
    compare(bf16, after, want, (size_t)n * (size_t)width, norm ? 4 * BOUND_FLIPPED : 0, what);
    if (bf16 && norm && n * width > 1000)
        assert_seen(want, plain, (size_t)n * (size_t)width, what);

    /* The cache holds what rope_append left in the rows, in its format. */
    for (int i = 0; i < n; i += 1 + n / 7)
        for (int g = 0; g < s.n_kv; g++)
            for (int v = 0; v < 2; v++) {
                for (int j = 0; j < s.d; j++)
                    expected[j] = (double)after[(size_t)i * (size_t)width + (size_t)((s.n_head + v * s.n_kv + g) * s.d + j)];
                twin_store(format, expected, s.d);
                cache_row(&kv, v, seq[i], g, pos[i], stored);
                for (int j = 0; j < s.d; j++)
                    if (stored[j] != expected[j])
                        fail_msg("%s %s: cache %c of head %d position %d: %.9g, want %.9g", ops->name, what, v ? 'v' : 'k', g,
                                 pos[i], stored[j], expected[j]);
            }

    assert_int_equal(ops->attention(be, d_y, d_qkv, s.n_head, &kv, &both, fast), ST_OK);
    float  *y = host(d_y, (size_t)n * (size_t)out_width);
    double *k = malloc((size_t)len * (size_t)s.d * sizeof *k), *v = malloc((size_t)len * (size_t)s.d * sizeof *v);
    double *p = malloc((size_t)len * sizeof *p);
    size_t  outs = (size_t)n * (size_t)out_width;
    free(want);
    free(plain);
    want  = malloc(outs * sizeof *want);
    plain = malloc(outs * sizeof *plain);
    for (int q = 0; q < SEQUENCES; q++)
        for (int g = 0; g < s.n_kv; g++) {
            for (int at = 0; at <= last[q]; at++) {
                cache_row(&kv, false, q, g, at, k + at * s.d);
                cache_row(&kv, true, q, g, at, v + at * s.d);
            }
            for (int i = 0; i < n; i++)
                for (int h = 0; h < s.n_head && seq[i] == q; h++) {
                    if (h * s.n_kv / s.n_head != g)
                        continue;
                    for (int mode = 0; mode < 2; mode++) { /* 0: as asked, 1: without the fast stack's inner roundings */
                        bool   inner = bf16 && fast && mode == 0;
                        double most = -INFINITY, sum = 0;
                        for (int at = 0; at <= pos[i]; at++) {
                            double dot = 0;
                            for (int j = 0; j < s.d; j++)
                                dot += (double)after[(size_t)i * (size_t)width + (size_t)(h * s.d + j)] * k[at * s.d + j];
                            p[at] = rd(inner, rd(inner, dot) * (double)(1.0f / sqrtf((float)s.d)));
                            most  = fmax(most, p[at]);
                        }
                        for (int at = 0; at <= pos[i]; at++)
                            sum += p[at] = exp(p[at] - most);
                        for (int j = 0; j < s.d; j++) {
                            double o = 0;
                            for (int at = 0; at <= pos[i]; at++)
                                o += rd(inner, p[at] / sum) * v[at * s.d + j];
                            (mode ? plain : want)[(size_t)i * (size_t)out_width + (size_t)(h * s.d + j)] = rd(bf16, o);
                        }
                    }
                }
        }
    compare(bf16, y, want, outs, fast ? 0.03 : 0.01, what); /* a score or probability that flips moves a whole row */
    if (bf16 && fast && len > 4)
        assert_seen(want, plain, outs, what);

    float *d[] = {d_qkv, d_t, d_qw, d_kw, d_y};
    for (int i = 0; i < 5; i++)
        ops->free(be, d[i]);
    free_cache(&kv);
    void *h[] = {qkv, t, qw, kw, after, want, plain, stored, expected, y, k, v, p};
    for (int i = 0; i < 13; i++)
        free(h[i]);
}

static void attention_all(bool bf16)
{
    static const struct shape shapes[] = {{4, 2, 8}, {3, 1, 6}, {6, 3, 32}, {2, 2, 128}, {16, 8, 64}, {1, 1, 2}, {5, 1, 18}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        attention_one(bf16, shapes[i], bf16 ? KV_BF16 : KV_FP32, true, i % 2, 10);
        attention_one(bf16, shapes[i], bf16 ? KV_BF16 : KV_FP32, false, i % 2 == 0, 37);
        attention_one(bf16, shapes[i], KV_INT8, false, true, 21);
    }
    attention_one(bf16, shapes[0], KV_BF16, false, true, 200);
    attention_one(bf16, shapes[0], KV_FP32, false, true, 40);
    attention_one(bf16, shapes[1], bf16 ? KV_BF16 : KV_FP32, true, false, 1);
}

static void rope_and_attention_round_where_the_original_does(void **unused)
{
    each_backend(attention_all);
}

/* ---- memory ---- */

static void ledger_all(bool bf16)
{
    struct memory_ledger *m = backend_memory(be);
    float                *values;
    struct matrix         host_m = make_matrix(DT_I8, DT_BF16, 10, 16, true, &values), adopted;
    void                 *d;
    const size_t          before = atomic_load(&m->total);
    assert_int_equal(ops->alloc(be, MEM_KV, 1000, &d), ST_OK);
    assert_true(atomic_load(&m->now[MEM_KV]) >= 1000);
    assert_int_equal(ops->adopt(be, &host_m, &adopted), ST_OK);
    assert_true(atomic_load(&m->now[MEM_WEIGHTS]) >= 160);
    assert_true(atomic_load(&m->now[MEM_SCALES]) >= 20);
    unsigned char zero[1000];
    assert_int_equal(ops->download(be, zero, d, sizeof zero), ST_OK);
    for (size_t i = 0; i < sizeof zero; i++)
        assert_int_equal(zero[i], 0);
    ops->free(be, d);
    ops->free(be, NULL);
    ops->release(be, &adopted);
    struct matrix nothing = {0};
    ops->release(be, &nothing);
    assert_int_equal(atomic_load(&m->total), before);
    free_matrix(&host_m, values);

    struct backend        *small;
    struct backend_options o = {.rounding = bf16 ? ROUND_BF16 : ROUND_NONE, .n_threads = 1, .memory_limit = 1 << 20};
    assert_int_equal(ops->open(&o, &small), ST_OK);
    assert_int_equal(ops->alloc(small, MEM_KV, 2 << 20, &d), ST_EOOM);
    assert_int_equal(ops->alloc(small, MEM_KV, SIZE_MAX - 8, &d), ST_EOOM);
    assert_int_equal(ops->alloc(small, MEM_KV, 1000, &d), ST_OK);
    ops->free(small, d);
    backend_close(small);
}

static void memory_is_zeroed_accounted_and_limited(void **unused)
{
    each_backend(ledger_all);
}

static void devices_are_found_by_name_and_others_refused(void **unused)
{
    const struct backend_options o = {0};
    const struct backend_ops    *found;
    assert_int_equal(backend_find("cpu", &found), ST_OK);
    assert_string_equal(found->name, "cpu");
    assert_int_equal(backend_find("cpu_ref", &found), ST_OK);
    assert_string_equal(found->name, "cpu_ref");
    static const char *const wrong[] = {"", "gpu", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999999999999", "cudax"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (backend_open(wrong[i], &o, &be) != ST_EUSAGE)
            fail_msg("device \"%s\" was not refused as a usage error", wrong[i]);
    backend_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_rounds_the_product_then_the_scaled_product_then_the_bias),
        cmocka_unit_test(embed_sums_codebooks_then_rounds_then_adds_the_text_row),
        cmocka_unit_test(rmsnorm_rounds_before_and_after_the_weight),
        cmocka_unit_test(silu_rounds_before_the_product_and_add_after_the_sum),
        cmocka_unit_test(rope_and_attention_round_where_the_original_does),
        cmocka_unit_test(memory_is_zeroed_accounted_and_limited),
        cmocka_unit_test(devices_are_found_by_name_and_others_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
