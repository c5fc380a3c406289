/* codec_rows.cuh — rows of the codec in their forms (codec.h), and what follows a convolution's sum. */
#ifndef QSWEEP_KERNELS_CODEC_ROWS_CUH
#define QSWEEP_KERNELS_CODEC_ROWS_CUH

#include "kernels/codec.h"

#include <cuda_bf16.h>

namespace
{

constexpr int WARP = 32;

/* Index of value i's high half in SPLIT rows; its low half stands 32 further on. */
__device__ inline size_t split_at(size_t i)
{
    return i / 32 * 64 + i % 32;
}

__device__ inline float rows_get(int form, const void *rows, size_t i)
{
    const __nv_bfloat16 *h = static_cast<const __nv_bfloat16 *>(rows);
    if (form == CODEC_FORM_PLAIN)
        return static_cast<const float *>(rows)[i];
    if (form == CODEC_FORM_BF16)
        return __bfloat162float(h[i]);
    return __bfloat162float(h[split_at(i)]) + __bfloat162float(h[split_at(i) + 32]);
}

__device__ inline void rows_put(int form, void *rows, size_t i, float v)
{
    __nv_bfloat16 *h = static_cast<__nv_bfloat16 *>(rows);
    if (form == CODEC_FORM_PLAIN) {
        static_cast<float *>(rows)[i] = v;
        return;
    }
    const __nv_bfloat16 high = __float2bfloat16_rn(v);
    if (form == CODEC_FORM_BF16) {
        h[i] = high;
        return;
    }
    h[split_at(i)] = high;
    h[split_at(i) + 32] = __float2bfloat16_rn(v - __bfloat162float(high));
}

/* Values i and i + 1, i even. */
__device__ inline void rows_put2(int form, void *rows, size_t i, float2 v)
{
    __nv_bfloat16 *h = static_cast<__nv_bfloat16 *>(rows);
    if (form == CODEC_FORM_PLAIN) {
        *reinterpret_cast<float2 *>(static_cast<float *>(rows) + i) = v;
        return;
    }
    const __nv_bfloat162 high = __float22bfloat162_rn(v);
    if (form == CODEC_FORM_BF16) {
        *reinterpret_cast<__nv_bfloat162 *>(h + i) = high;
        return;
    }
    const float2 back = __bfloat1622float2(high);
    *reinterpret_cast<__nv_bfloat162 *>(h + split_at(i)) = high;
    *reinterpret_cast<__nv_bfloat162 *>(h + split_at(i) + 32) =
        __float22bfloat162_rn(make_float2(v.x - back.x, v.y - back.y));
}

__device__ inline float activate(int act, float v)
{
    if (act == CODEC_ACT_GELU)
        return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
    if (act == CODEC_ACT_TANH)
        return tanhf(v);
    return v;
}

/* v + sin²(αv)·inverse. The fast sine after a reduction by π in two parts (its sign is squared away) errs by less than
 * 5e-7. */
__device__ inline float snake(float v, float alpha, float inverse)
{
    const float z = alpha * v, turns = rintf(z * 0.318309886f);
    const float s = __sinf(fmaf(turns, 8.74227766e-8f, fmaf(turns, -3.14159274f, z)));
    return fmaf(s * s, inverse, v);
}

/* One output r at element `at`. */
__device__ inline float value_of(const codec_conv_args &a, float sum, int r, size_t at)
{
    if (a.d_scales)
        sum *= a.d_scales[r];
    if (a.d_bias)
        sum += a.d_bias[r];
    sum = activate(a.act, sum);
    if (a.d_gamma)
        sum *= a.d_gamma[r];
    if (a.d_residual)
        sum += a.d_residual[at];
    return sum;
}

__device__ inline float snake_of(const codec_conv_args &a, float v, int r)
{
    return a.d_alpha ? snake(v, a.d_alpha[r % a.channels], a.d_alpha[a.channels + r % a.channels]) : v;
}

/* Two neighbouring outputs r and r + 1, r even: what does not depend on the row is read once. */
struct column_pair {
    float2 scale, bias, gamma, alpha, inverse;

    __device__ inline column_pair(const codec_conv_args &a, int r)
    {
        const float2 one = make_float2(1, 1), zero = make_float2(0, 0);
        scale = a.d_scales ? __ldg(reinterpret_cast<const float2 *>(a.d_scales + r)) : one;
        bias = a.d_bias ? __ldg(reinterpret_cast<const float2 *>(a.d_bias + r)) : zero;
        gamma = a.d_gamma ? __ldg(reinterpret_cast<const float2 *>(a.d_gamma + r)) : one;
        alpha = inverse = zero;
        if (a.d_alpha) {
            const int c = r % a.channels;
            alpha = __ldg(reinterpret_cast<const float2 *>(a.d_alpha + c));
            inverse = __ldg(reinterpret_cast<const float2 *>(a.d_alpha + a.channels + c));
        }
    }

    template <int FORM> __device__ inline void finish(const codec_conv_args &a, float2 v, size_t at) const
    {
        v = make_float2(fmaf(v.x, scale.x, bias.x), fmaf(v.y, scale.y, bias.y));
        if (a.act == CODEC_ACT_GELU) /* the one activation of wide layers: more would multiply the code by 64 */
            v = make_float2(activate(CODEC_ACT_GELU, v.x), activate(CODEC_ACT_GELU, v.y));
        v = make_float2(v.x * gamma.x, v.y * gamma.y);
        if (a.d_residual) {
            const float2 old = *reinterpret_cast<const float2 *>(a.d_residual + at);
            v = make_float2(v.x + old.x, v.y + old.y);
        }
        if (a.d_y)
            *reinterpret_cast<float2 *>(a.d_y + at) = v;
        if (a.d_next) {
            if (a.d_alpha)
                v = make_float2(snake(v.x, alpha.x, inverse.x), snake(v.y, alpha.y, inverse.y));
            rows_put2(FORM, a.d_next, at, v);
        }
    }
};

} // namespace

#endif
