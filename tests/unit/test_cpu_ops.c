/* Every op of the fast CPU backend against the scalar twin through the same table: instruction sets × rounding ×
 * formats × odd sizes, on random data, into poisoned and guarded memory. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/cpu.h"
#include "guarded.h"

extern const struct backend_ops cpu_ref_ops;

/* Roundings of a sum over n terms, in units of 2⁻²⁴ of the sum of magnitudes: at most n on either side (Higham 2002,
 * Accuracy and Stability, §4.2). */
#define SUM_ERROR(n) (2.0f * (float)((n) + 8) * 5.97e-8f)
/* BF16 results may fall on the two sides of a tie: one unit in the last place for each rounding that follows another. */
enum { ULPS_ONE_ROUNDING = 1, ULPS_TWO_ROUNDINGS = 2, ULPS_THREE_ROUNDINGS = 3 };
/* …but seldom do. A path that rounds at other places than the twin differs in far more of its elements. */
#define MAX_SHARE_DIFFERENT 0.03
/* Softmax and weighing of values in (-1, 1): scores err by 2⁻²⁴·head_dim·Σ|q·k|, weights by twice that. */
#define ATTENTION_ERROR 1e-4f
/* The fast stack's scores and probabilities may each fall on the other side of a tie: 2⁻⁷ each, |v| < 1. */
#define FAST_ATTENTION_ERROR 0.02f

static const char *const isa_names[] = {"portable", "avx2", "avx512"};

struct pair {
    struct backend *cpu, *ref;
    enum rounding   rounding;
    const char     *isa;
};

static bool pair_open(struct pair *p, const char *isa, enum rounding rounding, int n_threads)
{
    struct backend_options o = {.n_threads = n_threads, .rounding = rounding};
    if (!cpu_kernels_find(isa))
        return false;
    setenv("QSWEEP_CPU", isa, 1);
    assert_int_equal(cpu_ops.open(&o, &p->cpu), ST_OK);
    assert_int_equal(cpu_ref_ops.open(&o, &p->ref), ST_OK);
    assert_string_equal(cpu_isa(p->cpu), isa);
    unsetenv("QSWEEP_CPU");
    p->rounding = rounding;
    p->isa = isa;
    return true;
}

static void pair_close(struct pair *p)
{
    cpu_ops.close(p->cpu);
    cpu_ref_ops.close(p->ref);
    guarded_free_all();
}

/* Run a check for every instruction set here and both roundings, on two threads. */
static void for_each(void (*check)(struct pair *))
{
    for (size_t i = 0; i < sizeof isa_names / sizeof *isa_names; i++)
        for (int rounding = ROUND_NONE; rounding <= ROUND_BF16; rounding++) {
            struct pair p;
            if (!pair_open(&p, isa_names[i], (enum rounding)rounding, 2))
                continue;
            check(&p);
            pair_close(&p);
        }
}

struct tally {
    size_t n, different;
};

/* got within `ulps` BF16 steps of want (when rounding) plus slack; counts what is not bit-equal. */
static void close_to(struct tally *tally, const struct pair *p, float got, float want, int ulps, float slack,
                     const char *what, size_t i)
{
    const float step = p->rounding == ROUND_BF16 ? (float)ulps * bf16_ulp(fmaxf(fabsf(got), fabsf(want))) : 0;
    tally->n++;
    tally->different += got != want;
    if (!(fabsf(got - want) <= step + slack))
        fail_msg("%s, %s, rounding %d, element %zu: %.9g, the twin has %.9g, bound %g (QSWEEP_SEED=%llu)", what, p->isa,
                 p->rounding, i, got, want, step + slack, (unsigned long long)seed_first);
    if (p->rounding == ROUND_BF16 && got != bf16_round(got))
        fail_msg("%s, %s, element %zu: %.9g is no BF16 value", what, p->isa, i, got);
}

static void few_differ(const struct pair *p, const struct tally *t, const char *what)
{
    if (p->rounding == ROUND_BF16 && t->n > 200 && (double)t->different > MAX_SHARE_DIFFERENT * (double)t->n)
        fail_msg("%s, %s: %zu of %zu BF16 results differ from the twin's (QSWEEP_SEED=%llu)", what, p->isa, t->different,
                 t->n, (unsigned long long)seed_first);
}

