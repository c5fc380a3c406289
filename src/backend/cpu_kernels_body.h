/* cpu_kernels_body.h — the kernels themselves, over a vector type of 16 lanes that the including file defines.
 *
 * Included once by each cpu_kernels_<isa>.c, after `vf` and its vf_* primitives and the register budget:
 *   ROW_TOKENS           tokens that share one pass over a row without spilling,
 *   ROW_SUMS(T)          partial sums kept at a time for T tokens (1, 2 or 4),
 *   TILE_ROWS × TILE_TOKENS  sums of a prefill tile,
 *   WEIGH_VECS           vectors of the value row kept at a time.
 *
 * One order for every sum: element k of a row goes to lane k % 16 of partial sum (k / 16) % 4, in rising k; the four
 * are added as (0 + 1) + (2 + 3), then the lanes as a tree (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1). Four chains
 * hide the latency of the FMA on a single row, so that memory is read as one linear stream: on two Zen 5 cores that
 * reached 75 of 84 GB/s, against 50 with one chain and 57–65 with 2–8 rows (streams) at a time. Because the partial
 * sums are independent, a tile with too few registers for four of them computes them one after the other: same bits. */

#include <math.h>
#include <string.h>

enum { LANES = 16, N_SUMS = 4, BLOCK = LANES * N_SUMS, MAX_TOKENS = ROW_TOKENS > TILE_TOKENS ? ROW_TOKENS : TILE_TOKENS };

/* How far ahead of its loads a row asks for weights, in bytes. 0 → 60, 2 KB → 63, 8 KB → 75 GB/s (INT8, two Zen 5
 * cores reading 84); 16 KB no better. */
enum { PREFETCH_BYTES = 8192 };

/* Weights that stay in the second-level cache while all tokens of a prefill pass over them. */
enum { TILE_CACHE_BYTES = 256 * 1024 };

#define KERNEL ISA_TARGET static

VEC size_t element_size(enum dtype format)
{
    return format == DT_F32 ? 4 : format == DT_BF16 ? 2 : 1;
}

VEC vf load_wide(enum dtype format, const void *p)
{
    return format == DT_F32 ? vf_load(p) : format == DT_BF16 ? vf_load_bf16(p) : vf_load_i8(p);
}

/* n < 16 elements, zeros above them. */
VEC vf load_tail(enum dtype format, const void *p, size_t n)
{
    char buffer[LANES * sizeof(float)] = {0};
    memcpy(buffer, p, n * element_size(format));
    return load_wide(format, buffer);
}

VEC vf round_if(bool round, vf v)
{
    return round ? vf_round(v) : v;
}

/* ---- dot products ------------------------------------------------------------------------------------------------ */

/* Add one block of 64 elements to partial sums q0 … q0 + A of R rows times T tokens, acc [(r·T + t)·A + a]. All but the
 * pointers and strides are constants at every call. */
VEC void dot_block(enum dtype format, int A, int R, int T, int q0, vf *acc, const char *w, size_t row_bytes,
                   const float *x, size_t ldx)
{
    UNROLL
    for (int a = 0; a < A; a++) {
        const size_t at = (size_t)(LANES * (q0 + a));
        UNROLL
        for (int r = 0; r < R; r++) {
            vf wide = load_wide(format, w + (size_t)r * row_bytes + at * element_size(format));
            UNROLL
            for (int t = 0; t < T; t++)
                acc[(r * T + t) * A + a] =
                    vf_fma(wide, vf_load(x + (size_t)t * ldx + at), acc[(r * T + t) * A + a]);
        }
    }
}

/* The whole of those sums. ahead: what to prefetch meanwhile, as long as a row, if so wanted. */
VEC void dot_sums(enum dtype format, int A, int R, int T, int q0, vf *acc, const char *w, size_t row_bytes,
                  const float *x, size_t ldx, int cols, bool prefetch, const char *ahead)
{
    const size_t es = element_size(format), full = (size_t)(cols - cols % BLOCK), tail = (size_t)cols - full;
    UNROLL
    for (int i = 0; i < R * T * A; i++)
        acc[i] = vf_zero();
    for (size_t k = 0; k < full; k += BLOCK) {
        if (prefetch) {
            UNROLL
            for (size_t b = 0; b < BLOCK * es; b += 64)
                __builtin_prefetch(ahead + k * es + b);
        }
        dot_block(format, A, R, T, q0, acc, w + k * es, row_bytes, x + k, ldx);
    }
    if (tail) { /* widths of real models are multiples of a block; others pay for a padded copy */
        char  w_pad[TILE_ROWS * BLOCK * sizeof(float)] = {0};
        float x_pad[MAX_TOKENS * BLOCK] = {0};
        for (int r = 0; r < R; r++)
            memcpy(w_pad + (size_t)r * BLOCK * es, w + (size_t)r * row_bytes + full * es, tail * es);
        for (int t = 0; t < T; t++)
            memcpy(x_pad + t * BLOCK, x + (size_t)t * ldx + full, tail * sizeof *x);
        dot_block(format, A, R, T, q0, acc, w_pad, BLOCK * es, x_pad, BLOCK);
    }
}

