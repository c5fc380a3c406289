/* linear.cuh — the kernel behind linear.h, compiled once per weight format (linear_bf16.cu, linear_int8.cu).
 *
 * A block of 8 warps computes RT tiles; each warp owns 1/8 of the columns and keeps its fragments in registers before it
 * waits for the predecessor. Partial sums of the 8 warps meet in shared memory and are added in warp order. */
#include "kernels/device.cuh"
#include "kernels/fragment.cuh"
#include "kernels/launch.cuh"
#include "kernels/linear.h"

struct linear_args {
    const char          *w;
    const float         *scale, *bias, *norm;
    const __nv_bfloat16 *x;
    __nv_bfloat16       *y;
    int rows, cols, tiles, ksteps, groups; /* groups of RT tiles */
    int x_stride, x_step, x_first, y_stride, y_step;
    int tokens, end, late, half;           /* half: columns of fold 2's first half */
    float eps;
};

/* Where x comes from: straight from global memory; normalized in registers; normalized into shared memory. */
enum x_mode { X_GLOBAL, X_NORM_REG, X_NORM_SMEM };

/* Sum of squares of four BF16. */
static __device__ __forceinline__ float squares(uint32_t a, uint32_t b)
{
    float s = __fmul_rn(bf16_low(a), bf16_low(a));
    s       = __fmaf_rn(bf16_high(a), bf16_high(a), s);
    s       = __fmaf_rn(bf16_low(b), bf16_low(b), s);
    return __fmaf_rn(bf16_high(b), bf16_high(b), s);
}

