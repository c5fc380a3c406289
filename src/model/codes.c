#include "model/codes.h"

#include "base/file.h"
#include "model/npy.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static status_t allocate(int64_t rows, int64_t columns, const char *label, int32_t **out)
{
    /* Both come from a file of at most CODES_FILE_MAX bytes that holds every value, so the product is small. */
    *out = malloc((size_t)(rows * columns > 0 ? rows * columns : 1) * sizeof **out);
    return *out ? ST_OK : FAIL(ST_ENOMEM, "%s: no memory for %lld x %lld integers", label, (long long)rows, (long long)columns);
}

static status_t from_npy(const void *bytes, size_t size, const char *label, int *rows, int *columns, int32_t **values)
{
    struct npy array;
    int32_t   *v;
    TRY(npy_parse(bytes, size, label, &array));
    /* A rank-1 array is one row. */
    int64_t n_rows = array.rank == 1 ? 1 : array.shape[0], n_columns = array.rank == 1 ? array.shape[0] : array.shape[1];
    TRY(allocate(n_rows, n_columns, label, &v));
    for (int64_t i = 0; i < n_rows; i++)
        for (int64_t j = 0; j < n_columns; j++) {
            int64_t value = array.rank == 1 ? npy_at(&array, j, 0) : npy_at(&array, i, j);
            if (value < INT32_MIN || value > INT32_MAX) {
                free(v);
                return FAIL(ST_EINPUT, "%s: [%lld][%lld] = %lld does not fit 32 bits", label, (long long)i, (long long)j,
                            (long long)value);
            }
            v[i * n_columns + j] = (int32_t)value;
        }
    *rows    = (int)n_rows;
    *columns = (int)n_columns;
    *values  = v;
    return ST_OK;
}

static status_t from_array(const json_t *array, const char *label, int *rows, int *columns, int32_t **values)
{
    status_t st        = ST_OK;
    int32_t *v         = NULL;
    bool     flat      = json_is_integer(json_array_get(array, 0));
    size_t   n_rows    = flat ? 1 : json_array_size(array);
    size_t   n_columns = json_array_size(flat ? array : json_array_get(array, 0));
    /* Every row must have n_columns entries, so a long first row cannot promise more than the file holds. */
    for (size_t i = 0; i < n_rows && !flat; i++) {
        const json_t *row = json_array_get(array, i);
        if (!json_is_array(row) || json_array_size(row) != n_columns)
            return FAIL(ST_EINPUT, "%s: row %zu is not an array of %zu integers like row 0", label, i, n_columns);
    }
    TRY(allocate((int64_t)n_rows, (int64_t)n_columns, label, &v));
    for (size_t i = 0; i < n_rows; i++)
        for (size_t j = 0; j < n_columns; j++) {
            const json_t *item  = json_array_get(flat ? array : json_array_get(array, i), j);
            json_int_t    value = json_integer_value(item);
            if (!json_is_integer(item) || value < INT32_MIN || value > INT32_MAX) {
                st = FAIL(ST_EINPUT, "%s: [%zu][%zu] is not an integer of 32 bits", label, i, j);
                goto out;
            }
            v[i * n_columns + j] = (int32_t)value;
        }
    *rows    = (int)n_rows;
    *columns = (int)n_columns;
    *values  = v;
    v        = NULL;
out:
    free(v);
    return st;
}

/* *was_object says that the rows came from under `key`. */
static status_t matrix_read(const void *bytes, size_t size, const char *label, const char *key, int *rows, int *columns,
                            int32_t **values, bool *was_object)
{
    *was_object = false;
    if (size > CODES_FILE_MAX)
        return FAIL(ST_EINPUT, "%s: %zu bytes, too large for codes", label, size);
    if (npy_is(bytes, size))
        return from_npy(bytes, size, label, rows, columns, values);
    json_error_t error;
    json_t      *root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error);
    status_t     st;
    if (!root)
        return FAIL(ST_EINPUT, "%s:%d: neither .npy nor JSON: %s", label, error.line, error.text);
    const json_t *array = json_is_object(root) ? json_object_get(root, key) : root;
    if (!json_is_array(array))
        st = FAIL(ST_EINPUT, "%s: want an array of arrays of integers, or an object that has one as \"%s\"", label, key);
    else
        st = from_array(array, label, rows, columns, values);
    *was_object = json_is_object(root);
    json_decref(root);
    return st;
}

status_t matrix_parse(const void *bytes, size_t size, const char *label, const char *key, int *rows, int *columns,
                      int32_t **values)
{
    bool was_object;
    return matrix_read(bytes, size, label, key, rows, columns, values, &was_object);
}

/* frames [n][1 + codebooks] as generate lists them → [codebooks][n], without the final im_end frame. */
static status_t transpose_frames(const char *label, int32_t im_end_id, struct codes *c)
{
    int n = c->codebooks, width = c->frames; /* what the file calls rows and columns */
    if (n > 0 && im_end_id >= 0 && width > 0 && c->values[(size_t)(n - 1) * (size_t)width] == im_end_id)
        n--;
    int32_t *v;
    TRY(allocate(width, n, label, &v));
    for (int t = 0; t < n; t++)
        for (int k = 1; k < width; k++)
            v[(size_t)(k - 1) * (size_t)n + (size_t)t] = c->values[(size_t)t * (size_t)width + (size_t)k];
    free(c->values);
    *c = (struct codes){width > 0 ? width - 1 : 0, n, v};
    return ST_OK;
}

status_t codes_parse(const void *bytes, size_t size, const char *label, int codebook_size, int32_t im_end_id,
                     struct codes *out)
{
    status_t     st = ST_OK;
    struct codes c  = {0};
    bool         was_object;
    TRY_OUT(matrix_read(bytes, size, label, "frames", &c.codebooks, &c.frames, &c.values, &was_object));
    if (was_object)
        TRY_OUT(transpose_frames(label, im_end_id, &c));
    if (c.codebooks < 1 || c.frames < 1) {
        st = FAIL(ST_EINPUT, "%s: %d codebooks of %d frames, want at least one of each", label, c.codebooks, c.frames);
        goto out;
    }
    for (int k = 0; k < c.codebooks; k++)
        for (int t = 0; t < c.frames; t++) {
            int32_t value = c.values[(size_t)k * (size_t)c.frames + (size_t)t];
            if (value < 0 || value >= codebook_size) {
                st = FAIL(ST_EINPUT, "%s: codebook %d, frame %d: code %d, want 0..%d", label, k, t, value, codebook_size - 1);
                goto out;
            }
        }
    *out     = c;
    c.values = NULL;
out:
    free(c.values);
    return st;
}

status_t codes_open(const char *path, int codebook_size, int32_t im_end_id, struct codes *out)
{
    char  *bytes = NULL;
    size_t size  = 0;
    TRY(file_read(path, CODES_FILE_MAX, &bytes, &size));
    status_t st = codes_parse(bytes, size, path, codebook_size, im_end_id, out);
    free(bytes);
    return st;
}

void codes_free(struct codes *c)
{
    free(c->values);
    *c = (struct codes){0};
}