static size_t bytes_of(enum dtype f)
{
    return f == DT_F32 ? 4 : f == DT_BF16 ? 2 : 1;
}

/* A matrix whose values end at a guard page and so start at any multiple of their own size. */
static struct matrix random_matrix(enum dtype format, int rows, int cols, enum dtype scale_dtype, bool bias)
{
    struct matrix m = {.format = format, .rows = rows, .cols = cols, .scale_dtype = scale_dtype};
    const size_t  n = (size_t)rows * (size_t)cols;
    char         *w = guarded(n * bytes_of(format));
    for (size_t i = 0; i < n; i++) {
        const float    f = random_float() * 0.1f;
        const uint16_t h = bf16_from_f32(f);
        const int8_t   q = (int8_t)(random_below(256) - 128);
        memcpy(w + i * bytes_of(format), format == DT_F32 ? (const void *)&f : format == DT_BF16 ? (const void *)&h : &q,
               bytes_of(format));
    }
    m.w = w;
    if (format == DT_I8) {
        char *s = guarded((size_t)rows * bytes_of(scale_dtype));
        for (size_t r = 0; r < (size_t)rows; r++) {
            const float    f = 1e-3f * (1.1f + random_float());
            const uint16_t h = bf16_from_f32(f);
            memcpy(s + r * bytes_of(scale_dtype), scale_dtype == DT_F32 ? (const void *)&f : &h, bytes_of(scale_dtype));
        }
        m.scales = s;
    }
    if (bias)
        m.bias = random_floats((size_t)rows, 1.0f, 1);
    return m;
}

static double magnitude(const struct matrix *m, size_t row, const float *x)
{
    double       sum = 0;
    const size_t cols = (size_t)m->cols;
    for (size_t k = 0; k < cols; k++) {
        const double w = m->format == DT_F32    ? (double)((const float *)m->w)[row * cols + k]
                         : m->format == DT_BF16 ? (double)bf16_to_f32(((const bf16_t *)m->w)[row * cols + k])
                                                : (double)((const int8_t *)m->w)[row * cols + k];
        sum += fabs(w * (double)x[k]);
    }
    if (m->format == DT_I8)
        sum *= m->scale_dtype == DT_F32 ? (double)((const float *)m->scales)[row]
                                        : (double)bf16_to_f32(((const bf16_t *)m->scales)[row]);
    return sum;
}

static void matmul_case(struct pair *p, const struct matrix *m, int row0, int row_count, int n, struct tally *tally)
{
    const int    bf16 = p->rounding == ROUND_BF16;
    const size_t ldy = (size_t)row_count + (size_t)random_below(3);
    const size_t y_size = (size_t)(n - 1) * ldy + (size_t)row_count;
    float       *x = random_floats((size_t)n * (size_t)m->cols, 1.0f, bf16);
    float       *y = guarded(y_size * sizeof *y), *z = guarded(y_size * sizeof *z);
    const int    ulps = ULPS_ONE_ROUNDING + (m->format == DT_I8) + (m->format == DT_I8 && m->bias);
    assert_int_equal(cpu_ops.matmul(p->cpu, y, (int)ldy, m, row0, row_count, x, n), ST_OK);
    assert_int_equal(cpu_ref_ops.matmul(p->ref, z, (int)ldy, m, row0, row_count, x, n), ST_OK);
    for (size_t i = 0; i < y_size; i++) {
        if (i % ldy >= (size_t)row_count) {
            assert_true(isnan(y[i])); /* between the rows nothing was written */
            continue;
        }
        const size_t row = (size_t)row0 + i % ldy;
        const float  sum = (float)magnitude(m, row, x + i / ldy * (size_t)m->cols);
        const float  bias = m->bias ? fabsf(m->bias[row]) * 2e-7f : 0;
        /* The inner result of an INT8 product with bias may be a BF16 step off, whatever is left after the bias. */
        const float inner = bf16 && m->format == DT_I8 && m->bias ? 2 * bf16_ulp(fabsf(z[i]) + fabsf(m->bias[row])) : 0;
        close_to(tally, p, y[i], z[i], ulps, SUM_ERROR(m->cols) * sum + bias + inner, "matmul", i);
    }
}

