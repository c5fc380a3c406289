#include "kernels/device.cuh"
#include "kernels/launch.cuh"
#include "kernels/sample.h"
#include "model/sampler_math.h"

enum { THREADS = 1024, WARPS = THREADS / WARP, BINS = THREADS };

/* What the block shares. Masses are 41-bit integers; a bin sums them in three parts of 14 bits, so that 2^18 candidates
 * cannot overflow 32-bit shared-memory atomics (64-bit ones are compare-and-swap loops). */
struct block_shared {
    uint32_t mass[3][BINS], count[BINS];
    uint64_t warp_mass[WARPS];
    uint32_t warp_count[WARPS], warp_a[WARPS], warp_b[WARPS];
    uint64_t used, limit;      /* mass already kept, mass that may be kept  */
    int      kept, in_bin, ties, boundary, result;
    uint32_t key_min, key_max; /* of the open bin                           */
    int32_t  history[SAMPLE_WINDOW + SAMPLE_MAX_CODEBOOKS + 1];
    int      n_history;
};

/* Candidates of a thread: i = tid + T·slot, cleaned and penalized. PER slots live in registers; PER 0 reads again. */
template <int PER, int T> struct candidates {
    const uint16_t *logits;
    const uint32_t *penalized; /* bit per candidate, or NULL */
    float           penalty;
    int             n, first_id, last_id;
    bool            by_id;
    float           z[PER ? PER : 1];

    __device__ __forceinline__ int id(int i) const
    {
        return last_id >= 0 && i == n - 1 ? last_id : first_id + i;
    }
    __device__ __forceinline__ float read(int i) const
    {
        float v = sampler_clean(__uint_as_float((uint32_t)load_l2_2(logits + (by_id ? id(i) : i)) << 16));
        if (penalized && penalized[i / 32] >> (i % 32) & 1)
            v = sampler_clean(v < 0 ? SAMPLER_MUL(v, penalty) : SAMPLER_DIV(v, penalty));
        return v;
    }
    template <typename F> __device__ __forceinline__ void each(F f) const
    {
        if (PER) {
#pragma unroll
            for (int s = 0; s < (PER ? PER : 1); s++)
                if ((int)threadIdx.x + s * T < n)
                    f((int)threadIdx.x + s * T, z[s], s);
        } else
            for (int i = threadIdx.x; i < n; i += T)
                f(i, read(i), 0);
    }
};

/* Largest a (and among equals the smallest b) over a block of W warps; every thread gets both. */
template <int W = WARPS>
static __device__ __forceinline__ void block_best(uint32_t *a, uint32_t *b, struct block_shared *s)
{
    const int      warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t       top = __reduce_max_sync(~0u, *a), low = __reduce_min_sync(~0u, *a == top ? *b : ~0u);
    if (lane == 0)
        s->warp_a[warp] = top, s->warp_b[warp] = low;
    __syncthreads();
    const uint32_t x = s->warp_a[lane % W], y = s->warp_b[lane % W];
    *a = __reduce_max_sync(~0u, x);
    *b = __reduce_min_sync(~0u, x == *a ? y : ~0u);
    __syncthreads();
}

/* Inclusive sums over threads 0…tid; also the block's totals. */
static __device__ __forceinline__ void block_scan(uint64_t *mass, uint32_t *count, uint64_t *all_mass, struct block_shared *s)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int o = 1; o < WARP; o <<= 1) {
        const uint64_t m = __shfl_up_sync(~0u, *mass, o);
        const uint32_t c = __shfl_up_sync(~0u, *count, o);
        if (lane >= o)
            *mass += m, *count += c;
    }
    if (lane == WARP - 1)
        s->warp_mass[warp] = *mass, s->warp_count[warp] = *count;
    __syncthreads();
    uint64_t m = lane < WARPS ? s->warp_mass[lane] : 0;
    uint32_t c = lane < WARPS ? s->warp_count[lane] : 0;
