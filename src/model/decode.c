#include "model/decode.h"

#include "base/clock.h"
#include "model/stack.h"

#include <stdlib.h>
#include <string.h>

enum {
    PREFILL_CHUNK = 128,       /* columns that share one pass over the weights            */
    S1_RESIDUAL_ROWS = 1024    /* S1 uses only these rows of the residual head            */
};

/* One utterance of the batch. */
struct sequence {
    struct history history;
    int            prompt_columns, length; /* length: frames so far */
    bool           stopped;
    int32_t       *frame;                  /* the newest, [1 + num_codebooks] */
};

struct decoder {
    struct backend           *be;
    const struct backend_ops *ops;
    const struct weights     *w;
    struct decode_options     options;
    uint32_t                 *sequence_ids; /* [batch]; options.sequence_ids points here */
    struct sequence          *sequences;    /* [batch] */
    int32_t                  *frames;       /* what their `frame` points into            */
    bool                      ready;        /* a prefill has succeeded                   */
    struct fused             *fused;        /* NULL: ops                                 */

    /* engine `ops` only */
    struct stack  *slow, *fast;             /* fast is NULL with one codebook */
    struct matrix  embeddings, codebook_embeddings, fast_embeddings, output, fast_project_in, fast_output;
    float         *d_slow_norm, *d_fast_norm;
    float         *d_x, *d_n, *d_f, *d_fn;  /* residual, normed; fast residual (project_in only), fast normed */
    float         *d_logits;                /* [batch][head rows or residual rows]                            */
    float         *logits, *hidden;         /* host [batch][…]                                                */
    void          *scratch;                 /* sampler                                                        */
    int32_t       *ids;                     /* [head rows]: row → token id; NULL = identity                   */
    int32_t       *candidate_ids;           /* S2 with the full head: the unmasked ids                        */
    int32_t       *columns, *codes;         /* host [max tokens][1 + num_codebooks], [batch]                  */
    int           *seq, *pos;               /* host [max tokens]: a token batch                               */
    int           *active;                  /* host [batch]: sequences that go on                             */
    int            head_rows, residual_rows, max_tokens;
};

static int frame_width(const struct decoder *d)
{
    return 1 + d->w->config.num_codebooks;
}

static int semantic_rows(const struct model_config *c)
{
    return c->semantic_end_id - c->semantic_begin_id + 1;
}

static int max_len(const struct decoder *d)
{
    return d->options.max_seq_len;
}

/* ---- opening -------------------------------------------------------------------------------------------------- */

static status_t check_options(const struct backend *be, const struct weights *w, struct decode_options *o)
{
    const struct model_config *c = &w->config;
    if (o->batch < 1 || o->batch > 1 << 16)
        return FAIL(ST_EUSAGE, "batch = %d, want 1 or more", o->batch);
    if (o->max_seq_len < 0 || o->max_seq_len > c->max_seq_len)
        return FAIL(ST_EUSAGE, "max_seq_len = %d, want 1..%d (the model's limit) or 0 for that limit", o->max_seq_len,
                    c->max_seq_len);
    if (o->max_seq_len == 0)
        o->max_seq_len = c->max_seq_len;
    if (c->num_codebooks > HISTORY_MAX_CODEBOOKS)
        return FAIL(ST_EUNSUPPORTED, "the model has %d codebooks, at most %d are supported", c->num_codebooks,
                    HISTORY_MAX_CODEBOOKS);
    if (c->semantic_begin_id < 0 || c->semantic_end_id < c->semantic_begin_id || c->semantic_end_id >= c->vocab_size ||
        c->im_end_id < 0 || c->im_end_id >= c->vocab_size ||
        (c->im_end_id >= c->semantic_begin_id && c->im_end_id <= c->semantic_end_id))
        return FAIL(ST_EINPUT, "token ids semantic %d..%d and im_end %d do not fit a vocabulary of %d", c->semantic_begin_id,
                    c->semantic_end_id, c->im_end_id, c->vocab_size);
    if (o->engine != ENGINE_AUTO && o->engine != ENGINE_OPS && !backend_ops_of((struct backend *)be)->fused_open)
        return FAIL(ST_EUNSUPPORTED, "engine \"%s\": the %s backend has only \"ops\"", engine_kind_name(o->engine),
                    backend_ops_of((struct backend *)be)->name);
    return sampling_check(&o->sampling);
}

