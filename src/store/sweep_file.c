#include "store/sweep_file.h"

#include "store/cell_file.h"
#include "store/cell_group.h"
#include "store/merge_items.h"
#include "store/seal.h"
#include "store/sweep_schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Up to this size a file's checksum costs a second at most; larger ones are checked by `merge --verify`. */
static const uint64_t SUM_LIMIT = 1u << 30;

struct sweep_file {
    char               *path, *job;
    hid_t               file;
    struct summary_row *rows;
    size_t              n;
};

/* A file without a seal is a copy that another program made; what HDF5 finds in it decides. */
status_t sweep_file_check_seal(const char *path, uint64_t sum_limit)
{
    switch (seal_look(path, SWEEP_SCHEMA_NAME, sum_limit)) {
    case SEAL_SHORT:
        return FAIL(ST_EINPUT, "%s: cut short", path);
    case SEAL_CHANGED:
        return FAIL(ST_EINPUT, "%s: was changed since it was merged: its checksum does not match", path);
    default:
        return ST_OK;
    }
}

static status_t read_summary(struct sweep_file *f)
{
    status_t               st = ST_OK;
    struct table           t;
    struct stat            info;
    struct summary_record *piece = calloc(TABLE_PIECE, sizeof *piece);
    if (!piece)
        return FAIL(ST_ENOMEM, "%s: no memory for the summary", f->path);
    TRY_OUT(table_open(f->file, summary_schema(), PLAN_CELLS_MAX, &t));
    /* Deflate makes at most 1032 bytes of one. */
    if (stat(f->path, &info) == 0 && t.rows > 4096 && t.rows * sizeof *f->rows / 1032 > (uint64_t)info.st_size) {
        st = FAIL(ST_EINPUT, "%s: summary claims %zu rows in a file of %lld bytes", f->path, t.rows,
                  (long long)info.st_size);
        goto out;
    }
    if (!(f->rows = calloc(t.rows + 1, sizeof *f->rows))) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu rows", f->path, t.rows);
        goto out;
    }
    for (size_t at = 0; at < t.rows; at += TABLE_PIECE) {
        size_t n = t.rows - at < TABLE_PIECE ? t.rows - at : TABLE_PIECE;
        for (size_t i = 0; i < n; i++)
            summary_record_init(&piece[i]);
        TRY_OUT(table_read(&t, at, n, piece));
        for (size_t i = 0; i < n; i++) {
            TRY_OUT(summary_unpack(&piece[i], &f->rows[f->n]));
            if (!is_cell_id(f->rows[f->n].id) || cell_status_parse(f->rows[f->n].status) < 0) {
                st = FAIL(ST_EINPUT, "%s: summary: row %zu: cell \"%.40s\" with status \"%.20s\"", f->path, f->n,
                          f->rows[f->n].id, f->rows[f->n].status);
                goto out;
            }
            f->n++;
        }
    }
    qsort(f->rows, f->n, sizeof *f->rows, summary_order);
out:
    table_close(&t);
    free(piece);
    return st;
}

static status_t open_sweep(const char *path, bool force, struct sweep_file *f)
{
    bool        newer, found;
    struct stat info;
    size_t      size = strlen(path) + sizeof "/sweep.h5";
    if (!(f->path = malloc(size)))
        return FAIL(ST_ENOMEM, "no memory for \"%s\"", path);
    snprintf(f->path, size, "%s%s", path, stat(path, &info) == 0 && S_ISDIR(info.st_mode) ? "/sweep.h5" : "");
    if (!force)
        TRY(sweep_file_check_seal(f->path, SUM_LIMIT));
    h5_begin(f->path, ST_EINPUT);
    TRY(h5_open_read(f->path, &f->file));
    TRY(schema_check(f->file, SWEEP_SCHEMA_NAME, SWEEP_SCHEMA_VERSION, &newer));
    TRY(h5_get_document(f->file, "job", &f->job, &found));
    return read_summary(f);
}