static void check_matmul(struct pair *p)
{
    static const int widths[] = {1, 7, 16, 31, 63, 64, 65, 100, 128, 192, 1000, 1024};
    static const int tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 25};
    struct tally     tally = {0, 0};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
            const int          rows = 1 + random_below(70);
            const enum dtype   format = (enum dtype[]){DT_F32, DT_BF16, DT_I8}[random_below(3)];
            const struct matrix m = random_matrix(format, rows, widths[w], random_below(2) ? DT_F32 : DT_BF16,
                                                  random_below(3) == 0);
            const int row0 = random_below(rows);
            matmul_case(p, &m, row0, 1 + random_below(rows - row0), tokens[t], &tally);
        }
        guarded_free_all();
    }
    few_differ(p, &tally, "matmul");
}

static void matmul_equals_the_twin_in_every_format(void **state)
{
    for_each(check_matmul);
}

/* 300 rows of 1024: several cache pieces, parts for both threads; every format for certain. */
static void check_large_matmul(struct pair *p)
{
    for (int f = 0; f < 3; f++) {
        struct tally        tally = {0, 0};
        const struct matrix m = random_matrix((enum dtype[]){DT_F32, DT_BF16, DT_I8}[f], 300, 1024, DT_BF16, false);
        matmul_case(p, &m, 0, 300, 1, &tally);
        matmul_case(p, &m, 3, 290, 17, &tally);
        few_differ(p, &tally, "large matmul");
        guarded_free_all();
    }
}

static void matmul_of_a_large_matrix_equals_the_twin(void **state)
{
    for_each(check_large_matmul);
}

static void a_token_gets_the_same_bits_alone_and_in_any_batch(void **state)
{
    for (size_t i = 0; i < sizeof isa_names / sizeof *isa_names; i++)
        for (int f = 0; f < 3; f++) {
            enum { ROWS = 37, COLS = 200, N = 15 };
            struct pair p;
            if (!pair_open(&p, isa_names[i], ROUND_NONE, 1))
                continue;
            const struct matrix m = random_matrix((enum dtype[]){DT_F32, DT_BF16, DT_I8}[f], ROWS, COLS, DT_F32, false);
            float *x = random_floats(N * COLS, 1.0f, 0), *alone = guarded(N * ROWS * 4), *y = guarded(N * ROWS * 4);
            for (int t = 0; t < N; t++)
                cpu_ops.matmul(p.cpu, alone + t * ROWS, ROWS, &m, 0, ROWS, x + t * COLS, 1);
            for (int n = 2; n <= N; n++) {
                memset(y, 0xff, N * ROWS * 4);
                cpu_ops.matmul(p.cpu, y, ROWS, &m, 0, ROWS, x, n);
                assert_memory_equal(y, alone, (size_t)n * ROWS * 4);
            }
            pair_close(&p);
        }
}

