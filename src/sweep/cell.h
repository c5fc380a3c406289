/* cell.h — one measurement of a sweep: its axes, its workload, its identity.
 *
 * The id is XXH3-128 over the canonical text (every axis and workload value, the model's fingerprint; no path, host or
 * device index), so the same cell has the same id on every machine. */
#ifndef QSWEEP_SWEEP_CELL_H
#define QSWEEP_SWEEP_CELL_H

#include "base/status.h"
#include "model/precision.h"
#include "model/sampler.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum length_mode { LENGTH_NATURAL, LENGTH_FIXED };

struct workload {
    char           **texts; /* [n_texts], owned                                             */
    int              n_texts;
    int              samples;        /* measured repeats per text                           */
    int              warmup;         /* requests before measuring, not recorded as samples  */
    int              processes;      /* fresh processes the samples are spread over         */
    enum length_mode length;
    int              max_new_tokens; /* frames                                              */
    bool             control_tokens; /* literal special tokens in texts are control ids     */
};

enum cell_status {
    CELL_PENDING, CELL_OK, CELL_OOM, CELL_CRASHED, CELL_TIMEOUT, CELL_INVALID, CELL_INTERRUPTED, CELL_CONTAMINATED,
    CELL_STATUS_COUNT
};

struct cell {
    char             id[33];
    char             model_dir[4096];      /* where to read; not part of the id             */
    char             fingerprint[33];      /* of the model                                  */
    enum precision   precision;
    char             recipe[16];           /* "torchao", … used when quantizing at load     */
    enum kv_format   kv;
    int              batch;
    int              context;              /* frames of a synthetic reference voice, 0 = none */
    int              max_seq_len;          /* 0 = as much as the workload needs             */
    enum head_mode   head;
    enum engine_kind engine;
    enum codec_mode  codec;
    struct sampling  sampling;             /* its seed is the sweep's seed                  */
    char             device_class[16];     /* "cpu" or "cuda": part of the id               */
    char             device[32];           /* "cpu", "cuda:GPU-uuid": where it runs, not part of the id */
    size_t           memory_limit;         /* bytes, 0 = none                               */
    bool             keep_audio;           /* not part of the id                            */
    struct workload  workload;
};

const char *cell_status_name(enum cell_status s); /* "ok", "oom", … */
int         cell_status_parse(const char *name);

void     cell_free(struct cell *c);
status_t cell_copy(const struct cell *from, struct cell *to);

/* Canonical text (one "key = value" a line, sorted) and from it the id. The text is malloc'ed. */
status_t cell_canonical(const struct cell *c, char **text);
status_t cell_identify(struct cell *c);

/* JSON of a whole cell, for handing it to a worker and for the file's config group. */
status_t cell_to_json(const struct cell *c, char **json);
status_t cell_from_json(const char *json, size_t size, const char *label, struct cell *out);

/* Short label for people: "bf16 b2 ctx64 kv-bf16". */
void cell_label(const struct cell *c, char *out, size_t size);

#endif
