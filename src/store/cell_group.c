#include "store/cell_group.h"

#include "store/cell_file.h"
#include "store/rows.h"
#include "sweep/field.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- config ------------------------------------------------------------------------------------------------------ */

/* Every axis as an attribute of its own, from sweep's table: a new axis appears here without a line of code. */
static status_t write_config(hid_t cell, const struct cell *c)
{
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID;
    char    *json = NULL;
    TRY(cell_to_json(c, &json));
    TRY_OUT(h5_make_group(cell, "config", &group));
    for (int i = 0; i < FIELD_COUNT; i++) {
        const struct field *f = &cell_fields[i];
        union field_value   v = field_get(f, c);
        char                text[FIELD_TEXT_MAX];
        if (f->kind == FIELD_CHOICE) {
            field_format(f, v, text);
            TRY_OUT(h5_put_text(group, f->name, text));
        } else if (f->kind == FIELD_FLOAT) {
            float_text((float)v.f, text); /* 0.7, not 0.69999998807907104 */
            TRY_OUT(h5_put_real(group, f->name, strtod(text, NULL)));
        } else if (f->kind == FIELD_SEED)
            TRY_OUT(h5_put_uint(group, f->name, (uint64_t)v.i));
        else
            TRY_OUT(h5_put_int(group, f->name, v.i));
    }
    TRY_OUT(h5_put_text(group, "fingerprint", c->fingerprint));
    TRY_OUT(h5_put_text(group, "place", c->device));
    TRY_OUT(h5_put_text(group, "model", c->model));
    TRY_OUT(h5_put_int(group, "n_texts", c->workload.n_texts));
    st = h5_put_text(group, "json", json);
out:
    h5_close(group);
    free(json);
    return st;
}

/* Keys of a cell's JSON beside the fields. */
static bool key_is_known(const char *key)
{
    static const char *const others[] = {"id",         "model",    "fingerprint", "place", "gpu", "keep_audio",
                                         "deadline_s", "workload", "texts",       "stop"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcmp(key, others[i]) == 0)
            return true;
    return field_find(key) >= 0;
}

static void drop_unknown(json_t *object)
{
    const char *key;
    json_t     *value;
    void       *next;
    json_object_foreach_safe(object, next, key, value) if (!key_is_known(key)) json_object_del(object, key);
}

/* A file of a newer minor version may know axes that we do not: drop them, so that what we know can still be read. */
static status_t drop_unknown_keys(char **json)
{
    json_error_t error;
    json_t      *root = json_loads(*json, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(root)) {
        json_decref(root);
        return FAIL(ST_EINPUT, "%s: config/json: %s", h5_label(), error.text);
    }
    drop_unknown(root);
    drop_unknown(json_object_get(root, "workload"));
    char *kept = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!kept)
        return FAIL(ST_ENOMEM, "%s: no memory for config/json", h5_label());
    free(*json);
    *json = kept;
    return ST_OK;
}

/* A row for a damaged file of an unplanned cell has no config: nobody knows it. */
static status_t read_config(hid_t cell, bool newer, bool may_be_missing, struct cell *out)
{
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID;
    char    *json = NULL;
    TRY(h5_find_group(cell, "config", &group));
    if (group < 0 && may_be_missing)
        return ST_OK;
    if (group < 0)
        return FAIL(ST_EINPUT, "%s: group \"config\" is missing", h5_label());
    TRY_OUT(h5_get_text(group, "json", &json, NULL));
    if (newer)
        TRY_OUT(drop_unknown_keys(&json));
    st = cell_from_json(json, strlen(json), h5_label(), out);
out:
    h5_close(group);
    free(json);
    return st;
}

/* ---- provenance, memory, frames ---------------------------------------------------------------------------------- */

static status_t write_provenance(hid_t cell, const struct result *r)
{
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID, facts = H5I_INVALID_HID;
    TRY(h5_make_group(cell, "provenance", &group));
    TRY_OUT(h5_put_text(group, "host", r->host));
    TRY_OUT(h5_put_int(group, "rank", r->rank));
    TRY_OUT(h5_put_int(group, "attempt", r->attempt));
    TRY_OUT(h5_put_int(group, "started_ns", r->started_ns));
    TRY_OUT(h5_put_int(group, "exit_code", r->exit_code));
    TRY_OUT(h5_put_int(group, "signal", r->signal));
    TRY_OUT(h5_make_group(group, "facts", &facts));
    for (size_t i = 0; i < r->n_facts; i++)
        TRY_OUT(h5_put_text(facts, r->facts[i].key, r->facts[i].value));
out:
    h5_close(facts);
    h5_close(group);
    return st;
}

