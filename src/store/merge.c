/* merge.c — sweep.h5 from cell files and other sweeps: objects are copied as they are, tables are written last. */
#include "store/atomic_file.h"
#include "store/cell_group.h"
#include "store/merge_items.h"
#include "store/row_spool.h"
#include "store/seal.h"

#include "base/clock.h"
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { PATH_SIZE = 4400 };

struct merge {
    const struct merge_request *request;
    struct merge_report        *report;
    struct item_list            items;
    struct row_spool            rows;
    char                        temporary[ATOMIC_PATH_MAX];
    hid_t                       out, cells; /* the temporary file and its group /cells          */
    bool                        extends;    /* the temporary file began as a copy of the output */
    uint64_t                    inputs_sum; /* of everything that the output is made from       */
};

/* ---- one cell ---------------------------------------------------------------------------------------------------- */

static status_t link_is_there(const struct merge *m, const char *id, bool *there)
{
    htri_t found = H5Lexists(m->cells, id, H5P_DEFAULT);
    *there = found > 0;
    return H5_DO(found);
}

/* Copy a group to /cells/<id>; an object of that name from the extended file goes first. */
static status_t copy_group(struct merge *m, hid_t from, const char *name, const char *id)
{
    bool there = false;
    h5_begin(m->request->output, ST_EIO);
    if (m->extends)
        TRY(link_is_there(m, id, &there));
    if (there)
        TRY(H5_DO(H5Ldelete(m->cells, id, H5P_DEFAULT)));
    TRY(H5_DO(H5Ocopy(from, name, m->cells, id, H5P_DEFAULT, H5P_DEFAULT)));
    return cell_group_attach_scales(m->cells, id);
}

/* The summary row of a group that claims to hold the item's cell. */
static status_t read_row(const struct item *it, hid_t from, const char *name, const char *label,
                         struct summary_row *row)
{
    struct result r;
    hid_t         group = H5I_INVALID_HID;
    h5_begin(label, ST_EINPUT);
    status_t st = H5_DO(group = H5Gopen2(from, name, H5P_DEFAULT));
    if (st == ST_OK)
        st = cell_group_read(group, CELL_SUMMARY, &r);
    h5_close(group);
    TRY(st);
    if (strcmp(r.cell.id, it->id) != 0)
        st = FAIL(ST_EINPUT, "%s: %s holds cell %s", label, name, r.cell.id);
    else
        st = summary_from_result(&r, row);
    result_free(&r);
    return st;
}

/* A cell without a result: what was planned, and why there is nothing. */
static status_t put_empty(struct merge *m, const struct item *it)
{
    struct result      r;
    struct summary_row row;
    hid_t              group = H5I_INVALID_HID;
    bool               there = false;
    status_t           st = ST_OK;
    result_init(&r);
    h5_begin(m->request->output, ST_EIO);
    if (it->plan)
        TRY_OUT(cell_copy(it->plan, &r.cell));
    memcpy(r.cell.id, it->id, sizeof it->id);
    r.status = it->status;
    TRY_OUT(result_set_reason(&r, it->reason));
    if (m->extends)
        TRY_OUT(link_is_there(m, it->id, &there));
    if (there)
        TRY_OUT(H5_DO(H5Ldelete(m->cells, it->id, H5P_DEFAULT)));
    TRY_OUT(h5_make_group(m->cells, it->id, &group));
    TRY_OUT(cell_group_write(group, &r));
    TRY_OUT(summary_from_result(&r, &row));
    st = row_spool_add(&m->rows, &row);
out:
    h5_close(group);
    result_free(&r);
    return st;
}