static status_t device_floats(struct decoder *d, size_t n, float **d_out)
{
    return d->ops->alloc(d->be, MEM_WORKSPACE, n * sizeof(float), (void **)d_out);
}

static status_t upload_norm(struct decoder *d, const float *v, int n, float **d_out)
{
    TRY(d->ops->alloc(d->be, MEM_WEIGHTS, (size_t)n * sizeof *v, (void **)d_out));
    return d->ops->upload(d->be, *d_out, v, (size_t)n * sizeof *v);
}

static bool tied(const struct decoder *d)
{
    return d->w->output.w == d->w->embeddings.w;
}

static status_t open_weights(struct decoder *d)
{
    const struct weights      *w = d->w;
    const struct model_config *c = &w->config;
    const int                  n = d->options.batch;
    /* The fast cache and, in the original, both caches hold what the activations hold. */
    const enum kv_format fast_kv =
        ((struct backend_base *)(void *)d->be)->options.rounding == ROUND_BF16 ? KV_BF16 : KV_FP32;

    TRY(d->ops->adopt(d->be, &w->embeddings, &d->embeddings));
    TRY(d->ops->adopt(d->be, &w->codebook_embeddings, &d->codebook_embeddings));
    if (tied(d))
        d->output = d->embeddings;
    else
        TRY(d->ops->adopt(d->be, &w->output, &d->output));
    TRY(upload_norm(d, w->norm, c->slow.dim, &d->d_slow_norm));
    TRY(stack_open(d->be,
                   &(struct stack_args){.config = &c->slow, .blocks = w->layers, .rope_base = c->rope_base,
                                        .norm_eps = c->norm_eps, .max_tokens = d->max_tokens, .n_seq = n,
                                        .max_len = max_len(d), .kv = d->options.kv},
                   &d->slow));
    if (c->num_codebooks == 1)
        return ST_OK;
    TRY(d->ops->adopt(d->be, &w->fast_embeddings, &d->fast_embeddings));
    TRY(d->ops->adopt(d->be, &w->fast_output, &d->fast_output));
    if (w->fast_project_in.w)
        TRY(d->ops->adopt(d->be, &w->fast_project_in, &d->fast_project_in));
    TRY(upload_norm(d, w->fast_norm, c->fast.dim, &d->d_fast_norm));
    return stack_open(d->be,
                      &(struct stack_args){.config = &c->fast, .blocks = w->fast_layers, .rope_base = c->rope_base,
                                           .norm_eps = c->norm_eps, .max_tokens = 2 * n, .n_seq = n,
                                           .max_len = c->num_codebooks, .kv = fast_kv, .fast = true},
                      &d->fast);
}

