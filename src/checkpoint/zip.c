#include "checkpoint/zip.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    EOCD_BYTES        = 22,
    EOCD64_BYTES      = 56,
    LOCATOR64_BYTES   = 20,
    CENTRAL_BYTES     = 46,
    LOCAL_BYTES       = 30,
    MAX_COMMENT       = 65535,
    MAX_ENTRIES       = 65536,
    MAX_NAME          = 512,
    FLAG_ENCRYPTED    = 1 << 0,
    FLAG_STRONG_CRYPT = 1 << 6,
    EXTRA_ZIP64       = 0x0001,
};

static const uint32_t SIG_LOCAL = 0x04034b50, SIG_CENTRAL = 0x02014b50, SIG_EOCD = 0x06054b50, SIG_EOCD64 = 0x06064b50,
                      SIG_LOCATOR64 = 0x07064b50;

static uint16_t le16(const unsigned char *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t le32(const unsigned char *p)
{
    return (uint32_t)le16(p) | (uint32_t)le16(p + 2) << 16;
}

static uint64_t le64(const unsigned char *p)
{
    return (uint64_t)le32(p) | (uint64_t)le32(p + 4) << 32;
}

/* Where the central directory lies: [begin, end) and how many entries it says it has. */
struct directory {
    uint64_t begin, end, count;
};

/* The end record is the last one whose comment reaches exactly to the end of the file: a cut or extended file has none. */
static status_t find_end_record(const unsigned char *bytes, size_t size, const char *label, size_t *at)
{
    size_t lowest = size > EOCD_BYTES + MAX_COMMENT ? size - EOCD_BYTES - MAX_COMMENT : 0;
    for (size_t i = size >= EOCD_BYTES ? size - EOCD_BYTES : 0; size >= EOCD_BYTES; i--) {
        if (le32(bytes + i) == SIG_EOCD && i + EOCD_BYTES + le16(bytes + i + 20) == size) {
            *at = i;
            return ST_OK;
        }
        if (i == lowest)
            break;
    }
    if (size >= 4 && le32(bytes) == SIG_LOCAL)
        return FAIL(ST_EINPUT, "%s: truncated or damaged: a zip archive without its end record", label);
    if (size >= 2 && bytes[0] == 0x80 && bytes[1] <= 5)
        return FAIL(ST_EINPUT,
                    "%s: the legacy torch.save format (before PyTorch 1.6); load and save it with a current PyTorch",
                    label);
    return FAIL(ST_EINPUT, "%s: not a torch.save file (no zip archive)", label);
}

static status_t find_directory(const unsigned char *bytes, size_t size, const char *label, struct directory *out)
{
    size_t eocd = 0;
    TRY(find_end_record(bytes, size, label, &eocd));
    const unsigned char *e = bytes + eocd;
    uint64_t disk = le16(e + 4), cd_disk = le16(e + 6), here = le16(e + 8), count = le16(e + 10);
    uint64_t cd_bytes = le32(e + 12), cd_begin = le32(e + 16), limit = eocd;

    if (eocd >= LOCATOR64_BYTES && le32(e - LOCATOR64_BYTES) == SIG_LOCATOR64) {
        uint64_t at = le64(e - LOCATOR64_BYTES + 8);
        if (eocd < LOCATOR64_BYTES + EOCD64_BYTES || at > eocd - LOCATOR64_BYTES - EOCD64_BYTES ||
            le32(bytes + at) != SIG_EOCD64)
            return FAIL(ST_EINPUT, "%s: the Zip64 end record is not where its locator says", label);
        const unsigned char *r = bytes + at;
        if (le32(e - LOCATOR64_BYTES + 4) != 0 || le32(e - LOCATOR64_BYTES + 16) > 1)
            return FAIL(ST_EINPUT, "%s: a zip archive in several parts", label);
        disk     = le32(r + 16);
        cd_disk  = le32(r + 20);
        here     = le64(r + 24);
        count    = le64(r + 32);
        cd_bytes = le64(r + 40);
        cd_begin = le64(r + 48);
        limit    = at;
    }
    if (disk != 0 || cd_disk != 0 || here != count)
        return FAIL(ST_EINPUT, "%s: a zip archive in several parts", label);
    if (cd_begin > limit || cd_bytes > limit - cd_begin)
        return FAIL(ST_EINPUT, "%s: the zip directory (offset %llu, %llu bytes) lies outside the file", label,
                    (unsigned long long)cd_begin, (unsigned long long)cd_bytes);
    if (count == 0 || count > MAX_ENTRIES || count * CENTRAL_BYTES > cd_bytes)
        return FAIL(ST_EINPUT, "%s: the zip directory claims %llu entries in %llu bytes", label,
                    (unsigned long long)count, (unsigned long long)cd_bytes);
    *out = (struct directory){cd_begin, cd_begin + cd_bytes, count};
    return ST_OK;
}

/* Replace saturated 32-bit fields by the 64-bit ones of extra field 0x0001, in the order that the format gives. */
static bool widen(const unsigned char *extra, size_t length, uint64_t *size, uint64_t *packed, uint64_t *local)
{
    uint64_t *const fields[] = {size, packed, local};
    bool            wanted   = *size == UINT32_MAX || *packed == UINT32_MAX || *local == UINT32_MAX;
    for (size_t i = 0; wanted && i + 4 <= length;) {
        size_t n = le16(extra + i + 2);
        if (n > length - i - 4)
            return false;
        if (le16(extra + i) == EXTRA_ZIP64) {
            const unsigned char *p = extra + i + 4, *end = p + n;
            for (int k = 0; k < 3; k++)
                if (*fields[k] == UINT32_MAX) {
                    if (end - p < 8)
                        return false;
                    *fields[k] = le64(p);
                    p += 8;
                }
            return true;
        }
        i += 4 + n;
    }
    return !wanted;
}

static bool name_is_safe(const char *name, size_t length)
{
    if (length == 0 || length > MAX_NAME || name[0] == '/')
        return false;
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)name[i] < 0x20 || (unsigned char)name[i] > 0x7e || name[i] == '\\')
            return false;
        bool starts_part = i == 0 || name[i - 1] == '/';
        if (starts_part && length - i >= 2 && name[i] == '.' && name[i + 1] == '.' &&
            (length - i == 2 || name[i + 2] == '/'))
            return false;
    }
    return true;
}

