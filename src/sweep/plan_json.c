/* plan_json.c — plan.json: what all cells share once, what varies as columns.
 *
 *   {"schema": "qsweep-plan", "version": 1, "n": 4, "options": {…}, "job_text": "…", "models": [dir…],
 *    "fingerprints": [hex…], "texts": [[text…]…], "constants": {"batch": 1, …}, "stop": {…}, "keep_audio": false,
 *    "deadline_s": 0, "columns": {"precision": ["bf16", …], …, "model": [0…], "texts": [0…]}, "ids": [hex…],
 *    "groups": [2, 2]}                                                                       (sizes, in order) */
#include "sweep/plan.h"

#include "sweep/plan_pool.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PLAN_JSON_MAX = 1 << 30, POOL_MAX = 4096, FORMAT_VERSION = 1 };

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static bool varies(const struct plan *p, const struct field *f)
{
    union field_value first = field_get(f, &p->cells[0]);
    for (size_t i = 1; i < p->n; i++) {
        union field_value v = field_get(f, &p->cells[i]);
        if (f->kind == FIELD_FLOAT ? v.f != first.f : v.i != first.i)
            return true;
    }
    return false;
}

static json_t *string_list(char *const *items, int n)
{
    json_t *list = json_array();
    for (int i = 0; list && i < n; i++)
        json_array_append_new(list, json_string(items[i]));
    return list;
}

static json_t *index_list(const int *items, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < n; i++)
        json_array_append_new(list, json_integer(items[i]));
    return list;
}

static json_t *options_json(const struct job_options *o)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:b, s:I, s:b, s:s, s:f, s:s, s:I, s:b}", "output", o->output, "share", share_mode_name(o->share), "order",
                     order_mode_name(o->order), "schedule", schedule_mode_name(o->schedule), "parallel",
                     (int)o->parallel, "seed", (json_int_t)o->seed, "share_gpus", (int)o->share_gpus, "foreign",
                     foreign_mode_name(o->foreign), "foreign_wait_s", o->foreign_wait_s, "gpu_name", o->gpu_name,
                     "gpu_memory", (json_int_t)o->gpu_memory, "each_model", (int)o->each_model);
}

static json_t *stop_json(const struct stop_rule *s)
{
    char rel_ci[24], seconds[24];
    float_text(s->rel_ci, rel_ci);
    float_text(s->seconds, seconds);
    return json_pack("{s:f, s:i, s:i, s:f}", "rel_ci", strtod(rel_ci, NULL), "min", s->min, "max", s->max, "seconds",
                     strtod(seconds, NULL));
}

static json_t *column_json(const struct plan *p, const struct field *f)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < p->n; i++)
        json_array_append_new(list, field_to_json(f, field_get(f, &p->cells[i])));
    return list;
}

/* Names of the GPUs that cells are bound to; NULL when none is. */
static json_t *gpus_json(const struct plan *p)
{
    bool    any  = false;
    json_t *list = json_array();
    for (size_t i = 0; i < p->n; i++) {
        any |= p->cells[i].gpu[0] != '\0';
        json_array_append_new(list, json_string(p->cells[i].gpu));
    }
    if (any)
        return list;
    json_decref(list);
    return NULL;
}

static json_t *groups_json(const struct plan *p)
{
    json_t *list = json_array();
    for (size_t i = 0, size = 0; list && i < p->n; i++) {
        size++;
        if (i + 1 == p->n || p->group[i + 1] != p->group[i]) {
            json_array_append_new(list, json_integer((json_int_t)size));
            size = 0;
        }
    }
    return list;
}

