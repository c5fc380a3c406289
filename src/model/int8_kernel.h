/* int8_kernel.h — what an instruction set provides to int8_rows.c: the two passes over one row. Private to int8_*.c. */
#ifndef QSWEEP_MODEL_INT8_KERNEL_H
#define QSWEEP_MODEL_INT8_KERNEL_H

#include "model/bf16.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* How a weight w becomes the number that is rounded to a code; k is the row's constant. */
enum int8_rule {
    INT8_DIVIDE,        /* f32(w / k)  */
    INT8_MULTIPLY,      /* f32(w · k)  */
    INT8_MULTIPLY_BF16, /* bf16(w · k) */
    INT8_RULE_COUNT
};

struct int8_kernel {
    /* Bits of max|w| over n weights, as F32. NaN and infinity have larger bits than every finite number, so the result
     * is ≥ INT8_NOT_FINITE if one of them is there. */
    uint32_t (*absmax_bf16)(const void *w, size_t n);
    uint32_t (*absmax_f32)(const void *w, size_t n);
    void (*encode_bf16[INT8_RULE_COUNT])(const void *w, size_t n, float k, int8_t *q);
    void (*encode_f32[INT8_RULE_COUNT])(const void *w, size_t n, float k, int8_t *q);
};

#define INT8_NOT_FINITE 0x7f800000u

extern const struct int8_kernel int8_kernel_scalar;
#if defined(__x86_64__)
extern const struct int8_kernel int8_kernel_avx2;
extern const struct int8_kernel int8_kernel_avx512;
#endif

/* Weight i, whatever its alignment. */
static inline float int8_load_bf16(const void *w, size_t i)
{
    bf16_t h;
    memcpy(&h, (const char *)w + i * sizeof h, sizeof h);
    return bf16_to_f32(h);
}

static inline float int8_load_f32(const void *w, size_t i)
{
    float f;
    memcpy(&f, (const char *)w + i * sizeof f, sizeof f);
    return f;
}

/* The code of one weight: the definition, and the tail of the vector loops. */
static inline int8_t int8_code(float w, float k, enum int8_rule rule)
{
    float p = rule == INT8_DIVIDE ? w / k : w * k;
    if (rule == INT8_MULTIPLY_BF16)
        p = bf16_round(p);
    float q = rintf(p); /* to nearest, ties to even: the rounding mode is never changed */
    return (int8_t)(q < -128.0f ? -128.0f : q > 127.0f ? 127.0f : q);
}

#endif
