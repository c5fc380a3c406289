/* cpu_kernels_portable.c — the CPU kernels over four 4-lane vectors of the compiler's own kind: SSE2, NEON or whatever
 * the target's baseline has. Only the widening of narrow weights is spelt out for those two, which compilers take apart
 * into single bytes (4 times the time of a product), and NEON's fused multiply-add, which C has no cheap name for. */
#include "backend/cpu_kernels.h"

#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ISA_NAME     "portable"
#define ISA_TABLE    cpu_kernels_portable
#define ISA_TARGET
#define VEC          __attribute__((always_inline)) static inline
#define ROW_TOKENS   2
#define ROW_SUMS(T)  ((T) == 1 ? 2 : 1)
#define TILE_ROWS    1
#define TILE_TOKENS  3
#define WEIGH_VECS   1

typedef float    f4 __attribute__((vector_size(16)));
typedef int32_t  i4 __attribute__((vector_size(16)));
typedef uint32_t u4 __attribute__((vector_size(16)));
typedef uint16_t h4 __attribute__((vector_size(8)));
typedef int8_t   b4 __attribute__((vector_size(4)));

typedef struct {
    f4 q[4];
} vf;

#define EACH(expr)                             \
    do {                                       \
        UNROLL for (int i = 0; i < 4; i++)     \
            r.q[i] = (expr);                   \
        return r;                              \
    } while (0)

VEC vf vf_set(float f)
{
    vf r;
    EACH(((f4){f, f, f, f}));
}

VEC vf vf_zero(void)
{
    return vf_set(0);
}

/* Quarter by quarter: a copy of the whole struct would keep it in memory. */
VEC f4 load_quad(const char *p)
{
    f4 q;
    memcpy(&q, p, sizeof q);
    return q;
}

VEC vf vf_load(const void *p)
{
    vf r;
    EACH(load_quad((const char *)p + 16 * i));
}

VEC void vf_store(float *p, vf v)
{
    UNROLL
    for (int i = 0; i < 4; i++)
        memcpy(p + 4 * i, &v.q[i], sizeof v.q[i]);
}

/* n ≥ 1 elements at most, zeros above; nothing beyond them is touched. */
VEC vf vf_load_part(const float *p, size_t n)
{
    float buffer[16] = {0};
    if (n >= 16)
        return vf_load(p);
    memcpy(buffer, p, n * sizeof *p);
    return vf_load(buffer);
}

VEC void vf_store_part(float *p, vf v, size_t n)
{
    float buffer[16];
    if (n >= 16) {
        vf_store(p, v);
        return;
    }
    vf_store(buffer, v);
    memcpy(p, buffer, n * sizeof *p);
}

#if defined(__SSE2__)
VEC vf vf_load_bf16(const void *p)
{
    __m128i lo = _mm_loadu_si128(p), hi = _mm_loadu_si128((const __m128i *)p + 1), zero = _mm_setzero_si128();
    return (vf){{(f4)_mm_unpacklo_epi16(zero, lo), (f4)_mm_unpackhi_epi16(zero, lo), (f4)_mm_unpacklo_epi16(zero, hi),
                 (f4)_mm_unpackhi_epi16(zero, hi)}};
}

/* The two upper of four equal bytes or words become the sign's copies. */
VEC f4 widen_i8(__m128i twice)
{
    return (f4)_mm_cvtepi32_ps(_mm_srai_epi32(twice, 24));
}

VEC vf vf_load_i8(const void *p)
{
    __m128i v = _mm_loadu_si128(p), lo = _mm_unpacklo_epi8(v, v), hi = _mm_unpackhi_epi8(v, v);
    return (vf){{widen_i8(_mm_unpacklo_epi16(lo, lo)), widen_i8(_mm_unpackhi_epi16(lo, lo)),
                 widen_i8(_mm_unpacklo_epi16(hi, hi)), widen_i8(_mm_unpackhi_epi16(hi, hi))}};
}
#elif defined(__aarch64__)
VEC vf vf_load_bf16(const void *p)
{
    uint16x8_t lo = vreinterpretq_u16_u8(vld1q_u8(p)), hi = vreinterpretq_u16_u8(vld1q_u8((const uint8_t *)p + 16));
    return (vf){{(f4)vshll_n_u16(vget_low_u16(lo), 16), (f4)vshll_high_n_u16(lo, 16), (f4)vshll_n_u16(vget_low_u16(hi), 16),
                 (f4)vshll_high_n_u16(hi, 16)}};
}

VEC vf vf_load_i8(const void *p)
{
    int8x16_t v = vld1q_s8(p);
    int16x8_t lo = vmovl_s8(vget_low_s8(v)), hi = vmovl_high_s8(v);
    return (vf){{(f4)vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), (f4)vcvtq_f32_s32(vmovl_high_s16(lo)),
                 (f4)vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), (f4)vcvtq_f32_s32(vmovl_high_s16(hi))}};
}
#else
VEC vf vf_load_bf16(const void *p)
{
    vf       r;
    uint16_t h[16];
    memcpy(h, p, sizeof h);
    EACH((f4)((u4){h[4 * i], h[4 * i + 1], h[4 * i + 2], h[4 * i + 3]} << 16));
}