#pragma unroll
    for (int o = 1; o < WARP; o <<= 1) {
        const uint64_t m2 = __shfl_up_sync(~0u, m, o);
        const uint32_t c2 = __shfl_up_sync(~0u, c, o);
        if (lane >= o)
            m += m2, c += c2;
    }
    *all_mass            = __shfl_sync(~0u, m, WARP - 1);
    const uint64_t before = __shfl_sync(~0u, m, warp > 0 ? warp - 1 : 0);
    const uint32_t counted = __shfl_sync(~0u, c, warp > 0 ? warp - 1 : 0);
    if (warp > 0)
        *mass += before, *count += counted;
}

struct cut {
    uint32_t key;      /* keep what is above it,            */
    int      boundary; /* and equal candidates up to here   */
    int      kept;
};

/* The longest prefix that fits top-p and top-k (sampler_math.h, step 4): a histogram over the distance to the best, then
 * ever finer ones over the keys of the one bin that does not fit whole, until that bin holds a single value. */
static __device__ struct cut find_cut(const candidates<0, THREADS> &c, float best, uint32_t key_low, float top_p, int top_k,
                                      uint32_t *tie_bits, struct block_shared *s)
{
    const int      tid  = threadIdx.x;
    const uint32_t most = (uint32_t)(top_k > 0 && top_k < c.n ? top_k : c.n);
    /* Level 0 spreads [best − range, best] evenly over the bins; what lies lower shares the last one. */
    const uint32_t low_bits = key_low & 0x80000000u ? key_low & 0x7fffffffu : ~key_low;
    const float    range    = fminf(fmaxf(best - sampler_float(low_bits), 1e-30f), 30.0f), spread = (BINS - 1) / range;
    uint32_t high = 0, shift = 0;
    for (int level = 0;; level++) {
        s->mass[0][tid] = s->mass[1][tid] = s->mass[2][tid] = s->count[tid] = 0;
        const uint32_t low = s->key_min;
        __syncthreads();
        auto bin_of = [&](float z, uint32_t key) {
            if (level == 0)
                return (uint32_t)fminf((best - z) * spread, (float)(BINS - 1));
            return (high - key) >> shift;
        };
        auto open = [&](uint32_t key) { return level == 0 || (key >= low && key <= high); };
        c.each([&](int i, float z, int slot) {
            const uint32_t key = sampler_key(z);
            if (!open(key))
                return;
            const uint32_t b    = bin_of(z, key);
            const uint64_t mass = sampler_mass(SAMPLER_SUB(z, best));
            const uint32_t part[3] = {(uint32_t)mass & 0x3fff, (uint32_t)(mass >> 14) & 0x3fff, (uint32_t)(mass >> 28)};
            atomicAdd(&s->count[b], 1u);
#pragma unroll
            for (int k = 0; k < 3; k++)
                if (part[k])
                    atomicAdd(&s->mass[k][b], part[k]);
        });
        __syncthreads();
        uint64_t mass = (uint64_t)s->mass[0][tid] + ((uint64_t)s->mass[1][tid] << 14) + ((uint64_t)s->mass[2][tid] << 28);
        uint64_t own = mass, all;
        uint32_t count = s->count[tid], own_count = count;
        block_scan(&mass, &count, &all, s);
        if (level == 0) {
            if (tid == 0)
                s->used = 0, s->kept = 0;
            s->limit = sampler_threshold(top_p, all); /* the same value from every thread */
            __syncthreads();
        }
        const uint64_t limit = s->limit, used = s->used;
        const uint32_t kept = (uint32_t)s->kept;
        const bool     fits = mass <= limit - used && count <= most - kept;
        const int      bin  = __syncthreads_count(fits);
        if (bin == BINS) { /* only at level 0: a bin that was opened does not fit whole */
            struct cut everything = {0, c.n, c.n};
            return everything;
        }
        if (tid == bin) {
            s->used    = used + mass - own;
            s->kept    = (int)(kept + count - own_count);
            s->in_bin  = (int)own_count;
            s->key_min = ~0u;
            s->key_max = 0;
        }
        __syncthreads();
        uint32_t mine_low = ~0u, mine_high = 0;
        c.each([&](int i, float z, int slot) {
            const uint32_t key = sampler_key(z);
            if (open(key) && bin_of(z, key) == (uint32_t)bin)
                mine_low = min(mine_low, key), mine_high = max(mine_high, key);
        });
        mine_low = __reduce_min_sync(~0u, mine_low), mine_high = __reduce_max_sync(~0u, mine_high);
        if (tid % WARP == 0 && mine_low <= mine_high)
            atomicMin(&s->key_min, mine_low), atomicMax(&s->key_max, mine_high);
        __syncthreads();
        high = s->key_max;
        if (s->key_min == high)
            break;
        const uint32_t width = high - s->key_min; /* ≥ 1: the finer bins always separate its ends */
        shift                = width < BINS ? 0 : 32 - __clz(width) - 10;
    }
    /* One value is left: as many of it as fit, by index. */
    if (tid == 0) {
        const float    z    = sampler_float(high & 0x80000000u ? high & 0x7fffffffu : ~high);
        const uint64_t each = sampler_mass(SAMPLER_SUB(z, best)), room = most - (uint32_t)s->kept;
        const uint64_t fit  = each ? (s->limit - s->used) / each : (uint64_t)s->in_bin;
        s->ties             = (int)(fit < room ? fit : room);
        if (s->kept + s->ties == 0)
            s->ties = 1;
    }
    __syncthreads();
    const int  ties = min(s->ties, s->in_bin);
    struct cut cut  = {high, c.n, s->kept + ties};
    if (ties == 0)
        cut.boundary = -1;
    else if (ties < s->in_bin) { /* the index of the last one that fits */
        const int words = (c.n + 31) / 32, per = (words + THREADS - 1) / THREADS;
        for (int w = tid; w < words; w += THREADS)
            tie_bits[w] = 0;
        __syncthreads();
        c.each([&](int i, float z, int slot) {
            if (sampler_key(z) == high)
                atomicOr(&tie_bits[i / 32], 1u << (i % 32));
        });
        __syncthreads();
        uint32_t count = 0;
        for (int w = tid * per; w < min((tid + 1) * per, words); w++)
            count += __popc(tie_bits[w]);
        const uint32_t own = count;
        uint64_t       unused = 0, all;
        block_scan(&unused, &count, &all, s);
        if (count >= (uint32_t)ties && count - own < (uint32_t)ties) {
            uint32_t left = (uint32_t)ties - (count - own);
            for (int w = tid * per; left; w++)
                for (uint32_t bits = tie_bits[w]; bits && left; bits &= bits - 1)
                    if (--left == 0)
                        s->boundary = w * 32 + __ffs((int)bits) - 1;
        }
        __syncthreads();
        cut.boundary = s->boundary;
    }
    return cut;
}

