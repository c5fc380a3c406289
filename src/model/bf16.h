/* bf16.h — conversions between FP32 and bfloat16, round to nearest, ties to even. */
#ifndef QSWEEP_MODEL_BF16_H
#define QSWEEP_MODEL_BF16_H

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16_t;

static inline float bf16_to_f32(bf16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float    f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline bf16_t bf16_from_f32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) /* NaN keeps its sign, becomes quiet */
        return (bf16_t)((bits >> 16) | 0x40u);
    return (bf16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* The FP32 value nearest to f that bfloat16 can hold. */
static inline float bf16_round(float f)
{
    return bf16_to_f32(bf16_from_f32(f));
}

#endif