static void check_elementwise(struct pair *p)
{
    static const int widths[] = {1, 15, 16, 17, 64, 80, 1000, 1024, 3072};
    const int        bf16 = p->rounding == ROUND_BF16;
    struct tally     norm = {0, 0}, silu = {0, 0}, sum = {0, 0};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (int n = 1; n <= 9; n += 4) {
            const int    dim = widths[w];
            const size_t size = (size_t)n * (size_t)dim;
            float       *x = random_floats(size, 3.0f, bf16), *weight = random_floats((size_t)dim, 1.0f, 1);
            float       *up = random_floats(size, 2.0f, bf16), *y = guarded(size * 4), *z = guarded(size * 4);
            assert_int_equal(cpu_ops.rmsnorm(p->cpu, y, x, weight, n, dim, 1e-6f), ST_OK);
            assert_int_equal(cpu_ref_ops.rmsnorm(p->ref, z, x, weight, n, dim, 1e-6f), ST_OK);
            for (size_t i = 0; i < size; i++)
                close_to(&norm, p, y[i], z[i], ULPS_TWO_ROUNDINGS, SUM_ERROR(dim) * fabsf(z[i]), "rmsnorm", i);

            for (size_t i = 0; i < size; i++)
                x[i] *= i % 7 == 0 ? 40.0f : 1.0f; /* far into both tails */
            memset(y, 0xff, size * 4);
            assert_int_equal(cpu_ops.silu_mul(p->cpu, y, x, up, n, dim), ST_OK);
            assert_int_equal(cpu_ref_ops.silu_mul(p->ref, z, x, up, n, dim), ST_OK);
            for (size_t i = 0; i < size; i++)
                close_to(&silu, p, y[i], z[i], ULPS_TWO_ROUNDINGS, 6e-7f * fabsf(z[i]), "silu_mul", i);

            memcpy(y, x, size * 4);
            memcpy(z, x, size * 4);
            assert_int_equal(cpu_ops.add(p->cpu, y, up, n, dim), ST_OK);
            assert_int_equal(cpu_ref_ops.add(p->ref, z, up, n, dim), ST_OK);
            for (size_t i = 0; i < size; i++)
                close_to(&sum, p, y[i], z[i], 0, 0, "add", i);
            guarded_free_all();
        }
    few_differ(p, &norm, "rmsnorm");
    few_differ(p, &silu, "silu_mul");
}

static void norms_silu_and_sums_equal_the_twin(void **state)
{
    for_each(check_elementwise);
}

static void check_embeddings(struct pair *p)
{
    enum { CODEBOOKS = 4, CODES = 9, VOCAB = 30, N = 6 };
    static const int widths[] = {8, 16, 50, 64, 1024};
    struct tally     tally = {0, 0};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (int f = 0; f < 4; f++) {
            const int           dim = widths[w];
            const size_t        size = N * (size_t)dim;
            const enum dtype    format = f % 2 ? DT_F32 : DT_BF16;
            const struct matrix e = random_matrix(format, VOCAB, dim, DT_F32, false);
            const struct matrix c = random_matrix(format, CODEBOOKS * CODES, dim, DT_F32, false);
            struct embed_args   a = {&e, &c, CODEBOOKS, CODES, 10, 18, f >= 2};
            int32_t            *cols = guarded(N * (1 + CODEBOOKS) * sizeof *cols);
            float              *y = guarded(size * 4), *z = guarded(size * 4);
            for (int t = 0; t < N; t++) {
                cols[t * (1 + CODEBOOKS)] = t % 2 ? 10 + random_below(9) : t == 0 ? 9 : 19; /* the ids around the border */
                for (int k = 1; k <= CODEBOOKS; k++)
                    cols[t * (1 + CODEBOOKS) + k] = random_below(CODES);
            }
            assert_int_equal(cpu_ops.embed(p->cpu, &a, cols, N, y), ST_OK);
            assert_int_equal(cpu_ref_ops.embed(p->ref, &a, cols, N, z), ST_OK);
            /* |each row| < 0.1; a rounded sum of the codes may be a step off, whatever the token leaves of it. */
            const float inner = p->rounding == ROUND_BF16 ? bf16_ulp(CODEBOOKS * 0.1f) : 0;
            for (size_t i = 0; i < size; i++)
                close_to(&tally, p, y[i], z[i], ULPS_TWO_ROUNDINGS, SUM_ERROR(CODEBOOKS) * 0.1f + inner, "embed", i);
            memset(y, 0xff, size * 4);
            const int32_t ids[N] = {0, VOCAB - 1, 3, 3, 7, 1};
            assert_int_equal(cpu_ops.gather(p->cpu, &e, ids, N, y), ST_OK);
            assert_int_equal(cpu_ref_ops.gather(p->ref, &e, ids, N, z), ST_OK);
            assert_memory_equal(y, z, size * 4);

            guarded_free_all();
        }
    few_differ(p, &tally, "embed");
}

static void embeddings_equal_the_twin(void **state)
{
    for_each(check_embeddings);
}

static size_t kv_bytes(enum kv_format f)
{
    return f == KV_FP32 ? 4 : f == KV_BF16 ? 2 : 1;
}

