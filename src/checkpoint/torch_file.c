#include "checkpoint/torch_file.h"

#include "checkpoint/pickle.h"
#include "checkpoint/zip.h"

#include <stdlib.h>
#include <string.h>

enum { OLDEST_VERSION = 1, NEWEST_VERSION = 10 };

struct torch_file {
    struct filemap    map;
    struct tensor_set tensors;
    char             *first_key;
    void            **copies; /* of tensors that were not contiguous */
    size_t            n_copies;
};

/* The entry <folder>/<name>, or NULL. */
static const struct zip_entry *member(const struct zip *zip, size_t folder_length, const char *name, size_t name_length)
{
    char   path[1024];
    size_t n = folder_length + 1 + name_length;
    if (n > sizeof path)
        return NULL;
    memcpy(path, zip->first_name, folder_length);
    path[folder_length] = '/';
    memcpy(path + folder_length + 1, name, name_length);
    return zip_find(zip, path, n);
}

static const struct zip_entry *named_member(const struct zip *zip, size_t folder_length, const char *name)
{
    return member(zip, folder_length, name, strlen(name));
}

/* The archive's parts besides tensors: one folder, no TorchScript, a version and a byte order that we know. */
static status_t check_archive(const struct zip *zip, const char *label, size_t *folder_length)
{
    const char *slash = memchr(zip->first_name, '/', zip->first_name_length);
    if (!slash || slash == zip->first_name)
        return FAIL(ST_EINPUT, "%s: not a torch.save file: its entries are not in one folder", label);
    size_t n = (size_t)(slash - zip->first_name) + 1;
    for (size_t i = 0; i < zip->count; i++) {
        const struct zip_entry *e = &zip->entries[i];
        if (e->name_length < n || memcmp(e->name, zip->first_name, n) != 0)
            return FAIL(ST_EINPUT, "%s: not a torch.save file: entry \"%.*s\" is outside the folder \"%.*s\"", label,
                        (int)e->name_length, e->name, (int)n, zip->first_name);
        if (e->name_length >= n + 5 && memcmp(e->name + n, "code/", 5) == 0)
            return FAIL(ST_EINPUT, "%s: a TorchScript archive; only state dicts are loaded", label);
    }
    *folder_length = n - 1;
    if (named_member(zip, n - 1, "constants.pkl"))
        return FAIL(ST_EINPUT, "%s: a TorchScript archive; only state dicts are loaded", label);

    const struct zip_entry *version = named_member(zip, n - 1, "version");
    int                     number  = 0;
    for (size_t i = 0; version && i < version->size && i < 4 && version->data[i] >= '0' && version->data[i] <= '9'; i++)
        number = 10 * number + (version->data[i] - '0');
    if (number < OLDEST_VERSION || number > NEWEST_VERSION)
        return FAIL(ST_EINPUT, "%s: %s (want %d to %d)", label,
                    version ? "an unknown version of the torch.save format" : "no entry \"version\"", OLDEST_VERSION,
                    NEWEST_VERSION);

    const struct zip_entry *order = named_member(zip, n - 1, "byteorder");
    if (order && !(order->size == 6 && memcmp(order->data, "little", 6) == 0))
        return FAIL(ST_EINPUT, "%s: written on a big-endian machine; save it again on a little-endian one", label);
    return ST_OK;
}

static bool is_contiguous(const struct pickled_tensor *t)
{
    int64_t expected = 1;
    for (int i = t->rank - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != expected)
            return false;
        expected *= t->shape[i];
    }
    return true;
}

/* Index of the last element touched, relative to the storage's first; false when it leaves 63 bits. */
static bool last_element(const struct pickled_tensor *t, int64_t *out)
{
    int64_t last = t->offset;
    for (int i = 0; i < t->rank; i++) {
        int64_t span;
        if (__builtin_mul_overflow(t->shape[i] - 1, t->stride[i], &span) || __builtin_add_overflow(last, span, &last))
            return false;
    }
    *out = last;
    return true;
}

/* Write the elements of t in row-major order to out [elements × element]. */
static void gather(unsigned char *out, const unsigned char *storage, const struct pickled_tensor *t, int64_t elements,
                   size_t element)
{
    int64_t index[TENSOR_MAX_RANK] = {0};
    for (int64_t n = 0; n < elements; n++) {
        int64_t at = t->offset;
        for (int i = 0; i < t->rank; i++)
            at += index[i] * t->stride[i];
        memcpy(out + (size_t)n * element, storage + (size_t)at * element, element);
        for (int i = t->rank - 1; i >= 0 && ++index[i] == t->shape[i]; i--)
            index[i] = 0;
    }
}

/* A contiguous copy of a strided tensor. *copied bounds the total by the file's size: strides of 0 and many views of one
 * storage could otherwise ask for any amount of memory. */
static status_t copy_strided(struct torch_file *f, const char *label, const char *name, const struct pickled_tensor *t,
                             const struct zip_entry *entry, struct tensor *out, size_t *copied, size_t file_size)
{
    if (out->bytes > file_size - *copied)
        return FAIL(ST_EINPUT, "%s: tensor \"%s\": its strides repeat data beyond the size of the file; save it "
                               "contiguous", label, name);
    *copied += out->bytes;
    unsigned char *copy   = malloc(out->bytes);
    void         **copies = realloc(f->copies, (f->n_copies + 1) * sizeof *copies);
    if (copies)
        f->copies = copies;
    if (!copy || !copies) {
        free(copy);
        return FAIL(ST_ENOMEM, "%s: no memory to make tensor \"%s\" (%zu bytes) contiguous", label, name, out->bytes);
    }
    f->copies[f->n_copies++] = copy;
    gather(copy, entry->data, t, tensor_elements(out), dtype_size(t->dtype));
    out->data = copy;
    return ST_OK;
}

