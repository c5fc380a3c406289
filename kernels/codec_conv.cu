#include "kernels/codec.h"
#include "kernels/codec_rows.cuh"

namespace
{

/* ---- convolution on tensor cores: C[t][r] = Σ_k A(t, k)·W[r][k], k = (tap, channel) ----
 * A block makes BM rows in time by BN outputs, 64 values of k a step (a shared row of 128 bytes), STAGES steps in
 * flight by cp.async. SPLIT rows are BF16 rows of twice the width, so fetching does not know them: a step then holds 32
 * channels, high halves left, low halves right. Pieces of 16 bytes are placed at piece ^ (row % 8): this is what the
 * warp-group instructions call the 128-byte swizzle, and ldmatrix meets no bank twice. */

constexpr int BK = 64, PIECES = 8, ROW_BYTES = 128;

__device__ inline unsigned shared_address(const void *p)
{
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ inline void cp_async_16(unsigned to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define CODEC_HAS_WGMMA 1
/* PTX ISA, "matrix descriptor": K-major rows of 128 bytes, 128-byte swizzle, 1024 bytes from 8 rows to the next 8. */
__device__ inline unsigned long long descriptor(unsigned shared)
{
    return static_cast<unsigned long long>((shared & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define R4(c, j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
__device__ inline void wgmma(float (&c)[12][4], unsigned long long a, unsigned long long b)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"
                 "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47}, "
                 "%48, %49, p, 1, 1, 0, 0;}\n"
                 : R4(c, 0), R4(c, 1), R4(c, 2), R4(c, 3), R4(c, 4), R4(c, 5), R4(c, 6), R4(c, 7), R4(c, 8), R4(c, 9),
                   R4(c, 10), R4(c, 11)
                 : "l"(a), "l"(b));
}

__device__ inline void wgmma(float (&c)[16][4], unsigned long long a, unsigned long long b)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"
                 "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "%64, %65, p, 1, 1, 0, 0;}\n"
                 : R4(c, 0), R4(c, 1), R4(c, 2), R4(c, 3), R4(c, 4), R4(c, 5), R4(c, 6), R4(c, 7), R4(c, 8), R4(c, 9),
                   R4(c, 10), R4(c, 11), R4(c, 12), R4(c, 13), R4(c, 14), R4(c, 15)
                 : "l"(a), "l"(b));
}
#undef R4
#else
__device__ inline void ldmatrix_x4(unsigned (&r)[4], unsigned from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

__device__ inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

/* Eight BF16 values from eight INT8 codes (exact). */
__device__ inline uint4 widen_codes(uint2 q)
{
    const int8_t   *c = reinterpret_cast<const int8_t *>(&q);
    uint4           out;
    __nv_bfloat162 *o = reinterpret_cast<__nv_bfloat162 *>(&out);
#pragma unroll
    for (int i = 0; i < 4; i++)
        o[i] = __floats2bfloat162_rn(static_cast<float>(c[2 * i]), static_cast<float>(c[2 * i + 1]));
    return out;
}

/* Where the sums of a thread stand: MT × NT tiles of 16 × 8, in the layout both instruction families share. */
template <int BM, int BN, bool GROUP> struct layout {
    static constexpr int WARPS = BM / 16, WARPS_N = GROUP ? 1 : BN == 128 ? 4 : 2, WARPS_M = WARPS / WARPS_N;
    static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N, MT = WM / 16, NT = WN / 8;
};

template <int BM, int BN, int STAGES, bool SPLIT, bool CODES, bool GROUP>
__global__ void __launch_bounds__(BM * 2, BM == 128 ? 2 : 1) conv_tile(const codec_conv_args a)
{
    using L = layout<BM, BN, GROUP>;
    constexpr int THREADS = BM * 2, PASS = THREADS / PIECES, A_PASSES = BM / PASS, B_PASSES = BN / PASS;
    constexpr int STAGE_BYTES = (BM + BN) * ROW_BYTES;
#ifdef CODEC_HAS_WGMMA /* each pass of the compiler makes the form that its devices run */
    if constexpr (!GROUP)
        return;
#else
    if constexpr (GROUP)
        return;
#endif
    extern __shared__ unsigned char raw[];
    const unsigned                  tiles = (shared_address(raw) + 1023u) & ~1023u;

    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int n_right = (a.rows + BN - 1) / BN;
    const int t0 = static_cast<int>(blockIdx.x / n_right) * BM, r0 = static_cast<int>(blockIdx.x % n_right) * BN;
    const int warp_m = warp / L::WARPS_N * L::WM, warp_n = warp % L::WARPS_N * L::WN;
    const int width = SPLIT ? 2 * a.cols : a.cols, depth = a.taps * width, steps = (depth + BK - 1) / BK;

    /* A thread fetches one piece column of every PASS-th row; (tap, channel) of its piece move along with the steps. */
    const int      piece = tid % PIECES, row = tid / PIECES;
    const unsigned place =
        static_cast<unsigned>(row * ROW_BYTES + ((piece ^ row % 8) * 16)); /* PASS is a multiple of 8 */
    const size_t a_pass = static_cast<size_t>(PASS) * a.stride * width, b_pass = static_cast<size_t>(PASS) * depth;
    const __nv_bfloat16 *x = static_cast<const __nv_bfloat16 *>(a.d_x),
                        *xr = x + static_cast<size_t>(t0 + row) * a.stride * width;
    const size_t w_row = static_cast<size_t>(r0 + row) * depth;
    int          k = piece * 8, channel = k % width, tap = k / width, stage_in = 0;
    uint2        codes[CODES ? B_PASSES : 1];

    auto fetch = [&]() { /* the next step's tiles into stage_in */
                         const unsigned to = tiles + stage_in * STAGE_BYTES + place;
                         const bool     here = k < depth;
                         const size_t   off = static_cast<size_t>(tap) * a.dilation * width + channel;
#pragma unroll
                         for (int i = 0; i < A_PASSES; i++) {
                             const bool valid = here && t0 + row + i * PASS < a.n;
                             cp_async_16(to + i * PASS * ROW_BYTES, valid ? xr + i * a_pass + off : x, valid);
                         }
#pragma unroll
                         for (int i = 0; i < B_PASSES; i++) {
                             const bool   valid = here && r0 + row + i * PASS < a.rows;
                             const size_t from = valid ? w_row + i * b_pass + k : 0;
                             if constexpr (CODES)
                                 codes[i] =
                                     valid ? *reinterpret_cast<const uint2 *>(static_cast<const int8_t *>(a.d_w) + from)
                                           : make_uint2(0, 0);
                             else
                                 cp_async_16(to + (BM + i * PASS) * ROW_BYTES,
                                             static_cast<const __nv_bfloat16 *>(a.d_w) + from, valid);
                         }
                         k += BK;
                         for (channel += BK; channel >= width; channel -= width)
                             tap++;
    };
    auto settle =
        [&]() { /* codes arrive in registers and are stored once the products they hide behind are under way */
                if constexpr (CODES) {
#pragma unroll
                    for (int i = 0; i < B_PASSES; i++) {
                        const uint4 v = widen_codes(codes[i]);
                        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};\n" ::"r"(
                                         tiles + stage_in * STAGE_BYTES + place + (BM + i * PASS) * ROW_BYTES),
                                     "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                                     : "memory");
                    }
                }
                stage_in = stage_in + 1 == STAGES ? 0 : stage_in + 1;
        };

    float c[L::MT][L::NT][4];
#pragma unroll
    for (int i = 0; i < L::MT; i++)
#pragma unroll
        for (int j = 0; j < L::NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                c[i][j][e] = 0;

#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        fetch(); /* beyond the last step: zeros */
        settle();
        asm volatile("cp.async.commit_group;\n" ::: "memory");
    }
    int stage = 0;
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;\n" ::"n"(STAGES - 2) : "memory");
        if constexpr (GROUP)
            asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
        __syncthreads(); /* the tiles are there for all, and the stage refilled below was read by all */
        const unsigned sa = tiles + stage * STAGE_BYTES, sb = sa + BM * ROW_BYTES;
        const bool     more = step + STAGES - 1 < steps;
        if constexpr (GROUP) {
#ifdef CODEC_HAS_WGMMA
            const unsigned long long da = descriptor(sa + warp / 4 * 64 * ROW_BYTES), db = descriptor(sb);
            asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
            if constexpr (SPLIT) { /* 16 channels are 2 units of 16 bytes; low halves stand 4 units on */
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    wgmma(c[0], da + 2 * s, db + 2 * s);
                    wgmma(c[0], da + 2 * s, db + 4 + 2 * s);
                    wgmma(c[0], da + 4 + 2 * s, db + 2 * s);
                }
            } else {
#pragma unroll
                for (int s = 0; s < 4; s++)
                    wgmma(c[0], da + 2 * s, db + 2 * s);
            }
            asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
            if (more)
                fetch();
            asm volatile("cp.async.commit_group;\n" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
#pragma unroll
            for (int j = 0; j < L::NT; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    asm volatile("" : "+f"(c[0][j][e]));
            if (more)
                settle();
#endif
        } else {
#ifndef CODEC_HAS_WGMMA
            if (more)
                fetch();
            asm volatile("cp.async.commit_group;\n" ::: "memory");
            const int      fa_row = warp_m + lane % 16, fb_row = warp_n + lane / 16 * 8 + lane % 8;
            const unsigned fa_at = sa + fa_row * ROW_BYTES, fb_at = sb + fb_row * ROW_BYTES;
            const int      fa_piece = lane / 16, fb_piece = lane / 8 % 2;
#pragma unroll
            for (int s = 0; s < (SPLIT ? 2 : 4); s++) {
                unsigned fb[L::NT / 2][4], fl[SPLIT ? L::NT / 2 : 1][4];
#pragma unroll
                for (int j = 0; j < L::NT / 2; j++) { /* two n-tiles: k low and high of each */
                    ldmatrix_x4(fb[j], fb_at + j * 16 * ROW_BYTES + (((2 * s + fb_piece) ^ fb_row % 8) * 16));
                    if constexpr (SPLIT)
                        ldmatrix_x4(fl[j], fb_at + j * 16 * ROW_BYTES + (((4 + 2 * s + fb_piece) ^ fb_row % 8) * 16));
                }
#pragma unroll
                for (int i = 0; i < L::MT; i++) {
                    unsigned fa[4];
                    ldmatrix_x4(fa, fa_at + i * 16 * ROW_BYTES + (((2 * s + fa_piece) ^ fa_row % 8) * 16));
#pragma unroll
                    for (int j = 0; j < L::NT; j++) {
                        mma_bf16(c[i][j], fa, fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
                        if constexpr (SPLIT)
                            mma_bf16(c[i][j], fa, fl[j / 2][j % 2 * 2], fl[j / 2][j % 2 * 2 + 1]);
                    }
                    if constexpr (SPLIT) {
                        ldmatrix_x4(fa, fa_at + i * 16 * ROW_BYTES + (((4 + 2 * s + fa_piece) ^ fa_row % 8) * 16));
#pragma unroll
                        for (int j = 0; j < L::NT; j++)
                            mma_bf16(c[i][j], fa, fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
                    }
                }
            }
            if (more)
                settle();
#endif
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    /* Two neighbouring outputs a thread and tile; rows is even. */
#pragma unroll
    for (int j = 0; j < L::NT; j++) {
        const int r = r0 + warp_n + j * 8 + lane % 4 * 2;
        if (r >= a.rows)
            continue;
        const column_pair col(a, r);
#pragma unroll
        for (int i = 0; i < L::MT; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int t = t0 + warp_m + i * 16 + half * 8 + lane / 4;
                if (t < a.n)
                    col.template finish<SPLIT ? CODEC_FORM_SPLIT : CODEC_FORM_BF16>(
                        a, make_float2(c[i][j][half * 2], c[i][j][half * 2 + 1]), static_cast<size_t>(t) * a.rows + r);
            }
    }
}

/* ---- any shape: a warp an output, lanes over channels. The last convolution (one output) and odd widths run here.
 * ---- */

__device__ inline float weight_at(const void *w, int format, size_t i)
{
    if (format == CODEC_W_F32)
        return static_cast<const float *>(w)[i];
    if (format == CODEC_W_BF16)
        return __bfloat162float(static_cast<const __nv_bfloat16 *>(w)[i]);
    if (format == CODEC_W_SPLIT)
        return rows_get(CODEC_FORM_SPLIT, w, i);
    return static_cast<float>(static_cast<const int8_t *>(w)[i]);
}

template <int FORM> __global__ void conv_warp(const codec_conv_args a)
{
    const size_t at = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
    const int    lane = threadIdx.x % WARP;
    if (at >= static_cast<size_t>(a.n) * a.rows)
        return;
    const int t = static_cast<int>(at / a.rows), r = static_cast<int>(at % a.rows);
    float     sum = 0;
    for (int tap = 0; tap < a.taps; tap++) {
        const size_t x = (static_cast<size_t>(t) * a.stride + static_cast<size_t>(tap) * a.dilation) * a.cols;
        const size_t w = (static_cast<size_t>(r) * a.taps + tap) * a.cols;
        for (int c = lane; c < a.cols; c += WARP)
            sum += weight_at(a.d_w, a.format, w + c) * rows_get(FORM, a.d_x, x + c);
    }
    for (int o = WARP / 2; o; o /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (lane == 0) {
        const float v = value_of(a, sum, r, at);
        if (a.d_y)
            a.d_y[at] = v;
        if (a.d_next)
            rows_put(a.next_form, a.d_next, at, snake_of(a, v, r));
    }
}

/* The last convolution: one output, 7 taps, stride 1, at most 3 channels a lane. A warp walks down its stretch of rows
 * with 7 of them in registers, so that every input is read once. */
constexpr int LAST_TAPS = 7, LAST_PER_LANE = 3, LAST_STRETCH = 56;

template <int FORM> __global__ void conv_last(const codec_conv_args a)
{
    const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP,
              t0 = warp * LAST_STRETCH;
    if (t0 >= a.n)
        return;
    const int   end = t0 + LAST_STRETCH < a.n ? t0 + LAST_STRETCH : a.n;
    const auto *w = static_cast<const float *>(a.d_w);
    float       weight[LAST_TAPS][LAST_PER_LANE], x[LAST_TAPS][LAST_PER_LANE];
#pragma unroll
    for (int tap = 0; tap < LAST_TAPS; tap++)
#pragma unroll
        for (int e = 0; e < LAST_PER_LANE; e++) {
            const int c = lane + e * WARP;
            weight[tap][e] = c < a.cols ? w[tap * a.cols + c] : 0;
            x[tap][e] = tap + 1 < LAST_TAPS && c < a.cols
                            ? rows_get(FORM, a.d_x, static_cast<size_t>(t0 + tap) * a.cols + c)
                            : 0;
        }
    for (int base = t0; base < end; base += LAST_TAPS)
#pragma unroll
        for (int i = 0; i < LAST_TAPS; i++) { /* row base + i + tap stands in x[(i + tap) % LAST_TAPS] */
            const int t = base + i;
            if (t >= end)
                break;
            float sum = 0;
#pragma unroll
            for (int e = 0; e < LAST_PER_LANE; e++) {
                const int c = lane + e * WARP;
                x[(i + LAST_TAPS - 1) % LAST_TAPS][e] =
                    c < a.cols ? rows_get(FORM, a.d_x, static_cast<size_t>(t + LAST_TAPS - 1) * a.cols + c) : 0;
            }
#pragma unroll
            for (int tap = 0; tap < LAST_TAPS; tap++)
#pragma unroll
                for (int e = 0; e < LAST_PER_LANE; e++)
                    sum += weight[tap][e] * x[(i + tap) % LAST_TAPS][e];
            for (int o = WARP / 2; o; o /= 2)
                sum += __shfl_xor_sync(0xffffffffu, sum, o);
            if (lane == 0)
                a.d_y[t] = value_of(a, sum, 0, t);
        }
}

template <int BM, int BN, int STAGES, bool SPLIT, bool CODES, bool GROUP>
cudaError_t launch_tile(const codec_conv_args &a, cudaStream_t stream)
{
    constexpr size_t bytes = static_cast<size_t>(STAGES) * (BM + BN) * ROW_BYTES + 1024;
    static bool      ready[64]; /* by device: raising the limit takes longer than a launch */
    int              device;
    cudaError_t      e = cudaGetDevice(&device);
    if (e == cudaSuccess && !(device < 64 && ready[device])) {
        e = cudaFuncSetAttribute(conv_tile<BM, BN, STAGES, SPLIT, CODES, GROUP>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (e == cudaSuccess && device < 64)
            ready[device] = true;
    }
    if (e != cudaSuccess)
        return e;
    const unsigned blocks = static_cast<unsigned>((a.n + BM - 1) / BM) * ((a.rows + BN - 1) / BN);
    conv_tile<BM, BN, STAGES, SPLIT, CODES, GROUP><<<blocks, BM * 2, bytes, stream>>>(a);
    return cudaGetLastError();
}

template <int BN, bool SPLIT, bool CODES, bool GROUP>
cudaError_t launch_by_rows(const codec_conv_args &a, bool big_shared, cudaStream_t stream)
{
    /* Half as high tiles, twice as deep in flight, where there are too few blocks to fill the device with high ones. */
    const int high = (a.n + 127) / 128 * ((a.rows + BN - 1) / BN);
    if constexpr (GROUP)
        return high < 132 ? launch_tile<64, BN, 6, SPLIT, CODES, GROUP>(a, stream)
                          : launch_tile<128, BN, 3, SPLIT, CODES, GROUP>(a, stream);
    else /* 73 KB, for devices with 100 KB a multiprocessor, or 97 KB twice */
        return high < 132 || !big_shared ? launch_tile<64, BN, 3, SPLIT, CODES, GROUP>(a, stream)
                                         : launch_tile<128, BN, 3, SPLIT, CODES, GROUP>(a, stream);
}

template <bool SPLIT, bool CODES, bool GROUP>
cudaError_t launch_by_width(const codec_conv_args &a, bool big_shared, cudaStream_t stream)
{
    /* 96 outputs a tile where 128 would leave a quarter of the last one idle: 96 and 192 channels. */
    return a.rows % 128 && a.rows % 96 == 0 ? launch_by_rows<96, SPLIT, CODES, GROUP>(a, big_shared, stream)
                                            : launch_by_rows<128, SPLIT, CODES, GROUP>(a, big_shared, stream);
}

template <bool GROUP> cudaError_t launch_by_format(const codec_conv_args &a, bool big_shared, cudaStream_t stream)
{
    if (a.format == CODEC_W_SPLIT)
        return launch_by_width<true, false, GROUP>(a, big_shared, stream);
    return a.format == CODEC_W_BF16 ? launch_by_width<false, false, GROUP>(a, big_shared, stream)
                                    : launch_by_width<false, true, GROUP>(a, big_shared, stream);
}

struct device_facts {
    int  capability, shared;
    bool known;
};

cudaError_t facts_of_device(device_facts *out)
{
    static device_facts facts[64];
    int                 device, major, minor;
    cudaError_t         e = cudaGetDevice(&device);
    if (e != cudaSuccess || (device < 64 && facts[device].known)) {
        if (e == cudaSuccess)
            *out = facts[device];
        return e;
    }
    if ((e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) != cudaSuccess ||
        (e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device)) != cudaSuccess ||
        (e = cudaDeviceGetAttribute(&out->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) != cudaSuccess)
        return e;
    out->capability = 10 * major + minor;
    out->known = true;
    if (device < 64)
        facts[device] = *out;
    return cudaSuccess;
}

} // namespace

cudaError_t codec_conv_launch(const struct codec_conv_args *a, cudaStream_t stream)
{
    device_facts      facts = {};
    const cudaError_t e = facts_of_device(&facts);
    if (e != cudaSuccess)
        return e;
    /* Tensor cores need pieces of 16 bytes, pairs of outputs, and weights and next rows of the rows' kind. */
    const bool fits = a->act != CODEC_ACT_TANH && (!a->d_next || a->next_form == a->form) && a->rows >= 16 &&
                      a->rows % 2 == 0 && a->cols % 8 == 0 && a->channels % 2 == 0 &&
                      (a->form == CODEC_FORM_SPLIT ? a->format == CODEC_W_SPLIT
                                                   : a->form == CODEC_FORM_BF16 && a->format >= CODEC_W_BF16);
    const bool big_shared = facts.shared >= 160 * 1024; /* A100, H100 and later datacenter devices */
    if (fits && a->path != CODEC_PATH_WARP) {
#ifdef CODEC_WGMMA
        if (facts.capability == 90) /* this file's code for it is sm_90a's */
            return launch_by_format<true>(*a, big_shared, stream);
#endif
        return launch_by_format<false>(*a, big_shared, stream);
    }
    const unsigned threads = 256;
    if (a->rows == 1 && a->taps == LAST_TAPS && a->stride == 1 && a->dilation == 1 && a->cols <= LAST_PER_LANE * WARP &&
        a->format == CODEC_W_F32 && a->d_y && !a->d_next && a->path != CODEC_PATH_WARP) {
        const unsigned warps = (a->n + LAST_STRETCH - 1) / LAST_STRETCH, of_block = threads / WARP;
        const unsigned blocks = (warps + of_block - 1) / of_block;
        if (a->form == CODEC_FORM_BF16)
            conv_last<CODEC_FORM_BF16><<<blocks, threads, 0, stream>>>(*a);
        else if (a->form == CODEC_FORM_SPLIT)
            conv_last<CODEC_FORM_SPLIT><<<blocks, threads, 0, stream>>>(*a);
        else
            conv_last<CODEC_FORM_PLAIN><<<blocks, threads, 0, stream>>>(*a);
        return cudaGetLastError();
    }
    const unsigned blocks = static_cast<unsigned>((static_cast<size_t>(a->n) * a->rows * WARP + threads - 1) / threads);
    if (a->form == CODEC_FORM_BF16)
        conv_warp<CODEC_FORM_BF16><<<blocks, threads, 0, stream>>>(*a);
    else if (a->form == CODEC_FORM_SPLIT)
        conv_warp<CODEC_FORM_SPLIT><<<blocks, threads, 0, stream>>>(*a);
    else
        conv_warp<CODEC_FORM_PLAIN><<<blocks, threads, 0, stream>>>(*a);
    return cudaGetLastError();
}