static struct kv_cache random_cache(enum kv_format format, int n_seq, int heads, int max_len, int head_dim)
{
    struct kv_cache kv = {.format = format, .n_seq = n_seq, .n_kv_heads = heads, .max_len = max_len, .head_dim = head_dim};
    const size_t    rows = (size_t)n_seq * (size_t)heads * (size_t)max_len, n = rows * (size_t)head_dim;
    kv.d_k = guarded(n * kv_bytes(format));
    kv.d_v = guarded(n * kv_bytes(format));
    if (format == KV_INT8) {
        kv.d_k_scale = guarded(rows * 4);
        kv.d_v_scale = guarded(rows * 4);
    }
    return kv;
}

static void check_attention_case(struct pair *p, enum kv_format format, int n_head, int groups, int head_dim, bool fast)
{
    enum { N_SEQ = 2, MAX_LEN = 50 };
    const int       bf16 = p->rounding == ROUND_BF16;
    const size_t    d = (size_t)head_dim, width = (size_t)(n_head + 2 * groups) * d, out = (size_t)n_head * d;
    struct kv_cache a = random_cache(format, N_SEQ, groups, MAX_LEN, head_dim);
    struct kv_cache b = random_cache(format, N_SEQ, groups, MAX_LEN, head_dim);
    float          *table = random_floats(MAX_LEN * d, 1.0f, 1);
    struct rope_args rope = {.n_head = n_head, .n_kv_heads = groups, .head_dim = head_dim, .eps = 1e-6f, .d_cos_sin = table};
    struct tally    rotated = {0, 0}, cached = {0, 0}, attended = {0, 0};
    if (!fast) {
        rope.q_norm = random_floats(d, 1.5f, 1);
        rope.k_norm = random_floats(d, 1.5f, 1);
    }
    /* Sequence 0 grows by chunks of several tokens, sequence 1 rides along one position behind. */
    for (int pos = 0, n = 0; pos + 4 < MAX_LEN; pos += n) {
        n = 1 + random_below(4);
        int seqs[8], poss[8], count = 0;
        for (int i = 0; i < n; i++) {
            seqs[count] = 0;
            poss[count++] = pos + i;
            if (pos + i > 0) {
                seqs[count] = 1;
                poss[count++] = pos + i - 1;
            }
        }
        const struct token_batch tokens = {count, seqs, poss};
        float *qkv = random_floats((size_t)count * width, 1.0f, bf16), *twin = guarded((size_t)count * width * 4);
        memcpy(twin, qkv, (size_t)count * width * 4);
        assert_int_equal(cpu_ops.rope_append(p->cpu, qkv, &rope, &a, &tokens), ST_OK);
        assert_int_equal(cpu_ref_ops.rope_append(p->ref, twin, &rope, &b, &tokens), ST_OK);
        for (size_t i = 0; i < (size_t)count * width; i++) {
            /* A rotation of two elements, each perhaps a BF16 step off after the norm's two roundings. */
            const float size = fabsf(twin[i]) + fabsf(twin[i ^ 1]);
            close_to(&rotated, p, qkv[i], twin[i], ULPS_THREE_ROUNDINGS, bf16 && !fast ? 3 * bf16_ulp(size) : 2e-5f * size,
                     "rope", i);
        }
        /* Same cache for both from here: attention is judged alone. */
        const size_t elements = (size_t)N_SEQ * (size_t)groups * MAX_LEN * d, rows = elements / d;
        for (size_t i = 0; i < elements * kv_bytes(format); i++)
            cached.different += ((const char *)a.d_k)[i] != ((const char *)b.d_k)[i] ||
                                ((const char *)a.d_v)[i] != ((const char *)b.d_v)[i];
        cached.n += elements * kv_bytes(format);
        memcpy(b.d_k, a.d_k, elements * kv_bytes(format));
        memcpy(b.d_v, a.d_v, elements * kv_bytes(format));
        if (format == KV_INT8) {
            memcpy(b.d_k_scale, a.d_k_scale, rows * 4);
            memcpy(b.d_v_scale, a.d_v_scale, rows * 4);
        }
        float *y = guarded((size_t)count * out * 4), *z = guarded((size_t)count * out * 4);
        assert_int_equal(cpu_ops.attention(p->cpu, y, qkv, n_head, &a, &tokens, fast), ST_OK);
        assert_int_equal(cpu_ref_ops.attention(p->ref, z, qkv, n_head, &b, &tokens, fast), ST_OK);
        for (size_t i = 0; i < (size_t)count * out; i++)
            close_to(&attended, p, y[i], z[i], ULPS_ONE_ROUNDING, fast && bf16 ? FAST_ATTENTION_ERROR : ATTENTION_ERROR,
                     fast ? "fast attention" : "attention", i);
    }
    few_differ(p, &rotated, "rope");
    few_differ(p, &attended, fast ? "fast attention" : "attention");
    if (bf16)
        few_differ(p, &cached, "cache");
    guarded_free_all();
}

