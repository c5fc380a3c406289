#include "store/cell_group.h"

#include "store/cell_file.h"
#include "sweep/field.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One column of one kind of row: where it lies in the struct, how in the file, in which unit. */
enum member {
    M_INT,
    M_I64,
    M_U64,
    M_SIZE,
    M_F64,
    M_BYTES /* uint64, UINT64_MAX = unknown; float64 with NaN in files */
};
struct column {
    const char *name, *units, *long_name;
    size_t      offset;
    enum member member;
    const char *meanings; /* of the codes 0, 1, … */
};
struct row_kind {
    const char          *group;
    size_t               row_size;
    const struct column *columns;
    size_t               n_columns;
};

#define COLUMN(type, field, name, member, units, long_name)                                                            \
    {                                                                                                                  \
        name, units, long_name, offsetof(struct type, field), member, NULL                                             \
    }
#define CODES(type, field, name, long_name, meanings)                                                                  \
    {                                                                                                                  \
        name, "1", long_name, offsetof(struct type, field), M_INT, meanings                                            \
    }

static const struct column sample_columns[] = {
    COLUMN(sample, text, "text", M_INT, "1", "index of the text"),
    COLUMN(sample, repeat, "repeat", M_INT, "1", "repeat of the text"),
    COLUMN(sample, process, "process", M_INT, "1", "index of the fresh process"),
    COLUMN(sample, seed, "seed", M_U64, "1", "seed of the sampler's noise"),
    COLUMN(sample, order, "order", M_INT, "1", "position in the order in which samples ran"),
    COLUMN(sample, prompt_tokens, "prompt_tokens", M_INT, "1", "columns of one prompt"),
    COLUMN(sample, frames, "frames", M_INT, "1", "frames decoded over the batch, im_end frames included"),
    CODES(sample, stop, "stop", "why the sample ended", "length im_end cache_full"),
    COLUMN(sample, prefill_ms, "prefill_ms", M_F64, "ms", "time of the prefill"),
    COLUMN(sample, decode_ms, "decode_ms", M_F64, "ms", "time of all decode steps"),
    COLUMN(sample, codec_ms, "codec_ms", M_F64, "ms", "time of the codec"),
    COLUMN(sample, latency_ms, "latency_ms", M_F64, "ms", "time of the whole request"),
    COLUMN(sample, first_audio_ms, "first_audio_ms", M_F64, "ms", "time to the first audio, NaN when not measured"),
    COLUMN(sample, audio_s, "audio_s", M_F64, "s", "audio produced over the batch"),
    COLUMN(sample, energy_j, "energy_j", M_F64, "J", "energy of the device, NaN without a counter"),
    COLUMN(sample, sm_clock_mhz, "sm_clock_mhz", M_F64, "MHz", "mean SM clock, NaN when unknown"),
    COLUMN(sample, throttle, "throttle", M_U64, "1", "OR of the NVML clock event reasons seen"),
    COLUMN(sample, codes_hash, "codes_hash", M_U64, "1", "XXH3-64 of all frames"),
    COLUMN(sample, t0_ns, "t0_ns", M_I64, "ns", "start, monotonic clock of the host"),
    COLUMN(sample, steps, "steps", M_INT, "1", "rows of frames/step_ms"),
};
static const struct column trace_columns[] = {
    COLUMN(trace_point, t_ns, "t_ns", M_I64, "ns", "time since the worker's start"),
    COLUMN(trace_point, device_used, "device_used_bytes", M_BYTES, "byte",
           "memory used on the device, NaN when unknown"),
    COLUMN(trace_point, process_used, "process_used_bytes", M_BYTES, "byte",
           "memory of the process on the device (NVML) or its RSS (CPU), NaN when unknown"),
    COLUMN(trace_point, pss, "pss_bytes", M_BYTES, "byte",
           "proportional set size of the process (CPU), NaN when unknown"),
    COLUMN(trace_point, arena, "arena_bytes", M_BYTES, "byte", "bytes of our own allocator"),
    CODES(trace_point, phase, "phase", "phase of the worker", "context load ready warmup measure done"),
    COLUMN(trace_point, sm_clock_mhz, "sm_clock_mhz", M_F64, "MHz", "SM clock, NaN when not sampled"),
    COLUMN(trace_point, mem_clock_mhz, "mem_clock_mhz", M_F64, "MHz", "memory clock, NaN when not sampled"),
    COLUMN(trace_point, power_mw, "power_mw", M_F64, "mW", "power draw, NaN when not sampled"),
    COLUMN(trace_point, temperature_c, "temperature_c", M_F64, "degC", "temperature, NaN when not sampled"),
    COLUMN(trace_point, throttle, "throttle", M_U64, "1", "NVML clock event reasons"),
};
static const struct column quality_columns[] = {
    COLUMN(quality_row, codebook, "codebook", M_INT, "1", "0 is the semantic token, c the residual codebook c, -1 all alike"),
    COLUMN(quality_row, n, "n", M_INT, "1", "positions compared"),
    COLUMN(quality_row, kl_mean, "kl_mean", M_F64, "1", "mean KL divergence from the reference precision, nat"),
    COLUMN(quality_row, kl_p99, "kl_p99", M_F64, "1", "99th percentile of the KL divergence, nat"),
    COLUMN(quality_row, kl_max, "kl_max", M_F64, "1", "largest KL divergence, nat"),
    COLUMN(quality_row, top1, "top1", M_F64, "1", "share of positions with the reference's most likely token"),
    COLUMN(quality_row, rms_dp, "rms_dp", M_F64, "1", "RMS change of the probability of the reference's token"),
    COLUMN(quality_row, nll, "nll", M_F64, "1", "negative log likelihood, nat per token"),
    COLUMN(quality_row, nll_ref, "nll_ref", M_F64, "1", "the same of the reference precision"),
    COLUMN(quality_row, kl_low, "kl_low", M_F64, "1", "lower end of the 95 % interval of kl_mean, nat"),
    COLUMN(quality_row, kl_high, "kl_high", M_F64, "1", "upper end of the 95 % interval of kl_mean, nat"),
    COLUMN(quality_row, nll_low, "nll_low", M_F64, "1", "lower end of the 95 % interval of nll - nll_ref, nat"),
    COLUMN(quality_row, nll_high, "nll_high", M_F64, "1", "upper end of the 95 % interval of nll - nll_ref, nat"),
};
static const struct column quality_text_columns[] = {
    COLUMN(quality_text, text, "text", M_INT, "1", "index of the text"),
    COLUMN(quality_text, frames, "frames", M_INT, "1", "frames decoded by the reference precision"),
    COLUMN(quality_text, diverged, "diverged", M_INT, "1",
           "first frame that differs when decoding freely under the same noise, -1 when none does"),
};
static const struct column quality_linear_columns[] = {
    COLUMN(quality_linear, products, "products", M_INT, "1", "output vectors compared"),
    COLUMN(quality_linear, weight_sqnr_db, "weight_sqnr_db", M_F64, "1",
           "ratio of weights to their quantization error, dB, NaN when there is none"),
    COLUMN(quality_linear, output_sqnr_db, "output_sqnr_db", M_F64, "1",
           "ratio of outputs to their difference for the same inputs, dB, NaN when there is none"),
};
#define ROWS(group, type, columns)                                                                                     \
    {                                                                                                                  \
        group, sizeof(struct type), columns, sizeof columns / sizeof *columns                                          \
    }