struct fact_reader {
    struct result *result;
    status_t       st;
};

static herr_t read_fact(hid_t where, const char *key, const H5A_info_t *info, void *context)
{
    struct fact_reader *reader = context;
    char               *value = NULL;
    (void)info;
    reader->st = h5_get_text(where, key, &value, NULL);
    if (reader->st == ST_OK && (!key[0] || strlen(key) > 200 || reader->result->n_facts >= 1000))
        reader->st =
            FAIL(ST_EINPUT, "%s: provenance/facts: \"%.40s\" is one fact too many or too long", h5_label(), key);
    if (reader->st == ST_OK)
        reader->st = result_add_fact(reader->result, key, value);
    free(value);
    return reader->st == ST_OK ? 0 : 1;
}

/* The facts that a summary row shows. */
static status_t read_summary_facts(hid_t facts, struct result *r)
{
    static const char *const keys[] = {"gpu_name", "cpu_model", "prequantized"};
    status_t                 st = ST_OK;
    for (size_t i = 0; i < sizeof keys / sizeof *keys && st == ST_OK; i++) {
        char *value = NULL;
        bool  found;
        st = h5_get_text(facts, keys[i], &value, &found);
        if (st == ST_OK && found)
            st = result_add_fact(r, keys[i], value);
        free(value);
    }
    return st;
}

static status_t read_provenance(hid_t cell, unsigned parts, struct result *r)
{
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID, facts = H5I_INVALID_HID;
    int64_t  number = 0;
    bool     found;
    TRY(h5_find_group(cell, "provenance", &group));
    if (group < 0)
        return ST_OK;
    struct {
        const char *name;
        int        *where;
    } ints[] = {{"rank", &r->rank}, {"attempt", &r->attempt}, {"exit_code", &r->exit_code}, {"signal", &r->signal}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        TRY_OUT(h5_get_int(group, ints[i].name, &number, &found));
        if (found)
            *ints[i].where = (int)number;
    }
    TRY_OUT(h5_get_int(group, "started_ns", &r->started_ns, &found));
    TRY_OUT(h5_get_chars(group, "host", r->host, sizeof r->host, &found));
    if (!(parts & (CELL_FACTS | CELL_SUMMARY)))
        goto out;
    TRY_OUT(h5_find_group(group, "facts", &facts));
    if (facts >= 0 && parts & CELL_FACTS) {
        struct fact_reader reader = {r, ST_OK};
        hsize_t            at = 0;
        herr_t             walked = H5Aiterate2(facts, H5_INDEX_NAME, H5_ITER_INC, &at, read_fact, &reader);
        st = reader.st != ST_OK ? reader.st : H5_DO(walked);
    } else if (facts >= 0)
        st = read_summary_facts(facts, r);
out:
    h5_close(facts);
    h5_close(group);
    return st;
}

/* Scalars of a result that are attributes: name (with its unit), place, kind. */
static const struct column memory_scalars[] = {
    COLUMN(result, baseline_bytes, "vram_baseline_bytes", M_BYTES, "byte", ""),
    COLUMN(result, peak_bytes, "vram_peak_bytes", M_BYTES, "byte", ""),
    COLUMN(result, process_ready, "process_ready_bytes", M_BYTES, "byte", ""),
    COLUMN(result, process_peak, "process_peak_bytes", M_BYTES, "byte", ""),
    COLUMN(result, device_ready, "device_ready_bytes", M_BYTES, "byte", ""),
    COLUMN(result, device_peak, "device_peak_bytes", M_BYTES, "byte", ""),
};
static const struct column timing_scalars[] = {
    COLUMN(result, load_s, "load_s", M_F64, "s", ""),
    COLUMN(result, warmup_s, "warmup_s", M_F64, "s", ""),
    COLUMN(result, total_s, "total_s", M_F64, "s", ""),
    COLUMN(result, first_frame_s, "first_frame_s", M_F64, "s", ""),
    COLUMN(result, step_bytes, "step_bytes", M_F64, "byte", ""),
    COLUMN(result, nucleus, "nucleus", M_F64, "1", ""),
};