static void check_attention(struct pair *p)
{
    static const int shapes[][3] = {{4, 2, 16}, {2, 1, 32}, {3, 1, 64}, {4, 4, 64}, {2, 1, 128}, {4, 2, 6}, {5, 1, 20}, {4, 2, 80}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int format = 0; format < KV_COUNT; format++)
            for (int fast = 0; fast < 2; fast++)
                check_attention_case(p, (enum kv_format)format, shapes[s][0], shapes[s][1], shapes[s][2], fast);
}

static void caches_and_attention_equal_the_twin_in_every_format(void **state)
{
    for_each(check_attention);
}

/* ---- independence ------------------------------------------------------------------------------------------------ */

enum { HEADS = 8, GROUPS = 4, HEAD_DIM = 64, DIM = 512, FFN = 1040, TOKENS = 9, LEN = 64 };

/* One pass over every op of a block; y [TOKENS][DIM]. All data are given, so that only the backend varies. */
static void block_pass(struct backend *be, const struct matrix *m, const float *norm, const float *table,
                       const float *x, float *y, struct kv_cache *kv, const struct token_batch *tokens)
{
    enum { QKV = (HEADS + 2 * GROUPS) * HEAD_DIM };
    static float           n[TOKENS * DIM], qkv[TOKENS * QKV], o[TOKENS * DIM], g[TOKENS * FFN], u[TOKENS * FFN];
    const struct rope_args rope = {HEADS, GROUPS, HEAD_DIM, norm, norm, 1e-6f, table};
    memcpy(y, x, sizeof n);
    cpu_ops.rmsnorm(be, n, y, norm, TOKENS, DIM, 1e-6f);
    cpu_ops.matmul(be, qkv, QKV, &m[0], 0, QKV, n, TOKENS);
    cpu_ops.rope_append(be, qkv, &rope, kv, tokens);
    cpu_ops.attention(be, o, qkv, HEADS, kv, tokens, false);
    cpu_ops.matmul(be, n, DIM, &m[1], 0, DIM, o, TOKENS);
    cpu_ops.add(be, y, n, TOKENS, DIM);
    cpu_ops.matmul(be, g, FFN, &m[2], 0, FFN, y, TOKENS);
    cpu_ops.matmul(be, u, FFN, &m[3], 0, FFN, y, TOKENS);
    cpu_ops.silu_mul(be, g, g, u, TOKENS, FFN);
    cpu_ops.matmul(be, n, DIM, &m[4], 0, DIM, g, TOKENS);
    cpu_ops.add(be, y, n, TOKENS, DIM);
}

