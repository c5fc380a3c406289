#include "kernels/codec.h"

#include <cuda_bf16.h>
#include <math.h>

namespace {

constexpr int WARP = 32;

__device__ inline float widen(float v)
{
    return v;
}

__device__ inline float widen(__nv_bfloat16 v)
{
    return __bfloat162float(v);
}

__device__ inline void narrow(float *to, float v)
{
    *to = v;
}

__device__ inline void narrow(__nv_bfloat16 *to, float v)
{
    *to = __float2bfloat16_rn(v);
}

__device__ inline float activate(int act, float v)
{
    if (act == CODEC_ACT_GELU)
        return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
    if (act == CODEC_ACT_TANH)
        return tanhf(v);
    return v;
}

/* What follows a sum; r is the output channel, at the element of y and residual. */
template <typename T>
__device__ inline float finish(const codec_conv_args &a, float sum, int r, size_t at)
{
    if (a.d_scales)
        sum *= a.d_scales[r];
    if (a.d_bias)
        sum += a.d_bias[r];
    sum = activate(a.act, sum);
    if (a.d_gamma)
        sum *= a.d_gamma[r];
    if (a.d_residual)
        sum += widen(static_cast<const T *>(a.d_residual)[at]);
    return sum;
}

/* ---- convolution on tensor cores: C[t][r] = Σ_k A(t, k)·W[r][k], k = (tap, col) ----
 * A tile of BM rows in time by BN outputs, K in steps of BK inside one tap, STAGES tiles in flight by cp.async. Rows of a
 * tile are padded by 16 bytes, so that ldmatrix (80-byte rows) and the TF32 fragments (144-byte rows) meet no bank twice. */

constexpr int BM = 128, BK = 32, THREADS = 256;

__device__ inline void cp_async_16(void *shared, const void *global, bool valid)
{
    unsigned s = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(s), "l"(global), "r"(valid ? 16 : 0) : "memory");
}

__device__ inline void ldmatrix_x4(unsigned (&r)[4], const void *shared)
{
    unsigned s = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s));
}

__device__ inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline unsigned to_tf32(float v)
{
    unsigned r;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(r) : "f"(v));
    return r;
}

template <typename T> struct tile_traits;
template <> struct tile_traits<__nv_bfloat16> {
    static constexpr int PITCH = BK + 8, STAGES = 4; /* 80-byte rows; 4 × 20 KB at BN 128: two blocks an SM */
};
template <> struct tile_traits<float> {
    static constexpr int PITCH = BK + 4, STAGES = 3; /* 144-byte rows; 3 × 37 KB: two blocks an SM */
};

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

