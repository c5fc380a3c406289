/* codec_layout.h — which tensors a codec.pth has: names, shapes, dtypes, order, and what each is for.
 *
 * Source: fishaudio/fish-speech, fish_speech/models/dac/modded_dac.py and rvq.py (d3df505); the order is that of the
 * published file's state_dict(). */
#ifndef QSWEEP_CHECKPOINT_CODEC_LAYOUT_H
#define QSWEEP_CHECKPOINT_CODEC_LAYOUT_H

#include "checkpoint/tensor.h"

/* Sizes of a codec; codec.json names them. The strides are fixed: encoder 2, 4, 8, 8 and 2, 2; decoder the reverse. */
struct codec_dims {
    int latent;          /* "dim": channels between encoder, quantizer and decoder            */
    int encoder_width;   /* "enc": channels after the encoder's first convolution              */
    int decoder_width;   /* "dec": channels after the decoder's first convolution              */
    int residual_books;  /* "ncb": codebooks beside the semantic one                           */
    int layers, window, head_dim, n_head, intermediate; /* of pre_module and post_module       */
    int encoder_layers;  /* of the transformer in the last encoder block; 0 = there is none    */
    int table_length;    /* rows of freqs_cis and side of causal_mask in pre/post_module       */
    int encoder_table_length;
};

enum codec_kind {
    CODEC_DIRECTION, /* weight-norm v (original1, weight_v) and plain convolutions: fan is the inputs of one output */
    CODEC_LINEAR,
    CODEC_MAGNITUDE, /* weight-norm g (original0, weight_g): value is the gain in 2^−16 */
    CODEC_BIAS,
    CODEC_ALPHA,     /* Snake                                                           */
    CODEC_NORM,      /* RMSNorm or LayerNorm weight                                     */
    CODEC_GAMMA,     /* layer scale                                                     */
    CODEC_CODEBOOK,
    CODEC_ROPE,      /* freqs_cis: (cos, sin) pairs, base 10000                         */
    CODEC_MASK,      /* lower triangle of ones                                          */
};

struct codec_entry {
    char            name[112];
    enum codec_kind kind;
    enum dtype      dtype;
    int             rank;
    int64_t         shape[3];
    int64_t         fan;  /* CODEC_DIRECTION, CODEC_LINEAR */
    int32_t         gain; /* CODEC_MAGNITUDE, in 2^−16     */
};

struct codec_layout {
    struct codec_entry *entries;
    size_t              count, capacity;
};

extern const struct codec_dims codec_dims_published; /* 391,430,530 parameters and 6 buffers: 541 tensors */

status_t codec_layout_build(const struct codec_dims *dims, struct codec_layout *out);
void     codec_layout_free(struct codec_layout *layout);

int64_t codec_entry_elements(const struct codec_entry *entry);

#endif