static status_t open_workspace(struct decoder *d)
{
    const struct model_config *c    = &d->w->config;
    const size_t               n    = (size_t)d->options.batch, tokens = (size_t)d->max_tokens;
    const size_t               rows = (size_t)(d->head_rows > d->residual_rows ? d->head_rows : d->residual_rows);
    const size_t               wide = (size_t)(c->slow.dim > c->fast.dim ? c->slow.dim : c->fast.dim);

    TRY(device_floats(d, tokens * (size_t)c->slow.dim, &d->d_x));
    TRY(device_floats(d, 2 * n * (size_t)c->slow.dim, &d->d_n));
    TRY(device_floats(d, 2 * n * (size_t)c->fast.dim, &d->d_f));
    TRY(device_floats(d, n * (size_t)c->fast.dim, &d->d_fn));
    TRY(device_floats(d, n * rows, &d->d_logits));
    d->logits  = malloc(n * rows * sizeof *d->logits);
    d->hidden  = malloc(n * wide * sizeof *d->hidden);
    d->scratch = malloc((rows + (size_t)semantic_rows(c) + 1) * 3 * sizeof(float));
    d->columns = malloc(tokens * (size_t)frame_width(d) * sizeof *d->columns);
    d->codes   = malloc(n * sizeof *d->codes);
    d->seq     = malloc(tokens * sizeof *d->seq);
    d->pos     = malloc(tokens * sizeof *d->pos);
    d->active  = malloc(n * sizeof *d->active);
    if (!d->logits || !d->hidden || !d->scratch || !d->columns || !d->codes || !d->seq || !d->pos || !d->active)
        return FAIL(ST_ENOMEM, "no host memory for the decoder's workspace");
    return ST_OK;
}

/* Row → id of the semantic head and, under S2's mask, of the candidates: the semantic ids, then im_end. */
static status_t open_ids(struct decoder *d)
{
    const struct model_config *c    = &d->w->config;
    const int                  rows = semantic_rows(c) + 1;
    int32_t                   *ids  = malloc((size_t)rows * sizeof *ids);
    if (!ids)
        return FAIL(ST_ENOMEM, "no host memory for %d token ids", rows);
    for (int i = 0; i < rows - 1; i++)
        ids[i] = c->semantic_begin_id + i;
    ids[rows - 1] = c->im_end_id;
    d->head_rows     = c->vocab_size;
    d->residual_rows = d->options.sampling.rules == SAMPLING_S1 && c->codebook_size > S1_RESIDUAL_ROWS ? S1_RESIDUAL_ROWS
                                                                                                       : c->codebook_size;
    if (d->options.head == HEAD_SEMANTIC) {
        d->head_rows = rows;
        d->ids       = ids;
    } else
        d->candidate_ids = ids;
    return ST_OK;
}

static status_t open_ops(struct decoder *d)
{
    d->max_tokens = 2 * d->options.batch > PREFILL_CHUNK ? 2 * d->options.batch : PREFILL_CHUNK;
    TRY(open_weights(d));
    return open_workspace(d);
}

status_t decoder_open(struct backend *be, const struct weights *w, const struct decode_options *options,
                      struct decoder **out)
{
    status_t        st = ST_OK;
    struct decoder *d  = calloc(1, sizeof *d);
    if (!d)
        return FAIL(ST_ENOMEM, "no host memory for a decoder");
    d->be      = be;
    d->ops     = backend_ops_of(be);
    d->w       = w;
    d->options = *options;
    TRY_OUT(check_options(be, w, &d->options));
    const size_t n  = (size_t)d->options.batch;
    d->sequence_ids = malloc(n * sizeof *d->sequence_ids);
    d->sequences    = calloc(n, sizeof *d->sequences);
    d->frames       = calloc(n * (size_t)frame_width(d), sizeof *d->frames);
    if (!d->sequence_ids || !d->sequences || !d->frames) {
        st = FAIL(ST_ENOMEM, "no host memory for %zu sequences", n);
        goto out;
    }
    for (size_t s = 0; s < n; s++) {
        d->sequence_ids[s]    = options->sequence_ids ? options->sequence_ids[s] : (uint32_t)s;
        d->sequences[s].frame = d->frames + s * (size_t)frame_width(d);
    }
    d->options.sequence_ids = d->sequence_ids;
    TRY_OUT(open_ids(d));
    if (d->options.engine != ENGINE_OPS && d->ops->fused_open) {
        st = d->ops->fused_open(be, w, &d->options, &d->fused);
        if (st != ST_OK && !(st == ST_EUNSUPPORTED && d->options.engine == ENGINE_AUTO))
            goto out;
        st = ST_OK;
    }
    if (!d->fused)
        TRY_OUT(open_ops(d));
    *out = d;
    d    = NULL;
out:
    decoder_close(d);
    return st;
}

