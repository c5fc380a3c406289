#include "bench/quality.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "bench/divergence.h"
#include "bench/linear_watch.h"
#include "bench/stats.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One of the two precisions that decode beside each other. */
struct party {
    struct backend       *backend;
    struct checkpoint    *checkpoint; /* NULL: the session's */
    const struct weights *weights;
    struct weights       *owned;      /* what weights points to, or NULL: the session's */
    struct decoder       *decoder;
};

struct comparison {
    struct session               *s;
    const struct work            *work;
    const volatile sig_atomic_t  *stop;
    const struct cell            *cell;
    struct result                *out;
    int                           n_texts, max_frames, width; /* width: numbers in a frame */
    struct party                  reference, mode;
    struct linear_watch          *watch;
    struct divergence            *divergence;
    float                        *logits;  /* the reference's of this frame: head rows, then each codebook's        */
    int                          *n_logits; /* [num_codebooks]                                                      */
    size_t                        stride;  /* floats between residual codebooks in logits                           */
    int32_t                      *forced;  /* [max_frames][width] what the reference decoded                        */
    int32_t                      *free_run; /* [n_texts][max_frames][width]: what the cell's own decoder decoded    */
    int                          *free_frames; /* [n_texts]                                                         */
    status_t                      tap;     /* of the taps, which cannot return one                                  */
};

int quality_reference(enum precision p)
{
    return p == PRECISION_FP32 ? -1 : p == PRECISION_BF16 ? (int)PRECISION_FP32 : (int)PRECISION_BF16;
}

/* ---- taps -------------------------------------------------------------------------------------------------------- */

static size_t logits_offset(const struct comparison *c, int codebook)
{
    return codebook == 0 ? 0 : (size_t)decoder_head_rows(c->reference.decoder) + (size_t)(codebook - 1) * c->stride;
}

static void keep_logits(void *ctx, int sequence, int frame, int codebook, const float *logits, int n)
{
    struct comparison *c = ctx;
    (void)sequence;
    (void)frame;
    memcpy(c->logits + logits_offset(c, codebook), logits, (size_t)n * sizeof *logits);
    c->n_logits[codebook] = n;
}

/* Row of the slow head that stands for a token. */
static int head_row(const struct decoder *d, int32_t id)
{
    int32_t first = decoder_head_id(d, 0);
    int     rows = decoder_head_rows(d);
    if (id >= first && id - first < rows && decoder_head_id(d, id - first) == id)
        return id - first;
    return decoder_head_id(d, rows - 1) == id ? rows - 1 : -1;
}

static void compare_logits(void *ctx, int sequence, int frame, int codebook, const float *logits, int n)
{
    struct comparison *c = ctx;
    const int32_t     *forced = c->forced + (size_t)frame * (size_t)c->width;
    int                target = codebook == 0 ? head_row(c->mode.decoder, forced[0]) : forced[1 + codebook];
    (void)sequence;
    if (c->tap != ST_OK)
        return;
    if (n != c->n_logits[codebook])
        c->tap = FAIL(ST_EINTERNAL, "codebook %d: %d logits, the reference has %d", codebook, n, c->n_logits[codebook]);
    else
        c->tap = divergence_add(c->divergence, codebook, c->logits + logits_offset(c, codebook), logits, n, target);
}

/* ---- the cell's own decoder -------------------------------------------------------------------------------------- */

static status_t check_stop(const struct comparison *c)
{
    return *c->stop ? FAIL(ST_EINTERRUPTED, "stopped by signal %d while comparing precisions", (int)*c->stop) : ST_OK;
}

