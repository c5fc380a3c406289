/* tensor.h — a named view of numbers in a checkpoint: dtype, shape, bytes. Views own nothing; the file that made
 * them does. All data are little-endian, C-contiguous (row-major, last index fastest). */
#ifndef QSWEEP_CHECKPOINT_TENSOR_H
#define QSWEEP_CHECKPOINT_TENSOR_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype { DT_F32, DT_BF16, DT_F16, DT_F64, DT_I8, DT_U8, DT_I16, DT_I32, DT_I64, DT_BOOL, DT_F8_E4M3, DT_F8_E5M2, DT_COUNT };

enum { TENSOR_MAX_RANK = 8, TENSOR_MAX_NAME = 1024 };

struct tensor {
    const char *name;                  /* owned by the set                                   */
    enum dtype  dtype;
    int         rank;                  /* 0 is a scalar                                      */
    int64_t     shape[TENSOR_MAX_RANK];
    const void *data;                  /* bytes bytes; alignment of the element is NOT promised by files */
    size_t      bytes;
};

/* Tensors sorted by name (strcmp), names unique. The arrays are owned by the set, the data are not. */
struct tensor_set {
    struct tensor *items;
    size_t         count, capacity;
};

size_t      dtype_size(enum dtype dtype);        /* bytes of one element            */
const char *dtype_name(enum dtype dtype);        /* safetensors spelling: "BF16", … */
bool        dtype_parse(const char *name, enum dtype *out); /* the reverse; false when there is no such */

/* Number of elements; the shape was checked (product fits 63 bits) when the tensor was made. */
int64_t tensor_elements(const struct tensor *t);

/* Elements and bytes of a shape from outside; false when rank or a size is out of range or a product leaves 63 bits. */
bool tensor_measure(enum dtype dtype, int rank, const int64_t *shape, int64_t *elements, size_t *bytes);

/* A name fit for messages and files: 1…TENSOR_MAX_NAME bytes of UTF-8 without control characters. */
bool tensor_name_valid(const char *name, size_t length);

/* "[4096, 1024]" for messages. */
void tensor_shape_text(const struct tensor *t, char *out, size_t size);

/* Append a copy of *t (name copied); tensor_set_sort() puts the set in order and refuses duplicates with ST_EINPUT. */
status_t tensor_set_add(struct tensor_set *set, const struct tensor *t);
status_t tensor_set_sort(struct tensor_set *set, const char *label);
void     tensor_set_free(struct tensor_set *set);

/* NULL when there is none. */
const struct tensor *tensor_set_find(const struct tensor_set *set, const char *name);

#endif