void decoder_close(struct decoder *d)
{
    if (!d)
        return;
    if (d->fused)
        d->ops->fused_close(d->fused);
    stack_close(d->slow);
    stack_close(d->fast);
    if (!tied(d))
        d->ops->release(d->be, &d->output);
    struct matrix *matrices[] = {&d->embeddings, &d->codebook_embeddings, &d->fast_embeddings, &d->fast_project_in,
                                 &d->fast_output};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        d->ops->release(d->be, matrices[i]);
    float *device[] = {d->d_slow_norm, d->d_fast_norm, d->d_x, d->d_n, d->d_f, d->d_fn, d->d_logits};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        d->ops->free(d->be, device[i]);
    void *host[] = {d->logits, d->hidden, d->scratch, d->ids, d->candidate_ids, d->columns, d->codes, d->seq, d->pos,
                    d->active, d->sequence_ids, d->sequences, d->frames};
    for (size_t i = 0; i < sizeof host / sizeof *host; i++)
        free(host[i]);
    free(d);
}

/* ---- prefill -------------------------------------------------------------------------------------------------- */

static status_t check_prompt(const struct decoder *d, const struct prompt *p, int sequence)
{
    const struct model_config *c = &d->w->config;
    if (p->rows != frame_width(d))
        return FAIL(ST_EINPUT, "prompt %d has %d rows, the model wants %d", sequence, p->rows, frame_width(d));
    if (p->columns < 1)
        return FAIL(ST_EUSAGE, "prompt %d is empty", sequence);
    if (p->columns >= max_len(d))
        return FAIL(ST_EUSAGE, "prompt %d has %d columns, the cache has room for %d and one must be left", sequence,
                    p->columns, max_len(d));
    for (int t = 0; t < p->columns; t++) {
        if (p->values[t] < 0 || p->values[t] >= c->vocab_size)
            return FAIL(ST_EINPUT, "prompt %d, column %d: token %d is outside the vocabulary of %d", sequence, t,
                        (int)p->values[t], c->vocab_size);
        for (int row = 1; row < p->rows; row++) {
            int32_t code = p->values[(size_t)row * (size_t)p->columns + (size_t)t];
            if (code < 0 || code >= c->codebook_size)
                return FAIL(ST_EINPUT, "prompt %d, column %d: code %d of codebook %d is outside 0..%d", sequence, t,
                            (int)code, row - 1, c->codebook_size - 1);
        }
    }
    return ST_OK;
}

/* Embed d->columns, run the slow stack: d_x [n] becomes the hidden states of d->seq, d->pos. */
static status_t run_slow(struct decoder *d, int n)
{
    const struct model_config *c    = &d->w->config;
    const struct embed_args    args = {.embeddings = &d->embeddings, .codebook_embeddings = &d->codebook_embeddings,
                                       .num_codebooks = c->num_codebooks, .codebook_size = c->codebook_size,
                                       .semantic_begin = c->semantic_begin_id, .semantic_end = c->semantic_end_id,
                                       .scale = c->scale_codebook_embeddings};
    TRY(d->ops->embed(d->be, &args, d->columns, n, d->d_x));
    return stack_run(d->slow, d->d_x, &(struct token_batch){.n = n, .seq = d->seq, .pos = d->pos});
}

/* Run a chunk of n tokens and keep the hidden state of every prompt's last column in d->hidden. */
static status_t prefill_chunk(struct decoder *d, int n)
{
    const size_t dim = (size_t)d->w->config.slow.dim;
    TRY(run_slow(d, n));
    for (int i = 0; i < n; i++)
        if (d->pos[i] == d->sequences[d->seq[i]].prompt_columns - 1)
            TRY(d->ops->download(d->be, d->hidden + (size_t)d->seq[i] * dim, d->d_x + (size_t)i * dim, dim * sizeof(float)));
    return ST_OK;
}

