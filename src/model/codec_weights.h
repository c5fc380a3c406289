/* codec_weights.h — codec.pth folded and arranged as the graph uses it: weight norm multiplied out, every convolution as
 * a matrix [outputs][taps][inputs], in one mode. Only the tensors of the wanted path are read. */
#ifndef QSWEEP_MODEL_CODEC_WEIGHTS_H
#define QSWEEP_MODEL_CODEC_WEIGHTS_H

#include "backend/codec_ops.h"
#include "checkpoint/tensor.h"
#include "model/codec_config.h"

enum { CODEC_UNITS = 3, CODEBOOK_DIM = 8, SEMANTIC_CODES = 4096, RESIDUAL_CODES = 1024 };

struct codec_transformer_layer {
    struct codec_matrix wqkv, wo, w13, w2; /* w13: rows gate | up */
    float *attention_norm, *ffn_norm, *attention_gamma, *ffn_gamma;
};

struct codec_transformer {
    int   n_layer, n_head, head_dim, dim, intermediate, window;
    float eps;
    struct codec_transformer_layer *layers;
    float *norm; /* [dim] */
};

struct codec_convnext {
    float *depthwise, *depthwise_bias; /* [channels][7], [channels] */
    float *norm, *norm_bias, *gamma;   /* [channels]                */
    struct codec_matrix up, down;      /* channels → 4·channels → channels */
};

struct codec_unit {
    float *alpha1, *alpha2;
    struct codec_matrix conv1, conv2; /* kernel 7 dilated, kernel 1 */
};

/* A decoder block (Snake, transposed conv, units) or an encoder block (units, Snake, strided conv). */
struct codec_block {
    int    in, out, stride;
    float *alpha;
    struct codec_matrix resample;
    struct codec_unit   units[CODEC_UNITS];
};

struct codebook {
    int    size;
    float *table;                    /* [size][8]             */
    float *in_w, *in_b;              /* [8][latent], [8]      */
    float *out_w, *out_b;            /* [latent][8], [latent] */
};

struct codec_weights {
    struct codec_config config;
    enum codec_mode     mode;
    bool                has_decoder, has_encoder;
    int                 n_codebooks; /* 1 + residual */
    struct codebook    *codebooks;
    struct codec_transformer post, pre, encoder_transformer; /* the last with n_layer 0 when the file has none */
    struct codec_matrix upsample[CODEC_DOWNSAMPLES], downsample[CODEC_DOWNSAMPLES];
    struct codec_convnext upsample_next[CODEC_DOWNSAMPLES], downsample_next[CODEC_DOWNSAMPLES];
    struct codec_matrix decoder_in, decoder_out, encoder_in, encoder_out;
    float              *decoder_alpha, *encoder_alpha;
    struct codec_block  decoder[CODEC_RATES], encoder[CODEC_RATES];
    size_t              bytes; /* of matrices and vectors in this mode */
    struct codec_arena *arena; /* owns everything above; opaque */
};

/* Build from the tensors of codec.pth. mode: FP32 = all FP32; BF16 = matrices BF16; INT8 = the linear layers (wqkv, wo,
 * w1|w3, w2, ConvNeXt's) INT8 per row with FP32 scales (checkpoint.md §6.3, FP32 case), the other matrices BF16.
 * path bits: 1 decoder, 2 encoder. ST_EINPUT names a tensor that is missing or has another shape. */
enum { CODEC_PATH_DECODE = 1, CODEC_PATH_ENCODE = 2 };
status_t codec_weights_build(const struct tensor_set *tensors, const char *label, const struct codec_config *config,
                             enum codec_mode mode, int path, struct codec_weights **out);
void codec_weights_free(struct codec_weights *w); /* NULL is accepted */

#endif