/* About sampler_exponential(word), within 1e-3 of it, without FP64: near 1 the logarithm's own series, as the float of
 * u = 1 − t has lost t. */
static __device__ __forceinline__ float rough_exponential(uint32_t word)
{
    const float t = ((float)(~word) + 0.5f) * 2.3283064365386963e-10f;
    if (t < 0.125f)
        return t * (1.0f + t * (0.5f + t * (0.33333333f + t * (0.25f + t * 0.2f))));
    return -__logf(((float)word + 0.5f) * 2.3283064365386963e-10f);
}

/* Step 5 over what find_cut() keeps, reading the candidates again: rough scores first; the exact one, whose noise takes
 * FP64, only for those that can be the largest. */
template <typename N>
static __device__ int draw_above(const candidates<0, THREADS> &c, const struct cut &cut, float top_z, int best_index,
                                 float temperature, int draw, N noise, struct block_shared *s)
{
    const float tau = temperature > 1e-5f ? temperature : 1e-5f, top = SAMPLER_DIV(top_z, tau);
    uint32_t    score = 0, at = ~0u, rough = 0, unused = 0;
    auto        weight = [&](int i, float z) { /* 0: not kept, or cannot win (the best has 1) */
        const uint32_t key = sampler_key(z);
        return key < cut.key || (key == cut.key && i > cut.boundary) ? 0.0f
                                                                     : sampler_exp(SAMPLER_SUB(SAMPLER_DIV(z, tau), top));
    };
    c.each([&](int i, float z, int slot) {
        const float e = weight(i, z);
        if (e > 0.0f)
            rough = max(rough, sampler_bits(__fdividef(e, rough_exponential(noise(i, draw)))));
    });
    block_best(&rough, &unused, s);
    const float bar = sampler_float(rough) * 0.99f;
    c.each([&](int i, float z, int slot) {
        const float e = weight(i, z);
        if (!(e > 0.0f))
            return;
        const uint32_t word = noise(i, draw);
        if (__fdividef(e, rough_exponential(word)) < bar)
            return;
        const uint32_t v = sampler_bits(SAMPLER_DIV(e, sampler_exponential(word)));
        if (at == ~0u || v > score)
            score = v, at = (uint32_t)i;
    });
    block_best(&score, &at, s);
    return at == ~0u ? best_index : (int)at;
}

