/* seal.h — the first 512 bytes of our HDF5 files: text that says what the file is, how long, and an XXH3-64 of the
 * rest.
 *
 * HDF5 calls these bytes the user block and skips them. A file that was cut short or altered is found out by them
 * before HDF5's parser, which crashes or loops on some damaged files, sees a byte. The text is <head lines>
 * "qsweep-cell 1.0.0\nid …\n…", each file kind its own size <bytes of the file> xxh3 <16 hex digits, over all lines
 * above and everything after the 512 bytes> and zeros. Against an attacker it proves nothing: who writes a hostile file
 * can seal it. Private to store/. */
#ifndef QSWEEP_STORE_SEAL_H
#define QSWEEP_STORE_SEAL_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { SEAL_SIZE = 512 };

struct seal {
    char     head[SEAL_SIZE]; /* the head lines, NUL-terminated; at most 400 bytes */
    uint64_t size, sum;
};

/* Seal a file image in memory: size bytes, of which the first SEAL_SIZE are room for the seal. */
status_t seal_image(char *image, uint64_t size, const char *head);
/* Seal a closed file in place. */
status_t seal_file(const char *path, const char *head);

/* Read and check the seal of path: kind is its first word; the size must fit; with_sum reads the whole file. ST_EINPUT
 * for a file of another kind, cut short or altered; ST_EIO when it cannot be read. */
status_t seal_check(const char *path, const char *kind, bool with_sum, struct seal *out);

/* The same without a word: absent (no file, or none of this kind), cut short, changed, or intact as far as was looked:
 * the sum is only computed for files of at most sum_limit bytes. */
enum seal_state { SEAL_ABSENT, SEAL_SHORT, SEAL_CHANGED, SEAL_INTACT };
enum seal_state seal_look(const char *path, const char *kind, uint64_t sum_limit);

#endif
