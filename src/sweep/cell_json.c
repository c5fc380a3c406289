/* cell_json.c — a cell as a JSON object, and back. Its keys are those of a job file. */
#include "sweep/cell.h"

#include "sweep/field.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_JSON_MAX = 1 << 26 };

json_t *field_to_json(const struct field *f, union field_value v)
{
    char text[FIELD_TEXT_MAX];
    switch (f->kind) {
    case FIELD_CHOICE:
        field_format(f, v, text);
        return json_string(text);
    case FIELD_BOOL:
        return json_boolean(v.i);
    case FIELD_FLOAT: /* through the shortest text, so that 0.7f is written as 0.7 */
        float_text((float)v.f, text);
        return json_real(strtod(text, NULL));
    default:
        return json_integer((json_int_t)v.i);
    }
}

static json_t *stop_json(const struct stop_rule *s)
{
    char rel_ci[24], seconds[24];
    float_text(s->rel_ci, rel_ci);
    float_text(s->seconds, seconds);
    return json_pack("{s:f, s:i, s:i, s:f}", "rel_ci", strtod(rel_ci, NULL), "min", s->min, "max", s->max, "seconds",
                     strtod(seconds, NULL));
}

bool field_from_json(const struct field *f, const json_t *j, union field_value *out, char *why, size_t why_size)
{
    char text[FIELD_TEXT_MAX] = "";
    switch (f->kind) {
    case FIELD_CHOICE:
        snprintf(text, sizeof text, "%s", json_is_string(j) ? json_string_value(j) : "");
        break;
    case FIELD_BOOL:
        snprintf(text, sizeof text, "%s", json_is_true(j) ? "true" : json_is_false(j) ? "false" : "");
        break;
    case FIELD_FLOAT:
        if (json_is_number(j))
            float_text((float)json_number_value(j), text);
        break;
    default:
        if (json_is_integer(j))
            snprintf(text, sizeof text, "%lld", (long long)json_integer_value(j));
    }
    return field_parse(f, text, out, why, why_size);
}

static json_t *cell_json(const struct cell *c)
{
    json_t *root = json_object(), *workload = json_object(), *texts = json_array();
    int     bad  = !root || !workload || !texts;
    bad |= json_object_set_new(root, "id", json_string(c->id));
    bad |= json_object_set_new(root, "model", json_string(c->model ? c->model : ""));
    bad |= json_object_set_new(root, "fingerprint", json_string(c->fingerprint));
    for (int i = 0; i < FIELD_COUNT; i++)
        bad |= json_object_set_new(cell_fields[i].section == SECTION_WORKLOAD ? workload : root, cell_fields[i].name,
                                   field_to_json(&cell_fields[i], field_get(&cell_fields[i], c)));
    bad |= json_object_set_new(root, "place", json_string(c->device));
    if (c->gpu[0])
        bad |= json_object_set_new(root, "gpu", json_string(c->gpu));
    bad |= json_object_set_new(root, "keep_audio", json_boolean(c->keep_audio));
    bad |= json_object_set_new(root, "deadline_s", json_real(c->deadline_s));
    for (int i = 0; i < c->workload.n_texts; i++)
        bad |= json_array_append_new(texts, json_string(c->workload.texts[i]));
    if (c->workload.stop.max)
        bad |= json_object_set_new(workload, "stop", stop_json(&c->workload.stop));
    bad |= json_object_set(workload, "texts", texts);
    bad |= json_object_set(root, "workload", workload);
    json_decref(texts);
    json_decref(workload);
    if (!bad)
        return root;
    json_decref(root);
    return NULL;
}

status_t cell_to_json(const struct cell *c, char **json)
{
    json_t *root = cell_json(c);
    if (!root)
        return FAIL(ST_EINPUT, "cell %s: a text or path is not valid UTF-8 (or memory ran out)", c->id);
    char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(15));
    json_decref(root);
    if (!text)
        return FAIL(ST_ENOMEM, "no memory for the JSON of cell %s", c->id);
    *json = text;
    return ST_OK;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* What every reader below needs for a message: the file, and the object's place in it. */
struct reader {
    const char *label;
    const char *where; /* "" or "workload." */
};

static status_t wrong(const struct reader *r, const char *key, const char *want)
{
    return FAIL(ST_EINPUT, "%s: %s%s: want %s", r->label, r->where, key, want);
}

static status_t read_int(const struct reader *r, const json_t *object, const char *key, int *out)
{
    const json_t *j = json_object_get(object, key);
    if (!j)
        return ST_OK;
    if (!json_is_integer(j) || json_integer_value(j) < 0 || json_integer_value(j) > 1 << 30)
        return wrong(r, key, "a whole number");
    *out = (int)json_integer_value(j);
    return ST_OK;
}

static status_t read_float(const struct reader *r, const json_t *object, const char *key, float *out)
{
    const json_t *j = json_object_get(object, key);
    if (!j)
        return ST_OK;
    if (!json_is_number(j) || !(json_number_value(j) >= 0 && json_number_value(j) <= 1e9))
        return wrong(r, key, "a number that is not negative");
    *out = (float)json_number_value(j);
    return ST_OK;
}

/* A string of fewer than size bytes into out; absent leaves it alone. */
static status_t read_text(const struct reader *r, const json_t *object, const char *key, char *out, size_t size)
{
    const json_t *j = json_object_get(object, key);
    if (!j)
        return ST_OK;
    if (!json_is_string(j) || json_string_length(j) >= size)
        return FAIL(ST_EINPUT, "%s: %s: want a string of at most %zu bytes", r->label, key, size - 1);
    snprintf(out, size, "%s", json_string_value(j));
    return ST_OK;
}

