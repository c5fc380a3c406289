#include "kernels/device.cuh"
#include "kernels/ops.h"

static __device__ __forceinline__ float rnd(bool bf16, float v)
{
    return bf16 ? round_bf16(v) : v;
}

static __device__ __forceinline__ float element(const void *w, enum ops_format format, size_t i)
{
    switch (format) {
    case OPS_F32: return ((const float *)w)[i];
    case OPS_BF16: return __bfloat162float(((const __nv_bfloat16 *)w)[i]);
    default: return (float)((const int8_t *)w)[i];
    }
}

/* Sum over a block of whole warps, the same bits in every thread. */
static __device__ float block_sum(float v)
{
    __shared__ float part[WARP];
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0)
        part[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % WARP < blockDim.x / WARP ? part[threadIdx.x % WARP] : 0.0f);
}

static __global__ void embed_kernel(const struct ops_embed e, const int32_t *cols, float *x, bool bf16)
{
    const int32_t *col = cols + (size_t)blockIdx.x * (1 + e.num_codebooks);
    const int      dim = e.embeddings.cols;
    const bool     semantic = col[0] >= e.semantic_begin && col[0] <= e.semantic_end;
    const float    factor = __fdiv_rn(1.0f, __fsqrt_rn((float)(e.num_codebooks + 1)));
    for (int j = threadIdx.x; j < dim; j += blockDim.x) {
        float sum = 0.0f;
        for (int c = 0; semantic && c < e.num_codebooks; c++)
            sum = __fadd_rn(sum, element(e.codebook_embeddings.d_w, e.codebook_embeddings.format,
                                         ((size_t)c * e.codebook_size + col[1 + c]) * dim + j));
        float v = element(e.embeddings.d_w, e.embeddings.format, (size_t)col[0] * dim + j);
        v       = rnd(bf16, __fadd_rn(v, rnd(bf16, sum)));
        x[(size_t)blockIdx.x * dim + j] = semantic && e.scale ? rnd(bf16, __fmul_rn(v, factor)) : v;
    }
}

static __global__ void gather_kernel(const struct ops_matrix table, const int32_t *ids, float *x, bool bf16)
{
    for (int j = threadIdx.x; j < table.cols; j += blockDim.x)
        x[(size_t)blockIdx.x * table.cols + j] =
            rnd(bf16, element(table.d_w, table.format, (size_t)ids[blockIdx.x] * table.cols + j));
}

static __global__ void rmsnorm_kernel(float *y, const float *x, const float *w, int dim, float eps, bool bf16)
{
    const float *row = x + (size_t)blockIdx.x * dim;
    float        ss  = 0.0f;
    for (int j = threadIdx.x; j < dim; j += blockDim.x)
        ss += row[j] * row[j];
    const float r = 1.0f / sqrtf(block_sum(ss) / (float)dim + eps);
    for (int j = threadIdx.x; j < dim; j += blockDim.x)
        y[(size_t)blockIdx.x * dim + j] = rnd(bf16, __fmul_rn(rnd(bf16, __fmul_rn(row[j], r)), w[j]));
}

static __device__ float finish(float sum, const struct ops_matrix &w, int row, bool bf16)
{
    if (w.format == OPS_I8) {
        const float s = w.scales_f32 ? ((const float *)w.d_scales)[row]
                                     : __bfloat162float(((const __nv_bfloat16 *)w.d_scales)[row]);
        sum = rnd(bf16, __fmul_rn(rnd(bf16, sum), s));
    }
    return rnd(bf16, w.d_bias ? __fadd_rn(sum, w.d_bias[row]) : sum);
}

enum { ROWS_PER_BLOCK = 8 };

static __global__ void matmul_kernel(float *y, int ldy, const struct ops_matrix w, int row0, int rows, const float *x,
                                     bool bf16)
{
    const int i = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP, lane = threadIdx.x % WARP, token = blockIdx.y;
    if (i >= rows)
        return;
    const float *xt  = x + (size_t)token * w.cols;
    const size_t at  = (size_t)(row0 + i) * w.cols;
    float        sum = 0.0f;
    for (int j = lane; j < w.cols; j += WARP)
        sum += element(w.d_w, w.format, at + j) * xt[j];
    sum = warp_sum(sum);
    if (lane == 0)
        y[(size_t)token * ldy + i] = finish(sum, w, row0 + i, bf16);
}

static __global__ void finish_kernel(float *y, int ldy, const struct ops_matrix w, int row0, int rows, bool bf16)
{
    float *row = y + (size_t)blockIdx.x * ldy;
    for (int i = threadIdx.x; i < rows; i += blockDim.x)
        row[i] = finish(row[i], w, row0 + i, bf16);
}

