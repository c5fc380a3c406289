#include "store/merge_items.h"

#include "base/file.h"
#include "store/cell_file.h"
#include "store/cell_group.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

enum { PATH_SIZE = 4400, PLAN_BYTES_MAX = 1 << 30 };

bool is_cell_id(const char *text)
{
    return strspn(text, "0123456789abcdef") == 32 && text[32] == '\0';
}

static status_t keep(char **where, const char *text)
{
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy)
        return FAIL(ST_ENOMEM, "no memory for the list of cells");
    free(*where);
    *where = copy;
    return ST_OK;
}

/* Append a copy; texts are copied, borrowed pointers kept. */
static status_t add(struct item_list *l, const struct item *it)
{
    if (l->n == l->room) {
        size_t       room = l->room ? 2 * l->room : 64;
        struct item *grown = realloc(l->items, room * sizeof *grown);
        if (!grown)
            return FAIL(ST_ENOMEM, "no memory for a list of %zu cells", room);
        l->items = grown;
        l->room = room;
    }
    struct item copy = *it;
    copy.file = copy.reason = NULL;
    status_t st = keep(&copy.file, it->file);
    if (st == ST_OK)
        st = keep(&copy.reason, it->reason);
    if (st != ST_OK) {
        free(copy.file);
        return st;
    }
    l->items[l->n++] = copy;
    return ST_OK;
}

void probe_begin(struct item_list *l)
{
    enum { DAMAGED_TOLD = 20 };
    l->level = log_get_level();
    if (l->n_damaged >= DAMAGED_TOLD)
        log_set_level(LOG_NONE);
}

void probe_end(struct item_list *l)
{
    log_set_level(l->level);
}

status_t item_damage(struct item_list *l, struct item *it, const char *reason)
{
    l->n_damaged++;
    it->kind = ITEM_EMPTY;
    it->status = CELL_INVALID;
    it->damaged = true;
    it->sum = XXH3_64bits(reason, strlen(reason));
    return keep(&it->reason, reason);
}

void item_path(const struct item_list *l, const struct item *it, char *out, size_t size)
{
    snprintf(out, size, "%s/%s", l->inputs[it->input].path, it->file);
}

/* ---- folders ----------------------------------------------------------------------------------------------------- */

/* "cell-<32 hex digits>.h5"; temporary files and whatever else lies there are not ours. */
static bool is_cell_name(const char *name)
{
    return strncmp(name, "cell-", 5) == 0 && strspn(name + 5, "0123456789abcdef") == 32 &&
           strcmp(name + 37, ".h5") == 0;
}

static status_t add_file(struct item_list *l, uint32_t input, const char *file)
{
    struct item       it = {.kind = ITEM_FILE, .input = input, .file = (char *)file};
    struct cell_stamp stamp;
    char              path[PATH_SIZE];
    memcpy(it.id, strrchr(file, '/') + 6, 32);
    item_path(l, &it, path, sizeof path);
    probe_begin(l);
    status_t st = cell_file_stamp(path, &stamp);
    if (st == ST_OK && strcmp(stamp.id, it.id) != 0)
        st = FAIL(ST_EINPUT, "%s: holds cell %s", path, stamp.id);
    probe_end(l);
    if (st == ST_EINPUT || st == ST_EIO) {
        it.reason = NULL;
        TRY(add(l, &it));
        return item_damage(l, &l->items[l->n - 1], status_last());
    }
    TRY(st);
    it.status = stamp.status;
    it.size = stamp.size;
    it.sum = stamp.sum;
    it.started_ns = stamp.started_ns;
    return add(l, &it);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names in a folder that `wanted` accepts, sorted: the order in which a file system lists them is nobody's. */
static status_t list_folder(const char *path, bool (*wanted)(const char *), char ***names, size_t *n)
{
    status_t st = ST_OK;
    size_t   room = 0;
    DIR     *dir = opendir(path);
    *names = NULL;
    *n = 0;
    if (!dir)
        return errno == ENOENT ? ST_OK : FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry) {
            if (errno)
                st = FAIL(ST_EIO, "%s: %s", path, strerror(errno));
            break;
        }
        if (!wanted(entry->d_name))
            continue;
        if (*n == room) {
            room = room ? 2 * room : 64;
            char **grown = realloc(*names, room * sizeof *grown);
            if (!grown) {
                st = FAIL(ST_ENOMEM, "%s: no memory for %zu names", path, room);
                break;
            }
            *names = grown;
        }
        if (!((*names)[*n] = strdup(entry->d_name))) {
            st = FAIL(ST_ENOMEM, "%s: no memory for %zu names", path, *n);
            break;
        }
        ++*n;
    }
    closedir(dir);
    if (*n)
        qsort(*names, *n, sizeof **names, by_name);
    return st;
}

