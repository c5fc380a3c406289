/* zip.h — the entries of an uncompressed ZIP archive, as torch.save writes it.
 *
 * Everything is taken from the central directory (the local headers of streamed archives hold no sizes); Zip64 included.
 * Compressed, encrypted, spanned, overlapping or out-of-range entries are ST_EINPUT, so that a small file can never
 * stand for a large one. Source: PKWARE APPNOTE 6.3.10 §4.3–4.5; PyTorch caffe2/serialize/inline_container.cc. */
#ifndef QSWEEP_CHECKPOINT_ZIP_H
#define QSWEEP_CHECKPOINT_ZIP_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

struct zip_entry {
    const char          *name; /* not terminated; points into the archive */
    size_t               name_length;
    const unsigned char *data;
    size_t               size;
    uint32_t             crc32;
};

struct zip {
    struct zip_entry *entries; /* sorted by name, names unique           */
    size_t            count;
    const char       *first_name; /* of the entry that the directory lists first */
    size_t            first_name_length;
};

/* Views into bytes, which must outlive *out. label names the file in messages. */
status_t zip_parse(const unsigned char *bytes, size_t size, const char *label, struct zip *out);
void     zip_free(struct zip *zip);

/* NULL when there is none. */
const struct zip_entry *zip_find(const struct zip *zip, const char *name, size_t name_length);

#endif
