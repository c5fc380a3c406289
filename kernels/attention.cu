#include "kernels/attention.h"
#include "kernels/device.cuh"
#include "kernels/launch.cuh"

/* One head's vector in a warp: lane holds pairs lane, lane + 32, … of the head (head_dim ≤ 256). */
enum { PAIRS = 4 };

struct head_vector {
    float v[2 * PAIRS];
};

static __device__ __forceinline__ struct head_vector head_load(const uint16_t *src, int dim, int lane)
{
    struct head_vector h;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int      pair = lane + i * WARP;
        const uint32_t u    = 2 * pair < dim ? load_l2_4(src + 2 * pair) : 0u;
        h.v[2 * i]     = bf16_low(u);
        h.v[2 * i + 1] = bf16_high(u);
    }
    return h;
}

/* The reference's order: norm (two roundings), then interleaved RoPE (one). */
static __device__ __forceinline__ void head_norm_rotate(struct head_vector *h, const float *norm, float eps,
                                                        const uint32_t *rope, int dim, int lane)
{
    float r = 0.0f;
    if (norm) {
        float ss = 0.0f;
#pragma unroll
        for (int i = 0; i < 2 * PAIRS; i++)
            ss += h->v[i] * h->v[i];
        r = rsqrtf(warp_sum(ss) / (float)dim + eps);
    }
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int pair = lane + i * WARP;
        if (2 * pair >= dim)
            continue;
        float a = h->v[2 * i], b = h->v[2 * i + 1];
        if (norm) {
            a = norm_one(a, r, norm[2 * pair]);
            b = norm_one(b, r, norm[2 * pair + 1]);
        }
        const uint32_t cs = rope[pair];
        const float    c = bf16_low(cs), s = bf16_high(cs);
        h->v[2 * i]     = round_bf16(__fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
        h->v[2 * i + 1] = round_bf16(__fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
    }
}

/* Write a head to row `at` of a cache; INT8 leaves the values as the cache will give them back. */
static __device__ __forceinline__ void head_append(struct head_vector *h, const struct attention_layer &l, void *cache,
                                                   float *scales, size_t at, int lane)
{
    if (!l.int8) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const int pair = lane + i * WARP;
            if (2 * pair < l.head_dim)
                *(uint32_t *)((uint16_t *)cache + at * l.row + 2 * pair) = pack_bf16(h->v[2 * i], h->v[2 * i + 1]);
        }
        return;
    }
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * PAIRS; i++)
        most = fmaxf(most, fabsf(h->v[i]));
    most              = warp_max(most);
    const float scale = __fdiv_rn(most, 127.0f);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int pair = lane + i * WARP;
        if (2 * pair >= l.head_dim)
            continue;
        int q[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float v = h->v[2 * i + j];
            q[j]          = scale > 0 ? (int)rintf(fmaxf(-127.0f, fminf(127.0f, __fdiv_rn(v, scale)))) : 0;
            h->v[2 * i + j] = (float)q[j] * scale;
        }
        *(uint16_t *)((int8_t *)cache + at * l.row + 2 * pair) = (uint16_t)((q[0] & 0xff) | (q[1] & 0xff) << 8);
    }
    if (lane == 0)
        scales[at] = scale;
}

static __device__ __forceinline__ void head_to_shared(const struct head_vector &h, float *out, int row, int lane)
{
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int pair = lane + i * WARP;
        if (2 * pair < row)
            *(float2 *)(out + 2 * pair) = make_float2(h.v[2 * i], h.v[2 * i + 1]);
    }
}

/* ---- slow stack --------------------------------------------------------------------------------------------------- */

enum { ATTENTION_WARPS = 4 };

/* Positions of a block's step; chunks are whole steps. */
template <int D, int INT8> struct steps {
    static constexpr int per_lane = INT8 ? 16 : 8;            /* dimensions in 16 bytes              */
    static constexpr int lanes    = D / per_lane;             /* that hold one position              */
    static constexpr int sub      = WARP / lanes;             /* positions a warp loads at once      */
    static constexpr int loads    = sub >= 16 ? 1 : sub == 8 ? 2 : 4;
    static constexpr int step     = ATTENTION_WARPS * sub * loads;
};

struct attention_args {
    struct attention_layer l;
    const uint16_t        *qkv;
    uint16_t              *y;
    const int             *seq, *pos;
    float                 *partial; /* [token][head][chunk][row + 2]: sums, then maximum and mass */
    unsigned              *arrived;
    int                    qkv_stride, y_stride, tokens, late, groups; /* groups of R query heads */
};

static __device__ __forceinline__ int chunk_length(int len, int step)
{
    const int even = (len + ATTENTION_MAX_CHUNKS - 1) / ATTENTION_MAX_CHUNKS;
    return (even + step - 1) / step * step;
}

static __device__ __forceinline__ float int8_at(uint32_t u, int byte) /* u: four INT8 with flipped sign bits */
{
    return __uint_as_float(__byte_perm(u, 0x4B000000u, 0x7540 + byte)) - 8388736.0f;
}

/* Four warps; a job is (token, group of R query heads of one KV head, chunk). K and V of the next step are always on
 * their way while the current one is used; those of the first are requested before the wait, being older than this frame. */
