/* export.c — `qsweep export`: one result JSON a precision, with the keys and formulas of the benchmark that this
 * program replaces, and our own counted values beside them. */
#include "bench/summary_print.h"
#include "cmd/command.h"
#include "cmd/guard.h"
#include "store/atomic_file.h"
#include "store/sweep_file.h"

#include <ctype.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help_text[] =
    "usage: qsweep export SWEEP DIR\n"
    "\n"
    "Writes DIR/bf16_results.json, DIR/int8_results.json, … : one file for each precision in the sweep. Each\n"
    "describes one cell (named in cell_id): the one with the smallest batch and context, ok before failed. The\n"
    "keys of the Fish-Speech comparison scripts are always there and use their formulas (tokens are\n"
    "floor(21.5 * audio), ratios are ratios of means, the deviation is the population's); counted values stand\n"
    "beside them (frames_per_s, …), all cells of the precision under `cells`. What was not measured is null, and\n"
    "`notes` says why. Prints the names of the files.\n"
    "\n"
    "examples\n"
    "  qsweep export results/compare/sweep.h5 results/compare\n";

static bool is_ok(const struct summary_row *row)
{
    return strcmp(row->status, "ok") == 0;
}

static int64_t precision_of(const struct summary_row *row)
{
    return summary_axis(row, "precision").i;
}

/* The cell that a file describes; rows come in summary order, so equals keep their first. */
static const struct summary_row *headline(const struct sweep_file *f, int64_t precision)
{
    const struct summary_row *best = NULL;
    for (size_t i = 0; i < sweep_file_rows(f); i++) {
        const struct summary_row *row = sweep_file_row(f, i);
        if (precision_of(row) != precision)
            continue;
        int64_t key[3], kept[3];
        for (int k = 0; k < 2 && best; k++) {
            const struct summary_row *of = k ? best : row;
            int64_t                  *to = k ? kept : key;
            to[0] = !is_ok(of);
            to[1] = summary_axis(of, "batch").i;
            to[2] = summary_axis(of, "context").i;
        }
        if (!best || key[0] < kept[0] ||
            (key[0] == kept[0] && (key[1] < kept[1] || (key[1] == kept[1] && key[2] < kept[2]))))
            best = row;
    }
    return best;
}

