/* cpu_kernels_portable.c — the CPU kernels over four 4-lane vectors of the compiler's own kind: SSE2, NEON or whatever
 * the target's baseline has. */
#include "backend/cpu_kernels.h"

#include <string.h>

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

#define EACH(expr)                    \
    do {                              \
        for (int i = 0; i < 4; i++)   \
            r.q[i] = (expr);          \
        return r;                     \
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

VEC vf vf_load(const void *p)
{
    vf r;
    memcpy(&r, p, sizeof r);
    return r;
}

VEC void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

VEC vf vf_load_bf16(const void *p)
{
    vf r;
    h4 h[4];
    memcpy(h, p, sizeof h);
    EACH((f4)(__builtin_convertvector(h[i], u4) << 16));
}

VEC vf vf_load_i8(const void *p)
{
    vf r;
    b4 b[4];
    memcpy(b, p, sizeof b);
    EACH(__builtin_convertvector(__builtin_convertvector(b[i], i4), f4));
}

/* Two roundings: a true FMA would be a call into libm on the x86-64 baseline. The product stands alone so that no
 * compiler contracts it on targets that have the instruction. */
VEC f4 mul_add(f4 a, f4 b, f4 c)
{
    f4 product = a * b;
    return product + c;
}

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

VEC float vf_top(vf v)
{
    float top = v.q[0][0];
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
    for (int i = 0; i < 4; i++)
        h[i] = __builtin_convertvector(bf16_bits(v.q[i]) >> 16, h4);
    memcpy(p, h, sizeof h);
}

VEC void vf_store_i8(int8_t *p, vf v)
{
    b4 b[4];
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
