/* cpu_kernels.h — the inner loops of the CPU backend, one table an instruction set, chosen at run time.
 *
 * Every table is made from the same source (cpu_kernels_body.h) over 16 logical lanes, with one order of summation, so
 * the AVX2 and the AVX-512 table give the same bits; the portable one, where its target has no FMA, rounds a product
 * before it adds it and may differ from them in the last bits. All arrays are dense; weights and caches may have any
 * alignment, x and y that of a float. r() rounds to BF16 where `round` says so. Formats are DT_F32, DT_BF16 and DT_I8.
 * None of these functions starts threads or touches memory outside the arrays named. */
#ifndef QSWEEP_BACKEND_CPU_KERNELS_H
#define QSWEEP_BACKEND_CPU_KERNELS_H

#include "checkpoint/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How scores become weights of the values; see `softmax`. */
struct softmax_args {
    const float *k_scale, *v_scale; /* [n] of an INT8 cache, or NULL */
    float        scale;             /* 1/√head_dim                   */
    bool         fast_round;        /* the fast stack's BF16 scores and probabilities (decode.md §6) */
};

struct cpu_kernels {
    const char *name; /* "portable", "avx2", "avx512" */

    /* y[t·ldy + r] = Σ_k w[r][k]·x[t·ldx + k], w [rows, cols], t < n. The order of a sum depends on cols alone.
     * next, here and in `weigh`: what will be read after this, prefetched near the end; or NULL. */
    void (*dot)(enum dtype format, float *y, size_t ldy, const void *w, int rows, int cols, const float *x, size_t ldx,
                int n, const void *next);
    /* What follows a sum, in place on y [n]: INT8 scales (y = r(r(y)·scale), scales NULL otherwise), bias or NULL, r. */
    void (*finish)(float *y, int n, const void *scales, enum dtype scale_dtype, const float *bias, bool round);
    /* One token of backend.h's rmsnorm; y may be x. */
    void (*rmsnorm)(float *y, const float *x, const float *w, int dim, float eps, bool round);
    /* y = r(r(SiLU(gate))·up) and x = r(x + y), element by element [n]. */
    void (*silu_mul)(float *y, const float *gate, const float *up, size_t n, bool round);
    void (*add)(float *x, const float *y, size_t n, bool round);
    /* Rotate x [dim], pairs (2j, 2j+1) by cos_sin [dim/2][2], in place. */
    void (*rope)(float *x, const float *cos_sin, int dim, bool round);
    /* s [n] products q·k in, weights of v out: e^(s·k_scale·scale − max)·v_scale; returns what remains to be divided by:
     * their sum before v_scale, or 1 where fast_round already did. */
    float (*softmax)(float *s, int n, const struct softmax_args *args);
    /* y[g·ldy + d] = r(Σ_i p[g·ldp + i]·v[i][d] / total[g]) for n_heads g, d < head_dim, i < n in rising order. */
    void (*weigh)(enum dtype format, float *y, size_t ldy, const float *p, size_t ldp, const float *total, int n_heads,
                  const void *v, int n, int head_dim, bool round, const void *next);
    /* y = (add ? y : 0) + widened row [n]; x = r(x·factor). For embeddings. */
    void (*widen)(enum dtype format, float *y, const void *row, size_t n, bool add);
    void (*scale)(float *x, float factor, size_t n, bool round);
    /* Into a cache: BF16, and INT8 with scale absmax/127, round half to even; returns the scale. */
    void (*narrow_bf16)(uint16_t *y, const float *x, size_t n);
    float (*narrow_i8)(int8_t *y, const float *x, size_t n);
    /* Read size bytes as fast as possible; returns something that depends on all of them. For the bandwidth measurement. */
    uint64_t (*read)(const void *bytes, size_t size);
    /* e^x element by element [n]; the tests' handle on the SiLU's and the softmax's exponential. */
    void (*exponential)(float *y, const float *x, size_t n);
};

/* Largest error of `exponential` against the exact value, in units of the result's last place, where that is normal. */
#define CPU_EXP_MAX_ULP 1.5

/* The table of a name, or NULL if this build or machine does not have it. NULL or "" = the best one here, or the one that
 * environment variable QSWEEP_CPU names. */
const struct cpu_kernels *cpu_kernels_find(const char *name);

/* Before a loop of constant length that must become straight code, so that its array becomes registers. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

extern const struct cpu_kernels cpu_kernels_portable;
#if defined(__x86_64__)
extern const struct cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
#endif

#endif
