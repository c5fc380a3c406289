/* launch.cuh — one way to launch: optionally as a programmatic dependent of the kernel before it. */
#ifndef QSWEEP_KERNELS_LAUNCH_CUH
#define QSWEEP_KERNELS_LAUNCH_CUH

#include <cuda_runtime.h>

/* Every kernel of a frame asks for the same split of an SM's memory, the largest shared part: an SM that has to change it
 * between kernels must first run empty, which undoes their overlap. */
static cudaError_t same_carveout(const void *kernel)
{
    static const void *seen[256];
    for (int i = 0; i < 256; i++) {
        if (seen[i] == kernel)
            return cudaSuccess;
        if (!seen[i]) {
            seen[i] = kernel;
            break;
        }
    }
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

template <typename... Args>
static cudaError_t launch(void (*kernel)(Args...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream, bool pdl,
                          Args... args)
{
    cudaLaunchAttribute attribute = {};
    attribute.id                  = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim            = grid;
    config.blockDim           = block;
    config.dynamicSmemBytes   = smem;
    config.stream             = stream;
    config.attrs              = &attribute;
    config.numAttrs           = pdl ? 1 : 0;
    cudaError_t e             = same_carveout((const void *)kernel);
    return e == cudaSuccess ? cudaLaunchKernelEx(&config, kernel, args...) : e;
}

/* The same with clusters of `cluster` blocks along x (sm_90). */
template <typename... Args>
static cudaError_t launch_cluster(void (*kernel)(Args...), dim3 grid, dim3 block, unsigned cluster, cudaStream_t stream,
                                  bool pdl, Args... args)
{
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id               = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = cluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id                                         = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim            = grid;
    config.blockDim           = block;
    config.stream             = stream;
    config.attrs              = attributes;
    config.numAttrs           = pdl ? 2 : 1;
    cudaError_t e             = same_carveout((const void *)kernel);
    return e == cudaSuccess ? cudaLaunchKernelEx(&config, kernel, args...) : e;
}

#endif
