/* cuda.h — what the files of the CUDA backend share: the device handle and the one adapter from CUDA errors. */
#ifndef QSWEEP_BACKEND_CUDA_H
#define QSWEEP_BACKEND_CUDA_H

#include "backend/backend.h"

#include <cuda_runtime_api.h>

struct cuda_block; /* one allocation */
struct cuda_blas;  /* cuBLAS, opened when first wanted */

struct cuda {
    struct backend_base base;
    int                 device, sms, capability; /* capability: 90 = sm_90 */
    cudaStream_t        stream;
    struct cuda_block  *blocks;
    size_t              n_blocks, capacity;
    struct cuda_blas   *blas;
    bool                blas_tried;
    void               *d_scratch[3];     /* grown on demand: indices, BF16 activations, BF16 weights of a product */
    size_t              scratch_bytes[3];
};

static inline struct cuda *cuda_of(struct backend *be)
{
    return (struct cuda *)(void *)be;
}

static inline status_t cuda_check(cudaError_t e, const char *call, const char *file, int line)
{
    if (e == cudaSuccess)
        return ST_OK;
    return status_raise(e == cudaErrorMemoryAllocation ? ST_EOOM : ST_EDEVICE, file, line, "%s: %s", call,
                        cudaGetErrorString(e));
}
#define CUDA_DO(call) cuda_check((call), #call, __FILE__, __LINE__)

/* A device buffer of at least `bytes`, kept for the next call with the same slot. Its contents are undefined. */
status_t cuda_scratch(struct cuda *cu, int slot, size_t bytes, void **d_out);

/* ---- cuda_blas.c: products of many tokens by the vendor's library ---- */

/* y [n][ldy] FP32 = x [n][k] · W[rows][k]ᵀ, both BF16 row-major. False when there is no cuBLAS here. */
bool cuda_blas_bf16(struct cuda *cu, float *d_y, int ldy, const void *d_w, int rows, const void *d_x, int k, int n);
void cuda_blas_close(struct cuda_blas *blas);

/* ---- cuda_graph.c: the fused engine; see backend.h ---- */
status_t    graph_open(struct backend *be, const struct weights *w, const struct decode_options *options, struct fused **out);
void        graph_close(struct fused *f);
status_t    graph_prefill(struct fused *f, const struct prompt *prompts);
status_t    graph_run(struct fused *f, int n, int32_t *frames, double *step_ms, int *n_done);
size_t      graph_frame_bytes(const struct fused *f, int context);
const char *graph_engine(const struct fused *f);

/* Kinds of kernels in a frame, for the benchmark that leaves one out or runs one alone. */
enum graph_stage {
    STAGE_SLOW_QKV, STAGE_SLOW_ATTENTION, STAGE_SLOW_O, STAGE_SLOW_GATE_UP, STAGE_SLOW_DOWN, STAGE_HEAD, STAGE_SLOW_SAMPLE,
    STAGE_FAST_QKV, STAGE_FAST_ATTENTION, STAGE_FAST_O, STAGE_FAST_GATE_UP, STAGE_FAST_DOWN, STAGE_RESIDUAL_HEAD,
    STAGE_RESIDUAL_SAMPLE, STAGE_COUNT
};
const char *graph_stage_name(enum graph_stage stage);
/* Median device time of a frame of the stages in `mask` alone, over `runs` graphs of one frame; *n_kernels of them. The
 * results are meaningless, the state of the engine is spoilt: prefill before decoding again. */
status_t graph_stage_us(struct fused *f, unsigned mask, int runs, double *us, int *n_kernels);

#endif