/* The portable table may differ from the others, they must not differ from each other. */
static void threads_and_vector_widths_change_no_bit(void **state)
{
    const struct matrix m[] = {random_matrix(DT_I8, (HEADS + 2 * GROUPS) * HEAD_DIM, DIM, DT_BF16, false),
                               random_matrix(DT_BF16, DIM, HEADS * HEAD_DIM, DT_BF16, false),
                               random_matrix(DT_I8, FFN, DIM, DT_F32, false), random_matrix(DT_F32, FFN, DIM, DT_BF16, true),
                               random_matrix(DT_BF16, DIM, FFN, DT_BF16, false)};
    const float *norm = random_floats(DIM, 1.0f, 1), *table = random_floats(LEN * HEAD_DIM, 1.0f, 1);
    const float *x = random_floats(TOKENS * DIM, 1.0f, 1);
    int          seq[TOKENS], pos[TOKENS];
    for (int i = 0; i < TOKENS; i++) {
        seq[i] = 0;
        pos[i] = i;
    }
    const struct token_batch tokens = {TOKENS, seq, pos};
    float                    first[3][TOKENS * DIM], y[TOKENS * DIM];
    for (size_t i = 0; i < sizeof isa_names / sizeof *isa_names; i++)
        for (int n_threads = 1; n_threads <= 5; n_threads++) {
            struct backend_options o = {.n_threads = n_threads, .pin = n_threads == 2, .rounding = ROUND_NONE};
            struct backend        *be;
            if (!cpu_kernels_find(isa_names[i]))
                continue;
            setenv("QSWEEP_CPU", isa_names[i], 1);
            assert_int_equal(cpu_ops.open(&o, &be), ST_OK);
            struct kv_cache kv = random_cache(KV_INT8, 1, GROUPS, LEN, HEAD_DIM);
            block_pass(be, m, norm, table, x, y, &kv, &tokens);
            if (n_threads == 1)
                memcpy(first[i], y, sizeof y);
            for (int k = 0; k < TOKENS * DIM; k++)
                assert_true(isfinite(y[k]));
            assert_memory_equal(y, first[i], sizeof y);
            if (i == 2)
                assert_memory_equal(y, first[1], sizeof y);
            cpu_ops.close(be);
            unsetenv("QSWEEP_CPU");
        }
    guarded_free_all();
}

/* ---- memory and errors ------------------------------------------------------------------------------------------- */

static void memory_is_zeroed_aligned_counted_and_limited(void **state)
{
    struct backend_options o = {.n_threads = 1, .memory_limit = 8 << 20};
    struct backend        *be;
    void                  *small, *large, *none = NULL;
    assert_int_equal(cpu_ops.open(&o, &be), ST_OK);
    assert_int_equal(cpu_ops.alloc(be, MEM_WORKSPACE, 100, &small), ST_OK);
    assert_int_equal(cpu_ops.alloc(be, MEM_KV, 5 << 20, &large), ST_OK);
    assert_int_equal((uintptr_t)small % 64, 0);
    assert_int_equal((uintptr_t)large % 64, 0);
    for (size_t i = 0; i < 5 << 20; i += 4096)
        assert_int_equal(((char *)large)[i], 0);
    assert_int_equal(cpu_ops.alloc(be, MEM_KV, 4 << 20, &none), ST_EOOM);
    assert_null(none);
    assert_int_equal(cpu_ops.alloc(be, MEM_KV, SIZE_MAX - 8, &none), ST_EOOM);
    struct matrix m = random_matrix(DT_I8, 32, 100, DT_BF16, true), got;
    assert_int_equal(cpu_ops.adopt(be, &m, &got), ST_OK);
    assert_int_equal(atomic_load(&backend_memory(be)->now[MEM_WEIGHTS]), 32 * 100 + 32 * 4);
    assert_int_equal(atomic_load(&backend_memory(be)->now[MEM_SCALES]), 32 * 2);
    cpu_ops.release(be, &got);
    cpu_ops.release(be, &got); /* a released matrix is empty */
    cpu_ops.free(be, small);
    cpu_ops.free(be, large);
    cpu_ops.free(be, NULL);
    assert_int_equal(atomic_load(&backend_memory(be)->total), 0);
    cpu_ops.close(be);
    cpu_ops.close(NULL);
    guarded_free_all();
}

