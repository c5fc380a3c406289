/* npy.h — an integer array in NumPy's .npy format (versions 1 to 3; numpy/lib/format.py), as a view into its bytes. */
#ifndef QSWEEP_MODEL_NPY_H
#define QSWEEP_MODEL_NPY_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NPY_MAX_RANK = 2 };

struct npy {
    const unsigned char *data;
    int     rank;                /* 1 or 2                                                       */
    int64_t shape[NPY_MAX_RANK]; /* a rank-1 array of n has shape {n, 1}                          */
    int     item_size;           /* 1, 2, 4 or 8 bytes                                           */
    bool    is_signed, big_endian, fortran_order;
};

/* True if the bytes begin as a .npy file does. */
bool npy_is(const void *bytes, size_t size);

/* View bytes, which must outlive *out. Other dtypes than integers, other ranks, a size that does not fit the shape:
 * ST_EINPUT naming label. */
status_t npy_parse(const void *bytes, size_t size, const char *label, struct npy *out);

/* Element [row][column], inside the shape; an unsigned value above INT64_MAX reads as INT64_MAX. */
int64_t npy_at(const struct npy *array, int64_t row, int64_t column);

#endif
