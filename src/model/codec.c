#include "model/codec.h"

#include "backend/codec_ops.h"
#include "base/file.h"
#include "checkpoint/torch_file.h"
#include "model/bf16.h"
#include "model/codec_weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { UNIT_TAPS = 7, DEPTHWISE_TAPS = 7, DEFAULT_CHUNK = 16 };
static const int dilations[CODEC_UNITS] = {1, 3, 9};
static const float NORM_EPS = 1e-6f; /* ConvNeXt's LayerNorm */

/* The inputs a causal layer still needs: the last `rows` rows of `width`, zero at the start of an utterance. */
struct past {
    int   rows, width;
    void *d;
};

struct unit_state {
    struct past conv1;
};

struct block_state {
    struct past       resample;
    struct unit_state units[CODEC_UNITS];
};

struct path_state {
    struct past *kv;     /* [layers] of the transformer at 21.5 Hz          */
    struct past *top_kv; /* encoder: [layers] of the transformer at its end */
    struct past  resample[CODEC_DOWNSAMPLES], next[CODEC_DOWNSAMPLES];
    struct past  in, out;
    struct block_state blocks[CODEC_RATES];
    int          position; /* frames so far */
};

struct codec {
    struct backend         *be;
    const struct backend_ops *ops;
    const struct codec_ops *codec;
    struct codec_weights   *w;
    struct codec_options    options;
    enum dtype              act;
    size_t                  item; /* bytes of an activation */
    int                     hop;
    struct path_state       decode, encode;
    void                   *buffer[3]; /* activations: current, wide (history in front), result */
    size_t                  capacity;  /* items of one buffer */
    float                  *d_cos_sin;
    int                     cos_sin_rows;
    void                  **owned; /* device allocations to free */
    size_t                  n_owned, owned_capacity;
    void                   *d_latent; /* [4·chunk][latent] of the last push */
    int                     latent_rows;
};

/* ---- resources ---- */

static status_t own(struct codec *c, void *d)
{
    if (c->n_owned == c->owned_capacity) {
        size_t capacity = c->owned_capacity ? 2 * c->owned_capacity : 256;
        void **list     = realloc(c->owned, capacity * sizeof *list);
        if (!list) {
            c->ops->free(c->be, d);
            return FAIL(ST_ENOMEM, "codec: no memory");
        }
        c->owned          = list;
        c->owned_capacity = capacity;
    }
    c->owned[c->n_owned++] = d;
    return ST_OK;
}

static status_t device(struct codec *c, size_t bytes, void *out)
{
    void *d;
    TRY(c->ops->alloc(c->be, MEM_CODEC, bytes, &d));
    TRY(own(c, d));
    memcpy(out, &d, sizeof d);
    return ST_OK;
}

/* Replace a host vector by its device copy. */
static status_t lift(struct codec *c, float **v, size_t n)
{
    float *d;
    TRY(device(c, n * sizeof *d, &d));
    TRY(c->ops->upload(c->be, d, *v, n * sizeof *d));
    *v = d;
    return ST_OK;
}

static status_t adopt(struct codec *c, struct codec_matrix *m)
{
    struct codec_matrix made;
    TRY(c->codec->adopt(c->be, m, &made));
    *m = made;
    return ST_OK;
}

static status_t past_open(struct codec *c, struct past *p, int rows, int width)
{
    p->rows  = rows;
    p->width = width;
    if (rows == 0)
        return ST_OK;
    return device(c, (size_t)rows * (size_t)width * c->item, &p->d);
}

static status_t past_clear(struct codec *c, struct past *p, const void *zeros)
{
    return p->rows ? c->ops->upload(c->be, p->d, zeros, (size_t)p->rows * (size_t)p->width * c->item) : ST_OK;
}

/* ---- adoption of every layer ---- */

static status_t adopt_transformer(struct codec *c, struct codec_transformer *t)
{
    size_t dim = (size_t)t->dim;
    for (int i = 0; i < t->n_layer; i++) {
        struct codec_transformer_layer *l = &t->layers[i];
        TRY(adopt(c, &l->wqkv));
        TRY(adopt(c, &l->wo));
        TRY(adopt(c, &l->w13));
        TRY(adopt(c, &l->w2));
        TRY(lift(c, &l->attention_norm, dim));
        TRY(lift(c, &l->ffn_norm, dim));
        TRY(lift(c, &l->attention_gamma, dim));
        TRY(lift(c, &l->ffn_gamma, dim));
    }
    return t->n_layer || t->norm ? lift(c, &t->norm, dim) : ST_OK;
}