template <int D, int INT8, int R, bool APPEND>
static __global__ void __launch_bounds__(ATTENTION_WARPS *WARP, R >= 4 || D > 128 ? 2 : 4)
    attention_kernel(const attention_args p)
{
    using S = steps<D, INT8>;
    constexpr int E = S::per_lane, NL = S::loads;
    __shared__ float s_q[R][D], s_new[2][D], s_o[ATTENTION_WARPS][R][D], s_m[ATTENTION_WARPS][R], s_l[ATTENTION_WARPS][R];
    __shared__ int   s_last;
    const struct attention_layer &l = p.l;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sub = lane / S::lanes, dl = lane % S::lanes;
    const int items = p.tokens * p.groups, jobs = items * ATTENTION_MAX_CHUNKS;

    struct job {
        int token, group, chunk, len, start, end, chunks;
        size_t row0; /* of the cache */
    };
    auto describe = [&](int j) {
        struct job b;
        b.token      = j % items / p.groups;
        b.group      = j % items % p.groups;
        b.chunk      = j / items; /* slowest: the jobs without positions come last */
        const int seq = p.seq ? p.seq[b.token] : b.token;
        b.len        = (int)load_l2_4(p.pos + b.token) + 1;
        const int cl = chunk_length(b.len, S::step);
        b.chunks     = (b.len + cl - 1) / cl;
        b.start      = b.chunk * cl;
        b.end        = min(b.start + cl, b.len);
        const int kv = b.group * R * l.n_kv_heads / l.n_head;
        b.row0       = ((size_t)seq * l.n_kv_heads + kv) * l.max_len;
        return b;
    };
    auto find = [&](int j, struct job *b) { /* next job of this block that has positions */
        for (; j < jobs; j += gridDim.x) {
            *b = describe(j);
            if (b->chunk < b->chunks)
                break;
        }
        return j;
    };
    uint4 k[NL], v[NL];
    float ks[NL], vs[NL];
    auto  fetch = [&](const struct job &b, int base) {
#pragma unroll
        for (int i = 0; i < NL; i++) {
            const int pos  = base + (i * ATTENTION_WARPS + warp) * S::sub + sub;
            const int last = APPEND ? min(b.end, b.len - 1) : b.end; /* the newest is not in the cache yet */
            k[i] = v[i] = make_uint4(0, 0, 0, 0);
            ks[i] = vs[i] = 0.0f;
            if (pos < last) {
                const size_t at = b.row0 + pos;
                k[i] = load_weights((const char *)l.d_k + (at * D + dl * E) * (INT8 ? 1 : 2));
                v[i] = load_weights((const char *)l.d_v + (at * D + dl * E) * (INT8 ? 1 : 2));
                if (INT8) {
                    ks[i] = load_l2_f32(l.d_k_scale + at);
                    vs[i] = load_l2_f32(l.d_v_scale + at);
                }
            }
        }
    };

    struct job now = {}, next = {};
    if (!APPEND)
        pdl_wait();
    int j = find(blockIdx.x, &now);
    if (j < jobs)
        fetch(now, now.start);
    pdl_trigger();
    if (APPEND)
        pdl_wait();

    const float scale = 1.0f / sqrtf((float)l.head_dim);
    while (j < jobs) {
        const int  seq = p.seq ? p.seq[now.token] : now.token;
        const bool newest = APPEND && now.end == now.len;
        /* Query heads, and by the block that owns the newest position its k and v. */
        const uint16_t *row = p.qkv + (size_t)now.token * p.qkv_stride;
        const int       kv  = now.group * R * l.n_kv_heads / l.n_head;
        for (int task = warp; task < R + (newest ? 2 : 0); task += ATTENTION_WARPS) {
            const int head = task < R ? now.group * R + task : l.n_head + kv + (task - R) * l.n_kv_heads;
            struct head_vector h = head_load(row + head * l.head_dim, l.head_dim, lane);
            if (APPEND && task <= R)
                head_norm_rotate(&h, task < R ? l.d_q_norm : l.d_k_norm, l.eps,
                                 l.d_rope + (size_t)(now.len - 1) * (l.head_dim / 2), l.head_dim, lane);
            if (task >= R) { /* a group of heads that shares a KV head writes the same bytes as the others */
                const size_t at = ((size_t)seq * l.n_kv_heads + kv) * l.max_len + now.len - 1;
                head_append(&h, l, task == R ? l.d_k : l.d_v, task == R ? l.d_k_scale : l.d_v_scale, at, lane);
            }
            head_to_shared(h, task < R ? s_q[task] : s_new[task - R], D, lane);
        }
        __syncthreads();
        float q[R][E], o[R][E], m[R], mass[R];
#pragma unroll
        for (int r = 0; r < R; r++) {
            m[r] = -1e30f, mass[r] = 0.0f;
#pragma unroll
            for (int e = 0; e < E; e++)
                q[r][e] = s_q[r][dl * E + e] * (scale * 1.44269504f), o[r][e] = 0.0f; /* log2 e: exp2 below */
        }
        auto score = [&](const float *kf, int r) {
            float s = 0.0f;
#pragma unroll
            for (int e = 0; e < E; e++)
                s += q[r][e] * kf[e];
#pragma unroll
            for (int off = S::lanes / 2; off; off >>= 1)
                s += __shfl_xor_sync(~0u, s, off);
            return s;
        };
        const int j_next = find(j + gridDim.x, &next);
        for (int base = now.start; base < now.end; base += S::step) {
            float s[NL][R];
#pragma unroll
            for (int i = 0; i < NL; i++) {
                const int  pos  = base + (i * ATTENTION_WARPS + warp) * S::sub + sub;
                const bool real = pos < (APPEND ? min(now.end, now.len - 1) : now.end);
                float      kf[E];
                const uint32_t u[4] = {k[i].x, k[i].y, k[i].z, k[i].w};
#pragma unroll
                for (int e = 0; e < E; e++)
                    kf[e] = INT8 ? int8_at(u[e / 4] ^ 0x80808080u, e % 4)
                                 : (e & 1 ? bf16_high(u[e / 2 % 4]) : bf16_low(u[e / 2 % 4]));
#pragma unroll
                for (int r = 0; r < R; r++) {
                    float one = score(kf, r);
                    if (INT8)
                        one *= ks[i];
                    s[i][r] = real ? one : -INFINITY;
                }
            }
            float p_of[NL][R];
#pragma unroll
            for (int r = 0; r < R; r++) {
                float top = m[r];
#pragma unroll
                for (int i = 0; i < NL; i++)
                    top = fmaxf(top, s[i][r]);
#pragma unroll
                for (int off = S::lanes; off < WARP; off <<= 1)
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, off));
                const float shrink = exp2f(m[r] - top);
                m[r]               = top;
                mass[r] *= shrink;
#pragma unroll
                for (int e = 0; e < E; e++)
                    o[r][e] *= shrink;
#pragma unroll
                for (int i = 0; i < NL; i++) {
                    p_of[i][r] = exp2f(s[i][r] - top);
                    mass[r] += p_of[i][r];
                }
            }
#pragma unroll
            for (int i = 0; i < NL; i++) {
                const uint32_t u[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
                for (int e = 0; e < E; e++) {
                    const float vf = INT8 ? int8_at(u[e / 4] ^ 0x80808080u, e % 4)
                                          : (e & 1 ? bf16_high(u[e / 2 % 4]) : bf16_low(u[e / 2 % 4]));
#pragma unroll
                    for (int r = 0; r < R; r++)
                        o[r][e] += (INT8 ? p_of[i][r] * vs[i] : p_of[i][r]) * vf;
                }
            }
            if (base + S::step < now.end)
                fetch(now, base + S::step);
            else if (j_next < jobs)
                fetch(next, next.start);
        }
        if (newest && warp == 0) {
            float kf[E];
#pragma unroll
            for (int e = 0; e < E; e++)
                kf[e] = s_new[0][dl * E + e];
#pragma unroll
            for (int r = 0; r < R; r++) {
                const float one = score(kf, r), top = fmaxf(m[r], one), shrink = exp2f(m[r] - top);
                const float w = sub == 0 ? exp2f(one - top) : 0.0f;
                m[r]          = top;
                mass[r]       = mass[r] * shrink + w;
#pragma unroll
                for (int e = 0; e < E; e++)
                    o[r][e] = o[r][e] * shrink + w * s_new[1][dl * E + e];
            }
        }
        /* The warp's positions together, then the block's four warps, in order. */
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int off = S::lanes; off < WARP; off <<= 1) {
                mass[r] += __shfl_xor_sync(~0u, mass[r], off);
#pragma unroll
                for (int e = 0; e < E; e++)
                    o[r][e] += __shfl_xor_sync(~0u, o[r][e], off);
            }
            if (sub == 0)