template <typename T, int BN, bool CODES>
__global__ void __launch_bounds__(THREADS, 2) conv_mma(const codec_conv_args a)
{
    constexpr int PITCH = tile_traits<T>::PITCH, STAGES = tile_traits<T>::STAGES;
    constexpr int WARPS_N = BN == 128 ? 4 : 2, WARPS_M = 8 / WARPS_N;
    constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N, MT = WM / 16, NT = WN / 8;
    constexpr int VEC = 16 / sizeof(T), CHUNKS = BK / VEC; /* 16-byte pieces of a tile row */
    extern __shared__ __align__(16) unsigned char raw[];
    T *tile_a = reinterpret_cast<T *>(raw), *tile_b = tile_a + STAGES * BM * PITCH;

    const int    tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int    t0 = blockIdx.x * BM, r0 = blockIdx.y * BN;
    const int    warp_m = warp / WARPS_N * WM, warp_n = warp % WARPS_N * WN;
    const int    steps_per_tap = a.cols / BK, steps = a.taps * steps_per_tap;
    const T     *x = static_cast<const T *>(a.d_x);
    const size_t depth = static_cast<size_t>(a.taps) * a.cols;

    auto fetch = [&](int step, int stage) {
        const int tap = step / steps_per_tap, c0 = step % steps_per_tap * BK;
        for (int i = tid; i < BM * CHUNKS; i += THREADS) {
            const int    row = i / CHUNKS, piece = i % CHUNKS, t = t0 + row;
            const bool   valid = t < a.n;
            const size_t input = static_cast<size_t>(valid ? t : 0) * a.stride + static_cast<size_t>(tap) * a.dilation;
            cp_async_16(tile_a + (stage * BM + row) * PITCH + piece * VEC, x + input * a.cols + c0 + piece * VEC, valid);
        }
        for (int i = tid; i < BN * CHUNKS; i += THREADS) {
            const int    row = i / CHUNKS, piece = i % CHUNKS, r = r0 + row;
            const bool   valid = r < a.rows;
            const size_t from = (valid ? r : 0) * depth + static_cast<size_t>(tap) * a.cols + c0 + piece * VEC;
            T           *to = tile_b + (stage * BN + row) * PITCH + piece * VEC;
            if constexpr (CODES) {
                uint2 q = make_uint2(0, 0);
                if (valid)
                    q = *reinterpret_cast<const uint2 *>(static_cast<const int8_t *>(a.d_w) + from);
                *reinterpret_cast<uint4 *>(to) = widen_codes(q);
            } else {
                cp_async_16(to, static_cast<const T *>(a.d_w) + from, valid);
            }
        }
    };

    float c[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                c[i][j][k] = 0;

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps)
            fetch(s, s);
        asm volatile("cp.async.commit_group;\n" ::: "memory");
    }
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;\n" ::"n"(STAGES - 2) : "memory");
        __syncthreads(); /* the tile is there for all, and the stage refilled below was read by all */
        const int next = step + STAGES - 1;
        if (next < steps)
            fetch(next, next % STAGES);
        asm volatile("cp.async.commit_group;\n" ::: "memory");
        const T *sa = tile_a + step % STAGES * BM * PITCH, *sb = tile_b + step % STAGES * BN * PITCH;
        if constexpr (sizeof(T) == 2) {
#pragma unroll
            for (int k = 0; k < BK; k += 16) {
                unsigned fa[MT][4], fb[NT / 2][4];
#pragma unroll
                for (int i = 0; i < MT; i++)
                    ldmatrix_x4(fa[i], sa + (warp_m + i * 16 + lane % 16) * PITCH + k + lane / 16 * 8);
#pragma unroll
                for (int j = 0; j < NT / 2; j++) /* two n-tiles: k low and high of each */
                    ldmatrix_x4(fb[j], sb + (warp_n + j * 16 + lane / 16 * 8 + lane % 8) * PITCH + k + lane / 8 % 2 * 8);
#pragma unroll
                for (int i = 0; i < MT; i++)
#pragma unroll
                    for (int j = 0; j < NT; j++)
                        mma_bf16(c[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
            }
        } else {
            const int g = lane / 4, q = lane % 4;
#pragma unroll
            for (int k = 0; k < BK; k += 8) {
                unsigned fa[MT][4], fb[NT][2];
#pragma unroll
                for (int i = 0; i < MT; i++) {
                    const float *p = reinterpret_cast<const float *>(sa) + (warp_m + i * 16 + g) * PITCH + k + q;
                    fa[i][0] = to_tf32(p[0]);
                    fa[i][1] = to_tf32(p[8 * PITCH]);
                    fa[i][2] = to_tf32(p[4]);
                    fa[i][3] = to_tf32(p[8 * PITCH + 4]);
                }
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    const float *p = reinterpret_cast<const float *>(sb) + (warp_n + j * 8 + g) * PITCH + k + q;
                    fb[j][0] = to_tf32(p[0]);
                    fb[j][1] = to_tf32(p[4]);
                }
#pragma unroll
                for (int i = 0; i < MT; i++)
#pragma unroll
                    for (int j = 0; j < NT; j++)
                        mma_tf32(c[i][j], fa[i], fb[j][0], fb[j][1]);
            }
        }
    }

    T *y = static_cast<T *>(a.d_y);
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int t = t0 + warp_m + i * 16 + half * 8 + lane / 4;
            if (t >= a.n)
                continue;