/* What draw_held() shares: a place of its own for every step, so that a step takes one barrier. */
struct held_shared {
    uint64_t winner;             /* score << 32 | ~index of the best contender, where there are several */
    int      single, several;    /* a contender; whether one thread has two */
    uint32_t part[4][WARPS];     /* of each warp: largest rough score; mass, low 24 bits and the rest; count */
    uint32_t rough[WARPS];
};

/* Sum over the block of what its warps published: one 64-bit value a thread, below 2^48. */
template <int W>
static __device__ __forceinline__ uint64_t held_sum(const struct held_shared *s, int lane)
{
    const uint32_t low = __reduce_add_sync(~0u, lane < W ? s->part[1][lane] : 0u);
    uint64_t       high = lane < W ? s->part[2][lane] : 0u;
#pragma unroll
    for (int o = WARP / 2; o; o >>= 1)
        high += __shfl_xor_sync(~0u, high, o);
    return low + (high << 24);
}

/* The draw when every candidate is held in registers, without ordering them: of all candidates that are still in question
 * the one with the largest score is the winner if it lies in the nucleus, which takes one sum over what stands before it;
 * if it does not, neither does anything after it, and the best of the rest is asked. Usually the first or second answer
 * holds, as most of the mass lies in the nucleus; a wrong one leaves half of the rest on average.
 * noise[] and rate[]: words of the candidates, and roughly 1 / their exponential.
 * rows [last_row + 1][width]: what candidate i is followed by. */