#pragma unroll
                for (int e = 0; e < E; e++)
                    s_o[warp][r][dl * E + e] = o[r][e];
            if (lane == 0)
                s_m[warp][r] = m[r], s_l[warp][r] = mass[r];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < R * D; i += ATTENTION_WARPS * WARP) {
            const int r = i / D, d = i % D, head = now.group * R + r;
            float     top = s_m[0][r], sum = 0.0f, all = 0.0f;
#pragma unroll
            for (int w = 1; w < ATTENTION_WARPS; w++)
                top = fmaxf(top, s_m[w][r]);
#pragma unroll
            for (int w = 0; w < ATTENTION_WARPS; w++) {
                const float f = exp2f(s_m[w][r] - top);
                sum += f * s_o[w][r][d];
                all += f * s_l[w][r];
            }
            if (now.chunks == 1) {
                if (d < l.head_dim)
                    p.y[(size_t)now.token * p.y_stride + head * l.head_dim + d] =
                        __bfloat16_as_ushort(__float2bfloat16_rn(__fdividef(sum, all)));
            } else {
                float *out = p.partial + (((size_t)now.token * l.n_head + head) * ATTENTION_MAX_CHUNKS + now.chunk) * (D + 2);
                __stcg(out + d, sum);
                if (d == 0)
                    __stcg(out + D, top), __stcg(out + D + 1, all);
            }
        }
        if (now.chunks > 1) {
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) {
                unsigned *count = p.arrived + (size_t)now.token * p.groups + now.group;
                s_last          = atomicAdd(count, 1u) == (unsigned)now.chunks - 1;
                if (s_last)
                    *count = 0;
            }
            __syncthreads();
            if (s_last) {
                __threadfence();
                for (int i = threadIdx.x; i < R * D; i += ATTENTION_WARPS * WARP) {
                    const int    r = i / D, d = i % D, head = now.group * R + r;
                    const float *in = p.partial + ((size_t)now.token * l.n_head + head) * ATTENTION_MAX_CHUNKS * (D + 2);
                    float        top = -INFINITY, sum = 0.0f, all = 0.0f;
                    for (int c = 0; c < now.chunks; c++)
                        top = fmaxf(top, __ldcg(in + (size_t)c * (D + 2) + D));
#pragma unroll 8
                    for (int c = 0; c < now.chunks; c++) {
                        const float f = exp2f(__ldcg(in + (size_t)c * (D + 2) + D) - top);
                        sum += f * __ldcg(in + (size_t)c * (D + 2) + d);
                        all += f * __ldcg(in + (size_t)c * (D + 2) + D + 1);
                    }
                    if (d < l.head_dim)
                        p.y[(size_t)now.token * p.y_stride + head * l.head_dim + d] =
                            __bfloat16_as_ushort(__float2bfloat16_rn(__fdividef(sum, all)));
                }
            }
        }
        __syncthreads(); /* shared memory is reused */
        now = next;
        j   = j_next;
    }
}