/* A source that turns out to be unreadable becomes a row that says so; only the output's own failures end the merge. */
static status_t take_item(struct merge *m, struct item *it)
{
    char               path[PATH_SIZE], name[64] = "/";
    struct summary_row row;
    hid_t              file = H5I_INVALID_HID, from = H5I_INVALID_HID;
    status_t           st = ST_OK;
    if (it->kind == ITEM_EMPTY)
        return put_empty(m, it);
    probe_begin(&m->items);
    if (it->kind == ITEM_FILE) {
        item_path(&m->items, it, path, sizeof path);
        st = cell_file_open(path, &file);
        from = file;
    } else {
        snprintf(path, sizeof path, "%s", m->items.inputs[it->input].path);
        snprintf(name, sizeof name, "/cells/%s", it->id);
        from = m->items.inputs[it->input].file;
    }
    if (st == ST_OK)
        st = read_row(it, from, name, path, &row);
    probe_end(&m->items);
    if (st == ST_EINPUT || st == ST_EIO) {
        m->inputs_sum++; /* the next merge looks at it again */
        st = item_damage(&m->items, it, status_last());
        if (st == ST_OK)
            st = put_empty(m, it);
    } else if (st == ST_OK) {
        st = copy_group(m, from, name, it->id);
        if (st == ST_OK)
            st = row_spool_add(&m->rows, &row);
    }
    h5_close(file);
    return st;
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

static status_t write_summary(struct merge *m)
{
    status_t               st = ST_OK;
    struct table           t = {.dset = H5I_INVALID_HID, .memory = H5I_INVALID_HID};
    struct summary_row    *rows = calloc(TABLE_PIECE, sizeof *rows);
    struct summary_record *records = calloc(TABLE_PIECE, sizeof *records);
    size_t                 n = 0;
    if (!rows || !records) {
        st = FAIL(ST_ENOMEM, "no memory for the summary");
        goto out;
    }
    row_spool_sort(&m->rows);
    TRY_OUT(table_create(m->out, summary_schema(), m->rows.n, &t));
    for (;;) {
        TRY_OUT(row_spool_next(&m->rows, rows, TABLE_PIECE, &n));
        if (n == 0)
            break;
        for (size_t i = 0; i < n; i++) {
            summary_pack(&rows[i], &records[i]);
            m->report->by_status[cell_status_parse(rows[i].status)]++;
        }
        TRY_OUT(table_append(&t, records, n));
        m->report->rows += n;
    }
out:
    table_close(&t);
    free(records);
    free(rows);
    return st;
}

static status_t write_sources(struct merge *m)
{
    status_t              st = ST_OK;
    struct table          t;
    struct source_record *piece = calloc(TABLE_PIECE, sizeof *piece);
    size_t                n = 0;
    if (!piece)
        return FAIL(ST_ENOMEM, "no memory for the sources");
    TRY_OUT(table_create(m->out, &source_schema, m->items.n, &t));
    for (size_t i = 0; i < m->items.n; i++) {
        const struct item *it = &m->items.items[i];
        if (it->kind == ITEM_EMPTY || !it->file)
            continue;
        struct source_record *row = &piece[n++];
        memset(row, 0, sizeof *row);
        memcpy(row->id, it->id, sizeof row->id);
        memcpy(row->file, it->file, strnlen(it->file, sizeof row->file - 1));
        row->size = it->size;
        row->xxh3 = it->sum;
        if (n == TABLE_PIECE) {
            TRY_OUT(table_append(&t, piece, n));
            n = 0;
        }
    }
    st = table_append(&t, piece, n);
out:
    table_close(&t);
    free(piece);
    return st;
}

/* ---- the rest of the file ---------------------------------------------------------------------------------------- */

/* Different job texts of several inputs stand one after another, as YAML documents; malloc'ed. */
static status_t join_jobs(const struct item_list *l, char **out)
{
    size_t size = 1;
    for (size_t i = 0; i < l->n_inputs; i++)
        size += 5 + strlen(l->inputs[i].job_text ? l->inputs[i].job_text : "");
    char *text = calloc(1, size);
    if (!text)
        return FAIL(ST_ENOMEM, "no memory for %zu bytes of job text", size);
    for (size_t i = 0; i < l->n_inputs; i++) {
        const char *job = l->inputs[i].job_text;
        if (!job || !job[0] || strstr(text, job))
            continue;
        if (text[0])
            strcat(text, "\n---\n");
        strcat(text, job);
    }
    *out = text;
    return ST_OK;
}

static status_t put_attribute_anew(hid_t file, const char *name, const char *value)
{
    htri_t there = H5Aexists(file, name);
    TRY(H5_DO(there));
    if (there)
        TRY(H5_DO(H5Adelete(file, name)));
    return h5_put_text(file, name, value);
}

static status_t write_head(struct merge *m)
{
    unsigned major, minor, release;
    char     version[32], now[32];
    htri_t   there = H5Aexists(m->out, "inputs_xxh3");
    H5get_libversion(&major, &minor, &release);
    snprintf(version, sizeof version, "%u.%u.%u", major, minor, release);
    clock_iso(now, sizeof now);
    TRY(put_attribute_anew(m->out, "schema", SWEEP_SCHEMA_NAME));
    TRY(put_attribute_anew(m->out, "schema_version", SWEEP_SCHEMA_VERSION));
    TRY(put_attribute_anew(m->out, "creator", "qsweep"));
    TRY(put_attribute_anew(m->out, "creator_version", QSWEEP_VERSION));
    TRY(put_attribute_anew(m->out, "HDF5_Version", version));
    TRY(put_attribute_anew(m->out, "default", "summary"));
    TRY(put_attribute_anew(m->out, "file_time", now));
    if (m->request->meta && m->request->meta->command)
        TRY(put_attribute_anew(m->out, "command", m->request->meta->command));
    TRY(H5_DO(there));
    if (there)
        TRY(H5_DO(H5Adelete(m->out, "inputs_xxh3")));
    return h5_put_uint(m->out, "inputs_xxh3", m->inputs_sum);
}

static status_t write_job(struct merge *m)
{
    char *text = NULL;
    TRY(join_jobs(&m->items, &text));
    status_t st = h5_put_document(m->out, "job", text, "job file as it was read");
    free(text);
    return st;
}

/* ---- what is there already --------------------------------------------------------------------------------------- */

/* Checksum of all that decides the output: which cells in which state, jobs, events, the program that writes. */
static status_t sum_inputs(struct merge *m)
{
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        return FAIL(ST_ENOMEM, "no memory for a checksum");
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, QSWEEP_VERSION, sizeof QSWEEP_VERSION);
    for (size_t i = 0; i < m->items.n_inputs; i++) {
        const struct merge_input *in = &m->items.inputs[i];
        XXH3_64bits_update(state, in->job_text ? in->job_text : "", strlen(in->job_text ? in->job_text : "") + 1);
        XXH3_64bits_update(state, &in->events, sizeof in->events);
    }
    for (size_t i = 0; i < m->items.n; i++) {
        const struct item *it = &m->items.items[i];
        XXH3_64bits_update(state, it->id, sizeof it->id);
        XXH3_64bits_update(state, &it->status, sizeof it->status);
        XXH3_64bits_update(state, &it->sum, sizeof it->sum);
    }
    m->inputs_sum = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return ST_OK;
}

