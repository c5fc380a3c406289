/* stack.h — one transformer stack (slow or fast) on a backend: its weights, its key/value caches, its RoPE table, its
 * workspace. The graph of a block is written here, once, over backend ops (decode.md §4, §6). */
#ifndef QSWEEP_MODEL_STACK_H
#define QSWEEP_MODEL_STACK_H

#include "backend/backend.h"
#include "model/weights.h"

struct stack_args {
    const struct stack_config *config;
    const struct block        *blocks;     /* [config->n_layer], host; adopted here         */
    float                      rope_base, norm_eps;
    int                        max_tokens; /* most tokens of one stack_run                  */
    int                        n_seq, max_len;
    enum kv_format             kv;
    bool                       fast;       /* attention by explicit BF16 products           */
};

struct stack;

/* The host blocks must outlive the stack. ST_EOOM when the device is too small. */
status_t stack_open(struct backend *be, const struct stack_args *args, struct stack **out);
void     stack_close(struct stack *s); /* NULL is accepted */

/* Run the residual stream d_x [tokens->n][dim] through every block in place, appending to the caches. */
status_t stack_run(struct stack *s, float *d_x, const struct token_batch *tokens);

/* Bytes of matrices, scales, biases and norms that one run reads; bytes of cache per position of one sequence. */
size_t stack_weight_bytes(const struct stack_config *config, const struct block *blocks);
size_t stack_kv_bytes(const struct stack_config *config, enum kv_format format);

/* Bytes of a matrix's rows as stored: values, scales, biases. */
size_t matrix_row_bytes(const struct matrix *m, int rows);

#endif