static json_t *plan_json(const struct plan *p)
{
    const struct plan_pool *pool      = p->pool;
    json_t                 *root      = json_object();
    json_t                 *constants = json_object(), *columns = json_object(), *texts = json_array();
    json_t                 *prints = json_array(), *ids = json_array();
    int                     bad = 0;
    for (int i = 0; i < FIELD_COUNT; i++) {
        const struct field *f = &cell_fields[i];
        bad |= varies(p, f) ? json_object_set_new(columns, f->name, column_json(p, f))
                            : json_object_set_new(constants, f->name, field_to_json(f, field_get(f, &p->cells[0])));
    }
    for (int i = 0; i < pool->n_models; i++)
        bad |= json_array_append_new(prints, json_string(pool->fingerprints[i]));
    for (int i = 0; i < pool->n_text_sets; i++) {
        json_t *set = string_list(pool->text_sets[i].texts, pool->text_sets[i].n);
        bad |= json_array_size(set) != (size_t)pool->text_sets[i].n; /* a text that is not UTF-8 was dropped */
        bad |= json_array_append_new(texts, set);
    }
    for (size_t i = 0; i < p->n; i++)
        bad |= json_array_append_new(ids, json_string(p->cells[i].id));
    bad |= json_object_set_new(columns, "model", index_list(pool->model_of, p->n));
    bad |= json_object_set_new(columns, "texts", index_list(pool->texts_of, p->n));

    json_t *gpus = gpus_json(p);
    if (gpus) {
        bad |= json_array_size(gpus) != p->n;
        bad |= json_object_set_new(columns, "gpu", gpus);
    }
    json_t *models = string_list(pool->models, pool->n_models);
    bad |= json_array_size(models) != (size_t)pool->n_models;
    bad |= json_object_set_new(root, "schema", json_string("qsweep-plan"));
    bad |= json_object_set_new(root, "version", json_integer(FORMAT_VERSION));
    bad |= json_object_set_new(root, "n", json_integer((json_int_t)p->n));
    bad |= json_object_set_new(root, "options", options_json(&p->options));
    bad |= json_object_set_new(root, "job_text", json_string(p->job_text));
    bad |= json_object_set_new(root, "models", models);
    bad |= json_object_set_new(root, "fingerprints", prints);
    bad |= json_object_set_new(root, "texts", texts);
    bad |= json_object_set_new(root, "constants", constants);
    bad |= json_object_set_new(root, "stop", stop_json(&p->cells[0].workload.stop));
    bad |= json_object_set_new(root, "keep_audio", json_boolean(p->cells[0].keep_audio));
    bad |= json_object_set_new(root, "deadline_s", json_real(p->cells[0].deadline_s));
    bad |= json_object_set_new(root, "columns", columns);
    bad |= json_object_set_new(root, "ids", ids);
    bad |= json_object_set_new(root, "groups", groups_json(p));
    if (!bad)
        return root;
    json_decref(root);
    return NULL;
}

status_t plan_to_json(const struct plan *p, char **json)
{
    json_t *root = plan_json(p);
    if (!root)
        return FAIL(ST_EINPUT, "the plan has a text or path that is not valid UTF-8 (or memory ran out)");
    char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(15));
    json_decref(root);
    if (!text)
        return FAIL(ST_ENOMEM, "no memory for the JSON of %zu cells", p->n);
    *json = text;
    return ST_OK;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

struct reader {
    const json_t *root;
    const char   *label;
    struct plan  *p;
};

static status_t wrong(const struct reader *r, const char *key, const char *want)
{
    return FAIL(ST_EINPUT, "%s: %s: want %s", r->label, key, want);
}

/* An array under key of exactly n items (any n up to POOL_MAX when n is −1). */
static status_t get_list(const struct reader *r, const json_t *object, const char *key, long n, const json_t **out)
{
    const json_t *list = json_object_get(object, key);
    size_t        size = json_array_size(list);
    if (!json_is_array(list) || (n >= 0 ? size != (size_t)n : size < 1 || size > POOL_MAX))
        return FAIL(ST_EINPUT, "%s: %s: want a list of %ld items, it has %zu", r->label, key, n < 0 ? POOL_MAX : n, size);
    *out = list;
    return ST_OK;
}

static status_t read_pool(struct reader *r)
{
    struct plan_pool *pool = r->p->pool;
    const json_t     *models, *prints, *texts;
    TRY(get_list(r, r->root, "models", pool->n_models, &models));
    TRY(get_list(r, r->root, "fingerprints", pool->n_models, &prints));
    TRY(get_list(r, r->root, "texts", pool->n_text_sets, &texts));
    for (int i = 0; i < pool->n_models; i++) {
        const char *dir   = json_string_value(json_array_get(models, (size_t)i));
        const char *print = json_string_value(json_array_get(prints, (size_t)i));
        if (!dir || !*dir || strlen(dir) >= MODEL_PATH_MAX)
            return wrong(r, "models", "paths");
        if (!print || strlen(print) != 32 || strspn(print, "0123456789abcdef") != 32)
            return wrong(r, "fingerprints", "32 hex digits each");
        memcpy(pool->fingerprints[i], print, 33);
        if (!(pool->models[i] = strdup(dir)))
            return FAIL(ST_ENOMEM, "no memory for %s", r->label);
    }
    for (int i = 0; i < pool->n_text_sets; i++) {
        const json_t *set = json_array_get(texts, (size_t)i);
        size_t        n   = json_array_size(set);
        if (n < 1 || n > TEXTS_MAX)
            return wrong(r, "texts", "lists of texts");
        if (!(pool->text_sets[i].texts = calloc(n, sizeof(char *))))
            return FAIL(ST_ENOMEM, "no memory for %s", r->label);
        for (size_t k = 0; k < n; k++) {
            const char *text = json_string_value(json_array_get(set, k));
            if (!text || !*text || strlen(text) > TEXT_BYTES_MAX)
                return wrong(r, "texts", "lists of texts");
            if (!(pool->text_sets[i].texts[k] = strdup(text)))
                return FAIL(ST_ENOMEM, "no memory for %s", r->label);
            pool->text_sets[i].n++;
        }
    }
    return ST_OK;
}

