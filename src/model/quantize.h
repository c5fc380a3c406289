/* quantize.h — per-row symmetric INT8 of linear weights, bit-exact to three recipes (spec: checkpoint.md §6.2, §6.3). */
#ifndef QSWEEP_MODEL_QUANTIZE_H
#define QSWEEP_MODEL_QUANTIZE_H

#include "base/status.h"
#include "checkpoint/checkpoint.h"

#include <stdbool.h>

/* Dtype of the stored scales of a recipe for BF16 weights: BF16 (legacy, torchao) or F32 (torchao-v2). */
enum dtype recipe_scale_dtype(enum recipe recipe, enum dtype weight_dtype);

/* Quantize rows × cols weights (weight_dtype DT_BF16 or DT_F32) to q [rows, cols] and scales [rows] of
 * recipe_scale_dtype(). Runtime-dispatched SIMD; the scalar twin is quantize_rows_ref. No alignment is required of w. */
status_t quantize_rows(enum recipe recipe, const void *w, enum dtype weight_dtype, int64_t rows, int64_t cols,
                       int8_t *q, void *scales);
void quantize_rows_ref(enum recipe recipe, const void *w, enum dtype weight_dtype, int64_t rows, int64_t cols,
                       int8_t *q, void *scales);

/* True for the tensors that quantization replaces: the weight of every Linear (spec §6.1), never embeddings or norms. */
bool quantize_applies(const struct model_config *config, const char *tensor_name);

struct quantize_report {
    size_t bytes_before, bytes_after; /* Σ tensor bytes */
    double seconds;
    char   output[4096];
};

/* Write a quantized copy of the checkpoint to dir (created; must not exist: ST_EUSAGE): model.safetensors, config.json
 * with a `quantization` object, the other files copied. Streaming: peak memory is threads × one tensor's rows, far under
 * the model. Nothing half-written is left behind under dir's name. n_threads 0 = all allowed cores. */
status_t quantize_checkpoint(const struct checkpoint *c, enum recipe recipe, const char *dir, int n_threads,
                             struct quantize_report *report);

#endif