#pragma unroll
            for (int j = 0; j < NT; j++) {
                const int r = r0 + warp_n + j * 8 + lane % 4 * 2;
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (r + e < a.rows) {
                        const size_t at = static_cast<size_t>(t) * a.rows + r + e;
                        narrow(y + at, finish<T>(a, c[i][j][half * 2 + e], r + e, at));
                    }
            }
        }
}

/* ---- any shape: a warp an output, lanes over k. The last convolution (one output) and small codecs run here. ---- */

__device__ inline float weight_at(const void *w, int format, size_t i)
{
    if (format == CODEC_W_F32)
        return static_cast<const float *>(w)[i];
    if (format == CODEC_W_BF16)
        return __bfloat162float(static_cast<const __nv_bfloat16 *>(w)[i]);
    return static_cast<float>(static_cast<const int8_t *>(w)[i]);
}

template <typename T>
__global__ void conv_warp(const codec_conv_args a)
{
    const size_t at = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) / WARP;
    const int    lane = threadIdx.x % WARP;
    if (at >= static_cast<size_t>(a.n) * a.rows)
        return;
    const int t = static_cast<int>(at / a.rows), r = static_cast<int>(at % a.rows), depth = a.taps * a.cols;
    const T  *x = static_cast<const T *>(a.d_x) + static_cast<size_t>(t) * a.stride * a.cols;
    float     sum = 0;
    for (int k = lane; k < depth; k += WARP) {
        const int tap = k / a.cols, c = k - tap * a.cols;
        float     v   = widen(x[static_cast<size_t>(tap) * a.dilation * a.cols + c]);
        if (a.format != CODEC_W_F32)
            v = __bfloat162float(__float2bfloat16_rn(v));
        sum += weight_at(a.d_w, a.format, static_cast<size_t>(r) * depth + k) * v;
    }
    for (int o = WARP / 2; o; o /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (lane == 0) {
        const float v = finish<T>(a, sum, r, at);
        if (a.rows == 1)
            static_cast<float *>(a.d_y)[at] = v;
        else
            narrow(static_cast<T *>(a.d_y) + at, v);
    }
}

template <typename T, int BN, bool CODES>
cudaError_t launch_mma(const codec_conv_args &a, cudaStream_t stream)
{
    constexpr size_t  bytes = sizeof(T) * tile_traits<T>::STAGES * (BM + BN) * tile_traits<T>::PITCH;
    const cudaError_t ready = cudaFuncSetAttribute(conv_mma<T, BN, CODES>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (ready != cudaSuccess)
        return ready;
    dim3 grid((a.n + BM - 1) / BM, (a.rows + BN - 1) / BN);
    conv_mma<T, BN, CODES><<<grid, THREADS, bytes, stream>>>(a);
    return cudaGetLastError();
}

template <typename T, bool CODES>
cudaError_t launch_by_width(const codec_conv_args &a, cudaStream_t stream)
{
    /* 96 outputs a tile where 128 would leave a quarter of the last one idle: 96 and 192 channels. */
    return a.rows % 128 && a.rows % 96 == 0 ? launch_mma<T, 96, CODES>(a, stream) : launch_mma<T, 128, CODES>(a, stream);
}

/* ---- between the convolutions ---- */

/* x + sin²(αx)/(α + 1e-9). */
template <typename T>
__global__ void snake_kernel(T *y, const T *x, const float *alpha, size_t count, int channels)
{
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const float al = __ldg(alpha + i % channels), v = widen(x[i]), s = sinf(al * v);
        narrow(y + i, v + s * s / (al + 1e-9f));
    }
}

/* Eight BF16 values a thread; channels is a multiple of 8. The fast sine after a reduction by π (its sign is squared
 * away) errs by less than 1e-6, BF16 by 4e-3. */