/* Is there an output of ours that can be extended? Something that is not a sweep is refused rather than overwritten;
 * one that was damaged since, or is of another version, is built anew. */
static status_t look_at_output(struct merge *m, hid_t *old)
{
    const char *path = m->request->output;
    bool        newer, found = false;
    uint64_t    sum = 0;
    *old = H5I_INVALID_HID;
    if (!file_exists(path))
        return ST_OK;
    enum seal_state state = seal_look(path, SWEEP_SCHEMA_NAME, UINT64_MAX);
    if (state == SEAL_ABSENT)
        return FAIL(ST_EINPUT, "%s: exists and is not a %s file; it is not overwritten", path, SWEEP_SCHEMA_NAME);
    if (m->request->fresh || state != SEAL_INTACT)
        return ST_OK;
    h5_begin(path, ST_EINPUT);
    TRY(h5_open_read(path, old));
    TRY(schema_check(*old, SWEEP_SCHEMA_NAME, SWEEP_SCHEMA_VERSION, &newer));
    TRY(h5_get_uint(*old, "inputs_xxh3", &sum, &found));
    m->report->unchanged = found && !newer && sum == m->inputs_sum;
    return ST_OK;
}

/* Mark the items that the old output holds as they are; *gone counts its cells that no longer belong there. */
static status_t match_old(struct merge *m, hid_t old, size_t *reused, size_t *gone)
{
    struct table           t = {.dset = H5I_INVALID_HID, .memory = H5I_INVALID_HID};
    struct table           s = t;
    struct source_record  *sources = calloc(TABLE_PIECE, sizeof *sources);
    struct summary_record *rows = calloc(TABLE_PIECE, sizeof *rows);
    status_t               st = ST_OK;
    *reused = *gone = 0;
    if (!sources || !rows) {
        st = FAIL(ST_ENOMEM, "no memory for the old summary");
        goto out;
    }
    TRY_OUT(table_open(old, &source_schema, PLAN_CELLS_MAX, &s));
    for (size_t at = 0; at < s.rows; at += TABLE_PIECE) {
        size_t n = s.rows - at < TABLE_PIECE ? s.rows - at : TABLE_PIECE;
        TRY_OUT(table_read(&s, at, n, sources));
        for (size_t i = 0; i < n; i++) {
            struct item *it = item_find(&m->items, sources[i].id);
            if (it && it->kind != ITEM_EMPTY && it->sum == sources[i].xxh3 && it->sum) {
                it->reused = true;
                ++*reused;
            }
        }
    }
    TRY_OUT(table_open(old, summary_schema(), PLAN_CELLS_MAX, &t));
    for (size_t at = 0; at < t.rows; at += TABLE_PIECE) {
        size_t n = t.rows - at < TABLE_PIECE ? t.rows - at : TABLE_PIECE;
        TRY_OUT(table_read(&t, at, n, rows));
        for (size_t i = 0; i < n; i++)
            *gone += item_find(&m->items, rows[i].row.id) == NULL;
    }
out:
    table_close(&t);
    table_close(&s);
    free(rows);
    free(sources);
    return st;
}