static status_t write_memory(hid_t cell, const struct result *r)
{
    status_t    st = ST_OK;
    hid_t       group = H5I_INVALID_HID;
    const char *names[MEM_CLASS_COUNT];
    uint64_t    ready[MEM_CLASS_COUNT], peak[MEM_CLASS_COUNT];
    for (int i = 0; i < MEM_CLASS_COUNT; i++) {
        names[i] = memory_class_name((enum memory_class)i);
        ready[i] = r->memory_ready[i];
        peak[i] = r->memory_peak[i];
    }
    TRY(h5_make_group(cell, "memory", &group));
    TRY_OUT(scalars_write(group, memory_scalars, sizeof memory_scalars / sizeof *memory_scalars, r));
    TRY_OUT(h5_put_names(group, "class", names, MEM_CLASS_COUNT, "class of our own allocations"));
    TRY_OUT(h5_put_column(group, "ready_bytes", H5_U64, ready, MEM_CLASS_COUNT, "byte", "held at phase ready", NULL));
    TRY_OUT(
        h5_put_column(group, "peak_bytes", H5_U64, peak, MEM_CLASS_COUNT, "byte", "most held after phase ready", NULL));
out:
    h5_close(group);
    return st;
}

/* Classes are matched by name: a file may know more or fewer than this version. */
static status_t read_memory(hid_t cell, struct result *r)
{
    enum { CLASSES_MAX = 64 };
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID;
    char    *names = NULL;
    size_t   n = 0, width = 0;
    uint64_t ready[CLASSES_MAX], peak[CLASSES_MAX];
    TRY(h5_find_group(cell, "memory", &group));
    if (group < 0)
        return ST_OK;
    TRY_OUT(scalars_read(group, memory_scalars, sizeof memory_scalars / sizeof *memory_scalars, r));
    TRY_OUT(h5_get_names(group, "class", CLASSES_MAX, &names, &n, &width));
    TRY_OUT(h5_get_column(group, "ready_bytes", H5_U64, ready, n, NULL));
    TRY_OUT(h5_get_column(group, "peak_bytes", H5_U64, peak, n, NULL));
    for (size_t i = 0; i < n; i++)
        for (int c = 0; c < MEM_CLASS_COUNT; c++)
            if (strcmp(names + i * width, memory_class_name((enum memory_class)c)) == 0) {
                r->memory_ready[c] = (size_t)ready[i];
                r->memory_peak[c] = (size_t)peak[i];
            }
out:
    free(names);
    h5_close(group);
    return st;
}

static status_t write_frames(hid_t cell, const struct result *r)
{
    status_t  st = ST_OK;
    hid_t     group = H5I_INVALID_HID;
    uint64_t *offset = malloc((r->n_samples + 1) * sizeof *offset);
    if (!offset)
        return FAIL(ST_ENOMEM, "%s: no memory for %zu offsets", h5_label(), r->n_samples);
    for (size_t i = 0; i < r->n_samples; i++)
        offset[i] = r->samples[i].step_offset;
    TRY_OUT(h5_make_group(cell, "frames", &group));
    TRY_OUT(scalars_write(group, timing_scalars, sizeof timing_scalars / sizeof *timing_scalars, r));
    TRY_OUT(h5_put_text(group, "engine", r->engine));
    if (r->n_samples == 0)
        goto out;
    TRY_OUT(h5_put_column(group, "offset", H5_U64, offset, r->n_samples, "1",
                          "first row of each sample in step_ms; samples/steps counts them", NULL));
    st = h5_put_column(group, "step_ms", H5_F64, r->step_ms, r->n_steps, "ms",
                       "time of every decode step, in sample order", NULL);
out:
    h5_close(group);
    free(offset);
    return st;
}

/* Steps of every sample must lie inside step_ms: later readers index with them. */
static status_t read_frames(hid_t cell, unsigned parts, struct result *r)
{
    status_t  st = ST_OK;
    hid_t     group = H5I_INVALID_HID;
    uint64_t *offset = NULL;
    bool      found = false;
    TRY(h5_find_group(cell, "frames", &group));
    if (group < 0)
        return r->n_samples ? FAIL(ST_EINPUT, "%s: group \"frames\" is missing", h5_label()) : ST_OK;
    TRY_OUT(scalars_read(group, timing_scalars, sizeof timing_scalars / sizeof *timing_scalars, r));
    TRY_OUT(h5_get_chars(group, "engine", r->engine, sizeof r->engine, &found));
    if (r->n_samples == 0)
        goto out;
    TRY_OUT(h5_column_rows(group, "step_ms", &r->n_steps, &found));
    offset = malloc(r->n_samples * sizeof *offset);
    if (!offset) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu offsets", h5_label(), r->n_samples);
        goto out;
    }
    TRY_OUT(h5_get_column(group, "offset", H5_U64, offset, r->n_samples, NULL));
    for (size_t i = 0; i < r->n_samples; i++) {
        struct sample *s = &r->samples[i];
        if (s->steps < 0 || offset[i] > r->n_steps || (size_t)s->steps > r->n_steps - offset[i]) {
            st = FAIL(ST_EINPUT, "%s: sample %zu: steps %llu + %d of %zu", h5_label(), i, (unsigned long long)offset[i],
                      s->steps, r->n_steps);
            goto out;
        }
        s->step_offset = (size_t)offset[i];
    }
    if (!(parts & (CELL_STEPS | CELL_SUMMARY)) || r->n_steps == 0)
        goto out;
    r->step_ms = malloc(result_room(r->n_steps) * sizeof *r->step_ms);
    st = r->step_ms ? h5_get_column(group, "step_ms", H5_F64, r->step_ms, r->n_steps, NULL)
                    : FAIL(ST_ENOMEM, "%s: no memory for %zu steps", h5_label(), r->n_steps);
