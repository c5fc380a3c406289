/* The streaming half of safetensors.h. */
#include "checkpoint/safetensors.h"

#include "base/outfile.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The header is padded so that data begin on a cache line: an aligned map costs vector loads nothing extra. */
enum { DATA_ALIGNMENT = 64, PREFIX_BYTES = 8 };

struct safetensors_writer {
    struct outfile *file;
    char            path[4096];
    uint64_t        expected, written; /* bytes of data */
};

static json_t *tensor_entry(const struct tensor *t, uint64_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->rank; i++)
        json_array_append_new(shape, json_integer(t->shape[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(t->dtype), "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)(begin + t->bytes));
}

/* The header as text; *data_bytes is the sum over the list. NULL when a name repeats or memory is short. */
static status_t header_text(const char *path, const struct tensor *list, size_t n, const char *metadata, char **out,
                            uint64_t *data_bytes)
{
    status_t st     = ST_OK;
    json_t  *header = json_object();
    uint64_t at     = 0;
    if (metadata) {
        json_t *object = json_loads(metadata, JSON_REJECT_DUPLICATES, NULL);
        if (!object || json_object_set_new(header, "__metadata__", object) != 0) {
            st = FAIL(ST_EINTERNAL, "%s: the metadata are not a JSON object", path);
            goto out;
        }
    }
    for (size_t i = 0; i < n; i++) {
        int64_t elements;
        size_t  bytes;
        if (!tensor_measure(list[i].dtype, list[i].rank, list[i].shape, &elements, &bytes) || bytes != list[i].bytes ||
            json_object_get(header, list[i].name)) {
            st = FAIL(ST_EINTERNAL, "%s: tensor \"%s\" is listed twice or with a wrong size", path, list[i].name);
            goto out;
        }
        if (json_object_set_new(header, list[i].name, tensor_entry(&list[i], at)) != 0) {
            st = FAIL(ST_ENOMEM, "%s: no memory for the header", path);
            goto out;
        }
        at += bytes;
    }
    *out = json_dumps(header, JSON_COMPACT);
    if (!*out)
        st = FAIL(ST_ENOMEM, "%s: no memory for the header", path);
    *data_bytes = at;
out:
    json_decref(header);
    return st;
}

status_t safetensors_head(const char *path, const struct tensor *list, size_t n, const char *metadata, char **out,
                          size_t *bytes, uint64_t *data_bytes)
{
    char *text = NULL;
    TRY(header_text(path, list, n, metadata, &text, data_bytes));
    uint64_t length  = strlen(text);
    uint64_t padding = (DATA_ALIGNMENT - (PREFIX_BYTES + length) % DATA_ALIGNMENT) % DATA_ALIGNMENT;
    char    *head    = malloc(PREFIX_BYTES + length + padding);
    if (!head) {
        free(text);
        return FAIL(ST_ENOMEM, "%s: no memory for the header", path);
    }
    for (int i = 0; i < PREFIX_BYTES; i++)
        head[i] = (char)((length + padding) >> (8 * i));
    memcpy(head + PREFIX_BYTES, text, length);
    memset(head + PREFIX_BYTES + length, ' ', padding);
    free(text);
    *out   = head;
    *bytes = PREFIX_BYTES + length + padding;
    return ST_OK;
}

status_t safetensors_writer_begin(const char *path, const struct tensor *list, size_t n, const char *metadata,
                                  struct safetensors_writer **out)
{
    status_t                   st   = ST_OK;
    char                      *head = NULL;
    size_t                     bytes;
    struct safetensors_writer *w    = calloc(1, sizeof *w);
    if (!w)
        return FAIL(ST_ENOMEM, "%s: no memory", path);
    strncpy(w->path, path, sizeof w->path - 1);
    TRY_OUT(safetensors_head(path, list, n, metadata, &head, &bytes, &w->expected));
    TRY_OUT(outfile_open(path, &w->file));
    TRY_OUT(outfile_write(w->file, head, bytes));
    *out = w;
    w    = NULL;
out:
    safetensors_writer_abort(w);
    free(head);
    return st;
}

status_t safetensors_writer_data(struct safetensors_writer *w, const void *data, size_t bytes)
{
    if (bytes > w->expected - w->written)
        return FAIL(ST_EINTERNAL, "%s: more data than the header announces", w->path);
    w->written += bytes;
    return outfile_write(w->file, data, bytes);
}

status_t safetensors_writer_end(struct safetensors_writer *w)
{
    status_t st = ST_OK;
    if (w->written != w->expected) {
        st = FAIL(ST_EINTERNAL, "%s: %llu of %llu bytes of data were written", w->path, (unsigned long long)w->written,
                  (unsigned long long)w->expected);
    } else {
        st      = outfile_commit(w->file);
        w->file = NULL;
    }
    safetensors_writer_abort(w);
    return st;
}

void safetensors_writer_abort(struct safetensors_writer *w)
{
    if (!w)
        return;
    outfile_abort(w->file);
    free(w);
}
