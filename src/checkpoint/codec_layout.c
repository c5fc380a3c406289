#include "checkpoint/codec_layout.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

const struct codec_dims codec_dims_published = {
    .latent = 1024, .encoder_width = 64, .decoder_width = 1536, .residual_books = 9,
    .layers = 8, .window = 128, .head_dim = 64, .n_head = 16, .intermediate = 3072,
    .encoder_layers = 4, .table_length = 4096, .encoder_table_length = 16384,
};

enum { SEMANTIC_ROWS = 4096, RESIDUAL_ROWS = 1024, CODE_DIM = 8, KERNEL = 7, UNITS = 3, CONVNEXT_FACTOR = 4 };

/* Gains in 2^−16, chosen so that a random codec keeps its activations near 1: a weight-normed convolution of white input
 * has the standard deviation g; a transposed one spreads g over out·stride outputs, two taps each. */
enum {
    ONE        = 1 << 16,
    HALF       = 1 << 15,
    SQRT_HALF  = 46341,
    BOOK_GAIN  = 20724, /* 1/√10: ten codebooks add up                          */
    FINAL_GAIN = 5243,  /* 0.08: speech-like loudness after the growth of the units */
};

struct builder {
    struct codec_layout layout;
    bool                failed;
};

static struct codec_entry *add(struct builder *b, enum codec_kind kind, const char *prefix, const char *name)
{
    static struct codec_entry spare;
    struct codec_layout      *l = &b->layout;
    if (l->count == l->capacity) {
        size_t              capacity = l->capacity ? 2 * l->capacity : 128;
        struct codec_entry *entries  = realloc(l->entries, capacity * sizeof *entries);
        if (!entries) {
            b->failed = true;
            return &spare;
        }
        l->entries  = entries;
        l->capacity = capacity;
    }
    struct codec_entry *e = &l->entries[l->count++];
    *e                    = (struct codec_entry){.kind = kind, .dtype = DT_F32, .rank = 1, .shape = {1, 1, 1}};
    snprintf(e->name, sizeof e->name, "%s%s", prefix, name);
    return e;
}

static void add_vector(struct builder *b, enum codec_kind kind, const char *prefix, const char *name, int64_t n)
{
    add(b, kind, prefix, name)->shape[0] = n;
}

static void add_linear(struct builder *b, const char *prefix, const char *name, int64_t out, int64_t in)
{
    struct codec_entry *e = add(b, CODEC_LINEAR, prefix, name);
    e->rank               = 2;
    e->shape[0]           = out;
    e->shape[1]           = in;
    e->fan                = in;
}

static void add_alpha(struct builder *b, const char *prefix, const char *name, int64_t channels)
{
    struct codec_entry *e = add(b, CODEC_ALPHA, prefix, name);
    e->rank               = 3;
    e->shape[1]           = channels;
}

static void add_kernel(struct builder *b, const char *prefix, const char *name, int64_t s0, int64_t s1, int64_t kernel,
                       int64_t fan)
{
    struct codec_entry *e = add(b, CODEC_DIRECTION, prefix, name);
    e->rank               = 3;
    e->shape[0]           = s0;
    e->shape[1]           = s1;
    e->shape[2]           = kernel;
    e->fan                = fan;
}

static void add_magnitude(struct builder *b, const char *prefix, const char *name, int64_t n, int32_t gain)
{
    struct codec_entry *e = add(b, CODEC_MAGNITUDE, prefix, name);
    e->rank               = 3;
    e->shape[0]           = n;
    e->gain               = gain;
}

/* A weight-normed convolution; s0 is the axis that g belongs to (inputs for a transposed one). */
static void add_conv(struct builder *b, const char *prefix, int64_t s0, int64_t s1, int64_t kernel, int64_t bias,
                     int32_t gain)
{
    add_vector(b, CODEC_BIAS, prefix, "conv.bias", bias);
    add_magnitude(b, prefix, "conv.parametrizations.weight.original0", s0, gain);
    add_kernel(b, prefix, "conv.parametrizations.weight.original1", s0, s1, kernel, s1 * kernel);
}

__attribute__((format(printf, 2, 3))) static void path(char out[112], const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(out, 112, fmt, args);
    va_end(args);
}