static void free_names(char **names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

static bool is_fan_name(const char *name)
{
    return strlen(name) == 2 && strspn(name, "0123456789abcdef") == 2;
}

static status_t add_folder_files(struct item_list *l, uint32_t input, const char *below)
{
    char   path[PATH_SIZE], file[64];
    char **names;
    size_t n;
    snprintf(path, sizeof path, "%s/%s", l->inputs[input].path, below);
    status_t st = list_folder(path, is_cell_name, &names, &n);
    for (size_t i = 0; i < n && st == ST_OK; i++) {
        snprintf(file, sizeof file, "%s/%s", below, names[i]);
        st = add_file(l, input, file);
    }
    free_names(names, n);
    return st;
}

static status_t add_planned(struct item_list *l, const struct cell *cell, const char *invalid)
{
    struct item it = {.kind = ITEM_EMPTY, .status = CELL_PENDING, .plan = cell};
    memcpy(it.id, cell->id, sizeof it.id);
    if (invalid) {
        it.status = CELL_INVALID;
        it.reason = (char *)invalid;
        it.sum = XXH3_64bits(invalid, strlen(invalid));
    }
    return add(l, &it);
}

/* Checksum of a file's bytes, 0 when there is none; what changes in it must change the merged file. */
static uint64_t file_sum(const char *path)
{
    char         *buffer = malloc(1 << 16);
    XXH3_state_t *state = XXH3_createState();
    uint64_t      sum = 0;
    FILE         *f = fopen(path, "rb");
    if (f && buffer && state) {
        XXH3_64bits_reset(state);
        for (size_t n; (n = fread(buffer, 1, 1 << 16, f)) > 0;)
            XXH3_64bits_update(state, buffer, n);
        sum = XXH3_64bits_digest(state);
    }
    if (f)
        fclose(f);
    XXH3_freeState(state);
    free(buffer);
    return sum;
}

static status_t read_plan(struct merge_input *in)
{
    char   path[PATH_SIZE], *json = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, "%s/plan.json", in->path);
    if (!file_exists(path))
        return ST_OK;
    TRY(file_read(path, PLAN_BYTES_MAX, &json, &size));
    status_t st = plan_from_json(json, size, path, &in->plan);
    free(json);
    return st;
}

static status_t add_folder(struct item_list *l, uint32_t input, const struct sweep_meta *meta)
{
    struct merge_input *in = &l->inputs[input];
    char                path[PATH_SIZE], below[16];
    char              **fans;
    size_t              n_fans, before = l->n;
    snprintf(path, sizeof path, "%s/cells", in->path);
    status_t st = list_folder(path, is_fan_name, &fans, &n_fans);
    for (size_t i = 0; i < n_fans && st == ST_OK; i++) {
        snprintf(below, sizeof below, "cells/%s", fans[i]);
        st = add_folder_files(l, input, below);
    }
    free_names(fans, n_fans);
    TRY(st);
    TRY(add_folder_files(l, input, "cells"));
    if (!meta)
        TRY(read_plan(in));
    for (size_t i = 0; meta && i < meta->n_plan; i++)
        TRY(add_planned(l, &meta->plan[i], meta->invalid ? meta->invalid[i] : NULL));
    for (size_t i = 0; in->plan && i < in->plan->n; i++)
        TRY(add_planned(l, &in->plan->cells[i], in->plan->invalid[i]));
    TRY(keep(&in->job_text, meta ? meta->job_text : in->plan ? in->plan->job_text : NULL));
    snprintf(path, sizeof path, "%s/progress.jsonl", in->path);
    in->events = file_sum(path);
    snprintf(path, sizeof path, "%s/staging.jsonl", in->path);
    in->events ^= file_sum(path) * 3; /* of what /staging is made from as well */
    if (l->n == before && !meta && !in->plan)
        return FAIL(ST_EINPUT, "%s: no cell files below cells/ and no plan.json: not a results folder", in->path);
    return ST_OK;
}

