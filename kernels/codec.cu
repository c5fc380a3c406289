#include "kernels/codec.h"
#include "kernels/codec_rows.cuh"

#include <math.h>

namespace
{

/* Two values a thread where channels are even, which they are but for the encoder's input. */
__global__ void snake_kernel(int form, void *y, const float *x, const float *alpha, size_t count, int channels)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    const int c = static_cast<int>(i % channels);
    rows_put(form, y, i, alpha ? snake(x[i], alpha[c], alpha[channels + c]) : x[i]);
}

/* A warp splits 32 values: each lane has read its own before any writes. */
__global__ void split_kernel(void *w, size_t count)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    const float v = static_cast<const float *>(w)[i];
    __syncwarp();
    rows_put(CODEC_FORM_SPLIT, w, i, v);
}

__global__ void depthwise_kernel(float *y, const float *x, const float *w, const float *b, int n, int channels,
                                 int taps)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<size_t>(n) * channels)
        return;
    const int c = static_cast<int>(i % channels);
    float     sum = 0;
    for (int k = 0; k < taps; k++)
        sum += w[c * taps + k] * x[i + static_cast<size_t>(k) * channels];
    y[i] = sum + b[c];
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
__global__ void norm_kernel(int form, void *y, const float *x, const float *w, const float *b, int channels, float eps)
{
    __shared__ float shared[WARP];
    const size_t     first = static_cast<size_t>(blockIdx.x) * channels;
    const float     *row = x + first;
    float            mean = 0, square = 0;
    if (b) {
        for (int c = threadIdx.x; c < channels; c += blockDim.x)
            mean += row[c];
        mean = block_sum(mean, shared) / channels;
    }
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        const float d = row[c] - mean;
        square += d * d;
    }
    const float factor = rsqrtf(block_sum(square, shared) / channels + eps);
    for (int c = threadIdx.x; c < channels; c += blockDim.x)
        rows_put(form, y, first + c, (row[c] - mean) * factor * w[c] + (b ? b[c] : 0.0f));
}

__global__ void silu_mul_kernel(int form, void *y, const float *gate_up, size_t count, int width)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count)
        return;
    const size_t t = i / width, c = i % width;
    const float  g = gate_up[2 * t * width + c], u = gate_up[(2 * t + 1) * width + c];
    rows_put(form, y, i, g / (1.0f + expf(-g)) * u);
}

/* Row t < n: a thread rotates one pair of q and one of k, and keeps that k with its v if it stays in the window. Rows
 * n … n + window − 2: what stays of the old window moves up. */
__global__ void rope_kernel(const codec_rope_args a)
{
    const int dim = a.n_head * a.head_dim, keep = a.window - 1, p = blockIdx.x * blockDim.x + threadIdx.x;
    const int t = static_cast<int>(blockIdx.y);
    if (p >= dim / 2)
        return;
    if (t >= a.n) {
        const int to = t - a.n, from = to + a.n;
        if (from < keep)
            for (int part = 0; part < 2; part++)
                *reinterpret_cast<float2 *>(a.d_new + (static_cast<size_t>(to) * 2 + part) * dim + 2 * p) =
                    *reinterpret_cast<const float2 *>(a.d_old + (static_cast<size_t>(from) * 2 + part) * dim + 2 * p);
        return;
    }
    const int    j = p % (a.head_dim / 2), to = keep - a.n + t;
    const float *cs = a.d_cos_sin + (static_cast<size_t>(a.pos0 + t) * (a.head_dim / 2) + j) * 2;
    float       *row = a.d_qkv + static_cast<size_t>(t) * 3 * dim + 2 * p;
    for (int part = 0; part < 2; part++) {
        float2 *x = reinterpret_cast<float2 *>(row + part * dim);
        *x = make_float2(x->x * cs[0] - x->y * cs[1], x->y * cs[0] + x->x * cs[1]);
    }
    if (to >= 0)
        for (int part = 0; part < 2; part++)
            *reinterpret_cast<float2 *>(a.d_new + (static_cast<size_t>(to) * 2 + part) * dim + 2 * p) =
                *reinterpret_cast<const float2 *>(row + (1 + part) * dim);
}

