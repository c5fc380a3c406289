#include "model/int8_rows.h"

#include "model/int8_kernel.h"

enum dtype recipe_scale_dtype(enum recipe recipe, enum dtype weight_dtype)
{
    return weight_dtype == DT_BF16 && recipe != RECIPE_TORCHAO_V2 ? DT_BF16 : DT_F32;
}

const char *recipe_scheme(enum recipe recipe, enum dtype weight_dtype)
{
    bool bf16 = weight_dtype == DT_BF16;
    switch (recipe) {
    case RECIPE_LEGACY:
        return "legacy-fp32"; /* FP32 arithmetic for either kind of weights */
    case RECIPE_TORCHAO:
        return bf16 ? "torchao-v1-bf16" : "torchao-v1-fp32";
    case RECIPE_TORCHAO_V2:
        return bf16 ? "torchao-v2-bf16" : "torchao-v2-fp32";
    default:
        return "none";
    }
}

/* ---- the scalar kernel ---- */

static uint32_t absmax_bf16_scalar(const void *w, size_t n)
{
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, (const char *)w + i * sizeof bits, sizeof bits);
        bits &= 0x7fff;
        most = bits > most ? bits : most;
    }
    return most << 16;
}

static uint32_t absmax_f32_scalar(const void *w, size_t n)
{
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, (const char *)w + i * sizeof bits, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

#define ENCODE_SCALAR(name, load, rule)                                   \
    static void name(const void *w, size_t n, float k, int8_t *q)         \
    {                                                                     \
        for (size_t i = 0; i < n; i++)                                    \
            q[i] = int8_code(load(w, i), k, rule);                        \
    }

ENCODE_SCALAR(divide_bf16, int8_load_bf16, INT8_DIVIDE)
ENCODE_SCALAR(multiply_bf16, int8_load_bf16, INT8_MULTIPLY)
ENCODE_SCALAR(multiply_round_bf16, int8_load_bf16, INT8_MULTIPLY_BF16)
ENCODE_SCALAR(divide_f32, int8_load_f32, INT8_DIVIDE)
ENCODE_SCALAR(multiply_f32, int8_load_f32, INT8_MULTIPLY)

const struct int8_kernel int8_kernel_scalar = {
    .absmax_bf16 = absmax_bf16_scalar,
    .absmax_f32  = absmax_f32_scalar,
    .encode_bf16 = {divide_bf16, multiply_bf16, multiply_round_bf16},
    .encode_f32  = {divide_f32, multiply_f32, NULL}, /* no recipe rounds F32 weights to BF16 */
};

/* ---- choice ---- */

const char *int8_isa_name(enum int8_isa isa)
{
    static const char *const names[INT8_ISA_COUNT] = {"scalar", "avx2", "avx512"};
    return names[isa];
}

bool int8_isa_runs(enum int8_isa isa)
{
#if defined(__x86_64__)
    if (isa == INT8_AVX2)
        return __builtin_cpu_supports("avx2");
    if (isa == INT8_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
#endif
    return isa == INT8_SCALAR;
}

enum int8_isa int8_isa_best(void)
{
    int isa = INT8_ISA_COUNT - 1;
    while (!int8_isa_runs((enum int8_isa)isa))
        isa--;
    return (enum int8_isa)isa;
}

static const struct int8_kernel *kernel_of(enum int8_isa isa)
{
#if defined(__x86_64__)
    if (isa == INT8_AVX512)
        return &int8_kernel_avx512;
    if (isa == INT8_AVX2)
        return &int8_kernel_avx2;
#endif
    return &int8_kernel_scalar;
}

/* ---- rows ---- */

static const float smallest_scale = 0x1p-23f; /* ε of FP32; the scale of an all-zero row */

/* 127.5 is half the width of -128..127. */
static float scale_of(float absmax)
{
    return absmax / 127.5f;
}

int64_t quantize_rows_by(enum int8_isa isa, enum recipe recipe, const void *w, enum dtype weight_dtype, int64_t rows,
                         int64_t cols, int8_t *q, void *scales)
{
    const struct int8_kernel *kernel = kernel_of(isa);
    bool   bf16        = weight_dtype == DT_BF16;
    bool   coarse      = bf16 && recipe != RECIPE_LEGACY; /* s itself is rounded to BF16 */
    bool   store_bf16  = recipe_scale_dtype(recipe, weight_dtype) == DT_BF16;
    size_t n           = (size_t)cols, row_bytes = n * (bf16 ? 2 : 4);
    enum int8_rule rule = recipe == RECIPE_LEGACY               ? INT8_DIVIDE
                          : bf16 && recipe == RECIPE_TORCHAO ? INT8_MULTIPLY_BF16
                                                                : INT8_MULTIPLY;
    for (int64_t i = 0; i < rows; i++) {
        const char *row  = (const char *)w + (size_t)i * row_bytes;
        uint32_t    bits = bf16 ? kernel->absmax_bf16(row, n) : kernel->absmax_f32(row, n);
        if (bits >= INT8_NOT_FINITE)
            return i;
        float absmax;
        memcpy(&absmax, &bits, sizeof absmax);
        float s = coarse ? bf16_round(scale_of(absmax)) : scale_of(absmax);
        s       = s > smallest_scale ? s : smallest_scale;
        float k = rule == INT8_DIVIDE ? s : rule == INT8_MULTIPLY_BF16 ? bf16_round(1.0f / s) : 1.0f / s;
        (bf16 ? kernel->encode_bf16 : kernel->encode_f32)[rule](row, n, k, q + (size_t)i * n);
        if (store_bf16) {
            bf16_t h = bf16_from_f32(s);
            memcpy((char *)scales + (size_t)i * sizeof h, &h, sizeof h);
        } else {
            memcpy((char *)scales + (size_t)i * sizeof s, &s, sizeof s);
        }
    }
    return rows;
}

status_t quantize_rows(enum recipe recipe, const char *name, int64_t first_row, const void *w, enum dtype weight_dtype,
                       int64_t rows, int64_t cols, int8_t *q, void *scales)
{
    if (weight_dtype != DT_BF16 && weight_dtype != DT_F32)
        return FAIL(ST_EUNSUPPORTED, "tensor %s is %s; INT8 is made from BF16 or F32 weights", name, dtype_name(weight_dtype));
    int64_t done = quantize_rows_by(int8_isa_best(), recipe, w, weight_dtype, rows, cols, q, scales);
    if (done < rows)
        return FAIL(ST_EINPUT, "tensor %s, row %lld has a weight that is infinite or not a number", name,
                    (long long)(first_row + done));
    return ST_OK;
}