static void add_residual_unit(struct builder *b, const char *prefix, int64_t channels)
{
    char sub[112];
    add_alpha(b, prefix, "block.0.alpha", channels);
    path(sub, "%.80sblock.1.", prefix);
    add_conv(b, sub, channels, channels, KERNEL, channels, ONE);
    add_alpha(b, prefix, "block.2.alpha", channels);
    path(sub, "%.80sblock.3.", prefix);
    add_conv(b, sub, channels, channels, 1, channels, HALF);
}

static void add_transformer(struct builder *b, const char *prefix, const struct codec_dims *d, int64_t dim, int layers,
                            int64_t table)
{
    char                sub[112];
    int64_t             inner = (int64_t)d->n_head * d->head_dim;
    struct codec_entry *e     = add(b, CODEC_ROPE, prefix, "freqs_cis");
    e->dtype                  = DT_BF16;
    e->rank                   = 3;
    e->shape[0]               = table;
    e->shape[1]               = d->head_dim / 2;
    e->shape[2]               = 2;
    e           = add(b, CODEC_MASK, prefix, "causal_mask");
    e->dtype    = DT_BOOL;
    e->rank     = 2;
    e->shape[0] = e->shape[1] = table;
    for (int i = 0; i < layers; i++) {
        path(sub, "%.80slayers.%d.", prefix, i);
        add_linear(b, sub, "attention.wqkv.weight", 3 * inner, dim);
        add_linear(b, sub, "attention.wo.weight", dim, inner);
        add_linear(b, sub, "feed_forward.w1.weight", d->intermediate, dim);
        add_linear(b, sub, "feed_forward.w3.weight", d->intermediate, dim);
        add_linear(b, sub, "feed_forward.w2.weight", dim, d->intermediate);
        add_vector(b, CODEC_NORM, sub, "ffn_norm.weight", dim);
        add_vector(b, CODEC_NORM, sub, "attention_norm.weight", dim);
        add_vector(b, CODEC_GAMMA, sub, "attention_layer_scale.gamma", dim);
        add_vector(b, CODEC_GAMMA, sub, "ffn_layer_scale.gamma", dim);
    }
    add_vector(b, CODEC_NORM, prefix, "norm.weight", dim);
}

static void add_encoder(struct builder *b, const struct codec_dims *d)
{
    static const int strides[] = {2, 4, 8, 8};
    char             sub[112];
    int64_t          width = d->encoder_width;
    add_conv(b, "encoder.block.0.", width, 1, KERNEL, width, ONE);
    for (int i = 0; i < 4; i++, width *= 2) {
        for (int unit = 0; unit < UNITS; unit++) {
            path(sub, "encoder.block.%d.block.%d.", i + 1, unit);
            add_residual_unit(b, sub, width);
        }
        path(sub, "encoder.block.%d.", i + 1);
        add_alpha(b, sub, "block.3.alpha", width);
        path(sub, "encoder.block.%d.block.4.", i + 1);
        add_conv(b, sub, 2 * width, width, 2 * strides[i], 2 * width, ONE);
        if (i == 3 && d->encoder_layers)
            add_transformer(b, "encoder.block.4.block.5.", d, 2 * width, d->encoder_layers, d->encoder_table_length);
    }
    add_alpha(b, "encoder.", "block.5.alpha", width);
    add_conv(b, "encoder.block.6.", d->latent, width, 3, d->latent, ONE);
}

static void add_projection(struct builder *b, const char *prefix, int64_t out, int64_t in, int32_t gain)
{
    add_vector(b, CODEC_BIAS, prefix, "bias", out);
    add_magnitude(b, prefix, "weight_g", out, gain);
    add_kernel(b, prefix, "weight_v", out, in, 1, in);
}

static void add_book(struct builder *b, const char *prefix, const struct codec_dims *d, int64_t rows)
{
    char sub[112];
    path(sub, "%.80sin_proj.", prefix);
    add_projection(b, sub, CODE_DIM, d->latent, ONE);
    path(sub, "%.80sout_proj.", prefix);
    add_projection(b, sub, d->latent, CODE_DIM, BOOK_GAIN);
    struct codec_entry *e = add(b, CODEC_CODEBOOK, prefix, "codebook.weight");
    e->rank               = 2;
    e->shape[0]           = rows;
    e->shape[1]           = CODE_DIM;
}