typedef void dot_fn(float *y, size_t ldy, const char *w, int rows, int cols, const float *x, size_t ldx, const char *next);

/* Where to prefetch while the bytes at p are read, `left` of them to the end: ahead, then on into what will be read next.
 * Without a next the end asks again for what it reads now: nothing else is worth the traffic. */
VEC const char *prefetch_from(const char *p, size_t left, const char *next)
{
    return left > PREFETCH_BYTES ? p + PREFETCH_BYTES : next ? next + (PREFETCH_BYTES - left) : p;
}

/* The sums of one row with T tokens, not yet added up over their lanes. */
VEC void dot_row(enum dtype format, int T, vf *sum, const char *w, const char *ahead, int cols, const float *x, size_t ldx)
{
    const int A = ROW_SUMS(T);
    vf        acc[MAX_TOKENS * N_SUMS], part[MAX_TOKENS][N_SUMS];
    UNROLL
    for (int q = 0; q < N_SUMS; q += A) {
        dot_sums(format, A, 1, T, q, acc, w, 0, x, ldx, cols, q == 0, ahead);
        UNROLL
        for (int i = 0; i < T * A; i++)
            part[i / A][q + i % A] = acc[i];
    }
    UNROLL
    for (int t = 0; t < T; t++)
        sum[t] = vf_add(vf_add(part[t][0], part[t][1]), vf_add(part[t][2], part[t][3]));
}

/* T tokens by one row after the other: weights are one linear stream, the shape of decoding. Lanes are added up for four
 * rows at once, which counts where rows are short: the keys of a cache. */
VEC void dot_rows(enum dtype format, int T, float *y, size_t ldy, const char *w, int rows, int cols, const float *x,
                  size_t ldx, const char *next)
{
    enum { ROWS = 4 };
    const size_t row_bytes = (size_t)cols * element_size(format);
    size_t       left = (size_t)rows * row_bytes;
    for (int r = 0; r < rows; r += ROWS) {
        vf        sum[ROWS][MAX_TOKENS];
        const int here = rows - r < ROWS ? rows - r : ROWS;
        for (int i = 0; i < here; i++, w += row_bytes, left -= row_bytes)
            dot_row(format, T, sum[i], w, prefetch_from(w, left, next), cols, x, ldx);
        UNROLL
        for (int t = 0; t < T; t++) {
            float *to = y + (size_t)t * ldy + (size_t)r;
            if (here == ROWS)
                vf_sum4(to, sum[0][t], sum[1][t], sum[2][t], sum[3][t]);
            else
                for (int i = 0; i < here; i++)
                    to[i] = vf_sum(sum[i][t]);
        }
    }
}

/* T tokens by TILE_ROWS rows, one partial sum after the other: the shape of a prefill. rows % TILE_ROWS == 0. */
VEC void dot_tile(enum dtype format, int T, float *y, size_t ldy, const char *w, int rows, int cols, const float *x,
                  size_t ldx, const char *next)
{
    (void)next;
    enum { R = TILE_ROWS };
    const size_t row_bytes = (size_t)cols * element_size(format);
    for (int r0 = 0; r0 < rows; r0 += R, w += R * row_bytes) {
        vf acc[R * TILE_TOKENS], part[N_SUMS][R * TILE_TOKENS];
        for (int q = 0; q < N_SUMS; q++) {
            dot_sums(format, 1, R, T, q, acc, w, row_bytes, x, ldx, cols, false, NULL);
            UNROLL
            for (int i = 0; i < R * T; i++)
                part[q][i] = acc[i];
        }
        for (int t = 0; t < T; t++) {
            float *to = y + (size_t)t * ldy + (size_t)r0;
            vf     sum[R];
            UNROLL
            for (int r = 0; r < R; r++)
                sum[r] = vf_add(vf_add(part[0][r * T + t], part[1][r * T + t]), vf_add(part[2][r * T + t], part[3][r * T + t]));
#if TILE_ROWS == 4
            vf_sum4(to, sum[0], sum[1], sum[2], sum[3]);
#else
            for (int r = 0; r < R; r++)
                to[r] = vf_sum(sum[r]);
#endif
        }
    }
}