static status_t prefill_ops(struct decoder *d, const struct prompt *prompts)
{
    const size_t dim = (size_t)d->w->config.slow.dim;
    const int    rows = frame_width(d);
    int          n    = 0;
    for (int s = 0; s < d->options.batch; s++)
        for (int t = 0; t < prompts[s].columns; t++) {
            for (int row = 0; row < rows; row++)
                d->columns[(size_t)n * (size_t)rows + (size_t)row] =
                    prompts[s].values[(size_t)row * (size_t)prompts[s].columns + (size_t)t];
            d->seq[n] = s;
            d->pos[n] = t;
            if (++n == PREFILL_CHUNK) {
                TRY(prefill_chunk(d, n));
                n = 0;
            }
        }
    if (n > 0)
        TRY(prefill_chunk(d, n));
    return d->ops->upload(d->be, d->d_x, d->hidden, (size_t)d->options.batch * dim * sizeof(float));
}

status_t decoder_prefill(struct decoder *d, const struct prompt *prompts, const uint32_t *sequence_ids)
{
    d->ready = false;
    for (int s = 0; s < d->options.batch; s++)
        TRY(check_prompt(d, &prompts[s], s));
    for (int s = 0; s < d->options.batch; s++) {
        struct sequence *q = &d->sequences[s];
        history_reset(&q->history, d->w->config.num_codebooks);
        q->prompt_columns = prompts[s].columns;
        q->length         = 0;
        q->stopped        = false;
        if (sequence_ids)
            d->sequence_ids[s] = sequence_ids[s];
    }
    TRY(d->fused ? d->ops->fused_prefill(d->fused, prompts) : prefill_ops(d, prompts));
    TRY(d->ops->sync(d->be));
    d->ready = true;
    return ST_OK;
}

/* ---- one frame ------------------------------------------------------------------------------------------------ */

/* The forced frame of a sequence at its present length, or NULL. */
static const int32_t *forced_frame(const struct decoder *d, int s)
{
    const struct decode_options *o = &d->options;
    int                          k = d->sequences[s].length;
    return o->forced && k < o->n_forced ? o->forced + ((size_t)s * (size_t)o->n_forced + (size_t)k) * (size_t)frame_width(d)
                                        : NULL;
}

static void tap_logits(const struct decoder *d, int s, int codebook, const float *logits, int n)
{
    if (d->options.tap && d->options.tap->logits)
        d->options.tap->logits(d->options.tap->ctx, s, d->sequences[s].length, codebook, logits, n);
}

/* S2 with all rows computed: hand over the semantic ids and im_end alone, as the original's mask does. */
static int draw_masked(struct decoder *d, const float *logits, const int32_t *history, int n_history, struct noise_key key)
{
    const struct model_config *c    = &d->w->config;
    const int                  rows = semantic_rows(c) + 1;
    float                     *some = (float *)d->scratch + 2 * (size_t)rows;
    memcpy(some, logits + c->semantic_begin_id, (size_t)(rows - 1) * sizeof *some);
    some[rows - 1] = logits[c->im_end_id];
    return d->candidate_ids[sampler_draw(&d->options.sampling, some, rows, d->candidate_ids, history, n_history, key, d->scratch)];
}

