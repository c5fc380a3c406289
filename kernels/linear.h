/* linear.h — y = W·x for 1 … 64 tokens at once: the matrix products of the decode frame, with what stands before and
 * after them fused in (RMSNorm; INT8 scale, bias, residual, SwiGLU).
 *
 * Shapes   W [rows, cols] packed as tensor-core fragments (below); x [tokens][stride] BF16; y BF16.
 * Packing  A tile is 16 fragment rows: 16 rows of W (fold 1), 8 rows × two halves of the columns (fold 2, for matrices
 *          with too few rows to fill the card), or 8 gate and 8 up rows (paired). A fragment is 16 fragment rows × 16
 *          columns, one mma.m16n8k16 operand, 16 bytes a lane in BF16 and 8 in INT8. The 8 warps of a block split the
 *          columns; a warp's fragments of a tile are contiguous: index ((tile·8 + warp)·ksteps + kstep).
 *          Inside a pair of ksteps lane t (of 4) holds columns 8t…8t+7 of the 32, so that x is read 16 bytes a lane.
 *          Rows and columns are padded with zeros to whole tiles and ksteps.
 * Sums     FP32 in an order fixed by the packing alone: a token's result does not depend on the other tokens.
 * Contract x rows are padded with zeros to linear_padded_cols() and 16-byte aligned. */
#ifndef QSWEEP_KERNELS_LINEAR_H
#define QSWEEP_KERNELS_LINEAR_H

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LINEAR_WARPS = 8, LINEAR_MAX_TOKENS = 32 /* a block; more tokens take more blocks */ };

struct linear {
    const void  *d_w;     /* fragments                                          */
    const float *d_scale; /* [tiles·16] by fragment row, NULL for BF16          */
    const float *d_bias;  /* [tiles·16] by fragment row, or NULL                */
    int rows, cols;       /* of W; paired: rows = gate rows = up rows           */
    int tiles, fold, ksteps; /* ksteps of one warp and tile, even               */
    int int8, paired;
};

/* Choose the packing of a rows × cols matrix; fills everything but the pointers. normed: its calls have a d_norm. */
void linear_plan(struct linear *l, int rows, int cols, bool int8, bool paired, bool normed);
size_t linear_weight_bytes(const struct linear *l); /* of the fragments            */
size_t linear_scale_bytes(const struct linear *l);  /* FP32, one a fragment row    */
int    linear_padded_cols(int cols);                /* elements in a row of x      */

/* Pack rows [row0, row0 + n_rows) of a row-major matrix (BF16 or INT8 at any 2/1-byte alignment) into l: fragment rows of
 * output rows [to, to + n_rows). part: 0 = gate or plain, 1 = up. d_scales [n_rows] BF16 or FP32. */
cudaError_t linear_pack_launch(const struct linear *l, void *d_w, float *d_scale, const void *d_rows,
                               const void *d_scales, bool scales_f32, int to, int n_rows, int part, cudaStream_t stream);

enum linear_end { LINEAR_STORE, LINEAR_ADD /* y = round(y + W·x) */, LINEAR_SWIGLU };

struct linear_call {
    const uint16_t *d_x;         /* token i at d_x + (i·x_step + x_first)·x_stride */
    int             x_stride, x_step, x_first;
    const float    *d_norm;      /* [padded cols] RMSNorm weight (zero padded) or NULL */
    float           eps;
    uint16_t       *d_y;         /* token i at d_y + (i·y_step)·y_stride           */
    int             y_stride, y_step;
    enum linear_end end;
    int             tokens;
    bool            pdl, late;     /* late: let the next kernel start after our wait, not after our loads */
};

/* Enqueue; never synchronizes. cudaErrorInvalidValue for a shape no kernel takes. */
cudaError_t linear_launch(const struct linear *l, const struct linear_call *call, cudaStream_t stream);
/* Raise the kernels' shared-memory limits; once per device. */
cudaError_t linear_prepare(void);

#ifdef __cplusplus
}
#endif
#endif
