#include "model/codec_weights.h"

#include "model/bf16.h"
#include "model/int8_rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Everything allocated for one codec, freed together. */
struct codec_arena {
    void **blocks;
    size_t count, capacity;
};

struct builder {
    const struct tensor_set *tensors;
    const char              *label;
    enum codec_mode          mode;
    struct codec_weights    *w;
};

static status_t take(struct codec_weights *w, size_t bytes, void *out)
{
    struct codec_arena *a = w->arena;
    if (a->count == a->capacity) {
        size_t capacity = a->capacity ? 2 * a->capacity : 256;
        void **blocks   = realloc(a->blocks, capacity * sizeof *blocks);
        if (!blocks)
            return FAIL(ST_ENOMEM, "codec weights: no memory for %zu block pointers", capacity);
        a->blocks   = blocks;
        a->capacity = capacity;
    }
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 64))
        return FAIL(ST_ENOMEM, "codec weights: no memory for %zu bytes", bytes);
    a->blocks[a->count++] = p;
    memcpy(out, &p, sizeof p);
    return ST_OK;
}

/* The tensor of a name, which must be FP32 or BF16 of exactly this shape (a 0 in the shape ends it). */
static status_t find(const struct builder *b, const char *name, const int *shape, int rank, const struct tensor **out)
{
    const struct tensor *t = tensor_set_find(b->tensors, name);
    if (!t)
        return FAIL(ST_EINPUT, "%s: tensor %s is missing", b->label, name);
    bool same = t->rank == rank && (t->dtype == DT_F32 || t->dtype == DT_BF16);
    for (int i = 0; same && i < rank; i++)
        same = t->shape[i] == shape[i];
    if (!same) {
        char have[96] = "", want[96] = "";
        for (int i = 0; i < t->rank; i++)
            snprintf(have + strlen(have), sizeof have - strlen(have), "%s%lld", i ? ", " : "", (long long)t->shape[i]);
        for (int i = 0; i < rank; i++)
            snprintf(want + strlen(want), sizeof want - strlen(want), "%s%d", i ? ", " : "", shape[i]);
        return FAIL(ST_EINPUT, "%s: tensor %s is %s [%s], expected F32 or BF16 [%s]; does codec.json fit this codec?",
                    b->label, name, dtype_name(t->dtype), have, want);
    }
    *out = t;
    return ST_OK;
}

static float element(const struct tensor *t, size_t i)
{
    if (t->dtype == DT_BF16) {
        bf16_t h;
        memcpy(&h, (const char *)t->data + 2 * i, sizeof h);
        return bf16_to_f32(h);
    }
    float f;
    memcpy(&f, (const char *)t->data + 4 * i, sizeof f);
    return f;
}

/* A vector (or any small tensor) as FP32. */
static status_t vector(struct builder *b, const char *name, const int *shape, int rank, float **out)
{
    const struct tensor *t;
    TRY(find(b, name, shape, rank, &t));
    size_t n = (size_t)tensor_elements(t);
    float *v;
    TRY(take(b->w, n * sizeof *v, &v));
    for (size_t i = 0; i < n; i++) {
        v[i] = element(t, i);
        if (!isfinite(v[i]))
            return FAIL(ST_EINPUT, "%s: tensor %s: element %zu is not finite", b->label, name, i);
    }
    b->w->bytes += n * sizeof *v;
    *out = v;
    return ST_OK;
}

static status_t vector1(struct builder *b, const char *name, int n, float **out)
{
    return vector(b, name, (const int[]){n}, 1, out);
}

/* w [d0][d1][d2] in FP32, weight norm multiplied out: w[c,…] = g[c]·v[c,…]/‖v[c,…]‖ over all axes but the first
 * (codec.md §3). g_name NULL: v is the weight itself. The caller frees *out. */