#define DOT_FN(kind, format, T)                                                                                   \
    KERNEL void kind##_##format##_##T(float *y, size_t ldy, const char *w, int rows, int cols, const float *x,    \
                                      size_t ldx, const char *next)                                               \
    {                                                                                                             \
        kind(format, T, y, ldy, w, rows, cols, x, ldx, next);                                                     \
    }
#define DOT_FNS(kind, T) DOT_FN(kind, DT_F32, T) DOT_FN(kind, DT_BF16, T) DOT_FN(kind, DT_I8, T)
#define DOT_ENTRY(kind, T) {kind##_DT_F32_##T, kind##_DT_BF16_##T, kind##_DT_I8_##T}

DOT_FNS(dot_rows, 1)
DOT_FNS(dot_rows, 2)
#if ROW_TOKENS > 2 || TILE_TOKENS > 2
DOT_FNS(dot_rows, 3)
DOT_FNS(dot_tile, 2)
DOT_FNS(dot_tile, 3)
#endif
#if TILE_TOKENS > 3
DOT_FNS(dot_rows, 4)
DOT_FNS(dot_rows, 5)
DOT_FNS(dot_rows, 6)
DOT_FNS(dot_tile, 4)
DOT_FNS(dot_tile, 5)
DOT_FNS(dot_tile, 6)
#endif

/* [tokens][format]: F32, BF16, I8. */
static dot_fn *const row_fns[][3] = {{NULL},
                                     DOT_ENTRY(dot_rows, 1),
                                     DOT_ENTRY(dot_rows, 2),
                                     DOT_ENTRY(dot_rows, 3),
#if TILE_TOKENS > 3
                                     DOT_ENTRY(dot_rows, 4),
                                     DOT_ENTRY(dot_rows, 5),
                                     DOT_ENTRY(dot_rows, 6)
#endif
};
static dot_fn *const tile_fns[][3] = {{NULL},
                                      {NULL},
                                      DOT_ENTRY(dot_tile, 2),
                                      DOT_ENTRY(dot_tile, 3),
#if TILE_TOKENS > 3
                                      DOT_ENTRY(dot_tile, 4),
                                      DOT_ENTRY(dot_tile, 5),
                                      DOT_ENTRY(dot_tile, 6)
#endif
};

/* All tokens pass over a piece of the weights that fits the second-level cache before the next piece is read. Tokens
 * are dealt to tiles evenly (7 = 4 + 3), because a tile of one wastes the weights' conversion. */
KERNEL void dot_many(int f, float *y, size_t ldy, const char *w, int rows, int cols, size_t row_bytes, const float *x,
                     size_t ldx, int n)
{
    const int n_tiles = (n + TILE_TOKENS - 1) / TILE_TOKENS;
    int       piece = (int)(TILE_CACHE_BYTES / row_bytes) / TILE_ROWS * TILE_ROWS;
    if (piece < TILE_ROWS)
        piece = TILE_ROWS;
    for (int r0 = 0; r0 < rows; r0 += piece, w += (size_t)piece * row_bytes) {
        const int here = rows - r0 < piece ? rows - r0 : piece, tiled = here - here % TILE_ROWS;
        for (int i = 0, t = 0; i < n_tiles; i++) {
            const int    T = n / n_tiles + (i < n % n_tiles);
            float       *yt = y + (size_t)t * ldy + r0;
            const float *xt = x + (size_t)t * ldx;
            if (tiled)
                tile_fns[T][f](yt, ldy, w, tiled, cols, xt, ldx, NULL);
            if (tiled < here)
                row_fns[T][f](yt + tiled, ldy, w + (size_t)tiled * row_bytes, here - tiled, cols, xt, ldx, NULL);
            t += T;
        }
    }
}

KERNEL void dot(enum dtype format, float *y, size_t ldy, const void *w, int rows, int cols, const float *x, size_t ldx,
                int n, const void *next)
{
    const int f = format == DT_F32 ? 0 : format == DT_BF16 ? 1 : 2;
    if (rows <= 0 || n <= 0)
        return;
    if (n <= ROW_TOKENS)
        row_fns[n][f](y, ldy, w, rows, cols, x, ldx, next);
    else
        dot_many(f, y, ldy, w, rows, cols, (size_t)cols * element_size(format), x, ldx, n);
}

