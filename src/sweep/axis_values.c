#include "sweep/axis_values.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_SETS_MAX = 4096, MODELS_MAX = 256, TEXT_FILE_MAX = 1 << 24 };

/* ---- numbers, words, ranges -------------------------------------------------------------------------------------- */

bool value_has_auto(int field)
{
    static const char *const names[] = {"device", "kv", "length", "recipe", "top_k"};
    for (int i = 0; i < 5; i++)
        if (strcmp(cell_fields[field].name, names[i]) == 0)
            return true;
    return false;
}

static status_t want_scalar(const struct yaml *y, const char *label, int field)
{
    if (y->kind != YAML_SCALAR)
        return tree_refuse(y, label, "%s: want one value here; lists of values stand under sweep:", axis_name(field));
    if (!y->quoted && (y->text[0] == '\0' || strcmp(y->text, "~") == 0 || strcmp(y->text, "null") == 0))
        return tree_refuse(y, label, "%s: has no value", axis_name(field));
    return ST_OK;
}

status_t value_parse(const struct yaml *y, const char *label, int field, union field_value *out)
{
    char why[512];
    TRY(want_scalar(y, label, field));
    if (value_has_auto(field) && strcmp(y->text, "auto") == 0) {
        out->i = VALUE_AUTO;
        return ST_OK;
    }
    if (!y->quoted && strstr(y->text, ".."))
        return tree_refuse(y, label, "%s = %.40s is a range; ranges stand under sweep:", axis_name(field), y->text);
    return field_parse(&cell_fields[field], y->text, out, why, sizeof why) ? ST_OK : tree_refuse(y, label, "%s", why);
}

