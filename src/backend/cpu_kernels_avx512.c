/* cpu_kernels_avx512.c — the CPU kernels over one 512-bit register (AVX-512 F, BW, DQ, VL).
 *
 * Neither VNNI nor AVX512_BF16 is used: W8A16 needs FP32 sums of BF16 activations, and vdpbf16ps flushes denormals and
 * rounds in its own way; the conversions they would save hide behind memory anyway (results/cpu-engine.md). */
#include "backend/cpu_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define ISA_NAME     "avx512"
#define ISA_TABLE    cpu_kernels_avx512
#define ISA_TARGET   __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define VEC          ISA_TARGET __attribute__((always_inline)) static inline
/* 32 registers: a row of up to 6 tokens keeps its 4 sums each, a tile 4 × 6. */
#define ROW_TOKENS   6
#define ROW_SUMS(T)  4
#define TILE_ROWS    4
#define TILE_TOKENS  6
#define WEIGH_VECS   8

typedef __m512 vf;

VEC vf vf_zero(void)
{
    return _mm512_setzero_ps();
}

VEC vf vf_set(float f)
{
    return _mm512_set1_ps(f);
}

VEC vf vf_load(const void *p)
{
    return _mm512_loadu_ps(p);
}

VEC void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}

VEC __mmask16 lanes_below(size_t n)
{
    return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff);
}

/* n ≥ 1 elements at most, zeros above; nothing beyond them is touched. */
VEC vf vf_load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(lanes_below(n), p);
}

VEC void vf_store_part(float *p, vf v, size_t n)
{
    _mm512_mask_storeu_ps(p, lanes_below(n), v);
}

VEC vf vf_load_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}

VEC vf vf_load_i8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}

VEC vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

VEC vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

VEC vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

VEC vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

VEC vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

/* A NaN in b survives both. */
VEC vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

VEC vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

VEC vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}

VEC vf vf_xor(vf a, vf b)
{
    return _mm512_xor_ps(a, b);
}

VEC float vf_sum(vf v)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* vf_sum of four vectors at once, the same additions: 15 instructions where four calls take 36. */
VEC void vf_sum4(float *out, vf a, vf b, vf c, vf d)
{
    vf ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    vf cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    vf all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    _mm512_mask_compressstoreu_ps(out, 0x1111, all);
}

VEC float vf_top(vf v)
{
    return _mm512_reduce_max_ps(v);
}

VEC vf vf_near(vf v)
{
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

VEC vf vf_ldexp(vf v, vf n)
{
    return _mm512_scalef_ps(v, n);
}

VEC __m512i bf16_bits(vf v)
{
    __m512i   bits = _mm512_castps_si512(v);
    __m512i   odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i   rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}

VEC vf vf_round(vf v)
{
    return _mm512_castsi512_ps(_mm512_and_si512(bf16_bits(v), _mm512_set1_epi32((int)0xffff0000)));
}

VEC void vf_store_bf16(uint16_t *p, vf v)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_bits(v), 16)));
}

VEC void vf_store_i8(int8_t *p, vf v)
{
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

VEC vf vf_rotate(vf x, vf cos_sin)
{
    vf a = _mm512_mul_ps(x, _mm512_moveldup_ps(cos_sin));
    vf b = _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), _mm512_movehdup_ps(cos_sin));
    return _mm512_mask_sub_ps(_mm512_add_ps(a, b), 0x5555, a, b);
}

#include "backend/cpu_kernels_body.h"
#endif