/* Decode every text freely, as its first sample was decoded; keep the first utterance. */
static status_t run_freely(struct comparison *c)
{
    struct session *s = c->s;
    size_t          one = (size_t)c->max_frames * (size_t)c->width, batch = (size_t)c->cell->batch;
    int32_t        *frames = malloc(batch * one * sizeof *frames);
    status_t        st = frames ? ST_OK : FAIL(ST_ENOMEM, "no memory for the frames of %zu utterances", batch);
    for (int t = 0; t < c->n_texts && st == ST_OK; t++) {
        struct prompt prompt;
        int           done;
        TRY_OUT(session_prompt(s, c->cell->workload.texts[t], &prompt));
        for (size_t b = 0; b < batch; b++) {
            s->sequences[b] = (uint32_t)((size_t)t * batch + b);
            s->prompts[b] = prompt;
        }
        st = decoder_prefill(s->decoder, s->prompts, s->sequences);
        prompt_free(&prompt);
        TRY_OUT(st);
        TRY_OUT(decoder_run(s->decoder, c->max_frames, frames, s->step_ms, &done));
        c->free_frames[t] = decoder_length(s->decoder, 0);
        memcpy(c->free_run + (size_t)t * one, frames, one * sizeof *frames);
        st = check_stop(c);
    }
out:
    free(frames);
    return st;
}

/* ---- reference and mode side by side ----------------------------------------------------------------------------- */

static status_t open_backend(const struct comparison *c, enum precision precision, struct backend **out)
{
    const struct cell            *cell = c->cell;
    const struct backend_options options = {
        .n_threads = c->work->n_threads,
        .pin = c->work->pin,
        .rounding = precision == PRECISION_FP32 ? ROUND_NONE : ROUND_BF16,
    };
    return backend_open(cell->device[0] ? cell->device : device_class_name(cell->device_class), &options, out);
}

static status_t open_decoder(struct comparison *c, struct party *p, enum kv_format kv, const struct decode_tap *tap,
                             const int32_t *forced)
{
    struct decode_options options = {
        .batch = 1,
        .max_seq_len = c->s->max_seq_len,
        .kv = kv,
        .head = c->cell->head,
        .engine = ENGINE_OPS,
        .sampling = c->cell->sampling,
        .fixed_length = forced || c->cell->workload.length == LENGTH_FIXED, /* the forced one ends with the reference */
        .forced = forced,
        .n_forced = forced ? c->max_frames : 0,
        .tap = tap,
    };
    return decoder_open(p->backend, p->weights, &options, &p->decoder);
}

/* The folder with the weights before they were quantized: the cell's own, unless that is a quantized copy. */
static const char *reference_folder(const struct work *work)
{
    return work->reference[0] ? work->reference : work->cell.model;
}

static status_t open_parties(struct comparison *c, const struct decode_tap *keep, const struct decode_tap *compare)
{
    struct session *s = c->s;
    enum precision  precision = (enum precision)quality_reference(c->cell->precision);
    const char     *folder = reference_folder(c->work);
    TRY(checkpoint_open(folder, &c->reference.checkpoint));
    if (c->reference.checkpoint->config.quantization.recipe != RECIPE_NONE)
        return FAIL(ST_EINPUT, "%s holds quantized weights alone; with bf16 in the same sweep its model is the reference",
                    folder);
    TRY(weights_open(c->reference.checkpoint, precision, RECIPE_NONE, c->work->n_threads, &c->reference.owned));
    c->reference.weights = c->reference.owned;
    c->mode.weights = s->weights;
    TRY(open_backend(c, precision, &c->reference.backend));
    TRY(open_backend(c, c->cell->precision, &c->mode.backend));
    TRY(linear_watch_open(c->reference.backend, c->reference.weights, c->mode.backend, c->mode.weights, &c->watch));
    TRY(open_decoder(c, &c->reference, precision == PRECISION_FP32 ? KV_FP32 : KV_BF16, keep, NULL));
    return open_decoder(c, &c->mode, c->cell->kv, compare, c->forced);
}

static void close_parties(struct comparison *c)
{
    decoder_close(c->reference.decoder);
    decoder_close(c->mode.decoder);
    linear_watch_close(c->watch);
    backend_close(c->reference.backend);
    backend_close(c->mode.backend);
    weights_close(c->reference.owned);
    checkpoint_close(c->reference.checkpoint);
}