static status_t adopt_convnext(struct codec *c, struct codec_convnext *n)
{
    size_t channels = (size_t)c->w->config.latent;
    TRY(lift(c, &n->depthwise, channels * DEPTHWISE_TAPS));
    TRY(lift(c, &n->depthwise_bias, channels));
    TRY(lift(c, &n->norm, channels));
    TRY(lift(c, &n->norm_bias, channels));
    TRY(lift(c, &n->gamma, channels));
    TRY(adopt(c, &n->up));
    return adopt(c, &n->down);
}

static status_t adopt_block(struct codec *c, struct codec_block *b, int unit_channels)
{
    TRY(lift(c, &b->alpha, (size_t)b->in));
    TRY(adopt(c, &b->resample));
    for (int u = 0; u < CODEC_UNITS; u++) {
        TRY(lift(c, &b->units[u].alpha1, (size_t)unit_channels));
        TRY(lift(c, &b->units[u].alpha2, (size_t)unit_channels));
        TRY(adopt(c, &b->units[u].conv1));
        TRY(adopt(c, &b->units[u].conv2));
    }
    return ST_OK;
}

static status_t open_kv(struct codec *c, const struct codec_transformer *t, struct past **out)
{
    *out = calloc((size_t)t->n_layer + 1, sizeof **out);
    if (!*out)
        return FAIL(ST_ENOMEM, "codec: no memory");
    for (int i = 0; i < t->n_layer; i++)
        TRY(past_open(c, &(*out)[i], t->window - 1, 2 * t->dim));
    return ST_OK;
}

static status_t open_units(struct codec *c, struct block_state *s, int channels)
{
    for (int u = 0; u < CODEC_UNITS; u++)
        TRY(past_open(c, &s->units[u].conv1, (UNIT_TAPS - 1) * dilations[u], channels));
    return ST_OK;
}

static status_t open_decoder(struct codec *c)
{
    struct codec_weights *w = c->w;
    struct path_state    *s = &c->decode;
    TRY(adopt_transformer(c, &w->post));
    TRY(open_kv(c, &w->post, &s->kv));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        TRY(adopt(c, &w->upsample[i]));
        TRY(adopt_convnext(c, &w->upsample_next[i]));
        TRY(past_open(c, &s->next[i], DEPTHWISE_TAPS - 1, w->config.latent));
    }
    TRY(adopt(c, &w->decoder_in));
    TRY(past_open(c, &s->in, w->decoder_in.taps - 1, w->config.latent));
    for (int i = 0; i < CODEC_RATES; i++) {
        struct codec_block *b = &w->decoder[i];
        TRY(adopt_block(c, b, b->out));
        TRY(past_open(c, &s->blocks[i].resample, 1, b->in));
        TRY(open_units(c, &s->blocks[i], b->out));
    }
    int last = w->config.decoder_dim >> CODEC_RATES;
    TRY(lift(c, &w->decoder_alpha, (size_t)last));
    TRY(adopt(c, &w->decoder_out));
    return past_open(c, &s->out, w->decoder_out.taps - 1, last);
}

static status_t open_encoder(struct codec *c)
{
    struct codec_weights *w = c->w;
    struct path_state    *s = &c->encode;
    int                   top = w->config.encoder_dim << CODEC_RATES;
    TRY(adopt(c, &w->encoder_in));
    TRY(past_open(c, &s->in, w->encoder_in.taps - 1, 1));
    for (int i = 0; i < CODEC_RATES; i++) {
        struct codec_block *b = &w->encoder[i];
        TRY(adopt_block(c, b, b->in));
        TRY(open_units(c, &s->blocks[i], b->in));
        TRY(past_open(c, &s->blocks[i].resample, b->stride, b->in)); /* (2s−1) + 1 − s rows, codec.md §2.4 */
    }
    if (w->encoder_transformer.n_layer)
        TRY(adopt_transformer(c, &w->encoder_transformer));
    TRY(open_kv(c, &w->encoder_transformer, &s->top_kv));
    TRY(lift(c, &w->encoder_alpha, (size_t)top));
    TRY(adopt(c, &w->encoder_out));
    TRY(past_open(c, &s->out, w->encoder_out.taps - 1, top));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        TRY(adopt(c, &w->downsample[i]));
        TRY(adopt_convnext(c, &w->downsample_next[i]));
        TRY(past_open(c, &s->next[i], DEPTHWISE_TAPS - 1, w->config.latent));
    }
    TRY(adopt_transformer(c, &w->pre));
    return open_kv(c, &w->pre, &s->kv);
}

