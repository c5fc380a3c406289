/* pieces.h — cuts ordinary text into the pieces that byte-pair encoding works on (the pattern of tiktoken's Qwen and
 * fish-speech vocabularies; fishaudio/fish-speech, fish_speech/tokenizer.py, d3df505). */
#ifndef QSWEEP_CHECKPOINT_PIECES_H
#define QSWEEP_CHECKPOINT_PIECES_H

#include "base/status.h"

#include <stddef.h>

struct piece_rule;  /* the compiled pattern; immutable, shared by threads */
struct piece_match; /* working memory of one thread                       */

status_t piece_rule_open(struct piece_rule **out);
void     piece_rule_close(struct piece_rule *rule); /* NULL is accepted */

status_t piece_match_open(const struct piece_rule *rule, struct piece_match **out);
void     piece_match_close(struct piece_match *match); /* NULL is accepted */

/* The piece of text [size] that starts at `at` < size ends before *end > at. text is valid UTF-8. Time is linear in the
 * length of the piece. */
status_t piece_next(struct piece_match *match, const char *text, size_t size, size_t at, size_t *end);

#endif
