/* device.cuh — what every kernel of the decode frame uses: PDL, cache-exact loads, BF16, warp sums.
 *
 * Programmatic dependent launch (sm_90+): a kernel may start while its predecessor still runs. Everything before
 * pdl_wait() may touch only what no kernel still in flight writes (weights, constants; past state where noted); the
 * predecessor's results are visible after it. On older cards both calls are nothing and kernels run one after another. */
#ifndef QSWEEP_KERNELS_DEVICE_CUH
#define QSWEEP_KERNELS_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

enum { WARP = 32 };

static __device__ __forceinline__ void pdl_wait(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Let the next kernel start; it still waits for our end in its pdl_wait(). */
static __device__ __forceinline__ void pdl_trigger(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* 16 bytes of weights, read once. Relaxed and volatile: the compiler sinks plain .nc loads below griddepcontrol.wait,
 * which undoes the prefetch (measured: 2.5 instead of 2.1 us a node on an H200). */
static __device__ __forceinline__ uint4 load_weights(const void *p)
{
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

/* Activations and state: volatile, so that they stay where they are written, but ordinary loads; gpu-scope ones cost a
 * frame 1 %. Coherent after pdl_wait() with all that the kernels before wrote. */
static __device__ __forceinline__ uint4 load_l2_16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
static __device__ __forceinline__ uint2 load_l2_8(const void *p)
{
    uint2 v;
    asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
}
static __device__ __forceinline__ uint32_t load_l2_4(const void *p)
{
    uint32_t v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
static __device__ __forceinline__ float load_l2_f32(const float *p)
{
    return __uint_as_float(load_l2_4(p));
}
static __device__ __forceinline__ uint16_t load_l2_2(const void *p)
{
    uint16_t v;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    return v;
}
static __device__ __forceinline__ float load_l2_bf16(const __nv_bfloat16 *p)
{
    return __uint_as_float((uint32_t)load_l2_2(p) << 16);
}

static __device__ __forceinline__ float bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}
static __device__ __forceinline__ float bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ float round_bf16(float v)
{
    return __bfloat162float(__float2bfloat16_rn(v));
}
static __device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    uint32_t       u;
    memcpy(&u, &v, sizeof u);
    return u;
}

/* Same order of additions in every lane: the sum is the same bits everywhere. */
static __device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int o = WARP / 2; o; o >>= 1)
        v += __shfl_xor_sync(~0u, v, o);
    return v;
}
static __device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int o = WARP / 2; o; o >>= 1)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

/* The reference's RMSNorm of one value: round(x·r), then round(·w). */
static __device__ __forceinline__ float norm_one(float x, float r, float w)
{
    return round_bf16(__fmul_rn(round_bf16(__fmul_rn(x, r)), w));
}

#endif
