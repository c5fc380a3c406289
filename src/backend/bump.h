/* bump.h — places of one block of device memory, handed out in order. With base NULL it only counts. */
#ifndef QSWEEP_BACKEND_BUMP_H
#define QSWEEP_BACKEND_BUMP_H

#include <stddef.h>

struct bump {
    void  *base;
    size_t used;
};

/* `bytes` at a multiple of 256; NULL while counting. */
static inline void *bump_take(struct bump *b, size_t bytes)
{
    size_t at = b->used;
    b->used += (bytes + 255) & ~(size_t)255;
    return b->base ? (char *)b->base + at : NULL;
}

#endif