/* Interleaved RoPE, base 10000, values rounded to BF16 as in the original's table (also in FP32). */
static status_t open_rope(struct codec *c)
{
    int    half = c->w->config.head_dim / 2;
    int    rows = c->w->config.max_frames;
    if (c->w->encoder_transformer.n_layer) /* runs at 86 Hz */
        rows <<= CODEC_DOWNSAMPLES;
    size_t n     = (size_t)rows * (size_t)half * 2;
    float *table = malloc(n * sizeof *table);
    if (!table)
        return FAIL(ST_ENOMEM, "codec: no memory for the RoPE table");
    for (int p = 0; p < rows; p++)
        for (int j = 0; j < half; j++) {
            float frequency = 1.0f / powf(10000.0f, (float)(2 * j) / (float)(2 * half));
            float angle     = (float)p * frequency;
            table[((size_t)p * (size_t)half + (size_t)j) * 2]     = bf16_round(cosf(angle));
            table[((size_t)p * (size_t)half + (size_t)j) * 2 + 1] = bf16_round(sinf(angle));
        }
    status_t st = device(c, n * sizeof *table, &c->d_cos_sin);
    if (st == ST_OK)
        st = c->ops->upload(c->be, c->d_cos_sin, table, n * sizeof *table);
    free(table);
    c->cos_sin_rows = rows;
    return st;
}

/* The most items any activation of one chunk needs, its history in front included. */
static size_t buffer_items(const struct codec *c)
{
    const struct codec_config *k = &c->w->config;
    size_t n = (size_t)c->options.chunk_frames, most = 0;
#define WANT(rows, width)                                     \
    do {                                                      \
        size_t items = ((size_t)(rows)) * (size_t)(width);    \
        most         = items > most ? items : most;           \
    } while (0)
    const struct codec_transformer *stacks[] = {&c->w->post, &c->w->pre, &c->w->encoder_transformer};
    for (int i = 0; i < 3; i++) {
        size_t rows = i == 2 ? 4 * n : n;
        WANT(rows, 4 * stacks[i]->dim); /* qkv, then the attention's output */
        WANT(rows, 2 * stacks[i]->intermediate);
        WANT(rows + (size_t)stacks[i]->window, 2 * stacks[i]->dim);
    }
    WANT(4 * n + DEPTHWISE_TAPS, 4 * k->latent);
    WANT(4 * n + UNIT_TAPS, k->decoder_dim > k->latent ? k->decoder_dim : k->latent);
    size_t rows = 4 * n;
    for (int i = 0; i < CODEC_RATES; i++) {
        WANT(rows + 2, k->decoder_dim >> i);
        rows *= (size_t)k->rates[i];
        WANT(rows + (UNIT_TAPS - 1) * 9, k->decoder_dim >> (i + 1));
    }
    rows = n * (size_t)c->hop;
    for (int i = 0; i < CODEC_RATES && c->options.encoder; i++) {
        WANT(rows + (UNIT_TAPS - 1) * 9 + 16, k->encoder_dim << i);
        rows /= (size_t)k->rates[CODEC_RATES - 1 - i];
        WANT(rows + 16, k->encoder_dim << (i + 1));
    }
#undef WANT
    return most;
}

static status_t load_weights(struct codec *c, const char *path)
{
    char              pth[4200], json[4200];
    struct stat       info;
    struct codec_config config;
    struct torch_file *file = NULL;
    status_t          st    = ST_OK;
    codec_config_published(&config);
    if (stat(path, &info))
        return FAIL(ST_EIO, "%s: %m; a codec is a folder with codec.pth or the file itself", path);
    bool folder = S_ISDIR(info.st_mode);
    snprintf(pth, sizeof pth, folder ? "%s/codec.pth" : "%s", path);
    snprintf(json, sizeof json, "%.*s/codec.json", folder ? (int)strlen(path) : (int)(strrchr(path, '/') ? strrchr(path, '/') - path : 1),
             folder || strrchr(path, '/') ? path : ".");
    if (stat(json, &info) == 0) {
        char  *text = NULL;
        size_t size = 0;
        TRY(file_read(json, 1 << 20, &text, &size));
        st = codec_config_parse(text, size, json, &config);
        free(text);
        TRY(st);
    }
    TRY(torch_file_open(pth, &file));
    st = codec_weights_build(torch_file_tensors(file), pth, &config, c->options.mode,
                             (c->options.decoder ? CODEC_PATH_DECODE : 0) | (c->options.encoder ? CODEC_PATH_ENCODE : 0),
                             &c->w);
    torch_file_close(file);
    return st;
}

