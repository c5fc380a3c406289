#include "checkpoint/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The limit of the reference implementation (huggingface/safetensors, safetensors/src/tensor.rs). */
enum { MAX_HEADER = 100000000, PREFIX_BYTES = 8 };

struct safetensors {
    struct filemap    map;
    struct tensor_set tensors;
    json_t           *metadata; /* object of texts, or NULL */
};

/* Fill shape and rank of *t from a JSON array of counts. */
static status_t read_shape(const json_t *shape, const char *label, struct tensor *t)
{
    size_t rank = json_array_size(shape);
    if (!json_is_array(shape) || rank > TENSOR_MAX_RANK)
        return FAIL(ST_EINPUT, "%s: tensor \"%s\": its shape is not a list of at most %d sizes", label, t->name,
                    TENSOR_MAX_RANK);
    t->rank = (int)rank;
    for (size_t i = 0; i < rank; i++) {
        const json_t *size = json_array_get(shape, i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return FAIL(ST_EINPUT, "%s: tensor \"%s\": size %zu of its shape is not a count", label, t->name, i);
        t->shape[i] = json_integer_value(size);
    }
    return ST_OK;
}

static status_t read_tensor(const json_t *entry, const char *label, const unsigned char *data, size_t data_bytes,
                            struct tensor *t)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype || !dtype_parse(dtype, &t->dtype))
        return FAIL(ST_EINPUT, "%s: tensor \"%s\": dtype \"%.20s\" is not known", label, t->name, dtype ? dtype : "");
    TRY(read_shape(json_object_get(entry, "shape"), label, t));

    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to))
        return FAIL(ST_EINPUT, "%s: tensor \"%s\": data_offsets is not a pair of numbers", label, t->name);
    json_int_t begin = json_integer_value(from), end = json_integer_value(to);
    if (begin < 0 || end < begin || (uint64_t)end > data_bytes)
        return FAIL(ST_EINPUT, "%s: tensor \"%s\": data_offsets [%lld, %lld] leave the buffer of %zu bytes", label, t->name,
                    (long long)begin, (long long)end, data_bytes);

    int64_t elements;
    if (!tensor_measure(t->dtype, t->rank, t->shape, &elements, &t->bytes) || t->bytes != (uint64_t)(end - begin)) {
        char shape[256];
        tensor_shape_text(t, shape, sizeof shape);
        return FAIL(ST_EINPUT, "%s: tensor \"%s\": %s %s does not take the %lld bytes that data_offsets give it", label,
                    t->name, dtype, shape, (long long)(end - begin));
    }
    t->data = data + begin;
    return ST_OK;
}

static int compare_data(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty tensors lie before the one that starts there */
}

/* The tensors must cover the buffer exactly: a hole or an overlap is how data are hidden or files made to grow. */
static status_t check_coverage(const struct tensor_set *set, const char *label, const unsigned char *data,
                               size_t data_bytes)
{
    struct tensor *order = malloc((set->count + 1) * sizeof *order);
    if (!order)
        return FAIL(ST_ENOMEM, "%s: no memory for %zu tensors", label, set->count);
    if (set->count) {
        memcpy(order, set->items, set->count * sizeof *order);
        qsort(order, set->count, sizeof *order, compare_data);
    }
    status_t             st = ST_OK;
    const unsigned char *at = data;
    for (size_t i = 0; i < set->count && st == ST_OK; i++) {
        if (order[i].data != at)
            st = FAIL(ST_EINPUT, "%s: tensor \"%s\" %s the data before it", label, order[i].name,
                      (const unsigned char *)order[i].data < at ? "overlaps" : "leaves a hole after");
        at = (const unsigned char *)order[i].data + order[i].bytes;
    }
    if (st == ST_OK && at != data + data_bytes)
        st = FAIL(ST_EINPUT, "%s: %zu bytes at the end belong to no tensor", label, (size_t)(data + data_bytes - at));
    free(order);
    return st;
}

static status_t read_metadata(json_t *metadata, const char *label, struct safetensors *s)
{
    const char *key;
    json_t     *value;
    if (!json_is_object(metadata))
        return FAIL(ST_EINPUT, "%s: __metadata__ is not an object", label);
    json_object_foreach (metadata, key, value)
        if (!json_is_string(value))
            return FAIL(ST_EINPUT, "%s: a value in __metadata__ is not a text", label);
    s->metadata = json_incref(metadata);
    return ST_OK;
}

