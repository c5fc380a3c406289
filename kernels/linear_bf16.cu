/* linear_bf16.cu — the matrix products of linear.h for BF16 weights. */
#include "kernels/linear.cuh"

extern "C" cudaError_t linear_bf16_launch(const struct linear *l, const struct linear_call *call, cudaStream_t stream)
{
    return dispatch<0>(l, call, stream);
}
