#include "sweep/sweep.h"

#include "sweep/axis_values.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WHERE_MAX = 64 };

/* Reading context: what every function below needs. */
struct reader {
    const struct yaml      *root;
    const char             *label;
    const struct job_files *files;
    struct sweep           *s;
    const struct yaml      *constant[AXIS_COUNT]; /* where an axis is a constant, or NULL */
};

const char *axis_name(int field)
{
    return field == AXIS_MODEL ? "model" : field == AXIS_TEXTS ? "texts" : cell_fields[field].name;
}

int axis_find(const char *name)
{
    for (int i = 0; i < AXIS_COUNT; i++)
        if (strcmp(axis_name(i), name) == 0)
            return i;
    return -1;
}

/* ---- constants --------------------------------------------------------------------------------------------------- */

/* A constant may stand at the top or in its section; one from --set wins over one from the file. */
static status_t find_constant(struct reader *r, int field)
{
    static const char *const sections[] = {NULL, "workload", "weights"};
    const char              *name       = axis_name(field), *section = NULL;
    if (field == AXIS_TEXTS)
        section = "workload";
    else if (field < FIELD_COUNT)
        section = strcmp(name, "seed") == 0 ? "workload" : sections[cell_fields[field].section];
    const struct yaml *inside = section ? tree_get(r->root, section) : NULL;
    const struct yaml *top = tree_get(r->root, name), *nested = inside ? tree_get(inside, name) : NULL;
    if (top && nested && !top->set == !nested->set)
        return tree_refuse(top, r->label, "%s: stands twice, also under %s:", name, section);
    r->constant[field] = top && (!nested || top->set) ? top : nested;
    return ST_OK;
}