out:
    if (!r->step_ms)
        r->n_steps = 0;
    free(offset);
    h5_close(group);
    return st;
}

/* Linear layers have names, which are no numbers: a column of texts beside the others. */
static status_t write_quality(hid_t cell, const struct result *r)
{
    status_t     st = ST_OK;
    hid_t        group = H5I_INVALID_HID;
    const char **names = NULL;
    TRY(rows_write(cell, &quality_rows, r->quality, r->n_quality));
    TRY(rows_write(cell, &quality_text_rows, r->quality_texts, r->n_quality_texts));
    if (r->n_quality_linears == 0)
        return ST_OK;
    TRY(rows_write(cell, &quality_linear_rows, r->quality_linears, r->n_quality_linears));
    if (!(names = malloc(r->n_quality_linears * sizeof *names)))
        return FAIL(ST_ENOMEM, "%s: no memory for %zu names", h5_label(), r->n_quality_linears);
    for (size_t i = 0; i < r->n_quality_linears; i++)
        names[i] = r->quality_linears[i].name;
    TRY_OUT(h5_find_group(cell, "quality_linears", &group));
    st = h5_put_names(group, "name", names, r->n_quality_linears, "linear layer, as the checkpoint names its weight");
out:
    h5_close(group);
    free(names);
    return st;
}

static status_t read_linear_names(hid_t cell, struct result *r)
{
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID;
    char    *block = NULL;
    size_t   n = 0, width = 0;
    TRY(h5_find_group(cell, "quality_linears", &group));
    TRY_OUT(h5_get_names(group, "name", r->n_quality_linears, &block, &n, &width));
    if (n != r->n_quality_linears)
        st = FAIL(ST_EINPUT, "%s: quality_linears: %zu names for %zu rows", h5_label(), n, r->n_quality_linears);
    for (size_t i = 0; i < n && st == ST_OK; i++)
        snprintf(r->quality_linears[i].name, sizeof r->quality_linears[i].name, "%s", block + i * width);
out:
    free(block);
    h5_close(group);
    return st;
}

static status_t read_quality_details(hid_t cell, struct result *r)
{
    void *rows = NULL;
    TRY(rows_read(cell, &quality_text_rows, NULL, &rows, &r->n_quality_texts));
    r->quality_texts = rows;
    rows = NULL;
    TRY(rows_read(cell, &quality_linear_rows, NULL, &rows, &r->n_quality_linears));
    r->quality_linears = rows;
    return r->n_quality_linears ? read_linear_names(cell, r) : ST_OK;
}

static status_t write_log(hid_t cell, const struct result *r)
{
    hid_t group = H5I_INVALID_HID;
    if (!r->log || !r->log[0])
        return ST_OK;
    status_t st = h5_make_group(cell, "log", &group);
    if (st == ST_OK)
        st = h5_put_document(group, "stderr", r->log, "end of the worker's stderr");
    h5_close(group);
    return st;
}

