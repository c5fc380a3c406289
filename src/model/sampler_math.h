/* sampler_math.h — the sampler's arithmetic, one definition for C and CUDA so that both draw the same token from the same
 * logits: every operation is a single IEEE operation rounded to nearest (never fused), and sums are integers, which no
 * order of addition can change.
 *
 * The canonical draw from logits z [n], with the parameters of struct sampling (decode.md §7):
 *   1. S1: for each distinct id in the history, z ← z·r if z < 0, else z / r (FP32).  S2: nothing.
 *   2. sampler_clean(z): NaN becomes −∞, −0 becomes +0, +∞ becomes FLT_MAX.  greedy: the largest z, lowest index: done.
 *   3. m = max z;  mass_j = sampler_mass(z_j − m), an integer in units of 2⁻⁴⁰;  Z = Σ mass_j;
 *      T = sampler_threshold(top_p, Z).
 *   4. Order: larger z first, equal z by lower index.  Keep the longest prefix whose cumulative mass, the entry itself
 *      included, is ≤ T and whose length is ≤ top_k (if top_k > 0); always keep the first entry.
 *   5. For each kept j: e_j = sampler_exp(z_j/τ − m/τ), E_j = sampler_exponential(noise word of j),
 *      score_j = e_j / E_j;  the largest score wins, lowest index on ties.  τ = max(temperature, 1e-5).
 * No normalization of e: dividing all scores by one number moves no maximum. */
#ifndef QSWEEP_MODEL_SAMPLER_MATH_H
#define QSWEEP_MODEL_SAMPLER_MATH_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define SAMPLER_FN static inline __host__ __device__
#else
#define SAMPLER_FN static inline
#endif
#if defined(__clang__) && !defined(__CUDACC__)
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(__CUDA_ARCH__)
#define SAMPLER_MUL(a, b)  __fmul_rn(a, b)
#define SAMPLER_ADD(a, b)  __fadd_rn(a, b)
#define SAMPLER_SUB(a, b)  __fsub_rn(a, b)
#define SAMPLER_DIV(a, b)  __fdiv_rn(a, b)
#define SAMPLER_DMUL(a, b) __dmul_rn(a, b)
#define SAMPLER_DADD(a, b) __dadd_rn(a, b)
#define SAMPLER_DDIV(a, b) __ddiv_rn(a, b)
#else /* ISO C mode: gcc does not contract; clang is told above */
#define SAMPLER_MUL(a, b)  ((float)(a) * (float)(b))
#define SAMPLER_ADD(a, b)  ((float)(a) + (float)(b))
#define SAMPLER_SUB(a, b)  ((float)(a) - (float)(b))
#define SAMPLER_DIV(a, b)  ((float)(a) / (float)(b))
#define SAMPLER_DMUL(a, b) ((double)(a) * (double)(b))
#define SAMPLER_DADD(a, b) ((double)(a) + (double)(b))
#define SAMPLER_DDIV(a, b) ((double)(a) / (double)(b))
#endif

SAMPLER_FN float sampler_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

SAMPLER_FN uint32_t sampler_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

SAMPLER_FN float sampler_clean(float z)
{
    z = SAMPLER_ADD(z, 0.0f);
    return z != z ? sampler_float(0xff800000u) : z > FLT_MAX ? FLT_MAX : z;
}

