/* published.h — is this the published OpenAudio S1-mini? Compared by size and SHA-256. */
#ifndef QSWEEP_CHECKPOINT_PUBLISHED_H
#define QSWEEP_CHECKPOINT_PUBLISHED_H

#include "base/status.h"

#include <stdbool.h>

enum published_match { PUBLISHED_ABSENT, PUBLISHED_DIFFERS, PUBLISHED_SAME };

struct published_file {
    const char          *name;
    unsigned long long   bytes;
    const char          *sha256; /* 64 hex digits */
    enum published_match match;
};

enum { PUBLISHED_FILES = 5 };

/* Fill the table for the folder. A file is only hashed when its size is the published one. */
status_t published_check(const char *dir, struct published_file files[PUBLISHED_FILES]);

/* True when configuration, weights and both tokenizer files are the published ones (the codec may be absent). */
bool published_verified(const struct published_file files[PUBLISHED_FILES]);

const char *published_match_name(enum published_match match); /* "absent", "differs", "same" */

#endif