template <int PER, int T>
static __device__ __forceinline__ int draw_held(const candidates<PER, T> &c, float top_z, int best_index, float temperature,
                                                float top_p, int top_k, const uint32_t *noise, const float *rate,
                                                const uint16_t *rows, int last_row, int width, struct held_shared *s)
{
    constexpr int  W = T / WARP;
    const int      tid = threadIdx.x, warp = tid / WARP, lane = tid % WARP;
    const uint32_t most = (uint32_t)(top_k > 0 && top_k < c.n ? top_k : c.n);
    const float    tau = temperature > 1e-5f ? temperature : 1e-5f, top = SAMPLER_DIV(top_z, tau);
    uint64_t       mass[PER], sum = 0;
    float          rough[PER]; /* < 0: out of question */
    /* Rough weights are within 1e-3 as long as the rounding of z/tau is; beyond that they are computed as they are. */
    const bool  plain = fabsf(top) < 4096.0f;
    const float per_tau = __fdividef(1.0f, tau);
    auto        weight = [&](float z) { return sampler_exp(SAMPLER_SUB(SAMPLER_DIV(z, tau), top)); };
    auto           publish_rough = [&](uint32_t *to) {
        uint32_t most_rough = 0;
#pragma unroll
        for (int k = 0; k < PER; k++)
            most_rough = max(most_rough, rough[k] > 0.0f ? sampler_bits(rough[k]) : 0u);
        most_rough = __reduce_max_sync(~0u, most_rough);
        if (lane == 0)
            to[warp] = most_rough;
    };
    auto publish_sum = [&](uint64_t v) {
        const uint32_t low = __reduce_add_sync(~0u, (uint32_t)v & 0xffffffu), high = __reduce_add_sync(~0u, (uint32_t)(v >> 24));
        if (lane == 0)
            s->part[1][warp] = low, s->part[2][warp] = high;
    };
#pragma unroll
    for (int k = 0; k < PER; k++) {
        mass[k] = 0, rough[k] = -1.0f;
        if (tid + k * T < c.n) {
            const float d = SAMPLER_SUB(c.z[k], top_z), e = plain ? __expf(d * per_tau) : weight(c.z[k]);
            mass[k] = sampler_mass(d);
            if (e > 0.0f)
                rough[k] = e * rate[k];
            sum += mass[k];
        }
    }
    publish_rough(s->part[0]);
    publish_sum(sum);
    if (tid == 0)
        s->winner = 0, s->several = 0;
    __syncthreads();
    uint32_t       bar_bits = __reduce_max_sync(~0u, lane < W ? s->part[0][lane] : 0u);
    const uint64_t limit = sampler_threshold(top_p, held_sum<W>(s, lane));
    if (bar_bits == 0) /* temperature took the best one to infinity */
        return best_index;
    for (;;) {
        const float bar = sampler_float(bar_bits) * 0.99f;
        int         mine = 0;
#pragma unroll
        for (int k = 0; k < PER; k++)
            if (rough[k] >= bar)
                s->single = tid + k * T, mine++;
        if (mine > 1)
            s->several = 1;
        const int threads = __syncthreads_count(mine > 0);
        int       winner = s->single;
        if (threads > 1 || s->several) { /* the exact score, whose noise takes FP64, only where rough ones do not decide */
#pragma unroll
            for (int k = 0; k < PER; k++)
                if (rough[k] >= bar) {
                    const uint32_t score = sampler_bits(SAMPLER_DIV(weight(c.z[k]), sampler_exponential(noise[k])));
                    atomicMax((unsigned long long *)&s->winner, (uint64_t)score << 32 | (uint32_t)~(tid + k * T));
                }
            __syncthreads();
            winner = (int)~(uint32_t)s->winner;
        }
        if (64 * tid < width) /* a line of what the winner, most likely, is followed by */
            asm volatile("prefetch.global.L2 [%0];" ::"l"(rows + (size_t)min(winner, last_row) * width + 64 * tid));
        if (winner == best_index) /* the first entry is always kept */
            return winner;
        const uint32_t key = sampler_key(c.read(winner));
        uint32_t       count = 0;
        sum = 0;
#pragma unroll
        for (int k = 0; k < PER; k++) {
            const int      i = tid + k * T;
            const uint32_t own = sampler_key(c.z[k]);
            if (i < c.n && (own > key || (own == key && i <= winner)))
                sum += mass[k], count++;
            if (!(own > key || (own == key && i < winner)))
                rough[k] = -1.0f;
        }
        publish_sum(sum);
        count = __reduce_add_sync(~0u, count);
        if (lane == 0)
            s->part[3][warp] = count;
        publish_rough(s->rough);
        __syncthreads();
        if (held_sum<W>(s, lane) <= limit && __reduce_add_sync(~0u, lane < W ? s->part[3][lane] : 0u) <= most)
            return winner;
        bar_bits = __reduce_max_sync(~0u, lane < W ? s->rough[lane] : 0u);
        if (tid == 0)
            s->winner = 0, s->several = 0;
        __syncthreads();
    }
}

/* ---- what a frame leaves behind --------------------------------------------------------------------------------- */

