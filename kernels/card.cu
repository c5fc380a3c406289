#include "kernels/card.h"
#include "kernels/device.cuh"
#include "kernels/launch.cuh"

static __global__ void __launch_bounds__(512) read_kernel(const uint4 *src, size_t n, unsigned *sink)
{
    unsigned     sum = 0;
    const size_t stride = (size_t)gridDim.x * 512;
    size_t       i = (size_t)blockIdx.x * 512 + threadIdx.x;
    for (; i + 7 * stride < n; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] = load_weights(src + i + k * stride);
#pragma unroll
        for (int k = 0; k < 8; k++)
            sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    for (; i < n; i += stride) {
        const uint4 v = load_weights(src + i);
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x12345678u)
        *sink = sum;
}

static __global__ void fill_kernel(uint32_t *dst, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u;
        x ^= x >> 15, x *= 0x2c1b3c6du, x ^= x >> 12;
        dst[i] = x;
    }
}

static __global__ void node_kernel(uint32_t *out, const uint32_t *in, int words)
{
    pdl_trigger();
    pdl_wait();
    if (!words)
        return;
    uint32_t sum = 0;
    for (int i = threadIdx.x * 4; i < words; i += blockDim.x * 4) {
        const uint4 v = load_l2_16(in + i);
        sum += v.x + v.y + v.z + v.w;
    }
    sum = __reduce_add_sync(~0u, sum);
    const int at = blockIdx.x * (words / gridDim.x) + threadIdx.x;
    if ((int)threadIdx.x < words / (int)gridDim.x)
        out[at] = sum;
}

static __global__ void barrier_kernel(unsigned *counter, int rounds)
{
    for (int r = 1; r <= rounds; r++) {
        __syncthreads();
        if (threadIdx.x == 0) {
            const unsigned target = (unsigned)r * gridDim.x;
            unsigned       seen;
            asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(1u) : "memory");
            for (long long spins = 0; spins < 1 << 22; spins++) { /* a card that is shared may never run all blocks */
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
                if ((int)(seen - target) >= 0)
                    break;
            }
        }
        __syncthreads();
    }
}

extern "C" cudaError_t card_read_launch(const void *d_src, size_t bytes, int blocks, unsigned *d_sink, cudaStream_t stream)
{
    read_kernel<<<blocks, 512, 0, stream>>>((const uint4 *)d_src, bytes / 16, d_sink);
    return cudaGetLastError();
}

extern "C" cudaError_t card_fill_launch(void *d_dst, size_t bytes, cudaStream_t stream)
{
    fill_kernel<<<1024, 256, 0, stream>>>((uint32_t *)d_dst, bytes / 4);
    return cudaGetLastError();
}

extern "C" cudaError_t card_node_launch(uint32_t *d_out, const uint32_t *d_in, int words, int blocks, bool pdl,
                                        cudaStream_t stream)
{
    return launch(node_kernel, dim3((unsigned)blocks), dim3(256), 0, stream, pdl, d_out, d_in, words);
}

extern "C" cudaError_t card_barrier_launch(unsigned *d_counter, int rounds, int blocks, cudaStream_t stream)
{
    void *args[] = {&d_counter, &rounds};
    return cudaLaunchCooperativeKernel((const void *)barrier_kernel, dim3((unsigned)blocks), dim3(256), args, 0, stream);
}
