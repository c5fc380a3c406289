/* codec_path.c — the codec's two ways through its layers: codes to samples and samples to codes (codec.md §2, §5). */
#include "model/codec.h"
#include "model/codec_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const float NORM_EPS = 1e-6f; /* ConvNeXt's LayerNorm */

/* ---- layers over three buffers ----
 * `in` holds the rows that the next convolution reads, behind that layer's history; a convolution puts the rows of the
 * layer after it into `next`, behind room for that one's history, and the two change places. x is the residual stream.
 */

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
    float                *y;        /* plain result, or NULL                                    */
    bool                  next;     /* make the next layer's rows                               */
    struct past          *past;     /* the next layer's history, or NULL                        */
    const float          *alpha;    /* the next layer's Snake, or NULL                          */
    int                   channels; /* of the next layer's rows, 0 = the matrix's rows          */
};

/* in → s->y and, behind its history, the next layer's input, which becomes in. */
static status_t conv(struct codec *c, const struct codec_matrix *m, int n, struct step s)
{
    struct codec_epilogue e = {.act = s.act,
                               .d_gamma = s.gamma,
                               .d_residual = s.residual,
                               .d_y = s.y,
                               .d_next = s.next ? behind(c->next, s.past) : NULL,
                               .channels = s.channels,
                               .d_alpha = s.alpha};
    TRY(c->codec->conv(c->be, c->form, m, c->in, n, s.stride ? s.stride : 1, s.dilation ? s.dilation : 1, &e));
    if (!s.next)
        return ST_OK;
    void *was = c->in;
    c->in = c->next;
    c->next = was;
    return join(c, s.past, c->in, s.channels ? n * (m->rows / s.channels) : n);
}

