/* job.h — a job file: what to measure, as YAML text turned into checked structs.
 *
 * Grammar (job_help holds it for people):
 *   scalar   precision: int8            one value
 *   list     precision: [bf16, int8]    each value; elements may be ranges
 *   range    1..64*2  1..10+3  1..4     first..last, both included, times or plus a step (plus 1 without)
 *   sweep    a map of axes: their product, or the zip of those named in `zip:`, filtered by `where:`;
 *            or a list of such maps: one after another
 * Every value of a cell may be an axis; outside sweep: it is a constant. Reading is pure: bytes in, struct out. Aliases,
 * tags, duplicate keys, documents after the first and nesting deeper than JOB_DEPTH_MAX are refused. */
#ifndef QSWEEP_SWEEP_JOB_H
#define QSWEEP_SWEEP_JOB_H

#include "sweep/cell.h"

enum { JOB_BYTES_MAX = 1 << 20, JOB_DEPTH_MAX = 12, JOB_PATH_MAX = 4096 };

enum share_mode { SHARE_AUTO, SHARE_NONE, SHARE_SHARD, SHARE_SHARED, SHARE_COUNT };
enum order_mode { ORDER_INTERLEAVED, ORDER_RANDOM, ORDER_GIVEN, ORDER_COUNT };
enum schedule_mode { SCHEDULE_STATIC, SCHEDULE_DYNAMIC, SCHEDULE_COUNT };
/* A GPU that others use as well: measure and mark the cell contaminated, wait (then a row without a measurement), or measure
 * as if nothing was. */
enum foreign_mode { FOREIGN_MARK, FOREIGN_WAIT, FOREIGN_IGNORE, FOREIGN_COUNT };

/* What a job says that is not about one cell. Plain bytes without pointers: rank 0 may broadcast it as it is. */
struct job_options {
    char               output[JOB_PATH_MAX]; /* folder for results; "results/<name of the job file>" by default */
    enum share_mode    share;
    enum order_mode    order;
    enum schedule_mode schedule;
    bool               parallel; /* cells of one CPU node (or of ranks that share a GPU) side by side */
    bool               share_gpus; /* more ranks than GPUs on a host: they use one in turns */
    enum foreign_mode  foreign;
    double             foreign_wait_s;  /* how long a GPU may stay occupied; < 0: the mode's default (gpu_guard.h) */
    char               gpu_name[64];    /* part of the name of GPUs that CUDA cells may use, "" = any          */
    uint64_t           gpu_memory;      /* bytes that such a GPU has at least                                 */
    bool               each_model;      /* every CUDA cell once for each model of GPU in the run              */
    uint64_t           seed;     /* of the order; the cells' noise has the same seed unless it is an axis */
};

const char *share_mode_name(enum share_mode m);       /* "auto", "none", "shard", "shared" */
const char *order_mode_name(enum order_mode m);       /* "interleaved", "random", "given" */
const char *schedule_mode_name(enum schedule_mode m); /* "static", "dynamic" */
const char *foreign_mode_name(enum foreign_mode m);   /* "mark", "wait", "ignore" */

struct job;

/* Where texts: {file: PATH} come from: bytes malloc'ed by read, path as the job has it. read may be NULL: refused. */
struct job_files {
    status_t (*read)(void *ctx, const char *path, char **bytes, size_t *size);
    void *ctx;
};

/* Parse and check size bytes of YAML. set [n_set]: "dotted.key=YAML value", applied before anything is checked; a
 * constant set this way also pins an axis of the same name. Messages begin "label:line: key". ST_EINPUT for what is
 * wrong in the text, ST_EUSAGE for what is wrong in set. */
status_t job_parse(const char *yaml, size_t size, const char *label, const char *const *set, int n_set,
                   const struct job_files *files, struct job **out);
/* The same from a file; texts: {file: PATH} is relative to the folder of the job file. (job_file.c) */
status_t job_load(const char *path, const char *const *set, int n_set, struct job **out);
void     job_close(struct job *j); /* NULL is accepted */

const struct job_options *job_options(const struct job *j);
/* The job file as read, for the record, and its name. */
const char *job_text(const struct job *j);
const char *job_label(const struct job *j);
/* Distinct model directories [*n], in the order of the file: what the caller fingerprints for plan_build(). */
const char *const *job_models(const struct job *j, int *n);

/* Directory of a copy of the (one) model that is already in this precision, or NULL: its cells read it instead, under
 * the fingerprint of the model itself, so they are the cells that quantize at load. The caller checks that the copy was
 * made from that model. */
const char *job_prequantized(const struct job *j, enum precision p);

/* What `qsweep help run` prints about job files: the grammar, every key with its values and default. malloc'ed. */
status_t job_help(char **text);

#endif