/* The slow token (codebook 0) or a residual code of sequence s. */
static int32_t draw(struct decoder *d, int s, int codebook, const float *logits, int n)
{
    const struct sampling *rules = &d->options.sampling;
    const struct sequence *q     = &d->sequences[s];
    const int32_t         *force = forced_frame(d, s);
    if (force)
        return force[codebook == 0 ? 0 : 1 + codebook];
    int32_t history[SAMPLING_WINDOW + HISTORY_MAX_CODEBOOKS + 1];
    int     n_history = 0;
    if (rules->rules == SAMPLING_S1)
        n_history = history_ids(&q->history, rules->history, q->length == 0, codebook, history);
    else if (codebook == 0)
        n_history = history_recent(&q->history, d->w->config.semantic_begin_id, d->w->config.semantic_end_id, history);
    const struct noise_key key = {.sequence = d->sequence_ids[s], .frame = (uint32_t)q->length, .codebook = (uint32_t)codebook};
    if (codebook == 0 && rules->rules == SAMPLING_S2 && d->candidate_ids)
        return draw_masked(d, logits, history, n_history, key);
    const int32_t *ids = codebook == 0 ? d->ids : NULL;
    int            i   = sampler_draw(rules, logits, n, ids, history, n_history, key, d->scratch);
    return ids ? ids[i] : i;
}

/* Slow logits of the n active sequences from d_x, and their tokens. d_n keeps the normed hidden states. */
static status_t slow_tokens(struct decoder *d, int n)
{
    const struct model_config *c    = &d->w->config;
    const int                  rows = d->head_rows, semantic = semantic_rows(c);
    TRY(d->ops->rmsnorm(d->be, d->d_n, d->d_x, d->d_slow_norm, n, c->slow.dim, c->norm_eps));
    if (d->options.head == HEAD_SEMANTIC) {
        TRY(d->ops->matmul(d->be, d->d_logits, rows, &d->output, c->semantic_begin_id, semantic, d->d_n, n));
        TRY(d->ops->matmul(d->be, d->d_logits + semantic, rows, &d->output, c->im_end_id, 1, d->d_n, n));
    } else
        TRY(d->ops->matmul(d->be, d->d_logits, rows, &d->output, 0, rows, d->d_n, n));
    TRY(d->ops->download(d->be, d->logits, d->d_logits, (size_t)n * (size_t)rows * sizeof(float)));
    for (int i = 0; i < n; i++) {
        const int    s      = d->active[i];
        const float *logits = d->logits + (size_t)i * (size_t)rows;
        tap_logits(d, s, 0, logits, rows);
        int32_t *frame = d->sequences[s].frame;
        frame[0]       = draw(d, s, 0, logits, rows);
        /* im_end and text give code 0. Ids beyond the fast table would be read out of bounds by the original; clamp. */
        int32_t code = frame[0] - c->semantic_begin_id;
        frame[1]     = code < 0 ? 0 : code >= c->codebook_size ? c->codebook_size - 1 : code;
        const int32_t *force = forced_frame(d, s);
        if (force)
            frame[1] = force[1];
    }
    return ST_OK;
}

/* The buffer [2·batch][fast dim] whose first n rows are the fast stack's input at position 0. */
static status_t fast_input(struct decoder *d, int n, float **d_fast)
{
    const struct model_config *c      = &d->w->config;
    float                     *hidden = c->norm_fastlayer_input ? d->d_n : d->d_x;
    *d_fast                           = hidden;
    if (d->fast_project_in.w) {
        *d_fast = d->d_f;
        TRY(d->ops->matmul(d->be, d->d_f, c->fast.dim, &d->fast_project_in, 0, c->fast.dim, hidden, n));
    }
    if (!d->options.tap || !d->options.tap->hidden)
        return ST_OK;
    TRY(d->ops->download(d->be, d->hidden, *d_fast, (size_t)n * (size_t)c->fast.dim * sizeof(float)));
    for (int i = 0; i < n; i++)
        d->options.tap->hidden(d->options.tap->ctx, d->active[i], d->sequences[d->active[i]].length,
                               d->hidden + (size_t)i * (size_t)c->fast.dim, c->fast.dim);
    return ST_OK;
}

/* Embed code `codebook` of every active sequence's frame into d_out [n][fast dim]. */
static status_t embed_codes(struct decoder *d, int n, int codebook, float *d_out)
{
    for (int i = 0; i < n; i++)
        d->codes[i] = d->sequences[d->active[i]].frame[1 + codebook];
    return d->ops->gather(d->be, &d->fast_embeddings, d->codes, n, d_out);
}