static void config_name(const struct summary_row *row, char *out, size_t size)
{
    char precision[FIELD_TEXT_MAX], device[FIELD_TEXT_MAX];
    int  p = field_find("precision"), d = field_find("device");
    field_format(&cell_fields[p], row->axes[p], precision);
    field_format(&cell_fields[d], row->axes[d], device);
    for (char *c = precision; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    snprintf(out, size, "%s%s (%s%s%s)", precision, row->prequantized ? " pre-quantized" : "", device,
             row->engine_used[0] ? ", " : "", row->engine_used);
}

/* A number, or null and a note on why there is none. */
static void put_number(json_t *object, json_t *notes, const char *key, double value, const char *why)
{
    json_object_set_new(object, key, isfinite(value) ? json_real(value) : json_null());
    if (!isfinite(value))
        json_object_set_new(notes, key, json_string(why));
}

static void put_percentile(json_t *object, json_t *notes, const char *key, double value, int needs,
                           const struct summary_row *row, const char *why)
{
    char note[128];
    snprintf(note, sizeof note, "needs %d samples, n = %" PRId64, needs, row->n_samples);
    put_number(object, notes, key, value, row->n_samples ? note : why);
}

static void put_reference_keys(json_t *object, json_t *notes, const struct summary_row *row, const char *model)
{
    char name[192], why[320];
    config_name(row, name, sizeof name);
    snprintf(why, sizeof why, "not measured: the cell is %s%s%s", row->status, row->reason[0] ? ": " : "", row->reason);
    json_object_set_new(object, "config_name", json_string(name));
    json_object_set_new(object, "checkpoint_path", json_string(model));
    json_object_set_new(object, "is_prequantized", json_boolean(row->prequantized));
    put_number(object, notes, "vram_baseline_mb", row->vram_baseline_mb, why);
    put_number(object, notes, "vram_peak_mb", row->vram_peak_mb, why);
    put_number(object, notes, "warmup_time_s", row->warmup_s, why);
    put_number(object, notes, "avg_latency_s", row->latency_mean_s, why);
    put_number(object, notes, "std_latency_s", row->latency_std_s, why);
    put_percentile(object, notes, "p50_latency_s", row->latency_p50_s, 2, row, why);
    put_percentile(object, notes, "p95_latency_s", row->latency_p95_s, 20, row, why);
    put_percentile(object, notes, "p99_latency_s", row->latency_p99_s, 100, row, why);
    put_number(object, notes, "avg_rtf", row->rtf, why);
    put_number(object, notes, "tokens_per_sec", row->tokens_per_s_reference, why);
    put_number(object, notes, "throughput_x_realtime", row->throughput_x_realtime, why);
    put_number(object, notes, "audio_per_hour", 3600 * row->throughput_x_realtime, why);
    json_object_set_new(object, "samples_tested", json_integer(row->n_samples));
    json_object_set_new(object, "errors", json_integer(row->errors));
}

/* Our own columns under their own names, where the reference's keys leave them free. */
static void put_own_columns(json_t *object, json_t *notes, const struct summary_row *row)
{
    json_t     *all = summary_to_json(row), *value;
    const char *key;
    json_object_set_new(object, "cell_id", json_string(row->id));
    json_object_foreach(all, key, value)
    {
        if (strcmp(key, "id") == 0 || strcmp(key, "notes") == 0 || json_object_get(object, key))
            continue;
        json_object_set(object, key, value);
    }
    if (row->notes[0])
        json_object_set_new(notes, "cell", json_string(row->notes));
    json_decref(all);
}

static json_t *cells_of(const struct sweep_file *f, int64_t precision)
{
    json_t *cells = json_array();
    for (size_t i = 0; i < sweep_file_rows(f); i++)
        if (precision_of(sweep_file_row(f, i)) == precision)
            json_array_append_new(cells, summary_to_json(sweep_file_row(f, i)));
    return cells;
}

static status_t write_json(const char *path, const json_t *object)
{
    char *text = json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    if (!text)
        return FAIL(ST_ENOMEM, "%s: no memory for its JSON", path);
    struct piece pieces[] = {{text, strlen(text)}, {"\n", 1}};
    status_t     st = atomic_write(path, pieces, 2);
    free(text);
    return st;
}

static status_t export_precision(const struct sweep_file *f, int64_t precision, const char *dir)
{
    const struct summary_row *row = headline(f, precision);
    struct result             r;
    char                      path[4400];
    if (!row)
        return ST_OK;
    TRY(sweep_file_cell(f, row->id, &r));
    json_t *object = json_object(), *notes = json_object(), *cells = cells_of(f, precision);
    put_reference_keys(object, notes, row, r.cell.model ? r.cell.model : "");
    put_own_columns(object, notes, row);
    json_object_set_new(object, "notes", notes);
    json_object_set_new(object, "cells", cells);
    snprintf(path, sizeof path, "%s/%s_results.json", dir, precision_name((enum precision)precision));
    status_t st = write_json(path, object);
    if (st == ST_OK)
        puts(path);
    json_decref(object);
    result_free(&r);
    return st;
}

static int export_all(void *context)
{
    char             **paths = context; /* the sweep, the folder */
    struct sweep_file *f;
    char               inside[4400];
    status_t           st = sweep_file_open(paths[0], &f);
    if (st != ST_OK)
        return status_exit(st);
    snprintf(inside, sizeof inside, "%s/x", paths[1]);
    st = atomic_make_folder(inside);
    for (int64_t precision = 0; precision < PRECISION_COUNT && st == ST_OK; precision++)
        st = export_precision(f, precision, paths[1]);
    sweep_file_close(f);
    return status_exit(st);
}

static int export(int argc, char **argv)
{
    static const struct option options[] = {{0}};
    if (getopt_long(argc, argv, "", options, NULL) != -1)
        return 2;
    if (optind + 2 != argc) {
        fputs("usage: qsweep export SWEEP DIR; `qsweep help export` explains\n", stderr);
        return 2;
    }
    const char *file = argv[optind];
    return guarded(&file, 1, export_all, argv + optind);
}

const struct command command_export = {
    .name = "export",
    .summary = "result JSONs with the reference's keys",
    .help = help_text,
    .run = export,
};
