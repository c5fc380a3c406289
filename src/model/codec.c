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

/* The inputs a causal layer still needs: the last `rows` rows of `width`, zero at the start of an utterance. There are two
 * places for them, so that a chunk reads the old ones while it writes the new. */
struct past {
    int    rows, width;
    size_t row_bytes;
    void  *d[2];
    int    now;
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
    enum codec_form         form; /* of the rows that convolutions read */
    int                     hop;
    struct path_state       decode, encode;
    void                   *in, *next; /* rows that a convolution reads, history in front, and those it makes */
    float                  *x;         /* plain rows: the residual stream */
    struct codec_books      books;
    float                  *d_cos_sin;
    int                     cos_sin_rows;
    void                  **owned; /* device allocations to free */
    size_t                  n_owned, owned_capacity;
    float                  *d_latent; /* plain [4·chunk][latent] of the last push */
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

static status_t past_clear(struct codec *c, struct past *p)
{
    return p->rows ? c->codec->zero(c->be, p->d[p->now], (size_t)p->rows * p->row_bytes) : ST_OK;
}

/* Snake's α to its table [2][n]: α, then 1/(α + 1e-9). */
static status_t lift_alpha(struct codec *c, float **alpha, size_t n)
{
    float *table = malloc(2 * n * sizeof *table), *d;
    if (!table)
        return FAIL(ST_ENOMEM, "codec: no memory");
    for (size_t i = 0; i < n; i++) {
        table[i]     = (*alpha)[i];
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
        TRY(conv_past_open(c, &s->units[u].conv1, (UNIT_TAPS - 1) * dilations[u], channels));
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
    c->books = (struct codec_books){.count = w->n_codebooks, .latent = w->config.latent, .first_rows = SEMANTIC_CODES,
                                    .other_rows = RESIDUAL_CODES, .d_table = d_table, .d_w = d_w, .d_b = d_b};
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

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Bytes of the plain rows and of the rows for convolutions that one chunk needs, history included. The narrow layers use
 * the buffers for either kind, so both get what those need. */
static void buffer_bytes(const struct codec *c, size_t *plain, size_t *rows_in)
{
    const struct codec_config      *k = &c->w->config;
    const struct codec_transformer *stacks[] = {&c->w->post, &c->w->pre, &c->w->encoder_transformer};
    size_t n = (size_t)c->options.chunk_frames, item = codec_form_bytes(c->form), narrow = 0, latent = (size_t)k->latent;
    for (int i = 0; i < 3; i++) {
        size_t rows = i == 2 ? 4 * n : n, wide = larger(3 * (size_t)stacks[i]->dim, 2 * (size_t)stacks[i]->intermediate);
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
        *plain   = larger(*plain, rows * width * sizeof(float));
    }
    rows = n * (size_t)c->hop;
    for (int i = 0; i < CODEC_RATES && c->options.encoder; i++) {
        size_t width = (size_t)k->encoder_dim << i, stride = (size_t)k->rates[CODEC_RATES - 1 - i];
        *rows_in = larger(*rows_in, (rows + (UNIT_TAPS - 1) * 9 + stride) * width * item);
        *plain   = larger(*plain, rows * width * sizeof(float));
        rows /= stride;
        *rows_in = larger(*rows_in, (rows + UNIT_TAPS) * 2 * width * item);
        *plain   = larger(*plain, rows * 2 * width * sizeof(float));
    }
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
        TRY_OUT(device(c, ((size_t)c->options.chunk_frames << CODEC_DOWNSAMPLES) * (size_t)c->w->config.latent * sizeof(float),
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

/* ---- layers over three buffers ----
 * `in` holds the rows that the next convolution reads, behind that layer's history; a convolution puts the rows of the
 * layer after it into `next`, behind room for that one's history, and the two change places. x is the residual stream. */

/* Where the new rows of the layer with history p begin. */
static void *behind(void *buffer, const struct past *p)
{
    return (char *)buffer + (p ? (size_t)p->rows * p->row_bytes : 0);
}

/* Put p's rows in front of the n new ones that stand behind(rows, p), and keep the new tail. */
static status_t join(struct codec *c, struct past *p, void *rows, int n)
{
    if (!p || p->rows == 0)
        return ST_OK;
    TRY(c->codec->join(c->be, rows, p->d[!p->now], p->d[p->now], p->rows, n, p->row_bytes));
    p->now = !p->now;
    return ST_OK;
}

/* What a convolution adds to its sums, and what follows it. */
struct step {
    enum codec_activation act;
    int                   stride, dilation; /* 0 = 1                                                    */
    const float          *gamma, *residual;
    float                *y;                /* plain result, or NULL                                    */
    bool                  next;             /* make the next layer's rows                               */
    struct past          *past;             /* the next layer's history, or NULL                        */
    const float          *alpha;            /* the next layer's Snake, or NULL                          */
    int                   channels;         /* of the next layer's rows, 0 = the matrix's rows          */
};

/* in → s->y and, behind its history, the next layer's input, which becomes in. */
static status_t conv(struct codec *c, const struct codec_matrix *m, int n, struct step s)
{
    struct codec_epilogue e = {.act = s.act, .d_gamma = s.gamma, .d_residual = s.residual, .d_y = s.y,
                               .d_next = s.next ? behind(c->next, s.past) : NULL, .channels = s.channels, .d_alpha = s.alpha};
    TRY(c->codec->conv(c->be, c->form, m, c->in, n, s.stride ? s.stride : 1, s.dilation ? s.dilation : 1, &e));
    if (!s.next)
        return ST_OK;
    void *was = c->in;
    c->in   = c->next;
    c->next = was;
    return join(c, s.past, c->in, s.channels ? n * (m->rows / s.channels) : n);
}

/* Units of a block: in = Snake(x), x the residual. The last one's result goes on as `last` says. */
static status_t run_units(struct codec *c, const struct codec_block *b, struct block_state *s, int n, struct step last)
{
    for (int u = 0; u < CODEC_UNITS; u++) {
        const struct codec_unit *unit = &b->units[u];
        struct step after = u + 1 < CODEC_UNITS ? (struct step){.y = c->x, .next = true, .past = &s->units[u + 1].conv1,
                                                                .alpha = b->units[u + 1].alpha1}
                                                : last;
        after.residual = c->x;
        TRY(conv(c, &unit->conv1, n, (struct step){.dilation = dilations[u], .next = true, .alpha = unit->alpha2}));
        TRY(conv(c, &unit->conv2, n, after));
    }
    return ST_OK;
}

/* A resampling convolution from in to the plain rows in `next`, behind the ConvNeXt's history, then that block:
 * x + gamma ⊙ down(gelu(up(norm(depthwise(x))))), which goes on as `last` says. */
static status_t run_convnext(struct codec *c, const struct codec_matrix *resample, int stride, int channels,
                             const struct codec_convnext *w, struct past *p, int n_in, int n, struct step last)
{
    float *plain = behind(c->next, p);
    TRY(conv(c, resample, n_in, (struct step){.stride = stride, .y = plain}));
    TRY(join(c, p, c->next, n));
    TRY(c->codec->depthwise(c->be, c->x, c->next, w->depthwise, w->depthwise_bias, n, channels, DEPTHWISE_TAPS));
    TRY(c->codec->layernorm(c->be, c->form, c->in, c->x, w->norm, w->norm_bias, n, channels, NORM_EPS));
    /* The wide rows take x's place, for next holds the residual, which the last product may overwrite. */
    struct codec_epilogue up   = {.act = ACT_GELU, .d_next = c->x};
    struct codec_epilogue down = {.d_gamma = w->gamma, .d_residual = plain, .d_y = last.y,
                                  .d_next = last.next ? behind(c->in, last.past) : NULL};
    TRY(c->codec->conv(c->be, c->form, &w->up, c->in, n, 1, 1, &up));
    TRY(c->codec->conv(c->be, c->form, &w->down, c->x, n, 1, 1, &down));
    return last.next ? join(c, last.past, c->in, n) : ST_OK;
}

/* x [n][dim] through the transformer, in place but for the last norm, which makes rows of `form` at `out`. in and next are
 * at its disposal; x and out may be one. */
static status_t run_transformer(struct codec *c, const struct codec_transformer *t, struct past *kv, int n, int pos0,
                                float *x, enum codec_form form, void *out)
{
    struct codec_attention a = {.n_head = t->n_head, .head_dim = t->head_dim, .window = t->window,
                                .d_cos_sin = c->d_cos_sin};
    float *wide = c->next;
    if (pos0 + n > c->cos_sin_rows)
        return FAIL(ST_EINPUT, "codec: position %d is beyond the %d its RoPE table holds (%.0f s of audio)", pos0 + n,
                    c->cos_sin_rows, c->w->config.max_frames * (double)c->hop / c->w->config.sample_rate);
    for (int i = 0; i < t->n_layer; i++) {
        const struct codec_transformer_layer *l = &t->layers[i];
        struct past *p    = &kv[i];
        int          past = pos0 < p->rows ? pos0 : p->rows;
        TRY(c->codec->rmsnorm(c->be, c->form, c->in, x, l->attention_norm, n, t->dim, t->eps));
        TRY(conv(c, &l->wqkv, n, (struct step){.y = wide}));
        TRY(c->codec->attention(c->be, c->form, c->in, wide, p->d[!p->now], p->d[p->now], &a, n, pos0, past));
        p->now = !p->now;
        TRY(conv(c, &l->wo, n, (struct step){.gamma = l->attention_gamma, .residual = x, .y = x}));
        TRY(c->codec->rmsnorm(c->be, c->form, c->in, x, l->ffn_norm, n, t->dim, t->eps));
        TRY(conv(c, &l->w13, n, (struct step){.y = wide}));
        TRY(c->codec->silu_mul(c->be, c->form, c->in, wide, n, t->intermediate));
        TRY(conv(c, &l->w2, n, (struct step){.gamma = l->ffn_gamma, .residual = x, .y = x}));
    }
    return c->codec->rmsnorm(c->be, form, out, x, t->norm, n, t->dim, t->eps);
}

/* ---- decode ---- */

/* Keys and values need no clearing: `past` counts the valid ones. */
static status_t clear_state(struct codec *c, struct path_state *s)
{
    TRY(past_clear(c, &s->in));
    TRY(past_clear(c, &s->out));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++)
        TRY(past_clear(c, &s->next[i]));
    for (int i = 0; i < CODEC_RATES; i++) {
        TRY(past_clear(c, &s->blocks[i].resample));
        for (int u = 0; u < CODEC_UNITS; u++)
            TRY(past_clear(c, &s->blocks[i].units[u].conv1));
    }
    s->position = 0;
    return ST_OK;
}

status_t codec_decode_begin(struct codec *c)
{
    return clear_state(c, &c->decode);
}

/* codes [n_codebooks][stride] → packed [n_codebooks][n]; above a book's size they are clamped, as in the original. */
static status_t pack_codes(const struct codec *c, const int32_t *codes, size_t stride, int n, int32_t *packed)
{
    for (int k = 0; k < c->w->n_codebooks; k++)
        for (int t = 0; t < n; t++) {
            int32_t code = codes[(size_t)k * stride + (size_t)t], most = c->w->codebooks[k].size - 1;
            if (code < 0)
                return FAIL(ST_EINPUT, "codec: frame %d, codebook %d: code %d is negative", c->decode.position + t, k, code);
            packed[(size_t)k * (size_t)n + (size_t)t] = code < most ? code : most;
        }
    return ST_OK;
}

/* The upsampled latent's rows for the decoder, behind their history, in `in`. */
static status_t run_quantizer(struct codec *c, const int32_t *codes, size_t stride, int n)
{
    struct codec_weights *w = c->w;
    struct path_state    *s = &c->decode;
    int32_t              *packed = malloc((size_t)w->n_codebooks * (size_t)n * sizeof *packed);
    if (!packed)
        return FAIL(ST_ENOMEM, "codec: no memory");
    status_t st = pack_codes(c, codes, stride, n, packed);
    if (st == ST_OK)
        st = c->codec->dequantize(c->be, c->x, &c->books, packed, n);
    free(packed);
    TRY(st);
    TRY(run_transformer(c, &w->post, s->kv, n, s->position, c->x, c->form, c->in));
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++, n *= 2) {
        bool        is_last = i + 1 == CODEC_DOWNSAMPLES;
        struct step on      = {.y = is_last ? c->d_latent : NULL, .next = true, .past = is_last ? &s->in : NULL};
        TRY(run_convnext(c, &w->upsample[i], 1, w->config.latent, &w->upsample_next[i], &s->next[i], n, 2 * n, on));
    }
    c->latent_rows = n;
    return ST_OK;
}

status_t codec_decode_push(struct codec *c, const int32_t *codes, size_t stride, int n, float *wav)
{
    struct codec_weights *w = c->w;
    struct path_state    *s = &c->decode;
    if (n < 1 || n > c->options.chunk_frames || !w->has_decoder)
        return FAIL(ST_EINTERNAL, "codec: a push of %d frames, at most %d", n, c->options.chunk_frames);
    TRY(run_quantizer(c, codes, stride, n));
    int rows = n << CODEC_DOWNSAMPLES;
    TRY(conv(c, &w->decoder_in, rows,
             (struct step){.next = true, .past = &s->blocks[0].resample, .alpha = w->decoder[0].alpha}));
    for (int i = 0; i < CODEC_RATES; i++) {
        const struct codec_block *b    = &w->decoder[i];
        struct block_state       *bs   = &s->blocks[i];
        bool                      more = i + 1 < CODEC_RATES;
        TRY(conv(c, &b->resample, rows, (struct step){.y = c->x, .next = true, .past = &bs->units[0].conv1,
                                                      .alpha = b->units[0].alpha1, .channels = b->out}));
        rows *= b->stride;
        TRY(run_units(c, b, bs, rows, (struct step){.next = true, .past = more ? &s->blocks[i + 1].resample : &s->out,
                                                    .alpha = more ? w->decoder[i + 1].alpha : w->decoder_alpha}));
    }
    TRY(conv(c, &w->decoder_out, rows, (struct step){.act = ACT_TANH, .y = c->x}));
    s->position += n;
    return c->ops->download(c->be, wav, c->x, (size_t)rows * sizeof *wav);
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
    int                   rows = n * c->hop, latent = w->config.latent;
    TRY(c->codec->load(c->be, c->form, behind(c->in, &s->in), wav, rows));
    TRY(join(c, &s->in, c->in, rows));
    TRY(conv(c, &w->encoder_in, rows, (struct step){.y = c->x, .next = true, .past = &s->blocks[0].units[0].conv1,
                                                    .alpha = w->encoder[0].units[0].alpha1}));
    for (int i = 0; i < CODEC_RATES; i++) {
        const struct codec_block *b    = &w->encoder[i];
        bool                      more = i + 1 < CODEC_RATES;
        TRY(run_units(c, b, &s->blocks[i], rows, (struct step){.next = true, .past = &s->blocks[i].resample, .alpha = b->alpha}));
        rows /= b->stride;
        TRY(conv(c, &b->resample, rows, (struct step){.stride = b->stride, .y = c->x, .next = more,
                                                      .past = more ? &s->blocks[i + 1].units[0].conv1 : NULL,
                                                      .alpha = more ? w->encoder[i + 1].units[0].alpha1 : NULL}));
    }
    if (w->encoder_transformer.n_layer)
        TRY(run_transformer(c, &w->encoder_transformer, s->top_kv, rows, s->position << CODEC_DOWNSAMPLES, c->x, ROWS_PLAIN, c->x));
    TRY(c->codec->snake(c->be, c->form, behind(c->in, &s->out), c->x, w->encoder_alpha, rows, s->out.width));
    TRY(join(c, &s->out, c->in, rows));
    TRY(conv(c, &w->encoder_out, rows, (struct step){.next = true}));
    float *plain = NULL;
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        bool is_last = i + 1 == CODEC_DOWNSAMPLES;
        plain        = behind(c->next, &s->next[i]);
        rows /= 2;
        TRY(run_convnext(c, &w->downsample[i], 2, latent, &w->downsample_next[i], &s->next[i], rows, rows,
                         (struct step){.y = is_last ? plain : NULL, .next = !is_last}));
    }
    TRY(c->codec->copy(c->be, c->x, plain, (size_t)rows * (size_t)latent * sizeof *z));
    TRY(run_transformer(c, &w->pre, s->kv, rows, s->position, c->x, ROWS_PLAIN, c->x));
    s->position += n;
    return c->ops->download(c->be, z, c->x, (size_t)rows * (size_t)latent * sizeof *z);
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
    return c->ops->download(c->be, latent, c->d_latent, (size_t)c->latent_rows * (size_t)c->w->config.latent * sizeof *latent);
}