/* The range of the file that an entry takes, local header included. */
struct range {
    uint64_t begin, end;
};

static int compare_ranges(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static int compare_entry_names(const char *a, size_t na, const char *b, size_t nb)
{
    int c = memcmp(a, b, na < nb ? na : nb);
    return c ? c : (na > nb) - (na < nb);
}

static int compare_entries(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;
    return compare_entry_names(x->name, x->name_length, y->name, y->name_length);
}

/* One central record at *at: fill entry and range, move *at behind it. */
static status_t read_entry(const unsigned char *bytes, const struct directory *dir, const char *label, uint64_t *at,
                           struct zip_entry *entry, struct range *range)
{
    const unsigned char *c    = bytes + *at;
    uint64_t             left = dir->end - *at;
    if (left < CENTRAL_BYTES || le32(c) != SIG_CENTRAL)
        return FAIL(ST_EINPUT, "%s: the zip directory is damaged at offset %llu", label, (unsigned long long)*at);
    unsigned flags = le16(c + 8), method = le16(c + 10);
    size_t   n_name = le16(c + 28), n_extra = le16(c + 30), n_comment = le16(c + 32);
    uint64_t packed = le32(c + 20), size = le32(c + 24), local = le32(c + 42);
    if (left - CENTRAL_BYTES < n_name + n_extra + n_comment)
        return FAIL(ST_EINPUT, "%s: the zip directory ends inside an entry", label);

    const char *name = (const char *)c + CENTRAL_BYTES;
    if (!name_is_safe(name, n_name))
        return FAIL(ST_EINPUT, "%s: a zip entry has an unsafe name (empty, too long, absolute, with \"..\" or bytes that "
                               "are not printable ASCII)", label);
    int n = (int)n_name;
    if (!widen(c + CENTRAL_BYTES + n_name, n_extra, &size, &packed, &local))
        return FAIL(ST_EINPUT, "%s: zip entry \"%.*s\" lacks its Zip64 sizes", label, n, name);
    if (flags & (FLAG_ENCRYPTED | FLAG_STRONG_CRYPT))
        return FAIL(ST_EINPUT, "%s: zip entry \"%.*s\" is encrypted", label, n, name);
    if (method != 0)
        return FAIL(ST_EINPUT, "%s: zip entry \"%.*s\" is compressed (method %u); torch.save stores its entries", label, n,
                    name, method);
    if (size != packed)
        return FAIL(ST_EINPUT, "%s: zip entry \"%.*s\" is stored but has two sizes (%llu and %llu)", label, n, name,
                    (unsigned long long)packed, (unsigned long long)size);

    if (local > dir->begin || dir->begin - local < LOCAL_BYTES || le32(bytes + local) != SIG_LOCAL)
        return FAIL(ST_EINPUT, "%s: zip entry \"%.*s\" has no local header at offset %llu", label, n, name,
                    (unsigned long long)local);
    const unsigned char *l       = bytes + local;
    uint64_t             payload = local + LOCAL_BYTES + le16(l + 26) + le16(l + 28);
    if (payload > dir->begin || size > dir->begin - payload)
        return FAIL(ST_EINPUT, "%s: zip entry \"%.*s\" (%llu bytes at offset %llu) reaches out of the data area", label, n,
                    name, (unsigned long long)size, (unsigned long long)payload);
    if (le16(l + 8) != 0 || le16(l + 26) != n_name || memcmp(l + LOCAL_BYTES, name, n_name) != 0)
        return FAIL(ST_EINPUT, "%s: zip entry \"%.*s\": local header and directory disagree", label, n, name);

    *entry = (struct zip_entry){name, n_name, bytes + payload, (size_t)size, le32(c + 16)};
    *range = (struct range){local, payload + size};
    *at += CENTRAL_BYTES + n_name + n_extra + n_comment;
    return ST_OK;
}

status_t zip_parse(const unsigned char *bytes, size_t size, const char *label, struct zip *out)
{
    status_t         st  = ST_OK;
    struct directory dir = {0};
    TRY(find_directory(bytes, size, label, &dir));

    size_t            count   = (size_t)dir.count;
    struct zip_entry *entries = calloc(count, sizeof *entries);
    struct range     *ranges  = calloc(count, sizeof *ranges);
    if (!entries || !ranges) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu zip entries", label, count);
        goto out;
    }
    uint64_t at = dir.begin;
    for (size_t i = 0; i < count; i++)
        TRY_OUT(read_entry(bytes, &dir, label, &at, &entries[i], &ranges[i]));
    const char *first        = entries[0].name;
    size_t      first_length = entries[0].name_length;

    qsort(ranges, count, sizeof *ranges, compare_ranges);
    qsort(entries, count, sizeof *entries, compare_entries);
    for (size_t i = 1; i < count; i++) {
        if (ranges[i].begin < ranges[i - 1].end) {
            st = FAIL(ST_EINPUT, "%s: two zip entries overlap at offset %llu", label,
                      (unsigned long long)ranges[i].begin);
            goto out;
        }
        if (compare_entries(&entries[i - 1], &entries[i]) == 0) {
            st = FAIL(ST_EINPUT, "%s: two zip entries are named \"%.*s\"", label, (int)entries[i].name_length,
                      entries[i].name);
            goto out;
        }
    }
    *out    = (struct zip){entries, count, first, first_length};
    entries = NULL;
out:
    free(entries);
    free(ranges);
    return st;
}

void zip_free(struct zip *zip)
{
    free(zip->entries);
    *zip = (struct zip){0};
}

const struct zip_entry *zip_find(const struct zip *zip, const char *name, size_t name_length)
{
    struct zip_entry key = {.name = name, .name_length = name_length};
    return zip->count ? bsearch(&key, zip->entries, zip->count, sizeof key, compare_entries) : NULL;
}
