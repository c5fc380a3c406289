/* prompt.h — text and an optional reference voice as the integer matrix the model reads. */
#ifndef QSWEEP_MODEL_PROMPT_H
#define QSWEEP_MODEL_PROMPT_H

#include "checkpoint/config.h"
#include "checkpoint/tokenizer.h"
#include "model/codes.h"

struct voice {
    const char  *text; /* transcript */
    struct codes codes;
};

/* Prompt matrix, values [rows = 1 + num_codebooks][columns] row-major; row 0 vocabulary ids. */
struct prompt {
    int      rows, columns;
    int32_t *values;
};

/* S1 format (fishaudio/fish-speech, content_sequence.py, d3df505): <|interleave|>, for each voice its speaker tag,
 * transcript, semantic columns and <|im_end|>, then the speaker tag and the text, left open. With family S2:
 * ST_EUNSUPPORTED (its chat format needs a tokenizer.json, which is not read). Voice codes that do not fit the model, or
 * a prompt of max_seq_len columns or more: ST_EINPUT.
 * control_tokens: literal special tokens inside text become control ids (the original's behaviour); default off. */
status_t prompt_build(const struct tokenizer *t, const struct model_config *config, const char *text,
                      const struct voice *voices, int n_voices, bool control_tokens, struct prompt *out);

/* Take a ready prompt: a JSON array (or .npy) [1 + num_codebooks][columns], a single row of text ids (the codes are then
 * 0), or the object that `generate --codes` writes (its "prompt"). Checks 0 ≤ id < vocab_size, 0 ≤ code < codebook_size
 * and 0 < columns < max_seq_len. */
status_t prompt_ids_parse(const void *bytes, size_t size, const char *label, const struct model_config *config,
                          struct prompt *out);
status_t prompt_ids_open(const char *path, const struct model_config *config, struct prompt *out);

void prompt_free(struct prompt *p);

#endif
