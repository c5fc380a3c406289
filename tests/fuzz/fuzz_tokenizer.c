/* Bytes as a vocabulary, as special tokens and as text. Input: one byte of choice, then the bytes. Text that encodes must
 * come back from its ids. */
#include "base/utf8.h"
#include "checkpoint/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MERGES = 8 };
static const char *const merges[MERGES] = {"aa", "aaaa", "ab", "  ", "  \n", "he", "the", "'s"};
static char  vocabulary[8192];
static size_t vocabulary_size;

static void append(const char *bytes, size_t size, int rank)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        unsigned word = 0;
        for (size_t k = 0; k < 3; k++)
            word = word << 8 | (i + k < size ? (unsigned char)bytes[i + k] : 0u);
        for (size_t k = 0; k < 4; k++)
            vocabulary[vocabulary_size++] = i + k > size ? '=' : digits[word >> (18 - 6 * k) & 63];
    }
    vocabulary_size += (size_t)snprintf(vocabulary + vocabulary_size, 16, " %d\n", rank);
}

static void encode_and_compare(const struct tokenizer *t, const char *text, size_t size, bool plain)
{
    int32_t *ids = NULL;
    size_t   n = 0, at = 0;
    if (tokenizer_encode(t, text, size, !plain, &ids, &n) != ST_OK) {
        if (utf8_first_bad(text, size) == size)
            abort();
        return;
    }
    for (size_t i = 0; plain && i < n; i++) {
        char        byte   = (char)ids[i];
        const char *bytes  = ids[i] < 256 ? &byte : ids[i] < 256 + MERGES ? merges[ids[i] - 256] : NULL;
        size_t      length = ids[i] < 256 ? 1 : bytes ? strlen(bytes) : 0;
        if (!bytes || length > size - at || memcmp(bytes, text + at, length))
            abort();
        at += length;
    }
    if (plain && at != size)
        abort();
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *fixed;
    if (!fixed) {
        for (int byte = 0; byte < 256; byte++)
            append(&(char){(char)byte}, 1, byte);
        for (int i = 0; i < MERGES; i++)
            append(merges[i], strlen(merges[i]), 256 + i);
        if (tokenizer_parse(vocabulary, vocabulary_size, NULL, 0, "fuzz", &fixed) != ST_OK)
            abort();
    }
    if (size == 0)
        return 0;
    const char       *bytes = (const char *)data + 1;
    struct tokenizer *t     = NULL;
    size--;
    switch (data[0] % 4) {
    case 0:
        encode_and_compare(fixed, bytes, size, true);
        break;
    case 1:
        encode_and_compare(fixed, bytes, size, false);
        break;
    case 2: /* after the 256 bytes, so that a few lines make a vocabulary */ {
        char *all = malloc(vocabulary_size + size);
        if (!all)
            abort();
        memcpy(all, vocabulary, vocabulary_size);
        memcpy(all + vocabulary_size, bytes, size);
        if (tokenizer_parse(all, vocabulary_size + size, NULL, 0, "fuzz", &t) == ST_OK)
            encode_and_compare(t, "the aaaab  \n's", 14, false);
        free(all);
        break;
    }
    default:
        if (tokenizer_parse(vocabulary, vocabulary_size, bytes, size, "fuzz", &t) == ST_OK)
            encode_and_compare(t, bytes, size, false);
    }
    tokenizer_close(t);
    return 0;
}