/* decode.md §3: columns of the slow stack's input. */
static __device__ void embed_column(const struct sample_model &m, const int32_t *column, uint16_t *x)
{
    const bool  semantic = column[0] >= m.semantic_begin && column[0] <= m.semantic_end;
    const float factor   = __fdiv_rn(1.0f, __fsqrt_rn((float)(m.num_codebooks + 1)));
    for (int j = 4 * threadIdx.x; j < m.dim; j += 4 * blockDim.x) { /* widths are multiples of 8 */
        const uint2 text = *(const uint2 *)(m.d_embeddings + (size_t)column[0] * m.dim + j);
        float       e[4] = {}, v[4] = {bf16_low(text.x), bf16_high(text.x), bf16_low(text.y), bf16_high(text.y)};
        if (semantic) {
#pragma unroll 10
            for (int c = 0; c < m.num_codebooks; c++) {
                const uint2 one = *(const uint2 *)(m.d_codebook_embeddings +
                                                   ((size_t)c * m.codebook_size + column[1 + c]) * m.dim + j);
                e[0] = __fadd_rn(e[0], bf16_low(one.x)), e[1] = __fadd_rn(e[1], bf16_high(one.x));
                e[2] = __fadd_rn(e[2], bf16_low(one.y)), e[3] = __fadd_rn(e[3], bf16_high(one.y));
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = round_bf16(__fadd_rn(v[i], round_bf16(e[i])));
            if (semantic && m.scale_embeddings)
                v[i] = round_bf16(__fmul_rn(v[i], factor));
        }
        *(uint2 *)(x + j) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
    }
}

/* The fast stack's first two inputs: the slow hidden state and code 0. */
template <int T> static __device__ void fast_input(const struct sample_model &m, int seq, int code, struct block_shared *s)
{
    uint16_t       *hidden = m.d_fast_x + (size_t)(2 * seq) * m.fast_x_stride, *second = hidden + m.fast_x_stride;
    const uint16_t *x      = m.d_x + (size_t)seq * m.x_stride;
    float           r      = 0.0f;
    if (!m.has_project_in && m.norm_hidden) {
        float ss = 0.0f;
        for (int j = threadIdx.x; j < m.dim; j += T) {
            const float v = __uint_as_float((uint32_t)load_l2_2(x + j) << 16);
            ss += v * v;
        }
        ss = warp_sum(ss);
        if (threadIdx.x % WARP == 0)
            s->warp_a[threadIdx.x / WARP] = __float_as_uint(ss);
        __syncthreads();
        r = threadIdx.x % WARP < T / WARP ? __uint_as_float(s->warp_a[threadIdx.x % WARP]) : 0.0f;
        r = 1.0f / sqrtf(warp_sum(r) / (float)m.dim + m.eps);
    }
    for (int j = threadIdx.x; j < m.fast_dim; j += T) {
        uint16_t v;
        if (m.has_project_in)
            v = load_l2_2(hidden + j);
        else {
            v = load_l2_2(x + j);
            if (m.norm_hidden)
                v = __bfloat16_as_ushort(__float2bfloat16_rn(norm_one(__uint_as_float((uint32_t)v << 16), r, m.d_norm[j])));
            hidden[j] = v;
        }
        if (m.d_hidden)
            m.d_hidden[(size_t)seq * m.fast_dim + j] = v;
        second[j] = m.d_fast_embeddings[(size_t)code * m.fast_dim + j];
    }
}

/* Count the frame, hand it to the host, and embed it for the next slow step. */
static __device__ void finish_frame(const struct sample_model &m, int seq, struct sample_state *st, struct block_shared *s)
{
    const int      width = 1 + m.num_codebooks, tid = threadIdx.x, stopped = (int)load_l2_4(&st->stopped);
    const int      length = (int)load_l2_4(&st->length), history_n = (int)load_l2_4(&st->history_n);
    const unsigned done = load_l2_4(&m.d_finished[1]);
    if (tid < width) {
        const int32_t v = (int32_t)load_l2_4(&st->frame[tid]); /* L1 may hold the line from before the wait */
        s->history[tid] = v;
        const uint64_t word = (uint32_t)(stopped ? -1 : v) | (uint64_t)(done + 1) << 32;
        ((volatile uint64_t *)m.ring_frames)[((size_t)(done % SAMPLE_RING) * m.batch + seq) * width + tid] = word;
        if (!stopped && length > 0)
            st->history[history_n % SAMPLE_WINDOW][tid] = v;
    }
    __syncthreads();
    embed_column(m, s->history, m.d_x + (size_t)seq * m.x_stride);
    if (tid == 0) {
        if (!stopped) {
            st->history_n = history_n + (length > 0);
            st->length    = length + 1;
            st->stopped   = (!m.fixed_length && length > 0 && s->history[0] == m.im_end) ||
                          st->prompt + length + 1 >= m.max_len;
            m.d_pos[seq] = st->prompt + length;
        }
        if (atomicAdd(m.d_finished, 1u) == (unsigned)m.batch - 1) {
            uint64_t now;
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
            m.d_finished[0] = 0;
            m.d_finished[1] = done + 1;
            ((volatile uint64_t *)m.ring_ends)[done % SAMPLE_RING] = (now & 0xffffffffffull) | (uint64_t)(done + 1) << 40;
        }
    }
}

/* ---- the kernel --------------------------------------------------------------------------------------------------- */

template <int PER, int T> static __global__ void __launch_bounds__(T)
sample_kernel(const struct sample_model m, const struct sample_call call)
{
    extern __shared__ uint32_t bits[]; /* penalized candidates, then ties: one bit each */
    __shared__ struct block_shared s;
    __shared__ struct held_shared  held;
    const int seq = blockIdx.x, tid = threadIdx.x, words = (call.n + 31) / 32, codebook = call.codebook;
    struct sample_state *st = m.d_state + seq;

    /* Before the wait: everything that depends on earlier frames alone. Codes of this frame are not touched. */
    const int      length = (int)load_l2_4(&st->length), history_n = (int)load_l2_4(&st->history_n);
    const uint32_t own_id = load_l2_4(&st->id);
    for (int w = tid; w < words; w += T)
        bits[w] = 0;
    if (m.s2) {
        if (tid == 0) {
            int n = 0;
            for (int back = 1; codebook == 0 && back <= SAMPLE_RECENT && back <= history_n; back++) {
                const int32_t token = (int32_t)load_l2_4(&st->history[(history_n - back) % SAMPLE_WINDOW][0]);
                if (token >= m.semantic_begin && token <= m.semantic_end)
                    s.history[n++] = token;
            }
            s.n_history = n;
        }
    } else if (length > 0) {
        const bool quirk = m.faithful && codebook == 0; /* the oldest frame, whole (decode.md §7) */
        const int  n     = quirk ? 1 + m.num_codebooks : m.faithful ? SAMPLE_WINDOW : min(history_n, (int)SAMPLE_WINDOW);
        __syncthreads();
        if (tid < n) {
            const int     row = quirk ? (history_n < SAMPLE_WINDOW ? 0 : history_n % SAMPLE_WINDOW) : tid;
            const int32_t id  = (int32_t)load_l2_4(&st->history[row][quirk ? tid : codebook == 0 ? 0 : 1 + codebook]);
            int i = id - call.first_id;
            if (call.last_id >= 0 && id == call.last_id)
                i = call.n - 1;
            else if (call.last_id >= 0 && i == call.n - 1)
                i = -1;
            if (i >= 0 && i < call.n)
                atomicOr(&bits[i / 32], 1u << (i % 32));
        }
    }
    candidates<PER, T> c;
    c.logits    = call.d_logits + (size_t)seq * call.stride;
    c.penalized = m.s2 || length == 0 ? NULL : bits;
    c.penalty   = m.penalty;
    c.n = call.n, c.first_id = call.first_id, c.last_id = call.last_id, c.by_id = call.by_id;
    auto noise = [&](int i, int draw) {
        return sampler_noise_word(m.seed, own_id, (uint32_t)length, (uint32_t)codebook, (uint32_t)draw, (uint32_t)c.id(i));
    };
    uint32_t word[PER ? PER : 1];
    float    rate[PER ? PER : 1];
    auto     make_noise = [&](int draw) {
#pragma unroll
        for (int k = 0; k < PER; k++) {
            word[k] = tid + k * T < call.n ? noise(tid + k * T, draw) : 0u;
            rate[k] = __fdividef(1.0f, rough_exponential(word[k]));
        }
    };
    if (PER && !m.greedy)
        make_noise(0);
    __syncthreads();
    pdl_wait();
    if (codebook + 1 < m.num_codebooks)
        pdl_trigger(); /* the frame's last kernel ends it: later ones may then rely on the finished frame before they wait */

    uint32_t best = 0, best_index = ~0u, lowest = ~0u;
    if (PER) {
#pragma unroll
        for (int k = 0; k < (PER ? PER : 1); k++)
            c.z[k] = tid + k * T < call.n ? c.read(tid + k * T) : 0.0f;
    }
    c.each([&](int i, float z, int slot) {
        const uint32_t key = sampler_key(z);
        lowest             = min(lowest, key);
        if (best_index == ~0u || key > best)
            best = key, best_index = (uint32_t)i;
    });
    block_best<T / WARP>(&best, &best_index, &s);
    const float top_z = sampler_float(best & 0x80000000u ? best & 0x7fffffffu : ~best);
    int         result = (int)best_index;
    if (!m.greedy && top_z >= -FLT_MAX) {
        uint32_t inverted = ~lowest, unused = 0;
        if constexpr (PER == 0)
            block_best(&inverted, &unused, &s);
        float temperature = m.temperature, top_p = m.top_p;
        for (int draw = 0; draw < 2; draw++) {
            if constexpr (PER > 0) {
                if (draw > 0)
                    make_noise(draw);
                result = draw_held(c, top_z, (int)best_index, temperature, top_p, m.top_k, word, rate,
                                   m.d_fast_embeddings, m.codebook_size - 1, m.fast_dim, &held);
            } else {
                const struct cut cut = find_cut(c, top_z, ~inverted, top_p, m.top_k, bits + words, &s);
                result = cut.kept > 1 ? draw_above(c, cut, top_z, (int)best_index, temperature, draw, noise, &s)
                                      : (int)best_index;
            }
            bool again = false; /* S2: a token of the recent past is drawn once more, more freely */
            for (int h = 0; m.s2 && codebook == 0 && draw == 0 && h < s.n_history; h++)
                again |= s.history[h] == c.id(result);
            if (!again)
                break;
            temperature = 1.0f, top_p = 0.9f;
            __syncthreads();
        }
    }
    int32_t id = c.id(result);
    const int32_t *forced = m.d_forced && length < m.n_forced
                                ? m.d_forced + ((size_t)seq * m.n_forced + length) * (1 + m.num_codebooks) : NULL;
    if (codebook == 0) {
        if (forced)
            id = forced[0];
        const int32_t offset = id - m.semantic_begin;
        const int32_t code   = forced ? forced[1] : offset < 0 ? 0 : min(offset, m.codebook_size - 1);
        __syncthreads();
        if (tid == 0)
            st->frame[0] = id, st->frame[1] = code;
        fast_input<T>(m, seq, code, &s);
        return;
    }
    if (forced)
        id = forced[1 + codebook];
    if (tid == 0)
        st->frame[1 + codebook] = id;
    if (codebook + 1 < m.num_codebooks) {
        for (int j = 4 * tid; j < m.fast_dim; j += 4 * T) /* widths are multiples of 8 */
            *(uint2 *)(m.d_fast_x + (size_t)seq * m.fast_x_stride + j) =
                *(const uint2 *)(m.d_fast_embeddings + (size_t)id * m.fast_dim + j);
        return;
    }
    __syncthreads();
    finish_frame(m, seq, st, &s);
}

static __global__ void embed_kernel(const struct sample_model m, const int32_t *cols, uint16_t *x)
{
    embed_column(m, cols + (size_t)blockIdx.x * (1 + m.num_codebooks), x + (size_t)blockIdx.x * m.x_stride);
}

template <int PER, int T>
static cudaError_t enqueue(const struct sample_model *m, const struct sample_call *call, cudaStream_t stream)
{
    const size_t smem = 2 * (size_t)((call->n + 31) / 32) * sizeof(uint32_t);
    if (smem > 24 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(sample_kernel<PER, T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
        if (e != cudaSuccess)
            return e;
    }
    return launch(sample_kernel<PER, T>, dim3(m->batch), dim3(T), smem, stream, call->pdl, (const struct sample_model)*m,
                  (const struct sample_call)*call);
}

extern "C" cudaError_t sample_launch(const struct sample_model *m, const struct sample_call *call, cudaStream_t stream)
{
    if (call->n < 1 || call->n > SAMPLE_MAX_CANDIDATES || m->num_codebooks > SAMPLE_MAX_CODEBOOKS)
        return cudaErrorInvalidValue;
    if (call->n <= 4 * 256) /* a small block finds room beside the kernel before it, and its barriers are cheap */
        return enqueue<4, 256>(m, call, stream);
    return call->n <= 9 * 512 ? enqueue<9, 512>(m, call, stream) : enqueue<0, THREADS>(m, call, stream);
}

extern "C" cudaError_t sample_embed_launch(const struct sample_model *m, const int32_t *d_cols, int n, uint16_t *d_x,
                                           cudaStream_t stream)
{
    embed_kernel<<<n, 256, 0, stream>>>(*m, d_cols, d_x);
    return cudaGetLastError();
}