status_t codec_open(struct backend *be, const char *path, const struct codec_options *options, struct codec **out)
{
    const struct backend_ops *ops = backend_ops_of(be);
    if (!ops->codec)
        return FAIL(ST_EUNSUPPORTED, "device %s offers no codec; use --device cpu", ops->name);
    if (options->mode <= CODEC_OFF || options->mode >= CODEC_COUNT || options->chunk_frames < 0 ||
        options->chunk_frames > 4096)
        return FAIL(ST_EUSAGE, "codec: precision wants fp32, bf16 or int8, and at most 4096 frames a chunk");
    struct codec *c = calloc(1, sizeof *c);
    if (!c)
        return FAIL(ST_ENOMEM, "codec: no memory");
    status_t st = ST_OK;
    c->be       = be;
    c->ops      = ops;
    c->codec    = ops->codec;
    c->options  = *options;
    if (!c->options.chunk_frames)
        c->options.chunk_frames = DEFAULT_CHUNK;
    c->act  = c->codec->activation(options->mode);
    c->item = dtype_size(c->act);
    TRY_OUT(load_weights(c, path));
    c->hop = codec_config_hop(&c->w->config);
    if (options->decoder)
        TRY_OUT(open_decoder(c));
    if (options->encoder)
        TRY_OUT(open_encoder(c));
    TRY_OUT(open_rope(c));
    c->capacity = buffer_items(c);
    for (int i = 0; i < 3; i++)
        TRY_OUT(device(c, c->capacity * c->item, &c->buffer[i]));
    if (options->decoder)
        TRY_OUT(device(c, ((size_t)c->options.chunk_frames << CODEC_DOWNSAMPLES) * (size_t)c->w->config.latent * c->item,
                       &c->d_latent));
    TRY_OUT(ops->sync(be));
    *out = c;
    return ST_OK;
out:
    codec_close(c);
    return st;
}

static void release_matrices(struct codec *c)
{
    struct codec_weights     *w = c->w;
    struct codec_transformer *stacks[] = {&w->post, &w->pre, &w->encoder_transformer};
    for (int i = 0; i < 3; i++)
        for (int l = 0; l < stacks[i]->n_layer; l++) {
            c->codec->release(c->be, &stacks[i]->layers[l].wqkv);
            c->codec->release(c->be, &stacks[i]->layers[l].wo);
            c->codec->release(c->be, &stacks[i]->layers[l].w13);
            c->codec->release(c->be, &stacks[i]->layers[l].w2);
        }
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        struct codec_matrix *all[] = {&w->upsample[i], &w->downsample[i], &w->upsample_next[i].up,
                                      &w->upsample_next[i].down, &w->downsample_next[i].up, &w->downsample_next[i].down};
        for (int k = 0; k < 6; k++)
            c->codec->release(c->be, all[k]);
    }
    struct codec_matrix *ends[] = {&w->decoder_in, &w->decoder_out, &w->encoder_in, &w->encoder_out};
    for (int k = 0; k < 4; k++)
        c->codec->release(c->be, ends[k]);
    for (int i = 0; i < CODEC_RATES; i++)
        for (int side = 0; side < 2; side++) {
            struct codec_block *b = side ? &w->encoder[i] : &w->decoder[i];
            c->codec->release(c->be, &b->resample);
            for (int u = 0; u < CODEC_UNITS; u++) {
                c->codec->release(c->be, &b->units[u].conv1);
                c->codec->release(c->be, &b->units[u].conv2);
            }
        }
}

void codec_close(struct codec *c)
{
    if (!c)
        return;
    if (c->w)
        release_matrices(c);
    for (size_t i = 0; i < c->n_owned; i++)
        c->ops->free(c->be, c->owned[i]);
    free(c->owned);
    free(c->decode.kv);
    free(c->encode.kv);
    free(c->encode.top_kv);
    codec_weights_free(c->w);
    free(c);
}

const struct codec_config *codec_config_of(const struct codec *c)
{
    return &c->w->config;
}

size_t codec_weight_bytes(const struct codec *c)
{
    return c->w->bytes;
}

int codec_codebooks(const struct codec *c)
{
    return c->w->n_codebooks;
}

int codec_hop(const struct codec *c)
{
    return c->hop;
}

/* ---- layers over the three buffers ----
 * x is always in buffer[0]. A layer with history builds its input in buffer[1], history in front, and keeps its tail. */

static void *at(const struct codec *c, void *base, size_t items)
{
    return (char *)base + items * c->item;
}

/* Put p's rows in front of the n new rows that the caller has written at row p->rows of buffer[1]; keep the new tail. */
static status_t join(struct codec *c, struct past *p, int n)
{
    size_t row = (size_t)p->width * c->item;
    if (p->rows == 0)
        return ST_OK;
    TRY(c->codec->copy(c->be, c->buffer[1], p->d, (size_t)p->rows * row));
    return c->codec->copy(c->be, p->d, (char *)c->buffer[1] + (size_t)n * row, (size_t)p->rows * row);
}