/* ---- merged files ------------------------------------------------------------------------------------------------ */

static int by_source_id(const void *a, const void *b)
{
    return strcmp(((const struct source_record *)a)->id, ((const struct source_record *)b)->id);
}

static status_t read_sources(hid_t file, struct source_record **out, size_t *n)
{
    struct table t;
    status_t     st = table_open(file, &source_schema, PLAN_CELLS_MAX, &t);
    if (st == ST_OK && !(*out = calloc(t.rows + 1, sizeof **out)))
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu sources", h5_label(), t.rows);
    if (st == ST_OK)
        st = table_read(&t, 0, t.rows, *out);
    if (st == ST_OK) {
        *n = t.rows;
        qsort(*out, *n, sizeof **out, by_source_id);
    }
    table_close(&t);
    return st;
}

static status_t add_row(struct item_list *l, uint32_t input, const struct summary_record *row,
                        const struct source_record *sources, size_t n_sources)
{
    struct source_record        key;
    struct item                 it = {.kind = ITEM_GROUP, .input = input, .started_ns = row->row.started_ns};
    int                         status = cell_status_parse(row->row.status);
    const struct source_record *source;
    if (!is_cell_id(row->row.id) || status < 0)
        return FAIL(ST_EINPUT, "%s: summary: cell \"%.40s\" with status \"%.20s\"", h5_label(), row->row.id,
                    row->row.status);
    memcpy(it.id, row->row.id, sizeof it.id);
    memcpy(key.id, row->row.id, sizeof key.id);
    it.status = (enum cell_status)status;
    source = bsearch(&key, sources, n_sources, sizeof key, by_source_id);
    if (source) {
        it.file = (char *)source->file;
        it.size = source->size;
        it.sum = source->xxh3;
    } else if (it.status == CELL_INVALID) {
        it.sum = XXH3_64bits(row->row.reason, strlen(row->row.reason));
        it.damaged = true;
    }
    return add(l, &it);
}

static status_t add_merged(struct item_list *l, uint32_t input)
{
    enum { PIECE = TABLE_PIECE };
    struct merge_input    *in = &l->inputs[input];
    struct source_record  *sources = NULL;
    struct summary_record *rows = calloc(PIECE, sizeof *rows);
    struct table           t = {.dset = H5I_INVALID_HID, .memory = H5I_INVALID_HID};
    size_t                 n_sources = 0;
    bool                   newer, found;
    status_t               st = ST_OK;
    if (!rows)
        return FAIL(ST_ENOMEM, "%s: no memory for rows", in->path);
    TRY_OUT(sweep_file_check_seal(in->path, UINT64_MAX));
    h5_begin(in->path, ST_EINPUT);
    TRY_OUT(h5_open_read(in->path, &in->file));
    TRY_OUT(schema_check(in->file, SWEEP_SCHEMA_NAME, SWEEP_SCHEMA_VERSION, &newer));
    TRY_OUT(h5_get_document(in->file, "job", &in->job_text, &found));
    TRY_OUT(h5_get_uint(in->file, "inputs_xxh3", &in->events, &found));
    TRY_OUT(read_sources(in->file, &sources, &n_sources));
    TRY_OUT(table_open(in->file, summary_schema(), PLAN_CELLS_MAX, &t));
    for (size_t at = 0; at < t.rows; at += PIECE) {
        size_t n = t.rows - at < PIECE ? t.rows - at : PIECE;
        for (size_t i = 0; i < n; i++)
            summary_record_init(&rows[i]);
        TRY_OUT(table_read(&t, at, n, rows));
        for (size_t i = 0; i < n; i++)
            TRY_OUT(add_row(l, input, &rows[i], sources, n_sources));
    }
out:
    table_close(&t);
    free(sources);
    free(rows);
    return st;
}

