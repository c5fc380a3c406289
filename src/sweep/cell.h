/* cell.h — one measurement of a sweep: its axes, its workload, its identity.
 *
 * The id is XXH3-128 over the canonical text (every axis and workload value, the model's fingerprint; no path, host or
 * device index), so the same cell has the same id on every machine. */
#ifndef QSWEEP_SWEEP_CELL_H
#define QSWEEP_SWEEP_CELL_H

#include "base/status.h"
#include "checkpoint/config.h"
#include "model/precision.h"
#include "model/sampler.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bounds of what is not a number. A text is a request to a speech model, whose longest prompt is far below this. */
enum { TEXTS_MAX = 4096, TEXT_BYTES_MAX = 1 << 16, MODEL_PATH_MAX = 4096 };

enum length_mode { LENGTH_NATURAL, LENGTH_FIXED, LENGTH_COUNT };
enum device_class { DEVICE_CPU, DEVICE_CUDA, DEVICE_CLASS_COUNT };

/* Adaptive end of the measured samples; max = 0: off, `samples` counts. */
struct stop_rule {
    float rel_ci;   /* stop when the 95 % interval of the median is narrower than this share of it */
    int   min, max; /* samples per text, whatever rel_ci says                                      */
    float seconds;  /* 0 = no limit                                                                */
};

struct workload {
    char           **texts; /* [n_texts], owned; set with workload_set_texts()               */
    int              n_texts;
    int              samples;        /* measured repeats per text                            */
    int              warmup;         /* requests before measuring, not recorded as samples   */
    int              processes;      /* fresh processes the samples are spread over          */
    enum length_mode length;
    int              max_new_tokens; /* frames                                               */
    bool             control_tokens; /* literal special tokens in texts are control ids      */
    struct stop_rule stop;
    bool             quality;        /* compare with the reference precision afterwards      */
    int              quality_frames, quality_texts; /* how much of it; 0 = QUALITY_FRAMES, all */
};

enum cell_status {
    CELL_PENDING, CELL_OK, CELL_OOM, CELL_CRASHED, CELL_TIMEOUT, CELL_INVALID, CELL_INTERRUPTED, CELL_CONTAMINATED,
    CELL_STATUS_COUNT
};

/* Zeroed memory is a cell that cell_free() accepts; cell_defaults() makes one that runs once it has a model. */
struct cell {
    char              id[33];           /* 32 hex digits; cell_identify() fills it                   */
    char             *model;            /* directory to read, owned; not part of the id              */
    char              fingerprint[33];  /* of the model                                              */
    enum precision    precision;
    enum recipe       recipe;           /* how INT8 is made at load; RECIPE_NONE when precision is not int8 */
    enum kv_format    kv;
    int               batch;
    int               context;          /* frames of a synthetic reference voice, 0 = none           */
    int               max_seq_len;      /* 0 = as much as the workload needs                         */
    enum head_mode    head;
    enum engine_kind  engine;
    enum codec_mode   codec;
    struct sampling   sampling;         /* its seed is the sweep's seed                              */
    enum device_class device_class;     /* part of the id                                            */
    char              device[64];       /* "cpu", "cuda:GPU-uuid", "" = not placed yet; not in the id */
    char              gpu[96];          /* name of the GPU it must run on, "" = any; part of the id when it is set */
    size_t            memory_limit;     /* bytes, 0 = none; part of the id when it is set            */
    bool              keep_audio;       /* not part of the id                                        */
    double            deadline_s;       /* for the whole worker, 0 = the launcher's default; not in the id */
    struct workload   workload;
};

const char *cell_status_name(enum cell_status s); /* "ok", "oom", … */
int         cell_status_parse(const char *name);  /* or -1 */
const char *device_class_name(enum device_class d); /* "cpu", "cuda" */
const char *length_mode_name(enum length_mode m);   /* "natural", "fixed" */

/* The reference benchmark's workload (spec: its four texts, 10 samples, 3 warm-ups, temperature 0.7, top-p 0.8, penalty
 * 1.1, 1024 tokens, seed 42) in bf16 on the CPU, batch 1, without a model and without texts. */
void cell_defaults(struct cell *out);

void     cell_free(struct cell *c); /* zeroes *c; NULL is accepted */
status_t cell_copy(const struct cell *from, struct cell *to);
status_t cell_set_model(struct cell *c, const char *dir);
status_t workload_set_texts(struct workload *w, const char *const *texts, int n);

/* Ranges of every value; ST_EINPUT names label, the first value that is wrong, and what it may be. */
status_t cell_check(const struct cell *c, const char *label);

/* Canonical text (one "key = value" a line, sorted by key; texts as count and hash) and from it the id. The text is
 * malloc'ed. A key that is added to cells later is written only when it differs from its default, so ids stay. */
status_t cell_canonical(const struct cell *c, char **text);
status_t cell_identify(struct cell *c);

/* JSON of a whole cell, for handing it to a worker and for the file's config group; malloc'ed. Keys are those of the job
 * file. Reading checks every value, fills keys that are missing with defaults and refuses keys it does not know. */
status_t cell_to_json(const struct cell *c, char **json);
status_t cell_from_json(const char *json, size_t size, const char *label, struct cell *out);

/* Short label for people: "bf16 b2 ctx64 kv-bf16"; parts at their defaults are left out, the first three never. */
void cell_label(const struct cell *c, char *out, size_t size);

#endif
