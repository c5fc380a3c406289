#include "sweep/cell.h"

#include "sweep/field.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const char *const status_names[] = {"pending", "ok",      "oom",         "crashed",
                                           "timeout", "invalid", "interrupted", "contaminated"};
_Static_assert(sizeof status_names / sizeof *status_names == CELL_STATUS_COUNT, "one name a status");

const char *cell_status_name(enum cell_status s)
{
    return (int)s >= 0 && s < CELL_STATUS_COUNT ? status_names[s] : "?";
}

int cell_status_parse(const char *name)
{
    for (int i = 0; i < CELL_STATUS_COUNT; i++)
        if (strcmp(name, status_names[i]) == 0)
            return i;
    return -1;
}

const char *device_class_name(enum device_class d)
{
    return d == DEVICE_CPU ? "cpu" : d == DEVICE_CUDA ? "cuda" : "?";
}

const char *length_mode_name(enum length_mode m)
{
    return m == LENGTH_NATURAL ? "natural" : m == LENGTH_FIXED ? "fixed" : "?";
}

void cell_defaults(struct cell *out)
{
    *out = (struct cell){
        .precision = PRECISION_BF16,
        .kv        = KV_BF16,
        .batch     = 1,
        .sampling  = {.rules = SAMPLING_S1, .temperature = 0.7f, .top_p = 0.8f, .repetition_penalty = 1.1f, .seed = 42},
        .workload  = {.samples = 10, .warmup = 3, .processes = 1, .max_new_tokens = 1024},
    };
}

void cell_free(struct cell *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->workload.n_texts; i++)
        free(c->workload.texts[i]);
    free(c->workload.texts);
    free(c->model);
    *c = (struct cell){0};
}

status_t cell_set_model(struct cell *c, const char *dir)
{
    char *copy = strdup(dir);
    if (!copy)
        return FAIL(ST_ENOMEM, "no memory for the path of a model");
    free(c->model);
    c->model = copy;
    return ST_OK;
}

status_t workload_set_texts(struct workload *w, const char *const *texts, int n)
{
    char **copy = calloc((size_t)n + 1, sizeof *copy);
    int    done = 0;
    for (; copy && done < n; done++)
        if (!(copy[done] = strdup(texts[done])))
            break;
    if (!copy || done < n) {
        for (int i = 0; i < done; i++)
            free(copy[i]);
        free(copy);
        return FAIL(ST_ENOMEM, "no memory for %d texts", n);
    }
    for (int i = 0; i < w->n_texts; i++)
        free(w->texts[i]);
    free(w->texts);
    w->texts   = copy;
    w->n_texts = n;
    return ST_OK;
}

status_t cell_copy(const struct cell *from, struct cell *to)
{
    struct cell copy      = *from;
    copy.model            = NULL;
    copy.workload.texts   = NULL;
    copy.workload.n_texts = 0;
    status_t st           = ST_OK;
    if (from->model)
        TRY_OUT(cell_set_model(&copy, from->model));
    TRY_OUT(workload_set_texts(&copy.workload, (const char *const *)from->workload.texts, from->workload.n_texts));
    *to = copy;
    return ST_OK;
out:
    cell_free(&copy);
    return st;
}

static status_t check_texts(const struct workload *w, const char *label)
{
    if (w->n_texts < 1 || w->n_texts > TEXTS_MAX)
        return FAIL(ST_EINPUT, "%s: texts: %d of them, want 1 to %d", label, w->n_texts, TEXTS_MAX);
    for (int i = 0; i < w->n_texts; i++) {
        size_t n = strlen(w->texts[i]);
        if (n < 1 || n > TEXT_BYTES_MAX)
            return FAIL(ST_EINPUT, "%s: texts: number %d has %zu bytes, want 1 to %d", label, i + 1, n,
                        TEXT_BYTES_MAX);
    }
    return ST_OK;
}