static status_t folded(struct builder *b, const char *v_name, const char *g_name, int d0, int d1, int d2, float **out)
{
    const struct tensor *v, *g = NULL;
    TRY(find(b, v_name, (const int[]){d0, d1, d2}, 3, &v));
    if (g_name)
        TRY(find(b, g_name, (const int[]){d0, 1, 1}, 3, &g));
    size_t inner = (size_t)d1 * (size_t)d2;
    float *w     = malloc((size_t)d0 * inner * sizeof *w);
    if (!w)
        return FAIL(ST_ENOMEM, "codec weights: no memory for %s", v_name);
    for (size_t c = 0; c < (size_t)d0; c++) {
        double sum = 0;
        for (size_t i = 0; i < inner; i++) {
            float x          = element(v, c * inner + i);
            w[c * inner + i] = x;
            sum += (double)x * x;
        }
        float factor = g ? (float)(element(g, c) / sqrt(sum)) : 1.0f;
        if (!isfinite(sum) || !isfinite(factor)) {
            free(w);
            return FAIL(ST_EINPUT, "%s: tensor %s: row %zu is zero or not finite", b->label, v_name, c);
        }
        for (size_t i = 0; g && i < inner; i++)
            w[c * inner + i] *= factor;
    }
    *out = w;
    return ST_OK;
}

/* Store FP32 w [rows][taps·cols] as the mode wants it. linear: one of the layers that INT8 replaces. */
static status_t finish(struct builder *b, const char *name, float *w, int rows, int taps, int cols, const float *bias,
                       bool linear, struct codec_matrix *out)
{
    struct codec_weights *cw    = b->w;
    size_t                n     = (size_t)rows * (size_t)taps * (size_t)cols;
    struct codec_matrix   m     = {.rows = rows, .taps = taps, .cols = cols, .bias = bias};
    void                 *store = NULL;
    if (cw->mode == CODEC_INT8 && linear) {
        float *scales;
        TRY(take(cw, n, &store));
        TRY(take(cw, (size_t)rows * sizeof *scales, &scales));
        TRY(quantize_rows(RECIPE_TORCHAO, name, 0, w, DT_F32, rows, (int64_t)taps * cols, store, scales));
        m.format = DT_I8;
        m.scales = scales;
        cw->bytes += n + (size_t)rows * sizeof *scales;
    } else if (cw->mode == CODEC_FP32 || rows == 1) { /* the last convolution: FP32 samples cost 3 kB */
        TRY(take(cw, n * sizeof(float), &store));
        memcpy(store, w, n * sizeof(float));
        m.format = DT_F32;
        cw->bytes += n * sizeof(float);
    } else {
        TRY(take(cw, n * sizeof(bf16_t), &store));
        for (size_t i = 0; i < n; i++)
            ((bf16_t *)store)[i] = bf16_from_f32(w[i]);
        m.format = DT_BF16;
        cw->bytes += n * sizeof(bf16_t);
    }
    m.w  = store;
    *out = m;
    return ST_OK;
}

/* Linear [out, in], bias optional. */
static status_t linear(struct builder *b, const char *prefix, int out_dim, int in_dim, bool bias, struct codec_matrix *out)
{
    char                 name[160];
    const struct tensor *t;
    float               *bias_values = NULL;
    snprintf(name, sizeof name, "%s.weight", prefix);
    TRY(find(b, name, (const int[]){out_dim, in_dim}, 2, &t));
    if (bias) {
        char bias_name[160];
        snprintf(bias_name, sizeof bias_name, "%s.bias", prefix);
        TRY(vector1(b, bias_name, out_dim, &bias_values));
    }
    size_t n = (size_t)out_dim * (size_t)in_dim;
    float *w = malloc(n * sizeof *w);
    if (!w)
        return FAIL(ST_ENOMEM, "codec weights: no memory for %s", name);
    for (size_t i = 0; i < n; i++)
        w[i] = element(t, i);
    status_t st = finish(b, name, w, out_dim, 1, in_dim, bias_values, true, out);
    free(w);
    return st;
}

