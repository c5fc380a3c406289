#include "model/codec.h"

#include "base/file.h"
#include "checkpoint/torch_file.h"
#include "model/bf16.h"
#include "model/codec_state.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { DEFAULT_CHUNK = 16 };

/* ---- resources ---- */

static status_t own(struct codec *c, void *d)
{
    if (c->n_owned == c->owned_capacity) {
        size_t capacity = c->owned_capacity ? 2 * c->owned_capacity : 256;
        void **list = realloc(c->owned, capacity * sizeof *list);
        if (!list) {
            c->ops->free(c->be, d);
            return FAIL(ST_ENOMEM, "codec: no memory");
        }
        c->owned = list;
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

/* value_bytes: 4 of plain rows, what the form says of a convolution's. */
static status_t past_open(struct codec *c, struct past *p, int rows, int width, size_t value_bytes)
{
    *p = (struct past){.rows = rows, .width = width, .row_bytes = (size_t)width * value_bytes};
    for (int i = 0; i < 2 && rows; i++)
        TRY(device(c, (size_t)rows * p->row_bytes, &p->d[i]));
    return ST_OK;
}

static status_t conv_past_open(struct codec *c, struct past *p, int rows, int width)
{
    return past_open(c, p, rows, width, codec_form_bytes(c->form));
}

/* Snake's α to its table [2][n]: α, then 1/(α + 1e-9). */
static status_t lift_alpha(struct codec *c, float **alpha, size_t n)
{
    float *table = malloc(2 * n * sizeof *table), *d;
    if (!table)
        return FAIL(ST_ENOMEM, "codec: no memory");
    for (size_t i = 0; i < n; i++) {
        table[i] = (*alpha)[i];
        table[n + i] = 1.0f / ((*alpha)[i] + 1e-9f);
    }
    status_t st = device(c, 2 * n * sizeof *d, &d);
    if (st == ST_OK)
        st = c->ops->upload(c->be, d, table, 2 * n * sizeof *d);
    free(table);
    *alpha = d;
    return st;
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
    TRY(lift_alpha(c, &b->alpha, (size_t)b->in));
    TRY(adopt(c, &b->resample));
    for (int u = 0; u < CODEC_UNITS; u++) {
        TRY(lift_alpha(c, &b->units[u].alpha1, (size_t)unit_channels));
        TRY(lift_alpha(c, &b->units[u].alpha2, (size_t)unit_channels));
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
        TRY(past_open(c, &(*out)[i], t->window - 1, 2 * t->dim, sizeof(float)));
    return ST_OK;
}

static status_t open_units(struct codec *c, struct block_state *s, int channels)
{
    for (int u = 0; u < CODEC_UNITS; u++)
        TRY(conv_past_open(c, &s->units[u].conv1, (UNIT_TAPS - 1) * codec_dilations[u], channels));
    return ST_OK;
}

/* The codebooks as the device sums them: tables, projections and biases, each in one piece. */
static status_t open_books(struct codec *c)
{
    const struct codec_weights *w = c->w;
    size_t                      latent = (size_t)w->config.latent, count = (size_t)w->n_codebooks, entries = 0;
    float                      *d_table, *d_w, *d_b;
    for (size_t k = 0; k < count; k++)
        entries += (size_t)w->codebooks[k].size;
    TRY(device(c, entries * CODEBOOK_DIM * sizeof *d_table, &d_table));
    TRY(device(c, count * latent * CODEBOOK_DIM * sizeof *d_w, &d_w));
    TRY(device(c, count * latent * sizeof *d_b, &d_b));
    c->books = (struct codec_books){.count = w->n_codebooks,
                                    .latent = w->config.latent,
                                    .first_rows = SEMANTIC_CODES,
                                    .other_rows = RESIDUAL_CODES,
                                    .d_table = d_table,
                                    .d_w = d_w,
                                    .d_b = d_b};
    for (size_t k = 0; k < count; k++) {
        const struct codebook *b = &w->codebooks[k];
        size_t                 n = (size_t)b->size * CODEBOOK_DIM;
        TRY(c->ops->upload(c->be, d_table, b->table, n * sizeof *d_table));
        TRY(c->ops->upload(c->be, d_w + k * latent * CODEBOOK_DIM, b->out_w, latent * CODEBOOK_DIM * sizeof *d_w));
        TRY(c->ops->upload(c->be, d_b + k * latent, b->out_b, latent * sizeof *d_b));
        d_table += n;
    }
    return ST_OK;
}

static status_t open_decoder(struct codec *c)
{
    struct codec_weights *w = c->w;
    struct path_state    *s = &c->decode;
    TRY(open_books(c));
    TRY(adopt_transformer(c, &w->post));
    TRY(open_kv(c, &w->post, &s->kv));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        TRY(adopt(c, &w->upsample[i]));
        TRY(adopt_convnext(c, &w->upsample_next[i]));
        TRY(past_open(c, &s->next[i], DEPTHWISE_TAPS - 1, w->config.latent, sizeof(float)));
    }
    TRY(adopt(c, &w->decoder_in));
    TRY(conv_past_open(c, &s->in, w->decoder_in.taps - 1, w->config.latent));
    for (int i = 0; i < CODEC_RATES; i++) {
        struct codec_block *b = &w->decoder[i];
        TRY(adopt_block(c, b, b->out));
        TRY(conv_past_open(c, &s->blocks[i].resample, 1, b->in));
        TRY(open_units(c, &s->blocks[i], b->out));
    }
    int last = w->config.decoder_dim >> CODEC_RATES;
    TRY(lift_alpha(c, &w->decoder_alpha, (size_t)last));
    TRY(adopt(c, &w->decoder_out));
    return conv_past_open(c, &s->out, w->decoder_out.taps - 1, last);
}

static status_t open_encoder(struct codec *c)
{
    struct codec_weights *w = c->w;
    struct path_state    *s = &c->encode;
    int                   top = w->config.encoder_dim << CODEC_RATES;
    TRY(adopt(c, &w->encoder_in));
    TRY(conv_past_open(c, &s->in, w->encoder_in.taps - 1, 1));
    for (int i = 0; i < CODEC_RATES; i++) {
        struct codec_block *b = &w->encoder[i];
        TRY(adopt_block(c, b, b->in));
        TRY(open_units(c, &s->blocks[i], b->in));
        TRY(conv_past_open(c, &s->blocks[i].resample, b->stride, b->in)); /* (2s−1) + 1 − s rows, codec.md §2.4 */
    }
    if (w->encoder_transformer.n_layer)
        TRY(adopt_transformer(c, &w->encoder_transformer));
    TRY(open_kv(c, &w->encoder_transformer, &s->top_kv));
    TRY(lift_alpha(c, &w->encoder_alpha, (size_t)top));
    TRY(adopt(c, &w->encoder_out));
    TRY(conv_past_open(c, &s->out, w->encoder_out.taps - 1, top));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        TRY(adopt(c, &w->downsample[i]));
        TRY(adopt_convnext(c, &w->downsample_next[i]));
        TRY(past_open(c, &s->next[i], DEPTHWISE_TAPS - 1, w->config.latent, sizeof(float)));
    }
    TRY(adopt_transformer(c, &w->pre));
    return open_kv(c, &w->pre, &s->kv);
}

/* Interleaved RoPE, base 10000, values rounded to BF16 as in the original's table (also in FP32). */
static status_t open_rope(struct codec *c)
{
    int half = c->w->config.head_dim / 2;
    int rows = c->w->config.max_frames;
    if (c->w->encoder_transformer.n_layer) /* runs at 86 Hz */
        rows <<= CODEC_DOWNSAMPLES;
    size_t n = (size_t)rows * (size_t)half * 2;
    float *table = malloc(n * sizeof *table);
    if (!table)
        return FAIL(ST_ENOMEM, "codec: no memory for the RoPE table");
    for (int p = 0; p < rows; p++)
        for (int j = 0; j < half; j++) {
            float frequency = 1.0f / powf(10000.0f, (float)(2 * j) / (float)(2 * half));
            float angle = (float)p * frequency;
            table[((size_t)p * (size_t)half + (size_t)j) * 2] = bf16_round(cosf(angle));
            table[((size_t)p * (size_t)half + (size_t)j) * 2 + 1] = bf16_round(sinf(angle));
        }
    status_t st = device(c, n * sizeof *table, &c->d_cos_sin);
    if (st == ST_OK)
        st = c->ops->upload(c->be, c->d_cos_sin, table, n * sizeof *table);
    free(table);
    c->cos_sin_rows = rows;
    return st;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Bytes of the plain rows and of the rows for convolutions that one chunk needs, history included. The narrow layers
 * use the buffers for either kind, so both get what those need. */
static void buffer_bytes(const struct codec *c, size_t *plain, size_t *rows_in)
{
    const struct codec_config      *k = &c->w->config;
    const struct codec_transformer *stacks[] = {&c->w->post, &c->w->pre, &c->w->encoder_transformer};
    size_t                          n = (size_t)c->options.chunk_frames, item = codec_form_bytes(c->form), narrow = 0,
           latent = (size_t)k->latent;
    for (int i = 0; i < 3; i++) {
        size_t rows = i == 2 ? 4 * n : n,
               wide = larger(3 * (size_t)stacks[i]->dim, 2 * (size_t)stacks[i]->intermediate);
        narrow = larger(narrow, rows * wide * sizeof(float));
    }
    narrow = larger(narrow, (4 * n + DEPTHWISE_TAPS) * 4 * latent * sizeof(float));
    *plain = *rows_in = narrow;
    size_t rows = 4 * n;
    *rows_in = larger(*rows_in, (rows + UNIT_TAPS) * larger((size_t)k->decoder_dim, latent) * item);
    for (int i = 0; i < CODEC_RATES; i++) {
        size_t width = (size_t)k->decoder_dim >> (i + 1);
        *rows_in = larger(*rows_in, (rows + 2) * 2 * width * item);
        rows *= (size_t)k->rates[i];
        *rows_in = larger(*rows_in, (rows + (UNIT_TAPS - 1) * 9) * width * item);
        *plain = larger(*plain, rows * width * sizeof(float));
    }
    rows = n * (size_t)c->hop;
    for (int i = 0; i < CODEC_RATES && c->options.encoder; i++) {
        size_t width = (size_t)k->encoder_dim << i, stride = (size_t)k->rates[CODEC_RATES - 1 - i];
        *rows_in = larger(*rows_in, (rows + (UNIT_TAPS - 1) * 9 + stride) * width * item);
        *plain = larger(*plain, rows * width * sizeof(float));
        rows /= stride;
        *rows_in = larger(*rows_in, (rows + UNIT_TAPS) * 2 * width * item);
        *plain = larger(*plain, rows * 2 * width * sizeof(float));
    }
}

static status_t load_weights(struct codec *c, const char *path)
{
    char                pth[4200], json[4200];
    struct stat         info;
    struct codec_config config;
    struct torch_file  *file = NULL;
    status_t            st = ST_OK;
    codec_config_published(&config);
    if (stat(path, &info))
        return FAIL(ST_EIO, "%s: %m; a codec is a folder with codec.pth or the file itself", path);
    bool folder = S_ISDIR(info.st_mode);
    snprintf(pth, sizeof pth, folder ? "%s/codec.pth" : "%s", path);
    snprintf(json, sizeof json, "%.*s/codec.json",
             folder ? (int)strlen(path) : (int)(strrchr(path, '/') ? strrchr(path, '/') - path : 1),
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
    st = codec_weights_build(
        torch_file_tensors(file), pth, &config, c->options.mode,
        (c->options.decoder ? CODEC_PATH_DECODE : 0) | (c->options.encoder ? CODEC_PATH_ENCODE : 0), &c->w);
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
    c->be = be;
    c->ops = ops;
    c->codec = ops->codec;
    c->options = *options;
    if (!c->options.chunk_frames)
        c->options.chunk_frames = DEFAULT_CHUNK;
    c->form = c->codec->input(options->mode);
    TRY_OUT(load_weights(c, path));
    c->hop = codec_config_hop(&c->w->config);
    if (options->decoder)
        TRY_OUT(open_decoder(c));
    if (options->encoder)
        TRY_OUT(open_encoder(c));
    TRY_OUT(open_rope(c));
    size_t plain, rows_in;
    buffer_bytes(c, &plain, &rows_in);
    TRY_OUT(device(c, plain, &c->x));
    TRY_OUT(device(c, rows_in, &c->in));
    TRY_OUT(device(c, rows_in, &c->next));
    if (options->decoder)
        TRY_OUT(device(
            c, ((size_t)c->options.chunk_frames << CODEC_DOWNSAMPLES) * (size_t)c->w->config.latent * sizeof(float),
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
        struct codec_matrix *all[] = {&w->upsample[i],           &w->downsample[i],
                                      &w->upsample_next[i].up,   &w->upsample_next[i].down,
                                      &w->downsample_next[i].up, &w->downsample_next[i].down};
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