/* One block a (row, head). A warp takes every ATTENTION_WARPS-th key, its lanes the dimensions, so that loads are whole
 * rows of a head; then parts of the block as wide as a head each sum their share of the values. Key i is row window − 1
 * − past + i of the old window, then row i − past of qkv. */
constexpr int ATTENTION_WARPS = 8;

__global__ void __launch_bounds__(ATTENTION_WARPS *WARP) attention_kernel(const codec_attention_args a)
{
    extern __shared__ float memory[]; /* scores [window], sums [threads] */
    __shared__ float        shared[WARP];
    const int dim = a.n_head * a.head_dim, hd = a.head_dim, t = blockIdx.x, h = blockIdx.y, last = a.past + t;
    const int first = last - a.window + 1 < 0 ? 0 : last - a.window + 1, keys = last - first + 1;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float    *score = memory, *sums = memory + a.window;
    auto      key = [&](int i) {
        const int at = first + i;
        return at < a.past ? a.d_old + static_cast<size_t>(a.window - 1 - a.past + at) * 2 * dim + h * hd
                                : a.d_qkv + static_cast<size_t>(at - a.past) * 3 * dim + dim + h * hd;
    };
    const float *q = a.d_qkv + static_cast<size_t>(t) * 3 * dim + h * hd;
    const float  scale = rsqrtf(static_cast<float>(hd));
#pragma unroll 4
    for (int i = warp; i < keys; i += ATTENTION_WARPS) {
        const float *k = key(i);
        float        s = 0;
        for (int d = lane; d < hd; d += WARP)
            s += q[d] * k[d];
        for (int o = WARP / 2; o; o /= 2)
            s += __shfl_xor_sync(0xffffffffu, s, o);
        if (lane == 0)
            score[i] = s * scale;
    }
    __syncthreads();
    float most = -INFINITY, total = 0;
    for (int i = lane; i < keys; i += WARP) /* every warp for itself */
        most = fmaxf(most, score[i]);
    for (int o = WARP / 2; o; o /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o));
    __syncthreads();
    for (int i = threadIdx.x; i < keys; i += blockDim.x) {
        score[i] = expf(score[i] - most);
        total += score[i];
    }
    total = block_sum(total, shared);
    const int parts = hd < static_cast<int>(blockDim.x) ? blockDim.x / hd : 1, part = threadIdx.x / hd;
    for (int d0 = 0; d0 < hd; d0 += blockDim.x) { /* one round while a head is no wider than the block */
        const int d = d0 + (parts > 1 ? threadIdx.x % hd : threadIdx.x);
        float     sum = 0;
        if (d < hd && part < parts)
#pragma unroll 8
            for (int i = parts > 1 ? part : 0; i < keys; i += parts)
                sum += score[i] * key(i)[dim + d];
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (d < hd && (parts == 1 || part == 0)) {
            for (int p = 1; p < parts; p++)
                sum += sums[p * hd + d];
            rows_put(a.form, a.d_y, static_cast<size_t>(t) * dim + h * hd + d, sum / total);
        }
        __syncthreads();
    }
}

/* T: the widest type that divides a row. Each element of the history is read before its place is written: d_new is
 * another buffer than d_old. */
template <typename T> __global__ void join_kernel(T *rows, T *fresh, const T *old, int past, int n, size_t row)
{
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x, shift = static_cast<size_t>(n) * row;
    const size_t history = static_cast<size_t>(past) * row;
    if (i >= history)
        return;
    rows[i] = old[i];
    fresh[i] = i + shift < history ? old[i + shift] : rows[i + shift];
}

__global__ void dequantize_kernel(const codec_dequantize_args a)
{
    const int o = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (o >= a.latent)
        return;
    float sum = 0;
    for (int i = 1; i <= a.books; i++) {
        const int k = i % a.books; /* the first book last: z_0 + (the others) */
        const int row = (k ? a.first_rows + (k - 1) * a.other_rows : 0) + a.d_codes[static_cast<size_t>(k) * a.n + t];
        const float *v = a.d_table + static_cast<size_t>(row) * 8,
                    *w = a.d_w + (static_cast<size_t>(k) * a.latent + o) * 8;
        float z = 0;
#pragma unroll
        for (int e = 0; e < 8; e++)
            z += w[e] * v[e];
        sum += z + a.d_b[static_cast<size_t>(k) * a.latent + o];
    }
    a.d_y[static_cast<size_t>(t) * a.latent + o] = sum;
}

