/* cpu_kernels_avx2.c — the CPU kernels over a pair of 256-bit registers (AVX2 and FMA). */
#include "backend/cpu_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define ISA_NAME     "avx2"
#define ISA_TABLE    cpu_kernels_avx2
#define ISA_TARGET   __attribute__((target("avx2,fma")))
#define VEC          ISA_TARGET __attribute__((always_inline)) static inline
/* 16 registers, two for a logical vector: 8 hold one token's four sums, 12 two sums of three tokens or a 2 × 3 tile. */
#define ROW_TOKENS   3
#define ROW_SUMS(T)  ((T) == 1 ? 4 : 2)
#define TILE_ROWS    2
#define TILE_TOKENS  3
#define WEIGH_VECS   2

typedef struct {
    __m256 lo, hi;
} vf;

#define EACH(expr_lo, expr_hi) ((vf){(expr_lo), (expr_hi)})

VEC vf vf_zero(void)
{
    return EACH(_mm256_setzero_ps(), _mm256_setzero_ps());
}

VEC vf vf_set(float f)
{
    return EACH(_mm256_set1_ps(f), _mm256_set1_ps(f));
}

VEC vf vf_load(const void *p)
{
    return EACH(_mm256_loadu_ps(p), _mm256_loadu_ps((const float *)p + 8));
}

VEC void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}

/* A mask of the lanes below n. */
VEC __m256i lanes_below(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* n ≥ 1 elements at most, zeros above; nothing beyond them is touched. */
VEC vf vf_load_part(const float *p, size_t n)
{
    if (n >= 16)
        return vf_load(p);
    if (n <= 8)
        return EACH(_mm256_maskload_ps(p, lanes_below(n)), _mm256_setzero_ps());
    return EACH(_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, lanes_below(n - 8)));
}

VEC void vf_store_part(float *p, vf v, size_t n)
{
    if (n >= 16)
        vf_store(p, v);
    else if (n <= 8)
        _mm256_maskstore_ps(p, lanes_below(n), v.lo);
    else {
        _mm256_storeu_ps(p, v.lo);
        _mm256_maskstore_ps(p + 8, lanes_below(n - 8), v.hi);
    }
}

VEC __m256 widen_bf16(const char *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}

VEC vf vf_load_bf16(const void *p)
{
    return EACH(widen_bf16(p), widen_bf16((const char *)p + 16));
}

VEC __m256 widen_i8(const char *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}

VEC vf vf_load_i8(const void *p)
{
    return EACH(widen_i8(p), widen_i8((const char *)p + 8));
}

VEC vf vf_fma(vf a, vf b, vf c)
{
    return EACH(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}

VEC vf vf_add(vf a, vf b)
{
    return EACH(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi));
}

VEC vf vf_sub(vf a, vf b)
{
    return EACH(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi));
}

VEC vf vf_mul(vf a, vf b)
{
    return EACH(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi));
}

VEC vf vf_div(vf a, vf b)
{
    return EACH(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi));
}

/* A NaN in b survives both. */
VEC vf vf_max(vf a, vf b)
{
    return EACH(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi));
}

VEC vf vf_min(vf a, vf b)
{
    return EACH(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi));
}

VEC vf vf_abs(vf a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return EACH(_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi));
}

VEC vf vf_xor(vf a, vf b)
{
    return EACH(_mm256_xor_ps(a.lo, b.lo), _mm256_xor_ps(a.hi, b.hi));
}

VEC float vf_sum(vf v)
{
    __m256 a = _mm256_add_ps(v.lo, v.hi);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* vf_sum of four vectors at once, the same additions. */
VEC void vf_sum4(float *out, vf a, vf b, vf c, vf d)
{
    __m256 a8 = _mm256_add_ps(a.lo, a.hi), b8 = _mm256_add_ps(b.lo, b.hi);
    __m256 c8 = _mm256_add_ps(c.lo, c.hi), d8 = _mm256_add_ps(d.lo, d.hi);
    __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a8, b8, 0x20), _mm256_permute2f128_ps(a8, b8, 0x31));
    __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c8, d8, 0x20), _mm256_permute2f128_ps(c8, d8, 0x31));
    __m256 all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee)); /* a a c c | b b d d */
    all = _mm256_add_ps(all, _mm256_permute_ps(all, 0xb1));
    __m128 ac = _mm256_castps256_ps128(all), bd = _mm256_extractf128_ps(all, 1);
    _mm_storeu_ps(out, _mm_shuffle_ps(_mm_unpacklo_ps(ac, bd), _mm_unpackhi_ps(ac, bd), 0x44));
}

VEC float vf_top(vf v)
{
    __m256 a = _mm256_max_ps(v.lo, v.hi);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

VEC vf vf_near(vf v)
{
    return EACH(_mm256_round_ps(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* Two factors, because 2ⁿ alone leaves the range of a float for n < −126 and n = 128. The first product is exact. */
VEC __m256 ldexp_half(__m256 v, __m256 n)
{
    __m256i i = _mm256_cvtps_epi32(n), a = _mm256_srai_epi32(i, 1), b = _mm256_sub_epi32(i, a);
    __m256i bias = _mm256_set1_epi32(127);
    v = _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(a, bias), 23)));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(b, bias), 23)));
}

VEC vf vf_ldexp(vf v, vf n)
{
    return EACH(ldexp_half(v.lo, n.lo), ldexp_half(v.hi, n.hi));
}

VEC __m256i bf16_bits(__m256 v)
{
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}

VEC vf vf_round(vf v)
{
    __m256i mask = _mm256_set1_epi32((int)0xffff0000);
    return EACH(_mm256_castsi256_ps(_mm256_and_si256(bf16_bits(v.lo), mask)),
                _mm256_castsi256_ps(_mm256_and_si256(bf16_bits(v.hi), mask)));
}

VEC void vf_store_bf16(uint16_t *p, vf v)
{
    __m256i lo = _mm256_srli_epi32(bf16_bits(v.lo), 16), hi = _mm256_srli_epi32(bf16_bits(v.hi), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
    _mm256_storeu_si256((void *)p, packed);
}

VEC void vf_store_i8(int8_t *p, vf v)
{
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((void *)p, bytes);
}

VEC __m256 rotate_half(__m256 x, __m256 cs)
{
    __m256 a = _mm256_mul_ps(x, _mm256_moveldup_ps(cs));
    return _mm256_addsub_ps(a, _mm256_mul_ps(_mm256_permute_ps(x, 0xb1), _mm256_movehdup_ps(cs)));
}

VEC vf vf_rotate(vf x, vf cos_sin)
{
    return EACH(rotate_half(x.lo, cos_sin.lo), rotate_half(x.hi, cos_sin.hi));
}

#include "backend/cpu_kernels_body.h"
#endif