KERNEL void finish(float *y, int n, const void *scales, enum dtype scale_dtype, const float *bias, bool round)
{
    for (int i = 0; i < n; i += LANES) {
        const size_t here = (size_t)(n - i);
        vf           v = vf_load_part(y + i, here);
        if (scales) {
            const char *at = (const char *)scales + (size_t)i * element_size(scale_dtype);
            vf          scale = here < LANES              ? load_tail(scale_dtype, at, here)
                                : scale_dtype == DT_BF16 ? vf_load_bf16(at)
                                                         : vf_load(at);
            v = vf_mul(round_if(round, v), scale);
        }
        if (bias)
            v = vf_add(round_if(round && scales, v), vf_load_part(bias + i, here));
        vf_store_part(y + i, round_if(round, v), here);
    }
}

/* ---- element by element ------------------------------------------------------------------------------------------ */

KERNEL void rmsnorm(float *y, const float *x, const float *w, int dim, float eps, bool round)
{
    vf        sum[N_SUMS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    const int full = dim - dim % BLOCK;
    for (int k = 0; k < full; k += BLOCK) {
        UNROLL
        for (int a = 0; a < N_SUMS; a++) {
            vf v = vf_load(x + k + LANES * a);
            sum[a] = vf_fma(v, v, sum[a]);
        }
    }
    for (int k = full; k < dim; k += LANES) {
        vf v = vf_load_part(x + k, (size_t)(dim - k));
        sum[0] = vf_fma(v, v, sum[0]);
    }
    float square = vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
    vf    factor = vf_set(1.0f / sqrtf(square / (float)dim + eps));
    for (int k = 0; k < dim; k += LANES) {
        const size_t here = (size_t)(dim - k);
        vf           v = round_if(round, vf_mul(vf_load_part(x + k, here), factor));
        vf_store_part(y + k, round_if(round, vf_mul(v, vf_load_part(w + k, here))), here);
    }
}

/* e^v: v = n·ln 2 + r with ln 2 in two parts, the first short enough that n times it is exact; a polynomial of degree 7
 * on |r| ≤ ln(2)/2 (coefficients: Cephes expf, S. Moshier); times 2ⁿ, also into the subnormals and to infinity. */
VEC vf vf_exp(vf v)
{
    v = vf_min(vf_set(89.5f), vf_max(vf_set(-105.0f), v));
    vf n = vf_near(vf_mul(v, vf_set(1.44269504f)));
    vf r = vf_fma(n, vf_set(2.12194440e-4f), vf_fma(n, vf_set(-0.693359375f), v));
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_add(vf_fma(vf_mul(p, r), r, r), vf_set(1.0f));
    return vf_ldexp(p, n);
}

KERNEL void exponential(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += LANES)
        vf_store_part(y + i, vf_exp(vf_load_part(x + i, n - i)), n - i);
}

KERNEL void silu_mul(float *y, const float *gate, const float *up, size_t n, bool round)
{
    for (size_t i = 0; i < n; i += LANES) {
        vf g = vf_load_part(gate + i, n - i), one = vf_set(1.0f);
        vf act = vf_div(g, vf_add(one, vf_exp(vf_sub(vf_zero(), g))));
        vf_store_part(y + i, round_if(round, vf_mul(round_if(round, act), vf_load_part(up + i, n - i))), n - i);
    }
}

KERNEL void add(float *x, const float *y, size_t n, bool round)
{
    for (size_t i = 0; i < n; i += LANES)
        vf_store_part(x + i, round_if(round, vf_add(vf_load_part(x + i, n - i), vf_load_part(y + i, n - i))), n - i);
}

KERNEL void scale(float *x, float factor, size_t n, bool round)
{
    for (size_t i = 0; i < n; i += LANES)
        vf_store_part(x + i, round_if(round, vf_mul(vf_load_part(x + i, n - i), vf_set(factor))), n - i);
}

KERNEL void rope(float *x, const float *cos_sin, int dim, bool round)
{
    for (int i = 0; i < dim; i += LANES) {
        const size_t here = (size_t)(dim - i);
        vf_store_part(x + i, round_if(round, vf_rotate(vf_load_part(x + i, here), vf_load_part(cos_sin + i, here))), here);
    }
}

