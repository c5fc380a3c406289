/* int8_line.h — the assembly line of quantize_checkpoint: worker threads turn rows into codes, chunk by chunk, and the
 * calling thread takes the chunks in order. A bounded ring of buffers lies between them. */
#ifndef QSWEEP_MODEL_INT8_LINE_H
#define QSWEEP_MODEL_INT8_LINE_H

#include "base/status.h"
#include "checkpoint/tensor.h"
#include "checkpoint/config.h"

#include <stddef.h>
#include <stdint.h>

/* Rows first_row … first_row + rows - 1 of a matrix, quantized: codes [rows, cols], scales [rows]. */
struct int8_chunk {
    const struct tensor *source;
    int64_t              first_row, rows;
    int8_t              *codes;
    void                *scales; /* of recipe_scale_dtype(recipe, DT_BF16) */
};

struct int8_line;

/* Start n_threads workers on the matrices (rank 2, floating point) in their order. The original casts a model to BF16 before
 * it quantizes, so other floats pass through BF16. matrices must outlive the line. */
status_t int8_line_open(const struct tensor *const *matrices, size_t n, enum recipe recipe, int n_threads,
                        struct int8_line **out);

/* The next chunk in order: matrix by matrix, rows ascending. It stays valid until the next call. Call it exactly as often
 * as int8_line_chunks() of all matrices says. The workers' first failure comes out here. */
status_t int8_line_take(struct int8_line *line, const struct int8_chunk **out);

/* Chunks of one matrix. */
int64_t int8_line_chunks(const struct tensor *matrix);

/* Stop the workers, whether or not all is taken. NULL is accepted. */
void int8_line_close(struct int8_line *line);

#endif
