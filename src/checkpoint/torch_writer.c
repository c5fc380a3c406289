#include "checkpoint/torch_writer.h"

#include "base/outfile.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zlib.h>

enum {
    ALIGNMENT     = 64,
    FLAGS         = 1 << 3 | 1 << 11, /* data descriptor follows; names are UTF-8 */
    EXTRA_ZIP64   = 0x0001,
    EXTRA_PADDING = 0x4246, /* "FB", PyTorch's own */
    BATCH_PAIRS   = 1000,   /* of SETITEMS, as Python's pickler */
    FOLDER_MAX    = 64,
};

struct record {
    char     name[FOLDER_MAX + 40];
    uint64_t offset, size; /* of the local header; of the payload */
    uint32_t crc32;
};

struct torch_writer {
    struct outfile *file;
    char            path[4096], folder[FOLDER_MAX];
    uint64_t       *sizes; /* of the tensors [n] */
    size_t          n, current;
    uint64_t        left; /* bytes that the current tensor still wants */
    struct record  *records;
    size_t          n_records;
};

/* Bytes being put together: pickles, headers. */
struct buffer {
    unsigned char *bytes;
    size_t         size, capacity;
    bool           failed;
};

static void put(struct buffer *b, const void *bytes, size_t n)
{
    if (b->failed)
        return;
    if (n > b->capacity - b->size) {
        size_t         capacity = 2 * (b->capacity + n) + 256;
        unsigned char *grown    = realloc(b->bytes, capacity);
        if (!grown) {
            b->failed = true;
            return;
        }
        b->bytes    = grown;
        b->capacity = capacity;
    }
    memcpy(b->bytes + b->size, bytes, n);
    b->size += n;
}

static void put_le(struct buffer *b, uint64_t v, size_t n)
{
    unsigned char bytes[8];
    for (size_t i = 0; i < n; i++)
        bytes[i] = (unsigned char)(v >> (8 * i));
    put(b, bytes, n);
}

static void put_text(struct buffer *b, const char *text)
{
    put(b, text, strlen(text));
}

/* ---- data.pkl ---- */

/* Memo slots of what every tensor repeats. */
enum { MEMO_REBUILD, MEMO_STORAGE, MEMO_CPU, MEMO_ORDERED_DICT, MEMO_CLASS_0 };

static const char *storage_class(enum dtype dtype)
{
    static const char *const classes[DT_COUNT] = {
        [DT_F32] = "FloatStorage", [DT_BF16] = "BFloat16Storage", [DT_F16] = "HalfStorage",  [DT_F64] = "DoubleStorage",
        [DT_I8] = "CharStorage",   [DT_U8] = "ByteStorage",       [DT_I16] = "ShortStorage", [DT_I32] = "IntStorage",
        [DT_I64] = "LongStorage",  [DT_BOOL] = "BoolStorage",
    };
    return classes[dtype];
}

struct pickler {
    struct buffer b;
    bool          memoized[MEMO_CLASS_0 + DT_COUNT];
};

/* `first` writes the value; later only its memo slot is written. True when the caller has to write it. */
static bool memo_is_new(struct pickler *p, int slot)
{
    if (!p->memoized[slot]) {
        p->memoized[slot] = true;
        return true;
    }
    put_text(&p->b, "h");
    put_le(&p->b, (uint64_t)slot, 1);
    return false;
}

static void memoize(struct pickler *p, int slot)
{
    put_text(&p->b, "q");
    put_le(&p->b, (uint64_t)slot, 1);
}

static void pickle_text(struct pickler *p, const char *text)
{
    put_text(&p->b, "X");
    put_le(&p->b, strlen(text), 4);
    put_text(&p->b, text);
}

static void pickle_global(struct pickler *p, int slot, const char *module, const char *name)
{
    if (!memo_is_new(p, slot))
        return;
    put_text(&p->b, "c");
    put_text(&p->b, module);
    put_text(&p->b, "\n");
    put_text(&p->b, name);
    put_text(&p->b, "\n");
    memoize(p, slot);
}

static void pickle_shared_text(struct pickler *p, int slot, const char *text)
{
    if (!memo_is_new(p, slot))
        return;
    pickle_text(p, text);
    memoize(p, slot);
}

