/* quantize.h — per-row symmetric INT8 on the device, bit for bit what model/int8_rows.c makes on the host. */
#ifndef QSWEEP_KERNELS_QUANTIZE_H
#define QSWEEP_KERNELS_QUANTIZE_H

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum quantize_rule { QUANTIZE_LEGACY, QUANTIZE_TORCHAO, QUANTIZE_TORCHAO_V2 };

/* Rows × cols weights, BF16 or FP32 with the alignment of one element, to q [rows, cols] and scales [rows]: BF16 for BF16
 * weights under LEGACY and TORCHAO, else FP32. *d_bad (initially rows) becomes the first row that holds a NaN or an
 * infinity; such rows are left alone. Enqueues and returns. */
cudaError_t quantize_rows_launch(enum quantize_rule rule, const void *d_w, bool bf16, int rows, int cols, int8_t *d_q,
                                 void *d_scales, int *d_bad, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