/* ---- the list ---------------------------------------------------------------------------------------------------- */

/* How much a result is worth: measured, failed, damaged or impossible, only planned. */
static int worth(const struct item *it)
{
    return it->status == CELL_OK ? 3 : it->status == CELL_PENDING ? 0 : it->damaged || it->kind == ITEM_EMPTY ? 1 : 2;
}

/* By id, the best first; the last resorts only make the order total. */
static int by_id_then_worth(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    int                order = strcmp(x->id, y->id);
    if (order == 0)
        order = worth(y) - worth(x);
    if (order == 0)
        order = (x->started_ns < y->started_ns) - (x->started_ns > y->started_ns);
    if (order == 0)
        order = (x->sum < y->sum) - (x->sum > y->sum);
    if (order == 0)
        order = (int)y->kind - (int)x->kind;
    return order ? order : (x->input > y->input) - (x->input < y->input);
}

static void item_free(struct item *it)
{
    free(it->file);
    free(it->reason);
}

/* Keep the best of each id; it learns the plan's cell from the others. */
static void keep_best(struct item_list *l)
{
    size_t kept = 0;
    if (l->n)
        qsort(l->items, l->n, sizeof *l->items, by_id_then_worth);
    for (size_t i = 0; i < l->n; i++) {
        struct item *last = kept ? &l->items[kept - 1] : NULL;
        if (last && strcmp(last->id, l->items[i].id) == 0) {
            last->plan = last->plan ? last->plan : l->items[i].plan;
            item_free(&l->items[i]);
        } else
            l->items[kept++] = l->items[i];
    }
    l->n = kept;
}

status_t item_list_open(const struct merge_request *request, struct item_list *out)
{
    *out = (struct item_list){.inputs = calloc(request->n_inputs + 1, sizeof *out->inputs)};
    if (!out->inputs)
        return FAIL(ST_ENOMEM, "no memory for %zu inputs", request->n_inputs);
    for (size_t i = 0; i < request->n_inputs; i++)
        out->inputs[i] = (struct merge_input){.path = request->inputs[i], .file = H5I_INVALID_HID};
    out->n_inputs = request->n_inputs;
    for (size_t i = 0; i < request->n_inputs; i++) {
        struct stat info;
        if (stat(request->inputs[i], &info) != 0)
            return FAIL(ST_EIO, "%s: %s", request->inputs[i], strerror(errno));
        out->inputs[i].folder = S_ISDIR(info.st_mode);
        TRY(out->inputs[i].folder ? add_folder(out, (uint32_t)i, request->meta) : add_merged(out, (uint32_t)i));
    }
    keep_best(out);
    if (out->n > PLAN_CELLS_MAX)
        return FAIL(ST_EUNSUPPORTED, "%zu cells in one file, at most %d", out->n, PLAN_CELLS_MAX);
    return ST_OK;
}

void item_list_close(struct item_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        item_free(&l->items[i]);
    free(l->items);
    for (size_t i = 0; i < l->n_inputs; i++) {
        h5_close(l->inputs[i].file);
        plan_close(l->inputs[i].plan);
        free(l->inputs[i].job_text);
    }
    free(l->inputs);
    *l = (struct item_list){0};
}

static int by_id(const void *key, const void *item)
{
    return strcmp(key, ((const struct item *)item)->id);
}

struct item *item_find(const struct item_list *l, const char *id)
{
    return l->n ? bsearch(id, l->items, l->n, sizeof *l->items, by_id) : NULL;
}
