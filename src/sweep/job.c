#include "sweep/job.h"

#include "sweep/sweep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct job {
    struct job_options options;
    struct sweep       sweep;
    char              *text, *label;
};

static const char *const share_names[]    = {"auto", "none", "shard", "shared"};
static const char *const order_names[]    = {"interleaved", "random", "given"};
static const char *const schedule_names[] = {"static", "dynamic"};
static const char *const foreign_names[]  = {"mark", "wait", "ignore"};

#define NAME_OF(names, v, count) ((int)(v) >= 0 && (int)(v) < (count) ? names[v] : "?")

const char *share_mode_name(enum share_mode m)
{
    return NAME_OF(share_names, m, SHARE_COUNT);
}

const char *order_mode_name(enum order_mode m)
{
    return NAME_OF(order_names, m, ORDER_COUNT);
}

const char *schedule_mode_name(enum schedule_mode m)
{
    return NAME_OF(schedule_names, m, SCHEDULE_COUNT);
}

const char *foreign_mode_name(enum foreign_mode m)
{
    return NAME_OF(foreign_names, m, FOREIGN_COUNT);
}

/* Text and label of the reading, passed along. */
struct reader {
    const struct yaml *root;
    const char        *label;
};

/* ---- which keys there are ---------------------------------------------------------------------------------------- */

static const char *const top_keys[]      = {"model", "texts",    "sweep",    "where", "workload", "weights", "output",
                                            "order", "schedule", "parallel", "audio", "deadline", "stop",
                                            "prequantized", "share_gpus", "foreign", "foreign_wait", "gpu"};
static const char *const workload_keys[] = {"texts", "stop", "seed"};
static const char *const weights_keys[]  = {"share"};

struct key_list {
    const char *names[FIELD_COUNT + sizeof top_keys / sizeof *top_keys]; /* the top's are the most */
    int         n;
};

#define ADD_ALL(list, keys)                                                                                            \
    for (size_t i_ = 0; i_ < sizeof keys / sizeof *keys; i_++)                                                         \
    (list)->names[(list)->n++] = keys[i_]

/* Keys of the top (section −1: every field may stand there) or of one section. */
static void list_keys(int section, struct key_list *list)
{
    list->n = 0;
    for (int i = 0; i < FIELD_COUNT; i++)
        if (section < 0 || (int)cell_fields[i].section == section)
            list->names[list->n++] = cell_fields[i].name;
    if (section < 0)
        ADD_ALL(list, top_keys);
    else if (section == SECTION_WORKLOAD)
        ADD_ALL(list, workload_keys);
    else
        ADD_ALL(list, weights_keys);
}

static bool is_in(const struct key_list *list, const char *key)
{
    for (int i = 0; i < list->n; i++)
        if (strcmp(list->names[i], key) == 0)
            return true;
    return false;
}