VEC void widen_as(enum dtype format, float *y, const char *row, size_t n, bool sum)
{
    for (size_t i = 0; i < n; i += LANES) {
        const char *at = row + i * element_size(format);
        vf          v = n - i < LANES ? load_tail(format, at, n - i) : load_wide(format, at);
        vf_store_part(y + i, sum ? vf_add(vf_load_part(y + i, n - i), v) : v, n - i);
    }
}

KERNEL void widen(enum dtype format, float *y, const void *row, size_t n, bool sum)
{
    if (format == DT_F32)
        widen_as(DT_F32, y, row, n, sum);
    else if (format == DT_BF16)
        widen_as(DT_BF16, y, row, n, sum);
    else
        widen_as(DT_I8, y, row, n, sum);
}

KERNEL void narrow_bf16(uint16_t *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        uint16_t buffer[LANES];
        vf_store_bf16(buffer, vf_load_part(x + i, n - i));
        memcpy(y + i, buffer, (n - i < LANES ? n - i : LANES) * sizeof *y);
    }
}

KERNEL float narrow_i8(int8_t *y, const float *x, size_t n)
{
    vf top = vf_zero();
    for (size_t i = 0; i < n; i += LANES)
        top = vf_max(top, vf_abs(vf_load_part(x + i, n - i)));
    float step = vf_top(top) / 127.0f;
    vf    divisor = vf_set(step > 0 ? step : 1.0f);
    for (size_t i = 0; i < n; i += LANES) {
        int8_t buffer[LANES];
        vf_store_i8(buffer, vf_div(vf_load_part(x + i, n - i), divisor));
        memcpy(y + i, buffer, n - i < LANES ? n - i : LANES);
    }
    return step;
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

/* Lanes from n on as `rest`. */
VEC vf fill_tail(vf v, size_t n, float rest)
{
    float buffer[2 * LANES];
    vf_store(buffer, v);
    vf_store(buffer + n, vf_set(rest));
    return vf_load(buffer);
}

KERNEL float softmax(float *s, int n, const struct softmax_args *args)
{
    const bool fast = args->fast_round;
    vf         top = vf_set(-INFINITY), sum = vf_zero();
    for (int i = 0; i < n; i += LANES) {
        const size_t here = (size_t)(n - i);
        vf           v = vf_load_part(s + i, here);
        if (args->k_scale)
            v = vf_mul(v, vf_load_part(args->k_scale + i, here));
        v = round_if(fast, vf_mul(round_if(fast, v), vf_set(args->scale)));
        vf_store_part(s + i, v, here);
        top = vf_max(top, here < LANES ? fill_tail(v, here, -INFINITY) : v);
    }
    const vf highest = vf_set(vf_top(top));
    for (int i = 0; i < n; i += LANES) {
        const size_t here = (size_t)(n - i);
        vf           e = vf_exp(vf_sub(vf_load_part(s + i, here), highest));
        sum = vf_add(sum, here < LANES ? fill_tail(e, here, 0) : e);
        if (!fast && args->v_scale)
            e = vf_mul(e, vf_load_part(args->v_scale + i, here));
        vf_store_part(s + i, e, here);
    }
    const float total = vf_sum(sum);
    if (!fast)
        return total;
    for (int i = 0; i < n; i += LANES) {
        const size_t here = (size_t)(n - i);
        vf           p = vf_round(vf_div(vf_load_part(s + i, here), vf_set(total)));
        if (args->v_scale)
            p = vf_mul(p, vf_load_part(args->v_scale + i, here));
        vf_store_part(s + i, p, here);
    }
    return 1.0f;
}

/* V vectors of the output for G heads, from element d on; the cache row is read once for all of them. */
VEC void weigh_part(enum dtype format, int V, int G, float *y, size_t ldy, const float *p, size_t ldp,
                    const float *total, const char *v, int n, int head_dim, int d, bool round, const char *next)
{
    const size_t es = element_size(format), row_bytes = (size_t)head_dim * es, here = (size_t)(head_dim - d);
    vf           acc[2 * WEIGH_VECS];
    UNROLL
    for (int i = 0; i < G * V; i++)
        acc[i] = vf_zero();
    v += (size_t)d * es;
    for (int i = 0; i < n; i++, v += row_bytes) {
        if (d == 0) {
            const char *ahead = prefetch_from(v, (size_t)(n - i) * row_bytes, next);
            for (size_t b = 0; b < row_bytes; b += 64)
                __builtin_prefetch(ahead + b);
        }
        UNROLL
        for (int j = 0; j < V; j++) {
            const char *at = v + (size_t)(j * LANES) * es;
            vf          wide = V == 1 && here < LANES ? load_tail(format, at, here) : load_wide(format, at);
            UNROLL
            for (int g = 0; g < G; g++)
                acc[g * V + j] = vf_fma(wide, vf_set(p[(size_t)g * ldp + (size_t)i]), acc[g * V + j]);
        }
    }
    UNROLL
    for (int i = 0; i < G * V; i++)
        vf_store_part(y + (size_t)(i / V) * ldy + d + i % V * LANES,
                   round_if(round, vf_div(acc[i], vf_set(total[i / V]))), here);
}

VEC void weigh_heads(enum dtype format, int G, float *y, size_t ldy, const float *p, size_t ldp, const float *total,
                     const char *v, int n, int head_dim, bool round, const char *next)
{
    enum { HALF = WEIGH_VECS > 1 ? WEIGH_VECS / 2 : 1 }; /* heads of 64 after heads of 128 */
    int d = 0;
    for (; d + WEIGH_VECS * LANES <= head_dim; d += WEIGH_VECS * LANES)
        weigh_part(format, WEIGH_VECS, G, y, ldy, p, ldp, total, v, n, head_dim, d, round, next);
    for (; d + HALF * LANES <= head_dim; d += HALF * LANES)
        weigh_part(format, HALF, G, y, ldy, p, ldp, total, v, n, head_dim, d, round, next);
    for (; d < head_dim; d += LANES)
        weigh_part(format, 1, G, y, ldy, p, ldp, total, v, n, head_dim, d, round, next);
}

VEC void weigh_as(enum dtype format, float *y, size_t ldy, const float *p, size_t ldp, const float *total, int n_heads,
                  const char *v, int n, int head_dim, bool round, const char *next)
{
    size_t g = 0;
    for (; g + 2 <= (size_t)n_heads; g += 2)
        weigh_heads(format, 2, y + g * ldy, ldy, p + g * ldp, ldp, total + g, v, n, head_dim, round, next);
    if (g < (size_t)n_heads)
        weigh_heads(format, 1, y + g * ldy, ldy, p + g * ldp, ldp, total + g, v, n, head_dim, round, next);
}

KERNEL void weigh(enum dtype format, float *y, size_t ldy, const float *p, size_t ldp, const float *total, int n_heads,
                  const void *v, int n, int head_dim, bool round, const void *next)
{
    if (format == DT_F32)
        weigh_as(DT_F32, y, ldy, p, ldp, total, n_heads, v, n, head_dim, round, next);
    else if (format == DT_BF16)
        weigh_as(DT_BF16, y, ldy, p, ldp, total, n_heads, v, n, head_dim, round, next);
    else
        weigh_as(DT_I8, y, ldy, p, ldp, total, n_heads, v, n, head_dim, round, next);
}

KERNEL uint64_t read_all(const void *bytes, size_t size)
{
    const char *p = bytes;
    size_t      i = 0;
    vf          acc[N_SUMS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    uint64_t    words[LANES / 2], result = 0;
    for (; i + BLOCK * sizeof(float) <= size; i += BLOCK * sizeof(float)) {
        const char *ahead = prefetch_from(p + i, size - i, NULL); /* 3–5 % faster than without */
        UNROLL
        for (size_t b = 0; b < BLOCK * sizeof(float); b += 64)
            __builtin_prefetch(ahead + b);
        UNROLL
        for (int a = 0; a < N_SUMS; a++)
            acc[a] = vf_xor(acc[a], vf_load(p + i + (size_t)a * LANES * sizeof(float)));
    }
    vf mixed = vf_xor(vf_xor(acc[0], acc[1]), vf_xor(acc[2], acc[3]));
    memcpy(words, &mixed, sizeof words);
    for (int w = 0; w < LANES / 2; w++)
        result ^= words[w];
    for (; i < size; i++)
        result ^= (uint64_t)(unsigned char)p[i] << (i % 8 * 8);
    return result;
}

const struct cpu_kernels ISA_TABLE = {
    .name = ISA_NAME,
    .dot = dot,
    .finish = finish,
    .rmsnorm = rmsnorm,
    .silu_mul = silu_mul,
    .add = add,
    .rope = rope,
    .softmax = softmax,
    .weigh = weigh,
    .widen = widen,
    .scale = scale,
    .narrow_bf16 = narrow_bf16,
    .narrow_i8 = narrow_i8,
    .read = read_all,
    .exponential = exponential,
};