VEC vf vf_load_i8(const void *p)
{
    vf     r;
    int8_t b[16];
    memcpy(b, p, sizeof b);
    EACH(((f4){b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]}));
}
#endif

#if defined(__aarch64__)
VEC f4 mul_add(f4 a, f4 b, f4 c)
{
    return (f4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
/* Two roundings: a true FMA would be a call into libm on the x86-64 baseline. */
VEC f4 mul_add(f4 a, f4 b, f4 c)
{
    f4 product = a * b;
    return product + c;
}
#endif

VEC vf vf_fma(vf a, vf b, vf c)
{
    vf r;
    EACH(mul_add(a.q[i], b.q[i], c.q[i]));
}

VEC vf vf_add(vf a, vf b)
{
    vf r;
    EACH(a.q[i] + b.q[i]);
}

VEC vf vf_sub(vf a, vf b)
{
    vf r;
    EACH(a.q[i] - b.q[i]);
}

VEC vf vf_mul(vf a, vf b)
{
    vf r;
    EACH(a.q[i] * b.q[i]);
}

VEC vf vf_div(vf a, vf b)
{
    vf r;
    EACH(a.q[i] / b.q[i]);
}

VEC f4 choose(i4 mask, f4 a, f4 b)
{
    return (f4)((mask & (i4)a) | (~mask & (i4)b));
}

/* A NaN in b survives both. */
VEC vf vf_max(vf a, vf b)
{
    vf r;
    EACH(choose(a.q[i] > b.q[i], a.q[i], b.q[i]));
}

VEC vf vf_min(vf a, vf b)
{
    vf r;
    EACH(choose(a.q[i] < b.q[i], a.q[i], b.q[i]));
}

VEC vf vf_abs(vf a)
{
    vf r;
    EACH((f4)((i4)a.q[i] & 0x7fffffff));
}

VEC vf vf_xor(vf a, vf b)
{
    vf r;
    EACH((f4)((i4)a.q[i] ^ (i4)b.q[i]));
}

VEC float vf_sum(vf v)
{
    f4 a = (v.q[0] + v.q[2]) + (v.q[1] + v.q[3]);
    return (a[0] + a[2]) + (a[1] + a[3]);
}

VEC void vf_sum4(float *out, vf a, vf b, vf c, vf d)
{
    out[0] = vf_sum(a);
    out[1] = vf_sum(b);
    out[2] = vf_sum(c);
    out[3] = vf_sum(d);
}

VEC float vf_top(vf v)
{
    float top = v.q[0][0];
    UNROLL
    for (int i = 1; i < 16; i++)
        top = v.q[i / 4][i % 4] > top ? v.q[i / 4][i % 4] : top;
    return top;
}

/* Adding 1.5·2²³ leaves no bits for a fraction: the sum is rounded to nearest even; right for |v| < 2²². */
VEC f4 near_quad(f4 v)
{
    f4 sum = v + 12582912.0f;
    return sum - 12582912.0f;
}

VEC vf vf_near(vf v)
{
    vf r;
    EACH(near_quad(v.q[i]));
}

/* Two factors, because 2ⁿ alone leaves the range of a float for n < −126 and n = 128. The first product is exact. */
VEC f4 ldexp_quad(f4 v, f4 n)
{
    i4 i = __builtin_convertvector(n, i4), a = i >> 1, b = i - a;
    return v * (f4)((u4)(a + 127) << 23) * (f4)((u4)(b + 127) << 23);
}

VEC vf vf_ldexp(vf v, vf n)
{
    vf r;
    EACH(ldexp_quad(v.q[i], n.q[i]));
}

VEC u4 bf16_bits(f4 v)
{
    u4 bits = (u4)v, rounded = bits + 0x7fff + ((bits >> 16) & 1), nan = (u4)(v != v);
    return (nan & (bits | 0x400000)) | (~nan & rounded);
}

VEC vf vf_round(vf v)
{
    vf r;
    EACH((f4)(bf16_bits(v.q[i]) & 0xffff0000));
}

VEC void vf_store_bf16(uint16_t *p, vf v)
{
    h4 h[4];
    UNROLL
    for (int i = 0; i < 4; i++)
        h[i] = __builtin_convertvector(bf16_bits(v.q[i]) >> 16, h4);
    memcpy(p, h, sizeof h);
}

VEC void vf_store_i8(int8_t *p, vf v)
{
    b4 b[4];
    UNROLL
    for (int i = 0; i < 4; i++)
        b[i] = __builtin_convertvector(__builtin_convertvector(near_quad(v.q[i]), i4), b4);
    memcpy(p, b, sizeof b);
}

VEC f4 rotate_quad(f4 x, f4 cs)
{
    f4 c = {cs[0], cs[0], cs[2], cs[2]}, s = {-cs[1], cs[1], -cs[3], cs[3]}, swapped = {x[1], x[0], x[3], x[2]};
    f4 a = x * c, b = swapped * s;
    return a + b;
}

VEC vf vf_rotate(vf x, vf cos_sin)
{
    vf r;
    EACH(rotate_quad(x.q[i], cos_sin.q[i]));
}

#include "backend/cpu_kernels_body.h"