/* ---- slow stack, sm_90: a cluster of eight blocks per (token, group of query heads) -------------------------------- */

/* The positions are cut into eight equal chunks, one a block; the partial softmaxes meet in distributed shared memory:
 * every block receives its eighth of the output columns from all eight and adds them in order. That replaces a fence, an
 * atomic and a second round through L2 (9.1 us a call on an H200, of which the merge was more than half). */
enum { CLUSTER = 8, CLUSTER_WARPS = 8 };

static __device__ __forceinline__ void cluster_arrive(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
static __device__ __forceinline__ void cluster_wait(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
static __device__ __forceinline__ void store_remote(float *local, int rank, float v)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    uint32_t to;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"((uint32_t)__cvta_generic_to_shared(local)), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(v) : "memory");
#endif
}

template <int D, int INT8, int R, bool APPEND>
static __global__ void __launch_bounds__(CLUSTER_WARPS *WARP, R >= 4 || D > 128 ? 1 : 2)
    cluster_kernel(const attention_args p)
{
    constexpr int E = INT8 ? 16 : 8, LANES = D / E, SUB = WARP / LANES, NL = SUB >= 16 ? 1 : SUB == 8 ? 2 : 4;
    constexpr int STEP = CLUSTER_WARPS * SUB * NL, SLICE = R * D / CLUSTER, MINE = (D + 63) / 64; /* pairs of a lane */
    __shared__ __align__(16) float s_q[R][D], s_new[2][D], s_o[CLUSTER_WARPS][R][D];
    __shared__ float s_m[CLUSTER_WARPS][R], s_l[CLUSTER_WARPS][R];
    __shared__ float s_in[CLUSTER][SLICE], s_in_m[CLUSTER][R], s_in_l[CLUSTER][R]; /* from the blocks of the cluster */
    const struct attention_layer &l = p.l;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, sub = lane / LANES, dl = lane % LANES;
    const int rank = blockIdx.x % CLUSTER, item = blockIdx.x / CLUSTER, token = item / p.groups, group = item % p.groups;
    cluster_arrive(); /* every block has started: waited for before the first remote store */
    if (!APPEND)
        pdl_wait();
    const int    seq = p.seq ? p.seq[token] : token, len = (int)load_l2_4(p.pos + token) + 1;
    const int    chunk = (len + CLUSTER - 1) / CLUSTER, start = min(rank * chunk, len), end = min(start + chunk, len);
    const int    kv = group * R * l.n_kv_heads / l.n_head, cached = APPEND ? min(end, len - 1) : end;
    const size_t row0 = ((size_t)seq * l.n_kv_heads + kv) * l.max_len;
    const bool   newest = APPEND && start < len && end == len;

    uint4 k[NL], v[NL];
    float ks[NL], vs[NL];
    auto  fetch = [&](int base) {
#pragma unroll
        for (int i = 0; i < NL; i++) {
            const int pos = base + (i * CLUSTER_WARPS + warp) * SUB + sub;
            k[i] = v[i] = make_uint4(0, 0, 0, 0);
            ks[i] = vs[i] = 0.0f;
            if (pos < cached) {
                const size_t at = row0 + pos;
                k[i] = load_weights((const char *)l.d_k + (at * D + dl * E) * (INT8 ? 1 : 2));
                v[i] = load_weights((const char *)l.d_v + (at * D + dl * E) * (INT8 ? 1 : 2));
                if (INT8) {
                    ks[i] = load_l2_f32(l.d_k_scale + at);
                    vs[i] = load_l2_f32(l.d_v_scale + at);
                }
            }
        }
    };
    fetch(start);
    /* This warp's head of q, k or v, and the constants that it needs. */
    const int    head = warp < R ? group * R + warp : l.n_head + kv + (warp - R) * l.n_kv_heads;
    const bool   has_head = warp < R || (newest && warp < R + 2), rotates = APPEND && has_head && warp <= R;
    const float *norm = warp < R ? l.d_q_norm : l.d_k_norm;
    uint32_t     rope[MINE] = {};
    float2       nw[MINE] = {};
    if (rotates) {
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int pair = lane + i * WARP;
            if (2 * pair < l.head_dim) {
                rope[i] = load_l2_4(l.d_rope + (size_t)(len - 1) * (l.head_dim / 2) + pair);
                if (norm) {
                    const uint2 u = load_l2_8(norm + 2 * pair);
                    nw[i]         = make_float2(__uint_as_float(u.x), __uint_as_float(u.y));
                }
            }
        }
    }
    if (!p.late)
        pdl_trigger();
    if (APPEND)
        pdl_wait();
    if (p.late)
        pdl_trigger();

    if (has_head) {
        struct head_vector h = head_load(p.qkv + (size_t)token * p.qkv_stride + head * l.head_dim, l.head_dim, lane);
        if (rotates) {
            float r = 0.0f;
            if (norm) {
                float ss = 0.0f;
#pragma unroll
                for (int i = 0; i < 2 * MINE; i++)
                    ss += h.v[i] * h.v[i];
                r = rsqrtf(warp_sum(ss) / (float)l.head_dim + l.eps);
            }
#pragma unroll
            for (int i = 0; i < MINE; i++) {
                float a = h.v[2 * i], b = h.v[2 * i + 1];
                if (norm)
                    a = norm_one(a, r, nw[i].x), b = norm_one(b, r, nw[i].y);
                const float c = bf16_low(rope[i]), s = bf16_high(rope[i]);
                h.v[2 * i]     = round_bf16(__fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
                h.v[2 * i + 1] = round_bf16(__fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
            }
        }
        if (warp >= R) /* groups that share a KV head write the same bytes */
            head_append(&h, l, warp == R ? l.d_k : l.d_v, warp == R ? l.d_k_scale : l.d_v_scale, row0 + len - 1, lane);
        head_to_shared(h, warp < R ? s_q[warp] : s_new[warp - R], D, lane);
    }
    __syncthreads();
    const float scale = 1.0f / sqrtf((float)l.head_dim);
    float       q[R][E], o[R][E], m[R], mass[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        m[r] = -1e30f, mass[r] = 0.0f;
#pragma unroll
        for (int e = 0; e < E; e++)
            q[r][e] = s_q[r][dl * E + e] * (scale * 1.44269504f), o[r][e] = 0.0f; /* log2 e: exp2 below */
    }
    auto score = [&](const float *kf, int r) {
        float s = 0.0f;
#pragma unroll
        for (int e = 0; e < E; e++)
            s += q[r][e] * kf[e];
#pragma unroll
        for (int off = LANES / 2; off; off >>= 1)
            s += __shfl_xor_sync(~0u, s, off);
        return s;
    };
    for (int base = start; base < end; base += STEP) {
        float s[NL][R];
#pragma unroll
        for (int i = 0; i < NL; i++) {
            const bool     real = base + (i * CLUSTER_WARPS + warp) * SUB + sub < cached;
            const uint32_t u[4] = {k[i].x, k[i].y, k[i].z, k[i].w};
            float          kf[E];
#pragma unroll
            for (int e = 0; e < E; e++)
                kf[e] = INT8 ? int8_at(u[e / 4] ^ 0x80808080u, e % 4)
                             : (e & 1 ? bf16_high(u[e / 2 % 4]) : bf16_low(u[e / 2 % 4]));
#pragma unroll
            for (int r = 0; r < R; r++) {
                const float one = score(kf, r);
                s[i][r]         = real ? (INT8 ? one * ks[i] : one) : -INFINITY;
            }
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            float top = m[r];
#pragma unroll
            for (int i = 0; i < NL; i++)
                top = fmaxf(top, s[i][r]);
#pragma unroll
            for (int off = LANES; off < WARP; off <<= 1)
                top = fmaxf(top, __shfl_xor_sync(~0u, top, off));
            const float shrink = exp2f(m[r] - top);
            m[r]               = top;
            mass[r] *= shrink;
#pragma unroll
            for (int e = 0; e < E; e++)
                o[r][e] *= shrink;
#pragma unroll
            for (int i = 0; i < NL; i++) {
                s[i][r] = exp2f(s[i][r] - top);
                mass[r] += s[i][r];
                if (INT8)
                    s[i][r] *= vs[i];
            }
        }
#pragma unroll
        for (int i = 0; i < NL; i++) {
            const uint32_t u[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
            for (int e = 0; e < E; e++) {
                const float vf = INT8 ? int8_at(u[e / 4] ^ 0x80808080u, e % 4)
                                      : (e & 1 ? bf16_high(u[e / 2 % 4]) : bf16_low(u[e / 2 % 4]));
#pragma unroll
                for (int r = 0; r < R; r++)
                    o[r][e] += s[i][r] * vf;
            }
        }
        if (base + STEP < end)
            fetch(base + STEP);
    }
    if (newest && warp == 0) {
        float kf[E];
#pragma unroll
        for (int e = 0; e < E; e++)
            kf[e] = s_new[0][dl * E + e];
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float one = score(kf, r), top = fmaxf(m[r], one), shrink = exp2f(m[r] - top);
            const float w = sub == 0 ? exp2f(one - top) : 0.0f;
            m[r]          = top;
            mass[r]       = mass[r] * shrink + w;
#pragma unroll
            for (int e = 0; e < E; e++)
                o[r][e] = o[r][e] * shrink + w * s_new[1][dl * E + e];
        }
    }
    /* The warp's positions together, the block's warps in order, the cluster's blocks in order. */
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int off = LANES; off < WARP; off <<= 1) {
            mass[r] += __shfl_xor_sync(~0u, mass[r], off);
#pragma unroll
            for (int e = 0; e < E; e++)
                o[r][e] += __shfl_xor_sync(~0u, o[r][e], off);
        }
        if (sub == 0)
#pragma unroll
            for (int e = 0; e < E; e += 4)
                *(float4 *)&s_o[warp][r][dl * E + e] = make_float4(o[r][e], o[r][e + 1], o[r][e + 2], o[r][e + 3]);
        if (lane == 0)
            s_m[warp][r] = m[r], s_l[warp][r] = mass[r];
    }
    __syncthreads();
    cluster_wait();
    for (int i = threadIdx.x; i < R * D; i += CLUSTER_WARPS * WARP) {
        const int r = i / D, d = i % D;
        float     top = s_m[0][r], sum = 0.0f, all = 0.0f;
#pragma unroll
        for (int w = 1; w < CLUSTER_WARPS; w++)
            top = fmaxf(top, s_m[w][r]);
#pragma unroll
        for (int w = 0; w < CLUSTER_WARPS; w++) {
            const float f = exp2f(s_m[w][r] - top);
            sum += f * s_o[w][r][d];
            all += f * s_l[w][r];
        }
        store_remote(&s_in[rank][i % SLICE], i / SLICE, sum);
        if (d < CLUSTER) { /* D ≥ 16: these threads tell each block of the head's maximum and mass */
            store_remote(&s_in_m[rank][r], d, top);
            store_remote(&s_in_l[rank][r], d, all);
        }
    }
    cluster_arrive();
    cluster_wait();
    for (int i = threadIdx.x / CLUSTER; i < (SLICE + 3) / 4 * 4; i += CLUSTER_WARPS * WARP / CLUSTER) { /* whole warps */
        const int from = threadIdx.x % CLUSTER, at = rank * SLICE + min(i, SLICE - 1), r = at / D, d = at % D;
        float     top = s_in_m[from][r];
#pragma unroll
        for (int off = 1; off < CLUSTER; off <<= 1)
            top = fmaxf(top, __shfl_xor_sync(~0u, top, off));
        const float f = exp2f(s_in_m[from][r] - top);
        float       sum = f * s_in[from][min(i, SLICE - 1)], all = f * s_in_l[from][r];
#pragma unroll
        for (int off = 1; off < CLUSTER; off <<= 1) {
            sum += __shfl_xor_sync(~0u, sum, off);
            all += __shfl_xor_sync(~0u, all, off);
        }
        if (from == 0 && i < SLICE && d < l.head_dim)
            p.y[(size_t)token * p.y_stride + (group * R + r) * l.head_dim + d] =
                __bfloat16_as_ushort(__float2bfloat16_rn(__fdividef(sum, all)));
    }
}

