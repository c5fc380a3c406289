/* int8_rows.h — one row of weights at a time to INT8 codes and a scale, bit-exact to three recipes.
 *
 * For a row w with a = max|w|, f32(·) and bf16(·) rounding to nearest even, and q clamped to -128..127:
 *   legacy      (fishaudio/fish-speech, tools/llama/quantize.py)   s = max(f32(a / 127.5), 2^-23), q = rne(f32(w / s)); BF16
 *               weights store bf16(s), so the stored scale is not exactly the one that made the codes
 *   torchao     (pytorch/ao 0.15–0.17, Int8WeightOnlyConfig v1)    s = max(bf16(a / 127.5), 2^-23), q = rne(bf16(w · bf16(1 / s)))
 *   torchao-v2  (pytorch/ao 0.18+)                                 same s, but q = rne(f32(w · f32(1 / s))), s stored as F32
 * With F32 weights every bf16(·) is f32(·) and scales are F32. The zero point is 0. */
#ifndef QSWEEP_MODEL_INT8_ROWS_H
#define QSWEEP_MODEL_INT8_ROWS_H

#include "base/status.h"
#include "checkpoint/config.h"
#include "checkpoint/tensor.h"

#include <stdbool.h>
#include <stdint.h>

/* Dtype of the stored scales: BF16 for BF16 weights by legacy and torchao, else F32. */
enum dtype recipe_scale_dtype(enum recipe recipe, enum dtype weight_dtype);

/* Name of the arithmetic, for metadata: "legacy-fp32", "torchao-v1-bf16", "torchao-v2-bf16", …-fp32. */
const char *recipe_scheme(enum recipe recipe, enum dtype weight_dtype);

/* Quantize w [rows, cols] (weight_dtype DT_BF16 or DT_F32, else ST_EUNSUPPORTED; any alignment) to q [rows, cols] and
 * scales [rows] of recipe_scale_dtype(). A weight that is not finite is ST_EINPUT naming `name` and its row, counted from
 * first_row. */
status_t quantize_rows(enum recipe recipe, const char *name, int64_t first_row, const void *w, enum dtype weight_dtype,
                       int64_t rows, int64_t cols, int8_t *q, void *scales);

/* The same work by each instruction set; all give the same bits. SCALAR is the definition, spelled out. */
enum int8_isa { INT8_SCALAR, INT8_AVX2, INT8_AVX512, INT8_ISA_COUNT };
const char   *int8_isa_name(enum int8_isa isa);
bool          int8_isa_runs(enum int8_isa isa); /* built in, and this CPU has it */
enum int8_isa int8_isa_best(void);

/* As quantize_rows, with isa, which must run here. Returns rows, or the index of the first row with a weight that is not
 * finite (rows before it are done). recipe is not RECIPE_NONE; weight_dtype is DT_BF16 or DT_F32. */
int64_t quantize_rows_by(enum int8_isa isa, enum recipe recipe, const void *w, enum dtype weight_dtype, int64_t rows,
                         int64_t cols, int8_t *q, void *scales);

#endif