/* buffer[0] → buffer[1] behind p's history. */
static status_t stage(struct codec *c, struct past *p, int n)
{
    size_t row = (size_t)p->width * c->item;
    TRY(c->codec->copy(c->be, (char *)c->buffer[1] + (size_t)p->rows * row, c->buffer[0], (size_t)n * row));
    return join(c, p, n);
}

static status_t stage_snake(struct codec *c, struct past *p, const float *d_alpha, int n)
{
    TRY(c->codec->snake(c->be, c->act, at(c, c->buffer[1], (size_t)p->rows * (size_t)p->width), c->buffer[0], d_alpha, n,
                        p->width));
    return join(c, p, n);
}

static void swap_in(struct codec *c, int i)
{
    void *t      = c->buffer[0];
    c->buffer[0] = c->buffer[i];
    c->buffer[i] = t;
}

static status_t conv(struct codec *c, void *y, const struct codec_matrix *m, const void *x, int n, int stride, int dilation,
                     const float *gamma, const void *residual, enum codec_activation act)
{
    struct codec_epilogue e = {.act = act, .d_gamma = gamma, .d_residual = residual};
    return c->codec->conv(c->be, c->act, y, m, x, n, stride, dilation, &e);
}

/* x + conv1(Snake(conv7(Snake(x)))), in place. */
static status_t run_unit(struct codec *c, const struct codec_unit *u, struct unit_state *s, int dilation, int n)
{
    int channels = u->conv1.rows;
    TRY(stage_snake(c, &s->conv1, u->alpha1, n));
    TRY(conv(c, c->buffer[2], &u->conv1, c->buffer[1], n, 1, dilation, NULL, NULL, ACT_NONE));
    TRY(c->codec->snake(c->be, c->act, c->buffer[2], c->buffer[2], u->alpha2, n, channels));
    return conv(c, c->buffer[0], &u->conv2, c->buffer[2], n, 1, 1, NULL, c->buffer[0], ACT_NONE);
}

static status_t run_convnext(struct codec *c, const struct codec_convnext *w, struct past *p, int n)
{
    int channels = p->width;
    TRY(stage(c, p, n));
    TRY(c->codec->depthwise(c->be, c->act, c->buffer[2], c->buffer[1], w->depthwise, w->depthwise_bias, n, channels,
                            DEPTHWISE_TAPS));
    TRY(c->codec->layernorm(c->be, c->act, c->buffer[2], c->buffer[2], w->norm, w->norm_bias, n, channels, NORM_EPS));
    TRY(conv(c, c->buffer[1], &w->up, c->buffer[2], n, 1, 1, NULL, NULL, ACT_GELU));
    return conv(c, c->buffer[0], &w->down, c->buffer[1], n, 1, 1, w->gamma, c->buffer[0], ACT_NONE);
}

static status_t run_transformer(struct codec *c, const struct codec_transformer *t, struct past *kv, int n, int pos0)
{
    struct codec_attention a = {.n_head = t->n_head, .head_dim = t->head_dim, .window = t->window,
                                .d_cos_sin = c->d_cos_sin};
    if (pos0 + n > c->cos_sin_rows)
        return FAIL(ST_EINPUT, "codec: position %d is beyond the %d its RoPE table holds (%.0f s of audio)", pos0 + n,
                    c->cos_sin_rows, c->w->config.max_frames * (double)c->hop / c->w->config.sample_rate);
    for (int i = 0; i < t->n_layer; i++) {
        const struct codec_transformer_layer *l = &t->layers[i];
        TRY(c->codec->rmsnorm(c->be, c->act, c->buffer[2], c->buffer[0], l->attention_norm, n, t->dim, t->eps));
        TRY(conv(c, c->buffer[1], &l->wqkv, c->buffer[2], n, 1, 1, NULL, NULL, ACT_NONE));
        /* qkv moves to buffer[2], so that the keys and values can grow behind their history in buffer[1]. */
        TRY(c->codec->copy(c->be, c->buffer[2], c->buffer[1], (size_t)n * 3 * (size_t)t->dim * c->item));
        size_t row  = (size_t)kv[i].width * c->item;
        int    past = pos0 < kv[i].rows ? pos0 : kv[i].rows;
        if (past)
            TRY(c->codec->copy(c->be, c->buffer[1], (char *)kv[i].d + (size_t)(kv[i].rows - past) * row, (size_t)past * row));
        size_t y = ((size_t)n * 3 * (size_t)t->dim);
        TRY(c->codec->attention(c->be, c->act, at(c, c->buffer[2], y), c->buffer[2], c->buffer[1], &a, n, pos0, past));
        TRY(conv(c, c->buffer[0], &l->wo, at(c, c->buffer[2], y), n, 1, 1, l->attention_gamma, c->buffer[0], ACT_NONE));
        /* Keep the last rows; while there are fewer than a window, they stand at the end. */
        int keep = past + n < kv[i].rows ? past + n : kv[i].rows;
        if (keep)
            TRY(c->codec->copy(c->be, (char *)kv[i].d + (size_t)(kv[i].rows - keep) * row,
                               (char *)c->buffer[1] + (size_t)(past + n - keep) * row, (size_t)keep * row));
        TRY(c->codec->rmsnorm(c->be, c->act, c->buffer[2], c->buffer[0], l->ffn_norm, n, t->dim, t->eps));
        TRY(conv(c, c->buffer[1], &l->w13, c->buffer[2], n, 1, 1, NULL, NULL, ACT_NONE));
        TRY(c->codec->silu_mul(c->be, c->act, c->buffer[2], c->buffer[1], n, t->intermediate));
        TRY(conv(c, c->buffer[0], &l->w2, c->buffer[2], n, 1, 1, l->ffn_gamma, c->buffer[0], ACT_NONE));
    }
    TRY(c->codec->rmsnorm(c->be, c->act, c->buffer[2], c->buffer[0], t->norm, n, t->dim, t->eps));
    swap_in(c, 2);
    return ST_OK;
}

