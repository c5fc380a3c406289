/* zip_builder.h — builds torch.save-like archives byte by byte, right ones and wrong ones, for the reader's tests. */
#ifndef TESTS_ZIP_BUILDER_H
#define TESTS_ZIP_BUILDER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct bytes {
    unsigned char *data;
    size_t         size, capacity;
};

static inline void bytes_put(struct bytes *b, const void *data, size_t n)
{
    if (b->size + n > b->capacity) {
        b->capacity = 2 * (b->size + n) + 64;
        b->data     = realloc(b->data, b->capacity);
        if (!b->data)
            abort();
    }
    memcpy(b->data + b->size, data, n);
    b->size += n;
}

static inline void bytes_le(struct bytes *b, uint64_t v, size_t n)
{
    unsigned char raw[8];
    for (size_t i = 0; i < n; i++)
        raw[i] = (unsigned char)(v >> (8 * i));
    bytes_put(b, raw, n);
}

static inline void bytes_text(struct bytes *b, const char *text)
{
    bytes_put(b, text, strlen(text));
}

static inline void bytes_free(struct bytes *b)
{
    free(b->data);
    *b = (struct bytes){0};
}

/* One entry; the fields after `size` make it wrong (0 = leave it right). */
struct zip_member {
    const char *name;
    const void *data;
    size_t      size;
    int         method, flags;
    uint64_t    claim_size;        /* uncompressed size in the directory, where it shall differ */
    uint64_t    claim_offset;      /* local header offset + 1 in the directory                   */
    const char *local_name;        /* another name in the local header                           */
    size_t      name_length;       /* of a name with NUL in it                                   */
    bool        zip64;             /* sizes and offset in extra field 0x0001                     */
    bool        zip64_without_extra;
};

struct zip_ends {
    uint64_t    claim_count, claim_cd_offset, claim_cd_size; /* + 1; 0 = right */
    const char *comment;
    bool        zip64; /* write the Zip64 end record and locator, saturate the old one */
    uint64_t    claim_zip64_offset;                          /* + 1 */
    int         disk;
};

static inline struct bytes zip_build(const struct zip_member *members, size_t n, const struct zip_ends *ends)
{
    struct bytes    out = {0}, cd = {0};
    struct zip_ends right = {0};
    if (!ends)
        ends = &right;
    for (size_t i = 0; i < n; i++) {
        const struct zip_member *m     = &members[i];
        const char              *local = m->local_name ? m->local_name : m->name;
        uint64_t                 offset = m->claim_offset ? m->claim_offset - 1 : out.size;
        size_t                   name_length = m->name_length ? m->name_length : strlen(m->name);
        uint64_t                 size        = m->claim_size ? m->claim_size : m->size;
        bool                     saturate    = m->zip64 || m->zip64_without_extra;
        bytes_text(&out, "PK\x03\x04");
        bytes_le(&out, 0, 2);
        bytes_le(&out, (uint64_t)m->flags, 2);
        bytes_le(&out, (uint64_t)m->method, 2);
        bytes_le(&out, 0, 4);
        bytes_le(&out, 0, 4);
        bytes_le(&out, 0, 8);
        bytes_le(&out, m->local_name ? strlen(local) : name_length, 2);
        bytes_le(&out, 0, 2);
        bytes_put(&out, local, m->local_name ? strlen(local) : name_length);
        bytes_put(&out, m->data, m->size);

        bytes_text(&cd, "PK\x01\x02");
        bytes_le(&cd, 0, 4);
        bytes_le(&cd, (uint64_t)m->flags, 2);
        bytes_le(&cd, (uint64_t)m->method, 2);
        bytes_le(&cd, 0, 8);
        bytes_le(&cd, saturate ? UINT32_MAX : m->size, 4);
        bytes_le(&cd, saturate ? UINT32_MAX : size, 4);
        bytes_le(&cd, name_length, 2);
        bytes_le(&cd, m->zip64 ? 4 + 4 + 3 + 24 : 0, 2);
        bytes_le(&cd, 0, 6);
        bytes_le(&cd, 0, 4);
        bytes_le(&cd, saturate ? UINT32_MAX : offset, 4);
        bytes_put(&cd, m->name, name_length);
        if (m->zip64) {
            bytes_put(&cd, "FB\x03\x00ZZZ", 7); /* another field first */
            bytes_le(&cd, 1, 2);
            bytes_le(&cd, 24, 2);
            bytes_le(&cd, size, 8);
            bytes_le(&cd, m->size, 8);
            bytes_le(&cd, offset, 8);
        }
    }
    uint64_t cd_offset = ends->claim_cd_offset ? ends->claim_cd_offset - 1 : out.size;
    uint64_t cd_size   = ends->claim_cd_size ? ends->claim_cd_size - 1 : cd.size;
    uint64_t count     = ends->claim_count ? ends->claim_count - 1 : n;
    bytes_put(&out, cd.data, cd.size);
    bytes_free(&cd);
    if (ends->zip64) {
        uint64_t at = ends->claim_zip64_offset ? ends->claim_zip64_offset - 1 : out.size;
        bytes_text(&out, "PK\x06\x06");
        bytes_le(&out, 44, 8);
        bytes_le(&out, 45, 2);
        bytes_le(&out, 45, 2);
        bytes_le(&out, 0, 8);
        bytes_le(&out, count, 8);
        bytes_le(&out, count, 8);
        bytes_le(&out, cd_size, 8);
        bytes_le(&out, cd_offset, 8);
        bytes_text(&out, "PK\x06\x07");
        bytes_le(&out, 0, 4);
        bytes_le(&out, at, 8);
        bytes_le(&out, 1, 4);
        count   = 0xffff;
        cd_size = cd_offset = UINT32_MAX;
    }
    bytes_text(&out, "PK\x05\x06");
    bytes_le(&out, (uint64_t)ends->disk, 2);
    bytes_le(&out, 0, 2);
    bytes_le(&out, count, 2);
    bytes_le(&out, count, 2);
    bytes_le(&out, cd_size, 4);
    bytes_le(&out, cd_offset, 4);
    bytes_le(&out, ends->comment ? strlen(ends->comment) : 0, 2);
    if (ends->comment)
        bytes_text(&out, ends->comment);
    return out;
}