/* downsample.{0,1} and upsample.{0,1}: a plain (transposed) convolution of kernel and stride 2, then a ConvNeXt block. */
static void add_resampler(struct builder *b, const char *which, int64_t dim, bool transposed)
{
    char sub[112];
    for (int i = 0; i < 2; i++) {
        path(sub, "quantizer.%s.%d.0.", which, i);
        add_kernel(b, sub, "conv.weight", dim, dim, 2, transposed ? dim : 2 * dim);
        add_vector(b, CODEC_BIAS, sub, "conv.bias", dim);
        path(sub, "quantizer.%s.%d.1.", which, i);
        add_vector(b, CODEC_GAMMA, sub, "gamma", dim);
        add_kernel(b, sub, "dwconv.conv.weight", dim, 1, KERNEL, KERNEL);
        add_vector(b, CODEC_BIAS, sub, "dwconv.conv.bias", dim);
        add_vector(b, CODEC_NORM, sub, "norm.weight", dim);
        add_vector(b, CODEC_BIAS, sub, "norm.bias", dim);
        add_linear(b, sub, "pwconv1.weight", CONVNEXT_FACTOR * dim, dim);
        add_vector(b, CODEC_BIAS, sub, "pwconv1.bias", CONVNEXT_FACTOR * dim);
        add_linear(b, sub, "pwconv2.weight", dim, CONVNEXT_FACTOR * dim);
        add_vector(b, CODEC_BIAS, sub, "pwconv2.bias", dim);
    }
}

static void add_quantizer(struct builder *b, const struct codec_dims *d)
{
    char sub[112];
    add_book(b, "quantizer.semantic_quantizer.quantizers.0.", d, SEMANTIC_ROWS);
    for (int i = 0; i < d->residual_books; i++) {
        path(sub, "quantizer.quantizer.quantizers.%d.", i);
        add_book(b, sub, d, RESIDUAL_ROWS);
    }
    add_resampler(b, "downsample", d->latent, false);
    add_resampler(b, "upsample", d->latent, true);
    add_transformer(b, "quantizer.pre_module.", d, d->latent, d->layers, d->table_length);
    add_transformer(b, "quantizer.post_module.", d, d->latent, d->layers, d->table_length);
}

static void add_decoder(struct builder *b, const struct codec_dims *d)
{
    static const int     rates[] = {8, 8, 4, 2};
    static const int32_t gains[] = {2 * ONE, 2 * ONE, 2 * SQRT_HALF, ONE}; /* √(stride/2) */
    char                 sub[112];
    int64_t              width = d->decoder_width;
    add_conv(b, "decoder.model.0.", width, d->latent, KERNEL, width, ONE);
    for (int i = 0; i < 4; i++) {
        path(sub, "decoder.model.%d.", i + 1);
        add_alpha(b, sub, "block.0.alpha", width);
        path(sub, "decoder.model.%d.block.1.", i + 1);
        add_conv(b, sub, width, width / 2, 2 * rates[i], width / 2, gains[i]);
        width /= 2;
        for (int unit = 0; unit < UNITS; unit++) {
            path(sub, "decoder.model.%d.block.%d.", i + 1, unit + 2);
            add_residual_unit(b, sub, width);
        }
    }
    add_alpha(b, "decoder.", "model.5.alpha", width);
    add_conv(b, "decoder.model.6.", 1, width, KERNEL, 1, FINAL_GAIN);
}

status_t codec_layout_build(const struct codec_dims *dims, struct codec_layout *out)
{
    struct builder b = {0};
    add_encoder(&b, dims);
    add_quantizer(&b, dims);
    add_decoder(&b, dims);
    if (b.failed) {
        codec_layout_free(&b.layout);
        return FAIL(ST_ENOMEM, "no memory for the list of the codec's tensors");
    }
    *out = b.layout;
    return ST_OK;
}

void codec_layout_free(struct codec_layout *layout)
{
    free(layout->entries);
    *layout = (struct codec_layout){0};
}

int64_t codec_entry_elements(const struct codec_entry *e)
{
    int64_t n = 1;
    for (int i = 0; i < e->rank; i++)
        n *= e->shape[i];
    return n;
}