static __global__ void to_bf16_kernel(uint16_t *y, const float *x, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        y[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
}

static __global__ void widen_kernel(uint16_t *y, const int8_t *x, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        y[i] = __bfloat16_as_ushort(__float2bfloat16_rn((float)x[i]));
}

static __device__ void store_row(const struct ops_cache &kv, void *cache, float *scales, size_t row, const float *v)
{
    const size_t at = row * kv.head_dim;
    if (kv.format != OPS_I8) {
        for (int j = threadIdx.x; j < kv.head_dim; j += WARP)
            if (kv.format == OPS_F32)
                ((float *)cache)[at + j] = v[j];
            else
                ((__nv_bfloat16 *)cache)[at + j] = __float2bfloat16_rn(v[j]);
        return;
    }
    float most = 0.0f;
    for (int j = threadIdx.x; j < kv.head_dim; j += WARP)
        most = fmaxf(most, fabsf(v[j]));
    most              = warp_max(most);
    const float scale = __fdiv_rn(most, 127.0f);
    if (threadIdx.x == 0)
        scales[row] = scale;
    for (int j = threadIdx.x; j < kv.head_dim; j += WARP)
        ((int8_t *)cache)[at + j] =
            scale > 0 ? (int8_t)rintf(fmaxf(-127.0f, fminf(127.0f, __fdiv_rn(v[j], scale)))) : (int8_t)0;
}

/* A warp per (token, head of q, k or v). */
static __global__ void rope_append_kernel(float *qkv, const struct ops_rope r, const struct ops_cache kv, const int *seq,
                                          const int *pos, bool bf16)
{
    const int heads = r.n_head + 2 * r.n_kv_heads, token = blockIdx.x, head = blockIdx.y, lane = threadIdx.x;
    float    *v = qkv + ((size_t)token * heads + head) * r.head_dim;
    if (head < r.n_head + r.n_kv_heads) {
        const float *w = head < r.n_head ? r.d_q_norm : r.d_k_norm;
        if (w) {
            float ss = 0.0f;
            for (int j = lane; j < r.head_dim; j += WARP)
                ss += v[j] * v[j];
            const float f = 1.0f / sqrtf(warp_sum(ss) / (float)r.head_dim + r.eps);
            for (int j = lane; j < r.head_dim; j += WARP)
                v[j] = rnd(bf16, __fmul_rn(rnd(bf16, __fmul_rn(v[j], f)), w[j]));
            __syncwarp();
        }
        const float *cs = r.d_cos_sin + (size_t)pos[token] * r.head_dim;
        for (int j = 2 * lane; j < r.head_dim; j += 2 * WARP) {
            const float a = v[j], b = v[j + 1], c = cs[j], s = cs[j + 1];
            v[j]     = rnd(bf16, __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
            v[j + 1] = rnd(bf16, __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
        }
        __syncwarp();
        if (head < r.n_head)
            return;
    }
    const bool   is_k = head < r.n_head + r.n_kv_heads;
    const int    g    = head - r.n_head - (is_k ? 0 : r.n_kv_heads);
    const size_t row  = ((size_t)seq[token] * kv.n_kv_heads + g) * kv.max_len + pos[token];
    store_row(kv, is_k ? kv.d_k : kv.d_v, is_k ? kv.d_k_scale : kv.d_v_scale, row, v);
}

static __device__ __forceinline__ float cached(const struct ops_cache &kv, const void *cache, const float *scales,
                                               size_t row, int j)
{
    const float v = element(cache, kv.format, row * kv.head_dim + j);
    return kv.format == OPS_I8 ? __fmul_rn(v, scales[row]) : v;
}

/* A block per (query head, token); scores in shared memory, a warp per position, then a thread per dimension. */
static __global__ void attention_kernel(float *y, const float *qkv, int n_head, const struct ops_cache kv, const int *seq,
                                        const int *pos, bool fast, bool bf16)
{
    extern __shared__ float scores[];
    const int    d = kv.head_dim, head = blockIdx.x, token = blockIdx.y, len = pos[token] + 1, lane = threadIdx.x % WARP;
    const int    group = (int)((long long)head * kv.n_kv_heads / n_head);
    const size_t row0  = ((size_t)seq[token] * kv.n_kv_heads + group) * kv.max_len;
    const float *q     = qkv + (size_t)token * (n_head + 2 * kv.n_kv_heads) * d + (size_t)head * d;
    const float  scale = 1.0f / sqrtf((float)d);
    for (int p = threadIdx.x / WARP; p < len; p += blockDim.x / WARP) {
        float s = 0.0f;
        for (int j = lane; j < d; j += WARP)
            s += q[j] * cached(kv, kv.d_k, kv.d_k_scale, row0 + p, j);
        s = warp_sum(s);
        if (lane == 0)
            scores[p] = fast ? rnd(bf16, rnd(bf16, s) * scale) : s * scale;
    }
    __syncthreads();
    float top = -INFINITY, sum = 0.0f; /* every warp for itself: the same order, the same bits */
    for (int p = lane; p < len; p += WARP)
        top = fmaxf(top, scores[p]);
    top = warp_max(top);
    for (int p = lane; p < len; p += WARP)
        sum += expf(scores[p] - top);
    sum = warp_sum(sum);
    __syncthreads();
    for (int p = threadIdx.x; p < len; p += blockDim.x) {
        const float e = expf(scores[p] - top);
        scores[p]     = fast ? rnd(bf16, __fdiv_rn(e, sum)) : e;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < d; j += blockDim.x) {
        float o = 0.0f;
        for (int p = 0; p < len; p++)
            o += scores[p] * cached(kv, kv.d_v, kv.d_v_scale, row0 + p, j);
        y[((size_t)token * n_head + head) * d + j] = rnd(bf16, fast ? o : __fdiv_rn(o, sum));
    }
}

static __global__ void silu_mul_kernel(float *y, const float *gate, const float *up, size_t n, bool bf16)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        const float g = gate[i];
        y[i]          = rnd(bf16, __fmul_rn(rnd(bf16, __fdiv_rn(g, 1.0f + expf(-g))), up[i]));
    }
}

static __global__ void add_kernel(float *x, const float *y, size_t n, bool bf16)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        x[i] = rnd(bf16, __fadd_rn(x[i], y[i]));
}

