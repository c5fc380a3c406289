#include "model/prompt.h"

#include "base/file.h"

#include <stdlib.h>
#include <string.h>

/* In S1-mini no special token but ordinary text of seven tokens; a vocabulary that lists it gets its id. */
static const char speaker_tag[] = "<|speaker:0|>";

/* Row 0 as it grows; the codes of voices are written when the number of columns is known. */
struct row {
    int32_t *ids;
    size_t   n, capacity, limit;
};

static status_t row_append(struct row *row, const int32_t *ids, size_t n)
{
    if (n >= row->limit - row->n)
        return FAIL(ST_EINPUT, "the prompt has more than %zu columns, the model's context; shorten the text or the voice",
                    row->limit - 1);
    if (n > row->capacity - row->n) {
        size_t   capacity = 2 * row->capacity + n + 64;
        int32_t *grown    = realloc(row->ids, capacity * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no memory for a prompt of %zu columns", capacity);
        row->ids      = grown;
        row->capacity = capacity;
    }
    if (n)
        memcpy(row->ids + row->n, ids, n * sizeof *ids);
    row->n += n;
    return ST_OK;
}

static status_t append_text(const struct tokenizer *t, const char *text, bool specials, struct row *row)
{
    int32_t *ids = NULL;
    size_t   n   = 0;
    TRY(tokenizer_encode(t, text, strlen(text), specials, &ids, &n));
    status_t st = row_append(row, ids, n);
    free(ids);
    return st;
}

static status_t append_special(const struct tokenizer *t, const char *token, struct row *row)
{
    int32_t id = tokenizer_special(t, token);
    if (id < 0)
        return FAIL(ST_EINPUT, "the tokenizer has no special token %s, which a prompt needs", token);
    return row_append(row, &id, 1);
}

static status_t append_codes(const struct codes *c, const struct model_config *config, int32_t semantic_begin,
                             struct row *row)
{
    if (c->codebooks != config->num_codebooks)
        return FAIL(ST_EINPUT, "the reference voice has %d codebooks, the model %d", c->codebooks, config->num_codebooks);
    for (int t = 0; t < c->frames; t++) {
        int32_t id = semantic_begin + c->values[t];
        /* The table of codes may have more rows than the vocabulary has semantic tokens. */
        if (config->semantic_end_id > 0 && id > config->semantic_end_id)
            return FAIL(ST_EINPUT, "frame %d of the reference voice has code %d, the vocabulary's last semantic token is %d", t,
                        c->values[t], config->semantic_end_id - semantic_begin);
        TRY(row_append(row, &id, 1));
    }
    return ST_OK;
}

static status_t check_vocabulary(const struct row *row, const struct model_config *config)
{
    for (size_t i = 0; i < row->n; i++)
        if (row->ids[i] < 0 || row->ids[i] >= config->vocab_size)
            return FAIL(ST_EINPUT, "column %zu of the prompt is token %d, the model's vocabulary ends at %d", i, row->ids[i],
                        config->vocab_size - 1);
    return ST_OK;
}

status_t prompt_build(const struct tokenizer *t, const struct model_config *config, const char *text,
                      const struct voice *voices, int n_voices, bool control_tokens, struct prompt *out)
{
    status_t st = ST_OK;
    if (config->family == FAMILY_S2)
        return FAIL(ST_EUNSUPPORTED, "prompts from text are built for S1 checkpoints only; give this model's prompt as ids "
                                     "(--prompt-ids FILE)");
    struct row row = {.limit = (size_t)config->max_seq_len};
    /* Where each voice's semantic columns begin. */
    size_t *starts = calloc(n_voices > 0 ? (size_t)n_voices : 1, sizeof *starts);
    int32_t begin  = tokenizer_special(t, "<|semantic:0|>");
    struct prompt p = {.rows = 1 + config->num_codebooks};

    if (!starts) {
        st = FAIL(ST_ENOMEM, "no memory for a prompt");
        goto out;
    }
    if (n_voices > 0 && begin < 0) {
        st = FAIL(ST_EINPUT, "the tokenizer has no special token <|semantic:0|>, which a reference voice needs");
        goto out;
    }
    TRY_OUT(append_special(t, "<|interleave|>", &row));
    for (int i = 0; i < n_voices; i++) {
        TRY_OUT(append_text(t, speaker_tag, true, &row));
        TRY_OUT(append_text(t, voices[i].text, control_tokens, &row));
        starts[i] = row.n;
        TRY_OUT(append_codes(&voices[i].codes, config, begin, &row));
        TRY_OUT(append_special(t, "<|im_end|>", &row));
    }
    TRY_OUT(append_text(t, speaker_tag, true, &row));
    TRY_OUT(append_text(t, text, control_tokens, &row));
    TRY_OUT(check_vocabulary(&row, config));

    p.columns = (int)row.n;
    p.values  = calloc((size_t)p.rows * row.n, sizeof *p.values);
    if (!p.values) {
        st = FAIL(ST_ENOMEM, "no memory for a prompt of %d x %d", p.rows, p.columns);
        goto out;
    }
    memcpy(p.values, row.ids, row.n * sizeof *row.ids);
    for (int i = 0; i < n_voices; i++) {
        size_t frames = (size_t)voices[i].codes.frames;
        for (size_t k = 0; k < (size_t)config->num_codebooks; k++)
            memcpy(p.values + (k + 1) * row.n + starts[i], voices[i].codes.values + k * frames, frames * sizeof *p.values);
    }
    *out = p;
out:
    free(row.ids);
    free(starts);
    return st;
}

status_t prompt_ids_parse(const void *bytes, size_t size, const char *label, const struct model_config *config,
                          struct prompt *out)
{
    status_t      st = ST_OK;
    struct prompt p  = {0};
    TRY_OUT(matrix_parse(bytes, size, label, "prompt", &p.rows, &p.columns, &p.values));
    int rows = 1 + config->num_codebooks;
    if ((p.rows != rows && p.rows != 1) || p.columns < 1 || p.columns >= config->max_seq_len) {
        st = FAIL(ST_EINPUT, "%s: a prompt of %d rows and %d columns; want %d rows (or 1 of text ids) and 1..%d columns", label,
                  p.rows, p.columns, rows, config->max_seq_len - 1);
        goto out;
    }
    if (p.rows < rows) {
        int32_t *grown = calloc((size_t)rows * (size_t)p.columns, sizeof *grown);
        if (!grown) {
            st = FAIL(ST_ENOMEM, "%s: no memory for a prompt of %d x %d", label, rows, p.columns);
            goto out;
        }
        memcpy(grown, p.values, (size_t)p.columns * sizeof *grown);
        free(p.values);
        p.values = grown;
        p.rows   = rows;
    }
    for (int i = 0; i < p.rows; i++)
        for (int j = 0; j < p.columns; j++) {
            int32_t value = p.values[(size_t)i * (size_t)p.columns + (size_t)j];
            int32_t limit = i == 0 ? config->vocab_size : config->codebook_size;
            if (value < 0 || value >= limit) {
                st = FAIL(ST_EINPUT, "%s: row %d, column %d: %d, want 0..%d", label, i, j, value, limit - 1);
                goto out;
            }
        }
    *out     = p;
    p.values = NULL;
out:
    free(p.values);
    return st;
}

status_t prompt_ids_open(const char *path, const struct model_config *config, struct prompt *out)
{
    char  *bytes = NULL;
    size_t size  = 0;
    TRY(file_read(path, CODES_FILE_MAX, &bytes, &size));
    status_t st = prompt_ids_parse(bytes, size, path, config, out);
    free(bytes);
    return st;
}

void prompt_free(struct prompt *p)
{
    free(p->values);
    *p = (struct prompt){0};
}
