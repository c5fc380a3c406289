/* bpe.h — byte-pair encoding by rank: a table of byte strings, and the merging of one piece (openai/tiktoken, lib.rs). */
#ifndef QSWEEP_CHECKPOINT_BPE_H
#define QSWEEP_CHECKPOINT_BPE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

/* A token of a vocabulary is at most this long (the longest of the published one has 128 bytes); the bound keeps a
 * look-up cheap whatever a file says. */
enum { BPE_TOKEN_MAX = 1024 };

struct bpe;

/* Parse the lines of a .tiktoken file, "base64(token) rank". Ranks must be 0..n-1, each once, tokens distinct, and all 256
 * single bytes present; else ST_EINPUT naming label and line. */
status_t bpe_parse(const char *bytes, size_t size, const char *label, struct bpe **out);
void     bpe_close(struct bpe *b); /* NULL is accepted */

int32_t bpe_size(const struct bpe *b); /* number of ranks */

/* Rank of this byte string, or -1. */
int32_t bpe_rank(const struct bpe *b, const char *bytes, size_t size);

/* Encode one piece: size ≥ 1 bytes to at most size ids. Time O(size · log size). Working memory grows inside *work, which
 * starts zeroed, serves many calls and ends with bpe_work_free(). */
struct bpe_work {
    void  *parts, *heap;
    size_t capacity;
};
status_t bpe_encode(const struct bpe *b, const char *piece, size_t size, struct bpe_work *work, int32_t *ids, size_t *n);
void     bpe_work_free(struct bpe_work *work);

#endif