/* Every field stands either among the constants or among the columns. */
static status_t read_fields(struct reader *r)
{
    const json_t *constants = json_object_get(r->root, "constants"), *columns = json_object_get(r->root, "columns"), *list;
    char          why[512];
    for (int k = 0; k < FIELD_COUNT; k++) {
        const struct field *f     = &cell_fields[k];
        const json_t       *value = json_object_get(constants, f->name);
        union field_value   v;
        bool                column = json_object_get(columns, f->name) != NULL;
        if (!value && !column)
            continue; /* written before this field was: its default */
        if (value && !field_from_json(f, value, &v, why, sizeof why))
            return FAIL(ST_EINPUT, "%s: constants: %s", r->label, why);
        if (column)
            TRY(get_list(r, columns, f->name, (long)r->p->n, &list));
        for (size_t i = 0; i < r->p->n; i++) {
            if (column && !field_from_json(f, json_array_get(list, i), &v, why, sizeof why))
                return FAIL(ST_EINPUT, "%s: cell %zu: %s", r->label, i, why);
            field_set(f, &r->p->cells[i], v);
        }
    }
    return ST_OK;
}

static status_t read_index(struct reader *r, const char *key, int n_pool, int *out)
{
    const json_t *list;
    TRY(get_list(r, json_object_get(r->root, "columns"), key, (long)r->p->n, &list));
    for (size_t i = 0; i < r->p->n; i++) {
        const json_t *j = json_array_get(list, i);
        if (!json_is_integer(j) || json_integer_value(j) < 0 || json_integer_value(j) >= n_pool)
            return FAIL(ST_EINPUT, "%s: cell %zu: %s: want an index below %d", r->label, i, key, n_pool);
        out[i] = (int)json_integer_value(j);
    }
    return ST_OK;
}

/* Every id is that of the cell it stands for; else the file was edited or came from another version. */
static status_t read_ids(struct reader *r)
{
    const json_t *list;
    struct plan  *p = r->p;
    TRY(get_list(r, r->root, "ids", (long)p->n, &list));
    for (size_t i = 0; i < p->n; i++) {
        const char *id = json_string_value(json_array_get(list, i));
        plan_attach(p, i);
        memcpy(p->cells[i].fingerprint, p->pool->fingerprints[p->pool->model_of[i]], 33);
        TRY(cell_identify(&p->cells[i]));
        if (!id || strcmp(id, p->cells[i].id) != 0)
            return FAIL(ST_EINPUT, "%s: cell %zu has the id %.40s but its values say %s", r->label, i, id ? id : "(none)",
                        p->cells[i].id);
    }
    return ST_OK;
}

static status_t read_groups(struct reader *r)
{
    const json_t *list = json_object_get(r->root, "groups");
    size_t        at   = 0;
    for (size_t g = 0; g < json_array_size(list); g++) {
        const json_t *j = json_array_get(list, g);
        json_int_t    n = json_is_integer(j) ? json_integer_value(j) : 0;
        if (n < 1 || (size_t)n > r->p->n - at)
            return wrong(r, "groups", "sizes that add up to the number of cells");
        for (json_int_t i = 0; i < n; i++)
            r->p->group[at++] = (uint32_t)g;
    }
    return at == r->p->n ? ST_OK : wrong(r, "groups", "sizes that add up to the number of cells");
}

static int choice_of(const char *(*name)(int), int n, const json_t *j)
{
    for (int i = 0; json_is_string(j) && i < n; i++)
        if (strcmp(name(i), json_string_value(j)) == 0)
            return i;
    return -1;
}