/* Causal convolution [out, in, taps] → [out][taps][in]. normed: weight norm in its parametrized form. */
static status_t convolution(struct builder *b, const char *prefix, int out_dim, int in_dim, int taps, bool normed,
                            struct codec_matrix *out)
{
    char   v_name[160], g_name[160], bias_name[160];
    float *bias, *w, *arranged;
    snprintf(v_name, sizeof v_name, normed ? "%s.conv.parametrizations.weight.original1" : "%s.conv.weight", prefix);
    snprintf(g_name, sizeof g_name, "%s.conv.parametrizations.weight.original0", prefix);
    snprintf(bias_name, sizeof bias_name, "%s.conv.bias", prefix);
    TRY(vector1(b, bias_name, out_dim, &bias));
    TRY(folded(b, v_name, normed ? g_name : NULL, out_dim, in_dim, taps, &w));
    status_t st = ST_OK;
    size_t   n  = (size_t)out_dim * (size_t)in_dim * (size_t)taps;
    arranged    = malloc(n * sizeof *arranged);
    if (!arranged) {
        st = FAIL(ST_ENOMEM, "codec weights: no memory for %s", v_name);
        goto out;
    }
    for (int o = 0; o < out_dim; o++)
        for (int k = 0; k < taps; k++)
            for (int i = 0; i < in_dim; i++)
                arranged[((size_t)o * (size_t)taps + (size_t)k) * (size_t)in_dim + (size_t)i] =
                    w[((size_t)o * (size_t)in_dim + (size_t)i) * (size_t)taps + (size_t)k];
    st = finish(b, v_name, arranged, out_dim, taps, in_dim, bias, false, out);
out:
    free(arranged);
    free(w);
    return st;
}

/* Causal transposed convolution [in, out, kernel], stride s, kernel s or 2s → [s·out][kernel/s][in]: row j·out + o; with
 * two taps the first is the previous input (w[…][s + j]), the second the current one (w[…][j]) (codec.md §2.4). */
static status_t transposed(struct builder *b, const char *prefix, int in_dim, int out_dim, int stride, int taps,
                           bool normed, struct codec_matrix *out)
{
    char   v_name[160], g_name[160], bias_name[160];
    float *bias, *w, *arranged, *spread;
    int    kernel = taps * stride;
    snprintf(v_name, sizeof v_name, normed ? "%s.conv.parametrizations.weight.original1" : "%s.conv.weight", prefix);
    snprintf(g_name, sizeof g_name, "%s.conv.parametrizations.weight.original0", prefix);
    snprintf(bias_name, sizeof bias_name, "%s.conv.bias", prefix);
    TRY(vector1(b, bias_name, out_dim, &bias));
    TRY(take(b->w, (size_t)stride * (size_t)out_dim * sizeof *spread, &spread));
    for (int j = 0; j < stride; j++)
        memcpy(spread + (size_t)j * (size_t)out_dim, bias, (size_t)out_dim * sizeof *bias);
    TRY(folded(b, v_name, normed ? g_name : NULL, in_dim, out_dim, kernel, &w));
    status_t st = ST_OK;
    arranged    = malloc((size_t)in_dim * (size_t)out_dim * (size_t)kernel * sizeof *arranged);
    if (!arranged) {
        st = FAIL(ST_ENOMEM, "codec weights: no memory for %s", v_name);
        goto out;
    }
    for (int j = 0; j < stride; j++)
        for (int o = 0; o < out_dim; o++)
            for (int k = 0; k < taps; k++)
                for (int i = 0; i < in_dim; i++) {
                    int at = taps == 2 && k == 0 ? stride + j : j;
                    arranged[(((size_t)j * (size_t)out_dim + (size_t)o) * (size_t)taps + (size_t)k) * (size_t)in_dim +
                             (size_t)i] =
                        w[((size_t)i * (size_t)out_dim + (size_t)o) * (size_t)kernel + (size_t)at];
                }
    st = finish(b, v_name, arranged, stride * out_dim, taps, in_dim, spread, false, out);
out:
    free(arranged);
    free(w);
    return st;
}

static status_t alpha(struct builder *b, const char *name, int channels, float **out)
{
    return vector(b, name, (const int[]){1, channels, 1}, 3, out);
}

static status_t unit(struct builder *b, const char *prefix, int channels, struct codec_unit *out)
{
    char name[160];
    snprintf(name, sizeof name, "%s.block.0.alpha", prefix);
    TRY(alpha(b, name, channels, &out->alpha1));
    snprintf(name, sizeof name, "%s.block.1", prefix);
    TRY(convolution(b, name, channels, channels, 7, true, &out->conv1));
    snprintf(name, sizeof name, "%s.block.2.alpha", prefix);
    TRY(alpha(b, name, channels, &out->alpha2));
    snprintf(name, sizeof name, "%s.block.3", prefix);
    return convolution(b, name, channels, channels, 1, true, &out->conv2);
}