__global__ void snake_bf16x8(uint4 *y, const uint4 *x, const float4 *alpha, size_t count, int groups)
{
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        uint4                 in = x[i], out;
        const int             g  = static_cast<int>(i % groups);
        const float4          a0 = __ldg(alpha + 2 * g), a1 = __ldg(alpha + 2 * g + 1);
        const float           al[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
        const __nv_bfloat162 *v = reinterpret_cast<const __nv_bfloat162 *>(&in);
        __nv_bfloat162       *o = reinterpret_cast<__nv_bfloat162 *>(&out);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float2 f = __bfloat1622float2(v[k]);
            float2       r;
            float        z0 = al[2 * k] * f.x, z1 = al[2 * k + 1] * f.y;
            z0 -= rintf(z0 * 0.318309886f) * 3.14159265f;
            z1 -= rintf(z1 * 0.318309886f) * 3.14159265f;
            const float s0 = __sinf(z0), s1 = __sinf(z1);
            r.x  = f.x + __fdividef(s0 * s0, al[2 * k] + 1e-9f);
            r.y  = f.y + __fdividef(s1 * s1, al[2 * k + 1] + 1e-9f);
            o[k] = __float22bfloat162_rn(r);
        }
        y[i] = out;
    }
}

template <typename T>
__global__ void depthwise_kernel(T *y, const T *x, const float *w, const float *b, int n, int channels, int taps)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(n) * channels)
        return;
    const int c = static_cast<int>(i % channels);
    float     sum = 0;
    for (int k = 0; k < taps; k++)
        sum += w[c * taps + k] * widen(x[i + static_cast<size_t>(k) * channels]);
    narrow(y + i, sum + b[c]);
}

__device__ inline float block_sum(float v, float *shared)
{
    for (int o = WARP / 2; o; o /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    if (threadIdx.x % WARP == 0)
        shared[threadIdx.x / WARP] = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < static_cast<int>(blockDim.x) / WARP; i++)
        v += shared[i];
    __syncthreads();
    return v;
}

/* One block a row; b NULL is RMSNorm. */
template <typename T>
__global__ void norm_kernel(T *y, const T *x, const float *w, const float *b, int channels, float eps)
{
    __shared__ float shared[WARP];
    const T         *row = x + static_cast<size_t>(blockIdx.x) * channels;
    T               *out = y + static_cast<size_t>(blockIdx.x) * channels;
    float            mean = 0, square = 0;
    if (b) {
        for (int c = threadIdx.x; c < channels; c += blockDim.x)
            mean += widen(row[c]);
        mean = block_sum(mean, shared) / channels;
    }
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        const float d = widen(row[c]) - mean;
        square += d * d;
    }
    const float factor = rsqrtf(block_sum(square, shared) / channels + eps);
    for (int c = threadIdx.x; c < channels; c += blockDim.x)
        narrow(out + c, (widen(row[c]) - mean) * factor * w[c] + (b ? b[c] : 0.0f));
}

template <typename T>
__global__ void silu_mul_kernel(T *y, const T *gate_up, size_t count, int width)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    const size_t t = i / width, c = i % width;
    const float  g = widen(gate_up[2 * t * width + c]), u = widen(gate_up[(2 * t + 1) * width + c]);
    narrow(y + i, g / (1.0f + expf(-g)) * u);
}

/* A thread rotates one pair of q and one of k, and copies k and v behind the past. */
template <typename T>
__global__ void rope_kernel(T *qkv, T *kv, const float *cos_sin, int n, int dim, int head_dim, int pos0, int past)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x, pairs = dim / 2;
    if (i >= n * pairs)
        return;
    const int    t = i / pairs, p = i % pairs, j = p % (head_dim / 2);
    const float *cs = cos_sin + (static_cast<size_t>(pos0 + t) * (head_dim / 2) + j) * 2;
    T           *row = qkv + static_cast<size_t>(t) * 3 * dim, *to = kv + static_cast<size_t>(past + t) * 2 * dim;
    for (int part = 0; part < 2; part++) {
        T          *x = row + part * dim + 2 * p;
        const float a = widen(x[0]), b = widen(x[1]);
        narrow(x, a * cs[0] - b * cs[1]);
        narrow(x + 1, b * cs[0] + a * cs[1]);
    }
    to[2 * p]           = row[dim + 2 * p];
    to[2 * p + 1]       = row[dim + 2 * p + 1];
    to[dim + 2 * p]     = row[2 * dim + 2 * p];
    to[dim + 2 * p + 1] = row[2 * dim + 2 * p + 1];
}