/* Units of a block: in = Snake(x), x the residual. The last one's result goes on as `last` says. */
static status_t run_units(struct codec *c, const struct codec_block *b, struct block_state *s, int n, struct step last)
{
    for (int u = 0; u < CODEC_UNITS; u++) {
        const struct codec_unit *unit = &b->units[u];
        struct step              after = u + 1 < CODEC_UNITS ? (struct step){.y = c->x,
                                                                             .next = true,
                                                                             .past = &s->units[u + 1].conv1,
                                                                             .alpha = b->units[u + 1].alpha1}
                                                             : last;
        after.residual = c->x;
        TRY(conv(c, &unit->conv1, n,
                 (struct step){.dilation = codec_dilations[u], .next = true, .alpha = unit->alpha2}));
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
    struct codec_epilogue up = {.act = ACT_GELU, .d_next = c->x};
    struct codec_epilogue down = {
        .d_gamma = w->gamma, .d_residual = plain, .d_y = last.y, .d_next = last.next ? behind(c->in, last.past) : NULL};
    TRY(c->codec->conv(c->be, c->form, &w->up, c->in, n, 1, 1, &up));
    TRY(c->codec->conv(c->be, c->form, &w->down, c->x, n, 1, 1, &down));
    return last.next ? join(c, last.past, c->in, n) : ST_OK;
}

/* x [n][dim] through the transformer, in place but for the last norm, which makes rows of `form` at `out`. in and next
 * are at its disposal; x and out may be one. */
static status_t run_transformer(struct codec *c, const struct codec_transformer *t, struct past *kv, int n, int pos0,
                                float *x, enum codec_form form, void *out)
{
    struct codec_attention a = {
        .n_head = t->n_head, .head_dim = t->head_dim, .window = t->window, .d_cos_sin = c->d_cos_sin};
    float *wide = c->next;
    if (pos0 + n > c->cos_sin_rows)
        return FAIL(ST_EINPUT, "codec: position %d is beyond the %d its RoPE table holds (%.0f s of audio)", pos0 + n,
                    c->cos_sin_rows, c->w->config.max_frames * (double)c->hop / c->w->config.sample_rate);
    for (int i = 0; i < t->n_layer; i++) {
        const struct codec_transformer_layer *l = &t->layers[i];
        struct past                          *p = &kv[i];
        int                                   past = pos0 < p->rows ? pos0 : p->rows;
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

static status_t past_clear(struct codec *c, struct past *p)
{
    return p->rows ? c->codec->zero(c->be, p->d[p->now], (size_t)p->rows * p->row_bytes) : ST_OK;
}

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
                return FAIL(ST_EINPUT, "codec: frame %d, codebook %d: code %d is negative", c->decode.position + t, k,
                            code);
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
        struct step on = {.y = is_last ? c->d_latent : NULL, .next = true, .past = is_last ? &s->in : NULL};
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
        const struct codec_block *b = &w->decoder[i];
        struct block_state       *bs = &s->blocks[i];
        bool                      more = i + 1 < CODEC_RATES;
        TRY(conv(c, &b->resample, rows,
                 (struct step){.y = c->x,
                               .next = true,
                               .past = &bs->units[0].conv1,
                               .alpha = b->units[0].alpha1,
                               .channels = b->out}));
        rows *= b->stride;
        TRY(run_units(c, b, bs, rows,
                      (struct step){.next = true,
                                    .past = more ? &s->blocks[i + 1].resample : &s->out,
                                    .alpha = more ? w->decoder[i + 1].alpha : w->decoder_alpha}));
    }
    TRY(conv(c, &w->decoder_out, rows, (struct step){.act = ACT_TANH, .y = c->x}));
    s->position += n;
    return c->ops->download(c->be, wav, c->x, (size_t)rows * sizeof *wav);
}

status_t codec_decode(struct codec *c, const struct codes *codes, float *wav)
{
    if (codes->codebooks != c->w->n_codebooks)
        return FAIL(ST_EINPUT, "codec: the codes have %d codebooks, this codec %d", codes->codebooks,
                    c->w->n_codebooks);
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
    TRY(conv(
        c, &w->encoder_in, rows,
        (struct step){
            .y = c->x, .next = true, .past = &s->blocks[0].units[0].conv1, .alpha = w->encoder[0].units[0].alpha1}));
    for (int i = 0; i < CODEC_RATES; i++) {
        const struct codec_block *b = &w->encoder[i];
        bool                      more = i + 1 < CODEC_RATES;
        TRY(run_units(c, b, &s->blocks[i], rows,
                      (struct step){.next = true, .past = &s->blocks[i].resample, .alpha = b->alpha}));
        rows /= b->stride;
        TRY(conv(c, &b->resample, rows,
                 (struct step){.stride = b->stride,
                               .y = c->x,
                               .next = more,
                               .past = more ? &s->blocks[i + 1].units[0].conv1 : NULL,
                               .alpha = more ? w->encoder[i + 1].units[0].alpha1 : NULL}));
    }
    if (w->encoder_transformer.n_layer)
        TRY(run_transformer(c, &w->encoder_transformer, s->top_kv, rows, s->position << CODEC_DOWNSAMPLES, c->x,
                            ROWS_PLAIN, c->x));
    TRY(c->codec->snake(c->be, c->form, behind(c->in, &s->out), c->x, w->encoder_alpha, rows, s->out.width));
    TRY(join(c, &s->out, c->in, rows));
    TRY(conv(c, &w->encoder_out, rows, (struct step){.next = true}));
    float *plain = NULL;
    for (int i = 0; i < CODEC_DOWNSAMPLES; i++) {
        bool is_last = i + 1 == CODEC_DOWNSAMPLES;
        plain = behind(c->next, &s->next[i]);
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
    int32_t best = 0;
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
            best = row;
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
    size_t   most = (size_t)c->options.chunk_frames;
    float   *chunk = malloc(most * hop * sizeof *chunk), *z = malloc(most * latent * sizeof *z);
    int32_t *values = malloc((size_t)c->w->n_codebooks * frames * sizeof *values);
    status_t st = ST_OK;
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
    *out = (struct codes){.codebooks = c->w->n_codebooks, .frames = (int)frames, .values = values};
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
    return c->ops->download(c->be, latent, c->d_latent,
                            (size_t)c->latent_rows * (size_t)c->w->config.latent * sizeof *latent);
}
