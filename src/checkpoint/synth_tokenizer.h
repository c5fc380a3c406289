/* synth_tokenizer.h — tokenizer files in the real formats for checkpoints that we make ourselves. */
#ifndef QSWEEP_CHECKPOINT_SYNTH_TOKENIZER_H
#define QSWEEP_CHECKPOINT_SYNTH_TOKENIZER_H

#include "base/status.h"

/* Write dir/tokenizer.tiktoken with n_ranks tokens (256 … 2^20) and dir/special_tokens.json with the 4111 special tokens
 * of S1-mini numbered after them. The ranks are the 256 bytes, then merges learned from a short English text by byte-pair
 * encoding, then pairs of earlier tokens chosen by a fixed sequence: same n_ranks, same bytes. */
status_t synth_tokenizer_write(const char *dir, int n_ranks);

/* Bytes that the two files take at most. */
unsigned long long synth_tokenizer_bytes(int n_ranks);

#endif
