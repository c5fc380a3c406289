/* work.c — a worker's task as JSON. */
#include "bench/work.h"

#include "base/cores.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void work_free(struct work *w)
{
    cell_free(&w->cell);
    for (size_t i = 0; i < w->n_facts; i++) {
        free(w->facts[i].key);
        free(w->facts[i].value);
    }
    free(w->facts);
    memset(w, 0, sizeof *w);
}

status_t work_add_fact(struct work *w, const char *key, const char *value)
{
    struct fact *facts = realloc(w->facts, (w->n_facts + 1) * sizeof *facts);
    if (!facts)
        return FAIL(ST_ENOMEM, "no memory for a fact");
    w->facts = facts;
    struct fact *f = &facts[w->n_facts];
    *f = (struct fact){strdup(key), strdup(value)};
    if (!f->key || !f->value) {
        free(f->key);
        free(f->value);
        return FAIL(ST_ENOMEM, "no memory for a fact");
    }
    w->n_facts++;
    return ST_OK;
}

int work_samples(const struct workload *w)
{
    return w->n_texts * (w->stop.max > 0 ? w->stop.max : w->samples);
}

int work_parts(const struct workload *w)
{
    int samples = work_samples(w);
    return w->processes < 1 || samples < 1 ? 1 : w->processes > samples ? samples : w->processes;
}

void work_share(const struct workload *w, int part, int n_parts, int *first, int *end)
{
    long long samples = work_samples(w);
    *first = (int)(samples * part / n_parts);
    *end = (int)(samples * (part + 1) / n_parts);
}

status_t work_to_json(const struct work *w, char **json)
{
    char *cell_text = NULL;
    TRY(cell_to_json(&w->cell, &cell_text));
    json_t *cell = json_loads(cell_text, 0, NULL);
    free(cell_text);
    json_t *facts = json_object();
    for (size_t i = 0; facts && i < w->n_facts; i++)
        json_object_set_new(facts, w->facts[i].key, json_string(w->facts[i].value));
    json_t *root =
        json_pack("{s:o?, s:i, s:i, s:i, s:i, s:i, s:b, s:f, s:s, s:s, s:o?}", "cell", cell, "part", w->part, "parts",
                  w->n_parts, "rank", w->rank, "attempt", w->attempt, "threads", w->n_threads, "pin", (int)w->pin,
                  "trace_period_ms", w->trace_period_ms, "audio", w->audio, "reference", w->reference, "facts", facts);
    *json = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    return *json ? ST_OK : FAIL(ST_ENOMEM, "no memory for a worker's task");
}

static status_t integer(const json_t *root, const char *key, const char *label, int least, int most, int *out)
{
    const json_t *v = json_object_get(root, key);
    if (!json_is_integer(v) || json_integer_value(v) < least || json_integer_value(v) > most)
        return FAIL(ST_EINPUT, "%s: %s: want an integer in %d..%d", label, key, least, most);
    *out = (int)json_integer_value(v);
    return ST_OK;
}

static status_t read_facts(const json_t *facts, const char *label, struct work *out)
{
    if (!json_is_object(facts))
        return FAIL(ST_EINPUT, "%s: facts: want an object", label);
    out->facts = calloc(json_object_size(facts) + 1, sizeof *out->facts);
    if (!out->facts)
        return FAIL(ST_ENOMEM, "%s: no memory for the facts", label);
    const char *key;
    json_t     *value;
    json_object_foreach((json_t *)(uintptr_t)facts, key, value)
    {
        if (!json_is_string(value))
            return FAIL(ST_EINPUT, "%s: facts.%s: want a text", label, key);
        struct fact *f = &out->facts[out->n_facts++];
        f->key = strdup(key);
        f->value = strdup(json_string_value(value));
        if (!f->key || !f->value)
            return FAIL(ST_ENOMEM, "%s: no memory for the facts", label);
    }
    return ST_OK;
}

static status_t read_root(const json_t *root, const char *label, struct work *out)
{
    const json_t *cell = json_object_get(root, "cell"), *period = json_object_get(root, "trace_period_ms");
    if (!json_is_object(cell))
        return FAIL(ST_EINPUT, "%s: cell: want an object", label);
    char *cell_text = json_dumps(cell, 0);
    if (!cell_text)
        return FAIL(ST_ENOMEM, "%s: no memory for the cell", label);
    status_t st = cell_from_json(cell_text, strlen(cell_text), label, &out->cell);
    free(cell_text);
    TRY(st);
    TRY(integer(root, "parts", label, 1, 1 << 20, &out->n_parts));
    TRY(integer(root, "part", label, 0, out->n_parts - 1, &out->part));
    TRY(integer(root, "rank", label, 0, 1 << 24, &out->rank));
    TRY(integer(root, "attempt", label, 0, 1 << 24, &out->attempt));
    TRY(integer(root, "threads", label, 0, CORES_MAX, &out->n_threads));
    out->pin = json_is_true(json_object_get(root, "pin"));
    out->trace_period_ms = json_number_value(period);
    if (out->trace_period_ms != 0 && !(out->trace_period_ms >= 1 && out->trace_period_ms <= 10000))
        return FAIL(ST_EINPUT, "%s: trace_period_ms: want 0 or 1..10000", label);
    const json_t *audio = json_object_get(root, "audio"), *reference = json_object_get(root, "reference");
    if (audio && (!json_is_string(audio) || json_string_length(audio) >= sizeof out->audio))
        return FAIL(ST_EINPUT, "%s: audio: want the beginning of a path", label);
    snprintf(out->audio, sizeof out->audio, "%s", audio ? json_string_value(audio) : "");
    if (reference && (!json_is_string(reference) || json_string_length(reference) >= sizeof out->reference))
        return FAIL(ST_EINPUT, "%s: reference: want a folder", label);
    snprintf(out->reference, sizeof out->reference, "%s", reference ? json_string_value(reference) : "");
    return read_facts(json_object_get(root, "facts"), label, out);
}

status_t work_from_json(const char *json, size_t size, const char *label, struct work *out)
{
    json_error_t error;
    json_t      *root = json_loadb(json, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return FAIL(ST_EINPUT, "%s:%d: %s", label, error.line, error.text);
    struct work w = {0};
    status_t    st = read_root(root, label, &w);
    json_decref(root);
    if (st == ST_OK)
        *out = w;
    else
        work_free(&w);
    return st;
}