constexpr unsigned THREADS = 256;

unsigned blocks_for(size_t items)
{
    return static_cast<unsigned>((items + THREADS - 1) / THREADS);
}

} // namespace

cudaError_t codec_split_launch(void *d_w, size_t count, cudaStream_t stream)
{
    split_kernel<<<blocks_for(count), THREADS, 0, stream>>>(d_w, count);
    return cudaGetLastError();
}

cudaError_t codec_snake_launch(int form, void *d_y, const float *d_x, const float *d_alpha, int n, int channels,
                               cudaStream_t stream)
{
    const size_t count = static_cast<size_t>(n) * channels;
    snake_kernel<<<blocks_for(count), THREADS, 0, stream>>>(form, d_y, d_x, d_alpha, count, channels);
    return cudaGetLastError();
}

cudaError_t codec_depthwise_launch(float *d_y, const float *d_x, const float *d_w, const float *d_b, int n,
                                   int channels, int taps, cudaStream_t stream)
{
    depthwise_kernel<<<blocks_for(static_cast<size_t>(n) * channels), THREADS, 0, stream>>>(d_y, d_x, d_w, d_b, n,
                                                                                            channels, taps);
    return cudaGetLastError();
}

cudaError_t codec_norm_launch(int form, void *d_y, const float *d_x, const float *d_w, const float *d_b, int n,
                              int channels, float eps, cudaStream_t stream)
{
    norm_kernel<<<n, THREADS, 0, stream>>>(form, d_y, d_x, d_w, d_b, channels, eps);
    return cudaGetLastError();
}

cudaError_t codec_silu_mul_launch(int form, void *d_y, const float *d_gate_up, int n, int width, cudaStream_t stream)
{
    const size_t count = static_cast<size_t>(n) * width;
    silu_mul_kernel<<<blocks_for(count), THREADS, 0, stream>>>(form, d_y, d_gate_up, count, width);
    return cudaGetLastError();
}

cudaError_t codec_rope_launch(const struct codec_rope_args *a, cudaStream_t stream)
{
    const unsigned pairs = static_cast<unsigned>(a->n_head * a->head_dim / 2);
    const dim3     grid((pairs + THREADS - 1) / THREADS, a->n + a->window - 1);
    rope_kernel<<<grid, THREADS, 0, stream>>>(*a);
    return cudaGetLastError();
}

cudaError_t codec_attention_launch(const struct codec_attention_args *a, cudaStream_t stream)
{
    const dim3   grid(a->n, a->n_head);
    const size_t shared = (static_cast<size_t>(ATTENTION_WARPS) * WARP + a->window) * sizeof(float);
    attention_kernel<<<grid, ATTENTION_WARPS * WARP, shared, stream>>>(*a);
    return cudaGetLastError();
}

cudaError_t codec_join_launch(void *d_rows, void *d_new, const void *d_old, int past, int n, size_t row_bytes,
                              cudaStream_t stream)
{
    const size_t bytes = static_cast<size_t>(past) * row_bytes;
    if (row_bytes % 16 == 0)
        join_kernel<<<blocks_for(bytes / 16), THREADS, 0, stream>>>(
            static_cast<uint4 *>(d_rows), static_cast<uint4 *>(d_new), static_cast<const uint4 *>(d_old), past, n,
            row_bytes / 16);
    else
        join_kernel<<<blocks_for(bytes / 2), THREADS, 0, stream>>>(
            static_cast<uint16_t *>(d_rows), static_cast<uint16_t *>(d_new), static_cast<const uint16_t *>(d_old), past,
            n, row_bytes / 2);
    return cudaGetLastError();
}

cudaError_t codec_dequantize_launch(const struct codec_dequantize_args *a, cudaStream_t stream)
{
    const dim3 grid((a->latent + THREADS - 1) / THREADS, a->n);
    dequantize_kernel<<<grid, THREADS, 0, stream>>>(*a);
    return cudaGetLastError();
}
