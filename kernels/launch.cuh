/* launch.cuh — one way to launch: optionally as a programmatic dependent of the kernel before it. */
#ifndef QSWEEP_KERNELS_LAUNCH_CUH
#define QSWEEP_KERNELS_LAUNCH_CUH

#include <cuda_runtime.h>

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
    return cudaLaunchKernelEx(&config, kernel, args...);
}

#endif