static status_t copy_file(const char *from, const char *to)
{
    enum { BUFFER = 1 << 20 };
    int      in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    char    *buffer = malloc(BUFFER);
    status_t st = in < 0 || out < 0 || !buffer ? FAIL(ST_EIO, "%s to %s: %s", from, to, strerror(errno)) : ST_OK;
    while (st == ST_OK) {
        ssize_t n = read(in, buffer, BUFFER);
        if (n == 0)
            break;
        if (n < 0 || write(out, buffer, (size_t)n) != n)
            st = FAIL(ST_EIO, "%s: %s", to, strerror(errno));
    }
    free(buffer);
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return st;
}

/* Take over the rows of the cells that stay; forget the tables and what does not belong there any more. */
static status_t strip_copy(struct merge *m)
{
    static const char *const tables[] = {"summary", "sources", "events", "job", "staging"};
    struct table             t = {.dset = H5I_INVALID_HID, .memory = H5I_INVALID_HID};
    struct summary_record   *rows = calloc(TABLE_PIECE, sizeof *rows);
    status_t                 st = ST_OK;
    if (!rows)
        return FAIL(ST_ENOMEM, "no memory for the old summary");
    TRY_OUT(table_open(m->out, summary_schema(), PLAN_CELLS_MAX, &t));
    for (size_t at = 0; at < t.rows; at += TABLE_PIECE) {
        size_t n = t.rows - at < TABLE_PIECE ? t.rows - at : TABLE_PIECE;
        for (size_t i = 0; i < n; i++)
            summary_record_init(&rows[i]);
        TRY_OUT(table_read(&t, at, n, rows));
        for (size_t i = 0; i < n; i++) {
            struct summary_row row;
            struct item       *it = item_find(&m->items, rows[i].row.id);
            if (it && it->reused) {
                TRY_OUT(summary_unpack(&rows[i], &row));
                TRY_OUT(row_spool_add(&m->rows, &row));
            } else if (!it)
                TRY_OUT(H5_DO(H5Ldelete(m->cells, rows[i].row.id, H5P_DEFAULT)));
        }
    }
    table_close(&t);
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        TRY_OUT(H5_DO(H5Ldelete(m->out, tables[i], H5P_DEFAULT)));
out:
    table_close(&t);
    free(rows);
    return st;
}

/* What the output may need at most: HDF5 1.10 does not survive a write that fails in the middle of a copy, so the disk
 * space is taken beforehand. A merged cell is as large as its file, give or take the scales and the summary row. */
static status_t reserve(const struct merge *m)
{
    enum { PER_CELL = 8 << 10, TABLES = 1 << 20 };
    uint64_t    bytes = TABLES;
    struct stat info;
    char        path[PATH_SIZE];
    for (size_t i = 0; i < m->items.n; i++)
        bytes +=
            PER_CELL + (m->items.items[i].kind == ITEM_FILE && !m->items.items[i].reused ? m->items.items[i].size : 0);
    for (size_t i = 0; i < m->items.n_inputs; i++) {
        const struct merge_input *in = &m->items.inputs[i];
        snprintf(path, sizeof path, "%s%s", in->path, in->folder ? "/progress.jsonl" : "");
        bytes += stat(path, &info) == 0 ? (uint64_t)info.st_size : 0;
        bytes += in->job_text ? strlen(in->job_text) : 0;
    }
    if (m->extends && stat(m->temporary, &info) == 0)
        bytes += (uint64_t)info.st_size;
    return atomic_reserve(m->temporary, m->request->output, bytes);
}