/* First frame in which the free run left the reference, or −1. A run that ended while the other went on left it there. */
static int find_divergence(const struct comparison *c, int text, int frames)
{
    const int32_t *mine = c->free_run + (size_t)text * (size_t)c->max_frames * (size_t)c->width;
    int            both = frames < c->free_frames[text] ? frames : c->free_frames[text];
    for (int k = 0; k < both; k++)
        if (memcmp(mine + (size_t)k * (size_t)c->width, c->forced + (size_t)k * (size_t)c->width,
                   (size_t)c->width * sizeof *mine) != 0)
            return k;
    return frames == c->free_frames[text] ? -1 : both;
}

static status_t compare_text(struct comparison *c, int text)
{
    struct prompt  prompt;
    const uint32_t sequence = (uint32_t)text * (uint32_t)c->cell->batch; /* as in the text's first sample */
    int            frames = 0;
    TRY(session_prompt(c->s, c->cell->workload.texts[text], &prompt));
    status_t st = decoder_prefill(c->reference.decoder, &prompt, &sequence);
    if (st == ST_OK)
        st = decoder_prefill(c->mode.decoder, &prompt, &sequence);
    prompt_free(&prompt);
    TRY(st);
    for (; frames < c->max_frames; frames++) {
        int      done, forced_done;
        double   ms;
        int32_t  ignored[1 + HISTORY_MAX_CODEBOOKS];
        linear_watch_switch(c->watch, frames < QUALITY_PRODUCT_FRAMES);
        TRY(decoder_run(c->reference.decoder, 1, c->forced + (size_t)frames * (size_t)c->width, &ms, &done));
        linear_watch_switch(c->watch, false);
        if (done == 0)
            break;
        TRY(decoder_run(c->mode.decoder, 1, ignored, &ms, &forced_done));
        TRY(c->tap);
        if (forced_done == 0)
            return FAIL(ST_EINTERNAL, "text %d: the forced decoder stopped at frame %d", text, frames);
        TRY(check_stop(c));
    }
    c->out->quality_texts[c->out->n_quality_texts++] =
        (struct quality_text){.text = text, .frames = frames, .diverged = find_divergence(c, text, frames)};
    return ST_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static status_t make_room(struct comparison *c)
{
    const struct model_config *config = &c->s->checkpoint->config;
    const struct workload     *w = &c->cell->workload;
    int                        frames = w->quality_frames ? w->quality_frames : QUALITY_FRAMES;
    c->n_texts = w->quality_texts && w->quality_texts < w->n_texts ? w->quality_texts : w->n_texts;
    c->max_frames = frames < w->max_new_tokens ? frames : w->max_new_tokens;
    c->width = 1 + config->num_codebooks;
    c->stride = (size_t)config->codebook_size;
    size_t one = (size_t)c->max_frames * (size_t)c->width, texts = (size_t)c->n_texts;
    size_t logits = (size_t)config->vocab_size + (size_t)config->num_codebooks * c->stride;
    c->forced = malloc(one * sizeof *c->forced);
    c->free_run = malloc(texts * one * sizeof *c->free_run);
    c->free_frames = calloc(texts, sizeof *c->free_frames);
    c->logits = malloc(logits * sizeof *c->logits);
    c->n_logits = calloc((size_t)config->num_codebooks, sizeof *c->n_logits);
    c->out->quality = calloc(result_room((size_t)config->num_codebooks + 1), sizeof *c->out->quality);
    c->out->quality_texts = calloc(result_room(texts), sizeof *c->out->quality_texts);
    if (!c->forced || !c->free_run || !c->free_frames || !c->logits || !c->n_logits || !c->out->quality ||
        !c->out->quality_texts)
        return FAIL(ST_ENOMEM, "no memory to compare %d texts of %d frames", c->n_texts, c->max_frames);
    return divergence_open(config->num_codebooks, &c->divergence);
}

static void free_room(struct comparison *c)
{
    free(c->forced);
    free(c->free_run);
    free(c->free_frames);
    free(c->logits);
    free(c->n_logits);
    divergence_close(c->divergence);
}

static status_t note_facts(struct comparison *c, int64_t t0)
{
    char        text[32], mark[4200];
    const char *folder = reference_folder(c->work);
    snprintf(text, sizeof text, "%.1f", clock_ms_since(t0) * 1e-3);
    TRY(result_add_fact(c->out, "quality_s", text));
    TRY(result_add_fact(c->out, "quality_reference",
                        precision_name((enum precision)quality_reference(c->cell->precision))));
    snprintf(mark, sizeof mark, "%s/synth.json", folder);
    return file_exists(mark) ? result_add_fact(c->out, "synthetic_weights", "true") : ST_OK;
}

/* Rows of an unfinished comparison are none. */
static void drop_rows(struct result *r)
{
    free(r->quality);
    free(r->quality_texts);
    free(r->quality_linears);
    r->quality = NULL;
    r->quality_texts = NULL;
    r->quality_linears = NULL;
    r->n_quality = r->n_quality_texts = r->n_quality_linears = 0;
}

status_t quality_measure(struct session *s, const struct work *work, const volatile sig_atomic_t *stop, struct result *out)
{
    struct comparison c = {.s = s, .work = work, .stop = stop, .cell = &work->cell, .out = out};
    struct decode_tap keep = {.ctx = &c, .logits = keep_logits}, compare = {.ctx = &c, .logits = compare_logits};
    int64_t           t0 = clock_ns();
    status_t          st = ST_OK;
    if (quality_reference(work->cell.precision) < 0)
        return result_add_fact(out, "quality_reference", "none: fp32 is what others are compared with");
    TRY_OUT(make_room(&c));
    TRY_OUT(run_freely(&c));
    speech_close(s->speech);
    s->speech = NULL;
    decoder_close(s->decoder);
    s->decoder = NULL;
    TRY_OUT(open_parties(&c, &keep, &compare));
    for (int t = 0; t < c.n_texts; t++)
        TRY_OUT(compare_text(&c, t));
    TRY_OUT(divergence_rows(c.divergence, work->cell.sampling.seed, out->quality));
    out->n_quality = (size_t)c.width; /* all codebooks, then each of width − 1 */
    TRY_OUT(linear_watch_rows(c.watch, &out->quality_linears, &out->n_quality_linears));
    st = note_facts(&c, t0);
out:
    close_parties(&c);
    free_room(&c);
    if (st != ST_OK)
        drop_rows(out);
    return st;
}

/* ---- gates ------------------------------------------------------------------------------------------------------- */

/* Median of a column of the linear layers, without those that have none. */
static double median_db(const struct result *r, bool output, double *values)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_quality_linears; i++) {
        double db = output ? r->quality_linears[i].output_sqnr_db : r->quality_linears[i].weight_sqnr_db;
        if (!isnan(db))
            values[n++] = db;
    }
    return stats_quantile(values, n, 0.5, values + r->n_quality_linears);
}