static status_t check_keys(const struct reader *r, const struct yaml *map, int section, const char *prefix)
{
    static const int         elsewhere[] = {-1, SECTION_WORKLOAD, SECTION_WEIGHTS};
    static const char *const places[]    = {"at the top", "under workload:", "under weights:"};
    struct key_list          keys, others;
    list_keys(section, &keys);
    for (int i = 0; i < map->n; i++) {
        const char *key = map->keys[i];
        if (is_in(&keys, key))
            continue;
        struct yaml at = *map->items[i];
        at.line        = map->key_lines[i] ? map->key_lines[i] : at.line;
        for (int k = 0; k < 3; k++) {
            list_keys(elsewhere[k], &others);
            if (is_in(&others, key))
                return tree_refuse(&at, r->label, "%s%s: stands %s, not here", prefix, key, places[k]);
        }
        const char *near = nearest_name(key, keys.names, keys.n);
        return tree_refuse(&at, r->label, "%s%.60s: unknown key%s%s%s; `qsweep help run` lists them", prefix, key,
                           near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
    }
    return ST_OK;
}

static status_t check_section(const struct reader *r, const char *name, int section, const char *prefix)
{
    const struct yaml *map = tree_get(r->root, name);
    if (!map)
        return ST_OK;
    if (map->kind != YAML_MAP)
        return tree_refuse(map, r->label, "%s: want keys with values below it", name);
    return check_keys(r, map, section, prefix);
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static status_t scalar(const struct reader *r, const struct yaml *y, const char *key)
{
    if (y->kind != YAML_SCALAR)
        return tree_refuse(y, r->label, "%s: want one value", key);
    return !y->quoted && !y->text[0] ? tree_refuse(y, r->label, "%s: has no value", key) : ST_OK;
}

/* y = NULL leaves *out alone. */
static status_t choose(const struct reader *r, const struct yaml *y, const char *key, const char *const *names, int n,
                       int *out)
{
    char         why[512];
    struct field f = {.name = key, .kind = FIELD_CHOICE, .choices = names, .n_choices = n};
    if (!y)
        return ST_OK;
    TRY(scalar(r, y, key));
    union field_value v;
    if (!field_parse(&f, y->text, &v, why, sizeof why))
        return tree_refuse(y, r->label, "%s", why);
    *out = (int)v.i;
    return ST_OK;
}

static status_t number(const struct reader *r, const struct yaml *y, const char *key, enum field_kind kind, double min,
                       double max, union field_value *out)
{
    char         why[512];
    struct field f = {.name = key, .kind = kind, .min = min, .max = max};
    if (!y)
        return ST_OK;
    TRY(scalar(r, y, key));
    return field_parse(&f, y->text, out, why, sizeof why) ? ST_OK : tree_refuse(y, r->label, "%s", why);
}

static status_t read_stop(const struct reader *r, const struct yaml *stop, struct stop_rule *out)
{
    static const char *const names[] = {"rel_ci", "min", "max", "seconds"};
    union field_value        rel_ci = {.f = 0.01}, min = {.i = 10}, max = {.i = 200}, seconds = {.f = 0};
    if (!stop)
        return ST_OK;
    if (stop->kind != YAML_MAP)
        return tree_refuse(stop, r->label, "stop: want keys such as {rel_ci: 0.01, min: 10, max: 200, seconds: 60}");
    for (int i = 0; i < stop->n; i++) {
        bool known = false;
        for (int k = 0; k < 4; k++)
            known |= strcmp(stop->keys[i], names[k]) == 0;
        if (!known)
            return tree_refuse(stop->items[i], r->label, "stop.%.40s: unknown key, want rel_ci, min, max or seconds",
                               stop->keys[i]);
    }
    TRY(number(r, tree_get(stop, "rel_ci"), "stop.rel_ci", FIELD_FLOAT, 1e-4, 0.5, &rel_ci));
    TRY(number(r, tree_get(stop, "min"), "stop.min", FIELD_INT, 2, 100000, &min));
    TRY(number(r, tree_get(stop, "max"), "stop.max", FIELD_INT, 2, 100000, &max));
    TRY(number(r, tree_get(stop, "seconds"), "stop.seconds", FIELD_FLOAT, 0, 1e6, &seconds));
    if (max.i < min.i)
        return tree_refuse(stop, r->label, "stop: max = %lld is below min = %lld", (long long)max.i, (long long)min.i);
    *out = (struct stop_rule){(float)rel_ci.f, (int)min.i, (int)max.i, (float)seconds.f};
    return ST_OK;
}

/* results/<name of the job file without its folder and extension> */
static void default_output(const char *label, char *out, size_t size)
{
    const char *slash = strrchr(label, '/'), *name = slash ? slash + 1 : label, *dot = strrchr(name, '.');
    size_t      n = dot && dot != name ? (size_t)(dot - name) : strlen(name);
    snprintf(out, size, "results/%.*s", n < 200 ? (int)n : 200, name);
}

static status_t read_output(const struct reader *r, char *out, size_t size)
{
    const struct yaml *y = tree_get(r->root, "output");
    if (!y) {
        default_output(r->label, out, size);
        return ST_OK;
    }
    TRY(scalar(r, y, "output"));
    if (!y->text[0] || strlen(y->text) >= size - 64) /* room for cells/ab/cell-<id>.h5 */
        return tree_refuse(y, r->label, "output: a path of %zu bytes, want 1 to %zu", strlen(y->text), size - 65);
    snprintf(out, size, "%s", y->text);
    return ST_OK;
}

static const char *const switch_names[] = {"no", "yes", "false", "true", "off", "on"};

/* gpu: {name: H200, memory: 40GB, each_model: yes} */
static status_t read_gpu(const struct reader *r, const struct yaml *gpu, struct job_options *o)
{
    static const char *const names[] = {"name", "memory", "each_model"};
    union field_value        memory = {.i = 0};
    int                      each = 0;
    if (!gpu)
        return ST_OK;
    if (gpu->kind != YAML_MAP)
        return tree_refuse(gpu, r->label, "gpu: want keys such as {name: H200, memory: 40GB, each_model: yes}");
    for (int i = 0; i < gpu->n; i++) {
        bool known = false;
        for (int k = 0; k < 3; k++)
            known |= strcmp(gpu->keys[i], names[k]) == 0;
        if (!known)
            return tree_refuse(gpu->items[i], r->label, "gpu.%.40s: unknown key, want name, memory or each_model",
                               gpu->keys[i]);
    }
    const struct yaml *name = tree_get(gpu, "name");
    if (name) {
        TRY(scalar(r, name, "gpu.name"));
        if (!name->text[0] || strlen(name->text) >= sizeof o->gpu_name)
            return tree_refuse(name, r->label, "gpu.name: want part of a GPU's name, below %zu bytes", sizeof o->gpu_name);
        strcpy(o->gpu_name, name->text);
    }
    TRY(number(r, tree_get(gpu, "memory"), "gpu.memory", FIELD_BYTES, 0, 0x1p60, &memory));
    TRY(choose(r, tree_get(gpu, "each_model"), "gpu.each_model", switch_names, 6, &each));
    o->gpu_memory = (uint64_t)memory.i;
    o->each_model = each & 1;
    return ST_OK;
}

static status_t read_placement(const struct reader *r, struct job_options *o)
{
    int               share = 0, foreign = FOREIGN_MARK;
    union field_value wait = {.f = -1};
    TRY(choose(r, tree_get(r->root, "share_gpus"), "share_gpus", switch_names, 6, &share));
    TRY(choose(r, tree_get(r->root, "foreign"), "foreign", foreign_names, FOREIGN_COUNT, &foreign));
    TRY(number(r, tree_get(r->root, "foreign_wait"), "foreign_wait", FIELD_FLOAT, 0, 1e6, &wait));
    o->share_gpus     = share & 1;
    o->foreign        = (enum foreign_mode)foreign;
    o->foreign_wait_s = wait.f;
    return read_gpu(r, tree_get(r->root, "gpu"), o);
}

static status_t read_options(const struct reader *r, struct job *j)
{
    static const char *const audio_names[] = {"drop", "keep"};
    struct job_options      *o        = &j->options;
    struct cell             *base     = &j->sweep.base;
    const struct yaml       *weights  = tree_get(r->root, "weights"), *workload = tree_get(r->root, "workload");
    const struct yaml       *stop     = tree_get(r->root, "stop");
    int                      share = SHARE_AUTO, order = ORDER_INTERLEAVED, schedule = SCHEDULE_STATIC, audio = 0, par = 0;
    union field_value        deadline = {.f = 0};
    TRY(read_output(r, o->output, sizeof o->output));
    TRY(choose(r, weights ? tree_get(weights, "share") : NULL, "weights.share", share_names, SHARE_COUNT, &share));
    TRY(choose(r, tree_get(r->root, "order"), "order", order_names, ORDER_COUNT, &order));
    TRY(choose(r, tree_get(r->root, "schedule"), "schedule", schedule_names, SCHEDULE_COUNT, &schedule));
    TRY(choose(r, tree_get(r->root, "audio"), "audio", audio_names, 2, &audio));
    TRY(choose(r, tree_get(r->root, "parallel"), "parallel", switch_names, 6, &par));
    TRY(number(r, tree_get(r->root, "deadline"), "deadline", FIELD_FLOAT, 0, 1e9, &deadline));
    if (!stop && workload)
        stop = tree_get(workload, "stop");
    TRY(read_stop(r, stop, &base->workload.stop));
    TRY(read_placement(r, o));
    o->share         = (enum share_mode)share;
    o->order         = (enum order_mode)order;
    o->schedule      = (enum schedule_mode)schedule;
    o->parallel      = par & 1;
    o->seed          = base->sampling.seed;
    base->keep_audio = audio == 1;
    base->deadline_s = deadline.f;
    return ST_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static status_t read_job(const struct reader *r, const struct job_files *files, struct job *j)
{
    if (r->root->kind != YAML_MAP)
        return FAIL(ST_EINPUT, "%s:%d: a job file is keys with values, such as \"model: checkpoints/s1-mini\"", r->label,
                    r->root->line);
    TRY(check_keys(r, r->root, -1, ""));
    TRY(check_section(r, "workload", SECTION_WORKLOAD, "workload."));
    TRY(check_section(r, "weights", SECTION_WEIGHTS, "weights."));
    TRY(sweep_parse(r->root, r->label, files, &j->sweep));
    return read_options(r, j);
}

status_t job_parse(const char *yaml, size_t size, const char *label, const char *const *set, int n_set,
                   const struct job_files *files, struct job **out)
{
    static const struct yaml_limits limits = {.depth = JOB_DEPTH_MAX, .nodes = 200000, .keys = 200};
    if (size > JOB_BYTES_MAX)
        return FAIL(ST_EINPUT, "%s: %zu bytes, a job file has at most %d", label, size, JOB_BYTES_MAX);
    struct yaml *root = NULL;
    struct job  *j    = calloc(1, sizeof *j);
    status_t     st   = ST_OK;
    if (!j || !(j->label = strdup(label)) || !(j->text = malloc(size + 1))) {
        st = FAIL(ST_ENOMEM, "no memory for the job %s", label);
        goto out;
    }
    if (size)
        memcpy(j->text, yaml, size);
    j->text[size] = '\0';
    TRY_OUT(tree_parse(yaml, size, label, NULL, &limits, &root));
    for (int i = 0; i < n_set; i++)
        TRY_OUT(tree_set(root, set[i], &limits));
    TRY_OUT(read_job(&(struct reader){root, label}, files, j));
    *out = j;
    j    = NULL;
out:
    tree_free(root);
    job_close(j);
    return st;
}

void job_close(struct job *j)
{
    if (!j)
        return;
    sweep_free(&j->sweep);
    free(j->text);
    free(j->label);
    free(j);
}

const struct job_options *job_options(const struct job *j)
{
    return &j->options;
}

const char *job_text(const struct job *j)
{
    return j->text;
}

const char *const *job_models(const struct job *j, int *n)
{
    *n = j->sweep.n_models;
    return (const char *const *)j->sweep.models;
}

const char *job_label(const struct job *j)
{
    return j->label;
}

const char *job_prequantized(const struct job *j, enum precision p)
{
    return j->sweep.prequantized[p];
}

const struct sweep *job_sweep(const struct job *j)
{
    return &j->sweep;
}
