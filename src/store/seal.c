#include "store/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* The lines that the sum covers; returns their length. */
static int covered_text(const char *head, uint64_t size, char out[SEAL_SIZE])
{
    return snprintf(out, SEAL_SIZE, "%.400ssize %" PRIu64 "\n", head, size);
}

/* All SEAL_SIZE bytes. */
static void seal_text(const struct seal *s, char out[SEAL_SIZE])
{
    memset(out, 0, SEAL_SIZE);
    int n = covered_text(s->head, s->size, out);
    snprintf(out + n, (size_t)(SEAL_SIZE - n), "xxh3 %016" PRIx64 "\n", s->sum);
}

status_t seal_image(char *image, uint64_t size, const char *head)
{
    struct seal   s = {.size = size};
    char          text[SEAL_SIZE];
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        return FAIL(ST_ENOMEM, "no memory for a checksum");
    snprintf(s.head, sizeof s.head, "%.400s", head);
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, text, (size_t)covered_text(head, size, text));
    XXH3_64bits_update(state, image + SEAL_SIZE, size - SEAL_SIZE);
    s.sum = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    seal_text(&s, image);
    return ST_OK;
}

/* Read exactly the bytes at `at`; false with errno (0 = the file ends before). */
static bool read_at(int fd, void *out, size_t size, off_t at)
{
    char *p = out;
    while (size) {
        ssize_t n = pread(fd, p, size, at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n == 0 ? 0 : errno;
            return false;
        }
        p += n;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static status_t sum_file(int fd, const char *path, const char *head, uint64_t size, uint64_t *sum)
{
    enum { BUFFER = 256 << 10 };
    char          text[SEAL_SIZE];
    char         *buffer = malloc(BUFFER);
    XXH3_state_t *state = XXH3_createState();
    status_t      st = ST_OK;
    if (!buffer || !state) {
        st = FAIL(ST_ENOMEM, "%s: no memory for a checksum", path);
        goto out;
    }
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, text, (size_t)covered_text(head, size, text));
    for (uint64_t at = SEAL_SIZE; at < size;) {
        size_t n = size - at < BUFFER ? (size_t)(size - at) : BUFFER;
        if (!read_at(fd, buffer, n, (off_t)at)) {
            st = FAIL(ST_EIO, "%s: %s", path, errno ? strerror(errno) : "changed while it was read");
            goto out;
        }
        XXH3_64bits_update(state, buffer, n);
        at += n;
    }
    *sum = XXH3_64bits_digest(state);
out:
    XXH3_freeState(state);
    free(buffer);
    return st;
}

status_t seal_file(const char *path, const char *head)
{
    struct seal s = {0};
    struct stat info;
    char        text[SEAL_SIZE];
    int         fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0) {
        if (fd >= 0)
            close(fd);
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    }
    snprintf(s.head, sizeof s.head, "%.400s", head);
    s.size = (uint64_t)info.st_size;
    status_t st = sum_file(fd, path, head, s.size, &s.sum);
    seal_text(&s, text);
    if (st == ST_OK && pwrite(fd, text, sizeof text, 0) != (ssize_t)sizeof text)
        st = FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    close(fd);
    return st;
}

static bool is_of_kind(const char *text, const char *kind)
{
    size_t n = strlen(kind);
    return strncmp(text, kind, n) == 0 && text[n] == ' ';
}

/* Take the text apart. It is valid when writing it again gives the same bytes: nothing in it goes unchecked. */
static bool parse(const char text[SEAL_SIZE + 1], struct seal *out)
{
    char        again[SEAL_SIZE];
    const char *size = strstr(text, "\nsize ");
    memset(out, 0, sizeof *out);
    if (!size || size - text >= 400)
        return false;
    memcpy(out->head, text, (size_t)(size - text) + 1);
    if (sscanf(size, "\nsize %" SCNu64 "\nxxh3 %" SCNx64, &out->size, &out->sum) != 2)
        return false;
    seal_text(out, again);
    return memcmp(text, again, SEAL_SIZE) == 0;
}

static status_t check_open_file(int fd, const char *path, const char *kind, bool with_sum, struct seal *out)
{
    char        text[SEAL_SIZE + 1] = "";
    struct stat info;
    uint64_t    sum = 0;
    if (fstat(fd, &info) != 0 || (!S_ISREG(info.st_mode) && (errno = EINVAL)))
        return FAIL(ST_EIO, "%s: not a plain file: %s", path, strerror(errno));
    if (!read_at(fd, text, SEAL_SIZE, 0))
        return errno ? FAIL(ST_EIO, "%s: %s", path, strerror(errno))
                     : FAIL(ST_EINPUT, "%s: cut short: %lld bytes", path, (long long)info.st_size);
    if (!is_of_kind(text, kind))
        return FAIL(ST_EINPUT, "%s: not a %s file", path, kind);
    if (!parse(text, out))
        return FAIL(ST_EINPUT, "%s: damaged in its first %d bytes", path, SEAL_SIZE);
    if (out->size != (uint64_t)info.st_size)
        return FAIL(ST_EINPUT, "%s: %s: %lld bytes, it was written with %" PRIu64, path,
                    (uint64_t)info.st_size < out->size ? "cut short" : "too long", (long long)info.st_size, out->size);
    if (!with_sum)
        return ST_OK;
    TRY(sum_file(fd, path, out->head, out->size, &sum));
    return sum == out->sum ? ST_OK : FAIL(ST_EINPUT, "%s: damaged: its checksum does not match", path);
}

status_t seal_check(const char *path, const char *kind, bool with_sum, struct seal *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return FAIL(ST_EIO, "%s: %s", path, strerror(errno));
    status_t st = check_open_file(fd, path, kind, with_sum, out);
    close(fd);
    return st;
}

enum seal_state seal_look(const char *path, const char *kind, uint64_t sum_limit)
{
    char            text[SEAL_SIZE + 1] = "";
    struct seal     s;
    struct stat     info;
    uint64_t        sum = 0;
    enum seal_state state = SEAL_ABSENT;
    int             fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return SEAL_ABSENT;
    if (read_at(fd, text, SEAL_SIZE, 0) && is_of_kind(text, kind) && fstat(fd, &info) == 0) {
        bool whole = parse(text, &s) && s.size == (uint64_t)info.st_size;
        state = whole ? SEAL_INTACT : s.size > (uint64_t)info.st_size ? SEAL_SHORT : SEAL_CHANGED;
        if (whole && s.size <= sum_limit && (sum_file(fd, path, s.head, s.size, &sum) != ST_OK || sum != s.sum))
            state = SEAL_CHANGED;
    }
    close(fd);
    return state;
}