static status_t check_stop(const struct stop_rule *s, const char *label)
{
    if (s->max == 0)
        return ST_OK;
    if (!(s->rel_ci > 0 && s->rel_ci < 1))
        return FAIL(ST_EINPUT, "%s: stop: rel_ci = %g, want a share between 0 and 1", label, (double)s->rel_ci);
    if (s->min < 2 || s->max < s->min || s->max > 100000)
        return FAIL(ST_EINPUT, "%s: stop: min = %d, max = %d, want 2 ≤ min ≤ max ≤ 100000", label, s->min, s->max);
    if (!(s->seconds >= 0 && s->seconds <= 1e6f))
        return FAIL(ST_EINPUT, "%s: stop: seconds = %g, want 0 to 1000000", label, (double)s->seconds);
    return ST_OK;
}

status_t cell_check(const struct cell *c, const char *label)
{
    for (int i = 0; i < FIELD_COUNT; i++) {
        const struct field *f = &cell_fields[i];
        char                text[FIELD_TEXT_MAX], why[512];
        union field_value   v = field_get(f, c);
        field_format(f, v, text);
        if (!field_parse(f, text, &v, why, sizeof why))
            return FAIL(ST_EINPUT, "%s: %s", label, why);
    }
    size_t n = c->model ? strlen(c->model) : 0;
    if (n < 1 || n >= MODEL_PATH_MAX)
        return FAIL(ST_EINPUT, "%s: model: a path of %zu bytes, want 1 to %d", label, n, MODEL_PATH_MAX - 1);
    if (strnlen(c->gpu, sizeof c->gpu) == sizeof c->gpu || strpbrk(c->gpu, "\n\r"))
        return FAIL(ST_EINPUT, "%s: gpu: want the name of a GPU, one line below %zu bytes", label, sizeof c->gpu);
    if (!(c->deadline_s >= 0 && c->deadline_s <= 1e9))
        return FAIL(ST_EINPUT, "%s: deadline = %g, want 0 to 1e9 seconds", label, c->deadline_s);
    TRY(check_stop(&c->workload.stop, label));
    return check_texts(&c->workload, label);
}

/* ---- identity ---------------------------------------------------------------------------------------------------- */

enum { CANONICAL_MAX = 4096 }; /* 33 lines, each a key below 24 bytes and a value below FIELD_TEXT_MAX */

struct line_buffer {
    char   text[CANONICAL_MAX];
    size_t n;
};

static void add_line(struct line_buffer *b, const char *key, const char *value, size_t value_n)
{
    size_t key_n = strlen(key);
    memcpy(b->text + b->n, key, key_n);
    memcpy(b->text + b->n + key_n, " = ", 3);
    memcpy(b->text + b->n + key_n + 3, value, value_n);
    b->n += key_n + 3 + value_n;
    b->text[b->n++] = '\n';
    b->text[b->n]   = '\0';
}

/* 32 hex digits, the high half first. */
static void hash_text(XXH128_hash_t h, char out[33])
{
    static const char  digits[] = "0123456789abcdef";
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, h);
    for (int i = 0; i < 16; i++) {
        out[2 * i]     = digits[bytes.digest[i] >> 4];
        out[2 * i + 1] = digits[bytes.digest[i] & 15];
    }
    out[32] = '\0';
}

/* A chain of hashes, so that ["ab", "c"] and ["a", "bc"] differ. */
static void add_texts(struct line_buffer *b, const struct workload *w)
{
    XXH128_canonical_t link[2] = {0}; /* the chain so far, then the next text; canonical = the same bytes everywhere */
    char               value[64], hash[33];
    for (int i = 0; i < w->n_texts; i++) {
        XXH128_canonicalFromHash(&link[1], XXH3_128bits(w->texts[i], strlen(w->texts[i])));
        XXH128_canonicalFromHash(&link[0], XXH3_128bits(link, sizeof link));
    }
    hash_text(XXH128_hashFromCanonical(&link[0]), hash);
    add_line(b, "texts", value, (size_t)snprintf(value, sizeof value, "%d %s", w->n_texts, hash));
}