static status_t append_value(struct axis *a, union field_value v, const struct yaml *y, const char *label)
{
    if (a->n == AXIS_VALUES_MAX)
        return tree_refuse(y, label, "%s: more than %d values", axis_name(a->field), AXIS_VALUES_MAX);
    if ((a->n & (a->n - 1)) == 0) {
        union field_value *grown = realloc(a->values, (a->n ? 2 * (size_t)a->n : 1) * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no memory for the values of %s", axis_name(a->field));
        a->values = grown;
    }
    a->values[a->n++] = v;
    return ST_OK;
}

/* first..last, first..last+step, first..last*factor, cut into its parts. */
struct range {
    union field_value first, last;
    double            step; /* or factor */
    bool              geometric;
};

static status_t range_cut(const struct yaml *y, const char *label, const struct field *f, struct range *r)
{
    char        first[64], last[64], why[512];
    const char *dots = strstr(y->text, ".."), *end = dots + 2, *sign = end + strcspn(end, "+*");
    const char *form = "a range is written 1..64*2, 1..10+3 or 1..4";
    if ((size_t)(dots - y->text) >= sizeof first || (size_t)(sign - end) >= sizeof last || strlen(sign) >= 64)
        return tree_refuse(y, label, "%s: %s", f->name, form);
    snprintf(first, sizeof first, "%.*s", (int)(dots - y->text), y->text);
    snprintf(last, sizeof last, "%.*s", (int)(sign - end), end);
    if (!field_parse(f, first, &r->first, why, sizeof why) || !field_parse(f, last, &r->last, why, sizeof why))
        return tree_refuse(y, label, "%s; %s", why, form);
    r->geometric = *sign == '*';
    r->step      = 1;
    if (*sign == '\0') {
        if (f->kind == FIELD_FLOAT)
            return tree_refuse(y, label, "%s = %.40s: a range of fractions needs a step, such as 0.1..0.9+0.2", f->name,
                               y->text);
        return ST_OK;
    }
    char *rest;
    if (f->kind == FIELD_BYTES && !r->geometric) {
        union field_value step;
        if (!field_parse(f, sign + 1, &step, why, sizeof why))
            return tree_refuse(y, label, "%s; %s", why, form);
        r->step = (double)step.i;
    } else {
        r->step = strtod(sign + 1, &rest);
        if (rest == sign + 1 || *rest || sign[1 + strspn(sign + 1, "0123456789.")] != '\0')
            return tree_refuse(y, label, "%s = %.40s: %s", f->name, y->text, form);
    }
    bool whole = f->kind == FIELD_FLOAT || r->step == floor(r->step);
    if (!whole || !(r->step < 0x1p53) || !(r->geometric ? r->step > 1 : r->step > 0))
        return tree_refuse(y, label, "%s = %.40s: want a %s above %d", f->name, y->text,
                           f->kind == FIELD_FLOAT ? "number" : "whole number", r->geometric);
    return ST_OK;
}

static status_t range_parse(const struct yaml *y, const char *label, struct axis *a)
{
    const struct field *f = &cell_fields[a->field];
    struct range        r;
    TRY(range_cut(y, label, f, &r));
    bool   fraction = f->kind == FIELD_FLOAT;
    double first = fraction ? r.first.f : (double)r.first.i, last = fraction ? r.last.f : (double)r.last.i;
    if (last < first)
        return tree_refuse(y, label, "%s = %.40s counts down; a range begins with its smallest value", f->name, y->text);
    if (r.geometric && first <= 0)
        return tree_refuse(y, label, "%s = %.40s: times anything, 0 stays 0", f->name, y->text);
    if (fraction) {
        /* Half a step in a million of slack, so that 0.1..0.9+0.2 has its last value in spite of rounding. */
        double slack = r.geometric ? last * 1e-6 : r.step * 1e-6;
        for (int i = 0;; i++) {
            union field_value v = {.f = r.geometric ? first * pow(r.step, i) : first + r.step * i};
            if (v.f > last + slack)
                return ST_OK;
            v.f = fmin(v.f, last);
            TRY(append_value(a, v, y, label));
        }
    }
    int64_t step = (int64_t)r.step;
    for (int64_t v = r.first.i;;) {
        TRY(append_value(a, (union field_value){.i = v}, y, label));
        if (r.geometric ? v > r.last.i / step : v > r.last.i - step)
            return ST_OK;
        v = r.geometric ? v * step : v + step;
    }
}

static bool is_range(const struct yaml *y, const struct field *f)
{
    return y->kind == YAML_SCALAR && !y->quoted && strstr(y->text, "..") && f->kind != FIELD_CHOICE &&
           f->kind != FIELD_BOOL;
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

status_t model_parse(const struct yaml *y, const char *label, struct sweep *s, int *index)
{
    TRY(want_scalar(y, label, AXIS_MODEL));
    size_t n = strlen(y->text);
    if (n == 0 || n >= MODEL_PATH_MAX)
        return tree_refuse(y, label, "model: a path of %zu bytes, want 1 to %d", n, MODEL_PATH_MAX - 1);
    for (int i = 0; i < s->n_models; i++)
        if (strcmp(s->models[i], y->text) == 0) {
            *index = i;
            return ST_OK;
        }
    if (s->n_models == MODELS_MAX)
        return tree_refuse(y, label, "model: more than %d of them", MODELS_MAX);
    if (!s->models && !(s->models = calloc(MODELS_MAX, sizeof *s->models)))
        return FAIL(ST_ENOMEM, "no memory for models");
    if (!(s->models[s->n_models] = strdup(y->text)))
        return FAIL(ST_ENOMEM, "no memory for a path");
    *index = s->n_models++;
    return ST_OK;
}

/* ---- texts ------------------------------------------------------------------------------------------------------- */

/* The four texts of the reference benchmark (fish-speech fork, tools/runpod/benchmark.py), in its order. */
static const struct {
    const char *name, *text;
} reference[] = {
    {"short", "Hello, this is a test of the text to speech system."},
    {"medium", "The quick brown fox jumps over the lazy dog. This sentence contains every letter of the English alphabet "
               "and is commonly used for testing."},
    {"long", "Artificial intelligence has transformed the way we interact with technology. From voice assistants to "
             "autonomous vehicles, AI systems are becoming increasingly integrated into our daily lives. The "
             "development of large language models has particularly revolutionized natural language processing, "
             "enabling more natural and intuitive human-computer interactions."},
    {"mixed", "今天天气真好，阳光明媚。I hope you're having a wonderful day!"},
};
enum { REFERENCE_COUNT = sizeof reference / sizeof *reference };

static status_t add_text(struct text_set *set, const char *text, size_t n, const struct yaml *y, const char *label)
{
    if (set->n == TEXTS_MAX)
        return tree_refuse(y, label, "texts: more than %d in one set", TEXTS_MAX);
    if (n < 1 || n > TEXT_BYTES_MAX)
        return tree_refuse(y, label, "texts: number %d has %zu bytes, want 1 to %d", set->n + 1, n, TEXT_BYTES_MAX);
    if ((set->n & (set->n - 1)) == 0) {
        char **grown = realloc(set->texts, (set->n ? 2 * (size_t)set->n : 1) * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no memory for texts");
        set->texts = grown;
    }
    if (!(set->texts[set->n] = strndup(text, n)))
        return FAIL(ST_ENOMEM, "no memory for texts");
    set->n++;
    return ST_OK;
}

static status_t add_reference(struct text_set *set, const struct yaml *name, const char *label)
{
    const char *names[REFERENCE_COUNT];
    for (int i = 0; i < REFERENCE_COUNT; i++)
        names[i] = reference[i].name;
    if (name->kind != YAML_SCALAR)
        return tree_refuse(name, label, "texts.reference: want one of short, medium, long, mixed or a list of them");
    for (int i = 0; i < REFERENCE_COUNT; i++)
        if (strcmp(name->text, names[i]) == 0)
            return add_text(set, reference[i].text, strlen(reference[i].text), name, label);
    const char *near = nearest_name(name->text, names, REFERENCE_COUNT);
    return tree_refuse(name, label, "texts.reference = \"%.40s\", want one of short, medium, long, mixed%s%s%s",
                       name->text, near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

/* One text a line; blank lines do not count. */
static status_t add_lines(struct text_set *set, const char *bytes, size_t size, const struct yaml *y, const char *label)
{
    if (size > TEXT_FILE_MAX)
        return tree_refuse(y, label, "texts.file: %.200s has %zu bytes, want at most %d", y->text, size, TEXT_FILE_MAX);
    json_t *utf8 = json_stringn(bytes, size); /* NULL when it is not UTF-8 */
    json_decref(utf8);
    if (!utf8 || memchr(bytes, '\0', size))
        return tree_refuse(y, label, "texts.file: %.200s is not UTF-8 text", y->text);
    for (size_t at = 0; at < size;) {
        const char *end = memchr(bytes + at, '\n', size - at);
        size_t      n   = end ? (size_t)(end - bytes) - at : size - at, next = at + n + 1;
        while (n && strchr(" \t\r", bytes[at + n - 1]))
            n--;
        if (n)
            TRY(add_text(set, bytes + at, n, y, label));
        at = next;
    }
    return set->n ? ST_OK : tree_refuse(y, label, "texts.file: %.200s holds no text", y->text);
}

static status_t add_file(struct text_set *set, const struct yaml *path, const char *label, const struct job_files *files)
{
    if (path->kind != YAML_SCALAR || !path->text[0])
        return tree_refuse(path, label, "texts.file: want a path");
    if (!files || !files->read)
        return tree_refuse(path, label, "texts.file: files cannot be read here");
    char    *bytes = NULL;
    size_t   size  = 0;
    status_t st    = files->read(files->ctx, path->text, &bytes, &size);
    if (st == ST_OK)
        st = add_lines(set, bytes, size, path, label);
    free(bytes);
    return st;
}

static status_t fill_set(const struct yaml *y, const char *label, const struct job_files *files, struct text_set *set)
{
    if (y->kind == YAML_SCALAR) {
        TRY(want_scalar(y, label, AXIS_TEXTS));
        if (y->quoted || strcmp(y->text, "reference") != 0)
            return add_text(set, y->text, strlen(y->text), y, label);
        for (int i = 0; i < REFERENCE_COUNT; i++)
            TRY(add_text(set, reference[i].text, strlen(reference[i].text), y, label));
        return ST_OK;
    }
    if (y->kind == YAML_LIST) {
        for (int i = 0; i < y->n; i++) {
            if (y->items[i]->kind != YAML_SCALAR)
                return tree_refuse(y->items[i], label, "texts: want a text; sets of texts stand under sweep:");
            TRY(want_scalar(y->items[i], label, AXIS_TEXTS));
            TRY(add_text(set, y->items[i]->text, strlen(y->items[i]->text), y->items[i], label));
        }
        return set->n ? ST_OK : tree_refuse(y, label, "texts: the list is empty");
    }
    const struct yaml *value = y->n == 1 ? y->items[0] : NULL;
    if (value && strcmp(y->keys[0], "file") == 0)
        return add_file(set, value, label, files);
    if (!value || strcmp(y->keys[0], "reference") != 0)
        return tree_refuse(y, label, "texts: want reference, a list of texts, {file: PATH} or {reference: [short, …]}");
    if (value->kind == YAML_SCALAR)
        return add_reference(set, value, label);
    for (int i = 0; i < value->n; i++)
        TRY(add_reference(set, value->items[i], label));
    return set->n ? ST_OK : tree_refuse(value, label, "texts.reference: the list is empty");
}

static bool same_set(const struct text_set *a, const struct text_set *b)
{
    for (int i = 0; a->n == b->n && i < a->n; i++)
        if (strcmp(a->texts[i], b->texts[i]) != 0)
            return false;
    return a->n == b->n;
}

status_t text_set_parse(const struct yaml *y, const char *label, const struct job_files *files, struct sweep *s,
                        int *index)
{
    if (!s->text_sets && !(s->text_sets = calloc(TEXT_SETS_MAX, sizeof *s->text_sets)))
        return FAIL(ST_ENOMEM, "no memory for texts");
    if (s->n_text_sets == TEXT_SETS_MAX)
        return tree_refuse(y, label, "texts: more than %d sets", TEXT_SETS_MAX);
    struct text_set *set = &s->text_sets[s->n_text_sets++]; /* sweep_free() releases it after a failure */
    TRY(fill_set(y, label, files, set));
    for (int i = 0; i < s->n_text_sets - 1; i++)
        if (same_set(&s->text_sets[i], set)) {
            text_set_free(set);
            s->n_text_sets--;
            *index = i;
            return ST_OK;
        }
    *index = s->n_text_sets - 1;
    return ST_OK;
}

/* ---- a whole axis ------------------------------------------------------------------------------------------------ */

static status_t element_parse(const struct yaml *y, const char *label, const struct job_files *files, struct sweep *s,
                              struct axis *a)
{
    union field_value v = {0};
    int               index;
    if (a->field == AXIS_MODEL) {
        TRY(model_parse(y, label, s, &index));
        v.i = index;
    } else if (a->field == AXIS_TEXTS) {
        TRY(text_set_parse(y, label, files, s, &index));
        v.i = index;
    } else if (is_range(y, &cell_fields[a->field])) {
        return range_parse(y, label, a);
    } else if (y->kind != YAML_SCALAR) {
        return tree_refuse(y, label, "%s: an axis is a list of plain values and ranges", axis_name(a->field));
    } else {
        TRY(value_parse(y, label, a->field, &v));
    }
    return append_value(a, v, y, label);
}

status_t axis_parse(const struct yaml *y, const char *label, const struct job_files *files, struct sweep *s,
                    struct axis *axis)
{
    if (y->kind != YAML_LIST)
        return element_parse(y, label, files, s, axis);
    for (int i = 0; i < y->n; i++)
        TRY(element_parse(y->items[i], label, files, s, axis));
    return axis->n ? ST_OK : tree_refuse(y, label, "%s: the list is empty", axis_name(axis->field));
}