/* Unsigned integer in the order of the (clean) float: a radix select works on it. */
SAMPLER_FN uint32_t sampler_key(float z)
{
    uint32_t bits = sampler_bits(z);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* exp(d) for d ≤ 0, relative error below 2e-7; 0 below −87. Reduction by multiples of ln 2 (split so that k·hi is exact),
 * then the Taylor polynomial of degree 7 on |r| ≤ ln 2 / 2, whose remainder is 5e-9. */
SAMPLER_FN float sampler_exp(float d)
{
    if (!(d > -87.0f))
        return 0.0f;
    float magic = 12582912.0f; /* 1.5·2²³: adding it rounds to the nearest integer, ties to even */
    float k     = SAMPLER_SUB(SAMPLER_ADD(SAMPLER_MUL(d, 1.44269504f), magic), magic);
    float r     = SAMPLER_SUB(d, SAMPLER_MUL(k, 0.693359375f));
    r           = SAMPLER_SUB(r, SAMPLER_MUL(k, -2.12194440e-4f));
    float y     = 1.98412698e-4f; /* 1/7! */
    y           = SAMPLER_ADD(SAMPLER_MUL(y, r), 1.38888889e-3f);
    y           = SAMPLER_ADD(SAMPLER_MUL(y, r), 8.33333333e-3f);
    y           = SAMPLER_ADD(SAMPLER_MUL(y, r), 4.16666667e-2f);
    y           = SAMPLER_ADD(SAMPLER_MUL(y, r), 1.66666667e-1f);
    y           = SAMPLER_ADD(SAMPLER_MUL(y, r), 0.5f);
    y           = SAMPLER_ADD(SAMPLER_MUL(y, r), 1.0f);
    y           = SAMPLER_ADD(SAMPLER_MUL(y, r), 1.0f);
    return SAMPLER_MUL(y, sampler_float((uint32_t)((int32_t)k + 127) << 23));
}

/* exp(d) in units of 2⁻⁴⁰, truncated: 2²⁴ candidates cannot overflow a sum, and 155,776 lose at most 1.4e-7 of it. */
SAMPLER_FN uint64_t sampler_mass(float d)
{
    return (uint64_t)SAMPLER_MUL(sampler_exp(d), 1099511627776.0f);
}

/* Largest cumulative mass that is kept. top_p ≥ 1 keeps everything. */
SAMPLER_FN uint64_t sampler_threshold(float top_p, uint64_t total)
{
    return top_p >= 1.0f ? UINT64_MAX : (uint64_t)SAMPLER_DMUL(top_p, total);
}

/* Exp(1) variate of a uniform word: −ln((word + ½)/2³²), computed in FP64 and rounded once to FP32; 1.2e-10 … 22.9.
 * The argument is 2^e·m with √½ ≤ m < √2 and ln m = 2(f + f³/3 + f⁵/5 + …), f = (m−1)/(m+1), |f| < 0.172. */
SAMPLER_FN float sampler_exponential(uint32_t word)
{
    double   u = SAMPLER_DADD(word, 0.5);
    uint64_t bits;
    memcpy(&bits, &u, sizeof bits);
    int      e        = (int)(bits >> 52) - 1023;
    uint64_t mantissa = bits & 0xfffffffffffffull;
    int      high     = mantissa >= 0x6a09e667f3bcdull; /* m ≥ √2 */
    bits              = mantissa | ((uint64_t)(high ? 1022 : 1023) << 52);
    e += high - 32;
    double m;
    memcpy(&m, &bits, sizeof m);
    double f = SAMPLER_DDIV(SAMPLER_DADD(m, -1.0), SAMPLER_DADD(m, 1.0)), f2 = SAMPLER_DMUL(f, f), s = 1.0 / 19;
    for (int odd = 17; odd >= 1; odd -= 2)
        s = SAMPLER_DADD(SAMPLER_DMUL(s, f2), SAMPLER_DDIV(1.0, odd));
    double ln = SAMPLER_DADD(SAMPLER_DMUL(e, 0.693147180559945309), SAMPLER_DMUL(SAMPLER_DMUL(2.0, f), s));
    return (float)-ln;
}

/* Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011). */
SAMPLER_FN void sampler_philox(const uint32_t counter[4], uint32_t key0, uint32_t key1, uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ key0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ key1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The noise word of candidate id: word id%4 of the block with counter {id/4, frame, sequence, codebook | draw·2¹⁶} and
 * key {seed low, seed high}. */
SAMPLER_FN uint32_t sampler_noise_word(uint64_t seed, uint32_t sequence, uint32_t frame, uint32_t codebook, uint32_t draw,
                                       uint32_t id)
{
    uint32_t counter[4] = {id / 4, frame, sequence, codebook | draw << 16}, out[4];
    sampler_philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32), out);
    return out[id % 4];
}

#endif
