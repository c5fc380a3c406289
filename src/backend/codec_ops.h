/* codec_ops.h — what the codec's graph (model/codec.c) asks of a backend, beside backend.h's memory calls.
 *
 * Activations are time-major: [rows in time][channels], of the dtype `activation(mode)`; weights and vectors as said at
 * each call. Time-major makes every convolution one matrix product: a causal convolution reads rows t·stride + tap·
 * dilation of its input, and a transposed one with kernel 2s and stride s is a product with two taps and s·channels
 * outputs, whose row n is rows n·s … n·s+s−1 of its output (codec.md §2.4). The caller puts the rows of history in front.
 * A matrix of DT_F32 multiplies FP32 inputs, one of DT_BF16 or DT_I8 inputs rounded to BF16 (then y = (x·q)·scale).
 * All sums are FP32, and a row's sum does not depend on how many rows are computed together, so that chunks give the
 * same samples as one shot. */
#ifndef QSWEEP_BACKEND_CODEC_OPS_H
#define QSWEEP_BACKEND_CODEC_OPS_H

#include "base/status.h"
#include "checkpoint/tensor.h"
#include "model/precision.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct backend;

/* A convolution or linear layer: w [rows][taps][cols] of `format`; scales [rows] (FP32) for DT_I8, else NULL; bias [rows]
 * FP32 or NULL. After adopt the pointers are the backend's own and w's layout is its business. */
struct codec_matrix {
    enum dtype   format; /* DT_F32, DT_BF16, DT_I8 */
    int          rows, taps, cols;
    const void  *w;
    const float *scales, *bias;
};

enum codec_activation { ACT_NONE, ACT_GELU, ACT_TANH };

/* y = residual + gamma ⊙ act(sum + bias); gamma and residual may be NULL; residual may be y. */
struct codec_epilogue {
    enum codec_activation act;
    const float          *d_gamma;    /* [rows] */
    const void           *d_residual; /* [n][rows] */
};

struct codec_attention {
    int          n_head, head_dim, window;
    const float *d_cos_sin; /* [positions][head_dim/2][2], BF16-rounded values */
};

struct codec_ops {
    /* Dtype of activations in a mode: FP32 on the CPU, BF16 where the device computes with BF16 inputs. */
    enum dtype (*activation)(enum codec_mode mode);
    status_t (*adopt)(struct backend *be, const struct codec_matrix *host, struct codec_matrix *out); /* MEM_CODEC */
    void (*release)(struct backend *be, struct codec_matrix *m);
    /* Device to device; the ranges do not overlap. */
    status_t (*copy)(struct backend *be, void *d_dst, const void *d_src, size_t bytes);
    /* x [n][channels] between the activation dtype and host FP32. */
    status_t (*load)(struct backend *be, enum dtype act, void *d_x, const float *x, size_t count);
    status_t (*store)(struct backend *be, enum dtype act, float *x, const void *d_x, size_t count); /* synchronizes */
    /* y [n][w.rows], FP32 whatever the activations are when w.rows is 1: x holds (n−1)·stride + (taps−1)·dilation + 1 rows of w.cols. */
    status_t (*conv)(struct backend *be, enum dtype act, void *d_y, const struct codec_matrix *w, const void *d_x, int n,
                     int stride, int dilation, const struct codec_epilogue *e);
    /* y = x + sin²(αx)/(α + 1e-9), d_alpha [channels]. y may be x. */
    status_t (*snake)(struct backend *be, enum dtype act, void *d_y, const void *d_x, const float *d_alpha, int n,
                      int channels);
    /* y [n][channels] = b + Σ_tap w[channel][tap]·x[t + tap][channel]; d_w [channels][taps]. */
    status_t (*depthwise)(struct backend *be, enum dtype act, void *d_y, const void *d_x, const float *d_w,
                          const float *d_b, int n, int channels, int taps);
    status_t (*layernorm)(struct backend *be, enum dtype act, void *d_y, const void *d_x, const float *d_w,
                          const float *d_b, int n, int channels, float eps);
    status_t (*rmsnorm)(struct backend *be, enum dtype act, void *d_y, const void *d_x, const float *d_w, int n,
                        int channels, float eps);
    /* y [n][width] = SiLU(gate) ⊙ up, gate_up [n][gate width | up width]. */
    status_t (*silu_mul)(struct backend *be, enum dtype act, void *d_y, const void *d_gate_up, int n, int width);
    /* Rotate q and k of qkv [n][q|k|v] (positions pos0 …), write k|v to rows `past`… of kv [past + n][2·dim], then
     * y [n][dim] = softmax over keys of positions max(0, p − window + 1) … p. kv rows 0 … past−1 are the `past` positions
     * before pos0. */
    status_t (*attention)(struct backend *be, enum dtype act, void *d_y, void *d_qkv, void *d_kv,
                          const struct codec_attention *a, int n, int pos0, int past);
};

#endif
