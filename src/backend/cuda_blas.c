/* cuBLAS, opened when it is first wanted (loading it takes longer than a short decode) and never needed: without it our own
 * kernels multiply. The few declarations are ours, after NVIDIA's cuBLAS documentation, so that no header is needed. */
#include "backend/cuda.h"
#include "base/log.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct cublas_context *cublas_handle;
enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUDA_R_32F = 0, CUDA_R_16BF = 14, CUBLAS_COMPUTE_32F = 68, CUBLAS_GEMM_DEFAULT = -1 };

struct cuda_blas {
    void         *library;
    cublas_handle handle;
    int (*create)(cublas_handle *);
    int (*destroy)(cublas_handle);
    int (*set_stream)(cublas_handle, cudaStream_t);
    int (*gemm_ex)(cublas_handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a, int atype,
                   int lda, const void *b, int btype, int ldb, const void *beta, void *c, int ctype, int ldc, int compute,
                   int algorithm);
};

static void *find(void *library, const char *name)
{
    return dlsym(library, name);
}

static struct cuda_blas *open_blas(cudaStream_t stream)
{
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"};
    struct cuda_blas        *b       = calloc(1, sizeof *b);
    for (size_t i = 0; b && !b->library && i < sizeof names / sizeof *names; i++)
        b->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!b || !b->library) {
        free(b);
        return NULL;
    }
    *(void **)&b->create     = find(b->library, "cublasCreate_v2");
    *(void **)&b->destroy    = find(b->library, "cublasDestroy_v2");
    *(void **)&b->set_stream = find(b->library, "cublasSetStream_v2");
    *(void **)&b->gemm_ex    = find(b->library, "cublasGemmEx");
    if (!b->create || !b->destroy || !b->set_stream || !b->gemm_ex || b->create(&b->handle) != 0 ||
        b->set_stream(b->handle, stream) != 0) {
        cuda_blas_close(b);
        return NULL;
    }
    return b;
}

void cuda_blas_close(struct cuda_blas *b)
{
    if (!b)
        return;
    if (b->handle)
        b->destroy(b->handle);
    dlclose(b->library);
    free(b);
}

bool cuda_blas_bf16(struct cuda *cu, float *d_y, int ldy, const void *d_w, int rows, const void *d_x, int k, int n)
{
    const float one = 1.0f, zero = 0.0f;
    if (!cu->blas_tried) {
        cu->blas_tried = true;
        cu->blas       = open_blas(cu->stream);
        if (!cu->blas)
            log_info("no cuBLAS here; our own kernels multiply");
    }
    /* Column-major: yᵀ [rows × n] = (Wᵀ)ᵀ · xᵀ. */
    return cu->blas && cu->blas->gemm_ex(cu->blas->handle, CUBLAS_OP_T, CUBLAS_OP_N, rows, n, k, &one, d_w, CUDA_R_16BF, k,
                                         d_x, CUDA_R_16BF, k, &zero, d_y, CUDA_R_32F, ldy, CUBLAS_COMPUTE_32F,
                                         CUBLAS_GEMM_DEFAULT) == 0;
}
