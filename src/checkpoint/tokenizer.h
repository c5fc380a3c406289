/* tokenizer.h — tiktoken-style byte-level BPE with the checkpoint's own ranks and special tokens. */
#ifndef QSWEEP_CHECKPOINT_TOKENIZER_H
#define QSWEEP_CHECKPOINT_TOKENIZER_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* ranks: bytes of tokenizer.tiktoken; specials: bytes of special_tokens.json or NULL for the built-in list. */
status_t tokenizer_parse(const char *ranks, size_t ranks_size, const char *specials, size_t specials_size,
                         const char *label, struct tokenizer **out);
status_t tokenizer_open(const char *checkpoint_dir, struct tokenizer **out);
void     tokenizer_close(struct tokenizer *t); /* NULL is accepted */

/* Encode size bytes of UTF-8 (ST_EINPUT if it is not). With specials, literal special tokens in the text become their
 * control ids; without, they are ordinary text. *ids [*n] is malloc'ed and the caller's. */
status_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, bool specials, int32_t **ids,
                          size_t *n);

/* Id of a special token by its text ("<|im_end|>"), or -1. */
int32_t tokenizer_special(const struct tokenizer *t, const char *token);
/* Ranks plus specials: ids are below this. */
int32_t tokenizer_size(const struct tokenizer *t);

#endif
