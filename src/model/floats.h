/* floats.h — any floating-point tensor of a checkpoint, element by element as FP32. */
#ifndef QSWEEP_MODEL_FLOATS_H
#define QSWEEP_MODEL_FLOATS_H

#include "checkpoint/tensor.h"

#include <stdbool.h>

/* F32, BF16, F16 and F64. */
bool float_dtype(enum dtype dtype);

/* Element i of t, exact but for F64, which is rounded; its bytes may stand at any address. */
float float_element(const struct tensor *t, size_t i);

#endif