static status_t add_tensor(struct torch_file *f, const struct zip *zip, size_t folder_length, const char *label,
                           const struct pickled_tensor *t, size_t *copied, size_t file_size)
{
    char name[TENSOR_MAX_NAME + 1], path[32] = "data/";
    memcpy(name, t->name, t->name_length);
    name[t->name_length] = '\0';
    memcpy(path + 5, t->storage.key, t->storage.key_length);

    const struct zip_entry *entry = member(zip, folder_length, path, 5 + t->storage.key_length);
    if (!entry)
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" lies in storage %.*s, which the file does not have", label, name,
                    (int)t->storage.key_length, t->storage.key);
    int64_t stored;
    if (__builtin_mul_overflow(t->storage.elements, (int64_t)dtype_size(t->storage.dtype), &stored) ||
        (uint64_t)stored != entry->size)
        return FAIL(ST_EINPUT, "%s: tensor \"%s\": storage %.*s has %zu bytes, but should hold %lld elements of %s", label,
                    name, (int)t->storage.key_length, t->storage.key, entry->size, (long long)t->storage.elements,
                    dtype_name(t->storage.dtype));

    struct tensor out = {.name = name, .dtype = t->dtype, .rank = t->rank};
    memcpy(out.shape, t->shape, sizeof out.shape);
    int64_t elements, last = 0;
    if (!tensor_measure(t->dtype, t->rank, t->shape, &elements, &out.bytes))
        return FAIL(ST_EINPUT, "%s: tensor \"%s\": its sizes multiply to more than 63 bits", label, name);
    size_t element = dtype_size(t->dtype);
    if (elements > 0 && (!last_element(t, &last) || (uint64_t)last >= entry->size / element))
        return FAIL(ST_EINPUT, "%s: tensor \"%s\" reaches beyond its storage %.*s of %zu bytes", label, name,
                    (int)t->storage.key_length, t->storage.key, entry->size);

    if (elements == 0)
        out.data = entry->data;
    else if (is_contiguous(t))
        out.data = entry->data + (size_t)t->offset * element;
    else
        TRY(copy_strided(f, label, name, t, entry, &out, copied, file_size));
    return tensor_set_add(&f->tensors, &out);
}

static status_t load(struct torch_file *f, const unsigned char *bytes, size_t size, const char *label)
{
    status_t            st   = ST_OK;
    struct zip          zip  = {0};
    struct pickled_dict dict = {0};
    size_t              folder_length = 0, copied = 0;
    TRY_OUT(zip_parse(bytes, size, label, &zip));
    TRY_OUT(check_archive(&zip, label, &folder_length));

    /* CRC32 is not compared: torch can be told to write a cheaper sum in its place
     * (torch.serialization.set_crc32_options), and its own reader skips the check when mapping. */
    const struct zip_entry *pickle = named_member(&zip, folder_length, "data.pkl");
    if (!pickle) {
        st = FAIL(ST_EINPUT, "%s: not a torch.save file: no entry \"data.pkl\"", label);
        goto out;
    }
    TRY_OUT(pickle_parse(pickle->data, pickle->size, label, &dict));
    for (size_t i = 0; i < dict.count; i++)
        TRY_OUT(add_tensor(f, &zip, folder_length, label, &dict.items[i], &copied, size));
    TRY_OUT(tensor_set_sort(&f->tensors, label));

    f->first_key = strndup(dict.first_key ? dict.first_key : "", dict.first_key_length);
    if (!f->first_key)
        st = FAIL(ST_ENOMEM, "%s: no memory", label);
out:
    pickle_free(&dict);
    zip_free(&zip);
    return st;
}

status_t torch_file_parse(const void *bytes, size_t size, const char *label, struct torch_file **out)
{
    struct torch_file *f = calloc(1, sizeof *f);
    if (!f)
        return FAIL(ST_ENOMEM, "%s: no memory", label);
    status_t st = load(f, bytes, size, label);
    if (st == ST_OK)
        *out = f;
    else
        torch_file_close(f);
    return st;
}

status_t torch_file_open(const char *path, struct torch_file **out)
{
    struct filemap map = {0};
    TRY(filemap_open(path, 0, &map));
    status_t st = torch_file_parse(map.data, map.size, path, out);
    if (st == ST_OK)
        (*out)->map = map;
    else
        filemap_close(&map);
    return st;
}

void torch_file_close(struct torch_file *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->n_copies; i++)
        free(f->copies[i]);
    free(f->copies);
    free(f->first_key);
    tensor_set_free(&f->tensors);
    filemap_close(&f->map);
    free(f);
}

const struct tensor_set *torch_file_tensors(const struct torch_file *f)
{
    return &f->tensors;
}

const char *torch_file_first_key(const struct torch_file *f)
{
    return f->first_key;
}

const struct filemap *torch_file_map(const struct torch_file *f)
{
    return &f->map;
}