static void weights_of_a_file_that_was_cut_short_are_refused(void **state)
{
    struct backend_options o = {.n_threads = 1};
    struct backend        *be;
    char                   path[] = "/tmp/qsweep-test-XXXXXX";
    const int              fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(ftruncate(fd, 1 << 16), 0);
    void *map = mmap(NULL, 1 << 16, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(cpu_ops.open(&o, &be), ST_OK);
    const struct matrix m = {.format = DT_I8, .rows = 16, .cols = 4096, .w = map, .scales = &m, .scale_dtype = DT_BF16};
    struct matrix       got;
    /* An older kernel cannot tell before the first read; then there is nothing to test here. */
    if (madvise(map, 4096, 22 /* MADV_POPULATE_READ */) != 0) {
        cpu_ops.close(be);
        skip();
    }
    assert_int_equal(cpu_ops.adopt(be, &m, &got), ST_OK);
    cpu_ops.release(be, &got);
    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(cpu_ops.adopt(be, &m, &got), ST_EIO);
    assert_int_equal(atomic_load(&backend_memory(be)->total), 0);
    cpu_ops.close(be);
    munmap(map, 1 << 16);
    close(fd);
}

static void rows_outside_a_table_are_refused(void **state)
{
    struct backend_options  o = {.n_threads = 1};
    struct backend         *be;
    const struct matrix     e = random_matrix(DT_F32, 30, 16, DT_F32, false), c = random_matrix(DT_F32, 18, 16, DT_F32, false);
    const struct embed_args a = {&e, &c, 2, 9, 10, 18, true};
    float                   y[16];
    assert_int_equal(cpu_ops.open(&o, &be), ST_OK);
    assert_int_equal(cpu_ops.embed(be, &a, (const int32_t[]){29, 8, 8}, 1, y), ST_OK);
    assert_int_equal(cpu_ops.embed(be, &a, (const int32_t[]){30, 0, 0}, 1, y), ST_EINTERNAL);
    assert_int_equal(cpu_ops.embed(be, &a, (const int32_t[]){12, 0, 9}, 1, y), ST_EINTERNAL);
    assert_int_equal(cpu_ops.embed(be, &a, (const int32_t[]){12, -1, 0}, 1, y), ST_EINTERNAL);
    assert_int_equal(cpu_ops.gather(be, &e, (const int32_t[]){30}, 1, y), ST_EINTERNAL);
    cpu_ops.close(be);
    guarded_free_all();
}

static void positions_outside_the_cache_are_refused(void **state)
{
    struct backend_options   o = {.n_threads = 1};
    struct backend          *be;
    struct kv_cache          kv = random_cache(KV_FP32, 1, 1, 4, 16);
    const struct rope_args   rope = {.n_head = 1, .n_kv_heads = 1, .head_dim = 16};
    const struct token_batch beyond = {1, &(int){0}, &(int){4}}, other = {1, &(int){1}, &(int){0}};
    float                    qkv[48] = {0}, y[16];
    assert_int_equal(cpu_ops.open(&o, &be), ST_OK);
    assert_int_equal(cpu_ops.rope_append(be, qkv, &rope, &kv, &beyond), ST_EINTERNAL);
    assert_int_equal(cpu_ops.attention(be, y, qkv, 1, &kv, &other, false), ST_EINTERNAL);
    cpu_ops.close(be);
    guarded_free_all();
}

static void unknown_kernels_are_refused_by_name(void **state)
{
    struct backend_options o = {.n_threads = 1};
    struct backend        *be = NULL;
    setenv("QSWEEP_CPU", "avx1024", 1);
    assert_int_equal(cpu_ops.open(&o, &be), ST_EUSAGE);
    assert_null(be);
    assert_non_null(strstr(status_last(), "avx1024"));
    unsetenv("QSWEEP_CPU");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_equals_the_twin_in_every_format),
        cmocka_unit_test(matmul_of_a_large_matrix_equals_the_twin),
        cmocka_unit_test(a_token_gets_the_same_bits_alone_and_in_any_batch),
        cmocka_unit_test(norms_silu_and_sums_equal_the_twin),
        cmocka_unit_test(embeddings_equal_the_twin),
        cmocka_unit_test(caches_and_attention_equal_the_twin_in_every_format),
        cmocka_unit_test(threads_and_vector_widths_change_no_bit),
        cmocka_unit_test(memory_is_zeroed_aligned_counted_and_limited),
        cmocka_unit_test(weights_of_a_file_that_was_cut_short_are_refused),
        cmocka_unit_test(rows_outside_a_table_are_refused),
        cmocka_unit_test(positions_outside_the_cache_are_refused),
        cmocka_unit_test(unknown_kernels_are_refused_by_name),
    };
    seed_print();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