/* ---- launchers ---- */

static unsigned blocks_for(size_t n)
{
    const size_t blocks = (n + 255) / 256;
    return (unsigned)(blocks < 1056 ? blocks : 1056);
}

extern "C" cudaError_t ops_embed_launch(const struct ops_embed *e, const int32_t *d_cols, int n, float *d_x, bool bf16,
                                        cudaStream_t stream)
{
    embed_kernel<<<n, 256, 0, stream>>>(*e, d_cols, d_x, bf16);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_gather_launch(const struct ops_matrix *table, const int32_t *d_ids, int n, float *d_x, bool bf16,
                                         cudaStream_t stream)
{
    gather_kernel<<<n, 256, 0, stream>>>(*table, d_ids, d_x, bf16);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_rmsnorm_launch(float *d_y, const float *d_x, const float *d_w, int n, int dim, float eps,
                                          bool bf16, cudaStream_t stream)
{
    rmsnorm_kernel<<<n, 256, 0, stream>>>(d_y, d_x, d_w, dim, eps, bf16);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_matmul_launch(float *d_y, int ldy, const struct ops_matrix *w, int row0, int rows,
                                         const float *d_x, int n, bool bf16, cudaStream_t stream)
{
    for (int done = 0; done < n; done += 65535) { /* the grid's second dimension is 16 bits */
        const int part = n - done < 65535 ? n - done : 65535;
        matmul_kernel<<<dim3((unsigned)((rows + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK), (unsigned)part),
                        ROWS_PER_BLOCK * WARP, 0, stream>>>(d_y + (size_t)done * ldy, ldy, *w, row0, rows,
                                                            d_x + (size_t)done * w->cols, bf16);
    }
    return cudaGetLastError();
}

extern "C" cudaError_t ops_finish_launch(float *d_y, int ldy, const struct ops_matrix *w, int row0, int rows, int n,
                                         bool bf16, cudaStream_t stream)
{
    finish_kernel<<<n, 256, 0, stream>>>(d_y, ldy, *w, row0, rows, bf16);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_to_bf16_launch(uint16_t *d_y, const float *d_x, size_t n, cudaStream_t stream)
{
    to_bf16_kernel<<<blocks_for(n), 256, 0, stream>>>(d_y, d_x, n);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_widen_int8_launch(uint16_t *d_y, const int8_t *d_x, size_t n, cudaStream_t stream)
{
    widen_kernel<<<blocks_for(n), 256, 0, stream>>>(d_y, d_x, n);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_rope_append_launch(float *d_qkv, const struct ops_rope *r, const struct ops_cache *kv,
                                              const int *d_seq, const int *d_pos, int n, bool bf16, cudaStream_t stream)
{
    rope_append_kernel<<<dim3((unsigned)n, (unsigned)(r->n_head + 2 * r->n_kv_heads)), WARP, 0, stream>>>(d_qkv, *r, *kv, d_seq,
                                                                                          d_pos, bf16);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_attention_launch(float *d_y, const float *d_qkv, int n_head, const struct ops_cache *kv,
                                            const int *d_seq, const int *d_pos, int n, bool fast, bool bf16,
                                            cudaStream_t stream)
{
    const size_t smem = (size_t)kv->max_len * sizeof(float);
    if (smem > 47 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(attention_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
        if (e != cudaSuccess)
            return e;
    }
    attention_kernel<<<dim3((unsigned)n_head, (unsigned)n), 128, smem, stream>>>(d_y, d_qkv, n_head, *kv, d_seq, d_pos, fast,
                                                                                bf16);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_silu_mul_launch(float *d_y, const float *d_gate, const float *d_up, size_t n, bool bf16,
                                           cudaStream_t stream)
{
    silu_mul_kernel<<<blocks_for(n), 256, 0, stream>>>(d_y, d_gate, d_up, n, bf16);
    return cudaGetLastError();
}

extern "C" cudaError_t ops_add_launch(float *d_x, const float *d_y, size_t n, bool bf16, cudaStream_t stream)
{
    add_kernel<<<blocks_for(n), 256, 0, stream>>>(d_x, d_y, n, bf16);
    return cudaGetLastError();
}