/* A warp per (token, head of q, k or v). */
static __global__ void append_kernel(const attention_args p)
{
    const struct attention_layer &l = p.l;
    const int heads = l.n_head + 2 * l.n_kv_heads, lane = threadIdx.x % WARP;
    const int item = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    pdl_wait();
    pdl_trigger();
    if (item >= p.tokens * heads)
        return;
    const int token = item / heads, head = item % heads, seq = p.seq ? p.seq[token] : token;
    const int pos = (int)load_l2_4(p.pos + token);
    uint16_t *src = (uint16_t *)p.qkv + (size_t)token * p.qkv_stride + head * l.head_dim;
    struct head_vector h = head_load(src, l.head_dim, lane);
    if (head < l.n_head + l.n_kv_heads)
        head_norm_rotate(&h, head < l.n_head ? l.d_q_norm : l.d_k_norm, l.eps,
                         l.d_rope + (size_t)pos * (l.head_dim / 2), l.head_dim, lane);
    if (head < l.n_head) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            if (2 * (lane + i * WARP) < l.head_dim)
                *(uint32_t *)(src + 2 * (lane + i * WARP)) = pack_bf16(h.v[2 * i], h.v[2 * i + 1]);
        return;
    }
    const bool   is_k = head < l.n_head + l.n_kv_heads;
    const int    kv   = head - l.n_head - (is_k ? 0 : l.n_kv_heads);
    const size_t at   = ((size_t)seq * l.n_kv_heads + kv) * l.max_len + pos;
    head_append(&h, l, is_k ? l.d_k : l.d_v, is_k ? l.d_k_scale : l.d_v_scale, at, lane);
}

