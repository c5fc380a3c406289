#include "bench/session.h"

#include <stdlib.h>
#include <string.h>

const char WARMUP_TEXT[] = "Warmup test sentence.";

status_t session_open_device(struct session *s, const struct work *work)
{
    const struct cell     *cell = &work->cell;
    struct backend_options options = {
        .n_threads = work->n_threads,
        .pin = work->pin,
        .rounding = cell->precision == PRECISION_FP32 ? ROUND_NONE : ROUND_BF16,
        .memory_limit = cell->memory_limit,
    };
    s->cell = cell;
    return backend_open(cell->device[0] ? cell->device : device_class_name(cell->device_class), &options, &s->backend);
}

status_t session_prompt(const struct session *s, const char *text, struct prompt *out)
{
    return prompt_build(s->tokenizer, &s->checkpoint->config, text, &s->voice, s->cell->context > 0 ? 1 : 0,
                        s->cell->workload.control_tokens, out);
}

/* Columns of a text's prompt. */
static status_t measure(const struct session *s, const char *text, int *columns)
{
    struct prompt p;
    TRY(session_prompt(s, text, &p));
    *columns = p.columns;
    prompt_free(&p);
    return ST_OK;
}

/* Find the KV length: what the longest prompt needs, or what the cell reserves, if that is enough for every prompt. */
static status_t plan_length(struct session *s)
{
    const struct workload *w = &s->cell->workload;
    int                    limit = s->checkpoint->config.max_seq_len, longest = 0, warmup = 0;
    if (s->cell->max_seq_len && s->cell->max_seq_len < limit)
        limit = s->cell->max_seq_len;
    for (int i = 0; i < w->n_texts; i++) {
        int columns;
        TRY(measure(s, w->texts[i], &columns));
        if (columns >= limit)
            return FAIL(ST_EUSAGE, "text %d with context %d is a prompt of %d columns, but max_seq_len is %d", i,
                        s->cell->context, columns, limit);
        longest = columns > longest ? columns : longest;
    }
    if (w->warmup) {
        TRY(measure(s, WARMUP_TEXT, &warmup));
        if (warmup >= limit)
            return FAIL(ST_EUSAGE, "the warm-up prompt with context %d has %d columns, but max_seq_len is %d",
                        s->cell->context, warmup, limit);
        longest = warmup > longest ? warmup : longest;
    }
    long long wanted = (long long)longest + w->max_new_tokens;
    s->max_seq_len = s->cell->max_seq_len ? s->cell->max_seq_len : wanted < limit ? (int)wanted : limit;
    return ST_OK;
}

static status_t make_buffers(struct session *s)
{
    size_t width = 1 + (size_t)s->checkpoint->config.num_codebooks, steps = (size_t)s->cell->workload.max_new_tokens;
    size_t batch = (size_t)s->cell->batch, bytes;
    if (__builtin_mul_overflow(batch * width, steps, &bytes) || __builtin_mul_overflow(bytes, sizeof(int32_t), &bytes))
        return FAIL(ST_EUSAGE, "batch %zu of %zu frames does not fit in memory", batch, steps);
    s->frames = malloc(bytes);
    s->chunk = malloc(bytes);
    s->step_ms = malloc(steps * sizeof *s->step_ms);
    s->sequences = calloc(batch, sizeof *s->sequences);
    s->prompts = calloc(batch, sizeof *s->prompts);
    if (!s->frames || !s->chunk || !s->step_ms || !s->sequences || !s->prompts)
        return FAIL(ST_ENOMEM, "no memory for the frames of %zu utterances", batch);
    return ST_OK;
}

status_t session_open_model(struct session *s, const struct work *work)
{
    const struct cell *cell = s->cell;
    TRY(checkpoint_open(cell->model, &s->checkpoint));
    TRY(tokenizer_open(cell->model, &s->tokenizer));
    if (cell->context > 0)
        TRY(voice_make(&s->checkpoint->config, cell->context, cell->sampling.seed, &s->voice));
    TRY(plan_length(s));
    TRY(make_buffers(s));
    TRY(weights_open(s->checkpoint, cell->precision, cell->recipe, work->n_threads, &s->weights));
    struct decode_options options = {
        .batch = cell->batch,
        .max_seq_len = s->max_seq_len,
        .kv = cell->kv,
        .head = cell->head,
        .engine = cell->engine,
        .sampling = cell->sampling,
        .fixed_length = cell->workload.length == LENGTH_FIXED,
        .sequence_ids = s->sequences,
    };
    TRY(decoder_open(s->backend, s->weights, &options, &s->decoder));
    if (cell->codec == CODEC_OFF)
        return ST_OK;
    return speech_open(s->backend, cell->model, cell->codec, s->checkpoint->config.num_codebooks,
                       cell->workload.max_new_tokens, &s->speech);
}

void session_close(struct session *s)
{
    speech_close(s->speech);
    decoder_close(s->decoder);
    weights_close(s->weights);
    tokenizer_close(s->tokenizer);
    checkpoint_close(s->checkpoint);
    voice_free(&s->voice);
    backend_close(s->backend);
    free(s->frames);
    free(s->chunk);
    free(s->step_ms);
    free(s->sequences);
    free(s->prompts);
    memset(s, 0, sizeof *s);
}
