#include "kernels/device.cuh"
#include "kernels/quantize.h"

enum { THREADS = 256 };

static __device__ __forceinline__ float weight(const void *w, bool bf16, size_t i)
{
    return bf16 ? __uint_as_float((uint32_t)((const uint16_t *)w)[i] << 16) : ((const float *)w)[i];
}

/* A block per row: the largest |w| by its bits (NaN and infinity are above every number), then the codes. Every operation
 * is a single one rounded to nearest, as on the host. */
static __global__ void __launch_bounds__(THREADS) quantize_kernel(enum quantize_rule rule, const void *w, bool bf16, int cols,
                                                                  int8_t *q, void *scales, int *bad)
{
    __shared__ uint32_t part[THREADS / WARP];
    const size_t at  = (size_t)blockIdx.x * cols;
    uint32_t     top = 0;
    for (int j = threadIdx.x; j < cols; j += THREADS)
        top = max(top, __float_as_uint(weight(w, bf16, at + j)) & 0x7fffffffu);
    top = __reduce_max_sync(~0u, top);
    if (threadIdx.x % WARP == 0)
        part[threadIdx.x / WARP] = top;
    __syncthreads();
    top = __reduce_max_sync(~0u, part[threadIdx.x % (THREADS / WARP)]);
    if (top >= 0x7f800000u) {
        if (threadIdx.x == 0)
            atomicMin(bad, (int)blockIdx.x);
        return;
    }
    const bool coarse = bf16 && rule != QUANTIZE_LEGACY;
    float      s      = __fdiv_rn(__uint_as_float(top), 127.5f);
    s                 = coarse ? round_bf16(s) : s;
    s                 = fmaxf(s, 1.1920928955078125e-07f);
    const bool  multiply_bf16 = bf16 && rule == QUANTIZE_TORCHAO;
    const float reciprocal    = multiply_bf16 ? round_bf16(__fdiv_rn(1.0f, s)) : __fdiv_rn(1.0f, s);
    for (int j = threadIdx.x; j < cols; j += THREADS) {
        const float v = weight(w, bf16, at + j);
        float       p = rule == QUANTIZE_LEGACY ? __fdiv_rn(v, s) : __fmul_rn(v, reciprocal);
        if (multiply_bf16)
            p = round_bf16(p);
        q[at + j] = (int8_t)fminf(fmaxf(rintf(p), -128.0f), 127.0f);
    }
    if (threadIdx.x == 0) {
        if (bf16 && rule != QUANTIZE_TORCHAO_V2)
            ((__nv_bfloat16 *)scales)[blockIdx.x] = __float2bfloat16_rn(s);
        else
            ((float *)scales)[blockIdx.x] = s;
    }
}

extern "C" cudaError_t quantize_rows_launch(enum quantize_rule rule, const void *d_w, bool bf16, int rows, int cols,
                                            int8_t *d_q, void *d_scales, int *d_bad, cudaStream_t stream)
{
    quantize_kernel<<<rows, THREADS, 0, stream>>>(rule, d_w, bf16, cols, d_q, d_scales, d_bad);
    return cudaGetLastError();
}