static const struct row_kind sample_rows = ROWS("samples", sample, sample_columns);
static const struct row_kind trace_rows = ROWS("trace", trace_point, trace_columns);
static const struct row_kind quality_rows = ROWS("quality", quality_row, quality_columns);
static const struct row_kind quality_text_rows = ROWS("quality_texts", quality_text, quality_text_columns);
static const struct row_kind quality_linear_rows = ROWS("quality_linears", quality_linear, quality_linear_columns);

static enum h5_kind file_kind(enum member m)
{
    return m == M_INT ? H5_I32 : m == M_I64 ? H5_I64 : m == M_U64 || m == M_SIZE ? H5_U64 : H5_F64;
}

/* ---- rows ↔ columns ---------------------------------------------------------------------------------------------- */

static void gather(const struct column *c, const char *rows, size_t row_size, size_t n, void *out)
{
    for (size_t i = 0; i < n; i++) {
        const char *at = rows + i * row_size + c->offset;
        if (c->member == M_INT)
            memcpy((int32_t *)out + i, at, sizeof(int32_t));
        else if (c->member == M_BYTES) {
            uint64_t bytes;
            memcpy(&bytes, at, sizeof bytes);
            ((double *)out)[i] = bytes == UINT64_MAX ? NAN : (double)bytes;
        } else
            memcpy((int64_t *)out + i, at, sizeof(int64_t));
    }
}