static void pickle_int(struct pickler *p, int64_t v)
{
    if (v < 256) {
        put_text(&p->b, "K");
        put_le(&p->b, (uint64_t)v, 1);
    } else if (v < 65536) {
        put_text(&p->b, "M");
        put_le(&p->b, (uint64_t)v, 2);
    } else if (v <= INT32_MAX) {
        put_text(&p->b, "J");
        put_le(&p->b, (uint64_t)v, 4);
    } else {
        put(&p->b, "\x8a\x08", 2); /* LONG1 of 8 bytes */
        put_le(&p->b, (uint64_t)v, 8);
    }
}

static void pickle_ints(struct pickler *p, const int64_t *v, int n)
{
    static const char *const close[] = {")", "\x85", "\x86", "\x87"};
    if (n > 3)
        put_text(&p->b, "(");
    for (int i = 0; i < n; i++)
        pickle_int(p, v[i]);
    put_text(&p->b, n > 3 ? "t" : close[n]);
}

/* _rebuild_tensor_v2((storage, class, key, "cpu", elements), 0, size, stride, False, OrderedDict()) */
static void pickle_tensor(struct pickler *p, const struct tensor *t, size_t key)
{
    char    text[24];
    int64_t stride[TENSOR_MAX_RANK], n = 1;
    for (int i = t->rank - 1; i >= 0; i--) {
        stride[i] = n;
        n *= t->shape[i];
    }
    snprintf(text, sizeof text, "%zu", key);
    pickle_global(p, MEMO_REBUILD, "torch._utils", "_rebuild_tensor_v2");
    put_text(&p->b, "((");
    pickle_shared_text(p, MEMO_STORAGE, "storage");
    pickle_global(p, MEMO_CLASS_0 + (int)t->dtype, "torch", storage_class(t->dtype));
    pickle_text(p, text);
    pickle_shared_text(p, MEMO_CPU, "cpu");
    pickle_int(p, n);
    put_text(&p->b, "tQ");
    pickle_int(p, 0);
    pickle_ints(p, t->shape, t->rank);
    pickle_ints(p, stride, t->rank);
    put_text(&p->b, "\x89");
    pickle_global(p, MEMO_ORDERED_DICT, "collections", "OrderedDict");
    put_text(&p->b, ")RtR");
}

static void pickle_state_dict(struct pickler *p, const struct tensor *list, size_t n)
{
    put_text(&p->b, "\x80\x02}");
    for (size_t i = 0; i < n; i++) {
        if (i % BATCH_PAIRS == 0)
            put_text(&p->b, "(");
        pickle_text(p, list[i].name);
        pickle_tensor(p, &list[i], i);
        if (i + 1 == n || (i + 1) % BATCH_PAIRS == 0)
            put_text(&p->b, "u");
    }
    put_text(&p->b, ".");
}

/* ---- zip records ---- */

static status_t flush(struct torch_writer *w, struct buffer *b)
{
    status_t st = b->failed ? FAIL(ST_ENOMEM, "%s: no memory", w->path) : outfile_write(w->file, b->bytes, b->size);
    free(b->bytes);
    *b = (struct buffer){0};
    return st;
}

/* Local header of a record of `size` bytes, padded so that the payload is aligned. */
static status_t begin_record(struct torch_writer *w, const char *name, uint64_t size)
{
    struct record *r = &w->records[w->n_records++];
    struct buffer  b = {0};
    bool           wide = size >= UINT32_MAX;
    *r = (struct record){.offset = outfile_size(w->file), .size = size, .crc32 = (uint32_t)crc32(0, NULL, 0)};
    snprintf(r->name, sizeof r->name, "%s/%s", w->folder, name);
    uint64_t before  = r->offset + 30 + strlen(r->name) + (wide ? 20 : 0) + 4;
    uint64_t padding = (ALIGNMENT - before % ALIGNMENT) % ALIGNMENT;

    put(&b, "PK\x03\x04", 4);
    put_le(&b, wide ? 45 : 0, 2);
    put_le(&b, FLAGS, 2);
    put_le(&b, 0, 2);                     /* stored */
    put_le(&b, 0, 4);                     /* time and date */
    put_le(&b, 0, 4);                     /* CRC32: in the descriptor */
    put_le(&b, wide ? UINT32_MAX : 0, 4); /* sizes: likewise */
    put_le(&b, wide ? UINT32_MAX : 0, 4);
    put_le(&b, strlen(r->name), 2);
    put_le(&b, (wide ? 20 : 0) + 4 + padding, 2);
    put_text(&b, r->name);
    if (wide) {
        put_le(&b, EXTRA_ZIP64, 2);
        put_le(&b, 16, 2);
        put_le(&b, 0, 8);
        put_le(&b, 0, 8);
    }
    put_le(&b, EXTRA_PADDING, 2);
    put_le(&b, padding, 2);
    for (uint64_t i = 0; i < padding; i++)
        put_text(&b, "Z");
    return flush(w, &b);
}

