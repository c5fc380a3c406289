/* codes.h — the codebook codes of an utterance, and the files they travel in. */
#ifndef QSWEEP_MODEL_CODES_H
#define QSWEEP_MODEL_CODES_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

/* values [codebooks][frames] row-major. */
struct codes {
    int      codebooks, frames;
    int32_t *values;
};

/* Parse a JSON array of `codebooks` arrays of `frames` integers, the object that `generate --codes` writes (its
 * "frames"; a last frame whose token is im_end_id is left out, -1 = none), or a .npy [codebooks][frames] (v1–v3, C or
 * Fortran order, integers). Checks 0 ≤ value < codebook_size and at least one frame. */
status_t codes_parse(const void *bytes, size_t size, const char *label, int codebook_size, int32_t im_end_id,
                     struct codes *out);
status_t codes_open(const char *path, int codebook_size, int32_t im_end_id, struct codes *out);
void     codes_free(struct codes *c);

/* Parse a JSON array of equally long arrays of integers (or an object with such an array under `key`), or a .npy, into
 * *values [rows][columns], malloc'ed. No range is checked beyond int32. */
status_t matrix_parse(const void *bytes, size_t size, const char *label, const char *key, int *rows, int *columns,
                      int32_t **values);

enum { CODES_FILE_MAX = 8 << 20 }; /* bytes; 10 codebooks of 8192 frames are 0.5 MB of JSON */

#endif