static void add_stop(struct line_buffer *b, const struct stop_rule *s)
{
    char value[128], rel_ci[24], seconds[24];
    if (s->max == 0)
        return;
    float_text(s->rel_ci, rel_ci);
    float_text(s->seconds, seconds);
    add_line(b, "stop", value,
             (size_t)snprintf(value, sizeof value, "%s %d %d %s", rel_ci, s->min, s->max, seconds));
}

static void canonical(const struct cell *c, struct line_buffer *b)
{
    /* Keys that are not in the field table, at their places in the order. */
    bool fingerprint_done = false, stop_done = false, texts_done = false;
    b->n = 0;
    for (int i = 0; i < FIELD_COUNT; i++) {
        const struct field *f = &cell_fields[i];
        union field_value   v = field_get(f, c);
        char                text[FIELD_TEXT_MAX];
        if (!fingerprint_done && strcmp(f->name, "fingerprint") > 0) {
            add_line(b, "fingerprint", c->fingerprint, strnlen(c->fingerprint, 32));
            add_line(b, "format", "1", 1);
            if (c->gpu[0])
                add_line(b, "gpu", c->gpu, strnlen(c->gpu, sizeof c->gpu));
            fingerprint_done = true;
        }
        if (!stop_done && strcmp(f->name, "stop") > 0) {
            add_stop(b, &c->workload.stop);
            stop_done = true;
        }
        if (!texts_done && strcmp(f->name, "texts") > 0) {
            add_texts(b, &c->workload);
            texts_done = true;
        }
        if (!f->omit_zero || v.i)
            add_line(b, f->name, text, (size_t)field_format(f, v, text));
    }
}

status_t cell_canonical(const struct cell *c, char **text)
{
    struct line_buffer b;
    canonical(c, &b);
    char *copy = strdup(b.text);
    if (!copy)
        return FAIL(ST_ENOMEM, "no memory for the canonical text of a cell");
    *text = copy;
    return ST_OK;
}

status_t cell_identify(struct cell *c)
{
    if (strspn(c->fingerprint, "0123456789abcdef") != 32 || c->fingerprint[32])
        return FAIL(ST_EINPUT, "fingerprint = \"%.32s\", want 32 hex digits", c->fingerprint);
    struct line_buffer b;
    canonical(c, &b);
    hash_text(XXH3_128bits(b.text, b.n), c->id);
    return ST_OK;
}

void cell_label(const struct cell *c, char *out, size_t size)
{
    struct cell standard;
    cell_defaults(&standard);
    size_t n = (size_t)snprintf(out, size, "%s b%d ctx%d", precision_name(c->precision), c->batch, c->context);
    const struct field *recipe = &cell_fields[field_find("recipe")], *rules = &cell_fields[field_find("sampling")];
#define PART(condition, ...)                                                                                           \
    if ((condition) && n < size)                                                                                       \
    n += (size_t)snprintf(out + n, size - n, __VA_ARGS__)
    PART(c->precision == PRECISION_INT8 && c->recipe > RECIPE_TORCHAO, " %s", recipe->choices[c->recipe]);
    PART(c->kv != (c->precision == PRECISION_FP32 ? KV_FP32 : KV_BF16), " kv-%s", kv_format_name(c->kv));
    PART(c->max_seq_len, " seq%d", c->max_seq_len);
    PART(c->head != standard.head, " %s-head", head_mode_name(c->head));
    PART(c->engine != standard.engine, " %s", engine_kind_name(c->engine));
    PART(c->codec != standard.codec, " codec-%s", codec_mode_name(c->codec));
    PART(c->sampling.rules != standard.sampling.rules, " %s", rules->choices[c->sampling.rules]);
    PART(c->memory_limit, " limit-%.4gGB", (double)c->memory_limit * 1e-9);
    PART(c->device_class == DEVICE_CUDA, " cuda");
    PART(c->gpu[0], " on %s", c->gpu);
#undef PART
}