static status_t residual_codes(struct decoder *d, int n, int codebook, const float *d_fast)
{
    const struct model_config *c    = &d->w->config;
    const int                  rows = d->residual_rows;
    TRY(d->ops->rmsnorm(d->be, d->d_fn, d_fast, d->d_fast_norm, n, c->fast.dim, c->norm_eps));
    TRY(d->ops->matmul(d->be, d->d_logits, rows, &d->fast_output, 0, rows, d->d_fn, n));
    TRY(d->ops->download(d->be, d->logits, d->d_logits, (size_t)n * (size_t)rows * sizeof(float)));
    for (int i = 0; i < n; i++) {
        const float *logits = d->logits + (size_t)i * (size_t)rows;
        tap_logits(d, d->active[i], codebook, logits, rows);
        d->sequences[d->active[i]].frame[1 + codebook] = draw(d, d->active[i], codebook, logits, rows);
    }
    return ST_OK;
}

/* Codes 1 … of the active sequences. Positions 0 (hidden state) and 1 (code 0) are both known here, so they share one
 * pass: num_codebooks − 1 passes over the fast weights a frame, not num_codebooks (decode.md §6). */
static status_t fast_frame(struct decoder *d, int n)
{
    const struct model_config *c      = &d->w->config;
    const size_t               second = (size_t)n * (size_t)c->fast.dim;
    float                     *d_fast;
    TRY(fast_input(d, n, &d_fast));
    if (c->num_codebooks == 1)
        return ST_OK;
    TRY(embed_codes(d, n, 0, d_fast + second));
    for (int i = 0; i < n; i++) {
        d->seq[i] = d->seq[n + i] = d->active[i];
        d->pos[i]                 = 0;
        d->pos[n + i]             = 1;
    }
    TRY(stack_run(d->fast, d_fast, &(struct token_batch){.n = 2 * n, .seq = d->seq, .pos = d->pos}));
    TRY(residual_codes(d, n, 1, d_fast + second));
    for (int codebook = 2; codebook < c->num_codebooks; codebook++) {
        TRY(embed_codes(d, n, codebook - 1, d_fast));
        for (int i = 0; i < n; i++)
            d->pos[i] = codebook;
        TRY(stack_run(d->fast, d_fast, &(struct token_batch){.n = n, .seq = d->seq, .pos = d->pos}));
        TRY(residual_codes(d, n, codebook, d_fast));
    }
    return ST_OK;
}

/* One step of the active sequences: the slow stack eats the newest frame (but before the first), then head and fast stack. */
static status_t step_ops(struct decoder *d, int n)
{
    const size_t width = (size_t)frame_width(d);
    if (d->sequences[d->active[0]].length > 0) { /* all active sequences have the same length */
        for (int i = 0; i < n; i++) {
            const struct sequence *q = &d->sequences[d->active[i]];
            memcpy(d->columns + (size_t)i * width, q->frame, width * sizeof *q->frame);
            d->seq[i] = d->active[i];
            d->pos[i] = q->prompt_columns + q->length - 1;
        }
        TRY(run_slow(d, n));
    }
    TRY(slow_tokens(d, n));
    return fast_frame(d, n);
}

/* Count the newest frame of a sequence and see whether it was the last. The original looks for im_end only from the second
 * frame on, and generates at most max_seq_len − prompt frames (decode.md §8). */
static void finish_frame(struct decoder *d, struct sequence *q)
{
    if (q->length > 0)
        history_push(&q->history, q->frame);
    q->length++;
    bool ended = !d->options.fixed_length && q->length > 1 && q->frame[0] == d->w->config.im_end_id;
    q->stopped = ended || q->prompt_columns + q->length >= max_len(d);
}