static const char *share_name(int v)
{
    return share_mode_name((enum share_mode)v);
}

static const char *order_name(int v)
{
    return order_mode_name((enum order_mode)v);
}

static const char *schedule_name(int v)
{
    return schedule_mode_name((enum schedule_mode)v);
}

static const char *foreign_name(int v)
{
    return foreign_mode_name((enum foreign_mode)v);
}

/* Keys that came later: what is missing has its default. */
static status_t read_placement(struct reader *r, const json_t *j, struct job_options *o)
{
    const json_t *foreign = json_object_get(j, "foreign"), *name = json_object_get(j, "gpu_name");
    const json_t *wait = json_object_get(j, "foreign_wait_s"), *memory = json_object_get(j, "gpu_memory");
    int           mode = foreign ? choice_of(foreign_name, FOREIGN_COUNT, foreign) : FOREIGN_MARK;
    if (mode < 0 || (wait && !json_is_number(wait)) || (memory && !json_is_integer(memory)) ||
        (name && (!json_is_string(name) || json_string_length(name) >= sizeof o->gpu_name)))
        return wrong(r, "options", "foreign, foreign_wait_s, gpu_name and gpu_memory of a job");
    o->share_gpus     = json_is_true(json_object_get(j, "share_gpus"));
    o->each_model     = json_is_true(json_object_get(j, "each_model"));
    o->foreign        = (enum foreign_mode)mode;
    o->foreign_wait_s = wait ? json_number_value(wait) : -1;
    o->gpu_memory     = memory && json_integer_value(memory) > 0 ? (uint64_t)json_integer_value(memory) : 0;
    if (name)
        strcpy(o->gpu_name, json_string_value(name));
    return ST_OK;
}

/* Cells that are bound to a model of GPU, where there are any. */
static status_t read_gpus(struct reader *r)
{
    const json_t *list, *columns = json_object_get(r->root, "columns");
    if (!json_object_get(columns, "gpu"))
        return ST_OK;
    TRY(get_list(r, columns, "gpu", (long)r->p->n, &list));
    for (size_t i = 0; i < r->p->n; i++) {
        const json_t *j = json_array_get(list, i);
        if (!json_is_string(j) || json_string_length(j) >= sizeof r->p->cells[i].gpu)
            return FAIL(ST_EINPUT, "%s: cell %zu: gpu: want the name of a GPU", r->label, i);
        strcpy(r->p->cells[i].gpu, json_string_value(j));
    }
    return ST_OK;
}

static status_t read_options(struct reader *r)
{
    struct job_options *o    = &r->p->options;
    const json_t       *j    = json_object_get(r->root, "options");
    const json_t       *seed = json_object_get(j, "seed"), *output = json_object_get(j, "output");
    int share    = choice_of(share_name, SHARE_COUNT, json_object_get(j, "share"));
    int order    = choice_of(order_name, ORDER_COUNT, json_object_get(j, "order"));
    int schedule = choice_of(schedule_name, SCHEDULE_COUNT, json_object_get(j, "schedule"));
    if (share < 0 || order < 0 || schedule < 0 || !json_is_boolean(json_object_get(j, "parallel")) ||
        !json_is_integer(seed) || json_integer_value(seed) < 0)
        return wrong(r, "options", "share, order, schedule, parallel and seed of a job");
    if (!json_is_string(output) || json_string_length(output) < 1 || json_string_length(output) >= sizeof o->output)
        return wrong(r, "options.output", "a path");
    strcpy(o->output, json_string_value(output));
    o->share    = (enum share_mode)share;
    o->order    = (enum order_mode)order;
    o->schedule = (enum schedule_mode)schedule;
    o->parallel = json_is_true(json_object_get(j, "parallel"));
    o->seed     = (uint64_t)json_integer_value(seed);
    return read_placement(r, j, o);
}