static status_t read_log(hid_t cell, struct result *r)
{
    hid_t group = H5I_INVALID_HID;
    bool  found;
    TRY(h5_find_group(cell, "log", &group));
    status_t st = group < 0 ? ST_OK : h5_get_document(group, "stderr", &r->log, &found);
    h5_close(group);
    return st;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

status_t schema_check(hid_t where, const char *schema, const char *version, bool *newer)
{
    char found_schema[64] = "", found_version[32] = "";
    bool found;
    TRY(h5_get_chars(where, "schema", found_schema, sizeof found_schema, &found));
    if (!found || strcmp(found_schema, schema) != 0)
        return FAIL(ST_EINPUT, "%s: not a %s file (schema \"%s\")", h5_label(), schema, found_schema);
    TRY(h5_get_chars(where, "schema_version", found_version, sizeof found_version, NULL));
    int major = -1, minor = -1, our_major = 0, our_minor = 0;
    sscanf(version, "%d.%d", &our_major, &our_minor);
    if (sscanf(found_version, "%d.%d", &major, &minor) != 2 || major != our_major)
        return FAIL(ST_EINPUT, "%s: schema version %s, this qsweep reads %d.x", h5_label(), found_version, our_major);
    *newer = minor > our_minor;
    return ST_OK;
}

status_t cell_group_write(hid_t group, const struct result *r)
{
    char label[96];
    bool known = r->cell.model != NULL;
    cell_label(&r->cell, label, sizeof label);
    TRY(h5_put_text(group, "schema", SCHEMA_NAME));
    TRY(h5_put_text(group, "schema_version", SCHEMA_VERSION));
    TRY(h5_put_text(group, "id", r->cell.id));
    TRY(h5_put_text(group, "status", cell_status_name(r->status)));
    TRY(h5_put_text(group, "reason", r->reason));
    TRY(h5_put_text(group, "label", known ? label : "unknown"));
    if (known)
        TRY(write_config(group, &r->cell));
    if (r->status == CELL_PENDING || !known)
        return ST_OK; /* a row that only says what was planned */
    TRY(write_provenance(group, r));
    TRY(write_memory(group, r));
    TRY(rows_write(group, &sample_rows, r->samples, r->n_samples));
    TRY(write_frames(group, r));
    TRY(rows_write(group, &trace_rows, r->trace, r->n_trace));
    TRY(write_quality(group, r));
    return write_log(group, r);
}

static status_t read_head(hid_t group, bool *newer, struct result *r, char id[33])
{
    char status[32];
    int  code;
    bool found;
    TRY(schema_check(group, SCHEMA_NAME, SCHEMA_VERSION, newer));
    TRY(h5_get_chars(group, "id", id, 33, NULL));
    TRY(h5_get_chars(group, "status", status, sizeof status, NULL));
    TRY(h5_get_text(group, "reason", &r->reason, &found));
    code = cell_status_parse(status);
    if (code < 0)
        return FAIL(ST_EINPUT, "%s: status \"%s\" is unknown", h5_label(), status);
    r->status = (enum cell_status)code;
    return ST_OK;
}

static bool is_memory_column(const char *name)
{
    return strcmp(name, "phase") == 0 || strcmp(name, "pss_bytes") == 0;
}

/* What bench/summary.c looks at, and steps, which steps are checked with. */
static bool is_summary_column(const char *name)
{
    static const char *const names[] = {"frames",         "prefill_ms", "decode_ms", "codec_ms", "latency_ms",
                                        "first_audio_ms", "audio_s",    "energy_j",  "throttle", "steps"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static status_t read_parts(hid_t group, unsigned parts, struct result *r)
{
    bool  newer;
    char  id[33];
    void *rows;
    TRY(read_head(group, &newer, r, id));
    TRY(read_config(group, newer, r->status == CELL_INVALID, &r->cell));
    memcpy(r->cell.id, id, sizeof id); /* of a newer version: computed from more than we know */
    TRY(read_provenance(group, parts, r));
    TRY(read_memory(group, r));
    if (parts & (CELL_SAMPLES | CELL_SUMMARY)) {
        rows = NULL;
        TRY(rows_read(group, &sample_rows, parts & CELL_SAMPLES ? NULL : is_summary_column, &rows, &r->n_samples));
        r->samples = rows;
    }
    TRY(read_frames(group, parts, r));
    if (parts & (CELL_TRACE | CELL_SUMMARY)) {
        rows = NULL;
        TRY(rows_read(group, &trace_rows, parts & CELL_TRACE ? NULL : is_memory_column, &rows, &r->n_trace));
        r->trace = rows;
    }
    if (parts & CELL_QUALITY) {
        rows = NULL;
        TRY(rows_read(group, &quality_rows, NULL, &rows, &r->n_quality));
        r->quality = rows;
        TRY(read_quality_details(group, r));
    }
    return parts & CELL_LOG ? read_log(group, r) : ST_OK;
}

status_t cell_group_read(hid_t group, unsigned parts, struct result *out)
{
    result_init(out);
    status_t st = read_parts(group, parts, out);
    if (st != ST_OK)
        result_free(out);
    return st;
}