/* One block a (row, head): threads over keys for the scores, over dimensions for the sum. */
template <typename T>
__global__ void attention_kernel(T *y, const T *qkv, const T *kv, int dim, int head_dim, int window, int past)
{
    extern __shared__ float memory[]; /* q [head_dim], scores [window] */
    __shared__ float        shared[WARP];
    const int t = blockIdx.x, h = blockIdx.y, last = past + t, first = last - window + 1 < 0 ? 0 : last - window + 1;
    const int keys = last - first + 1;
    float    *q = memory, *score = memory + head_dim;
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x)
        q[d] = widen(qkv[static_cast<size_t>(t) * 3 * dim + h * head_dim + d]);
    __syncthreads();
    const float scale = rsqrtf(static_cast<float>(head_dim));
    float       most = -INFINITY, total = 0;
    for (int i = threadIdx.x; i < keys; i += blockDim.x) {
        const T *k = kv + static_cast<size_t>(first + i) * 2 * dim + h * head_dim;
        float    s = 0;
        for (int d = 0; d < head_dim; d++)
            s += q[d] * widen(k[d]);
        score[i] = s * scale;
        most     = fmaxf(most, score[i]);
    }
    for (int o = WARP / 2; o; o /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o));
    if (threadIdx.x % WARP == 0)
        shared[threadIdx.x / WARP] = most;
    __syncthreads();
    for (int i = 0; i < static_cast<int>(blockDim.x) / WARP; i++)
        most = fmaxf(most, shared[i]);
    __syncthreads();
    for (int i = threadIdx.x; i < keys; i += blockDim.x) {
        score[i] = expf(score[i] - most);
        total += score[i];
    }
    total = block_sum(total, shared);
    for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float sum = 0;
        for (int i = 0; i < keys; i++)
            sum += score[i] * widen(kv[static_cast<size_t>(first + i) * 2 * dim + dim + h * head_dim + d]);
        narrow(y + static_cast<size_t>(t) * dim + h * head_dim + d, sum / total);
    }
}

__global__ void narrow_kernel(__nv_bfloat16 *y, const float *x, size_t count)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count)
        y[i] = __float2bfloat16_rn(x[i]);
}

__global__ void widen_kernel(float *y, const __nv_bfloat16 *x, size_t count)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count)
        y[i] = __bfloat162float(x[i]);
}

unsigned blocks_for(size_t items, unsigned threads)
{
    return static_cast<unsigned>((items + threads - 1) / threads);
}

} // namespace

cudaError_t codec_conv_launch(const struct codec_conv_args *a, cudaStream_t stream)
{
    /* Tensor cores need whole steps of k, and weights of the activations' kind (or codes beside BF16). */
    const bool fits = a->cols % BK == 0 && a->rows >= 16;
    if (fits && a->bf16 && a->format == CODEC_W_BF16)
        return launch_by_width<__nv_bfloat16, false>(*a, stream);
    if (fits && a->bf16 && a->format == CODEC_W_I8)
        return launch_by_width<__nv_bfloat16, true>(*a, stream);
    if (fits && !a->bf16 && a->format == CODEC_W_F32)
        return launch_by_width<float, false>(*a, stream);
    const unsigned threads = 256, blocks = blocks_for(static_cast<size_t>(a->n) * a->rows * WARP, threads);
    if (a->bf16)
        conv_warp<__nv_bfloat16><<<blocks, threads, 0, stream>>>(*a);
    else
        conv_warp<float><<<blocks, threads, 0, stream>>>(*a);
    return cudaGetLastError();
}