static uint64_t bytes_of(double value)
{
    return value >= 0 && value < 0x1p63 ? (uint64_t)value : UINT64_MAX;
}

static void scatter(const struct column *c, const void *in, size_t n, char *rows, size_t row_size)
{
    for (size_t i = 0; i < n; i++) {
        char *at = rows + i * row_size + c->offset;
        if (c->member == M_INT)
            memcpy(at, (const int32_t *)in + i, sizeof(int32_t));
        else if (c->member == M_BYTES) {
            uint64_t bytes = bytes_of(((const double *)in)[i]);
            memcpy(at, &bytes, sizeof bytes);
        } else
            memcpy(at, (const int64_t *)in + i, sizeof(int64_t));
    }
}

/* The value of a column that a file does not have: unknown where the kind can say so, else 0. */
static void fill_unknown(const struct column *c, size_t n, void *out)
{
    for (size_t i = 0; i < n; i++)
        if (c->member == M_INT)
            ((int32_t *)out)[i] = 0;
        else if (c->member == M_F64 || c->member == M_BYTES)
            ((double *)out)[i] = NAN;
        else
            ((int64_t *)out)[i] = 0;
}

static status_t write_rows(hid_t cell, const struct row_kind *kind, const void *rows, size_t n)
{
    if (n == 0)
        return ST_OK;
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID;
    void    *scratch = malloc(n * 8);
    if (!scratch)
        return FAIL(ST_ENOMEM, "%s: no memory for a column of %zu rows", h5_label(), n);
    TRY_OUT(h5_make_group(cell, kind->group, &group));
    for (size_t i = 0; i < kind->n_columns; i++) {
        const struct column *c = &kind->columns[i];
        gather(c, rows, kind->row_size, n, scratch);
        TRY_OUT(h5_put_column(group, c->name, file_kind(c->member), scratch, n, c->units, c->long_name, c->meanings));
    }
out:
    free(scratch);
    h5_close(group);
    return st;
}

/* Rows of a group are counted by its first column, which every version has. *rows is malloc'ed with n rows, zeroed. */
static status_t read_rows(hid_t cell, const struct row_kind *kind, bool (*wanted)(const char *), void **rows, size_t *n)
{
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID;
    void    *scratch = NULL, *made = NULL;
    size_t   count = 0;
    bool     found = false;
    TRY(h5_find_group(cell, kind->group, &group));
    if (group < 0)
        return ST_OK;
    TRY_OUT(h5_column_rows(group, kind->columns[0].name, &count, &found));
    if (!found)
        st = FAIL(ST_EINPUT, "%s: group \"%s\" has no column \"%s\"", h5_label(), kind->group, kind->columns[0].name);
    if (st != ST_OK || count == 0)
        goto out;
    scratch = malloc(count * 8);
    made = calloc(result_room(count), kind->row_size);
    if (!scratch || !made) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu rows of \"%s\"", h5_label(), count, kind->group);
        goto out;
    }
    for (size_t i = 0; i < kind->n_columns; i++) {
        const struct column *c = &kind->columns[i];
        found = false;
        if (!wanted || wanted(c->name))
            TRY_OUT(h5_get_column(group, c->name, file_kind(c->member), scratch, count, &found));
        if (!found)
            fill_unknown(c, count, scratch);
        scatter(c, scratch, count, made, kind->row_size);
    }
    *rows = made;
    *n = count;
    made = NULL;
