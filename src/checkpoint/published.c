#include "checkpoint/published.h"

#include "base/filemap.h"

#include <nettle/sha2.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* Hugging Face fishaudio/openaudio-s1-mini; the codec is the same file in S2-pro. */
static const struct published_file s1_mini[PUBLISHED_FILES] = {
    {"config.json", 844, "0e46c32fd452751d48a553283e16a30819ea7321b32b9bf9e4a8b9c9cc02fa50", PUBLISHED_ABSENT},
    {"model.pth", 1735122974, "9e59be7dc6714040dce3cde1f41e730c2f0daa5339785b1cd3b60041208c35e6", PUBLISHED_ABSENT},
    {"tokenizer.tiktoken", 2561218, "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186", PUBLISHED_ABSENT},
    {"special_tokens.json", 126275, "efc4b254afdf5c3898dc26bd2b7791a9cae993747d92a3176cf9ce4ccfe40526", PUBLISHED_ABSENT},
    {"codec.pth", 1871099728, "74fc41c5a7151c6f350af8bd7e5d6e3accfcc7f3dfbfac23afd35af07052bb2f", PUBLISHED_ABSENT},
};

enum { CODEC = PUBLISHED_FILES - 1 };

static status_t hash_file(const char *path, char hex[65])
{
    struct filemap    map = {0};
    struct sha256_ctx context;
    uint8_t           digest[SHA256_DIGEST_SIZE];
    TRY(filemap_open(path, 0, &map));
    madvise((void *)map.data, map.size, MADV_SEQUENTIAL);
    sha256_init(&context);
    sha256_update(&context, map.size, map.data);
    sha256_digest(&context, sizeof digest, digest);
    filemap_close(&map);
    for (int i = 0; i < SHA256_DIGEST_SIZE; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return ST_OK;
}

status_t published_check(const char *dir, struct published_file files[PUBLISHED_FILES])
{
    memcpy(files, s1_mini, sizeof s1_mini);
    for (int i = 0; i < PUBLISHED_FILES; i++) {
        char        path[4400], hex[65];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", dir, files[i].name);
        if (stat(path, &info) != 0)
            continue;
        files[i].match = PUBLISHED_DIFFERS;
        if ((unsigned long long)info.st_size != files[i].bytes)
            continue;
        TRY(hash_file(path, hex));
        if (strcmp(hex, files[i].sha256) == 0)
            files[i].match = PUBLISHED_SAME;
    }
    return ST_OK;
}

bool published_verified(const struct published_file files[PUBLISHED_FILES])
{
    for (int i = 0; i < PUBLISHED_FILES; i++)
        if (files[i].match != PUBLISHED_SAME && !(i == CODEC && files[i].match == PUBLISHED_ABSENT))
            return false;
    return true;
}

const char *published_match_name(enum published_match match)
{
    static const char *const names[] = {"absent", "differs", "same"};
    return names[match];
}
