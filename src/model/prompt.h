/* prompt.h — text and an optional reference voice as the integer matrix the model reads. */
#ifndef QSWEEP_MODEL_PROMPT_H
#define QSWEEP_MODEL_PROMPT_H

#include "checkpoint/config.h"
#include "checkpoint/tokenizer.h"

/* Codes of an utterance: values [codebooks][frames] row-major. */
struct codes {
    int      codebooks, frames;
    int32_t *values;
};

/* Parse a JSON array of arrays, the object that `generate --codes` writes, or a .npy (v1–v3, C or Fortran order, int
 * dtypes). Checks 0 ≤ value < codebook_size. */
status_t codes_parse(const void *bytes, size_t size, const char *label, int codebook_size, struct codes *out);
status_t codes_open(const char *path, int codebook_size, struct codes *out);
void     codes_free(struct codes *c);

struct voice {
    const char  *text; /* transcript */
    struct codes codes;
};

/* Prompt matrix, values [rows = 1 + num_codebooks][columns] row-major; row 0 vocabulary ids. */
struct prompt {
    int      rows, columns;
    int32_t *values;
};

/* S1 format of decode.md §9; with family S2 the chat format as far as specified (else ST_EUNSUPPORTED).
 * control_tokens: literal special tokens inside text become control ids (the reference's behaviour); default off. */
status_t prompt_build(const struct tokenizer *t, const struct model_config *config, const char *text,
                      const struct voice *voices, int n_voices, bool control_tokens, struct prompt *out);
void     prompt_free(struct prompt *p);

#endif