out:
    free(made);
    free(scratch);
    h5_close(group);
    return st;
}

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
    static const char *const others[] = {"id",         "model",    "fingerprint", "place", "keep_audio",
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

static status_t write_scalars(hid_t group, const struct column *columns, size_t n, const struct result *r)
{
    for (size_t i = 0; i < n; i++) {
        double value;
        gather(&columns[i], (const char *)r, sizeof *r, 1, &value);
        TRY(h5_put_real(group, columns[i].name, value));
    }
    return ST_OK;
}

static status_t read_scalars(hid_t group, const struct column *columns, size_t n, struct result *r)
{
    for (size_t i = 0; i < n; i++) {
        double value = NAN;
        bool   found;
        TRY(h5_get_real(group, columns[i].name, &value, &found));
        scatter(&columns[i], &value, 1, (char *)r, sizeof *r);
    }
    return ST_OK;
}

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
    TRY_OUT(write_scalars(group, memory_scalars, sizeof memory_scalars / sizeof *memory_scalars, r));
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
    TRY_OUT(read_scalars(group, memory_scalars, sizeof memory_scalars / sizeof *memory_scalars, r));
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
    TRY_OUT(write_scalars(group, timing_scalars, sizeof timing_scalars / sizeof *timing_scalars, r));
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
    TRY_OUT(read_scalars(group, timing_scalars, sizeof timing_scalars / sizeof *timing_scalars, r));
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
    TRY(write_rows(cell, &quality_rows, r->quality, r->n_quality));
    TRY(write_rows(cell, &quality_text_rows, r->quality_texts, r->n_quality_texts));
    if (r->n_quality_linears == 0)
        return ST_OK;
    TRY(write_rows(cell, &quality_linear_rows, r->quality_linears, r->n_quality_linears));
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
    TRY(read_rows(cell, &quality_text_rows, NULL, &rows, &r->n_quality_texts));
    r->quality_texts = rows;
    rows = NULL;
    TRY(read_rows(cell, &quality_linear_rows, NULL, &rows, &r->n_quality_linears));
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

/* ---- dimension scales ---------------------------------------------------------------------------------------------
 */

/* The scale's entry for one column that it scales (HDF5 dimension scale specification, version 1.1). */
struct scale_user {
    hobj_ref_t dataset;
    int        dimension;
};

/* Attribute `name` [n] of the object `object` in group; one that a copy left behind is replaced. */
static status_t put_vector(hid_t group, const char *object, const char *name, hid_t type, const void *values, size_t n)
{
    status_t st = ST_OK;
    hsize_t  dim = n;
    hid_t    space = H5I_INVALID_HID, attr = H5I_INVALID_HID;
    htri_t   there = H5Aexists_by_name(group, object, name, H5P_DEFAULT);
    TRY_OUT(H5_DO(there));
    if (there)
        TRY_OUT(H5_DO(H5Adelete_by_name(group, object, name, H5P_DEFAULT)));
    TRY_OUT(H5_DO(space = H5Screate_simple(1, &dim, NULL)));
    TRY_OUT(H5_DO(attr = H5Acreate_by_name(group, object, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)));
    TRY_OUT(H5_DO(H5Awrite(attr, type, values)));
out:
    h5_close(attr);
    h5_close(space);
    return st;
}

static status_t make_scale(hid_t group, const char *name)
{
    hid_t  dset = H5I_INVALID_HID;
    htri_t is_scale = H5Aexists_by_name(group, name, "CLASS", H5P_DEFAULT);
    TRY(H5_DO(is_scale));
    if (is_scale)
        return ST_OK;
    TRY(H5_DO(dset = H5Dopen2(group, name, H5P_DEFAULT)));
    status_t st = h5_put_fixed_text(dset, "CLASS", "DIMENSION_SCALE");
    if (st == ST_OK)
        st = h5_put_fixed_text(dset, "NAME", name);
    h5_close(dset);
    return st;
}

/* Scale every other column of `kind` below cell by its column `scale`. */
static status_t attach(hid_t cell, const struct row_kind *kind, const char *scale)
{
    enum { USERS_MAX = 32 };
    status_t          st = ST_OK;
    hid_t             group = H5I_INVALID_HID, list = H5I_INVALID_HID, user = H5I_INVALID_HID;
    struct scale_user users[USERS_MAX];
    hobj_ref_t        scale_ref;
    hvl_t             dimension = {1, &scale_ref};
    size_t            n = 0;
    TRY(h5_find_group(cell, kind->group, &group));
    if (group < 0 || H5Lexists(group, scale, H5P_DEFAULT) <= 0)
        goto out;
    TRY_OUT(H5_DO(H5Rcreate(&scale_ref, group, scale, H5R_OBJECT, -1)));
    TRY_OUT(H5_DO(list = H5Tvlen_create(H5T_STD_REF_OBJ)));
    for (size_t i = 0; i < kind->n_columns && n < USERS_MAX; i++) {
        const char *name = kind->columns[i].name;
        if (strcmp(name, scale) == 0 || H5Lexists(group, name, H5P_DEFAULT) <= 0)
            continue;
        TRY_OUT(H5_DO(H5Rcreate(&users[n].dataset, group, name, H5R_OBJECT, -1)));
        users[n++].dimension = 0;
        TRY_OUT(put_vector(group, name, "DIMENSION_LIST", list, &dimension, 1));
    }
    TRY_OUT(make_scale(group, scale));
    TRY_OUT(H5_DO(user = H5Tcreate(H5T_COMPOUND, sizeof(struct scale_user))));
    TRY_OUT(H5_DO(H5Tinsert(user, "dataset", HOFFSET(struct scale_user, dataset), H5T_STD_REF_OBJ)));
    TRY_OUT(H5_DO(H5Tinsert(user, "dimension", HOFFSET(struct scale_user, dimension), H5T_NATIVE_INT)));
    st = put_vector(group, scale, "REFERENCE_LIST", user, users, n);
out:
    h5_close(user);
    h5_close(list);
    h5_close(group);
    return st;
}

status_t cell_group_attach_scales(hid_t cells, const char *id)
{
    hid_t cell = H5I_INVALID_HID;
    TRY(H5_DO(cell = H5Gopen2(cells, id, H5P_DEFAULT)));
    status_t st = attach(cell, &trace_rows, "t_ns");
    h5_close(cell);
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
    TRY(write_rows(group, &sample_rows, r->samples, r->n_samples));
    TRY(write_frames(group, r));
    TRY(write_rows(group, &trace_rows, r->trace, r->n_trace));
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
                                        "first_audio_ms", "audio_s",    "energy_j",  "steps"};
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
        TRY(read_rows(group, &sample_rows, parts & CELL_SAMPLES ? NULL : is_summary_column, &rows, &r->n_samples));
        r->samples = rows;
    }
    TRY(read_frames(group, parts, r));
    if (parts & (CELL_TRACE | CELL_SUMMARY)) {
        rows = NULL;
        TRY(read_rows(group, &trace_rows, parts & CELL_TRACE ? NULL : is_memory_column, &rows, &r->n_trace));
        r->trace = rows;
    }
    if (parts & CELL_QUALITY) {
        rows = NULL;
        TRY(read_rows(group, &quality_rows, NULL, &rows, &r->n_quality));
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