static status_t read_constants(struct reader *r)
{
    struct sweep *s = r->s;
    for (int i = 0; i < AXIS_COUNT; i++)
        TRY(find_constant(r, i));
    for (int i = 0; i < FIELD_COUNT; i++) {
        union field_value v;
        if (!r->constant[i])
            continue;
        TRY(value_parse(r->constant[i], r->label, i, &v));
        field_set(&cell_fields[i], &s->base, v);
    }
    s->base_model = s->base_texts = -1;
    if (r->constant[AXIS_MODEL])
        TRY(model_parse(r->constant[AXIS_MODEL], r->label, s, &s->base_model));
    if (r->constant[AXIS_TEXTS])
        return text_set_parse(r->constant[AXIS_TEXTS], r->label, r->files, s, &s->base_texts);
    const struct yaml standard = {.kind = YAML_SCALAR, .text = "reference"};
    return text_set_parse(&standard, r->label, r->files, s, &s->base_texts);
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static status_t add_where(struct reader *r, const struct yaml *y, struct block *b)
{
    if (y->kind == YAML_LIST) {
        for (int i = 0; i < y->n; i++)
            if (y->items[i]->kind != YAML_SCALAR)
                return tree_refuse(y->items[i], r->label, "where: want a filter such as \"batch <= 8\"");
            else
                TRY(add_where(r, y->items[i], b));
        return ST_OK;
    }
    if (y->kind != YAML_SCALAR || !y->text[0])
        return tree_refuse(y, r->label, "where: want a filter such as \"batch <= 8\", or a list of them");
    if (b->n_where == WHERE_MAX)
        return tree_refuse(y, r->label, "where: more than %d filters", WHERE_MAX);
    if (!b->where && !(b->where = calloc(WHERE_MAX, sizeof *b->where)))
        return FAIL(ST_ENOMEM, "no memory for filters");
    char place[512];
    if (y->set)
        snprintf(place, sizeof place, "--set %.200s", y->set);
    else
        snprintf(place, sizeof place, "%.400s:%d: where", r->label, y->line);
    text_one_line(place);
    TRY(where_parse(y->text, place, y->set ? ST_EUSAGE : ST_EINPUT, &b->where[b->n_where]));
    b->n_where++;
    return ST_OK;
}

static status_t refuse_axis(const struct reader *r, const struct yaml *y, const char *name)
{
    const char *names[AXIS_COUNT + 2];
    for (int i = 0; i < AXIS_COUNT; i++)
        names[i] = axis_name(i);
    names[AXIS_COUNT]     = "zip";
    names[AXIS_COUNT + 1] = "where";
    const char *near      = nearest_name(name, names, AXIS_COUNT + 2);
    return tree_refuse(y, r->label, "sweep.%.40s: there is no such axis%s%s%s; `qsweep help run` lists them", name,
                       near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

static status_t read_axes(struct reader *r, const struct yaml *map, struct block *b)
{
    for (int i = 0; i < map->n; i++) {
        const struct yaml *y     = map->items[i];
        int                field = axis_find(map->keys[i]);
        if (strcmp(map->keys[i], "zip") == 0)
            continue;
        if (strcmp(map->keys[i], "where") == 0) {
            TRY(add_where(r, y, b));
            continue;
        }
        if (field < 0)
            return refuse_axis(r, y, map->keys[i]);
        const struct yaml *constant = r->constant[field];
        if (constant && constant->set)
            continue; /* pinned on the command line */
        if (constant && !y->set) /* an axis from the command line wins over a constant of the file */
            return tree_refuse(y, r->label, "sweep.%s: is also a constant in line %d", map->keys[i], constant->line);
        struct axis *a = &b->axes[b->n_axes++];
        a->field       = field;
        a->dim         = -1;
        TRY(axis_parse(y, r->label, r->files, r->s, a));
    }
    return ST_OK;
}

static struct axis *axis_of(struct block *b, int field)
{
    for (int i = 0; i < b->n_axes; i++)
        if (b->axes[i].field == field)
            return &b->axes[i];
    return NULL;
}

/* names: a list of axes of this block that advance together. */
static status_t zip_names(struct reader *r, const struct yaml *names, struct block *b)
{
    const struct axis *first = NULL;
    if (names->kind != YAML_LIST || names->n < 2)
        return tree_refuse(names, r->label, "zip: want the names of two or more axes, such as [precision, kv]");
    for (int i = 0; i < names->n; i++) {
        const struct yaml *y = names->items[i];
        if (y->kind != YAML_SCALAR)
            return tree_refuse(y, r->label, "zip: want the name of an axis");
        int          field = axis_find(y->text);
        struct axis *a     = field < 0 ? NULL : axis_of(b, field);
        if (!a && field >= 0 && r->constant[field] && r->constant[field]->set)
            continue; /* pinned: the others go on together */
        if (!a)
            return tree_refuse(y, r->label, "zip: \"%.40s\" is no axis of this sweep", y->text);
        if (a->dim >= 0)
            return tree_refuse(y, r->label, "zip: %s is named twice", y->text);
        if (first && a->n != first->n)
            return tree_refuse(y, r->label, "zip: %s has %d values and %s has %d; they advance together", axis_name(first->field),
                               first->n, y->text, a->n);
        a->dim = first ? first->dim : b->n_dims++;
        first  = first ? first : a;
    }
    return ST_OK;
}

static status_t read_zip(struct reader *r, const struct yaml *y, struct block *b)
{
    if (y->kind != YAML_LIST || y->n == 0 || y->items[0]->kind != YAML_LIST)
        return zip_names(r, y, b);
    for (int i = 0; i < y->n; i++)
        TRY(zip_names(r, y->items[i], b));
    return ST_OK;
}

/* Dimensions are numbered in the order in which their first axis stands in the file. */
static void number_dims(struct block *b)
{
    int renumbered[AXIS_COUNT], next = 0;
    for (int i = 0; i < AXIS_COUNT; i++)
        renumbered[i] = -1;
    for (int i = 0; i < b->n_axes; i++) {
        struct axis *a = &b->axes[i];
        if (a->dim < 0)
            a->dim = next++;
        else if (renumbered[a->dim] < 0)
            a->dim = renumbered[a->dim] = next++;
        else
            a->dim = renumbered[a->dim];
        b->dim_size[a->dim] = a->n;
    }
    b->n_dims = next;
}

size_t block_size(const struct block *b)
{
    size_t n = 1;
    for (int i = 0; i < b->n_dims; i++) {
        n *= (size_t)b->dim_size[i];
        if (n > PRODUCT_MAX)
            return PRODUCT_MAX + 1;
    }
    return n;
}

static status_t read_block(struct reader *r, const struct yaml *map, struct block *b)
{
    const struct yaml *where = tree_get(r->root, "where"), *zip;
    if (map->kind != YAML_MAP)
        return tree_refuse(map, r->label, "sweep: want axes with their values, such as batch: [1, 2]");
    TRY(read_axes(r, map, b));
    if (where)
        TRY(add_where(r, where, b));
    if ((zip = tree_get(map, "zip")))
        TRY(read_zip(r, zip, b));
    number_dims(b);
    return ST_OK;
}

static status_t read_blocks(struct reader *r)
{
    const struct yaml  constants = {.kind = YAML_MAP}; /* a job without axes is one cell */
    const struct yaml *sweep     = tree_get(r->root, "sweep");
    struct sweep      *s         = r->s;
    size_t             total     = 0;
    if (!sweep)
        sweep = &constants;
    int n = sweep->kind == YAML_LIST ? sweep->n : 1;
    if (n < 1 || n > BLOCKS_MAX)
        return tree_refuse(sweep, r->label, "sweep: a list of %d sweeps, want 1 to %d", n, BLOCKS_MAX);
    if (!(s->blocks = calloc((size_t)n, sizeof *s->blocks)))
        return FAIL(ST_ENOMEM, "no memory for %d sweeps", n);
    for (s->n_blocks = 0; s->n_blocks < n; s->n_blocks++) {
        const struct yaml *map = sweep->kind == YAML_LIST ? sweep->items[s->n_blocks] : sweep;
        struct block      *b   = &s->blocks[s->n_blocks];
        status_t           st  = read_block(r, map, b);
        if (st != ST_OK) {
            s->n_blocks++; /* so that sweep_free() releases this one too */
            return st;
        }
        total += block_size(b);
        if (total > PRODUCT_MAX) {
            s->n_blocks++;
            return tree_refuse(map, r->label, "sweep: more than %d combinations before the filters", PRODUCT_MAX);
        }
    }
    return ST_OK;
}

/* prequantized: {int8: DIR} */
static status_t read_prequantized(struct reader *r)
{
    const struct yaml *map = tree_get(r->root, "prequantized");
    if (!map)
        return ST_OK;
    if (map->kind != YAML_MAP)
        return tree_refuse(map, r->label, "prequantized: want {int8: DIR}");
    for (int i = 0; i < map->n; i++) {
        const struct yaml *dir       = map->items[i];
        int                precision = precision_parse(map->keys[i]);
        if (precision != PRECISION_INT8)
            return tree_refuse(dir, r->label, "prequantized.%.40s: want {int8: DIR}", map->keys[i]);
        if (dir->kind != YAML_SCALAR || !dir->text[0] || strlen(dir->text) >= MODEL_PATH_MAX)
            return tree_refuse(dir, r->label, "prequantized.%s: want the folder of a checkpoint", map->keys[i]);
        if (!(r->s->prequantized[precision] = strdup(dir->text)))
            return FAIL(ST_ENOMEM, "no memory for a path");
    }
    if (r->s->n_models > 1)
        return tree_refuse(map, r->label, "prequantized: goes with one model, the job has %d", r->s->n_models);
    return ST_OK;
}

status_t sweep_parse(const struct yaml *root, const char *label, const struct job_files *files, struct sweep *out)
{
    struct reader r = {.root = root, .label = label, .files = files, .s = out};
    cell_defaults(&out->base);
    for (int i = 0; i < FIELD_COUNT; i++)
        if (value_has_auto(i))
            field_set(&cell_fields[i], &out->base, (union field_value){.i = VALUE_AUTO});
    TRY(read_constants(&r));
    TRY(read_blocks(&r));
    TRY(read_prequantized(&r));
    for (int i = 0; i < out->n_blocks && out->base_model < 0; i++)
        if (!axis_of(&out->blocks[i], AXIS_MODEL))
            return FAIL(ST_EINPUT, "%s: model: missing; name the folder of a checkpoint", label);
    return ST_OK;
}

void text_set_free(struct text_set *set)
{
    for (int i = 0; i < set->n; i++)
        free(set->texts[i]);
    free(set->texts);
    *set = (struct text_set){0};
}

void sweep_free(struct sweep *s)
{
    for (int i = 0; i < s->n_blocks; i++) {
        struct block *b = &s->blocks[i];
        for (int k = 0; k < b->n_axes; k++)
            free(b->axes[k].values);
        for (int k = 0; k < b->n_where; k++)
            where_free(b->where[k]);
        free(b->where);
    }
    free(s->blocks);
    for (int i = 0; i < PRECISION_COUNT; i++)
        free(s->prequantized[i]);
    for (int i = 0; i < s->n_models; i++)
        free(s->models[i]);
    free(s->models);
    for (int i = 0; i < s->n_text_sets; i++)
        text_set_free(&s->text_sets[i]);
    free(s->text_sets);
    *s = (struct sweep){0};
}

void block_cell(const struct sweep *s, const struct block *b, size_t index, struct cell *c, int *model, int *texts)
{
    int at[AXIS_COUNT];
    for (int d = b->n_dims - 1; d >= 0; d--) {
        at[d] = (int)(index % (size_t)b->dim_size[d]);
        index /= (size_t)b->dim_size[d];
    }
    *c     = s->base;
    *model = s->base_model;
    *texts = s->base_texts;
    for (int i = 0; i < b->n_axes; i++) {
        const struct axis *a = &b->axes[i];
        union field_value  v = a->values[at[a->dim]];
        if (a->field == AXIS_MODEL)
            *model = (int)v.i;
        else if (a->field == AXIS_TEXTS)
            *texts = (int)v.i;
        else
            field_set(&cell_fields[a->field], c, v);
    }
}