static status_t read_hex(const struct reader *r, const json_t *object, const char *key, char out[33])
{
    TRY(read_text(r, object, key, out, 33));
    size_t n = strlen(out);
    if ((n != 0 && n != 32) || strspn(out, "0123456789abcdef") != n)
        return wrong(r, key, "32 hex digits");
    return ST_OK;
}

static status_t read_texts(const struct reader *r, const json_t *list, struct workload *w)
{
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n < 1 || n > TEXTS_MAX)
        return wrong(r, "texts", "a list of strings");
    const char **texts = calloc(n, sizeof *texts);
    if (!texts)
        return FAIL(ST_ENOMEM, "no memory for %zu texts", n);
    status_t st = ST_OK;
    for (size_t i = 0; i < n && st == ST_OK; i++)
        if (!(texts[i] = json_string_value(json_array_get(list, i))))
            st = wrong(r, "texts", "a list of strings");
    if (st == ST_OK)
        st = workload_set_texts(w, texts, (int)n);
    free(texts);
    return st;
}

static status_t read_stop(const char *label, const json_t *object, struct stop_rule *out)
{
    static const char *const names[] = {"rel_ci", "min", "max", "seconds"};
    const struct reader      r       = {label, "workload.stop."};
    const char              *key;
    json_t                  *value;
    if (!json_is_object(object))
        return FAIL(ST_EINPUT, "%s: workload.stop: want an object", label);
    json_object_foreach((json_t *)object, key, value)
        if (strcmp(key, names[0]) && strcmp(key, names[1]) && strcmp(key, names[2]) && strcmp(key, names[3]))
            return FAIL(ST_EINPUT, "%s: workload.stop.%.40s: unknown key", label, key);
    TRY(read_float(&r, object, "rel_ci", &out->rel_ci));
    TRY(read_int(&r, object, "min", &out->min));
    TRY(read_int(&r, object, "max", &out->max));
    return read_float(&r, object, "seconds", &out->seconds);
}

/* Every field of one section that stands in object; a key that is neither a field nor in others is refused. */
static status_t read_fields(const struct reader *r, const json_t *object, bool workload, const char *const *others,
                            struct cell *c)
{
    const char *key;
    json_t     *value;
    json_object_foreach((json_t *)object, key, value) {
        int  i     = field_find(key);
        bool known = i >= 0 && (cell_fields[i].section == SECTION_WORKLOAD) == workload;
        char why[512];
        if (known) {
            union field_value v;
            if (!field_from_json(&cell_fields[i], value, &v, why, sizeof why))
                return FAIL(ST_EINPUT, "%s: %s%s", r->label, r->where, why);
            field_set(&cell_fields[i], c, v);
        }
        for (int k = 0; others[k] && !known; k++)
            known = strcmp(key, others[k]) == 0;
        if (!known)
            return FAIL(ST_EINPUT, "%s: %s%.40s: unknown key; was it written by a newer version?", r->label, r->where,
                        key);
    }
    return ST_OK;
}

static status_t read_cell(const json_t *root, const char *label, struct cell *c)
{
    static const char *const root_keys[]     = {"id",         "model",      "fingerprint", "place", "gpu",
                                                "keep_audio", "deadline_s", "workload",    NULL};
    static const char *const workload_keys[] = {"texts", "stop", NULL};
    const struct reader      r = {label, ""}, rw = {label, "workload."};
    const json_t            *workload = json_object_get(root, "workload"), *j;
    char                     model[MODEL_PATH_MAX] = "";

    if (!json_is_object(root) || !json_is_object(workload))
        return FAIL(ST_EINPUT, "%s: want an object that holds an object \"workload\"", label);
    TRY(read_fields(&r, root, false, root_keys, c));
    TRY(read_fields(&rw, workload, true, workload_keys, c));
    TRY(read_hex(&r, root, "id", c->id));
    TRY(read_hex(&r, root, "fingerprint", c->fingerprint));
    TRY(read_text(&r, root, "model", model, sizeof model));
    TRY(cell_set_model(c, model));
    TRY(read_text(&r, root, "place", c->device, sizeof c->device));
    TRY(read_text(&r, root, "gpu", c->gpu, sizeof c->gpu));
    if ((j = json_object_get(root, "keep_audio"))) {
        if (!json_is_boolean(j))
            return wrong(&r, "keep_audio", "true or false");
        c->keep_audio = json_is_true(j);
    }
    if ((j = json_object_get(root, "deadline_s"))) {
        if (!json_is_number(j))
            return wrong(&r, "deadline_s", "a number of seconds");
        c->deadline_s = json_number_value(j);
    }
    if ((j = json_object_get(workload, "stop")))
        TRY(read_stop(label, j, &c->workload.stop));
    TRY(read_texts(&rw, json_object_get(workload, "texts"), &c->workload));
    return cell_check(c, label);
}

status_t cell_from_json(const char *json, size_t size, const char *label, struct cell *out)
{
    if (size > CELL_JSON_MAX)
        return FAIL(ST_EINPUT, "%s: %zu bytes are no cell", label, size);
    json_error_t error;
    json_t      *root = json_loadb(json, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return FAIL(ST_EINPUT, "%s:%d: %s", label, error.line, error.text);
    struct cell c;
    cell_defaults(&c);
    status_t st = read_cell(root, label, &c);
    json_decref(root);
    if (st == ST_OK)
        *out = c;
    else
        cell_free(&c);
    return st;
}
