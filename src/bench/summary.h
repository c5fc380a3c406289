/* summary.h — one row for one cell: its axes, how it ended, and the figures derived from its samples.
 *
 * The columns are a table: files, CSV, JSON and `show --definitions` all walk it, and each column carries the definition
 * by which it was computed. Axes come from sweep's field table, so a new axis becomes a column without a line here. */
#ifndef QSWEEP_BENCH_SUMMARY_H
#define QSWEEP_BENCH_SUMMARY_H

#include "bench/result.h"
#include "sweep/field.h"

#include <stdio.h>

/* Numbers are NaN where nothing was measured or n does not carry the figure; notes says why. MB are 10⁶ bytes. */
struct summary_row {
    char              id[33], status[16], label[96], fingerprint[33];
    char              place[64], device_name[96], gpu[96], host[64], engine_used[16];
    char              reason[256], notes[160];
    union field_value axes[FIELD_COUNT]; /* in the order of cell_fields */
    int64_t           n_texts, n_samples, errors, prequantized, attempt, started_ns;
    double            vram_baseline_mb, vram_peak_mb, process_ready_mb, process_peak_mb, device_ready_mb, device_peak_mb;
    double            pss_peak_mb, weights_mb, kv_mb;
    double            latency_mean_s, latency_std_s, latency_min_s, latency_max_s;
    double            latency_p50_s, latency_p95_s, latency_p99_s;
    double            rtf, throughput_x_realtime, tokens_per_s_reference, frames_per_s, decode_frames_per_s;
    double            step_ms_mean, step_ms_p50, step_ms_p95, step_ms_p99, prefill_ms_mean, codec_ms_mean;
    double            first_audio_ms_mean, audio_s_mean;
    double            warmup_s, load_s, first_frame_s, total_s;
    double            energy_j_per_frame, step_bytes, bandwidth_gb_s, nucleus;
};

/* Derive the row. Samples without audio count as errors and are left out of every figure, as the reference does. */
status_t summary_from_result(const struct result *r, struct summary_row *out);

/* ---- columns ----------------------------------------------------------------------------------------------------- */

enum summary_kind { SUMMARY_TEXT, SUMMARY_INT, SUMMARY_REAL, SUMMARY_AXIS };
struct summary_column {
    const char         *name, *units, *definition;
    enum summary_kind   kind;
    size_t              offset, size; /* in struct summary_row; size in bytes                     */
    const struct field *field;        /* SUMMARY_AXIS: which, else NULL                           */
};
size_t                summary_column_count(void);
struct summary_column summary_column(size_t i);
long                  summary_column_find(const char *name); /* or -1 */

/* Value of an axis by its name ("batch"); names that are no axis are our own bug. */
union field_value summary_axis(const struct summary_row *row, const char *name);

/* Text of a value as CSV has it: numbers with at most 15 significant digits, "" for NaN. out: at least 260 bytes. */
void summary_value_text(const struct summary_row *row, const struct summary_column *c, char *out, size_t size);

/* Order for people: by axes (device, precision, KV format, batch, context, …), then id. Both orders are for qsort. */
enum { SUMMARY_KEY_AXES = 12 };
struct summary_key {
    int64_t  axis[SUMMARY_KEY_AXES];
    char     id[33];
    uint32_t index; /* the caller's number for the row */
};
void summary_key(const struct summary_row *row, uint32_t index, struct summary_key *out);
int  summary_key_order(const void *a, const void *b); /* of struct summary_key */
int  summary_order(const void *a, const void *b);     /* of struct summary_row */

#endif