static status_t record_data(struct torch_writer *w, const void *data, size_t bytes)
{
    struct record *r = &w->records[w->n_records - 1];
    r->crc32         = (uint32_t)crc32_z(r->crc32, data, bytes);
    return outfile_write(w->file, data, bytes);
}

static status_t end_record(struct torch_writer *w)
{
    const struct record *r     = &w->records[w->n_records - 1];
    size_t               width = r->size >= UINT32_MAX ? 8 : 4;
    struct buffer        b     = {0};
    put(&b, "PK\x07\x08", 4);
    put_le(&b, r->crc32, 4);
    put_le(&b, r->size, width);
    put_le(&b, r->size, width);
    return flush(w, &b);
}

static status_t whole_record(struct torch_writer *w, const char *name, const void *data, size_t bytes)
{
    TRY(begin_record(w, name, bytes));
    TRY(record_data(w, data, bytes));
    return end_record(w);
}

static void central_record(struct buffer *b, const struct record *r)
{
    bool   wide_size = r->size >= UINT32_MAX, wide_offset = r->offset >= UINT32_MAX;
    size_t extra = (wide_size ? 16 : 0) + (wide_offset ? 8 : 0);
    put(b, "PK\x01\x02", 4);
    put_le(b, 0, 2);
    put_le(b, extra ? 45 : 0, 2);
    put_le(b, FLAGS, 2);
    put_le(b, 0, 2);
    put_le(b, 0, 4);
    put_le(b, r->crc32, 4);
    put_le(b, wide_size ? UINT32_MAX : r->size, 4);
    put_le(b, wide_size ? UINT32_MAX : r->size, 4);
    put_le(b, strlen(r->name), 2);
    put_le(b, extra ? extra + 4 : 0, 2);
    put_le(b, 0, 2 + 2 + 2); /* comment length, disk, internal attributes */
    put_le(b, 0, 4);         /* external attributes */
    put_le(b, wide_offset ? UINT32_MAX : r->offset, 4);
    put_text(b, r->name);
    if (extra) {
        put_le(b, EXTRA_ZIP64, 2);
        put_le(b, extra, 2);
        if (wide_size) {
            put_le(b, r->size, 8);
            put_le(b, r->size, 8);
        }
        if (wide_offset)
            put_le(b, r->offset, 8);
    }
}

/* Central directory, Zip64 end record and locator (PyTorch writes them always), end record. */
static status_t write_directory(struct torch_writer *w)
{
    struct buffer b     = {0};
    uint64_t      begin = outfile_size(w->file);
    for (size_t i = 0; i < w->n_records; i++)
        central_record(&b, &w->records[i]);
    uint64_t size = b.size, at = begin + size, n = w->n_records;

    put(&b, "PK\x06\x06", 4);
    put_le(&b, 44, 8);
    put_le(&b, 0x1e, 2);
    put_le(&b, 45, 2);
    put_le(&b, 0, 8); /* this disk, the directory's disk */
    put_le(&b, n, 8);
    put_le(&b, n, 8);
    put_le(&b, size, 8);
    put_le(&b, begin, 8);
    put(&b, "PK\x06\x07", 4);
    put_le(&b, 0, 4);
    put_le(&b, at, 8);
    put_le(&b, 1, 4);
    put(&b, "PK\x05\x06", 4);
    put_le(&b, 0, 4);
    put_le(&b, n < 65535 ? n : 65535, 2);
    put_le(&b, n < 65535 ? n : 65535, 2);
    put_le(&b, size < UINT32_MAX ? size : UINT32_MAX, 4);
    put_le(&b, begin < UINT32_MAX ? begin : UINT32_MAX, 4);
    put_le(&b, 0, 2);
    return flush(w, &b);
}

/* ---- the writer ---- */

/* Open the record of the current tensor and pass over empty ones. */
static status_t open_current(struct torch_writer *w)
{
    char name[32];
    for (; w->current < w->n; w->current++) {
        snprintf(name, sizeof name, "data/%zu", w->current);
        TRY(begin_record(w, name, w->sizes[w->current]));
        w->left = w->sizes[w->current];
        if (w->left)
            return ST_OK;
        TRY(end_record(w));
    }
    return ST_OK;
}

