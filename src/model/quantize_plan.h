/* quantize_plan.h — the tensors of a checkpoint as they will stand in a copy of it: which stay as they are, which become INT8
 * codes followed by their scales. The order is that of the file. */
#ifndef QSWEEP_MODEL_QUANTIZE_PLAN_H
#define QSWEEP_MODEL_QUANTIZE_PLAN_H

#include "checkpoint/checkpoint.h"

/* One tensor of the output. A quantized weight is followed by its scales, whose source is the same tensor. */
enum quantize_part { PART_AS_IS, PART_CODES, PART_SCALES };

struct quantize_plan {
    struct tensor        *list;     /* [n] names, dtypes, shapes, bytes of the output */
    const struct tensor **sources;  /* [n] tensors of the checkpoint                  */
    enum quantize_part            *parts;    /* [n]                                            */
    size_t                n;
    const struct tensor **matrices; /* [n_matrices] those to quantize, in order       */
    size_t                n_matrices, bytes;
    int64_t               most_rows;
};

/* With RECIPE_NONE every tensor stays as it is. ST_EINPUT for a tensor that cannot be quantized. The checkpoint must
 * outlive the plan; free it with quantize_plan_free() also after a failure. */
status_t quantize_plan_build(const struct checkpoint *c, enum recipe recipe, struct quantize_plan *out);
void     quantize_plan_free(struct quantize_plan *p);

#endif