static status_t load(struct safetensors *s, const unsigned char *bytes, size_t size, const char *label)
{
    uint64_t length = 0;
    if (size < PREFIX_BYTES + 2)
        return FAIL(ST_EINPUT, "%s: %zu bytes are too few for a safetensors file", label, size);
    for (int i = PREFIX_BYTES - 1; i >= 0; i--)
        length = length << 8 | bytes[i];
    if (length > MAX_HEADER || length > size - PREFIX_BYTES)
        return FAIL(ST_EINPUT, "%s: truncated, or not a safetensors file: its header would have %llu bytes", label,
                    (unsigned long long)length);
    if (bytes[PREFIX_BYTES] != '{')
        return FAIL(ST_EINPUT, "%s: not a safetensors file: the header does not begin with \"{\"", label);

    status_t             st = ST_OK;
    json_error_t         error;
    const char          *text       = (const char *)bytes + PREFIX_BYTES, *name;
    const unsigned char *data       = bytes + PREFIX_BYTES + length;
    size_t               data_bytes = size - PREFIX_BYTES - (size_t)length;
    json_t              *header     = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error), *entry;
    if (!header)
        return FAIL(ST_EINPUT, "%s: the header is not valid JSON: %s (byte %d)", label, error.text, error.position);
    json_object_foreach (header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            TRY_OUT(read_metadata(entry, label, s));
            continue;
        }
        if (!tensor_name_valid(name, strlen(name))) {
            st = FAIL(ST_EINPUT, "%s: the name of a tensor is empty, longer than %d bytes or has control characters",
                      label, TENSOR_MAX_NAME);
            goto out;
        }
        struct tensor t = {.name = name};
        TRY_OUT(read_tensor(entry, label, data, data_bytes, &t));
        TRY_OUT(tensor_set_add(&s->tensors, &t));
    }
    TRY_OUT(tensor_set_sort(&s->tensors, label));
    TRY_OUT(check_coverage(&s->tensors, label, data, data_bytes));
out:
    json_decref(header);
    return st;
}

status_t safetensors_parse(const void *bytes, size_t size, const char *label, struct safetensors **out)
{
    struct safetensors *s = calloc(1, sizeof *s);
    if (!s)
        return FAIL(ST_ENOMEM, "%s: no memory", label);
    status_t st = load(s, bytes, size, label);
    if (st == ST_OK)
        *out = s;
    else
        safetensors_close(s);
    return st;
}

status_t safetensors_open(const char *path, struct safetensors **out)
{
    struct filemap map = {0};
    TRY(filemap_open(path, 0, &map));
    status_t st = safetensors_parse(map.data, map.size, path, out);
    if (st == ST_OK)
        (*out)->map = map;
    else
        filemap_close(&map);
    return st;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    json_decref(s->metadata);
    tensor_set_free(&s->tensors);
    filemap_close(&s->map);
    free(s);
}

const struct tensor_set *safetensors_tensors(const struct safetensors *s)
{
    return &s->tensors;
}

const struct filemap *safetensors_map(const struct safetensors *s)
{
    return &s->map;
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
    return json_string_value(json_object_get(s->metadata, key));
}

/* A file beside the index: no folders, nothing hidden. */
static bool file_name_is_safe(const char *name)
{
    size_t n = strlen(name);
    return n > 0 && n < 256 && name[0] != '.' && !strpbrk(name, "/\\") && tensor_name_valid(name, n);
}

status_t safetensors_index_parse(const char *bytes, size_t size, const char *label, struct safetensors_index *out)
{
    json_error_t error;
    json_t      *root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error), *file;
    if (!root)
        return FAIL(ST_EINPUT, "%s:%d: not valid JSON: %s", label, error.line, error.text);

    status_t                 st    = ST_OK;
    json_t                  *map   = json_object_get(root, "weight_map");
    size_t                   n     = json_object_size(map);
    struct safetensors_index index = {calloc(n + 1, sizeof(char *)), calloc(n + 1, sizeof(char *)), 0};
    const char              *name;
    if (!index.tensors || !index.files) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu names", label, n);
        goto out;
    }
    if (n == 0) {
        st = FAIL(ST_EINPUT, "%s: no weight_map, or an empty one", label);
        goto out;
    }
    json_object_foreach (map, name, file) {
        const char *file_name = json_string_value(file);
        if (!tensor_name_valid(name, strlen(name)) || !file_name || !file_name_is_safe(file_name)) {
            st = FAIL(ST_EINPUT, "%s: an entry of weight_map is not \"tensor name\": \"file name\" (no folders)", label);
            goto out;
        }
        index.tensors[index.count] = strdup(name);
        index.files[index.count]   = strdup(file_name);
        if (!index.tensors[index.count] || !index.files[index.count]) {
            index.count++;
            st = FAIL(ST_ENOMEM, "%s: no memory for %zu names", label, n);
            goto out;
        }
        index.count++;
    }
    *out  = index;
    index = (struct safetensors_index){0};
out:
    safetensors_index_free(&index);
    json_decref(root);
    return st;
}

void safetensors_index_free(struct safetensors_index *index)
{
    for (size_t i = 0; i < index->count; i++) {
        free(index->tensors[i]);
        free(index->files[i]);
    }
    free(index->tensors);
    free(index->files);
    *index = (struct safetensors_index){0};
}