/* ---- fast stack --------------------------------------------------------------------------------------------------- */

enum { FAST_WARPS = 4 };

/* A block per (KV head, sequence); a warp per (query head, new token); a lane per position. */
static __global__ void __launch_bounds__(FAST_WARPS *WARP) fast_kernel(const attention_args p, int n_new, int first)
{
    extern __shared__ float shared[];
    const struct attention_layer &l = p.l;
    const int D = l.row, pitch = D + 2, kv = blockIdx.x, seq = blockIdx.y, R = l.n_head / l.n_kv_heads;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, len_max = first + n_new;
    float    *s_k = shared, *s_v = s_k + len_max * pitch, *s_q = s_v + len_max * pitch; /* q [n_new·R][D] */
    uint32_t *s_rope = (uint32_t *)(s_q + n_new * R * D);                             /* [n_new][head_dim/2] */
    const size_t row0 = ((size_t)seq * l.n_kv_heads + kv) * l.max_len;

    /* Older positions were written by earlier passes, before our predecessor's predecessor ended. */
    for (int i = threadIdx.x; i < first * (D / 8); i += FAST_WARPS * WARP) {
        const int    pos = i / (D / 8), d = i % (D / 8) * 8;
        const uint4  k = load_l2_16((const uint16_t *)l.d_k + (row0 + pos) * D + d);
        const uint4  v = load_l2_16((const uint16_t *)l.d_v + (row0 + pos) * D + d);
        const uint32_t ku[4] = {k.x, k.y, k.z, k.w}, vu[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s_k[pos * pitch + d + 2 * e]     = bf16_low(ku[e]);
            s_k[pos * pitch + d + 2 * e + 1] = bf16_high(ku[e]);
            s_v[pos * pitch + d + 2 * e]     = bf16_low(vu[e]);
            s_v[pos * pitch + d + 2 * e + 1] = bf16_high(vu[e]);
        }
    }
    for (int i = threadIdx.x; i < n_new * (l.head_dim / 2); i += FAST_WARPS * WARP)
        s_rope[i] = load_l2_4(l.d_rope + (size_t)first * (l.head_dim / 2) + i);
    if (!p.late)
        pdl_trigger();
    __syncthreads();
    pdl_wait();
    if (p.late)
        pdl_trigger();
    for (int task = warp; task < n_new * (R + 2); task += FAST_WARPS) {
        const int       n = task / (R + 2), what = task % (R + 2), pos = first + n;
        const int       head = what < R ? kv * R + what : l.n_head + kv + (what - R) * l.n_kv_heads;
        const uint16_t *row  = p.qkv + (size_t)(seq * n_new + n) * p.qkv_stride;
        struct head_vector h = head_load(row + head * l.head_dim, l.head_dim, lane);
        if (what <= R)
            head_norm_rotate(&h, what < R ? l.d_q_norm : l.d_k_norm, l.eps, s_rope + n * (l.head_dim / 2), l.head_dim, lane);
        if (what >= R)
            head_append(&h, l, what == R ? l.d_k : l.d_v, NULL, row0 + pos, lane);
        float *out = what < R ? s_q + (n * R + what) * D : (what == R ? s_k : s_v) + pos * pitch;
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            if (2 * (lane + i * WARP) < D)
                *(float2 *)(out + 2 * (lane + i * WARP)) = make_float2(h.v[2 * i], h.v[2 * i + 1]);
    }
    __syncthreads();
    const float scale = 1.0f / sqrtf((float)l.head_dim);
    for (int task = warp; task < n_new * R; task += FAST_WARPS) {
        const int    n = task / R, r = task % R, len = first + n + 1;
        const float *q = s_q + task * D, *k = s_k + min(lane, len - 1) * pitch;
        float        s4[4] = {};
#pragma unroll 8
        for (int d = 0; d < D; d += 4) { /* rows are padded with zeros to D */
            const float2 q0 = *(const float2 *)(q + d), q1 = *(const float2 *)(q + d + 2);
            const float2 k0 = *(const float2 *)(k + d), k1 = *(const float2 *)(k + d + 2);
            s4[0] = __fmaf_rn(q0.x, k0.x, s4[0]), s4[1] = __fmaf_rn(q0.y, k0.y, s4[1]);
            s4[2] = __fmaf_rn(q1.x, k1.x, s4[2]), s4[3] = __fmaf_rn(q1.y, k1.y, s4[3]);
        }
        float s          = (s4[0] + s4[1]) + (s4[2] + s4[3]);
        s                = lane < len ? round_bf16(__fmul_rn(round_bf16(s), scale)) : -INFINITY;
        const float top  = warp_max(s), e = lane < len ? expf(s - top) : 0.0f;
        const float prob = round_bf16(__fdiv_rn(e, warp_sum(e)));
        uint16_t   *y    = p.y + (size_t)(seq * n_new + n) * p.y_stride + (kv * R + r) * l.head_dim;
        for (int pair = lane; pair < (D / 2 + WARP - 1) / WARP * WARP; pair += WARP) {
            const int at = min(2 * pair, D - 2);
            float     o0 = 0.0f, o1 = 0.0f;
#pragma unroll 4
            for (int i = 0; i < len; i++) {
                const float2 v = *(const float2 *)(s_v + i * pitch + at);
                const float  w = __shfl_sync(~0u, prob, i);
                o0 = __fmaf_rn(w, v.x, o0), o1 = __fmaf_rn(w, v.y, o1);
            }
            if (2 * pair < l.head_dim)
                *(uint32_t *)(y + 2 * pair) = pack_bf16(o0, o1);
        }
    }
}

