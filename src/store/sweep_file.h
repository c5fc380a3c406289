/* sweep_file.h — sweep.h5: all cells of a sweep copied into one file, with a summary row each. */
#ifndef QSWEEP_STORE_SWEEP_FILE_H
#define QSWEEP_STORE_SWEEP_FILE_H

#include "bench/result.h"

struct sweep_meta {
    const char  *job_text;   /* the job file as read, or NULL: kept from <dir>/plan.json           */
    const char  *command;
    const struct cell *plan; /* planned cells: those without a file get a row of status pending    */
    size_t       n_plan;
};

/* Merge every cell file below dir/cells into path (temporary name, fsync, rename). A planned cell without a readable
 * file is a row `pending` (or `invalid` with the reason if its file is broken). Deterministic: same inputs, same bytes
 * but for file_time. *n_ok counts the cells with status ok. meta may be NULL: the plan is read from dir/plan.json. */
status_t sweep_file_merge(const char *dir, const char *path, const struct sweep_meta *meta, size_t *n_ok,
                          size_t *n_rows);

/* One row of /summary. NaN / UINT64_MAX where n does not support a value; notes says why. */
struct summary_row {
    char   id[33], status[16], precision[16], kv[8], head[12], engine[12], codec[8], device[64], sampling[8], label[96];
    char   notes[256];
    int    batch, context, max_seq_len, samples, errors;
    double vram_baseline_mb, vram_peak_mb, rss_peak_mb, pss_peak_mb;
    double latency_mean_s, latency_std_s, latency_p50_s, latency_p95_s, latency_p99_s;
    double rtf, throughput_x_realtime, tokens_per_s_reference, frames_per_s, step_ms_p50, prefill_ms_mean;
    double audio_s_mean, warmup_s, load_s, first_frame_s, energy_j_per_frame, step_bytes, bandwidth_gb_s, nucleus;
};
void summary_from_result(const struct result *r, struct summary_row *out);

struct sweep_file;
status_t sweep_file_open(const char *path, struct sweep_file **out);
void     sweep_file_close(struct sweep_file *f); /* NULL is accepted */
size_t   sweep_file_rows(const struct sweep_file *f);
const struct summary_row *sweep_file_row(const struct sweep_file *f, size_t i);
/* A whole cell back (samples, steps, trace); the caller frees it with result_free(). */
status_t sweep_file_cell(const struct sweep_file *f, const char *id, struct result *out);

#endif