static status_t begin(struct torch_writer *w, const struct tensor *list)
{
    struct pickler p  = {0};
    status_t       st = ST_OK;
    pickle_state_dict(&p, list, w->n);
    if (p.b.failed) {
        st = FAIL(ST_ENOMEM, "%s: no memory", w->path);
        goto out;
    }
    TRY_OUT(whole_record(w, "data.pkl", p.b.bytes, p.b.size));
    TRY_OUT(whole_record(w, ".format_version", "1", 1));
    TRY_OUT(whole_record(w, ".storage_alignment", "64", 2));
    TRY_OUT(whole_record(w, "byteorder", "little", 6));
    TRY_OUT(open_current(w));
out:
    free(p.b.bytes);
    return st;
}

status_t torch_writer_begin(const char *path, const char *folder, const struct tensor *list, size_t n,
                            struct torch_writer **out)
{
    for (size_t i = 0; i < n; i++) {
        int64_t elements;
        size_t  bytes;
        if (!storage_class(list[i].dtype) || !tensor_name_valid(list[i].name, strlen(list[i].name)) ||
            !tensor_measure(list[i].dtype, list[i].rank, list[i].shape, &elements, &bytes) || bytes != list[i].bytes)
            return FAIL(ST_EINTERNAL, "%s: tensor %zu of the list cannot be written", path, i);
    }
    if (strlen(folder) >= FOLDER_MAX || strlen(path) >= sizeof((struct torch_writer *)0)->path)
        return FAIL(ST_EUSAGE, "%.80s…: the path is too long", path);

    status_t             st = ST_OK;
    struct torch_writer *w  = calloc(1, sizeof *w);
    if (w) {
        w->sizes   = calloc(n + 1, sizeof *w->sizes);
        w->records = calloc(n + 8, sizeof *w->records);
    }
    if (!w || !w->sizes || !w->records) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu tensors", path, n);
        goto out;
    }
    w->n = n;
    strcpy(w->path, path);
    strcpy(w->folder, folder);
    for (size_t i = 0; i < n; i++)
        w->sizes[i] = list[i].bytes;
    TRY_OUT(outfile_open(path, &w->file));
    TRY_OUT(begin(w, list));
    *out = w;
    w    = NULL;
out:
    torch_writer_abort(w);
    return st;
}

status_t torch_writer_data(struct torch_writer *w, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    while (bytes) {
        if (w->current == w->n)
            return FAIL(ST_EINTERNAL, "%s: more data than the list announces", w->path);
        size_t n = bytes < w->left ? bytes : (size_t)w->left;
        TRY(record_data(w, at, n));
        at += n;
        bytes -= n;
        w->left -= n;
        if (w->left == 0) {
            TRY(end_record(w));
            w->current++;
            TRY(open_current(w));
        }
    }
    return ST_OK;
}

/* 40 decimal digits that depend on every record's name and contents; PyTorch hashes the same facts in its own way. */
static void serialization_id(const struct torch_writer *w, char out[41])
{
    uint64_t a = 0, b = 0;
    for (size_t i = 0; i < w->n_records; i++) {
        a = XXH64(w->records[i].name, strlen(w->records[i].name), a);
        b = XXH64("", 0, b + w->records[i].crc32);
    }
    snprintf(out, 41, "%020" PRIu64 "%020" PRIu64, a, b);
}

status_t torch_writer_end(struct torch_writer *w)
{
    status_t st = ST_OK;
    char     id[41];
    if (w->current != w->n) {
        st = FAIL(ST_EINTERNAL, "%s: the data of %zu of %zu tensors are missing", w->path, w->n - w->current, w->n);
        goto out;
    }
    TRY_OUT(whole_record(w, "version", "3\n", 2));
    serialization_id(w, id);
    TRY_OUT(whole_record(w, ".data/serialization_id", id, 40));
    TRY_OUT(write_directory(w));
    st      = outfile_commit(w->file);
    w->file = NULL;
out:
    torch_writer_abort(w);
    return st;
}

void torch_writer_abort(struct torch_writer *w)
{
    if (!w)
        return;
    outfile_abort(w->file);
    free(w->sizes);
    free(w->records);
    free(w);
}