/* ---- launchers ---------------------------------------------------------------------------------------------------- */

extern "C" int attention_row(int head_dim)
{
    int row = 16;
    while (row < head_dim)
        row *= 2;
    return row;
}

extern "C" size_t attention_partial_floats(const struct attention_layer *a, int tokens)
{
    return (size_t)tokens * a->n_head * ATTENTION_MAX_CHUNKS * (a->row + 2);
}

static struct attention_args arguments(const struct attention_layer *a, const struct attention_call *call)
{
    struct attention_args p = {};
    p.l = *a, p.qkv = call->d_qkv, p.y = call->d_y, p.seq = call->d_seq, p.pos = call->d_pos;
    p.partial = call->d_partial, p.arrived = call->d_arrived;
    p.qkv_stride = call->qkv_stride, p.y_stride = call->y_stride, p.tokens = call->tokens, p.late = call->late;
    return p;
}

template <int D, int INT8, int R>
static cudaError_t enqueue(attention_args p, const struct attention_call *call, cudaStream_t stream)
{
    p.groups = p.l.n_head / R;
    int       device = 0, sms = 0, major = 0;
    const int jobs = p.tokens * p.groups * ATTENTION_MAX_CHUNKS;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (major >= 9) {
        const dim3 grid((unsigned)(p.tokens * p.groups * CLUSTER)), block(CLUSTER_WARPS * WARP);
        return call->append ? launch_cluster(cluster_kernel<D, INT8, R, true>, grid, block, CLUSTER, stream, call->pdl,
                                             (const attention_args)p)
                            : launch_cluster(cluster_kernel<D, INT8, R, false>, grid, block, CLUSTER, stream, call->pdl,
                                             (const attention_args)p);
    }
    const int blocks = jobs < 4 * sms ? jobs : 4 * sms;
    if (call->append)
        return launch(attention_kernel<D, INT8, R, true>, dim3(blocks), dim3(ATTENTION_WARPS * WARP), 0, stream, call->pdl,
                      (const attention_args)p);
    return launch(attention_kernel<D, INT8, R, false>, dim3(blocks), dim3(ATTENTION_WARPS * WARP), 0, stream, call->pdl,
                  (const attention_args)p);
}