/* ---- decode ---- */

/* Keys and values need no clearing: `past` counts the valid ones. */
static status_t clear_state(struct codec *c, struct path_state *s)
{
    size_t most = 0;
    struct past *all[5 + 2 * CODEC_DOWNSAMPLES + CODEC_RATES * (1 + CODEC_UNITS)];
    int          n = 0;
    all[n++] = &s->in;
    all[n++] = &s->out;
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        all[n++] = &s->resample[i];
        all[n++] = &s->next[i];
    }
    for (int i = 0; i < CODEC_RATES; i++) {
        all[n++] = &s->blocks[i].resample;
        for (int u = 0; u < CODEC_UNITS; u++)
            all[n++] = &s->blocks[i].units[u].conv1;
    }
    for (int i = 0; i < n; i++) {
        size_t bytes = (size_t)all[i]->rows * (size_t)all[i]->width * c->item;
        most         = bytes > most ? bytes : most;
    }
    void *zeros = calloc(1, most + 1);
    if (!zeros)
        return FAIL(ST_ENOMEM, "codec: no memory");
    status_t st = ST_OK;
    for (int i = 0; i < n && st == ST_OK; i++)
        st = past_clear(c, all[i], zeros);
    if (st == ST_OK)
        st = c->ops->sync(c->be);
    free(zeros);
    s->position = 0;
    return st;
}

status_t codec_decode_begin(struct codec *c)
{
    return clear_state(c, &c->decode);
}

/* z = z_semantic + (((z_1 + z_2) + …) + z_9), each W·codebook[c] + b (codec.md §2.1), x [n][latent]. */
static status_t dequantize(const struct codec *c, const int32_t *codes, size_t stride, int n, float *x)
{
    const struct codec_weights *w = c->w;
    size_t                      latent = (size_t)w->config.latent;
    float                      *sum    = malloc(latent * sizeof *sum);
    if (!sum)
        return FAIL(ST_ENOMEM, "codec: no memory");
    for (int t = 0; t < n; t++) {
        memset(sum, 0, latent * sizeof *sum);
        for (int k = w->n_codebooks > 1 ? 1 : 0;;) {
            const struct codebook *b    = &w->codebooks[k];
            int32_t                code = codes[(size_t)k * stride + (size_t)t];
            if (code < 0) {
                free(sum);
                return FAIL(ST_EINPUT, "codec: frame %d, codebook %d: code %d is negative", c->decode.position + t, k, code);
            }
            const float *v = b->table + (size_t)(code < b->size ? code : b->size - 1) * CODEBOOK_DIM;
            for (size_t o = 0; o < latent; o++) {
                float z = 0;
                for (int i = 0; i < CODEBOOK_DIM; i++)
                    z += b->out_w[o * CODEBOOK_DIM + (size_t)i] * v[i];
                z += b->out_b[o];
                sum[o] = k == 0 ? z + sum[o] : sum[o] + z;
            }
            if (k == 0)
                break;
            k = k + 1 < w->n_codebooks ? k + 1 : 0;
        }
        memcpy(x + (size_t)t * latent, sum, latent * sizeof *sum);
    }
    free(sum);
    return ST_OK;
}

