/* The row passes with AVX2 and AVX-512. Bits equal the scalar kernel's: division and product are IEEE operations, BF16
 * rounding is the same integer arithmetic, conversion rounds to nearest even, and packing saturates at -128 and 127. */
#include "model/int8_kernel.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2   __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw")))
#define INLINE static inline __attribute__((always_inline))

/* ---- AVX2: 32 weights a step ---- */

AVX2 INLINE __m256 load_bf16_avx2(const void *w, size_t i)
{
    __m128i h = _mm_loadu_si128((const __m128i *)((const char *)w + 2 * i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

AVX2 INLINE __m256 load_f32_avx2(const void *w, size_t i)
{
    return _mm256_loadu_ps((const float *)(const void *)((const char *)w + 4 * i));
}

AVX2 INLINE __m256i round_avx2(__m256 w, __m256 k, enum int8_rule rule)
{
    __m256 p = rule == INT8_DIVIDE ? _mm256_div_ps(w, k) : _mm256_mul_ps(w, k);
    if (rule == INT8_MULTIPLY_BF16) {
        __m256i bits = _mm256_castps_si256(p);
        __m256i odd  = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        bits         = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        p            = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000u)));
    }
    return _mm256_cvtps_epi32(p);
}

#define ENCODE_AVX2(name, type, rule)                                                                       \
    AVX2 static void name(const void *w, size_t n, float k, int8_t *q)                                      \
    {                                                                                                       \
        const __m256  vk    = _mm256_set1_ps(k);                                                            \
        /* Packing works within 128-bit lanes; this puts the groups of four codes back in order. */         \
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);                                    \
        size_t        i     = 0;                                                                            \
        for (; i + 32 <= n; i += 32) {                                                                      \
            __m256i a  = round_avx2(load_##type##_avx2(w, i), vk, rule);                                    \
            __m256i b  = round_avx2(load_##type##_avx2(w, i + 8), vk, rule);                                \
            __m256i c  = round_avx2(load_##type##_avx2(w, i + 16), vk, rule);                               \
            __m256i d  = round_avx2(load_##type##_avx2(w, i + 24), vk, rule);                               \
            __m256i ab = _mm256_packs_epi32(a, b), cd = _mm256_packs_epi32(c, d);                           \
            __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);                 \
            _mm256_storeu_si256((__m256i *)(void *)(q + i), bytes);                                         \
        }                                                                                                   \
        for (; i < n; i++)                                                                                  \
            q[i] = int8_code(int8_load_##type(w, i), k, rule);                                              \
    }

ENCODE_AVX2(divide_bf16_avx2, bf16, INT8_DIVIDE)
ENCODE_AVX2(multiply_bf16_avx2, bf16, INT8_MULTIPLY)
ENCODE_AVX2(multiply_round_bf16_avx2, bf16, INT8_MULTIPLY_BF16)
ENCODE_AVX2(divide_f32_avx2, f32, INT8_DIVIDE)
ENCODE_AVX2(multiply_f32_avx2, f32, INT8_MULTIPLY)

AVX2 static uint32_t absmax_bf16_avx2(const void *w, size_t n)
{
    const __m256i mask = _mm256_set1_epi16(0x7fff);
    __m256i       most = _mm256_setzero_si256();
    size_t        i    = 0;
    for (; i + 16 <= n; i += 16) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)((const char *)w + 2 * i));
        most         = _mm256_max_epu16(most, _mm256_and_si256(bits, mask));
    }
    uint16_t lanes[16];
    uint32_t best = int8_kernel_scalar.absmax_bf16((const char *)w + 2 * i, n - i);
    _mm256_storeu_si256((__m256i *)(void *)lanes, most);
    for (int lane = 0; lane < 16; lane++)
        best = (uint32_t)lanes[lane] << 16 > best ? (uint32_t)lanes[lane] << 16 : best;
    return best;
}

AVX2 static uint32_t absmax_f32_avx2(const void *w, size_t n)
{
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i       most = _mm256_setzero_si256();
    size_t        i    = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)((const char *)w + 4 * i));
        most         = _mm256_max_epu32(most, _mm256_and_si256(bits, mask));
    }
    uint32_t lanes[8];
    uint32_t best = int8_kernel_scalar.absmax_f32((const char *)w + 4 * i, n - i);
    _mm256_storeu_si256((__m256i *)(void *)lanes, most);
    for (int lane = 0; lane < 8; lane++)
        best = lanes[lane] > best ? lanes[lane] : best;
    return best;
}