cudaError_t codec_snake_launch(int bf16, void *d_y, const void *d_x, const float *d_alpha, int n, int channels,
                               cudaStream_t stream)
{
    const size_t   count = static_cast<size_t>(n) * channels;
    const unsigned threads = 256, most = 132 * 16;
    if (bf16 && channels % 8 == 0) {
        const unsigned blocks = blocks_for(count / 8, threads);
        snake_bf16x8<<<blocks < most ? blocks : most, threads, 0, stream>>>(
            static_cast<uint4 *>(d_y), static_cast<const uint4 *>(d_x), reinterpret_cast<const float4 *>(d_alpha), count / 8,
            channels / 8);
        return cudaGetLastError();
    }
    const unsigned blocks = blocks_for(count, threads) < most ? blocks_for(count, threads) : most;
    if (bf16)
        snake_kernel<<<blocks, threads, 0, stream>>>(static_cast<__nv_bfloat16 *>(d_y), static_cast<const __nv_bfloat16 *>(d_x),
                                                     d_alpha, count, channels);
    else
        snake_kernel<<<blocks, threads, 0, stream>>>(static_cast<float *>(d_y), static_cast<const float *>(d_x), d_alpha, count,
                                                     channels);
    return cudaGetLastError();
}

/* The same launch for both activation types. */
#define BY_TYPE(kernel, grid, threads, shared, ...)                    \
    do {                                                               \
        if (bf16) {                                                    \
            using T = __nv_bfloat16;                                   \
            kernel<T><<<grid, threads, shared, stream>>>(__VA_ARGS__); \
        } else {                                                       \
            using T = float;                                           \
            kernel<T><<<grid, threads, shared, stream>>>(__VA_ARGS__); \
        }                                                              \
        return cudaGetLastError();                                     \
    } while (0)

cudaError_t codec_depthwise_launch(int bf16, void *d_y, const void *d_x, const float *d_w, const float *d_b, int n,
                                   int channels, int taps, cudaStream_t stream)
{
    BY_TYPE(depthwise_kernel, blocks_for(static_cast<size_t>(n) * channels, 256), 256, 0, static_cast<T *>(d_y),
            static_cast<const T *>(d_x), d_w, d_b, n, channels, taps);
}

cudaError_t codec_norm_launch(int bf16, void *d_y, const void *d_x, const float *d_w, const float *d_b, int n, int channels,
                              float eps, cudaStream_t stream)
{
    BY_TYPE(norm_kernel, n, 256, 0, static_cast<T *>(d_y), static_cast<const T *>(d_x), d_w, d_b, channels, eps);
}

cudaError_t codec_silu_mul_launch(int bf16, void *d_y, const void *d_gate_up, int n, int width, cudaStream_t stream)
{
    const size_t count = static_cast<size_t>(n) * width;
    BY_TYPE(silu_mul_kernel, blocks_for(count, 256), 256, 0, static_cast<T *>(d_y), static_cast<const T *>(d_gate_up), count,
            width);
}

cudaError_t codec_rope_launch(int bf16, void *d_qkv, void *d_kv, const float *d_cos_sin, int n, int n_head, int head_dim,
                              int pos0, int past, cudaStream_t stream)
{
    const int dim = n_head * head_dim;
    BY_TYPE(rope_kernel, blocks_for(static_cast<size_t>(n) * dim / 2, 256), 256, 0, static_cast<T *>(d_qkv),
            static_cast<T *>(d_kv), d_cos_sin, n, dim, head_dim, pos0, past);
}

cudaError_t codec_attention_launch(int bf16, void *d_y, const void *d_qkv, const void *d_kv, int n, int n_head, int head_dim,
                                   int window, int past, cudaStream_t stream)
{
    const dim3   grid(n, n_head);
    const size_t shared = (static_cast<size_t>(head_dim) + window) * sizeof(float);
    BY_TYPE(attention_kernel, grid, 128, shared, static_cast<T *>(d_y), static_cast<const T *>(d_qkv),
            static_cast<const T *>(d_kv), n_head * head_dim, head_dim, window, past);
}

cudaError_t codec_narrow_launch(void *d_bf16, const float *d_x, size_t count, cudaStream_t stream)
{
    narrow_kernel<<<blocks_for(count, 256), 256, 0, stream>>>(static_cast<__nv_bfloat16 *>(d_bf16), d_x, count);
    return cudaGetLastError();
}

cudaError_t codec_widen_launch(float *d_y, const void *d_bf16, size_t count, cudaStream_t stream)
{
    widen_kernel<<<blocks_for(count, 256), 256, 0, stream>>>(d_y, static_cast<const __nv_bfloat16 *>(d_bf16), count);
    return cudaGetLastError();
}
