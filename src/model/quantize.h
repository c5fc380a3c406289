/* quantize.h — a whole checkpoint to per-row INT8: which tensors, and the directory that comes out (checkpoint.md §6). */
#ifndef QSWEEP_MODEL_QUANTIZE_H
#define QSWEEP_MODEL_QUANTIZE_H

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "model/int8_rows.h"

#include <signal.h>
#include <stdbool.h>

/* True for the tensors that quantization replaces: the weight of every Linear (spec §6.1), never embeddings or norms. */
bool quantize_applies(const struct model_config *config, const char *tensor_name);

/* Write the checkpoint's config.json with a `quantization` object, keys sorted, as the original tool rewrites it, to the
 * folder dir. */
status_t quantize_write_config(const struct checkpoint *c, enum recipe recipe, const char *source_hash, const char *dir);

/* __metadata__ of the weights file, as JSON; malloc'ed, NULL without memory. */
char *quantize_metadata(enum recipe recipe, const char *source_hash);

struct quantize_options {
    enum recipe recipe;
    int         n_threads;                      /* 0 = all allowed cores                                   */
    const volatile sig_atomic_t *stop;          /* non-zero asks to leave with ST_EINTERRUPTED; NULL: never */
    void (*progress)(void *ctx, size_t bytes_done, size_t bytes_total); /* of the weights read; NULL: none  */
    void *ctx;
};

struct quantize_report {
    size_t bytes_before, bytes_after; /* Σ tensor bytes                                                  */
    size_t bytes_copied;              /* the other files                                                 */
    int    n_quantized, n_threads;    /* tensors made INT8; threads that quantized                       */
    double weights_s;                 /* read, quantize, write model.safetensors; not yet forced to disk */
    double seconds;                   /* everything: hash, weights, flush to disk, the other files       */
    char   output[4096];
};

/* Write a quantized copy of the checkpoint to dir (created; must not exist: ST_EUSAGE): model.safetensors, config.json
 * with a `quantization` object, the other files copied. Streaming: memory is a few MiB a thread. Works under a
 * temporary name beside dir and renames at the end, so that nothing half-written stands under dir's name; on failure and
 * on stop the temporary folder is removed. Checks free disk space first (ST_EIO). */
status_t quantize_checkpoint(const struct checkpoint *c, const char *dir, const struct quantize_options *options,
                             struct quantize_report *report);

#endif