const struct int8_kernel int8_kernel_avx2 = {
    .absmax_bf16 = absmax_bf16_avx2,
    .absmax_f32  = absmax_f32_avx2,
    .encode_bf16 = {divide_bf16_avx2, multiply_bf16_avx2, multiply_round_bf16_avx2},
    .encode_f32  = {divide_f32_avx2, multiply_f32_avx2, NULL},
};

/* ---- AVX-512: 16 weights a step ---- */

AVX512 INLINE __m512 load_bf16_avx512(const void *w, size_t i)
{
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)((const char *)w + 2 * i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

AVX512 INLINE __m512 load_f32_avx512(const void *w, size_t i)
{
    return _mm512_loadu_ps((const char *)w + 4 * i);
}

AVX512 INLINE __m512i round_avx512(__m512 w, __m512 k, enum int8_rule rule)
{
    __m512 p = rule == INT8_DIVIDE ? _mm512_div_ps(w, k) : _mm512_mul_ps(w, k);
    if (rule == INT8_MULTIPLY_BF16) {
        __m512i bits = _mm512_castps_si512(p);
        __m512i odd  = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        bits         = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        p            = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000u)));
    }
    return _mm512_cvtps_epi32(p);
}

#define ENCODE_AVX512(name, type, rule)                                                                          \
    AVX512 static void name(const void *w, size_t n, float k, int8_t *q)                                         \
    {                                                                                                            \
        const __m512 vk = _mm512_set1_ps(k);                                                                     \
        size_t       i  = 0;                                                                                     \
        for (; i + 16 <= n; i += 16) {                                                                           \
            __m128i bytes = _mm512_cvtsepi32_epi8(round_avx512(load_##type##_avx512(w, i), vk, rule));           \
            _mm_storeu_si128((__m128i *)(void *)(q + i), bytes);                                                 \
        }                                                                                                        \
        for (; i < n; i++)                                                                                       \
            q[i] = int8_code(int8_load_##type(w, i), k, rule);                                                   \
    }

ENCODE_AVX512(divide_bf16_avx512, bf16, INT8_DIVIDE)
ENCODE_AVX512(multiply_bf16_avx512, bf16, INT8_MULTIPLY)
ENCODE_AVX512(multiply_round_bf16_avx512, bf16, INT8_MULTIPLY_BF16)
ENCODE_AVX512(divide_f32_avx512, f32, INT8_DIVIDE)
ENCODE_AVX512(multiply_f32_avx512, f32, INT8_MULTIPLY)

AVX512 static uint32_t absmax_bf16_avx512(const void *w, size_t n)
{
    const __m512i mask = _mm512_set1_epi16(0x7fff);
    __m512i       most = _mm512_setzero_si512();
    size_t        i    = 0;
    for (; i + 32 <= n; i += 32)
        most = _mm512_max_epu16(most, _mm512_and_si512(_mm512_loadu_si512((const char *)w + 2 * i), mask));
    uint16_t lanes[32];
    uint32_t best = int8_kernel_scalar.absmax_bf16((const char *)w + 2 * i, n - i);
    _mm512_storeu_si512(lanes, most);
    for (int lane = 0; lane < 32; lane++)
        best = (uint32_t)lanes[lane] << 16 > best ? (uint32_t)lanes[lane] << 16 : best;
    return best;
}

AVX512 static uint32_t absmax_f32_avx512(const void *w, size_t n)
{
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    __m512i       most = _mm512_setzero_si512();
    size_t        i    = 0;
    for (; i + 16 <= n; i += 16)
        most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512((const char *)w + 4 * i), mask));
    uint32_t best = int8_kernel_scalar.absmax_f32((const char *)w + 4 * i, n - i);
    uint32_t here = _mm512_reduce_max_epu32(most);
    return here > best ? here : best;
}

const struct int8_kernel int8_kernel_avx512 = {
    .absmax_bf16 = absmax_bf16_avx512,
    .absmax_f32  = absmax_f32_avx512,
    .encode_bf16 = {divide_bf16_avx512, multiply_bf16_avx512, multiply_round_bf16_avx512},
    .encode_f32  = {divide_f32_avx512, multiply_f32_avx512, NULL},
};

#endif
