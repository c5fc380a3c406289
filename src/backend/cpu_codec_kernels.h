/* cpu_codec_kernels.h — the inner loops of the codec on the CPU, one table an instruction set.
 *
 * A matrix is packed into panels of `width` outputs: [panel][k pair or k][width], k running over taps then inputs, outputs
 * beyond the last padded with zeros. A tile multiplies up to `rows` rows of the input with one stretch of one panel and
 * adds to FP32 sums. Every sum takes k in rising order (in pairs where the instruction does), whatever the tile. */
#ifndef QSWEEP_BACKEND_CPU_CODEC_KERNELS_H
#define QSWEEP_BACKEND_CPU_CODEC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { CODEC_PANEL_MAX = 48 };

struct codec_kernels {
    const char *name;
    int width; /* outputs a panel, ≤ CODEC_PANEL_MAX */
    int rows;  /* input rows a tile                  */
    int pairs; /* 1: BF16 panels hold k in pairs and inputs are BF16 (an instruction multiplies both) */
    /* c [m][width] += Σ_k x[r·stride + k]·panel[k][·], k < n (n even where pairs). */
    void (*f32)(float *c, const float *x, size_t stride, const float *panel, int n, int m);
    void (*bf16)(float *c, const void *x, size_t stride, const uint16_t *panel, int n, int m);
    void (*i8)(float *c, const float *x, size_t stride, const int8_t *panel, int n, int m);
    /* y = x + sin²(αx)·inverse over `channels`, inverse = 1/(α + 1e-9). */
    void (*snake)(float *y, const float *x, const float *alpha, const float *inverse, int channels);
    /* FP32 → BF16, round to nearest even; for pairs. */
    void (*narrow)(uint16_t *y, const float *x, size_t n);
    /* FP32 → the FP32 value nearest to it that BF16 holds. */
    void (*round)(float *y, const float *x, size_t n);
};

/* Largest error of `snake`'s sin² against the exact value, absolute, for |αx| ≤ 10⁴. */
#define CODEC_SIN2_BOUND 4e-7

/* The best table here that QSWEEP_CPU allows; name NULL = by the environment. NULL if the named one is not usable. */
const struct codec_kernels *codec_kernels_find(const char *name);

#endif