status_t codec_decode_push(struct codec *c, const int32_t *codes, size_t stride, int n, float *wav)
{
    struct codec_weights *w = c->w;
    struct path_state    *s = &c->decode;
    if (n < 1 || n > c->options.chunk_frames || !w->has_decoder)
        return FAIL(ST_EINTERNAL, "codec: a push of %d frames, at most %d", n, c->options.chunk_frames);
    size_t latent = (size_t)w->config.latent;
    float *x      = malloc((size_t)n * latent * sizeof *x);
    if (!x)
        return FAIL(ST_ENOMEM, "codec: no memory");
    status_t st = dequantize(c, codes, stride, n, x);
    if (st == ST_OK)
        st = c->codec->load(c->be, c->act, c->buffer[0], x, (size_t)n * latent);
    if (st == ST_OK)
        st = c->ops->sync(c->be);
    free(x);
    TRY(st);
    TRY(run_transformer(c, &w->post, s->kv, n, s->position));
    int rows = n;
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        TRY(conv(c, c->buffer[2], &w->upsample[i], c->buffer[0], rows, 1, 1, NULL, NULL, ACT_NONE));
        swap_in(c, 2);
        rows *= 2;
        TRY(run_convnext(c, &w->upsample_next[i], &s->next[i], rows));
    }
    TRY(stage(c, &s->in, rows));
    TRY(c->codec->copy(c->be, c->d_latent, at(c, c->buffer[1], (size_t)s->in.rows * latent), (size_t)rows * latent * c->item));
    c->latent_rows = rows;
    TRY(conv(c, c->buffer[0], &w->decoder_in, c->buffer[1], rows, 1, 1, NULL, NULL, ACT_NONE));
    for (int i = 0; i < CODEC_RATES; i++) {
        const struct codec_block *b = &w->decoder[i];
        TRY(stage_snake(c, &s->blocks[i].resample, b->alpha, rows));
        TRY(conv(c, c->buffer[0], &b->resample, c->buffer[1], rows, 1, 1, NULL, NULL, ACT_NONE));
        rows *= b->stride;
        for (int u = 0; u < CODEC_UNITS; u++)
            TRY(run_unit(c, &b->units[u], &s->blocks[i].units[u], dilations[u], rows));
    }
    TRY(stage_snake(c, &s->out, w->decoder_alpha, rows));
    TRY(conv(c, c->buffer[0], &w->decoder_out, c->buffer[1], rows, 1, 1, NULL, NULL, ACT_TANH));
    s->position += n;
    return c->codec->store(c->be, DT_F32, wav, c->buffer[0], (size_t)rows); /* one channel: FP32 in every mode */
}

status_t codec_decode(struct codec *c, const struct codes *codes, float *wav)
{
    if (codes->codebooks != c->w->n_codebooks)
        return FAIL(ST_EINPUT, "codec: the codes have %d codebooks, this codec %d", codes->codebooks, c->w->n_codebooks);
    if (codes->frames > c->w->config.max_frames)
        return FAIL(ST_EINPUT, "codec: %d frames, at most %d (%.0f s) fit its position table", codes->frames,
                    c->w->config.max_frames, c->w->config.max_frames * (double)c->hop / c->w->config.sample_rate);
    TRY(codec_decode_begin(c));
    for (int t = 0; t < codes->frames; t += c->options.chunk_frames) {
        int n = codes->frames - t < c->options.chunk_frames ? codes->frames - t : c->options.chunk_frames;
        TRY(codec_decode_push(c, codes->values + t, (size_t)codes->frames, n, wav + (size_t)t * (size_t)c->hop));
    }
    return ST_OK;
}

/* ---- encode ---- */

static status_t encode_push(struct codec *c, const float *wav, int n, float *z)
{
    struct codec_weights *w = c->w;
    struct path_state    *s = &c->encode;
    int                   rows = n * c->hop;
    TRY(c->codec->load(c->be, c->act, c->buffer[0], wav, (size_t)rows));
    TRY(stage(c, &s->in, rows));
    TRY(conv(c, c->buffer[0], &w->encoder_in, c->buffer[1], rows, 1, 1, NULL, NULL, ACT_NONE));
    for (int i = 0; i < CODEC_RATES; i++) {
        const struct codec_block *b = &w->encoder[i];
        for (int u = 0; u < CODEC_UNITS; u++)
            TRY(run_unit(c, &b->units[u], &s->blocks[i].units[u], dilations[u], rows));
        TRY(stage_snake(c, &s->blocks[i].resample, b->alpha, rows));
        rows /= b->stride;
        TRY(conv(c, c->buffer[0], &b->resample, c->buffer[1], rows, b->stride, 1, NULL, NULL, ACT_NONE));
    }
    if (w->encoder_transformer.n_layer)
        TRY(run_transformer(c, &w->encoder_transformer, s->top_kv, rows, s->position << CODEC_DOWNSAMPLES));
    TRY(stage_snake(c, &s->out, w->encoder_alpha, rows));
    TRY(conv(c, c->buffer[0], &w->encoder_out, c->buffer[1], rows, 1, 1, NULL, NULL, ACT_NONE));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        rows /= 2;
        TRY(conv(c, c->buffer[2], &w->downsample[i], c->buffer[0], rows, 2, 1, NULL, NULL, ACT_NONE));
        swap_in(c, 2);
        TRY(run_convnext(c, &w->downsample_next[i], &s->next[i], rows));
    }
    TRY(run_transformer(c, &w->pre, s->kv, rows, s->position));
    s->position += n;
    return c->codec->store(c->be, c->act, z, c->buffer[0], (size_t)rows * (size_t)w->config.latent);
}