/* stop, keep_audio and deadline_s are one for all cells; cell_check() judges them with the first cell. */
static status_t read_shared(struct reader *r)
{
    const json_t *stop = json_object_get(r->root, "stop"), *deadline = json_object_get(r->root, "deadline_s");
    const json_t *audio = json_object_get(r->root, "keep_audio");
    struct stop_rule rule = {0};
    if (!json_is_number(deadline) || !json_is_boolean(audio) || !json_is_object(stop))
        return wrong(r, "stop, deadline_s, keep_audio", "an object, a number, true or false");
    const json_t *min = json_object_get(stop, "min"), *max = json_object_get(stop, "max");
    if (!json_is_integer(min) || !json_is_integer(max) || json_integer_value(min) < 0 || json_integer_value(max) < 0 ||
        json_integer_value(min) > 100000 || json_integer_value(max) > 100000)
        return wrong(r, "stop", "min and max up to 100000");
    rule.rel_ci  = (float)json_number_value(json_object_get(stop, "rel_ci"));
    rule.seconds = (float)json_number_value(json_object_get(stop, "seconds"));
    rule.min     = (int)json_integer_value(min);
    rule.max     = (int)json_integer_value(max);
    for (size_t i = 0; i < r->p->n; i++) {
        r->p->cells[i].workload.stop = rule;
        r->p->cells[i].keep_audio    = json_is_true(audio);
        r->p->cells[i].deadline_s    = json_number_value(deadline);
    }
    return ST_OK;
}

static status_t read_plan(struct reader *r)
{
    struct plan  *p    = r->p;
    const json_t *text = json_object_get(r->root, "job_text");
    if (!json_is_string(text))
        return wrong(r, "job_text", "the job file's text");
    if (!(p->job_text = strdup(json_string_value(text))))
        return FAIL(ST_ENOMEM, "no memory for %s", r->label);
    for (size_t i = 0; i < p->n; i++)
        cell_defaults(&p->cells[i]);
    TRY(read_options(r));
    TRY(read_pool(r));
    TRY(read_fields(r));
    TRY(read_gpus(r));
    TRY(read_shared(r));
    TRY(read_index(r, "model", p->pool->n_models, p->pool->model_of));
    TRY(read_index(r, "texts", p->pool->n_text_sets, p->pool->texts_of));
    TRY(read_ids(r));
    TRY(read_groups(r));
    TRY(cell_check(&p->cells[0], r->label));
    return plan_finish(p);
}

/* The sizes that decide how much is allocated, checked first. */
static status_t read_header(const json_t *root, const char *label, size_t *n, int *n_models, int *n_text_sets)
{
    const struct reader r      = {root, label, NULL};
    const char         *schema = json_string_value(json_object_get(root, "schema"));
    const json_t       *version = json_object_get(root, "version"), *count = json_object_get(root, "n"), *list;
    if (!schema || strcmp(schema, "qsweep-plan") != 0)
        return FAIL(ST_EINPUT, "%s: not a plan of qsweep", label);
    if (!json_is_integer(version) || json_integer_value(version) != FORMAT_VERSION)
        return FAIL(ST_EINPUT, "%s: plan version %lld, this program reads %d", label,
                    (long long)json_integer_value(version), FORMAT_VERSION);
    if (!json_is_integer(count) || json_integer_value(count) < 1 || json_integer_value(count) > PLAN_CELLS_MAX)
        return FAIL(ST_EINPUT, "%s: n: want a number of cells from 1 to %d", label, PLAN_CELLS_MAX);
    *n = (size_t)json_integer_value(count);
    TRY(get_list(&r, root, "ids", (long)*n, &list)); /* so that a small file cannot ask for a large plan */
    TRY(get_list(&r, root, "models", -1, &list));
    *n_models = (int)json_array_size(list);
    TRY(get_list(&r, root, "texts", -1, &list));
    *n_text_sets = (int)json_array_size(list);
    return ST_OK;
}

status_t plan_from_json(const char *json, size_t size, const char *label, struct plan **out)
{
    json_error_t error;
    struct plan *p  = NULL;
    status_t     st = ST_OK;
    size_t       n = 0;
    int          n_models = 0, n_text_sets = 0;
    if (size > PLAN_JSON_MAX)
        return FAIL(ST_EINPUT, "%s: %zu bytes are no plan", label, size);
    json_t *root = json_loadb(json, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return FAIL(ST_EINPUT, "%s:%d: %s", label, error.line, error.text);
    TRY_OUT(read_header(root, label, &n, &n_models, &n_text_sets));
    if (!(p = plan_new(n, n_models, n_text_sets))) {
        st = FAIL(ST_ENOMEM, "no memory for the %zu cells of %s", n, label);
        goto out;
    }
    TRY_OUT(read_plan(&(struct reader){root, label, p}));
    *out = p;
    p    = NULL;
out:
    plan_close(p);
    json_decref(root);
    return st;
}
