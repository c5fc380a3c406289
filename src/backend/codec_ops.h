/* codec_ops.h — what the codec's graph (model/codec.c) asks of a backend, beside backend.h's memory calls.
 *
 * Activations are time-major rows: [time][channels]. *Plain* rows are FP32. Rows that a convolution reads are *input*
 * rows, in the form `input(mode)` says: on the CPU the same plain rows, on a device perhaps BF16 or halves of FP32
 * (kernels/codec.h); a row of input rows has channels · input_bytes(form) bytes, and rows of zero bytes are zeros.
 * Time-major makes every convolution one matrix product: a causal convolution reads rows t·stride + tap·dilation of its
 * input, and a transposed one with kernel 2s and stride s is a product with two taps and s·channels outputs, whose row
 * n is rows n·s … n·s+s−1 of its output (codec.md §2.4). The caller puts the rows of history in front. A matrix of
 * DT_F32 multiplies FP32 inputs, one of DT_BF16 or DT_I8 inputs rounded to BF16 (then y = (x·q)·scale). All sums are
 * FP32, and a row's sum does not depend on how many rows are computed together, so that chunks give the same samples as
 * one shot. */
#ifndef QSWEEP_BACKEND_CODEC_OPS_H
#define QSWEEP_BACKEND_CODEC_OPS_H

#include "base/status.h"
#include "checkpoint/tensor.h"
#include "model/precision.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct backend;

/* A convolution or linear layer: w [rows][taps][cols] of `format`; scales [rows] (FP32) for DT_I8, else NULL; bias
 * [rows] FP32 or NULL. After adopt the pointers are the backend's own and w's layout is its business. */
struct codec_matrix {
    enum dtype   format; /* DT_F32, DT_BF16, DT_I8 */
    int          rows, taps, cols;
    const void  *w;
    const float *scales, *bias;
};

enum codec_activation { ACT_NONE, ACT_GELU, ACT_TANH };
enum codec_form { ROWS_PLAIN, ROWS_FP32, ROWS_BF16 }; /* the last two are input rows */

static inline size_t codec_form_bytes(enum codec_form form) /* of one value */
{
    return form == ROWS_BF16 ? 2 : 4;
}

/* v = residual + gamma ⊙ act(sum + bias), to any of two places: y plain, and next, the input rows of the layer that
 * follows, there through that layer's Snake. gamma, residual, y, next and alpha may be NULL; residual may be y. */
struct codec_epilogue {
    enum codec_activation act;
    const float          *d_gamma;    /* [rows]                                                     */
    const float          *d_residual; /* plain [n][rows]                                            */
    float                *d_y;        /* plain [n][rows]                                            */
    void                 *d_next;     /* input rows [n·rows/channels][channels]                     */
    int                   channels;   /* divides rows; 0 = rows                                     */
    const float          *d_alpha;    /* Snake's table [2][channels]: α, then 1/(α + 1e-9)          */
};

struct codec_attention {
    int          n_head, head_dim, window;
    const float *d_cos_sin; /* [positions][head_dim/2][2], BF16-rounded values */
};

/* The codebooks, 8 values an entry: table rows of book 0 (first_rows of them), then other_rows of each other book. */
struct codec_books {
    int          count, latent, first_rows, other_rows;
    const float *d_table, *d_w, *d_b; /* [...][8], [count][latent][8], [count][latent] */
};

struct codec_ops {
    enum codec_form (*input)(enum codec_mode mode);
    status_t (*adopt)(struct backend *be, const struct codec_matrix *host, struct codec_matrix *out); /* MEM_CODEC */
    void (*release)(struct backend *be, struct codec_matrix *m);
    /* Device to device; the ranges do not overlap. */
    status_t (*copy)(struct backend *be, void *d_dst, const void *d_src, size_t bytes);
    status_t (*zero)(struct backend *be, void *d, size_t bytes);
    /* Host samples [n][1] to input rows of one channel. */
    status_t (*load)(struct backend *be, enum codec_form form, void *d_x, const float *x, int n);
    /* y [n][latent] = z_0 + (((z_1 + z_2) + …)), z_k = W_k·entry + b_k (codec.md §2.1); host codes [count][n], each
     * within its book. */
    status_t (*dequantize)(struct backend *be, float *d_y, const struct codec_books *books, const int32_t *codes,
                           int n);
    /* The history of a causal layer: d_rows holds `past` free rows and then n new ones; the free ones get d_old [past],
     * and d_new [past] becomes the last `past` rows of all. */
    status_t (*join)(struct backend *be, void *d_rows, void *d_new, const void *d_old, int past, int n,
                     size_t row_bytes);
    /* x: input rows, (n−1)·stride + (taps−1)·dilation + 1 of them, of w.cols channels. */
    status_t (*conv)(struct backend *be, enum codec_form form, const struct codec_matrix *w, const void *d_x, int n,
                     int stride, int dilation, const struct codec_epilogue *e);
    /* Plain rows x through Snake to rows of `form`; d_alpha as above. */
    status_t (*snake)(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_alpha,
                      int n, int channels);
    /* y [n][channels] = b + Σ_tap w[channel][tap]·x[t + tap][channel]; d_w [channels][taps]; all plain. */
    status_t (*depthwise)(struct backend *be, float *d_y, const float *d_x, const float *d_w, const float *d_b, int n,
                          int channels, int taps);
    /* Plain x to rows of `form`. */
    status_t (*layernorm)(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_w,
                          const float *d_b, int n, int channels, float eps);
    status_t (*rmsnorm)(struct backend *be, enum codec_form form, void *d_y, const float *d_x, const float *d_w, int n,
                        int channels, float eps);
    /* y [n][width] = SiLU(gate) ⊙ up to rows of `form`; gate_up plain [n][gate width | up width]. */
    status_t (*silu_mul)(struct backend *be, enum codec_form form, void *d_y, const float *d_gate_up, int n, int width);
    /* Rotate q and k of qkv [n][q|k|v] (positions pos0 …, plain), then y [n][dim] (`form`) = softmax over keys of
     * positions max(0, p − window + 1) … p. d_old and d_new hold window − 1 rows k|v (plain): of the positions before
     * pos0, of which the last `past` exist, and, after the call, of those before pos0 + n. */
    status_t (*attention)(struct backend *be, enum codec_form form, void *d_y, float *d_qkv, float *d_new,
                          const float *d_old, const struct codec_attention *a, int n, int pos0, int past);
};

#endif
