#include "model/floats.h"

#include "model/bf16.h"

#include <string.h>

bool float_dtype(enum dtype dtype)
{
    return dtype == DT_F32 || dtype == DT_BF16 || dtype == DT_F16 || dtype == DT_F64;
}

static float half_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = h >> 10 & 0x1fu, m = h & 0x3ffu;
    if (e == 0) { /* zero or subnormal: m · 2⁻²⁴ is exact */
        float v = (float)m * 5.9604644775390625e-8f;
        return sign ? -v : v;
    }
    uint32_t bits = sign | (e == 31 ? 0x7f800000u : (e + 112u) << 23) | m << 13;
    float    f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

float float_element(const struct tensor *t, size_t i)
{
    const char *at = (const char *)t->data + i * dtype_size(t->dtype);
    uint16_t    h;
    double      d;
    float       f;
    switch (t->dtype) {
    case DT_F32: memcpy(&f, at, sizeof f); return f;
    case DT_BF16: memcpy(&h, at, sizeof h); return bf16_to_f32(h);
    case DT_F16: memcpy(&h, at, sizeof h); return half_to_f32(h);
    default: memcpy(&d, at, sizeof d); return (float)d;
    }
}