/* Row of the codebook with the largest cosine similarity to in_proj(z), lowest index on ties; both sides L2-normalised
 * with a floor of 1e-12 (codec.md §5). Subtracts that row's projection from z. */
static int32_t quantize_frame(const struct codebook *b, int latent, float *z)
{
    float e[CODEBOOK_DIM], norm = 0;
    for (int i = 0; i < CODEBOOK_DIM; i++) {
        e[i] = 0;
        for (int k = 0; k < latent; k++)
            e[i] += b->in_w[(size_t)i * (size_t)latent + (size_t)k] * z[k];
        e[i] += b->in_b[i];
        norm += e[i] * e[i];
    }
    norm = sqrtf(norm) > 1e-12f ? sqrtf(norm) : 1e-12f;
    int32_t best      = 0;
    float   best_cosine = -INFINITY;
    for (int32_t row = 0; row < b->size; row++) {
        const float *v = b->table + (size_t)row * CODEBOOK_DIM;
        float        dot = 0, length = 0;
        for (int i = 0; i < CODEBOOK_DIM; i++)
            length += v[i] * v[i];
        length = sqrtf(length) > 1e-12f ? sqrtf(length) : 1e-12f;
        for (int i = 0; i < CODEBOOK_DIM; i++)
            dot += (e[i] / norm) * (v[i] / length);
        if (dot > best_cosine) {
            best_cosine = dot;
            best        = row;
        }
    }
    const float *v = b->table + (size_t)best * CODEBOOK_DIM;
    for (int k = 0; k < latent; k++) {
        float p = 0;
        for (int i = 0; i < CODEBOOK_DIM; i++)
            p += b->out_w[(size_t)k * CODEBOOK_DIM + (size_t)i] * v[i];
        z[k] -= p + b->out_b[k];
    }
    return best;
}

status_t codec_encode(struct codec *c, const float *wav, size_t n, struct codes *out)
{
    size_t hop = (size_t)c->hop, frames = (n + hop - 1) / hop, latent = (size_t)c->w->config.latent;
    if (!c->w->has_encoder)
        return FAIL(ST_EINTERNAL, "codec: opened without its encoder");
    if (frames < 1 || frames > (size_t)c->w->config.max_frames)
        return FAIL(ST_EINPUT, "codec: %zu samples are %zu frames; 1 to %d can be encoded", n, frames,
                    c->w->config.max_frames);
    size_t    most   = (size_t)c->options.chunk_frames;
    float    *chunk  = malloc(most * hop * sizeof *chunk), *z = malloc(most * latent * sizeof *z);
    int32_t  *values = malloc((size_t)c->w->n_codebooks * frames * sizeof *values);
    status_t  st     = ST_OK;
    if (!chunk || !z || !values)
        TRY_OUT(FAIL(ST_ENOMEM, "codec: no memory to encode %zu frames", frames));
    TRY_OUT(clear_state(c, &c->encode));
    for (size_t t = 0; t < frames; t += most) {
        size_t m = frames - t < most ? frames - t : most, have = n - t * hop < m * hop ? n - t * hop : m * hop;
        memcpy(chunk, wav + t * hop, have * sizeof *chunk);
        memset(chunk + have, 0, (m * hop - have) * sizeof *chunk);
        TRY_OUT(encode_push(c, chunk, (int)m, z));
        for (size_t i = 0; i < m; i++)
            for (int k = 0; k < c->w->n_codebooks; k++)
                values[(size_t)k * frames + t + i] = quantize_frame(&c->w->codebooks[k], (int)latent, z + i * latent);
    }
    *out   = (struct codes){.codebooks = c->w->n_codebooks, .frames = (int)frames, .values = values};
    values = NULL;
out:
    free(chunk);
    free(z);
    free(values);
    return st;
}

status_t codec_latent(struct codec *c, float *latent)
{
    if (!c->latent_rows)
        return FAIL(ST_EINTERNAL, "codec: nothing was decoded yet");
    return c->codec->store(c->be, c->act, latent, c->d_latent, (size_t)c->latent_rows * (size_t)c->w->config.latent);
}