/* ---- pickles ---- */

static inline void pkl_text(struct bytes *b, const char *text)
{
    bytes_text(b, "X");
    bytes_le(b, strlen(text), 4);
    bytes_text(b, text);
}

static inline void pkl_int(struct bytes *b, int64_t v)
{
    bytes_put(b, "\x8a\x08", 2);
    bytes_le(b, (uint64_t)v, 8);
}

static inline void pkl_ints(struct bytes *b, const int64_t *v, int n)
{
    bytes_text(b, "(");
    for (int i = 0; i < n; i++)
        pkl_int(b, v[i]);
    bytes_text(b, "t");
}

/* What a tensor's pickle says. */
struct pkl_tensor {
    const char *class; /* "FloatStorage" */
    const char *key;
    int64_t     elements, offset;
    int         rank;
    int64_t     shape[10], stride[10];
};

static inline void pkl_storage(struct bytes *b, const char *module, const char *class, const char *key, int64_t elements)
{
    bytes_text(b, "(");
    pkl_text(b, "storage");
    bytes_text(b, "c");
    bytes_text(b, module);
    bytes_text(b, "\n");
    bytes_text(b, class);
    bytes_text(b, "\n");
    pkl_text(b, key);
    pkl_text(b, "cpu");
    pkl_int(b, elements);
    bytes_text(b, "tQ");
}

static inline void pkl_put_tensor(struct bytes *b, const struct pkl_tensor *t)
{
    bytes_text(b, "ctorch._utils\n_rebuild_tensor_v2\n(");
    pkl_storage(b, "torch", t->class, t->key, t->elements);
    pkl_int(b, t->offset);
    pkl_ints(b, t->shape, t->rank);
    pkl_ints(b, t->stride, t->rank);
    bytes_text(b, "\x89" "ccollections\nOrderedDict\n)RtR");
}

/* A state dict of one tensor. */
static inline struct bytes pkl_one(const char *name, const struct pkl_tensor *t)
{
    struct bytes b = {0};
    bytes_text(&b, "\x80\x02}(");
    pkl_text(&b, name);
    pkl_put_tensor(&b, t);
    bytes_text(&b, "u.");
    return b;
}

/* The archive that torch.save makes of this pickle and one storage data/0. */
static inline struct bytes torch_build(const struct bytes *pickle, const void *storage, size_t storage_bytes)
{
    const struct zip_member members[] = {{.name = "m/data.pkl", .data = pickle->data, .size = pickle->size},
                                         {.name = "m/byteorder", .data = "little", .size = 6},
                                         {.name = "m/data/0", .data = storage, .size = storage_bytes},
                                         {.name = "m/version", .data = "3\n", .size = 2}};
    return zip_build(members, 4, NULL);
}

#endif