status_t quality_sqnr(const struct result *r, double *weight_db, double *output_db)
{
    double *values = malloc((2 * r->n_quality_linears + 1) * sizeof *values);
    if (!values)
        return FAIL(ST_ENOMEM, "no memory for %zu layers", r->n_quality_linears);
    *weight_db = median_db(r, false, values);
    *output_db = median_db(r, true, values);
    free(values);
    return ST_OK;
}

void quality_gates(const struct result *r, struct quality_gate gates[QUALITY_GATES])
{
    const struct quality_row *all = r->n_quality && r->quality[0].codebook == QUALITY_ALL ? &r->quality[0] : NULL;
    double                    weight_db = NAN, output_db = NAN;
    quality_sqnr(r, &weight_db, &output_db);
    gates[0] = (struct quality_gate){"mean KL", "nat", all ? all->kl_mean : NAN, 2e-3, .at_least = false};
    gates[1] = (struct quality_gate){"top-1 agreement", "", all ? all->top1 : NAN, 0.985, .at_least = true};
    gates[2] = (struct quality_gate){"NLL change", "", all ? fabs(all->nll / all->nll_ref - 1) : NAN, 0.005,
                                     .at_least = false};
    gates[3] = (struct quality_gate){"median output SQNR", "dB", output_db, 38, .at_least = true};
    for (int i = 0; i < QUALITY_GATES; i++) {
        gates[i].known = !isnan(gates[i].value);
        gates[i].passed = gates[i].known && (gates[i].at_least ? gates[i].value >= gates[i].limit
                                                               : gates[i].value <= gates[i].limit);
    }
}