static status_t convnext(struct builder *b, const char *prefix, int channels, struct codec_convnext *out)
{
    char name[160];
    snprintf(name, sizeof name, "%s.dwconv.conv.weight", prefix);
    TRY(vector(b, name, (const int[]){channels, 1, 7}, 3, &out->depthwise));
    snprintf(name, sizeof name, "%s.dwconv.conv.bias", prefix);
    TRY(vector1(b, name, channels, &out->depthwise_bias));
    snprintf(name, sizeof name, "%s.norm.weight", prefix);
    TRY(vector1(b, name, channels, &out->norm));
    snprintf(name, sizeof name, "%s.norm.bias", prefix);
    TRY(vector1(b, name, channels, &out->norm_bias));
    snprintf(name, sizeof name, "%s.gamma", prefix);
    TRY(vector1(b, name, channels, &out->gamma));
    snprintf(name, sizeof name, "%s.pwconv1", prefix);
    TRY(linear(b, name, 4 * channels, channels, true, &out->up));
    snprintf(name, sizeof name, "%s.pwconv2", prefix);
    return linear(b, name, channels, 4 * channels, true, &out->down);
}

/* w1 and w3 as one matrix of 2·intermediate rows: one pass over the input. */
static status_t gate_and_up(struct builder *b, const char *prefix, int rows, int cols, struct codec_matrix *out)
{
    char                 names[2][200];
    const struct tensor *t[2];
    size_t               n = (size_t)rows * (size_t)cols;
    float               *w = malloc(2 * n * sizeof *w);
    if (!w)
        return FAIL(ST_ENOMEM, "codec weights: no memory for %s", prefix);
    status_t st = ST_OK;
    for (int k = 0; k < 2; k++) {
        snprintf(names[k], sizeof names[k], "%s.feed_forward.w%d.weight", prefix, k ? 3 : 1);
        TRY_OUT(find(b, names[k], (const int[]){rows, cols}, 2, &t[k]));
        for (size_t i = 0; i < n; i++)
            w[(size_t)k * n + i] = element(t[k], i);
    }
    st = finish(b, names[0], w, 2 * rows, 1, cols, NULL, true, out);
out:
    free(w);
    return st;
}

static status_t transformer(struct builder *b, const char *prefix, int n_layer, int dim, int n_head, int intermediate,
                            int window, struct codec_transformer *out)
{
    const struct codec_config *c = &b->w->config;
    *out = (struct codec_transformer){.n_layer = n_layer, .n_head = n_head, .head_dim = c->head_dim, .dim = dim,
                                      .intermediate = intermediate, .window = window, .eps = 1e-5f};
    if ((long)n_head * c->head_dim != dim)
        return FAIL(ST_EINPUT, "%s: %s: %d heads of %d do not make a width of %d", b->label, prefix, n_head, c->head_dim,
                    dim);
    TRY(take(b->w, (size_t)(n_layer ? n_layer : 1) * sizeof *out->layers, &out->layers));
    char name[200], layer[160];
    for (int i = 0; i < n_layer; i++) {
        struct codec_transformer_layer *l = &out->layers[i];
        snprintf(layer, sizeof layer, "%s.layers.%d", prefix, i);
        snprintf(name, sizeof name, "%s.attention.wqkv", layer);
        TRY(linear(b, name, 3 * dim, dim, false, &l->wqkv));
        snprintf(name, sizeof name, "%s.attention.wo", layer);
        TRY(linear(b, name, dim, dim, false, &l->wo));
        TRY(gate_and_up(b, layer, intermediate, dim, &l->w13));
        snprintf(name, sizeof name, "%s.feed_forward.w2", layer);
        TRY(linear(b, name, dim, intermediate, false, &l->w2));
        snprintf(name, sizeof name, "%s.attention_norm.weight", layer);
        TRY(vector1(b, name, dim, &l->attention_norm));
        snprintf(name, sizeof name, "%s.ffn_norm.weight", layer);
        TRY(vector1(b, name, dim, &l->ffn_norm));
        snprintf(name, sizeof name, "%s.attention_layer_scale.gamma", layer);
        TRY(vector1(b, name, dim, &l->attention_gamma));
        snprintf(name, sizeof name, "%s.ffn_layer_scale.gamma", layer);
        TRY(vector1(b, name, dim, &l->ffn_gamma));
    }
    snprintf(name, sizeof name, "%s.norm.weight", prefix);
    return vector1(b, name, dim, &out->norm);
}

