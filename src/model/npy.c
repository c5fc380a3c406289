#include "model/npy.h"

#include <stdlib.h>
#include <string.h>

static const char magic[] = "\x93NUMPY";
enum { MAGIC_SIZE = 6, HEADER_MAX = 65536 };

bool npy_is(const void *bytes, size_t size)
{
    return size >= MAGIC_SIZE && memcmp(bytes, magic, MAGIC_SIZE) == 0;
}

/* The header is a Python dict literal; this reads the three keys that the format defines and nothing else. */
struct reader {
    const char *at, *end;
};

static void skip_spaces(struct reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\t'))
        r->at++;
}

static bool take(struct reader *r, char c)
{
    skip_spaces(r);
    if (r->at == r->end || *r->at != c)
        return false;
    r->at++;
    return true;
}

static bool take_word(struct reader *r, const char *word)
{
    size_t size = strlen(word);
    skip_spaces(r);
    if ((size_t)(r->end - r->at) < size || memcmp(r->at, word, size))
        return false;
    r->at += size;
    return true;
}

static bool take_string(struct reader *r, char *out, size_t capacity)
{
    skip_spaces(r);
    if (r->at == r->end || (*r->at != '\'' && *r->at != '"'))
        return false;
    char   quote = *r->at++;
    size_t n     = 0;
    while (r->at < r->end && *r->at != quote && *r->at != '\\' && n + 1 < capacity)
        out[n++] = *r->at++;
    out[n] = 0;
    return take(r, quote);
}

static bool take_size(struct reader *r, int64_t *out)
{
    skip_spaces(r);
    const char *start = r->at;
    int64_t     value = 0;
    for (; r->at < r->end && *r->at >= '0' && *r->at <= '9'; r->at++) {
        if (value > INT32_MAX)
            return false;
        value = value * 10 + (*r->at - '0');
    }
    if (r->at == start)
        return false;
    *out = value;
    return true;
}

static bool take_shape(struct reader *r, struct npy *out)
{
    out->rank     = 0;
    out->shape[0] = out->shape[1] = 1;
    if (!take(r, '('))
        return false;
    while (!take(r, ')')) {
        if (out->rank == NPY_MAX_RANK || !take_size(r, &out->shape[out->rank]))
            return false;
        out->rank++;
        if (!take(r, ',')) {
            if (!take(r, ')') || out->rank == 1) /* "(3)" is a number in Python, "(3,)" a tuple */
                return false;
            return true;
        }
    }
    return out->rank > 0;
}

static bool parse_dtype(const char *descr, struct npy *out)
{
    if (strlen(descr) != 3 || !strchr("<>|=", descr[0]) || !strchr("iu", descr[1]) || !strchr("1248", descr[2]))
        return false;
    out->big_endian = descr[0] == '>';
    out->is_signed  = descr[1] == 'i';
    out->item_size  = descr[2] - '0';
    return true;
}

status_t npy_parse(const void *bytes, size_t size, const char *label, struct npy *out)
{
    const unsigned char *s = bytes;
    if (!npy_is(bytes, size) || size < 12)
        return FAIL(ST_EINPUT, "%s: not a .npy file", label);
    if (s[6] < 1 || s[6] > 3)
        return FAIL(ST_EINPUT, "%s: .npy version %d.%d, want 1.0, 2.0 or 3.0", label, s[6], s[7]);
    size_t start  = s[6] == 1 ? 10 : 12;
    size_t header = s[8] | (size_t)s[9] << 8;
    if (s[6] > 1)
        header |= (size_t)s[10] << 16 | (size_t)s[11] << 24;
    if (header > HEADER_MAX || header > size - start)
        return FAIL(ST_EINPUT, "%s: .npy header of %zu bytes does not fit the file", label, header);

    struct npy    array = {0};
    struct reader r     = {(const char *)s + start, (const char *)s + start + header};
    char          key[32], descr[32];
    unsigned      seen = 0;
    bool          ok   = take(&r, '{');
    while (ok && !take(&r, '}')) {
        unsigned which = 0;
        ok             = take_string(&r, key, sizeof key) && take(&r, ':');
        if (ok && strcmp(key, "descr") == 0) {
            which = 1;
            ok    = take_string(&r, descr, sizeof descr);
        } else if (ok && strcmp(key, "fortran_order") == 0) {
            which               = 2;
            array.fortran_order = take_word(&r, "True");
            ok                  = array.fortran_order || take_word(&r, "False");
        } else if (ok && strcmp(key, "shape") == 0) {
            which = 4;
            ok    = take_shape(&r, &array);
        }
        ok = ok && which && !(seen & which);
        seen |= which;
        if (ok && !take(&r, ',')) {
            ok = take(&r, '}');
            break;
        }
    }
    skip_spaces(&r);
    if (!ok || seen != 7 || r.at != r.end)
        return FAIL(ST_EINPUT, "%s: .npy header is not understood; want an integer array of one or two dimensions", label);
    if (!parse_dtype(descr, &array))
        return FAIL(ST_EINPUT, "%s: .npy array of type \"%s\", want integers (i1..i8, u1..u8)", label, descr);
    if (array.shape[0] > INT32_MAX || array.shape[1] > INT32_MAX)
        return FAIL(ST_EINPUT, "%s: .npy array of %lld x %lld is too large", label, (long long)array.shape[0],
                    (long long)array.shape[1]);
    /* 2^31 · 2^31 fits 63 bits; the item size is compared by division. */
    uint64_t count = (uint64_t)array.shape[0] * (uint64_t)array.shape[1], have = size - start - header;
    if (have % (uint64_t)array.item_size || have / (uint64_t)array.item_size != count)
        return FAIL(ST_EINPUT, "%s: .npy array of %lld x %lld items of %d bytes, but %llu bytes of data", label,
                    (long long)array.shape[0], (long long)array.shape[1], array.item_size, (unsigned long long)have);
    array.data = s + start + header;
    *out       = array;
    return ST_OK;
}

int64_t npy_at(const struct npy *array, int64_t row, int64_t column)
{
    int64_t  index = array->fortran_order ? column * array->shape[0] + row : row * array->shape[1] + column;
    int      n     = array->item_size;
    uint64_t value = 0;
    for (int i = 0; i < n; i++)
        value |= (uint64_t)array->data[index * n + i] << 8 * (array->big_endian ? n - 1 - i : i);
    if (!array->is_signed)
        return value > INT64_MAX ? INT64_MAX : (int64_t)value;
    int shift = 64 - 8 * n;
    return (int64_t)(value << shift) >> shift;
}