static status_t open_output(struct merge *m)
{
    status_t st = ST_OK;
    hid_t    fapl = H5I_INVALID_HID, fcpl = H5I_INVALID_HID;
    h5_begin(m->request->output, ST_EIO);
    TRY_OUT(H5_DO(fapl = H5Pcreate(H5P_FILE_ACCESS)));
#if H5_VERSION_GE(1, 10, 7)
    TRY_OUT(H5_DO(H5Pset_file_locking(fapl, 0, 1)));
#endif
    if (m->extends) {
        TRY_OUT(copy_file(m->request->output, m->temporary));
        TRY_OUT(reserve(m));
        TRY_OUT(H5_DO(m->out = H5Fopen(m->temporary, H5F_ACC_RDWR, fapl)));
        TRY_OUT(H5_DO(m->cells = H5Gopen2(m->out, "cells", H5P_DEFAULT)));
        st = strip_copy(m);
        goto out;
    }
    TRY_OUT(H5_DO(fcpl = H5Pcreate(H5P_FILE_CREATE)));
    TRY_OUT(H5_DO(H5Pset_obj_track_times(fcpl, 0)));
    TRY_OUT(H5_DO(H5Pset_userblock(fcpl, SEAL_SIZE)));
    TRY_OUT(H5_DO(m->out = H5Fcreate(m->temporary, H5F_ACC_EXCL, fcpl, fapl)));
    TRY_OUT(reserve(m));
    st = h5_make_group(m->out, "cells", &m->cells);
out:
    h5_close(fcpl);
    h5_close(fapl);
    return st;
}

/* Extending pays when most cells stay: the copy of the old file costs disk time, and replaced cells leave holes. */
static status_t decide(struct merge *m)
{
    hid_t    old;
    size_t   reused = 0, gone = 0;
    status_t st = look_at_output(m, &old);
    if (st == ST_OK && old >= 0 && !m->report->unchanged) {
        st = match_old(m, old, &reused, &gone);
        m->extends = st == ST_OK && 2 * reused > m->items.n + gone;
        st = ST_OK; /* an old output whose tables cannot be read is built anew */
    }
    h5_close(old);
    for (size_t i = 0; i < m->items.n && !m->extends; i++)
        m->items.items[i].reused = false;
    m->report->reused = m->extends ? reused : 0;
    return st;
}

static status_t build(struct merge *m)
{
    atomic_sweep(m->request->output);
    TRY(atomic_name(m->request->output, m->temporary));
    TRY(row_spool_open(m->request->output, &m->rows));
    TRY(open_output(m));
    for (size_t i = 0; i < m->items.n; i++) {
        struct item *it = &m->items.items[i];
        if (!it->reused)
            TRY(take_item(m, it));
        m->report->damaged += it->damaged;
    }
    h5_begin(m->request->output, ST_EIO);
    TRY(write_summary(m));
    TRY(write_sources(m));
    TRY(write_job(m));
    TRY(merge_events(m->out, m->request->output, &m->items));
    TRY(merge_staging(m->out, m->request->output, &m->items));
    TRY(write_head(m));
    TRY(H5_DO(H5Fflush(m->out, H5F_SCOPE_GLOBAL)));
    h5_close(m->cells);
    m->cells = H5I_INVALID_HID;
    hid_t out = m->out;
    m->out = H5I_INVALID_HID;
    TRY(H5_DO(H5Fclose(out)));
    TRY(seal_file(m->temporary, SWEEP_SCHEMA_NAME " " SWEEP_SCHEMA_VERSION "\n"));
    return atomic_commit(m->temporary, m->request->output);
}

/* The counts of a file that is left alone. */
static status_t count_unchanged(struct merge *m)
{
    for (size_t i = 0; i < m->items.n; i++) {
        m->report->by_status[m->items.items[i].status]++;
        m->report->damaged += m->items.items[i].damaged;
    }
    m->report->rows = m->report->reused = m->items.n;
    return ST_OK;
}

status_t sweep_file_merge_all(const struct merge_request *request, struct merge_report *report)
{
    struct merge m = {.request = request, .report = report, .out = H5I_INVALID_HID, .cells = H5I_INVALID_HID};
    status_t     st = ST_OK;
    m.rows.fd = -1;
    *report = (struct merge_report){0};
    TRY_OUT(item_list_open(request, &m.items));
    TRY_OUT(sum_inputs(&m));
    TRY_OUT(decide(&m));
    st = report->unchanged ? count_unchanged(&m) : build(&m);
out:
    h5_close(m.cells);
    h5_close(m.out);
    if (st != ST_OK && m.temporary[0])
        unlink(m.temporary);
    row_spool_close(&m.rows);
    item_list_close(&m.items);
    return st;
}

status_t sweep_file_merge(const char *dir, const char *path, const struct sweep_meta *meta, size_t *n_ok,
                          size_t *n_rows)
{
    struct merge_request request = {.inputs = &dir, .n_inputs = 1, .output = path, .meta = meta};
    struct merge_report  report;
    TRY(sweep_file_merge_all(&request, &report));
    if (n_ok)
        *n_ok = report.by_status[CELL_OK];
    if (n_rows)
        *n_rows = report.rows;
    return ST_OK;
}