/* Layers of the transformer that closes the encoder; it exists only if its tensors do. */
static int encoder_layers(const struct tensor_set *tensors, int *intermediate)
{
    char name[160];
    int  n = 0;
    for (;; n++) {
        snprintf(name, sizeof name, "encoder.block.%d.block.5.layers.%d.feed_forward.w1.weight", CODEC_RATES, n);
        const struct tensor *t = tensor_set_find(tensors, name);
        if (!t || t->rank != 2 || t->shape[0] < 1 || t->shape[0] > 1 << 16 || n == 256)
            return n;
        *intermediate = (int)t->shape[0];
    }
}

static status_t codebook(struct builder *b, const char *prefix, int size, struct codebook *out)
{
    struct codec_weights *w      = b->w;
    int                   latent = w->config.latent;
    char                  v_name[160], g_name[160], name[160];
    out->size = size;
    snprintf(name, sizeof name, "%s.codebook.weight", prefix);
    TRY(vector(b, name, (const int[]){size, CODEBOOK_DIM}, 2, &out->table));
    for (int k = 0; k < 2; k++) {
        const char *side = k ? "in_proj" : "out_proj";
        if (!(k ? w->has_encoder : true)) /* the encoder subtracts what the decoder would add, so out_proj serves both */
            continue;
        int rows = k ? CODEBOOK_DIM : latent, cols = k ? latent : CODEBOOK_DIM;
        snprintf(v_name, sizeof v_name, "%s.%s.weight_v", prefix, side);
        snprintf(g_name, sizeof g_name, "%s.%s.weight_g", prefix, side);
        snprintf(name, sizeof name, "%s.%s.bias", prefix, side);
        float *values, *kept;
        TRY(vector1(b, name, rows, k ? &out->in_b : &out->out_b));
        TRY(folded(b, v_name, g_name, rows, cols, 1, &values));
        size_t   bytes = (size_t)rows * (size_t)cols * sizeof *values;
        status_t st    = take(w, bytes, &kept);
        if (st == ST_OK)
            memcpy(kept, values, bytes);
        free(values);
        TRY(st);
        w->bytes += bytes;
        *(k ? &out->in_w : &out->out_w) = kept;
    }
    return ST_OK;
}

static status_t build_decoder(struct builder *b)
{
    struct codec_weights      *w = b->w;
    const struct codec_config *c = &w->config;
    char                       name[160];
    TRY(transformer(b, "quantizer.post_module", c->layers, c->latent, c->n_head, c->intermediate, c->window, &w->post));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        snprintf(name, sizeof name, "quantizer.upsample.%d.0", i);
        TRY(transposed(b, name, c->latent, c->latent, 2, 1, false, &w->upsample[i]));
        snprintf(name, sizeof name, "quantizer.upsample.%d.1", i);
        TRY(convnext(b, name, c->latent, &w->upsample_next[i]));
    }
    TRY(convolution(b, "decoder.model.0", c->decoder_dim, c->latent, 7, true, &w->decoder_in));
    for (int i = 0; i < CODEC_RATES; i++) {
        struct codec_block *block = &w->decoder[i];
        block->in     = c->decoder_dim >> i;
        block->out    = block->in / 2;
        block->stride = c->rates[i];
        snprintf(name, sizeof name, "decoder.model.%d.block.0.alpha", i + 1);
        TRY(alpha(b, name, block->in, &block->alpha));
        snprintf(name, sizeof name, "decoder.model.%d.block.1", i + 1);
        TRY(transposed(b, name, block->in, block->out, block->stride, 2, true, &block->resample));
        for (int u = 0; u < CODEC_UNITS; u++) {
            snprintf(name, sizeof name, "decoder.model.%d.block.%d", i + 1, u + 2);
            TRY(unit(b, name, block->out, &block->units[u]));
        }
    }
    snprintf(name, sizeof name, "decoder.model.%d.alpha", CODEC_RATES + 1);
    TRY(alpha(b, name, c->decoder_dim >> CODEC_RATES, &w->decoder_alpha));
    snprintf(name, sizeof name, "decoder.model.%d", CODEC_RATES + 2);
    return convolution(b, name, 1, c->decoder_dim >> CODEC_RATES, 7, true, &w->decoder_out);
}