template <int D, int INT8>
static cudaError_t by_group(const attention_args &p, const struct attention_call *call, cudaStream_t stream)
{
    const int shared = p.l.n_head / p.l.n_kv_heads; /* query heads of a KV head; odd numbers go one by one */
    if (D <= 128 && shared % 4 == 0)
        return enqueue<D, INT8, (D <= 128 ? 4 : 2)>(p, call, stream);
    if (shared % 2 == 0)
        return enqueue<D, INT8, 2>(p, call, stream);
    return enqueue<D, INT8, 1>(p, call, stream);
}

template <int D>
static cudaError_t by_format(const attention_args &p, const struct attention_call *call, cudaStream_t stream)
{
    return p.l.int8 ? by_group<D, 1>(p, call, stream) : by_group<D, 0>(p, call, stream);
}

extern "C" cudaError_t attention_launch(const struct attention_layer *a, const struct attention_call *call,
                                        cudaStream_t stream)
{
    const attention_args p = arguments(a, call);
    switch (a->row) {
    case 16: return by_format<16>(p, call, stream);
    case 32: return by_format<32>(p, call, stream);
    case 64: return by_format<64>(p, call, stream);
    case 128: return by_format<128>(p, call, stream);
    case 256: return by_format<256>(p, call, stream);
    default: return cudaErrorInvalidValue;
    }
}

extern "C" cudaError_t attention_append_launch(const struct attention_layer *a, const struct attention_call *call,
                                               cudaStream_t stream)
{
    const int warps = call->tokens * (a->n_head + 2 * a->n_kv_heads);
    return launch(append_kernel, dim3((warps + 7) / 8), dim3(8 * WARP), 0, stream, call->pdl,
                  (const attention_args)arguments(a, call));
}

extern "C" cudaError_t attention_fast_launch(const struct attention_layer *a, const struct attention_call *call, int n_seq,
                                             int n_new, int first, cudaStream_t stream)
{
    if (first + n_new > ATTENTION_MAX_FAST || a->int8)
        return cudaErrorInvalidValue;
    const size_t smem = sizeof(float) * (2 * (size_t)(first + n_new) * (a->row + 2) +
                                         (size_t)n_new * ((a->n_head / a->n_kv_heads) * a->row + a->head_dim / 2));
    if (smem > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(fast_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
        if (e != cudaSuccess)
            return e;
    }
    return launch(fast_kernel, dim3(a->n_kv_heads, n_seq), dim3(FAST_WARPS * WARP), smem, stream, call->pdl,
                  (const attention_args)arguments(a, call), n_new, first);
}
