#include "checkpoint/tensor.h"

#include "base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t      size;
} dtypes[DT_COUNT] = {
    [DT_F32] = {"F32", 4},  [DT_BF16] = {"BF16", 2}, [DT_F16] = {"F16", 2},         [DT_F64] = {"F64", 8},
    [DT_I8] = {"I8", 1},    [DT_U8] = {"U8", 1},     [DT_I16] = {"I16", 2},         [DT_I32] = {"I32", 4},
    [DT_I64] = {"I64", 8},  [DT_BOOL] = {"BOOL", 1}, [DT_F8_E4M3] = {"F8_E4M3", 1}, [DT_F8_E5M2] = {"F8_E5M2", 1},
};

size_t dtype_size(enum dtype dtype)
{
    return dtypes[dtype].size;
}

const char *dtype_name(enum dtype dtype)
{
    return dtypes[dtype].name;
}

bool dtype_parse(const char *name, enum dtype *out)
{
    for (int i = 0; i < DT_COUNT; i++)
        if (strcmp(dtypes[i].name, name) == 0) {
            *out = (enum dtype)i;
            return true;
        }
    return false;
}

int64_t tensor_elements(const struct tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}

bool tensor_measure(enum dtype dtype, int rank, const int64_t *shape, int64_t *elements, size_t *bytes)
{
    /* Zero sizes must not hide an overflow of the others: a consumer may multiply them in any order. */
    int64_t nonzero = 1;
    bool    empty   = false;
    if (rank < 0 || rank > TENSOR_MAX_RANK)
        return false;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return false;
        if (shape[i] == 0)
            empty = true;
        else if (__builtin_mul_overflow(nonzero, shape[i], &nonzero))
            return false;
    }
    int64_t size;
    if (__builtin_mul_overflow(nonzero, (int64_t)dtype_size(dtype), &size))
        return false;
    *elements = empty ? 0 : nonzero;
    *bytes    = empty ? 0 : (size_t)size;
    return true;
}

bool tensor_name_valid(const char *name, size_t length)
{
    if (length == 0 || length > TENSOR_MAX_NAME || utf8_first_bad(name, length) != length)
        return false;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    return true;
}

void tensor_shape_text(const struct tensor *t, char *out, size_t size)
{
    size_t at = 0;
    out[0]    = '\0';
    for (int i = 0; i < t->rank && at + 24 < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%lld", i ? ", " : "[", (long long)t->shape[i]);
    snprintf(out + at, size - at, "%s", t->rank ? "]" : "[]");
}

status_t tensor_set_add(struct tensor_set *set, const struct tensor *t)
{
    if (set->count == set->capacity) {
        size_t         capacity = set->capacity ? 2 * set->capacity : 64;
        struct tensor *items    = realloc(set->items, capacity * sizeof *items);
        if (!items)
            return FAIL(ST_ENOMEM, "no memory for a list of %zu tensors", capacity);
        set->items    = items;
        set->capacity = capacity;
    }
    char *name = strdup(t->name);
    if (!name)
        return FAIL(ST_ENOMEM, "no memory for the name of a tensor");
    set->items[set->count]        = *t;
    set->items[set->count++].name = name;
    return ST_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

status_t tensor_set_sort(struct tensor_set *set, const char *label)
{
    if (set->count)
        qsort(set->items, set->count, sizeof *set->items, compare_names);
    for (size_t i = 1; i < set->count; i++)
        if (strcmp(set->items[i - 1].name, set->items[i].name) == 0)
            return FAIL(ST_EINPUT, "%s: two tensors are named \"%s\"", label, set->items[i].name);
    return ST_OK;
}

void tensor_set_free(struct tensor_set *set)
{
    for (size_t i = 0; i < set->count; i++)
        free((void *)set->items[i].name);
    free(set->items);
    *set = (struct tensor_set){0};
}

const struct tensor *tensor_set_find(const struct tensor_set *set, const char *name)
{
    struct tensor key = {.name = name};
    return set->count ? bsearch(&key, set->items, set->count, sizeof *set->items, compare_names) : NULL;
}
