/* noise.h — seeded random weights made of integers only, so that one seed gives the same bytes on every machine.
 *
 * Element i of a tensor is base + mult·n(i), in units of 2^−shift, rounded once to BF16 or FP32 (nearest, ties to even).
 * n(i) is the sum of the four 16-bit lanes of a 64-bit hash of (seed, tensor name, i), centred: mean 0, standard deviation
 * √((2³²−1)/3) = 37837.2, bounded by ±131070 (a Gaussian cut at ±3.46 σ: Irwin–Hall of four). No floating-point operation
 * and no libm takes part. */
#ifndef QSWEEP_CHECKPOINT_NOISE_H
#define QSWEEP_CHECKPOINT_NOISE_H

#include "checkpoint/tensor.h"

/* A standard deviation: mult · 2^−shift · 37837.2. */
struct noise_scale {
    int32_t mult; /* 32 … 63, or 0 for none: a step of at most 3 % */
    int     shift;
};

/* Nearest below num/den · 1/√fan (num, den < 2^16, fan < 2^40), found by integer square root. */
struct noise_scale noise_scale_make(uint32_t num, uint32_t den, uint64_t fan);
/* The standard deviation that a scale really gives, for records. */
double noise_scale_sigma(struct noise_scale scale);

/* Rows [begin, end) whose first columns hold a constant (in units of 2^−16) in place of noise. */
struct noise_edge {
    int64_t row_begin, row_end;
    int32_t value;
};

enum { NOISE_MAX_EDGES = 4 };

struct noise {
    uint64_t           key;   /* noise_key()                                             */
    struct noise_scale scale;
    int32_t            base;  /* mean, in units of 2^−16                                  */
    int64_t            cols;  /* row length; 0 when edges are not used                    */
    int64_t            edge_cols;
    struct noise_edge  edges[NOISE_MAX_EDGES];
    int                n_edges;
    int64_t            scaled_row; /* one row whose noise is multiplied by scaled_by/4 …  */
    int32_t            scaled_by;  /* … 0 = no such row                                   */
};

uint64_t noise_key(uint64_t seed, const char *tensor_name);

/* Elements [begin, begin+n) as dtype (DT_BF16 or DT_F32), in the byte order of files. */
void noise_fill(const struct noise *noise, enum dtype dtype, int64_t begin, int64_t n, void *out);

/* value · 2^−shift rounded to nearest even, as bits. The exponent must be in the normal range. */
uint16_t fixed_to_bf16(int64_t value, int shift);
uint32_t fixed_to_f32(int64_t value, int shift);

/* ⌊√v⌋ */
uint64_t integer_sqrt(unsigned __int128 v);

#endif