static status_t build_encoder(struct builder *b)
{
    struct codec_weights      *w = b->w;
    const struct codec_config *c = &w->config;
    char                       name[160];
    int                        top = c->encoder_dim << CODEC_RATES, intermediate = 1;
    TRY(convolution(b, "encoder.block.0", c->encoder_dim, 1, 7, true, &w->encoder_in));
    for (int i = 0; i < CODEC_RATES; i++) {
        struct codec_block *block = &w->encoder[i];
        block->in     = c->encoder_dim << i;
        block->out    = 2 * block->in;
        block->stride = c->rates[CODEC_RATES - 1 - i];
        for (int u = 0; u < CODEC_UNITS; u++) {
            snprintf(name, sizeof name, "encoder.block.%d.block.%d", i + 1, u);
            TRY(unit(b, name, block->in, &block->units[u]));
        }
        snprintf(name, sizeof name, "encoder.block.%d.block.3.alpha", i + 1);
        TRY(alpha(b, name, block->in, &block->alpha));
        snprintf(name, sizeof name, "encoder.block.%d.block.4", i + 1);
        TRY(convolution(b, name, block->out, block->in, 2 * block->stride, true, &block->resample));
    }
    int layers = encoder_layers(b->tensors, &intermediate);
    if (layers > 0) {
        snprintf(name, sizeof name, "encoder.block.%d.block.5", CODEC_RATES);
        TRY(transformer(b, name, layers, top, top / c->head_dim, intermediate, c->encoder_window, &w->encoder_transformer));
    }
    snprintf(name, sizeof name, "encoder.block.%d.alpha", CODEC_RATES + 1);
    TRY(alpha(b, name, top, &w->encoder_alpha));
    snprintf(name, sizeof name, "encoder.block.%d", CODEC_RATES + 2);
    TRY(convolution(b, name, c->latent, top, 3, true, &w->encoder_out));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        snprintf(name, sizeof name, "quantizer.downsample.%d.0", i);
        TRY(convolution(b, name, c->latent, c->latent, 2, false, &w->downsample[i]));
        snprintf(name, sizeof name, "quantizer.downsample.%d.1", i);
        TRY(convnext(b, name, c->latent, &w->downsample_next[i]));
    }
    return transformer(b, "quantizer.pre_module", c->layers, c->latent, c->n_head, c->intermediate, c->window, &w->pre);
}

status_t codec_weights_build(const struct tensor_set *tensors, const char *label, const struct codec_config *config,
                             enum codec_mode mode, int path, struct codec_weights **out)
{
    struct codec_weights *w = calloc(1, sizeof *w);
    struct builder        b = {.tensors = tensors, .label = label, .mode = mode, .w = w};
    status_t              st = ST_OK;
    if (!w || !(w->arena = calloc(1, sizeof *w->arena))) {
        free(w);
        return FAIL(ST_ENOMEM, "codec weights: no memory");
    }
    w->config      = *config;
    w->mode        = mode;
    w->has_decoder = path & CODEC_PATH_DECODE;
    w->has_encoder = path & CODEC_PATH_ENCODE;
    w->n_codebooks = 1 + config->residual_codebooks;
    TRY_OUT(take(w, (size_t)w->n_codebooks * sizeof *w->codebooks, &w->codebooks));
    memset(w->codebooks, 0, (size_t)w->n_codebooks * sizeof *w->codebooks);
    for (int k = 0; k < w->n_codebooks; k++) {
        char prefix[96];
        snprintf(prefix, sizeof prefix, k ? "quantizer.quantizer.quantizers.%d" : "quantizer.semantic_quantizer.quantizers.%d",
                 k ? k - 1 : 0);
        TRY_OUT(codebook(&b, prefix, k ? RESIDUAL_CODES : SEMANTIC_CODES, &w->codebooks[k]));
    }
    if (w->has_decoder)
        TRY_OUT(build_decoder(&b));
    if (w->has_encoder)
        TRY_OUT(build_encoder(&b));
    *out = w;
    return ST_OK;
out:
    codec_weights_free(w);
    return st;
}

void codec_weights_free(struct codec_weights *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->arena->count; i++)
        free(w->arena->blocks[i]);
    free(w->arena->blocks);
    free(w->arena);
    free(w);
}
