#include "checkpoint/noise.h"

#include <assert.h>
#include <string.h>

static const uint64_t GOLDEN = 0x9e3779b97f4a7c15u;

/* The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose output bits each depend on all input bits. */
static inline uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline int32_t centred_sum(uint64_t h)
{
    return (int32_t)((h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48)) - 2 * 65535;
}

uint64_t noise_key(uint64_t seed, const char *tensor_name)
{
    uint64_t h = mix(seed + GOLDEN);
    for (const char *c = tensor_name; *c; c++)
        h = mix(h ^ (unsigned char)*c) + GOLDEN;
    return h;
}

uint64_t integer_sqrt(unsigned __int128 v)
{
    unsigned __int128 root = 0;
    for (int bit = 63; bit >= 0; bit--) {
        unsigned __int128 candidate = root | (unsigned __int128)1 << bit;
        if (candidate <= v / candidate)
            root = candidate;
    }
    return (uint64_t)root;
}

struct noise_scale noise_scale_make(uint32_t num, uint32_t den, uint64_t fan)
{
    /* mult = ⌊ num·2^shift / (den · 37837.2 · √fan) ⌋ for the first shift that makes it at least 32; the square of the
     * quotient is num²·4^shift·3 / (den²·(2³²−1)·fan), whose two sides stay below 2^124. */
    unsigned __int128 up = (unsigned __int128)num * num * 3, down = (unsigned __int128)den * den * 0xffffffffu * fan;
    assert(num > 0 && num < 1 << 16 && den > 0 && den < 1 << 16 && fan > 0 && fan < 1ull << 40);
    for (int shift = 0; shift <= 45; shift++) {
        uint64_t mult = integer_sqrt((up << (2 * shift)) / down);
        if (mult >= 32)
            return (struct noise_scale){(int32_t)mult, shift};
    }
    return (struct noise_scale){1, 45};
}

double noise_scale_sigma(struct noise_scale scale)
{
    double sigma = scale.mult * 37837.226;
    for (int i = 0; i < scale.shift; i++)
        sigma /= 2;
    return sigma;
}

/* Significant bits of |value| rounded to `bits` (nearest even); *exponent of the leading one. value ≠ 0. */
static inline uint64_t significand(uint64_t magnitude, int bits, int *exponent)
{
    int top   = 63 - __builtin_clzll(magnitude), drop = top - (bits - 1);
    *exponent = top;
    if (drop <= 0)
        return magnitude << -drop;
    uint64_t kept = magnitude >> drop, rest = magnitude & ((1ull << drop) - 1), half = 1ull << (drop - 1);
    kept += rest > half || (rest == half && kept & 1);
    if (kept >> bits) {
        kept >>= 1;
        ++*exponent;
    }
    return kept;
}

uint16_t fixed_to_bf16(int64_t value, int shift)
{
    if (value == 0)
        return 0;
    int      exponent;
    uint64_t kept = significand(value < 0 ? -(uint64_t)value : (uint64_t)value, 8, &exponent);
    int      biased = exponent - shift + 127;
    assert(biased > 0 && biased < 255);
    return (uint16_t)((value < 0 ? 0x8000u : 0) | (unsigned)biased << 7 | (kept & 0x7f));
}

uint32_t fixed_to_f32(int64_t value, int shift)
{
    if (value == 0)
        return 0;
    int      exponent;
    uint64_t kept = significand(value < 0 ? -(uint64_t)value : (uint64_t)value, 24, &exponent);
    int      biased = exponent - shift + 127;
    assert(biased > 0 && biased < 255);
    return (value < 0 ? 0x80000000u : 0) | (uint32_t)biased << 23 | (uint32_t)(kept & 0x7fffff);
}

static inline void store(void *out, enum dtype dtype, int64_t i, int64_t value, int shift)
{
    unsigned char *p = (unsigned char *)out + i * (dtype == DT_BF16 ? 2 : 4);
    uint32_t       bits = dtype == DT_BF16 ? fixed_to_bf16(value, shift) : fixed_to_f32(value, shift);
    p[0] = (unsigned char)bits;
    p[1] = (unsigned char)(bits >> 8);
    if (dtype != DT_BF16) {
        p[2] = (unsigned char)(bits >> 16);
        p[3] = (unsigned char)(bits >> 24);
    }
}

/* A run of plain noise. base is brought to the noise's unit: shift ≥ 16 for every σ below 18. */
static void fill_run(const struct noise *noise, enum dtype dtype, int64_t begin, int64_t n, void *out, int32_t factor)
{
    int     shift = noise->scale.shift < 16 ? 16 : noise->scale.shift;
    int64_t mult  = (int64_t)noise->scale.mult << (shift - noise->scale.shift), base = (int64_t)noise->base << (shift - 16);
    mult *= factor; /* in quarters, with two more bits of shift */
    base *= 4;
    for (int64_t i = 0; i < n; i++)
        store(out, dtype, i, base + mult * centred_sum(mix(noise->key + (uint64_t)(begin + i) * GOLDEN)), shift + 2);
}

/* The edge value of a row, or NULL. */
static const struct noise_edge *edge_of(const struct noise *noise, int64_t row)
{
    for (int i = 0; i < noise->n_edges; i++)
        if (row >= noise->edges[i].row_begin && row < noise->edges[i].row_end)
            return &noise->edges[i];
    return NULL;
}

void noise_fill(const struct noise *noise, enum dtype dtype, int64_t begin, int64_t n, void *out)
{
    size_t element = dtype_size(dtype);
    if (noise->cols == 0) {
        fill_run(noise, dtype, begin, n, out, 4);
        return;
    }
    for (int64_t at = begin, end = begin + n; at < end;) {
        int64_t row = at / noise->cols, row_end = (row + 1) * noise->cols, stop = row_end < end ? row_end : end;
        int64_t edge_end = row * noise->cols + noise->edge_cols;
        const struct noise_edge *edge = edge_of(noise, row);
        for (; edge && at < stop && at < edge_end; at++)
            store((unsigned char *)out + (size_t)(at - begin) * element, dtype, 0, edge->value, 16);
        fill_run(noise, dtype, at, stop - at, (unsigned char *)out + (size_t)(at - begin) * element,
                 noise->scaled_by && row == noise->scaled_row ? noise->scaled_by : 4);
        at = stop;
    }
}
