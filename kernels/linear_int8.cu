/* linear_int8.cu — the matrix products of linear.h for INT8 weights (W8A16). */
#include "kernels/linear.cuh"

extern "C" cudaError_t linear_int8_launch(const struct linear *l, const struct linear_call *call, cudaStream_t stream)
{
    return dispatch<1>(l, call, stream);
}