static status_t open_any(const char *path, bool force, struct sweep_file **out)
{
    struct sweep_file *f = calloc(1, sizeof *f);
    if (!f)
        return FAIL(ST_ENOMEM, "no memory for \"%s\"", path);
    f->file = H5I_INVALID_HID;
    status_t st = open_sweep(path, force, f);
    if (st == ST_OK)
        *out = f;
    else
        sweep_file_close(f);
    return st;
}

status_t sweep_file_open(const char *path, struct sweep_file **out)
{
    return open_any(path, false, out);
}

status_t sweep_file_open_changed(const char *path, struct sweep_file **out)
{
    return open_any(path, true, out);
}

void sweep_file_close(struct sweep_file *f)
{
    if (!f)
        return;
    h5_close(f->file);
    free(f->rows);
    free(f->job);
    free(f->path);
    free(f);
}

size_t sweep_file_rows(const struct sweep_file *f)
{
    return f->n;
}

const struct summary_row *sweep_file_row(const struct sweep_file *f, size_t i)
{
    return i < f->n ? &f->rows[i] : NULL;
}

const char *sweep_file_job(const struct sweep_file *f)
{
    return f->job ? f->job : "";
}

static status_t read_cell(hid_t file, const char *path, const char *id, struct result *out)
{
    char     name[64];
    hid_t    group = H5I_INVALID_HID;
    status_t st = ST_OK;
    result_init(out);
    h5_begin(path, ST_EINPUT);
    if (!is_cell_id(id))
        return FAIL(ST_EINPUT, "%s: \"%.40s\" is no cell id", path, id);
    snprintf(name, sizeof name, "cells/%s", id);
    TRY_OUT(h5_find_group(file, name, &group));
    if (group < 0)
        return FAIL(ST_EINPUT, "%s: no cell %s", path, id);
    st = cell_group_read(group, CELL_ALL, out);
    if (st == ST_OK && strcmp(out->cell.id, id) != 0) {
        st = FAIL(ST_EINPUT, "%s: cells/%s holds cell %s", path, id, out->cell.id);
        result_free(out);
    }
out:
    h5_close(group);
    return st;
}

status_t sweep_file_cell(const struct sweep_file *f, const char *id, struct result *out)
{
    return read_cell(f->file, f->path, id, out);
}

/* ---- verify ------------------------------------------------------------------------------------------------------ */

/* Equal results are equal bytes, so writing both again compares everything there is. */
static status_t compare_cell(const struct sweep_file *f, const struct item_list *l, const struct item *it)
{
    char          path[4400];
    struct result source, merged;
    bool          equal = false;
    if (it->kind == ITEM_FILE) {
        item_path(l, it, path, sizeof path);
        TRY(cell_file_read(path, &source));
    } else
        TRY(read_cell(l->inputs[it->input].file, l->inputs[it->input].path, it->id, &source));
    status_t st = sweep_file_cell(f, it->id, &merged);
    if (st == ST_OK) {
        st = cell_file_equal(&source, &merged, &equal);
        result_free(&merged);
    }
    result_free(&source);
    return st != ST_OK || equal ? st : FAIL(ST_EINPUT, "%s: cell %s differs from its source", f->path, it->id);
}

status_t sweep_file_verify(const char *path, const char *const *inputs, size_t n_inputs, size_t *n_compared)
{
    struct merge_request request = {.inputs = inputs, .n_inputs = n_inputs, .output = path};
    struct item_list     l = {0};
    struct sweep_file   *f = NULL;
    status_t             st = ST_OK;
    *n_compared = 0;
    TRY_OUT(item_list_open(&request, &l));
    TRY_OUT(sweep_file_open(path, &f));
    if (l.n != f->n) {
        st = FAIL(ST_EINPUT, "%s: %zu rows, the inputs have %zu cells", path, f->n, l.n);
        goto out;
    }
    for (size_t i = 0; i < l.n; i++)
        if (l.items[i].kind != ITEM_EMPTY) {
            TRY_OUT(compare_cell(f, &l, &l.items[i]));
            ++*n_compared;
        }
out:
    sweep_file_close(f);
    item_list_close(&l);
    return st;
}
