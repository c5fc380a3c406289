/* sweep_file.h — sweep.h5: all cells of a sweep copied into one file, with a summary row each. */
#ifndef QSWEEP_STORE_SWEEP_FILE_H
#define QSWEEP_STORE_SWEEP_FILE_H

#include "bench/result.h"
#include "bench/summary.h"

#include <stdbool.h>

#define SWEEP_SCHEMA_NAME "qsweep-sweep"
#define SWEEP_SCHEMA_VERSION "1.0.0"

/* ---- writing: merge ---------------------------------------------------------------------------------------------- */

/* What a caller that holds the plan says about a folder; everything may be NULL or 0. */
struct sweep_meta {
    const char        *job_text; /* the job file as read                                                     */
    const char        *command;
    const struct cell *plan; /* planned cells: those without a file get a row of status pending          */
    size_t             n_plan;
    const char *const *invalid; /* [n_plan] NULL, or why a cell cannot run: then its row is invalid, or NULL */
};

/* inputs: folders that hold cells/ (and plan.json, progress.jsonl), or merged files. The best result of a cell wins:
 * ok before failed before damaged before pending, then the later one. */
struct merge_request {
    const char *const       *inputs;
    size_t                   n_inputs;
    const char              *output;
    const struct sweep_meta *meta;  /* NULL: plan and job text are read from plan.json of every folder   */
    bool                     fresh; /* build anew even where the existing output could be extended       */
};
struct merge_report {
    size_t rows, by_status[CELL_STATUS_COUNT];
    size_t damaged;   /* cell files that could not be read: rows of status invalid with the reason */
    size_t reused;    /* cells taken over from the existing output                                 */
    bool   unchanged; /* the output already held exactly this and was left alone                   */
};

/* Every planned cell and every cell file becomes a row; none is lost, none is zeros. Writes a temporary file, fsyncs,
 * renames. The same inputs give the same content; built fresh, the same bytes but for file_time and the seal.
 * ST_EIO when an input cannot be listed or the output cannot be written; an existing output that is no sweep is refused
 * with ST_EINPUT. */
status_t sweep_file_merge_all(const struct merge_request *request, struct merge_report *report);

/* The usual case: one folder. *n_ok counts rows of status ok; either count may be NULL. */
status_t sweep_file_merge(const char *dir, const char *path, const struct sweep_meta *meta, size_t *n_ok,
                          size_t *n_rows);

/* ---- reading ----------------------------------------------------------------------------------------------------- */

struct sweep_file;
/* Reads /summary of a merged file, or of sweep.h5 in a folder. ST_EINPUT for a damaged or changed file (up to 1 GiB by
 * its checksum, above by its size alone) or another schema. Rows are in summary_order. */
status_t                  sweep_file_open(const char *path, struct sweep_file **out);
/* The same for a file whose checksum no longer fits, because its owner annotated it or because it is damaged. */
status_t                  sweep_file_open_changed(const char *path, struct sweep_file **out);
void                      sweep_file_close(struct sweep_file *f); /* NULL is accepted */
size_t                    sweep_file_rows(const struct sweep_file *f);
const struct summary_row *sweep_file_row(const struct sweep_file *f, size_t i);
/* A whole cell back (samples, steps, trace); the caller frees it with result_free(). */
status_t                  sweep_file_cell(const struct sweep_file *f, const char *id, struct result *out);
/* The job text(s); "" when the folder had none. Owned by f. */
const char               *sweep_file_job(const struct sweep_file *f);

/* Compare every cell with what the inputs hold now: each cell file is read again, checksums and all. ST_EINPUT names
 * the first cell that differs. */
status_t sweep_file_verify(const char *path, const char *const *inputs, size_t n_inputs, size_t *n_compared);

#endif