static int find_active(struct decoder *d)
{
    int n = 0;
    for (int s = 0; s < d->options.batch; s++)
        if (!d->sequences[s].stopped)
            d->active[n++] = s;
    return n;
}

static status_t run_fused(struct decoder *d, int n, int32_t *frames, double *step_ms, int *n_done)
{
    TRY(d->ops->fused_run(d->fused, n, frames, step_ms, n_done));
    const size_t width = (size_t)frame_width(d);
    for (int s = 0; s < d->options.batch; s++)
        for (int k = 0; k < *n_done && !d->sequences[s].stopped; k++) {
            memcpy(d->sequences[s].frame, frames + ((size_t)s * (size_t)n + (size_t)k) * width, width * sizeof *frames);
            finish_frame(d, &d->sequences[s]);
        }
    return ST_OK;
}

status_t decoder_run(struct decoder *d, int n, int32_t *frames, double *step_ms, int *n_done)
{
    if (!d->ready)
        return FAIL(ST_EINTERNAL, "decoder_run before a successful decoder_prefill");
    const size_t width = (size_t)frame_width(d);
    for (size_t i = 0; i < (size_t)d->options.batch * (size_t)n * width; i++)
        frames[i] = -1;
    if (d->fused)
        return run_fused(d, n, frames, step_ms, n_done);
    int done = 0, active;
    for (; done < n && (active = find_active(d)) > 0; done++) {
        const int64_t t0 = clock_ns();
        status_t      st = step_ops(d, active);
        if (st != ST_OK) {
            d->ready = false;
            return st;
        }
        for (int i = 0; i < active; i++) {
            struct sequence *q = &d->sequences[d->active[i]];
            memcpy(frames + ((size_t)d->active[i] * (size_t)n + (size_t)done) * width, q->frame, width * sizeof *frames);
            finish_frame(d, q);
        }
        if (step_ms)
            step_ms[done] = clock_ms_since(t0);
    }
    *n_done = done;
    return ST_OK;
}

/* ---- questions ------------------------------------------------------------------------------------------------ */

int decoder_length(const struct decoder *d, int sequence)
{
    return d->sequences[sequence].length;
}

bool decoder_stopped(const struct decoder *d, int sequence)
{
    return d->sequences[sequence].stopped;
}

size_t decoder_step_bytes(const struct decoder *d)
{
    const struct model_config *c = &d->w->config;
    size_t positions = 0;
    int    active    = 0;
    for (int s = 0; s < d->options.batch; s++) {
        const struct sequence *q = &d->sequences[s];
        if (q->stopped || !q->prompt_columns)
            continue;
        positions += (size_t)(q->prompt_columns + q->length);
        active++;
    }
    if (active == 0)
        return 0;
    if (d->fused && d->ops->fused_frame_bytes)
        return d->ops->fused_frame_bytes(d->fused, (int)(positions / (size_t)active));
    size_t bytes = stack_weight_bytes(&c->slow, d->w->layers) + (size_t)c->slow.dim * sizeof(float) +
                   matrix_row_bytes(&d->w->output, d->head_rows) + positions * stack_kv_bytes(&c->slow, d->options.kv);
    if (c->num_codebooks > 1)
        bytes += (size_t)(c->num_codebooks - 1) *
                     (stack_weight_bytes(&c->fast, d->w->fast_layers) + (size_t)c->fast.dim * sizeof(float) +
                      matrix_row_bytes(&d->w->fast_output, d->residual_rows)) +
                 matrix_row_bytes(&d->w->fast_project_in, d->w->fast_project_in.rows);
    return bytes;
}

const char *decoder_engine(const struct decoder *d)
{
    return !d->fused ? "ops" : d->ops->fused_engine(d->fused);
}

int decoder_head_rows(const struct decoder *d)
{
    return d->head_rows;
}

int32_t decoder_head_id(const struct decoder *d, int row)
{
    return d->ids ? d->ids[row] : row;
}