/* (0+4 + 2+6) + (1+5 + 3+7): what a butterfly over the lanes' ksteps gives, so that one token and many agree. */
static __device__ __forceinline__ float tree8(const float *v)
{
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

static __device__ __forceinline__ uint32_t norm_pair(uint32_t x, float r, float w0, float w1)
{
    return pack_bf16(norm_one(bf16_low(x), r, w0), norm_one(bf16_high(x), r, w1));
}

/* The next kernel loads its weights beside ours only if a block of each fits the 65,536 registers of an SM. Gate/up needs
 * most (256 threads of 152, BF16, or 144, INT8): what comes before and after it must do with 104 or 112. */
static constexpr int registers(int int8, int fold, int rt, int nt, bool many)
{
    return nt > 1 || (rt == 3 && nt == 1) ? 255
           : rt == 3                      ? (int8 ? 144 : 152)
           : fold == 2 && !many           ? (int8 ? 112 : 104)
                                          : 128;
}

/* INT8: storage format. FOLD, RT: packing and tiles a block. KC: ksteps held at once. NT: column tiles of 8 tokens
 * (fold 2: 4 tokens, the other four columns being the second half of the sum); 0 = one token.
 * MANY: loop over groups of tiles and chunks of ksteps, ksteps added in order. Otherwise a warp has KC ksteps in all: their
 * products stay apart modulo 8 and are added as ((0+1)+(2+3))+((4+5)+(6+7)), which shortens the chain of dependent mma
 * from KC to 2 and is the same for one token, whose ksteps are spread over the eight columns: a lane then loads and
 * normalizes 4 values per 8 ksteps instead of 32. */
template <int INT8, int FOLD, int RT, int KC, int NT, int XM, bool MANY>
static __global__ void __maxnreg__(registers(INT8, FOLD, RT, NT, MANY)) linear_kernel(const linear_args p)
{
    constexpr int  NTILE = NT == 0 ? 1 : NT, TOK = NT == 0 ? 1 : (FOLD == 2 ? 4 : 8) * NT, RP = FOLD == 2 ? 8 : 16;
    constexpr int  RAW = INT8 ? RT * KC / 2 : RT * KC, SETS = (KC + 7) / 8, ROWS = RT * RP;
    constexpr bool SPREAD = NT == 0 && XM == X_NORM_REG;
    constexpr int  XREG = XM == X_NORM_REG ? (NT == 0 ? 2 * SETS : 2 * KC * NTILE) : 1;
    extern __shared__ float shared[];
    float *red = shared;                                    /* [8][TOK][ROWS] */
    float *sum_of_squares = red + LINEAR_WARPS * TOK * ROWS; /* [8][TOK]       */
    float *s_scale = sum_of_squares + LINEAR_WARPS * TOK;   /* [ROWS] scale, then [ROWS] bias */
    const int      padded = LINEAR_WARPS * p.ksteps * 16 + 8; /* columns of x, + 8: rows on different banks */
    float         *s_norm = s_scale + 2 * ROWS;             /* X_NORM_SMEM: [padded]      */
    __nv_bfloat16 *xs = (__nv_bfloat16 *)(s_norm + padded); /* X_NORM_SMEM: [TOK][padded] */
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane >> 2, t = lane & 3;
    const int first_token = blockIdx.y * TOK, n_tok = min(TOK, p.tokens - first_token);
    const int wbase = warp * p.ksteps * 16;
    const size_t bytes = INT8 ? 256 : 512;

    uint4 raw[RAW];
    auto load = [&](int group, int chunk, int i) { /* raw[i] */
        const int m = INT8 ? i / (KC / 2) : i / KC, s = INT8 ? i % (KC / 2) * 2 : i % KC;
        const int tile = min(group * RT + m, p.tiles - 1);
        return load_weights(p.w + (((size_t)tile * LINEAR_WARPS + warp) * p.ksteps + chunk * KC + s) * bytes +
                            (size_t)lane * 16);
    };
#pragma unroll
    for (int i = 0; i < RAW; i++)
        raw[i] = load(blockIdx.x, 0, i);
    if (!p.late)
        pdl_trigger();

    /* Norm weights, row scales and biases do not depend on the predecessor either. */
    float nw[SPREAD ? 4 * SETS : 1];
    if (SPREAD) {
#pragma unroll
        for (int j = 0; j < SETS; j++) {
            const int    s = min(8 * j + g, KC - 1), k = wbase + 32 * (s / 2) + 8 * t + 4 * (s % 2);
            const uint4  w4 = load_l2_16(p.norm + k); /* volatile, or it sinks below the wait as weights would */
            nw[4 * j]     = __uint_as_float(w4.x);
            nw[4 * j + 1] = __uint_as_float(w4.y);
            nw[4 * j + 2] = __uint_as_float(w4.z);
            nw[4 * j + 3] = __uint_as_float(w4.w);
        }
    }
    float scale = 1.0f, bias = 0.0f; /* of row threadIdx.x of the group */
    auto  row_constants = [&](int group) {
        const int at = group * ROWS + (int)threadIdx.x;
        if ((int)threadIdx.x < ROWS && at < p.tiles * RP) {
            if (p.scale)
                scale = load_l2_f32(p.scale + at);
            if (p.bias)
                bias = load_l2_f32(p.bias + at);
        }
    };
    row_constants(blockIdx.x);
    if (XM == X_NORM_SMEM)
        for (int k = threadIdx.x * 4; k < padded - 8; k += 4 * LINEAR_WARPS * WARP)
            *(float4 *)(s_norm + k) = *(const float4 *)(p.norm + k);
    /* INT8 becomes BF16 before the wait, but for the last tiles, which are converted while x is on its way: a product whose
     * weights come late must not hold up the request for x. */
    constexpr bool LATE = INT8 && NTILE == 1; /* the last tiles' fragments are made where they are used */
    constexpr int  EARLY = RT == 3 && NT == 0 ? 1 : RT - 1; /* tiles made before the wait: registers bound them */
    uint32_t       early[!MANY && INT8 ? RT * KC * 4 : 1];
    auto     convert = [&](int first, int last) {
#pragma unroll
        for (int i = first * KC / 2; i < last * KC / 2; i++) {
            const int m = i / (KC / 2), s = i % (KC / 2) * 2;
            int8_fragment(raw[i].x, raw[i].y, early + (m * KC + s) * 4);
            int8_fragment(raw[i].z, raw[i].w, early + (m * KC + s + 1) * 4);
        }
    };
    if constexpr (!MANY && INT8) {
        convert(0, EARLY);
#pragma unroll
        for (int i = 0; i < EARLY * KC * 4; i++)
            asm volatile("" : "+r"(early[i])); /* here, and not where the compiler would like it */
    }
    pdl_wait();
    if (p.late)
        pdl_trigger();

    const __nv_bfloat16 *x0 = p.x + (size_t)p.x_first * p.x_stride;
    auto x_row = [&](int token) { return x0 + (size_t)(first_token + token) * p.x_step * p.x_stride; };
    auto token_of = [&](int n) { return FOLD == 2 ? n * 4 + (g & 3) : n * 8 + g; };
    const int half = FOLD == 2 ? (g >> 2) * p.half : 0;
    float     residual = 0.0f; /* of output threadIdx.x; requested before the products */
    auto      output = [&](int group, int i) {
        return p.y + (size_t)(first_token + i / ROWS) * p.y_step * p.y_stride + group * ROWS + i % ROWS;
    };
    auto fetch_residual = [&](int group) {
        if (p.end == LINEAR_ADD && (int)threadIdx.x < ROWS * n_tok && group * ROWS + (int)threadIdx.x % ROWS < p.rows)
            residual = load_l2_bf16(output(group, threadIdx.x));
    };
    uint32_t x[XREG];
    if (SPREAD) { /* lane's own kstep of each set of eight */
        float ss = 0.0f;
#pragma unroll
        for (int j = 0; j < SETS; j++) {
            const int s = 8 * j + g;
            uint2     v = make_uint2(0, 0);
            if (KC % 8 == 0 || s < KC)
                v = load_l2_8(x_row(0) + wbase + 32 * (s / 2) + 8 * t + 4 * (s % 2));
            x[2 * j] = v.x, x[2 * j + 1] = v.y;
        }
        fetch_residual(blockIdx.x);
        if constexpr (INT8 && !LATE)
            convert(EARLY, RT);
#pragma unroll
        for (int j = 0; j < SETS; j++)
            ss += squares(x[2 * j], x[2 * j + 1]);
        ss = warp_sum(ss);
        if (lane == 0)
            sum_of_squares[warp] = ss;
        __syncthreads();
        ss = 0.0f;
#pragma unroll
        for (int i = 0; i < LINEAR_WARPS; i++)
            ss += sum_of_squares[i];
        const float r = rsqrtf(ss / (float)p.cols + p.eps);
#pragma unroll
        for (int j = 0; j < SETS; j++) {
            x[2 * j]     = norm_pair(x[2 * j], r, nw[4 * j], nw[4 * j + 1]);
            x[2 * j + 1] = norm_pair(x[2 * j + 1], r, nw[4 * j + 2], nw[4 * j + 3]);
        }
    } else if (XM == X_NORM_REG) { /* lane holds, for its tokens, every kstep of the warp */
#pragma unroll
        for (int n = 0; n < NTILE; n++)
#pragma unroll
            for (int s = 0; s < KC; s += 2) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (token_of(n) < n_tok)
                    v = load_l2_16(x_row(token_of(n)) + half + wbase + 16 * s + 8 * t);
                uint32_t *xp = x + (n * KC + s) * 2;
                xp[0] = v.x, xp[1] = v.y, xp[2] = v.z, xp[3] = v.w;
            }
        fetch_residual(blockIdx.x);
        if constexpr (INT8 && !LATE)
            convert(EARLY, RT);
#pragma unroll
        for (int n = 0; n < NTILE; n++) {
            float q[8 * SETS] = {};
#pragma unroll
            for (int s = 0; s < KC; s++)
                q[s] = squares(x[(n * KC + s) * 2], x[(n * KC + s) * 2 + 1]);
#pragma unroll
            for (int j = 1; j < SETS; j++)
#pragma unroll
                for (int i = 0; i < 8; i++)
                    q[i] += q[8 * j + i];
            float ss = tree8(q);
            if (FOLD == 2) /* the other half of the same token */
                ss += __shfl_xor_sync(~0u, ss, 16);
            ss += __shfl_xor_sync(~0u, ss, 2);
            ss += __shfl_xor_sync(~0u, ss, 1);
            if (t == 0 && (FOLD == 1 || g < 4))
                sum_of_squares[warp * TOK + token_of(n)] = ss;
        }
        __syncthreads();
#pragma unroll
        for (int n = 0; n < NTILE; n++) {
            float q = 0.0f;
#pragma unroll
            for (int i = 0; i < LINEAR_WARPS; i++)
                q += sum_of_squares[i * TOK + token_of(n)];
            const float r = rsqrtf(q / (float)p.cols + p.eps);
#pragma unroll
            for (int s = 0; s < KC; s++) {
                const float4 w4 = *(const float4 *)(p.norm + half + wbase + 32 * (s / 2) + 8 * t + 4 * (s % 2));
                uint32_t    *xp = x + (n * KC + s) * 2;
                xp[0] = norm_pair(xp[0], r, w4.x, w4.y);
                xp[1] = norm_pair(xp[1], r, w4.z, w4.w);
            }
        }
    } else if (!MANY)
        fetch_residual(blockIdx.x);
    if (XM == X_NORM_SMEM) {
        /* Vectors of 8 columns go round 256 places, whose sums meet as warps of 32 in order: the whole block is these
         * places for one token; for many, a warp plays all of them for its token, so that both give the same bits. */
        auto normalize = [&](int token, int k, float r) {
            uint4       *at = (uint4 *)(xs + (size_t)token * padded + k);
            uint4        v = *at;
            const float *w = s_norm + k;
            v.x = norm_pair(v.x, r, w[0], w[1]), v.y = norm_pair(v.y, r, w[2], w[3]);
            v.z = norm_pair(v.z, r, w[4], w[5]), v.w = norm_pair(v.w, r, w[6], w[7]);
            *at = v;
        };
        constexpr int ROUND = LINEAR_WARPS * WARP * 8;
        if (TOK == 1) {
            float ss = 0.0f;
            for (int k = threadIdx.x * 8; k < padded - 8; k += ROUND) {
                const uint4 v = load_l2_16(x_row(0) + k);
                *(uint4 *)(xs + k) = v;
                ss += squares(v.x, v.y) + squares(v.z, v.w);
            }
            ss = warp_sum(ss);
            if (lane == 0)
                sum_of_squares[warp] = ss;
            __syncthreads();
            ss = 0.0f;
#pragma unroll
            for (int i = 0; i < LINEAR_WARPS; i++)
                ss += sum_of_squares[i];
            const float r = rsqrtf(ss / (float)p.cols + p.eps);
            for (int k = threadIdx.x * 8; k < padded - 8; k += ROUND)
                normalize(0, k, r);
        } else {
            __syncthreads(); /* s_norm */
            for (int token = warp; token < TOK; token += LINEAR_WARPS) {
                float place[LINEAR_WARPS] = {}, ss = 0.0f;
                for (int base = 0; base < padded - 8; base += ROUND)
#pragma unroll
                    for (int i = 0; i < LINEAR_WARPS; i++) {
                        const int k = base + (i * WARP + lane) * 8;
                        uint4     v = make_uint4(0, 0, 0, 0);
                        if (k >= padded - 8)
                            continue;
                        if (token < n_tok)
                            v = load_l2_16(x_row(token) + k);
                        *(uint4 *)(xs + (size_t)token * padded + k) = v;
                        place[i] += squares(v.x, v.y) + squares(v.z, v.w);
                    }
#pragma unroll
                for (int i = 0; i < LINEAR_WARPS; i++)
                    ss += warp_sum(place[i]);
                const float r = rsqrtf(ss / (float)p.cols + p.eps);
                for (int k = lane * 8; k < padded - 8; k += WARP * 8)
                    normalize(token, k, r);
            }
        }
        __syncthreads();
    }

    /* A warp's sums of tile m, token tile n to shared memory. */
    auto put = [&](int m, int n, float *v) {
        float *out = red + warp * TOK * ROWS + m * RP;
        if (NT == 0) { /* only column 0 is a token */
            if (t == 0)
                out[g] = v[0], out[g + 8] = v[2];
        } else if (FOLD == 1) {
            const int token = n * 8 + 2 * t;
            out[token * ROWS + g]           = v[0];
            out[(token + 1) * ROWS + g]     = v[1];
            out[token * ROWS + g + 8]       = v[2];
            out[(token + 1) * ROWS + g + 8] = v[3];
        } else { /* rows 0–7 × columns 0–3 and rows 8–15 × columns 4–7 are the halves of the same sum */
            float a = t < 2 ? v[0] : v[2], b = t < 2 ? v[1] : v[3];
            a += __shfl_xor_sync(~0u, a, 2);
            b += __shfl_xor_sync(~0u, b, 2);
            const int token = n * 4 + 2 * t;
            if (t < 2)
                out[token * ROWS + g] = a, out[(token + 1) * ROWS + g] = b;
        }
    };
    auto load_x = [&](int n, int chunk, int s, uint32_t *b) { /* two ksteps */
        const int token = NT == 0 ? 0 : token_of(n), k = half + wbase + chunk * KC * 16 + 16 * s + 8 * t;
        uint4     v = make_uint4(0, 0, 0, 0);
        if (XM == X_NORM_SMEM) {
            if (NT > 0 || g == 0)
                v = *(const uint4 *)(xs + (size_t)token * padded + k);
        } else if (NT == 0 ? g == 0 : token < n_tok)
            v = load_l2_16(x_row(token) + k);
        b[0] = v.x, b[1] = v.y, b[2] = v.z, b[3] = v.w;
    };
    auto fragment = [&](int m, int s, uint32_t *f) { /* not MANY */
        if (INT8 && LATE && m >= EARLY) {
            const uint4 v = raw[INT8 ? m * (KC / 2) + s / 2 : 0];
            int8_fragment(s % 2 ? v.z : v.x, s % 2 ? v.w : v.y, f);
        } else if (INT8) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                f[i] = early[INT8 && !MANY ? (m * KC + s) * 4 + i : 0];
        } else {
            const uint4 v = raw[INT8 ? 0 : m * KC + s];
            f[0] = v.x, f[1] = v.y, f[2] = v.z, f[3] = v.w;
        }
    };
    const int n_chunks = MANY ? p.ksteps / KC : 1;
    for (int group = blockIdx.x; group < p.groups; group += gridDim.x) {
        if constexpr (SPREAD) {
#pragma unroll
            for (int m = 0; m < RT; m++) {
                float c[2][4] = {};
#pragma unroll
                for (int s = 0; s < KC; s++) {
                    const uint32_t  b0 = g == s % 8 ? x[s / 8 * 2] : 0u, b1 = g == s % 8 ? x[s / 8 * 2 + 1] : 0u;
                    uint32_t f[4];
                    fragment(m, s, f);
                    mma(c[s & 1], f, b0, b1);
                }
                /* column 2t is in c[0], 2t + 1 in c[1] */
                float a = c[0][0] + c[1][1], b = c[0][2] + c[1][3];
                a += __shfl_xor_sync(~0u, a, 1);
                b += __shfl_xor_sync(~0u, b, 1);
                a += __shfl_xor_sync(~0u, a, 2);
                b += __shfl_xor_sync(~0u, b, 2);
                if (t == 0)
                    red[warp * ROWS + m * RP + g] = a, red[warp * ROWS + m * RP + g + 8] = b;
            }
        } else if constexpr (!MANY) {
            uint32_t b[2][XM == X_NORM_REG ? 1 : 2 * KC];
            if (XM != X_NORM_REG)
#pragma unroll
                for (int s = 0; s < KC; s += 2)
                    load_x(0, 0, s, b[0] + 2 * s);
            if constexpr (INT8 && !LATE && XM != X_NORM_REG)
                convert(EARLY, RT);
#pragma unroll
            for (int n = 0; n < NTILE; n++) {
                if (XM != X_NORM_REG && n + 1 < NTILE)
#pragma unroll
                    for (int s = 0; s < KC; s += 2)
                        load_x(n + 1, 0, s, b[(n + 1) & 1] + 2 * s);
                const uint32_t *xb = XM == X_NORM_REG ? x + n * KC * 2 : b[n & 1];
#pragma unroll
                for (int m = 0; m < RT; m++) {
                    float r[8][4] = {};
#pragma unroll
                    for (int s = 0; s < KC; s++) {
                        uint32_t f[4];
                        fragment(m, s, f);
                        mma(r[s % 8], f, xb[2 * s], xb[2 * s + 1]);
                    }
                    float v[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        v[i] = KC <= 4 ? (r[0][i] + r[1][i]) + (r[2][i] + r[3][i])
                                       : ((r[0][i] + r[1][i]) + (r[2][i] + r[3][i])) +
                                             ((r[4][i] + r[5][i]) + (r[6][i] + r[7][i]));
                    put(m, n, v);
                }
            }
        } else {
            fetch_residual(group);
            float c[RT][NTILE][4];
#pragma unroll
            for (int i = 0; i < RT * NTILE * 4; i++)
                (&c[0][0][0])[i] = 0.0f;
            constexpr bool AHEAD = XM == X_GLOBAL && NTILE <= 2; /* x of a chunk is requested one chunk early */
            uint32_t       ahead[AHEAD ? KC / 2 : 1][NTILE][4];
            if (AHEAD)
#pragma unroll
                for (int i = 0; i < KC / 2 * NTILE; i++)
                    load_x(i % NTILE, 0, i / NTILE * 2, ahead[AHEAD ? i / NTILE : 0][i % NTILE]);
            for (int chunk = 0; chunk < n_chunks; chunk++) {
                uint32_t now[AHEAD ? KC / 2 : 1][NTILE][4];
                if (AHEAD) {
                    memcpy(now, ahead, sizeof now);
                    if (chunk + 1 < n_chunks)
#pragma unroll
                        for (int i = 0; i < KC / 2 * NTILE; i++)
                            load_x(i % NTILE, chunk + 1, i / NTILE * 2, ahead[AHEAD ? i / NTILE : 0][i % NTILE]);
                }
                const bool more       = chunk + 1 < n_chunks || group + gridDim.x < p.groups;
                const int  next_group = chunk + 1 < n_chunks ? group : group + gridDim.x;
                const int  next_chunk = chunk + 1 < n_chunks ? chunk + 1 : 0;
#pragma unroll
                for (int s = 0; s < KC; s += 2) {
                    uint32_t b[NTILE][4];
#pragma unroll
                    for (int n = 0; n < NTILE; n++)
                        if (AHEAD)
                            memcpy(b[n], now[AHEAD ? s / 2 : 0][n], sizeof b[n]);
                        else
                            load_x(n, chunk, s, b[n]);
#pragma unroll
                    for (int m = 0; m < RT; m++) {
                        uint32_t f[8];
                        if (INT8) {
                            const int i = m * (KC / 2) + s / 2;
                            int8_fragment(raw[i].x, raw[i].y, f);
                            int8_fragment(raw[i].z, raw[i].w, f + 4);
                            if (more)
                                raw[i] = load(next_group, next_chunk, i);
                        } else {
                            const int   i = INT8 ? 0 : m * KC + s;
                            const uint4 v0 = raw[i], v1 = raw[i + 1 < RAW ? i + 1 : i];
                            f[0] = v0.x, f[1] = v0.y, f[2] = v0.z, f[3] = v0.w;
                            f[4] = v1.x, f[5] = v1.y, f[6] = v1.z, f[7] = v1.w;
                            if (more) {
                                raw[i]                       = load(next_group, next_chunk, i);
                                raw[i + 1 < RAW ? i + 1 : i] = load(next_group, next_chunk, i + 1);
                            }
                        }
#pragma unroll
                        for (int n = 0; n < NTILE; n++) {
                            mma(c[m][n], f, b[n][0], b[n][1]);
                            mma(c[m][n], f + 4, b[n][2], b[n][3]);
                        }
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < RT; m++)
#pragma unroll
                for (int n = 0; n < NTILE; n++)
                    put(m, n, c[m][n]);
        }
        if ((int)threadIdx.x < ROWS)
            s_scale[threadIdx.x] = scale, s_scale[ROWS + threadIdx.x] = bias;
        __syncthreads();
        if (MANY && group + gridDim.x < p.groups)
            row_constants(group + gridDim.x);
        auto total = [&](int token, int row) {
            float a = 0.0f;
#pragma unroll
            for (int i = 0; i < LINEAR_WARPS; i++)
                a += red[(i * TOK + token) * ROWS + row];
            if (INT8)
                a = __fmul_rn(round_bf16(a), s_scale[row]);
            if (p.bias) { /* INT8 rounds the scaled product first */
                if (INT8)
                    a = round_bf16(a);
                a = __fadd_rn(a, s_scale[ROWS + row]);
            }
            return round_bf16(a);
        };
        if (p.end == LINEAR_SWIGLU) {
            for (int i = threadIdx.x; i < RT * 8 * n_tok; i += LINEAR_WARPS * WARP) {
                const int token = i / (RT * 8), channel = i % (RT * 8), row = group * RT * 8 + channel;
                const int at = channel / 8 * 16 + channel % 8;
                if (row < p.rows) {
                    const float gate = total(token, at), up = total(token, at + 8);
                    const float act = round_bf16(__fdividef(gate, 1.0f + __expf(-gate))); /* 2 ulp, then 2^-9 */
                    p.y[(size_t)(first_token + token) * p.y_step * p.y_stride + row] =
                        __float2bfloat16_rn(__fmul_rn(act, up));
                }
            }
        } else {
            for (int i = threadIdx.x; i < ROWS * n_tok; i += LINEAR_WARPS * WARP) {
                if (group * ROWS + i % ROWS >= p.rows)
                    continue;
                __nv_bfloat16 *y = output(group, i);
                if (p.end == LINEAR_ADD && i >= LINEAR_WARPS * WARP)
                    residual = load_l2_bf16(y);
                const float v = total(i / ROWS, i % ROWS);
                *y = __float2bfloat16_rn(p.end == LINEAR_ADD ? __fadd_rn(residual, v) : v);
            }
        }
        if (MANY)
            __syncthreads(); /* red is written again */
    }
}

template <int INT8, int FOLD, int RT, int KC, int NT, int XM, bool MANY>
static cudaError_t enqueue(const struct linear *l, const struct linear_call *call, linear_args a, cudaStream_t stream)
{
    constexpr int TOK = NT == 0 ? 1 : (FOLD == 2 ? 4 : 8) * NT, RP = FOLD == 2 ? 8 : 16;
    auto         *kernel = linear_kernel<INT8, FOLD, RT, KC, NT, XM, MANY>;
    size_t        smem   = sizeof(float) * (LINEAR_WARPS * TOK * (RT * RP + 1) + 2 * RT * RP);
    if (XM == X_NORM_SMEM)
        smem += (size_t)(LINEAR_WARPS * l->ksteps * 16 + 8) * (sizeof(float) + TOK * sizeof(__nv_bfloat16));
    if (NT == 4 && smem > 200 * 1024) /* wide models: fewer tokens a block */
        return enqueue<INT8, FOLD, RT, KC, (NT == 4 ? 1 : NT), XM, MANY>(l, call, a, stream);
    if (smem > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
        if (e != cudaSuccess)
            return e;
    }
    a.groups   = (l->tiles + RT - 1) / RT;
    int blocks = a.groups;
    if (MANY) {
        static int resident; /* blocks that run at once; the same for every call of this kernel on one kind of card */
        if (!resident) {
            int device = 0, sms = 0, per = 0;
            cudaGetDevice(&device);
            cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per, kernel, LINEAR_WARPS * WARP, smem);
            resident = sms * (per < 1 ? 1 : per > 3 ? 3 : per);
        }
        if (blocks > resident)
            blocks = resident;
    }
    return launch(kernel, dim3((unsigned)blocks, (unsigned)((call->tokens + TOK - 1) / TOK)), dim3(LINEAR_WARPS * WARP),
                  smem, stream, call->pdl, (const linear_args)a);
}

/* Which kernel takes a matrix is a matter of its packing and of the number of tokens alone. */
template <int INT8>
static cudaError_t dispatch(const struct linear *l, const struct linear_call *call, cudaStream_t stream)
{
    linear_args a = {};
    a.w = (const char *)l->d_w, a.scale = l->d_scale, a.bias = l->d_bias, a.norm = call->d_norm;
    a.x = (const __nv_bfloat16 *)call->d_x, a.y = (__nv_bfloat16 *)call->d_y;
    a.rows = l->rows, a.cols = l->cols, a.tiles = l->tiles, a.ksteps = l->ksteps;
    a.x_stride = call->x_stride, a.x_step = call->x_step, a.x_first = call->x_first;
    a.y_stride = call->y_stride, a.y_step = call->y_step;
    a.tokens = call->tokens, a.end = call->end, a.late = call->late, a.eps = call->eps;
    a.half = l->ksteps * LINEAR_WARPS * 16;
    const int T = call->tokens;
#define RUN(FOLD, RT, KC, NT, XM, MANY) return enqueue<INT8, FOLD, RT, KC, NT, XM, MANY>(l, call, a, stream)
#define BY_TOKENS(FOLD, RT, KC, XM, MANY)            \
    do {                                             \
        if (T == 1)                                  \
            RUN(FOLD, RT, KC, 0, XM, MANY);          \
        if (T <= 8)                                  \
            RUN(FOLD, RT, KC, 1, XM, MANY);          \
        RUN(FOLD, RT, KC, 4, XM, MANY);              \
    } while (0)
#define BY_TOKENS_FOLD(KC, XM, MANY)                 \
    do {                                             \
        if (T <= 4)                                  \
            RUN(2, 1, KC, 1, XM, MANY);              \
        if (T <= 8)                                  \
            RUN(2, 1, KC, 2, XM, MANY);              \
        RUN(2, 1, KC, 8, XM, MANY);                  \
    } while (0)
    if (l->fold == 2) {
        if (call->d_norm) {
            if (l->ksteps == 4)
                BY_TOKENS_FOLD(4, X_NORM_REG, false);
        } else {
            if (l->ksteps == 4)
                BY_TOKENS_FOLD(4, X_GLOBAL, false);
            if (l->ksteps == 8)
                BY_TOKENS_FOLD(8, X_GLOBAL, false);
            if (l->ksteps == 12)
                BY_TOKENS_FOLD(12, X_GLOBAL, false);
            if (l->ksteps % 8 == 0)
                BY_TOKENS_FOLD(8, X_GLOBAL, true);
            if (l->ksteps % 10 == 0)
                BY_TOKENS_FOLD(10, X_GLOBAL, true);
        }
        return cudaErrorInvalidValue;
    }
    if (call->d_norm && l->ksteps == 8 && l->tiles <= 1024) { /* one round of blocks, a few tiles each */
        if (l->tiles > 2 * 132)
            BY_TOKENS(1, 3, 8, X_NORM_REG, false);
        if (l->tiles > 132)
            BY_TOKENS(1, 2, 8, X_NORM_REG, false);
        BY_TOKENS(1, 1, 8, X_NORM_REG, false);
    }
    if (call->d_norm) {
        if (l->ksteps % 10 == 0)
            BY_TOKENS(1, 1, 10, X_NORM_SMEM, true);
        if (l->ksteps % 8 == 0)
            BY_TOKENS(1, 1, 8, X_NORM_SMEM, true);
        BY_TOKENS(1, 1, 4, X_NORM_SMEM, true);
    }
    if (l->ksteps % 8 == 0)
        BY_TOKENS(1, 1, 8, X_GLOBAL, true);
    if (l->ksteps % 10 == 0)
        BY_TOKENS(1, 1, 10, X_GLOBAL, true);
    BY_TOKENS(1, 1, 4, X_GLOBAL, true);
}
